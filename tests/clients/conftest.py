"""One server for all clients, an independent witness (boto3), and bytes whose loss or mixing up shows."""

import os
import random
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.clients.programs import environment
from tests.server import running_server

SEED = int(os.environ.get("OBJSTORE_TEST_SEED", "20261121"))
AWKWARD_KEY = "dir with space/ü+%41&=~'(1)!.txt"  # Everything that some client escapes in its own way.
MIB = 1024 * 1024


@dataclass(frozen=True)
class Server:
    url: str
    access_key: str
    secret_key: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


@dataclass(frozen=True)
class Samples:
    """What every client stores: nothing, a little, and enough for a multipart upload of several parts."""

    empty: bytes
    small: bytes
    large: bytes  # 17 MiB and 3 bytes: four parts of 5 MiB, or three of 8 MiB; the last is short.


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`OBJSTORE_TEST_ENDPOINT=url,key,secret` names a running server; otherwise one is started."""
    given = os.environ.get("OBJSTORE_TEST_ENDPOINT")
    with ExitStack() as stack:
        if given:
            yield Server(*given.split(","))
        else:
            running = stack.enter_context(running_server(tmp_path_factory.mktemp("clients")))
            yield Server(running.endpoint, running.access_key, running.secret_key)


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_the_users_own() -> Iterator[None]:
    """Clients that run in this process see no profile, no certificate bundle and no proxy of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@pytest.fixture(scope="session")
def samples() -> Samples:
    print(f"seed {SEED}")
    source = random.Random(SEED)
    return Samples(empty=b"", small=source.randbytes(70_001), large=source.randbytes(17 * MIB + 3))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def env(home: Path, server: Server) -> dict[str, str]:
    """The clients' environment: the keys, and nothing of the user's own."""
    return environment(
        home,
        {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    )


@pytest.fixture(scope="session")
def witness(server: Server) -> Any:
    """boto3 with a signature and a checksum of its own: what a client claims is looked at through other
    eyes."""
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4", retries={"max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}
        ),
    )


@pytest.fixture
def bucket(witness: Any) -> str:
    """A bucket of the test's own, made by the witness."""
    name = f"client-{secrets.token_hex(6)}"
    witness.create_bucket(Bucket=name)
    return name


@pytest.fixture
def stored(witness: Any, bucket: str) -> "Witness":
    return Witness(witness, bucket)


class Witness:
    """What the store holds, independent of the client under test."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keys(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def content(self, key: str) -> bytes | None:
        """The object's bytes, or None when there is no such key."""
        try:
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as failure:
            if failure.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise
        return body

    def parts(self, key: str) -> int:
        """Parts of a multipart object, from its ETag; 0 for one that was put in one piece."""
        tag = self._client.head_object(Bucket=self._bucket, Key=key)["ETag"].strip('"')
        return int(tag.partition("-")[2] or 0)

    def uploads(self) -> int:
        """Multipart uploads that nobody finished."""
        return len(self._client.list_multipart_uploads(Bucket=self._bucket).get("Uploads", []))
