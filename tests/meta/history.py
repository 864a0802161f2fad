"""Random histories of a journal whose disks fail, return with old files and tear.

The rules of the world: six disks, m = 2, and never more than two of them away, damaged or behind at
once. Everything else may happen in any order: crashes at any named point (also while recovering from
one), power cuts that leave LMDB torn or old, disks that die under a write, come back later with the
files they had, or come back empty, LMDB's disk among them; clean stops; folds.

The law: after each recovery every acknowledged batch is there, once, unchanged, and of the one round
in doubt all or nothing, as the clients' records say.
"""

import os
import random
import shutil
from pathlib import Path

from objstore.clock import SystemClock
from objstore.errors import DiskFailed, StoreError
from objstore.meta.committer import Committer, CommitterOptions, StateLost, _Message
from objstore.meta.journal import CopyFailed
from objstore.meta.kv import counter
from objstore.meta.log_names import snapshot_name
from objstore.meta.messages import Answer, ReceivedBatch, ReceivedTransaction
from objstore.meta.recovery import STATE_PREFIX, recover
from objstore.meta.snapshot import FoldFailed, FoldPlan, fold
from tests.sim.memory_disk import MemoryDisk

DISK_COUNT = 6
M = 2
CLUSTER = b"one cluster only"
COUNTER = b"cn"


class Crash(BaseException):
    """The process ends here. Not an Exception: nothing may catch it."""


class FakeClient:
    """The committer's end of a client, and the client's own memory of what it sent."""

    def __init__(self, name: bytes) -> None:
        self.id = name
        self.unanswered = 0
        self.number = 0
        self.pending: list[ReceivedBatch] = []
        self.answers: list[Answer] = []

    def answer(self, answer: Answer) -> None:
        self.answers.append(answer)


class World:
    """One history. `seed` decides everything."""

    def __init__(self, seed: int, root: Path) -> None:
        self.rng = random.Random(seed)
        self.root = root
        self.disks = [MemoryDisk(number, yields=False) for number in range(1, DISK_COUNT + 1)]
        for disk in self.disks:
            (root / f"disk{disk.number}").mkdir()
        self.away: dict[int, str] = {}  # Number -> why; at most M.
        self.behind: set[int] = set()  # Came back empty: counts as away until an epoch is opened.
        self.boot = 1
        self.epoch = 0
        self.clients = [FakeClient(bytes([number]) * 16) for number in range(3)]
        self.acknowledged: dict[bytes, bytes] = {}
        self.total = 0  # Of the counter.
        self.in_doubt: list[tuple[FakeClient, ReceivedBatch]] = []
        self.committer: Committer | None = None
        self.crash_in = 0  # Crash points until the next crash; 0: none planned.
        self.crashes: list[str] = []
        self.log: list[str] = []
        self.serial = 0
        self.old_states: list[Path] = []

    # The world.

    def point(self, name: str) -> None:
        if name == "committer.clean.synced":
            assert self.committer is not None
            for path in self.root.glob(f"*/meta/{self.committer._state.path.name}"):
                shutil.copyfile(path / "data.mdb", self.root / f"synced-{path.name}")
        if self.crash_in:
            self.crash_in -= 1
            if self.crash_in == 0:
                self.crashes.append(name)
                self.log.append(f"crash at {name}")
                raise Crash(name)

    def directories(self) -> list[Path]:
        return [self.root / f"disk{disk.number}" / "meta" for disk in self.disks]

    def take_away(self, disk: MemoryDisk, mood: str) -> None:
        self.log.append(f"disk {disk.number} {mood}")
        disk.mood = mood
        self.away[disk.number] = mood
        if mood in ("missing", "dead"):
            os.rename(self.root / f"disk{disk.number}", self.root / f"away{disk.number}")

    def bring_back(self, disk: MemoryDisk, *, empty: bool) -> None:
        self.log.append(f"disk {disk.number} returns{' empty' if empty else ''}")
        mood = self.away.pop(disk.number)
        disk.mood = "well"
        away = self.root / f"away{disk.number}"
        if away.exists():
            os.rename(away, self.root / f"disk{disk.number}")
        if empty:
            disk.log_files.clear()
            disk.epoch = 0
            shutil.rmtree(self.root / f"disk{disk.number}")
            (self.root / f"disk{disk.number}").mkdir()
        if empty or mood == "torn":
            self.behind.add(disk.number)

    def spare(self) -> bool:
        return len(set(self.away) | self.behind) < M

    # The process.

    async def start(self) -> None:
        """Recover until it succeeds; crashes on the way are part of the history."""
        self.stop_process()
        for _ in range(20):
            for disk in self.disks:
                disk.suspicion = ""  # A new process knows nothing; it opens the disks again.
            try:
                journal, state, _, why = await recover(
                    self.disks,
                    copies=M + 1,
                    cluster=CLUSTER,
                    state_directories=self.directories(),
                    clock=SystemClock(),
                    randomness=self.rng.randbytes,
                    boot=f"boot {self.boot}",
                    crash=self.point,
                )
            except Crash:
                if self.rng.random() < 0.3:
                    self.cut_power()
                self.crash_in = self.rng.choice([0, 0, self.rng.randrange(1, 12)])
                continue
            self.log.append(f"epoch {journal.header.epoch} on {journal.header.members} {why}")
            self.behind.clear()
            self.epoch = journal.header.epoch
            self.committer = Committer(
                journal,
                state,
                folder=None,
                clock=SystemClock(),
                options=CommitterOptions(),
                crash=self.point,
            )
            self.check_state()
            return
        raise AssertionError("recovery never ended")

    def stop_process(self) -> None:
        if self.committer is not None:
            self.committer._state.close()
            self.committer = None

    def cut_power(self) -> None:
        """Unsynced bytes of the journal go, wholly or in part; LMDB is left torn, or old, or as it was."""
        self.stop_process()
        self.boot += 1
        self.log.append("power cut")
        for disk in self.disks:
            disk.lose_power(self.rng)
        for path in self.root.glob(f"*/meta/{STATE_PREFIX}*"):
            self.tear(path)

    def tear(self, path: Path) -> None:
        data = path / "data.mdb"
        synced = self.root / f"synced-{path.name}"
        if not data.exists() or (synced.exists() and synced.read_bytes() == data.read_bytes()):
            return  # Nothing was written since its fdatasync: a power cut takes nothing.
        choice = self.rng.randrange(3)
        if choice == 0:
            content = data.read_bytes()
            at = self.rng.randrange(len(content))
            data.write_bytes(content[:at] + bytes(len(content) - at))
        elif choice == 1 and self.old_copy(path).exists():
            data.write_bytes(self.old_copy(path).read_bytes())

    def old_copy(self, path: Path) -> Path:
        return self.root / f"old-{path.name}"

    # What the store does.

    async def commit_some(self) -> None:
        """One round of batches from some clients; learn the outcome, or be left in doubt."""
        assert self.committer is not None
        senders = self.rng.sample(self.clients, self.rng.randrange(1, 4))
        messages: list[_Message] = []
        self.in_doubt = []
        for client in senders:
            if client.pending:
                batch = client.pending[0]  # Sent again after a crash.
            else:
                client.number += self.rng.choice([1, 1, 1, 5])
                batch = ReceivedBatch(client.number, [self.transaction() for _ in range(2)])
                client.pending = [batch]
            self.in_doubt.append((client, batch))
            messages.append(_Message(client, batch, 100))  # type: ignore[arg-type]
        try:
            await self.committer._round(messages)
        except (Crash, StateLost):
            await self.start_again()
            return
        except StoreError as failure:
            self.log.append(repr(failure))
            await self.start_again()
            return
        self.acknowledge()

    def transaction(self) -> ReceivedTransaction:
        self.serial += 1
        key = b"k%d" % self.rng.randrange(12)
        put = {b"u%06d" % self.serial: b"unique", key: b"v%d" % self.serial}
        delete = [b"k%d" % self.rng.randrange(12, 20)]
        put[b"k%d" % self.rng.randrange(20, 24)] = b"x" * self.rng.randrange(1, 900)
        if self.rng.random() < 0.3:
            put[delete[0] + b"\xff" * 600 + b"%d" % self.serial] = b"long"
        return ReceivedTransaction({}, put, delete, {COUNTER: (self.serial, None)})

    def apply(self, values: dict[bytes, bytes], total: int, batch: ReceivedBatch) -> int:
        for _, put, delete, add in batch.transactions:
            for key in delete:
                values.pop(key, None)
            values.update(put)
            delta = add[COUNTER][0]
            assert isinstance(delta, int)
            total += delta
        return total

    def acknowledge(self) -> None:
        for client, batch in self.in_doubt:
            answer = client.answers.pop()
            assert answer.number == batch.number
            assert answer.known
            assert not answer.failures
            client.pending = []
            if batch.number > self.applied_before.get(client.id, 0):
                self.total = self.apply(self.acknowledged, self.total, batch)
        self.in_doubt = []
        self.remember()
        assert self.committer is not None
        epoch = self.committer._journal.header.epoch
        if epoch != self.epoch:  # Opened with every disk that is here: all of them are up to date.
            self.epoch = epoch
            self.behind.clear()

    applied_before: dict[bytes, int] = {}

    def remember(self) -> None:
        assert self.committer is not None
        self.applied_before = {client: record.number for client, record in self.committer._applied.items()}

    async def start_again(self) -> None:
        """After a crash in a round: recover, and find all or nothing of what was in doubt."""
        self.log.append("killed")
        if self.committer is not None and self.rng.random() < 0.25:
            self.keep_old_copy()
        self.stop_process()
        if self.rng.random() < 0.4:
            self.cut_power()
        self.crash_in = self.rng.choice([0, 0, self.rng.randrange(1, 12)])
        await self.start()

    def keep_old_copy(self) -> None:
        assert self.committer is not None
        path = self.committer._state.path
        if (path / "data.mdb").exists():
            shutil.copyfile(path / "data.mdb", self.old_copy(path))

    def check_state(self) -> None:
        """The law."""
        assert self.committer is not None
        state = self.committer._state
        held = dict(state.scan(b"\x01", b"\xff" * 8, 1_000_000))
        sums = held.pop(COUNTER, None)
        without = self.acknowledged
        expected = dict(without)
        total = self.total
        applied = self.committer._applied
        doubted = [
            (client, batch)
            for client, batch in self.in_doubt
            if batch.number > self.applied_before.get(client.id, 0)
        ]
        stood = [(c, b) for c, b in doubted if c.id in applied and applied[c.id].number >= b.number]
        assert len(stood) in (0, len(doubted)), "a round was torn"
        for _, batch in stood:
            total = self.apply(expected, total, batch)
        assert held == expected, self.difference(held, expected)
        assert counter(sums) == total
        self.acknowledged, self.total = expected, total
        self.in_doubt = []
        self.remember()

    def difference(self, held: dict[bytes, bytes], expected: dict[bytes, bytes]) -> str:
        lost = sorted(expected.keys() - held.keys())
        back = sorted(held.keys() - expected.keys())
        other = sorted(key for key in held.keys() & expected.keys() if held[key] != expected[key])
        return f"lost {lost[:5]}, too many {back[:5]}, changed {other[:5]}"

    async def fold(self) -> None:
        assert self.committer is not None
        committer, journal = self.committer, self.committer._journal
        try:
            await committer._roll("to fold")
            segments = journal.header.segments
            if not segments:
                return
            plan = FoldPlan(
                cluster=CLUSTER,
                name=snapshot_name(segments[-1].sequence, journal.header.epoch),
                snapshot=journal.header.snapshot,
                segments=segments,
                sources=[disk.number for disk in self.disks],
                targets=[disk.number for disk in journal.eligible()][: M + 1],
                created_us=0,
            )
            journal.keep.add(plan.name)
            for disk in self.disks:
                disk.calls.clear()
            committer._folded = await fold(self.disks, plan, crash=self.point)
            if self.rng.random() < 0.5:
                await self.commit_some()
            if self.committer is committer and committer._folded is not None:
                await committer._roll("")
            self.log.append("folded")
        except FoldFailed as failure:
            self.log.append(repr(failure))
        except (Crash, StateLost):
            await self.start_again()
        except StoreError as failure:
            self.log.append(repr(failure))
            await self.start_again()

    async def stop_cleanly(self) -> None:
        assert self.committer is not None
        try:
            await self.committer._leave_clean_mark()
        except Crash:
            await self.start_again()
            return
        except (CopyFailed, DiskFailed) as failure:
            self.log.append(repr(failure))
        self.stop_process()
        self.log.append("clean stop")
        if self.rng.random() < 0.5:
            # LMDB was synced before the mark: a power cut now takes nothing.
            self.boot += 1
            for disk in self.disks:
                disk.lose_power(self.rng)
        await self.start()

    async def step(self) -> None:
        assert self.committer is not None
        if not self.crash_in and self.rng.random() < 0.25:
            self.crash_in = self.rng.randrange(1, 25)
        event = self.rng.random()
        well = [disk for disk in self.disks if disk.number not in self.away]
        if event < 0.14 and self.spare():
            state = self.committer._state.path
            disk = self.rng.choice(well)
            if self.rng.random() < 0.3:  # The one with LMDB.
                disk = next((d for d in well if state.is_relative_to(self.root / f"disk{d.number}")), disk)
            self.take_away(disk, self.rng.choice(["missing", "dead", "torn", "sync-error", "slow"]))
        elif event < 0.28 and self.away:
            number = self.rng.choice(sorted(self.away))
            self.bring_back(self.disks[number - 1], empty=self.rng.random() < 0.5)
        elif event < 0.36:
            await self.fold()
        elif event < 0.42:
            await self.stop_cleanly()
        elif event < 0.48:
            self.keep_old_copy()
            await self.start_again()
        elif event < 0.56:
            for number in list(self.committer._journal.failed):
                if number not in self.away:
                    self.disks[number - 1].suspicion = ""
                    del self.committer._journal.failed[number]
        else:
            for _ in range(self.rng.randrange(1, 5)):
                await self.commit_some()

    async def run(self, steps: int) -> None:
        try:
            await self.start()
            for _ in range(steps):
                await self.step()
            self.crash_in = 0
            self.cut_power()
            await self.start()
        finally:
            self.stop_process()
