"""A disk that is a directory: the log half of `node.disk.Disk`, with moods.

Real files and real fdatasync, for tests of the committer as a process. A mood is set by a file
named `mood` in the directory, so that another process can change it: `failing` (writes raise),
`slow` (a write takes 30 s), `read-only`, `missing`.
"""

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from objstore.errors import DiskFailed
from objstore.node.disk import Buffer, Disk, DiskState, LogFile
from objstore.node.local import open_disk


class DirectoryDisk:
    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.uuid = number.to_bytes(16, "big")
        self.path = str(path)
        self._path = path
        self._suspect = ""
        (path / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def _mood(self) -> str:
        try:
            return (self._path / "mood").read_text().strip()
        except OSError:
            return ""

    @property
    def state(self) -> DiskState:
        if self._mood == "missing" or not self._path.is_dir():
            return DiskState.MISSING
        if self._suspect:
            return DiskState.SUSPECT
        return DiskState.HEALTHY

    @property
    def reason(self) -> str:
        return self._suspect

    async def look_again(self) -> bool:
        return self.state is not DiskState.MISSING

    def _log(self, name: str) -> Path:
        assert "/" not in name
        return self._path / "logs" / name

    async def _write(self, step: "partial[None]") -> None:
        if self._suspect:
            raise DiskFailed(self._suspect)
        mood = self._mood
        if mood == "slow":
            await asyncio.sleep(30)
        if mood in ("failing", "read-only", "missing"):
            self._suspect = f"disk {self.number} is {mood}"
            raise DiskFailed(self._suspect)
        try:
            await asyncio.to_thread(step)
        except OSError as failure:
            self._suspect = repr(failure)
            raise DiskFailed(self._suspect) from failure

    async def log_create(self, name: str, content: Buffer = b"") -> None:
        await self._write(partial(self._create, name, bytes(content)))

    def _create(self, name: str, content: bytes) -> None:
        temporary = self._path / f"tmp-{name}"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self._log(name))
        self._sync_directory(self._path / "logs")

    def _sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    async def log_append(self, name: str, offset: int, content: Buffer) -> None:
        await self._write(partial(self._append, name, offset, bytes(content)))

    def _append(self, name: str, offset: int, content: bytes) -> None:
        descriptor = os.open(self._log(name), os.O_WRONLY)
        try:
            assert os.fstat(descriptor).st_size == offset
            os.pwrite(descriptor, content, offset)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    async def log_read(self, name: str, offset: int, size: int) -> bytes:
        with open(self._log(name), "rb") as file:
            return os.pread(file.fileno(), size, offset)

    async def log_remove(self, name: str) -> None:
        await self._write(partial(os.unlink, self._log(name)))

    async def logs(self) -> list[LogFile]:
        return [LogFile(path.name, path.stat().st_size) for path in (self._path / "logs").iterdir()]

    async def note_epoch(self, epoch: int) -> None:
        await self._write(partial(self._note, epoch))

    def _note(self, epoch: int) -> None:
        temporary = self._path / "epoch.tmp"
        with open(temporary, "w") as file:
            file.write(str(epoch))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self._path / "epoch")
        self._sync_directory(self._path)

    async def noted_epoch(self) -> int:
        try:
            return int((self._path / "epoch").read_text())
        except FileNotFoundError:
            return 0

    async def fence(self, epoch: int) -> None:
        assert epoch >= 0

    async def verify(self) -> None:
        if self._mood in ("failing", "read-only", "missing"):
            raise DiskFailed(self._mood)
        self._suspect = ""

    def close(self) -> None:
        pass


def open_disks(root: Path, count: int = 6) -> list[DirectoryDisk]:
    """Picklable with functools.partial, for the fold's process."""
    return [DirectoryDisk(number, root / f"disk{number}") for number in range(1, count + 1)]


def disks_of(root: Path) -> Sequence[Disk]:
    """The product's disks where they were formatted, else those above. Picklable, too."""
    if (root / "disk1" / "objstore.id").exists():
        return [open_disk(str(root / f"disk{number}")) for number in range(1, 7)]
    return open_disks(root)  # type: ignore[return-value]
