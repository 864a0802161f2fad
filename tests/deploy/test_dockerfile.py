"""The Dockerfile, replayed in a directory: what it copies, edits and sets is a store that says it is ready.

No engine is needed. COPY sees the files that .dockerignore lets through; `ln` and `sed` run as written,
beneath a directory that stands for the root; the virtual environment gets the packages of
requirements/run.txt, and no others, from those installed here. What only an engine or a network can do (apt,
pip, a user of its own) is named below: any other command fails the test.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest

from objstore.processes.dev import free_ports
from tests.server import ACCESS_KEY, ROOT, SECRET_KEY, client_of

READY_S = 90.0  # On a busy machine.

# Not replayed: needs the network or another user, or only makes the start faster.
LEFT_OUT = re.compile(
    r"python -m compileall |/opt/objstore/bin/python -m (pip install|compileall) "
    r"|apt-get (update|install)|rm -rf /var/lib/apt/lists|groupadd |useradd "
)


class Instruction(NamedTuple):
    name: str
    words: str  # With its lines joined.


def instructions() -> list[Instruction]:
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ").splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]


def context(target: Path) -> Path:
    """The build's context: what .dockerignore names with "!" and nothing else."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    assert lines[-1] == "**/__pycache__"
    for line in lines[1:-1]:
        assert line.startswith("!")
        copy_path(ROOT / line[1:], target / line[1:])
    return target


def copy_path(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def link_packages(environment: Path) -> None:
    """The pinned packages from here, by links. Not this project: the image has it as plain files."""
    site = next(environment.glob("lib/python3*/site-packages"))
    for name in re.findall(r"(?m)^([A-Za-z0-9_.-]+)==", (ROOT / "requirements" / "run.txt").read_text()):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (site / top).symlink_to(Path(str(found.locate_file(top))))


class Image:
    """The Dockerfile's last stage beneath a directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.variables: dict[str, str] = {}
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.health: list[str] = []
        self.exposed = ""
        self._context = context(directory / "context")
        self._at = Path("/")
        for instruction in instructions():
            getattr(self, f"_{instruction.name.lower()}")(instruction.words)

    def place(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def below(self, words: str) -> str:
        """The same words with the image's own paths beneath the root."""
        return re.sub(r"(?<![\w./])/(?=(opt/objstore|data)\b)", f"{self.root}/", words)

    def _from(self, words: str) -> None:
        assert words.startswith("python:3.11-")

    def _workdir(self, words: str) -> None:
        self._at = self.place(words)

    def _copy(self, words: str) -> None:
        *sources, target = words.split()
        if sources[0] == "--from=build":
            assert sources[1:] == [target] == ["/opt/objstore"]
            return
        for source in sources:
            given = self._context / source
            assert given.exists(), f"COPY {source}: .dockerignore keeps it from the build"
            to = self.place(target) if target.startswith("/") else self._at / target
            copy_path(given, to / given.name if target.endswith("/") else to)

    def _run(self, words: str) -> None:
        for command in words.split("&&"):
            command = command.strip()
            if LEFT_OUT.match(command):
                continue
            if command == "python -m venv /opt/objstore":
                subprocess.run(
                    [sys.executable, "-m", "venv", "--without-pip", self.place("/opt/objstore")],
                    check=True,
                    timeout=120,
                )
                link_packages(self.place("/opt/objstore"))
            elif command.startswith("install -d "):
                *_, mode, path = command.split()
                self.place(path).mkdir(mode=int(mode, 8), parents=True)
            else:
                assert re.match("(ln|sed) ", command), f"this test does not know how to replay {command!r}"
                subprocess.run(["sh", "-ec", self.below(command)], check=True, timeout=60)

    def _env(self, words: str) -> None:
        for word in shlex.split(words):
            name, _, value = word.partition("=")
            self.variables[name] = self.below(value).replace("$PATH", os.environ["PATH"])

    def _expose(self, words: str) -> None:
        self.exposed = words

    def _healthcheck(self, words: str) -> None:
        self.health = json.loads(words.partition("CMD ")[2])

    def _entrypoint(self, words: str) -> None:
        self.entrypoint = json.loads(words)

    def _cmd(self, words: str) -> None:
        self.command = json.loads(words)

    def _label(self, words: str) -> None:
        """Says nothing that runs."""

    _user = _volume = _stopsignal = _label


@pytest.mark.timeout(300)
def test_what_the_dockerfile_makes_is_a_store_that_becomes_ready_and_keeps_an_object(tmp_path: Path) -> None:
    image = Image(tmp_path)
    assert image.entrypoint == ["tini", "--", "objstore"]
    assert image.variables["OBJSTORE_SERVER__LISTEN"] == f"0.0.0.0:{image.exposed}"
    port, admin = free_ports(2)
    environment = {"HOME": str(tmp_path), **image.variables}
    del environment["PYTHONDONTWRITEBYTECODE"]  # The image is compiled when it is built.
    environment |= {  # As `docker run -e` would.
        "OBJSTORE_SERVER__LISTEN": f"127.0.0.1:{port}",
        "OBJSTORE_SERVER__ADMIN_LISTEN": f"127.0.0.1:{admin}",
        "OBJSTORE_ROOT_ACCESS_KEY": ACCESS_KEY,
        "OBJSTORE_ROOT_SECRET_KEY": SECRET_KEY,
    }
    program = shutil.which("objstore", path=environment["PATH"])
    assert program == str(image.place("/opt/objstore/bin/objstore"))
    assert Path(program).read_text().startswith(f"#!{image.place('/opt/objstore/bin/python')}\n")

    def health() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            image.health, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    log = tmp_path / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *image.command], env=environment, cwd=tmp_path, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + READY_S
        while (answer := health()).returncode:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{answer.stdout}{answer.stderr}\n{log.read_text()}"
            time.sleep(0.2)
        s3 = client_of(f"http://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY)
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="key", Body=b"from the image")
        assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"from the image"
        assert any(image.place("/data").iterdir())
        process.send_signal(signal.SIGTERM)  # STOPSIGNAL.
        assert process.wait(60) == 0, log.read_text()
        assert health().returncode == 1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(60)
