"""Where bytes lie: an inventory of what is on the nodes, held against what policies allow.

Every disk is asked for every fragment file, those in the trash included, and for the files of metadata
(journal, snapshots). The answers are joined with the records of volumes: of each file it is said where it is,
whether its volume's policy allows that, and whether it is where the record wants it. What metadata says is
never taken for what lies there; but where it says that a file lies is checked as well, for it may come there.

    violated     a file lies where its policy does not allow it, or is to
    incomplete   a disk did not answer, or there are files whose volume nobody knows: no proof
    proven       neither

Of one bucket: the volumes that hold its bytes, and those written under its policy, are held to the bucket's
own policy: also objects that were there before it was pinned.

Memory: 8 bytes a file and a page of volumes. What is reported by name is bounded, and counted beyond.

Concurrency: reads only. What is made, moved or removed while it runs may be missed where it was and not yet
seen where it is: such a file is counted as not found, and its place by record is what is judged.
"""

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from heapq import merge
from itertools import groupby
from typing import Final, NamedTuple

import msgspec

from objstore.blobs.topology import DEFAULT_POLICY, Layout, Policy
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.errors import NoSuchBucket, StoreError
from objstore.extents import Extent
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    ExtentPage,
    ObjectRecord,
    PartRecord,
    bucket_key,
    decode,
    extent_page_key,
    object_key,
    volume_key,
)
from objstore.node.disk import FragmentFile
from objstore.objects.changes import replication_of
from objstore.objects.ledger import decode_volume
from objstore.objects.placing import is_admitted, policy_of_bucket
from objstore.objects.replication import replicated
from objstore.objects.residence import bound_accounts, buckets_of
from objstore.objects.store import Store
from objstore.upkeep.context import Context
from objstore.upkeep.homes import SNAPSHOT_HOME, extents_of

DISKS_AT_ONCE: Final = 16
PAGE_VOLUMES: Final = 1_000
PAGE_KEYS: Final = 1_000
REPORTED_MAX: Final = 1_000  # Of each kind of finding by name.
_INDEX_BITS: Final = 10  # A name has at most three digits.
_VOLUME_SHIFT: Final = _INDEX_BITS + 1
_VOLUME_MAX: Final = (1 << 64 - _VOLUME_SHIFT) - 1  # Ids count up: a larger one was never given.


class Place(msgspec.Struct, frozen=True):
    """A disk, where it stands, and what is on it."""

    disk: int
    site: str
    rack: str
    node: str  # Member id in hex; empty: the gateway's own machine.
    files: int = 0
    trash: int = 0  # Of them.
    bytes: int = 0
    unreachable: str = ""  # Why it did not answer; empty: it did.


class MetadataFile(msgspec.Struct, frozen=True):
    """A journal epoch or a snapshot: it holds keys and the words of objects, of all buckets."""

    disk: int
    site: str
    name: str
    bytes: int
    allowed: bool


class Replica(msgspec.Struct, frozen=True):
    """A replicated bucket: its target's bytes lie in another store, where its operator says."""

    bucket: str
    endpoint: str
    target: str
    site: str  # As declared; empty: it was not.
    sites: tuple[str, ...]  # That the bucket's policy allows; none: every one.
    allowed: bool


class Finding(msgspec.Struct, frozen=True):
    """One file that is to be looked at."""

    volume: int
    index: int
    disk: int
    site: str
    trash: bool
    policy: str
    why: str


class File(msgspec.Struct, frozen=True):
    """One fragment file as it was found."""

    index: int
    disk: int
    site: str
    trash: bool
    allowed: bool
    expected: bool  # It is where the volume's record wants it.


class Row(msgspec.Struct, frozen=True):
    """One volume: what was found of it."""

    volume: int
    known: bool  # To metadata.
    state: str
    policy: str
    sites: tuple[str, ...]  # Allowed; none: every one.
    metadata_copy: bool  # It holds a copy of metadata.
    files: list[File]
    not_found: list[int]  # Indexes that were on no disk that answered.


class Counts(msgspec.Struct):
    volumes: int = 0
    pinned_volumes: int = 0  # Whose policy names sites.
    files: int = 0
    trash: int = 0  # Of them.
    allowed: int = 0
    forbidden: int = 0
    forbidden_by_record: int = 0  # A record wants a file where it may not lie.
    elsewhere: int = 0  # Files on a disk that their volume's record does not name.
    unknown: int = 0  # Files whose volume metadata does not know.
    not_found: int = 0
    disks: int = 0
    disks_unreachable: int = 0
    metadata_files: int = 0
    metadata_files_forbidden: int = 0
    replicas: int = 0
    replicas_forbidden: int = 0
    metadata_copies_forbidden: int = 0  # Files of volumes with a copy of metadata, outside its sites.


class Summary(msgspec.Struct):
    """What an audit came to: a document for an auditor, together with its rows."""

    verdict: str  # proven | incomplete | violated
    reasons: list[str]
    began_us: int
    ended_us: int
    layout_version: int
    bucket: str
    policy: str  # The bucket's, if one was asked for;
    sites: tuple[str, ...]  # and what it allows.
    counts: Counts
    places: list[Place]
    forbidden: list[Finding]
    elsewhere: list[Finding]
    unknown: list[Finding]
    replicas: list[Replica]
    metadata: list[MetadataFile]
    metadata_sites: tuple[str, ...]  # Where the journal and its snapshots may lie; none: everywhere.
    # Sites beyond the bucket's at which a disk holds keys and names of all buckets.
    metadata_elsewhere: list[str]
    metadata_copies: list[int]  # Volumes that hold the copy of metadata for salvage.
    notes: list[str]


class _Seen(NamedTuple):
    """A fragment file on one disk."""

    volume: int
    index: int  # type: ignore[assignment]  # Shadows tuple.index, which nobody needs here.
    trash: bool
    disk: int


NOTES: Final = [
    "A replica lies in another store: its site is what was declared here, and is proven by an audit there.",
    "The metadata engine (LMDB on a gateway's machine, or PostgreSQL) holds all keys, beside the nodes.",
    "Access logs are files of the gateways that wrote them, and lie on their machines; they name keys.",
    "Files of names that are not the store's, and what repair has not yet put in its place, are not listed.",
    "Disks that were removed from the store are not asked. One that was drained is empty; one given up as"
    " lost, or by force, may hold what it held then.",
]


class Audit:
    """One inventory. `take` it; then `summary` and `rows` say what was found."""

    def __init__(self, ctx: Context, *, bucket: str = "", metadata_sites: tuple[str, ...] = ()) -> None:
        """
        Args:
            bucket: only the volumes of this one, held to its policy; empty: every one, held to its own.
            metadata_sites: where the journal may lie; none: everywhere.
        """
        self._ctx = ctx
        self._bucket = bucket
        self._metadata_sites = metadata_sites
        self._files: dict[int, array[int]] = {}  # Disk -> its files, packed, sorted.
        self._strange: list[tuple[int, FragmentFile]] = []  # Disk, and a file of an id that cannot be.
        self._places: list[Place] = []
        self._layout = Layout(0, {}, {})
        self._policy: Policy | None = None  # The bucket's.
        self._wanted: set[int] | None = None  # Volumes that hold its bytes.
        self._copies: set[int] = set()
        self.asked = 0  # Disks, so far.
        self.summary: Summary | None = None

    async def take(self) -> Summary:
        """Ask every disk, then join. Raises: NoSuchBucket, MetaUnavailable."""
        ctx = self._ctx
        began_us = ctx.clock.now_us()
        self._layout = await ctx.ledger.layout()
        if self._bucket:
            await self._look_at_bucket()
        metadata = await self._ask_disks()
        self._copies = await self._copies_of_metadata()
        summary = Summary(
            verdict="",
            reasons=[],
            began_us=began_us,
            ended_us=0,
            layout_version=self._layout.version,
            bucket=self._bucket,
            policy=self._policy.name if self._policy is not None else "",
            sites=self._policy.sites if self._policy is not None else (),
            counts=Counts(),
            places=self._places,
            forbidden=[],
            elsewhere=[],
            unknown=[],
            replicas=await self._replicas(),
            metadata=metadata,
            metadata_sites=self._metadata_sites,
            metadata_elsewhere=[],
            metadata_copies=sorted(self._copies)[:REPORTED_MAX],
            notes=list(NOTES),
        )
        holding = {file.disk for file in metadata}  # Disks with keys and names.
        async for volume, record, seen in self._joined(0):
            if record is None or not self._count_plain(summary.counts, record, seen):
                _tally(summary, self._row(volume, record, seen), record, self._layout)
            if volume in self._copies:
                holding.update(one.disk for one in seen)
                outside = sum(not self._may_hold_metadata(one.disk) for one in seen)
                summary.counts.metadata_copies_forbidden += outside
        for number, file in self._strange:
            trash = file.retired_us > 0
            one = File(file.index, number, self._site(number), trash, False, False)
            row = Row(file.volume, False, "unknown", "", (), False, [one], [])
            _tally(summary, row, None, self._layout)
        changed = (await ctx.ledger.layout()).version != self._layout.version
        if summary.sites:
            elsewhere = {self._site(disk) for disk in holding}.difference(summary.sites)
            summary.metadata_elsewhere = sorted(elsewhere)
        _judge(summary, changed=changed)
        summary.ended_us = ctx.clock.now_us()
        self.summary = summary
        return summary

    async def rows(self, after: int, limit: int = PAGE_VOLUMES) -> list[Row]:
        """What was found of volumes with ids > after, in order; joined with their records as they are now."""
        found: list[Row] = []
        async for volume, record, seen in self._joined(after):
            found.append(self._row(volume, record, seen))
            if len(found) >= limit:
                break
        return found

    async def sites_of_volumes(self) -> dict[int, frozenset[str]]:
        """Where files of each volume were found, trash among them; a few sets are shared by all."""
        found: dict[int, frozenset[str]] = {}
        shared: dict[frozenset[str], frozenset[str]] = {}
        for volume, seen in groupby(self._seen(0), key=lambda one: one.volume):
            sites = frozenset(self._site(one.disk) for one in seen)
            found[volume] = shared.setdefault(sites, sites)
            if len(found) % PAGE_VOLUMES == 0:
                await asyncio.sleep(0)
        return found

    # The inventory.

    async def _ask_disks(self) -> list[MetadataFile]:
        records = await self._ctx.ledger.disks()
        numbers = [number for number, record in sorted(records.items()) if record.state != "retired"]
        turns = asyncio.Semaphore(DISKS_AT_ONCE)
        metadata: list[MetadataFile] = []

        async def ask(number: int) -> Place:
            async with turns:
                try:
                    return await self._ask(number, metadata)
                finally:
                    self.asked += 1

        self._places = list(await asyncio.gather(*(ask(number) for number in numbers)))
        metadata.sort(key=lambda file: (file.disk, file.name))
        return metadata

    async def _ask(self, number: int, metadata: list[MetadataFile]) -> Place:
        spot = self._layout.spots.get(number)
        place = Place(number, *((spot.site, spot.rack, spot.node) if spot is not None else ("", "", "")))
        disk = self._ctx.disks.get(number)
        if disk is None:
            return msgspec.structs.replace(place, unreachable="it is not open in this process")
        try:
            files = await disk.fragment_files()
            logs = await disk.logs()
        except (StoreError, OSError) as failure:
            return msgspec.structs.replace(place, unreachable=f"{type(failure).__name__}: {failure}")
        ours = [file for file in files if file.volume <= _VOLUME_MAX]
        self._strange += [(number, file) for file in files if file.volume > _VOLUME_MAX]
        self._files[number] = array(
            "Q", sorted(_packed(file.volume, file.index, file.retired_us > 0) for file in ours)
        )
        allowed = self._may_hold_metadata(number)
        metadata += [MetadataFile(number, place.site, log.name, log.size, allowed) for log in logs]
        return msgspec.structs.replace(
            place,
            files=len(files),
            trash=sum(file.retired_us > 0 for file in files),
            bytes=sum(file.size for file in files),
        )

    def _may_hold_metadata(self, disk: int) -> bool:
        """The gateway's own machine always may: LMDB lies there, too."""
        spot = self._layout.spots.get(disk)
        own = spot is not None and not spot.node
        return not self._metadata_sites or own or self._site(disk) in self._metadata_sites

    async def _look_at_bucket(self) -> None:
        """The bucket's policy, and the volumes that hold its bytes."""
        kv = self._ctx.kv
        value = await kv.get(bucket_key(self._bucket))
        if value is None:
            raise NoSuchBucket(self._bucket)
        record = decode(value, BucketRecord)
        self._policy = self._layout.policy(policy_of_bucket(record))
        self._wanted = await volumes_of(kv, record.id)

    async def _copies_of_metadata(self) -> set[int]:
        """The volumes that hold the newest copy of metadata for salvage."""
        kv = self._ctx.kv
        value = await kv.get(SNAPSHOT_HOME)
        if value is None:
            return set()
        return {extent.volume async for extent in _extents(kv, SNAPSHOT_HOME, value)}

    async def _replicas(self) -> list[Replica]:
        """Where copies in other stores lie, as their operators declared it."""
        kv = self._ctx.kv
        found: list[Replica] = []
        for name, _ in await replicated(kv):
            value = await kv.get(bucket_key(name))
            if value is None or (self._bucket and name != self._bucket):
                continue
            record = decode(value, BucketRecord)
            target = replication_of(record)
            if target is not None:
                sites = self._layout.policy(policy_of_bucket(record)).sites
                allowed = not sites or target.site in sites
                found.append(Replica(name, target.endpoint, target.bucket, target.site, sites, allowed))
        return found

    # The join.

    def _seen(self, after: int) -> Iterator[_Seen]:
        """Every file of volumes > after, in order of volume and index."""
        start = (after + 1) << _VOLUME_SHIFT

        def of(number: int, files: "array[int]") -> Iterator[tuple[int, int]]:
            for at in range(bisect_left(files, start), len(files)):
                yield files[at], number

        for packed, number in merge(*(of(number, files) for number, files in self._files.items())):
            yield _Seen(
                packed >> _VOLUME_SHIFT, packed >> 1 & (1 << _INDEX_BITS) - 1, bool(packed & 1), number
            )

    async def _joined(self, after: int) -> AsyncIterator[tuple[int, VolumeRecord | None, list[_Seen]]]:
        """Every volume > after that metadata knows or a disk has files of, in order: its record and files."""
        groups = groupby(self._seen(after), key=lambda seen: seen.volume)
        head = next(groups, None)
        found: list[_Seen] = list(head[1]) if head is not None else []
        while True:
            records = await self._ctx.ledger.volumes(after, PAGE_VOLUMES)
            last = records[-1].id if len(records) == PAGE_VOLUMES else None
            known = {record.id: record for record in records}
            pending = sorted(known)
            at = 0
            while at < len(pending) or (found and (last is None or found[0].volume <= last)):
                volume = found[0].volume if found else pending[at]
                if at < len(pending) and pending[at] <= volume:
                    volume = pending[at]
                    at += 1
                mine: list[_Seen] = []
                if found and found[0].volume == volume:
                    mine = found
                    head = next(groups, None)
                    found = list(head[1]) if head is not None else []
                record = known.get(volume)
                if record is None and mine:  # Made since the page was read, or nobody's.
                    value = await self._ctx.kv.get(volume_key(volume))
                    record = None if value is None else decode_volume(value)
                if self._is_wanted(volume, record):
                    yield volume, record, mine
            if last is None:
                return
            after = last
            await asyncio.sleep(0)

    def _is_wanted(self, volume: int, record: VolumeRecord | None) -> bool:
        if self._wanted is None or self._policy is None or record is None:
            return True  # Whose bytes are in a file that nobody knows cannot be told.
        return volume in self._wanted or (bool(record.policy) and record.policy == self._policy.name)

    def _count_plain(self, counts: Counts, record: VolumeRecord, seen: list[_Seen]) -> bool:
        """Count a volume whose files all lie where they should; False if it is not such a one.

        Nearly every volume is: nothing is made for it that only a report would need.
        """
        disks = record.disks
        if len(seen) != len(disks) or record.id in self._copies:
            return False
        sites = self._policy_of(record).sites
        trash = 0
        for at, one in enumerate(seen):
            if one.index != at or one.disk != disks[at] or (sites and self._site(one.disk) not in sites):
                return False
            trash += one.trash
        counts.volumes += 1
        counts.pinned_volumes += bool(sites)
        counts.files += len(seen)
        counts.allowed += len(seen)
        counts.trash += trash
        return True

    def _policy_of(self, record: VolumeRecord | None) -> Policy:
        """What a volume's files are held to."""
        if self._policy is not None:
            return self._policy
        return DEFAULT_POLICY if record is None else self._layout.policy(record.policy)

    def _row(self, volume: int, record: VolumeRecord | None, seen: list[_Seen]) -> Row:
        policy = self._policy_of(record)
        files: list[File] = []
        for one in seen:
            site = self._site(one.disk)
            expected = (
                record is not None and one.index < len(record.disks) and record.disks[one.index] == one.disk
            )
            files.append(
                File(
                    one.index,
                    one.disk,
                    site,
                    one.trash,
                    record is not None and allows(policy, site),
                    expected,
                )
            )
        there = {file.index for file in files if file.expected}
        return Row(
            volume=volume,
            known=record is not None,
            state=VolumeState(record.state).name.lower() if record is not None else "unknown",
            policy=record.policy if record is not None else "",
            sites=policy.sites,
            metadata_copy=volume in self._copies,
            files=files,
            not_found=[] if record is None else [i for i in range(len(record.disks)) if i not in there],
        )

    def _site(self, disk: int) -> str:
        spot = self._layout.spots.get(disk)
        return spot.site if spot is not None else ""


def allows(policy: Policy, site: str) -> bool:
    return not policy.sites or site in policy.sites


def _packed(volume: int, index: int, trash: bool) -> int:
    return volume << _VOLUME_SHIFT | index << 1 | trash


def _tally(summary: Summary, row: Row, record: VolumeRecord | None, layout: Layout) -> None:
    """Count one volume, and name what is wrong with it."""
    counts = summary.counts
    counts.volumes += row.known
    counts.pinned_volumes += row.known and bool(row.sites)
    for file in row.files:
        counts.files += 1
        counts.trash += file.trash
        if not row.known:
            counts.unknown += 1
            _report(summary.unknown, row, file, "metadata knows no such volume")
            continue
        if not file.allowed:
            counts.forbidden += 1
            _report(summary.forbidden, row, file, f"its policy allows {', '.join(row.sites)}")
        else:
            counts.allowed += 1
        if not file.expected:
            counts.elsewhere += 1
            _report(summary.elsewhere, row, file, "its volume's record names another disk")
    counts.not_found += len(row.not_found)
    if record is None or not row.sites:
        return
    for index in row.not_found:
        disk = record.disks[index]
        spot = layout.spots.get(disk)
        if spot is not None and spot.site not in row.sites:
            counts.forbidden_by_record += 1
            file = File(index, disk, spot.site, False, False, True)
            _report(summary.forbidden, row, file, "not found, but its volume's record wants it there")


def _report(into: list[Finding], row: Row, file: File, why: str) -> None:
    if len(into) < REPORTED_MAX:
        into.append(Finding(row.volume, file.index, file.disk, file.site, file.trash, row.policy, why))


def _judge(summary: Summary, *, changed: bool) -> None:
    """The verdict, with its reasons."""
    counts = summary.counts
    counts.disks = len(summary.places)
    away = [place for place in summary.places if place.unreachable]
    counts.disks_unreachable = len(away)
    counts.metadata_files = len(summary.metadata)
    counts.metadata_files_forbidden = sum(not file.allowed for file in summary.metadata)
    counts.replicas = len(summary.replicas)
    counts.replicas_forbidden = sum(not replica.allowed for replica in summary.replicas)
    violated, missing = [], []
    if counts.forbidden or counts.forbidden_by_record:
        violated.append(
            f"{counts.forbidden + counts.forbidden_by_record} fragment files lie, or are to lie, where their"
            " policy does not allow it"
        )
    if counts.replicas_forbidden:
        violated.append(
            f"{counts.replicas_forbidden} buckets have a replica outside the sites that their policy allows"
        )
    if outside := counts.metadata_files_forbidden + counts.metadata_copies_forbidden:
        violated.append(f"{outside} files with metadata lie outside the sites that are allowed for it")
    if away:
        numbers = ", ".join(str(place.disk) for place in away[:20])
        missing.append(f"{len(away)} disks did not answer: {numbers}")
    if counts.unknown:
        missing.append(f"{counts.unknown} fragment files belong to volumes that metadata does not know")
    if changed:
        missing.append("the layout changed while the inventory was taken")
    summary.reasons = violated + missing
    summary.verdict = "violated" if violated else "incomplete" if missing else "proven"


async def volumes_of(kv: Kv, bucket: int) -> set[int]:
    """The volumes that hold bytes of a bucket: of its objects, their parts, and uploads under way."""
    found: set[int] = set()
    base = object_key(bucket, b"")
    async for pairs in pages(kv, base, prefix_end(base), PAGE_KEYS):
        for key, value in pairs:
            found.update([extent.volume async for extent in _extents(kv, key, value)])
            record = decode(value, ObjectRecord)
            multipart = record.extra.multipart if record.extra is not None else None
            if multipart is not None:
                found |= await _volumes_of_parts(kv, multipart.upload)
        await asyncio.sleep(0)
    uploads = b"m" + bucket.to_bytes(8, "big")
    async for pairs in pages(kv, uploads, prefix_end(uploads), PAGE_KEYS):
        for key, _ in pairs:
            found |= await _volumes_of_parts(kv, key[-16:])
    return found


async def _volumes_of_parts(kv: Kv, upload: bytes) -> set[int]:
    found: set[int] = set()
    start = b"p" + upload
    async for pairs in pages(kv, start, prefix_end(start), PAGE_KEYS):
        for key, value in pairs:
            found.update([extent.volume async for extent in _extents(kv, key, value)])
    return found


async def _extents(kv: Kv, key: bytes, value: bytes) -> AsyncIterator[Extent]:
    """The extents of a home: its own, and those of its pages."""
    for extent in extents_of(key, value):
        yield extent
    if key[:1] == b"p":
        part = decode(value, PartRecord)
        blob, count = part.blob, part.pages
    else:
        extra = decode(value, ObjectRecord).extra
        blob, count = (extra.blob, extra.pages) if extra is not None else (b"", 0)
    if not count:
        return
    start = extent_page_key(blob, 0)
    async for pairs in pages(kv, start, extent_page_key(blob, count), PAGE_KEYS):
        for _, page in pairs:
            for extent in decode(page, ExtentPage).extents:
                yield extent


# Tenants that are bound to sites, bucket by bucket.


class Housed(msgspec.Struct, frozen=True):
    """A bucket of a tenant whose bytes may not lie everywhere: where the files of its volumes were found."""

    tenant: str
    allowed: tuple[str, ...]  # Sites; none: as the tenant's own policy says.
    bucket: str
    policy: str
    admitted: bool  # Whether the bucket's policy leads nowhere else, and what is stored next with it.
    volumes: int  # That hold bytes of it.
    sites: tuple[str, ...]  # Where files of these lie, trash among them.
    outside: int  # Of its volumes: with a file at another site;
    unseen: int  # with no file in the inventory: made since, or on disks that did not answer.


async def housed(ctx: Context, store: Store, audit: Audit, *, most: int) -> list[Housed]:
    """Every bucket of tenants that are bound, held against an inventory that was taken; at most `most`.

    Reads every object's record of these tenants. Raises: MetaUnavailable.
    """
    layout = await ctx.ledger.layout()
    places = await audit.sites_of_volumes()
    found: list[Housed] = []
    async for tenant, account in bound_accounts(ctx.kv):
        async for name, record in buckets_of(store, tenant):
            if len(found) >= most:
                return found
            volumes = await volumes_of(ctx.kv, record.id)
            lying = [places.get(volume, frozenset()) for volume in volumes]
            allowed = frozenset(account.sites)
            found.append(
                Housed(
                    tenant=tenant,
                    allowed=tuple(account.sites),
                    bucket=name,
                    policy=policy_of_bucket(record),
                    admitted=is_admitted(account, layout, policy_of_bucket(record)),
                    volumes=len(volumes),
                    sites=tuple(sorted(frozenset().union(*lying))),
                    outside=sum(bool(allowed) and not sites <= allowed for sites in lying),
                    unseen=sum(not sites for sites in lying),
                )
            )
    return found
