"""When whoever is refused for a rate or a share is told so.

Refusing costs a process about as much as serving a small request, and a client that is refused asks again, at
once if it likes. So the answers of one tenant's refusals leave one after the other at a pace that costs the
process next to nothing, however many connections they come on; a tenant that is refused now and then hardly
waits.

Whoever waits here has given its place among the requests up (limits.py) and keeps nobody out. What it still
holds, its connection and what has come of its body, has a bound: past it the answer is not put off. Its
connection gives way to a new one when there are too many (server.py).

Concurrency: one Refusals a process, on its event loop.
"""

import asyncio
from typing import Final

LEAST_S: Final = 0.05  # Below 100 ms with all that is added to it: nobody notices one.
MOST_S: Final = 2.0  # Clients wait for an answer for ten seconds and more.
# A second, of one tenant in one process: one part in a hundred of a core. Past fifty connections that ask
# again at once each waits for `MOST_S`.
PACE: Final = 25
WAITING_MAX: Final = 4_096  # As many as a worker has connections.
BODY_PART: Final = 8  # One part in so many of the memory for bodies.
TENANTS_MAX: Final = 1_000  # Of which it is known when their last one leaves: about 100 KB.


class Refusals:
    """
    Args:
        body_bytes: memory that bodies of one tenant in flight may take; those that wait have a part of it.
    """

    def __init__(self, body_bytes: int, *, least_s: float = LEAST_S, most_s: float = MOST_S) -> None:
        self._least_s = least_s
        self._most_s = most_s
        self._last: dict[str, float] = {}  # When the last answer of each tenant leaves.
        self._waiting: set[asyncio.Future[None]] = set()
        self._body_bytes = 0  # Of those that wait.
        self._body_bytes_max = body_bytes // BODY_PART
        self._ended = False

    @property
    def waiting(self) -> int:
        """Answers that are put off just now."""
        return len(self._waiting)

    async def wait(
        self, leaves: "asyncio.Future[None]", tenant: str, held: int, now: float, chance: float
    ) -> None:
        """Until this tenant's next answer leaves (`wait_s`): at once if what is held by waiting is too much.

        Args:
            leaves: whoever lets it go (`let_go`) ends the wait.
            held: bytes that the request's body can hold in memory meanwhile.
        """
        full = self.waiting >= WAITING_MAX or self._body_bytes + held > self._body_bytes_max
        if full or self._ended:
            return
        timer = leaves.get_loop().call_later(self.wait_s(tenant, now, chance), let_go, leaves)
        self._waiting.add(leaves)
        self._body_bytes += held
        try:
            await leaves
        finally:
            timer.cancel()
            self._waiting.remove(leaves)
            self._body_bytes -= held

    def end(self) -> None:
        """The process is about to stop: all answers leave now."""
        self._ended = True
        for leaves in self._waiting:
            let_go(leaves)

    def wait_s(self, tenant: str, now: float, chance: float) -> float:
        """Seconds until this tenant's next answer leaves.

        Args:
            now: of a clock that never steps.
            chance: between 0 and 1: not all at the same moment.
        """
        least_s = self._least_s * (0.5 + chance)
        if tenant not in self._last and len(self._last) >= TENANTS_MAX:
            self._forget(now)
        leaves = max(now + least_s, self._last.get(tenant, 0.0) + 1 / PACE)
        leaves = min(leaves, now + self._most_s)
        self._last[tenant] = leaves
        return leaves - now

    def _forget(self, now: float) -> None:
        """Make room: those of whom nobody waits, else the oldest."""
        over = [tenant for tenant, leaves in self._last.items() if leaves <= now]
        for tenant in over or list(self._last)[: TENANTS_MAX // 10]:
            del self._last[tenant]


def let_go(leaves: "asyncio.Future[None]") -> None:
    """The answer need not wait any longer."""
    if not leaves.done():
        leaves.set_result(None)
