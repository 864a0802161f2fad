"""Exports through the API: whose they are to begin, and to end."""

from objstore.rental.customers import set_state
from objstore.rental.departures import begin_export, find_export
from tests.admin.api import people, serving

TOLD = {"objects": 1, "bytes": 2, "missing": 0, "manifest": "0f" * 32}


async def test_an_export_of_the_operator_is_not_the_owners_to_finish_before_it_leaves() -> None:
    """A purge's proof names the manifest of each export that was finished."""
    async with serving() as api:
        tokens = await people(api)
        now_us = api.clock.us
        await begin_export(api.kv, "lower", "01A", by="operator", now_us=now_us)
        path, owner = "/api/v1/tenants/lower/exports/01A/finish", tokens["lower-owner"]
        assert (await api("POST", path, TOLD, token=owner)).status == 403
        assert not (await find_export(api.kv, "lower", "01A")).finished_us
        await set_state(api.kv, "lower", "terminating", reason="it leaves", now_us=now_us)
        assert (await api("POST", path, TOLD, token=owner)).status == 200
        assert (await find_export(api.kv, "lower", "01A")).manifest.hex() == TOLD["manifest"]
