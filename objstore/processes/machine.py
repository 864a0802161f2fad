"""What a supervisor needs of its machine: directories, the one lock, limits, sockets, lines to people.

Called before it forks: blocking, without an event loop or threads.
"""

import contextlib
import errno
import fcntl
import logging
import os
import resource
import socket
import sys
import time
import traceback
from pathlib import Path

from objstore.config import Config, host_and_port
from objstore.processes.cluster import LOCK_WAIT_S, CannotStart
from objstore.processes.logs import set_up_logging

SOCKET_PATH_MAX = 80  # Bytes; the kernel takes 107, and /committer-metrics.sock has 23.
BACKLOG = 1024  # Connections that wait while a process is replaced.


def directories(config: Config) -> tuple[Path, Path]:
    """The data directory and the runtime directory in it; the log is set up too. Raises: CannotStart."""
    set_up_logging(config.log.level)
    data = _directory(Path(config.server.data))
    return data, _directory(data / "run")


def _directory(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as failure:
        raise CannotStart(f"cannot make the directory {path}: {failure.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise CannotStart(f"cannot write to {path}: it belongs to another user, or is read-only")
    return path.resolve()


_held: list[int] = []  # Locks for the life of this process and of its children.


def only_one(run_directory: Path) -> None:
    """Take the data directory for this process and its children. Raises: CannotStart."""
    fd = os.open(run_directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    limit = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > limit:
                os.close(fd)
                raise CannotStart(
                    f"another objstore serves {run_directory.parent}: stop it first, or use another --data"
                ) from None
            time.sleep(0.02)
    _held.append(fd)


def raise_limits() -> None:
    """As many open files as we may have: connections, and fragment files on every disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 1 << 20), hard))


def listen(address: str, flag: str, count: int) -> list[list[socket.socket]]:
    """`count` sets of listening sockets on one address, one set a process; a set has one socket for each
    address that the host's name stands for.

    They are made here, so that connections wait in the backlog while a worker is being replaced.
    """
    host, port = host_and_port(address, flag)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as failure:
        raise CannotStart(f"{flag} {address}: {failure.strerror}") from None
    sets: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, _, _, _, where in dict.fromkeys(found):
            # SO_REUSEPORT alone would let us share the port with another store of the same user.
            _bound(family, where, reuse_port=False).close()
            for sockets in sets:
                listener = _bound(family, where, reuse_port=True)
                listener.listen(BACKLOG)
                listener.setblocking(False)
                sockets.append(listener)
                where = (where[0], listener.getsockname()[1], *where[2:])  # Port 0: the first one chooses.
    except OSError as failure:
        for sockets in sets:
            close_all(sockets)
        why = {
            errno.EADDRINUSE: "the port is taken by another program",
            errno.EACCES: "this user may not use that port",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(failure.errno or 0, failure.strerror)
        raise CannotStart(f"{flag} {address}: {why}") from None
    return sets


def _bound(family: int, where: object, *, reuse_port: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(where)  # type: ignore[arg-type]
    except OSError:
        listener.close()
        raise
    return listener


def close_all(sockets: list[socket.socket]) -> None:
    """Close listening sockets."""
    for listener in sockets:
        with contextlib.suppress(OSError):
            listener.close()


def address_of(listener: socket.socket) -> str:
    """host:port as it is bound."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(listener: socket.socket, tls: bool) -> str:
    """As a client on this machine reaches it."""
    address = address_of(listener).replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
    return f"{'https' if tls else 'http'}://{address}"


def short(directory: Path) -> str:
    """A path for Unix sockets in `directory`. A long one goes through a file descriptor, which every
    child inherits under the same number."""
    if len(os.fsencode(directory)) <= SOCKET_PATH_MAX:
        return str(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _held.append(fd)
    return f"/proc/self/fd/{fd}"


def announce(line: str) -> None:
    """For the operator, on standard output."""
    print(line, flush=True)


def warn(line: str) -> None:
    """For the operator, where standard output holds a result."""
    print(line, file=sys.stderr, flush=True)


_log = logging.getLogger("objstore.supervisor")


def log_event(event: str, *, trace: bool = False, **fields: object) -> None:
    if trace:
        fields["trace"] = traceback.format_exc()
    _log.warning(event, extra=fields)
