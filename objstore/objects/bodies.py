"""From a verified body to durable bytes, and the part of a commit that publishes them.

Small bodies are packed with others into one stripe and stay in memory until their commit stands; large ones
stream. A commit that finds its volume sealed has its bytes written again in a fresh one: from
memory, or read back from where they are.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from objstore.blobs.volumes import Stored
from objstore.blobs.writer import BlobStream
from objstore.errors import Overloaded, TooLarge
from objstore.extents import Extent
from objstore.ids import random_id
from objstore.meta.schema import (
    INLINE_EXTENTS_MAX,
    PAGE_EXTENTS_MAX,
    ExtentPage,
    encode,
    extent_page_key,
)
from objstore.objects.checksums import Hasher
from objstore.objects.store import Store
from objstore.objects.values import Body, Buffer, Digests, PouringBody

GIB: Final = 1 << 30
PUT_SIZE_MAX: Final = 5 * GIB  # Bytes, of one PUT, one part, one copied source.
OBJECT_SIZE_MAX: Final = 5 * 1024 * GIB  # Bytes.
PAGES_MAX: Final = 2_000  # Of extents, about 2 KB each: one commit puts them all. 180,000 pieces.
NOTHING: Final = Stored([], {}, [])  # What an empty body is stored as.

Describe = Callable[[Digests], bytes]  # The record without extents, encoded: for salvage.


@dataclass(slots=True)
class Kept:
    """Bytes that no commit has published yet: durable, or small and to be carried by the commit."""

    home: bytes
    about: bytes
    stored: Stored
    data: Buffer | None  # The body, if it was small.
    size: int
    inline: list[Extent]
    carried: bool = False  # Not durable yet: `data` goes into the commit itself (carrying.py).
    blob: bytes = b""  # 16 bytes if the extents need pages of their own.
    pages: dict[bytes, bytes] | None = None
    policy: str = ""  # The placement policy under which they were written.

    def lay_out(self, store: Store) -> None:
        """Split the extents into those of the record and pages."""
        extents = self.stored.extents
        if len(extents) <= INLINE_EXTENTS_MAX:
            self.inline, self.blob, self.pages = extents, b"", None
            return
        self.inline = extents[:INLINE_EXTENTS_MAX]
        self.blob = random_id(store.randomness)
        begin = sum(extent.length for extent in self.inline)
        pages: dict[bytes, bytes] = {}
        for at in range(INLINE_EXTENTS_MAX, len(extents), PAGE_EXTENTS_MAX):
            some = extents[at : at + PAGE_EXTENTS_MAX]
            key = extent_page_key(self.blob, len(pages))
            pages[key] = encode(ExtentPage(extents=some, begin=begin))
            begin += sum(extent.length for extent in some)
        if len(pages) > PAGES_MAX:
            raise Overloaded(f"the body came in {len(extents)} pieces: too slowly for the memory there is")
        self.pages = pages

    async def write_under(self, store: Store, policy: str) -> None:
        """The bucket's policy has changed before the commit: the same bytes, where the new one wants them.

        Raises: Unavailable, Corrupt (they cannot be read back).
        """
        if self.policy != policy:
            self.policy = policy
            await self.write_again(store)

    async def write_again(self, store: Store) -> None:
        """The volume was sealed before the commit: the same bytes, in a fresh one.

        Raises: Unavailable, Corrupt (they cannot be read back).
        """
        await store.writer.recheck(self.stored.fences)  # Else the next bytes go into the same volume.
        store.crash_point("body-sealed")
        if self.data is not None:
            self.carried = False
            self.stored = await store.writer.put(self.data, self.home, self.about, policy=self.policy)
        elif self.size:
            stream = store.writer.stream(self.home, policy=self.policy)
            try:
                source: Any = store.reader.stream(self.stored.extents, 0, self.size)
                async with aclosing(source):
                    async for buffers in source:
                        for buffer in buffers:
                            await stream.write(buffer)
                self.stored = await stream.finish(self.about)
            except BaseException:
                stream.abort()
                raise
        store.crash_point("body-rewritten")
        self.lay_out(store)


async def keep_small(store: Store, home: bytes, data: Buffer, about: bytes, policy: str = "") -> Kept:
    if not len(data):
        return Kept(home, about, NOTHING, b"", 0, [], policy=policy)
    stored = await store.writer.put(data, home, about, policy=policy)
    return Kept(home, about, stored, data, len(data), stored.extents, policy=policy)


async def keep_body(
    store: Store,
    home: bytes,
    body: Body,
    describe: Describe,
    *,
    policy: str = "",
    size_max: int = PUT_SIZE_MAX,
    beside: Hasher | None = None,
    may_carry: bool = False,
) -> tuple[Kept, Digests]:
    """Make a body's bytes durable. Nothing is durable as an object before a commit publishes it.

    Args:
        home: the key of the record that will hold the extents.
        policy: the name of the placement policy; empty: the default one.
        beside: a hasher that is to see every byte too.
        may_carry: the commit puts the home's own record, of which metadata may carry the body.

    Raises: TooLarge, Unavailable, and whatever the body raises.
    """
    if body.size is not None and body.size > size_max:
        raise TooLarge(size=body.size, maximum=size_max)
    if (
        beside is None
        and body.size is not None
        and body.size > store.small_size_max
        and isinstance(body, PouringBody)  # Microseconds: not for small ones.
        and body.is_large
    ):
        return await _keep_stream(store, home, body, describe, body.pour, policy)

    chunks: list[bytes] = []
    size = 0
    source = body.__aiter__()
    async for chunk in source:
        size += len(chunk)
        if beside is not None:
            beside.update(chunk)
        chunks.append(chunk if type(chunk) is bytes else bytes(chunk))  # The edge may use its buffer again.
        if size > store.small_size_max:
            break
    else:
        digests = await body.digests()
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        assert digests.size == size
        # Under a policy of their own bytes may have to stay on certain sites: metadata need not lie there.
        if may_carry and not policy and store.carrier.takes(size):
            return Kept(home, describe(digests), NOTHING, data, size, [], carried=True), digests
        return await keep_small(store, home, data, describe(digests), policy), digests

    async def pour(stream: BlobStream) -> None:
        nonlocal size
        for first in chunks:
            await stream.write(first)
        chunks.clear()
        async for chunk in source:
            size += len(chunk)
            if size > size_max:
                raise TooLarge(size=size, maximum=size_max)
            if beside is not None:
                beside.update(chunk)
            await stream.write(chunk)

    return await _keep_stream(store, home, body, describe, pour, policy)


async def _keep_stream(
    store: Store,
    home: bytes,
    body: Body,
    describe: Describe,
    pour: Callable[[BlobStream], Awaitable[None]],
    policy: str,
) -> tuple[Kept, Digests]:
    stream = store.writer.stream(home, policy=policy)
    try:
        await pour(stream)
        digests = await body.digests()
        about = describe(digests)
        stored = await stream.finish(about)
    except BaseException:
        stream.abort()
        raise
    assert sum(extent.length for extent in stored.extents) == digests.size
    kept = Kept(home, about, stored, None, digests.size, [], policy=policy)
    kept.lay_out(store)
    return kept, digests
