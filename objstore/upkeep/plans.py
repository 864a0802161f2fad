"""Which fragment file is next, and on which disk it is to lie: what repair, draining and rebalancing decide.

Pure: same arguments, same answer. Whoever acts (repair.py, rebalance.py) gathers what it knows of volumes and
disks, asks here, and does one file at a time; the simulated cluster of the tests asks the same functions.
"""

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from objstore.blobs.placement import Chance, Fault, Move, admits, judge, rules_of, substitute
from objstore.blobs.topology import Policy, Rules, Topology
from objstore.blobs.volumes import VolumeRecord, VolumeState

EVEN_AT_LEAST: Final = 0.01  # Share of a disk: differences below are not worth a move, however empty all are.
TRIES_MAX: Final = 200_000  # Pairs of file and disk that one plan looks at: a bound on its time.
REMEMBERED_MAX: Final = 1_000_000  # Volumes that were found to conform.
SUBSTITUTES_MAX: Final = 64  # Disks tried for one file where the moves of a volume wait for each other.
NEVER_FITS: Final = 1 << 62  # Bytes: no target is looked for.
MISPLACED: Final = (Fault.OUTSIDE, Fault.CROWDED)


class Damage(NamedTuple):
    """One fragment file that is not what, or where, it should be."""

    record: VolumeRecord
    file: int  # Index of the fragment file.
    reason: str
    moving: bool = False  # It is whole: its disk is to be emptied.


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one look at all disks and at metadata has shown.

    Attributes:
        sizes: of every disk that answered: (volume, index of the file) -> bytes.
        gone: disks whose files count as lost, or are to be rebuilt without waiting any longer.
        intents: files, as (volume, index), known to lack or to fail something.
        leaving: disks that are to be emptied.
    """

    sizes: Mapping[int, Mapping[tuple[int, int], int]]
    gone: Collection[int]
    intents: Collection[tuple[int, int]]
    leaving: Collection[int]


def damages(record: VolumeRecord, found: Findings) -> list[Damage]:
    """The files of a sealed volume that are to be rebuilt, or moved off disks to be emptied."""
    named: list[Damage] = []
    for file, number in enumerate(record.disks):
        if (record.id, file) in found.intents:
            named.append(Damage(record, file, "acknowledged stripes in it are missing or do not verify"))
        elif number in found.gone:
            named.append(Damage(record, file, f"disk {number} is gone"))
        elif number in found.sizes:
            size = found.sizes[number].get((record.id, file))
            if size is None:
                named.append(Damage(record, file, f"it is not on disk {number}"))
            elif size < record.length:
                named.append(Damage(record, file, f"{size} of {record.length} bytes"))
            elif number in found.leaving:
                named.append(Damage(record, file, f"disk {number} is to be emptied", moving=True))
    return named


def damaged_per_volume(found: Iterable[Damage]) -> Counter[int]:
    """Files of each volume that are to be rebuilt; those that are only to be moved are whole."""
    return Counter(damage.record.id for damage in found if not damage.moving)


def by_urgency(found: Sequence[Damage], failed: Mapping[tuple[int, int], int]) -> list[Damage]:
    """The order of work: what is damaged before what only moves, first volumes with the least left to lose.

    Args:
        failed: attempts in vain, by volume and file: what cannot be rebuilt must not keep others waiting.
    """
    lost = damaged_per_volume(found)

    def urgency(damage: Damage) -> tuple[bool, int, int, int]:
        volume = damage.record.id
        return damage.moving, failed.get((volume, damage.file), 0), damage.record.m - lost[volume], volume

    return sorted(found, key=urgency)


PolicyOf = Callable[[VolumeRecord], Policy]
MayMove = Callable[[VolumeRecord, int], bool]
"""Whether a file of a volume may leave the disk with this number now."""


def may_always(record: VolumeRecord, number: int) -> bool:
    return True


def target(topology: Topology, policy: Policy, record: VolumeRecord, file: int, chance: Chance) -> int | None:
    """The disk on which a file is to be rebuilt: where it was if that may be written to, else the one that
    placement gives; None if there is none."""
    named = topology.spots.get(record.disks[file])
    if named is not None and named.usable and not named.leaving and policy.admits(named.site, named.pool):
        return named.number
    return substitute(
        topology,
        policy,
        k=record.k,
        m=record.m,
        disks=record.disks,
        file=file,
        chance=chance,
        size=2 * record.length,  # A disk is never filled to its last byte by repair.
    )


# --- rebalancing ----------------------------------------------------------------------------------


class Relocation(NamedTuple):
    """One fragment file that is whole, and is to lie on another disk."""

    volume: int
    file: int
    source: int  # Numbers of disks.
    target: int
    size: int  # Bytes.
    reason: str


class Conformity:
    """Which volumes do not lie as their policies say. Remembers those that do: judging takes its time.

    What was found holds for as long as the volume's files and their disks are where they were, and the policy
    allows as many together.
    """

    def __init__(self) -> None:
        self._stands: dict[int, tuple[str, str, str, int, str, bool]] = {}
        self._rules: dict[tuple[Policy, int, int], Rules] = {}
        self._fine: dict[int, int] = {}  # By volume: a digest of its disks.

    def misplaced(
        self, records: Iterable[VolumeRecord], topology: Topology, policy_of: PolicyOf
    ) -> list[VolumeRecord]:
        """The sealed volumes of which a file is outside its policy, or too close to others.

        Files on disks to be emptied or gone do not count: those are repair's.
        """
        stands = {
            number: (spot.site, spot.rack, spot.node, spot.device, spot.pool, spot.leaving)
            for number, spot in topology.spots.items()
        }
        moved = {number for number, where in stands.items() if self._stands.get(number) != where}
        self._stands = stands
        rules: dict[tuple[Policy, int, int], Rules] = {}
        found: list[VolumeRecord] = []
        fine: dict[int, int] = {}
        for record in records:
            if record.state != VolumeState.SEALED or not record.length:
                continue
            policy = policy_of(record)
            key = (policy, record.fragment_count, record.m)
            if key not in rules:
                rules[key] = rules_of(topology, *key)
            digest = hash((key, *record.disks))
            known = self._fine.get(record.id) == digest and self._rules.get(key) == rules[key]
            if (known and moved.isdisjoint(record.disks)) or not self._faulty(record, topology, policy):
                if len(fine) < REMEMBERED_MAX:
                    fine[record.id] = digest
            else:
                found.append(record)
        self._rules, self._fine = rules, fine
        return found

    def _faulty(self, record: VolumeRecord, topology: Topology, policy: Policy) -> bool:
        return _faults(topology, policy, record, record.disks) > 0


def _no_chance() -> float:
    return 0.0


def conforming_moves(
    misplaced: Iterable[VolumeRecord],
    topology: Topology,
    policy_of: PolicyOf,
    chance: Chance,
    *,
    limit: int,
    may_move: MayMove = may_always,
) -> list[Relocation]:
    """What to move so that these volumes lie as their policies say now: one file of each, then see again.

    Those that end a breach of residency come first. Of the moves that mend a volume together, some have to
    wait until another has made room: one is named that may be done now.
    """
    found: list[tuple[bool, Relocation]] = []
    for record in misplaced:
        policy = policy_of(record)
        verdict = judge(
            topology,
            policy,
            k=record.k,
            m=record.m,
            disks=record.disks,
            chance=chance,
            size=2 * record.length,
        )
        moves = [move for move in verdict.moves if move.fault in MISPLACED and may_move(record, move.disk)]
        move = _possible(topology, policy, record, moves)
        if move is not None:
            reason = move.fault.value
            one = Relocation(record.id, move.file, move.disk, move.target, record.length, reason)
            found.append((move.fault is not Fault.OUTSIDE, one))
    found.sort(key=lambda each: each[0])
    return [one for _, one in found[:limit]]


def _possible(topology: Topology, policy: Policy, record: VolumeRecord, moves: Sequence[Move]) -> Move | None:
    """The first of these moves that may be done now; or else, where they wait for each other's room (two that
    would swap sites, say), one of them to another disk that leaves less to mend."""
    for move in moves:
        if _admits(topology, policy, record, move.file, move.target):
            return move
    before = _faults(topology, policy, record, record.disks)
    for move in moves:
        tried = 0
        for spot in sorted(topology.spots.values(), key=lambda spot: -spot.free):
            if tried >= SUBSTITUTES_MAX or spot.free < 2 * record.length:
                break
            if _admits(topology, policy, record, move.file, spot.number):
                tried += 1
                disks = list(record.disks)
                disks[move.file] = spot.number
                if _faults(topology, policy, record, disks) < before:
                    return move._replace(target=spot.number)
    return None


def _admits(topology: Topology, policy: Policy, record: VolumeRecord, file: int, target: int) -> bool:
    return admits(topology, policy, k=record.k, m=record.m, disks=record.disks, file=file, target=target)


def _faults(topology: Topology, policy: Policy, record: VolumeRecord, disks: Sequence[int]) -> int:
    """How many files do not lie as the policy says, if they lay on these disks."""
    verdict = judge(topology, policy, k=record.k, m=record.m, disks=disks, chance=_no_chance, size=NEVER_FITS)
    return sum(fault in MISPLACED for fault in verdict.faults.values())


@dataclass(slots=True)
class _Device:
    """Disks that share their space, and the bytes that metadata counts on them: trash goes by itself."""

    total: int
    disks: list[int] = field(default_factory=list)
    used: int = 0

    @property
    def fill(self) -> float:
        return self.used / self.total


Region = tuple[str, str]  # A pool, and a site or "" for all of the pool's.


class Balance(NamedTuple):
    """How full the disks of a region are with files that count, as shares of their sizes."""

    region: Region
    mean: float
    fullest: float
    emptiest: float
    slack: float  # So far from the mean is even enough.

    @property
    def even(self) -> bool:
        return self.fullest <= self.mean + self.slack and self.emptiest >= self.mean - self.slack


def balances(records: Iterable[VolumeRecord], topology: Topology, tolerance: float) -> list[Balance]:
    """Of every pool, and of every site of a pool: volumes may be bound to either.

    Only disks that take new files count, and files of sealed volumes. `tolerance` is a share of the mean.
    """
    devices = _devices(records, topology)
    return [_balance(region, members, tolerance) for region, members in _regions(topology, devices).items()]


def _balance(region: Region, devices: Collection[_Device], tolerance: float) -> Balance:
    mean = sum(device.used for device in devices) / sum(device.total for device in devices)
    found = [device.fill for device in devices]
    return Balance(region, mean, max(found), min(found), max(EVEN_AT_LEAST, tolerance * mean))


def _devices(records: Iterable[VolumeRecord], topology: Topology) -> dict[int, _Device]:
    """By number of the disk."""
    by_device: dict[int, _Device] = {}
    by_disk: dict[int, _Device] = {}
    for number, spot in sorted(topology.spots.items()):
        if spot.takes and spot.size > 0:
            device = by_device.setdefault(topology.paths[number][0], _Device(spot.size))
            device.disks.append(number)
            by_disk[number] = device
    for record in records:
        if record.state == VolumeState.SEALED:
            for number in record.disks:
                if (found := by_disk.get(number)) is not None:
                    found.used += record.length
    return by_disk


def _regions(topology: Topology, devices: Mapping[int, _Device]) -> dict[Region, list[_Device]]:
    """Whole pools first, then their sites."""
    found: dict[Region, dict[int, _Device]] = {}
    for number, device in devices.items():
        spot = topology.spots[number]
        for region in ((spot.pool, ""), (spot.pool, spot.site)):
            found.setdefault(region, {})[id(device)] = device
    return {
        region: list(found[region].values()) for region in sorted(found, key=lambda one: (one[1] != "", one))
    }


def evening_moves(
    records: Sequence[VolumeRecord],
    topology: Topology,
    policy_of: PolicyOf,
    *,
    tolerance: float,
    limit: int,
    may_move: MayMove = may_always,
) -> list[Relocation]:
    """What to move so that all disks are about equally full, in order; at most one file of a volume.

    Nothing moves while every disk is within `tolerance` (a share of the mean fill) of the mean. A move never
    makes a volume conform less, and always makes the fill of two disks more equal: so doing what was planned
    and planning again comes to an end.
    """
    devices = _devices(records, topology)
    planned: list[Relocation] = []
    done: set[int] = set()
    for region, members in _regions(topology, devices).items():
        now = _balance(region, members, tolerance)
        if now.even or len(planned) >= limit:
            continue
        planner = _Evening(topology, policy_of, may_move, now, done)
        planner.sort(records, devices, members)
        planned += planner.moves(limit - len(planned))
    return planned


class _Evening:
    """The plan for one region in the making.

    Args:
        moved: volumes of which a file moves already.
    """

    def __init__(
        self,
        topology: Topology,
        policy_of: PolicyOf,
        may_move: MayMove,
        now: Balance,
        moved: set[int],
    ) -> None:
        self._topology = topology
        self._policy_of = policy_of
        self._may_move = may_move
        self._mean, self._most, self._least = now.mean, now.mean + now.slack, now.mean - now.slack
        self._files: dict[int, Iterator[tuple[VolumeRecord, int]]] = {}  # By id of the fuller devices.
        self._full: list[tuple[float, int, _Device]] = []  # A heap, the fullest first.
        self._low: list[tuple[float, int, _Device]] = []  # Sorted, the emptiest first.
        self._moved = moved
        self._promised: Counter[int] = Counter()  # Bytes, by disk.
        self._tries = 0

    def sort(
        self,
        records: Iterable[VolumeRecord],
        devices: Mapping[int, _Device],
        members: Iterable[_Device],
    ) -> None:
        """Tell the devices that give from those that take.

        Args:
            devices: by number of the disk, of all regions.
            members: those of this one.
        """
        files: dict[int, list[tuple[VolumeRecord, int]]] = {}
        for device in members:
            if device.fill > self._mean:
                files[id(device)] = []
                self._full.append((-device.fill, device.disks[0], device))
            else:
                self._low.append((device.fill, device.disks[0], device))
        heapq.heapify(self._full)
        self._low.sort()
        for record in records:
            if record.state != VolumeState.SEALED or not record.length:
                continue
            for file, number in enumerate(record.disks):
                found = devices.get(number)
                if found is not None and id(found) in files:
                    files[id(found)].append((record, file))
        self._files = {key: iter(each) for key, each in files.items()}

    def moves(self, limit: int) -> list[Relocation]:
        planned: list[Relocation] = []
        while len(planned) < limit and self._full and self._low and self._tries < TRIES_MAX:
            source = heapq.heappop(self._full)[2]
            over = source.fill > self._most
            if not over and self._low[0][0] >= self._least:
                break
            move = self._next(source, over=over)
            if move is None:
                continue  # Nothing of it may go where it would help.
            planned.append(move)
            if source.fill > self._mean:
                heapq.heappush(self._full, (-source.fill, source.disks[0], source))
        return planned

    def _next(self, source: _Device, *, over: bool) -> Relocation | None:
        """The next file of a device that may go, to the emptiest device that may take it.

        Args:
            over: it is too full: any device that is emptier than the mean will do.
        """
        for record, file in self._files[id(source)]:
            if record.id in self._moved or not self._may_move(record, record.disks[file]):
                continue
            for place, (fill, _, device) in enumerate(self._low):
                if (not over and fill >= self._least) or self._tries >= TRIES_MAX:
                    break
                self._tries += 1
                # With less between them, the two would only change places.
                step = record.length * (1 / source.total + 1 / device.total) / 2
                if source.fill - fill <= step:
                    break
                number = self._taker(record, file, device)
                if number is not None:
                    return self._moving(record, file, source, place, number)
        return None

    def _taker(self, record: VolumeRecord, file: int, device: _Device) -> int | None:
        policy = self._policy_of(record)
        for number in device.disks:
            room = self._topology.spots[number].free - self._promised[number]
            if room > 2 * record.length and admits(
                self._topology, policy, k=record.k, m=record.m, disks=record.disks, file=file, target=number
            ):
                return number
        return None

    def _moving(
        self, record: VolumeRecord, file: int, source: _Device, place: int, number: int
    ) -> Relocation:
        device = self._low.pop(place)[2]
        reason = f"{source.fill:.1%} of its disk is full, of disk {number} {device.fill:.1%}"
        self._moved.add(record.id)
        self._promised[number] += record.length
        source.used -= record.length
        device.used += record.length
        if device.fill < self._mean:
            insort(self._low, (device.fill, device.disks[0], device))
        return Relocation(record.id, file, record.disks[file], number, record.length, reason)
