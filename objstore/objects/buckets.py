"""Buckets: create, find, list, delete.

A bucket is known by its id: a name deleted and made again is another bucket, and whatever was under way in
the old one ends with NoSuchBucket. Every commit inside a bucket expects its record.
"""

import re
from typing import Final

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import (
    BadArgument,
    BadName,
    BucketExists,
    BucketNotEmpty,
    BucketOwnedByCaller,
    Conflict,
    Denied,
    LimitReached,
    NoSuchBucket,
    Overloaded,
)
from objstore.meta.kv import Add, Kv, Transaction, counter, counter_value, prefix_end
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    TitleRecord,
    account_key,
    bucket_billed_key,
    bucket_bytes_key,
    bucket_key,
    bucket_objects_key,
    bucket_uploads_key,
    decode,
    encode,
    serial_key,
    tenant_bucket_key,
    title_key,
)
from objstore.objects.accounting import open_account, project_of
from objstore.objects.changes import check_removable
from objstore.objects.doomed import abort_all
from objstore.objects.layout import LAYOUT_KEY, PLACED_KEY, read_layout
from objstore.objects.placing import PLACEMENT, is_admitted, is_bound, own_policy, policy_of_bucket
from objstore.objects.store import KnownBucket, Store
from objstore.objects.values import Principal
from objstore.rental.meters import count
from objstore.rental.records import LeaseRecord, lease_key, lease_of_pool
from objstore.rental.terms import PROJECT, quota_of

ATTEMPTS_MAX: Final = 64  # Of a conditional commit; every lost round means that someone else won one.
CACHED_BUCKETS_MAX: Final = 16_384
BUCKET_SERIAL: Final = "buckets"
LISTED_PAGE: Final = 1_000  # Buckets looked at in one call where only a project's are wanted,
LISTED_PAGES_MAX: Final = 10  # and so many calls for one page of them.

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_IP_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+", re.ASCII)
_RESERVED_PREFIXES = ("xn--", "sthree-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", "--x-s3")


def check_bucket_name(name: str) -> None:
    """Raises: BadName if S3's rules for general purpose buckets forbid the name."""
    if (
        not _NAME.fullmatch(name)
        or ".." in name
        or ".-" in name
        or "-." in name
        or _IP_ADDRESS.fullmatch(name)
        or name.startswith(_RESERVED_PREFIXES)
        or name.endswith(_RESERVED_SUFFIXES)
    ):
        raise BadName(name)


def remember(store: Store, name: str, value: bytes) -> BucketRecord:
    """Decode a bucket's record, through the cache of those already decoded."""
    cached = store.buckets.get(name)
    if cached is not None and cached.value == value:
        return cached.record
    record = decode(value, BucketRecord)
    if len(store.buckets) >= CACHED_BUCKETS_MAX:
        store.buckets.clear()
    store.buckets[name] = KnownBucket(value, record)
    return record


async def read_bucket(store: Store, who: Principal, name: str) -> tuple[bytes, BucketRecord]:
    """The record as it stands, encoded (what a commit expects) and decoded.

    Raises: BadName, NoSuchBucket, Denied.
    """
    value = await store.kv.get(b"b" + name.encode())
    if value is None:
        check_bucket_name(name)
        raise NoSuchBucket(name)
    record = remember(store, name, value)
    if not is_within_reach(record, who):
        scope = "tenant" if record.tenant != who.tenant else "project"
        raise Denied(f"bucket {name!r} belongs to another {scope}")
    return value, record


def is_within_reach(record: BucketRecord, who: Principal) -> bool:
    """Whether a bucket is there for them: it is their tenant's, and their key's project's if it has one."""
    return record.tenant == who.tenant and (not who.project or project_of(record) == who.project)


async def create_bucket(
    store: Store, who: Principal, name: str, *, region: str, policy: str = ""
) -> BucketRecord:
    """Make a bucket.

    Args:
        policy: the name of the placement policy of its objects; empty: the tenant's own, if it has one.

    Raises: BadName, BucketOwnedByCaller, BucketExists, BadArgument (there is no such policy), AccountClosed,
    QuotaExceeded, Denied (the tenant's bytes may not lie there).
    """
    check_bucket_name(name)
    key, serial = bucket_key(name), serial_key(BUCKET_SERIAL)
    wanted = policy
    for _ in range(ATTEMPTS_MAX):
        existing, newest = await store.kv.get_many([key, serial])
        if existing is not None:
            if is_within_reach(decode(existing, BucketRecord), who):
                raise BucketOwnedByCaller(name)
            raise BucketExists(name)
        account = await open_account(store, who.tenant)
        account.check_stores()
        policy = wanted or own_policy(account.record)
        known = await known_policy(store, who.tenant, account.record, policy)
        number, now_us = counter(newest) + 1, store.clock.now_us()
        add = {account.buckets_key: Add(1, account.buckets_max)}
        count(add, number, "", now_us // SECOND_US, requests=1)  # Its making is the first it is billed for.
        if policy:
            add[PLACED_KEY] = Add(1)
        settings = {PLACEMENT: policy.encode()} if policy else {}
        if who.project:
            settings[PROJECT] = who.project.encode()
        record = BucketRecord(
            id=number,
            tenant=who.tenant,
            owner=who.user,
            created_us=now_us,
            region=region,
            settings=settings or None,
        )
        try:
            await store.kv.commit(
                Transaction(
                    expect={key: None, serial: newest, account.key: account.value, **known},
                    put={
                        key: encode(record),
                        tenant_bucket_key(who.tenant, name): b"",
                        serial: counter_value(number),
                        title_key(number): encode(title_of(name, record)),
                    },
                    add=add,
                )
            )
        except Conflict:
            continue
        except LimitReached as limit:
            raise quota_of(limit) from limit
        return record
    raise Overloaded("too many buckets made at the same time")


def title_of(name: str, record: BucketRecord) -> TitleRecord:
    """Whose the bucket is, for those who bill it when it is gone."""
    return TitleRecord(
        tenant=record.tenant, project=project_of(record), name=name, created_us=record.created_us
    )


async def known_policy(
    store: Store, tenant: str, account: AccountRecord, policy: str
) -> dict[bytes, bytes | None]:
    """What a commit that gives a tenant's bucket a policy expects: the layout by which it may.

    Raises: BadArgument (there is no such policy), Denied (it leads out of what the account allows).
    """
    if not policy and not is_bound(account):
        return {}
    value, record = await read_layout(store.kv)
    layout = await store.ledger.layout_under(record.current, record.version)
    if policy and policy not in record.current.policies and not set(policy.split("+")) <= layout.sites:
        raise BadArgument(f"there is no placement policy, and no site, {policy}", name="policy", value=policy)
    lease = lease_of_pool(layout.policy(policy).pool)
    if lease and not await _is_tenant_of(store, lease, tenant):
        raise Denied(f"policy {policy} is for another tenant's own nodes")
    if not is_admitted(account, layout, policy):
        raise Denied(f"policy {policy or '(default)'} leads out of where the tenant's bytes may lie")
    return {LAYOUT_KEY: value}


async def _is_tenant_of(store: Store, lease: str, tenant: str) -> bool:
    value = await store.kv.get(lease_key(lease))
    return value is not None and decode(value, LeaseRecord).tenant == tenant


async def place_bucket(store: Store, name: str, policy: str, *, new_only: bool = False) -> int:
    """Give a bucket another placement policy; returns how many objects stay where they are.

    Args:
        policy: its name; empty: the default one.
        new_only: objects that are there, and parts of uploads under way, may stay where they are until they
            are written again. Otherwise the bucket must be empty.

    Raises: BadName, NoSuchBucket, BucketNotEmpty, BadArgument (there is no such policy), Denied (the tenant's
    bytes may not lie there), Overloaded.
    """
    key = bucket_key(name)
    for _ in range(ATTEMPTS_MAX):
        value = await store.kv.get(key)
        if value is None:
            check_bucket_name(name)
            raise NoSuchBucket(name)
        record = decode(value, BucketRecord)
        account = await open_account(store, record.tenant)
        known = await known_policy(store, record.tenant, account.record, policy)
        counts = [bucket_objects_key(record.id), bucket_uploads_key(record.id)]
        objects, uploads = await store.kv.get_many(counts)
        expect: dict[bytes, bytes | None] = {key: value, account.key: account.value, **known}
        if policy_of_bucket(record) != policy and not new_only:
            if counter(objects) or counter(uploads):
                raise BucketNotEmpty(name)
            expect.update(zip(counts, (objects, uploads), strict=True))
        settings = {setting: one for setting, one in (record.settings or {}).items() if setting != PLACEMENT}
        if policy:
            settings[PLACEMENT] = policy.encode()
        changed = msgspec.structs.replace(record, settings=settings or None)
        try:
            add = {PLACED_KEY: Add(1)}
            await store.kv.commit(Transaction(expect=expect, put={key: encode(changed)}, add=add))
        except Conflict:
            continue
        return counter(objects)
    raise Overloaded(f"bucket {name!r} did not come to rest")


async def stream_of_tenant(kv: Kv, tenant: str, now_us: int) -> int:
    """The id under which requests of a tenant that name no bucket are metered; made when there is none.

    Raises: Overloaded, MetaUnavailable.
    """
    key, serial = account_key(tenant), serial_key(BUCKET_SERIAL)
    for _ in range(ATTEMPTS_MAX):
        value, newest = await kv.get_many([key, serial])
        account = AccountRecord() if value is None else decode(value, AccountRecord)
        if account.stream:
            return account.stream
        number = counter(newest) + 1
        title = TitleRecord(tenant=tenant, project="", name="", created_us=now_us)
        put = {
            key: encode(msgspec.structs.replace(account, stream=number)),
            serial: counter_value(number),
            title_key(number): encode(title),
        }
        try:
            await kv.commit(
                Transaction(expect={key: value, serial: newest, title_key(number): None}, put=put)
            )
        except Conflict:
            continue
        return number
    raise Overloaded("too many buckets made at the same time")


async def find_bucket(store: Store, who: Principal, name: str) -> BucketRecord:
    """Raises: BadName, NoSuchBucket, Denied (another tenant's)."""
    return (await read_bucket(store, who, name))[1]


async def delete_bucket(store: Store, who: Principal, name: str) -> None:
    """Incomplete multipart uploads do not keep a bucket: they are aborted with it.

    Raises: NoSuchBucket, Denied, BucketNotEmpty, BucketReplicates, BucketIsReplica.
    """
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_bucket(store, who, name)
        if record.settings is not None:
            check_removable(name, record, who)
        objects, size, uploads, title = (
            bucket_objects_key(record.id),
            bucket_bytes_key(record.id),
            bucket_uploads_key(record.id),
            title_key(record.id),
        )
        object_count, size_value, upload_count, title_value = await store.kv.get_many(
            [objects, size, uploads, title]
        )
        if counter(object_count):
            raise BucketNotEmpty(name)
        if counter(upload_count):
            await abort_all(store, name, value, record)
            continue
        account = await open_account(store, record.tenant)
        # Whose it was made as: a salvage that did not know it gives it to a tenant of its own.
        made = title_of(name, record) if title_value is None else decode(title_value, TitleRecord)
        removed = msgspec.structs.replace(made, removed_us=store.clock.now_us())
        try:
            await store.kv.commit(
                Transaction(
                    expect={
                        bucket_key(name): value,
                        objects: object_count,
                        size: size_value,
                        uploads: upload_count,
                        title: title_value,
                    },
                    put={title: encode(removed)},
                    delete=[
                        bucket_key(name),
                        tenant_bucket_key(record.tenant, name),
                        objects,
                        size,
                        bucket_billed_key(record.id),
                        uploads,
                    ],
                    add={account.buckets_key: Add(-1)},
                )
            )
        except Conflict:
            continue
        store.buckets.pop(name, None)
        return
    raise Overloaded(f"bucket {name!r} did not come to rest")


async def list_buckets(
    store: Store, tenant: str, *, prefix: str, after: str, limit: int, project: str = ""
) -> tuple[list[tuple[str, BucketRecord]], str]:
    """A tenant's buckets: names > after, in order, and the name to go on after; empty: there are no more.

    Args:
        project: only this one's; empty: all. Among many others' buckets a page may hold few, or none.
    """
    if not project:
        return await _some_buckets(store, tenant, prefix, after, limit)
    chosen: list[tuple[str, BucketRecord]] = []
    for _ in range(LISTED_PAGES_MAX):
        found, follows = await _some_buckets(store, tenant, prefix, after, LISTED_PAGE)
        for name, record in found:
            if project_of(record) != project:
                continue
            if len(chosen) == limit:
                return chosen, chosen[-1][0] if chosen else ""
            chosen.append((name, record))
        after = follows
        if not follows:
            break
    return chosen, after


async def _some_buckets(
    store: Store, tenant: str, prefix: str, after: str, limit: int
) -> tuple[list[tuple[str, BucketRecord]], str]:
    assert limit >= 0
    start = tenant_bucket_key(tenant, prefix)
    end = prefix_end(start)
    if after:
        start = max(start, tenant_bucket_key(tenant, after) + b"\0")
    name_begin = len(tenant_bucket_key(tenant, ""))
    if start >= end or limit == 0:
        return [], ""
    pairs = await store.kv.scan(start, end, limit + 1)
    names = [key[name_begin:].decode() for key, _ in pairs[:limit]]
    values = await store.kv.get_many([bucket_key(name) for name in names])
    found = [
        (name, decode(value, BucketRecord))
        for name, value in zip(names, values, strict=True)
        if value is not None  # Deleted since the scan.
    ]
    return found, names[-1] if len(pairs) > limit else ""
