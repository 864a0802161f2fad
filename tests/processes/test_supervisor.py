"""What the supervisor does with its children, shown by children that do nothing but live."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.server import ROOT, wait_gone


class Little:
    def __init__(self, directory: Path, mood: str) -> None:
        self.directory = directory
        self.output = directory / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.little_store", str(directory), mood],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, what: Callable[[], Any], seconds: float = 60) -> Any:
        limit = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < limit, self.output.read_text()
            time.sleep(0.01)
        return found

    def ready(self) -> None:
        self.until(lambda: "READY" in self.output.read_text())

    def children(self) -> dict[str, dict[str, Any]]:
        children: dict[str, dict[str, Any]] = json.loads((self.directory / "state.json").read_text())[
            "children"
        ]
        return children

    def replaced(self, name: str, pid: int) -> None:
        self.until(lambda: self.children()[name]["pid"] not in (0, pid) and self.children()[name]["ready"])

    def events(self) -> list[str]:
        return (self.directory / "events").read_text().split()


@pytest.fixture
def little(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Little]:
    store = Little(tmp_path, getattr(request, "param", "well"))
    yield store
    store.process.kill()
    store.process.wait()


def test_the_committer_is_ready_before_anyone_else_starts_and_stops_last(little: Little) -> None:
    little.ready()
    little.process.terminate()
    assert little.process.wait(60) == 0
    events = little.events()
    events.remove("knows-0")
    assert events[0] == "start-committer"
    assert sorted(events[1:4]) == ["start-upkeep", "start-worker-1", "start-worker-2"]
    assert sorted(events[4:7]) == ["stop-upkeep", "stop-worker-1", "stop-worker-2"]
    assert events[7] == "stop-committer"
    assert not (little.directory / "state.json").exists()


@pytest.mark.parametrize("name", ["committer", "worker-2", "upkeep"])
def test_a_child_that_dies_is_replaced_and_the_others_live_on(little: Little, name: str) -> None:
    little.ready()
    before = little.children()
    os.kill(before[name]["pid"], signal.SIGKILL)
    little.replaced(name, before[name]["pid"])
    after = little.children()
    assert {n: c["pid"] for n, c in after.items() if n != name} == {
        n: c["pid"] for n, c in before.items() if n != name
    }
    assert after[name]["restarts"] == 1


@pytest.mark.parametrize("little", ["deaf"], indirect=True)
def test_a_worker_whose_loop_hangs_is_killed_and_replaced(little: Little) -> None:
    little.ready()
    deaf = little.children()["worker-1"]["pid"]
    little.replaced("worker-1", deaf)
    assert "silent" in little.output.read_text()


@pytest.mark.parametrize("little", ["waits"], indirect=True)
def test_why_a_child_ended_and_what_it_waits_for_is_told_until_it_is_ready(little: Little) -> None:
    def told(words: str, ready: bool, crashed: bool) -> bool:
        committer = little.children()["committer"]
        return (committer["words"], committer["ready"], committer["crashed"]) == (words, ready, crashed)

    little.ready()
    assert told("", True, False)
    for file, words in (
        ("bug", "RuntimeError: at /a/path"),
        ("fail", "too few disks"),
        ("tell", "waiting for disks"),
        ("go", ""),
    ):
        (little.directory / file).touch()
        little.until(partial(told, words, file == "go", file == "bug"))
    assert "committer: waiting for disks" in little.output.read_text()


def test_no_child_outlives_a_supervisor_that_is_killed(little: Little) -> None:
    little.ready()
    pids = [child["pid"] for child in little.children().values()]
    little.process.kill()
    little.process.wait()
    wait_gone(pids)


@pytest.mark.parametrize("little", ["broken"], indirect=True)
def test_a_child_that_never_starts_ends_the_start_with_an_error(little: Little) -> None:
    assert little.process.wait(60) == 1
    output = little.output.read_text()
    assert "worker-1 does not start" in output
    assert "does not start" in output
    assert "READY" not in output


@pytest.mark.parametrize("little", ["shut-out"], indirect=True)
def test_a_committer_that_was_shut_out_ends_the_store_and_is_not_started_again(little: Little) -> None:
    assert little.process.wait(60) == 1
    assert "another machine is here" in little.output.read_text()
    events = little.events()
    assert events.count("start-committer") == 1
    assert {"stop-upkeep", "stop-worker-1", "stop-worker-2"} <= set(events)


@pytest.mark.parametrize("little", ["changes"], indirect=True)
def test_a_change_of_disks_while_the_committer_starts_anew_reaches_it_too(little: Little) -> None:
    little.ready()
    little.until(lambda: "knows-2" in little.events())
    known = [event for event in little.events() if event.startswith("knows")]
    assert known == ["knows-0", "knows-1", "knows-2"]
    little.until(lambda: little.children()["committer"]["ready"])


@pytest.mark.parametrize("little", ["clings"], indirect=True)
def test_a_committer_that_does_not_end_to_be_started_anew_is_killed(little: Little) -> None:
    little.ready()
    little.until(lambda: "knows-1" in little.events())
    little.until(lambda: little.children()["committer"]["ready"])
    assert "stop-committer" not in little.events()


@pytest.mark.parametrize("little", ["drains"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_the_whole_group_still_stops_in_order(little: Little, number: int) -> None:
    little.ready()
    os.killpg(little.process.pid, number)  # As a terminal does, or `timeout`.
    assert little.process.wait(60) == 0
    events = little.events()
    assert {"stop-upkeep", "stop-worker-1", "stop-worker-2"} <= set(events)
    assert events[-1] == "stop-committer"
