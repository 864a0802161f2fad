"""When LMDB is trusted, when it is not, and what the journal survives."""

import asyncio
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from objstore.clock import SystemClock
from objstore.errors import Corrupt, DiskFailed, MetaUnavailable, TooFewDisks
from objstore.meta import journal, recovery
from objstore.meta.committer import Committer, CommitterOptions, _Message
from objstore.meta.journal import (
    BLOCK_SIZE,
    KIND_BATCH,
    ClientOutcome,
    Resolved,
    Segment,
    Snapshot,
    decode_header,
    encode,
    encode_header,
    read_segment,
)
from objstore.meta.kv_lmdb import ClientRecord
from objstore.meta.log_names import journal_name, snapshot_name
from objstore.meta.messages import Answer, ReceivedBatch, ReceivedTransaction
from objstore.meta.recovery import NOTE_NAME, Recovered, recover
from objstore.meta.snapshot import Changes, FoldFailed, FoldPlan, fold, merged, read_blocks
from tests.sim.memory_disk import MemoryDisk

CLUSTER = b"recovery cluster"


class Store:
    """Six disks in memory, LMDB in a directory of each; starts, writes one value, stops in many ways."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.boot = "this boot"
        self.disks = [MemoryDisk(number) for number in range(1, 7)]
        self.now: Recovered | None = None
        self.serial = 0
        for number in range(1, 7):
            (root / f"disk{number}").mkdir()

    async def start(self, **options: object) -> Recovered:
        self.kill()
        for disk in self.disks:
            disk.suspicion = ""
        self.now = await recover(
            self.disks,
            copies=3,
            cluster=CLUSTER,
            state_directories=[self.root / f"disk{number}" / "meta" for number in range(1, 7)],
            clock=SystemClock(),
            boot=self.boot,
            **options,  # type: ignore[arg-type]
        )
        return self.now

    def committer(self, **options: object) -> Committer:
        assert self.now is not None
        return Committer(
            self.now.journal,
            self.now.state,
            folder=None,
            clock=SystemClock(),
            options=CommitterOptions(),
            **options,  # type: ignore[arg-type]
        )

    async def write(self, **values: bytes) -> None:
        self.serial += 1
        client = Listener()
        batch = ReceivedBatch(
            self.serial,
            [ReceivedTransaction({}, {key.encode(): value for key, value in values.items()}, [], {})],
        )
        await self.committer()._round([_Message(client, batch, 1)])  # type: ignore[arg-type]
        assert client.answered

    async def journal_only(self, **values: bytes) -> None:
        """A batch that is on every member, but not yet in LMDB: nobody was answered."""
        assert self.now is not None
        put = {key.encode(): value for key, value in values.items()}
        await self.now.journal.append(KIND_BATCH, encode(Resolved([], put, [])))

    def read(self, key: bytes) -> bytes | None:
        assert self.now is not None
        return self.now.state.get(key)

    def kill(self) -> None:
        if self.now is not None:
            self.now.state.close()
            self.now = None

    async def stop(self) -> None:
        await self.committer()._leave_clean_mark()
        self.kill()

    def state(self) -> Path:
        return next(self.root.glob("disk*/meta/state-*"))

    async def fold(self) -> Snapshot:
        assert self.now is not None
        journal = self.now.journal
        await journal.roll(state=self.now.state.state_id())
        plan = self.plan()
        made = await fold(self.disks, plan)
        await journal.roll(state=self.now.state.state_id(), snapshot=made)
        self.now.state.commit({}, (), journal.end(), {})
        await journal.clean_up()
        return made

    def plan(self) -> FoldPlan:
        assert self.now is not None
        journal = self.now.journal
        segments = journal.header.segments
        return FoldPlan(
            cluster=CLUSTER,
            name=snapshot_name(segments[-1].sequence, journal.header.epoch),
            snapshot=journal.header.snapshot,
            segments=segments,
            sources=[1, 2, 3, 4, 5, 6],
            targets=journal.header.members,
            created_us=0,
        )


class Listener:
    id = b"a client of test"
    unanswered = 1
    answered = False

    def answer(self, answer: Answer) -> None:
        self.answered = answer.known and not answer.failures


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[Store]:
    store = Store(root)
    try:
        await store.start()
        yield store
    finally:
        store.kill()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with running(tmp_path) as found:
        await found.write(a=b"1")
        await found.write(b=b"2")
        yield found


def tear(path: Path) -> None:
    """What a power cut may leave of an unsynced LMDB."""
    data = path / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


async def test_after_a_kill_nothing_is_replayed(store: Store) -> None:
    path = store.state()
    recovered = await store.start()
    assert not recovered.rebuilt
    assert recovered.state.path == path
    assert store.read(b"b") == b"2"


async def test_after_a_kill_a_batch_that_was_journalled_but_never_answered_is_cut_off(store: Store) -> None:
    await store.journal_only(c=b"never answered")
    assert not (await store.start()).rebuilt
    assert store.read(b"c") is None
    # And it stays away, even when LMDB is lost later.
    await store.write(d=b"4")
    store.kill()
    shutil.rmtree(store.state())
    assert (await store.start()).rebuilt
    assert (store.read(b"c"), store.read(b"d")) == (None, b"4")


async def test_after_a_power_cut_lmdb_is_built_again(store: Store) -> None:
    store.kill()
    tear(store.state())
    store.boot = "another boot"
    recovered = await store.start()
    assert recovered.rebuilt
    assert "another boot" in recovered.reason
    assert (store.read(b"a"), store.read(b"b")) == (b"1", b"2")


async def test_after_a_clean_stop_and_a_power_cut_lmdb_is_trusted_by_its_mark(store: Store) -> None:
    await store.stop()
    store.boot = "another boot"
    assert not (await store.start()).rebuilt
    assert store.read(b"b") == b"2"


async def test_a_stale_clean_mark_trusts_nothing(store: Store) -> None:
    await store.stop()
    await store.start()
    await store.write(c=b"after the mark")
    store.kill()
    tear(store.state())
    store.boot = "another boot"
    assert (await store.start()).rebuilt
    assert store.read(b"c") == b"after the mark"


async def test_a_clean_mark_is_void_as_soon_as_a_new_epoch_was_opened(store: Store) -> None:
    await store.stop()

    class Died(BaseException): ...

    def die(name: str) -> None:
        if name == "recovery.recorded":
            raise Died

    with pytest.raises(Died):
        await store.start(crash=die)
    tear(store.state())
    store.boot = "another boot"
    assert (await store.start()).rebuilt
    assert store.read(b"b") == b"2"


SPOILERS: dict[str, Callable[[Store], object]] = {
    "no note": lambda store: (store.state() / NOTE_NAME).unlink(),
    "a torn note": lambda store: (store.state() / NOTE_NAME).write_text('{"boot": "this bo'),
    "no boot id": lambda store: setattr(store, "boot", ""),
    "a copy of the file": lambda store: (
        shutil.copyfile(store.state() / "data.mdb", store.state() / "copy"),
        os.replace(store.state() / "copy", store.state() / "data.mdb"),
    ),
    "another mount": lambda store: (store.state() / NOTE_NAME).write_text(
        (store.state() / NOTE_NAME).read_text().replace('"mount": "', '"mount": "9')
    ),
    "the file is gone": lambda store: (store.state() / "data.mdb").unlink(),
    "the directory is gone": lambda store: shutil.rmtree(store.state()),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
async def test_lmdb_is_not_trusted_with(store: Store, spoiler: str) -> None:
    store.kill()
    SPOILERS[spoiler](store)
    assert (await store.start()).rebuilt
    assert (store.read(b"a"), store.read(b"b")) == (b"1", b"2")


async def test_lmdb_is_not_trusted_when_it_ends_before_the_journal(store: Store) -> None:
    old = store.root / "old"
    shutil.copyfile(store.state() / "data.mdb", old)
    await store.write(c=b"3")
    await store.write(d=b"4")
    store.kill()
    # The same inode on the same boot, as a disk that was detached and restored would show it.
    (store.state() / "data.mdb").write_bytes(old.read_bytes())
    assert (await store.start()).rebuilt
    assert (store.read(b"c"), store.read(b"d")) == (b"3", b"4")


async def test_lmdb_is_not_trusted_when_its_sync_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.kill()
    before = store.state()

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        assert (await store.start()).rebuilt
    assert store.state() != before
    assert store.state().parent != before.parent, "not on the same disk again"
    assert store.read(b"b") == b"2"


async def test_lmdb_leaves_a_disk_that_is_full_to_the_last_byte(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.kill()
    before = store.state()
    full = before.parents[1]
    asked = os.statvfs

    def statvfs(path: Path) -> os.statvfs_result:
        real = asked(path)
        return os.statvfs_result((*real[:4], 0, *real[5:10], real.f_fsid)) if full in path.parents else real

    def no_space(path: Path, boot: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", statvfs)
        assert (await store.start()).reason == "its disk is full"
        assert full not in store.state().parents
        await store.write(c=b"3")
        assert not (await store.start()).rebuilt, "where it is now it has room"
        # With no room anywhere it stays where it is, and a note that cannot be written ends nothing.
        patch.setattr(recovery, "_has_room", lambda place: False)
        patch.setattr(recovery, "_write_note", no_space)
        assert not (await store.start()).rebuilt
    assert [store.read(key) for key in (b"b", b"c")] == [b"2", b"3"]


async def test_a_lost_state_is_never_trusted_again_though_its_next_sync_succeeds(store: Store) -> None:
    # The kernel reports a failed write-back once; the committer says so in the journal.
    await store.committer()._disown_state()
    assert (await store.start()).rebuilt
    assert store.read(b"b") == b"2"


async def test_every_disk_may_be_emptied_in_turn(store: Store) -> None:
    await store.fold()
    await store.write(c=b"3")
    for disk in store.disks:
        disk.log_files.clear()
        disk.epoch = 0
        shutil.rmtree(store.root / f"disk{disk.number}")
        (store.root / f"disk{disk.number}").mkdir()
        await store.start()
        await store.write(**{f"after{disk.number}": b"x"})
    store.kill()
    for path in store.root.glob("disk*/meta/state-*"):
        shutil.rmtree(path)
    await store.start()
    assert [store.read(key) for key in (b"a", b"b", b"c", b"after1", b"after6")] == [
        b"1",
        b"2",
        b"3",
        b"x",
        b"x",
    ]


@pytest.mark.parametrize("gone", [(1, 2), (2, 3), (1, 3), (1, 4), (5, 6)])
async def test_any_two_disks_may_be_gone_at_a_start(store: Store, gone: tuple[int, int]) -> None:
    await store.fold()
    await store.write(c=b"3")
    store.kill()
    shutil.rmtree(store.state())
    for number in gone:
        store.disks[number - 1].mood = "missing"
    await store.start()
    assert [store.read(key) for key in (b"a", b"b", b"c")] == [b"1", b"2", b"3"]


async def test_a_start_without_any_member_of_the_newest_epoch_is_refused_and_names_the_disks(
    store: Store,
) -> None:
    for number in (1, 2, 3):
        store.disks[number - 1].mood = "missing"
    with pytest.raises(MetaUnavailable, match="bring back one of 1, 2, 3"):
        await store.start()
    store.disks[2].mood = "well"
    await store.start()
    assert store.read(b"b") == b"2"


@pytest.mark.parametrize(("late", "from_batch"), [((1, 2, 3), 0), ((1, 2, 3), 1), ((2, 3), 1)])
async def test_what_cannot_be_read_of_the_newest_epoch_is_not_taken_for_its_end(
    store: Store, late: tuple[int, ...], from_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.now is not None
    name = journal_name(store.now.journal.header.epoch)
    first = len(store.disks[0].log_files[name].content) - 2 * BLOCK_SIZE
    if 1 not in late:  # It lost both batches, so it is no witness of the end.
        del store.disks[0].log_files[name].content[first:]
    store.kill()
    shutil.rmtree(store.state())
    log_read = MemoryDisk.log_read

    async def read(disk: MemoryDisk, wanted: str, offset: int, size: int) -> bytes:
        if wanted == name and disk.number in late and offset >= first + from_batch * BLOCK_SIZE:
            raise DiskFailed(f"disk {disk.number} is late")
        return await log_read(disk, wanted, offset, size)

    with monkeypatch.context() as slow:
        slow.setattr(journal, "READ_SIZE", BLOCK_SIZE)
        slow.setattr(MemoryDisk, "log_read", read)
        with pytest.raises(MetaUnavailable, match=f"{name} beyond byte .* is late"):
            await store.start()
    await store.start()
    assert (store.read(b"a"), store.read(b"b")) == (b"1", b"2")


async def test_no_disk_at_all_is_refused(store: Store) -> None:
    for disk in store.disks:
        disk.mood = "missing"
    with pytest.raises(MetaUnavailable, match="none of the disks"):
        await store.start()


async def test_a_first_start_needs_every_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.disks[4].mood = "missing"
    with pytest.raises(MetaUnavailable, match="missing: 5"):
        await store.start()


async def test_a_state_without_its_journal_is_not_taken_for_a_new_store(store: Store) -> None:
    store.kill()
    for disk in store.disks:
        disk.log_files.clear()
        disk.epoch = 0
    with pytest.raises(MetaUnavailable, match="has served journal epoch"):
        await store.start()


async def test_a_start_with_every_disk_and_no_journal_says_how_to_salvage(store: Store) -> None:
    store.kill()
    for disk in store.disks:
        disk.log_files.clear()
    with pytest.raises(MetaUnavailable, match="objstore meta rebuild"):
        await store.start()


async def test_a_returning_disk_with_an_older_journal_decides_nothing(store: Store) -> None:
    store.disks[0].mood = "missing"
    await store.start()
    await store.write(c=b"3")
    store.kill()
    store.disks[0].mood = "well"
    for number in (2, 3):
        store.disks[number - 1].mood = "missing"
    shutil.rmtree(store.state())
    await store.start()
    assert store.read(b"c") == b"3"


async def test_a_header_that_never_came_into_force_does_not_speak_for_the_epoch_that_took_its_number(
    store: Store,
) -> None:
    """Each time at most one disk is away. A power cut leaves the next epoch's header on disk 5 alone; the
    start without it takes the same number; then disk 5 is back."""
    store.disks[0].mood = store.disks[1].mood = "missing"
    await store.start()
    assert store.now is not None
    journal = store.now.journal
    assert journal.header.members == [3, 4, 5]
    store.disks[0].mood = store.disks[1].mood = "well"
    await store.write(c=b"3")

    class PowerCut(BaseException): ...

    def cut(call: str, volume: int, index: int) -> None:
        if call == "log_create":
            raise PowerCut

    def lights_out(point: str) -> None:
        if point == "journal.open.before-header":
            for disk in store.disks:
                disk.before = cut if disk.number != 5 else None

    # Disk 3 fails a copy, so that the batch lies on 4 and 5; then the lights go out over the new headers.
    store.disks[2].mood = "sync-error"
    journal.crash = lights_out
    with pytest.raises(PowerCut):
        await store.write(d=b"never acknowledged")
    await asyncio.sleep(0.01)
    name = journal_name(journal.highest)
    assert [disk.number for disk in store.disks if name in disk.log_files] == [5]
    for disk in store.disks:
        disk.before = None
        disk.lose_power()
    store.disks[2].mood = "well"

    store.boot = "after the power cut"
    store.disks[4].mood = "missing"
    recovered = await store.start()
    assert journal_name(recovered.journal.header.epoch) == name
    await store.write(e=b"acknowledged")
    assert store.now is not None
    assert max(store.now.journal.header.members) < 5, "else the test does not show what it should"

    store.boot = "after another power cut"
    store.disks[4].mood = "well"
    await store.start()
    assert store.read(b"c") == b"3"
    assert store.read(b"e") == b"acknowledged"


async def test_a_lost_state_is_not_trusted_though_no_disk_took_the_note_of_its_loss(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All disks on one device: its hiccup fails LMDB's sync and every journal copy at once."""
    for disk in store.disks:
        disk.mood = "sync-error"
    await store.committer()._disown_state()
    for disk in store.disks:
        disk.mood = "well"
    assert (await store.start()).rebuilt
    assert store.read(b"b") == b"2"

    # The same, when a start finds it out and then cannot open an epoch.
    store.kill()

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    for disk in store.disks:
        disk.mood = "sync-error"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(TooFewDisks):
            await store.start()
    for disk in store.disks:
        disk.mood = "well"
    assert (await store.start()).rebuilt
    assert store.read(b"b") == b"2"


async def test_a_doubt_outlives_the_start_that_was_told_of_it(store: Store) -> None:
    """The committer died by SIGBUS; the next is told so, and killed before it has opened an epoch."""
    store.kill()

    class Died(BaseException): ...

    def die(name: str) -> None:
        if name == "recovery.rebuild":
            raise Died

    with pytest.raises(Died):
        await store.start(trust_state=False, crash=die)
    assert (await store.start()).rebuilt
    assert store.read(b"b") == b"2"


async def test_nothing_changes_lmdb_once_it_was_synced_for_the_clean_mark(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.now is not None
    state = store.now.state
    options = CommitterOptions(housekeeping_s=0.001)
    committer = Committer(store.now.journal, state, folder=None, clock=SystemClock(), options=options)
    synced: list[bool] = []
    late: list[str] = []
    sync, commit = state.sync, state.commit
    released = threading.Event()

    def slow_sync() -> None:
        synced.append(True)
        released.wait(0.2)
        sync()

    def seen(*arguments: object, **words: object) -> None:
        if synced:
            late.append("commit")
        commit(*arguments, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "sync", slow_sync)
    monkeypatch.setattr(state, "commit", seen)
    old = ClientRecord(1, 1)  # Applied long ago: housekeeping forgets it, with a commit of its own.

    class Clients(dict[bytes, ClientRecord]):
        def items(self):  # type: ignore[no-untyped-def]
            if synced:
                self[b"a client long gone"[:16]] = old
            return super().items()

    committer._applied = Clients(committer._applied)
    stop = asyncio.Event()
    stop.set()
    await committer.serve(str(tmp_path / "socket"), lambda: None, stop)
    store.now = None
    assert synced
    assert not late


async def test_disks_that_know_only_the_past_do_not_start_a_store_that_has_served_since(store: Store) -> None:
    """Disks 5 and 6 miss an epoch; then they alone are mounted, and the store is started again and again.
    Their branch would have the higher epoch in the end, and win when all disks are back."""
    served = store.root / "newest-epoch"
    for number in (5, 6):
        store.disks[number - 1].mood = "missing"
    await store.start(served=served)
    await store.write(c=b"acknowledged")
    store.kill()
    for disk in store.disks:
        disk.mood = "well" if disk.number >= 5 else "missing"
    shutil.rmtree(store.state())
    for disk in store.disks[4:]:  # They were members of the epoch before.
        disk.log_files.update(store.disks[0].log_files)
    older = journal_name(1)
    for disk in store.disks[4:]:
        disk.log_files = {older: disk.log_files[older]}
        header = decode_header(bytes(disk.log_files[older].content))
        assert header is not None
        changed = encode_header(msgspec.structs.replace(header[0], members=[5, 6]))
        disk.log_files[older].content[: len(changed)] = changed
    for _ in range(3):
        with pytest.raises(MetaUnavailable, match="has served journal epoch 2"):
            await store.start(served=served)
    for disk in store.disks:
        disk.mood = "well"
    await store.start(served=served)
    assert store.read(b"c") == b"acknowledged"
    assert served.read_text().strip() == str(store.now.journal.header.epoch)  # type: ignore[union-attr]
    served.write_text("torn")  # A hint that cannot be read refuses nothing.
    await store.start(served=served)


async def test_a_disk_that_was_away_is_verified_and_the_journal_has_all_its_copies_again(
    store: Store,
) -> None:
    for number in (3, 4, 5, 6):
        store.disks[number - 1].mood = "missing"
    await store.start()
    assert store.now is not None
    assert store.now.journal.header.members == [1, 2]
    for number in (3, 4, 5, 6):  # Back, and like any disk that was away not yet verified.
        store.disks[number - 1].mood = "well"
        store.disks[number - 1].suspicion = "it was missing and is back, not yet verified"
    options = CommitterOptions(verify_interval_s=0.0)
    committer = Committer(
        store.now.journal, store.now.state, folder=None, clock=SystemClock(), options=options
    )
    await committer._try_failed_disks()
    await committer._try_failed_disks()
    assert len(store.now.journal.eligible()) == 6


async def test_while_copies_are_lacking_a_disk_that_is_back_is_not_kept_waiting(store: Store) -> None:
    for number in (1, 2, 3, 4):
        store.disks[number - 1].mood = "sync-error"
        await store.write(**{f"k{number}": b"x"})
    assert store.now is not None
    assert store.now.journal.header.members == [5, 6]
    for disk in store.disks[:2]:  # As of a node that was away: nothing is wrong with it.
        disk.mood, disk.suspicion = "well", ""
    options = CommitterOptions(verify_interval_s=3600.0, short_s=0.0)  # Not by the clock alone.
    committer = Committer(
        store.now.journal, store.now.state, folder=None, clock=SystemClock(), options=options
    )
    finding = asyncio.create_task(committer._find_copies())
    async with asyncio.timeout(30):
        while len(store.now.journal.eligible()) < 4 or not committer._want_roll:
            await asyncio.sleep(0)
    tried = dict(committer._tried_at)
    store.now.journal.failed[1] = "again"
    for _ in range(50):
        await asyncio.sleep(0)
    finding.cancel()
    assert (1 in store.now.journal.failed, committer._tried_at[1]) == (True, tried[1]), "once in that time"


async def test_with_fewer_disks_there_are_fewer_copies_and_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (3, 4, 5, 6):
        store.disks[number - 1].mood = "missing"
    await store.start()
    assert store.now is not None
    assert store.now.journal.header.members == [1, 2]
    assert "fewer copies" in caplog.text


async def test_a_commit_survives_the_failure_of_each_copy_and_ends_when_none_is_left(store: Store) -> None:
    for number in (1, 2, 3, 4, 5):
        store.disks[number - 1].mood = "sync-error"
        await store.write(**{f"k{number}": b"x"})
    store.disks[5].mood = "sync-error"
    with pytest.raises(TooFewDisks):
        await store.write(last=b"x")


async def test_a_hanging_copy_delays_a_commit_by_its_limit_and_no_more(store: Store) -> None:
    assert store.now is not None
    store.now.journal.append_timeout_s = 0.05
    disk = store.disks[0]
    hung = asyncio.Event()

    async def hang(*_: object) -> None:
        hung.set()
        await asyncio.Event().wait()

    disk.log_append = hang  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(10):
        await store.write(c=b"3")
    assert hung.is_set()
    assert 1 not in store.now.journal.header.members


async def test_rot_in_different_places_of_every_copy_is_put_together(store: Store) -> None:
    for number in range(12):
        await store.write(**{f"k{number}": b"x" * 600})
    assert store.now is not None
    name = journal_name(store.now.journal.header.epoch)
    for disk, at in zip(store.disks[:3], (3_000, 6_000, 9_000), strict=True):
        disk.log_files[name].content[at] ^= 1
    store.kill()
    shutil.rmtree(store.state())
    await store.start()
    assert all(store.read(b"k%d" % number) == b"x" * 600 for number in range(12))
    # The result was written whole, under a name of its own, before anything was served.
    (segment,) = (one for one in store.now.journal.header.segments if one.name.startswith(name))
    assert segment.name != name
    whole = [disk for disk in store.disks if segment.name in disk.log_files]
    assert len(whole) == 3
    for disk in whole:
        assert len([batch async for batch in read_segment([disk], segment, set())]) == 14


@pytest.mark.parametrize("damage", ["cut", "rotten"])
async def test_a_copy_that_lost_its_last_batch_is_replaced_though_lmdb_is_trusted(
    store: Store, damage: str
) -> None:
    content = store.disks[0].log_files[journal_name(1)].content
    if damage == "cut":
        del content[-512:]
    else:
        content[-512 + 60] ^= 1
    assert not (await store.start()).rebuilt
    assert store.now is not None
    (segment,) = store.now.journal.header.segments
    whole = 0
    for disk in store.disks:
        try:
            whole += len([batch async for batch in read_segment([disk], segment, set())]) == 2
        except Corrupt:
            continue
    assert whole == 3


async def test_a_segment_that_is_rotten_everywhere_is_refused_and_not_skipped(store: Store) -> None:
    await store.start()  # Closes the segment.
    name = journal_name(1)
    for disk in store.disks[:3]:
        disk.log_files[name].content[570] ^= 1
    store.kill()
    shutil.rmtree(store.state())
    with pytest.raises(Corrupt, match=name):
        await store.start()


# Snapshots.


async def test_a_fold_replaces_what_it_covers_and_changes_nothing(store: Store) -> None:
    await store.write(c=b"3")
    first = await store.fold()
    assert first.count == 3
    await store.write(a=b"new", d=b"4")
    second = await store.fold()
    assert second.count == 4
    for disk in store.disks[:3]:
        assert first.name not in disk.log_files
        assert second.name in disk.log_files
        assert sum(name.startswith("journal.") for name in disk.log_files) == 1
    store.kill()
    shutil.rmtree(store.state())
    await store.start()
    assert [store.read(key) for key in (b"a", b"b", b"c", b"d")] == [b"new", b"2", b"3", b"4"]


async def test_every_flipped_byte_of_a_snapshot_is_noticed_and_read_from_another_copy(store: Store) -> None:
    for number in range(30):
        await store.write(**{f"k{number}": os.urandom(20)})
    made = await store.fold()
    wanted = [block.raw async for block in read_blocks(store.disks, made, set())]
    content = store.disks[0].log_files[made.name].content
    rng = random.Random(1)
    for at in rng.sample(range(len(content)), 200):
        content[at] ^= 0x10
        bad: set[tuple[int, str]] = set()
        assert [block.raw async for block in read_blocks(store.disks, made, bad)] == wanted
        assert (1, made.name) in bad
        with pytest.raises(Corrupt):
            assert [block.raw async for block in read_blocks(store.disks[:1], made, set())]
        content[at] ^= 0x10


async def test_a_fold_that_a_disk_fails_says_which_and_leaves_everything(store: Store) -> None:
    await store.write(c=b"3")
    assert store.now is not None
    await store.now.journal.roll(state=store.now.state.state_id())
    plan = store.plan()
    store.disks[1].mood = "sync-error"
    with pytest.raises(FoldFailed) as caught:
        await fold(store.disks, plan)
    assert list(caught.value.failures) == [2]
    store.disks[1].mood = "well"
    store.kill()
    shutil.rmtree(store.state())
    await store.start()
    assert store.read(b"c") == b"3"


@pytest.mark.parametrize("size_max", [1, 500, 1 << 30], ids=["a run a batch", "some runs", "in memory"])
async def test_changes_sorted_in_runs_merge_like_a_dict(tmp_path: Path, size_max: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model: dict[bytes, bytes | None] = {}
    changes = Changes(tmp_path, size_max)
    try:
        for number in range(60):
            put = {b"k%d" % rng.randrange(40): b"%d" % number for _ in range(4)}
            delete = [key for key in (b"k%d" % rng.randrange(40),) if key not in put]
            client = ClientOutcome(b"c%d" % rng.randrange(3), number, [])
            changes.add(Resolved([client], put, delete), number)
            model.update(put)
            model.update(dict.fromkeys(delete))
        assert list(changes) == sorted(model.items())
        assert [record for _, record in changes.recent_clients()] == [
            ClientRecord(record.number, record.time_us) for _, record in changes.recent_clients()
        ]
        alone = [pair async for pairs in merged([], None, changes, set()) for pair in pairs]
        assert alone == sorted((key, value) for key, value in model.items() if value is not None)
    finally:
        changes.close()


async def test_a_segment_without_batches_needs_no_file() -> None:
    empty = Segment("journal.x", 1, 512, 512, 0, 0, 0, 0)
    assert [batch async for batch in read_segment([], empty, set())] == []
