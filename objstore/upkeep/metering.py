"""Hours are sealed: counters of commits become usage records (rental/usage.py says how).

An hour is taken when it has been over for ten minutes. All streams of one hour come before any of the next;
when they are through, the mark moves: hours that nobody sealed because nobody ran are caught up in order.
Behind the mark only what came late is looked for, so that a store at rest costs a pass three reads. What
service levels are measured by (rental/availability.py) is sealed before the mark moves.

A clock that runs ahead would seal hours that have not been, and remove records that are still to be kept. So
nothing is sealed or removed while it is more than AHEAD_HOURS_MAX beyond the last sealed hour, and an alarm
says so. A store that was off for that long goes on when an operator says that the clock is right. What an
error within the bound can remove is older than thirteen months still.

Concurrency: one process at a time, under the upkeep's claim. A pass may be cut anywhere: each commit leaves
a state from which the next pass goes on.
"""

from collections.abc import Callable
from typing import Final

from objstore.clock import SECOND_US, Clock, utc_text
from objstore.meta.kv import Kv
from objstore.rental.availability import retire_service, seal_service
from objstore.rental.meters import HOUR_S
from objstore.rental.usage import (
    first_counted,
    move_mark,
    read_mark,
    retire_usage,
    seal_streams,
    streams_of,
    tenants_with_usage,
)
from objstore.upkeep.context import Alarms, no_crash

SETTLE_S: Final = 600  # From an hour's end to its sealing: commits under way come in, clocks differ less.
DAY_HOURS: Final = 24
AHEAD_HOURS_MAX: Final = 32 * DAY_HOURS  # Longer than a month, by which whoever plans a pause plans it.
# Of usage records: thirteen months have 397 days at most, whatever a clock within its bound says.
KEPT_HOURS: Final = 430 * DAY_HOURS
AHEAD: Final = "clock ahead of metering"  # The alarm.
HOURS_AT_ONCE: Final = (
    DAY_HOURS * 31
)  # Sealed in one pass; a store that slept longer goes on in the next one.


class Metering:
    """Seals what is due, pass by pass."""

    def __init__(
        self,
        kv: Kv,
        clock: Clock,
        crash_point: Callable[[str], None] = no_crash,
        alarms: Alarms | None = None,
    ) -> None:
        """kv: metadata under the upkeep's claim."""
        self._kv = kv
        self._clock = clock
        self._crash_point = crash_point
        self._alarms = alarms if alarms is not None else Alarms()
        self.ahead_hours = 0  # That the clock is too far beyond the last sealed hour; 0: it may be right.
        self.sealed = 0  # Usage records, since the start.
        self.corrected = 0  # Those of them that were made or changed by what came late.
        self.retired = 0  # Removed after their time.

    async def run(self) -> str:
        """One pass; what it came to, in words. Raises: Overloaded, Deposed, MetaUnavailable."""
        due = max(0, (self._clock.now_us() // SECOND_US - SETTLE_S) // HOUR_S)  # The first hour that is not.
        first = await first_counted(self._kv)
        known = await read_mark(self._kv)
        mark = known.hour or (due if first is None else min(first, due))
        if self._is_ahead(due, max(mark, known.accepted)):
            return f"the clock is {self.ahead_hours} hours beyond the last sealed one: nothing is sealed"
        await seal_service(self._kv, due)
        if not known.hour:
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

    def _is_ahead(self, due: int, last: int) -> bool:
        """Whether the clock is too far beyond the last hour that is known to have been."""
        if due - last <= AHEAD_HOURS_MAX:
            self.ahead_hours = 0
            self._alarms.clear(AHEAD)
            return False
        self.ahead_hours = due - last
        self._alarms.set(
            AHEAD,
            f"usage was sealed last until {utc_text(last * HOUR_S)}, and the clock says"
            f" {utc_text(due * HOUR_S)}: set the clock, or say `objstore usage resume` if it is right",
        )
        return True

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
