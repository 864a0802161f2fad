"""docs/operations.md as a program: its blocks, and a machine on which they run as they stand.

Paths and ports are moved into a directory of the test and to free ports of the loopback. `systemctl` is
played by this module: a unit's ExecStart is what is started, with its EnvironmentFile if there is one.
Everything else a block says is run by bash.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.deploy.files import CONFIG, ROOT, free_port
from tests.server import environment_for

PAGE = ROOT / "docs/operations.md"
READY_SECONDS = 120.0
STOP_SECONDS = 120.0
BLOCK_SECONDS = 300.0  # A busy machine.
LOG_SIZE = 8_000  # Shown of each service's log when a procedure fails.


class Block(NamedTuple):
    heading: str
    run: str  # "": shown only; "one machine"; "cluster".
    language: str
    text: str


def blocks(page: Path = PAGE) -> list[Block]:
    """Every fenced block of a page, in its order."""
    found: list[Block] = []
    heading = run = language = ""
    lines: list[str] | None = None
    for line in page.read_text().splitlines():
        if lines is not None:
            if line == "```":
                found.append(Block(heading, run, language, "\n".join(lines) + "\n"))
                lines, run = None, ""
            else:
                lines.append(line)
        elif line.startswith("```"):
            language, lines = line[3:], []
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("▶"):
            run = line[1:].strip() or "one machine"
    return found


SHIM = """#!{python}
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as us:
    us.connect({socket!r})
    us.sendall(json.dumps([{what!r}, *sys.argv[1:]]).encode() + b"\\n")
    code, _, words = us.makefile().read().partition(" ")
print(words, end="", file=sys.stderr)
sys.exit(int(code))
"""
WRAPPER = """#!/bin/sh
case "$1" in
  serve | gateway) exec {foreground} "$@" ;;
  node) case "$2" in "" | -*) exec {foreground} "$@" ;; esac ;;
esac
exec {python} {objstore} "$@"
"""


@dataclass
class Machine:
    """Runs blocks. Services are children of this process; `close` ends them all, each by its id."""

    root: Path
    settings: Mapping[str, str] = field(default_factory=dict)  # Of services only.
    environment: dict[str, str] = field(default_factory=environment_for)  # Of commands.
    places: dict[str, str] = field(default_factory=dict)
    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("etc", "var", "srv", "run", "bin", "log"):
            (self.root / name).mkdir()
        self.places |= {
            "/etc/objstore/": f"{self.root}/etc/",
            "/var/lib/": f"{self.root}/var/",
            "/srv/objstore/": f"{self.root}/srv/",
            "/run/": f"{self.root}/run/",
        }
        socket = str(self.root / "systemctl")
        for name in ("systemctl", "foreground"):
            self._program(name, SHIM.format(python=sys.executable, socket=socket, what=name))
        self._program(
            "objstore",
            WRAPPER.format(
                foreground=self.root / "bin/foreground",
                python=sys.executable,
                objstore=ROOT / "cmd/objstore",
            ),
        )
        self.environment["PATH"] = f"{self.root / 'bin'}:{self.environment['PATH']}"
        machine = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    machine._asked(*json.loads(self.rfile.readline()))
                    answer = "0 "
                except Exception as failure:
                    answer = f"1 {failure}\n"
                self.wfile.write(answer.encode())

        self._server = socketserver.ThreadingUnixStreamServer(socket, Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def _program(self, name: str, text: str) -> None:
        place = self.root / "bin" / name
        place.write_text(text)
        place.chmod(0o755)

    def moved(self, text: str) -> str:
        """With our places for the page's."""
        for theirs, ours in self.places.items():
            text = text.replace(theirs, ours)
        return text

    def run(self, block: Block) -> str:
        """Run a block and return its output. Exit code 3 is not a failure: something was found."""
        script = f"trap 'code=$?; [ $code = 3 ] || exit $code' ERR\nset -o pipefail\n{self.moved(block.text)}"
        done = subprocess.run(
            ["bash", "-c", script],
            env=self.environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_SECONDS,
        )
        assert done.returncode in (0, 3), f"{block.heading}: {done.returncode}\n{block.text}\n{done.stdout}"
        return done.stdout

    # What systemd would do.

    def _asked(self, what: str, *arguments: str) -> None:
        if what == "foreground":
            self.start("foreground", [str(ROOT / "cmd/objstore"), *arguments], {})
            return
        verb, *names = [one for one in arguments if one != "--now"]
        assert names
        assert verb in ("enable", "start", "stop", "restart"), arguments
        for name in names:
            if verb in ("stop", "restart"):
                self.stop(name)
            if verb != "stop":
                self.start(name, *self.unit(name))

    def unit(self, name: str) -> tuple[list[str], dict[str, str]]:
        """What a unit starts, and the environment that its file gives."""
        template, at, instance = name.partition("@")
        text = (CONFIG / "systemd" / f"{template}{at}.service").read_text().replace("%i", instance)
        command = re.search(r"^ExecStart=(.*)$", text, re.M)
        assert command is not None
        more: dict[str, str] = {}
        for file in re.findall(r"^EnvironmentFile=-(.*)$", text, re.M):
            with contextlib.suppress(FileNotFoundError):
                more |= dict(line.split("=", 1) for line in Path(self.moved(file)).read_text().splitlines())
        program, *arguments = shlex.split(self.moved(command[1]))
        assert program == "/opt/objstore/cmd/objstore"
        return [str(ROOT / "cmd/objstore"), *arguments], more

    def start(self, name: str, command: list[str], more: Mapping[str, str]) -> None:
        """Start a service and wait for its ready line."""
        running = self.services.get(name)
        if running is not None and running.poll() is None:
            return
        output = self.root / "log" / f"{name}-{time.monotonic_ns()}"
        with output.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=environment_for(**self.settings, **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.services[name] = process
        limit = time.monotonic() + READY_SECONDS
        while "Ready after" not in (text := output.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > limit:
                raise AssertionError(f"{name} is not ready ({process.poll()}):\n{text[-4000:]}")
            time.sleep(0.05)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.services.pop(name, None)
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not stop") from None

    def words(self) -> str:
        """The end of everything that services said."""
        logs = sorted((self.root / "log").iterdir())
        return "\n".join(f"--- {one.name}\n{one.read_text(errors='replace')[-LOG_SIZE:]}" for one in logs)

    def close(self) -> None:
        try:
            for name in list(self.services):
                with contextlib.suppress(AssertionError):
                    self.stop(name)
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(10)


@contextlib.contextmanager
def machine(root: Path, settings: Mapping[str, str]) -> Iterator[Machine]:
    made = Machine(root, settings)
    try:
        yield made
    except BaseException:
        print(made.words())
        raise
    finally:
        made.close()


def ports(*names: str) -> dict[str, str]:
    """A free address of the loopback for each of these."""
    return {name: f"127.0.0.1:{free_port()}" for name in names}


def environment_of(config: Path) -> dict[str, str]:
    """For commands: which store."""
    return {"OBJSTORE_CONFIG": os.fspath(config)}
