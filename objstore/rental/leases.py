"""Leases: capacity for a term, from the quote to its end.

    quote -> draft -> signed -> active -> ended          its term is over
       \\        \\        \\        \\----> terminated     early, for a fee
        \\        \\        \\-------------> terminated     before it began
         \\--------\\---------------------> withdrawn

Signing is admission (rental/admission.py), in the commit that makes the lease signed: it expects all that is
sold (rental/sales.py), so two operators cannot sell the same capacity. What a quote says of capacity binds
nobody. A lease that renews itself is admitted again when the time for notice is over; if there is no capacity
left for it, it ends with its term, and says why.
"""

import calendar
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR
from fractions import Fraction
from typing import Final

import msgspec

from objstore.clock import SECOND_US, utc_text
from objstore.errors import BadArgument, NotEnoughCapacity, StateForbids
from objstore.meta.kv import Kv
from objstore.meta.schema import AccountRecord, account_key, decode
from objstore.rental.admission import Span, check_dedicated
from objstore.rental.carried import put_carried, termination_fee
from objstore.rental.catalogue import expect_service_level
from objstore.rental.changes import Change, commit_change
from objstore.rental.commitments import MODES, STEPS_MAX, commitment_of
from objstore.rental.customers import no_such_customer
from objstore.rental.leased import follow_leases, set_leased
from objstore.rental.money import Money, minor_units, parse_decimal
from objstore.rental.months import Month
from objstore.rental.names import check_days, check_text
from objstore.rental.plans import BYTES
from objstore.rental.records import (
    CarriedRecord,
    CustomerRecord,
    LeaseRecord,
    carried_key,
    customer_key,
    lease_key,
    pool_of_lease,
    taken_key,
    tenant_lease_key,
)
from objstore.rental.sales import Book, Survey, all_leases, lease_spans, note_sale, open_book

KINDS: Final = ("guaranteed", "best_effort", "dedicated")
OPEN: Final = frozenset({"quote", "draft"})  # States in which terms may still change.
MAY_LEASE: Final = frozenset({"trial", "active"})  # States of an account that may be offered a lease,
ORDERS: Final = "active"  # and that of one that orders by itself: whose it is was checked, and is invoiced.
DAY_US: Final = 86_400 * SECOND_US
TERM_MONTHS_MAX: Final = 240
NODES_MAX: Final = 64  # Of one lease: the layout has 73 bytes for each, within a record's 8 KiB.
CAPACITY_MAX: Final = 9 * 10**18  # Bytes: nine exabytes, which MessagePack still has a number for.
FEE_WORDS: Final = {
    "fr": "Indemnité de résiliation anticipée",
    "ar": "تعويض الإنهاء المبكر للعقد",
    "en": "Early termination fee",
}
CHANGED_MAX: Final = 100  # Leases changed by one pass.


def no_such_lease(lease: str) -> BadArgument:
    return BadArgument(f"there is no lease {lease!r}", name="lease", value=lease)


def after_months(at_us: int, months: int) -> int:
    """The same day and time so many months later; the month's last day if it has no such day.

    Raises: BadArgument (beyond the years that a calendar has).
    """
    moment = time.gmtime(at_us // SECOND_US)
    ahead = moment.tm_mon - 1 + months
    year, month = moment.tm_year + ahead // 12, ahead % 12 + 1
    if not MINYEAR <= year <= MAXYEAR:
        raise BadArgument(
            f"{months} months from {_day(at_us)} on end in no year from {MINYEAR} to {MAXYEAR}",
            name="term_months",
            value=str(months),
        )
    day = min(moment.tm_mday, calendar.monthrange(year, month)[1])
    seconds = calendar.timegm((year, month, day, moment.tm_hour, moment.tm_min, moment.tm_sec))
    return seconds * SECOND_US


def check_lease(lease: LeaseRecord) -> LeaseRecord:
    """Raises: BadArgument for terms that cannot be rated or admitted."""
    if lease.kind not in KINDS:
        raise BadArgument(f"a lease is one of {', '.join(KINDS)}", name="kind", value=lease.kind)
    if not 1 <= lease.term_months <= TERM_MONTHS_MAX:
        raise BadArgument(
            f"a term is 1 to {TERM_MONTHS_MAX} months", name="term_months", value=str(lease.term_months)
        )
    if lease.begin_us <= 0 or lease.begin_us % SECOND_US or lease.end_us % SECOND_US:
        raise BadArgument("a lease begins and ends in whole seconds", name="begin")
    if lease.begin_us >= lease.end_us:
        raise BadArgument("a lease ends after it began", name="end")
    check_ramp(lease)
    if bool(lease.nodes) != (lease.kind == "dedicated") or len(lease.nodes) > NODES_MAX:
        raise BadArgument(
            f"a dedicated lease names its nodes, at most {NODES_MAX}, and no other does", name="nodes"
        )
    minor_units(lease.currency)
    for name in ("unit_price", "overage_price", "fee_share"):
        if parse_decimal(getattr(lease, name), name) < 0:
            raise BadArgument(f"{name} is 0 or more", name=name, value=getattr(lease, name))
    if parse_decimal(lease.fee_share) > 1:
        raise BadArgument("a fee is a share of what remains, at most 1", name="fee_share")
    if lease.unit not in BYTES:
        raise BadArgument(f"a unit is one of {', '.join(BYTES)}", name="unit", value=lease.unit)
    if lease.billing not in ("arrears", "advance"):
        raise BadArgument("billing is in arrears or in advance", name="billing", value=lease.billing)
    if lease.overage_mode and lease.overage_mode not in MODES:
        raise BadArgument(
            f"overage is billed by {', '.join(MODES)}", name="overage_mode", value=lease.overage_mode
        )
    if lease.overage_max is not None and (lease.overage_max < 0 or not lease.overage_mode):
        raise BadArgument("0 or more bytes may be stored above a lease that bills them", name="overage_max")
    check_days(lease.notice_days, "notice days", most=366)
    if not 0 <= lease.fee_months <= TERM_MONTHS_MAX:
        raise BadArgument(f"fee months are 0 to {TERM_MONTHS_MAX}", name="fee_months")
    check_text(lease.purchase_order, "purchase order", size_max=64)
    return lease


def check_ramp(lease: LeaseRecord) -> None:
    """Raises: BadArgument."""
    if not 1 <= lease.capacity <= CAPACITY_MAX:
        raise BadArgument(f"capacity is 1 to {CAPACITY_MAX} bytes", name="bytes", value=str(lease.capacity))
    moments = [moment for moment, _ in lease.ramp]
    sizes = [size for _, size in lease.ramp]
    if len(moments) > STEPS_MAX or moments != sorted(set(moments)) or any(m % SECOND_US for m in moments):
        raise BadArgument(f"a ramp has at most {STEPS_MAX} steps, in order, in whole seconds", name="ramp")
    if moments and (moments[0] != lease.begin_us or moments[-1] >= lease.end_us):
        raise BadArgument("a ramp begins with its lease and has no step behind its end", name="ramp")
    if sizes and (min(sizes) < 0 or max(sizes) != lease.capacity):
        raise BadArgument("a ramp has 0 bytes or more, and the capacity at its highest step", name="ramp")


def charges_between(lease: LeaseRecord, begin_us: int, end_us: int) -> Money:
    """What its capacity costs in [begin, end): each calendar month rounded on its own, as it is billed."""
    commitment = commitment_of(lease)
    price = Fraction(commitment.unit_price) / BYTES[lease.unit]
    begin_s, end_s = begin_us // SECOND_US, end_us // SECOND_US
    sum_minor = 0
    while begin_s < end_s:
        month = Month.containing(begin_s)
        until_s = min(month.end_s, end_s)
        size = Fraction(commitment.byte_seconds(begin_s, until_s), month.seconds)
        sum_minor += Money.of(size * price, lease.currency).minor
        begin_s = until_s
    return Money(sum_minor, lease.currency)


# Its life. Every function below raises BadArgument for what cannot be done, and Overloaded.


async def find_lease(kv: Kv, lease: str) -> LeaseRecord:
    value = await kv.get(lease_key(lease))
    if value is None:
        raise no_such_lease(lease)
    return decode(value, LeaseRecord)


async def make_lease(kv: Kv, lease: LeaseRecord, *, now_us: int) -> LeaseRecord:
    """Keep a new quote or draft. It binds nobody yet."""
    if lease.state not in OPEN:
        raise BadArgument("a lease begins as a quote or a draft", name="state", value=lease.state)
    lease = msgspec.structs.replace(check_lease(lease), made_us=now_us)

    async def decide(change: Change) -> LeaseRecord:
        await check_tenant(change, lease)
        await put_new(change, lease)
        return lease

    return await commit_change(kv, decide, what="a lease")


async def edit_lease(kv: Kv, lease: str, **given: object) -> LeaseRecord:
    """Other terms, so long as it is not signed. Its end follows its beginning and term unless it is given."""
    fixed = {"id", "tenant", "state", "made_us", "signed_us", "active_us", "ended_us", "billed_until_us"}
    wrong = given.keys() - set(LeaseRecord.__struct_fields__) | given.keys() & {*fixed, "format", "renewals"}
    if wrong:
        raise BadArgument(f"{min(wrong)} of a lease is not set like this", name=min(wrong))

    def edited(record: LeaseRecord) -> LeaseRecord:
        _check_state(record, OPEN)
        new = msgspec.structs.replace(record, **given)
        if given.keys() & {"begin_us", "term_months"} and "end_us" not in given:
            new = msgspec.structs.replace(new, end_us=after_months(new.begin_us, new.term_months))
        return check_lease(new)

    return await _alter(kv, lease, edited)


async def accept_quote(kv: Kv, lease: str, *, now_us: int) -> LeaseRecord:
    """Quote -> draft."""

    def accepted(record: LeaseRecord) -> LeaseRecord:
        _check_state(record, {"quote"})
        if record.valid_until_us and now_us >= record.valid_until_us:
            raise StateForbids("the quote has expired", name="valid_until", value=_day(record.valid_until_us))
        return msgspec.structs.replace(record, state="draft")

    return await _alter(kv, lease, accepted)


async def withdraw(kv: Kv, lease: str, *, now_us: int) -> LeaseRecord:
    """Quote or draft -> withdrawn."""

    def withdrawn(record: LeaseRecord) -> LeaseRecord:
        _check_state(record, OPEN)
        return msgspec.structs.replace(record, state="withdrawn", ended_us=now_us)

    return await _alter(kv, lease, withdrawn)


async def sign(kv: Kv, lease: str, survey: Survey, *, now_us: int) -> LeaseRecord:
    """Draft -> signed, if it is admitted: the capacity is sold in the same commit.

    Raises: NotEnoughCapacity: there is not enough, at which moment, and how much is missing.
    """

    async def decide(change: Change) -> LeaseRecord:
        record = await change.found(lease_key(lease), LeaseRecord, no_such_lease(lease))
        _check_state(record, {"draft"})
        await check_tenant(change, record)
        return await sell(change, record, survey, now_us=now_us)

    return await commit_change(kv, decide, what="a lease")


async def sell(change: Change, lease: LeaseRecord, survey: Survey, *, now_us: int) -> LeaseRecord:
    """Put a lease as signed, admitted against all that is sold.

    Raises: NotEnoughCapacity, BadArgument.
    """
    if lease.end_us <= now_us:
        raise StateForbids("its term is over already", name="end", value=_day(lease.end_us))
    await expect_service_level(change, lease.sla)
    signed = msgspec.structs.replace(check_lease(lease), state="signed", signed_us=now_us)
    admit(await open_book(change, survey), signed, lease_spans(signed), now_us)
    change.put(lease_key(lease.id), signed)
    await note_sale(change)
    return signed


async def answer(kv: Kv, lease: LeaseRecord, survey: Survey, *, now_us: int) -> str:
    """Why a lease would not be admitted just now, in words; empty: it would be. It binds nobody."""
    try:
        signed = msgspec.structs.replace(check_lease(lease), signed_us=now_us)
        admit(await open_book(Change(kv), survey), signed, lease_spans(signed), now_us)
    except (NotEnoughCapacity, BadArgument) as failure:
        return str(failure)
    return ""


def admit(book: Book, lease: LeaseRecord, spans: list[Span], now_us: int) -> None:
    """Whether capacity may be sold to a lease, beside what the others have.

    Args:
        spans: along its ramp; what lies in the past is not judged.

    Raises: NotEnoughCapacity, BadArgument (the nodes of a dedicated one).
    """
    ahead = [span._replace(begin=max(span.begin, now_us)) for span in spans if span.end > now_us]
    if lease.kind == "dedicated":
        _admit_dedicated(book, lease, max((span.size for span in ahead), default=0), now_us)
        return
    sales = book.sales(lease.pool, now_us, without=lease.id)
    shortage = sales.shortage_with(ahead, best_effort=lease.kind == "best_effort")
    if shortage is not None:
        raise NotEnoughCapacity(
            f"{shortage.size} bytes are missing in {_pool(lease.pool)} on {_day(shortage.moment)}",
            missing=shortage.size,
            moment_us=shortage.moment,
        )


def _admit_dedicated(book: Book, lease: LeaseRecord, size: int, now_us: int) -> None:
    known = {node.id: node for node in book.supply.nodes}
    for name in lease.nodes:
        if name not in known:
            raise BadArgument(f"there is no node {name} that takes data", name="nodes", value=name)
    nodes = [known[node] for node in lease.nodes]
    others = [one for one in book.leases if one.id != lease.id]
    taken = {node for one in others if one.kind == "dedicated" for node in one.nodes}
    check_dedicated(nodes, book.rules(lease.pool), size, taken=taken)
    for node in nodes:
        if node.pool not in (lease.pool, pool_of_lease(lease.id)):
            raise BadArgument(
                f"node {node.id} is in {_pool(node.pool)}, not in {_pool(lease.pool)}", name="nodes"
            )
    without = Book(book.record, [*others, lease], book.events, book.supply).sales(lease.pool, now_us)
    shortage = without.oversold(max(now_us, lease.begin_us))
    if shortage is not None:
        raise NotEnoughCapacity(
            f"without these nodes {shortage.size} bytes are missing in {_pool(lease.pool)}"
            f" on {_day(shortage.moment)} for what is sold there",
            missing=shortage.size,
            moment_us=shortage.moment,
        )


async def extend_ramp(
    kv: Kv, lease: str, survey: Survey, *, from_us: int, size: int, now_us: int
) -> LeaseRecord:
    """Another capacity from a moment to come on; more of it is admitted like a new lease."""

    async def decide(change: Change) -> LeaseRecord:
        record = await change.found(lease_key(lease), LeaseRecord, no_such_lease(lease))
        _check_state(record, {"signed", "active"})
        if not max(now_us, record.begin_us) <= from_us < record.end_us:
            raise BadArgument("a step lies ahead, within the term", name="from", value=_day(from_us))
        steps = record.ramp or [(record.begin_us, record.capacity)]
        ramp = [*(step for step in steps if step[0] < from_us), (from_us, size)]
        changed = check_lease(
            msgspec.structs.replace(record, ramp=ramp, capacity=max(one for _, one in ramp))
        )
        if any(span.size < size for span in lease_spans(record) if span.end > from_us):
            admit(await open_book(change, survey), changed, lease_spans(changed), now_us)
        change.put(lease_key(lease), changed)
        await note_sale(change)
        await set_leased(change, changed.tenant, now_us=now_us, changed=changed)
        return changed

    return await commit_change(kv, decide, what="a lease")


async def give_notice(kv: Kv, lease: str, *, now_us: int) -> LeaseRecord:
    """It will not renew itself. Raises: BadArgument: the time for notice is over."""

    def noticed(record: LeaseRecord) -> LeaseRecord:
        _check_state(record, {"signed", "active"})
        if record.renews and now_us > notice_due(record):
            raise StateForbids(
                f"notice was to be given by {_day(notice_due(record))}", name="notice", value=_day(now_us)
            )
        return msgspec.structs.replace(record, notice_us=now_us, renews=False)

    return await _alter(kv, lease, noticed)


def notice_due(lease: LeaseRecord) -> int:
    """The last moment at which notice can be given."""
    return lease.end_us - lease.notice_days * DAY_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """An early end, and what it costs."""

    lease: LeaseRecord
    base: Money  # Charges of the term that will not come, so far as the fee is a share of them;
    share: Fraction  # and that share.

    @property
    def fee(self) -> Money:
        return self.base.share(self.share)


def termination(lease: LeaseRecord, at_us: int, now_us: int, reason: str) -> Termination:
    """What ending a signed or active lease at a moment comes to. Raises: BadArgument."""
    _check_state(lease, {"signed", "active"})
    if at_us % SECOND_US or not now_us <= at_us < lease.end_us:
        raise BadArgument(
            "an early end lies ahead, before the term's own, in whole seconds", name="at", value=_day(at_us)
        )
    check_text(reason, "reason")
    begin_us = max(at_us, lease.begin_us)
    until_us = lease.end_us
    if lease.fee_months:
        until_us = min(until_us, after_months(begin_us, lease.fee_months))
    base = charges_between(lease, begin_us, until_us)
    share = Fraction(parse_decimal(lease.fee_share))
    if at_us <= lease.begin_us:  # It never begins: nothing is sold, and nothing is rated but the fee.
        ended = msgspec.structs.replace(lease, state="terminated", ended_us=now_us, reason=reason)
        return Termination(lease=ended, base=base, share=share)
    ramp = [step for step in lease.ramp if step[0] < at_us]
    ended = msgspec.structs.replace(
        lease,
        end_us=at_us,
        ramp=ramp,
        capacity=max((size for _, size in ramp), default=lease.capacity),
        renews=False,
        reason=reason,
        state="terminated" if at_us <= now_us else lease.state,
        ended_us=now_us if at_us <= now_us else 0,
    )
    return Termination(lease=ended, base=base, share=share)


async def terminate(
    kv: Kv,
    lease: str,
    *,
    at_us: int,
    now_us: int,
    reason: str = "",
) -> Termination:
    """End it early: its capacity is free from that moment on, and the fee waits for the next invoice.

    Args:
        at_us: whole seconds, now or later.
    """

    async def decide(change: Change) -> Termination:
        record = await change.found(lease_key(lease), LeaseRecord, no_such_lease(lease))
        ended = termination(record, at_us, now_us, reason)
        change.put(lease_key(lease), ended.lease)
        await note_sale(change)
        await set_leased(change, record.tenant, now_us=now_us, changed=ended.lease)
        if ended.fee:
            await _bill_fee(change, ended, at_us, now_us)
        return ended

    return await commit_change(kv, decide, what="a lease")


async def _bill_fee(change: Change, ended: Termination, at_us: int, now_us: int) -> None:
    lease = ended.lease
    name = f"termination/{lease.id}"
    for key in (carried_key(lease.tenant, name), taken_key(lease.tenant, name)):
        if await change.record(key, CarriedRecord) is not None:
            raise StateForbids(
                "its early end is agreed already, and the fee for that is on the books: it cannot be moved",
                name="at",
                value=_day(at_us),
            )
    absent = no_such_customer(lease.tenant)
    customer = await change.found(customer_key(lease.tenant), CustomerRecord, absent)
    line = termination_fee(
        ended.base,
        ended.share,
        description=f"{FEE_WORDS[customer.language]} {lease.id}",
        lease=lease.id,
        at_us=at_us,
        product=lease.product,
    )
    await put_carried(change, lease.tenant, name, line, lease.id, now_us)


Ready = Callable[[LeaseRecord], Awaitable[str]]


async def all_ready(lease: LeaseRecord) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass over the leases came to: ids, and why not."""

    begun: list[str]
    ended: list[str]
    renewed: list[str]
    waiting: dict[str, str]  # Leases that were to begin, end or be renewed and could not, with the reason.
    followed: list[str] = field(default_factory=list)  # Tenants of which a ramp took a step.
    refused: dict[str, str] = field(default_factory=dict)  # Tenants of which it could not, with the reason.


async def advance(kv: Kv, survey: Survey, *, now_us: int, ready: Ready = all_ready) -> Pass:
    """Let leases begin, be renewed and end whose moment has come, and ramps take their steps: tenants may
    store what their leases say from then on. Repeated, it does nothing twice.

    Args:
        ready: why a dedicated lease cannot begin yet, in words; empty: it can.
    """
    done = Pass(begun=[], ended=[], renewed=[], waiting={})
    due = [lease for lease in await all_leases(kv) if _is_due(lease, now_us)]
    for lease in due[:CHANGED_MAX]:
        try:
            await _advance(kv, lease, survey, done, now_us=now_us, ready=ready)
        except BadArgument as failure:  # Of this lease: it holds up no other.
            done.waiting[lease.id] = failure.message
    followed, refused = await follow_leases(kv, await all_leases(kv), now_us=now_us)
    done.followed.extend(followed)
    done.refused.update(refused)
    return done


async def _advance(
    kv: Kv, lease: LeaseRecord, survey: Survey, done: Pass, *, now_us: int, ready: Ready
) -> None:
    """What is due of one lease; said in `done`. Raises: BadArgument."""
    if _renews_now(lease, now_us):
        try:
            await _renew(kv, lease.id, survey, now_us)
            done.renewed.append(lease.id)
        except NotEnoughCapacity as failure:
            done.waiting[lease.id] = f"it is not renewed: {failure}"
            if now_us >= lease.end_us:
                await _move(kv, lease.id, _ended(now_us, str(failure)), now_us)
                done.ended.append(lease.id)
    elif now_us >= lease.end_us:
        await _move(kv, lease.id, _ended(now_us, lease.reason), now_us)
        done.ended.append(lease.id)
    elif lease.kind == "dedicated" and (words := await ready(lease)):
        done.waiting[lease.id] = words
    else:
        await _move(kv, lease.id, _begun(now_us), now_us)
        done.begun.append(lease.id)


def _renews_now(lease: LeaseRecord, now_us: int) -> bool:
    return lease.renews and lease.state == "active" and now_us > notice_due(lease)


def _is_due(lease: LeaseRecord, now_us: int) -> bool:
    if lease.state == "signed":
        return now_us >= lease.begin_us
    return lease.state == "active" and (now_us >= lease.end_us or _renews_now(lease, now_us))


def _begun(now_us: int) -> Callable[[LeaseRecord], LeaseRecord]:
    def begun(record: LeaseRecord) -> LeaseRecord:
        if record.state != "signed" or now_us < record.begin_us:
            return record
        return msgspec.structs.replace(record, state="active", active_us=now_us)

    return begun


def _ended(now_us: int, reason: str) -> Callable[[LeaseRecord], LeaseRecord]:
    def ended(record: LeaseRecord) -> LeaseRecord:
        if record.state not in ("signed", "active") or now_us < record.end_us:
            return record
        # Its own term, or an early end that was set before.
        whole = record.end_us >= after_months(record.begin_us, (record.renewals + 1) * record.term_months)
        state = "ended" if whole else "terminated"
        return msgspec.structs.replace(record, state=state, ended_us=now_us, reason=reason)

    return ended


async def _move(kv: Kv, lease: str, alter: Callable[[LeaseRecord], LeaseRecord], now_us: int) -> None:
    """A change of state that may give capacity back; its tenant is held to what it leases from then on."""

    async def decide(change: Change) -> None:
        record = await change.found(lease_key(lease), LeaseRecord, no_such_lease(lease))
        after = alter(record)
        if after != record:
            change.put(lease_key(lease), after)
            await note_sale(change)
            await set_leased(change, record.tenant, now_us=now_us, changed=after)

    await commit_change(kv, decide, what="a lease")


async def _renew(kv: Kv, lease: str, survey: Survey, now_us: int) -> None:
    """The same capacity for another term. Raises: NotEnoughCapacity."""

    async def decide(change: Change) -> None:
        record = await change.found(lease_key(lease), LeaseRecord, no_such_lease(lease))
        if not _renews_now(record, now_us):
            return
        terms = record.renewals + 2
        longer = msgspec.structs.replace(
            record, end_us=after_months(record.begin_us, terms * record.term_months), renewals=terms - 1
        )
        admit(await open_book(change, survey), longer, lease_spans(longer), now_us)
        change.put(lease_key(lease), longer)
        await note_sale(change)

    await commit_change(kv, decide, what="a lease")


# Parts of the above.


async def check_tenant(change: Change, lease: LeaseRecord, *, orders: bool = False) -> CustomerRecord:
    """Raises: BadArgument: it is no customer, its account is closed, or its currency another one.

    Args:
        orders: no operator looks at it: who is on trial is not invoiced, and orders nothing.
    """
    tenant = lease.tenant
    customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
    account = await change.record(account_key(tenant), AccountRecord) or AccountRecord()
    if account.state not in MAY_LEASE or (orders and account.state != ORDERS):
        raise StateForbids(f"the account of {tenant} is {account.state}", name="tenant", value=tenant)
    if customer.currency != lease.currency:
        raise BadArgument(
            f"{tenant} is billed in {customer.currency}, not in {lease.currency}",
            name="currency",
            value=lease.currency,
        )
    return customer


async def put_new(change: Change, lease: LeaseRecord) -> None:
    if await change.value(lease_key(lease.id)) is not None:
        raise BadArgument(f"there is a lease {lease.id} already", name="lease", value=lease.id)
    change.put(lease_key(lease.id), lease)
    change.put_value(tenant_lease_key(lease.tenant, lease.id), b"")


async def _alter(kv: Kv, lease: str, alter: Callable[[LeaseRecord], LeaseRecord]) -> LeaseRecord:
    """A change that sells nothing and gives nothing back."""

    async def decide(change: Change) -> LeaseRecord:
        record = alter(await change.found(lease_key(lease), LeaseRecord, no_such_lease(lease)))
        change.put(lease_key(lease), record)
        return record

    return await commit_change(kv, decide, what="a lease")


def _check_state(lease: LeaseRecord, wanted: set[str] | frozenset[str]) -> None:
    if lease.state not in wanted:
        raise StateForbids(
            f"lease {lease.id} is {lease.state}; this is done to one that is {' or '.join(sorted(wanted))}",
            name="state",
            value=lease.state,
        )


def _pool(pool: str) -> str:
    return f"pool {pool}" if pool else "the shared pool"


def _day(at_us: int) -> str:
    return utc_text(at_us / 1e6)
