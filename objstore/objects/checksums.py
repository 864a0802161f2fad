"""S3's five checksum algorithms over bytes that do not come from a client: copies and completed uploads."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from awscrt import checksums as crt

from objstore.meta.schema import Checksum

Buffer = bytes | bytearray | memoryview
DEFAULT: Final = "CRC64NVME"  # Stored when the client named none.

_Crc = Callable[[Buffer, int], int]
_CRCS: Final[dict[str, tuple[_Crc, Callable[[int, int, int], int], int]]] = {
    # Algorithm: update, combine(crc of a, crc of b, size of b), digest size in bytes.
    "CRC32": (crt.crc32, crt.combine_crc32, 4),
    "CRC32C": (crt.crc32c, crt.combine_crc32c, 4),
    "CRC64NVME": (crt.crc64nvme, crt.combine_crc64nvme, 8),
}


class Hasher(Protocol):
    def update(self, data: Buffer, /) -> None: ...

    def digest(self) -> bytes: ...


class _CrcHasher:
    def __init__(self, update: _Crc, size: int) -> None:
        self._update = update
        self._size = size
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        self._value = self._update(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def is_crc(algorithm: str) -> bool:
    return algorithm in _CRCS


def hasher(algorithm: str) -> Hasher:
    """A fresh hasher; its digest is raw (CRCs big-endian, as S3 encodes them)."""
    crc = _CRCS.get(algorithm)
    if crc is not None:
        return _CrcHasher(crc[0], crc[2])
    if algorithm == "SHA1":
        return hashlib.sha1(usedforsecurity=False)
    assert algorithm == "SHA256", algorithm
    return hashlib.sha256()


def md5() -> Hasher:
    return hashlib.md5(usedforsecurity=False)


def full_object(algorithm: str, parts: Iterable[tuple[bytes, int]]) -> Checksum:
    """The CRC of the whole from its parts' (digest, size in bytes), in order."""
    _, combine, digest_size = _CRCS[algorithm]
    value = 0
    for digest, size in parts:
        value = combine(value, int.from_bytes(digest, "big"), size)
    return Checksum(algorithm, "FULL_OBJECT", value.to_bytes(digest_size, "big"))


def composite(algorithm: str, digests: list[bytes]) -> Checksum:
    """The checksum of the parts' raw checksums, one after another: S3's base64-N."""
    one = hasher(algorithm)
    one.update(b"".join(digests))
    return Checksum(algorithm, "COMPOSITE", one.digest(), len(digests))
