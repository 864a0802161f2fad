"""Makes the frozen sample of a release: `make sample VERSION=0.2.0`, on the commit that is to be released.

It runs that commit's code, archived, not what lies in the work tree: the sample and the code kept with it
are of one state. What it stores derives from names; ids, keys and times are the release's own. A sample is
never made again: what a release has written, it has written.
"""

import argparse
import hashlib
import io
import json
import lzma
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objstore.processes.dev import LocalCluster
from tests.chaos.workload import RESTLESS
from tests.postgres import PostgresServer, binaries, run
from tests.server import ROOT, running_server
from tests.upgrades.samples import (
    CODEC,
    NODES,
    QUIET,
    SAMPLES,
    Release,
    accounts,
    client_of,
    extract,
    found_cluster,
    newest,
    samples,
    seen,
)

MIB = 1024 * 1024
WAIT_SECONDS = 120.0
TRASH = "fragments/*/*.retired.*"
SNAPSHOT = "logs/snapshot.*"
# The same `objstore`, but for one number that nobody can set: its journal is folded long before 64 MiB.
FOLDING = """import os, sys
sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
from objstore.meta.committer import CommitterOptions
CommitterOptions.__init__.__kwdefaults__["fold_size_min"] = 0
from objstore.cli.main import run
run()
"""
# Small volumes that are sealed, compacted and thrown away within seconds, and stay in the trash.
BUSY = {
    **RESTLESS,
    "OBJSTORE_UPKEEP__TRASH_DAYS": "1000000",
    "OBJSTORE_UPKEEP__SNAPSHOT_HOURS": "1000",
    "OBJSTORE_UPKEEP__SCRUB_DAYS": "1000",
}
# What a process needs only while it runs, or makes again; and certificates, which end after 90 days.
LEFT_OUT = {"run", "log", "tls", "output.log", "ports.json", "admin.token", "node.json"}


def body(key: str, size: int) -> bytes:
    """Bytes that derive from the key, and compress: the sample lies in the repository."""
    return (hashlib.shake_128(key.encode()).digest(96) * (size // 96 + 1))[:size]


def put(s3: Any, bucket: str, key: str, size: int, **more: Any) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=body(key, size), **more)


def put_in_parts(s3: Any, bucket: str, key: str, sizes: Iterable[int], *, complete: bool = True) -> None:
    which: dict[str, Any] = {"Bucket": bucket, "Key": key}
    upload = s3.create_multipart_upload(**which, ChecksumAlgorithm="CRC32", Metadata={"made": "in parts"})
    which["UploadId"] = upload["UploadId"]
    parts = []
    for number, size in enumerate(sizes, start=1):
        content = body(f"{key} {number}", size)
        part = s3.upload_part(**which, PartNumber=number, Body=content, ChecksumAlgorithm="CRC32")
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]})
    if complete:
        s3.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})


def fill(s3: Any) -> None:
    """One object of every kind that there is, in buckets of the root user."""
    for bucket in ("kept", "empty"):
        s3.create_bucket(Bucket=bucket)
    # Around the bounds: inline checksum 64 KiB, small lane 128 KiB, fragment 1 MiB, stripe k MiB.
    for size in (
        0,
        1,
        100,
        4_096,
        65_536,
        65_537,
        131_072,
        131_073,
        1_000_000,
        4 * MIB,
        4 * MIB + 1,
        9_000_000,
    ):
        put(s3, "kept", f"size/{size:08}", size)
    put(s3, "kept", "a name/with äöü €/and + & spaces", 500)
    put(s3, "kept", "long/" + "k" * 1_019, 500)
    put(
        s3, "kept", "headers", 500,
        ContentType="text/plain; charset=utf-8", CacheControl="max-age=60",
        Metadata={"colour": "blue", "weight": "7"}, ChecksumAlgorithm="SHA256",
    )  # fmt: skip
    s3.copy_object(Bucket="kept", Key="copy", CopySource={"Bucket": "kept", "Key": "size/01000000"})
    put_in_parts(s3, "kept", "parts/two", (5 * MIB, 70_000))
    put_in_parts(s3, "kept", "parts/under way", (5 * MIB, 3_000), complete=False)
    put_in_parts(s3, "kept", "parts/dropped", (200_000,), complete=False)
    dropped = next(
        one for one in s3.list_multipart_uploads(Bucket="kept")["Uploads"] if one["Key"] == "parts/dropped"
    )
    s3.abort_multipart_upload(Bucket="kept", Key="parts/dropped", UploadId=dropped["UploadId"])


def waste(s3: Any) -> None:
    """Whole volumes of what is overwritten and deleted: they are compacted, and what they were is trash."""
    for round_ in range(3):
        for number in range(12):
            put(s3, "kept", f"overwritten/{number}", 150_000 + round_)
    deleted = [f"deleted/{number}" for number in range(20)]
    for key in deleted:
        put(s3, "kept", key, 900_000)
    s3.delete_objects(Bucket="kept", Delete={"Objects": [{"Key": key} for key in deleted]})


def hire(admin: Callable[..., tuple[int, Any]]) -> dict[str, str]:
    """Users of three tenants, some disabled. Returns alice's key, for her own bucket."""

    def ask(path: str, content: object = None) -> Any:
        status, answer = admin("POST", f"/api/v1/{path}", content)
        assert status in (200, 201), f"{path}: {status} {answer}"
        return answer

    for name, tenant in (("alice", "acme"), ("bob", "acme"), ("carol", "gone")):
        ask("users", {"name": name, "tenant": tenant, "email": f"{name}@example.org"})
    key: dict[str, str] = ask("keys", {"user": "alice", "comment": "the first"})
    ask(f"keys/{ask('keys', {'user': 'alice'})['access_key']}/disable")
    ask("keys", {"user": "bob"})
    ask("users/bob/disable")
    ask("keys", {"user": "carol"})
    ask("tenants/gone/disable")
    return {"access_key": key["access_key"], "secret_key": key["secret_key"]}


def wait_for(pattern: str, places: Iterable[Path], count: int) -> None:
    """Until so many files of this name lie on the disks."""
    disks = list(places)
    limit = time.monotonic() + WAIT_SECONDS
    while sum(len(list(disk.glob(pattern))) for disk in disks) < count:
        assert time.monotonic() < limit, f"there are no {count} {pattern} after {WAIT_SECONDS} s"
        time.sleep(0.2)


def machine(release: Release, place: Path) -> dict[str, Any]:
    """A store of one machine in `place/data`; it has ended in peace. Returns its part of the manifest."""

    folding = release.launcher.with_name("folding")
    folding.write_text(FOLDING)
    with running_server(place, environment=BUSY, launcher=folding) as server:
        s3 = server.boto3()
        alice = hire(server.admin)
        fill(s3)
        waste(s3)
        of_alice = server.boto3(alice["access_key"], alice["secret_key"])
        of_alice.create_bucket(Bucket="of-alice")
        put(of_alice, "of-alice", "hers", 30_000)
        wait_for(TRASH, place.glob("data/disk*"), 12)  # Of two volumes.
        wait_for(SNAPSHOT, place.glob("data/disk*"), 3)
    after = {"codec": "2+1", "environment": QUIET, "launcher": release.launcher}
    with running_server(place, **after) as server:  # Volumes of another code, and one more epoch.
        put(server.boto3(), "kept", "of another code", 400_000)
        status, answer = server.admin("POST", "/api/v1/meta/copy")
        assert status == 200, answer
        for number in range(4):  # One after the other: bytes of the last lie in metadata, and stay there.
            put(server.boto3(), "kept", f"alone/{number}", 300)
        server.kill()  # And one epoch without a clean mark.
    with running_server(place, **after) as server:
        put(server.boto3(), "kept", "after the copy", 4_000)
        found = {
            "root": [server.access_key, server.secret_key],
            "alice": alice,
            "seen": seen(server.boto3()),
            "seen by alice": seen(server.boto3(alice["access_key"], alice["secret_key"])),
            "accounts": accounts(server.admin),
        }
    assert list(server.data.glob("disk*/meta/state-*/data.mdb"))
    return found


def cluster(release: Release, place: Path) -> dict[str, Any]:
    """A cluster with PostgreSQL in `place`; it has ended in peace, and lies there with its dump."""
    server = PostgresServer()
    try:
        server.start()
        made = LocalCluster(
            directory=place,
            nodes=NODES,
            codec=CODEC,
            url=server.url(),
            environment=release.environment | BUSY,
        )
        found_cluster(made, release)
        try:
            made.start()
            s3 = client_of(made)
            fill(s3)
            waste(s3)
            wait_for(TRASH, place.glob("node-*/disk1"), 6)
            alice = hire(made.admin)
            found = {
                "root": list(made.root),
                "alice": alice,
                "seen": seen(s3),
                "accounts": accounts(made.admin),
            }
        finally:
            made.close()
        dump = run(
            binaries() / "pg_dump", "--no-owner", "--no-privileges", "--inserts", "-n", "objstore",
            "-h", "127.0.0.1", "-p", str(server.port), "-U", "objstore", "postgres",
        )  # fmt: skip
        # Lines for psql alone: whoever restores it need not be psql.
        statements = [line for line in dump.splitlines(keepends=True) if not line.startswith("\\")]
        (place / "metadata.sql").write_text("".join(statements))
    finally:
        server.remove()
    return found


def pack(source: Path, target: Path) -> None:
    """All of `source` but LEFT_OUT, the same bytes for the same content."""
    with (
        lzma.open(target, "wb", preset=9 | lzma.PRESET_EXTREME) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(source.rglob("*")):
            inside = path.relative_to(source)
            if LEFT_OUT & set(inside.parts) or not (path.is_file() or path.is_dir()):
                continue
            entry = archive.gettarinfo(path, str(inside))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            if path.is_dir():
                archive.addfile(entry)
            else:
                with path.open("rb") as content:
                    archive.addfile(entry, content)


def archived(commit: str) -> bytes:
    """A tar of what a release needs to run."""
    words = ["git", "archive", "--format=tar", commit, "objstore", "cmd", "pyproject.toml"]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="the sample's name: the release, e.g. 0.2.0")
    parser.add_argument("--commit", default="HEAD")
    asked = parser.parse_args()
    target = SAMPLES / asked.version
    if target.exists():
        sys.exit(f"{target} exists: what a release has written is not made again")
    commit = subprocess.run(
        ["git", "rev-parse", asked.commit], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    code = archived(commit)
    with tempfile.TemporaryDirectory(prefix="objstore-sample-") as directory:
        place = Path(directory)
        with tarfile.open(fileobj=io.BytesIO(code)) as archive:
            extract(archive, place / "code")
        release = Release(asked.version, place / "code")
        made = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = {"version": asked.version, "commit": commit, "made": made}
        manifest["machine"] = machine(release, place / "machine")
        manifest["cluster"] = cluster(release, place / "cluster")
        older = samples() if any(SAMPLES.glob("*/manifest.json")) else []
        target.mkdir(parents=True)
        pack(place / "machine", target / "machine.tar.xz")
        pack(place / "cluster", target / "cluster.tar.xz")
        (target / "code.tar.xz").write_bytes(lzma.compress(code, preset=9 | lzma.PRESET_EXTREME))
    (target / "manifest.json").write_text(
        json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )
    for sample in older:  # Rolling upgrades come from the release before: that is this one now.
        (sample.directory / "code.tar.xz").unlink(missing_ok=True)
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size:9,} {path.relative_to(ROOT)}")
    assert newest().name == asked.version


if __name__ == "__main__":
    main()
