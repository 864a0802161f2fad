"""On which disks the copies of the journal stand: on different machines, and not on slow ones."""

from pathlib import Path

from objstore.meta.committer import SLOW_COPIES, Committer
from objstore.meta.journal import spread
from tests.meta.test_recovery import Store, running
from tests.sim.memory_disk import MemoryDisk

STRIKES = SLOW_COPIES.strikes
QUICK_S, SLOW_S = 0.004, 0.9


def in_pairs(number: int) -> int:
    """Two disks a machine: 1 and 2, 3 and 4, 5 and 6."""
    return (number - 1) // 2


def members(store: Store) -> list[int]:
    assert store.now is not None
    return sorted(store.now.journal.header.members)


def wish_of(committer: Committer) -> str:
    """Why it wants to open another epoch; empty: it does not."""
    return committer._want_roll


def test_the_first_of_every_machine_comes_before_the_second_of_any() -> None:
    disks = [MemoryDisk(number) for number in (2, 1, 4, 3, 6)]
    assert [disk.number for disk in spread(disks, 3, in_pairs)] == [2, 4, 6]
    assert [disk.number for disk in spread(disks, 5, in_pairs)] == [2, 4, 6, 1, 3]
    assert [disk.number for disk in spread(disks, 3, lambda number: 0)] == [2, 1, 4]


async def test_each_copy_stands_on_another_machine(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await store.stop()
        await store.start(machine=in_pairs)
        assert {in_pairs(number) for number in members(store)} == {0, 1, 2}


async def test_all_of_the_journal_moves_so_that_a_machine_takes_one_copy_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await store.write(a=b"1")
        await store.fold()
        await store.write(b=b"2")
        assert members(store) == [1, 2, 3], "as if each disk stood alone"
        await store.stop()
        await store.start(machine=in_pairs)
        await store.write(c=b"3")
        await store.stop()
        # Two machines of three burn down, and what is left of LMDB with them.
        for disk in store.disks[:4]:
            disk.mood = "missing"
        await store.start(machine=in_pairs, trust_state=False)
        assert [store.read(key) for key in (b"a", b"b", b"c")] == [b"1", b"2", b"3"]


async def test_copies_that_stand_together_part_when_there_are_machines_enough(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        committer = store.committer()
        committer._look_at_members()
        assert wish_of(committer) == ""
        committer._journal.machine = in_pairs
        committer._look_at_members()
        assert wish_of(committer) == "copies can stand on more machines"
        await committer._roll(wish_of(committer))
        assert {in_pairs(number) for number in members(store)} == {0, 1, 2}
        committer._look_at_members()
        assert wish_of(committer) == "", "once is enough"


class Times:
    """What appends take on each disk, seconds; `work` lets the journal's members do some."""

    def __init__(self) -> None:
        self.slow: set[int] = set()
        self._done: dict[int, tuple[int, float]] = {}

    def __call__(self, number: int) -> tuple[int, float]:
        return self._done.get(number, (0, 0.0))

    def work(self, committer: Committer, judgements: int, appends: int = 4) -> None:
        """Members append some batches between any two judgements."""
        for _ in range(judgements):
            for disk in committer._journal.members:
                count, seconds = self(disk.number)
                each_s = SLOW_S if disk.number in self.slow else QUICK_S
                self._done[disk.number] = count + appends, seconds + appends * each_s
            committer._judge_copies()
            committer._look_at_members()


async def test_a_copy_that_commits_wait_for_longer_than_for_the_others_moves_to_another_disk(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as store:
        times = Times()
        committer = store.committer(copy_times=times)
        times.work(committer, 5)
        assert wish_of(committer) == ""
        times.slow = {2}
        times.work(committer, STRIKES - 1)
        assert wish_of(committer) == "", "one stall is not enough"
        times.work(committer, 1, appends=1)
        assert wish_of(committer) == "a member is slow"
        await committer._roll(wish_of(committer))
        assert members(store) == [1, 3, 4]
        times.work(committer, 5)
        assert wish_of(committer) == ""
        await store.write(a=b"1")
        await store.stop()


async def test_of_a_slow_machine_no_other_disk_is_taken_either(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await store.stop()
        await store.start(machine=lambda number: number // 2)  # 1 | 2 3 | 4 5 | 6
        times = Times()
        committer = store.committer(copy_times=times)
        times.work(committer, 2)
        assert members(store) == [1, 2, 4]
        times.slow = {2}
        times.work(committer, STRIKES)
        await committer._roll(wish_of(committer))
        assert members(store) == [1, 4, 6]


async def test_a_slow_copy_is_better_than_none_and_than_two_on_one_machine(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await store.stop()
        await store.start(machine=in_pairs)
        times = Times()
        committer = store.committer(copy_times=times)
        times.work(committer, 1)
        times.slow = {members(store)[0]}
        times.work(committer, 2 * STRIKES)
        assert committer._journal.slow == times.slow
        assert wish_of(committer) == ""
