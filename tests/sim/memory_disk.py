"""A disk in memory that keeps the Disk contract and has moods.

For tests of what stands on disks (blobs, objects, metadata): no files, no threads, no waiting. It keeps
for every file which bytes were synced, so that `lose_power` can take the others away.

Moods (set `disk.mood` at any time; a tiny language for `disks("+x~")`):

    +  well
    x  dead       every call raises DiskFailed
    ?  missing    every call raises DiskMissing
    ~  slow       writes and syncs never end: they count as overdue at once, the disk is suspect; reads go on
    !  sync-error appends land, then their sync fails with EIO: suspect, and a power cut takes the bytes
    #  full       no space for fragment data: DiskFull; reads, deletes and logs go on
    r  read-only  every write raises DiskFailed; reads go on
    /  torn       the next append keeps only half of its bytes and fails: suspect, the mood is well again
    @  away       presumed away: every call raises NodeAway until `look_again` finds the disk `returned`

`calls` counts every call by name. `before` may be set to a function (name, volume, index) that runs first
and may raise: for a failure at exactly one call.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from objstore.errors import Denied, DiskFailed, DiskFull, DiskMissing, NodeAway
from objstore.node.disk import Buffer, DiskState, FragmentFile, LogFile, Usage

MOODS = {
    "+": "well",
    "x": "dead",
    "?": "missing",
    "~": "slow",
    "!": "sync-error",
    "#": "full",
    "r": "read-only",
    "/": "torn",
    "@": "away",
}


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)
    synced: int = 0  # Bytes from the start that survive a power cut.
    retired_us: int = 0


class MemoryDisk:
    """Implements objstore.node.disk.Disk. Not for several threads."""

    def __init__(
        self,
        number: int = 1,
        *,
        mood: str = "well",
        total: int = 1 << 40,
        device: int | None = None,
        yields: bool = True,
    ) -> None:
        assert mood in MOODS.values()
        self.number = number
        self.uuid = number.to_bytes(16, "big")
        self.path = f"memory:{number}"
        self.mood = mood
        self.total = total  # Bytes; an append beyond raises DiskFull.
        self.device = number if device is None else device
        self.yields = yields  # Give the loop a turn in every call, as a real disk would.
        self.calls: Counter[str] = Counter()
        self.before: Callable[[str, int, int], None] | None = None
        self.held: asyncio.Event | None = None  # Reads wait for it, however long.
        self.returned = True  # What `look_again` finds of one that is presumed away.
        self.fragments: dict[tuple[int, int], _File] = {}
        self.log_files: dict[str, _File] = {}
        self.replacing: dict[str, _File] = {}  # Temporary files; lost with the process.
        self.epoch = 0
        self.suspicion = ""

    # What a test does to the disk.

    def flip(self, volume: int, index: int, position: int, mask: int = 1) -> None:
        """Rot: change bits of one byte of a fragment file."""
        assert 0 < mask < 256
        self.fragments[volume, index].content[position] ^= mask

    def lose(self, volume: int, index: int) -> None:
        """The fragment file is gone."""
        del self.fragments[volume, index]

    def lose_power(self, rng: random.Random | None = None) -> None:
        """Keep what was synced; of the rest nothing, or with `rng` a random part, cut at 512 bytes."""
        for file in [*self.fragments.values(), *self.log_files.values()]:
            keep = file.synced
            if rng is not None and keep < len(file.content):
                keep = min(len(file.content), (rng.randint(keep, len(file.content)) // 512) * 512)
                keep = max(keep, file.synced)
            del file.content[keep:]

    # Disk.

    @property
    def state(self) -> DiskState:
        if self.mood == "missing":
            return DiskState.MISSING
        if self.mood == "dead":
            return DiskState.FAILED
        if self.suspicion or self.mood == "away":
            return DiskState.SUSPECT
        if self.mood == "read-only":
            return DiskState.READ_ONLY
        if self.mood == "full":
            return DiskState.FULL
        return DiskState.HEALTHY

    @property
    def reason(self) -> str:
        state = self.state
        if state is DiskState.HEALTHY:
            return ""
        return self.suspicion if state is DiskState.SUSPECT else f"mood: {self.mood}"

    async def look_again(self) -> bool:
        self.calls["look_again"] += 1
        if self.yields:
            await asyncio.sleep(0)
        if self.mood == "away" and self.returned:
            self.mood = "well"
        return self.mood not in ("dead", "missing", "away")

    async def create(self, volume: int, index: int) -> None:
        await self._enter("create", volume, index, writes=True, grows=True)
        if (volume, index) in self.fragments:
            raise FileExistsError(f"{volume}.{index}")
        self.fragments[volume, index] = _File()

    async def append(
        self, volume: int, index: int, offset: int, buffers: Sequence[Buffer], *, sync: bool
    ) -> None:
        await self._enter("append", volume, index, writes=True, grows=True)
        file = self._fragment(volume, index)
        self._append(file, offset, buffers, sync=sync)

    async def sync(self, volume: int, index: int) -> None:
        await self._enter("sync", volume, index, writes=True)
        file = self._fragment(volume, index)
        if self.mood == "sync-error":
            self._suspect("sync failed: EIO")
        file.synced = len(file.content)

    def read_now(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int | None:
        """A disk that `yields` has no page cache; of another everything is in it."""
        if self.yields or self.before is not None or self.held is not None:
            return None
        if self.mood in ("dead", "missing") or (volume, index) not in self.fragments:
            return None
        self.calls["read"] += 1
        return self._fill(volume, index, position, buffers)

    async def read(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        await self._enter("read", volume, index)
        if self.held is not None:
            await self.held.wait()
        return self._fill(volume, index, position, buffers)

    def _fill(self, volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        content = self._fragment(volume, index).content
        at = position
        for buffer in buffers:
            piece = content[at : at + buffer.nbytes]
            buffer[: len(piece)] = piece
            at += len(piece)
            if len(piece) < buffer.nbytes:
                break
        return at - position

    async def seal(self, volume: int, index: int, length: int) -> None:
        await self._enter("seal", volume, index, writes=True)
        file = self._fragment(volume, index)
        del file.content[length:]  # A shorter file stays short: zeros are not data.
        file.synced = len(file.content)

    async def replace_begin(self, volume: int, index: int) -> str:
        await self._enter("replace_begin", volume, index, writes=True, grows=True)
        name = f"{volume}.{index}.{self.calls['replace_begin']}"
        self.replacing[name] = _File()
        return name

    async def replace_append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        await self._enter("replace_append", writes=True, grows=True)
        self._append(self.replacing[name], offset, buffers, sync=False)

    async def replace_publish(self, name: str, length: int) -> None:
        volume, index = map(int, name.split(".")[:2])
        await self._enter("replace", volume, index, writes=True, grows=True)
        file = self.replacing[name]
        assert len(file.content) == length
        if self.mood == "sync-error":
            self._suspect("sync failed: EIO")
        file.synced = length
        self.fragments[volume, index] = self.replacing.pop(name)

    async def replace_abandon(self, name: str) -> None:
        self.calls["replace_abandon"] += 1
        self.replacing.pop(name, None)

    async def retire(self, volume: int, index: int, now_us: int) -> None:
        await self._enter("retire", volume, index, writes=True)
        file = self._fragment(volume, index)
        file.retired_us = file.retired_us or now_us

    async def purge(self, volume: int, index: int, *, retired_before_us: int) -> None:
        await self._enter("purge", volume, index, writes=True)
        file = self._fragment(volume, index)
        if not file.retired_us or file.retired_us >= retired_before_us:
            raise Denied(f"{volume}.{index} on disk {self.number} may not be purged")
        del self.fragments[volume, index]

    async def fragment_files(self) -> list[FragmentFile]:
        await self._enter("fragment_files")
        return [
            FragmentFile(volume, index, len(file.content), file.retired_us)
            for (volume, index), file in sorted(self.fragments.items())
        ]

    async def log_create(self, name: str, content: Buffer = b"") -> None:
        await self._enter("log_create", writes=True)
        if name in self.log_files:
            raise FileExistsError(name)
        if self.mood == "sync-error":
            self._suspect("sync failed: EIO")
        self.log_files[name] = _File(bytearray(content), len(content))

    async def log_append(self, name: str, offset: int, content: Buffer) -> None:
        await self._enter("log_append", writes=True)
        self._append(self._log(name), offset, [content], sync=True)

    async def log_read(self, name: str, offset: int, size: int) -> bytes:
        await self._enter("log_read")
        return bytes(self._log(name).content[offset : offset + size])

    async def log_remove(self, name: str) -> None:
        await self._enter("log_remove", writes=True)
        self._log(name)
        del self.log_files[name]

    async def logs(self) -> list[LogFile]:
        await self._enter("logs")
        return [LogFile(name, len(file.content)) for name, file in sorted(self.log_files.items())]

    async def note_epoch(self, epoch: int) -> None:
        await self._enter("note_epoch", writes=True)
        self.epoch = epoch

    async def noted_epoch(self) -> int:
        await self._enter("noted_epoch")
        return self.epoch

    async def fence(self, epoch: int) -> None:
        await self._enter("fence", writes=True)

    async def usage(self) -> Usage:
        await self._enter("usage")
        return Usage(self.total, max(0, self.total - self._used()), self.device)

    async def verify(self) -> None:
        self.calls["verify"] += 1
        suspicion, self.suspicion = self.suspicion, ""
        try:
            await self._enter("verify", writes=True)
            if self.mood == "sync-error":
                self._suspect("sync failed: EIO")
        except BaseException:
            self.suspicion = self.suspicion or suspicion
            raise

    def close(self) -> None:
        pass

    # Inside.

    async def _enter(
        self, call: str, volume: int = 0, index: int = 0, *, writes: bool = False, grows: bool = False
    ) -> None:
        self.calls[call] += 1
        if self.yields:
            await asyncio.sleep(0)
        if self.before is not None:
            self.before(call, volume, index)
        if self.mood == "dead":
            raise DiskFailed(f"disk {self.number} is dead")
        if self.mood == "away":
            raise NodeAway(f"disk {self.number} is presumed away")
        if self.mood == "missing":
            raise DiskMissing(f"disk {self.number} is missing")
        if not writes:
            return
        if self.suspicion:
            raise DiskFailed(f"disk {self.number} is suspect: {self.suspicion}")
        if self.mood == "read-only":
            raise DiskFailed(f"disk {self.number} is read-only")
        if self.mood == "slow":
            self._suspect(f"{call} is overdue")
        if grows and self.mood == "full":
            raise DiskFull(f"disk {self.number} is full")

    def _append(self, file: _File, offset: int, buffers: Sequence[Buffer], *, sync: bool) -> None:
        assert offset == len(file.content), f"append at {offset}, the file ends at {len(file.content)}"
        data = b"".join(buffers)
        self._make_room(len(data))
        if self.mood == "torn":
            self.mood = "well"
            file.content += data[: len(data) // 2]
            self._suspect("write failed half way: EIO")
        file.content += data
        if sync:
            if self.mood == "sync-error":
                self._suspect("sync failed: EIO")
            file.synced = len(file.content)

    def _make_room(self, size: int) -> None:
        if self._used() + size > self.total:
            raise DiskFull(f"disk {self.number} is full")

    def _used(self) -> int:
        files = [*self.fragments.values(), *self.log_files.values()]
        return sum(len(file.content) for file in files)

    def _suspect(self, reason: str) -> None:
        self.suspicion = reason
        raise DiskFailed(f"disk {self.number} is suspect: {reason}")

    def _fragment(self, volume: int, index: int) -> _File:
        try:
            return self.fragments[volume, index]
        except KeyError:
            raise FileNotFoundError(f"{volume}.{index} on disk {self.number}") from None

    def _log(self, name: str) -> _File:
        try:
            return self.log_files[name]
        except KeyError:
            raise FileNotFoundError(f"log {name} on disk {self.number}") from None


def memory_disks(moods: str) -> list[MemoryDisk]:
    """`memory_disks("++x~")`: disks 1 to 4, the third dead, the fourth slow."""
    return [MemoryDisk(number, mood=MOODS[mood]) for number, mood in enumerate(moods, 1)]
