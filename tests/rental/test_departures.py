"""Who leaves: what an export allows and until when; from which state a tenant is purged."""

import pytest

from objstore.errors import BadArgument
from objstore.iam.tenants import create_tenant
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import encode
from objstore.rental import departures
from objstore.rental.customers import DAY_US, set_state
from objstore.rental.leases import terminate
from objstore.rental.records import lease_key, tenant_lease_key
from objstore.rental.sellers import create_seller
from tests.rental.parties import SELLER, a_customer
from tests.rental.test_leases import lease

NOW_US = 1_790_000_000_000_000
DIGEST = bytes(32)


async def a_store() -> DictKv:
    kv = DictKv()
    await create_seller(kv, SELLER)
    await a_customer(kv, "acme")
    return kv


async def test_an_export_is_open_for_a_week_and_for_another_when_it_is_resumed() -> None:
    kv = await a_store()
    with pytest.raises(BadArgument, match="no tenant"):
        await departures.begin_export(kv, "nobody", "01A", by="operator", now_us=NOW_US)
    begun = await departures.begin_export(kv, "acme", "01A", by="operator", now_us=NOW_US)
    later = begun.open_until_us
    departures.check_open(begun, now_us=later - 1)
    with pytest.raises(BadArgument, match="resume it"):
        departures.check_open(begun, now_us=later)
    resumed = await departures.resume_export(kv, "acme", "01A", now_us=later)
    departures.check_open(resumed, now_us=later)
    assert (resumed.resumed, resumed.open_until_us) == (1, later + 7 * DAY_US)
    with pytest.raises(BadArgument, match="no export"):
        await departures.resume_export(kv, "acme", "01B", now_us=later)


async def test_a_finished_export_stays_what_its_manifest_says() -> None:
    kv = await a_store()
    await departures.begin_export(kv, "acme", "01A", by="operator", now_us=NOW_US)

    async def finish(manifest: bytes, objects: int = 3) -> None:
        await departures.finish_export(
            kv, "acme", "01A", objects=objects, size=9, missing=0, manifest=manifest, now_us=NOW_US + 1
        )

    for manifest, objects in ((b"short", 3), (DIGEST, -1)):
        with pytest.raises(BadArgument):
            await finish(manifest, objects)
    await finish(DIGEST)
    await finish(DIGEST)  # Its answer was lost.
    with pytest.raises(BadArgument, match="finished"):
        await finish(b"\1" * 32)
    with pytest.raises(BadArgument, match="finished"):
        await departures.resume_export(kv, "acme", "01A", now_us=NOW_US)
    (found,) = await departures.list_exports(kv, "acme")
    assert (found.objects, found.size, found.manifest) == (3, 9, DIGEST)


async def test_only_who_is_terminating_and_had_its_time_is_purged_and_there_is_no_way_back() -> None:
    kv = await a_store()
    await create_tenant(kv, "plain", now_us=NOW_US)
    with pytest.raises(BadArgument, match="no customer"):
        await departures.begin_purge(kv, "plain", by="operator", now_us=NOW_US)
    with pytest.raises(BadArgument, match="only who is terminating"):
        await departures.begin_purge(kv, "acme", by="operator", now_us=NOW_US)
    left = await set_state(kv, "acme", "terminating", reason="it leaves", now_us=NOW_US)
    with pytest.raises(BadArgument, match="30 more days"):
        await departures.begin_purge(kv, "acme", by="operator", now_us=NOW_US + 1)
    begun = await departures.begin_purge(kv, "acme", by="operator", now_us=left.purge_after_us)
    again = await departures.begin_purge(kv, "acme", by="another", now_us=left.purge_after_us + 1)
    assert (begun, begun.state) == (again, "deleting")
    with pytest.raises(BadArgument, match="no way back"):
        await set_state(kv, "acme", "active", reason="", now_us=left.purge_after_us)
    noted = await departures.note_purge(kv, begun, state="clearing", objects=7)
    assert [one.objects for one in await departures.list_purges(kv)] == [noted.objects] == [7]


async def test_who_has_a_lease_that_still_charges_is_not_purged_before_it_is_ended() -> None:
    kv = await a_store()
    held = lease(state="active", tenant="acme")
    put = {lease_key(held.id): encode(held), tenant_lease_key("acme", held.id): b""}
    await kv.commit(Transaction(put=put))
    left = await set_state(kv, "acme", "terminating", reason="it leaves", now_us=NOW_US)
    with pytest.raises(BadArgument, match="is active: end it first"):
        await departures.begin_purge(kv, "acme", by="operator", now_us=left.purge_after_us)
    assert await departures.find_purge(kv, "acme") is None
    await terminate(kv, held.id, at_us=NOW_US, now_us=NOW_US)
    begun = await departures.begin_purge(kv, "acme", by="operator", now_us=left.purge_after_us)
    assert begun.state == "deleting"
