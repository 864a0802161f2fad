"""Which disks are slow, as all processes of all gateway machines find them: gathered, told, followed.

Each process judges for itself (node/slowness.py), and leaves out at most m of a volume's files. Two gateways
that leave out different ones would take more than m from it, so each counts what the others leave out. At
every heartbeat a machine's upkeep asks the processes of its machine, tells other machines who ask how it
stands, and notes what all together find in `run/verdicts.json`, which its processes read.

What is noted is a hint, and ends by itself: with the next heartbeat that the machine which said so does not
answer, or when nobody notes anything any more.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from objstore.clock import Clock
from objstore.node.membership import SlowDisk
from objstore.processes.control import ejected

FILE: Final = "verdicts.json"
LASTS_MAX_S: Final = 3600.0  # Beyond that a note is of another boot: its clock began anew.
DISKS_MAX: Final = 4_096  # Told and noted: with more, the machine that says so is what is slow.


class _Note(msgspec.Struct):
    until: float  # By this machine's monotonic clock.
    slow: dict[int, int]  # How many processes leave it out, by disk.


_decoder = msgspec.json.Decoder(_Note)


class Verdicts:
    """Of one machine, in its upkeep process.

    Args:
        lasts_s: how long what was noted counts.
    """

    def __init__(self, run_directory: str, clock: Clock, *, lasts_s: float) -> None:
        self.own: list[SlowDisk] = []  # What processes of this machine find.
        self._run_directory = run_directory
        self._clock = clock
        self._lasts_s = min(lasts_s, LASTS_MAX_S)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_path(run_directory))

    async def gather(self) -> None:
        """Ask the processes of this machine."""
        found, _ = await ejected(self._run_directory)
        slow = [
            SlowDisk(disk=disk, by=count) for (disk, op), count in found.items() if op == "read" and count
        ]
        self.own = sorted(slow, key=lambda one: (-one.by, one.disk))[:DISKS_MAX]

    async def note(self, machines: Iterable[Iterable[SlowDisk]]) -> None:
        """What each machine finds, this one among them, for the processes of this one. Raises: OSError."""
        found: Counter[int] = Counter()
        for slow in machines:
            for one in list(slow)[:DISKS_MAX]:
                found[one.disk] += one.by
        note = _Note(self._clock.monotonic() + self._lasts_s, dict(found.most_common(DISKS_MAX)))
        await asyncio.to_thread(_write, _path(self._run_directory), msgspec.json.encode(note))


def followed(run_directory: str, clock: Clock) -> Mapping[int, int]:
    """What was noted last, as long as it counts: how many processes leave a disk out, by its number."""
    try:
        note = _decoder.decode(_path(run_directory).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
    return note.slow if 0 <= note.until - clock.monotonic() <= LASTS_MAX_S else {}


def _path(run_directory: str) -> Path:
    return Path(run_directory, FILE)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    os.replace(temporary, path)
