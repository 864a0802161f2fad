"""Too many connections: whose go first."""

import asyncio
import socket

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from objstore.admin import guard
from tests.waiting import LIMIT_S, until


async def test_of_too_many_connections_those_of_strangers_and_without_a_request_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "CONNECTIONS_MAX", 2)
    monkeypatch.setattr(guard, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(guard, "HEADER_SECONDS", 3600.0)
    known: set[int] = set()
    goes_on = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await goes_on.wait()
        return web.Response(text="done")

    def is_known(connection: RequestHandler) -> bool:
        assert connection.transport is not None
        return connection.transport.get_extra_info("peername")[1] in known

    server = web.Server(handle, access_log=None)
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server, sock=listener)

    async def connect(*, sends: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        writer.write(sends)
        return reader, writer

    request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
    members = [await connect()]  # The oldest, and without a request.
    known.add(members[0][1].get_extra_info("sockname")[1])
    busy = await connect(sends=request)
    silent = [await connect() for _ in range(3)]
    async with asyncio.timeout(LIMIT_S):
        await until(
            lambda: len(server.connections) == 5 and any(one._current_request for one in server.connections)
        )
        watching = asyncio.ensure_future(guard.watch(server, is_known))
        for reader, _ in silent:
            assert await reader.read() == b""
        goes_on.set()
        assert (await busy[0].readline()).startswith(b"HTTP/1.1 200")
        members[0][1].write(request)
        assert (await members[0][0].readline()).startswith(b"HTTP/1.1 200")
    watching.cancel()
    listening.close()
    for _, writer in (*members, busy, *silent):
        writer.close()
    await server.shutdown(1.0)
