"""Waiting until disks are empty: files and bytes left, rate, time to go.

The work is the store's, and goes on without anyone who waits. A terminal gets a bar, a log a line when
something has changed.
"""

import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from objstore.cli.client import Unreachable
from objstore.cli.output import DEGRADED, fail, size_text
from objstore.cli.progress import transfer_bar

POLL_SECONDS: Final = 2.0
AWAY_SECONDS: Final = 120.0  # A gateway that is started again meanwhile is waited for.


class Left(NamedTuple):
    """What still counts on the disks."""

    files: int
    bytes: int


def wait_empty(name: str, left: Callable[[], Left], seconds: float, again: str) -> None:
    """Until nothing is left. Exit code 3 after `seconds`, or on Ctrl-C.

    Args:
        again: what shows how it goes on.
    """

    def asked() -> Left:
        limit = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return left()
            except Unreachable:
                if time.monotonic() >= limit:
                    raise
            time.sleep(POLL_SECONDS)

    try:
        empty = _on_terminal(name, asked, seconds) if sys.stderr.isatty() else _in_log(name, asked, seconds)
    except KeyboardInterrupt:
        fail(f"{name} is not empty yet; it goes on: {again}", DEGRADED)
    if not empty:
        fail(f"{name} is not empty after {seconds:g} s; it goes on: {again}", DEGRADED)


def _on_terminal(name: str, left: Callable[[], Left], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    with transfer_bar("{task.fields[files]} files left") as bar:
        first = now = left()
        task = bar.add_task(name, total=first.bytes, files=first.files)
        while now.files and time.monotonic() < limit:
            time.sleep(max(0.0, min(POLL_SECONDS, limit - time.monotonic())))
            now = left()
            # Open volumes have no size yet: what was to be moved may grow.
            total = max(first.bytes, now.bytes)
            bar.update(task, total=total, completed=total - now.bytes, files=now.files)
    return not now.files


def _in_log(name: str, left: Callable[[], Left], seconds: float) -> bool:
    began = time.monotonic()
    first = now = left()
    told: Left | None = None
    while True:
        if now != told:
            told = now
            print(f"{name}: {_words(first, now, time.monotonic() - began)}", file=sys.stderr, flush=True)
        passed = time.monotonic() - began
        if not now.files or passed >= seconds:
            return not now.files
        time.sleep(min(POLL_SECONDS, seconds - passed))
        now = left()
        first = Left(max(first.files, now.files), max(first.bytes, now.bytes))


def _words(first: Left, now: Left, passed: float) -> str:
    words = f"{first.files - now.files} of {first.files} files moved"
    moved = first.bytes - now.bytes
    words += f", {size_text(moved)} of {size_text(first.bytes)}"
    if moved and passed > 0:
        rate = moved / passed
        words += f", {size_text(rate)}/s, {now.bytes / rate:.0f} s to go"
    return words
