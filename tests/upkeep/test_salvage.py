"""Salvage: metadata from fragments alone."""

import random
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import pytest

from objstore.blobs.topology import Policy
from objstore.errors import Corrupt
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import BucketRecord, ObjectRecord, bucket_key, decode, encode, object_key
from objstore.objects.layout import LAYOUT_KEY, LayoutRecord, Plan
from objstore.objects.ledger import MetaLedger
from objstore.objects.placing import PLACEMENT
from objstore.upkeep.compaction import compact
from objstore.upkeep.context import Context
from objstore.upkeep.salvage import SalvageReport, salvage
from objstore.upkeep.snapshots import read_snapshot, store_snapshot
from tests.upkeep.rig import BUCKET, Yard

MIB = 1024 * 1024


async def filled(seed: int = 1) -> Yard:
    yard = await Yard(seed=seed).start()
    rng = random.Random(seed)
    for number in range(30):
        await yard.put_object(f"small{number}", rng.randbytes(rng.randint(1, 9_000)))
    await yard.put_object("large", rng.randbytes(9 * MIB), paged=True)
    await yard.put_object("small3", b"overwritten")
    await yard.put_object("large", rng.randbytes(5 * MIB))
    return yard


def lose_metadata(yard: Yard) -> None:
    yard.kv = DictKv()
    yard.ledger = MetaLedger(yard.kv, clock=yard.clock)
    yard.writer = yard.new_writer()
    yard.reader = yard.new_reader()


async def snapshot_bytes(yard: Yard) -> AsyncIterator[bytes]:
    for pair in await yard.kv.scan(b"", b"\xff", 1_000_000):
        encoded = msgspec.msgpack.encode(pair)
        yield len(encoded).to_bytes(4, "big") + encoded


async def take_snapshot(ctx: Context, yard: Yard) -> None:
    await store_snapshot(ctx, snapshot_bytes(yard), began_us=yard.clock.now_us())


def loader(yard: Yard):  # type: ignore[no-untyped-def]
    async def load(chunks: AsyncGenerator[bytes, None]) -> None:
        data = b"".join([chunk async for chunk in chunks])
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            key, value = msgspec.msgpack.decode(data[at + 4 : at + 4 + size], type=tuple[bytes, bytes])
            await yard.kv.commit(Transaction(put={key: value}))
            at += 4 + size

    return load


async def rescue(yard: Yard, *, with_snapshot: bool = False) -> SalvageReport:
    lose_metadata(yard)
    report = await salvage(yard.context(), loader(yard) if with_snapshot else None)
    await yard.check()
    return report


@pytest.mark.parametrize("seed", range(3))
async def test_every_acknowledged_object_comes_back_from_fragments_alone(seed: int) -> None:
    print(f"seed {seed}")
    yard = await filled(seed)
    for number in random.Random(seed).sample(list(yard.disks), seed % 3):
        yard.disks[number].mood = "missing"
    report = await rescue(yard)
    assert report.objects == 31
    for home in yard.objects:
        value = await yard.kv.get(home)
        assert value is not None
        record = decode(value, ObjectRecord)
        assert record.extra is not None
        assert record.extra.salvaged
    names = {name for name, _ in report.doubtful}
    assert names == {"1/small3", "1/large", "salvaged-1"}, "overwritten keys and the unknown bucket"
    yard.wake()
    await yard.put_object("life", b"goes on")
    await yard.check()
    assert max(await yard.states()) > 2, "new volumes get new ids"


async def test_salvage_after_compaction_finds_moved_pieces() -> None:
    yard = await filled()
    await yard.put_object("large2", random.Random(7).randbytes(9 * MIB))
    await yard.restart_writer()
    ctx = yard.context()
    for volume in await yard.states():
        await compact(ctx, volume)
    await ctx.writer.close()
    for disk in yard.disks.values():
        for volume, index in list(disk.fragments):
            if volume <= 2:
                disk.lose(volume, index)
    report = await rescue(yard)
    assert report.objects == 32


async def test_a_multipart_object_comes_back_with_its_parts() -> None:
    yard = await Yard().start()
    await yard.put_multipart("multi", [b"1" * 5 * MIB, b"2" * 5 * MIB, b"3" * 1000])
    lose_metadata(yard)
    ctx = yard.context()
    report = await salvage(ctx)
    assert (report.parts, report.all_parts) == (3, 3)
    # The rig's manifest is no part list, which is doubtful and said so.
    assert any("cannot be read" in why for _, why in report.doubtful)
    for key, body in yard.objects.items():
        assert await yard.body_of(key) == body


async def test_with_a_snapshot_only_what_came_after_it_is_salvaged() -> None:
    yard = await filled()
    deleted = object_key(BUCKET, b"small5")
    await yard.delete(deleted)
    ctx = yard.context()
    await take_snapshot(ctx, yard)
    await ctx.writer.close()
    await yard.put_object("after", b"after the snapshot")
    await yard.put_object("small7", b"changed since")
    report = await rescue(yard, with_snapshot=True)
    assert report.snapshot is not None
    assert report.objects == 2
    assert (report.all_buckets, report.all_objects) == (1, len(yard.objects))
    assert await yard.kv.get(deleted) is None, "the snapshot knew of the delete"
    assert await yard.kv.get(b"Ssnapshot") is None or (await read_snapshot(yard.context())) is not None


async def test_a_damaged_snapshot_gives_way_to_the_one_before() -> None:
    yard = await filled()
    ctx = yard.context()
    await take_snapshot(ctx, yard)
    await yard.put_object("between", b"two snapshots")
    await ctx.writer.close()
    ctx = yard.context()
    await take_snapshot(ctx, yard)
    await ctx.writer.close()
    newest = max(await yard.states())
    for disk in yard.disks.values():
        for volume, index in list(disk.fragments):
            if volume == newest and index < 3:
                disk.flip(volume, index, 64 + 56 + 8 + 10)
    report = await rescue(yard, with_snapshot=True)
    assert report.snapshot is not None
    assert report.objects == 1


async def test_a_snapshot_reads_back_and_replaces_the_one_before() -> None:
    yard = await filled()
    ctx = yard.context()
    assert await read_snapshot(ctx) is None
    await take_snapshot(ctx, yard)
    first = await read_snapshot(ctx)
    await take_snapshot(ctx, yard)
    second = await read_snapshot(ctx)
    assert first is not None
    assert second is not None
    assert second[0].began_us > first[0].began_us
    data = b"".join([chunk async for chunk in second[1]])
    assert len(data) == second[0].size


async def test_a_volume_most_of_whose_disks_are_not_known_is_named() -> None:
    yard = await filled()
    volumes = [record.id for record in await yard.ledger.volumes(0)]
    for number in (1, 2, 3):
        del yard.disks[number]
    lose_metadata(yard)
    report = await salvage(yard.context())
    assert report.objects == 0
    words = "3 of its 6 fragment files were found, it takes 4"
    assert report.unreadable == [f"volume {volume}: {words}" for volume in volumes]


async def test_pieces_of_two_versions_never_pass_for_one() -> None:
    yard = await Yard().start()
    rng = random.Random(1)
    await yard.put_object("same", rng.randbytes(9 * MIB))
    await yard.restart_writer()
    await yard.put_object("same", rng.randbytes(9 * MIB))
    await yard.restart_writer()
    record = await yard.ledger.get(2, fresh=True)
    for number, index in zip(record.disks[:3], range(3), strict=True):
        disk = yard.disks[number]
        disk.flip(2, index, 64 + 20)  # The first stripe of the newer version loses three headers,
        disk.flip(2, index, 64 + 60)  # and its first blocks.
    lose_metadata(yard)
    ctx = yard.context()
    report = await salvage(ctx)
    assert report.objects == 1
    body = await yard.body_of(object_key(BUCKET, b"same"))
    assert body == random.Random(1).randbytes(9 * MIB), "the older one, whole"
    assert any("not whole" in why for _, why in report.doubtful)


async def test_bodies_that_look_like_records_and_directories_are_only_bodies() -> None:
    yard = await filled(5)
    stolen: list[bytes] = []
    for disk in yard.disks.values():
        for file in await disk.fragment_files():
            room = bytearray(4 * MIB)
            count = await disk.read(file.volume, file.index, 0, [memoryview(room)])
            stolen.append(bytes(room[:count]))
    home = object_key(BUCKET, b"small1")
    about = await yard.kv.get(home)
    directory = msgspec.msgpack.encode([[home, 0, 100, 0, about]])
    for number, data in enumerate(stolen):
        await yard.put_object(f"file{number}", data)
        for cut in (64, 120, 128):  # From a record's header, its first block, its payload.
            await yard.put_object(f"record{number}-{cut}", data[cut : cut + 50_000])
    for number in range(1, 10):
        await yard.put_object(f"directory{number}", directory * number)
    await yard.put_object("after", b"the last one")
    report = await rescue(yard)
    assert report.unreadable == []
    assert {key for key, _ in report.doubtful if "/" in key} <= {f"{BUCKET}/small3", f"{BUCKET}/large"}


async def test_a_bucket_that_has_the_name_of_a_salvaged_one_stays_its_owners() -> None:
    yard = await filled()
    name = f"salvaged-{BUCKET}"
    theirs = encode(BucketRecord(id=BUCKET + 1, tenant="evil", owner="bob", created_us=1))
    await yard.kv.commit(Transaction(put={bucket_key(name): theirs}))
    await take_snapshot(yard.context(), yard)
    yard.clock.advance(1)
    await yard.put_object("later", b"since the snapshot")
    await rescue(yard, with_snapshot=True)
    kept = await yard.kv.get(bucket_key(name))
    assert kept is not None
    bucket = decode(kept, BucketRecord)
    assert (bucket.id, bucket.tenant, bucket.owner) == (BUCKET + 1, "evil", "bob")
    other = await yard.kv.get(bucket_key(f"{name}-1"))
    assert other is not None
    assert decode(other, BucketRecord).id == BUCKET


async def test_unsynced_and_torn_tails_are_no_objects() -> None:
    yard = await filled()
    stream = yard.writer.stream(object_key(BUCKET, b"never"))
    await stream.write(bytes(9 * MIB))
    for disk in yard.disks.values():
        disk.lose_power(yard.rng)
    report = await rescue(yard)
    assert report.objects == 31
    assert await yard.kv.get(object_key(BUCKET, b"never")) is None


async def test_salvage_never_writes_into_an_engine_that_holds_something() -> None:
    yard = await filled()
    with pytest.raises(Corrupt, match="already holds metadata"):
        await salvage(yard.context())


async def test_the_number_of_a_volume_whose_headers_are_lost_is_not_given_again() -> None:
    """Else an old file would lie where a new volume's belongs, or the trash would stop at it."""
    yard = await filled()
    await yard.restart_writer()
    await yard.put_object("last", b"x" * 100)
    last = max(record.id for record in await yard.ledger.volumes())
    for disk in yard.disks.values():
        for (volume, _), file in disk.fragments.items():
            if volume == last:
                file.content[0] ^= 1
    lose_metadata(yard)
    await salvage(yard.context())
    assert await yard.ledger.newest_volume() == last


async def test_volumes_are_under_the_policies_that_they_were_under_with_a_snapshot_or_by_what_they_hold() -> (
    None
):
    yard = await filled()
    policies = {name: Policy(name=name) for name in ("far", "other")}
    layout = LayoutRecord(version=1, current=Plan(policies=policies))
    settings = {PLACEMENT: b"far"}
    bucket = BucketRecord(id=BUCKET, tenant="t", owner="o", created_us=1, settings=settings)
    await yard.kv.commit(Transaction(put={LAYOUT_KEY: encode(layout), bucket_key("bucket"): encode(bucket)}))
    before = (await yard.writer.put(b"body", object_key(BUCKET, b"a"), b"", policy="far")).extents[0].volume
    await yard.restart_writer()
    await take_snapshot(yard.context(), yard)
    after = (await yard.writer.put(b"body", object_key(BUCKET, b"b"), b"", policy="far")).extents[0].volume
    assert after != before
    await yard.restart_writer()
    lose_metadata(yard)
    await salvage(yard.context(), loader(yard))
    records = {record.id: record.policy for record in await yard.ledger.volumes()}
    assert (records[before], records[after]) == ("far", "far")
