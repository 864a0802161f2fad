"""The LMDB engine: the only module that imports lmdb.

`LmdbState` is the committer's side (it alone opens the environment for writing), `LmdbReader` every
other process's. Both read through `_View`. LMDB is the state, the journal is the truth: commits
here are not synced, and a state that cannot be trusted is thrown away and built again.

Databases of the environment:

    data     the keys of `kv.Kv`, and markers (see spill.py)
    spill    what lies behind the markers
    engine   the engine's own records, invisible above: `format`, `lmdb` (library version), `state`
             (id of this environment), `end` (how far the journal is applied), `spill` (next prefix
             id), `c` + client id (each client's last applied batch and its failures)

Every value in all three ends with the xxh3-64 of its key and itself, verified on every read.

Concurrency: a read transaction lives within one call and never across an await, since an open one
makes the file grow for good. Write transactions belong to the one committer. A SIGKILL at any
instant leaves the last whole commit (the page cache survives); a power cut may leave anything.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import lmdb
import msgspec
import xxhash

from objstore.errors import Corrupt, MetaUnavailable, Overloaded, translate
from objstore.meta.spill import CHECKSUM_SIZE, HEAD_SIZE, ID_SIZE, SpillTree, seal, unseal

FORMAT = 1
MAP_SIZE = 1 << 40  # Bytes, sparse: a map costs address space only, and is never grown under readers.
MAX_READERS = 4_096  # Slots: one per thread that reads; LMDB's own default is 126.
SCAN_CHUNK = 1_001  # Entries: a scan's read transaction is opened again after so many. A listing's page fits.
LOAD_CHUNK = 20_000  # Entries in one write transaction while a state is built.

_FLAGS: dict[str, Any] = {"map_size": MAP_SIZE, "max_dbs": 4, "max_readers": MAX_READERS, "subdir": True}

_digest = xxhash.xxh3_64_digest
_VALUE = slice(None, -CHECKSUM_SIZE)  # Of what is stored. A slice made once is a tenth of a scan's check.
_CHECKSUM = slice(-CHECKSUM_SIZE, None)

# What LMDB may answer that is an operating failure. Everything else is a bug and stays loud.
_FAILURES: dict[type[Exception], type[Exception]] = {
    lmdb.CorruptedError: Corrupt,
    lmdb.PageNotFoundError: Corrupt,
    lmdb.InvalidError: Corrupt,
    lmdb.PanicError: Corrupt,
    lmdb.PageFullError: Corrupt,  # "Internal error", as LMDB says of both.
    lmdb.CursorFullError: Corrupt,
    lmdb.ReadersFullError: Overloaded,
    lmdb.Error: MetaUnavailable,
}


def library_version() -> str:
    """Of LMDB itself, e.g. "0.9.36". Files of 1.0 differ."""
    return ".".join(str(part) for part in lmdb.version())


_serials = count(1)


class End(NamedTuple):
    """How far the journal is applied to a state."""

    epoch: int  # The newest epoch opened over this state.
    sequence: int  # Of the last applied batch.
    checksum: int  # Of that batch.
    start: int  # Bytes: where that batch begins in the epoch's file; equal to `offset` if it has none.
    offset: int  # Bytes: where the next batch will begin.


class ClientRecord(msgspec.Struct, frozen=True, array_like=True):
    """A client's last applied batch, so that outcomes are known after a death."""

    number: int
    time_us: int  # When it was applied, by the committer's clock: old records are dropped.
    failures: list["BatchFailures"] = []
    """Of recent batches that had any; a batch of which nothing is said here succeeded as a whole."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why one mini-transaction of a batch was refused."""

    index: int  # Within its batch, from 0.
    kind: int  # CONFLICT or LIMIT: see messages.py.
    key: bytes
    value: int | bytes = 0  # 16 bytes beyond 64 bits.
    at_most: int | bytes = 0


class BatchFailures(msgspec.Struct, frozen=True, array_like=True):
    number: int
    failures: list[Failure]


_encode = msgspec.msgpack.Encoder().encode
_decode_end = msgspec.msgpack.Decoder(End).decode
_decode_client = msgspec.msgpack.Decoder(ClientRecord).decode


class Rotten(Corrupt):
    """One record's bytes are wrong. What lies around it may be well."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"metadata record {key!r} fails its checksum")
        self.key = key


class _View:
    """Reads of one open environment. Every call is one or more short read transactions."""

    def __init__(self, environment: "lmdb.Environment", path: Path) -> None:
        self.path = path
        self.on_damage: Callable[[Sequence[bytes]], None] | None = None
        """Told of keys that could not be read, before the error is raised."""
        self._environment = environment
        self._begin = environment.begin
        with translate(_FAILURES):  # type: ignore[arg-type]
            self._data = environment.open_db(b"data", create=False)
            self._spill = environment.open_db(b"spill", create=False)
            self._engine = environment.open_db(b"engine", create=False)
        self._tree = SpillTree(self._data, self._spill)

    def get(self, key: bytes) -> bytes | None:
        """One to two microseconds when the pages are in memory.

        Raises: Corrupt if the record fails its checksum; MetaUnavailable, Overloaded.
        """
        try:
            with self._begin(self._data) as transaction:
                stored = transaction.get(key) if len(key) <= HEAD_SIZE else self._tree.get(transaction, key)
        except lmdb.Error as failure:
            raise self._damage(failure, [key]) from failure
        except Corrupt as failure:
            self._damage(failure, [key])
            raise
        if stored is None:
            return None
        value: bytes = stored[:-CHECKSUM_SIZE]
        if _digest(key + value) != stored[-CHECKSUM_SIZE:]:
            raise self._damage(Rotten(key), [key])
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of `keys`, from one view. Raises: as `get`, for any of them."""
        try:
            with self._begin(self._data) as transaction:
                get = transaction.get
                found = [
                    get(key) if len(key) <= HEAD_SIZE else self._tree.get(transaction, key) for key in keys
                ]
        except lmdb.Error as failure:
            raise self._damage(failure, keys) from failure
        except Corrupt as failure:
            self._damage(failure, keys)
            raise
        return [
            None if stored is None else self._unsealed(key, stored)
            for key, stored in zip(keys, found, strict=True)
        ]

    def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs in order, from one view: about 0.37 us each. Raises: as `get`."""
        try:
            with self._begin() as transaction:
                found = self._tree.scan(transaction, start, end, limit, reverse=reverse)
        except lmdb.Error as failure:
            raise _translated(failure) from failure
        digest, value_of, checksum_of = _digest, _VALUE, _CHECKSUM
        pairs = [
            (key, value)
            for key, stored in found
            if digest(key + (value := stored[value_of])) == stored[checksum_of]
        ]
        if len(pairs) != len(found):
            for key, stored in found:
                self._unsealed(key, stored)
        return pairs

    def _unsealed(self, key: bytes, stored: bytes) -> bytes:
        value = stored[:-CHECKSUM_SIZE]
        if _digest(key + value) != stored[-CHECKSUM_SIZE:]:
            raise self._damage(Rotten(key), [key])
        return value

    def _damage(self, failure: Exception, keys: Sequence[bytes]) -> Exception:
        """The failure in our terms. If it is damage, whoever wants to know is told of the keys."""
        ours = _translated(failure)
        if isinstance(ours, Corrupt) and self.on_damage is not None:
            self.on_damage(keys)
        return ours

    def engine_record(self, name: bytes) -> bytes | None:
        """One of the engine's own records."""
        try:
            with self._begin(self._engine) as transaction:
                stored = transaction.get(name)
        except lmdb.Error as failure:
            raise _translated(failure) from failure
        return None if stored is None else unseal(name, stored)

    def end(self) -> End:
        record = self.engine_record(b"end")
        if record is None:
            raise Corrupt(f"{self.path} holds no journal end")
        return _decode_end(record)

    def state_id(self) -> bytes:
        return self.engine_record(b"state") or b""

    def clients(self) -> dict[bytes, ClientRecord]:
        with self._begin(self._engine) as transaction, transaction.cursor() as cursor:
            if not cursor.set_range(b"c"):
                return {}
            return {
                name[1:]: _decode_client(unseal(name, stored))
                for name, stored in cursor.iternext()
                if name[:1] == b"c"
            }

    def entry_count(self) -> int:
        """Entries of both ranges, markers included."""
        with self._begin() as transaction:
            return sum(transaction.stat(db)["entries"] for db in (self._data, self._spill))

    def drop_dead_readers(self) -> int:
        """Free the reader slots of processes that died; returns how many. A slot that stays pins
        old pages, and the file grows."""
        return int(self._environment.reader_check())

    def close(self) -> None:
        _release(self._environment)

    def _check_versions(self) -> None:
        found = self.engine_record(b"format")
        if found != str(FORMAT).encode():
            raise Corrupt(f"{self.path} has format {found!r}, this release reads {FORMAT}")
        made_by = (self.engine_record(b"lmdb") or b"").decode()
        if made_by.split(".")[:2] != library_version().split(".")[:2]:
            raise Corrupt(f"{self.path} was made by LMDB {made_by}, this is {library_version()}")


class LmdbReader(_View):
    """The state as any process but the committer sees it: read-only, and never creating anything.

    Args:
        path: the environment's directory, as the committer announces it.
        inode: (device, inode) of its data file, as the committer announces it. Another one at the
            path is another state.

    Raises: MetaUnavailable if there is no such state at the path.
    """

    def __init__(self, path: Path, inode: tuple[int, int] | None = None) -> None:
        try:
            found = data_inode(path)
            if inode is not None and found != inode:
                raise MetaUnavailable(f"another metadata state lies at {path}")
            environment = _share(path, found)
        except (OSError, lmdb.Error) as failure:
            raise MetaUnavailable(f"cannot read the metadata state at {path}: {failure}") from failure
        self.inode = found
        self.serial = next(_serials)  # Of this process; never used again, as an inode may be.
        super().__init__(environment, path)

    def version(self) -> int:
        """The number of the newest transaction: grows with every commit to this state. Raises: as `get`."""
        try:
            with self._begin() as transaction:
                number: int = transaction.id()
        except lmdb.Error as failure:
            raise _translated(failure) from failure
        return number

    def get_at(self, key: bytes, version: int) -> tuple[bool, bytes | None]:
        """(True, the value) if `version` still is the newest, else (False, None). Raises: as `get`."""
        try:
            with self._begin(self._data) as transaction:
                if transaction.id() != version:
                    return False, None
                stored = transaction.get(key) if len(key) <= HEAD_SIZE else self._tree.get(transaction, key)
        except lmdb.Error as failure:
            raise self._damage(failure, [key]) from failure
        except Corrupt as failure:
            self._damage(failure, [key])
            raise
        return True, None if stored is None else self._unsealed(key, stored)

    def readers(self) -> list[tuple[int, int | None]]:
        """The reader table, for `objstore doctor`: (process, transactions behind; None: idle) per slot."""
        last = self._environment.info()["last_txnid"]
        slots: list[tuple[int, int | None]] = []
        for line in self._environment.readers().splitlines()[1:]:  # Below a heading; one line if it is empty.
            words = line.split()
            if len(words) == 3 and words[0].isdigit():
                slots.append((int(words[0]), None if words[2] == "-" else max(0, last - int(words[2]))))
        return slots


class LmdbState(_View):
    """The committer's state. One per process; nothing else may open the environment for writing."""

    def __init__(self, environment: "lmdb.Environment", path: Path) -> None:
        super().__init__(environment, path)
        self.inode = data_inode(path)
        self._descriptor = os.open(path / "data.mdb", os.O_RDWR | os.O_CLOEXEC)
        stat = os.fstat(self._descriptor)
        if (stat.st_dev, stat.st_ino) != self.inode:
            raise MetaUnavailable(f"the metadata state at {path} changed while it was being opened")
        self._next_id = int.from_bytes(self.engine_record(b"spill") or b"", "big")

    @classmethod
    def create(cls, path: Path, state_id: bytes) -> Self:
        """Make an empty state in a directory that does not exist yet.

        Raises: OSError, MetaUnavailable.
        """
        path.mkdir(mode=0o700)
        with translate(_FAILURES):  # type: ignore[arg-type]
            environment = _open_for_writing(path, create=True)
            try:
                cls._initialise(environment, state_id)
                return cls(environment, path)
            except BaseException:
                _release(environment)
                raise

    @staticmethod
    def _initialise(environment: Any, state_id: bytes) -> None:
        for name in (b"data", b"spill", b"engine"):
            environment.open_db(name)
        with environment.begin(environment.open_db(b"engine"), write=True) as transaction:
            for name, value in (
                (b"format", str(FORMAT).encode()),
                (b"lmdb", library_version().encode()),
                (b"state", state_id),
                (b"spill", (1).to_bytes(ID_SIZE, "big")),
                (b"end", _encode(End(0, 0, 0, 0, 0))),
            ):
                transaction.put(name, seal(name, value))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises: Corrupt (another format, another LMDB, a broken file), MetaUnavailable."""
        if not (path / "data.mdb").is_file():
            raise MetaUnavailable(f"no metadata state at {path}")
        with translate(_FAILURES):  # type: ignore[arg-type]
            environment = _open_for_writing(path, create=False)
            try:
                state = cls(environment, path)
                state._check_versions()
            except BaseException:
                _release(environment)
                raise
        return state

    def commit(
        self,
        put: Mapping[bytes, bytes],
        delete: Iterable[bytes],
        end: End,
        clients: Mapping[bytes, ClientRecord],
        forget: Iterable[bytes] = (),
    ) -> None:
        """One write transaction: values, the journal's end, the clients' outcomes. Not synced.

        Raises: Corrupt (the file's pages make no sense); lmdb.Error (disk or map full). The committer
            does not outlive either.
        """
        try:
            self._commit(put, delete, end, clients, forget)
        except lmdb.Error as failure:
            ours = _translated(failure)
            if isinstance(ours, Corrupt):
                raise ours from failure
            raise

    def _commit(
        self,
        put: Mapping[bytes, bytes],
        delete: Iterable[bytes],
        end: End,
        clients: Mapping[bytes, ClientRecord],
        forget: Iterable[bytes],
    ) -> None:
        digest = _digest
        short: list[tuple[bytes, bytes]] = []
        long: list[bytes] = []
        for key, value in put.items():
            if len(key) <= HEAD_SIZE:
                short.append((key, value + digest(key + value)))
            else:
                long.append(key)
        short.sort()  # Neighbours share pages.
        records = [(b"c" + client, _encode(record)) for client, record in clients.items()]
        next_id = self._next_id
        with self._environment.begin(write=True) as transaction:
            if short:
                with transaction.cursor(self._data) as cursor:
                    cursor.putmulti(short)
            for key in long:
                next_id = self._tree.put(transaction, key, seal(key, put[key]), next_id)
            for key in delete:
                if len(key) <= HEAD_SIZE:
                    transaction.delete(key, db=self._data)
                else:
                    self._tree.delete(transaction, key)
            if next_id != self._next_id:
                records.append((b"spill", next_id.to_bytes(ID_SIZE, "big")))
            records.append((b"end", _encode(end)))
            for name, value in records:
                transaction.put(name, value + digest(name + value), db=self._engine)
            for client in forget:
                transaction.delete(b"c" + client, db=self._engine)
        self._next_id = next_id

    def load(self, pairs: Iterable[tuple[bytes, bytes]]) -> int:
        """Fill an empty state from pairs in ascending order; returns how many. Not synced.

        Holds LOAD_CHUNK pairs at a time. Raises: AssertionError if the order is broken.
        """
        digest = _digest
        count = 0
        last = b""
        pairs = iter(pairs)
        while chunk := list(islice(pairs, LOAD_CHUNK)):
            assert last < chunk[0][0], "pairs out of order"
            count += len(chunk)
            last = chunk[-1][0]
            next_id = self._next_id
            with self._environment.begin(write=True) as transaction:
                if max([len(key) for key, _ in chunk]) <= HEAD_SIZE:
                    stored = [(key, value + digest(key + value)) for key, value in chunk]
                    with transaction.cursor(self._data) as cursor:
                        _, added = cursor.putmulti(stored, append=True)
                    assert added == len(chunk), "pairs out of order"
                else:
                    # Rare: no appending, the tree finds the place of each.
                    for key, value in chunk:
                        next_id = self._tree.put(transaction, key, seal(key, value), next_id)
                if next_id != self._next_id:
                    name = b"spill"
                    transaction.put(name, seal(name, next_id.to_bytes(ID_SIZE, "big")), db=self._engine)
            self._next_id = next_id
        return count

    def sync(self) -> None:
        """fdatasync of the data file, without LMDB's lock. Blocks: call it in a thread.

        This is the only way to learn that the kernel could not write a page back.
        Raises: OSError; the state is lost then.
        """
        os.fdatasync(self._descriptor)

    def in_place(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return data_inode(self.path) == self.inode
        except OSError:
            return False

    def read_ahead(self) -> None:
        """Ask the kernel to read the whole file into its cache."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


def data_inode(path: Path) -> tuple[int, int]:
    """(device, inode) of a state's data file. Raises: OSError."""
    stat = os.stat(path / "data.mdb")
    return stat.st_dev, stat.st_ino


def mount_id(path: Path) -> str:
    """Of the mount the data file lies on, as the kernel counts them; "" where it does not say."""
    descriptor = os.open(path / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("mnt_id:"):
                return line.split()[1]
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return ""


# LMDB must not be opened twice in one process (closing one descriptor drops the locks of both), so
# that a reader beside the committer, as in tests, shares its environment.
_shared: dict[tuple[int, int], tuple[Any, int]] = {}  # inode -> (environment, users)


def _open_for_writing(path: Path, *, create: bool) -> Any:
    environment = lmdb.open(
        str(path), create=create, mode=0o600, sync=False, metasync=False, writemap=False, **_FLAGS
    )
    _shared[data_inode(path)] = environment, 1
    return environment


def _share(path: Path, inode: tuple[int, int]) -> Any:
    environment, users = _shared.get(inode) or (
        lmdb.open(str(path), readonly=True, create=False, **_FLAGS),
        0,
    )
    _shared[inode] = environment, users + 1
    return environment


def _release(environment: Any) -> None:
    for inode, (held, users) in list(_shared.items()):
        if held is environment:
            if users > 1:
                _shared[inode] = held, users - 1
                return
            del _shared[inode]
            environment.close()


def _translated(failure: Exception) -> Exception:
    for theirs, ours in _FAILURES.items():
        if isinstance(failure, theirs):
            return ours(str(failure))
    return failure
