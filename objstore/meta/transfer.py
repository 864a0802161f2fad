"""All metadata into one portable file, and back: `objstore meta export|import`.

Works through `Kv` alone, so that it carries metadata from one engine to another. The file:

     0  ..   the line "objstore metadata 1" and a newline
    ..  ..   blocks as in a snapshot (see snapshot.py): start, pairs, ..., end

Its chained checksums are verified to the end before an import changes anything. An export of a store
that is being written to is not one view: stop the workers for that, or take what is there.
"""

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import aiofiles
import msgspec

from objstore.errors import BadRequest, Conflict, Corrupt
from objstore.meta.kv import KEY_SIZE_MAX, Kv, Transaction, pages
from objstore.meta.snapshot import (
    END,
    HEAD_SIZE,
    PAIRS,
    START,
    Block,
    Pairs,
    block_size,
    decode_block,
    encode_block,
)
from objstore.node.identity import sync_directory
from objstore.node.syscalls import RealSyscalls

_NAME = b"objstore metadata "
MAGIC = _NAME + b"1\n"
SCAN_COUNT = 1_000  # Pairs read at a time: about 100 KB.
COMMIT_COUNT = 500  # Pairs in one mini-transaction.
COMMITS_AT_ONCE = 4
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # What file systems without them say.

Progress = Callable[[int], None]
"""Pairs so far."""


def no_progress(count: int) -> None:
    pass


def check_target(path: Path) -> None:
    """Raises: OSError unless an export may be written to `path`."""
    if path.exists():
        raise FileExistsError(f"{path} exists")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(f"there is no directory {path.parent} that this user may write to")


async def export(kv: Kv, path: Path, *, now_us: int, progress: Progress = no_progress) -> int:
    """Write every pair to `path`, which must not exist; returns how many.

    The file is its owner's alone (names, users and sealed secrets are in it), and appears under its name only
    when it is whole and synced; until then it is a .part file beside it, which a run that is killed leaves.
    Of several exports to one path the first to end has it.

    Raises: FileExistsError, OSError, and what `Kv.scan` raises.
    """
    await asyncio.to_thread(check_target, path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    count = 0

    def counted(so_far: int) -> None:
        nonlocal count
        count = so_far
        progress(so_far)

    try:
        async with aiofiles.open(temporary, "xb", opener=_private) as file:
            async for chunk in stream(kv, now_us=now_us, progress=counted):
                await file.write(chunk)
            await file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        await asyncio.to_thread(_publish, temporary, path)
        await asyncio.to_thread(sync_directory, str(path.parent), RealSyscalls())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


def _publish(temporary: Path, path: Path) -> None:
    """Raises: FileExistsError, if another export has put a file there meanwhile: it is not replaced."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(f"{path} exists") from None
    except OSError as failure:
        if failure.errno not in _NO_HARD_LINKS:
            raise
        check_target(path)
        os.rename(temporary, path)
    else:
        temporary.unlink()


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


async def stream(kv: Kv, *, now_us: int, progress: Progress = no_progress) -> AsyncGenerator[bytes, None]:
    """The bytes of an export, block by block. Raises: what `Kv.scan` raises."""
    encode = msgspec.msgpack.encode
    count = blocks = checksum = 0
    yield MAGIC
    raw, checksum = encode_block(START, 0, encode([1, now_us]), checksum)
    yield raw
    async for pairs in pages(kv, b"\0", b"\xff" * KEY_SIZE_MAX, SCAN_COUNT):
        flat = [part for pair in pairs for part in pair]
        raw, checksum = encode_block(PAIRS, len(pairs), encode(flat), checksum)
        yield raw
        count += len(pairs)
        blocks += 1
        progress(count)
    raw, _ = encode_block(END, 0, encode([count, blocks]), checksum)
    yield raw


async def import_(kv: Kv, path: Path, *, replace: bool = False, progress: Progress = no_progress) -> int:
    """Put every pair of an export into the store; returns how many.

    Args:
        replace: overwrite keys that are there. Otherwise the store must be empty, and a key that
            appears meanwhile is a Conflict; what was put before stays.

    Raises: Corrupt (nothing was changed: the file is checked first), BadRequest (the store is not
        empty), OSError, and what `Kv.commit` raises.
    """
    async for _ in read(path):
        pass
    if not replace and await kv.scan(b"\0", b"\xff" * KEY_SIZE_MAX, 1):
        raise BadRequest(
            "the store is not empty: an import goes into a new one, or with --replace in its place"
        )
    count = 0
    pending: list[asyncio.Task[None]] = []

    async def finish() -> None:
        nonlocal pending
        done, pending = pending, []
        outcomes = await asyncio.gather(*done, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async for pairs in read(path):
        for start in range(0, len(pairs), COMMIT_COUNT):
            chosen = dict(pairs[start : start + COMMIT_COUNT])
            expect: dict[bytes, bytes | None] = {} if replace else dict.fromkeys(chosen)
            pending.append(asyncio.create_task(_commit(kv, Transaction(expect=expect, put=chosen))))
            if len(pending) >= COMMITS_AT_ONCE:
                await finish()
        count += len(pairs)
        progress(count)
    await finish()
    return count


async def _commit(kv: Kv, transaction: Transaction) -> None:
    try:
        await kv.commit(transaction)
    except Conflict as failure:
        raise BadRequest(f"the store is not empty: {failure}") from failure


async def read(path: Path) -> AsyncIterator[Pairs]:
    """The pairs of an export, block by block, every one verified.

    Raises: Corrupt if the file is no export, one of a later format, damaged, or cut off.
    """
    async with aiofiles.open(path, "rb") as file:
        first = await file.read(len(MAGIC))
        if first != MAGIC and first.startswith(_NAME):
            form = first.removeprefix(_NAME).partition(b"\n")[0].decode(errors="replace")
            raise Corrupt(f"{path} has format {form}; this release reads 1")
        if first != MAGIC:
            raise Corrupt(f"{path} is not an export of metadata")
        checksum, kind, count = 0, -1, 0
        block: Block | None = None
        while kind != END:
            head = await file.read(HEAD_SIZE)
            size = block_size(head)
            rest = await file.read(size - HEAD_SIZE) if size else b""
            block = decode_block(head + rest, checksum) if size else None
            if block is None or (kind == -1 and block.kind != START):
                raise Corrupt(f"{path} is damaged behind its first {count} records")
            checksum, kind = block.checksum, block.kind
            if kind == PAIRS:
                pairs = block.pairs()
                count += len(pairs)
                yield pairs
        assert block is not None
        if msgspec.msgpack.decode(block.content)[0] != count or await file.read(1):
            raise Corrupt(f"{path} does not hold what its end says")
