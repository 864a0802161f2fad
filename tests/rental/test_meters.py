"""Stored byte-seconds: what the meters say is the sum of size times lifetime, to the byte-second."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from objstore.meta.kv import Transaction, counter, prefix_end
from objstore.meta.schema import AccountRecord, ClassTerms, account_key, encode
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.copies import Source, copy_object
from objstore.objects.placing import STORAGE_CLASS
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import delete_object, put_object
from objstore.rental.meters import DELTA, EARLY, HOUR_S, MOMENT, REQUESTS_A, byte_seconds, split_meter
from tests.objects.fakes import FakeClock, MemoryBody, another_process, memory_store, principal
from tests.seed import SEED

WHO = principal()
SECOND = 1_000_000


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
    born_s: int


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
async def test_the_meters_are_the_sum_of_size_times_lifetime_whatever_the_clock_does(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    clock = FakeClock()
    first = memory_store(clock=clock, small_size_max=100, stripe_size=64)
    await create_bucket(first, WHO, "bucket", region="")
    processes = [first, another_process(first)]
    there: dict[str, tuple[Version, int]] = {}  # Key -> version, order.
    total = requests = 0
    newest_s = 0

    def gone(key: str, order: int) -> None:
        nonlocal total
        version, _ = there.pop(key)
        total += version.billed * (order // SECOND - version.born_s)

    for _ in range(60):
        clock.now += rng.choice([0, 1, rng.randrange(SECOND), rng.randrange(4 * HOUR_S * SECOND)])
        if rng.random() < 0.1:
            clock.now -= rng.randrange(3 * HOUR_S * SECOND)  # Stepped back.
        store = rng.choice(processes)
        key = rng.choice("abcdef")
        size = rng.choice([0, 1, 99, 101, 500])
        about = About(metadata={"colour": "rot"} if rng.random() < 0.3 else {})
        extra = len("colour") + len("rot") if about.metadata else 0
        kind = rng.randrange(6)
        if kind <= 2:
            written = await put_object(store, WHO, "bucket", key, about, MemoryBody(bytes(size)))
        elif kind == 3:
            if key in there:
                _, order = there[key]
                gone(key, max(clock.now, order + 1))
            await delete_object(store, WHO, "bucket", key)
            continue
        elif kind == 4:
            other = rng.choice("abcdef")
            if other not in there or other == key:
                continue
            source = Source(bucket="bucket", key=other)
            written = await copy_object(store, WHO, source, "bucket", key, about=about)
            size = there[other][0].billed - len(other)
            size -= await metadata_of(store, other)
        else:
            upload, _ = await multipart.create_upload(
                store, WHO, "bucket", key, about, checksum_algorithm="", checksum_type=""
            )
            requests += 1
            born = {}
            for number in range(1, rng.randrange(1, 4)):
                part = await multipart.put_part(
                    store, WHO, "bucket", key, upload, number, MemoryBody(bytes(size))
                )
                requests += 1
                born[number] = (part.order // SECOND, part.etag)
                clock.now += rng.randrange(HOUR_S * SECOND)
            if not born or rng.random() < 0.3:
                await multipart.abort_upload(store, WHO, "bucket", key, upload)
                total += sum(size * (clock.now // SECOND - at) for at, _ in born.values())
                newest_s = max(newest_s, clock.now // SECOND)
                continue
            claims = [multipart.Claimed(number=1, etag=born[1][1])]
            written = await multipart.complete_upload(store, WHO, "bucket", key, upload, claims)
            total += sum(size * (written.order // SECOND - at) for at, _ in born.values())
        requests += 1
        if key in there:
            gone(key, written.order)
        version = Version(size + len(key) + extra, written.order // SECOND)
        there[key] = (version, written.order)
        newest_s = max(newest_s, written.order // SECOND)

    newest_s = max(newest_s, clock.now // SECOND)
    end_hour = newest_s // HOUR_S + 2
    for key in list(there):
        gone(key, end_hour * HOUR_S * SECOND)
    assert await integral(first, end_hour) - total == 0
    assert sum(n for (_, meter), n in (await hours(first)).items() if meter == REQUESTS_A) == requests


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
