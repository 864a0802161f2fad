"""`objstore meta copy --from lmdb:DIR --to postgresql:...`, as an operator types it."""

import json
from pathlib import Path

import pytest

from objstore.meta import transfer
from objstore.meta.kv_postgres import PostgresKv
from objstore.meta.transfer import Pairs
from tests import postgres
from tests.server import run_command, running_server, start_server


async def exported(file: Path) -> Pairs:
    return [pair async for pairs in transfer.read(file) for pair in pairs]


@pytest.mark.timeout(240)
async def test_a_running_store_is_copied_and_finished_when_it_stands(tmp_path: Path) -> None:
    quiet = {"OBJSTORE_UPKEEP__ENABLED": "false"}
    with postgres.database() as url, running_server(tmp_path, environment=quiet) as server:
        s3 = server.boto3()
        s3.create_bucket(Bucket="bucket")
        for number in range(30):
            s3.put_object(Bucket="bucket", Key=f"k{number}", Body=b"x" * number)
        words = ("meta", "copy", "--from", f"lmdb:{server.data}", "--to", url)
        first = server.command(*words)
        assert "copied while the store serves" in first.stdout
        for number in range(10):
            s3.delete_object(Bucket="bucket", Key=f"k{number}")
            s3.put_object(Bucket="bucket", Key=f"new{number}", Body=b"y")
        server.stop()
        # The address may come from the configuration, and does not show in the list of processes then.
        environment = {**server.environment, "OBJSTORE_META__URL": url}
        words = ("meta", "copy", "--from", f"lmdb:{server.data}", "--to", "postgresql:", "-o", "json")
        last = run_command(*words, environment=environment)
        (report,) = json.loads(last.stdout)
        assert report["finished"]
        assert 0 < report["put"] < report["compared"]
        assert report["deleted"] >= 10
        server.command("meta", "export", str(tmp_path / "export"))
        wanted = await exported(tmp_path / "export")
        kv = PostgresKv(url)
        await kv.start()
        found = await kv.scan(b"\0", b"\xff" * 100, 1 << 20)
        await kv.close()
        assert [key for key, _ in found] == [key for key, _ in wanted]
        assert len(found) == report["compared"]
        # Nothing of the store's own is left behind by the runs themselves.
        assert dict(found) == dict(wanted)


@pytest.mark.timeout(240)
def test_a_store_that_has_moved_serves_no_more_until_the_move_is_given_up(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    server.boto3().create_bucket(Bucket="bucket")
    marks = [server.data / "moved.json", *(server.data / f"disk{n}" / "moved.json" for n in range(1, 6))]
    (server.data / "disk6" / "moved.json.new").mkdir()  # This one takes no mark, and holds up nothing.
    with postgres.database() as url:
        words = ("meta", "copy", "--from", f"lmdb:{server.data}", "--to", url)
        server.command(*words)  # Beside the store: it may go on.
        assert not any(mark.exists() for mark in marks)
        server.stop()
        server.command(*words)
        assert all(mark.exists() for mark in marks)
        again = run_command(*words, check=False)
        assert again.returncode == 1
        assert "by an earlier pass" in again.stderr
        assert "objstore cluster init" in again.stderr

    def refused() -> str:
        listen = ("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0")
        done = run_command("serve", f"--data={server.data}", *listen, check=False)
        assert done.returncode == 1
        return str(done.stderr)

    assert "metadata was moved to postgresql://" in refused()
    server.command("meta", "export", str(tmp_path / "export"))  # What does not serve works on.
    # A data directory that is lost changes nothing, nor does a mark that cannot be read.
    marks[0].unlink()
    marks[1].write_bytes(b"torn")
    said = refused()
    assert "metadata was moved to" in said
    for mark in marks[1:]:
        assert str(mark) in said
        mark.unlink()
    with running_server(tmp_path) as again:
        assert [bucket["Name"] for bucket in again.boto3().list_buckets()["Buckets"]] == ["bucket"]


def test_what_is_wrong_with_the_command_is_said(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    server.stop()

    def refused(*words: str) -> str:
        done = run_command("meta", "copy", *words, environment=server.environment, check=False)
        assert done.returncode != 0
        return str(done.stderr)

    here = f"lmdb:{server.data}"
    assert "belong together" in refused("--from", here)
    assert "lmdb:DIR" in refused("--from", str(server.data), "--to", "postgresql://h/db")
    assert "names no database" in refused("--from", here, "--to", "postgresql://h")
    assert "no store at" in refused("--from", f"lmdb:{tmp_path / 'nothing'}", "--to", "postgresql://h/db")
    assert not (tmp_path / "nothing").exists()
    assert "different stores" in refused("--from", here, "--to", "postgresql://h/db", "--data", "elsewhere")
    unreachable = refused("--from", here, "--to", "postgresql://u:hidden-word@127.0.0.1:1/db")
    assert "no PostgreSQL server takes writes at postgresql://u@127.0.0.1:1/db" in unreachable
    assert "hidden-word" not in unreachable
