"""Memory goes back to the system."""

import gc

from objstore.processes.memory import private_bytes, trim

MIB = 1024 * 1024


def test_memory_that_small_things_pin_in_the_heap_goes_back_to_the_system() -> None:
    before = private_bytes()
    large, small = [], []
    for _ in range(2_000):
        large.append(b"x" * 100_000)  # Below the size from which malloc maps each piece by itself.
        small.append(b"y" * 1_000)
    assert private_bytes() - before > 150 * MIB
    large.clear()
    trim()
    assert private_bytes() - before < 50 * MIB
    assert len(small) == 2_000


def test_memory_that_cycles_hold_goes_back_to_the_system() -> None:
    before = private_bytes()
    small = []
    gc.disable()
    try:
        for _ in range(2_000):
            cycle: list[object] = [b"x" * 100_000]
            cycle.append(cycle)
            small.append(b"y" * 1_000)
        del cycle
        assert private_bytes() - before > 150 * MIB
        trim()
        assert private_bytes() - before < 50 * MIB
    finally:
        gc.enable()
    assert len(small) == 2_000
