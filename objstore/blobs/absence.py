"""How many fragment files of a volume may be away: the one place that decides. Pure.

A stripe is readable as long as any k of its k+m fragments are. Disks and nodes go by themselves; whatever
we take away on purpose has to fit into what they leave of m, all of it together: a node that is stopped, a
disk or a peer that is left out because it is slow, a file that the rebalancer has in motion. Whoever is
about to do one of these asks here, with everything that is away already, whoever took it.

Draining takes nothing away: a disk to be emptied is read from until its files lie elsewhere.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from objstore.blobs.volumes import VolumeRecord, VolumeState


class Shortage(NamedTuple):
    """A volume of which more than m files would be away: stripes of it could not be read."""

    volume: int
    away: int  # Files.
    m: int


def away_files(record: VolumeRecord, away: Collection[int], damaged: Collection[int] = ()) -> int:
    """How many of a volume's fragment files are on disks that are `away`, or are `damaged` (by index)."""
    return sum(number in away or file in damaged for file, number in enumerate(record.disks))


def shortages(
    records: Iterable[VolumeRecord],
    away: Collection[int],
    damaged: Mapping[int, Collection[int]] | None = None,
) -> list[Shortage]:
    """The volumes that could not be read if exactly the disks `away` were; those in the trash do not count.

    Args:
        damaged: by volume, the indexes of files that cannot be read wherever they are.
    """
    damaged = damaged if damaged is not None else {}
    found = []
    for record in records:
        count = away_files(record, away, damaged.get(record.id, ()))
        if count > record.m and record.state != VolumeState.RETIRED:
            found.append(Shortage(record.id, count, record.m))
    return found


def may_leave_out(
    record: VolumeRecord, away: Collection[int], wish: Sequence[int], damaged: Collection[int] = ()
) -> list[int]:
    """Which of the disks `wish` may be done without for this volume, beside those that are away already.

    Args:
        wish: the most urgent first; disks without a file of the volume may always be left out.
    """
    left_out: list[int] = []
    for number in wish:
        if number not in record.disks or away_files(record, {*away, *left_out, number}, damaged) <= record.m:
            left_out.append(number)
    return left_out
