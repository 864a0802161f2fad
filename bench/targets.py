"""What is measured: an S3 endpoint, and if it runs here its processes (CPU, memory) and its directory.

`objstore serve` and the bare aiohttp handler are started here, in a process group of their own, and stopped
by pid.
"""

import contextlib
import hashlib
import http.client
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Endpoint
from bench.shares import descendants, listeners, workers_of
from bench.sigv4 import Credentials, Signer, canonical_query
from objstore.processes.cluster import CannotStart
from objstore.processes.dev import LocalCluster, free_ports
from objstore.processes.dev_postgres import LocalPostgres

ROOT = Path(__file__).resolve().parent.parent
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_READY_S = 120.0


class TargetFailed(Exception):
    """A server did not start, does not answer, or answers a simple request with an error."""


@dataclass(slots=True)
class Target:
    name: str
    endpoint: Endpoint
    root_pid: int | None = None  # The server's topmost process, if it runs here.
    other_pids: tuple[int, ...] = ()  # Of further trees that belong to it: storage nodes, a database.
    directory: Path | None = None  # Where it keeps its bytes, if that is here.
    workers: int | None = None  # As started; None when unknown.
    ours: bool = False  # Started here, on a directory that goes afterwards: nothing needs tidying.
    bare: bool = False  # The bare aiohttp handler: buckets and keys mean nothing to it.
    bucket: str = field(default_factory=lambda: f"bench-{secrets.token_hex(4)}")

    def tree(self) -> list[int]:
        if not self.root_pid:
            return []
        return [pid for root in (self.root_pid, *self.other_pids) for pid in descendants(root)]

    def worker_pids(self) -> list[int]:
        """Processes that accept connections on the endpoint's port."""
        return workers_of(self.endpoint.address[1], self.tree()) if self.root_pid else []

    def cpu_seconds(self) -> float | None:
        """User and system time of the whole tree until now, those of reaped children included."""
        if not self.root_pid:
            return None
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                total += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
        return total * _TICK_S

    def allocated_bytes(self) -> int | None:
        """What the directory occupies: blocks, not lengths, each inode once."""
        if self.directory is None:
            return None
        seen: set[tuple[int, int]] = set()
        total = 0
        for parent, _, names in os.walk(self.directory):
            for name in [*names, "."]:
                with contextlib.suppress(OSError):
                    status = os.lstat(os.path.join(parent, name))
                    if (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        total += status.st_blocks * 512
        return total

    def request(
        self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """One plain signed request on a connection of its own."""
        text = canonical_query(query or {})
        head = Signer(self.endpoint.credentials, self.endpoint.host).head(
            method, path, query=text, payload_sha256=hashlib.sha256(body).hexdigest(), size=len(body)
        )
        lines = head.decode().split("\r\n")[1:]
        headers = dict(line.split(": ", 1) for line in lines if line)
        host, port = self.endpoint.address
        if self.endpoint.tls:
            import ssl

            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=120, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, f"{path}?{text}" if text else path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def must(self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"") -> bytes:
        """`request`, and the answer's body. Raises: TargetFailed unless the status is 2xx."""
        status, _, answer = self.request(method, path, query, body)
        if status // 100 != 2:
            raise TargetFailed(
                f"{self.name}: {method} {path} {query or ''}: {status} {answer[:300].decode()!r}"
            )
        return answer

    def make_bucket(self) -> None:
        if not self.bare:
            self.must("PUT", f"/{self.bucket}")


class MemoryWatch:
    """Peak RssAnon, in bytes, of the hungriest worker and of the hungriest process, while the context
    lasts."""

    def __init__(self, target: Target, every_s: float = 0.5) -> None:
        self._target = target
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.worker_peak: int | None = None
        self.process_peak: int | None = None

    def __enter__(self) -> "MemoryWatch":
        if self._target.root_pid:
            self._workers = set(self._target.worker_pids())
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _watch(self) -> None:
        tree = self._target.tree()
        while True:
            for pid in tree:
                size = rss_anon(pid)
                self.process_peak = max(self.process_peak or 0, size)
                if pid in self._workers:
                    self.worker_peak = max(self.worker_peak or 0, size)
            if self._stop.wait(self._every_s):
                return


def rss_anon(pid: int) -> int:
    """Bytes of anonymous memory; 0 when the process is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds this path, e.g. ext4 or tmpfs."""
    best, kind = "", "unknown"
    real = str(path.resolve())
    with open("/proc/self/mounts") as file:
        for line in file:
            _, mount, this, *_ = line.split()
            if (real + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
                best, kind = mount, this
    return kind


def free_port() -> int:
    return free_ports(1)[0]


def stop_tree(process: "subprocess.Popen[bytes]", patience_s: float = 30.0) -> None:
    """SIGTERM, then SIGKILL to the tree as it is now. Only processes that we started."""
    tree = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        for pid in {*tree, *descendants(process.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)


def bare_aiohttp(workers: int) -> "contextlib.AbstractContextManager[Target]":
    """The floor, running."""
    return _bare(f"aiohttp/{workers}", workers, ["bench.floor"])


@contextlib.contextmanager
def bare_proxy(scratch: Path, workers: int, nodes: int) -> Iterator[Target]:
    """The floor of a cluster, running (bench/proxy.py)."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="proxy-") as directory:
        command = ["bench.proxy", "--nodes", str(nodes), "--scratch", directory]
        with _bare(f"proxy/{workers}", workers, command) as target:
            yield target


def bare_fetch(scratch: Path, nodes: int, seconds: float) -> float:
    """Bytes a second that an aiohttp client fetches from bare nodes (bench/proxy.py)."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="fetch-") as directory:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bench.proxy", "--fetch", str(seconds)),
                *("--nodes", str(nodes), "--scratch", directory),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=False,
            timeout=_READY_S + 2 * seconds,
        )
    if done.returncode:
        raise TargetFailed(f"the bare fetch ended with status {done.returncode}")
    return float(done.stdout)


@contextlib.contextmanager
def _bare(name: str, workers: int, module: list[str]) -> Iterator[Target]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *module, "--listen", f"127.0.0.1:{port}", "--workers", str(workers)],
        cwd=ROOT,
    )
    try:
        target = Target(
            name=name,
            endpoint=Endpoint(url=f"http://127.0.0.1:{port}", credentials=Credentials("bench", "bench")),
            root_pid=process.pid,
            workers=workers,
            bare=True,
        )
        _await_ready(target, process, workers)
        yield target
    finally:
        stop_tree(process)


@contextlib.contextmanager
def objstore(
    scratch: Path,
    workers: int,
    log: Path,
    *,
    keep: bool = False,
    options: tuple[str, ...] = (),
    launcher: tuple[str, ...] | None = None,
) -> Iterator[Target]:
    """`objstore serve` on a fresh directory under `scratch`, which goes afterwards.

    Args:
        launcher: what is run instead of `objstore`.
    """
    port, admin_port = free_port(), free_port()
    directory = scratch / f"objstore-{workers}-{secrets.token_hex(3)}"
    directory.mkdir(parents=True)
    credentials = Credentials("BENCHBENCHBENCHBENCH", secrets.token_hex(20))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OBJSTORE_")},
        "OBJSTORE_ROOT_ACCESS_KEY": credentials.access_key,
        "OBJSTORE_ROOT_SECRET_KEY": credentials.secret_key,
    }
    installed = Path(sys.executable).parent / "objstore"
    command = [
        *(launcher or (str(installed if installed.exists() else ROOT / "cmd" / "objstore"),)),
        *("serve", "--data", str(directory), "--listen", f"127.0.0.1:{port}"),
        *("--admin-listen", f"127.0.0.1:{admin_port}", "--workers", str(workers)),
        *options,
    ]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        target = Target(
            name=f"objstore/{workers}",
            endpoint=Endpoint(url=f"http://127.0.0.1:{port}", credentials=credentials),
            root_pid=process.pid,
            directory=directory,
            workers=workers,
            ours=True,
        )
        _await_ready(target, process, workers, log)
        yield target
    finally:
        stop_tree(process)
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def cluster(
    scratch: Path,
    workers: int,
    nodes: int,
    *,
    disks: int = 1,
    codec: str = "4+2",
    postgresql: bool = False,
    environment: Mapping[str, str] | None = None,
) -> "Iterator[tuple[Target, LocalCluster]]":
    """One gateway and its storage nodes as `objstore dev cluster` starts them, in a directory that goes
    afterwards. CPU counts all their processes, and PostgreSQL's."""
    name = f"{'postgresql' if postgresql else 'cluster'}/{workers}"
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="cluster-")))
        pids: list[int] = []
        url = ""
        if postgresql:
            directory.chmod(0o711)  # PostgreSQL's own user must come through.
            server = LocalPostgres(directory / "postgresql", free_port())
            stack.callback(server.stop)
            server.start()
            url = server.url
            pids.append(server.pid)
        local = LocalCluster(
            directory=directory / "store",
            nodes=nodes,
            disks=disks,
            codec=codec,
            workers=workers,
            url=url,
            environment=environment or {},
            bound=True,
        )
        stack.callback(local.close)
        try:
            local.start()
        except CannotStart as failure:
            raise TargetFailed(str(failure)) from failure
        target = Target(
            name=name,
            endpoint=Endpoint(url=local.endpoint, credentials=Credentials(*local.root)),
            root_pid=local.gateway.pid,
            other_pids=(*(node.pid for node in local.members), *pids),
            directory=directory,
            workers=workers,
            ours=True,
        )
        yield target, local


def _await_ready(
    target: Target, process: "subprocess.Popen[bytes]", workers: int, log: Path | None = None
) -> None:
    deadline = time.monotonic() + _READY_S
    seen: object = "no answer yet"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(errors="replace")[-2_000:] if log else ""
            raise TargetFailed(f"{target.name} ended with status {process.returncode} at its start.\n{tail}")
        try:
            status, _, answer = target.request("GET", "/bench/0/ready" if target.bare else "/")
            seen = (status, answer[:200])
            if status == 200 and len(target.worker_pids()) >= workers:
                return
        except OSError as failure:
            seen = failure
        time.sleep(0.05)
    raise TargetFailed(f"{target.name} is not ready after {_READY_S:.0f} s: {seen}")


def parse(text: str) -> Target:
    """`name=URL,key,secret[,pid=N][,dir=PATH][,region=NAME]`.

    The pid (of the topmost process) gives CPU and memory columns; without it the processes that listen on the
    port are taken, if they run here. Raises: ValueError in plain words.
    """
    name, sign, rest = text.partition("=")
    parts = rest.split(",")
    if not sign or len(parts) < 3 or "://" not in parts[0]:
        raise ValueError(f"a target looks like name=http://host:port,key,secret: {text!r}")
    more = dict(part.split("=", 1) for part in parts[3:] if "=" in part)
    unknown = set(more) - {"pid", "dir", "region"}
    if unknown or len(more) != len(parts) - 3:
        raise ValueError(f"after the secret only pid=, dir= and region= are known: {text!r}")
    endpoint = Endpoint(
        url=parts[0].rstrip("/"), credentials=Credentials(parts[1], parts[2], more.get("region", "us-east-1"))
    )
    pid = int(more["pid"]) if "pid" in more else None
    if pid is None and endpoint.address[0] in ("127.0.0.1", "localhost", "::1"):
        here = listeners(endpoint.address[1])
        pid = _common_ancestor(here) if here else None
    return Target(
        name=name, endpoint=endpoint, root_pid=pid, directory=Path(more["dir"]) if "dir" in more else None
    )


def _common_ancestor(pids: list[int]) -> int | None:
    """The lowest process that has all of them below it, unless that is the machine's first process."""
    lines = []
    for pid in pids:
        line = [pid]
        while line[-1] > 1:
            with open(f"/proc/{line[-1]}/stat") as file:
                line.append(int(file.read().rpartition(")")[2].split()[1]))
        lines.append(line)
    for candidate in lines[0]:
        if all(candidate in line for line in lines):
            return candidate if candidate > 1 else None
    return None
