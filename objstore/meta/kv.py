"""The metadata interface: mini-transactions over ordered keys.

One interface, two engines (LMDB here, PostgreSQL for clusters), and `DictKv`, the reference: so
simple that it is obviously right. All S3 logic is written once above it. Keys order by their
bytes. Engines may keep their own records; those are invisible here.
"""

from bisect import bisect_left, insort
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from objstore.errors import Conflict, LimitReached

KEY_SIZE_MAX = 2_048  # Bytes. An S3 key of 1,024 bytes, escaped, with its prefix and suffix.
VALUE_SIZE_MAX = 8_192  # Bytes; records stay under 4 KB, longer lists get records of their own.
COUNTER_SIZE = 16  # Bytes: two's complement, big-endian. Byte-seconds outgrow 64 bits.


class Add(NamedTuple):
    """Add `delta` to a counter (absent = 0). Refused, whole commit and all, above `at_most`."""

    delta: int
    at_most: int | None = None


class Transaction(NamedTuple):
    """One mini-transaction: all of it happens, or nothing.

    `expect` holds the exact value that each key must have (None: absent). A key is in at most
    one of `put`, `delete` and `add`. A commit expects everything that its decision read.
    """

    expect: Mapping[bytes, bytes | None] = {}
    put: Mapping[bytes, bytes] = {}
    delete: Sequence[bytes] = ()
    add: Mapping[bytes, Add] = {}


class Kv(Protocol):
    async def get(self, key: bytes) -> bytes | None: ...

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of `keys`, from one consistent view."""
        ...

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` (key, value) pairs with start <= key < end, in byte order (or its reverse).

        One consistent view per call. Cost: O(limit), wherever in the range.
        """
        ...

    async def commit(self, transaction: Transaction) -> None:
        """Atomic, durable and linearizable; visible to every process once this returns.

        Raises:
            Conflict: an expectation does not hold; nothing changed. `key` says which.
            LimitReached: a counter would exceed its at_most; nothing changed.
            MetaUnavailable: the outcome is unknown, or there is no committer.
        """
        ...


async def pages(
    kv: Kv, start: bytes, end: bytes, size: int
) -> AsyncGenerator[list[tuple[bytes, bytes]], None]:
    """All pairs of [start, end) in order, at most `size` a page; every page is a view of its own.

    Raises: what `Kv.scan` raises.
    """
    while pairs := await kv.scan(start, end, size):
        yield pairs
        start = pairs[-1][0] + b"\0"


@runtime_checkable
class Versioned(Protocol):
    """An engine that can tell cheaply whether anything has changed; not every engine can."""

    def version(self) -> tuple[int, int]:
        """Equal to an earlier one only if no commit became visible in between. Raises: MetaUnavailable."""
        ...

    def get_at(self, key: bytes, version: tuple[int, int]) -> tuple[bool, bytes | None]:
        """(True, the value) from a view of just this version, or (False, None): something was committed.

        So whatever was read at that version and this value are one consistent view. Raises: as `Kv.get`.
        """
        ...


def counter(value: bytes | None) -> int:
    """Decode a counter's value; an absent counter is zero."""
    return 0 if value is None else int.from_bytes(value, "big", signed=True)


def counter_value(number: int) -> bytes:
    return number.to_bytes(COUNTER_SIZE, "big", signed=True)


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key greater than every key that starts with `prefix`.

    `prefix` must hold a byte below 0xff: ours start with an ASCII letter.
    """
    trimmed = prefix.rstrip(b"\xff")
    assert trimmed, "no key sorts behind a prefix of 0xff only"
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


class DictKv:
    """The reference engine: a dict and a sorted list of its keys. Ships with the code for tests."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    async def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        first, last = bisect_left(self._keys, start), bisect_left(self._keys, end)
        if reverse:
            chosen: Iterable[bytes] = self._keys[max(first, last - limit) : last][::-1]
        else:
            chosen = self._keys[first : min(last, first + limit)]
        return [(key, self._values[key]) for key in chosen]

    async def commit(self, transaction: Transaction) -> None:
        for key, expected in transaction.expect.items():
            if self._values.get(key) != expected:
                raise Conflict(key)
        sums: dict[bytes, bytes] = {}
        for key, (delta, at_most) in transaction.add.items():
            value = counter(self._values.get(key))
            if at_most is not None and delta > 0 and value + delta > at_most:
                raise LimitReached(key, value=value, at_most=at_most)
            sums[key] = counter_value(value + delta)
        for key in transaction.delete:
            if key in self._values:
                del self._values[key]
                del self._keys[bisect_left(self._keys, key)]
        for key, new in {**transaction.put, **sums}.items():
            if key not in self._values:
                insort(self._keys, key)
            self._values[key] = new
