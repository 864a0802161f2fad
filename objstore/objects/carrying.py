"""Small bodies that come alone: carried by metadata, and packed into stripes when there are several.

A stripe and the commit that publishes it are two waits for the disks, one after the other. Many bodies share
both. One that comes alone would pay for both by itself; so it goes into the commit, as the value of the B key
beside its record, and the journal's m+1 copies hold it as they hold the record: what loses the one loses the
other. Within seconds it is packed with its like into one stripe, and a commit gives the record its extents
and removes the B key. An object is in one of the two states in any view:

    record without extents, size > 0, no parts, no pages  <=>  its body is at B

Concurrency: one event loop. Who packs (the worker that took the body; the upkeep, after a crash) expects the
record as it read it, so an overwrite or a delete in between wins, and takes the B key away itself.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from objstore.errors import Conflict, StoreError
from objstore.meta.kv import Transaction, pages, prefix_end
from objstore.meta.schema import ObjectRecord, body_key, decode, encode
from objstore.objects.ledger import publish

if TYPE_CHECKING:
    from objstore.objects.store import Store

log = logging.getLogger(__name__)

SIZE_MAX: Final = 8_192  # Bytes; a value of the metadata engine is no longer.
ALONE_BEFORE: Final = 2  # Writes in a row that nobody shared: one alone among many is about to have company.
WAITING_MAX: Final = (
    1_024  # Bodies that one process lets metadata carry before it packs them: past it, stripes.
)
PACK_AFTER_S: Final = 1.0  # A body is packed about so long after it came,
PACK_COUNT: Final = 128  # or when so many wait: the bodies of one stripe.
RETRY_S: Final = 5.0  # After those that could not be packed.
CLOSE_S: Final = 5.0  # So long an end waits for the last ones.
LEFT_BEHIND_US: Final = 60_000_000  # A body that is older is packed by the upkeep: its worker is gone.


def is_carried(record: ObjectRecord) -> bool:
    """Whether the body is at the B key beside the record."""
    if record.extents or not record.size:
        return False
    extra = record.extra
    return extra is None or (extra.multipart is None and not extra.pages)


class Carrier:
    """Decides which bodies metadata carries, and packs those of this process.

    Use it as a context manager around each write, from its body to the end of its commit: who is alone is
    known by that.

    Args:
        size_max: bytes; 0: none is carried.
    """

    def __init__(self, size_max: int) -> None:
        assert size_max <= SIZE_MAX
        self.carried = 0  # Bodies, since the start.
        self._size_max = size_max
        self._writes = 0  # Under way.
        self._alone = 0  # Writes in a row during which there was no other.
        self._waiting: dict[bytes, None] = {}  # Homes, in order of coming.
        self._enough = asyncio.Event()
        self._packer: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Bodies that wait to be packed."""
        return len(self._waiting)

    def __enter__(self) -> None:
        if self._writes:
            self._alone = -1  # The last of these to end begins to count.
        self._writes += 1

    def __exit__(self, *_: object) -> None:
        self._writes -= 1
        if not self._writes:
            self._alone += 1

    def takes(self, size: int) -> bool:
        """Whether metadata should carry a body of this size: it is small, and alone as those before it."""
        return (
            self._writes == 1
            and self._alone >= ALONE_BEFORE
            and 0 < size <= self._size_max
            and len(self._waiting) < WAITING_MAX
        )

    def took(self, store: "Store", home: bytes) -> None:
        """A commit has published a carried body: pack it soon."""
        self.carried += 1
        self._waiting[home] = None
        if len(self._waiting) >= PACK_COUNT:
            self._enough.set()
        if self._packer is None:
            self._packer = asyncio.get_running_loop().create_task(self._pack(store))

    async def _pack(self, store: "Store") -> None:
        """Until nothing waits."""
        while self._waiting:
            self._enough.clear()
            if len(self._waiting) < PACK_COUNT:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._enough.wait(), PACK_AFTER_S)
            if not await self._pack_some(store):  # They are as durable as their records: there is no haste.
                await asyncio.sleep(RETRY_S)
        self._packer = None

    async def _pack_some(self, store: "Store") -> bool:
        """Pack the eldest; whether all of them went."""
        homes = list(islice(self._waiting, PACK_COUNT))
        done = await pack(store, homes)
        for home in done:
            self._waiting.pop(home, None)
        return len(done) == len(homes)

    async def flush(self, store: "Store") -> None:
        """Pack what waits now, as far as that works."""
        while self._waiting and await self._pack_some(store):
            pass

    async def close(self, store: "Store") -> None:
        """Flush and stop. What cannot be packed now, the upkeep packs after the next start."""
        if self._packer is not None:
            self._packer.cancel()
        with suppress(TimeoutError, StoreError):
            await asyncio.wait_for(self.flush(store), CLOSE_S)


async def pack(store: "Store", homes: Sequence[bytes]) -> list[bytes]:
    """Put the bodies that metadata carries for these o keys into stripes.

    Returns: the keys that need it no more: packed, overwritten, deleted. The others can be tried again.
    """
    outcomes = await asyncio.gather(*(_pack_one(store, home) for home in homes), return_exceptions=True)
    done: list[bytes] = []
    for home, outcome in zip(homes, outcomes, strict=True):
        if outcome is None:
            done.append(home)
        elif isinstance(outcome, StoreError):
            log.info("a body stays in metadata for now: %s", outcome)
        elif isinstance(outcome, Exception):  # The others' packing must not end with this one.
            log.error("a bug in packing a body", exc_info=outcome)
        else:
            raise outcome
    return done


async def _pack_one(store: "Store", home: bytes) -> None:
    """Raises: StoreError: not now."""
    value, body = await store.kv.get_many((home, body_key(home)))
    if body is None:
        return
    record = None if value is None else decode(value, ObjectRecord)
    if record is None or not is_carried(record):  # Only a salvage leaves such a body: nobody reads it.
        await store.kv.commit(Transaction({home: value}, delete=[body_key(home)]))
        return
    assert value is not None
    store.crash_point("packing-begun")
    stored = await store.writer.put(body, home, value)
    store.crash_point("packing-written")
    if store.chains.tail(home) is not None:
        return  # About to be replaced, by whoever takes the body away too.
    expect, put, add = publish(stored)
    expect[home] = value
    packed = put[home] = encode(msgspec.structs.replace(record, extents=stored.extents))
    try:
        await store.chains.commit(home, packed, Transaction(expect, put, [body_key(home)], add))
    except Conflict as conflict:
        if conflict.key != home:
            await store.writer.recheck(stored.fences)  # The volume was sealed: another, the next time.
            raise
    else:
        store.crash_point("packing-committed")


async def pack_left_behind(store: "Store") -> int:
    """Pack what workers that are gone have left in metadata; returns how many bodies went."""
    before = store.clock.now_us() - LEFT_BEHIND_US
    start = body_key(b"o")
    count = 0
    async for pairs in pages(store.kv, start, prefix_end(start), PACK_COUNT):
        homes = [b"o" + key[1:] for key, _ in pairs]
        values = await store.kv.get_many(homes)
        left = [
            home
            for home, value in zip(homes, values, strict=True)
            if value is None or decode(value, ObjectRecord).order < before
        ]
        count += len(await pack(store, left))
    return count
