"""Disks that are presumed away are asked once more before anything fails for want of them.

A process hears of a node's return at its next poll, a second later. If others go within that second, too few
are there by what it knows, and enough in truth. Whoever is about to refuse asks here first, once; nothing is
asked while enough answer.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from objstore.node.disk import Disk

# A node that is back answers in milliseconds; one that swallows holds up no longer.
AGAIN_LIMIT_S: Final = 3.0


async def ask_again(
    disks: Iterable[Disk], *, wanted: int | None = None, limit_s: float = AGAIN_LIMIT_S
) -> set[int]:
    """The numbers of those disks that can be reached. Raises nothing.

    Args:
        wanted: how many are enough; by default all are waited for.
        limit_s: those that have not answered by then are away.
    """
    loop = asyncio.get_running_loop()
    asked = {loop.create_task(disk.look_again()): disk.number for disk in disks}
    wanted = len(asked) if wanted is None else wanted
    reached: set[int] = set()
    left = set(asked)
    until = loop.time() + limit_s
    try:
        while left and len(reached) < wanted:
            timeout = max(0.0, until - loop.time())
            done, left = await asyncio.wait(left, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            reached |= {asked[task] for task in done if task.result()}
    finally:
        for task in left:
            task.cancel()
    return reached
