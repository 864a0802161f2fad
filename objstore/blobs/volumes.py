"""Volumes: append-only erasure-coded logs, and the ledger that knows them all.

The blob layer does not know the metadata engine. It asks a `Ledger` (objects/ledger.py implements
it over metadata; tests over a dict) for volume records, and hands back what a commit must expect.
"""

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

import msgspec

from objstore.blobs.topology import Layout
from objstore.extents import Extent

NOBODY: Final = bytes(16)  # The writer of a volume that is being sealed for a dead one.

FindDisks = Callable[[], Awaitable[None]]
"""Puts the disks that metadata names, and this process has not heard of yet, where writer and reader look."""


async def no_others() -> None:
    """The disks are those that were given at the start."""


class VolumeState(IntEnum):
    OPEN = 0
    SEALED = 1
    RETIRED = 2  # Trash: still readable, purged after the grace period.


class Lane(IntEnum):
    SMALL = 0
    BULK = 1


class VolumeRecord(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What rarely changes. Length and live bytes are keys of their own, so that a delete in another
    process does not disturb the writer's expectation that this record is unchanged.

    Invariants: ids count up and are never reused; one writer for life, then nobody; k, m and the order of
    `disks` never change, a single disk number may (repair moves a fragment file).
    """

    format: int = 1
    id: int
    k: int
    m: int
    disks: list[int]  # Disk numbers, k+m of them; fragment file i lies on disks[i].
    state: int  # VolumeState.
    lane: int  # Lane.
    writer: bytes  # 16 bytes: one incarnation of one process, or NOBODY.
    policy: str = ""  # Placement policy (storage class and so on).
    created_us: int = 0
    length: int = 0  # Bytes of each fragment file; known when sealed.
    retired_us: int = 0

    @property
    def fragment_count(self) -> int:
        return self.k + self.m


class Intent(NamedTuple):
    """A stripe was acknowledged without this fragment: to be recorded in the same commit."""

    volume: int
    index: int  # type: ignore[assignment]  # Shadows tuple.index, which nobody calls.


class Stored(NamedTuple):
    """Where a blob's bytes are, all durable on the write quorum.

    The commit that publishes the extents must expect, for every volume in `fences`, exactly this
    record: then a writer that slept publishes nothing into a sealed volume. It adds each extent's
    length to the volume's live bytes, and records the intents.
    """

    extents: list[Extent]
    fences: dict[int, bytes]  # Volume id -> encoded VolumeRecord.
    intents: list[Intent]


class Ledger(Protocol):
    async def create(
        self, *, k: int, m: int, disks: list[int], lane: Lane, writer: bytes, policy: str
    ) -> tuple[VolumeRecord, bytes]:
        """A new volume record under the next id, committed before any of its files is made.

        Returns the record and its encoded form (the fence).
        """
        ...

    async def get(self, volume: int, *, fresh: bool = False) -> VolumeRecord:
        """The record; a cached one may be old but never wrong. `fresh` rereads it.

        Raises: Corrupt if metadata knows no such volume (an extent points nowhere).
        """
        ...

    async def extend(self, volume: int, fence: bytes, length: int) -> None:
        """Note that the volume has grown to `length` (bytes of each fragment file).

        Raises: Conflict if the volume is no longer this open record.
        """
        ...

    async def seal(self, volume: int, length: int) -> VolumeRecord:
        """Open -> sealed, at `length`. Idempotent: a sealed volume is returned as it is."""
        ...

    async def suspect(self, disk: int, reason: str, *, read_only: bool = False) -> None:
        """Record in metadata, for every process, that a disk takes no more writes until verified."""
        ...

    async def usable_disks(self) -> list[int]:
        """Numbers of the disks that may hold new fragment files, by the records in metadata."""
        ...

    async def layout(self) -> Layout:
        """Where every disk stands, which take new files, and the policies, by the records in metadata."""
        ...
