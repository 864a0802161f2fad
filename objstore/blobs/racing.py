"""Reads that have to wait: measured, and run against others when they come late.

What the page cache has is no business of this module. A read that goes to a thread or over the network is
timed (node/slowness.py), and if it has not come after about the p95 of all disks, the same bytes are asked of
others: the first whole answer wins. A budget of one in twenty keeps a store that is slow everywhere from
asking for everything twice.

Who lost goes on for a moment, unless there are too many: how late it was is how a slow disk is found out.
Then it is cancelled, and so is everything when the caller is. A cancelled request to a node costs its
connection nothing (node/pool.py), a cancelled call of a thread ends by itself (node/threads.py), and the
memory of either is used again only when nobody writes into it any more.

Concurrency: one event loop. State changes between awaits only.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from objstore.clock import Clock
from objstore.errors import Corrupt, Unavailable
from objstore.node.disk import Disk
from objstore.node.fragments import RangeRead
from objstore.node.slowness import Change, HedgeBudget, Slowness

T = TypeVar("T")

UNREADABLE: Final = (Corrupt, Unavailable, OSError)  # What a fragment's read may raise; the rest is a bug.
STRAGGLERS_MAX: Final = 16  # Reads that lost and go on for a moment: each holds 1 MiB at most.
PROBE_SIZE: Final = 64 * 1024  # Bytes.
PROBES_AT_ONCE: Final = 16


class HedgeCounters(msgspec.Struct):
    """For the metrics. A hedge is a read asked of others because a disk was late."""

    won: int = 0  # It was the quicker one.
    lost: int = 0
    failed: int = 0  # It came to nothing.
    withheld: int = 0  # Late reads that the budget had nothing left for.


class Racing:
    """All reads of one process that wait.

    Args:
        deadline_s: of one disk read; past it the fragment counts as missing.
        chance: for probes: a number in [0, 1).
    """

    def __init__(
        self,
        slowness: Slowness,
        clock: Clock,
        *,
        deadline_s: float,
        budget: HedgeBudget | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.counters = HedgeCounters()
        self._slowness = slowness
        self._clock = clock
        self._deadline_s = deadline_s
        self.budget = budget or HedgeBudget()  # Earned by whoever counts reads that wait.
        self._chance = chance
        self._stragglers: set[asyncio.Task[Any]] = set()
        self._places: dict[int, tuple[int, int, int]] = {}  # By disk: volume, index, position last wanted.

    async def timed(self, disk: Disk, volume: int, index: int, plan: RangeRead, size: int) -> int:
        """Read as planned; returns how many bytes came.

        Args:
            size: bytes wanted.

        Raises: Unavailable past the deadline; what the disk raises.
        """
        self._places[disk.number] = (volume, index, plan.position)
        ended = False
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._deadline_s):
                count = await disk.read(volume, index, plan.position, plan.buffers)
            ended = True
            return count
        except TimeoutError:
            raise Unavailable("a disk read is overdue") from None
        finally:
            self._slowness.took(disk.number, size, self._clock.monotonic() - began, ended=ended)

    async def hedged(
        self,
        first: Coroutine[Any, Any, T],
        second: Callable[[], Coroutine[Any, Any, T]],
        size: int,
        failed_late: Callable[[Exception], None],
    ) -> T:
        """The outcome of `first`; of `second`, begun when the first is late, if that has a result before.

        Args:
            size: bytes that the first reads.
            failed_late: told how the first failed, if that was after it had lost.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(first)
        rival: asyncio.Task[T] | None = None
        try:
            if await _ends_within(task, self._slowness.patience(size)):
                return task.result()
            if not self.budget.take():
                self.counters.withheld += 1
                return await task
            rival = loop.create_task(second())
            await asyncio.wait((task, rival), return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and isinstance(rival.exception(), UNREADABLE):
                await asyncio.wait((task,))
        except asyncio.CancelledError:
            _cancel(task, rival)
            raise
        assert rival is not None
        if _has_result(task):
            self.counters.failed += rival.done()
            self.counters.lost += not rival.done()
            _cancel(rival)
            return task.result()
        if _has_result(rival):
            self.counters.won += 1
            self._leave(task, size, failed_late)
            return rival.result()
        self.counters.failed += 1
        _cancel(rival)
        if task.done():
            return task.result()  # Its failure: whoever asked finds out what to do.
        task.cancel()
        return rival.result()  # A bug's exception.

    async def some(
        self,
        needed: int,
        reads: Sequence[tuple[int, Callable[[], Coroutine[Any, Any, T]]]],
        size: int,
        *,
        at_once: int | None = None,
    ) -> tuple[dict[int, T], list[tuple[int, Exception]]]:
        """Results of as many reads as are needed, by their index, and which failed on the way.

        Asked in order: as many at once as are still needed, another one for each that fails, and where some
        are late, as many more. Fewer results than needed: there are no more.

        Args:
            size: bytes that each of them reads.
            at_once: how many may be under way, but for those asked because some are late; None: all.
        """
        loop = asyncio.get_running_loop()
        at_once = needed if at_once is None else at_once
        found: dict[int, T] = {}
        failed: list[tuple[int, Exception]] = []
        left = deque(reads)
        asked: dict[asyncio.Task[T], int] = {}
        spare = 0  # Asked for those that are late.
        patience: float | None = self._slowness.patience(size)
        try:
            while len(found) < needed:
                while left and len(asked) < min(needed - len(found), at_once) + spare:
                    index, read = left.popleft()
                    asked[loop.create_task(read())] = index
                if not asked:
                    break
                when = asyncio.ALL_COMPLETED if patience is not None else asyncio.FIRST_COMPLETED
                done, late = await asyncio.wait(asked, timeout=patience, return_when=when)
                for task in sorted(done, key=lambda task: asked[task]):
                    index = asked.pop(task)
                    failure = task.exception()
                    if failure is None:
                        found[index] = task.result()
                    elif isinstance(failure, UNREADABLE):
                        failed.append((index, failure))
                    else:
                        raise failure
                if late and patience is not None and len(found) < needed:
                    patience = None
                    spare = self._spare_for(min(len(late), len(left)))
        except BaseException:
            _cancel(*asked)
            raise
        won = min(spare, len(asked)) if len(found) == needed else 0
        self.counters.won += won
        self.counters.lost += spare - won
        for task in asked:
            self._leave(task, size)
        return found, failed

    def _spare_for(self, late: int) -> int:
        granted = 0
        while granted < late and self.budget.take():
            granted += 1
        self.counters.withheld += late - granted
        return granted

    async def probe(self, disks: Mapping[int, Disk]) -> list[Change]:
        """Read a block of each ejected disk, from somewhere in a file that reads lately wanted of it.

        Nothing is verified: only the time counts. Returns who is back.
        """
        changes: list[Change] = []
        probes: list[Coroutine[Any, Any, list[Change]]] = []
        for number in list(self._slowness.ejected):
            disk = disks.get(number)
            if disk is None or number not in self._places:
                changes += self._slowness.forgive(number)
            elif len(probes) < PROBES_AT_ONCE:
                probes.append(self._probe(disk))
        for found in await asyncio.gather(*probes):
            changes += found
        return changes

    async def _probe(self, disk: Disk) -> list[Change]:
        volume, index, end = self._places[disk.number]
        position = int(self._chance() * end) & ~4095
        seconds = None
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._deadline_s):
                if await disk.read(volume, index, position, [memoryview(bytearray(PROBE_SIZE))]):
                    seconds = self._clock.monotonic() - began
        except FileNotFoundError:
            del self._places[disk.number]  # Moved or removed: another read names another one.
            return []
        except (TimeoutError, *UNREADABLE):
            pass
        return self._slowness.probed(disk.number, PROBE_SIZE, seconds)

    def _leave(
        self, task: "asyncio.Task[Any]", size: int, failed_late: Callable[[Exception], None] = lambda _: None
    ) -> None:
        """A read that lost: let it show how late it is, and no longer."""

        def end(task: "asyncio.Task[Any]") -> None:
            self._stragglers.discard(task)
            failure = None if task.cancelled() else task.exception()
            if isinstance(failure, UNREADABLE):
                failed_late(failure)

        if not task.done() and len(self._stragglers) >= STRAGGLERS_MAX:
            task.cancel()
        self._stragglers.add(task)
        task.add_done_callback(end)
        asyncio.get_running_loop().call_later(self._slowness.limit(size), task.cancel)


async def _ends_within(task: "asyncio.Task[Any]", seconds: float) -> bool:
    """Wait for it, so long at the most. It goes on, also when we are cancelled.

    asyncio.wait does the same at twice the cost; this is on the way of every read over the network.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    timer = loop.call_later(seconds, wake)
    try:
        await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(wake)
    return task.done()


def _has_result(task: "asyncio.Task[Any]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _cancel(*tasks: "asyncio.Task[Any] | None") -> None:
    """Nobody wants their outcome any more."""
    for task in tasks:
        if task is None:
            continue
        if task.done():
            _look(task)
        else:
            task.cancel()
            task.add_done_callback(_look)


def _look(task: "asyncio.Task[Any]") -> None:
    """An exception that nobody has looked at would be logged as a bug."""
    if not task.cancelled():
        task.exception()
