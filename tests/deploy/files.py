"""What the tests of deployment files have in common: where the files are, and the programs that read them."""

import shutil
from pathlib import Path

import pytest

from objstore.processes.dev import free_ports

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"

# Program -> Debian's package.
PACKAGES = {
    "haproxy": "haproxy",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
}


def needs(program: str) -> str:
    """The path of a program that Debian has. A missing one is a failure that says what to install."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{program} is not installed: apt-get install {PACKAGES[program]} (.ci/run does it)")
    return found


def free_port() -> int:
    return free_ports(1)[0]
