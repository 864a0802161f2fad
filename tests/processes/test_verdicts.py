"""What gateways know of each other's verdicts on slow disks, and that m is for all of them together."""

from pathlib import Path

from objstore.clock import SystemClock
from objstore.metrics import Family, Registry
from objstore.node.membership import SlowDisk, Standing, decode
from objstore.node.slowness import Slow
from objstore.processes.control import EJECTED, serve_metrics
from objstore.processes.verdicts import FILE, LASTS_MAX_S, Verdicts, followed
from tests.blobs.rig import StepClock
from tests.upkeep.rig import Yard

LASTS_S = 15.0


def slow(*disks: int, by: int = 1) -> list[SlowDisk]:
    return [SlowDisk(disk=disk, by=by) for disk in disks]


def finds(*disks: int) -> Registry:
    registry = Registry()
    samples = [((str(disk), op), [float(disk in disks)]) for disk in range(1, 7) for op in ("read", "append")]
    registry.include(lambda: [Family(EJECTED, "gauge", "", ("disk", "op"), (), list(samples))])
    return registry


async def test_a_machine_tells_what_its_processes_find(tmp_path: Path) -> None:
    servers = [
        await serve_metrics(str(tmp_path), "worker-1", finds(2, 3)),
        await serve_metrics(str(tmp_path), "worker-2", finds(3)),
    ]
    verdicts = Verdicts(str(tmp_path), SystemClock(), lasts_s=LASTS_S)
    await verdicts.gather()
    assert verdicts.own == [SlowDisk(disk=3, by=2), SlowDisk(disk=2, by=1)]
    for server in servers:
        server.close()


async def test_what_all_machines_find_is_followed_until_it_is_too_old(tmp_path: Path) -> None:
    clock = StepClock()
    verdicts = Verdicts(str(tmp_path), clock, lasts_s=LASTS_S)
    assert followed(str(tmp_path), clock) == {}
    await verdicts.note([slow(1, 2), slow(2, by=3)])
    assert followed(str(tmp_path), clock) == {1: 1, 2: 4}
    clock.advance(LASTS_S - 1)
    assert followed(str(tmp_path), clock) == {1: 1, 2: 4}
    clock.advance(2)
    assert followed(str(tmp_path), clock) == {}
    await verdicts.note([slow(5)])
    assert followed(str(tmp_path), clock) == {5: 1}


async def test_a_note_of_another_boot_or_of_another_run_counts_for_nothing(tmp_path: Path) -> None:
    clock = StepClock()
    await Verdicts(str(tmp_path), clock, lasts_s=LASTS_S).note([slow(1)])
    clock.advance(-2 * LASTS_MAX_S)  # Its clock began anew.
    assert followed(str(tmp_path), clock) == {}
    clock.advance(2 * LASTS_MAX_S)
    assert followed(str(tmp_path), clock) == {1: 1}
    Verdicts(str(tmp_path), clock, lasts_s=LASTS_S)
    assert followed(str(tmp_path), clock) == {}


async def test_a_note_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"until": 1')
    assert followed(str(tmp_path), StepClock()) == {}


def test_a_machine_of_an_earlier_release_finds_nothing_slow() -> None:
    told = b'{"id":"aa","number":1,"issuer":"x","ends_s":1,"version":"0.1.0","started_s":1}'
    assert decode(told, Standing).slow == []


async def test_gateways_that_find_different_disks_slow_leave_out_m_of_a_volume_together() -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(9_000))
    (record,) = await yard.ledger.volumes()
    views = {1: {1, 2}, 2: {3, 4}, 3: {2, 5}}  # By gateway; each of them could be left out alone, with m = 2.
    readers = {gateway: yard.new_reader() for gateway in views}
    for gateway, disks in views.items():
        readers[gateway].slowness.ejected = {disk: Slow("p99", disk / 10, 0.001) for disk in disks}
        assert set(readers[gateway]._left_out(record)) == disks
    for reader in readers.values():  # As after a heartbeat.
        reader.slowness.others = {1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    left_out = {gateway: set(reader._left_out(record)) for gateway, reader in readers.items()}
    assert left_out == {1: {1, 2}, 2: set(), 3: {2}}, "2, which most find slow, then the first of the others"
    assert len(set().union(*left_out.values())) == record.m


async def test_a_disk_that_only_others_find_slow_is_read(tmp_path: Path) -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(9_000))
    (record,) = await yard.ledger.volumes()
    reader = yard.new_reader()
    reader.slowness.others = {1: 7}
    assert reader._left_out(record) == []
