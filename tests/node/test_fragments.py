"""The fragment record: what is written is read, and nothing else is."""

import os
import random
import struct
from collections.abc import Sequence

import pytest
from xxhash import xxh3_64_intdigest

from objstore.errors import Corrupt
from objstore.node.fragments import (
    CHECKSUM_SIZE,
    FILE_HEADER_SIZE,
    FRAGMENT_SIZE_MAX,
    RECORD_HEADER_SIZE,
    FileScan,
    RangeRead,
    Seal,
    block_size,
    covering_size,
    file_header,
    parse_file_header,
    parse_header,
    record_buffers,
    record_size,
    verify_record,
)

SEED = int(os.environ.get("OBJSTORE_SEED", "20261121"))
SEAL = Seal(b"c" * 16, 0x0123_4567_89AB_CDEF)
SIZES = [1, 7, 8, 4095, 4096, 4097, 65_536, 262_144, 262_145, FRAGMENT_SIZE_MAX]
K = 4


def record(fragment: bytes, *, volume: int = 7, index: int = 1, offset: int = 64, seal: Seal = SEAL) -> bytes:
    size = len(fragment)
    return b"".join(
        record_buffers(
            seal,
            volume=volume,
            index=index,
            offset=offset,
            k=K,
            m=2,
            fragment=fragment,
            payload_size=K * size,
            directory_offset=size,
            clock_us=1_700_000_000_000_000,
        )
    )


def read_from(file: bytes, plan: RangeRead) -> memoryview:
    at = plan.position
    count = 0
    for buffer in plan.buffers:
        piece = file[at : at + len(buffer)]
        buffer[: len(piece)] = piece
        at += len(piece)
        count += len(piece)
    return plan.verified(count)


class File:
    """Bytes that are read as a Disk reads."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.reads = 0

    async def read(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        self.reads += 1
        start = position
        for buffer in buffers:
            piece = self.content[position : position + len(buffer)]
            buffer[: len(piece)] = piece
            position += len(piece)
        return position - start


def test_a_record_of_the_agreed_format_has_these_very_bytes() -> None:
    # Written down once: a change of this line is a change of the format of every disk in the field.
    assert record(b"abcdefgh" * 2 + b"x").hex() == (
        "4f534631010104020700000000000000400000000000000011000000440000001100000000000000"
        "00401e18240a06009bb01ccf57af4d99b4ada4fdb3e7c54c61626364656667686162636465666768"
        "7800000000000000"
    )
    # The same, computed once more from the drawing alone.
    plain = struct.pack("<4sBBBBQQIIIIQ", b"OSF1", 1, 1, 4, 2, 7, 64, 17, 68, 17, 0, 1_700_000_000_000_000)
    seed = xxh3_64_intdigest(struct.pack("<16sQBQI", b"c" * 16, 7, 1, 64, 17), SEAL.secret)
    assert record(b"abcdefgh" * 2 + b"x") == (
        plain
        + xxh3_64_intdigest(plain, SEAL.secret).to_bytes(8, "little")
        + xxh3_64_intdigest(b"abcdefgh" * 2 + b"x", seed).to_bytes(8, "little")
        + b"abcdefghabcdefghx"
        + bytes(7)
    )


def fragment_of(data: bytes, size: int) -> bytes:
    """The fragment that a record holds, without the checksums between its blocks."""
    step, at = block_size(size), RECORD_HEADER_SIZE
    found = b""
    while len(found) < size:
        at += CHECKSUM_SIZE
        found += data[at : at + min(step, size - len(found))]
        at += step
    return found


@pytest.mark.parametrize("size", SIZES)
def test_a_record_takes_the_size_that_is_computed_and_returns_its_fragment(size: int) -> None:
    fragment = os.urandom(size)
    data = record(fragment)
    assert len(data) == record_size(size)
    assert len(data) % 8 == 0
    header = verify_record(SEAL, data, 7, 1, 64)
    assert header.fragment_size == size
    assert header.payload_size == K * size
    assert header.directory_offset == size
    assert header.end == 64 + len(data)
    assert fragment_of(data, size) == fragment


@pytest.mark.parametrize("size", SIZES)
def test_any_range_is_read_without_the_header(size: int) -> None:
    rng = random.Random(f"{SEED} {size}")
    fragment = rng.randbytes(size)
    file = bytes(64) + record(fragment)
    step = block_size(size)
    ranges = [(0, size), (0, 1), (size - 1, 1)]
    for edge in range(step, size, max(step, size // 4 // step * step)):
        ranges += [(edge - 1, 1), (edge, 1), (edge - 1, 2)]
    for _ in range(20):
        begin = rng.randrange(size)
        ranges.append((begin, rng.randint(1, size - begin)))
    for begin, length in ranges:
        where = f"[{begin}, +{length}) of {size}, seed {SEED}"
        plan = RangeRead(SEAL, 7, 1, 64, size, begin, length)
        assert read_from(file, plan) == fragment[begin : begin + length], where
        into = memoryview(bytearray(covering_size(size, begin, length)))
        plan = RangeRead(SEAL, 7, 1, 64, size, begin, length, into)
        assert read_from(file, plan) == fragment[begin : begin + length], where


def test_a_flipped_bit_in_any_byte_of_a_record_is_detected() -> None:
    data = record(os.urandom(4111))  # Two blocks, a short one, padding.
    assert len(data) > RECORD_HEADER_SIZE + 2 * 8 + 4111
    for position in range(len(data)):
        rotten = bytearray(data)
        rotten[position] ^= 1 << (position % 8)
        with pytest.raises(Corrupt):
            verify_record(SEAL, rotten, 7, 1, 64)


def test_a_flipped_bit_in_any_byte_that_a_range_read_covers_is_detected() -> None:
    fragment = os.urandom(9000)
    data = bytes(64) + record(fragment)
    for begin, length in ((0, 9000), (100, 200), (4000, 200), (8500, 500)):
        plan = RangeRead(SEAL, 7, 1, 64, 9000, begin, length)
        covered = range(plan.position, plan.position + sum(map(len, plan.buffers)))
        for position in covered:
            rotten = bytearray(data)
            rotten[position] ^= 0x80
            with pytest.raises(Corrupt):
                read_from(bytes(rotten), RangeRead(SEAL, 7, 1, 64, 9000, begin, length))


@pytest.mark.parametrize(
    "other",
    [
        {"volume": 8},
        {"index": 2},
        {"offset": 128},
        {"seal": Seal(b"d" * 16, SEAL.secret)},
        {"seal": Seal(SEAL.cluster, 1)},
    ],
    ids=["volume", "index", "offset", "cluster", "secret"],
)
def test_a_whole_record_of_another_place_is_refused(other: dict[str, int]) -> None:
    # A misdirected write, a swap of two files, another cluster's disk, a forger without the secret.
    fragment = os.urandom(5000)
    data = record(fragment, **other)  # type: ignore[arg-type]
    with pytest.raises(Corrupt):
        verify_record(SEAL, data, 7, 1, 64)
    with pytest.raises(Corrupt):
        read_from(bytes(64) + data, RangeRead(SEAL, 7, 1, 64, 5000, 100, 10))


def test_two_blocks_of_one_record_cannot_change_places() -> None:
    data = bytearray(record(os.urandom(8192)))
    first, second = slice(56, 56 + 4104), slice(56 + 4104, 56 + 8208)
    data[first], data[second] = data[second], data[first]
    with pytest.raises(Corrupt, match="block 0"):
        verify_record(SEAL, data, 7, 1, 64)


def test_zeros_of_a_lost_write_are_no_data() -> None:
    with pytest.raises(Corrupt):
        read_from(bytes(20_000), RangeRead(SEAL, 7, 1, 64, 9000, 0, 100))
    with pytest.raises(Corrupt):
        parse_header(SEAL, bytes(56), 7, 1, 64)


def test_a_short_read_is_an_error_and_never_short_data() -> None:
    file = bytes(64) + record(os.urandom(4096))
    with pytest.raises(Corrupt, match="ends early"):
        read_from(file[:-1], RangeRead(SEAL, 7, 1, 64, 4096, 0, 10))


def test_a_header_of_a_later_format_is_refused_by_name() -> None:
    data = bytearray(record(b"x"))
    data[4] = 2
    checksum = xxh3_64_intdigest(bytes(data[:48]), SEAL.secret)
    data[48:56] = checksum.to_bytes(8, "little")
    with pytest.raises(Corrupt, match="format 2"):
        parse_header(SEAL, data, 7, 1, 64)


def test_a_file_header_is_read_back_and_every_flipped_bit_is_detected() -> None:
    data = file_header(SEAL, volume=7, index=1, k=4, m=2, created_us=99)
    assert len(data) == FILE_HEADER_SIZE
    assert parse_file_header(SEAL, data, 7, 1) == (7, 1, 4, 2, 99)
    for position in range(len(data)):
        rotten = bytearray(data)
        rotten[position] ^= 4
        with pytest.raises(Corrupt):
            parse_file_header(SEAL, rotten, 7, 1)
    with pytest.raises(Corrupt, match=r"says it is 7\.1"):
        parse_file_header(SEAL, data, 7, 2)


def a_file(sizes: Sequence[int], rng: random.Random) -> tuple[bytes, list[int]]:
    content = file_header(SEAL, volume=7, index=1, k=K, m=2, created_us=1)
    offsets = []
    for size in sizes:
        offsets.append(len(content))
        content += record(rng.randbytes(size), offset=len(content))
    return content, offsets


async def walk(content: bytes, *, verify: bool, stop: int | None = None) -> tuple[list[int], FileScan]:
    scan = FileScan(SEAL, File(content).read, 7, 1)
    found = [header.offset async for header, _ in scan.records(verify=verify, stop=stop)]
    return found, scan


@pytest.mark.parametrize("verify", [False, True])
async def test_a_scan_finds_every_record_and_the_end(verify: bool) -> None:
    rng = random.Random(SEED)
    sizes = [1, 5000, 1 << 20, 300, 262_145, *(rng.randint(1, 9000) for _ in range(200)), 1 << 20, 77]
    content, offsets = a_file(sizes, rng)
    found, scan = await walk(content, verify=verify)
    assert (found, scan.end, scan.tail) == (offsets, len(content), "")
    found, scan = await walk(content, verify=verify, stop=offsets[7])
    assert (found, scan.end, scan.tail) == (offsets[:7], offsets[7], "")


@pytest.mark.parametrize("verify", [False, True])
async def test_a_scan_of_a_file_cut_at_any_byte_ends_at_the_last_whole_record(verify: bool) -> None:
    content, offsets = a_file([10, 20, 30], random.Random(SEED))
    ends = [*offsets, len(content)]
    for cut in range(FILE_HEADER_SIZE, len(content) + 1):
        _, scan = await walk(content[:cut], verify=verify)
        assert scan.end == max(end for end in ends if end <= cut), f"cut at {cut}"
        assert scan.tail == ("" if cut in ends else "torn"), f"cut at {cut}"


async def test_a_scan_of_a_large_record_cut_in_its_blocks_calls_it_torn() -> None:
    content, offsets = a_file([100, 1 << 20], random.Random(SEED))
    for cut in (len(content) - 1, offsets[1] + 56, offsets[1] + 700_000):
        for verify in (False, True):
            _, scan = await walk(content[:cut], verify=verify)
            assert (scan.end, scan.tail) == (offsets[1], "torn")


async def test_a_scan_does_not_find_a_record_that_hides_in_a_payload() -> None:
    # A client may upload bytes that are a valid record of this very place, read from a stolen disk.
    content, offsets = a_file([50], random.Random(SEED))
    planted_at = len(content) + RECORD_HEADER_SIZE + 8
    content += record(record(b"planted", offset=planted_at), offset=len(content))
    found, scan = await walk(content, verify=True)
    assert len(found) == 2
    broken = bytearray(content)
    broken[offsets[0]] ^= 1
    found, scan = await walk(bytes(broken), verify=True)
    assert (found, scan.end, scan.tail) == ([], offsets[0], "bad")
    assert "no record header" in scan.failure


async def test_a_scan_that_verifies_names_the_bad_block_and_one_that_does_not_passes_it() -> None:
    content, offsets = a_file([50, 9000, 50], random.Random(SEED))
    rotten = bytearray(content)
    rotten[offsets[1] + 56 + 4104 + 100] ^= 1
    found, scan = await walk(bytes(rotten), verify=True)
    assert (found, scan.tail) == (offsets[:1], "bad")
    assert "block 1" in scan.failure
    found, scan = await walk(bytes(rotten), verify=False)
    assert found == offsets


async def test_a_scan_of_many_small_records_reads_large_pieces() -> None:
    content, offsets = a_file([100] * 2000, random.Random(SEED))
    file = File(content)
    scan = FileScan(SEAL, file.read, 7, 1)
    assert len([1 async for _ in scan.records()]) == len(offsets)
    assert file.reads <= len(content) // 32_768 + 2
