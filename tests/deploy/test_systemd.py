"""The systemd units: systemd itself reads them, and finds little that they could do without."""

import re
import subprocess
from pathlib import Path

import pytest

from objstore.config import options
from tests.deploy.files import CONFIG, needs

UNITS = ["objstore.service", "objstore-gateway.service", "objstore-node@.service"]
EXPOSURE_MAX = (
    17  # Tenths, of systemd 252's scale to 100. What is left: the network, and its own system calls.
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The units where systemd looks for them, with a program that is there."""
    for name in UNITS:
        text = (CONFIG / "systemd" / name).read_text()
        assert text.count("/opt/objstore/cmd/objstore ") == 1
        (tmp_path / name).write_text(text.replace("/opt/objstore/cmd/objstore ", "/bin/true "))
    (tmp_path / "objstore-node@a.service").symlink_to("objstore-node@.service")
    return tmp_path


@pytest.mark.parametrize("name", ["objstore.service", "objstore-gateway.service", "objstore-node@a.service"])
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, directory: Path) -> None:
    done = subprocess.run(
        [needs("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", directory / name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "objstore" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("name", ["objstore.service", "objstore-gateway.service", "objstore-node@a.service"])
def test_a_unit_is_hardened(name: str, directory: Path) -> None:
    done = subprocess.run(
        [
            needs("systemd-analyze"),
            *("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}", directory / name),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


def test_the_threshold_would_notice_one_protection_that_is_gone(directory: Path) -> None:
    bare = directory / "bare.service"
    bare.write_text((directory / "objstore.service").read_text().replace("CapabilityBoundingSet=\n", ""))
    done = subprocess.run(
        [needs("systemd-analyze"), "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", bare],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode != 0


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_stops_later_than_the_store_gives_up_waiting(name: str) -> None:
    text = (CONFIG / "systemd" / name).read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert found is not None
    drain = options()["server.drain_seconds"].default
    assert isinstance(drain, int)
    assert int(found[1]) > drain + 20 + 20  # The committer's own stop, and as much again.


def test_what_the_store_calls_is_what_the_filter_lets_through() -> None:
    """The system calls of a store, and where systemd lists them. The list was made by strace of a store that
    started, served, took a disk, stored a copy of its metadata, and stopped."""
    used = {
        "clock_adjtime",
        "io_uring_setup",
        "preadv2",
        "pwritev2",
        "prlimit64",
        "fadvise64",
        "fallocate",
        "flock",
    }
    shown = subprocess.run(
        [needs("systemd-analyze"), "syscall-filter", "--no-pager"], capture_output=True, text=True, timeout=60
    ).stdout
    sets: dict[str, list[str]] = {}
    current: list[str] = []
    for line in shown.splitlines():
        if line.startswith("@"):
            current = sets.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            current.append(line.strip())

    def members(name: str) -> set[str]:
        inner = [members(one) if one.startswith("@") else {one} for one in sets[name]]
        return set().union(*inner)

    for name in UNITS[:2]:
        allowed: set[str] = set()
        for rule in re.findall(r"^SystemCallFilter=(.*)$", (CONFIG / "systemd" / name).read_text(), re.M):
            named = [members(one) if one.startswith("@") else {one} for one in rule.removeprefix("~").split()]
            calls = set().union(*named)
            allowed = allowed - calls if rule.startswith("~") else allowed | calls
        assert used - allowed == set()
        assert not allowed & {"mount", "reboot", "init_module", "ptrace", "chown", "setuid", "clock_settime"}
