"""Topology: where disks stand (site > rack > node > device), and how many fragments may stand together.

Pure, and built once from values; `blobs/placement.py` asks it. What a *policy* admits is a *view*: a tree of
the disks of its sites and its pool. A *cap* is the most fragments of one volume that one domain of a level
may hold. Caps over a tree are a laminar matroid, which is what makes everything here simple and exact:
whether so many fragments fit is one sum over the tree, a choice that keeps the caps can always be extended to
a whole volume if any whole volume keeps them, and what can be kept of a misplaced volume is found greedily.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from enum import IntEnum
from itertools import accumulate
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec


class Level(IntEnum):
    """Of a failure domain, from small to large."""

    DEVICE = 0
    NODE = 1
    RACK = 2
    SITE = 3

    @property
    def word(self) -> str:
        return self.name.lower()


SPREADS: Final = {"node": Level.NODE, "rack": Level.RACK, "site": Level.SITE}
TOP_DOWN: Final = (Level.SITE, Level.RACK, Level.NODE, Level.DEVICE)


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the volumes of a bucket or storage class may lie. The default one allows every site, no pool."""

    name: str = ""
    sites: tuple[str, ...] = ()  # Allowed: residency. Empty: all.
    pool: str = ""  # The nodes it takes: those with exactly this label, or those without one.
    spread: str = ""  # Failure domain: node | rack | site. Empty: the highest at which the aim is possible.
    require: str = ""  # The least promise with which a volume is made: spare | bare. Empty: any.
    k: int = 0  # Its code; 0: the store's.
    m: int = 0
    storage_class: str = ""  # The x-amz-storage-class that selects it; empty: none.

    def admits(self, site: str, pool: str) -> bool:
        return pool == self.pool and (not self.sites or site in self.sites)

    def code(self, k: int, m: int) -> tuple[int, int]:
        """Its own k and m, or those of the store, which are given."""
        return (self.k, self.m) if self.k else (k, m)

    def within(self, other: "Policy") -> bool:
        """Whether a bucket under `other` may have bytes under this one: at its sites only, in its pool."""
        pool = not other.pool or self.pool == other.pool
        return pool and (not other.sites or (bool(self.sites) and set(self.sites) <= set(other.sites)))


DEFAULT_POLICY: Final = Policy()


class Spot(NamedTuple):
    """A disk, where it stands and what it may take."""

    number: int
    free: int  # Bytes.
    size: int  # Bytes.
    site: str = ""
    rack: str = ""
    node: str = ""  # Empty: the machine of the gateway itself.
    device: int = 0  # Disks of one device of one node fail together.
    pool: str = ""
    weight: float = 1.0  # Its free bytes count so much; 0: it takes nothing new.
    usable: bool = True  # Healthy and reachable: it may take new fragment files.
    leaving: bool = False  # To be emptied, or given up: what is on it is to lie elsewhere.
    away: bool = False  # Not usable for one reason only: its machine is noted as away.

    @property
    def takes(self) -> bool:
        return self.usable and not self.leaving and self.weight > 0


Path = tuple[int, int, int, int]  # The numbers of a disk's domains, by Level.
Caps = tuple[int, int, int, int]  # By Level.


class Group:
    """A domain, or the whole: its parts, or its disks where every disk is a device of its own."""

    __slots__ = ("disks", "level", "number", "parts", "sums", "weight", "weights")

    def __init__(self, level: int, number: int) -> None:
        self.level = level  # Of Level; above SITE: the whole.
        self.number = number
        self.parts: list[Group] = []
        self.disks: list[Spot] = []
        self.weight = 0.0
        self.weights: list[float] = []  # Of its disks, or of its parts,
        self.sums: list[float] = []  # and their running sums.


class Rules(NamedTuple):
    """How many fragments of a volume may stand together."""

    caps: Caps  # What conforms.
    even: Caps  # What a new volume is held to, where it can be: evenly over the smallest domains.
    level: Level  # The failure domain for which the promise is made.


class View:
    """The disks that one policy admits, as a tree."""

    def __init__(self, spots: Iterable[Spot], paths: Mapping[int, Path], *, base: Level) -> None:
        self.root = Group(Level.SITE + 1, -1)
        self.base = base
        self.numbers: set[int] = set()
        groups: dict[int, Group] = {}
        for spot in spots:
            self.numbers.add(spot.number)
            within = self.root
            for level in TOP_DOWN:
                number = paths[spot.number][level]
                group = groups.get(number)
                if group is None:
                    group = groups[number] = Group(level, number)
                    within.parts.append(group)
                within = group
            within.disks.append(spot)
        # Of all disks, not the view's: a device may hold a fragment on a disk that takes no more.
        disks = Counter(path[Level.DEVICE] for path in paths.values())
        _weigh(self.root, {device for device, count in disks.items() if count > 1})
        self.least_free = min((spot.free for group in groups.values() for spot in group.disks), default=0)
        self._rules: dict[tuple[int, int, Level | None], Rules] = {}
        self._limits: dict[Caps, dict[int, int]] = {}

    def rules(self, count: int, m: int, spread: Level | None) -> Rules:
        """The caps for volumes of `count` fragments with m to spare."""
        key = (count, m, spread)
        rules = self._rules.get(key)
        if rules is None:
            rules = self._rules[key] = _rules(self, count, m, spread)
        return rules

    def limits(self, caps: Caps) -> dict[int, int]:
        """How many fragments of a new volume each group takes at most, by its number."""
        limits = self._limits.get(caps)
        if limits is None:
            limits = self._limits[caps] = room(self.root, caps)
        return limits

    def fits(self, count: int, caps: Caps) -> bool:
        return self.limits(caps)[-1] >= count


def _weigh(group: Group, shared: Set[int]) -> None:
    """Sum up the weights; a node whose disks are all devices of their own needs no level between.

    Args:
        shared: the numbers of devices of several disks.
    """
    for part in group.parts:
        _weigh(part, shared)
    if group.level == Level.NODE and not any(device.number in shared for device in group.parts):
        group.disks = [device.disks[0] for device in group.parts]
        group.parts = []
    # A full disk may still be the only one.
    group.weights = [max(spot.free * spot.weight, 1.0) for spot in group.disks]
    group.weights += [part.weight for part in group.parts]
    group.sums = list(accumulate(group.weights))
    group.weight = group.sums[-1] if group.sums else 0.0


def room(
    group: Group,
    caps: Caps,
    held: Mapping[int, int] = MappingProxyType({}),
    taken: Mapping[int, int] = MappingProxyType({}),
) -> dict[int, int]:
    """How many more fragments each group below takes, by its number; -1 is the whole.

    Args:
        held: fragments of the volume that are there already, by domain.
        taken: disks of the view that take none, by domain.
    """
    limits: dict[int, int] = {}
    _room(group, caps, held, taken, limits)
    return limits


def _room(
    group: Group, caps: Caps, held: Mapping[int, int], taken: Mapping[int, int], limits: dict[int, int]
) -> int:
    if group.disks:
        most = len(group.disks) - taken.get(group.number, 0)
    else:
        most = sum([_room(part, caps, held, taken, limits) for part in group.parts])
    if group.level <= Level.SITE:
        most = min(most, max(0, caps[group.level] - held.get(group.number, 0)))
    limits[group.number] = most
    return most


def _rules(view: View, count: int, m: int, spread: Level | None) -> Rules:
    """The strictest caps under which `count` fragments fit, the highest level first.

    The aim is m-1 in one domain (1 if m is 1), at the highest level where that is possible, and m in the
    domains above it where that is: a site may be lost even if its loss leaves nothing to spare. Where even
    the smallest domains cannot have the aim, as few as possible.
    """
    spare = max(1, m - 1)
    free = [count, count, count, count]
    level = spread
    if level is None:
        level = next(
            (level for level in TOP_DOWN if level >= view.base and _with(view, count, free, level, spare)),
            view.base,
        )
    caps = _capped(view, count, free, level, spare)
    for upper in TOP_DOWN:
        if spread is None and upper > level and _with(view, count, caps, upper, m):
            caps[upper] = m
    for lower in TOP_DOWN:
        if lower < level and caps[level] > spare:
            caps = _capped(view, count, caps, lower, spare)
    even = _capped(view, count, caps, view.base, 1)
    return Rules(_four(caps), _four(even), level)


def _capped(view: View, count: int, caps: list[int], level: Level, least: int) -> list[int]:
    """The smallest cap from `least` on that still fits, at one level."""
    for cap in range(min(least, caps[level]), caps[level]):
        if _with(view, count, caps, level, cap):
            return [*caps[:level], cap, *caps[level + 1 :]]
    return list(caps)


def _with(view: View, count: int, caps: list[int], level: Level, cap: int) -> bool:
    return view.fits(count, _four([*caps[:level], cap, *caps[level + 1 :]]))


def _four(caps: list[int]) -> Caps:
    device, node, rack, site = caps
    return device, node, rack, site


class Topology:
    """Every disk of the store. Not changed once made; what is asked often is worked out once.

    One machine (no node has a name): the smallest domain that counts is a device. Otherwise it is a node.
    """

    def __init__(self, spots: Iterable[Spot]) -> None:
        self.spots: dict[int, Spot] = {spot.number: spot for spot in spots}
        self.base = Level.NODE if any(spot.node for spot in self.spots.values()) else Level.DEVICE
        numbers: dict[tuple[object, ...], int] = {}

        def number_of(*names: object) -> int:
            return numbers.setdefault(names, len(numbers))

        self.paths: dict[int, Path] = {
            spot.number: (
                number_of(spot.site, spot.rack, spot.node, spot.device),
                number_of(spot.site, spot.rack, spot.node),
                number_of(spot.site, spot.rack),
                number_of(spot.site),
            )
            for spot in self.spots.values()
        }
        self._views: dict[tuple[tuple[str, ...], str, bool], View] = {}

    def view(self, policy: Policy, *, takes: bool) -> View:
        """The disks that this policy admits: those that take new files, or all that are not to be emptied."""
        key = (policy.sites, policy.pool, takes)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = View(self._admitted(policy, takes), self.paths, base=self.base)
        return view

    def _admitted(self, policy: Policy, takes: bool) -> Iterator[Spot]:
        for spot in self.spots.values():
            if policy.admits(spot.site, spot.pool) and (spot.takes if takes else not spot.leaving):
                yield spot

    def fullest(self, disks: Iterable[int], level: Level) -> int:
        """The most fragments that one domain of this level holds, of a volume on these disks."""
        counts: dict[int, int] = {}
        for number in disks:
            path = self.paths.get(number)
            domain = path[level] if path is not None else -1 - number  # Unknown: on its own.
            counts[domain] = counts.get(domain, 0) + 1
        return max(counts.values(), default=0)


def policy_of_sites(sites: Iterable[str]) -> str:
    """The name of the policy that is just these sites: it needs no record. Of none: the default one's."""
    return "+".join(sorted(sites))


class Layout(NamedTuple):
    """What metadata says of where disks stand and what they may take, and the policies that there are."""

    version: int
    spots: dict[int, Spot]  # Of every disk that is not retired; free bytes and device are not known here.
    policies: dict[str, Policy]  # By name; the default one is not among them.

    def policy(self, name: str) -> Policy:
        """A volume's or bucket's policy. A name without a policy is that of a site: bytes stay there."""
        if not name:
            return DEFAULT_POLICY
        return self.policies.get(name) or Policy(name=name, sites=tuple(name.split("+")))

    @property
    def sites(self) -> set[str]:
        return {spot.site for spot in self.spots.values() if spot.site}
