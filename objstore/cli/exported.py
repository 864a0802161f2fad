"""An export as it lies on a disk: its files, its lines, and whether they are what the manifest says.

    export.json           what this is: tenant, export, when it began
    objects.jsonl         a line an object, in the order of buckets and of keys' bytes
    bodies/<2>/<40>       the bodies; the names say nothing, objects.jsonl says whose they are
    records/...           tenant, users, projects, keys, buckets, documents, payments, usage
    manifest.jsonl        a line a file of the above but bodies: size and SHA-256; the last line counts all
    manifest.sha256       the SHA-256 of manifest.jsonl; it is there once the export is whole

docs/export.md is for whoever reads it without us. A line stands in objects.jsonl only when its body is on the
disk, so that what a kill leaves is a beginning: a torn last line is cut off, and a body without a line is
fetched anew. Nothing here asks a store.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

FORMAT: Final = 1
DOCUMENT: Final = "objstore tenant export"
ABOUT: Final = "export.json"
BEGINNING: Final = "export.json.new"  # What a kill may leave before there is anything else.
OBJECTS: Final = "objects.jsonl"
MANIFEST: Final = "manifest.jsonl"
CHECKSUM: Final = "manifest.sha256"
CHUNK: Final = 1024 * 1024  # Bytes read at once.
SYNCS_AT_ONCE: Final = 16  # A file system writes down those that come together in one go.
WRONG_MAX: Final = 1_000  # Findings of one verification.
MISSING_MAX: Final = 100_000  # Objects that could not be read, remembered by name.
_BODY: Final = re.compile(r"bodies/[0-9a-f]{2}/[0-9a-f]{40}", re.ASCII)
_FILE: Final = re.compile(
    r"export\.json|objects\.jsonl|records(/[A-Za-z0-9-]{1,64}){1,2}\.[a-z]{1,8}", re.ASCII
)

Facts = dict[str, Any]
Told = Callable[[int, int], None]  # Bytes and objects, as they are done.


class Broken(Exception):
    """The directory is no export, or another one."""


def body_name(bucket: str, row: Facts) -> str:
    """The file of a version's body: keys hold slashes, dots, NUL, 1,024 bytes, and differ by case alone."""
    parts = (bucket, row["key"], row["version"], str(row["order"]))
    digest = hashlib.sha256("\0".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()[:40]
    return f"bodies/{digest[:2]}/{digest}"


def digest_of(path: Path, told: Told | None = None) -> tuple[int, str]:
    """Size and SHA-256 of a file; no symbolic link is followed. Raises: OSError."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if told is not None:
                told(len(chunk), 0)
    return size, digest.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """A small file, all of it or nothing, durably."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """A file's bytes, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def line_of(facts: Facts) -> bytes:
    """One line of JSON in ASCII, whatever a key holds."""
    return json.dumps(facts, separators=(",", ":")).encode() + b"\n"


def read_about(directory: Path) -> Facts | None:
    """What the export says of itself; None: there is none yet. Raises: Broken."""
    try:
        found = json.loads((directory / ABOUT).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as failure:
        raise Broken(f"{directory / ABOUT} cannot be read: {failure}") from None
    if not isinstance(found, dict) or found.get("document") != DOCUMENT:
        raise Broken(f"{directory} holds no export")
    if found.get("format") != FORMAT:
        raise Broken(f"{directory} holds an export of format {found.get('format')}: a later release reads it")
    return found


@dataclass(slots=True)
class Sums:
    """What lines of objects.jsonl come to."""

    objects: int = 0
    bytes: int = 0
    missing: dict[tuple[str, str], str] = field(default_factory=dict)  # (bucket, key) -> why.
    doubtful: int = 0  # Whose bytes are not those of their ETag.
    last: tuple[str, str] | None = None  # The last object in order: bucket, key_base64.

    def take(self, line: Facts) -> None:
        """Count a line; one behind an object that was missing replaces it."""
        name = (line["bucket"], line["key"])
        if not line.get("again"):
            self.last = (line["bucket"], line["key_base64"])
        if "missing" in line:
            if len(self.missing) < MISSING_MAX:
                self.missing[name] = line["missing"]
            return
        self.missing.pop(name, None)
        self.objects += 1
        self.bytes += line["size"]
        self.doubtful += not line["etag_matches"]


class Lines:
    """objects.jsonl as it grows. `close` at the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] = open(directory / OBJECTS, "ab")  # noqa: SIM115  (Until `close`.)
        self._waiting: list[Facts] = []
        self._size = 0

    def add(self, line: Facts, *, at_once: int = 256, size_max: int = 64 * CHUNK) -> None:
        """Behind its body, which the next `flush` makes durable first."""
        self._waiting.append(line)
        self._size += line.get("size", 0)
        if len(self._waiting) >= at_once or self._size >= size_max:
            self.flush()

    def flush(self) -> None:
        """1. bodies, 2. their names, 3. the lines that say that they are there."""
        bodies = [self._directory / line["file"] for line in self._waiting if "file" in line]
        with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
            list(pool.map(sync, bodies))
            list(pool.map(sync, {body.parent for body in bodies}))
        self._file.write(b"".join(map(line_of, self._waiting)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._waiting, self._size = [], 0

    def close(self) -> None:
        self.flush()
        self._file.close()


def resume(directory: Path, told: Told) -> Sums:
    """Verify what an earlier run has fetched, and cut objects.jsonl behind the last line that holds."""
    sums, good = Sums(), 0
    path = directory / OBJECTS
    if not path.exists():
        return sums
    with open(path, "rb") as file:
        for raw in file:
            line = _parsed(raw)
            if line is None or _wrong_body(directory, line, told):
                break
            sums.take(line)
            told(0, 1)
            good += len(raw)
    os.truncate(path, good)
    return sums


def _parsed(raw: bytes) -> Facts | None:
    """A line of objects.jsonl; None: it is torn, or none of ours."""
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(line, dict) or not {"bucket", "key", "key_base64"} <= line.keys():
        return None
    return line if "missing" in line or {"file", "size", "sha256", "etag_matches"} <= line.keys() else None


def _wrong_body(directory: Path, line: Facts, told: Told) -> str:
    """What is wrong with an object's file; empty: nothing."""
    if "missing" in line:
        return ""
    if not _BODY.fullmatch(str(line["file"])):
        return f"{line['file']!r} is no body's name"
    return _wrong_file(directory, line, told)


def _wrong_file(directory: Path, line: Facts, told: Told) -> str:
    try:
        size, digest = digest_of(directory / line["file"], told)
    except OSError as failure:
        return f"{line['file']}: {failure.strerror}"
    if size != line["size"]:
        return f"{line['file']}: {size} bytes, {line['size']} were written"
    return "" if digest == line["sha256"] else f"{line['file']}: its SHA-256 is another one"


# The manifest.


def files_of(directory: Path) -> list[str]:
    """Every file but bodies and the manifest, by its path in the export, in order."""
    found = [ABOUT, OBJECTS]
    found += [
        str(path.relative_to(directory))
        for path in sorted((directory / "records").rglob("*"))
        if path.is_file()
    ]
    return found


def write_manifest(directory: Path, sums: Sums) -> str:
    """manifest.jsonl and, behind it, manifest.sha256. Returns: its SHA-256 in hexadecimal digits."""
    lines: list[Facts] = []
    for name in files_of(directory):
        size, digest = digest_of(directory / name)
        lines.append({"file": name, "size": size, "sha256": digest})
    end = {
        "end": True,
        "files": len(lines),
        "objects": sums.objects,
        "bytes": sums.bytes,
        "missing": len(sums.missing),
    }
    content = b"".join(line_of(line) for line in [*lines, end])
    digest = hashlib.sha256(content).hexdigest()
    write_whole(directory / MANIFEST, content)
    write_whole(directory / CHECKSUM, f"{digest}  {MANIFEST}\n".encode())
    return digest


def manifest_digest(directory: Path) -> str:
    """What manifest.sha256 says; empty: the export is not whole."""
    try:
        return (directory / CHECKSUM).read_text().partition(" ")[0]
    except (OSError, UnicodeDecodeError):
        return ""


def read_end(directory: Path) -> Facts:
    """The last line of the manifest. Raises: Broken."""
    try:
        end = json.loads((directory / MANIFEST).read_bytes().splitlines()[-1])
    except (OSError, ValueError, IndexError) as failure:
        raise Broken(f"{directory / MANIFEST} cannot be read: {failure}") from None
    if not isinstance(end, dict) or not {"objects", "bytes", "missing"} <= end.keys():
        raise Broken(f"{directory / MANIFEST} has no end")
    return end


def verify(directory: Path, told: Told) -> tuple[Sums, list[str]]:
    """Hold every file against the manifest, and the manifest against its checksum.

    Returns: what there is, and what is wrong with it, at most WRONG_MAX findings.

    Raises: Broken (it is no export, or not a whole one).
    """
    if read_about(directory) is None:
        raise Broken(f"{directory} holds no export")
    if not (digest := manifest_digest(directory)):
        raise Broken(f"{directory} holds an export that is not whole: {CHECKSUM} is not there")
    end = read_end(directory)
    sums, wrong = Sums(), []
    try:
        if digest_of(directory / MANIFEST)[1] != digest:
            wrong.append(f"{MANIFEST}: its SHA-256 is not the one in {CHECKSUM}")
        wrong += _wrong_files(directory)
        for finding in _wrong_objects(directory, sums, told):
            wrong.append(finding)
            if len(wrong) >= WRONG_MAX:
                break
    except OSError as failure:
        raise Broken(f"{failure.filename}: {failure.strerror}") from None
    found = {"objects": sums.objects, "bytes": sums.bytes, "missing": len(sums.missing)}
    if len(wrong) < WRONG_MAX and (differing := [name for name in found if found[name] != end[name]]):
        wrong += [f"{found[name]} {name} are there, the manifest counts {end[name]}" for name in differing]
    return sums, wrong


def _wrong_files(directory: Path) -> Iterator[str]:
    listed = set()
    for raw in (directory / MANIFEST).read_bytes().splitlines()[:-1]:
        try:
            line = json.loads(raw)
            name = str(line["file"])
        except (ValueError, KeyError, TypeError):
            yield f"{MANIFEST}: a line cannot be read"
            continue
        listed.add(name)
        if not _FILE.fullmatch(name):
            yield f"{name!r} is no file of an export"
        elif words := _wrong_file(directory, line, lambda size, count: None):
            yield words
    for name in files_of(directory):
        if name not in listed:
            yield f"{name}: the manifest does not name it"


def _wrong_objects(directory: Path, sums: Sums, told: Told) -> Iterable[str]:
    with open(directory / OBJECTS, "rb") as file:
        for number, raw in enumerate(file, 1):
            line = _parsed(raw)
            if line is None:
                yield f"{OBJECTS}: line {number} cannot be read"
                continue
            if words := _wrong_body(directory, line, told):
                yield words
            sums.take(line)
            told(0, 1)
