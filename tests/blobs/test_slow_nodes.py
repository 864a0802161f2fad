"""Disks of storage nodes, over a network that is slow or swallows: what reads do, and what repair does then.

Nothing here measures time: states are asserted, and what was asked of whom. The figures are those of
tests/chaos/test_slow_nodes.py.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from objstore.blobs.reader import BlobReader, ReaderLimits
from objstore.blobs.volumes import Intent, VolumeRecord
from objstore.clock import SystemClock
from objstore.extents import Extent
from objstore.node.disk import DiskState
from objstore.node.pool import Address
from objstore.node.remote import RemoteDisk, RemoteNode
from objstore.node.slowness import Slowness
from objstore.upkeep.repair import Repair
from tests.node.rig import CLUSTER, OPTIONS, Node, formatted, uuid
from tests.proxy import Proxy
from tests.upkeep.rig import Yard
from tests.waiting import until

NODES = 6
LATE_S = 1.5  # Beyond what a read takes, also on a starved machine.
SWALLOWED = replace(OPTIONS, poll_limit_s=0.5)


class Cluster:
    """Six nodes of a disk each behind a proxy each, a volume over all of them, and objects in it.

    Attributes:
        late: objects whose bytes lie on the disk of the volume's first fragment; `others` do not touch it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.yard = Yard()
        self.nodes: dict[int, Node] = {}
        self.proxies: dict[int, Proxy] = {}
        self.seen: dict[int, RemoteNode] = {}
        self.disks: dict[int, RemoteDisk] = {}
        self.slowness = Slowness(spare=2)
        self.reader: BlobReader
        self.record: VolumeRecord
        self.late: list[tuple[bytes, Extent]] = []
        self.others: list[tuple[bytes, Extent]] = []

    async def start(self) -> None:
        for number in range(1, NODES + 1):
            node = self.nodes[number] = Node({number: formatted(self.directory / str(number), number)})
            await node.start()
            proxy = self.proxies[number] = await Proxy(node.port).start()
            address = Address("127.0.0.1", proxy.port)
            seen = RemoteNode(address, number=number, cluster=CLUSTER, epoch=lambda: 0, options=OPTIONS)
            self.seen[number] = seen
            self.disks[number] = seen.disk(number, uuid(number))
            await seen.start()
        self.yard.disks.clear()
        self.yard.disks.update(self.disks)  # type: ignore[arg-type]
        await self.yard.start()
        self.reader = self.yard.new_reader(ReaderLimits(deadline_s=60.0), self.slowness, SystemClock())

    async def fill(self) -> None:
        bodies = [self.yard.rng.randbytes(3_000) for _ in range(48)]
        extents = [extent for (extent,) in await asyncio.gather(*map(self.yard.put, bodies))]
        self.record = await self.yard.ledger.get(extents[0].volume)
        for body, extent in zip(bodies, extents, strict=True):
            assert extent.volume == self.record.id
            end = extent.begin + extent.length
            if end <= extent.fragment_size:
                self.late.append((body, extent))
            elif extent.begin >= extent.fragment_size:
                self.others.append((body, extent))
        assert len(self.late) >= 5
        for _ in range(5):
            await self.read(self.late + self.others)
        self.judge()

    @property
    def first(self) -> int:
        """The number of the disk, and of its node, that has the volume's first fragments."""
        return self.record.disks[0]

    async def read(self, objects: list[tuple[bytes, Extent]]) -> None:
        for body, extent in objects:
            assert await self.reader.read(extent) == body

    def judge(self) -> None:
        self.slowness.judge(dict.fromkeys(self.disks, (0, 0.0)))

    def asked(self) -> int:
        """Reads that the first disk has answered."""
        return self.disks[self.first].counts["read"].count

    async def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.delay_s = 0.0
            proxy.open()
        await self.yard.writer.close()
        for seen in self.seen.values():
            seen.close()
        for proxy in self.proxies.values():
            await proxy.stop()
        for node in self.nodes.values():
            await node.stop()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    await made.start()
    await made.fill()
    yield made
    await made.close()


async def test_a_slow_node_is_found_out_read_around_and_used_again_when_it_is_quick(cluster: Cluster) -> None:
    proxy = cluster.proxies[cluster.first]
    proxy.delay_s = LATE_S
    rounds = 0
    while not cluster.slowness.ejected:
        rounds += 1
        assert rounds < 100
        await cluster.read(cluster.others)
        await cluster.read(cluster.late[:1])
        if stragglers := set(cluster.reader._racing._stragglers):
            await asyncio.wait(stragglers)
        cluster.judge()
    assert set(cluster.slowness.ejected) == {cluster.first}
    hedges, counters = cluster.reader.hedges, cluster.reader.counters
    assert hedges.won >= 1
    assert hedges.won + hedges.lost + hedges.failed <= 10 + 0.05 * counters.reads

    await until(lambda: not cluster.seen[cluster.first]._pool._busy)  # What was asked before.
    asked = cluster.asked()
    for _ in range(5):
        await cluster.read(cluster.late)
    assert cluster.asked() == asked
    assert counters.avoided_reads >= 5 * len(cluster.late)
    assert cluster.reader.take_hints() == [], "nothing is wrong with what it holds"

    proxy.delay_s = 0.0
    cluster.slowness._seen[cluster.first].out_until = 0.0  # Its time is over.
    async with asyncio.timeout(60):
        while not await cluster.reader.probe():
            await asyncio.sleep(0.01)
    assert not cluster.slowness.ejected
    asked = cluster.asked()
    await cluster.read(cluster.late)
    assert cluster.asked() > asked


async def test_a_node_that_swallows_everything_holds_up_no_read_and_is_used_again_when_it_answers(
    cluster: Cluster,
) -> None:
    first = cluster.first
    cluster.seen[first].options = SWALLOWED
    cluster.proxies[first].swallow()
    await cluster.read(cluster.late[:3])
    assert cluster.reader.hedges.won + cluster.reader.counters.degraded_reads >= 3
    await until(lambda: cluster.disks[first].state is DiskState.SUSPECT)
    await cluster.read(cluster.late + cluster.others)
    assert cluster.reader.counters.failed_reads == 0
    cluster.proxies[first].open()
    await until(lambda: cluster.disks[first].state is DiskState.HEALTHY)
    await cluster.read(cluster.late + cluster.others)


async def test_what_a_connection_still_brings_of_a_read_that_lost_goes_into_nobodys_memory(
    cluster: Cluster,
) -> None:
    """And the connection serves the next read: a hedge costs no handshake."""
    proxy, seen = cluster.proxies[cluster.first], cluster.seen[cluster.first]
    proxy.delay_s = LATE_S
    await cluster.read(cluster.late[:3])
    assert cluster.reader.hedges.won >= 1
    stragglers = set(cluster.reader._racing._stragglers)
    for straggler in stragglers:
        straggler.cancel()
    await asyncio.gather(*stragglers, return_exceptions=True)
    proxy.delay_s = 0.0
    await until(lambda: not seen._pool._busy)
    connected = seen._pool.connected
    for _ in range(3):
        await cluster.read(cluster.late + cluster.others)
    assert seen._pool.connected == connected


@pytest.mark.parametrize("how", ["rotten", "gone"])
async def test_what_a_read_finds_damaged_on_a_node_is_rebuilt_there(cluster: Cluster, how: str) -> None:
    number, volume = cluster.first, cluster.record.id
    await cluster.yard.restart_writer()
    path = cluster.directory / str(number) / "fragments" / f"{volume & 0xFF:02x}" / f"{volume}.0"
    whole = path.read_bytes()
    body, extent = cluster.late[0]
    await cluster.nodes[number].stop()
    if how == "gone":
        path.unlink()
    else:
        damaged = bytearray(whole)
        damaged[extent.offset + 100] ^= 1
        path.write_bytes(damaged)
    await cluster.nodes[number].start()
    await until(lambda: cluster.disks[number].state is DiskState.HEALTHY)
    assert await cluster.reader.read(extent) == body
    await until(lambda: cluster.reader._hints)
    (hint,) = cluster.reader.take_hints()
    assert (hint.volume, hint.fragment) == (volume, 0)
    ctx = cluster.yard.context()
    await ctx.ledger.note_intent(Intent(hint.volume, hint.fragment))  # As a worker does.
    report = await Repair(ctx).run()
    assert (report.found, report.repaired, report.waiting) == (1, 1, 0)
    record = await ctx.ledger.get(volume, fresh=True)
    assert record.disks == cluster.record.disks
    assert path.read_bytes()[: record.length] == whole[: record.length]
    assert await ctx.ledger.intents() == []
