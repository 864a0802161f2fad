"""Compaction: the live part of a volume goes elsewhere, through the normal write path; then the rest goes.

What a volume holds is read from its stripes' directories and judged by home records only. Garbage counters
merely choose the volumes. Chosen are sealed volumes with a high garbage share (what no commit ever claimed is
garbage from the start), those with a narrower code than the policy's once the disks for it are there, and
small ones when there are several to merge.

Tiny bodies have directories larger than themselves, which look like garbage for ever: so a volume chosen
for its garbage is first examined, and left alone when rewriting would win too little.

Concurrency: one volume at a time; a sealed volume gains no new homes (every publishing commit expects
its record open), so what is found dead stays dead. Each move is a conditional commit on its home. A crash
between any two steps leaves orphans in the new volume, or a volume that is compacted again.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from objstore.blobs.stripes import Entry, aligned
from objstore.blobs.topology import Layout
from objstore.blobs.volumes import Stored, VolumeRecord, VolumeState
from objstore.errors import Conflict, Corrupt, StoreError
from objstore.extents import Extent
from objstore.node.fragments import FILE_HEADER_SIZE
from objstore.upkeep.context import Context
from objstore.upkeep.homes import UnknownHome, address, move, open_home
from objstore.upkeep.walk import Stripe, stripes

log = logging.getLogger(__name__)

MIB: Final = 1024 * 1024
SMALL_MAX: Final = 512 * 1024  # Bytes: up to this a piece is packed with others, like a small body.
REWRITES_MAX: Final = 4
ENTRY_SIZE: Final = 24  # Bytes of a directory entry beside home and about, and of record headers, about.


class CompactionRules(NamedTuple):
    garbage_share: float = 0.30  # Of the payload space; above it a sealed volume is rewritten.
    small_length: int = 8 * MIB  # Bytes of a fragment file: below, a sealed volume is small.
    merge_count: int = 8  # Small volumes that make a merge worth it: each byte moves once in eight.
    gain: float = 0.15  # Of the payload space; what rewriting must win at least.
    at_once: int = 64  # Pieces on their way at once: they share stripes and commits.
    bytes_at_once: int = 32 * MIB


DEFAULT_RULES: Final = CompactionRules()


@dataclass(slots=True)
class Outcome:
    """What became of one volume."""

    volume: int
    moved: int = 0  # Pieces.
    moved_bytes: int = 0
    dead: int = 0
    dead_bytes: int = 0
    stuck: list[str] = field(default_factory=list)  # Why the volume has to stay.
    retired: bool = False


class Candidate(NamedTuple):
    volume: int
    reason: str
    garbage: float  # Share, 0 to 1.


def garbage_share(record: VolumeRecord, length: int, live: int) -> float:
    """The part of the payload space that no home points at; directories and checksums count as garbage."""
    space = max(0, length - FILE_HEADER_SIZE) * record.k
    return 1.0 if space == 0 else min(1.0, max(0.0, 1.0 - live / space))


async def candidates(ctx: Context, rules: CompactionRules = DEFAULT_RULES) -> list[Candidate]:
    """Sealed volumes worth compacting, the most garbage first."""
    chosen: list[Candidate] = []
    small: dict[str, list[Candidate]] = {}  # By policy: volumes of different ones are never merged.
    layout = await ctx.ledger.layout()
    wide: dict[str, int] = {}  # By policy: the k that its new volumes have.
    after = 0
    while records := await ctx.ledger.volumes(after):
        after = records[-1].id
        sealed = [record for record in records if record.state == VolumeState.SEALED]
        amounts = await ctx.ledger.lengths([record.id for record in sealed])
        for record, (_, live) in zip(sealed, amounts, strict=True):
            share = garbage_share(record, record.length, live)
            if live <= 0 or share > rules.garbage_share:
                chosen.append(Candidate(record.id, "garbage", share))
            elif record.k < _widest(ctx, layout, record.policy, wide):
                chosen.append(Candidate(record.id, "narrow code", share))
            elif record.length < rules.small_length:
                small.setdefault(record.policy, []).append(Candidate(record.id, "small", share))
    for mergeable in small.values():
        if len(mergeable) >= rules.merge_count:
            chosen += mergeable
    return sorted(chosen, key=lambda candidate: -candidate.garbage)


def _widest(ctx: Context, layout: Layout, name: str, known: dict[str, int]) -> int:
    """The policy's own k if all its fragments would have a disk; else 0."""
    if name not in known:
        policy = layout.policy(name)
        k, m = policy.code(ctx.k, ctx.m)
        usable = sum(spot.takes and policy.admits(spot.site, spot.pool) for spot in layout.spots.values())
        known[name] = k if usable >= k + m else 0
    return known[name]


async def gain(ctx: Context, volume: int) -> float:
    """The share of the volume's payload space that rewriting would win. Reads directories and homes only.

    Raises: Corrupt, Unavailable.
    """
    record = await ctx.ledger.get(volume, fresh=True)
    space = max(1, record.length - FILE_HEADER_SIZE) * record.k
    needed = 0
    async for stripe in stripes(ctx, record, record.length):
        await ctx.pace.spend(stripe.header.payload_size - stripe.header.directory_offset)
        for entry, _ in await _live(ctx, stripe, Outcome(volume)):
            needed += aligned(entry.length) + len(entry.home) + len(entry.about) + ENTRY_SIZE
    return 1.0 - needed / space


async def compact(ctx: Context, volume: int, rules: CompactionRules = DEFAULT_RULES) -> Outcome:
    """Move what lives, then retire the volume. Leaves it as it is if anything cannot be judged or moved.

    Raises: Unavailable, MetaUnavailable: nothing is lost, try again later.
    """
    outcome = Outcome(volume)
    record = await ctx.ledger.get(volume, fresh=True)
    if record.state != VolumeState.SEALED:
        return outcome
    batch: list[tuple[Entry, Extent]] = []
    size = 0
    try:
        async for stripe in stripes(ctx, record, record.length):
            await ctx.pace.spend(stripe.header.fragment_size)
            for entry, extent in await _live(ctx, stripe, outcome):
                batch.append((entry, extent))
                size += entry.length
            if len(batch) >= rules.at_once or size >= rules.bytes_at_once:
                await _move_all(ctx, record.policy, batch, outcome)
                batch, size = [], 0
        await _move_all(ctx, record.policy, batch, outcome)
    except Corrupt as failure:
        outcome.stuck.append(str(failure))
    # Whatever is counted as live was seen here: moved, or dead and not yet swept. More means that the walk
    # has missed something (a length that is too short, say), and the trash would take it.
    live = (await ctx.ledger.lengths([volume]))[0][1]
    if live > outcome.dead_bytes:
        outcome.stuck.append(f"{live} bytes count as live, {outcome.dead_bytes} were found and not moved")
    if outcome.stuck:
        ctx.alarms.set(f"compaction of volume {volume}", "; ".join(outcome.stuck[:3]))
        return outcome
    ctx.alarms.clear(f"compaction of volume {volume}")
    ctx.crash_point("compaction-moved")
    await ctx.ledger.retire(volume)
    outcome.retired = True
    ctx.crash_point("compaction-retired")
    return outcome


async def _live(ctx: Context, stripe: Stripe, outcome: Outcome) -> list[tuple[Entry, Extent]]:
    """The entries whose homes hold them, each with the extent as its home has it."""
    found: list[tuple[Entry, Extent]] = []
    homes = await asyncio.gather(
        *(open_home(ctx.kv, entry.home) for entry in stripe.entries), return_exceptions=True
    )
    for entry, home in zip(stripe.entries, homes, strict=True):
        if isinstance(home, UnknownHome):
            outcome.stuck.append(str(home))
        elif isinstance(home, BaseException):
            raise home
        elif home is not None and entry.length == 0:
            found.append((entry, stripe.extent(entry)))  # A directory by itself: it goes where its home is.
        elif home is not None and (place := home.places.get(address(stripe.extent(entry)))):
            found.append((entry, place.extent))
        else:
            outcome.dead += 1
            outcome.dead_bytes += entry.length
    return found


async def _move_all(
    ctx: Context, policy: str, batch: Sequence[tuple[Entry, Extent]], outcome: Outcome
) -> None:
    results = await asyncio.gather(
        *(_move(ctx, policy, entry, extent) for entry, extent in batch), return_exceptions=True
    )
    for (entry, _), result in zip(batch, results, strict=True):
        if isinstance(result, Corrupt):
            outcome.stuck.append(str(result))
        elif isinstance(result, BaseException):
            raise result
        elif result:
            outcome.moved += 1
            outcome.moved_bytes += entry.length
        else:
            outcome.dead += 1
            outcome.dead_bytes += entry.length
    if batch:
        ctx.crash_point("compaction-batch")


async def _move(ctx: Context, policy: str, entry: Entry, extent: Extent) -> bool:
    """Write a piece elsewhere, under the policy of the volume that it was in, and let its home hold it there.

    Raises: Corrupt, Unavailable.
    """
    for _ in range(REWRITES_MAX):
        stored = await _rewrite(ctx, policy, entry, extent)
        ctx.crash_point("compaction-written")
        if entry.length == 0:
            return True
        try:
            return await move(ctx.kv, entry.home, extent, stored)
        except Conflict:
            continue  # The new volume was sealed before the commit.
    raise StoreError(f"{REWRITES_MAX} volumes were sealed under one piece")


async def _rewrite(ctx: Context, policy: str, entry: Entry, extent: Extent) -> Stored:
    if entry.length == 0:
        return await ctx.writer.put(
            b"", entry.home, entry.about, policy=policy, blob_offset=entry.blob_offset, blob=entry.blob
        )
    if entry.length <= SMALL_MAX:
        body = await ctx.reader.read(extent)
        await ctx.pace.spend(entry.length)
        return await ctx.writer.put(
            body, entry.home, entry.about, policy=policy, blob_offset=entry.blob_offset, blob=entry.blob
        )
    stream = ctx.writer.stream(entry.home, policy=policy, blob_offset=entry.blob_offset, blob=entry.blob)
    try:
        async with aclosing(ctx.reader.stream([extent], 0, extent.length)) as source:
            async for views in source:
                for view in views:
                    await stream.write(view)
                    await ctx.pace.spend(len(view))
        return await stream.finish(entry.about)
    finally:
        stream.abort()
