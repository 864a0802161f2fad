"""`objstore serve`: everything on one machine, from the configuration to the ready line.

Prepares what lies on the data directory (disks, token, runtime directory), opens the listening sockets,
and hands four kinds of children to the supervisor. Nothing here maps LMDB or runs an event loop.

Imports are ordered for a quick start: what the committer needs comes first, and while it recovers in its
own process, this one imports what workers and upkeep need (most of it aiohttp) and then forks them.
"""

import contextlib
import errno
import fcntl
import logging
import os
import resource
import secrets
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from objstore import __version__
from objstore.codec.backend import choose as choose_backend
from objstore.config import Config, Loaded, host_and_port
from objstore.meta.beacon import Beacon
from objstore.processes import committer
from objstore.processes.cluster import RECORD_NAME, CannotStart, change_disks, open_cluster, warnings_of
from objstore.processes.link import Link
from objstore.processes.logs import set_up_logging
from objstore.processes.spec import Spec
from objstore.processes.supervisor import ChildMain, Supervisor

__all__ = ["CannotStart", "serve"]

TOKEN_NAME = "admin.token"  # noqa: S105  (A file's name.)
SOCKET_PATH_MAX = 90  # Bytes; the kernel takes 107, our sockets' names need the rest.
BACKLOG = 1024  # Connections that wait while a worker is replaced.


def serve(loaded: Loaded) -> int:
    """Run until a signal. Returns the exit code.

    Raises: CannotStart, with what is wrong and what to do.
    """
    started = time.monotonic()
    config = loaded.config
    data, run_directory = _directories(config)
    _only_one(run_directory)
    token = _admin_token(data)
    worker_count = config.server.workers or os.cpu_count() or 1
    listeners = _listen(config.server.listen, "--listen", worker_count)
    admin_sockets = _listen(config.server.admin_listen, "--admin-listen", 1)[0]
    endpoint = _url(listeners[0][0], bool(config.tls.certificate))
    admin_tls = config.tls.admin and bool(config.tls.admin_certificate or config.tls.certificate)
    admin = _url(admin_sockets[0], admin_tls)
    _check_certificates(config)
    spec = _open(loaded, data, run_directory, token=token, endpoint=endpoint, announce=announce)
    cluster, codec = spec.cluster, "{}+{}".format(*spec.cluster.codec)
    names = [f"worker-{number}" for number in range(1, worker_count + 1)]
    worker_sockets = dict(zip(names, listeners, strict=True))

    def upkeep(link: Link, died: str) -> None:
        from objstore.processes import upkeep

        upkeep.run(link, died, spec, admin_sockets)

    def worker(name: str) -> ChildMain:
        def main(link: Link, died: str) -> None:
            from objstore.processes import worker

            worker.run(link, died, spec, name, worker_sockets[name])

        return main

    def prepare() -> None:
        from objstore.processes import upkeep, worker  # noqa: F401  (For the children.)

    def close_in_child(name: str) -> None:
        for other, sockets in worker_sockets.items():
            if other != name:
                _close(sockets)
        if name != "upkeep":
            _close(admin_sockets)

    def on_ready() -> None:
        announce(
            f"Ready after {time.monotonic() - started:.1f} s: S3 at {endpoint}, admin at {admin}"
            f" ({worker_count} worker{'s' if worker_count > 1 else ''}, {codec} on"
            f" {len(cluster.disks)} disks)."
        )

    def on_stop() -> None:
        for sockets in listeners:
            _close(sockets)

    return Supervisor(
        run_directory=run_directory,
        committer=lambda link, died: committer.run(link, died, spec),
        others={
            "upkeep": upkeep,
            **{name: worker(name) for name in names},
        },
        drain_seconds=config.server.drain_seconds,
        announce=announce,
        log=log_event,
        on_ready=on_ready,
        on_stop=on_stop,
        close_in_child=close_in_child,
        prepare=prepare,
        change_disks=lambda text: change_disks(cluster, data, text),
        facts={
            "version": __version__,
            "started": time.time(),
            "endpoint": endpoint,
            "listen": _address(listeners[0][0]),
            "admin_listen": _address(admin_sockets[0]),
            "admin_tls": admin_tls,
            "cluster": cluster.cluster_id.hex(),
        },
    ).run()


def prepare_store(loaded: Loaded) -> Spec:
    """Lock and open a store that exists, for work that does not serve.

    Raises: CannotStart.
    """
    data = Path(loaded.config.server.data)
    if not (data / RECORD_NAME).exists() and not loaded.config.disks.paths:
        raise CannotStart(f"no store at {data}: name it with --data DIR")
    data, run_directory = _directories(loaded.config)
    _only_one(run_directory)
    return _open(loaded, data, run_directory, token="", endpoint="", announce=warn)


def _directories(config: Config) -> tuple[Path, Path]:
    set_up_logging(config.log.level)
    data = _directory(Path(config.server.data))
    return data, _directory(data / "run")


def _open(
    loaded: Loaded,
    data: Path,
    run_directory: Path,
    *,
    token: str,
    endpoint: str,
    announce: Callable[[str], None],
) -> Spec:
    config = loaded.config
    _raise_limits()
    # Processes that are not forked (a fold) find the package wherever it lies.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    backend = choose_backend(accelerate=config.blobs.accelerator != "zfec")
    if config.blobs.accelerator == "isal" and not backend.accelerated:
        raise CannotStart(f"blobs.accelerator is isal, but {backend.note}: apt-get install libisal2")
    cluster = open_cluster(config, data, announce, codec_given=loaded.origins["blobs.codec"] != "default")
    for line in warnings_of(cluster):
        announce(line)
    return Spec(
        config=config,
        data=str(data),
        run_directory=_short(run_directory),
        token=token,
        endpoint=endpoint,
        cluster=cluster,
        backend=backend,
        beacon=Beacon(),
    )


def _check_certificates(config: Config) -> None:
    pairs = {(config.tls.certificate, config.tls.key), (config.tls.admin_certificate, config.tls.admin_key)}
    for certificate, key in sorted(pair for pair in pairs if pair[0]):
        from objstore.s3.tls import Certificate, TlsFailure  # Rare, and it loads cryptography.

        try:
            Certificate(Path(certificate), Path(key))
        except TlsFailure as failure:
            raise CannotStart(f"the certificate cannot be used: {failure}") from None


def _raise_limits() -> None:
    """As many open files as we may have: connections, and fragment files on every disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 1 << 20), hard))


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


def _directory(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as failure:
        raise CannotStart(f"cannot make the directory {path}: {failure.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise CannotStart(f"cannot write to {path}: it belongs to another user, or is read-only")
    return path.resolve()


_held: list[int] = []  # Locks for the life of this process and of its children.


def _only_one(run_directory: Path) -> None:
    fd = os.open(run_directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    limit = time.monotonic() + 3.0  # After kill -9 of the last supervisor its children are just ending.
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


def _admin_token(data: Path) -> str:
    place = data / TOKEN_NAME
    try:
        token = place.read_text().strip()
        if stat.S_IMODE(place.stat().st_mode) & 0o077:
            place.chmod(0o600)
        if token:
            return token
    except FileNotFoundError:
        pass
    except OSError as failure:
        raise CannotStart(f"cannot read the admin token {place}: {failure.strerror}") from None
    token = secrets.token_urlsafe(32)
    temporary = place.with_name(TOKEN_NAME + ".new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, token.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, place)
    return token


def _listen(address: str, flag: str, count: int) -> list[list[socket.socket]]:
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
            _close(sockets)
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


def _close(sockets: list[socket.socket]) -> None:
    for listener in sockets:
        with contextlib.suppress(OSError):
            listener.close()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _url(listener: socket.socket, tls: bool) -> str:
    """As a client on this machine reaches it."""
    address = _address(listener).replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
    return f"{'https' if tls else 'http'}://{address}"


def _short(directory: Path) -> str:
    """A path for Unix sockets in `directory`. A long one goes through a file descriptor, which every
    child inherits under the same number."""
    if len(os.fsencode(directory)) <= SOCKET_PATH_MAX:
        return str(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _held.append(fd)
    return f"/proc/self/fd/{fd}"
