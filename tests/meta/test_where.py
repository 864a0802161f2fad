"""Metadata that is kept to some of the disks: batches, snapshots, and what lies elsewhere from before."""

from pathlib import Path

import pytest

from objstore.errors import TooFewDisks
from tests.meta.test_recovery import running
from tests.sim.memory_disk import MemoryDisk


async def names_on(disks: list[MemoryDisk]) -> set[str]:
    return {entry.name for disk in disks for entry in await disk.logs()}


async def test_metadata_moves_to_the_disks_that_may_hold_it_and_leaves_the_others(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await store.write(a=b"1")
        await store.fold()
        await store.write(b=b"2")
        first = store.now.journal.header.members if store.now else []
        assert set(first) <= {1, 2, 3}
        await store.stop()

        found = await store.start(allowed=lambda number: number > 3)
        assert set(found.journal.header.members) == {4, 5, 6}
        await store.write(c=b"3")
        await found.journal.clean_up()
        assert await names_on(store.disks[:3]) == set(), "nothing of metadata is left where it may not be"
        await store.stop()

        await store.start(allowed=lambda number: number > 3)
        assert [store.read(key) for key in (b"a", b"b", b"c")] == [b"1", b"2", b"3"]


async def test_with_too_few_disks_allowed_there_are_fewer_copies_and_never_one_elsewhere(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as store:
        await store.write(a=b"1")
        await store.stop()
        found = await store.start(allowed=lambda number: number == 6)
        assert found.journal.header.members == [6]
        await store.stop()
        with pytest.raises(TooFewDisks):
            await store.start(allowed=lambda number: False)


async def test_a_member_that_may_hold_nothing_any_more_is_left_by_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        found = await store.start()
        committer = store.committer()
        members = set(found.journal.header.members)
        found.journal.allowed = lambda number: number not in members
        assert not members & {disk.number for disk in found.journal.eligible()}
        committer._look_at_members()
        assert committer._want_roll == "a member may hold no metadata any more"
