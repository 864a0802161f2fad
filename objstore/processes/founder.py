"""A gateway's disks as they come: the supervisor hears of those that nodes brought, and the founder leaves.

The *founder* is the disk in the data directory that a gateway begins with when it is given none: metadata is
there before the first node is. No object ever lies on it. When nodes bring enough disks, and the newest epoch
of the journal lies on them, it leaves the store like a disk that an operator removes.

Storage nodes register their disks in metadata (members.py), and workers follow that (minding.py). The
supervisor must hear of them too: it keeps `cluster.json`, which a start needs before there is metadata, and
starts the committer anew with the new set. The file has a disk before that takes its first fragment
(`Members.remember`); the committer gets it when its node serves.

Concurrency: one task of the upkeep process. Each step may be cut short and is done again.
"""

import asyncio
import logging
from typing import Final

from objstore.admin.app import Problem
from objstore.errors import Denied, StoreError
from objstore.meta.log_names import journal_name
from objstore.meta.schema import DiskRecord
from objstore.node.authority import GATEWAY
from objstore.node.disk import DiskState
from objstore.objects.ledger import DRAINING
from objstore.processes.disks import DiskSet
from objstore.processes.members import JOINED, WAITING, Members
from objstore.processes.parts import Parts

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
PREDECESSORS_SECONDS: Final = 60.0  # A committer that has nothing to do asks the nodes every 5 s.
FOUNDER: Final = "the gateway's own: it holds metadata until storage nodes do"


async def mark_founder(parts: Parts) -> None:
    """At the first start: no objects on the disk that is there for metadata alone. Raises: StoreError."""
    cluster = parts.spec.cluster
    if len(cluster.disks) == 1 and cluster.disks[0].path == f"{parts.spec.data}/disk1":
        await parts.store.ledger.change_disk(
            cluster.disks[0].number, before=["healthy"], state=DRAINING, reason=FOUNDER
        )


async def remove_predecessors(members: Members, own: bytes) -> None:
    """The gateway machines before this one are no members any more. With a journal there is one gateway.

    Not at once: one that still runs is to hear from the nodes that it was shut out, and stops by that. Whom
    the nodes do not let in at all, it could only call unreachable.
    """
    while True:
        await asyncio.sleep(PREDECESSORS_SECONDS)
        try:
            for id_, record in (await members.ledger.members()).items():
                if record.role == GATEWAY and record.state == JOINED and id_ != own:
                    await members.remove(id_, lost=False)
        except (StoreError, Denied) as failure:
            log.warning("a gateway before this one stays a member", extra={"failure": str(failure)})
        else:
            return


async def follow_nodes(parts: Parts, disk_set: DiskSet) -> None:
    """Never ends."""
    known = {disk.number for disk in parts.spec.cluster.disks}  # As this process was told, then as it told.
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            records = await parts.store.ledger.disks()
            for number, record in records.items():
                if number not in known and record.node and _is_there(record):
                    await disk_set.adopt(number, record)
                    known.add(number)
            founder = next((n for n, record in records.items() if record.reason == FOUNDER), 0)
            if founder and await _may_go(parts, founder, records):
                await disk_set.remove(founder)
        except (StoreError, Problem) as failure:
            log.warning("the supervisor was not told of a disk", extra={"failure": str(failure)})


def _is_there(record: DiskRecord) -> bool:
    return record.state != "retired" and record.reason != WAITING


async def _may_go(parts: Parts, founder: int, records: dict[int, DiskRecord]) -> bool:
    """Whether nodes have disks enough, and m of them the journal's newest epoch. Raises: StoreError."""
    k, m = parts.spec.cluster.codec
    there = [
        disk
        for number, disk in parts.disks.items()
        if number in records and records[number].node and disk.state is DiskState.HEALTHY
    ]
    own = parts.disks.get(founder)
    if len(there) < k + m or own is None or records[founder].state != DRAINING:
        return False
    name = journal_name(await own.noted_epoch())
    holders = 0
    for disk in there:
        holders += any(entry.name == name for entry in await disk.logs())
    return holders >= m
