"""Payments: what came in, on which invoices it was counted, and what of it bounced.

A payment is written down in one commit with all that it changes: each invoice that it pays, the wallet that
takes what no invoice took. One that is reversed opens its invoices again and takes back what went to the
wallet, also where that was spent: the wallet is below zero then, and what comes next fills it.

What has a reference is written down once: a second payment of the same tenant, method and reference is
refused unless it is meant, or each before it was reversed.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import msgspec

from objstore.errors import BadArgument, StateForbids
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import decode
from objstore.rental import wallets
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import DAY_US, no_such_customer
from objstore.rental.drafts import ExchangeRate
from objstore.rental.money import Money
from objstore.rental.names import check_id, check_text
from objstore.rental.records import (
    Allocation,
    CustomerRecord,
    InvoiceRecord,
    PaymentRecord,
    customer_key,
    document_key,
    open_key,
    payment_key,
    payment_reference_key,
    tenant_payment_key,
)
from objstore.rental.settlement import find_final, no_such_document, open_amount, put_settled

PREPAID: Final = "prepaid"  # Out of the wallet.
CASH: Final = "especes"
MANDATE: Final = "mandat_administratif"
METHODS: Final = ("virement", "cheque", "cib_edahabia", "carte", CASH, MANDATE, PREPAID)
REFERENCED: Final = frozenset({"virement", "cheque", MANDATE})  # Without a reference nobody finds them again.
ALLOCATIONS_MAX: Final = 60  # Invoices of one payment: a commit of some 200 keys.
SAME_REFERENCE_MAX: Final = 60  # Payments that stand with one reference: keys of a commit as well.
AHEAD_MAX_US: Final = DAY_US  # Of a day that a clerk names: zones differ by that much.
RECEIVED: Final = "received"
REVERSED: Final = "reversed"


def no_such_payment(payment: str) -> BadArgument:
    return BadArgument(f"there is no payment {payment!r}", name="payment", value=payment)


def new_payment(
    payment: str,
    tenant: str,
    method: str,
    amount: Money,
    *,
    received_us: int,
    reference: str = "",
    fx: ExchangeRate | None = None,
) -> PaymentRecord:
    """What came in, checked.

    Args:
        payment: its id, a ULID; the same again is the same payment, written down once.
        amount: as it came; where `fx` is given, it is counted in the currency that the rate leads to.

    Raises: BadArgument.
    """
    if method not in METHODS:
        raise BadArgument(f"a method is one of {', '.join(METHODS)}", name="method", value=method)
    if method in REFERENCED and not reference:
        raise BadArgument(f"a payment by {method} has a reference", name="reference")
    if amount.minor <= 0:
        raise BadArgument(f"a payment is above zero: {amount}", name="amount", value=str(amount))
    counted = amount if fx is None else Money.of(amount.exact * Fraction(fx.rate), fx.into)
    if counted.minor <= 0:
        raise BadArgument(f"{amount} {amount.currency} come to nothing", name="amount", value=str(amount))
    return PaymentRecord(
        id=check_id(payment, "payment"),
        tenant=tenant,
        method=method,
        currency=counted.currency,
        amount=counted.minor,
        reference=check_text(reference, "reference", size_max=100),
        received_us=received_us,
        fx="" if fx is None else str(fx),
        foreign="" if fx is None else f"{amount} {amount.currency}",
    )


async def receive_payment(
    kv: Kv,
    payment: PaymentRecord,
    invoices: Sequence[tuple[str, int]] | None,
    *,
    now_us: int,
    again: bool = False,
) -> PaymentRecord:
    """Write a payment down and count it on invoices; what none of them takes goes to the wallet.

    Args:
        invoices: ids and amounts; an invoice takes at most what is open of it. None: all that are open, those
            that are due first before the others. Empty: all of it to the wallet.
        again: its reference may be there already: it is another payment all the same.

    Raises: BadArgument (another customer's invoice, another currency, more than is there), StateForbids (its
        reference is there already), Overloaded.
    """

    async def decide(change: Change) -> PaymentRecord:
        there = await change.record(payment_key(payment.id), PaymentRecord)
        if there is not None:
            _check_same(there, payment)
            return there
        if payment.reference:
            await _note_reference(change, payment, again=again)
        return await _receive(change, payment, invoices, now_us)

    return await commit_change(kv, decide, what=f"payment {payment.id}")


async def _note_reference(change: Change, payment: PaymentRecord, *, again: bool) -> None:
    """Note that it has its reference, beside those before it that stand. Raises: StateForbids."""
    key = payment_reference_key(payment.tenant, payment.method, payment.reference)
    standing = await _standing(change, key)
    if standing and not again:
        there = standing[0]
        amount = Money(there.amount, there.currency)
        raise StateForbids(
            f"payment {there.id} of {amount} {there.currency} by {there.method} has the reference"
            f" {there.reference!r} already: if this is another one, say so (--again; again: true)"
        )
    if len(standing) >= SAME_REFERENCE_MAX:
        raise StateForbids(
            f"{len(standing)} payments by {payment.method} have the reference {payment.reference!r}: no more"
            " than that may share one, give this one another"
        )
    change.put_value(key, " ".join([*(one.id for one in standing), payment.id]).encode())


async def _standing(change: Change, key: bytes) -> list[PaymentRecord]:
    """Of the payments that are noted under a reference those that are not reversed, in order of noting."""
    noted = (await change.value(key) or b"").decode().split()
    payments = [await change.found(payment_key(one), PaymentRecord, no_such_payment(one)) for one in noted]
    return [one for one in payments if one.state != REVERSED]


def _check_same(there: PaymentRecord, payment: PaymentRecord) -> None:
    """Raises: BadArgument."""
    for name in ("tenant", "method", "currency", "amount", "reference"):
        if getattr(there, name) != getattr(payment, name):
            raise BadArgument(f"payment {payment.id} has another {name}", name=name)


async def _receive(
    change: Change, payment: PaymentRecord, invoices: Sequence[tuple[str, int]] | None, now_us: int
) -> PaymentRecord:
    tenant = payment.tenant
    customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
    if payment.received_us > now_us + AHEAD_MAX_US:
        raise BadArgument("what is written down has come in: its day lies ahead", name="received")
    if payment.received_us < customer.created_us - AHEAD_MAX_US:
        raise BadArgument(f"on that day {tenant!r} was no customer yet", name="received")
    if payment.method == MANDATE and customer.kind != "administration":
        raise BadArgument(f"{tenant!r} is no administration", name="method", value=payment.method)
    if invoices is None:
        chosen = await _open_invoices(change, payment)
    else:
        chosen = [Allocation(invoice=invoice, amount=amount) for invoice, amount in invoices]
        await _check_chosen(change, payment, chosen)
    rest = payment.amount - sum(one.amount for one in chosen)
    if payment.method == PREPAID:
        await _check_prepaid(change, payment, rest)
    payment = msgspec.structs.replace(payment, made_us=now_us, allocations=chosen, to_wallet=rest)
    for one in chosen:
        record = await find_final(change, one.invoice)
        put_settled(change, record, now_us=payment.received_us, paid=record.paid + one.amount)
    moved = -payment.amount if payment.method == PREPAID else rest
    await _move(change, payment, moved, wallets.PAYMENT, now_us)
    change.put(payment_key(payment.id), payment)
    change.put_value(tenant_payment_key(tenant, payment.id), b"")
    return payment


async def _check_prepaid(change: Change, payment: PaymentRecord, rest: int) -> None:
    """Raises: BadArgument."""
    wallet = await wallets.wallet_of(change, payment.tenant, payment.currency)
    if wallet.balance < payment.amount:
        raise BadArgument(
            f"the wallet of {payment.tenant!r} has {Money(wallet.balance, payment.currency)}",
            name="amount",
            value=str(payment.amount),
        )
    if rest:
        raise BadArgument(
            f"no invoice takes {Money(rest, payment.currency)} of it: it stays in the wallet",
            name="amount",
            value=str(payment.amount),
        )


async def _move(change: Change, payment: PaymentRecord, amount: int, kind: str, at_us: int) -> None:
    money = Money(amount, payment.currency)
    await wallets.move(change, payment.tenant, money, kind=kind, document=payment.id, at_us=at_us)


async def _open_invoices(change: Change, payment: PaymentRecord) -> list[Allocation]:
    """Those that are due first, as many as it pays; what is issued meanwhile waits for the next one."""
    chosen: list[Allocation] = []
    left = payment.amount
    for document in await list_open(change.kv, payment.tenant, limit=ALLOCATIONS_MAX):
        record = await change.found(document_key(document), InvoiceRecord, no_such_document(document))
        amount = min(left, open_amount(record))
        if amount and record.currency == payment.currency:
            chosen.append(Allocation(invoice=document, amount=amount))
            left -= amount
        if not left:
            break
    return chosen


async def _check_chosen(change: Change, payment: PaymentRecord, chosen: Sequence[Allocation]) -> None:
    """Raises: BadArgument."""
    if len(chosen) > ALLOCATIONS_MAX or len({one.invoice for one in chosen}) < len(chosen):
        raise BadArgument(f"at most {ALLOCATIONS_MAX} invoices, each once", name="invoices")
    if sum(one.amount for one in chosen) > payment.amount:
        raise BadArgument("more is counted on invoices than came in", name="invoices")
    for one in chosen:
        record = await _own_invoice(change, payment.tenant, one.invoice)
        if record.currency != payment.currency:
            raise BadArgument(
                f"{record.number} is in {record.currency}, not in {payment.currency}",
                name="invoice",
                value=one.invoice,
            )
        if not 0 < one.amount <= open_amount(record):
            left = Money(open_amount(record), record.currency)
            raise BadArgument(f"{record.number} has {left} open", name="amount", value=str(one.amount))


async def _own_invoice(change: Change, tenant: str, invoice: str) -> InvoiceRecord:
    """An invoice of this customer; whatever is another's is not there, for tenants ask as well.

    Raises: BadArgument.
    """
    absent = no_such_document(invoice)
    record = await change.found(document_key(invoice), InvoiceRecord, absent)
    if record.tenant != tenant:
        raise absent
    return await find_final(change, invoice)


async def reverse_payment(
    kv: Kv, payment: str, *, reason: str, now_us: int, entry_error: bool = False
) -> PaymentRecord:
    """A cheque bounced, a transfer was called back, or it was written down by mistake: its invoices are open
    again.

    The same again changes nothing.

    Args:
        entry_error: it never came in as it was written down. Only so is cash reversed, which does not bounce.

    Raises: BadArgument (no such payment), StateForbids (what does not bounce), Overloaded.
    """
    check_text(reason, "reason")

    async def decide(change: Change) -> PaymentRecord:
        record = await change.found(payment_key(payment), PaymentRecord, no_such_payment(payment))
        if record.state == REVERSED:
            return record
        if record.method == PREPAID:
            raise StateForbids("what the wallet paid does not bounce: a credit note gives it back")
        if record.method == CASH and not entry_error:
            raise StateForbids(
                "cash does not bounce: if it was written down by mistake, say so (--entry-error;"
                " entry_error: true)"
            )
        return await _reverse(change, record, reason, now_us)

    return await commit_change(kv, decide, what=f"payment {payment}")


async def _reverse(change: Change, record: PaymentRecord, reason: str, now_us: int) -> PaymentRecord:
    back = record.to_wallet
    for one in record.allocations:
        invoice = await find_final(change, one.invoice)
        # What a credit note gave back because this had been paid: it was not, so nothing was to be given.
        undone = min(one.amount, invoice.returned)
        put_settled(
            change,
            invoice,
            now_us=now_us,
            paid=invoice.paid - one.amount,
            returned=invoice.returned - undone,
        )
        back += undone
    await _move(change, record, -back, wallets.REVERSED, now_us)
    record = msgspec.structs.replace(record, state=REVERSED, reversed_us=now_us, reason=reason)
    change.put(payment_key(record.id), record)
    return record


async def find_payment(kv: Kv, payment: str) -> PaymentRecord:
    """Raises: BadArgument (no such payment)."""
    value = await kv.get(payment_key(payment))
    if value is None:
        raise no_such_payment(payment)
    return decode(value, PaymentRecord)


async def list_payments(kv: Kv, tenant: str, *, after: str = "", limit: int = 1_000) -> list[PaymentRecord]:
    """A tenant's, with ids > after, in order of making."""
    prefix = tenant_payment_key(tenant, "")
    start = prefix + after.encode() + b"\0" if after else prefix
    pairs = await kv.scan(start, prefix_end(prefix), limit)
    values = await kv.get_many([payment_key(key[len(prefix) :].decode()) for key, _ in pairs])
    return [decode(value, PaymentRecord) for value in values if value is not None]


async def list_open(kv: Kv, tenant: str, *, limit: int = 1_000) -> list[str]:
    """The ids of a tenant's invoices that are not paid in full, in the order in which they are due."""
    prefix = open_key(tenant, 0, "")[:-8]
    pairs = await kv.scan(prefix, prefix_end(prefix), limit)
    return [key[len(prefix) + 8 :].decode() for key, _ in pairs]
