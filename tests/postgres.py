"""A real PostgreSQL server for tests, from Debian's `postgresql` package.

`PostgresServer` has a private data directory and listens on a loopback port; it runs as another user where
we are root, as PostgreSQL demands. `shared_server` starts one for the whole run of the tests, with a
database for each who asks.
"""

import atexit
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from objstore.processes.dev import free_ports

USER = "postgres" if os.getuid() == 0 else ""  # Debian's package makes it. "": whoever we are.
FAST = {
    "shared_buffers": "64MB",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "logging_collector": "off",
    "dynamic_shared_memory_type": "mmap",  # What is killed leaves nothing in /dev/shm.
    "log_min_messages": "warning",
    "autovacuum_naptime": "5s",
}


def binaries() -> Path:
    """Where the newest installed server's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    if found:
        return found[-1].parent
    other = shutil.which("postgres")
    assert other, "no PostgreSQL server here: apt-get install postgresql"
    return Path(other).parent


def run(*command: str | Path, **options: object) -> str:
    """A program of PostgreSQL's, as its user; its output."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        timeout=120,
        check=False,
        **_as_user(),  # type: ignore[call-overload]
        **options,
    )
    text: str = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{command[0]}: {text}"
    return text


def _end_with_the_tests() -> None:
    """In the new process: a run of the tests that is killed leaves no server behind."""
    _libc.prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG.


_libc = ctypes.CDLL(None)


def _as_user() -> dict[str, object]:
    if not USER:
        return {}
    entry = pwd.getpwnam(USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class PostgresServer:
    """`start`, `kill`, `remove`."""

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, standby_of: "PostgresServer | None" = None
    ) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="objstore-postgres-", dir="/tmp"))
        if USER:
            entry = pwd.getpwnam(USER)
            os.chown(self.root, entry.pw_uid, entry.pw_gid)
        self.data = self.root / "data"
        self.port = 0  # Chosen by the first start, and kept.
        self.process: subprocess.Popen[bytes] | None = None
        # A name without quotes in synchronous_standby_names: it begins with a letter.
        self._name = "s" + self.root.name.rpartition("-")[2].replace("_", "x").lower()
        if standby_of is None:
            run(
                binaries() / "initdb",
                "-D",
                self.data,
                "-U",
                "objstore",
                "-A",
                "trust",
                "-N",
                "--no-locale",
                "-E",
                "UTF8",
            )
            lines = [f"{name} = '{value}'" for name, value in {**FAST, **(settings or {})}.items()]
            self.configure("\n".join(lines))
        else:
            source = f"host=127.0.0.1 port={standby_of.port} user=objstore application_name={self._name}"
            run(
                binaries() / "pg_basebackup",
                "-D",
                self.data,
                "-d",
                source,
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
            )
        self.configure(f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{self.root}'")

    @property
    def name(self) -> str:
        """As a primary's synchronous_standby_names knows a standby."""
        return self._name

    def url(self, database: str = "postgres", *others: "PostgresServer") -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self, *others))
        return f"postgresql://objstore@{hosts}/{database}"

    def configure(self, text: str) -> None:
        """More lines for its configuration; `reload` or a start puts them into force."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(text + "\n")

    def start(self, *, wait: bool = True) -> None:
        self.port = self.port or free_ports(1)[0]
        log = (self.root / "log").open("ab")
        self.process = subprocess.Popen(
            [str(binaries() / "postgres"), "-D", str(self.data), "-p", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            preexec_fn=_end_with_the_tests,
            **_as_user(),  # type: ignore[call-overload]
        )
        log.close()
        if wait:
            self.wait()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Until it takes connections."""
        assert self.process is not None
        limit = time.monotonic() + timeout_s
        while True:
            assert self.process.poll() is None, (self.root / "log").read_text()[-2_000:]
            done = subprocess.run(
                [str(binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
            )
            if done.returncode == 0:
                return
            assert time.monotonic() < limit, (self.root / "log").read_text()[-2_000:]
            time.sleep(0.05)

    def sql(self, text: str, database: str = "postgres") -> str:
        """One statement by psql; its rows, columns parted by |."""
        return run(
            binaries() / "psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1",
            "-h", "127.0.0.1", "-p", str(self.port), "-U", "objstore", "-d", database, "-c", text,
        ).strip()  # fmt: skip

    def reload(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def promote(self) -> None:
        run(binaries() / "pg_ctl", "promote", "-D", self.data, "-w", "-t", "60")

    def kill(self) -> None:
        """SIGKILL to all of it at once, as when the machine goes."""
        if self.process is None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            pids = [self.process.pid, *(int(pid) for pid in children.read_text().split())]
        except OSError:
            pids = [self.process.pid]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.process = None
        # A segment of 56 bytes tells a server that starts whether another is alive. It outlives a kill.
        lines = (self.data / "postmaster.pid").read_text().splitlines()
        if len(lines) > 6 and len(lines[6].split()) == 2:
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], check=False, capture_output=True)

    def remove(self) -> None:
        """Stop without a last checkpoint, and delete everything."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
                self.process = None
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.root, ignore_errors=True)


_shared: PostgresServer | None = None
_databases = 0


def shared_server() -> PostgresServer:
    """One server for the whole run of the tests; it goes when the run ends."""
    global _shared
    if _shared is None:
        server = PostgresServer()
        atexit.register(server.remove)
        server.start()
        _shared = server
    return _shared


@contextmanager
def database() -> Iterator[str]:
    """The URL of a fresh database on the shared server."""
    global _databases
    server = shared_server()
    _databases += 1
    name = f"test{_databases}"
    server.sql(f"CREATE DATABASE {name}")
    try:
        yield server.url(name)
    finally:
        server.sql(f"DROP DATABASE {name} WITH (FORCE)")
