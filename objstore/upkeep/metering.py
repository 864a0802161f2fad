"""Hours are sealed: counters of commits become usage records (rental/usage.py says how).

An hour is taken when it has been over for ten minutes. All streams of one hour come before any of the next;
when they are through, the mark moves: hours that nobody sealed because nobody ran are caught up in order.
Behind the mark only what came late is looked for, so that a store at rest costs a pass three reads. What
service levels are measured by (rental/availability.py) is sealed before the mark moves.

Concurrency: one process at a time, under the upkeep's claim. A pass may be cut anywhere: each commit leaves
a state from which the next pass goes on.
"""

from collections.abc import Callable
from typing import Final

from objstore.clock import Clock
from objstore.meta.kv import Kv
from objstore.rental.availability import retire_service, seal_service
from objstore.rental.meters import HOUR_S
from objstore.rental.usage import (
    first_counted,
    move_mark,
    retire_usage,
    seal_streams,
    sealed_until,
    streams_of,
    tenants_with_usage,
)
from objstore.upkeep.context import no_crash

SETTLE_S: Final = 600  # From an hour's end to its sealing: commits under way come in, clocks differ less.
DAY_HOURS: Final = 24
KEPT_HOURS: Final = 400 * DAY_HOURS  # Of usage records: thirteen months have 397 days at most.
HOURS_AT_ONCE: Final = (
    DAY_HOURS * 31
)  # Sealed in one pass; a store that slept longer goes on in the next one.
SECOND_US: Final = 1_000_000


class Metering:
    """Seals what is due, pass by pass."""

    def __init__(self, kv: Kv, clock: Clock, crash_point: Callable[[str], None] = no_crash) -> None:
        """kv: metadata under the upkeep's claim."""
        self._kv = kv
        self._clock = clock
        self._crash_point = crash_point
        self.sealed = 0  # Usage records, since the start.
        self.corrected = 0  # Those of them that were made or changed by what came late.
        self.retired = 0  # Removed after their time.

    async def run(self) -> str:
        """One pass; what it came to, in words. Raises: Overloaded, Deposed, MetaUnavailable."""
        due = max(0, (self._clock.now_us() // SECOND_US - SETTLE_S) // HOUR_S)  # The first hour that is not.
        await seal_service(self._kv, due)
        mark = await sealed_until(self._kv)
        first = await first_counted(self._kv)
        if not mark:
            mark = due if first is None else min(first, due)
            await self._move(mark)
        corrected = 0
        while first is not None and first < mark:
            corrected += await self._seal(first, late=True)
            first = await first_counted(self._kv, first + 1)  # Those of unknown buckets stay where they are.
        self.corrected += corrected
        end = min(due, mark + HOURS_AT_ONCE)
        sealed = 0
        for hour in range(mark, end):
            sealed += await self._seal(hour, late=False)
            await self._move(hour + 1)
        if end > mark:
            await self._retire(end - KEPT_HOURS)
        if end // DAY_HOURS > mark // DAY_HOURS:
            await retire_service(self._kv, (end - KEPT_HOURS) // DAY_HOURS)
        self.sealed += sealed + corrected
        hours = max(0, end - mark)
        return f"{hours} hours sealed in {sealed} records, {corrected} corrections"

    async def _seal(self, hour: int, *, late: bool) -> int:
        count = 0
        async for streams in streams_of(self._kv, hour, held=not late):
            self._crash_point("metering-found")
            count += await seal_streams(self._kv, hour, streams, late=late, now_us=self._clock.now_us())
            self._crash_point("metering-sealed")
        return count

    async def _move(self, hour: int) -> None:
        await move_mark(self._kv, hour)
        self._crash_point("metering-marked")

    async def _retire(self, before_hour: int) -> None:
        """Remove what was kept long enough: what one hour brings goes in an hour's pass."""
        if before_hour <= 0:
            return
        for tenant in await tenants_with_usage(self._kv):
            while count := await retire_usage(self._kv, tenant, before_hour):
                self.retired += count
                self._crash_point("metering-retired")
