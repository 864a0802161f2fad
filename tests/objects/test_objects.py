"""Put, get, delete and their limits, over fake blobs."""

import pytest

from objstore.errors import KeyTooLong, NoSuchBucket, NoSuchKey
from objstore.objects.buckets import create_bucket
from objstore.objects.reads import find_object
from objstore.objects.values import About
from objstore.objects.writes import delete_object, put_object
from tests.objects.fakes import MemoryBody, memory_store, principal, read_all

WHO = principal()


async def test_what_was_put_is_read_back_until_it_is_deleted() -> None:
    store = memory_store()
    await create_bucket(store, WHO, "photos", region="")
    written = await put_object(store, WHO, "photos", "a.jpg", About(), MemoryBody(b"hello"))
    assert written.etag == "5d41402abc4b2a76b9719d911017c592"
    found = await find_object(store, WHO, "photos", "a.jpg")
    assert await read_all(store, found) == b"hello"
    await delete_object(store, WHO, "photos", "a.jpg")
    with pytest.raises(NoSuchKey):
        await find_object(store, WHO, "photos", "a.jpg")


async def test_a_key_has_at_most_1024_bytes_and_a_bucket_must_exist() -> None:
    store = memory_store()
    with pytest.raises(NoSuchBucket):
        await put_object(store, WHO, "photos", "a", About(), MemoryBody(b""))
    await create_bucket(store, WHO, "photos", region="")
    await put_object(store, WHO, "photos", "ü" * 512, About(), MemoryBody(b""))
    with pytest.raises(KeyTooLong):
        await put_object(store, WHO, "photos", "ü" * 512 + "a", About(), MemoryBody(b""))
