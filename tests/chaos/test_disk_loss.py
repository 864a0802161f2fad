"""Any two of the six disks are taken away under load: directories gone, or EIO from every call.

No wrong byte, no lost key, and no failed read. Only when LMDB's disk is among them, 503 for at most 5 s (per
million objects). The store then starts without the two disks, and later with them again, and every key is
there each time. The short form takes four cases; `make chaos` all fifteen pairs in both ways.
"""

import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench.sigv4 import Credentials
from tests.chaos.workload import RESTLESS, STALL_MAX_S, Load, Pressure
from tests.preload import preload_library
from tests.seed import SEED
from tests.server import Server, start_server

LONG = bool(os.environ.get("OBJSTORE_LONG"))
DISKS = 6


@pytest.fixture(scope="module")
def failing_disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes disks fail."""
    return preload_library(Path(__file__).with_name("failing_disks.c"), tmp_path_factory.mktemp("library"))


def disks_of(server: Server) -> tuple[list[Path], Path]:
    """All disk directories in order, and the one that holds LMDB."""
    disks = sorted(path.parent for path in server.data.glob("**/objstore.id"))
    assert len(disks) == DISKS, disks
    (holder,) = (disk for disk in disks if any((disk / "meta").rglob("data.mdb")))
    return disks, holder


class Attic:
    """Where disks are while they are away."""

    def __init__(self, directory: Path, dead: Path) -> None:
        self._directory = directory
        self._dead = dead  # What failing_disks.c reads.
        self._away: list[tuple[Path, Path]] = []
        directory.mkdir()
        dead.write_bytes(bytes(4096))

    def gone(self, disks: Sequence[Path]) -> None:
        for number, disk in enumerate(disks):
            place = self._directory / str(number)
            os.rename(disk, place)
            self._away.append((disk, place))

    def eio(self, disks: Sequence[Path]) -> None:
        names = b"".join(os.fsencode(disk) + b"\0" for disk in disks)
        with open(self._dead, "r+b") as file:
            # The first byte last: until then the list is empty for all who look.
            file.seek(1)
            file.write(names[1:])
            file.flush()
            file.seek(0)
            file.write(names[:1])

    def bring_back(self) -> None:
        self._dead.write_bytes(bytes(4096))
        for disk, place in self._away:
            if disk.exists():
                # Whatever was put in the place of a missing disk is not it.
                shutil.rmtree(disk)
            os.rename(place, disk)
        self._away.clear()


def cases() -> list[tuple[str, tuple[int, int]]]:
    """(way, two disks), disks counted from LMDB's: 0 is the one that holds it."""
    pairs = list(itertools.combinations(range(DISKS), 2))
    if LONG:
        return list(itertools.product(("gone", "eio"), pairs))
    source = random.Random(SEED)
    with_lmdb = [pair for pair in pairs if pair[0] == 0]
    without = [pair for pair in pairs if pair[0] != 0]
    return [(way, source.choice(some)) for way in ("gone", "eio") for some in (with_lmdb, without)]


NOTICED_S = 30.0  # A disk's identity is looked at again within seconds, used or not.


@pytest.mark.timeout(7200 if LONG else 300)
@pytest.mark.parametrize(("way", "pair"), cases(), ids=lambda value: str(value).replace(" ", ""))
def test_two_lost_disks_cost_no_byte_and_no_key(
    way: str, pair: tuple[int, int], tmp_path: Path, failing_disks: Path
) -> None:
    print(f"seed {SEED}")
    attic = Attic(tmp_path / "attic", tmp_path / "dead")
    environment = RESTLESS | {"OBJSTORE_DEAD_DISKS": str(tmp_path / "dead")}

    def start(port: int = 0) -> Server:
        return start_server(tmp_path, workers=2, port=port, environment=environment, preload=failing_disks)

    server = start()
    try:
        disks, holder = disks_of(server)
        at = disks.index(holder)
        victims = [disks[(at + number) % DISKS] for number in pair]
        credentials = Credentials(server.access_key, server.secret_key)
        load = Load(port=server.port, credentials=credentials, seed=SEED, keys=25)
        findings = load.findings
        with Pressure() as pressure, load:
            load.work_until(2_000 if LONG else 200)
            load.check_everything()
            assert findings.read_failures == []
            assert findings.write_failures == []
            take: Callable[[Sequence[Path]], None] = attic.gone if way == "gone" else attic.eio
            take(victims)
            lost_at = time.monotonic() - load.began
            load.work_until(2_000 if LONG else 250)
            load.check_everything()
        print(f"{way} {pair}: {load.report()}; pressure {pressure.factor:.1f}; lost at {lost_at:.2f} s")
        shown = "\n".join([f"seed {SEED}", *findings.broken[:20], *findings.read_failures[:10]])
        assert findings.broken == [], shown
        limit = STALL_MAX_S * pressure.factor
        for victim in victims:  # Otherwise nothing was tested. A disk nobody just used is looked at in turn.
            noticed_by = time.monotonic() + NOTICED_S * pressure.factor
            while f"{victim} is " not in server.text():
                assert time.monotonic() < noticed_by, f"the store has not noticed that {victim} is lost"
                time.sleep(0.05)
        text = server.text()
        assert ("is built again from the journal" in text) == (0 in pair)
        longest, what = findings.longest_stall()
        assert longest <= limit, f"{what} took {longest:.1f} s, allowed {limit:.1f}"
        if 0 in pair:
            assert all(": 503 " in line for line in findings.read_failures), shown
        else:
            assert findings.read_failures == [], shown

        server = again(server, start, load)  # Without the two disks.
        assert server.stop() == 0
        attic.bring_back()
        server = start(load.port)
        check(load, "with the disks back")
        assert server.stop() == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def again(server: Server, start: Callable[[int], Server], load: Load) -> Server:
    server.stop()
    server = start(load.port)
    check(load, "started without two disks")
    return server


def check(load: Load, when: str) -> None:
    for client in load.clients:
        client.check_everything()
    assert load.findings.broken == [], f"seed {SEED}, {when}:\n" + "\n".join(load.findings.broken[:20])
