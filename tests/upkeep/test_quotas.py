"""What tenants use against what they may: the picture that metrics and alerts are made of."""

from objstore.meta.kv import Add, DictKv, Transaction
from objstore.meta.schema import (
    AccountRecord,
    Limits,
    TenantRecord,
    account_key,
    encode,
    project_use_key,
    tenant_key,
    tenant_use_key,
)
from objstore.upkeep import quotas
from objstore.upkeep.quotas import QuotaWatch

SHOWN = 7  # Tenants that the metrics name.


async def tenant(
    kv: DictKv, name: str, size: int, *, objects: int = 1, account: AccountRecord | None = None
) -> None:
    put = {tenant_key(name): encode(TenantRecord(name=name, created_us=1))}
    if account is not None:
        put[account_key(name)] = encode(account)
    use = tenant_use_key(name)
    await kv.commit(Transaction(put=put, add={use + b"s": Add(size), use + b"o": Add(objects)}))


def samples(watch: QuotaWatch, name: str) -> dict[tuple[str, ...], float]:
    (family,) = [one for one in watch.families() if one.name == name]
    return {labels: number for labels, (number,) in family.samples}


async def test_the_metrics_name_those_that_use_most_and_add_up_the_rest() -> None:
    kv = DictKv()
    count = 3 * quotas.TENANTS_AT_ONCE + 7
    for number in range(count):
        await tenant(kv, f"t{number:04}", number, objects=2)
    watch = QuotaWatch(kv, SHOWN)
    await watch.look()
    used = samples(watch, "tenant_used_bytes")
    assert len(used) == SHOWN + 1
    assert sum(used.values()) == sum(range(count))
    assert used[f"t{count - 1:04}",] == count - 1
    assert ("t0000",) not in used
    assert sum(samples(watch, "tenant_objects").values()) == 2 * count
    assert samples(watch, "tenants") == {("open",): count, ("read_only",): 0, ("closed",): 0}


async def test_who_is_near_a_limit_is_counted_however_little_it_uses_and_named_worst_first() -> None:
    kv = DictKv()
    for number in range(SHOWN + 10):
        await tenant(kv, f"large{number}", 10**9)
    await tenant(kv, "full", 100, account=AccountRecord(limits=Limits(bytes_max=100)))
    await tenant(kv, "soft", 60, account=AccountRecord(limits=Limits(bytes_soft=59)))
    projects = {"web": Limits(objects_max=10), "calm": Limits(bytes_max=10)}
    await tenant(kv, "parts", 5, account=AccountRecord(state="terminating", projects=projects))
    await kv.commit(Transaction(add={project_use_key("parts", "web") + b"o": Add(9)}))
    watch = QuotaWatch(kv, SHOWN)
    assert "1 scopes" not in await watch.look()
    picture = watch.picture
    assert picture is not None
    assert [(quota.scope.tenant, quota.scope.name, quota.level) for quota in picture.near] == [
        ("full", "", 100),
        ("parts", "web", 90),
        ("soft", "", 0),
    ]
    assert samples(watch, "quota_scopes_at_level") == {("50",): 2, ("80",): 2, ("90",): 2, ("100",): 1}
    assert samples(watch, "quota_scopes_over_soft") == {(): 1}
    assert samples(watch, "tenants")["read_only",] == 1


async def test_limits_are_shown_of_those_that_have_them_and_nobody_is_taken_for_the_rest() -> None:
    kv = DictKv()
    await tenant(kv, "other", 7, account=AccountRecord(limits=Limits(bytes_max=10, bytes_soft=8)))
    await tenant(kv, "free", 5)
    watch = QuotaWatch(kv, SHOWN)
    await watch.look()
    assert samples(watch, "tenant_used_bytes") == {("other",): 0, ("tenant other",): 7, ("free",): 5}
    assert samples(watch, "tenant_quota_bytes") == {("tenant other",): 10}
    assert samples(watch, "tenant_soft_quota_bytes") == {("tenant other",): 8}


async def test_before_anybody_has_looked_and_when_another_process_does_there_is_nothing_to_show() -> None:
    kv = DictKv()
    await tenant(kv, "one", 7)
    watch = QuotaWatch(kv, SHOWN)
    assert all(
        not family.samples for family in watch.families() if not family.name.startswith("quota_scopes_at")
    )
    await watch.look()
    assert samples(watch, "tenant_used_bytes")
    watch.forget()
    assert not samples(watch, "tenant_used_bytes")
