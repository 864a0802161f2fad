"""How the configuration reaches the parts that it is about."""

from types import SimpleNamespace
from typing import Any

import pytest

from objstore.blobs.topology import Layout, Spot
from objstore.blobs.writer import DEFAULT_LIMITS
from objstore.config import Blobs, Config, Disks
from objstore.node.disk import DiskState, Usage
from objstore.processes.parts import survey_of, writer_limits
from objstore.processes.spec import disk_options


@pytest.mark.parametrize("seconds", [0.5, 10, 12.5, 30, 60, 600])
def test_a_disk_notices_that_it_is_slow_before_its_writer_gives_it_up(seconds: float) -> None:
    config = Config(disks=Disks(progress_seconds=seconds))
    # A call opens its file and writes to it, under the disk's limit each.
    assert writer_limits(config).deadline_s > 2 * disk_options(config).limit_s
    assert writer_limits(config).deadline_s >= DEFAULT_LIMITS.deadline_s


class RoomOf:
    """A disk that only says how much is free."""

    state = DiskState.HEALTHY

    def __init__(self, free: int) -> None:
        self._free = free

    async def usage(self) -> Usage:
        return Usage(total=1 << 30, free=self._free, device=1)


async def test_a_disk_on_which_no_writer_begins_a_volume_is_surveyed_as_one_that_takes_none() -> None:
    least = writer_limits(Config()).disk_free_min
    disks = {1: RoomOf(least), 2: RoomOf(least - 1)}
    parts: Any = SimpleNamespace(disks=disks, spec=SimpleNamespace(config=Config()))
    layout = Layout(0, {number: Spot(number, 0, 0) for number in disks}, {})
    topology = await survey_of(parts, layout)
    assert {number: spot.takes for number, spot in topology.spots.items()} == {1: True, 2: False}


def test_a_writer_has_the_memory_and_the_sizes_that_are_set() -> None:
    config = Config(
        disks=Disks(reserve_bytes=123), blobs=Blobs(write_memory_bytes=32 << 20, volume_size_max=5 << 20)
    )
    limits = writer_limits(config)
    assert (limits.memory, limits.volume_size, limits.disk_free_min) == (32 << 20, 5 << 20, 123)
    assert writer_limits(Config()).disk_free_min == DEFAULT_LIMITS.disk_free_min
