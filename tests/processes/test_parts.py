"""How the configuration reaches the parts that it is about."""

import pytest

from objstore.blobs.writer import DEFAULT_LIMITS
from objstore.config import Blobs, Config, Disks
from objstore.processes.parts import writer_limits
from objstore.processes.spec import disk_options


@pytest.mark.parametrize("seconds", [0.5, 10, 12.5, 30, 60, 600])
def test_a_disk_notices_that_it_is_slow_before_its_writer_gives_it_up(seconds: float) -> None:
    config = Config(disks=Disks(progress_seconds=seconds))
    # A call opens its file and writes to it, under the disk's limit each.
    assert writer_limits(config).deadline_s > 2 * disk_options(config).limit_s
    assert writer_limits(config).deadline_s >= DEFAULT_LIMITS.deadline_s


def test_a_writer_has_the_memory_and_the_sizes_that_are_set() -> None:
    config = Config(
        disks=Disks(reserve_bytes=123), blobs=Blobs(write_memory_bytes=32 << 20, volume_size_max=5 << 20)
    )
    limits = writer_limits(config)
    assert (limits.memory, limits.volume_size, limits.disk_free_min) == (32 << 20, 5 << 20, 123)
    assert writer_limits(Config()).disk_free_min == DEFAULT_LIMITS.disk_free_min
