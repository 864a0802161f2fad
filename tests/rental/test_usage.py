"""Sealed usage: exactly once whatever dies, corrected exactly, one chain that cannot be altered unseen."""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import msgspec
import pytest

from objstore.errors import BadArgument, MetaUnavailable
from objstore.meta.kv import Add, DictKv, Transaction, prefix_end
from objstore.meta.schema import TitleRecord, decode, encode, title_key
from objstore.rental import usage
from objstore.rental.meters import (
    DELTA,
    HOUR_S,
    MOMENT,
    REQUESTS_B,
    SENT_INTERNET,
    STORED,
    count,
    meter_prefix,
)
from objstore.rental.records import HeldRecord, UsageRecord
from objstore.rental.usage import (
    Joined,
    Links,
    UsageOf,
    Verdict,
    accept_hour,
    chain_key,
    digest_of,
    held_key,
    retire_usage,
    retired_key,
    sealed_until,
    take_hour,
    tenants_with_usage,
    total_usage,
    usage_pages,
    usage_prefix,
    usage_row,
    verify_step,
    verify_usage,
)
from objstore.upkeep.context import Alarms
from objstore.upkeep.metering import AHEAD, AHEAD_HOURS_MAX, KEPT_HOURS, SETTLE_S, Metering
from tests.objects.fakes import FakeClock
from tests.seed import SEED

FIRST = 472_222  # An hour.
SECOND = 1_000_000


def clock_at(hour: int) -> FakeClock:
    """When this hour is the first that is not to be sealed."""
    return FakeClock((hour * HOUR_S + SETTLE_S) * SECOND)


async def make_bucket(kv: DictKv, number: int, tenant: str = "acme") -> None:
    title = TitleRecord(tenant=tenant, project="web", name=f"bucket-{number}", created_us=1)
    await kv.commit(Transaction(put={title_key(number): encode(title)}))


async def commit(kv: DictKv, at_s: int, stored: int, *, bucket: int = 1, storage_class: str = "") -> None:
    """What a verb's commit adds to the meters."""
    add: dict[bytes, Add] = {}
    count(add, bucket, storage_class, at_s, stored=stored, requests=1)
    await kv.commit(Transaction(add=add))


async def by_hour(kv: DictKv, meter: bytes, tenant: str = "acme") -> dict[int, int]:
    found: Counter[int] = Counter()
    async for page in usage_pages(kv, tenant, 0, 1 << 31, size=3):
        for key, value in page:
            row = usage_row(key, value)
            if row.meter == meter:
                found[row.hour] += row.record.quantity
    return dict(found)


def test_an_hour_is_what_was_there_and_what_changed_in_it() -> None:
    held = HeldRecord(hour=FIRST, size=10)
    taken = take_hour(FIRST, held, {DELTA: 5, MOMENT: 5 * 600, REQUESTS_B: 3}, sealed=False)
    assert taken.quantities == {STORED: 10 * 3_600 + 5 * 3_000, REQUESTS_B: 3}
    assert taken.held == HeldRecord(hour=FIRST + 1, size=15)
    assert taken.carried == 0


def test_a_stream_that_holds_nothing_more_leaves_nothing_behind() -> None:
    taken = take_hour(FIRST, HeldRecord(hour=FIRST, size=10), {DELTA: -10, MOMENT: -10 * 60}, sealed=False)
    assert taken.quantities == {STORED: 10 * 60}
    assert taken.held is None


def test_what_comes_late_counts_for_its_own_hour_and_goes_on_into_the_next() -> None:
    held = HeldRecord(hour=FIRST + 3, size=10)
    taken = take_hour(FIRST, held, {DELTA: 5, MOMENT: 5 * 600}, sealed=True)
    assert taken.quantities == {STORED: 5 * 3_000}
    assert taken.held == held
    assert taken.carried == 5


async def test_an_hour_is_sealed_when_it_has_been_over_for_ten_minutes_and_not_before() -> None:
    kv, clock = DictKv(), clock_at(FIRST + 1)
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S + 600, 100)
    clock.now -= 1
    await Metering(kv, clock).run()
    assert await by_hour(kv, STORED) == {}
    clock.now += 1
    await Metering(kv, clock).run()
    assert await by_hour(kv, STORED) == {FIRST: 100 * 3_000}
    assert await sealed_until(kv) == FIRST + 1


async def test_hours_that_nobody_sealed_are_caught_up_and_a_bucket_at_rest_costs_one_record_an_hour() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S, 100)
    await Metering(kv, clock_at(FIRST + 50)).run()
    assert await by_hour(kv, STORED) == dict.fromkeys(range(FIRST, FIRST + 50), 100 * 3_600)
    assert len(await kv.scan(b"h", prefix_end(b"h"), 1_000)) == 50 + 1, "and one for its one request"
    assert not await kv.scan(b"M", prefix_end(b"M"), 10)
    commits = CountingKv(kv)
    await Metering(commits, clock_at(FIRST + 50)).run()
    assert commits.count == 0, "nothing is due"


class CountingKv(DictKv):
    """Counts the commits to another one, and may die at one of them."""

    def __init__(self, kv: DictKv, dies_at: int = -1, *, after: bool = False) -> None:
        super().__init__()
        self._values, self._keys = kv._values, kv._keys
        self.count = 0
        self._dies_at, self._after = dies_at, after

    async def commit(self, transaction: Transaction) -> None:
        self.count += 1
        if self.count == self._dies_at and not self._after:
            raise MetaUnavailable("killed before the commit")
        await super().commit(transaction)
        if self.count == self._dies_at:
            raise MetaUnavailable("killed after it")


async def busy_history(kv: DictKv) -> None:
    """Some buckets of two tenants, several classes, late and early commits."""
    for number in range(1, 40):
        await make_bucket(kv, number, "acme" if number % 3 else "zorn")
    rng = random.Random(7)
    for _ in range(150):
        storage_class = rng.choice(["", "COLD"])
        at_s = FIRST * HOUR_S + rng.randrange(4 * HOUR_S)
        await commit(kv, at_s, rng.randrange(1_000), bucket=rng.randrange(1, 40), storage_class=storage_class)


async def everything(kv: DictKv) -> dict[bytes, bytes]:
    return dict(await kv.scan(b"A", b"z", 100_000))


async def seal_all(kv: DictKv) -> None:
    """Two passes with late commits between them."""
    await Metering(kv, clock_at(FIRST + 3)).run()


async def late_commits(kv: DictKv) -> None:
    for number in range(1, 40, 4):
        await commit(kv, (FIRST + number % 3) * HOUR_S + number, 1_000 + number, bucket=number)


@pytest.mark.parametrize("after", [False, True])
async def test_whichever_commit_the_service_dies_at_every_count_is_sealed_exactly_once(after: bool) -> None:
    whole = DictKv()
    await busy_history(whole)
    first, second = CountingKv(whole), CountingKv(whole)
    await seal_all(first)
    await late_commits(whole)
    await seal_all(second)
    assert second.count >= 3, "an hour each"
    for dies_at in range(1, first.count + 1):
        kv = DictKv()
        await busy_history(kv)
        with pytest.raises(MetaUnavailable):
            await seal_all(CountingKv(kv, dies_at=dies_at, after=after))
        await seal_all(kv)
        await late_commits(kv)
        with pytest.raises(MetaUnavailable):
            await seal_all(CountingKv(kv, dies_at=dies_at % second.count + 1, after=after))
        await seal_all(kv)
        for tenant in ("acme", "zorn"):
            for meter in (STORED, b"a"):
                assert await by_hour(kv, meter, tenant) == await by_hour(whole, meter, tenant)
            assert (await verify_usage(kv, tenant)).wrong == ()
        for prefix in (b"y", b"M", b"H"):
            found = await kv.scan(prefix, prefix_end(prefix), 10_000)
            wanted = await whole.scan(prefix, prefix_end(prefix), 10_000)
            if prefix == b"H":  # Digests name moments of sealing and their order.
                assert [key for key, _ in found] == [key for key, _ in wanted]
            else:
                assert found == wanted


async def test_a_commit_that_comes_after_the_seal_corrects_its_hour_and_all_hours_since() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S, 100)
    await Metering(kv, clock_at(FIRST + 3)).run()
    await commit(kv, (FIRST + 1) * HOUR_S + 3_000, 7)
    await Metering(kv, clock_at(FIRST + 3)).run()
    await Metering(kv, clock_at(FIRST + 4)).run()
    assert await by_hour(kv, STORED) == {
        FIRST: 100 * 3_600,
        FIRST + 1: 100 * 3_600 + 7 * 600,
        FIRST + 2: 107 * 3_600,
        FIRST + 3: 107 * 3_600,
    }
    place = usage_prefix("acme", FIRST + 1) + (1).to_bytes(8, "big") + b"\0" + STORED
    value = await kv.get(place)
    assert value is not None
    record = decode(value, UsageRecord)
    assert (record.revision, record.unsettled) == (2, 7 * 600)
    requests = decode(await kv.get(place[:-1] + b"a") or b"", UsageRecord)
    assert (requests.revision, requests.unsettled, requests.quantity) == (2, 1, 1), "the hour had none before"
    assert (await verify_usage(kv, "acme")).wrong == ()


async def test_an_order_in_the_future_waits_for_its_hour() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    await commit(kv, (FIRST + 5) * HOUR_S + 600, 100)
    await Metering(kv, clock_at(FIRST + 2)).run()
    assert await by_hour(kv, STORED) == {}
    await Metering(kv, clock_at(FIRST + 7)).run()
    assert await by_hour(kv, STORED) == {FIRST + 5: 100 * 3_000, FIRST + 6: 100 * 3_600}


async def test_a_bucket_that_was_emptied_and_deleted_is_still_sealed_for_who_had_it() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S, 100)
    await Metering(kv, clock_at(FIRST + 1)).run()
    await commit(kv, (FIRST + 1) * HOUR_S + 60, -100)
    gone = TitleRecord(tenant="acme", project="web", name="bucket-1", created_us=1, removed_us=2)
    await kv.commit(Transaction(put={title_key(1): encode(gone)}))
    await Metering(kv, clock_at(FIRST + 5)).run()
    assert await total_usage(kv, "acme", FIRST, FIRST + 5) == {
        UsageOf("web", "bucket-1", "", STORED): 100 * 3_660,
        UsageOf("web", "bucket-1", "", b"a"): 2,
    }
    assert await kv.get(held_key((1).to_bytes(8, "big") + b"\0")) is None


async def test_counters_of_a_bucket_that_nobody_knows_stay_until_somebody_does() -> None:
    kv = DictKv()
    prefix = meter_prefix(FIRST, 9, "")
    await kv.commit(Transaction(add={prefix + SENT_INTERNET: Add(5)}))
    await Metering(kv, clock_at(FIRST + 2)).run()
    assert await kv.get(prefix + SENT_INTERNET) is not None
    await make_bucket(kv, 9)
    await Metering(kv, clock_at(FIRST + 2)).run()
    assert await by_hour(kv, SENT_INTERNET) == {FIRST: 5}


@pytest.fixture
def little_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few records a step, and a page of what was removed."""
    for name, size in (("READ_KEYS", 5), ("STEP_RECORDS", 10), ("STEP_PAGES", 1), ("RUNS_MAX", 2)):
        monkeypatch.setattr(usage, name, size)


@pytest.mark.parametrize("steps", ["one step", "many"])
async def test_whoever_alters_removes_or_adds_a_record_is_found_out(
    steps: str, request: pytest.FixtureRequest
) -> None:
    if steps == "many":
        request.getfixturevalue("little_steps")
    kv = DictKv()
    await busy_history(kv)
    await seal_all(kv)
    await late_commits(kv)
    await seal_all(kv)
    before = await everything(kv)
    records = [key for key in before if key.startswith(b"hacme")]
    assert any(key[len("hacme")] == 1 for key in records), "some were corrected"
    assert (await verify_usage(kv, "acme")).records == len(records)
    for key in random.Random(SEED).sample(records, 12):
        record = decode(before[key], UsageRecord)
        cheaper = msgspec.structs.replace(record, quantity=record.quantity - 1)
        for forged in (
            Transaction(delete=[key]),
            Transaction(put={key: encode(cheaper)}),
            Transaction(put={key + b"x" * 4: before[key]}),
        ):
            other = DictKv()
            await other.commit(Transaction(put=before))
            await other.commit(forged)
            assert (await verify_usage(other, "acme")).wrong, key
    assert (await verify_usage(kv, "acme")).wrong == ()


@pytest.mark.usefixtures("little_steps")
async def test_steps_are_bounded_and_say_how_many_records_there_are() -> None:
    kv = DictKv()
    await busy_history(kv)
    await seal_all(kv)
    await late_commits(kv)
    await seal_all(kv)
    while await retire_usage(kv, "acme", FIRST + 1):
        pass
    whole = await verify_usage(kv, "acme")
    joined = Joined(step := await verify_step(kv, "acme"))
    there = []
    while step.after is not None:
        assert step.records <= 10 + 5
        step = await verify_step(kv, "acme", step.after)
        joined.add(step)
        there.append(joined.there)
    assert joined.verdict() == whole
    assert len(there) > whole.records // (10 + 5)
    assert set(there[-5:]) == {whole.records}
    for wrong in (b"x", b"h", b"h\2", b"H"):
        with pytest.raises(BadArgument):
            await verify_step(kv, "acme", wrong)


@pytest.mark.usefixtures("little_steps")
async def test_others_have_their_turns_while_records_are_verified() -> None:
    kv = DictKv()
    await busy_history(kv)
    await seal_all(kv)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    going = asyncio.ensure_future(other())
    records = (await verify_usage(kv, "acme")).records
    going.cancel()
    assert turns >= records // 5 > 1, "one behind each page"


@pytest.mark.usefixtures("little_steps")
async def test_what_is_sealed_between_two_steps_is_verified_with_the_rest() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S, 100)
    await Metering(kv, clock_at(FIRST + 30)).run()
    joined = Joined(await verify_step(kv, "acme"))
    await Metering(kv, clock_at(FIRST + 40)).run()
    while joined.after is not None:
        joined.add(await verify_step(kv, "acme", joined.after))
    assert joined.verdict() == Verdict(40 + 1, 0, ())


class Meddled(DictKv):
    """In which something is done once, right before a scan."""

    def __init__(self, scans: int, meddle: Callable[[DictKv], Awaitable[object]]) -> None:
        super().__init__()
        self.scans, self.meddle = scans, meddle

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        self.scans -= 1
        if self.scans == 0:
            await self.meddle(self)
        return await super().scan(start, end, limit, reverse=reverse)


async def correct(kv: DictKv) -> None:
    await commit(kv, FIRST * HOUR_S + 60, 7)
    await Metering(kv, clock_at(FIRST + 30)).run()


async def remove(kv: DictKv) -> None:
    """The oldest hour, onto the page that is there: the end of the chain stays as it is."""
    end = await kv.get(chain_key("acme"))
    assert await retire_usage(kv, "acme", min(await by_hour(kv, STORED)) + 1)
    assert await kv.get(chain_key("acme")) == end


@pytest.mark.usefixtures("little_steps")
@pytest.mark.parametrize(("meddle", "scans"), [(correct, 3), (remove, 1)])
async def test_what_is_corrected_or_removed_meanwhile_is_no_finding(
    meddle: Callable[[DictKv], Awaitable[object]], scans: int
) -> None:
    kv = Meddled(0, meddle)
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S, 100)
    await Metering(kv, clock_at(FIRST + 30)).run()
    assert await retire_usage(kv, "acme", FIRST + 1)
    kv.scans = scans
    joined = Joined(await verify_step(kv, "acme"))
    while joined.after is not None:
        joined.add(await verify_step(kv, "acme", joined.after))
    assert joined.verdict().wrong
    assert (await verify_step(kv, "acme")).state != joined.state
    kv.scans = scans
    assert (await verify_usage(kv, "acme")).wrong == ()


def test_a_field_that_a_later_release_adds_changes_no_digest() -> None:
    record = UsageRecord(quantity=5, bucket="b", revision=2, sealed_us=7, previous=b"p")
    plain = [1, 5, "", "b", 2, 7, b"p", b""]  # Up to the digest itself.
    wanted = hashlib.sha256(b"\0\1k" + msgspec.msgpack.encode(plain)).digest()
    assert digest_of(b"k", record) == wanted
    late = msgspec.structs.replace(record, unsettled=3)
    wanted = hashlib.sha256(b"\0\1k" + msgspec.msgpack.encode([*plain, 3])).digest()
    assert digest_of(b"k", late) == wanted


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
def test_pieces_of_a_chain_join_in_any_order_and_a_fork_is_seen(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    names = [bytes([n]) for n in range(12)]
    pieces = list(pairwise(names))
    rng.shuffle(pieces)
    links = Links()
    for piece in pieces:
        links.add(*piece)
    assert links.runs == [(names[0], names[-1])]
    assert not links.forked
    links.add(rng.choice(names[:-1]), b"forged")
    assert links.forked or len(links.runs) == 2


async def test_records_that_were_kept_long_enough_go_and_the_chain_still_holds() -> None:
    kv = DictKv()
    await busy_history(kv)
    await seal_all(kv)
    await late_commits(kv)
    await seal_all(kv)
    whole = await verify_usage(kv, "acme")
    while await retire_usage(kv, "acme", FIRST + 1):
        pass
    verdict = await verify_usage(kv, "acme")
    assert verdict.wrong == ()
    assert verdict.retired > 0
    assert verdict.records + verdict.retired == whole.records
    async for page in usage_pages(kv, "acme", 0, FIRST + 1):
        raise AssertionError(page)
    assert await kv.get(retired_key("acme", 0)) is not None
    await kv.commit(Transaction(delete=[retired_key("acme", 0)]))
    assert (await verify_usage(kv, "acme")).wrong


async def test_the_service_keeps_thirteen_months_and_removes_what_is_older() -> None:
    kv = DictKv()
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S, 100)
    await Metering(kv, clock_at(FIRST + 3)).run()
    late = FIRST + KEPT_HOURS + 2
    await commit(kv, (FIRST + 3) * HOUR_S, -100)
    clock = clock_at(FIRST + 3)
    metering = Metering(kv, clock)
    for hour in (*range(FIRST + 3, late, AHEAD_HOURS_MAX), late):
        clock.now = clock_at(hour).now
        for _ in range(2):  # A month at once.
            await metering.run()
    assert metering.retired == 3, "two hours of storage and the first request"
    assert set(await by_hour(kv, STORED)) == {FIRST + 2}
    assert (await verify_usage(kv, "acme")).wrong == ()


@pytest.mark.parametrize("sealed", [True, False])
async def test_a_clock_that_is_far_ahead_seals_nothing_and_removes_nothing_until_an_operator_believes_it(
    sealed: bool,
) -> None:
    kv, alarms = DictKv(), Alarms()
    await make_bucket(kv, 1)
    await commit(kv, FIRST * HOUR_S, 100)
    if sealed:
        await Metering(kv, clock_at(FIRST + 3)).run()
    before = await kv.scan(b"", b"\xff", 1_000)
    clock = clock_at(FIRST + 3 + 3 * KEPT_HOURS)
    metering = Metering(kv, clock, alarms=alarms)
    assert "beyond the last sealed one" in await metering.run()
    assert await kv.scan(b"", b"\xff", 1_000) == before
    assert metering.ahead_hours == 3 * KEPT_HOURS + (0 if sealed else 3)
    assert "objstore usage resume" in alarms.raised[AHEAD]

    right = clock_at(FIRST + 4)  # Set right, it goes on by itself.
    assert "hours sealed" in await Metering(kv, right, alarms=alarms).run()
    assert AHEAD not in alarms.raised
    assert await sealed_until(kv) == FIRST + 4

    await metering.run()
    assert metering.ahead_hours
    await accept_hour(kv, FIRST + 3 + 3 * KEPT_HOURS)  # It was right, and the store was off.
    while await sealed_until(kv) < FIRST + 3 + 3 * KEPT_HOURS:
        await metering.run()
    assert metering.ahead_hours == 0
    assert metering.retired > 0
    assert (await verify_usage(kv, "acme")).wrong == ()


async def test_tenants_with_usage_are_found_beside_their_pages() -> None:
    kv = DictKv()
    names = ["acme", "acme-2", "b", "zorn"]
    puts = {chain_key(name): b"x" for name in names}
    puts |= {retired_key(name, page): b"x" for name in names for page in range(3)}
    await kv.commit(Transaction(put=puts))
    assert await tenants_with_usage(kv) == names
