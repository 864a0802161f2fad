"""Many mini-transactions as one: what to lock, in which order, and what becomes of each.

The pure half of the PostgreSQL engine. A process merges the mini-transactions that wait into one *batch*.
`plan` says which rows the batch needs and how; with their values in hand `decide` takes the
mini-transactions in order, each on top of what the earlier ones changed, exactly as the committer does for
LMDB. One that is refused changes nothing and does not touch its neighbours.

**Lock order.** Every batch of every process locks its rows in one order, which is a function of the key
alone: so no two batches ever wait for each other in a circle. Counters come last, because everybody adds to
them: a batch that waits for an object's row does not hold them meanwhile. That they are known by their
prefix is a matter of speed only: any order that depends on nothing but the key is free of deadlocks.

What is only expected is locked shared (a bucket's record is expected by every write to the bucket, and
they must not wait for each other). What is written, and what is expected to be absent, is locked exclusively.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from objstore.errors import Conflict, Corrupt, LimitReached
from objstore.meta.kv import COUNTER_SIZE, KEY_SIZE_MAX, VALUE_SIZE_MAX, Transaction, counter, counter_value

TRANSACTION_SIZE_MAX = 8 * 1024 * 1024  # Bytes, as on LMDB: a Complete of 10,000 parts has about 1 MB.
# Of schema.py: buckets, volumes' live bytes and lengths, uploads, serials.
COUNTER_PREFIXES = frozenset(b"cGLgN")

_COUNTER_END = 1 << (8 * COUNTER_SIZE - 1)


class Plan(NamedTuple):
    """The rows that a batch needs."""

    keys: list[bytes]  # In lock order, each once.
    runs: list[int]  # Where a stretch of one mode ends, counted from 1: exclusive, or negative for shared.
    new: list[bytes | None]  # What each key would get if all goes well and it is absent now; None: not known.
    wanted: list[bytes]  # Of the exclusive ones, those whose values decisions need.


def plan(transactions: Sequence[Transaction]) -> Plan:
    """What to lock for a batch. About 1 us a key."""
    new: dict[bytes, bytes | None] = {}  # The exclusive keys.
    shared: set[bytes] = set()
    wanted: set[bytes] = set()
    for expect, put, delete, add in transactions:
        for key, value in expect.items():
            if value is None:
                wanted.add(key)
                new.setdefault(key, None)
            else:
                shared.add(key)
        new.update(put)
        for key in delete:
            new[key] = None
        for key in add:
            wanted.add(key)
            new[key] = None
    wanted.update(shared & new.keys())
    shared -= new.keys()
    early: list[bytes] = []
    late: list[bytes] = []
    for keys in (new, shared):
        for key in keys:
            (late if key[0] in COUNTER_PREFIXES else early).append(key)
    early.sort()
    late.sort()
    ordered = early + late
    runs: list[int] = []
    for number, key in enumerate(ordered, 1):
        end = -number if key in shared else number
        if runs and (runs[-1] > 0) == (end > 0):
            runs[-1] = end
        else:
            runs.append(end)
    return Plan(ordered, runs, [new.get(key) for key in ordered], sorted(wanted))


def decide(
    transactions: Sequence[Transaction], held: Mapping[bytes, bytes], rotten: Collection[bytes] = ()
) -> tuple[dict[bytes, bytes | None], dict[int, Exception]]:
    """What a batch changes, and which of its mini-transactions are refused.

    Args:
        held: the values of the keys that exist, of those that `plan` names.
        rotten: keys whose records fail their checksums: whoever needs one is refused.

    Returns:
        key -> its new value, None if it goes; and index -> Conflict, LimitReached, Corrupt or ValueError.
    """
    overlay: dict[bytes, bytes | None] = {}
    sums: dict[bytes, int] = {}  # Counters, coded once at the end. A key is in one of the two, never in both.
    refused: dict[int, Exception] = {}
    for index, (expect, put, delete, add) in enumerate(transactions):
        failure: Exception | None = None
        totals: list[tuple[bytes, int]] = []
        for key, expected in expect.items():
            if key in overlay:
                value = overlay[key]
            elif key in sums:
                value = counter_value(sums[key])
            elif key in rotten:
                failure = _rotten(key)
                break
            else:
                value = held.get(key)
            if value != expected:
                failure = Conflict(key)
                break
        if failure is None:
            for key, (delta, at_most) in add.items():
                if key in sums:
                    total = sums[key]
                elif key in overlay:
                    total = counter(overlay[key])
                elif key in rotten:
                    failure = _rotten(key)
                    break
                else:
                    total = counter(held.get(key))
                if at_most is not None and delta > 0 and total + delta > at_most:
                    failure = LimitReached(key, value=total, at_most=at_most)
                    break
                total += delta
                if not -_COUNTER_END <= total < _COUNTER_END:
                    failure = ValueError(f"counter {key!r} would not fit into {COUNTER_SIZE} bytes")
                    break
                totals.append((key, total))
        if failure is not None:
            refused[index] = failure
            continue
        for key in delete:
            overlay[key] = None
            sums.pop(key, None)
        overlay.update(put)
        if sums:
            for key in put:
                sums.pop(key, None)
        for key, total in totals:
            overlay.pop(key, None)
            sums[key] = total
    overlay.update({key: counter_value(total) for key, total in sums.items()})
    return overlay, refused


def _rotten(key: bytes) -> Corrupt:
    return Corrupt(f"metadata record {key!r} fails its checksum")


def checked_size(transaction: Transaction) -> int:
    """Bytes of a mini-transaction, about.

    Raises: ValueError if a key, a value or the whole is too long, or a key is written twice.
    """
    expect, put, delete, add = transaction
    size = 64
    for key, value in put.items():
        if not 1 <= len(key) <= KEY_SIZE_MAX or len(value) > VALUE_SIZE_MAX:
            raise ValueError(f"a key of {len(key)} bytes with a value of {len(value)} bytes: {key[:100]!r}")
        size += len(key) + len(value)
    for key, expected in expect.items():
        size += len(key) + len(expected or b"")
    for keys in (expect, delete, add):
        for key in keys:
            if not 1 <= len(key) <= KEY_SIZE_MAX:
                raise ValueError(f"a key of {len(key)} bytes: {key[:100]!r}")
            size += len(key)
    written = len(put) + len(delete) + len(add)
    if (delete or add) and len({*put, *delete, *add}) != written:
        raise ValueError("a key is written twice in one transaction")
    if size > TRANSACTION_SIZE_MAX:
        raise ValueError(f"a transaction of {size} bytes, at most {TRANSACTION_SIZE_MAX}")
    return size
