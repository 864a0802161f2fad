"""Stripe payloads: which bytes go where. Pure arithmetic and packing; no disk, no clock.

    payload    body 0, zeros to 8, body 1, zeros to 8, ..., directory
    directory  MessagePack array of [home, begin, length, blob offset, about] or [.., about, blob]
    stripe     the payload, zero-padded to k x fragment size, cut into k contiguous data fragments

The fragment record's header carries the directory's offset and the payload's size, so the
directory is found without an index. docs/formats.md draws it byte by byte.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from objstore.errors import Corrupt
from objstore.extents import Extent

Buffer = bytes | bytearray | memoryview

ALIGNMENT = 8  # Bytes. Bodies, fragments and records all start at multiples of it.
FRAGMENT_SIZE_MAX = 1024 * 1024  # Bytes of a full stripe's fragment: k MiB of payload.
DIRECTORY_ROOM = 16 * 1024  # Bytes kept free in a full stripe for its directory; `about` stays well below.

_ZEROS = [b"\0" * count for count in range(ALIGNMENT)]
_encode = msgspec.msgpack.Encoder().encode


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One line of a stripe's directory: what these bytes are, for compaction and salvage."""

    home: bytes  # The metadata key whose record holds the extent.
    begin: int  # Bytes from the start of the payload.
    length: int  # Bytes.
    blob_offset: int  # Where these bytes lie in their blob; 0 for a small one.
    about: bytes  # The record without extents; empty in all stripes of a stream but the last.
    blob: int = 0  # The same in all pieces of one stream, and in no other: salvage never mixes two uploads.


class Piece(NamedTuple):
    """What goes into a stripe: a whole small body, or the part of a stream that it carries."""

    body: Buffer
    home: bytes
    about: bytes
    blob_offset: int = 0
    blob: int = 0


class Packed(NamedTuple):
    padded: bytes  # The payload and zeros: k x fragment_size bytes, ready to be encoded.
    payload_size: int  # Bytes before the padding.
    directory_offset: int
    fragment_size: int
    begins: list[int]  # Of each piece in the payload, in order.


_decode = msgspec.msgpack.Decoder(list[Entry]).decode


def div_ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def aligned(size: int) -> int:
    return (size + ALIGNMENT - 1) & -ALIGNMENT


def fragment_size(payload_size: int, k: int) -> int:
    """Bytes of payload per fragment: the payload over k, rounded up to 8 (records are padded to 8 anyway)."""
    assert payload_size >= 1
    return aligned(div_ceil(payload_size, k))


def pack(pieces: Sequence[Piece], k: int) -> Packed:
    """Lay the bodies out, each at a multiple of 8, and the directory behind them. One copy of each byte."""
    parts: list[Buffer] = []
    begins: list[int] = []
    directory: list[tuple[bytes, int, int, int, bytes] | tuple[bytes, int, int, int, bytes, int]] = []
    position = 0
    for body, home, about, blob_offset, blob in pieces:
        length = len(body)
        begins.append(position)
        if blob:
            directory.append((home, position, length, blob_offset, about, blob))
        else:
            directory.append((home, position, length, blob_offset, about))
        parts.append(body)
        padding = -length & (ALIGNMENT - 1)
        if padding:
            parts.append(_ZEROS[padding])
        position += length + padding
    encoded = _encode(directory)
    parts.append(encoded)
    payload_size = position + len(encoded)
    size = fragment_size(payload_size, k)
    parts.append(bytes(k * size - payload_size))
    return Packed(b"".join(parts), payload_size, position, size, begins)


def finish_in_place(
    buffer: bytearray, filled: int, k: int, *, home: bytes, blob_offset: int, about: bytes, blob: int
) -> Packed | None:
    """Put the directory behind the `filled` bytes of a stream's buffer, and zeros behind that.

    Returns: the stripe, whose `padded` is empty (the caller cuts its buffer at k x fragment_size), or
    None if it does not fit.
    """
    directory_offset = aligned(filled)
    encoded = _encode([(home, 0, filled, blob_offset, about, blob)])
    payload_size = directory_offset + len(encoded)
    size = fragment_size(payload_size, k)
    end = k * size
    if end > len(buffer) or size > FRAGMENT_SIZE_MAX:
        return None
    buffer[filled:end] = _ZEROS[directory_offset - filled] + encoded + bytes(end - payload_size)
    return Packed(b"", payload_size, directory_offset, size, [0])


def unpack_directory(directory: Buffer) -> list[Entry]:
    """Raises: Corrupt if it is no directory (its bytes were verified: a bug or a later format)."""
    try:
        return _decode(directory)
    except msgspec.MsgspecError as failure:
        raise Corrupt(f"a stripe's directory cannot be read: {failure}") from failure


class Slice(NamedTuple):
    """Bytes [begin, begin + length) of one data fragment."""

    fragment: int  # Index of the data fragment.
    begin: int
    length: int


def slices(extent: Extent, begin: int, length: int) -> list[Slice]:
    """Where bytes [begin, begin + length) of an extent lie: at most one slice a data fragment, in order."""
    assert begin >= 0
    assert length > 0
    assert begin + length <= extent.length
    size = extent.fragment_size
    position = extent.begin + begin
    found: list[Slice] = []
    while length:
        index, inside = divmod(position, size)
        take = min(length, size - inside)
        found.append(Slice(index, inside, take))
        position += take
        length -= take
    return found
