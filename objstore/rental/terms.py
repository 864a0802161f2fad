"""What a tenant's requests are held to: its state, its limits, and what a version is billed for at least."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from objstore.errors import AccountClosed, BadArgument, LimitReached, QuotaExceeded
from objstore.meta.kv import Add
from objstore.meta.schema import (
    AccessKeyRecord,
    AccountRecord,
    ClassTerms,
    Extra,
    Limits,
    access_key_key,
    account_key,
    bucket_billed_key,
    bucket_objects_key,
    decode,
    key_use_key,
    project_use_key,
    tenant_use_key,
)

STORES: Final = frozenset({"trial", "active", "past_due"})  # States in which more may be stored;
READS: Final = STORES | {"read_only", "terminating"}  # in which it may be read and deleted.
STATES: Final = READS | {"suspended", "purged"}
NO_TERMS: Final = ClassTerms()
UNLIMITED: Final = Limits()
# Of a tenant to which no other limit was given: each bucket is a record an hour for each of its meters.
BUCKETS_MAX: Final = 10_000
# Uploads under way of one tenant. Until it is completed one costs a record of up to 4 KB and no billed byte,
# so no quota would ever end them.
UPLOADS_MAX: Final = 100_000
PROJECT: Final = "project"  # In a bucket's settings: the name of its project;
QUOTA: Final = "quota"  # and its own limits, encoded.


class Account:
    """A tenant's AccountRecord as it was read, with the keys of its counters."""

    __slots__ = (
        "buckets_key", "count_key", "key", "limited", "limits", "record", "size_key", "tenant",
        "uploads_key", "use_key", "value",
    )  # fmt: skip

    def __init__(self, tenant: str, value: bytes | None) -> None:
        self.tenant = tenant
        self.key = account_key(tenant)
        self.value = value  # As a commit expects it.
        self.record = AccountRecord() if value is None else decode(value, AccountRecord)
        self.use_key = tenant_use_key(tenant)
        self.buckets_key = self.use_key + b"b"
        self.size_key = self.use_key + b"s"
        self.count_key = self.use_key + b"o"
        self.uploads_key = self.use_key + b"u"
        self.limits = within_leased(self.record.limits, self.record.leased)
        self.limited = any(
            limits.bytes_max is not None or limits.objects_max is not None
            for limits in (self.limits, *self.record.projects.values())
        )

    @property
    def buckets_max(self) -> int:
        given = self.record.limits.buckets_max
        return BUCKETS_MAX if given is None else given

    def check_stores(self) -> None:
        """Raises: AccountClosed unless more may be stored."""
        if self.record.state not in STORES:
            raise AccountClosed(self.record.state)

    def terms(self, storage_class: str) -> ClassTerms:
        return self.record.classes.get(storage_class, NO_TERMS)


class KeyAccount:
    """An access key that what is stored counts for, with its record as it was read."""

    __slots__ = ("access_key", "key", "limits", "use_key", "value")

    def __init__(self, access_key: str, value: bytes | None) -> None:
        self.access_key = access_key
        self.key = access_key_key(access_key)
        self.value = value  # As a commit expects it; None: it was removed, and nothing limits it any more.
        self.limits = UNLIMITED if value is None else decode(value, AccessKeyRecord).limits
        self.use_key = key_use_key(access_key)


def within_leased(limits: Limits, leased: int | None) -> Limits:
    """What a tenant is held to: its own limits, and no more bytes than its leases let it store.

    Args:
        leased: None: no lease bounds it.
    """
    if leased is None or (limits.bytes_max is not None and limits.bytes_max <= leased):
        return limits
    return msgspec.structs.replace(limits, bytes_max=leased)


def text_size(texts: dict[str, str]) -> int:
    """Bytes of names and values in UTF-8."""
    return sum(len(name.encode()) + len(value.encode()) for name, value in texts.items())


def billed_bytes(size: int, raw_key: bytes, extra: Extra | None) -> int:
    """What a version counts for, in quotas and bills alike.

    Args:
        size: bytes of content.
        raw_key: its key in UTF-8.
    """
    billed = size + len(raw_key)
    if extra is not None:
        if extra.metadata:
            billed += text_size(extra.metadata)
        billed += extra.padding
    return billed


def add_use(
    add: dict[bytes, Add],
    account: Account,
    bucket: int,
    project: str,
    limits: Limits,
    *,
    size: int,
    objects: int,
) -> None:
    """Count what a commit adds to (or takes from) a tenant, a project and a bucket, within their limits.

    Args:
        limits: the bucket's own.
        size: billed bytes.
    """
    own = account.limits
    bucket_size_key, bucket_count_key = _bucket_keys(bucket)
    if size:
        more = Add(size)
        add[bucket_size_key] = more if limits.bytes_max is None else Add(size, limits.bytes_max)
        add[account.size_key] = more if own.bytes_max is None else Add(size, own.bytes_max)
    if objects:
        more = Add(objects)
        add[bucket_count_key] = more if limits.objects_max is None else Add(objects, limits.objects_max)
        add[account.count_key] = more if own.objects_max is None else Add(objects, own.objects_max)
    if project:
        its = account.record.projects.get(project, UNLIMITED)
        key = project_use_key(account.tenant, project)
        if size:
            add[key + b"s"] = Add(size, its.bytes_max)
        if objects:
            add[key + b"o"] = Add(objects, its.objects_max)


@lru_cache(maxsize=8_192)
def _bucket_keys(bucket: int) -> tuple[bytes, bytes]:
    """Of its billed bytes and its objects: every commit needs them."""
    return bucket_billed_key(bucket), bucket_objects_key(bucket)


def add_key_use(
    add: dict[bytes, Add], access_key: str, limits: Limits, *, size: int, objects: int = 0
) -> None:
    """Count what a commit adds to (or takes from) an access key, beside what it has counted there already."""
    use_key = key_use_key(access_key)
    for name, delta, at_most in (
        (use_key + b"s", size, limits.bytes_max),
        (use_key + b"o", objects, limits.objects_max),
    ):
        if delta:
            there = add.get(name, Add(0))
            add[name] = Add(there.delta + delta, at_most if there.at_most is None else there.at_most)


def quota_of(failure: LimitReached) -> QuotaExceeded:
    """The limit that a commit would have crossed, in a tenant's words."""
    scope = {b"Qt": "tenant", b"Qp": "project", b"Qk": "access key"}.get(failure.key[:2], "bucket")
    if failure.key[:1] == b"Q":
        unit = {b"o": "objects", b"b": "buckets", b"u": "uploads under way"}.get(failure.key[-1:], "bytes")
    else:
        unit = "objects" if failure.key[-1:] == b"o" else "bytes"
    return QuotaExceeded(scope, unit=unit, limit=failure.at_most, used=failure.value)


def sites_within(sites: Sequence[str], above: Sequence[str], parent: str) -> list[str]:
    """Where a customer's bytes may lie, in order: at no site where its reseller's may not.

    Args:
        sites: that it is to have; none: wherever its reseller's may.
        above: its reseller's own; none: anywhere.
        parent: the reseller's name; empty: it has none.

    Raises: BadArgument.
    """
    if above and (beyond := set(sites) - set(above)):
        raise BadArgument(
            f"bytes of {parent!r} may not lie at {min(beyond)}, so its customers' may not",
            name="sites",
            value=min(beyond),
        )
    return sorted(set(sites or above))


def check_sites_within(sites: Sequence[str], above: Sequence[str], tenant: str, parent: str) -> None:
    """Raises: BadArgument unless a customer's bytes may lie only where its reseller's may."""
    if above and not sites:
        raise BadArgument(
            f"bytes of {tenant!r} may lie anywhere, those of {parent!r} only at {', '.join(above)}:"
            f" say first where those of {tenant!r} may",
            name="sites",
        )
    sites_within(sites, above, parent)


def check_state(state: str) -> str:
    """Raises: BadArgument."""
    if state not in STATES:
        raise BadArgument(f"an account is one of {', '.join(sorted(STATES))}", name="state", value=state)
    return state


def check_limits(limits: Limits) -> Limits:
    """Raises: BadArgument for a negative limit, or a soft one above the hard one."""
    values: Sequence[int | None] = (
        limits.bytes_max,
        limits.objects_max,
        limits.bytes_soft,
        limits.buckets_max,
        limits.requests_per_s,
        limits.bytes_per_s,
    )
    if any(value is not None and value < 0 for value in values):
        raise BadArgument("a limit is 0 or more", name="limit")
    if (
        limits.bytes_soft is not None
        and limits.bytes_max is not None
        and limits.bytes_soft > limits.bytes_max
    ):
        raise BadArgument("the soft limit lies above the hard one", name="soft_bytes")
    return limits
