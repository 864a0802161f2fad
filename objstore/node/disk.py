"""The disk interface: what a local directory implements now and a remote node next.

A disk holds two kinds of files and one identity. *Fragment files* (one per volume and fragment
index) carry objects; they are appended to at offsets the writer names, and never overwritten.
*Logs* (journal epochs, snapshots) belong to the metadata engine. Names are ids that we made.

Concurrency: each disk has its own small thread pool, so that a hung disk hangs only itself. Calls
on different files run side by side; appends to one file are issued one at a time by its one writer.
After a failed or overdue write or sync the disk is suspect: every later write raises DiskFailed,
in this process at once, and in the others through its record in metadata, until `verify` clears it.
"""

from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview


class DiskState(StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # A sync failed or was overdue: no new writes until verified.
    READ_ONLY = "read-only"
    FULL = "full"  # Below the low-water mark: no new fragment data; deletes and journal go on.
    FAILED = "failed"  # Reads fail too.
    MISSING = "missing"  # No identity file at the path: an unmounted path is never an empty disk.
    FOREIGN = "foreign"  # Another disk, or another cluster's, lies at the path.


class FragmentFile(NamedTuple):
    volume: int
    index: int  # type: ignore[assignment]  # Shadows tuple.index, which nobody needs here.
    size: int  # Bytes written (not allocated).
    retired_us: int  # 0, or when it was moved to the trash: a state, it stays readable.


class Usage(NamedTuple):
    total: int  # Bytes of the file system.
    free: int  # Bytes available to us.
    device: int  # st_dev: disks of one device survive no disk, and count once.


class LogFile(NamedTuple):
    name: str
    size: int


class Disk(Protocol):
    number: int  # Counts from 1 within the cluster; never reused.
    uuid: bytes
    path: str  # For people.

    @property
    def state(self) -> DiskState: ...

    @property
    def reason(self) -> str:
        """Why the state is what it is, in plain words; empty when healthy."""
        ...

    async def look_again(self) -> bool:
        """Whether it can be reached. What is presumed away (calls raise NodeAway unasked) is asked now, once
        for all who want to know just now. Ends in seconds; raises nothing."""
        ...

    # Fragment files.

    async def create(self, volume: int, index: int) -> None:
        """Make an empty fragment file, durably (file and directory entry).

        Raises: DiskFailed, DiskFull, DiskMissing. FileExistsError is a bug: ids are never reused.
        """
        ...

    def append(
        self, volume: int, index: int, offset: int, buffers: Sequence[Buffer], *, sync: bool
    ) -> Awaitable[None]:
        """Write the buffers one after another at `offset`, the file's present end.

        May begin before it is awaited; its failures come with the await.

        With sync: durable once this returns. Deadline: the configured progress limit; past it the
        disk is suspect and the call raises.

        Raises: DiskFailed (suspect from now on), DiskFull (the file is cut back to `offset` if it can be).
        """
        ...

    async def sync(self, volume: int, index: int) -> None:
        """Make every earlier append to the file durable."""
        ...

    def read_now(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int | None:
        """What `read` does, if this machine's page cache has all of it; otherwise None, whatever the reason.

        Never blocks, never fails: no task and no timer for what takes a few microseconds.
        """
        ...

    async def read(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `position`; return the bytes read (short at the file's end).

        Tries the page cache in the caller's thread first (RWF_NOWAIT) and a thread of the disk's
        pool only when the kernel would block. Raw bytes: the caller verifies (node/fragments.py).

        Raises: DiskFailed, DiskMissing; FileNotFoundError if there is no such fragment file.
        """
        ...

    async def seal(self, volume: int, index: int, length: int) -> None:
        """Cut the file to `length` (no more appends), give back preallocated space, sync."""
        ...

    # A rebuilt fragment file in place of a damaged or missing one, put together piece by piece in a temporary
    # file and published whole. Whoever began it ends it, by `replace_publish` or `replace_abandon`.

    async def replace_begin(self, volume: int, index: int) -> str:
        """Begin one; returns the name that the next three calls take. It leaves what is there alone.

        Raises: DiskFailed, DiskFull, DiskMissing; Overloaded if too many are under way.
        """
        ...

    async def replace_append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers at `offset`, the temporary file's present end. Not durable yet."""
        ...

    async def replace_publish(self, name: str, length: int) -> None:
        """Put the file, which has `length` bytes, in its place: atomically and durably (sync, rename,
        directory sync). It is no trash, even if what was there was."""
        ...

    async def replace_abandon(self, name: str) -> None:
        """Drop what was begun. Idempotent, and never fails: what cannot be removed goes at the next start."""
        ...

    async def retire(self, volume: int, index: int, now_us: int) -> None:
        """Mark the file as trash, durably. It stays readable under its id until purged."""
        ...

    async def purge(self, volume: int, index: int, *, retired_before_us: int) -> None:
        """Remove a retired file. Refuses (Denied) one that is not retired or was retired later."""
        ...

    async def fragment_files(self) -> list[FragmentFile]: ...

    # Logs of the metadata engine.

    async def log_create(self, name: str, content: Buffer = b"") -> None:
        """Make a log that holds `content`; whole and durable, or not there."""
        ...

    def log_append(self, name: str, offset: int, content: Buffer) -> Awaitable[None]:
        """Append at `offset`, the log's present end; durable once this returns."""
        ...

    async def log_read(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes; short at the end of the log."""
        ...

    async def log_remove(self, name: str) -> None: ...

    async def logs(self) -> list[LogFile]: ...

    # The disk itself.

    async def note_epoch(self, epoch: int) -> None:
        """Write the newest journal epoch's number into the identity file, durably."""
        ...

    async def noted_epoch(self) -> int: ...

    async def fence(self, epoch: int) -> None:
        """Refuse from now on, durably, every call that names an older epoch; done when all older writes
        have ended. The noted epoch stays as it is: recovery looks for that one. A disk of this machine is
        held by a lock, so that nobody else can write to it, and nothing is to be done.

        Raises: StaleEpoch if a newer one than ours is in force.
        """
        ...

    async def usage(self) -> Usage: ...

    async def verify(self) -> None:
        """Write, sync, drop from the cache and read back a probe; clears suspicion on success.

        Raises: DiskFailed, DiskMissing, DiskFull.
        """
        ...

    def close(self) -> None: ...
