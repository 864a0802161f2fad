"""Copies of all metadata, stored in volumes like an object: what `objstore meta rebuild` begins with.

An export is streamed from the metadata engine into a volume; its home is one setting, so the next one
replaces it. It is no single view of a store that is being written to, and need not be: a rebuild applies
every stripe that is younger than the copy's beginning.

Concurrency: one task of the upkeep process, and whoever asks for a copy by hand; one copy at a time.
"""

import asyncio
import logging

from objstore.errors import StoreError
from objstore.meta import transfer
from objstore.processes.parts import Parts, context_of
from objstore.upkeep.snapshots import SnapshotAbout, read_snapshot, store_snapshot

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0


class Copies:
    """Takes copies of metadata."""

    def __init__(self, parts: Parts) -> None:
        self._context = context_of(parts)
        self._one = asyncio.Lock()

    async def take(self) -> SnapshotAbout:
        """Take one now. Raises: StoreError."""
        context = self._context
        async with self._one:
            began_us = context.clock.now_us()
            source = transfer.stream(context.kv, now_us=began_us)
            about = await store_snapshot(context, source, began_us=began_us)
        log.info("metadata copied into volumes", extra={"bytes": about.size})
        return about

    async def keep(self, hours: float) -> None:
        """Take one whenever the last is older than `hours`. Never returns."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                newest = await self.newest()
                if newest is None or self._context.clock.now_us() - newest.began_us > hours * 3_600e6:
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
