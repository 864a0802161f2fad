"""Copies of all metadata, stored in volumes like an object: what `objstore meta rebuild` begins with.

An export is streamed from the metadata engine into a volume; its home is one setting, so the next one
replaces it. It is no single view of a store that is being written to, and need not be: a rebuild applies
every stripe that is younger than the copy's beginning. But stripes say nothing of tenants, users, keys,
buckets' settings, machines and disks, so that a copy is made soon after one of those has changed, beside the
regular ones.

Concurrency: one task of the upkeep process, and whoever asks for a copy by hand; one copy at a time.
"""

import asyncio
import logging
from dataclasses import dataclass

import xxhash

from objstore.blobs.topology import policy_of_sites
from objstore.errors import StoreError
from objstore.meta import transfer
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.processes.parts import Parts, context_of
from objstore.upkeep.snapshots import SnapshotAbout, read_snapshot, store_snapshot

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0  # A look reads every bucket's record: 50 ms for 100,000 of them.
SETTLE_SECONDS = 60.0  # From a change to its copy: whoever makes one user makes ten.
APART_SECONDS = 600.0  # Between two copies, however much changes,
SHARE = 20  # and so many times as long as the last one took: large metadata is not copied all day.
NAMES = (b"D", b"b", b"k", b"n", b"t", b"u")  # Disks, buckets, access keys, machines, tenants, users.
PAGE = 1_000


@dataclass(slots=True)
class Timing:
    """When a copy is due. Pure: told the time, and what there is."""

    hours: float  # Between two copies when no name changes.
    factor: float = 1.0  # Of the seconds above, for tests.
    copied: int | None = None  # What the names were when this process began its last copy.
    took: float = 0.0  # Seconds, of that copy.
    _since: float | None = None  # When they were first seen to differ.

    def due(self, names: int, *, now: float, age: float | None) -> bool:
        """Args: names: their fingerprint; now: seconds; age: seconds since the newest copy began, if any."""
        if names == self.copied:
            self._since = None
        elif self._since is None:
            self._since = now
        if age is not None and age > self.hours * 3_600:
            return True
        if self._since is None:
            return False
        settled = now - self._since >= SETTLE_SECONDS * self.factor
        return settled and (age is None or age >= max(APART_SECONDS * self.factor, SHARE * self.took))


async def fingerprint(kv: Kv) -> int:
    """The xxh3-64 of every record that no stripe tells anything of. Raises: StoreError."""
    digest = xxhash.xxh3_64()
    for prefix in NAMES:
        async for pairs in pages(kv, prefix, prefix_end(prefix), PAGE):
            for key, value in pairs:
                digest.update(b"%d %d " % (len(key), len(value)))
                digest.update(key + value)
            await asyncio.sleep(0)
    return digest.intdigest()


class Copies:
    """Takes copies of metadata."""

    def __init__(self, parts: Parts) -> None:
        self._context = context_of(parts)
        config = parts.spec.config.upkeep
        self._timing = Timing(config.snapshot_hours, config.period_factor)
        self._policy = policy_of_sites(parts.spec.config.meta.sites)
        self._one = asyncio.Lock()

    async def take(self) -> SnapshotAbout:
        """Take one now. Raises: StoreError."""
        context, clock = self._context, self._context.clock
        async with self._one:
            names = await fingerprint(context.kv)  # First: what changes meanwhile asks for another copy.
            began, began_us = clock.monotonic(), clock.now_us()
            source = transfer.stream(context.kv, now_us=began_us)
            about = await store_snapshot(context, source, began_us=began_us, policy=self._policy)
            self._timing.copied, self._timing.took = names, clock.monotonic() - began
        log.info("metadata copied into volumes", extra={"bytes": about.size})
        return about

    async def keep(self) -> None:
        """Take one whenever it is due. Never returns."""
        clock = self._context.clock
        while True:
            await asyncio.sleep(LOOK_SECONDS * self._timing.factor)
            try:
                newest = await self.newest()
                age = None if newest is None else (clock.now_us() - newest.began_us) / 1e6
                if self._timing.due(await fingerprint(self._context.kv), now=clock.monotonic(), age=age):
                    await self.take()
            except StoreError as failure:
                log.warning("no copy of metadata was made", extra={"failure": str(failure)})

    async def newest(self) -> SnapshotAbout | None:
        found = await read_snapshot(self._context)
        if found is None:
            return None
        about, source = found
        await source.aclose()  # Nothing was read of it.
        return about
