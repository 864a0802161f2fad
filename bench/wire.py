"""What a disk costs over the network: a storage node and a bare aiohttp server, measured in turn.

    python -m bench.wire [--count 2000] [--tls] [--scratch DIR]

A node with six disks and a bare aiohttp handler run in a process each; this one is the gateway, or aiohttp's
own client, in turn, three times; the median counts. CPU is that of each side, a request (`six disks`: a
stripe, one request of six appends). The same appends on a local disk tell what of it is the disk's.
`--tls`: both over the same mutually authenticated TLS 1.3.
"""

import argparse
import asyncio
import os
import resource
import shutil
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop
from aiohttp import web

from bench.proxy import CLUSTER, NODE_ID, make_members
from objstore.node.authority import GATEWAY, NODE
from objstore.node.identity import make_identity
from objstore.node.local import DiskOptions, format_disk, open_disk
from objstore.node.pool import Address
from objstore.node.remote import RemoteNode
from objstore.node.server import NodeServer, members_only
from objstore.node.tls import Credentials

DISKS = range(1, 7)
WIDTH = 16
ROUNDS = 3
SIZES = {"4 KiB": 4 * 1024, "64 KiB": 64 * 1024, "1 MiB": 1024 * 1024}
OPTIONS = DiskOptions(low_water=0)


class Row(NamedTuple):
    label: str
    width: int
    server: int  # Which of the two; -1: none.
    call: Callable[[int], Awaitable[object]]
    part: float = 1.0  # Of the count: large things fewer times.


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# The two servers.


async def until_told(pipe: Connection, port: int) -> None:
    """Say that we serve, and our CPU seconds whenever asked, until told to end."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def answer() -> None:
        if pipe.recv() == "cpu":
            pipe.send(cpu_s())
        else:
            ended.set_result(None)

    loop.add_reader(pipe.fileno(), answer)
    pipe.send(port)
    await ended


def bound() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(256)
    return sock


async def serve_node(pipe: Connection, scratch: Path, with_tls: bool) -> None:
    disks = {number: open_disk(str(scratch / str(number)), options=OPTIONS) for number in DISKS}
    sock = bound()
    if with_tls:
        credentials = Credentials(scratch / "node")
        server = NodeServer(disks, cluster=CLUSTER, admit=members_only(credentials))
        await server.serve([sock], credentials.server_context(GATEWAY))
    else:
        server = NodeServer(disks, cluster=CLUSTER)
        await server.serve([sock], None)
    await until_told(pipe, sock.getsockname()[1])


async def serve_bare(pipe: Connection, scratch: Path, with_tls: bool) -> None:
    bodies = {str(size): os.urandom(size) for size in SIZES.values()}

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            await request.read()
            return web.Response(body=b"done")
        return web.Response(body=bodies[request.path[1:]])

    sock = bound()
    context = Credentials(scratch / "node").server_context(GATEWAY) if with_tls else None
    server = web.Server(answer, access_log=None)
    await asyncio.get_running_loop().create_server(server, sock=sock, ssl=context)
    await until_told(pipe, sock.getsockname()[1])


# The gateway's side.


async def timed(row: Row, pipes: list[Connection], count: int) -> tuple[float, float, float]:
    """(requests a second, CPU us of the client, of the server), a request."""

    def server_cpu() -> float:
        if row.server < 0:
            return 0.0
        pipes[row.server].send("cpu")
        told: float = pipes[row.server].recv()
        return told

    for lane in range(row.width):
        await row.call(lane)
    left = iter(range(count))

    async def go(lane: int) -> None:
        for _ in left:
            await row.call(lane)

    server, client, start = server_cpu(), cpu_s(), time.perf_counter()
    await asyncio.gather(*(go(lane) for lane in range(row.width)))
    took = time.perf_counter() - start
    return count / took, 1e6 * (cpu_s() - client) / count, 1e6 * (server_cpu() - server) / count


async def measure(
    scratch: Path, pipes: list[Connection], ports: list[int], arguments: argparse.Namespace
) -> None:
    context: ssl.SSLContext | None = None
    if arguments.tls:
        context = Credentials(scratch / "gateway").client_context(NODE, NODE_ID)
    node = RemoteNode(
        Address("127.0.0.1", ports[0]), number=1, cluster=CLUSTER, epoch=lambda: 0, context=context
    )
    disks = [node.disk(number, bytes([number]) * 16) for number in DISKS]
    await node.start()
    local = open_disk(str(scratch / "local"), options=OPTIONS)
    body = os.urandom(SIZES["4 KiB"])
    ends = [0] * (WIDTH + 2)
    for volume in range(1, WIDTH + 3):
        for disk in disks:
            await disk.create(volume, 0)
    await local.create(1, 0)
    await disks[0].create(99, 0)
    for at in range(4):
        await disks[0].append(99, 0, at << 20, [os.urandom(1 << 20)], sync=True)
    rooms = [memoryview(bytearray(SIZES["1 MiB"])) for _ in range(WIDTH)]
    base = f"{'https' if arguments.tls else 'http'}://127.0.0.1:{ports[1]}"

    async def append(lane: int) -> None:
        at, ends[lane] = ends[lane], ends[lane] + len(body)
        await disks[0].append(lane + 1, 0, at, [body], sync=True)

    async def append_six(lane: int) -> None:
        at, ends[WIDTH] = ends[WIDTH], ends[WIDTH] + len(body)
        await asyncio.gather(*(disk.append(WIDTH + 1, 0, at, [body], sync=True) for disk in disks))

    async def append_local(lane: int) -> None:
        at, ends[WIDTH + 1] = ends[WIDTH + 1], ends[WIDTH + 1] + len(body)
        await local.append(1, 0, at, [body], sync=True)

    def read(size: int) -> Callable[[int], Awaitable[object]]:
        async def call(lane: int) -> None:
            assert await disks[0].read(99, 0, 4096, [rooms[lane][:size]]) == size

        return call

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=32, ssl=context or False)
    ) as session:

        async def post(lane: int) -> None:
            async with session.post(base, data=body) as answer:
                await answer.read()

        def get(size: int) -> Callable[[int], Awaitable[object]]:
            async def call(lane: int) -> None:
                async with session.get(f"{base}/{size}") as answer:
                    assert len(await answer.read()) == size

            return call

        rows: list[Row] = []
        for label, size in SIZES.items():
            part = 0.2 if size > 100_000 else 1.0
            rows.append(Row(f"bare aiohttp, GET {label}", WIDTH, 1, get(size), part))
            rows.append(Row(f"disk, read {label}", WIDTH, 0, read(size), part))
        rows += [
            Row("bare aiohttp, POST 4 KiB", 1, 1, post),
            Row("disk, append 4 KiB and sync", 1, 0, append),
            Row("six disks, append 4 KiB and sync each", 1, 0, append_six, 0.3),
            Row("the same on one local disk", 1, -1, append_local),
            Row("bare aiohttp, POST 4 KiB", WIDTH, 1, post),
            Row("disk, append 4 KiB and sync", WIDTH, 0, append),
        ]
        found: dict[int, list[tuple[float, float, float]]] = {}
        for _ in range(ROUNDS):
            for number, row in enumerate(rows):
                found.setdefault(number, []).append(
                    await timed(row, pipes, max(1, int(arguments.count * row.part)))
                )
        print(f"{'':40}{'at once':>8}{'a second':>10}{'client us':>11}{'server us':>11}")
        for number, row in enumerate(rows):
            rate, client, server = (statistics.median(values) for values in zip(*found[number], strict=True))
            print(f"{row.label:40}{row.width:8}{rate:10.0f}{client:11.1f}{server:11.1f}")
    for disk in disks:
        disk.close()
    local.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2_000, help="requests a row and round")
    parser.add_argument("--tls", action="store_true", help="mutually authenticated TLS on both")
    parser.add_argument("--scratch", type=Path, default=Path(__file__).parent / "out", help="on a real disk")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=arguments.scratch, prefix="wire-"))
    processes = []
    try:
        for number in DISKS:
            uuid = bytes([number]) * 16
            identity = make_identity(cluster=CLUSTER, uuid=uuid, number=number, checksum_secret=77)
            format_disk(str(scratch / str(number)), identity)
        format_disk(
            str(scratch / "local"),
            make_identity(cluster=CLUSTER, uuid=b"l" * 16, number=9, checksum_secret=77),
        )
        make_members(scratch)
        pipes: list[Connection] = []
        context = ForkContext()
        for serve in (serve_node, serve_bare):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=lambda serve=serve, theirs=theirs: uvloop.run(serve(theirs, scratch, arguments.tls)),
                daemon=True,
            )
            process.start()
            processes.append(process)
            pipes.append(ours)
        ports: list[int] = [pipe.recv() for pipe in pipes]
        uvloop.run(measure(scratch, pipes, ports, arguments))
        for pipe in pipes:
            pipe.send("end")
    finally:
        for process in processes:
            process.join(5)
            process.kill()
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
