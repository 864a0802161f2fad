"""Buckets: names, owners, listing by tenant, and who may not."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import pytest

from objstore.errors import (
    BadName,
    BucketExists,
    BucketNotEmpty,
    BucketOwnedByCaller,
    Denied,
    NoSuchBucket,
    NoSuchKey,
)
from objstore.meta.kv import Transaction, counter
from objstore.meta.schema import TitleRecord, decode, encode, title_key
from objstore.objects import buckets, multipart
from objstore.objects.accounting import open_account, project_of
from objstore.objects.buckets import (
    create_bucket,
    delete_bucket,
    find_bucket,
    list_buckets,
    stream_of_tenant,
)
from objstore.objects.copies import Source, copy_object, copy_part
from objstore.objects.doomed import sweep
from objstore.objects.listing import list_objects
from objstore.objects.reads import find_object, read_record
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import Doomed, delete_object, delete_objects, put_object
from objstore.rental.meters import HOUR_S, REQUESTS_A, split_meter
from objstore.rental.terms import Account
from tests.objects.audit import audit
from tests.objects.fakes import (
    FakeClock,
    MemoryBody,
    VersionedKv,
    another_process,
    memory_store,
    principal,
    read_all,
)

WHO = principal()
OTHER = principal("other", "olaf")


@pytest.mark.parametrize(
    "name",
    [
        "ab", "a" * 64, "", "A-bucket", "a_b", "-ab", "ab-", ".ab", "ab.", "a..b", "a.-b", "a-.b",
        "192.168.5.4", "xn--abc", "sthree-abc", "abc-s3alias", "abc--ol-s3", "abc--x-s3", "abc\n", "äbc",
        "a b", "abc١",
    ],
)  # fmt: skip
async def test_a_name_outside_the_rules_is_refused(name: str) -> None:
    store = memory_store()
    with pytest.raises(BadName):
        await create_bucket(store, WHO, name, region="")
    with pytest.raises(BadName):
        await find_bucket(store, WHO, name)


@pytest.mark.parametrize("name", ["abc", "a" * 63, "a.b.c", "0-0", "1.2.3", "192.168.5.4.5", "axn--b"])
async def test_a_name_within_the_rules_is_taken(name: str) -> None:
    store = memory_store()
    await create_bucket(store, WHO, name, region="eu")
    assert (await find_bucket(store, WHO, name)).region == "eu"


async def test_a_name_has_one_owner() -> None:
    store = memory_store()
    await create_bucket(store, WHO, "bucket", region="")
    with pytest.raises(BucketOwnedByCaller):
        await create_bucket(store, WHO, "bucket", region="")
    with pytest.raises(BucketExists):
        await create_bucket(store, OTHER, "bucket", region="")


async def test_a_bucket_is_closed_to_every_other_tenant_in_every_verb() -> None:
    store = memory_store()
    await create_bucket(store, WHO, "bucket", region="")
    await create_bucket(store, OTHER, "mine", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"secret"))
    upload, _ = await multipart.create_upload(
        store, WHO, "bucket", "key", About(), checksum_algorithm="", checksum_type=""
    )
    mine, _ = await multipart.create_upload(
        store, OTHER, "mine", "key", About(), checksum_algorithm="", checksum_type=""
    )
    theirs = Source(bucket="bucket", key="key")
    uploads = {"prefix": "", "delimiter": "", "after_key": "", "after_upload": "", "limit": 1}
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: find_bucket(store, OTHER, "bucket"),
        lambda: delete_bucket(store, OTHER, "bucket"),
        lambda: put_object(store, OTHER, "bucket", "key", About(), MemoryBody(b"x")),
        lambda: find_object(store, OTHER, "bucket", "key"),
        lambda: delete_object(store, OTHER, "bucket", "key"),
        lambda: delete_objects(store, OTHER, "bucket", [Doomed(key="key")]),
        lambda: list_objects(store, OTHER, "bucket", prefix="", delimiter="", after="", limit=1),
        lambda: copy_object(store, OTHER, theirs, "mine", "key", about=None),
        lambda: copy_object(store, OTHER, Source(bucket="mine", key="k"), "bucket", "key", about=About()),
        lambda: copy_part(store, OTHER, theirs, None, "mine", "key", mine, 1),
        lambda: multipart.create_upload(
            store, OTHER, "bucket", "key", About(), checksum_algorithm="", checksum_type=""
        ),
        lambda: multipart.find_upload(store, OTHER, "bucket", "key", upload),
        lambda: multipart.put_part(store, OTHER, "bucket", "key", upload, 1, MemoryBody(b"x")),
        lambda: multipart.complete_upload(store, OTHER, "bucket", "key", upload, []),
        lambda: multipart.abort_upload(store, OTHER, "bucket", "key", upload),
        lambda: multipart.list_parts(store, OTHER, "bucket", "key", upload, after=0, limit=1),
        lambda: multipart.list_uploads(store, OTHER, "bucket", **uploads),  # type: ignore[arg-type]
        lambda: multipart.object_parts(store, OTHER, "bucket", "key", after=0, limit=1),
    ]
    for _ in range(2):  # Once with cold caches of bucket records, once with warm ones.
        for attempt in attempts:
            with pytest.raises(Denied):
                await attempt()
        await find_object(store, WHO, "bucket", "key")
    await audit(store)


async def test_a_bucket_is_deleted_with_its_uploads_but_not_with_its_objects() -> None:
    store = memory_store()
    await create_bucket(store, WHO, "bucket", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"x"))
    for n in range(130):
        upload, _ = await multipart.create_upload(
            store, WHO, "bucket", f"key {n}", About(), checksum_algorithm="", checksum_type=""
        )
        await multipart.put_part(store, WHO, "bucket", f"key {n}", upload, 1, MemoryBody(b"part"))
    with pytest.raises(BucketNotEmpty):
        await delete_bucket(store, WHO, "bucket")
    await delete_object(store, WHO, "bucket", "key")
    await delete_bucket(store, WHO, "bucket")
    with pytest.raises(NoSuchBucket):
        await find_bucket(store, WHO, "bucket")
    assert (await audit(store))[b"d"] == 130
    assert await sweep(store, grace_us=0) == 130
    assert set(await audit(store)) <= {b"N", b"V", b"G", b"L", b"M", b"Q", b"w"}


async def test_a_bucket_is_read_once_for_many_reads_and_again_after_any_commit() -> None:
    kv = VersionedKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"one"))
    for body, reads in (
        (b"one", ["get_many", "get_at", "get_at"]),
        (b"two", ["get_many", "get_at", "get_at"]),
    ):
        await put_object(store, WHO, "bucket", "key", About(), MemoryBody(body))
        kv.reads.clear()
        for _ in range(3):
            assert await read_all(store, await find_object(store, WHO, "bucket", "key")) == body
        assert kv.reads == reads
    with pytest.raises(Denied):
        await find_object(store, OTHER, "bucket", "key")


async def test_what_another_process_does_to_a_bucket_holds_from_the_next_read_on() -> None:
    store = memory_store(kv=VersionedKv())
    await create_bucket(store, WHO, "bucket", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"x"))
    for _ in range(3):
        await find_object(store, WHO, "bucket", "key")
    other = another_process(store)
    await delete_object(other, WHO, "bucket", "key")
    await delete_bucket(other, WHO, "bucket")
    with pytest.raises(NoSuchBucket):
        await find_object(store, WHO, "bucket", "key")
    await create_bucket(other, WHO, "bucket", region="")
    with pytest.raises(NoSuchKey):
        await find_object(store, WHO, "bucket", "key")
    await put_object(other, WHO, "bucket", "key", About(), MemoryBody(b"y"))
    assert await read_all(store, await find_object(store, WHO, "bucket", "key")) == b"y"


async def test_buckets_are_listed_by_tenant_in_pages() -> None:
    store = memory_store()
    for name in ("bbb", "aaa", "ccc", "bbb-2"):
        await create_bucket(store, WHO, name, region="")
    await create_bucket(store, OTHER, "bbb-3", region="")
    await create_bucket(store, principal("defaul", "x"), "aaa-1", region="")
    await create_bucket(store, principal("default2", "x"), "zzz", region="")

    async def listed(prefix: str = "", after: str = "", limit: int = 10) -> tuple[list[str], str]:
        found, follows = await list_buckets(store, WHO.tenant, prefix=prefix, after=after, limit=limit)
        return [name for name, _ in found], follows

    assert await listed() == (["aaa", "bbb", "bbb-2", "ccc"], "")
    assert await listed(limit=2) == (["aaa", "bbb"], "bbb")
    assert await listed(after="bbb", limit=2) == (["bbb-2", "ccc"], "")
    assert await listed(prefix="bbb") == (["bbb", "bbb-2"], "")
    assert await listed(prefix="bbb", after="bbb") == (["bbb-2"], "")
    assert await listed(prefix="bbb", after="zzz") == ([], "")
    assert await listed(limit=0) == ([], "")


async def test_a_key_of_a_project_makes_and_finds_buckets_of_that_project_only() -> None:
    store = memory_store()
    photos = replace(WHO, project="photos")
    await create_bucket(store, WHO, "of-nobody", region="")
    await create_bucket(store, photos, "of-photos", region="")
    await create_bucket(store, replace(WHO, project="films"), "of-films", region="")

    assert project_of(await find_bucket(store, photos, "of-photos")) == "photos"
    assert project_of(await find_bucket(store, WHO, "of-photos")) == "photos"
    for name in ("of-nobody", "of-films"):
        with pytest.raises(Denied, match="another project"):
            await find_bucket(store, photos, name)
        with pytest.raises(Denied):
            await delete_bucket(store, photos, name)
        with pytest.raises(BucketExists):
            await create_bucket(store, photos, name, region="")
    with pytest.raises(BucketOwnedByCaller):
        await create_bucket(store, photos, "of-photos", region="")
    with pytest.raises(Denied):
        await find_bucket(store, replace(OTHER, project="photos"), "of-photos")


async def test_a_read_of_another_projects_bucket_is_refused_although_its_record_is_remembered() -> None:
    store = memory_store()
    await create_bucket(store, replace(WHO, project="films"), "of-films", region="")
    assert (await read_record(store, WHO, "of-films", "key"))[1] is None
    with pytest.raises(Denied, match="another project"):
        await read_record(store, replace(WHO, project="photos"), "of-films", "key")


async def test_a_projects_buckets_are_listed_in_pages_however_many_others_lie_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "LISTED_PAGE", 3)
    store = memory_store()
    wanted = []
    for number in range(40):
        project = "photos" if number % 7 == 0 else ""
        name = f"bucket-{number:02}"
        await create_bucket(store, replace(WHO, project=project), name, region="")
        wanted += [name] if project else []

    for limit in (1, 2, 5, 6, 7):
        names: list[str] = []
        follows = ""
        for _ in range(40):
            page, follows = await list_buckets(
                store, WHO.tenant, prefix="", after=follows, limit=limit, project="photos"
            )
            assert len(page) <= limit
            names += [name for name, _ in page]
            if not follows:
                break
        assert names == wanted, limit
        assert not follows
    assert (await list_buckets(store, WHO.tenant, prefix="", after="", limit=9, project="none")) == (
        [],
        "bucket-29",
    )


async def test_making_a_bucket_is_a_request_of_class_a_and_failing_to_is_not_counted_by_it() -> None:
    store = memory_store(clock=FakeClock())
    record = await create_bucket(store, principal(), "bucket", region="")
    with pytest.raises(BucketOwnedByCaller):
        await create_bucket(store, principal(), "bucket", region="")
    counted = {split_meter(key): counter(value) for key, value in await store.kv.scan(b"M", b"N", 100)}
    hour = FakeClock().now_us() // 1_000_000 // HOUR_S
    assert counted == {(hour, record.id, "", REQUESTS_A): 1}
    await audit(store)


async def test_requests_without_a_bucket_have_one_id_that_is_no_buckets() -> None:
    store = memory_store(clock=FakeClock())
    who = principal()
    first = await create_bucket(store, who, "bucket", region="")
    ids = await asyncio.gather(*(stream_of_tenant(store.kv, who.tenant, 5) for _ in range(5)))
    assert len(set(ids)) == 1
    second = await create_bucket(store, who, "another", region="")
    assert len({first.id, second.id, ids[0]}) == 3
    title = await store.kv.get(title_key(ids[0]))
    assert title is not None
    assert decode(title, TitleRecord) == TitleRecord(tenant=who.tenant, project="", name="", created_us=5)
    await audit(store)


async def test_a_title_that_changes_while_its_bucket_is_deleted_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kv = VersionedKv()
    store = memory_store(kv=kv)
    record = await create_bucket(store, WHO, "bucket", region="")
    key = title_key(record.id)

    async def another(given: Store, tenant: str) -> Account:
        """Somebody else's commit, between what the deletion reads and what it writes."""
        monkeypatch.undo()
        value = await kv.get(key)
        assert value is not None
        changed = msgspec.structs.replace(decode(value, TitleRecord), project="photos")
        await kv.commit(Transaction(put={key: encode(changed)}))
        return await open_account(given, tenant)

    monkeypatch.setattr(buckets, "open_account", another)
    await delete_bucket(store, WHO, "bucket")
    value = await kv.get(key)
    assert value is not None
    title = decode(value, TitleRecord)
    assert (title.project, title.removed_us > 0) == ("photos", True)
