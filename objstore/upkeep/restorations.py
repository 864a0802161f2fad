"""How long repair took, disk by disk: from when one went away to when its last fragment file lay elsewhere.

Kept in one setting, so that it outlives the process; the durability planner counts with it instead of a guess
(`objstore durability --live`). A disk that comes back before that is no restoration: its files were not
lost. One that was given up counts from when that was first seen.

Times are those of the leader's clock; repair looks once a minute, which is how exact they are.
"""

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from objstore.errors import Conflict
from objstore.meta.kv import Transaction
from objstore.meta.schema import setting_key
from objstore.upkeep.context import Context

RESTORED_KEY: Final = setting_key("restored")
KEPT_MAX: Final = 64  # Of the newest: up to 30 bytes each, in a value of at most 4,096.
UNDER_WAY_MAX: Final = 64  # Disks that went away together, beyond which the others are not timed.


class Restoration(msgspec.Struct, frozen=True, array_like=True):
    """MessagePack array; fields are only ever added at the end."""

    disk: int
    gone_us: int  # When it went away;
    restored_us: int  # and when nothing that it held was missing any more.

    @property
    def seconds(self) -> float:
        return max(self.restored_us - self.gone_us, 0) / 1e6


class Restorations(msgspec.Struct, frozen=True, array_like=True):
    """MessagePack array; fields are only ever added at the end."""

    format: int = 1
    under_way: dict[int, int] = {}  # Disk -> when it went away, microseconds.
    done: tuple[Restoration, ...] = ()  # The oldest first.


def observed(
    before: Restorations,
    *,
    away: Collection[int],
    gone_us: Mapping[int, int],
    damaged: Mapping[int, int],
    now_us: int,
) -> Restorations:
    """What is known after one look at all disks and volumes.

    Args:
        away: disks that do not answer or were given up.
        gone_us: those whose files count as lost, with when they went away.
        damaged: files still to be rebuilt, by the disk that had them.
    """
    under_way: dict[int, int] = {}
    done = list(before.done)
    for disk, since in before.under_way.items():
        if disk not in away:
            continue  # It is back, with what it held.
        if disk in gone_us and not damaged.get(disk):
            done.append(Restoration(disk, since, now_us))
        else:
            under_way[disk] = since
    for disk, since in sorted(gone_us.items()):
        if damaged.get(disk) and disk not in under_way and len(under_way) < UNDER_WAY_MAX:
            under_way[disk] = since
    return Restorations(under_way=under_way, done=tuple(done[-KEPT_MAX:]))


async def restorations(ctx: Context) -> Restorations:
    """Raises: MetaUnavailable."""
    return _decoded(await ctx.kv.get(RESTORED_KEY))


async def note(
    ctx: Context, *, away: Collection[int], gone_us: Mapping[int, int], damaged: Mapping[int, int]
) -> None:
    """Remember what one look has shown, if it changes anything.

    Raises: MetaUnavailable, Overloaded, Deposed.
    """
    value = await ctx.kv.get(RESTORED_KEY)
    before = _decoded(value)
    now_us = ctx.clock.now_us()
    after = observed(before, away=away, gone_us=gone_us, damaged=damaged, now_us=now_us)
    if after == before:
        return
    try:
        await ctx.kv.commit(
            Transaction(expect={RESTORED_KEY: value}, put={RESTORED_KEY: msgspec.msgpack.encode(after)})
        )
    except Conflict:
        return  # Another process looks as well: the next pass sees what it wrote.


def _decoded(value: bytes | None) -> Restorations:
    return Restorations() if value is None else msgspec.msgpack.decode(value, type=Restorations)
