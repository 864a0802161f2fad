"""The checker of histories: what it must accept, and what it must not."""

import itertools
import random

import pytest

from tests.linearizability import (
    CAS,
    DONE,
    FOREVER,
    READ,
    REFUSED,
    UNKNOWN,
    WRITE,
    Operation,
    linearizable,
    violations,
)


def op(
    kind: str, wrote: str | None, start: int, end: int, *, expected: str | None = None, outcome: str = DONE
) -> Operation:
    return Operation("k", kind, expected, wrote, outcome, start, FOREVER if outcome == UNKNOWN else end)


GOOD = {
    "nothing": [],
    "a read of the beginning": [op(READ, None, 0, 1)],
    "a read beside a write sees the old": [op(WRITE, "a", 0, 10), op(READ, None, 1, 2)],
    "or the new": [op(WRITE, "a", 0, 10), op(READ, "a", 1, 2)],
    "one of two compare-and-sets wins": [
        op(CAS, "a", 0, 5),
        op(CAS, "b", 1, 6, outcome=REFUSED),
        op(READ, "a", 7, 8),
    ],
    "an unknown write may have happened": [op(WRITE, "a", 0, 0, outcome=UNKNOWN), op(READ, "a", 5, 6)],
    "or not": [op(WRITE, "a", 0, 0, outcome=UNKNOWN), op(READ, None, 5, 6)],
    "or later": [
        op(WRITE, "a", 0, 0, outcome=UNKNOWN),
        op(READ, None, 5, 6),
        op(READ, "a", 7, 8),
    ],
}
BAD = {
    "a lost write": [op(WRITE, "a", 0, 1), op(READ, None, 2, 3)],
    "a stale read": [op(WRITE, "a", 0, 1), op(WRITE, "b", 2, 3), op(READ, "a", 4, 5)],
    "new, then old": [op(WRITE, "a", 0, 10), op(READ, "a", 1, 2), op(READ, None, 3, 4)],
    "two winners": [op(CAS, "a", 0, 5), op(CAS, "b", 1, 6)],
    "a refusal without a reason": [op(CAS, "a", 0, 1, outcome=REFUSED)],
    "a value from nowhere": [op(WRITE, "a", 0, 1), op(READ, "b", 2, 3)],
    "an unknown write that happens, is undone and happens": [
        op(WRITE, "a", 0, 0, outcome=UNKNOWN),
        op(READ, "a", 1, 2),
        op(READ, None, 3, 4),
    ],
    "an unknown write that happens twice": [
        op(WRITE, "a", 0, 0, outcome=UNKNOWN),
        op(READ, "a", 1, 2),
        op(WRITE, "b", 3, 4),
        op(READ, "a", 5, 6),
    ],
    "an unknown write seen before it began": [op(READ, "a", 0, 1), op(WRITE, "a", 2, 2, outcome=UNKNOWN)],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_linearizable_is_accepted(name: str) -> None:
    assert linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_linearizable_is_found(name: str) -> None:
    assert not linearizable(BAD[name])
    assert violations(BAD[name]) == ["k"]


def slowly(ops: list[Operation]) -> bool:
    """The definition itself: some order of some of the operations that keeps real time and explains all."""
    known = [one for one in ops if one.outcome != UNKNOWN]
    doubtful = [one for one in ops if one.outcome == UNKNOWN]
    for count in range(len(doubtful) + 1):
        for chosen in itertools.combinations(doubtful, count):
            for order in itertools.permutations([*known, *chosen]):
                value: str | None = None
                for place, one in enumerate(order):
                    if any(later.returned < one.invoked for later in order[place + 1 :]):
                        break
                    if one.kind == READ:
                        if one.outcome != UNKNOWN and one.wrote != value:
                            break
                    elif one.kind == WRITE:
                        value = one.wrote
                    elif one.outcome == REFUSED:
                        if value == one.expected:
                            break
                    elif value == one.expected:
                        value = one.wrote
                    else:
                        break
                else:
                    return True
    return False


def test_it_agrees_with_the_definition_on_random_small_histories() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    verdicts = [0, 0]
    for _ in range(1_500):
        ops = []
        for _ in range(rng.randrange(1, 6)):
            kind = rng.choice([READ, WRITE, CAS])
            start = rng.randrange(20)
            ops.append(
                op(
                    kind,
                    rng.choice(["a", "b", None] if kind == READ else ["a", "b"]),
                    start * 2,
                    start * 2 + 1 + 2 * rng.randrange(8),
                    expected=rng.choice([None, "a", "b"]) if kind == CAS else None,
                    outcome=rng.choice(
                        [DONE, DONE, UNKNOWN] if kind == WRITE else [DONE, REFUSED] if kind == CAS else [DONE]
                    ),
                )
            )
        verdict = linearizable(ops)
        assert verdict == slowly(ops), ops
        verdicts[verdict] += 1
    assert min(verdicts) > 100, verdicts  # Both kinds were among them.
