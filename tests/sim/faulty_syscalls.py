"""System calls that fail or hang where a test says so. Sits between LocalDisk and another Syscalls object."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from objstore.node.syscalls import RealSyscalls, Syscalls

NAMES = [name for name in vars(Syscalls) if not name.startswith("_")]


class FaultySyscalls:
    """Implements objstore.node.syscalls.Syscalls.

    `fail("fdatasync", errno.EIO)` makes every later call fail; with `times=1` only the next. `at` counts
    calls from now: `fail("pwritev", errno.ENOSPC, at=3)` spares two. With `effect=True` the call is made
    first and then fails.
    `hang("fdatasync")` blocks the calling thread until `release()`; the test must release.
    """

    def __init__(self, beneath: Syscalls | None = None) -> None:
        self.beneath: Any = beneath or RealSyscalls()
        self.calls: Counter[str] = Counter()
        self.trace: list[tuple[str, tuple[Any, ...]]] = []
        self._rules: dict[str, list[_Rule]] = {}
        self._released = threading.Event()
        for name in NAMES:
            setattr(self, name, self._wrap(name))

    def fail(
        self, name: str, number: int, *, at: int = 1, times: int | None = None, effect: bool = False
    ) -> None:
        assert name in NAMES
        self._rules.setdefault(name, []).append(_Rule(number, at - 1, times, effect))

    def hang(self, name: str) -> None:
        assert name in NAMES
        self._rules.setdefault(name, []).append(_Rule(0, 0, 1, False))

    def heal(self) -> None:
        """Forget every rule."""
        self._rules.clear()

    def release(self) -> None:
        self._released.set()

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = getattr(self.beneath, name)

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            self.trace.append((name, arguments))
            for rule in self._rules.get(name, ()):
                if rule.skip:
                    rule.skip -= 1
                elif rule.times is None or rule.times > 0:
                    if rule.times is not None:
                        rule.times -= 1
                    if rule.number == 0:
                        assert self._released.wait(30), "the test did not release the hanging call"
                        return real(*arguments)
                    if rule.effect:
                        real(*arguments)
                    raise OSError(rule.number, os.strerror(rule.number))
            return real(*arguments)

        return call


class _Rule:
    def __init__(self, number: int, skip: int, times: int | None, effect: bool) -> None:
        self.number = number
        self.skip = skip
        self.times = times
        self.effect = effect


class SmallDisk:
    """A pwritev that behaves like a file system with `free` bytes left: short at the end, then ENOSPC."""

    def __init__(self, sys: FaultySyscalls, free: int) -> None:
        self.free = free
        self._pwritev = sys.beneath.pwritev
        sys.pwritev = self.pwritev  # type: ignore[attr-defined]

    def pwritev(self, fd: int, buffers: Any, position: int, flags: int) -> int:
        if self.free <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = b"".join(buffers)[: self.free]
        count: int = self._pwritev(fd, [data], position, flags)
        self.free -= count
        return count
