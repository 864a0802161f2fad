"""Usage to lines: vectors V1 to V6, V9 and V11 of the renting rules, and what holds for any plan."""

import random
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objstore.rental.meters import EARLY, HOUR_S, REQUESTS_A
from objstore.rental.months import Month
from objstore.rental.plans import Discount, Rate, Tier, accrued_early
from objstore.rental.rating import apportion, corrections, parts_of, rate_month, split
from objstore.rental.records import Line
from objstore.rental.tally import Tally, Usage, UsageKey, add_usage
from tests.rental.cards import (
    DAY_S,
    EXAMPLES,
    GB,
    MARCH,
    NOVEMBER,
    TB,
    TIB,
    plan,
    rate,
    stored,
    tiers,
    usage_key,
    usage_value,
    used,
)
from tests.seed import SEED


def quantity(line: Line) -> Fraction:
    return Fraction(line.quantity)


def amount(one: Rate, units: str) -> Fraction:
    """Before rounding."""
    return sum(
        (part.quantity * Fraction(part.unit_price) for part in parts_of(one, Fraction(units))), Fraction(0)
    )


# The published vectors.


def test_v1_byte_hours_of_march_are_52900_gibibyte_months() -> None:
    byte_hours = 107_374_182_400 * 15 * 24 + 109_951_162_777_600 * 16 * 24
    assert byte_hours == 42_259_901_212_262_400
    [line] = rate_month(plan(rate(unit="GiB")), used(byte_hours * HOUR_S), MARCH).lines
    assert (line.quantity, line.unit) == ("52900/1", "GiB-Months")
    assert line.net == 52_900_00
    assert line.consumed == str(byte_hours * HOUR_S)


@pytest.mark.parametrize(
    ("hours", "months"), [("calendar", "3303.2258"), (720, "3413.3333"), (730, "3366.5753")]
)
def test_v2_eight_hours_a_day_by_the_hours_of_the_month(hours: str | int, months: str) -> None:
    byte_hours = 10 * TIB * 8 * 30
    assert byte_hours == 2_638_827_906_662_400
    [line] = rate_month(plan(rate(unit="GiB", month_hours=hours)), used(byte_hours * HOUR_S), MARCH).lines
    assert round(quantity(line), 4) == Fraction(months)


@pytest.mark.parametrize(
    ("month", "hours", "months"),
    [
        (Month(2026, 2), "calendar", "1000"),
        (NOVEMBER, "calendar", "1000"),
        (MARCH, "calendar", "1000"),
        (Month(2026, 2), 730, "920.547945"),
        (NOVEMBER, 730, "986.301370"),
        (MARCH, 730, "1019.178082"),
        (Month(2026, 2), 720, "933.333333"),
        (NOVEMBER, 720, "1000"),
        (MARCH, 720, "1033.333333"),
    ],
)
def test_v3_a_terabyte_all_month(month: Month, hours: str | int, months: str) -> None:
    [line] = rate_month(plan(rate(month_hours=hours)), stored(TB, month), month).lines
    assert round(quantity(line), 6) == Fraction(months)


@pytest.mark.parametrize(("unit", "months"), [("GB", "5.5"), ("GiB", "5.122274")])
def test_v4_a_month_of_changes(unit: str, months: str) -> None:
    changes = [(0, 5 * GB), (10, 3 * GB), (20, -3 * GB), (25, -3 * GB)]  # The third: 5 GB overwritten by 2.
    byte_seconds = sum(delta * (30 - day) * DAY_S for day, delta in changes)
    assert byte_seconds == 14_256_000_000_000_000
    [line] = rate_month(plan(rate(unit=unit)), used(byte_seconds), NOVEMBER).lines
    assert round(quantity(line), 6) == Fraction(months)


TIERS = tiers(("1024", "0.140"), ("51200", "0.125"), (None, "0.110"))


@pytest.mark.parametrize(("model", "net"), [("graduated", 6602_36), ("volume", 5819_00)])
def test_v5_graduated_and_volume(model: str, net: int) -> None:
    rated = rate_month(plan(rate(model=model, tiers=TIERS)), stored(52_900 * GB, NOVEMBER), NOVEMBER)
    assert rated.net("USD").minor == net
    wanted = ["1024/1", "50176/1", "1700/1"] if model == "graduated" else ["52900/1"]
    assert [line.quantity for line in rated.lines] == wanted
    assert [line.tier for line in rated.lines] == ([1, 2, 3] if model == "graduated" else [3])


def test_v6_a_terabyte_that_goes_after_15_of_90_days_is_billed_for_90() -> None:
    terms = rate("7.99", unit="TB", storage_class="COLD", min_duration_days=90)
    kept, missing = TB * 15 * DAY_S, TB * 75 * DAY_S
    usage = add_usage([used(kept, storage_class="COLD"), used(missing, "early_delete", "COLD")])
    [line] = rate_month(plan(terms), usage, NOVEMBER).lines
    assert (line.quantity, line.net) == ("3/1", 23_97)


def test_v6_day_by_day_the_same_is_billed_in_the_months_in_which_it_passes() -> None:
    terms = rate(
        "7.99", unit="TB", storage_class="COLD", min_duration_days=90, early="accrual", month_hours=720
    )
    gone_s = NOVEMBER.begin_s + 15 * DAY_S
    month, billed = NOVEMBER, []
    for _ in range(4):
        accrued = accrued_early([(TB, gone_s, gone_s + 75 * DAY_S)], month.begin_s, month.end_s)
        kept = TB * 15 * DAY_S if month == NOVEMBER else 0
        usage = add_usage([used(kept, storage_class="COLD"), used(accrued, "early_accrued", "COLD")])
        billed += [quantity(line) for line in rate_month(plan(terms), usage, month).lines]
        month = month.following()
    assert billed == [Fraction(30, 30), Fraction(31, 30), Fraction(29, 30)]  # 15 + 15, 31 and 29 days.
    assert sum(billed) == 3


def test_what_is_early_is_billed_in_one_sum_or_day_by_day_but_never_both() -> None:
    once = rate(unit="TB", storage_class="COLD", min_duration_days=90)
    by_day = rate(unit="TB", storage_class="COLD", min_duration_days=90, early="accrual")
    both = add_usage([used(TB, "early_delete", "COLD"), used(TB, "early_accrued", "COLD")])
    for terms, other in ((once, "early_accrued"), (by_day, "early_delete")):
        rated = rate_month(plan(terms), both, NOVEMBER)
        assert [line.consumed for line in rated.lines] == [str(TB)]
        assert [key.meter for key in rated.unpriced or {}] == [other]


@pytest.mark.parametrize(("ratio", "billable"), [("0", 250), ("1", 150), ("3", 0)])
def test_v9_traffic_is_free_up_to_a_ratio_of_what_is_stored(ratio: str, billable: int) -> None:
    egress = rate(meter="egress_internet", unit="TB", free_ratio=Decimal(ratio))
    usage = add_usage([stored(100 * TB, NOVEMBER), used(250 * TB, "egress_internet")])
    rated = rate_month(plan(egress), usage, NOVEMBER)
    assert sum(quantity(line) for line in rated.lines if line.unit_price == "1") == billable
    assert sum(int(line.consumed) for line in rated.lines) == 250 * TB


def test_v11_each_line_is_rounded_half_up_before_they_are_added() -> None:
    items = [rate("0.345", meter=meter, unit="Requests") for meter in ("requests_a", "requests_b")]
    items.append(rate("0.345", meter="egress_internet"))
    usage = add_usage([used(1, "requests_a"), used(1, "requests_b"), used(GB, "egress_internet")])
    rated = rate_month(plan(*items), usage, MARCH)
    assert [line.net for line in rated.lines] == [35, 35, 35]
    assert str(rated.net("USD")) == "1.05"


# The models.


def test_a_package_is_paid_for_once_it_is_begun() -> None:
    terms = rate("60", model="package", meter="requests_a", unit="1000 Requests", package=Decimal(100))
    counts = {
        count: rate_month(plan(terms), used(count, "requests_a"), MARCH).lines
        for count in (1, 100_000, 100_001)
    }
    assert [(line.quantity, line.unit, line.net) for [line] in counts.values()] == [
        ("1/1", "100 1000 Requests", 60_00),
        ("1/1", "100 1000 Requests", 60_00),
        ("2/1", "100 1000 Requests", 120_00),
    ]
    assert counts[100_001][0].consumed == "100001"


def test_a_flat_price_is_paid_once_and_only_if_anything_was_used() -> None:
    terms = rate(model="flat", tiers=(Tier(flat=Decimal(5)),))
    assert rate_month(plan(terms), Usage(), MARCH).lines == ()
    [line] = rate_month(plan(terms), stored(1, MARCH), MARCH).lines
    assert (line.quantity, line.unit, line.net) == ("1/1", "Months", 5_00)


def test_a_subscription_is_paid_for_the_time_it_was_held() -> None:
    monthly = rate(meter="subscription", unit="Month", model="flat", tiers=(Tier(flat=Decimal(31)),))
    hourly = rate("0.5", meter="subscription", unit="Hour")
    assert [line.net for line in rate_month(plan(monthly), Usage(), MARCH).lines] == [31_00]
    for terms, net in ((monthly, 10_00), (hourly, 120_00)):
        assert rate_month(plan(terms), Usage(), MARCH, active_s=10 * DAY_S).net("USD").minor == net
    assert rate_month(plan(monthly), Usage(), MARCH, active_s=0).lines == ()


def test_a_free_allowance_stands_on_the_invoice_with_a_price_of_zero() -> None:
    rated = rate_month(plan(rate(free_fixed=Decimal(5))), stored(8 * GB, MARCH), MARCH)
    assert [(line.quantity, line.unit_price, line.net) for line in rated.lines] == [
        ("5/1", "0", 0),
        ("3/1", "1", 3_00),
    ]
    within = rate_month(plan(rate(free_fixed=Decimal(5))), stored(4 * GB, MARCH), MARCH)
    assert [(line.quantity, line.net) for line in within.lines] == [("4/1", 0)]


def test_the_least_quantity_is_billed_once_anything_was_used() -> None:
    terms = plan(rate("7.99", unit="TB", min_billable=Decimal(1)))
    assert rate_month(terms, Usage(), MARCH).lines == ()
    [line] = rate_month(terms, stored(GB, MARCH), MARCH).lines
    assert (line.quantity, line.net, line.consumed) == ("1/1", 7_99, str(GB * MARCH.seconds))


def test_a_tier_may_have_a_fixed_amount_that_is_due_when_it_is_reached() -> None:
    steps = (Tier(up_to=Decimal(10), unit_price=Decimal(1), flat=Decimal(3)), Tier(flat=Decimal(7)))
    for model, nets in (("graduated", [3_00, 10_00, 7_00, 0]), ("volume", [7_00, 0])):
        rated = rate_month(plan(rate(model=model, tiers=steps)), stored(12 * GB, MARCH), MARCH)
        assert [line.net for line in rated.lines] == nets
    below = rate_month(plan(rate(model="graduated", tiers=steps)), stored(4 * GB, MARCH), MARCH)
    assert [line.net for line in below.lines] == [3_00, 4_00]


def test_a_price_that_names_the_class_or_region_goes_before_one_that_does_not() -> None:
    terms = plan(
        rate("1"),
        rate("2", storage_class="COLD"),
        rate("3", region="oran"),
        rate("4", storage_class="COLD", region="oran"),
    )
    for storage_class, region, price in (
        ("", "", "1"),
        ("COLD", "", "2"),
        ("", "oran", "3"),
        ("COLD", "oran", "4"),
    ):
        rated = rate_month(terms, used(GB * MARCH.seconds, storage_class=storage_class, region=region), MARCH)
        assert [(line.unit_price, line.net) for line in rated.lines] == [(price, int(price) * 100)]


def test_of_a_price_for_the_class_and_one_for_the_region_that_for_the_class_holds() -> None:
    terms = plan(rate("3", region="oran"), rate("2", storage_class="COLD"))
    usage = used(GB * MARCH.seconds, storage_class="COLD", region="oran")
    assert [line.unit_price for line in rate_month(terms, usage, MARCH).lines] == ["2"]


def test_use_without_a_price_is_not_billed_but_told() -> None:
    rated = rate_month(plan(rate()), used(7, "requests_a"), MARCH)
    assert rated.lines == ()
    assert rated.unpriced == {UsageKey("", "photos", "", "requests_a"): 7}


def test_a_price_for_an_hour_does_not_ask_how_long_the_month_is() -> None:
    for month in (MARCH, NOVEMBER):
        [line] = rate_month(plan(rate("0.5", unit="GB-Hours")), used(GB * HOUR_S * 10), month).lines
        assert (line.quantity, line.unit, line.net) == ("10/1", "GB-Hours", 5_00)


def test_discounts_follow_each_other_and_never_make_a_line_negative() -> None:
    ten = Discount(description="ten percent", rate=Decimal("0.1"))
    rated = rate_month(plan(rate("0.05"), discounts=(ten,)), stored(GB, MARCH), MARCH, discounts=[ten, ten])
    assert [line.net for line in rated.lines] == [5, -1]  # 0.5 rounds to 1; then 0.4 to 0.
    half = Discount(description="half", rate=Decimal("0.5"))
    rated = rate_month(plan(rate("1"), discounts=(half,)), stored(GB, MARCH), MARCH, discounts=[ten])
    assert [(line.description, line.net) for line in rated.lines[1:]] == [("half", -50), ("ten percent", -5)]
    whole = Discount(description="all of it", rate=Decimal(1))
    rated = rate_month(plan(rate("0.05"), discounts=(ten, whole, whole)), stored(GB, MARCH), MARCH)
    assert [line.net for line in rated.lines] == [5, -1, -4]


def test_a_discount_has_a_line_for_each_product_and_touches_only_what_it_names() -> None:
    items = [
        rate("10"),
        rate("10", meter="egress_internet", product="transfer"),
        rate("10", meter="requests_a", unit="Requests"),
    ]
    usage = add_usage([stored(GB, MARCH), used(GB, "egress_internet"), used(1, "requests_a")])
    half = Discount(description="half", rate=Decimal("0.5"), meters=("storage", "egress_internet"))
    rated = rate_month(plan(*items, discounts=(half,)), usage, MARCH)
    assert [(line.product, line.net) for line in rated.lines if line.kind == "discount"] == [
        ("storage", -5_00),
        ("transfer", -5_00),
    ]


# Properties.

PRICES = st.integers(0, 10**6).map(lambda price: Decimal(price) / 1000)
QUANTITIES = st.integers(0, 10**22)


@st.composite
def ladders(draw: st.DrawFn, *, falling: bool = False) -> tuple[Tier, ...]:
    bounds = sorted(draw(st.sets(st.integers(1, 10**9), max_size=5)))
    prices = draw(st.lists(PRICES, min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    if falling:
        prices.sort(reverse=True)
    ends: list[Decimal | None] = [*(Decimal(bound) / 10 for bound in bounds), None]
    return tuple(Tier(up_to=end, unit_price=price) for end, price in zip(ends, prices, strict=True))


@settings(max_examples=EXAMPLES)
@given(steps=ladders(), used_units=st.fractions(0, 10**9))
def test_graduated_is_the_sum_of_its_tiers(steps: tuple[Tier, ...], used_units: Fraction) -> None:
    parts = parts_of(rate(model="graduated", tiers=steps), used_units)
    assert sum(part.quantity for part in parts) == used_units
    expected = lower = Fraction(0)
    for tier in steps:
        upper = used_units if tier.up_to is None else Fraction(tier.up_to)
        expected += max(Fraction(0), min(used_units, upper) - lower) * Fraction(tier.unit_price)
        lower = upper
    assert sum(part.quantity * Fraction(part.unit_price) for part in parts) == expected


@settings(max_examples=EXAMPLES)
@given(steps=ladders(falling=True), one=st.fractions(0, 10**9), other=st.fractions(0, 10**9))
def test_where_prices_fall_more_volume_is_never_dearer_by_the_unit(
    steps: tuple[Tier, ...], one: Fraction, other: Fraction
) -> None:
    small, large = sorted((one, other))
    volume, graduated = rate(model="volume", tiers=steps), rate(model="graduated", tiers=steps)
    if small:
        assert amount(volume, str(small)) / small >= amount(volume, str(large)) / large
    assert amount(volume, str(large)) <= amount(graduated, str(large))
    tier = {units: next((p.tier for p in parts_of(volume, units)), 1) for units in (small, large)}
    if tier[small] == tier[large]:  # Only across an edge may the whole become cheaper.
        assert amount(volume, str(small)) <= amount(volume, str(large))


def test_across_an_edge_one_unit_more_of_volume_makes_the_whole_cheaper_as_documented() -> None:
    assert amount(rate(model="volume", tiers=TIERS), "1024") > amount(
        rate(model="volume", tiers=TIERS), "1025"
    )


@settings(max_examples=EXAMPLES)
@given(
    amounts=st.integers(-(10**12), 10**12), weights=st.lists(st.integers(0, 10**30), min_size=1, max_size=30)
)
def test_shares_of_an_amount_sum_to_it_and_are_within_one_of_what_is_due(
    amounts: int, weights: list[int]
) -> None:
    if not sum(weights):
        weights[0] = 1
    shares = apportion(amounts, weights)
    assert sum(shares) == amounts
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(amounts * weight, sum(weights))) < 1


@settings(max_examples=EXAMPLES)
@given(
    used_by=st.dictionaries(
        st.tuples(st.sampled_from("xyz"), st.sampled_from(["a", "b", "c", "d"])), QUANTITIES, min_size=1
    ),
    steps=ladders(),
    free=st.integers(0, 10**4),
)
def test_splitting_lines_by_bucket_or_project_loses_no_unit_and_no_byte_second(
    used_by: dict[tuple[str, str], int], steps: tuple[Tier, ...], free: int
) -> None:
    usage = Usage(
        {UsageKey(project, bucket, "", "storage"): count for (project, bucket), count in used_by.items()}
    )
    rated = rate_month(plan(rate(model="graduated", tiers=steps, free_fixed=Decimal(free))), usage, MARCH)
    assert sum(Fraction(line.consumed) for line in rated.lines) == sum(used_by.values())
    for line, members in zip(rated.lines, rated.members, strict=True):
        by_bucket, by_project = split(line, members, "bucket"), split(line, members, "project")
        for pieces in (by_bucket, by_project):
            assert sum(piece.net for piece in pieces) == line.net
            assert sum(map(quantity, pieces)) == quantity(line)
            assert sum(Fraction(piece.consumed) for piece in pieces) == Fraction(line.consumed)


@settings(max_examples=EXAMPLES)
@given(
    used_by=st.dictionaries(st.sampled_from(["a", "b", "c"]), QUANTITIES), steps=ladders(), order=st.randoms()
)
def test_rating_twice_in_any_order_gives_the_same(
    used_by: dict[str, int], steps: tuple[Tier, ...], order: random.Random
) -> None:
    terms = plan(
        rate(model="graduated", tiers=steps), discounts=(Discount(description="d", rate=Decimal("0.07")),)
    )
    usage = Usage({UsageKey("", bucket, "", "storage"): count for bucket, count in used_by.items()})
    shuffled = list(usage.totals.items())
    order.shuffle(shuffled)
    assert rate_month(terms, usage, MARCH) == rate_month(terms, Usage(dict(shuffled)), MARCH)


def test_rating_again_gives_no_correction_and_late_use_gives_what_is_missing() -> None:
    terms = plan(rate("2"))
    billed = rate_month(terms, stored(GB, MARCH), MARCH).lines
    assert corrections(billed, rate_month(terms, stored(GB, MARCH), MARCH).lines) == []
    [late] = corrections(billed, rate_month(terms, stored(3 * GB, MARCH), MARCH).lines)
    assert (late.kind, late.net, late.consumed) == ("correction", 4_00, str(2 * GB * MARCH.seconds))
    again = rate_month(terms, stored(3 * GB, MARCH), MARCH).lines
    assert corrections([*billed, late], again) == []
    [back] = corrections([*billed, late], billed)
    assert back.net == -4_00


# Records, added up.


@pytest.mark.parametrize("seed", range(SEED, SEED + 10))
def test_a_month_cut_into_hours_and_batches_is_the_same_sum(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    expected: dict[UsageKey, int] = {}
    records: dict[bytes, bytes] = {}
    for hour in range(MARCH.first_hour, MARCH.first_hour + MARCH.hours):
        for bucket in range(1, 4):
            for meter, name in ((b"s", "storage"), (REQUESTS_A, "requests_a"), (EARLY, "early_delete")):
                count = rng.randrange(10**18)
                project = rng.choice(["", "x"])  # A bucket may be moved to another project.
                storage_class = rng.choice(["", "COLD"])
                records[usage_key("acme", hour, bucket, storage_class, meter)] = usage_value(
                    count, project, f"b{bucket}"
                )
                key = UsageKey(project, f"b{bucket}", storage_class, name)
                expected[key] = expected.get(key, 0) + count
    told: list[int] = []
    tally = Tally("acme", MARCH, progress=told.append)
    rows = sorted(records.items())
    at = 0
    while at < len(rows):
        size = rng.randrange(1, 500)
        tally.add(rows[at : at + size])
        at += size
    usage = tally.usage()
    assert usage.totals == expected
    assert sum(told) == len(rows)
    for storage_class in ("", "COLD"):
        total = sum(
            n for key, n in expected.items() if key.meter == "storage" and key.storage_class == storage_class
        )
        assert sum(usage.hourly[storage_class]) == total


def test_a_record_of_another_month_or_tenant_or_twice_is_refused() -> None:
    first = MARCH.first_hour
    good = (usage_key("acme", first, 1), usage_value(1))
    for key in (
        usage_key("acme", first - 1, 1),
        usage_key("acme", first + MARCH.hours, 1),
        usage_key("acme2", first, 1),
        usage_key("abc", first, 1),
    ):
        with pytest.raises(AssertionError):
            Tally("acme", MARCH).add([(key, usage_value(1))])
    tally = Tally("acme", MARCH)
    tally.add([good])
    tally.add([])
    with pytest.raises(AssertionError, match="already"):
        tally.add([good])
    assert tally.usage().total("storage") == 1


def test_parts_of_a_month_add_up_in_total_and_in_each_hour() -> None:
    whole = add_usage([stored(GB, MARCH), stored(2 * GB, MARCH), used(5, "requests_a")])
    assert whole.total("storage") == stored(3 * GB, MARCH).total("storage")
    assert whole.total("requests_a") == 5
    assert whole.hourly == stored(3 * GB, MARCH).hourly


def test_a_bucket_that_was_made_again_under_its_name_is_one_on_the_bill() -> None:
    tally = Tally("acme", MARCH, regions={"photos": "oran"})
    tally.add([(usage_key("acme", MARCH.first_hour, bucket), usage_value(5)) for bucket in (1, 2)])
    assert tally.usage().totals == {UsageKey("", "photos", "", "storage", "oran"): 10}


def test_months_follow_each_other_without_a_gap_and_know_their_hours() -> None:
    month = Month(1999, 12)
    for _ in range(1_500):
        after = month.following()
        assert month.end_s == after.begin_s
        assert Month.containing(month.begin_s) == Month.containing(month.end_s - 1) == month
        assert Month.containing(after.begin_s) == after
        month = after
        if month.year == 2105:
            break
    assert [Month(2024, 2).hours, Month(2026, 2).hours, MARCH.hours] == [696, 672, 744]
    assert Month.parse("2026-03") == MARCH
    assert str(MARCH) == "2026-03"
