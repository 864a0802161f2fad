"""Two stores, one bucket of each: the source's changes reach its replica over a real edge, whatever fails."""

import asyncio
import hashlib
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from objstore.errors import BadArgument, BucketIsReplica, BucketReplicates, NoSuchKey, StoreError
from objstore.iam.principal import Mirror
from objstore.meta.kv import counter
from objstore.meta.schema import (
    BucketRecord,
    Checksum,
    ReplicationRecord,
    bucket_change_bytes_key,
    bucket_changes_key,
    bucket_key,
    decode,
)
from objstore.objects import multipart, replicas, replication, writes
from objstore.objects.buckets import create_bucket, delete_bucket
from objstore.objects.changes import replica_of
from objstore.objects.copies import Source as CopySource
from objstore.objects.copies import copy_object
from objstore.objects.multipart import Claimed
from objstore.objects.reads import find_object, read
from objstore.objects.replicas import Source
from objstore.objects.store import Store
from objstore.objects.values import About, Principal
from objstore.s3.replica_client import ReplicaClient, check_endpoint
from objstore.s3.server import serve_s3
from objstore.s3.tls import Certificate
from objstore.upkeep import sending
from objstore.upkeep.context import Pace
from objstore.upkeep.replication import Sender
from objstore.upkeep.sending import TargetAway
from tests.certificates import issue
from tests.objects.fakes import MemoryBody, memory_store
from tests.s3.handlers.server import keys_of, start
from tests.seed import SEED

LONG = bool(os.environ.get("OBJSTORE_LONG"))
MIB = 1024 * 1024
WHO = Principal(tenant="near", user="near-user", access_key_id="AKNEAR")


@dataclass
class Cut:
    """A target whose network fails when it is told to: before a request, or after it was carried out."""

    inner: ReplicaClient
    fails: Callable[[str], str]  # Call -> "" | "before" | "after".
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.inner, name)
        if name == "close":
            return call

        async def cut(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            how = self.fails(name)
            if how == "before":
                raise TargetAway("cut before")
            answer = await call(*arguments, **named)
            if how == "after":
                raise TargetAway("cut after")
            return answer

        return cut


class Pair:
    """A source bucket "near" and its replica "far", behind a real edge."""

    def __init__(self) -> None:
        self.near = memory_store()
        self.far = memory_store()
        self.keys = keys_of("far", "stranger")
        self.far_who = Principal(tenant="far", user="far-user", access_key_id=self.keys["far"]["access_key"])
        self.fails: Callable[[str], str] = lambda call: ""
        self.targets: list[Cut] = []
        self.forbidden = ""  # Why the bucket may not be sent where it is sent.

    async def open(self) -> None:
        self.runner = await start(self.far, self.keys)
        await create_bucket(self.near, WHO, "near", region="us-east-1")
        await create_bucket(self.far, self.far_who, "far", region="us-east-1")
        self.sender = self.new_sender()

    def new_sender(self) -> Sender:
        pace = Pace(1e12, self.near.clock)
        return Sender(self.near, "near", self.connect, self.check, asyncio.Semaphore(8), pace)

    async def check(self, record: BucketRecord, config: ReplicationRecord) -> None:
        if self.forbidden:
            raise BadArgument(self.forbidden)

    def client(self, config: ReplicationRecord) -> ReplicaClient:
        return ReplicaClient(config, self.keys["far"]["secret_key"])

    def connect(self, name: str, record: BucketRecord, config: ReplicationRecord) -> Any:
        cut = Cut(self.client(config), lambda call: self.fails(call))
        self.targets.append(cut)
        return cut

    def config(self, generation: int = 0) -> ReplicationRecord:
        return ReplicationRecord(
            endpoint=f"http://127.0.0.1:{self.runner.port}",
            bucket="far",
            access_key=self.keys["far"]["access_key"],
            secret=b"",
            region="us-east-1",
            generation=generation,
        )

    async def replicate(self, *, overwrite: bool = False) -> None:
        _, record = await replication.bucket_of(self.near, "near")
        client = self.client(self.config())
        try:
            generation = await client.attach(
                Source(cluster="ab" * 16, bucket="near", id=record.id), replace=overwrite
            )
        finally:
            await client.close()
        await replication.set_target(self.near, "near", lambda record: self.config(generation), resync=True)

    async def send(self, sessions: int = 50) -> None:
        """Serve until nothing is left."""
        for _ in range(sessions):
            await self.sender.serve()
            self.sender._due = 0.0
            if (await self.backlog()).changes == 0 and not self.sender.sent.last_failure:
                return
        raise AssertionError(f"not done: {self.sender.sent}")

    async def backlog(self) -> replication.Backlog:
        _, record = await replication.bucket_of(self.near, "near")
        return await replication.backlog(self.near, record.id)

    async def put(self, key: str, data: bytes, about: About | None = None) -> None:
        await writes.put_object(self.near, WHO, "near", key, about or About(), MemoryBody(data))

    async def delete(self, key: str) -> None:
        await writes.delete_object(self.near, WHO, "near", key)

    async def put_parts(self, key: str, parts: list[bytes], kind: str = "FULL_OBJECT") -> None:
        algorithm = "CRC32C" if kind == "COMPOSITE" else "CRC64NVME"
        upload, _ = await multipart.create_upload(
            self.near,
            WHO,
            "near",
            key,
            About(content_type="video/x", metadata={"part": "of"}),
            checksum_algorithm=algorithm,
            checksum_type=kind,
        )
        claims = []
        for number, data in enumerate(parts, 3):  # Numbers need not begin with 1.
            written = await multipart.put_part(self.near, WHO, "near", key, upload, number, MemoryBody(data))
            _, [(_, part)], _ = await multipart.list_parts(
                self.near, WHO, "near", key, upload, after=number - 1, limit=1
            )
            stored = Checksum.unpack(part.checksum)
            assert stored is not None
            given = (stored.algorithm, stored.digest) if kind == "COMPOSITE" else None
            claims.append(Claimed(number=number, etag=written.etag, checksum=given))
        await multipart.complete_upload(self.near, WHO, "near", key, upload, claims)

    async def close(self) -> None:
        await self.runner.stop()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    both = Pair()
    await both.open()
    yield both
    await both.close()


async def contents(store: Store, who: Principal, bucket: str) -> dict[bytes, Any]:
    """Key -> everything that a client can see of its object."""
    record = decode((await store.kv.get(bucket_key(bucket))) or b"", BucketRecord)
    base = b"o" + record.id.to_bytes(8, "big")
    found = {}
    for name, _ in await store.kv.scan(base, base[:-1] + bytes([base[-1] + 1]), 10_000):
        key = name[len(base) :]
        one = await find_object(store, who, bucket, key.decode())
        data = b"".join([bytes(buffer) async for some in read(store, one) for buffer in some])
        extra = one.record.extra
        found[key] = (
            data,
            one.etag,
            one.record.order,
            one.record.checksum,
            one.part_count,
            (extra.content_type, extra.headers, extra.metadata) if extra is not None else ("", {}, {}),
        )
    return found


async def assert_equal(pair: Pair) -> None:
    near = await contents(pair.near, WHO, "near")
    assert await contents(pair.far, pair.far_who, "far") == near


async def test_a_replica_shows_what_its_source_shows(pair: Pair) -> None:
    await pair.put("before", b"there before", About(content_type="text/plain"))
    await pair.replicate()
    words = About(
        content_type="text/html; charset=utf-8",
        headers={"cache-control": "no-store", "content-encoding": "gzip"},
        metadata={"name": "Zoë € 語", "empty": ""},
    )
    await pair.put("words", b"1", words)
    await pair.put("empty", b"")
    await pair.put("large", random.Random(1).randbytes(3 * MIB + 7))
    for key in ("a/../b", ".", "..", "/", "a//b", "sp ace+plus%25", "Ünïcödé/語", "x" * 1_024):
        await pair.put(key, key.encode())
    await pair.put_parts("parts", [b"p" * 5 * MIB, b"q" * 5 * MIB, b"end"])
    await pair.put_parts("composite", [b"r" * 5 * MIB, b"end"], "COMPOSITE")
    await copy_object(pair.near, WHO, CopySource(bucket="near", key="words"), "near", "copied", about=None)
    await pair.put("gone", b"soon")
    await pair.delete("gone")
    await pair.send()
    await assert_equal(pair)


async def test_a_body_that_metadata_carries_for_a_while_is_sent_as_any_other(pair: Pair) -> None:
    await pair.replicate()
    await pair.send()
    pair.near.carrier._size_max = 4_096
    for number in range(6):
        await pair.put(f"{number}", b"alone %d" % number)
    waiting = [await find_object(pair.near, WHO, "near", f"{number}") for number in range(6)]
    assert any(one.carried is not None for one in waiting), "the test would show nothing"
    await pair.sender.serve()
    assert (pair.sender.sent.failures, (await pair.backlog()).changes) == (0, 0)
    await assert_equal(pair)


async def test_words_that_change_without_the_bytes_are_sent_too(pair: Pair) -> None:
    await pair.replicate()
    await pair.put("k", b"bytes", About(metadata={"a": "1"}))
    await pair.send()
    onto_itself = CopySource(bucket="near", key="k")
    await copy_object(pair.near, WHO, onto_itself, "near", "k", about=About(metadata={"a": "2"}))
    await pair.send()
    await assert_equal(pair)


async def test_a_bucket_that_is_not_replicated_notes_no_changes(pair: Pair) -> None:
    await pair.put("k", b"1")
    await pair.delete("k")
    assert await pair.near.kv.scan(b"r", b"s", 10) == []


async def test_a_key_that_changes_often_is_sent_once_as_it_is_now(pair: Pair) -> None:
    await pair.replicate()
    await pair.send()
    sent = pair.sender.sent.keys
    for number in range(40):
        await pair.put("busy", b"%d" % number)
    assert (await pair.backlog()).changes == 40
    await pair.send()
    assert pair.sender.sent.keys == sent + 1
    await assert_equal(pair)


async def test_the_backlog_counts_changes_bytes_and_the_oldest(pair: Pair) -> None:
    await pair.replicate()
    await pair.send()
    before_us = pair.near.clock.now_us()
    await pair.put("a", b"12345")
    await pair.put("b", b"678")
    await pair.delete("a")
    backlog = await pair.backlog()
    assert (backlog.changes, backlog.size) == (3, 8)
    assert before_us <= backlog.oldest_us <= pair.near.clock.now_us()
    await pair.send()
    assert await pair.backlog() == (0, 0, 0)
    _, record = await replication.bucket_of(pair.near, "near")
    for name in (bucket_changes_key(record.id), bucket_change_bytes_key(record.id)):
        assert counter(await pair.near.kv.get(name)) == 0


async def test_nobody_but_its_source_changes_a_replica(pair: Pair) -> None:
    await pair.put("k", b"1")
    await pair.replicate()
    await pair.send()
    who = pair.far_who
    with pytest.raises(BucketIsReplica):
        await writes.put_object(pair.far, who, "far", "k", About(), MemoryBody(b"2"))
    with pytest.raises(BucketIsReplica):
        await writes.delete_object(pair.far, who, "far", "k")
    with pytest.raises(BucketIsReplica):
        await multipart.create_upload(
            pair.far, who, "far", "k", About(), checksum_algorithm="", checksum_type=""
        )
    with pytest.raises(BucketIsReplica):
        await delete_bucket(pair.far, who, "far")
    [outcome] = await writes.delete_objects(pair.far, who, "far", [writes.Doomed(key="k")])
    assert isinstance(outcome, BucketIsReplica)
    await assert_equal(pair)


async def test_another_key_of_the_same_tenant_is_not_the_source(pair: Pair) -> None:
    await pair.replicate()
    other = replace(pair.far_who, access_key_id="AKOTHER")
    with pytest.raises(StoreError, match="another source"):
        await replicas.open_session(pair.far, other, "far", 1)


@pytest.mark.parametrize(
    "words",
    [
        About(headers={"transfer-encoding": "chunked"}),
        About(headers={"content-length": "2"}),
        About(headers={"set-cookie": "a=b"}),
        About(headers={"cache-control": "no-store\r\nX-Other: 1"}),
        About(metadata={"a": "b\r\nX-Other: 1"}),
        About(metadata={"a: b\r\nx-other": "1"}),
        About(metadata={"Upper": "case"}),
        About(content_type="text/plain\r\nX-Other: 1"),
    ],
    ids=repr,
)
async def test_a_source_says_of_an_object_only_what_headers_could_have_said(pair: Pair, words: About) -> None:
    """Its words become headers of answers, and any tenant may call itself a source."""
    await pair.replicate()
    client = pair.client(pair.config(1))
    data = b"bytes"

    async def body() -> AsyncIterator[bytes]:
        yield data

    try:
        await client.open()
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        with pytest.raises(StoreError, match="no headers could have said"):
            await client.put(b"k", 1, words, body(), size=len(data), md5=digest, checksum=None)
        with pytest.raises(StoreError, match="no headers could have said"):
            await client.begin(b"k", words, None)
    finally:
        await client.close()
    assert not await contents(pair.far, pair.far_who, "far")


@pytest.mark.parametrize(
    "source",
    [
        Source(cluster="\x1b]0;shown to operators\x07", bucket="near", id=1),
        Source(cluster="ab" * 16, bucket="near\n", id=1),
        Source(cluster="ab" * 16, bucket="near", id=-1),
        Source(cluster="ab" * 16, bucket="near", id=1 << 70),
    ],
    ids=repr,
)
async def test_a_source_that_cannot_be_is_no_source(pair: Pair, source: Source) -> None:
    client = pair.client(pair.config())
    try:
        with pytest.raises(StoreError, match="not the document that is expected"):
            await client.attach(source, replace=True)
    finally:
        await client.close()
    _, record = await replication.bucket_of(pair.far, "far")
    assert replica_of(record) is None


@pytest.mark.parametrize(
    "checksum", [("MD5", "FULL_OBJECT"), ("SHA1", "FULL_OBJECT"), ("CRC32", ""), ("", "COMPOSITE")]
)
async def test_an_upload_with_a_checksum_that_cannot_be_is_not_begun(
    pair: Pair, checksum: tuple[str, str]
) -> None:
    await pair.replicate()
    client = pair.client(pair.config(1))
    try:
        await client.open()
        with pytest.raises(StoreError):
            await client.begin(b"k", About(), Checksum(*checksum, b""))
    finally:
        await client.close()


async def test_a_replicated_bucket_cannot_be_deleted_before_that_ends(pair: Pair) -> None:
    await pair.replicate()
    with pytest.raises(BucketReplicates):
        await delete_bucket(pair.near, WHO, "near")
    await replication.remove_target(pair.near, "near")
    await delete_bucket(pair.near, WHO, "near")


async def test_what_an_earlier_session_sent_late_is_refused(pair: Pair) -> None:
    await pair.replicate()
    await pair.put("k", b"old")
    await pair.send()
    generation = 1
    slow = pair.client(pair.config(generation))
    await slow.open()
    await pair.put("k", b"new")
    await pair.send()  # Opens a session of its own.

    async def body() -> AsyncIterator[bytes]:
        yield b"late"

    with pytest.raises(StoreError, match="ReplicaSessionOver"):
        await slow.put(
            b"k",
            99,
            About(),
            body(),
            size=4,
            md5=hashlib.md5(b"late").digest(),
            checksum=None,
        )
    with pytest.raises(StoreError, match="ReplicaSessionOver"):
        await slow.delete(b"k")
    await slow.close()
    await assert_equal(pair)


async def test_sessions_count_on_when_the_same_source_is_attached_again(pair: Pair) -> None:
    await pair.replicate()
    before = await replicas.open_session(pair.far, pair.far_who, "far", 1)
    await pair.replicate()
    assert await replicas.open_session(pair.far, pair.far_who, "far", 1) > before


async def test_a_promoted_replica_takes_no_more_from_its_source(pair: Pair) -> None:
    await pair.replicate()
    await pair.put("k", b"1")
    await pair.send()
    await pair.put("k", b"never sent")
    await replicas.promote(pair.far, "far")
    await writes.put_object(pair.far, pair.far_who, "far", "k", About(), MemoryBody(b"newer"))
    await pair.sender.serve()
    assert pair.sender.refused
    assert "promoted" in pair.sender.sent.last_failure
    far = await contents(pair.far, pair.far_who, "far")
    assert far[b"k"][0] == b"newer"
    assert (await pair.backlog()).changes == 1  # Still said to be pending: it never arrived.


async def test_a_promotion_ends_a_session_that_is_sending(pair: Pair) -> None:
    await pair.replicate()
    await pair.send()
    sending = pair.client(pair.config(1))
    await sending.open()
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        arrived.set()
        await go_on.wait()
        yield b"y"

    data = b"x" * MIB + b"y"
    put = asyncio.create_task(
        sending.put(b"k", 5, About(), body(), size=len(data), md5=hashlib.md5(data).digest(), checksum=None)
    )
    await arrived.wait()
    await replicas.promote(pair.far, "far")
    go_on.set()
    with pytest.raises(StoreError, match="ReplicaTakenOver"):
        await put
    await sending.close()
    with pytest.raises(NoSuchKey):
        await find_object(pair.far, pair.far_who, "far", "k")


async def test_nothing_is_sent_any_more_where_the_buckets_policy_no_longer_allows_it(pair: Pair) -> None:
    await pair.replicate()
    await pair.send()
    await pair.put("k", b"1")
    pair.forbidden = "policy only-a keeps the bucket in a"
    connections = len(pair.targets)
    await pair.sender.serve()
    assert pair.sender.refused
    assert "keeps the bucket in a" in pair.sender.sent.last_failure
    assert len(pair.targets) == connections, "the target was not even spoken to"
    pair.forbidden = ""
    await pair.send()
    await assert_equal(pair)


async def test_more_changes_than_keys_become_a_pass_so_that_a_target_may_be_away_for_long(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.replicate()
    await pair.put("kept", b"k")
    await pair.send()
    monkeypatch.setattr(replication, "CHANGES_MAX", 20)
    pair.fails = lambda call: "before"
    for number in range(30):
        await pair.put(f"{number % 3}", b"%d" % number)
    await pair.delete("kept")
    await pair.sender.serve()
    assert await pair.backlog() == (0, 0, 0)
    progress = await replication.progress_of(pair.near, "near")
    assert progress is not None
    assert (progress.cursor, progress.finished_us) == (b"", 0)
    await pair.put("0", b"after")
    pair.fails = lambda call: ""
    pair.sender._due = 0.0
    await pair.send()
    await assert_equal(pair)


async def test_replicas_have_no_replicas_and_no_loop_can_be_made(pair: Pair) -> None:
    await pair.replicate()
    with pytest.raises(BucketReplicates):
        await replication.set_target(pair.far, "far", lambda record: pair.config(), resync=True)
    source = Source(cluster="cd" * 16, bucket="far", id=1)
    with pytest.raises(BucketReplicates):
        await replicas.attach(pair.near, WHO, "near", source)


async def test_a_bucket_with_objects_becomes_a_replica_only_by_name(pair: Pair) -> None:
    await writes.put_object(pair.far, pair.far_who, "far", "theirs", About(), MemoryBody(b"x"))
    with pytest.raises(StoreError, match="BucketNotEmpty"):
        await pair.replicate()
    await pair.put("ours", b"1")
    await pair.replicate(overwrite=True)
    await pair.send()
    await assert_equal(pair)


async def test_a_promoted_replica_becomes_one_again_only_by_name(
    pair: Pair,
) -> None:
    await pair.replicate()
    await pair.put("k", b"1")
    await pair.send()
    await replicas.promote(pair.far, "far")
    with pytest.raises(StoreError, match="promoted"):
        await pair.replicate()
    await pair.replicate(overwrite=True)
    with pytest.raises(StoreError, match="ReplicaTakenOver"):
        await pair.client(pair.config(1)).open()
    await pair.put("k", b"2")
    await pair.send()
    await assert_equal(pair)


async def test_a_resync_finds_what_differs_and_sends_nothing_else(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PAGE_KEYS", 30)
    monkeypatch.setattr(replicas, "LISTED_MAX", 40)
    await pair.replicate()
    for number in range(130):
        await pair.put(f"{number:05}", b"%d" % number)
    await pair.send()
    _, record = await replication.bucket_of(pair.far, "far")
    replica = replica_of(record)
    assert replica is not None
    mirror = replace(
        pair.far_who, mirror=Mirror(generation=replica.generation, session=replica.session, order=1)
    )
    await writes.delete_object(pair.far, mirror, "far", "00070")
    await writes.put_object(pair.far, mirror, "far", "00001", About(), MemoryBody(b"other"))
    await writes.put_object(pair.far, mirror, "far", "zzz", About(), MemoryBody(b"more"))
    sent = pair.sender.sent.keys
    await replication.resync(pair.near, "near")
    await pair.send()
    assert pair.sender.sent.keys == sent + 3
    await assert_equal(pair)


async def test_a_key_that_the_target_refuses_holds_up_no_other(pair: Pair) -> None:
    await pair.replicate()
    await pair.send()
    bad = "k" * 8
    await pair.put(bad, b"1")
    await pair.put("good", b"2")
    blobs: Any = pair.near.writer
    found = await find_object(pair.near, WHO, "near", bad)
    extent = found.record.extents[0]
    whole = blobs._blobs.payloads[extent.volume, extent.offset]
    blobs._blobs.payloads[extent.volume, extent.offset] = b""
    await pair.sender.serve()
    assert b"good" in await contents(pair.far, pair.far_who, "far")
    assert (await pair.backlog()).changes == 1
    assert pair.sender.failing_keys == 1
    blobs._blobs.payloads[extent.volume, extent.offset] = whole
    for _ in range(100):  # It waits a second or so by the clock.
        pair.sender._failing._keys = dict.fromkeys(pair.sender._failing._keys, (0.0, 0.0))
        pair.sender._due = 0.0
        await pair.sender.serve()
        if (await pair.backlog()).changes == 0:
            break
    await assert_equal(pair)


async def test_more_failing_keys_than_fit_a_page_hold_up_no_other_either(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PAGE_CHANGES", 4)
    await pair.replicate()
    await pair.send()
    blobs: Any = pair.near.writer
    for number in range(9):
        await pair.put(f"bad{number}", b"%d" % number)
        [extent] = (await find_object(pair.near, WHO, "near", f"bad{number}")).record.extents
        blobs._blobs.payloads[extent.volume, extent.offset] = b""
    await pair.put("good", b"2")
    async with asyncio.timeout(60):
        await pair.sender.serve()
    assert set(await contents(pair.far, pair.far_who, "far")) == {b"good"}
    assert (await pair.backlog()).changes == 9


@pytest.mark.parametrize("seed", [1, 2, SEED] if not LONG else [*range(200), SEED])
async def test_whatever_the_network_does_the_replica_ends_equal_and_no_key_ever_goes_back(
    pair: Pair, seed: int
) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    pair.fails = lambda call: chance.choices(("", "before", "after"), (12, 1, 2))[0]
    await pair.put("0", b"before")
    await pair.replicate()
    seen: dict[bytes, int] = {}  # Key -> number of its last version seen at the replica.
    number = 0

    async def traffic() -> None:
        nonlocal number
        for _ in range(120):
            number += 1
            key = str(chance.randrange(6))
            if chance.random() < 0.2:
                await pair.delete(key)
            else:
                await pair.put(key, b"%d " % number + b"." * chance.randrange(1 << chance.randrange(18)))
            await asyncio.sleep(0)

    async def look() -> None:
        for key, (data, *_) in (await contents(pair.far, pair.far_who, "far")).items():
            if data == b"before":
                continue
            version = int(data.split()[0])
            assert version >= seen.get(key, 0), f"{key!r} went back"
            seen[key] = version

    running = asyncio.create_task(traffic())
    rounds = 0
    while not running.done():
        pair.sender._due = 0.0
        await pair.sender.serve()
        await look()
        rounds += 1
        if chance.random() < 0.1:
            pair.sender = pair.new_sender()  # Another process took the claim.
    await running
    for _ in range(400):
        pair.sender._due = 0.0
        await pair.sender.serve()
        await look()
        if (await pair.backlog()).changes == 0:
            break
    pair.fails = lambda call: ""
    await pair.send()
    await assert_equal(pair)


async def test_a_target_is_spoken_to_over_tls_and_only_if_its_certificate_is_trusted(
    pair: Pair, tmp_path: Path
) -> None:
    certificate = Certificate(*issue(tmp_path, "far"))
    secure = await serve_s3(pair.runner.app, [socket.create_server(("127.0.0.1", 0))], certificate.context)
    config = msgspec.structs.replace(pair.config(), endpoint=f"https://localhost:{secure.port}")
    secret = pair.keys["far"]["secret_key"]
    stranger = ReplicaClient(config, secret)
    source = Source(cluster="ab" * 16, bucket="near", id=1)
    with pytest.raises(TargetAway, match=r"(?i)certificate"):
        await stranger.attach(source, replace=False)
    await stranger.close()

    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    client = ReplicaClient(config, secret, tls=trusting)
    await client.attach(source, replace=False)
    await client.open()
    data = random.Random(2).randbytes(2 * MIB + 3)

    async def body() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    md5 = hashlib.md5(data).digest()
    etag = await client.put(b"k", 7, About(), body(), size=len(data), md5=md5, checksum=None)
    assert etag == md5.hex()
    assert (await contents(pair.far, pair.far_who, "far"))[b"k"][0] == data
    await client.close()
    await secure.stop(0.5)


def test_objects_do_not_travel_in_the_clear_unless_it_is_said() -> None:
    assert check_endpoint("http://127.0.0.1:9000/", insecure=False) == "http://127.0.0.1:9000"
    assert check_endpoint("https://s3.far.example", insecure=False) == "https://s3.far.example"
    with pytest.raises(StoreError, match="read on the way"):
        check_endpoint("http://s3.far.example", insecure=False)
    assert check_endpoint("http://s3.far.example", insecure=True) == "http://s3.far.example"
    for wrong in (
        "s3.far.example",
        "ftp://x",
        "https://",
        "https://h/path",
        "https://h:99999",
        "https://u@h",
    ):
        with pytest.raises(StoreError, match="an endpoint is"):
            check_endpoint(wrong, insecure=True)
