"""The one commit behind every change of an object: decide on what was read, expect it all, or decide again.

    read the bucket and the object's record (or its newest commit under way in this process: chains.py)
    -> check the conditions -> build the new record
    -> commit: expects bucket, old record, volumes; puts the record and its pages; adds to the counters
    -> on Conflict: whatever changed is read again, and all is decided again, a bounded number of times

What an overwritten or deleted object leaves: its own extents leave the live bytes in this commit; parts and
pages are doomed by one key and swept later in bounded steps (doomed.py).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.errors import (
    BadArgument,
    Conflict,
    Contended,
    KeyTooLong,
    LimitReached,
    NoSuchBucket,
    Overloaded,
    Rejected,
    StoreError,
)
from objstore.extents import Extent
from objstore.meta.kv import Add, Transaction
from objstore.meta.schema import (
    BucketRecord,
    DoomedRecord,
    Extra,
    ObjectRecord,
    PartRecord,
    body_key,
    bucket_bytes_key,
    bucket_key,
    decode,
    doomed_key,
    encode,
    object_key,
)
from objstore.objects.accounting import (
    charge,
    counted,
    dated,
    key_of,
    marked,
    moment_of,
    open_account,
    open_key,
    padded,
)
from objstore.objects.bodies import Kept
from objstore.objects.buckets import read_bucket
from objstore.objects.carrying import is_carried
from objstore.objects.changes import REPLICATION, check_writable, note_change
from objstore.objects.ledger import live_adds, publish
from objstore.objects.placing import STORAGE_CLASS, policy_for, policy_of_bucket
from objstore.objects.reservations import Hold, is_limited, let_go, reserve
from objstore.objects.store import Store
from objstore.objects.values import Principal
from objstore.rental.terms import Account, KeyAccount, billed_bytes, quota_of

KEY_SIZE_MAX: Final = 1_024  # Bytes of UTF-8.
ATTEMPTS_MAX: Final = 64  # Decisions for one change; every lost round means that another commit won.
REWRITES_MAX: Final = 4  # Times that the bytes are written again because their volume was sealed.
PATIENT_ATTEMPTS: Final = 3  # Conflicts after which a loser waits a little, so that not all lose together.
WAIT_MAX_S: Final = 0.025


def key_bytes(key: str) -> bytes:
    """Raises: KeyTooLong, BadArgument (empty)."""
    raw = key.encode()
    if not 0 < len(raw) <= KEY_SIZE_MAX:
        if not raw:
            raise BadArgument("A key must be specified", name="Key")
        raise KeyTooLong(size=len(raw), maximum=KEY_SIZE_MAX)
    return raw


@dataclass(slots=True)
class Place:
    """Where an object is or will be: its bucket as last read, and its key."""

    bucket_name: str
    key: str
    raw_key: bytes
    bucket_key: bytes
    bucket_value: bytes
    bucket: BucketRecord
    home: bytes  # The o key.
    account: Account  # Of the bucket's tenant.
    policy: str = ""  # Under which its bytes are to lie.
    storage_class: str = ""
    hold: Hold | None = None  # Room that was reserved for the change.
    charged: KeyAccount | None = None  # The access key with limits that what is stored counts for.


async def open_place(store: Store, who: Principal, bucket: str, key: str, *, stores: bool = False) -> Place:
    """Where a change is to go.

    Args:
        stores: the change may make the tenant store more than it does.

    Raises: AccountClosed, BadName, NoSuchBucket, Denied, KeyTooLong, BadArgument (no key), BucketIsReplica,
    ReplicaTakenOver, ReplicaSessionOver.
    """
    raw = key_bytes(key)
    value, record = await read_bucket(store, who, bucket)
    policy = ""
    if record.settings is not None or who.mirror is not None:
        check_writable(bucket, record, who)
        policy = policy_of_bucket(record)
    account = await open_account(store, record.tenant)
    if stores:
        account.check_stores()
    home = object_key(record.id, raw)
    place = Place(bucket, key, raw, bucket_key(bucket), value, record, home, account, policy)
    if stores and who.limits is not None:
        place.charged = await open_key(store, who.access_key_id)
    return place


def choose_class(store: Store, place: Place, extra: Extra | None) -> None:
    """Place the bytes as the object's storage class wants them. Raises: BadStorageClass."""
    if extra is not None and STORAGE_CLASS in extra.headers:
        place.storage_class = extra.headers[STORAGE_CLASS]
        place.policy = policy_for(store, place.bucket, place.storage_class)


async def reserve_room(store: Store, place: Place, size: int | None, extra: Extra | None) -> None:
    """Before a body of so many bytes is received for the object here: is there room for it?

    Raises: QuotaExceeded, MetaUnavailable.
    """
    if size is None or not is_limited(place.account, place.bucket, place.charged):
        return  # Without a length the commit alone decides.
    value = await store.kv.get(place.home)
    key_growth = growth = billed_bytes(size, place.raw_key, extra)
    replaces_own = False  # A version that counts for the same access key.
    if value is not None:
        old = decode(value, ObjectRecord)
        went = billed_bytes(old.size, place.raw_key, old.extra)
        growth -= went
        replaces_own = place.charged is not None and key_of(old.extra) == place.charged.access_key
        if replaces_own:
            key_growth -= went
    place.hold = await reserve(
        store,
        place.account,
        place.bucket,
        growth,
        objects=value is None,
        large=size > store.small_size_max,
        key=place.charged,
        key_growth=key_growth,
        key_objects=not replaces_own,
    )


async def reserve_part(store: Store, place: Place, home: bytes, size: int | None) -> None:
    """The same for the part at this p key. Raises: QuotaExceeded, MetaUnavailable."""
    if size is None or not is_limited(place.account, place.bucket, place.charged):
        return
    value = await store.kv.get(home)
    growth = size if value is None else size - decode(value, PartRecord).size
    large = size > store.small_size_max
    place.hold = await reserve(
        store,
        place.account,
        place.bucket,
        growth,
        objects=0,
        large=large,
        key=place.charged,
        key_growth=growth,
    )


async def leave_room(store: Store, place: Place) -> None:
    """Whatever became of the change: what it reserved is not held any longer."""
    if place.hold is not None:
        with suppress(StoreError):  # Else it expires.
            await let_go(store, place.hold)


async def reopen(store: Store, who: Principal, place: Place) -> None:
    """Read the bucket again after a conflict.

    Raises: NoSuchBucket (also: another one of this name), BadStorageClass.
    """
    value, record = await read_bucket(store, who, place.bucket_name)
    if record.id != place.bucket.id:
        raise NoSuchBucket(place.bucket_name)
    if record.settings is not None or who.mirror is not None:
        check_writable(place.bucket_name, record, who)
    place.bucket_value, place.bucket = value, record
    place.policy = policy_for(store, record, place.storage_class)


@dataclass(slots=True)
class Change:
    """What a decision came to: the object's new record (None: deleted), and what else the commit does."""

    record: ObjectRecord | None
    kept: Kept | None = None  # Bytes that the record (or `also`) publishes.
    drops_old: bool = True  # False: the new record holds the old one's bytes (a copy onto itself).
    parts: int = 0  # Bytes that the bucket already counts as an upload's parts.
    requests: int = 0  # Of the dearer class that the change answers.
    expect: Mapping[bytes, bytes | None] | None = None
    put: Mapping[bytes, bytes] | None = None
    delete: Sequence[bytes] = ()
    add: Mapping[bytes, Add] | None = None


Build = Callable[[ObjectRecord | None, int], Change]  # (old record, order of the new one) -> change
Check = Callable[[ObjectRecord | None, bool], None]
"""(old record, whether an object was seen since the request began): raises what the conditions demand."""


def held(record: ObjectRecord) -> Sequence[Extent]:
    """The extents in the record itself: it is their home, and they leave the live bytes with it."""
    extra = record.extra
    if extra is None or extra.multipart is None or extra.multipart.manifest is None:
        return record.extents
    return [*record.extents, extra.multipart.manifest]


def doom(record: ObjectRecord, now_us: int) -> dict[bytes, bytes]:
    """The keys that hand a dropped object's parts and pages over to the sweep."""
    extra = record.extra
    if extra is None:
        return {}
    ids = [extra.blob] if extra.blob else []
    if extra.multipart is not None:
        ids.append(extra.multipart.upload)
    return {doomed_key(one): encode(DoomedRecord(since_us=now_us)) for one in ids}


async def change_object(
    store: Store,
    who: Principal,
    place: Place,
    check: Check | None,
    build: Build,
    *,
    absent_is_done: bool = False,
    not_before_us: int = 0,
) -> tuple[ObjectRecord | None, bool]:
    """Change one object. Returns its new record and whether anything was committed.

    Args:
        absent_is_done: a delete: nothing to do if there is no object.
        not_before_us: a moment, maybe of another machine's clock, that the change comes after.

    Raises: NoSuchBucket, Denied; what `check` raises; Conflict on a key of the change's own `expect` (the
        caller knows what it means); QuotaExceeded; Overloaded after too many lost rounds; Unavailable.
    """
    chains, kv, home = store.chains, store.kv, place.home
    rewrites = 0
    seen = False
    for attempt in range(ATTEMPTS_MAX):
        link = chains.tail(home)
        if link is None:
            value = await kv.get(home)
            link = chains.tail(home)  # Begun while we read.
        if link is not None:
            value = link.value
        old = None if value is None else decode(value, ObjectRecord)
        now_us = max(store.clock.now_us(), not_before_us)
        if check is not None:
            try:
                check(old, seen)
            except Rejected:
                if link is None or await link.stood():
                    raise
                continue  # Decided on a record that never came to be.
        if old is None:
            if absent_is_done:
                if link is None or await link.stood():
                    return None, False
                continue
            order = now_us
            bytes_delta = 0
        else:
            seen = True
            order = max(now_us, old.order + 1)
            bytes_delta = -old.size
        if who.mirror is not None:
            order = who.mirror.order
        at_us = moment_of(old, order, now_us, ours=who.mirror is None)
        change = build(old, order)
        record, kept = change.record, change.kept
        account = place.account
        key = place.charged
        if record is not None:
            if key is not None:
                record = msgspec.structs.replace(record, extra=marked(record.extra, key))
            record = dated(padded(record, place.raw_key, account), at_us)
            if place.bucket.settings is not None:
                record = counted(record, place.bucket)

        expect: dict[bytes, bytes | None] = {place.bucket_key: place.bucket_value, home: value}
        put: dict[bytes, bytes] = {}
        delete: list[bytes] = list(change.delete)
        new_value: bytes | None = None
        if record is not None:
            new_value = put[home] = encode(record)
            bytes_delta += record.size - change.parts
            expect[account.key] = account.value
            if key is not None:
                expect[key.key] = key.value
        else:
            delete.append(home)
        if kept is not None and kept.carried:
            assert kept.data is not None
            put[body_key(home)] = bytes(kept.data)
        elif old is not None and is_carried(old) and (record is None or not is_carried(record)):
            delete.append(body_key(home))
        lost = held(old) if old is not None and change.drops_old else ()
        if kept is not None:
            fences, intents, add = publish(kept.stored, lost)
            expect.update(fences)
            if intents:
                put.update(intents)
            if kept.pages:
                put.update(kept.pages)
        else:
            add = live_adds((), lost)
        if old is not None and change.drops_old and old.extra is not None:
            put.update(doom(old, store.clock.now_us()))
        if bytes_delta:
            add[bucket_bytes_key(place.bucket.id)] = Add(bytes_delta)
        hold = place.hold
        reserved, key_reserved = (0, 0) if hold is None else hold.settle(expect, delete)
        charge(
            add,
            account,
            place.bucket,
            place.raw_key,
            old,
            record,
            at_us,
            leaves=change.drops_old,
            parts=change.parts,
            reserved=reserved,
            requests=change.requests,
            key=key,
            key_reserved=key_reserved,
        )
        settings = place.bucket.settings
        if settings is not None and REPLICATION in settings:
            size = 0 if record is None else record.size
            note_change(place.bucket.id, place.raw_key, store.clock.now_us(), size, put, add)
        if change.expect:
            expect.update(change.expect)
        if change.put:
            put.update(change.put)
        if change.add:
            add.update(change.add)
        store.crash_point("change-decided")
        try:
            await chains.commit(home, new_value, Transaction(expect, put, delete, add))
        except Conflict as conflict:
            if conflict.key == place.bucket_key:
                await reopen(store, who, place)
                if kept is not None:
                    await kept.write_under(store, place.policy)
            elif hold is not None and conflict.key == hold.key:
                hold.settled = True  # It had expired: from now on the limits decide.
            elif conflict.key == account.key:
                place.account = await open_account(store, place.bucket.tenant)
                place.account.check_stores()
            elif key is not None and conflict.key == key.key:
                place.charged = await open_key(store, key.access_key)
            elif conflict.key == home:
                seen = seen or value is None  # Something was there when the expectation of nothing failed.
            elif conflict.key[:1] == b"V" and kept is not None:
                rewrites += 1
                if rewrites > REWRITES_MAX:
                    raise Overloaded("every volume was sealed before the commit") from conflict
                await kept.write_again(store)
            else:
                raise
        except LimitReached as limit:
            raise quota_of(limit) from limit
        else:
            store.crash_point("change-committed")
            if hold is not None:
                hold.settled = True
            return record, True
        if attempt >= PATIENT_ATTEMPTS:
            await asyncio.sleep(store.randomness(1)[0] / 255 * WAIT_MAX_S)
    raise Contended(f"{ATTEMPTS_MAX} rounds lost against other writes of one key")
