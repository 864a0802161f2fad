"""How far long work is: a bar with its rate and the time to go on a terminal, else a line now and then.

Concurrency: any thread may `add`.
"""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from objstore.cli.output import size_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_SECONDS: Final = 10.0  # Between two lines of a log.


def transfer_bar(count: str) -> "Bar":
    """Bytes done of all, their rate and the time to go, on the terminal. Not begun yet.

    Args:
        count: rich's template of the last column.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn(count),
        console=Console(stderr=True),
    )


class Progress:
    """Of one piece of work: so many bytes in so many things. A context manager.

    Args:
        name: what is done.
        total: bytes; more may come.
        unit: what the things are: objects, files.
        logged: whether there is a line now and then, and at the end, where there is no terminal.
    """

    def __init__(self, name: str, total: int, unit: str, *, logged: bool = True) -> None:
        self._logged = logged
        self._name = name
        self._total = total
        self._unit = unit
        self._done = 0  # Bytes.
        self._count = 0
        self._began = time.monotonic()
        self._told = self._began
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = transfer_bar("{task.fields[count]} " + self._unit)
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total or None, count=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._logged:
            self._tell()

    def add(self, size: int, count: int = 0) -> None:
        """So many bytes, and things, more."""
        with self._lock:
            self._done += size
            self._count += count
            if self._bar is not None:
                total = max(self._total, self._done) or None
                self._bar.update(self._task, completed=self._done, total=total, count=self._count)
            elif self._logged and time.monotonic() >= self._told + LINE_SECONDS:
                self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        passed = self._told - self._began
        total = size_text(max(self._total, self._done))
        words = f"{self._count} {self._unit}, {size_text(self._done)} of {total}"
        if self._done and passed > 0:
            left = max(0, self._total - self._done)
            words += f", {size_text(self._done / passed)}/s, {left * passed / self._done:.0f} s to go"
        print(f"{self._name}: {words}", file=sys.stderr, flush=True)


class Steps:
    """Of work that is counted, not weighed: so many things of so many. A context manager.

    Args:
        name: what is done.
        unit: what the things are: customers, drafts.
        logged: whether there is a line now and then where there is no terminal.
        clock: seconds.
    """

    def __init__(
        self, name: str, unit: str, *, logged: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._logged = logged
        self._name = name
        self._unit = unit
        self._done = 0
        self._total: int | None = None  # None: nobody knows.
        self._began = self._clock()
        self._told = self._began
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            rate = TextColumn("{task.fields[rate]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=None, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def reached(self, done: int, total: int | None = None, left: str = "") -> None:
        """So many are done, of so many, as far as is known.

        Args:
            left: the time to go, where it is known by something else than the rate; it is shown instead.
        """
        self._done, self._total = done, None if total is None else max(done, total)
        passed = self._clock() - self._began
        rate = left or (f"{done / passed:.0f} {self._unit}/s" if passed > 0 else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total, rate=rate)
        elif self._logged and self._clock() >= self._told + LINE_SECONDS:
            self._told = self._clock()
            print(f"{self._name}: {self._words(passed, rate)}", file=sys.stderr, flush=True)

    def _words(self, passed: float, rate: str) -> str:
        if self._total is None or not self._done:
            return f"{self._done} {self._unit}, {rate}"
        left = (self._total - self._done) * passed / self._done
        return f"{self._done} of {self._total} {self._unit}, {rate}, {left:.0f} s to go"
