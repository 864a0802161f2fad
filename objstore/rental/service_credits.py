"""A month held against the service level that was promised, and what is given back for it.

The plan promises a level, a lease may promise another for its own charges. Once a month's invoice is final
it is held against them, once: the credit waits for the tenant's next invoice (rental/carried.py), and what it
was worked out of is kept. What is measured later changes nothing any more.

What gateways cannot see is said by the operator, for all tenants or one:

    maintenance    announced before it begins: its intervals do not count
    outage         noticed from outside (a line, a name server): its minutes count as unserved
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import decode
from objstore.rental.availability import MINUTE_S, first_served, measured, unserved_minutes
from objstore.rental.carried import put_carried
from objstore.rental.catalogue import find_service_level
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import account_state, no_such_customer
from objstore.rental.invoices import final_invoice, read_lines
from objstore.rental.leased import leases_of
from objstore.rental.months import Month
from objstore.rental.names import check_id, check_text
from objstore.rental.plan_changes import plan_in
from objstore.rental.records import CustomerRecord, InvoiceRecord, Line, customer_key
from objstore.rental.service_levels import (
    INTERVAL_S,
    Assessment,
    Exclusion,
    GrantedCredit,
    ServiceEventRecord,
    ServiceLevel,
    ServiceMonthRecord,
    assess,
    credit_lines,
    service_event_key,
    service_month_key,
)

CREDIT_PREFIX: Final = "sla/"  # Of names under which credits wait.
KINDS: Final = ("maintenance", "outage")
EVENTS_MAX: Final = 1_000  # Kept at a time.
EVENT_DAYS_MAX: Final = 31
DAY_US: Final = 86_400 * SECOND_US


# What operators say.


async def put_service_event(kv: Kv, event: ServiceEventRecord, *, now_us: int) -> ServiceEventRecord:
    """Keep an event. Maintenance is announced before it begins; an outage is told of when it is over.

    Raises: BadArgument, Overloaded.
    """
    check_id(event.id, "event")
    check_text(event.reason, "reason")
    if event.kind not in KINDS:
        raise BadArgument(f"a kind is one of {', '.join(KINDS)}", name="kind", value=event.kind)
    if not 0 < event.end_us - event.begin_us <= EVENT_DAYS_MAX * DAY_US or not event.reason:
        raise BadArgument(
            f"an event has a reason, a beginning and a later end, at most {EVENT_DAYS_MAX} days", name="end"
        )
    if event.kind == "maintenance" and event.begin_us <= now_us:
        raise BadArgument("maintenance is announced before it begins", name="begin")
    if event.kind == "outage" and event.end_us > now_us:
        raise BadArgument("an outage is told of when it is over", name="end")

    async def decide(change: Change) -> ServiceEventRecord:
        if event.tenant:
            await change.found(customer_key(event.tenant), CustomerRecord, no_such_customer(event.tenant))
        if await change.value(service_event_key(event.id)) is not None:
            raise BadArgument(f"there is an event {event.id}", name="id", value=event.id)
        if len(await list_service_events(change.kv)) >= EVENTS_MAX:
            raise BadArgument(f"there are {EVENTS_MAX} events at most", name="id")
        change.put(service_event_key(event.id), event)
        return event

    return await commit_change(kv, decide, what=f"event {event.id}")


async def remove_service_event(kv: Kv, event: str) -> ServiceEventRecord:
    """Months that were held against their levels already stay as they are.

    Raises: BadArgument, Overloaded.
    """

    async def decide(change: Change) -> ServiceEventRecord:
        absent = BadArgument(f"there is no event {event!r}", name="event", value=event)
        there = await change.found(service_event_key(event), ServiceEventRecord, absent)
        change.delete(service_event_key(event))
        return there

    return await commit_change(kv, decide, what=f"event {event}")


async def list_service_events(kv: Kv) -> list[ServiceEventRecord]:
    """In order of making."""
    found = await kv.scan(b"YM", prefix_end(b"YM"), EVENTS_MAX)
    return [decode(value, ServiceEventRecord) for _, value in found]


# A month against its levels.


@dataclass(frozen=True, slots=True)
class Promised:
    """Which level holds for which charges of a tenant."""

    plan: str  # Of its plan; empty: none.
    leases: Mapping[str, str]  # By lease id, where it is another one.

    def level_of(self, line: Line) -> str:
        return self.leases.get(line.lease, self.plan)

    @property
    def all(self) -> list[str]:
        return sorted({self.plan, *self.leases.values()} - {""})


async def promised_to(kv: Kv, customer: CustomerRecord, month: Month) -> Promised:
    """By its plan and by leases that were signed, and hold in the month. Raises: BadArgument (no plan)."""
    begin_us, end_us = month.begin_s * SECOND_US, month.end_s * SECOND_US
    leases = {
        lease.id: lease.sla
        for lease in await leases_of(kv, customer.tenant)
        if lease.sla and lease.signed_us and lease.begin_us < end_us and lease.end_us > begin_us
    }
    return Promised((await plan_in(kv, customer, month)).sla, leases)


async def assess_month(
    kv: Kv, customer: CustomerRecord, month: Month, levels: Sequence[ServiceLevel], *, until_s: int
) -> list[Assessment]:
    """Hold a customer's month, as far as it is sealed, against levels: one assessment for each.

    It begins when the customer's account did.

    Args:
        until_s: up to where hours are sealed.

    Returns: none if nothing of the month is sealed yet, or it was over before anything was measured.
    """
    since_s = -(-max(customer.created_us, customer.billed_from_us) // SECOND_US)
    begin_s = max(month.begin_s, -(-since_s // INTERVAL_S) * INTERVAL_S)
    end_s = min(month.end_s, until_s)
    if begin_s >= end_s:
        return []
    first = await first_served(kv)
    if first is not None and first * MINUTE_S >= end_s:
        return []  # Nobody measured then.
    found = await measured(kv, customer.tenant, begin_s, end_s)
    unserved = await unserved_minutes(kv, begin_s, end_s)
    exclusions: list[Exclusion] = []
    for event in await list_service_events(kv):
        first_s, last_s = max(begin_s, event.begin_us // SECOND_US), min(end_s, -(-event.end_us // SECOND_US))
        if event.tenant not in ("", customer.tenant) or first_s >= last_s:
            continue
        if event.kind == "maintenance":
            exclusions.append(Exclusion(first_s, last_s, event.reason))
        else:  # Whatever minute it touches.
            unserved.update(range(first_s // MINUTE_S, -(-last_s // MINUTE_S)))
    return [assess(level, begin_s, end_s, found, exclusions, unserved) for level in levels]


async def settled_service(kv: Kv, tenant: str, month: Month) -> ServiceMonthRecord | None:
    """What came of a month; None: it was not held against any level."""
    value = await kv.get(service_month_key(tenant, month))
    return None if value is None else decode(value, ServiceMonthRecord)


async def settle_service(
    kv: Kv, customer: CustomerRecord, month: Month, *, now_us: int, last: bool = False
) -> ServiceMonthRecord | None:
    """Hold a month whose invoice is final against its levels, and have the credit wait for the next invoice.

    Done once: asked again, it answers what it was. All of the month's hours have to be sealed. For who was
    purged the month ends then.

    Args:
        last: the month gets no invoice; it may have been charged in advance all the same.

    Returns: None while the invoice is no final one, and where no level was promised.

    Raises: BadArgument (a level that is not there), Corrupt, Overloaded, MetaUnavailable.
    """
    tenant = customer.tenant
    there = await settled_service(kv, tenant, month)
    if there is not None:
        return there
    # A charge in advance for this month stands on the invoice of the month before.
    before = await final_invoice(kv, tenant, Month.containing(month.begin_s - 1))
    invoice = await final_invoice(kv, tenant, month)
    if invoice is None and (before is None or not last):
        return None
    promised = await promised_to(kv, customer, month)
    if not promised.all:
        return None
    levels = [await find_service_level(kv, name) for name in promised.all]
    until_s = month.end_s
    if await account_state(kv, tenant) == "purged":
        until_s = -(-customer.state_since_us // (INTERVAL_S * SECOND_US)) * INTERVAL_S
    assessed = await assess_month(kv, customer, month, levels, until_s=until_s)
    if not assessed:
        return None
    documents = [(one, await read_lines(kv, one)) for one in (before, invoice) if one is not None]
    source = documents[-1][0].number
    lines: list[Line] = []
    granted: list[GrantedCredit] = []
    for assessment in assessed:
        own = [
            line
            for document, charged in documents
            for line in _credited(assessment, promised, month, document, charged, customer)
        ]
        lines += own
        net = -sum(line.net for line in own)
        granted.append(GrantedCredit(level=assessment.level.id, share=f"{assessment.credit:f}", net=net))
    uptime = assessed[0].uptime
    record = ServiceMonthRecord(
        invoice=source,
        uptime=f"{uptime.numerator}/{uptime.denominator}",
        counted=assessed[0].counted,
        failed=assessed[0].failed,
        credits=granted,
        made_us=now_us,
    )

    async def decide(change: Change) -> ServiceMonthRecord:
        made = await change.record(service_month_key(tenant, month), ServiceMonthRecord)
        if made is not None:
            return made
        for number, line in enumerate(lines, 1):
            await put_carried(change, tenant, f"{CREDIT_PREFIX}{month}/{number:03d}", line, source, now_us)
        change.put(service_month_key(tenant, month), record)
        return record

    return await commit_change(kv, decide, what=f"the service level of {tenant!r} in {month}")


def _credited(
    assessment: Assessment,
    promised: Promised,
    month: Month,
    document: InvoiceRecord,
    charged: Sequence[Line],
    customer: CustomerRecord,
) -> list[Line]:
    """What one invoice's charges for this month are credited."""

    def of_level(line: Line) -> bool:
        begin_s = (line.begin_us or document.period_begin_us) // SECOND_US
        return month.begin_s <= begin_s < month.end_s and promised.level_of(line) == assessment.level.id

    return credit_lines(assessment, charged, document.currency, customer.language, of=of_level)
