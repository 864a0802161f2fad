"""Too many connections: whose go first."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientError, ClientSession, web
from aiohttp.test_utils import RawTestServer, make_mocked_request
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


async def test_an_answer_in_pieces_may_take_longer_than_others_but_not_for_ever() -> None:
    begun = asyncio.get_running_loop().time()
    plain, streamed = (make_mocked_request("GET", "/") for _ in range(2))

    async def pieces() -> AsyncIterator[bytes]:
        yield b"piece"

    late = guard.REQUEST_SECONDS + 1
    before = begun - guard.STREAM_SECONDS + 1
    async for _ in guard.noted(streamed, pieces()):
        assert guard._is_late(plain.protocol, begun, begun + late)
        assert guard._is_late(streamed.protocol, begun, begun + late), "no piece since"
        assert guard._is_late(plain.protocol, before, begun)
        assert not guard._is_late(streamed.protocol, before, begun)
        assert guard._is_late(streamed.protocol, before, begun + 2)
    assert guard._is_late(streamed.protocol, before, begun), "it is sent"


async def test_the_watch_ends_what_is_late_and_not_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 0.1)
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.01)  # Nor does an answer under way count as no request.
    monkeypatch.setattr(guard, "_sent", {})
    goes_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await goes_on.wait()
        yield b"last"

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/streamed":
            guard._sent[request.protocol] = asyncio.get_running_loop().time() + LIMIT_S  # As if taken then.
            return web.Response(body=pieces())
        await goes_on.wait()
        return web.Response()

    server = RawTestServer(handle)
    await server.start_server(keepalive_timeout=0.0)
    watching = asyncio.ensure_future(guard.watch(server.runner.server))
    async with asyncio.timeout(LIMIT_S), ClientSession() as session:
        streamed = await session.get(server.make_url("/streamed"))
        with pytest.raises(ClientError):
            await session.get(server.make_url("/"))
        goes_on.set()
        assert await streamed.read() == b"firstlast"
    watching.cancel()
    await server.close()


async def test_whoever_sends_more_requests_has_no_more_time_for_the_one_under_way() -> None:
    goes_on = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await goes_on.wait()
        return web.Response()

    server = RawTestServer(handle)
    await server.start_server()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
    writer.write(request)
    await until(lambda: any(one._request_in_progress for one in server.runner.server.connections))
    (connection,) = server.runner.server.connections
    doing = guard._doing(connection)
    writer.write(request * 2)
    await until(lambda: connection._request_count == 3)
    assert guard._doing(connection) == doing
    goes_on.set()
    async with asyncio.timeout(LIMIT_S):
        await reader.readuntil(b"\r\n\r\n")
    await until(lambda: guard._doing(connection) != doing)
    writer.close()
    await server.close()
