"""LMDB under kills of its committer and of clients: linearizable key by key, as PostgreSQL is."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.linearizability import CAS, DONE, REFUSED, UNKNOWN, violations
from tests.meta import registers
from tests.meta.process import CommitterProcess

LONG = bool(os.environ.get("OBJSTORE_LONG"))


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
        running = [
            await registers.spawn(path, f"lmdb:{root}", f"c{number}", seed + number, count, keys)
            for number, path in enumerate(outputs)
        ]
        kills = 0
        killed = False
        while any(process.returncode is None for process in running):
            await asyncio.sleep(rng.uniform(0.1, 0.6))
            if sum(path.stat().st_size for path in outputs) < 20_000:
                continue
            if not killed:
                killed = True
                running[0].kill()
            if kills < (100 if LONG else 4):
                kills += 1
                await committer.kill()
                await committer.start()
        codes = [process.returncode for process in running]
        assert codes[1:] == [0] * (clients - 1), codes
    history = registers.histories([path.read_bytes() for path in outputs])
    outcomes = {name: sum(one.outcome == name for one in history) for name in (DONE, REFUSED, UNKNOWN)}
    print(f"{len(history)} operations, {outcomes}, {kills} committers killed")
    assert outcomes[DONE] > count
    assert any(one.kind == CAS and one.outcome == DONE for one in history)
    assert kills >= 2
    assert violations(history) == []
