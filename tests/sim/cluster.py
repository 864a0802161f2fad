"""A cluster of simulated disks and simulated time, run by the product's own decisions.

Where a volume lies, which file is rebuilt first, on which disk, what the rebalancer moves: all of it is
asked of `objstore.blobs.placement`, `objstore.blobs.absence` and `objstore.upkeep.plans`, as the running
store asks. Simulated are the disks (a size; they fail and are replaced), the bytes (a number) and the time
that copying takes.

A volume here stands for many of a real store: it is as large as its tenant's data asks for. One file is
rebuilt or moved at a time, as in the store, at the rate of the whole cluster.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from objstore.blobs.absence import may_leave_out, shortages
from objstore.blobs.placement import place_volume
from objstore.blobs.topology import DEFAULT_POLICY, Policy, Spot, Topology
from objstore.blobs.volumes import Lane, VolumeRecord, VolumeState
from objstore.upkeep import plans

GB = 1_000_000_000
DAY_S = 86_400.0
YEAR_S = 365.25 * DAY_S
MOVES_MAX = 10_000  # Of one plan.
NOTED = 250  # Volumes that are written until writers see free space anew.
WHOLE = 1 << 62  # Bytes: what a living disk says of every file that its record names.


class Shape(NamedTuple):
    """How large the cluster is, and how it is worked with."""

    sites: int = 2
    racks: int = 10  # In each site.
    nodes: int = 5  # In each rack.
    disks: int = 36  # In each node.
    disk_bytes: int = 16_000 * GB
    tenants: int = 2_000
    volumes: int = 20_000
    fill: float = 0.6  # Of all disks, with all volumes.
    k: int = 8
    m: int = 4
    afr: float = 0.015  # Share of the disks that fail in a year.
    grace_s: float = 900.0  # Until repair begins.
    repair_s: float = DAY_S  # To rebuild what is on one disk of mean fill.
    replace_s: float = 7 * DAY_S  # Until a new disk stands in the place of one that failed.
    rebalance_s: float = DAY_S / 4  # To fill one disk to the mean.
    rebalance_period_s: float = 14 * DAY_S  # Between two looks; the store looks every few minutes.
    tolerance: float = 0.05


class Place(NamedTuple):
    site: str
    rack: str
    node: str


@dataclass(slots=True)
class Sums:
    """What has happened."""

    failures: int = 0
    rebuilt: int = 0  # Files.
    emptied: int = 0  # Files moved off disks to be emptied.
    moved: int = 0  # Files that the rebalancer moved.
    lost: set[int] = field(default_factory=set)  # Volumes.
    worst: int = 0  # Most files of one volume away at a time.
    most_disks: int = 0  # Most disks at a time whose files were not all rebuilt yet.
    waited: int = 0  # Times that there was no disk for a file.


class _Copy(NamedTuple):
    """A file that is being rebuilt or moved."""

    record: VolumeRecord
    file: int
    target: int
    kind: str  # Of Sums.


class _Everything(dict[tuple[int, int], int]):
    def get(self, key: object, default: object = None) -> int:
        return WHOLE


class SimCluster:
    """Every random choice comes from `seed`."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.records: dict[int, VolumeRecord] = {}
        self.sums = Sums()
        self.policies: dict[str, Policy] = {"": DEFAULT_POLICY}
        self._places: dict[int, Place] = {}  # Of every disk that was not removed.
        self._files: dict[int, set[int]] = {}  # Volumes with a file on the disk.
        self._used: Counter[int] = Counter()  # Bytes, by disk.
        self._failed: dict[int, float] = {}  # Since when.
        self._draining: set[int] = set()
        self._newest_disk = self._newest_volume = self._newest_event = 0
        self._events: list[tuple[float, int, str, int]] = []
        self._topology: Topology | None = None
        self._work: list[plans.Damage] | None = None  # Last first; None: to be found anew.
        self._moves: list[plans.Relocation] = []  # Last first.
        self._copying: _Copy | None = None
        self._conformity = plans.Conformity()
        for site in range(shape.sites):
            for rack in range(shape.racks):
                for node in range(shape.nodes):
                    self.add_node(f"site{site}", f"rack{rack}", f"node{site}-{rack}-{node}")
        self.tenants = [self._tenant() for _ in range(shape.tenants)]
        self._mean_bytes = shape.fill * shape.disk_bytes
        total = self._mean_bytes * len(self._places)
        self._file_bytes = total / shape.volumes / (shape.k + shape.m)
        self._at(shape.rebalance_period_s, "rebalance")
        self._next_failure()

    def _tenant(self) -> str:
        """The name of its policy: one in ten is bound to a site, one in ten wants racks apart."""
        kind = self.rng.random()
        if kind < 0.1:
            site = f"site{self.rng.randrange(self.shape.sites)}"
            return self._policy(Policy(name=f"only {site}", sites=(site,)))
        if kind < 0.2:
            return self._policy(Policy(name="racks", spread="rack"))
        return ""

    def _policy(self, policy: Policy) -> str:
        self.policies[policy.name] = policy
        return policy.name

    # What an operator and tenants do.

    def add_node(self, site: str, rack: str, node: str) -> None:
        for _ in range(self.shape.disks):
            self._add_disk(Place(site, rack, node))

    def disks_of(self, node: str) -> list[int]:
        return [number for number, place in self._places.items() if place.node == node]

    def drain(self, node: str) -> None:
        self._draining.update(self.disks_of(node))
        self._changed()

    def fail(self, number: int) -> None:
        """A disk breaks now, and is replaced some days later."""
        self.sums.failures += 1
        self._failed[number] = self.now_s
        self._at(self.shape.grace_s, "grace")
        self._at(self.shape.replace_s, "replace", number)
        self._changed()
        hit = [self.records[volume] for volume in self._files[number]]
        for short in shortages(hit, self._failed):
            self.sums.lost.add(short.volume)
            self._drop(short.volume)
        away = (sum(disk in self._failed for disk in record.disks) for record in hit)
        self.sums.worst = max(self.sums.worst, *away, 0)
        unfinished = sum(bool(self._files[disk]) for disk in self._failed)
        self.sums.most_disks = max(self.sums.most_disks, unfinished)

    def write(self, count: int) -> None:
        """New volumes of tenants by chance, sealed at once."""
        for at in range(count):
            if at % NOTED == 0:
                self._topology = None
            policy = self.policies[self.rng.choice(self.tenants)]
            shape = self.shape
            chosen = place_volume(self.topology(), policy, k=shape.k, m=shape.m, chance=self.rng.random)
            self._newest_volume += 1
            self._keep(
                VolumeRecord(
                    id=self._newest_volume,
                    k=chosen.k,
                    m=shape.m,
                    disks=chosen.disks,
                    state=VolumeState.SEALED,
                    lane=Lane.BULK,
                    writer=bytes(16),
                    policy=policy.name,
                    length=int(self._file_bytes * self.rng.uniform(0.5, 1.5)),
                )
            )
        self._topology = None

    def delete(self, count: int) -> None:
        """Volumes by chance are gone."""
        for volume in self.rng.sample(list(self.records), count):
            self._drop(volume)
        self._topology = None

    # What there is.

    def topology(self) -> Topology:
        if self._topology is None:
            size = self.shape.disk_bytes
            self._topology = Topology(
                Spot(
                    number,
                    free=max(0, size - self._used[number]),
                    size=size,
                    site=where.site,
                    rack=where.rack,
                    node=where.node,
                    device=number,
                    usable=number not in self._failed,
                    leaving=number in self._draining,
                )
                for number, where in self._places.items()
            )
        return self._topology

    def policy_of(self, record: VolumeRecord) -> Policy:
        return self.policies[record.policy]

    def balances(self) -> list[plans.Balance]:
        self._topology = None
        return plans.balances(self.records.values(), self.topology(), self.shape.tolerance)

    def misplaced(self) -> int:
        """Volumes that do not lie as their policies say."""
        return len(self._misplaced())

    def _misplaced(self) -> list[VolumeRecord]:
        return self._conformity.misplaced(self.records.values(), self.topology(), self.policy_of)

    def remove(self, node: str) -> None:
        """A node that is empty leaves."""
        for number in self.disks_of(node):
            assert not self._files[number], f"disk {number} is not empty"
            del self._places[number]
            self._draining.discard(number)
        self._changed()

    def counted(self, disks: Iterable[int]) -> int:
        """Files that count on these disks."""
        return sum(len(self._files[number]) for number in disks)

    # Time.

    def run(self, until_s: float) -> None:
        """Let everything happen that happens until then."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, kind, number = heapq.heappop(self._events)
            match kind:
                case "failure":
                    living = [disk for disk in self._places if disk not in self._failed]
                    self.fail(self.rng.choice(living))
                    self._next_failure()
                case "grace":
                    self._changed()
                case "replace":
                    self._replace(number)
                case "rebalance":
                    self._at(self.shape.rebalance_period_s, "rebalance")
                    if not self._moves:
                        self._plan_rebalance()
                case "copied":
                    self._copied()
            self._go_on()
        self.now_s = until_s

    def settle(self) -> None:
        """Without any further failure: until nothing is left to rebuild or to move."""
        self._events = [event for event in self._events if event[2] != "failure"]
        heapq.heapify(self._events)
        before = None
        while self._work or self._failed or before != self.sums:
            before = replace(self.sums)
            self.run(self.now_s + 2 * self.shape.rebalance_period_s)

    def _at(self, after_s: float, kind: str, number: int = 0) -> None:
        self._newest_event += 1
        heapq.heappush(self._events, (self.now_s + after_s, self._newest_event, kind, number))

    def _next_failure(self) -> None:
        per_s = self.shape.afr * len(self._places) / YEAR_S
        if per_s:
            self._at(self.rng.expovariate(per_s), "failure")

    def _replace(self, number: int) -> None:
        if self._files[number]:  # Not all of it is rebuilt: its number is still in use.
            self._at(DAY_S, "replace", number)
            return
        del self._failed[number]
        self._add_disk(self._places.pop(number))
        if number in self._draining:
            self._draining.remove(number)
            self._draining.add(self._newest_disk)
        self._changed()

    # Repair, draining, rebalancing: one file at a time.

    def _go_on(self) -> None:
        """Begin with the next file, if none is under way. What is damaged goes before what is only uneven."""
        if self._copying is not None:
            return
        if self._work is None:
            self._work = self._find()
        while self._work and self._copying is None:
            self._rebuild(self._work.pop())
        while self._moves and self._copying is None:
            self._relocate(self._moves.pop())

    def _rebuild(self, damage: plans.Damage) -> None:
        record = self.records.get(damage.record.id)
        if record is None or record.disks[damage.file] != damage.record.disks[damage.file]:
            return
        policy, chance = self.policy_of(record), self.rng.random
        target = plans.target(self.topology(), policy, record, damage.file, chance)
        if target is None:
            self.sums.waited += 1
            return
        kind = "emptied" if damage.moving else "rebuilt"
        self._copying = _Copy(record, damage.file, target, kind)
        rate = self._mean_bytes * (record.k + 1) / self.shape.repair_s
        self._at(record.length * (1 if damage.moving else record.k + 1) / rate, "copied")

    def _relocate(self, move: plans.Relocation) -> None:
        record = self.records.get(move.volume)
        if record is None or record.disks[move.file] != move.source or move.target in record.disks:
            return
        if not self._takes(move.target) or not self._may_move(record, move.source):
            return
        self._copying = _Copy(record, move.file, move.target, "moved")
        self._at(record.length / (self._mean_bytes / self.shape.rebalance_s), "copied")

    def _copied(self) -> None:
        """The copy stands: the record names it, unless it or the disk below it has changed meanwhile."""
        assert self._copying is not None
        record, file, target, kind = self._copying
        self._copying = None
        if self.records.get(record.id) is not record or not self._takes(target):
            self._work = None
            return
        self._move(record, file, target)
        setattr(self.sums, kind, getattr(self.sums, kind) + 1)

    def _find(self) -> list[plans.Damage]:
        gone = {number for number, since in self._failed.items() if self.now_s >= since + self.shape.grace_s}
        found = plans.Findings(
            sizes={number: _Everything() for number in self._draining - self._failed.keys()},
            gone=gone,
            intents=(),
            leaving=self._draining,
        )
        volumes = sorted({volume for number in gone | self._draining for volume in self._files[number]})
        named = [damage for volume in volumes for damage in plans.damages(self.records[volume], found)]
        return plans.by_urgency(named, {})[::-1]

    def _plan_rebalance(self) -> None:
        self._topology = None
        moves = plans.conforming_moves(
            self._misplaced(),
            self.topology(),
            self.policy_of,
            self.rng.random,
            limit=MOVES_MAX,
            may_move=self._may_move,
        )
        if not moves:
            moves = plans.evening_moves(
                list(self.records.values()),
                self.topology(),
                self.policy_of,
                tolerance=self.shape.tolerance,
                limit=MOVES_MAX,
                may_move=self._may_move,
            )
        self._moves = moves[::-1]

    def _takes(self, number: int) -> bool:
        return number in self._places and number not in self._failed and number not in self._draining

    def _may_move(self, record: VolumeRecord, number: int) -> bool:
        return may_leave_out(record, self._failed, [number]) == [number]

    # The books.

    def _changed(self) -> None:
        self._topology = self._work = None

    def _add_disk(self, where: Place) -> None:
        self._newest_disk += 1
        self._places[self._newest_disk] = where
        self._files[self._newest_disk] = set()
        self._topology = None

    def _keep(self, record: VolumeRecord) -> None:
        assert len(set(record.disks)) == record.fragment_count
        self.records[record.id] = record
        for number in record.disks:
            self._files[number].add(record.id)
            self._used[number] += record.length

    def _drop(self, volume: int) -> None:
        record = self.records.pop(volume)
        for number in record.disks:
            self._files[number].remove(volume)
            self._used[number] -= record.length

    def _move(self, record: VolumeRecord, file: int, target: int) -> None:
        assert target in self._places
        assert target not in self._failed
        disks = list(record.disks)
        disks[file] = target
        self._drop(record.id)
        self._keep(msgspec.structs.replace(record, disks=disks))
