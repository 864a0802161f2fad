"""What a change of an object counts for: quotas and meters, in the object's own commit.

Every version counts from its order on (in whole seconds; a replica's from when it came) until that of what
replaces it, under the storage class that its record names, for its billed bytes (rental/terms.py). So whoever
holds the records of all versions can recompute the meters, and does (upkeep).
"""

from typing import TYPE_CHECKING, Final

import msgspec

from objstore.clock import SECOND_US
from objstore.meta.kv import Add
from objstore.meta.schema import (
    AdoptionRecord,
    BucketRecord,
    Extra,
    Limits,
    ObjectRecord,
    access_key_key,
    account_key,
    bucket_objects_key,
    decode,
)
from objstore.objects.placing import storage_class_of
from objstore.rental.meters import count
from objstore.rental.terms import (
    PROJECT,
    QUOTA,
    UNLIMITED,
    Account,
    KeyAccount,
    add_key_use,
    add_use,
    billed_bytes,
)

if TYPE_CHECKING:
    from objstore.objects.store import Store

CACHED_ACCOUNTS_MAX: Final = 16_384
STANDARD: Final = "STANDARD"
ADOPTION: Final = "adoption"  # In a bucket's settings.


async def open_account(store: "Store", tenant: str) -> Account:
    """As metadata has it now. Raises: MetaUnavailable."""
    return remember_account(store, tenant, await store.kv.get(account_key(tenant)))


def remember_account(store: "Store", tenant: str, value: bytes | None) -> Account:
    """Decode an account's record, through the cache of those already decoded."""
    cached = store.accounts.get(tenant)
    if cached is not None and cached.value == value:
        return cached
    account = Account(tenant, value)
    if len(store.accounts) >= CACHED_ACCOUNTS_MAX:
        store.accounts.clear()
    store.accounts[tenant] = account
    return account


async def open_key(store: "Store", access_key: str) -> KeyAccount:
    """An access key with limits, as metadata has it now. Raises: MetaUnavailable."""
    return KeyAccount(access_key, await store.kv.get(access_key_key(access_key)))


def key_of(extra: Extra | None) -> str:
    """The access key with limits that a version counts for; empty: none."""
    return "" if extra is None else extra.access_key


def marked(extra: Extra | None, key: KeyAccount | None) -> Extra | None:
    """The extra of what this key stores."""
    if key is None:
        return extra
    return msgspec.structs.replace(extra or Extra(), access_key=key.access_key)


def project_of(bucket: BucketRecord) -> str:
    """The project's name; empty: none."""
    return "" if bucket.settings is None else bucket.settings.get(PROJECT, b"").decode()


def limits_of(bucket: BucketRecord) -> Limits:
    """The bucket's own."""
    value = None if bucket.settings is None else bucket.settings.get(QUOTA)
    return UNLIMITED if value is None else decode(value, Limits)


def metered_class(extra: Extra | None) -> str:
    """The storage class under which a version is metered; empty: STANDARD."""
    name = storage_class_of(extra)
    return "" if name == STANDARD else name


def adoption_of(bucket: BucketRecord) -> AdoptionRecord | None:
    """How far a bucket from before there were meters is adopted; None: all of it is metered."""
    value = None if bucket.settings is None else bucket.settings.get(ADOPTION)
    return None if value is None else decode(value, AdoptionRecord)


def is_metered(bucket: BucketRecord) -> bool:
    """Whether what changes in the bucket counts: not in one that waits for its adoption."""
    adoption = adoption_of(bucket)
    return adoption is None or adoption.begun_us > 0


def is_counted(adoption: AdoptionRecord, raw_key: bytes, record: ObjectRecord) -> bool:
    """Whether a version of a bucket that is being adopted is metered already."""
    if not adoption.begun_us:
        return False
    own = record.extra is not None and record.extra.counted == adoption.begun_us
    return own or raw_key <= adoption.cursor


def counted(record: ObjectRecord, bucket: BucketRecord) -> ObjectRecord:
    """The record with a mark that its own commit counts it, where that is not a matter of course."""
    adoption = adoption_of(bucket)
    if adoption is None or not adoption.begun_us:
        return record
    return msgspec.structs.replace(
        record, extra=msgspec.structs.replace(record.extra or Extra(), counted=adoption.begun_us)
    )


def padded(record: ObjectRecord, raw_key: bytes, account: Account) -> ObjectRecord:
    """The record with what its class bills beyond its own bytes noted in it."""
    if not account.record.classes:
        return record
    missing = account.terms(metered_class(record.extra)).bytes_min - billed_bytes(
        record.size, raw_key, record.extra
    )
    if missing <= 0:
        return record
    extra = msgspec.structs.replace(record.extra or Extra(), padding=missing)
    return msgspec.structs.replace(record, extra=extra)


def came_us(record: ObjectRecord) -> int:
    """The moment from which on a version counts."""
    return record.order if record.extra is None else record.extra.came_us or record.order


def moment_of(old: ObjectRecord | None, order: int, now_us: int, *, ours: bool) -> int:
    """When a change counts: at its order, unless a replica's source said that order, or the one before it.

    Args:
        ours: the order is this store's own. Whoever sends as a source may say any.
    """
    if ours and (old is None or came_us(old) == old.order):
        return order
    return now_us if old is None else max(now_us, came_us(old) + 1)


def dated(record: ObjectRecord, at_us: int) -> ObjectRecord:
    """The record with the moment from which on it counts noted in it, where its order is another one."""
    if record.order == at_us:
        return record
    return msgspec.structs.replace(
        record, extra=msgspec.structs.replace(record.extra or Extra(), came_us=at_us)
    )


def charge(
    add: dict[bytes, Add],
    account: Account,
    bucket: BucketRecord,
    raw_key: bytes,
    old: ObjectRecord | None,
    new: ObjectRecord | None,
    at_us: int,
    *,
    leaves: bool,
    parts: int = 0,
    reserved: int = 0,
    requests: int = 0,
    key: KeyAccount | None = None,
    key_reserved: int = 0,
) -> None:
    """Count one version taking another's place.

    Args:
        at_us: the moment of the change (`moment_of`).
        leaves: the old version's bytes leave; else the new one keeps them.
        parts: bytes of parts of the new version's class that it takes over: they were counted as parts.
        reserved: billed bytes that were reserved for the change, and are settled with it.
        requests: of class A that the change answers.
        key: the access key with limits that the new version counts for.
        key_reserved: what of `reserved` counts for it.
    """
    at_s = at_us // SECOND_US
    objects = (new is not None) - (old is not None)
    adoption = adoption_of(bucket) if bucket.settings is not None else None
    if adoption is not None:
        if old is not None and not is_counted(adoption, raw_key, old):
            old = None
        if not adoption.begun_us:
            new, key, requests = None, None, 0
    came = went = 0
    came_class = went_class = ""
    if new is not None:
        came = billed_bytes(new.size, raw_key, new.extra) - parts
        came_class = metered_class(new.extra) if new.extra is not None else ""
    if old is not None:
        went = billed_bytes(old.size, raw_key, old.extra)
        went_class = metered_class(old.extra) if old.extra is not None else ""
        early = 0
        if leaves and account.record.classes:
            age = at_s - came_us(old) // SECOND_US
            early = went * max(0, account.terms(went_class).seconds_min - age)
        if early or went_class != came_class or new is None:
            count(add, bucket.id, went_class, at_s, stored=-went, early=early)
            count(add, bucket.id, came_class, at_s, stored=came, requests=requests)
        else:
            count(add, bucket.id, came_class, at_s, stored=came - went, requests=requests)
    else:
        count(add, bucket.id, came_class, at_s, stored=came, requests=requests)
    use(add, account, bucket, size=came - went - reserved, objects=(new is not None) - (old is not None))
    if adoption is not None:  # The bucket's number of objects was right before there were meters.
        add.pop(bucket_objects_key(bucket.id), None)
        if objects:
            add[bucket_objects_key(bucket.id)] = Add(objects, limits_of(bucket).objects_max)
    if old is not None and old.extra is not None and old.extra.access_key:
        add_key_use(add, old.extra.access_key, UNLIMITED, size=-went, objects=-1)
    if key is not None:
        size, objects = (came, 1) if new is not None else (0, 0)
        add_key_use(add, key.access_key, key.limits, size=size - key_reserved, objects=objects)


def use(
    add: dict[bytes, Add], account: Account, bucket: BucketRecord, *, size: int, objects: int = 0
) -> None:
    """Count billed bytes and objects towards the limits that hold in a bucket, if it is metered."""
    if bucket.settings is None:
        add_use(add, account, bucket.id, "", UNLIMITED, size=size, objects=objects)
    elif is_metered(bucket):
        add_use(add, account, bucket.id, project_of(bucket), limits_of(bucket), size=size, objects=objects)
