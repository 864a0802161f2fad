"""No acknowledged batch is ever lost or changed: random histories against a dict.

Short form: about a hundred. OBJSTORE_LONG=1: 20,000. OBJSTORE_HISTORIES: as many as it says.
A failing seed is named and replays alone with
OBJSTORE_SEED=<seed>.
"""

import logging
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.meta.history import World

COUNT = int(os.environ.get("OBJSTORE_HISTORIES", "20000" if os.environ.get("OBJSTORE_LONG") else "80"))
STEPS = 20


async def test_no_acknowledged_batch_is_lost_or_changed_in_any_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "objstore.meta")
    given = os.environ.get("OBJSTORE_SEED")
    first = random.SystemRandom().randrange(1 << 40)
    seeds = [int(given)] if given else [first + number for number in range(COUNT)]
    print(f"seeds {seeds[0]} to {seeds[-1]}")
    crashed: Counter[str] = Counter()
    shm = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="history-", dir=shm if os.access(shm, os.W_OK) else None))
    try:
        for seed in seeds:
            root = base / str(seed)
            root.mkdir()
            world = World(seed, root)
            try:
                await world.run(STEPS)
            except BaseException:
                print(f"\nseed {seed}: replay with OBJSTORE_SEED={seed}\n" + "\n".join(world.log))
                raise
            crashed.update(world.crashes)
            shutil.rmtree(root)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print("crashes:", dict(crashed.most_common()))
    if not given:
        assert len(crashed) >= 12, "the histories no longer reach the crash points"
