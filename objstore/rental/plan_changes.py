"""Which plan a tenant has in which month: from a month on, for good, so that a month rates alike for ever.

    Y g <tenant> 00 <months since year 0, 2>    PlanSinceRecord: the plan from that month on

A tenant without a plan gets its first one for the month that runs (rental/first_plans.py); another one holds
from the next month on, and until then may be replaced by a third. What the classes bill at least changes in
the account when the month begins (`start_plans`). Every change of these records changes the customer's, too,
which is expected.
"""

from datetime import UTC, date, datetime
from typing import Final

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import decode
from objstore.rental.catalogue import NEWEST, find_plan, no_such_plan
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import list_customers, no_such_customer
from objstore.rental.first_plans import PlanSinceRecord, since_key, start_plan
from objstore.rental.months import Month
from objstore.rental.plans import Plan, PlanRecord, class_terms, plan_key
from objstore.rental.records import CustomerRecord, customer_key

CUSTOMERS_AT_ONCE: Final = 500


async def plan_in(kv: Kv, customer: CustomerRecord, month: Month) -> Plan:
    """The plan under which a tenant's month is rated. Raises: BadArgument (it has none)."""
    since = await _since(kv, customer.tenant, month)
    if since is not None:
        return (await find_plan(kv, since.plan, since.version)).plan
    if not customer.plan_version:
        raise BadArgument(
            f"tenant {customer.tenant!r} has no version of a plan in {month}: give it one",
            name="plan",
            value=customer.plan,
        )
    return (await find_plan(kv, customer.plan, customer.plan_version)).plan


async def give_plan(kv: Kv, tenant: str, code: str, version: int = NEWEST, *, now_us: int) -> CustomerRecord:
    """Give a tenant a plan: its first at once, another from the next month on; the one that it has: it stays.

    Raises: BadArgument (no such tenant or plan; another currency; not offered then), Overloaded.
    """
    if version == NEWEST:
        version = (await find_plan(kv, code)).plan.version

    async def decide(change: Change) -> CustomerRecord:
        customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
        record = await change.found(plan_key(code, version), PlanRecord, no_such_plan(code, version))
        this_month = Month.containing(now_us // SECOND_US)
        at_once = not customer.plan_version
        month = this_month if at_once else this_month.following()
        _check_fits(record.plan, customer, now_us, month, at_once=at_once)
        if (customer.plan, customer.plan_version) == (code, version) and not customer.next_plan:
            return customer
        given = PlanSinceRecord(plan=code, version=version, made_us=now_us)
        change.put(since_key(tenant, month), given)
        if at_once:
            return await start_plan(change, customer, record.plan)
        customer = await _start_if_due(change, customer, this_month)
        if await _since(kv, tenant, this_month) is None:  # Its plan was set when it was created.
            born = Month.containing(customer.created_us // SECOND_US)
            first = PlanSinceRecord(plan=customer.plan, version=customer.plan_version, made_us=now_us)
            change.put(since_key(tenant, born), first)
        customer = msgspec.structs.replace(customer, next_plan=code, next_plan_version=version)
        change.put(customer_key(tenant), customer)
        return customer

    return await commit_change(kv, decide, what=f"the plan of {tenant!r}")


async def start_plans(kv: Kv, *, now_us: int) -> int:
    """Begin the plans whose month has come; returns how many. A step of a service: each begins once."""
    count = 0
    after = ""
    while customers := await list_customers(kv, after=after, limit=CUSTOMERS_AT_ONCE):
        after = customers[-1].tenant
        for customer in customers:
            if customer.next_plan and await _start_next(kv, customer.tenant, now_us):
                count += 1
    return count


async def _start_next(kv: Kv, tenant: str, now_us: int) -> bool:
    async def decide(change: Change) -> bool:
        customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
        return await _start_if_due(change, customer, Month.containing(now_us // SECOND_US)) != customer

    return await commit_change(kv, decide, what=f"the plan of {tenant!r}")


async def _start_if_due(change: Change, customer: CustomerRecord, month: Month) -> CustomerRecord:
    """With the plan that it was to have from this month on, or as it is."""
    since = await _since(change.kv, customer.tenant, month)
    following = (customer.next_plan, customer.next_plan_version)
    if since is None or not customer.next_plan or (since.plan, since.version) != following:
        return customer
    absent = no_such_plan(since.plan, since.version)
    record = await change.found(plan_key(since.plan, since.version), PlanRecord, absent)
    return await start_plan(change, customer, record.plan)


async def _since(kv: Kv, tenant: str, month: Month) -> PlanSinceRecord | None:
    """What holds in a month. Records of months to come change; those of months that began do not."""
    prefix = since_key(tenant, month)[:-2]
    end = min(since_key(tenant, month) + b"\0", prefix_end(prefix))
    found = await kv.scan(prefix, end, 1, reverse=True)
    return decode(found[0][1], PlanSinceRecord) if found else None


def _check_fits(plan: Plan, customer: CustomerRecord, now_us: int, month: Month, *, at_once: bool) -> None:
    """Raises: BadArgument."""
    if plan.currency != customer.currency:
        raise BadArgument(
            f"plan {plan.code} is in {plan.currency}, {customer.tenant!r} is invoiced in {customer.currency}",
            name="plan",
            value=plan.code,
        )
    day = (
        datetime.fromtimestamp(now_us // SECOND_US, UTC).date()
        if at_once
        else date(month.year, month.month, 1)
    )
    if not plan.offered(day):
        raise BadArgument(
            f"version {plan.version} of plan {plan.code} is not offered on {day}",
            name="plan",
            value=plan.code,
        )
    class_terms(plan)
