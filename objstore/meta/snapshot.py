"""Snapshots: all metadata as one sorted, compressed, checksummed file.

A snapshot is the previous snapshot merged with the closed journal segments; LMDB is never read for
it. A file is a sequence of blocks:

     0   4   magic OSSN
     4   1   format 1
     5   1   kind: 0 start, 1 pairs, 2 clients, 3 end
     6   2   zero
     8   4   stored size
    12   4   size once decompressed
    16   4   count: pairs or clients
    20   4   zero
    24   8   xxh3-64 of the previous block's checksum (8; 0 for the first), bytes 0..24, stored bytes
    32  ..   stored bytes: zlib level 1 of a MessagePack value

    start     [format, cluster, sequence, checksum of that batch, created]
    pairs     [key, value, key, value, ...], ascending over the whole file
    clients   [[client id, ClientRecord], ...]
    end       [keys, blocks before this one]

The chained checksum proves order and completeness; the last one is the file's digest.

Memory: one block, one read-ahead chunk, and the changes of the journal up to a bound; beyond it they
are sorted into runs on disk. Nothing holds the whole metadata.
"""

import heapq
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import xxhash

from objstore.errors import Corrupt
from objstore.meta.journal import (
    READ_SIZE,
    STEP_TIMEOUT_S,
    Copy,
    CrashPoint,
    Resolved,
    Segment,
    Snapshot,
    copies_of,
    no_crash,
    read_segment,
    together,
)
from objstore.meta.kv_lmdb import ClientRecord
from objstore.meta.messages import advanced
from objstore.node.disk import Disk

FORMAT = 1
BLOCK_SIZE = 64 * 1024  # Bytes of keys and values in a block, about: what a reader holds.
BLOCK_STORED_MAX = 16 * 1024 * 1024  # Bytes: a larger block is taken for damage.
COMPRESSION_LEVEL = 1  # Level 6 saves a tenth more space and takes four times as long.
CHANGES_SIZE_MAX = 32 * 1024 * 1024  # Bytes of keys and values sorted in memory: 150 MB as objects.
CLIENT_KEPT_US = 3_600_000_000  # An hour: far longer than any client waits for an outcome.

START, PAIRS, CLIENTS, END = range(4)

_HEAD = struct.Struct("<4sBBHIIII")
_CHECKSUM = struct.Struct("<Q")
_MAGIC = b"OSSN"
HEAD_SIZE = _HEAD.size + _CHECKSUM.size
assert HEAD_SIZE == 32

Pairs = list[tuple[bytes, bytes]]
Change = tuple[bytes, bytes | None]  # None: deleted.

_encode = msgspec.msgpack.Encoder().encode
_decode_pairs = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_clients = msgspec.msgpack.Decoder(list[tuple[bytes, ClientRecord]]).decode
_decode_run = msgspec.msgpack.Decoder(list[bytes | None]).decode


class Block(NamedTuple):
    kind: int
    item_count: int
    content: bytes  # Decompressed.
    raw: bytes  # As in the file.
    checksum: int

    def pairs(self) -> Pairs:
        flat = iter(_decode_pairs(self.content))
        return list(zip(flat, flat, strict=True))

    def clients(self) -> list[tuple[bytes, ClientRecord]]:
        return _decode_clients(self.content)


def encode_block(kind: int, count: int, content: bytes, predecessor: int) -> tuple[bytes, int]:
    """The block's bytes and its checksum."""
    stored = zlib.compress(content, COMPRESSION_LEVEL)
    head = _HEAD.pack(_MAGIC, FORMAT, kind, 0, len(stored), len(content), count, 0)
    checksum = xxhash.xxh3_64_intdigest(_CHECKSUM.pack(predecessor) + head + stored)
    return b"".join((head, _CHECKSUM.pack(checksum), stored)), checksum


def block_size(head: bytes) -> int:
    """Bytes of the whole block that begins with `head`; 0 if no block does."""
    if len(head) < HEAD_SIZE:
        return 0
    magic, form, _, _, stored_size, _, _, _ = _HEAD.unpack_from(head)
    if magic != _MAGIC or form != FORMAT or stored_size > BLOCK_STORED_MAX:
        return 0
    return HEAD_SIZE + int(stored_size)


def decode_block(raw: bytes, predecessor: int) -> Block | None:
    """The block; None unless it is whole and follows the one with that checksum."""
    if len(raw) < HEAD_SIZE or len(raw) != block_size(raw[:HEAD_SIZE]):
        return None
    _, _, kind, _, _, size, count, _ = _HEAD.unpack_from(raw)
    (checksum,) = _CHECKSUM.unpack_from(raw, _HEAD.size)
    stored = raw[HEAD_SIZE:]
    if xxhash.xxh3_64_intdigest(_CHECKSUM.pack(predecessor) + raw[: _HEAD.size] + stored) != checksum:
        return None
    content = zlib.decompress(stored)
    return Block(kind, count, content, raw, checksum) if len(content) == size else None


async def _block_at(copy: Copy, offset: int, predecessor: int) -> Block | None:
    size = block_size(await copy.at(offset, HEAD_SIZE))
    return decode_block(await copy.at(offset, size), predecessor) if size else None


async def read_blocks(
    disks: Sequence[Disk], snapshot: Snapshot, bad: set[tuple[int, str]]
) -> AsyncIterator[Block]:
    """Every block, each from any copy that has it whole; marks the others in `bad`.

    Raises: Corrupt if no copy has a block, or the file is another than `snapshot` says.
    """
    copies = copies_of(disks, snapshot.name, bad)
    offset, checksum, kind = 0, 0, START
    while kind != END:
        block = None
        for copy in copies:
            block = await _block_at(copy, offset, checksum)
            if block is not None:
                break
            bad.add((copy.disk.number, snapshot.name))
        if block is None:
            raise Corrupt(f"{snapshot.name} is damaged at byte {offset} on every disk that is here")
        if copy is not copies[0]:
            copies.remove(copy)
            copies.insert(0, copy)
        yield block
        offset += len(block.raw)
        checksum, kind = block.checksum, block.kind
    if offset != snapshot.size or checksum != snapshot.digest:
        raise Corrupt(f"{snapshot.name} is not the snapshot that the journal names")


class Changes:
    """What the segments change, as the last value of each key, in order.

    Holds `size_max` bytes in memory; more goes to sorted runs in temporary files under `scratch`.
    """

    def __init__(self, scratch: Path | None, size_max: int = CHANGES_SIZE_MAX) -> None:
        self.clients: dict[bytes, ClientRecord] = {}
        self.newest_us = 0
        self._held: dict[bytes, bytes | None] = {}
        self._size = 0  # Bytes, those of overwritten values included.
        self._size_max = size_max
        self._scratch = scratch
        self._runs: list[IO[bytes]] = []

    def add(self, resolved: Resolved, time_us: int) -> None:
        held = self._held
        held.update(resolved.put)
        held.update(dict.fromkeys(resolved.delete))
        self._size += sum(map(len, resolved.put)) + sum(map(len, resolved.put.values()))
        self._size += sum(map(len, resolved.delete))
        self.newest_us = max(self.newest_us, time_us)
        for outcome in resolved.clients:
            old = self.clients.get(outcome.client)
            self.clients[outcome.client] = advanced(old, outcome.number, time_us, outcome.failures)
        if self._size > self._size_max:
            self._spill()

    def _spill(self) -> None:
        run = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - lives until `close`
        keys = sorted(self._held)
        for start in range(0, len(keys), 1_000):
            flat: list[bytes | None] = []
            for key in keys[start : start + 1_000]:
                flat += (key, self._held[key])
            content = _encode(flat)
            run.write(len(content).to_bytes(4, "little") + content)
        run.flush()
        self._runs.append(run)
        self._held = {}
        self._size = 0

    def __iter__(self) -> Iterator[Change]:
        held = ((key, self._held[key]) for key in sorted(self._held))
        if not self._runs:
            yield from held
            return
        # The newest first among equals: it wins.
        newest_first = [held, *(_read_run(run) for run in reversed(self._runs))]
        ranked = [_ranked(changes, rank) for rank, changes in enumerate(newest_first)]
        last: bytes | None = None
        for key, _, value in heapq.merge(*ranked):
            if key != last:
                yield key, value
                last = key

    def recent_clients(self) -> list[tuple[bytes, ClientRecord]]:
        oldest_us = self.newest_us - CLIENT_KEPT_US
        return sorted(
            (client, record) for client, record in self.clients.items() if record.time_us >= oldest_us
        )

    def close(self) -> None:
        for run in self._runs:
            run.close()


def _ranked(changes: Iterable[Change], rank: int) -> Iterator[tuple[bytes, int, bytes | None]]:
    for key, value in changes:
        yield key, rank, value


def _read_run(run: IO[bytes]) -> Iterator[Change]:
    run.seek(0)
    while size := run.read(4):
        flat = iter(_decode_run(run.read(int.from_bytes(size, "little"))))
        for key in flat:
            assert key is not None
            yield key, next(flat)


async def collect(
    disks: Sequence[Disk], segments: Sequence[Segment], changes: Changes, bad: set[tuple[int, str]]
) -> int:
    """Read the segments into `changes`, in order; returns the batches read. Raises: Corrupt."""
    count = 0
    for segment in segments:
        async for batch in read_segment(disks, segment, bad):
            changes.add(batch.resolved(), batch.time_us)
            count += 1
    return count


async def merged(
    disks: Sequence[Disk], snapshot: Snapshot | None, changes: Changes, bad: set[tuple[int, str]]
) -> AsyncIterator[Pairs]:
    """The snapshot with the changes applied, ascending, some hundreds of pairs at a time.

    When it ends, `changes.clients` holds the clients of both. Raises: Corrupt.
    """
    upcoming = iter(changes)
    change = next(upcoming, None)
    if snapshot is not None:
        async for block in read_blocks(disks, snapshot, bad):
            if block.kind == CLIENTS:
                for client, record in block.clients():
                    newer = changes.clients.get(client)
                    if newer is None:
                        changes.clients[client] = record
                    else:
                        changes.clients[client] = advanced(
                            record, newer.number, newer.time_us, newer.failures
                        )
            if block.kind != PAIRS:
                continue
            pairs = block.pairs()
            last = pairs[-1][0]
            if change is None or change[0] > last:
                yield pairs
                continue
            values = dict(pairs)
            while change is not None and change[0] <= last:
                key, value = change
                if value is None:
                    values.pop(key, None)
                else:
                    values[key] = value
                change = next(upcoming, None)
            if values:
                yield sorted(values.items())
    rest: Pairs = []
    while change is not None:
        if change[1] is not None:
            rest.append((change[0], change[1]))
            if len(rest) == 1_000:
                yield rest
                rest = []
        change = next(upcoming, None)
    if rest:
        yield rest


class SnapshotWriter:
    """Writes one snapshot to several disks side by side. A disk that fails ends the attempt."""

    def __init__(self, disks: Sequence[Disk], name: str, crash: CrashPoint) -> None:
        self._disks = disks
        self._name = name
        self._crash = crash
        self._held = bytearray()
        self._offset = 0
        self.checksum = 0
        self.block_count = 0

    @property
    def size(self) -> int:
        return self._offset + len(self._held)

    async def block(self, kind: int, count: int, content: bytes) -> None:
        raw, self.checksum = encode_block(kind, count, content, self.checksum)
        self._held += raw
        self.block_count += 1
        if len(self._held) >= READ_SIZE:
            await self.flush()

    async def flush(self) -> None:
        content, offset = bytes(self._held), self._offset
        if offset == 0:
            self._crash("snapshot.create")
            await self._everywhere("create")
        self._crash("snapshot.append")
        await self._everywhere("append", content)
        self._offset += len(content)
        self._held.clear()

    async def _everywhere(self, step: str, content: bytes = b"") -> None:
        offset = self._offset

        async def do(disk: Disk) -> None:
            if step == "create":
                await disk.log_create(self._name)
            else:
                await disk.log_append(self._name, offset, content)

        failures = await together(self._disks, do, STEP_TIMEOUT_S)
        if failures:
            raise FoldFailed(failures)


class FoldFailed(Exception):
    """A disk failed while a snapshot was written or read back. Nothing has changed: try without it."""

    def __init__(self, failures: dict[int, str]) -> None:
        super().__init__(", ".join(f"disk {number}: {why}" for number, why in failures.items()))
        self.failures = failures


class FoldPlan(msgspec.Struct, frozen=True, array_like=True):
    """What to fold, and where to: made by the committer, done by another process."""

    cluster: bytes
    name: str  # Of the new snapshot.
    snapshot: Snapshot | None
    segments: list[Segment]  # Closed, in order.
    sources: list[int]  # Numbers of the disks to read from.
    targets: list[int]  # Numbers of the disks to write to.
    created_us: int
    scratch: str = ""  # Directory for sorted runs; "" is the system's.


class LookUp(msgspec.Struct, frozen=True, array_like=True):
    """Keys to look up in the journal: what LMDB says of them cannot be read."""

    keys: list[bytes]
    snapshot: Snapshot | None
    segments: list[Segment]  # In order; the last may be of a file that is still being appended to.


async def look_up(disks: Sequence[Disk], wanted: LookUp) -> dict[bytes, bytes | None]:
    """The values of the keys at the end of the last segment; None: no such key. Raises: Corrupt."""
    bad: set[tuple[int, str]] = set()
    found: dict[bytes, bytes | None] = dict.fromkeys(wanted.keys)
    if wanted.snapshot is not None:
        async for block in read_blocks(disks, wanted.snapshot, bad):
            if block.kind == PAIRS:
                held = dict(block.pairs())
                found.update((key, held[key]) for key in held.keys() & found.keys())
    for segment in wanted.segments:
        async for batch in read_segment(disks, segment, bad):
            resolved = batch.resolved()
            found.update((key, resolved.put[key]) for key in resolved.put.keys() & found.keys())
            found.update((key, None) for key in found.keys() & set(resolved.delete))
    return found


async def fold(disks: Sequence[Disk], plan: FoldPlan, *, crash: CrashPoint = no_crash) -> Snapshot:
    """Merge snapshot and segments into a new snapshot on every target, and read it back from each.

    Raises: FoldFailed (a target failed), Corrupt (a source is whole nowhere).
    """
    assert plan.segments
    bad: set[tuple[int, str]] = set()
    sources = [disk for disk in disks if disk.number in plan.sources]
    targets = [disk for disk in disks if disk.number in plan.targets]
    last = plan.segments[-1]
    changes = Changes(Path(plan.scratch) if plan.scratch else None)
    writer = SnapshotWriter(targets, plan.name, crash)
    count = 0
    try:
        await collect(sources, plan.segments, changes, bad)
        start = [FORMAT, plan.cluster, last.sequence, last.checksum, plan.created_us]
        await writer.block(START, 0, _encode(start))
        flat: list[bytes] = []
        size = 0
        async for pairs in merged(sources, plan.snapshot, changes, bad):
            for key, value in pairs:
                flat += (key, value)
                size += len(key) + len(value)
                if size >= BLOCK_SIZE:
                    await writer.block(PAIRS, len(flat) // 2, _encode(flat))
                    flat, size = [], 0
            count += len(pairs)
        if flat:
            await writer.block(PAIRS, len(flat) // 2, _encode(flat))
        clients = changes.recent_clients()
        await writer.block(CLIENTS, len(clients), _encode(clients))
        await writer.block(END, 0, _encode([count, writer.block_count]))
        await writer.flush()
    finally:
        changes.close()
    made = Snapshot(plan.name, last.sequence, last.checksum, writer.size, writer.checksum, count)
    crash("snapshot.written")

    failures: dict[int, str] = {}
    for disk in targets:
        damaged: set[tuple[int, str]] = set()
        try:
            async for _ in read_blocks([disk], made, damaged):
                pass
        except Corrupt as failure:
            failures[disk.number] = repr(failure)
    if failures:
        raise FoldFailed(failures)
    crash("snapshot.read-back")
    return made
