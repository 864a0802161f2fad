"""Two gateway machines on the same disks: the later term wins, and nothing acknowledged is lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from objstore.clock import SystemClock
from objstore.errors import DiskFailed, MetaUnavailable, StaleEpoch, StoreError
from objstore.meta.committer import Committer, CommitterOptions
from objstore.meta.journal import (
    KIND_BATCH,
    CopyFailed,
    Resolved,
    encode,
    first_epoch,
    last_epoch,
    term_of,
)
from objstore.meta.recovery import FORGET_STEP, Recovered, recover
from objstore.node.disk import DiskState
from tests.seed import SEED
from tests.sim.memory_disk import MemoryDisk

CLUSTER = b"cluster of terms"
FENCED = {
    "log_create",
    "log_append",
    "log_read",
    "log_remove",
    "logs",
    "note_epoch",
    "fence",
    "verify",
}


class Node:
    """A disk behind the network, as node/server.py keeps it: with a fence that outlives its process."""

    def __init__(self, number: int) -> None:
        self.disk = MemoryDisk(number)
        self.fence = 0

    def check(self, named: int) -> None:
        noted = max(self.fence, self.disk.epoch)
        if named < noted:
            raise StaleEpoch(named=named, noted=noted)


class Seen:
    """A disk as one machine of one term reaches it, or not."""

    def __init__(self, node: Node, machine: "Machine") -> None:
        self.node = node
        self.machine = machine
        self.number, self.uuid, self.path = node.disk.number, node.disk.uuid, node.disk.path

    @property
    def state(self) -> DiskState:
        return DiskState.FAILED if self.number in self.machine.away else self.node.disk.state

    reason = ""

    async def look_again(self) -> bool:
        return self.number not in self.machine.away and await self.node.disk.look_again()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any) -> Any:
            for _ in range(self.machine.delay()):
                await asyncio.sleep(0)
            if self.number in self.machine.away:
                raise DiskFailed("cut off")
            node = self.node
            if name in FENCED:
                node.check(last_epoch(self.machine.term))
            if name == "fence":
                node.fence = max(node.fence, *arguments)
                return None
            if name == "note_epoch":
                node.fence = max(node.fence, *arguments)
            result = await getattr(node.disk, name)(*arguments)
            for _ in range(self.machine.delay()):
                await asyncio.sleep(0)
            if self.number in self.machine.away:  # Done, but its answer is lost.
                raise DiskFailed("cut off")
            return result

        return call


class Machine:
    """A gateway machine: its term, its own place for LMDB, the nodes that it does not reach."""

    def __init__(
        self, root: Path, nodes: list[Node], term: int, delay: Callable[[], int] = lambda: 0
    ) -> None:
        self.root = root
        self.term = term
        self.away: set[int] = set()
        self.delay = delay
        self.disks = [Seen(node, self) for node in nodes]
        self.now: Recovered | None = None
        root.mkdir(exist_ok=True)

    async def start(self, **options: Any) -> None:
        self.stop()
        self.now = await recover(
            self.disks,  # type: ignore[arg-type]
            copies=3,
            cluster=CLUSTER,
            state_directories=[self.root / "meta"],
            clock=SystemClock(),
            term=self.term,
            **options,
        )

    async def write(self, key: bytes) -> None:
        """Acknowledged when this returns, as `Committer._make_durable` does it."""
        assert self.now is not None
        journal, state = self.now.journal, self.now.state
        payload = encode(Resolved([], {key: b"value"}, []))
        while True:
            try:
                await journal.append(KIND_BATCH, payload)
                break
            except CopyFailed:
                await journal.roll(state=state.state_id())
                state.commit({}, (), journal.end(), {})
        state.commit({key: b"value"}, (), journal.end(), {})

    def has(self, key: bytes) -> bool:
        assert self.now is not None
        return self.now.state.get(key) is not None

    def stop(self) -> None:
        if self.now is not None:
            self.now.state.close()
            self.now = None


class Pair:
    """An old machine that serves in term 1, and a new one that could take over in term 2."""

    def __init__(self, root: Path, count: int = 6, delay: Callable[[], int] = lambda: 0) -> None:
        self.nodes = [Node(number) for number in range(1, count + 1)]
        self.old = Machine(root / "old", self.nodes, 1, delay)
        self.new = Machine(root / "new", self.nodes, 2, delay)

    def close(self) -> None:
        self.old.stop()
        self.new.stop()


@pytest.fixture
async def pair(tmp_path: Path) -> Any:
    made = Pair(tmp_path)
    await made.old.start()
    await made.old.write(b"a")
    yield made
    made.close()


async def test_a_new_machine_has_all_that_the_old_one_acknowledged(pair: Pair) -> None:
    await pair.new.start()
    assert pair.new.has(b"a")
    assert pair.new.now is not None
    assert term_of(pair.new.now.journal.header.epoch) == 2
    await pair.new.write(b"b")


async def test_the_old_machine_is_refused_and_does_not_open_another_epoch(pair: Pair) -> None:
    await pair.new.start()
    with pytest.raises(StaleEpoch):
        await pair.old.write(b"late")
    assert pair.old.now is not None
    with pytest.raises(StaleEpoch):
        await pair.old.now.journal.roll(state=b"")
    with pytest.raises(StaleEpoch):
        await pair.old.now.journal.check_term()
    await pair.new.write(b"b")
    await pair.new.start()
    assert not pair.new.has(b"late")


async def test_the_old_machine_does_not_start_again_by_itself(pair: Pair) -> None:
    await pair.new.start()
    with pytest.raises(StaleEpoch):
        await pair.old.start()
    await pair.new.write(b"b")


async def test_an_idle_old_machine_learns_that_it_was_shut_out(pair: Pair) -> None:
    assert pair.old.now is not None
    options = CommitterOptions(housekeeping_s=0.01)
    serving = Committer(
        pair.old.now.journal, pair.old.now.state, folder=None, clock=SystemClock(), options=options
    )
    ready = asyncio.Event()
    task = asyncio.create_task(serving.serve(str(pair.old.root / "socket"), ready.set, asyncio.Event()))
    await ready.wait()
    await pair.new.start()
    with pytest.raises(StaleEpoch):
        async with asyncio.timeout(60):
            await task
    pair.old.now = None  # The committer closed it.


async def test_a_restart_in_its_own_term_goes_on(pair: Pair) -> None:
    for number in range(3):
        await pair.old.start()
        assert pair.old.has(b"a")
        await pair.old.write(b"%d" % number)
    assert pair.old.now is not None
    assert term_of(pair.old.now.journal.header.epoch) == 1


async def test_with_half_of_the_disks_there_is_neither_a_start_nor_a_new_epoch(pair: Pair) -> None:
    assert pair.old.now is not None
    member = pair.old.now.journal.header.members[0]
    others = [node.disk.number for node in pair.nodes if node.disk.number != member]
    pair.old.away = {member, *others[-2:]}
    with pytest.raises(MetaUnavailable, match="3 of 6"):
        await pair.old.write(b"b")
    with pytest.raises(MetaUnavailable, match="3 of 6"):
        await pair.old.start()
    pair.old.away = set()
    await pair.old.start()
    assert pair.old.has(b"a")


async def test_disks_that_are_back_unheard_count_when_two_others_go(pair: Pair) -> None:
    assert pair.old.now is not None
    first, second, *others = pair.old.now.journal.header.members + [
        node.disk.number for node in pair.nodes if node.disk.number not in pair.old.now.journal.header.members
    ]
    for node in pair.nodes:
        if node.disk.number in others[-2:]:
            node.disk.mood = "away"
    pair.old.away = {first, second}
    await pair.old.write(b"b")
    await pair.old.start()
    assert pair.old.has(b"b")
    for node in pair.nodes:
        if node.disk.number in others[-2:]:
            node.disk.mood, node.disk.returned = "away", False
    with pytest.raises(MetaUnavailable, match="2 of 6"):
        await pair.old.now.journal.roll(state=b"")


async def test_any_two_disks_may_be_away_while_a_new_machine_takes_over(tmp_path: Path) -> None:
    for first in range(1, 7):
        for second in range(first + 1, 7):
            pair = Pair(tmp_path)
            try:
                await pair.old.start()
                await pair.old.write(b"a")
                pair.new.away = {first, second}
                await pair.new.start()
                assert pair.new.has(b"a"), (first, second)
                with pytest.raises(StaleEpoch):
                    await pair.old.write(b"late")
            finally:
                pair.close()
                for machine in (pair.old, pair.new):
                    for path in sorted(machine.root.rglob("*"), reverse=True):
                        path.rmdir() if path.is_dir() else path.unlink()


async def test_a_machine_that_sees_only_what_the_new_one_does_not_cannot_go_on_there(tmp_path: Path) -> None:
    pair = Pair(tmp_path, count=8)
    try:
        await pair.old.start()
        await pair.old.write(b"a")
        assert pair.old.now is not None
        assert pair.old.now.journal.header.members == [1, 2, 3]
        pair.new.away = {1, 2, 4}
        await pair.new.start()
        pair.old.away = {3, 5, 6, 7, 8}  # Without 3 nobody tells it; 1, 2 and 4 would be copies enough.
        with pytest.raises(MetaUnavailable, match="3 of 8"):
            await pair.old.write(b"late")
        with pytest.raises(MetaUnavailable, match="3 of 8"):
            await pair.old.start()
    finally:
        pair.close()


async def test_a_rebuild_from_fragments_begins_a_term_above_all_that_may_be_away(pair: Pair) -> None:
    pair.old.stop()
    for node in pair.nodes:
        node.disk.log_files.clear()
    for path in sorted((pair.old.root / "meta").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    pair.new.term = term_of(FORGET_STEP) + 2
    await pair.new.start(forget=True)
    assert pair.new.now is not None
    assert pair.new.now.journal.header.epoch > FORGET_STEP + first_epoch(1)
    assert term_of(pair.new.now.journal.header.epoch) == pair.new.term


@pytest.mark.parametrize("number", range(25))
async def test_nothing_acknowledged_is_lost_whenever_another_machine_takes_over(
    number: int, tmp_path: Path
) -> None:
    """The old machine writes on while disks come and go for both; the new one begins at any moment."""
    seed = SEED + number
    print(f"seed {seed}")
    rng = random.Random(seed)
    pair = Pair(tmp_path, count=rng.choice((4, 5, 6, 7)), delay=lambda: rng.choice((0, 0, 1, 5)))
    old, new = pair.old, pair.new
    everyone = [node.disk.number for node in pair.nodes]
    acknowledged: list[bytes] = []

    async def write_on() -> None:
        for serial in range(300):
            old.away = set(rng.sample(everyone, rng.choice((0, 0, 1, 2, 3))))
            key = b"%d" % serial
            try:
                await old.write(key)
            except StoreError:
                return  # Shut out, or cut off: its committer ends.
            acknowledged.append(key)

    try:
        await old.start()
        writing = asyncio.create_task(write_on())
        for _ in range(rng.randrange(200)):
            await asyncio.sleep(0)
        for _ in range(50):
            new.away = set(rng.sample(everyone, rng.choice((0, 0, 1, 2))))
            try:
                await new.start()
                break
            except StaleEpoch:
                raise
            except StoreError:
                continue  # Too few, or no member of the newest epoch: later again.
        else:
            pytest.fail("the new machine never started")
        new.away = set()
        await new.write(b"new")
        async with asyncio.timeout(60):
            await writing
        lost = [key for key in acknowledged if not new.has(key)]
        assert lost == [], f"seed {seed}: {len(lost)} of {len(acknowledged)} acknowledged batches lost"
    finally:
        pair.close()
