"""The real store while the kernel refuses: EIO at call N, and no space at call N (T7 and T8 of the plan).

Whatever fails, nothing is acknowledged that is not durable: after the failure the power goes too, and what
was promised must be there. N counts over all processes. The short form tries one N for some kinds of failure,
`OBJSTORE_LONG=1` every N for all kinds: about 770 process trees, some hours. OBJSTORE_CALLS=10 with it tries
ten N of each kind, one of every tenth of the calls: all kinds at all stages, in ten minutes.
"""

import errno
import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.crash import recorder as rec
from tests.crash.recorder import Recorder
from tests.crash.store import Promises, Work, start
from tests.seed import SEED
from tests.server import Server

LONG = bool(os.environ.get("OBJSTORE_LONG"))
N_MAX = 150  # The workload makes more syncs and writes than this,
NAMES_MAX = 20  # more names,
DISK_MAX = 4  # and more calls on the one disk.
NUMBERS = int(os.environ.get("OBJSTORE_CALLS", str(N_MAX) if LONG else "1"))  # N of each kind of failure.
FOREVER = (1 << 64) - 1

# What fails: kinds of calls, the paths, for how many calls, and the errno.
FAILURES = {
    "one sync": ([rec.SYNC], "", 1, errno.EIO),
    "one write": ([rec.WRITE], "", 1, errno.EIO),
    "one name": ([rec.CREATE, rec.RENAME, rec.UNLINK], "", 1, errno.EIO),
    "all syncs from then on": ([rec.SYNC], "", FOREVER, errno.EIO),
    "everything of one disk": ([rec.SYNC, rec.WRITE, rec.CREATE, rec.RENAME], "/disk3/", FOREVER, errno.EIO),
    "space for one write": ([rec.WRITE], "", 1, errno.ENOSPC),
    "space everywhere": ([rec.WRITE, rec.CREATE], "", FOREVER, errno.ENOSPC),
}
SHORT = ("one sync", "all syncs from then on", "space everywhere")  # One process tree each: a few seconds.


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rec.build(tmp_path_factory.mktemp("preload"))


def cases() -> list[tuple[str, int]]:
    """Each failure with NUMBERS different N, one out of each of as many equal parts of the calls."""
    rng = random.Random(f"{SEED} cases")
    chosen = []
    for name in FAILURES if LONG else SHORT:
        calls = {"one name": NAMES_MAX, "everything of one disk": DISK_MAX}.get(name, N_MAX)
        parts = min(NUMBERS, calls)
        edges = [part * calls // parts for part in range(parts + 1)]
        chosen += [(name, rng.randint(begin + 1, end)) for begin, end in pairwise(edges)]
    return chosen


@pytest.mark.timeout(6 * 3600 if LONG else 300)
@pytest.mark.parametrize(("failure", "first"), cases())
def test_a_call_that_fails_is_never_taken_for_a_durable_one(
    library: Path, tmp_path: Path, failure: str, first: int
) -> None:
    print(f"seed {SEED}")
    kinds, only, count, number = FAILURES[failure]
    rng = random.Random(f"{SEED} {failure} {first}")
    recorder = Recorder(library, tmp_path / "data", tmp_path)
    server = start(tmp_path, recorder, workers=2)
    where = f"{failure}, call {first}, seed {SEED}"
    try:
        everything = count == FOREVER and not only
        # Where all of it fails there is nothing to wait for: no answer within some seconds is no promise.
        limits = {"refusals_max": 5, "timeout_s": 3.0} if everything else {}
        work = Work(server, recorder, large=False, **limits)
        work.make_bucket()
        recorder.fail(kinds, number, first=first, last=min(FOREVER, first + count - 1), only=only)
        work.run()
        assert recorder.failed, f"nothing failed: {recorder.counted} calls counted; {where}"
        print(f"{where}: slowest {work.slowest_s:.1f} s, refused {work.refused[:4]}")
        if not everything:
            # One disk or one call: others carry on. A few requests may be refused, not most.
            assert work.live.acknowledged > 10, f"{where}: {work.refused[:5]}"
        # While it goes on serving, every byte that it gives out is right.
        serving = [words for words in work.live.broken(server) if "other bytes" in words]
        assert serving == [], where
    finally:
        server.stop(signal.SIGKILL)
        recorder.heal()

    length, marks, sim = list(recorder.replay(_last(recorder), rng))[-1]
    recorder.materialize(sim)
    again = start(tmp_path, workers=1)
    try:
        assert Promises(marks).broken(again) == [], f"{where}\n{again.text()[-6000:]}"
        assert length == len(recorder.calls())
    finally:
        again.stop(signal.SIGKILL)


def _last(recorder: Recorder):  # type: ignore[no-untyped-def]
    end = len(recorder.calls())
    return lambda length, _: length == end


@pytest.mark.timeout(300)
def test_a_store_without_space_reads_and_deletes_and_writes_again_when_there_is_some(
    library: Path, tmp_path: Path
) -> None:
    recorder = Recorder(library, tmp_path / "data", tmp_path)
    server = start(tmp_path, recorder, workers=2)
    try:
        work = Work(server, recorder, rounds=1, large=False)
        work.make_bucket()
        work.run()
        assert work.refused == []
        s3 = server.boto3(read_timeout=60)
        recorder.fail([rec.WRITE, rec.CREATE], errno.ENOSPC, only="/fragments/")
        with pytest.raises(s3.exceptions.ClientError) as refused:
            s3.put_object(Bucket="crash", Key="too-much", Body=b"x" * 200_000)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in (503, 507)
        assert work.live.broken(server) == []
        s3.delete_object(Bucket="crash", Key="small-0-stays")
        with pytest.raises(s3.exceptions.NoSuchKey):
            s3.get_object(Bucket="crash", Key="small-0-stays")
        recorder.heal()
        await_space(server)
        assert s3.get_object(Bucket="crash", Key="more")["Body"].read() == b"y" * 200_000
    finally:
        server.stop(signal.SIGKILL)


def await_space(server: Server, limit_s: float = 60.0) -> None:
    """Until a write succeeds again: the disks look around once a second while they are full."""
    s3 = server.boto3(read_timeout=60)
    deadline = time.monotonic() + limit_s
    while True:
        try:
            s3.put_object(Bucket="crash", Key="more", Body=b"y" * 200_000)
            return
        except s3.exceptions.ClientError as failure:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"no write after {limit_s} s: {failure}\n{server.text()[-4000:]}"
                ) from None
            time.sleep(0.05)
