"""A bound on the bytes that many tasks hold together: granted in the order of asking, given back when done.

The writer's stripes and the reader's pieces each have one. It counts; it knows nothing of buffers.

Concurrency: one event loop; a grant is counted before the task that asked for it runs again, and a task that
is cancelled in between gives it back here. So `used` is always what tasks hold, and nothing leaks.
"""

import asyncio
from collections import deque
from typing import Final

from objstore.errors import Overloaded

WAITING_MAX: Final = 4_096  # Tasks that wait; as many as a worker has connections. Each holds a request.


class MemoryBudget:
    """Bytes, granted first come, first served.

    Invariants:
        used is the sum of what was granted and not given back
        used <= limit, but for a grant larger than the limit, which is made when nothing else is held
        nobody is granted anything while somebody who asked earlier waits

    Args:
        limit: bytes.
        wait_s: the longest that anyone waits.
        purpose: what the memory is for, in the words of the refusal: "a read".
    """

    def __init__(self, limit: int, *, wait_s: float, purpose: str, waiting_max: int = WAITING_MAX) -> None:
        assert limit > 0
        self.limit = limit
        self.used = 0
        self._wait_s = wait_s
        self._purpose = purpose
        self._waiting_max = waiting_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Tasks that wait for a grant."""
        return len(self._waiting)

    def try_take(self, size: int, *, spare: int = 0) -> bool:
        """A grant at once, or none: not over those who wait, and not of the last `spare` bytes."""
        assert size >= 0
        if self._waiting or self.used + size > self.limit - spare:
            return False
        self.used += size
        return True

    async def take(self, size: int) -> None:
        """A grant, in its turn. Give it back.

        Raises: Overloaded (nothing within `wait_s`, or too many wait already); then nothing is held.
        """
        if self.try_take(size):
            return
        if len(self._waiting) >= self._waiting_max:
            raise Overloaded(f"too many wait for the memory of {self._purpose}")
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, granted)
        self._waiting.append(entry)
        self._serve()  # One larger than the limit is served at once when nothing is held.
        try:
            async with asyncio.timeout(self._wait_s):
                await granted
        except BaseException as failure:
            if granted.done() and not granted.cancelled():
                self.used -= size  # It was granted in the very turn in which the wait ended.
            else:
                self._waiting.remove(entry)
            self._serve()  # Whoever stood behind it may fit.
            if isinstance(failure, TimeoutError):
                raise Overloaded(f"no memory for {self._purpose} within the limit") from None
            raise

    def give_back(self, size: int) -> None:
        assert 0 <= size <= self.used
        self.used -= size
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            size, granted = self._waiting[0]
            if self.used and self.used + size > self.limit:
                return
            if granted.done():
                return  # Cancelled; its task takes it out of the queue, and serves who is behind it.
            self._waiting.popleft()
            self.used += size
            granted.set_result(None)
