"""Identifiers that we make. Names on disk and in metadata are these, never a client's words."""

import os
from collections.abc import Callable
from hashlib import sha256

ID_SIZE = 16  # Bytes: 128 bits cannot be guessed and do not collide.
_ULID_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

Randomness = Callable[[int], bytes]  # size in bytes -> that many random bytes; os.urandom in production


def random_id(randomness: Randomness = os.urandom) -> bytes:
    """16 random bytes."""
    return randomness(ID_SIZE)


def ordered_id(now_us: int, randomness: Randomness = os.urandom) -> bytes:
    """16 bytes that sort by time of making: 7 bytes of microseconds, 9 random ones.

    For upload ids, which S3 lists in order of initiation within one key.
    """
    assert 0 <= now_us < 1 << 56
    return now_us.to_bytes(7, "big") + randomness(ID_SIZE - 7)


def ulid(now_us: int, randomness: Randomness = os.urandom) -> str:
    """26 letters that sort by the millisecond of making: 48 bits of it, 80 random ones.

    Source: github.com/ulid/spec (Crockford's base 32: no I, L, O or U).
    """
    assert 0 <= now_us < 1000 << 48
    number = (now_us // 1000 << 80) | int.from_bytes(randomness(10), "big")
    return "".join(_ULID_LETTERS[number >> shift & 31] for shift in range(125, -1, -5))


def master_key_id(master_key: bytes) -> str:
    """16 hex digits, which say nothing about its 256 random bits."""
    return sha256(b"objstore master key " + master_key).hexdigest()[:16]
