"""Five minutes by five minutes: counted by gateways, sealed once, held against what was promised."""

import random
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest

from objstore.clock import SECOND_US
from objstore.errors import BadArgument, Conflict, MetaUnavailable
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import TitleRecord, encode, title_key
from objstore.rental import availability
from objstore.rental.availability import (
    DAY_MINUTES,
    EVERYBODY,
    ServedDayRecord,
    day_key,
    measured,
    retire_service,
    seal_service,
    unserved_minutes,
)
from objstore.rental.billing import draft_month
from objstore.rental.carried import list_carried
from objstore.rental.catalogue import publish_plan, put_service_level
from objstore.rental.customers import find_customer
from objstore.rental.invoices import finalise_due
from objstore.rental.leases import make_lease, sign
from objstore.rental.months import Month
from objstore.rental.plan_changes import give_plan
from objstore.rental.service_credits import (
    assess_month,
    put_service_event,
    remove_service_event,
    settle_service,
    settled_service,
)
from objstore.rental.service_levels import (
    INTERVAL_S,
    S3_STANDARD,
    CreditTier,
    Interval,
    ServiceEventRecord,
    ServiceLevel,
)
from objstore.s3.availability import COMMITTED_AT_ONCE, Availability
from objstore.upkeep.metering import KEPT_HOURS, SETTLE_S, Metering
from tests.objects.fakes import FakeClock
from tests.rental.cards import DAY_S, GB, TB, plan, rate
from tests.rental.parties import MARCH, RULES, a_market, an_id, randomness
from tests.rental.test_billing import APRIL, MAY, bill, close, lines_of, seal, store
from tests.rental.test_leases import SURVEY, lease
from tests.seed import SEED

BEGIN = MARCH.begin_s
FIRST = BEGIN // INTERVAL_S


class Shaky(DictKv):
    """Commits that fail: before they did anything, or behind it."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.failing = 0.0
        self.unknown = 0

    async def commit(self, transaction: Transaction) -> None:
        if self.rng.random() < self.failing:
            raise MetaUnavailable("away")
        await super().commit(transaction)
        if self.rng.random() < self.failing / 4:
            self.unknown += sum(one.delta for key, one in transaction.add.items() if key[-1:] == b"r")
            raise MetaUnavailable("its answer was lost")


async def count(kv: DictKv, tenant: str, at_s: int, requests: int, failures: int = 0) -> None:
    counts = Availability()
    for number in range(requests):
        counts.note(tenant, number < failures)
    counts.turn(at_s)
    await counts.commit(kv)


async def test_every_request_is_sealed_into_its_own_five_minutes_once() -> None:
    kv = DictKv()
    await count(kv, "acme", BEGIN, 8, 1)
    await count(kv, "acme", BEGIN + 299, 2)
    await count(kv, "acme", BEGIN + 300, 5, 5)
    await count(kv, "bravo", BEGIN + 3_600, 1)
    for _ in range(2):
        await seal_service(kv, MARCH.first_hour + 1)
    assert await measured(kv, "acme", BEGIN, MARCH.end_s) == {
        FIRST: Interval(10, 1),
        FIRST + 1: Interval(5, 5),
    }
    assert await measured(kv, "bravo", BEGIN, MARCH.end_s) == {}  # Its hour is not over.
    await count(kv, "acme", BEGIN + 10, 10, 9)  # A gateway that was cut off brings it late.
    assert await seal_service(kv, MARCH.first_hour + 2) == 3
    assert (await measured(kv, "acme", BEGIN, MARCH.end_s))[FIRST] == Interval(20, 10)
    assert await measured(kv, "bravo", BEGIN, MARCH.end_s) == {FIRST + 12: Interval(1, 0)}
    assert await kv.scan(b"f", b"g", 1) == []


async def test_what_is_counted_while_it_is_sealed_is_neither_lost_nor_sealed_twice() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)

    class Racing(DictKv):
        """Another gateway counts between what is read and the commit that expects it."""

        async def commit(self, transaction: Transaction) -> None:
            if transaction.expect and rng.random() < 0.3:
                await count_one(rng.choice(["acme", "bravo"]))
                with pytest.raises(Conflict):
                    await super().commit(transaction)
                raise Conflict(b"")
            await super().commit(transaction)

    kv = Racing()
    expected: Counter[tuple[str, int]] = Counter()

    async def count_one(tenant: str) -> None:
        slot = FIRST  # The one that every sealing here reads.
        await count(kv, tenant, slot * INTERVAL_S, 1)
        expected[tenant, slot] += 1

    for _ in range(30):
        await count_one("acme")
        await count_one("bravo")
        await seal_service(kv, MARCH.first_hour + 1)
    for tenant in ("acme", "bravo"):
        found = await measured(kv, tenant, BEGIN, MARCH.end_s)
        assert {slot: one.requests for slot, one in found.items()} == {FIRST: expected[tenant, FIRST]}


async def test_many_tenants_are_sealed_in_commits_of_bounded_size() -> None:
    sizes: list[int] = []

    class Watched(DictKv):
        async def commit(self, transaction: Transaction) -> None:
            if transaction.delete:
                sizes.append(len(transaction.delete) + len(transaction.put))
            await super().commit(transaction)

    kv = Watched()
    counts = Availability()
    for slot in range(12):
        for number in range(100):
            counts.note(f"t{number}", failed=number % 2 == 0)
        counts.turn(BEGIN + slot * INTERVAL_S)
    await counts.commit(kv)
    assert await seal_service(kv, MARCH.first_hour + 1) == 12 * 150
    assert max(sizes) <= availability.COUNTERS_AT_ONCE + availability.DAYS_AT_ONCE
    assert len(await measured(kv, "t99", BEGIN, MARCH.end_s)) == 12


async def test_a_gateway_counts_on_while_metadata_takes_no_commits() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    kv = Shaky(rng)
    counts = Availability()
    told: Counter[int] = Counter()
    failed: Counter[int] = Counter()
    for step in range(300):
        at_s = BEGIN + 20 * step
        kv.failing = 1.0 if 100 <= step < 160 else 0.2
        for _ in range(rng.randrange(4)):
            failure = rng.random() < 0.3
            counts.note("acme", failure)
            told[at_s // INTERVAL_S] += 1
            failed[at_s // INTERVAL_S] += failure
        counts.turn(at_s)
        await counts.probe(kv, at_s)
        await counts.commit(kv)
    kv.failing = 0.0
    await counts.commit(kv)
    assert not counts.waits
    await seal_service(kv, MARCH.first_hour + 5)
    found = await measured(kv, "acme", BEGIN, MARCH.end_s)
    assert sum(one.requests for one in found.values()) == sum(told.values()) + kv.unknown
    for slot, requests in told.items():
        assert requests <= found[slot].requests
        assert failed[slot] <= found[slot].failures
    assert await unserved_minutes(kv, BEGIN, BEGIN + 6_000) == set()


async def test_what_has_waited_for_long_is_committed_in_commits_of_bounded_size() -> None:
    sizes: list[int] = []

    class Watched(DictKv):
        async def commit(self, transaction: Transaction) -> None:
            sizes.append(len(transaction.put) + len(transaction.add))
            await super().commit(transaction)

    kv, counts = Watched(), Availability()
    for minute in range(400):
        await counts.probe(kv, BEGIN + 60 * minute)
        for number in range(5):
            counts.note(f"t{number}", failed=True)
        counts.turn(BEGIN + 60 * minute)
    await counts.commit(kv)
    assert max(sizes) <= 3 * COMMITTED_AT_ONCE
    await seal_service(kv, MARCH.first_hour + 24)
    assert await unserved_minutes(kv, BEGIN, BEGIN + 400 * 60) == set()
    assert sum(one.failures for one in (await measured(kv, "t4", BEGIN, MARCH.end_s)).values()) == 400


async def test_what_waits_is_bounded_and_what_is_given_up_is_told() -> None:
    counts = Availability(size_max=2)
    for number in range(3):
        counts.note(f"t{number}", failed=False)
    counts.turn(BEGIN)
    assert counts.lost == 1


async def test_a_minute_in_which_metadata_could_not_be_read_is_not_served() -> None:
    class Unreadable(DictKv):
        away = False

        async def get_many(self, keys: object) -> list[bytes | None]:
            if self.away:
                raise MetaUnavailable("away")
            return await super().get_many(keys)  # type: ignore[arg-type]

    kv = Unreadable()
    counts = Availability()
    for second in range(0, 600, 20):
        kv.away = 120 <= second < 300
        await counts.probe(kv, BEGIN + second)
        await counts.commit(kv)
    kv.away = False
    await seal_service(kv, MARCH.first_hour + 1)
    minute = BEGIN // 60
    assert await unserved_minutes(kv, BEGIN, BEGIN + 600) == {minute + 2, minute + 3, minute + 4}
    # Before the first that was ever noted nothing is known.
    assert await unserved_minutes(kv, BEGIN - DAY_S, BEGIN + 60) == set()


async def test_one_gateway_that_serves_is_enough() -> None:
    kv = DictKv()
    one, other = Availability(), Availability()
    await one.probe(kv, BEGIN)
    await other.probe(kv, BEGIN + 59)
    await other.probe(kv, BEGIN + 60)
    await one.probe(kv, BEGIN + 120)
    await one.commit(kv)
    await other.commit(kv)
    await seal_service(kv, MARCH.first_hour + 1)
    assert await unserved_minutes(kv, BEGIN, BEGIN + 240) == {BEGIN // 60 + 3}


async def test_days_are_removed_after_thirteen_months_and_no_sooner() -> None:
    kv = DictKv()
    for tenant in ("acme", "bravo"):
        for day in (0, 1, 2):
            await count(kv, tenant, BEGIN + day * DAY_S, 1)
    await count(kv, "bravo", BEGIN + 3 * DAY_S, 1)
    hour = MARCH.first_hour + 48 + KEPT_HOURS
    await Metering(kv, FakeClock(((hour - 30) * 3_600 + SETTLE_S) * SECOND_US)).run()
    assert len(await measured(kv, "acme", BEGIN, MARCH.end_s)) == 3
    await Metering(kv, FakeClock((hour * 3_600 + SETTLE_S) * SECOND_US)).run()
    assert list(await measured(kv, "acme", BEGIN, MARCH.end_s)) == [FIRST + 2 * 288]
    assert len(await measured(kv, "bravo", BEGIN, MARCH.end_s)) == 2
    assert await retire_service(kv, MARCH.first_hour // 24 + 99) == 3


# A month, its outage, and what is given back. An interval of March is 1/8928.

GOLD = ServiceLevel(id="gold", tiers=(CreditTier(below=Decimal("0.9999"), credit=Decimal("0.5")),))


async def serve(kv: DictKv, month: Month, *unserved: tuple[int, int]) -> None:
    """Every minute of a month was served but these: [from, to) in minutes of the month."""
    gone = {minute for begin, end in unserved for minute in range(begin, end)}
    put = {}
    for day in range(month.hours // 24):
        bits = sum(1 << minute for minute in range(DAY_MINUTES) if day * DAY_MINUTES + minute not in gone)
        record = ServedDayRecord(minutes=bits.to_bytes(DAY_MINUTES // 8, "little"))
        put[day_key(EVERYBODY, month.first_hour // 24 + day)] = encode(record)
    await kv.commit(Transaction(put=put))


async def a_promising_store(*tenants: str) -> DictKv:
    """10 GB of each are stored from the beginning of March on, 100.00 a month; the level is s3-standard."""
    kv = await a_market(*tenants)
    await put_service_level(kv, S3_STANDARD, made_us=1)
    await put_service_level(kv, GOLD, made_us=1)
    card = plan(rate("10", storage_class="STANDARD"), currency="DZD", sla="s3-standard")
    await publish_plan(kv, card, made_us=1)
    for number, tenant in enumerate(tenants, 1):
        await give_plan(kv, tenant, "test", now_us=BEGIN * SECOND_US)
        title = TitleRecord(tenant=tenant, project="", name=f"of-{tenant}", created_us=1)
        await kv.commit(Transaction(put={title_key(number): encode(title)}))
        await store(kv, number, BEGIN, 10 * GB)
    return kv


async def nets(kv: DictKv, tenant: str, month: Month) -> list[tuple[str, int]]:
    return [(line.kind, line.net) for line in await lines_of(kv, tenant, month)]


async def test_a_month_with_an_outage_is_credited_on_the_next_invoice_once() -> None:
    kv = await a_promising_store("acme", "bravo")
    # 45 minutes of the 10th in which nothing ran, two of five minutes, and for bravo a disk that fails:
    # half of its requests in four intervals, one of them within the outage.
    down = 9 * DAY_MINUTES + 540
    await serve(kv, MARCH, (down, down + 45), (100, 102))
    for minute in (60, 65, 70, down):
        await count(kv, "bravo", BEGIN + 60 * minute, 10, 5)
    await seal(kv, MARCH)
    await close(kv, MARCH)
    assert await nets(kv, "acme", MARCH) == [("usage", 100_00)]
    assert await list_carried(kv, "acme") == []  # Final only since: the next run finds it so.
    for _ in range(2):
        assert (await bill(kv, MARCH)).problems == []
    acme = await settled_service(kv, "acme", MARCH)
    assert acme is not None
    lost = Fraction(9) + Fraction(2, 5)
    assert (Fraction(acme.uptime), acme.counted, acme.failed) == (1 - lost / 8_928, 8_928, 10)
    bravo = await settled_service(kv, "bravo", MARCH)
    assert bravo is not None
    assert Fraction(bravo.uptime) == 1 - (lost + Fraction(3, 2)) / 8_928
    assert [(one.level, one.share, one.net) for one in bravo.credits] == [("s3-standard", "0.10", 10_00)]
    await seal(kv, APRIL)
    await close(kv, APRIL)
    for tenant in ("acme", "bravo"):
        assert await nets(kv, tenant, APRIL) == [("usage", 100_00), ("credit", -10_00)]
        assert await list_carried(kv, tenant) == []
    (_, credit) = await lines_of(kv, "acme", APRIL)
    # 1 - 9.4 / 8928 = 0.998947...
    assert credit.description == "Avoir de niveau de service s3-standard 2026-03 (99,8947 %; 10 % × 100,00)"
    assert (credit.begin_us, credit.end_us) == (BEGIN * SECOND_US, MARCH.end_s * SECOND_US)
    await serve(kv, APRIL)
    await seal(kv, MAY)
    await close(kv, MAY)
    assert await nets(kv, "acme", MAY) == [("usage", 100_00)]


async def test_a_month_that_kept_its_promise_is_credited_nothing_and_says_so() -> None:
    kv = await a_promising_store("acme")
    await serve(kv, MARCH, (10, 50))  # Eight intervals: 99.9104 %.
    await seal(kv, MARCH)
    await close(kv, MARCH)
    await bill(kv, MARCH)
    held = await settled_service(kv, "acme", MARCH)
    assert held is not None
    assert [(one.share, one.net) for one in held.credits] == [("0", 0)]
    assert await list_carried(kv, "acme") == []


async def test_a_month_that_became_final_long_after_its_time_is_credited_all_the_same() -> None:
    """Its draft waited for an operator, until only months without any invoice were drafted so far back."""
    kv = await a_promising_store("acme")
    await serve(kv, MARCH, (10, 55))
    for month in (MARCH, APRIL, MAY):
        await seal(kv, month)
        await bill(kv, month)
    now_us = (MAY.end_s + 40 * DAY_S) * SECOND_US
    await finalise_due(kv, now_us=now_us)
    for _ in range(2):
        run = await draft_month(kv, MARCH, rules=RULES, now_us=now_us, randomness=randomness(), missing=True)
        assert (run.drafts, run.final, run.problems) == (0, 0, [])
    [(name, waiting)] = await list_carried(kv, "acme")
    assert (name, waiting.left) == ("sla/2026-03/001", -10_00)
    held = await settled_service(kv, "acme", MARCH)
    assert held is not None
    assert [one.net for one in held.credits] == [10_00]


async def test_a_month_before_anything_was_measured_is_held_against_nothing() -> None:
    kv = await a_promising_store("acme")
    await seal(kv, MARCH)
    await close(kv, MARCH)
    await serve(kv, APRIL, (10, 15))
    await seal(kv, APRIL)
    await close(kv, APRIL)
    await bill(kv, APRIL)
    assert await settled_service(kv, "acme", MARCH) is None
    april = await settled_service(kv, "acme", APRIL)
    assert april is not None
    assert Fraction(april.uptime) < 1


async def test_what_comes_when_a_month_was_held_against_its_level_changes_nothing() -> None:
    kv = await a_promising_store("acme")
    await serve(kv, MARCH, (10, 55))
    await seal(kv, MARCH)
    await close(kv, MARCH)
    customer = await find_customer(kv, "acme")
    first = await settle_service(kv, customer, MARCH, now_us=MARCH.end_s * SECOND_US)
    await count(kv, "acme", BEGIN + DAY_S, 1, 1)
    await seal_service(kv, APRIL.first_hour + 99)
    assert await settle_service(kv, customer, MARCH, now_us=1 + MARCH.end_s * SECOND_US) == first
    [(name, waiting)] = await list_carried(kv, "acme")
    assert (name, waiting.left, waiting.source) == ("sla/2026-03/001", -10_00, "FA-2026-000001")


async def test_a_lease_may_promise_more_than_the_plan_for_its_own_charge() -> None:
    kv = await a_promising_store("acme")
    number = lease(9, begin_us=BEGIN * SECOND_US, capacity=TB, unit_price="400", sla="gold", tenant="acme")
    await make_lease(kv, number, now_us=(BEGIN - DAY_S) * SECOND_US)
    await sign(kv, number.id, SURVEY, now_us=(BEGIN - DAY_S) * SECOND_US)
    quote = msgspec.structs.replace(number, id=an_id(10), state="quote", sla="never-signed")
    await make_lease(kv, quote, now_us=(BEGIN - DAY_S) * SECOND_US)
    await serve(kv, MARCH, (10, 15))  # One interval: 99.9887 %.
    await seal(kv, MARCH)
    await close(kv, MARCH)
    assert await nets(kv, "acme", MARCH) == [("commitment", 400_00)]  # Its 10 GB are within the lease.
    await bill(kv, MARCH)
    held = await settled_service(kv, "acme", MARCH)
    assert held is not None
    assert [(one.level, one.share, one.net) for one in held.credits] == [
        ("gold", "0.5", 200_00),
        ("s3-standard", "0", 0),
    ]


async def test_a_charge_in_advance_is_credited_by_the_month_that_it_is_for() -> None:
    kv = await a_promising_store("acme")
    number = lease(
        9,
        begin_us=BEGIN * SECOND_US,
        capacity=TB,
        unit_price="400",
        sla="gold",
        tenant="acme",
        billing="advance",
    )
    await make_lease(kv, number, now_us=(BEGIN - DAY_S) * SECOND_US)
    await sign(kv, number.id, SURVEY, now_us=(BEGIN - DAY_S) * SECOND_US)
    await serve(kv, MARCH)
    await serve(kv, APRIL, (0, 5))
    for month in (MARCH, APRIL):
        await seal(kv, month)
        await close(kv, month)
        await bill(kv, month)
    assert await nets(kv, "acme", MARCH) == [("commitment", 400_00), ("commitment", 400_00)]
    march, april = await settled_service(kv, "acme", MARCH), await settled_service(kv, "acme", APRIL)
    assert march is not None
    assert april is not None
    assert [one.net for one in march.credits] == [0, 0]
    assert [one.net for one in april.credits] == [200_00, 0]  # Of April's charge, on March's invoice.


def event(number: int, kind: str, begin_s: int, end_s: int, tenant: str = "") -> ServiceEventRecord:
    return ServiceEventRecord(
        id=an_id(number),
        kind=kind,
        begin_us=begin_s * SECOND_US,
        end_us=end_s * SECOND_US,
        reason="power",
        tenant=tenant,
    )


async def test_announced_maintenance_does_not_count_and_an_outage_that_was_told_of_does() -> None:
    kv = await a_promising_store("acme", "bravo")
    before_us = (BEGIN - DAY_S) * SECOND_US
    await put_service_event(kv, event(1, "maintenance", BEGIN + 1, BEGIN + 3_601), now_us=before_us)
    await serve(kv, MARCH, (1, 60))
    told = event(2, "outage", BEGIN + DAY_S, BEGIN + DAY_S + 2_640, tenant="bravo")  # 44 minutes.
    await put_service_event(kv, told, now_us=MARCH.end_s * SECOND_US)
    await seal(kv, MARCH)
    await close(kv, MARCH)
    await bill(kv, MARCH)
    acme, bravo = await settled_service(kv, "acme", MARCH), await settled_service(kv, "bravo", MARCH)
    assert acme is not None
    assert bravo is not None
    # The maintenance touches thirteen intervals, and one second of the last.
    assert (Fraction(acme.uptime), acme.counted) == (Fraction(1), 8_928 - 13)
    assert Fraction(bravo.uptime) == 1 - Fraction(44, 5) / (8_928 - 13)
    assert [one.net for one in bravo.credits] == [0]  # 99.9012 %.


async def test_events_are_told_in_time_and_within_bounds() -> None:
    kv = await a_promising_store("acme")
    now_us = BEGIN * SECOND_US
    for wrong, words in (
        (event(1, "maintenance", BEGIN, BEGIN + 60), "announced before"),
        (event(1, "outage", BEGIN, BEGIN + 60), "when it is over"),
        (event(1, "party", BEGIN + 1, BEGIN + 60), "a kind is one of"),
        (event(1, "maintenance", BEGIN + 1, BEGIN + 1), "a later end"),
        (event(1, "maintenance", BEGIN + 1, BEGIN + 32 * DAY_S), "a later end"),
        (event(1, "maintenance", BEGIN + 1, BEGIN + 60, tenant="nobody"), "no customer"),
    ):
        with pytest.raises(BadArgument, match=words):
            await put_service_event(kv, wrong, now_us=now_us)
    made = await put_service_event(kv, event(1, "maintenance", BEGIN + 1, BEGIN + 60), now_us=now_us)
    with pytest.raises(BadArgument, match="there is an event"):
        await put_service_event(kv, made, now_us=now_us)
    await remove_service_event(kv, made.id)
    with pytest.raises(BadArgument, match="no event"):
        await remove_service_event(kv, made.id)


async def test_a_level_that_is_not_there_is_told_of_and_keeps_no_invoice_back() -> None:
    kv = await a_promising_store("acme")
    card = plan(rate("10", storage_class="STANDARD"), currency="DZD", sla="silver")
    with pytest.raises(BadArgument, match="no service level 'silver'"):
        await publish_plan(kv, msgspec.structs.replace(card, version=2), made_us=1)
    await kv.commit(Transaction(delete=[b"YSs3-standard"]))
    await serve(kv, MARCH, (10, 55))
    await seal(kv, MARCH)
    await close(kv, MARCH)
    run = await bill(kv, MARCH)
    assert run.problems == [("acme", "there is no service level 's3-standard'")]
    assert (run.final, await settled_service(kv, "acme", MARCH)) == (1, None)


async def test_a_customer_that_came_within_the_month_is_held_against_its_own_part_of_it() -> None:
    kv = await a_promising_store("acme")
    customer = await find_customer(kv, "acme")
    late = msgspec.structs.replace(customer, billed_from_us=(BEGIN + 30 * DAY_S + 1) * SECOND_US)
    await serve(kv, MARCH, (30 * DAY_MINUTES, 30 * DAY_MINUTES + 10))
    await seal(kv, MARCH)
    [held] = await assess_month(kv, late, MARCH, [S3_STANDARD], until_s=MARCH.end_s)
    assert (held.counted, held.uptime) == (287, 1 - Fraction(1, 287))  # From 00:05 on.
    assert await assess_month(kv, late, MARCH, [S3_STANDARD], until_s=BEGIN + DAY_S) == []
