"""Who leaves: a tenant's data handed back (exports), and their end (purges), as records.

    export    begun -> fetched while it is open -> finished; what ran out is resumed, what is finished stays
    purge     deleting -> clearing -> proven; carried out by upkeep/purging.py

Both are asked for by an administrative act, so that the audit log says who took or ended what. A tenant is
purged when its proof is there: the two are one commit.
"""

from typing import Final

import msgspec

from objstore.errors import BadArgument, StateForbids
from objstore.meta.kv import Kv, counter, prefix_end
from objstore.meta.schema import (
    AccountRecord,
    TenantRecord,
    account_key,
    decode,
    tenant_key,
    tenant_use_key,
)
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import DAY_US, move_to
from objstore.rental.leased import leases_of
from objstore.rental.records import (
    SALES_KEY,
    CustomerRecord,
    ExportRecord,
    PurgeRecord,
    SalesRecord,
    customer_key,
    export_key,
    purge_key,
)
from objstore.rental.sales import SOLD

OPEN_DAYS: Final = 7  # An export is open so long, from its beginning or when it is resumed.
EXPORTS_MAX: Final = 1_000  # Of a tenant: each is an act in the audit log, and kept.
DIGEST_SIZE: Final = 32  # SHA-256.


# Exports.


def no_such_export(export: str) -> BadArgument:
    return BadArgument(f"there is no export {export!r}", name="export", value=export)


async def begin_export(kv: Kv, tenant: str, export: str, *, by: str, now_us: int) -> ExportRecord:
    """Open an export of all that a tenant has stored.

    Args:
        export: its new id.
        by: who asks for it.

    Raises: BadArgument (no such tenant, or it has too many), Overloaded.
    """
    if len(await list_exports(kv, tenant, limit=EXPORTS_MAX)) >= EXPORTS_MAX:
        raise BadArgument(f"{tenant!r} has {EXPORTS_MAX} exports", name="tenant", value=tenant)
    record = ExportRecord(
        id=export, tenant=tenant, by=by, begun_us=now_us, open_until_us=now_us + OPEN_DAYS * DAY_US
    )

    async def decide(change: Change) -> ExportRecord:
        await _known_tenant(change, tenant)
        change.put(export_key(tenant, export), record)
        return record

    return await commit_change(kv, decide, what=f"the exports of {tenant!r}")


async def find_export(kv: Kv, tenant: str, export: str) -> ExportRecord:
    """Raises: BadArgument (there is none)."""
    value = await kv.get(export_key(tenant, export))
    if value is None:
        raise no_such_export(export)
    return decode(value, ExportRecord)


async def list_exports(kv: Kv, tenant: str, *, after: str = "", limit: int = 1_000) -> list[ExportRecord]:
    """A tenant's, in order of making."""
    prefix = export_key(tenant, "")
    start = export_key(tenant, after) + b"\0" if after else prefix
    return [decode(value, ExportRecord) for _, value in await kv.scan(start, prefix_end(prefix), limit)]


def check_open(record: ExportRecord, *, now_us: int) -> None:
    """Whether anything may be fetched for it. Raises: BadArgument."""
    if record.finished_us:
        raise StateForbids(f"export {record.id} is finished: begin another", name="export", value=record.id)
    if now_us >= record.open_until_us:
        raise StateForbids(
            f"export {record.id} was open for {OPEN_DAYS} days: resume it", name="export", value=record.id
        )


async def resume_export(kv: Kv, tenant: str, export: str, *, now_us: int) -> ExportRecord:
    """Open it for another while. Raises: BadArgument (there is none, or it is finished), Overloaded."""

    async def decide(change: Change) -> ExportRecord:
        record = await change.found(export_key(tenant, export), ExportRecord, no_such_export(export))
        if record.finished_us:
            check_open(record, now_us=now_us)
        changed = msgspec.structs.replace(
            record, open_until_us=now_us + OPEN_DAYS * DAY_US, resumed=record.resumed + 1
        )
        change.put(export_key(tenant, export), changed)
        return changed

    return await commit_change(kv, decide, what=f"export {export}")


async def finish_export(
    kv: Kv, tenant: str, export: str, *, objects: int, size: int, missing: int, manifest: bytes, now_us: int
) -> ExportRecord:
    """Close it, with what came of it; the same again changes nothing.

    Args:
        objects, size, missing: as its manifest has them.
        manifest: its SHA-256.

    Raises: BadArgument, Overloaded.
    """
    if len(manifest) != DIGEST_SIZE:
        raise BadArgument("the manifest's SHA-256 is 64 hexadecimal digits", name="manifest")
    if min(objects, size, missing) < 0:
        raise BadArgument("counts are 0 or more", name="objects")

    async def decide(change: Change) -> ExportRecord:
        record = await change.found(export_key(tenant, export), ExportRecord, no_such_export(export))
        if record.finished_us and record.manifest == manifest:
            return record
        check_open(record, now_us=now_us)
        changed = msgspec.structs.replace(
            record, finished_us=now_us, objects=objects, size=size, missing=missing, manifest=manifest
        )
        change.put(export_key(tenant, export), changed)
        return changed

    return await commit_change(kv, decide, what=f"export {export}")


async def _known_tenant(change: Change, tenant: str) -> TenantRecord:
    absent = BadArgument(f"there is no tenant {tenant!r}", name="tenant", value=tenant)
    return await change.found(tenant_key(tenant), TenantRecord, absent)


# Purges.


async def find_purge(kv: Kv, tenant: str) -> PurgeRecord | None:
    value = await kv.get(purge_key(tenant))
    return None if value is None else decode(value, PurgeRecord)


async def list_purges(kv: Kv, *, after: str = "", limit: int = 1_000) -> list[PurgeRecord]:
    """Of all tenants, in order of their names."""
    prefix = purge_key("")
    start = purge_key(after) + b"\0" if after else prefix
    return [decode(value, PurgeRecord) for _, value in await kv.scan(start, prefix_end(prefix), limit)]


async def begin_purge(kv: Kv, tenant: str, *, by: str, now_us: int) -> PurgeRecord:
    """Begin to delete all that a tenant has stored: from here on nothing brings it back.

    It must be terminating, its time to take its data along over, and its leases ended: what those charged
    later would never be invoiced. One that has begun goes on.

    Raises: BadArgument, Overloaded.
    """

    async def decide(change: Change) -> PurgeRecord:
        begun = await change.record(purge_key(tenant), PurgeRecord)
        if begun is not None:
            return begun
        await _known_tenant(change, tenant)
        absent = BadArgument(f"{tenant!r} is no customer: make it one first", name="tenant")
        customer = await change.found(customer_key(tenant), CustomerRecord, absent)
        account = await change.record(account_key(tenant), AccountRecord) or AccountRecord()
        if account.state != "terminating":
            raise StateForbids(
                f"{tenant!r} is {account.state}: only who is terminating is purged", name="tenant"
            )
        if now_us < customer.purge_after_us:
            days = -(-(customer.purge_after_us - now_us) // DAY_US)
            raise StateForbids(f"{tenant!r} may take its data along for {days} more days", name="tenant")
        await _check_no_lease(change, tenant)
        use = [counter(await change.value(tenant_use_key(tenant) + letter)) for letter in (b"b", b"o", b"s")]
        record = PurgeRecord(
            tenant=tenant, by=by, begun_us=now_us, buckets=use[0], objects=use[1], size=use[2]
        )
        change.put(purge_key(tenant), record)
        return record

    return await commit_change(kv, decide, what=f"the purge of {tenant!r}")


async def _check_no_lease(change: Change, tenant: str) -> None:
    """Raises: BadArgument."""
    await change.record(SALES_KEY, SalesRecord)  # Expected, before the leases are scanned.
    for lease in await leases_of(change.kv, tenant):
        if lease.state in SOLD:
            raise StateForbids(
                f"lease {lease.id} of {tenant!r} is {lease.state}: end it first (objstore lease terminate)",
                name="lease",
                value=lease.id,
            )


async def note_purge(kv: Kv, record: PurgeRecord, /, **changes: object) -> PurgeRecord:
    """How far it is. Raises: BadArgument (there is none), Overloaded."""

    async def decide(change: Change) -> PurgeRecord:
        absent = BadArgument(f"nobody purges {record.tenant!r}", name="tenant")
        found = await change.found(purge_key(record.tenant), PurgeRecord, absent)
        changed = msgspec.structs.replace(found, **changes)
        change.put(purge_key(record.tenant), changed)
        return changed

    return await commit_change(kv, decide, what=f"the purge of {record.tenant!r}")


async def prove_purge(kv: Kv, record: PurgeRecord, proof: bytes, *, now_us: int) -> PurgeRecord:
    """Keep the proof, and take the account into its last state, in one commit.

    Raises: BadArgument (it is no longer terminating, or holds something after all), Overloaded.
    """

    async def decide(change: Change) -> PurgeRecord:
        changed = msgspec.structs.replace(
            record,
            state="proven",
            proven_us=now_us,
            looked_us=now_us,
            waiting="",
            proof=proof,
            volumes=0,
            until_us=0,
        )
        change.put(purge_key(record.tenant), changed)
        await move_to(change, record.tenant, "purged", reason="purged, with proof", now_us=now_us)
        return changed

    return await commit_change(kv, decide, what=f"the purge of {record.tenant!r}")
