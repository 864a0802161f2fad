"""Compaction and salvage under the real verbs: what S3 clients did must still be what they read."""

import asyncio
import random

import pytest

from objstore.blobs.volumes import VolumeState
from objstore.errors import NoSuchKey
from objstore.meta.schema import INLINE_EXTENTS_MAX, object_key
from objstore.objects import buckets, copies, doomed, multipart, reads, writes
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.upkeep.compaction import compact
from objstore.upkeep.context import Context
from objstore.upkeep.salvage import salvage
from objstore.upkeep.sweep import LiveBytesAudit, Sweep
from tests.blobs.rig import FAST
from tests.objects.fakes import MemoryBody, principal
from tests.upkeep.rig import Yard, no_sleep
from tests.upkeep.test_salvage import lose_metadata

MIB = 1024 * 1024
WHO = principal()


def store_of(yard: Yard) -> Store:
    return Store(
        kv=yard.kv, writer=yard.writer, reader=yard.reader, ledger=yard.ledger, clock=yard.clock,
        randomness=yard.rng.randbytes,
    )  # fmt: skip


async def read(store: Store, key: str, bucket: str = "box") -> bytes:
    found = await reads.find_object(store, WHO, bucket, key)
    small = await reads.read_small(store, found)
    if small is not None:
        return bytes(small)
    return b"".join([b"".join(views) async for views in reads.read(store, found)])


async def filled(yard: Yard) -> tuple[Store, dict[str, bytes]]:
    store = store_of(yard)
    rng = random.Random(1)
    await buckets.create_bucket(store, WHO, "box", region="us-east-1")
    kept: dict[str, bytes] = {}

    async def put(key: str, size: int) -> None:
        body = rng.randbytes(size)
        about = About(content_type="text/plain", metadata={"colour": "red"})
        await writes.put_object(store, WHO, "box", key, about, MemoryBody(body))
        kept[key] = body

    for number in range(20):
        await put(f"small/{number}", rng.randint(0, 9_000))
    await put("large", 7 * MIB)
    await put("large", 6 * MIB)
    await put("many-extents", 12 * MIB)
    upload, _ = await multipart.create_upload(
        store, WHO, "box", "assembled", About(), checksum_algorithm="", checksum_type=""
    )
    whole = b""
    claims = []
    for number in (1, 2, 3):
        body = rng.randbytes(5 * MIB if number < 3 else 1_000)
        written = await multipart.put_part(store, WHO, "box", "assembled", upload, number, MemoryBody(body))
        claims.append(multipart.Claimed(number=number, etag=written.etag))
        whole += body
    await multipart.complete_upload(store, WHO, "box", "assembled", upload, claims)
    kept["assembled"] = whole
    await copies.copy_object(
        store, WHO, copies.Source(bucket="box", key="large"), "box", "copied", about=None
    )
    kept["copied"] = kept["large"]
    for number in range(0, 20, 3):
        await writes.delete_object(store, WHO, "box", f"small/{number}")
        del kept[f"small/{number}"]
    return store, kept


async def compact_all(ctx: Context, yard: Yard) -> None:
    for volume, state in (await yard.states()).items():
        if state == VolumeState.SEALED:
            outcome = await compact(ctx, volume)
            assert outcome.retired, outcome
    await ctx.writer.close()


async def yard_with(**changes: int) -> Yard:
    return await Yard(limits=FAST._replace(**changes)).start()  # type: ignore[arg-type]


async def test_every_key_reads_the_same_after_all_volumes_were_compacted_twice() -> None:
    yard = await yard_with()
    _, kept = await filled(yard)
    for _ in range(2):
        await yard.restart_writer()
        before = await yard.states()
        await compact_all(yard.context(), yard)
        for disk in yard.disks.values():  # The old volumes are really not needed any more.
            for volume, index in list(disk.fragments):
                if volume in before:
                    disk.lose(volume, index)
        store = store_of(yard)
        for key, body in kept.items():
            assert await read(store, key) == body, key
        with pytest.raises(NoSuchKey):
            await reads.find_object(store, WHO, "box", "small/0")
    ctx = yard.context()
    audit = LiveBytesAudit(ctx)
    await Sweep(ctx, [audit], sleep=no_sleep).run()
    assert audit.corrected == {}
    assert audit.dangling == []


async def test_objects_with_pages_of_extents_move_too() -> None:
    yard = await yard_with(memory=400 * 1024)  # Stripes of 256 KiB: 48 extents and more for 12 MiB.
    store, kept = await filled(yard)
    found = await reads.find_object(store, WHO, "box", "many-extents")
    assert found.record.extra is not None
    assert found.record.extra.pages
    assert len(found.record.extents) == INLINE_EXTENTS_MAX
    await yard.restart_writer()
    await compact_all(yard.context(), yard)
    for key, body in kept.items():
        assert await read(store_of(yard), key) == body, key


async def test_deletes_and_overwrites_during_compaction_stay_deleted_and_overwritten() -> None:
    yard = await yard_with()
    _, kept = await filled(yard)
    await yard.restart_writer()
    store = store_of(yard)
    rng = random.Random(9)

    async def clients() -> None:
        for key in list(kept):
            await asyncio.sleep(0)
            match rng.choice(["delete", "put", "leave"]):
                case "delete":
                    await writes.delete_object(store, WHO, "box", key)
                    del kept[key]
                case "put":
                    kept[key] = rng.randbytes(rng.choice([10, 5_000, 300_000]))
                    await writes.put_object(store, WHO, "box", key, About(), MemoryBody(kept[key]))

    ctx = yard.context()
    volumes = await yard.states()
    await asyncio.gather(clients(), *(compact(ctx, volume) for volume in volumes))
    yard.clock.advance(7_200)
    await doomed.sweep(store)
    for key, body in kept.items():
        assert await read(store, key) == body, key
    for volume in volumes:
        assert (await yard.ledger.lengths([volume]))[0][1] == 0, "all that lived has moved"
    found = {key[9:].decode() for key, _ in await yard.kv.scan(b"o", b"p", 1_000)}
    assert found == set(kept)


async def test_a_reader_that_began_before_the_move_finishes() -> None:
    yard = await yard_with()
    store, kept = await filled(yard)
    found = await reads.find_object(store, WHO, "box", "large")
    stream = reads.read(store, found)
    got = b"".join(await anext(stream))
    await yard.restart_writer()
    await compact_all(yard.context(), yard)
    async for views in stream:
        got += b"".join(views)
    assert got == kept["large"], "a retired volume stays readable"


async def test_every_key_comes_back_from_fragments_alone() -> None:
    yard = await yard_with()
    _, kept = await filled(yard)
    lose_metadata(yard)
    report = await salvage(yard.context())
    store = store_of(yard)
    from objstore.meta.kv import Transaction
    from objstore.meta.schema import BucketRecord, bucket_key, encode

    box = BucketRecord(id=1, tenant=WHO.tenant, owner=WHO.user, created_us=1)  # As an operator would name it.
    await yard.kv.commit(Transaction(put={bucket_key("box"): encode(box)}))
    for key, body in kept.items():
        if body:  # Empty bodies are in no stripe.
            assert await read(store, key) == body, key
    found = await reads.find_object(store, WHO, "box", "small/1")
    assert found.record.extra is not None
    assert found.record.extra.metadata == {"colour": "red"}
    assert await yard.kv.get(object_key(1, b"small/3")) is not None, "deletes are not known,"
    assert report.objects >= len(kept)
    assert any("several versions" in why for _, why in report.doubtful), "overwrites are doubtful"
