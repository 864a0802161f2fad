"""Rebalancing: whole fragment files move to where the layout wants them, and from full disks to empty ones.

Two reasons, in this order: a volume does not lie as its policy says now (disks, machines or policies have
changed since it was made), or disks are not equally full (new ones came). What to move is decided in
plans.py; a move is repair's: the copy stands, durable and read back, before the record names it, and the
old file goes through the trash with its grace.

It is the work that can always wait. It has a pace of its own within the upkeep's, and stops between two
files while repair has something to do. A file in motion counts as away, beside those that are away or
damaged: what that may come to is decided in blobs/absence.py, for all who take something away. Of a volume
one file moves at a time. A plan is made of what is known at one moment; each move is looked at again when
its turn comes.

Concurrency: one process, under its claim; the caller holds whatever keeps repair, trash and compaction away.
"""

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec

from objstore.blobs.absence import may_leave_out
from objstore.blobs.placement import admits
from objstore.blobs.topology import Topology
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.errors import Conflict, Corrupt, MetaUnavailable, StoreError
from objstore.node.disk import DiskState
from objstore.upkeep import plans
from objstore.upkeep.claims import Deposed
from objstore.upkeep.context import Context
from objstore.upkeep.plans import PolicyOf, Relocation
from objstore.upkeep.repair import RepairReport, move_file
from objstore.upkeep.survey import (
    GONE_STATES,
    all_intents,
    all_volumes,
    leaving_disks,
    policies_of,
    topology_of,
)

log = logging.getLogger(__name__)

PLANNED_MAX: Final = 256  # Moves of one plan: then disks and volumes are looked at again.
KNOWN_S: Final = 30.0  # What was seen of the disks is good for so long: asking thousands is work, too.


class RebalanceRules(NamedTuple):
    enabled: bool = True
    bytes_per_second: float = 32 * 1024 * 1024
    tolerance: float = 0.05  # Share of the mean fill by which a disk may be fuller or emptier.


DEFAULT_RULES: Final = RebalanceRules()


class RebalanceStatus(msgspec.Struct):
    """For people and metrics."""

    misplaced: int = 0  # Volumes that do not lie as their policies say.
    even: bool = True  # Whether all disks are within the tolerance.
    mean: float = 0.0  # Fill of the region with the widest spread, as a share of its disks' size;
    fullest: float = 0.0  # its fullest disk,
    emptiest: float = 0.0  # and its emptiest.
    planned: int = 0  # Moves of the last plan,
    left: int = 0  # and how many of them are not done.
    left_bytes: int = 0
    moved: int = 0  # Files since the start,
    moved_bytes: int = 0  # and their bytes.
    failed: int = 0  # Moves that failed, since the start.
    failure: str = ""  # The last one's.


@dataclass(frozen=True, slots=True)
class _Known:
    """What a plan was made of."""

    topology: Topology
    policy_of: PolicyOf
    away: set[int]  # Disks that may not answer.
    damaged: dict[int, set[int]]  # Files by volume.
    at_s: float  # When.

    def may_move(self, record: VolumeRecord, number: int) -> bool:
        """Only a file that is whole, and if the volume could do without it while it is in motion."""
        damaged = self.damaged.get(record.id, ())
        if number in self.away or record.disks.index(number) in damaged:
            return False
        return may_leave_out(record, self.away, [number], damaged) == [number]


def _is_readable(ctx: Context, number: int) -> bool:
    disk = ctx.disks.get(number)
    return disk is not None and disk.state not in GONE_STATES


class Rebalance:
    """Remembers which volumes conform. One instance a process."""

    def __init__(self, ctx: Context, rules: RebalanceRules = DEFAULT_RULES) -> None:
        self._ctx = replace(ctx, pace=ctx.pace.slower(rules.bytes_per_second))
        self._rules = rules
        self._conformity = plans.Conformity()
        self._known: _Known | None = None
        self.status = RebalanceStatus()

    async def plan(self) -> list[Relocation]:
        """What to move next, in order; nothing if all is well, or rebalancing is off.

        Raises: MetaUnavailable.
        """
        records = await all_volumes(self._ctx)
        known = self._known = await self._look()
        # Pure, and seconds of work where there are many volumes: not on the loop.
        moves = await asyncio.to_thread(self._decide, records, known)
        self.status.planned = self.status.left = len(moves)
        self.status.left_bytes = sum(move.size for move in moves)
        return moves

    async def _look(self) -> _Known:
        ctx = self._ctx
        topology = await topology_of(ctx)
        leaving = await leaving_disks(ctx)
        away = {
            number
            for number, spot in topology.spots.items()
            if not spot.usable and (number not in leaving or not _is_readable(ctx, number))
        }
        damaged: dict[int, set[int]] = defaultdict(set)
        for intent in await all_intents(ctx):
            damaged[intent.volume].add(intent.index)
        return _Known(topology, await policies_of(ctx), away, damaged, ctx.clock.monotonic())

    def _decide(self, records: list[VolumeRecord], known: _Known) -> list[Relocation]:
        status, tolerance = self.status, self._rules.tolerance
        topology, policy_of = known.topology, known.policy_of
        misplaced = self._conformity.misplaced(records, topology, policy_of)
        status.misplaced = len(misplaced)
        regions = plans.balances(records, topology, tolerance)
        status.even = all(region.even for region in regions)
        if regions:
            widest = max(regions, key=lambda region: region.fullest - region.emptiest)
            status.mean, status.fullest, status.emptiest = widest.mean, widest.fullest, widest.emptiest
        if not self._rules.enabled:
            return []
        moves = plans.conforming_moves(
            misplaced, topology, policy_of, self._ctx.chance, limit=PLANNED_MAX, may_move=known.may_move
        )
        if moves:
            return moves
        return plans.evening_moves(
            records,
            topology,
            policy_of,
            tolerance=tolerance,
            limit=PLANNED_MAX,
            may_move=known.may_move,
        )

    async def move(self, planned: Relocation) -> bool:
        """Do one move of a plan; False if it is not right any more, or failed.

        Raises: MetaUnavailable, Deposed.
        """
        status = self.status
        status.left -= 1
        status.left_bytes -= planned.size
        try:
            moved = await self._move(planned)
        except (Deposed, MetaUnavailable):
            raise
        except Conflict:
            return False  # The volume has changed meanwhile: the next plan sees it.
        except StoreError as failure:
            status.failed += 1
            status.failure = f"{planned.volume}.{planned.file}: {failure}"
            log.warning("fragment file %d.%d not moved: %s", planned.volume, planned.file, failure)
            return False
        if moved:
            status.moved += 1
            status.moved_bytes += planned.size
            log.info("fragment file moved", extra=planned._asdict())
        return moved

    async def _move(self, planned: Relocation) -> bool:
        ctx = self._ctx
        try:
            record = await ctx.ledger.get(planned.volume, fresh=True)
        except Corrupt:
            return False  # It is gone.
        target = ctx.disks.get(planned.target)
        if (
            record.state != VolumeState.SEALED
            or record.disks[planned.file] != planned.source
            or target is None
            or target.state is not DiskState.HEALTHY
        ):
            return False
        if self._known is None or ctx.clock.monotonic() - self._known.at_s > KNOWN_S:
            self._known = await self._look()
        known = self._known
        if not known.may_move(record, planned.source) or not admits(
            known.topology,
            known.policy_of(record),
            k=record.k,
            m=record.m,
            disks=record.disks,
            file=planned.file,
            target=planned.target,
        ):
            return False
        await move_file(ctx, record, planned.file, target, RepairReport())
        return True
