"""Sellers, customers, projects: who may be what, in which state, under whom."""

import asyncio
import zoneinfo
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from objstore.errors import BadArgument
from objstore.iam.names import check_tenant
from objstore.iam.tenants import create_tenant, find_tenant
from objstore.meta.kv import Add, DictKv, Transaction
from objstore.meta.schema import (
    AccountRecord,
    Limits,
    account_key,
    decode,
    encode,
    tenant_use_key,
)
from objstore.processes.doctor import time_zones
from objstore.rental.catalogue import publish_plan
from objstore.rental.customers import (
    LEVELS_MAX,
    PRESETS,
    TRANSITIONS,
    account_state,
    change_customer,
    create_customer,
    find_customer,
    list_customers,
    list_customers_of,
    new_customer,
    set_state,
)
from objstore.rental.departures import begin_purge, prove_purge
from objstore.rental.names import as_cell, check_name, check_text
from objstore.rental.plan_changes import give_plan
from objstore.rental.plans import parse_plan
from objstore.rental.projects import change_project, create_project, find_project, list_projects
from objstore.rental.records import KINDS, PurgeRecord, SellerRecord, purge_key
from objstore.rental.sellers import (
    change_seller,
    check_timezone,
    create_seller,
    find_seller,
    list_sellers,
)
from objstore.rental.terms import STATES
from tests.rental.cards import plan, rate
from tests.rental.parties import DAY_US, SELLER, a_customer, a_market, pay

NOW_US = 1_800_000_000_000_000


async def account(kv: DictKv, tenant: str) -> AccountRecord:
    value = await kv.get(account_key(tenant))
    assert value is not None
    return decode(value, AccountRecord)


async def test_tenant_customer_and_account_are_made_in_one_commit_or_not_at_all() -> None:
    kv = await a_market("other")
    before = await kv.scan(b"", b"\xff", 100)
    with pytest.raises(BadArgument, match="no seller"):
        await create_customer(kv, new_customer("tpe_pme", "acme", "nobody"), now_us=1)
    assert await kv.scan(b"", b"\xff", 100) == before
    record = new_customer("tpe_pme", "acme", "oran")
    made = await create_customer(kv, record, now_us=NOW_US, limits=Limits(bytes_max=10), sites=["oran-1"])
    assert await find_customer(kv, "acme") == made
    assert (await find_tenant(kv, "acme")).created_us == NOW_US
    its = await account(kv, "acme")
    assert (its.state, its.limits.bytes_max, its.sites) == ("trial", 10, ["oran-1"])
    assert made.trial_ends_us == NOW_US + 30 * DAY_US
    with pytest.raises(BadArgument, match="exists"):
        await create_customer(kv, record, now_us=NOW_US)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_begins_with_its_preset_and_a_plan_that_is_shipped(kind: str) -> None:
    record = new_customer(kind, "acme", "oran")
    preset = PRESETS[kind]
    assert (record.currency, record.plan) == (preset.currency, preset.plan)
    with open(f"config/plans/{kind}.toml") as file:
        plan = parse_plan(file.read())
    assert (plan.code, plan.currency) == (preset.plan, preset.currency)
    given = new_customer(kind, "acme", "oran", currency="MAD", language="ar", payment_terms_days=7)
    assert (given.currency, given.language, given.payment_terms_days) == ("MAD", "ar", 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("currency", "XXX"),
        ("language", "de"),
        ("country", "Algeria"),
        ("legal_name", "two\nlines"),
        ("legal_name", "\u202eturned"),
        ("legal_name", "\ud800"),
        ("address", ["x"] * 11),
        ("tax_ids", {"": "1"}),
        ("payment_terms_days", -1),
        ("tax_profile", "Exempt!"),
        ("documents", ["x"] * 21),
        ("colour", "red"),
        ("customers", 3),
    ],
)
async def test_what_could_not_stand_on_an_invoice_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadArgument) as refusal:
        new_customer("tpe_pme", "acme", "oran", **{name: value})
    assert refusal.value.name
    kv = await a_market()
    before = await find_customer(kv, "acme")
    with pytest.raises(BadArgument):
        await change_customer(kv, "acme", **{name: value})
    assert await find_customer(kv, "acme") == before


async def test_a_tenant_from_before_becomes_a_customer_and_its_account_stays() -> None:
    kv = await a_market("other")
    await create_tenant(kv, "old", now_us=1)
    await kv.commit(Transaction(put={account_key("old"): encode(AccountRecord(limits=Limits(bytes_max=5)))}))
    with pytest.raises(BadArgument, match="exists"):
        await create_customer(kv, new_customer("tpe_pme", "old", "oran"), now_us=2)
    await create_customer(kv, new_customer("tpe_pme", "old", "oran"), now_us=2, adopt=True)
    its = await account(kv, "old")
    assert (its.state, its.limits.bytes_max) == ("active", 5)
    with pytest.raises(BadArgument, match="no tenant"):
        await create_customer(kv, new_customer("tpe_pme", "new", "oran"), now_us=2, adopt=True)


def test_a_customers_name_is_a_tenants_name() -> None:
    for text in ("a", "a-b", "0", "a" * 63, "", "-a", "a-", "A", "a" * 64, "a.b", "a\n", "é"):
        found: list[str | None] = []
        for check in (lambda text: check_name(text, "tenant"), check_tenant):
            try:
                found.append(check(text))
            except BadArgument:
                found.append(None)
        assert found[0] == found[1], text


def test_every_state_that_a_request_knows_has_what_may_follow_it() -> None:
    assert set(TRANSITIONS) == STATES
    assert set().union(*TRANSITIONS.values()) == STATES - {"trial"}


@pytest.mark.parametrize("before", sorted(STATES))
@pytest.mark.parametrize("after", sorted(STATES))
async def test_only_what_may_follow_a_state_follows_it(before: str, after: str) -> None:
    kv = await a_market()
    its = msgspec.structs.replace(await account(kv, "acme"), state=before)
    put: dict[bytes, bytes] = {account_key("acme"): encode(its)}
    if after == "purged":  # Which has a proof.
        purge = PurgeRecord(tenant="acme", by="operator", begun_us=1, state="proven")
        put[purge_key("acme")] = encode(purge)
    await kv.commit(Transaction(put=put))
    if after in TRANSITIONS[before]:
        await set_state(kv, "acme", after, reason="asked", now_us=NOW_US)
        assert await account_state(kv, "acme") == after
        assert (await find_customer(kv, "acme")).state_since_us == NOW_US
    elif after != before:
        with pytest.raises(BadArgument, match=f"is {before}; what may follow"):
            await set_state(kv, "acme", after, reason="asked", now_us=NOW_US)
        assert await account_state(kv, "acme") == before


async def test_an_active_customer_has_papers_that_are_complete_and_checked() -> None:
    kv = await a_market("other")
    await create_customer(kv, new_customer("tpe_pme", "acme", "oran"), now_us=1)
    with pytest.raises(BadArgument, match="legal name"):
        await set_state(kv, "acme", "active", reason="", now_us=2)
    await change_customer(kv, "acme", legal_name="Acme", address=["x"], country="DZ")
    with pytest.raises(BadArgument, match="identity check"):
        await set_state(kv, "acme", "active", reason="", now_us=2)
    await change_customer(kv, "acme", identity_checked_us=2)
    await set_state(kv, "acme", "active", reason="", now_us=2)
    with pytest.raises(BadArgument, match="legal name"):  # No trial: at once.
        await create_customer(kv, new_customer("tpe_pme", "bolt", "oran"), now_us=1, trial_days=0)
    internal = await create_customer(kv, new_customer("internal", "own", "oran"), now_us=1)
    assert (await account_state(kv, "own"), internal.trial_ends_us) == ("active", 0)


async def test_past_due_is_no_way_round_the_papers() -> None:
    kv = await a_market("other")
    await create_customer(kv, new_customer("tpe_pme", "acme", "oran"), now_us=NOW_US)
    await set_state(kv, "acme", "read_only", reason="x", now_us=NOW_US)
    with pytest.raises(BadArgument, match="it needs its legal name"):
        await set_state(kv, "acme", "past_due", reason="x", now_us=NOW_US)
    assert (await account(kv, "acme")).state == "read_only"


async def test_who_leaves_has_time_to_take_its_data_along_and_is_purged_when_nothing_is_left() -> None:
    kv = await a_market()
    key = tenant_use_key("acme") + b"s"
    await kv.commit(Transaction(add={key: Add(1)}))
    record = await set_state(kv, "acme", "terminating", reason="contract ended", now_us=NOW_US)
    assert record.purge_after_us == NOW_US + 30 * DAY_US
    with pytest.raises(BadArgument, match="30 more days"):
        await set_state(kv, "acme", "purged", reason="", now_us=NOW_US + 1)
    with pytest.raises(BadArgument, match="holds 1 bytes"):
        await set_state(kv, "acme", "purged", reason="", now_us=record.purge_after_us)
    await kv.commit(Transaction(add={key: Add(-1)}))
    with pytest.raises(BadArgument, match="with a proof"):
        await set_state(kv, "acme", "purged", reason="", now_us=record.purge_after_us)
    purge = await begin_purge(kv, "acme", by="operator", now_us=record.purge_after_us)
    with pytest.raises(BadArgument, match="no way back"):
        await set_state(kv, "acme", "active", reason="", now_us=record.purge_after_us)
    await prove_purge(kv, purge, b"{}", now_us=record.purge_after_us)
    assert (await find_tenant(kv, "acme")).disabled
    assert await account_state(kv, "acme") == "purged"
    with pytest.raises(BadArgument, match="nothing"):
        await set_state(kv, "acme", "active", reason="", now_us=record.purge_after_us)


async def test_a_reseller_has_customers_and_nobody_stands_above_itself() -> None:
    kv = await a_market("plain")
    await a_customer(kv, "top", reseller=True)
    await a_customer(kv, "mid", reseller=True, parent="top")
    await a_customer(kv, "low", reseller=True, parent="mid")
    assert await list_customers_of(kv, "top") == ["mid"]
    assert (await find_customer(kv, "top")).customers == 1
    with pytest.raises(BadArgument, match="no reseller"):
        await a_customer(kv, "x", parent="plain")
    with pytest.raises(BadArgument, match="no customer"):
        await a_customer(kv, "x", parent="nobody")
    with pytest.raises(BadArgument, match="customers"):
        await change_customer(kv, "top", parent="low")
    await change_customer(kv, "low", parent="top")
    assert await list_customers_of(kv, "top") == ["low", "mid"]
    assert await list_customers_of(kv, "mid") == []
    with pytest.raises(BadArgument, match="its own reseller"):
        await change_customer(kv, "mid", parent="mid")
    with pytest.raises(BadArgument, match="stays a reseller"):
        await change_customer(kv, "top", reseller=False)
    with pytest.raises(BadArgument, match="they leave or move first"):
        await set_state(kv, "top", "terminating", reason="", now_us=1)


async def test_the_tree_has_a_depth() -> None:
    kv = await a_market("other")
    parent = ""
    for level in range(LEVELS_MAX):
        await a_customer(kv, f"l{level}", reseller=True, parent=parent)
        parent = f"l{level}"
    with pytest.raises(BadArgument, match="at most"):
        await a_customer(kv, "deep", parent=parent)


async def test_two_that_become_each_others_reseller_at_once_do_not_both_succeed() -> None:
    kv = await a_market("other")
    for tenant in ("a", "b"):
        await a_customer(kv, tenant, reseller=True)
    moves = [change_customer(kv, "a", parent="b"), change_customer(kv, "b", parent="a")]
    results = await asyncio.gather(*moves, return_exceptions=True)
    assert sum(isinstance(one, BadArgument) for one in results) == 1
    assert sorted([(await find_customer(kv, one)).customers for one in ("a", "b")]) == [0, 1]


async def test_a_currency_changes_while_there_is_no_plan_and_nothing_in_the_wallet() -> None:
    kv = await a_market("acme", "bolt")
    await change_customer(kv, "acme", currency="EUR")
    await change_customer(kv, "acme", currency="DZD")
    await pay(kv, 1, "acme", 100, [])
    with pytest.raises(BadArgument, match="has a wallet in DZD"):
        await change_customer(kv, "acme", currency="EUR")
    await publish_plan(kv, plan(rate("1"), currency="DZD"), made_us=1)
    await give_plan(kv, "bolt", "test", now_us=NOW_US)
    with pytest.raises(BadArgument, match="has a plan in DZD"):
        await change_customer(kv, "bolt", currency="EUR")


@pytest.mark.parametrize("name", ["plan", "plan_version", "next_plan", "next_plan_version"])
async def test_a_plan_is_given_from_a_month_on_and_not_set_beside_it(name: str) -> None:
    kv = await a_market()
    with pytest.raises(BadArgument, match="not set with"):
        await change_customer(kv, "acme", **{name: "x"})


async def test_customers_and_sellers_are_listed_page_by_page() -> None:
    kv = await a_market("a", "b", "c")
    assert [one.tenant for one in await list_customers(kv, limit=2)] == ["a", "b"]
    assert [one.tenant for one in await list_customers(kv, after="b")] == ["c"]
    assert [one.id for one in await list_sellers(kv)] == ["oran"]
    assert await list_sellers(kv, after="oran") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"country": "dz"},
        {"timezone": "Africa/Atlantis"},
        {"timezone": "../../etc/passwd"},
        {"logo": b"x" * 4_097},
        {"credit_prefix": "FA"},
        {"invoice_prefix": "f-1"},
        {"read_only_days": 0},
        {"collection_hours": -1},
        {"id": "Oran"},
    ],
)
async def test_what_is_wrong_with_a_seller_is_said(wrong: dict[str, object]) -> None:
    with pytest.raises(BadArgument):
        await create_seller(DictKv(), msgspec.structs.replace(SELLER, **wrong))


@pytest.fixture
def no_zones(tmp_path: Path) -> Iterator[None]:
    """A machine without a table of time zones."""
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([tmp_path])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        yield
    finally:
        zoneinfo.reset_tzpath(before)
        zoneinfo.ZoneInfo.clear_cache()


async def test_a_machine_that_knows_no_time_zone_says_so_and_what_to_do(no_zones: None) -> None:
    for name in ("UTC", "Africa/Algiers"):
        seller = msgspec.structs.replace(SELLER, timezone=name)
        with pytest.raises(BadArgument, match=r"knows no time zones, so not .*: install tzdata"):
            await create_seller(DictKv(), seller)
        [found] = time_zones([seller])
        assert (found["level"], found["remedy"]) == ("problem", "apt-get install tzdata")
        assert "invoices of seller oran do not become final here" in found["finding"]


async def test_where_its_time_zone_is_known_nothing_is_said_of_a_seller() -> None:
    assert time_zones([SELLER]) == []
    with pytest.raises(BadArgument, match=r"there is no time zone 'Africa/Atlantis'$"):
        check_timezone("Africa/Atlantis")


async def test_a_seller_changes_but_its_series_keep_their_names() -> None:
    kv = DictKv()
    await create_seller(kv, SELLER)
    with pytest.raises(BadArgument, match="exists"):
        await create_seller(kv, SELLER)
    changed = await change_seller(kv, "oran", name="Oran Stockage SARL")
    assert await find_seller(kv, "oran") == changed
    for name in ("invoice_prefix", "id", "seller", "colour"):
        with pytest.raises(BadArgument):
            await change_seller(kv, "oran", **{name: "X"})
    assert isinstance(changed, SellerRecord)


async def test_a_projects_limits_are_in_the_account_that_requests_are_held_to() -> None:
    kv = await a_market()
    await create_project(
        kv, "acme", "web", now_us=1, tags={"team": "a"}, cost_centre="17", limits=Limits(bytes_max=5)
    )
    await create_project(kv, "acme", "log", now_us=1)
    assert (await account(kv, "acme")).projects == {"web": Limits(bytes_max=5)}
    await change_project(kv, "acme", "web", limits=Limits(), cost_centre="18")
    assert (await account(kv, "acme")).projects == {}
    found = await find_project(kv, "acme", "web")
    assert (found.cost_centre, found.tags) == ("18", {"team": "a"})
    assert [one.name for one in await list_projects(kv, "acme")] == ["log", "web"]
    for refused in (
        create_project(kv, "acme", "web", now_us=1),
        create_project(kv, "nobody", "web", now_us=1),
        create_project(kv, "acme", "Web", now_us=1),
        create_project(kv, "acme", "x", now_us=1, limits=Limits(bytes_max=-1)),
        change_project(kv, "acme", "nothing", cost_centre=""),
    ):
        with pytest.raises(BadArgument):
            await refused


async def test_more_projects_with_limits_than_an_account_holds_are_refused() -> None:
    kv = await a_market()
    made = 0
    try:
        while made < 1_000:
            name = f"{'p' * 50}{made}"
            await create_project(kv, "acme", name, now_us=1, limits=Limits(bytes_max=1 << 60))
            made += 1
    except BadArgument as refusal:
        last = str(refusal)
    assert "too many projects" in last
    assert made > 50
    assert len(await list_projects(kv, "acme")) == made


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("-12.50 DZD", "-12.50 DZD"),
        ("+213 21 00 00 00", "+213 21 00 00 00"),
        ("-0.5", "-0.5"),
        ("-", "-"),
        ("Alger = Oran", "Alger = Oran"),
        ("", ""),
    ],
)
def test_what_a_spreadsheet_would_evaluate_is_a_text_in_its_cell(text: str, cell: str) -> None:
    assert as_cell(text) == cell


@pytest.mark.parametrize("text", ["a\x00b", "a\x9fb", "\u2067x", "é" * 101])
def test_texts_that_would_break_a_page_are_refused(text: str) -> None:
    with pytest.raises(BadArgument):
        check_text(text, "text")
