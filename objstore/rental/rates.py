"""Rates: requests a second and bytes a second of a tenant, a project, a bucket and an access key.

Each process holds its requests against token buckets. What a limit allows is divided among all processes of
all gateways: once a second each says in a small record how much was asked of it, reads what the others say,
and takes the share that this gives it. As all work from the same figures, the shares add up to the limit.

    z <process id 16>    DemandRecord: of a process that has seen requests of someone with a rate

A request is admitted as long as its buckets are not empty; bytes beyond are a debt, paid before the next is
admitted. So over any ten seconds all processes together admit at most 1.1 times the limit, and beyond that
the last request of each process, which is never cut off.

Concurrency: one Rates a process, on its event loop; one task exchanges. Clocks of machines are not compared:
a record that has not changed for a while is one that nobody renews.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from objstore.errors import StoreError
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import Limits, Record, decode, encode

log = logging.getLogger(__name__)

BURST_S: Final = 0.5  # Of a share: what a bucket holds. All together a twentieth of ten seconds.
FLOOR: Final = 0.02  # Of a limit: divided as if so much more was asked of all processes, equally.
TURN_S: Final = 1.0  # Between two exchanges.
FRESH_S: Final = 5.0  # So long what a process said of its demand counts,
ALIVE_S: Final = 180.0  # and so long the process itself.
RENEWAL_S: Final = 60.0  # A process of which nothing is asked says so that often.
FLOWS_MAX: Final = 20_000  # In one process: about 5 MB.
IDLE_S: Final = 10.0  # A flow of which nothing was asked for so long begins anew.
RECORD_SIZE_MAX: Final = 7_500  # Bytes of demands: about a hundred. What is left out is not much.
PROCESSES_MAX: Final = 4_096
RETRY_AFTER_MAX_S: Final = 30.0

Scope = tuple[str, Limits]  # Its name among all scopes ("t acme"), and its limits.


class DemandRecord(Record, frozen=True, array_like=True, kw_only=True):
    count: int  # Renewals: it changes, so it is alive.
    demands: dict[str, list[int]] = {}  # By scope: thousandths of a request, and bytes, a second.


def has_rates(limits: Limits) -> bool:
    return limits.requests_per_s is not None or limits.bytes_per_s is not None


def share(limit: int, own: float, others: float, processes: int) -> float:
    """What one of several processes may use of a limit.

    Args:
        limit: a second, of all together.
        own: what is asked of this process a second.
        others: of all others together.
        processes: how many there are, this one among them.

    Returns:
        While less is asked than the limit allows: that, and an equal part of the rest. Else in proportion to
        what is asked. Over all processes this adds up to the limit.
    """
    least = limit * FLOOR / processes
    own, whole = own + least, own + others + limit * FLOOR
    if whole <= limit:
        return own + (limit - whole) / processes
    return limit * own / whole


class Flow:
    """One token bucket: the requests, or the bytes, of one scope in this process."""

    __slots__ = ("asked", "at", "demand", "limit", "share", "tokens", "whole")

    def __init__(self, limit: int, processes: int, now: float, *, whole: bool) -> None:
        """whole: a request needs a whole token; bytes only that there is no debt."""
        self.limit = limit
        self.share = limit / processes
        self.whole = whole
        self.tokens = self._most()
        self.at = now
        self.asked = 0.0  # Since the last exchange.
        self.demand = 0.0  # A second, as this process said last.

    def _most(self) -> float:
        burst = BURST_S * self.share
        return max(1.0, burst) if self.whole and self.limit else burst

    def obey(self, limit: int, processes: int) -> None:
        """The limit has changed: until the next exchange the share is an equal one."""
        if limit != self.limit:
            self.share = limit / processes
            self.limit = limit

    def wait_s(self, now: float) -> float:
        """Seconds until another request may come; 0: now."""
        self.tokens = min(self._most(), self.tokens + (now - self.at) * self.share)
        self.at = now
        needed = 1.0 if self.whole else 0.0
        if self.tokens >= needed and (self.tokens > 0 or self.limit):
            return 0.0
        return (needed - self.tokens) / self.share if self.share else math.inf

    def use(self, amount: float) -> None:
        self.tokens -= amount
        self.asked += amount


class Rated:
    """A request that was admitted, and the bytes that it has been counted with."""

    __slots__ = ("_counted", "_flows")

    def __init__(self, flows: Sequence[Flow], size: int) -> None:
        self._flows = flows
        self._counted = size

    def expect(self, size: int) -> None:
        """So many bytes more are about to be sent."""
        self._counted += size
        for flow in self._flows:
            flow.use(size)

    def settle(self, size: int) -> None:
        """The request has ended: it was so many bytes in all, received and sent."""
        self.expect(size - self._counted)


class Rates:
    """All rates as one process holds its requests to them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._flows: dict[tuple[str, bool], Flow] = {}  # By scope, and whether it is of bytes.
        self.processes = 1
        self.refused = 0

    def admit(self, scopes: Sequence[Scope], size: int) -> Rated | float:
        """Count a request, with so many bytes of body, or refuse it: the seconds until another may come."""
        now = self._monotonic()
        requests: list[Flow] = []
        sizes: list[Flow] = []
        for name, limits in scopes:
            if limits.requests_per_s is not None:
                requests.append(self._flow(name, False, limits.requests_per_s, now))
            if limits.bytes_per_s is not None:
                sizes.append(self._flow(name, True, limits.bytes_per_s, now))
        wait_s = max((flow.wait_s(now) for flow in (*requests, *sizes)), default=0.0)
        if wait_s > 0:
            self.refused += 1
            for flow in requests:
                flow.asked += 1
            for flow in sizes:
                flow.asked += size
            return min(wait_s, RETRY_AFTER_MAX_S)
        for flow in requests:
            flow.use(1)
        for flow in sizes:
            flow.use(size)
        return Rated(sizes, size)

    def _flow(self, name: str, of_bytes: bool, limit: int, now: float) -> Flow:
        flow = self._flows.get((name, of_bytes))
        if flow is None:
            if len(self._flows) >= FLOWS_MAX:
                self._forget(now)
            flow = Flow(limit, self.processes, now, whole=not of_bytes)
            self._flows[name, of_bytes] = flow
        flow.obey(limit, self.processes)
        return flow

    def _forget(self, now: float) -> None:
        """Make room: flows that rest first, else the oldest."""
        rest = [name for name, flow in self._flows.items() if now - flow.at > IDLE_S and flow.tokens >= 0]
        for name in rest or list(self._flows)[: FLOWS_MAX // 10]:
            del self._flows[name]

    # What processes say to each other.

    def take_shares(self, others: Sequence[Mapping[str, Sequence[int]]], processes: int) -> None:
        """Take the shares that all demands give, as each process has said them last.

        Args:
            others: what is asked of each other process, as in a DemandRecord.
            processes: how many there are, this one among them.
        """
        self.processes = max(1, processes)
        sums: dict[str, list[int]] = {}
        for demands in others:
            for name, (requests, size) in demands.items():
                there = sums.setdefault(name, [0, 0])
                there[0] += requests
                there[1] += size
        for (name, of_bytes), flow in self._flows.items():
            asked = sums.get(name, (0, 0))
            flow.share = share(
                flow.limit, flow.demand, asked[1] if of_bytes else asked[0] / 1_000, self.processes
            )

    def demands(self, passed_s: float) -> dict[str, list[int]]:
        """What is asked of this process, for its record: the most demanded if there are too many.

        Args:
            passed_s: since the last time.
        """
        found: dict[str, list[int]] = {}
        for (name, of_bytes), flow in self._flows.items():
            if passed_s > 0:
                flow.demand = (flow.demand + max(0.0, flow.asked) / passed_s) / 2
                flow.asked = 0.0
            unit = 1 if of_bytes else 1_000
            size = round(flow.demand * unit)
            if size:
                found.setdefault(name, [0, 0])[of_bytes] = size
        weights = sorted(found, key=lambda name: (-found[name][0], -found[name][1], name))
        room = RECORD_SIZE_MAX
        chosen: dict[str, list[int]] = {}
        for name in weights:
            room -= len(name.encode()) + 24
            if room < 0:
                break
            chosen[name] = found[name]
        for (name, _), flow in self._flows.items():
            if name not in chosen:
                flow.demand = 0.0  # What the others do not know must not count here either.
        return chosen

    def stand_alone(self) -> None:
        """The others may not know any more what is asked here: no share is larger than an equal one."""
        for flow in self._flows.values():
            flow.demand = 0.0
            flow.share = min(flow.share, flow.limit / self.processes)


class Exchange:
    """One process's part in dividing the limits.

    Args:
        process: 16 bytes, this process's id.
    """

    def __init__(self, kv: Kv, rates: Rates, process: bytes, monotonic: Callable[[], float]) -> None:
        self._kv = kv
        self._rates = rates
        self._key = demand_key(process)
        self._monotonic = monotonic
        self._count = 0
        self._said_at = -math.inf
        self._looked_at = self._agreed_at = monotonic()
        self._silent = True
        self._seen: dict[bytes, tuple[bytes, float]] = {}  # Key -> record, and since when it is the same.

    async def turn(self) -> None:
        """Read, take our shares, say what is asked of us. Once every TURN_S. Raises: MetaUnavailable."""
        try:
            await self._turn(self._monotonic())
        except StoreError:
            if self._monotonic() - self._agreed_at > FRESH_S:
                self._rates.stand_alone()
            raise
        self._agreed_at = self._monotonic()

    async def _turn(self, now: float) -> None:
        pairs = await self._kv.scan(b"z", prefix_end(b"z"), PROCESSES_MAX)
        seen = {}
        for key, value in pairs:
            before = self._seen.get(key)
            seen[key] = before if before is not None and before[0] == value else (value, now)
        self._seen = seen
        others = {key: one for key, one in seen.items() if key != self._key and now - one[1] <= ALIVE_S}
        fresh = [value for value, since in others.values() if now - since <= FRESH_S]
        self._rates.take_shares([decode(value, DemandRecord).demands for value in fresh], len(others) + 1)
        demands = self._rates.demands(now - self._looked_at)
        self._looked_at = now
        if not others:
            demands = {}  # Nobody reads them.
        dead = [key for key, (_, since) in seen.items() if now - since > ALIVE_S]
        if not demands and self._silent and now - self._said_at < RENEWAL_S and not dead:
            return
        self._count += 1
        record = DemandRecord(count=self._count, demands=demands)
        dead = [key for key in dead if key != self._key]
        await self._kv.commit(Transaction(put={self._key: encode(record)}, delete=dead))
        self._silent = not demands
        self._said_at = now

    async def keep(self) -> None:
        """Never ends."""
        while True:
            try:
                await self.turn()
            except StoreError as failure:
                log.warning("rates were not divided anew", extra={"failure": str(failure)})
            await asyncio.sleep(TURN_S)

    async def leave(self) -> None:
        """At the process's end."""
        try:
            await self._kv.commit(Transaction(delete=[self._key]))
        except StoreError as failure:
            log.info("this process's demand stays for a while", extra={"failure": str(failure)})


def demand_key(process: bytes) -> bytes:
    return b"z" + process


def retry_after(wait_s: float) -> int:
    """Whole seconds for Retry-After."""
    return max(1, math.ceil(wait_s))
