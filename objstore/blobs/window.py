"""How many reads of background work may be under way at once: as many as do not make each other wait. Pure.

Repair reads k fragments for each one that it rebuilds. All at once is the quickest, and whoever reads for a
client stands behind all of them: at the nodes, on the network, for the processors. How long, nobody has to
tell us: our own reads stand in the same queues. So now and then they are made one after another, which shows
what a read takes with nobody in its way but clients; then twice as many at a time, as long as the median of
them takes at most so many times that, and half as many when it takes longer. Where there is room (idle nodes,
a fast network) all go at once; where there is none, one goes at a time, and that is the floor: work goes on.

It is what LEDBAT does for transfers in the background (RFC 6817): the queue that we cause is measured against
the least one, and kept short; and as BBR does, the yardstick is measured anew from time to time, since
clients come and go.

May not know: what is read, clocks. Concurrency: one user.
"""

from statistics import median_low
from typing import Final

TOLERATED: Final = 1.25  # Times what a read takes alone. Clients wait that much longer at the most, or so.
ROUNDS_HELD: Final = 8  # After the window was halved, before a larger one is tried again.
ROUNDS_MEASURED: Final = 64  # Between two measurements of what a read takes alone: their cost is 1 to 2%.


class Window:
    """Of one task that reads in rounds of up to `most` reads each: k fragments of a stripe.

    Args:
        most: reads of a round, all of which may be under way at once.
        tolerated: how many times as long as alone a read may take; infinite: the window is `most` at once.
    """

    def __init__(self, most: int, tolerated: float = TOLERATED) -> None:
        assert most >= 1
        assert tolerated >= 1
        self._most = most
        self._tolerated = tolerated
        self._wanted = most if tolerated == float("inf") else 1
        self._alone_s = 0.0  # What a read takes when it is the only one; 0: not known.
        self._rounds = 0  # Since that was measured.
        self._held = 0  # Rounds to go before more are tried.
        self._times: list[float] = []  # Seconds, of this round's reads that waited.
        self.size = self._wanted  # Reads that may be under way at once, in this round.

    def took(self, seconds: float) -> None:
        """A read of this round had to wait for its disk, so long."""
        self._times.append(seconds)

    def next_round(self) -> None:
        """Look at the round that has ended, and decide on the next one."""
        if self._tolerated == float("inf"):
            return
        times, self._times = self._times, []
        self._rounds += 1
        self._held = max(0, self._held - 1)
        if times:  # Otherwise the page cache had them all: nothing is known, and nobody waited.
            self._judge(median_low(times))
        if self._rounds >= ROUNDS_MEASURED:
            self._alone_s = 0.0
        self.size = self._wanted if self._alone_s else 1

    def _judge(self, took_s: float) -> None:
        if self.size == 1:
            self._alone_s, self._rounds = took_s, 0
        elif took_s > self._tolerated * self._alone_s:
            self._wanted = max(1, self.size // 2)
            self._held = ROUNDS_HELD
            return
        if not self._held and self.size == self._wanted:
            self._wanted = min(self._most, 2 * self._wanted)
