"""Rate cards, tax rules and service levels as metadata keeps them.

What documents were made from stays: a version of a plan and a service level never change, of a tax rule only
the day of its end. The same once more changes nothing.
"""

from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import decode
from objstore.rental.changes import Change, commit_change
from objstore.rental.plans import Plan, PlanRecord, check_plan, plan_key
from objstore.rental.service_levels import ServiceLevel, ServiceLevelRecord, check_level, service_level_key
from objstore.rental.taxes import RULES_MAX, TaxRule, TaxRuleRecord, check_rule, tax_rule_key

NEWEST: Final = 0  # Of a plan's versions.


async def publish_plan(kv: Kv, plan: Plan, *, made_us: int, made_by: str = "") -> PlanRecord:
    """Keep a version of a rate card for good. Versions count up from 1.

    Raises: BadArgument (it makes no sense, is there with other prices, leaves out a version, or names a
        service level that is not there), Overloaded.
    """
    check_plan(plan)

    async def decide(change: Change) -> PlanRecord:
        await expect_service_level(change, plan.sla)
        key = plan_key(plan.code, plan.version)
        there = await change.record(key, PlanRecord)
        if there is not None:
            if there.plan != plan:
                raise BadArgument(
                    f"version {plan.version} of plan {plan.code} is there and never changes:"
                    f" publish version {plan.version + 1}",
                    name="version",
                    value=str(plan.version),
                )
            return there
        if plan.version > 1:
            before = plan_key(plan.code, plan.version - 1)
            await change.found(before, PlanRecord, no_such_plan(plan.code, plan.version - 1))
        record = PlanRecord(plan=plan, made_us=made_us, made_by=made_by)
        change.put(key, record)
        return record

    return await commit_change(kv, decide, what=f"plan {plan.code!r}")


def no_such_plan(code: str, version: int) -> BadArgument:
    which = f"version {version} of plan" if version else "plan"
    return BadArgument(f"there is no {which} {code!r}", name="plan", value=code)


async def find_plan(kv: Kv, code: str, version: int = NEWEST) -> PlanRecord:
    """Raises: BadArgument (there is none)."""
    if version == NEWEST:
        found = await kv.scan(plan_key(code, 1), prefix_end(plan_key(code, 0)[:-4]), 1, reverse=True)
        value = found[0][1] if found else None
    else:
        value = await kv.get(plan_key(code, version))
    if value is None:
        raise no_such_plan(code, version)
    return decode(value, PlanRecord)


async def list_plans(kv: Kv, *, after: tuple[str, int] | None = None, limit: int = 1_000) -> list[PlanRecord]:
    """All versions by code and version, those behind `after`."""
    start = b"Yp" if after is None else plan_key(*after) + b"\0"
    return [decode(value, PlanRecord) for _, value in await kv.scan(start, prefix_end(b"Yp"), limit)]


async def put_tax_rule(kv: Kv, rule: TaxRule, *, made_us: int) -> TaxRuleRecord:
    """Keep a tax rule, or give the one of that name an end.

    Raises: BadArgument (it makes no sense, or more than its end would change), Overloaded.
    """
    check_rule(rule)

    async def decide(change: Change) -> TaxRuleRecord:
        key = tax_rule_key(rule.id)
        there = await change.record(key, TaxRuleRecord)
        if there is not None:
            if there.rule == rule:
                return there
            if msgspec.structs.replace(there.rule, valid_to=rule.valid_to) != rule:
                raise BadArgument(
                    f"of tax rule {rule.id} only valid_to may change: end it, and add one of another name",
                    name="id",
                    value=rule.id,
                )
        elif len(await change.kv.scan(b"Yt", prefix_end(b"Yt"), RULES_MAX)) == RULES_MAX:
            raise BadArgument(f"there are {RULES_MAX} tax rules at most", name="id", value=rule.id)
        record = TaxRuleRecord(rule=rule, made_us=made_us)
        change.put(key, record)
        return record

    return await commit_change(kv, decide, what=f"tax rule {rule.id!r}")


async def tax_rules(kv: Kv) -> tuple[TaxRule, ...]:
    """All of them, of all countries, by name."""
    found = await kv.scan(b"Yt", prefix_end(b"Yt"), 2 * RULES_MAX)  # Two may be added at once.
    return tuple(decode(value, TaxRuleRecord).rule for _, value in found)


async def put_service_level(kv: Kv, level: ServiceLevel, *, made_us: int) -> ServiceLevelRecord:
    """Keep a service level for good.

    Raises: BadArgument (it makes no sense, or another one has its name), Overloaded.
    """
    check_level(level)

    async def decide(change: Change) -> ServiceLevelRecord:
        key = service_level_key(level.id)
        there = await change.record(key, ServiceLevelRecord)
        if there is not None:
            if there.level != level:
                raise BadArgument(
                    f"service level {level.id} is there and never changes", name="id", value=level.id
                )
            return there
        record = ServiceLevelRecord(level=level, made_us=made_us)
        change.put(key, record)
        return record

    return await commit_change(kv, decide, what=f"service level {level.id!r}")


async def expect_service_level(change: Change, name: str) -> None:
    """What promises a level stands beside that level. An empty name promises none. Raises: BadArgument."""
    if name:
        await change.found(service_level_key(name), ServiceLevelRecord, no_such_service_level(name))


def no_such_service_level(name: str) -> BadArgument:
    return BadArgument(f"there is no service level {name!r}", name="sla", value=name)


async def find_service_level(kv: Kv, name: str) -> ServiceLevel:
    """Raises: BadArgument (there is none)."""
    value = await kv.get(service_level_key(name))
    if value is None:
        raise no_such_service_level(name)
    return decode(value, ServiceLevelRecord).level


async def list_service_levels(kv: Kv, *, after: str = "", limit: int = 1_000) -> list[ServiceLevel]:
    """Names > after, in order."""
    start = service_level_key(after) + b"\0" if after else b"YS"
    found = await kv.scan(start, prefix_end(b"YS"), limit)
    return [decode(value, ServiceLevelRecord).level for _, value in found]
