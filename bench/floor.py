"""The machine's floor: what the same hardware does without a store.

Run as a program it is a bare aiohttp application (one route; reads the body and answers 200, answers N bytes,
or streams them) with as many SO_REUSEPORT workers as asked. As a module it measures MD5, fdatasync and
sequential writes.

    python -m bench.floor --listen 127.0.0.1:9400 --workers 2
"""

import argparse
import asyncio
import hashlib
import os
import signal
import statistics
import sys
import time
from pathlib import Path

from aiohttp import web

from bench.load import Payload

_STREAM_CHUNK = 1024 * 1024
SMALL_MAX = 1024 * 1024  # Up to here the answer is one Response; beyond, it is streamed.


def application() -> web.Application:
    """One route. A GET names the size it wants as the path's second segment: /bench/<size>/..."""
    bodies: dict[int, bytes] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            size = int(request.path.split("/")[2])
            body = bodies.get(size)
            if body is None:
                body = bodies[size] = Payload(size=size).make()
            if size <= SMALL_MAX:
                return web.Response(body=body)
            response = web.StreamResponse(headers={"Content-Length": str(size)})
            await response.prepare(request)
            view = memoryview(body)
            for at in range(0, size, _STREAM_CHUNK):
                await response.write(view[at : at + _STREAM_CHUNK])
            await response.write_eof()
            return response
        if (request.content_length or 0) <= SMALL_MAX:
            await request.read()
        else:
            async for _ in request.content.iter_any():
                pass
        return web.Response()

    app = web.Application(client_max_size=2**31)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def _serve(host: str, port: int) -> None:
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_port=True, backlog=1024).start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.floor", description="A bare aiohttp handler.")
    parser.add_argument("--listen", default="127.0.0.1:9400")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    import uvloop

    children = []
    for _ in range(options.workers):
        pid = os.fork()
        if pid == 0:
            uvloop.run(_serve(host, int(port)))
            return 0
        children.append(pid)

    def stop(*_: object) -> None:
        for pid in children:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for pid in children:
        os.waitpid(pid, 0)
    return 0


# -- what the disk and the processor do by themselves ----------------------------------------------------


def busy_share(seconds: float = 1.0) -> float:
    """Share of the processors' time that is in use (by others: the caller sleeps), steal included."""

    def read() -> tuple[int, int]:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]  # All; idle and waiting for disks.

    before = read()
    time.sleep(seconds)
    after = read()
    return 1 - (after[1] - before[1]) / max(after[0] - before[0], 1)


def md5_rate(size: int = 256 * 1024 * 1024) -> float:
    """Bytes a second on one core, best of three (the floor of a single-stream PUT: its ETag)."""
    chunk = os.urandom(4 * 1024 * 1024)
    best = 0.0
    for _ in range(3):
        digest = hashlib.md5(usedforsecurity=False)
        started = time.perf_counter()
        for _ in range(size // len(chunk)):
            digest.update(chunk)
        best = max(best, size / (time.perf_counter() - started))
    return best


def fdatasync_latency(directory: Path, count: int = 400) -> tuple[float, float]:
    """Seconds, p50 and p99, to append 4 KiB to a file and sync it."""
    path = directory / "floor.fdatasync"
    block = os.urandom(4096)
    times = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        for _ in range(count):
            started = time.perf_counter()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        path.unlink()
    times.sort()
    return statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.99))]


def write_rate(directory: Path, size: int = 1024**3, times: int = 3) -> float:
    """Bytes a second of sequential 1 MiB writes, the fdatasync at the end included; median of `times`."""
    path = directory / "floor.write"
    block = os.urandom(1024 * 1024)
    rates = []
    for _ in range(times):
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            started = time.perf_counter()
            for _ in range(size // len(block)):
                os.write(descriptor, block)
            os.fdatasync(descriptor)
            rates.append(size / (time.perf_counter() - started))
        finally:
            os.close(descriptor)
            path.unlink()
    return statistics.median(rates)


if __name__ == "__main__":
    sys.exit(main())
