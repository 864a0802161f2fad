"""Two real stores on loopback: a bucket of one is replicated to the other, which takes over when it is lost.

As docs/operations.md "Losing a site" has it, by the commands that it names.
"""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

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


@dataclass
class Traffic:
    """Clients that write numbered versions of a few keys, each key by one of them."""

    s3: Any
    bucket: str
    seed: int
    acknowledged: dict[str, list[tuple[float, int | None]]] = field(default_factory=dict)
    """Key -> (when it was acknowledged, number of the version; None: deleted)."""
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, clients: int = 3) -> None:
        for client in range(clients):
            self.threads.append(threading.Thread(target=self._write, args=(client,), daemon=True))
            self.threads[-1].start()

    def _write(self, client: int) -> None:
        chance = random.Random(self.seed * 100 + client)
        number = 0
        while not self.stop.is_set():
            number += 1
            key = f"{client}/{chance.randrange(8)}"
            gone = number > 20 and chance.random() < 0.15
            try:
                if gone:
                    self.s3.delete_object(Bucket=self.bucket, Key=key)
                else:
                    self.s3.put_object(Bucket=self.bucket, Key=key, Body=body(key, number))
            except (ClientError, BotoCoreError):
                return  # The site is lost.
            self.acknowledged.setdefault(key, []).append((time.time(), None if gone else number))
            time.sleep(0.002)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)


def body(key: str, number: int) -> bytes:
    """A version's bytes: they name themselves, and cannot be mixed up or cut unnoticed."""
    head = b"%s %d " % (key.encode(), number)
    data = head + b"." * (number * 7919 % 300_000 if number % 10 == 0 else number * 31 % 3_000)
    return data + hashlib.md5(data).digest()


def number_in(key: str, data: bytes) -> int:
    """Of a whole version of this key."""
    assert hashlib.md5(data[:-16]).digest() == data[-16:], f"a torn version of {key}"
    name, number, _ = data.split(b" ", 2)
    assert name.decode() == key
    return int(number)


def test_a_lost_site_is_replaced_by_its_replica(stores: tuple[Server, Server], tmp_path: Path) -> None:
    """Everything acknowledged more than `lag` before the loss is there, whole, and in order."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    _, far = stores
    near = start_server(tmp_path / "near", workers=1)
    try:
        s3, there = near.boto3(retries={"max_attempts": 0}), far.boto3()
        s3.create_bucket(Bucket="shop")
        there.create_bucket(Bucket="shop-far")
        s3.put_object(Bucket="shop", Key="before", Body=b"there before", Metadata={"a": "b"})
        assert "replication status shop" in replicate(near, far, "shop", "shop-far").stdout
        wait_for("the first pass", lambda: in_step(near, "shop"))

        with pytest.raises(ClientError, match="read-only until it is promoted"):
            there.put_object(Bucket="shop-far", Key="mine", Body=b"x")

        traffic = Traffic(s3, "shop", seed)
        traffic.start()
        seen: dict[str, int] = {}
        until = time.monotonic() + 2
        while time.monotonic() < until:
            look(there, "shop-far", seen)
        # The lag is asked just before the loss: what it says holds for what was acknowledged before.
        lag_s = row_of(near, "shop")["lag_seconds"]
        lost = time.time()
        near.kill()
        traffic.end()
    finally:
        near.kill()

    done = far.command("replication", "promote", "shop-far", "--confirm", "promote shop-far")
    assert "takes writes" in done.stdout
    held = look(there, "shop-far", seen)
    assert held.pop("before") == 0
    for key, versions in traffic.acknowledged.items():
        sure = [number for at, number in versions if at < lost - lag_s - 0.05]
        later = [number for at, number in versions if at >= lost - lag_s - 0.05]
        if sure and sure[-1] is not None and None not in later:
            assert held.get(key, 0) >= sure[-1], (key, lag_s, versions)
        if key in held:
            assert held[key] <= max(number or 0 for _, number in versions) + 1, "what nobody has written"

    # Clients write here now; the old site comes back, with changes that it never sent, and gets nothing in.
    there.put_object(Bucket="shop-far", Key="before", Body=b"newer")
    near = start_server(tmp_path / "near")
    try:
        near.boto3().put_object(Bucket="shop", Key="before", Body=b"older in truth")
        wait_for("the refusal", lambda: row_of(near, "shop")["state"] == "refused")
        assert there.get_object(Bucket="shop-far", Key="before")["Body"].read() == b"newer"
        status = near.command("replication", "status", "shop", check=False)
        assert status.returncode == 3
        assert "promoted" in status.stdout
        assert "before" in status.stdout  # The keys that never arrived.

        # Back again: the old site becomes the replica, by name, and then takes over once more.
        assert near.command("replication", "remove", "shop", check=False).returncode == 4
        near.command("replication", "remove", "shop", "--confirm", "remove shop")
        refused = replicate(far, near, "shop-far", "shop", check=False)
        assert refused.returncode == 4
        assert "BucketNotEmpty" in refused.stderr
        replicate(far, near, "shop-far", "shop", "--overwrite", "--confirm", "overwrite shop")
        wait_for("the pass back", lambda: in_step(far, "shop-far"))
        assert look(near.boto3(), "shop", {}) == look(there, "shop-far", {})
        assert near.boto3().get_object(Bucket="shop", Key="before")["Body"].read() == b"newer"
    finally:
        near.stop()


def look(s3: Any, bucket: str, seen: dict[str, int]) -> dict[str, int]:
    """Key -> number of its version there, each whole; no key goes back behind what was seen before."""
    held: dict[str, int] = {}
    for one in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        key = one["Key"]
        try:
            data = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as failure:
            if failure.response["Error"]["Code"] == "NoSuchKey":
                continue
            raise
        held[key] = 0 if key == "before" else number_in(key, data)
        assert held[key] >= seen.get(key, 0), f"{key} went back from {seen[key]} to {held[key]}"
        seen[key] = held[key]
    return held


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
