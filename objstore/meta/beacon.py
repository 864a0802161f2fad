"""Which state is in force: one page of memory that every process of a store shares.

A committer that has built the state again acknowledges commits as soon as one client has found it, and
another may still be reading the state of before. So the committer shows the new one here first, and
every read looks here first: whoever begins to read after an acknowledgement sees what was acknowledged.

     0   8   generation, native: counts up with each state shown; 0 before the first
     8   4   size of the text
    12   8   xxh3-64 of the text
    20  ..   text: MessagePack [path, device, inode]

Concurrency: one writer at a time (the supervisor starts a committer when the last one is reaped), any
number of readers, no lock. The text is written before the generation. A writer killed in between leaves
the old generation, and whoever reads half a text finds its checksum wrong.
"""

import mmap
import struct
from pathlib import Path

import msgspec
import xxhash

from objstore.errors import MetaUnavailable

SIZE = 8192  # Bytes: the longest path that Linux takes, and the rest.
_HEAD = struct.Struct("<IQ")
_TEXT_AT = 8 + _HEAD.size

_decode = msgspec.msgpack.Decoder(tuple[str, int, int]).decode


class Beacon:
    """Made before the processes that share it, and inherited by fork.

    Args:
        descriptor: of a file of SIZE bytes, for processes that are not forked; -1: memory without a name.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        self.words = memoryview(self._page).cast("Q")
        """`words[0]` is the generation: another number than before, and another state is in force."""

    def show(self, path: Path, inode: tuple[int, int]) -> None:
        """The state that is in force from now on. Before the first commit to it is acknowledged."""
        text = msgspec.msgpack.encode((str(path), *inode))
        assert _TEXT_AT + len(text) <= SIZE
        if self.words[0] and self._text() == text:
            return
        self._page[8 : _TEXT_AT + len(text)] = _HEAD.pack(len(text), xxhash.xxh3_64_intdigest(text)) + text
        self.words[0] += 1

    def state(self) -> tuple[Path, tuple[int, int]]:
        """Path and (device, inode) of the state in force. Raises: MetaUnavailable if none was ever shown."""
        text = self._text()
        if not self.words[0] or text is None:
            raise MetaUnavailable("no metadata state is in force yet")
        path, device, inode = _decode(text)
        return Path(path), (device, inode)

    def _text(self) -> bytes | None:
        size, checksum = _HEAD.unpack_from(self._page, 8)
        text = self._page[_TEXT_AT : _TEXT_AT + size]
        return text if xxhash.xxh3_64_intdigest(text) == checksum else None
