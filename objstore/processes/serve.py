"""`objstore serve`: everything on one machine, from the configuration to the ready line.

Prepares what lies on the data directory (disks, token, runtime directory), opens the listening sockets,
and hands four kinds of children to the supervisor. Nothing here maps LMDB or runs an event loop.

Imports are ordered for a quick start: what the committer needs comes first, and while it recovers in its
own process, this one imports what workers and upkeep need (most of it aiohttp) and then forks them.
"""

import os
import secrets
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from objstore import __version__
from objstore.codec.backend import choose as choose_backend
from objstore.config import Config, Loaded
from objstore.ids import random_id
from objstore.meta.beacon import Beacon
from objstore.node.disk import DiskState
from objstore.processes import committer
from objstore.processes.cluster import (
    RECORD_NAME,
    CannotStart,
    Cluster,
    change_disks,
    keep_master_key,
    open_cluster,
    read_record,
    warnings_of,
    with_kept_master_key,
)
from objstore.processes.link import Link
from objstore.processes.machine import (
    address_of,
    announce,
    close_all,
    directories,
    listen,
    log_event,
    only_one,
    raise_limits,
    short,
    url_of,
    warn,
)
from objstore.processes.moved import refuse_moved
from objstore.processes.spec import Spec
from objstore.processes.supervisor import ChildMain, Supervisor

__all__ = ["CannotStart", "prepare_store", "serve"]

TOKEN_NAME = "admin.token"  # noqa: S105  (A file's name.)


def serve(
    loaded: Loaded, *, gateway: bool = False, prepare: Callable[[Path], None] = lambda data: None
) -> int:
    """Run until a signal. Returns the exit code.

    Args:
        gateway: its disks may be on storage nodes (gateway.py).
        prepare: called with the data directory when that is ours alone, before anything in it is read.

    Raises: CannotStart, with what is wrong and what to do.
    """
    started = time.monotonic()
    config = loaded.config
    data, run_directory = directories(config)
    only_one(run_directory)
    prepare(data)
    token = _admin_token(data)
    worker_count = config.server.workers or os.cpu_count() or 1
    listeners = listen(config.server.listen, "--listen", worker_count)
    admin_sockets = listen(config.server.admin_listen, "--admin-listen", 1)[0]
    if config.cluster.listen and not gateway:
        raise CannotStart("cluster.listen is set: start a cluster's gateway with objstore gateway")
    cluster_sockets: list[socket.socket] = []
    if gateway and config.cluster.listen:
        cluster_sockets = listen(config.cluster.listen, "--cluster-listen", 1)[0]
    endpoint = url_of(listeners[0][0], bool(config.tls.certificate))
    admin_tls = config.tls.admin and bool(config.tls.admin_certificate or config.tls.certificate)
    admin = url_of(admin_sockets[0], admin_tls)
    _check_certificates(config)
    spec = _open(
        loaded, data, run_directory, token=token, endpoint=endpoint, announce=announce, gateway=gateway
    )
    if not config.meta.url:
        refuse_moved(data, spec.cluster)
    cluster = spec.cluster
    shared = bool(config.meta.url)  # Then nobody of this machine commits for the others.
    names = [f"worker-{number}" for number in range(1, worker_count + 1)]
    worker_sockets = dict(zip(names, listeners, strict=True))

    def upkeep(link: Link, died: str) -> None:
        from objstore.processes import upkeep

        upkeep.run(link, died, spec, admin_sockets, cluster_sockets)

    def worker(name: str) -> ChildMain:
        def main(link: Link, died: str) -> None:
            from objstore.processes import worker

            worker.run(link, died, spec, name, worker_sockets[name])

        return main

    def load() -> None:
        from objstore.processes import upkeep, worker  # noqa: F401  (For the children.)

    def close_in_child(name: str) -> None:
        for other, sockets in worker_sockets.items():
            if other != name:
                close_all(sockets)
        if name != "upkeep":
            close_all(admin_sockets)
            close_all(cluster_sockets)

    def no_change(text: str) -> tuple[str, bool]:
        return "", False  # Metadata says it all, and every process reads that.

    def on_ready() -> None:
        where = ", metadata in PostgreSQL" if shared else f" on {len(cluster.disks)} disks"
        announce(
            f"Ready after {time.monotonic() - started:.1f} s: S3 at {endpoint}, admin at {admin}"
            f" ({worker_count} worker{'s' if worker_count > 1 else ''}, {_code(cluster)}{where})."
        )

    def on_stop() -> None:
        for sockets in listeners:
            close_all(sockets)

    workers = {name: worker(name) for name in names}
    return Supervisor(
        run_directory=run_directory,
        first_main=upkeep if shared else lambda link, died: committer.run(link, died, spec),
        others=workers if shared else {"upkeep": upkeep, **workers},
        first="upkeep" if shared else "committer",
        drain_seconds=config.server.drain_seconds,
        announce=announce,
        log=log_event,
        on_ready=on_ready,
        on_stop=on_stop,
        close_in_child=close_in_child,
        prepare=load,
        change_disks=no_change if shared else lambda text: change_disks(cluster, data, text),
        facts={
            "version": __version__,
            "started": time.time(),
            "endpoint": endpoint,
            "listen": address_of(listeners[0][0]),
            "admin_listen": address_of(admin_sockets[0]),
            "admin_tls": admin_tls,
            "cluster_listen": address_of(cluster_sockets[0]) if cluster_sockets else "",
            "cluster": cluster.cluster_id.hex(),
        },
    ).run()


def _code(cluster: Cluster) -> str:
    """k+m, and what new volumes get of it over the disks that a start has found."""
    k, m = cluster.codec
    there = [disk for disk in cluster.disks if disk.state is DiskState.HEALTHY]
    narrow = min(k, len(there) - m)
    if narrow == k or cluster.tls:  # Disks of nodes come and go, and may all be still to come.
        return f"{k}+{m}"
    if narrow < 1:
        return f"{k}+{m}, and too few disks to write anything"
    return f"{narrow}+{m} instead of {k}+{m}, for want of disks,"


def prepare_store(loaded: Loaded) -> Spec:
    """Lock and open a store that exists, for work that does not serve.

    Raises: CannotStart.
    """
    if loaded.config.meta.url:
        raise CannotStart("this cluster's metadata is in PostgreSQL: save and restore it by its means")
    data = Path(loaded.config.server.data)
    if not (data / RECORD_NAME).exists() and not loaded.config.disks.paths:
        raise CannotStart(f"no store at {data}: name it with --data DIR")
    data, run_directory = directories(loaded.config)
    only_one(run_directory)
    record = read_record(data)
    gateway = record is not None and record.term > 0
    return _open(loaded, data, run_directory, token="", endpoint="", announce=warn, gateway=gateway)


def _open(
    loaded: Loaded,
    data: Path,
    run_directory: Path,
    *,
    token: str,
    endpoint: str,
    announce: Callable[[str], None],
    gateway: bool,
) -> Spec:
    config = with_kept_master_key(loaded.config, data)
    if config.meta.url and not gateway:
        raise CannotStart("meta.url is set: PostgreSQL is for clusters, which objstore gateway serves")
    if config.meta.url and config.disks.paths:
        raise CannotStart(
            "with meta.url a gateway has no disks of its own: all are on storage nodes, where every gateway"
            " reaches them"
        )
    raise_limits()
    # Processes that are not forked (a fold) find the package wherever it lies.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    backend = choose_backend(accelerate=config.blobs.accelerator != "zfec")
    if config.blobs.accelerator == "isal" and not backend.accelerated:
        raise CannotStart(f"blobs.accelerator is isal, but {backend.note}: apt-get install libisal2")
    founded = None
    if (data / "authority.json").exists():
        from objstore.processes.founding import founded_secrets  # Rare, and it loads cryptography.

        founded = founded_secrets(config, data)
    cluster = open_cluster(
        config,
        data,
        announce,
        codec_given=loaded.origins["blobs.codec"] != "default",
        founded=founded,
        tls=str(data / "tls") if gateway else "",
    )
    if gateway and not config.security.master_key:
        keep_master_key(data, cluster.master_key)
    for line in warnings_of(cluster):
        announce(line)
    return Spec(
        config=config,
        data=str(data),
        run_directory=short(run_directory),
        token=token,
        endpoint=endpoint,
        cluster=cluster,
        backend=backend,
        beacon=Beacon(),
        run=random_id(),
    )


def _check_certificates(config: Config) -> None:
    pairs = {(config.tls.certificate, config.tls.key), (config.tls.admin_certificate, config.tls.admin_key)}
    for certificate, key in sorted(pair for pair in pairs if pair[0]):
        from objstore.s3.tls import Certificate, TlsFailure  # Rare, and it loads cryptography.

        try:
            Certificate(Path(certificate), Path(key))
        except TlsFailure as failure:
            raise CannotStart(f"the certificate cannot be used: {failure}") from None


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
