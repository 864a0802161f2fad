"""A disk's own few threads: blocking calls, their deadlines and their bound.

One pool a disk, so that a hung disk hangs only itself. Threads are daemons: one that hangs in the kernel
must not keep the process from ending. (concurrent.futures joins its threads at exit, and costs twice as
much a call.)

Concurrency: `run` and `start` are called on the event loop; the functions run in the pool's threads; results
come back to the loop in batches (one wake-up for all that end together, or for a group). A call that misses
its deadline raises Overdue at its caller (`start`: is told by `expired`), and its thread is left to finish or
hang; `hung` counts those not yet back.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from objstore.errors import Overloaded

T = TypeVar("T")
log = logging.getLogger(__name__)

TICK_S = 0.01  # How often calls under way are looked at: no outcome waits longer for those of its group.


class Holder(Protocol):
    """What a call uses and must not lose meanwhile: an open file. Called on the loop only."""

    def acquire(self) -> None: ...
    def release(self) -> None: ...


class Overdue(Exception):
    """The call did not end within its limit; its thread may still be in the kernel."""


class _Job:
    __slots__ = (
        "arguments",
        "ends",
        "failure",
        "function",
        "future",
        "holder",
        "overdue",
        "pool",
        "result",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        future: "asyncio.Future[Any] | None",
        holder: Holder | None,
        pool: "DiskThreads",
        ends: "_Ends | None",
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.future = future
        self.holder = holder
        self.pool = pool
        self.ends = ends  # None: posted, nobody waits.
        self.result: Any = None
        self.failure: BaseException | None = None
        self.overdue = False

    def work(self) -> None:
        try:
            self.result = self.function(*self.arguments)
        except BaseException as failure:
            self.failure = failure
        if self.ends is not None:
            self.ends.add(self)


class Call:
    """A call whose outcome its maker takes on the loop, without a future or a timer of its own.

    Calls with one key that are started in one turn of the loop are a group: the loop is woken when the last
    of them has ended, since their maker waits for all. While one hangs, a tick brings the others' outcomes.
    """

    __slots__ = ("act", "arguments", "deadline", "ends", "failure", "group", "late", "pool", "result")

    def __init__(self, act: Callable[..., object], *arguments: Any) -> None:
        self.act = act  # Blocks; in a thread of the disk.
        self.arguments = arguments
        self.failure: BaseException | None = None  # What `act` raised.
        self.result: Any  # What it returned, if it did not.
        self.late = False
        self.deadline = 0.0  # By the loop's clock.
        self.pool: DiskThreads
        self.ends: _Ends
        self.group: _Group

    def ended(self) -> None:
        """On the loop, when the call has truly ended, also after `expired`."""
        raise NotImplementedError

    def expired(self) -> None:
        """On the loop, when the deadline has passed."""
        raise NotImplementedError

    def work(self) -> None:
        """In a thread."""
        try:
            if self.late:
                raise TimeoutError("given up before it began")
            self.result = self.act(*self.arguments)
        except BaseException as failure:
            self.failure = failure
        group = self.group
        # The last to append sees all the others' (both are one step under the interpreter's lock); two that
        # both take themselves for the last cost an empty wake-up.
        group.ended.append(self)
        if len(group.ended) >= group.size:
            self.ends.add_group(group)


class _Group:
    __slots__ = ("delivered", "ended", "size")

    def __init__(self) -> None:
        self.size = 0  # Calls started. Changed on the loop.
        self.ended: list[Call] = []  # Grows only. From threads.
        self.delivered = 0  # Of those. Changed on the loop.


class _Ends:
    """Calls that have ended, on their way to one event loop: from all pools, with as few wake-ups as can be.

    A wake-up is a write to a pipe and a turn of the loop. Appends to the k+m disks of a stripe tend to end
    together, since one journal commit of the file system ends them all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # Weak: this is kept in a dictionary under the loop.
        self._jobs: deque[_Job] = deque()
        self._groups: deque[_Group] = deque()  # That have ended.
        self._calls: set[Call] = set()  # Under way.
        self._turn: dict[object, _Group] = {}  # Of this turn of the loop, by key.
        self._ticking = False
        self._waking = False  # A wake-up is on its way.

    def add(self, job: _Job) -> None:
        """From a thread."""
        self._jobs.append(job)
        self._wake()

    def add_group(self, group: _Group) -> None:
        """From a thread."""
        self._groups.append(group)
        self._wake()

    def _wake(self) -> None:
        # Seen as True: the loop has yet to empty the deque, and will find this job there. Two threads that
        # both see False cost a second, empty wake-up, no more.
        if not self._waking:
            self._waking = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                pass  # The loop is closed: nobody waits any more.

    def _deliver(self) -> None:
        self._waking = False  # First: a job that ends from here on wakes the loop again.
        jobs = self._jobs
        while jobs:
            job = jobs.popleft()
            pool = job.pool
            pool.busy -= 1
            if job.overdue:
                pool.hung -= 1
            if job.holder is not None:
                job.holder.release()
            future = job.future
            if future is None or future.done():
                continue
            if job.failure is not None:
                future.set_exception(job.failure)
            else:
                future.set_result(job.result)
        while self._groups:
            self._deliver_group(self._groups.popleft())

    def _deliver_group(self, group: _Group) -> None:
        while group.delivered < len(group.ended):
            call = group.ended[group.delivered]
            group.delivered += 1
            self._calls.discard(call)
            del call.group  # The group holds the call, and so its buffers.
            call.arguments = ()
            call.pool.busy -= 1
            if call.late:
                call.pool.hung -= 1
            try:
                call.ended()
            except Exception:
                log.exception("a bug in what follows a call")

    def begin(self, call: Call, limit_s: float, key: object) -> None:
        loop = self._loop()
        assert loop is not None
        turn = self._turn
        group = turn.get(key)
        if group is None:
            if not turn:
                loop.call_soon(turn.clear)
            group = turn[key] = _Group()
        group.size += 1
        call.group = group
        call.ends = self
        call.deadline = loop.time() + limit_s
        self._calls.add(call)
        if not self._ticking:
            self._ticking = True
            loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        """One timer for all calls: bring what has ended beside a call that hangs, and look at deadlines."""
        loop = self._loop()
        if loop is None or not self._calls:
            self._ticking = False
            return
        loop.call_later(TICK_S, self._tick)
        for group in {call.group for call in self._calls}:
            self._deliver_group(group)
        now = loop.time()
        for call in [call for call in self._calls if call.deadline <= now and not call.late]:
            call.late = True
            call.pool.hung += 1
            call.expired()


_ends: WeakKeyDictionary[asyncio.AbstractEventLoop, _Ends] = WeakKeyDictionary()


class DiskThreads:
    def __init__(self, name: str, *, threads_max: int, queue_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._queue_max = queue_max
        self._queue: SimpleQueue[_Job | Call | None] = SimpleQueue()
        self._threads = 0
        self.busy = 0  # Jobs queued or running, hung ones included.
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: _Ends | None = None
        self.hung = 0  # Overdue and not yet back.

    @property
    def is_full(self) -> bool:
        return self.busy >= self._queue_max

    async def run(
        self, limit_s: float, holder: Holder | None, function: Callable[..., T], *arguments: Any
    ) -> T:
        """Run the function in a thread of this disk.

        Args:
            holder: told when the function has really ended, also when its caller was cancelled or overdue:
                until then its file must stay open.

        Raises: Overdue after `limit_s`, the time in the queue included; Overloaded if the queue is full;
            whatever the function raises. A cancelled caller leaves the function running.
        """
        assert not self._closed
        if self.is_full:
            raise Overloaded(f"{self.busy} calls wait for {self._name}")
        loop = asyncio.get_running_loop()
        ends = self._ends_of(loop)
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(function, arguments, future, holder, self, ends)
        self.busy += 1
        if holder is not None:
            holder.acquire()
        self._put(job)
        timer = loop.call_later(limit_s, self._expire, job)
        try:
            return await future
        finally:
            timer.cancel()

    def start(self, call: Call, limit_s: float, key: object) -> None:
        """Begin a call of the group `key`. See Call.

        Raises: Overloaded if the queue is full.
        """
        assert not self._closed
        if self.is_full:
            raise Overloaded(f"{self.busy} calls wait for {self._name}")
        call.pool = self
        self._ends_of(asyncio.get_running_loop()).begin(call, limit_s, key)
        self.busy += 1
        self._put(call)

    def _ends_of(self, loop: asyncio.AbstractEventLoop) -> _Ends:
        ends = self._ends
        if ends is None or loop is not self._loop:
            self._loop = loop
            ends = self._ends = _ends.setdefault(loop, _Ends(loop))
        return ends

    def _put(self, job: "_Job | Call") -> None:
        if self._threads < self._threads_max and self.busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._queue.put(job)

    def post(self, function: Callable[..., object], *arguments: Any) -> None:
        """Run the function in a thread some time; nobody waits, and its failure is dropped.

        For closing descriptors: not bounded by the queue, since each was opened under a bound.
        """
        if self._closed or not self._threads:
            try:
                function(*arguments)
            except OSError:
                pass
            return
        self._queue.put(_Job(function, arguments, None, None, self, None))

    def close(self) -> None:
        """End the threads when what is queued is done. Does not wait."""
        if not self._closed:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)

    def _expire(self, job: _Job) -> None:
        if job.future is not None and not job.future.done():
            job.overdue = True
            self.hung += 1
            job.future.set_exception(Overdue())

    def _work(self) -> None:
        get = self._queue.get
        while (job := get()) is not None:
            job.work()
            del job
