"""The PostgreSQL engine: the only module that imports asyncpg.

`PostgresKv` is the `Kv` of a gateway process in a cluster. Reads go straight to the primary, those of one
turn of the loop together; commits are merged: while one batch is under way the next one gathers, as the
committer does for LMDB. A batch is one READ COMMITTED transaction in three round trips (merge.py says what
is locked and decided, migrations.py has the two functions and why they are right).

**Outcomes.** A batch has a number, and the transaction that applies it writes the number into the client's
own row. When a connection breaks, or an answer is late, the next connection first takes a new *session* in
that row, which shuts out whatever the old one may still have under way, and reads the number: at or above
the batch's it was applied, and its outcome is the one decided then; below, it was not and never will be,
and it is sent again. So nothing is applied twice. Taking a session is itself a synchronous commit behind
the batch's in the log, so that what it shows has reached the standbys that the server waits for.

**What is never done**: cancel a COMMIT. A server that waits for its synchronous standby answers a cancelled
wait with success and a warning, and the next failover would take back what was acknowledged. A late
connection is dropped instead, asyncpg is given no time limit here, statement_timeout does not cover the
wait, and a warning during a commit makes its outcome unknown until the next session has been taken.

Concurrency: one PostgresKv belongs to one event loop; `_write` alone uses the writing connection. A crash
of this process leaves at most one batch, which happens or not; its locks go with its connection.

Needs PostgreSQL 13 or later and sessions of its own: behind a pooler only in session mode.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg
import xxhash

from objstore.errors import BadRequest, Corrupt, MetaUnavailable, Overloaded, StoreError
from objstore.ids import Randomness, random_id
from objstore.meta.kv import Transaction
from objstore.meta.merge import Plan, checked_size, decide, plan
from objstore.meta.migrations import GATE, is_current, migrate
from objstore.meta.spill import CHECKSUM_SIZE

log = logging.getLogger(__name__)

VERSION_MIN = 13_00_00
# Mini-transactions in a batch: about 40 ms of the server's time, while others wait for its locks.
BATCH_COUNT_MAX = 512
BATCH_SIZE_MAX = 8 * 1024 * 1024  # Bytes; twice that on the wire.
QUEUE_COUNT_MAX = 10_000  # Commits that wait or are under way.
QUEUE_SIZE_MAX = 64 * 1024 * 1024  # Bytes.
TIMEOUT_S = 15.0  # Longest wait of a commit for its outcome.
AWAY_S = 5.0  # When no server has answered for so long, commits are refused at once.
READ_TIMEOUT_S = 10.0
READ_COUNT_MAX = 10_000  # Reads that wait.
READ_KEYS_MAX = 1_000  # Keys looked up by one statement.
READERS = 4  # Connections for reads.
SCAN_CHUNK = 10_000  # Entries: a longer scan reads on from a later view.
CONNECT_S = 5.0
LOCK_S = 2.0  # For one row; then the batch comes again and takes the gate alone.
STATEMENT_S = 8.0  # On the server. Ours below is a little longer: the server's is the better report.
MIGRATE_S = 600.0  # For the steps of a new release: a later one may have to read the whole table.
ANSWER_S = 10.0  # A statement that has not been answered: the connection is given up.
IDLE_S = 5.0  # Whose client is silent, its transaction and locks are dropped. Less than STATEMENT_S.
FORGOTTEN_S = 12 * 3600.0  # A client that was idle for so long may have lost its row: see _FORGET.
RECONNECT_FIRST_S = 0.05
RECONNECT_LAST_S = 1.0
TICK_S = 0.25
FENCED = "OB001"  # Errors of objstore.apply; see migrations.py.
BROKEN = "OB002"
# Nothing was applied, and the same batch may succeed: deadlock, lock or statement timeout, serialization.
AGAIN = {"40P01", "55P03", "40001", "57014"}
# Nor was it here, and it never will be: resources, limits, internal errors, data, integrity, names.
HOPELESS = {"53", "54", "XX", "22", "23", "42"}

_digest = xxhash.xxh3_64_digest
_VALUE = slice(None, -CHECKSUM_SIZE)
_CHECKSUM = slice(-CHECKSUM_SIZE, None)

_GET = "SELECT key, value FROM objstore.kv WHERE key = ANY($1::bytea[])"
_UP = "SELECT key, value FROM objstore.kv WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3"
_DOWN = "SELECT key, value FROM objstore.kv WHERE key >= $1 AND key < $2 ORDER BY key DESC LIMIT $3"
_LOCK = "SELECT * FROM objstore.lock($1, $2, $3, $4, $5)"
_SESSION = """
INSERT INTO objstore.clients (client, session, number) VALUES ($1, 1, 0)
ON CONFLICT (client) DO UPDATE SET session = clients.session + 1, touched = now()
RETURNING session, number
"""
_COPY_NOTE = "SELECT value FROM objstore.engine WHERE name = 'copy'"
# Rows of clients that are gone. A batch lives for seconds.
_FORGET = """
DELETE FROM objstore.clients WHERE client IN (
    SELECT client FROM objstore.clients WHERE touched < now() - interval '1 day' FOR UPDATE SKIP LOCKED
)
"""

# Everything we ask goes by the one index; with parameters the planner cannot know that a page is small.
_PLANNER = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
# What a failed connection or a dying server looks like.
_LOST = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)


@dataclass(slots=True)
class PostgresStats:
    """Plain counters for the metrics; the names that MetaClient has mean the same."""

    commits: int = 0
    conflicts: int = 0  # Mini-transactions refused by their conditions.
    messages: int = 0  # Batches.
    overloaded: int = 0
    timeouts: int = 0
    refused_away: int = 0
    connections: int = 0  # Sessions taken.
    retries: int = 0  # Batches that were rolled back and sent again.
    alone: int = 0  # Batches that took the gate alone.
    read_back: int = 0  # Batches whose outcome was learned from the client's row.
    reads: int = 0
    read_statements: int = 0
    rotten: int = 0  # Records that failed their checksum.


class _Waiting(NamedTuple):
    transaction: Transaction
    size: int
    future: "asyncio.Future[None]"
    deadline: float


@dataclass(slots=True)
class _Batch:
    number: int
    waiting: list[_Waiting]
    plan: Plan
    refused: dict[int, Exception]  # As the last attempt decided.
    sent: bool = False  # objstore.apply may have been received: the outcome is unknown.
    attempts: int = 0
    alone: bool = False


class _Read(NamedTuple):
    keys: Sequence[bytes] | None  # None: a scan.
    scan: tuple[bytes, bytes, int, bool]
    future: "asyncio.Future[Any]"
    deadline: float


_NO_SCAN = (b"", b"", 0, False)


def check_url(url: str) -> None:
    """Raises: ValueError for what is no address of a PostgreSQL database. The message has no password."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("a PostgreSQL address begins with postgresql://")
    if not parts.path.strip("/") and "dbname" not in parse_qs(parts.query):
        raise ValueError("the address names no database: postgresql://user@host:5432/DATABASE")


def shown_url(url: str) -> str:
    """The address without its password, for logs and tables."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{hosts}{parts.path}"


class PostgresKv:
    """Implements `kv.Kv`. `start` before use, `close` at the end.

    Args:
        url: postgresql://user:password@host:port,host:port/database?sslmode=verify-full; of several hosts
        the one
            that takes writes is used. Password and TLS as libpq has them (PGPASSFILE, sslrootcert, ...).
        client_id: 16 bytes that no other living client has; a fresh one if None.
        timeout_s: the longest that one commit waits for its outcome.
        away_s: the longest that it waits while no server takes writes.
        readers: connections for reads, beside the one that writes.
        may_copy: work on a database into which a copy is not finished (see copy.py).
    """

    def __init__(
        self,
        url: str,
        client_id: bytes | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        away_s: float = AWAY_S,
        readers: int = READERS,
        queue_count_max: int = QUEUE_COUNT_MAX,
        queue_size_max: int = QUEUE_SIZE_MAX,
        lock_s: float = LOCK_S,
        answer_s: float = ANSWER_S,
        may_copy: bool = False,
        randomness: Randomness = os.urandom,
    ) -> None:
        assert readers >= 1
        check_url(url)
        self.stats = PostgresStats()
        self._url = url
        self._client_id = random_id(randomness) if client_id is None else client_id
        assert len(self._client_id) == 16
        self._timeout_s = timeout_s
        self._away_s = away_s
        self._lock_s = lock_s
        self._answer_s = answer_s
        self._may_copy = may_copy
        self._queue_count_max = queue_count_max
        self._queue_size_max = queue_size_max
        self._queue: deque[_Waiting] = deque()
        self._count = 0  # Commits waiting or in the batch.
        self._size = 0  # Bytes of them.
        self._batch: _Batch | None = None
        self._next_number = 1
        self._session = 0
        self._settled = 0  # The newest batch that was applied for certain, and when.
        self._settled_at = 0.0
        self._connection: Any = None  # The writing one; None: away.
        self._warned = False  # The server has warned of something since this was cleared.
        self._away_since: float | None = None
        self._failure = "not connected yet"
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        # The database is not ours, or not fit: connecting again is no use.
        self._refusal: StoreError | None = None
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # Reads.
        self._readers_max = readers
        self._reads: deque[_Read] = deque()
        self._free: list[_Reader] = []
        self._reading: set[asyncio.Task[None]] = set()
        self._pump_due = False
        self._primary = 0  # Counts the servers that took writes: readers of an earlier one are dropped.
        self._server: tuple[Any, ...] = ()

    # Life.

    async def start(self, timeout_s: float = 30.0) -> None:
        """Connect, bring the tables up to date, take a session.

        Raises: MetaUnavailable if no server takes writes within `timeout_s`, or the database is not fit.
        """
        assert self._task is None
        self._loop = asyncio.get_running_loop()
        self._away_since = self._loop.time()
        self._task = self._loop.create_task(self._write())
        self._tick()
        ready = self._loop.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            refusal = self._refusal or MetaUnavailable(
                f"no PostgreSQL server takes writes at {shown_url(self._url)}: {self._failure}"
            )
            await self.close()
            raise refusal

    async def close(self) -> None:
        """Disconnect. Commits still under way raise MetaUnavailable: what was sent may have happened."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for task in list(self._reading):
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        for connection in [self._connection, *(reader.connection for reader in self._free)]:
            if connection is not None:
                connection.terminate()
        self._connection = None
        self._free.clear()
        if self._batch is not None:
            for one in self._batch.waiting:
                self._give_up(one, "the client was closed")
            self._batch = None
        while self._queue:
            self._give_up(self._queue.popleft(), "the client was closed")
        while self._reads:
            _fail(self._reads.popleft().future, MetaUnavailable("the client was closed"))

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def away(self) -> bool:
        """Whether no server has taken writes for so long that a commit is refused at once."""
        since = self._away_since
        return since is not None and self._loop is not None and self._loop.time() - since >= self._away_s

    # Kv.

    async def get(self, key: bytes) -> bytes | None:
        """As `Kv.get`. Raises: Corrupt, MetaUnavailable, Overloaded."""
        found: list[bytes | None] = await self._read([key], _NO_SCAN)
        return found[0]

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As `Kv.get_many`. Raises: Corrupt, MetaUnavailable, Overloaded."""
        if not keys:
            return []
        found: list[bytes | None] = await self._read(keys, _NO_SCAN)
        return found

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """As `Kv.scan`. One view up to SCAN_CHUNK entries; a longer scan reads on from a later one.

        Raises: Corrupt, MetaUnavailable, Overloaded.
        """
        found: list[tuple[bytes, bytes]] = []
        while limit > 0 and start < end:
            chunk: list[tuple[bytes, bytes]] = await self._read(
                None, (start, end, min(limit, SCAN_CHUNK), reverse)
            )
            if len(chunk) < SCAN_CHUNK:
                return found + chunk if found else chunk
            found += chunk
            limit -= len(chunk)
            if reverse:
                end = chunk[-1][0]
            else:
                start = chunk[-1][0] + b"\0"
        return found

    async def commit(self, transaction: Transaction) -> None:
        """As `Kv.commit`. Cancelled: the outcome is unknown.

        Raises: Conflict, LimitReached, MetaUnavailable; Corrupt if a record that the decision needs is
        damaged;
            Overloaded if too much waits already; ValueError for a transaction that no engine takes.
        """
        size = checked_size(transaction)
        loop = self._loop
        if loop is None or self._closed:
            raise MetaUnavailable("the metadata client is not started, or closed")
        if self._refusal is not None:
            raise self._refusal
        if self._away_since is not None and self.away:
            self.stats.refused_away += 1
            raise MetaUnavailable(f"no PostgreSQL server takes writes: {self._failure}")
        if self._count >= self._queue_count_max or self._size + size > self._queue_size_max:
            self.stats.overloaded += 1
            raise Overloaded(f"{self._count} commits of {self._size} bytes wait for PostgreSQL")
        future: asyncio.Future[None] = loop.create_future()
        self._queue.append(_Waiting(transaction, size, future, loop.time() + self._timeout_s))
        self._count += 1
        self._size += size
        self._wake.set()
        await future

    # Writing: one task, one connection.

    async def _write(self) -> None:
        """Connect, settle what an earlier connection left, send batch after batch; again when it breaks."""
        loop = asyncio.get_running_loop()
        wait_s = RECONNECT_FIRST_S
        while True:
            try:
                await self._open_session()
                wait_s = RECONNECT_FIRST_S
                while True:
                    if self._batch is None:
                        while not self._queue:
                            self._wake.clear()
                            await self._wake.wait()
                        # Not in the same turn: what else becomes runnable in it travels along.
                        await asyncio.sleep(0)
                    await self._attempt()
            except StoreError as refusal:
                self._refusal = refusal
                self._hang_up(str(refusal))
                self._drop_all(refusal)
                return
            except _LOST as failure:
                self._hang_up(f"{type(failure).__name__}: {failure}")
            except Exception as bug:
                # Not an operating failure. Whoever waits learns of it; the next batch may be another one.
                log.exception("a batch cannot be sent")
                self._hang_up(repr(bug))
                if self._batch is not None and not self._batch.sent:
                    self._drop(self._batch, f"the commit failed: {bug!r}")
            if self._away_since is None:
                self._away_since = loop.time()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RECONNECT_LAST_S)

    def _hang_up(self, why: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not self._closed:
            log.warning("the connection to PostgreSQL is given up", extra={"why": why})
        if connection is not None:
            connection.terminate()
        self._failure = why

    async def _open_session(self) -> None:
        """Connect for writing; learn and settle the batch in doubt. Raises: _LOST, StoreError."""
        connection = await self._connect("write")
        try:
            connection.add_log_listener(self._warning)
            await self._within(self._check(connection))
            if not await self._within(is_current(connection)):
                steps = await self._within(migrate(connection), MIGRATE_S)
                log.info("the database was brought up to date", extra={"steps": steps})
            self._warned = False
            row = await self._within(self._take_session(connection))
            if self._warned:  # It was not replicated: what it shows may be taken back.
                raise TimeoutError("the server warned while a session was taken")
            # After that: a copy that begins later takes the session away again.
            if not self._may_copy and await self._within(connection.fetchval(_COPY_NOTE)) is not None:
                raise MetaUnavailable(
                    "a copy into this database is not finished: `objstore meta copy` goes on with it"
                )
            server = await self._within(
                connection.fetchrow(
                    "SELECT inet_server_addr()::text, inet_server_port(), pg_postmaster_start_time()"
                )
            )
        except BaseException:
            connection.terminate()
            raise
        if tuple(server) != self._server:
            self._server = tuple(server)
            # Whoever reads goes there, too: the old one may live on and know nothing of it.
            self._primary += 1
        session, number = row["session"], row["number"]
        idle_s = asyncio.get_running_loop().time() - self._settled_at
        if (session <= self._session or number < self._settled) and idle_s < FORGOTTEN_S:
            connection.terminate()
            log.critical("PostgreSQL has lost commits that it acknowledged", extra={"server": str(server)})
            raise MetaUnavailable(
                "the PostgreSQL server that takes writes now does not know of commits that were acknowledged:"
                " it was restored from a copy, or is a standby that nobody waited for"
            )
        self._session = session
        # A process that keeps its id over a restart must not use a number twice.
        self._next_number = max(self._next_number, number + 1)
        self._connection = connection
        self._away_since = None
        self.stats.connections += 1
        batch = self._batch
        if batch is not None:
            if batch.sent and number >= batch.number:
                self.stats.read_back += 1
                self._applied(batch)
            elif all(one.future.done() for one in batch.waiting):
                # Nobody waits for it. It was not applied, and its session is over.
                self._drop(batch, "")
            else:
                batch.sent = False
        self._ready.set()

    async def _take_session(self, connection: Any) -> Any:
        async with connection.transaction():
            # Before or after the beginning of a copy, never beside it.
            await connection.execute(f"SELECT pg_advisory_xact_lock_shared({GATE})")
            await connection.execute(_FORGET)
            return await connection.fetchrow(_SESSION, self._client_id)

    async def _check(self, connection: Any) -> None:
        """Whether the server keeps what it acknowledges. Raises: MetaUnavailable."""
        version = int(await connection.fetchval("SHOW server_version_num"))
        if version < VERSION_MIN:
            raise MetaUnavailable(
                f"PostgreSQL {version // 10_000} is too old: {VERSION_MIN // 10_000} or later is needed"
            )
        for setting in ("fsync", "full_page_writes"):
            if await connection.fetchval(f"SHOW {setting}") != "on":
                raise MetaUnavailable(f"the server runs with {setting}=off: a power cut would lose commits")

    def _warning(self, connection: Any, message: Any) -> None:
        if message.severity_en == "WARNING" or message.severity == "WARNING":
            self._warned = True
            log.warning("PostgreSQL warns", extra={"text": str(message), "code": message.sqlstate})

    async def _within(self, coroutine: Any, limit_s: float | None = None) -> Any:
        """The outcome of a statement; when it is late the connection is dropped, never cancelled politely.

        Raises: TimeoutError.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(coroutine)
        try:
            done, _ = await asyncio.wait({task}, timeout=limit_s or self._answer_s)
        except asyncio.CancelledError:
            task.add_done_callback(_seen)
            raise
        if not done:
            task.add_done_callback(_seen)
            raise TimeoutError(f"no answer from PostgreSQL within {limit_s or self._answer_s:g} s")
        return task.result()

    async def _attempt(self) -> None:
        """Send the batch at hand, or the next one, once. Raises: _LOST: the connection is of no more use."""
        connection = self._connection
        # While BEGIN travels, whatever else arrives joins the batch.
        await self._within(connection.execute("BEGIN"))
        batch = self._batch
        if batch is None:
            batch = self._batch = self._gathered()
        elif all(one.future.done() for one in batch.waiting):
            self._drop(batch, "")
            await self._within(connection.execute("ROLLBACK"))
            return
        if batch is None:
            await self._within(connection.execute("ROLLBACK"))
            return
        batch.attempts += 1
        try:
            changes = await self._locked(connection, batch)
            if changes is None:
                await self._within(connection.execute("ROLLBACK"))
                self._settle(batch)
                return
            batch.sent = True
            self._warned = False
            status = await self._within(connection.execute(changes))
        except asyncpg.PostgresError as failure:
            if connection.is_closed():
                raise
            state = failure.sqlstate or ""
            if state == BROKEN or state[:2] in HOPELESS:
                # It was rolled back, and would be again: a full disk, a broken table.
                batch.sent = False
                log.error("PostgreSQL refuses a batch", extra={"why": str(failure), "code": state})
                await self._within(connection.execute("ROLLBACK"))
                self._drop(batch, f"PostgreSQL refuses the commit: {failure}")
                return
            if state not in AGAIN:
                raise
            # The server says that it was rolled back: no doubt about that.
            batch.sent = False
            batch.alone = True
            self.stats.retries += 1
            log.warning(
                "a batch is sent again, alone", extra={"why": str(failure), "attempt": batch.attempts}
            )
            await self._within(connection.execute("ROLLBACK"))
            if batch.attempts > 1:
                await asyncio.sleep(min(RECONNECT_LAST_S, RECONNECT_FIRST_S * 2**batch.attempts))
            return
        if status != "COMMIT" or self._warned:
            raise TimeoutError(f"the server answered a commit with {status} and a warning")
        self._applied(batch)

    def _gathered(self) -> _Batch | None:
        waiting: list[_Waiting] = []
        size = 0
        queue = self._queue
        while queue and len(waiting) < BATCH_COUNT_MAX:
            if queue[0].future.done():  # Cancelled, or overdue.
                self._forget(queue.popleft())
                continue
            size += queue[0].size
            if waiting and size > BATCH_SIZE_MAX:
                break
            waiting.append(queue.popleft())
        if not waiting:
            return None
        number = self._next_number
        self._next_number += 1
        return _Batch(number, waiting, plan([one.transaction for one in waiting]), {})

    async def _locked(self, connection: Any, batch: _Batch) -> str | None:
        """Lock and decide; returns the statements that apply and commit, None if there is nothing to do."""
        needed = batch.plan
        digest = _digest
        fresh = [
            b"" if value is None else value + digest(key + value)
            for key, value in zip(needed.keys, needed.new, strict=True)
        ]
        if batch.alone:
            self.stats.alone += 1
            # Everybody else's batches end before the gate opens; then nobody holds a row.
            await self._within(connection.execute(f"SET LOCAL lock_timeout = '{STATEMENT_S:g}s'"))
        rows = await self._within(
            connection.fetch(_LOCK, needed.keys, fresh, needed.runs, needed.wanted, batch.alone)
        )
        held: dict[bytes, bytes] = {}
        absent: set[bytes] = set()
        rotten: set[bytes] = set()
        for key, stored in rows:
            if stored is None:
                absent.add(key)
                continue
            value = stored[_VALUE]
            if digest(key + value) != stored[_CHECKSUM]:
                rotten.add(key)
                self.stats.rotten += 1
            held[key] = value
        changed, batch.refused = decide([one.transaction for one in batch.waiting], held, rotten)
        put: list[bytes] = []
        values: list[bytes] = []
        gone: list[bytes] = []
        nothing = not changed
        for key, value in changed.items():
            if value is None:
                gone.append(key)
            elif key not in absent:
                put.append(key)
                values.append(value + digest(key + value))
        # What the locking made is right already, if it is what it would become.
        for key, made in zip(needed.keys, fresh, strict=True):
            if key in absent:
                final = changed.get(key)
                if final is None:
                    if key not in changed:
                        gone.append(key)
                elif (sealed := final + digest(key + final)) != made:
                    put.append(key)
                    values.append(sealed)
        if nothing:
            return None
        # By the simple protocol, so that applying and committing is one round trip. All of it is hexadecimal.
        return (
            f"SELECT objstore.apply('\\x{self._client_id.hex()}', {self._session}, {batch.number},"
            f" {_array(put)}, {_array(values)}, {_array(gone)}); COMMIT"
        )

    # Outcomes.

    def _applied(self, batch: _Batch) -> None:
        self._settled = batch.number
        self._settled_at = asyncio.get_running_loop().time()
        self._settle(batch)

    def _settle(self, batch: _Batch) -> None:
        """The batch is decided: tell everybody in it."""
        self._batch = None
        self.stats.messages += 1
        self.stats.commits += len(batch.waiting)
        self.stats.conflicts += len(batch.refused)
        for index, one in enumerate(batch.waiting):
            self._forget(one)
            if not one.future.done():
                failure = batch.refused.get(index)
                if failure is None:
                    one.future.set_result(None)
                else:
                    one.future.set_exception(failure)

    def _drop(self, batch: _Batch, reason: str) -> None:
        self._batch = None
        for one in batch.waiting:
            self._give_up(one, reason)

    def _drop_all(self, failure: StoreError) -> None:
        if self._batch is not None:
            self._drop(self._batch, str(failure))
        while self._queue:
            self._give_up(self._queue.popleft(), str(failure))

    def _forget(self, one: _Waiting) -> None:
        self._count -= 1
        self._size -= one.size

    def _give_up(self, one: _Waiting, reason: str) -> None:
        self._forget(one)
        _fail(one.future, MetaUnavailable(reason))

    def _tick(self) -> None:
        """End what has waited too long. It stays in its place; the writing task clears it away."""
        assert self._loop is not None
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now = self._loop.time()
        away = self.away
        batch = self._batch
        if batch is not None:
            reason = "the outcome is unknown" if batch.sent else "it was not applied"
            for one in batch.waiting:
                if (away or one.deadline <= now) and not one.future.done():
                    self.stats.timeouts += 1
                    _fail(
                        one.future, MetaUnavailable(f"no answer from PostgreSQL ({self._failure}): {reason}")
                    )
        while self._queue and (away or self._queue[0].deadline <= now):
            self.stats.timeouts += 1
            self._give_up(self._queue.popleft(), f"no PostgreSQL server took the commit: {self._failure}")
        while self._reads and self._reads[0].deadline <= now:
            _fail(
                self._reads.popleft().future, MetaUnavailable(f"no answer from PostgreSQL: {self._failure}")
            )

    # Reading.

    async def _read(self, keys: Sequence[bytes] | None, scan: tuple[bytes, bytes, int, bool]) -> Any:
        loop = self._loop
        if loop is None or self._closed:
            raise MetaUnavailable("the metadata client is not started, or closed")
        if self._refusal is not None:
            raise self._refusal
        if len(self._reads) >= READ_COUNT_MAX:
            self.stats.overloaded += 1
            raise Overloaded(f"{len(self._reads)} reads wait for PostgreSQL")
        future: asyncio.Future[Any] = loop.create_future()
        self.stats.reads += 1
        self._reads.append(_Read(keys, scan, future, loop.time() + READ_TIMEOUT_S))
        if not self._pump_due and len(self._reading) < self._readers_max:
            # In the next turn: what else becomes runnable in this one is asked in the same statement.
            self._pump_due = True
            loop.call_soon(self._pump)
        return await future

    def _pump(self) -> None:
        self._pump_due = False
        assert self._loop is not None
        if self._reads and len(self._reading) < self._readers_max and not self._closed:
            task = self._loop.create_task(self._serve_reads())
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _serve_reads(self) -> None:
        """Answer what waits, with one connection, until nothing does."""
        reader: _Reader | None = None
        wait_s = RECONNECT_FIRST_S
        while self._reads:
            reads = self._next_reads()
            if not reads:
                continue
            if self._reads and not self._pump_due and len(self._reading) < self._readers_max:
                self._pump_due = True
                asyncio.get_running_loop().call_soon(self._pump)
            try:
                if reader is None:
                    reader = await self._reader()
                await self._answer(reader, reads)
                wait_s = RECONNECT_FIRST_S
            except _LOST as failure:
                self._reads.extendleft(reversed([one for one in reads if not one.future.done()]))
                log.info("a read is repeated", extra={"why": repr(failure)})
                if reader is not None:
                    reader.connection.terminate()
                    reader = None
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RECONNECT_LAST_S)
            except BaseException as failure:
                for one in reads:
                    _fail(one.future, MetaUnavailable(f"a read ended: {failure!r}"))
                if reader is not None:
                    reader.connection.terminate()
                raise
        # At once and not when the task has ended: a read that comes in between needs another one.
        task = asyncio.current_task()
        assert task is not None
        self._reading.discard(task)
        if reader is not None:
            self._free.append(reader)

    def _next_reads(self) -> list[_Read]:
        """One scan, or as many look-ups as go into a statement."""
        chosen: list[_Read] = []
        count = 0
        while self._reads:
            one = self._reads[0]
            if one.future.done():
                self._reads.popleft()
                continue
            if one.keys is None:
                if not chosen:
                    chosen.append(self._reads.popleft())
                break
            count += len(one.keys)
            if chosen and count > READ_KEYS_MAX:
                break
            chosen.append(self._reads.popleft())
        return chosen

    async def _reader(self) -> "_Reader":
        while self._free:
            reader = self._free.pop()
            if reader.primary == self._primary and not reader.connection.is_closed():
                return reader
            reader.connection.terminate()
        primary = self._primary
        connection = await self._connect("read")
        try:
            async with asyncio.timeout(CONNECT_S):
                get = await connection.prepare(_GET)
                up = await connection.prepare(_UP)
                down = await connection.prepare(_DOWN)
        except BaseException:
            connection.terminate()
            raise
        return _Reader(connection, get, up, down, primary)

    async def _answer(self, reader: "_Reader", reads: list[_Read]) -> None:
        """Ask once for all of `reads`. Raises: _LOST."""
        if reader.primary != self._primary:
            raise TimeoutError("another server takes the writes now")
        self.stats.read_statements += 1
        if reads[0].keys is None:
            start, end, limit, reverse = reads[0].scan
            async with asyncio.timeout(self._answer_s):
                rows = await (reader.down if reverse else reader.up).fetch(start, end, limit)
            self._tell(reads[0], partial(self._unsealed, rows))
            return
        asked = [key for one in reads for key in one.keys or ()] if len(reads) > 1 else reads[0].keys
        async with asyncio.timeout(self._answer_s):
            rows = await reader.get.fetch(asked)
        stored = dict(rows)
        for one in reads:
            self._tell(one, partial(self._values, one.keys or (), stored))

    def _tell(self, read: _Read, answer: Callable[[], Any]) -> None:
        if read.future.done():
            return
        try:
            read.future.set_result(answer())
        except Corrupt as damage:
            read.future.set_exception(damage)

    def _values(self, keys: Sequence[bytes], stored: Mapping[bytes, bytes]) -> list[bytes | None]:
        values: list[bytes | None] = []
        for key in keys:
            sealed = stored.get(key)
            if sealed is None:
                values.append(None)
                continue
            value = sealed[_VALUE]
            if _digest(key + value) != sealed[_CHECKSUM]:
                raise self._rotten(key)
            values.append(value)
        return values

    def _unsealed(self, rows: list[Any]) -> list[tuple[bytes, bytes]]:
        digest, value_of, checksum_of = _digest, _VALUE, _CHECKSUM
        pairs = [
            (key, value)
            for key, sealed in rows
            if digest(key + (value := sealed[value_of])) == sealed[checksum_of]
        ]
        if len(pairs) != len(rows):
            good = {key for key, _ in pairs}
            raise self._rotten(next(key for key, _ in rows if key not in good))
        return pairs

    def _rotten(self, key: bytes) -> Corrupt:
        self.stats.rotten += 1
        log.error("a metadata record fails its checksum", extra={"key": repr(key)})
        return Corrupt(f"metadata record {key!r} fails its checksum")

    # Copies: see copy.py. Rare, each on a connection of its own.

    async def begin_copy(self, note: str) -> str:
        """As `Target.begin_copy`. Processes that already work on the database lose their sessions."""
        found: str = await self._administer(self._begin_copy, note)
        return found

    async def note_copy(self, note: str) -> None:
        """As `Target.note_copy`."""
        await self._administer(self._note_copy, note)

    async def end_copy(self, note: str) -> None:
        """As `Target.end_copy`."""
        await self._administer(self._end_copy, note)

    async def _begin_copy(self, connection: Any, note: str) -> str:
        # Alone: every batch either ended before, and is seen here, or will find its session gone.
        await connection.execute(f"SELECT pg_advisory_xact_lock({GATE})")
        found: str | None = await connection.fetchval(_COPY_NOTE)
        if found is not None:
            return found
        if await connection.fetchval("SELECT EXISTS (SELECT 1 FROM objstore.kv)"):
            raise BadRequest("the database is not empty: a copy needs a new one")
        await connection.execute("INSERT INTO objstore.engine (name, value) VALUES ('copy', $1)", note)
        await connection.execute(
            "UPDATE objstore.clients SET session = session + 1 WHERE client <> $1", self._client_id
        )
        return note

    async def _note_copy(self, connection: Any, note: str) -> None:
        status = await connection.execute("UPDATE objstore.engine SET value = $1 WHERE name = 'copy'", note)
        if status != "UPDATE 1":
            raise BadRequest("no copy into this database is under way")

    async def _end_copy(self, connection: Any, note: str) -> None:
        await connection.execute("DELETE FROM objstore.engine WHERE name IN ('copy', 'copied')")
        await connection.execute("INSERT INTO objstore.engine (name, value) VALUES ('copied', $1)", note)

    async def _administer(self, step: Callable[[Any, str], Awaitable[Any]], note: str) -> Any:
        """One transaction. Raises: MetaUnavailable, and what the step raises."""
        try:
            connection = await self._connect("copy")
            try:
                async with asyncio.timeout(self._answer_s), connection.transaction():
                    return await step(connection, note)
            finally:
                connection.terminate()
        except _LOST as failure:
            raise MetaUnavailable(f"PostgreSQL: {failure!r}") from failure

    # Connections.

    async def _connect(self, purpose: str) -> Any:
        """A connection to the server that takes writes, with everything set as we need it. Raises: _LOST."""
        connection = await asyncpg.connect(
            self._url,
            timeout=CONNECT_S,
            target_session_attrs=asyncpg.connect_utils.SessionAttribute.read_write,
        )
        try:
            settings = {
                **_PLANNER,
                "application_name": f"objstore {purpose} {self._client_id.hex()[:8]}",
                "standard_conforming_strings": "on",
                "default_transaction_isolation": "read committed",
                "bytea_output": "hex",
                "client_min_messages": "warning",
                "statement_timeout": f"{STATEMENT_S:g}s",
                "lock_timeout": f"{self._lock_s:g}s",
                "idle_in_transaction_session_timeout": f"{IDLE_S:g}s",
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
                "tcp_user_timeout": "10000",
            }
            names, values = list(settings), list(settings.values())
            async with asyncio.timeout(CONNECT_S):
                await connection.fetch(
                    "SELECT set_config(name, value, false)"
                    " FROM unnest($1::text[], $2::text[]) AS s (name, value)",
                    names,
                    values,
                )
                # Acknowledged means durable, on the standbys too that the server waits for.
                if await connection.fetchval("SHOW synchronous_commit") != "remote_apply":
                    await connection.execute("SET synchronous_commit = on")
        except BaseException:
            connection.terminate()
            raise
        return connection


class _Reader(NamedTuple):
    connection: Any
    get: Any
    up: Any
    down: Any
    primary: int


def _fail(future: "asyncio.Future[Any]", failure: Exception) -> None:
    if not future.done():
        future.set_exception(failure)


def _seen(task: "asyncio.Task[Any]") -> None:
    """A statement that nobody waits for any more has ended: its failure is no news."""
    if not task.cancelled():
        task.exception()


def _array(values: Sequence[bytes]) -> str:
    """Byte strings as a literal of type bytea[]."""
    return "'{" + ",".join([f'"\\\\x{value.hex()}"' for value in values]) + "}'" if values else "'{}'"
