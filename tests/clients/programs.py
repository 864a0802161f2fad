"""Finding and running the clients' programs: a missing one is a failure that says what to install."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
VENV = Path(sys.executable).parent  # Not resolved: the environment's own bin directory.
_TIMEOUT_S = 120.0


def program(name: str, install: str) -> str:
    """The program's path: from the tests' environment first, then from PATH. `install` says how to get it."""
    found = shutil.which(name, path=str(VENV)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: {install} (.ci/run does it)")
    return found


def s3fs_python() -> str:
    """The interpreter that has s3fs: it pins a botocore of its own and so lives in an environment of its
    own."""
    path = VENV.parent / "s3fs" / "bin" / "python"
    if not path.exists():
        pytest.fail(f"{path} is missing: run make setup-test, which makes it from requirements/s3fs.txt")
    return str(path)


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A world in which no configuration of the user's reaches a client, and no proxy stands in its way."""
    home.mkdir(exist_ok=True)
    return {
        "PATH": f"{VENV}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "NO_PROXY": "*",
        "no_proxy": "*",
        "AWS_EC2_METADATA_DISABLED": "true",
        **(more or {}),
    }


def run(
    command: Sequence[str], env: Mapping[str, str], *, expect: int | None = 0, data: bytes | None = None
) -> str:
    """Run a client to its end and return what it printed. Another exit status than `expect` fails the
    test."""
    done = run_bytes(command, env, expect=expect, data=data)
    return done.decode(errors="replace")


def run_bytes(
    command: Sequence[str], env: Mapping[str, str], *, expect: int | None = 0, data: bytes | None = None
) -> bytes:
    """As `run`, with the output as bytes. `expect` None: any failure is right, success is not."""
    done = subprocess.run(
        list(command),
        env=dict(env),
        input=data if data is not None else b"",
        capture_output=True,
        timeout=_TIMEOUT_S,
    )
    wrong = done.returncode == 0 if expect is None else done.returncode != expect
    if wrong:
        pytest.fail(
            f"{' '.join(command)}\nended with status {done.returncode}\n"
            f"{done.stdout.decode(errors='replace')[-4000:]}\n{done.stderr.decode(errors='replace')[-4000:]}"
        )
    return done.stdout


def session(command: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Run a script that prints one JSON string for each thing it has done and verified; returns them."""
    return [json.loads(line) for line in run(command, env).splitlines() if line.startswith('"')]
