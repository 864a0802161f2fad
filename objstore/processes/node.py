"""`objstore node`: a storage node, from the configuration to the ready line.

The first start joins the cluster with a token; a path that is new gets a number from a gateway, is formatted
and registered. Later starts need no gateway: they serve at once, and say what they have when one answers.

    supervisor      joins, formats, locks the disks, opens the sockets; replaces the server when it dies
    server          the port (node/port.py), the disks, the renewal of its certificate, its registration

`node.json` in the data directory remembers which disk lies where; the identity files decide. A path that has
lost its disk (not mounted, say) is missing, and never taken for an empty one.
"""

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from objstore import __version__
from objstore.config import Config, Loaded
from objstore.errors import Corrupt, DiskFailed, DiskMissing, StoreError
from objstore.ids import random_id
from objstore.node.authority import NODE
from objstore.node.disk import DiskState
from objstore.node.identity import Identity, Peer, make_identity, read_identity
from objstore.node.local import Expected, format_disk, open_disk
from objstore.node.membership import DiskFacts, Machine, Registered, Registration
from objstore.node.port import NodePort
from objstore.node.syscalls import RealSyscalls
from objstore.node.tls import IDENTITY, Credentials
from objstore.processes import joining
from objstore.processes.cluster import (
    RECORD_NAME,
    CannotStart,
    FoundDisk,
    lock_and_sweep,
    save,
    shared_devices,
    why_not_free,
)
from objstore.processes.founding import AUTHORITY_NAME, TLS_NAME, own_credentials
from objstore.processes.joining import CannotJoin, NoGateway, Refused
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
)
from objstore.processes.parts import until_stopped
from objstore.processes.spec import disk_options
from objstore.processes.supervisor import Supervisor

log = logging.getLogger(__name__)

RECORD: Final = "node.json"
LOOK_SECONDS: Final = 2.0  # Between looks whether the certificate is to be renewed.
RETRY_SECONDS: Final = 30.0  # After a renewal or registration that failed; a tenth of it, the first times.
REGISTER_SECONDS: Final = 600.0  # Between registrations that bring nothing new: sizes change.
STOP_SECONDS: Final = 15.0  # For requests under way and the disks' last calls.

OS: Final = RealSyscalls()


class NodeDisk(msgspec.Struct, kw_only=True):
    number: int  # 0: the cluster has not numbered it yet.
    uuid: str  # 32 hex digits.
    path: str


class NodeRecord(msgspec.Struct, kw_only=True):
    """node.json. A hint where to look, and what was asked for; the identity files decide."""

    format: int = 1
    disks: list[NodeDisk] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What the server is told. Inherited by fork."""

    config: Config
    data: Path
    machine: Machine
    disks: list[NodeDisk]
    locks: list[int] = field(repr=False)  # Held for as long as a process of the node lives.


def serve_node(loaded: Loaded, token: str) -> int:
    """Run until a signal. Returns the exit code.

    Args:
        token: a join token; needed by the first start only, and not looked at by others.

    Raises: CannotStart, with what is wrong and what to do.
    """
    started = time.monotonic()
    config = loaded.config
    data, run_directory = directories(config)
    if (data / RECORD_NAME).exists() or (data / AUTHORITY_NAME).exists():
        raise CannotStart(f"{data} is the data directory of a gateway: give the node one of its own (--data)")
    only_one(run_directory)
    raise_limits()
    sockets = listen(config.node.listen, "--listen", 1)[0]
    about = joining.machine(
        config.node.name,
        joining.advertised(sockets[0], config.node.address),
        config.node.site,
        config.node.rack,
    )
    credentials = _member(data, token, about)
    disks = _disks(config, data, credentials, about)
    spec = NodeSpec(config=config, data=data, machine=about, disks=disks, locks=_lock(credentials, disks))
    name = credentials.name
    place = "/".join(part for part in (about.site, about.rack, about.name) if part)

    def on_ready() -> None:
        announce(
            f"Ready after {time.monotonic() - started:.1f} s: node {place} ({name.id.hex()[:8]}) serves"
            f" {len(disks)} disk{'s' if len(disks) != 1 else ''} at {about.addresses[0]}."
        )

    return Supervisor(
        run_directory=run_directory,
        first_main=lambda link, died: uvloop.run(_serve(link, spec, sockets)),
        others={},
        first="server",
        first_stop_seconds=config.server.drain_seconds + STOP_SECONDS,
        drain_seconds=config.server.drain_seconds,
        announce=announce,
        log=log_event,
        on_ready=on_ready,
        on_stop=lambda: close_all(sockets),
        close_in_child=lambda child: None,
        facts={
            "version": __version__,
            "started": time.time(),
            "listen": address_of(sockets[0]),
            "address": about.addresses[0],
            "node": name.id.hex(),
            "name": about.name,
            "cluster": name.cluster.hex(),
            "disks": {str(disk.number): disk.path for disk in disks},
        },
    ).run()


# Before the first child.


def _member(data: Path, token: str, about: Machine) -> Credentials:
    """This node's credentials; joins if it has none, or if they have ended. Raises: CannotStart."""
    directory = data / TLS_NAME
    credentials = own_credentials(data) if (directory / IDENTITY).exists() else None
    ended = credentials is not None and credentials.ended
    if (credentials is None or ended) and token:
        name = joining.join(token, directory, about, NODE)
        announce(f"Joined cluster {name.cluster.hex()[:8]} as node {name.id.hex()[:8]} ({about.name}).")
        credentials = own_credentials(data)
    elif credentials is None:
        raise CannotStart(
            "this node is no member of a cluster yet: start it with --join TOKEN (a gateway makes one:"
            " objstore cluster token)"
        )
    elif ended:
        announce(
            "This node's certificate has ended, so that no gateway talks to it: start it with --join TOKEN (a"
            f" gateway makes one: objstore cluster token --for {about.name}). Where no gateway gets as far as"
            f" that, objstore cluster certificate {about.name} on its machine makes what is to be"
            f" {directory / IDENTITY} here."
        )
    elif token:
        announce("This node is a member already: the join token is not used.")
    if credentials.name.role != NODE:
        raise CannotStart(f"{directory} holds the certificate of a {credentials.name.role}")
    return credentials


def _disks(config: Config, data: Path, credentials: Credentials, about: Machine) -> list[NodeDisk]:
    """Every disk of this node, by number; new ones are numbered and formatted. Raises: CannotStart."""
    record = _read_record(data)
    cluster = credentials.name.cluster
    paths = [str(Path(path).absolute()) for path in config.disks.paths]
    if len(set(map(os.path.realpath, paths))) != len(paths):
        raise CannotStart("--disk names the same directory twice")
    for path in paths:
        _notice(record, path, cluster)
    if not record.disks:
        raise CannotStart("a node serves at least one disk: name its directory with --disk PATH")
    _write_record(data, record)  # Before anybody is asked: asking again means the same disks.
    if any(disk.number == 0 for disk in record.disks):
        _number_and_format(data, record, credentials, about)
    return sorted(record.disks, key=lambda disk: disk.number)


def _notice(record: NodeRecord, path: str, cluster: bytes) -> None:
    """Put a named path into the record, unless it stands there. Raises: CannotStart."""
    identity = _identity(path)
    if identity is None:
        if any(disk.path == path for disk in record.disks):
            return  # Not mounted, or not formatted yet.
        if words := why_not_free(path):
            raise CannotStart(f"--disk {words}")
        record.disks.append(NodeDisk(number=0, uuid=random_id().hex(), path=path))
        return
    if identity.cluster_id != cluster:
        raise CannotStart(f"--disk {path} belongs to another store ({identity.cluster[:8]}...): not touched")
    for disk in record.disks:
        if disk.uuid == identity.uuid:
            disk.path, disk.number = path, identity.number
            return
    record.disks = [disk for disk in record.disks if disk.path != path or disk.number]
    record.disks.append(NodeDisk(number=identity.number, uuid=identity.uuid, path=path))


def _number_and_format(data: Path, record: NodeRecord, credentials: Credentials, about: Machine) -> None:
    """Numbers from a gateway, then identity files, then the gateway hears that they are there."""
    # Only these are ever formatted: a numbered disk that is not there is not mounted.
    new = [disk for disk in record.disks if disk.number == 0]
    answer = _register(credentials, about, record.disks)
    for disk in record.disks:
        number = answer.numbers.get(disk.uuid, 0)
        if number < 1 or disk.number not in (0, number):
            raise CannotStart(f"the gateway numbers {disk.path} {number}, but it is disk {disk.number}")
        disk.number = number
    peers = [Peer(number=disk.number, uuid=disk.uuid, path=disk.path) for disk in record.disks]
    for disk in new:
        if (identity := _identity(disk.path)) is not None:
            if identity.uuid != disk.uuid or identity.number != disk.number:
                raise CannotStart(f"{disk.path} holds disk {identity.number}, not disk {disk.number}")
            continue  # Formatted by a start that was cut short.
        identity = make_identity(
            cluster=credentials.name.cluster,
            uuid=bytes.fromhex(disk.uuid),
            number=disk.number,
            checksum_secret=int(answer.checksum_secret, 16),
            # The master key is the gateways': no disk of a node ever has it.
            peers=[peer for peer in peers if peer.number != disk.number],
            epoch=answer.epoch,
            created_us=time.time_ns() // 1000,
        )
        try:
            format_disk(disk.path, identity)
        except (OSError, StoreError) as failure:
            raise CannotStart(f"cannot format {disk.path}: {failure}") from None
    _write_record(data, record)
    _register(credentials, about, record.disks)


def _register(credentials: Credentials, about: Machine, disks: Sequence[NodeDisk]) -> Registered:
    try:
        request = _registration(about, disks)
        return joining.patiently(lambda: joining.register(credentials, request))
    except (Refused, NoGateway) as failure:
        raise CannotStart(f"the cluster gives this node's new disks no numbers: {failure}") from None


def _registration(about: Machine, disks: Sequence[NodeDisk]) -> Registration:
    facts = []
    for disk in disks:
        identity = _identity(disk.path)
        ours = identity is not None and identity.uuid == disk.uuid
        try:
            found = os.statvfs(disk.path)
            size = found.f_frsize * found.f_blocks if ours else 0
        except OSError:
            size = 0
        # One that is numbered was formatted once: where it is now is for the gateways to see.
        facts.append(DiskFacts(uuid=disk.uuid, path=disk.path, size=size, formatted=ours))
    return Registration(machine=about, disks=facts)


def _identity(path: str) -> Identity | None:
    """None if no disk lies there, or one whose identity cannot be read."""
    try:
        return read_identity(path, OS)
    except DiskMissing:
        return None
    except (Corrupt, DiskFailed) as failure:
        log.warning("identity not read", extra={"path": path, "failure": str(failure)})
        return None


def _lock(credentials: Credentials, disks: Sequence[NodeDisk]) -> list[int]:
    """A lock on every disk that is there, and the end of what a crash left in it. Raises: CannotStart."""
    locks: list[int] = []
    found: list[FoundDisk] = []
    for disk in disks:
        identity = _identity(disk.path)
        if identity is None or identity.uuid != disk.uuid:
            announce(
                f"Disk {disk.number} is not at {disk.path}: not mounted? It is looked for again and again."
            )
            continue
        here = FoundDisk(
            number=disk.number,
            uuid=bytes.fromhex(disk.uuid),
            path=disk.path,
            state=DiskState.HEALTHY,
            device=os.stat(disk.path).st_dev,
        )
        locks.append(lock_and_sweep(credentials.name.cluster, here))
        found.append(here)
    for line in shared_devices(found):
        announce(line)
    return locks


def _read_record(data: Path) -> NodeRecord:
    place = data / RECORD
    try:
        record = msgspec.json.decode(place.read_bytes(), type=NodeRecord)
    except FileNotFoundError:
        return NodeRecord(disks=[])
    except (OSError, msgspec.MsgspecError, ValueError) as failure:
        raise CannotStart(
            f"{place} cannot be read ({failure}). It only remembers where the disks are: move it away and"
            " name every disk with --disk."
        ) from None
    if record.format != 1:
        raise CannotStart(f"{place} has format {record.format}; this release reads 1")
    return record


def _write_record(data: Path, record: NodeRecord) -> None:
    try:
        save(data, RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    except OSError as failure:
        raise CannotStart(f"cannot write {data / RECORD}: {failure.strerror}") from None


# The server.


async def _serve(link: Link, spec: NodeSpec, sockets: Sequence[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    link.attach(loop)
    credentials = Credentials(spec.data / TLS_NAME)
    options = disk_options(spec.config)
    disks = {
        disk.number: open_disk(
            disk.path,
            expected=Expected(credentials.name.cluster, bytes.fromhex(disk.uuid), disk.number),
            options=options,
        )
        for disk in spec.disks
    }
    port = NodePort(disks, credentials)
    await port.listen(sockets)
    tasks = [
        loop.create_task(_renew(credentials)),
        loop.create_task(_keep_registered(credentials, spec)),
    ]
    link.ready()
    await until_stopped()
    for task in tasks:
        task.cancel()
    await port.close()
    for disk in disks.values():
        disk.close()


async def _renew(credentials: Credentials) -> None:
    """Another certificate when ours is two thirds through its life, or its root signs no more."""
    failures = 0
    while True:
        await asyncio.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311  (Spreads a cluster's load.)
        if not credentials.renewal_due:
            failures = 0
            continue
        try:
            await asyncio.to_thread(joining.renew, credentials)
            credentials.reload()
            log.info("certificate renewed", extra={"ends": str(credentials.certificate.not_valid_after_utc)})
            failures = 0
        except (Refused, NoGateway, CannotJoin, OSError) as failure:
            failures += 1
            log.warning("certificate not renewed", extra={"failure": str(failure)})
            await asyncio.sleep(_pause(failures))


async def _keep_registered(credentials: Credentials, spec: NodeSpec) -> None:
    """Let the gateways know where this node is, and what it has: when it starts, and now and then."""
    failures = 0
    while True:
        try:
            request = await asyncio.to_thread(_registration, spec.machine, spec.disks)
            await asyncio.to_thread(joining.register, credentials, request)
            failures = 0
        except (Refused, NoGateway) as failure:
            failures += 1
            if failures == 1:
                log.warning("not registered", extra={"failure": str(failure)})
        await asyncio.sleep(_pause(failures) if failures else REGISTER_SECONDS)


def _pause(failures: int) -> float:
    return RETRY_SECONDS * min(1.0, failures / 10)
