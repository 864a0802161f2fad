"""What is handed back is what was stored: every key, all metadata, every byte; never two versions mixed."""

import hashlib

import pytest

from objstore.errors import ConditionFailed, Denied, NoSuchKey
from objstore.meta.kv import Transaction
from objstore.meta.schema import tenant_bucket_key
from objstore.objects import exports as exports_module
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.exports import Exports
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import delete_object, put_object
from tests.objects.fakes import MemoryBody, memory_store, principal

WHO = principal()
MIB = 1024 * 1024


async def whole(exports: Exports, key: str, order: int) -> bytes:
    body = b""
    while piece := await exports.piece("default", "box", key, order, first=len(body)):
        body += piece
    return body


async def a_store() -> Store:
    store = memory_store()
    await create_bucket(store, WHO, "box", region="here")
    return store


async def test_keys_come_in_pages_in_the_order_of_their_bytes_with_all_their_metadata() -> None:
    store = await a_store()
    keys = ["../up", "a", "a\0b", "a/b", "É", "Z" * 1024, "\U0001f600"]
    about = About(content_type="text/x", headers={"cache-control": "no-cache"}, metadata={"colour": "red"})
    for key in keys:
        await put_object(store, WHO, "box", key, about, MemoryBody(key.encode()))
    exports = Exports(store)
    found: list[str] = []
    after = b""
    while rows := await exports.objects("default", "box", after=after, limit=2):
        for key, record in rows:
            assert record.extra is not None
            assert (record.extra.content_type, record.extra.metadata) == ("text/x", {"colour": "red"})
            assert await whole(exports, key, record.order) == key.encode()
        found += [key for key, _ in rows]
        after = rows[-1][0].encode()
    assert found == sorted(keys, key=str.encode)


async def test_a_page_of_buckets_is_full_although_some_were_deleted_while_it_was_read() -> None:
    """Else whoever reads on takes it for the last one, and the buckets behind it are not handed back."""
    store = await a_store()
    for name in ("crate", "drum"):
        await create_bucket(store, WHO, name, region="here")
    gone = {tenant_bucket_key("default", name): b"" for name in ("a-first", "a-second", "case")}
    await store.kv.commit(Transaction(put=gone))  # As a look sees it that was begun before they went.
    exports = Exports(store)
    assert [one.name for one in await exports.buckets("default", after="", limit=2)] == ["box", "crate"]
    assert [one.name for one in await exports.buckets("default", after="crate", limit=2)] == ["drum"]


async def test_a_body_comes_in_pieces_and_never_from_two_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports_module, "PIECE_SIZE_MAX", 100_000)
    store = await a_store()
    body = bytes(range(256)) * 1_200
    await put_object(store, WHO, "box", "key", About(), MemoryBody(body))
    exports = Exports(store)
    record = await exports.find("default", "box", "key")
    assert len(await exports.piece("default", "box", "key", record.order, first=0)) == 100_000
    assert await whole(exports, "key", record.order) == body
    await put_object(store, WHO, "box", "key", About(), MemoryBody(b"another"))
    with pytest.raises(ConditionFailed, match="order"):
        await exports.piece("default", "box", "key", record.order, first=100_000)
    await delete_object(store, WHO, "box", "key")
    with pytest.raises(NoSuchKey):
        await exports.piece("default", "box", "key", record.order, first=0)


async def test_an_assembled_object_has_its_parts_and_their_checksums() -> None:
    store = await a_store()
    upload, _ = await multipart.create_upload(
        store, WHO, "box", "key", About(), checksum_algorithm="", checksum_type=""
    )
    bodies = [bytes([number]) * (5 * MIB) for number in range(2)] + [b"the last"]
    claims = []
    for number, body in enumerate(bodies, 1):
        written = await multipart.put_part(store, WHO, "box", "key", upload, number, MemoryBody(body))
        claims.append(multipart.Claimed(number=number, etag=written.etag))
    await multipart.complete_upload(store, WHO, "box", "key", upload, claims)
    exports = Exports(store)
    record = await exports.find("default", "box", "key")
    parts, following = await exports.parts("default", "box", "key", record.order, page=0)
    assert following is None
    assert [(part.number, part.size) for part in parts] == [(1, 5 * MIB), (2, 5 * MIB), (3, 8)]
    assert [part.etag for part in parts] == [hashlib.md5(body).digest() for body in bodies]
    assert await whole(exports, "key", record.order) == b"".join(bodies)


async def test_buckets_say_what_they_hold_and_another_tenants_are_not_reached() -> None:
    store = await a_store()
    other = principal("other", "someone")
    await create_bucket(store, other, "theirs", region="here")
    await put_object(store, WHO, "box", "key", About(), MemoryBody(b"12345"))
    exports = Exports(store)
    (holding,) = await exports.buckets("default", after="", limit=10)
    assert (holding.name, holding.objects, holding.size, holding.uploads) == ("box", 1, 5, 0)
    assert await exports.buckets("default", after="box", limit=10) == []
    with pytest.raises(Denied):
        await exports.objects("default", "theirs", after=b"", limit=10)
    with pytest.raises(Denied):
        await exports.find("default", "theirs", "key")
