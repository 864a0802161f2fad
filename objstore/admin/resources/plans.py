"""Rate cards, tax rules and service levels; and which plan a tenant has."""

from typing import Any, Final, Literal

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, Page, Route, in_path, of_store
from objstore.admin.views import List, list_of, shown, view
from objstore.clock import SECOND_US
from objstore.rental import catalogue
from objstore.rental.customers import find_customer
from objstore.rental.months import Month
from objstore.rental.plan_changes import give_plan, plan_in
from objstore.rental.plans import Plan, PlanRecord, parse_plan, parse_value
from objstore.rental.records import CustomerRecord
from objstore.rental.service_levels import ServiceLevel
from objstore.rental.taxes import TaxRule, parse_rules


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As operators write it in a file."""

    text: str
    form: Literal["toml", "json"] = "toml"


class PlanOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    plan: str
    version: int = catalogue.NEWEST  # 0: the newest.


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int = catalogue.NEWEST


async def all_plans(call: Call) -> List[Any]:
    async def read(after: str, limit: int) -> list[PlanRecord]:
        code, _, version = after.partition(" ")
        if after and not (version.isascii() and version.isdecimal() and len(version) <= 10):
            raise Problem(400, "the address's query: cursor is not one of ours")
        behind = (code, int(version)) if after else None
        return await catalogue.list_plans(call.kv, after=behind, limit=limit)

    return await page(call.query, read, lambda one: f"{one.plan.code} {one.plan.version}", shown)


async def publish(call: Call) -> Any:
    plan = parse_plan(call.body.text, call.body.form)
    record = await catalogue.publish_plan(call.kv, plan, made_us=call.now_us, made_by=call.caller.name)
    return shown(record)


async def show_plan(call: Call) -> Any:
    return shown(await catalogue.find_plan(call.kv, call.params["plan"], call.query.version))


async def plan_of(call: Call) -> Any:
    customer = await find_customer(call.kv, call.params["tenant"])
    return shown(await plan_in(call.kv, customer, Month.containing(call.now_us // SECOND_US)))


async def give(call: Call) -> Any:
    tenant, body = call.params["tenant"], call.body
    return shown(await give_plan(call.kv, tenant, body.plan, body.version, now_us=call.now_us))


async def all_rules(call: Call) -> List[Any]:
    return List([shown(rule) for rule in await catalogue.tax_rules(call.kv)], None)


async def put_rules(call: Call) -> List[Any]:
    rules = parse_rules(call.body.text, call.body.form)
    found = [(await catalogue.put_tax_rule(call.kv, rule, made_us=call.now_us)).rule for rule in rules]
    return List([shown(rule) for rule in found], None)


async def all_levels(call: Call) -> List[Any]:
    async def read(after: str, limit: int) -> list[ServiceLevel]:
        return await catalogue.list_service_levels(call.kv, after=after, limit=limit)

    return await page(call.query, read, lambda level: level.id, shown)


async def put_level(call: Call) -> Any:
    level = parse_value(call.body.text, call.body.form, ServiceLevel, "service level")
    return shown((await catalogue.put_service_level(call.kv, level, made_us=call.now_us)).level)


_PUBLISHED: Final = view(PlanRecord, "PublishedPlan")
ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/plans", name="list_plans", summary="All versions of all rate cards.",
        rule=OPERATORS, owner=of_store, query=Page, handler=all_plans, answer=list_of(_PUBLISHED),
    ),
    Route(
        method="POST", path="/api/v1/plans", name="publish_plan",
        summary="Publish a version of a rate card: it never changes.",
        rule=OPERATORS, owner=of_store, body=Text, handler=publish, answer=_PUBLISHED, status=201,
    ),
    Route(
        method="GET", path="/api/v1/plans/{plan}", name="show_plan", summary="A version of a rate card.",
        rule=OPERATORS, owner=of_store, query=Version, handler=show_plan, answer=_PUBLISHED,
    ),
    Route(
        method="GET", path="/api/v1/tenants/{tenant}/plan", name="show_tenant_plan",
        summary="The rate card under which a tenant's month is rated.",
        rule=Rule(action="plans:Read"), owner=in_path, handler=plan_of, answer=view(Plan),
    ),
    Route(
        method="PUT", path="/api/v1/tenants/{tenant}/plan", name="give_plan",
        summary="Give a tenant a plan: its first at once, another from the next month on.",
        rule=OPERATORS, owner=in_path, body=PlanOf, handler=give, answer=view(CustomerRecord),
    ),
    Route(
        method="GET", path="/api/v1/tax-rules", name="list_tax_rules", summary="All tax rules.",
        rule=OPERATORS, owner=of_store, handler=all_rules, answer=list_of(view(TaxRule)),
    ),
    Route(
        method="POST", path="/api/v1/tax-rules", name="put_tax_rules",
        summary="Keep tax rules; of those that are there only the end may change.",
        rule=OPERATORS, owner=of_store, body=Text, handler=put_rules, answer=list_of(view(TaxRule)),
        status=201,
    ),
    Route(
        method="GET", path="/api/v1/service-levels", name="list_service_levels",
        summary="All service levels.",
        rule=OPERATORS, owner=of_store, query=Page, handler=all_levels, answer=list_of(view(ServiceLevel)),
    ),
    Route(
        method="POST", path="/api/v1/service-levels", name="put_service_level",
        summary="Keep a service level: it never changes.",
        rule=OPERATORS, owner=of_store, body=Text, handler=put_level, answer=view(ServiceLevel), status=201,
    ),
)  # fmt: skip
