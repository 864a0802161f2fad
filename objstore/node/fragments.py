"""The fragment record and the fragment file: bytes to headers, ranges to reads, and back. Pure.

What it is: the format of docs/formats.md (drawn there byte by byte) and nothing else. It knows no
disk; `FileScan` is given something that reads. It does not know what a payload holds.

A fragment file is a 64-byte file header and then records, one a stripe, each a multiple of 8 bytes:

    record  =  header (56)  { checksum (8)  block }*  zeros to a multiple of 8

Every block's checksum is seeded with the record's identity (cluster, volume, index, offset, fragment size)
and the block's number, and all of it with the cluster's secret. So a range read of [checksum, block] pairs
is verified without the header, and rot, torn tails, misdirected, lost and forged writes all show as a
wrong checksum.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from struct import Struct
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from objstore.errors import Corrupt
from objstore.node.disk import Buffer

FILE_MAGIC = b"OSV1"
RECORD_MAGIC = b"OSF1"
FORMAT = 1
FILE_HEADER_SIZE = 64  # Bytes: the first record's offset.
RECORD_HEADER_SIZE = 56  # Bytes.
CHECKSUM_SIZE = 8  # Bytes, little-endian xxh3-64.
ALIGNMENT = 8  # Records begin at multiples of this.
FRAGMENT_SIZE_MAX = 1024 * 1024  # Bytes of payload in one record.

# Small blocks where small objects are packed: a 4 KiB read touches two of them at most, not 64 KiB. Large
# ones where bodies stream: 8 bytes of checksum for 64 KiB, 16 hashes a MiB. A function of the fragment
# size alone, so that an extent is enough to read.
BLOCK_SIZE_SMALL = 4 * 1024
BLOCK_SIZE_LARGE = 64 * 1024
SMALL_FRAGMENT_SIZE_MAX = 256 * 1024

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_FILE_HEADER = Struct("<4sB3x16sQBBBxQ12xQ")
_HEADER_PLAIN = Struct("<4sBBBBQQIIIIQ")  # Bytes 0 to 48.
_HEADER = Struct("<4sBBBBQQIIIIQQ")
_IDENTITY = Struct("<16sQBQI")
_CHECKSUM = Struct("<Q")
_PADDING = tuple(bytes(n) for n in range(ALIGNMENT))

assert _FILE_HEADER.size == FILE_HEADER_SIZE
assert _HEADER_PLAIN.size == RECORD_HEADER_SIZE - CHECKSUM_SIZE
assert _HEADER.size == RECORD_HEADER_SIZE


class Seal(NamedTuple):
    """What every checksum of a cluster is bound to. Made once a process from the identity file."""

    cluster: bytes  # 16 bytes.
    secret: int  # 64 bits; never leaves the identity files.


class FileHeader(NamedTuple):
    volume: int
    index: int  # type: ignore[assignment]  # Shadows tuple.index, as in node/disk.py.
    k: int
    m: int
    created_us: int


class RecordHeader(NamedTuple):
    volume: int
    index: int  # type: ignore[assignment]
    k: int
    m: int
    offset: int  # Bytes from the start of the fragment file.
    fragment_size: int  # Bytes of payload in this fragment, zero padding included.
    payload_size: int  # Bytes of the whole stripe before padding.
    directory_offset: int  # Bytes from the start of the payload.
    clock_us: int  # The writer's clock.

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.offset + record_size(self.fragment_size)


# Sizes.


def block_size(fragment_size: int) -> int:
    """Bytes of payload under one checksum."""
    return BLOCK_SIZE_SMALL if fragment_size <= SMALL_FRAGMENT_SIZE_MAX else BLOCK_SIZE_LARGE


def record_size(fragment_size: int) -> int:
    """Bytes that a fragment of this size takes in its file: header, checksums, blocks, padding."""
    assert 0 < fragment_size <= FRAGMENT_SIZE_MAX
    blocks = -(-fragment_size // block_size(fragment_size))
    return (RECORD_HEADER_SIZE + blocks * CHECKSUM_SIZE + fragment_size + ALIGNMENT - 1) & -ALIGNMENT


def record_seed(seal: Seal, volume: int, index: int, offset: int, fragment_size: int) -> int:
    """The seed of the record's block 0; block n's is this plus n, modulo 2**64."""
    return xxh3_64_intdigest(_IDENTITY.pack(seal.cluster, volume, index, offset, fragment_size), seal.secret)


# Writing.


def file_header(seal: Seal, *, volume: int, index: int, k: int, m: int, created_us: int) -> bytes:
    """The 64 bytes at the start of a fragment file; append them at offset 0."""
    plain = _FILE_HEADER.pack(FILE_MAGIC, FORMAT, seal.cluster, volume, index, k, m, created_us, 0)[:-8]
    return plain + _CHECKSUM.pack(xxh3_64_intdigest(plain, seal.secret))


def record_buffers(
    seal: Seal,
    *,
    volume: int,
    index: int,
    offset: int,
    k: int,
    m: int,
    fragment: Buffer,
    payload_size: int,
    directory_offset: int,
    clock_us: int,
) -> list[Buffer]:
    """The gather list of one record, for Disk.append at `offset`. Copies no payload.

    Args:
        fragment: the whole fragment, zero padding included: 1 byte to 1 MiB. It is referenced, so it must
            not change until the append has ended.
        payload_size: of the whole stripe before padding, at most k x the fragment's size.

    Returns:
        Buffers whose sizes add up to `record_size(len(fragment))`.
    """
    size = len(fragment)
    assert 0 < size <= FRAGMENT_SIZE_MAX
    assert offset % ALIGNMENT == 0
    assert directory_offset <= payload_size <= k * size
    secret = seal.secret
    plain = _HEADER_PLAIN.pack(
        RECORD_MAGIC,
        FORMAT,
        index,
        k,
        m,
        volume,
        offset,
        size,
        payload_size,
        directory_offset,
        0,
        clock_us,
    )
    checksum = _CHECKSUM.pack
    seed = xxh3_64_intdigest(_IDENTITY.pack(seal.cluster, volume, index, offset, size), secret)
    header = plain + checksum(xxh3_64_intdigest(plain, secret))
    buffers: list[Buffer]
    if size <= BLOCK_SIZE_SMALL:
        buffers = [header + checksum(xxh3_64_intdigest(fragment, seed)), fragment]
        blocks = 1
    else:
        step = BLOCK_SIZE_SMALL if size <= SMALL_FRAGMENT_SIZE_MAX else BLOCK_SIZE_LARGE
        view = fragment if type(fragment) is memoryview else memoryview(fragment)
        buffers = [header]
        add = buffers.append
        for start in range(0, size, step):
            block = view[start : start + step]
            add(checksum(xxh3_64_intdigest(block, seed)))
            add(block)
            seed = (seed + 1) & _MASK
        blocks = len(buffers) >> 1
    tail = -(RECORD_HEADER_SIZE + blocks * CHECKSUM_SIZE + size) % ALIGNMENT
    if tail:
        buffers.append(_PADDING[tail])
    return buffers


# Reading.


class RangeRead:
    """One range of one fragment: where to read, into which buffers, and the verified bytes.

        plan = RangeRead(seal, volume, index, offset, fragment_size, begin, length)
        count = await disk.read(volume, index, plan.position, plan.buffers)
        view = plan.verified(count)

    Args (of the constructor):
        offset, fragment_size: of the record, from the extent.
        begin, length: the wanted bytes of this fragment's payload; within it, at least 1 byte.
        into: a writable buffer for the covering blocks (`covering_size` bytes at least), or None: its own.
    """

    __slots__ = ("_begin", "_count", "_first", "_length", "_raw", "_seed", "_step", "_sums", "_wanted",
                 "buffers", "position")  # fmt: skip

    def __init__(
        self,
        seal: Seal,
        volume: int,
        index: int,
        offset: int,
        fragment_size: int,
        begin: int,
        length: int,
        into: memoryview | None = None,
    ) -> None:
        assert 0 <= begin < begin + length <= fragment_size
        step = BLOCK_SIZE_SMALL if fragment_size <= SMALL_FRAGMENT_SIZE_MAX else BLOCK_SIZE_LARGE
        first = begin // step
        count = (begin + length - 1) // step + 1 - first
        start = first * step
        size = min(start + count * step, fragment_size) - start  # Payload bytes of the covering blocks.
        self.position = offset + RECORD_HEADER_SIZE + first * (CHECKSUM_SIZE + step)
        self._seed = (
            xxh3_64_intdigest(_IDENTITY.pack(seal.cluster, volume, index, offset, fragment_size), seal.secret)
            + first
        )
        self._begin = begin - start
        self._length = length
        self._step = step
        self._count = count
        self._wanted = size + count * CHECKSUM_SIZE
        if count <= 2 and into is None:
            # One plain read; two blocks are joined by a copy that costs less than the scatter list.
            self._raw = memoryview(bytearray(self._wanted))
            self._sums: memoryview | None = None
            self.buffers = [self._raw]
            return
        # Scatter: payload and checksums into buffers of their own, so that the payload is contiguous.
        sums = memoryview(bytearray(count * CHECKSUM_SIZE))
        raw = memoryview(bytearray(size)) if into is None else into[:size]
        assert len(raw) == size
        self._raw = raw
        self._sums = sums
        buffers: list[memoryview] = []
        for number in range(count):
            buffers.append(sums[number * CHECKSUM_SIZE : (number + 1) * CHECKSUM_SIZE])
            buffers.append(raw[number * step : (number + 1) * step])
        self.buffers = buffers

    def verified(self, count: int) -> memoryview:
        """The wanted bytes, every covering block checked. `count`: what the read returned.

        Raises: Corrupt if the read was short or a checksum is wrong: no wrong byte is ever returned.
        """
        if count != self._wanted:
            raise Corrupt(f"{count} of {self._wanted} bytes at {self.position}: the fragment ends early")
        raw = self._raw
        step = self._step
        begin = self._begin
        seed = self._seed
        sums = self._sums
        if sums is not None:
            stored = Struct(f"<{self._count}Q").unpack(sums)
            for number in range(self._count):
                block = raw[number * step : (number + 1) * step]
                if xxh3_64_intdigest(block, (seed + number) & _MASK) != stored[number]:
                    self._refuse(number)
            return raw[begin : begin + self._length]
        block = raw[CHECKSUM_SIZE : CHECKSUM_SIZE + step]
        if xxh3_64_intdigest(block, seed & _MASK) != _CHECKSUM.unpack_from(raw)[0]:
            self._refuse(0)
        if self._count == 1:
            return block[begin : begin + self._length]
        second = raw[2 * CHECKSUM_SIZE + step :]
        if (
            xxh3_64_intdigest(second, (seed + 1) & _MASK)
            != _CHECKSUM.unpack_from(raw, CHECKSUM_SIZE + step)[0]
        ):
            self._refuse(1)
        return memoryview(b"".join((block[begin:], second[: begin + self._length - step])))

    def _refuse(self, number: int) -> None:
        raise Corrupt(f"wrong checksum of block {number} of the read at {self.position}")


def covering_size(fragment_size: int, begin: int, length: int) -> int:
    """Payload bytes of the blocks that cover [begin, begin + length): what `RangeRead.into` must hold."""
    step = block_size(fragment_size)
    start = begin // step * step
    end = -(-(begin + length) // step) * step
    return min(end, fragment_size) - start


def parse_file_header(seal: Seal, data: Buffer, volume: int, index: int) -> FileHeader:
    """Raises: Corrupt if it is not this volume's and index's header, whole and of this cluster."""
    if len(data) < FILE_HEADER_SIZE:
        raise Corrupt(f"{volume}.{index}: the file header has {len(data)} bytes")
    magic, form, cluster, at_volume, at_index, k, m, created, checksum = _FILE_HEADER.unpack_from(data)
    plain = memoryview(data)[: FILE_HEADER_SIZE - CHECKSUM_SIZE]
    if magic != FILE_MAGIC or xxh3_64_intdigest(plain, seal.secret) != checksum:
        raise Corrupt(f"{volume}.{index}: no file header, or a damaged one")
    if form != FORMAT:
        raise Corrupt(f"{volume}.{index}: file format {form}; this release reads {FORMAT}")
    if (cluster, at_volume, at_index) != (seal.cluster, volume, index):
        raise Corrupt(f"{volume}.{index}: the file says it is {at_volume}.{at_index}")
    return FileHeader(volume, index, k, m, created)


def parse_header(seal: Seal, data: Buffer, volume: int, index: int, offset: int) -> RecordHeader:
    """The header of the record at `offset` from its first 56 bytes.

    Raises: Corrupt if its checksum is wrong or it belongs elsewhere.
    """
    if len(data) < RECORD_HEADER_SIZE:
        raise Corrupt(f"{volume}.{index} at {offset}: the file ends within the header")
    (magic, form, at_index, k, m, at_volume, at_offset, size, payload, directory, flags, clock, checksum) = (
        _HEADER.unpack_from(data)
    )
    plain = memoryview(data)[: RECORD_HEADER_SIZE - CHECKSUM_SIZE]
    if magic != RECORD_MAGIC or xxh3_64_intdigest(plain, seal.secret) != checksum:
        raise Corrupt(f"{volume}.{index} at {offset}: no record header, or a damaged one")
    if form != FORMAT or flags:
        raise Corrupt(f"{volume}.{index} at {offset}: record format {form}, flags {flags:#x}")
    if (at_volume, at_index, at_offset) != (volume, index, offset):
        raise Corrupt(f"{volume}.{index} at {offset}: the record says {at_volume}.{at_index} at {at_offset}")
    if not 0 < size <= FRAGMENT_SIZE_MAX or not directory <= payload <= k * size:
        raise Corrupt(f"{volume}.{index} at {offset}: sizes that cannot be")
    return RecordHeader(volume, index, k, m, offset, size, payload, directory, clock)


def verify_record(seal: Seal, record: Buffer, volume: int, index: int, offset: int) -> RecordHeader:
    """Check every byte of a whole record: header, blocks, padding.

    Args:
        record: `record_size(...)` bytes at least; more is ignored.

    Raises: Corrupt, naming what is wrong.
    """
    header = parse_header(seal, record, volume, index, offset)
    size = header.fragment_size
    end = record_size(size)
    if len(record) < end:
        raise Corrupt(f"{volume}.{index} at {offset}: {len(record)} of {end} bytes")
    step = block_size(size)
    seed = record_seed(seal, volume, index, offset, size)
    view = memoryview(record)
    at = RECORD_HEADER_SIZE
    for number, start in enumerate(range(0, size, step)):
        stop = at + CHECKSUM_SIZE + min(step, size - start)
        if (
            xxh3_64_intdigest(view[at + CHECKSUM_SIZE : stop], (seed + number) & _MASK)
            != _CHECKSUM.unpack_from(view, at)[0]
        ):
            raise Corrupt(f"{volume}.{index} at {offset}: wrong checksum of block {number}")
        at = stop
    if view[at:end] != _PADDING[end - at]:
        raise Corrupt(f"{volume}.{index} at {offset}: the padding is not zero")
    return header


# Whole files.

Read = Callable[[int, int, int, Sequence[memoryview]], Awaitable[int]]  # Disk.read

# A window holds the largest record whole (1 MiB, 16 checksums, a header) and many small ones.
SCAN_WINDOW_SIZE = 2 * 1024 * 1024
HEADER_WINDOW_SIZE = 64 * 1024


class FileScan:
    """Walk one fragment file from record to record.

        scan = FileScan(seal, disk.read, volume, index)
        async for header, record in scan.records(verify=True): ...
        scan.end, scan.tail

    After the walk `end` is where the last whole record ends, and `tail` says what lies there: "" (the file's
    end), "torn" (fewer bytes than a record needs), or "bad" (bytes that are no record of this place, or
    blocks that fail; `failure` has the words). It never looks for a record further on: what follows a bad
    place may be a client's bytes that look like a record.
    """

    def __init__(self, seal: Seal, read: Read, volume: int, index: int) -> None:
        self.end = 0
        self.tail = ""
        self.failure = ""
        self._seal = seal
        self._read = read
        self._volume = volume
        self._index = index

    async def header(self) -> FileHeader:
        """Raises: Corrupt, FileNotFoundError, Unavailable."""
        data = bytearray(FILE_HEADER_SIZE)
        count = await self._read(self._volume, self._index, 0, [memoryview(data)])
        return parse_file_header(self._seal, data[:count], self._volume, self._index)

    async def records(
        self, *, start: int = FILE_HEADER_SIZE, stop: int | None = None, verify: bool = False
    ) -> AsyncIterator[tuple[RecordHeader, memoryview]]:
        """Headers in file order, each with its record's bytes if `verify` (valid until the next step),
        else an empty view.

        Args:
            start: a record's offset.
            stop: do not look at or beyond this offset (the volume's length).
            verify: read and check every block, not only the headers.
        """
        window = _Window(
            self._read, self._volume, self._index, SCAN_WINDOW_SIZE if verify else HEADER_WINDOW_SIZE
        )
        offset = start
        self.end = offset
        self.tail = self.failure = ""
        while stop is None or offset < stop:
            data = await window.at(offset, RECORD_HEADER_SIZE)
            if not data:
                return
            if len(data) < RECORD_HEADER_SIZE:
                self.tail, self.failure = "torn", f"{len(data)} bytes at {offset} where a header should be"
                return
            try:
                header = parse_header(self._seal, data, self._volume, self._index, offset)
                size = record_size(header.fragment_size)
                if verify:
                    data = await window.at(offset, size)
                    whole = len(data) == size
                    if whole:
                        verify_record(self._seal, data, self._volume, self._index, offset)
                else:
                    # The record's last bytes tell that it is whole; the next header lies behind them.
                    data = data[:0]
                    whole = len(await window.at(header.end - ALIGNMENT, ALIGNMENT)) == ALIGNMENT
            except Corrupt as failure:
                self.tail, self.failure = "bad", str(failure)
                return
            if not whole:
                self.tail, self.failure = "torn", f"the record at {offset} needs {size} bytes"
                return
            yield header, data
            offset = header.end
            self.end = offset


class _Window:
    """A piece of a file in memory that moves forward."""

    def __init__(self, read: Read, volume: int, index: int, size: int) -> None:
        self._read = read
        self._volume = volume
        self._index = index
        self._buffer = memoryview(bytearray(size))
        self._start = 0
        self._end = 0
        self._file_end: int | None = None

    async def at(self, position: int, size: int) -> memoryview:
        """`size` bytes of the file at `position`; fewer only where the file ends."""
        assert size <= len(self._buffer)
        inside = self._start <= position and position + size <= self._end
        if not inside and (self._file_end is None or position < self._start):
            count = await self._read(self._volume, self._index, position, [self._buffer])
            self._start = position
            self._end = position + count
            self._file_end = self._end if count < len(self._buffer) else None
        return self._buffer[
            max(0, position - self._start) : max(0, min(position + size, self._end) - self._start)
        ]
