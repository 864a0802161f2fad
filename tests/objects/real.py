"""The objects layer over everything real: LMDB with committer and journal, blobs, directories as disks."""

import asyncio
import dataclasses
from pathlib import Path

from objstore.blobs.reader import BlobReader, ReaderLimits
from objstore.blobs.volumes import VolumeState
from objstore.blobs.writer import DEFAULT_LIMITS, BlobWriter
from objstore.clock import Clock, SystemClock
from objstore.codec.backend import choose
from objstore.ids import random_id
from objstore.meta.client import MetaClient
from objstore.meta.committer import run_committer
from objstore.node.fragments import Seal
from objstore.node.identity import make_identity
from objstore.node.local import LocalDisk, format_disk, open_disk
from objstore.objects.ledger import MetaLedger
from objstore.objects.store import Store
from objstore.upkeep.compaction import compact
from objstore.upkeep.context import Context, Pace

CLUSTER = b"objects over all"
SECRET = 0x0B7EC75
DISKS = 6
WAIT_S = 30.0
BACKEND = choose()


class RealStore:
    """`start`, `restart` as often as you like, `stop`. The committer is a task of the same loop."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock | None = None,
        small_size_max: int = 128 * 1024,
        carried_size_max: int = 0,
    ) -> None:
        self.root = root
        self.clock = clock or SystemClock()
        self.small_size_max = small_size_max
        self.carried_size_max = carried_size_max
        self.store: Store
        self._abandoned: list[BlobWriter] = []
        self._stores: list[Store] = []  # Of processes that are gone or about to be: they may still pack.
        self._stop = asyncio.Event()

    async def start(self) -> Store:
        for number in range(1, DISKS + 1):
            if not (self.root / f"disk{number}").exists():
                identity = make_identity(
                    cluster=CLUSTER, uuid=bytes([number]) * 16, number=number, checksum_secret=SECRET
                )
                format_disk(str(self.root / f"disk{number}"), identity)
        self.disks: dict[int, LocalDisk] = {}
        for number in range(1, DISKS + 1):
            self.disks[number] = open_disk(str(self.root / f"disk{number}"))
        ready, self._stop = asyncio.Event(), asyncio.Event()
        self._committer = asyncio.get_running_loop().create_task(
            run_committer(
                socket_path=self.root / "s",
                disks=list(self.disks.values()),
                copies=3,
                cluster=CLUSTER,
                state_directories=[self.root / f"disk{number}" / "meta" for number in self.disks],
                ready=ready.set,
                stop=self._stop,
            )
        )
        waiting = asyncio.get_running_loop().create_task(ready.wait())
        await asyncio.wait({self._committer, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
        if self._committer.done():
            self._committer.result()
        self.kv = MetaClient(self.root / "s")
        await self.kv.start(WAIT_S)
        self.ledger = MetaLedger(self.kv)
        for number, disk in self.disks.items():
            await self.ledger.register_disk(number, uuid=disk.uuid, path=disk.path)
        self.writer, self.reader = self._new_writer(), self._new_reader()
        self.store = Store(
            kv=self.kv,
            writer=self.writer,
            reader=self.reader,
            ledger=self.ledger,
            clock=self.clock,
            small_size_max=self.small_size_max,
            carried_size_max=self.carried_size_max,
        )
        return self.store

    def _new_writer(self) -> BlobWriter:
        return BlobWriter(
            disks=self.disks,
            ledger=self.ledger,
            k=4,
            m=2,
            writer=random_id(),
            cluster=CLUSTER,
            secret=SECRET,
            codec=BACKEND.codec,
            limits=DEFAULT_LIMITS._replace(disk_free_min=0),
        )

    def _new_reader(self) -> BlobReader:
        return BlobReader(
            disks=self.disks,
            ledger=self.ledger,
            cluster=CLUSTER,
            secret=SECRET,
            codec=BACKEND.codec,
            limits=ReaderLimits(),
        )

    async def stop(self) -> None:
        for store in [self.store, *self._stores]:
            await store.carrier.close(store)
        self._stores = []
        for writer in [self.writer, *self._abandoned]:
            await writer.close()
        self._abandoned = []
        self.reader.close()
        await self.kv.close()
        self._stop.set()
        await asyncio.wait_for(self._committer, WAIT_S)
        for disk in self.disks.values():
            disk.close()

    async def restart(self) -> Store:
        await self.stop()
        return await self.start()

    async def replace_writer(self) -> Store:
        """As if another process took over: the old volumes stay open, and nobody writes to them any more."""
        self._abandoned.append(self.writer)
        self.writer = self._new_writer()
        self._stores.append(self.store)
        self.store = dataclasses.replace(self.store, writer=self.writer)
        return self.store

    async def compact_all(self) -> Store:
        """Seal every volume and move whatever lives, by home records alone. Returns the store to use now."""
        await self.writer.close()
        for writer in self._abandoned:
            await writer.close()
        self._abandoned = []
        self.writer = self._new_writer()
        own = self._new_writer()
        context = Context(
            kv=self.kv,
            ledger=self.ledger,
            disks=self.disks,
            writer=own,
            reader=self.reader,
            seal=Seal(CLUSTER, SECRET),
            codec=BACKEND.codec,
            k=4,
            m=2,
            pace=Pace(1e12, self.clock),
            clock=self.clock,
        )
        for record in await self.ledger.volumes():
            if record.state == VolumeState.SEALED:
                outcome = await compact(context, record.id)
                assert outcome.retired, outcome
                assert not outcome.stuck, outcome
        await own.close()
        self._stores.append(self.store)
        self.store = dataclasses.replace(self.store, writer=self.writer)
        return self.store
