"""The sweep: one paced, resumable pass over metadata that the background services share.

A visitor says which ranges it wants to see and gets every pair of them once a pass. The sweep reads each
range once for all visitors, a thousand keys at a time, and writes its place down now and then: a restart
goes on from there, with what the visitors had found so far begun afresh.

The visitor here is the audit of live bytes: the counters are adds of many commits over years, and they choose
what compaction looks at; the audit counts what the homes really hold and puts a counter right when nothing
touched it during the pass.

Concurrency: one process. Pages are consistent in themselves only; keys come and go between them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from objstore.errors import Conflict
from objstore.extents import Extent
from objstore.meta.kv import Add, Transaction, counter, pages, prefix_end
from objstore.meta.schema import (
    setting_key,
    volume_key,
    volume_live_key,
)
from objstore.upkeep.context import Context
from objstore.upkeep.homes import extents_of

log = logging.getLogger(__name__)

CURSOR_KEY: Final = setting_key("sweep")
PAGE_KEYS: Final = 1_000
PAGES_PER_NOTE: Final = 50  # Pages between two notes of the place: at worst so many are read again.


class Visitor(Protocol):
    ranges: Sequence[bytes]  # Key prefixes, one letter each.

    async def begin(self) -> None:
        """A pass begins, or goes on after a restart at some key: what was counted so far is void."""
        ...

    def see(self, key: bytes, value: bytes) -> None: ...

    async def end(self, *, whole: bool) -> None:
        """The pass is over. whole: it was seen from its beginning by this process."""
        ...


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """MessagePack array; fields are only ever added at the end."""

    format: int = 1
    key: bytes = b""  # The next pass goes on from here.
    finished_us: int = 0


class Sweep:
    """One pass after another. `keys_per_second` is its pace."""

    def __init__(
        self,
        ctx: Context,
        visitors: Sequence[Visitor],
        *,
        keys_per_second: float = 20_000,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ctx = ctx
        self._visitors = visitors
        self._keys_per_second = keys_per_second
        self._sleep = sleep
        self.keys_seen = 0

    async def run(self) -> bool:
        """One pass to its end, from where the last process left it; whether it was a whole one.

        Raises: MetaUnavailable: call it again.
        """
        kv = self._ctx.kv
        value = await kv.get(CURSOR_KEY)
        place = Cursor() if value is None else msgspec.msgpack.decode(value, type=Cursor)
        whole = not place.key
        for visitor in self._visitors:
            await visitor.begin()
        pages = 0
        for prefix in sorted({prefix for visitor in self._visitors for prefix in visitor.ranges}):
            end = prefix_end(prefix)
            if end <= place.key:
                continue
            wanting = [visitor for visitor in self._visitors if prefix in visitor.ranges]
            start = max(prefix, place.key)
            while pairs := await kv.scan(start, end, PAGE_KEYS):
                for key, value in pairs:
                    for visitor in wanting:
                        visitor.see(key, value)
                start = pairs[-1][0] + b"\0"
                self.keys_seen += len(pairs)
                pages += 1
                if pages % PAGES_PER_NOTE == 0:
                    await self._note(Cursor(key=start, finished_us=place.finished_us))
                self._ctx.crash_point("sweep-page")
                await self._sleep(len(pairs) / self._keys_per_second)
        for visitor in self._visitors:
            await visitor.end(whole=whole)
        await self._note(Cursor(finished_us=self._ctx.clock.now_us()))
        return whole

    async def _note(self, place: Cursor) -> None:
        await self._ctx.kv.commit(Transaction(put={CURSOR_KEY: msgspec.msgpack.encode(place)}))


class LiveBytesAudit:
    """Counts the live bytes of every volume, and corrects counters that were quiet during the pass."""

    ranges: Sequence[bytes] = (b"S", b"o", b"p", b"x")

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._held: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self.corrected: dict[int, int] = {}  # Volume -> by how much, in the last whole pass.
        self.dangling: list[bytes] = []  # Homes that point into a volume that does not exist.
        self._homes: dict[int, bytes] = {}

    async def begin(self) -> None:
        self._held = {}
        self._homes = {}
        self._before = await self._counters()

    def see(self, key: bytes, value: bytes) -> None:
        for extent in self._extents(key, value):
            self._held[extent.volume] = self._held.get(extent.volume, 0) + extent.length
            self._homes.setdefault(extent.volume, key)

    def _extents(self, key: bytes, value: bytes) -> Sequence[Extent]:
        try:
            return extents_of(key, value)
        except msgspec.MsgspecError as failure:
            self._ctx.alarms.set("unreadable record", f"{key[:40]!r}: {failure}")
            return ()

    async def end(self, *, whole: bool) -> None:
        if not whole:
            return
        after = await self._counters()
        self.corrected = {}
        for volume in sorted(set(self._before) | set(after) | set(self._held)):
            now, held = after.get(volume, 0), self._held.get(volume, 0)
            if now == held or self._before.get(volume, 0) != now:
                continue  # Right, or in use: the next pass looks again.
            await self._correct(volume, now, held)
        self.dangling = []
        for volume, home in self._homes.items():
            if await self._ctx.kv.get(volume_key(volume)) is None and await self._still(home, volume):
                self.dangling.append(home)
        if self.dangling:
            words = f"{len(self.dangling)} records point into volumes that do not exist, {self.dangling[0]!r}"
            self._ctx.alarms.set("dangling records", words)
        else:
            self._ctx.alarms.clear("dangling records")

    async def _still(self, home: bytes, volume: int) -> bool:
        value = await self._ctx.kv.get(home)
        return value is not None and any(extent.volume == volume for extent in self._extents(home, value))

    async def _correct(self, volume: int, now: int, held: int) -> None:
        key = volume_live_key(volume)
        value = await self._ctx.kv.get(key)
        record = await self._ctx.kv.get(volume_key(volume))
        if counter(value) != now or (value is None and record is None):
            return
        try:
            if record is None:
                # The volume is gone; what was subtracted later has made the key again.
                await self._ctx.kv.commit(
                    Transaction(expect={key: value, volume_key(volume): None}, delete=[key])
                )
                return
            await self._ctx.kv.commit(
                Transaction(expect={key: value, volume_key(volume): record}, add={key: Add(held - now)})
            )
        except Conflict:
            return
        self.corrected[volume] = held - now
        log.warning("live bytes of volume %d corrected from %d to %d", volume, now, held)

    async def _counters(self) -> dict[int, int]:
        found: dict[int, int] = {}
        async for pairs in pages(self._ctx.kv, b"G", prefix_end(b"G"), PAGE_KEYS):
            found.update((int.from_bytes(key[1:], "big"), counter(value)) for key, value in pairs)
        return found
