"""The way into the admin API: who may what, what is sent again, what was seen before, what is hostile."""

import asyncio
import base64
import dataclasses
import json
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack

import msgspec
import pytest

from objstore.admin import openapi, repeats, shares
from objstore.admin.bodies import BODY_SIZE_MAX, explained
from objstore.admin.callers import Caller, Rule
from objstore.admin.pages import cursor_of
from objstore.admin.problems import Problem
from objstore.admin.resources import TABLE, tenants
from objstore.admin.resources.users import ROUTES as USER_ROUTES
from objstore.admin.routes import File, Route, Table
from objstore.audit.log import Deed, RecordedKv, Wanted, newest, verify
from objstore.audit.records import HEAD_KEY, AuditRecord
from objstore.clock import utc_text
from objstore.errors import ConditionFailed, MetaUnavailable
from objstore.iam.directory import Directory
from objstore.iam.last_use import HOUR_US, UsedKeys
from objstore.iam.roles import PRESETS, may
from objstore.iam.users import create_user, set_user_disabled
from objstore.meta.kv import DictKv, Transaction, prefix_end
from objstore.meta.schema import last_use_key, token_key, user_key
from tests.admin.api import DRAFT, MASTER_KEY, QUOTE, TB, TOKEN, Api, Clock, furnish, people, serving
from tests.server import ROOT

DAY_US = 86_400 * 1_000_000


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving() as served:
        yield served


async def entries(kv: DictKv) -> list[AuditRecord]:
    return [record for _, record in (await newest(kv, Wanted(), before=None, limit=1_000))[0]]


# The matrix: every route with every caller.


# Of routes that take more than an empty body: one that a caller who may gets through with.
PLAN = (ROOT / "config/plans/wholesale.toml").read_text()
LATER = "2027-01-01T00:00:00Z"
SOON_AFTER = LATER.replace("00Z", "59Z")
BODIES: dict[str, dict[str, object]] = {
    "create_tenant": {"name": "new", "kind": "tpe_pme"},
    "set_tenant_state": {"state": "terminating"},
    "set_tenant_sites": {"sites": ["oran"]},
    "create_seller": {"id": "new", "name": "New", "address": ["1"], "country": "DZ"},
    "create_project": {"name": "new"},
    "create_user": {"name": "new", "tenant": "lower", "role": "reader"},
    "set_role": {"role": "reader"},
    "create_key": {"user": "lower-reader"},
    "publish_plan": {"text": PLAN},
    "give_plan": {"plan": "tpe-pme"},
    "put_tax_rules": {"text": (ROOT / "config/taxes.toml").read_text()},
    "put_service_level": {
        "text": 'id = "gold"\ntiers = [{ below = "0.999", credit = "0.10" }]'
    },
    "make_lease": {
        "tenant": "lower", "kind": "guaranteed", "capacity": TB, "term_months": 12, "begin": LATER,
    },
    "change_lease": {"unit_price": "7.99"},
    "extend_ramp": {"at": "2026-12-01T00:00:00Z", "capacity": 2 * TB},
    "put_offer": {"least": TB, "most": TB, "terms_months": [12]},
    "order_offer": {"tenant": "lower", "capacity": TB, "term_months": 12},
    "change_rules_of_sale": {"lead_days": 90},
    "add_capacity_event": {"at": LATER, "raw": TB},
    "put_capacity_event": {"at": LATER, "raw": TB},
    "add_service_event": {"kind": "maintenance", "begin": LATER, "end": SOON_AFTER, "reason": "power"},
    "draft_invoices": {"month": "2026-03"},
    "finalise_invoice": {"early": True},
    "issue_credit_note": {"reason": "goodwill"},
    "receive_payment": {"tenant": "lower", "method": "especes", "amount": "12.50"},
    "reverse_payment": {"reason": "it bounced"},
    "finish_export": {"objects": 1, "bytes": 2, "missing": 0, "manifest": "00" * 32},
}  # fmt: skip
# Routes about a thing in another state than the one that PLACES names.
ABOUT = {
    "change_lease": DRAFT, "accept_quote": QUOTE, "withdraw_lease": DRAFT, "sign_lease": DRAFT,
    "show_admission": DRAFT, "issue_credit_note": "final", "export_invoice": "final",
    "list_credit_notes": "final",
}  # fmt: skip
COMPLETE: dict[str, object] = {
    "legal_name": "L", "address": ["1"], "country": "DZ", "identity_checked": "2026-01-01T00:00:00Z",
}  # fmt: skip
# What is refused to a caller whom the rule allows, in words that say why.
REFUSALS = (
    "only the operator", "is no reseller", "not all hours of 2026-03 are sealed", "at most your own",
    "only who is terminating",
)  # fmt: skip


def place(route: Route, names: Mapping[str, str]) -> str:
    """A route's path in the little world, of things that are `lower`'s."""
    if other := ABOUT.get(route.name):
        names = {**names, "lease": other, "invoice": names["final"]}
    return route.path.format(**names)


def asked(route: Route) -> str:
    """The query that it needs."""
    if route.name in ("list_exported_parts", "read_exported_body"):
        return "?key=a2V5&order=1"
    if route.name == "export_month":
        return "?month=2026-02&tenant=lower"
    return "?tenant=lower" if route.name in ("list_payments",) else ""


def about_lower(route: Route) -> bool:
    return bool(route.parameters and route.name not in OF_ALL) or route.owner_in_body or bool(asked(route))


OF_ALL = {"show_plan"}  # Of no tenant, though a path's parameter names it.


def allowed(route: Route, caller: str) -> bool:
    """What the rule means, said once more and otherwise."""
    if caller == "operator":
        return True
    tenant, role = caller.split("-")
    if not route.rule.action or not may(role, route.rule.action):
        return False
    if about_lower(route):
        return {"lower": route.rule.tenants, "upper": route.rule.resellers, "other": False}[tenant]
    return route.rule.tenants


@pytest.mark.parametrize("route", TABLE.routes, ids=lambda route: route.name)
async def test_every_route_answers_whom_its_rule_allows_and_nobody_else(route: Route, api: Api) -> None:
    tokens = await people(api)
    names = await furnish(api)
    before = api.kv.snapshot()
    for caller, token in tokens.items():
        api.kv.restore(before)
        body = BODIES.get(route.name, {}) if route.changes else None
        answer = await api(route.method, place(route, names) + asked(route), body, token=token)
        who = (caller, answer)
        if allowed(route, caller):
            refused = any(words in str(answer.body) for words in REFUSALS)
            assert answer.status in (200, 201) or refused, who
        elif not route.rule.action or caller.startswith("lower"):
            assert answer.status == 403, who
        elif caller.startswith("other"):
            assert answer.status == (404 if about_lower(route) else 403), who
        else:
            assert answer.status == 403, who
        after = api.kv.snapshot()
        changed = {key for key in {*before, *after} if after.get(key) != before.get(key)}
        noted = {key for key in changed if key[:1] == b"T" or key == HEAD_KEY}
        if answer.status >= 400 or not route.changes:
            assert changed == noted, who  # Nothing has changed but what the log says of it.
        elif changed:
            assert {HEAD_KEY} < noted, who  # No act without its record.


@pytest.mark.parametrize("route", TABLE.routes, ids=lambda route: route.name)
async def test_no_route_answers_strangers(route: Route, api: Api) -> None:
    tokens = await people(api)
    names = await furnish(api)
    expired = await api.token_of("lower-owner")
    api.clock.us += 31 * DAY_US
    body = BODIES.get(route.name, {}) if route.changes else None
    for token in (None, "", "wrong", "é", expired, tokens["lower-owner"], TOKEN + "x", TOKEN[:-1]):
        answer = await api(route.method, place(route, names), body, token=token)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_route_without_a_rule_does_not_start() -> None:
    bare = dataclasses.replace(USER_ROUTES[0], rule=None)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="no rule"):
        Table([bare])


def test_a_rule_with_an_action_that_no_role_knows_does_not_start() -> None:
    with pytest.raises(AssertionError, match="uzers:Read"):
        Rule(action="uzers:Read")


def test_two_routes_of_one_place_do_not_start() -> None:
    with pytest.raises(AssertionError, match="two routes"):
        Table([*USER_ROUTES, dataclasses.replace(USER_ROUTES[0], name="again")])


# Who gives what.


@pytest.mark.parametrize("role", list(PRESETS))
async def test_nobody_makes_a_user_or_a_token_that_may_more_than_they_may(role: str, api: Api) -> None:
    tokens = await people(api)
    for caller in ("owner", "admin"):
        token = tokens[f"lower-{caller}"]
        body = {"name": f"new-{caller}", "role": role}
        made = await api("POST", "/api/v1/users", body, token=token)
        given = await api("POST", f"/api/v1/users/lower-{role}/tokens", {}, token=token)
        key = await api("POST", "/api/v1/keys", {"user": f"lower-{role}"}, token=token)
        expected = 201 if caller == "owner" or role in ("admin", "reader") else 403
        assert [made.status, given.status, key.status] == [expected] * 3, (caller, role)
        if made.status == 201:
            assert (made.body["tenant"], made.body["role"]) == ("lower", role)


async def test_a_token_is_good_until_it_is_revoked_or_its_user_or_tenant_is_disabled(api: Api) -> None:
    tokens = await people(api)
    made = (await api("POST", "/api/v1/users/lower-owner/tokens", {"days": 1})).body
    who = f"/api/v1/users/{'lower-owner'}"

    async def status() -> int:
        return (await api("GET", who, token=made["token"])).status

    assert await status() == 200
    for path in ("users/lower-owner", "tenants/lower"):
        assert (await api("POST", f"/api/v1/{path}/disable", {})).status == 200
        assert await status() == 401
        assert (await api("POST", f"/api/v1/{path}/enable", {})).status == 200
        assert await status() == 200
    listed = (await api("GET", f"{who}/tokens", token=tokens["lower-reader"])).body["items"]
    assert made["id"] in [one["id"] for one in listed]
    assert made["token"].partition(".")[2] not in json.dumps(listed)
    assert (await api("DELETE", f"/api/v1/tokens/{made['id']}", token=tokens["other-owner"])).status == 404
    assert (await api("DELETE", f"/api/v1/tokens/{made['id']}", token=tokens["lower-owner"])).status == 200
    assert await status() == 401


async def test_no_token_or_key_is_kept_as_it_is_sent(api: Api) -> None:
    await people(api)
    token = (await api("POST", "/api/v1/users/lower-owner/tokens", {})).body["token"].partition(".")[2]
    key = (await api("POST", "/api/v1/keys", {"user": "lower-owner"})).body["secret_key"]
    everything = b"".join(key + value for key, value in await api.kv.scan(b"\0", b"\xff", 10_000))
    assert token.encode() not in everything
    assert key.encode() not in everything


async def test_lists_hold_nothing_of_other_tenants(api: Api) -> None:
    tokens = await people(api)
    for tenant in ("lower", "other", "upper"):
        await api("POST", "/api/v1/keys", {"user": f"{tenant}-owner"})
    users = (await api("GET", "/api/v1/users", token=tokens["lower-owner"])).body["items"]
    assert {user["tenant"] for user in users} == {"lower"}
    keys = (await api("GET", "/api/v1/keys", token=tokens["lower-owner"])).body["items"]
    assert {key["user"] for key in keys} == {"lower-owner"}
    tenants = (await api("GET", "/api/v1/tenants", token=tokens["upper-owner"])).body["items"]
    assert [tenant["name"] for tenant in tenants] == ["lower", "upper"]
    for path in ("users?tenant=other", "keys?tenant=other", "keys?user=other-owner", "audit?tenant=other"):
        assert (await api("GET", f"/api/v1/{path}", token=tokens["lower-owner"])).status == 404
        assert (await api("GET", f"/api/v1/{path}")).status == 200
    below = await api("GET", "/api/v1/users?tenant=lower", token=tokens["upper-owner"])
    assert {user["tenant"] for user in below.body["items"]} == {"lower"}


async def test_a_reseller_makes_customers_of_its_own_within_its_quota(api: Api) -> None:
    tokens = await people(api)

    async def make(name: str, token: str = tokens["upper-owner"], **fields: object) -> tuple[int, str]:
        body = {"name": name, "kind": "tpe_pme", **fields}
        answer = await api("POST", "/api/v1/tenants", body, token=token)
        return answer.status, str(answer.body.get("detail", answer.body.get("customer")))

    status, customer = await make("new")
    assert (status, "'parent': 'upper'" in customer) == (201, True)
    assert (await make("plain", kind=""))[0] == 400
    assert (await make("free", kind="internal"))[0] == 403
    assert (await make("seller", seller="oran"))[0] == 403
    assert (await make("mine", tokens["lower-owner"]))[1].endswith("is no reseller")
    assert (await make("role", tokens["upper-billing"]))[0] == 403
    assert (await make("long", trial_days=31))[0] == 400  # Nothing is invoiced on trial.
    assert (await make("short", trial_days=7))[0] == 201
    assert (await make("many", limits={"buckets_max": 10_001}))[0] == 403
    assert (await make("some", limits={"buckets_max": 10_000}))[0] == 201
    own = {"bytes_max": 100, "objects_max": 100, "requests_per_s": 100}
    assert (await api("PATCH", "/api/v1/tenants/upper/quota", own)).status == 200
    for name in own:
        for wrong in (None, 101):
            status, words = await make("bounded", limits={**own, name: wrong})
            assert (status, f"{name} of a customer of yours" in words) == (403, True)
    assert (await make("bounded", limits=own))[0] == 201
    assert (await api("PUT", "/api/v1/tenants/upper/state", {"state": "suspended"})).status == 200
    assert (await make("afresh", limits=own))[0] == 403  # Or it would store on under another name.


async def test_a_reseller_has_few_customers_on_trial_at_a_time(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "TRIALS_MAX", 2)
    tokens = await people(api)

    async def make(name: str, **fields: object) -> int:
        body = {"name": name, "kind": "tpe_pme", **COMPLETE, **fields}
        return (await api("POST", "/api/v1/tenants", body, token=tokens["upper-owner"])).status

    assert [await make(name) for name in ("one", "two", "three")] == [201, 201, 403]
    assert await make("three", trial_days=5) == 403
    assert await make("three", trial_days=0) == 201
    for state, made in (("read_only", [403, 403]), ("active", [201, 403])):
        path = "/api/v1/tenants/one/state"
        assert (await api("PUT", path, {"state": state}, token=tokens["upper-owner"])).status == 200
        assert [await make(name) for name in ("four", "five")] == made


async def test_a_reseller_stops_its_customers_and_lets_go_only_those_it_stopped(api: Api) -> None:
    tokens = await people(api)
    path, above = "/api/v1/tenants/lower/state", tokens["upper-owner"]
    assert (await api("PUT", path, {"state": "suspended"}, token=above)).status == 200
    assert (await api("PATCH", "/api/v1/tenants/lower", COMPLETE, token=above)).status == 200
    assert (await api("PUT", path, {"state": "active"}, token=above)).status == 200
    # Stores as before, and would be dunned no further.
    assert (await api("PUT", path, {"state": "past_due"}, token=above)).status == 403
    assert (await api("PUT", path, {"state": "terminating"}, token=above)).status == 200
    assert (await api("PUT", path, {"state": "active"}, token=above)).status == 403
    assert (await api("PUT", path, {"state": "active"})).status == 200
    assert (await api("PUT", path, {"state": "suspended", "reason": "fraud"})).status == 200
    answer = await api("PUT", path, {"state": "active"}, token=above)
    assert (answer.status, "fraud" in answer.body["detail"]) == (403, True)
    for state in ("suspended", "read_only", "terminating"):  # Nor is it taken over, to be let go again.
        assert (await api("PUT", path, {"state": state}, token=above)).status == 403
    assert (await api("GET", "/api/v1/tenants/lower")).body["customer"]["state_reason"] == "fraud"
    # Without an order no invoice of it would become final.
    for theirs in ({"currency": "EUR"}, {"purchase_order_required": True}):
        assert (await api("PATCH", "/api/v1/tenants/lower", theirs, token=above)).status == 403


# Sent again.


async def test_a_post_with_an_idempotency_key_is_carried_out_once(api: Api) -> None:
    await people(api)
    headers = {"Idempotency-Key": "one"}
    body = {"name": "alice", "tenant": "lower"}
    first = await api("POST", "/api/v1/users", body, headers=headers)
    again = await api("POST", "/api/v1/users", body, headers=headers)
    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert sum(entry.action == "create_user" for entry in await entries(api.kv)) == 1
    other = await api("POST", "/api/v1/users", {**body, "name": "bob"}, headers=headers)
    assert other.status == 422
    path = await api("POST", "/api/v1/keys", {"user": "alice"}, headers=headers)
    assert path.status == 422


async def test_a_key_is_its_callers_own_and_is_forgotten_after_a_day(api: Api) -> None:
    tokens = await people(api)
    headers = {"Idempotency-Key": "one"}
    for caller in ("operator", "lower-owner", "other-owner"):
        body = {"name": f"{caller}-made"} | ({"tenant": "lower"} if caller == "operator" else {})
        assert (await api("POST", "/api/v1/users", body, token=tokens[caller], headers=headers)).status == 201
    api.clock.us += DAY_US
    body = {"name": "next-day", "tenant": "lower"}
    assert (await api("POST", "/api/v1/users", body, headers=headers)).status == 201
    assert await repeats.sweep(api.kv, now_us=api.clock.us + DAY_US) == 3
    assert await api.kv.scan(b"I", prefix_end(b"I"), 10) == []


async def test_a_secret_is_in_the_first_answer_only(api: Api) -> None:
    await people(api)
    headers = {"Idempotency-Key": "one"}
    path = "/api/v1/users/lower-owner/tokens"
    first = (await api("POST", path, {}, headers=headers)).body
    again = (await api("POST", path, {}, headers=headers)).body
    assert first["token"]
    assert again == {**first, "token": ""}


async def test_what_failed_may_be_tried_again_with_the_same_key(api: Api) -> None:
    await people(api)
    headers = {"Idempotency-Key": "one"}
    body = {"user": "nobody-yet"}
    assert (await api("POST", "/api/v1/keys", body, headers=headers)).status == 400
    await api("POST", "/api/v1/users", {"name": "nobody-yet", "tenant": "lower"})
    assert (await api("POST", "/api/v1/keys", body, headers=headers)).status == 201


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63), 10**30])
async def test_a_number_that_no_record_keeps_is_refused(number: int, api: Api) -> None:
    await people(api)
    for method, path, body in (
        ("PATCH", "/api/v1/tenants/lower/quota", {"bytes_max": number}),
        ("POST", "/api/v1/keys", {"user": "lower-owner", "limits": {"objects_max": number}}),
    ):
        answer = await api(method, path, body)
        assert (answer.status, "is a number beyond" in answer.body["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("leases", {**BODIES["make_lease"], "term_months": 2**31}),
        ("leases", {**BODIES["make_lease"], "term_months": -(2**31)}),
        ("leases", {**BODIES["make_lease"], "begin": "9999-12-31T23:59:59Z"}),
        ("payments", {**BODIES["receive_payment"], "amount": "9" * 18}),
    ],
)
async def test_terms_and_amounts_beyond_all_bounds_are_bad_requests(
    path: str, body: dict[str, object], api: Api
) -> None:
    await people(api)
    assert (await api("POST", f"/api/v1/{path}", body)).status == 400


@pytest.mark.parametrize("key", ["", "x" * 256, "\t"])
async def test_what_can_be_no_idempotency_key_is_refused(key: str, api: Api) -> None:
    answer = await api("POST", "/api/v1/users", {"name": "a"}, headers={"Idempotency-Key": key})
    assert answer.status == 400


async def test_of_requests_with_one_key_at_the_same_time_one_is_carried_out(api: Api) -> None:
    await people(api)
    headers = {"Idempotency-Key": "one"}
    body = {"name": "alice", "tenant": "lower"}
    answers = await asyncio.gather(*(api("POST", "/api/v1/users", body, headers=headers) for _ in range(8)))
    assert {answer.status for answer in answers} <= {201, 409}
    assert sum(entry.action == "create_user" for entry in await entries(api.kv)) == 1


class Dying(DictKv):
    """An engine whose process dies at a commit: before it, or behind it."""

    def __init__(self, kv: DictKv) -> None:
        self._values, self._keys = kv._values, kv._keys
        self.dies_at: int | None = None
        self.behind = False
        self.count = 0

    async def commit(self, transaction: Transaction) -> None:
        self.count += 1
        dies = self.dies_at is not None and self.count >= self.dies_at
        if dies and not (self.behind and self.count == self.dies_at):
            raise ConnectionResetError("the process is gone")
        await super().commit(transaction)
        if dies:
            raise ConnectionResetError("the process is gone")


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("dies_at", [1, 2, 3])
async def test_whatever_dies_in_between_an_act_happens_once(dies_at: int, behind: bool) -> None:
    engines: list[Dying] = []

    def wrap(kv: DictKv) -> Dying:
        engines.append(Dying(kv))
        return engines[0]

    async with serving(wrap=wrap) as api:
        await people(api)
        engine = engines[0]
        headers = {"Idempotency-Key": "one"}
        body = {"name": "alice", "tenant": "lower"}
        engine.dies_at, engine.behind = dies_at, behind
        await api("POST", "/api/v1/users", body, headers=headers)
        engine.dies_at = None
        made = await api.kv.get(user_key("alice")) is not None
        answer = await api("POST", "/api/v1/users", body, headers=headers)
        if made:  # Not done again: the answer is the first one's, or that it was carried out.
            assert answer.status in (201, 409)
        elif answer.status == 409:  # Claimed, nothing committed: taken over once it is long over.
            api.clock.us += repeats.TAKEN_OVER_US
            answer = await api("POST", "/api/v1/users", body, headers=headers)
        if not made:
            assert answer.status == 201
        assert await api.kv.get(user_key("alice")) is not None
        done = [entry for entry in await entries(api.kv) if entry.action == "create_user"]
        assert [entry.outcome for entry in done] == ["done"]


async def test_a_request_whose_claim_was_taken_over_commits_nothing(api: Api) -> None:
    await people(api)
    operator = Caller(name="operator")
    request = b"POST /users"
    first = await repeats.claim(
        api.kv, operator, "k", request, now_us=api.clock.us, randomness=api.randomness
    )
    later = api.clock.us + repeats.TAKEN_OVER_US
    second = await repeats.claim(api.kv, operator, "k", request, now_us=later, randomness=api.randomness)
    assert isinstance(first, repeats.Claim)
    assert isinstance(second, repeats.Claim)
    act = RecordedKv(
        api.kv,
        Deed(who="operator", action="a", target="t"),
        api.clock,
        guards={first.key: (first.begun, "Idempotency-Key")},
        first={first.key: first.committed},
    )
    with pytest.raises(ConditionFailed):
        await create_user(act, "alice", tenant="lower", now_us=1)
    assert await api.kv.get(user_key("alice")) is None


# Seen before.


async def test_a_change_of_what_has_changed_since_is_refused(api: Api) -> None:
    await people(api)
    path = "/api/v1/users/lower-reader"
    tag = (await api("GET", path)).headers["ETag"]
    assert (await api("GET", path, headers={"If-None-Match": tag})).status == 304
    changed = await api("PUT", f"{path}/role", {"role": "admin"}, headers={"If-Match": tag})
    assert (changed.status, changed.headers["ETag"] == tag) == (200, False)
    late = await api("PUT", f"{path}/role", {"role": "billing"}, headers={"If-Match": tag})
    assert late.status == 412
    assert (await api("GET", path)).body["role"] == "admin"
    now = changed.headers["ETag"]
    for wanted in (now, f'"x", {now}', "*"):
        answer = await api("PUT", f"{path}/role", {"role": "admin"}, headers={"If-Match": wanted})
        assert answer.status == 200


async def test_a_change_between_the_look_and_the_commit_is_noticed() -> None:
    class Meddling(DictKv):
        """Somebody else disables the user just before the commit."""

        def __init__(self, kv: DictKv) -> None:
            self._values, self._keys = kv._values, kv._keys
            self.meddle: bytes | None = None

        async def commit(self, transaction: Transaction) -> None:
            if self.meddle is not None:
                value, self.meddle = self.meddle, None
                await super().commit(Transaction(put={user_key("lower-reader"): value}))
            await super().commit(transaction)

    engines: list[Meddling] = []

    def wrap(kv: DictKv) -> Meddling:
        engines.append(Meddling(kv))
        return engines[0]

    async with serving(wrap=wrap) as api:
        await people(api)
        path = "/api/v1/users/lower-reader"
        tag = (await api("GET", path)).headers["ETag"]
        engines[0].meddle = await api.kv.get(user_key("lower-billing"))
        answer = await api("PUT", f"{path}/role", {"role": "admin"}, headers={"If-Match": tag})
        assert answer.status == 412


async def test_what_another_did_before_the_answer_is_not_taken_for_ones_own() -> None:
    class Meddling(DictKv):
        """Somebody else disables the user just behind the commit, before the answer is made."""

        def __init__(self, kv: DictKv) -> None:
            self._values, self._keys = kv._values, kv._keys
            self.armed = False

        async def commit(self, transaction: Transaction) -> None:
            await super().commit(transaction)
            if self.armed:
                self.armed = False
                await set_user_disabled(self, "lower-reader", True)

    engines: list[Meddling] = []

    def wrap(kv: DictKv) -> Meddling:
        engines.append(Meddling(kv))
        return engines[0]

    async with serving(wrap=wrap) as api:
        await people(api)
        path = "/api/v1/users/lower-reader/role"
        engines[0].armed = True
        changed = await api("PUT", path, {"role": "admin"})
        assert (changed.status, engines[0].armed) == (200, False)
        tag = {"If-Match": changed.headers["ETag"]}
        assert (await api("PUT", path, {"role": "owner"}, headers=tag)).status == 412


# Pages.


async def test_pages_hold_everything_once_and_in_order(api: Api) -> None:
    await people(api)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = (await api("GET", f"/api/v1/users?limit=5&cursor={cursor}")).body
        seen += [user["name"] for user in answer["items"]]
        cursor = answer["next"]
    assert seen == sorted(seen)
    assert len(seen) == 12


@pytest.mark.parametrize("kind", ["users", "keys", "tokens"])
async def test_a_page_ends_at_a_bound_of_what_is_read_and_its_cursor_tells_nobodys_name(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api:
        tokens = await people(api)
        directory = Directory(api.kv, MASTER_KEY, clock=api.clock, randomness=api.randomness)
        for user in ("lower-owner", "lower-reader", "other-owner", "other-reader", "upper-owner"):
            await directory.create_key(user)
        name = {"users": "name", "keys": "access_key", "tokens": "id"}[kind]
        wanted = [one[name] for one in (await api("GET", f"/api/v1/{kind}?tenant=other")).body["items"]]
        assert wanted
        monkeypatch.setattr("objstore.iam.picking.READ_MAX", 2)
        seen: list[str] = []
        cursor: str | None = ""
        pages = 0
        while cursor is not None:
            path = f"/api/v1/{kind}?limit=3&cursor={cursor}"
            answer = (await api("GET", path, token=tokens["other-reader"])).body
            seen += [one[name] for one in answer["items"]]
            cursor, pages = answer["next"], pages + 1
            if cursor is not None and not (answer["items"] and cursor_of(seen[-1]) == cursor):
                sealed = cursor.removeprefix("~").encode()
                whole = base64.urlsafe_b64decode(sealed + b"=" * (-len(sealed) % 4))
                assert b"lower" not in whole
                assert b"upper" not in whole
                assert cursor.startswith("~")
        assert seen == wanted
        assert pages > 2
        forged = "~" + base64.urlsafe_b64encode(b"lower-owner" * 5).rstrip(b"=").decode()
        for cursor in ("~", "~AAAA", "~!", forged):
            assert (await api("GET", f"/api/v1/{kind}?cursor={cursor}")).status == 400


async def test_tokens_are_listed_with_whose_they_are_and_whoever_asks_with_one_has_used_it() -> None:
    used = UsedKeys(token_key)
    async with serving(used=used.add) as api:
        tokens = await people(api)
        await api("POST", "/api/v1/users/lower-reader/tokens", {"days": 1, "comment": "laptop"})
        assert (await api("GET", "/api/v1/users", token=tokens["lower-owner"])).status == 200
        assert (await api("GET", "/api/v1/users", token=tokens["lower-owner"] + "x")).status == 401
        await used.tell(api.kv, api.clock.us)
        listed = (await api("GET", "/api/v1/tokens?tenant=lower", token=tokens["upper-admin"])).body["items"]
        assert {one["tenant"] for one in listed} == {"lower"}
        [owners] = [one for one in listed if one["user"] == "lower-owner"]
        [laptop] = [one for one in listed if one["comment"] == "laptop"]
        hour_s = api.clock.us // HOUR_US * 3_600
        assert owners["last_used"] == utc_text(hour_s)
        assert (laptop["user"], laptop["role"], laptop["last_used"]) == ("lower-reader", "reader", None)
        assert all("." not in one["id"] for one in listed)
        everybody = (await api("GET", "/api/v1/tokens")).body["items"]
        assert {one["tenant"] for one in everybody} == {"upper", "lower", "other"}
        await api("DELETE", f"/api/v1/tokens/{owners['id']}")
        assert await api.kv.get(last_use_key(owners["id"])) is None


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=-1", "limit=x", "cursor=%00", "cursor=!!!", "cursor=" + "A" * 900,
        "colour=red", "limit=1&limit=2", "limit=1e9", "cursor=AAAA",
    ],
)  # fmt: skip
async def test_a_bad_query_is_answered_in_words(query: str, api: Api) -> None:
    answer = await api("GET", f"/api/v1/users?{query}")
    assert (answer.status, "query" in answer.body["detail"]) == (400, True)


# Bodies.


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"tenant": "lower"}, "/name", "name is missing"),
        ({"name": 1}, "/name", "Expected `str`"),
        ({"name": "x", "colour": "red"}, "/colour", "unknown field colour"),
        ({"name": "../x", "tenant": "lower"}, None, "a user's name"),
        ({"name": "x\u0007y", "tenant": "lower"}, "/name", "cannot be printed"),
        ({"name": "x", "tenant": "lower", "role": "king"}, "/role", "a user is"),
        ({"name": "lower-owner", "tenant": "lower"}, None, "exists"),
    ],
)
async def test_what_is_wrong_with_a_body_is_said_with_a_pointer(
    body: object, pointer: str | None, words: str, api: Api
) -> None:
    await people(api)
    answer = await api("POST", "/api/v1/users", body)
    assert (answer.status, words in answer.body["detail"]) == (400, True), answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    if pointer is not None:
        assert [error["pointer"] for error in answer.body["errors"]] == [pointer]


async def test_texts_of_other_languages_are_taken_as_they_are(api: Api) -> None:
    await people(api)
    for name in ("Société\u00a0Générale d’Oran", "شركة\u200f التخزين\u200c", "Ǆ 存储 🗄"):
        answer = await api("PATCH", "/api/v1/tenants/lower", {"legal_name": name})
        assert (answer.status, answer.body["customer"]["legal_name"]) == (200, name)
    turned = await api("PATCH", "/api/v1/tenants/lower", {"legal_name": "a\u202eb"})
    assert (turned.status, turned.body["errors"][0]["pointer"]) == (400, "/legal_name")


async def test_a_pointer_leads_into_what_is_nested(api: Api) -> None:
    await people(api)
    body = {"user": "lower-owner", "limits": {"bytes_max": "much"}}
    answer = await api("POST", "/api/v1/keys", body)
    assert answer.body["errors"][0]["pointer"] == "/limits/bytes_max"
    assert explained("Expected `int` - at `$.a[3].b`") == ("Expected `int`", "/a/3/b")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"\xff\xfe",
        b'{"name": NaN}',
        b"1" * 60_000,
    ],
    ids=lambda content: f"{content[:8]!r}x{len(content)}",
)
async def test_no_body_is_a_bug_of_ours(content: bytes, api: Api) -> None:
    answer = await api("POST", "/api/v1/users", content=content)
    assert answer.status == 400


async def test_a_body_beyond_the_bound_is_refused_with_and_without_a_length(api: Api) -> None:
    large = b'{"name": "' + b"x" * BODY_SIZE_MAX + b'"}'
    assert (await api("POST", "/api/v1/users", content=large)).status == 413

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(BODY_SIZE_MAX // 4096 + 2):
            yield b"[" * 4096

    async with api.session.post(
        api.url + "/api/v1/users", data=pieces(), headers={"Authorization": f"Bearer {TOKEN}"}
    ) as answer:
        assert answer.status in (413, 415)


async def test_a_compressed_body_is_not_unpacked(api: Api) -> None:
    headers = {"Content-Encoding": "deflate"}
    packed = zlib.compress(b'{"name": "alice", "tenant": "lower"}')
    assert (await api("POST", "/api/v1/users", content=packed, headers=headers)).status == 415


async def test_a_form_of_a_browser_is_refused(api: Api) -> None:
    headers = {"Content-Type": "text/plain"}
    assert (await api("POST", "/api/v1/users", {"name": "a"}, headers=headers)).status == 415


async def test_a_strangers_body_is_not_read(api: Api) -> None:
    large = b"x" * (BODY_SIZE_MAX + 1)
    assert (await api("POST", "/api/v1/users", content=large, token="wrong")).status == 401


# Paths.


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/tenants/..",
        "/api/v1/tenants/%2e%2e",
        "/api/v1/tenants/lower%2Fstate",
        "/api/v1/tenants/lower%2fprojects",
        "/api/v1/tenants/lower/",
        "/api/v1//tenants",
        "/api/v1/tenants/%00",
        "/api/v1/tenants/%ff",
        "/api/v1/tenants/" + "a" * 129,
        "/api/v1/tenants/" + "a" * 2000,
        "/api/v1/tenants/lower/../other",
        "/api/v1/users/x%0d%0aX:y",
    ],
)
async def test_tricks_with_paths_reach_nothing(path: str, api: Api) -> None:
    await people(api)
    assert (await api("GET", path)).status in (400, 404)


async def test_a_name_may_be_escaped_in_a_path(api: Api) -> None:
    await people(api)
    await api("POST", "/api/v1/users", {"name": "a@b.c+d=e", "tenant": "lower"})
    assert (await api("GET", "/api/v1/users/a%40b.c%2Bd%3De")).body["name"] == "a@b.c+d=e"


async def test_a_wrong_method_is_told_apart_from_a_wrong_path(api: Api) -> None:
    assert (await api("DELETE", "/api/v1/tenants")).status == 405
    assert (await api("GET", "/api/v1/nothing")).status == 404
    assert (await api("GET", "/api/v1/tenants/nobody")).status == 404


# What is recorded.


async def test_every_act_is_in_the_audit_log_with_who_what_and_from_where(api: Api) -> None:
    tokens = await people(api)
    body = {"name": "alice", "role": "reader"}
    await api("POST", "/api/v1/users", body, token=tokens["lower-owner"])
    (entry,) = await entries(api.kv)
    assert (entry.who, entry.tenant, entry.action, entry.target, entry.outcome) == (
        "lower-owner", "lower", "create_user", "users", "done",
    )  # fmt: skip
    assert entry.source == "127.0.0.1"
    assert tokens["lower-owner"].startswith(entry.token + ".")
    assert '"role":"reader"' in entry.changes[0].after
    listed = (await api("GET", "/api/v1/audit", token=tokens["lower-reader"])).body["items"]
    assert [one["action"] for one in listed] == ["create_user"]
    assert (await api("GET", "/api/v1/audit", token=tokens["other-owner"])).body["items"] == []


async def test_what_is_refused_to_a_known_caller_is_recorded_within_a_bound(api: Api) -> None:
    tokens = await people(api)
    for _ in range(70):
        body = {"name": "alice"}
        assert (await api("POST", "/api/v1/users", body, token=tokens["lower-reader"])).status == 403
    found = await entries(api.kv)
    assert len(found) == 60
    assert found[0].outcome == "refused: the role reader does not allow users:Write"
    assert (await verify(api.kv)).finished


async def test_a_tenants_users_have_a_share_of_the_port_and_the_operator_all_of_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "CHANGES_MAX", 3)
    tokens = await people(api)

    async def make(number: int, token: str = TOKEN) -> int:
        body = {"name": f"user-{number}", "tenant": "lower"}
        return (await api("POST", "/api/v1/users", body, token=token)).status

    found = [
        await make(number, tokens[f"lower-{role}"]) for number, role in enumerate(["owner", "admin"] * 2)
    ]
    assert found == [201, 403, 201, 429]  # An admin makes no owner; it was a change asked for.
    assert (await api("GET", "/api/v1/users", token=tokens["lower-owner"])).status == 200
    assert await make(4, tokens["upper-owner"]) == 201, "another tenant's share is its own"
    assert [await make(number) for number in range(5, 10)] == [201] * 5
    before = len(await entries(api.kv))
    assert await make(10, tokens["lower-owner"]) == 429
    assert len(await entries(api.kv)) == before, "whoever is refused for it fills no log"
    api.clock.us += 3_600 * 1_000_000
    assert await make(10, tokens["lower-owner"]) == 201


def test_what_a_tenant_has_under_way_at_once_is_bounded_and_given_back() -> None:
    clock = Clock()
    found = shares.Shares(clock)
    with ExitStack() as stack:
        for _ in range(shares.AT_ONCE_MAX):
            stack.enter_context(found.taken("lower", changes=False))
        with pytest.raises(Problem, match="under way"), found.taken("lower", changes=False):
            pass
        with found.taken("other", changes=True):
            pass
    with found.taken("lower", changes=False):
        pass


async def test_a_read_and_a_slip_of_the_finger_are_not_acts(api: Api) -> None:
    await people(api)
    await api("GET", "/api/v1/users")
    await api("POST", "/api/v1/users", {"nmae": "x"})
    assert await entries(api.kv) == []


async def test_the_log_is_verified_over_the_api(api: Api) -> None:
    await people(api)
    for number in range(5):
        await api("POST", "/api/v1/users", {"name": f"u{number}", "tenant": "lower"})
    found = (await api("GET", "/api/v1/audit/verify")).body
    assert (found["records"], found["finished"], found["finding"]) == (5, True, "")
    again = (await api("GET", f"/api/v1/audit/verify?after={found['upto']}&anchor={found['upto']}")).body
    assert again["finished"] is True
    assert (await api("GET", "/api/v1/audit/verify?anchor=nothing")).status == 400


# The description.


def test_the_description_that_is_kept_is_the_one_of_the_code() -> None:
    # Made by: python -m objstore.admin.openapi
    assert openapi.PLACE.read_text() == openapi.text(TABLE)


async def test_the_description_is_served(api: Api) -> None:
    answer = await api("GET", "/api/v1/openapi.json")
    assert (answer.status, answer.body) == (200, json.loads(openapi.text(TABLE)))
    assert (await api("GET", "/api/v1/openapi.json", token=None)).status == 401


def test_every_reference_in_the_description_leads_somewhere() -> None:
    document = openapi.describe(TABLE)
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        found = document
        for step in reference.split("/"):
            assert step in found, reference
            found = found[step]


async def test_answers_are_what_the_description_says(api: Api) -> None:
    await people(api)
    await api("POST", "/api/v1/users", {"name": "alice", "tenant": "lower"})
    await api("POST", "/api/v1/keys", {"user": "alice"})
    names = await furnish(api)
    checked = 0
    for route in TABLE.routes:
        if route.changes or route.answer is File:
            continue
        answer = await api("GET", place(route, names) + asked(route))
        assert answer.status == 200, (route.name, answer)
        msgspec.convert(answer.body, route.answer)
        declared = {field.name for field in msgspec.structs.fields(route.answer)}
        assert set(answer.body) <= declared, route.name
        checked += 1
    assert checked >= 30


async def test_what_is_done_to_machines_is_done_even_if_the_log_cannot_be_written() -> None:
    noted: list[str] = []

    async def note(deed: Deed, outcome: str) -> None:
        noted.append(f"{deed.action} {outcome}")
        raise MetaUnavailable("the committer is away")

    async def copy_metadata() -> dict[str, object]:
        return {"bytes": 1}

    async with serving(note=note, copy_metadata=copy_metadata) as api:
        answer = await api("POST", "/api/v1/meta/copy")
        assert (answer.status, answer.body) == (200, {"bytes": 1})
    assert noted == ["copy_metadata begun", "copy_metadata done"]
