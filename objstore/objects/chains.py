"""One process's own commits on one key, in a chain: the later expects the record the earlier puts.

Every overwrite expects the record it replaces (that record's bytes become garbage). Without chains, of 64
clients that overwrite one key one would win each batch of the committer and 63 would conflict. With
them all 64 are in one batch, each built on the one before, though none is acknowledged yet.

It may not know: objects, buckets, S3. A key is bytes, a value is bytes or None.

Concurrency: one event loop. `tail` and the first step of `commit` are not separated by a suspension, and
engines take transactions in the order in which `commit` is first stepped; should one not, the
expectations fail and nothing worse happens. When a link fails the chain is broken: those built on it
fail by their expectations, and newcomers begin again from what metadata says.
"""

import asyncio
from typing import Final

from objstore.errors import Contended
from objstore.meta.kv import Kv, Transaction

CHAIN_LENGTH_MAX: Final = 1_024  # Commits under way on one key in one process; past it: slow down.


class Chain:
    """What the links of one unbroken run share."""

    __slots__ = ("under_way",)

    def __init__(self) -> None:
        self.under_way = 0


class Link:
    """One commit under way: the value its key will have if it stands."""

    __slots__ = ("_ended", "_waiters", "chain", "value")

    def __init__(self, value: bytes | None, chain: Chain) -> None:
        self.value = value
        self.chain = chain
        self._ended: bool | None = None
        self._waiters: list[asyncio.Future[bool]] | None = None

    async def stood(self) -> bool:
        """Wait for the commit's end: True if it stands. What was decided on its value stands with it."""
        if self._ended is not None:
            return self._ended
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        return await waiter

    def end(self, stands: bool) -> None:
        self._ended = stands
        if self._waiters is not None:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(stands)


class Chains:
    def __init__(self, kv: Kv, *, length_max: int = CHAIN_LENGTH_MAX) -> None:
        self._kv = kv
        self._length_max = length_max
        self._tails: dict[bytes, Link] = {}

    def tail(self, key: bytes) -> Link | None:
        """The newest commit under way on `key`, if any: decide on its value, not on what metadata says."""
        return self._tails.get(key)

    async def commit(self, key: bytes, value: bytes | None, transaction: Transaction) -> None:
        """Commit, as the next link of the key's chain, a transaction that gives `key` this value.

        Raises: what kv.commit raises, and Contended (nothing was sent).
        """
        tails = self._tails
        before = tails.get(key)
        chain = Chain() if before is None else before.chain
        if chain.under_way >= self._length_max:
            raise Contended(f"more than {self._length_max} writes of one key under way")
        link = tails[key] = Link(value, chain)
        chain.under_way += 1
        try:
            await self._kv.commit(transaction)
        except BaseException:
            newest = tails.get(key)
            if newest is not None and newest.chain is chain:
                del tails[key]
            link.end(False)
            raise
        finally:
            chain.under_way -= 1
        if tails.get(key) is link:
            del tails[key]
        link.end(True)
