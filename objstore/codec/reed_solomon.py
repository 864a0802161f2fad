"""The code itself: zfec's systematic Vandermonde code over GF(2^8), polynomial 0x11d.

This module defines the format: what is stored is what zfec computes. Pure CPU, no I/O, no state.

A payload of n bytes is cut into k contiguous data fragments of ceil(n / k) bytes, the last ones padded with
zeros; m parity fragments of the same size follow. Any k of the k+m give the payload back. The payload's size
is not recorded here: who decodes must know where to cut.

Source: zfec 1.6 (Rizzo's code). zfec's own `m` argument is the total, k + m here.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Protocol

import zfec

Buffer = bytes | bytearray | memoryview

FRAGMENT_COUNT_MAX = 256  # One word of GF(2^8) has 256 places; zfec's limit too.


class Codec(Protocol):
    """One profile, k+m. Stateless for its callers: may be used from several threads at once."""

    k: int
    m: int
    inline_size_max: int  # Bytes of payload up to which encode and decode cost well under a millisecond.

    def encode(self, payload: Buffer) -> list[Buffer]:
        """Cut a payload into k data fragments and compute m parity fragments.

        Args:
            payload: at least 1 byte, contiguous. Data fragments are views into it, except the one that
                the payload's end cuts (and those behind it): so it must not change while they are used.

        Returns:
            k + m buffers of ceil(len(payload) / k) bytes, in index order.
        """
        ...

    def decode(self, fragments: Mapping[int, Buffer], fragment_size: int) -> list[Buffer]:
        """The k data fragments from any k (or more) fragments of the stripe.

        Args:
            fragments: by index, each of `fragment_size` bytes and already verified: a wrong byte in gives
                wrong bytes out. Those present are returned as they are, not copied.

        Raises: AssertionError if fewer than k fragments, or fragments of another size, are given.
        """
        ...

    def rebuild(self, fragments: Mapping[int, Buffer], wanted: Sequence[int]) -> dict[int, Buffer]:
        """The fragments `wanted` (data or parity) from any k others."""
        ...


class ZfecCodec:
    """The reference and the fallback. Does not release the GIL."""

    def __init__(self, k: int, m: int) -> None:
        check_profile(k, m)
        self.k = k
        self.m = m
        self.inline_size_max = 256 * 1024  # 1.2 GB/s at 4+2: 0.2 ms.
        self._encoder = zfec.Encoder(k, k + m)
        self._decoder = zfec.Decoder(k, k + m)
        self._parity = tuple(range(k, k + m))

    def encode(self, payload: Buffer) -> list[Buffer]:
        data = split(payload, self.k)
        parity: list[Buffer] = self._encoder.encode(tuple(data), self._parity)
        return data + parity

    def decode(self, fragments: Mapping[int, Buffer], fragment_size: int) -> list[Buffer]:
        k = self.k
        chosen = choose_survivors(fragments, k)
        assert all(len(fragments[index]) == fragment_size for index in chosen)
        if chosen[-1] < k:
            return [fragments[index] for index in chosen]
        decoded: list[Buffer] = self._decoder.decode([fragments[index] for index in chosen], list(chosen))
        return [fragments.get(index, decoded[index]) for index in range(k)]

    def rebuild(self, fragments: Mapping[int, Buffer], wanted: Sequence[int]) -> dict[int, Buffer]:
        if not wanted:
            return {}
        data = self.decode(fragments, len(next(iter(fragments.values()))))
        built = self._encoder.encode(tuple(data), tuple(wanted))
        return dict(zip(wanted, built, strict=True))


def check_profile(k: int, m: int) -> None:
    assert k >= 1, f"k = {k}"
    assert m >= 1, f"m = {m}"
    assert k + m <= FRAGMENT_COUNT_MAX, f"k + m = {k + m}"


def fragment_size(payload_size: int, k: int) -> int:
    """Bytes of each fragment of a payload."""
    assert payload_size >= 1
    return -(-payload_size // k)


def split(payload: Buffer, k: int) -> list[Buffer]:
    """k data fragments: views where the payload covers them, padded copies where it ends."""
    total = len(payload)
    size = fragment_size(total, k)
    view = payload if type(payload) is memoryview else memoryview(payload)
    whole = total // size
    data: list[Buffer] = [view[start : start + size] for start in range(0, whole * size, size)]
    if whole < k:
        rest = total - whole * size
        if rest:
            data.append(bytes(view[whole * size :]) + bytes(size - rest))
        if len(data) < k:
            data.extend([bytes(size)] * (k - len(data)))
    return data


def choose_survivors(present: Iterable[int], k: int) -> tuple[int, ...]:
    """The k lowest indexes: data before parity, so that as little as possible is computed."""
    chosen = tuple(sorted(present)[:k])
    assert len(chosen) == k, f"{len(chosen)} fragments, {k} needed"
    return chosen


def zfec_name() -> str:
    return f"zfec {version('zfec')}"
