"""Storage nodes as operators see and change them: list, show, drain, remove. Over the upkeep process's parts.

    drain     no new volumes on any of its disks; repair moves their files to others; reads go on
    undrain   its disks are verified and take new volumes again; what has moved stays moved
    remove    a node on whose disks nothing counts any more: they leave the store, then no certificate of it
              is accepted

Draining is the state of its disks in metadata: no command has to live for it, and a gateway that dies leaves
it as it is. A disk that the node brings later is not drained: drain again.

Concurrency: one event loop; changes of disks one at a time (disks.py).
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from objstore.admin.app import NodesAdmin, Problem
from objstore.blobs.absence import shortages
from objstore.errors import BadArgument
from objstore.meta.schema import DiskRecord, MemberRecord
from objstore.node.authority import NODE
from objstore.objects.ledger import DRAINING, GIVEN_UP
from objstore.processes.disks import DiskSet, Held
from objstore.processes.members import Members
from objstore.processes.parts import Parts
from objstore.processes.stopping import Stopping

Json = dict[str, Any]


class NodeSet:
    """
    Args:
        members: the cluster's.
        remove: takes a machine out of the cluster, by its id in hex; True: its disks are given up with it.
    """

    def __init__(
        self,
        parts: Parts,
        disk_set: DiskSet,
        stopping: Stopping,
        members: Members,
        remove: Callable[[str, bool], Awaitable[Json]],
    ) -> None:
        self._parts = parts
        self._ledger = parts.store.ledger
        self._disk_set = disk_set
        self._stopping = stopping
        self._members = members
        self._remove = remove

    def admin(self) -> NodesAdmin:
        return NodesAdmin(
            nodes=self.listed,
            node=self.shown,
            drain=self.drain,
            prospect=self.prospect,
            remove=self.remove,
        )

    async def listed(self) -> list[Json]:
        """Every node that is joined."""
        held = await self._disk_set.held()
        disks = await self._ledger.disks()
        members = await self._ledger.members()
        rows = [
            self._row(id_, member, disks, held)
            for id_, member in members.items()
            if member.role == NODE and member.state == "joined"
        ]
        return sorted(rows, key=lambda row: str(row["name"]))

    async def shown(self, text: str) -> Json:
        """One node, disk by disk. Raises: Problem (404)."""
        id_, member = await self._find(text)
        held = await self._disk_set.held()
        disks = await self._ledger.disks()
        row = self._row(id_, member, disks, held)
        row["disks"] = [
            {
                "disk": number,
                "path": disk.path,
                "state": disk.state,
                "files": held[number].files,
                "bytes": held[number].bytes,
                "total": disk.size,
                "reason": disk.reason,
            }
            for number, disk in sorted(_own(id_, disks).items())
        ]
        return row

    async def drain(self, text: str, undo: bool) -> Json:
        """Begin to empty a node, or no longer. Asked again it goes on. Raises: Problem, StoreError."""
        id_, _ = await self._find(text)
        own = _own(id_, await self._ledger.disks())
        if undo:
            numbers = [number for number, disk in own.items() if disk.state == DRAINING]
            if not numbers:
                raise Problem(409, f"no disk of {text} is being drained")
            notes = [note for number in numbers for note in await self._disk_set.drain(number, undo=True)]
        else:
            numbers = [number for number, disk in own.items() if disk.state not in (DRAINING, *GIVEN_UP)]
            notes = await self._disk_set.drain_all(numbers) if numbers else []
        return {**await self.shown(text), "notes": sorted(set(notes))}

    async def prospect(self, text: str) -> Json:
        """What removing a node by force would lose, and the words that confirm it.

        Raises: Problem, StoreError.
        """
        id_, member = await self._find(text)
        own = _own(id_, await self._ledger.disks())
        held = await self._disk_set.held()
        facts = await self._stopping.facts()
        short = shortages(facts.records, facts.away.union(own), facts.damaged)
        amounts = await self._ledger.lengths([each.volume for each in short])
        return {
            "node": member.name,
            "disks": sorted(own),
            "files": sum(held[number].files for number in own),
            "bytes": sum(held[number].bytes for number in own),
            "volumes": sum(not set(own).isdisjoint(record.disks) for record in facts.records),
            "volumes_that_lose_data": [each.volume for each in short],
            "bytes_in_them": sum(live for _, live in amounts),
            "confirm": f"remove {member.name} with {sum(held[number].files for number in own)} files",
        }

    async def remove(self, text: str, confirm: str) -> Json:
        """Take a node out of the cluster for good.

        Args:
            confirm: empty: only if nothing counts on its disks; else the words of `prospect`, and its disks
                are given up with it.

        Raises: Problem (409: what is in the way), StoreError.
        """
        id_, member = await self._find(text)
        if confirm:
            prospect = await self.prospect(text)
            if confirm != prospect["confirm"]:
                raise Problem(409, f"not confirmed: {json.dumps(prospect['confirm'])} was to be given")
            return await self._remove(id_.hex(), True)
        own = _own(id_, await self._ledger.disks())
        held = await self._disk_set.held()
        files = sum(held[number].files for number in own)
        undrained = [number for number, disk in own.items() if disk.state not in (DRAINING, "failed")]
        if undrained or files:
            count = f"{files} fragment files ({sum(held[number].bytes for number in own)} bytes)"
            raise Problem(
                409,
                f"{count} still count on {member.name}'s {len(own)} disks, {len(undrained)} of which are not"
                f" being drained: objstore node drain {member.name} --wait",
            )
        for number in own:
            await self._disk_set.remove(number)
        return await self._remove(id_.hex(), False)

    def _row(
        self, id_: bytes, member: MemberRecord, disks: dict[int, DiskRecord], held: dict[int, Held]
    ) -> Json:
        own = _own(id_, disks)
        files = sum(held[number].files for number in own)
        there = [disk for disk in own.values() if disk.state not in GIVEN_UP]
        draining = bool(there) and all(disk.state == DRAINING for disk in there)
        state = "joined" if not draining else "draining" if files else "empty"
        return {
            "name": member.name,
            "state": "away" if member.away_us else state,
            "draining": draining,
            "site": member.site,
            "rack": member.rack,
            "addresses": member.addresses,
            "disks": sorted(own),
            "files": files,
            "bytes": sum(held[number].bytes for number in own),
            "size": sum(disk.size for disk in own.values()),
            "id": id_.hex(),
        }

    async def _find(self, text: str) -> tuple[bytes, MemberRecord]:
        try:
            id_, member = await self._members.find(text)
        except BadArgument as failure:
            raise Problem(404, str(failure)) from None
        if member.role != NODE or member.state != "joined":
            raise Problem(404, f"{text} is no storage node of this cluster")
        return id_, member


def _own(node: bytes, disks: dict[int, DiskRecord]) -> dict[int, DiskRecord]:
    return {number: disk for number, disk in disks.items() if disk.node == node and disk.state != "retired"}
