"""Placement: which disks a volume lies on, and what that promises. Pure: same arguments, same answer.

Decided once, when a volume is made; looked at again when disks, machines or policies have changed.

    place_volume  the disks of a new volume
    narrowed      how many data fragments it has where disks are few
    judge         whether a volume lies as it should, and the fewest fragment files that would have to move
    substitute    the disk for one file that is to lie elsewhere
    admits        whether one file of a volume may lie on a given disk
    outdone       whether a new volume would promise more than one on given disks

A policy's sites and pool are never left, by none of them. Within that the aim is at most m-1 fragments of a
volume in one failure domain: then any one domain may be lost, and a disk of another beside it. Where the
topology does not allow that, a weaker promise is made, and it has a name (`Promise`); a policy may refuse.
It is never bought with a smaller k: a code of 1+2 over three racks would cost twice the space of 4+2, which
is for an operator to decide.

Balance: a volume's fragments are dealt out from the top of the tree down, each part getting its share of the
free space, cut at what its caps allow, the rest going to the others; then a whole number next to the share,
by chance, such that the mean is the share. So a disk's part of all fragments is exact. Drawing one disk after
another with these weights is not (what the second draw may take is no longer in proportion: CRUSH's small and
large disks fill unevenly for that reason), and hashing into fixed partitions lets the smallest zone cap all.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate
from typing import Final, NamedTuple

from objstore.blobs.topology import (
    SPREADS,
    TOP_DOWN,
    Caps,
    Group,
    Level,
    Policy,
    Rules,
    Spot,
    Topology,
    View,
    room,
)
from objstore.errors import TooFewDisks, WeakerPromise

Chance = Callable[[], float]  # Numbers in [0, 1).


class Promise(StrEnum):
    """What a volume survives, by the most fragments that one domain holds of it. Ordered: best first."""

    SPARE = "spare"  # At most m-1 (1 if m is 1): any one domain may go, and with m > 1 a disk beside it.
    BARE = "bare"  # m: any one domain may go, and then nothing more.
    NONE = "none"  # More than m: there is a domain whose loss loses data.

    def words(self, domain: str = "failure domain") -> str:
        return _WORDS[self].format(domain)


_WORDS = {
    Promise.SPARE: "any one {} may be lost, with parity to spare",
    Promise.BARE: "any one {} may be lost, and then nothing more",
    Promise.NONE: "there is a {} whose loss loses data",
}
DRAWS_MAX: Final = 4  # Then the disks that are taken are counted out.
_RANK: Final = {Promise.SPARE: 0, Promise.BARE: 1, Promise.NONE: 2}


class Fault(StrEnum):
    """Why a fragment file does not lie where it is."""

    GONE = "its disk is not known"
    LEAVING = "its disk is to be emptied"
    OUTSIDE = "its disk is not one of the policy's sites and pool"
    CROWDED = "too many fragments of its volume are in one failure domain"


class Placement(NamedTuple):
    k: int  # The policy's, or less when too few disks are usable; m is always the policy's.
    disks: list[int]  # k+m different disks; fragment i goes to disks[i].
    level: Level  # The failure domain
    promise: Promise  # for which this is promised.


class Move(NamedTuple):
    file: int  # Index of the fragment file.
    disk: int  # Where it lies.
    target: int  # Where it would lie.
    fault: Fault


class Verdict(NamedTuple):
    """How a volume lies under a policy."""

    faults: dict[int, Fault]  # By index of the fragment file; empty: it lies as it should.
    moves: list[Move]  # As few as can mend it; fewer than faults while there is no disk for all of them.
    level: Level  # The failure domain
    promise: Promise  # for which this holds of the volume as it lies.

    @property
    def conforms(self) -> bool:
        return not self.faults


def promise_of(domains: Iterable[Hashable], m: int) -> Promise:
    """What a volume promises whose fragments lie in these domains, one entry a fragment."""
    return _promise(max(Counter(domains).values(), default=0), m)


def _promise(most: int, m: int) -> Promise:
    if most <= max(1, m - 1):
        return Promise.SPARE
    return Promise.BARE if most <= m else Promise.NONE


def rules_of(topology: Topology, policy: Policy, count: int, m: int, *, takes: bool = False) -> Rules:
    """How many fragments of a volume of `count` may stand together, with the disks that there are.

    Args:
        takes: only disks that take new files count, not those that are away or suspect.
    """
    return topology.view(policy, takes=takes).rules(count, m, SPREADS.get(policy.spread))


def narrowed(k: int, m: int, disks: int) -> int:
    """How many data fragments a new volume has on so many disks: k, or as many as are left beside m; 0: there
    can be no volume."""
    return max(0, min(k, disks - m))


def promised(
    topology: Topology, policy: Policy, k: int, m: int, *, takes: bool = False
) -> dict[Level, Promise]:
    """What a new volume of this policy promises for each level, if every disk of the layout were well.

    Args:
        takes: as things are instead: only disks that take new files count.
    """
    view = topology.view(policy, takes=takes)
    data = narrowed(k, m, len(view.numbers))
    if not data:
        return {}
    count = data + m
    caps = view.rules(count, m, SPREADS.get(policy.spread)).caps
    # What the caps of the levels below leave: a rack of one node holds no more than its node.
    return {level: _promise(_fullest(view, caps, level), m) for level in TOP_DOWN if level >= view.base}


def _fullest(view: View, caps: Caps, level: Level) -> int:
    """The most fragments that one domain of this level may come to hold under the caps."""
    limits = view.limits(caps)

    def most(group: Group, within: int) -> int:
        within = min(within, limits[group.number])
        if group.level == level or group.disks:  # Disks without a level between are devices: one each.
            return within if group.level == level else min(within, 1)
        return max((most(part, within) for part in group.parts), default=0)

    return most(view.root, limits[view.root.number])


def place_volume(topology: Topology, policy: Policy, *, k: int, m: int, chance: Chance) -> Placement:
    """Choose k+m different disks, or with fewer usable ones the same m over the largest k that fits.

    Raises:
        TooFewDisks: below 1+m.
        WeakerPromise: the policy requires more than the usable disks allow.
    """
    assert k >= 1
    assert m >= 1
    view = topology.view(policy, takes=True)
    data = narrowed(k, m, len(view.numbers))
    if not data:
        raise TooFewDisks(wanted=1 + m, usable=len(view.numbers))
    count = data + m
    rules = view.rules(count, m, SPREADS.get(policy.spread))
    promise = _promise(rules.caps[rules.level], m)
    if policy.require and _RANK[promise] > _RANK[Promise(policy.require)]:
        raise WeakerPromise(
            f"policy {policy.name!r} requires the promise {policy.require!r}, and its usable disks allow"
            f" {promise.value!r} ({rules.caps[rules.level]} of {count} fragments in one {rules.level.word})"
        )
    chosen: list[Spot] = []
    _deal(view.root, count, view.limits(rules.even), chance, (), chosen)
    # In any order: else the data fragments, which small reads go to, would lie at the first sites.
    chosen.sort(key=lambda spot: chance())
    return Placement(data, [spot.number for spot in chosen], rules.level, promise)


def judge(
    topology: Topology,
    policy: Policy,
    *,
    k: int,
    m: int,
    disks: Sequence[int],
    chance: Chance,
    size: int = 0,
    urgent: bool = False,
) -> Verdict:
    """How a volume of k+m fragment files lies, which is fragment i on disks[i], and what would mend it.

    No smaller set of moves mends it. A disk that is merely away or suspect keeps its fragments.

    Args:
        size: bytes of each of its fragment files, which a target must have free.
        urgent: a crowded domain is better than no disk for what has none; never another site or pool.
    """
    assert len(disks) == k + m
    rules = rules_of(topology, policy, k + m, m)
    keep, faults = _kept(topology, policy, rules.caps, disks)
    promise = _promise(topology.fullest(disks, rules.level), m)
    if not faults:
        return Verdict(faults, [], rules.level, promise)
    held = _held(topology, (disks[file] for file in keep))
    targets = _targets(topology, policy, rules, held, disks, len(faults), chance, size, urgent=urgent)
    # The worst first, where there is not a disk for all of them.
    order = sorted(faults, key=lambda file: (_SEVERITY[faults[file]], file))
    moves = [
        Move(file, disks[file], target, faults[file]) for file, target in zip(order, targets, strict=False)
    ]
    return Verdict(faults, moves, rules.level, promise)


_SEVERITY: Final = {Fault.GONE: 0, Fault.OUTSIDE: 1, Fault.LEAVING: 2, Fault.CROWDED: 3}


def outdone(topology: Topology, policy: Policy, *, k: int, m: int, disks: Sequence[int]) -> bool:
    """Whether a new volume of k+m would promise more than one on these disks, for a site or any other domain.

    One that was made while disks were away, say. As things are, not as they would be with every disk well.
    """
    return any(
        _RANK[_promise(topology.fullest(disks, level), m)] > _RANK[promise]
        for level, promise in promised(topology, policy, k, m, takes=True).items()
    )


def substitute(
    topology: Topology,
    policy: Policy,
    *,
    k: int,
    m: int,
    disks: Sequence[int],
    file: int,
    chance: Chance,
    size: int = 0,
) -> int | None:
    """The disk for one fragment file that is to be made anew; None if no disk of the policy has room for it.

    Where the other files leave the choice, it keeps the caps; else it takes the least crowded domain.
    """
    rules = rules_of(topology, policy, k + m, m)
    held = _held(topology, (number for at, number in enumerate(disks) if at != file))
    found = _targets(topology, policy, rules, held, disks, 1, chance, size, urgent=True)
    return found[0] if found else None


def admits(
    topology: Topology, policy: Policy, *, k: int, m: int, disks: Sequence[int], file: int, target: int
) -> bool:
    """Whether a fragment file may move to `target` without a domain becoming more crowded than it may be."""
    spot = topology.spots.get(target)
    if spot is None or not spot.takes or target in disks or not policy.admits(spot.site, spot.pool):
        return False
    caps = rules_of(topology, policy, k + m, m).caps
    path, paths = topology.paths[target], topology.paths
    source = paths.get(disks[file])
    for level, cap in enumerate(caps):
        domain = path[level]
        if source is not None and source[level] == domain:
            continue  # It stays within: not more crowded than it was.
        there = sum(number in paths and paths[number][level] == domain for number in disks)
        if there >= cap:
            return False
    return True


def _kept(
    topology: Topology, policy: Policy, caps: Caps, disks: Sequence[int]
) -> tuple[list[int], dict[int, Fault]]:
    """The files that can stay where they are: as many as any choice could keep (a matroid's greedy)."""
    faults: dict[int, Fault] = {}
    fine: list[tuple[Spot, int]] = []
    for file, number in enumerate(disks):
        spot = topology.spots.get(number)
        if spot is None:
            faults[file] = Fault.GONE
        elif not policy.admits(spot.site, spot.pool):
            faults[file] = Fault.OUTSIDE
        elif spot.leaving:
            faults[file] = Fault.LEAVING
        else:
            fine.append((spot, file))
    counts: dict[int, int] = {}
    keep: list[int] = []
    fine.sort(key=lambda one: (-one[0].free, one[1]))  # What has to go leaves the fullest disks.
    for spot, file in fine:
        path = topology.paths[spot.number]
        if any(counts.get(domain, 0) >= cap for domain, cap in zip(path, caps, strict=True)):
            faults[file] = Fault.CROWDED
            continue
        keep.append(file)
        for domain in path:
            counts[domain] = counts.get(domain, 0) + 1
    return keep, faults


def _held(topology: Topology, disks: Iterable[int]) -> dict[int, int]:
    """Fragments by domain, of all levels."""
    held: dict[int, int] = {}
    for number in disks:
        for domain in topology.paths.get(number, ()):
            held[domain] = held.get(domain, 0) + 1
    return held


def _targets(
    topology: Topology,
    policy: Policy,
    rules: Rules,
    held: Mapping[int, int],
    disks: Sequence[int],
    count: int,
    chance: Chance,
    size: int,
    *,
    urgent: bool,
) -> list[int]:
    """Disks for `count` more fragments beside those held: evenly, within the caps, or as many as fit."""
    view = topology.view(policy, takes=True)
    taken = view.numbers.intersection(disks)
    if size > view.least_free:
        taken.update(number for number in view.numbers if topology.spots[number].free < size)
    full = _held(topology, taken)
    limits: dict[int, int] = {}
    for caps in _looser(rules, topology.base, len(disks), urgent=urgent):
        limits = room(view.root, caps, held, full)
        if limits[-1] >= count:
            break
    count = min(count, limits[-1])
    chosen: list[Spot] = []
    if count:
        _deal(view.root, count, limits, chance, taken, chosen)
    return [spot.number for spot in chosen]


def _looser(rules: Rules, base: Level, count: int, *, urgent: bool) -> Iterator[Caps]:
    """Caps to try one after another, the strictest first."""
    for cap in range(rules.even[base], rules.caps[base]):
        yield _capped(rules.caps, base, cap)
    yield rules.caps
    # One more in the domains of every level, again and again: the least crowded are taken first.
    for more in range(1, count if urgent else 1):
        device, node, rack, site = (min(count, cap + more) for cap in rules.caps)
        yield device, node, rack, site


def _capped(caps: Caps, level: Level, cap: int) -> Caps:
    device, node, rack, site = (cap if at == level else one for at, one in enumerate(caps))
    return device, node, rack, site


def _deal(
    group: Group,
    count: int,
    limits: Mapping[int, int],
    chance: Chance,
    taken: Collection[int],
    chosen: list[Spot],
) -> None:
    """Choose `count` disks of a group, by shares of the free space, no group getting more than its limit."""
    if group.disks:
        chosen += _disks_of(group, count, chance, taken)
        return
    parts = group.parts
    if len(parts) == 1:
        _deal(parts[0], count, limits, chance, taken, chosen)
        return
    counts = _share(group.weights, [limits[part.number] for part in parts], count, chance)
    for part, some in zip(parts, counts, strict=True):
        if some:
            _deal(part, some, limits, chance, taken, chosen)


def _disks_of(group: Group, count: int, chance: Chance, taken: Collection[int]) -> list[Spot]:
    if count == 1:  # Nearly always. Drawn again while the draw is taken, which few are.
        for _ in range(DRAWS_MAX):
            spot = group.disks[_draw(group.sums, chance)]
            if spot.number not in taken:
                return [spot]
    free = [at for at, spot in enumerate(group.disks) if spot.number not in taken]
    counts = _share([group.weights[at] for at in free], [1] * len(free), count, chance)
    return [group.disks[at] for at, one in zip(free, counts, strict=True) if one]


def _draw(sums: Sequence[float], chance: Chance) -> int:
    """One of several, in proportion to weights of which these are the running sums."""
    return min(bisect_right(sums, chance() * sums[-1]), len(sums) - 1)


def _share(weights: list[float], limits: list[int], count: int, chance: Chance) -> list[int]:
    """Split `count` in proportion to the weights, by chance to whole numbers, none above its limit.

    The mean of each is its share exactly (systematic sampling, Madow 1949), and each is the share rounded
    down or up. The parts are taken in an order by chance, so that any two of them may come together.
    """
    counts = [0] * len(weights)
    if count == 1:
        open_ = [at for at, limit in enumerate(limits) if limit]
        counts[open_[_draw(list(accumulate(weights[at] for at in open_)), chance)]] = 1
        return counts
    shares = _shares(weights, limits, count)
    order = sorted(range(len(shares)), key=lambda at: chance())
    at, mark, total = chance(), 0, 0.0
    for part in order:
        total += shares[part]
        # Rounding errors of the sum must neither lose the last one nor lift a part above its limit.
        up_to = min(int(total + at + 1e-9), count)
        counts[part] = min(up_to - mark, limits[part])
        mark += counts[part]
    for part in order:
        if mark == count:
            break
        more = min(limits[part] - counts[part], count - mark)
        counts[part] += more
        mark += more
    assert mark == count, "the limits leave no room"
    return counts


def _shares(weights: list[float], limits: list[int], count: int) -> list[float]:
    """In proportion to the weights, none above its limit: what is cut off there goes to the others."""
    shares = [0.0] * len(weights)
    rest, open_ = float(count), [at for at, limit in enumerate(limits) if limit > 0]
    while open_:
        scale = rest / sum(weights[at] for at in open_)
        over = [at for at in open_ if weights[at] * scale >= limits[at]]
        if not over:
            for at in open_:
                shares[at] = weights[at] * scale
            return shares
        for at in over:
            shares[at] = float(limits[at])
            rest -= limits[at]
        open_ = [at for at in open_ if shares[at] == 0.0]
        if rest <= 0:
            break
    return shares
