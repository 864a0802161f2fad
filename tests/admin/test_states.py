"""What a state or a date does not allow is a refusal (409); a mistyped word is none (400)."""

import pytest

from tests.admin.api import DRAFT, QUOTE, SIGNED, TB, Api, furnish, people, serving


async def refused(api: Api, method: str, path: str, body: object = None) -> str:
    answer = await api(method, f"/api/v1/{path}", {} if body is None else body)
    assert answer.status == 409, (path, answer.status, answer.body)
    return str(answer.body["detail"])


async def test_what_a_state_forbids_is_refused_and_says_which_state() -> None:
    async with serving() as api:
        await people(api)
        await furnish(api)
        assert "only who is terminating is purged" in await refused(api, "POST", "tenants/lower/purge")
        assert "what may follow is" in await refused(api, "PUT", "tenants/lower/state", {"state": "trial"})
        assert "is quote; this is done to" in await refused(api, "POST", f"leases/{QUOTE}/sign")
        assert "is signed; this is done to" in await refused(api, "POST", f"leases/{SIGNED}/accept")
        await api("PUT", "/api/v1/tenants/lower/state", {"state": "suspended"})
        order = {"tenant": "lower", "capacity": TB, "term_months": 12}
        assert "is suspended" in await refused(api, "POST", "offers/small/orders", order)


async def test_what_is_sold_from_a_pool_that_there_is_not_is_refused_where_it_is_named() -> None:
    async with serving() as api:
        await people(api)
        await furnish(api)
        terms = {"tenant": "lower", "kind": "guaranteed", "capacity": TB, "term_months": 12}
        lease = {**terms, "begin": "2027-01-01T00:00:00Z", "pool": "gold"}
        offer = {"least": TB, "most": TB, "terms_months": [12], "pool": "gold"}
        before = len(await list_leases(api))
        own = {**lease, "pool": "", "kind": "dedicated", "nodes": ["0", "never"]}
        answer = await api("POST", "/api/v1/leases", own)
        assert (answer.status, answer.body["errors"][0]["pointer"]) == (400, "/nodes")
        assert "there is no node 'never'" in answer.body["detail"]
        for method, path, body in (
            ("POST", "leases", lease),
            ("PATCH", f"leases/{DRAFT}", {"pool": "gold"}),
            ("PUT", "offers/small", offer),
        ):
            answer = await api(method, f"/api/v1/{path}", body)
            assert (answer.status, answer.body["errors"][0]["pointer"]) == (400, "/pool"), path
            assert "there is no pool 'gold': pools are the shared one" in answer.body["detail"]
        assert len(await list_leases(api)) == before
        assert (await api("PUT", "/api/v1/offers/small", {**offer, "open": False})).status == 200
        told = {"at": "2027-01-01T00:00:00Z", "raw": TB, "pool": "gold"}
        assert (await api("POST", "/api/v1/capacity/events", told)).status == 201
        assert (await api("POST", "/api/v1/leases", lease)).status == 201


async def list_leases(api: Api) -> list[dict[str, object]]:
    found: list[dict[str, object]] = (await api("GET", "/api/v1/leases")).body["items"]
    return found


async def test_who_is_terminating_may_take_its_data_along_first() -> None:
    async with serving() as api:
        await people(api)
        moved = await api("PUT", "/api/v1/tenants/other/state", {"state": "terminating", "reason": "asked"})
        assert moved.status == 200, moved.body
        assert "30 more days" in await refused(api, "POST", "tenants/other/purge")


@pytest.mark.parametrize("state", ["nonsense", ""])
async def test_a_state_that_there_is_not_is_a_mistyped_word(state: str) -> None:
    async with serving() as api:
        await people(api)
        answer = await api("PUT", "/api/v1/tenants/lower/state", {"state": state})
        assert answer.status == 400
