"""When whoever is refused for a rate or a share is told so.

Refusing costs a process about as much as serving a small request, and a client that is refused asks again, at
once if it likes. So the answers of one tenant's refusals leave one after the other at a pace that costs the
process next to nothing, however many connections they come on; a tenant that is refused now and then hardly
waits.

Whoever waits here has given its place among the requests up (limits.py) and keeps nobody out. What has come
of its body is gone and no more of it is read (server.py), so what it still holds is its connection; that
gives way to a new one when there are too many. So as many may wait as there are connections: no tenant's
refusals take the pace off another's, or off its own.

Concurrency: one Refusals a process, on its event loop.
"""

import asyncio
from typing import Final

LEAST_S: Final = 0.05  # Below 100 ms with all that is added to it: nobody notices one.
MOST_S: Final = 2.0  # Clients wait for an answer for ten seconds and more.
# A second, of one tenant in one process: one part in a hundred of a core. Past fifty connections that ask
# again at once each waits for `MOST_S`.
PACE: Final = 25
TENANTS_MAX: Final = 1_000  # Of which it is known when their last one leaves: about 100 KB.


class Refusals:
    """
    Args:
        waiting_max: answers that are put off at the same time: as many as there can be connections.
    """

    def __init__(self, waiting_max: int, *, least_s: float = LEAST_S, most_s: float = MOST_S) -> None:
        self._least_s = least_s
        self._most_s = most_s
        self._last: dict[str, float] = {}  # When the last answer of each tenant leaves.
        self._waiting: set[asyncio.Future[None]] = set()
        self._waiting_max = waiting_max
        self._ended = False

    @property
    def waiting(self) -> int:
        """Answers that are put off just now."""
        return len(self._waiting)

    async def wait(self, leaves: "asyncio.Future[None]", tenant: str, now: float, chance: float) -> None:
        """Until this tenant's next answer leaves (`wait_s`): at once if too many wait.

        Args:
            leaves: whoever lets it go (`let_go`) ends the wait.
        """
        if self.waiting >= self._waiting_max or self._ended:
            return
        timer = leaves.get_loop().call_later(self.wait_s(tenant, now, chance), let_go, leaves)
        self._waiting.add(leaves)
        try:
            await leaves
        finally:
            timer.cancel()
            self._waiting.remove(leaves)

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
