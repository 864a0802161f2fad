"""Kernel AIO: syncs that the kernel does by itself, ended by an event. The only module that names its calls.

A sync that is handed to the kernel costs no thread of ours: the kernel's own workers wait for the disk, side
by side, and one descriptor tells the event loop. Only syncs: a buffered write handed over this way is done
inside io_submit, and would block whoever calls it.

Source: include/uapi/linux/aio_abi.h; fs/aio.c (IOCB_CMD_FDSYNC, Linux 4.18). glibc has no wrappers. io_uring
does the same with more wake-ups (docs/decisions/0002-figures.md), and container engines forbid it.
"""

import ctypes
import errno
import os
import platform
import select
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class _Numbers(NamedTuple):
    """The system calls' numbers on one architecture."""

    setup: int
    destroy: int
    submit: int
    getevents: int


_NUMBERS = {
    "x86_64": _Numbers(setup=206, destroy=207, submit=209, getevents=208),
    "aarch64": _Numbers(setup=0, destroy=1, submit=2, getevents=4),
}
_COMMAND_FDSYNC = 3
_FLAG_EVENTFD = 1
# struct iocb: data, key, rw_flags, opcode, priority, descriptor, buffer, size, offset, 0, flags, eventfd.
_IOCB = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQqq")  # struct io_event: data, the iocb's address, result, second result.
assert (_IOCB.size, _EVENT.size) == (64, 32)

ENTRIES = 128  # Syncs under way in one context.
PROBE_LIMIT_S = 1.0


class Syncs(Protocol):
    """Syncs that go on by themselves: the kernel's, or a test's."""

    descriptor: int  # Readable when a sync has ended.

    def submit(self, syncs: Sequence[tuple[int, int]]) -> int: ...
    def ended(self) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class Aio:
    """One context of the kernel's, and the event descriptor that says when syncs have ended.

    Concurrency: `submit` from any thread, `ended` and `close` from one. Close it only when nothing is under
    way: the kernel waits for what is.

    Raises (constructor): OSError where the kernel or a sandbox does not allow it.
    """

    def __init__(self) -> None:
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, f"not known on {platform.machine()}")
        self._numbers = numbers
        # `syscall` is looked up in the process, so that a preloaded library can stand before it.
        libc = ctypes.CDLL(None, use_errno=True)
        self._call = libc.syscall
        self._call.restype = ctypes.c_long
        self._call.argtypes = [ctypes.c_long] * 6
        self._lock = threading.Lock()
        self._blocks = ctypes.create_string_buffer(ENTRIES * _IOCB.size)
        first = ctypes.addressof(self._blocks)
        self._pointers = (ctypes.c_uint64 * ENTRIES)(*(first + _IOCB.size * i for i in range(ENTRIES)))
        self._pointers_address = ctypes.addressof(self._pointers)
        self._events = ctypes.create_string_buffer(ENTRIES * _EVENT.size)
        self._events_address = ctypes.addressof(self._events)
        context = ctypes.c_uint64(0)
        if self._call(numbers.setup, ENTRIES, ctypes.addressof(context), 0, 0, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._context = context.value
        # The kernel's id is an address with its top bit clear: a positive long.
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def submit(self, syncs: Sequence[tuple[int, int]]) -> int:
        """Begin fdatasync of each (number, descriptor); `ended` returns the numbers. Does not wait.

        Returns: how many were taken, the first ones; less than all when the kernel has no room.
        """
        count = min(len(syncs), ENTRIES)
        with self._lock:
            for index in range(count):
                number, fd = syncs[index]
                _IOCB.pack_into(
                    self._blocks,
                    index * _IOCB.size,
                    *(number, 0, 0, _COMMAND_FDSYNC, 0, fd, 0, 0, 0, 0, _FLAG_EVENTFD, self.descriptor),
                )
            taken: int = self._call(self._numbers.submit, self._context, count, self._pointers_address, 0, 0)
        return max(0, taken)

    def ended(self) -> list[tuple[int, int]]:
        """(number, 0 or minus errno) of syncs that have ended since the last call. Does not wait."""
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return []
        count = self._call(self._numbers.getevents, self._context, 0, ENTRIES, self._events_address, 0)
        # No time limit is given: with none wanted at the least the call does not wait.
        return [_EVENT.unpack_from(self._events, index * _EVENT.size)[::2] for index in range(max(0, count))]

    def close(self) -> None:
        os.close(self.descriptor)
        self._call(self._numbers.destroy, self._context, 0, 0, 0, 0)


def probe() -> str:
    """Try one sync of a file in memory. Returns "" if the kernel does it, else why not."""
    try:
        aio = Aio()
    except OSError as failure:
        return f"the kernel does not offer it: {failure.strerror}"
    try:
        fd = os.memfd_create("objstore-probe", os.MFD_CLOEXEC)
        try:
            if aio.submit([(1, fd)]) != 1:
                return "the kernel takes no sync"
            select.select([aio.descriptor], [], [], PROBE_LIMIT_S)
            ended = aio.ended()
        finally:
            os.close(fd)
        return "" if ended == [(1, 0)] else f"a trial ended with {ended}"
    finally:
        aio.close()
