"""The recorder itself: it sees every call, in order, and fails the very one it was told to."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import recorder as rec
from tests.crash.recorder import Call, Recorder

PROGRAM = """
import os, shutil, sys
root = sys.argv[1]
os.mkdir(root + "/d")
fd = os.open(root + "/d/a", os.O_RDWR | os.O_CREAT)
os.pwritev(fd, [b"one", b"two"], 3)
os.write(fd, b"0123")
os.fdatasync(fd)
os.pwritev(fd, [b"synced"], 10, os.RWF_DSYNC)
os.ftruncate(fd, 5)
os.rename(root + "/d/a", root + "/b")
os.fsync(os.open(root, os.O_RDONLY))
with open(root + "/c", "w") as file:
    file.write("buffered")
os.link(root + "/c", root + "/e")
shutil.copyfile(root + "/c", root + "/f")
os.unlink(root + "/c")
os.rmdir(root + "/d")
open("/dev/null", "w").write("elsewhere")
here = os.open(root, os.O_RDONLY)
os.mkdir("g", dir_fd=here)
if os.fork() == 0:
    os.pwrite(fd, b"child", 0)
    os._exit(0)
os.wait()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rec.build(tmp_path_factory.mktemp("preload"))


@pytest.fixture
def recorder(library: Path, tmp_path: Path) -> Recorder:
    (tmp_path / "data").mkdir()
    return Recorder(library, tmp_path / "data", tmp_path)


def run(recorder: Recorder, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(recorder.root)],
        env=recorder.environment(),
        timeout=60,
        capture_output=True,
        text=True,
    )


def test_every_kind_of_call_is_recorded_in_order_with_its_bytes(recorder: Recorder) -> None:
    assert run(recorder, PROGRAM).stderr == ""
    assert recorder.calls() == [
        Call(rec.MKDIR, "d", "", 0, False, b""),
        Call(rec.CREATE, "d/a", "", 0, False, b""),
        Call(rec.WRITE, "d/a", "", 3, False, b"onetwo"),
        Call(rec.WRITE, "d/a", "", 0, False, b"0123"),
        Call(rec.SYNC, "d/a", "", 0, False, b""),
        Call(rec.WRITE, "d/a", "", 10, True, b"synced"),
        Call(rec.CUT, "d/a", "", 5, False, b""),
        Call(rec.RENAME, "d/a", "b", 0, False, b""),
        Call(rec.SYNC, "", "", 0, False, b""),
        Call(rec.CREATE, "c", "", 1, False, b""),
        Call(rec.WRITE, "c", "", 0, False, b"buffered"),
        Call(rec.LINK, "c", "e", 0, False, b""),
        Call(rec.CREATE, "f", "", 1, False, b""),
        Call(rec.WRITE, "f", "", 0, False, b"buffered"),
        Call(rec.UNLINK, "c", "", 0, False, b""),
        Call(rec.RMDIR, "d", "", 0, False, b""),
        Call(rec.MKDIR, "g", "", 0, False, b""),
        Call(rec.WRITE, "b", "", 0, False, b"child"),
    ]


def test_the_whole_log_replayed_is_what_lies_on_the_disk(recorder: Recorder) -> None:
    run(recorder, PROGRAM)

    def content() -> dict[str, bytes | None]:
        return {
            str(path.relative_to(recorder.root)): path.read_bytes() if path.is_file() else None
            for path in recorder.root.rglob("*")
        }

    real = content()
    assert real["b"] == b"child"
    # Everything survives in some world: look for it.
    for seed in range(300):
        *_, (_, _, sim) = recorder.replay(lambda length, call: True, random.Random(seed))
        recorder.materialize(sim)
        if content() == real:
            return
    raise AssertionError("in no world did everything survive")


def test_a_prefix_keeps_what_was_synced_in_it_and_its_marks(recorder: Recorder) -> None:
    program = """
import os, sys
root = sys.argv[1]
fd = os.open(root + "/a", os.O_RDWR | os.O_CREAT)
os.fsync(os.open(root, os.O_RDONLY))
for number in range(4):
    os.pwrite(fd, b"%d" % number * 5000, number * 5000)
    os.fdatasync(fd)
"""
    recorder.mark("before")
    run(recorder, program)
    recorder.mark("after")
    syncs = 0
    for length, marks, sim in recorder.replay(lambda length, call: True, random.Random(1)):
        call = recorder.calls()[length - 1]
        syncs += call.kind == rec.SYNC
        assert marks == (["before", "after"] if call.data == b"after" else ["before"])
        files = dict(sim.tree("/data"))
        if syncs:
            expected = b"".join(b"%d" % number * 5000 for number in range(syncs - 1))
            assert (files["a"] or b"").startswith(expected)


def test_what_was_there_before_the_recording_is_durable(library: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (root / "sub/old").write_bytes(b"old")
    recorder = Recorder(library, root, tmp_path)
    run(recorder, "import os, sys; os.unlink(sys.argv[1] + '/sub/old')")
    worlds = {
        dict(sim.tree("/data")).get("sub/old")
        for seed in range(30)
        for _, _, sim in recorder.replay(lambda length, call: True, random.Random(seed))
    }
    assert worlds == {None, b"old"}  # The unlink was not synced: it may be undone.


def test_exactly_the_calls_that_were_named_fail(recorder: Recorder) -> None:
    program = """
import os, sys
fd = os.open(sys.argv[1] + "/a", os.O_RDWR | os.O_CREAT)
for number in range(6):
    try:
        os.pwrite(fd, b"x", number)
        print("ok", end=" ")
    except OSError as failure:
        print(failure.errno, end=" ")
os.fsync(fd)
"""
    recorder.fail([rec.WRITE], errno.ENOSPC, first=3, last=4)
    assert run(recorder, program).stdout == f"ok ok {errno.ENOSPC} {errno.ENOSPC} ok ok "
    assert (recorder.counted, recorder.failed) == (6, 2)
    assert recorder.last_failed_path.endswith("/a")
    assert (recorder.root / "a").read_bytes() == b"xx\0\0xx"
    recorder.fail([rec.WRITE], errno.EIO, only="/elsewhere/")
    assert run(recorder, program).stdout == "ok " * 6
    recorder.fail([rec.SYNC], errno.EIO)
    assert "Errno 5" in run(recorder, program).stderr
    recorder.heal()
    assert run(recorder, program).stderr == ""


def test_a_call_may_also_fail_after_it_was_done(recorder: Recorder) -> None:
    recorder.fail([rec.RENAME, rec.CREATE], errno.EIO, first=2, before=False)
    result = run(
        recorder,
        "import os, sys; r = sys.argv[1]; open(r + '/a', 'w').close(); os.rename(r + '/a', r + '/b')",
    )
    assert "Errno 5" in result.stderr
    assert sorted(os.listdir(recorder.root)) == ["b"]


def test_a_synced_write_counts_as_a_sync(recorder: Recorder) -> None:
    recorder.fail([rec.SYNC], errno.EIO, first=2, last=2)
    program = """
import os, sys
fd = os.open(sys.argv[1] + "/a", os.O_RDWR | os.O_CREAT)
os.pwritev(fd, [b"x"], 0, os.RWF_DSYNC)
os.pwritev(fd, [b"y"], 1)
os.pwritev(fd, [b"z"], 2, os.RWF_DSYNC)
"""
    assert "Errno 5" in run(recorder, program).stderr
    assert recorder.failed == 1


def test_nothing_is_recorded_or_failed_outside_of_the_root(recorder: Recorder, tmp_path: Path) -> None:
    recorder.fail([rec.WRITE, rec.CREATE], errno.EIO)
    other = tmp_path / "database"  # Begins like the root's name.
    other.mkdir()
    shutil.rmtree(other)
    program = f"import os; os.mkdir({str(other)!r}); open({str(other / 'x')!r}, 'w').write('fine')"
    assert run(recorder, program).stderr == ""
    assert (other / "x").read_text() == "fine"
    assert recorder.calls() == []


def test_the_cuts_that_suffice_stand_before_each_call_that_takes_a_possible_state_away() -> None:
    page = b"x" * 4096

    def write(path: str, position: int, *, synced: bool = False) -> Call:
        return Call(rec.WRITE, path, "", position, synced, page)

    calls = [
        Call(rec.CREATE, "a", "", 0, False, b""),
        write("a", 0),
        write("a", 4096),
        Call(rec.MARK, "", "", 0, False, b"done"),
        Call(rec.SYNC, "a", "", 0, False, b""),  # 4: the writes can no longer be lost.
        Call(rec.SYNC, "", "", 0, False, b""),  # Nothing since.
        write("a", 0),
        write("b", 0),
        write("a", 0),  # 8: what the page was between is lost.
        Call(rec.MARK, "", "", 0, False, b"try"),  # 9: a promise is weaker afterwards.
        write("a", 8192, synced=True),  # 10: surely there from now on.
        Call(rec.MARK, "", "", 0, False, b"done"),
        Call(rec.CUT, "b", "", 100, False, b""),  # 12: the page is whole or gone, never again half.
        Call(rec.RENAME, "b", "c", 0, False, b""),
    ]
    assert rec.distinct_cuts(calls, lambda mark: mark.data == b"try") == [4, 8, 9, 10, 12, 14]


def test_a_file_is_the_same_under_all_its_names_and_another_one_when_it_was_made_anew() -> None:
    page = b"x" * 4096

    def write(path: str) -> Call:
        return Call(rec.WRITE, path, "", 0, False, page)

    def name(kind: int, path: str, other: str = "", *, cuts: bool = False) -> Call:
        return Call(kind, path, other, int(cuts), False, b"")

    def found(*calls: Call) -> list[int]:
        return rec.distinct_cuts(calls, lambda mark: False)

    assert found(write("b"), write("b")) == [1, 2]
    assert found(write("b"), name(rec.RENAME, "b", "c"), write("c")) == [2, 3]
    assert found(write("b"), name(rec.RENAME, "b", "c"), write("b")) == [3]
    assert found(write("d/b"), name(rec.RENAME, "d", "e"), write("e/b")) == [2, 3]
    assert found(write("b"), name(rec.LINK, "b", "c"), write("c")) == [2, 3]
    assert found(write("b"), name(rec.LINK, "b", "c"), name(rec.UNLINK, "b"), write("c")) == [3, 4]
    assert found(write("b"), name(rec.UNLINK, "b"), write("b")) == [3]
    assert found(write("b"), write("c"), name(rec.RENAME, "b", "c"), write("c")) == [3, 4]
    assert found(write("b"), name(rec.RENAME, "b", "c"), name(rec.SYNC, "c"), write("c")) == [2, 4]
    assert found(write("b"), name(rec.CREATE, "b", cuts=True), write("c")) == [1, 3]


def test_of_the_cuts_that_suffice_one_leaves_what_any_other_one_leaves(library: Path, tmp_path: Path) -> None:
    program = """
import os, random, sys
rng = random.Random(int(sys.argv[2]))
os.chdir(sys.argv[1])
files = [os.open(name, os.O_RDWR) for name in "ab"]
for number in range(10):
    fd = rng.choice(files)
    act = rng.randrange(4)
    if act == 0:
        os.fdatasync(fd)
    else:
        os.pwritev(fd, [bytes([65 + number]) * 100], 4096 * rng.randrange(2), os.RWF_DSYNC * (act == 1))
"""
    for seed in range(4):
        directory = tmp_path / str(seed)
        (directory / "data").mkdir(parents=True)
        for name in "ab":  # Their sizes stay: there are too many that may be left to try them all.
            (directory / "data" / name).write_bytes(bytes(8192))
        recorder = Recorder(library, directory / "data", directory)
        subprocess.run(
            [sys.executable, "-c", program, str(recorder.root), str(seed)],
            env=recorder.environment(),
            check=True,
            timeout=60,
        )
        calls = recorder.calls()
        cuts = rec.distinct_cuts(calls, lambda mark: False)
        assert 0 < len(cuts) < len(calls)
        left: dict[bool, set[str]] = {True: set(), False: set()}
        for chance in range(300):
            places = recorder.replay(lambda length, call: True, random.Random(f"{seed} {chance}"))
            for length, _, sim in places:
                pages = [
                    content[at : at + 1] for _, content in sim.tree("/data") if content for at in (0, 4096)
                ]
                left[length in cuts].add(str(pages))
        assert len(left[True]) > 5
        assert left[False] <= left[True], f"seed {seed}: {left[False] - left[True]}"
