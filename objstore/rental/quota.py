"""Quotas and rates as operators set and see them: the limits of a tenant, a project, a bucket or an access
key, and what is in use beside them.

Limits lie where requests read them anyway: a tenant's and its projects' in its AccountRecord, a bucket's in
its settings, a key's in its record. Requests that begin after a change are held to it, and so is every commit
after it. A limit below what is stored refuses growth only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, counter
from objstore.meta.schema import (
    AccessKeyRecord,
    AccountRecord,
    BucketRecord,
    Limits,
    TenantRecord,
    UserRecord,
    access_key_key,
    account_key,
    bucket_billed_key,
    bucket_key,
    bucket_objects_key,
    decode,
    encode,
    key_use_key,
    project_use_key,
    tenant_key,
    tenant_use_key,
    user_key,
)
from objstore.rental.changes import Change, commit_change
from objstore.rental.projects import limit_project, no_such_project
from objstore.rental.records import ProjectRecord, project_key
from objstore.rental.terms import QUOTA, UNLIMITED, check_limits, within_leased

THRESHOLDS: Final = (50, 80, 90, 100)  # Percent of a limit at which its use is worth a word.
KINDS: Final = ("tenant", "project", "bucket", "key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose limits: a tenant's, or those of a project, bucket or access key of that tenant."""

    kind: str  # One of KINDS.
    tenant: str
    name: str = ""  # The project's, the bucket's, the key's id; empty for the tenant itself.

    def __post_init__(self) -> None:
        """Raises: BadArgument."""
        if self.kind not in KINDS:
            raise BadArgument(f"limits are those of a {', '.join(KINDS)}", name="scope", value=self.kind)
        if (self.kind == "tenant") != (not self.name):
            wanted = "none" if self.kind == "tenant" else "one"
            raise BadArgument(f"beside its tenant a {self.kind} takes {wanted}", name="name", value=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits, and what is in use."""

    scope: Scope
    limits: Limits
    size: int  # Billed bytes in use; what running uploads have reserved is among them.
    objects: int
    buckets: int | None = None  # Of a tenant.
    leased: int | None = None  # Bytes that a tenant's leases let it store; None: no lease bounds it.

    @property
    def level(self) -> int:
        """The highest of THRESHOLDS that any use has reached; 0: none."""
        return level_of(self.in_force, self.size, self.objects, self.buckets or 0)

    @property
    def in_force(self) -> Limits:
        """The limits that requests are held to."""
        return within_leased(self.limits, self.leased)

    @property
    def over_soft(self) -> bool:
        """Whether more is stored than the soft limit says."""
        return is_over_soft(self.limits, self.size)


def level_of(limits: Limits, size: int, objects: int, buckets: int = 0) -> int:
    """The highest of THRESHOLDS that a use has reached of its hard limit; 0: none."""
    uses = ((size, limits.bytes_max), (objects, limits.objects_max), (buckets, limits.buckets_max))
    reached = 0
    for used, limit in uses:
        if limit is not None and used > 0:
            passed = [one for one in THRESHOLDS if used * 100 >= one * limit]
            reached = max(reached, *passed, 0)
    return reached


def is_over_soft(limits: Limits, size: int) -> bool:
    return limits.bytes_soft is not None and size > limits.bytes_soft


async def show_quota(kv: Kv, scope: Scope) -> Quota:
    """Limits and use at one moment, nearly. Raises: BadArgument (there is no such tenant, project, ...)."""
    change = Change(kv)
    if scope.kind == "tenant":
        await _tenant(change, scope)
        account = await change.record(account_key(scope.tenant), AccountRecord)
        account = account or AccountRecord()
        use = tenant_use_key(scope.tenant)
        size, objects, buckets = await kv.get_many([use + b"s", use + b"o", use + b"b"])
        return Quota(
            scope=scope,
            limits=account.limits,
            size=counter(size),
            objects=counter(objects),
            buckets=counter(buckets),
            leased=account.leased,
        )
    if scope.kind == "project":
        limits = await _project_limits(change, scope)
        use = project_use_key(scope.tenant, scope.name)
        keys = [use + b"s", use + b"o"]
    elif scope.kind == "bucket":
        bucket = await _bucket(change, scope)
        limits = limits_of_bucket(bucket)
        keys = [bucket_billed_key(bucket.id), bucket_objects_key(bucket.id)]
    else:
        limits = (await _key(change, scope)).limits
        use = key_use_key(scope.name)
        keys = [use + b"s", use + b"o"]
    size, objects = await kv.get_many(keys)
    return Quota(scope=scope, limits=limits, size=counter(size), objects=counter(objects))


async def set_limits(kv: Kv, scope: Scope, limits: Limits) -> Limits:
    """Give the scope these limits instead of those that it has.

    Returns the limits before. Raises: BadArgument, Overloaded.
    """
    return await change_limits(kv, scope, msgspec.structs.asdict(check_limits(limits)))


async def clear_limits(kv: Kv, scope: Scope) -> Limits:
    """Returns the limits before. Raises: BadArgument, Overloaded."""
    return await set_limits(kv, scope, UNLIMITED)


async def change_limits(kv: Kv, scope: Scope, new: Mapping[str, int | None]) -> Limits:
    """Change those limits that are named (fields of Limits; None: no limit), and leave the others.

    Returns the limits before. Raises: BadArgument, Overloaded.
    """
    unknown = sorted(new.keys() - set(Limits.__struct_fields__))
    if unknown:
        raise BadArgument(f"no such limit: {', '.join(unknown)}", name="limits", value=unknown[0])
    if scope.kind != "tenant" and new.get("buckets_max") is not None:
        raise BadArgument("only a tenant has a limit of buckets", name="buckets_max")

    async def decide(change: Change) -> Limits:
        if scope.kind == "tenant":
            await _tenant(change, scope)
            account = await change.record(account_key(scope.tenant), AccountRecord) or AccountRecord()
            limits = _changed(account.limits, new)
            if limits != account.limits:
                change.put(account_key(scope.tenant), msgspec.structs.replace(account, limits=limits))
            return account.limits
        if scope.kind == "project":
            before = await _project_limits(change, scope)
            await limit_project(change, scope.tenant, scope.name, _changed(before, new))
            return before
        if scope.kind == "bucket":
            bucket = await _bucket(change, scope)
            before = limits_of_bucket(bucket)
            change.put(bucket_key(scope.name), _limited(bucket, _changed(before, new)))
            return before
        key = await _key(change, scope)
        change.put(access_key_key(scope.name), msgspec.structs.replace(key, limits=_changed(key.limits, new)))
        return key.limits

    return await commit_change(kv, decide, what=f"{scope.kind} {scope.name or scope.tenant!r}")


def limits_of_bucket(bucket: BucketRecord) -> Limits:
    value = None if bucket.settings is None else bucket.settings.get(QUOTA)
    return UNLIMITED if value is None else decode(value, Limits)


def _changed(limits: Limits, new: Mapping[str, int | None]) -> Limits:
    return check_limits(msgspec.structs.replace(limits, **new))


def _limited(bucket: BucketRecord, limits: Limits) -> BucketRecord:
    settings = {name: value for name, value in (bucket.settings or {}).items() if name != QUOTA}
    if limits != UNLIMITED:
        settings[QUOTA] = encode(limits)
    return msgspec.structs.replace(bucket, settings=settings or None)


async def _tenant(change: Change, scope: Scope) -> None:
    absent = BadArgument(f"there is no tenant {scope.tenant!r}", name="tenant", value=scope.tenant)
    await change.found(tenant_key(scope.tenant), TenantRecord, absent)


async def _project_limits(change: Change, scope: Scope) -> Limits:
    """Raises: BadArgument."""
    absent = no_such_project(scope.tenant, scope.name)
    await change.found(project_key(scope.tenant, scope.name), ProjectRecord, absent)
    account = await change.record(account_key(scope.tenant), AccountRecord)
    return UNLIMITED if account is None else account.projects.get(scope.name, UNLIMITED)


async def _bucket(change: Change, scope: Scope) -> BucketRecord:
    """Raises: BadArgument; another tenant's bucket is none."""
    absent = BadArgument(f"{scope.tenant!r} has no bucket {scope.name!r}", name="bucket", value=scope.name)
    record = await change.found(bucket_key(scope.name), BucketRecord, absent)
    if record.tenant != scope.tenant:
        raise absent
    return record


async def _key(change: Change, scope: Scope) -> AccessKeyRecord:
    """Raises: BadArgument; another tenant's key is none."""
    absent = BadArgument(
        f"{scope.tenant!r} has no access key {scope.name!r}", name="access key", value=scope.name
    )
    record = await change.found(access_key_key(scope.name), AccessKeyRecord, absent)
    user = await change.found(user_key(record.user), UserRecord, absent)
    if user.tenant != scope.tenant:
        raise absent
    return record
