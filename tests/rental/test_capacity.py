"""The capacity report: runway, growth that one strange day does not bend, and what is left to sell."""

import random
from fractions import Fraction

import msgspec

from objstore.meta.kv import DictKv
from objstore.rental.admission import Node
from objstore.rental.capacity import DAY_US, Capacity, Holdings, days_of, growth, note_day, report, runway
from objstore.rental.leases import after_months
from objstore.rental.records import CapacityEventRecord, LeaseRecord, SalesRecord, pool_of_lease
from objstore.rental.sales import Book, Supply
from tests.seed import SEED

TB = 10**12
NOW_US = 1_767_225_600_000_000  # 2026-01-01.


def test_v15_the_runway_ends_at_the_alert_and_the_store_is_full_later() -> None:
    assert runway(10_000, 6_200, 12, alert=Fraction(85, 100)) == 191
    assert runway(10_000, 6_200, 12) == 316


def test_what_does_not_grow_lasts_for_ever_and_what_is_full_has_no_runway() -> None:
    assert runway(10_000, 6_200, 0) is None
    assert runway(10_000, 6_200, Fraction(-3)) is None
    assert runway(10_000, 8_500, 12, alert=Fraction(85, 100)) == 0
    assert runway(10_000, 10_001, 0) == 0


def test_growth_is_the_median_slope() -> None:
    assert growth([]) is None
    assert growth([(1, 5)]) is None
    assert growth([(1, 10), (3, 16)]) == 3
    assert growth([(4, 40), (1, 10), (2, 20), (3, 30)]) == 10
    assert growth([(0, 0), (1, 1), (2, 4)]) == 2  # Slopes 1, 3 and 2.


def test_one_strange_day_does_not_bend_the_trend() -> None:
    chance = random.Random(SEED)
    steady = [(day, 1_000 + 12 * day) for day in range(28)]
    day = chance.randrange(28)
    steady[day] = (day, chance.choice((0, 10**9)))
    assert growth(steady) == 12, SEED


def a_lease(number: int, kind: str, size: int) -> LeaseRecord:
    return LeaseRecord(
        id=f"L{number}",
        tenant="acme",
        kind=kind,
        state="active",
        capacity=size,
        begin_us=NOW_US - DAY_US,
        end_us=after_months(NOW_US, 12),
        term_months=12,
        signed_us=number,
    )


def a_book(leases: list[LeaseRecord], events: list[CapacityEventRecord], *, nodes: int = 6) -> Book:
    supply = Supply(nodes=[Node(id=str(n), domain=str(n), disks=[TB] * 4) for n in range(nodes)], code=(4, 2))
    return Book(SalesRecord(), leases, events, supply)


def test_the_report_of_a_pool_adds_up() -> None:
    event = CapacityEventRecord(id="e", at_us=NOW_US + 9 * DAY_US, raw=24 * TB)
    leases = [a_lease(1, "guaranteed", 6 * TB), a_lease(2, "best_effort", 3 * TB)]
    holdings = Holdings(
        raw=24 * TB,
        failed=TB,
        free=15 * TB,
        used_logical=5 * TB,
        used_physical=8 * TB,
        reserved=7,
    )
    points = [(day, 5 * TB - (28 - day) * 10**10) for day in range(29)]
    found = report(a_book(leases, [event]), "", holdings, points, now_us=NOW_US)
    assert (found.raw, found.spare, found.usable) == (24 * TB, 4 * TB, 11_333_333_333_333)
    assert (found.sold_guaranteed, found.sold_best_effort) == (6 * TB, 3 * TB)
    assert found.sellable == found.usable - 6 * TB
    assert found.overhead == Fraction(8, 5)
    assert found.fill == Fraction(5 * TB, found.usable)
    assert found.growth == 10**10
    assert found.runway_days == int((found.usable * Fraction(85, 100) - 5 * TB) / 10**10)
    assert found.full_days == int((found.usable - 5 * TB) / Fraction(10**10))
    assert found.next_event == event
    assert (found.oversold, found.at_risk) == (0, ())
    assert found.order_now is False


def test_a_short_runway_says_that_disks_must_be_ordered_now() -> None:
    points = [(day, 5 * TB - (28 - day) * 10**11) for day in range(29)]
    found = report(a_book([], []), "", Holdings(used_logical=5 * TB), points, now_us=NOW_US)
    assert found.runway_days == 46
    assert found.order_now is True


def test_a_report_after_a_loss_names_the_leases_at_risk() -> None:
    leases = [a_lease(1, "guaranteed", 6 * TB), a_lease(2, "guaranteed", 5 * TB)]
    found = report(a_book(leases, [], nodes=5), "", Holdings(), [], now_us=NOW_US)
    assert found.oversold == 11 * TB - 9_066_666_666_666
    assert [lease.id for lease in found.at_risk] == ["L2"]
    assert found.sellable == 0
    assert found.growth is None


def test_the_pool_of_a_dedicated_lease_has_what_its_own_nodes_give_and_nothing_to_sell() -> None:
    lease = msgspec.structs.replace(a_lease(1, "dedicated", 8 * TB), nodes=[str(n) for n in range(6)])
    pool = pool_of_lease(lease.id)

    def reported(nodes: int, at_us: int = NOW_US) -> Capacity:
        supply = Supply(
            nodes=[Node(id=str(n), domain=str(n), disks=[TB] * 4, pool=pool) for n in range(nodes)],
            code=(4, 2),
        )
        book = Book(SalesRecord(), [lease], [], supply)
        points = [(day, TB + day * 10**9) for day in range(28)]
        return report(book, pool, Holdings(used_logical=TB), points, now_us=at_us)

    found = reported(6)
    assert (found.spare, found.usable) == (4 * TB, 11_333_333_333_333)
    assert (found.sold_guaranteed, found.sellable, found.oversold) == (8 * TB, 0, 0)
    assert found.runway_days == int((found.usable * Fraction(85, 100) - TB) / 10**9)
    assert reported(6, lease.begin_us - 1).sold_guaranteed == 0
    short = reported(4)
    assert short.oversold == 8 * TB - short.usable > 0
    assert short.at_risk == (lease,)


async def test_points_of_days_are_kept_once_a_day_and_for_three_years() -> None:
    kv = DictKv()
    for day in range(0, 1_200, 100):
        now_us = NOW_US + day * DAY_US
        for used in (day, day + 1):
            found = report(a_book([], []), "", Holdings(used_logical=used), [], now_us=now_us)
            await note_day(kv, found, now_us=now_us)
    first = NOW_US // DAY_US
    kept = await days_of(kv, "", now_us=NOW_US + 1_100 * DAY_US, days=5_000)
    assert [(day - first, point.used) for day, point in kept] == [(day, day) for day in range(0, 1_200, 100)]
    now_us = NOW_US + 1_300 * DAY_US
    await note_day(kv, report(a_book([], []), "", Holdings(), [], now_us=now_us), now_us=now_us)
    kept = await days_of(kv, "", now_us=now_us, days=5_000)
    assert kept[0][0] - first == 200
    assert await days_of(kv, "other", now_us=now_us, days=5_000) == []
