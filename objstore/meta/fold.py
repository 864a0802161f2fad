"""Folding in a process of its own: it never reads LMDB, and its memory and GIL are its own.

`python -m objstore.meta.fold` reads one pickled job from its standard input (from the committer, its
parent, and from nobody else), makes the snapshot and writes the outcome to its standard output.
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
from objstore.meta.committer import Folder
from objstore.meta.journal import Snapshot
from objstore.meta.snapshot import FoldFailed, FoldPlan, fold
from objstore.node.disk import Disk

OpenDisks = Callable[[], Sequence[Disk]]
"""Opens the cluster's disks; picklable (a module's function, or functools.partial of one)."""

TIMEOUT_S = 3_600.0  # A fold of 100 million keys takes about ten minutes.
NICENESS = 10  # Folding is never urgent; what it competes with is.


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    snapshot: Snapshot | None
    failures: dict[int, str] = {}  # Of disks.
    corrupt: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode


def folder_process(open_disks: OpenDisks, *, timeout_s: float = TIMEOUT_S) -> Folder:
    """A `Folder` that runs each fold in a new process.

    The process is killed when the committer gives up or ends. Raises (the folder): FoldFailed,
    Corrupt, Unavailable.
    """

    async def run(plan: FoldPlan) -> Snapshot:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "objstore.meta.fold",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout_s):
                answer, _ = await process.communicate(pickle.dumps((open_disks, plan)))
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
        if outcome.snapshot is None:
            raise Corrupt(outcome.corrupt)
        return outcome.snapshot

    return run


async def do(open_disks: OpenDisks, plan: FoldPlan) -> Outcome:
    disks = open_disks()
    try:
        return Outcome(await fold(disks, plan))
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
    open_disks, plan = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - from our parent, over a pipe
    outcome = asyncio.run(do(open_disks, plan))
    sys.stdout.buffer.write(_encode(outcome))


if __name__ == "__main__":
    main()
