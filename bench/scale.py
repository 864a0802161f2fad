"""Metadata at scale: what a list page, a get and a put cost in a store of many objects, and in a small one.

    python -m bench.scale [--objects 10000000] [--small 100000] [--engine lmdb] [--seconds 3] [--scratch DIR]

Two stores of each engine are filled through the Kv interface with the records that puts of small objects
leave, a thousand a commit, and then measured in turn, so that a busy neighbour hits both:

    list page   objects/listing.py: a page of 1,000 keys from anywhere
    get         objects/reads.py: bucket and record, as GetObject and HeadObject read them
    put         objects/writes.py: the commit that publishes an object whose bytes are durable

What is above (HTTP, signatures) and beside (blobs) does not know how many objects there are. Objects lie in
directories of a thousand, which were filled in random order. CPU is of this process and the engine's: the
committer, or PostgreSQL's processes but its vacuum, which runs when it wants to. The engine's own defaults
hold; the journal has one copy and is not folded, since neither depends on the number of objects.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import asyncpg
import uvloop

if __package__ in (None, ""):  # Run as `bench/scale.py`.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import report
from bench.figures import Figure
from bench.shares import descendants
from bench.targets import ROOT, free_port
from objstore.blobs.volumes import Lane, Stored
from objstore.extents import Extent
from objstore.meta.client import MetaClient
from objstore.meta.committer import run_committer
from objstore.meta.kv import Add, Kv, Transaction
from objstore.meta.kv_postgres import PostgresKv
from objstore.meta.schema import (
    FORMAT,
    Checksum,
    ObjectRecord,
    bucket_bytes_key,
    bucket_objects_key,
    encode,
    object_key,
    volume_live_key,
)
from objstore.node.identity import make_identity
from objstore.node.local import format_disk, open_disk
from objstore.objects.bodies import Kept
from objstore.objects.buckets import create_bucket
from objstore.objects.commits import open_place
from objstore.objects.ledger import MetaLedger
from objstore.objects.listing import list_objects
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import Principal
from objstore.objects.writes import publish_object
from objstore.processes.dev_postgres import LocalPostgres
from objstore.s3 import checksums

ENGINES: Final = ("lmdb", "postgresql")
CLUSTER: Final = b"bench of a scale"
BUCKET: Final = "scale"
WHO: Final = Principal(tenant="bench", user="bench", access_key_id="bench")
DIRECTORY: Final = 1_000  # Objects in one, and a commit of the filling; a list page.
FILLING: Final = 4  # Commits under way while a store is filled.
SIZE: Final = 4_096  # Bytes of an object, as its record says.
VOLUME_BYTES: Final = 32 * 1024**3  # Offsets in extents stay below.
ROUNDS: Final = 5
BAR: Final = 1.5
READY_SECONDS: Final = 60.0


class Kind(NamedTuple):
    """What is measured: its name, how many run at once, one of them."""

    name: str
    width: int
    run: Callable[["Filled"], Awaitable[None]]
    at_most: int = 1_000_000  # Operations at a time.


class Cost(NamedTuple):
    seconds: float  # Of one operation, from its call to its end: the mean.
    cpu_s: float
    operations: int


@dataclass(slots=True)
class Filled:
    """A store of so many objects."""

    store: Store
    cpu_s: Callable[[], float]  # Of the engine's processes until now.
    objects: int
    volume: int = 0
    fence: bytes = b""
    added: int = 0
    chance: random.Random = field(default_factory=random.Random)

    async def fill(self, seed: int, say: Callable[[str], None]) -> None:
        """Create the bucket and its objects."""
        self.chance.seed(seed)
        store = self.store
        bucket = await create_bucket(store, WHO, BUCKET, region="us-east-1")
        record, self.fence = await store.ledger.create(
            k=4, m=2, disks=[1, 2, 3, 4, 5, 6], lane=Lane.SMALL, writer=b"w" * 16, policy="standard"
        )
        self.volume = record.id
        directories = list(range(-(-self.objects // DIRECTORY)))
        self.chance.shuffle(directories)
        left = iter(directories)
        started = told = time.monotonic()
        done = 0

        async def filler() -> None:
            nonlocal done, told
            for directory in left:
                numbers = range(directory * DIRECTORY, min((directory + 1) * DIRECTORY, self.objects))
                await store.kv.commit(
                    Transaction(
                        put={
                            object_key(bucket.id, name_of(number).encode()): encode(self.record_of(number))
                            for number in numbers
                        },
                        add={
                            bucket_objects_key(bucket.id): Add(len(numbers)),
                            bucket_bytes_key(bucket.id): Add(SIZE * len(numbers)),
                            volume_live_key(self.volume): Add(SIZE * len(numbers)),
                        },
                    )
                )
                done += len(numbers)
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    say(f"  {done:,} of {self.objects:,} objects, {done / (told - started):,.0f} a second")

        await asyncio.gather(*(filler() for _ in range(FILLING)))
        say(f"  {done:,} objects in {time.monotonic() - started:.0f} s")

    def extent_of(self, number: int) -> Extent:
        return Extent(self.volume, number * SIZE % VOLUME_BYTES, 26_624, number % 26_624, SIZE, number)

    def record_of(self, number: int) -> ObjectRecord:
        """As a put of 4 KiB leaves it."""
        order = 1_700_000_000_000_000 + number
        etag = number.to_bytes(16, "big")
        return ObjectRecord(
            FORMAT, order, b"", SIZE, etag, checksum_of(number).pack(), [self.extent_of(number)]
        )

    # What is measured.

    async def list_page(self) -> None:
        after = name_of(self.chance.randrange(self.objects))
        page = await list_objects(
            self.store, WHO, BUCKET, prefix="", delimiter="", after=after, limit=DIRECTORY
        )
        assert not page.names or page.names[0] > after

    async def get(self) -> None:
        number = self.chance.randrange(self.objects)
        found = await find_object(self.store, WHO, BUCKET, name_of(number))
        assert found.record.size == SIZE

    async def put(self) -> None:
        """A new key, in a directory that is there."""
        self.added += 1
        number = self.chance.randrange(self.objects)
        place = await open_place(self.store, WHO, BUCKET, f"{name_of(number)}-{self.added}")
        extent = self.extent_of(number)
        stored = Stored([extent], {self.volume: self.fence}, [])
        kept = Kept(place.home, b"", stored, None, SIZE, [extent])
        etag = number.to_bytes(16, "big")
        await publish_object(self.store, WHO, place, kept, etag=etag, checksum=None, extra=None, check=None)

    async def measure(self, kind: Kind, seconds: float) -> Cost:
        ends = time.perf_counter() + seconds
        done = 0

        async def lane() -> None:
            nonlocal done
            while done < kind.at_most and time.perf_counter() < ends:
                done += 1
                await kind.run(self)

        started, engine, own = time.perf_counter(), self.cpu_s(), own_cpu_s()
        await asyncio.gather(*(lane() for _ in range(kind.width)))
        took = time.perf_counter() - started
        cpu = self.cpu_s() - engine + own_cpu_s() - own
        return Cost(took * kind.width / done, cpu / done, done)


KINDS: Final = (
    Kind("list page", 1, Filled.list_page),
    Kind("get", 16, Filled.get),
    Kind("put", 64, Filled.put, at_most=3_000),  # They stay: the small store must not become large.
)


def name_of(number: int) -> str:
    directory, file = divmod(number, DIRECTORY)
    return f"photos/{directory:08d}/image-{file:04d}.jpeg"


def checksum_of(number: int) -> Checksum:
    """The one that clients get who ask for none."""
    return Checksum(checksums.DEFAULT, checksums.FULL_OBJECT, number.to_bytes(8, "big"))


# CPU.


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_s_of(pids: list[int]) -> float:
    """User and system time of these processes, but of PostgreSQL's vacuum."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"autovacuum worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(words[11]) + int(words[12])
    return total / os.sysconf("SC_CLK_TCK")


# The engines.


def store_over(kv: Kv) -> Store:
    """The verbs over this metadata. Bytes are never touched: what they would be read and written by is not
    there."""
    nothing = cast(Any, None)
    return Store(kv=kv, writer=nothing, reader=nothing, ledger=MetaLedger(kv))


async def _commit_for_others(directory: Path, pipe: Connection) -> None:
    """A committer with one disk."""
    format_disk(
        str(directory / "disk"),
        make_identity(cluster=CLUSTER, uuid=b"d" * 16, number=1, checksum_secret=77),
    )
    disk = open_disk(str(directory / "disk"))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_committer(
        socket_path=directory / "socket",
        disks=[disk],
        copies=1,
        cluster=CLUSTER,
        state_directories=[directory / "disk" / "meta"],
        ready=lambda: pipe.send("ready"),
        stop=stop,
    )
    disk.close()


@contextlib.asynccontextmanager
async def lmdb_store(directory: Path, objects: int) -> AsyncIterator[Filled]:
    context = ForkContext()
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: uvloop.run(_commit_for_others(directory, theirs)), daemon=True)
    directory.mkdir()
    process.start()
    try:
        if not await asyncio.to_thread(ours.poll, READY_SECONDS):
            raise TimeoutError("the committer is not ready")
        kv = MetaClient(directory / "socket")
        await kv.start()
        pid = process.pid
        assert pid is not None
        try:
            yield Filled(store_over(kv), lambda: cpu_s_of([pid]), objects)
        finally:
            await kv.close()
    finally:
        process.terminate()
        await asyncio.to_thread(process.join, READY_SECONDS)
        process.kill()


@contextlib.contextmanager
def postgresql(directory: Path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(directory, free_port())
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def postgresql_store(server: LocalPostgres, name: str, objects: int) -> AsyncIterator[Filled]:
    """A database of its own."""
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    kv = PostgresKv(server.url.rpartition("/")[0] + f"/{name}")
    await kv.start()
    try:
        yield Filled(store_over(kv), lambda: cpu_s_of(descendants(server.pid)), objects)
    finally:
        await kv.close()


# The run.


async def measure_engine(
    engine: str, scratch: Path, options: argparse.Namespace, say: Callable[[str], None]
) -> list[Figure]:
    async with contextlib.AsyncExitStack() as stack:
        counts = (options.small, options.objects)
        say(f"{engine}: {counts[0]:,} and {counts[1]:,} objects")
        stores: list[Filled] = []
        if engine == "lmdb":
            for number, count in enumerate(counts):
                stores.append(await stack.enter_async_context(lmdb_store(scratch / str(number), count)))
        else:
            scratch.chmod(0o711)  # PostgreSQL's own user must come through.
            server = stack.enter_context(postgresql(scratch / "postgresql"))
            for number, count in enumerate(counts):
                name = f"scale{number}"
                stores.append(await stack.enter_async_context(postgresql_store(server, name, count)))
        for filled in stores:
            await filled.fill(options.seed, say)
        found: dict[tuple[str, int], list[Cost]] = {}
        for _ in range(ROUNDS):
            for kind, filled in itertools.product(KINDS, stores):
                cost = await filled.measure(kind, options.seconds)
                found.setdefault((kind.name, filled.objects), []).append(cost)
                say(
                    f"  {kind.name:10} among {filled.objects:>12,}: {cost.seconds * 1e6:10,.0f} us, "
                    f"CPU {cost.cpu_s * 1e6:8,.0f} us  ({cost.operations:,} done, {kind.width} at once)"
                )
        return [
            figure
            for kind in KINDS
            for figure in figures_of(engine, kind, *(found[(kind.name, count)] for count in counts))
        ]


def figures_of(engine: str, kind: Kind, small: list[Cost], large: list[Cost]) -> Iterator[Figure]:
    """Each round's cost in the large store against that in the small one just before; the median."""
    for what, value in (("CPU", "cpu_s"), ("time", "seconds")):
        pairs = [
            (getattr(one, value), getattr(other, value)) for one, other in zip(large, small, strict=True)
        ]
        ratio, ours, theirs = sorted((ours / theirs, ours, theirs) for ours, theirs in pairs)[len(pairs) // 2]
        yield Figure(
            name=f"{engine} {kind.name} {what}",
            value=ratio,
            bar=BAR,
            at_least=False,
            unit="x of few objects",
            detail=f"{ours * 1e6:,.0f} us against {theirs * 1e6:,.0f} us",
        )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=10_000_000, help="in the large store")
    parser.add_argument("--small", type=int, default=100_000, help="objects in the small one")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: both")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out" / "scale")
    parser.add_argument("--scratch", type=Path, help="on the data disk (OUT/scratch)")
    options = parser.parse_args(arguments)
    if not 0 < options.small <= options.objects or options.seconds <= 0:
        parser.error("--small and --seconds are above 0, and --objects is no less than --small")
    return options


def main(arguments: list[str] | None = None) -> int:
    """0: every figure holds. 1: one missed its bar."""
    options = parse_options(arguments)
    out: Path = options.out
    scratch: Path = options.scratch or out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    for engine in options.engine or ENGINES:
        directory = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{engine}-"))
        try:
            figures += uvloop.run(
                measure_engine(engine, directory, options, lambda words: print(words, flush=True))
            )
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    text = f"{options.small:,} and {options.objects:,} objects\n\n{report.figures_table(figures)}\n"
    print("\n" + text)
    (out / "table.txt").write_text(text)
    results = {
        "objects": options.objects,
        "small": options.small,
        "figures": [figure.as_json() for figure in figures],
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
