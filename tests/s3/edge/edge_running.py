"""A running edge with trivial handlers behind it: what reaches a handler is what the edge let through."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aiohttp import web
from edge_signing import NOW, FakeDirectory

from objstore.s3.app import App
from objstore.s3.call import Call, Route
from objstore.s3.errors import not_implemented
from objstore.s3.limits import Limits
from objstore.s3.server import Runner, serve_s3

# For an answer, or an end. Below the default of every time but `linger_seconds` after which the edge ends a
# connection by itself: what a test sets is what it sees.
WITHIN_S = 9.0


@dataclass
class Seen:
    """What a handler saw."""

    operation: str
    bucket: str
    key: str
    query: dict[str, str]
    body: bytes
    user: str


@dataclass
class Edge:
    """A running edge and a raw client for it."""

    app: App
    runner: Runner
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = self.runner.port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)

    async def send(self, wire: bytes, *, half_close: bool = False, timeout: float = WITHIN_S) -> "Answer":
        """Send bytes on a connection of their own, read one answer."""
        reader, writer = await self.connect()
        try:
            writer.write(wire)
            if half_close:
                writer.write_eof()
            return await asyncio.wait_for(read_answer(reader, head_only=wire.startswith(b"HEAD ")), timeout)
        finally:
            writer.close()


class Line:
    """One keep-alive connection after another: a new one whenever the edge closes the last."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, wire: bytes) -> "Answer":
        if self.streams is None:
            self.streams = await self.edge.connect()
        reader, writer = self.streams
        writer.write(wire)
        answer = await asyncio.wait_for(read_answer(reader, head_only=wire.startswith(b"HEAD ")), WITHIN_S)
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # Lower-case names.
    body: bytes

    @property
    def code(self) -> str:
        """S3's error code."""
        start = self.body.find(b"<Code>")
        return self.body[start + 6 : self.body.index(b"</Code>")].decode() if start >= 0 else ""


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return int(first.split(" ")[1]), headers


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    status, headers = await read_head(reader)
    body = b""
    if not head_only and status not in (100, 204, 304):
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            body = await reader.read()
    return Answer(status, headers, body)


Handle = Callable[[Call], Awaitable[web.StreamResponse]]
Start = Callable[..., Awaitable[Edge]]

SMALL_LIMITS = Limits(
    header_seconds=0.3,
    idle_seconds=2.0,
    body_seconds=0.4,
    rate_after_seconds=0.5,
    linger_seconds=0.5,
    sweep_seconds=0.05,
)


@pytest.fixture
async def start_edge() -> AsyncIterator[Start]:
    """Starts edges; stops them after the test."""
    edges: list[Edge] = []

    async def start(
        handle: Handle | None = None,
        *,
        limits: Limits = SMALL_LIMITS,
        operation: Callable[[str, str, str, Any], str] | None = None,
        **settings: Any,
    ) -> Edge:
        seen: list[Seen] = []

        async def note(call: Call) -> web.StreamResponse:
            body = b"".join([bytes(chunk) async for chunk in call.body])
            await call.body.digests()
            seen.append(Seen(call.operation, call.bucket, call.key, call.query, body, call.who.user))
            return web.Response(body=b"" if call.method == "PUT" else b"hello")

        def choose(method: str, bucket: str, key: str, query: Any, headers: Any) -> Route:
            if method not in ("GET", "HEAD", "PUT", "POST", "DELETE"):
                raise not_implemented(f"The method {method}")
            name = "PutObject" if method == "PUT" and key else f"{method}Test"
            if operation is not None:
                name = operation(method, bucket, key, query)
            return Route(
                operation=name, method=method, target="object", handler=handle or note, rule="tenant"
            )

        settings.setdefault("directory", FakeDirectory())
        settings.setdefault("choose", choose)
        settings.setdefault("routes", [])
        settings.setdefault("now", lambda: NOW)
        app = App(store=cast(Any, None), limits=limits, **settings)
        runner = await serve_s3(app, [socket.create_server(("127.0.0.1", 0))])
        edges.append(Edge(app, runner, seen))
        return edges[-1]

    yield start
    for edge in edges:
        await edge.runner.stop(0.5)
        edge.app.close()


@pytest.fixture
async def edge(start_edge: Start) -> Edge:
    return await start_edge()


@pytest.fixture
def bug_expected() -> None:
    """For tests about what is logged."""


@pytest.fixture(autouse=True)
def no_tracebacks(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Any:
    """No test of the edge may leave a traceback in the log, unless it is about one."""
    logging.getLogger("botocore").setLevel(logging.WARNING)
    caplog.set_level(logging.DEBUG)
    yield
    if "bug_expected" not in request.fixturenames:
        bad = [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]
        assert not bad, [r.getMessage() for r in bad]
