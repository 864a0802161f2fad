"""Of what is not there nothing is said: no empty list, no proof that all of nothing is well."""

import re

import pytest

from objstore.admin.resources import TABLE
from objstore.admin.routes import in_path, in_query
from tests.admin.api import PLACES, people, serving

ASKED = [route for route in TABLE.routes if route.method == "GET" and route.owner in (in_path, in_query)]
REQUIRED = {
    "export_month": "month=2026-03",
    "list_exported_parts": "key=a2V5&order=1",
    "read_exported_body": "key=a2V5&order=1",
}


def address(path: str, tenant: str) -> str:
    return re.sub(r"\{([a-z_]+)\}", lambda one: {**PLACES, "tenant": tenant}[one[1]], path)


async def test_every_question_about_a_tenant_that_is_not_there_is_answered_so() -> None:
    assert len(ASKED) > 15
    async with serving() as api:
        await people(api)
        for route in ASKED:
            asked = [REQUIRED.get(route.name, "")] + ["tenant=nosuch"] * (route.owner is in_query)
            answer = await api("GET", f"{address(route.path, 'nosuch')}?{'&'.join(filter(None, asked))}")
            assert answer.status in (400, 404), route.name
            assert answer.body["detail"] == "there is no tenant 'nosuch'", route.name


async def test_to_a_tenants_user_it_is_like_anothers() -> None:
    async with serving() as api:
        tokens = await people(api)
        for tenant in ("nosuch", "other"):
            answer = await api("GET", f"/api/v1/tenants/{tenant}/usage/verify", token=tokens["lower-owner"])
            assert (answer.status, answer.body["detail"]) == (404, "it is not there")


@pytest.mark.parametrize(
    ("path", "choices"),
    [
        ("leases", "active, draft, ended, quote, signed, terminated, withdrawn"),
        ("invoices", "cancelled, draft, final, overdue, paid"),
    ],
)
async def test_a_state_that_none_can_be_in_is_refused_with_those_that_there_are(
    path: str, choices: str
) -> None:
    async with serving() as api:
        await people(api)
        wrong = await api("GET", f"/api/v1/{path}?tenant=lower&state=nonsense")
        assert (wrong.status, wrong.body["detail"]) == (
            400, f"the address's query: state is one of {choices}, not 'nonsense'",
        )  # fmt: skip
        for state in ("", *choices.split(", ")):
            assert (await api("GET", f"/api/v1/{path}?tenant=lower&state={state}")).status == 200


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("keys", {"user": "u", "expires": "tomorrow"}, "expires is a moment, as 2027-01-31T00:00:00Z"),
        (
            "payments",
            {"tenant": "lower", "method": "especes", "amount": "1", "received": "soon"},
            "received is a moment, as 2027-01-31T00:00:00Z",
        ),
        ("users", {"name": "u", "tenant": "t", "email": "notanemail"}, "an e-mail address is like"),
        ("tenants", {"name": "new", "trial_days": 3}, "kind is missing: only a customer"),
    ],
)
async def test_a_word_that_cannot_be_taken_is_told_as_it_should_be(
    path: str, body: dict[str, object], words: str
) -> None:
    async with serving() as api:
        await people(api)
        body = {key: "lower-owner" if value == "u" else value for key, value in body.items()}
        answer = await api("POST", f"/api/v1/{path}", body)
        assert answer.status == 400
        assert words in answer.body["detail"]
        assert "RFC3339" not in answer.body["detail"]
