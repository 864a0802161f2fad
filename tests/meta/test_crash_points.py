"""A crash at every point that the code names, and another one while recovering from it.

One scenario does everything once: a start, commits, a copy that fails, a fold, commits beside it, a
clean stop, a start, commits. It is cut at its first point, its second, and so on; then the recovery is
cut at each of its points (all of them with OBJSTORE_LONG=1, else at one, by a printed seed), with and
without a power cut; then it must end, and hold what was acknowledged.
"""

import logging
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.meta.history import Crash, World

SEED_OF_VALUES = 11
LONG = bool(os.environ.get("OBJSTORE_LONG"))


class Cut(World):
    """A world whose only crashes are at the points that are given, and that ends at each of them."""

    def __init__(self, root: Path, *, first: int) -> None:
        super().__init__(SEED_OF_VALUES, root)
        self.names: list[str] = []
        self.scenario_over = False
        self.at = first  # Points until the crash; -1: never.

    def point(self, name: str) -> None:
        self.names.append(name)
        if self.at == 0:
            self.at = -1
            raise Crash(name)
        self.at -= 1

    async def scenario(self) -> None:
        await self.start()
        await self.commit_some()
        await self.commit_some()
        self.take_away(self.disks[0], "torn")
        await self.commit_some()
        await self.fold()
        await self.commit_some()
        await self.stop_cleanly()
        await self.commit_some()

    async def start_again(self) -> None:
        """The scenario ends at its crash; what follows is decided by the test."""
        if self.scenario_over:
            await super().start_again()
            return
        self.stop_process()
        raise Crash("in the scenario")

    async def start(self) -> None:
        self.rng, rng = random.Random(5), self.rng  # Recovery draws no values of the scenario.
        try:
            await super().start()
        finally:
            self.rng = rng


async def cut(root: Path, first: int, second: int, *, power: bool) -> list[str]:
    """Crash at point `first`, then at point `second` of the recovery; the points passed afterwards."""
    root.mkdir()
    world = Cut(root, first=first)
    try:
        try:
            await world.scenario()
        except Crash:
            pass
        world.stop_process()
        if power:
            world.cut_power()
        world.names, world.at, world.scenario_over = [], second, True
        # `start` itself goes on after a crash, as the supervisor does, and checks the law at its end.
        await world.start()
        await world.commit_some()
        return world.names
    finally:
        world.stop_process()
        shutil.rmtree(root)


async def test_every_named_point_may_be_the_last_one_twice_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "objstore.meta")
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    shm = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="crash-", dir=shm if os.access(shm, os.W_OK) else None))
    try:
        (base / "whole").mkdir()
        whole = Cut(base / "whole", first=-1)
        await whole.scenario()
        whole.stop_process()
        names = whole.names
        assert len(set(names)) >= 20, sorted(set(names))
        runs = 0
        for first in range(len(names)):
            nested_power = rng.random() < 0.5
            for power in (False, True):
                passed = await cut(base / "a", first, -1, power=power)
                runs += 1
                if not LONG and power != nested_power:
                    continue
                nested = range(len(passed))
                for second in nested if LONG else [rng.choice(nested)]:
                    try:
                        await cut(base / "b", first, second, power=power)
                    except BaseException:
                        print(f"first {first} ({names[first]}), then {second} ({passed[second]}), {power=}")
                        raise
                    runs += 1
        print(f"{runs} runs over {len(names)} points: {', '.join(sorted(set(names)))}")
    finally:
        shutil.rmtree(base, ignore_errors=True)
