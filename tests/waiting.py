"""Waiting for a state, with a limit for a starved machine: never for a time, nor for a number of turns."""

import asyncio
from collections.abc import Awaitable, Callable

LIMIT_S = 60.0


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
