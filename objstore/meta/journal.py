"""The journal: the truth about metadata, as epochs of append-only files on several disks.

An *epoch* is a file `journal.<number>` on its members, m+1 disks: a header, then batches. Nothing
in it is ever overwritten, and a file whose write or sync failed or took too long is never touched
again: the next epoch goes on elsewhere. The header says where everything begins: the snapshot, the
earlier files (*segments*) that follow it with the offset at which each ends, and the sequence after
which this epoch goes on. What lies in an earlier file beyond that offset belongs to nobody.

    epoch file    0   8   magic OSJRNL1 and a zero byte
                  8   4   size of the header with its padding, a multiple of 512
                 12   4   size of its MessagePack (EpochHeader)
                 16   8   xxh3-64 of bytes 0..16 and the MessagePack
                 24  ..   MessagePack, then zeros
    batch         0   4   magic OSJB
                  4   1   format 1
                  5   1   kind: 0 batch, 1 clean mark
                  6   2   zero
                  8   8   epoch
                 16   8   sequence: the predecessor's plus one, over all epochs
                 24   8   the predecessor's checksum
                 32   8   the committer's clock, microseconds
                 40   4   size of the MessagePack (Resolved)
                 44   4   zero
                 48   8   xxh3-64 of bytes 0..48 and the MessagePack
                 56  ..   MessagePack, then zeros to a multiple of 512

All integers are little-endian. A batch stands when every member has synced it.

Copies stand on different machines as far as there are any: a node that burns down takes one of them.

To open an epoch, in this order: the snapshot and every earlier segment are present on m+1 healthy
disks; its header is synced on its members; its number is synced into the identity of every
reachable disk; then its first batch. A number is used for one attempt only: the next one is greater
than any that a reachable disk names or holds a file of. Why that suffices: an epoch that served a
batch is named by all its members, of which at least one is reachable when at most m disks are away.

Where the disks are on storage nodes, several gateway machines could reach them. So the upper bits of an
epoch's number are a *term*: one machine's reign. Whoever takes over begins a new term: it fences more than
half of all disks with the term's first number, and only then looks for the newest epoch; and every epoch is
noted by more than half of all disks before it is in force. Any two halves share a disk: so either the new
machine sees the old one's last epoch, or the old one is refused (StaleEpoch) when it opens another. It cannot
go on in its last epoch either: the new machine has fenced at least one of that epoch's members, and a batch
needs them all. A term of 0 has no fence: all its disks are this machine's own, under its locks.

Concurrency: one `Journal` per store, in the committer; its calls are issued one at a time.
"""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import xxhash

from objstore.clock import Clock
from objstore.errors import Corrupt, MetaUnavailable, StaleEpoch, StoreError, TooFewDisks
from objstore.meta.kv_lmdb import BatchFailures, End
from objstore.meta.log_names import epoch_of_name, is_ours, journal_name
from objstore.node.disk import Disk, DiskState
from objstore.node.returning import ask_again

log = logging.getLogger(__name__)

FORMAT = 1
BLOCK_SIZE = 512  # Bytes: batches and headers are padded to it, so that none shares a sector.
PAYLOAD_SIZE_MAX = 64 * 1024 * 1024  # Bytes of one batch; the committer gathers far less.
APPEND_TIMEOUT_S = 2.0  # A copy that takes longer is left behind (DESIGN section 5).
STEP_TIMEOUT_S = 5.0  # For one step of opening an epoch on one disk: a create, a note, a chunk.
FAILED_TIMEOUT_S = 0.5  # The same on a disk that has failed already: a try, not a hope.
READ_SIZE = 4 * 1024 * 1024  # Bytes read at a time.
TERM_BITS = 24  # Of an epoch's number, for the epochs of one term: 16 million starts and lost copies.

KIND_BATCH = 0
KIND_CLEAN = 1

_EPOCH_HEAD = struct.Struct("<8sIIQ")
_EPOCH_MAGIC = b"OSJRNL1\0"
_BATCH_HEAD = struct.Struct("<4sBBHQQQQII")
_BATCH_MAGIC = b"OSJB"
_CHECKSUM = struct.Struct("<Q")
BATCH_HEAD_SIZE = _BATCH_HEAD.size + _CHECKSUM.size
assert BATCH_HEAD_SIZE == 56

CrashPoint = Callable[[str], None]
"""Called with a name between two durable steps; a test raises there. In production it does nothing."""


def no_crash(name: str) -> None:
    pass


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    name: str
    sequence: int  # It covers every batch up to this one.
    checksum: int  # Of that batch.
    size: int  # Bytes.
    digest: int  # The chained checksum of its last block: covers every byte.
    count: int  # Keys.


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """A closed epoch file that is not yet folded."""

    name: str
    epoch: int
    start: int  # Bytes: where its first batch begins.
    end: int  # Bytes: what lies beyond belongs to nobody.
    after_sequence: int  # It follows this batch,
    after_checksum: int
    sequence: int  # and ends with this one.
    checksum: int


class EpochHeader(msgspec.Struct, frozen=True, array_like=True):
    format: int
    cluster: bytes
    epoch: int
    members: list[int]  # Disk numbers.
    after_sequence: int
    after_checksum: int
    state: bytes  # Id of the LMDB state that goes with it; b"" if none is to be trusted.
    snapshot: Snapshot | None
    segments: list[Segment]
    created_us: int


class ClientOutcome(msgspec.Struct, frozen=True, array_like=True):
    client: bytes
    number: int  # The client's last batch within this one.
    failures: list[BatchFailures]


class Resolved(msgspec.Struct, frozen=True, array_like=True):
    """A batch as applied: counters are sums, and each key is written once."""

    clients: list[ClientOutcome]
    put: dict[bytes, bytes]
    delete: list[bytes]


class Batch(NamedTuple):
    kind: int
    epoch: int
    sequence: int
    predecessor: int
    time_us: int
    checksum: int
    payload: bytes
    size: int  # Bytes in the file, padding included.

    def resolved(self) -> Resolved:
        return _decode_resolved(self.payload)


def term_of(epoch: int) -> int:
    return epoch >> TERM_BITS


def first_epoch(term: int) -> int:
    """What a term fences with: no epoch of an earlier term is as high."""
    return term << TERM_BITS


def last_epoch(term: int) -> int:
    """What every process of a term's machine names to the disks: its own epochs never shut it out."""
    return first_epoch(term + 1) - 1


def majority(disks: Sequence[Disk]) -> int:
    return len(disks) // 2 + 1


encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(EpochHeader).decode
_decode_resolved = msgspec.msgpack.Decoder(Resolved).decode


def encode_header(header: EpochHeader) -> bytes:
    payload = encode(header)
    size = -(-(_EPOCH_HEAD.size + len(payload)) // BLOCK_SIZE) * BLOCK_SIZE
    front = struct.pack("<8sII", _EPOCH_MAGIC, size, len(payload))
    checksum = xxhash.xxh3_64_intdigest(front + payload)
    return (front + _CHECKSUM.pack(checksum) + payload).ljust(size, b"\0")


def decode_header(content: bytes) -> tuple[EpochHeader, int] | None:
    """The header and its size; None unless it is whole. `content` may go on behind it."""
    if len(content) < _EPOCH_HEAD.size:
        return None
    magic, size, payload_size, checksum = _EPOCH_HEAD.unpack_from(content)
    payload = content[_EPOCH_HEAD.size : _EPOCH_HEAD.size + payload_size]
    if magic != _EPOCH_MAGIC or len(payload) != payload_size or len(content) < size:
        return None
    if xxhash.xxh3_64_intdigest(content[:16] + payload) != checksum:
        return None
    return _decode_header(payload), size


def encode_batch(
    kind: int, epoch: int, sequence: int, predecessor: int, time_us: int, payload: bytes
) -> tuple[bytes, int]:
    """The padded record and its checksum."""
    assert len(payload) <= PAYLOAD_SIZE_MAX
    front = _BATCH_HEAD.pack(
        _BATCH_MAGIC, FORMAT, kind, 0, epoch, sequence, predecessor, time_us, len(payload), 0
    )
    checksum = xxhash.xxh3_64_intdigest(front + payload)
    size = batch_size(len(payload))
    return b"".join((front, _CHECKSUM.pack(checksum), payload)).ljust(size, b"\0"), checksum


def batch_size(payload_size: int) -> int:
    return -(-(BATCH_HEAD_SIZE + payload_size) // BLOCK_SIZE) * BLOCK_SIZE


def decode_batch(content: bytes, epoch: int, sequence: int, predecessor: int) -> Batch | int:
    """The batch at the start of `content`, if it is whole and is this very one.

    Returns:
        The batch; or how many bytes are needed to judge (more than `content` has); or 0 if it is
        another, or none.
    """
    if len(content) < BATCH_HEAD_SIZE:
        return BATCH_HEAD_SIZE
    magic, form, kind, _, its_epoch, its_sequence, its_predecessor, time_us, payload_size, _ = (
        _BATCH_HEAD.unpack_from(content)
    )
    if magic != _BATCH_MAGIC or form != FORMAT or payload_size > PAYLOAD_SIZE_MAX:
        return 0
    if (its_epoch, its_sequence, its_predecessor) != (epoch, sequence, predecessor):
        return 0
    size = batch_size(payload_size)
    if len(content) < size:
        return size
    payload = bytes(content[BATCH_HEAD_SIZE : BATCH_HEAD_SIZE + payload_size])
    (checksum,) = _CHECKSUM.unpack_from(content, _BATCH_HEAD.size)
    if xxhash.xxh3_64_intdigest(bytes(content[: _BATCH_HEAD.size]) + payload) != checksum:
        return 0
    return Batch(kind, epoch, sequence, predecessor, time_us, checksum, payload, size)


def batch_checksum(content: bytes) -> int | None:
    """The checksum of the whole batch that `content` begins with; None if it is none."""
    if len(content) < BATCH_HEAD_SIZE:
        return None
    payload_size = _BATCH_HEAD.unpack_from(content)[8]
    (checksum,) = _CHECKSUM.unpack_from(content, _BATCH_HEAD.size)
    payload = content[BATCH_HEAD_SIZE : BATCH_HEAD_SIZE + payload_size]
    if len(payload) != payload_size:
        return None
    found = xxhash.xxh3_64_intdigest(content[: _BATCH_HEAD.size] + payload)
    return int(found) if found == checksum else None


class Copy:
    """One disk's copy of a file, read ahead in chunks."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk = disk
        self.whole = True
        self.unread = ""  # Why the last read failed, if it did: then it says nothing of what the copy lacks.
        self._name = name
        self._offset = 0  # Of the first byte held.
        self._held = b""

    async def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`, or more; empty if the disk cannot say."""
        skip = offset - self._offset
        if skip < 0 or skip + size > len(self._held):
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    self._held = await self.disk.log_read(self._name, offset, max(size, READ_SIZE))
            except (StoreError, OSError, TimeoutError) as failure:
                self.unread = repr(failure)
                return b""
            self.unread = ""
            self._offset, skip = offset, 0
        return self._held[skip : skip + size]

    async def batch(self, offset: int, epoch: int, sequence: int, predecessor: int) -> Batch | None:
        size = BATCH_HEAD_SIZE
        while True:
            content = await self.at(offset, size)
            found = decode_batch(content, epoch, sequence, predecessor)
            if isinstance(found, Batch):
                return found
            if found <= len(content) or len(content) < size:
                return None
            size = found


async def read_batches(
    copies: Sequence[Copy],
    *,
    epoch: int,
    offset: int,
    sequence: int,
    checksum: int,
    thorough: bool,
) -> AsyncIterator[tuple[int, Batch]]:
    """(offset, batch) of one epoch file from `offset` on, each from any copy that has it whole.

    Copies are equal byte for byte where they are whole, so one offset fits all. A copy that lacks a
    batch another has is marked (`whole` becomes False). `thorough`: every copy is looked at, not
    only the first good one.
    """
    ranked = list(copies)
    while True:
        found: Batch | None = None
        lacking: list[Copy] = []
        for copy in ranked:
            batch = await copy.batch(offset, epoch, sequence + 1, checksum)
            if batch is None:
                lacking.append(copy)
            elif found is None:
                found = batch
            if found is not None and not thorough:
                break
        if found is None:
            return
        for copy in lacking:
            copy.whole = False
        if lacking and not thorough:
            ranked = [copy for copy in ranked if copy not in lacking] + lacking
        yield offset, found
        offset += found.size
        sequence, checksum = found.sequence, found.checksum


def copies_of(disks: Sequence[Disk], name: str, bad: set[tuple[int, str]]) -> list[Copy]:
    """The copies of a file, the damaged ones last: they may hold what no other does."""
    return [Copy(disk, name) for disk in sorted(disks, key=lambda disk: (disk.number, name) in bad)]


async def read_segment(
    disks: Sequence[Disk], segment: Segment, bad: set[tuple[int, str]]
) -> AsyncIterator[Batch]:
    """Every batch of a closed segment, from whichever disk has it whole.

    Adds (disk number, name) of copies found damaged to `bad`. Raises: Corrupt if no copy has one.
    """
    copies = copies_of(disks, segment.name, bad)
    offset, checksum = segment.start, segment.after_checksum
    if segment.start < segment.end:
        async for offset, batch in read_batches(
            copies,
            epoch=segment.epoch,
            offset=segment.start,
            sequence=segment.after_sequence,
            checksum=segment.after_checksum,
            thorough=False,
        ):
            offset, checksum = offset + batch.size, batch.checksum
            yield batch
            if offset >= segment.end:
                break
    bad.update((copy.disk.number, segment.name) for copy in copies if not copy.whole)
    if offset != segment.end or checksum != segment.checksum:
        raise Corrupt(
            f"{segment.name} ends at byte {offset} of {segment.end} on every disk that is here"
            f" ({numbers(disks)})"
        )


def numbers(disks: Iterable[Disk]) -> str:
    return ", ".join(str(disk.number) for disk in disks) or "none"


def writable(disk: Disk) -> bool:
    """Full is no obstacle: the journal goes on when fragment data is refused."""
    return disk.state in (DiskState.HEALTHY, DiskState.FULL)


@dataclass(slots=True)
class Position:
    """Where the next batch goes, and what it follows."""

    epoch: int
    sequence: int
    checksum: int
    start: int  # Bytes: where the last batch of this epoch begins; `offset` if it has none.
    offset: int


class CopyFailed(Exception):
    """Some copies were not written in time. Nothing is known about the batch: open a new epoch."""

    def __init__(self, failures: dict[int, str]) -> None:
        super().__init__(", ".join(f"disk {number}: {why}" for number, why in failures.items()))
        self.failures = failures


def anywhere(number: int) -> bool:
    """Every disk may hold copies."""
    return True


def alone(number: int) -> Hashable:
    """Every disk is as good as a machine of its own."""
    return number


def spread(disks: Iterable[Disk], count: int, machine: Callable[[int], Hashable]) -> list[Disk]:
    """The first `count` of them that stand on different machines; if these are too few, then others."""
    seen: set[Hashable] = set()
    firsts: list[Disk] = []
    others: list[Disk] = []
    for disk in disks:
        where = machine(disk.number)
        (others if where in seen else firsts).append(disk)
        seen.add(where)
    return [*firsts, *others][:count]


@dataclass(slots=True)
class Journal:
    """The journal of a running committer.

    Invariants:
        `header` is synced on every disk of `members`, and every reachable disk names its epoch;
        every batch up to `position` is on every member, or in a segment of the header.
    Not an invariant:
        len(members) == copies. With fewer healthy disks there are fewer copies, and a warning.
    """

    disks: Sequence[Disk]  # Of the whole cluster, unreachable ones included.
    copies: int  # m+1.
    cluster: bytes
    clock: Clock
    position: Position
    header: EpochHeader
    members: list[Disk] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)  # Disks to avoid, and why.
    bad: set[tuple[int, str]] = field(default_factory=set)  # Copies known to be damaged.
    keep: set[str] = field(default_factory=set)  # Files that a fold is writing.
    crash: CrashPoint = no_crash
    append_timeout_s: float = APPEND_TIMEOUT_S
    highest: int = 0  # The highest number seen anywhere.
    opened: Callable[[int], None] = lambda epoch: None  # Called when an epoch is in force.
    term: int = 0  # See the module.
    allowed: Callable[[int], bool] = anywhere  # Whether batches and snapshots may lie on this disk.
    machine: Callable[[int], Hashable] = alone  # Where a disk stands, by its number.
    slow: set[int] = field(default_factory=set)  # Disks that hold copies only where others do not suffice.

    def end(self) -> End:
        position = self.position
        return End(position.epoch, position.sequence, position.checksum, position.start, position.offset)

    @property
    def unfolded_size(self) -> int:
        """Bytes in all files that the snapshot does not cover."""
        return sum(s.end - s.start for s in self.header.segments) + self.position.offset

    def segments_with_current(self) -> list[Segment]:
        """Every segment since the snapshot, the current epoch as closed now; empty ones left out."""
        segments = list(self.header.segments)
        if self.members and self.position.sequence > self.header.after_sequence:
            segments.append(
                Segment(
                    name=journal_name(self.header.epoch),
                    epoch=self.header.epoch,
                    start=len(encode_header(self.header)),
                    end=self.position.offset,
                    after_sequence=self.header.after_sequence,
                    after_checksum=self.header.after_checksum,
                    sequence=self.position.sequence,
                    checksum=self.position.checksum,
                )
            )
        return segments

    async def append(self, kind: int, payload: bytes) -> None:
        """Write and sync one batch on every member; `position` moves only if all have it.

        Raises: CopyFailed. The batch may or may not be on some members: after `roll`, append it
            again; it must not be forgotten in between by one who goes on in this epoch. StaleEpoch if
            another machine has taken over; the outcome is not known then.
        """
        position = self.position
        record, checksum = encode_batch(
            kind,
            position.epoch,
            position.sequence + 1,
            position.checksum,
            self.clock.now_us(),
            payload,
        )
        self.crash("journal.append.before")
        failures = await self._append_everywhere(journal_name(position.epoch), position.offset, record)
        if failures:
            for number, why in failures.items():
                self.avoid(number, why)
            raise CopyFailed(failures)
        self.crash("journal.append.after")
        self.position = Position(
            position.epoch,
            position.sequence + 1,
            checksum,
            position.offset,
            position.offset + len(record),
        )

    async def _append_everywhere(self, name: str, offset: int, record: bytes) -> dict[int, str]:
        """As `together` does, with less: every commit waits for this."""
        assert self.members, "a batch without a copy"
        appends = {
            asyncio.ensure_future(disk.log_append(name, offset, record)): disk for disk in self.members
        }
        try:
            await asyncio.wait(appends, timeout=self.append_timeout_s)
        except asyncio.CancelledError:
            for append in appends:
                append.cancel()
            raise
        failures: dict[int, str] = {}
        for append, disk in appends.items():
            if not append.done():
                append.cancel()
                failures[disk.number] = f"no answer within {self.append_timeout_s:g} s"
            elif (failure := append.exception()) is not None:
                if isinstance(failure, StaleEpoch) or not isinstance(failure, (StoreError, OSError)):
                    raise failure
                failures[disk.number] = repr(failure)
        return failures

    def avoid(self, number: int, why: str) -> None:
        if number not in self.failed:
            log.warning("journal copy lost", extra={"disk": number, "failure": why})
        self.failed[number] = why

    def patience(self, disk: Disk) -> float:
        """Seconds for one step on a disk: commits wait behind it, so one that failed gets little."""
        return min(FAILED_TIMEOUT_S, self.append_timeout_s) if disk.number in self.failed else STEP_TIMEOUT_S

    def eligible(self) -> list[Disk]:
        return [
            disk
            for disk in self.disks
            if writable(disk) and disk.number not in self.failed and self.allowed(disk.number)
        ]

    def machines(self, disks: Iterable[Disk]) -> set[Hashable]:
        return {self.machine(disk.number) for disk in disks}

    def is_slow(self, disk: Disk) -> bool:
        """Whether it, or another disk of its machine, is: what is slow is mostly the machine."""
        where = self.machine(disk.number)
        return any(self.machine(number) == where for number in self.slow)

    def chosen(self, usable: Iterable[Disk], preferred: Callable[[Disk], int] = lambda disk: 0) -> list[Disk]:
        """Which of them hold copies: as many as there should be, on as many machines as can be.

        Args:
            preferred: the least first; slow disks come behind all others.
        """
        ranked = sorted(usable, key=lambda disk: (self.is_slow(disk), preferred(disk), disk.number))
        return spread(ranked, self.copies, self.machine)

    async def roll(self, *, state: bytes, snapshot: Snapshot | None = None) -> None:
        """Open a new epoch after the present position; the current one is closed for good.

        Args:
            state: id of the LMDB state that goes with it; b"" if none is to be trusted.
            snapshot: a newer one, already on disks; the segments it covers are dropped.

        Raises: TooFewDisks when no disk is left; Corrupt when a file is on none of them; in a term also
            StaleEpoch if another machine has taken over, MetaUnavailable if too few disks note the epoch.
        """
        segments = self.segments_with_current()
        snapshot = snapshot or self.header.snapshot
        if snapshot is not None:
            assert snapshot.sequence <= self.position.sequence
            segments = [segment for segment in segments if segment.sequence > snapshot.sequence]
        # Each failed attempt adds a disk to `failed`, so that the loop ends.
        for _ in range(len(self.disks) + 1):
            if await self._attempt(segments, snapshot, state):
                return
        raise TooFewDisks(wanted=1, usable=0)

    async def _attempt(self, segments: list[Segment], snapshot: Snapshot | None, state: bytes) -> bool:
        if len(self.eligible()) < max(self.copies, majority(self.disks) if self.term else 0):
            await ask_again([disk for disk in self.disks if disk.state is DiskState.SUSPECT])
        listings = await self.listings()
        for disk in self.eligible():
            if disk.number not in listings:
                self.avoid(disk.number, "it does not list its logs")
        usable = [disk for disk in self.eligible() if disk.number in listings]
        if not usable:
            raise TooFewDisks(wanted=self.copies, usable=0)
        await self._learn_highest(listings)
        epoch = self.highest + 1
        self.highest = epoch

        # 1. Everything since the last snapshot, and the snapshot, on m+1 healthy disks.
        ensured = await self._ensure(segments, snapshot, usable, listings, epoch)
        if ensured is None:
            return False
        self.crash("journal.open.present")

        # 2. The header, on the members. Those that hold most of the rest already come first.
        held = [segment.name for segment in ensured] + ([snapshot.name] if snapshot else [])
        usable = [disk for disk in usable if disk.number not in self.failed]
        members = self.chosen(usable, lambda disk: -sum(name in listings[disk.number] for name in held))
        if not members:
            return False
        header = EpochHeader(
            format=FORMAT,
            cluster=self.cluster,
            epoch=epoch,
            members=[disk.number for disk in members],
            after_sequence=self.position.sequence,
            after_checksum=self.position.checksum,
            state=state,
            snapshot=snapshot,
            segments=ensured,
            created_us=self.clock.now_us(),
        )
        content = encode_header(header)
        self.crash("journal.open.before-header")
        failures = await together(
            members, lambda disk: disk.log_create(journal_name(epoch), content), STEP_TIMEOUT_S
        )
        if failures:
            for number, why in failures.items():
                self.avoid(number, why)
            return False
        self.crash("journal.open.header")

        # 3. The number, into every reachable disk's identity. A member that does not take it is none.
        reachable = [disk for disk in self.disks if disk.number in listings]
        failures = await heeding(reachable, lambda disk: disk.note_epoch(epoch), self.patience)
        for number, why in failures.items():
            self.avoid(number, why)
        if any(disk.number in failures for disk in members):
            return False
        noted = len(reachable) - len(failures)
        if self.term and noted < majority(self.disks):
            raise MetaUnavailable(too_few(noted, self.disks))
        self.crash("journal.open.noted")

        # 4. In force: the first batch may come.
        self.header = header
        self.members = members
        self.opened(epoch)
        self.position = Position(
            epoch, self.position.sequence, self.position.checksum, len(content), len(content)
        )
        if len(members) < self.copies:
            log.warning(
                "the journal has fewer copies than the store's promise needs",
                extra={"copies": len(members), "wanted": self.copies, "avoided": dict(self.failed)},
            )
        return True

    async def listings(self) -> dict[int, dict[str, int]]:
        """Disk number -> log name -> size, of every disk that answers."""
        found: dict[int, dict[str, int]] = {}

        async def listing(disk: Disk) -> None:
            found[disk.number] = {entry.name: entry.size for entry in await disk.logs()}

        await heeding([disk for disk in self.disks if readable(disk)], listing, self.patience)
        return found

    async def check_term(self) -> None:
        """Ask the members whether another machine has taken over. Raises: StaleEpoch."""
        if self.term:
            await heeding(self.members, lambda disk: disk.logs(), self.patience)

    async def _learn_highest(self, listings: dict[int, dict[str, int]]) -> None:
        noted: list[int] = []

        async def learn(disk: Disk) -> None:
            noted.append(await disk.noted_epoch())

        await together([disk for disk in self.disks if disk.number in listings], learn, self.patience)
        named = [epoch_of_name(name) for listing in listings.values() for name in listing]
        found = max([*noted, *named], default=0)
        if self.term and term_of(found) > self.term:
            raise StaleEpoch(named=last_epoch(self.term), noted=found)
        self.highest = max(self.highest, self.header.epoch, found, first_epoch(self.term))

    async def _ensure(
        self,
        segments: list[Segment],
        snapshot: Snapshot | None,
        usable: list[Disk],
        listings: dict[int, dict[str, int]],
        epoch: int,
    ) -> list[Segment] | None:
        """Bring every file to min(m+1, usable) disks; the segments, some perhaps under new names.

        None if a disk failed meanwhile (try again without it). Raises: Corrupt.
        """
        ensured: list[Segment] = []
        for segment in segments:
            holders = self._holders(segment.name, segment.end, listings)
            if not holders:
                # No copy is whole, but together they are: the result gets a name of its own, since
                # each of the damaged ones may hold what the others lack.
                renamed = msgspec.structs.replace(segment, name=journal_name(segment.epoch, epoch))
                sources = [disk for disk in self.disks if segment.name in listings.get(disk.number, {})]
                if not await self._copy(renamed, segment, sources, [], usable, listings):
                    return None
                ensured.append(renamed)
                continue
            if not await self._copy(segment, segment, holders, holders, usable, listings):
                return None
            ensured.append(segment)
        if snapshot is not None:
            holders = self._holders(snapshot.name, snapshot.size, listings)
            if not holders:
                raise Corrupt(f"{snapshot.name} is whole on none of the disks that are here")
            if not await self._copy(snapshot, snapshot, holders, holders, usable, listings):
                return None
        return ensured

    def _holders(self, name: str, size: int, listings: dict[int, dict[str, int]]) -> list[Disk]:
        return [
            disk
            for disk in self.disks
            if listings.get(disk.number, {}).get(name, -1) >= size and (disk.number, name) not in self.bad
        ]

    async def _copy(
        self,
        wanted: Segment | Snapshot,
        source: Segment | Snapshot,
        sources: list[Disk],
        holders: list[Disk],
        usable: list[Disk],
        listings: dict[int, dict[str, int]],
    ) -> bool:
        """Write the file to as many usable disks, and machines, as it lacks. False if one failed."""
        good = [disk for disk in usable if disk in holders]
        # A disk with a damaged copy of that name comes last: its copy has to go first.
        others = sorted(
            (disk for disk in usable if disk not in good),
            key=lambda disk: (wanted.name in listings[disk.number], self.is_slow(disk), disk.number),
        )
        for target in spread([*good, *others], self.copies, self.machine):
            if target in good:
                continue
            self.crash("journal.copy.before")
            try:
                if wanted.name in listings[target.number]:
                    async with asyncio.timeout(STEP_TIMEOUT_S):
                        await target.log_remove(wanted.name)
                    del listings[target.number][wanted.name]
                size = await self._write_copy(wanted.name, source, sources, target)
            except (StoreError, OSError, TimeoutError) as failure:
                if isinstance(failure, Corrupt):
                    raise
                self.avoid(target.number, repr(failure))
                return False
            listings[target.number][wanted.name] = size
            self.bad.discard((target.number, wanted.name))
            self.crash("journal.copy.after")
        return True

    async def _write_copy(
        self, name: str, source: Segment | Snapshot, sources: list[Disk], target: Disk
    ) -> int:
        offset = 0
        held = bytearray()

        async def flush() -> None:
            nonlocal offset
            async with asyncio.timeout(STEP_TIMEOUT_S):
                if offset == 0:
                    await target.log_create(name)
                await target.log_append(name, offset, bytes(held))
            offset += len(held)
            held.clear()

        async for piece in raw_pieces(source, sources, self.bad):
            held += piece
            if len(held) >= READ_SIZE:
                await flush()
        if held:
            await flush()
        return offset

    async def clean_up(self) -> int:
        """Remove the files that the header no longer names, and those that it names from disks that may not
        hold them, once m+1 others do; returns how many went.

        Call it only while this epoch is in force. A disk that was away keeps its old files until it
        is back: they do no harm, since the highest named epoch decides.
        """
        named = {segment.name for segment in self.header.segments} | self.keep
        named.add(journal_name(self.header.epoch))
        if self.header.snapshot is not None:
            named.add(self.header.snapshot.name)
        whole = len(self.members) >= self.copies  # And so has every file that many copies on allowed disks.
        removed = 0
        for disk in self.disks:
            if not writable(disk) or disk.number in self.failed:
                continue
            wanted = named if self.allowed(disk.number) or not whole else set()
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    if await disk.noted_epoch() != self.header.epoch:
                        continue
                    for entry in await disk.logs():
                        late = epoch_of_name(entry.name) > self.header.epoch
                        if is_ours(entry.name) and entry.name not in wanted and not late:
                            self.crash("journal.clean-up")
                            await disk.log_remove(entry.name)
                            removed += 1
            except (StoreError, OSError, TimeoutError) as failure:
                log.warning("old journal files stay", extra={"disk": disk.number, "failure": repr(failure)})
        return removed


async def raw_pieces(
    source: Segment | Snapshot, sources: Sequence[Disk], bad: set[tuple[int, str]]
) -> AsyncIterator[bytes]:
    """A file's bytes, every one verified, from whichever copy has each piece whole."""
    if isinstance(source, Segment):
        header = await _read_header(sources, source)
        yield header
        async for batch in read_segment(sources, source, bad):
            record, _ = encode_batch(
                batch.kind, batch.epoch, batch.sequence, batch.predecessor, batch.time_us, batch.payload
            )
            yield record
    else:
        from objstore.meta.snapshot import read_blocks  # Late: snapshot.py imports this module.

        async for block in read_blocks(sources, source, bad):
            yield block.raw


async def _read_header(sources: Sequence[Disk], segment: Segment) -> bytes:
    for disk in sources:
        found = await read_header(disk, segment.name)
        if found is not None and found[0].epoch == segment.epoch and found[1] == segment.start:
            return encode_header(found[0])
    # The header of a closed segment is for people; its batches are found by offset.
    return b"\0" * segment.start


async def read_header(disk: Disk, name: str) -> tuple[EpochHeader, int] | None:
    """The header of an epoch file and its size; None if it is not there, or not whole."""
    size = 4096
    try:
        while True:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                content = await disk.log_read(name, 0, size)
            found = decode_header(content)
            if found is not None or len(content) < size or size > PAYLOAD_SIZE_MAX:
                return found
            size *= 8
    except (StoreError, OSError, TimeoutError):
        return None


def readable(disk: Disk) -> bool:
    return disk.state not in (DiskState.FAILED, DiskState.MISSING, DiskState.FOREIGN)


def too_few(count: int, disks: Sequence[Disk]) -> str:
    return (
        f"{count} of {len(disks)} disks can be reached, and metadata needs {majority(disks)}: with fewer,"
        " another gateway could have taken over unseen"
    )


async def heeding(
    disks: Sequence[Disk],
    step: Callable[[Disk], Awaitable[object]],
    timeout_s: float | Callable[[Disk], float],
) -> dict[int, str]:
    """As `together`; but that another machine has taken over is no failure of a disk.

    Raises: StaleEpoch if any disk says so, when all have answered or were late.
    """
    stale: list[StaleEpoch] = []

    async def heeded(disk: Disk) -> None:
        try:
            await step(disk)
        except StaleEpoch as failure:
            stale.append(failure)
            raise

    failures = await together(disks, heeded, timeout_s)
    if stale:
        raise stale[0]
    return failures


async def together(
    disks: Sequence[Disk],
    step: Callable[[Disk], Awaitable[object]],
    timeout_s: float | Callable[[Disk], float],
) -> dict[int, str]:
    """Do one step on every disk side by side; disk number -> failure, of those that failed or were late.

    Nothing waits longer than `timeout_s`, whatever hangs. A bug in a step is raised.
    """

    async def one(disk: Disk) -> str | None:
        limit_s = timeout_s(disk) if callable(timeout_s) else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await step(disk)
        except TimeoutError:
            return f"no answer within {limit_s:g} s"
        except (StoreError, OSError) as failure:
            return repr(failure)
        return None

    outcomes = await asyncio.gather(*(one(disk) for disk in disks))
    return {
        disk.number: outcome for disk, outcome in zip(disks, outcomes, strict=True) if outcome is not None
    }
