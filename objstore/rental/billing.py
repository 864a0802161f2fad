"""A month's invoices: what every customer used and leased, rated under its plan of that month, as drafts.

Who runs it twice gets the same drafts: rating the same records gives the same lines. A month that is final is
not touched; what came late goes to the next invoice (rental/late_usage.py).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from objstore.clock import SECOND_US
from objstore.errors import BadArgument, Unavailable
from objstore.ids import Randomness
from objstore.meta.kv import Kv
from objstore.meta.schema import decode
from objstore.rental.commitments import Charge, Commitment, commitment_of
from objstore.rental.customers import account_state, list_customers
from objstore.rental.drafts import draft_invoice
from objstore.rental.invoices import final_invoice, find_document, read_lines
from objstore.rental.last_credits import credit_who_left
from objstore.rental.late_usage import correct_month
from objstore.rental.leased import leases_of
from objstore.rental.meters import HOUR_S
from objstore.rental.months import Month
from objstore.rental.plan_changes import plan_in
from objstore.rental.rating import Rated, billed_until, rate_month
from objstore.rental.records import CustomerRecord, Line, PeriodRecord, period_key
from objstore.rental.service_credits import settle_service
from objstore.rental.settlement import DRAFT
from objstore.rental.tally import BATCH, Tally
from objstore.rental.taxes import TaxRule
from objstore.rental.usage import sealed_until, usage_pages

log = logging.getLogger(__name__)

CUSTOMERS_AT_ONCE: Final = 200
HOUR_US: Final = HOUR_S * SECOND_US
PROBLEMS_MAX: Final = 1_000  # Told of one run.
MONTHS_BACK: Final = 36  # How far the invoice before may lie back: an advance charge ends a month behind it.
MONTHS_AHEAD: Final = 12
RATED_STATES: Final = frozenset({"signed", "active", "ended", "terminated"})


@dataclass(slots=True)
class MonthRun:
    """What drafting a month came to, so far."""

    tenants: int = 0  # Looked at.
    drafts: int = 0
    nothing: int = 0  # Nothing to invoice: on trial then, no customer then, or nothing used.
    final: int = 0  # Their month is final already,
    corrections: int = 0  # and so many lines of it go to the next invoice.
    credited: int = 0  # Credit notes of who has left.
    after: str = ""  # The last tenant: where another run may go on.
    problems: list[tuple[str, str]] = field(default_factory=list)  # Tenant, why; at most PROBLEMS_MAX.
    unpriced: list[tuple[str, str]] = field(default_factory=list)  # Tenant, what its plan has no price for.


async def draft_month(
    kv: Kv,
    month: Month,
    *,
    rules: Sequence[TaxRule],
    now_us: int,
    randomness: Randomness,
    after: str = "",
    missing: bool = False,
    progress: Callable[[MonthRun], None] = lambda run: None,
) -> MonthRun:
    """Draft every customer's invoice of a month, in order of tenants.

    What is wrong with one customer is told and stops no other. It may end anywhere: run it again.

    Args:
        rules: tax rules of all countries (rental/catalogue.py).
        after: go on behind this tenant.
        missing: only customers that have no invoice of the month, nor a draft; of the others what its service
            level gives back, if that is still to be said.
        progress: told behind every tenant.

    Raises: BadArgument (the month is not over, or not all of its hours are sealed), MetaUnavailable.
    """
    await check_over(kv, month, now_us)
    run = MonthRun(after=after)
    while customers := await list_customers(kv, after=run.after, limit=CUSTOMERS_AT_ONCE):
        there = await _invoiced(kv, customers, month) if missing else set()
        for customer in customers:
            run.after = customer.tenant
            try:
                if customer.tenant in there:  # Perhaps final only since, long after its time.
                    await _settle_service(kv, customer, month, now_us, run)
                    continue
                await _draft(kv, customer, month, rules, now_us, randomness, run)
            except BadArgument as problem:
                _tell(run.problems, customer.tenant, problem.message)
            except Unavailable:
                raise
            except Exception:  # What is wrong with one tenant's records keeps nobody else's invoice back.
                log.exception("the month of tenant %s cannot be drafted", customer.tenant)
                _tell(run.problems, customer.tenant, "a bug or a broken record; see the store's log")
            run.tenants += 1
            progress(run)
    return run


async def _invoiced(kv: Kv, customers: Sequence[CustomerRecord], month: Month) -> set[str]:
    """Those of them that have an invoice of the month, or a draft."""
    begin_us = month.begin_s * SECOND_US
    values = await kv.get_many([period_key(one.tenant, begin_us) for one in customers])
    return {one.tenant for one, value in zip(customers, values, strict=True) if value is not None}


async def check_over(kv: Kv, month: Month, now_us: int) -> None:
    """Raises: BadArgument, unless all of the month's usage is sealed."""
    if now_us < month.end_s * SECOND_US:
        raise BadArgument(f"{month} is not over", name="month", value=str(month))
    if await sealed_until(kv) < month.first_hour + month.hours:
        raise BadArgument(f"not all hours of {month} are sealed yet", name="month", value=str(month))


async def rate_customer(kv: Kv, customer: CustomerRecord, month: Month) -> Rated:
    """Rate a month of a customer, from its sealed usage.

    Memory: a sum for each bucket, class and meter, and an hour's for each class; not the records.

    Raises: BadArgument (no plan, or months out of order), MetaUnavailable.
    """
    plan = await plan_in(kv, customer, month)
    tally = Tally(customer.tenant, month)
    end_hour = month.first_hour + month.hours
    # The hour in which a trial became an account is the customer's gain.
    begin_hour = max(month.first_hour, -(-customer.billed_from_us // HOUR_US))
    async for page in usage_pages(kv, customer.tenant, begin_hour, end_hour, size=BATCH):
        tally.add(page)
    return rate_month(
        plan,
        tally.usage(),
        month,
        commitments=await _commitments(kv, customer.tenant, month),
        active_s=_active_s(customer, await account_state(kv, customer.tenant), month),
        language=customer.language,
    )


async def _draft(
    kv: Kv,
    customer: CustomerRecord,
    month: Month,
    rules: Sequence[TaxRule],
    now_us: int,
    randomness: Randomness,
    run: MonthRun,
) -> None:
    state = await account_state(kv, customer.tenant)
    # Never active since its trial: nobody has ordered anything.
    if state == "trial" or customer.trial_ends_us or not _active_s(customer, state, month):
        run.nothing += 1
        await _credit_who_left(kv, customer, state, month, now_us, randomness, run)
        return
    await _settle_service(kv, customer, _shifted(month, -1), now_us, run)
    rated = await rate_customer(kv, customer, month)
    for key in sorted(rated.unpriced or ()):
        _tell(run.unpriced, customer.tenant, " ".join(filter(None, (key.meter, key.storage_class))))
    made = await draft_invoice(
        kv, customer.tenant, month, rated.lines, rules=rules, now_us=now_us, randomness=randomness
    )
    if made is None:
        run.nothing += 1
    elif made.state == DRAFT:
        run.drafts += 1
    else:
        run.final += 1
        found = await correct_month(kv, customer.tenant, month, rated.lines, now_us=now_us)
        run.corrections += len(found)
        await _settle_service(kv, customer, month, now_us, run)
    if made is None or made.state != DRAFT:
        await _credit_who_left(kv, customer, state, month, now_us, randomness, run)


async def _credit_who_left(
    kv: Kv,
    customer: CustomerRecord,
    state: str,
    month: Month,
    now_us: int,
    randomness: Randomness,
    run: MonthRun,
) -> None:
    """What waits for a next invoice that will not come. The month is drafted: from the last one on."""
    last = Month.containing(customer.state_since_us // SECOND_US)
    if state != "purged" or month < last:
        return
    if month == last:
        await _settle_service(kv, customer, month, now_us, run, last=True)
    try:
        run.credited += await credit_who_left(kv, customer.tenant, now_us=now_us, randomness=randomness)
    except BadArgument as problem:
        _tell(run.problems, customer.tenant, problem.message)


async def _settle_service(
    kv: Kv, customer: CustomerRecord, month: Month, now_us: int, run: MonthRun, *, last: bool = False
) -> None:
    """What a month's service level gives back waits for the next invoice, once its own is final."""
    try:
        await settle_service(kv, customer, month, now_us=now_us, last=last)
    except BadArgument as problem:  # No reason to keep the invoice back.
        _tell(run.problems, customer.tenant, problem.message)


def _active_s(customer: CustomerRecord, state: str, month: Month) -> int:
    """Seconds of the month in which it was a customer: from its creation, or from the end of its trial, until
    its data was purged."""
    begin_s = max(month.begin_s, max(customer.created_us, customer.billed_from_us) // SECOND_US)
    end_s = month.end_s
    if state == "purged":
        end_s = min(end_s, customer.state_since_us // SECOND_US)
    return max(0, end_s - begin_s)


async def _commitments(kv: Kv, tenant: str, month: Month) -> list[Commitment]:
    """The leases that this month's invoice is about, with what of them was billed before."""
    records = [lease for lease in await leases_of(kv, tenant) if lease.state in RATED_STATES]
    found = [one for one in map(commitment_of, records) if one.end_s > month.begin_s]
    final = await _final_lines(kv, tenant, month)
    if final is not None:  # Late usage corrects what was used, not what was promised.
        return [replace(one, charged=_charged(final, one.lease)) for one in found]
    in_advance = {one.lease for one in found if one.billing == "advance"}
    until = await _billed_in_advance(kv, tenant, month, in_advance) if in_advance else {}
    # In arrears a month is asked for by its own invoice.
    return [
        replace(one, billed_until_s=until.get(one.lease, 0) if one.lease in in_advance else month.begin_s)
        for one in found
    ]


async def _billed_in_advance(kv: Kv, tenant: str, month: Month, leases: set[str]) -> dict[str, int]:
    """Up to which second earlier invoices have charged these leases; those that none has are not there.

    Raises: BadArgument, if a later month was drafted already: it may have charged what this one would.
    """
    around = [_shifted(month, by) for by in range(-MONTHS_BACK, MONTHS_AHEAD + 1)]
    values = await kv.get_many([period_key(tenant, one.begin_s * SECOND_US) for one in around])
    there = {one: decode(value, PeriodRecord) for one, value in zip(around, values, strict=True) if value}
    if month not in there and any(one > month for one in there):
        raise BadArgument(
            f"a month behind {month} was invoiced already, and charged leases in advance",
            name="month",
            value=str(month),
        )
    until: dict[str, int] = {}
    for earlier in sorted((one for one in there if one < month), reverse=True):
        document = await find_document(kv, there[earlier].invoice)
        for lease, end_s in billed_until(await read_lines(kv, document)).items():
            until.setdefault(lease, end_s)
        if leases <= until.keys():
            break
    return until


async def _final_lines(kv: Kv, tenant: str, month: Month) -> list[Line] | None:
    """The lines of the month's invoice; None while it is a draft, or not there."""
    invoice = await final_invoice(kv, tenant, month)
    return None if invoice is None else await read_lines(kv, invoice)


def _charged(lines: Sequence[Line], lease: str) -> tuple[Charge, ...]:
    return tuple(
        Charge(
            Month.containing(line.begin_us // SECOND_US),
            line.begin_us // SECOND_US,
            line.end_us // SECOND_US,
            int(line.consumed),
        )
        for line in lines
        if line.kind == "commitment" and line.lease == lease
    )


def _shifted(month: Month, by: int) -> Month:
    """So many months later, or earlier."""
    year, number = divmod(month.year * 12 + month.month - 1 + by, 12)
    return Month(year, number + 1)


def _tell(told: list[tuple[str, str]], tenant: str, what: str) -> None:
    if len(told) < PROBLEMS_MAX:
        told.append((tenant, what))
