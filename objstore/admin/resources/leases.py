"""Leases from quote to end, and offers that tenants order from."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, Page, Route, in_body, in_query, of_anybody, of_store
from objstore.admin.views import List, body_of, given_of, list_of, microseconds, moment, shown, view
from objstore.clock import SECOND_US
from objstore.ids import ulid
from objstore.rental import leases, offers
from objstore.rental.customers import find_customer
from objstore.rental.leased import leases_of
from objstore.rental.records import LeaseRecord, OfferRecord, lease_key, offer_key
from objstore.rental.sales import Survey, all_leases, check_source

READ, WRITE = Rule(action="leases:Read"), Rule(action="leases:Write", resellers=False)

# What the store itself says of a lease; `ramp` is shown and given with moments.
_OURS: Final = (
    "id", "tenant", "state", "end_us", "ramp", "billed_until_us", "notice_us", "offer", "made_us",
    "signed_us", "active_us", "ended_us", "renewals", "reason",
)  # fmt: skip


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a ramp."""

    at: datetime
    capacity: int  # Bytes from then on.


_MORE: Final[tuple[Any, ...]] = (("end", datetime | None, None), ("ramp", list[Step], []))
NewLease: Final = body_of(
    LeaseRecord, "NewLease", omit=_OURS, more=(("tenant", str), ("state", str, "draft"), *_MORE)
)
LeaseFields: Final = body_of(
    LeaseRecord,
    "LeaseFields",
    omit=_OURS,
    more=(
        ("end", datetime | msgspec.UnsetType, msgspec.UNSET),
        ("ramp", list[Step] | msgspec.UnsetType, msgspec.UNSET),
    ),
    partial=True,
)
Lease: Final = view(LeaseRecord)
Offer: Final = view(OfferRecord)
OfferBody: Final = body_of(OfferRecord, "OfferBody", omit=("name", "made_us"))


class Leases(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant: str = ""
    state: Literal["", "quote", "draft", "signed", "active", "ended", "terminated", "withdrawn"] = ""


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    at: datetime | None = None  # None: at the next whole second.
    reason: str = ""


class EndOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    at: datetime | None = None


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    lease: Any
    charges: int  # Smallest units: charges that will not come, so far as the fee is a share of them.
    fee: int  # Smallest units.
    currency: str


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    admitted: bool
    why: str  # Why not.


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant: str = ""  # Empty: the caller's own.
    capacity: int
    term_months: int
    begin: datetime | None = None  # None: at once.


def records(call: Call) -> Sequence[bytes]:
    return [lease_key(call.params["lease"])]


def _shown(lease: LeaseRecord) -> Any:
    steps = [{"at": moment(at_us), "capacity": size} for at_us, size in lease.ramp]
    return {**shown(lease), "ramp": steps}


def survey_of(call: Call) -> Survey:
    """Raises: Problem 503."""
    if call.services.survey is None:
        raise Problem(503, "this process cannot say what capacity there is: its upkeep does not run")
    return call.services.survey


async def of_lease(call: Call) -> str | None:
    return (await leases.find_lease(call.kv, call.params["lease"])).tenant


async def list_all(call: Call) -> List[Any]:
    tenant, state = call.query.tenant or call.caller.tenant, call.query.state

    async def read(after: str, limit: int) -> list[LeaseRecord]:
        found = await (leases_of(call.kv, tenant) if tenant else all_leases(call.kv))
        return [one for one in found if one.id > after and state in ("", one.state)][:limit]

    return await page(call.query, read, lambda lease: lease.id, _shown)


def _given(body: Any) -> dict[str, Any]:
    found = given_of(body, LeaseRecord)
    if isinstance(body.ramp, list):
        found["ramp"] = [(microseconds(step.at), step.capacity) for step in body.ramp]
    return found


async def _check_source(call: Call, pool: str, nodes: Sequence[str] = ()) -> None:
    """Raises: BadArgument (there is no such pool, or node), Problem 503."""
    if pool or nodes:
        await check_source(call.kv, survey_of(call), pool=pool, nodes=nodes)


async def make(call: Call) -> Any:
    given = _given(call.body)
    await _check_source(call, given["pool"], given["nodes"])
    if not given["end_us"]:
        given["end_us"] = leases.after_months(given["begin_us"], given["term_months"])
    made = ulid(call.now_us, call.services.randomness)
    return _shown(await leases.make_lease(call.kv, LeaseRecord(id=made, **given), now_us=call.now_us))


async def show(call: Call) -> Any:
    return _shown(await leases.find_lease(call.kv, call.params["lease"]))


async def change(call: Call) -> Any:
    given = _given(call.body)
    await _check_source(call, given.get("pool", ""), given.get("nodes", ()))
    return _shown(await leases.edit_lease(call.kv, call.params["lease"], **given))


async def accept(call: Call) -> Any:
    return _shown(await leases.accept_quote(call.kv, call.params["lease"], now_us=call.now_us))


async def withdraw(call: Call) -> Any:
    return _shown(await leases.withdraw(call.kv, call.params["lease"], now_us=call.now_us))


async def sign(call: Call) -> Any:
    survey = survey_of(call)
    return _shown(await leases.sign(call.kv, call.params["lease"], survey, now_us=call.now_us))


async def answer(call: Call) -> Any:
    lease = await leases.find_lease(call.kv, call.params["lease"])
    why = await leases.answer(call.kv, lease, survey_of(call), now_us=call.now_us)
    return {"admitted": not why, "why": why}


async def extend(call: Call) -> Any:
    changed = await leases.extend_ramp(
        call.kv,
        call.params["lease"],
        survey_of(call),
        from_us=microseconds(call.body.at),
        size=call.body.capacity,
        now_us=call.now_us,
    )
    return _shown(changed)


async def notice(call: Call) -> Any:
    return _shown(await leases.give_notice(call.kv, call.params["lease"], now_us=call.now_us))


def _end_of(given: datetime | None, now_us: int) -> int:
    """In whole seconds, from the next one on if no moment is given."""
    return microseconds(given) or -(-now_us // SECOND_US) * SECOND_US


def _ended(found: leases.Termination) -> dict[str, Any]:
    fee = found.fee
    return {
        "lease": _shown(found.lease),
        "charges": found.base.minor,
        "fee": fee.minor,
        "currency": fee.currency,
    }


async def prospect(call: Call) -> Any:
    lease = await leases.find_lease(call.kv, call.params["lease"])
    now_us = call.now_us
    return _ended(leases.termination(lease, _end_of(call.query.at, now_us), now_us, ""))


async def terminate(call: Call) -> Any:
    now_us = call.now_us
    at_us = _end_of(call.body.at, now_us)
    lease, reason = call.params["lease"], call.body.reason
    return _ended(await leases.terminate(call.kv, lease, at_us=at_us, now_us=now_us, reason=reason))


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What a step of giving a lease's nodes back came to."""

    lease: str
    nodes: list[str]  # That are their pool's again, with this step.
    buckets: int  # That the step placed elsewhere: what is written to them from now on.
    finished: bool  # False: ask again.


async def release(call: Call) -> Any:
    if call.services.release is None:
        raise Problem(503, "this process cannot move nodes: its upkeep does not run")
    done = await call.services.release(call.kv, call.params["lease"])
    return Release(lease=done.lease.id, nodes=list(done.nodes), buckets=done.buckets, finished=done.finished)


# Offers.


def offer_records(call: Call) -> Sequence[bytes]:
    return [offer_key(call.params["offer"])]


async def all_offers(call: Call) -> List[Any]:
    found = await offers.list_offers(call.kv)
    if not call.caller.is_operator:
        kind = (await find_customer(call.kv, call.caller.tenant)).kind
        found = [one for one in found if one.open and (not one.customer_kinds or kind in one.customer_kinds)]
    return List([shown(one) for one in found], None)


async def put_offer(call: Call) -> Any:
    offer = OfferRecord(name=call.params["offer"], **given_of(call.body, OfferRecord))
    if offer.open:  # One of a pool that is no more can be closed.
        await _check_source(call, offer.pool)
    return shown(await offers.put_offer(call.kv, offer, now_us=call.now_us))


async def order(call: Call) -> Any:
    tenant = call.body.tenant or call.caller.tenant
    if not tenant:
        raise Problem(400, "tenant is missing")
    now_us = call.now_us
    signed = await offers.order(
        call.kv,
        call.params["offer"],
        survey_of(call),
        lease=ulid(now_us, call.services.randomness),
        tenant=tenant,
        size=call.body.capacity,
        term_months=call.body.term_months,
        begin_us=microseconds(call.body.begin) or now_us,
        now_us=now_us,
    )
    return _shown(signed)


_ALL, _ONE = "/api/v1/leases", "/api/v1/leases/{lease}"


def _act(verb: str, name: str, summary: str, rule: Rule, handler: Any, **more: Any) -> Route:
    return Route(
        method="POST", path=f"{_ONE}/{verb}", name=name, summary=summary, rule=rule, owner=of_lease,
        handler=handler, tags=records, **{"answer": Lease, **more},
    )  # fmt: skip


ROUTES: Final = (
    Route(
        method="GET", path=_ALL, name="list_leases", summary="Leases of a tenant; of the operator all.",
        rule=READ, owner=in_query, query=Leases, handler=list_all, answer=list_of(Lease),
    ),
    Route(
        method="POST", path=_ALL, name="make_lease", summary="Make a quote or a draft. It binds nobody yet.",
        rule=OPERATORS, owner=of_store, body=NewLease, handler=make, answer=Lease, status=201,
    ),
    Route(
        method="GET", path=_ONE, name="show_lease", summary="A lease.",
        rule=READ, owner=of_lease, handler=show, answer=Lease, tags=records,
    ),
    Route(
        method="PATCH", path=_ONE, name="change_lease", summary="Change its terms, before it is signed.",
        rule=OPERATORS, owner=of_lease, body=LeaseFields, handler=change, answer=Lease, tags=records,
    ),
    Route(
        method="GET", path=f"{_ONE}/admission", name="show_admission",
        summary="Whether it would be admitted just now. It binds nobody.",
        rule=OPERATORS, owner=of_lease, handler=answer, answer=Admission,
    ),
    Route(
        method="GET", path=f"{_ONE}/termination", name="show_termination",
        summary="What an early end would cost.",
        rule=READ, owner=of_lease, query=EndOf, handler=prospect, answer=Ended,
    ),
    _act("accept", "accept_quote", "Accept a quote: it becomes a draft to be signed.", WRITE, accept),
    _act("withdraw", "withdraw_lease", "Withdraw a quote or a draft.", OPERATORS, withdraw),
    _act(
        "sign", "sign_lease", "Sign it, if it is admitted: the capacity is sold from now on.", OPERATORS, sign
    ),
    _act(
        "ramp", "extend_ramp", "Another capacity from a moment to come on.", OPERATORS, extend, body=Step
    ),
    _act("notice", "give_notice", "Give notice: it will not renew itself.", WRITE, notice),
    _act(
        "terminate", "terminate_lease", "End it early; the fee waits for the next invoice.", OPERATORS,
        terminate, body=End, answer=Ended,
    ),
    _act(
        "release", "release_nodes",
        "Give the nodes of a dedicated lease that is over back to their pool; some hundred buckets a step.",
        OPERATORS, release, answer=Release,
    ),
    Route(
        method="GET", path="/api/v1/offers", name="list_offers",
        summary="Offers; of a user those that its tenant may order.",
        rule=Rule(action="offers:Read"), owner=of_anybody, handler=all_offers, answer=list_of(Offer),
    ),
    Route(
        method="PUT", path="/api/v1/offers/{offer}", name="put_offer",
        summary="Make an offer, or change what later orders get.",
        rule=OPERATORS, owner=of_store, body=OfferBody, handler=put_offer, answer=Offer, tags=offer_records,
    ),
    Route(
        method="POST", path="/api/v1/offers/{offer}/orders", name="order_offer",
        summary="Order from an offer: a lease, signed.",
        rule=WRITE, owner=in_body, owner_in_body=True, body=Order, handler=order, answer=Lease, status=201,
    ),
)  # fmt: skip
