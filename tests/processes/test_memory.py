"""Memory goes back to the system: shown in a process of its own, whose heap nobody has used before."""

import subprocess
import sys

import pytest

PROGRAM = """
import gc
from objstore.processes.memory import private_bytes, trim

MIB = 1024 * 1024
gc.disable()
before = private_bytes()
large, small = [], []
for _ in range(2_000):
    buffer = b"x" * 100_000  # Below the size from which malloc maps each piece by itself.
    {keep}
    small.append(b"y" * 1_000)  # It pins the heap.
del buffer
assert private_bytes() - before > 150 * MIB, "nothing to give back"
large.clear()
trim()
assert private_bytes() - before < 50 * MIB, (private_bytes() - before) // MIB
assert len(small) == 2_000
"""


@pytest.mark.parametrize(
    "keep",
    ["large.append(buffer)", "cycle = [buffer]; cycle.append(cycle); del cycle"],
    ids=["between small things", "in cycles"],
)
def test_large_buffers_that_nobody_uses_any_more_go_back_to_the_system(keep: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


PAGES = """
import resource
from objstore.processes.memory import keep_pieces

def page():
    text = "x" * 300_000
    encoded = text.encode()
    return len(b"".join((b"head", encoded)))

keep_pieces()
page()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    page()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_answers_of_some_hundred_kilobytes_use_the_same_memory_again() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_000  # Page faults. Without: three times 74 pages of 4 KiB, a hundred times.
