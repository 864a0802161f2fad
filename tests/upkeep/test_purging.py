"""A tenant's end: nothing of it lies on any disk any more, its neighbours have lost nothing, and the proof
waits for whatever it cannot say."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from objstore.audit.log import Wanted, newest
from objstore.blobs.volumes import VolumeState
from objstore.errors import BucketReplicates
from objstore.iam.keys import list_keys
from objstore.iam.tokens import create_token, list_tokens
from objstore.iam.users import create_user, find_user
from objstore.meta.kv import Transaction, prefix_end
from objstore.meta.schema import (
    AccessKeyRecord,
    BucketRecord,
    DiskRecord,
    TitleRecord,
    access_key_key,
    bucket_key,
    decode,
    disk_key,
    encode,
    title_key,
)
from objstore.objects import buckets, doomed, multipart, writes
from objstore.objects.store import Store
from objstore.objects.values import About, Principal
from objstore.rental.customers import account_state, set_state
from objstore.rental.departures import begin_purge, find_purge
from objstore.rental.records import PurgeRecord
from objstore.rental.sellers import create_seller
from objstore.upkeep import purging
from objstore.upkeep.purging import PurgeRules, Purging, Turns, is_from_before
from objstore.upkeep.salvage import salvage
from objstore.upkeep.snapshots import store_snapshot
from objstore.upkeep.trash import DAY_S, TrashRules, clear
from tests.objects.fakes import FakeClock, MemoryBody, principal
from tests.rental.parties import SELLER, a_customer
from tests.seed import SEED
from tests.upkeep.rig import Yard
from tests.upkeep.test_salvage import loader, lose_metadata, snapshot_bytes
from tests.upkeep.test_with_verbs import read, store_of

MIB = 1024 * 1024
LEAVING, STAYING = principal("leaving", "lea"), principal("staying", "sam")
MARK = b"what the leaving tenant has stored, again and again. "  # Data fragments hold it as it is.
TRASH = TrashRules(grace_s=7 * DAY_S)


class End:
    """A store with two tenants whose bytes lie side by side, and the services that a purge waits for."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.ctx = yard.context()
        self.store = store_of(yard)
        self.files = asyncio.Lock()
        self.kept: dict[str, bytes] = {}
        self.purging = self.new_process()

    def new_process(
        self, crash_point: Callable[[str], None] = lambda name: None, at_once: int = 4
    ) -> Purging:
        self.ctx = replace(self.ctx, crash_point=crash_point)
        return Purging(self.ctx, self.store, self.files, PurgeRules(settle_s=3_600, at_once=at_once))

    async def record(self) -> PurgeRecord:
        found = await find_purge(self.yard.kv, "leaving")
        assert found is not None
        return found

    async def begin(self) -> None:
        kv, now_us = self.yard.kv, self.yard.clock.now_us()
        left = await set_state(kv, "leaving", "terminating", reason="it leaves", now_us=now_us)
        self.yard.clock.advance((left.purge_after_us - now_us) / 1e6 + 1)
        await begin_purge(kv, "leaving", by="operator", now_us=self.yard.clock.now_us())

    async def round(self, hours: float = 1.1) -> PurgeRecord:
        """The services, once each; the neighbour goes on storing."""
        await self.purging.run()
        key = f"later/{len(self.kept)}"
        self.kept[key] = key.encode() * 100
        await writes.put_object(self.store, STAYING, "ours", key, About(), MemoryBody(self.kept[key]))
        self.yard.clock.advance(hours * 3_600)
        await doomed.sweep(self.store)
        await clear(self.ctx, TRASH)
        return await self.record()

    async def copy(self, began_us: int = 0) -> None:
        """Of metadata, into volumes: names of everybody's keys."""
        await store_snapshot(
            self.ctx, snapshot_bytes(self.yard), began_us=began_us or self.yard.clock.now_us()
        )

    def on_disks(self, mark: bytes = MARK) -> int:
        """In how many fragment files the mark is found, trash among them."""
        return sum(
            mark in bytes(file.content)
            for disk in self.yard.disks.values()
            for file in disk.fragments.values()
        )


async def fill(end: End, store: Store, who: Principal, bucket: str, rng: random.Random) -> None:
    await buckets.create_bucket(store, who, bucket, region="here")
    for number in range(24):
        mine = who is LEAVING
        size = rng.choice((0, 300, 9_000, 300_000))
        body = (MARK * (size // len(MARK) + 1))[:size] if mine else rng.randbytes(size)
        about = About(metadata={"colour": "red"})
        await writes.put_object(store, who, bucket, f"{bucket}/key/{number}", about, MemoryBody(body))
        if not mine:
            end.kept[f"{bucket}/key/{number}"] = body


@pytest.fixture
async def end() -> End:
    yard = await Yard().start()
    await yard.kv.commit(
        Transaction(
            put={
                disk_key(number): encode(DiskRecord(uuid=disk.uuid, path=disk.path, state="healthy"))
                for number, disk in yard.disks.items()
            }
        )
    )
    await create_seller(yard.kv, SELLER)
    for tenant in ("leaving", "staying"):
        await a_customer(yard.kv, tenant)
    await create_user(yard.kv, "lea", tenant="leaving", now_us=1, email="lea@leaving.example")
    key = AccessKeyRecord(user="lea", secret=b"sealed", created_us=1)
    await yard.kv.commit(Transaction(put={access_key_key("OSLEA"): encode(key)}))
    await create_user(yard.kv, "sam", tenant="staying", now_us=1)
    for user in ("lea", "sam", "lea"):
        await create_token(yard.kv, user, now_us=1, days=366, randomness=yard.rng.randbytes)
    one = End(yard)
    rng = random.Random(SEED)
    for bucket, who in (("theirs", LEAVING), ("ours", STAYING), ("more-of-theirs", LEAVING)):
        await fill(one, one.store, who, bucket, rng)
    for complete in (True, False):  # Parts are homes of their own; of an upload under way, too.
        await upload_part(one, LEAVING, "theirs", "parts", complete=complete)
    await one.copy()
    return one


async def upload_part(end: End, who: Principal, bucket: str, key: str, *, complete: bool) -> str:
    """A part of two stripes; of an upload that is completed, or is still under way. Returns its id."""
    upload, _ = await multipart.create_upload(
        end.store, who, bucket, key, About(), checksum_algorithm="", checksum_type=""
    )
    body = (MARK * (5 * MIB // len(MARK) + 1))[: 5 * MIB]
    written = await multipart.put_part(end.store, who, bucket, key, upload, 1, MemoryBody(body))
    if complete:
        claims = [multipart.Claimed(number=1, etag=written.etag)]
        await multipart.complete_upload(end.store, who, bucket, key, upload, claims)
    return upload


async def until_proven(end: End, rounds: int = 20) -> PurgeRecord:
    for _ in range(rounds):
        if (record := await end.round(24)).state == "proven":
            return record
        if "copy of metadata" in record.waiting:
            await end.copy()
    raise AssertionError(record)


async def test_nothing_of_it_lies_on_any_disk_and_its_neighbour_has_lost_nothing(end: End) -> None:
    assert end.on_disks() > 0
    gone = DiskRecord(uuid=b"gone" * 4, path="/gone", state="retired")
    await end.yard.kv.commit(Transaction(put={disk_key(99): encode(gone)}))
    await end.begin()
    record = await until_proven(end)
    assert end.on_disks() == end.on_disks(b"theirs/key/") == 0
    for key, body in end.kept.items():
        assert await read_as_staying(end, key) == body, key
    assert await account_state(end.yard.kv, "leaving") == "purged"
    assert (record.buckets, record.objects) == (2, 49)
    proof = json.loads(record.proof)
    assert (proof["verdict"], proof["tenant"], proof["held"]["objects"]) == ("proven", "leaving", 49)
    assert proof["inventory"]["disks"] == len(end.yard.disks)
    assert proof["inventory"]["stripes_read"] > 0
    assert (proof["remains"]["disks_removed"], proof["remains"]["disks_removed_in_all"]) == ([99], 1)
    assert proof["metadata"] == "LMDB"
    assert any("LMDB" in words for words in proof["remains"]["not_looked_at"])
    assert len(record.proof) < 6_000
    left = await end.yard.kv.scan(b"", b"\xff", 100_000)
    assert not [key for key, _ in left if b"theirs" in key and key[:1] not in (b"h", b"w")]
    assert await list_keys(end.yard.kv, user="lea") == []
    assert [one.user for _, one in await list_tokens(end.yard.kv)] == ["sam"]
    user = await find_user(end.yard.kv, "lea")
    assert (user.email, user.disabled) == ("", True)
    acts = [one.action for _, one in (await newest(end.yard.kv, Wanted(), before=None, limit=10))[0]]
    assert acts == ["purge_proven"]
    assert "proven" not in await end.purging.run()  # There is nothing left to do.


async def read_as_staying(end: End, key: str) -> bytes:
    from tests.upkeep import test_with_verbs

    before, test_with_verbs.WHO = test_with_verbs.WHO, STAYING
    try:
        return await read(store_of(end.yard), key, "ours")
    finally:
        test_with_verbs.WHO = before


async def test_it_waits_for_what_was_under_way_for_a_copy_and_for_the_trash(end: End) -> None:
    await end.begin()
    record = await end.round(0.5)
    assert "may take until" in record.waiting
    assert (record.volumes, record.until_us) == (0, record.deleted_us + 3_600_000_000)
    assert "may take until" in (await end.round(0.6)).waiting
    record = await end.round()
    assert "copy of metadata" in record.waiting
    assert (record.volumes, record.until_us) == (0, 0)
    await end.copy()
    now_us = end.yard.clock.now_us()
    record = await end.round()
    assert "is trash" in record.waiting
    retired = [state for state in (await end.yard.states()).values() if state == VolumeState.RETIRED]
    assert record.volumes == len(retired) > 0
    week_us = int(TRASH.grace_s * 1e6)
    assert now_us + week_us <= record.until_us < now_us + week_us + 3_600_000_000
    assert record.settled_us > record.deleted_us > 0
    assert VolumeState.RETIRED in (await end.yard.states()).values()
    assert end.on_disks() > 0  # Trash is read like any other file: nothing is proven yet.
    for _ in range(6):
        again = await end.round(24)
        assert again.state == "clearing"
        assert abs(again.until_us - record.until_us) < 1_000_000
    assert (await until_proven(end, 4)).state == "proven"
    assert ((await end.record()).volumes, (await end.record()).until_us) == (0, 0)


async def test_a_file_that_comes_back_and_a_disk_that_is_away_keep_it_from_being_proven(end: End) -> None:
    await end.begin()
    old = next(iter(await end.yard.states()))
    kept = {number: dict(disk.fragments) for number, disk in end.yard.disks.items()}
    for _ in range(12):
        if "copy of metadata" in (await end.round(24)).waiting:
            await end.copy()
        if old not in await end.yard.states():
            break
    # A file of before, copied back by hand where no record names it.
    number, name = next((n, name) for n, files in kept.items() for name in files if name[0] == old)
    disk = end.yard.disks[number]
    disk.fragments[name] = kept[number][name]
    assert (await find_purge(end.yard.kv, "leaving")) is not None
    before = end.yard.clock.now_us()
    await end.purging.run()
    record = await end.record()
    assert (record.state, "does not know" in record.waiting) == ("clearing", True), record
    assert record.looked_us >= before
    disk.lose(*name)
    end.yard.moods("x" + "+" * (len(end.yard.disks) - 1))
    await end.purging.run()
    record = await end.record()
    assert (record.state, "disks 1 did not answer" in record.waiting) == ("clearing", True), record
    end.yard.moods("+" * len(end.yard.disks))
    assert (await until_proven(end, 4)).state == "proven"


async def test_while_trash_is_waited_for_no_disk_is_asked_and_one_that_is_away_is_named(end: End) -> None:
    await end.begin()
    while "copy of metadata" not in (await end.round()).waiting:
        pass
    await end.copy()
    assert "is trash" in (await end.round()).waiting
    disks = end.yard.disks.values()
    asked = [disk.calls["logs"] for disk in disks]
    assert all(asked)  # When all was settled.
    end.yard.moods("@" + "+" * (len(disks) - 1))
    for _ in range(3):
        await end.purging.run()
    waiting = (await end.record()).waiting
    assert "is trash" in waiting
    assert "disks 1 cannot be counted on" in waiting
    assert [disk.calls["logs"] for disk in disks] == asked


async def test_parts_are_swept_at_the_pace_of_the_background(end: End) -> None:
    await upload_part(end, STAYING, "ours", "parts", complete=False)
    await end.begin()
    while "copy of metadata" not in (await end.round()).waiting:
        pass
    end.purging = end.new_process()
    spent = end.ctx.pace.spent
    await end.purging.run()
    assert "copy of metadata" in (await end.record()).waiting  # No volume was read yet.
    assert end.ctx.pace.spent > spent


async def test_parts_that_a_gateway_dropped_whose_clock_is_ahead_are_waited_for(end: End) -> None:
    """They are homes until they are swept: what was read before is taken for somebody's."""
    upload = await upload_part(end, LEAVING, "theirs", "late", complete=False)
    await end.begin()
    ahead = replace(end.store, clock=FakeClock(end.yard.clock.now_us() + 600_000_000))
    await multipart.abort_upload(ahead, LEAVING, "theirs", "late", upload)
    await end.round(1.1)
    await end.purging.run()
    record = await end.record()
    assert "to be swept" in record.waiting
    assert record.until_us == 0, "not what was waited for before"
    await end.copy()
    assert (await until_proven(end)).state == "proven"
    assert end.on_disks() == 0


async def test_what_lies_behind_a_volumes_end_goes_with_the_volume(end: End) -> None:
    """A disk that was away when a volume was sealed has not cut its file."""
    await end.yard.restart_writer()
    end.store = store_of(end.yard)
    await writes.put_object(end.store, STAYING, "ours", "last", About(), MemoryBody(b"ours " * 900))
    await end.yard.restart_writer()
    end.kept["last"], sealed = b"ours " * 900, max(await end.yard.states())
    number, name = next(
        (n, name) for n, disk in end.yard.disks.items() for name in disk.fragments if name[0] == sealed
    )
    end.store = store_of(end.yard)
    end.purging = end.new_process()
    end.yard.disks[number].fragments[name].content += MARK
    await end.begin()
    assert (await until_proven(end)).state == "proven"
    assert end.on_disks() == 0
    assert await read_as_staying(end, "last") == end.kept["last"]


class Killed(BaseException):
    pass


async def test_a_purge_that_is_killed_again_and_again_is_begun_again(
    end: End,
) -> None:
    await end.begin()
    rng = random.Random(SEED)
    for _ in range(6):
        left = rng.randint(0, 1)

        def crash(name: str) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1

        end.purging = end.new_process(crash)
        try:
            await end.round()
        except Killed:
            continue
    end.purging = end.new_process()
    await until_proven(end)
    assert end.on_disks() == 0, SEED


async def test_a_bucket_that_replicates_is_named_before_anything_is_deleted(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, record: object, who: object) -> None:
        if name == "theirs":
            raise BucketReplicates(name)

    await end.begin()
    monkeypatch.setattr(purging, "PAGE", 1)  # It is not among the first that are deleted.
    monkeypatch.setattr(purging, "check_removable", refused)
    record = await end.round()
    assert (record.state, "theirs" in record.waiting) == ("deleting", True)
    assert len(await end.yard.kv.scan(b"ileaving\0", prefix_end(b"ileaving\0"), 10)) == 2


async def test_a_broken_record_of_one_tenant_is_told_and_stops_no_other_purge(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, record: object, who: object) -> None:
        raise KeyError(name)

    await end.begin()
    with monkeypatch.context() as patch:
        patch.setattr(purging, "check_removable", broken)
        assert "see the store's log" in await end.purging.run()
    assert (await end.record()).waiting == "a bug or a broken record; see the store's log"
    assert "clearing" in await end.purging.run()
    assert "may take until" in (await end.record()).waiting


async def test_what_a_salvage_brings_back_while_it_is_cleared_is_deleted_and_cleared_again(end: End) -> None:
    """The copy of metadata began before the last objects came and was read when they were gone: all that a
    salvage knows of them is that their stripes are younger."""
    yard = end.yard
    began_us = yard.clock.now_us()
    yard.clock.advance(60)
    for number in range(3):
        body = MemoryBody(MARK * 40)
        await writes.put_object(end.store, LEAVING, "theirs", f"theirs/key/late{number}", About(), body)
    for complete in (True, False):
        await upload_part(end, LEAVING, "theirs", f"late parts {complete}", complete=complete)
    await end.begin()
    while "copy of metadata" not in (await end.round(1.1)).waiting:
        pass
    await end.copy(began_us)
    lose_metadata(yard)
    report = await salvage(yard.context(), loader(yard))
    assert report.objects >= 4
    assert any(name.startswith("salvaged-") for name, _ in report.doubtful), report.doubtful
    end.ctx, end.store = yard.context(), store_of(yard)
    end.purging = end.new_process()
    record = await end.record()
    assert (record.state, record.settled_us > 0) == ("clearing", True)
    await end.purging.run()
    record = await end.record()
    assert (record.state, record.settled_us, "come back" in record.waiting) == ("deleting", 0, True), record
    assert (await end.round(2)).state == "clearing"
    end.purging = end.new_process()  # It knows by records only whose those buckets were.
    await until_proven(end)
    assert end.on_disks() == end.on_disks(b"theirs/key/") == 0
    for key, body_kept in end.kept.items():
        assert await read_as_staying(end, key) == body_kept, key
    assert not await yard.kv.scan(bucket_key("salvaged-"), prefix_end(bucket_key("salvaged-")), 10)
    assert not await yard.kv.scan(b"p", b"q", 10)


async def test_a_bucket_that_is_a_neighbours_by_its_record_is_not_emptied_whatever_its_title_says(
    end: End,
) -> None:
    value = await end.yard.kv.get(bucket_key("ours"))
    assert value is not None
    key = title_key(decode(value, BucketRecord).id)
    titled = await end.yard.kv.get(key)
    assert titled is not None
    wrong = msgspec.structs.replace(decode(titled, TitleRecord), tenant="leaving")
    await end.yard.kv.commit(Transaction(put={key: encode(wrong)}))
    await end.begin()
    await end.purging.run()
    record = await end.record()
    assert (record.state, "no bucket of its own has" in record.waiting) == ("deleting", True), record
    for name, body in end.kept.items():
        assert await read_as_staying(end, name) == body, name


async def test_a_volume_with_dead_bytes_of_others_alone_is_left_as_it_is(end: End) -> None:
    await end.yard.restart_writer()
    end.store = store_of(end.yard)
    before = max(await end.yard.states())
    upload = await upload_part(end, STAYING, "ours", "given up", complete=False)
    await multipart.abort_upload(end.store, STAYING, "ours", "given up", upload)
    await writes.put_object(end.store, STAYING, "ours", "dead", About(), MemoryBody(b"dead " * 900))
    await writes.delete_objects(end.store, STAYING, "ours", [writes.Doomed(key="dead")])
    await end.yard.restart_writer()
    others = {volume for volume in await end.yard.states() if volume > before}
    assert others
    end.store = store_of(end.yard)
    end.purging = end.new_process()
    await end.begin()
    await until_proven(end)
    states = await end.yard.states()
    assert {states[volume] for volume in others} == {VolumeState.SEALED}
    assert before not in states


async def test_volumes_with_dead_bytes_of_nobody_knows_whom_are_compacted_a_few_at_a_time(end: End) -> None:
    yard = end.yard
    await buckets.create_bucket(end.store, STAYING, "old", region="here")
    value = await yard.kv.get(bucket_key("old"))
    assert value is not None
    unknown: set[int] = set()
    for number in range(3):
        await yard.restart_writer()
        end.store, before = store_of(yard), max(await yard.states())
        await writes.put_object(end.store, STAYING, "old", str(number), About(), MemoryBody(b"old " * 900))
        unknown |= {volume for volume in await yard.states() if volume > before}
    await writes.delete_objects(
        end.store, STAYING, "old", [writes.Doomed(key=str(number)) for number in range(3)]
    )
    await buckets.delete_bucket(end.store, STAYING, "old")
    title = title_key(decode(value, BucketRecord).id)
    await yard.kv.commit(Transaction(delete=[title]))  # It went before titles were kept.
    await yard.restart_writer()
    end.store = store_of(yard)
    end.purging = end.new_process(at_once=1)
    await end.begin()
    while "copy of metadata" not in (await end.round(1.1)).waiting:
        pass
    await end.copy()

    async def compacted() -> int:
        states = await yard.states()
        return sum(states.get(volume) is not VolumeState.SEALED for volume in unknown)

    assert (len(unknown), await compacted()) == (3, 0)
    for count in (1, 2, 3):
        await end.purging.run()
        await end.purging.run()
        assert await compacted() == count
        yard.clock.advance(PurgeRules().rest_s)
    assert (await until_proven(end)).state == "proven"


def test_so_many_are_done_at_once_and_the_next_ones_behind_a_rest() -> None:
    turns = Turns(at_once=2, rest_s=300)
    times = [0, 1, 2, 299, 300, 301, 599, 900, 2_000]
    assert [at for at in times if turns.take(at)] == [0, 1, 300, 301, 900, 2_000]


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("journal.0000000000000007", True),
        ("journal.0000000000000006.0000000000000009", True),  # Put together anew, of what was there.
        ("journal.0000000000000008", False),
        ("snapshot.00000000000000000100.0000000000000007", True),  # Merged of journals below 7: no deletes.
        ("snapshot.00000000000000000100.0000000000000008", False),
        ("something else", False),
    ],
)
def test_a_file_of_metadata_is_as_old_as_the_newest_journal_of_its_beginning(name: str, old: bool) -> None:
    before = ["journal.0000000000000006", "journal.0000000000000007",
              "snapshot.00000000000000000050.0000000000000003"]  # fmt: skip
    assert is_from_before(name, before) == old
    assert not is_from_before(name, [])
