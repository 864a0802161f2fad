"""Frozen samples: what a release left on disks and in PostgreSQL, and the release itself.

    samples/<name>/manifest.json     what a client saw of each store: listings, every object's hash
    samples/<name>/machine.tar.xz    the data directory of a store of one machine: disks, journal, LMDB
    samples/<name>/cluster.tar.xz    a cluster: nodes' disks, a gateway's directory, a dump of PostgreSQL
    samples/<name>/code.tar.xz       the release's own source: for rolling upgrades; of the newest sample only

Made by `make sample VERSION=...` (make_sample.py), never changed afterwards. `seen` is what both sides use:
what was seen then has to be seen now.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import asyncpg

from objstore.ids import random_id
from objstore.node.authority import GATEWAY, Name, key_to_pem, make_key, to_pem
from objstore.node.tls import save_identity, save_trust
from objstore.processes.dev import LocalCluster
from objstore.processes.founding import first_trust, read_authority
from tests.server import environment_for

SAMPLES = Path(__file__).parent / "samples"
COMMAND_SECONDS = 120.0
# Nothing of what a sample holds is cleared away while a test looks at it.
QUIET = {"OBJSTORE_UPKEEP__ENABLED": "false"}
CODEC = "2+1"  # Of a sample's cluster: a node for each fragment.
NODES = 3


@dataclass(frozen=True)
class Sample:
    """One release's. `directory` is under `SAMPLES`."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "manifest.json").read_text())
        return found

    def unpack(self, what: str, place: Path) -> Path:
        """`what`: "machine", "cluster" or "code". Returns `place`, made and filled."""
        place.mkdir(parents=True)
        with tarfile.open(self.directory / f"{what}.tar.xz") as archive:
            extract(archive, place)
        return place


def extract(archive: tarfile.TarFile, place: Path) -> None:
    """All of it, with its modes: identity files are 0600. Our own archives, so no name in them climbs."""
    if hasattr(tarfile, "tar_filter"):  # Not in the first releases of Python 3.11.
        archive.extractall(place, filter="tar")
    else:
        archive.extractall(place)


def samples() -> list[Sample]:
    """All of them, the newest at the end."""
    found = [Sample(place.parent) for place in SAMPLES.glob("*/manifest.json")]
    assert found, f"no frozen samples in {SAMPLES}: make sample VERSION=..."
    return sorted(found, key=lambda sample: str(sample.manifest["made"]))


def newest() -> Sample:
    return samples()[-1]


@dataclass(frozen=True)
class Release:
    """A release's source, unpacked; run with the packages that are installed today."""

    name: str  # What it calls itself.
    source: Path

    @property
    def environment(self) -> dict[str, str]:
        """For processes that `LocalCluster` starts: this code and no other."""
        return {"PYTHONPATH": str(self.source), "PYTHONSAFEPATH": "1"}

    @property
    def launcher(self) -> Path:
        return self.source / "cmd" / "objstore"

    def command(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `objstore ARGUMENTS` of this release. `more`: variables of the environment."""
        return subprocess.run(
            [sys.executable, str(self.launcher), *arguments],
            env=environment_for(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )


def previous_release(place: Path) -> Release:
    """The newest sample's code. It calls itself by the sample's name, so that one can see what runs."""
    sample = newest()
    source = sample.unpack("code", place)
    with (source / "objstore" / "__init__.py").open("a") as file:
        file.write(f'\n__version__ = "{sample.name}"\n')
    # Once, and not by every process that starts.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(source / "objstore")], check=True)
    return Release(sample.name, source)


def found_cluster(cluster: LocalCluster, release: Release) -> None:
    """Have `release` make the authority of a new cluster; `cluster.start` goes on from there."""
    cluster.gateway.data.mkdir(mode=0o700, parents=True)
    words = ("cluster", "init", f"--data={cluster.gateway.data}")
    done = release.command(*words, OBJSTORE_BLOBS__CODEC=cluster.codec)
    assert done.returncode == 0, done.stdout + done.stderr


def client_of(cluster: LocalCluster, number: int = 0) -> Any:
    """boto3, as the root user, at one of its gateways. It repeats what fails, as clients do."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{cluster.gateways[number].ports[0]}",
        region_name="us-east-1",
        aws_access_key_id=cluster.root[0],
        aws_secret_access_key=cluster.root[1],
        config=Config(retries={"max_attempts": 8}, s3={"addressing_style": "path"}),
    )


@contextmanager
def opened(
    sample: Sample, place: Path, url: str, *, gateways: int = 1, environment: Mapping[str, str]
) -> Iterator[LocalCluster]:
    """A sample's cluster, served, its metadata in the empty database `url`.

    Every machine gets new certificates, as after months without power: those of then have ended.
    """
    sample.unpack("cluster", place)
    restore_database(place / "metadata.sql", url)
    _certify(place / "gateway")
    cluster = LocalCluster(
        directory=place, nodes=NODES, codec=CODEC, gateway_count=gateways, url=url, environment=environment
    )
    try:
        cluster.start_gateway()
        for node in cluster.members:
            cluster.start_node(node, member=node.name)
        cluster.wait_for_disks(NODES)
        for gateway in cluster.gateways[1:]:
            cluster.start_gateway(gateway=gateway)
        yield cluster
    finally:
        cluster.close()


def _certify(gateway: Path) -> None:
    """What `objstore gateway --recover` does for a new machine: whoever has both files may sign."""
    authority = read_authority(gateway, bytes.fromhex((gateway / "master.key").read_text()))
    assert authority is not None
    (gateway / "tls").mkdir(mode=0o700)
    key = make_key()
    name = Name(authority.cluster, GATEWAY, random_id())
    certificate = authority.issue(key.public_key(), name, time.time_ns() // 1000)
    save_trust(gateway / "tls", first_trust(authority))
    save_identity(gateway / "tls", key_to_pem(key), to_pem(certificate))


def restore_database(dump: Path, url: str) -> None:
    """Into an empty database."""

    async def restore() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(dump.read_text())
        finally:
            await connection.close()

    asyncio.run(restore())


def seen(s3: Any, but: Collection[str] = ()) -> dict[str, Any]:
    """What a user sees by S3: buckets (`but` some), listings, every object's headers and hash, uploads."""
    return {
        one["Name"]: {
            "created": one["CreationDate"].isoformat(),
            "listing": _listing(s3, one["Name"]),
            "objects": {key: _object(s3, one["Name"], key) for key, *_ in _listing(s3, one["Name"])},
            "uploads": _uploads(s3, one["Name"]),
        }
        for one in s3.list_buckets()["Buckets"]
        if one["Name"] not in but
    }


def _listing(s3: Any, bucket: str) -> list[list[Any]]:
    """In pages of five: [key, size, ETag, time of change]."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 5})
    return [
        [one["Key"], one["Size"], one["ETag"], one["LastModified"].isoformat()]
        for page in pages
        for one in page.get("Contents", [])
    ]


def _object(s3: Any, bucket: str, key: str) -> dict[str, Any]:
    answer = s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    digest = hashlib.sha256()
    for piece in answer["Body"].iter_chunks(1 << 20):
        digest.update(piece)
    kept = ("ContentType", "CacheControl", "Metadata", "ContentLength", "ETag")
    found = {name: answer[name] for name in kept if name in answer}
    found |= {name: value for name, value in answer.items() if name.startswith("Checksum")}
    return found | {"sha256": digest.hexdigest()}


def _uploads(s3: Any, bucket: str) -> list[list[Any]]:
    """Under way: [key, upload id, its parts as [number, size, ETag]]."""
    uploads = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    found: list[list[Any]] = []
    for one in uploads:
        which = {"Bucket": bucket, "Key": one["Key"], "UploadId": one["UploadId"]}
        parts = s3.list_parts(**which).get("Parts", [])
        rows = [[part["PartNumber"], part["Size"], part["ETag"]] for part in parts]
        found.append([one["Key"], one["UploadId"], rows])
    return found


def accounts(admin: Any) -> dict[str, Any]:
    """Tenants, users and keys: name -> whether it is disabled.

    Args:
        admin: Server.admin or LocalCluster.admin: (method, path) -> (status, JSON).
    """
    found = {}
    for kind, name in (("tenants", "name"), ("users", "name"), ("keys", "access_key")):
        status, answer = admin("GET", f"/api/v1/{kind}")
        assert status == 200, answer
        rows = answer[kind] if kind in answer else answer["items"]  # Of a release before there were pages.
        found[kind] = {row[name]: row["disabled"] for row in rows}
    return found


def write_on(s3: Any) -> dict[str, Any]:
    """Change one of everything that a sample's buckets have; returns what is seen then."""
    [upload] = s3.list_multipart_uploads(Bucket="kept")["Uploads"]
    which = {"Bucket": "kept", "Key": upload["Key"], "UploadId": upload["UploadId"]}
    parts = [
        {name: part[name] for name in ("PartNumber", "ETag", "ChecksumCRC32")}
        for part in s3.list_parts(**which)["Parts"]
    ]
    s3.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})
    s3.put_object(Bucket="kept", Key="size/00000100", Body=b"of today" * 100)
    s3.put_object(Bucket="empty", Key="no more", Body=b"of today" * 100_000)
    s3.copy_object(Bucket="empty", Key="copied", CopySource={"Bucket": "kept", "Key": "parts/two"})
    s3.delete_object(Bucket="kept", Key="size/09000000")
    found = seen(s3)
    objects = found["kept"]["objects"]
    assert found["kept"]["uploads"] == []
    assert "parts/under way" in objects
    assert "size/09000000" not in objects
    assert objects["size/00000100"]["ContentLength"] == 800
    assert found["empty"]["objects"]["no more"]["ContentLength"] == 800_000
    assert found["empty"]["objects"]["copied"]["sha256"] == objects["parts/two"]["sha256"]
    return found
