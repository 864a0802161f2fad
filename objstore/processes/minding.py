"""What a worker does beside serving: it follows the verdicts on disks, judges which are slow, and passes on
the damage it saw and the access keys that were used.

Concurrency: five tasks on the worker's event loop, ended with it. A failure is tried again at the next turn.
"""

import asyncio
import logging
from collections.abc import Callable

from objstore.blobs.volumes import Intent
from objstore.errors import StoreError
from objstore.iam.last_use import UsedKeys
from objstore.node.disk import DiskState
from objstore.processes.parts import Parts
from objstore.processes.spec import StoreDisk
from objstore.processes.verdicts import followed

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
JUDGE_SECONDS = 2.0
TELL_SECONDS = 60.0
INTENTS_AT_ONCE = 100  # New intents a turn: a disk with much rot must not flood metadata.
UNWELL = (DiskState.SUSPECT, DiskState.READ_ONLY, DiskState.FAILED)


async def mind_disks(parts: Parts, minds: Callable[[], bool] = lambda: True) -> None:
    """A disk that this process holds for unwell, and that metadata calls healthy since, is verified here too.

    Suspicion goes into metadata at once (the writer does that); the upkeep process verifies the disk and
    clears its record; then every worker looks for itself: its own view ended with its own failed call.

    Of a disk whose node does not answer nothing is said: it may be this machine that is cut off.

    Args:
        minds: not while it says False: the upkeep's services verify disks where they run, and nowhere else.
    """
    clock = parts.store.clock
    unwell_since: dict[int, int] = {}
    cut_off: set[int] = set()  # Unwell since their nodes did not answer.
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if not minds():
            continue
        unwell = {number for number, disk in parts.disks.items() if disk.state in UNWELL}
        now_us = clock.now_us()
        unwell_since = {number: unwell_since.get(number, now_us) for number in unwell}
        away = {number for number in unwell if parts.opener.is_away(number)}
        cut_off = (cut_off & unwell) | away
        unwell -= away
        if not unwell:
            continue
        try:
            records = await parts.store.ledger.disks()
        except StoreError:
            continue
        for number in sorted(unwell):
            record = records.get(number)
            if record is None or record.state != "healthy":
                continue
            if record.since_us < unwell_since[number] and number not in cut_off:
                # Nobody else knows yet: say so, and let the upkeep process judge.
                try:
                    disk = parts.disks[number]
                    read_only = disk.state is DiskState.READ_ONLY
                    await parts.store.ledger.suspect(number, disk.reason, read_only=read_only)
                except StoreError as failure:
                    log.warning("suspicion not recorded", extra={"disk": number, "failure": str(failure)})
                continue
            try:
                await parts.disks[number].verify()
            except StoreError as failure:
                log.warning("disk not verified", extra={"disk": number, "failure": str(failure)})
                cut_off.discard(number)
                unwell_since[number] = clock.now_us()
            else:
                log.warning("disk takes writes again", extra={"disk": number})


async def follow_disks(parts: Parts) -> None:
    """What operators decide about disks, as metadata has it: new ones are opened here too, removed ones
    closed, and open volumes leave those that are to be emptied or were given up, or that their policy does
    not admit any more. They end, too, when a new one would promise more. A disk that a write or a read misses
    meanwhile is taken up by that."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            layout = await parts.store.ledger.layout()
            await parts.find_disks()
        except StoreError:
            continue
        parts.store.placing.layout = layout
        parts.store.writer.obey(layout)
        try:
            await parts.store.writer.leave_outdone(layout)
        except StoreError as failure:
            log.warning("open volumes were not looked at", extra={"failure": str(failure)})


async def judge_slowness(parts: Parts) -> None:
    """Disks that answer late beside their peers are read around and not written to, until they are quick.

    It is this process's own view, of its own calls: the way to a node may be slow from here alone. Of the
    others' views only the number counts: nobody leaves out what, with theirs, would be more than m.
    """
    reader, writer = parts.store.reader, parts.store.writer
    spec, clock = parts.spec, parts.store.clock
    while True:
        await asyncio.sleep(JUDGE_SECONDS)
        try:
            appends = {number: appends_of(disk) for number, disk in parts.disks.items()}
            reader.slowness.others = followed(spec.run_directory, clock)
            changes = reader.slowness.judge(appends)
            writer.leave([change.disk for change in changes if change.slow])
            changes += await reader.probe()
        except Exception:
            log.exception("a bug in judging disks")
            continue
        for change in changes:
            about = {"disk": change.disk, "op": change.op, "why": change.words}
            log.warning("disk is slow" if change.slow else "disk is not slow any more", extra=about)


def appends_of(disk: StoreDisk) -> tuple[int, float]:
    """How many appends a disk did for this process, and the seconds they took."""
    count = disk.counts.get("append")
    return (count.count, count.seconds) if count is not None else (0, 0.0)


async def report_damage(parts: Parts) -> None:
    """Fragments that reads found damaged become repair intents, for the upkeep process to rebuild."""
    store = parts.store
    noted: set[Intent] = set()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        fresh: set[Intent] = set()
        for hint in store.reader.take_hints():
            intent = Intent(hint.volume, hint.fragment)
            if intent not in noted:
                fresh.add(intent)
        if len(noted) > 10 * INTENTS_AT_ONCE:
            noted.clear()
        for intent in sorted(fresh)[:INTENTS_AT_ONCE]:
            try:
                record = await store.ledger.get(intent.volume, fresh=True)
                disk = parts.disks.get(record.disks[intent.index])
                # What a disk that is away lacks is repair's own business, after a grace.
                if disk is not None and disk.state is DiskState.HEALTHY:
                    await store.ledger.note_intent(intent)
                    noted.add(intent)
            except StoreError as failure:
                log.warning("damage not noted", extra={"volume": intent.volume, "failure": str(failure)})


async def tell_used_keys(parts: Parts, used: UsedKeys) -> None:
    """Metadata learns which access keys or tokens this process saw used, each once an hour."""
    while True:
        await asyncio.sleep(TELL_SECONDS)
        try:
            await used.tell(parts.kv, parts.store.clock.now_us())
        except StoreError as failure:
            log.info("used keys are told later", extra={"failure": str(failure)})
