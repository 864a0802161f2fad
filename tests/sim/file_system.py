"""A file system in memory that loses power: what was not synced may survive in any mixture.

It stands beneath LocalDisk in place of the kernel (objstore.node.syscalls.Syscalls). What it promises is what
POSIX promises and no more, which is less than ext4 keeps:

- bytes survive a power cut when fdatasync or fsync of the file, or a write with RWF_DSYNC (for its own
  range), has returned; of the other 4 KiB pages any subset survives, each in its old or its newest content,
  the last write torn at a multiple of 512 bytes; pages that did not survive within the file's size read as
  zeros or as what was there before;
- the size survives likewise: it is any size between the synced one and the newest;
- names survive when their directory was synced after the change; of the other changes any subset survives, in
  order; one change (a rename, say) is never half done. A file's sync does not save its name.

`power_cut_at(n)` ends the world at the n-th call that changes something: that call may or may not have
happened, every later one raises PowerCut. `after_power_cut(rng)` is the file system that comes up again.

Concurrency: called from a disk's threads; one lock around everything.
"""

import errno
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

PAGE = 4096
SECTOR = 512


class PowerCut(Exception):
    """The machine is off. Not an OSError: the code under test must not take it for a disk's answer."""


class Stat(NamedTuple):
    st_size: int
    st_nlink: int
    st_dev: int
    st_ino: int
    st_mtime_ns: int


class Space(NamedTuple):
    f_frsize: int
    f_blocks: int
    f_bavail: int


@dataclass(eq=False)
class _File:
    number: int
    data: bytearray = field(default_factory=bytearray)  # As every reader sees it now.
    synced: bytearray = field(default_factory=bytearray)  # What surely survives.
    dirty: set[int] = field(default_factory=set)  # Numbers of pages that differ, or may.
    last: tuple[int, int] | None = None  # The newest unsynced write: position and size.
    pasts: list[bytes] = field(default_factory=list)  # Contents before unsynced cuts: they may be back.
    changed: int = 0  # A clock for st_mtime_ns.


@dataclass(eq=False)
class _Directory:
    number: int
    entries: "dict[str, _Node]" = field(default_factory=dict)
    synced: "dict[str, _Node]" = field(default_factory=dict)


_Node = _File | _Directory


@dataclass(eq=False)
class _Change:
    """One change of names, atomic: in each directory, names and what they lead to from now on."""

    sets: list[tuple[_Directory, str, _Node | None]]  # None: to nothing.


class SimFileSystem:
    """Implements objstore.node.syscalls.Syscalls. Paths are absolute; "/" is there and synced."""

    def __init__(self, *, total: int = 1 << 40) -> None:
        self.total = total  # Bytes.
        self.changes = 0  # Calls that changed something so far: the possible places for a power cut.
        self.log: list[str] = []  # Those calls, in words: to read when a seed fails.
        self._lock = threading.RLock()
        self._root = _Directory(1)
        self._next = 2
        self._descriptors: dict[int, _Node] = {}
        self._next_descriptor = 1000
        self._pending: list[_Change] = []
        self._cut_at: int | None = None
        self._off = False

    # The test's side.

    def power_cut_at(self, change: int) -> None:
        """The power goes at the change with this number (counted from 1)."""
        self._cut_at = change

    def power_cut(self) -> None:
        """The power goes now."""
        self._off = True

    @property
    def is_off(self) -> bool:
        return self._off

    def after_power_cut(self, rng: random.Random) -> "SimFileSystem":
        """The file system after the power is back: one of the states that were possible, chosen by `rng`."""
        self._off = True
        return self.possible_survivor(rng)

    def copy(self) -> "SimFileSystem":
        """Another with the same content, all of it synced. Only of one where nothing is unsynced."""
        assert not self._pending
        return self.possible_survivor(random.Random(0))

    def sync_everything(self) -> None:
        with self._lock:
            self._pending.clear()

            def settle(node: _Node) -> None:
                if isinstance(node, _File):
                    node.synced = bytearray(node.data)
                    node.dirty.clear()
                    node.pasts.clear()
                    node.last = None
                else:
                    node.synced = dict(node.entries)
                    for entry in node.entries.values():
                        settle(entry)

            settle(self._root)

    def tree(self, path: str) -> Iterator[tuple[str, bytes | None]]:
        """Everything below a path, parents first: relative name, and content (None: a directory)."""

        def walk(directory: _Directory, prefix: str) -> Iterator[tuple[str, bytes | None]]:
            for name, node in sorted(directory.entries.items()):
                if isinstance(node, _File):
                    yield prefix + name, bytes(node.data)
                else:
                    yield prefix + name, None
                    yield from walk(node, prefix + name + "/")

        with self._lock:
            top = self._find(path)
            assert isinstance(top, _Directory)
            yield from walk(top, "")

    def possible_survivor(self, rng: random.Random) -> "SimFileSystem":
        """What might be left if the power went now; this one goes on."""
        with self._lock:
            fresh = SimFileSystem(total=self.total)
            # Names first: each directory starts from its synced entries; which changes made it?
            names: dict[_Directory, dict[str, _Node]] = {}
            mode = rng.choice(["none", "all", "some"])
            for change in self._pending:
                if mode == "none" or (mode == "some" and rng.random() < 0.5):
                    continue
                for directory, name, node in change.sets:
                    entries = names.setdefault(directory, dict(directory.synced))
                    if node is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = node
            made: dict[_Node, _Node] = {}

            def revive(directory: _Directory) -> _Directory:
                new = _Directory(fresh._number())
                for name, node in names.get(directory, directory.synced).items():
                    if node not in made:
                        made[node] = (
                            revive(node) if isinstance(node, _Directory) else _survivor(node, fresh, rng)
                        )
                    new.entries[name] = made[node]
                new.synced = dict(new.entries)
                return new

            fresh._root = revive(self._root)
            return fresh

    # Syscalls.

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        with self._lock:
            self._check_on()
            parent, name = self._parent(path)
            node: _Node | None = self._root if not name else parent.entries.get(name)
            if node is None:
                if not flags & os.O_CREAT:
                    raise _error(errno.ENOENT, path)
                self._about_to_change(f"create {path}")
                node = _File(self._number())
                self._set_names(_Change([(parent, name, node)]))
            elif flags & os.O_CREAT and flags & os.O_EXCL:
                raise _error(errno.EEXIST, path)
            if flags & os.O_DIRECTORY and not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            if flags & os.O_TRUNC and isinstance(node, _File) and node.data:
                self._about_to_change(f"truncate {path}")
                self._resize(node, 0)
            self._next_descriptor += 1
            self._descriptors[self._next_descriptor] = node
            return self._next_descriptor

    def close(self, fd: int) -> None:
        with self._lock:
            if self._descriptors.pop(fd, None) is None:
                raise _error(errno.EBADF, str(fd))

    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int, flags: int) -> int:
        with self._lock:
            file = self._file(fd)
            data = b"".join(buffers)
            if self._used() + max(0, position + len(data) - len(file.data)) > self.total:
                raise _error(errno.ENOSPC, "")
            off = self._about_to_change(f"write {len(data)} at {position} of {file.number}", partial=True)
            if len(file.data) < position + len(data):
                file.data.extend(bytes(position + len(data) - len(file.data)))
            file.data[position : position + len(data)] = data
            file.dirty.update(range(position // PAGE, -(-(position + len(data)) // PAGE)))
            file.last = position, len(data)
            file.changed += 1
            if off:
                raise PowerCut
            if flags & os.RWF_DSYNC:
                if self._about_to_change(f"sync of that write to {file.number}", partial=True):
                    raise PowerCut
                self._sync_range(file, position, len(data))
            return len(data)

    def preadv(self, fd: int, buffers: Sequence[memoryview], position: int, flags: int) -> int:
        with self._lock:
            self._check_on()
            file = self._file(fd)
            at = position
            for buffer in buffers:
                piece = file.data[at : at + len(buffer)]
                buffer[: len(piece)] = piece
                at += len(piece)
                if len(piece) < len(buffer):
                    break
            return max(0, at - position)

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            node = self._node(fd)
            if self._about_to_change(f"sync {node.number}", partial=True):
                raise PowerCut
            if isinstance(node, _File):
                node.synced = bytearray(node.data)
                node.dirty.clear()
                node.pasts.clear()
                node.last = None
                return
            node.synced = dict(node.entries)
            earlier: list[_Change] = []
            for change in self._pending:
                if not any(directory is node for directory, _, _ in change.sets):
                    earlier.append(change)
                    continue
                # The whole change, in every directory: a rename is never half done. What was pending for
                # the same names before it is past.
                for directory, name, target in change.sets:
                    for other in earlier:
                        other.sets = [item for item in other.sets if item[:2] != (directory, name)]
                    if directory is not node:
                        if target is None:
                            directory.synced.pop(name, None)
                        else:
                            directory.synced[name] = target
            self._pending = earlier

    def fsync(self, fd: int) -> None:
        self.fdatasync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        with self._lock:
            file = self._file(fd)
            self._about_to_change(f"cut {file.number} to {size}")
            self._resize(file, size)

    def fstat(self, fd: int) -> Stat:
        with self._lock:
            self._check_on()
            return self._stat(self._node(fd))

    def stat(self, path: str) -> Stat:
        with self._lock:
            self._check_on()
            return self._stat(self._find(path))

    def statvfs(self, path: str) -> Space:
        with self._lock:
            self._check_on()
            self._find(path)
            return Space(1, self.total, max(0, self.total - self._used()))

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            self._check_on()
            node = self._find(source)
            self._about_to_change(f"rename {source} {target}")
            from_parent, from_name = self._parent(source)
            to_parent, to_name = self._parent(target)
            self._set_names(_Change([(from_parent, from_name, None), (to_parent, to_name, node)]))

    def unlink(self, path: str) -> None:
        with self._lock:
            self._check_on()
            if isinstance(self._find(path), _Directory):
                raise _error(errno.EISDIR, path)
            self._about_to_change(f"unlink {path}")
            parent, name = self._parent(path)
            self._set_names(_Change([(parent, name, None)]))

    def link(self, source: str, target: str) -> None:
        with self._lock:
            self._check_on()
            node = self._find(source)
            parent, name = self._parent(target)
            if name in parent.entries:
                raise _error(errno.EEXIST, target)
            self._about_to_change(f"link {source} {target}")
            self._set_names(_Change([(parent, name, node)]))

    def rmdir(self, path: str) -> None:
        with self._lock:
            self._check_on()
            node = self._find(path)
            if not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            if node.entries:
                raise _error(errno.ENOTEMPTY, path)
            self._about_to_change(f"rmdir {path}")
            parent, name = self._parent(path)
            self._set_names(_Change([(parent, name, None)]))

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        with self._lock:
            self._check_on()
            parent, name = self._parent(path)
            if not name or name in parent.entries:
                raise _error(errno.EEXIST, path)
            self._about_to_change(f"mkdir {path}")
            self._set_names(_Change([(parent, name, _Directory(self._number()))]))

    def listdir(self, path: str) -> list[str]:
        with self._lock:
            self._check_on()
            node = self._find(path)
            if not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            return list(node.entries)

    def preallocate(self, fd: int, position: int, size: int) -> None:
        self._check_on()

    def write_behind(self, fd: int, position: int, size: int) -> None:
        self._check_on()

    def drop_cache(self, fd: int, position: int, size: int) -> None:
        self._check_on()

    def flock(self, fd: int) -> None:
        self._check_on()

    # Inside, under the lock.

    def _check_on(self) -> None:
        if self._off:
            raise PowerCut

    def _about_to_change(self, words: str, *, partial: bool = False) -> bool:
        """Count a change. Raises if the power goes before it happened.

        Returns True if the power goes within it (only if `partial`): the caller does its part, and raises.
        """
        self._check_on()
        self.changes += 1
        self.log.append(words)
        if self._cut_at is not None and self.changes >= self._cut_at:
            self._off = True
            if partial:
                return True
            raise PowerCut
        return False

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _find(self, path: str) -> _Node:
        node: _Node = self._root
        for part in path.split("/"):
            if part:
                if not isinstance(node, _Directory):
                    raise _error(errno.ENOTDIR, path)
                if part not in node.entries:
                    raise _error(errno.ENOENT, path)
                node = node.entries[part]
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        head, _, name = path.rstrip("/").rpartition("/")
        parent = self._find(head or "/")
        if not isinstance(parent, _Directory):
            raise _error(errno.ENOTDIR, path)
        return parent, name

    def _node(self, fd: int) -> _Node:
        try:
            return self._descriptors[fd]
        except KeyError:
            raise _error(errno.EBADF, str(fd)) from None

    def _file(self, fd: int) -> _File:
        node = self._node(fd)
        if not isinstance(node, _File):
            raise _error(errno.EISDIR, str(fd))
        return node

    def _set_names(self, change: _Change) -> None:
        for directory, name, node in change.sets:
            if node is None:
                directory.entries.pop(name, None)
            else:
                directory.entries[name] = node
        self._pending.append(change)

    def _resize(self, file: _File, size: int) -> None:
        if size < len(file.data):
            file.pasts.append(bytes(file.data))
        pages = range(min(size, len(file.data)) // PAGE, -(-max(size, len(file.data)) // PAGE))
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))
        file.dirty.update(pages)
        file.changed += 1

    def _sync_range(self, file: _File, position: int, size: int) -> None:
        """What RWF_DSYNC promises: the pages of this range, and a size that covers it."""
        end = min(-(-(position + size) // PAGE) * PAGE, len(file.data))
        if len(file.synced) < position + size:
            file.synced.extend(bytes(position + size - len(file.synced)))
        for page in range(position // PAGE, -(-end // PAGE)):
            part = file.data[page * PAGE : min((page + 1) * PAGE, len(file.synced))]
            file.synced[page * PAGE : page * PAGE + len(part)] = part
            file.dirty.discard(page)
        file.last = None

    def _stat(self, node: _Node) -> Stat:
        size = len(node.data) if isinstance(node, _File) else 0
        changed = node.changed if isinstance(node, _File) else 0
        return Stat(size, int(self._is_named(self._root, node)), 1, node.number, changed)

    def _is_named(self, directory: _Directory, node: _Node) -> bool:
        return node is self._root or any(
            entry is node or (isinstance(entry, _Directory) and self._is_named(entry, node))
            for entry in directory.entries.values()
        )

    def _used(self) -> int:
        def size(node: _Node) -> int:
            return len(node.data) if isinstance(node, _File) else sum(map(size, node.entries.values()))

        return size(self._root)


def _survivor(file: _File, fresh: SimFileSystem, rng: random.Random) -> _File:
    """One of the contents that this file may have after a power cut."""
    mode = rng.choice(["none", "all", "some", "some"])
    newest = rng.choice([file.data, *file.pasts])
    low, high = sorted((len(file.synced), len(newest)))
    size = {"none": len(file.synced), "all": len(newest)}.get(mode)
    if size is None:
        size = rng.choice([low, high, rng.randint(low, high)])
    content = bytearray(size)
    old = file.synced[:size]
    content[: len(old)] = old
    for page in sorted(file.dirty):
        if mode == "none" or (mode == "some" and rng.random() < 0.5):
            continue
        new = newest[page * PAGE : min((page + 1) * PAGE, size)]
        if file.last is not None and mode != "all":
            # Tear the newest write: within it sectors survive up to some point only.
            position, length = file.last
            torn = position + rng.randint(0, length)
            torn = torn // SECTOR * SECTOR
            if page * PAGE <= torn < (page + 1) * PAGE:
                new = new[: torn - page * PAGE]
        content[page * PAGE : page * PAGE + len(new)] = new
    assert len(content) == size
    return _File(fresh._number(), bytearray(content), bytearray(content))


def _error(number: int, what: str) -> OSError:
    return OSError(number, os.strerror(number), what)
