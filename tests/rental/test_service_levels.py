"""Service levels: vector V12, what counts, what is excluded, and what is given back."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objstore.errors import BadArgument
from objstore.meta.schema import decode, encode
from objstore.rental.records import Line
from objstore.rental.service_levels import (
    INTERVAL_S,
    S3_STANDARD,
    Assessment,
    CreditTier,
    Exclusion,
    Interval,
    ServiceLevel,
    ServiceLevelRecord,
    assess,
    check_level,
    credit_lines,
    proof_csv,
)
from tests.rental.cards import EXAMPLES, NOVEMBER

BEGIN, END = NOVEMBER.begin_s, NOVEMBER.end_s
FIRST = BEGIN // INTERVAL_S
ALL = 8_640  # Intervals of 30 days.


def november(measured: dict[int, Interval], *exclusions: Exclusion) -> Assessment:
    """measured: by the interval's number in the month."""
    slots = {FIRST + number: interval for number, interval in measured.items()}
    return assess(S3_STANDARD, BEGIN, END, slots, exclusions)


def failed(count: int, requests: int = 8, failures: int = 8) -> Assessment:
    return november({number: Interval(requests, failures) for number in range(count)})


@pytest.mark.parametrize(
    ("count", "uptime", "credit"),
    [
        (8, "99.9074", "0"),
        (9, "99.8958", "0.10"),
        (86, "99.0046", "0.10"),
        (87, "98.9931", "0.25"),
        (432, "95.0000", "0.25"),
        (433, "94.9884", "1"),
    ],
)
def test_v12_intervals_that_failed_wholly(count: int, uptime: str, credit: str) -> None:
    held = failed(count)
    assert held.counted == ALL
    assert held.uptime == 1 - Fraction(count, ALL)
    assert round(held.uptime * 100, 4) == Fraction(uptime)
    assert held.credit == Decimal(credit)


def test_v12_a_hundred_intervals_at_an_eighth() -> None:
    held = failed(100, requests=8, failures=1)
    assert round(held.uptime * 100, 4) == Fraction("99.8553")
    assert held.credit == Decimal("0.10")


def test_an_interval_in_which_nobody_asked_is_one_without_an_error() -> None:
    assert november({}).uptime == 1
    assert november({0: Interval(0, 0), 1: Interval(5, 0)}).rows == ()


def test_a_few_failures_weigh_by_their_own_interval_not_by_all_requests() -> None:
    held = november({0: Interval(1, 1), 1: Interval(1_000_000, 0)})
    assert held.uptime == 1 - Fraction(1, ALL)


def test_what_is_excluded_counts_neither_way() -> None:
    reason = "announced maintenance"
    ten = Exclusion(BEGIN, BEGIN + 10 * INTERVAL_S, reason)
    held = november({number: Interval(4, 4) for number in range(20)}, ten)
    assert (held.counted, held.uptime) == (ALL - 10, 1 - Fraction(10, ALL - 10))
    assert [row.excluded for row in held.rows] == [reason] * 10 + [""] * 10


def test_exclusions_that_overlap_or_reach_beyond_the_period_count_once_and_within() -> None:
    held = november(
        {},
        Exclusion(BEGIN - 999, BEGIN + 1, "one"),
        Exclusion(BEGIN, BEGIN + 2, "two"),
        Exclusion(END, END + 9, "x"),
    )
    assert held.counted == ALL - 1
    assert len(held.rows) == 1


def test_a_period_that_is_excluded_as_a_whole_is_up() -> None:
    held = november({3: Interval(1, 1)}, Exclusion(BEGIN, END, "flood"))
    assert held.counted == 0
    assert held.uptime == 1
    assert held.credit == 0


def test_measurements_of_other_periods_are_left_out() -> None:
    held = november({-1: Interval(1, 1), ALL: Interval(1, 1)})
    assert held.uptime == 1
    assert held.rows == ()


def test_the_proof_says_enough_to_work_the_uptime_out_again() -> None:
    held = november(
        {0: Interval(8, 1), 5: Interval(2, 2), 7: Interval(9, 0)},
        Exclusion(BEGIN + 5 * INTERVAL_S, BEGIN + 1_501, 'a "b", c'),
    )
    lines = proof_csv(held).splitlines()
    assert lines == [
        "interval_utc,requests,failures,minutes_unserved,error_rate,excluded",
        "2026-11-01T00:00:00Z,8,1,0,1/8,",
        '2026-11-01T00:25:00Z,2,2,0,1,"a ""b"", c"',
    ]
    assert held.uptime == 1 - Fraction(1, 8) / (ALL - 1)


def test_the_uptime_that_is_printed_is_never_better_than_it_was() -> None:
    assert failed(9).uptime_text() == "99.8958"
    assert failed(86).uptime_text() == "99.0046"
    assert failed(433).uptime_text() == "94.9884"
    assert failed(1, requests=10**9, failures=1).uptime_text() == "99.9999"
    assert november({}).uptime_text() == "100.0000"


def line(kind: str, net: int, storage_class: str = "STANDARD", product: str = "storage") -> Line:
    return Line(kind=kind, description="", net=net, storage_class=storage_class, product=product)


def test_the_credit_is_of_the_affected_class_before_tax_after_discounts() -> None:
    lines = [
        line("usage", 600_00),
        line("commitment", 200_00),
        line("usage", 200_00, "COLD"),
        line("discount", -100_00, ""),
    ]
    [credit] = credit_lines(failed(9), lines, "DZD")
    assert (credit.kind, credit.net) == ("credit", -72_00)  # A tenth of 800 less its 80 of discount.
    assert credit.description == "Avoir de niveau de service s3-standard 2026-11 (99,8958 %; 10 % × 720,00)"
    assert credit_lines(failed(8), lines, "DZD") == []
    [whole] = credit_lines(failed(433), lines, "DZD")
    assert whole.net == -720_00


def test_a_credit_of_some_charges_bears_their_share_of_the_discounts() -> None:
    lines = [line("usage", 300_00), line("commitment", 100_00), line("discount", -40_00, "")]
    [credit] = credit_lines(failed(87), lines, "DZD", of=lambda one: one.kind == "commitment")
    assert credit.net == -22_50  # A quarter of 100 less its 10 of discount.


def test_minutes_that_nobody_could_have_been_served_in_count_as_failed_whoever_asked() -> None:
    first = BEGIN // 60
    unserved = [first, first + 1, *range(first + 10, first + 15)]  # Two minutes of one, five of another.
    slots = {FIRST: Interval(4, 1), FIRST + 2: Interval(3, 0)}
    held = assess(S3_STANDARD, BEGIN, END, slots, [], unserved)
    assert [(row.unserved, row.error_rate) for row in held.rows] == [
        (2, Fraction(2, 5) + Fraction(3, 5) * Fraction(1, 4)),
        (5, Fraction(1)),
    ]
    assert held.uptime == 1 - Fraction(31, 20) / ALL
    excluded = assess(S3_STANDARD, BEGIN, END, {}, [Exclusion(BEGIN, BEGIN + 900, "announced")], unserved)
    assert excluded.uptime == 1


def test_the_credit_is_by_product_so_that_each_gives_its_own_tax_back() -> None:
    lines = [
        line("usage", 10_00),
        line("usage", 5_05, product="reduced"),
        line("credit", -3_00),
        line("purchase", 7_00),
    ]
    given_back = credit_lines(failed(87), lines, "EUR", "en")
    assert [(credit.product, credit.net) for credit in given_back] == [("reduced", -1_26), ("storage", -2_50)]
    assert given_back[0].description == "Service level credit s3-standard 2026-11 (98.9930 %; 25 % × 5.05)"


def test_a_level_for_all_classes_gives_back_of_all_charges() -> None:
    held = failed(9)
    every = replace(held, level=ServiceLevel(id="all", storage_class="*", tiers=S3_STANDARD.tiers))
    both = [line("usage", 100), line("usage", 100, "COLD")]
    assert [one.net for one in credit_lines(every, both, "EUR")] == [-20]


@settings(max_examples=EXAMPLES)
@given(
    st.dictionaries(
        st.integers(0, ALL - 1),
        st.integers(1, 1_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
        max_size=40,
    )
)
def test_uptime_is_one_less_the_mean_of_all_error_rates(measured: dict[int, tuple[int, int]]) -> None:
    held = november(
        {number: Interval(requests, failures) for number, (requests, failures) in measured.items()}
    )
    rates = [Fraction(failures, requests) for requests, failures in measured.values()]
    assert held.uptime == 1 - sum(rates, Fraction(0)) / ALL


def test_levels_come_back_from_metadata_and_senseless_ones_are_refused() -> None:
    assert (
        decode(encode(ServiceLevelRecord(level=check_level(S3_STANDARD))), ServiceLevelRecord).level
        == S3_STANDARD
    )
    good = S3_STANDARD.tiers
    for tiers in (
        (),
        good[::-1],
        (CreditTier(below=Decimal("99.9"), credit=Decimal("0.1")),),
        (good[0], good[0]),
        (good[0], msgspec.structs.replace(good[1], credit=good[0].credit)),
    ):
        with pytest.raises(BadArgument):
            check_level(ServiceLevel(id="x", tiers=tiers))
    with pytest.raises(BadArgument, match="id is"):
        check_level(ServiceLevel(id="No", tiers=good))
    with pytest.raises(BadArgument, match="reason"):
        Exclusion(1, 2, "")
