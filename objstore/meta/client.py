"""The `Kv` of a worker: reads straight from LMDB, commits through the committer.

Commits that arrive in one turn of the event loop travel as one message; while `window` messages are
unanswered the rest waits and goes with the next. When the committer dies the client connects again
and sends every unanswered batch again, in order, under its old number: the committer keeps each
client's last applied batch, so nothing is applied twice and every outcome is learned. A commit that
has not been answered within the time limit raises MetaUnavailable, and its batch is never sent again.
When the committer has been away for `away_s`, whatever waits for it fails, and what comes later is refused
at once (`away` says so before a body is received): a restart is ridden out, an outage answers early. The
same holds once a batch has waited its time limit in vain, until there is an answer.

Concurrency: one client belongs to one event loop; nothing here takes a lock. Reads go on while the
committer is away, from the state that the beacon shows. A crash of this process leaves at most sent
batches, which happen or not.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from objstore.errors import MetaUnavailable, Overloaded
from objstore.ids import random_id
from objstore.meta.beacon import Beacon
from objstore.meta.kv import Transaction
from objstore.meta.kv_lmdb import SCAN_CHUNK, LmdbReader
from objstore.meta.messages import (
    FORMAT,
    FRAME_SIZE_MAX,
    REMEMBERED_BATCHES,
    REPORT,
    FrameReader,
    Hello,
    Welcome,
    batch_frame,
    decode_answer,
    decode_welcome,
    encode,
    encode_transaction,
    failure_of,
    frame,
)

log = logging.getLogger(__name__)

WINDOW = 2  # Unanswered messages: the second is on its way while the committer syncs the first.
BATCH_COUNT_MAX = 512  # Transactions in a message: about 5 ms of the committer's time.
BATCH_SIZE_MAX = FRAME_SIZE_MAX - 1024  # Bytes: one transaction of the greatest size fits.
QUEUE_COUNT_MAX = 10_000  # Commits that wait or are under way: a second of the committer's time.
QUEUE_SIZE_MAX = 64 * 1024 * 1024  # Bytes.
TIMEOUT_S = 15.0  # Longest wait for a committer that is there: it may be opening an epoch on slow disks.
AWAY_S = 5.0  # Longest wait for one that is not: a restart takes about one second, ready again in two.
RECONNECT_FIRST_S = 0.02
RECONNECT_LAST_S = 0.2
REPORTS_MAX = 64  # Damaged records told of within REPORT_AGAIN_S: with more the state is lost anyway.
REPORT_AGAIN_S = 10.0
TICK_S = 0.25  # How often time limits are looked at.


@dataclass(slots=True)
class ClientStats:
    """Plain counters for the metrics; nothing here is reset."""

    commits: int = 0
    conflicts: int = 0  # Conflict and LimitReached.
    messages: int = 0
    overloaded: int = 0
    timeouts: int = 0
    refused_away: int = 0  # Commits refused at once, the committer being away for long.
    connections: int = 0


class _Waiting(NamedTuple):
    encoded: bytes
    future: "asyncio.Future[None]"
    deadline: float


class _Sent(NamedTuple):
    frame: bytes
    waiting: list[_Waiting]


class MetaClient:
    """Implements `kv.Kv`. `start` before use, `close` at the end.

    Args:
        socket_path: the committer's Unix socket.
        client_id: 16 bytes that no other living client has; a fresh one if None.
        timeout_s: the longest that one commit waits for its outcome.
        away_s: the longest that it waits while no committer is there.
        beacon: shows which state is in force; None: only the committer's greeting does.
        window: unanswered messages; at most half of what the committer remembers.
    """

    def __init__(
        self,
        socket_path: Path | str,
        client_id: bytes | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        away_s: float = AWAY_S,
        beacon: Beacon | None = None,
        window: int = WINDOW,
        queue_count_max: int = QUEUE_COUNT_MAX,
        queue_size_max: int = QUEUE_SIZE_MAX,
    ) -> None:
        assert 1 <= window <= REMEMBERED_BATCHES // 2
        self.stats = ClientStats()
        self._socket_path = str(socket_path)
        self._client_id = random_id() if client_id is None else client_id
        assert len(self._client_id) == 16
        self._timeout_s = timeout_s
        self._away_s = away_s
        self._reported: dict[bytes, float] = {}  # Damaged records -> when the committer was told.
        self._away_since: float | None = None  # None: the committer is there.
        self._silent = False  # It is, but a batch has waited for its answer in vain.
        self._beacon = beacon or Beacon()
        self._beacon_words = self._beacon.words
        self._shared = beacon is not None
        self._generation = 0  # Of the beacon, when `_reader` was opened.
        self._window = window
        self._queue_count_max = queue_count_max
        self._queue_size_max = queue_size_max
        self._reader: LmdbReader | None = None
        self._queue: deque[_Waiting] = deque()
        self._sent: OrderedDict[int, _Sent] = OrderedDict()
        self._next_number = 1
        self._count = 0  # Commits waiting or sent.
        self._size = 0  # Bytes of them.
        self._flush_due = False
        self._connection: _Connection | None = None  # Only when welcomed.
        self._welcomed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    # Life.

    async def start(self, timeout_s: float = 30.0) -> None:
        """Connect; returns when the state can be read and commits can be sent.

        Raises: MetaUnavailable if no committer is ready within `timeout_s`.
        """
        assert self._task is None
        self._loop = asyncio.get_running_loop()
        self._away_since = self._loop.time()
        self._task = self._loop.create_task(self._stay_connected())
        self._tick()
        try:
            async with asyncio.timeout(timeout_s):
                await self._welcomed.wait()
        except TimeoutError:
            await self.close()
            raise MetaUnavailable(f"no committer answers at {self._socket_path}") from None

    async def close(self) -> None:
        """Disconnect. Commits still under way raise MetaUnavailable."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            self._connection.abort()
        for waiting in [*self._queue, *(w for sent in self._sent.values() for w in sent.waiting)]:
            self._give_up(waiting, "the client was closed")
        self._queue.clear()
        self._sent.clear()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def away(self) -> bool:
        """Whether the committer has been gone or silent for so long that a commit is refused at once."""
        if self._silent:
            return True
        since = self._away_since
        return since is not None and self._loop is not None and self._loop.time() - since >= self._away_s

    @property
    def reader(self) -> LmdbReader:
        """The state itself, for callers that need no coroutine (the GET path). Do not keep it.

        Raises: MetaUnavailable before the first contact with a committer.
        """
        if self._beacon_words[0] != self._generation:
            self._follow()
        if self._reader is None:
            raise MetaUnavailable("no metadata state is open")
        return self._reader

    def _follow(self) -> None:
        """Another state is in force: read from it, before any greeting says so. Raises: MetaUnavailable."""
        generation = self._beacon_words[0]  # First: should it change meanwhile, the next read follows again.
        self._open_state(*self._beacon.state())
        self._generation = generation

    def _open_state(self, path: Path, inode: tuple[int, int]) -> None:
        old = self._reader
        if old is not None and old.inode == inode and old.path == path:
            return
        # First: if the new one cannot be opened, better no reads than reads of the past.
        self._reader = None
        if old is not None:
            old.close()
        self._reader = LmdbReader(path, inode)
        self._reader.on_damage = self._report

    def _report(self, keys: Sequence[bytes]) -> None:
        """Tell the committer of records that cannot be read: it looks for itself, and mends them."""
        assert self._loop is not None
        if self._connection is None:
            return  # Whoever reads them next tells it.
        now = self._loop.time()
        for key in [key for key, when in self._reported.items() if now - when > REPORT_AGAIN_S]:
            del self._reported[key]
        fresh = [key for key in keys if key not in self._reported][: REPORTS_MAX - len(self._reported)]
        if fresh:
            self._reported.update(dict.fromkeys(fresh, now))
            report = encode_transaction(Transaction(expect=dict.fromkeys(fresh)))
            self._connection.send(batch_frame(REPORT, [report]))

    # Kv.

    def version(self) -> tuple[int, int]:
        """As `Versioned.version`: which state, and its newest transaction. Less than 1 us."""
        reader = self.reader
        return reader.serial, reader.version()

    def get_at(self, key: bytes, version: tuple[int, int]) -> tuple[bool, bytes | None]:
        """As `Versioned.get_at`."""
        reader = self.reader
        return reader.get_at(key, version[1]) if reader.serial == version[0] else (False, None)

    async def get(self, key: bytes) -> bytes | None:
        return self.reader.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self.reader.get_many(keys)

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """As `Kv.scan`. One view up to SCAN_CHUNK entries; a longer scan reads on from a later view,
        and lets the event loop run in between."""
        if limit <= SCAN_CHUNK:
            return self.reader.scan(start, end, limit, reverse=reverse)
        found: list[tuple[bytes, bytes]] = []
        while limit > 0:
            chunk = self.reader.scan(start, end, min(limit, SCAN_CHUNK), reverse=reverse)
            found += chunk
            limit -= len(chunk)
            if len(chunk) < SCAN_CHUNK:
                break
            if reverse:
                end = chunk[-1][0]
            else:
                start = chunk[-1][0] + b"\0"
            await asyncio.sleep(0)
        return found

    async def commit(self, transaction: Transaction) -> None:
        """As `Kv.commit`. Cancelled: the outcome is unknown.

        Raises: Conflict, LimitReached, MetaUnavailable; Overloaded if too much waits already;
            ValueError for a transaction that no engine takes.
        """
        encoded = encode_transaction(transaction)
        size = len(encoded)
        if (self._silent or self._away_since is not None) and self.away:
            self.stats.refused_away += 1
            raise MetaUnavailable("the committer is away: the commit was not sent")
        if self._count >= self._queue_count_max or self._size + size > self._queue_size_max:
            self.stats.overloaded += 1
            raise Overloaded(f"{self._count} commits of {self._size} bytes wait for the committer")
        loop = self._loop
        if loop is None or self._closed:
            raise MetaUnavailable("the metadata client is not started, or closed")
        future: asyncio.Future[None] = loop.create_future()
        self._queue.append(_Waiting(encoded, future, loop.time() + self._timeout_s))
        self._count += 1
        self._size += size
        if not self._flush_due and self._connection is not None and len(self._sent) < self._window:
            # Not at once: what else becomes runnable in this turn travels in the same message.
            self._flush_due = True
            loop.call_soon(self._flush)
        await future

    # Sending and answers.

    def _flush(self) -> None:
        self._flush_due = False
        connection = self._connection
        while connection is not None and self._queue and len(self._sent) < self._window:
            waiting: list[_Waiting] = []
            size = 0
            while self._queue and len(waiting) < BATCH_COUNT_MAX:
                size += len(self._queue[0].encoded)
                if waiting and size > BATCH_SIZE_MAX:
                    break
                waiting.append(self._queue.popleft())
            number = self._next_number
            self._next_number += 1
            sent = _Sent(batch_frame(number, [one.encoded for one in waiting]), waiting)
            self._sent[number] = sent
            self.stats.messages += 1
            connection.send(sent.frame)

    def _answered(self, payload: bytes) -> None:
        answer = decode_answer(payload)
        self._silent = False
        sent = self._sent.pop(answer.number, None)
        if sent is None:
            return  # Given up meanwhile.
        waiting = sent.waiting
        if not answer.known:
            for one in waiting:
                self._give_up(one, "the committer no longer knows the outcome")
        else:
            for failure in answer.failures:
                one = waiting[failure.index]
                if not one.future.done():
                    one.future.set_exception(failure_of(failure))
            self.stats.conflicts += len(answer.failures)
            self.stats.commits += len(waiting)
            size = 0
            for one in waiting:
                size += len(one.encoded)
                if not one.future.done():
                    one.future.set_result(None)
            self._count -= len(waiting)
            self._size -= size
        if self._queue and not self._flush_due:
            # Those just answered are about to commit again: they go along.
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _give_up(self, waiting: _Waiting, reason: str) -> None:
        self._count -= 1
        self._size -= len(waiting.encoded)
        if not waiting.future.done():
            waiting.future.set_exception(MetaUnavailable(reason))

    def _tick(self) -> None:
        assert self._loop is not None
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self._expire()
        if self._queue and not self._flush_due and len(self._sent) < self._window:
            self._flush()

    def _expire(self) -> None:
        """End what has waited too long. The oldest batch is always the first."""
        assert self._loop is not None
        now = self._loop.time()
        away = self.away
        while self._sent:
            number, sent = next(iter(self._sent.items()))
            if sent.waiting[-1].deadline > now and not away:
                break
            del self._sent[number]
            # It is there and says nothing: until it answers this, or another comes, nobody else waits.
            self._silent = not away
            self.stats.timeouts += len(sent.waiting)
            for one in sent.waiting:
                self._give_up(one, "no answer from the committer: the outcome is unknown")
        while self._queue and (away or self._queue[0].deadline <= now):
            self.stats.timeouts += 1
            self._give_up(self._queue.popleft(), "no committer: the commit was not sent")

    # The connection.

    async def _stay_connected(self) -> None:
        wait_s = RECONNECT_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(5.0):
                    _, connection = await loop.create_unix_connection(
                        lambda: _Connection(self), self._socket_path
                    )
                try:
                    connection.send(frame(encode(Hello(FORMAT, self._client_id))))
                    async with asyncio.timeout(5.0):
                        welcome = await connection.welcome
                    self._welcome(connection, welcome)
                    wait_s = RECONNECT_FIRST_S
                    await connection.lost
                finally:
                    self._connection = None
                    if self._away_since is None:
                        self._away_since = loop.time()
                    self._silent = False
                    connection.abort()
            except (OSError, TimeoutError, MetaUnavailable) as failure:
                log.debug("the committer is away", extra={"failure": repr(failure)})
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RECONNECT_LAST_S)

    def _welcome(self, connection: "_Connection", welcome: Welcome) -> None:
        if welcome.format != FORMAT:
            raise MetaUnavailable(f"the committer speaks format {welcome.format}, this client {FORMAT}")
        if self._shared:
            self._follow()  # Shown before the committer listened; and if yet another is, that one counts.
        else:
            self._open_state(Path(welcome.path), (welcome.device, welcome.inode))
        # A process that keeps its id over a restart must not use a number twice: such a batch would
        # be taken for one that is applied already.
        self._next_number = max(self._next_number, welcome.last + 1)
        self._connection = connection
        self._away_since = None
        self._silent = False
        # A batch beyond its time limit must not go out again: the committer may have forgotten it.
        self._expire()
        self.stats.connections += 1
        for sent in self._sent.values():
            connection.send(sent.frame)
        self._flush()
        self._welcomed.set()


class _Connection(asyncio.Protocol):
    def __init__(self, client: MetaClient) -> None:
        loop = asyncio.get_running_loop()
        self.welcome: asyncio.Future[Welcome] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._client = client
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass.

    def send(self, data: bytes) -> None:
        # Bounded by the window: what is unanswered is all that can wait here.
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            if not self.welcome.done():
                self.welcome.set_result(decode_welcome(payload))
            else:
                self._client._answered(payload)

    def connection_lost(self, failure: Exception | None) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(MetaUnavailable("the committer hung up"))
            self.welcome.exception()  # Seen, whether or not anyone waits.
        if not self.lost.done():
            self.lost.set_result(None)
        self._transport = None
