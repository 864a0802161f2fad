"""A disk's own few threads: blocking calls, their deadlines and their bound.

One pool a disk, so that a hung disk hangs only itself. Threads are daemons: one that hangs in the kernel
must not keep the process from ending. (concurrent.futures joins its threads at exit, and costs twice as
much a call.)

Concurrency: `run` is called on the event loop; the functions run in the pool's threads; results come back
to the loop in batches (one wake-up for all that end together). A call that misses its deadline raises
Overdue at its caller, and its thread is left to finish or hang; `hung` counts those not yet back.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from objstore.errors import Overloaded

T = TypeVar("T")


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


class _Ends:
    """Calls that have ended, on their way to one event loop: from all pools, with as few wake-ups as can be.

    A wake-up is a write to a pipe and a turn of the loop. Appends to the k+m disks of a stripe tend to end
    together, since one journal commit of the file system ends them all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # Weak: this is kept in a dictionary under the loop.
        self._jobs: deque[_Job] = deque()
        self._waking = False  # A wake-up is on its way.

    def add(self, job: _Job) -> None:
        """From a thread."""
        self._jobs.append(job)
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


_ends: WeakKeyDictionary[asyncio.AbstractEventLoop, _Ends] = WeakKeyDictionary()


class DiskThreads:
    def __init__(self, name: str, *, threads_max: int, queue_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._queue_max = queue_max
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self.busy = 0  # Jobs queued or running, hung ones included.
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: _Ends | None = None
        self.hung = 0  # Overdue and not yet back.

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
        if self.busy >= self._queue_max:
            raise Overloaded(f"{self.busy} calls wait for {self._name}")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._ends = _ends.setdefault(loop, _Ends(loop))
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(function, arguments, future, holder, self, self._ends)
        self.busy += 1
        if holder is not None:
            holder.acquire()
        if self._threads < self._threads_max and self.busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._queue.put(job)
        timer = loop.call_later(limit_s, self._expire, job)
        try:
            return await future
        finally:
            timer.cancel()

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
            try:
                job.result = job.function(*job.arguments)
            except BaseException as failure:
                job.failure = failure
            if job.ends is not None:
                job.ends.add(job)
            del job
