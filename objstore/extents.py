"""The address of some bytes in a volume: what blobs make and meta keeps."""

import msgspec

EXTENT_DIGEST_MAX = 64 * 1024  # Bytes. Up to this length an extent carries its own xxh3-64.


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`length` bytes of one stripe's payload, starting at `begin`.

    The stripe's record lies at `offset` in every fragment file of `volume`. Its payload is cut
    into k contiguous data fragments of `fragment_size` bytes each (the last ones zero-padded),
    so byte b of the payload is byte b % fragment_size of fragment b // fragment_size.

    On disk and in metadata this is a MessagePack array in the order below; fields are only
    ever added at the end.
    """

    volume: int
    offset: int  # Bytes from the start of the fragment file; a multiple of 8.
    fragment_size: int  # Bytes of payload per fragment.
    begin: int  # Bytes from the start of the payload.
    length: int  # Bytes; at least 1 (empty objects have no extents).
    digest: int = 0  # xxh3-64 of the bytes if length <= EXTENT_DIGEST_MAX, else 0.
