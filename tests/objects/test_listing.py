"""Listing against a naive reference: byte order, delimiters of any length, markers anywhere, and its cost."""

import asyncio
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from objstore.errors import Denied, NoSuchBucket
from objstore.meta.kv import DictKv
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.listing import Page, list_objects
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import put_object
from tests.objects.fakes import FakeClock, MemoryBody, memory_store, principal
from tests.objects.test_model import naive_list

WHO = principal()

# Letters whose UTF-8 order differs from UTF-16's, NUL, what lies next to it, the delimiters themselves.
letters = st.sampled_from(["/", "a", "b", "\0", "\x01", "ä", "\uffff", "\U0001f600", "ÿ", "-"])
names = st.text(letters, min_size=1, max_size=6)
fragments = st.one_of(st.just(""), st.text(letters, max_size=3))


async def filled(keys: list[str], kv: DictKv | None = None) -> Store:
    store = memory_store(kv=kv, clock=FakeClock())
    for bucket in ("before", "bucket", "behind"):
        await create_bucket(store, WHO, bucket, region="")
    for key in keys:
        await put_object(store, WHO, "bucket", key, About(), MemoryBody(b""))
    await put_object(store, WHO, "before", "zzz", About(), MemoryBody(b""))
    await put_object(store, WHO, "behind", "a", About(), MemoryBody(b""))
    return store


async def page(store: Store, **wanted: Any) -> Page:
    arguments = {"prefix": "", "delimiter": "", "after": "", "limit": 1_000, **wanted}
    return await list_objects(store, WHO, "bucket", **arguments)


def shown(one: Page) -> tuple[list[str], list[str], bool]:
    return one.names, one.prefixes, one.truncated


@settings(max_examples=300, deadline=None, print_blob=True)
@given(
    keys=st.lists(names, max_size=12, unique=True),
    prefix=fragments,
    delimiter=fragments,
    after=fragments,
    limit=st.integers(0, 5),
)
@example(keys=["a/b", "a/c"], prefix="", delimiter="/", after="a/b", limit=5)
@example(keys=["a/b", "a/c"], prefix="", delimiter="/", after="a/", limit=5)
@example(keys=["aa/b", "aa/c"], prefix="a", delimiter="a", after="aa", limit=5)
@example(keys=["a\0", "a", "a\0\0"], prefix="a", delimiter="\0", after="a", limit=1)
def test_a_page_is_what_the_reference_lists(
    keys: list[str], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    async def check() -> None:
        store = await filled(keys)
        one = await page(store, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
        assert shown(one) == naive_list(keys, prefix, delimiter, after, limit)

    asyncio.run(check())


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    keys=st.lists(names, max_size=15, unique=True),
    prefix=fragments,
    delimiter=fragments,
    limit=st.integers(1, 4),
)
def test_pages_one_after_another_are_the_whole_list(
    keys: list[str], prefix: str, delimiter: str, limit: int
) -> None:
    async def check() -> None:
        store = await filled(keys)
        after, objects, prefixes = "", [], []
        for _ in range(len(keys) + 1):
            one = await page(store, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
            objects += one.names
            prefixes += one.prefixes
            if not one.truncated:
                assert one.next == ""
                break
            after = one.next
        assert (objects, prefixes, False) == naive_list(keys, prefix, delimiter, "", 1_000)

    asyncio.run(check())


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    keys=st.lists(names, max_size=8),
    prefix=fragments,
    delimiter=fragments,
    limit=st.integers(1, 3),
)
def test_pages_of_uploads_are_in_order_of_key_then_of_initiation(
    keys: list[str], prefix: str, delimiter: str, limit: int
) -> None:
    async def check() -> None:
        clock = FakeClock()
        store = memory_store(clock=clock)
        await create_bucket(store, WHO, "bucket", region="")
        begun = []
        for key in keys:
            clock.now += 1
            upload, _ = await multipart.create_upload(
                store, WHO, "bucket", key, About(), checksum_algorithm="", checksum_type=""
            )
            begun.append((key.encode(), upload))
        folded_names, folded, _ = naive_list(list(set(keys)), prefix, delimiter, "", 1_000)
        expected = [(key.decode(), upload) for key, upload in sorted(begun) if key.decode() in folded_names]
        seen, prefixes = [], []
        after_key = after_upload = ""
        for _ in range(len(keys) + 1):
            one = await multipart.list_uploads(
                store,
                WHO,
                "bucket",
                prefix=prefix,
                delimiter=delimiter,
                after_key=after_key,
                after_upload=after_upload,
                limit=limit,
            )
            assert len(one.uploads) + len(one.prefixes) <= limit
            seen += [(key, upload) for key, upload, _ in one.uploads]
            prefixes += one.prefixes
            if not one.truncated:
                break
            after_key, after_upload = one.next_key, one.next_upload
        assert seen == expected
        assert prefixes == folded

    asyncio.run(check())


async def test_a_key_marker_alone_skips_every_upload_of_that_key() -> None:
    store = await filled([])
    for key in ("a", "a", "a\0", "b"):
        await multipart.create_upload(
            store, WHO, "bucket", key, About(), checksum_algorithm="", checksum_type=""
        )
    one = await multipart.list_uploads(
        store, WHO, "bucket", prefix="", delimiter="", after_key="a", after_upload="", limit=10
    )
    assert [key for key, _, _ in one.uploads] == ["a\0", "b"]


class CountingKv(DictKv):
    """Counts scans and the pairs they return: what a page costs."""

    def __init__(self) -> None:
        super().__init__()
        self.scans = 0
        self.pairs = 0

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        found = await super().scan(start, end, limit, reverse=reverse)
        self.scans += 1
        self.pairs += len(found)
        return found


async def test_a_page_costs_a_page_and_a_common_prefix_costs_a_seek() -> None:
    kv = CountingKv()
    store = await filled([f"deep/{n:05}" for n in range(3_000)] + ["other"], kv)
    kv.scans = kv.pairs = 0
    one = await page(store, delimiter="/")
    assert shown(one) == (["other"], ["deep/"], False)
    assert kv.scans <= 2
    assert kv.pairs <= 5
    kv.scans = kv.pairs = 0
    one = await page(store, delimiter="/", limit=1)
    assert shown(one) == ([], ["deep/"], True)
    assert kv.pairs <= 3
    kv.scans = kv.pairs = 0
    one = await page(store, prefix="deep/", delimiter="/", after="deep/01000", limit=1_000)
    assert len(one.names) == 1_000
    assert one.next == "deep/02000"
    assert kv.scans <= 8
    assert kv.pairs <= 1_001
    kv.scans = kv.pairs = 0
    one = await page(store, limit=100)
    assert (kv.scans, kv.pairs) == (1, 101)


async def test_a_listing_knows_its_bucket_and_its_tenant() -> None:
    store = await filled(["a"])
    with pytest.raises(NoSuchBucket):
        await list_objects(store, WHO, "none", prefix="", delimiter="", after="", limit=1)
    with pytest.raises(Denied):
        await list_objects(
            store, principal("other", "olaf"), "bucket", prefix="", delimiter="", after="", limit=1
        )
