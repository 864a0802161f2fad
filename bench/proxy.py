"""The floor of a cluster: a bare aiohttp proxy before bare aiohttp nodes, over the cluster's own mutual TLS.

What a gateway costs that is written with aiohttp and does nothing else: one client's request becomes one
request to one node, over pooled keep-alive connections (TLS 1.3, both sides show certificates of a cluster's
authority, as node/tls.py makes them), and what comes is passed on. Nothing is verified, looked up or decoded.

    python -m bench.proxy --listen 127.0.0.1:9500 --nodes 8 --workers 1 --scratch DIR

`--fetch SECONDS` has no proxy: an aiohttp client fetches 1 MiB from every node at once, again and again, and
prints how many bytes a second came. What repair is measured against.
"""

import argparse
import asyncio
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop
from aiohttp import web

from bench.floor import SMALL_MAX, application
from bench.targets import free_port
from objstore.node import authority as ca
from objstore.node import tls
from objstore.node.authority import GATEWAY, NODE, Name
from objstore.node.tls import Credentials, Trust

CLUSTER: Final = b"c" * 16
NODE_ID: Final = b"\1" * 16  # All bare nodes are one member: who they are costs the same.
GATEWAY_ID: Final = b"\2" * 16
READY_S: Final = 60.0
CONNECTIONS: Final = 32  # To one node from one worker: as many as a gateway's pool has.


def make_members(scratch: Path) -> None:
    """An authority, and the identities of one node and one gateway, in directories named by their roles."""
    now_us = time.time_ns() // 1000
    authority = ca.make_authority(CLUSTER, 1, now_us)
    trust = Trust(
        cluster=CLUSTER.hex(),
        number=1,
        roots=[root.pem for root in authority.roots],
        signer=authority.signing.name,
    )
    for role, id_ in ((NODE, NODE_ID), (GATEWAY, GATEWAY_ID)):
        directory = scratch / role
        directory.mkdir()
        key = ca.make_key()
        certificate = authority.issue(key.public_key(), Name(CLUSTER, role, id_), now_us)
        tls.save_identity(directory, ca.key_to_pem(key), ca.to_pem(certificate))
        tls.save_trust(directory, trust)


def _proxy(nodes: list[str], context: ssl.SSLContext) -> web.Application:
    """Passes a GET on to one node, the next for each; answers anything else itself, its body read."""
    app = web.Application(client_max_size=2**31)
    turn = 0

    async def sessions(app: web.Application) -> Any:
        connector = aiohttp.TCPConnector(ssl=context, limit=0, limit_per_host=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            app["session"] = session
            yield

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal turn
        if request.method != "GET":
            async for _ in request.content.iter_any():
                pass
            return web.Response()
        turn += 1
        node = nodes[turn % len(nodes)]
        async with request.app["session"].get(node + request.path) as theirs:
            size = int(theirs.headers["Content-Length"])
            if size <= SMALL_MAX:
                return web.Response(body=await theirs.read())
            ours = web.StreamResponse(headers={"Content-Length": str(size)})
            await ours.prepare(request)
            async for piece in theirs.content.iter_any():
                await ours.write(piece)
            await ours.write_eof()
            return ours

    app.cleanup_ctx.append(sessions)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def _serve(app: web.Application, host: str, port: int, context: ssl.SSLContext | None) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_port=True, backlog=1024, ssl_context=context).start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()


async def _fetch(nodes: list[str], context: ssl.SSLContext, seconds: float) -> float:
    """Bytes a second that one client gets."""
    size = 1024 * 1024
    began = ends = time.monotonic()
    fetched = 0
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def fetch(node: str, until: float) -> int:
            done = 0
            while time.monotonic() < until or not done:
                async with session.get(f"{node}/bench/{size}/piece") as answer:
                    done += len(await answer.read())
            return done

        for length in (0.0, seconds):  # First one each: connections, and the bodies made.
            began = time.monotonic()
            fetched = sum(await asyncio.gather(*(fetch(node, began + length) for node in nodes)))
            ends = time.monotonic()
    return fetched / (ends - began)


def _reachable(ports: list[int]) -> None:
    """Wait until somebody listens on each."""
    limit = time.monotonic() + READY_S
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.05)


def _fork(serve: Callable[[], Coroutine[Any, Any, None]]) -> int:
    pid = os.fork()
    if pid == 0:
        uvloop.run(serve())
        os._exit(0)
    return pid


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.proxy", description="A bare aiohttp proxy and its nodes.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--listen", metavar="HOST:PORT", help="of the proxy")
    what.add_argument("--fetch", type=float, metavar="SECONDS", help="instead of a proxy")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1, help="of the proxy; each node has one process")
    parser.add_argument("--scratch", type=Path, required=True, help="for keys and certificates; empty")
    options = parser.parse_args(arguments)
    host, _, port = (options.listen or "").rpartition(":")
    make_members(options.scratch)
    ports = [free_port() for _ in range(options.nodes)]

    async def node(port: int) -> None:
        context = Credentials(options.scratch / NODE).server_context(GATEWAY)
        await _serve(application(), "127.0.0.1", port, context)

    nodes = [f"https://127.0.0.1:{port}" for port in ports]

    def context() -> ssl.SSLContext:
        return Credentials(options.scratch / GATEWAY).client_context(NODE, NODE_ID)

    async def proxy() -> None:
        await _serve(_proxy(nodes, context()), host, int(port), None)

    children = [_fork(lambda port=port: node(port)) for port in ports]  # type: ignore[misc]
    if not options.fetch:
        children += [_fork(proxy) for _ in range(options.workers)]

    def stop(*_: object) -> None:
        for pid in children:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        if options.fetch:
            _reachable(ports)
            print(uvloop.run(_fetch(nodes, context(), options.fetch)))
    finally:
        if options.fetch:
            stop()
    for pid in children:
        os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
