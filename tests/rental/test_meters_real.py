"""The same sum over LMDB, journal and directories, with restarts, other writers, compaction and sealing."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.rental.meters import HOUR_S, STORED
from objstore.rental.usage import usage_pages, usage_row, verify_usage
from objstore.upkeep.metering import SETTLE_S, Metering
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock
from tests.objects.real import RealStore
from tests.rental.test_meters import LONG, SECOND, WHO, History, random_step
from tests.seed import SEED


@pytest.mark.parametrize("seed", range(SEED, SEED + (40 if LONG else 2)))
async def test_sealed_usage_of_a_real_store_is_size_times_lifetime(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {seed}")
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", 0)
    rng, clock = random.Random(seed), FakeClock()
    real = RealStore(tmp_path, clock=clock, small_size_max=100, carried_size_max=40)
    store = await real.start()
    try:
        await create_bucket(store, WHO, "bucket", region="")
        history = History()
        for _ in range(60):
            clock.now += rng.choice([0, rng.randrange(SECOND), rng.randrange(4 * HOUR_S * SECOND)])
            if rng.random() < 0.1:
                clock.now -= rng.randrange(3 * HOUR_S * SECOND)  # Stepped back.
            await random_step(rng, clock, [store], history)
            chance = rng.random()
            if chance < 0.05:
                store = await real.restart()
            elif chance < 0.1:
                store = await real.replace_writer()
            elif chance < 0.15:
                store = await real.compact_all()
            elif chance < 0.4:
                await cut_short(
                    rng, Metering(store.kv, FakeClock(clock.now + rng.randrange(HOUR_S) * SECOND))
                )
                await audit(store)
        newest = max([clock.now, *(version.order for version in history.there.values())])
        end_hour = max([newest // SECOND // HOUR_S, *history.hours]) + 1
        for key in list(history.there):
            history.gone(key, end_hour * HOUR_S * SECOND)
        await Metering(store.kv, FakeClock((end_hour * HOUR_S + SETTLE_S) * SECOND)).run()
        stored: Counter[int] = Counter()
        async for page in usage_pages(store.kv, WHO.tenant, 0, end_hour):
            for name, value in page:
                row = usage_row(name, value)
                if row.meter == STORED:
                    stored[row.hour] += row.record.quantity
        assert +stored == +history.hours
        assert (await verify_usage(store.kv, WHO.tenant)).wrong == ()
        await audit(store)
    finally:
        await real.stop()


async def cut_short(rng: random.Random, metering: Metering) -> None:
    """A pass that its process may not live to end: cancelled at some point of waiting for its commits."""
    work = asyncio.create_task(metering.run())
    for _ in range(rng.choice([3, 30, 300, 3_000])):
        if work.done():
            break
        await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait([work], timeout=60)
    if not work.cancelled():
        work.result()
