"""Replicated buckets of the store: each is served by sessions with its target (sending.py), as long as there
is something to be sent; after a failure it waits, longer and longer.

Concurrency: one asyncio task per replicated bucket, under the upkeep's claim: who lost it cannot remove a
change record, and its session is over as soon as its successor opens one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from objstore.errors import Rejected, StoreError
from objstore.meta.schema import BucketRecord, ReplicationRecord
from objstore.objects import replication
from objstore.objects.changes import replication_of
from objstore.objects.store import Store
from objstore.upkeep.context import Pace
from objstore.upkeep.sending import (
    PAGE_CHANGES,
    Failing,
    Sent,
    Session,
    Target,
    TargetRefuses,
    longer,
)

log = logging.getLogger(__name__)

REFUSED_S: Final = 60.0  # A target that was promoted is asked so often whether it has become ours again.
IDLE_S: Final = 5.0  # After a session in which every key had to wait.

Connect = Callable[[str, BucketRecord, ReplicationRecord], Target]
"""The target of a bucket, by its name, record and replication. Raises: Corrupt (the secret does not open)."""

Check = Callable[[BucketRecord, ReplicationRecord], Awaitable[None]]
"""Whether the bucket may be sent there. Raises: Rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    keys_at_once: int = 16  # Over all buckets.
    bytes_per_second: float = 64 * 1024 * 1024


DEFAULT_RULES: Final = Rules()


class Sender:
    """One bucket's: when to send, and how it went."""

    def __init__(
        self,
        store: Store,
        name: str,
        connect: Connect,
        check: Check,
        turns: asyncio.Semaphore,
        pace: Pace,
    ) -> None:
        self._store = store
        self._name = name
        self._connect = connect
        self._check = check
        self._turns = turns
        self._pace = pace
        self._failing = Failing(store.clock, store.randomness)
        self._wait_s = 0.0
        self._due = store.clock.monotonic()
        self.sent = Sent()
        self.refused = False  # The target takes nothing more: an operator's business.

    @property
    def failing_keys(self) -> int:
        return len(self._failing)

    def is_due(self) -> bool:
        return self._store.clock.monotonic() >= self._due

    async def serve(self) -> None:
        """Send until nothing is left, or something fails; then it is due again later."""
        before = self.sent.keys
        try:
            served = await self._serve()
        except StoreError as failure:
            self._failed(failure)
        except Exception as bug:
            self._failed(bug)
            log.exception("replication of bucket %s: a bug", self._name)
        else:
            self._wait_s = 0.0
            self.refused = False
            if not self._failing:
                self.sent.last_failure = ""
            if served and self.sent.keys == before:
                self._due = self._store.clock.monotonic() + IDLE_S

    def _failed(self, failure: Exception) -> None:
        words = f"{type(failure).__name__}: {failure}"
        if words != self.sent.last_failure:
            log.warning("replication of bucket %s: %s", self._name, words)
        self.sent.failures += 1
        self.sent.last_failure = words
        self.refused = isinstance(failure, (TargetRefuses, Rejected))
        self._wait_s = REFUSED_S if self.refused else longer(self._wait_s, self._store.randomness)
        self._due = self._store.clock.monotonic() + self._wait_s

    async def _serve(self) -> bool:
        """One session, if there is something to be sent; whether there was."""
        _, record = await replication.bucket_of(self._store, self._name)
        config = replication_of(record)
        if config is None or not config.generation or not await self._has_work(record.id):
            return False
        await self._check(record, config)
        if await replication.fold(self._store, self._name, record):
            log.warning("replication of bucket %s: too many changes, all keys are compared", self._name)
        target = self._connect(self._name, record, config)
        try:
            await target.open()
            session = Session(
                self._store,
                self._name,
                record,
                target,
                turns=self._turns,
                pace=self._pace,
                failing=self._failing,
                sent=self.sent,
            )
            while await self._still(config):
                compared = await session.pass_step()
                if not await session.changes_step() and not compared:
                    break
        finally:
            await target.close()
        return True

    async def _has_work(self, bucket: int) -> bool:
        """Whether a session is worth being opened."""
        progress = await replication.progress_of(self._store, self._name)
        if progress is not None and not progress.finished_us:
            return True
        some = await replication.pending(self._store, bucket, b"", PAGE_CHANGES if self._failing else 1)
        return len(some) == PAGE_CHANGES or any(self._failing.is_due(one.key) for one in some)

    async def _still(self, config: ReplicationRecord) -> bool:
        """Whether the bucket still has this very target. Raises: Rejected: it may no longer be sent there."""
        _, record = await replication.bucket_of(self._store, self._name)
        if replication_of(record) != config:
            return False
        await self._check(record, config)
        return True


class Replication:
    """All replicated buckets of the store. `run` now and then; `close` at the end."""

    def __init__(
        self,
        store: Store,
        connect: Connect,
        check: Check,
        rules: Rules = DEFAULT_RULES,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            store: its `kv` is the one to commit through: fenced by the claim.
        """
        self._store = store
        self._connect = connect
        self._check = check
        self._turns = asyncio.Semaphore(rules.keys_at_once)
        self._pace = Pace(rules.bytes_per_second, store.clock, sleep)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.senders: dict[str, Sender] = {}

    async def run(self) -> str:
        """See to it that every replicated bucket is being sent. Raises: MetaUnavailable."""
        names = [name for name, _ in await replication.replicated(self._store.kv)]
        for name in self.senders.keys() - set(names):
            await self._end(name)
        for name in names:
            task = self._tasks.get(name)
            if task is not None and not task.done():
                continue
            sender = self.senders.get(name)
            if sender is None:
                sender = self.senders[name] = Sender(
                    self._store, name, self._connect, self._check, self._turns, self._pace
                )
            if sender.is_due():
                self._tasks[name] = asyncio.get_running_loop().create_task(
                    sender.serve(), name=f"replication of {name}"
                )
        busy = sum(not task.done() for task in self._tasks.values())
        return f"{len(names)} buckets, {busy} being sent"

    async def _end(self, name: str) -> None:
        self.senders.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=10)

    async def close(self) -> None:
        for name in list(self.senders):
            await self._end(name)
