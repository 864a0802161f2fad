"""The committer as a process: killed, stopped, starved, and with disks that fail under it."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from objstore.errors import Conflict, MetaUnavailable, Overloaded
from objstore.meta.client import MetaClient, _Connection
from objstore.meta.kv import VALUE_SIZE_MAX, Add, Transaction, counter
from objstore.meta.messages import (
    FORMAT,
    FrameReader,
    Hello,
    Welcome,
    batch_frame,
    decode_answer,
    decode_welcome,
    encode,
    encode_transaction,
    frame,
)
from objstore.meta.recovery import STATE_PREFIX
from tests.meta.process import CommitterProcess
from tests.waiting import until


@pytest.fixture
async def committer(tmp_path: Path) -> AsyncIterator[CommitterProcess]:
    async with CommitterProcess(tmp_path) as process:
        yield process


@pytest.fixture
async def local_committer(tmp_path: Path) -> AsyncIterator[CommitterProcess]:
    async with CommitterProcess(tmp_path, local=True) as process:
        yield process


def states(root: Path) -> list[Path]:
    return sorted(root.glob(f"disk*/meta/{STATE_PREFIX}*"))


async def test_a_clean_stop_and_start_keeps_everything_and_the_same_state(
    committer: CommitterProcess,
) -> None:
    client = await committer.client()
    await client.commit(Transaction(put={b"a": b"1"}))
    before = states(committer.root)
    assert await committer.stop() == 0
    assert await client.get(b"a") == b"1", "reads go on without a committer"
    # Another boot: only the clean mark speaks for the state now.
    for path in before:
        (path / "note").unlink()
    await committer.start()
    await client.commit(Transaction(expect={b"a": b"1"}, put={b"a": b"2"}))
    assert await client.get(b"a") == b"2"
    assert states(committer.root) == before
    await client.close()


async def test_killed_under_load_nothing_acknowledged_is_lost_or_done_twice(
    local_committer: CommitterProcess,
) -> None:
    committer = local_committer
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    clients = [await committer.client(), await committer.client()]
    acknowledged: dict[bytes, bytes] = {}
    running = True
    attempts = 0

    async def write(worker: int) -> None:
        nonlocal attempts
        number = 0
        client = clients[worker % 2]
        while running:
            number += 1
            key = b"k%d-%d" % (worker, number)
            attempts += 1
            await client.commit(Transaction(expect={key: None}, put={key: b"v"}, add={b"count": Add(1)}))
            acknowledged[key] = b"v"

    before = states(committer.root)
    writers = [asyncio.create_task(write(worker)) for worker in range(16)]
    kills = 100 if os.environ.get("OBJSTORE_LONG") else 5
    for _ in range(kills):
        reached = len(acknowledged) + rng.randrange(1, 400)
        while len(acknowledged) < reached:
            await asyncio.sleep(0.002)
        await committer.kill()
        started = asyncio.get_running_loop().time()
        await committer.start()
        print(f"ready after {asyncio.get_running_loop().time() - started:.2f} s")
    reached = len(acknowledged) + 1
    while len(acknowledged) < reached:
        await asyncio.sleep(0.002)
    running = False
    # Every writer ends: each pending commit's outcome is learned, not guessed.
    await asyncio.wait_for(asyncio.gather(*writers), 60)
    assert len(acknowledged) == attempts
    held = dict(await clients[0].scan(b"k", b"l", 1 << 30))
    assert held == acknowledged
    assert counter(await clients[0].get(b"count")) == len(acknowledged), "a commit was applied twice"
    assert states(committer.root) == before, "after a kill LMDB is trusted, nothing is rebuilt"
    for client in clients:
        assert client.stats.connections > kills
        await client.close()


async def test_a_stopped_worker_holds_up_nobody(committer: CommitterProcess) -> None:
    script = (
        "import asyncio, sys\n"
        "from objstore.meta.client import MetaClient\n"
        "from objstore.meta.kv import Add, Transaction\n"
        "async def main():\n"
        "    client = MetaClient(sys.argv[1])\n"
        "    await client.start()\n"
        "    async def loop(number):\n"
        "        while True:\n"
        "            await client.commit(Transaction(add={b'stopped': Add(1)}))\n"
        "    print('going', flush=True)\n"
        "    await asyncio.gather(*map(loop, range(32)))\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        str(committer.socket),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    client = await committer.client()
    try:
        assert worker.stdout is not None
        await asyncio.wait_for(worker.stdout.readline(), 60)
        while counter(await client.get(b"stopped")) < 100:
            await client.commit(Transaction(add={b"mine": Add(1)}))
        worker.send_signal(signal.SIGSTOP)
        for _ in range(200):
            await client.commit(Transaction(add={b"mine": Add(1)}))
        stopped_at = counter(await client.get(b"stopped"))
        for _ in range(10):
            await client.commit(Transaction(add={b"mine": Add(1)}))
        assert counter(await client.get(b"stopped")) == stopped_at, "it is stopped"
        worker.send_signal(signal.SIGCONT)
        while counter(await client.get(b"stopped")) == stopped_at:
            await client.commit(Transaction(add={b"mine": Add(1)}))
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
        await client.close()


async def test_a_stopped_committer_makes_commits_unknown_in_time_and_overload_cheap(
    committer: CommitterProcess,
) -> None:
    client = await committer.client(timeout_s=1.0, queue_count_max=50)
    committer.signal(signal.SIGSTOP)
    outcomes = await asyncio.gather(
        *(client.commit(Transaction(put={b"k%d" % number: b""})) for number in range(80)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 30
    assert sum(isinstance(outcome, MetaUnavailable) for outcome in outcomes) == 50
    # Whoever comes now does not wait as long again.
    assert client.away
    with pytest.raises(MetaUnavailable, match="away"):
        await client.commit(Transaction(put={b"late": b""}))
    assert client.stats.refused_away == 1
    committer.signal(signal.SIGCONT)
    await until(lambda: not client.away)  # It answers what was sent.
    client._timeout_s = 60.0
    await client.commit(Transaction(expect={b"late": None}, put={b"again": b"1"}))
    await client.close()


async def test_a_restart_of_the_committer_is_ridden_out(committer: CommitterProcess) -> None:
    client = await committer.client()
    await committer.kill()
    commit = asyncio.create_task(client.commit(Transaction(put={b"a": b"1"})))
    await committer.start()
    await commit
    assert not client.away
    assert await client.get(b"a") == b"1"
    await client.close()


async def test_without_a_committer_commits_fail_soon_then_at_once_and_reads_go_on(
    committer: CommitterProcess,
) -> None:
    # A time limit that this test does not live to see: only the absence ends the wait.
    client = await committer.client(away_s=0.5, timeout_s=10_000.0)
    await client.commit(Transaction(put={b"a": b"1"}))
    committer.signal(signal.SIGSTOP)
    sent = asyncio.create_task(client.commit(Transaction(put={b"sent": b""})))
    await asyncio.sleep(0.05)
    await committer.kill()
    waiting = asyncio.create_task(client.commit(Transaction(put={b"waiting": b""})))
    for commit in (sent, waiting):
        with pytest.raises(MetaUnavailable):
            await commit
    assert client.away
    assert client._count == client._size == 0, "nothing is left in the queue"
    with pytest.raises(MetaUnavailable, match="away"):
        await client.commit(Transaction(put={b"late": b""}))
    assert client.stats.refused_away == 1
    assert await client.get(b"a") == b"1", "reads go on"
    await committer.start()
    await until(lambda: not client.away)
    await client.commit(Transaction(expect={b"waiting": None, b"late": None}, put={b"a": b"2"}))
    assert await client.get(b"a") == b"2"
    await client.close()


async def test_a_state_built_again_is_read_by_those_who_have_not_found_the_new_committer_yet(
    committer: CommitterProcess,
) -> None:
    late, early = await committer.client(follows=True), await committer.client(follows=True)
    await early.commit(Transaction(put={b"a": b"old"}))
    assert await late.get(b"a") == b"old"
    # It will not connect again: a worker whose next attempt comes a moment later than the other's.
    assert late._task is not None
    late._task.cancel()
    await committer.kill()
    assert await late.get(b"a") == b"old", "reads go on without a committer"
    for path in states(committer.root):
        shutil.rmtree(path)
    await committer.start()
    await early.commit(Transaction(expect={b"a": b"old"}, put={b"a": b"new"}))
    assert await late.get(b"a") == b"new"
    assert late.stats.connections == 1
    await late.close()
    await early.close()


async def test_a_client_that_never_found_a_committer_says_so(tmp_path: Path) -> None:
    client = MetaClient(tmp_path / "nothing.sock")
    with pytest.raises(MetaUnavailable, match="no committer"):
        await client.start(0.2)
    with pytest.raises(MetaUnavailable):
        await client.get(b"a")


class RawClient:
    """Speaks the protocol by hand: what a client would do that was cut off at the worst moment."""

    def __init__(self, committer: CommitterProcess, client_id: bytes) -> None:
        self._committer = committer
        self._id = client_id

    async def connect(self) -> int:
        """The last applied batch, as the committer knows it."""
        self.reader, self.writer = await asyncio.open_unix_connection(str(self._committer.socket))
        self._frames = FrameReader()
        self._held: list[bytes] = []
        self.writer.write(frame(encode(Hello(FORMAT, self._id))))
        return decode_welcome(await self._next()).last

    async def _next(self) -> bytes:
        while not self._held:
            data = await asyncio.wait_for(self.reader.read(65536), 10)
            assert data, "the committer hung up"
            self._held += self._frames.feed(data)
        return self._held.pop(0)

    def send(self, number: int, *transactions: Transaction) -> None:
        self.writer.write(batch_frame(number, [encode_transaction(one) for one in transactions]))

    async def answer(self) -> tuple[int, bool, list[int]]:
        answer = decode_answer(await self._next())
        return answer.number, answer.known, [failure.index for failure in answer.failures]


async def test_a_batch_sent_again_is_not_applied_again_and_its_outcome_is_told(
    committer: CommitterProcess,
) -> None:
    client = RawClient(committer, b"r" * 16)
    assert await client.connect() == 0
    good = Transaction(add={b"n": Add(1)})
    refused = Transaction(expect={b"n": None}, put={b"x": b""})
    client.send(1, good, refused)
    assert await client.answer() == (1, True, [1])
    client.writer.close()

    for _ in range(2):
        assert await client.connect() == 1
        client.send(1, good, refused)
        assert await client.answer() == (1, True, [1])
        client.writer.close()
        # And after a death, from LMDB; and after the loss of LMDB, from the journal.
        await committer.kill()
        if _ == 1:
            for path in states(committer.root):
                shutil.rmtree(path)
        await committer.start()
    assert await client.connect() == 1
    client.send(1, good, refused)
    assert await client.answer() == (1, True, [1])
    client.send(2, good)
    assert await client.answer() == (2, True, [])
    reader = await committer.client()
    assert counter(await reader.get(b"n")) == 2
    await reader.close()


async def test_an_outcome_too_far_back_is_unknown_and_not_invented(committer: CommitterProcess) -> None:
    client = RawClient(committer, b"f" * 16)
    await client.connect()
    for number in range(1, 40):
        client.send(number, Transaction(add={b"n": Add(1)}))
        assert await client.answer() == (number, True, [])
    client.send(2, Transaction(add={b"n": Add(1)}))
    assert await client.answer() == (2, False, [])
    client.send(39, Transaction(add={b"n": Add(1)}))
    assert await client.answer() == (39, True, [])


@pytest.mark.parametrize(
    "rubbish",
    [b"\xff\xff\xff\xff", frame(b"not msgpack \xc1"), frame(encode([7])), os.urandom(200)],
    ids=["an endless frame", "no MessagePack", "another message", "noise"],
)
async def test_a_client_that_talks_rubbish_is_cut_off_and_the_others_go_on(
    committer: CommitterProcess, rubbish: bytes
) -> None:
    client = await committer.client()
    raw = RawClient(committer, b"x" * 16)
    await raw.connect()
    raw.writer.write(rubbish if rubbish[3] == 255 or len(rubbish) < 100 else b"\xff" * 8)
    assert await asyncio.wait_for(raw.reader.read(), 10) == b""
    await client.commit(Transaction(put={b"a": b"1"}))
    await client.close()


@pytest.mark.parametrize("mood", ["failing", "slow"])
async def test_a_journal_disk_that_fails_or_hangs_is_left_behind_and_no_commit_is_lost(
    tmp_path: Path, mood: str
) -> None:
    async with CommitterProcess(tmp_path, append_timeout_s=0.5) as committer:
        client = await committer.client()
        await client.commit(Transaction(put={b"a": b"1"}))
        committer.mood(1, mood)
        await client.commit(Transaction(put={b"b": b"2"}))
        assert await client.get_many([b"a", b"b"]) == [b"1", b"2"]
        # m more may go now, and everything is still there.
        await committer.kill()
        for number in (1, 2, 3):
            committer.mood(number, "missing")
        for path in states(tmp_path):
            shutil.rmtree(path)
        committer.mood(1, "")
        await committer.start()
        again = await committer.client()
        assert await again.get_many([b"a", b"b"]) == [b"1", b"2"]
        await client.close()
        await again.close()


async def test_when_no_member_of_the_newest_epoch_is_there_the_start_is_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with CommitterProcess(tmp_path) as committer:
        client = await committer.client()
        await client.commit(Transaction(put={b"a": b"1"}))
        await client.close()
        assert await committer.stop() == 0
        for number in (1, 2, 3):
            committer.mood(number, "missing")
        with pytest.raises(AssertionError):
            await committer.start()
        assert await committer.ended() != 0
        assert "bring back one of 1, 2, 3" in capfd.readouterr().err
        committer.mood(2, "")
        await committer.start()
        client = await committer.client()
        assert await client.get(b"a") == b"1"
        await client.close()


async def test_the_disk_that_holds_lmdb_goes_and_another_takes_over(tmp_path: Path) -> None:
    async with CommitterProcess(tmp_path, housekeeping_s=0.05) as committer:
        client = await committer.client()
        await asyncio.gather(*(client.commit(Transaction(put={b"k%d" % n: b"v"})) for n in range(500)))
        os.rename(tmp_path / "disk1", tmp_path / "away1")
        assert await committer.ended() != 0, "it does not go on with an unlinked file"
        (tmp_path / "disk1").mkdir()  # An empty mount point is no disk.
        committer.mood(1, "missing")
        await committer.start()
        await client.commit(Transaction(put={b"after": b"1"}))
        assert len(await client.scan(b"k", b"l", 1_000)) == 500
        assert client.reader.path.is_relative_to(tmp_path / "disk2")

        # The old state comes back with its disk, same boot, same inode: it is not believed.
        await committer.kill()
        shutil.rmtree(tmp_path / "disk1")
        os.rename(tmp_path / "away1", tmp_path / "disk1")
        await committer.start()
        again = await committer.client()
        assert await again.get(b"after") == b"1"
        assert len(states(tmp_path)) == 1
        await client.close()
        await again.close()


async def test_the_journal_is_folded_while_commits_go_on_and_a_rebuild_reads_the_snapshot(
    tmp_path: Path,
) -> None:
    async with CommitterProcess(
        tmp_path, local=True, fold_size_min=100_000, housekeeping_s=0.05
    ) as committer:
        client = await committer.client()
        model: dict[bytes, bytes] = {}
        rng = random.Random(5)

        def snapshots() -> list[str]:
            return sorted({path.name for path in tmp_path.glob("disk*/logs/snapshot.*")})

        seen: set[str] = set()
        async with asyncio.timeout(60):
            while len(seen) < 3:
                writes = {b"k%d" % rng.randrange(3_000): rng.randbytes(50) for _ in range(200)}
                gone = [b"k%d" % number for number in range(rng.randrange(20))]
                writes = {key: value for key, value in writes.items() if key not in gone}
                await client.commit(Transaction(put=writes, delete=gone))
                model.update(writes)
                for key in gone:
                    model.pop(key, None)
                seen.update(snapshots())
        assert await committer.stop() == 0
        assert len(snapshots()) <= 2, "what is folded goes"
        for path in states(tmp_path):
            shutil.rmtree(path)
        # Rot in one copy of the snapshot: another copy is read.
        # (The largest: a fold that the stop interrupted leaves a beginning.)
        first = max(tmp_path.glob("disk1/logs/snapshot.*"), key=lambda path: path.stat().st_size)
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 1
        first.write_bytes(content)
        await committer.start()
        again = await committer.client()
        assert dict(await again.scan(b"k", b"l", 1 << 30)) == model
        await client.close()
        await again.close()


async def test_a_conflict_says_which_key(committer: CommitterProcess) -> None:
    client = await committer.client()
    await client.commit(Transaction(put={b"a": b"1"}))
    with pytest.raises(Conflict) as caught:
        await client.commit(Transaction(expect={b"a": None}, put={b"b": b"1"}))
    assert caught.value.key == b"a"
    await client.close()


async def test_a_transaction_no_engine_takes_is_refused_before_it_is_sent(
    committer: CommitterProcess,
) -> None:
    client = await committer.client()
    for wrong in (
        Transaction(put={b"": b"empty key"}),
        Transaction(put={b"k" * 3_000: b"long key"}),
        Transaction(put={b"k": b"v" * (VALUE_SIZE_MAX + 1)}),
        Transaction(put={b"k": b"v"}, delete=[b"k"]),
        Transaction(delete=[b"k"], add={b"k": Add(1)}),
    ):
        with pytest.raises(ValueError):
            await client.commit(wrong)
    assert await client.get(b"k") is None
    await client.close()


async def test_a_state_that_cannot_be_opened_is_no_reason_to_go_on_reading_the_last_one(
    committer: CommitterProcess,
) -> None:
    client = await committer.client()
    await client.commit(Transaction(put={b"a": b"1"}))
    assert await client.get(b"a") == b"1"
    elsewhere = Welcome(FORMAT, str(committer.root / "disk2" / "meta" / "state-new"), 1, 2, 9, 1, 0)
    with pytest.raises(MetaUnavailable):
        client._welcome(_Connection(client), elsewhere)
    # Others may have committed to the new one: what the old one says is the past.
    with pytest.raises(MetaUnavailable):
        await client.get(b"a")
    await client.close()
