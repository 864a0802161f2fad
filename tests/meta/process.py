"""A real committer process over directory disks, for tests: start, kill, stop."""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

from objstore.meta import beacon
from objstore.meta.beacon import Beacon
from objstore.meta.client import MetaClient
from objstore.meta.committer import CommitterOptions, run_committer
from objstore.meta.fold import finder_process, folder_process
from objstore.node.identity import make_identity
from objstore.node.local import format_disk
from tests.meta.directory_disk import DirectoryDisk, disks_of, open_disks

CLUSTER = b"process cluster!"
COPIES = 3


def state_directories(root: Path) -> list[Path]:
    return [root / f"disk{number}" / "meta" for number in range(1, 7)]


def open_beacon(root: Path) -> Beacon:
    with (root / "beacon").open("r+b") as file:
        return Beacon(file.fileno())


class CommitterProcess:
    """`async with CommitterProcess(root) as committer`: ready when entered, killed when left."""

    def __init__(self, root: Path, *, local: bool = False, **options: float) -> None:
        """`local`: over the product's disks; otherwise over directory disks, which have moods."""
        self.root = root
        if local:
            for number in range(1, 7):
                identity = make_identity(
                    cluster=CLUSTER, uuid=bytes([number]) * 16, number=number, checksum_secret=7
                )
                format_disk(str(root / f"disk{number}"), identity)
        self.socket = root / "committer.sock"
        (root / "beacon").write_bytes(bytes(beacon.SIZE))
        self.beacon = open_beacon(root)
        self.process: asyncio.subprocess.Process | None = None
        self._options = options

    async def __aenter__(self) -> "CommitterProcess":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self, *, timeout_s: float = 60.0) -> None:
        arguments = [f"{name}={value}" for name, value in self._options.items()]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.meta.process",
            str(self.root),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            line = await self.process.stdout.readline()
        assert line == b"ready\n", line

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(60):
            return await self.process.wait()

    async def ended(self, timeout_s: float = 60.0) -> int:
        assert self.process is not None
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    async def client(self, *, follows: bool = False, **options: float) -> MetaClient:
        """`follows`: it sees the beacon, as the processes of a store do."""
        client = MetaClient(
            self.socket,
            beacon=self.beacon if follows else None,
            **options,  # type: ignore[arg-type]
        )
        await client.start(60.0)
        return client

    def mood(self, number: int, mood: str) -> None:
        (self.root / f"disk{number}" / "mood").write_text(mood)

    def disks(self) -> list[DirectoryDisk]:
        return open_disks(self.root)


async def main(root: Path, options: dict[str, float]) -> None:
    import uvloop

    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_committer(
        socket_path=root / "committer.sock",
        disks=disks_of(root),
        copies=COPIES,
        cluster=CLUSTER,
        state_directories=state_directories(root),
        ready=lambda: print("ready", flush=True),
        stop=stop,
        folder=folder_process(partial(disks_of, root)),
        finder=finder_process(partial(disks_of, root)),
        options=CommitterOptions(**options),  # type: ignore[arg-type]
        beacon=open_beacon(root),
    )


if __name__ == "__main__":
    import uvloop

    given = dict(argument.split("=") for argument in sys.argv[2:])
    uvloop.run(main(Path(sys.argv[1]), {name: float(value) for name, value in given.items()}))
