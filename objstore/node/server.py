"""A storage node's server: its disks, as node/disk.py has them, over HTTP/1.1. See docs/protocol.md.

It adds nothing to what its disks promise and keeps nothing that a crash could lose: a write is answered when
the disk has answered it. What it does beside passing calls on:

- *Fencing*: a request that names an older epoch than the disk has noted is refused. A new epoch takes effect
  for what begins after it at once, and is answered when every write of an older one has ended and the number
  is durable: whoever has the answer knows that nothing older will be written any more.
- *Repeats*: an append that comes again because its answer was lost is compared with what the file holds. The
  same bytes are not written twice; other bytes are DiskFailed. Writes to one file run one after another, so
  that a request that the network delayed and its repeat never mix.
- *Instance*: every start has a number of its own. Bytes that were appended without a sync may be gone after a
  restart, so a sync names the instance that took them, and another one refuses.
- *Bounds*: on connections, on bytes of bodies and answers together, on the time a body may take to come and
  an answer to be taken.

Concurrency: one event loop, a task a request (serving.py), but for small reads of what the page cache has:
those are answered at once. The state of a disk here (`_Served`) changes between awaits only. A request whose
connection is lost runs on: its disk ends it.
"""

import asyncio
import ipaddress
import logging
import os
import re
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, cast

import msgspec
from xxhash import xxh3_64_intdigest

from objstore.errors import DiskFailed, DiskMissing, Overloaded, StaleEpoch
from objstore.node import wire
from objstore.node.disk import Buffer, DiskState, LogFile
from objstore.node.handshakes import BACKLOG, Bounded, TlsListener
from objstore.node.kept import KeptMemory
from objstore.node.local import LocalDisk
from objstore.node.serving import Listener, Request
from objstore.node.tls import HANDSHAKE_SECONDS, Credentials, peer_of
from objstore.node.wire import BadMessage, Failure, Item, Outcome, Restarted, Verb

log = logging.getLogger(__name__)

FENCE_LOG: Final = "fence."  # Name of the empty log that keeps a fence, and its number.
COMPARED_AT_ONCE: Final = 256 * wire.KIB  # Bytes read at a time for a repeat.
PUBLISHED_KEPT: Final = 64  # Names of replacements that were published, for repeats.
NOW_MAX: Final = 64 * wire.KIB  # Bytes of a read that is answered at once, if it can be.
KEPT_STEP: Final = 128 * wire.KIB  # Bytes by which kept memory differs in size.
SWEEP_S: Final = 30.0
CLOSE_S: Final = 5.0  # For requests under way when the server ends.

_FENCE: Final = re.compile(r"fence\.(0|[1-9][0-9]{0,19})", re.ASCII)
# Names of headers as they come here.
_CLUSTER: Final = wire.CLUSTER.lower()
_EPOCH: Final = wire.EPOCH.lower()
_SINCE: Final = wire.SINCE.lower()
_REPEAT: Final = wire.REPEAT.lower()
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"

Admit = Callable[[asyncio.Transport], str]  # Why its other end may ask for nothing; "" if it may.


class NodeLimits(NamedTuple):
    """Every bound of a node's server."""

    connections: int = 2_048  # One request each: 64 gateway processes with 32.
    memory: int = 256 * wire.MIB  # Bytes of bodies and answers that are held.
    memory_wait_s: float = 5.0  # For a share of it; then Overloaded.
    transfer_s: float = 10.0  # For a body to come or an answer to be taken, and 1 s a MiB.
    kept: int = 16 * wire.MIB  # Bytes of answers' memory that are kept for the next ones.
    straggler_s: float = 0.1  # The outcomes of a batch wait so long for its slowest disk.
    idle_s: float = 75.0  # Of a connection.
    replace_idle_s: float = 3_600.0  # A replacement that nobody goes on with is abandoned.


class _Replacing:
    """A fragment file that a gateway puts together here."""

    __slots__ = ("digest", "end", "start", "touched")

    def __init__(self, now: float) -> None:
        self.touched = now
        self.start = self.end = 0  # The last piece, for its repeat.
        self.digest = 0


class _Served:
    """One disk, as it is served.

    Invariants: `fence` never falls; writing[e] counts the writes under way that named epoch e.
    """

    def __init__(self, disk: LocalDisk) -> None:
        self.disk = disk
        self.fence: int | None = None  # None: not yet read from the disk.
        self.learning: asyncio.Task[None] | None = None
        self.writing: dict[int, int] = {}
        self.ended: list[asyncio.Future[None]] = []  # Woken when one of them ends.
        self.running: dict[object, asyncio.Future[None]] = {}  # The write under way, by file.
        self.replacing: dict[str, _Replacing] = {}
        self.published: deque[tuple[str, int]] = deque(maxlen=PUBLISHED_KEPT)

    @property
    def noted(self) -> int:
        """The newest epoch that the disk was told of."""
        identity = self.disk.identity
        return max(self.fence or 0, identity.epoch if identity is not None else 0)

    def begin(self, epoch: int) -> None:
        self.writing[epoch] = self.writing.get(epoch, 0) + 1

    def end(self, epoch: int) -> None:
        left = self.writing[epoch] - 1
        if left:
            self.writing[epoch] = left
            return
        del self.writing[epoch]
        ended, self.ended = self.ended, []
        for waiter in ended:
            if not waiter.done():
                waiter.set_result(None)

    @asynccontextmanager
    async def turn(self, key: object) -> AsyncIterator[None]:
        """Alone with one file: after what runs on it, which ends: every call of a disk has its deadline.

        A repeat may come while the first request is still served, or before it: the network delays.
        """
        while (other := self.running.get(key)) is not None:
            await asyncio.wait([other])
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running[key] = mine
        try:
            yield
        finally:
            mine.set_result(None)
            self.stop_running(key, mine)

    def stop_running(self, key: object, done: "asyncio.Future[None]") -> None:
        if self.running.get(key) is done:
            del self.running[key]

    def check_epoch(self, epoch: int) -> None:
        """Raises: StaleEpoch."""
        noted = self.noted
        if epoch < noted:
            raise StaleEpoch(named=epoch, noted=noted)

    async def learn(self) -> None:
        """Read the fence, once for all who wait. Raises: what the disk's list of logs raises."""
        if self.learning is None:
            self.learning = asyncio.get_running_loop().create_task(self._learn())
            self.learning.add_done_callback(self._end_learning)
        await asyncio.shield(self.learning)

    def _end_learning(self, done: "asyncio.Task[None]") -> None:
        self.learning = None
        if not done.cancelled():
            done.exception()  # Seen: whoever waited may be gone.

    async def _learn(self) -> None:
        found = [_fence_of(log.name) or 0 for log in await self.disk.logs()]
        self.fence = max([self.fence or 0, *found])

    async def shut_out(self, epoch: int) -> None:
        """Refuse what is older from now on, and wait for such writes that are under way.

        Where the caller cannot make it durable it calls `open_again`. Raises: DiskFailed if they do not end.
        """
        self.fence = max(self.fence or 0, epoch)
        limit_s = 2 * self.disk.options.limit_s  # Each of them has a deadline of its own.
        try:
            async with asyncio.timeout(limit_s):
                while any(older < epoch for older in self.writing):
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self.ended.append(waiter)
                    await waiter
        except TimeoutError:
            raise DiskFailed(f"writes of an older epoch did not end within {limit_s:g} s") from None

    def open_again(self, epoch: int, before: int | None) -> None:
        """The new epoch was refused in the end: unless a later one came meanwhile, nobody is shut out."""
        if self.fence == epoch:
            self.fence = before


class _Memory:
    """A bound on bytes, granted in the order of asking."""

    def __init__(self, size: int, wait_s: float) -> None:
        self._free = size
        self._size = size
        self._wait_s = wait_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Raises: Overloaded."""
        assert size <= self._size
        if not size:
            return
        if size <= self._free and not self._waiting:
            self._free -= size
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, waiter))
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter
        except (TimeoutError, asyncio.CancelledError) as failure:
            if waiter.done() and not waiter.cancelled():
                self.give(size)
            else:
                waiter.cancel()
                self._grant()
            if isinstance(failure, TimeoutError):
                raise Overloaded(f"the node's memory for requests is in use ({self._size} bytes)") from None
            raise

    def give(self, size: int) -> None:
        self._free += size
        self._grant()

    def share(self, size: int) -> "_Share":
        """Bytes for as long as a block of code runs. It raises: Overloaded."""
        return _Share(self, size)

    def _grant(self) -> None:
        while self._waiting:
            size, waiter = self._waiting[0]
            if not waiter.done():
                if size > self._free:
                    return
                self._free -= size
                waiter.set_result(None)
            self._waiting.popleft()


class _Share:
    __slots__ = ("_memory", "_size")

    def __init__(self, memory: _Memory, size: int) -> None:
        self._memory = memory
        self._size = size

    async def __aenter__(self) -> None:
        await self._memory.take(self._size)

    async def __aexit__(self, *failure: object) -> None:
        self._memory.give(self._size)


def kept_size(size: int) -> int:
    """The size in which memory for so many bytes is kept."""
    return -(-size // KEPT_STEP) * KEPT_STEP


def _admit_all(transport: asyncio.Transport) -> str:
    return ""


def members_only(credentials: Credentials) -> Admit:
    """Judges by certificate, at each request: who was removed is refused on open connections, too."""

    def admit(transport: asyncio.Transport) -> str:
        peer = peer_of(transport)
        if peer is None:
            return "no certificate of the cluster was shown"
        return "" if credentials.allows(peer) else f"{peer.name} is no member any more"

    return admit


class NodeServer:
    """Serves the disks of one node.

    Args:
        disks: by number. A live mapping: what is put in or taken out is served, or not, from then on.
        cluster: 16 bytes; requests of another one are refused.
        instance: 16 hex digits, new at every start. None: random.
        admit: asked for each request: `members_only`, where there is TLS.
    """

    def __init__(
        self,
        disks: Mapping[int, LocalDisk],
        *,
        cluster: bytes,
        instance: str | None = None,
        limits: NodeLimits | None = None,
        admit: Admit = _admit_all,
    ) -> None:
        self.instance = instance if instance is not None else os.urandom(8).hex()
        assert wire.is_instance(self.instance)
        assert (limits or NodeLimits()).memory >= wire.BODY_MAX
        self.limits = limits or NodeLimits()
        self.requests = 0
        self.bugs = 0
        self._disks = disks
        self._cluster = cluster.hex()
        self._served: dict[int, _Served] = {}
        self._memory = _Memory(self.limits.memory, self.limits.memory_wait_s)
        self._rooms = KeptMemory(self.limits.kept, kept_size)
        self._names_us = f"{wire.INSTANCE}: {self.instance}\r\n".encode()
        self._ok = b"HTTP/1.1 200 OK\r\n" + self._names_us
        self._admit = admit
        self._http: Listener | None = None
        self._listeners: list[asyncio.Server | TlsListener] = []
        self._sweeper: asyncio.Task[None] | None = None

    # --- The port ----------------------------------------------------------------------------------------

    async def serve(self, sockets: Sequence[socket.socket], context: ssl.SSLContext | None) -> None:
        """Serve on sockets that are bound.

        Raises: ValueError if one is bound beyond loopback and there is no TLS: whoever reaches the port could
            read and destroy everything.
        """
        for listener in sockets:
            host = listener.getsockname()[0]
            if context is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
                raise ValueError(f"a storage node does not listen on {host} without mutual TLS")
        if context is not None and context.verify_mode != ssl.CERT_REQUIRED:
            raise ValueError("the TLS context of a storage node must ask for the client's certificate")
        loop = asyncio.get_running_loop()
        self._http = Listener(
            self._handle,
            self._handle_now,
            self._refusal_of_noise,
            connections_max=self.limits.connections,
            transfer_s=self.limits.transfer_s,
            idle_s=self.limits.idle_s,
        )
        for listener in sockets:
            if context is None:
                self._listeners.append(await loop.create_server(self._http, sock=listener, backlog=BACKLOG))
            else:
                self._listeners.append(
                    TlsListener(Bounded(self._http), listener, context, limit_s=HANDSHAKE_SECONDS)
                )
        self._sweeper = loop.create_task(self._sweep())

    async def close(self) -> None:
        """No new connections; requests under way get a moment. The disks stay open."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in self._listeners:
            listener.close()
        if self._http is not None:
            await self._http.close(CLOSE_S)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for served in list(self._served.values()):
                for name, replacing in list(served.replacing.items()):
                    if now - replacing.touched > self.limits.replace_idle_s:
                        del served.replacing[name]
                        await served.disk.replace_abandon(name)
                        log.warning("replacement abandoned", extra={"disk": served.disk.number, "file": name})

    # --- A request ---------------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> None:
        self.requests += 1
        try:
            path, method = request.path, request.method
            if path == wire.WRITE_PATH:
                self._expect(method, "POST")
                return await self._write(request)
            epoch = self._check(request)
            if path == wire.STATE_PATH:
                self._expect(method, "GET")
                return await self._answer(request, [msgspec.json.encode(self._report())])
            if path.startswith(wire.PROBE_PATH):
                self._expect(method, "GET")
                return await self._probe(request, path)
            number, verb, arguments = wire.parse_target(path)
            self._expect(method, verb.method)
            served = self._find(number)
            try:
                return await self._call(request, epoch, served, verb, arguments)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception as error:
                return await self._refuse(request, self._failure(error, served.disk))
        except BadMessage as failure:
            return await self._refuse(request, Failure(wire.BAD_REQUEST, str(failure)))
        except _NotAdmitted as refusal:
            log.warning("request refused", extra={"why": str(refusal)})
            raise ConnectionResetError(str(refusal)) from None  # Not even an answer.
        except (ConnectionError, asyncio.CancelledError):
            raise  # Nobody to answer.
        except Exception as error:
            return await self._refuse(request, self._failure(error, None))

    def _handle_now(self, request: Request) -> bool:
        """Answer a small read of what the page cache has. False: nothing was done, `_handle` is to do it.

        No share of the memory is taken: a connection that takes its answers slowly gets no second one so.
        """
        if request.method != "GET" or request.is_taken_slowly:
            return False
        try:
            epoch = self._check(request)
            number, verb, arguments = wire.parse_target(request.path)
            if verb.name != "read" or arguments["size"] > NOW_MAX:
                return False
            served = self._find(number)
            if served.fence is None:
                return False
            served.check_epoch(epoch)
            view = memoryview(bytearray(arguments["size"]))
            count = served.disk.read_now(arguments["volume"], arguments["index"], arguments["at"], [view])
            if count is None:
                return False
            request.send_now(self._whole([view], _state_of(served.disk)))
        except Exception:
            return False  # Met again by `_handle`, which says what it is.
        self.requests += 1
        return True

    def _failure(self, error: Exception, disk: LocalDisk | None) -> Failure:
        if isinstance(error, BadMessage):
            return Failure(wire.BAD_REQUEST, str(error))
        if isinstance(error, _OtherCluster):
            return Failure(wire.OTHER_CLUSTER, str(error))
        failure = wire.failure_of(error)
        if failure.code == wire.BUG:
            self.bugs += 1
            log.error("a bug in a request", exc_info=error)
        if disk is not None:
            failure.state = disk.state.value
            failure.reason = disk.reason[: wire.WORDS_MAX]
        return failure

    @staticmethod
    def _expect(method: str, wanted: str) -> None:
        if method != wanted:
            raise BadMessage(f"{method} where {wanted} is expected")

    def _check(self, request: Request) -> int:
        """Who asks, and what every request carries.

        Returns: the epoch. Raises: _NotAdmitted, BadMessage, _OtherCluster, Restarted.
        """
        refusal = self._admit(request.transport)
        if refusal:
            raise _NotAdmitted(refusal)
        headers = request.headers
        if headers.get(_CLUSTER) != self._cluster:
            wire.parse_cluster(headers.get(_CLUSTER, ""))
            raise _OtherCluster(f"this node is of the cluster {self._cluster}")
        self._check_since(headers.get(_SINCE, ""))
        return wire.parse_number(headers.get(_EPOCH, ""), wire.EPOCH)

    def _check_since(self, since: str) -> None:
        if since and since != self.instance:
            raise Restarted("the node was restarted since: what was not synced by then may be lost")

    def _find(self, number: int) -> _Served:
        """Raises: DiskMissing."""
        disk = self._disks.get(number)
        if disk is None:
            self._served.pop(number, None)
            raise DiskMissing(f"the node has no disk {number}")
        served = self._served.get(number)
        if served is None or served.disk is not disk:
            served = self._served[number] = _Served(disk)
        return served

    def _report(self) -> wire.NodeReport:
        disks: list[wire.DiskReport] = []
        for number in sorted(self._disks):
            served = self._find(number)
            disk = served.disk
            disks.append(
                wire.DiskReport(
                    number,
                    disk.uuid.hex(),
                    disk.path,
                    disk.state.value,
                    disk.reason[: wire.WORDS_MAX],
                    served.noted,
                )
            )
        return wire.NodeReport(self._cluster, self.instance, disks)

    async def _probe(self, request: Request, path: str) -> None:
        """Bytes for nothing: whether the way back is fast enough again."""
        head, _, text = path.partition("?size=")
        if head != wire.PROBE_PATH:
            raise BadMessage("no such path")
        size = wire.parse_number(text, "size")
        if size > wire.PROBE_MAX:
            raise BadMessage(f"a probe has at most {wire.PROBE_MAX} bytes")
        async with self._memory.share(size):
            return await self._answer(request, [bytes(size)])

    # --- One call of one disk ----------------------------------------------------------------------------

    async def _call(
        self,
        request: Request,
        epoch: int,
        served: _Served,
        verb: Verb,
        arguments: dict[str, Any],
    ) -> None:
        if verb.fenced:
            if served.fence is None:
                await served.learn()
            served.check_epoch(epoch)
        name = verb.name
        if name in ("read", "log-read"):
            return await self._read(request, served.disk, name, arguments)
        size = self._body_size(request, verb.body_max) if verb.body_max else 0
        async with self._memory.share(size):
            body = await self._body(request, size)
            if not verb.changes:
                result = await self._ask(served, name, arguments)
            else:
                repeated = request.headers.get(_REPEAT) == "1"
                async with served.turn(_file_of(name, arguments)):
                    if verb.fenced:
                        served.check_epoch(epoch)  # Once more: it may have changed while the body came.
                    served.begin(epoch)
                    try:
                        result = await self._change(served, name, arguments, body, repeated)
                    finally:
                        served.end(epoch)
        disk = served.disk
        success = wire.Success(
            disk.state.value, disk.reason[: wire.WORDS_MAX], msgspec.Raw(msgspec.json.encode(result))
        )
        return await self._answer(request, [msgspec.json.encode(success)])

    async def _read(self, request: Request, disk: LocalDisk, verb: str, arguments: dict[str, Any]) -> None:
        size = arguments["size"]
        if size > wire.READ_MAX:
            raise BadMessage(f"at most {wire.READ_MAX} bytes are read at once")
        data: Buffer
        async with self._memory.share(size):
            if verb == "log-read":
                data = await disk.log_read(_log_name(arguments["name"]), arguments["at"], size)
            else:
                view = memoryview(self._rooms.take(size))[:size]
                count = await disk.read(arguments["volume"], arguments["index"], arguments["at"], [view])
                data = view[:count]
            return await self._answer(request, [data], _state_of(disk))

    async def _ask(self, served: _Served, name: str, arguments: dict[str, Any]) -> Any:
        disk = served.disk
        if name == "fragments":
            return await disk.fragment_files()
        if name == "logs":
            return [LogFile(*log) for log in await disk.logs() if not log.name.startswith(FENCE_LOG)]
        if name == "usage":
            return await disk.usage()
        if name == "epoch":
            return await disk.noted_epoch()
        async with served.turn("epoch"):
            before, epoch = served.fence, arguments["epoch"]
            try:
                await served.shut_out(epoch)
                if name == "note-epoch":
                    return await disk.note_epoch(epoch)
                assert name == "fence"
                return await self._keep_fence(disk, epoch)
            except BaseException:
                served.open_again(epoch, before)
                raise

    @staticmethod
    async def _keep_fence(disk: LocalDisk, epoch: int) -> None:
        name = f"{FENCE_LOG}{epoch}"
        try:
            await disk.log_create(name)
        except FileExistsError:
            # Whether its name is durable an earlier process may have known. Making another one syncs the
            # directory of both.
            try:
                await disk.log_create(name + ".again")
            except FileExistsError:
                pass  # Of a process that ended here.
            await disk.log_remove(name + ".again")
        for entry in await disk.logs():
            number = _fence_of(entry.name)
            if number is not None and number < epoch:
                await disk.log_remove(entry.name)

    async def _change(
        self, served: _Served, name: str, arguments: dict[str, Any], body: memoryview, repeated: bool
    ) -> Any:
        disk = served.disk
        if name == "create":
            return await self._create(disk, arguments["volume"], arguments["index"], repeated)
        if name == "seal":
            return await disk.seal(arguments["volume"], arguments["index"], arguments["length"])
        if name == "retire":
            return await disk.retire(arguments["volume"], arguments["index"], arguments["now"])
        if name == "purge":
            try:
                return await disk.purge(
                    arguments["volume"], arguments["index"], retired_before_us=arguments["before"]
                )
            except FileNotFoundError:
                if repeated:
                    return None
                raise
        if name == "replace-begin":
            temporary = await disk.replace_begin(arguments["volume"], arguments["index"])
            served.replacing[temporary] = _Replacing(asyncio.get_running_loop().time())
            return temporary
        if name.startswith("replace-"):
            return await self._replace(served, name, arguments, body, repeated)
        if name == "verify":
            return await disk.verify()
        log_name = _log_name(arguments["name"])
        if name == "log-create":
            return await self._log_create(disk, log_name, body, repeated)
        assert name == "log-remove"
        try:
            return await disk.log_remove(log_name)
        except FileNotFoundError:
            if repeated:
                return None
            raise

    @staticmethod
    async def _create(disk: LocalDisk, volume: int, index: int, repeated: bool) -> None:
        try:
            await disk.create(volume, index)
        except FileExistsError:
            # The first request ended in this very process (SINCE was checked), and made it durable or the
            # disk suspect. A volume has one writer for life, so that an empty file can be nobody else's.
            if not repeated or not _takes_writes(disk):
                raise
            if await disk.read(volume, index, 0, [memoryview(bytearray(1))]):
                raise DiskFailed(f"{volume}.{index} is there, and not empty") from None

    @staticmethod
    async def _log_create(disk: LocalDisk, name: str, content: memoryview, repeated: bool) -> None:
        try:
            await disk.log_create(name, content)
        except FileExistsError:
            if not repeated or not _takes_writes(disk):
                raise
            if await disk.log_read(name, 0, len(content) + 1) != content:
                raise DiskFailed(f"the log {name} is there, with other bytes") from None

    @staticmethod
    async def _replace(
        served: _Served, name: str, arguments: dict[str, Any], body: memoryview, repeated: bool
    ) -> None:
        disk = served.disk
        temporary = arguments["name"]
        if name == "replace-abandon":
            served.replacing.pop(temporary, None)
            return await disk.replace_abandon(temporary)
        replacing = served.replacing.get(temporary)
        if replacing is None:
            if (
                name == "replace-publish"
                and repeated
                and (temporary, arguments["length"]) in served.published
            ):
                return None
            raise Restarted(f"no replacement {temporary} is under way: begin again")
        replacing.touched = asyncio.get_running_loop().time()
        if name == "replace-publish":
            await disk.replace_publish(temporary, arguments["length"])
            del served.replacing[temporary]
            served.published.append((temporary, arguments["length"]))
            return None
        start = arguments["at"]
        end = start + len(body)
        digest = xxh3_64_intdigest(body)
        if repeated and (start, end, digest) == (replacing.start, replacing.end, replacing.digest):
            return None
        await disk.replace_append(temporary, start, [body])
        replacing.start, replacing.end, replacing.digest = start, end, digest
        return None

    # --- What a turn of a gateway's loop writes ----------------------------------------------------------

    async def _write(self, request: Request) -> None:
        epoch = self._check(request)
        size = self._body_size(request, wire.BODY_MAX)
        async with self._memory.share(size):
            body = await self._body(request, size)
            items, payload = _split(body)
            batch = _Batch(len(items))
            for number, item in enumerate(items):
                buffers: list[Buffer] = [payload.take(item.size)] if item.size else []
                try:
                    served = self._find(item.disk)
                    future = self._begin(served, epoch, item, buffers)
                except Exception as error:
                    disk = self._disks.get(item.disk)
                    batch.end(number, self._failure(error, disk))
                else:
                    future.add_done_callback(
                        lambda done, number=number, served=served: self._end(  # type: ignore[misc]
                            batch, number, served, epoch, done
                        )
                    )
            await batch.wait(self.limits.straggler_s)
            if batch.left:
                return await self._answer_stragglers(request, batch)
            return await self._answer(request, [msgspec.json.encode(batch.take())])

    def _end(
        self, batch: "_Batch", number: int, served: _Served, epoch: int, done: "asyncio.Future[None]"
    ) -> None:
        served.end(epoch)
        if done.cancelled():
            batch.end(number, Failure("disk-failed", "the node is ending"))
            return
        error = done.exception()
        batch.end(number, None if error is None else self._failure(cast(Exception, error), served.disk))

    def _begin(
        self, served: _Served, epoch: int, item: Item, buffers: list[Buffer]
    ) -> "asyncio.Future[None]":
        """Start one write. The caller is to end `served.writing` with it.

        Raises: what the disk raises at once; StaleEpoch, Restarted.
        """
        self._check_since(item.since)
        if served.fence is None:
            work: Awaitable[None] = self._begin_late(served, epoch, item, buffers)
            served.begin(epoch)
            return asyncio.ensure_future(work)
        served.check_epoch(epoch)
        if item.kind == "sync":
            work = served.disk.sync(item.volume, item.index)
        else:
            key = _key(item)
            if item.repeat or key in served.running:
                work = self._write_in_turn(served, item, key, buffers)
            else:
                if item.kind == "log":
                    work = served.disk.log_append(_log_name(item.name), item.offset, _joined(buffers))
                else:
                    synced = item.kind == "append-sync"
                    work = served.disk.append(item.volume, item.index, item.offset, buffers, sync=synced)
                future = asyncio.ensure_future(work)
                served.running[key] = future
                future.add_done_callback(lambda done: served.stop_running(key, done))
                served.begin(epoch)
                return future
        served.begin(epoch)
        return asyncio.ensure_future(work)

    async def _begin_late(self, served: _Served, epoch: int, item: Item, buffers: list[Buffer]) -> None:
        """The first write to a disk since the start: its fence is read first."""
        await served.learn()
        future = self._begin(served, epoch, item, buffers)
        try:
            await asyncio.shield(future)
        finally:
            if future.done():
                served.end(epoch)
            else:
                future.add_done_callback(lambda done: served.end(epoch))

    async def _write_in_turn(self, served: _Served, item: Item, key: object, buffers: list[Buffer]) -> None:
        async with served.turn(key):
            disk = served.disk
            if item.kind == "log":
                content = _joined(buffers)
                if not item.repeat or not await self._is_in_log(disk, item, content):
                    await disk.log_append(_log_name(item.name), item.offset, content)
            elif item.repeat:
                await self._append_again(disk, item, buffers)
            else:
                synced = item.kind == "append-sync"
                await disk.append(item.volume, item.index, item.offset, buffers, sync=synced)

    @staticmethod
    async def _is_in_log(disk: LocalDisk, item: Item, content: Buffer) -> bool:
        """Whether a log append that comes again was done. SINCE was checked: it ended in this process."""
        held = await disk.log_read(_log_name(item.name), item.offset, len(content) + 1)
        if not held:
            return False
        if held != content or not _takes_writes(disk):
            raise DiskFailed(f"{item.name} at {item.offset} holds other bytes than were sent again")
        return True

    @staticmethod
    async def _append_again(disk: LocalDisk, item: Item, buffers: list[Buffer]) -> None:
        """What the file holds decides: the same bytes are not written twice, others are a failure."""
        synced = item.kind == "append-sync"
        content = memoryview(_joined(buffers))
        at = 0
        room = memoryview(bytearray(min(len(content), COMPARED_AT_ONCE) + 1))
        while True:
            wanted = min(len(content) - at + 1, len(room))  # One more: the file must not go on.
            count = await disk.read(item.volume, item.index, item.offset + at, [room[:wanted]])
            if room[:count] != content[at : at + count]:
                raise DiskFailed(
                    f"{item.volume}.{item.index} at {item.offset} holds other bytes than were sent again"
                )
            at += count
            if count < wanted:
                break
        if at < len(content):
            await disk.append(item.volume, item.index, item.offset + at, [content[at:]], sync=synced)
        elif synced:
            await disk.sync(item.volume, item.index)

    async def _answer_stragglers(self, request: Request, batch: "_Batch") -> None:
        """A disk is slow: the outcomes of the others are not to wait for it."""
        await request.send([self._ok + _CHUNKED])
        while True:
            outcomes = batch.take()
            if outcomes:
                data = msgspec.json.encode(outcomes)
                await request.send([b"%x\r\n%b\r\n" % (len(data), data)])
            if not batch.left:
                break
            await batch.wait(None)
        await request.send([b"0\r\n\r\n"])

    # --- Bodies and answers ------------------------------------------------------------------------------

    @staticmethod
    def _body_size(request: Request, size_max: int) -> int:
        """Raises: BadMessage."""
        size = request.size
        if size is None:
            raise BadMessage("the body has no length")
        if size > size_max:
            raise BadMessage(f"a body of {size} bytes, at most {size_max} are taken")
        return size

    async def _body(self, request: Request, size: int) -> memoryview:
        """The whole body: nothing is written of one that ends early.

        Raises: ConnectionResetError, also if it is too slow.
        """
        room = memoryview(self._rooms.take(size))[:size]
        if size:
            await request.receive(room)
        return room

    async def _answer(self, request: Request, pieces: list[Buffer], headers: bytes = b"") -> None:
        """Raises: ConnectionResetError, also if the gateway does not take it."""
        await request.send(self._whole(pieces, headers))

    def _whole(self, pieces: list[Buffer], headers: bytes) -> list[Buffer]:
        size = sum(map(len, pieces))
        return [b"%b%bContent-Length: %d\r\n\r\n" % (self._ok, headers, size), *pieces]

    async def _refuse(self, request: Request, failure: Failure) -> None:
        # A body that was not read would be taken for the next request's head: then the connection ends.
        await request.send([self._refusal(failure, goes_on=request.can_go_on)])

    def _refusal(self, failure: Failure, *, goes_on: bool) -> bytes:
        status = wire.STATUSES[failure.code]
        body = msgspec.json.encode(failure)
        head = b"HTTP/1.1 %d %b\r\n%bContent-Length: %d\r\n%b\r\n" % (
            status,
            failure.code.encode(),
            self._names_us,
            len(body),
            b"" if goes_on else b"Connection: close\r\n",
        )
        return head + body

    def _refusal_of_noise(self, words: str) -> bytes:
        return self._refusal(Failure(wire.BAD_REQUEST, words), goes_on=False)


class _OtherCluster(Exception):
    pass


class _NotAdmitted(Exception):
    pass


class _Batch:
    """Outcomes of the items of one request, as they come."""

    def __init__(self, count: int) -> None:
        self.left = count
        self._each = False  # Whether the waiter is woken by each outcome.
        self._ended: list[Outcome] = []
        self._waiter: asyncio.Future[None] | None = None

    def end(self, number: int, failure: Failure | None) -> None:
        self.left -= 1
        self._ended.append(Outcome(number, failure))
        if self._waiter is not None and (not self.left or self._each) and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, limit_s: float | None) -> None:
        """Until all have ended or the time is over; without a limit, until another one has ended."""
        if not self.left:
            return
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        self._each = limit_s is None
        timer = None if limit_s is None else loop.call_later(limit_s, _wake, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def take(self) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Payload:
    """A body, handed out by size without a copy."""

    def __init__(self, body: memoryview) -> None:
        self._left = body

    def take(self, size: int) -> memoryview:
        taken = self._left[:size]
        self._left = self._left[size:]
        return taken


def _split(body: memoryview) -> tuple[list[Item], _Payload]:
    """The manifest and the payload behind it. Raises: BadMessage."""
    if len(body) < 4:
        raise BadMessage("a batch without a manifest")
    payload = _Payload(body)
    manifest_size = int.from_bytes(payload.take(4), "big")
    if manifest_size > len(body) - 4:
        raise BadMessage("a batch shorter than its manifest")
    manifest = payload.take(manifest_size)
    return wire.decode_manifest(manifest, len(body) - 4 - manifest_size), payload


def _joined(buffers: Sequence[Buffer]) -> Buffer:
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


def _key(item: Item) -> object:
    return ("log", item.name) if item.kind == "log" else (item.volume, item.index)


def _file_of(call: str, arguments: dict[str, Any]) -> object:
    """What a changing call changes; two that change the same run one after the other."""
    if "volume" in arguments:
        return arguments["volume"], arguments["index"]
    return "log" if call.startswith("log-") else call.partition("-")[0], arguments.get("name")


def _fence_of(name: str) -> int | None:
    match = _FENCE.fullmatch(name)
    return int(match[1]) if match else None


def _log_name(name: str) -> str:
    if name.startswith(FENCE_LOG):
        raise BadMessage("the name of a log that is the node's own")
    return name


def _state_of(disk: LocalDisk) -> bytes:
    """Header lines for an answer to a read."""
    state = disk.state
    return b"" if state is DiskState.HEALTHY else wire.state_headers(state.value, disk.reason)


def _takes_writes(disk: LocalDisk) -> bool:
    return disk.state in (DiskState.HEALTHY, DiskState.FULL)
