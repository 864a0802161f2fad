"""Rates: token buckets, and shares that add up to the limit over any number of processes."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objstore.meta.kv import DictKv, prefix_end
from objstore.meta.schema import Limits, decode
from objstore.rental.rates import (
    ALIVE_S,
    FLOWS_MAX,
    RECORD_SIZE_MAX,
    DemandRecord,
    Exchange,
    Rated,
    Rates,
    demand_key,
    retry_after,
    share,
)
from tests.seed import SEED

WINDOW_S = 10.0
STEP_S = 0.05


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(0, 10**12),
    st.lists(st.floats(0, 1e12, allow_nan=False), min_size=1, max_size=40),
)
def test_shares_add_up_to_the_limit_whatever_is_asked_of_whom(limit: int, demands: list[float]) -> None:
    whole = sum(demands)
    shares = [share(limit, own, whole - own, len(demands)) for own in demands]
    assert all(one >= -1e-6 * max(1, limit) for one in shares)
    assert math.isclose(sum(shares), limit, rel_tol=1e-3, abs_tol=1e-6)


def test_a_limit_is_divided_in_proportion_to_demand_and_what_is_left_over_equally() -> None:
    assert share(1_000, 10, 0, 2) == pytest.approx(10 + 10 + (1_000 - 30) / 2)
    busy, other = share(1_000, 3_000, 1_000, 2), share(1_000, 1_000, 3_000, 2)
    assert busy + other == pytest.approx(1_000)
    assert 2.9 < busy / other < 3.0


class Gateway:
    """A process: what is asked of it follows a plan of (seconds, requests a second)."""

    def __init__(self, kv: DictKv, clock: Clock, number: int, rng: random.Random) -> None:
        self.rates = Rates(clock)
        self.exchange = Exchange(kv, self.rates, number.to_bytes(16, "big"), clock)
        self.next_turn = clock.now + rng.random()
        self.owed = 0.0

    def ask(self, demand: float, limits: Limits, size: int) -> list[float]:
        """Sizes of the requests that were admitted in one step."""
        self.owed += demand * STEP_S
        admitted = []
        while self.owed >= 1:
            self.owed -= 1
            if isinstance(self.rates.admit([("t one", limits)], size), Rated):
                admitted.append(size)
        return admitted


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_over_any_ten_seconds_all_processes_together_stay_within_a_tenth_of_the_limit(
    count: int, seed: int
) -> None:
    rng = random.Random(seed)
    kv, clock = DictKv(), Clock()
    limit, byte_limit, size = 400, 2_000_000, 6_000
    limits = Limits(requests_per_s=limit, bytes_per_s=byte_limit)
    gateways = [Gateway(kv, clock, number, rng) for number in range(count)]
    for gateway in gateways:  # They know of each other, as they do a second after their start.
        await gateway.exchange.turn()
    for gateway in gateways:
        await gateway.exchange.turn()
    plans = [0.0] * count
    admitted: list[tuple[float, int]] = []
    for step in range(int(60 / STEP_S)):
        if step % 100 == 0:  # Every five seconds all is otherwise: floods here, silence there.
            plans = [rng.choice([0.0, 0.0, 5.0, 50.0, 500.0, 3_000.0]) for _ in gateways]
            size = rng.choice([10, 1_000, 6_000, 40_000])
        for gateway, demand in zip(gateways, plans, strict=True):
            admitted += [(clock.now, one) for one in gateway.ask(demand, limits, size)]
            if clock.now >= gateway.next_turn:
                gateway.next_turn += 1
                await gateway.exchange.turn()
        clock.now += STEP_S
    first = 0
    requests = total = 0
    for at, one in admitted:
        requests, total = requests + 1, total + one
        while admitted[first][0] <= at - WINDOW_S:
            requests, total = requests - 1, total - admitted[first][1]
            first += 1
        assert requests <= 1.1 * limit * WINDOW_S + count, f"seed {seed}, at {at}"
        assert total <= 1.1 * byte_limit * WINDOW_S + count * 40_000, f"seed {seed}, at {at}"
    assert admitted


async def test_whoever_asks_most_gets_most_and_a_flood_at_one_process_gets_nearly_all() -> None:
    kv, clock = DictKv(), Clock()
    gateways = [Gateway(kv, clock, number, random.Random(SEED)) for number in range(4)]
    limits = Limits(requests_per_s=200)
    counts = [0] * 4
    for _ in range(20):
        for _ in range(20):
            for number, (gateway, demand) in enumerate(zip(gateways, (900.0, 0, 0, 0), strict=True)):
                counts[number] += len(gateway.ask(demand, limits, 0))
            clock.now += STEP_S
        for gateway in gateways:
            await gateway.exchange.turn()
    assert counts[0] > 0.9 * 200 * 20
    assert counts[0] <= 1.1 * 200 * 20


def test_bytes_beyond_a_bucket_are_a_debt_that_is_paid_before_the_next_request() -> None:
    clock = Clock()
    rates = Rates(clock)
    scopes = [("t one", Limits(bytes_per_s=1_000))]
    assert isinstance(rates.admit(scopes, 3_500), Rated)  # 500 were there.
    assert rates.admit(scopes, 0) == pytest.approx(3.0)
    clock.now += 2.9
    assert isinstance(rates.admit(scopes, 0), float)
    clock.now += 0.2
    admitted = rates.admit(scopes, 0)
    assert isinstance(admitted, Rated)
    admitted.expect(1_100)  # What its answer is to have.
    assert rates.admit(scopes, 0) == pytest.approx(1.0)
    admitted.settle(600)  # Its client went away in the middle of it.
    assert rates.admit(scopes, 0) == pytest.approx(0.5)


def test_a_request_is_held_to_the_tightest_of_all_its_scopes_and_used_by_all_or_none() -> None:
    clock = Clock()
    rates = Rates(clock)
    scopes = [("t one", Limits(requests_per_s=100)), ("k two", Limits(requests_per_s=1))]
    assert isinstance(rates.admit(scopes, 0), Rated)
    wait_s = rates.admit(scopes, 0)
    assert wait_s == pytest.approx(1.0)
    for _ in range(49):
        assert isinstance(rates.admit(scopes[:1], 0), Rated), "a refused request has used nothing"
    assert isinstance(rates.admit(scopes[:1], 0), float)


def test_a_limit_of_nothing_admits_nothing_and_one_that_is_raised_admits_at_once() -> None:
    clock = Clock()
    rates = Rates(clock)
    for kind in (Limits(requests_per_s=0), Limits(bytes_per_s=0)):
        assert rates.admit([("t one", kind)], 1) == 30
        clock.now += 100
        assert rates.admit([("t one", kind)], 1) == 30
    raised = Limits(requests_per_s=10, bytes_per_s=10)
    clock.now += 0.2
    assert isinstance(rates.admit([("t one", raised)], 1), Rated)


async def test_a_process_of_which_nothing_is_asked_says_so_once_a_minute_and_the_dead_are_forgotten() -> None:
    kv, clock = DictKv(), Clock()
    one, two = (Gateway(kv, clock, number, random.Random(SEED)) for number in range(2))
    await one.exchange.turn()
    await two.exchange.turn()
    await one.exchange.turn()
    assert one.rates.processes == 2
    count = decode(await kv.get(demand_key(bytes(16))) or b"", DemandRecord).count
    for _ in range(30):
        clock.now += 1
        await one.exchange.turn()
    assert decode(await kv.get(demand_key(bytes(16))) or b"", DemandRecord).count == count
    clock.now += ALIVE_S
    await one.exchange.turn()
    assert one.rates.processes == 1
    assert [key for key, _ in await kv.scan(b"z", prefix_end(b"z"), 10)] == [demand_key(bytes(16))]
    await one.exchange.leave()
    assert not await kv.scan(b"z", prefix_end(b"z"), 10)


async def test_what_a_dead_process_had_asked_counts_no_longer_than_a_few_seconds() -> None:
    kv, clock = DictKv(), Clock()
    one, two = (Gateway(kv, clock, number, random.Random(SEED)) for number in range(2))
    limits = Limits(requests_per_s=100)
    for _ in range(5):
        one.ask(20_000, limits, 0)
        two.ask(20_000, limits, 0)
        clock.now += 1
        await one.exchange.turn()
        await two.exchange.turn()
    admitted = 0
    for _ in range(60):
        clock.now += 0.5
        admitted += len(one.ask(20_000, limits, 0))
        await one.exchange.turn()
    assert admitted > 0.85 * 100 * 30, "the limit is the survivor's nearly alone"


async def test_there_is_a_bound_on_flows_and_on_a_record_however_many_scopes_there_are() -> None:
    kv, clock = DictKv(), Clock()
    rates = Rates(clock)
    exchange = Exchange(kv, rates, bytes(16), clock)
    await Exchange(kv, Rates(clock), b"o" * 16, clock).turn()  # Someone who reads.
    for number in range(FLOWS_MAX + 50):
        rates.admit([(f"t {number}", Limits(requests_per_s=5))], 0)
    clock.now += 1
    await exchange.turn()
    value = await kv.get(demand_key(bytes(16)))
    assert value is not None
    assert 1_000 < len(value) <= RECORD_SIZE_MAX + 100
    assert len(rates._flows) <= FLOWS_MAX


def test_retry_after_is_whole_seconds_and_never_none() -> None:
    assert [retry_after(wait_s) for wait_s in (0.01, 1.0, 1.2, 30)] == [1, 1, 2, 30]
