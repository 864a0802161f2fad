"""Reading blobs: verified, reconstructed when needed, never wrong bytes.

A small read is one range read of one fragment (two where a boundary cuts the body), verified block by
block, and sliced. When a fragment is missing, late, short or rotten, or its disk is known for being slow, the
same range of k others is read and decoded (racing.py has what waits). A reader that misses a fragment file
rereads the volume's record before it counts a failure, since repair may have moved the file, and before it
ends for want of disks that it presumes away it asks those once more (node/returning.py). What cannot be
verified or reconstructed is Corrupt (or Unavailable when disks are merely away); a stream that fails in the
middle raises, and its consumer must cut. So what is known beforehand to fail, for want of disks, fails before
the first byte.

Memory: streams take their buffers' sizes from one budget, piece by piece; a piece grows while its consumer is
quick and memory is plentiful, so that a thousand slow readers hold a thousand small pieces. A buffer is used
again only when no view of it is left anywhere: whoever sends the bytes may hold them after asking for more.

Concurrency: one event loop; no state between reads but the budget, the counters and the queue of hints.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from objstore.blobs.absence import may_leave_out
from objstore.blobs.memory import MemoryBudget
from objstore.blobs.racing import UNREADABLE as UNREADABLE
from objstore.blobs.racing import Racing
from objstore.blobs.stripes import slices
from objstore.blobs.volumes import FindDisks, Ledger, VolumeRecord, no_others
from objstore.blobs.window import Window
from objstore.clock import Clock, SystemClock
from objstore.codec.reed_solomon import Codec
from objstore.errors import Corrupt, DiskMissing, NodeAway, StoreError, Unavailable
from objstore.extents import Extent
from objstore.node.disk import Disk, DiskState
from objstore.node.fragments import RangeRead, Seal, block_size, covering_size
from objstore.node.kept import KEPT_MIN, KeptMemory
from objstore.node.returning import ask_again
from objstore.node.slowness import Change, Slowness

log = logging.getLogger(__name__)

CodecFor = Callable[[int, int], Codec]

KIB: Final = 1024
MIB: Final = 1024 * KIB
SEQUENTIAL_MAX: Final = 128 * KIB  # Bytes of a range whose parts, if cached, are read one after another.
NOTES_MAX: Final = 16  # Under way at once; what is damaged is met again.


class ReaderLimits(NamedTuple):
    """Every bound of a reader."""

    memory: int = 64 * MIB  # Bytes of pieces that all streams hold together.
    piece_min: int = 128 * KIB  # Bytes: a stream's first piece; doubled while its consumer is quick.
    piece_floor: int = 12 * KIB  # Bytes: of the reserve. 1,365 of them fit, a worker has 1,280 requests.
    piece_max: int = 4 * MIB  # Bytes; the largest piece, if memory allows.
    reserve_part: int = 4  # One part in so many of the memory is for such pieces: nobody waits for the slow.
    quick_s: float = 0.5  # A consumer that asks again within this gets larger pieces.
    deadline_s: float = 5.0  # Of one disk read; past it the fragment counts as missing.
    memory_wait_s: float = 30.0
    inline_max: int = 1 * MIB  # Bytes verified on the event loop: 36 us. A hand-off costs more.
    kept: int = 48 * MIB  # Of buffers, for the next read: fresh ones cost a page fault per 4 KiB.
    hints: int = 4_096  # Damaged fragments remembered for repair.


DEFAULT_LIMITS: Final = ReaderLimits()
DAMAGE: Final = (Corrupt, FileNotFoundError)  # Rather than away or late: for repair.
READABLE: Final = (
    DiskState.HEALTHY,
    DiskState.FULL,
    DiskState.READ_ONLY,
)  # Of a disk that may be counted on.


class Hint(NamedTuple):
    """A fragment that a read found damaged or absent, for repair to look at."""

    volume: int
    fragment: int  # Index.
    offset: int  # Of the stripe.
    reason: str


class ReaderCounters(msgspec.Struct):
    """For the metrics."""

    reads: int = 0  # Small reads.
    streams: int = 0
    bytes: int = 0
    degraded_reads: int = 0  # Ranges that had to be reconstructed.
    avoided_reads: int = 0  # Ranges reconstructed because the disk is slow.
    corrupt_fragments: int = 0  # Verified and found wrong.
    missing_fragments: int = 0  # Not there, not readable or late.
    failed_reads: int = 0  # Neither verified nor reconstructed.


class BlobReader:
    """All reads of one process.

    Args:
        disks: by number; a number that is not in it is a missing disk.
        cluster, secret: what the checksums are bound to, from the identity file.
        codec: (k, m) -> codec.
        find_disks: called when a volume names a disk that is not in `disks`: it came just now.
        slowness: which disks are slow; by default one of its own.
    """

    def __init__(
        self,
        *,
        disks: Mapping[int, Disk],
        ledger: Ledger,
        cluster: bytes,
        secret: int,
        codec: CodecFor,
        find_disks: FindDisks = no_others,
        slowness: Slowness | None = None,
        clock: Clock | None = None,
        limits: ReaderLimits = DEFAULT_LIMITS,
    ) -> None:
        self.counters = ReaderCounters()
        self.memory = MemoryBudget(limits.memory, wait_s=limits.memory_wait_s, purpose="a read")
        self._disks = disks
        self._ledger = ledger
        self._seal = Seal(cluster, secret)
        self._codec = codec
        self._find_disks = find_disks
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._limits = limits
        self.slowness = slowness if slowness is not None else Slowness(clock=self._clock)
        self._racing = Racing(self.slowness, self._clock, deadline_s=limits.deadline_s)
        self.hedges = self._racing.counters
        self._hints: deque[Hint] = deque(maxlen=limits.hints)
        self._notes: set[asyncio.Task[None]] = set()
        self._open_streams = 0
        self._waited = 0  # Disk reads that the page cache did not have.
        self._buffers = KeptMemory(limits.kept, _power_of_two)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="verify")

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def take_hints(self) -> list[Hint]:
        """The damaged fragments seen since the last call (the newest, if there were too many)."""
        hints = list(self._hints)
        self._hints.clear()
        return hints

    async def probe(self) -> list[Change]:
        """Read a little from each disk that reads avoid; those that have become quick again. Now and then."""
        return await self._racing.probe(self._disks)

    # Small reads.

    async def read(self, extent: Extent) -> bytes | memoryview:
        """All bytes of one small extent (at most 128 KiB, say), verified end to end.

        Raises: Corrupt (cannot be verified or reconstructed), Unavailable (too few disks answer).
        """
        self.counters.reads += 1
        record = await self._ledger.get(extent.volume)
        size = extent.fragment_size
        index, begin = divmod(extent.begin, size)
        length = extent.length
        body: bytes | memoryview
        if begin + length <= size:
            # The fast path: one read of one disk, without a task or a timer when the page cache has it.
            body = await self._part(record, extent, index, begin, length)
        else:
            body = b"".join(await self._range(record, extent, 0, length))
        self.counters.bytes += length
        if extent.digest and xxh3_64_intdigest(body) != extent.digest:
            self.counters.failed_reads += 1
            raise Corrupt(f"the bytes at {extent.volume}:{extent.offset}+{extent.begin} are not the object's")
        return body

    # Streams.

    async def stream(
        self, extents: Sequence[Extent], begin: int, length: int
    ) -> AsyncGenerator[list[memoryview], None]:
        """Bytes [begin, begin + length) of the concatenated extents, as lists of verified buffers.

        Reads ahead at most one piece (a stripe at most). Memory comes from the reader's budget and is
        given back when the next list is asked for or the iterator is closed (aclose it).

        Raises: Corrupt, Unavailable (before the first list, if it is known by then); Overloaded if there is
            no memory within the limit.
        """
        await self.check(extents, begin, length)
        self.counters.streams += 1
        self._open_streams += 1
        todo = _Pieces(extents, begin, length)
        limits = self._limits
        wanted = limits.piece_min
        first = True
        held = 0
        ahead: asyncio.Task[list[memoryview]] | None = None
        ahead_cost = 0
        try:
            while True:
                if ahead is None:
                    if todo.done:
                        return
                    cost = await self._take_memory(min(wanted, todo.left))
                    held = cost
                    piece = todo.next(cost)
                    current = await self._read_piece(piece)
                else:
                    held, ahead_cost = ahead_cost, 0
                    task, ahead = ahead, None
                    try:
                        current = await task
                    except asyncio.CancelledError:
                        task.cancel()
                        raise
                if not todo.done and not first:
                    # Only with memory to spare (reading ahead never waits for it), and only for those who
                    # have come back for more: a stalled reader holds one small piece.
                    ahead_cost = self._try_memory(min(wanted, todo.left))
                    if ahead_cost:
                        ahead = asyncio.get_running_loop().create_task(
                            self._read_piece(todo.next(ahead_cost))
                        )
                first = False
                given = self._clock.monotonic()
                yield current
                del current
                if self._clock.monotonic() - given <= limits.quick_s:
                    wanted = min(2 * wanted, limits.piece_max)
                else:
                    wanted = max(wanted // 2, limits.piece_min)
                self.memory.give_back(held)
                held = 0
        finally:
            self._open_streams -= 1
            if ahead is not None:
                ahead.cancel()
                await asyncio.wait([ahead])
                if not ahead.cancelled():
                    ahead.exception()  # Seen: nobody wants these bytes any more.
            self.memory.give_back(held + ahead_cost)

    def lacks_disks(self) -> bool:
        """Whether so many disks may not be readable, as far as is known, that `check` is worth its while.

        Any volume can do without one: m is 1 or more. In a large store one is away most of the time.
        """
        return sum(not self._is_readable(number) for number in self._disks) > 1

    async def check(self, extents: Sequence[Extent], begin: int, length: int) -> None:
        """Whether there are disks enough for a range of a stream, as far as is known. Nothing is read.

        While volumes have their disks this costs a look at those disks' states.

        Raises: Unavailable.
        """
        whole: set[int] = set()
        for extent in extents:
            if length <= 0:
                return
            if begin >= extent.length:
                begin -= extent.length
                continue
            count = min(length, extent.length - begin)
            if extent.volume not in whole:
                record = await self._ledger.get(extent.volume)
                missing = sum(not self._is_readable(number) for number in record.disks)
                if missing <= record.m or await self._check_there(extent, begin, count):
                    whole.add(extent.volume)
            begin, length = 0, length - count

    async def _check_there(self, extent: Extent, begin: int, length: int) -> bool:
        """The same for an extent of a volume of which too many disks are doubted.

        Returns: whether k of the volume's disks are there after all, enough for all of its extents.

        Raises: Unavailable.
        """
        record = await self._ledger.get(extent.volume, fresh=True)  # Repair may have moved its files.
        if any(number not in self._disks for number in record.disks):
            await self._find_disks()
        there = {number for number in record.disks if self._is_readable(number)}
        parts = [part.fragment for part in slices(extent, begin, length)]
        needed = {record.disks[index] for index in parts if index < record.k}
        if len(there) < record.k and not needed <= there:
            doubted = [self._disks[n] for n in record.disks if n not in there and n in self._disks]
            there |= await ask_again(doubted, wanted=record.k - len(there))
            if len(there) < record.k and not needed <= there:
                self.counters.failed_reads += 1
                raise Unavailable(
                    f"volume {record.id}: the disks of {len(there)} of {record.k} fragments are there"
                )
        return len(there) >= record.k

    # Ranges.

    async def _read_piece(self, piece: Sequence[tuple[Extent, int, int]]) -> list[memoryview]:
        views: list[memoryview] = []
        for extent, begin, length in piece:
            record = await self._ledger.get(extent.volume)
            views += await self._range(record, extent, begin, length)
            if extent.digest and length == extent.length:
                # A whole small extent: check it end to end, as a small read does.
                count = len(slices(extent, 0, length))
                if xxh3_64_intdigest(b"".join(views[-count:])) != extent.digest:
                    self.counters.failed_reads += 1
                    raise Corrupt(f"the bytes at {extent.volume}:{extent.offset} are not the object's")
            self.counters.bytes += length
        return views

    async def _range(self, record: VolumeRecord, extent: Extent, begin: int, length: int) -> list[memoryview]:
        """Bytes [begin, begin + length) of one extent, each data fragment's part read side by side."""
        parts = slices(extent, begin, length)
        views: list[memoryview] = []
        if len(parts) == 1 or length <= SEQUENTIAL_MAX:
            # Small: one after another, while the page cache has them. Tasks would cost more than the reads.
            waited = self._waited
            while parts and self._waited == waited:
                views.append(await self._part(record, extent, *parts.pop(0)))
            if not parts:
                return views
        tasks = [asyncio.get_running_loop().create_task(self._part(record, extent, *part)) for part in parts]
        try:
            await asyncio.wait(tasks)  # Each has its deadlines.
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        failures = [task.exception() for task in tasks]
        for failure in failures:
            if failure is not None:
                raise failure
        return views + [task.result() for task in tasks]

    async def _part(
        self, record: VolumeRecord, extent: Extent, index: int, begin: int, length: int
    ) -> memoryview:
        """A range of one data fragment: from its disk, or from others if that fails or is too slow."""
        if index >= record.k:
            raise Corrupt(f"an extent of volume {record.id} points beyond its {record.k} data fragments")
        try:
            disk, plan = self._plan(record, extent, index, begin, length)
            count = disk.read_now(record.id, index, plan.position, plan.buffers)
            if count is not None:
                if length <= self._limits.inline_max:
                    return plan.verified(count)
                return await self._verified(plan, count, length)
            self._waited += 1
            self._racing.budget.earn()
            others = partial(self._from_others, record, extent, index, begin, length)
            if self.slowness.ejected and disk.number in self._left_out(record):
                try:
                    found = await others()
                except UNREADABLE:
                    # Rather late than never.
                    return await self._wait_for(disk, plan, record, index, length)
                self.counters.avoided_reads += 1
                return found
            return await self._racing.hedged(
                self._wait_for(disk, plan, record, index, length),
                others,
                length,
                lambda failure: self._note_aside(record, extent, [(index, failure)]),
            )
        except UNREADABLE as failure:
            return await self._recover(record, extent, index, begin, length, failure)

    async def _read_fragment(
        self,
        record: VolumeRecord,
        extent: Extent,
        index: int,
        begin: int,
        length: int,
        window: Window | None = None,
    ) -> memoryview:
        """A verified range of one fragment, from its disk. Raises: UNREADABLE."""
        disk, plan = self._plan(record, extent, index, begin, length)
        count = disk.read_now(record.id, index, plan.position, plan.buffers)
        if count is not None:
            return await self._verified(plan, count, length)
        began = self._clock.monotonic()
        found = await self._wait_for(disk, plan, record, index, length)
        if window is not None:
            window.took(self._clock.monotonic() - began)
        return found

    def _plan(
        self, record: VolumeRecord, extent: Extent, index: int, begin: int, length: int
    ) -> tuple[Disk, RangeRead]:
        """Raises: DiskMissing."""
        disk = self._disks.get(record.disks[index]) if index < record.fragment_count else None
        if disk is None:
            raise DiskMissing(f"no disk for fragment {index} of volume {record.id}")
        size = extent.fragment_size
        into = None
        if length >= KEPT_MIN:
            into = memoryview(self._buffers.take(covering_size(size, begin, length)))
        return disk, RangeRead(self._seal, record.id, index, extent.offset, size, begin, length, into)

    async def _wait_for(
        self, disk: Disk, plan: RangeRead, record: VolumeRecord, index: int, length: int
    ) -> memoryview:
        count = await self._racing.timed(disk, record.id, index, plan, length)
        return await self._verified(plan, count, length)

    async def _verified(self, plan: RangeRead, count: int, length: int) -> memoryview:
        if length <= self._limits.inline_max:
            return plan.verified(count)
        return await asyncio.get_running_loop().run_in_executor(self._threads, plan.verified, count)

    def _left_out(self, record: VolumeRecord) -> list[int]:
        """The slow disks that reads of this volume do without: all it takes is what others leave of m. What
        other processes do without counts as well: all choose among the same, and m is for all together."""
        slow = self.slowness.left_out_among(record.disks)
        if not slow:
            return slow
        away = {number for number in record.disks if not self._is_readable(number)}
        chosen = may_leave_out(record, away, slow)
        return [number for number in chosen if number in self.slowness.ejected]

    def _is_readable(self, number: int) -> bool:
        disk = self._disks.get(number)
        return disk is not None and disk.state in READABLE

    async def _recover(
        self,
        record: VolumeRecord,
        extent: Extent,
        index: int,
        begin: int,
        length: int,
        failure: Exception,
    ) -> memoryview:
        """A range that could not be read: from where the file is now, or decoded from k others.

        Raises: Corrupt if fragments are rotten beyond repair, Unavailable if they are merely away.
        """
        # A cached record may be old: repair may have moved this file, or the others. And another process may
        # have heard of a new disk, and written to it, before this one.
        fresh = await self._ledger.get(record.id, fresh=True)
        unheard = any(number not in self._disks for number in fresh.disks)
        if unheard:
            await self._find_disks()
        if unheard or fresh.disks != record.disks:
            record = fresh
            try:
                return await self._read_fragment(record, extent, index, begin, length)
            except UNREADABLE as again:
                failure = again
        self._count(record, extent, index, failure)
        first, span = _blocks(extent, begin, length)
        survivors, lost = await self._survivors(record, extent, index, first, span)
        if len(survivors) < record.k:
            away = _presumed_away(record, [(index, failure), *lost])
            asked = [self._disks[number] for number in away if number in self._disks]
            if await ask_again(asked, wanted=record.k - len(survivors)):
                try:
                    return await self._read_fragment(record, extent, index, begin, length)
                except UNREADABLE as again:
                    failure = again
                survivors, lost = await self._survivors(record, extent, index, first, span)
        self.counters.degraded_reads += 1
        rebuilt = await self._rebuilt(record, extent, index, span, survivors, lost, failure)
        return rebuilt[begin - first : begin - first + length]

    async def _from_others(
        self, record: VolumeRecord, extent: Extent, index: int, begin: int, length: int
    ) -> memoryview:
        """A range of a fragment that nothing may be wrong with, decoded from k others. Raises: UNREADABLE."""
        first, span = _blocks(extent, begin, length)
        survivors, failures = await self._survivors(record, extent, index, first, span)
        self._note_aside(record, extent, failures)
        if len(survivors) < record.k:
            raise Unavailable(f"{len(survivors)} of {record.k} fragments")
        rebuilt = await self._decode(record, survivors, index, span)
        return rebuilt[begin - first : begin - first + length]

    async def rebuild(
        self,
        record: VolumeRecord,
        offset: int,
        fragment_size: int,
        index: int,
        window: Window | None = None,
    ) -> memoryview:
        """The whole of one fragment (data or parity), computed from k others. For repair.

        Args:
            window: how many of them are read at once; None: all.

        Raises: Corrupt (fewer than k others are whole), Unavailable (some are merely away).
        """
        where = Extent(record.id, offset, fragment_size, 0, fragment_size)
        survivors, lost = await self._survivors(record, where, index, 0, fragment_size, window)
        return await self._rebuilt(record, where, index, fragment_size, survivors, lost)

    async def fragment(self, record: VolumeRecord, offset: int, fragment_size: int, index: int) -> memoryview:
        """The whole of one fragment as it is on its disk, verified. Raises: UNREADABLE."""
        where = Extent(record.id, offset, fragment_size, 0, fragment_size)
        return await self._read_fragment(record, where, index, 0, fragment_size)

    async def _rebuilt(
        self,
        record: VolumeRecord,
        extent: Extent,
        index: int,
        span: int,
        survivors: dict[int, memoryview],
        lost: Sequence[tuple[int, Exception]],
        own: Exception | None = None,
    ) -> memoryview:
        """A range of `span` bytes of fragment `index`, decoded from the same range of k others.

        Args:
            lost: which of the others could not be read; counted here.
            own: why the fragment itself could not be.

        Raises: Corrupt (fewer than k others are whole), Unavailable (some are merely away).
        """
        failures = [] if own is None else [own]
        for other, failure in lost:
            self._count(record, extent, other, failure)
            failures.append(failure)
        if len(survivors) < record.k:
            self.counters.failed_reads += 1
            words = f"volume {record.id} at {extent.offset}: {len(survivors)} of {record.k} fragments"
            if any(isinstance(each, Unavailable) for each in failures):
                raise Unavailable(words) from failures[-1]  # They may come back.
            raise Corrupt(words) from failures[-1]
        return await self._decode(record, survivors, index, span)

    async def _survivors(
        self,
        record: VolumeRecord,
        extent: Extent,
        index: int,
        first: int,
        span: int,
        window: Window | None = None,
    ) -> tuple[dict[int, memoryview], list[tuple[int, Exception]]]:
        """The same range of k other fragments, by index, or of fewer; and which could not be read."""
        # Data fragments first: fewer to compute. Slow disks last.
        slow = self.slowness.slow_among(record.disks) if self.slowness.ejected else ()
        others = [other for other in range(record.fragment_count) if other != index]
        others.sort(key=lambda other: record.disks[other] in slow)
        reads = [
            (other, partial(self._read_fragment, record, extent, other, first, span, window))
            for other in others
        ]
        at_once = None if window is None else window.size
        return await self._racing.some(record.k, reads, span, at_once=at_once)

    async def _decode(
        self, record: VolumeRecord, survivors: dict[int, memoryview], index: int, span: int
    ) -> memoryview:
        codec = self._codec(record.k, record.m)
        if span * record.k <= self._limits.inline_max:
            rebuilt = codec.rebuild(survivors, [index])
        else:
            rebuilt = await asyncio.get_running_loop().run_in_executor(
                self._threads, codec.rebuild, survivors, [index]
            )
        return memoryview(rebuilt[index])

    def _note_aside(
        self, record: VolumeRecord, extent: Extent, failures: Sequence[tuple[int, Exception]]
    ) -> None:
        """Damage that a read met and did not need to know of: for repair, if it is any."""
        damaged = [(index, failure) for index, failure in failures if isinstance(failure, DAMAGE)]
        if damaged and len(self._notes) < NOTES_MAX:
            note = asyncio.get_running_loop().create_task(self._note(record, extent, damaged))
            self._notes.add(note)
            note.add_done_callback(self._notes.discard)

    async def _note(
        self, record: VolumeRecord, extent: Extent, damaged: Sequence[tuple[int, Exception]]
    ) -> None:
        try:
            fresh = await self._ledger.get(record.id, fresh=True)
        except StoreError as unread:
            log.warning("damage not noted", extra={"volume": record.id, "failure": str(unread)})
            return
        if fresh.disks == record.disks:  # Otherwise it may only have moved.
            for index, failure in damaged:
                self._count(record, extent, index, failure)

    def _count(self, record: VolumeRecord, extent: Extent, index: int, failure: Exception) -> None:
        if isinstance(failure, Corrupt):
            self.counters.corrupt_fragments += 1
        else:
            self.counters.missing_fragments += 1
        # Damage only: a disk that is away or late is not damaged, and repair sees by itself that it is gone.
        if isinstance(failure, DAMAGE):
            words = str(failure) or type(failure).__name__
            self._hints.append(Hint(record.id, index, extent.offset, words))

    # Memory.

    def _share(self) -> int:
        """What one stream may hold in one piece: half its share, since one piece is read ahead."""
        return max(self._limits.piece_min, self._limits.memory // (2 * max(1, self._open_streams)))

    def _try_memory(self, wanted: int) -> int:
        """Bytes granted at once, at most `wanted`; 0 if there are none to spare. Never of the reserve."""
        cost = min(wanted, self._share())
        spare = self._limits.memory // self._limits.reserve_part
        return cost if self.memory.try_take(cost, spare=spare) else 0

    async def _take_memory(self, wanted: int) -> int:
        """Bytes granted, at most `wanted`; of the reserve the smallest piece. Raises: Overloaded."""
        cost = self._try_memory(wanted)
        if not cost:
            cost = min(wanted, self._limits.piece_floor)
            await self.memory.take(cost)
        return cost


def _power_of_two(size: int) -> int:
    """The least one that is not below."""
    return 1 << (size - 1).bit_length()


class _Pieces:
    """What of a list of extents is still to be read."""

    def __init__(self, extents: Sequence[Extent], begin: int, length: int) -> None:
        assert begin >= 0
        assert length >= 0
        self._extents = extents
        self._at = 0  # Index of the extent.
        self._inside = begin  # Bytes of it already passed.
        self.left = length
        while self._at < len(extents) and self._inside >= extents[self._at].length:
            self._inside -= extents[self._at].length
            self._at += 1
        assert length <= sum(extent.length for extent in extents[self._at :]) - self._inside

    @property
    def done(self) -> bool:
        return self.left == 0

    def next(self, size: int) -> list[tuple[Extent, int, int]]:
        """The next (extent, begin, length)s: `size` bytes at most, of one extent or of several small ones."""
        piece: list[tuple[Extent, int, int]] = []
        size = wanted = min(size, self.left)
        while size:
            extent = self._extents[self._at]
            rest = extent.length - self._inside
            take = min(size, rest)
            if take < rest:
                step = block_size(extent.fragment_size)
                position = (extent.begin + self._inside + take) % extent.fragment_size
                over = position % step  # Ends on a block, so that no block is verified twice.
                if over < take:
                    take -= over
            piece.append((extent, self._inside, take))
            self._inside += take
            size -= take
            self.left -= take
            if self._inside < extent.length:
                break
            self._at += 1
            self._inside = 0
            if 2 * size <= wanted:  # Rather a piece that ends with its stripe than a crumb of the next.
                break
        return piece


def _presumed_away(record: VolumeRecord, failures: Sequence[tuple[int, Exception]]) -> list[int]:
    """The numbers of the disks that were not read since their nodes had not answered."""
    return [record.disks[index] for index, failure in failures if isinstance(failure, NodeAway)]


def _blocks(extent: Extent, begin: int, length: int) -> tuple[int, int]:
    """(first, span) of the whole blocks that cover a range: each is read once, whatever is wanted of it."""
    step = block_size(extent.fragment_size)
    first = begin // step * step
    return first, min(-(-(begin + length) // step) * step, extent.fragment_size) - first
