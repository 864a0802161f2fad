"""The real thing for tests: `objstore serve` in processes of its own, on free ports of the loopback.

    with running_server(tmp_path) as server:
        s3 = server.boto3()

A server keeps its data under the given directory: start another one there to test what survives. Every
process started here is ended by its id; PR_SET_PDEATHSIG ends the children with it.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objstore.processes.dev import free_ports

ROOT = Path(__file__).parents[1]
ACCESS_KEY = "AKTESTROOT"
SECRET_KEY = "test-secret-key-of-the-root-user"
READY_SECONDS = 60.0  # A busy machine; the store itself takes about one second.
STOP_SECONDS = 60.0


@dataclass
class Server:
    """A running store. `output` is the file with everything it printed."""

    process: subprocess.Popen[bytes]
    data: Path
    output: Path
    access_key: str
    secret_key: str
    environment: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    @property
    def state(self) -> dict[str, Any]:
        """What the supervisor last wrote of itself: endpoint, admin_listen, children."""
        state: dict[str, Any] = json.loads((self.data / "run" / "state.json").read_text())
        return state

    @property
    def endpoint(self) -> str:
        return str(self.state["endpoint"])

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        return int(str(self.state["admin_listen"]).rpartition(":")[2])

    @property
    def token(self) -> str:
        return (self.data / "admin.token").read_text().strip()

    def children(self) -> dict[str, int]:
        """Name -> pid: committer, upkeep, worker-1, ..."""
        return {name: child["pid"] for name, child in self.state["children"].items()}

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def boto3(self, access_key: str | None = None, secret_key: str | None = None, **config: Any) -> Any:
        """A boto3 client that does not retry unless told to."""
        return client_of(
            self.endpoint, access_key or self.access_key, secret_key or self.secret_key, **config
        )

    def admin(
        self, method: str, path: str, content: object = None, *, token: str | None = "", timeout: float = 30
    ) -> tuple[int, Any]:
        """(status, body) of the admin port; JSON decoded where it is JSON. token None: without one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=timeout)
        headers = {} if token is None else {"Authorization": f"Bearer {token or self.token}"}
        try:
            connection.request(method, path, None if content is None else json.dumps(content), headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if "json" in response.headers.get("Content-Type", ""):
            return response.status, json.loads(body)
        return response.status, body.decode()

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `objstore ARGUMENTS --data ...` against this store."""
        return run_command(*arguments, "--data", str(self.data), environment=self.environment, check=check)

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Until all children are ready (again)."""
        limit = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                state = self.state
                children = state["children"].values()
                if state["pid"] == self.pid and state["ready"] and all(child["ready"] for child in children):
                    return
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the store ended with {self.process.returncode}:\n{self.text()[-8000:]}"
                )
            if time.monotonic() > limit:
                raise AssertionError(f"the store is not ready after {seconds} s:\n{self.text()[-8000:]}")
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Signal the supervisor and wait. Returns its exit code (negative: the signal that ended it)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the store did not stop in {seconds} s:\n{self.text()[-8000:]}") from None

    def kill(self) -> None:
        """SIGKILL of the supervisor: its children die with it."""
        pids = list(self.children().values())
        self.process.kill()
        self.process.wait()
        wait_gone(pids)


def client_of(endpoint: str, access_key: str, secret_key: str, **config: Any) -> Any:
    """A boto3 client of a store on this machine, that does not retry unless told to."""
    import boto3
    from botocore.config import Config

    config = {"retries": {"max_attempts": 0}, "s3": {"addressing_style": "path"}, **config}
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(**config),
    )


def wait_gone(pids: Sequence[int], seconds: float = 10.0) -> None:
    limit = time.monotonic() + seconds
    for pid in pids:
        while os.path.exists(f"/proc/{pid}") and _alive(pid):
            if time.monotonic() > limit:
                raise AssertionError(f"process {pid} lives on")
            time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def environment_for(**more: str) -> dict[str, str]:
    """This process's environment without settings of another store, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OBJSTORE_", "AWS_"))}
    return kept | more


def run_command(
    *arguments: str, environment: Mapping[str, str] | None = None, check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cmd" / "objstore"), *arguments],
        env=dict(environment if environment is not None else environment_for()),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"objstore {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def start_server(
    directory: Path,
    *,
    workers: int = 1,
    codec: str = "4+2",
    disks: Sequence[Path | str] = (),
    root: tuple[str, str] | None = (ACCESS_KEY, SECRET_KEY),
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    port: int = 0,
    preload: Path | None = None,
    launcher: Path = ROOT / "cmd" / "objstore",
    wait: bool = True,
) -> Server:
    """Start a store with its data in `directory/data`; the caller stops it.

    Args:
        root: the root key; None lets the first start make and print one.
        environment: more variables, e.g. {"OBJSTORE_UPKEEP__TRASH_HOURS": "0"}.
        port: of the S3 API; 0: a free one. To keep it over a restart, pass the first one's `port`.
        preload: a library for LD_PRELOAD.
        launcher: of another release (tests/upgrades).
        wait: until it is ready.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data, output = directory / "data", directory / "output.log"
    variables = environment_for(**(environment or {}))
    if root is not None:
        variables |= {"OBJSTORE_ROOT_ACCESS_KEY": root[0], "OBJSTORE_ROOT_SECRET_KEY": root[1]}
    if preload is not None:
        variables["LD_PRELOAD"] = str(preload)
    free, admin = free_ports(2)
    command = [
        sys.executable,
        str(launcher),
        "serve",
        f"--data={data}",
        f"--listen=127.0.0.1:{port or free}",
        f"--admin-listen=127.0.0.1:{admin}",
        f"--workers={workers}",
        f"--codec={codec}",
        *(f"--disk={disk}" for disk in disks),
        *arguments,
    ]
    (data / "run" / "state.json").unlink(missing_ok=True)
    with output.open("ab") as log:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    server = Server(
        process, data, output, *(root or ("", "")), environment=environment_for(**(environment or {}))
    )
    if wait:
        try:
            server.wait_ready()
        except AssertionError:
            process.kill()
            process.wait()
            raise
    return server


@contextlib.contextmanager
def running_server(directory: Path, **options: Any) -> Iterator[Server]:
    """As `start_server`; stopped at the end (killed if the body failed to leave it stoppable)."""
    server = start_server(directory, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            try:
                server.stop()
            finally:
                if server.process.poll() is None:
                    server.process.kill()
                    server.process.wait()
