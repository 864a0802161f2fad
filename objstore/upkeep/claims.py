"""Claims: who may do what only one process should do. A record, not a clock.

A claim is renewed by changing its record, and may be taken by one who has seen it unchanged for `patience_s`
of its own monotonic clock. Nobody's wall clock matters, and a holder that slept finds out at its next commit:
whatever is committed under a claim expects the claim's record as the holder last wrote it.

`ClaimedKv` is metadata as the holder sees it: every commit through it expects the claim. One that was
deposed meanwhile gets `Deposed`, and nothing has changed. What it does beside metadata (it puts, marks and
removes files) no commit can refuse: it asks `confirm` right before such a step, and each step is one that
its successor may find done.

Concurrency: one instance per process and claim, on its event loop. A renewal may overtake a commit that
expects the record before it: such a commit waits for the renewal's end and is made again.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from objstore.clock import Clock
from objstore.errors import Conflict, StoreError, Unavailable
from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import claim_key

log = logging.getLogger(__name__)

PATIENCE_S: Final = 15.0  # Three renewals may be late before another takes over.
ATTEMPTS_MAX: Final = 16  # Of a commit overtaken by renewals: those are seconds apart, one is the rule.


class Deposed(StoreError):
    """The claim is not held, or no longer: another process does this work. Nothing was changed."""


class ClaimRecord(msgspec.Struct, frozen=True, array_like=True):
    """MessagePack array; fields are only ever added at the end."""

    format: int
    holder: bytes  # 16 bytes: one incarnation of one process. Empty: given up.
    count: int  # Renewals, over all holders.


class Claim:
    """A claim on `name`, held or not."""

    def __init__(
        self, kv: Kv, name: str, holder: bytes, clock: Clock, *, patience_s: float = PATIENCE_S
    ) -> None:
        assert len(holder) == 16
        self._kv = kv
        self._key = claim_key(name)
        self._holder = holder
        self._clock = clock
        self._patience_s = patience_s
        self._renewing = asyncio.Lock()
        self._mine: bytes | None = None  # The record as this process last wrote it.
        self._seen: bytes | None = None  # Another's record,
        self._since = clock.monotonic()  # and since when it has not changed.

    @property
    def held(self) -> bool:
        """Whether it was held when it was last looked at: `expectation` makes sure."""
        return self._mine is not None

    @property
    def key(self) -> bytes:
        return self._key

    def expectation(self) -> dict[bytes, bytes | None]:
        """What every commit made under the claim must expect. Raises: Deposed if it is not held."""
        if self._mine is None:
            raise Deposed(f"the claim {self._key!r} is not held")
        return {self._key: self._mine}

    async def confirm(self) -> None:
        """Make sure that it is still held, by a look at its record. Raises: Deposed, MetaUnavailable."""
        async with self._renewing:
            expected = self.expectation()
            if await self._kv.get(self._key) != expected[self._key]:
                self._lose()
                raise Deposed(f"the claim {self._key!r} was taken by another process")

    async def changed_since(self, expected: dict[bytes, bytes | None]) -> None:
        """After a conflict on the claim: return if it was our own renewal. Raises: Deposed if not."""
        async with self._renewing:  # One that is under way has written, but not yet noted that it did.
            if self.expectation() == expected:
                self._lose()
                raise Deposed(f"the claim {self._key!r} was taken by another process")

    def _lose(self) -> None:
        log.warning("the claim %s was taken by another process", self._key)
        self._mine = None

    async def keep(self) -> bool:
        """Renew it, or take it if it may be taken; call this every few seconds. Raises: MetaUnavailable."""
        async with self._renewing:
            return await self._keep()

    async def _keep(self) -> bool:
        value = await self._kv.get(self._key)
        if self._mine is not None and value != self._mine:
            if value is not None and self._is_own(value):
                self._mine = value  # A renewal whose outcome was unknown had come through.
            else:
                self._lose()
        if self._mine is None and not self._may_take(value):
            return False
        count = 0 if value is None else msgspec.msgpack.decode(value, type=ClaimRecord).count
        mine = msgspec.msgpack.encode(ClaimRecord(1, self._holder, count + 1))
        try:
            await self._kv.commit(Transaction(expect={self._key: value}, put={self._key: mine}))
        except Conflict:
            self._mine = None
            return False
        self._mine = mine
        return True

    async def give_up(self) -> None:
        """Let another take it at once. Idempotent. Raises: MetaUnavailable."""
        async with self._renewing:
            await self._give_up()

    async def _give_up(self) -> None:
        mine, self._mine = self._mine, None
        if mine is None:
            return
        count = msgspec.msgpack.decode(mine, type=ClaimRecord).count
        free = msgspec.msgpack.encode(ClaimRecord(1, b"", count + 1))
        try:
            await self._kv.commit(Transaction(expect={self._key: mine}, put={self._key: free}))
        except Conflict:
            pass  # Taken already.

    def _is_own(self, value: bytes) -> bool:
        """A holder is one incarnation of one process: nobody else writes its name."""
        return msgspec.msgpack.decode(value, type=ClaimRecord).holder == self._holder

    def _may_take(self, value: bytes | None) -> bool:
        if value is None or not msgspec.msgpack.decode(value, type=ClaimRecord).holder or self._is_own(value):
            return True
        now = self._clock.monotonic()
        if value != self._seen:
            self._seen, self._since = value, now
            return False
        return now - self._since >= self._patience_s


class ClaimedKv:
    """Metadata under a claim. Implements meta/kv.py's Kv; `commit` also raises Deposed."""

    def __init__(self, kv: Kv, claim: Claim) -> None:
        self._kv = kv
        self._claim = claim

    async def get(self, key: bytes) -> bytes | None:
        return await self._kv.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._kv.get_many(keys)

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return await self._kv.scan(start, end, limit, reverse=reverse)

    async def commit(self, transaction: Transaction) -> None:
        claim = self._claim
        for _ in range(ATTEMPTS_MAX):
            expected = claim.expectation()
            try:
                await self._kv.commit(transaction._replace(expect={**expected, **transaction.expect}))
            except Conflict as conflict:
                if conflict.key != claim.key:
                    raise
                await claim.changed_since(expected)
                continue
            return
        raise Unavailable(f"{ATTEMPTS_MAX} renewals of the claim {claim.key!r} overtook one commit")
