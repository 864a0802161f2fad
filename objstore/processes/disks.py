"""Disks come and go while the store runs: add, drain, remove, forget. Over the upkeep process's parts.

What a disk is to the store stands in its record in metadata; every process follows that (minding.py, within
seconds). The supervisor keeps the lock and `cluster.json`, and starts the committer anew with the new set of
disks, so that journal and LMDB use a new disk and leave a removed one: commits wait a second for it.

    add       reserve a number in metadata, format the path, supervisor locks and remembers it, healthy
    drain     no new volumes; repair moves its files to other disks; it is read from as long as it is there
    remove    a disk that no volume names any more leaves the store; its number is never used again
    forget    its fragments count as lost: stripes with k others are rebuilt, the others are reported

A crash between two steps of `add` leaves a record that says so; doing it again with the same path goes on.

Concurrency: one event loop; one change at a time.
"""

import asyncio
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import msgspec

from objstore.admin.app import Problem
from objstore.blobs.volumes import VolumeState
from objstore.errors import DiskMissing, StoreError, Unavailable
from objstore.ids import random_id
from objstore.meta.schema import DiskRecord
from objstore.node.disk import DiskState
from objstore.node.identity import Identity, Peer, make_identity, read_identity
from objstore.node.local import format_disk
from objstore.node.syscalls import RealSyscalls
from objstore.objects.ledger import BEING_ADDED, DOUBTS, DRAINING, GIVEN_UP
from objstore.processes.cluster import DiskChange, why_not_free
from objstore.processes.engine import is_shared
from objstore.processes.link import Link
from objstore.processes.parts import Parts
from objstore.processes.spec import Place

log = logging.getLogger(__name__)

ADD_AGAIN: Final = "objstore disk add {path} goes on where that was cut short"
REMOVABLE: Final = (DRAINING, "failed")
OS: Final = RealSyscalls()


class Held(NamedTuple):
    """What counts on one disk."""

    files: int = 0
    bytes: int = 0  # Of sealed volumes.


class DiskSet:
    """The store's disks, as operators change them."""

    def __init__(self, parts: Parts, link: Link) -> None:
        self._parts = parts
        self._ledger = parts.store.ledger
        self._link = link
        self._one = asyncio.Lock()

    async def held(self) -> dict[int, Held]:
        """What counts on each disk: the fragment files of volumes that are not trash, where their records
        have them."""
        files: Counter[int] = Counter()
        sizes: Counter[int] = Counter()
        after = 0
        while records := await self._ledger.volumes(after):
            after = records[-1].id
            for record in records:
                if record.state != VolumeState.RETIRED and (
                    record.length or record.state == VolumeState.OPEN
                ):
                    files.update(record.disks)
                    sizes.update(dict.fromkeys(record.disks, record.length))
        found: dict[int, Held] = defaultdict(Held)
        found.update((number, Held(count, sizes[number])) for number, count in files.items())
        return found

    async def add(self, path: str) -> tuple[int, list[str]]:
        """Make a disk of `path`: absent, or an empty directory. Returns its number, and what to know of it.

        Raises: Problem, StoreError.
        """
        if is_shared(self._parts.spec):
            raise Problem(
                409, "every gateway must reach every disk: add it to a storage node (objstore node)"
            )
        if not PurePath(path).is_absolute() or ".." in PurePath(path).parts:
            raise Problem(400, f"{path} is not an absolute path")
        path = str(PurePath(path))
        async with self._one:
            number, uuid, made = await self._reserved(path)
            if not made:
                if words := await asyncio.to_thread(why_not_free, path):
                    raise Problem(409, words)
                if number == 0:
                    uuid = random_id()
                    number = await self._ledger.reserve_disk(uuid=uuid, path=path, reason=BEING_ADDED)
                await self._format(path, number, uuid)
            await self._tell(DiskChange(number=number, uuid=uuid.hex(), path=path))
            if number not in self._parts.disks:
                self._parts.disks[number] = self._parts.opener.open(Place(number, uuid, path))
            disk = self._parts.disks[number]
            await disk.verify()
            await self._ledger.change_disk(number, before=DOUBTS, state="healthy")
            log.info("disk added", extra={"disk": number, "path": path})
            return number, await self._notes(number)

    async def remember(self, number: int, record: DiskRecord) -> None:
        """Let the supervisor know of a disk that its node has formatted and does not serve yet.

        So a start without metadata finds it.

        Raises: Unavailable.
        """
        await self._take(number, record, soon=True)

    async def adopt(self, number: int, record: DiskRecord) -> None:
        """Let the supervisor and the committer use a disk that a storage node brought.

        Raises: Unavailable.
        """
        await self._take(number, record, soon=False)
        log.info("disk of a node added", extra={"disk": number, "node": record.node.hex()})

    async def _take(self, number: int, record: DiskRecord, *, soon: bool) -> None:
        change = DiskChange(
            number=number, uuid=record.uuid.hex(), path=record.path, node=record.node.hex(), soon=soon
        )
        async with self._one:
            try:
                await self._tell(change)
            except Problem as failure:
                raise Unavailable(f"disk {number} is not in this machine's cluster.json: {failure}") from None

    async def _reserved(self, path: str) -> tuple[int, bytes, bool]:
        """(number, uuid, whether it is formatted) of a disk whose adding was cut short; else 0."""
        identity = await asyncio.to_thread(_identity_at, path)
        records = await self._ledger.disks()
        if identity is not None:
            record = records.get(identity.number)
            if identity.cluster_id != self._parts.spec.cluster.cluster_id:
                raise Problem(
                    409, f"{path} is a disk of another store ({identity.cluster[:8]}...): not touched"
                )
            if record is not None and record.uuid == identity.disk_uuid and record.state in GIVEN_UP:
                leave = f"objstore disk remove {identity.number}; " if record.state != "retired" else ""
                raise Problem(
                    409,
                    f"{path} is disk {identity.number}, which was given up or removed: what it holds is never"
                    f" used again. To make it a new disk: {leave}restart the store, which may have it open;"
                    f" empty {path}; objstore disk add {path}",
                )
            if record is None or record.uuid != identity.disk_uuid or not _unfinished(record):
                raise Problem(409, f"{path} is disk {identity.number} of this store already")
            return identity.number, identity.disk_uuid, True
        for number, record in records.items():
            if _unfinished(record) and record.path == path:
                return number, record.uuid, False
        return 0, b"", False

    async def _format(self, path: str, number: int, uuid: bytes) -> None:
        parts, cluster = self._parts, self._parts.spec.cluster
        records = await self._ledger.disks()
        epochs = [0]
        for disk in list(parts.disks.values()):
            try:
                epochs.append(await disk.noted_epoch())
            except StoreError:
                continue
        identity = make_identity(
            cluster=cluster.cluster_id,
            uuid=uuid,
            number=number,
            checksum_secret=cluster.checksum_secret,
            # A key given from outside stays outside.
            master_key=b"" if parts.spec.config.security.master_key else cluster.master_key,
            peers=[
                Peer(number=other, uuid=record.uuid.hex(), path=record.path)
                for other, record in records.items()
                if other != number and record.state != "retired"
            ],
            epoch=max(epochs),
            created_us=time.time_ns() // 1000,
        )
        await asyncio.to_thread(format_disk, path, identity)

    async def _tell(self, change: DiskChange) -> None:
        try:
            words = await self._link.change_disks(msgspec.json.encode(change).decode())
        except TimeoutError:
            raise Problem(503, "the supervisor does not answer: try again") from None
        if words:
            raise Problem(409, words)

    async def _notes(self, number: int) -> list[str]:
        notes: list[str] = []
        usages = {}
        for other, disk in list(self._parts.disks.items()):
            try:
                usages[other] = await disk.usage()
            except StoreError:
                continue
        device = usages[number].device if number in usages else None
        shared = sorted(
            other for other, usage in usages.items() if usage.device == device and other != number
        )
        if shared:
            notes.append(f"it shares its device with disks {', '.join(map(str, shared))}: they fail together")
        return notes

    async def drain(self, number: int, *, undo: bool) -> list[str]:
        """Begin to empty a disk, or leave it as it is. Returns what to know. Raises: Problem, StoreError."""
        if not undo:
            return await self.drain_all([number])
        async with self._one:
            return await self._undrain(number, await self._record(number))

    async def drain_all(self, numbers: Sequence[int]) -> list[str]:
        """Begin to empty disks, all of them or none. Returns what to know. Raises: Problem, StoreError."""
        words = f"disk {numbers[0]}" if len(numbers) == 1 else f"disks {', '.join(map(str, numbers))}"
        async with self._one:
            for number in numbers:
                record = await self._record(number)
                if _unfinished(record):
                    again = ADD_AGAIN.format(path=record.path)
                    raise Problem(409, f"disk {number} is not added yet: {again}")
                if record.state in GIVEN_UP:
                    raise Problem(409, f"disk {number} was given up or removed: there is nothing to drain")
            k, m = self._parts.spec.cluster.codec
            others = set(await self._ledger.usable_disks()).difference(numbers)
            if len(others) < 1 + m:
                raise Problem(
                    409, f"without {words} only {len(others)} disks take writes; {1 + m} are needed"
                )
            for number in numbers:
                if not await self._ledger.change_disk(
                    number,
                    before=["healthy", *DOUBTS],
                    state=DRAINING,
                    reason="an operator wants it empty",
                ):
                    raise Problem(409, f"disk {number} changed meanwhile: try again")
            if len(others) < k + m:
                return [
                    f"{len(others)} other disks take writes, and {k}+{m} needs {k + m}: files of volumes that"
                    " lie on all of them wait until another disk is added"
                ]
            return []

    async def verify(self, number: int) -> None:
        """Write, sync and read back a probe; a suspect disk that passes takes writes again.

        Raises: Problem, StoreError.
        """
        record = await self._record(number)
        if _unfinished(record):
            raise Problem(409, f"disk {number} is not added yet: {ADD_AGAIN.format(path=record.path)}")
        if (disk := self._parts.disks.get(number)) is None:
            raise Problem(404, f"there is no disk {number}")
        try:
            await disk.verify()
        except StoreError as failure:
            log.warning("disk not verified", extra={"disk": number, "failure": str(failure)})
        else:
            # Only a doubt ends so: what an operator decided stays.
            await self._ledger.change_disk(number, before=DOUBTS, state="healthy")

    async def _undrain(self, number: int, record: DiskRecord) -> list[str]:
        if record.state != DRAINING:
            raise Problem(409, f"disk {number} is not being drained")
        # A doubt from before, or since then, left no trace in the record: no writes before a verification.
        words = "it was to be emptied, and is not verified since"
        if not await self._ledger.change_disk(number, before=[DRAINING], state="suspect", reason=words):
            raise Problem(409, f"disk {number} changed meanwhile: try again")
        try:
            if (disk := self._parts.disks.get(number)) is None:
                raise DiskMissing("this process does not have it")
            await disk.verify()
        except StoreError as failure:  # The upkeep goes on trying.
            return [f"it takes no writes before a verification, which failed: {failure}"]
        await self._ledger.change_disk(number, before=DOUBTS, state="healthy")
        return []

    async def replace(self, number: int, path: str) -> tuple[int, list[str]]:
        """Add `path`, then empty disk `number` onto it and the others. Raises: Problem, StoreError.

        A disk of a storage node is replaced by one that the node has brought already: `path` is there.
        """
        record = await self._record(number)
        if record.state in GIVEN_UP:
            raise Problem(409, f"disk {number} was given up already: add the new one with objstore disk add")
        new, notes = await (self._brought(record, path) if record.node else self.add(path))
        return new, notes + await self.drain(number, undo=False)

    async def _brought(self, old: DiskRecord, path: str) -> tuple[int, list[str]]:
        """The disk at `path` of the node that has `old`. Raises: Problem (409) if there is none in use."""
        for number, record in (await self._ledger.disks()).items():
            if (record.node, record.path, record.state) == (old.node, path, "healthy"):
                if record.uuid == old.uuid:
                    raise Problem(409, f"{path} is the disk that is to be replaced")
                return number, await self._notes(number)
        member = (await self._ledger.members()).get(old.node)
        raise Problem(
            409,
            f"its node {member.name if member is not None else old.node.hex()} has no disk in use at {path}:"
            f" start objstore node there again with --disk {path} beside the others, then repeat this",
        )

    async def remove(self, number: int) -> None:
        """Take a disk that holds nothing any more out of the store. Raises: Problem, StoreError."""
        async with self._one:
            record = await self._record(number)
            if record.state not in (*REMOVABLE, "retired"):
                raise Problem(409, f"disk {number} is {record.state}: drain it first (objstore disk drain)")
            if left := (await self.held())[number].files:
                raise Problem(
                    409, f"{left} fragment files still count on disk {number}: see objstore disk list"
                )
            # The record first. A crash before the supervisor knows: it is dropped when this is done again.
            if not await self._ledger.change_disk(
                number, before=REMOVABLE, state="retired", reason="removed by an operator"
            ):
                raise Problem(409, f"disk {number} changed meanwhile: try again")
            await self._tell(DiskChange(number=number, uuid=record.uuid.hex(), path=record.path, drop=True))
            if disk := self._parts.disks.pop(number, None):
                disk.close()
            log.info("disk removed", extra={"disk": number})

    async def prospect(self, number: int) -> dict[str, Any]:
        """What giving a disk up would mean. Raises: Problem, StoreError."""
        record = await self._record(number)
        disk = self._parts.disks.get(number)
        if record.state == "failed":
            raise Problem(409, f"disk {number} was given up already")
        if record.state == "retired" or disk is None:
            raise Problem(409, f"disk {number} is no longer part of the store")
        if disk.state in (DiskState.HEALTHY, DiskState.FULL):
            raise Problem(409, f"disk {number} is there and readable: drain it instead (objstore disk drain)")
        unreadable = {
            other
            for other, one in self._parts.disks.items()
            if one.state in (DiskState.MISSING, DiskState.FOREIGN, DiskState.FAILED)
            or self._parts.opener.is_away(other)
        } | {number}
        volumes = endangered = 0
        after = 0
        while records := await self._ledger.volumes(after):
            after = records[-1].id
            for volume in records:
                if volume.state != VolumeState.RETIRED and number in volume.disks:
                    volumes += 1
                    endangered += len(unreadable & set(volume.disks)) > volume.m
        return {
            "disk": number,
            "state": disk.state.value,
            "volumes": volumes,
            "volumes_that_lose_data": endangered,
            "confirm": f"forget disk {number}",
        }

    async def forget(self, number: int, confirm: str) -> dict[str, Any]:
        """Give a disk up for good. Raises: Problem (409 if `confirm` is not what `prospect` says)."""
        async with self._one:
            prospect = await self.prospect(number)
            if confirm != prospect["confirm"]:
                raise Problem(409, f"not confirmed: {json.dumps(prospect['confirm'])} was to be given")
            before = ["healthy", DRAINING, *DOUBTS]
            await self._ledger.change_disk(
                number, before=before, state="failed", reason="given up for good by an operator"
            )
            log.warning("disk given up for good", extra=prospect)
            return prospect

    async def _record(self, number: int) -> DiskRecord:
        record = (await self._ledger.disks()).get(number)
        if record is None:
            raise Problem(404, f"there is no disk {number}")
        return record


def _unfinished(record: DiskRecord) -> bool:
    return record.state == "suspect" and record.reason == BEING_ADDED


def _identity_at(path: str) -> Identity | None:
    """Raises: Corrupt, DiskFailed."""
    try:
        return read_identity(path, OS)
    except DiskMissing:
        return None
