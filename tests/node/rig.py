"""A storage node on loopback for tests: its disks, its server, and the same disks as a gateway sees them."""

import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from objstore.node.identity import make_identity
from objstore.node.local import DiskOptions, LocalDisk, format_disk, open_disk
from objstore.node.pool import Address
from objstore.node.remote import RemoteDisk, RemoteNode, RemoteOptions
from objstore.node.server import NodeLimits, NodeServer
from objstore.node.syscalls import Syscalls
from objstore.processes.dev import free_ports

CLUSTER = b"c" * 16
# Deadlines that a starved machine does not miss: a test of one sets its own.
OPTIONS = RemoteOptions(
    limit_s=20.0, log_limit_s=20.0, read_limit_s=20.0, poll_s=0.05, poll_limit_s=20.0, stale_wait_s=0.2
)


def listening() -> socket.socket:
    """A socket on a free port of loopback."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


def uuid(number: int) -> bytes:
    return bytes([number]) * 16


def formatted(path: Path, number: int = 1) -> Path:
    format_disk(
        str(path), make_identity(cluster=CLUSTER, uuid=uuid(number), number=number, checksum_secret=77)
    )
    return path


class Node:
    """One node: `start` it, `stop` it as a restart would, `start` it again at the same address."""

    def __init__(
        self,
        paths: Mapping[int, Path],
        *,
        sys: Syscalls | None = None,
        options: DiskOptions | None = None,
        limits: NodeLimits | None = None,
    ) -> None:
        self.paths = paths
        self.sys = sys
        self.options = options or DiskOptions(low_water=0)
        self.limits = limits
        self.disks: dict[int, LocalDisk] = {}
        self.server: NodeServer
        self.port = 0

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        for number, path in self.paths.items():
            self.disks[number] = open_disk(str(path), options=self.options, sys=self.sys)
        self.server = NodeServer(self.disks, cluster=CLUSTER, limits=self.limits)
        self.port = self.port or free_ports(1)[0]  # Not one that a connection may take while it is stopped.
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self.port))
        sock.listen(128)
        await self.server.serve([sock], context)

    async def stop(self) -> None:
        await self.server.close()
        for disk in self.disks.values():
            disk.close()
        self.disks.clear()

    def seen(
        self,
        *,
        port: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        options: RemoteOptions = OPTIONS,
        **more: Any,
    ) -> RemoteNode:
        """The node as a gateway sees it. `port`: of a proxy before it."""
        address = Address("127.0.0.1", port or self.port)
        return RemoteNode(address, number=1, cluster=CLUSTER, epoch=epoch, options=options, **more)


def disks_of(node: RemoteNode, *numbers: int) -> list[RemoteDisk]:
    return [node.disk(number, uuid(number)) for number in numbers]
