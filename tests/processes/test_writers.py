"""Who may still write where gateways share their metadata: records, and each one's own monotonic clock."""

import pytest

from objstore.errors import MetaUnavailable
from objstore.meta.journal import last_epoch
from objstore.meta.kv import DictKv
from objstore.processes.engine import Term
from objstore.processes.writers import BEAT_S, FORGOTTEN_S, GONE_S, Writers

HERE, THERE = b"here" * 4, b"ther" * 4
US = 1_000_000


class Clock:
    def __init__(self, start_us: int) -> None:
        self.now = start_us

    def now_us(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / US


class Machine:
    """One gateway: its children, and its own clock, which has nothing to do with another's."""

    def __init__(self, kv: DictKv, run: bytes, clock_us: int) -> None:
        self.kv = kv
        self.run = run
        self.clock = Clock(clock_us)
        self.children: set[bytes] = set()

    def process(self, writer: bytes) -> Writers:
        self.children.add(writer)
        return Writers(self.kv, writer, self.run, lambda one: one in self.children, self.clock)


A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))


@pytest.fixture
async def pair() -> tuple[Machine, Machine]:
    kv = DictKv()
    return Machine(kv, HERE, 1_700_000_000 * US), Machine(kv, THERE, 5 * US)


async def test_before_the_first_look_everybody_may_write(pair: tuple[Machine, Machine]) -> None:
    here, _ = pair
    assert here.process(A).alive(B)


async def test_a_writer_of_another_machine_lives_as_long_as_its_record_changes(
    pair: tuple[Machine, Machine],
) -> None:
    here, there = pair
    mine, other = here.process(A), there.process(B)
    await other.announce()
    await mine.look()
    for _ in range(20):  # Far longer than a silence that would be death.
        here.clock.now += int(BEAT_S * 3 * US)
        await other.announce()
        await mine.look()
        assert mine.alive(B)
    here.clock.now += int(GONE_S / 2 * US)
    await mine.look()
    assert mine.alive(B)
    here.clock.now += int(GONE_S / 2 * US)
    await mine.look()
    assert not mine.alive(B)


async def test_a_clock_that_is_years_ahead_or_behind_kills_nobody(pair: tuple[Machine, Machine]) -> None:
    here, there = pair
    mine, other = here.process(A), there.process(B)
    await mine.announce()
    await other.announce()
    await mine.look()
    await other.look()
    assert mine.alive(B)
    assert other.alive(A)


async def test_a_process_that_this_machine_buried_is_dead_at_once(pair: tuple[Machine, Machine]) -> None:
    here, _ = pair
    mine, other = here.process(A), here.process(C)
    await other.announce()
    await mine.look()
    assert mine.alive(C)
    here.children.discard(C)
    assert not mine.alive(C)


async def test_who_leaves_is_dead_at_the_next_look(pair: tuple[Machine, Machine]) -> None:
    here, there = pair
    mine, other = here.process(A), there.process(B)
    await other.announce()
    await mine.look()
    await other.leave()
    assert mine.alive(B)
    await mine.look()
    assert not mine.alive(B)


async def test_records_of_the_long_dead_are_removed_and_those_of_the_living_stay(
    pair: tuple[Machine, Machine],
) -> None:
    here, there = pair
    mine, other = here.process(A), there.process(B)
    await mine.announce()
    await other.announce()
    await mine.look()
    here.clock.now += int((FORGOTTEN_S + 1) * US)
    await mine.announce()
    await mine.look()
    left = [key for key, _ in await here.kv.scan(b"C", b"D", 10)]
    assert left == [b"C" + b"writer " + A.hex().encode()]


async def test_metadata_that_is_away_leaves_what_was_known(
    pair: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    mine, other = here.process(A), there.process(B)
    await other.announce()
    await mine.look()

    async def away(*_: object, **__: object) -> None:
        raise MetaUnavailable("away")

    monkeypatch.setattr(here.kv, "scan", away)
    with pytest.raises(MetaUnavailable):
        await mine.look()
    assert mine.alive(B)


async def test_the_first_process_sets_the_term_and_the_others_take_it() -> None:
    kv = DictKv()
    first, second = Term(0), Term(7)
    assert await first.begin(kv, 2)
    assert not await second.begin(kv, 8)
    assert first.number == second.number == 2
    assert first.epoch() == last_epoch(2)
