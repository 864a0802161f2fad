"""Waiting for a state, with a limit for a starved machine: never for a time, nor for a number of turns."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

LIMIT_S = 60.0
PAUSE_S = 0.1  # Of whoever asks processes.

T = TypeVar("T")


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Let others run until it holds. Raises: AssertionError."""

    async def holds() -> object:
        return condition()

    await until_true(holds, what or str(condition))


async def until_true(condition: Callable[[], Awaitable[object]], what: str = "") -> None:
    """The same for what has to be awaited."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + LIMIT_S
    while not await condition():
        assert loop.time() < limit, f"not within {LIMIT_S:.0f} s: {what or condition}"
        await asyncio.sleep(0.002)


def wait_until(condition: Callable[[], T], what: Callable[[], object], *, limit_s: float = LIMIT_S) -> T:
    """The same for a test without a loop, which waits for processes: what `condition` came to.

    Args:
        what: what is told if it never holds.

    Raises: AssertionError.
    """
    limit = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < limit, f"not within {limit_s:.0f} s: {what()}"
        time.sleep(PAUSE_S)
    return found
