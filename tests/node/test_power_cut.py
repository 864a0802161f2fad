"""A local disk over a file system that forgets: the power goes at every single change that the disk makes.

What was acknowledged is there afterwards, whole; what was not is there or not, and never stands in the way.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from objstore.errors import Corrupt, Denied, DiskFailed, DiskMissing
from objstore.node.disk import DiskState
from objstore.node.fragments import FileScan, RangeRead, Seal, file_header, record_buffers, record_size
from objstore.node.identity import make_identity
from objstore.node.local import DiskOptions, LocalDisk, format_disk, open_disk
from tests.sim.file_system import PowerCut, SimFileSystem
from tests.sim.replacing import replace

SEED = int(os.environ.get("OBJSTORE_SEED", "20261121"))
LONG = bool(os.environ.get("OBJSTORE_LONG"))
WORLDS_PER_CUT = 60 if LONG else 3  # Surviving states tried for each place where the power goes.
FORMAT_WORLDS_PER_CUT = 10 if LONG else 3  # Each is a whole format.
pytestmark = pytest.mark.timeout(7200 if LONG else 300)
PATH = "/srv/disk"
IDENTITY = make_identity(cluster=b"c" * 16, uuid=b"u" * 16, number=1, checksum_secret=77)
SEAL = Seal(b"c" * 16, 77)
OPTIONS = DiskOptions(low_water=0, limit_s=30, log_limit_s=30)


@dataclass
class Acknowledged:
    """What the disk has promised so far, kept by the one who asked."""

    synced: dict[tuple[int, int], bytes] = field(default_factory=dict)  # The file begins with this.
    written: dict[tuple[int, int], bytes] = field(default_factory=dict)  # All that was ever handed over.
    replaced: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)  # One of these, entirely.
    logs: dict[str, bytes] = field(default_factory=dict)
    log_tries: dict[str, bytes] = field(default_factory=dict)
    removed_logs: set[str] = field(default_factory=set)  # Perhaps.
    gone_logs: set[str] = field(default_factory=set)
    sealed: set[tuple[int, int]] = field(default_factory=set)  # Nothing beyond what was synced.
    epochs: list[int] = field(default_factory=lambda: [0])  # The last was acknowledged...
    epoch_tries: set[int] = field(default_factory=set)  # ... any of these perhaps, if it is higher.
    retired: dict[tuple[int, int], int] = field(default_factory=dict)
    purged: set[tuple[int, int]] = field(default_factory=set)
    purge_tries: set[tuple[int, int]] = field(default_factory=set)
    records: list[tuple[int, int, int, bytes]] = field(
        default_factory=list
    )  # volume, index, offset, fragment


async def put(disk: LocalDisk, seen: Acknowledged, key: tuple[int, int], data: bytes, *, sync: bool) -> None:
    before = seen.written.get(key, b"")
    seen.written[key] = before + data
    await disk.append(*key, len(before), [data[:7], data[7:]], sync=sync)
    if sync:
        seen.synced[key] = before + data


async def put_record(disk: LocalDisk, seen: Acknowledged, key: tuple[int, int], size: int) -> None:
    offset = len(seen.written[key])
    fragment = random.Random(f"{key} {offset}").randbytes(size)
    buffers = record_buffers(
        SEAL, volume=key[0], index=key[1], offset=offset, k=4, m=2,
        fragment=fragment, payload_size=size, directory_offset=0, clock_us=1,
    )  # fmt: skip
    await put(disk, seen, key, b"".join(buffers), sync=True)
    seen.records.append((*key, offset, fragment))


async def live(disk: LocalDisk, seen: Acknowledged) -> None:
    """One of everything, in an order in which the calls could harm each other."""
    await disk.create(1, 0)
    seen.synced[1, 0] = b""
    header = file_header(SEAL, volume=1, index=0, k=4, m=2, created_us=5)
    await put(disk, seen, (1, 0), header, sync=False)
    for size in (1000, 5000, 3, 20_000):
        await put_record(disk, seen, (1, 0), size)
    await disk.create(257, 1)  # The same directory.
    seen.synced[257, 1] = b""
    await put(disk, seen, (257, 1), b"bulk" * 4000, sync=False)
    await put(disk, seen, (257, 1), b"more" * 4000, sync=False)
    await disk.sync(257, 1)
    seen.synced[257, 1] = seen.written[257, 1]
    await put(disk, seen, (257, 1), b"unsynced tail", sync=False)
    await disk.create(3, 2)
    seen.synced[3, 2] = b""
    await put(disk, seen, (3, 2), b"unsynced, then " * 1000, sync=False)
    await put(disk, seen, (3, 2), b"synced", sync=True)

    seen.log_tries["epoch-1"] = b"head"
    await disk.log_create("epoch-1", b"head")
    seen.logs["epoch-1"] = b"head"
    seen.epoch_tries.add(1)
    await disk.note_epoch(1)
    seen.epochs.append(1)
    for number in range(3):
        seen.log_tries["epoch-1"] += bytes([number]) * 3000
        await disk.log_append("epoch-1", len(seen.logs["epoch-1"]), bytes([number]) * 3000)
        seen.logs["epoch-1"] = seen.log_tries["epoch-1"]

    for key in ((1, 0), (257, 1)):
        await disk.seal(*key, len(seen.synced[key]))
        seen.sealed.add(key)
    seen.replaced[2, 0] = [b"rebuilt " * 2000]
    await replace(disk, 2, 0, [b"rebuilt " * 1000] * 2)
    seen.synced[2, 0] = seen.written[2, 0] = b"rebuilt " * 2000
    seen.replaced[2, 0].append(b"again " * 100)
    await replace(disk, 2, 0, [b"again " * 100])
    seen.replaced[2, 0] = [b"again " * 100]
    seen.synced[2, 0] = seen.written[2, 0] = b"again " * 100

    seen.epoch_tries.add(2)
    await disk.note_epoch(2)
    seen.epochs.append(2)
    await disk.retire(2, 0, 1000)
    seen.retired[2, 0] = 1000
    with pytest.raises(Denied):
        await disk.purge(2, 0, retired_before_us=1000)
    seen.purge_tries.add((2, 0))
    await disk.purge(2, 0, retired_before_us=1001)
    seen.purged.add((2, 0))
    seen.removed_logs.add("epoch-1")
    await disk.log_remove("epoch-1")
    del seen.logs["epoch-1"]
    seen.gone_logs.add("epoch-1")
    await disk.verify()


async def check(disk: LocalDisk, seen: Acknowledged, where: str) -> None:
    assert disk.state is DiskState.HEALTHY, where
    files = {(file.volume, file.index): file for file in await disk.fragment_files()}
    for key, promised in seen.synced.items():
        if key in seen.purge_tries and key not in files:
            continue
        assert key in files, f"{key} was acknowledged and is gone; {where}"
        buffer = bytearray(files[key].size)
        assert await disk.read(*key, 0, [memoryview(buffer)]) == len(buffer), where
        if key in seen.replaced:
            assert bytes(buffer) in [promised, *seen.replaced[key]], where
        else:
            assert buffer[: len(promised)] == promised, f"{key} lost acknowledged bytes; {where}"
        if key in seen.sealed:
            assert len(buffer) == len(promised), f"{key} was cut and is long again; {where}"
    for key in seen.replaced.keys() - seen.synced.keys():
        if key in files:  # Not acknowledged, and there: then it is whole.
            buffer = bytearray(files[key].size)
            await disk.read(*key, 0, [memoryview(buffer)])
            assert bytes(buffer) in seen.replaced[key], where
    for key, when in seen.retired.items():
        assert key not in files or files[key].retired_us == when or key in seen.purge_tries, where
    assert not seen.purged & files.keys(), f"purged and back; {where}"
    for volume, index, offset, fragment in seen.records:
        plan = RangeRead(SEAL, volume, index, offset, len(fragment), 0, len(fragment))
        assert plan.verified(await disk.read(volume, index, plan.position, plan.buffers)) == fragment, where
    logs = {log.name: log.size for log in await disk.logs()}
    assert not seen.gone_logs & logs.keys(), f"a removed log is back; {where}"
    for name, promised in seen.logs.items():
        if name in seen.removed_logs and name not in logs:
            continue
        assert (await disk.log_read(name, 0, 1 << 20))[: len(promised)] == promised, where
    for name in logs.keys() & seen.log_tries.keys():
        content = await disk.log_read(name, 0, 1 << 20)
        assert len(content) >= 4, f"a log is whole or not there; {where}"
        assert content[:4] == b"head", where
    epoch = await disk.noted_epoch()
    assert epoch >= seen.epochs[-1], f"epoch {epoch}; {where}"
    assert epoch in {seen.epochs[-1], *seen.epoch_tries}, f"epoch {epoch}; {where}"


def formatted() -> SimFileSystem:
    sim = SimFileSystem()
    format_disk(PATH, IDENTITY, sys=sim)
    return sim


async def run_until_cut(
    sim: SimFileSystem, seen: Acknowledged, life: Callable[[LocalDisk, Acknowledged], Awaitable[None]]
) -> bool:
    """Returns whether the power went."""
    disk = open_disk(PATH, options=OPTIONS, sys=sim)
    try:
        await life(disk, seen)
    except PowerCut:
        return True
    finally:
        disk.close()
    return False


async def after_cut(sim: SimFileSystem) -> LocalDisk:
    disk = open_disk(PATH, options=OPTIONS, sys=sim)
    disk.sweep()
    return disk


async def changes_of(life: Callable[[LocalDisk, Acknowledged], Awaitable[None]]) -> tuple[int, int]:
    sim = formatted()
    first = sim.changes
    assert not await run_until_cut(sim, Acknowledged(), life)
    return first, sim.changes


async def test_at_every_power_cut_what_was_acknowledged_is_there() -> None:
    first, last = await changes_of(live)
    assert last - first >= 60, "the workload has shrunk"
    for at in range(first + 1, last + 1):
        sim = formatted()
        sim.power_cut_at(at)
        seen = Acknowledged()
        assert await run_until_cut(sim, seen, live)
        for world in range(WORLDS_PER_CUT):
            where = f"cut at {at} of {last} ({sim.log[-1]}), world {world}, seed {SEED}"
            disk = await after_cut(sim.after_power_cut(random.Random(f"{SEED} {at} {world}")))
            await check(disk, seen, where)
            disk.close()


async def test_a_second_power_cut_while_coming_up_again_loses_nothing_either() -> None:
    async def come_up(disk: LocalDisk, seen: Acknowledged) -> None:
        """What a store does after a power cut: sweep, list, seal, verify, the next epoch."""
        disk.sweep()
        await disk.verify()
        for file in await disk.fragment_files():
            key = file.volume, file.index
            if key in seen.synced and key not in seen.replaced:
                await disk.seal(*key, len(seen.synced[key]))
                seen.written[key] = seen.synced[key]
        seen.log_tries["epoch-9"] = b"head"
        await disk.log_create("epoch-9", b"head")
        seen.logs["epoch-9"] = b"head"
        seen.epoch_tries.add(9)
        await disk.note_epoch(9)
        seen.epochs.append(9)
        await disk.create(1000, 4)
        seen.synced[1000, 4] = b""
        await put(disk, seen, (1000, 4), b"after", sync=True)

    first, last = await changes_of(live)
    rng = random.Random(f"{SEED} nested")
    for run in range(1000 if LONG else 60):
        at = rng.randint(first + 1, last)
        sim = formatted()
        sim.power_cut_at(at)
        seen = Acknowledged()
        assert await run_until_cut(sim, seen, live)
        second = sim.after_power_cut(rng)
        again = rng.randint(1, 40)
        second.power_cut_at(again)
        await_cut = await run_until_cut_or_sweep(second, seen, come_up)
        where = f"run {run}, cuts at {at} and {again} ({await_cut}), seed {SEED}"
        disk = await after_cut(second.after_power_cut(rng))
        await check(disk, seen, where)
        disk.close()


async def run_until_cut_or_sweep(
    sim: SimFileSystem, seen: Acknowledged, life: Callable[[LocalDisk, Acknowledged], Awaitable[None]]
) -> str:
    return "cut" if await run_until_cut(sim, seen, life) else "came up"


async def test_a_disk_half_formatted_by_a_power_cut_is_formatted_again_or_whole() -> None:
    whole = formatted().changes
    rng = random.Random(f"{SEED} format")
    cuts = (
        range(1, whole + 1)
        if LONG
        else [*rng.sample(range(1, whole - 10), 30), *range(whole - 10, whole + 1)]
    )
    for at in cuts:
        sim = SimFileSystem()
        sim.power_cut_at(at)
        with pytest.raises(PowerCut):
            format_disk(PATH, IDENTITY, sys=sim)
        for world in range(FORMAT_WORLDS_PER_CUT):
            where = f"cut at {at} of {whole}, world {world}, seed {SEED}"
            fresh = sim.after_power_cut(random.Random(f"{SEED} {at} {world}"))
            try:
                disk = open_disk(PATH, options=OPTIONS, sys=fresh)
            except DiskMissing:
                format_disk(PATH, IDENTITY, sys=fresh)
                disk = open_disk(PATH, options=OPTIONS, sys=fresh)
            await disk.create(255, 1)
            await disk.create(256, 1)
            await disk.verify()
            assert disk.state is DiskState.HEALTHY, where
            disk.close()


async def test_an_acknowledged_format_survives() -> None:
    sim = formatted()
    for world in range(20):
        disk = open_disk(PATH, sys=sim.after_power_cut(random.Random(f"{SEED} {world}")))
        assert disk.number == 1
        disk.close()


async def test_a_torn_tail_is_seen_as_torn_or_bad_and_all_before_it_is_whole() -> None:
    rng = random.Random(f"{SEED} torn")
    tails: set[str] = set()
    for run in range(400 if LONG else 80):
        sim = formatted()
        disk = open_disk(PATH, options=OPTIONS, sys=sim)
        seen = Acknowledged()
        await disk.create(1, 0)
        seen.synced[1, 0] = b""
        header = file_header(SEAL, volume=1, index=0, k=4, m=2, created_us=5)
        await put(disk, seen, (1, 0), header, sync=True)
        sizes = [rng.randint(1, 12_000) for _ in range(rng.randint(1, 4))]
        sim.power_cut_at(sim.changes + 2 * len(sizes) - rng.randint(0, 1))
        for size in sizes[:-1]:
            await put_record(disk, seen, (1, 0), size)
        with pytest.raises(PowerCut):
            await put_record(disk, seen, (1, 0), sizes[-1])
        disk.close()
        survivor = await after_cut(sim.after_power_cut(rng))
        scan = FileScan(SEAL, survivor.read, 1, 0)
        found = [header.offset async for header, _ in scan.records(verify=True)]
        where = f"run {run}, seed {SEED}"
        assert found[: len(sizes) - 1] == [offset for _, _, offset, _ in seen.records], where
        assert len(found) - len(seen.records) in (0, 1), where
        end = 64 + sum(map(record_size, sizes[: len(found)]))
        assert scan.end == end, where
        tails.add(scan.tail)
        survivor.close()
    assert tails == {"", "torn", "bad"}, f"the simulation has become too kind, seed {SEED}"


async def test_the_simulation_forgets_what_a_careless_writer_did_not_sync() -> None:
    # The test of the test: a disk that skips any one of its syncs is found out.
    for skipped in ("fdatasync", "fsync"):
        found = False
        for world in range(40):
            sim = formatted()
            setattr(sim, skipped, lambda fd: None)
            disk = open_disk(PATH, options=OPTIONS, sys=sim)
            await disk.create(1, 0)
            await disk.append(1, 0, 0, [b"x" * 10_000], sync=False)
            await disk.sync(1, 0)
            disk.close()
            survivor = await after_cut(sim.after_power_cut(random.Random(f"{SEED} {world}")))
            buffer = bytearray(10_000)
            try:
                await survivor.read(1, 0, 0, [memoryview(buffer)])
                found = found or buffer != b"x" * 10_000
            except FileNotFoundError:
                found = True
            survivor.close()
        assert found, f"a missing {skipped} goes unnoticed"


async def test_a_power_cut_is_no_answer_of_the_disk() -> None:
    sim = formatted()
    disk = open_disk(PATH, options=OPTIONS, sys=sim)
    await disk.create(1, 0)
    sim.power_cut()
    with pytest.raises(PowerCut):
        await disk.append(1, 0, 0, [b"x"], sync=True)
    assert disk.state is DiskState.HEALTHY
    disk.close()
    with pytest.raises((Corrupt, DiskFailed, PowerCut)):
        open_disk(PATH, sys=sim)
    await asyncio.sleep(0)
