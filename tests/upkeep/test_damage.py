"""What is lost is named, key by key; what is merely away is not called lost."""

import asyncio
import random

import pytest

from objstore.errors import Corrupt, Overloaded
from objstore.meta.kv import Transaction
from objstore.meta.schema import BucketRecord, bucket_key, encode, volume_key
from objstore.upkeep.damage import Checks, check_volume, lost_objects, lost_volumes, note_lost
from objstore.upkeep.repair import Repair, RepairReport, repair_file
from objstore.upkeep.scrub import scrub_volume
from objstore.upkeep.walk import headers
from tests.upkeep.rig import BUCKET, Yard
from tests.waiting import until


async def filled(moods: str = "+++++++") -> Yard:
    yard = await Yard(moods).start()
    record = BucketRecord(id=BUCKET, tenant="t", owner="u", created_us=1)
    await yard.kv.commit(Transaction(put={bucket_key("books"): encode(record)}))
    rng = random.Random(9)
    for number in range(10):
        await yard.put_object(f"o{number}", rng.randbytes(5_000))
    await yard.put_object("paged", rng.randbytes(9_000_000), paged=True)
    await yard.put_multipart("multi", [rng.randbytes(400_000), rng.randbytes(3_000)])
    await yard.restart_writer()
    return yard


async def offsets(yard: Yard, volume: int) -> list[int]:
    record = await yard.ledger.get(volume)
    return [header.offset async for header in headers(yard.context(), record, record.length)]


async def break_stripe(yard: Yard, volume: int, offset: int, count: int) -> None:
    """Rot in the middle of `count` fragments of one stripe, so that no block of them is whole."""
    record = await yard.ledger.get(volume)
    ctx = yard.context()
    found = {header.offset: header async for header in headers(ctx, record, record.length)}
    for index in range(count):
        content = yard.disks[record.disks[index]].fragments[volume, index].content
        for at in range(offset + 56, found[offset].end, 512):
            content[at] ^= 0xFF


async def test_a_whole_store_has_nothing_lost() -> None:
    yard = await filled()
    ctx = yard.context()
    for record in await yard.ledger.volumes():
        found = await check_volume(ctx, record, record.length)
        assert found.stripes == len(await offsets(yard, record.id))
        assert not found.suspicious
        assert found.damaged == 0
        assert await lost_objects(ctx, {record.id: found}) == []


async def test_up_to_m_rotten_fragments_are_damage_and_one_more_is_loss() -> None:
    yard = await filled()
    first, second, third = (await offsets(yard, 1))[:3]
    await break_stripe(yard, 1, first, 1)
    await break_stripe(yard, 1, second, 2)
    await break_stripe(yard, 1, third, 3)
    record = await yard.ledger.get(1)
    found = await check_volume(yard.context(), record, record.length)
    assert (found.damaged, found.lost, found.waiting) == (2, [third], [])


async def test_what_a_disk_that_is_away_may_bring_back_is_not_called_lost_until_it_is_given_up() -> None:
    yard = await filled()
    offset = (await offsets(yard, 1))[1]
    await break_stripe(yard, 1, offset, 2)
    record = await yard.ledger.get(1)
    away = record.disks[5]
    yard.disks[away].mood = "missing"
    ctx = yard.context()
    found = await check_volume(ctx, record, record.length)
    assert (found.lost, found.waiting) == ([], [offset])
    assert all(each.waiting for each in await lost_objects(ctx, {1: found}))
    await yard.ledger.set_disk_state(away, "failed", "given up")
    found = await check_volume(ctx, record, record.length)
    assert (found.lost, found.waiting) == ([offset], [])
    assert not any(each.waiting for each in await lost_objects(ctx, {1: found}))


async def test_every_kind_of_thing_that_is_lost_is_named_with_bucket_and_key() -> None:
    yard = await filled()
    ctx = yard.context()
    unreadable: set[bytes] = set()
    checks = {}
    for record in await yard.ledger.volumes():
        for offset in await offsets(yard, record.id):
            await break_stripe(yard, record.id, offset, 3)
        checks[record.id] = await check_volume(ctx, record, record.length)
        assert not checks[record.id].cut
        assert len(checks[record.id].lost) == checks[record.id].stripes
    for home in yard.objects:
        try:
            await yard.body_of(home)
        except Exception:
            unreadable.add(home)
    found = await lost_objects(ctx, checks)
    assert {each.bucket for each in found} == {"books"}
    names = {(each.key, each.what) for each in found}
    assert ("paged", "object") in names
    assert ("multi", "part 1") in names
    assert {name for name, what in names if what == "object"} == {
        home[9:].decode() for home in unreadable if home[:1] == b"o"
    }
    assert all(each.bytes > 0 for each in found)


async def test_an_object_in_a_broken_stripe_whose_own_bytes_are_whole_is_not_lost() -> None:
    yard = await Yard().start()
    await asyncio.gather(*(yard.put_object(f"o{number}", bytes([number]) * 3_000) for number in range(60)))
    await yard.restart_writer()
    ctx = yard.context()
    record = await yard.ledger.get(1)
    found = {header.offset: header async for header in headers(ctx, record, record.length)}
    largest = max(found.values(), key=lambda header: header.fragment_size)
    assert largest.fragment_size > 20_000, "many bodies share it"
    for index in (2, 4, 5):
        content = yard.disks[record.disks[index]].fragments[1, index].content
        for at in range(largest.offset + 56, largest.end, 512):
            content[at] ^= 0xFF
    checked = await check_volume(ctx, record, record.length)
    assert checked.lost == [largest.offset]
    names = {each.key for each in await lost_objects(ctx, {1: checked})}
    unreadable = set()
    for home in yard.objects:
        try:
            await yard.body_of(home)
        except Corrupt:
            unreadable.add(home[9:].decode())
    assert names == unreadable
    assert 0 < len(names) < len(yard.objects)


async def test_what_is_readable_of_a_lost_stripe_is_not_lost_to_a_disk_that_is_busy_for_a_moment() -> None:
    yard = await filled()
    first = (await offsets(yard, 1))[0]
    await break_stripe(yard, 1, first, 6)
    record = await yard.ledger.get(1)
    disk = yard.disks[record.disks[5]]
    before = bytes(disk.fragments[1, 5].content)
    reads = 0

    def busy(name: str, volume: int, index: int) -> None:
        nonlocal reads
        if name == "read" and (volume, index) == (1, 5):
            reads += 1
            # The first was the verification; this one is to keep the blocks that are whole.
            if reads == 2:
                raise Overloaded("too many calls wait")

    disk.before = busy
    report = RepairReport()
    with pytest.raises(Overloaded):
        await repair_file(yard.context(), 1, 5, report)
    assert disk.fragments[1, 5].content == before
    disk.before = None
    assert await repair_file(yard.context(), 1, 5, report)
    assert disk.fragments[1, 5].content == before


async def test_what_a_scrub_finds_lost_is_remembered_and_an_operator_called() -> None:
    yard = await filled()
    ctx = yard.context()
    await break_stripe(yard, 1, (await offsets(yard, 1))[1], 3)
    await scrub_volume(ctx, await yard.ledger.get(1))
    assert await lost_volumes(ctx) == (1,)
    assert "objstore volume check" in ctx.alarms.raised["lost stripes"]


async def test_a_check_remembers_what_is_lost_until_nothing_of_it_is() -> None:
    yard = await filled()
    ctx = yard.context()
    for offset in await offsets(yard, 1):
        await break_stripe(yard, 1, offset, 3)
    report = RepairReport()
    assert await repair_file(ctx, 1, 0, report)
    assert report.lost_volumes == {1}
    await note_lost(ctx, add=report.lost_volumes)
    assert "objstore volume check" in ctx.alarms.raised["lost stripes"]
    checks = Checks(ctx)

    async def done() -> dict[str, object]:
        await until(lambda: checks.status()["state"] not in ("reading", "searching"))
        return checks.status()

    checks.begin(await lost_volumes(ctx))
    with pytest.raises(Overloaded):
        checks.begin([1])
    status = await done()
    assert status["state"] == "done"
    assert status["lost_count"] == len(status["lost"]) > 0  # type: ignore[arg-type]
    assert await lost_volumes(ctx) == (1,)
    for each in status["lost"]:  # type: ignore[attr-defined]
        home = b"o" + BUCKET.to_bytes(8, "big") + each["key"].encode()
        if await yard.kv.get(home) is not None:
            await yard.delete(home)
    checks.begin([1, 999])
    status = await done()
    assert status["state"] == "done"
    if status["lost_count"] == 0:
        assert await lost_volumes(ctx) == ()
        assert "lost stripes" not in ctx.alarms.raised
    await checks.close()


async def test_a_forgotten_disk_ends_in_a_store_that_is_whole_but_for_what_is_reported() -> None:
    yard = await filled("++++++++")
    ctx = yard.context()
    record = await yard.ledger.get(1)
    offset = (await offsets(yard, 1))[2]
    await break_stripe(yard, 1, offset, 2)
    away = yard.disks[record.disks[5]]
    away.mood = "missing"
    repair = Repair(ctx, grace_s=0)
    assert (await repair.run()).lost_stripes == 0
    await yard.ledger.set_disk_state(away.number, "failed", "given up")
    report = await repair.run()
    assert report.lost_volumes == {1}
    assert (await repair.run()).found == 0
    checks = {}
    for record in await yard.ledger.volumes():
        assert away.number not in record.disks
        checks[record.id] = await check_volume(ctx, record, record.length)
    lost = {(each.key, each.what) for each in await lost_objects(ctx, checks)}
    for home, body in yard.objects.items():
        if home[:1] == b"o" and (home[9:].decode(), "object") not in lost:
            assert await yard.body_of(home) == body


async def test_a_volume_whose_record_cannot_be_read_is_not_taken_for_one_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = await filled()
    await break_stripe(yard, 1, (await offsets(yard, 1))[0], 3)
    ctx = yard.context()
    await note_lost(ctx, add=[1, 999])
    checks = Checks(ctx)
    with monkeypatch.context() as patch:
        get = yard.kv.get

        async def rotten(key: bytes) -> bytes | None:
            if key == volume_key(1):
                raise Corrupt(f"metadata record {key!r} fails its checksum")
            return await get(key)

        patch.setattr(yard.kv, "get", rotten)
        checks.begin([1, 999])
        async with asyncio.timeout(60):
            while checks.status()["state"] in ("reading", "searching"):
                await asyncio.sleep(0.005)
    assert checks.status()["state"] == "failed"
    assert 1 in await lost_volumes(ctx)
    checks.begin([999])
    async with asyncio.timeout(60):
        while checks.status()["state"] in ("reading", "searching"):
            await asyncio.sleep(0.005)
    assert await lost_volumes(ctx) == (1,)  # There is no volume 999 any more.
