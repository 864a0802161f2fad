"""What every child is told, and the disks as every child opens them: this machine's, and those of nodes."""

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from objstore.codec.backend import Backend
from objstore.config import Config, host_and_port
from objstore.meta.beacon import Beacon
from objstore.meta.journal import last_epoch
from objstore.node.local import DiskOptions, Expected, LocalDisk, open_disk
from objstore.node.pool import Address
from objstore.node.remote import RemoteDisk, RemoteNode, RemoteOptions
from objstore.processes.cluster import Cluster

if TYPE_CHECKING:  # Loads cryptography: a tenth of a second that a store of one machine saves.
    import ssl

    from objstore.node.tls import Credentials

log = logging.getLogger(__name__)

StoreDisk = LocalDisk | RemoteDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What every child is told. Inherited by fork, never written anywhere."""

    config: Config
    data: str
    run_directory: str  # Short enough for Unix sockets.
    token: str
    endpoint: str
    cluster: Cluster
    backend: Backend
    beacon: Beacon  # Which metadata state is in force; every child shares the page.
    run: bytes  # 16 random bytes: this run of the supervisor.

    @property
    def committer_socket(self) -> str:
        return f"{self.run_directory}/committer.sock"


def disk_options(config: Config) -> DiskOptions:
    return DiskOptions(
        limit_s=config.disks.progress_seconds,
        log_limit_s=config.meta.copy_seconds,
        low_water=config.disks.reserve_bytes or None,
    )


class Place(NamedTuple):
    """Where a disk is. Picklable."""

    number: int
    uuid: bytes
    path: str
    node: bytes = b""  # Member id of its storage node; empty: a directory of this machine.


class Opener:
    """Opens disks for one process, and keeps the connections to their nodes.

    Args:
        cluster: 16 bytes.
        tls: directory of this gateway's credentials; empty: there are no nodes.
        epoch: what every request to a node names.
        stale_wait_s: how long a request that was refused for it waits for `epoch` to grow.

    Concurrency: one event loop. A node is known by its member id; where it is, the trust says (node/tls.py),
    which is read anew when it changes: a node that moved is found at its next connection.
    """

    def __init__(
        self,
        cluster: bytes,
        options: DiskOptions,
        *,
        tls: str,
        epoch: Callable[[], int],
        stale_wait_s: float = 0.0,
    ) -> None:
        self._cluster = cluster
        self._options = options
        self._tls = tls
        self._epoch = epoch
        self._stale_wait_s = stale_wait_s
        self._credentials: Credentials | None = None
        self._nodes: dict[bytes, RemoteNode] = {}
        self._node_of: dict[int, bytes] = {}
        self._watch: asyncio.Task[None] | None = None

    def open(self, place: Place) -> StoreDisk:
        """The disk at a place. One that is not there is in that state, and looks again by itself."""
        if not place.node:
            expected = Expected(self._cluster, place.uuid, place.number)
            return open_disk(place.path, expected=expected, options=self._options)
        self._node_of[place.number] = place.node
        return self._node(place.node, place.number).disk(place.number, place.uuid)

    def site(self, number: int) -> str | None:
        """The site of a node's disk, as the trust has it; None: it is not known, or of this machine."""
        member = self._node_of.get(number, b"").hex()
        if not member or self._credentials is None:
            return None
        return next((one.site for one in self._credentials.trust.members if one.id == member), None)

    def machine(self, number: int) -> Hashable:
        """Where a disk stands: its node, or for one of this machine itself: it may be lost alone."""
        return self._node_of.get(number, number)

    def is_away(self, number: int) -> bool:
        """Whether it is on a storage node that does not answer."""
        node = self._nodes.get(self._node_of.get(number, b""))
        return node is not None and bool(node.away)

    async def look(self) -> None:
        """Ask every node how its disks are. Ends when each has answered, or is away."""
        if self._credentials is not None and self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._credentials.watch())
        await asyncio.gather(*[node.start() for node in self._nodes.values()])

    def close(self) -> None:
        """After all disks are closed."""
        if self._watch is not None:
            self._watch.cancel()
        for node in self._nodes.values():
            node.close()

    def _node(self, member: bytes, number: int) -> RemoteNode:
        found = self._nodes.get(member)
        if found is not None and found.disks:
            return found
        if self._credentials is None:
            from objstore.node.tls import Credentials

            self._credentials = Credentials(Path(self._tls))
        made = self._nodes[member] = RemoteNode(
            self._addresses(member)[0],
            number=number,  # Of the first of its disks that is opened here: no two nodes share one.
            cluster=self._cluster,
            epoch=self._epoch,
            context=self._credentials.client_context("node", member),
            options=RemoteOptions(
                limit_s=self._options.limit_s,
                log_limit_s=self._options.log_limit_s,
                stale_wait_s=self._stale_wait_s,
            ),
            connect=lambda factory, address, context: self._connect(member, factory, context),
        )
        return made

    def _addresses(self, member: bytes) -> list[Address]:
        assert self._credentials is not None
        known = {one.id: one.addresses for one in self._credentials.trust.members}
        if member.hex() not in known and self._credentials.reload_if_changed():  # It joined just now.
            known = {one.id: one.addresses for one in self._credentials.trust.members}
        return [Address(*host_and_port(text)) for text in known.get(member.hex(), ())] or [NOWHERE]

    async def _connect(
        self,
        member: bytes,
        factory: Callable[[], asyncio.BaseProtocol],
        context: "ssl.SSLContext | None",
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Raises: OSError."""
        failure = OSError(f"no address of the node {member.hex()[:8]} is known")
        for address in self._addresses(member):
            if address is NOWHERE:
                break
            try:
                loop = asyncio.get_running_loop()
                made = await loop.create_connection(factory, address.host, address.port, ssl=context)
            except OSError as refused:
                failure = refused
                continue
            self._nodes[member].address = address  # For people: where it is now.
            return made
        raise failure


NOWHERE = Address("nowhere", 0)


def places_of(cluster: Cluster) -> list[Place]:
    return [Place(disk.number, disk.uuid, disk.path, disk.node) for disk in cluster.disks]


def opener_of(spec: Spec, epoch: Callable[[], int] | None = None) -> Opener:
    """One for each process: it holds connections.

    Args:
        epoch: what requests to nodes name; by default the last of this machine's own term.
    """
    cluster, options = spec.cluster, disk_options(spec.config)
    if epoch is not None:
        # Others may raise it, and this process hears of that within a second.
        return Opener(cluster.cluster_id, options, tls=cluster.tls, epoch=epoch, stale_wait_s=3.0)
    return make_opener(cluster.cluster_id, options, cluster.tls, cluster.term)


def make_opener(cluster: bytes, options: DiskOptions, tls: str, term: int) -> Opener:
    epoch = last_epoch(term)
    return Opener(cluster, options, tls=tls, epoch=lambda: epoch)


def open_disks(opener: Opener, cluster: Cluster) -> dict[int, StoreDisk]:
    """Every disk of the store, by number."""
    return {place.number: opener.open(place) for place in places_of(cluster)}


def open_disk_list(
    cluster: bytes, places: Iterable[Place], options: DiskOptions, tls: str, term: int
) -> list[StoreDisk]:
    """The same for a process that is told by pickle: a fold's."""
    opener = make_opener(cluster, options, tls, term)
    return [opener.open(place) for place in places]
