"""Limits as operators set and see them, with what is in use beside them."""

import pytest

from objstore.errors import BadArgument
from objstore.iam import keys, tenants, users
from objstore.iam.secrets import SecretBox
from objstore.meta.kv import Add, DictKv, Transaction
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    Limits,
    account_key,
    bucket_billed_key,
    bucket_key,
    bucket_objects_key,
    decode,
    encode,
    key_use_key,
    project_use_key,
    tenant_use_key,
)
from objstore.rental.quota import (
    Quota,
    Scope,
    change_limits,
    clear_limits,
    level_of,
    limits_of_bucket,
    set_limits,
    show_quota,
)
from objstore.rental.records import ProjectRecord, project_key
from objstore.rental.terms import UNLIMITED

KEY = "AKQUOTATEST000000001"


async def ready() -> DictKv:
    """Two tenants; the first has a project, a bucket with a placement, and a key, all of them in use."""
    kv = DictKv()
    for tenant in ("acme", "other"):
        await tenants.create_tenant(kv, tenant, now_us=1)
        await users.create_user(kv, f"u-{tenant}", tenant=tenant, now_us=1)
    box = SecretBox(bytes(32), bytes)
    await keys.give_key(kv, box, "u-acme", KEY, "a-secret-of-enough-characters", now_us=1)
    bucket = BucketRecord(id=7, tenant="acme", owner="u-acme", created_us=1, settings={"placement": b"far"})
    uses = {
        tenant_use_key("acme"): (95, 2, 1),
        project_use_key("acme", "web"): (60, 1),
        key_use_key(KEY): (5, 1),
    }
    add = {bucket_billed_key(7): Add(90), bucket_objects_key(7): Add(2)}
    for key, numbers in uses.items():
        add |= {key + unit: Add(number) for unit, number in zip((b"s", b"o", b"b"), numbers, strict=False)}
    put = {
        bucket_key("pictures"): encode(bucket),
        project_key("acme", "web"): encode(ProjectRecord(name="web", created_us=1)),
    }
    await kv.commit(Transaction(put=put, add=add))
    return kv


SCOPES = [
    Scope(kind="tenant", tenant="acme"),
    Scope(kind="project", tenant="acme", name="web"),
    Scope(kind="bucket", tenant="acme", name="pictures"),
    Scope(kind="key", tenant="acme", name=KEY),
]


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: scope.kind)
async def test_limits_are_set_changed_shown_with_what_is_in_use_and_cleared(scope: Scope) -> None:
    kv = await ready()
    assert (await show_quota(kv, scope)).limits == UNLIMITED
    limits = Limits(bytes_max=100, bytes_soft=90, requests_per_s=5)
    assert await set_limits(kv, scope, limits) == UNLIMITED
    assert await change_limits(kv, scope, {"requests_per_s": None, "objects_max": 9}) == limits
    found = await show_quota(kv, scope)
    assert found.limits == Limits(bytes_max=100, bytes_soft=90, objects_max=9)
    size, objects = {"tenant": (95, 2), "project": (60, 1), "bucket": (90, 2), "key": (5, 1)}[scope.kind]
    assert (found.size, found.objects) == (size, objects)
    assert found.buckets == (1 if scope.kind == "tenant" else None)
    for other in SCOPES:
        assert other is scope or (await show_quota(kv, other)).limits == UNLIMITED
    await clear_limits(kv, scope)
    assert (await show_quota(kv, scope)).limits == UNLIMITED


async def test_what_else_lies_beside_the_limits_stays() -> None:
    kv = await ready()
    account = AccountRecord(state="past_due", projects={"web": Limits(bytes_max=1)}, sites=["oran"])
    await kv.commit(Transaction(put={account_key("acme"): encode(account)}))
    for scope in (SCOPES[0], SCOPES[2]):
        await set_limits(kv, scope, Limits(bytes_max=5))
    value = await kv.get(account_key("acme"))
    assert value is not None
    changed = decode(value, AccountRecord)
    assert (changed.state, changed.projects, changed.sites) == ("past_due", account.projects, ["oran"])
    await clear_limits(kv, SCOPES[2])
    value = await kv.get(bucket_key("pictures"))
    assert value is not None
    bucket = decode(value, BucketRecord)
    assert bucket.settings == {"placement": b"far"}
    assert limits_of_bucket(bucket) == UNLIMITED


@pytest.mark.parametrize(
    "scope",
    [
        Scope(kind="tenant", tenant="nobody"),
        Scope(kind="project", tenant="acme", name="none"),
        Scope(kind="project", tenant="other", name="web"),
        Scope(kind="bucket", tenant="acme", name="none"),
        Scope(kind="bucket", tenant="other", name="pictures"),
        Scope(kind="key", tenant="acme", name="NONE"),
        Scope(kind="key", tenant="other", name=KEY),
    ],
    ids=lambda scope: f"{scope.kind} {scope.tenant} {scope.name}",
)
async def test_what_is_not_there_or_another_tenants_is_neither_shown_nor_limited(scope: Scope) -> None:
    kv = await ready()
    with pytest.raises(BadArgument):
        await show_quota(kv, scope)
    with pytest.raises(BadArgument):
        await set_limits(kv, scope, Limits(bytes_max=1))


async def test_nonsense_is_refused_with_its_name() -> None:
    kv = await ready()
    for new, name in (
        ({"bytes_max": -1}, "limit"),
        ({"bytes_max": 5, "bytes_soft": 6}, "soft_bytes"),
        ({"sheep_max": 1}, "limits"),
    ):
        with pytest.raises(BadArgument) as refused:
            await change_limits(kv, SCOPES[0], new)
        assert refused.value.name == name
    with pytest.raises(BadArgument):
        await change_limits(kv, SCOPES[2], {"buckets_max": 5})
    for kind, name in (("planet", "earth"), ("tenant", "x"), ("bucket", "")):
        with pytest.raises(BadArgument):
            Scope(kind=kind, tenant="acme", name=name)


@pytest.mark.parametrize(
    ("used", "level"),
    [(0, 0), (49, 0), (50, 50), (79, 50), (80, 80), (90, 90), (99, 90), (100, 100), (130, 100)],
)
def test_a_level_is_the_highest_threshold_that_any_use_has_reached(used: int, level: int) -> None:
    assert level_of(Limits(bytes_max=100), used, 0) == level
    assert level_of(Limits(bytes_max=10_000, objects_max=100), used, used) == level
    assert level_of(Limits(bytes_soft=1), used, used, used) == 0
    quota = Quota(
        scope=SCOPES[0], limits=Limits(bytes_soft=99, buckets_max=100), size=used, objects=0, buckets=used
    )
    assert (quota.level, quota.over_soft) == (level, used > 99)
    assert level_of(Limits(bytes_max=0), used, 0) == (100 if used else 0)
