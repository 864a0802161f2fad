"""A survey: the layout as metadata has it, with what each disk says of its space just now."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

from objstore.blobs.topology import Layout, Topology
from objstore.errors import StoreError
from objstore.node.disk import Disk, DiskState, Usage

log = logging.getLogger(__name__)

DEADLINE_S: Final = 30.0  # Of one disk's answer; a backstop: disks have shorter limits of their own.


def always(number: int) -> bool:
    return True


async def survey(
    layout: Layout,
    disks: Mapping[int, Disk],
    *,
    takes: Callable[[int], bool] = always,
    reached: Collection[int] = (),
    free_min: int = 0,
    deadline_s: float = DEADLINE_S,
) -> Topology:
    """The topology as it is. A disk that does not answer is still where it was, and takes nothing new.

    Args:
        takes: whether this process would give a disk new files, as far as it knows.
        reached: disks that answer it, also where their machines are noted as away.
        free_min: bytes that must be free on a disk that is to take new files.
    """
    usages = await usages_of(
        {number: disks[number] for number in layout.spots if number in disks}, deadline_s
    )
    spots = []
    for number, spot in layout.spots.items():
        usage = usages.get(number)
        if usage is None:
            # Its device is not known: a number of its own, which no device has.
            spots.append(spot._replace(usable=False, device=-number))
            continue
        usable = (
            (spot.usable or (spot.away and number in reached))
            and disks[number].state is DiskState.HEALTHY
            and usage.free >= free_min
            and takes(number)
        )
        spots.append(spot._replace(free=usage.free, size=usage.total, device=usage.device, usable=usable))
    return Topology(spots)


async def usages_of(disks: Mapping[int, Disk], deadline_s: float = DEADLINE_S) -> dict[int, Usage]:
    """What disks say of their space, by number; those that do not answer are left out."""
    tasks = {number: asyncio.ensure_future(disk.usage()) for number, disk in disks.items()}
    if tasks:
        await asyncio.wait(tasks.values(), timeout=deadline_s)
    found: dict[int, Usage] = {}
    for number, task in tasks.items():
        if not task.done():
            task.cancel()
            log.warning("disk %d did not say how full it is", number)
        elif (failure := task.exception()) is not None:
            if not isinstance(failure, StoreError):
                raise failure
            log.debug("disk %d did not say how full it is: %s", number, failure)
        else:
            found[number] = task.result()
    return found
