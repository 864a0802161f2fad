"""Metadata while the store does not serve: exports, imports, and salvage after the loss of all of it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from objstore.config import load
from objstore.processes import offline
from tests.server import Server, run_command, running_server, start_server


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A store with a user, forty small objects and a large one; it does not run."""
    server = start_server(tmp_path_factory.mktemp("original"))
    s3 = server.boto3()
    s3.create_bucket(Bucket="bucket")
    for number in range(40):
        s3.put_object(Bucket="bucket", Key=f"k{number}", Body=str(number).encode() * 300)
    s3.put_object(Bucket="bucket", Key="large", Body=b"large" * 1_000_000, Metadata={"colour": "blue"})
    server.command("user", "create", "alice", "--tenant", "acme")
    server.command("meta", "copy")
    s3.put_object(Bucket="bucket", Key="after", Body=b"put after the copy")
    server.stop()
    return server


@pytest.fixture
def stopped(original: Server, tmp_path: Path) -> Server:
    """A copy of it under `tmp_path`: a data directory may be moved as a whole."""
    shutil.copytree(original.data, tmp_path / "data", ignore=shutil.ignore_patterns("*.sock"))
    return dataclasses.replace(original, data=tmp_path / "data")


def check(server: Server) -> Any:
    s3 = server.boto3()
    assert len(s3.list_objects_v2(Bucket="bucket")["Contents"]) == 42
    for number in range(40):
        assert s3.get_object(Bucket="bucket", Key=f"k{number}")["Body"].read() == str(number).encode() * 300
    large = s3.get_object(Bucket="bucket", Key="large")
    assert large["Body"].read() == b"large" * 1_000_000
    assert large["Metadata"] == {"colour": "blue"}
    assert s3.get_object(Bucket="bucket", Key="after")["Body"].read() == b"put after the copy"
    return s3


def test_an_export_put_back_is_what_was_exported(stopped: Server, tmp_path: Path) -> None:
    file = tmp_path / "export"
    assert "records" in stopped.command("meta", "export", str(file)).stdout
    again = stopped.command("meta", "export", str(file), check=False)
    assert again.returncode == 1
    assert "exists" in again.stderr
    quiet = {
        "OBJSTORE_UPKEEP__ENABLED": "false"
    }  # Compaction would make a volume that the export does not know.
    with running_server(tmp_path, environment=quiet) as server:
        server.boto3().delete_object(Bucket="bucket", Key="k7")
        busy = server.command("meta", "export", str(tmp_path / "other"), check=False)
        assert busy.returncode == 1
        assert "another objstore serves" in busy.stderr
    refused = stopped.command("meta", "import", str(file), check=False)
    assert "not empty" in refused.stderr
    stopped.command("meta", "import", "--replace", str(file))
    with running_server(tmp_path, environment=quiet) as server:
        s3 = check(server)
        s3.put_object(Bucket="bucket", Key="new", Body=b"new")
    older = stopped.command("meta", "import", "--replace", str(file), check=False)
    assert older.returncode == 1
    assert "is older than the data" in older.stderr
    with running_server(tmp_path, environment=quiet) as server:
        assert server.boto3().get_object(Bucket="bucket", Key="new")["Body"].read() == b"new"


def test_a_file_that_cannot_be_made_is_told_before_the_store_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(offline, "run_job", lambda *_, **__: pytest.fail("recovered"))
    loaded = load(None, {}, {"server.data": ("--data", str(tmp_path))})
    with pytest.raises(FileExistsError, match="exists"):
        offline.export(loaded, tmp_path / "file")
    with pytest.raises(OSError, match="there is no directory"):
        offline.export(loaded, tmp_path / "nowhere" / "file")


def test_a_damaged_export_changes_nothing(stopped: Server, tmp_path: Path) -> None:
    file = tmp_path / "export"
    stopped.command("meta", "export", str(file))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = stopped.command("meta", "import", "--replace", str(file), check=False)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    with running_server(tmp_path) as server:
        check(server)


def test_with_journal_and_lmdb_lost_everything_comes_back_from_fragments(
    stopped: Server, tmp_path: Path
) -> None:
    for disk in (tmp_path / "data").glob("disk*"):
        for log in (disk / "logs").iterdir():
            log.unlink()
        shutil.rmtree(disk / "meta", ignore_errors=True)
    server = start_server(tmp_path, wait=False)
    assert server.process.wait(60) == 1  # It never begins anew by itself.
    assert "holds it" in server.text()

    assert stopped.command("meta", "rebuild", check=False).returncode == 4
    done = stopped.command("meta", "rebuild", "--yes", "-o", "json", check=False)
    assert done.returncode in (0, 3), done.stderr
    shown, _ = json.JSONDecoder().raw_decode(done.stdout)
    found = {row["what"]: row["value"] for row in shown}
    assert found["buckets"] == 1
    assert found["objects"] == 42
    assert found["objects newer than the snapshot"] <= found["objects"]
    with running_server(tmp_path) as server:
        s3 = check(server)
        users = json.loads(server.command("user", "list", "-o", "json").stdout)
        assert {user["name"] for user in users} == {"root", "alice"}
        s3.put_object(Bucket="bucket", Key="new", Body=os.urandom(100_000))
        server.kill()
    with running_server(tmp_path) as server:
        assert server.boto3().head_object(Bucket="bucket", Key="new")["ContentLength"] == 100_000


def test_nothing_is_made_where_no_store_is(tmp_path: Path) -> None:
    done = run_command("meta", "export", str(tmp_path / "x"), "--data", str(tmp_path / "none"), check=False)
    assert done.returncode == 1
    assert "no store at" in done.stderr
    assert not (tmp_path / "none").exists()
