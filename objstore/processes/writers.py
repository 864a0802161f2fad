"""Who may still write, over all gateway machines that share their metadata.

On one machine the supervisor knows its children (parts.py, `living_writers`). Of another machine's nobody
here knows more than what it says: so each process keeps a record, renewed every BEAT_S, from before its first
volume to its end. A record that has not changed for GONE_S of our own monotonic clock is a dead writer's. A
writer that only slept finds its volumes sealed, and its commits refused by their records: it loses time, and
nothing is written twice.

    C writer <writer id in hex>    WriterRecord

Concurrency: one task of each process. Clocks of machines are never compared.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from objstore.clock import Clock
from objstore.errors import StoreError
from objstore.meta.kv import Kv, Transaction, pages, prefix_end
from objstore.meta.schema import claim_key

log = logging.getLogger(__name__)

BEAT_S: Final = 5.0
GONE_S: Final = 30.0  # Five beats may be lost before a writer's volumes are sealed.
FORGOTTEN_S: Final = 3_600.0  # Then its record goes.
PAGE: Final = 1_000
WRITERS_MAX: Final = 16_384  # Processes of all gateways.

_PREFIX: Final = claim_key("writer ")


class WriterRecord(msgspec.Struct, frozen=True, array_like=True):
    """MessagePack array; fields are only ever added at the end."""

    format: int
    machine: bytes  # 16 bytes: one run of one gateway's supervisor.
    count: int  # Renewals.
    meters: bool = False  # It counts what it changes for quotas and bills; earlier releases did not.


class Writers:
    """
    Args:
        writer: 16 bytes, this process's.
        machine: 16 bytes, this run of this machine's supervisor.
        local: whether a writer is one of this run's processes (`living_writers`).
    """

    def __init__(
        self, kv: Kv, writer: bytes, machine: bytes, local: Callable[[bytes], bool], clock: Clock
    ) -> None:
        self._kv = kv
        self._key = _key(writer)
        self._machine = machine
        self._local = local
        self._clock = clock
        self._count = 0
        self._seen: dict[bytes, tuple[bytes, float]] = {}  # Key -> record, and since when it is the same.
        self._looked = False

    async def announce(self) -> None:
        """Before the first volume is made: from here on everybody may know us. Raises: StoreError."""
        self._count += 1
        record = WriterRecord(1, self._machine, self._count, meters=True)
        await self._kv.commit(Transaction(put={self._key: msgspec.msgpack.encode(record)}))

    async def keep(self, *, looks: bool) -> None:
        """Never ends.

        Args:
            looks: also see how the others are, for `alive`.
        """
        while True:
            try:
                await self.announce()
                if looks:
                    await self.look()
            except StoreError as failure:
                log.warning("this writer's record was not renewed", extra={"failure": str(failure)})
            await asyncio.sleep(BEAT_S)

    async def leave(self) -> None:
        """At the end, when every volume of ours is sealed."""
        try:
            await self._kv.commit(Transaction(delete=[self._key]))
        except StoreError as failure:
            log.info("this writer's record stays", extra={"failure": str(failure)})

    async def look(self) -> None:
        """Read every writer's record; forget those of the long dead. Raises: StoreError."""
        now = self._clock.monotonic()
        found: dict[bytes, tuple[bytes, float]] = {}
        async for pairs in pages(self._kv, _PREFIX, prefix_end(_PREFIX), PAGE):
            for key, value in pairs:
                before = self._seen.get(key)
                found[key] = before if before is not None and before[0] == value else (value, now)
            if len(found) >= WRITERS_MAX:
                break
        self._seen = found
        self._looked = True
        old = [key for key, (_, since) in found.items() if now - since > FORGOTTEN_S]
        if old:
            await self._kv.commit(Transaction(delete=old))

    async def all_count(self) -> bool:
        """Whether every process that may write counts what it changes. Raises: StoreError."""
        async for pairs in pages(self._kv, _PREFIX, prefix_end(_PREFIX), PAGE):
            if not all(msgspec.msgpack.decode(value, type=WriterRecord).meters for _, value in pairs):
                return False
        return True

    def alive(self, writer: bytes) -> bool:
        """Whether it may still write. In doubt: it may."""
        if not self._looked or self._local(writer):
            return True
        seen = self._seen.get(_key(writer))
        if seen is None:
            return False  # It left, or is forgotten. One that came since has volumes too young to be judged.
        value, since = seen
        if msgspec.msgpack.decode(value, type=WriterRecord).machine == self._machine:
            return False  # Of this very run, and its supervisor does not know it any more.
        return self._clock.monotonic() - since < GONE_S


def _key(writer: bytes) -> bytes:
    return _PREFIX + writer.hex().encode()
