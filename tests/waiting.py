"""Waiting for a state, with a limit for a starved machine: never for a time, nor for a number of turns."""

import asyncio
from collections.abc import Callable

LIMIT_S = 60.0


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Let others run until it holds. Raises: AssertionError."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + LIMIT_S
    while not condition():
        assert loop.time() < limit, f"not within {LIMIT_S:.0f} s: {what or condition}"
        await asyncio.sleep(0.002)
