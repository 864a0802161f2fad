"""The system calls that a local disk makes, in one replaceable place.

LocalDisk calls nothing of `os` itself. A test hands it another object of this shape: one that returns EIO at
call N, or a whole file system that forgets what was not synced. Every method raises OSError and blocks.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.sync_file_range.restype = ctypes.c_int

_FALLOC_FL_KEEP_SIZE = 1
_SYNC_FILE_RANGE_WRITE = 2


class FileStat(Protocol):
    """What of os.stat_result is used here."""

    @property
    def st_size(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...


class SpaceStat(Protocol):
    """What of os.statvfs_result is used here."""

    @property
    def f_frsize(self) -> int: ...
    @property
    def f_blocks(self) -> int: ...
    @property
    def f_bavail(self) -> int: ...


class Syscalls(Protocol):
    def open(self, path: str, flags: int, mode: int = 0o600) -> int: ...
    def close(self, fd: int) -> None: ...
    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int, flags: int) -> int: ...
    def preadv(self, fd: int, buffers: Sequence[memoryview], position: int, flags: int) -> int: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync(self, fd: int) -> None: ...
    def ftruncate(self, fd: int, size: int) -> None: ...
    def fstat(self, fd: int) -> FileStat: ...
    def stat(self, path: str) -> FileStat: ...
    def statvfs(self, path: str) -> SpaceStat: ...
    def rename(self, source: str, target: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def mkdir(self, path: str, mode: int = 0o700) -> None: ...
    def listdir(self, path: str) -> list[str]: ...

    def preallocate(self, fd: int, position: int, size: int) -> None:
        """Reserve blocks beyond the file's end without changing its size."""
        ...

    def write_behind(self, fd: int, position: int, size: int) -> None:
        """Start writing dirty pages; does not wait, makes nothing durable, reports no write error."""
        ...

    def drop_cache(self, fd: int, position: int, size: int) -> None:
        """Ask the kernel to forget clean pages of the file, so that their next read is the disk's.

        Args:
            size: bytes; 0: all from `position` on.
        """
        ...

    def flock(self, fd: int) -> None:
        """Exclusive, without waiting. Raises BlockingIOError if another holds it."""
        ...


class RealSyscalls:
    """The kernel's. Attributes where a function fits as it is: one call less on the hot path."""

    def __init__(self) -> None:
        self.open = os.open
        self.close = os.close
        self.pwritev = os.pwritev
        self.preadv = os.preadv
        self.fdatasync = os.fdatasync
        self.fsync = os.fsync
        self.ftruncate = os.ftruncate
        self.fstat = os.fstat
        self.stat = os.stat
        self.statvfs = os.statvfs
        self.rename = os.rename
        self.unlink = os.unlink
        self.mkdir = os.mkdir
        self.listdir = os.listdir

    def preallocate(self, fd: int, position: int, size: int) -> None:
        _check(_libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, position, size))

    def write_behind(self, fd: int, position: int, size: int) -> None:
        # WRITE alone does not wait and does not consume a write error: fdatasync still sees it.
        _check(_libc.sync_file_range(fd, position, size, _SYNC_FILE_RANGE_WRITE))

    def drop_cache(self, fd: int, position: int, size: int) -> None:
        # What is not written yet stays, and so does the memory of a failed write.
        os.posix_fadvise(fd, position, size, os.POSIX_FADV_DONTNEED)

    def flock(self, fd: int) -> None:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
