"""A disk's own few threads: blocking calls, their deadlines and their bound.

One pool a disk, so that a hung disk hangs only itself. Threads are daemons: one that hangs in the kernel
must not keep the process from ending. (concurrent.futures joins its threads at exit, and costs twice as
much a call.)

Concurrency: `run` is called on the event loop; the functions run in the pool's threads; results come back to
the loop in batches (one wake-up for all that end together). A call that misses its deadline raises
Overdue at its caller, and its thread is left to finish or hang; `hung` counts those not yet back.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from objstore.errors import Overloaded

T = TypeVar("T")


class Holder(Protocol):
    """What a call uses and must not lose meanwhile: an open file. Called on the loop only."""

    def acquire(self) -> None: ...
    def release(self) -> None: ...


class Overdue(Exception):
    """The call did not end within its limit; its thread may still be in the kernel."""


class _Job:
    __slots__ = ("arguments", "failure", "function", "future", "holder", "loop", "overdue", "result")

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        future: "asyncio.Future[Any] | None",
        loop: asyncio.AbstractEventLoop | None,
        holder: Holder | None,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.future = future
        self.loop = loop
        self.holder = holder
        self.result: Any = None
        self.failure: BaseException | None = None
        self.overdue = False


class DiskThreads:
    def __init__(self, name: str, *, threads_max: int, queue_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._queue_max = queue_max
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0  # Jobs queued or running, hung ones included.
        self._done: deque[_Job] = deque()
        self._waking = False  # A wake-up is on its way to the loop.
        self._closed = False
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
        if self._busy >= self._queue_max:
            raise Overloaded(f"{self._busy} calls wait for {self._name}")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(function, arguments, future, loop, holder)
        self._busy += 1
        if holder is not None:
            holder.acquire()
        if self._threads < self._threads_max and self._busy > self._threads:
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
        self._queue.put(_Job(function, arguments, None, None, None))

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
            if job.loop is None:
                continue  # Posted: nobody waits.
            self._done.append(job)
            # Seen as True: the loop has yet to empty the deque, and will find this job there. Two threads
            # that both see False cost a second, empty wake-up, no more.
            if not self._waking:
                self._waking = True
                try:
                    job.loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # The loop is closed: nobody waits any more, and the process ends.
            del job

    def _deliver(self) -> None:
        self._waking = False  # First: a job that ends from here on wakes the loop again.
        done = self._done
        while done:
            job = done.popleft()
            self._busy -= 1
            if job.overdue:
                self.hung -= 1
            if job.holder is not None:
                job.holder.release()
            future = job.future
            if future is None or future.done():
                continue
            if job.failure is not None:
                future.set_exception(job.failure)
            else:
                future.set_result(job.result)
