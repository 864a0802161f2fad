"""A month's documents in one FOCUS file: whose, cut by bucket, with tags and leases, and sent in pieces."""

import asyncio
import csv
import gc
import io
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from yarl import URL

from objstore.admin import gate, guard
from objstore.admin.resources import focus
from objstore.clock import SECOND_US
from objstore.errors import MetaUnavailable
from objstore.meta.kv import Add, Transaction
from objstore.meta.schema import TitleRecord, encode, title_key
from objstore.rental import focus_months
from objstore.rental.billing import draft_month, rate_customer
from objstore.rental.catalogue import publish_plan
from objstore.rental.credit_notes import Credit, issue_credit_note
from objstore.rental.customers import find_customer
from objstore.rental.focus import Row
from objstore.rental.focus_months import by_bucket
from objstore.rental.invoices import finalise_due, list_documents, read_lines
from objstore.rental.leases import make_lease, sign
from objstore.rental.meters import count
from objstore.rental.money import Money
from objstore.rental.plan_changes import give_plan
from objstore.rental.projects import create_project
from objstore.rental.records import InvoiceRecord, Line
from objstore.rental.usage import move_mark
from objstore.upkeep.metering import SETTLE_S, Metering
from tests.admin.api import TOKEN, Api, people, serving
from tests.objects.fakes import FakeClock
from tests.rental import focus_rules
from tests.rental.cards import GB, TB, plan, rate
from tests.rental.parties import DAY_US, ISSUED_US, MARCH, RULES, an_id, randomness
from tests.rental.test_leases import SURVEY, lease
from tests.waiting import until

BEGIN_US = MARCH.begin_s * SECOND_US
BUCKETS = (  # Of `lower` but the last.
    (1, "lower", "shop", "photos", 30 * GB),
    (2, "lower", "shop", "videos", 10 * GB),
    (3, "lower", "", "attic", 20 * GB),
    (4, "other", "", "others", 7 * GB),
)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """March is final: `lower` stored 60 GB, in part in project `shop`; `other` leased 1 TB and used 7 GB."""
    async with serving() as one:
        tokens = await people(one)
        kv = one.kv
        card = plan(rate("10", storage_class="STANDARD"), currency="DZD")
        await publish_plan(kv, msgspec.structs.replace(card, code="tpe-pme"), made_us=1)
        await give_plan(kv, "other", "tpe-pme", now_us=BEGIN_US - DAY_US)
        await create_project(kv, "lower", "shop", now_us=BEGIN_US, tags={"env": "prod"}, cost_centre="CC-7")
        for number, tenant, project, name, size in BUCKETS:
            title = TitleRecord(tenant=tenant, project=project, name=name, created_us=1)
            add: dict[bytes, Add] = {}
            count(add, number, "", MARCH.begin_s, stored=size)
            await kv.commit(Transaction(put={title_key(number): encode(title)}, add=add))
        made = lease(9, tenant="other", begin_us=BEGIN_US, capacity=TB, unit_price="400")
        await make_lease(kv, made, now_us=BEGIN_US - DAY_US)
        await sign(kv, made.id, SURVEY, now_us=BEGIN_US - DAY_US)
        await move_mark(kv, MARCH.first_hour)
        for _ in range(3):
            await Metering(kv, FakeClock((MARCH.end_s + SETTLE_S) * SECOND_US)).run()
        run = await draft_month(kv, MARCH, rules=RULES, now_us=ISSUED_US, randomness=randomness())
        assert run.drafts == 2, run
        await finalise_due(kv, now_us=ISSUED_US)
        one.tokens = tokens  # type: ignore[attr-defined]
        yield one


async def file(api: Api, query: str, **given: Any) -> bytes:
    answer = await api("GET", f"/api/v1/reports/focus?month=2026-03{query}", **given)
    assert answer.status == 200, answer
    assert isinstance(answer.body, bytes)
    return answer.body


def parsed(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


async def documents(api: Api, *tenants: str) -> dict[str, Decimal]:
    found: list[InvoiceRecord] = []
    for tenant in tenants:
        found += await list_documents(api.kv, tenant)
    return {one.number: Decimal(str(Money(one.total, one.currency))) for one in found}


async def test_everybodys_month_keeps_every_rule_and_adds_up_to_its_documents(api: Api) -> None:
    (invoice,) = await list_documents(api.kv, "lower")
    note = await issue_credit_note(
        api.kv, an_id(77), invoice.id, [Credit(1, 12_34)], reason="billing_error", now_us=ISSUED_US
    )
    content = await file(api, "")
    totals = await documents(api, "lower", "other")
    assert note.number in totals
    assert focus_rules.broken_rules(content.decode(), totals) == []
    rows = parsed(content)
    assert {row["BillingAccountId"] for row in rows} == {"lower", "other"}


async def test_a_line_of_use_is_cut_into_the_buckets_that_share_it_with_their_projects_tags(api: Api) -> None:
    rows = [row for row in parsed(await file(api, "&tenant=lower")) if row["ChargeCategory"] == "Usage"]
    found = {row["ResourceName"]: (row["SubAccountId"], row["BilledCost"], row["Tags"]) for row in rows}
    tags = '{"env": "prod", "objstore/cost_centre": "CC-7"}'
    assert found == {
        "photos": ("shop", "300", tags),
        "videos": ("shop", "100", tags),
        "attic": ("", "200", ""),
    }
    assert rows[0]["ResourceId"].startswith("arn:aws:s3:::")


async def test_a_lease_is_bought_and_then_used_or_idle(api: Api) -> None:
    rows = [row for row in parsed(await file(api, "&tenant=other")) if row["CommitmentDiscountId"]]
    found = [
        (row["ChargeCategory"], row["CommitmentDiscountStatus"], row["BilledCost"], row["EffectiveCost"])
        for row in rows
    ]
    # 7 of 1,000 GB at 400.00.
    assert found == [
        ("Purchase", "", "400", "0"),
        ("Usage", "Used", "0", "2.8"),
        ("Usage", "Unused", "0", "397.2"),
    ]


async def test_who_asks_sees_their_own_and_a_reseller_its_customers(api: Api) -> None:
    tokens: dict[str, str] = api.tokens  # type: ignore[attr-defined]

    async def seen(caller: str, query: str = "") -> set[str]:
        rows = parsed(await file(api, query, token=tokens[caller]))
        return {row["BillingAccountId"] for row in rows}

    assert await seen("upper-billing") == {"lower"}
    assert await seen("upper-billing", "&tenant=lower") == {"lower"}
    assert await seen("lower-reader") == {"lower"}
    assert await seen("other-owner") == {"other"}
    refused = await api(
        "GET", "/api/v1/reports/focus?month=2026-03&tenant=lower", token=tokens["other-owner"]
    )
    assert refused.status == 404


async def test_a_document_alone_has_the_rows_that_it_has_in_its_months_file(api: Api) -> None:
    for tenant in ("lower", "other"):
        (invoice,) = await list_documents(api.kv, tenant)
        alone = await api("GET", f"/api/v1/invoices/{invoice.id}/focus")
        assert parsed(alone.body) == parsed(await file(api, f"&tenant={tenant}"))


async def test_a_file_may_be_of_one_sellers_documents(api: Api) -> None:
    assert len(parsed(await file(api, "&seller=oran"))) == len(parsed(await file(api, "")))
    assert parsed(await file(api, "&seller=tunis")) == []


async def test_parquet_has_the_same_rows(api: Api) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(await file(api, "&format=parquet")))
    rows = parsed(await file(api, ""))
    assert table.column("BillingAccountId").to_pylist() == [row["BillingAccountId"] for row in rows]
    assert table.column("BilledCost").to_pylist() == [Decimal(row["BilledCost"]) for row in rows]


async def test_a_file_comes_in_pieces_whatever_their_size(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await file(api, "")
    monkeypatch.setattr(focus, "ROWS_AT_ONCE", 2)
    assert await file(api, "") == whole
    assert focus._running.count == 0


@pytest.mark.parametrize("rows_at_once", [2, 1_000])
async def test_each_piece_may_come_behind_a_line_that_says_how_far_the_file_is(
    api: Api, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    whole = await file(api, "")
    monkeypatch.setattr(focus, "ROWS_AT_ONCE", rows_at_once)
    rest, content, heads = await file(api, "&progress=true"), b"", []
    while rest:
        line, _, rest = rest.partition(b"\n")
        heads.append(msgspec.json.decode(line, type=focus.Head))
        content, rest = content + rest[: heads[-1].bytes], rest[heads[-1].bytes :]
    assert content == whole
    done = [head.done for head in heads]
    assert done == sorted(done)
    assert {head.customers for head in heads} == {3}
    assert set(done) >= {1, 3}, "lower, other, upper: before a tenant's rows are sent, and behind the last"
    assert [head.finished for head in heads] == [False] * (len(heads) - 1) + [True]
    tokens: dict[str, str] = api.tokens  # type: ignore[attr-defined]
    own = await file(api, "&progress=true", token=tokens["upper-billing"])
    assert msgspec.json.decode(own.partition(b"\n")[0], type=focus.Head).customers == 2


async def test_the_watch_over_connections_sees_each_piece(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def noted(request: object, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            seen.append(piece)
            yield piece

    monkeypatch.setattr(gate, "noted", noted)
    assert await file(api, "") == b"".join(seen)


async def test_what_is_wrong_before_the_first_rows_are_sent_is_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*given: object, **more: object) -> AsyncGenerator[list[Row], None]:
        yield []
        raise MetaUnavailable("no quorum")

    monkeypatch.setattr(focus, "all_rows", failing)
    answer = await api("GET", "/api/v1/reports/focus?month=2026-03")
    assert (answer.status, answer.body["detail"]) == (503, "no quorum")
    assert focus._running.count == 0


async def test_no_month_is_rated_for_a_seller_that_has_no_document_of_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rated(*given: object) -> None:
        raise AssertionError("rated")

    monkeypatch.setattr(focus_months, "rate_customer", rated)
    assert parsed(await file(api, "&seller=elsewhere")) == []


class Endless:
    """A file in which there is always more."""

    def add(self, found: Sequence[Row]) -> bytes:
        return bytes(1 << 20)

    def end(self) -> bytes:
        return b""


async def endlessly(*given: object, **more: object) -> AsyncGenerator[list[Row], None]:
    while True:
        yield [{}] * focus.ROWS_AT_ONCE


@pytest.mark.parametrize("progress", ["", "&progress=true"])
@pytest.mark.parametrize("goes", [True, False])
async def test_a_file_that_nobody_reads_any_more_is_no_longer_made(
    api: Api, monkeypatch: pytest.MonkeyPatch, progress: str, goes: bool
) -> None:
    monkeypatch.setattr(focus, "all_rows", endlessly)
    monkeypatch.setattr(focus, "pieces_of", lambda form: Endless())
    monkeypatch.setattr(guard, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 3600.0 if goes else 0.1)
    watching = asyncio.ensure_future(guard.watch(api.server))
    url = URL(api.url)
    _, writer = await asyncio.open_connection(url.host, url.port, limit=1_000)
    gc.disable()  # It would find the file in the end.
    path = f"/api/v1/reports/focus?month=2026-03{progress}"
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        await until(lambda: any(connection._paused for connection in api.server.connections))
        assert focus._running.count == 1
        if goes:
            writer.transport.abort()
        await until(lambda: focus._running.count == 0)
    finally:
        gc.enable()
        watching.cancel()
        writer.transport.abort()


async def test_a_tenants_users_have_one_file_at_a_time_made_and_leave_one_to_others(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: dict[str, str] = api.tokens  # type: ignore[attr-defined]
    path = "/api/v1/reports/focus?month=2026-03"
    goes_on = asyncio.Event()

    async def waiting(*given: object, **more: object) -> AsyncGenerator[list[Row], None]:
        await goes_on.wait()
        yield []

    with monkeypatch.context() as patched:
        patched.setattr(focus, "all_rows", waiting)
        slow = asyncio.ensure_future(api("GET", path, token=tokens["upper-billing"]))
        await until(lambda: focus._running.count == 1)
    assert (await api("GET", path, token=tokens["upper-owner"])).status == 503
    assert (await api("GET", path)).status == 200
    goes_on.set()
    assert (await slow).status == 200
    assert (await api("GET", path, token=tokens["upper-owner"])).status == 200
    assert (focus._running.count, focus._running.tenants) == (0, set())


async def test_only_so_many_files_are_made_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus._running, "count", focus.FILES_MAX)
    answer = await api("GET", "/api/v1/reports/focus?month=2026-03")
    assert (answer.status, "ask again later" in answer.body["detail"]) == (503, True)


async def test_what_makes_no_sense_is_refused(api: Api) -> None:
    for query in ("", "month=2026-13", "month=2026-03&format=xml", "month=2026-03&tenant=nobody"):
        assert (await api("GET", f"/api/v1/reports/focus?{query}")).status in (400, 404), query


async def test_a_line_that_late_usage_has_changed_since_stays_whole(api: Api) -> None:
    (invoice,) = await list_documents(api.kv, "lower")
    lines = await read_lines(api.kv, invoice)
    rated = await rate_customer(api.kv, await find_customer(api.kv, "lower"), MARCH)
    assert [line.bucket for line in by_bucket(lines, rated)] == ["attic", "photos", "videos"]
    other: Line = msgspec.structs.replace(lines[0], net=lines[0].net - 1)
    assert by_bucket([other], rated) == [other]
    assert by_bucket(lines, None) == lines
