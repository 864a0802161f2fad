"""How fast metadata is on PostgreSQL: `python -m tests.meta.measure_postgres [SECONDS]`.

Mini-transactions a second of one client process and of four, on a server with fsync, on this machine:

hot       each adds to one counter with a limit; 64 callers in each client
spread    as a small PUT does: get, then expect bucket, volume and absence, put, four counters; each
          client has a bucket of its own
bucket    the same, but all clients write to one bucket: two of the counters and its record are everybody's
copy      what `objstore meta copy` does with RECORDS records: copying them, then comparing and verifying them
"""

import asyncio
import os
import resource
import sys
import time
from functools import partial

import uvloop

from objstore.meta.copy import copy
from objstore.meta.kv import Add, DictKv, Transaction, counter
from objstore.meta.kv_postgres import PostgresKv
from tests import postgres

CALLERS = 64
HOT = b"chot"
RECORDS = 200_000


async def load(url: str, what: str, seconds: float) -> None:
    kv = PostgresKv(url)
    await kv.start()
    me = b"%d" % os.getpid()
    volume, bucket = b"V" + me, b"bbucket" + (b"" if what == "bucket" else me)
    counted = b"cbucket" + (b"" if what == "bucket" else me)
    record = b"r" * 60
    await kv.commit(Transaction(put={volume: record, bucket: record}))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    latencies: list[float] = []
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        at = 0
        while time.perf_counter() < end:
            at += 1
            if what == "hot":
                start = time.perf_counter()
                await kv.commit(Transaction(add={HOT: Add(1, 10**12)}))
            else:
                key = b"o" + me + b"some/prefix/key-%d-%d" % (number, at)
                assert await kv.get(key) is None
                start = time.perf_counter()
                await kv.commit(
                    Transaction(
                        expect={key: None, volume: record, bucket: record},
                        put={key: os.urandom(90)},
                        add={
                            counted + b"o": Add(1),
                            counted + b"s": Add(4096, 10**15),
                            b"L" + me: Add(1040),
                            b"G" + me: Add(1040),
                        },
                    )
                )
            latencies.append(time.perf_counter() - start)

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    wall = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime - cpu
    latencies.sort()
    done = len(latencies)
    each = done / max(1, kv.stats.messages)
    p50, p99 = latencies[done // 2] * 1e3, latencies[done * 99 // 100] * 1e3
    print(done, wall, cpu / done * 1e6, p50, p99, each, kv.stats.retries, flush=True)
    await kv.close()


async def run(url: str, what: str, clients: int, seconds: float) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.meta.measure_postgres", "load", url, what, str(seconds),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(clients)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    lines = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    rows = [[float(word) for word in line[0].split()] for line in lines]
    total = sum(row[0] / row[1] for row in rows)
    mean = [sum(row[column] for row in rows) / len(rows) for column in range(7)]
    retries = sum(row[6] for row in rows)
    print(
        f"{what:8} {clients} client(s): {total:8,.0f} a second, {mean[2]:5.0f} us of CPU each in the client,"
        f" p50 {mean[3]:.1f} ms, p99 {mean[4]:.1f} ms, {mean[5]:.0f} a batch, {retries:.0f} retries",
        flush=True,
    )


async def copies(url: str) -> None:
    source = DictKv()
    for at in range(0, RECORDS, 1_000):
        put = {b"o%012d" % number: os.urandom(90) for number in range(at, at + 1_000)}
        await source.commit(Transaction(put=put))
    target = PostgresKv(url, may_copy=True)
    await target.start()
    start = time.perf_counter()
    assert (await copy(source, target, name="measured", standing=False)).put == RECORDS
    middle = time.perf_counter()
    assert (await copy(source, target, name="measured", standing=True)).finished
    end = time.perf_counter()
    print(
        f"copy: {RECORDS / (middle - start):,.0f} records a second,"
        f" compare and verify: {RECORDS / (end - middle):,.0f} a second"
    )
    await target.close()


async def main(*given: str) -> None:
    if given[:1] == ("load",):
        return await load(given[1], given[2], float(given[3]))
    seconds = float(given[0]) if given else 5.0
    print(f"load average {os.getloadavg()[0]:.1f}, PostgreSQL from {postgres.binaries()}")
    server = postgres.PostgresServer()
    try:
        server.start()
        for what in ("hot", "spread", "bucket"):
            for clients in (1, 4):
                name = f"{what}{clients}"
                server.sql(f"CREATE DATABASE {name}")
                await run(server.url(name), what, clients, seconds)
                kv = PostgresKv(server.url(name))
                await kv.start()
                if what == "hot":
                    assert counter(await kv.get(HOT)) > 0
                await kv.close()
        server.sql("CREATE DATABASE copy")
        await copies(server.url("copy"))
    finally:
        server.remove()
    return None


if __name__ == "__main__":
    uvloop.run(partial(main, *sys.argv[1:])())
