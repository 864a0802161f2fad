"""What every background service is given, in one value; the pace at which it may work; how it names many."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from objstore.blobs.placement import Chance
from objstore.blobs.reader import BlobReader
from objstore.blobs.writer import BlobWriter, CodecFor
from objstore.clock import Clock, SystemClock
from objstore.meta.kv import Kv
from objstore.node.disk import Disk
from objstore.node.fragments import Seal
from objstore.objects.ledger import MetaLedger
from objstore.upkeep.claims import Claim, ClaimedKv

log = logging.getLogger(__name__)

BURST_S = 0.25  # Seconds of work that may be done at once: longer, and clients feel it.
NAMED_MAX: Final = 20  # Volumes, or disks, in one sentence.


def named(names: Iterable[object], count: int, most: int = NAMED_MAX) -> str:
    """The first `most` of `count` names for a finding or an alarm, and how many there are beside.

    Args:
        names: all of them, or the first.
    """
    shown = [str(name) for name in islice(names, most)]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return ", ".join(shown) + more


class Pace:
    """At most so many bytes a second, over all services that share it. Not for several threads.

    Args:
        within: a pace that is kept to as well: this one's bytes count there too.
    """

    def __init__(
        self,
        bytes_per_second: float,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        *,
        within: "Pace | None" = None,
    ) -> None:
        assert bytes_per_second > 0
        self.bytes_per_second = bytes_per_second
        self.spent = 0  # Bytes, since the start.
        self._clock = clock
        self._sleep = sleep
        self._within = within
        self._due = clock.monotonic()  # When all that was spent is paid for.

    async def spend(self, size: int) -> None:
        """Wait until `size` more bytes are due."""
        if self._within is not None:
            await self._within.spend(size)
        self.spent += size
        now = self._clock.monotonic()
        self._due = max(self._due, now - BURST_S) + size / self.bytes_per_second
        if self._due > now:
            await self._sleep(self._due - now)

    def slower(self, bytes_per_second: float) -> "Pace":
        """A pace of its own within this one."""
        return Pace(bytes_per_second, self._clock, self._sleep, within=self)


class Alarms:
    """What an operator must see: by name, with words. Raised until cleared; never only logged."""

    def __init__(self) -> None:
        self.raised: dict[str, str] = {}

    def set(self, name: str, words: str) -> None:
        if self.raised.get(name) != words:
            log.error("alarm %s: %s", name, words)
        self.raised[name] = words

    def clear(self, name: str) -> None:
        if self.raised.pop(name, None) is not None:
            log.info("alarm %s is over", name)


def no_crash(name: str) -> None:
    """The crash point of production: nothing happens."""


async def no_fence() -> None:
    """Of work under no claim: an operator's own, at a store that does not serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`fence` is awaited right before a file is put, cut, marked or removed; it raises Deposed if another
    process has taken the claim under which the work began. Commits through `kv` and `ledger` are fenced by
    themselves."""

    kv: Kv
    ledger: MetaLedger
    disks: Mapping[int, Disk]
    writer: BlobWriter  # The upkeep's own: its volumes are no worker's.
    reader: BlobReader
    seal: Seal
    codec: CodecFor
    k: int  # The policy's code, to which compaction brings narrower volumes back.
    m: int
    pace: Pace
    chance: Chance = random.random  # For placement.
    clock: Clock = field(default_factory=SystemClock)
    alarms: Alarms = field(default_factory=Alarms)
    crash_point: Callable[[str], None] = no_crash
    fence: Callable[[], Awaitable[None]] = no_fence

    def under(self, claim: Claim) -> "Context":
        """The same for work under a claim. The writer and its volumes stay this process's own."""
        kv = ClaimedKv(self.kv, claim)
        return replace(self, kv=kv, ledger=self.ledger.over(kv), fence=claim.confirm)
