"""A disk that is a directory of this machine. Implements node/disk.py's Disk.

Layout (docs/formats.md has it in full):

    objstore.id                        identity.py
    fragments/<xx>/<volume>.<index>    xx: the volume's low byte in hex
    fragments/<xx>/<volume>.<index>.retired.<us>   an empty marker: the file is trash since then
    logs/<name>
    meta/                              LMDB, on one disk only; not ours
    tmp/                               what is not yet named; swept at a start

Names are numbers that we made; nothing of a client's becomes a path.

What may go wrong, and what becomes of it:

    write or sync fails (EIO, ...) or is overdue   suspect: no more writes until `verify` clears it
    EROFS                                          read-only; cleared by `verify`
    ENODEV, ENXIO, ESHUTDOWN; reads that keep failing   failed; cleared by `verify`
    ENOSPC, EDQUOT, or below the low-water mark    full: no new fragment data; deletes, logs and reads go on
    no identity file at the path                   missing; back again it is suspect until verified
    another disk's identity file                   foreign

Concurrency: one event loop uses a LocalDisk. Blocking calls run in the disk's threads (threads.py), writes
and reads in pools of their own, so that reads of a busy disk do not delay its appends. State is a few
words, each assigned whole, from either side. Several processes open the same directory: each fragment file
is written by one of them, the identity file by the committer or, before any other runs, the supervisor.
A call that is cancelled runs on in its thread; its file stays open until it has ended.
"""

import asyncio
import errno
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec

from objstore.errors import (
    Corrupt,
    Denied,
    DiskFailed,
    DiskFull,
    DiskMissing,
    Overloaded,
    StoreError,
    Unavailable,
)
from objstore.node.disk import Buffer, DiskState, FragmentFile, LogFile, Usage
from objstore.node.identity import (
    IDENTITY_NAME,
    Identity,
    read_identity,
    read_whole,
    sync_directory,
    write_identity,
    write_new,
)
from objstore.node.syscalls import RealSyscalls, Syscalls
from objstore.node.threads import Call, DiskThreads, Overdue

T = TypeVar("T")
K = TypeVar("K")

MIB = 1024 * 1024
TEMPORARY = "tmp"  # The subdirectory for files that have no name of their own yet.
IOV_MAX = 1024  # Linux's limit of buffers a call.
PIECE_SIZE = 8 * MIB  # Bytes a thread job writes of a large file: each job has a deadline of its own.
PROBE_SIZE = MIB  # Bytes that `verify` writes and reads back.
LOOK_INTERVAL_S = 5.0  # Between looks at the identity file and the free space, while the disk is used.
FULL_RETRY_S = 1.0  # After ENOSPC with space above the low-water mark (a quota, say): try again then.
REPLACING_MAX = 16  # Fragment files put together at once: repair does one, scrub beside it another.
READ_FAILURES_MAX = 8  # Failed reads in a row that make a disk failed: below that, rot of single sectors.

_FRAGMENT_NAME = re.compile(r"(0|[1-9][0-9]{0,19})\.(0|[1-9][0-9]{0,2})(?:\.retired\.([1-9][0-9]{0,17}))?")
_LOG_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PROCESS_FULL = frozenset({errno.EMFILE, errno.ENFILE})  # Too many open files: not the disk's fault.
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.ENOMEDIUM})
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_OURS = frozenset({"fragments", "logs", "tmp", "meta", "lost+found", IDENTITY_NAME + ".new"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOptions:
    """Limits of one disk. Everything has a default that suits an SSD and a hard disk."""

    limit_s: float = 10.0  # Progress: a fragment write, sync or read not done by then is overdue.
    log_limit_s: float = 2.0  # The same for the metadata journal.
    low_water: int | None = None  # Bytes to keep free. None: 2% of the file system, at most 1 GiB.
    preallocate: int = MIB  # Bytes ahead of synced appends; 0 switches it off.
    write_behind: int = 8 * MIB  # Unsynced bytes after which write-back is started.
    open_files_max: int = 128  # Descriptors kept open for this disk.
    write_threads: int = 4
    read_threads: int = 4
    queue_max: int = 512  # Calls that wait or run, per pool; beyond: Overloaded.

    def __post_init__(self) -> None:
        assert self.limit_s > 0
        assert self.log_limit_s > 0
        assert 0 <= self.preallocate <= MIB
        assert self.write_behind >= MIB
        assert self.open_files_max >= 1
        assert self.write_threads >= 1
        assert self.read_threads >= 1
        assert self.queue_max >= 1


class Expected(NamedTuple):
    """Who should be at a path, known from the other disks' identity files or from metadata."""

    cluster: bytes
    uuid: bytes
    number: int


class OpCount:
    """What one kind of call did so far. Plain numbers: metrics read them whenever they like."""

    __slots__ = ("bytes", "count", "errors", "seconds", "slowest_s")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.bytes = 0
        self.seconds = 0.0
        self.slowest_s = 0.0

    def add(self, seconds: float, size: int = 0) -> None:
        self.count += 1
        self.seconds += seconds
        self.bytes += size
        if seconds > self.slowest_s:
            self.slowest_s = seconds


class _File:
    """An open descriptor. Invariant: it is closed once, when it is doomed and nobody uses it.

    A dirty file (unsynced bytes) is never evicted: its write-back error must reach our fdatasync.
    """

    __slots__ = (
        "allocated",
        "behind",
        "disk",
        "doomed",
        "dropped",
        "fd",
        "sealed",
        "synced",
        "touched",
        "users",
        "writable",
        "written",
    )

    def __init__(self, disk: "LocalDisk", fd: int, *, writable: bool) -> None:
        self.disk = disk
        self.fd = fd
        self.writable = writable
        self.users = 0  # Thread calls that use the descriptor.
        self.doomed = False
        self.touched = True  # Second chance in the cache.
        self.sealed = False
        # Two counts, so that an append and a sync side by side do not lose each other's change.
        self.written = 0  # Bytes appended without a sync of their own. Changed by appends only.
        self.synced = 0  # Those of them that a later sync covered. Changed by syncs only.
        self.behind = 0  # Write-back was started up to here;
        self.dropped = 0  # and up to here the page cache may forget.
        self.allocated = 0  # Blocks are preallocated up to here.

    @property
    def dirty(self) -> bool:
        return self.written != self.synced

    def acquire(self) -> None:
        self.users += 1

    def release(self) -> None:
        self.users -= 1
        if self.doomed and not self.users:
            self.disk._close_descriptor(self)


class _Replacement(NamedTuple):
    """A fragment file that is being put together in tmp/."""

    volume: int
    index: int  # type: ignore[assignment]  # Shadows tuple.index, which nobody needs here.
    temporary: str
    file: _File


class LocalDisk:
    """See node/disk.py for the contract and the module docstring for the rest.

    Made by `open_disk`. Attributes for metrics: `counts` (by call name), `cached_reads` (served from the
    page cache in the caller's thread; in no count), `suspicions`.
    """

    def __init__(
        self,
        path: str,
        expected: Expected,
        *,
        identity: Identity | None,
        options: DiskOptions,
        sys: Syscalls,
        absent: tuple[DiskState, str] | None = None,
        failed: str = "",
    ) -> None:
        self.number = expected.number
        self.uuid = expected.uuid
        self.path = path
        self.identity = identity  # As read at the start; None while the disk is missing. `epoch` may be old.
        self.expected = expected
        self.options = options
        self.counts: dict[str, OpCount] = {}
        self.cached_reads = 0
        self.suspicions = 0  # How often the disk became suspect.
        self._sys = sys
        self._preadv = sys.preadv
        self._absent = absent
        self._failed = failed
        self._suspicion = ""
        self._read_only = ""
        self._full = ""
        self._full_since = 0.0  # Monotonic; when ENOSPC was last seen.
        self._read_failures = 0  # In a row.
        self._files: dict[tuple[int, int], _File] = {}
        self._logs: dict[str, _File] = {}
        self._replacing: dict[str, _Replacement] = {}
        self._opening: dict[tuple[int, int, bool], asyncio.Task[_File]] = {}
        self._opening_logs: dict[str, asyncio.Task[_File]] = {}
        self._writers = DiskThreads(
            f"disk{self.number}-w", threads_max=options.write_threads, queue_max=options.queue_max
        )
        self._readers = DiskThreads(
            f"disk{self.number}-r", threads_max=options.read_threads, queue_max=options.queue_max
        )
        self._identity_lock = threading.Lock()  # Read-modify-write of the identity file.
        self._identity_stat: tuple[int, int, int] | None = None
        self._usage: Usage | None = None
        self._next_look = 0.0  # Monotonic.
        self._look_task: asyncio.Task[None] | None = None
        self._nowait = os.RWF_NOWAIT
        self._dsync = os.RWF_DSYNC
        self._preallocates = options.preallocate > 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<disk {self.number} at {self.path}: {self.state}>"

    # State.

    @property
    def state(self) -> DiskState:
        """Asking about a full or missing disk also has it looked at again, at most once a second.

        Else nobody would: placement leaves such a disk alone, and so no call would ever find it well again.
        """
        if (self._absent is not None or self._full) and time.monotonic() > self._next_look:
            self._start_look()
        if self._absent is not None:
            return self._absent[0]
        if self._failed:
            return DiskState.FAILED
        if self._suspicion:
            return DiskState.SUSPECT
        if self._read_only:
            return DiskState.READ_ONLY
        if self._full:
            return DiskState.FULL
        return DiskState.HEALTHY

    @property
    def reason(self) -> str:
        if self._absent is not None:
            return self._absent[1]
        return self._failed or self._suspicion or self._read_only or self._full

    @property
    def hung(self) -> int:
        """Calls that are overdue and not yet back from the kernel."""
        return self._writers.hung + self._readers.hung

    def suspect(self, reason: str) -> None:
        """Take no more writes until verified: for what another process found out. Idempotent."""
        if not self._suspicion:
            self._suspicion = reason
            self.suspicions += 1

    async def look_again(self) -> bool:
        return self._absent is None  # Each call goes to the disk itself: nothing is presumed.

    # Fragment files.

    async def create(self, volume: int, index: int) -> None:
        self._check_writable(grows=True)
        key = (volume, index, True)
        assert key not in self._opening
        task = asyncio.get_running_loop().create_task(self._do_create(volume, index))
        self._opening[key] = task  # Shielded for the same reason as an open.
        task.add_done_callback(lambda done: self._end_opening(self._opening, key, done))
        await asyncio.shield(task)

    async def _do_create(self, volume: int, index: int) -> _File:
        fd = await self._write("create", self.options.limit_s, None, self._create, volume, index)
        return self._keep(volume, index, fd, writable=True)

    def append(
        self, volume: int, index: int, offset: int, buffers: Sequence[Buffer], *, sync: bool
    ) -> Awaitable[None]:
        if sync and not self._full:
            file = self._files.get((volume, index))
            if file is not None and file.writable and self._takes_calls:
                assert not file.sealed, f"append to the sealed {volume}.{index}"
                file.touched = True
                return self._append_synced("append", self.options.limit_s, file, offset, buffers, volume)
        return self._append_in_thread(volume, index, offset, buffers, sync)

    async def _append_in_thread(
        self, volume: int, index: int, offset: int, buffers: Sequence[Buffer], sync: bool
    ) -> None:
        self._check_writable(grows=True)
        file = self._files.get((volume, index))
        if file is None or not file.writable:
            file = await self._open_fragment(volume, index, writable=True)
        assert not file.sealed, f"append to the sealed {volume}.{index}"
        file.touched = True
        await self._append_to("append", self.options.limit_s, file, offset, buffers, sync=sync)

    async def sync(self, volume: int, index: int) -> None:
        self._check_writable()
        file = self._files.get((volume, index))
        if file is None or not file.writable:
            file = await self._open_fragment(volume, index, writable=True)
        await self._write("sync", self.options.limit_s, file, self._sync, file)

    def read_now(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int | None:
        file = self._files.get((volume, index))
        if file is None or not self._nowait or self._failed or self._absent is not None:
            return None
        file.touched = True
        try:
            count = self._preadv(file.fd, buffers, position, self._nowait)
        except OSError:
            return None  # It would block; or it failed: the thread meets that again and judges it.
        wanted = 0
        for buffer in buffers:
            wanted += buffer.nbytes
        if count != wanted:
            return None
        self.cached_reads += 1
        if time.monotonic() > self._next_look:
            self._start_look()
        return count

    async def read(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        count = self.read_now(volume, index, position, buffers)
        if count is not None:
            return count
        return await self._read_in_thread(volume, index, position, buffers)

    async def seal(self, volume: int, index: int, length: int) -> None:
        self._check_writable()
        file = self._files.get((volume, index))
        if file is None or not file.writable:
            file = await self._open_fragment(volume, index, writable=True)
        await self._write("seal", self.options.limit_s, file, self._seal, file, length)

    async def replace_begin(self, volume: int, index: int) -> str:
        self._check_writable(grows=True)
        if len(self._replacing) >= REPLACING_MAX:
            raise Overloaded(f"{self._where}: {REPLACING_MAX} fragment files are being replaced")
        temporary = self._temporary(f"{volume}.{index}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        limit_s = self.options.limit_s
        fd = await self._write("replace", limit_s, None, self._open_temporary, temporary, flags)
        name = os.path.basename(temporary)
        self._replacing[name] = _Replacement(volume, index, temporary, _File(self, fd, writable=True))
        return name

    async def replace_append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        self._check_writable(grows=True)
        file = self._replacing[name].file
        await self._append_to("replace", self.options.limit_s, file, offset, buffers, sync=False)

    async def replace_publish(self, name: str, length: int) -> None:
        self._check_writable(grows=True)
        new = self._replacing[name]
        limit_s = self.options.limit_s
        await self._write("replace", limit_s, new.file, self._sync_whole, new.file, length)
        await self._write(
            "replace", limit_s, None, self._publish_fragment, new.temporary, new.volume, new.index
        )
        del self._replacing[name]
        self._doom(new.file)
        self._forget(new.volume, new.index)

    async def replace_abandon(self, name: str) -> None:
        new = self._replacing.pop(name, None)
        if new is not None:
            self._writers.post(self._sys.unlink, new.temporary)  # Best effort; else swept at the next start.
            self._doom(new.file)

    async def retire(self, volume: int, index: int, now_us: int) -> None:
        assert now_us > 0
        self._check_writable()
        await self._write("retire", self.options.limit_s, None, self._retire, volume, index, now_us)

    async def purge(self, volume: int, index: int, *, retired_before_us: int) -> None:
        self._check_writable()
        await self._write("purge", self.options.limit_s, None, self._purge, volume, index, retired_before_us)
        self._forget(volume, index)

    async def fragment_files(self) -> list[FragmentFile]:
        found: list[FragmentFile] = []
        for low in range(256):  # A call each, so that each has its own deadline.
            found += await self._read_call("fragment_files", None, self._list_fragments, low)
        found.sort()
        return found

    # Logs.

    async def log_create(self, name: str, content: Buffer = b"") -> None:
        self._check_log_name(name)
        self._check_writable()
        temporary = self._temporary(name)
        limit_s = self.options.log_limit_s
        await self._write_temporary("log_create", temporary, [content], limit_s)
        await self._write("log_create", limit_s, None, self._publish, temporary, self._log(name), False)

    def log_append(self, name: str, offset: int, content: Buffer) -> Awaitable[None]:
        file = self._logs.get(name)
        if file is None or not self._takes_calls:
            return self._log_append_in_thread(name, offset, content)
        return self._append_synced("log_append", self.options.log_limit_s, file, offset, [content], name)

    async def _log_append_in_thread(self, name: str, offset: int, content: Buffer) -> None:
        self._check_writable()
        file = self._logs.get(name)
        if file is None:
            file = await self._open_log(name)
        await self._append_to("log_append", self.options.log_limit_s, file, offset, [content], sync=True)

    async def log_read(self, name: str, offset: int, size: int) -> bytes:
        self._check_log_name(name)
        found = await self._read_call("log_read", None, self._log_read, name, offset, size)
        self._count("log_read").bytes += len(found)
        return found

    async def log_remove(self, name: str) -> None:
        self._check_log_name(name)
        self._check_writable()
        await self._write("log_remove", self.options.limit_s, None, self._log_remove, name)
        file = self._logs.pop(name, None)
        if file is not None:
            self._doom(file)

    async def logs(self) -> list[LogFile]:
        return await self._read_call("logs", None, self._list_logs)

    # The disk itself.

    async def note_epoch(self, epoch: int) -> None:
        assert epoch >= 0
        self._check_writable()
        await self._write("note_epoch", self.options.log_limit_s, None, self._note_epoch, epoch)

    async def noted_epoch(self) -> int:
        return (await self._read_call("noted_epoch", None, self._read_own_identity)).epoch

    async def fence(self, epoch: int) -> None:
        assert epoch >= 0  # The lock (`lock_disk`) keeps everybody else away.

    async def usage(self) -> Usage:
        """Also looks at the identity file and the low-water mark."""
        await self._look()
        self._check_readable()
        usage = self._usage
        assert usage is not None
        return usage

    async def verify(self) -> None:
        if self.hung:
            raise DiskFailed(f"{self._where}: {self.hung} earlier calls still hang in the kernel")
        try:
            await self._writers.run(self.options.limit_s, None, self._verify)
        except Overdue:
            self.suspect(f"its verification took longer than {self.options.limit_s:g} s")
            raise DiskFailed(f"{self._where} is {self.state}: {self.reason}") from None
        except OSError as failure:
            raise self._judge_write("verify", failure) from failure
        self._suspicion = self._read_only = self._failed = ""
        self._read_failures = 0
        self._check_space()
        if self._full:
            raise DiskFull(f"{self._where}: {self._full}")

    def lock(self, wait_s: float = 0.0) -> int:
        """Take the store-wide lock of this disk directory: see `lock_disk`."""
        return lock_disk(self.path, wait_s=wait_s, sys=self._sys)

    def sweep(self) -> int:
        """Remove what a crash left in tmp/. Blocks.

        Only by the supervisor, under the lock, before any other process runs. Returns how many files went.

        Raises: OSError.
        """
        directory = os.path.join(self.path, "tmp")
        names = self._sys.listdir(directory)
        for name in names:
            self._sys.unlink(os.path.join(directory, name))
        return len(names)

    def close(self) -> None:
        """Close what is idle; a call that hangs keeps its descriptor. The disk takes no more calls."""
        if self._closed:
            return
        self._closed = True
        if self._look_task is not None:
            self._look_task.cancel()
        for new in self._replacing.values():
            self._writers.post(self._sys.unlink, new.temporary)
            self._doom(new.file)
        self._replacing.clear()
        for file in [*self._files.values(), *self._logs.values()]:
            self._doom(file)
        self._files.clear()
        self._logs.clear()
        self._writers.close()
        self._readers.close()

    # Checks and judgements, on the loop.

    @property
    def _where(self) -> str:
        return f"disk {self.number} at {self.path}"

    def _check_readable(self) -> None:
        if self._absent is not None:
            raise DiskMissing(f"{self._where} is {self._absent[0]}: {self._absent[1]}")
        if self._failed:
            raise DiskFailed(f"{self._where} has failed: {self._failed}")

    def _check_writable(self, *, grows: bool = False) -> None:
        if time.monotonic() > self._next_look:
            self._start_look()
        if self._absent is not None or self._failed:
            self._check_readable()
        if self._suspicion:
            raise DiskFailed(f"{self._where} is suspect: {self._suspicion}")
        if self._read_only:
            raise DiskFailed(f"{self._where} is read-only: {self._read_only}")
        if grows and self._full:
            raise DiskFull(f"{self._where}: {self._full}")

    async def _write(
        self, what: str, limit_s: float, file: _File | None, function: Callable[..., T], *arguments: Any
    ) -> T:
        """Run a call that changes the disk, and judge its failure. Never retried: see RELIABILITY, law 10."""
        count = self._count(what)
        if self._writers.hung >= self.options.write_threads:
            raise DiskFailed(f"{self._where}: all its threads hang in the kernel")
        start = time.perf_counter()
        try:
            result = await self._writers.run(limit_s, file, function, *arguments)
        except Overdue:
            raise self._judge_overdue(what, limit_s) from None
        except OSError as failure:
            count.errors += 1
            raise self._judge_write(what, failure) from failure
        count.add(time.perf_counter() - start)
        return result

    async def _append_to(
        self, what: str, limit_s: float, file: _File, offset: int, buffers: Sequence[Buffer], *, sync: bool
    ) -> None:
        size = await self._write(what, limit_s, file, self._append, file, offset, buffers, sync)
        self._count(what).bytes += size

    def _count(self, what: str) -> OpCount:
        count = self.counts.get(what)
        if count is None:
            count = self.counts[what] = OpCount()
        return count

    def _judge_overdue(self, what: str, limit_s: float) -> DiskFailed:
        self._count(what).errors += 1
        self.suspect(f"{what} took longer than {limit_s:g} s")
        return DiskFailed(f"{self._where} is suspect: {self._suspicion}")

    @property
    def _takes_calls(self) -> bool:
        """Nothing is to be said about the disk's state: a synced append may begin at once."""
        if time.monotonic() > self._next_look:
            self._start_look()
        return not (
            self._absent is not None
            or self._failed
            or self._suspicion
            or self._read_only
            or self._closed
            or self._writers.hung
            or self._writers.is_full
        )

    def _append_synced(
        self, what: str, limit_s: float, file: _File, offset: int, buffers: Sequence[Buffer], key: object
    ) -> "asyncio.Future[None]":
        """Begun when this returns; no task, no timer, and the loop is woken once for all of `key`."""
        call = _Append(self, what, limit_s, file, offset, buffers)
        self._writers.start(call, limit_s, key)
        file.acquire()
        return call.future

    def _judge_write(self, what: str, failure: OSError) -> Exception:
        """What a failed write or sync says about the disk; returns what to raise."""
        number = failure.errno
        words = f"{what}: {failure.strerror or failure}"
        if isinstance(failure, FileNotFoundError | FileExistsError):
            return failure
        if number in _PROCESS_FULL:
            return Overloaded(f"{self._where}: {words}")
        if number in _FULL:
            self._note_full(words)
            return DiskFull(f"{self._where}: {words}")
        if number == errno.EROFS:
            self._read_only = words
        elif number in _GONE:
            self._failed = words
        else:
            self.suspect(words)
        return DiskFailed(f"{self._where} is {self.state}: {words}")

    def _note_full(self, words: str) -> None:
        self._full = words
        self._full_since = time.monotonic()
        self._next_look = min(self._next_look, self._full_since + FULL_RETRY_S)

    async def _read_call(
        self, what: str, file: _File | None, function: Callable[..., T], *arguments: Any
    ) -> T:
        """Run a call that only reads, and judge its failure."""
        if self._absent is not None and time.monotonic() > self._next_look:
            await self._look()
        self._check_readable()
        count = self._count(what)
        if self._readers.hung >= self.options.read_threads:
            raise DiskFailed(f"{self._where}: all its threads hang in the kernel")
        start = time.perf_counter()
        limit_s = self.options.limit_s
        try:
            result = await self._readers.run(limit_s, file, function, *arguments)
        except Overdue:
            count.errors += 1
            self.suspect(f"{what} took longer than {limit_s:g} s")
            self._count_read_failure(f"{what} took longer than {limit_s:g} s")
            raise DiskFailed(f"{self._where}: {what} took longer than {limit_s:g} s") from None
        except FileNotFoundError:
            raise
        except OSError as failure:
            count.errors += 1
            words = f"{what}: {failure.strerror or failure}"
            if failure.errno in _PROCESS_FULL:
                raise Overloaded(f"{self._where}: {words}") from failure
            if failure.errno in _GONE:
                self._failed = words
            else:
                self._count_read_failure(words)
            raise DiskFailed(f"{self._where}: {words}") from failure
        self._read_failures = 0
        count.add(time.perf_counter() - start)
        return result

    def _count_read_failure(self, words: str) -> None:
        self._read_failures += 1
        if self._read_failures >= READ_FAILURES_MAX:
            self._failed = f"{self._read_failures} reads in a row failed, the last with {words}"

    async def _read_in_thread(
        self, volume: int, index: int, position: int, buffers: Sequence[memoryview]
    ) -> int:
        if self._absent is None and time.monotonic() > self._next_look:
            self._start_look()
        file = self._files.get((volume, index))
        if file is None:
            file = await self._open_fragment(volume, index, writable=False)
        size = await self._read_call("read", file, self._read_fully, file.fd, buffers, position)
        self._count("read").bytes += size
        return size

    # Looking around: the identity file, the space, files that lost their names.

    def _start_look(self) -> None:
        """At most one look runs; nobody waits for it."""
        if not self._closed and (self._look_task is None or self._look_task.done()):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # `state` may be asked before and after the loop runs.
            self._next_look = time.monotonic() + LOOK_INTERVAL_S
            self._look_task = loop.create_task(self._look())

    async def _look(self) -> None:
        self._next_look = time.monotonic() + LOOK_INTERVAL_S
        files = [file for file in [*self._files.values(), *self._logs.values()] if not file.dirty]
        try:
            nameless = await self._readers.run(
                self.options.limit_s, _Holders(files), self._look_blocking, files
            )
        except Overdue:
            self.suspect(f"a look at its identity file took longer than {self.options.limit_s:g} s")
        except (OSError, Unavailable) as failure:
            if isinstance(failure, OSError):
                self._failed = f"its identity file: {failure.strerror or failure}"
        else:
            if nameless:
                self._forget_files(nameless)
            self._check_space()
        if self._absent is not None or self._full:
            self._next_look = time.monotonic() + FULL_RETRY_S

    def _check_space(self) -> None:
        usage = self._usage
        if usage is None:
            return
        low = self.options.low_water
        if low is None:
            low = min(usage.total // 50, 1024 * MIB)
        if usage.free < low:
            self._full = f"{usage.free} bytes free, {low} are kept"
        elif time.monotonic() - self._full_since >= FULL_RETRY_S:
            self._full = ""

    # The descriptor cache, on the loop.

    async def _open_fragment(self, volume: int, index: int, *, writable: bool) -> _File:
        """An open descriptor, kept. Files are opened for writing too only by their writer."""
        key = (volume, index, writable)
        while True:
            task = self._opening.get(key)
            if task is None:
                # A task of its own: a caller that is cancelled must not lose the descriptor.
                task = asyncio.get_running_loop().create_task(self._do_open_fragment(*key))
                self._opening[key] = task
                task.add_done_callback(lambda done: self._end_opening(self._opening, key, done))
            file = await asyncio.shield(task)
            if not file.doomed:
                return file
            # Closed by another before we came to use it: its number may be another file's by now.
            if self._opening.get(key) is task:
                del self._opening[key]

    async def _do_open_fragment(self, volume: int, index: int, writable: bool) -> _File:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        name = self._fragment(volume, index)
        if writable:
            fd = await self._write("open", self.options.limit_s, None, self._open, name, flags)
        else:
            fd = await self._read_call("open", None, self._open, name, flags)
        return self._keep(volume, index, fd, writable=writable)

    async def _open_log(self, name: str) -> _File:
        self._check_log_name(name)
        task = self._opening_logs.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._do_open_log(name))
            self._opening_logs[name] = task
            task.add_done_callback(lambda done: self._end_opening(self._opening_logs, name, done))
        return await asyncio.shield(task)

    async def _do_open_log(self, name: str) -> _File:
        flags = os.O_RDWR | os.O_CLOEXEC
        fd = await self._write("open", self.options.log_limit_s, None, self._open, self._log(name), flags)
        file = self._logs[name] = _File(self, fd, writable=True)
        return file

    @staticmethod
    def _end_opening(opening: "dict[K, asyncio.Task[T]]", key: K, done: "asyncio.Task[T]") -> None:
        opening.pop(key, None)
        if not done.cancelled():
            done.exception()  # Seen: every caller may have been cancelled.

    def _keep(self, volume: int, index: int, fd: int, *, writable: bool) -> _File:
        key = (volume, index)
        old = self._files.get(key)
        file = _File(self, fd, writable=writable)
        if old is not None and old.writable and not writable and not self._closed:
            # Opened for writing while we opened it for reading: it may have unsynced bytes.
            file.doomed = True
            self._close_descriptor(file)
            return old
        if old is not None:
            del self._files[key]
            self._doom(old)
        if self._closed:
            file.doomed = True
            self._close_descriptor(file)
            raise DiskFailed(f"{self._where} is closed")
        self._files[key] = file
        if len(self._files) > self.options.open_files_max:
            self._evict()
        return file

    def _evict(self) -> None:
        """Close idle, clean files down to the bound, those first that were not touched since the last pass.

        If every file is in use or dirty the cache grows; its bound is then that of the callers.
        """
        excess = len(self._files) - self.options.open_files_max
        for key in [*self._files, *self._files]:  # A second chance for each.
            file = self._files.get(key)
            if excess <= 0:
                return
            if file is None or file.users or file.dirty:
                continue
            del self._files[key]
            if file.touched:
                file.touched = False
                self._files[key] = file  # To the end.
                continue
            excess -= 1
            self._doom(file)

    def _forget(self, volume: int, index: int) -> None:
        file = self._files.pop((volume, index), None)
        if file is not None:
            self._doom(file)

    def _forget_files(self, files: list[_File]) -> None:
        for key, file in list(self._files.items()):
            if file in files and not file.dirty:
                del self._files[key]
                self._doom(file)
        for name, file in list(self._logs.items()):
            if file in files:
                del self._logs[name]
                self._doom(file)

    def _doom(self, file: _File) -> None:
        file.doomed = True
        if not file.users:
            self._close_descriptor(file)

    def _close_descriptor(self, file: _File) -> None:
        # In a thread: the last close of a purged file frees its blocks, which takes a while.
        self._writers.post(self._sys.close, file.fd)

    # Names.

    def _fragment(self, volume: int, index: int) -> str:
        return f"{self.path}/fragments/{volume & 0xFF:02x}/{volume}.{index}"

    def _log(self, name: str) -> str:
        return f"{self.path}/logs/{name}"

    def _temporary(self, name: str) -> str:
        return f"{self.path}/{TEMPORARY}/{name}.{os.urandom(6).hex()}"

    def _check_log_name(self, name: str) -> None:
        assert _LOG_NAME.fullmatch(name), f"not a name for a log: {name!r}"

    # Blocking, in the disk's threads.

    def _open(self, name: str, flags: int) -> int:
        try:
            return self._sys.open(name, flags)
        except FileNotFoundError:
            self._look_at_identity()  # Missing disk, or only a missing file?
            raise

    def _create(self, volume: int, index: int) -> int:
        sys = self._sys
        name = self._fragment(volume, index)
        try:
            fd = sys.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self._look_at_identity()
            raise OSError(errno.EIO, "its directory is not there") from None
        try:
            sys.fsync(fd)  # 1. The file, before its name.
            sync_directory(os.path.dirname(name), sys)  # 2. The name outlives a power cut.
        except BaseException:
            sys.close(fd)
            raise
        return fd

    def _append(self, file: _File, offset: int, buffers: Sequence[Buffer], sync: bool) -> int:
        """Returns: how many bytes."""
        sys = self._sys
        fd = file.fd
        stat = sys.fstat(fd)
        if not stat.st_nlink:
            self._refuse_nameless()
        assert stat.st_size == offset, f"append at {offset}, the file ends at {stat.st_size}"
        size = 0
        for buffer in buffers:
            size += len(buffer)
        end = offset + size
        if sync and self._preallocates and end > file.allocated:
            self._preallocate(file, offset, size)
        # One call that writes and syncs, if nothing earlier waits for a sync: one hand-off of the
        # interpreter's lock instead of two. It syncs the written range only.
        flags = self._dsync if sync and not file.dirty else 0
        try:
            self._write_fully(fd, buffers, offset, size, flags)
        except OSError as failure:
            if flags and failure.errno in _UNSUPPORTED:
                self._dsync = flags = 0
                self._write_fully(fd, buffers, offset, size, 0)
            elif failure.errno in _FULL:
                sys.ftruncate(fd, offset)  # No half record is left behind. A failure here makes it suspect.
                file.allocated = 0
                raise
            else:
                raise
        if not sync:
            file.written += size
            if end - file.behind >= self.options.write_behind:
                self._start_write_back(file, end)
        elif not flags:
            self._sync_bytes(file)
        return size

    def _preallocate(self, file: _File, offset: int, size: int) -> None:
        try:
            self._sys.preallocate(file.fd, offset, size + self.options.preallocate)
            file.allocated = offset + size + self.options.preallocate
        except OSError as failure:
            # An aid, not a need: without space for it the write itself decides.
            if failure.errno in _UNSUPPORTED:
                self._preallocates = False
            elif failure.errno not in _FULL:
                raise

    def _write_fully(self, fd: int, buffers: Sequence[Buffer], offset: int, size: int, flags: int) -> None:
        if len(buffers) <= IOV_MAX and self._sys.pwritev(fd, buffers, offset, flags) == size:
            return
        # Short (a signal, or a disk that fills up), or too many buffers: piece by piece from the start. What
        # is written twice is the same bytes.
        at = offset
        for start in range(0, len(buffers), IOV_MAX):
            rest = [memoryview(buffer).cast("B") for buffer in buffers[start : start + IOV_MAX]]
            while rest:
                count = self._sys.pwritev(fd, rest, at, flags)
                if count == 0 and any(len(view) for view in rest):
                    raise OSError(errno.EIO, "the kernel wrote nothing")
                at += count
                while rest and count >= len(rest[0]):
                    count -= len(rest.pop(0))
                if rest:
                    rest[0] = rest[0][count:]

    def _start_write_back(self, file: _File, end: int) -> None:
        """Have the newest bytes of a large body written, and those forgotten whose writing began a while ago.

        The page cache is better used for small objects and metadata; and a body that takes over the pages of
        those before it costs half the CPU of one that touches memory anew, where a hypervisor has to give it.
        """
        known = file.behind - self.options.write_behind
        try:
            self._sys.write_behind(file.fd, file.behind, end - file.behind)
            if known > file.dropped:
                self._sys.drop_cache(file.fd, file.dropped, known - file.dropped)
        except OSError as failure:
            if failure.errno not in _UNSUPPORTED and failure.errno != errno.ESPIPE:
                raise
        file.dropped = max(file.dropped, known)
        file.behind = end

    def _sync(self, file: _File) -> None:
        if not self._sys.fstat(file.fd).st_nlink:
            self._refuse_nameless()
        self._sync_bytes(file)

    def _refuse_nameless(self) -> NoReturn:
        """What is written to a file without a name is gone with its descriptor: never acknowledge it."""
        self._look_at_identity()
        raise DiskFailed(f"{self._where}: the file was removed while it was open")

    def _sync_whole(self, file: _File, length: int) -> None:
        size = self._sys.fstat(file.fd).st_size
        assert size == length, f"a file of {size} bytes published as one of {length}"
        self._sync(file)

    def _sync_bytes(self, file: _File) -> None:
        covered = file.written
        try:
            self._sys.fdatasync(file.fd)
        except OSError as failure:
            raise _sync_failure(failure.errno or errno.EIO) from failure
        file.synced = max(file.synced, covered)

    def _read_fully(self, fd: int, buffers: Sequence[memoryview], position: int) -> int:
        preadv = self._sys.preadv
        total = 0
        for start in range(0, len(buffers), IOV_MAX):
            rest = list(buffers[start : start + IOV_MAX])
            while rest:
                count = preadv(fd, rest, position + total, 0)
                if count == 0:
                    return total
                total += count
                while rest and count >= rest[0].nbytes:
                    count -= rest.pop(0).nbytes
                if rest and count:
                    rest[0] = rest[0][count:]
        return total

    def _seal(self, file: _File, length: int) -> None:
        sys = self._sys
        size = sys.fstat(file.fd).st_size
        # A shorter file (this disk missed appends) stays short: zeros are not data. Cutting at the
        # present size gives back what was preallocated beyond it.
        sys.ftruncate(file.fd, min(size, length))
        covered = file.written
        sys.fsync(file.fd)
        file.synced = max(file.synced, covered)
        file.sealed = True

    async def _write_temporary(
        self, what: str, temporary: str, content: Sequence[Buffer], limit_s: float
    ) -> None:
        """A new file in tmp/ with its bytes synced, in calls of at most PIECE_SIZE each."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = await self._write(what, limit_s, None, self._open_temporary, temporary, flags)
        file = _File(self, fd, writable=True)
        try:
            at = 0
            for buffer in content:
                view = memoryview(buffer).cast("B")
                for start in range(0, len(view), PIECE_SIZE):
                    piece = view[start : start + PIECE_SIZE]
                    await self._append_to(what, limit_s, file, at, [piece], sync=False)
                    at += len(piece)
            await self._write(what, limit_s, file, self._sync, file)
        except BaseException:
            self._writers.post(self._sys.unlink, temporary)  # Best effort; else swept at the next start.
            raise
        finally:
            self._doom(file)

    def _open_temporary(self, name: str, flags: int) -> int:
        try:
            return self._sys.open(name, flags, 0o600)
        except FileNotFoundError:
            self._look_at_identity()
            raise OSError(errno.EIO, "its directory is not there") from None

    def _publish(self, temporary: str, name: str, over: bool) -> None:
        """Give a synced temporary file its name, durably."""
        sys = self._sys
        if not over:
            try:
                sys.stat(name)
            except FileNotFoundError:
                pass
            else:
                sys.unlink(temporary)
                raise FileExistsError(name)
        sys.rename(temporary, name)
        sync_directory(os.path.dirname(name), sys)

    def _publish_fragment(self, temporary: str, volume: int, index: int) -> None:
        """Put a synced temporary file in a fragment file's place. It is no trash, though what was there was:
        with its marker it would one day be purged without a grace."""
        name = self._fragment(volume, index)
        self._publish(temporary, name, True)
        markers = self._markers(volume, index)
        for marker in markers:
            self._sys.unlink(os.path.join(os.path.dirname(name), marker))
        if markers:
            sync_directory(os.path.dirname(name), self._sys)

    def _markers(self, volume: int, index: int) -> dict[str, int]:
        """Names of the file's markers of retirement, and their times in microseconds."""
        found: dict[str, int] = {}
        for name in self._sys.listdir(os.path.dirname(self._fragment(volume, index))):
            match = _FRAGMENT_NAME.fullmatch(name)
            if match and match[3] and (int(match[1]), int(match[2])) == (volume, index):
                found[name] = int(match[3])
        return found

    def _retire(self, volume: int, index: int, now_us: int) -> None:
        sys = self._sys
        name = self._fragment(volume, index)
        self._stat_fragment(name)
        if not self._markers(volume, index):
            # The time is in the name: a marker cannot be torn.
            sys.close(sys.open(f"{name}.retired.{now_us}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(os.path.dirname(name), sys)

    def _purge(self, volume: int, index: int, retired_before_us: int) -> None:
        sys = self._sys
        name = self._fragment(volume, index)
        directory = os.path.dirname(name)
        self._stat_fragment(name)
        markers = self._markers(volume, index)
        if not markers or max(markers.values()) >= retired_before_us:
            raise Denied(f"{volume}.{index} on disk {self.number} is not retired, or not long enough ago")
        sys.unlink(name)  # 1. The file: a marker without a file is nothing; a file without one would be live.
        sync_directory(directory, sys)
        for marker in markers:  # 2. The markers.
            sys.unlink(os.path.join(directory, marker))

    def _stat_fragment(self, name: str) -> None:
        try:
            self._sys.stat(name)
        except FileNotFoundError:
            self._look_at_identity()
            raise

    def _list_fragments(self, low: int) -> list[FragmentFile]:
        directory = f"{self.path}/fragments/{low:02x}"
        try:
            names = self._sys.listdir(directory)
        except FileNotFoundError:
            self._look_at_identity()
            return []
        sizes: dict[tuple[int, int], int] = {}
        retired: dict[tuple[int, int], int] = {}
        for name in names:
            match = _FRAGMENT_NAME.fullmatch(name)
            if not match:
                continue  # Not ours: an operator's, or of a later release. Left alone.
            key = int(match[1]), int(match[2])
            if match[3]:
                retired[key] = max(int(match[3]), retired.get(key, 0))
                continue
            try:
                sizes[key] = self._sys.stat(f"{directory}/{name}").st_size
            except FileNotFoundError:
                continue  # Purged meanwhile.
        return [FragmentFile(*key, size, retired.get(key, 0)) for key, size in sizes.items()]

    def _log_read(self, name: str, offset: int, size: int) -> bytes:
        fd = self._open(self._log(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = bytearray(max(0, min(size, self._sys.fstat(fd).st_size - offset)))
            count = self._read_fully(fd, [memoryview(data)], offset) if data else 0
            return bytes(memoryview(data)[:count])
        finally:
            self._sys.close(fd)

    def _log_remove(self, name: str) -> None:
        path = self._log(name)
        try:
            self._sys.unlink(path)
        except FileNotFoundError:
            self._look_at_identity()
            raise
        sync_directory(os.path.dirname(path), self._sys)

    def _list_logs(self) -> list[LogFile]:
        directory = f"{self.path}/logs"
        try:
            names = self._sys.listdir(directory)
        except FileNotFoundError:
            self._look_at_identity()
            raise
        found: list[LogFile] = []
        for name in sorted(names):
            if _LOG_NAME.fullmatch(name):
                try:
                    found.append(LogFile(name, self._sys.stat(f"{directory}/{name}").st_size))
                except FileNotFoundError:
                    continue
        return found

    def _read_own_identity(self) -> Identity:
        """The identity file as it is now. Raises: DiskMissing if it is another disk's; DiskFailed."""
        try:
            identity = read_identity(self.path, self._sys)
        except Corrupt as failure:
            self._failed = str(failure)
            raise DiskFailed(str(failure)) from failure
        except DiskFailed as failure:
            cause = failure.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _PROCESS_FULL:
                self._failed = str(failure)
            raise
        if (identity.cluster_id, identity.disk_uuid) != self.expected[:2]:
            self._absent = DiskState.FOREIGN, _foreign(identity, self.expected)
            raise DiskMissing(f"{self._where}: {self._absent[1]}")
        return identity

    def _note_epoch(self, epoch: int) -> None:
        with self._identity_lock:
            identity = self._read_own_identity()  # Never over another disk's file.
            if epoch < identity.epoch:
                raise DiskFailed(f"{self._where} was told of epoch {identity.epoch}, not {epoch}")
            write_identity(self.path, msgspec.structs.replace(identity, epoch=epoch), self._sys)

    def _look_at_identity(self) -> None:
        """Is it (still, or again) the right disk? Raises: DiskMissing if not; OSError."""
        sys = self._sys
        name = f"{self.path}/{IDENTITY_NAME}"
        try:
            stat = sys.stat(name)
        except (FileNotFoundError, NotADirectoryError):
            self._identity_stat = None
            self._absent = DiskState.MISSING, f"no {IDENTITY_NAME} at its path: not mounted, or removed"
            self._next_look = min(self._next_look, time.monotonic() + FULL_RETRY_S)
            raise DiskMissing(f"{self._where} is missing: {self._absent[1]}") from None
        seen = stat.st_dev, stat.st_ino, stat.st_mtime_ns
        if seen != self._identity_stat:
            identity = self._read_own_identity()
            self._identity_stat = seen
            if self.identity is None:
                self.identity = identity
        if self._absent is not None:
            # It missed what was written meanwhile: nothing new before somebody has verified it.
            self.suspect("it was missing and is back, not yet verified")
            self._absent = None

    def _look_blocking(self, files: list[_File]) -> list[_File]:
        """Returns the open files that lost their names: replaced by repair, purged, or removed."""
        self._look_at_identity()
        self._usage = self._measure()
        return [file for file in files if not self._sys.fstat(file.fd).st_nlink]

    def _measure(self) -> Usage:
        space = self._sys.statvfs(self.path)
        return Usage(
            space.f_frsize * space.f_blocks,
            space.f_frsize * space.f_bavail,
            self._sys.stat(self.path).st_dev,
        )

    def _verify(self) -> None:
        sys = self._sys
        self._look_at_identity()
        name = self._temporary("probe")
        content = os.urandom(PROBE_SIZE)
        try:
            write_new(name, content, sys)
            sync_directory(os.path.dirname(name), sys)
            fd = sys.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sys.drop_cache(fd, 0, 0)  # All of it.
            finally:
                sys.close(fd)
            if read_whole(name, PROBE_SIZE, sys) != content:
                raise OSError(errno.EIO, "other bytes came back than were written")
        finally:
            try:
                sys.unlink(name)
            except FileNotFoundError:
                pass
        self._usage = self._measure()


class _Append(Call):
    """A synced append, and what its outcome says about the disk."""

    __slots__ = ("disk", "file", "future", "limit_s", "start", "what")

    def __init__(
        self,
        disk: LocalDisk,
        what: str,
        limit_s: float,
        file: _File,
        offset: int,
        buffers: Sequence[Buffer],
    ) -> None:
        super().__init__(disk._append, file, offset, buffers, True)
        self.disk = disk
        self.what = what
        self.limit_s = limit_s
        self.file = file
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.start = time.perf_counter()

    def expired(self) -> None:
        failure = self.disk._judge_overdue(self.what, self.limit_s)
        if not self.future.done():
            self.future.set_exception(failure)

    def ended(self) -> None:
        disk, future, failure = self.disk, self.future, self.failure
        self.file.release()
        if failure is None:
            disk._count(self.what).add(time.perf_counter() - self.start, self.result)
            if not future.done():
                future.set_result(None)
            return
        if isinstance(failure, OSError) and not self.late:
            # Judged even if nobody waits any more: the kernel reports a failed sync once.
            disk._count(self.what).errors += 1
            failure = disk._judge_write(self.what, failure)
        if not future.done():
            future.set_exception(failure)


def _sync_failure(number: int) -> OSError:
    if number in _FULL:
        # Delayed allocation found no room: bytes taken earlier are lost, so this is no mere "full".
        number, words = errno.EIO, f"sync: {os.strerror(number)}"
    else:
        words = os.strerror(number)
    return OSError(number, words)


class _Holders:
    """Several files held by one call."""

    __slots__ = ("_files",)

    def __init__(self, files: list[_File]) -> None:
        self._files = files

    def acquire(self) -> None:
        for file in self._files:
            file.acquire()

    def release(self) -> None:
        for file in self._files:
            file.release()


def _foreign(identity: Identity, expected: Expected) -> str:
    if identity.cluster_id != expected.cluster:
        return f"a disk of another cluster ({identity.cluster}) is at its path"
    return f"disk {identity.number} ({identity.uuid}) is at its path, {expected.uuid.hex()} was expected"


# Making and opening. Blocking; for the start of a process.


def format_disk(path: str, identity: Identity, *, sys: Syscalls | None = None) -> None:
    """Make a disk directory: the layout, and the identity file last, durably.

    Makes the directory (and its parents) if it is not there. A crash leaves an unformatted directory that may
    be formatted again.

    Raises: DiskFailed if the path holds anything else than an empty layout (its words name what), is a disk
        already, or cannot be written.
    """
    sys = sys or RealSyscalls()
    path = os.path.abspath(path)
    try:
        made = _make_directories(path, sys)
        names = set(sys.listdir(path))
        if IDENTITY_NAME in names:
            raise DiskFailed(f"{path} is a disk already: it holds {IDENTITY_NAME}")
        others = sorted(names - _OURS)
        if others:
            raise DiskFailed(f"{path} is not formatted: it holds something else ({', '.join(others[:5])})")
        _refuse_leftovers(path, names, sys)
        for low in range(256):
            _make_directories(f"{path}/fragments/{low:02x}", sys)
        for name in ("logs", TEMPORARY):
            _make_directories(f"{path}/{name}", sys)
        # Every name before the identity: a power cut must not leave an identity without its directories.
        sync_directory(f"{path}/fragments", sys)
        sync_directory(path, sys)
        for directory in made:
            sync_directory(os.path.dirname(directory), sys)
        write_identity(path, identity, sys)
    except OSError as failure:
        raise DiskFailed(f"{path} cannot be formatted: {failure.strerror or failure}") from failure


def _refuse_leftovers(path: str, names: set[str], sys: Syscalls) -> None:
    """A lost identity file must not lead to a fresh one over live data."""
    held: list[str] = [name for name in ("logs", "meta") if name in names and sys.listdir(f"{path}/{name}")]
    if "fragments" in names and any(
        sys.listdir(f"{path}/fragments/{low}") for low in sys.listdir(f"{path}/fragments")
    ):
        held.append("fragments")
    if held:
        raise DiskFailed(
            f"{path} is not formatted: it holds {', '.join(held)} of a store without its identity"
        )


def _make_directories(path: str, sys: Syscalls) -> list[str]:
    """Like mkdir -p; returns those that were made."""
    try:
        sys.mkdir(path, 0o700)
    except FileExistsError:
        return []
    except FileNotFoundError:
        parents = _make_directories(os.path.dirname(path), sys)
        sys.mkdir(path, 0o700)
        return [*parents, path]
    return [path]


def open_disk(
    path: str,
    *,
    expected: Expected | None = None,
    options: DiskOptions | None = None,
    sys: Syscalls | None = None,
) -> LocalDisk:
    """Open a disk directory. Blocks a moment; touches the identity file only.

    Args:
        expected: who should be there, if that is known. Then the call never fails: a disk that is not
            there, another's, or unreadable is returned in that state (`state`, `reason`), and looks again
            by itself while it is used. Without it whatever is at the path is taken.

    Raises (without `expected` only): DiskMissing, DiskFailed, Corrupt.
    """
    sys = sys or RealSyscalls()
    options = options or DiskOptions()
    path = os.path.abspath(path)
    identity: Identity | None = None
    absent: tuple[DiskState, str] | None = None
    failed = ""
    try:
        identity = read_identity(path, sys)
    except StoreError as failure:
        if expected is None:
            raise
        if isinstance(failure, DiskMissing):
            absent = DiskState.MISSING, str(failure)
        else:
            failed = str(failure)
    if identity is not None:
        found = Expected(identity.cluster_id, identity.disk_uuid, identity.number)
        if expected is not None and found != expected:
            absent = DiskState.FOREIGN, _foreign(identity, expected)
            identity = None
        expected = expected or found
    assert expected is not None
    return LocalDisk(
        path, expected, identity=identity, options=options, sys=sys, absent=absent, failed=failed
    )


def lock_disk(path: str, *, wait_s: float = 0.0, sys: Syscalls | None = None) -> int:
    """Take the exclusive lock of a disk directory; return the descriptor that holds it, inheritable.

    The lock is on the directory itself: the identity file is replaced by rename, and a lock on it would stay
    with the old inode. It lasts until every process that inherited the descriptor has closed it or ended.

    Raises: DiskFailed if another store holds it after `wait_s`; DiskMissing if the path is not a directory.
    """
    sys = sys or RealSyscalls()
    try:
        fd = sys.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise DiskMissing(f"{path} is not a directory") from None
    except OSError as failure:
        raise DiskFailed(f"{path}: {failure.strerror}") from failure
    deadline = time.monotonic() + wait_s
    while True:
        try:
            sys.flock(fd)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                sys.close(fd)
                raise DiskFailed(f"{path} is in use by another store that runs") from None
            time.sleep(0.02)
        except OSError as failure:
            sys.close(fd)
            raise DiskFailed(f"{path} cannot be locked: {failure.strerror}") from failure
        else:
            os.set_inheritable(fd, True)
            return fd
