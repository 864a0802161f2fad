"""Fetching a tenant's data into a directory (cli/exported.py), resumable wherever it was cut.

Keys come in pages, bodies in pieces over a few connections at once; each body is hashed as it comes and held
against its ETag. What is in memory is a page of keys and a piece a connection. A store that goes away is
waited for; a body that cannot be read is noted as missing, and tried again by the next run.
"""

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote, urlencode

from objstore.cli.client import AdminClient, Refused, Unreachable
from objstore.cli.exported import (
    ABOUT,
    BEGINNING,
    CHUNK,
    DOCUMENT,
    FORMAT,
    MISSING_MAX,
    Broken,
    Facts,
    Lines,
    Sums,
    Told,
    body_name,
    line_of,
    manifest_digest,
    read_about,
    read_end,
    resume,
    sync,
    write_manifest,
    write_whole,
)

RESUME_SECONDS: Final = 86_400.0  # An export is open for a week.
AWAY_SECONDS: Final = 120.0  # A store that is started again meanwhile is waited for.
TRIES: Final = 4  # Of a piece that the store cannot read just now.
PAUSE_SECONDS: Final = 1.0
TOO_MANY: Final = 429
KEYS: Final = 200  # Of one page.
ROWS: Final = 500  # Of one page of records.
API: Final = "/api/v1/"


class Unreadable(Exception):
    """An object whose bytes the store could not give."""


class Gone(Exception):
    """An object that was deleted since it was listed."""


class Written(Exception):
    """An object that was written again since it was listed."""


class Pipe:
    """A connection to the admin port that is kept. For one thread."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {client.token()}"}
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str, **query: object) -> Any:
        """Raises: Refused, Unreachable."""
        return json.loads(self.read(path, **query))

    def read(self, path: str, **query: object) -> bytes:
        """An answer as it is. Raises: Refused (too many requests for AWAY_SECONDS, too), Unreachable (so)."""
        given = {name: one for name, one in query.items() if one not in ("", None)}
        target = API + path + (f"?{urlencode(given)}" if given else "")
        limit = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return self._asked(target)
            except Unreachable:
                if time.monotonic() >= limit:
                    raise
            except Refused as refused:
                if refused.status != TOO_MANY or time.monotonic() >= limit:
                    raise
            time.sleep(PAUSE_SECONDS)

    def rows(self, path: str, **query: object) -> Iterator[Facts]:
        """All rows of a list, page after page."""
        cursor: str | None = ""
        while cursor is not None:
            page = self.get(path, **{"limit": ROWS, **query, "cursor": cursor})
            yield from page["items"]
            cursor = page["next"]

    def _asked(self, target: str) -> bytes:
        kept, self._connection = self._connection, None
        if kept is not None:
            try:
                return self._answered(kept, target)
            except Unreachable:
                pass  # The port ends connections that rest: that says nothing of the store.
        return self._answered(self._client.connect(), target)

    def _answered(self, connection: http.client.HTTPConnection, target: str) -> bytes:
        try:
            connection.request("GET", target, headers=self._headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as failure:
            connection.close()
            raise self._client.unreachable(failure) from None
        if answer.will_close:
            connection.close()
        else:
            self._connection = connection
        if answer.status >= 400:
            raise Refused(answer.status, _words(content))
        return content

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _words(content: bytes) -> str:
    try:
        document = json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
    return str(document.get("detail", document)) if isinstance(document, dict) else str(document)


class EtagCheck:
    """The ETag of bytes as they come: their MD5, or the MD5 of the parts' MD5s.

    Args:
        sizes: of the parts; none: there are no parts.
    """

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes
        self._part = 0
        self._left = sizes[0] if sizes else 0
        self._digests: list[bytes] = []
        self._digest = hashlib.md5(usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        while self._sizes and len(data) >= self._left:
            if self._part >= len(self._sizes):
                return
            self._digest.update(data[: self._left])
            data = data[self._left :]
            self._next()
        self._digest.update(data)
        self._left -= len(data)

    def _next(self) -> None:
        self._digests.append(self._digest.digest())
        self._digest = hashlib.md5(usedforsecurity=False)
        self._part += 1
        self._left = self._sizes[self._part] if self._part < len(self._sizes) else 0

    def text(self) -> str:
        if not self._sizes:
            return self._digest.hexdigest()
        while self._part < len(self._sizes) and not self._left:
            self._next()
        whole = hashlib.md5(b"".join(self._digests), usedforsecurity=False).hexdigest()
        return f"{whole}-{len(self._digests)}"


class Export:
    """One export of one tenant into one directory: `open`, `resume`, `fetch`, `records`, `seal`, `finish`, in
    this order; `close` at the end."""

    def __init__(self, client: AdminClient, tenant: str, directory: Path, *, at_once: int) -> None:
        """
        Args:
            at_once: connections.
        """
        self._client = client
        self._tenant = tenant
        self._directory = directory
        self._at_once = at_once
        self._own = threading.local()
        self._pipes: list[Pipe] = []
        self._path = f"tenants/{quote(tenant, safe='')}"
        self._export = ""
        self._locked = -1  # The directory, open.
        self._opened = time.monotonic()

    def _pipe(self) -> Pipe:
        """This thread's own."""
        if not hasattr(self._own, "pipe"):
            self._own.pipe = Pipe(self._client)
            self._pipes.append(self._own.pipe)
        pipe: Pipe = self._own.pipe
        return pipe

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        if self._locked >= 0:
            os.close(self._locked)
            self._locked = -1

    # Before the work.

    def buckets(self) -> list[Facts]:
        """The tenant's buckets with what they hold. Raises: Refused, Unreachable."""
        return list(self._pipe().rows(f"{self._path}/buckets"))

    def open(self) -> None:
        """Open the export in the store, or the one that the directory holds again.

        Raises: Broken (the directory holds something else), Refused, Unreachable, OSError.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock()
        about = read_about(self._directory)
        if about is None:
            if any(path.name != BEGINNING for path in self._directory.iterdir()):
                raise Broken(f"{self._directory} is not empty, and holds no export")
            begun = self._client.post(f"{API}{self._path}/exports", {})
            self._export = begun["id"]
            about = {
                "document": DOCUMENT,
                "format": FORMAT,
                "tenant": self._tenant,
                "export": begun["id"],
                "begun": begun["begun"],
                "by": begun["by"],
            }
            write_whole(self._directory / ABOUT, json.dumps(about, indent=2).encode() + b"\n")
            return
        if about["tenant"] != self._tenant:
            raise Broken(f"{self._directory} holds an export of {about['tenant']}")
        self._export = str(about["export"])
        if not manifest_digest(self._directory):
            self._resume()

    def _lock(self) -> None:
        """Until `close`. Raises: Broken (another process is at it)."""
        self._locked = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Broken(f"another export into {self._directory} is under way") from None

    def _resume(self) -> None:
        """Open it for longer."""
        self._client.post(f"{API}{self._path}/exports/{self._export}/resume", {})
        self._opened = time.monotonic()

    # The work.

    def resume(self, told: Told) -> Sums:
        """What an earlier run has fetched, verified."""
        return resume(self._directory, told)

    def fetch(self, sums: Sums, told: Told) -> None:
        """All objects behind the last one that is there; then once more those that were missing.

        Raises: Broken, Refused, Unreachable, OSError: run again to go on.
        """
        lines = Lines(self._directory)
        try:
            for line in self._in_order(self._listed(sums.last), told):
                self._take(lines, sums, line)
            for line in self._in_order(self._missing(sums), told):
                self._take(lines, sums, {**line, "again": True})
        finally:
            lines.close()

    def _take(self, lines: Lines, sums: Sums, line: Facts) -> None:
        if time.monotonic() >= self._opened + RESUME_SECONDS:
            self._resume()
        lines.add(line)
        sums.take(line)
        if len(sums.missing) >= MISSING_MAX:
            raise Broken(f"{MISSING_MAX} objects could not be read: something is wrong with the store")

    def _in_order(self, listed: Iterator[tuple[str, Facts]], told: Told) -> Iterator[Facts]:
        """A line for each, in their order; a few are fetched at a time."""
        with ThreadPoolExecutor(self._at_once) as pool:
            waiting: deque[Future[Facts | None]] = deque()
            try:
                for bucket, row in listed:
                    waiting.append(pool.submit(self._fetched, bucket, row, told))
                    if len(waiting) >= 2 * self._at_once and (line := waiting.popleft().result()):
                        yield line
                while waiting:
                    if line := waiting.popleft().result():
                        yield line
            finally:
                for future in waiting:
                    future.cancel()

    def _listed(self, last: tuple[str, str] | None) -> Iterator[tuple[str, Facts]]:
        for bucket in sorted(one["name"] for one in self.buckets()):
            after = ""
            if last is not None:
                if bucket < last[0]:
                    continue
                after = last[1] if bucket == last[0] else ""
            yield from ((bucket, row) for row in self._keys(bucket, after))

    def _keys(self, bucket: str, after: str) -> Iterator[Facts]:
        following: str | None = after
        while following is not None:
            try:
                page = self._pipe().get(self._of(bucket, "objects"), after=following, limit=KEYS)
            except Refused as refused:
                if refused.status == 404:
                    return  # The bucket was deleted since.
                raise
            yield from page["items"]
            following = page["next"]

    def _missing(self, sums: Sums) -> Iterator[tuple[str, Facts]]:
        for bucket, key in list(sums.missing):
            row = self._row(bucket, _encoded(key))
            if row is None:
                sums.missing.pop((bucket, key))  # It was deleted since.
            else:
                yield bucket, row

    def _row(self, bucket: str, key: str) -> Facts | None:
        """What a key has now; None: nothing."""
        try:
            row: Facts = self._pipe().get(self._of(bucket, "objects"), only=key)["items"][0]
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return row

    def _of(self, bucket: str, what: str) -> str:
        return f"{self._path}/exports/{self._export}/buckets/{quote(bucket, safe='')}/{what}"

    def _fetched(self, bucket: str, row: Facts, told: Told) -> Facts | None:
        """The object's line, its body in its file; None: it was deleted since it was listed."""
        while True:
            try:
                return self._object(bucket, row, told)
            except Gone:
                return None
            except Unreadable as failure:
                told(0, 1)
                return {"bucket": bucket, **row, "missing": str(failure)}
            except Written:
                newer = self._row(bucket, row["key_base64"])
                if newer is None:
                    return None
                row = newer

    def _object(self, bucket: str, row: Facts, told: Told) -> Facts:
        parts = self._parts(bucket, row) if row["parts"] else []
        name = body_name(bucket, row)
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes = [part["size"] for part in parts]
        digest, etag = self._body(bucket, row, path, sizes, told)
        if etag != row["etag"]:  # Perhaps what a power cut left of an earlier run: all of it anew, once.
            path.unlink()
            digest, etag = self._body(bucket, row, path, sizes, told)
        told(0, 1)
        line = {"bucket": bucket, **row, "file": name, "sha256": digest, "etag_matches": etag == row["etag"]}
        return {**line, "part_list": parts} if parts else line

    def _parts(self, bucket: str, row: Facts) -> list[Facts]:
        found: list[Facts] = []
        page: int | None = 0
        while page is not None:
            answer = json.loads(self._of_version(bucket, row, "parts", page=page))
            found += answer["items"]
            page = answer["next"]
        return found

    def _body(self, bucket: str, row: Facts, path: Path, sizes: list[int], told: Told) -> tuple[str, str]:
        """Fetch what a file lacks of a body. Returns: SHA-256 and ETag of all of it."""
        part = path.with_name(path.name + ".part")
        if path.exists():
            os.replace(path, part)  # Its line was not written: it is looked at once more.
        digest, etag = hashlib.sha256(), EtagCheck(sizes)
        with open(part, "a+b") as file:
            at = self._there(file, row["size"], digest.update, etag.update, told)
            while at < row["size"]:
                piece = self._of_version(bucket, row, "body", first=at)
                if not piece:
                    raise Unreadable(f"it ends at {at} of {row['size']} bytes")
                file.write(piece)
                digest.update(piece)
                etag.update(memoryview(piece))
                at += len(piece)
                told(len(piece), 0)
        os.replace(part, path)
        return digest.hexdigest(), etag.text()

    def _there(
        self,
        file: IO[bytes],
        size: int,
        digest: Callable[[memoryview], object],
        etag: Callable[[memoryview], object],
        told: Told,
    ) -> int:
        """Bytes of a body that are in its file already, hashed; a file that is too long is emptied."""
        if file.seek(0, os.SEEK_END) > size:
            file.truncate(0)
        file.seek(0)
        at = 0
        while chunk := file.read(CHUNK):
            digest(memoryview(chunk))
            etag(memoryview(chunk))
            at += len(chunk)
            told(len(chunk), 0)
        return at

    def _of_version(self, bucket: str, row: Facts, what: str, **query: object) -> bytes:
        """Raises: Gone, Written, Unreadable, Refused, Unreachable."""
        path = self._of(bucket, what)
        for tried in range(1, TRIES + 1):
            try:
                return self._pipe().read(path, key=row["key_base64"], order=row["order"], **query)
            except Refused as refused:
                if refused.status == 404:
                    raise Gone from None
                if refused.status == 409:
                    raise Written from None
                if refused.status < 500:
                    raise
                if tried == TRIES:
                    raise Unreadable(str(refused)) from None
                time.sleep(tried * PAUSE_SECONDS)
        raise AssertionError("the last try raises")

    # What is known of the tenant beside its objects.

    def records(self) -> None:
        """Write all of it, anew. Raises: Refused, Unreachable, OSError."""
        place = self._directory / "records"
        if place.exists():
            shutil.rmtree(place)  # Of an earlier run, perhaps in its middle.
        place.mkdir()
        pipe = self._pipe()
        tenant = pipe.get(self._path)
        write_whole(place / "tenant.json", json.dumps(tenant, indent=2).encode() + b"\n")
        lists: dict[str, tuple[str, Facts]] = {
            "buckets": (f"{self._path}/buckets", {}),
            "users": ("users", {"tenant": self._tenant}),
            "keys": ("keys", {"tenant": self._tenant}),
            "usage": (f"{self._path}/usage/records", {}),
        }
        if tenant["customer"] is not None:
            lists |= {
                "projects": (f"{self._path}/projects", {}),
                "leases": ("leases", {"tenant": self._tenant}),
                "payments": ("payments", {"tenant": self._tenant}),
                "wallet": (f"{self._path}/wallet", {}),
                "documents": ("invoices", {"tenant": self._tenant}),
            }
        for name, (path, query) in lists.items():
            _write_lines(place / f"{name}.jsonl", pipe.rows(path, **query))
        if tenant["customer"] is not None:
            self._documents(place)

    def _documents(self, place: Path) -> None:
        """Each invoice and credit note with its lines, and as PDF once it is final."""
        folder = place / "documents"
        folder.mkdir()
        pipe = self._pipe()
        with open(place / "documents.jsonl", "rb") as file:
            for raw in file:
                document = json.loads(raw)
                one = f"invoices/{quote(document['id'], safe='')}"
                _write_lines(folder / f"{document['id']}.jsonl", iter(pipe.get(f"{one}/lines")["items"]))
                if document["state"] != "draft":
                    write_whole(folder / f"{document['id']}.pdf", pipe.read(f"{one}/pdf"))

    # The end.

    def seal(self, sums: Sums) -> None:
        """Write the manifest: from here on the directory is a whole export."""
        for left in (self._directory / "bodies").glob("*/*.part"):  # Of objects that were deleted meanwhile.
            left.unlink()
        for name in ("records/documents", "records", "bodies", "."):
            if (folder := self._directory / name).is_dir():
                sync(folder)  # A name is on the disk when its directory is.
        write_manifest(self._directory, sums)

    def finish(self) -> str:
        """Tell the store. Returns: the manifest's SHA-256. Raises: Broken, Refused, Unreachable."""
        digest, end = manifest_digest(self._directory), read_end(self._directory)
        told = {name: end[name] for name in ("objects", "bytes", "missing")}
        self._client.post(f"{API}{self._path}/exports/{self._export}/finish", {**told, "manifest": digest})
        return digest


def _encoded(key: str) -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(key.encode()).rstrip(b"=").decode()


def _write_lines(path: Path, rows: Iterator[Facts]) -> None:
    """A list of any length, a line each; the file is whole or not there."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        for row in rows:
            file.write(line_of(row))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
