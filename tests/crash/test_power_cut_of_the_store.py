"""The real store, its power cut at places all over what it wrote; started again, it has what it promised.

The recording holds every write, sync and rename of all its processes, and every acknowledgement that a
client received. A prefix of it is a moment; the simulated file system says what may survive a power cut then.
`OBJSTORE_LONG=1` tries every prefix but those that leave nothing that another one does not leave
(recorder.py's distinct_cuts says why), and lets the store compact its volumes while it is recorded: some
hundreds of moments, each of which costs a start, two seconds and more on a busy machine. OBJSTORE_MOMENTS=50
with it tries fifty of them, one of each fiftieth of the recording. The short form tries four.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.crash import recorder as rec
from tests.crash.recorder import Call, Recorder, distinct_cuts
from tests.crash.store import COMPACTING, Promises, Work, compact, spread, start
from tests.seed import SEED

LONG = bool(os.environ.get("OBJSTORE_LONG"))
MOMENTS = int(os.environ.get("OBJSTORE_MOMENTS", "0" if LONG else "4"))  # 0: all of them.


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
    server = start(tmp_path, recorder, workers=2, variables=COMPACTING if LONG else None)
    try:
        recorder.mark("ready")
        work = Work(server, recorder)
        work.make_bucket()
        work.run()
        assert not work.refused, work.refused
        if LONG:
            compact(server)
        assert work.live.broken(server) == []
    finally:
        server.stop(signal.SIGKILL)

    calls = recorder.calls()
    ready = next(n for n, call in enumerate(calls, 1) if call.kind == rec.MARK and call.data == b"ready")
    assert Promises(marks_of(calls)).acknowledged > 60, "the workload has shrunk"
    cuts = distinct_cuts(calls, weakens)
    early, later = [n for n in cuts if n <= ready], [n for n in cuts if n > ready]
    print(
        f"{len(calls)} calls, {len(early)} moments before the store was ready, {len(later)} while it served"
    )
    if MOMENTS:
        early, later = spread(early, max(2, MOMENTS * 3 // 20), rng), spread(later, MOMENTS, rng)
    moments = {*early, *later}
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


def marks_of(calls: list[Call]) -> list[str]:
    return [call.data.decode() for call in calls if call.kind == rec.MARK]


def weakens(mark: Call) -> bool:
    """A request begins: what was there before need not stay."""
    words = mark.data.decode()
    return words.startswith("[") and json.loads(words)[0] == "try"
