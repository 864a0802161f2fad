"""What may be sold: published vectors, and random histories held against a model of every moment."""

import dataclasses
import os
import random
from fractions import Fraction
from itertools import pairwise

import pytest

from objstore.errors import BadArgument
from objstore.rental.admission import (
    Curve,
    Node,
    RawEvent,
    Rules,
    Sales,
    Shortage,
    Span,
    at_risk,
    check_dedicated,
    usable_curve,
    usable_size,
)
from tests.seed import SEED

TB = 10**12
LONG = bool(os.environ.get("OBJSTORE_LONG"))
HISTORIES = 100_000 if LONG else 2_000
HORIZON = 24  # Moments of a history.


def sales(
    usable: int | Curve,
    guaranteed: list[Span] | None = None,
    best_effort: list[Span] | None = None,
    oversubscription: Fraction = Fraction(3, 2),
) -> Sales:
    return Sales(
        usable=usable if isinstance(usable, Curve) else Curve(usable),
        rules=Rules(k=4, m=2, oversubscription=oversubscription),
        guaranteed=guaranteed or [],
        best_effort=best_effort or [],
    )


@pytest.mark.parametrize(
    ("nodes", "disks", "disk_tb", "k", "m", "fill_max", "expected"),
    [
        (6, 4, 1, 4, 2, Fraction(85, 100), 11_333_333_333_333),
        (24, 36, 20, 8, 4, Fraction(85, 100), 9_384 * TB),
        (24, 36, 20, 16, 4, Fraction(90, 100), 11_923_200_000_000_000),
    ],
)
def test_v13_usable_capacity_is_what_the_published_vector_says(
    nodes: int, disks: int, disk_tb: int, k: int, m: int, fill_max: Fraction, expected: int
) -> None:
    rules = Rules(k=k, m=m, fill_max=fill_max)
    assert usable_size([disks * disk_tb * TB] * nodes, rules) == expected


V14 = [Span(0, 12, 60), Span(6, 18, 30)]


@pytest.mark.parametrize("span", [Span(0, 6, 40), Span(12, 24, 70), Span(18, 24, 100)])
def test_v14_what_fits_at_every_moment_is_accepted(span: Span) -> None:
    assert sales(100, V14).shortage_with([span]) is None


@pytest.mark.parametrize(
    ("span", "shortage"),
    [
        (Span(0, 7, 40), Shortage(6, 30)),
        (Span(11, 24, 70), Shortage(11, 60)),
        (Span(18, 24, 101), Shortage(18, 1)),
    ],
)
def test_v14_what_does_not_fit_at_one_moment_is_refused_and_says_how_much_and_when(
    span: Span, shortage: Shortage
) -> None:
    assert sales(100, V14).shortage_with([span]) == shortage


def test_best_effort_is_sold_one_and_a_half_times_over_what_guaranteed_leaves() -> None:
    sold = [Span(0, 10, 40)]
    assert sales(100, sold).shortage_with([Span(0, 10, 90)], best_effort=True) is None
    assert sales(100, sold).shortage_with([Span(0, 10, 91)], best_effort=True) == Shortage(0, 1)
    assert sales(100, sold).shortage_with([Span(5, 20, 150)], best_effort=True) == Shortage(5, 40)
    full = sales(100, [Span(0, 10, 100)], [])
    assert full.shortage_with([Span(0, 10, 1)], best_effort=True) == Shortage(0, 1)


def test_best_effort_never_keeps_guaranteed_capacity_from_being_sold() -> None:
    sold = sales(100, [], [Span(0, 10, 150)])
    assert sold.shortage_with([Span(0, 10, 100)]) is None


def test_guaranteed_capacity_cannot_be_oversubscribed_by_any_rule() -> None:
    with pytest.raises(BadArgument, match="at the least"):
        Rules(k=4, m=2, oversubscription=Fraction(1, 2))
    for factor in (1, 100):
        rules = sales(100, [Span(0, 10, 100)], oversubscription=Fraction(factor))
        assert rules.shortage_with([Span(9, 11, 1)]) == Shortage(9, 1)


def test_a_ramp_is_judged_step_by_step() -> None:
    sold = sales(100, [Span(0, 10, 80)])
    assert sold.shortage_with([Span(0, 10, 20), Span(10, 20, 100)]) is None
    assert sold.shortage_with([Span(0, 9, 20), Span(9, 20, 100)]) == Shortage(9, 80)


def test_capacity_that_comes_or_goes_counts_from_its_moment_on() -> None:
    rules = Rules(k=1, m=1, fill_max=Fraction(1), spare_domains=1)
    three = [Node(id=str(n), domain=str(n), disks=[100]) for n in range(3)]
    usable = usable_curve(three, [RawEvent(10, 40), RawEvent(20, -100)], rules)
    assert [usable.at(moment) for moment in (0, 9, 10, 19, 20, 99)] == [100, 100, 120, 120, 70, 70]
    assert sales(usable).shortage_with([Span(0, 21, 100)]) == Shortage(20, 30)
    assert sales(usable).shortage_with([Span(0, 20, 100)]) is None


def test_nodes_promised_to_somebody_leave_the_pool_when_their_lease_begins_and_not_before() -> None:
    rules = Rules(k=1, m=1, fill_max=Fraction(1), spare_domains=1)
    leaves = Node(id="1", domain="a", disks=[200, 100], until=10)
    stay = [Node(id=str(n), domain=domain, disks=[50]) for n, domain in enumerate("bbcc", 2)]
    usable = usable_curve([leaves, *stay], [], rules)
    assert usable.at(9) == 100  # The largest is spare.
    assert usable.at(10) == 50  # The largest of those that stay is.


def test_what_is_sellable_is_the_least_that_is_free_within_the_time() -> None:
    assert sales(100, V14).sellable(0) == 10
    assert sales(100, V14).sellable(0, 6) == 40
    assert sales(100, V14).sellable(12) == 70
    assert sales(100, V14).sellable(18) == 100
    assert sales(50, V14).sellable(0) == 0


def test_leases_at_risk_are_those_signed_last_without_which_the_rest_fits() -> None:
    signed = [("old", Span(0, 10, 60)), ("middle", Span(0, 5, 30)), ("new", Span(0, 20, 10))]
    assert at_risk(signed, lambda moment: 100, [0, 5, 10]) == set()
    assert at_risk(signed, lambda moment: 90, [0, 5, 10]) == {"new"}
    assert at_risk(signed, lambda moment: 89, [0, 5, 10]) == {"middle", "new"}
    assert at_risk(signed, lambda moment: 59, [0, 5, 10]) == {"old", "middle", "new"}
    assert at_risk(signed, lambda moment: 59, [10]) == set()


def rack(count: int, *, domains: int = 0, disks: int = 4) -> list[Node]:
    return [
        Node(id=f"n{at}", domain=f"d{at % (domains or count)}", disks=[TB] * disks) for at in range(count)
    ]


def test_dedicated_nodes_need_as_many_failure_domains_as_keep_a_volume_when_one_is_lost() -> None:
    rules = Rules(k=4, m=2)
    assert check_dedicated(rack(6), rules, 11 * TB) == 11_333_333_333_333
    assert check_dedicated(rack(3), rules, 4 * TB) == 4_533_333_333_333  # Two fragments in each.
    with pytest.raises(BadArgument, match="2 failure domains hold 4 of 6 fragments"):
        check_dedicated(rack(2), rules, TB)
    with pytest.raises(BadArgument, match="2 failure domains"):
        check_dedicated(rack(8, domains=2), rules, TB)
    with pytest.raises(BadArgument, match="3 failure domains hold 3 of 6"):
        check_dedicated(rack(3, disks=1), rules, 1)


def test_dedicated_nodes_are_nobody_elses_and_promise_no_more_than_they_give() -> None:
    rules = Rules(k=4, m=2)
    with pytest.raises(BadArgument, match="node n3 is in another lease"):
        check_dedicated(rack(6), rules, TB, taken={"n3"})
    with pytest.raises(BadArgument, match="named twice"):
        check_dedicated([*rack(6), rack(1)[0]], rules, TB)
    with pytest.raises(BadArgument, match="11333333333333 usable bytes"):
        check_dedicated(rack(6), rules, 12 * TB)


@pytest.mark.timeout(7_200 if LONG else 300)
def test_admission_never_exceeds_what_is_usable_in_any_history() -> None:
    """Leases come, grow, end early; nodes are lost and come back; the model adds up at every moment."""
    for history in range(HISTORIES):
        seed = SEED * 1_000_003 + history
        _play(random.Random(seed), seed)


def _play(chance: random.Random, seed: int) -> None:
    rules = Rules(
        k=chance.choice((2, 4, 8)),
        m=chance.choice((1, 2, 4)),
        fill_max=Fraction(chance.randint(50, 100), 100),
        spare_domains=chance.randint(0, 2),
    )
    raws = [chance.randint(50, 200) for _ in range(chance.randint(2, 8))]
    lost: set[int] = set()
    leases: dict[int, list[Span]] = {}
    events = [
        RawEvent(chance.randrange(HORIZON), chance.randint(-100, 200)) for _ in range(chance.randint(0, 2))
    ]
    for now in range(chance.randint(5, 15)):
        there = [raw for n, raw in enumerate(raws) if n not in lost]
        nodes = [Node(id=str(n), domain=str(n), disks=[raw]) for n, raw in enumerate(there)]
        usable = [
            usable_size(there, rules, sum(event.raw for event in events if event.moment <= t))
            for t in range(HORIZON)
        ]
        sold = Sales(
            usable=usable_curve(nodes, events, rules),
            rules=rules,
            guaranteed=[span for spans in leases.values() for span in spans],
        )
        before = _sold(leases)
        excess = [max(0, before[t] - usable[t]) for t in range(HORIZON)]
        oversold = sold.oversold(0, HORIZON)
        assert (oversold.size if oversold else 0) == max(excess), seed
        act = chance.random()
        growing = chance.choice(list(leases)) if leases and act < 0.15 else None
        if act < 0.6:
            spans = _ramp(chance) if growing is None else _grown(chance, leases[growing])
            others = {lease: held for lease, held in leases.items() if lease != growing}
            beside = dataclasses.replace(
                sold, guaranteed=[span for held in others.values() for span in held], _curves=[]
            )
            admitted = beside.shortage_with(spans) is None
            with_it = _sold({**others, now: spans})
            fits = all(
                with_it[t] <= usable[t] for span in spans if span.size for t in range(span.begin, span.end)
            )
            assert admitted == fits, seed
            if admitted:
                leases[now if growing is None else growing] = spans
        elif act < 0.8 and leases:
            lease, at = chance.choice(list(leases)), chance.randrange(HORIZON)
            leases[lease] = [span._replace(end=min(span.end, at)) for span in leases[lease]]
        elif act < 0.95 and len(lost) < len(raws) - 1:
            lost.add(chance.choice([n for n in range(len(raws)) if n not in lost]))
        elif lost:
            lost.remove(chance.choice(sorted(lost)))


def _ramp(chance: random.Random) -> list[Span]:
    cuts = sorted(chance.sample(range(HORIZON + 1), chance.randint(2, 4)))
    return [Span(begin, end, chance.randint(0, 250)) for begin, end in pairwise(cuts)]


def _grown(chance: random.Random, spans: list[Span]) -> list[Span]:
    """With another capacity from a moment of its term on: what `extend_ramp` makes of a lease."""
    begin, end = spans[0].begin, spans[-1].end
    if begin >= end:
        return spans  # It ended before it began.
    at = chance.randrange(begin, end)
    kept = [span._replace(end=min(span.end, at)) for span in spans if span.begin < at]
    return [*kept, Span(at, end, chance.randint(0, 250))]


def _sold(leases: dict[int, list[Span]]) -> list[int]:
    return [
        sum(span.size for spans in leases.values() for span in spans if span.begin <= t < span.end)
        for t in range(HORIZON)
    ]
