"""How quickly disks answer, held against each other: who is too slow to be waited for, who is quick again.

A disk that fails says so. One that answers a hundred times later than the others says nothing, and every read
that needs it waits. Each process therefore keeps, by disk and size of read, a histogram of the last few
hundred reads that had to wait for a thread or the network (what the page cache has is never timed), and
holds each disk's p99 against the median of all, and its p50 likewise: on a busy machine everybody's p99 is
the machine's. Nobody is slow by an absolute number: where all are slow, the machine is.

    ejected   its reads come late: reads take k others instead. Probed, and back after some quick answers
    resting   its appends take long: no new volumes on it for a while, then it is tried again

Both wait longer each time it happens again. What this process thinks is a hint of its own: it is nowhere
recorded, costs at most reads that take a detour, and ends with the process. A disk whose calls fail or miss
their deadlines is another matter (`suspect`, node/disk.py).

May not know: volumes, what is read. Plain functions of what was measured; the clock is an argument.
Concurrency: one event loop; no awaits.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from objstore.clock import Clock, SystemClock

KIB: Final = 1024
# Upper ends of the buckets, seconds: from 0.25 ms by the square root of two to 46 s.
BOUNDS: Final = tuple(0.00025 * 2 ** (step / 2) for step in range(36))
SIZES: Final = (80 * KIB, 640 * KIB)  # Bytes: one block, some blocks, a whole fragment.


@dataclass(frozen=True, slots=True, kw_only=True)
class SlownessRules:
    """What makes a disk slow."""

    factor: float = 5.0  # Times the median p99 of its peers, or the median p50.
    floor_s: float = 0.025  # Nothing below this is slow: a busy loop alone makes some milliseconds.
    write_floor_s: float = 0.05  # The same of the mean append: a sync on a good disk takes 1 to 10 ms.
    samples_min: int = 5  # Reads of a disk before it is held against others, or others against it.
    late_min: int = 3  # Of them beyond a limit.
    appends_min: int = 3  # Between two judgements, before their mean says anything.
    peers_min: int = 3  # Disks that have enough samples: a median of two is nobody's.
    strikes: int = 3  # Judgements that find it slow, with fresh evidence each: one stall is not enough.
    samples_max: int = 512  # Then all are halved: the last few hundred reads count.
    patience_min_s: float = 0.01  # Least time before others are asked beside a disk.
    patience_unknown_s: float = 0.1  # The same while nothing is known.
    probes: int = 5  # Quick answers in a row, and the disk is back.
    out_s: float = 10.0  # Least time that a disk stays ejected; doubles while it happens again and again.
    out_max_s: float = 300.0
    rest_s: float = 30.0  # The same of resting.
    rest_max_s: float = 600.0
    forgotten_s: float = 900.0  # After so long without being slow it counts as never slow.

    def __post_init__(self) -> None:
        assert self.factor > 1
        assert min(self.samples_min, self.late_min, self.appends_min, self.strikes, self.probes) >= 1
        assert self.peers_min >= 2
        assert min(self.floor_s, self.write_floor_s, self.patience_min_s, self.out_s, self.rest_s) > 0


class Slow(NamedTuple):
    """Why a disk is avoided."""

    what: str  # p99, p50 or "mean append".
    its_s: float
    peers_s: float  # The median of its peers'.

    @property
    def words(self) -> str:
        return f"{self.what} {1000 * self.its_s:.0f} ms, its peers' {1000 * self.peers_s:.1f}"


class Change(NamedTuple):
    """A verdict that is new."""

    disk: int
    op: str  # read | append
    slow: bool
    words: str


class _Times:
    """Durations of reads: counts by bucket. Not more than `samples_max` count."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0.0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def quantile(self, share: float) -> float:
        """The upper end of the bucket that holds it, seconds."""
        rest = self.total * (1 - share)
        for bucket in range(len(BOUNDS), 0, -1):
            rest -= self.counts[bucket]
            if rest < 0:
                return BOUNDS[min(bucket, len(BOUNDS) - 1)]
        return BOUNDS[0]

    def beyond(self, limit_s: float) -> float:
        return sum(self.counts[bisect_left(BOUNDS, limit_s) + 1 :])

    def halve(self) -> None:
        self.counts = [count / 2 for count in self.counts]
        self.total /= 2


@dataclass(slots=True)
class _Penalty:
    """How long a disk is left out: longer each time."""

    last_s: float = 0.0
    ended: float = float("-inf")  # When it was last over.

    def next(self, now: float, first_s: float, most_s: float, forgotten_s: float) -> float:
        if now - self.ended > forgotten_s:
            self.last_s = 0.0
        self.last_s = min(max(2 * self.last_s, first_s), most_s)
        return self.last_s


class _Usual(NamedTuple):
    """What reads of one size take, seconds: medians over the disks, and what they allow."""

    p50_s: float
    p95_s: float
    p99_s: float
    behind_s: float  # Half of a disk's reads beyond this: it is slow.
    late_s: float  # One in a hundred beyond this: the same.


@dataclass(slots=True)
class _Seen:
    """One disk, as far as it was measured."""

    times: tuple[_Times, ...] = field(default_factory=lambda: tuple(_Times() for _ in range(len(SIZES) + 1)))
    fresh: int = 0  # Reads since the last judgement,
    behind: int = 0  # of them beyond the limit of p50,
    late: int = 0  # and beyond that of p99.
    strikes: int = 0
    slow: Slow | None = None  # Ejected.
    out_until: float = 0.0
    good: int = 0  # Quick probes in a row.
    penalty: _Penalty = field(default_factory=_Penalty)
    appends: tuple[int, float] = (0, 0.0)  # Count and seconds at the last judgement.
    append_strikes: int = 0
    append_slow: Slow | None = None  # Resting.
    rest_until: float = 0.0
    append_penalty: _Penalty = field(default_factory=_Penalty)

    def forget(self) -> None:
        """Its reads begin anew."""
        self.times = tuple(_Times() for _ in self.times)
        self.fresh = self.behind = self.late = self.strikes = 0


class Slowness:
    """One process's view of its disks, by number.

    Args:
        spare: m of the code: so many disks may always be left out; beyond it a quarter of all that were seen.
    """

    def __init__(
        self, *, spare: int = 1, clock: Clock | None = None, rules: SlownessRules | None = None
    ) -> None:
        self.rules = rules or SlownessRules()
        self.ejections = 0
        self.ejected: Mapping[int, Slow] = {}
        self.resting: Mapping[int, Slow] = {}
        # What other processes do without, too, and how many do: it counts against the same m.
        self.others: Mapping[int, int] = {}
        self._spare = spare
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._seen: dict[int, _Seen] = {}
        self._usual: list[_Usual | None] = [None] * (len(SIZES) + 1)  # By size; None: not known yet.

    # On the way of a read.

    def took(self, disk: int, size: int, seconds: float, *, ended: bool = True) -> None:
        """A read of `size` bytes ended. Or it did not (`ended`), and took so long until it was given up: that
        says something only if it was late by then."""
        size_class = bisect_left(SIZES, size)
        usual = self._usual[size_class]
        behind = usual is not None and seconds > usual.behind_s
        if not (ended or behind):
            return
        seen = self._seen.get(disk)
        if seen is None:
            seen = self._seen[disk] = _Seen()
        times = seen.times[size_class]
        times.counts[bisect_left(BOUNDS, seconds)] += 1
        times.total += 1
        seen.fresh += 1
        seen.behind += behind
        seen.late += usual is not None and seconds > usual.late_s
        if times.total >= self.rules.samples_max:
            times.halve()

    def patience(self, size: int) -> float:
        """How long a read may take before others are asked beside it, seconds: the p95 of the median disk."""
        usual, rules = self._usual[bisect_left(SIZES, size)], self.rules
        return rules.patience_unknown_s if usual is None else max(rules.patience_min_s, usual.p95_s)

    def limit(self, size: int) -> float:
        """How long a read takes at the most on a disk that is not slow, seconds."""
        usual = self._usual[bisect_left(SIZES, size)]
        return self.rules.patience_unknown_s if usual is None else usual.late_s

    def slow_among(self, disks: Sequence[int]) -> list[int]:
        """Those of them that are ejected, the slowest first."""
        slow = [disk for disk in disks if disk in self.ejected]
        slow.sort(key=lambda disk: self.ejected[disk].its_s, reverse=True)
        return slow

    def left_out_among(self, disks: Sequence[int]) -> list[int]:
        """Those of them that this process or others do without, in an order in which all that know the same
        have them: what most find slow first. While nobody else is known to, the slowest first."""
        if not self.others:
            return self.slow_among(disks)
        found = [disk for disk in disks if disk in self.ejected or disk in self.others]
        return sorted(found, key=lambda disk: (-self.others.get(disk, 0), disk))

    @property
    def slow(self) -> frozenset[int]:
        """Disks that new volumes do without, if they can."""
        return frozenset((*self.ejected, *self.resting))

    # From time to time.

    def judge(self, appends: Mapping[int, tuple[int, float]]) -> list[Change]:
        """Look at what was measured since the last time.

        Args:
            appends: of every disk that the process has, how many appends it did so far and their seconds.
        """
        for gone in self._seen.keys() - appends.keys():
            del self._seen[gone]
        self._compare()
        changes = [*self._judge_reads(len(appends)), *self._judge_appends(appends)]
        self._publish()
        return changes

    def probed(self, disk: int, size: int, seconds: float | None) -> list[Change]:
        """An ejected disk was read on purpose. `seconds`: None if that failed."""
        seen = self._seen.get(disk)
        if seen is None or seen.slow is None:
            return []
        usual = self._usual[bisect_left(SIZES, size)]
        limit_s = self.rules.patience_unknown_s if usual is None else usual.behind_s
        seen.good = seen.good + 1 if seconds is not None and seconds <= limit_s else 0
        if seen.good < self.rules.probes or self._clock.monotonic() < seen.out_until:
            return []
        return [self._take_back(disk, seen, f"{seen.good} quick answers in a row")]

    def forgive(self, disk: int) -> list[Change]:
        """An ejected disk of which nothing is known that could be read is back after its time."""
        seen = self._seen.get(disk)
        if seen is None or seen.slow is None or self._clock.monotonic() < seen.out_until:
            return []
        return [self._take_back(disk, seen, "its time is over, and nothing to probe lies on it")]

    # Within.

    def _compare(self) -> None:
        """What is usual, by size of read."""
        rules = self.rules
        for size_class in range(len(SIZES) + 1):
            # What is ejected is nobody's peer: repair and scrub still read from it.
            known = [seen.times[size_class] for seen in self._seen.values() if seen.slow is None]
            known = [times for times in known if times.total >= rules.samples_min]
            if len(known) < rules.peers_min:
                continue  # What was known last is better than nothing.
            p50_s, p95_s, p99_s = (
                _median([times.quantile(share) for times in known]) for share in (0.5, 0.95, 0.99)
            )
            behind_s, late_s = (max(rules.floor_s, rules.factor * peers_s) for peers_s in (p50_s, p99_s))
            self._usual[size_class] = _Usual(p50_s, p95_s, p99_s, behind_s, late_s)

    def _judge_reads(self, disks: int) -> list[Change]:
        rules = self.rules
        found: list[tuple[Slow, int, _Seen]] = []
        for disk, seen in self._seen.items():
            if seen.slow is not None or not seen.fresh:
                continue
            slow = self._slow_reads(seen)
            seen.fresh = seen.behind = seen.late = 0
            seen.strikes = seen.strikes + 1 if slow is not None else max(0, seen.strikes - 1)
            if slow is not None and seen.strikes >= rules.strikes:
                found.append((slow, disk, seen))
        out = {*self.ejected, *self.others}
        room = max(0, max(self._spare, disks // 4) - len(out))
        found.sort(key=lambda one: one[0].its_s, reverse=True)
        known = [one for one in found if one[1] in out]
        fresh = [one for one in found if one[1] not in out]
        return [self._eject(disk, seen, slow) for slow, disk, seen in known + fresh[:room]]

    def _slow_reads(self, seen: _Seen) -> Slow | None:
        """Why, if the last few hundred reads say so and some since the last judgement do."""
        least = self.rules.late_min
        for usual, times in zip(self._usual, seen.times, strict=True):
            if usual is None or times.total < self.rules.samples_min:
                continue
            if seen.late and times.beyond(usual.late_s) >= max(least, 0.01 * times.total):
                return Slow("p99", times.quantile(0.99), usual.p99_s)
            if seen.behind and times.beyond(usual.behind_s) >= max(least, 0.5 * times.total):
                return Slow("p50", times.quantile(0.5), usual.p50_s)
        return None

    def _eject(self, disk: int, seen: _Seen, slow: Slow) -> Change:
        rules = self.rules
        now = self._clock.monotonic()
        seen.slow = slow
        seen.good = 0
        seen.out_until = now + seen.penalty.next(now, rules.out_s, rules.out_max_s, rules.forgotten_s)
        seen.forget()
        self.ejections += 1
        return Change(disk, "read", True, slow.words)

    def _take_back(self, disk: int, seen: _Seen, words: str) -> Change:
        seen.slow = None
        seen.forget()
        seen.penalty.ended = self._clock.monotonic()
        self._publish()
        return Change(disk, "read", False, words)

    def _judge_appends(self, appends: Mapping[int, tuple[int, float]]) -> list[Change]:
        """By the mean since the last judgement: all appends of a stripe wait for the slowest."""
        rules = self.rules
        changes = self._end_rests()
        means = self._mean_appends(appends)
        if len(means) < rules.peers_min:
            return changes
        peers_s = _median(list(means.values()))
        limit_s = max(rules.write_floor_s, rules.factor * peers_s)
        room = max(self._spare, len(appends) // 4)
        room -= sum(seen.append_slow is not None for seen in self._seen.values())
        for disk, mean_s in sorted(means.items(), key=lambda one: -one[1]):
            seen = self._seen[disk]
            if seen.append_slow is not None:
                continue
            slow = mean_s > limit_s
            seen.append_strikes = seen.append_strikes + 1 if slow else max(0, seen.append_strikes - 1)
            if slow and seen.append_strikes >= rules.strikes and room > 0:
                room -= 1
                changes.append(self._rest(disk, seen, Slow("mean append", mean_s, peers_s)))
        return changes

    def _end_rests(self) -> list[Change]:
        now = self._clock.monotonic()
        changes: list[Change] = []
        for disk, seen in self._seen.items():
            if seen.append_slow is not None and now >= seen.rest_until:
                seen.append_slow = None
                seen.append_penalty.ended = now
                changes.append(Change(disk, "append", False, "its rest is over"))
        return changes

    def _mean_appends(self, appends: Mapping[int, tuple[int, float]]) -> dict[int, float]:
        """Seconds, by disk, of those with enough appends since the last judgement."""
        means: dict[int, float] = {}
        for disk, (count, seconds) in appends.items():
            seen = self._seen.get(disk)
            if seen is None:
                seen = self._seen[disk] = _Seen(appends=(count, seconds))
            before, before_s = seen.appends
            seen.appends = (count, seconds)
            if count - before >= self.rules.appends_min:
                means[disk] = (seconds - before_s) / (count - before)
        return means

    def _rest(self, disk: int, seen: _Seen, slow: Slow) -> Change:
        rules = self.rules
        now = self._clock.monotonic()
        seen.append_strikes = 0
        seen.append_slow = slow
        rest_s = seen.append_penalty.next(now, rules.rest_s, rules.rest_max_s, rules.forgotten_s)
        seen.rest_until = now + rest_s
        self.ejections += 1
        return Change(disk, "append", True, slow.words)

    def _publish(self) -> None:
        self.ejected = {disk: seen.slow for disk, seen in self._seen.items() if seen.slow is not None}
        self.resting = {
            disk: seen.append_slow for disk, seen in self._seen.items() if seen.append_slow is not None
        }


class HedgeBudget:
    """How many reads may be asked for twice: `share` of those that wait, and a few at once.

    Where everybody is slow, asking twice would double the load.
    """

    def __init__(self, share: float = 0.05, burst: float = 10.0) -> None:
        self._share = share
        self._burst = burst
        self._tokens = burst

    def earn(self) -> None:
        """A read waits."""
        self._tokens = min(self._burst, self._tokens + self._share)

    def take(self) -> bool:
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _median(numbers: list[float]) -> float:
    """The lower one of two."""
    return sorted(numbers)[(len(numbers) - 1) // 2]
