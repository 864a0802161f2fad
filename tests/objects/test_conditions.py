"""The tables of conditional requests: reads, copy sources, writes, Complete, deletes."""

import pytest

from objstore.errors import (
    ConditionalConflict,
    ConditionFailed,
    NoSuchKey,
    NotImplementedYet,
    NotModified,
    StoreError,
)
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.conditions import etag_in
from objstore.objects.copies import Source, copy_object
from objstore.objects.multipart import Claimed
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About, Conditions
from objstore.objects.writes import Doomed, delete_object, delete_objects, put_object
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock, MemoryBody, memory_store, principal

WHO = principal()
NOW_S = 1_700_000_000
ETAG = "5d41402abc4b2a76b9719d911017c592"  # MD5 of b"hello".


async def with_object() -> Store:
    store = memory_store(clock=FakeClock(NOW_S * 1_000_000 + 999_999))
    await create_bucket(store, WHO, "bucket", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"hello"))
    return store


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ("*", True), (ETAG, True), (f'"{ETAG}"', True), (f'W/"{ETAG}"', True), (f'"x", "{ETAG}"', True),
        ('"x"', False), ("", False), (ETAG[:-1], False), (f'"{ETAG}-1"', False),
    ],
)  # fmt: skip
def test_an_etag_is_recognised_quoted_or_not_and_in_lists(header: str, matches: bool) -> None:
    assert etag_in(header, ETAG) is matches


READS: list[tuple[Conditions, type[StoreError] | None, str]] = [
    (Conditions(if_match=ETAG), None, ""),
    (Conditions(if_match="x"), ConditionFailed, "If-Match"),
    (Conditions(if_unmodified_since=NOW_S), None, ""),
    (Conditions(if_unmodified_since=NOW_S - 1), ConditionFailed, "If-Unmodified-Since"),
    (Conditions(if_match=ETAG, if_unmodified_since=NOW_S - 1), None, ""),
    (Conditions(if_match="x", if_unmodified_since=NOW_S), ConditionFailed, "If-Match"),
    (Conditions(if_none_match="x"), None, ""),
    (Conditions(if_none_match=ETAG), NotModified, "If-None-Match"),
    (Conditions(if_none_match="*"), NotModified, "If-None-Match"),
    (Conditions(if_modified_since=NOW_S - 1), None, ""),
    (Conditions(if_modified_since=NOW_S), NotModified, "If-Modified-Since"),
    (Conditions(if_modified_since=NOW_S + 10_000), None, ""),
    (Conditions(if_none_match="x", if_modified_since=NOW_S), None, ""),
    (Conditions(if_match=ETAG, if_none_match=ETAG), NotModified, "If-None-Match"),
]


@pytest.mark.parametrize(("conditions", "error", "name"), READS)
async def test_a_conditional_read_is_decided_by_the_table(
    conditions: Conditions, error: type[StoreError] | None, name: str
) -> None:
    store = await with_object()
    if error is None:
        assert (await find_object(store, WHO, "bucket", "key", conditions=conditions)).etag == ETAG
        return
    with pytest.raises(error) as caught:
        await find_object(store, WHO, "bucket", "key", conditions=conditions)
    if isinstance(caught.value, ConditionFailed):
        assert caught.value.condition == name
    else:
        assert isinstance(caught.value, NotModified)
        assert (caught.value.etag, caught.value.order // 1_000_000) == (ETAG, NOW_S)


@pytest.mark.parametrize(("conditions", "error", "name"), READS)
async def test_a_copy_source_fails_as_a_failed_condition_whichever_it_was(
    conditions: Conditions, error: type[StoreError] | None, name: str
) -> None:
    store = await with_object()
    source = Source(bucket="bucket", key="key", conditions=conditions)
    work = copy_object(store, WHO, source, "bucket", "copy", about=None)
    if error is None:
        assert (await work).etag == ETAG
        return
    with pytest.raises(ConditionFailed) as caught:
        await work
    assert caught.value.condition == f"x-amz-copy-source-{name}"


WRITES: list[tuple[bool, Conditions, type[StoreError] | None]] = [
    # Is there an object? The conditions. The outcome.
    (False, Conditions(if_none_match="*"), None),
    (True, Conditions(if_none_match="*"), ConditionFailed),
    (False, Conditions(if_none_match=ETAG), None),
    (True, Conditions(if_none_match=ETAG), ConditionFailed),
    (True, Conditions(if_none_match="x"), None),
    (True, Conditions(if_match=ETAG), None),
    (True, Conditions(if_match="*"), None),
    (True, Conditions(if_match="x"), ConditionFailed),
    (False, Conditions(if_match=ETAG), NoSuchKey),
    (False, Conditions(if_match="*"), NoSuchKey),
    (True, Conditions(if_match=ETAG, if_none_match="*"), NotImplementedYet),
    (False, Conditions(if_match=ETAG, if_none_match="*"), NotImplementedYet),
]


@pytest.mark.parametrize("verb", ["put", "complete", "copy", "copy onto itself"])
@pytest.mark.parametrize(("there", "conditions", "error"), WRITES)
async def test_a_conditional_write_is_decided_by_the_table(
    verb: str, there: bool, conditions: Conditions, error: type[StoreError] | None
) -> None:
    store = await with_object()
    key = "key" if there else "absent"
    if verb == "copy onto itself" and not there:
        return
    if verb == "put":
        work = put_object(store, WHO, "bucket", key, About(), MemoryBody(b"new"), conditions)
    elif verb.startswith("copy"):
        other = "key" if verb == "copy onto itself" else "source"
        if other == "source":
            await put_object(store, WHO, "bucket", "source", About(), MemoryBody(b"new"))
        work = copy_object(
            store,
            WHO,
            Source(bucket="bucket", key=other),
            "bucket",
            key,
            about=About(content_type="a/b"),
            conditions=conditions,
        )
    else:
        upload, _ = await multipart.create_upload(
            store, WHO, "bucket", key, About(), checksum_algorithm="", checksum_type=""
        )
        part = await multipart.put_part(store, WHO, "bucket", key, upload, 1, MemoryBody(b"new"))
        claims = [Claimed(number=1, etag=part.etag)]
        work = multipart.complete_upload(store, WHO, "bucket", key, upload, claims, conditions=conditions)
    if error is None:
        written = await work
        assert (await find_object(store, WHO, "bucket", key)).etag == written.etag
    else:
        with pytest.raises(error):
            await work
        if there:
            assert (await find_object(store, WHO, "bucket", key)).etag == ETAG
    await audit(store)


@pytest.mark.parametrize(
    ("before", "during", "conditions", "error"),
    [
        # An object before the upload began? What happened to it during the upload?
        (False, "put", Conditions(if_none_match="*"), ConditionFailed),
        (True, "put", Conditions(if_match=ETAG), ConditionalConflict),  # Identical content.
        (True, "put other", Conditions(if_match=ETAG), ConditionalConflict),
        (False, "put", Conditions(if_match=ETAG), ConditionalConflict),
        (True, "delete and put", Conditions(if_match=ETAG), ConditionalConflict),
        (True, "delete", Conditions(if_none_match="*"), ConditionalConflict),
        (True, "delete", Conditions(if_match=ETAG), NoSuchKey),
        (True, "nothing", Conditions(if_match=ETAG), None),
        (True, "nothing", Conditions(if_match="x"), ConditionFailed),
        (True, "put other", Conditions(), None),
    ],
)
async def test_what_happened_during_the_upload_decides_a_conditional_complete(
    before: bool, during: str, conditions: Conditions, error: type[StoreError] | None
) -> None:
    store = await with_object()
    clock = store.clock
    assert isinstance(clock, FakeClock)
    clock.now -= 1_000_000  # It goes back, which no order does.
    if not before:
        await delete_object(store, WHO, "bucket", "key")
    upload, _ = await multipart.create_upload(
        store, WHO, "bucket", "key", About(), checksum_algorithm="", checksum_type=""
    )
    part = await multipart.put_part(store, WHO, "bucket", "key", upload, 1, MemoryBody(b"part"))
    clock.now += 1
    if "delete" in during:
        await delete_object(store, WHO, "bucket", "key")
    if "put" in during:
        data = b"other" if "other" in during else b"hello"
        await put_object(store, WHO, "bucket", "key", About(), MemoryBody(data))
    claims = [Claimed(number=1, etag=part.etag)]
    work = multipart.complete_upload(store, WHO, "bucket", "key", upload, claims, conditions=conditions)
    if error is None:
        await work
    else:
        with pytest.raises(error):
            await work
        await multipart.abort_upload(store, WHO, "bucket", "key", upload)
    await audit(store)


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        (Conditions(), True),
        (Conditions(if_match=ETAG), True),
        (Conditions(if_match="*"), True),
        (Conditions(if_match="x"), False),
        (Conditions(if_match_size=5), True),
        (Conditions(if_match_size=0), False),
        (Conditions(if_match_last_modified=NOW_S), True),
        (Conditions(if_match_last_modified=NOW_S - 1), False),
        (Conditions(if_match=ETAG, if_match_size=6), False),
    ],
)
async def test_a_conditional_delete_is_decided_by_the_table(conditions: Conditions, holds: bool) -> None:
    store = await with_object()
    await delete_object(store, WHO, "bucket", "absent", conditions=conditions)
    outcomes = await delete_objects(
        store,
        WHO,
        "bucket",
        [Doomed(key="absent", conditions=conditions), Doomed(key="key", conditions=conditions)],
    )
    assert outcomes[0] is None
    if holds:
        assert outcomes[1] is None
        with pytest.raises(NoSuchKey):
            await find_object(store, WHO, "bucket", "key")
    else:
        assert isinstance(outcomes[1], ConditionFailed)
        with pytest.raises(ConditionFailed):
            await delete_object(store, WHO, "bucket", "key", conditions=conditions)
    await audit(store)


async def test_a_write_that_is_refused_already_does_not_read_its_body() -> None:
    store = await with_object()

    class Unread(MemoryBody):
        def __aiter__(self):  # type: ignore[no-untyped-def]
            raise AssertionError("the body was read")

    for conditions in (Conditions(if_none_match="*"), Conditions(if_match="x")):
        with pytest.raises(ConditionFailed):
            await put_object(store, WHO, "bucket", "key", About(), Unread(b"x"), conditions)
