"""SIGKILL under load: of the whole tree, of single workers, of the committer alone.

No acknowledged write is lost, no deleted key comes back, no read is torn, nobody waits longer than 5 s. The
short form is ten rounds over one store; `make chaos` runs two hundred.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from bench.shares import descendants
from bench.sigv4 import Credentials
from tests.chaos.workload import RESTLESS, STALL_MAX_S, Load, Pressure
from tests.seed import SEED
from tests.server import Server, start_server, wait_gone

LONG = bool(os.environ.get("OBJSTORE_LONG"))
ROUNDS = 200 if LONG else 10
VICTIMS = (
    "tree",
    "worker",
    "committer",
    "tree",
    "upkeep",
    "worker",
    "tree",
    "committer",
    "supervisor",
    "worker",
)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def restart(server: Server, directory: Path) -> Server:
    port = server.port
    pids = descendants(server.pid)
    random.Random(SEED).shuffle(pids)
    kill(pids)
    server.process.wait(30)
    wait_gone(pids)
    return start_server(directory, workers=2, port=port, environment=RESTLESS)


def await_replacement(server: Server, name: str, old: int) -> None:
    """Until the supervisor has put another process in the place of the dead one, and it serves."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        with contextlib.suppress(OSError, ValueError, KeyError):
            child = server.state["children"][name]
            if child["pid"] != old and child["ready"]:
                return
        time.sleep(0.02)
    raise AssertionError(f"{name} was not replaced:\n{server.text()[-8000:]}")


@pytest.mark.timeout(7200 if LONG else 300)
def test_no_acknowledged_write_is_lost_and_nobody_waits_long_whatever_is_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    source = random.Random(SEED)
    server = start_server(tmp_path, workers=2, environment=RESTLESS)
    credentials = Credentials(server.access_key, server.secret_key)
    load = Load(port=server.port, credentials=credentials, seed=SEED)
    starts = []
    try:
        with Pressure() as pressure, load:
            for number in range(ROUNDS):
                load.work_until(source.randrange(40, 200))
                victim = VICTIMS[number % len(VICTIMS)]
                if victim in ("tree", "supervisor"):
                    began = time.monotonic()
                    if victim == "supervisor":
                        port = server.port
                        server.kill()  # Its children die with it, by PR_SET_PDEATHSIG.
                        server = start_server(tmp_path, workers=2, port=port, environment=RESTLESS)
                    else:
                        server = restart(server, tmp_path)
                    starts.append(time.monotonic() - began)
                else:
                    name = f"worker-{source.randrange(2)}" if victim == "worker" else victim
                    children = server.children()
                    if name not in children:
                        name = source.choice(sorted(child for child in children if child.startswith(victim)))
                    old = children[name]
                    kill([old])
                    await_replacement(server, name, old)
                if victim in ("tree", "supervisor") or number == ROUNDS - 1:
                    load.check_everything()
                assert load.alive(), load.findings.broken
                assert load.findings.broken == [], f"seed {SEED}\n" + "\n".join(load.findings.broken[:20])
            load.work_until(100)
            load.check_everything()
        print(f"{load.report()}; starts {[f'{s:.1f}' for s in starts]} s; pressure {pressure.factor:.1f}")
        assert load.findings.broken == [], f"seed {SEED}\n" + "\n".join(load.findings.broken[:20])
        longest, what = load.findings.longest_stall()
        assert longest <= STALL_MAX_S * pressure.factor, (
            f"seed {SEED}: {what} took {longest:.1f} s (pressure {pressure.factor:.1f})"
        )
        assert load.findings.acknowledged > ROUNDS * 40
    finally:
        if server.process.poll() is None:
            server.stop()
    # What a clean stop leaves behind is whole, too.
    server = start_server(tmp_path, workers=1, port=load.port)
    try:
        for client in load.clients:
            client.check_everything()
        assert load.findings.broken == [], f"seed {SEED}\n" + "\n".join(load.findings.broken[:20])
    finally:
        server.stop()
