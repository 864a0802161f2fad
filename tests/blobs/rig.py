"""A store of blobs in memory: disks with moods, the reference engine, a writer and a reader."""

import random
from collections.abc import Callable

from objstore.blobs.reader import BlobReader, ReaderLimits
from objstore.blobs.volumes import FindDisks, Stored, no_others
from objstore.blobs.writer import DEFAULT_LIMITS, BlobWriter, WriterLimits
from objstore.clock import Clock
from objstore.codec.backend import choose
from objstore.extents import Extent
from objstore.meta.kv import DictKv, Transaction
from objstore.node.slowness import Slowness, SlownessRules
from objstore.objects.ledger import MetaLedger, publish
from tests.sim.memory_disk import MOODS, MemoryDisk, memory_disks

CLUSTER = b"cluster-of-tests"
SECRET = 0x5EC4E7
BACKEND = choose()

FAST: WriterLimits = DEFAULT_LIMITS._replace(linger_s=1.0, disk_free_min=0, tick_s=0.001)
# Whoever counts reads wants no hedge beside them because the machine was busy.
PATIENT = SlownessRules(patience_min_s=30.0, patience_unknown_s=30.0)


class StepClock:
    """Goes forward by itself a little at each look, and by `advance`."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def now_us(self) -> int:
        self.now += 1e-6
        return int(self.now * 1e6)

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Rig:
    """Everything that a test of blobs touches. `moods` as in tests/sim/memory_disk.py."""

    def __init__(
        self,
        moods: str = "++++++",
        *,
        k: int = 4,
        m: int = 2,
        limits: WriterLimits = FAST,
        seed: int = 1,
        reader_limits: ReaderLimits | None = None,
        crash_point: Callable[[str], None] = lambda name: None,
        yields: bool = True,
        find_disks: FindDisks = no_others,
    ) -> None:
        self.k, self.m = k, m
        self.limits = limits
        self.clock = StepClock()
        self.rng = random.Random(seed)
        self.disks: dict[int, MemoryDisk] = {disk.number: disk for disk in memory_disks(moods)}
        for disk in self.disks.values():
            disk.yields = yields
        self.kv = DictKv()
        self.ledger = MetaLedger(self.kv, clock=self.clock)
        self.crash_point = crash_point
        self.find_disks = find_disks
        self.writer = self.new_writer()
        self.reader = self.new_reader(reader_limits)

    async def start(self) -> "Rig":
        for disk in self.disks.values():
            await self.ledger.register_disk(disk.number, uuid=disk.uuid, path=disk.path)
        return self

    def new_writer(
        self, *, limits: WriterLimits | None = None, slowness: Slowness | None = None
    ) -> BlobWriter:
        return BlobWriter(
            disks=self.disks,
            ledger=self.ledger,
            k=self.k,
            m=self.m,
            writer=self.rng.randbytes(16),
            cluster=CLUSTER,
            secret=SECRET,
            codec=BACKEND.codec,
            clock=self.clock,
            limits=limits or self.limits,
            find_disks=self.find_disks,
            slowness=slowness,
            chance=self.rng.random,
            crash_point=self.crash_point,
        )

    def new_reader(
        self, limits: ReaderLimits | None = None, slowness: Slowness | None = None, clock: Clock | None = None
    ) -> BlobReader:
        return BlobReader(
            disks=self.disks,
            ledger=self.ledger,
            cluster=CLUSTER,
            secret=SECRET,
            codec=BACKEND.codec,
            find_disks=self.find_disks,
            slowness=slowness or Slowness(clock=self.clock, rules=PATIENT),
            clock=clock or self.clock,
            limits=limits or ReaderLimits(),
        )

    def moods(self, moods: str) -> None:
        for mood, disk in zip(moods, self.disks.values(), strict=True):
            disk.mood = MOODS[mood]

    def wake(self) -> None:
        """All disks well and trusted again."""
        for disk in self.disks.values():
            disk.mood, disk.suspicion = "well", ""

    async def commit(self, stored: Stored, home: bytes, value: bytes) -> None:
        """What the verbs do with a Stored."""
        expect, put, add = publish(stored)
        await self.kv.commit(Transaction(expect=expect, put={**put, home: value}, add=add))

    async def put(self, body: bytes, home: bytes = b"o-home", about: bytes = b"about") -> list[Extent]:
        stored = await self.writer.put(body, home, about)
        await self.commit(stored, home, b"record")
        return stored.extents

    async def put_stream(self, body: bytes, home: bytes = b"o-home", chunk: int = 100_000) -> Stored:
        stream = self.writer.stream(home)
        try:
            for at in range(0, len(body), chunk):
                await stream.write(body[at : at + chunk])
            return await stream.finish(b"about")
        finally:
            stream.abort()

    async def read_all(self, extents: list[Extent], begin: int = 0, length: int | None = None) -> bytes:
        total = sum(extent.length for extent in extents)
        wanted = total - begin if length is None else length
        return b"".join([b"".join(views) async for views in self.reader.stream(extents, begin, wanted)])
