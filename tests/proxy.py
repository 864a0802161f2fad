"""A network that fails where a test says so: a proxy on loopback that cuts, slows down and swallows.

It passes bytes between a port of its own and another one. `cut` ends a connection at an exact byte: of a
request before the node has it all, or of an answer before the gateway has it. Nothing in it depends on time,
but `rate` and `delay_s`.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from objstore.processes.dev import free_ports

PIECE = 64 * 1024


@dataclass
class _Cut:
    up: bool  # Of what goes to the node; else of what comes from it.
    after: int  # Bytes that still pass, on all connections together, from now on.
    times: int


class Proxy:
    """Between `port` and a port of loopback.

    Attributes:
        rate: bytes a second and direction, on each connection; 0: as fast as it goes.
        delay_s: how long what comes from the far side is held up, on each connection.
        passed: bytes that went (to the node, from the node).
        on_cut: called when a connection was cut.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.rate = 0
        self.delay_s = 0.0
        self.passed = [0, 0]
        self.cuts = 0
        self._stopped = False
        self.on_cut: Callable[[], None] = lambda: None
        self._open = asyncio.Event()
        self._open.set()
        self._rules: list[_Cut] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> "Proxy":
        self._stopped = False
        self.port = self.port or free_ports(1)[0]  # Not one that a connection may take while it is stopped.
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def stop(self) -> None:
        """Also: a network that refuses connections. It can be started again, at the same port."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        self.reset()
        self.open()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)

    def swallow(self) -> None:
        """From now on a black hole: connections are taken, and nothing passes."""
        self._open.clear()

    def open(self) -> None:
        """No black hole any more: what was held passes now."""
        self._open.set()

    @property
    def swallows(self) -> bool:
        return not self._open.is_set()

    def reset(self) -> None:
        """Cut every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def cut_request(self, after: int = 0, times: int = 1) -> None:
        """Once so many more bytes have gone to the node, cut the connection that brings the next one."""
        self._rules.append(_Cut(True, after, times))

    def cut_answer(self, after: int = 0, times: int = 1) -> None:
        """The same of what comes from the node: with 0, it has done what was asked and nobody hears."""
        self._rules.append(_Cut(False, after, times))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._open.wait()
        try:
            if self._stopped:
                raise ConnectionResetError("the network is gone")
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        for one in (writer, far_writer):
            sock = one.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:  # Else it was closed meanwhile.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writers.add(far_writer)
        both = (writer, far_writer)
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._pump(reader, far_writer, both, up=True)),
            loop.create_task(self._pump(far_reader, writer, both, up=False)),
        ]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.transport.abort()
            self._writers -= {writer, far_writer}
            for task in tasks:
                task.cancel()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        *,
        up: bool,
    ) -> None:
        try:
            while data := await reader.read(PIECE if not self.rate else max(1, self.rate // 20)):
                await self._open.wait()
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                if self.delay_s and not up:
                    await asyncio.sleep(self.delay_s)
                passing = self._judge(len(data), up=up)
                if passing:
                    writer.write(data[:passing])
                    self.passed[0 if up else 1] += passing
                    await writer.drain()
                if passing < len(data):
                    if passing:  # What has passed arrives: an abort of ours would overtake it.
                        await asyncio.sleep(0.02)
                    for one in both:
                        one.transport.abort()
                    self.cuts += 1
                    self.on_cut()
                    return
        except OSError:
            pass

    def _judge(self, size: int, *, up: bool) -> int:
        """How many of the bytes pass."""
        for rule in self._rules:
            if rule.up is not up:
                continue
            if rule.after >= size:
                rule.after -= size
                return size
            passing, rule.after = rule.after, 0
            rule.times -= 1
            if not rule.times:
                self._rules.remove(rule)
            return passing
        return size
