"""Claims: who may do what only one process should do. A record, not a clock.

A claim is renewed by changing its record, and may be taken by one who has seen it unchanged for `patience_s`
of its own monotonic clock. Nobody's wall clock matters, and a holder that slept finds out at its next commit:
whatever is committed under a claim expects the claim's record as the holder last wrote it.

Concurrency: one instance per process and claim, on its event loop.
"""

import logging
from typing import Final

import msgspec

from objstore.clock import Clock
from objstore.errors import Conflict
from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import claim_key

log = logging.getLogger(__name__)

PATIENCE_S: Final = 15.0  # Three renewals may be late before another takes over.


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
        self._mine: bytes | None = None  # The record as this process last wrote it.
        self._seen: bytes | None = None  # Another's record,
        self._since = clock.monotonic()  # and since when it has not changed.

    @property
    def held(self) -> bool:
        """Whether it was held when it was last looked at: `expectation` makes sure."""
        return self._mine is not None

    def expectation(self) -> dict[bytes, bytes | None]:
        """What every commit made under the claim must expect. Only while held."""
        assert self._mine is not None
        return {self._key: self._mine}

    async def keep(self) -> bool:
        """Renew it, or take it if it may be taken; call this every few seconds. Raises: MetaUnavailable."""
        value = await self._kv.get(self._key)
        if self._mine is not None and value != self._mine:
            log.warning("the claim %s was taken by another process", self._key)
            self._mine = None
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
        mine, self._mine = self._mine, None
        if mine is None:
            return
        count = msgspec.msgpack.decode(mine, type=ClaimRecord).count
        free = msgspec.msgpack.encode(ClaimRecord(1, b"", count + 1))
        try:
            await self._kv.commit(Transaction(expect={self._key: mine}, put={self._key: free}))
        except Conflict:
            pass  # Taken already.

    def _may_take(self, value: bytes | None) -> bool:
        if value is None or not msgspec.msgpack.decode(value, type=ClaimRecord).holder:
            return True
        now = self._clock.monotonic()
        if value != self._seen:
            self._seen, self._since = value, now
            return False
        return now - self._since >= self._patience_s
