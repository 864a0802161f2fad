"""A disk of a storage node, over the network: the other implementation of node/disk.py's Disk.

A RemoteNode is one node as one process sees it: its connections (pool.py), whether it answers, and what a
turn of the loop writes to its disks, which travels as one request. RemoteDisk is thin: it names itself.

What may go wrong, and what becomes of it:

    the node refuses connections           its disks are suspect at once, until it answers a poll
    it answers no poll, a black hole       the same, after one deadline; what waits for it fails then
    it, or the way to it, trickles         the same, and back only when a probe of some size comes in time;
                                           who was slow often waits longer for that
    it is back, and no poll has seen it    whoever would fail for want of it has it asked at once
                                           (`look_again`): one question for all of them; not at once again
                                           where that ended at its limit
    the connection is lost in a call       once more, on another connection; an append that was done is known
                                           by its bytes (docs/protocol.md), and never written twice
    one disk is overdue, its node is not   that disk is suspect, here, until `verify` clears it
    the node was restarted                 bytes that were not synced by then are not counted on: DiskFailed
    a newer epoch was noted on the disk    StaleEpoch, unless this gateway learns of that epoch in a moment:
                                           it may be its own committer's

Concurrency: one event loop. State changes between awaits only. Nothing here ever raises the epoch that
requests name: that is the metadata engine's (the `epoch` argument).
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
from xxhash import xxh3_64_intdigest

from objstore.errors import DiskFailed, DiskMissing, NodeAway, Overloaded, StaleEpoch
from objstore.node import wire
from objstore.node.disk import Buffer, DiskState, FragmentFile, LogFile, Usage
from objstore.node.local import OpCount
from objstore.node.pool import (
    Address,
    Answer,
    Connect,
    Lost,
    Overdue,
    Pool,
    PoolLimits,
    Unconnected,
    Unreachable,
    connect_tcp,
)
from objstore.node.wire import Failure, Item, Restarted

log = logging.getLogger(__name__)

STALE_TRIES: Final = 3  # Times a call is sent again because its epoch was older than the disk's.
STALE_LOOK_S: Final = 0.01  # Between looks whether this gateway has learnt of the epoch.
FILES_MAX: Final = 4_096  # Files per disk of which it is known which instance took their last bytes.
UNSYNCED_MAX: Final = 4_096  # Files per disk with bytes that were not synced; beyond: Overloaded.
PROBE_SIZE: Final = 256 * wire.KIB  # Bytes a node that was too slow has to bring within the poll's limit.
PENALTY_FORGOTTEN_S: Final = 300.0  # After so long without being overdue a node counts as never slow.
LIST_LIMIT_S: Final = 60.0  # For the list of a disk's files.
AGAIN_S: Final = 0.05  # Between two polls at the least, however many ask for one.


# The names that a local disk counts by.
_COUNTED: Final = {"append": "append", "append-sync": "append", "sync": "sync", "log": "log_append"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """Limits of one node as its clients see it. The first two are those of its disks (DiskOptions)."""

    limit_s: float = 10.0
    log_limit_s: float = 2.0
    margin_s: float = 1.0  # The node's own verdict on one disk comes before ours on the whole node.
    read_limit_s: float = 5.0  # For a read to move: another fragment can be read instead.
    poll_s: float = 1.0  # Between polls of the disks' states.
    poll_limit_s: float = 3.0  # A node that does not answer one within this is away.
    stale_wait_s: float = 1.0  # For this gateway to learn of an epoch that its committer has opened.
    penalty_max_s: float = 60.0  # The longest that a node which was slow again and again stays ejected.

    def __post_init__(self) -> None:
        assert min(self.limit_s, self.log_limit_s, self.read_limit_s, self.poll_s, self.poll_limit_s) > 0
        assert min(self.margin_s, self.stale_wait_s, self.penalty_max_s) >= 0


class _Pending:
    """One write on its way: an item of a batch."""

    __slots__ = ("began", "buffers", "covers", "disk", "future", "item")

    def __init__(self, disk: "RemoteDisk", item: Item, buffers: Sequence[Buffer]) -> None:
        self.disk = disk
        self.item = item
        self.buffers = buffers
        self.began = time.perf_counter()
        self.covers = 0  # Of a sync: the file's `written` when it was issued.
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, failure: Exception | None) -> None:
        self.buffers = ()
        if not self.future.done():  # A caller that was cancelled wants to know nothing.
            if failure is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(failure)


class _Unsynced:
    """Bytes of a file that no sync has covered yet, and the instance of the node that took all of them.

    Two counts, as in node/local.py: a sync covers what had been written when it was issued, and appends may
    end beside it.
    """

    __slots__ = ("instance", "synced", "written")

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.written = 0
        self.synced = 0


class _Attempt:
    """A batch that is sent: which item of the request is which write, and what becomes of each.

    Args:
        left: writes without an outcome, by number; those that get one are taken out.
        named: the epoch that the request names.
    """

    def __init__(self, left: dict[int, _Pending], named: int) -> None:
        self.sent = list(left.values())
        self.refused: set[int] = set()  # Numbers of those that were refused for their epoch: they stay.
        self.noted = 0  # The newest epoch that they were refused for.
        self._numbers = list(left)
        self._left = left
        self._named = named

    def take(self, data: bytes | bytearray, instance: str) -> None:
        """Outcomes that have come. Raises: wire.BadMessage."""
        for outcome in wire.decode_outcomes(data):
            if not 0 <= outcome.item < len(self._numbers):
                raise wire.BadMessage("an outcome of an item that was not sent")
            number = self._numbers[outcome.item]
            failure = outcome.failure
            if failure is not None and failure.code == "stale-epoch":
                self.refused.add(number)
                self.noted = max(self.noted, failure.epoch)
                continue
            pending = self._left.pop(number, None)
            if pending is not None:
                pending.disk.end_write(pending, failure, instance, self._named)


class RemoteNode:
    """One storage node, as this process sees it. Its disks are made by `disk`.

    Args:
        number: of the node in the cluster; makes its devices distinct from those of others.
        cluster: 16 bytes.
        epoch: the newest epoch that this gateway's metadata engine has in force, asked for each request.
        context: TLS that judges whether it is this node that answers (node/tls.py); None only for loopback.
        connect: the network, for tests.
    """

    def __init__(
        self,
        address: Address,
        *,
        number: int,
        cluster: bytes,
        epoch: Callable[[], int],
        context: ssl.SSLContext | None = None,
        options: RemoteOptions | None = None,
        limits: PoolLimits | None = None,
        connect: Connect = connect_tcp,
    ) -> None:
        self.address = address
        self.number = number
        self.options = options or RemoteOptions()
        self.instance = ""  # Of the node's process, as last answered.
        self.away = "it was not asked yet"  # Why nothing is sent to it; empty while it answers.
        self.ejections = 0  # How often it became away.
        self.disks: dict[int, RemoteDisk] = {}
        self._epoch = epoch
        self._common = f" HTTP/1.1\r\nHost: {address}\r\nX-Cluster: {cluster.hex()}\r\nX-Epoch: ".encode()
        self._write_head = f"POST {wire.WRITE_PATH}".encode() + self._common
        self._cluster = cluster.hex()
        limits = limits or PoolLimits()
        self._pool = Pool(address, context=context, limits=limits, connect=connect)
        # Polls have a connection of their own: that all others are busy says nothing about the node.
        self._polls = Pool(address, context=context, limits=limits._replace(connections=1), connect=connect)
        self._turns: dict[str, list[_Pending]] = {}  # What this turn of the loop writes, by kind.
        self._turn_sizes: dict[str, int] = {}
        self._batches: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._polled = asyncio.Event()  # Once.
        self._wanted = asyncio.Event()  # Somebody cannot wait until the next poll is due.
        self._asked: asyncio.Future[None] | None = None  # Ends with the next poll that begins.
        self._silent_until = 0.0  # Its last poll ended at a limit: until then nobody waits for another.
        self._answered_at = 0.0  # By the loop's clock.
        self._overdue_at = 0.0
        self._penalty_s = 0.0
        self._back_at = 0.0  # Not before this; 0: it was not ejected for being slow.
        self._shut_out: tuple[int, int] | None = None  # Own epoch and the newer one that we waited for.
        self._closed = False

    def __repr__(self) -> str:
        return f"<node {self.number} at {self.address}: {self.away or 'answers'}>"

    def disk(self, number: int, uuid: bytes) -> "RemoteDisk":
        """The disk of that number; it is not asked whether it is there."""
        disk = self.disks.get(number)
        if disk is None:
            disk = self.disks[number] = RemoteDisk(self, number, uuid)
        assert disk.uuid == uuid
        return disk

    async def start(self) -> None:
        """Ask for the states of the disks, and go on asking. Ends when it has answered, or is away.

        The first call does the same, but a disk's state is better known before that.
        """
        self.keep_polling()
        await self._polled.wait()  # A poll has its limits.

    def keep_polling(self) -> None:
        if self._poller is None and not self._closed:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # A disk's state may be asked before and after the loop runs.
            self._poller = loop.create_task(self._go_on_polling())

    async def look_again(self) -> bool:
        """Whether it answers; one that is away is asked now, and not only when the next poll is due.

        For whoever would fail for want of it. All who ask before a poll begins share that one, and between
        two polls lie at least AGAIN_S. After a poll that ended at its limit it is away without being asked,
        for as long as that took: else each who is refused would wait so long first. Polls that are due go on.
        Ends within the limits of two polls; raises nothing.
        """
        silent = asyncio.get_running_loop().time() < self._silent_until
        if self.away and not silent and not self._closed:
            self.keep_polling()
            if self._asked is None:
                self._asked = asyncio.get_running_loop().create_future()
            self._wanted.set()
            await asyncio.shield(self._asked)
        return not self.away

    def close(self) -> None:
        """End the connections. Requests under way fail with DiskFailed."""
        self._closed = True
        self.away = "it was closed"
        self._polled.set()
        _end(self._asked)
        if self._poller is not None:
            self._poller.cancel()
        self._pool.close()
        self._polls.close()

    # --- Requests ----------------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        target: str,
        *,
        limit_s: float,
        disk: "RemoteDisk",
        body: Sequence[Buffer] = (),
        into: Sequence[memoryview] | None = None,
        size: int = 0,
        answer_max: int = wire.ANSWER_MAX,
        same_instance: bool = False,
        writes: bool = False,
    ) -> Answer:
        """Send one call and take its answer, twice if the first connection is lost.

        Args:
            size: bytes of the longer of body and answer, for the deadline.
            same_instance: sent again only to the instance that was asked first: another cannot know what
                became of it.
            writes: whether an overdue answer makes the disk suspect.

        Raises: DiskFailed, and what the disk raises (wire.ERRORS).
        """
        repeated = False
        since = ""
        stale = 0
        if not self._polled.is_set():
            await self.start()
        asked = self.instance
        while True:
            self.check_away()
            named = self._epoch()
            head = [method.encode(), b" ", target.encode(), self._common, str(named).encode()]
            if since:
                head.append(b"\r\nX-Since: " + since.encode())
            if repeated:
                head.append(b"\r\nX-Repeat: 1")
            if body or method == "POST":
                head.append(b"\r\nContent-Length: %d" % sum(map(len, body)))
            head.append(b"\r\n\r\n")
            started = asyncio.get_running_loop().time()
            try:
                answer = await self._pool.exchange(
                    [b"".join(head), *body], limit_s=limit_s, size=size, into=into, answer_max=answer_max
                )
            except Lost as failure:
                if repeated or (same_instance and not asked):
                    raise DiskFailed(f"{self._where}: {failure}") from failure
                repeated = True
                if same_instance:
                    since = asked
                continue
            except (Unreachable, Overdue) as failure:
                raise self._judge(failure, started, disk if writes else None) from failure
            self._note_answer(answer)
            if answer.status == 200:
                return answer
            failed = _decode_failure(answer)
            disk.learn(failed.state, failed.reason)
            if failed.code == "stale-epoch" and stale < STALE_TRIES:
                stale += 1
                if await self._learns_epoch(named, failed.epoch):
                    continue
            raise disk.error_of(failed, named)

    def write(
        self, disk: "RemoteDisk", item: Item, buffers: Sequence[Buffer], covers: int = 0
    ) -> "asyncio.Future[None]":
        """Join what this turn of the loop writes to the node; sent when the turn ends."""
        pending = _Pending(disk, item, buffers)
        pending.covers = covers
        kind = item.kind
        turn = self._turns.get(kind)
        if turn is not None and (
            len(turn) >= wire.BATCH_ITEMS_MAX or self._turn_sizes[kind] + item.size > wire.BATCH_SIZE
        ):
            self._send_turn(kind)
            turn = None
        if turn is None:
            turn = self._turns[kind] = []
            self._turn_sizes[kind] = 0
            asyncio.get_running_loop().call_soon(self._send_turn, kind)
        turn.append(pending)
        self._turn_sizes[kind] += item.size
        return pending.future

    def _send_turn(self, kind: str) -> None:
        turn = self._turns.pop(kind, None)
        if turn is not None:
            task = asyncio.get_running_loop().create_task(self._send_batch(turn))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _send_batch(self, batch: list[_Pending]) -> None:
        """Each item's future ends, however this does."""
        try:
            await self._do_send_batch(batch)
        except BaseException as failure:
            for pending in batch:
                if not pending.future.done():
                    pending.end(
                        failure if isinstance(failure, Exception) else DiskFailed(f"{self._where}: given up")
                    )
            if not isinstance(failure, Exception):
                raise

    async def _do_send_batch(self, batch: list[_Pending]) -> None:
        options = self.options
        limit_s = options.log_limit_s if batch[0].item.kind == "log" else options.limit_s
        limit_s += options.margin_s
        left = dict(enumerate(batch))
        if not self._polled.is_set():
            await self.start()
        asked = self.instance
        repeated = False
        stale = 0
        while left:
            self.check_away()
            named = self._epoch()
            attempt = _Attempt(left, named)
            manifest = wire.encode_manifest([pending.item for pending in attempt.sent])
            size = len(manifest)
            pieces: list[Buffer] = [b""]
            for pending in attempt.sent:
                size += pending.item.size
                pieces += [buffer for buffer in pending.buffers if len(buffer)]
            pieces[0] = b"%b%d\r\nContent-Length: %d\r\n\r\n%b" % (self._write_head, named, size, manifest)
            started = asyncio.get_running_loop().time()
            try:
                answer = await self._pool.exchange(pieces, limit_s=limit_s, size=size, on_piece=attempt.take)
                self._note_answer(answer)
                if answer.status != 200:
                    failed = _decode_failure(answer)
                    for pending in left.values():
                        pending.end(pending.disk.error_of(failed, named))
                    return
                if answer.body is not None:
                    attempt.take(answer.body, answer.instance)
            except wire.BadMessage as failure:
                raise DiskFailed(f"{self._where} does not speak our protocol: {failure}") from failure
            except Lost as failure:
                if repeated:
                    raise DiskFailed(f"{self._where}: {failure}") from failure
                repeated = True
                for number, pending in list(left.items()):
                    if pending.item.kind != "log":
                        pending.item = msgspec.structs.replace(pending.item, repeat=True)
                    elif asked:
                        pending.item = msgspec.structs.replace(pending.item, repeat=True, since=asked)
                    else:
                        left.pop(number).end(DiskFailed(f"{self._where}: {failure}"))
                continue
            except (Unreachable, Overdue) as failure:
                for pending in left.values():
                    pending.end(self._judge(failure, started, pending.disk))
                return
            for number in left.keys() - attempt.refused:
                left.pop(number).end(DiskFailed(f"{self._where} did not say what became of a write"))
            stale += 1
            if left and (stale > STALE_TRIES or not await self._learns_epoch(named, attempt.noted)):
                for pending in left.values():
                    pending.end(StaleEpoch(named=named, noted=attempt.noted))
                return

    # --- Whether it answers ------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"node {self.number} at {self.address}"

    def check_away(self) -> None:
        """Raises: NodeAway at once, where asking would cost a deadline."""
        if self.away:
            raise NodeAway(f"{self._where} is away: {self.away}")

    def _note_answer(self, answer: Answer) -> None:
        self._answered_at = asyncio.get_running_loop().time()
        if answer.instance != self.instance:
            if self.instance:
                log.info("node restarted", extra={"node": self.number, "address": str(self.address)})
            self.instance = answer.instance

    def _judge(self, failure: Exception, started: float, disk: "RemoteDisk | None") -> DiskFailed:
        """What a call that got no answer says about the node, or about the one disk that it wrote to."""
        words = str(failure)
        if isinstance(failure, Overdue):
            if not failure.transferring and self._answered_at > started:
                # The node answers others meanwhile: it waits for this disk.
                if disk is not None:
                    disk.suspect(words)
                return DiskFailed(f"{self._where}: {words}")
            if disk is not None:
                disk.suspect(words)
            self._eject(words, slow=True)
        else:
            self._eject(words, slow=False)
        return NodeAway(f"{self._where} is away: {words}")

    def _eject(self, words: str, *, slow: bool) -> None:
        if self._closed:
            return
        now = asyncio.get_running_loop().time()
        if slow and now >= self._back_at:
            if now - self._overdue_at > PENALTY_FORGOTTEN_S:
                self._penalty_s = 0.0
            self._overdue_at = now
            self._penalty_s = min(max(2 * self._penalty_s, self.options.poll_s), self.options.penalty_max_s)
            self._back_at = now + self._penalty_s
        if not self.away or not self._polled.is_set():
            self.ejections += 1
            log.warning("node away", extra={"node": self.number, "address": str(self.address), "why": words})
        self.away = words
        self._polled.set()

    async def _go_on_polling(self) -> None:
        while not self._closed:
            if self._polled.is_set():
                await self._rest()
            asked, self._asked = self._asked, None
            self._wanted.clear()
            try:
                await self._poll(needed=asked is not None)
                self._pool.trim()
            except asyncio.CancelledError:
                raise
            except Exception as failure:
                log.exception("a bug in a poll")
                self._eject(f"a bug in a poll: {failure!r}", slow=False)
            finally:
                _end(asked)
                if not self.away:  # Those who have asked meanwhile know as well.
                    _end(self._asked)
                    self._asked = None

    async def _rest(self) -> None:
        """Until the next poll is due, or somebody cannot wait for it."""
        least_s = min(AGAIN_S, self.options.poll_s)
        await asyncio.sleep(least_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.poll_s - least_s):
                await self._wanted.wait()

    async def _poll(self, *, needed: bool) -> None:
        """Ask once. Never raises what the network does.

        Args:
            needed: something fails without the node: one that was slow is tried before its time.
        """
        limit_s = self.options.poll_limit_s
        started = asyncio.get_running_loop().time()
        try:
            try:
                report = await self._ask_state(limit_s)
            except Lost:
                report = await self._ask_state(limit_s)  # The connection had idled.
            self._silent_until = 0.0
            if self._back_at:
                if started < self._back_at and not needed:
                    return
                await self._exchange_poll(f"{wire.PROBE_PATH}?size={PROBE_SIZE}", limit_s, wire.PROBE_MAX)
        except Overdue as failure:
            self._fall_silent(started)
            self._eject(str(failure), slow=bool(self._back_at))
            self._pool.give_up(started, Overdue(str(failure), transferring=True))
            return
        except (Unreachable, Lost, Overloaded, DiskFailed, DiskMissing) as failure:
            if isinstance(failure, Unconnected):
                self._fall_silent(started)
            self._eject(str(failure), slow=False)
            return
        self._take_report(report)
        if self.away and not self._closed:
            if self._polled.is_set():
                log.info("node is back", extra={"node": self.number, "address": str(self.address)})
            self.away = ""
        self._back_at = 0.0
        self._polled.set()

    def _fall_silent(self, started: float) -> None:
        """A poll that began at `started` has just ended at its limit."""
        now = asyncio.get_running_loop().time()
        self._silent_until = now + (now - started)

    async def _exchange_poll(self, path: str, limit_s: float, answer_max: int) -> Answer:
        head = b"GET " + path.encode() + self._common + b"%d\r\n\r\n" % self._epoch()
        # Not by the pool's rule alone: a trickle moves, too.
        try:
            async with asyncio.timeout(limit_s + 1):
                answer = await self._polls.exchange([head], limit_s=limit_s, answer_max=answer_max)
        except TimeoutError:
            words = f"{self.address}: a poll took longer than {limit_s + 1:g} s"
            raise Overdue(words, transferring=True) from None
        self._note_answer(answer)
        if answer.status != 200:
            failed = _decode_failure(answer)
            raise DiskMissing(failed.words) if failed.code == wire.OTHER_CLUSTER else DiskFailed(failed.words)
        return answer

    async def _ask_state(self, limit_s: float) -> wire.NodeReport:
        answer = await self._exchange_poll(wire.STATE_PATH, limit_s, wire.ANSWER_MAX)
        try:
            report = msgspec.json.decode(answer.body or b"", type=wire.NodeReport)
        except msgspec.MsgspecError as failure:
            raise DiskFailed(f"a report that makes no sense: {failure}") from None
        if report.cluster != self._cluster:
            raise DiskMissing(f"it is a node of the cluster {report.cluster}")
        return report

    def _take_report(self, report: wire.NodeReport) -> None:
        reports = {disk.number: disk for disk in report.disks}
        for number, disk in self.disks.items():
            found = reports.get(number)
            if found is None:
                disk.learn(DiskState.MISSING.value, "the node does not serve it")
            elif found.uuid != disk.uuid.hex():
                disk.learn(DiskState.FOREIGN.value, f"the node serves disk {found.uuid} under its number")
            else:
                disk.path = f"{self.address}{found.path}"
                disk.learn(found.state, found.reason)

    # --- Epochs ------------------------------------------------------------------------------------------

    async def _learns_epoch(self, named: int, noted: int) -> bool:
        """Whether this gateway's own metadata comes to an epoch that a disk has noted already.

        Its committer tells the disks before it tells its workers. Waited for once: who was shut out is not to
        wait again in each call.
        """
        if self._epoch() >= noted:
            return True
        if self._shut_out == (named, noted):
            return False
        loop = asyncio.get_running_loop()
        until = loop.time() + self.options.stale_wait_s
        while loop.time() < until:
            await asyncio.sleep(STALE_LOOK_S)
            if self._epoch() >= noted:
                return True
        self._shut_out = (named, noted)
        return False


class RemoteDisk:
    """See node/disk.py for the contract and the module docstring for the rest. Made by RemoteNode.disk.

    Beside the contract: `fence`, and what LocalDisk has for metrics (`counts`, `suspicions`, `cached_reads`).
    """

    def __init__(self, node: RemoteNode, number: int, uuid: bytes) -> None:
        self.node = node
        self.number = number
        self.uuid = uuid
        self.path = f"{node.address}/disk/{number}"
        self.counts: dict[str, OpCount] = {}
        self.suspicions = 0
        self.cached_reads = 0
        self._known = DiskState.SUSPECT  # As the node last said.
        self._known_reason = "its node was not asked yet"
        self._suspicion = ""  # Our own.
        # By file: which instance of the node took its last bytes, and what of it is not synced.
        self._files: dict[tuple[int, int], str] = {}
        self._unsynced: dict[tuple[int, int], _Unsynced] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<disk {self.number} of {self.node}: {self.state}>"

    # State.

    @property
    def state(self) -> DiskState:
        self.node.keep_polling()
        if self.node.away:
            return DiskState.SUSPECT
        if self._suspicion and self._known in (DiskState.HEALTHY, DiskState.FULL, DiskState.READ_ONLY):
            return DiskState.SUSPECT
        return self._known

    @property
    def reason(self) -> str:
        if self.node.away:
            return f"node {self.node.number} at {self.node.address} is away: {self.node.away}"
        if self._suspicion and self._known in (DiskState.HEALTHY, DiskState.FULL, DiskState.READ_ONLY):
            return self._suspicion
        return self._known_reason

    def suspect(self, reason: str) -> None:
        """Take no more writes until verified: for what another process found out. Idempotent."""
        if not self._suspicion:
            self._suspicion = reason or "no reason given"
            self.suspicions += 1

    def learn(self, state: str, reason: str) -> None:
        """What the node says about the disk. Empty: nothing."""
        if state:
            try:
                self._known = DiskState(state)
            except ValueError:
                self._known = DiskState.FAILED  # A later release's word: nothing is written there.
            self._known_reason = reason

    async def look_again(self) -> bool:
        return await self.node.look_again()

    def _learn_from_read(self, answer: Answer) -> None:
        if answer.state:
            self.learn(answer.state, wire.reason_of(answer.reason))
        elif self._known is not DiskState.HEALTHY:
            self.learn(DiskState.HEALTHY.value, "")

    def _check_own(self) -> None:
        """Raises: DiskMissing, rather than reach another disk under our number."""
        if self._known is DiskState.FOREIGN:
            raise self._refusal()

    # Fragment files.

    async def create(self, volume: int, index: int) -> None:
        self._check_writable()
        await self._call("create", None, same_instance=True, volume=volume, index=index)
        self._remember(volume, index, self.node.instance)

    def append(
        self, volume: int, index: int, offset: int, buffers: Sequence[Buffer], *, sync: bool
    ) -> Awaitable[None]:
        size = 0
        for buffer in buffers:
            size += len(buffer)
        assert size <= wire.BODY_MAX - wire.MIB, f"an append of {size} bytes"
        unsynced = self._unsynced.get((volume, index)) if self._unsynced else None
        if not sync and unsynced is None and len(self._unsynced) >= UNSYNCED_MAX:
            return _failed(Overloaded(f"{UNSYNCED_MAX} files of disk {self.number} have bytes not synced"))
        if self._suspicion or self._known is DiskState.FOREIGN:
            return _failed(self._refusal())
        kind = "append-sync" if sync else "append"
        if unsynced is None:
            return self.node.write(self, Item(kind, self.number, volume, index, offset, size), buffers)
        item = Item(kind, self.number, volume, index, offset, size, since=unsynced.instance)
        return self.node.write(self, item, buffers, unsynced.written)

    async def sync(self, volume: int, index: int) -> None:
        self._check_writable()
        unsynced = self._unsynced.get((volume, index))
        if unsynced is None:
            await self.node.write(self, Item("sync", self.number, volume, index), ())
        else:
            item = Item("sync", self.number, volume, index, since=unsynced.instance)
            await self.node.write(self, item, (), unsynced.written)

    def end_write(self, pending: _Pending, failure: Failure | None, instance: str, named: int) -> None:
        """An outcome of a batch."""
        item = pending.item
        key = (item.volume, item.index)
        if failure is not None:
            self.learn(failure.state, failure.reason)
            if failure.code == "misuse" and self._files.get(key, instance) != instance:
                # Not a bug of the caller: what an earlier instance took did not survive its end.
                failure = Failure(wire.RESTARTED, f"the node was restarted since, and {failure.words}")
            self._errors(_COUNTED[item.kind])
            pending.end(self.error_of(failure, named))
            return
        self._count(_COUNTED[item.kind], pending.began, item.size)
        if item.kind == "log":
            pending.end(None)
            return
        unsynced = self._unsynced.get(key)
        if item.kind == "append":
            if unsynced is None:
                unsynced = self._unsynced[key] = _Unsynced(instance)
            unsynced.written += item.size
        elif unsynced is not None:
            unsynced.synced = max(unsynced.synced, pending.covers)
            if unsynced.synced == unsynced.written:
                del self._unsynced[key]
        self._remember(item.volume, item.index, instance)
        pending.end(None)

    def error_of(self, failure: Failure, named: int) -> Exception:
        error = wire.error_of(failure, named)
        if isinstance(error, (DiskFailed, DiskMissing)) and failure.code == wire.RESTARTED:
            return Restarted(f"disk {self.number} of node {self.node.number}: {failure.words}")
        return error

    def read_now(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> None:
        return None  # It is always far away.

    async def read(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        size = 0
        for buffer in buffers:
            size += buffer.nbytes
        if size > wire.READ_MAX:
            return await self._read_pieces(volume, index, position, buffers)
        self._check_own()
        start = time.perf_counter()
        answer = await self.node.ask(
            "GET",
            f"{wire.PREFIX}/disks/{self.number}/read?volume={volume}&index={index}&at={position}&size={size}",
            limit_s=self.node.options.read_limit_s,
            disk=self,
            into=buffers,
            size=size,
        )
        self._learn_from_read(answer)
        self._count("read", start, answer.size)
        return answer.size

    async def _read_pieces(
        self, volume: int, index: int, position: int, buffers: Sequence[memoryview]
    ) -> int:
        done = 0
        for group in _groups(buffers, wire.READ_MAX):
            wanted = sum(map(len, group))
            count = await self.read(volume, index, position + done, group)
            done += count
            if count < wanted:
                break
        return done

    async def seal(self, volume: int, index: int, length: int) -> None:
        self._check_writable()
        await self._call("seal", None, volume=volume, index=index, length=length)
        self._unsynced.pop((volume, index), None)
        self._files.pop((volume, index), None)

    async def replace_begin(self, volume: int, index: int) -> str:
        self._check_writable()
        return cast(str, await self._call("replace-begin", str, volume=volume, index=index))

    async def replace_append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        self._check_writable()
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        for group in _groups(views, wire.READ_MAX):
            await self._call("replace-append", None, body=group, same_instance=True, name=name, at=offset)
            offset += sum(map(len, group))

    async def replace_publish(self, name: str, length: int) -> None:
        self._check_writable()
        await self._call("replace-publish", None, same_instance=True, name=name, length=length)

    async def replace_abandon(self, name: str) -> None:
        try:
            await self._call("replace-abandon", None, name=name)
        except (DiskFailed, DiskMissing, StaleEpoch, Overloaded) as failure:
            # The node abandons by itself what nobody goes on with.
            log.info("replacement left to its node", extra={"disk": self.number, "failure": str(failure)})

    async def retire(self, volume: int, index: int, now_us: int) -> None:
        assert now_us > 0
        self._check_writable()
        await self._call("retire", None, volume=volume, index=index, now=now_us)

    async def purge(self, volume: int, index: int, *, retired_before_us: int) -> None:
        self._check_writable()
        await self._call("purge", None, volume=volume, index=index, before=retired_before_us)
        self._unsynced.pop((volume, index), None)
        self._files.pop((volume, index), None)

    async def fragment_files(self) -> list[FragmentFile]:
        found = await self._call(
            "fragments", list[FragmentFile], limit_s=LIST_LIMIT_S, answer_max=wire.LIST_MAX
        )
        return cast(list[FragmentFile], found)

    # Logs.

    async def log_create(self, name: str, content: Buffer = b"") -> None:
        _check_log_name(name)
        self._check_writable()
        view = memoryview(content).cast("B")
        assert len(view) <= wire.BODY_MAX, f"a log of {len(view)} bytes made at once"
        await self._call("log-create", None, body=[view], same_instance=True, name=name)

    def log_append(self, name: str, offset: int, content: Buffer) -> Awaitable[None]:
        if not _is_log_name(name):
            return _failed(AssertionError(f"not a name for a log: {name!r}"))
        size = len(content)
        assert size <= wire.BODY_MAX - wire.MIB, f"a log append of {size} bytes"
        if self._suspicion or self._known is DiskState.FOREIGN:
            return _failed(self._refusal())
        item = Item("log", self.number, offset=offset, size=size, name=name)
        return self.node.write(self, item, [content])

    async def log_read(self, name: str, offset: int, size: int) -> bytes:
        _check_log_name(name)
        self._check_own()
        found: list[bytes] = []
        while True:
            wanted = min(size, wire.READ_MAX)
            answer = await self.node.ask(
                "GET",
                wire.target(self.number, "log-read", name=name, at=offset, size=wanted),
                limit_s=self.node.options.limit_s + self.node.options.margin_s,
                disk=self,
                size=wanted,
                answer_max=wanted,
            )
            self._learn_from_read(answer)
            found.append(bytes(answer.body or b""))
            offset += answer.size
            size -= answer.size
            if answer.size < wanted or not size:
                return found[0] if len(found) == 1 else b"".join(found)

    async def log_remove(self, name: str) -> None:
        _check_log_name(name)
        self._check_writable()
        await self._call("log-remove", None, name=name)

    async def logs(self) -> list[LogFile]:
        return cast(list[LogFile], await self._call("logs", list[LogFile], answer_max=wire.LIST_MAX))

    # The disk itself.

    async def note_epoch(self, epoch: int) -> None:
        assert epoch >= 0
        self._check_writable()
        await self._call("note-epoch", None, limit_s=self._fence_limit_s, writes=True, epoch=epoch)

    async def noted_epoch(self) -> int:
        return cast(int, await self._call("epoch", int))

    async def fence(self, epoch: int) -> None:
        """Refuse what names an older epoch from now on, durably, beside what the identity file says.

        When it returns, no write of an older epoch is under way and none will be done. A new gateway machine
        calls it before it reads the journal: else the old one could go on acknowledging behind its back.

        Raises: StaleEpoch if a newer one was noted; DiskFailed, DiskMissing, DiskFull.
        """
        await self._call("fence", None, limit_s=self._fence_limit_s, writes=True, epoch=epoch)

    @property
    def _fence_limit_s(self) -> float:
        """The node waits for writes of older epochs, for twice a disk's limit, and then writes itself."""
        return 3 * self.node.options.limit_s + self.node.options.margin_s

    async def usage(self) -> Usage:
        usage = cast(Usage, await self._call("usage", Usage))
        # Devices are numbered by each machine for itself.
        device = xxh3_64_intdigest(f"{self.node.number}:{usage.device}".encode()) >> 1
        return usage._replace(device=device)

    async def verify(self) -> None:
        await self._call("verify", None, writes=True)
        self._suspicion = ""

    def close(self) -> None:
        """The last of a node's disks closes its connections."""
        self._closed = True
        self.node.disks.pop(self.number, None)
        if not self.node.disks:
            self.node.close()

    # Within.

    async def _call(
        self,
        verb: str,
        kind: Any,
        *,
        body: Sequence[Buffer] = (),
        limit_s: float | None = None,
        answer_max: int = wire.ANSWER_MAX,
        same_instance: bool = False,
        writes: bool | None = None,
        **arguments: int | str,
    ) -> Any:
        """A call whose answer is JSON; returns its result as `kind`."""
        self._check_own()
        options = self.node.options
        start = time.perf_counter()
        what = wire.VERBS[verb]
        try:
            answer = await self.node.ask(
                what.method,
                wire.target(self.number, verb, **arguments),
                limit_s=limit_s if limit_s is not None else options.limit_s + options.margin_s,
                disk=self,
                body=body,
                size=max(sum(map(len, body)), 0 if answer_max == wire.ANSWER_MAX else answer_max),
                answer_max=answer_max,
                same_instance=same_instance,
                writes=what.changes if writes is None else writes,
            )
        except Exception:
            self._errors(verb.replace("-", "_"))
            raise
        self._count(verb.replace("-", "_"), start, sum(map(len, body)))
        try:
            success = msgspec.json.decode(answer.body or b"", type=wire.Success)
            self.learn(success.state, success.reason)
            return None if kind is None else msgspec.json.decode(success.result, type=kind)
        except msgspec.MsgspecError as failure:
            raise DiskFailed(f"an answer to {verb} that makes no sense: {failure}") from failure

    def _count(self, what: str, start: float, size: int = 0) -> None:
        count = self.counts.get(what)
        if count is None:
            count = self.counts[what] = OpCount()
        count.add(time.perf_counter() - start, size)

    def _errors(self, what: str) -> None:
        count = self.counts.get(what)
        if count is None:
            count = self.counts[what] = OpCount()
        count.errors += 1

    def _check_writable(self) -> None:
        if self._suspicion or self._known is DiskState.FOREIGN:
            raise self._refusal()

    def _refusal(self) -> Exception:
        if self._known is DiskState.FOREIGN:
            return DiskMissing(f"disk {self.number} of node {self.node.number}: {self._known_reason}")
        return DiskFailed(f"disk {self.number} of node {self.node.number} is suspect: {self._suspicion}")

    def _remember(self, volume: int, index: int, instance: str) -> None:
        files = self._files
        key = (volume, index)
        if files.get(key) == instance:
            return
        files.pop(key, None)
        if len(files) >= FILES_MAX:
            del files[next(iter(files))]
        files[key] = instance


def _end(asked: "asyncio.Future[None] | None") -> None:
    """What was asked for has been done."""
    if asked is not None and not asked.done():
        asked.set_result(None)


def _failed(failure: Exception) -> "asyncio.Future[None]":
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(failure)
    return future


def _decode_failure(answer: Answer) -> Failure:
    try:
        return msgspec.json.decode(answer.body or b"", type=Failure)
    except msgspec.MsgspecError:
        return Failure(wire.BUG, f"the node answered {answer.status}, and not in our words")


def _is_log_name(name: str) -> bool:
    return wire.LOG_NAME.fullmatch(name) is not None


def _check_log_name(name: str) -> None:
    assert _is_log_name(name), f"not a name for a log: {name!r}"


def _groups(views: Iterable[memoryview], size_max: int) -> list[list[memoryview]]:
    """The views in order, cut into groups of exactly `size_max` bytes; the last may be shorter."""
    groups: list[list[memoryview]] = []
    left = 0
    for view in views:
        while len(view):
            if not left:
                groups.append([])
                left = size_max
            piece = view[:left]
            groups[-1].append(piece)
            left -= len(piece)
            view = view[len(piece) :]
    return groups
