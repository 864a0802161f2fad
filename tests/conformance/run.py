"""Run ceph/s3-tests against the store and compare each test with the committed list.

    python -m tests.conformance.run PATH_OF_CHECKOUT [--update] [-k EXPRESSION]
                                    [--endpoint URL --keys FILE | --in-memory]

The suite (commit 8f0ae7b of github.com/ceph/s3-tests, told by its files' contents) is not part of this
repository: `make test` holds this runner and the list to their word, and runs some of the suite's tests only
where S3TESTS names a checkout. What the store answers is held by the tests in tests/s3 without it.

Without --endpoint a fresh `objstore serve` is started on a temporary directory, with users of three tenants.
`--keys` is a JSON file {"main": {"tenant", "access_key", "secret_key"}, "alt": ..., "other": ...}.
`expected.txt` has one line for each test: `pass`, `fail`, `error` or `skip`, then its name. The run fails if
a test that should pass does not; what passes and should not is printed, and `--update` writes it down.

The path may also come from the environment variable S3TESTS.
"""

import argparse
import collections
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from objstore.processes.dev import free_ports

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMIT = "8f0ae7b"
EXPECTED = HERE / "expected.txt"
FILES = {  # The names that git gives their contents at COMMIT.
    "test_s3.py": "c34c1e46946105c721784c1172e35e70aa32b9cf",
    "test_headers.py": "360a2e6643b82230d1891cb5f3302619de2f9183",
}
TEST_TIMEOUT_S = 120
START_TIMEOUT_S = 60
RUN_TIMEOUT_S = 3600
NEEDED = ("boto3", "isodate", "munch", "pytest", "pytest_timeout", "dateutil", "pytz", "requests")
ROLES = ("main", "alt", "other")

Outcomes = dict[str, str]  # "test_s3.py::test_bucket_list_empty" -> pass | fail | error | skip


def interpreter() -> str:
    """A Python that has what the suite needs: this one, or one made for it inside .venv."""
    if all(importlib.util.find_spec(name) for name in NEEDED):
        return sys.executable
    home = ROOT / ".venv" / "conformance"
    python = home / "bin" / "python"
    stamp = home / "complete"
    if not stamp.exists():
        print(f"setting up {home}", flush=True)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / "requirements.txt")], check=True
        )
        stamp.touch()
    return str(python)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server does not listen after {START_TIMEOUT_S} s")


@contextmanager
def running(command: list[str], log: Path, ports: list[int], environment: dict[str, str]) -> Iterator[None]:
    """A server in its own process group, stopped at the end: first politely, then not."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        for port in ports:
            wait_for_port(port, process)
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def command_output(arguments: list[str], environment: dict[str, str]) -> Any:
    result = subprocess.run(
        [sys.executable, str(ROOT / "cmd" / "objstore"), *arguments, "-o", "json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"objstore {' '.join(arguments)}: {result.stderr.strip()}")
    return json.loads(result.stdout)


@contextmanager
def fresh_store(work: Path) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """`objstore serve` on a temporary directory, and the keys of three tenants."""
    data = work / "data"
    port, admin_port = free_ports(2)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "cmd" / "objstore"), "serve", "--data", str(data)]
    command += ["--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin_port}"]
    with running(command, work / "server.log", [port, admin_port], environment):
        keys = {}
        for role in ROLES:
            user = f"{role}-user"
            command_output(["user", "create", user, "--tenant", role, "--data", str(data)], environment)
            made = command_output(["key", "create", user, "--data", str(data)], environment)[0]
            keys[role] = {
                "tenant": role,
                "access_key": made["access_key"],
                "secret_key": made["secret_key"],
            }
        yield f"http://127.0.0.1:{port}", keys


@contextmanager
def memory_store(work: Path) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """The S3 face in one process over metadata and blobs in memory."""
    (port,) = free_ports(1)
    keys = {
        role: {"tenant": role, "access_key": f"AK{role.upper():0<18}", "secret_key": f"secret-of-{role}" * 3}
        for role in ROLES
    }
    file = work / "keys.json"
    file.write_text(json.dumps(keys))
    command = [sys.executable, "-m", "tests.s3.handlers.server", str(port), str(file)]
    with running(command, work / "server.log", [port], dict(os.environ)):
        yield f"http://127.0.0.1:{port}", keys


def write_configuration(path: Path, endpoint: str, keys: dict[str, dict[str, str]]) -> None:
    url = urlsplit(endpoint)
    values: dict[str, Any] = {"host": url.hostname, "port": url.port or 80}
    for role in ROLES:
        for name, value in keys[role].items():
            values[f"{role}_{name}"] = value
    path.write_text((HERE / "s3tests.conf.template").read_text().format(**values))
    path.chmod(0o600)


def run_suite(checkout: Path, work: Path, select: str | None, extra: list[str]) -> Outcomes:
    report = work / "junit.xml"
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and name.lower() not in ("http_proxy", "https_proxy", "all_proxy")
    }
    environment |= {
        "S3TEST_CONF": str(work / "s3tests.conf"),
        # Retries would hide what the store answers, and cost minutes.
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_RETRY_MODE": "standard",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        interpreter(),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "-rN",
        "--durations=25",
    ]
    command += [f"--junitxml={report}", "-o", "junit_family=xunit1", f"--timeout={TEST_TIMEOUT_S}"]
    command += [f"s3tests/functional/{name}" for name in FILES]
    if select:
        command += ["-k", select]
    command += extra
    with (work / "pytest.log").open("wb") as log:
        subprocess.run(
            command,
            cwd=checkout,
            env=environment,
            stdout=log,
            stderr=log,
            timeout=RUN_TIMEOUT_S,
            check=False,  # Failures are what it is run for.
        )
    if not report.exists():
        raise SystemExit("pytest wrote no report:\n" + (work / "pytest.log").read_text()[-3000:])
    return read_report(report)


def read_report(report: Path) -> Outcomes:
    outcomes: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
        outcome = "pass"
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = {"failure": "fail", "error": "error", "skipped": "skip"}[child.tag]
        # A test that passes and whose teardown fails is reported twice: the worse counts.
        if outcomes.get(name, "pass") == "pass":
            outcomes[name] = outcome
    return outcomes


def read_expected(path: Path = EXPECTED) -> Outcomes:
    if not path.exists():
        return {}
    expected: Outcomes = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(pass|fail|error|skip) (\S.*)", line)
        if match is None:
            raise SystemExit(f"{path}:{number}: not a line of the list: {line!r}")
        expected[match[2]] = match[1]
    return expected


def write_expected(outcomes: Outcomes, path: Path = EXPECTED) -> None:
    count = collections.Counter(outcomes.values())
    head = (
        f"# ceph/s3-tests at {COMMIT}: what each test gives. Written by run.py --update.\n"
        f"# {count['pass']} pass, {count['fail']} fail, {count['error']} error, {count['skip']} skip.\n"
    )
    lines = [f"{outcome} {name}\n" for name, outcome in sorted(outcomes.items())]
    path.write_text(head + "".join(lines))


def compare(outcomes: Outcomes, expected: Outcomes, *, whole: bool) -> tuple[list[str], list[str]]:
    """What fell out of the list, and what newly passes. A test that was not run fell out of a whole run."""
    fallen = [
        f"{name}: {outcomes.get(name, 'not run')}"
        for name, outcome in expected.items()
        if outcome == "pass" and outcomes.get(name, "not run" if whole else "pass") != "pass"
    ]
    risen = [name for name, outcome in outcomes.items() if outcome == "pass" and expected.get(name) != "pass"]
    return fallen, risen


def other_files(checkout: Path) -> list[str]:
    """The files of the suite in this checkout that are not those at COMMIT, or absent.

    Told by their contents, as git names them: a checkout may come without its history.
    """
    found = []
    for name, blob in FILES.items():
        path = checkout / "s3tests" / "functional" / name
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() != blob:
            found.append(name)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run ceph/s3-tests and compare with expected.txt.")
    parser.add_argument("checkout", nargs="?", default=os.environ.get("S3TESTS"), help="of ceph/s3-tests")
    parser.add_argument("--endpoint", help="a running store; needs --keys")
    parser.add_argument("--keys", type=Path, help="JSON file with the keys of main, alt and other")
    parser.add_argument("--in-memory", action="store_true", help="the S3 face over a store in memory")
    parser.add_argument("--update", action="store_true", help="write expected.txt")
    parser.add_argument("--work", type=Path, help="directory for logs and reports, kept  [a temporary one]")
    parser.add_argument("-k", dest="select", help="pytest's -k: only some tests, never with --update")
    parser.add_argument("extra", nargs="*", help="more arguments for pytest, after --")
    given = parser.parse_args()
    if not given.checkout or not (Path(given.checkout) / "s3tests" / "functional" / "test_s3.py").exists():
        parser.error("name a checkout of ceph/s3-tests (or set S3TESTS)")
    if others := other_files(Path(given.checkout)):
        parser.error(f"{' and '.join(others)} are not those of ceph/s3-tests at {COMMIT}: check that out")
    if given.endpoint and not given.keys:
        parser.error("--endpoint needs --keys")
    if given.update and given.select:
        parser.error("--update needs a whole run")
    return given


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # The server goes with us.
    work = given.work or Path(tempfile.mkdtemp(prefix="conformance-"))
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        if given.endpoint:
            write_configuration(work / "s3tests.conf", given.endpoint, json.loads(given.keys.read_text()))
            outcomes = run_suite(Path(given.checkout), work, given.select, given.extra)
        else:
            with (memory_store if given.in_memory else fresh_store)(work) as (endpoint, keys):
                write_configuration(work / "s3tests.conf", endpoint, keys)
                outcomes = run_suite(Path(given.checkout), work, given.select, given.extra)
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    count = collections.Counter(outcomes.values())
    print(
        f"{len(outcomes)} tests in {time.monotonic() - started:.0f} s: "
        + ", ".join(f"{count[outcome]} {outcome}" for outcome in ("pass", "fail", "error", "skip"))
    )
    fallen, risen = compare(outcomes, read_expected(), whole=given.select is None)
    for name in risen:
        print(f"newly passing: {name}")
    for line in fallen:
        print(f"should pass: {line}")
    if given.update:
        write_expected(outcomes)
        return 0
    return 1 if fallen or not outcomes else 0


if __name__ == "__main__":
    raise SystemExit(main())
