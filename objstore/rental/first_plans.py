"""A tenant's first plan: it holds at once. Those after it: rental/plan_changes.py.

A customer names its plan from its creation on, by itself or by the preset of its kind. When it is made, or
becomes active, the newest version of that plan that is offered then holds from that month on, in the same
commit: what it uses has a price from its first hour. Without such a version it has none until an operator
gives it one, and `why_no_plan` says so.
"""

from datetime import UTC, datetime
from typing import Final

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import AccountRecord, Record, account_key, decode
from objstore.rental.changes import Change
from objstore.rental.months import Month
from objstore.rental.plans import Plan, PlanRecord, class_terms, plan_key
from objstore.rental.records import CustomerRecord, customer_key

VERSIONS_MAX: Final = 50  # Of a plan, the newest first, among which one is looked for that is offered.


class PlanSinceRecord(Record, frozen=True, array_like=True, kw_only=True):
    plan: str
    version: int
    made_us: int = 0


def since_key(tenant: str, month: Month) -> bytes:
    number = month.year * 12 + month.month - 1
    return b"Yg" + tenant.encode() + b"\0" + number.to_bytes(2, "big")


async def begin_plan(change: Change, customer: CustomerRecord, now_us: int) -> CustomerRecord:
    """The customer with the plan that it names, from this month on; as it is, if it has one or there is none.

    Puts the customer, and what the plan's classes bill at least into its account.
    """
    plan, _ = await _named_plan(change.kv, customer, now_us)
    if plan is None:
        return customer
    since = PlanSinceRecord(plan=plan.code, version=plan.version, made_us=now_us)
    change.put(since_key(customer.tenant, Month.containing(now_us // SECOND_US)), since)
    return await start_plan(change, customer, plan)


async def why_no_plan(kv: Kv, customer: CustomerRecord, now_us: int) -> str:
    """Why a customer has no version of a plan, in an operator's words; empty: it has one, or could have."""
    return (await _named_plan(kv, customer, now_us))[1]


async def _named_plan(kv: Kv, customer: CustomerRecord, now_us: int) -> tuple[Plan | None, str]:
    """The version that a customer without one gets now, or why there is none; neither: it has one."""
    if customer.plan_version:
        return None, ""
    code, day = customer.plan, datetime.fromtimestamp(now_us // SECOND_US, UTC).date()
    begin, end = plan_key(code, 1), prefix_end(plan_key(code, 0)[:-4])
    found = await kv.scan(begin, end, VERSIONS_MAX, reverse=True)
    if not found:
        return None, f"no version of plan {code!r} is published: publish one, and give it"
    for _, value in found:
        plan = decode(value, PlanRecord).plan
        if not plan.offered(day):
            continue
        if plan.currency != customer.currency:
            words = f"plan {code!r} is in {plan.currency}, {customer.tenant!r} is invoiced in"
            return None, f"{words} {customer.currency}: give it another"
        try:
            class_terms(plan)
        except BadArgument as failure:
            return None, failure.message
        return plan, ""
    return None, f"no version of plan {code!r} is offered on {day}: publish one, and give it"


async def start_plan(change: Change, customer: CustomerRecord, plan: Plan) -> CustomerRecord:
    """The plan holds from now on: what its classes bill at least goes into the account."""
    started = msgspec.structs.replace(
        customer, plan=plan.code, plan_version=plan.version, next_plan="", next_plan_version=0
    )
    change.put(customer_key(customer.tenant), started)
    key = account_key(customer.tenant)
    account = await change.record(key, AccountRecord) or AccountRecord()
    change.put(key, msgspec.structs.replace(account, classes=class_terms(plan)))
    return started
