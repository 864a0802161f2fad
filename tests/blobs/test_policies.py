"""The writer's lanes under placement policies: one open volume each, on the policy's own disks."""

import asyncio
from collections import Counter

import msgspec
import pytest

from objstore.blobs import writer as writer_module
from objstore.blobs.topology import Policy
from objstore.blobs.volumes import Stored
from objstore.errors import Overloaded, TooFewDisks, WeakerPromise
from objstore.meta.kv import Transaction
from objstore.meta.schema import MemberRecord, decode, encode, member_key
from objstore.objects.layout import LAYOUT_KEY, LayoutRecord, Plan
from tests.blobs.rig import Rig
from tests.blobs.sites import node, two_sites

HERE = Policy(name="here", sites=("a",))
LEASED = Policy(name="leased", pool="leased", k=2, m=1)


async def test_a_policy_has_lanes_of_its_own_whose_volumes_lie_on_its_sites_alone() -> None:
    rig = await two_sites([HERE])
    stored = await rig.writer.put(b"body", b"o1", b"", policy="here")
    stream = rig.writer.stream(b"o2", policy="here")
    await stream.write(bytes(3_000_000))
    large = await stream.finish(b"")
    other = await rig.writer.put(b"body", b"o3", b"")
    volumes = {extent.volume for extent in [*stored.extents, *large.extents]}
    assert volumes.isdisjoint({extent.volume for extent in other.extents})
    for volume in volumes:
        record = await rig.ledger.get(volume)
        assert record.policy == "here"
        assert set(record.disks) == {1, 2, 3, 4, 5, 6}
    again = await rig.writer.put(b"body", b"o4", b"", policy="here")
    assert again.extents[0].volume == stored.extents[0].volume


async def test_with_few_disks_at_its_site_the_code_is_narrower_and_nothing_is_written_elsewhere() -> None:
    rig = await two_sites([HERE])
    for number in (1, 2, 3):
        await rig.ledger.set_disk_state(number, "suspect", "a test")
    stored = await rig.writer.put(b"body", b"o1", b"", policy="here")
    record = await rig.ledger.get(stored.extents[0].volume)
    assert (record.k, record.m, set(record.disks)) == (1, 2, {4, 5, 6})
    await rig.ledger.set_disk_state(4, "draining", "a test")
    rig.writer.obey(await rig.ledger.layout())
    with pytest.raises(TooFewDisks, match="3 disks wanted, 2 usable"):
        await rig.writer.put(b"body", b"o2", b"", policy="here")


async def test_a_pool_takes_only_what_names_it_with_a_code_of_its_own() -> None:
    rig = await two_sites([LEASED], pool="leased")
    plain = await rig.ledger.get((await rig.writer.put(b"x", b"o1", b"")).extents[0].volume)
    leased = await rig.ledger.get((await rig.writer.put(b"x", b"o2", b"", policy="leased")).extents[0].volume)
    assert set(plain.disks) == {1, 2, 3, 4, 5, 6}
    assert set(leased.disks) <= {7, 8, 9, 10, 11, 12}
    assert (leased.k, leased.m) == (2, 1)
    assert (
        await rig.read_all((await rig.writer.put(b"whole", b"o3", b"", policy="leased")).extents) == b"whole"
    )


async def test_a_policy_without_a_record_is_that_of_a_site_and_of_no_other() -> None:
    rig = await two_sites([])
    stored = await rig.writer.put(b"x", b"o1", b"", policy="b")
    assert set((await rig.ledger.get(stored.extents[0].volume)).disks) == {7, 8, 9, 10, 11, 12}
    with pytest.raises(TooFewDisks):
        await rig.writer.put(b"x", b"o2", b"", policy="nowhere")


async def test_a_required_promise_that_cannot_be_kept_refuses_the_write() -> None:
    rig = await two_sites([Policy(name="strict", spread="site", require="bare")])
    with pytest.raises(WeakerPromise, match="3 of 6 fragments in one site"):
        await rig.writer.put(b"x", b"o1", b"", policy="strict")


async def test_open_volumes_end_when_the_layout_no_longer_admits_their_disks() -> None:
    rig = await two_sites([HERE])
    before = (await rig.writer.put(b"x", b"o1", b"", policy="here")).extents[0].volume
    rig.writer.obey(await rig.ledger.layout())
    assert (await rig.writer.put(b"x", b"o2", b"", policy="here")).extents[0].volume == before
    moved = Plan(policies={"here": Policy(name="here", sites=("b",))})
    await rig.kv.commit(Transaction(put={LAYOUT_KEY: encode(LayoutRecord(version=2, current=moved))}))
    rig.writer.obey(await rig.ledger.layout())
    after = await rig.ledger.get((await rig.writer.put(b"x", b"o3", b"", policy="here")).extents[0].volume)
    assert after.id != before
    assert set(after.disks) == {7, 8, 9, 10, 11, 12}


async def set_away(rig: Rig, numbers: range, away: bool) -> None:
    for number in numbers:
        key = member_key(node(number))
        record = decode(await rig.kv.get(key) or b"", MemberRecord)
        record = msgspec.structs.replace(record, away_us=1 if away else 0)
        await rig.kv.commit(Transaction(put={key: encode(record)}))


async def sites_of(rig: Rig, stored: Stored) -> tuple[int, Counter[str]]:
    """The volume, and how many of its fragment files lie at each site."""
    record = await rig.ledger.get(stored.extents[0].volume)
    return record.id, Counter("a" if number <= 6 else "b" for number in record.disks)


async def look_for_outdone(rig: Rig) -> None:
    rig.clock.advance(rig.limits.outdone_again_s)
    await rig.writer.leave_outdone(await rig.ledger.layout())


async def test_a_volume_made_while_a_site_was_away_ends_when_the_site_is_back() -> None:
    rig = await two_sites([], k=2)
    await set_away(rig, range(7, 13), away=True)
    meanwhile, sites = await sites_of(rig, await rig.writer.put(b"x", b"o1", b""))
    assert sites == {"a": 4}
    await look_for_outdone(rig)
    assert (await sites_of(rig, await rig.writer.put(b"x", b"o2", b"")))[0] == meanwhile, "nothing is better"

    await set_away(rig, range(7, 13), away=False)
    await look_for_outdone(rig)
    after, sites = await sites_of(rig, await rig.writer.put(b"x", b"o3", b""))
    assert after != meanwhile
    assert sites == {"a": 2, "b": 2}
    await look_for_outdone(rig)
    assert (await sites_of(rig, await rig.writer.put(b"x", b"o4", b"")))[0] == after, "it is as good as any"


@pytest.mark.parametrize("mood", ["full", "away"])
async def test_a_site_that_is_back_and_takes_no_files_ends_no_volume(mood: str) -> None:
    """Else one would be made and ended again and again: metadata does not know how full a disk is."""
    rig = await two_sites([], k=2)
    rig.writer = rig.new_writer(limits=rig.limits._replace(disk_free_min=1))
    await set_away(rig, range(7, 13), away=True)
    before, _ = await sites_of(rig, await rig.writer.put(b"x", b"o1", b""))
    await set_away(rig, range(7, 13), away=False)
    for number in range(7, 13):
        if mood == "full":
            rig.disks[number].total = 0
        else:
            rig.disks[number].mood = mood
    for _ in range(3):
        await look_for_outdone(rig)
        assert (await sites_of(rig, await rig.writer.put(b"x", b"o2", b"")))[0] == before


async def test_lanes_are_bounded_and_idle_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "POLICIES_MAX", 3)
    names = [f"p{number}" for number in range(4)]
    rig = await two_sites([Policy(name=name) for name in names])
    streams = []
    for name in names[:2]:
        stream = rig.writer.stream(b"o", policy=name)
        await stream.write(b"x")
        streams.append(stream)
    with pytest.raises(Overloaded, match="3 placement policies are written to at once"):
        await rig.writer.put(b"x", b"o", b"", policy=names[2])
    streams[0].abort()
    await rig.writer.put(b"x", b"o", b"", policy=names[2])
    assert names[0] not in rig.writer._lanes
    assert await rig.read_all((await streams[1].finish(b"about")).extents) == b"x"
    first, second = await asyncio.gather(
        rig.writer.put(b"1", b"o", b"", policy=names[2]), rig.writer.put(b"2", b"o", b"")
    )
    assert first.extents[0].volume != second.extents[0].volume
    await rig.writer.close()
    assert all(record.state != 0 for record in await rig.ledger.volumes()), "every volume is sealed"


async def test_machines_that_are_back_and_noted_as_away_are_written_to_when_too_few_others_are_left() -> None:
    rig = await two_sites([HERE], disks=8)
    await set_away(rig, range(1, 4), away=True)
    rig.moods("++@x++++")
    record = await rig.ledger.get((await rig.writer.put(b"x", b"o1", b"", policy="here")).extents[0].volume)
    assert set(record.disks) == {1, 2, 3}, "and on no other site"
    rig.moods("+xxx++++")
    await rig.ledger.set_disk_state(1, "suspect", "a test")
    with pytest.raises(TooFewDisks):
        await rig.writer.put(b"x", b"o2", b"", policy="here")


async def test_machines_that_are_noted_as_away_get_nothing_while_there_are_others() -> None:
    rig = await two_sites([HERE])
    await set_away(rig, range(1, 4), away=True)
    record = await rig.ledger.get((await rig.writer.put(b"x", b"o1", b"", policy="here")).extents[0].volume)
    assert set(record.disks) == {4, 5, 6}
    assert sum(disk.calls["look_again"] for disk in rig.disks.values()) == 0
