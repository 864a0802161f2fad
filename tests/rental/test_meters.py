"""Stored byte-seconds: what is sealed is the sum of size times lifetime, to the byte-second, hour by hour."""

import os
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from objstore.errors import MetaUnavailable
from objstore.iam.principal import Mirror
from objstore.meta.kv import Kv, Transaction, counter, prefix_end
from objstore.meta.schema import AccountRecord, ClassTerms, account_key, encode
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.copies import Source, copy_object
from objstore.objects.placing import STORAGE_CLASS
from objstore.objects.reads import find_object
from objstore.objects.replicas import Source as Origin
from objstore.objects.replicas import attach, open_session, promote
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import delete_object, put_object
from objstore.rental.meters import DELTA, EARLY, HOUR_S, MOMENT, REQUESTS_A, STORED, byte_seconds, split_meter
from objstore.rental.usage import sealed_until, usage_pages, usage_row, verify_usage
from objstore.upkeep.metering import SETTLE_S, Metering
from tests.objects.fakes import FakeClock, MemoryBody, another_process, memory_store, principal
from tests.seed import SEED

WHO = principal()
SECOND = 1_000_000
LONG = bool(os.environ.get("OBJSTORE_LONG"))


async def hours(store: Store) -> dict[tuple[int, bytes], int]:
    """By hour and meter, over all buckets and classes."""
    found: Counter[tuple[int, bytes]] = Counter()
    for key, value in await store.kv.scan(b"M", prefix_end(b"M"), 100_000):
        hour, _, _, meter = split_meter(key)
        found[hour, meter] += counter(value)
    return found


async def integral(store: Store, end_hour: int) -> int:
    """Byte-seconds from the beginning to this hour, as the service that seals hours has it."""
    found = await hours(store)
    total = held = 0
    for hour in range(min((one for one, _ in found), default=end_hour), end_hour):
        delta = found.get((hour, DELTA), 0)
        total += byte_seconds(held, delta, found.get((hour, MOMENT), 0))
        held += delta
    return total


@dataclass
class Version:
    billed: int
    order: int


class History:
    """What versions and parts were there, from when to when: what the meters must come to."""

    def __init__(self) -> None:
        self.there: dict[str, Version] = {}
        self.hours: Counter[int] = Counter()  # Byte-seconds by hour.
        self.requests = 0

    def lived(self, billed: int, born_s: int, end_s: int) -> None:
        assert born_s <= end_s
        for hour in range(born_s // HOUR_S, end_s // HOUR_S + 1):
            begin, end = hour * HOUR_S, (hour + 1) * HOUR_S
            self.hours[hour] += billed * max(0, min(end, end_s) - max(begin, born_s))

    def gone(self, key: str, order: int) -> None:
        version = self.there.pop(key)
        self.lived(version.billed, version.order // SECOND, order // SECOND)

    def comes(self, key: str, billed: int, order: int) -> None:
        if key in self.there:
            self.gone(key, order)
        self.there[key] = Version(billed, order)


class SkewedClock(FakeClock):
    """Of another machine: so many microseconds beside the first one's."""

    def __init__(self, base: FakeClock) -> None:
        super().__init__()
        self.base = base
        self.skew = 0

    def now_us(self) -> int:
        return self.base.now + self.skew


async def random_step(
    rng: random.Random, clock: FakeClock, gateways: Sequence[Store], history: History
) -> None:
    """One change of a random key by one of the verbs; an upload's parts come to any of the gateways."""
    store = rng.choice(gateways)
    key = rng.choice("abcdef")
    size = rng.choice([0, 1, 99, 101, 500])
    about = About(metadata={"colour": "rot"} if rng.random() < 0.3 else {})
    extra = len("colour") + len("rot") if about.metadata else 0
    kind = rng.randrange(6)
    if kind <= 2:
        written = await put_object(store, WHO, "bucket", key, about, MemoryBody(bytes(size)))
    elif kind == 3:
        if key in history.there:
            history.gone(key, max(store.clock.now_us(), history.there[key].order + 1))
        await delete_object(store, WHO, "bucket", key)
        return
    elif kind == 4:
        other = rng.choice("abcdef")
        if other not in history.there or other == key:
            return
        source = Source(bucket="bucket", key=other)
        written = await copy_object(store, WHO, source, "bucket", key, about=about)
        size = history.there[other].billed - len(other) - await metadata_of(store, other)
    else:
        upload, _ = await multipart.create_upload(
            store, WHO, "bucket", key, about, checksum_algorithm="", checksum_type=""
        )
        history.requests += 1
        born = {}
        for number in range(1, rng.randrange(1, 4)):
            part = await multipart.put_part(
                rng.choice(gateways), WHO, "bucket", key, upload, number, MemoryBody(bytes(size))
            )
            history.requests += 1
            born[number] = part
            clock.now += rng.choice([0, rng.randrange(HOUR_S * SECOND)])
        store = rng.choice(gateways)
        if not born or rng.random() < 0.3:
            ended = max([store.clock.now_us(), *(part.order for part in born.values())])
            await multipart.abort_upload(store, WHO, "bucket", key, upload)
            for part in born.values():
                history.lived(size, part.order // SECOND, ended // SECOND)
            return
        claims = [multipart.Claimed(number=1, etag=born[1].etag)]
        written = await multipart.complete_upload(store, WHO, "bucket", key, upload, claims)
        for part in born.values():
            history.lived(size, part.order // SECOND, written.order // SECOND)
    history.requests += 1
    history.comes(key, size + len(key) + extra, written.order)


@pytest.mark.parametrize("seed", range(SEED, SEED + (300 if LONG else 20)))
async def test_sealed_usage_is_size_times_lifetime_whatever_clocks_do_and_whoever_dies(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    clock, upkeep_clock = FakeClock(), FakeClock()
    first = memory_store(clock=clock, small_size_max=100, stripe_size=64)
    await create_bucket(first, WHO, "bucket", region="")
    other = SkewedClock(clock)
    gateways = [first, replace(another_process(first), clock=other)]
    history = History()
    history.requests += 1  # The bucket's making.
    dying = DyingKv(first.kv, rng)
    highest = 0
    for _ in range(60):
        clock.now += rng.choice([0, 1, rng.randrange(SECOND), rng.randrange(4 * HOUR_S * SECOND)])
        if rng.random() < 0.1:
            clock.now -= rng.randrange(3 * HOUR_S * SECOND)  # Stepped back.
        if rng.random() < 0.2:  # The other machine's clock goes before or behind.
            other.skew = rng.choice([0, -SECOND, SECOND, rng.randrange(-HOUR_S, HOUR_S) * SECOND])
        await random_step(rng, clock, gateways, history)
        highest = max(highest, clock.now, other.now_us())
        if rng.random() < 0.3:  # Its clock may be hours ahead: much comes late then.
            upkeep_clock.now = clock.now + rng.choice([0, rng.randrange(5 * HOUR_S * SECOND)])
            with suppress(MetaUnavailable):
                await Metering(dying, upkeep_clock).run()

    end_hour = highest // SECOND // HOUR_S + 2
    for key in list(history.there):
        history.gone(key, end_hour * HOUR_S * SECOND)
    upkeep_clock.now = max(upkeep_clock.now, (end_hour * HOUR_S + SETTLE_S) * SECOND)
    await Metering(first.kv, upkeep_clock).run()
    stored: Counter[int] = Counter()
    requests = 0
    async for page in usage_pages(first.kv, WHO.tenant, 0, end_hour):
        for name, value in page:
            row = usage_row(name, value)
            if row.meter == STORED:
                stored[row.hour] += row.record.quantity
            elif row.meter == REQUESTS_A:
                requests += row.record.quantity
    assert +stored == +history.hours
    assert not -stored
    assert requests == history.requests
    mark = await sealed_until(first.kv)
    assert all(hour >= mark for hour, _ in await hours(first)), "a counter was left behind"
    verdict = await verify_usage(first.kv, WHO.tenant)
    assert verdict.wrong == ()


class DyingKv(Kv):
    """Metadata of a process that may die at each of its commits: just before it, or just after."""

    def __init__(self, kv: Kv, rng: random.Random) -> None:
        self._kv, self._rng = kv, rng

    async def get(self, key: bytes) -> bytes | None:
        return await self._kv.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._kv.get_many(keys)

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return await self._kv.scan(start, end, limit, reverse=reverse)

    async def commit(self, transaction: Transaction) -> None:
        fate = self._rng.random()
        if fate < 0.1:
            raise MetaUnavailable("killed before the commit")
        await self._kv.commit(transaction)
        if fate < 0.2:
            raise MetaUnavailable("killed after it")


async def metadata_of(store: Store, key: str) -> int:
    found = await find_object(store, WHO, "bucket", key)
    extra = found.record.extra
    return 0 if extra is None else sum(len(name) + len(value) for name, value in extra.metadata.items())


async def test_a_class_bills_a_least_size_and_a_least_age_and_gives_back_what_it_took() -> None:
    clock = FakeClock()
    store = memory_store(clock=clock)
    await create_bucket(store, WHO, "bucket", region="")
    terms = ClassTerms(bytes_min=4_096, seconds_min=90 * 86_400)

    async def agree(terms: ClassTerms) -> None:
        record = AccountRecord(classes={"": terms})
        await store.kv.commit(Transaction(put={account_key("default"): encode(record)}))

    await agree(terms)
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"x"))
    begin_s = clock.now // SECOND
    assert sum(n for (_, meter), n in (await hours(store)).items() if meter == DELTA) == 4_096
    clock.now += 15 * 86_400 * SECOND
    await agree(ClassTerms(bytes_min=0, seconds_min=90 * 86_400))  # What was padded stays so.
    await delete_object(store, WHO, "bucket", "key")
    found = await hours(store)
    assert sum(n for (_, meter), n in found.items() if meter == DELTA) == 0
    assert sum(n for (_, meter), n in found.items() if meter == EARLY) == 4_096 * 75 * 86_400
    assert await integral(store, (begin_s + 16 * 86_400) // HOUR_S) == 4_096 * 15 * 86_400


async def test_a_part_bills_its_own_bytes_and_a_request_however_small_and_the_least_size_is_its_objects() -> (
    None
):
    store = memory_store(clock=FakeClock())
    await create_bucket(store, WHO, "bucket", region="")
    record = AccountRecord(classes={"": ClassTerms(bytes_min=4_096)})
    await store.kv.commit(Transaction(put={account_key("default"): encode(record)}))

    async def billed() -> tuple[int, int]:
        """Bytes that are there, and requests of class A."""
        found: Counter[bytes] = Counter()
        for (_, meter), amount in (await hours(store)).items():
            found[meter] += amount
        return found[DELTA], found[REQUESTS_A]

    before = (await billed())[1]
    upload, _ = await multipart.create_upload(
        store, WHO, "bucket", "key", About(), checksum_algorithm="", checksum_type=""
    )
    for number, body in ((1, b""), (1, b""), (2, b""), (3, b"abc")):
        written = await multipart.put_part(store, WHO, "bucket", "key", upload, number, MemoryBody(body))
    assert await billed() == (3, before + 1 + 4)
    claimed = [multipart.Claimed(number=3, etag=written.etag)]
    await multipart.complete_upload(store, WHO, "bucket", "key", upload, claimed)
    assert await billed() == (4_096, before + 1 + 4 + 1)


@pytest.mark.parametrize("said", [0, 1, 253_402_300_799 * SECOND])
async def test_what_a_replica_is_sent_counts_from_when_it_came_whatever_order_it_is_said_to_have(
    said: int,
) -> None:
    clock = FakeClock()
    store = memory_store(clock=clock)
    await create_bucket(store, WHO, "bucket", region="")
    record = AccountRecord(classes={"": ClassTerms(seconds_min=90 * 86_400)})
    await store.kv.commit(Transaction(put={account_key("default"): encode(record)}))
    replica = await attach(store, WHO, "bucket", Origin(cluster="c" * 32, bucket="there", id=1))
    session = await open_session(store, WHO, "bucket", replica.generation)
    source = replace(WHO, mirror=Mirror(generation=replica.generation, session=session, order=said))
    begin_s = clock.now // SECOND
    await put_object(store, source, "bucket", "k", About(), MemoryBody(bytes(99)))
    clock.now += 86_400 * SECOND
    await promote(store, "bucket")
    await put_object(store, WHO, "bucket", "k", About(), MemoryBody(bytes(199)))  # Behind the order said.
    clock.now -= 3_600 * SECOND
    await put_object(store, WHO, "bucket", "k", About(), MemoryBody(bytes(299)))
    clock.now += 90 * 86_400 * SECOND
    await delete_object(store, WHO, "bucket", "k")
    found = await hours(store)
    end_hour = clock.now // SECOND // HOUR_S + 1
    assert max(hour for hour, _ in found) < end_hour
    lived = 100 * 86_400 + 300 * (90 * 86_400 - 3_600)  # The second one was replaced in its second.
    assert begin_s + 91 * 86_400 - 3_600 == clock.now // SECOND
    assert await integral(store, end_hour) == lived
    early = sum(n for (_, meter), n in found.items() if meter == EARLY)
    assert early == 100 * 89 * 86_400 + 200 * 90 * 86_400 + 300 * 3_600


async def test_a_change_of_the_storage_class_moves_the_bytes_in_the_same_second() -> None:
    clock = FakeClock()
    store = memory_store(clock=clock)
    await create_bucket(store, WHO, "bucket", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(bytes(97)))
    standard = About(headers={STORAGE_CLASS: "STANDARD"})
    await put_object(store, WHO, "bucket", "key", standard, MemoryBody(bytes(7)))
    held: Counter[str] = Counter()
    for key, value in await store.kv.scan(b"M", prefix_end(b"M"), 1_000):
        _, _, storage_class, meter = split_meter(key)
        if meter == DELTA:
            held[storage_class] += counter(value)
    assert held == {"": 10}  # STANDARD has one name.
