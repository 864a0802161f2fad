"""The end of a tenant's data: deleted, cleared off the disks, and proven to be gone from what lies on them.

    deleting   keys and tokens; every object, upload and bucket, as a client would delete them
    clearing   1. wait until nothing that was under way then can store or move any more (settled)
               2. wait for a copy of metadata from after that
               3. read the directories of all stripes of every volume from before: where dead bytes of the
                  tenant lie, or of nobody knows whom, the volume is sealed and compacted at once
               4. wait until the trash has let go of those, and of what was trash before
    proven     an inventory of all disks holds no fragment file but of volumes whose directories were read
               and name nothing of it, none longer than its volume, or that were made after all was settled

What a stripe holds is told by its directory, and by metadata, which remembers whose a bucket was; so the
proof is of files that lie on disks, whatever metadata says of them. What it cannot say stands in it
(`remains`). Invoices, payments and usage stay, which name its buckets: the law wants them kept.

Concurrency: one process, under the upkeep's claim; every step may be cut and is begun again. Which volumes
were read is known to this process only: another one reads them anew.
"""

import logging
from asyncio import Lock
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import msgspec

from objstore import __version__
from objstore.audit.log import Deed, note
from objstore.blobs.stripes import Entry
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.clock import utc_text
from objstore.errors import Corrupt, StoreError, Unavailable
from objstore.iam.keys import list_keys, remove_key
from objstore.iam.tokens import list_tokens, remove_token
from objstore.iam.users import forget_user, list_users
from objstore.meta.kv import Kv, counter, pages, prefix_end
from objstore.meta.schema import (
    DoomedRecord,
    TitleRecord,
    decode,
    object_key,
    tenant_use_key,
    title_key,
)
from objstore.objects.buckets import delete_bucket, list_buckets
from objstore.objects.changes import check_removable
from objstore.objects.residence import buckets_of
from objstore.objects.store import Store
from objstore.objects.values import Principal
from objstore.objects.writes import Doomed, delete_objects
from objstore.rental.departures import list_exports, list_purges, note_purge, prove_purge
from objstore.rental.records import PurgeRecord
from objstore.upkeep import compaction
from objstore.upkeep.claims import Deposed
from objstore.upkeep.context import Context
from objstore.upkeep.homes import address, open_home
from objstore.upkeep.residency import Audit, Summary
from objstore.upkeep.seal import seal_volume
from objstore.upkeep.snapshots import read_snapshot
from objstore.upkeep.walk import Stripe, stripes

log = logging.getLogger(__name__)

AT_ONCE: Final = 500  # Objects deleted behind one scan.
PAGE: Final = 1_000
NAMED_MAX: Final = 20  # Files, volumes and exports named in a proof, which must fit a record.
TRASH: Final = "is trash, and goes when its days are over"
NOT_LOOKED_AT: Final = (
    "Blocks that a disk has freed are not overwritten: whoever has the bare disk may find remains until they"
    " are used again.",
    "The metadata engine's own files (LMDB's free pages; PostgreSQL's dead rows and its log) may hold names"
    " and small bodies until they are used again.",
    "Access logs are files of the gateways that wrote them: they name keys for as long as they are kept.",
    "Other stores that held replicas before, backups that operators took, and disks that were removed from"
    " the store were not asked.",
)


class PurgeRules(NamedTuple):
    settle_s: float = 3_600.0  # From the last deletion until nothing begun before can store or move any more.


DEFAULT_RULES: Final = PurgeRules()


@dataclass(slots=True)
class _Look:
    """What this process has seen of the volumes, for one tenant."""

    clean: set[int] = field(default_factory=set)  # Sealed, read, and nothing of the tenant in it.
    held: dict[int, str] = field(default_factory=dict)  # Volume -> why it is waited for.
    stripes: int = 0  # Whose directories were read.


class Purging:
    """Carries purges out. One a process; `run` is a service's step."""

    def __init__(self, ctx: Context, store: Store, files: Lock, rules: PurgeRules = DEFAULT_RULES) -> None:
        """
        Args:
            store: the verbs over the context's metadata.
            files: held by whoever moves or removes fragment files.
        """
        self._ctx = ctx
        self._store = replace(store, kv=ctx.kv, ledger=ctx.ledger)
        self._files = files
        self._rules = rules
        self._looks: dict[str, _Look] = {}
        self._titles: dict[int, str | None] = {}  # Bucket -> whose it is or was; None: nobody knows.

    async def run(self) -> str:
        """Take every purge as far as it goes now; what it came to, in words. Raises: StoreError."""
        words: list[str] = []
        after = ""
        while found := await list_purges(self._ctx.kv, after=after, limit=PAGE):
            after = found[-1].tenant
            words += [await self._advance(record) for record in found if record.state != "proven"]
        if not words:
            self._looks.clear()
        return "; ".join(words)

    async def _advance(self, record: PurgeRecord) -> str:
        try:
            if record.state == "deleting":
                record = await self._delete(record)
            if record.state == "clearing":
                record = await self._clear(record)
        except Deposed:
            raise
        except StoreError as failure:
            record = await self._wait(record, str(failure))
        except Exception:  # What is wrong with one tenant's records keeps no other from its end.
            log.exception("the purge of tenant %s does not go on", record.tenant)
            record = await self._wait(record, "a bug or a broken record; see the store's log")
        return f"{record.tenant}: {record.state}" + (f", {record.waiting}" if record.waiting else "")

    async def _wait(self, record: PurgeRecord, why: str) -> PurgeRecord:
        if record.waiting == why:
            return record
        return await note_purge(self._ctx.kv, record, waiting=why)

    # Deleting.

    async def _delete(self, record: PurgeRecord) -> PurgeRecord:
        """All that metadata has of it, as far as that goes."""
        ctx, tenant = self._ctx, record.tenant
        await _forget_users(ctx.kv, tenant)
        who = Principal(tenant=tenant, user="", access_key_id="")
        async for name, bucket in buckets_of(self._store, tenant):
            check_removable(name, bucket, who)  # All of them before the first: half a replica helps nobody.
        while found := (await list_buckets(self._store, tenant, prefix="", after="", limit=PAGE))[0]:
            for name, bucket in found:
                await self._empty(who, name, bucket.id)
                await delete_bucket(self._store, who, name)
                ctx.crash_point("purge-deleted")
        use = tenant_use_key(tenant)
        left = [counter(value) for value in await ctx.kv.get_many([use + b"s", use + b"o", use + b"b"])]
        if any(left):
            return await self._wait(
                record,
                f"{left[0]} bytes, {left[1]} objects and {left[2]} buckets are still reserved or counted",
            )
        if found_keys := await self._records_left(tenant):
            raise Corrupt(f"{found_keys} records of buckets of {tenant!r} are left that no bucket has")
        return await note_purge(ctx.kv, record, state="clearing", deleted_us=ctx.clock.now_us(), waiting="")

    async def _empty(self, who: Principal, name: str, bucket: int) -> None:
        """Delete a bucket's objects; its uploads end with it."""
        base = object_key(bucket, b"")
        while pairs := await self._ctx.kv.scan(base, prefix_end(base), AT_ONCE):
            keys = [key[len(base) :].decode() for key, _ in pairs]
            outcomes = await delete_objects(self._store, who, name, [Doomed(key=key) for key in keys])
            if failure := next((one for one in outcomes if one is not None), None):
                raise failure
            self._ctx.crash_point("purge-deleted")

    async def _records_left(self, tenant: str) -> int:
        """Records under ids of buckets that are, or ever were, the tenant's: there should be none."""
        kv, left = self._ctx.kv, 0
        async for found in pages(kv, title_key(0), prefix_end(b"w"), PAGE):
            for key, value in found:
                if decode(value, TitleRecord).tenant != tenant:
                    continue
                for letter in (b"o", b"B", b"v", b"m", b"r", b"c"):
                    left += len(await kv.scan(letter + key[1:], prefix_end(letter + key[1:]), 10))
        return left

    # Clearing.

    async def _clear(self, record: PurgeRecord) -> PurgeRecord:
        ctx = self._ctx
        if not record.settled_us:
            if why := await self._unsettled(record):
                return await self._wait(record, why)
            # What was being moved when its home went has its volume by now.
            async with self._files:
                newest = await ctx.ledger.newest_volume()
            settled_us, logs = ctx.clock.now_us(), await self._logs()
            record = await note_purge(
                ctx.kv, record, settled_us=settled_us, newest_volume=newest, logs=logs, waiting=""
            )
        if not await self._copied_since(record.settled_us):
            return await self._wait(record, "the newest copy of metadata is from before: objstore meta copy")
        look = self._looks.setdefault(record.tenant, _Look())
        await self._look_at_volumes(record, look)
        if look.held:
            volume, why = next(iter(look.held.items()))
            words = f"{len(look.held)} volumes may hold bytes of it; volume {volume} {why}"
            return await self._wait(record, words)
        return await self._prove(record, look)

    async def _unsettled(self, record: PurgeRecord) -> str:
        """Why something may still be stored, or moved, that the tenant deleted; empty: nothing can."""
        ctx = self._ctx
        ends_us = record.deleted_us + int(self._rules.settle_s * 1e6)
        if ctx.clock.now_us() < ends_us:
            return f"what was under way may take until {utc_text(ends_us / 1e6)}"
        async for found in pages(ctx.kv, b"d", prefix_end(b"d"), PAGE):
            # By the clock of whoever dropped them, which may be ahead: but not by more than is waited for.
            if any(decode(value, DoomedRecord).since_us <= ends_us for _, value in found):
                return "parts of objects are still to be swept"
        return ""

    async def _logs(self) -> list[str]:
        """Names of the journal and snapshot files that lie on disks now."""
        names: set[str] = set()
        for disk in self._ctx.disks.values():
            try:
                names.update(one.name for one in await disk.logs())
            except (StoreError, OSError) as failure:
                raise Unavailable(f"disk {disk.number} does not answer: {failure}") from failure
        return sorted(names)

    async def _copied_since(self, moment_us: int) -> bool:
        """Whether the copy of metadata in volumes, if there is one, was begun after a moment."""
        found = await read_snapshot(self._ctx)
        if found is None:
            return True
        about, source = found
        await source.aclose()  # Nothing was read of it.
        return about.began_us > moment_us

    async def _look_at_volumes(self, record: PurgeRecord, look: _Look) -> None:
        ctx = self._ctx
        look.held.clear()
        after = 0
        while found := await ctx.ledger.volumes(after):
            after = found[-1].id
            for volume in found:
                if volume.id > record.newest_volume:
                    return
                if volume.id not in look.clean and (why := await self._held(record.tenant, volume, look)):
                    look.held[volume.id] = why

    async def _held(self, tenant: str, volume: VolumeRecord, look: _Look) -> str:
        """Why the volume is waited for; empty: it was read, and holds nothing of the tenant."""
        ctx = self._ctx
        try:
            if volume.state == VolumeState.OPEN:
                async with self._files:
                    volume = await seal_volume(ctx, volume)  # Its writer, if there is one, begins another.
            if volume.state != VolumeState.SEALED:
                return TRASH
            if not await self._holds(tenant, volume, look):
                look.clean.add(volume.id)
                return ""
            async with self._files:
                outcome = await compaction.compact(ctx, volume.id)
        except Deposed:
            raise
        except StoreError as failure:
            return f"cannot be read or moved: {failure}"
        return _moved(outcome)

    async def _holds(self, tenant: str, volume: VolumeRecord, look: _Look) -> bool:
        """Whether a sealed volume holds dead bytes of the tenant, or of nobody knows whom."""
        ctx = self._ctx
        async for stripe in stripes(ctx, volume, volume.length):
            look.stripes += 1
            await ctx.pace.spend(stripe.header.payload_size - stripe.header.directory_offset)
            for entry in stripe.entries:
                if await self._is_left(tenant, stripe, entry):
                    return True
        return False

    async def _is_left(self, tenant: str, stripe: Stripe, entry: Entry) -> bool:
        if entry.home[:1] == b"o":
            owner = await self._owner(int.from_bytes(entry.home[1:9], "big"))
            return owner is None or owner == tenant
        # A part says only of which upload it is; copies of metadata name everybody's keys.
        home = await open_home(self._ctx.kv, entry.home)
        return home is None or (entry.length > 0 and address(stripe.extent(entry)) not in home.places)

    async def _owner(self, bucket: int) -> str | None:
        """Whose a bucket is or was; None: it went before such things were kept."""
        if bucket not in self._titles:
            if len(self._titles) >= 100_000:
                self._titles.clear()
            value = await self._ctx.kv.get(title_key(bucket))
            self._titles[bucket] = None if value is None else decode(value, TitleRecord).tenant
        return self._titles[bucket]

    # The proof.

    async def _prove(self, record: PurgeRecord, look: _Look) -> PurgeRecord:
        """Hold every file on every disk against what was read."""
        ctx = self._ctx
        audit = Audit(ctx)
        summary = await audit.take()
        why = _unproven(summary) or await _left_on_disks(audit, look, record.newest_volume)
        if why := why or await self._tails(record, look):
            return await note_purge(ctx.kv, record, waiting=why, looked_us=ctx.clock.now_us())
        if left := await self._records_left(record.tenant):
            raise Corrupt(f"{left} records of buckets of {record.tenant!r} have come back")
        now_us = ctx.clock.now_us()
        proof = await self._document(record, look, summary, now_us)
        proven = await prove_purge(ctx.kv, record, msgspec.json.encode(proof), now_us=now_us)
        self._looks.pop(record.tenant, None)
        deed = Deed(who="upkeep", action="purge_proven", target=f"tenants/{record.tenant}/purge")
        await note(ctx.kv, deed, ctx.clock, "done")
        return proven

    async def _tails(self, record: PurgeRecord, look: _Look) -> str:
        """Files that are longer than their volume: what a disk that was away kept behind the length at which
        it was sealed, in no directory that was read. Such volumes are compacted. Empty: there is none."""
        ctx = self._ctx
        lengths: dict[int, int] = {}
        after = 0
        while found := await ctx.ledger.volumes(after):
            after = found[-1].id
            lengths |= {volume.id: volume.length for volume in found if volume.id in look.clean}
        longer: set[int] = set()
        for disk in ctx.disks.values():
            files = await disk.fragment_files()
            longer |= {one.volume for one in files if one.size > lengths.get(one.volume, one.size)}
        for volume in sorted(longer):
            look.clean.discard(volume)
            async with self._files:
                outcome = await compaction.compact(ctx, volume)
            look.held[volume] = _moved(outcome)
        return f"{len(longer)} volumes had files longer than their records" if longer else ""

    async def _document(
        self, record: PurgeRecord, look: _Look, summary: Summary, now_us: int
    ) -> dict[str, Any]:
        still = [file for file in summary.metadata if file.name in record.logs]
        exports = await list_exports(self._ctx.kv, record.tenant)
        return {
            "document": "objstore tenant purge",
            "format": 1,
            "verdict": "proven",
            "cluster": self._ctx.seal.cluster.hex(),
            "version": __version__,
            "tenant": record.tenant,
            "asked_by": record.by,
            "begun": utc_text(record.begun_us / 1e6),
            "deleted": utc_text(record.deleted_us / 1e6),
            "settled": utc_text(record.settled_us / 1e6),
            "proven": utc_text(now_us / 1e6),
            "held": {"buckets": record.buckets, "objects": record.objects, "billed_bytes": record.size},
            "inventory": {
                "disks": summary.counts.disks,
                "fragment_files": summary.counts.files,
                "volumes": summary.counts.volumes,
                "volumes_read": len(look.clean),
                "stripes_read": look.stripes,
                "newest_volume_read": record.newest_volume,
            },
            "remains": {
                "files_of_metadata": [f"disk {one.disk}: {one.name}" for one in still[:NAMED_MAX]],
                "their_number": len(still),
                "until": "each of these files goes when journals are merged into a newer snapshot; until then"
                " they may hold names, and bodies that were small",
                "not_looked_at": list(NOT_LOOKED_AT),
            },
            "kept": "customer, invoices, payments, usage (which names buckets), names of users, audit log",
            "exports": [
                {"id": one.id, "finished": utc_text(one.finished_us / 1e6), "manifest": one.manifest.hex()}
                for one in exports
                if one.finished_us
            ][-NAMED_MAX:],
        }


def _moved(outcome: compaction.Outcome) -> str:
    """Why a volume that was compacted is waited for."""
    return f"cannot be compacted: {'; '.join(outcome.stuck[:3])}" if outcome.stuck else TRASH


async def _forget_users(kv: Kv, tenant: str) -> None:
    """Secrets and addresses of a tenant's users go; their names stay for the audit log."""
    users = {record.name for record in await list_users(kv, tenant=tenant, limit=1 << 31)}
    for name in sorted(users):
        await forget_user(kv, name)
    after = ""
    while tokens := await list_tokens(kv, after=after, limit=PAGE):
        after = tokens[-1][0]
        for token, one in tokens:
            if one.user in users:
                await remove_token(kv, token)
    after = ""
    while found := await list_keys(kv, after=after, limit=PAGE):
        after = found[-1][0]
        for key, record in found:
            if record.user in users:
                await remove_key(kv, key)


def _unproven(summary: Summary) -> str:
    """Why an inventory is not of everything; empty: it is."""
    away = [place.disk for place in summary.places if place.unreachable]
    if away:
        return f"disks {', '.join(map(str, away[:NAMED_MAX]))} did not answer"
    if summary.counts.unknown:
        return f"{summary.counts.unknown} fragment files belong to volumes that metadata does not know"
    return ""


async def _left_on_disks(audit: Audit, look: _Look, newest: int) -> str:
    """The first volume with files on disks that was neither read nor made later; empty: there is none."""
    after: int | None = 0
    while after is not None:
        rows = await audit.rows(after)
        for row in rows:
            if row.files and row.volume <= newest and row.volume not in look.clean:
                return f"volume {row.volume} still has {len(row.files)} files on disks"
        after = rows[-1].volume if rows else None
    return ""
