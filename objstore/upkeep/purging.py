"""The end of a tenant's data: deleted, cleared off the disks, and proven to be gone from what lies on them.

    deleting   keys and tokens; every object, upload and bucket, as a client would delete them
    clearing   1. wait until nothing that was under way then can store or move any more (settled)
               2. wait for a copy of metadata from after that
               3. read the directories of all stripes of every volume from before: where dead bytes of the
                  tenant lie, the volume is sealed and compacted; where dead bytes of nobody knows whom lie,
               too, but a few volumes at a time
               4. wait until the trash has let go of those, and of what was trash before
    proven     an inventory of all disks holds no fragment file but of volumes whose directories were read
               and name nothing of it, none longer than its volume, or that were made after all was settled

Records that come back (metadata was rebuilt from what lay on disks) take it back to deleting.

What a stripe holds is told by its directory, and by metadata, which remembers whose a bucket was; so the
proof is of files that lie on disks, whatever metadata says of them. What it cannot say stands in it
(`remains`). Invoices, payments and usage stay, which name its buckets: the law wants them kept.

Concurrency: one process, under the upkeep's claim; every step may be cut and is begun again. Which volumes
were read is known to this process only: another one reads them anew.
"""

import logging
from asyncio import Lock, Semaphore, gather
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

from objstore import __version__
from objstore.audit.log import Deed, note
from objstore.blobs.reader import READABLE
from objstore.blobs.stripes import Entry
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.clock import utc_text
from objstore.errors import Corrupt, StoreError, Unavailable
from objstore.iam.keys import list_keys, remove_key
from objstore.iam.tokens import list_tokens, remove_token
from objstore.iam.users import forget_user, list_users
from objstore.meta.kv import Kv, Transaction, counter, pages, prefix_end
from objstore.meta.log_names import begun_under
from objstore.meta.schema import (
    BucketRecord,
    DoomedRecord,
    PartRecord,
    TitleRecord,
    bucket_key,
    decode,
    doomed_key,
    encode,
    object_key,
    tenant_use_key,
    title_key,
)
from objstore.node.disk import Disk
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
from objstore.upkeep.context import Context, named
from objstore.upkeep.homes import address, open_home
from objstore.upkeep.residency import DISKS_AT_ONCE, Audit, Summary
from objstore.upkeep.salvage import TENANT as SALVAGED
from objstore.upkeep.seal import seal_volume
from objstore.upkeep.snapshots import read_snapshot
from objstore.upkeep.trash import DEFAULT_RULES as TRASH_RULES
from objstore.upkeep.walk import Stripe, stripes

log = logging.getLogger(__name__)

AT_ONCE: Final = 500  # Objects deleted behind one scan.
PAGE: Final = 1_000
REMOVED: Final = "retired"  # State of a disk that left the store: it is not asked.
NAMED_MAX: Final = 20  # Files, volumes and exports named in a proof, which must fit a record.
TRASH: Final = "is trash, and goes when its days are over"
TURN: Final = "may hold dead bytes of it, and waits for its turn to be compacted"
LMDB: Final = "LMDB"
POSTGRESQL: Final = "PostgreSQL"
OF_ENGINE: Final = {
    LMDB: "LMDB's file on the gateway's machine, and on machines that were the gateway before, may hold names"
    " and small bodies in free pages until these are used again.",
    POSTGRESQL: "PostgreSQL may hold names and small bodies in dead rows until a vacuum has freed them and"
    " they are used again, and in its write-ahead log until that is recycled; so may its standbys, its"
    " archived log and its base backups, for as long as they are kept.",
}
NOT_LOOKED_AT: Final = (
    "Blocks that a disk has freed are not overwritten: whoever has the bare disk may find remains until they"
    " are used again.",
    "Access logs are files of the gateways that wrote them: they name keys for as long as they are kept.",
    "Other stores that held replicas before, backups that operators took, and disks that were removed from"
    " the store were not asked.",
)


class PurgeRules(NamedTuple):
    settle_s: float = 3_600.0  # From the last deletion until nothing begun before can store or move any more.
    # Volumes with dead bytes of nobody knows whom are compacted as garbage is: a few, then a rest.
    at_once: int = 4
    rest_s: float = 300.0
    trash_s: float = TRASH_RULES.grace_s  # For which trash is kept: how long it is waited for is told.
    engine: str = LMDB  # Of metadata, for the proof.


DEFAULT_RULES: Final = PurgeRules()


class Share(Enum):
    """What a sealed volume holds of a tenant whose records are gone: dead stays dead, so it is read once."""

    NOTHING = "nothing"
    PERHAPS = "perhaps"  # Dead bytes of nobody knows whom.
    SOME = "some"


@dataclass(slots=True)
class Turns:
    """So many at once, then a rest."""

    at_once: int
    rest_s: float
    taken: int = 0
    since_s: float = 0.0  # When the first of them was taken.

    def take(self, now_s: float) -> bool:
        """Whether it may be done now."""
        if self.taken >= self.at_once and now_s - self.since_s >= self.rest_s:
            self.taken = 0
        if self.taken >= self.at_once:
            return False
        if not self.taken:
            self.since_s = now_s
        self.taken += 1
        return True


@dataclass(slots=True)
class _Look:
    """What this process has seen of the volumes, for one tenant."""

    shares: dict[int, Share] = field(default_factory=dict)  # Of volumes that were sealed, and read.
    held: dict[int, str] = field(default_factory=dict)  # Volume -> why it is waited for.
    until_us: int = 0  # When the trash lets go of the last one of these; 0: none is trash.
    stripes: int = 0  # Whose directories were read.

    def is_clean(self, volume: int) -> bool:
        return self.shares.get(volume) is Share.NOTHING


class _CameBack(Exception):
    """Records of the tenant are there again."""


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
        self._turns = Turns(rules.at_once, rules.rest_s)
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
        except _CameBack as found:
            record = await self._begin_again(record, str(found))
        except StoreError as failure:
            record = await self._wait(record, str(failure))
        except Exception:  # What is wrong with one tenant's records keeps no other from its end.
            log.exception("the purge of tenant %s does not go on", record.tenant)
            record = await self._wait(record, "a bug or a broken record; see the store's log")
        return f"{record.tenant}: {record.state}" + (f", {record.waiting}" if record.waiting else "")

    async def _wait(
        self, record: PurgeRecord, why: str, *, volumes: int = 0, until_us: int = 0
    ) -> PurgeRecord:
        if (record.waiting, record.volumes, record.until_us) == (why, volumes, until_us):
            return record
        return await note_purge(self._ctx.kv, record, waiting=why, volumes=volumes, until_us=until_us)

    async def _begin_again(self, record: PurgeRecord, why: str) -> PurgeRecord:
        """What came back is deleted, and everything behind that is done anew."""
        log.warning("the purge of tenant %s begins again: %s", record.tenant, why)
        self._looks.pop(record.tenant, None)
        return await note_purge(
            self._ctx.kv,
            record,
            state="deleting",
            deleted_us=0,
            settled_us=0,
            newest_volume=0,
            logs=[],
            waiting=why,
            volumes=0,
            until_us=0,
        )

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
                await self._remove(who, name, bucket.id)
        if await self._records_left(tenant):
            await self._delete_given_away(tenant)
        use = tenant_use_key(tenant)
        left = [counter(value) for value in await ctx.kv.get_many([use + b"s", use + b"o", use + b"b"])]
        if any(left):
            return await self._wait(
                record,
                f"{left[0]} bytes, {left[1]} objects and {left[2]} buckets are still reserved or counted",
            )
        if found_keys := await self._records_left(tenant):
            raise Corrupt(
                f"{found_keys} records of buckets of {tenant!r} are left that no bucket of its own has"
            )
        return await note_purge(ctx.kv, record, state="clearing", deleted_us=ctx.clock.now_us(), waiting="")

    async def _delete_given_away(self, tenant: str) -> None:
        """Its buckets that are the salvage's by their records: one that did not know them made them again
        from what it found, for a tenant of its own. No other tenant's bucket is touched, whatever its title
        says."""
        async for found in pages(self._ctx.kv, bucket_key(""), prefix_end(b"b"), PAGE):
            for key, value in found:
                bucket = decode(value, BucketRecord)
                if bucket.tenant == SALVAGED and await self._read_owner(bucket.id) == tenant:
                    who = Principal(tenant=bucket.tenant, user="", access_key_id="")
                    await self._remove(who, key[1:].decode(), bucket.id)

    async def _remove(self, who: Principal, name: str, bucket: int) -> None:
        await self._empty(who, name, bucket)
        await delete_bucket(self._store, who, name)
        self._ctx.crash_point("purge-deleted")

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
                ends_us = self._settles_us(record)
                until_us = ends_us if ctx.clock.now_us() < ends_us else 0  # Sweeping comes behind.
                return await self._wait(record, why, until_us=until_us)
            # What was being moved when its home went has its volume by now.
            async with self._files:
                newest = await ctx.ledger.newest_volume()
            settled_us, logs = ctx.clock.now_us(), await self._logs()
            record = await note_purge(
                ctx.kv,
                record,
                settled_us=settled_us,
                newest_volume=newest,
                logs=logs,
                waiting="",
                until_us=0,
            )
        if record.tenant not in self._looks:  # Metadata is only ever rebuilt between two processes.
            await self._check_gone(record.tenant)
            if parts := await self._sweep_parts(record.tenant):
                raise _CameBack(f"{parts} parts of its uploads have come back, and are swept again")
            self._looks[record.tenant] = _Look()
        if not await self._copied_since(record.settled_us):
            return await self._wait(record, "the newest copy of metadata is from before: objstore meta copy")
        look = self._looks[record.tenant]
        await self._look_at_volumes(record, look)
        if look.held:
            volume, why = next(iter(look.held.items()))
            words = f"{len(look.held)} volumes may hold bytes of it; volume {volume} {why}"
            away = _away_words(await self._known_away(), "cannot be counted on")
            waiting = "; ".join(filter(None, (words, away)))
            return await self._wait(record, waiting, volumes=len(look.held), until_us=look.until_us)
        return await self._prove(record, look)

    async def _check_gone(self, tenant: str) -> None:
        """Raises: _CameBack."""
        if left := await self._records_left(tenant):
            raise _CameBack(f"{left} records of its buckets have come back, and are deleted again")

    async def _unsettled(self, record: PurgeRecord) -> str:
        """Why something may still be stored, or moved, that the tenant deleted; empty: nothing can."""
        ctx, ends_us = self._ctx, self._settles_us(record)
        if ctx.clock.now_us() < ends_us:
            return f"what was under way may take until {utc_text(ends_us / 1e6)}"
        async for found in pages(ctx.kv, b"d", prefix_end(b"d"), PAGE):
            # By the clock of whoever dropped them, which may be ahead: but not by more than is waited for.
            if any(decode(value, DoomedRecord).since_us <= ends_us for _, value in found):
                return "parts of objects are still to be swept"
        return ""

    def _settles_us(self, record: PurgeRecord) -> int:
        return record.deleted_us + int(self._rules.settle_s * 1e6)

    async def _logs(self) -> list[str]:
        """The newest journal and snapshot files that lie on disks now, by name. Raises: Unavailable."""
        names: set[str] = set()
        away: list[int] = []
        turns = Semaphore(DISKS_AT_ONCE)

        async def ask(number: int, disk: Disk | None) -> None:
            async with turns:
                try:
                    if disk is None:
                        raise Unavailable("it is not open in this process")
                    names.update(one.name for one in await disk.logs())
                except (StoreError, OSError) as failure:
                    log.info("disk %d did not answer: %s", number, failure)
                    away.append(number)

        await gather(*(ask(number, disk) for number, disk in (await self._disks()).items()))
        if away:
            raise Unavailable(_away_words(sorted(away)))
        return sorted(names, key=lambda name: (begun_under(name), name))[-NAMED_MAX:]

    async def _known_away(self) -> list[int]:
        """Disks that trash may be waiting for, by what this process knows of them: none is asked, since one
        may wait for days."""
        disks = await self._disks()
        return sorted(n for n, disk in disks.items() if disk is None or disk.state not in READABLE)

    async def _disks(self) -> dict[int, Disk | None]:
        """Of the store, by number; None: not open in this process."""
        records = await self._ctx.ledger.disks()
        return {n: self._ctx.disks.get(n) for n, record in records.items() if record.state != REMOVED}

    async def _copied_since(self, moment_us: int) -> bool:
        """Whether the copy of metadata in volumes, if there is one, was begun after a moment."""
        found = await read_snapshot(self._ctx)
        if found is None:
            return True
        about, source = found
        await source.aclose()  # Nothing was read of it.
        return about.began_us > moment_us

    async def _sweep_parts(self, tenant: str) -> int:
        """Have parts of its uploads swept that no upload has any more; how many there are. Reads all parts of
        the store: they are known by their uploads, which say whose they are in each part's record only."""
        kv, count = self._ctx.kv, 0
        async for found in pages(kv, b"p", prefix_end(b"p"), PAGE):
            await self._ctx.pace.spend(sum(len(key) + len(value) for key, value in found))
            uploads: set[bytes] = set()
            for key, value in found:
                bucket = bucket_of_upload(decode(value, PartRecord).home)
                if bucket and await self._owner(bucket) == tenant:
                    uploads.add(doomed_key(key[1:17]))
                    count += 1
            doomed = encode(DoomedRecord(since_us=self._ctx.clock.now_us()))
            for upload in sorted(uploads):
                await kv.commit(Transaction(put={upload: doomed}))
        return count

    async def _look_at_volumes(self, record: PurgeRecord, look: _Look) -> None:
        ctx = self._ctx
        look.held.clear()
        look.until_us = 0
        after = 0
        while found := await ctx.ledger.volumes(after):
            after = found[-1].id
            for volume in found:
                if volume.id > record.newest_volume:
                    return
                if not look.is_clean(volume.id) and (why := await self._held(record.tenant, volume, look)):
                    look.held[volume.id] = why

    async def _held(self, tenant: str, volume: VolumeRecord, look: _Look) -> str:
        """Why the volume is waited for; empty: it was read, and holds nothing of the tenant."""
        ctx = self._ctx
        try:
            if volume.state == VolumeState.OPEN:
                async with self._files:
                    volume = await seal_volume(ctx, volume)  # Its writer, if there is one, begins another.
            if volume.state != VolumeState.SEALED:
                self._wait_for_trash(look, volume.retired_us)
                return TRASH
            if volume.id not in look.shares:
                look.shares[volume.id] = await self._share(tenant, volume, look)
            share = look.shares[volume.id]
            if share is Share.NOTHING:
                return ""
            if share is Share.PERHAPS and not self._turns.take(ctx.clock.monotonic()):
                return TURN
            async with self._files:
                outcome = await compaction.compact(ctx, volume.id)
        except Deposed:
            raise
        except StoreError as failure:
            return f"cannot be read or moved: {failure}"
        if not outcome.stuck:
            self._wait_for_trash(look, ctx.clock.now_us())
        return _moved(outcome)

    def _wait_for_trash(self, look: _Look, since_us: int) -> None:
        """What is trash since a moment is held for so long."""
        look.until_us = max(look.until_us, since_us + int(self._rules.trash_s * 1e6))

    async def _share(self, tenant: str, volume: VolumeRecord, look: _Look) -> Share:
        """What a sealed volume holds of the tenant."""
        ctx = self._ctx
        found = Share.NOTHING
        told: set[bytes] = set()  # Parts of others: their last stripe, which says so, is in the volume.
        dead: set[bytes] = set()  # Parts with a dead stripe that does not say whose it is.
        async for stripe in stripes(ctx, volume, volume.length):
            look.stripes += 1
            await ctx.pace.spend(stripe.header.payload_size - stripe.header.directory_offset)
            for entry in stripe.entries:
                bucket = bucket_of_entry(entry)
                if not bucket:
                    if not await self._is_live(stripe, entry):
                        if entry.home[:1] != b"p":
                            return Share.SOME  # Copies of metadata name everybody's keys.
                        dead.add(entry.home)
                    continue
                owner = await self._owner(bucket)
                if owner == tenant:
                    return Share.SOME
                if owner is not None:
                    told.add(entry.home)
                elif not await self._is_live(stripe, entry):
                    found = Share.PERHAPS
        return Share.PERHAPS if dead - told else found

    async def _is_live(self, stripe: Stripe, entry: Entry) -> bool:
        """Whether a home holds the entry."""
        home = await open_home(self._ctx.kv, entry.home)
        return home is not None and (entry.length == 0 or address(stripe.extent(entry)) in home.places)

    async def _owner(self, bucket: int) -> str | None:
        """Whose a bucket is or was; None: it went before such things were kept."""
        if bucket not in self._titles:
            if len(self._titles) >= 100_000:
                self._titles.clear()
            self._titles[bucket] = await self._read_owner(bucket)
        return self._titles[bucket]

    async def _read_owner(self, bucket: int) -> str | None:
        """The same as metadata has it now."""
        value = await self._ctx.kv.get(title_key(bucket))
        return None if value is None else decode(value, TitleRecord).tenant

    # The proof.

    async def _prove(self, record: PurgeRecord, look: _Look) -> PurgeRecord:
        """Hold every file on every disk against what was read."""
        ctx = self._ctx
        audit = Audit(ctx)
        summary = await audit.take()
        why = _unproven(summary) or await _left_on_disks(audit, look, record.newest_volume)
        if why := why or await self._tails(record, look):
            return await note_purge(
                ctx.kv, record, waiting=why, looked_us=ctx.clock.now_us(), volumes=0, until_us=0
            )
        await self._check_gone(record.tenant)
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
            lengths |= {volume.id: volume.length for volume in found if look.is_clean(volume.id)}
        longer: set[int] = set()
        for disk in ctx.disks.values():
            files = await disk.fragment_files()
            longer |= {one.volume for one in files if one.size > lengths.get(one.volume, one.size)}
        for volume in sorted(longer):
            look.shares[volume] = Share.SOME
            async with self._files:
                outcome = await compaction.compact(ctx, volume)
            look.held[volume] = _moved(outcome)
        return f"{len(longer)} volumes had files longer than their records" if longer else ""

    async def _document(
        self, record: PurgeRecord, look: _Look, summary: Summary, now_us: int
    ) -> dict[str, Any]:
        still = [file for file in summary.metadata if is_from_before(file.name, record.logs)]
        disks = await self._ctx.ledger.disks()
        removed = [number for number, disk in sorted(disks.items()) if disk.state == REMOVED]
        exports = await list_exports(self._ctx.kv, record.tenant)
        return {
            "document": "objstore tenant purge",
            "format": 1,
            "verdict": "proven",
            "cluster": self._ctx.seal.cluster.hex(),
            "version": __version__,
            "tenant": record.tenant,
            "metadata": self._rules.engine,
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
                "volumes_read": sum(map(look.is_clean, look.shares)),
                "stripes_read": look.stripes,
                "newest_volume_read": record.newest_volume,
            },
            "remains": {
                "files_of_metadata": [f"disk {one.disk}: {one.name}" for one in still[:NAMED_MAX]],
                "their_number": len(still),
                "until": "each of these files goes when journals are merged into a newer snapshot, or by hand"
                " where metadata was moved to another engine; until then they may hold names, and bodies that"
                " were small",
                "disks_removed": removed[:NAMED_MAX],
                "disks_removed_in_all": len(removed),
                "not_looked_at": [*NOT_LOOKED_AT, OF_ENGINE[self._rules.engine]],
            },
            "kept": "customer, invoices, payments, usage (which names buckets), names of users, audit log",
            "exports": [
                {"id": one.id, "finished": utc_text(one.finished_us / 1e6), "manifest": one.manifest.hex()}
                for one in exports
                if one.finished_us
            ][-NAMED_MAX:],
        }


def bucket_of_entry(entry: Entry) -> int:
    """The bucket that a directory's entry is of, as far as it says: 0 if it does not.

    Only the last stripe of a part does.
    """
    if entry.home[:1] == b"o":
        return int.from_bytes(entry.home[1:9], "big")
    if entry.home[:1] != b"p" or not entry.about:
        return 0
    try:
        return bucket_of_upload(decode(entry.about, PartRecord).home)
    except msgspec.MsgspecError:
        return 0


def bucket_of_upload(key: bytes) -> int:
    """The bucket of an upload's m key; 0 for what is none."""
    return int.from_bytes(key[1:9], "big") if key[:1] == b"m" else 0


def is_from_before(name: str, before: Sequence[str]) -> bool:
    """Whether a journal or snapshot file may hold something from the time when those of `before` lay there.

    So does a snapshot that was merged later, but of journals of then, and a journal of then that was put
    together anew: a file is as old as the newest journal that there was when it was begun.
    """
    return 0 < begun_under(name) <= max(map(begun_under, before), default=0)


def _away_words(disks: Iterable[int], what: str = "did not answer") -> str:
    """Empty if there are none."""
    numbers = list(disks)
    return f"disks {named(numbers, len(numbers))} {what}" if numbers else ""


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
        return _away_words(away)
    if summary.counts.unknown:
        return f"{summary.counts.unknown} fragment files belong to volumes that metadata does not know"
    return ""


async def _left_on_disks(audit: Audit, look: _Look, newest: int) -> str:
    """The first volume with files on disks that was neither read nor made later; empty: there is none."""
    after: int | None = 0
    while after is not None:
        rows = await audit.rows(after)
        for row in rows:
            if row.files and row.volume <= newest and not look.is_clean(row.volume):
                return f"volume {row.volume} still has {len(row.files)} files on disks"
        after = rows[-1].volume if rows else None
    return ""
