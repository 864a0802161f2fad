"""Dunning: invoices that are overdue, and what becomes of accounts whose invoices are.

    due date passed           the invoice is overdue
    so many days later        active -> past_due -> read_only -> suspended, as the seller's days say
    wallet below zero         the same, from that moment on: what bounced had paid invoices by then
    nothing overdue any more  back to active
    trial over                read_only, until the customer is active; as many days later as an unpaid
                              account is, suspended

A state that an operator gave for another reason is the operator's to change; one that a reseller gave only
becomes stricter, for a reseller is no party to what is owed.
The service runs this now and then; a payment that was just received asks for its tenant alone.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from objstore.errors import Rejected
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import AccountRecord, account_key, decode
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import DAY_US, DUNNING, RESELLER, TRIAL, move_to, no_such_customer
from objstore.rental.payments import list_open
from objstore.rental.records import (
    CustomerRecord,
    InvoiceRecord,
    SellerRecord,
    customer_key,
    document_key,
)
from objstore.rental.sellers import read_seller
from objstore.rental.settlement import open_amount
from objstore.rental.wallets import owed_since

CUSTOMERS_AT_ONCE: Final = 500
OPEN_MAX: Final = 100  # Invoices of a customer that are looked at, those that are due first.
REFUSALS_MAX: Final = 1_000
STRICTNESS: Final = ("active", "past_due", "read_only", "suspended")


def wanted_state(state: str, reason: str, overdue_us: int, seller: SellerRecord) -> str:
    """The state that an account should be in. Pure.

    Args:
        reason: why it is in `state`.
        overdue_us: how long its oldest open invoice has been due; below 0 or 0: nothing is overdue.
    """
    if state not in STRICTNESS:
        return state  # On trial, leaving or gone: dunning is no matter of theirs.
    steps = (seller.past_due_days, seller.read_only_days, seller.suspended_days)
    # A step of 0 days comes with the due date itself, and not before.
    due = STRICTNESS[sum(overdue_us > days * DAY_US for days in steps)] if overdue_us > 0 else "active"
    if state == "active" or reason == DUNNING:
        return due
    return max(state, due, key=STRICTNESS.index) if reason.startswith(RESELLER) else state


@dataclass(slots=True)
class DunningRun:
    overdue: int = 0  # Invoices that became overdue.
    moved: list[tuple[str, str]] = field(default_factory=list)  # Tenant, new state.
    refused: list[tuple[str, str]] = field(default_factory=list)  # Tenant, why; at most REFUSALS_MAX.


async def review_all(kv: Kv, *, now_us: int) -> DunningRun:
    """Every customer once. It may end anywhere: what it does for one it does in one commit.

    Raises: MetaUnavailable.
    """
    run = DunningRun()
    prefix = customer_key("")
    async for pairs in pages(kv, prefix, prefix_end(prefix), CUSTOMERS_AT_ONCE):
        for _, value in pairs:
            tenant = decode(value, CustomerRecord).tenant
            try:
                overdue, state = await review(kv, tenant, now_us=now_us)
            except Rejected as refusal:
                if len(run.refused) < REFUSALS_MAX:
                    run.refused.append((tenant, str(refusal)))
                continue
            run.overdue += overdue
            if state:
                run.moved.append((tenant, state))
    return run


async def review(kv: Kv, tenant: str, *, now_us: int) -> tuple[int, str]:
    """Look at one customer's invoices and trial.

    Returns:
        How many invoices became overdue, and the account's new state; empty: it stays.

    Raises: BadArgument (no such customer, or one whose file lacks what an active account needs).
    """

    async def decide(change: Change) -> tuple[int, str]:
        return await _review(change, tenant, now_us)

    return await commit_change(kv, decide, what=f"customer {tenant!r}")


async def _review(change: Change, tenant: str, now_us: int) -> tuple[int, str]:
    customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
    seller = await read_seller(change, customer.seller)
    account = await change.record(account_key(tenant), AccountRecord) or AccountRecord()
    overdue, oldest_us = await _mark_overdue(change, tenant, now_us)
    owed_us = await owed_since(change, tenant)
    if owed_us is not None:
        oldest_us = min(oldest_us, owed_us)
    state = wanted_state(account.state, customer.state_reason, now_us - oldest_us, seller)
    reason = DUNNING if state != "active" else ""
    if (ended := _after_trial(account.state, customer, seller, now_us)) != account.state:
        state, reason = ended, TRIAL
    if state == account.state:
        return overdue, ""
    await move_to(change, tenant, state, reason=reason, now_us=now_us)
    return overdue, state


def _after_trial(state: str, customer: CustomerRecord, seller: SellerRecord, now_us: int) -> str:
    """What a customer's trial leaves of its account: what it used on trial is never billed, so that it may
    read for some time, and not for ever."""
    over_us = now_us - customer.trial_ends_us if customer.trial_ends_us else -1
    if state == "trial" and over_us >= 0:
        return "read_only"
    if state == "read_only" and over_us > seller.suspended_days * DAY_US:
        operators = customer.state_reason != TRIAL and not customer.state_reason.startswith(RESELLER)
        return state if operators else "suspended"
    return state


async def _mark_overdue(change: Change, tenant: str, now_us: int) -> tuple[int, int]:
    """How many became overdue, and when the oldest that is open was due (now, if none is behind)."""
    count = 0
    oldest_us = now_us
    for document in await list_open(change.kv, tenant, limit=OPEN_MAX):
        record = await change.record(document_key(document), InvoiceRecord)
        if record is None or not open_amount(record):
            continue  # Paid since the scan.
        if record.due_us >= now_us:
            break
        oldest_us = min(oldest_us, record.due_us)
        if record.state == "final":
            change.put(document_key(document), msgspec.structs.replace(record, state="overdue"))
            count += 1
    return count, oldest_us
