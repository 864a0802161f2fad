"""Leases as they are rated: vectors V7 and V8, ramps, parts of months, advance and arrears, idle bytes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objstore.errors import BadArgument
from objstore.rental.commitments import (
    MODES,
    Commitment,
    Mode,
    Overage,
    Pool,
    Step,
    charges,
    commitment_of,
)
from objstore.rental.months import Month
from objstore.rental.plans import Discount
from objstore.rental.rating import billed_until, rate_month
from objstore.rental.records import LeaseRecord, Line
from objstore.rental.tally import Usage
from tests.rental.cards import DAY_S, EXAMPLES, NOVEMBER, TB, plan, rate, stored, stored_hours

DECEMBER = NOVEMBER.following()
BEGIN = NOVEMBER.begin_s
PLAN = plan(rate("10", unit="TB"))


def lease(size: int = 100 * TB, mode: Mode | None = "average", **given: Any) -> Commitment:
    begin_s = given.pop("begin_s", BEGIN)
    fields: dict[str, Any] = {
        "lease": "L1",
        "steps": (Step(begin_s, size),),
        "begin_s": begin_s,
        "end_s": Month(2029, 11).begin_s,
        "unit_price": Decimal("5.90"),
        "overage": None if mode is None else Overage(mode=mode, unit_price=Decimal("7.99")),
        **given,
    }
    return Commitment(**fields)


def rated(usage: Usage, *leases: Commitment, month: Month = NOVEMBER) -> list[tuple[str, str, int]]:
    return [
        (line.kind, line.quantity, line.net)
        for line in rate_month(PLAN, usage, month, commitments=leases).lines
    ]


def test_v7_a_commitment_and_what_is_above_it() -> None:
    assert rated(stored(110 * TB, NOVEMBER), lease()) == [
        ("commitment", "100/1", 590_00),
        ("overage", "10/1", 79_90),
    ]


def test_v7_a_lease_that_begins_on_the_eleventh_of_thirty_days_pays_two_thirds() -> None:
    assert rated(Usage(), lease(begin_s=BEGIN + 10 * DAY_S)) == [("commitment", "200/3", 393_33)]


@pytest.mark.parametrize(("mode", "months"), [("average", 0), ("instantaneous", 10), ("peak_daily", 20)])
def test_v8_what_is_above_depends_on_the_mode(mode: Mode, months: int) -> None:
    usage = stored_hours([80 * TB] * 15 * 24 + [120 * TB] * 15 * 24)
    lines = rate_month(PLAN, usage, NOVEMBER, commitments=[lease(mode=mode)]).lines
    assert sum(Fraction(line.quantity) for line in lines if line.kind == "overage") == months


def test_what_is_stored_before_the_lease_begins_is_the_plans() -> None:
    begin_s = BEGIN + 10 * DAY_S
    assert rated(stored(110 * TB, NOVEMBER), lease(begin_s=begin_s)) == [
        ("usage", "110/3", 366_67),
        ("commitment", "200/3", 393_33),
        ("overage", "20/3", 53_27),
    ]


def test_a_lease_of_nodes_without_overage_covers_whatever_is_stored() -> None:
    assert rated(stored(500 * TB, NOVEMBER), lease(mode=None)) == [("commitment", "100/1", 590_00)]


def test_what_is_stored_beyond_a_lease_that_has_no_terms_for_it_is_the_plans() -> None:
    bare = lease(mode=None, beyond_is_plans=True)
    commitment = ("commitment", "100/1", 590_00)
    assert rated(stored(500 * TB, NOVEMBER), bare) == [("usage", "400/1", 4_000_00), commitment]
    assert rated(stored(100 * TB, NOVEMBER), bare) == [commitment]
    days = stored_hours(
        [80 * TB] * 15 * 24 + [120 * TB] * 15 * 24
    )  # Hour by hour: none makes up for another.
    assert rated(days, bare) == [("usage", "10/1", 100_00), commitment]
    late = lease(mode=None, beyond_is_plans=True, begin_s=BEGIN + 15 * DAY_S)
    assert rated(stored(120 * TB, NOVEMBER), late) == [
        ("usage", "70/1", 700_00),
        ("commitment", "50/1", 295_00),
    ]


def test_a_lease_covers_its_own_class_only() -> None:
    terms = plan(rate("10", unit="TB"))
    lines = rate_month(terms, stored(TB, NOVEMBER, "COLD"), NOVEMBER, commitments=[lease()]).lines
    assert [(line.kind, line.storage_class, line.net) for line in lines] == [
        ("usage", "", 10_00),
        ("commitment", "STANDARD", 590_00),
    ]


def test_a_ramp_is_charged_as_it_climbs() -> None:
    steps = (Step(BEGIN, 50 * TB), Step(BEGIN + 15 * DAY_S, 100 * TB))
    assert rated(stored(60 * TB, NOVEMBER), lease(steps=steps)) == [("commitment", "75/1", 442_50)]
    assert rated(stored(60 * TB, NOVEMBER), lease(steps=steps, mode="instantaneous")) == [
        ("commitment", "75/1", 442_50),
        ("overage", "5/1", 39_95),
    ]


NINE = Overage(mode="average", unit_price=Decimal(9))


def billed_above(one: Commitment, hours: Sequence[int], mode: Mode) -> Fraction:
    """Byte-seconds that are billed above a lease of such a mode."""
    [(_, amount)] = Pool(
        [replace(one, overage=Overage(mode=mode, unit_price=Decimal(1)))], NOVEMBER, hours
    ).overages()
    return amount


def above(*leases: Commitment, size: int = 130 * TB) -> list[tuple[str, Fraction, str]]:
    """The lines of what is stored above them: lease, terabyte-months, price."""
    lines = rate_month(PLAN, stored(size, NOVEMBER), NOVEMBER, commitments=leases).lines
    return [
        (line.lease, Fraction(line.quantity), line.unit_price) for line in lines if line.kind == "overage"
    ]


def test_leases_of_one_class_count_together_each_hour_under_the_terms_of_the_newest_that_has_any() -> None:
    more = lease(20 * TB, lease="L2", begin_s=BEGIN + DAY_S, overage=NINE)
    # 30 TB on the first day, 10 TB on the other 29.
    assert above(more, lease()) == [("L1", Fraction(30, 30), "7.99"), ("L2", Fraction(290, 30), "9")]
    over = replace(more, end_s=BEGIN + 11 * DAY_S)
    assert above(over, lease()) == [
        ("L1", Fraction(30 + 19 * 30, 30), "7.99"),
        ("L2", Fraction(100, 30), "9"),
    ]


def test_a_newer_lease_without_terms_takes_no_older_ones_away() -> None:
    for beyond_is_plans in (True, False):  # Dedicated nodes, too.
        bare = lease(20 * TB, lease="L2", begin_s=BEGIN + DAY_S, mode=None, beyond_is_plans=beyond_is_plans)
        assert above(bare, lease()) == [("L1", Fraction(30 + 290, 30), "7.99")]
        ended = lease(end_s=BEGIN + 10 * DAY_S)
        assert above(bare, ended) == [("L1", Fraction(30 + 90, 30), "7.99")]
        # Behind its end what is above the other one is the plan's, or on nodes of its own: 110 TB, 20 days.
        lines = rated(stored(130 * TB, NOVEMBER), bare, ended)
        assert [net for kind, _, net in lines if kind == "usage"] == ([733_33] if beyond_is_plans else [])


@settings(max_examples=EXAMPLES)
@given(
    spans=st.lists(
        st.tuples(
            st.integers(0, 29), st.integers(1, 30), st.integers(0, 90), st.sampled_from([None, *MODES])
        ),
        min_size=1,
        max_size=4,
    ),
    size=st.integers(0, 200),
)
def test_of_many_leases_each_byte_second_is_the_plans_or_within_or_above_one_of_them(
    spans: list[tuple[int, int, int, Mode | None]], size: int
) -> None:
    leases = [
        lease(
            capacity * TB,
            lease=f"L{number}",
            begin_s=BEGIN + first * DAY_S,
            end_s=BEGIN + (first + length) * DAY_S,
            mode="instantaneous" if mode else None,
            beyond_is_plans=mode is None,
        )
        for number, (first, length, capacity, mode) in enumerate(spans)
    ]
    usage = stored(size * TB, NOVEMBER)
    pool = Pool(leases, NOVEMBER, usage.hourly[""])
    within = sum(use.used for use in pool.uses())
    beyond = sum(amount for _, amount in pool.overages())
    assert pool.beside() + within + beyond == usage.total("storage")
    expected: Counter[str] = Counter()
    for day in range(30):
        held = [one for one in leases if one.begin_s <= BEGIN + day * DAY_S < one.end_s]
        excess = size * TB - sum(one.steps[0].size for one in held)
        told = [one for one in held if one.overage]
        if told and excess > 0:
            expected[max(told, key=lambda one: (one.begin_s, one.lease)).lease] += excess * DAY_S
    assert {one.lease: amount for one, amount in pool.overages() if amount} == expected


def test_in_arrears_the_month_is_asked_for_in_advance_the_next_too() -> None:
    arrears = charges(lease(), NOVEMBER)
    assert [(charge.month, charge.byte_seconds) for charge in arrears] == [
        (NOVEMBER, 100 * TB * NOVEMBER.seconds)
    ]
    advance = lease(billing="advance")
    assert [charge.month for charge in charges(advance, NOVEMBER)] == [NOVEMBER, DECEMBER]
    assert [
        charge.month for charge in charges(replace(advance, billed_until_s=BEGIN), NOVEMBER.following())
    ] == [
        NOVEMBER,
        DECEMBER,
        DECEMBER.following(),
    ]
    before = Month(2026, 10)
    assert [charge.month for charge in charges(advance, before)] == [NOVEMBER]  # A month before it begins.
    assert charges(lease(), before) == []


def test_month_after_month_everything_is_asked_for_once() -> None:
    for billing in ("advance", "arrears"):
        one = lease(billing=billing, begin_s=BEGIN + 5 * DAY_S + 7, end_s=Month(2027, 6).begin_s + 12_345)
        month, total = Month(2026, 9), 0
        for _ in range(15):
            asked = charges(one, month)
            assert [charge.begin_s for charge in asked[1:]] == [charge.end_s for charge in asked[:-1]]
            if asked:
                one = replace(one, billed_until_s=asked[-1].end_s)
            total += sum(charge.byte_seconds for charge in asked)
            month = month.following()
        assert total == one.byte_seconds(one.begin_s, one.end_s)


@pytest.mark.parametrize("billing", ["advance", "arrears"])
def test_invoices_themselves_say_up_to_where_a_lease_is_billed(billing: str) -> None:
    one = lease(billing=billing, begin_s=BEGIN + 5 * DAY_S, end_s=Month(2027, 6).begin_s + 3 * DAY_S)
    lines: list[Line] = []
    month = Month(2026, 9)
    for _ in range(15):
        if month == Month(2027, 2):
            one = replace(one, end_s=month.begin_s + 7 * DAY_S)  # Ended early.
        known = replace(one, billed_until_s=billed_until(lines).get("L1", 0))
        lines += rate_month(PLAN, Usage(), month, commitments=[known]).lines
        month = month.following()
    assert sum(Fraction(line.consumed) for line in lines) == one.byte_seconds(one.begin_s, one.end_s)
    assert billed_until(lines) == {"L1": one.end_s}
    assert any(line.net < 0 for line in lines) == (billing == "advance")


def test_what_was_paid_in_advance_beyond_an_early_end_is_given_back() -> None:
    ended = lease(billing="advance", billed_until_s=DECEMBER.end_s, end_s=DECEMBER.begin_s + 10 * DAY_S)
    [back] = rate_month(PLAN, Usage(), DECEMBER, commitments=[ended]).lines
    assert (back.kind, Fraction(back.quantity), back.net) == ("commitment", Fraction(-2100, 31), -399_68)
    assert charges(replace(ended, billed_until_s=ended.end_s), DECEMBER) == []


def test_what_is_given_back_is_given_back_less_its_discount() -> None:
    tenth = Discount(description="tenth", rate=Decimal("0.1"), kinds=("commitment",))
    ended = lease(billing="advance", billed_until_s=DECEMBER.end_s, end_s=DECEMBER.begin_s)
    lines = rate_month(PLAN, Usage(), DECEMBER, commitments=[ended], discounts=[tenth]).lines
    assert [line.net for line in lines] == [-590_00, 59_00]
    other = lease(50 * TB, lease="L2", begin_s=DECEMBER.begin_s, mode=None)
    lines = rate_month(PLAN, Usage(), DECEMBER, commitments=[ended, other], discounts=[tenth, tenth]).lines
    # Twice a tenth, of what is charged and of what is given back: each has its own lines.
    assert [line.net for line in lines] == [-590_00, 295_00, 59_00, -29_50, 53_10, -26_55]


def test_what_lies_idle_of_each_lease_is_told() -> None:
    first, second = lease(100 * TB), lease(50 * TB, lease="L2", begin_s=BEGIN + 15 * DAY_S)
    uses = rate_month(PLAN, stored(120 * TB, NOVEMBER), NOVEMBER, commitments=[second, first]).uses
    assert [(use.lease, use.used, use.unused) for use in uses] == [
        ("L1", 100 * TB * 30 * DAY_S, 0),
        ("L2", 20 * TB * 15 * DAY_S, 30 * TB * 15 * DAY_S),
    ]


@settings(max_examples=EXAMPLES)
@given(
    sizes=st.lists(st.integers(0, 200), min_size=30, max_size=30),
    first=st.integers(0, 29),
    length=st.integers(1, 40),
    capacity=st.integers(0, 150),
)
def test_of_any_month_each_byte_second_is_the_plans_or_within_or_above(
    sizes: list[int], first: int, length: int, capacity: int
) -> None:
    hours = [size * TB for size in sizes for _ in range(24)]
    begin_s = BEGIN + first * DAY_S
    one = lease(capacity * TB, begin_s=begin_s, end_s=begin_s + length * DAY_S)
    usage = stored_hours(hours)
    pool = Pool([one], NOVEMBER, usage.hourly[""])
    [use] = pool.uses()
    above = {mode: billed_above(one, usage.hourly[""], mode) for mode in MODES}
    assert pool.beside() + use.used + above["instantaneous"] == usage.total("storage")
    assert 0 <= above["average"] <= above["instantaneous"]
    assert above["average"] <= above["peak_daily"]
    days = [size * TB for size in sizes[first : first + length]]
    expected = sum(max(0, size - capacity * TB) for size in days) * DAY_S
    assert above["instantaneous"] == expected
    assert above["peak_daily"] == max(0, max(days) - capacity * TB) * len(days) * DAY_S
    assert use.committed == capacity * TB * len(days) * DAY_S


def test_an_hour_that_a_lease_touches_is_the_leases_with_its_largest_capacity() -> None:
    steps = (Step(BEGIN, 70 * TB), Step(BEGIN + 1_800, 30 * TB), Step(BEGIN + 2_400, 50 * TB))
    one = lease(steps=steps, end_s=BEGIN + 3_600 + 1, mode="instantaneous")
    pool = Pool([one], NOVEMBER, [100 * TB * 3_600] * NOVEMBER.hours)
    assert pool.beside() == 100 * TB * 3_600 * (NOVEMBER.hours - 2)
    assert pool.overages() == [(one, Fraction((30 + 50) * TB * 3_600))]
    [use] = pool.uses()  # What is leased is exact: the second hour is leased for one second.
    assert use.committed == (70 * 1_800 + 30 * 600 + 50 * 1_201) * TB
    assert use.unused == 0


def test_an_hour_that_a_lease_begins_in_is_the_leases() -> None:
    one = lease(begin_s=BEGIN + 1_800)
    pool = Pool([one], NOVEMBER, [100 * TB * 3_600] * NOVEMBER.hours)
    assert pool.beside() == 0
    assert pool.overages() == [(one, Fraction(0))]
    [charge] = charges(one, NOVEMBER)
    assert charge.byte_seconds == 100 * TB * (
        NOVEMBER.seconds - 1_800
    )  # What is paid is exact to the second.


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"unit": "XB"}, "unit"),
        ({"end_s": BEGIN - 1}, "end"),
        ({"steps": ()}, "ramp"),
        ({"steps": (Step(BEGIN + 1, 1),)}, "ramp"),
        ({"steps": (Step(BEGIN, 1), Step(BEGIN, 2))}, "ramp"),
        ({"steps": (Step(BEGIN, -1),)}, "ramp"),
        ({"unit_price": Decimal(-1)}, "price"),
    ],
)
def test_a_lease_that_makes_no_sense_is_refused(given: dict[str, Any], name: str) -> None:
    with pytest.raises(BadArgument, match=name):
        lease(**given)


def test_a_leases_record_is_rated_as_it_is_kept() -> None:
    record = LeaseRecord(
        id="L1",
        tenant="acme",
        kind="guaranteed",
        state="active",
        capacity=100 * TB,
        begin_us=BEGIN * 10**6,
        end_us=Month(2029, 11).begin_s * 10**6,
        term_months=36,
        unit_price="5.90",
        overage_mode="average",
        overage_price="7.99",
    )
    assert commitment_of(record) == lease()
    climbs = msgspec.structs.replace(record, ramp=[((BEGIN + 9) * 10**6, TB)], overage_mode="")
    assert commitment_of(climbs) == lease(
        steps=(Step(BEGIN, 0), Step(BEGIN + 9, TB)), mode=None, beyond_is_plans=True
    )
    nodes = msgspec.structs.replace(record, kind="dedicated", nodes=["1"], overage_mode="")
    assert commitment_of(nodes) == lease(mode=None)
    ended = msgspec.structs.replace(
        record, billing="advance", ended_us=(BEGIN + 7) * 10**6, billed_until_us=DECEMBER.end_s * 10**6
    )
    assert commitment_of(ended) == lease(billing="advance", end_s=BEGIN + 7, billed_until_s=DECEMBER.end_s)
    with pytest.raises(BadArgument, match="overage must be one of average"):
        commitment_of(msgspec.structs.replace(record, overage_mode="sometimes"))


def test_a_lease_that_was_ended_before_it_began_gives_back_all_that_was_billed_in_advance() -> None:
    before = lease(end_s=BEGIN, billing="advance", billed_until_s=NOVEMBER.end_s)
    assert rated(stored(TB, NOVEMBER), before) == [("usage", "1/1", 10_00), ("commitment", "-100/1", -590_00)]


def test_lines_name_their_lease_and_the_time_they_are_for() -> None:
    lines: tuple[Line, ...] = rate_month(
        PLAN, stored(TB, NOVEMBER), NOVEMBER, commitments=[lease(billing="advance")], language="en"
    ).lines
    assert [(line.lease, line.begin_us, line.end_us) for line in lines] == [
        ("L1", month.begin_s * 10**6, month.end_s * 10**6) for month in (NOVEMBER, DECEMBER)
    ]
    assert lines[0].description == "Committed capacity STANDARD"
