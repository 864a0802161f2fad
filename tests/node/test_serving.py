"""HTTP/1.1 as a node serves it: however the bytes come, each request is one request."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from objstore.node import serving
from objstore.node.serving import EARLY_MAX, HEAD_MAX, Listener, Request

LIMIT_S = 20.0
REFUSAL = b"HTTP/1.1 400 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Echo:
    """Answers a request with its path and body; `/at-once` without a task, `/refused` without its body."""

    def __init__(self, *, transfer_s: float = LIMIT_S, idle_s: float = LIMIT_S) -> None:
        self.served: list[str] = []
        self.held = asyncio.Event()
        self.listener = Listener(
            self._handle,
            self._handle_now,
            lambda words: REFUSAL,
            connections_max=10,
            transfer_s=transfer_s,
            idle_s=idle_s,
        )

    async def start(self) -> int:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self.listener, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self.server.close()
        await self.listener.close(LIMIT_S)

    def _handle_now(self, request: Request) -> bool:
        if request.path != "/at-once":
            return False
        self.served.append(request.path)
        request.send_now([self.answer(b"now")])
        return True

    async def _handle(self, request: Request) -> None:
        self.served.append(request.path)
        if request.path == "/held":
            await self.held.wait()
        if request.path == "/refused":
            await request.send([REFUSAL if not request.can_go_on else self.answer(b"refused")])
            return
        room = bytearray(request.size or 0)
        if room:
            await request.receive(memoryview(room))
        await request.send([self.answer(request.path.encode() + b" " + room)])

    @staticmethod
    def answer(body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    served = Echo()
    yield served
    served.held.set()
    await served.close()


def request(path: str, body: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


async def told(port: int, pieces: list[bytes]) -> bytes:
    """What comes back for these bytes, sent piece by piece, until the other end closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(LIMIT_S):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        answer = await reader.read()
    writer.close()
    return answer


async def test_requests_that_come_in_any_pieces_are_the_same_requests(echo: Echo) -> None:
    port = await echo.start()
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    bodies = [b"", b"x", chance.randbytes(20_000), chance.randbytes(300_000)]
    last = b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"
    for _ in range(30):
        chosen = [chance.choice(bodies) for _ in range(3)]
        paths = [chance.choice(("/a", "/at-once", "/refused")) for _ in chosen]
        # What is answered without its body must have none: else the connection ends there.
        chosen = [body if path == "/a" else b"" for path, body in zip(paths, chosen, strict=True)]
        stream = b"".join(map(request, paths, chosen)) + last
        cuts = sorted(chance.randrange(len(stream)) for _ in range(chance.randrange(6)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        words = {"/a": b"/a ", "/at-once": b"now", "/refused": b"refused"}
        expected = [words[path] + body for path, body in zip(paths, chosen, strict=True)] + [b"/last "]
        assert await told(port, pieces) == b"".join(map(echo.answer, expected))


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(40)) + b"\r\n",
        b"GET /" + b"a" * HEAD_MAX,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_whatever_follows_it_is_not_heard(
    echo: Echo, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LINGER_S", 0.2)
    port = await echo.start()
    assert await told(port, [head, request("/a")]) == REFUSAL
    assert not echo.served


async def test_who_is_refused_reads_why_even_while_still_sending(echo: Echo) -> None:
    port = await echo.start()
    body = bytes(2_000_000)
    assert await told(port, [request("/refused", body), request("/a")]) == REFUSAL
    assert echo.served == ["/refused"]


async def test_a_peer_that_sends_on_while_it_is_served_fills_no_memory(echo: Echo) -> None:
    port = await echo.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request("/held"))
    async with asyncio.timeout(LIMIT_S):
        while echo.served != ["/held"]:
            await asyncio.sleep(0.001)
        (connection,) = echo.listener.connections
        body = bytes(8_000_000)
        writer.write(request("/a", body))
        while connection._reads:
            await asyncio.sleep(0.001)
        assert EARLY_MAX < len(connection._early) <= EARLY_MAX + len(echo.listener.scratch)
        echo.held.set()
        assert await reader.readexactly(len(echo.answer(b"/held "))) == echo.answer(b"/held ")
        answer = echo.answer(b"/a " + body)
        assert await reader.readexactly(len(answer)) == answer
    writer.close()


@pytest.mark.parametrize("start", [b"", b"GET / HT", request("/a", b"abc")[:-1]])
async def test_a_connection_on_which_nothing_comes_is_cut(start: bytes) -> None:
    echo = Echo(transfer_s=0.1, idle_s=0.1)
    port = await echo.start()
    try:
        assert await told(port, [start]) == b""
    except ConnectionResetError:
        pass
    await echo.close()


async def test_who_does_not_take_an_answer_is_cut() -> None:
    echo = Echo(transfer_s=0.2)
    port = await echo.start()
    body = bytes(30_000_000)
    echo.answer = lambda given: Echo.answer(body)  # type: ignore[method-assign]
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
    # 30 s for so many bytes at the least that a peer must take; so this one looks as if they were fewer.
    (connection,) = await _connections(echo)
    connection.drain = lambda size, drain=connection.drain: drain(0)  # type: ignore[method-assign, misc]
    writer.write(request("/a"))
    async with asyncio.timeout(LIMIT_S):
        while echo.listener.connections:
            await asyncio.sleep(0.01)
    writer.close()
    await echo.close()


async def _connections(echo: Echo) -> list[object]:
    async with asyncio.timeout(LIMIT_S):
        while not echo.listener.connections:
            await asyncio.sleep(0.001)
    return list(echo.listener.connections)
