"""Heads of records read as columns, against one record after another."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from objstore.errors import Corrupt
from objstore.extents import Extent
from objstore.meta.heads import FEW, NO_CHECKSUM, Heads, decode_heads
from objstore.meta.schema import CHECKSUMS, Checksum, Extra, Multipart, ObjectRecord, decode, encode
from tests.seed import SEED

COUNTS = (0, 1, FEW, FEW + 1, 40)
# Each side of every width that MessagePack has for a size.
SIZES = (0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 5 * 2**40, 2**63)


def one_after_another(values: list[bytes]) -> Heads:
    records = [decode(value, ObjectRecord) for value in values]
    etags = [record.etag for record in records]
    return Heads(
        [record.order for record in records],
        [record.size for record in records],
        b"".join(etag[:16] for etag in etags),
        {index: int.from_bytes(etag[16:], "big") for index, etag in enumerate(etags) if etag[16:]},
        bytes(record.checksum[0] if record.checksum else NO_CHECKSUM for record in records),
    )


def same(found: Heads, wanted: Heads) -> bool:
    return (list(found.orders), list(found.sizes), *found[2:]) == (
        list(wanted.orders),
        list(wanted.sizes),
        *wanted[2:],
    )


def a_checksum(source: random.Random) -> bytes:
    kind = source.choice(["FULL_OBJECT", "COMPOSITE"])
    return Checksum(source.choice(CHECKSUMS), kind, source.randbytes(source.choice([4, 8, 20, 32])), 3).pack()


def usual(source: random.Random) -> ObjectRecord:
    """As a put of a few kilobytes leaves it."""
    size = source.randrange(256, 65_536)
    return ObjectRecord(
        1,
        1_790_000_000_000_000 + source.randrange(10**12),
        b"",
        size,
        source.randbytes(16),
        Checksum("CRC64NVME", "FULL_OBJECT", source.randbytes(8)).pack(),
        [
            Extent(
                source.randrange(2**20), 8 * source.randrange(2**30), 26_624, 0, size, source.getrandbits(64)
            )
        ],
    )


def of_any_size(source: random.Random) -> ObjectRecord:
    return msgspec.structs.replace(usual(source), size=source.choice(SIZES))


def of_any_checksum(source: random.Random) -> ObjectRecord:
    checksum = a_checksum(source) if source.random() < 0.7 else b""
    return msgspec.structs.replace(of_any_size(source), checksum=checksum)


def multipart(source: random.Random) -> ObjectRecord:
    return msgspec.structs.replace(
        of_any_checksum(source),
        etag=source.randbytes(18),
        extents=[],
        extra=Extra(multipart=Multipart(source.randbytes(16), 3)),
    )


def strange(source: random.Random) -> ObjectRecord:
    """Rare, but the format allows it."""
    changes: list[dict[str, Any]] = [
        {"version": source.randbytes(16)},
        {"order": source.randrange(2**32)},
        {"extra": Extra(salvaged=True, headers={"x-amz-storage-class": "COLD"})},
        {"size": 0, "extents": [], "checksum": b""},
        {"owner": "someone else"},
    ]
    return msgspec.structs.replace(of_any_checksum(source), **source.choice(changes))


def mixed(source: random.Random) -> ObjectRecord:
    kinds = [usual, of_any_size, of_any_checksum, multipart, strange]
    return source.choices(kinds, [200, 20, 20, 1, 1])[0](source)


@pytest.mark.parametrize("kind", [usual, of_any_size, of_any_checksum, multipart, strange, mixed])
@pytest.mark.parametrize("count", COUNTS)
def test_columns_say_what_the_records_say(kind: Callable[[random.Random], ObjectRecord], count: int) -> None:
    source = random.Random(f"{SEED} {kind.__name__} {count}")
    for _ in range(20):
        values = [encode(kind(source)) for _ in range(count)]
        assert same(decode_heads(values), one_after_another(values)), f"seed {SEED}: {values}"


@pytest.mark.parametrize("size", SIZES)
def test_records_of_one_size_are_read_right_whatever_it_is(size: int) -> None:
    source = random.Random(f"{SEED} {size}")
    values = [encode(msgspec.structs.replace(usual(source), size=size)) for _ in range(FEW + 1)]
    assert same(decode_heads(values), one_after_another(values)), f"seed {SEED}"


@pytest.mark.parametrize("at", range(46))
def test_a_record_that_differs_from_the_others_in_any_byte_is_read_right_or_refused(at: int) -> None:
    """A format of later, damage that its checksum did not find: never another record's words for its own."""
    source = random.Random(f"{SEED} {at}")
    values = [encode(usual(source)) for _ in range(2 * FEW)]
    for byte in range(256):
        changed = bytearray(values[3])
        changed[at] = byte
        altered = [*values[:3], bytes(changed), *values[4:]]
        try:
            wanted = one_after_another(altered)
        except msgspec.DecodeError:
            continue  # No record. What becomes of it is decided by who reads it whole.
        if len(wanted.digests) != 16 * len(altered):
            with pytest.raises(Corrupt):
                decode_heads(altered)
            continue
        assert same(decode_heads(altered), wanted), f"seed {SEED}, byte {byte} at {at}"


@pytest.mark.parametrize("count", COUNTS[1:])
def test_an_etag_without_a_digest_is_damage_and_shifts_no_other(count: int) -> None:
    source = random.Random(SEED)
    records = [usual(source) for _ in range(count)]
    records[0] = msgspec.structs.replace(records[0], etag=b"short")
    with pytest.raises(Corrupt, match="ETag"):
        decode_heads([encode(record) for record in records])


def test_what_is_no_record_is_refused() -> None:
    source = random.Random(SEED)
    for broken in (b"", b"\x99", bytes(60), b"\x91\x01" + bytes(60)):
        with pytest.raises(msgspec.DecodeError):
            decode_heads([*(encode(usual(source)) for _ in range(2 * FEW)), broken])
