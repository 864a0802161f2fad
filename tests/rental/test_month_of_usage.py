"""From meters to an amount: what commits counted is sealed, added up and rated, to the byte-second."""

import random
from fractions import Fraction

import pytest

from objstore.clock import SECOND_US
from objstore.meta.kv import Add, DictKv, Transaction
from objstore.meta.schema import TitleRecord, decode, encode, title_key
from objstore.rental.meters import EARLY, HOUR_S, SENT_INTERNET, STORED, count, meter_prefix
from objstore.rental.months import Month
from objstore.rental.rating import rate_month
from objstore.rental.records import UsageRecord, split_wide
from objstore.rental.tally import NAMES, Tally, Usage
from objstore.rental.usage import total_usage, usage_pages, verify_usage
from objstore.upkeep.metering import SETTLE_S, Metering
from tests.objects.fakes import FakeClock
from tests.rental.cards import DAY_S, GB, NOVEMBER, plan, rate
from tests.seed import SEED


async def make_bucket(kv: DictKv, number: int, project: str = "") -> None:
    title = TitleRecord(tenant="acme", project=project, name=f"b{number}", created_us=1)
    await kv.commit(Transaction(put={title_key(number): encode(title)}))


async def change(kv: DictKv, at_s: int, size: int, *, bucket: int = 1, storage_class: str = "") -> None:
    add: dict[bytes, Add] = {}
    count(add, bucket, storage_class, at_s, stored=size, requests=1)
    await kv.commit(Transaction(add=add))


async def sealed(kv: DictKv, month: Month) -> Usage:
    """The month's usage, as it is when the month is over and sealed."""
    clock = FakeClock((month.end_s + SETTLE_S) * SECOND_US)
    await Metering(kv, clock).run()
    tally = Tally("acme", month)
    async for page in usage_pages(kv, "acme", month.first_hour, month.first_hour + month.hours, size=100):
        tally.add(page)
    return tally.usage()


async def test_v4_a_month_of_changes_from_the_meters_to_the_invoice() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    for day, size in ((0, 5 * GB), (10, 3 * GB), (20, -3 * GB), (25, -3 * GB)):
        await change(kv, NOVEMBER.begin_s + day * DAY_S, size)
    usage = await sealed(kv, NOVEMBER)
    assert usage.total("storage") == 14_256_000_000_000_000
    for unit, months in (("GB", Fraction("5.5")), ("GiB", Fraction("5.122274"))):
        [line] = rate_month(plan(rate("0.10", unit=unit)), usage, NOVEMBER).lines
        assert round(Fraction(line.quantity), 6) == months
        assert (line.bucket, line.net) == ("b1", 55 if unit == "GB" else 51)


async def test_a_bucket_of_exabytes_is_metered_and_rated_to_the_byte_second() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    size = 3 * 10**18 + 1
    await change(kv, NOVEMBER.begin_s, size)
    early = {meter_prefix(NOVEMBER.first_hour + 1, 1, "") + EARLY: Add(10**21)}
    await kv.commit(Transaction(add=early))
    usage = await sealed(kv, NOVEMBER)
    assert usage.total("storage") == size * NOVEMBER.seconds
    assert usage.total("early_delete") == 10**21
    # Late: an exabyte less in the last hour but one, counted when all are sealed.
    late_s = NOVEMBER.end_s - 2 * HOUR_S
    await change(kv, late_s, -(10**18))
    usage = await sealed(kv, NOVEMBER)
    assert usage.total("storage") == size * NOVEMBER.seconds - 10**18 * 2 * HOUR_S
    assert sum(usage.hourly[""]) == usage.total("storage")
    wanted = await total_usage(kv, "acme", NOVEMBER.first_hour, NOVEMBER.first_hour + NOVEMBER.hours)
    assert sum(wanted.values()) == usage.total("storage") + 10**21 + usage.total("requests_a")
    assert not (await verify_usage(kv, "acme")).wrong
    [line] = rate_month(plan(rate("0.000001", unit="PB")), usage, NOVEMBER).lines
    expected = (size * NOVEMBER.seconds - 10**18 * 2 * HOUR_S + 10**21) * Fraction(
        1, 10**15 * NOVEMBER.seconds
    )
    assert Fraction(line.quantity) == expected


@pytest.mark.parametrize(
    "number", [0, 1, -1, 2**62 - 1, 2**62, -(2**62), -(2**62) - 1, 2**80 + 5, -(2**80) - 5]
)
def test_a_number_of_any_size_is_kept_in_two(number: int) -> None:
    low, high = split_wide(number)
    assert low + high * 2**62 == number
    assert (high == 0) == (-(2**62) <= number < 2**62)
    record = UsageRecord(quantity=low, high=high)
    assert decode(encode(record), UsageRecord).total == number


async def test_what_is_rated_is_what_was_sealed_bucket_by_bucket_and_meter_by_meter() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    kv = DictKv()
    held = dict.fromkeys([(1, ""), (1, "COLD"), (2, "")], 0)
    for bucket in (1, 2):
        await make_bucket(kv, bucket, project="web" if bucket == 2 else "")
    for at_s in sorted(rng.randrange(NOVEMBER.begin_s, NOVEMBER.end_s) for _ in range(60)):
        bucket, storage_class = place = rng.choice(list(held))
        size = rng.randrange(-held[place], 10**12)
        held[place] += size
        await change(kv, at_s, size, bucket=bucket, storage_class=storage_class)
        other = {
            meter_prefix(at_s // HOUR_S, bucket, storage_class) + meter: Add(rng.randrange(1, 10**9))
            for meter in (EARLY, SENT_INTERNET)
        }
        await kv.commit(Transaction(add=other))
    usage = await sealed(kv, NOVEMBER)
    wanted = await total_usage(kv, "acme", NOVEMBER.first_hour, NOVEMBER.first_hour + NOVEMBER.hours)
    assert usage.totals == {
        (of.project, of.bucket, of.storage_class, NAMES[of.meter], ""): quantity
        for of, quantity in wanted.items()
    }
    for storage_class, hours in usage.hourly.items():
        parts = (n for of, n in wanted.items() if (of.storage_class, of.meter) == (storage_class, STORED))
        assert sum(hours) == sum(parts)
