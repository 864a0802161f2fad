"""Payments, and what was paid in advance."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, Page, Route, in_body, in_path, in_query, of_store
from objstore.admin.views import List, list_of, microseconds, shown, view
from objstore.errors import BadArgument, StoreError
from objstore.ids import ulid
from objstore.rental import dunning, payments, wallets
from objstore.rental.customers import find_customer, list_customers
from objstore.rental.invoices import find_document
from objstore.rental.money import Money
from objstore.rental.records import CustomerRecord, PaymentRecord, WalletEntryRecord, payment_key, wallet_key
from objstore.rental.settlement import open_amount

log = logging.getLogger(__name__)

READ, WRITE = Rule(action="payments:Read"), Rule(action="payments:Write", resellers=False)
Payment: Final = view(PaymentRecord)


class Payments(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant: str = ""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    invoice: str
    amount: str  # Decimal.


class NewPayment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came in. A tenant's own users pay from its wallet only: by `prepaid`."""

    tenant: str = ""  # Empty: the caller's own.
    method: str
    amount: str  # Decimal, in the customer's currency: "93242.45".
    reference: str = ""
    received: datetime | None = None  # Null: now.
    invoices: list[Part] | None = None  # Null: all that are open, those that are due first before the others.
    again: bool = False  # Its reference may be there already: it is another payment all the same.


class Reversal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: str
    entry_error: bool = False  # It was written down by mistake: only so is cash reversed.


class Wallet(msgspec.Struct, frozen=True, kw_only=True):
    currency: str
    balance: int  # Smallest units.
    items: list[Any]
    next: str | None


class Overdue(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    invoice: str
    number: str
    due: str | None
    currency: str
    open: int  # Smallest units.


def records(call: Call) -> Sequence[bytes]:
    return [payment_key(call.params["payment"])]


def wallet_records(call: Call) -> Sequence[bytes]:
    return [wallet_key(call.params["tenant"])]


async def of_payment(call: Call) -> str | None:
    return (await payments.find_payment(call.kv, call.params["payment"])).tenant


async def list_all(call: Call) -> List[Any]:
    tenant = call.query.tenant or call.caller.tenant
    if not tenant:
        raise Problem(400, "the address's query: tenant is missing")

    async def read(after: str, limit: int) -> list[PaymentRecord]:
        return await payments.list_payments(call.kv, tenant, after=after, limit=limit)

    return await page(call.query, read, lambda record: record.id, shown)


async def receive(call: Call) -> Any:
    body: NewPayment = call.body
    tenant = body.tenant or call.caller.tenant
    if not tenant:
        raise BadArgument("tenant is missing", name="tenant")
    if not call.caller.is_operator and body.method != payments.PREPAID:
        raise Problem(403, "only the operator says what money came in; pay from the wallet by prepaid")
    currency = (await find_customer(call.kv, tenant)).currency
    now_us = call.now_us
    payment = payments.new_payment(
        ulid(now_us, call.services.randomness),
        tenant,
        body.method,
        Money.parse(body.amount, currency),
        received_us=microseconds(body.received) or now_us,
        reference=body.reference,
    )
    parts = body.invoices
    chosen = (
        None
        if parts is None
        else [(part.invoice, Money.parse(part.amount, currency).minor) for part in parts]
    )
    made = await payments.receive_payment(call.kv, payment, chosen, now_us=now_us, again=body.again)
    try:
        await dunning.review(call.kv, tenant, now_us=now_us)
    except StoreError as failure:  # The payment is written down; the service looks at the account later.
        log.warning("account not reviewed", extra={"tenant": tenant, "failure": repr(failure)})
    return shown(made)


async def show(call: Call) -> Any:
    return shown(await payments.find_payment(call.kv, call.params["payment"]))


async def reverse(call: Call) -> Any:
    record = await payments.reverse_payment(
        call.kv,
        call.params["payment"],
        reason=call.body.reason,
        now_us=call.now_us,
        entry_error=call.body.entry_error,
    )
    return shown(record)


async def wallet(call: Call) -> Any:
    tenant = call.params["tenant"]
    held = await wallets.balance(call.kv, tenant)
    if held is None:
        held = Money(0, (await find_customer(call.kv, tenant)).currency)

    async def read(after: str, limit: int) -> list[tuple[int, WalletEntryRecord]]:
        if after and not (after.isascii() and after.isdecimal() and len(after) <= 18):
            raise Problem(400, "the address's query: cursor is not one of ours")
        return await wallets.list_entries(call.kv, tenant, after=int(after or 0), limit=limit)

    def show_one(one: tuple[int, WalletEntryRecord]) -> Any:
        return {"sequence": one[0], **shown(one[1])}

    part = await page(call.query, read, lambda one: str(one[0]), show_one)
    return {"currency": held.currency, "balance": held.minor, "items": part.items, "next": part.next}


async def open_invoices(call: Call) -> List[Any]:
    """A page is a page of customers: it may hold fewer rows, and more."""

    async def read(after: str, limit: int) -> list[CustomerRecord]:
        return await list_customers(call.kv, after=after, limit=limit)

    customers = await page(call.query, read, lambda one: one.tenant, lambda one: one.tenant)
    rows: list[dict[str, Any]] = []
    for tenant in customers.items:
        for document in await payments.list_open(call.kv, tenant):
            record = await find_document(call.kv, document)
            facts = shown(record)
            rows.append(
                {
                    "tenant": tenant,
                    "invoice": record.id,
                    "number": record.number,
                    "due": facts["due"],
                    "currency": record.currency,
                    "open": open_amount(record),
                }
            )
    return List(rows, customers.next)


_ALL, _ONE = "/api/v1/payments", "/api/v1/payments/{payment}"
ROUTES: Final = (
    Route(
        method="GET", path=_ALL, name="list_payments", summary="A tenant's payments.",
        rule=READ, owner=in_query, query=Payments, handler=list_all, answer=list_of(Payment),
    ),
    Route(
        method="POST", path=_ALL, name="receive_payment",
        summary="Write a payment down and count it on invoices; the rest goes to the wallet.",
        rule=WRITE, owner=in_body, owner_in_body=True, body=NewPayment, handler=receive, answer=Payment,
        status=201,
    ),
    Route(
        method="GET", path=_ONE, name="show_payment", summary="A payment.",
        rule=READ, owner=of_payment, handler=show, answer=Payment, tags=records,
    ),
    Route(
        method="POST", path=f"{_ONE}/reverse", name="reverse_payment",
        summary="It bounced, was called back, or written down by mistake: its invoices are open again.",
        rule=OPERATORS, owner=of_payment, body=Reversal, handler=reverse, answer=Payment, tags=records,
    ),
    Route(
        method="GET", path="/api/v1/tenants/{tenant}/wallet", name="show_wallet",
        summary="What was paid in advance, and each change of it.",
        rule=READ, owner=in_path, query=Page, handler=wallet, answer=Wallet, tags=wallet_records,
    ),
    Route(
        method="GET", path="/api/v1/reports/open-invoices", name="report_open_invoices",
        summary="All invoices that are not paid in full, tenant by tenant.",
        rule=OPERATORS, owner=of_store, query=Page, handler=open_invoices, answer=List[Overdue],
    ),
)  # fmt: skip
