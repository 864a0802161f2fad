"""Long work goes in steps that say how much there is to do."""

from objstore.admin.gate import HOUR_US
from objstore.meta.kv import Transaction
from objstore.meta.schema import encode
from objstore.rental.records import SealedRecord
from objstore.rental.usage import SEALED_KEY
from tests.admin.api import furnish, people, serving


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
