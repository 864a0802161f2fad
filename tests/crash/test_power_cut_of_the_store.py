"""The real store, its power cut at places all over what it wrote; started again, it has what it promised.

The recording holds every write, sync and rename of all its processes, and every acknowledgement that a
client received. A prefix of it is a moment; the simulated file system says what may survive a power cut then.
The short form tries a few moments, `OBJSTORE_LONG=1` several hundred, half of them right after an
acknowledgement. A moment costs a start: two seconds, more on a busy machine. OBJSTORE_MOMENTS says how many.
"""

import os
import random
import signal
from pathlib import Path

import pytest

from tests.crash import recorder as rec
from tests.crash.recorder import Recorder
from tests.crash.store import Promises, Work, start
from tests.seed import SEED

LONG = bool(os.environ.get("OBJSTORE_LONG"))
MOMENTS = int(os.environ.get("OBJSTORE_MOMENTS", "400" if LONG else "4"))  # While it serves.
EARLY_MOMENTS = max(2, MOMENTS * 3 // 20)  # Before it first said that it was ready.


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rec.build(tmp_path_factory.mktemp("preload"))


@pytest.mark.timeout(6 * 3600 if LONG else 300)
def test_after_a_power_cut_at_any_moment_every_acknowledged_object_is_there(
    library: Path, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    recorder = Recorder(library, tmp_path / "data", tmp_path)
    server = start(tmp_path, recorder, workers=2)
    try:
        recorder.mark("ready")
        work = Work(server, recorder)
        work.make_bucket()
        work.run()
        assert not work.refused, work.refused
        assert work.live.broken(server) == []
    finally:
        server.stop(signal.SIGKILL)

    calls = recorder.calls()
    ready = next(n for n, call in enumerate(calls, 1) if call.kind == rec.MARK and call.data == b"ready")
    # Moments right after an acknowledgement are the hardest, and those around syncs.
    later = range(ready + 1, len(calls) + 1)
    acknowledged = [n for n in later if calls[n - 1].kind == rec.MARK]
    assert len(acknowledged) > 80, "the workload has shrunk"
    moments = {*rng.sample(acknowledged, MOMENTS // 2), *rng.sample(later, MOMENTS - MOMENTS // 2)}
    moments |= set(rng.sample(range(1, ready), EARLY_MOMENTS))
    for length, marks, sim in recorder.replay(lambda length, _: length in moments, rng):
        where = f"cut after call {length} of {len(calls)} ({calls[length - 1]}), seed {SEED}"
        recorder.materialize(sim)
        promises = Promises(marks)
        again = start(tmp_path, workers=1)
        try:
            assert promises.broken(again) == [], f"{where}\n{again.text()[-4000:]}"
            again.boto3().create_bucket(Bucket="after-the-cut")  # It takes writes, too.
        finally:
            again.stop(signal.SIGKILL)
