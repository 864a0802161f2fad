"""Keys that LMDB cannot hold, kept in byte order: a tree of ordered ranges.

LMDB's keys end at 511 bytes, ours at `kv.KEY_SIZE_MAX`. A key of up to HEAD_SIZE bytes is stored as
it is. A longer one is cut: its first HEAD_SIZE bytes and a zero byte make a *marker* in the main
range, whose value is a *prefix id*; the rest of the key lies in the spill range behind that id,
and is cut again there if need be (at most four times).

    main    <key, up to 510 bytes>                    value
            <first 510 bytes> 00                      prefix id (8, big-endian)
    spill   <prefix id 8> <rest, up to 502 bytes>     value
            <prefix id 8> <next 502 bytes> 00         prefix id (8)

Why the order holds: only a marker has 511 bytes. Every key behind a marker begins with its 510
bytes and goes on, so it sorts after the key that equals them and before every other key that sorts
after that one; and so does the marker itself. A million keys with one long prefix are a million
entries of a B+tree, never one growing value: each operation costs O(depth x log n).

A marker goes when its last key goes. Prefix ids count up and are never used again.

This module may not know lmdb: transactions and cursors are arguments. It holds no state.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from typing import Any

import xxhash

from objstore.errors import Corrupt
from objstore.meta.kv import KEY_SIZE_MAX

LMDB_KEY_SIZE_MAX = 511  # Bytes: MDB_MAXKEYSIZE of the wheel.
HEAD_SIZE = LMDB_KEY_SIZE_MAX - 1  # Bytes of a key in the main range; one more makes a marker.
ID_SIZE = 8  # Bytes.
TAIL_SIZE = HEAD_SIZE - ID_SIZE  # Bytes of a key in one level of the spill range.
CHECKSUM_SIZE = 8  # Bytes.

_CHUNK_FIRST = 32  # Entries read before the end of the range is looked at; doubles.

_digest = xxhash.xxh3_64_digest

Stored = tuple[bytes, bytes]  # A whole key, and its value as stored (with its checksum).


def seal(key: bytes, value: bytes) -> bytes:
    """The value as stored: value, then the xxh3-64 of key and value. LMDB's pages have no checksum."""
    return value + _digest(key + value)


def unseal(key: bytes, stored: bytes) -> bytes:
    """The value without its checksum. Raises: Corrupt if the two do not belong together."""
    value = stored[:-CHECKSUM_SIZE]
    if _digest(key + value) != stored[-CHECKSUM_SIZE:]:
        raise Corrupt(f"metadata record {key!r} fails its checksum")
    return value


class SpillTree:
    """Both ranges as one ordered map from whole keys to stored values.

    Args:
        main, spill: the two databases, as the transactions of the engine take them.
    """

    def __init__(self, main: Any, spill: Any) -> None:
        self._main = main
        self._spill = spill

    def get(self, transaction: Any, key: bytes) -> bytes | None:
        database, prefix, rest, size = self._main, b"", key, HEAD_SIZE
        while len(rest) > size:
            marker = prefix + rest[:size] + b"\0"
            stored = transaction.get(marker, db=database)
            if stored is None:
                return None
            database, prefix, rest, size = self._spill, unseal(marker, stored), rest[size:], TAIL_SIZE
        found: bytes | None = transaction.get(prefix + rest, db=database)
        return found

    def put(self, transaction: Any, key: bytes, stored: bytes, next_id: int) -> int:
        """Store; returns the next unused prefix id. The caller keeps it in the same transaction."""
        assert 1 <= len(key) <= KEY_SIZE_MAX
        database, prefix, rest, size = self._main, b"", key, HEAD_SIZE
        while len(rest) > size:
            marker = prefix + rest[:size] + b"\0"
            held = transaction.get(marker, db=database)
            if held is None:
                behind = next_id.to_bytes(ID_SIZE, "big")
                next_id += 1
                transaction.put(marker, seal(marker, behind), db=database)
            else:
                behind = unseal(marker, held)
            database, prefix, rest, size = self._spill, behind, rest[size:], TAIL_SIZE
        transaction.put(prefix + rest, stored, db=database)
        return next_id

    def delete(self, transaction: Any, key: bytes) -> bool:
        """Remove the key, and every marker that leads nowhere without it. False if there was none."""
        database, prefix, rest, size = self._main, b"", key, HEAD_SIZE
        path: list[tuple[Any, bytes, bytes]] = []  # (database, marker, the id behind it)
        while len(rest) > size:
            marker = prefix + rest[:size] + b"\0"
            held = transaction.get(marker, db=database)
            if held is None:
                return False
            behind = unseal(marker, held)
            path.append((database, marker, behind))
            database, prefix, rest, size = self._spill, behind, rest[size:], TAIL_SIZE
        if not transaction.delete(prefix + rest, db=database):
            return False
        for holder, marker, behind in reversed(path):
            with transaction.cursor(self._spill) as cursor:
                if cursor.set_range(behind) and cursor.key().startswith(behind):
                    break
            transaction.delete(marker, db=holder)
        return True

    def scan(self, transaction: Any, start: bytes, end: bytes, limit: int, *, reverse: bool) -> list[Stored]:
        """At most `limit` entries with start <= key < end, in byte order or its reverse."""
        if limit <= 0 or start >= end:
            return []
        if reverse or len(start) > HEAD_SIZE or len(end) > HEAD_SIZE:
            return list(islice(self._walk(transaction, start, end, reverse=reverse), limit))
        # The common case: no marker in the range. Reading in C and judging whole chunks costs a
        # third of a loop over the entries. An empty spill range says that there is no marker anywhere.
        marked = transaction.stat(self._spill)["entries"] > 0
        found: list[Stored] = []
        chunk_size = min(limit, _CHUNK_FIRST)
        with transaction.cursor(self._main) as cursor:
            if not cursor.set_range(start):
                return []
            entries = cursor.iternext()
            while len(found) < limit:
                chunk = list(islice(entries, min(chunk_size, limit - len(found))))
                if not chunk:
                    break
                over = chunk[-1][0] >= end
                if over:
                    chunk = chunk[: bisect_left(chunk, end, key=_key_of)]
                if marked and [1 for key, _ in chunk if len(key) > HEAD_SIZE]:
                    return list(islice(self._walk(transaction, start, end, reverse=False), limit))
                found += chunk
                if over:
                    break
                chunk_size *= 2
        return found

    def _walk(self, transaction: Any, start: bytes, end: bytes, *, reverse: bool) -> Iterator[Stored]:
        level = self._backward if reverse else self._forward
        return level(transaction, self._main, b"", b"", start, end)

    def _forward(
        self, transaction: Any, database: Any, prefix: bytes, head: bytes, start: bytes, end: bytes | None
    ) -> Iterator[Stored]:
        """One level, ascending. `start` and `end` (None: no bound) are relative to `head`, the part
        of the whole key that lies before this level; `prefix` is the level's id (empty in main)."""
        size = TAIL_SIZE if prefix else HEAD_SIZE
        seek = start if len(start) <= size else start[:size] + b"\0"
        with transaction.cursor(database) as cursor:
            first = cursor.set_range(prefix + seek) if prefix + seek else cursor.first()
            if not first:
                return
            for key, stored in cursor.iternext():
                if not key.startswith(prefix):
                    return
                rest = key[len(prefix) :]
                if len(rest) <= size:
                    if end is not None and rest >= end:
                        return
                    yield head + rest, stored
                    continue
                inner = _inside(rest[:size], start, end)
                if inner is None:
                    return
                yield from self._forward(
                    transaction, self._spill, unseal(key, stored), head + rest[:size], *inner
                )

    def _backward(
        self, transaction: Any, database: Any, prefix: bytes, head: bytes, start: bytes, end: bytes | None
    ) -> Iterator[Stored]:
        size = TAIL_SIZE if prefix else HEAD_SIZE
        with transaction.cursor(database) as cursor:
            if end is None:  # Only below a marker: everything behind its id.
                seek = (int.from_bytes(prefix, "big") + 1).to_bytes(ID_SIZE, "big")
                placed = cursor.prev() if cursor.set_range(seek) else cursor.last()
            else:
                seek = prefix + (end if len(end) <= size else end[:size] + b"\0")
                if not cursor.set_range(seek):
                    placed = cursor.last()
                else:  # A marker at the bound holds keys below the bound; any other entry does not.
                    placed = (len(end) > size and cursor.key() == seek) or cursor.prev()
            if not placed:
                return
            for key, stored in cursor.iterprev():
                if not key.startswith(prefix):
                    return
                rest = key[len(prefix) :]
                if len(rest) <= size:
                    if rest < start:
                        return
                    yield head + rest, stored
                    continue
                if rest[:size] < start[:size]:
                    return
                inner = _inside(rest[:size], start, end)
                if inner is not None:
                    yield from self._backward(
                        transaction, self._spill, unseal(key, stored), head + rest[:size], *inner
                    )


def _inside(cut: bytes, start: bytes, end: bytes | None) -> tuple[bytes, bytes | None] | None:
    """The bounds as seen behind the marker of `cut`; None if nothing behind it lies below `end`."""
    size = len(cut)
    inner_start = start[size:] if start[:size] == cut else b""
    if end is None:
        return inner_start, None
    if end[:size] == cut:
        return (inner_start, end[size:]) if len(end) > size else None
    return (inner_start, None) if cut < end else None


def _key_of(entry: Stored) -> bytes:
    return entry[0]
