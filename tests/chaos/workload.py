"""Clients that write down what they were promised, and hold the store to it.

Every object's bytes derive from its key and version number, so that any answer can be judged by itself: whole
or torn, of which key, of which version. The manifest keeps, for each key, the states that the store may be
in: after an acknowledgement exactly one; while an operation's outcome is unknown (no answer, or a 5xx), the
new one too.

Concurrency: one thread a client, and every key belongs to one client, so each key's history is a line.
`pause` parks all clients between two operations; only then may others read the manifest.
"""

import contextlib
import hashlib
import http.client
import json
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.sigv4 import Credentials, Signer, canonical_query
from objstore.processes.dev import LocalCluster

MIB = 1024 * 1024
STALL_MAX_S = 5.0  # From a request's first attempt to its success, whatever dies meanwhile.
GIVE_UP_S = 60.0  # Then the store is called gone; no test waits for ever.
_PART_SIZE = 5 * MIB

# Everything that usually happens in hours happens in seconds, while processes die and disks go: volumes are
# sealed,
# compacted and purged, copies of the metadata are stored in them, and all is scrubbed again and again.
RESTLESS = {
    "OBJSTORE_BLOBS__VOLUME_SIZE_MAX": str(MIB),
    "OBJSTORE_UPKEEP__GARBAGE_PERCENT": "10",
    "OBJSTORE_UPKEEP__TRASH_DAYS": "0",
    "OBJSTORE_UPKEEP__SNAPSHOT_HOURS": "0.001",
    "OBJSTORE_UPKEEP__SCRUB_DAYS": "0.0001",
    "OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.003",  # Compaction every 0.9 s, trash every 1.8 s.
}

_ABSENT = 0  # The version number of a key that is not there; versions count from 1.


def content(key: str, version: int) -> bytes:
    """The bytes of this version of this key. Sizes: mostly small, one in 16 to 400 KB, one in 64 to 3 MB."""
    digest = hashlib.blake2b(f"{key} {version}".encode(), digest_size=8).digest()
    spread = int.from_bytes(digest, "big")
    if key.startswith("parts"):
        size = _PART_SIZE + spread % MIB
    else:
        size = spread % (3 * MIB if spread % 64 == 0 else 400_000 if spread % 16 == 0 else 9_000)
    head = f"{key} {version} {size}\n".encode()
    return head + hashlib.shake_128(head).digest(size)


def version_of(key: str, body: bytes) -> int | None:
    """Which version of `key` these bytes are; None when they are no whole version of it."""
    head = body.partition(b"\n")[0].decode(errors="replace").split()
    if len(head) != 3 or head[0] != key or not head[1].isdigit():
        return None
    version = int(head[1])
    return version if body == content(key, version) else None


class Unserved(Exception):
    """A request got no good answer in GIVE_UP_S."""


class NoAnswer(Exception):
    """No answer, or one that says nothing certain of the outcome (5xx)."""


@dataclass
class Entry:
    """What may be under a key."""

    may_be: set[int] = field(default_factory=lambda: {_ABSENT})
    newest: int = 0  # The highest version number given out.


@dataclass
class Findings:
    """What went wrong, and what it was like. Appended to by all clients; list.append is atomic."""

    broken: list[str] = field(default_factory=list)  # Promises broken: each one fails the test.
    read_failures: list[str] = field(default_factory=list)  # Reads that had to be repeated.
    write_failures: list[str] = field(default_factory=list)
    stalls: list[tuple[float, str]] = field(default_factory=list)  # Seconds from first attempt to success.
    acknowledged: int = 0
    reads: int = 0

    def longest_stall(self) -> tuple[float, str]:
        return max(self.stalls, default=(0.0, "none"))


class Client(threading.Thread):
    """One client with keys of its own."""

    def __init__(self, load: "Load", number: int, seed: int) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.load = load
        self.number = number
        self.random = random.Random(seed)
        self.entries: dict[str, Entry] = {f"c{number}/{n:03d}": Entry() for n in range(load.keys)}
        self.entries |= {f"parts{number}/{n}": Entry() for n in range(2)} if load.multipart else {}
        self._connection: http.client.HTTPConnection | None = None
        self.parked = threading.Event()

    # -- HTTP --------------------------------------------------------------------------------------------

    def once(
        self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, bytes, str]:
        """One attempt: status, body, ETag. Raises: NoAnswer."""
        text = canonical_query(query or {})
        digest = hashlib.sha256(body).hexdigest()
        signer = Signer(self.load.credentials, f"127.0.0.1:{self.load.port}")
        head = signer.head(method, path, query=text, payload_sha256=digest, size=len(body)).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    "127.0.0.1", self.load.port, timeout=self.load.answer_s
                )
            self._connection.request(method, f"{path}?{text}" if text else path, body or None, headers)
            answer = self._connection.getresponse()
            data = answer.read()
            if answer.will_close:
                self.disconnect()
        except (OSError, http.client.HTTPException) as failure:
            self.disconnect()
            raise NoAnswer(f"{type(failure).__name__}: {failure}") from failure
        if answer.status >= 500:
            code = re.search(rb"<Code>([^<]*)", data)
            raise NoAnswer(f"{answer.status} {code[1].decode() if code else ''}")
        return answer.status, data, answer.headers.get("ETag", "")

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def until_answered(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: bytes = b"",
        started: float | None = None,
    ) -> tuple[int, bytes, str]:
        """Repeat until there is a certain answer. Raises: Unserved."""
        started = time.monotonic() if started is None else started
        failures = (
            self.load.findings.read_failures
            if method in ("GET", "HEAD")
            else self.load.findings.write_failures
        )
        while True:
            try:
                found = self.once(method, path, query, body)
            except NoAnswer as failure:
                failures.append(f"{time.monotonic() - self.load.began:.2f} s: {method} {path}: {failure}")
                if time.monotonic() - started > GIVE_UP_S:
                    raise Unserved(f"{method} {path} for {GIVE_UP_S:.0f} s, last: {failure}") from failure
                time.sleep(self.load.pause_s)
                continue
            self.load.findings.stalls.append((time.monotonic() - started, f"{method} {path}"))
            return found

    # -- verbs -------------------------------------------------------------------------------------------

    def put(self, key: str) -> None:
        entry = self.entries[key]
        entry.newest += 1
        version = entry.newest
        entry.may_be.add(version)  # From here on it may be there, answered or not.
        if key.startswith("parts"):
            self._put_in_parts(key, version)
        else:
            body = content(key, version)
            status, answer, tag = self.until_answered("PUT", self._path(key), body=body)
            self._expect(status == 200, f"PUT {key}: {status} {answer[:200]!r}")
            wanted = hashlib.md5(body, usedforsecurity=False).hexdigest()
            self._expect(tag == f'"{wanted}"', f"PUT {key}: ETag {tag}, not {wanted}")
        entry.may_be = {version}
        self.load.findings.acknowledged += 1

    def _put_in_parts(self, key: str, version: int) -> None:
        path, body = self._path(key), content(key, version)
        while True:
            status, answer, _ = self.until_answered("POST", path, {"uploads": ""})
            found = re.search(rb"<UploadId>([^<]+)", answer)
            if status != 200 or not found:
                self._expect(False, f"CreateMultipartUpload {key}: {status} {answer[:200]!r}")
                return
            upload = found[1].decode()
            tags = []
            for number, begin in enumerate(range(0, len(body), _PART_SIZE), start=1):
                query = {"partNumber": str(number), "uploadId": upload}
                status, answer, tag = self.until_answered(
                    "PUT", path, query, body[begin : begin + _PART_SIZE]
                )
                self._expect(status == 200, f"UploadPart {key}: {status} {answer[:200]!r}")
                tags.append(f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>")
            document = f"<CompleteMultipartUpload>{''.join(tags)}</CompleteMultipartUpload>".encode()
            status, answer, _ = self.until_answered("POST", path, {"uploadId": upload}, document)
            if b"<ETag>" in answer and status == 200:
                return
            if b"NoSuchUpload" in answer:
                # An earlier attempt without an answer may have completed it: look, else begin anew.
                status, data, _ = self.until_answered("GET", path)
                if status == 200 and version_of(key, data) == version:
                    return
                continue
            self._expect(False, f"CompleteMultipartUpload {key}: {status} {answer[:200]!r}")
            return

    def delete(self, key: str) -> None:
        entry = self.entries[key]
        entry.may_be.add(_ABSENT)
        status, answer, _ = self.until_answered("DELETE", self._path(key))
        self._expect(status == 204, f"DELETE {key}: {status} {answer[:200]!r}")
        entry.may_be = {_ABSENT}
        self.load.findings.acknowledged += 1

    def get(self, key: str) -> None:
        status, data, _ = self.until_answered("GET", self._path(key))
        self.judge(key, status, data)

    def judge(self, key: str, status: int, data: bytes) -> None:
        """Hold an answer against the manifest."""
        may_be = self.entries[key].may_be
        self.load.findings.reads += 1
        if status == 404:
            self._expect(_ABSENT in may_be, f"LOST: {key} is gone, but must be version {sorted(may_be)}")
            return
        if status != 200:
            self._expect(False, f"GET {key}: {status} {data[:200]!r}")
            return
        version = version_of(key, data)
        if version is None:
            self._expect(
                False, f"TORN: {key} holds {len(data)} bytes that are no version of it: {data[:60]!r}"
            )
        elif version not in may_be:
            what = "BACK FROM THE DEAD" if may_be == {_ABSENT} else "OLD OR UNKNOWN"
            self._expect(False, f"{what}: {key} is version {version}, but must be one of {sorted(may_be)}")

    def list_own(self) -> None:
        """The listing of this client's prefix agrees with the manifest."""
        for prefix in sorted({key.partition("/")[0] + "/" for key in self.entries}):
            found: set[str] = set()
            query = {"list-type": "2", "prefix": prefix, "max-keys": "7"}
            while True:
                status, answer, _ = self.until_answered("GET", f"/{self.load.bucket}", query)
                if status != 200:
                    self._expect(False, f"LIST {prefix}: {status} {answer[:200]!r}")
                    return
                found |= {match.decode() for match in re.findall(rb"<Key>([^<]+)</Key>", answer)}
                more = re.search(rb"<NextContinuationToken>([^<]+)", answer)
                if not more:
                    break
                query = {**query, "continuation-token": more[1].decode()}
            for key, entry in self.entries.items():
                if not key.startswith(prefix):
                    continue
                if key in found:
                    self._expect(entry.may_be != {_ABSENT}, f"BACK FROM THE DEAD: {key} is listed")
                else:
                    self._expect(
                        _ABSENT in entry.may_be,
                        f"LOST: {key} is not listed, but must be version {sorted(entry.may_be)}",
                    )

    def _path(self, key: str) -> str:
        return f"/{self.load.bucket}/{key}"

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            at = time.monotonic() - self.load.began
            self.load.findings.broken.append(f"{at:.2f} s, {self.name}: {otherwise}")

    # -- life --------------------------------------------------------------------------------------------

    def run(self) -> None:
        keys = sorted(self.entries)
        try:
            while not self.load.stopping.is_set():
                if self.load.pausing.is_set():
                    self.parked.set()
                    self.load.resumed.wait(GIVE_UP_S)
                    self.parked.clear()
                    continue
                key = self.random.choice(keys)
                dice = self.random.random()
                if key.startswith("parts") and dice < 0.8:
                    dice = 0.9  # Large ones are mostly read.
                if dice < 0.5:
                    self.put(key)
                elif dice < 0.65:
                    self.delete(key)
                elif dice < 0.97:
                    self.get(key)
                else:
                    self.list_own()
                time.sleep(self.load.think_s)
        except Unserved as failure:
            self._expect(False, f"UNSERVED: {failure}")
        except Exception as failure:  # A bug in the client must not look like a quiet store.
            self._expect(False, f"the client itself failed: {failure!r}")
        finally:
            self.parked.set()
            self.disconnect()

    def check_everything(self) -> None:
        """Read and list every key. Only while parked (called by others then)."""
        try:
            for key in self.entries:
                self.get(key)
            self.list_own()
        except Unserved as failure:
            self._expect(False, f"UNSERVED: {failure}")


class Load:
    """All clients. Use as a context manager: at its end they have stopped."""

    def __init__(
        self,
        *,
        port: int,
        credentials: Credentials,
        seed: int,
        clients: int = 6,
        keys: int = 40,
        multipart: bool = True,
        think_s: float = 0.004,
        answer_s: float = 20.0,
        pause_s: float = 0.02,
    ) -> None:
        self.port = port
        self.credentials = credentials
        self.keys = keys
        self.multipart = multipart
        self.think_s = think_s  # Leaves the processors to the store: its delays are to be its own.
        self.answer_s = answer_s
        self.pause_s = pause_s  # Before a request is repeated.
        self.bucket = "chaos"
        self.findings = Findings()
        self.began = time.monotonic()
        self.stopping = threading.Event()
        self.pausing = threading.Event()
        self.resumed = threading.Event()
        source = random.Random(seed)
        self.clients = [Client(self, number, source.getrandbits(64)) for number in range(clients)]

    def __enter__(self) -> "Load":
        status, answer, _ = self.clients[0].until_answered("PUT", f"/{self.bucket}")
        assert status in (200, 409), answer
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.resumed.set()
        for client in self.clients:
            client.join(GIVE_UP_S * 2)

    def alive(self) -> bool:
        """Whether every client still works (one that found the store gone has stopped)."""
        return all(client.is_alive() for client in self.clients)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """All clients parked between two operations."""
        self.resumed.clear()
        self.pausing.set()
        try:
            for client in self.clients:
                if not client.parked.wait(GIVE_UP_S * 2):
                    self.findings.broken.append(f"UNSERVED: {client.name} hangs in a request")
            yield
        finally:
            self.pausing.clear()
            self.resumed.set()

    def check_everything(self) -> None:
        """Every key of every client, read and listed, while no client works."""
        with self.pause(), ThreadPoolExecutor(len(self.clients)) as each:
            for _ in each.map(Client.check_everything, self.clients):
                pass

    def work_until(self, operations: int, limit_s: float = GIVE_UP_S) -> None:
        """Wait until so many more operations are acknowledged: load is counted, not slept."""
        goal = self.findings.acknowledged + operations
        end = time.monotonic() + limit_s
        while self.findings.acknowledged < goal and time.monotonic() < end and self.alive():
            time.sleep(0.005)

    def report(self) -> str:
        seconds, what = self.findings.longest_stall()
        return (
            f"{self.findings.acknowledged} writes acknowledged, {self.findings.reads} reads judged, "
            f"{len(self.findings.write_failures)} write and {len(self.findings.read_failures)} read attempts "
            f"without an answer, longest wait {seconds:.2f} s ({what})"
        )


class Pressure:
    """How much slower than its CPU time a process runs here: 1.0 on a quiet machine, 3.0 among many.

    Bounds in seconds are promises for a machine that has time for the store. The tests share theirs, so a
    bound is multiplied by what an innocent process suffered in the same seconds.
    """

    _SOURCE = """
import json, sys, threading, time
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
wall = cpu = 0.0
while not stop.wait(0.05):
    began, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < 0.002:
        sum(range(2000))
    wall += time.perf_counter() - began
    cpu += time.thread_time() - used
print(json.dumps(wall / cpu if cpu else 1.0))
"""

    def __enter__(self) -> "Pressure":
        self.factor = 1.0
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._SOURCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        out = self._process.communicate(timeout=30)[0]
        self.factor = max(1.0, float(json.loads(out)))


def metrics_of(cluster: LocalCluster) -> str:
    """What Prometheus would get from its gateway."""
    gateway = cluster.gateway
    token = (gateway.data / "admin.token").read_text().strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.ports[1]}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        page: str = answer.read().decode()
    return page
