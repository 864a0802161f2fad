"""Memory of earlier reads and answers: a piece is used again when nobody holds a view of it any more.

Fresh memory costs a page fault for every 4 KiB. CPython refuses to resize a bytearray while any buffer export
of it is alive (a memoryview, a transport's write queue, a disk's thread that is late): trying to is the test.

Concurrency: one event loop.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

KEPT_MIN: Final = 64 * 1024  # Bytes worth keeping: the memory of smaller ones malloc keeps by itself.
LOOKS: Final = 8  # Pieces that are tried before a new one is made.


class KeptMemory:
    """
    Args:
        kept_max: bytes that are kept.
        rounded: sizes up to those that are kept apart.
    """

    def __init__(self, kept_max: int, rounded: Callable[[int], int]) -> None:
        self.kept = 0  # Bytes.
        self._kept_max = kept_max
        self._rounded = rounded
        self._rings: dict[int, deque[bytearray]] = {}  # By size, the longest unused first.

    def take(self, size: int) -> bytearray:
        """At least `size` bytes of anything."""
        if size < KEPT_MIN:
            return bytearray(size)
        size = self._rounded(size)
        ring = self._rings.setdefault(size, deque())
        for _ in range(min(len(ring), LOOKS)):
            piece = ring[0]
            ring.rotate(-1)
            try:
                piece.append(0)
            except BufferError:
                continue  # Still being sent.
            piece.pop()
            return piece
        piece = bytearray(size)
        if self.kept + size <= self._kept_max:
            self.kept += size
            ring.append(piece)
        return piece
