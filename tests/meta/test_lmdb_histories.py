"""LMDB under kills of its committer and of clients: linearizable key by key, as PostgreSQL is."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from tests.linearizability import CAS, DONE, REFUSED, UNKNOWN, violations
from tests.meta import registers
from tests.meta.process import CommitterProcess
from tests.meta.registers import ENDLESS
from tests.waiting import until

LONG = bool(os.environ.get("OBJSTORE_LONG"))
KILLS = 100 if LONG else 4
HISTORY_BYTES = 100  # Of an operation, at the least.


@pytest.mark.timeout(7_000 if LONG else 240)
async def test_registers_are_linearizable_while_committers_and_clients_are_killed(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    clients, count, keys = (4, 36_000, 500) if LONG else (3, 1_200, 24)
    root = tmp_path / "store"
    root.mkdir()
    async with CommitterProcess(root) as committer:
        outputs = [tmp_path / f"client{number}" for number in range(clients)]
        # The first is killed, so it has more to do than it lives for; and it is at it before the others.
        running = [await registers.spawn(outputs[0], f"lmdb:{root}", "c0", seed, ENDLESS, keys)]
        await until(lambda: outputs[0].stat().st_size)
        running += [
            await registers.spawn(path, f"lmdb:{root}", f"c{number}", seed + number, count, keys)
            for number, path in enumerate(outputs[1:], 1)
        ]
        # By what they have done, not by time: a quick machine is done before a slow one has begun.
        to_do = (clients - 1) * count * HISTORY_BYTES
        due = [to_do * (number + rng.random()) / (KILLS + 1) for number in range(KILLS)]
        kills = 0
        while any(process.returncode is None for process in running):
            done = sum(path.stat().st_size for path in outputs[1:])
            if kills < KILLS and done >= due[kills]:
                kills += 1
                await committer.kill()
                if kills == 1:
                    running[0].kill()
                await committer.start()
            await asyncio.sleep(0.005)
        codes = [process.returncode for process in running]
        assert codes == [-signal.SIGKILL] + [0] * (clients - 1), codes
    history = registers.histories([path.read_bytes() for path in outputs])
    outcomes = {name: sum(one.outcome == name for one in history) for name in (DONE, REFUSED, UNKNOWN)}
    print(f"{len(history)} operations, {outcomes}, {kills} committers killed")
    assert outcomes[DONE] > count
    assert any(one.kind == CAS and one.outcome == DONE for one in history)
    assert kills >= 2
    assert violations(history) == []
