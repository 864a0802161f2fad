"""Who is slow, held against the others. Read the names first; they are the specification."""

import random

import pytest

from objstore.node.slowness import Change, HedgeBudget, Slowness, SlownessRules
from tests.blobs.rig import StepClock

RULES = SlownessRules()
BLOCK = 64 * 1024


class Store:
    """Disks with a usual time for a read and for an append, milliseconds; half of it more by chance."""

    def __init__(self, disks: int = 6, *, spare: int = 2, seed: int = 1) -> None:
        self.reads_ms = dict.fromkeys(range(1, disks + 1), 2.0)
        self.appends_ms = dict.fromkeys(range(1, disks + 1), 5.0)
        self.clock = StepClock()
        self.slowness = Slowness(spare=spare, clock=self.clock)
        self.rng = random.Random(seed)
        self.done: dict[int, tuple[int, float]] = dict.fromkeys(self.reads_ms, (0, 0.0))

    def read(self, disk: int, count: int = 1, size: int = BLOCK) -> None:
        for _ in range(count):
            self.slowness.took(disk, size, self.reads_ms[disk] / 1000 * (1 + self.rng.random() / 2))

    def append(self, disk: int, count: int = 10) -> None:
        before, seconds = self.done[disk]
        self.done[disk] = (before + count, seconds + count * self.appends_ms[disk] / 1000)

    def judge(self, seconds: float = 2.0) -> list[Change]:
        self.clock.advance(seconds)
        return self.slowness.judge(self.done)

    def work(self, judgements: int = 10, reads: int = 20) -> list[Change]:
        found: list[Change] = []
        for _ in range(judgements):
            for disk in self.reads_ms:
                if disk not in self.slowness.ejected:
                    self.read(disk, reads)
                self.append(disk)
            found += self.judge()
        return found

    def probe(self, disk: int, times: int = RULES.probes) -> list[Change]:
        found: list[Change] = []
        for _ in range(times):
            self.clock.advance(2)
            found += self.slowness.probed(disk, BLOCK, self.reads_ms[disk] / 1000)
        return found


def test_a_disk_a_hundred_times_slower_than_its_peers_is_ejected_within_a_few_judgements() -> None:
    store = Store()
    store.work()
    store.reads_ms[3] = 200
    (change,) = store.work(RULES.strikes)
    assert change.disk == 3
    assert change.op == "read"
    assert change.slow
    assert change.words.startswith("p99 ")
    assert "its peers' " in change.words
    assert set(store.slowness.ejected) == {3}
    assert store.slowness.ejections == 1


def test_one_that_is_seldom_read_is_found_out_too() -> None:
    store = Store()
    store.work()
    store.reads_ms[3] = 200
    for _ in range(40):
        for disk in store.reads_ms:
            store.read(disk, 20 if disk != 3 else 0)
        if store.rng.random() < 0.3:
            store.read(3)
        store.judge()
    assert set(store.slowness.ejected) == {3}


def test_one_read_in_twenty_that_takes_a_second_is_enough() -> None:
    store = Store()
    store.work()
    for _ in range(20):
        store.reads_ms[3] = 1000
        store.read(3)
        store.reads_ms[3] = 2
        store.work(1, reads=19)
    assert set(store.slowness.ejected) == {3}


def test_where_all_are_slow_nobody_is() -> None:
    store = Store()
    store.work()
    for disk in store.reads_ms:
        store.reads_ms[disk] = 200
    store.work(1)
    assert store.work(30) == []


def test_microseconds_of_noise_eject_nobody_however_large_the_ratio() -> None:
    store = Store()
    for disk in store.reads_ms:
        store.reads_ms[disk] = 0.1
    store.work()
    store.reads_ms[3] = 15  # 150 times its peers', and yet nobody waits for it.
    assert store.work(30) == []


def test_where_everybody_stalls_now_and_then_one_that_is_always_late_is_found_out() -> None:
    """A gateway that is short of CPU: every disk has its p99, and nobody's is five times that."""
    store = Store()
    changes: list[Change] = []
    for round_ in range(30):
        for disk in store.reads_ms:
            for _ in range(20):
                stalls = store.rng.random() < 0.05
                late = disk == 3 and round_ >= 10
                store.slowness.took(disk, BLOCK, 0.1 if stalls or late else 0.004)
        changes += store.judge()
    assert [(change.disk, change.slow) for change in changes] == [(3, True)]
    assert changes[0].words.startswith("p50 ")


def test_one_stall_however_many_reads_it_held_up_is_not_enough() -> None:
    store = Store()
    store.work()
    store.reads_ms[3] = 500
    store.read(3, 50)
    store.reads_ms[3] = 2
    assert store.work(20) == []


def test_with_too_few_peers_nobody_is_held_against_them() -> None:
    store = Store(2)
    store.reads_ms[2] = 500
    assert store.work(20) == []


def test_what_was_given_up_counts_only_once_it_was_late() -> None:
    store = Store()
    store.work()
    for _ in range(10):
        for _ in range(50):
            store.slowness.took(3, BLOCK, 0.012, ended=False)
        assert store.judge() == []
    for _ in range(RULES.strikes):
        for _ in range(50):
            store.slowness.took(3, BLOCK, 0.4, ended=False)
        changes = store.judge()
    assert [change.disk for change in changes] == [3]


def test_large_reads_are_held_against_large_reads() -> None:
    store = Store()
    store.work()
    for _ in range(20):
        for disk in store.reads_ms:  # A whole fragment takes them all a hundred times as long as a block.
            store.slowness.took(disk, 1 << 20, 0.2)
        assert store.judge() == []
    assert store.slowness.patience(BLOCK) == RULES.patience_min_s
    assert 0.2 <= store.slowness.patience(1 << 20) < 0.4


def test_no_more_than_m_or_a_quarter_are_left_out_and_the_slowest_first() -> None:
    for disks, spare, most in ((6, 2, 2), (6, 1, 1), (20, 2, 5)):
        store = Store(disks, spare=spare)
        store.work()
        slow = range(disks // 3, 0, -1)
        for disk in slow:
            store.reads_ms[disk] = 100.0 * 2**disk
        store.work(20)
        assert store.slowness.slow_among(range(1, disks + 1)) == list(slow[:most])


def test_an_ejected_disk_is_back_after_quick_answers_in_a_row_and_its_time() -> None:
    store = Store()
    store.work()
    store.reads_ms[3] = 200
    store.work(5)
    assert store.probe(3, 20) == [], "it is as slow as before"
    store.reads_ms[3] = 2
    assert store.probe(3, RULES.probes - 1) == []
    assert store.slowness.probed(3, BLOCK, None) == [], "a failure breaks the row"
    assert store.probe(3, RULES.probes - 1) == []
    (change,) = store.probe(3, 1)
    assert (change.disk, change.op, change.slow) == (3, "read", False)
    assert store.slowness.ejected == {}
    assert store.work(20) == []


def test_what_is_read_from_an_ejected_disk_meanwhile_is_held_against_nobody() -> None:
    store = Store(4)
    store.work()
    store.reads_ms.update({3: 200, 4: 200})
    store.work(5)
    assert set(store.slowness.ejected) == {3, 4}
    for _ in range(10):
        store.read(3, 100)  # A scrub does.
        store.read(4, 100)
        store.work(1)
    assert store.slowness.limit(BLOCK) < 0.1
    store.reads_ms.update({3: 2, 4: 2})
    assert {change.disk for change in store.probe(3, 20) + store.probe(4, 20)} == {3, 4}
    assert store.work(20) == []


def test_one_that_is_slow_again_and_again_stays_out_longer_each_time_and_not_for_ever() -> None:
    store = Store()
    store.work()
    out = []
    for _ in range(8):
        store.reads_ms[3] = 200
        store.work(20)
        assert set(store.slowness.ejected) == {3}
        store.reads_ms[3] = 2
        began = store.clock.now
        while 3 in store.slowness.ejected:
            store.probe(3, 1)
        out.append(round(store.clock.now - began))
        store.work(10)
    assert out == sorted(out)
    assert out[-1] <= RULES.out_max_s + 2
    assert out[-1] > 10 * out[0]


def test_one_that_cannot_be_probed_is_tried_again_after_its_time() -> None:
    store = Store()
    store.work()
    store.reads_ms[3] = 200
    store.work(5)
    assert store.slowness.forgive(3) == []
    store.clock.advance(RULES.out_s)
    assert [change.slow for change in store.slowness.forgive(3)] == [False]


def test_one_whose_appends_take_long_rests_and_is_tried_again_and_rests_longer() -> None:
    store = Store()
    store.work()
    store.appends_ms[4] = 500
    rests = []
    for _ in range(3):
        while 4 not in store.slowness.resting:
            store.work(1)
        began = store.clock.now
        while 4 in store.slowness.resting:
            store.judge()
        rests.append(round(store.clock.now - began))
    assert rests == [30, 60, 120]
    assert store.slowness.ejected == {}, "its reads are quick"
    store.appends_ms[4] = 5
    assert store.work(20) == []


def test_appends_that_are_slow_in_good_company_or_only_by_a_ratio_rest_nobody() -> None:
    store = Store()
    for disk in store.appends_ms:
        store.appends_ms[disk] = 0.5
    store.appends_ms[4] = 40
    assert store.work(20) == []
    for disk in store.appends_ms:
        store.appends_ms[disk] = 400
    assert store.work(20) == []


def test_a_disk_that_is_gone_is_forgotten() -> None:
    store = Store()
    store.work()
    store.reads_ms[3] = 200
    store.work(5)
    del store.done[3], store.reads_ms[3]
    store.judge()
    assert store.slowness.ejected == {}


@pytest.mark.parametrize("seed", range(3))
def test_hedges_stay_within_their_share_of_reads_whatever_comes_late(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    budget = HedgeBudget(0.05, 10)
    hedges = reads = 0
    for _ in range(20_000):
        reads += 1
        budget.earn()
        if rng.random() < rng.choice((0, 0.3, 1)):
            hedges += budget.take()
    assert 0.04 * reads <= hedges <= 0.05 * reads + 10


def test_what_other_processes_do_without_counts_against_the_same_m() -> None:
    store = Store(spare=2)
    store.work()
    store.slowness.others = {5: 1, 6: 1}
    store.reads_ms[3] = 200
    assert store.work() == [], "two of six are out already"
    store.slowness.others = {3: 2, 5: 1}
    (change,) = store.work()
    assert change.disk == 3, "others do without it already"
