"""The line between the supervisor and one child: a pair of sockets that keeps message boundaries.

Both ends die with their process, so the line needs no name, no token and no clean-up. Messages are
MessagePack, small, and never waited for by the child.

Concurrency: the child's end is read by its event loop, so an answered probe proves that the loop turns.
"""

import asyncio
import contextlib
import socket

import msgspec

MESSAGE_SIZE_MAX = 64 * 1024  # Bytes; ours have a few hundred.
NOTED_SECONDS = 20.0  # The supervisor answers in a millisecond; on a starved machine it takes longer.


class Message(msgspec.Struct, omit_defaults=True):
    """`kind` is one of:

    ready     child -> supervisor: it serves from now on
    note      child -> supervisor: `text` is to stand beside the child in state.json (a worker's writer id);
              answered with `noted` once it does
    progress  child -> supervisor: `text` for the operator (recovery, verification); stands beside the child
              in state.json until it is ready
    ended     child -> supervisor: `text` is why it ends; stands there until its successor says more, or is
              ready
    crashed   the same of an error that nobody foresaw: what `text` names is for operators only
    notice    child -> supervisor: `text` for the operator, shown as it is (the root key's snippets)
    shut-out  child -> supervisor: this store must stop, in the words of `text`: another machine has taken
              over, or the root key that is given is not root's
    disk      child -> supervisor: `text` is a change of the store's disks (cluster.py); answered with `disk`,
              whose `text` says what is wrong, if anything
    probe     supervisor -> child, answered with the same `number` as `alive`
    """

    kind: str
    text: str = ""
    number: int = 0


_decoder = msgspec.msgpack.Decoder(Message)


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end (never blocks) and the child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def send(end: socket.socket, message: Message) -> bool:
    """Whether it went out. A full or closed line is no error: the other end is late or gone."""
    try:
        end.send(msgspec.msgpack.encode(message))
    except OSError:
        return False
    return True


def receive(end: socket.socket) -> list[Message]:
    """What has arrived, in order. Nothing, although the end was readable: the other one is gone."""
    messages = []
    with contextlib.suppress(OSError):
        while content := end.recv(MESSAGE_SIZE_MAX):
            messages.append(_decoder.decode(content))
    return messages


class Link:
    """The child's end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._noted = asyncio.Event()
        self._disk: asyncio.Future[str] | None = None  # The answer to the change of disks under way.

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer probes from now on."""
        loop.add_reader(self._end.fileno(), self._arrived, loop)

    def _arrived(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            content = self._end.recv(MESSAGE_SIZE_MAX)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:  # The supervisor is gone; PR_SET_PDEATHSIG ends us too.
            loop.remove_reader(self._end.fileno())
            return
        message = _decoder.decode(content)
        if message.kind == "probe":
            send(self._end, Message("alive", number=message.number))
        elif message.kind == "noted":
            self._noted.set()
        elif message.kind == "disk" and self._disk is not None and not self._disk.done():
            self._disk.set_result(message.text)

    def ready(self) -> None:
        send(self._end, Message("ready"))

    async def note(self, text: str) -> None:
        """Let `text` stand beside this process in state.json; returns when it does.

        Raises: TimeoutError.
        """
        self._noted.clear()
        send(self._end, Message("note", text))
        async with asyncio.timeout(NOTED_SECONDS):
            await self._noted.wait()

    async def change_disks(self, text: str) -> str:
        """Let the supervisor change the store's disks; what is wrong, if anything. One at a time.

        Raises: TimeoutError.
        """
        assert self._disk is None
        self._disk = asyncio.get_running_loop().create_future()
        try:
            send(self._end, Message("disk", text))
            async with asyncio.timeout(NOTED_SECONDS):
                return await self._disk
        finally:
            self._disk = None

    def shut_out(self, text: str) -> None:
        send(self._end, Message("shut-out", text))

    def progress(self, text: str) -> None:
        send(self._end, Message("progress", text))

    def notice(self, text: str) -> None:
        send(self._end, Message("notice", text))
