"""Races as deterministic interleavings: something happens between a decision and its commit."""

import asyncio
import hashlib

import pytest

from objstore.errors import (
    BadPart,
    BucketExists,
    BucketNotEmpty,
    ConditionalConflict,
    ConditionFailed,
    Contended,
    MetaUnavailable,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    Overloaded,
)
from objstore.meta.kv import Transaction, counter
from objstore.meta.schema import volume_live_key
from objstore.objects import commits, multipart
from objstore.objects.buckets import create_bucket, delete_bucket, find_bucket
from objstore.objects.chains import Chains
from objstore.objects.copies import Source, copy_object
from objstore.objects.doomed import sweep
from objstore.objects.multipart import Claimed
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About, Conditions, Written
from objstore.objects.writes import delete_object, put_object
from tests.objects.audit import audit
from tests.objects.fakes import (
    BatchingKv,
    HookedKv,
    MemoryBody,
    another_process,
    blobs_of,
    memory_store,
    principal,
    read_all,
)

WHO = principal()
OTHER = principal("other", "olaf")


async def hooked() -> tuple[Store, HookedKv]:
    kv = HookedKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    return store, kv


async def put(store: Store, data: bytes, key: str = "key", **conditions: str) -> Written:
    return await put_object(store, WHO, "bucket", key, About(), MemoryBody(data), Conditions(**conditions))


async def content(store: Store, key: str = "key") -> bytes:
    return await read_all(store, await find_object(store, WHO, "bucket", key))


async def begin(store: Store, key: str = "key") -> str:
    upload, _ = await multipart.create_upload(
        store, WHO, "bucket", key, About(), checksum_algorithm="", checksum_type=""
    )
    return upload


async def part(store: Store, upload: str, number: int, data: bytes, key: str = "key") -> Claimed:
    written = await multipart.put_part(store, WHO, "bucket", key, upload, number, MemoryBody(data))
    return Claimed(number=number, etag=written.etag)


# A bucket goes while something is under way in it.


async def test_a_bucket_is_not_deleted_over_an_object_that_arrives_after_the_check() -> None:
    store, kv = await hooked()
    kv.before_commit(b"b", lambda: put(another_process(store), b"late"))
    with pytest.raises(BucketNotEmpty):
        await delete_bucket(store, WHO, "bucket")
    assert await content(store) == b"late"
    await audit(store)


async def test_a_put_does_not_land_in_a_bucket_deleted_while_its_bytes_were_written() -> None:
    store, kv = await hooked()
    kv.before_commit(b"o", lambda: delete_bucket(another_process(store), WHO, "bucket"))
    with pytest.raises(NoSuchBucket):
        await put(store, b"homeless")
    await audit(store)


async def test_a_put_does_not_land_in_another_bucket_of_the_same_name() -> None:
    store, kv = await hooked()

    async def made_anew() -> None:
        await delete_bucket(another_process(store), WHO, "bucket")
        await create_bucket(another_process(store), WHO, "bucket", region="")

    kv.before_commit(b"o", made_anew)
    with pytest.raises(NoSuchBucket):
        await put(store, b"homeless")
    with pytest.raises(NoSuchKey):
        await content(store)
    await audit(store)


async def test_a_part_does_not_land_in_the_bucket_that_another_tenant_made_meanwhile() -> None:
    store, kv = await hooked()
    upload = await begin(store)

    async def taken_over() -> None:
        await delete_bucket(another_process(store), WHO, "bucket")
        await create_bucket(another_process(store), OTHER, "bucket", region="")

    kv.before_commit(b"p", taken_over)
    with pytest.raises(Exception, match=r"another tenant|no upload"):
        await part(store, upload, 1, b"bytes")
    counts = await audit(store)
    assert counts[b"p"] == 0


async def test_an_upload_begun_during_the_deletion_of_its_bucket_is_aborted_with_it() -> None:
    store, kv = await hooked()
    kv.before_commit(b"b", lambda: begin(another_process(store)))
    await delete_bucket(store, WHO, "bucket")
    counts = await audit(store)
    assert counts[b"m"] == 0
    assert counts[b"c"] == 0


# Parts against Complete and Abort.


async def test_a_part_replaced_between_the_check_and_the_commit_of_complete_is_refused() -> None:
    store, kv = await hooked()
    upload = await begin(store)
    claim = await part(store, upload, 1, b"first")
    kv.before_commit(b"o", lambda: part(another_process(store), upload, 1, b"second"))
    with pytest.raises(BadPart):
        await multipart.complete_upload(store, WHO, "bucket", "key", upload, [claim])
    await audit(store)


async def test_a_part_that_arrives_during_complete_and_is_not_claimed_is_swept_later() -> None:
    store, kv = await hooked()
    upload = await begin(store)
    claim = await part(store, upload, 1, b"first")
    kv.before_commit(b"o", lambda: part(another_process(store), upload, 2, b"uninvited"))
    await multipart.complete_upload(store, WHO, "bucket", "key", upload, [claim])
    assert await content(store) == b"first"
    assert (await audit(store))[b"p"] == 2
    await sweep(store, grace_us=0)
    assert (await audit(store))[b"p"] == 1
    assert await content(store) == b"first"


async def test_a_part_does_not_land_in_an_aborted_upload() -> None:
    store, kv = await hooked()
    upload = await begin(store)
    kv.before_commit(
        b"p", lambda: multipart.abort_upload(another_process(store), WHO, "bucket", "key", upload)
    )
    with pytest.raises(NoSuchUpload):
        await part(store, upload, 1, b"orphan")
    assert (await audit(store))[b"p"] == 0


async def test_a_part_does_not_land_in_a_completed_upload() -> None:
    store, kv = await hooked()
    upload = await begin(store)
    claim = await part(store, upload, 1, b"first")
    kv.before_commit(
        b"p", lambda: multipart.complete_upload(another_process(store), WHO, "bucket", "key", upload, [claim])
    )
    with pytest.raises(NoSuchUpload):
        await part(store, upload, 1, b"second")
    assert await content(store) == b"first"
    await audit(store)


async def test_an_abort_during_complete_leaves_no_object_and_a_complete_during_abort_leaves_it_whole() -> (
    None
):
    store, kv = await hooked()
    upload = await begin(store)
    claim = await part(store, upload, 1, b"first")
    kv.before_commit(
        b"o", lambda: multipart.abort_upload(another_process(store), WHO, "bucket", "key", upload)
    )
    with pytest.raises(NoSuchUpload):
        await multipart.complete_upload(store, WHO, "bucket", "key", upload, [claim])
    with pytest.raises(NoSuchKey):
        await content(store)

    upload = await begin(store)
    claim = await part(store, upload, 1, b"first")
    kv.before_commit(
        b"d", lambda: multipart.complete_upload(another_process(store), WHO, "bucket", "key", upload, [claim])
    )
    with pytest.raises(NoSuchUpload):
        await multipart.abort_upload(store, WHO, "bucket", "key", upload)
    await sweep(store, grace_us=0)
    assert await content(store) == b"first"
    await audit(store)


async def test_two_completes_of_one_upload_with_different_lists_make_one_whole_object() -> None:
    store, kv = await hooked()
    upload = await begin(store)
    one, two = await part(store, upload, 1, b"one"), await part(store, upload, 2, b"two")
    kv.before_commit(
        b"o", lambda: multipart.complete_upload(another_process(store), WHO, "bucket", "key", upload, [two])
    )
    with pytest.raises(NoSuchUpload):
        await multipart.complete_upload(store, WHO, "bucket", "key", upload, [one])
    assert await content(store) == b"two"
    await sweep(store, grace_us=0)
    assert await content(store) == b"two"
    await audit(store)


async def test_a_complete_that_raced_its_own_repetition_answers_both_alike() -> None:
    store, kv = await hooked()
    upload = await begin(store)
    claim = await part(store, upload, 1, b"one")
    first: list[Written] = []

    async def repeated() -> None:
        first.append(
            await multipart.complete_upload(another_process(store), WHO, "bucket", "key", upload, [claim])
        )

    kv.before_commit(b"o", repeated)
    second = await multipart.complete_upload(store, WHO, "bucket", "key", upload, [claim])
    assert [second] == first
    await audit(store)


# Overwrites and deletes of one key.


async def test_an_overwrite_between_decision_and_commit_is_accounted_for() -> None:
    store, kv = await hooked()
    await put(store, b"old")
    kv.before_commit(b"o", lambda: put(another_process(store), b"in between"))
    await put(store, b"new")
    assert await content(store) == b"new"
    await audit(store)


async def test_a_delete_decides_again_when_its_object_was_overwritten() -> None:
    store, kv = await hooked()
    etag = (await put(store, b"old")).etag
    kv.before_commit(b"o", lambda: put(another_process(store), b"new"))
    with pytest.raises(ConditionFailed):
        await delete_object(store, WHO, "bucket", "key", conditions=Conditions(if_match=etag))
    assert await content(store) == b"new"
    kv.before_commit(b"o", lambda: put(another_process(store), b"newer"))
    await delete_object(store, WHO, "bucket", "key")
    with pytest.raises(NoSuchKey):
        await content(store)
    await audit(store)


async def test_of_two_that_want_to_be_first_the_later_commit_fails() -> None:
    store, kv = await hooked()
    kv.before_commit(b"o", lambda: put(another_process(store), b"winner", if_none_match="*"))
    with pytest.raises(ConditionFailed):
        await put(store, b"loser", if_none_match="*")
    assert await content(store) == b"winner"
    await audit(store)


async def test_who_wants_to_be_first_while_an_object_came_and_went_is_told_of_the_conflict() -> None:
    """Seen only if the commit itself ran into it: metadata keeps no memory of what is gone."""
    store, kv = await hooked()
    remaining = [1]
    elsewhere = another_process(store)

    async def came_and_went() -> None:
        await put(elsewhere, b"brief")
        original = kv.get

        async def gone_when_read_again(key: bytes) -> bytes | None:
            if key.startswith(b"o") and remaining:
                remaining.pop()
                kv.get = original  # type: ignore[method-assign]
                await delete_object(elsewhere, WHO, "bucket", "key")
            return await original(key)

        kv.get = gone_when_read_again  # type: ignore[method-assign]

    kv.before_commit(b"o", came_and_went)
    with pytest.raises(ConditionalConflict):
        await put(store, b"first", if_none_match="*")
    await audit(store)


async def test_a_compare_and_swap_loses_to_an_overwrite_and_to_a_delete() -> None:
    store, kv = await hooked()
    etag = (await put(store, b"old")).etag
    kv.before_commit(b"o", lambda: put(another_process(store), b"in between"))
    with pytest.raises(ConditionFailed):
        await put(store, b"new", if_match=etag)
    etag = (await put(store, b"old")).etag
    kv.before_commit(b"o", lambda: delete_object(another_process(store), WHO, "bucket", "key"))
    with pytest.raises(NoSuchKey):
        await put(store, b"new", if_match=etag)
    await audit(store)


async def test_a_copy_onto_itself_keeps_the_bytes_of_whoever_overwrote_it_meanwhile() -> None:
    store, kv = await hooked()
    await put(store, b"old")
    kv.before_commit(b"o", lambda: put(another_process(store), b"newer"))
    source = Source(bucket="bucket", key="key")
    written = await copy_object(
        store, WHO, source, "bucket", "key", about=About(metadata={"a": "b"}), checksum_algorithm="SHA256"
    )
    found = await find_object(store, WHO, "bucket", "key")
    assert await read_all(store, found) == b"newer"
    assert found.record.extra is not None
    assert found.record.extra.metadata == {"a": "b"}
    assert written.checksum is not None
    assert written.checksum.digest == hashlib.sha256(b"newer").digest()
    await audit(store)


# Volumes sealed between write and commit.


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_bytes_whose_volume_was_sealed_are_written_again(size: int) -> None:
    store, kv = await hooked()
    blobs = blobs_of(store)
    kv.before_commit(b"o", blobs.seal)
    await put(store, b"x" * size)
    found = await find_object(store, WHO, "bucket", "key")
    assert {extent.volume for extent in found.record.extents} == {2}
    assert await read_all(store, found) == b"x" * size
    assert counter(await kv.get(volume_live_key(1))) == 0
    await audit(store)


async def test_a_part_and_a_part_list_whose_volume_was_sealed_are_written_again() -> None:
    store, kv = await hooked()
    upload = await begin(store)
    kv.before_commit(b"p", blobs_of(store).seal)
    claim = await part(store, upload, 1, b"bytes")
    kv.before_commit(b"o", blobs_of(store).seal)
    await multipart.complete_upload(store, WHO, "bucket", "key", upload, [claim])
    assert await content(store) == b"bytes"
    assert blobs_of(store).volume == 3
    await audit(store)


async def test_volumes_that_are_always_sealed_end_in_a_refusal_not_in_a_loop() -> None:
    store, kv = await hooked()
    for _ in range(commits.REWRITES_MAX + 1):
        kv.before_commit(b"o", blobs_of(store).seal)
    with pytest.raises(Overloaded):
        await put(store, b"never")
    await audit(store)


# One hot key.


async def test_64_overwrites_of_one_key_do_not_conflict_with_each_other() -> None:
    kv = BatchingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    await put(store, b"version 0")  # Opens the volume.
    batches = kv.batches
    written = await asyncio.gather(*(put(store, b"version %d" % n) for n in range(64)))
    assert kv.conflicts == 0
    assert kv.batches - batches <= 2
    newest = max(written, key=lambda one: one.order)
    assert len({one.order for one in written}) == 64
    assert (await find_object(store, WHO, "bucket", "key")).etag == newest.etag
    await audit(store)


async def test_puts_and_deletes_of_one_key_chain_in_any_mixture() -> None:
    kv = BatchingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    await asyncio.gather(
        *(
            delete_object(store, WHO, "bucket", "key") if n % 3 == 2 else put(store, b"version %d" % n)
            for n in range(60)
        )
    )
    assert kv.conflicts == 0
    await audit(store)


async def test_two_processes_that_overwrite_one_key_both_get_through() -> None:
    kv = BatchingKv()
    one = memory_store(kv=kv)
    await create_bucket(one, WHO, "bucket", region="")
    two = another_process(one)
    results = await asyncio.gather(*(put(store, b"from %d" % n) for n, store in enumerate([one, two] * 32)))
    assert len({written.order for written in results}) == 64
    await audit(one)


async def test_exactly_one_of_many_creations_wins() -> None:
    kv = BatchingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    results = await asyncio.gather(
        *(put(store, b"%d" % n, if_none_match="*") for n in range(20)), return_exceptions=True
    )
    won = [result for result in results if isinstance(result, Written)]
    assert len(won) == 1
    assert all(isinstance(result, ConditionFailed) for result in results if not isinstance(result, Written))
    await audit(store)


async def test_a_chain_of_compare_and_swaps_lets_each_base_win_once() -> None:
    kv = BatchingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    etag = (await put(store, b"base")).etag
    results = await asyncio.gather(
        *(put(store, b"%d" % n, if_match=etag) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, Written) for result in results) == 1
    assert sum(isinstance(result, ConditionFailed) for result in results) == 19
    await audit(store)


class FailingKv(BatchingKv):
    """The next commit of an object fails as if the committer had gone, whatever came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_next = 0

    async def commit(self, transaction: Transaction) -> None:
        if self.fail_next and any(key.startswith(b"o") for key in transaction.put):
            self.fail_next -= 1
            for _ in range(3):
                await asyncio.sleep(0)
            raise MetaUnavailable("the committer is away")
        await super().commit(transaction)


async def test_those_behind_a_failed_link_decide_again_and_get_through() -> None:
    kv = FailingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    kv.fail_next = 1
    results = await asyncio.gather(*(put(store, b"%d" % n) for n in range(10)), return_exceptions=True)
    assert [type(result) for result in results].count(MetaUnavailable) == 1
    assert sum(isinstance(result, Written) for result in results) == 9
    await audit(store)


async def test_a_refusal_decided_on_a_record_that_never_came_to_be_is_decided_again() -> None:
    kv = FailingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    kv.fail_next = 1
    results = await asyncio.gather(
        put(store, b"fails"), put(store, b"first", if_none_match="*"), return_exceptions=True
    )
    assert isinstance(results[0], MetaUnavailable)
    assert isinstance(results[1], Written)
    assert await content(store) == b"first"


async def test_a_delete_is_not_acknowledged_before_the_delete_it_relies_on() -> None:
    kv = FailingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    await put(store, b"there")
    gone = asyncio.create_task(delete_object(store, WHO, "bucket", "key"))
    for _ in range(2):
        await asyncio.sleep(0)
    again = asyncio.create_task(delete_object(store, WHO, "bucket", "key"))
    for _ in range(2):
        await asyncio.sleep(0)
    assert not gone.done()
    assert not again.done()
    await asyncio.gather(gone, again)
    with pytest.raises(NoSuchKey):
        await content(store)
    await audit(store)


async def test_a_cancelled_write_breaks_its_chain_and_nothing_else() -> None:
    kv = BatchingKv()
    store = memory_store(kv=kv)
    await create_bucket(store, WHO, "bucket", region="")
    first = asyncio.create_task(put(store, b"first"))
    for _ in range(2):
        await asyncio.sleep(0)
    second = asyncio.create_task(put(store, b"second"))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()
    assert await content(store) == b"second"
    await audit(store)


async def test_a_chain_is_bounded_and_forgotten_when_it_ends() -> None:
    kv = BatchingKv()
    chains = Chains(kv, length_max=5)

    async def one(n: int) -> None:
        tail = chains.tail(b"k")
        before = tail.value if tail is not None else await kv.get(b"k")
        value = b"%d" % n
        await chains.commit(b"k", value, Transaction(expect={b"k": before}, put={b"k": value}))

    results = await asyncio.gather(*(one(n) for n in range(8)), return_exceptions=True)
    assert [type(result) for result in results].count(Contended) == 3
    assert chains.tail(b"k") is None
    assert await kv.get(b"k") == b"4"


async def test_two_buckets_made_at_once_have_two_ids_and_one_name_has_one_owner() -> None:
    store, kv = await hooked()
    kv.before_commit(b"b", lambda: create_bucket(another_process(store), OTHER, "elsewhere", region=""))
    mine = await create_bucket(store, WHO, "here", region="")
    other = await find_bucket(store, OTHER, "elsewhere")
    assert mine.id != other.id
    kv.before_commit(b"b", lambda: create_bucket(another_process(store), OTHER, "wanted", region=""))
    with pytest.raises(BucketExists):
        await create_bucket(store, WHO, "wanted", region="")
    await audit(store)
