"""A Kv whose process dies at a chosen call; and, run as a program, a real process that does.

    python -m tests.rental.dying <committer's socket> <now, microseconds> <call that is the last one; 0: none>

makes all drafts final whose time has come, two in a commit, through a committer, and kills itself (SIGKILL):
before its last call, with that on its way, or behind it, as the call's number says.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from objstore.meta.client import MetaClient
from objstore.meta.kv import Kv, Transaction
from objstore.rental import invoices

T = TypeVar("T")
Dying = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]  # Is given the call; never returns.


class MortalKv:
    """Passes every call on, but its process does not outlive the one that is told."""

    def __init__(self, kv: Kv, last: int, die: Dying) -> None:
        self._kv = kv
        self._last = last  # From 1; 0: none.
        self._die = die
        self.calls = 0

    async def _pass(self, call: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        if self.calls == self._last:
            await self._die(call)
        return await call()

    async def get(self, key: bytes) -> bytes | None:
        return await self._pass(lambda: self._kv.get(key))

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._pass(lambda: self._kv.get_many(keys))

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return await self._pass(lambda: self._kv.scan(start, end, limit, reverse=reverse))

    async def commit(self, transaction: Transaction) -> None:
        await self._pass(lambda: self._kv.commit(transaction))


def killing(last: int) -> Dying:
    """SIGKILL before the call, with it on its way, or behind it: each third of the numbers."""

    async def die(call: Callable[[], Awaitable[object]]) -> None:
        if last % 3 == 1:
            under_way = asyncio.ensure_future(call())
            await asyncio.sleep(0)  # It was handed to the loop,
            await asyncio.sleep(0)  # which has sent it by now.
            assert under_way is not None
        elif last % 3 == 2:
            await call()
        os.kill(os.getpid(), signal.SIGKILL)

    return die


async def main(socket: str, now_us: int, last: int) -> None:
    invoices.BATCH = 2  # type: ignore[misc]
    client = MetaClient(socket)
    await client.start(60.0)
    kv = MortalKv(client, last, killing(last))
    run = await invoices.finalise_due(kv, now_us=now_us)
    await client.close()
    print(run.issued, kv.calls, run.refused, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
