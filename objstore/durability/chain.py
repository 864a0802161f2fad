"""The exact answer: mean time to data loss of one stripe, as a Markov chain with one absorbing state.

A state says which fragments are bad and why, up to the order of places that are alike: the tree of domains,
each innermost place with its size and the sorted kinds of its bad fragments. A stripe with more than m bad
fragments is lost. Without domains and latent errors that is the chain of RAID papers (states 0..m).

The chain is solved by eliminating states (Grassmann, Taksar and Heyman): every step adds, multiplies and
divides positive numbers, none subtracts, so nothing cancels however rare a loss is. Decimals of 50 digits
carry exponents that floats do not have (m = 32 with fast repair: 1e-400).
"""

from collections import Counter
from decimal import Context, Decimal, localcontext
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import comb
from typing import Any, Final

from objstore.durability.model import Model
from objstore.errors import BadArgument

CONTEXT: Final = Context(prec=50)
_ZERO: Final = Decimal(0)
STATES_MAX: Final = 1_000  # A few seconds; 8+4 over nodes, racks and sites with latent errors has 674.

DISK: Final = 0  # Kinds of bad fragments: lost with its disk,
HIDDEN: Final = 1  # corrupt, and nobody knows,
FIRST_DOMAIN: Final = 2  # lost with a domain that has a repair time of its own.

# A place: (size, sorted kinds of the bad fragments) if innermost, else its places, sorted.
Place = tuple[Any, ...]


def loss_rate(model: Model) -> Decimal:
    """Losses of one stripe per hour: one over the mean time to data loss, begun with all fragments good.

    Blocks the CPU: milliseconds, with several levels of domains up to some seconds. Raises: BadArgument when
    the chain would have too many states.
    """
    with localcontext(CONTEXT):
        rates, absorbed = _Chain(model).explore()
        return _absorption_rate(rates, absorbed)


def _absorption_rate(rates: list[dict[int, Decimal]], absorbed: list[Decimal]) -> Decimal:
    """One over the mean time from state 0 to absorption.

    Args:
        rates: rates[i][j] from state i to j, not i. Every state leads, by some way, to state 0.
        absorbed: the rate from each state to absorption.
    """
    rows = [dict(row) for row in rates]
    ends = list(absorbed)
    times = [Decimal(1)] * len(rows)  # Of T[i] = (times[i] + sum of rows[i][j] T[j]) / (all that leaves i).
    into: list[set[int]] = [set() for _ in rows]
    for state, row in enumerate(rows):
        for target in row:
            into[target].add(state)
    # In any order; that with the fewest new rates is by far the quickest (minimum degree).
    waiting = [(len(row) * len(into[state]), state) for state, row in enumerate(rows) if state]
    heapify(waiting)
    while waiting:
        cost, last = heappop(waiting)
        row = rows[last]
        if (now := len(row) * len(into[last])) > cost:
            heappush(waiting, (now, last))
            continue
        leaving = sum(row.values(), ends[last])
        assert leaving > 0
        for target in row:
            into[target].discard(last)
        for state in into[last]:
            mine = rows[state]
            share = mine.pop(last) / leaving
            ends[state] += share * ends[last]
            times[state] += share * times[last]
            for target, rate in row.items():
                if target != state:  # What comes straight back has only taken time.
                    mine[target] = mine.get(target, _ZERO) + share * rate
                    into[target].add(state)
    return ends[0] / times[0]


class _Chain:
    """The states that can be reached, and the rates between them."""

    def __init__(self, model: Model) -> None:
        self._code = model.code
        self._serial = model.serial
        self._failure = Decimal(model.failure_rate)
        self._latent = Decimal(model.latent_rate)
        self._mended = [1 / Decimal(model.repair_h), 1 / Decimal(model.latent_repair_h)]
        self._domains: list[tuple[Decimal, Decimal, int]] = []  # Rate, lost, kind; narrowest first.
        for domain in model.domains:
            kind = DISK
            if domain.repair_h is not None and domain.repair_h != model.repair_h:
                kind = len(self._mended)
                assert kind >= FIRST_DOMAIN
                self._mended.append(1 / Decimal(domain.repair_h))
            self._domains.append((Decimal(domain.rate), Decimal(domain.lost), kind))
        self._start = self._whole(model)

    def _whole(self, model: Model) -> Place:
        """Everything good: the tree of places, narrowest inside."""
        levels = model.layout()
        if not levels:
            return (model.code.n, ())
        places: dict[int, Place] = {place: (size, ()) for place, size in Counter(levels[0]).items()}
        for narrow, wide in pairwise(levels):
            inside: dict[int, dict[int, Place]] = {}
            for inner, outer in zip(narrow, wide, strict=True):
                inside.setdefault(outer, {})[inner] = places[inner]
            places = {outer: tuple(sorted(inner.values())) for outer, inner in inside.items()}
        return tuple(sorted(places.values()))

    def explore(self) -> tuple[list[dict[int, Decimal]], list[Decimal]]:
        """(rates, absorbed) as `_absorption_rate` wants them; state 0 has no bad fragment."""
        found: dict[Place, dict[Place, Decimal]] = {}
        lost: dict[Place, Decimal] = {}
        waiting = [self._start]
        while waiting:
            state = waiting.pop()
            if state in found:
                continue
            if len(found) >= STATES_MAX:
                raise BadArgument(
                    f"codec {self._code}: more than {STATES_MAX} states would have to be told apart; leave "
                    "out a level of domains, its own repair time, or latent errors"
                )
            moves: dict[Place, Decimal] = {}
            gone = Decimal(0)
            for target, rate in self._moves(state).items():
                if len(_kinds(target)) > self._code.m:
                    gone += rate
                elif target != state and rate:
                    moves[target] = rate
            found[state], lost[state] = moves, gone
            waiting += [target for target in moves if target not in found]
        assert next(iter(found)) == self._start
        number = {state: at for at, state in enumerate(found)}
        rates = [{number[target]: rate for target, rate in moves.items()} for moves in found.values()]
        return rates, list(lost.values())

    def _moves(self, state: Place) -> dict[Place, Decimal]:
        known = sum(kind != HIDDEN for kind in _kinds(state))
        share = 1 / Decimal(known) if self._serial and known else Decimal(1)
        return self._within(state, len(self._domains), share)

    def _within(self, place: Place, level: int, share: Decimal) -> dict[Place, Decimal]:
        """All that can happen in a place. `level`: 0 for the narrowest domains, up to the whole stripe."""
        moves: dict[Place, Decimal] = {}

        def add(target: Place, rate: Decimal) -> None:
            moves[target] = moves.get(target, Decimal(0)) + rate

        if _innermost(place):
            size: int = place[0]
            bad: tuple[int, ...] = place[1]
            good = size - len(bad)
            if good:
                add((size, _with(bad, DISK)), good * self._failure)
                add((size, _with(bad, HIDDEN)), good * self._latent)
            for kind, count in Counter(bad).items():
                rest = _less(bad, kind)
                if kind == HIDDEN:
                    add((size, _with(rest, DISK)), count * self._failure)
                    add((size, rest), count * self._mended[kind])
                else:
                    add((size, rest), count * self._mended[kind] * share)
        else:
            for inner, count in Counter(place).items():
                others = list(place)
                others.remove(inner)
                for changed, rate in self._within(inner, level - 1, share).items():
                    add(tuple(sorted([*others, changed])), count * rate)
        if level < len(self._domains):
            rate, share_lost, kind = self._domains[level]
            for target, chance in _struck(place, share_lost, kind).items():
                add(target, rate * chance)
        return moves


def _struck(place: Place, lost: Decimal, kind: int) -> dict[Place, Decimal]:
    """What is left of a place whose fragments are each lost with this chance. Sums to 1."""
    if not _innermost(place):
        partial: dict[Place, Decimal] = {(): Decimal(1)}
        for inner in place:
            outcomes = _struck(inner, lost, kind)
            further: dict[Place, Decimal] = {}
            for done, chance in partial.items():
                for outcome, also in outcomes.items():
                    key = tuple(sorted([*done, outcome]))
                    further[key] = further.get(key, Decimal(0)) + chance * also
            partial = further
        return partial
    size, bad = place
    hidden = sum(one == HIDDEN for one in bad)
    known = tuple(one for one in bad if one != HIDDEN)
    result: dict[Place, Decimal] = {}
    for good_lost, chance in _binomial(size - len(bad), lost):
        for hidden_lost, also in _binomial(hidden, lost):
            kinds = (*known, *(HIDDEN,) * (hidden - hidden_lost), *(kind,) * (good_lost + hidden_lost))
            target = (size, tuple(sorted(kinds)))
            result[target] = result.get(target, Decimal(0)) + chance * also
    return result


def _binomial(count: int, chance: Decimal) -> list[tuple[int, Decimal]]:
    if chance == 1:
        return [(count, Decimal(1))]
    return [
        (hits, comb(count, hits) * chance**hits * (1 - chance) ** (count - hits)) for hits in range(count + 1)
    ]


def _innermost(place: Place) -> bool:
    return isinstance(place[0], int)


def _kinds(place: Place) -> tuple[int, ...]:
    """The kinds of all bad fragments in a place."""
    if _innermost(place):
        kinds: tuple[int, ...] = place[1]
        return kinds
    return tuple(kind for inner in place for kind in _kinds(inner))


def _with(bad: tuple[int, ...], kind: int) -> tuple[int, ...]:
    return tuple(sorted([*bad, kind]))


def _less(bad: tuple[int, ...], kind: int) -> tuple[int, ...]:
    rest = list(bad)
    rest.remove(kind)
    return tuple(rest)
