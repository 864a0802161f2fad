"""What service levels are measured by, as one worker sees it: requests, failures of ours, minutes served.

Every request whose signature was verified counts for its tenant. It failed through us when it was answered
with 5xx, also in a document that had begun with 200, but for what the tenant caused (a rate or a share of its
own, more writes of one key at once than there is order for) and for what this store does not have (501).
Refused before it was known whose it is, it counts for nobody.

Once a second the counts go to the five minutes that run then; every few seconds these are committed, and
again until that succeeds: what fails while metadata takes no commits is just what has to be counted. A kill
loses the counts of up to FLUSH_S + 1 seconds; a commit of unknown outcome may count its seconds twice.

A minute is served when metadata could be read in it. One gateway that says so is enough.

Concurrency: one per worker, on its event loop. `note` is on the way of every request: no await.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from objstore.clock import SECOND_US, Clock
from objstore.errors import StoreError
from objstore.meta.kv import Add, Kv, Transaction
from objstore.meta.schema import setting_key
from objstore.rental.availability import MINUTE_S, request_keys, served_key
from objstore.rental.service_levels import INTERVAL_S

log = logging.getLogger(__name__)

TURN_S: Final = 1.0
FLUSH_S: Final = 5
PROBE_S: Final = 5.0  # A read of metadata that takes longer has failed.
WAITING_MAX: Final = 65_536  # Tenants x five minutes that are not committed; more are given up.
MINUTES_MAX: Final = 1_440  # Minutes served that are not committed.
COMMITTED_AT_ONCE: Final = 128  # Minutes, and tenants x five minutes (two counters each), of one commit.
_SERVER_FAULT: Final = 500
_NOT_IMPLEMENTED: Final = 501
_PROBED: Final = setting_key("metering")  # Any record: it is the reading that counts.


def is_failure(status: int) -> bool:
    """Whether an answer of this status is our failure, unless the tenant was held to a limit of its own."""
    return status >= _SERVER_FAULT and status != _NOT_IMPLEMENTED


class Availability:
    """Counts of one worker that are not committed yet."""

    def __init__(self, *, size_max: int = WAITING_MAX) -> None:
        self._size_max = size_max
        self._running: dict[str, list[int]] = {}  # Requests and failures since the last turn, by tenant.
        self._waiting: dict[tuple[int, str], list[int]] = {}  # The same by five minutes and tenant.
        self._minutes: list[int] = []  # Served, not committed.
        self._minute = 0  # The last that was noted.
        self.lost = 0  # Requests that were given up for want of room.

    def note(self, tenant: str, failed: bool) -> None:
        """Count one finished request."""
        counts = self._running.get(tenant)
        if counts is None:
            self._running[tenant] = [1, int(failed)]
        else:
            counts[0] += 1
            counts[1] += failed

    def turn(self, now_s: int) -> None:
        """What was counted since the last turn belongs to the five minutes of this second (since 1970)."""
        taken, self._running = self._running, {}
        slot = now_s // INTERVAL_S
        for tenant, counts in taken.items():
            self._wait(slot, tenant, counts)

    def _wait(self, slot: int, tenant: str, counts: Iterable[int]) -> None:
        requests, failures = counts
        there = self._waiting.get((slot, tenant))
        if there is not None:
            there[0] += requests
            there[1] += failures
        elif len(self._waiting) < self._size_max:
            self._waiting[slot, tenant] = [requests, failures]
        else:
            self.lost += requests

    async def probe(self, kv: Kv, now_s: int) -> None:
        """Note the minute as served, once, if metadata can be read."""
        minute = now_s // MINUTE_S
        if minute == self._minute or len(self._minutes) >= MINUTES_MAX:
            return
        try:
            async with asyncio.timeout(PROBE_S):
                already = await kv.get_many([_PROBED, served_key(minute)])
        except (StoreError, TimeoutError):
            return
        self._minute = minute
        if already[1] is None:
            self._minutes.append(minute)

    @property
    def waits(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._waiting or self._minutes)

    async def commit(self, kv: Kv) -> None:
        """Commit what waits; what cannot be committed waits on."""
        minutes, self._minutes = self._minutes, []
        waiting, self._waiting = list(self._waiting.items()), {}
        for begin in range(0, max(len(waiting), len(minutes)), COMMITTED_AT_ONCE):
            some = waiting[begin : begin + COMMITTED_AT_ONCE]
            put = {served_key(minute): b"" for minute in minutes[begin : begin + COMMITTED_AT_ONCE]}
            try:
                await kv.commit(Transaction(put=put, add=_added(some)))
            except (StoreError, asyncio.CancelledError) as failure:
                self._minutes += minutes[begin:]
                for (slot, tenant), counts in waiting[begin:]:
                    self._wait(slot, tenant, counts)
                if not isinstance(failure, StoreError):
                    raise
                log.info("requests of five minutes are counted later", extra={"failure": str(failure)})
                return

    async def keep(self, kv: Kv, clock: Clock, away: Callable[[], bool]) -> None:
        """Turn every second, probe every minute, commit every few seconds. Never returns."""
        committed = clock.monotonic()
        while True:
            await asyncio.sleep(TURN_S)
            now_s = clock.now_us() // SECOND_US
            self.turn(now_s)
            await self.probe(kv, now_s)
            if self.waits and not away() and clock.monotonic() >= committed + FLUSH_S:
                await self.commit(kv)
                committed = clock.monotonic()


def _added(some: Iterable[tuple[tuple[int, str], list[int]]]) -> dict[bytes, Add]:
    add: dict[bytes, Add] = {}
    for (slot, tenant), (requests, failures) in some:
        keys = request_keys(tenant, slot)
        add[keys[0]] = Add(requests)
        if failures:
            add[keys[1]] = Add(failures)
    return add
