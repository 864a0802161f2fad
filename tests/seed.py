"""What tests choose by chance: another choice in every run, the same in all processes of one run.

A failing test prints its seed; OBJSTORE_TEST_SEED=... repeats it.
"""

import os
import random

_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID")  # Processes that share the tests must collect the same.
SEED = int(os.environ.get("OBJSTORE_TEST_SEED") or random.Random(_RUN).getrandbits(32))
