"""The five checksums of S3 over what clients send: computing, naming. Combined ones: objects/checksums.py.

CRC32, CRC32C and CRC64NVME come from awscrt (vectorised);
SHA1 and SHA256 from hashlib. A CRC is kept as an int while it runs and is big-endian bytes outside.

Pure functions and one small running object; it may not know: HTTP, the store.
"""

import binascii
import hashlib
import re
from collections.abc import Callable
from typing import Final, Protocol

from awscrt import checksums as crt

from objstore.objects.values import Buffer

ALGORITHMS: Final = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
DEFAULT: Final = "CRC64NVME"
SIZES: Final = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}  # Bytes of a digest.
HEADERS: Final = {f"x-amz-checksum-{name.lower()}": name for name in ALGORITHMS}
FULL_OBJECT: Final = "FULL_OBJECT"

_crc64: Callable[[Buffer, int], int] = crt.crc64nvme
_CRC: Final[dict[str, Callable[[Buffer, int], int]]] = {
    "CRC32": crt.crc32,
    "CRC32C": crt.crc32c,
    "CRC64NVME": crt.crc64nvme,
}
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?").fullmatch


class Running(Protocol):
    """A checksum under way."""

    def update(self, data: Buffer, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    __slots__ = ("_function", "_size", "_value")

    def __init__(self, algorithm: str) -> None:
        self._function = _CRC[algorithm]
        self._size = SIZES[algorithm]
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def running(algorithm: str) -> Running:
    """A fresh checksum. `algorithm` is one of ALGORITHMS."""
    if algorithm == "SHA1":
        return hashlib.sha1(usedforsecurity=False)
    if algorithm == "SHA256":
        return hashlib.sha256()
    return _Crc(algorithm)


def compute(algorithm: str, data: Buffer) -> bytes:
    """The digest of one piece. Blocks the CPU: small pieces only on the event loop."""
    if algorithm == "CRC64NVME":
        return _crc64(data, 0).to_bytes(8, "big")
    if algorithm == "SHA256":
        return hashlib.sha256(data).digest()
    if algorithm == "SHA1":
        return hashlib.sha1(data, usedforsecurity=False).digest()
    return _CRC[algorithm](data, 0).to_bytes(4, "big")


def decode_value(algorithm: str, text: str) -> bytes | None:
    """A checksum as headers carry it (base64) -> raw digest; None if it is not exactly one."""
    if _BASE64(text) is None:
        return None
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == SIZES[algorithm] else None
