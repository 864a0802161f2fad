"""Which engine computes the code: chosen once at the start, by a test of bytes, never by hope."""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from objstore.codec import isal
from objstore.codec.reed_solomon import Codec, ZfecCodec, zfec_name

SELF_TEST_PROFILES = ((4, 2), (8, 4), (16, 4), (1, 2))
SELF_TEST_SIZE = 10_007  # Bytes; a prime: every profile has padding and odd tails.


class Backend(NamedTuple):
    name: str  # For `objstore doctor`, e.g. "isal (libisal.so.2), identical to zfec 1.6.0.0".
    accelerated: bool
    note: str  # Why it is not accelerated; empty if it is.
    codec: Callable[[int, int], Codec]  # (k, m) -> the codec of this profile; made once.


def choose(*, accelerate: bool = True) -> Backend:
    """ISA-L if it is here and gives zfec's bytes in a self-test, else zfec. Takes a few milliseconds.

    Args:
        accelerate: False forces zfec.
    """
    if not accelerate:
        return _zfec("acceleration is switched off")
    try:
        library = isal.find_library()
    except isal.IsalMissing as failure:
        return _zfec(f"no ISA-L: {failure}")
    difference = self_test(library)
    if difference:
        return _zfec(f"{library.path} {difference}")
    return Backend(
        f"isal ({library.path}), identical to {zfec_name()}",
        True,
        "",
        lru_cache(maxsize=None)(lambda k, m: isal.IsalCodec(library, k, m)),
    )


def self_test(library: isal.Library) -> str:
    """Compare encode and one decode of several profiles with zfec. Returns what differs, or nothing."""
    rng = random.Random(1)  # noqa: S311  # Any bytes will do, the same ones each time.
    payload = rng.randbytes(SELF_TEST_SIZE)
    for k, m in SELF_TEST_PROFILES:
        expected = [bytes(fragment) for fragment in ZfecCodec(k, m).encode(payload)]
        codec = isal.IsalCodec(library, k, m)
        if [bytes(fragment) for fragment in codec.encode(payload)] != expected:
            return f"encodes {k}+{m} otherwise than zfec"
        survivors = {index: expected[index] for index in range(m, k + m)}  # The first m are lost.
        decoded = codec.decode(survivors, len(expected[0]))
        if [bytes(fragment) for fragment in decoded] != expected[:k]:
            return f"decodes {k}+{m} wrongly"
    return ""


def _zfec(note: str) -> Backend:
    return Backend(zfec_name(), False, note, lru_cache(maxsize=None)(ZfecCodec))
