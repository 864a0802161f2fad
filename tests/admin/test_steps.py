"""Long work goes in steps that say how much there is to do."""

from collections.abc import Sequence

import pytest

from objstore.admin.gate import HOUR_US
from objstore.clock import SECOND_US
from objstore.errors import StateForbids
from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import encode
from objstore.rental import invoices
from objstore.rental.records import InvoiceRecord, SealedRecord
from objstore.rental.sellers import create_seller
from objstore.rental.usage import SEALED_KEY
from tests.admin.api import furnish, people, serving
from tests.rental.parties import ISSUED_US, SELLER, a_customer, a_draft, line


async def test_a_step_of_drafting_says_how_many_customers_it_found_behind_the_last_one() -> None:
    async with serving() as api:
        await people(api)
        sealed = SealedRecord(hour=api.clock.us // HOUR_US)
        await api.kv.commit(Transaction(put={SEALED_KEY: encode(sealed)}))
        first = await api("POST", "/api/v1/invoices/drafts", {"month": "2026-03"})
        assert (first.status, first.body["customers"], first.body["tenants"]) == (200, 3, 3)
        second = await api("POST", "/api/v1/invoices/drafts", {"month": "2026-03", "after": "lower"})
        assert (second.body["customers"], second.body["tenants"]) == (2, 2)


async def test_a_step_of_making_final_says_how_many_drafts_it_found() -> None:
    async with serving() as api:
        await people(api)
        await furnish(api)
        first = await api("POST", "/api/v1/invoices/finalise", {})
        assert (first.status, first.body["drafts"], first.body["issued"]) == (200, 1, 1)
        again = await api("POST", "/api/v1/invoices/finalise", {})
        assert (again.body["drafts"], again.body["issued"], again.body["finished"]) == (0, 0, True)


@pytest.mark.parametrize(("batch_s", "issued", "finished"), [(0, 48, True), (3, 32, False)])
async def test_the_time_that_refused_drafts_take_is_not_that_of_the_ones_that_are_issued(
    monkeypatch: pytest.MonkeyPatch, batch_s: int, issued: int, finished: bool
) -> None:
    finalise = invoices.finalise

    async with serving() as api:
        await create_seller(api.kv, SELLER)
        for number in range(64):
            refused = number < 16  # They come first, and wait for a purchase order.
            tenant = f"customer-{number}"
            await a_customer(api.kv, tenant, "administration" if refused else "tpe_pme")
            await a_draft(api.kv, tenant, [line(100)], now_us=ISSUED_US - (SECOND_US if refused else 0))

        async def slow(kv: Kv, documents: Sequence[str], *, now_us: int) -> list[InvoiceRecord]:
            try:
                made = await finalise(kv, documents, now_us=now_us)
            except StateForbids:
                api.clock.us += SECOND_US // 2
                raise
            api.clock.us += batch_s * SECOND_US
            return made

        monkeypatch.setattr(invoices, "finalise", slow)
        step = (await api("POST", "/api/v1/invoices/finalise", {})).body
        assert (len(step["refused"]), step["issued"], step["finished"]) == (16, issued, finished)
