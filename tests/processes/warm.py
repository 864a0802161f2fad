"""A cluster whose nodes begin in milliseconds: forked from a process that has imported everything.

Starting Python and importing cost a node about 0.7 s of CPU. Tests that start thousands use `WarmCluster`: a
node is the same code with the same arguments and environment, in a session of its own, and dies by SIGKILL
like any other; it only skips the imports.

The warm process runs no thread and no loop: so it may fork. Requests and answers are one JSON line each.
"""

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import objstore.processes
from objstore.processes.dev import LocalCluster, Process, Running
from objstore.processes.supervisor import die_with_parent


class Forked:
    """A process of the warm one, held by a descriptor: its id cannot come to mean another's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> object:
        return self._ended(0.0) or None

    def wait(self, timeout: float | None = None) -> object:
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return True

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, sig: int) -> None:
        if not self._ended(0.0):
            signal.pidfd_send_signal(self._descriptor, sig)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def _ended(self, seconds: float | None) -> bool:
        return bool(select.select([self._descriptor], [], [], seconds)[0])


class Warm:
    """The process that has imported everything. `close` ends it, and whatever it still runs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.warm"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = {"arguments": [*arguments], "environment": {**environment}, "log": str(log)}
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the warm process has ended"
        return Forked(int(answer))

    def close(self) -> None:
        self._process.communicate(timeout=30)


@dataclass(slots=True, kw_only=True)
class WarmCluster(LocalCluster):
    """The gateway is started as ever."""

    warm: Warm = field(default_factory=Warm)

    def close(self) -> None:
        try:
            LocalCluster.close(self)
        finally:
            self.warm.close()

    def _launch(self, process: Process, arguments: Sequence[str], environment: Mapping[str, str]) -> Running:
        if process in self.gateways:
            return LocalCluster._launch(self, process, arguments, environment)
        return self.warm.start(arguments, environment, process.log)


def serve() -> None:
    """In the warm process: fork for each line until there are no more."""
    for module in pkgutil.iter_modules(objstore.processes.__path__, "objstore.processes."):
        importlib.import_module(module.name)
    importlib.import_module("objstore.cli.main")
    gc.collect()
    gc.freeze()
    own = os.getpid()
    for line in sys.stdin:
        _reap()  # Not earlier: until then an id is its process's, which the test holds by a descriptor now.
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line), own)
        print(pid, flush=True)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _become(wanted: dict[str, Any], parent: int) -> None:
    """In the new process: live as the command. Never returns."""
    code: object = 70  # EX_SOFTWARE
    try:
        die_with_parent(parent)
        os.setsid()
        words = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (words, 1), (words, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        sys.argv = ["objstore", *wanted["arguments"]]
        importlib.import_module("objstore.cli.main").run()
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()
