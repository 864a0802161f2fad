"""What grows with the number of objects: the start after kill -9, and the pause when LMDB's disk is lost.

Ready again within 2 s of a start; reads refused for at most 5 s per million objects (and 5 s at least are
granted). The short form stores 5,000 objects, `make chaos` a million.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from bench.load import Endpoint, Generator, Payload
from bench.rows import KIB, Bench, Plan
from bench.shares import descendants
from bench.sigv4 import Credentials
from bench.targets import Target
from tests.chaos.test_disk_loss import disks_of
from tests.chaos.workload import Client, Load, NoAnswer, Pressure
from tests.seed import SEED
from tests.server import start_server, wait_gone

LONG = bool(os.environ.get("OBJSTORE_LONG"))
OBJECTS = 1_000_000 if LONG else 5_000
READY_S = 2.0
REFUSED_S_PER_MILLION = 5.0
PAYLOAD = Payload(size=KIB, seed=3)


class Reader:
    """Reads random keys one after another and notes when it was refused."""

    def __init__(self, client: Client, paths: list[str]) -> None:
        self.client = client
        self._paths = paths
        self._random = random.Random(SEED)
        self._body = PAYLOAD.make()
        self.refused: list[tuple[float, str]] = []  # (when, how)

    def read_until(self, seconds: float, good: int) -> None:
        """Until `good` reads in a row were right, or the time is over."""
        end = time.monotonic() + seconds
        row = 0
        while row < good:
            assert time.monotonic() < end, (
                f"no {good} good reads in a row in {seconds} s: {self.refused[-1:]}"
            )
            path = self._random.choice(self._paths)
            try:
                status, body, _ = self.client.once("GET", path)
            except NoAnswer as failure:
                self.refused.append((time.monotonic(), str(failure)))
                row = 0
                time.sleep(0.01)
                continue
            assert status == 200, (path, status)
            assert body == self._body, path
            row += 1

    def refused_for(self) -> float:
        return self.refused[-1][0] - self.refused[0][0] if self.refused else 0.0


@pytest.mark.timeout(7200 if LONG else 300)
def test_a_kill_and_the_loss_of_lmdbs_disk_cost_seconds_not_objects(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    server = start_server(tmp_path, workers=2)
    try:
        credentials = Credentials(server.access_key, server.secret_key)
        target = Target(
            name="objstore/2",
            endpoint=Endpoint(url=server.endpoint, credentials=credentials),
            root_pid=server.pid,
            bucket="many",
        )
        target.make_bucket()
        with Generator(target.endpoint, 1) as generator:
            bench = Bench(target, generator, Plan(seed=PAYLOAD.seed))
            left = OBJECTS
            while left:
                assert bench.put(KIB, 64, count=min(left, 50_000)).errors == {}
                left -= min(left, 50_000)
        paths = bench.stored(KIB)
        assert len(paths) == OBJECTS
        port = server.port
        reader = Reader(Load(port=port, credentials=credentials, seed=SEED, clients=1).clients[0], paths)
        reader.read_until(60, good=50)
        assert reader.refused == []

        pids = descendants(server.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # The children die with their supervisor.
                os.kill(pid, signal.SIGKILL)
        server.process.wait(30)
        wait_gone(pids)
        with Pressure() as pressure:
            began = time.monotonic()
            server = start_server(tmp_path, workers=2, port=port)
            ready_s = time.monotonic() - began
        print(f"ready {ready_s:.2f} s after kill -9 (pressure {pressure.factor:.1f})")
        assert ready_s <= READY_S * pressure.factor
        reader.client.disconnect()  # From the server that is dead.
        reader.read_until(60, good=200)
        assert reader.refused == []

        _, holder = disks_of(server)
        with Pressure() as pressure:
            os.rename(holder, tmp_path / "attic")
            for number in range(20):  # Writes make the committer notice.
                reader.client.until_answered("PUT", f"/many/new/{number}", body=b"new")
                reader.read_until(120, good=20)
        print(f"refused for {reader.refused_for():.2f} s (pressure {pressure.factor:.1f})")
        limit = REFUSED_S_PER_MILLION * max(1.0, OBJECTS / 1_000_000)
        assert reader.refused_for() <= limit * pressure.factor, reader.refused[:5]
        assert all(how.startswith("503") for _, how in reader.refused), reader.refused[:5]
        assert "is built again from the journal" in server.text()
        reader.read_until(60, good=200)
    finally:
        server.stop()
