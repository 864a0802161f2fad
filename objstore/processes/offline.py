"""`objstore meta export|import|rebuild`: work on a store that does not serve.

The store is locked as for serving, a committer is forked and recovers, and the job runs in this process as
the committer's only client. What holds for `serve` holds here: nothing is formatted, disks that are
away are named and worked around.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import aiofiles
import uvloop

from objstore.config import Loaded
from objstore.errors import StoreError
from objstore.ids import random_id
from objstore.meta import transfer
from objstore.meta.journal import first_epoch, term_of
from objstore.meta.kv import counter
from objstore.meta.recovery import FORGET_STEP
from objstore.meta.schema import serial_key
from objstore.metrics import Registry
from objstore.node.disk import DiskState
from objstore.objects.ledger import VOLUME_SERIAL
from objstore.processes import committer, link
from objstore.processes.cluster import CannotStart, begin_term
from objstore.processes.machine import warn
from objstore.processes.parts import Parts, context_of, open_parts
from objstore.processes.serve import prepare_store
from objstore.processes.spec import Spec, StoreDisk, opener_of, places_of
from objstore.processes.supervisor import die_with_parent, ended, set_process_name
from objstore.upkeep.salvage import SalvageReport, salvage

STOP_SECONDS = 60.0
LOST = "lost-"  # Before the name of what a rebuild sets aside.
COPIED_AT_ONCE = 2 * 1024 * 1024  # Bytes of a node's log.

Job = Callable[[Parts], Awaitable[None]]


def run_job(
    loaded: Loaded, job: Job, *, forget: bool = False, check: Callable[[Spec], None] | None = None
) -> None:
    """Lock the store, let a committer recover it, do the job, stop in order.

    Args:
        forget: begin with empty metadata: what is left of the old is set aside.
        check: called before anything is changed.

    Raises: CannotStart; what the job raises.
    """
    spec = prepare_store(loaded)
    if check is not None:
        check(spec)
    if forget:
        if spec.cluster.term:
            spec = asyncio.run(_set_aside_on_nodes(spec))
        _set_aside(spec)
    ours, theirs = link.pair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            die_with_parent(parent)
            set_process_name("objstore-committer")
            ours.close()
            committer.run(link.Link(theirs), "", spec, forget=forget)
            code = 0
        except StoreError as failure:
            warn(f"objstore: {failure}")
        finally:
            os._exit(code)
    theirs.close()
    try:
        _wait_ready(ours, pid)
        uvloop.run(_with_parts(spec, job))
    finally:
        _stop(pid)


def _wait_ready(end: socket.socket, pid: int) -> None:
    end.setblocking(True)
    end.settimeout(1.0)
    while True:
        for message in link.receive(end):
            if message.kind == "progress":
                warn(f"committer: {message.text}")
            elif message.kind == "ready":
                return
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            raise CannotStart(f"metadata cannot be recovered: the committer {ended(status)}")


def _stop(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
        limit = time.monotonic() + STOP_SECONDS
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > limit:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
    except (ProcessLookupError, ChildProcessError):
        pass  # It ended before, and was reaped.


async def _with_parts(spec: Spec, job: Job) -> None:
    parts = await open_parts(spec, Registry())
    try:
        await job(parts)
    finally:
        await parts.close()


def export(loaded: Loaded, path: Path) -> int:
    """All metadata into a file. Returns the number of records.

    Raises: OSError, before anything is recovered, if it cannot be made; CannotStart.
    """
    transfer.check_target(path)
    count = 0

    async def job(parts: Parts) -> None:
        nonlocal count
        count = await transfer.export(parts.kv, path, now_us=parts.store.clock.now_us())

    run_job(loaded, job)
    return count


def import_(loaded: Loaded, path: Path, *, replace: bool) -> int:
    """An export into this store. Returns the number of records.

    Args:
        replace: begin with empty metadata (what is there is set aside). Otherwise it must be empty.

    Raises: CannotStart if the data on the disks is younger than the export: what the export does not know
        would be lost to it, and new volumes would meet old files.
    """
    count = 0

    async def job(parts: Parts) -> None:
        nonlocal count
        count = await transfer.import_(parts.kv, path)

    def check(spec: Spec) -> None:
        known, found = asyncio.run(_newest_volume(path)), _newest_on_disks(spec)
        if found > known:
            raise CannotStart(
                f"{path} is older than the data: it knows volumes up to {known}, the disks hold volume"
                f" {found}. Nothing was changed; `objstore meta rebuild` salvages what the disks hold"
            )

    run_job(loaded, job, forget=replace, check=check)
    return count


async def _newest_volume(path: Path) -> int:
    """The volume counter of an export, every block of which is verified. Raises: Corrupt, OSError."""
    newest = 0
    async for pairs in transfer.read(path):
        for key, value in pairs:
            if key == serial_key(VOLUME_SERIAL):
                newest = counter(value)
    return newest


def _newest_on_disks(spec: Spec) -> int:
    newest = asyncio.run(_newest_on_nodes(spec)) if spec.cluster.term else 0
    for disk in spec.cluster.disks:
        if disk.state is DiskState.HEALTHY and not disk.node:
            names = (file.name for file in Path(disk.path, "fragments").glob("*/*"))
            numbers = (name.partition(".")[0] for name in names)
            newest = max([newest, *(int(number) for number in numbers if number.isdecimal())])
    return newest


async def _newest_on_nodes(spec: Spec) -> int:
    newest = 0
    async for disk in _disks_of_nodes(spec):
        newest = max([newest, *(file.volume for file in await disk.fragment_files())])
    return newest


async def _disks_of_nodes(spec: Spec) -> AsyncIterator[StoreDisk]:
    """Those that answer; the others are named to the operator."""
    opener = opener_of(spec)
    disks = [opener.open(place) for place in places_of(spec.cluster) if place.node]
    try:
        await opener.look()
        for disk in disks:
            if disk.state is DiskState.HEALTHY:
                yield disk
            else:
                why = f"{disk.state.value} ({disk.reason})"
                warn(f"Disk {disk.number} is {why}: what lies only there is not found.")
    finally:
        for disk in disks:
            disk.close()
        opener.close()


async def _set_aside_on_nodes(spec: Spec) -> Spec:
    """As `_set_aside`, over the network, in a term of its own: far above any that an absent disk may know."""
    newest = spec.cluster.term
    async for disk in _disks_of_nodes(spec):
        newest = max(newest, term_of(await disk.noted_epoch()))
    term = newest + term_of(FORGET_STEP) + 1
    spec = replace(spec, cluster=begin_term(Path(spec.data), spec.cluster, term))
    async for disk in _disks_of_nodes(spec):
        await disk.fence(first_epoch(term))
        for entry in await disk.logs():
            if entry.name.startswith(("journal.", "snapshot.")):
                kept = f"{LOST}{time.time_ns()}-{entry.name}"
                await disk.log_create(kept)
                at = 0
                while piece := await disk.log_read(entry.name, at, COPIED_AT_ONCE):
                    await disk.log_append(kept, at, piece)
                    at += len(piece)
                await disk.log_remove(entry.name)
    return spec


def rebuild(loaded: Loaded) -> SalvageReport:
    """Metadata from fragments alone."""
    reports: list[SalvageReport] = []

    async def job(parts: Parts) -> None:
        async def load(chunks: AsyncGenerator[bytes, None]) -> None:
            place = Path(parts.spec.run_directory, f"snapshot-{random_id().hex()}")
            try:
                async with aiofiles.open(place, "wb") as file:
                    async for chunk in chunks:
                        await file.write(chunk)
                await transfer.import_(parts.kv, place, replace=True)
            finally:
                await asyncio.to_thread(place.unlink, missing_ok=True)

        reports.append(await salvage(context_of(parts), load))

    run_job(loaded, job, forget=True)
    return reports[0]


def _set_aside(spec: Spec) -> None:
    """Rename what is left of journal, snapshots and states, so that nothing takes them for the truth and
    nothing removes them. The new journal's epoch is far above any number that an absent disk may know.
    """
    own = [disk for disk in spec.cluster.disks if not disk.node]
    away = [disk for disk in own if disk.state is not DiskState.HEALTHY]
    if away:
        numbers = ", ".join(str(disk.number) for disk in away)
        warn(f"Disks that are not there: {numbers}. What lies only on them is not found.")
    places = [Path(disk.path) for disk in own if disk.state is DiskState.HEALTHY]
    if spec.cluster.term:
        places.append(Path(spec.data))  # A gateway has LMDB there.
    for path in places:
        for directory, prefixes in (("logs", ("journal.", "snapshot.")), ("meta", ("state-",))):
            place = path / directory
            if not place.is_dir():
                continue
            for found in sorted(place.iterdir()):
                if found.name.startswith(prefixes):
                    found.rename(found.with_name(f"{LOST}{time.time_ns()}-{found.name}"))
