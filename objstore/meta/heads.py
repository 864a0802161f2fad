"""What a listing shows of many object records at once, column by column.

One record after another costs an object for each field, a thousand times a page. But records of one shape
have each field at the same place up to their checksum: the n-th bytes of all of them are one slice, and a
column of integers or digests is a handful of slices. Records of another shape are decoded one by one.

    at      bytes of an ObjectRecord (schema.py) as MessagePack has it
    0       99, an array of nine
    1       01, the format
    2       cf, order (8, big-endian)
    11      c4 00, the null version
    13      the size: its marker and its 0 to 8 bytes (one below 128 is its own marker)
    14 + w  c4 10, the ETag (16); of a completed upload c4 12, and its number of parts (2) behind it
    32 + w  c4, the checksum's length, and its first byte: algorithm and type; an upload's, 34 + w

May not know: keys, how any of it is shown.
"""

from collections.abc import Mapping, Sequence
from struct import unpack
from typing import Final, NamedTuple

from objstore.errors import Corrupt
from objstore.meta.schema import decode_listed

NO_CHECKSUM: Final = 0xFF  # In `Heads.checksums`. No algorithm's code.
DIGEST_SIZE: Final = 16  # Bytes of an MD5.
FEW: Final = 8  # Records: up to here one after another is quicker.

_HEAD_SIZE: Final = 45  # Bytes that are looked at: all of the above of an upload with a size of eight bytes.
_ORDER_AT: Final = 3
_MARKER_AT: Final = 13
_SIZE_AT: Final = 14
_SHAPE: Final = ((0, b"\x99"), (1, b"\x01"), (2, b"\xcf"), (11, b"\xc4"), (12, b"\x00"))  # What is where.
_BINARY: Final = 0xC4  # Bytes follow, of a length of one byte.
_ETAG: Final = DIGEST_SIZE  # Lengths of an ETag,
_UPLOADS_ETAG: Final = DIGEST_SIZE + 2
_ETAGS: Final = bytes([_ETAG, _UPLOADS_ETAG])
_WIDTHS: Final = {**dict.fromkeys(range(0x80), 0), 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}  # By marker.
# By marker: what makes it a size of eight bytes, and where the rest of the head is.
_PADDING: Final = {
    marker: bytes(8 - width) if width else bytes([0] * 7 + [marker]) for marker, width in _WIDTHS.items()
}
_REST: Final = {marker: slice(_SIZE_AT, _HEAD_SIZE - 8 + width) for marker, width in _WIDTHS.items()}
_MARKERS: Final = bytes(_WIDTHS)
_HEAD: Final = slice(None, _HEAD_SIZE)  # A slice made once is a quarter of taking it.
_FRONT: Final = slice(None, _SIZE_AT)


class Heads(NamedTuple):
    """Of records in the order in which they were given."""

    orders: Sequence[int]  # Microseconds since 1970.
    sizes: Sequence[int]  # Bytes.
    digests: bytes  # The first DIGEST_SIZE bytes of each ETag, one behind the other.
    parts: Mapping[int, int]  # Of completed uploads: index -> the number of parts that its ETag names.
    checksums: bytes  # The first byte of each Checksum.pack(), NO_CHECKSUM where there is none.


NO_HEADS: Final = Heads((), (), b"", {}, b"")


def decode_heads(values: Sequence[bytes]) -> Heads:
    """The heads of these ObjectRecords.

    Raises: as `schema.decode`, for any of them; Corrupt for one whose ETag has no digest.
    """
    if not values:
        return NO_HEADS
    found = _in_columns(values) if len(values) > FEW else None
    return _one_by_one(values) if found is None else found


def _one_by_one(values: Sequence[bytes]) -> Heads:
    records = decode_listed(values)
    etags = [record.etag for record in records]
    if any(len(etag) < DIGEST_SIZE for etag in etags):
        raise Corrupt("the ETag of an object's record is too short")
    return Heads(
        [record.order for record in records],
        [record.size for record in records],
        b"".join([etag[:DIGEST_SIZE] for etag in etags]),
        {
            index: int.from_bytes(etag[DIGEST_SIZE:], "big")
            for index, etag in enumerate(etags)
            if len(etag) > DIGEST_SIZE
        },
        bytes([record.checksum[0] if record.checksum else NO_CHECKSUM for record in records]),
    )


def _in_columns(values: Sequence[bytes]) -> Heads | None:
    """None if there is a record of another shape."""
    count = len(values)
    heads = b"".join([value[_HEAD] for value in values])
    if len(heads) != count * _HEAD_SIZE:
        return None  # One is too short.
    markers = heads[_MARKER_AT::_HEAD_SIZE]
    width = _WIDTHS.get(markers[0], 0)
    if not width or markers.count(markers[0]) != count:
        if markers.translate(None, _MARKERS):
            return None
        heads, width = _fitted(values, markers), 8
    etag_at = _SIZE_AT + width
    shape = (*_SHAPE, (etag_at, bytes([_BINARY])))
    if any(heads[at::_HEAD_SIZE] != byte * count for at, byte in shape):
        return None
    etags = heads[etag_at + 1 :: _HEAD_SIZE]
    if etags.translate(None, _ETAGS):
        return None
    found = _checksums(heads, etags, etag_at + 2 + DIGEST_SIZE)
    if found is None:
        return None
    digests = bytearray(count * DIGEST_SIZE)
    for index in range(DIGEST_SIZE):
        digests[index::DIGEST_SIZE] = heads[etag_at + 2 + index :: _HEAD_SIZE]
    return Heads(_integers(heads, _ORDER_AT, 8), _integers(heads, _SIZE_AT, width), bytes(digests), *found)


def _checksums(heads: bytes, etags: bytes, at: int) -> tuple[dict[int, int], bytes] | None:
    """`Heads.parts` and `Heads.checksums`; None if there is anything else behind an ETag's digest.

    Args:
        etags: the length of each ETag.
        at: where in a head the digest ends.
    """
    marks, lengths, codes = (bytearray(heads[at + index :: _HEAD_SIZE]) for index in range(3))
    parts = {}
    if _UPLOADS_ETAG in etags:
        uploads = [index for index, length in enumerate(etags) if length == _UPLOADS_ETAG]
        next_lengths, next_codes = heads[at + 3 :: _HEAD_SIZE], heads[at + 4 :: _HEAD_SIZE]
        for index in uploads:
            parts[index] = marks[index] << 8 | lengths[index]
            marks[index], lengths[index], codes[index] = codes[index], next_lengths[index], next_codes[index]
    if marks.count(_BINARY) != len(etags):
        return None
    if 0 in lengths:  # What stands at its place is no checksum.
        pairs = zip(codes, lengths, strict=True)
        return parts, bytes([code if length else NO_CHECKSUM for code, length in pairs])
    return parts, bytes(codes)


def _fitted(values: Sequence[bytes], markers: bytes) -> bytes:
    """The heads with all sizes in eight bytes."""
    pieces = [b""] * (3 * len(values))
    pieces[0::3] = [value[_FRONT] for value in values]
    pieces[1::3] = [_PADDING[marker] for marker in markers]
    pieces[2::3] = [value[_REST[marker]] for value, marker in zip(values, markers, strict=True)]
    return b"".join(pieces)


def _integers(heads: bytes, at: int, width: int) -> tuple[int, ...]:
    """Of each head the big-endian integer of so many bytes at this offset."""
    count = len(heads) // _HEAD_SIZE
    wide = bytearray(8 * count)
    for index in range(width):
        wide[8 - width + index :: 8] = heads[at + index :: _HEAD_SIZE]
    return unpack(f">{count}Q", wide)
