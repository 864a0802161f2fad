"""A PostgreSQL server of its own for `objstore dev cluster --metadata postgresql`.

From the machine's own `postgresql` package: a fresh data directory, a random password, loopback only. It runs
as the user postgres where we are root, as it demands. For trying things out: one server, no standby.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from objstore.processes.cluster import CannotStart

USER: Final = "postgres"
STARTED_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
PASSWORD_NAME: Final = "password"  # noqa: S105  (A file's name.)


class LocalPostgres:
    """`start`, then `url`, then `stop`.

    Args:
        directory: of its own; one that holds a server's data is started again.
        port: on the loopback.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.log = directory / "postgresql.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        password = (self.directory / PASSWORD_NAME).read_text().strip()
        return f"postgresql://objstore:{password}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Raises: CannotStart."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        data = self.directory / "data"
        if not (data / "PG_VERSION").exists():
            self._make(data)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (Debian's own programs.)
                [
                    _program("postgres"),
                    "-D",
                    str(data),
                    "-c",
                    f"port={self.port}",
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    "unix_socket_directories=",
                    "-c",
                    "dynamic_shared_memory_type=mmap",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                **_as_user(),
            )
        limit = time.monotonic() + STARTED_SECONDS
        ready = [_program("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        while subprocess.run(ready, check=False, stdin=subprocess.DEVNULL).returncode:  # noqa: S603
            if not self.pid or time.monotonic() > limit:
                raise CannotStart(f"PostgreSQL does not start; its log: {self.log}")
            time.sleep(0.1)

    def stop(self) -> None:
        """A fast shutdown: connections are ended, what was committed is there."""
        if self._process is None:
            return
        if self.pid:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _make(self, data: Path) -> None:
        place = self.directory / PASSWORD_NAME
        if not place.exists():
            with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(20) + "\n")
        # Not in our directory: whoever PostgreSQL runs as may not read that.
        with tempfile.NamedTemporaryFile("w") as password:
            password.write(place.read_text())
            password.flush()
            if user := _as_user():
                os.chown(password.name, user["user"], user["group"])
                data.mkdir(mode=0o700, exist_ok=True)
                os.chown(data, user["user"], user["group"])
            done = subprocess.run(  # noqa: S603
                [
                    _program("initdb"),
                    *("-D", str(data), "-U", "objstore", "-A", "scram-sha-256"),
                    *(f"--pwfile={password.name}", "--no-locale", "-E", "UTF8"),
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd="/",
                check=False,
                **_as_user(),
            )
        if done.returncode != 0:
            raise CannotStart(f"PostgreSQL's initdb failed: {done.stdout}{done.stderr}")


def _program(name: str) -> str:
    """Raises: CannotStart."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    path = str(found[-1]) if found else shutil.which(name)
    if not path:
        raise CannotStart("there is no PostgreSQL server here: apt-get install postgresql")
    return path


def _as_user() -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        raise CannotStart(f"PostgreSQL does not run as root, and there is no user {USER}") from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
