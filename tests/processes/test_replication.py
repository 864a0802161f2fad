"""Replication as operators set it up, between two real stores. tests/chaos has the loss of one."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.server import Server, start_server

WAIT_S = 120.0


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < limit, f"never came: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    servers = [start_server(tmp_path_factory.mktemp(name)) for name in ("near", "far")]
    yield servers[0], servers[1]
    for server in servers:
        server.stop()


def secret_file(server: Server) -> str:
    place = server.data.parent / "target.secret"
    place.write_text(server.secret_key + "\n")
    place.chmod(0o600)
    return str(place)


def replicate(near: Server, far: Server, bucket: str, target: str, *more: str, check: bool = True) -> Any:
    return near.command(
        "replication", "set", bucket, "--endpoint", far.endpoint, "--target", target,
        "--access-key", far.access_key, "--secret-key-file", secret_file(far), *more, check=check,
    )  # fmt: skip


def row_of(server: Server, bucket: str) -> dict[str, Any]:
    status, found = server.admin("GET", f"/api/v1/replication/{bucket}")
    assert status == 200, found
    row: dict[str, Any] = found["rows"][0]
    return row


def in_step(server: Server, bucket: str) -> bool:
    row = row_of(server, bucket)
    return row["state"] == "in step" and not row["pending"] and not row["copying"]


def test_a_target_that_does_not_agree_leaves_the_bucket_as_it_was(stores: tuple[Server, Server]) -> None:
    near, far = stores
    near.boto3().create_bucket(Bucket="plain")
    missing = replicate(near, far, "plain", "nowhere", check=False)
    assert missing.returncode == 4
    assert "NoSuchBucket" in missing.stderr
    assert near.admin("GET", "/api/v1/replication/plain")[0] == 404
    near.boto3().put_object(Bucket="plain", Key="k", Body=b"1")
    itself = replicate(near, near, "plain", "plain", check=False)
    assert itself.returncode == 4
    assert "a replica cannot have replicas" in itself.stderr
    near.boto3().put_object(Bucket="plain", Key="k", Body=b"2")


def test_a_replicated_bucket_is_listed_and_counted_and_its_secret_is_not_shown(
    stores: tuple[Server, Server],
) -> None:
    near, far = stores
    near.boto3().create_bucket(Bucket="seen")
    far.boto3().create_bucket(Bucket="seen")
    shown = replicate(near, far, "seen", "seen", "-o", "json").stdout
    wait_for("the pass", lambda: in_step(near, "seen"))
    shown += near.command("replication", "list", "-o", "json").stdout
    assert far.secret_key not in shown
    back = replicate(far, near, "seen", "seen", check=False)
    assert back.returncode == 4
    assert "is a replica itself" in back.stderr

    near.boto3().put_object(Bucket="seen", Key="k", Body=b"12345")
    wanted = [
        'objstore_replication_lag_seconds{bucket="seen"} 0',
        'objstore_replication_pending_changes{bucket="seen"} 0',
        'objstore_replication_refused{bucket="seen"} 0',
        'objstore_replication_sent_keys_total{bucket="seen"} 1',
        'objstore_replication_sent_bytes_total{bucket="seen"} 5',
    ]

    def counted() -> bool:
        page = near.admin("GET", "/metrics")[1]
        return all(line in page for line in wanted)

    wait_for("the metrics", counted)
    assert far.boto3().get_object(Bucket="seen", Key="k")["Body"].read() == b"12345"

    with pytest.raises(ClientError, match="is replicated"):
        near.boto3().delete_bucket(Bucket="seen")
    assert near.admin("POST", "/api/v1/replication/seen/remove", {})[0] == 200
    assert near.admin("GET", "/api/v1/replication/seen")[0] == 404
    near.boto3().delete_object(Bucket="seen", Key="k")
    near.boto3().delete_bucket(Bucket="seen")
    assert far.boto3().get_object(Bucket="seen", Key="k")["Body"].read() == b"12345"
