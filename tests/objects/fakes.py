"""A whole Store in memory: DictKv, and blobs that are slices of byte strings.

    store = memory_store()
    who = principal()
    await create_bucket(store, who, "photos", region="us-east-1")
    await put_object(store, who, "photos", "a.jpg", About(), MemoryBody(b"..."))

The fake blob layer keeps the promises of the real one that the objects layer relies on: extents say where
bytes are, fences are the volumes' records in metadata, and `seal` makes a later publishing commit conflict.
It can hold a put back (`gate`) so that a test arranges an interleaving.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from awscrt import checksums as crt

from objstore.blobs.reader import BlobReader
from objstore.blobs.volumes import Intent, Lane, Stored
from objstore.blobs.writer import BlobStream, BlobWriter
from objstore.clock import Clock
from objstore.errors import Conflict, Corrupt, Unavailable
from objstore.extents import Extent
from objstore.meta.kv import DictKv, Kv, Transaction
from objstore.meta.schema import Checksum
from objstore.objects.ledger import MetaLedger
from objstore.objects.store import Store
from objstore.objects.values import Buffer, Digests, Principal


def principal(tenant: str = "default", user: str = "root") -> Principal:
    return Principal(tenant=tenant, user=user, access_key_id="OSAAAAAAAAAAAAAAAAAA", root=user == "root")


class FakeClock:
    """Stands still unless told to move."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.now = now_us

    def now_us(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1e6


class MemoryBody:
    """A Body over bytes: in chunks, with MD5 and a checksum (CRC64NVME unless another one is given)."""

    def __init__(
        self,
        data: bytes = b"",
        *,
        chunk_size: int = 256 * 1024,
        sized: bool = True,
        checksum: Checksum | None = None,
        error: Exception | None = None,
    ) -> None:
        self.data = data
        self.size: int | None = len(data) if sized else None
        self._chunk_size = chunk_size
        self._checksum = checksum
        self._error = error

    def __aiter__(self) -> AsyncIterator[Buffer]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[Buffer]:
        for at in range(0, len(self.data), self._chunk_size):
            yield memoryview(self.data)[at : at + self._chunk_size]

    async def digests(self) -> Digests:
        if self._error is not None:
            raise self._error
        checksum = self._checksum or Checksum(
            "CRC64NVME", "FULL_OBJECT", crt.crc64nvme(self.data).to_bytes(8, "big")
        )
        return Digests(len(self.data), hashlib.md5(self.data).digest(), checksum)


class FakeBlobs:
    """The bytes of all volumes. Survives a "restart" of writer and reader."""

    def __init__(self, kv: Kv, *, stripe_size: int = 1024 * 1024) -> None:
        self.kv = kv
        self.ledger = MetaLedger(kv)
        self.stripe_size = stripe_size
        self.payloads: dict[tuple[int, int], bytes] = {}  # (volume, offset) -> payload
        self.ends: dict[int, int] = {}
        self.homes: dict[tuple[int, int], bytes] = {}
        self.volume = 0
        self.fence = b""
        self.intents: list[Intent] = []  # Recorded with the next put.
        self.gate: asyncio.Event | None = None  # Puts and finishes wait for it after their bytes are durable.
        self.waiting = 0  # How many do.
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        record, self.fence = await self.ledger.create(
            k=4, m=2, disks=[1, 2, 3, 4, 5, 6], lane=Lane.SMALL, writer=b"w" * 16, policy=""
        )
        self.volume = record.id
        self.ends[record.id] = 64

    async def seal(self) -> None:
        """As another process would: the next publishing commit of this volume conflicts."""
        volume, self.volume = self.volume, 0
        await self.ledger.seal(volume, self.ends[volume])

    async def append(self, payload: bytes, home: bytes) -> tuple[Extent, dict[int, bytes]]:
        async with self._opening:
            if not self.volume:
                await self.open()
        volume, fence = self.volume, self.fence
        offset = self.ends[volume]
        self.ends[volume] = offset + -(-len(payload) // 8) * 8 + 64
        self.payloads[volume, offset] = payload
        self.homes[volume, offset] = home
        return Extent(volume, offset, -(-len(payload) // 4), 0, len(payload)), {volume: fence}

    async def pass_gate(self) -> None:
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()

    def bytes_of(self, extent: Extent) -> bytes:
        payload = self.payloads.get((extent.volume, extent.offset))
        if payload is None:
            raise Corrupt(f"no stripe at {extent}")
        return payload[extent.begin : extent.begin + extent.length]


class FakeStream(BlobStream):
    def __init__(self, blobs: FakeBlobs, home: bytes) -> None:
        self._blobs = blobs
        self._home = home
        self._held = bytearray()
        self._extents: list[Extent] = []
        self._fences: dict[int, bytes] = {}
        self.aborted = False
        self.hurry = None
        self._room = bytearray(0)  # What bytes are received in,
        self._used = 0  # and how many there are.

    @property
    def is_full(self) -> bool:
        return self._used == len(self._room)

    def room(self) -> memoryview | None:
        return None if self.is_full else memoryview(self._room)[self._used :]

    def took(self, size: int) -> None:
        self._used += size

    async def turn(self, read: "asyncio.Future[None] | None") -> None:
        await self.flush(read)
        self._room = bytearray(self._blobs.stripe_size)

    async def flush(self, read: "asyncio.Future[None] | None") -> None:
        content, self._room, self._used = self._room[: self._used], bytearray(0), 0
        await self.write(content)

    async def write(self, chunk: Buffer) -> None:
        self._held += self._room[: self._used]  # It came before.
        self._room, self._used = bytearray(0), 0
        self._held += chunk
        while len(self._held) >= self._blobs.stripe_size:
            await self._flush(self._blobs.stripe_size)

    async def _flush(self, size: int) -> None:
        extent, fences = await self._blobs.append(bytes(self._held[:size]), self._home)
        del self._held[:size]
        self._extents.append(extent)
        self._fences.update(fences)

    async def finish(self, about: bytes) -> Stored:
        await self.flush(None)
        if self._held:
            await self._flush(len(self._held))
        await self._blobs.pass_gate()
        return Stored(self._extents, self._fences, [])

    def abort(self) -> None:
        self.aborted = True


class FakeWriter(BlobWriter):
    def __init__(self, blobs: FakeBlobs) -> None:
        self._blobs = blobs

    async def put(self, body: Buffer, home: bytes, about: bytes, *, policy: str = "") -> Stored:
        assert len(body) > 0
        extent, fences = await self._blobs.append(bytes(body), home)
        await self._blobs.pass_gate()
        intents, self._blobs.intents = self._blobs.intents, []
        return Stored([extent], fences, intents)

    async def recheck(self, volumes: Iterable[int]) -> None:
        pass  # Its next bytes go into the open volume anyway.

    def stream(self, home: bytes, *, policy: str = "") -> BlobStream:
        return FakeStream(self._blobs, home)

    async def close(self) -> None:
        pass


class FakeReader(BlobReader):
    def __init__(self, blobs: FakeBlobs) -> None:
        self._blobs = blobs
        self.extents_read = 0
        self.checked: list[Extent] = []
        self.away: Extent | None = None  # Of which nothing can be read, and that is known.

    def lacks_disks(self) -> bool:
        return self.away is not None

    async def check(self, extents: Sequence[Extent], begin: int, length: int) -> None:
        self.checked += extents
        if self.away in extents:
            raise Unavailable("its disks are away")

    async def read(self, extent: Extent) -> bytes | memoryview:
        self.extents_read += 1
        return self._blobs.bytes_of(extent)

    async def stream(
        self, extents: Sequence[Extent], begin: int, length: int
    ) -> AsyncIterator[list[memoryview]]:
        end = begin + length
        at = 0
        for extent in extents:
            if at < end and at + extent.length > begin:
                self.extents_read += 1
                data = memoryview(self._blobs.bytes_of(extent))
                yield [data[max(0, begin - at) : min(extent.length, end - at)]]
            at += extent.length
        if at < end:
            raise Corrupt(f"{end - at} bytes beyond the extents")


def memory_store(
    *, kv: Kv | None = None, clock: Clock | None = None, stripe_size: int = 1024 * 1024, **settings: Any
) -> Store:
    """A Store over a DictKv (or the engine given) and fake blobs (`store.writer._blobs`)."""
    chosen = kv if kv is not None else DictKv()
    blobs = FakeBlobs(chosen, stripe_size=stripe_size)
    if clock is not None:
        settings["clock"] = clock
    return Store(
        kv=chosen, writer=FakeWriter(blobs), reader=FakeReader(blobs), ledger=blobs.ledger, **settings
    )


def another_process(store: Store) -> Store:
    """A Store over the same metadata and bytes, with caches and chains of its own."""
    blobs = blobs_of(store)
    return Store(
        kv=store.kv,
        writer=FakeWriter(blobs),
        reader=FakeReader(blobs),
        ledger=blobs.ledger,
        clock=store.clock,
        small_size_max=store.small_size_max,
    )


def blobs_of(store: Store) -> FakeBlobs:
    assert isinstance(store.writer, FakeWriter)
    return store.writer._blobs


async def read_all(store: Store, found: Any) -> bytes:
    from objstore.objects.reads import read, read_small

    small = await read_small(store, found)
    if small is not None:
        return bytes(small)
    return b"".join([bytes(buffer) async for buffers in read(store, found) for buffer in buffers])


class HookedKv(DictKv):
    """A DictKv that lets a test do something just before the next commit that touches some key."""

    def __init__(self) -> None:
        super().__init__()
        self._hooks: list[tuple[bytes, Any]] = []
        self.commits = 0
        self.conflicts = 0

    def before_commit(self, prefix: bytes, act: Any) -> None:
        """`act` is an async function without arguments; it runs once."""
        self._hooks.append((prefix, act))

    async def commit(self, transaction: Transaction) -> None:
        for hook in self._hooks:
            prefix, act = hook
            if any(key.startswith(prefix) for key in (*transaction.put, *transaction.delete)):
                self._hooks.remove(hook)
                await act()
                break
        self.commits += 1
        try:
            await super().commit(transaction)
        except Conflict:
            self.conflicts += 1
            raise


class VersionedKv(HookedKv):
    """An engine that tells whether anything has changed, and how it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def version(self) -> tuple[int, int]:
        return 1, self.commits

    def get_at(self, key: bytes, version: tuple[int, int]) -> tuple[bool, bytes | None]:
        if version != self.version():
            return False, None
        self.reads.append("get_at")
        return True, self._values.get(key)

    async def get(self, key: bytes) -> bytes | None:
        self.reads.append("get")
        return await super().get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.reads.append("get_many")
        return await super().get_many(keys)


class BatchingKv(DictKv):
    """Commits as the committer does: what has arrived is one batch, applied in order, answered together."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[tuple[Transaction, asyncio.Future[None]]] = []
        self._flush: asyncio.Task[None] | None = None
        self.batches = 0
        self.conflicts = 0

    async def commit(self, transaction: Transaction) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((transaction, answer))
        if self._flush is None:
            self._flush = asyncio.create_task(self._apply())
        await answer

    async def _apply(self) -> None:
        for _ in range(5):  # A journal sync: others arrive meanwhile.
            await asyncio.sleep(0)
        batch, self._waiting, self._flush = self._waiting, [], None
        self.batches += 1
        for transaction, answer in batch:
            try:
                await DictKv.commit(self, transaction)
            except Exception as failure:
                self.conflicts += isinstance(failure, Conflict)
                if not answer.done():
                    answer.set_exception(failure)
            else:
                if not answer.done():
                    answer.set_result(None)
