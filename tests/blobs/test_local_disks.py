"""Writer, reader, scrub and repair over real directories: what the disks in memory cannot show."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from objstore.blobs.volumes import VolumeState
from objstore.node.identity import make_identity
from objstore.node.local import LocalDisk, format_disk, open_disk
from objstore.upkeep.compaction import compact
from objstore.upkeep.repair import Repair
from objstore.upkeep.scrub import scrub_volume
from objstore.upkeep.seal import seal_dead
from objstore.upkeep.trash import TrashRules, clear
from tests.blobs.rig import CLUSTER, SECRET
from tests.upkeep.rig import Yard


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[int, LocalDisk]]:
    found = {}
    for number in range(1, 8):
        path = str(tmp_path / f"d{number}")
        format_disk(
            path,
            make_identity(
                cluster=CLUSTER, uuid=number.to_bytes(16, "big"), number=number, checksum_secret=SECRET
            ),
        )
        found[number] = open_disk(path)
    yield found
    for disk in found.values():
        disk.close()


async def yard_on(disks: dict[int, LocalDisk]) -> Yard:
    yard = Yard()
    yard.disks = disks  # type: ignore[assignment]
    yard.writer = yard.new_writer()
    yard.reader = yard.new_reader()
    return await yard.start()


def path_of(disk: LocalDisk, volume: int) -> list[Path]:
    return sorted(
        path for path in Path(disk.path, "fragments").rglob("*") if path.name.startswith(f"{volume}.")
    )


async def test_a_whole_life_on_real_disks(disks: dict[int, LocalDisk]) -> None:
    yard = await yard_on(disks)
    rng = random.Random(1)
    await asyncio.gather(
        *(yard.put_object(f"small{number}", rng.randbytes(rng.randint(1, 20_000))) for number in range(60))
    )
    large = [await yard.put_object(f"large{number}", rng.randbytes(9_000_000)) for number in range(2)]
    await yard.check()
    await yard.delete(large[0])
    # The writer dies; its volumes are sealed at what the disks show.
    yard.writer = yard.new_writer()
    ctx = yard.context()
    sealed = await seal_dead(ctx, lambda writer: False)
    assert [record.id for record in sealed] == [1, 2]
    await yard.check()
    # Rot is found and mended in place; a lost file comes back.
    record = await yard.ledger.get(2, fresh=True)
    rotten = path_of(disks[record.disks[1]], 2)[0]
    with rotten.open("r+b") as file:
        file.seek(100_000)
        file.write(b"rot")
    path_of(disks[record.disks[3]], 2)[0].unlink()
    report = await scrub_volume(ctx, record)
    assert set(report.damaged) | set(report.unread) >= {1}
    await Repair(ctx).run()
    report = await scrub_volume(ctx, await yard.ledger.get(2, fresh=True))
    assert not report.damaged
    assert not report.unread
    # Compaction moves what lives; the trash keeps the rest for its grace, then it is gone.
    assert (await compact(ctx, 2)).retired
    await ctx.writer.close()
    await yard.check()
    rules = TrashRules(grace_s=3_600, grace_least_s=3_600)
    assert (await clear(ctx, rules)).retired >= 6
    yard.clock.advance(3_700)
    assert (await clear(ctx, rules)).purged >= 6
    assert 2 not in await yard.states()
    assert not any(path_of(disk, 2) for disk in disks.values())
    await yard.check()
    await yard.writer.close()
    assert VolumeState.OPEN not in (await yard.states()).values()


async def test_many_streams_and_many_small_bodies_at_once(disks: dict[int, LocalDisk]) -> None:
    yard = await yard_on(disks)
    rng = random.Random(2)
    await asyncio.gather(
        *(yard.put_object(f"l{number}", rng.randbytes(3_000_000 + number)) for number in range(8)),
        *(yard.put_object(f"s{number}", rng.randbytes(4096)) for number in range(200)),
    )
    assert yard.writer.counters.stripes < 100
    await yard.check()
    await yard.writer.close()
    for record in await yard.ledger.volumes():
        for disk in disks.values():
            for path in path_of(disk, record.id):
                assert path.stat().st_size == record.length
