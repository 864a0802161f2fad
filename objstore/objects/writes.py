"""PutObject, DeleteObject, DeleteObjects."""

import asyncio
from dataclasses import dataclass
from typing import Final

from objstore.errors import BadArgument, MetadataTooLarge, NoSuchVersion, StoreError
from objstore.meta.schema import FORMAT, Checksum, Extra, ObjectRecord, decode, encode
from objstore.objects.bodies import Kept, keep_body
from objstore.objects.buckets import read_bucket
from objstore.objects.commits import (
    Change,
    Check,
    Place,
    change_object,
    choose_class,
    leave_room,
    open_place,
    reserve_room,
)
from objstore.objects.conditions import check_delete, check_write
from objstore.objects.store import Store
from objstore.objects.values import (
    NO_CONDITIONS,
    About,
    Body,
    Conditions,
    Digests,
    Principal,
    Written,
    etag_text,
)

METADATA_SIZE_MAX: Final = 2_048  # Bytes of names and values, S3's limit.
HEADERS_SIZE_MAX: Final = 1_024  # Bytes of content type and system headers: records stay below 4 KiB.
DELETES_MAX: Final = 1_000  # Keys of one DeleteObjects.
DELETES_AT_ONCE: Final = 100


def _text_size(texts: dict[str, str]) -> int:
    return sum(len(name.encode()) + len(value.encode()) for name, value in texts.items())


def extra_of(about: About) -> Extra | None:
    """What the record keeps of a client's words. Raises: MetadataTooLarge."""
    if not about.metadata and not about.headers:
        if not about.content_type:
            return None
        if len(about.content_type) <= HEADERS_SIZE_MAX // 4:
            return Extra(content_type=about.content_type)
    size = _text_size(about.metadata)
    if size > METADATA_SIZE_MAX:
        raise MetadataTooLarge(size=size, maximum=METADATA_SIZE_MAX)
    size = _text_size(about.headers) + len(about.content_type.encode())
    if size > HEADERS_SIZE_MAX:
        raise MetadataTooLarge(size=size, maximum=HEADERS_SIZE_MAX)
    return Extra(content_type=about.content_type, headers=about.headers, metadata=about.metadata)


def paged(extra: Extra | None, kept: Kept) -> Extra:
    """The extra with the count of the extents' pages."""
    base = extra or Extra()
    return Extra(
        content_type=base.content_type,
        headers=base.headers,
        metadata=base.metadata,
        blob=kept.blob,
        pages=len(kept.pages or ()),
    )


def owner_of(who: Principal, place: Place) -> str:
    return "" if who.user == place.bucket.owner else who.user


def write_check(conditions: Conditions, key: str) -> Check | None:
    if conditions.if_match is None and conditions.if_none_match is None:
        return None

    def check(old: ObjectRecord | None, vanished: bool) -> None:
        check_write(conditions, old, key, vanished=vanished)

    return check


async def check_early(store: Store, place: Place, check: Check | None) -> None:
    """Refuse before the body is read what is refused already. The commit decides again."""
    if check is not None:
        value = await store.kv.get(place.home)
        check(None if value is None else decode(value, ObjectRecord), False)


async def publish_object(
    store: Store,
    who: Principal,
    place: Place,
    kept: Kept,
    *,
    etag: bytes,
    checksum: Checksum | None,
    extra: Extra | None,
    check: Check | None,
) -> Written:
    packed = checksum.pack() if checksum is not None else b""
    owner = owner_of(who, place)

    def build(old: ObjectRecord | None, order: int) -> Change:
        words = paged(extra, kept) if kept.pages else extra
        return Change(
            ObjectRecord(FORMAT, order, b"", kept.size, etag, packed, kept.inline, words, owner),
            kept,
            requests=1,
        )

    record, _ = await change_object(store, who, place, check, build)
    assert record is not None
    return Written(etag=etag_text(etag), order=record.order, checksum=checksum, size=record.size)


async def put_object(
    store: Store,
    who: Principal,
    bucket: str,
    key: str,
    about: About,
    body: Body,
    conditions: Conditions = NO_CONDITIONS,
) -> Written:
    """Raises: NoSuchBucket, Denied, KeyTooLong, TooLarge, MetadataTooLarge, ConditionFailed,
    ConditionalConflict, NoSuchKey (If-Match on nothing), BadStorageClass, AccountClosed, QuotaExceeded,
    Unavailable, and whatever the body raises."""
    place = await open_place(store, who, bucket, key, stores=True)
    extra = extra_of(about)
    choose_class(store, place, extra)
    check = write_check(conditions, key)
    if check is not None:
        await check_early(store, place, check)
    await reserve_room(store, place, body.size, extra)
    owner = owner_of(who, place)
    began_us = store.clock.now_us()

    def describe(digests: Digests) -> bytes:
        packed = digests.checksum.pack() if digests.checksum is not None else b""
        return encode(
            ObjectRecord(FORMAT, began_us, b"", digests.size, digests.md5, packed, [], extra, owner)
        )

    try:
        with store.carrier:
            kept, digests = await keep_body(
                store, place.home, body, describe, policy=place.policy, may_carry=True
            )
            written = await publish_object(
                store, who, place, kept, etag=digests.md5, checksum=digests.checksum, extra=extra, check=check
            )
    finally:
        await leave_room(store, place)
    if kept.carried:
        store.carrier.took(store, place.home)
    return written


def check_version(key: str, version: str | None) -> None:
    """Only null versions exist yet. Raises: NoSuchVersion, BadArgument (malformed)."""
    if version is None or version == "null":
        return
    if len(version) == 32 and all(c in "0123456789abcdef" for c in version):
        raise NoSuchVersion(key, version)
    raise BadArgument("Invalid version id specified", name="versionId", value=version)


def _gone(old: ObjectRecord | None, order: int) -> Change:
    return Change(None)


async def delete_object(
    store: Store,
    who: Principal,
    bucket: str,
    key: str,
    *,
    version: str | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> None:
    """An absent key is not an error. version: None or "null" (others: NoSuchVersion / BadArgument)."""
    place = await open_place(store, who, bucket, key)
    await _delete(store, who, place, version, conditions)


async def _delete(
    store: Store, who: Principal, place: Place, version: str | None, conditions: Conditions
) -> None:
    check_version(place.key, version)
    check: Check | None = None
    if conditions is not NO_CONDITIONS:

        def check_old(old: ObjectRecord | None, vanished: bool) -> None:
            if old is not None:
                check_delete(conditions, old)

        check = check_old
    await change_object(store, who, place, check, _gone, absent_is_done=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    key: str
    version: str | None = None
    conditions: Conditions = NO_CONDITIONS


async def delete_objects(
    store: Store, who: Principal, bucket: str, doomed: list[Doomed]
) -> list[StoreError | None]:
    """One outcome per entry, in order; at most 1,000 entries.

    Raises: NoSuchBucket, Denied: of the bucket as a whole; BadArgument (too many).
    """
    if len(doomed) > DELETES_MAX:
        raise BadArgument(f"at most {DELETES_MAX} keys", name="Delete", value=str(len(doomed)))
    await read_bucket(store, who, bucket)

    async def one(entry: Doomed) -> StoreError | None:
        try:
            place = await open_place(store, who, bucket, entry.key)
            await _delete(store, who, place, entry.version, entry.conditions)
        except StoreError as error:
            return error
        return None

    outcomes: list[StoreError | None] = []
    for at in range(0, len(doomed), DELETES_AT_ONCE):
        outcomes += await asyncio.gather(*(one(entry) for entry in doomed[at : at + DELETES_AT_ONCE]))
    return outcomes
