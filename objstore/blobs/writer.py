"""Writing blobs: group commit on two lanes for each placement policy.

A *lane* is one open volume of this writer and the order of its appends; the lanes of a policy are made when
the first body comes for it. On the small lane, bodies that arrive while the last flush is syncing are packed
into the next stripe: one encode, k+m appends with sync in parallel, many acknowledgements, and never a timer.
On the bulk lane, streams send full stripes as they fill; nothing is synced until a stream ends, and one sync
serves every stream whose last append has ended.

What fails: a write waits for all k+m fragments. A disk that fails or is overdue is reported to the ledger,
and the volume takes no more appends. The stripe stands if at least `quorum` fragments do (an intent names
what is missing); otherwise it is written again in a fresh volume, while its bytes are in memory. A stream
whose unsynced stripes fall below the quorum at its end has nothing left to write again: WriteQuorumNotMet.

Sealing is late on purpose. A commit expects its volumes' records unchanged, so a volume that takes no more
appends is sealed only when no stream has bytes in it and `linger_s` has passed since the last Stored was
handed out. Whoever commits later gets Conflict, and writes again.

May not know: metadata (the ledger does), HTTP, what a home key means.

Concurrency: one event loop. State changes between awaits only in synchronous steps. Appends to a volume end
in the order of their offsets: each takes a turn when its offset is reserved. Encoding and checksums of more
than `inline_max` bytes run in two threads. A crash leaves orphans: bytes that no record points to, in
volumes that their writer's successor seals (upkeep/seal.py).
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from objstore.blobs.memory import MemoryBudget
from objstore.blobs.placement import Placement, outdone, place_volume
from objstore.blobs.stripes import (
    DIRECTORY_ROOM,
    FRAGMENT_SIZE_MAX,
    Packed,
    Piece,
    finish_in_place,
    pack,
)
from objstore.blobs.survey import survey
from objstore.blobs.topology import Layout, Policy, Topology
from objstore.blobs.volumes import FindDisks, Intent, Lane, Ledger, Stored, VolumeRecord, no_others
from objstore.clock import Clock, SystemClock
from objstore.codec.reed_solomon import Codec
from objstore.errors import (
    Conflict,
    Corrupt,
    DiskFailed,
    DiskFull,
    DiskMissing,
    NodeAway,
    Overloaded,
    StaleEpoch,
    StoreError,
    TooFewDisks,
    Unavailable,
    WeakerPromise,
    WriteQuorumNotMet,
)
from objstore.extents import EXTENT_DIGEST_MAX, Extent
from objstore.node.disk import Disk, DiskState
from objstore.node.fragments import FILE_HEADER_SIZE, Seal, file_header, record_buffers, record_size
from objstore.node.returning import ask_again
from objstore.node.slowness import Slowness

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
CodecFor = Callable[[int, int], Codec]  # (k, m) -> the codec of that profile
CrashPoint = Callable[[str], None]  # Called with a point's name; a test raises there.

KIB: Final = 1024
MIB: Final = 1024 * KIB
GATHERING_TURNS: Final = 2  # Turns of the loop before a batch of small bodies is closed.
ATTEMPTS_MAX: Final = 4  # Volumes tried for one stripe: each failure takes at least one disk out.
ENTRY_ROOM: Final = 48  # Bytes of a directory entry beside home and about, and the body's padding.
FULL_DISK_REST_S: Final = 10.0  # A disk that said "full", or did not answer, is not asked again for so long.
IN_FLIGHT_MAX: Final = 2  # Stripes of one stream on their way to the disks.
POLICIES_MAX: Final = 64  # With lanes at once: two open volumes each, which are 2 * (k+m) files.


class WriterLimits(NamedTuple):
    """Every bound of a writer. The defaults suit one worker of a machine with some hundred MB to spare."""

    memory: int = 96 * MIB  # Bytes of stripes (payload and parity) of all streams together.
    queue_bytes: int = 64 * MIB  # Bytes of small bodies that wait; past it Overloaded.
    queue_count: int = 16_384  # Small bodies that wait.
    stripe_bodies: int = 512  # In one small stripe: the commit behind it stays one message.
    stripe_payload: int = 1 * MIB - 64 * KIB  # Bytes of a small stripe: fits one fragment even at k = 1.
    volume_size: int = 256 * MIB  # Bytes of a fragment file before the volume is full.
    buffer_min: int = 256 * KIB  # Payload of a stream's stripe when many streams share the memory.
    inline_max: int = 384 * KIB  # Bytes encoded and summed on the event loop: 0.2 ms. A hand-off costs more.
    disk_free_min: int = 64 * MIB  # A disk with less takes no new volume. Mostly it says FULL long before.
    deadline_s: float = 30.0  # Of one call of one disk; a backstop: disks have shorter limits of their own.
    memory_wait_s: float = 60.0  # A stream that gets no buffer for so long ends as Overloaded.
    pressure_s: float = 2.0  # Age at which a partly filled buffer is flushed while others wait.
    linger_s: float = 30.0  # Between the last Stored and the seal: a commit must be done by then.
    idle_s: float = 3_600.0  # An open volume without appends is sealed.
    outdone_s: float = 10.0  # Between looks whether a new volume would promise more than an open one,
    outdone_again_s: float = 60.0  # and after one that ended some.
    extend_s: float = 1.0  # Least time between two notes of a volume's length.
    tick_s: float = 0.25  # Of the task that does what is due.


DEFAULT_LIMITS: Final = WriterLimits()


class WriterCounters(msgspec.Struct):
    """For the metrics; only ever counted up, except the last."""

    stripes: int = 0
    bodies: int = 0
    payload_bytes: int = 0
    degraded_stripes: int = 0  # Acknowledged on fewer than k+m fragments.
    rewritten_stripes: int = 0  # Written again elsewhere.
    volumes_opened: int = 0
    syncs: int = 0
    pressure_flushes: int = 0
    queue_bytes: int = 0


class _Waiting(NamedTuple):
    piece: Piece
    size: int  # Bytes it takes in a stripe, at most.
    future: "asyncio.Future[Stored]"


class _Volume:
    """A volume of this writer, from its creation until it is sealed."""

    __slots__ = (
        "broken_at",
        "end",
        "failed",
        "fence",
        "history",
        "lane",
        "lanes",
        "noted",
        "noted_at",
        "open",
        "pins",
        "record",
        "reserved",
        "syncing",
        "tail",
        "turns",
        "used",
    )

    def __init__(self, record: VolumeRecord, fence: bytes, lanes: "_Lanes", lane: Lane, now: float) -> None:
        self.record = record
        self.fence = fence
        self.lanes = lanes
        self.lane = lane
        self.open = True  # Takes appends. Never becomes true again.
        self.end = 0  # Bytes of each fragment file up to the last append that stands.
        self.reserved = FILE_HEADER_SIZE  # The next append's offset.
        self.broken_at: int | None = None  # Appends reserved from here on go elsewhere: no holes.
        self.failed: set[int] = set()  # Indexes of fragment files that an append or sync failed on.
        self.history: list[tuple[int, frozenset[int]]] = []  # (synced up to, failed then), ascending.
        self.syncing: asyncio.Task[None] | None = None
        self.tail: asyncio.Future[None] | None = None  # Done when the last reserved append has ended.
        self.turns = 0  # Appends reserved and not ended.
        self.pins = 0  # Streams with stripes here that have not ended.
        self.used = now
        self.noted = 0  # Length last told to the ledger.
        self.noted_at = now

    def synced(self, end: int) -> frozenset[int] | None:
        """The fragment files missing from the sync that covered `end`; None: not synced that far."""
        for covered, failed in self.history:
            if covered >= end:
                return failed
        return None

    def note_sync(self, covered: int) -> None:
        failed = frozenset(self.failed)
        if self.history and self.history[-1][1] == failed:
            self.history.pop()
        self.history.append((covered, failed))


class _Lanes:
    """The two lanes of one placement policy, and the small bodies that wait for the first of them."""

    __slots__ = ("current", "flusher", "k", "m", "opening", "policy", "queue")

    def __init__(self, policy: str, k: int, m: int) -> None:
        self.policy = policy
        self.k = k  # The policy's code, once a volume was opened: before that the store's.
        self.m = m
        self.queue: deque[_Waiting] = deque()
        self.flusher: asyncio.Task[None] | None = None
        self.current: dict[Lane, _Volume] = {}
        self.opening = {lane: asyncio.Lock() for lane in Lane}

    @property
    def is_idle(self) -> bool:
        busy = any(volume.turns or volume.pins for volume in self.current.values())
        opening = any(lock.locked() for lock in self.opening.values())
        return not (busy or opening or self.queue or self.flusher is not None)


class _Buffer:
    """A stripe's memory: `capacity` bytes of body and room for the directory and padding."""

    __slots__ = ("capacity", "cost", "data", "read", "size", "taken")

    def __init__(self, data: bytearray, cost: int, taken: float) -> None:
        self.data = data
        self.size = len(data)
        self.capacity = len(data) - DIRECTORY_ROOM
        self.cost = cost  # Bytes charged to the writer's memory: payload and parity.
        self.taken = taken
        self.read: asyncio.Future[None] | None = None  # Until it is done others read the bytes, too.


class BlobStream:
    """One large body on the bulk lane: full stripes as it arrives, synced once at the end.

    Not for several tasks. After any failure only `abort` makes sense; it may be called at any time,
    more than once, and after `finish`.
    """

    def __init__(self, writer: "BlobWriter", lanes: _Lanes, home: bytes, blob_offset: int, blob: int) -> None:
        self._writer = writer
        self._lanes = lanes
        self._home = home
        self._blob = blob
        self._offset = blob_offset  # Of the next byte to arrive.
        self._begin = blob_offset  # Of the buffer's first byte.
        self._buffer: _Buffer | None = None
        self._filled = 0
        self._sent: list[asyncio.Task[list[Extent]]] = []
        self._landed: dict[int, list[Extent]] = {}  # By number of the stripe.
        self._count = 0  # Stripes sent.
        self._touched: dict[int, tuple[_Volume, int]] = {}  # By volume id, with our last stripe's end.
        self._failure: BaseException | None = None
        self._ended = False
        self._attempts = 0  # Stripes that had to be written again.
        self.hurry: Callable[[], None] | None = None  # How to ask for the memory that `room` gave out.

    async def write(self, chunk: Buffer) -> None:
        """Take the bytes; waits for stripe budget, not for the disk.

        Raises: Unavailable (a stripe could not be written, or no memory within the limit).
        """
        assert not self._ended, "write after the stream's end"
        view = chunk if type(chunk) is memoryview else memoryview(chunk)
        done = 0
        total = len(view)
        while done < total:
            self._check()
            buffer = self._buffer
            # A full buffer is sent when the next byte arrives: the last stripe then has `about`.
            if buffer is not None and self._filled == buffer.capacity:
                self._send(b"")
                continue
            if buffer is None:
                buffer = await self._next_buffer()
            take = min(total - done, buffer.capacity - self._filled)
            buffer.data[self._filled : self._filled + take] = view[done : done + take]
            self._filled += take
            self._offset += take
            done += take

    # Bytes may also be received in the stream's own memory (objects/values.py `Sink`).

    @property
    def is_full(self) -> bool:
        return self._buffer is not None and self._filled == self._buffer.capacity

    def room(self) -> memoryview | None:
        buffer = self._buffer
        if buffer is None or self._filled == buffer.capacity:
            return None
        return memoryview(buffer.data)[self._filled : buffer.capacity]

    def took(self, size: int) -> None:
        assert self._buffer is not None
        assert 0 <= size <= self._buffer.capacity - self._filled
        self._filled += size
        self._offset += size

    async def turn(self, read: "asyncio.Future[None] | None") -> None:
        """Raises: as `write` does."""
        assert self.is_full
        self._check()
        self._send(b"", read)
        await self._next_buffer()

    async def flush(self, read: "asyncio.Future[None] | None") -> None:
        """Raises: as `write` does."""
        self._check()
        if self._filled:
            self._send(b"", read)
        elif self._buffer is not None:
            self._writer._give_back(self._buffer)
            self._buffer = None

    async def _next_buffer(self) -> _Buffer:
        """Raises: Unavailable, Overloaded."""
        while len(self._sent) >= IN_FLIGHT_MAX:
            await asyncio.wait(self._sent, return_when=asyncio.FIRST_COMPLETED)
        self._check()
        buffer = await self._writer._take_buffer(self._lanes)
        if self not in self._writer._streams:  # Aborted meanwhile.
            self._writer._give_back(buffer)
            raise Overloaded("the stream was aborted")
        self._buffer = buffer
        self._filled = 0
        self._begin = self._offset
        return buffer

    async def finish(self, about: bytes) -> Stored:
        """Write what is left (with `about` in the last stripe's directory) and make all of it durable.

        Raises: WriteQuorumNotMet, TooFewDisks, Overloaded, MetaUnavailable: nothing may be published.
        """
        assert not self._ended, "finish after the stream's end"
        try:
            alone: Stored | None = None
            if self._buffer is not None and len(self._home) + len(about) + ENTRY_ROOM <= DIRECTORY_ROOM:
                self._send(about)
            else:
                # The last bytes went early under pressure, or there are none, or `about` is too long for
                # the room behind them: it goes into a directory of its own.
                if self._buffer is not None:
                    self._send(b"")
                if about:
                    alone = await self._writer._put_piece(
                        Piece(b"", self._home, about, self._offset, self._blob), self._lanes
                    )
            while self._sent:
                await asyncio.wait(self._sent)
            self._check()
            intents: list[Intent] = []
            fences: dict[int, bytes] = {}
            for volume, end in self._touched.values():
                intents += await self._writer._make_durable(volume, end)
                fences[volume.record.id] = volume.fence
            extents = [extent for number in range(self._count) for extent in self._landed[number]]
            if alone is not None:
                intents += alone.intents
            return Stored(extents, fences, intents)
        finally:
            self._end()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """Give the budget back. What was written becomes an orphan."""
        self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._buffer is not None:
            self._writer._give_back(self._buffer)
            self._buffer = None
        self._writer._stream_ended(self)

    def _send(self, about: bytes, read: "asyncio.Future[None] | None" = None) -> None:
        """Hand the buffer to the lane, which gives it back when `read`, too, is done."""
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        buffer.read = read
        task = asyncio.get_running_loop().create_task(
            self._writer._write_stripe(self, buffer, self._filled, self._home, self._begin, about)
        )
        number = self._count
        self._count += 1
        self._begin = self._offset
        self._filled = 0
        self._sent.append(task)

        def landed(task: "asyncio.Task[list[Extent]]") -> None:
            self._sent.remove(task)
            failure = None if task.cancelled() else task.exception()
            if task.cancelled():
                self._failure = self._failure or Overloaded("the writer was closed")
            elif failure is not None:
                self._failure = self._failure or failure
            else:
                self._landed[number] = task.result()

        task.add_done_callback(landed)

    def _touch(self, volume: _Volume, end: int) -> None:
        if self._ended:
            return  # Aborted: nobody will publish these bytes, and the volume need not wait for them.
        known = self._touched.get(volume.record.id)
        if known is None:
            volume.pins += 1
        elif known[1] > end:
            return
        self._touched[volume.record.id] = (volume, end)


class BlobWriter:
    """All writes of one process, under any number of placement policies.

    Args:
        disks: by number; those that are missing from it cannot be placed on.
        k, m: the code of policies without one of their own. With fewer usable disks, the same m over the
            largest k that fits.
        writer: 16 bytes, new for each incarnation of a process (ids.random_id).
        cluster, secret: what the checksums are bound to, from the identity file.
        codec: (k, m) -> codec (codec.backend.choose().codec).
        find_disks: called when metadata names usable disks that are not in `disks`: they came just now.
        slowness: which disks are slow: new volumes do without them, if others promise no less.
        chance: for placement: numbers in [0, 1).
        crash_point: called with "volume-recorded", "volume-created", "stripe-encoded", "stripe-appended",
            "stripe-synced", "volume-sealed"; a crash test raises there.
    """

    def __init__(
        self,
        *,
        disks: Mapping[int, Disk],
        ledger: Ledger,
        k: int,
        m: int,
        writer: bytes,
        cluster: bytes,
        secret: int,
        codec: CodecFor,
        clock: Clock | None = None,
        limits: WriterLimits = DEFAULT_LIMITS,
        find_disks: FindDisks = no_others,
        slowness: Slowness | None = None,
        chance: Callable[[], float] = random.random,
        crash_point: CrashPoint = lambda name: None,
    ) -> None:
        assert k >= 1
        assert m >= 1
        assert len(writer) == len(cluster) == 16
        self.counters = WriterCounters()
        self.memory = MemoryBudget(limits.memory, wait_s=limits.memory_wait_s, purpose="a stripe")
        self._disks = disks
        self._ledger = ledger
        self._k = k
        self._m = m
        self._writer = writer
        self._seal = Seal(cluster, secret)
        self._codec = codec
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._limits = limits
        self._find_disks = find_disks
        self._slowness = slowness or Slowness()
        self._chance = chance
        self._crash_point = crash_point
        self._closed = False  # Takes nothing more.
        self._stopped = False  # And has flushed all that it took: no volume is opened any more.
        self._lanes: dict[str, _Lanes] = {"": _Lanes("", k, m)}  # By name of the policy.
        self._closing: list[_Volume] = []  # Take no more appends, not sealed yet.
        self._full: dict[int, float] = {}  # Disk number -> until when it is not asked.
        self._away: dict[int, float] = {}  # The same of those whose nodes did not answer.
        self._asked_at = 0.0  # When those were last asked because there were too few others,
        self._reached: set[int] = set()  # and which of them could be reached.
        self._outdone_at = 0.0  # When it is looked at next whether new volumes would promise more.
        self._asking = asyncio.Lock()
        self._janitor: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="stripes")
        # Bulk lanes.
        self._streams: set[BlobStream] = set()
        self._stream_count = 0
        self._pool: dict[int, list[bytearray]] = {}
        self._pooled = 0

    # The interface.

    async def put(
        self,
        body: Buffer,
        home: bytes,
        about: bytes,
        *,
        policy: str = "",
        blob_offset: int = 0,
        blob: int = 0,
    ) -> Stored:
        """Pack one small body into the next stripe; durable when this returns.

        The commit must follow within `limits.linger_s`, else it may fail with Conflict: put again.
        The body must not change until then. An empty one is allowed: no extent, but salvage finds `about`.

        Args:
            home: the metadata key under which the extent will be recorded.
            about: the record without extents, for salvage.
            policy: the name of the placement policy; empty: the default one.
            blob_offset, blob: where the body lies in which stream, if it is a piece of one (compaction).

        Raises: Overloaded (queue full), TooFewDisks, WriteQuorumNotMet, MetaUnavailable.
        """
        lanes = self._lanes.get(policy) or self._new_lanes(policy)
        return await self._put_piece(Piece(body, home, about, blob_offset, blob), lanes)

    def stream(self, home: bytes, *, policy: str = "", blob_offset: int = 0, blob: int = 0) -> BlobStream:
        """Begin a large body; for compaction, the piece of the stream `blob` that starts at `blob_offset`.

        Always `finish` or `abort` it. Raises: Overloaded if the writer is closed.
        """
        if self._closed:
            raise Overloaded("the writer is closed")
        if not blob:
            self._stream_count += 1
            # The writer's id is random: no other stream has this number.
            blob = (int.from_bytes(self._writer[:8], "big") + self._stream_count) % (1 << 64) or 1
        lanes = self._lanes.get(policy) or self._new_lanes(policy)
        stream = BlobStream(self, lanes, home, blob_offset, blob)
        self._streams.add(stream)
        return stream

    async def recheck(self, volumes: Iterable[int]) -> None:
        """A commit found that these are no longer this writer's open volumes: leave those that are not.

        Call it on a Conflict at a fence, before the bytes are written again. Raises: MetaUnavailable.
        """
        for volume in self._open_volumes():
            if volume.record.id in volumes:
                await self._leave_if_lost(volume)

    async def _leave_if_lost(self, volume: _Volume) -> None:
        try:
            record = await self._ledger.get(volume.record.id, fresh=True)
        except Corrupt:
            record = None
        if record != volume.record:
            log.warning("volume %d was sealed by another process", volume.record.id)
            self._break(volume, volume.end)

    async def close(self) -> None:
        """Flush what waits, seal the open volumes. Commits of what was stored must have ended."""
        self._closed = True
        for stream in list(self._streams):
            stream.abort()
        flushers = [lanes.flusher for lanes in self._lanes.values() if lanes.flusher is not None]
        if flushers:
            await asyncio.wait(flushers, timeout=2 * self._limits.deadline_s)
        self._stopped = True
        if self._janitor is not None:
            self._janitor.cancel()
            await asyncio.wait([self._janitor], timeout=self._limits.deadline_s)
        for lanes in list(self._lanes.values()):
            for lane in Lane:
                async with lanes.opening[lane]:  # One that is just being made is sealed, too.
                    volume = lanes.current.pop(lane, None)
                if volume is not None:
                    volume.open = False
                    self._closing.append(volume)
        for volume in list(self._closing):
            if volume.tail is not None:
                await asyncio.wait([volume.tail], timeout=2 * self._limits.deadline_s)
            if volume.syncing is not None:
                await asyncio.wait([volume.syncing], timeout=self._limits.deadline_s)
            try:
                await self._seal_volume(volume)
            except StoreError as failure:  # The upkeep seals it, as it does a dead writer's.
                log.warning("volume %d was not sealed at the end: %s", volume.record.id, failure)
        self._threads.shutdown(wait=False)

    def _new_lanes(self, policy: str) -> _Lanes:
        """Raises: Overloaded: too many policies are written to at once."""
        if len(self._lanes) >= POLICIES_MAX:
            streaming = {stream._lanes.policy for stream in self._streams} | {""}
            others = (lanes for name, lanes in self._lanes.items() if name not in streaming)
            idle = next((lanes for lanes in others if lanes.is_idle), None)
            if idle is None:
                raise Overloaded(f"{POLICIES_MAX} placement policies are written to at once")
            for volume in list(idle.current.values()):
                self._end_volume(volume)
            del self._lanes[idle.policy]
        lanes = self._lanes[policy] = _Lanes(policy, self._k, self._m)
        return lanes

    def _open_volumes(self) -> list[_Volume]:
        return [volume for lanes in self._lanes.values() for volume in lanes.current.values()]

    # Small lanes.

    def _put_piece(self, piece: Piece, lanes: _Lanes) -> "asyncio.Future[Stored]":
        """Queue a piece. The result is a future, which saves a frame per body."""
        size = len(piece.body) + len(piece.home) + len(piece.about) + ENTRY_ROOM
        counters = self.counters
        limits = self._limits
        if self._closed:
            raise Overloaded("the writer is closed")
        assert size <= FRAGMENT_SIZE_MAX, "a body this long is a stream"
        queue = lanes.queue
        if counters.queue_bytes + size > limits.queue_bytes or len(queue) >= limits.queue_count:
            raise Overloaded("the queue of small bodies is full")
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        queue.append(_Waiting(piece, size, future))
        counters.queue_bytes += size
        if lanes.flusher is None:
            lanes.flusher = asyncio.get_running_loop().create_task(self._flush_queue(lanes))
        return future

    async def _flush_queue(self, lanes: _Lanes) -> None:
        """One flush at a time until nothing waits. Never raises: each body's future has its outcome."""
        try:
            while lanes.queue:
                # What the loop has received already comes along: a larger batch costs each of it less.
                for _ in range(GATHERING_TURNS):
                    await asyncio.sleep(0)
                batch = self._take_batch(lanes.queue)
                if not batch:
                    continue
                try:
                    await self._flush(lanes, batch)
                except BaseException as failure:
                    outcome = failure if isinstance(failure, Exception) else Overloaded("the writer stopped")
                    for waiting in batch:
                        if not waiting.future.done():
                            waiting.future.set_exception(outcome)
                    if not isinstance(failure, StoreError):
                        log.exception("a flush of %d bodies failed", len(batch))
                    if not isinstance(failure, Exception):
                        raise
        finally:
            lanes.flusher = None

    def _take_batch(self, queue: deque[_Waiting]) -> list[_Waiting]:
        limits = self._limits
        batch: list[_Waiting] = []
        size = 0
        while queue and len(batch) < limits.stripe_bodies:
            waiting = queue[0]
            if batch and size + waiting.size > limits.stripe_payload:
                break
            queue.popleft()
            self.counters.queue_bytes -= waiting.size
            if waiting.future.done():  # Cancelled: the client has gone.
                continue
            batch.append(waiting)
            size += waiting.size
        return batch

    async def _flush(self, lanes: _Lanes, batch: list[_Waiting]) -> None:
        """Write one stripe and resolve its bodies' futures in one go."""
        pieces = [waiting.piece for waiting in batch]
        durable = 0
        for _ in range(ATTEMPTS_MAX):
            volume = await self._volume(lanes, Lane.SMALL)
            record = volume.record
            packed = pack(pieces, record.k)
            size = record_size(packed.fragment_size)
            offset = self._reserve(volume, size)
            try:
                records = await self._build(volume, offset, packed, packed.padded)
                self._crash_point("stripe-encoded")
                failures = await self._append(volume, offset, records, sync=True)
            except BaseException:
                self._end_turn(volume, broken_at=offset)
                raise
            durable = record.fragment_count - len(failures)
            stands = durable >= self._quorum(record)
            if stands:
                volume.end = offset + size
            volume.failed.update(failures)
            self._end_turn(volume, broken_at=volume.end if failures else None)
            if failures:
                await self._report(record, failures)
            if not stands:
                self.counters.rewritten_stripes += 1
                continue
            self._crash_point("stripe-synced")
            if failures:
                self.counters.degraded_stripes += 1
            intents = [Intent(record.id, index) for index in sorted(failures)]
            self._resolve(batch, packed, volume, offset, intents)
            return
        raise WriteQuorumNotMet(durable=durable, quorum=self._quorum(record))

    def _resolve(
        self, batch: list[_Waiting], packed: Packed, volume: _Volume, offset: int, intents: list[Intent]
    ) -> None:
        identity = volume.record.id
        fences = {identity: volume.fence}  # One dict for all: whoever changed it would change the others'.
        fragment_size = packed.fragment_size
        total = 0
        for waiting, begin in zip(batch, packed.begins, strict=True):
            if waiting.future.done():
                continue
            body = waiting.piece.body
            length = len(body)
            if not length:
                waiting.future.set_result(Stored([], {}, intents))
                continue
            total += length
            digest = xxh3_64_intdigest(body) if length <= EXTENT_DIGEST_MAX else 0
            extent = Extent(identity, offset, fragment_size, begin, length, digest)
            waiting.future.set_result(Stored([extent], fences, intents))
        counters = self.counters
        counters.stripes += 1
        counters.bodies += len(batch)
        counters.payload_bytes += total
        volume.used = self._clock.monotonic()

    # Bulk lanes.

    async def _write_stripe(
        self, stream: BlobStream, buffer: _Buffer, filled: int, home: bytes, blob_offset: int, about: bytes
    ) -> list[Extent]:
        """Write one buffer as a stripe (or as several, if the code has become narrower). Not synced.

        Gives the buffer back in every case, except that a failed append may still be reading it.
        """
        reusable = True
        try:
            data: bytearray | memoryview = buffer.data
            extents: list[Extent] = []
            done = 0
            while done < filled:
                volume = await self._volume(stream._lanes, Lane.BULK)
                k = volume.record.k
                # Stripes of this volume hold k MiB at most; a buffer made for a wider code is cut.
                take = min(filled - done, k * FRAGMENT_SIZE_MAX - DIRECTORY_ROOM)
                whole = done == 0 and take == filled
                room = buffer.data if whole else bytearray(take + DIRECTORY_ROOM + 8 * k)
                if not whole:
                    room[:take] = data[done : done + take]
                last = done + take == filled
                packed = finish_in_place(
                    room,
                    take,
                    k,
                    home=home,
                    blob_offset=blob_offset + done,
                    about=about if last else b"",
                    blob=stream._blob,
                )
                assert packed is not None, "the buffer has no room for its directory"
                extent, clean = await self._append_bulk(stream, volume, packed, room, take)
                reusable = reusable and clean
                if extent is not None:
                    extents.append(extent)
                    done += take
            return extents
        finally:
            self._give_back(buffer, reuse=reusable)

    async def _append_bulk(
        self, stream: BlobStream, volume: _Volume, packed: Packed, room: bytearray, length: int
    ) -> tuple[Extent | None, bool]:
        """One stripe into this volume. (None, ..): it does not stand, write it elsewhere.

        Raises: WriteQuorumNotMet when stripe after stripe of this stream does not stand.
        """
        record = volume.record
        size = record_size(packed.fragment_size)
        offset = self._reserve(volume, size)
        before = volume.tail
        mine = self._turn(volume)
        broken_at: int | None = offset
        failures: dict[int, BaseException] = {}
        try:
            padded = memoryview(room)[: record.k * packed.fragment_size]
            records = await self._build(volume, offset, packed, padded)
            self._crash_point("stripe-encoded")
            if before is not None:
                await asyncio.wait([before])  # Each append has a deadline, so this ends.
            if volume.broken_at is not None and offset >= volume.broken_at:
                broken_at = None  # It ended before our offset: nothing was written here.
                self.counters.rewritten_stripes += 1
                self._check_attempts(stream, record)
                return None, True
            failures = await self._append(volume, offset, records, sync=False)
            stands = record.fragment_count - len(failures) >= self._quorum(record)
            volume.failed.update(failures)
            if not failures:
                broken_at = None
            elif stands:
                broken_at = offset + size
            if stands:
                volume.end = offset + size
                volume.used = self._clock.monotonic()
                stream._touch(volume, volume.end)
        finally:
            self._end_turn(volume, broken_at=broken_at)
            mine.set_result(None)
        if failures:
            await self._report(record, failures)
        if not stands:
            self.counters.rewritten_stripes += 1
            self._check_attempts(stream, record)
            return None, False
        self._crash_point("stripe-appended")
        counters = self.counters
        counters.stripes += 1
        counters.payload_bytes += length
        if failures:
            counters.degraded_stripes += 1
        digest = 0
        if length <= EXTENT_DIGEST_MAX:
            digest = xxh3_64_intdigest(memoryview(room)[:length])
        return Extent(record.id, offset, packed.fragment_size, 0, length, digest), not failures

    async def _make_durable(self, volume: _Volume, end: int) -> list[Intent]:
        """Sync the volume's files up to `end`, together with whoever else waits for that.

        Raises: WriteQuorumNotMet if too few fragment files took the sync.
        """
        while (failed := volume.synced(end)) is None:
            if volume.syncing is None:
                volume.syncing = asyncio.get_running_loop().create_task(self._sync(volume))
            await asyncio.wait([volume.syncing])  # Ends: every disk has a deadline.
        record = volume.record
        durable = record.fragment_count - len(failed)
        if durable < self._quorum(record):
            raise WriteQuorumNotMet(durable=durable, quorum=self._quorum(record))
        self._crash_point("stripe-synced")
        return [Intent(record.id, index) for index in sorted(failed)]

    async def _sync(self, volume: _Volume) -> None:
        covered = volume.end  # Appends that ended before the sync begins are in it.
        record = volume.record
        failures: dict[int, BaseException] = {}
        try:
            indexes = [index for index in range(record.fragment_count) if index not in volume.failed]
            failures = await self._each(record, indexes, lambda disk, index: disk.sync(record.id, index))
            volume.failed.update(failures)
        except BaseException:
            volume.failed.update(range(record.fragment_count))  # A bug: nothing may count as synced.
            raise
        finally:
            if volume.failed:
                self._break(volume, volume.end)
            volume.note_sync(covered)
            volume.syncing = None
        self.counters.syncs += 1
        if failures:
            await self._report(record, failures)

    def _check_attempts(self, stream: BlobStream, record: VolumeRecord) -> None:
        stream._attempts += 1
        if stream._attempts >= ATTEMPTS_MAX * IN_FLIGHT_MAX:
            raise WriteQuorumNotMet(durable=0, quorum=self._quorum(record))

    # Memory of the bulk lanes.

    def _payload_size(self, k: int, m: int) -> int:
        """Bytes of a stripe's payload for one stream: its share of the memory, a power of two."""
        share = self._limits.memory // max(1, len(self._streams)) * k // (k + m)
        size = k * FRAGMENT_SIZE_MAX
        while size > share and size // 2 >= self._limits.buffer_min:
            size //= 2
        return size

    async def _take_buffer(self, lanes: _Lanes) -> _Buffer:
        """Memory for one stripe, in the order of asking. Raises: Overloaded after `memory_wait_s`."""
        size = self._payload_size(lanes.k, lanes.m)
        cost = size * (lanes.k + lanes.m) // lanes.k
        self._start_janitor()
        await self.memory.take(cost)
        free = self._pool.get(size)
        if free:
            data = free.pop()
            self._pooled -= size
        else:
            self._shrink_pool(size)
            data = bytearray(size)
        return _Buffer(data, cost, self._clock.monotonic())

    def _give_back(self, buffer: _Buffer, *, reuse: bool = True) -> None:
        read, buffer.read = buffer.read, None
        if read is not None and not read.done():
            read.add_done_callback(lambda _: self._give_back(buffer, reuse=reuse))
            return
        if reuse and not self._closed:
            # First, so that whoever is granted this memory finds the buffer still there.
            self._pool.setdefault(buffer.size, []).append(buffer.data)
            self._pooled += buffer.size
            self._shrink_pool(-buffer.cost)
        self.memory.give_back(buffer.cost)

    def _shrink_pool(self, coming: int) -> None:
        """Free memory kept for reuse, largest first, until all together stays within the limit."""
        while self._pooled and self._pooled + coming + self.memory.used > self._limits.memory:
            size = max(size for size, free in self._pool.items() if free)
            self._pool[size].pop()
            self._pooled -= size

    def _stream_ended(self, stream: BlobStream) -> None:
        self._streams.discard(stream)
        now = self._clock.monotonic()
        for volume, _ in stream._touched.values():
            volume.pins -= 1
            volume.used = now

    # Volumes.

    async def _volume(self, lanes: _Lanes, lane: Lane) -> _Volume:
        """The lane's open volume, made when there is none.

        Raises: TooFewDisks, WeakerPromise, MetaUnavailable.
        """
        volume = lanes.current.get(lane)
        if volume is not None and volume.open:
            if volume.reserved < self._limits.volume_size:
                return volume
            self._end_volume(volume)
        since = self._clock.monotonic()
        async with lanes.opening[lane]:
            if self._stopped:
                raise Overloaded("the writer is closed")
            volume = lanes.current.get(lane)
            if volume is None or not volume.open:
                volume = await self._open(lanes, lane, since)
                lanes.current[lane] = volume
                self._start_janitor()
            return volume

    async def _open(self, lanes: _Lanes, lane: Lane, since: float) -> _Volume:
        for _ in range(ATTEMPTS_MAX):
            chosen = await self._place(lanes, since)
            record, fence = await self._ledger.create(
                k=chosen.k,
                m=lanes.m,
                disks=chosen.disks,
                lane=lane,
                writer=self._writer,
                policy=lanes.policy,
            )
            self._crash_point("volume-recorded")
            volume = _Volume(record, fence, lanes, lane, self._clock.monotonic())
            failures = await self._each(
                record,
                range(record.fragment_count),
                lambda disk, index, volume_id=record.id: disk.create(volume_id, index),  # type: ignore[misc]
            )
            self._crash_point("volume-created")
            if not failures:
                self.counters.volumes_opened += 1
                return volume
            volume.open = False
            volume.failed.update(failures)
            volume.used -= self._limits.linger_s  # Nothing was stored in it: sealed at the next tick.
            self._closing.append(volume)
            self._start_janitor()
            await self._report(record, failures)
        raise TooFewDisks(wanted=1 + lanes.m, usable=0)

    async def _place(self, lanes: _Lanes, since: float) -> Placement:
        """Where the next volume is to lie; before that is nowhere, disks that are presumed away are asked.

        Args:
            since: when the volume was first wanted.

        Raises: TooFewDisks, WeakerPromise, MetaUnavailable.
        """
        layout, topology = await self._survey()
        try:
            return self._placed(layout, topology, lanes)
        except (TooFewDisks, WeakerPromise):
            reached = await self._ask_again(layout, since)
        layout, topology = await self._survey(reached)
        return self._placed(layout, topology, lanes)

    async def _ask_again(self, layout: Layout, since: float) -> set[int]:
        """Disks that get no files because their nodes did not answer are asked, if none was since then:
        whoever had to wait for one question does not ask another. Returns those that can be reached."""
        async with self._asking:
            if self._asked_at <= since:
                self._asked_at = self._clock.monotonic()
                noted = {number for number, spot in layout.spots.items() if spot.away}
                self._reached = await ask_again(
                    disk
                    for number, disk in self._disks.items()
                    if number in noted or number in self._away or disk.state is DiskState.SUSPECT
                )
                for number in self._reached:
                    self._away.pop(number, None)
            return self._reached

    def _placed(self, layout: Layout, topology: Topology, lanes: _Lanes) -> Placement:
        """Raises: TooFewDisks, WeakerPromise."""
        policy = layout.policy(lanes.policy)
        lanes.k, lanes.m = policy.code(self._k, self._m)
        chosen = place_volume(topology, policy, k=lanes.k, m=lanes.m, chance=self._chance)
        return self._without_slow(topology, policy, chosen, lanes)

    def _without_slow(
        self, topology: Topology, policy: Policy, chosen: Placement, lanes: _Lanes
    ) -> Placement:
        """The same on other disks, if some of these are slow and others promise no less."""
        if self._slowness.slow.isdisjoint(chosen.disks):
            return chosen
        try:
            other = place_volume(self._quick(topology), policy, k=lanes.k, m=lanes.m, chance=self._chance)
        except Unavailable:
            return chosen
        return other if other._replace(disks=chosen.disks) == chosen else chosen

    def _quick(self, topology: Topology) -> Topology:
        """The same without the disks that are slow."""
        slow, spots = self._slowness.slow, topology.spots.values()
        return Topology(spot._replace(usable=spot.usable and spot.number not in slow) for spot in spots)

    async def _survey(self, reached: Collection[int] = ()) -> tuple[Layout, Topology]:
        """The layout in force, and every disk as it is now: those that rest take nothing.

        Args:
            reached: disks that have just answered, also where their machines are noted as away.
        """
        layout = await self._ledger.layout()
        if any(spot.takes and number not in self._disks for number, spot in layout.spots.items()):
            await self._find_disks()
        now = self._clock.monotonic()
        topology = await survey(
            layout,
            self._disks,
            takes=lambda number: max(self._full.get(number, 0.0), self._away.get(number, 0.0)) <= now,
            reached=reached,
            free_min=self._limits.disk_free_min,
            deadline_s=self._limits.deadline_s,
        )
        return layout, topology

    def _quorum(self, record: VolumeRecord) -> int:
        """Fragments that must be durable before an acknowledgement: with one (m >= 4: two) to spare."""
        return record.k + (2 if record.m >= 4 else 1)

    def _reserve(self, volume: _Volume, size: int) -> int:
        assert volume.open
        offset = volume.reserved
        volume.reserved += size
        volume.turns += 1
        return offset

    def _turn(self, volume: _Volume) -> "asyncio.Future[None]":
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        volume.tail = mine
        return mine

    def _end_turn(self, volume: _Volume, *, broken_at: int | None) -> None:
        volume.turns -= 1
        if broken_at is not None:
            self._break(volume, broken_at)

    def _break(self, volume: _Volume, at: int) -> None:
        """A disk failed: what is reserved from `at` on is written elsewhere, so that there are no holes."""
        if volume.broken_at is None or at < volume.broken_at:
            volume.broken_at = at
        self._end_volume(volume)

    def _end_volume(self, volume: _Volume) -> None:
        """No more appends: full, idle, or a disk failed. Sealed later."""
        if not volume.open:
            return
        volume.open = False
        if volume.lanes.current.get(volume.lane) is volume:
            del volume.lanes.current[volume.lane]
        self._closing.append(volume)

    def leave(self, disks: Collection[int]) -> None:
        """End every open volume that has a fragment file on one of these disks, as if it were full."""
        for volume in self._open_volumes():
            if not set(disks).isdisjoint(volume.record.disks):
                self._end_volume(volume)

    def obey(self, layout: Layout) -> None:
        """End every open volume that lies, by this layout, on a disk that its policy does not admit any more,
        or that is to be emptied."""
        for volume in self._open_volumes():
            policy = layout.policy(volume.record.policy)
            for number in volume.record.disks:
                spot = layout.spots.get(number)
                if spot is None or spot.leaving or not policy.admits(spot.site, spot.pool):
                    self._end_volume(volume)
                    break

    async def leave_outdone(self, layout: Layout) -> None:
        """End every open volume in whose place a new one would promise more: those that were made while a
        site was away, once it is back. What is in them is moved when they are sealed (upkeep/rebalance.py).

        It may be called often: it looks now and then, and asks the disks only if metadata's layout says so.

        Raises: MetaUnavailable.
        """
        now = self._clock.monotonic()
        if now < self._outdone_at:
            return
        self._outdone_at = now + self._limits.outdone_s
        if not self._outdone(Topology(layout.spots.values()), layout):
            return
        layout, topology = await self._survey()
        for volume in self._outdone(self._quick(topology), layout):
            self._end_volume(volume)
            self._outdone_at = now + self._limits.outdone_again_s

    def _outdone(self, topology: Topology, layout: Layout) -> list[_Volume]:
        found = []
        for volume in self._open_volumes():
            policy = layout.policy(volume.record.policy)
            k, m = policy.code(self._k, self._m)
            if outdone(topology, policy, k=k, m=m, disks=volume.record.disks):
                found.append(volume)
        return found

    async def _seal_volume(self, volume: _Volume) -> None:
        """Seal at the end of what is durable: first the record, then the files.

        Behind it lie at most stripes of streams that were given up. A length that covered them would promise
        what a power cut may still take, and no walk gets over a place without a header.

        Raises: MetaUnavailable; the volume stays in `_closing` and is tried again.
        """
        try:
            record = await self._ledger.seal(volume.record.id, self._covered(volume))
        except Corrupt as unknown:
            # Others took this process for dead, sealed the volume and emptied it since: nothing is left.
            log.warning("volume %d is sealed by others, if at all: %s", volume.record.id, unknown)
            self._closing.remove(volume)
            return
        self._closing.remove(volume)
        self._crash_point("volume-sealed")
        length = record.length
        indexes = [index for index in range(record.fragment_count) if index not in volume.failed]
        failures = await self._each(
            volume.record, indexes, lambda disk, index: disk.seal(volume.record.id, index, length)
        )
        for index, failure in failures.items():
            # Harmless: the file is longer than the record says. A failed disk shows at its next write.
            log.warning("fragment file %d.%d was not cut: %s", record.id, index, failure)

    # Disks.

    async def _build(
        self, volume: _Volume, offset: int, packed: Packed, padded: Buffer
    ) -> list[list[Buffer]]:
        """Encode and sum: the gather list of each fragment's record."""
        if len(padded) <= self._limits.inline_max:
            return self._records(volume.record, offset, packed, padded)
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._records, volume.record, offset, packed, padded
        )

    def _records(
        self, record: VolumeRecord, offset: int, packed: Packed, padded: Buffer
    ) -> list[list[Buffer]]:
        fragments = self._codec(record.k, record.m).encode(padded)
        clock_us = self._clock.now_us()
        records = [
            record_buffers(
                self._seal,
                volume=record.id,
                index=index,
                offset=offset,
                k=record.k,
                m=record.m,
                fragment=fragment,
                payload_size=packed.payload_size,
                directory_offset=packed.directory_offset,
                clock_us=clock_us,
            )
            for index, fragment in enumerate(fragments)
        ]
        if offset == FILE_HEADER_SIZE:  # The first record brings the file's header with it.
            for index, buffers in enumerate(records):
                header = file_header(
                    self._seal,
                    volume=record.id,
                    index=index,
                    k=record.k,
                    m=record.m,
                    created_us=record.created_us,
                )
                buffers.insert(0, header)
        return records

    async def _append(
        self, volume: _Volume, offset: int, records: list[list[Buffer]], *, sync: bool
    ) -> dict[int, BaseException]:
        identity = volume.record.id
        position = 0 if offset == FILE_HEADER_SIZE else offset
        return await self._each(
            volume.record,
            range(len(records)),
            lambda disk, index: disk.append(identity, index, position, records[index], sync=sync),
        )

    async def _each(
        self,
        record: VolumeRecord,
        indexes: Sequence[int],
        act: Callable[[Disk, int], Awaitable[None]],
    ) -> dict[int, BaseException]:
        """Do something with each fragment file's disk at once; who failed or is overdue, by index.

        A bug (anything but an expected failure) is raised, after all have ended.
        """
        failures: dict[int, BaseException] = {}
        tasks: dict[asyncio.Future[None], int] = {}
        for index in indexes:
            disk = self._disks.get(record.disks[index])
            if disk is None:
                failures[index] = DiskMissing(f"no disk {record.disks[index]} here")
            else:
                tasks[asyncio.ensure_future(act(disk, index))] = index
        if tasks:
            try:
                await asyncio.wait(tasks, timeout=self._limits.deadline_s)
            except asyncio.CancelledError:
                for task in tasks:
                    task.cancel()
                raise
        bug: BaseException | None = None
        for task, index in tasks.items():
            if not task.done():
                task.cancel()
                failures[index] = DiskFailed(f"disk {record.disks[index]} is overdue")
            elif task.cancelled():
                failures[index] = DiskFailed(f"disk {record.disks[index]} was given up")
            elif (failure := task.exception()) is not None:
                failures[index] = failure
                if not isinstance(failure, (Unavailable, FileNotFoundError)):
                    bug = failure
        if bug is not None:
            raise bug
        return failures

    async def _report(self, record: VolumeRecord, failures: Mapping[int, BaseException]) -> None:
        """Tell the ledger, for every process. A full or busy disk is not a failed one: it only rests. Nor is
        one whose node does not answer us: it may be our way to it that is broken."""
        for index, failure in failures.items():
            number = record.disks[index]
            log.warning("fragment %d.%d on disk %d failed: %s", record.id, index, number, failure)
            if isinstance(failure, (DiskFull, NodeAway, Overloaded, StaleEpoch)):  # Not the disk's fault.
                resting = self._away if isinstance(failure, NodeAway) else self._full
                resting[number] = self._clock.monotonic() + FULL_DISK_REST_S
                continue
            try:
                disk = self._disks.get(number)
                read_only = disk is not None and disk.state is DiskState.READ_ONLY
                words = str(failure) or type(failure).__name__
                await self._ledger.suspect(number, words, read_only=read_only)
            except StoreError as unreported:
                # The bytes stand on the others; the disk object knows for this process.
                log.warning("disk %d could not be reported: %s", number, unreported)

    # What is due.

    def _start_janitor(self) -> None:
        if self._janitor is None and not self._closed:
            self._janitor = asyncio.get_running_loop().create_task(self._keep_house())

    async def _keep_house(self) -> None:
        while not self._closed:
            await asyncio.sleep(self._limits.tick_s)
            try:
                await self._tick()
            except StoreError as failure:
                log.warning("volumes could not be looked after: %s", failure)
            except Exception:
                log.exception("a bug in looking after volumes")

    async def _tick(self) -> None:
        limits = self._limits
        now = self._clock.monotonic()
        if self.memory.waiting:
            for stream in list(self._streams):
                buffer = stream._buffer
                if buffer is None or now - buffer.taken < limits.pressure_s:
                    continue
                if stream.hurry is not None:  # Bytes are being received in it, counted or not yet.
                    self.counters.pressure_flushes += 1
                    stream.hurry()
                elif stream._filled:
                    self.counters.pressure_flushes += 1
                    stream._send(b"")
        for volume in self._open_volumes():
            if now - volume.used >= limits.idle_s and not volume.turns and not volume.pins:
                self._end_volume(volume)
            elif volume.end > volume.noted and now - volume.noted_at >= limits.extend_s:
                covered = self._covered(volume)
                if covered > volume.noted:
                    try:
                        await self._ledger.extend(volume.record.id, volume.fence, covered)
                    except Conflict:
                        await self._leave_if_lost(volume)
                        continue
                    volume.noted = covered
                volume.noted_at = now
        for volume in list(self._closing):
            if not volume.turns and not volume.pins and now - volume.used >= limits.linger_s:
                try:
                    await self._seal_volume(volume)
                except StoreError as failure:  # Tried again at the next tick; the others do not wait for it.
                    log.warning("volume %d is not sealed yet: %s", volume.record.id, failure)

    def _covered(self, volume: _Volume) -> int:
        """The length that is synced on the quorum: what `extend` may note, and where a seal cuts."""
        if volume.lane is Lane.SMALL:
            return volume.end
        spare = volume.record.fragment_count - self._quorum(volume.record)
        return max((covered for covered, failed in volume.history if len(failed) <= spare), default=0)
