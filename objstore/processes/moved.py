"""A store whose metadata has moved into PostgreSQL serves no more from what it had before: a mark says so.

The last pass of `objstore meta copy` puts `moved.json` into the data directory and onto every disk of this
machine, before the database lets gateways in. What would serve the old metadata refuses to start then; work
on a store that does not serve (an export, the copy itself once more) goes on as before.
"""

import logging
import time
from pathlib import Path
from typing import Final

import msgspec

from objstore.node.disk import DiskState
from objstore.processes.cluster import CannotStart, Cluster, save

log = logging.getLogger(__name__)

MOVED_NAME: Final = "moved.json"


class Moved(msgspec.Struct, kw_only=True):
    format: int = 1
    to: str  # The database's address, without a password.
    when_s: int  # Unix time.


def mark_moved(data: Path, cluster: Cluster, to: str) -> None:
    """Durably, in the data directory and on every disk of this machine that takes it.

    Raises: OSError if the data directory does not.
    """
    content = msgspec.json.encode(Moved(to=to, when_s=int(time.time()))) + b"\n"
    save(data, MOVED_NAME, content)
    for disk in _disks(cluster):
        try:
            save(disk, MOVED_NAME, content)
        except OSError as failure:  # A read-only or failing disk must not keep a store from moving.
            log.warning("a disk has no mark of the move", extra={"path": str(disk), "failure": str(failure)})


def moved_to(data: Path) -> str:
    """Where the mark in a data directory says that metadata is; empty if there is none that can be read."""
    try:
        return msgspec.json.decode((data / MOVED_NAME).read_bytes(), type=Moved).to
    except (OSError, msgspec.MsgspecError):
        return ""


def refuse_moved(data: Path, cluster: Cluster) -> None:
    """Raises: CannotStart if this store's metadata is elsewhere."""
    marks = [place / MOVED_NAME for place in (data, *_disks(cluster)) if (place / MOVED_NAME).exists()]
    if not marks:
        return
    try:
        mark = msgspec.json.decode(marks[0].read_bytes(), type=Moved)
        to, day = mark.to, time.strftime("%Y-%m-%d", time.gmtime(mark.when_s))
    except (OSError, msgspec.MsgspecError):
        to, day = "PostgreSQL", "a day that cannot be read"
    names = " ".join(map(str, marks))
    raise CannotStart(
        f"this store's metadata was moved to {to} on {day}; what is here is old, and what it took now would"
        " never be seen there. Serve it with meta.url set, by objstore cluster init"
        " (once) and objstore gateway; if objstore meta copy was cut"
        " short, run it again. To give up the move, and with it all that was written there since, remove the"
        f" marks before you start: {names}"
    )


def _disks(cluster: Cluster) -> list[Path]:
    """Those of this machine that are there."""
    return [Path(disk.path) for disk in cluster.disks if disk.state is DiskState.HEALTHY and not disk.node]
