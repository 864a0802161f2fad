"""Is a history linearizable? A checker for registers with compare-and-set, key by key.

Per key, since a history is linearizable if and only if its part about each object is (Herlihy and Wing
1990, theorem 1). The search is Wing and Gong's with Lowe's memory of configurations (2017): take in turn
every operation that may be the next (it was invoked before the first return of those that are not placed
yet), see whether its outcome fits the register's value, go on, go back. An operation whose outcome is
unknown may be placed at any time after its invocation, or never.

The checker is tested itself (test_linearizability.py): a checker that says yes to everything would please
everybody.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

READ = "read"  # `wrote` is what was read.
WRITE = "write"
CAS = "cas"  # From `expected` to `wrote`.

DONE = "done"
REFUSED = "refused"  # A compare-and-set that found another value.
UNKNOWN = "unknown"

FOREVER = 1 << 62


class Operation(NamedTuple):
    key: str
    kind: str
    expected: str | None
    wrote: str | None
    outcome: str
    invoked: int  # Any clock that all processes share, e.g. time.monotonic_ns.
    returned: int  # FOREVER if the outcome is unknown.


def violations(history: Iterable[Operation], initial: str | None = None) -> list[str]:
    """The keys whose part of the history is not linearizable. Empty: all is well."""
    parts: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        parts[operation.key].append(operation)
    return sorted(key for key, part in parts.items() if not linearizable(part, initial))


def linearizable(operations: Sequence[Operation], initial: str | None = None) -> bool:
    """Whether the operations on one register can be put into an order that explains every outcome."""
    # Reads without an outcome say nothing.
    known = [one for one in operations if not (one.kind == READ and one.outcome == UNKNOWN)]
    ops = sorted(known, key=lambda one: one.invoked)
    all_known = 0
    for index, one in enumerate(ops):
        if one.outcome != UNKNOWN:
            all_known |= 1 << index
    seen: set[tuple[int, str | None]] = set()
    stack: list[tuple[int, str | None]] = [(0, initial)]
    while stack:
        placed, value = stack.pop()
        if placed & all_known == all_known:
            return True
        if (placed, value) in seen:
            continue
        seen.add((placed, value))
        stack.extend(_next(ops, placed, value))
    return False


def _next(ops: list[Operation], placed: int, value: str | None) -> list[tuple[int, str | None]]:
    first_return = FOREVER + 1
    possible: list[tuple[int, Operation]] = []
    index = _first_open(placed)
    while index < len(ops):
        one = ops[index]
        if one.invoked > first_return:
            break
        if not placed >> index & 1:
            possible.append((index, one))
            first_return = min(first_return, one.returned)
        index += 1
    unknown: list[tuple[int, str | None]] = []
    known: list[tuple[int, str | None]] = []
    for index, one in possible:
        if one.invoked > first_return:
            continue
        after = _applied(one, value)
        if after is not _NEVER:
            (unknown if one.outcome == UNKNOWN else known).append((placed | 1 << index, after))  # type: ignore[arg-type]
    return unknown + known  # The last is tried first: doubtful ones only when they are needed.


class _Never:
    pass


_NEVER = _Never()


def _applied(one: Operation, value: str | None) -> "str | _Never | None":
    """The register's value after the operation, if its outcome fits."""
    if one.kind == READ:
        return value if one.wrote == value else _NEVER
    if one.kind == WRITE:
        return one.wrote
    assert one.kind == CAS
    if one.outcome == REFUSED:
        return value if value != one.expected else _NEVER
    return one.wrote if value == one.expected else _NEVER


def _first_open(placed: int) -> int:
    """The lowest bit that is not set."""
    return (~placed & (placed + 1)).bit_length() - 1
