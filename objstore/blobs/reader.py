"""Reading blobs: verified, reconstructed when needed. (Signatures agreed; see docs/decisions/0001.)"""

from collections.abc import AsyncIterator, Sequence

from objstore.extents import Extent


class BlobReader:
    async def read(self, extent: Extent) -> bytes | memoryview:
        """All bytes of one small extent (at most 128 KiB, say), verified end to end.

        Raises: Corrupt (cannot be verified or reconstructed), Unavailable (too few disks answer).
        """
        raise NotImplementedError

    def stream(self, extents: Sequence[Extent], begin: int, length: int) -> AsyncIterator[list[memoryview]]:
        """Bytes [begin, begin + length) of the concatenated extents, as lists of verified buffers.

        Reads ahead at most one stripe. Memory comes from the reader's budget and is given back when the next
        list is asked for or the iterator is closed.
        """
        raise NotImplementedError
