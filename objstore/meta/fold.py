"""Folding in a process of its own: it never reads LMDB, and its memory and GIL are its own.

`python -m objstore.meta.fold` reads one pickled job from its standard input (from the committer, its
parent, and from nobody else), makes the snapshot or looks keys up, and writes the outcome to its
standard output.
"""

import asyncio
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from objstore.errors import Corrupt, StoreError, Unavailable
from objstore.meta.committer import Finder, Folder
from objstore.meta.journal import Snapshot
from objstore.meta.snapshot import FoldFailed, FoldPlan, LookUp, fold, look_up
from objstore.node.disk import Disk

OpenDisks = Callable[[], Sequence[Disk]]
"""Opens the cluster's disks; picklable (a module's function, or functools.partial of one)."""

TIMEOUT_S = 3_600.0  # A fold of 100 million keys takes about ten minutes.
NICENESS = 10  # Folding is never urgent; what it competes with is.


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    snapshot: Snapshot | None
    failures: dict[int, str] = {}  # Of disks.
    corrupt: str = ""
    found: dict[bytes, bytes | None] = {}  # Of a look-up.


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode


def folder_process(open_disks: OpenDisks, *, timeout_s: float = TIMEOUT_S) -> Folder:
    """A `Folder` that runs each fold in a new process.

    The process is killed when the committer gives up or ends. Raises (the folder): FoldFailed,
    Corrupt, Unavailable.
    """

    async def run(plan: FoldPlan) -> Snapshot:
        outcome = await _done(open_disks, plan, timeout_s)
        if outcome.snapshot is None:
            raise Corrupt(outcome.corrupt)
        return outcome.snapshot

    return run


def finder_process(open_disks: OpenDisks, *, timeout_s: float = TIMEOUT_S) -> Finder:
    """A `Finder` that runs each look-up in a new process. Raises (the finder): Corrupt, Unavailable."""

    async def run(wanted: LookUp) -> dict[bytes, bytes | None]:
        outcome = await _done(open_disks, wanted, timeout_s)
        if outcome.corrupt:
            raise Corrupt(outcome.corrupt)
        return outcome.found

    return run


async def _done(open_disks: OpenDisks, job: FoldPlan | LookUp, timeout_s: float) -> Outcome:
    """The outcome of a job in a process of its own. Raises: FoldFailed, Unavailable."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "objstore.meta.fold",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            answer, _ = await process.communicate(pickle.dumps((open_disks, job)))
    except TimeoutError:
        raise Unavailable(f"a fold did not end within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise Unavailable(f"the fold's process ended with {process.returncode}")
    outcome = _decode(answer)
    if outcome.failures:
        raise FoldFailed(outcome.failures)
    return outcome


async def do(open_disks: OpenDisks, job: FoldPlan | LookUp) -> Outcome:
    disks = open_disks()
    try:
        if isinstance(job, LookUp):
            return Outcome(None, found=await look_up(disks, job))
        return Outcome(await fold(disks, job))
    except FoldFailed as failure:
        return Outcome(None, failure.failures)
    except StoreError as failure:
        return Outcome(None, {}, f"{failure!r}")
    finally:
        for disk in disks:
            disk.close()


def _end_with(parent: int) -> None:
    """An orphan's snapshot is named by nobody: stop when the committer is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    os.nice(NICENESS)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    open_disks, job = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - from our parent, over a pipe
    outcome = asyncio.run(do(open_disks, job))
    sys.stdout.buffer.write(_encode(outcome))


if __name__ == "__main__":
    main()
