"""The ledger over metadata."""

import asyncio

import pytest

from objstore.blobs.volumes import Intent, Lane, Stored, VolumeState
from objstore.errors import Conflict, Corrupt
from objstore.extents import Extent
from objstore.meta.kv import DictKv, Transaction
from objstore.objects.ledger import MetaLedger, encode_volume, publish
from tests.blobs.rig import StepClock

WRITER = b"w" * 16


def ledger() -> MetaLedger:
    return MetaLedger(DictKv(), clock=StepClock())


async def create(ledger: MetaLedger):  # type: ignore[no-untyped-def]
    return await ledger.create(k=2, m=1, disks=[1, 2, 3], lane=Lane.SMALL, writer=WRITER, policy="")


async def test_volume_ids_count_up_and_are_never_used_twice() -> None:
    one = ledger()
    records = await asyncio.gather(*(create(one) for _ in range(20)))
    assert sorted(record.id for record, _ in records) == list(range(1, 21))
    assert await one.newest_volume() == 20


async def test_a_cached_record_may_be_old_and_a_fresh_one_is_not() -> None:
    one = ledger()
    two = MetaLedger(one._kv)
    record, _ = await create(one)
    assert (await two.get(record.id)).state == VolumeState.OPEN
    await one.seal(record.id, 100)
    assert (await two.get(record.id)).state == VolumeState.OPEN
    assert (await two.get(record.id, fresh=True)).state == VolumeState.SEALED
    assert (await two.get(record.id)).length == 100


async def test_a_volume_that_metadata_does_not_know_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="no volume 7"):
        await ledger().get(7)


async def test_a_seal_is_final_and_a_second_one_changes_nothing() -> None:
    one = ledger()
    record, fence = await create(one)
    await one.seal(record.id, 640)
    assert (await one.seal(record.id, 9_999)).length == 640
    with pytest.raises(Conflict):
        await one.extend(record.id, fence, 1_000)
    assert await one.lengths([record.id]) == [(640, 0)]


async def test_a_writer_that_slept_publishes_nothing_into_a_sealed_volume() -> None:
    one = ledger()
    record, fence = await create(one)
    stored = Stored([Extent(record.id, 64, 8, 0, 8)], {record.id: fence}, [])
    expect, put, add = publish(stored)
    await one._kv.commit(Transaction(expect=expect, put=put, add=add))
    await one.seal(record.id, 640)
    with pytest.raises(Conflict):
        await one._kv.commit(Transaction(expect=expect, put=put, add=add))
    assert await one.lengths([record.id]) == [(640, 8)]


async def test_intents_are_recorded_with_the_commit_and_go_with_the_repair() -> None:
    one = ledger()
    record, fence = await create(one)
    expect, put, add = publish(Stored([], {record.id: fence}, [Intent(record.id, 2)]))
    await one._kv.commit(Transaction(expect=expect, put=put, add=add))
    assert await one.intents() == [Intent(record.id, 2)]
    with pytest.raises(Conflict):  # Its writer may still append.
        await one.repaired(record, 2, 9)
    sealed = await one.seal(record.id, 64)
    moved = await one.repaired(sealed, 2, 9)
    assert moved.disks == [1, 2, 9]
    assert await one.intents() == []
    with pytest.raises(Conflict):
        await one.repaired(sealed, 1, 8)  # Decided on an old record.


async def test_only_a_sealed_volume_is_retired_and_only_a_retired_one_forgotten() -> None:
    one = ledger()
    record, _ = await create(one)
    with pytest.raises(Conflict):
        await one.retire(record.id)
    await one.seal(record.id, 64)
    retired = await one.retire(record.id)
    assert retired.retired_us > 0
    assert await one.retire(record.id) == retired
    await one.forget(retired)
    assert await one.volumes() == []
    assert await one.newest_volume() == record.id, "the id is not used again"


async def test_suspicion_is_for_every_process_and_never_improves_a_failed_disk() -> None:
    one = ledger()
    for number in (1, 2, 3):
        await one.register_disk(number, uuid=bytes([number]) * 16, path=f"/d{number}")
    await one.suspect(2, "sync failed: EIO")
    await one.set_disk_state(3, "failed")
    await one.suspect(3, "late")
    assert await one.usable_disks() == [1]
    disks = await one.disks()
    assert (disks[2].state, disks[2].reason) == ("suspect", "sync failed: EIO")
    assert disks[3].state == "failed"
    await one.register_disk(2, uuid=bytes([2]) * 16, path="/moved")
    assert (await one.disks())[2].state == "suspect", "a restart clears nothing"
    with pytest.raises(Corrupt):
        await one.register_disk(2, uuid=b"x" * 16, path="/d2")


async def test_a_read_only_disk_is_called_so_in_every_process_and_is_not_placed_on() -> None:
    one = ledger()
    for number in (1, 2):
        await one.register_disk(number, uuid=bytes([number]) * 16, path=f"/d{number}")
    await one.suspect(2, "Read-only file system", read_only=True)
    assert (await one.disks())[2].state == "read-only"
    await one.suspect(2, "a sync failed")
    assert (await one.disks())[2].state == "read-only", "the first doubt stays until it is verified"
    assert await one.usable_disks() == [1]


async def test_a_fence_is_the_record_as_it_was_committed() -> None:
    record, fence = await create(ledger())
    assert fence == encode_volume(record)
