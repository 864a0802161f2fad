"""Everything is handed back: from a running store into a directory, over cuts; and verified without it.

Long form (OBJSTORE_LONG=1): processes that are killed; storage nodes and gateways that are.
"""

import base64
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner, Result

from objstore.cli import exported, exporting
from objstore.cli.client import AdminClient, Refused
from objstore.cli.exported import Broken, Sums, verify
from objstore.cli.exporting import EtagCheck, Export
from objstore.cli.main import app
from tests.clusters import ENGINES, Front, fronts_of, running_cluster
from tests.seed import SEED
from tests.server import ROOT, Server

TENANT: Final = "leaving"
MIB: Final = 1024 * 1024
KEYS: Final = (
    "plain", "../../etc/passwd", "/", "a//b", "a/./b", "Case", "case", "CASE", "é", "\U0001f600", "k" * 1024,
    "line\nbreak", "tab\there", "con", "dir/", "dir", "empty", ".part", " ",
)  # fmt: skip
Bodies = dict[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def bodies(store_server: Server) -> Bodies:
    return filled(store_server)


def filled(server: Server | Front) -> Bodies:
    """What tenant `leaving` has stored, by bucket and key; one object of several parts is among it."""
    rng = random.Random(SEED)
    for words in (
        f"user create leaver --tenant {TENANT}",
        "user create watcher --role reader --tenant leaving",
    ):
        assert run(server, *words.split()).exit_code == 0
    (key,) = json.loads(run(server, "key", "create", "leaver", "-o", "json").stdout)
    s3 = server.boto3(key["access_key"], key["secret_key"])
    stored: Bodies = {}
    for bucket in ("leaving-b", "leaving-a"):
        s3.create_bucket(Bucket=bucket)
    for name in KEYS:
        body = b"" if name == "empty" else rng.randbytes(rng.choice((1, 900, 200_000)))
        stored["leaving-a", name] = body
        s3.put_object(
            Bucket="leaving-a", Key=name, Body=body, ContentType="text/x", CacheControl="no-cache",
            Metadata={"colour": "red"},
        )  # fmt: skip
    upload = s3.create_multipart_upload(Bucket="leaving-a", Key="0whole")["UploadId"]
    parts, whole = [], b""
    for number in (1, 2):
        body = rng.randbytes(5 * MIB if number == 1 else 7)
        of = {"Bucket": "leaving-a", "Key": "0whole", "UploadId": upload, "PartNumber": number}
        parts.append({"PartNumber": number, "ETag": s3.upload_part(**of, Body=body)["ETag"]})
        whole += body
    s3.complete_multipart_upload(
        Bucket="leaving-a", Key="0whole", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    stored["leaving-a", "0whole"] = whole
    s3.put_object(Bucket="leaving-b", Key="last", Body=b"last")
    stored["leaving-b", "last"] = b"last"
    return stored


def run(server: Server | Front, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--data", str(server.data)])


def lines(directory: Path, name: str = "objects.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def check_whole(directory: Path, bodies: Bodies) -> None:
    """What lies there is what was stored, all of it, each once."""
    found = lines(directory)
    assert [(line["bucket"], line["key"]) for line in found] == sorted(
        bodies, key=lambda name: (name[0], name[1].encode())
    )
    for line in found:
        body = (directory / line["file"]).read_bytes()
        assert body == bodies[line["bucket"], line["key"]], line["key"]
        assert (line["size"], line["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
        assert line["etag_matches"]
    sums, wrong = verify(directory, lambda size, count: None)
    assert (wrong, sums.objects, sums.bytes) == ([], len(bodies), sum(map(len, bodies.values())))


@pytest.fixture(scope="module")
def whole(store_server: Server, bodies: Bodies, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "whole"
    done = run(store_server, "tenant", "export", TENANT, str(directory), "-o", "json")
    assert done.exit_code == 0, done.output
    (facts,) = json.loads(done.stdout)
    assert (facts["objects"], facts["missing"]) == (len(bodies), 0)
    return directory


def test_every_key_comes_back_with_its_bytes_and_metadata_under_a_harmless_name(
    whole: Path, bodies: Bodies
) -> None:
    check_whole(whole, bodies)
    for path in whole.rglob("*"):
        assert path.resolve().is_relative_to(whole.resolve())
        assert all(name not in path.name for name in ("passwd", "case", "0whole"))
    by_key = {line["key"]: line for line in lines(whole)}
    plain = by_key["plain"]
    assert (plain["content_type"], plain["headers"]) == ("text/x", {"cache-control": "no-cache"})
    assert (plain["metadata"], plain["storage_class"]) == ({"colour": "red"}, "STANDARD")
    assert plain["checksum"]["algorithm"] in ("CRC32", "CRC64NVME")
    assert [part["size"] for part in by_key["0whole"]["part_list"]] == [5 * MIB, 7]
    assert {user["name"] for user in lines(whole, "records/users.jsonl")} == {"leaver", "watcher"}
    assert [bucket["name"] for bucket in lines(whole, "records/buckets.jsonl")] == ["leaving-a", "leaving-b"]
    everything = b"".join(path.read_bytes() for path in (whole / "records").rglob("*.*"))
    assert b"secret" not in everything


def test_the_store_remembers_who_took_what(store_server: Server, whole: Path) -> None:
    exports = store_server.admin("GET", f"/api/v1/tenants/{TENANT}/exports")[1]["items"]
    digest = hashlib.sha256((whole / "manifest.jsonl").read_bytes()).hexdigest()
    (mine,) = [one for one in exports if one["manifest"] == digest]
    assert (mine["by"], mine["missing"], mine["finished"] is not None) == ("operator", 0, True)
    assert (whole / "manifest.sha256").read_text() == f"{digest}  manifest.jsonl\n"
    acts = store_server.admin("GET", "/api/v1/audit?what=export")[1]["items"]
    assert {"begin_export", "finish_export"} <= {act["action"] for act in acts}


def test_a_dry_run_says_how_much_it_is_and_a_finished_export_is_left_as_it_is(
    store_server: Server, whole: Path, bodies: Bodies
) -> None:
    done = run(store_server, "tenant", "export", TENANT, "--dry-run", "-o", "json")
    everything = json.loads(done.stdout)[-1]
    assert (everything["objects"], everything["bytes"]) == (len(bodies), sum(map(len, bodies.values())))
    before = (whole / "manifest.jsonl").read_bytes()
    again = run(store_server, "tenant", "export", TENANT, str(whole))
    assert (again.exit_code, (whole / "manifest.jsonl").read_bytes()) == (0, before), again.output


def test_what_was_changed_behind_its_back_is_found_without_the_store(whole: Path, tmp_path: Path) -> None:
    line = next(line for line in lines(whole) if 1 < line["size"] < MIB)
    copy = tmp_path / "copy"

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def link(copy: Path) -> None:
        (copy / line["file"]).unlink()
        (copy / line["file"]).symlink_to("/etc/passwd")

    harms: dict[str, Callable[[Path], object]] = {
        "SHA-256 is another": lambda copy: flip(copy / line["file"]),
        "No such file": lambda copy: (copy / line["file"]).unlink(),
        "bytes, ": lambda copy: (copy / line["file"]).write_bytes(b"short"),
        "users.jsonl": lambda copy: (copy / "records/users.jsonl").unlink(),
        "does not name it": lambda copy: (copy / "records/more.jsonl").touch(),
        "objects.jsonl: ": lambda copy: (copy / "objects.jsonl").write_text(""),
        "not the one in": lambda copy: flip(copy / "manifest.jsonl"),
        "symbolic links": link,
    }  # fmt: skip
    for words, harm in harms.items():
        shutil.copytree(whole, copy, copy_function=_copy)
        harm(copy)
        try:
            _, wrong = verify(copy, lambda size, count: None)
        except Broken as broken:
            wrong = [str(broken)]
        assert any(words in one for one in wrong), (words, wrong)
        shutil.rmtree(copy)
    shutil.copytree(whole, copy)
    flip(copy / "records/users.jsonl")
    for directory, code in ((whole, 0), (copy, 1), (tmp_path, 4)):
        done = CliRunner().invoke(app, ["tenant", "export", "--verify", str(directory)])
        assert (done.exit_code, "all is what the manifest says" in done.output) == (code, code == 0)


def _copy(source: str, target: str) -> None:
    """What no test changes is not copied."""
    (os.link if Path(source).stat().st_size > MIB else shutil.copy)(source, target)


class Cut(BaseException):
    """As a kill: nothing is tidied up behind it."""


def cut_after(chances: Iterator[int]) -> Callable[[int, int], None]:
    def told(size: int, count: int) -> None:
        if next(chances) == 0:
            raise Cut

    return told


def test_an_export_that_is_cut_again_and_again_ends_as_one_that_was_not(
    store_server: Server, bodies: Bodies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(SEED)
    directory = tmp_path / "cut"
    # What a kill leaves of lines is a beginning of what was written: each line by itself here.
    monkeypatch.setattr(exported.Lines.add, "__kwdefaults__", {"at_once": 1, "size_max": 1})
    monkeypatch.setattr(exported.Lines, "close", lambda self: self._file.close())
    directory.mkdir()
    (directory / "export.json.new").write_text('{"docu')  # Killed before there was anything.
    cuts = 0
    while True:
        work = Export(AdminClient(store_server.data, None, None), TENANT, directory, at_once=2)
        chances = iter(range(rng.randint(0, 2 + cuts), -1, -1))
        try:
            work.open()
            sums = work.resume(lambda size, count: None)
            work.fetch(sums, cut_after(_then_never(chances)) if cuts < 12 else lambda size, count: None)
            break
        except Cut:
            cuts += 1
        finally:
            work.close()
        _tear(directory, rng)
    work.records()
    work.seal(sums)
    work.finish()
    work.close()
    assert cuts >= 6, SEED
    check_whole(directory, bodies)


def test_what_cannot_be_read_is_named_and_fetched_by_the_next_run(
    store_server: Server, bodies: Bodies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "partly"
    lost = body_of("Case")
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "TRIES", 1)
        asked = exporting.Pipe._asked

        def unreadable(self: exporting.Pipe, target: str) -> bytes:
            if "/body?" in target and lost in target:
                raise Refused(500, "too few fragments are left")
            return asked(self, target)

        patched.setattr(exporting.Pipe, "_asked", unreadable)
        done = run(store_server, "tenant", "export", TENANT, str(directory))
        assert (done.exit_code, "leaving-a/Case: too few fragments" in done.output) == (3, True), done.output
        assert not (directory / "manifest.sha256").exists()
    done = run(store_server, "tenant", "export", TENANT, str(directory))
    assert done.exit_code == 0, done.output
    sums, wrong = verify(directory, lambda size, count: None)
    assert (wrong, sums.objects, len(sums.missing)) == ([], len(bodies), 0)
    (line,) = [one for one in lines(directory) if one["key"] == "Case" and "file" in one]
    assert (line["again"], (directory / line["file"]).read_bytes()) == (True, bodies["leaving-a", "Case"])


def body_of(key: str) -> str:
    """As it stands in an address."""
    return "key=" + base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode() + "&"


def _then_never(chances: Iterator[int]) -> Iterator[int]:
    yield from chances
    while True:
        yield 1


def _tear(directory: Path, rng: random.Random) -> None:
    """What a power cut may leave beside a kill's rest: a torn line, a part with bytes that never came."""
    with open(directory / "objects.jsonl", "ab") as file:
        file.write(b'{"bucket":"leaving-a","key":"torn'[: rng.randint(0, 30)])
    for part in directory.glob("bodies/*/*.part"):
        if rng.random() < 0.5:
            size = part.stat().st_size
            part.write_bytes(bytes(size + rng.randint(0, 9)))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_process_that_is_killed_again_and_again_hands_back_everything(
    store_server: Server, bodies: Bodies, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    directory = tmp_path / "killed"
    words = ["tenant", "export", TENANT, str(directory), "--data", str(store_server.data)]
    kills = 0
    while kills < 25 and not (directory / "manifest.sha256").exists():
        wanted = _fetched(directory) + rng.randint(0, 3)
        command = [sys.executable, str(ROOT / "cmd" / "objstore"), *words]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and _fetched(directory) <= wanted:
            time.sleep(0.001)
        kills += process.poll() is None
        process.kill()
        process.wait()
    done = run(store_server, *words[:4])
    assert done.exit_code == 0, done.output
    assert kills, SEED
    check_whole(directory, bodies)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
def test_of_a_cluster_all_is_handed_back_while_a_node_and_the_gateway_that_began_it_die(
    engine: str, tmp_path: Path
) -> None:
    directory = tmp_path / "export"
    with running_cluster(engine, tmp_path / "cluster") as cluster:
        fronts = fronts_of(cluster)
        first, last = fronts[0], fronts[-1]
        bodies = filled(first)
        s3 = first.boto3()
        s3.create_bucket(Bucket="not-theirs")
        s3.put_object(Bucket="not-theirs", Key="key", Body=b"not theirs")
        words = ["tenant", "export", TENANT, str(directory), "--at-once", "1"]
        command = [sys.executable, str(ROOT / "cmd" / "objstore"), *words, "--data", str(first.data)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _wait_for_bodies(process, directory, 3)
        cluster.kill(cluster.members[0])
        _wait_for_bodies(process, directory, 8)
        cluster.kill(first.gateway)
        if last is first:  # It is waited for.
            cluster.start_gateway()
            assert process.wait(300) == 0
        else:  # Another one goes on with it.
            process.kill()
            process.wait()
            done = run(last, *words)
            assert done.exit_code == 0, done.output
        check_whole(directory, bodies)
        assert b"not theirs" not in b"".join(path.read_bytes() for path in directory.glob("bodies/*/*"))
        exports = last.admin("GET", f"/api/v1/tenants/{TENANT}/exports")[1]["items"]
        digest = hashlib.sha256((directory / "manifest.jsonl").read_bytes()).hexdigest()
        assert [one["manifest"] for one in exports] == [digest]


def _wait_for_bodies(process: "subprocess.Popen[bytes]", directory: Path, count: int) -> None:
    """Until so many are there, or it has ended."""
    while process.poll() is None and _fetched(directory) < count:
        time.sleep(0.001)


def _fetched(directory: Path) -> int:
    """Bodies, and parts of them."""
    return sum(1 for _ in directory.glob("bodies/*/*"))


def test_a_directory_that_holds_something_else_is_left_alone(
    store_server: Server, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    busy = tmp_path / "busy"
    work = Export(AdminClient(store_server.data, None, None), TENANT, busy, at_once=1)
    work.open()
    assert "under way" in run(store_server, "tenant", "export", TENANT, str(busy)).output
    work.close()
    shutil.rmtree(busy)
    for directory, tenant in ((tmp_path, TENANT), (whole, "default")):
        done = run(store_server, "tenant", "export", tenant, str(directory))
        assert done.exit_code == 4, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]
    assert run(store_server, "tenant", "export", TENANT).exit_code != 0
    assert run(store_server, "tenant", "export", "nobody", str(tmp_path / "new")).exit_code != 0


def test_every_directory_is_made_durable_before_the_manifest_is_there(
    store_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "sealed"
    for name in ("bodies/00", "records/documents"):
        (directory / name).mkdir(parents=True)
    for name in ("export.json", "objects.jsonl"):
        (directory / name).touch()
    synced: set[Path] = set()

    def sync(path: Path) -> None:
        assert not (directory / "manifest.jsonl").exists()
        synced.add(path)

    monkeypatch.setattr(exporting, "sync", sync)
    Export(AdminClient(store_server.data, None, None), TENANT, directory, at_once=1).seal(Sums())
    folders = {path for path in directory.rglob("*") if path.is_dir()}
    assert synced == {directory, *folders} - {directory / "bodies" / "00"}  # With its bodies' lines.


def test_a_line_of_an_object_that_was_missing_is_replaced_by_the_one_that_came_later() -> None:
    sums = Sums()
    of = {"bucket": "b", "key": "k", "key_base64": "aw"}
    sums.take({**of, "missing": "its disks are away"})
    sums.take({**of, "bucket": "c", "file": "f", "size": 3, "sha256": "", "etag_matches": True})
    assert (len(sums.missing), sums.objects, sums.last) == (1, 1, ("c", "aw"))
    sums.take({**of, "again": True, "file": "f", "size": 4, "sha256": "", "etag_matches": True})
    assert (len(sums.missing), sums.objects, sums.bytes, sums.last) == (0, 2, 7, ("c", "aw"))


@pytest.mark.parametrize("sizes", [[], [5], [3, 2], [5, 0], [1, 1, 3]])
def test_an_etag_is_found_however_the_bytes_come(sizes: list[int]) -> None:
    body, rng = b"abcde", random.Random(SEED)
    for _ in range(20):
        check, at = EtagCheck(sizes), 0
        while at < len(body):
            size = rng.randint(1, len(body) - at)
            check.update(memoryview(body)[at : at + size])
            at += size
        parts, begin = [], 0
        for size in sizes:
            parts.append(hashlib.md5(body[begin : begin + size]).digest())
            begin += size
        of_parts = f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"
        assert check.text() == (of_parts if sizes else hashlib.md5(body).hexdigest())
