"""Public offers: leases that tenants order by themselves.

An order is a lease of the offer's terms, signed and admitted in one commit, which expects the offer: a tenant
gets what was shown to it, or an answer that says why not.
"""

from datetime import UTC, datetime
from typing import Final

import msgspec

from objstore.errors import BadArgument, StateForbids
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import decode
from objstore.rental.catalogue import expect_service_level
from objstore.rental.changes import Change, commit_change
from objstore.rental.leases import (
    DAY_US,
    after_months,
    check_lease,
    check_tenant,
    put_new,
    sell,
)
from objstore.rental.names import check_days, check_name, check_text
from objstore.rental.records import KINDS, LeaseRecord, OfferRecord, offer_key
from objstore.rental.sales import Survey

ORDERED: Final = ("guaranteed", "best_effort")
TERMS_MAX: Final = 12  # Of one offer.


def no_such_offer(offer: str) -> BadArgument:
    return BadArgument(f"there is no offer {offer!r}", name="offer", value=offer)


def check_offer(offer: OfferRecord) -> OfferRecord:
    """Raises: BadArgument for one of which no order could be signed."""
    check_name(offer.name, "offer")
    check_text(offer.title, "title")
    if offer.kind not in ORDERED:
        raise BadArgument(f"an offer is {' or '.join(ORDERED)}", name="kind", value=offer.kind)
    if not offer.terms_months or len(offer.terms_months) > TERMS_MAX:
        raise BadArgument(f"an offer has 1 to {TERMS_MAX} terms", name="terms_months")
    if not set(offer.customer_kinds) <= set(KINDS):
        raise BadArgument(f"customers are {', '.join(KINDS)}", name="customer_kinds")
    if offer.step < 1 or not 1 <= offer.least <= offer.most:
        raise BadArgument("an order has at least 1 byte, and at most `most`", name="least")
    check_days(offer.begin_days_max, "days before it begins")
    for term in offer.terms_months:
        for size in (offer.least, offer.most):
            check_lease(lease_of(offer, "-", "-", size=size, term_months=term, begin_us=DAY_US))
    return offer


def lease_of(
    offer: OfferRecord, lease: str, tenant: str, *, size: int, term_months: int, begin_us: int
) -> LeaseRecord:
    """The lease that an order comes to."""
    return LeaseRecord(
        id=lease,
        tenant=tenant,
        kind=offer.kind,
        state="draft",
        capacity=size,
        begin_us=begin_us,
        end_us=after_months(begin_us, term_months),
        term_months=term_months,
        pool=offer.pool,
        storage_class=offer.storage_class,
        product=offer.product,
        currency=offer.currency,
        unit=offer.unit,
        unit_price=offer.unit_price,
        billing=offer.billing,
        overage_mode=offer.overage_mode,
        overage_price=offer.overage_price,
        overage_max=offer.overage_max,
        renews=offer.renews,
        notice_days=offer.notice_days,
        fee_share=offer.fee_share,
        fee_months=offer.fee_months,
        sla=offer.sla,
        offer=offer.name,
    )


async def put_offer(kv: Kv, offer: OfferRecord, *, now_us: int) -> OfferRecord:
    """Make an offer, or change what later orders get. Raises: BadArgument, Overloaded."""
    offer = msgspec.structs.replace(check_offer(offer), made_us=now_us)

    async def decide(change: Change) -> OfferRecord:
        await expect_service_level(change, offer.sla)
        await change.value(offer_key(offer.name))
        change.put(offer_key(offer.name), offer)
        return offer

    return await commit_change(kv, decide, what=f"offer {offer.name}")


async def find_offer(kv: Kv, offer: str) -> OfferRecord:
    """Raises: BadArgument."""
    value = await kv.get(offer_key(offer))
    if value is None:
        raise no_such_offer(offer)
    return decode(value, OfferRecord)


async def list_offers(kv: Kv) -> list[OfferRecord]:
    """All of them, by name; closed ones too."""
    start = offer_key("")
    return [
        decode(value, OfferRecord)
        async for pairs in pages(kv, start, prefix_end(start), 500)
        for _, value in pairs
    ]


async def order(
    kv: Kv,
    offer: str,
    survey: Survey,
    *,
    lease: str,
    tenant: str,
    size: int,
    term_months: int,
    begin_us: int,
    now_us: int,
) -> LeaseRecord:
    """A tenant takes an offer: the lease, signed.

    Args:
        lease: the id of the new lease.
        size: bytes.
        begin_us: in whole seconds; the past: from the next whole second on.

    Raises: BadArgument (what the offer does not allow), NotEnoughCapacity, Overloaded.
    """
    begin_us = max(begin_us, -(-now_us // 1_000_000) * 1_000_000)

    async def decide(change: Change) -> LeaseRecord:
        record = await change.found(offer_key(offer), OfferRecord, no_such_offer(offer))
        _check_order(record, size, term_months, begin_us, now_us)
        drafted = lease_of(record, lease, tenant, size=size, term_months=term_months, begin_us=begin_us)
        customer = await check_tenant(change, drafted, orders=True)
        if record.customer_kinds and customer.kind not in record.customer_kinds:
            raise BadArgument(
                f"offer {offer} is for {', '.join(record.customer_kinds)}", name="offer", value=offer
            )
        await put_new(change, drafted)
        return await sell(change, drafted, survey, now_us=now_us)

    return await commit_change(kv, decide, what=f"offer {offer}")


def _check_order(offer: OfferRecord, size: int, term_months: int, begin_us: int, now_us: int) -> None:
    if not offer.open:
        raise StateForbids(f"offer {offer.name} is closed", name="offer", value=offer.name)
    if not offer.least <= size <= offer.most or size % offer.step:
        raise BadArgument(
            f"offer {offer.name} is for {offer.least} to {offer.most} bytes, in steps of {offer.step}",
            name="bytes",
            value=str(size),
        )
    if term_months not in offer.terms_months:
        terms = ", ".join(map(str, offer.terms_months))
        raise BadArgument(
            f"offer {offer.name} has terms of {terms} months", name="term_months", value=str(term_months)
        )
    latest_us = now_us + offer.begin_days_max * DAY_US
    if begin_us > latest_us:
        day = datetime.fromtimestamp(latest_us // 1_000_000, UTC).date()
        raise BadArgument(f"an order begins by {day}", name="begin")
