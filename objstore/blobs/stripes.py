"""Stripe payloads: which bytes go where. Pure arithmetic and packing; no disk, no clock.

    payload    body 0, zeros to 8, body 1, zeros to 8, ..., directory
    directory  MessagePack array of [home, begin, length, blob offset, about]
    stripe     the payload, zero-padded to k x fragment size, cut into k contiguous data fragments

The fragment record's header carries the directory's offset and the payload's size, so the
directory is found without an index. docs/formats-blobs.md draws it byte by byte.
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


class Piece(NamedTuple):
    """What goes into a stripe: a whole small body, or the part of a stream that it carries."""

    body: Buffer
    home: bytes
    about: bytes
    blob_offset: int = 0


class Packed(NamedTuple):
    payload: bytes
    begins: list[int]  # Of each piece, in order.
    directory_offset: int


_decode = msgspec.msgpack.Decoder(list[Entry]).decode


def div_ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def aligned(size: int) -> int:
    return (size + ALIGNMENT - 1) & -ALIGNMENT


def fragment_size(payload_size: int, k: int) -> int:
    """Bytes of payload per fragment: the payload over k, rounded up to 8 (records are padded to 8 anyway)."""
    assert payload_size >= 1
    return aligned(div_ceil(payload_size, k))


def pack(pieces: Sequence[Piece]) -> Packed:
    """Lay the bodies out, each at a multiple of 8, and the directory behind them. One copy of each byte."""
    parts: list[Buffer] = []
    begins: list[int] = []
    directory: list[tuple[bytes, int, int, int, bytes]] = []
    position = 0
    for body, home, about, blob_offset in pieces:
        length = len(body)
        begins.append(position)
        directory.append((home, position, length, blob_offset, about))
        parts.append(body)
        padding = -length & (ALIGNMENT - 1)
        if padding:
            parts.append(_ZEROS[padding])
        position += length + padding
    parts.append(_encode(directory))
    return Packed(b"".join(parts), begins, position)


def directory_of(entries: Sequence[tuple[bytes, int, int, int, bytes]]) -> bytes:
    """Encode a directory by itself, for a stream that fills its payload in place."""
    return _encode(entries)


def unpack_directory(directory: Buffer) -> list[Entry]:
    """Raises: Corrupt if it is no directory (its bytes were verified: a bug or a later format)."""
    try:
        return _decode(directory)
    except msgspec.MsgspecError as failure:
        raise Corrupt(f"a stripe's directory cannot be read: {failure}") from failure


def cut(payload: Buffer, k: int) -> tuple[int, list[memoryview]]:
    """Cut a payload into k data fragments of equal size.

    Returns: the fragment size and k views. Only the fragments that reach beyond the payload are
    copied, to be zero-padded; the others are views of it.
    """
    size = fragment_size(len(payload), k)
    view = memoryview(payload).cast("B") if isinstance(payload, memoryview) else memoryview(payload)
    full = len(payload) // size
    fragments = [view[index * size : (index + 1) * size] for index in range(min(full, k))]
    if full < k:
        rest = bytes(view[full * size :])
        tail = memoryview(rest.ljust((k - full) * size, b"\0"))
        fragments += [tail[index * size : (index + 1) * size] for index in range(k - full)]
    return size, fragments


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
