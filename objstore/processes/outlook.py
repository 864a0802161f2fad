"""What the store can do just now: which volumes cannot be read, and what keeps writes from being taken.

Repair waits before it takes a disk that is away for lost; clients do not wait, and whoever asks how the store
is doing does not either. So here what is away counts from the moment at which this process knows of it.

What is decided is decided in plain functions; `Outlooks` gathers what they need.

Concurrency: one event loop; one look at a time, which all who ask meanwhile share.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from objstore.blobs.absence import Shortage, shortages
from objstore.clock import Clock
from objstore.meta.journal import readable
from objstore.objects.ledger import GIVEN_UP
from objstore.processes.parts import Parts
from objstore.upkeep.context import NAMED_MAX, Context, named
from objstore.upkeep.survey import all_intents

REST: Final = 20  # A look is followed by a rest of so many times what it took (once, if there is news),
REST_MAX_S: Final = 60.0  # and no longer than this.
PATIENCE_S: Final = 2.0  # Who asks waits no longer for a look, if what the last one found can be told,
FIRST_S: Final = 10.0  # and no longer than this if not.


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How reads stand.

    Args:
        count: volumes of which more than m fragment files are away or damaged.
        first: the first NAMED_MAX of them.
        files, m: of the worst of them: how many of its files are away or damaged, and how many it can do
            without.
        away: the disks that cannot be reached, ascending.
        known: whether a look at all volumes has ended; if not, the rest says nothing.
    """

    count: int = 0
    first: tuple[int, ...] = ()
    files: int = 0
    m: int = 0
    away: tuple[int, ...] = ()
    known: bool = True

    def adding(self, short: Iterable[Shortage]) -> "Outlook":
        """With more volumes that cannot be read."""
        short = list(short)
        if not short:
            return self
        worst = max(short, key=lambda each: each.away - each.m)
        worse = not self.count or worst.away - worst.m > self.files - self.m
        return Outlook(
            count=self.count + len(short),
            first=(*self.first, *(each.volume for each in short[:NAMED_MAX]))[:NAMED_MAX],
            files=worst.away if worse else self.files,
            m=worst.m if worse else self.m,
            away=self.away,
        )

    @property
    def words(self) -> str:
        """For people; empty if every volume can be read."""
        if not self.known:
            return "which volumes can be read is not known yet: all of them are being looked at"
        if not self.count:
            return ""
        volumes = named(self.first, self.count)
        return (
            f"{self.count} volumes cannot be read now ({volumes}): up to {self.files} of their fragment files"
            f" are away or damaged, and they can do without {self.m}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of the store's disks.

    Args:
        disks: all.
        there: those that can be reached.
        healthy: those that take writes.
        m: a volume is made of 1+m at the least.
        fenced: metadata's journal lies on storage nodes: it needs more than half of all disks.
    """

    disks: int
    there: int
    healthy: int
    m: int
    fenced: bool

    @property
    def unwritable(self) -> str:
        """Why they are too few to write to; empty if they are enough."""
        if self.fenced and self.there <= self.disks // 2:
            return f"no commits: {self.there} of {self.disks} disks are there, and more than half are needed"
        if self.healthy < 1 + self.m:
            return f"no writes: {self.healthy} of {self.disks} disks take them, and {1 + self.m} are needed"
        return ""


def unreached(parts: Parts) -> set[int]:
    """Disks of which this process knows that they cannot be read as things are."""
    away = parts.opener.is_away
    return {number for number, disk in parts.disks.items() if not readable(disk) or away(number)}


async def away_disks(parts: Parts) -> set[int]:
    """These, those that were given up, and those not opened here yet. Raises: MetaUnavailable."""
    records = await parts.store.ledger.disks()
    return unreached(parts) | {
        number for number, record in records.items() if record.state in GIVEN_UP or number not in parts.disks
    }


class Outlooks:
    """Looks at all volumes, as seldom as is needed: there may be millions, and a balancer asks every second.

    While nothing has gone away or was found damaged since a look that found nothing, there is nothing to be
    found: volumes are made and moved on disks that are there.
    """

    def __init__(self, parts: Parts, context: Context, clock: Clock) -> None:
        self._parts = parts
        self._context = context
        self._clock = clock
        self._found: Outlook | None = None
        self._seen: tuple[set[int], Mapping[int, set[int]]] | None = None  # What it was found of.
        self._unreached: set[int] = set()  # When the last look began.
        self._failed = False  # The last look: what was found before may be so no more.
        self._took = self._ended = 0.0  # The last look: seconds, and monotonic.
        self._look: asyncio.Task[Outlook] | None = None

    async def now(self) -> Outlook:
        """As of now, or of a moment ago where a look takes long; not `known` if that is all there is to tell.

        Raises: MetaUnavailable.
        """
        earlier = None if self._failed else self._found
        if self._look is None:
            if earlier is not None and self._rests():
                return earlier
            self._look = asyncio.get_running_loop().create_task(self._looked())
            self._look.add_done_callback(_seen)
        look = self._look
        await asyncio.wait([look], timeout=FIRST_S if earlier is None else PATIENCE_S)
        if look.done():
            return look.result()
        return earlier if earlier is not None else Outlook(known=False)

    def _rests(self) -> bool:
        news = unreached(self._parts) != self._unreached
        rest_s = min(self._took * (1 if news else REST), REST_MAX_S)
        return self._clock.monotonic() < self._ended + rest_s

    async def _looked(self) -> Outlook:
        began = self._clock.monotonic()
        self._unreached = unreached(self._parts)
        failed = True
        try:
            self._found = await self._find()
            failed = False
            return self._found
        finally:
            self._failed = failed
            self._ended = self._clock.monotonic()
            self._took = self._ended - began
            self._look = None

    async def _find(self) -> Outlook:
        away = await away_disks(self._parts)
        damaged: dict[int, set[int]] = defaultdict(set)
        for intent in await all_intents(self._context):
            damaged[intent.volume].add(intent.index)
        if self._seen == (away, damaged) and self._found is not None and not self._found.count:
            return self._found
        found, after = Outlook(away=tuple(sorted(self._unreached))), 0
        while page := await self._parts.store.ledger.volumes(after):
            after = page[-1].id
            found = found.adding(shortages(page, away, damaged))
            await asyncio.sleep(0)  # An engine in this process answers at once, and others wait to be served.
        self._seen = away, damaged
        return found


def _seen(look: asyncio.Task[Outlook]) -> None:
    """Its failure is told to those who wait for it, and there may be nobody left."""
    if not look.cancelled():
        look.exception()


def health(outlook: Outlook, counts: Counts, ready: Mapping[str, Any]) -> dict[str, Any]:
    """What a monitor is told of the whole: whether anything can be written, and whether all can be read.

    Args:
        ready: what this gateway says of its processes (AdminPort.ready).
    """
    unwritten = counts.unwritable if ready["ready"] else ready["status"]
    return {
        "writable": not unwritten,
        "readable": ready["workers"] > 0 and outlook.known and not outlook.count,
        "status": "; ".join(words for words in (unwritten, outlook.words) if words) or "ok",
        "disks": counts.disks,
        "healthy": counts.healthy,
        "unreadable_volumes": outlook.count if outlook.known else None,
    }
