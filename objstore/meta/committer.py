"""The committer: the one process that changes metadata.

It owns LMDB's write side and the journal. Clients (workers, upkeep) send batches of
mini-transactions over a Unix socket; it takes what has arrived from all of them, checks each
mini-transaction in order against LMDB and what the earlier ones of the same round change, appends
the resolved round to the journal, waits until every copy is synced, commits LMDB without sync, and
answers. So every acknowledged change is on m+1 disks, and visible to every process.

Each client's last applied batch and its failures are part of the same round, in the journal and in
LMDB: after a death the next committer tells a client what became of a batch, and applies none twice.

Concurrency: one event loop. `_rounds` alone touches the journal and LMDB's write side; the
background steps (fdatasync of LMDB, folding, disks that come back) only set flags for it. A client
that stops reading or sending holds up nobody: its messages are whole before they are looked at, and
answers are buffered up to its window.

A record that fails its checksum fails the mini-transaction that needs it, and nothing else: it is
looked up in snapshot and journal, by another process, and put back. With many of them, or damage to
what holds records together, the state is lost: it is built again.

Ends: on SIGTERM (drain, sync, clean mark), when LMDB fails or
is lost, when no disk takes the journal. It never goes on in doubt: the next start recovers.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import msgspec

from objstore.clock import Clock, SystemClock
from objstore.errors import Corrupt, StoreError
from objstore.ids import Randomness
from objstore.meta.beacon import Beacon
from objstore.meta.journal import (
    APPEND_TIMEOUT_S,
    KIND_BATCH,
    KIND_CLEAN,
    ClientOutcome,
    CopyFailed,
    CrashPoint,
    Journal,
    Resolved,
    Snapshot,
    alone,
    anywhere,
    encode,
    no_crash,
    together,
    writable,
)
from objstore.meta.kv import counter, counter_value
from objstore.meta.kv_lmdb import BatchFailures, ClientRecord, Failure, LmdbState, Rotten
from objstore.meta.log_names import snapshot_name
from objstore.meta.messages import (
    CONFLICT,
    FORMAT,
    LIMIT,
    REMEMBERED_BATCHES,
    REPORT,
    ROTTEN,
    Answer,
    FrameReader,
    Hello,
    ReceivedBatch,
    ReceivedTransaction,
    Welcome,
    advanced,
    decode_batch,
    decode_hello,
    frame,
    narrow,
    packed,
)
from objstore.meta.messages import encode as encode_message
from objstore.meta.recovery import Progress, distrust, recover
from objstore.meta.snapshot import FoldFailed, FoldPlan, LookUp
from objstore.node.disk import Disk, DiskState
from objstore.node.slowness import Slowness, SlownessRules

log = logging.getLogger(__name__)

ROUND_COUNT_MAX = 2_048  # Transactions in a round: about 40 ms of work, so that latency stays bounded.
ROUND_SIZE_MAX = 16 * 1024 * 1024  # Bytes of messages in a round; its journal record is smaller.
HOT_COUNT_MAX = 20_000  # Recently read or written records kept in memory: about 5 MB.
CLIENT_KEPT_US = 3_600_000_000  # An hour, as in snapshots.
CLIENTS_MAX = 1_024  # Connections.
UNVERIFIED = (DiskState.SUSPECT, DiskState.READ_ONLY, DiskState.FAILED)  # As a worker has it.
ANSWERS_SIZE_MAX = 1024 * 1024  # Bytes of unread answers; a client within its window has far less.

ROTTEN_MAX = 32  # Damaged records that are mended one by one: with more, more than they are damaged.
LOOK_UP_AGAIN_S = 300.0  # After a look-up that failed: a copy of the journal must come back first.

# A batch waits for all of its copies, so one that few commits waited for says as much as many do; and with
# two copies the other one is all that there is to hold it against.
SLOW_COPIES = SlownessRules(appends_min=1, peers_min=2)

CopyTimes = Callable[[int], tuple[int, float]]
"""By a disk's number: how many batches this process has appended there, and the seconds that took."""

Folder = Callable[[FoldPlan], Awaitable[Snapshot]]
"""Makes a snapshot by the plan, in another process. Raises: FoldFailed, Corrupt."""

Finder = Callable[[LookUp], Awaitable[dict[bytes, bytes | None]]]
"""Looks keys up in snapshot and journal, in another process. Raises: Corrupt, Unavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitterOptions:
    append_timeout_s: float = APPEND_TIMEOUT_S
    sync_interval_s: float = 30.0  # Between two fdatasyncs of LMDB.
    sync_timeout_s: float = 60.0  # For one; past it the state is lost.
    fold_size_min: int = 64 * 1024 * 1024  # Bytes of journal below which nothing is folded.
    fold_share: float = 0.25  # Fold when the journal exceeds this share of the snapshot.
    fold_segments_max: int = 64  # Each start leaves one: bounds the header, and recovery.
    housekeeping_s: float = 5.0  # Between two looks at disks, fold and dead readers.
    verify_interval_s: float = 60.0  # Before a disk that failed is tried again.
    short_s: float = 0.5  # Between two looks for disks while the journal lacks copies.


@dataclass(slots=True)
class CommitterStats:
    """Plain counters for the metrics."""

    transactions: int = 0
    refused: int = 0
    rounds: int = 0
    journal_size: int = 0  # Bytes appended, once per round, whatever the copies.
    rolls: int = 0
    folds: int = 0
    clients: int = 0
    rotten: int = 0  # Records that failed their checksum.
    mended: int = 0  # Of those, put back from the journal.
    damaged: int = 0  # Rotten now.


def untimed(number: int) -> tuple[int, float]:
    """Nobody measures: no copy is slow."""
    return 0, 0.0


class StateLost(Exception):
    """LMDB's file can no longer be trusted: this process ends, the next start builds another."""


async def run_committer(
    *,
    socket_path: Path | str,
    disks: Sequence[Disk],
    copies: int,
    cluster: bytes,
    state_directories: Sequence[Path],
    ready: Callable[[], None],
    stop: asyncio.Event,
    folder: Folder | None = None,
    finder: Finder | None = None,
    clock: Clock | None = None,
    randomness: Randomness = os.urandom,
    options: CommitterOptions | None = None,
    trust_state: bool = True,
    boot: str | None = None,
    progress: Progress | None = None,
    crash: CrashPoint = no_crash,
    stats: CommitterStats | None = None,
    forget: bool = False,
    served: Path | None = None,
    beacon: Beacon | None = None,
    term: int = 0,
    allowed: Callable[[int], bool] = anywhere,
    machine: Callable[[int], Hashable] = alone,
    copy_times: CopyTimes = untimed,
) -> None:
    """Recover, serve until `stop` is set, then drain and leave a clean mark.

    Args:
        socket_path: where clients connect; an old socket there is removed.
        disks: every disk of the cluster, the missing ones too. This process alone opens the logs.
        copies: m+1 journal copies; with fewer healthy disks there are fewer, and a warning.
        cluster: the cluster's id, 16 bytes.
        state_directories: where LMDB may live, the preferred first; normally `meta` on each disk.
            The parent of each must exist: an unmounted disk is never taken for an empty one.
        ready: called once, when clients can connect.
        stop: set by SIGTERM's handler.
        folder: makes snapshots, in another process (see fold.py); None: the journal only grows.
        finder: looks damaged records up, as above; None: they stay until they are overwritten.
        trust_state: False after a death by SIGBUS.
        forget, served, term, allowed, machine: see `recover`.
        copy_times: how long commits wait for each disk's copy: slow ones move to other machines.
        beacon: where it shows which state is in force, before any client can commit to it.

    Raises: MetaUnavailable, StateLost, Corrupt, TooFewDisks, StaleEpoch; lmdb.Error when a commit fails. In
        each case nothing that was acknowledged is lost, and the process must end: a new one recovers.
    """
    options = options or CommitterOptions()
    clock = clock or SystemClock()
    journal, state, rebuilt, reason = await recover(
        disks,
        copies=copies,
        cluster=cluster,
        state_directories=state_directories,
        clock=clock,
        randomness=randomness,
        trust_state=trust_state,
        boot=boot,
        progress=progress,
        crash=crash,
        append_timeout_s=options.append_timeout_s,
        forget=forget,
        served=served,
        term=term,
        allowed=allowed,
        machine=machine,
    )
    log.info(
        "metadata recovered",
        extra={"epoch": journal.header.epoch, "state": str(state.path), "rebuilt": rebuilt, "why": reason},
    )
    if beacon is not None:
        beacon.show(state.path, state.inode)
    committer = Committer(
        journal,
        state,
        folder=folder,
        finder=finder,
        clock=clock,
        options=options,
        crash=crash,
        stats=stats,
        copy_times=copy_times,
    )
    await committer.serve(str(socket_path), ready, stop)


class _Message:
    """One batch of one client, as it arrived."""

    __slots__ = ("batch", "client", "size")

    def __init__(self, client: "_Client", batch: ReceivedBatch, size: int) -> None:
        self.client = client
        self.batch = batch
        self.size = size


class Committer:
    """See the module. `serve` once."""

    def __init__(
        self,
        journal: Journal,
        state: LmdbState,
        *,
        folder: Folder | None,
        finder: Finder | None = None,
        clock: Clock,
        options: CommitterOptions,
        crash: CrashPoint = no_crash,
        stats: CommitterStats | None = None,
        copy_times: CopyTimes = untimed,
    ) -> None:
        self.stats = stats or CommitterStats()
        self._copy_times = copy_times
        self._slowness = Slowness(spare=max(1, journal.copies - 1), clock=clock, rules=SLOW_COPIES)
        self._journal = journal
        self._state = state
        self._folder = folder
        self._finder = finder
        self._clock = clock
        self._options = options
        self._crash = crash
        self._applied: dict[bytes, ClientRecord] = state.clients()
        self._hot: dict[bytes, bytes | None] = {}
        self._arrived: deque[_Message] = deque()
        self._wake = asyncio.Event()
        self._clients: dict[bytes, _Client] = {}
        self._connections: set[_Client] = set()
        self._stopping = False
        # Set by the background steps, consumed by `_rounds`.
        self._folded: Snapshot | None = None
        self._want_roll = ""
        self._fold_wanted: FoldPlan | None = None
        self._failure: BaseException | None = None
        self._fold_task: asyncio.Task[None] | None = None
        self._fold_after = 0.0
        self._verify_after: dict[int, float] = {}
        self._tried_at: dict[int, float] = {}  # When a disk was last verified for want of copies.
        self._rotten: dict[bytes, int] = {}  # Damaged records -> which finding of ours: it may rot again.
        self._true: dict[
            bytes, tuple[int, bytes | None]
        ] = {}  # Of those: finding, and the value it must have.
        self._look_up_task: asyncio.Task[None] | None = None
        self._look_up_after = 0.0

    async def serve(self, socket_path: str, ready: Callable[[], None], stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            os.unlink(socket_path)
        except FileNotFoundError:
            pass
        await asyncio.to_thread(self._state.read_ahead)
        server = await loop.create_unix_server(lambda: _Client(self), socket_path)
        os.chmod(socket_path, 0o600)
        background = [
            loop.create_task(self._watch(step))
            for step in (
                self._sync_regularly(),
                self._keep_house(),
                self._find_copies(),
                self._await_stop(stop),
            )
        ]
        try:
            ready()
            await self._rounds()
            server.close()
            # Housekeeping changes LMDB, too: nothing may once it is synced for the mark.
            for step in background:
                step.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._leave_clean_mark()
        finally:
            server.close()
            tasks = [task for task in (*background, self._fold_task, self._look_up_task) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in list(self._connections):
                client.close()
            self._state.close()

    # Rounds: the only place where anything changes.

    async def _rounds(self) -> None:
        while True:
            if not self._arrived and not self._stopping:
                await self._wake.wait()
            self._wake.clear()
            if self._failure is not None:
                if isinstance(self._failure, StateLost):
                    await self._disown_state()
                raise self._failure
            if self._want_roll or self._folded is not None:
                await self._roll(self._want_roll)
            if self._true:
                await self._mend()
            messages = self._gather()
            if messages:
                await self._round(messages)
            elif self._stopping:
                return

    def _gather(self) -> list[_Message]:
        messages: list[_Message] = []
        count = size = 0
        arrived = self._arrived
        while arrived and count < ROUND_COUNT_MAX and size < ROUND_SIZE_MAX:
            message = arrived.popleft()
            messages.append(message)
            count += len(message.batch.transactions)
            size += message.size
        return messages

    async def _round(self, messages: list[_Message]) -> None:
        overlay: dict[bytes, bytes | None] = {}
        sums: dict[bytes, int] = {}
        answers: list[tuple[_Client, Answer]] = []
        outcomes: dict[bytes, tuple[int, list[BatchFailures]]] = {}
        for message in messages:
            client, (number, transactions) = message.client, message.batch
            last, failures = outcomes.get(client.id, (0, []))
            applied = self._applied.get(client.id)
            if last == 0 and applied is not None:
                last = applied.number
            if number <= last:
                answers.append((client, self._looked_up(client.id, number, last, failures)))
                continue
            try:
                refused = self._resolve(transactions, overlay, sums)
            except Corrupt as damage:  # No record's: of what leads to one.
                await self._lose_state(f"{self._state.path} is damaged: {damage}")
            if refused:
                failures = [*failures, BatchFailures(number, refused)]
                self.stats.refused += len(refused)
            outcomes[client.id] = number, failures
            self.stats.transactions += len(transactions)
            answers.append((client, Answer(number, True, refused)))
        if outcomes:
            overlay.update({key: counter_value(total) for key, total in sums.items()})
            await self._make_durable(overlay, outcomes)
        for client, answer in answers:
            client.answer(answer)

    async def _lose_state(self, why: str) -> NoReturn:
        """Let no start trust this state. Raises: StateLost."""
        self._failure = StateLost(why)
        await self._disown_state()
        raise self._failure

    async def _apply(
        self,
        put: dict[bytes, bytes],
        delete: Sequence[bytes] = (),
        clients: Mapping[bytes, ClientRecord] | None = None,
    ) -> None:
        """Commit to LMDB, up to the journal's end. Raises: StateLost, lmdb.Error."""
        try:
            self._state.commit(put, delete, self._journal.end(), clients or {})
        except Corrupt as damage:  # Again at every start, if that state were trusted.
            await self._lose_state(f"{self._state.path} is damaged: {damage}")

    def _looked_up(self, client: bytes, number: int, last: int, fresh: list[BatchFailures]) -> Answer:
        """The outcome of a batch that was applied before."""
        if number <= last - REMEMBERED_BATCHES:
            return Answer(number, False, [])
        record = self._applied.get(client)
        for one in [*(record.failures if record else []), *fresh]:
            if one.number == number:
                return Answer(number, True, one.failures)
        return Answer(number, True, [])

    def _resolve(
        self,
        transactions: list[ReceivedTransaction],
        overlay: dict[bytes, bytes | None],
        sums: dict[bytes, int],
    ) -> list[Failure]:
        """Check each in order; what passes goes into `overlay` (None: deleted) and `sums` (counters,
        so that a hot one is coded once a round). Returns the refusals."""
        refused: list[Failure] = []
        hot = self._hot
        read = self._state.get
        for index, (expect, put, delete, add) in enumerate(transactions):
            failure: Failure | None = None
            new: list[tuple[bytes, int]] = []
            try:
                for key, expected in expect.items():
                    if key in overlay:
                        value = overlay[key]
                    elif key in sums:
                        value = counter_value(sums[key])
                    elif key in hot:
                        value = hot[key]
                    else:
                        value = hot[key] = read(key)
                    if value != expected:
                        failure = Failure(index, CONFLICT, key)
                        break
                if failure is None:
                    for key, (delta, at_most) in add.items():
                        if key in sums:
                            held = sums[key]
                        else:
                            if key in overlay:
                                value = overlay[key]
                            elif key in hot:
                                value = hot[key]
                            else:
                                value = hot[key] = read(key)
                            held = counter(value)
                        change = delta if delta.__class__ is int else narrow(delta)
                        if at_most is not None and change > 0 and held + change > narrow(at_most):
                            failure = Failure(index, LIMIT, key, packed(held), at_most)
                            break
                        new.append((key, held + change))
            except Rotten as rotten:
                self._found_rotten(rotten.key)
                failure = Failure(index, ROTTEN, rotten.key)
            if failure is not None:
                refused.append(failure)
                continue
            # A key is in `overlay` or in `sums`, never in both.
            if delete or put:
                for key in delete:
                    overlay[key] = None
                    sums.pop(key, None)
                overlay.update(put)
                if not sums.keys().isdisjoint(put):
                    for key in put:
                        sums.pop(key, None)
            for key, total in new:
                overlay.pop(key, None)
                sums[key] = total
        return refused

    async def _make_durable(
        self,
        overlay: dict[bytes, bytes | None],
        outcomes: dict[bytes, tuple[int, list[BatchFailures]]],
    ) -> None:
        put = {key: value for key, value in overlay.items() if value is not None}
        delete = [key for key, value in overlay.items() if value is None] if len(put) < len(overlay) else []
        payload = encode(
            Resolved(
                [ClientOutcome(client, number, fail) for client, (number, fail) in outcomes.items()],
                put,
                delete,
            )
        )
        # 1. The journal: synced on every member, or on every member of a new epoch.
        while True:
            try:
                await self._journal.append(KIND_BATCH, payload)
                break
            except CopyFailed as failure:
                await self._roll(str(failure))
        self.stats.journal_size += self._journal.position.offset - self._journal.position.start

        # 2. The state. It need not be synced: the journal is the truth.
        if not self._state.in_place():
            self._failure = StateLost(f"the file at {self._state.path} is no longer the one that was opened")
            await self._disown_state()
            raise self._failure
        now_us = self._clock.now_us()
        records = {
            client: advanced(self._applied.get(client), number, now_us, failures)
            for client, (number, failures) in outcomes.items()
        }
        self._crash("committer.commit.before")
        await self._apply(put, delete, records)
        self._crash("committer.commit.after")
        self._applied.update(records)

        # 3. Memory, now that it is true.
        hot = self._hot
        if len(hot) > HOT_COUNT_MAX:
            hot.clear()
        hot.update(overlay)
        if self._rotten:
            for key in overlay.keys() & self._rotten.keys():  # Written anew.
                del self._rotten[key]
            self.stats.damaged = len(self._rotten)
        self.stats.rounds += 1

    # Epochs.

    async def _roll(self, why: str) -> None:
        """Open a new epoch and record it in LMDB before its first batch."""
        snapshot, self._folded, self._want_roll = self._folded, None, ""
        await self._journal.roll(state=self._state.state_id(), snapshot=snapshot)
        await self._apply({})
        self.stats.rolls += 1
        log.info(
            "journal epoch opened",
            extra={
                "epoch": self._journal.header.epoch,
                "disks": self._journal.header.members,
                "why": why or "snapshot",
            },
        )
        if snapshot is not None:
            self.stats.folds += 1
            self._journal.keep.discard(snapshot.name)
            await self._journal.clean_up()
        plan, self._fold_wanted = self._fold_wanted, None
        if plan is not None and self._folder is not None and self._fold_task is None:
            self._start_fold()

    async def _disown_state(self) -> None:
        """Say in the journal that no state is to be trusted: a failed fdatasync is reported once only.

        And beside the state, first: whatever fails LMDB's disk may fail the journal's too.
        """
        distrust(self._state.path)
        try:
            await self._journal.roll(state=b"")
        except StoreError as failure:
            log.error("the loss of the state could not be recorded", extra={"failure": repr(failure)})

    async def _leave_clean_mark(self) -> None:
        """The state synced, then a mark in the journal that says so and voids itself by what follows."""
        try:
            async with asyncio.timeout(self._options.sync_timeout_s):
                await asyncio.to_thread(self._state.sync)
        except (OSError, TimeoutError) as failure:
            log.error("the metadata state could not be synced", extra={"failure": repr(failure)})
            await self._disown_state()
            return
        self._crash("committer.clean.synced")
        try:
            await self._journal.append(KIND_CLEAN, b"")
        except CopyFailed as failure:
            log.warning("no clean mark", extra={"failure": str(failure)})

    # Background steps. They set flags, and wake `_rounds`.

    async def _watch(self, step: Awaitable[None]) -> None:
        """A background step that fails ends the committer, as a bug in `_rounds` would."""
        try:
            await step
        except asyncio.CancelledError:
            raise
        except BaseException as failure:
            self._failure = failure
            self._wake.set()

    async def _await_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping = True
        for client in self._connections:
            client.pause()
        self._wake.set()

    async def _sync_regularly(self) -> None:
        """Learn every 30 s whether the kernel could write LMDB's pages back."""
        while True:
            await asyncio.sleep(self._options.sync_interval_s)
            try:
                async with asyncio.timeout(self._options.sync_timeout_s):
                    await asyncio.to_thread(self._state.sync)
            except (OSError, TimeoutError) as failure:
                raise StateLost(f"{self._state.path} could not be synced: {failure!r}") from failure

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(self._options.housekeeping_s)
            if not self._state.in_place():
                raise StateLost(f"the file at {self._state.path} is no longer the one that was opened")
            self._state.drop_dead_readers()
            self._forget_clients()
            await self._try_failed_disks()
            await self._journal.check_term()
            self._judge_copies()
            self._look_at_members()
            self._consider_fold()
            self._consider_look_up()

    async def _find_copies(self) -> None:
        """While the journal lacks copies, a disk whose node is back is not kept waiting.

        The next loss may be one too many."""
        while True:
            await asyncio.sleep(self._options.short_s)
            if len(self._journal.members) >= self._journal.copies:
                continue
            for disk in self._journal.disks:
                now, tried = self._clock.monotonic(), self._tried_at.get(disk.number)
                if disk.number not in self._journal.failed or disk.state in UNVERIFIED:
                    continue
                if tried is None or now - tried >= self._options.verify_interval_s:
                    self._tried_at[disk.number] = now
                    await self._verify(disk)
            self._look_at_members()

    def _judge_copies(self) -> None:
        """Which disks answer so late beside the other copies' that commits should not wait for them."""
        times = {disk.number: self._copy_times(disk.number) for disk in self._journal.disks}
        for change in self._slowness.judge(times):
            about = {"disk": change.disk, "why": change.words}
            log.warning("a journal copy is slow" if change.slow else "its copy may come back", extra=about)
        self._journal.slow = set(self._slowness.resting)

    def _look_at_members(self) -> None:
        journal = self._journal
        chosen = journal.chosen(journal.eligible())
        eligible = len(journal.eligible())
        if len(journal.members) < min(journal.copies, eligible):
            self._ask_for_roll("more copies are possible again")
        elif eligible and any(not writable(disk) for disk in journal.members):
            self._ask_for_roll("a member is no longer healthy")
        elif eligible and any(not journal.allowed(disk.number) for disk in journal.members):
            self._ask_for_roll("a member may hold no metadata any more")
        elif len(journal.machines(journal.members)) < len(journal.machines(chosen)):
            self._ask_for_roll("copies can stand on more machines")
        elif sum(map(journal.is_slow, journal.members)) > sum(map(journal.is_slow, chosen)):
            self._ask_for_roll("a member is slow")

    def _ask_for_roll(self, why: str) -> None:
        self._want_roll = why
        self._wake.set()

    async def _try_failed_disks(self) -> None:
        """A disk that failed the journal, or was away, is used again only after it passed a verification.

        A disk that was away when the epoch was opened failed nothing here; but with it the journal may have
        all its copies again, and in this process nobody else looks at it.
        """
        now = self._clock.monotonic()
        for disk in self._journal.disks:
            number = disk.number
            if number not in self._journal.failed and disk.state not in UNVERIFIED:
                self._verify_after.pop(number, None)
                continue
            due = self._verify_after.setdefault(number, now + self._options.verify_interval_s)
            if due > now:
                continue
            del self._verify_after[number]
            await self._verify(disk)

    async def _verify(self, disk: Disk) -> None:
        if not await together([disk], lambda disk: disk.verify(), 10.0) and writable(disk):
            self._journal.failed.pop(disk.number, None)
            log.info("a disk passed its verification", extra={"disk": disk.number})

    def _forget_clients(self) -> None:
        oldest_us = self._clock.now_us() - CLIENT_KEPT_US
        gone = [
            client
            for client, record in self._applied.items()
            if record.time_us < oldest_us and client not in self._clients
        ]
        if gone:
            for client in gone:
                del self._applied[client]
            self._state.commit({}, (), self._state.end(), {}, forget=gone)

    # Folding.

    def _consider_fold(self) -> None:
        journal, options = self._journal, self._options
        if self._folder is None or self._fold_task is not None or self._folded is not None:
            return
        if self._clock.monotonic() < self._fold_after:
            return
        snapshot_size = journal.header.snapshot.size if journal.header.snapshot else 0
        due = journal.unfolded_size > max(options.fold_size_min, options.fold_share * snapshot_size)
        if not due and len(journal.header.segments) <= options.fold_segments_max:
            return
        # Close the present file first, so that the fold reads only what changes no more.
        self._fold_wanted = FoldPlan(b"", "", None, [], [], [], 0)
        self._ask_for_roll("the journal is to be folded")

    def _start_fold(self) -> None:
        journal = self._journal
        segments = journal.header.segments
        if not segments:
            return
        members = journal.header.members
        fit = journal.chosen(journal.eligible(), lambda disk: disk.number not in members)
        targets = [disk.number for disk in fit]
        plan = FoldPlan(
            cluster=journal.cluster,
            name=snapshot_name(segments[-1].sequence, journal.header.epoch),
            snapshot=journal.header.snapshot,
            segments=segments,
            sources=[disk.number for disk in journal.disks],
            targets=targets,
            created_us=self._clock.now_us(),
        )
        journal.keep.add(plan.name)
        self._fold_task = asyncio.get_running_loop().create_task(self._fold(plan))

    async def _fold(self, plan: FoldPlan) -> None:
        assert self._folder is not None
        try:
            self._folded = await self._folder(plan)
            self._ask_for_roll("")
        except FoldFailed as failure:
            # Nothing has changed. Avoid those disks, and try again in a while.
            log.warning("a fold failed", extra={"failure": str(failure)})
            for number, why in failure.failures.items():
                self._journal.avoid(number, why)
            self._fold_after = self._clock.monotonic() + 30.0
            self._journal.keep.discard(plan.name)
        except (StoreError, OSError) as failure:
            log.error("a fold failed", extra={"failure": repr(failure)})
            self._fold_after = self._clock.monotonic() + 300.0
            self._journal.keep.discard(plan.name)
        except BaseException as failure:
            self._failure = failure
            self._wake.set()
            raise
        finally:
            self._fold_task = None

    # Damaged records.

    def _found_rotten(self, key: bytes) -> None:
        """Have the record mended: from memory if it is there, else from the journal."""
        if key in self._rotten:
            return
        self.stats.rotten += 1
        finding = self._rotten[key] = self.stats.rotten
        self.stats.damaged = len(self._rotten)
        log.error("a metadata record fails its checksum", extra={"key": repr(key[:200])})
        if len(self._rotten) > ROTTEN_MAX:
            self._give_up_state(f"more than {ROTTEN_MAX} records of {self._state.path} fail their checksums")
        elif key in self._hot:
            self._true[key] = finding, self._hot[key]
            self._wake.set()

    def _give_up_state(self, why: str) -> None:
        self._failure = self._failure or StateLost(why)
        self._wake.set()

    def _look_at(self, keys: Iterable[bytes]) -> None:
        """A client could not read these: see for ourselves."""
        for key in keys:
            try:
                self._state.get(key)
            except Rotten as rotten:
                self._found_rotten(rotten.key)
            except Corrupt as damage:
                self._give_up_state(f"{self._state.path} is damaged: {damage}")

    def _consider_look_up(self) -> None:
        keys = [key for key in self._rotten if key not in self._true]
        if not keys or self._finder is None or self._look_up_task is not None:
            return
        if self._clock.monotonic() >= self._look_up_after:
            self._look_up_task = asyncio.get_running_loop().create_task(self._look_up(self._finder, keys))

    async def _look_up(self, finder: Finder, keys: list[bytes]) -> None:
        """What the keys must be, by snapshot and journal. What is written meanwhile is rotten no more."""
        journal = self._journal
        findings = {key: self._rotten[key] for key in keys}
        wanted = LookUp(keys, journal.header.snapshot, journal.segments_with_current())
        kept = {one.name for one in wanted.segments} | ({wanted.snapshot.name} if wanted.snapshot else set())
        kept -= journal.keep
        journal.keep |= kept
        try:
            found = await finder(wanted)
            self._true.update((key, (findings[key], value)) for key, value in found.items())
            self._wake.set()
        except (StoreError, OSError, FoldFailed) as failure:
            log.error("damaged records could not be looked up", extra={"failure": repr(failure)})
            self._look_up_after = self._clock.monotonic() + LOOK_UP_AGAIN_S
        except Exception as failure:
            self._failure = failure
            self._wake.set()
        finally:
            journal.keep -= kept
            self._look_up_task = None

    async def _mend(self) -> None:
        """Put true values back. Not into the journal: it has them. Raises: StateLost, lmdb.Error."""
        true, self._true = self._true, {}
        put: dict[bytes, bytes] = {}
        for key, (finding, value) in true.items():
            if self._rotten.get(key) != finding:
                continue  # Written anew meanwhile.
            if value is None:
                # The key itself is wrong, and another key is missing: who knows how many.
                await self._lose_state(f"{self._state.path} holds a key that the journal does not know")
            put[key] = value
        if not put:
            return
        await self._apply(put)
        self._hot.update(put)
        for key in put:
            del self._rotten[key]
            log.warning("a metadata record was mended", extra={"key": repr(key[:200])})
        self.stats.mended += len(put)
        self.stats.damaged = len(self._rotten)

    # Clients.

    def _greet(self, client: "_Client", hello: Hello) -> None:
        if hello.format != FORMAT or len(hello.client) != 16 or len(self._connections) > CLIENTS_MAX:
            client.close()
            return
        before = self._clients.get(hello.client)
        if before is not None:
            # The client has connected again. What it sent on the old connection it sends again.
            self._arrived = deque(message for message in self._arrived if message.client is not before)
            before.close()
        client.id = hello.client
        self._clients[hello.client] = client
        self.stats.clients = len(self._clients)
        applied = self._applied.get(hello.client)
        device, inode = self._state.inode
        client.send(
            frame(
                encode_message(
                    Welcome(
                        FORMAT,
                        str(self._state.path),
                        device,
                        inode,
                        self._journal.header.epoch,
                        os.getpid(),
                        applied.number if applied else 0,
                    )
                )
            )
        )

    def _receive(self, client: "_Client", payload: bytes) -> None:
        batch = decode_batch(payload)
        if batch.number == REPORT:
            self._look_at(key for transaction in batch.transactions for key in transaction.expect)
            return
        self._arrived.append(_Message(client, batch, len(payload)))
        client.unanswered += 1
        self._wake.set()

    def _gone(self, client: "_Client") -> None:
        self._connections.discard(client)
        if client.id and self._clients.get(client.id) is client:
            del self._clients[client.id]
        self.stats.clients = len(self._clients)


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, committer: Committer) -> None:
        self.id = b""  # Empty until greeted.
        self.unanswered = 0
        self._committer = committer
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass.
        self._committer._connections.add(self)
        if self._committer._stopping:
            self.close()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                if self.id:
                    self._committer._receive(self, payload)
                    if self.unanswered > REMEMBERED_BATCHES:
                        raise ValueError("more unanswered batches than are remembered")
                else:
                    self._committer._greet(self, decode_hello(payload))
        except (ValueError, msgspec.MsgspecError) as failure:
            log.error("a client was cut off", extra={"failure": repr(failure)})
            self.close()

    def answer(self, answer: Answer) -> None:
        self.unanswered -= 1
        self.send(frame(encode_message(answer)))

    def send(self, data: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size() > ANSWERS_SIZE_MAX:
            log.warning("a client does not read its answers and was cut off")
            self.close()
            return
        transport.write(data)

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, failure: Exception | None) -> None:
        self._transport = None
        self._committer._gone(self)
