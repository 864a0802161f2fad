"""Which state is in force: one page of memory that every process of a store shares.

A committer that has built the state again acknowledges commits as soon as one client has found it, and
another may still be reading the state of before. So the committer shows the new one here first, and
every read looks here first: whoever begins to read after an acknowledgement sees what was acknowledged.

     0   8   generation, native: counts up with each state shown; 0 before the first
     8   4   size of the text
    12   8   xxh3-64 of the text
    20  ..   text: MessagePack [generation, path, device, inode]

Concurrency: one writer at a time (the supervisor starts a committer when the last one is reaped), any
number of readers, no lock. The text is written before the generation. A writer killed in between leaves
the old generation; whoever reads half a text finds its checksum wrong; and a processor that shows the new
generation before the new text shows a text of an older one.
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

_decode = msgspec.msgpack.Decoder(tuple[int, str, int, int]).decode


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
        shown = self._read()
        if shown is not None and shown == (self.words[0], str(path), *inode):
            return
        generation = self.words[0] + 1
        text = msgspec.msgpack.encode((generation, str(path), *inode))
        assert _TEXT_AT + len(text) <= SIZE
        self._page[8 : _TEXT_AT + len(text)] = _HEAD.pack(len(text), xxhash.xxh3_64_intdigest(text)) + text
        self.words[0] = generation

    def state(self) -> tuple[Path, tuple[int, int]]:
        """Path and (device, inode) of the state in force. Raises: MetaUnavailable: none, or ask again."""
        wanted = self.words[0]
        shown = self._read()
        if not wanted or shown is None or shown[0] < wanted:
            raise MetaUnavailable("no metadata state is in force yet")
        _, path, device, inode = shown
        return Path(path), (device, inode)

    def _read(self) -> tuple[int, str, int, int] | None:
        size, checksum = _HEAD.unpack_from(self._page, 8)
        text = self._page[_TEXT_AT : _TEXT_AT + size]
        return _decode(text) if xxhash.xxh3_64_intdigest(text) == checksum else None
