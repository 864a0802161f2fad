"""What a local disk promises, promised by the same disk over the network: the very tests, over a real socket.

Left out are those that open disks of their own, or that look at what only a directory has.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from objstore.node.local import DiskOptions, LocalDisk, open_disk
from objstore.node.remote import RemoteDisk
from objstore.node.server import NodeServer
from tests.node import test_local_disk as local_tests
from tests.node.rig import CLUSTER, OPTIONS, listening
from tests.node.test_local_disk import path, sys  # noqa: F401 - fixtures.
from tests.sim.faulty_syscalls import FaultySyscalls

OF_A_DIRECTORY = {
    "test_bytes_for_a_file_whose_directory_was_removed_are_not_acknowledged",
    "test_cached_bytes_are_read_without_a_thread",
    "test_the_epoch_and_the_peers_are_kept_and_an_epoch_never_falls",  # Peers: not of the interface.
    "test_usage_is_that_of_the_file_system",  # Devices get numbers that are the cluster's.
    "test_what_would_block_is_read_in_a_thread",  # A node looks into the page cache twice before that.
    "test_who_only_asks_for_the_state_of_a_full_or_missing_disk_sees_it_recover",
}
for _name, _test in vars(local_tests).items():
    if (
        _name.startswith("test_")
        and _name not in OF_A_DIRECTORY
        and "disk" in _test.__code__.co_varnames[: _test.__code__.co_argcount]
    ):
        globals()[_name] = _test


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """What a store runs on; tests/node/test_remote.py runs on the standard library's loop."""
    return uvloop.EventLoopPolicy()


class Seen:
    """A remote disk, with the inner life of the local one behind it for the tests that look there."""

    def __init__(self, remote: RemoteDisk, local: LocalDisk) -> None:
        self.__dict__.update(remote=remote, local=local)

    def __getattr__(self, name: str) -> Any:
        if name == "suspect" or not hasattr(RemoteDisk, name):
            return getattr(self.local, name)
        return getattr(self.remote, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.local, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.local, name)

    @property
    def state(self) -> Any:
        return self.remote.state


@pytest.fixture
async def disk(path: Path, sys: FaultySyscalls) -> AsyncIterator[Seen]:  # noqa: F811
    from objstore.node.pool import Address
    from objstore.node.remote import RemoteNode

    opened = open_disk(str(path), options=DiskOptions(low_water=0), sys=sys)
    server = NodeServer({1: opened}, cluster=CLUSTER)
    sock = listening()
    await server.serve([sock], None)
    node = RemoteNode(
        Address(*sock.getsockname()), number=1, cluster=CLUSTER, epoch=lambda: 100, options=OPTIONS
    )
    remote = node.disk(1, bytes([1]) * 16)
    await node.start()
    await remote.usage()  # The node has read the disk's fence, and its look at the identity file is over.
    yield Seen(remote, opened)
    sys.release()
    node.close()
    await server.close()
    opened.close()


def test_the_contract_is_more_than_a_few_tests() -> None:
    assert sum(name.startswith("test_") for name in globals()) > 39
