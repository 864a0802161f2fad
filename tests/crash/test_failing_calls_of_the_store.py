"""The real store while the kernel refuses: EIO at call N, and no space at call N (T7 and T8 of the plan).

Whatever fails, nothing is acknowledged that is not durable: after the failure the power goes too, and what
was promised must be there. N counts over all processes. The short form tries one N for some kinds of failure,
`OBJSTORE_LONG=1` all kinds, each with every N up to the calls that the work makes in a run in which nothing
fails: some 1,700 process trees, about two hours of two cores. What is done once shows as much at each N as
what is done twice. OBJSTORE_CALLS=10 with it tries ten N of each kind, one of every tenth of the calls: all
kinds at all stages, in some minutes.
"""

import errno
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.crash import recorder as rec
from tests.crash.recorder import Recorder
from tests.crash.store import Promises, Work, spread, start
from tests.seed import SEED
from tests.server import Server

NUMBERS = int(os.environ.get("OBJSTORE_CALLS", "0"))  # N of each kind of failure; 0: every one.
FEW = 100  # The short form's N is one of these.
AGAIN_MAX = 20  # Times that the work is done again until it has made N calls: group commits share them.
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


@pytest.fixture(scope="module")
def calls_made(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many calls of each kind of failure the work makes when none of them fails."""
    directory = tmp_path_factory.mktemp("counted")
    recorder = Recorder(library, directory / "data", directory)
    server = start(directory, recorder, workers=2)
    try:
        work = Work(server, recorder, rounds=1, large=False)
        work.make_bucket()
        recorder.mark("begun")
        work.run()
        recorder.mark("ended")
        assert work.refused == []
    finally:
        server.stop(signal.SIGKILL)
    calls = recorder.calls()
    marks = {call.data: index for index, call in enumerate(calls) if call.kind == rec.MARK}
    calls = calls[marks[b"begun"] : marks[b"ended"]]
    return {
        name: sum(_matches(call, kinds) and only in f"/{call.path}" for call in calls)
        for name, (kinds, only, _, _) in FAILURES.items()
    }


def _matches(call: rec.Call, kinds: list[int]) -> bool:
    return call.kind in kinds or (call.synced and rec.SYNC in kinds)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("failure", SHORT)
def test_a_call_that_fails_is_never_taken_for_a_durable_one(
    library: Path, tmp_path: Path, failure: str
) -> None:
    print(f"seed {SEED}")
    fail_one(library, tmp_path, failure, random.Random(f"{SEED} {failure}").randint(1, FEW))


@pytest.mark.long  # Thousands of process trees.
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("failure", FAILURES)
def test_no_call_that_fails_is_ever_taken_for_a_durable_one(
    library: Path, tmp_path: Path, failure: str, calls_made: dict[str, int]
) -> None:
    """Every N: those that break a promise are told together, at the end."""
    calls = calls_made[failure]
    assert calls > 0
    rng = random.Random(f"{SEED} {failure}")
    numbers = spread(range(1, calls + 1), NUMBERS or calls, rng)
    print(f"seed {SEED}: {failure}, {len(numbers)} of {calls} calls")
    broken: list[str] = []
    for first in numbers:
        directory = tmp_path / str(first)
        directory.mkdir()
        try:
            fail_one(library, directory, failure, first)
        except AssertionError as why:
            broken.append(f"call {first}: {why}")
            print(broken[-1])
        else:
            shutil.rmtree(directory)
    assert not broken, f"{len(broken)} of {len(numbers)}: {broken[:3]}"


def fail_one(library: Path, tmp_path: Path, failure: str, first: int) -> None:
    """Let call `first` fail in this manner while clients work, cut the power, and look at what is left."""
    kinds, only, count, number = FAILURES[failure]
    rng = random.Random(f"{SEED} {failure} {first}")
    recorder = Recorder(library, tmp_path / "data", tmp_path)
    server = start(tmp_path, recorder, workers=2)
    where = f"{failure}, call {first}, seed {SEED}"
    try:
        everything = count == FOREVER and not only
        # Where all of it fails there is nothing to wait for: no answer within some seconds is no promise.
        limits: dict[str, Any] = {"refusals_max": 5, "timeout_s": 3.0} if everything else {}
        work = Work(server, recorder, rounds=1, large=False, **limits)
        work.make_bucket()
        recorder.fail(kinds, number, first=first, last=min(FOREVER, first + count - 1), only=only)
        for _ in range(AGAIN_MAX):
            work.run()
            if recorder.failed:
                break
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
