"""Writing blobs: group commit on two lanes. (Signatures agreed; see docs/decisions/0001.)"""

from objstore.blobs.volumes import Stored

Buffer = bytes | bytearray | memoryview


class BlobStream:
    """One large body on the bulk lane: full stripes as it arrives, synced once at the end."""

    async def write(self, chunk: Buffer) -> None:
        """Take the bytes; waits for stripe budget, not for the disk. Raises: Unavailable."""
        raise NotImplementedError

    async def finish(self, about: bytes) -> Stored:
        """Write what is left (with `about` in the last stripe's directory) and make all of it durable."""
        raise NotImplementedError

    def abort(self) -> None:
        """Give the budget back. What was written becomes an orphan."""
        raise NotImplementedError


class BlobWriter:
    async def put(self, body: Buffer, home: bytes, about: bytes) -> Stored:
        """Pack one small body (1 byte to small_size_max) into the next stripe; durable when this returns.

        Args:
            home: the metadata key under which the extent will be recorded.
            about: the record without extents, for salvage.

        Raises: Overloaded (queue full), TooFewDisks, WriteQuorumNotMet.
        """
        raise NotImplementedError

    def stream(self, home: bytes) -> BlobStream:
        raise NotImplementedError

    async def close(self) -> None:
        """Flush what waits, seal the open volumes."""
        raise NotImplementedError
