"""Drive preload.c: record what a command does to a directory, replay prefixes as power cuts, inject failures.

    library = build(tmp_path)
    recorder = Recorder(library, root=data, scratch=tmp_path)
    process = subprocess.Popen(command, env=recorder.environment())
    ... the test does things, and recorder.mark("put 1") after each acknowledgement ...
    for step in recorder.replay(): ...

A mark stands in the log behind every call that had returned when it was made: what a prefix says is
acknowledged must be there after a power cut at its end.
"""

import contextlib
import mmap
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.sim.file_system import PAGE, SimFileSystem

SOURCE = Path(__file__).with_name("preload.c")

WRITE, SYNC, CUT, CREATE, RENAME, UNLINK, MKDIR, RMDIR, LINK, MARK = 1, 2, 3, 4, 5, 6, 7, 8, 9, 100
NAMES = {WRITE: "write", SYNC: "sync", CUT: "cut", CREATE: "create", RENAME: "rename", UNLINK: "unlink",
         MKDIR: "mkdir", RMDIR: "rmdir", LINK: "link", MARK: "mark"}  # fmt: skip

_MAGIC = 0x31524352
_RECORD = struct.Struct("=IIQQIIII")
_CONTROL = struct.Struct("@IIQQQiI256sQ512s")
_MOUNT = "/data"  # Where the recorded directory lies in the simulated file system.


class Call(NamedTuple):
    kind: int
    path: str  # Relative to the root; "" is the root itself.
    other: str
    position: int
    synced: bool
    data: bytes

    def __str__(self) -> str:
        size = f" {len(self.data)} at {self.position}" if self.kind == WRITE else ""
        if self.kind == MARK:
            return f"mark {self.data.decode()}"
        return f"{NAMES[self.kind]}{size} {self.path} {self.other}".rstrip()


def build(directory: Path) -> Path:
    """Compile the library with the machine's C compiler. Raises: CalledProcessError, with its words."""
    library = directory / "preload.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"],
        check=True,
        timeout=120,
    )
    return library


class Recorder:
    """One recorded directory; any number of processes may run under it, one after another or at once."""

    def __init__(self, library: Path, root: Path, scratch: Path, *, record: bool = True) -> None:
        assert root.is_absolute()
        self.root = Path(os.path.realpath(root))
        self._library = library
        self._log = scratch / "calls.log"
        self._control_path = scratch / "control"
        self._control_path.write_bytes(bytes(_CONTROL.size))
        self._record = record
        self._log.write_bytes(b"")
        with open(self._control_path, "r+b") as file:
            self._control = mmap.mmap(file.fileno(), _CONTROL.size)
        self._start = SimFileSystem()
        _import(self._start, self.root)

    def environment(self) -> dict[str, str]:
        """os.environ and what the library needs."""
        return os.environ | self.variables()

    def variables(self) -> dict[str, str]:
        given = {
            "LD_PRELOAD": str(self._library),
            "CRASH_ROOT": str(self.root),
            "CRASH_CONTROL": str(self._control_path),
        }
        if self._record:
            given["CRASH_LOG"] = str(self._log)
        return given

    def mark(self, words: str) -> None:
        data = words.encode()
        with open(self._log, "ab", buffering=0) as file:
            file.write(_RECORD.pack(_MAGIC, MARK, 0, len(data), 0, 0, 0, os.getpid()) + data)

    # Failures.

    def fail(
        self,
        kinds: list[int],
        number: int,
        *,
        first: int = 1,
        last: int = (1 << 64) - 1,
        only: str = "",
        before: bool = True,
    ) -> None:
        """From now on the calls of these kinds on paths that contain `only` are counted, and those numbered
        first to last fail with this errno; `before` they did anything, or after."""
        mask = sum(1 << kind for kind in kinds)
        self._control[:] = _CONTROL.pack(0, mask, 0, first, last, number, before, only.encode(), 0, b"")
        self._control[0:4] = struct.pack("=I", 1)  # Armed last.

    def heal(self) -> None:
        self._control[0:4] = struct.pack("=I", 0)

    @property
    def counted(self) -> int:
        """Matching calls since `fail`."""
        count: int = _CONTROL.unpack(self._control[:])[2]
        return count

    @property
    def failed(self) -> int:
        count: int = _CONTROL.unpack(self._control[:])[8]
        return count

    @property
    def last_failed_path(self) -> str:
        name: bytes = _CONTROL.unpack(self._control[:])[9]
        return name.rstrip(b"\0").decode()

    # The log.

    def calls(self) -> list[Call]:
        """Everything recorded so far, in order. Raises: AssertionError if the log is damaged."""
        data = self._log.read_bytes()
        found: list[Call] = []
        at = 0
        root = os.fsencode(self.root)
        while at < len(data):
            magic, kind, position, size, path_size, other_size, synced, _ = _RECORD.unpack_from(data, at)
            assert magic == _MAGIC, f"the log is damaged at {at}"
            at += _RECORD.size
            path = data[at : at + path_size].removeprefix(root).strip(b"/").decode()
            at += path_size
            other = data[at : at + other_size].removeprefix(root).strip(b"/").decode()
            at += other_size
            found.append(Call(kind, path, other, position, bool(synced), data[at : at + size]))
            at += size
        assert at == len(data), "the log ends within a record"
        return found

    def replay(
        self, places: Callable[[int, Call], bool], rng: random.Random
    ) -> Iterator[tuple[int, list[str], SimFileSystem]]:
        """Power cuts at the wanted places; where a synced write comes next, before or while it happens.

        Args:
            places: called with the length of each prefix and the call that ends it; True: cut there.

        Yields: the prefix's length, the marks within it, and a file system as it may be after the cut.
        """
        sim = self._start.copy()
        marks: list[str] = []
        calls = self.calls()
        for length, call in enumerate(calls, 1):
            if call.kind == MARK:
                marks.append(call.data.decode())
            else:
                _apply(sim, call)
            if places(length, call):
                if length < len(calls) and calls[length].synced and rng.random() < 0.5:
                    _apply(sim, calls[length]._replace(synced=False))
                yield length, list(marks), sim.possible_survivor(rng)

    def materialize(self, sim: SimFileSystem) -> None:
        """Put a simulated file system's content where the recorded directory was: the same path."""
        if self.root.exists():
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True)
        for path, content in sim.tree(_MOUNT):
            target = self.root / path
            if content is None:
                target.mkdir(exist_ok=True, mode=0o700)
            else:
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "wb") as file:
                    _write_sparse(file.fileno(), content)


class _Names:
    """Which names are one file: each has a number, under all its names, and keeps it when they change."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._newest = 0

    def file(self, path: str) -> int:
        if path not in self._files:
            self._newest += 1
            self._files[path] = self._newest
        return self._files[path]

    def follow(self, call: Call) -> None:
        if call.kind == LINK:
            self._files[call.other] = self.file(call.path)
        elif call.kind == UNLINK:
            self._files.pop(call.path, None)
        elif call.kind == RENAME:
            below = [path for path in self._files if f"{path}/".startswith(f"{call.path}/")]
            moved = {call.other + path.removeprefix(call.path): self._files.pop(path) for path in below}
            self._files.pop(call.other, None)
            self._files |= moved


def _pages(call: Call) -> range:
    """What a write touches: numbers of pages."""
    end = call.position + len(call.data)
    return range(call.position // PAGE, -(-end // PAGE)) if call.kind == WRITE else range(0)


def _shortens(call: Call) -> bool:
    """Whether it cuts a file's size."""
    return call.kind == CUT or (call.kind == CREATE and call.position > 0)


def distinct_cuts(calls: Sequence[Call], weakens: Callable[[Call], bool]) -> list[int]:
    """The lengths of the prefixes that suffice: what a cut after any other one can leave, one of these can.

    An unsynced write, cut or change of names only adds to what a power cut may leave, since it may as well be
    lost. So of the prefixes between two syncs the last one, right before the second, leaves every state that
    the others leave, and an acknowledgement among them is held to all of these states there. Three things
    speak against going on until then, and the prefix right before each is one too:

    - a mark that weakens a promise (an overwrite begins: the old content may go);
    - an unsynced write over a page that has one already: the page is its old or its newest content, never
      again what was between;
    - a cut of a file's size (an open with O_TRUNC is one), after an unsynced write to it: the same.

    A file is the same one under its new name, and under each of several.

    A sync that follows a sync with nothing between them adds nothing.

    Args:
        weakens: whether this mark permits what was not permitted before.
    """
    found: list[int] = []
    names = _Names()
    dirty: set[tuple[int, int]] = set()  # Files' pages with unsynced writes.
    changed = False  # Since the last prefix that was taken.
    for length, call in enumerate(calls):
        file = names.file(call.path)
        pages = {(file, page) for page in _pages(call)}
        syncs = call.kind == SYNC or call.synced
        ends = (
            syncs
            or (call.kind == MARK and weakens(call))
            or not dirty.isdisjoint(pages)
            or (_shortens(call) and any(page[0] == file for page in dirty))
        )
        if ends and changed:
            found.append(length)
            changed = False
        dirty |= pages
        if call.kind == SYNC:
            dirty = {page for page in dirty if page[0] != file}
        elif call.synced:
            dirty -= pages
        names.follow(call)
        changed = changed or call.kind != SYNC
    return [*found, len(calls)]


def _write_sparse(fd: int, content: bytes) -> None:
    os.ftruncate(fd, len(content))
    step = 1 << 16
    for start in range(0, len(content), step):
        piece = content[start : start + step]
        if piece.count(0) != len(piece):
            os.pwrite(fd, piece, start)


def _import(sim: SimFileSystem, root: Path) -> None:
    """What lies at the root when the recording begins is synced."""
    sim.mkdir(_MOUNT)
    if root.exists():
        for directory, names, files in os.walk(root):
            at = os.path.normpath(os.path.join(_MOUNT, os.path.relpath(directory, root)))
            for name in names:
                sim.mkdir(f"{at}/{name}")
            for name in files:
                content = (Path(directory) / name).read_bytes()
                fd = sim.open(f"{at}/{name}", os.O_CREAT | os.O_RDWR)
                sim.pwritev(fd, [content], 0, 0)
                sim.close(fd)
    sim.sync_everything()


def _apply(sim: SimFileSystem, call: Call) -> None:
    path = f"{_MOUNT}/{call.path}".rstrip("/")
    other = f"{_MOUNT}/{call.other}".rstrip("/")
    if call.kind == MKDIR:
        if call.path:
            sim.mkdir(path)
        return
    if call.kind == RENAME:
        sim.rename(path, other)
        return
    if call.kind == LINK:
        sim.link(path, other)
        return
    if call.kind == UNLINK:
        with contextlib.suppress(FileNotFoundError):  # A socket: made by bind, which is not recorded.
            sim.unlink(path)
        return
    if call.kind == RMDIR:
        sim.rmdir(path)
        return
    flags = os.O_CREAT | (os.O_TRUNC if call.position else 0) if call.kind == CREATE else 0
    try:
        fd = sim.open(path, flags)
    except FileNotFoundError:
        # The file was renamed or removed by another process between the call and its record.
        return
    if call.kind == WRITE:
        sim.pwritev(fd, [call.data], call.position, os.RWF_DSYNC if call.synced else 0)
    elif call.kind == SYNC:
        sim.fdatasync(fd)
    elif call.kind == CUT:
        sim.ftruncate(fd, call.position)
    sim.close(fd)
