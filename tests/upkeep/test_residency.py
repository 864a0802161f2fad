"""The audit of residency: what lies on disks is found there, whatever metadata says, and held to policies."""

import random
import time
from array import array
from collections.abc import Sequence

import pytest

from objstore.blobs.topology import Policy
from objstore.blobs.volumes import Lane, VolumeRecord
from objstore.errors import NoSuchBucket
from objstore.extents import Extent
from objstore.meta.kv import Transaction
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    DiskRecord,
    MemberRecord,
    ObjectRecord,
    ReplicationProgress,
    ReplicationRecord,
    account_key,
    bucket_key,
    disk_key,
    encode,
    member_key,
    object_key,
    replication_key,
    setting_key,
    tenant_bucket_key,
    volume_key,
)
from objstore.objects.changes import REPLICATION
from objstore.objects.layout import LAYOUT_KEY, LayoutRecord, Plan
from objstore.objects.placing import PLACEMENT
from objstore.objects.store import Store
from objstore.upkeep import residency
from objstore.upkeep.homes import SNAPSHOT_HOME
from objstore.upkeep.residency import Audit, Row, Summary
from tests.upkeep.rig import BUCKET, Yard

NEAR, FAR = range(1, 7), range(7, 13)  # Disks at sites a and b.
PINNED = Policy(name="only-a", sites=("a",))


class Sites(Yard):
    """Two sites, a and b, with a node of six disks each; a policy that allows a only."""

    async def start(self) -> "Sites":
        await super().start()
        put = {LAYOUT_KEY: encode(LayoutRecord(version=3, current=Plan(policies={"only-a": PINNED})))}
        for site, numbers in (("a", NEAR), ("b", FAR)):
            node = site.encode() * 16
            put[member_key(node)] = encode(
                MemberRecord(role="node", name=f"node-{site}", state="joined", addresses=[], site=site)
            )
            for number in numbers:
                disk = self.disks[number]
                put[disk_key(number)] = encode(
                    DiskRecord(uuid=disk.uuid, path=disk.path, state="healthy", node=node)
                )
        await self.kv.commit(Transaction(put=put))
        return self

    async def volume(self, disks: Sequence[int], policy: str = "") -> VolumeRecord:
        record, _ = await self.ledger.create(
            k=4, m=2, disks=list(disks), lane=Lane.SMALL, writer=b"w" * 16, policy=policy
        )
        for index, number in enumerate(disks):
            await self.disks[number].create(record.id, index)
        return record

    async def audit(self, **options: object) -> Summary:
        self.last = Audit(self.context(), **options)  # type: ignore[arg-type]
        return await self.last.take()

    async def rows(self) -> list[Row]:
        return await self.last.rows(0)


@pytest.fixture
async def sites() -> Sites:
    return await Sites("+" * 12).start()


async def test_files_where_their_policy_allows_them_are_a_proof(sites: Sites) -> None:
    await sites.volume(NEAR, "only-a")
    await sites.volume([1, 2, 3, 7, 8, 9])
    found = await sites.audit()
    assert (found.verdict, found.reasons) == ("proven", [])
    assert (found.counts.files, found.counts.allowed, found.counts.volumes) == (12, 12, 2)
    assert found.counts.pinned_volumes == 1
    assert found.layout_version == 3
    pinned, free = await sites.rows()
    assert pinned.sites == ("a",)
    assert {file.site for file in pinned.files} == {"a"}
    assert free.sites == ()
    assert {file.site for file in free.files} == {"a", "b"}


async def test_a_fragment_file_copied_to_another_site_by_hand_is_found(sites: Sites) -> None:
    record = await sites.volume(NEAR, "only-a")
    await sites.disks[9].create(record.id, 2)
    found = await sites.audit()
    assert found.verdict == "violated"
    [copy] = found.forbidden
    assert (copy.volume, copy.index, copy.disk, copy.site, copy.trash) == (record.id, 2, 9, "b", False)
    assert "allows a" in copy.why
    assert [(one.disk, one.site) for one in found.elsewhere] == [(9, "b")]


async def test_trash_at_a_forbidden_site_is_found(sites: Sites) -> None:
    record = await sites.volume(NEAR, "only-a")
    await sites.disks[7].create(record.id, 0)
    await sites.disks[7].retire(record.id, 0, 5)
    found = await sites.audit()
    assert found.verdict == "violated"
    assert [(one.disk, one.trash) for one in found.forbidden] == [(7, True)]
    assert found.counts.trash == 1


async def test_a_copy_within_the_allowed_sites_is_named_but_no_violation(sites: Sites) -> None:
    record = await sites.volume([1, 2, 3, 4, 5, 7])
    await sites.disks[6].create(record.id, 0)
    found = await sites.audit()
    assert found.verdict == "proven"
    assert [(one.volume, one.disk) for one in found.elsewhere] == [(record.id, 6)]


async def test_a_disk_that_does_not_answer_makes_the_proof_incomplete(sites: Sites) -> None:
    await sites.volume(NEAR, "only-a")
    sites.moods("++++++++x+++")
    found = await sites.audit()
    assert found.verdict == "incomplete"
    assert [place.disk for place in found.places if place.unreachable] == [9]
    assert "1 disks did not answer: 9" in found.reasons[0]


async def test_files_that_nobody_knows_are_listed_with_their_site_and_leave_the_proof_open(
    sites: Sites,
) -> None:
    record = await sites.volume(NEAR, "only-a")
    await sites.disks[8].create(record.id + 70, 3)
    found = await sites.audit()
    assert found.verdict == "incomplete"
    [nobodys] = found.unknown
    assert (nobodys.volume, nobodys.index, nobodys.disk, nobodys.site) == (record.id + 70, 3, 8, "b")
    rows = await sites.rows()
    assert [(row.volume, row.known) for row in rows] == [(record.id, True), (record.id + 70, False)]


async def test_names_that_no_volume_can_have_are_nobodys_files_and_stop_no_audit(sites: Sites) -> None:
    await sites.volume(NEAR, "only-a")
    for volume, index in ((1 << 63, 1), (5_000, 999), (1 << 53, 0)):
        await sites.disks[7].create(volume, index)
    found = await sites.audit()
    assert found.verdict == "incomplete"
    assert sorted((one.volume, one.index, one.site) for one in found.unknown) == [
        (5_000, 999, "b"),
        (1 << 53, 0, "b"),
        (1 << 63, 1, "b"),
    ]


async def test_a_record_that_wants_a_file_at_a_forbidden_site_is_a_violation_before_it_lies_there(
    sites: Sites,
) -> None:
    record, _ = await sites.ledger.create(
        k=4, m=2, disks=[1, 2, 3, 4, 5, 12], lane=Lane.SMALL, writer=b"w" * 16, policy="only-a"
    )
    found = await sites.audit()
    assert found.verdict == "violated"
    assert found.counts.forbidden_by_record == 1
    assert (found.forbidden[0].volume, found.forbidden[0].disk) == (record.id, 12)


async def test_files_of_metadata_are_listed_and_held_to_their_own_sites(sites: Sites) -> None:
    await sites.disks[1].log_create("journal-1", b"x" * 10)
    await sites.disks[8].log_create("journal-1", b"x" * 10)
    free = await sites.audit()
    assert free.verdict == "proven"
    assert [(file.disk, file.site, file.name) for file in free.metadata] == [
        (1, "a", "journal-1"),
        (8, "b", "journal-1"),
    ]
    bound = await sites.audit(metadata_sites=("a",))
    assert bound.verdict == "violated"
    assert [(file.disk, file.allowed) for file in bound.metadata] == [(1, True), (8, False)]


async def test_the_copy_of_metadata_in_volumes_is_named_and_held_to_the_metadatas_sites(sites: Sites) -> None:
    home = await sites.put_object("snapshot", b"all keys " * 100)
    value = sites.kv._values[home]
    await sites.kv.commit(Transaction(put={SNAPSHOT_HOME: value}, delete=[home]))
    found = await sites.audit(metadata_sites=("a",))
    assert len(found.metadata_copies) == 1
    [row] = [row for row in await sites.rows() if row.metadata_copy]
    outside = sum(file.site == "b" for file in row.files)
    assert found.counts.metadata_copies_forbidden == outside
    assert (found.verdict == "violated") == bool(outside)


async def bucket_pinned(sites: Sites, policy: str) -> None:
    record = BucketRecord(
        id=BUCKET, tenant="t", owner="u", created_us=1, settings={PLACEMENT: policy.encode()}
    )
    await sites.kv.commit(Transaction(put={bucket_key("books"): encode(record)}))


async def test_a_proof_for_a_bucket_names_the_other_sites_at_which_its_keys_lie(sites: Sites) -> None:
    await bucket_pinned(sites, "only-a")
    await sites.disks[1].log_create("journal-1", b"x" * 10)
    assert (await sites.audit(bucket="books")).metadata_elsewhere == []
    await sites.disks[8].log_create("journal-1", b"x" * 10)
    found = await sites.audit(bucket="books")
    assert (found.verdict, found.metadata_elsewhere) == ("proven", ["b"])
    assert (await sites.audit()).metadata_elsewhere == [], "a bucket was asked for"


async def test_a_bucket_is_held_to_its_policy_wherever_its_objects_were_written_before(sites: Sites) -> None:
    await bucket_pinned(sites, "only-a")
    await sites.put_object("old", b"written before it was pinned")
    await sites.volume([7, 8, 9, 10, 11, 12])  # Not this bucket's.
    whole = await sites.audit()
    assert whole.verdict == "proven", "no volume is where its own policy does not allow it"
    found = await sites.audit(bucket="books")
    [row] = await sites.rows()
    assert (found.policy, found.sites) == ("only-a", ("a",))
    outside = sum(file.site == "b" for file in row.files)
    assert found.counts.forbidden == outside
    assert (found.verdict == "violated") == bool(outside)
    assert outside, "the volume of a default policy lies on both sites"


@pytest.mark.parametrize(("site", "verdict"), [("a", "proven"), ("b", "violated"), ("", "violated")])
async def test_a_replica_elsewhere_is_named_and_held_to_the_buckets_policy(
    sites: Sites, site: str, verdict: str
) -> None:
    target = ReplicationRecord(
        endpoint="https://far", bucket="copy", access_key="k", secret=b"s", site=site, generation=1
    )
    settings = {PLACEMENT: b"only-a", REPLICATION: encode(target)}
    record = BucketRecord(id=BUCKET, tenant="t", owner="u", created_us=1, settings=settings)
    put = {
        bucket_key("books"): encode(record),
        replication_key("books"): encode(ReplicationProgress(bucket=BUCKET)),
    }
    await sites.kv.commit(Transaction(put=put))
    for bucket in ("", "books"):
        found = await sites.audit(bucket=bucket)
        assert found.verdict == verdict
        assert [(one.bucket, one.site, one.sites) for one in found.replicas] == [("books", site, ("a",))]


async def test_volumes_of_parts_and_pages_count_as_the_buckets(sites: Sites) -> None:
    await bucket_pinned(sites, "only-a")
    await sites.put_object("paged", random.Random(1).randbytes(300_000), paged=True)
    wanted = await residency.volumes_of(sites.kv, BUCKET)
    assert wanted == {record.id for record in await sites.ledger.volumes()}


async def test_a_bucket_that_is_not_there_is_an_error(sites: Sites) -> None:
    with pytest.raises(NoSuchBucket):
        await sites.audit(bucket="none")


async def test_rows_come_in_pages_and_each_volume_once(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "PAGE_VOLUMES", 7)
    chance = random.Random(3)
    volumes = [(await sites.volume(chance.sample(range(1, 13), 6))).id for _ in range(40)]
    strays = sorted(chance.sample(range(volumes[-1] + 1, volumes[-1] + 60), 9))
    for volume in strays:
        await sites.disks[chance.randrange(1, 13)].create(volume, 0)
    gone = volumes.pop(17)  # Its record is lost: its files are nobody's.
    await sites.kv.commit(Transaction(delete=[volume_key(gone)]))
    found = await sites.audit()
    assert found.counts.volumes == 39
    assert found.counts.unknown == 6 + len(strays)
    seen: list[Row] = []
    while page := await sites.last.rows(seen[-1].volume if seen else 0, 5):
        seen += page
    assert [row.volume for row in seen] == sorted([*volumes, gone, *strays])
    assert sum(len(row.files) for row in seen) == found.counts.files


async def test_findings_are_named_up_to_a_bound_and_counted_beyond(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "REPORTED_MAX", 3)
    for _ in range(5):
        await sites.volume([1, 2, 3, 4, 5, 12], "only-a")
    found = await sites.audit()
    assert found.counts.forbidden == 5
    assert len(found.forbidden) == 3


async def test_what_a_layout_that_changes_meanwhile_proves_is_said_to_be_incomplete(sites: Sites) -> None:
    await sites.volume(NEAR, "only-a")
    disk = sites.disks[3]

    def change(name: str, volume: int, index: int) -> None:
        if name == "fragment_files":
            record = LayoutRecord(version=4, current=Plan(policies={"only-a": PINNED}))
            sites.kv._values[LAYOUT_KEY] = encode(record)

    disk.before = change
    found = await sites.audit()
    assert found.verdict == "incomplete"
    assert "the layout changed" in found.reasons[0]


async def test_settings_of_other_names_are_no_copies(sites: Sites) -> None:
    await sites.kv.commit(Transaction(put={setting_key("snapshots"): b"x"}))
    assert (await sites.audit()).metadata_copies == []


async def main() -> None:
    """How long a million fragment files take: python -m tests.upkeep.test_residency"""
    sites = await Sites("+" * 12).start()
    audit = Audit(sites.context())
    count = 1_000_000 // 6
    put: dict[bytes, bytes] = {}
    for volume in range(1, count + 1):
        record = VolumeRecord(
            id=volume, k=4, m=2, disks=list(NEAR), state=1, lane=0, writer=b"w" * 16, policy="only-a"
        )
        put[volume_key(volume)] = encode(record)
    sites.kv._values.update(put)
    sites.kv._keys = sorted(sites.kv._values)

    async def listed(number: int, *_: object) -> residency.Place:
        index = number - 1
        if number in NEAR:
            audit._files[number] = array("Q", (v << 9 | index << 1 for v in range(1, count + 1)))
        return residency.Place(number, "a" if number in NEAR else "b", "", "")

    audit._ask = listed  # type: ignore[method-assign]
    began = time.process_time()
    found = await audit.take()
    print(f"{found.counts.files} files, {time.process_time() - began:.1f} s of CPU, {found.verdict}")


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())


async def test_buckets_of_bound_tenants_are_held_against_where_their_files_were_found(sites: Sites) -> None:
    record = await sites.volume(NEAR, "only-a")
    object_ = ObjectRecord(1, 1, b"", 5, bytes(16), b"", [Extent(record.id, 64, 16, 0, 5, 0)])
    put: dict[bytes, bytes] = {account_key("pinned"): encode(AccountRecord(sites=["a"]))}
    for number, (name, policy) in enumerate((("held", b"only-a"), ("loose", b"")), 7):
        settings = {PLACEMENT: policy} if policy else None
        bucket = BucketRecord(id=number, tenant="pinned", owner="o", created_us=1, settings=settings)
        put |= {bucket_key(name): encode(bucket), tenant_bucket_key("pinned", name): b""}
    put[object_key(7, b"key")] = encode(object_)
    await sites.kv.commit(Transaction(put=put))
    ctx = sites.context()
    store = Store(kv=sites.kv, writer=ctx.writer, reader=ctx.reader, ledger=ctx.ledger)

    async def found() -> list[residency.Housed]:
        await sites.audit()
        return await residency.housed(ctx, store, sites.last, most=10)

    held, loose = await found()
    assert (held.bucket, held.admitted, held.volumes, held.sites) == ("held", True, 1, ("a",))
    assert (held.outside, held.unseen) == (0, 0)
    assert (loose.admitted, loose.volumes) == (False, 0)  # What is stored next may go anywhere.
    await sites.disks[9].create(record.id, 2)
    held, _ = await found()
    assert (held.outside, held.sites) == (1, ("a", "b"))
    sites.moods("x" * 12)
    held, _ = await found()
    assert (held.sites, held.unseen) == ((), 1)
    assert len(await residency.housed(ctx, store, sites.last, most=1)) == 1
