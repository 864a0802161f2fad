"""How fast metadata is, over real disks: `python -m tests.meta.measure commits|reads|rebuild [COUNT]`.

commits   mini-transactions a second through a committer process (64 callers in one client, then 32 in
          each of two): get, then expect + put + four counters, as a small PUT does; CPU of both sides
reads     a get, a get_many of 2, a scan of 1,000
rebuild   LMDB built again from a snapshot and a journal tail, in seconds per million keys
"""

import asyncio
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import uvloop

from objstore.clock import SystemClock
from objstore.meta.client import MetaClient
from objstore.meta.committer import CommitterStats, run_committer
from objstore.meta.journal import KIND_BATCH, Resolved, encode
from objstore.meta.kv import Add, Transaction
from objstore.meta.log_names import snapshot_name
from objstore.meta.recovery import recover
from objstore.meta.snapshot import FoldPlan, fold
from objstore.node.identity import make_identity
from objstore.node.local import LocalDisk, format_disk, open_disk

CLUSTER = b"measured cluster"


def make_disks(root: Path) -> None:
    for number in range(1, 7):
        identity = make_identity(cluster=CLUSTER, uuid=bytes([number]) * 16, number=number, checksum_secret=7)
        format_disk(str(root / f"disk{number}"), identity)


def open_disks(root: Path) -> list[LocalDisk]:
    return [open_disk(str(root / f"disk{number}")) for number in range(1, 7)]


def directories(root: Path) -> list[Path]:
    return [root / f"disk{number}" / "meta" for number in range(1, 7)]


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def committer(root: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    stats = CommitterStats()
    began = 0.0

    def ready() -> None:
        nonlocal began
        began = cpu_s()
        print("ready", flush=True)

    await run_committer(
        socket_path=root / "s",
        disks=open_disks(root),
        copies=3,
        cluster=CLUSTER,
        state_directories=directories(root),
        ready=ready,
        stop=stop,
        stats=stats,
    )
    each = (cpu_s() - began) / max(1, stats.transactions) * 1e6
    print(
        f"   committer: {each:.1f} us of CPU each, {stats.transactions / stats.rounds:.0f} a round,"
        f" {stats.journal_size / stats.transactions:.0f} journal bytes each (per copy)",
        flush=True,
    )


async def load(root: Path, count: int, callers: int, window: int) -> None:
    client = MetaClient(root / "s", window=window)
    await client.start()
    me = os.getpid()
    volume, bucket = b"V%07d" % me, b"bbucket%d" % me
    record = b"r" * 60
    await client.commit(Transaction(put={volume: record, bucket: record}))
    latencies: list[float] = []

    async def caller(number: int) -> None:
        for at in range(count // callers):
            key = b"o%08d" % me + b"some/prefix/key-%d-%d" % (number, at)
            assert await client.get(key) is None
            start = time.perf_counter()
            await client.commit(
                Transaction(
                    expect={key: None, volume: record, bucket: record},
                    put={key: os.urandom(90)},
                    add={
                        b"c1%d" % me: Add(1),
                        b"c2%d" % me: Add(4096, 10**15),
                        b"L%d" % me: Add(1040),
                        b"G%d" % me: Add(1040),
                    },
                )
            )
            latencies.append(time.perf_counter() - start)

    cpu, wall = cpu_s(), time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    latencies.sort()
    done = len(latencies)
    print(
        f"   client: {done / wall:,.0f} a second, {cpu / done * 1e6:.1f} us of CPU each,"
        f" p50 {latencies[done // 2] * 1e3:.1f} ms, p99 {latencies[done * 99 // 100] * 1e3:.1f} ms,"
        f" {done / client.stats.messages:.0f} a message",
        flush=True,
    )
    await client.close()


async def spawn(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.meta.measure", *arguments, stdout=asyncio.subprocess.PIPE
    )


async def commits(root: Path, count: int) -> None:
    for clients in (1, 2):
        for window in (1, 2, 4):
            server = await spawn("committer", str(root))
            assert server.stdout is not None
            await server.stdout.readline()
            print(f"{clients} client(s) of {64 // clients} callers, {window} message(s) outstanding")
            start = time.perf_counter()
            workers = [
                await spawn("load", str(root), str(count // clients), str(64 // clients), str(window))
                for _ in range(clients)
            ]
            for worker in workers:
                print((await worker.communicate())[0].decode(), end="")
            del start
            server.terminate()
            print((await server.communicate())[0].decode(), end="", flush=True)


async def reads(root: Path, count: int) -> None:
    recovered = await fresh(root)
    items = [(b"o%012d" % number, os.urandom(90)) for number in range(200_000)]
    state = recovered.state
    state.load(items)
    keys = [key for key, _ in items[:: max(1, len(items) // count)]]

    def timed(what: str, times: int, step: object) -> None:
        assert callable(step)
        start = time.process_time()
        step()
        print(f"   {what}: {(time.process_time() - start) / times * 1e6:.2f} us of CPU")

    timed("get", len(keys), lambda: [state.get(key) for key in keys])
    pairs = [keys[at : at + 2] for at in range(len(keys) - 2)]
    timed("get_many of 2", len(pairs), lambda: [state.get_many(pair) for pair in pairs])
    timed("scan of 1,000", 100, lambda: [state.scan(keys[at], b"p", 1_000) for at in range(100)])
    state.close()


async def fresh(root: Path, boot: str | None = None, progress: object = None):  # type: ignore[no-untyped-def]
    return await recover(
        open_disks(root),
        copies=3,
        cluster=CLUSTER,
        state_directories=directories(root),
        clock=SystemClock(),
        boot=boot,
        progress=progress,  # type: ignore[arg-type]
    )


async def rebuild(root: Path, count: int) -> None:
    """`count` keys in a snapshot, a tenth of them again in the journal."""
    recovered = await fresh(root)
    journal, state = recovered.journal, recovered.state

    async def append(numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 1_000):
            put = {
                b"o%08d" % 1 + b"some/prefix/key-%09d" % number: os.urandom(65)
                for number in numbers[start : start + 1_000]
            }
            await journal.append(KIND_BATCH, encode(Resolved([], put, [])))

    rng = __import__("random").Random(1)
    order = list(range(count))
    rng.shuffle(order)
    await append(order)
    await journal.roll(state=state.state_id())
    segments = journal.header.segments
    plan = FoldPlan(
        CLUSTER,
        snapshot_name(segments[-1].sequence, journal.header.epoch),
        None,
        segments,
        [1, 2, 3, 4, 5, 6],
        journal.header.members,
        0,
    )
    start, cpu = time.perf_counter(), cpu_s()
    made = await fold(open_disks(root), plan)
    print(
        f"   fold of {count:,} keys: {time.perf_counter() - start:.1f} s, {cpu_s() - cpu:.1f} s of CPU;"
        f" {made.size / count:.0f} bytes a key in each copy of the snapshot"
    )
    await journal.roll(state=state.state_id(), snapshot=made)
    await append(order[: count // 10])
    state.close()
    for path in root.glob("disk*/meta/state-*"):
        shutil.rmtree(path)
    start, cpu = time.perf_counter(), cpu_s()
    again = await fresh(root)
    took, spent = time.perf_counter() - start, cpu_s() - cpu
    assert again.state.entry_count() == count
    print(
        f"   rebuild: {took:.1f} s, {spent:.1f} s of CPU = {spent / count * 1e6:.1f} s per million keys;"
        f" LMDB {os.stat(again.state.path / 'data.mdb').st_blocks * 512 / count:.0f} bytes a key"
    )
    again.state.close()
    start = time.perf_counter()
    last = await fresh(root)
    print(f"   restart of the same: {time.perf_counter() - start:.2f} s")
    last.state.close()


async def main(what: str, *given: str) -> None:
    if what == "committer":
        return await committer(Path(given[0]))
    if what == "load":
        return await load(Path(given[0]), *map(int, given[1:]))
    root = Path(tempfile.mkdtemp(prefix="measure-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        make_disks(root)
        print(what, f"load average {os.getloadavg()[0]:.1f}")
        step = {"commits": commits, "reads": reads, "rebuild": rebuild}[what]
        await step(
            root, int(given[0]) if given else {"commits": 40_000, "reads": 50_000, "rebuild": 500_000}[what]
        )
    finally:
        shutil.rmtree(root)
    return None


if __name__ == "__main__":
    uvloop.run(partial(main, *sys.argv[1:])())
