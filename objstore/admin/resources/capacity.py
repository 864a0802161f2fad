"""Capacity: what there is, what is sold, until when it will do; and the rules of sale."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from objstore.admin.callers import OPERATORS
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, Route, of_store
from objstore.admin.views import List, body_of, given_of, list_of, shown, view
from objstore.ids import ulid
from objstore.meta.schema import decode
from objstore.rental import sales
from objstore.rental.capacity import Capacity
from objstore.rental.records import SALES_KEY, CapacityEventRecord, SalesRecord, capacity_event_key

Event: Final = view(CapacityEventRecord)
EventBody: Final = body_of(CapacityEventRecord, "EventBody", omit=("id", "made_us"))
Rules: Final = view(SalesRecord, "RulesOfSale")
RuleFields: Final = body_of(SalesRecord, "RuleFields", omit=("version",), partial=True)


class AtRisk(msgspec.Struct, frozen=True, kw_only=True):
    lease: str
    tenant: str


class PoolCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, but where something else is said; shares as numerator/denominator."""

    pool: str
    raw: int
    failed: int
    spare: int
    usable: int
    sold_guaranteed: int
    sold_best_effort: int
    sold_share: str
    used_logical: int
    used_physical: int
    overhead: str
    reserved: int
    free: int
    sellable: int
    fill: str
    growth: str | None  # A day.
    runway_days: int | None
    full_days: int | None
    lead_days: int
    order_now: bool
    next_event: Event | None  # type: ignore[valid-type]
    at_risk: list[AtRisk]
    oversold: int


def _shown(one: Capacity) -> dict[str, Any]:
    facts = {name: shown(getattr(one, name)) for name in PoolCapacity.__struct_fields__}
    risky = [{"lease": lease.id, "tenant": lease.tenant} for lease in one.at_risk]
    return {**facts, "at_risk": risky}


async def report(call: Call) -> List[Any]:
    if call.services.capacity is None:
        raise Problem(503, "this process cannot say what capacity there is: its upkeep does not run")
    return List([_shown(one) for one in await call.services.capacity()], None)


async def _rules(call: Call) -> SalesRecord:
    value = await call.kv.get(SALES_KEY)
    return SalesRecord() if value is None else decode(value, SalesRecord)


async def show_rules(call: Call) -> Any:
    return shown(await _rules(call))


async def change_rules(call: Call) -> Any:
    await sales.put_rules(call.kv, **given_of(call.body, SalesRecord))
    return shown(await _rules(call))


async def events(call: Call) -> List[Any]:
    found = await sales.all_events(call.kv)
    return List([shown(event) for event in sorted(found, key=lambda one: (one.at_us, one.id))], None)


async def add_event(call: Call) -> Any:
    return await _put(call, ulid(call.now_us, call.services.randomness))


async def put_event(call: Call) -> Any:
    one = call.params["event"]
    if await call.kv.get(capacity_event_key(one)) is None:
        raise Problem(404, f"there is no capacity event {one!r}")
    return await _put(call, one)


async def _put(call: Call, one: str) -> Any:
    given = given_of(call.body, CapacityEventRecord)
    return shown(await sales.put_event(call.kv, CapacityEventRecord(id=one, made_us=call.now_us, **given)))


def rule_records(call: Call) -> Sequence[bytes]:
    return [SALES_KEY]


def event_records(call: Call) -> Sequence[bytes]:
    return [capacity_event_key(call.params["event"])]


_EVENTS: Final = "/api/v1/capacity/events"
ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/capacity", name="show_capacity",
        summary="Pool by pool: what there is, what is sold and used, and for how long it will do.",
        rule=OPERATORS, owner=of_store, handler=report, answer=List[PoolCapacity],
    ),
    Route(
        method="GET", path="/api/v1/capacity/rules", name="show_rules_of_sale",
        summary="By what rules capacity is sold.",
        rule=OPERATORS, owner=of_store, handler=show_rules, answer=Rules, tags=rule_records,
    ),
    Route(
        method="PATCH", path="/api/v1/capacity/rules", name="change_rules_of_sale", summary="Change them.",
        rule=OPERATORS, owner=of_store, body=RuleFields, handler=change_rules, answer=Rules,
        tags=rule_records,
    ),
    Route(
        method="GET", path=_EVENTS, name="list_capacity_events",
        summary="Deliveries and removals, planned and done.",
        rule=OPERATORS, owner=of_store, handler=events, answer=list_of(Event),
    ),
    Route(
        method="POST", path=_EVENTS, name="add_capacity_event", summary="Make a delivery or removal known.",
        rule=OPERATORS, owner=of_store, body=EventBody, handler=add_event, answer=Event, status=201,
    ),
    Route(
        method="PUT", path=f"{_EVENTS}/{{event}}", name="put_capacity_event", summary="Change one.",
        rule=OPERATORS, owner=of_store, body=EventBody, handler=put_event, answer=Event, tags=event_records,
    ),
)  # fmt: skip
