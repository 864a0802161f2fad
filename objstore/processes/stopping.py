"""`objstore safe-to-stop`: whether machines or disks can stop now without a client noticing.

It is safe if, with these away beside what is away already, every volume can be read, every placement policy
that can make new volumes still can, and metadata takes commits. What is found is a look at one moment: it is
asked again before the next machine.

`verdict` decides, and is pure; `Stopping` gathers what it needs to know.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from objstore.admin.app import Problem
from objstore.blobs.absence import shortages
from objstore.blobs.placement import Placement, place_volume
from objstore.blobs.topology import DEFAULT_POLICY, Layout, Policy, Topology
from objstore.blobs.volumes import VolumeRecord
from objstore.errors import StoreError, TooFewDisks, WeakerPromise
from objstore.meta.schema import MemberRecord
from objstore.node.authority import GATEWAY
from objstore.node.disk import DiskState
from objstore.processes.engine import is_shared
from objstore.processes.outlook import away_disks
from objstore.processes.parts import Parts, survey_of
from objstore.upkeep.context import named
from objstore.upkeep.service import Service
from objstore.upkeep.survey import all_intents, all_volumes

LISTED_MAX: Final = 1_000
ASKED_MAX: Final = 256  # Machines and disks of one question.


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFacts:
    """What metadata needs of disks, where it has a journal."""

    copies: int  # m+1.
    healthy: set[int]  # Disks that can hold a copy.
    newest: list[set[int]]  # Of each of its newest files: the disks that have it.
    fenced: bool  # More than half of all disks must be reached.
    disks: set[int] = field(default_factory=set)  # All, those that are away among them.


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """How the store stands now."""

    records: Sequence[VolumeRecord]
    damaged: Mapping[int, Collection[int]]  # By volume: indexes of files that cannot be read.
    away: set[int]  # Disks that cannot be read.
    layout: Layout
    topology: Topology
    k: int
    m: int
    journal: JournalFacts | None  # None: metadata is in PostgreSQL.
    gateways: set[bytes] = field(default_factory=set)  # Those that serve.


@dataclass(slots=True)
class Verdict:
    reasons: list[str] = field(default_factory=list)  # Why it is not safe.
    notes: list[str] = field(default_factory=list)  # What is weaker meanwhile.
    volumes: list[int] = field(default_factory=list)  # That could not be read.

    @property
    def safe(self) -> bool:
        return not self.reasons


def verdict(facts: Facts, stopping: Collection[int], machines: Collection[bytes] = ()) -> Verdict:
    """Whether disks `stopping` (and gateways among `machines`) can be away beside what is away already."""
    found = Verdict()
    _reads(facts, stopping, found)
    _writes(facts, stopping, found)
    if facts.journal is not None:
        _commits(facts.journal, stopping, found)
    if facts.gateways and facts.gateways <= set(machines):
        found.reasons.append("no other gateway serves")
    return found


def _reads(facts: Facts, stopping: Collection[int], found: Verdict) -> None:
    away = facts.away.union(stopping)
    short = shortages(facts.records, away, facts.damaged)
    if not short:
        return
    before = {each.volume for each in shortages(facts.records, facts.away, facts.damaged)}
    found.volumes = [each.volume for each in short]
    worst = max(short, key=lambda each: each.away - each.m)
    volumes = named(found.volumes, len(short))
    already = f"; {len(before)} of them cannot be read now either" if before else ""
    found.reasons.append(
        f"{len(short)} volumes could not be read ({volumes}): up to {worst.away} of their fragment files"
        f" would be away or damaged, and they can do without {worst.m}{already}"
    )


def _writes(facts: Facts, stopping: Collection[int], found: Verdict) -> None:
    without = Topology(
        spot._replace(usable=spot.usable and spot.number not in stopping)
        for spot in facts.topology.spots.values()
    )
    for policy in (DEFAULT_POLICY, *facts.layout.policies.values()):
        name = f"buckets of policy {policy.name}" if policy.name else "buckets"
        k, _ = policy.code(facts.k, facts.m)
        now = _placed(facts.topology, policy, facts)
        then = _placed(without, policy, facts)
        if isinstance(now, str):
            found.notes.append(f"{name} cannot be written to now either: {now}")
        elif isinstance(then, str):
            found.reasons.append(f"{name} could not be written to: {then}")
        elif then.k < k:
            found.notes.append(f"new volumes of {name} would have {then.k} data fragments instead of {k}")


def _placed(topology: Topology, policy: Policy, facts: Facts) -> Placement | str:
    """Where a new volume could lie, or why nowhere."""
    try:
        k, m = policy.code(facts.k, facts.m)
        return place_volume(topology, policy, k=k, m=m, chance=lambda: 0.5)
    except (TooFewDisks, WeakerPromise) as failure:
        return str(failure)


def _commits(journal: JournalFacts, stopping: Collection[int], found: Verdict) -> None:
    left = journal.healthy.difference(stopping)
    if len(left) < journal.copies:
        found.reasons.append(
            f"metadata's journal would have {len(left)} disks for its {journal.copies} copies"
        )
    if any(holders and holders <= set(stopping) for holders in journal.newest):
        found.reasons.append(
            "every copy of metadata's newest journal lies on these disks: no commit could go on"
        )
    if journal.fenced and len(left) <= len(journal.disks) // 2:
        found.reasons.append(
            f"metadata would take no commits: {len(left)} of {len(journal.disks)} disks would be there, and"
            " more than half are needed"
        )


class Stopping:
    """Answers operators, over the upkeep process's parts."""

    def __init__(self, parts: Parts, service: Service) -> None:
        self._parts = parts
        self._service = service

    async def judge(self, names: Sequence[str]) -> dict[str, Any]:
        """Whether machines (by name or id) and disks (by number) can stop. Raises: Problem, StoreError."""
        if not 1 <= len(names) <= ASKED_MAX:
            raise Problem(400, f"name one to {ASKED_MAX} machines or disks")
        disks, machines = await self._named(names)
        found = verdict(await self.facts(), disks, machines)
        return {
            "safe": found.safe,
            "disks": sorted(disks),
            "reasons": found.reasons,
            "notes": found.notes,
            "volumes": len(found.volumes),
            "which": found.volumes[:LISTED_MAX],
        }

    async def _named(self, names: Sequence[str]) -> tuple[set[int], set[bytes]]:
        ledger = self._parts.store.ledger
        records, members = await ledger.disks(), await ledger.members()
        disks: set[int] = set()
        machines: set[bytes] = set()
        for name in names:
            if name.isascii() and name.isdecimal() and int(name) in records:
                disks.add(int(name))
                continue
            member = _machine(members, name)
            machines.add(member)
            disks.update(
                number
                for number, record in records.items()
                if record.node == member and record.state != "retired"
            )
        return disks, machines

    async def facts(self) -> Facts:
        parts = self._parts
        ledger = parts.store.ledger
        layout = await ledger.layout()
        damaged: dict[int, set[int]] = defaultdict(set)
        for damage in await self._service.damages():
            if not damage.moving:
                damaged[damage.record.id].add(damage.file)
        for intent in await all_intents(self._service.context):  # Of open volumes, too.
            damaged[intent.volume].add(intent.index)
        members = await ledger.members()
        k, m = parts.spec.cluster.codec
        return Facts(
            records=await all_volumes(self._service.context),
            damaged=damaged,
            away=await away_disks(parts),
            layout=layout,
            topology=await survey_of(parts, layout),
            k=k,
            m=m,
            journal=None if is_shared(parts.spec) else await self._journal(m + 1),
            gateways={
                id_
                for id_, member in members.items()
                if member.role == GATEWAY and member.state == "joined" and not member.away_us
            },
        )

    async def _journal(self, copies: int) -> JournalFacts:
        """Raises: nothing that disks do: one that does not answer holds nothing."""
        holders: dict[str, set[int]] = defaultdict(set)
        healthy: set[int] = set()
        for number, disk in list(self._parts.disks.items()):
            try:
                logs = await disk.logs()
            except StoreError:
                continue
            if disk.state is DiskState.HEALTHY and not self._parts.opener.is_away(number):
                healthy.add(number)
            for entry in logs:
                holders[entry.name].add(number)
        newest = [
            holders[max(names)]
            for kind in ("journal.", "snapshot.")
            if (names := [name for name in holders if name.startswith(kind)])
        ]
        return JournalFacts(
            copies=copies,
            healthy=healthy,
            newest=newest,
            fenced=bool(self._parts.spec.cluster.term),
            disks=set(self._parts.disks),
        )


def _machine(members: Mapping[bytes, MemberRecord], name: str) -> bytes:
    """Raises: Problem (404) if there is not exactly one."""
    found = [id_ for id_, one in members.items() if one.name == name and one.state == "joined"]
    if not found and len(name) >= 4:
        joined = [id_ for id_, one in members.items() if one.state == "joined"]
        found = [id_ for id_ in joined if id_.hex().startswith(name.lower())]
    if len(found) != 1:
        words = "there is no machine or disk" if not found else f"{len(found)} machines are called"
        raise Problem(404, f"{words} {name}")
    return found[0]
