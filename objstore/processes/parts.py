"""The parts that a worker and the upkeep process are both made of: here they meet.

Everything below takes its parts as arguments; nothing below reads the configuration.
"""

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from objstore.blobs.reader import READABLE, BlobReader, ReaderLimits
from objstore.blobs.survey import survey
from objstore.blobs.topology import Layout, Topology
from objstore.blobs.volumes import FindDisks, no_others
from objstore.blobs.writer import DEFAULT_LIMITS, BlobWriter, WriterLimits
from objstore.config import Config
from objstore.iam.directory import Directory
from objstore.ids import random_id
from objstore.meta.kv import Kv
from objstore.meta.schema import DiskRecord
from objstore.metrics import Family, Labels, Registry, counter, gauge
from objstore.node.fragments import Seal
from objstore.node.slowness import Slowness
from objstore.objects.adoption import note_unmetered
from objstore.objects.ledger import MetaLedger
from objstore.objects.store import Store
from objstore.processes.control import EJECTED
from objstore.processes.engine import Term, fence, is_shared, open_kv, places_in
from objstore.processes.link import Link
from objstore.processes.spec import Opener, Place, Spec, StoreDisk, opener_of, places_of
from objstore.processes.writers import Writers
from objstore.upkeep.context import Context, Pace

if TYPE_CHECKING:
    from objstore.meta.client import MetaClient
    from objstore.meta.kv_postgres import PostgresKv

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Parts:
    """A store opened for reading and writing by one process."""

    spec: Spec
    disks: dict[int, StoreDisk]
    opener: Opener  # Of these disks, and of those that come.
    kv: "MetaClient | PostgresKv"
    store: Store
    registry: Registry
    writer_id: bytes  # 16 bytes: this incarnation, as its volumes name it.
    writers: Writers | None = None  # Where other machines write too.
    find_disks: FindDisks = no_others  # `disks` as metadata has them now. Raises: StoreError.
    followers: list[asyncio.Task[None]] = field(default_factory=list)

    async def close(self) -> None:
        """Flush, seal, hang up. The disks last."""
        await self.store.carrier.close(self.store)
        await self.store.writer.close()
        self.store.reader.close()
        for follower in self.followers:
            follower.cancel()
        if self.writers is not None:
            await self.writers.leave()
        await self.kv.close()
        for disk in self.disks.values():
            disk.close()
        self.opener.close()


def writer_limits(config: Config) -> WriterLimits:
    """A writer's bounds under this configuration."""
    # An append opens its file and writes to it, and each may take as long as the disk allows. The disk itself
    # must call this overdue, since only then is it suspect: a writer that gives up earlier tells nobody.
    deadline_s = max(DEFAULT_LIMITS.deadline_s, 2 * config.disks.progress_seconds + 5)
    return DEFAULT_LIMITS._replace(
        memory=config.blobs.write_memory_bytes,
        volume_size=config.blobs.volume_size_max,
        disk_free_min=config.disks.reserve_bytes or DEFAULT_LIMITS.disk_free_min,
        deadline_s=deadline_s,
    )


async def survey_of(parts: Parts, layout: Layout) -> Topology:
    """The topology as a writer sees it: a disk with too little room takes no new volume."""
    least = writer_limits(parts.spec.config).disk_free_min
    return await survey(layout, parts.disks, free_min=least)


async def open_parts(spec: Spec, registry: Registry) -> Parts:
    """Raises: MetaUnavailable if no committer, or no PostgreSQL, answers."""
    config = spec.config
    kv = open_kv(spec)
    await kv.start()
    ledger = MetaLedger(kv)
    followers: list[asyncio.Task[None]] = []
    if is_shared(spec):
        term = Term(spec.cluster.term)
        first = await term.begin(kv, spec.cluster.term + 1)
        opener = opener_of(spec, term.epoch)
        places = await places_in(ledger)
        if first:  # Metadata may have come here from a gateway with a journal, which must not go on.
            await fence(opener, places, term.number)
        followers.append(asyncio.get_running_loop().create_task(term.follow(kv)))
    else:
        opener = opener_of(spec)
        places = places_of(spec.cluster)
    disks = {place.number: opener.open(place) for place in places}
    await opener.look()
    one = asyncio.Lock()

    async def find_disks() -> None:
        async with one:
            await take_up(await ledger.disks(), disks, opener)

    k, m = spec.cluster.codec
    slowness = Slowness(spare=m)
    writer_id = random_id()
    writer = BlobWriter(
        disks=disks,
        ledger=ledger,
        k=k,
        m=m,
        writer=writer_id,
        cluster=spec.cluster.cluster_id,
        secret=spec.cluster.checksum_secret,
        codec=spec.backend.codec,
        limits=writer_limits(config),
        find_disks=find_disks,
        slowness=slowness,
    )
    reader = BlobReader(
        disks=disks,
        ledger=ledger,
        cluster=spec.cluster.cluster_id,
        secret=spec.cluster.checksum_secret,
        codec=spec.backend.codec,
        find_disks=find_disks,
        slowness=slowness,
        limits=ReaderLimits(memory=config.blobs.read_memory_bytes),
    )
    store = Store(
        kv=kv,
        writer=writer,
        reader=reader,
        ledger=ledger,
        region=config.server.region,
        small_size_max=config.blobs.small_size_max,
        carried_size_max=0 if is_shared(spec) else config.blobs.carried_size_max,
    )
    store.placing.layout = await ledger.layout()
    parts = Parts(
        spec=spec,
        disks=disks,
        opener=opener,
        kv=kv,
        store=store,
        registry=registry,
        writer_id=writer_id,
        find_disks=find_disks,
        followers=followers,
    )
    if is_shared(spec):
        local = living_writers(spec.run_directory)
        parts.writers = Writers(kv, writer_id, spec.run, local, store.clock)
    registry.include(lambda: part_families(parts))
    return parts


async def take_up(records: Mapping[int, DiskRecord], disks: dict[int, StoreDisk], opener: Opener) -> None:
    """Bring a process's disks to what metadata says: new ones are opened, removed ones closed.

    Not twice at once.
    """
    new: dict[int, StoreDisk] = {}
    for number, record in records.items():
        if record.state == "retired":
            if (disk := disks.pop(number, None)) is not None:
                disk.close()
                log.info("disk removed", extra={"disk": number})
        elif number not in disks and record.uuid and record.path:
            # Opening never fails: a disk that is not there (yet) looks again by itself.
            new[number] = opener.open(Place(number, record.uuid, record.path, record.node))
            log.info("disk added", extra={"disk": number, "path": record.path})
    if new:
        await opener.look()
        disks.update(new)  # Only now: until then nothing is known of their states.


def living_writers(run_directory: str) -> Callable[[bytes], bool]:
    """Who may still write, by what the supervisor knows of its children. In doubt: everyone.

    A child waits until it stands there before it makes a volume (`Link.note`), and leaves it when it has
    been reaped: so no living writer is ever called dead.
    """

    def alive(writer: bytes) -> bool:
        try:
            state = json.loads(Path(run_directory, "state.json").read_text())
            return any(child["note"] == writer.hex() for child in state["children"].values())
        except (OSError, ValueError, KeyError):
            return True

    return alive


async def introduce(parts: Parts, link: Link, *, looks: bool = False) -> None:
    """Let everybody know of this writer, before it makes its first volume or changes anything else.

    Args:
        looks: this process asks who is alive (`alive_of`).

    Raises: TimeoutError, StoreError.
    """
    await note_unmetered(parts.store)
    await link.note(parts.writer_id.hex())
    if parts.writers is not None:
        await parts.writers.announce()
        parts.followers.append(asyncio.get_running_loop().create_task(parts.writers.keep(looks=looks)))


def alive_of(parts: Parts) -> Callable[[bytes], bool]:
    """Whether a writer may still write."""
    if parts.writers is not None:
        return parts.writers.alive
    return living_writers(parts.spec.run_directory)


async def until_stopped() -> None:
    """Wait for SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()


def context_of(parts: Parts) -> Context:
    """What the background services are given."""
    spec, store = parts.spec, parts.store
    k, m = spec.cluster.codec
    return Context(
        kv=store.kv,
        ledger=store.ledger,
        disks=parts.disks,
        writer=store.writer,
        reader=store.reader,
        seal=Seal(spec.cluster.cluster_id, spec.cluster.checksum_secret),
        codec=spec.backend.codec,
        k=k,
        m=m,
        pace=Pace(spec.config.upkeep.bytes_per_second, store.clock),
        clock=store.clock,
    )


def directory_of(parts: Parts, kv: Kv | None = None) -> Directory:
    """Users and access keys, as this process sees them; through another `Kv` if one is given."""
    cluster = parts.spec.cluster
    return Directory(
        parts.kv if kv is None else kv,
        cluster.master_key,
        other_master_keys=cluster.other_master_keys,
    )


def part_families(parts: Parts) -> list[Family]:
    """What the parts of a process have counted; the same names in every process, so that they add up."""
    carrier = parts.store.carrier
    writer, reader, client = parts.store.writer.counters, parts.store.reader.counters, parts.kv.stats

    operations: list[tuple[Labels, list[float]]] = []
    seconds: list[tuple[Labels, list[float]]] = []
    transferred: list[tuple[Labels, list[float]]] = []
    errors: list[tuple[Labels, list[float]]] = []
    unreadable: list[tuple[Labels, list[float]]] = []
    for number, disk in parts.disks.items():
        failures = 0
        for operation, count in disk.counts.items():
            labels = (str(number), operation)
            operations.append((labels, [count.count]))
            seconds.append((labels, [count.seconds]))
            transferred.append((labels, [count.bytes]))
            failures += count.errors
        errors.append(((str(number),), [failures]))
        unreadable.append(((str(number),), [float(disk.state not in READABLE)]))
    per_operation = ("disk", "op")
    slowness, hedges = parts.store.reader.slowness, parts.store.reader.hedges
    ejected: list[tuple[Labels, list[float]]] = []
    for number in parts.disks:
        ejected.append(((str(number), "read"), [float(number in slowness.ejected)]))
        ejected.append(((str(number), "append"), [float(number in slowness.resting)]))
    outcomes: list[tuple[Labels, list[float]]] = [
        ((outcome,), [count])
        for outcome, count in (("won", hedges.won), ("lost", hedges.lost), ("failed", hedges.failed))
    ]
    return [
        Family("disk_operations", "counter", "Calls to a disk's threads.", per_operation, (), operations),
        Family("disk_io_duration_seconds", "counter", "Time in a disk's calls.", per_operation, (), seconds),
        Family("disk_io_bytes", "counter", "Bytes read and written.", per_operation, (), transferred),
        Family("disk_io_errors", "counter", "Calls to a disk that failed.", ("disk",), (), errors),
        Family("disk_unreadable", "gauge", "Processes that cannot read the disk.", ("disk",), (), unreadable),
        counter("carried_bodies", "Small bodies that metadata carried for a while.", carrier.carried),
        gauge("carried_bodies_waiting", "Carried bodies that wait for a stripe.", carrier.waiting),
        counter("blob_stripes", "Stripes written.", writer.stripes),
        counter("blob_bodies", "Small bodies packed into stripes.", writer.bodies),
        counter("blob_payload_bytes", "Bytes of bodies in the stripes written.", writer.payload_bytes),
        counter("blob_syncs", "Group commits to fragment files.", writer.syncs),
        counter(
            "degraded_writes", "Stripes acknowledged on fewer than all fragments.", writer.degraded_stripes
        ),
        counter("rewritten_stripes", "Stripes written again elsewhere.", writer.rewritten_stripes),
        counter("volumes_opened", "Volumes made.", writer.volumes_opened),
        counter("blob_reads", "Small extents read.", reader.reads),
        counter("blob_streams", "Large reads.", reader.streams),
        Family(EJECTED, "gauge", "Processes that find the disk slow.", per_operation, (), ejected),
        counter("disk_ejections", "Times that a process found a disk slow.", slowness.ejections),
        Family("hedged_reads", "counter", "Late reads asked of others as well.", ("outcome",), (), outcomes),
        counter("hedges_withheld", "Late reads beyond the budget.", hedges.withheld),
        counter("avoided_reads", "Ranges reconstructed, their disk being slow.", reader.avoided_reads),
        counter("degraded_reads", "Ranges that had to be reconstructed.", reader.degraded_reads),
        counter("corrupt_fragments", "Fragments that reads found wrong.", reader.corrupt_fragments),
        counter("missing_fragments", "Fragments that reads found absent or late.", reader.missing_fragments),
        counter("failed_reads", "Ranges neither verified nor reconstructed.", reader.failed_reads),
        gauge("blob_write_memory_bytes", "Stripes that uploads hold.", parts.store.writer.memory.used),
        gauge("blob_read_memory_bytes", "Bytes that downloads hold.", parts.store.reader.memory.used),
        gauge("blob_queue_bytes", "Small bodies that wait for a stripe.", writer.queue_bytes),
        counter("meta_commits", "Commits answered by the committer.", client.commits),
        counter("meta_commit_timeouts", "Commits whose outcome stayed unknown.", client.timeouts),
        counter("meta_commits_refused", "Commits refused at once, the committer away.", client.refused_away),
        counter("meta_connections", "Times a process connected to the committer.", client.connections),
    ]
