"""A storage node is killed with kill -9 while gateways write to it: what was acknowledged is there, once."""

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

from objstore.errors import Unavailable
from objstore.node.local import DiskOptions, open_disk
from objstore.node.pool import Address
from objstore.node.remote import RemoteDisk, RemoteNode
from objstore.processes.dev import free_ports
from tests.node.rig import CLUSTER, OPTIONS, disks_of, formatted
from tests.waiting import until

KILLS = 2
WRITERS = 6
ROOT = Path(__file__).resolve().parents[2]


class Process:
    def __init__(self, port: int, paths: list[Path]) -> None:
        self._arguments = [sys.executable, "-m", "tests.node.node_process", str(port), *map(str, paths)]
        self._running: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._running = subprocess.Popen(self._arguments, stdout=subprocess.PIPE, cwd=ROOT)
        assert self._running.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self._running.stdout.readline), 60)
        assert line == b"ready\n"

    def kill(self) -> None:
        if self._running is not None:
            self._running.send_signal(signal.SIGKILL)
            self._running.wait(timeout=30)
            assert self._running.stdout is not None
            self._running.stdout.close()
            self._running = None


class Writer:
    """Appends to one volume after another on both disks, as the blob writer does: a failure ends a volume."""

    def __init__(self, chance: random.Random, first_volume: int) -> None:
        self._chance = chance
        self._volume = first_volume
        self.acknowledged: list[tuple[int, int, int, bytes]] = []  # Disk, volume, offset, bytes.
        self.failures = 0
        self.stopped = False

    async def run(self, disks: list[RemoteDisk]) -> None:
        while not self.stopped:
            self._volume += WRITERS
            try:
                await asyncio.gather(*(disk.create(self._volume, 0) for disk in disks))
                await self._fill(disks)
            except Unavailable:
                self.failures += 1
                await asyncio.sleep(0.01)

    async def _fill(self, disks: list[RemoteDisk]) -> None:
        offset = 0
        unsynced: list[tuple[int, int, int, bytes]] = []
        bulk = self._chance.random() < 0.4
        while not self.stopped and offset < 4 << 20:
            body = self._chance.randbytes(self._chance.choice((100, 5_000, 200_000)))
            ended = await asyncio.gather(
                *(disk.append(self._volume, 0, offset, [body], sync=not bulk) for disk in disks),
                return_exceptions=True,
            )
            for disk, outcome in zip(disks, ended, strict=True):
                if outcome is None:
                    place = (disk.number, self._volume, offset, body)
                    (unsynced if bulk else self.acknowledged).append(place)
                elif not isinstance(outcome, Unavailable):
                    raise outcome
            if any(ended):
                raise Unavailable("a disk failed: the volume ends here")
            offset += len(body)
            if len(unsynced) > 10:
                await asyncio.gather(*(disk.sync(self._volume, 0) for disk in disks))
                self.acknowledged += unsynced
                unsynced.clear()


async def test_a_node_killed_again_and_again_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    paths = [formatted(tmp_path / str(number), number) for number in (1, 2)]
    (port,) = free_ports(1)
    process = Process(port, paths)
    await process.start()
    seen = RemoteNode(Address("127.0.0.1", port), number=1, cluster=CLUSTER, epoch=lambda: 0, options=OPTIONS)
    disks = disks_of(seen, 1, 2)
    await seen.start()
    writers = [Writer(random.Random(chance.random()), number) for number in range(WRITERS)]
    tasks = [asyncio.create_task(writer.run(disks)) for writer in writers]
    try:
        for _ in range(KILLS):
            written = sum(len(writer.acknowledged) for writer in writers)
            wanted = written + chance.randrange(5, 30)
            await until(lambda wanted=wanted: sum(len(one.acknowledged) for one in writers) >= wanted)  # type: ignore[misc]
            process.kill()
            await process.start()
            await until(lambda: not seen.away)
        for writer in writers:
            writer.stopped = True
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
    finally:
        for task in tasks:
            task.cancel()
        seen.close()
        process.kill()
    assert sum(writer.failures for writer in writers) >= 1, "no kill was felt: the test proves nothing"
    for path in paths:
        disk = open_disk(str(path), options=DiskOptions(low_water=0))
        for writer in writers:
            for number, volume, offset, body in writer.acknowledged:
                if number == disk.number:
                    buffer = bytearray(len(body))
                    assert await disk.read(volume, 0, offset, [memoryview(buffer)]) == len(body)
                    assert buffer == body, f"{volume}.0 at {offset} on disk {number}"
        disk.close()
