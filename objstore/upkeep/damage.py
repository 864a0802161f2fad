"""What is damaged, and what is lost: volume by volume, stripe by stripe, and key by key.

A volume's files are judged by repair (`Repair.find`). This looks deeper: every fragment of a volume is read,
so that of each stripe it is known whether it is whole, can be rebuilt, waits for fragments that are merely
away, or is lost. Then metadata is searched for what lies in lost stripes, and each such piece is read: what
cannot be read is reported with bucket and key. Metadata decides what an object is; the directories of lost
stripes are lost, too.

Volumes in which repair found lost stripes are remembered in one setting until a check finds that no object in
them is lost (deleted, or written again).

Concurrency: one check at a time, paced like all upkeep; it changes nothing but that setting.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.volumes import VolumeRecord
from objstore.errors import Conflict, Corrupt, Overloaded, StoreError, Unavailable
from objstore.extents import Extent
from objstore.meta.kv import Transaction, pages, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    ObjectRecord,
    PartRecord,
    decode,
    setting_key,
    unescape,
    volume_key,
)
from objstore.upkeep.context import Context
from objstore.upkeep.homes import SNAPSHOT_HOME, extents_of
from objstore.upkeep.survey import given_up_disks
from objstore.upkeep.walk import headers, tally

log = logging.getLogger(__name__)

LOST_KEY: Final = setting_key("lost")
REMEMBERED_MAX: Final = 256  # Volumes: up to 9 bytes each, in a value of at most 4,096.
REPORTED_MAX: Final = 10_000  # Objects named; beyond they are only counted.
PAGE_KEYS: Final = 1_000
ATTEMPTS_MAX: Final = 16


class LostVolumes(msgspec.Struct, frozen=True, array_like=True):
    """MessagePack array; fields are only ever added at the end."""

    format: int = 1
    volumes: tuple[int, ...] = ()


async def lost_volumes(ctx: Context) -> tuple[int, ...]:
    """Volumes in which something was found lost. Raises: MetaUnavailable."""
    value = await ctx.kv.get(LOST_KEY)
    return () if value is None else msgspec.msgpack.decode(value, type=LostVolumes).volumes


async def note_lost(ctx: Context, *, add: Iterable[int] = (), drop: Collection[int] = ()) -> tuple[int, ...]:
    """Remember volumes, or no longer; the newest if there are too many.

    Raises: MetaUnavailable, Overloaded, Deposed.
    """
    add = set(add)
    for _ in range(ATTEMPTS_MAX):
        value = await ctx.kv.get(LOST_KEY)
        known = () if value is None else msgspec.msgpack.decode(value, type=LostVolumes).volumes
        volumes = tuple(sorted((set(known) | add) - set(drop)))[-REMEMBERED_MAX:]
        if volumes != known:
            new = msgspec.msgpack.encode(LostVolumes(volumes=volumes))
            try:
                await ctx.kv.commit(Transaction(expect={LOST_KEY: value}, put={LOST_KEY: new}))
            except Conflict:
                continue
        if volumes:
            ctx.alarms.set(
                "lost stripes",
                f"nothing can rebuild some stripes of volumes {', '.join(map(str, volumes[:20]))}"
                f"{', ...' if len(volumes) > 20 else ''}; which objects: objstore volume check",
            )
        else:
            ctx.alarms.clear("lost stripes")
        return volumes
    raise Overloaded("the list of volumes with lost stripes kept changing")


@dataclass(slots=True)
class VolumeCheck:
    """One volume, all of it read. Stripes are named by their offsets."""

    volume: int
    stripes: int = 0
    damaged: int = 0  # Lack fragments, but can be rebuilt.
    waiting: list[int] = field(default_factory=list)  # Fewer than k here; some are merely away.
    lost: list[int] = field(default_factory=list)  # Fewer than k, and no more will come.
    cut: int = 0  # From this offset on not even the places of stripes are known; 0: all are.
    cut_waits: bool = False  # They may be when a disk is back.
    failure: str = ""  # Why the volume could not be looked through to its end.

    def may_return(self, offset: int) -> bool:
        """Whether what cannot be read of the stripe there may be readable when a disk is back."""
        return offset in self.waiting or bool(self.cut and offset >= self.cut and self.cut_waits)

    def hits(self, offset: int) -> bool:
        """Whether the stripe there may not be readable."""
        return offset in self.lost or offset in self.waiting or bool(self.cut and offset >= self.cut)

    @property
    def suspicious(self) -> bool:
        return bool(self.lost or self.waiting or self.cut)


async def check_volume(ctx: Context, record: VolumeRecord, length: int) -> VolumeCheck:
    """Read every fragment of a volume up to `length`. Raises: MetaUnavailable."""
    found = VolumeCheck(record.id)
    given_up = await given_up_disks(ctx)
    end = 0
    try:
        async for header in headers(ctx, record, length, gone=given_up):
            found.stripes += 1
            whole, late = await tally(ctx, record, header, given_up)
            await ctx.pace.spend(header.fragment_size * (whole + late))
            if whole < record.k:
                (found.waiting if whole + late >= record.k else found.lost).append(header.offset)
            elif whole < record.fragment_count:
                found.damaged += 1
            end = header.end
    except (Corrupt, Unavailable) as failure:
        found.failure = str(failure)
        found.cut = max(end, 1)
        found.cut_waits = isinstance(failure, Unavailable)
    return found


class LostObject(msgspec.Struct, frozen=True):
    """Something of which bytes cannot be read."""

    bucket: str
    key: str
    what: str  # object | part N | list of parts | copy of metadata
    volume: int
    bytes: int  # Of it, that cannot be read.
    waiting: bool  # They may come back with a disk that is away.


async def lost_objects(ctx: Context, checks: Mapping[int, VolumeCheck]) -> list[LostObject]:
    """What of these volumes' contents cannot be read, by one pass over metadata. Raises: MetaUnavailable."""
    suspects = {volume: check for volume, check in checks.items() if check.suspicious}
    if not suspects:
        return []
    unreadable: list[tuple[bytes, bytes, Extent, bool]] = []
    blobs: set[bytes] = set()
    for prefix in (b"S", b"o", b"p", b"x"):
        async for pairs in pages(ctx.kv, prefix, prefix_end(prefix), PAGE_KEYS):
            for key, value in pairs:
                for extent in _extents(key, value):
                    check = suspects.get(extent.volume)
                    if check is None or not check.hits(extent.offset) or await _readable(ctx, extent):
                        continue
                    unreadable.append((key, value, extent, check.may_return(extent.offset)))
                    if prefix == b"x":
                        blobs.add(key[1:17])
            await asyncio.sleep(0)
    homes = await _homes_of(ctx, blobs)
    buckets = await _bucket_names(ctx)
    found: dict[tuple[bytes, int], LostObject] = {}
    for key, value, extent, waits in unreadable:
        home_key, home_value = homes.get(key[1:17], (key, value)) if key[:1] == b"x" else (key, value)
        bucket, name, what = _named(home_key, home_value, extent, buckets)
        before = found.get((home_key, extent.volume))
        size = extent.length + (before.bytes if before else 0)
        waiting = waits and (before is None or before.waiting)
        found[home_key, extent.volume] = LostObject(bucket, name, what, extent.volume, size, waiting)
    return list(found.values())


async def _readable(ctx: Context, extent: Extent) -> bool:
    try:
        async for _ in ctx.reader.stream([extent], 0, extent.length):
            pass
    except UNREADABLE:
        return False
    return True


def _extents(key: bytes, value: bytes) -> Iterable[Extent]:
    try:
        return extents_of(key, value)
    except msgspec.MsgspecError:
        log.warning("a record cannot be read: %r", key[:40])
        return ()


async def _homes_of(ctx: Context, blobs: set[bytes]) -> dict[bytes, tuple[bytes, bytes]]:
    """The records whose pages these blobs' are."""
    found: dict[bytes, tuple[bytes, bytes]] = {}
    if not blobs:
        return found
    for prefix in (b"S", b"o", b"p"):
        async for pairs in pages(ctx.kv, prefix, prefix_end(prefix), PAGE_KEYS):
            for key, value in pairs:
                if prefix == b"p":
                    blob = decode(value, PartRecord).blob
                elif prefix == b"o" or key == SNAPSHOT_HOME:
                    extra = decode(value, ObjectRecord).extra
                    blob = extra.blob if extra else b""
                else:
                    continue
                if blob in blobs:
                    found[blob] = (key, value)
            await asyncio.sleep(0)
    return found


async def _bucket_names(ctx: Context) -> dict[int, str]:
    names: dict[int, str] = {}
    async for pairs in pages(ctx.kv, b"b", prefix_end(b"b"), PAGE_KEYS):
        names.update((decode(value, BucketRecord).id, key[1:].decode()) for key, value in pairs)
    return names


def _named(key: bytes, value: bytes, extent: Extent, buckets: Mapping[int, str]) -> tuple[str, str, str]:
    """(bucket, key, what) for people."""
    if key == SNAPSHOT_HOME:
        return "", "", "copy of metadata"
    what = "object"
    if key[:1] == b"p":
        home = decode(value, PartRecord).home
        what = f"part {int.from_bytes(key[17:19], 'big')}"
        bucket = int.from_bytes(home[1:9], "big")
        name = unescape(home[9:])[0] if home[:1] == b"m" else home[9:]
    elif key[:1] == b"o":
        bucket, name = int.from_bytes(key[1:9], "big"), key[9:]
        record = decode(value, ObjectRecord)
        if record.extra and record.extra.multipart and record.extra.multipart.manifest == extent:
            what = "list of parts"  # A spare one, for salvage: metadata has its own.
    else:
        return "", "", "pages of an object that is being removed"
    return buckets.get(bucket, f"(bucket {bucket})"), name.decode(errors="replace"), what


class Checks:
    """Checks in the background, one at a time; the last one's result is kept."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._task: asyncio.Task[None] | None = None
        self._volumes: list[int] = []
        self._done: dict[int, VolumeCheck] = {}
        self._objects: list[LostObject] = []
        self._state = "none"  # none | reading | searching | done | failed
        self._failure = ""

    def begin(self, volumes: Iterable[int]) -> None:
        """Raises: Overloaded while another check runs."""
        if self._task is not None and not self._task.done():
            raise Overloaded("another check runs: see objstore volume check --status")
        self._volumes = sorted(set(volumes))
        self._done, self._objects, self._failure = {}, [], ""
        self._state = "reading"
        self._task = asyncio.get_running_loop().create_task(self._run(), name="volume check")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=10)

    def status(self) -> dict[str, object]:
        """For the admin port: plain values only."""
        return {
            "state": self._state,
            "failure": self._failure,
            "volumes": len(self._volumes),
            "checked": len(self._done),
            "found": [msgspec.to_builtins(check) for check in self._done.values() if check.suspicious],
            "damaged_stripes": sum(check.damaged for check in self._done.values()),
            "waiting_stripes": sum(len(check.waiting) for check in self._done.values()),
            "lost_stripes": sum(len(check.lost) for check in self._done.values()),
            "lost_count": len(self._objects),
            "lost": [msgspec.to_builtins(each) for each in self._objects[:REPORTED_MAX]],
        }

    async def _run(self) -> None:
        ctx = self._ctx
        try:
            gone: set[int] = set()
            for volume in self._volumes:
                try:
                    record = await ctx.ledger.get(volume, fresh=True)
                except Corrupt:
                    if await ctx.kv.get(volume_key(volume)) is not None:  # A rotten record raises here again.
                        raise
                    gone.add(volume)  # Compacted and purged since.
                    continue
                length = record.length or (await ctx.ledger.lengths([volume]))[0][0]
                self._done[volume] = await check_volume(ctx, record, length)
            self._state = "searching"
            self._objects = await lost_objects(ctx, self._done)
            still = {each.volume for each in self._objects}
            clear = gone | (set(self._done) - still)
            await note_lost(ctx, add=(each.volume for each in self._objects if not each.waiting), drop=clear)
            self._state = "done"
        except StoreError as failure:
            self._state, self._failure = "failed", str(failure)
            log.warning("a check of volumes ended: %s", failure)
        except Exception as bug:
            self._state, self._failure = "failed", f"a bug: {bug!r}"
            log.exception("a bug in a check of volumes")
