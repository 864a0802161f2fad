"""CopyObject and UploadPartCopy: bytes are copied, never shared: every extent has exactly one home.

A copy onto itself changes the record only. What is copied is verified as it is read, so the source's plain
MD5 and full-object checksum hold for the copy too; a multipart ETag or composite checksum does not, and those
are computed anew (as S3 does it: the copy of a multipart object has a plain ETag).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from objstore.errors import BadArgument, BadRequest, Contended, CopyToSelf, NoSuchKey
from objstore.meta.schema import FORMAT, Checksum, Extra, ObjectRecord, PartRecord, encode, part_key
from objstore.objects import checksums
from objstore.objects.bodies import PUT_SIZE_MAX, keep_body
from objstore.objects.commits import (
    Change,
    Check,
    Place,
    change_object,
    choose_class,
    leave_room,
    open_place,
    reserve_part,
    reserve_room,
)
from objstore.objects.conditions import COPY_SOURCE
from objstore.objects.multipart import UPLOAD_ID_SIZE, check_part_number, open_upload, publish_part
from objstore.objects.placing import storage_class_of, with_class
from objstore.objects.reads import find_object, read, read_small
from objstore.objects.store import Store
from objstore.objects.values import (
    NO_CONDITIONS,
    About,
    Buffer,
    Conditions,
    Digests,
    Found,
    Principal,
    Written,
    etag_text,
)
from objstore.objects.writes import check_early, extra_of, owner_of, publish_object, write_check

HASH_IN_THREAD_SIZE: Final = 256 * 1024  # Bytes: from here on hashing would hold up the event loop.
MD5_SIZE: Final = 16
ATTEMPTS_MAX: Final = 8  # Times that a checksum is computed anew because the object was overwritten.


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    bucket: str
    key: str  # Decoded exactly once.
    version: str | None = None
    conditions: Conditions = NO_CONDITIONS  # All four fail as ConditionFailed("x-amz-copy-source-If-...").


class _Copied:
    """A Body (values.py) made of a found object's bytes."""

    def __init__(self, store: Store, found: Found, *, md5: bytes | None, checksum: Checksum | str) -> None:
        """md5, checksum: what is known already; otherwise the algorithm to compute."""
        self.size: int | None = found.length
        self._store = store
        self._found = found
        self._md5 = md5
        self._checksum = checksum
        self._hashers: list[checksums.Hasher] = []
        self._md5_hasher: checksums.Hasher | None = None
        self._checksum_hasher: checksums.Hasher | None = None
        if md5 is None:
            self._md5_hasher = checksums.md5()
            self._hashers.append(self._md5_hasher)
        if isinstance(checksum, str):
            self._checksum_hasher = checksums.hasher(checksum)
            self._hashers.append(self._checksum_hasher)

    def __aiter__(self) -> AsyncIterator[Buffer]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[Buffer]:
        small = await read_small(self._store, self._found)
        if small is not None:
            if len(small):
                self._hash([small])
                yield small
            return
        source: Any = read(self._store, self._found)
        async with aclosing(source):
            async for buffers in source:
                if self._hashers:
                    if sum(map(len, buffers)) < HASH_IN_THREAD_SIZE:
                        self._hash(buffers)
                    else:
                        await asyncio.to_thread(self._hash, buffers)
                for buffer in buffers:
                    yield buffer

    def _hash(self, buffers: list[Any]) -> None:
        for hasher in self._hashers:
            for buffer in buffers:
                hasher.update(buffer)

    async def digests(self) -> Digests:
        md5 = self._md5
        if self._md5_hasher is not None:
            md5 = self._md5_hasher.digest()
        assert md5 is not None
        checksum = self._checksum
        if isinstance(checksum, str):
            assert self._checksum_hasher is not None
            checksum = Checksum(checksum, "FULL_OBJECT", self._checksum_hasher.digest())
        return Digests(self._found.length, md5, checksum)


def _body_of(store: Store, found: Found, checksum_algorithm: str) -> _Copied:
    """The bytes, with as much of their digests as the source's record tells already."""
    record = found.record
    whole = found.length == record.size
    md5 = record.etag if whole and len(record.etag) == MD5_SIZE else None
    known = Checksum.unpack(record.checksum)
    wanted = checksum_algorithm or (known.algorithm if known is not None else checksums.DEFAULT)
    if whole and known is not None and known.algorithm == wanted and known.type == "FULL_OBJECT":
        return _Copied(store, found, md5=md5, checksum=known)
    return _Copied(store, found, md5=md5, checksum=wanted)


async def _find_source(store: Store, who: Principal, source: Source) -> Found:
    """The version to copy, authorised as any read is. Raises: what find_object raises."""
    return await find_object(
        store,
        who,
        source.bucket,
        source.key,
        version=source.version,
        conditions=source.conditions,
        condition_prefix=COPY_SOURCE,
    )


async def copy_object(
    store: Store,
    who: Principal,
    source: Source,
    bucket: str,
    key: str,
    *,
    about: About | None,
    storage_class: str = "",
    checksum_algorithm: str = "",
    conditions: Conditions = NO_CONDITIONS,
) -> Written:
    """about None: COPY the source's metadata; otherwise REPLACE. The source is authorised like any read.

    Args:
        storage_class: of the copy, in either case; the source's is never taken over.

    Raises: BadStorageClass, CopyToSelf (onto itself without change), BadRequest (source over 5 GiB), and
    what reads and writes raise.
    """
    place = await open_place(store, who, bucket, key, stores=True)
    onto_itself = source.bucket == bucket and source.key == key
    if onto_itself and about is None and not storage_class:
        raise CopyToSelf("a copy onto itself that changes nothing")
    found = await _find_source(store, who, source)
    moves = onto_itself and storage_class_of(found.record.extra) != storage_class  # Its bytes, elsewhere.
    if onto_itself and about is None and not moves:
        raise CopyToSelf("a copy onto itself that changes nothing")
    if found.record.size > PUT_SIZE_MAX:
        raise BadRequest(
            "The specified copy source is larger than the maximum allowable size for a copy source: "
            f"{PUT_SIZE_MAX}"
        )
    extra = with_class(_words(found.record.extra) if about is None else extra_of(about), storage_class)
    choose_class(store, place, extra)
    check = write_check(conditions, key)
    await check_early(store, place, check)
    if onto_itself and not moves:
        return await _change_words(store, who, source, found, place, extra, checksum_algorithm, check)
    await reserve_room(store, place, found.length, extra)
    owner = owner_of(who, place)
    began_us = store.clock.now_us()

    def describe(digests: Digests) -> bytes:
        packed = digests.checksum.pack() if digests.checksum is not None else b""
        return encode(
            ObjectRecord(FORMAT, began_us, b"", digests.size, digests.md5, packed, [], extra, owner)
        )

    body = _body_of(store, found, checksum_algorithm)
    try:
        kept, digests = await keep_body(store, place.home, body, describe, policy=place.policy)
        return await publish_object(
            store, who, place, kept, etag=digests.md5, checksum=digests.checksum, extra=extra, check=check
        )
    finally:
        await leave_room(store, place)


def _words(extra: Extra | None) -> Extra | None:
    """What a client said of an object, without where its bytes are."""
    if extra is None or not (extra.content_type or extra.headers or extra.metadata):
        return None
    return Extra(content_type=extra.content_type, headers=extra.headers, metadata=extra.metadata)


class _OtherBytes(Exception):
    """The object was overwritten while its checksum was computed."""


async def _change_words(
    store: Store,
    who: Principal,
    source: Source,
    found: Found,
    place: Place,
    extra: Extra | None,
    checksum_algorithm: str,
    check: Check | None,
) -> Written:
    """A copy onto itself: another record of the same bytes, in the same place, with the same ETag."""
    words = extra or Extra()
    for _ in range(ATTEMPTS_MAX):
        old_checksum = Checksum.unpack(found.record.checksum)
        computed: Checksum | None = None
        if checksum_algorithm and (old_checksum is None or old_checksum.algorithm != checksum_algorithm):
            body = _Copied(store, found, md5=found.record.etag, checksum=checksum_algorithm)
            async for _buffer in body:
                pass
            computed = (await body.digests()).checksum
        of = found.record

        def check_same(
            old: ObjectRecord | None,
            vanished: bool,
            of: ObjectRecord = of,
            computed: Checksum | None = computed,
        ) -> None:
            if check is not None:
                check(old, vanished)
            if old is None:
                raise NoSuchKey(place.key)
            if computed is not None and (old.etag, old.size) != (of.etag, of.size):
                raise _OtherBytes

        def build(old: ObjectRecord | None, order: int, computed: Checksum | None = computed) -> Change:
            assert old is not None
            base = old.extra or Extra()
            new_extra = Extra(
                content_type=words.content_type,
                headers=words.headers,
                metadata=words.metadata,
                multipart=base.multipart,
                blob=base.blob,
                pages=base.pages,
                salvaged=base.salvaged,
            )
            packed = old.checksum if computed is None else computed.pack()
            record = msgspec.structs.replace(
                old, order=order, checksum=packed, extra=None if new_extra == Extra() else new_extra
            )
            return Change(record, drops_old=False, requests=1)

        try:
            record, _ = await change_object(store, who, place, check_same, build)
        except _OtherBytes:
            found = await _find_source(store, who, source)
            continue
        assert record is not None
        return Written(
            etag=etag_text(record.etag),
            order=record.order,
            checksum=Checksum.unpack(record.checksum),
            size=record.size,
        )
    raise Contended("the object kept being overwritten")


async def copy_part(
    store: Store,
    who: Principal,
    source: Source,
    byte_range: tuple[int, int] | None,
    bucket: str,
    key: str,
    upload: str,
    number: int,
) -> Written:
    """byte_range: (first, last), inclusive; beyond the source: BadArgument or BadRequest as S3 has it.

    Raises: NoSuchUpload, TooLarge, and what reads and parts raise.
    """
    check_part_number(number)
    place, name, value, record = await open_upload(store, who, bucket, key, upload, stores=True)
    found = await _find_source(store, who, source)
    if byte_range is not None:
        first, last = byte_range
        size = found.record.size
        if first >= size:
            raise BadRequest("The specified copy range is invalid for the source object size")
        if last >= size:
            raise BadArgument(
                f"Range specified is not valid for source object of size: {size}",
                name="x-amz-copy-source-range",
                value=f"bytes={first}-{last}",
            )
        found = msgspec.structs.replace(found, first=first, length=last - first + 1, ranged=True)
    body = _body_of(store, found, record.checksum_algorithm or checksums.DEFAULT)
    began_us = store.clock.now_us()

    def describe(digests: Digests) -> bytes:
        assert digests.checksum is not None
        return encode(
            PartRecord(
                order=began_us,
                size=digests.size,
                etag=digests.md5,
                checksum=digests.checksum.pack(),
                extents=[],
                home=name,
            )
        )

    home = part_key(name[-UPLOAD_ID_SIZE:], number)
    await reserve_part(store, place, home, found.length)
    try:
        kept, digests = await keep_body(store, home, body, describe, policy=place.policy)
        assert digests.checksum is not None
        order = await publish_part(
            store, who, place, name, value, record, number, kept, digests.md5, digests.checksum.pack()
        )
    finally:
        await leave_room(store, place)
    return Written(etag=digests.md5.hex(), order=order, checksum=digests.checksum, size=digests.size)
