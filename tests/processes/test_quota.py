"""One quota, several real gateway processes: uploads, copies and multipart side by side over S3.

Long form (OBJSTORE_LONG=1): eight processes, a hundred rounds each over LMDB and over PostgreSQL.
"""

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from objstore.meta.client import MetaClient
from objstore.meta.kv import Kv, Transaction, counter, prefix_end
from objstore.meta.kv_postgres import PostgresKv
from objstore.meta.schema import AccountRecord, Limits, account_key, encode, tenant_use_key
from objstore.processes.dev import LocalCluster
from tests.chaos.workload import RESTLESS
from tests.postgres import PostgresServer
from tests.seed import SEED
from tests.server import Server, running_server

LONG: Final = bool(os.environ.get("OBJSTORE_LONG"))
ROUNDS: Final = 100 if LONG else 1
PROCESSES: Final = 8 if LONG else 3
CLIENTS: Final = 12 if LONG else 6  # More than processes: with 12 connections hardly one of 8 is idle.
TURNS: Final = 12  # Of each client in a round.
LIMIT: Final = 4_000_000
BUCKET: Final = "quota"
SIZES: Final = (0, 900, 20_000, 150_000, 400_000, 700_000)  # Small ones, and those that reserve first.
USED: Final = tenant_use_key("default") + b"s"


@dataclass
class Rig:
    """A running store, and its metadata beside it."""

    kv: Kv
    clients: list[Any]  # boto3's, one for each thread, over all gateways in turn.

    async def limit(self, record: AccountRecord) -> None:
        await self.kv.commit(Transaction(put={account_key("default"): encode(record)}))

    async def used(self) -> int:
        """What counts, as it is now. Never more than the limit."""
        used = counter(await self.kv.get(USED))
        assert 0 <= used <= LIMIT, f"{used} of {LIMIT}"
        return used


def _clients(endpoints: Sequence[str], access_key: str, secret_key: str, *, retries: int) -> list[Any]:
    """retries: of a starved machine's 503."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"max_attempts": retries},
        s3={"addressing_style": "path"},
        max_pool_connections=1,
        signature_version="s3v4",
    )
    return [
        boto3.client(
            "s3",
            endpoint_url=endpoints[number % len(endpoints)],
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )
        for number in range(CLIENTS)
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests here: each leaves it empty."""
    with running_server(tmp_path_factory.mktemp("quota"), workers=PROCESSES) as running:
        yield running


@asynccontextmanager
async def over_lmdb(server: Server, directory: Path, *, retries: int = 8) -> AsyncIterator[Rig]:
    kv = MetaClient(server.data / "run" / "committer.sock")
    await kv.start()
    try:
        keys = server.access_key, server.secret_key
        rig = Rig(kv, _clients([server.endpoint], *keys, retries=retries))
        await rig.limit(AccountRecord())
        await asyncio.to_thread(rig.clients[0].create_bucket, Bucket=BUCKET)
        yield rig
        await rig.limit(AccountRecord())
        await asyncio.to_thread(rig.clients[0].delete_bucket, Bucket=BUCKET)
    finally:
        await kv.close()


@asynccontextmanager
async def over_postgres(server: Server, directory: Path) -> AsyncIterator[Rig]:
    postgres = PostgresServer()
    cluster: LocalCluster | None = None
    try:
        postgres.start()
        cluster = LocalCluster(
            directory=directory / "cluster",
            nodes=6,
            workers=PROCESSES // 2,
            gateway_count=2,
            url=postgres.url(),
            environment=RESTLESS,
        )
        cluster.start()
        endpoints = [f"http://127.0.0.1:{gateway.ports[0]}" for gateway in cluster.gateways]
        kv = PostgresKv(postgres.url(), readers=1)
        await kv.start()
        try:
            rig = Rig(kv, _clients(endpoints, *cluster.root, retries=8))
            await asyncio.to_thread(rig.clients[0].create_bucket, Bucket=BUCKET)
            yield rig
        finally:
            await kv.close()
    finally:
        if cluster is not None:
            cluster.close()
        postgres.remove()


RIGS = [pytest.param(over_lmdb, id="lmdb")]
if LONG:
    RIGS.append(pytest.param(over_postgres, id="postgres"))


def code_of(error: ClientError) -> str:
    return str(error.response["Error"].get("Code"))


def act(s3: Any, rng: random.Random) -> str:
    """One thing that a client does; the code of its refusal, or nothing."""
    kind, key, data = rng.randrange(8), f"key-{rng.randrange(16)}", rng.randbytes(rng.choice(SIZES))
    try:
        if kind < 4:
            s3.put_object(Bucket=BUCKET, Key=key, Body=data)
        elif kind < 5:
            s3.delete_object(Bucket=BUCKET, Key=key)
        elif kind < 6:
            source = {"Bucket": BUCKET, "Key": f"key-{rng.randrange(16)}"}
            s3.copy_object(Bucket=BUCKET, Key=key, CopySource=source, MetadataDirective="REPLACE")
        else:
            upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
            where = {"Bucket": BUCKET, "Key": key, "UploadId": upload}
            try:
                part = s3.upload_part(**where, PartNumber=1, Body=data)
                parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
                s3.complete_multipart_upload(**where, MultipartUpload=parts)
            except ClientError:
                s3.abort_multipart_upload(**where)
                raise
    except ClientError as error:
        return code_of(error)
    return ""


@pytest.mark.timeout(4 * 3_600 if LONG else 300)
@pytest.mark.parametrize("rig_over", RIGS)
async def test_several_gateway_processes_fill_one_quota_to_its_last_byte_and_never_cross_it(
    server: Server, tmp_path: Path, rig_over: Any
) -> None:
    async with rig_over(server, tmp_path) as rig:
        await rig.limit(AccountRecord(limits=Limits(bytes_max=LIMIT)))
        for seed in range(SEED, SEED + ROUNDS):
            await _fill(rig, seed)
            await _use_the_last_byte(rig)
            print(f"round {seed - SEED + 1} of {ROUNDS}", flush=True)  # With pytest -s: how far it is.


async def _fill(rig: Rig, seed: int) -> None:
    refusals: list[str] = []

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        for _ in range(TURNS):
            refusals.append(await asyncio.to_thread(act, rig.clients[number], rng))
            await rig.used()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    unforeseen = set(refusals) - {"", "QuotaExceeded", "NoSuchKey"}
    assert not unforeseen, f"seed {seed}: {unforeseen}"
    assert not await rig.kv.scan(b"E", prefix_end(b"E"), 10), f"seed {seed}: a reservation was left"


async def _use_the_last_byte(rig: Rig) -> None:
    """Nobody can store one byte more than what is left; of all who ask for just that, one has it."""
    names = [f"last-{number:02}" for number in range(CLIENTS)]
    free = LIMIT - await rig.used() - len(names[0])

    async def put_everywhere(size: int) -> Counter[str]:
        asked = (
            asyncio.to_thread(_code, s3.put_object, Bucket=BUCKET, Key=name, Body=bytes(size))
            for s3, name in zip(rig.clients, names, strict=True)
        )
        return Counter(await asyncio.gather(*asked))

    assert await put_everywhere(max(free, -1) + 1) == {"QuotaExceeded": CLIENTS}
    if free >= 0:
        assert await put_everywhere(free) == {"": 1, "QuotaExceeded": CLIENTS - 1}
        assert await rig.used() == LIMIT
    doomed = [{"Key": key} for key in [*(f"key-{number}" for number in range(16)), *names]]
    await asyncio.to_thread(rig.clients[0].delete_objects, Bucket=BUCKET, Delete={"Objects": doomed})
    assert await rig.used() == 0


async def test_a_body_past_the_quota_is_refused_and_not_asked_for(server: Server, tmp_path: Path) -> None:
    async with over_lmdb(server, tmp_path) as rig:
        s3 = rig.clients[0]
        await rig.limit(AccountRecord(limits=Limits(bytes_max=LIMIT)))
        url = s3.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "k"})
        too_large = await asyncio.to_thread(_ask, url, LIMIT + 1)
        assert too_large.startswith(b"HTTP/1.1 403 "), "the first answer is the last"
        assert b"<Code>QuotaExceeded</Code>" in too_large
        assert await rig.used() == 0
        assert (await asyncio.to_thread(_ask, url, LIMIT - 1)).startswith(b"HTTP/1.1 100 "), "this one fits"


async def test_states_and_rates_hold_in_every_process(server: Server, tmp_path: Path) -> None:
    async with over_lmdb(server, tmp_path, retries=0) as rig:

        async def codes() -> set[str]:
            def ask(s3: Any) -> list[str]:
                return [
                    _code(s3.put_object, Bucket=BUCKET, Key="k", Body=b"x"),
                    _code(s3.list_objects_v2, Bucket=BUCKET),
                    _code(s3.delete_object, Bucket=BUCKET, Key="k"),
                ]

            answers = await asyncio.gather(*(asyncio.to_thread(ask, s3) for s3 in rig.clients))
            assert len({tuple(answer) for answer in answers}) == 1, answers
            return set(answers[0])

        for state, expected in (
            ("read_only", {"AccountPastDue", ""}),
            ("terminating", {"AccountProblem", ""}),
            ("suspended", {"AccountProblem"}),
            ("active", {""}),
        ):
            await rig.limit(AccountRecord(state=state))
            assert await codes() == expected, state
        await rig.limit(AccountRecord(limits=Limits(requests_per_s=0)))
        assert await codes() == {"SlowDown"}


def _code(call: Callable[..., Any], **arguments: str | bytes) -> str:
    """Of the refusal, or nothing. What a starved machine does not manage is asked again."""
    code = ""
    for _ in range(20):
        try:
            call(**arguments)
        except ClientError as error:
            code = code_of(error)
            if code != "ServiceUnavailable":
                return code
        else:
            return ""
    return code


def _ask(url: str, size: int) -> bytes:
    """The first that comes back when a body of this size is announced, and not sent."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        head = (
            f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Length: {size}\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head.encode())
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
            if answer.startswith(b"HTTP/1.1 100 "):
                break
        return answer
