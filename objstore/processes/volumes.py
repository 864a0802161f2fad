"""Volumes as operators see them: which are damaged, and what one consists of."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Final

from objstore.admin.app import Problem
from objstore.blobs.absence import away_files, shortages
from objstore.blobs.placement import judge
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.errors import Corrupt, Unavailable
from objstore.node.fragments import RECORD_HEADER_SIZE
from objstore.processes.outlook import away_disks
from objstore.processes.parts import Parts, survey_of
from objstore.upkeep.damage import lost_volumes
from objstore.upkeep.plans import Damage
from objstore.upkeep.service import Service

LISTED_MAX: Final = 100_000


async def listed(parts: Parts, service: Service, *, damaged: bool) -> list[dict[str, Any]]:
    """One row a volume; with `damaged` only those with something to mend, to move, that is lost, or that
    cannot be read as long as disks are away."""
    ledger = parts.store.ledger
    away = await away_disks(parts)
    found: dict[int, list[Damage]] = defaultdict(list)
    for damage in await service.damages():
        found[damage.record.id].append(damage)
    lost = set(await lost_volumes(service.context))
    rows: list[dict[str, Any]] = []
    after = 0
    while len(rows) < LISTED_MAX and (records := await ledger.volumes(after)):
        after = records[-1].id
        if damaged:
            records = [
                record
                for record in records
                if record.id in found or record.id in lost or shortages([record], away)
            ]
        amounts = await ledger.lengths([record.id for record in records])
        for record, (length, live) in zip(records, amounts, strict=True):
            rows.append(_row(record, length, live, found.get(record.id, ()), record.id in lost, away))
    return rows[:LISTED_MAX]


def _row(
    record: VolumeRecord, length: int, live: int, damages: Sequence[Damage], lost: bool, away: Collection[int]
) -> dict[str, Any]:
    bad = {damage.file for damage in damages if not damage.moving}
    missing = away_files(record, away, bad)  # Those that are damaged among them.
    reasons = sorted({damage.reason for damage in damages})
    if missing > len(bad):
        reasons.append(f"{missing - len(bad)} files on disks that are away")
    return {
        "volume": record.id,
        "state": VolumeState(record.state).name.lower(),
        "code": f"{record.k}+{record.m}",
        "disks": record.disks,
        "bytes": record.length or length,
        "live": live,
        "damaged": len(bad),
        "moving": sum(damage.moving for damage in damages),
        "away": missing - len(bad),
        "spare": record.m - missing,  # Files that may be lost beside; below 0: only what stripes still have.
        "lost": lost,
        "reason": "; ".join([*reasons, *(["stripes in it are lost: objstore volume check"] if lost else [])]),
    }


async def shown(parts: Parts, service: Service, volume: int) -> dict[str, Any]:
    """One volume, file by file. Raises: Problem (404)."""
    try:
        record = await parts.store.ledger.get(volume, fresh=True)
    except Corrupt as failure:
        raise Problem(404, str(failure)) from None
    damages = {damage.file: damage for damage in await service.damages() if damage.record.id == volume}
    lost = volume in await lost_volumes(service.context)
    length, live = (await parts.store.ledger.lengths([volume]))[0]
    records = await parts.store.ledger.disks()
    files: list[dict[str, Any]] = []
    for index, number in enumerate(record.disks):
        disk, known = parts.disks.get(number), records.get(number)
        state = "unknown" if disk is None else disk.state.value
        if known is not None and known.state != "healthy" and state == "healthy":
            state = known.state
        files.append(
            {
                "file": index,
                "kind": "data" if index < record.k else "parity",
                "disk": number,
                "state": "given up" if known is not None and known.state == "failed" else state,
                "found": await _first_header(parts, record, index),
                "damage": damages[index].reason if index in damages else "",
            }
        )
    row = _row(record, length, live, list(damages.values()), lost, await away_disks(parts))
    row["lane"] = "small" if record.lane == 0 else "bulk"
    layout = await parts.store.ledger.layout()
    verdict = judge(
        await survey_of(parts, layout),
        layout.policy(record.policy),
        k=record.k,
        m=record.m,
        disks=record.disks,
        chance=lambda: 0.5,
    )
    row["policy"] = record.policy or "(default)"
    row["promise"] = verdict.promise.words(verdict.level.word)
    row["misplaced"] = "; ".join(
        f"file {file}: {fault.value}" for file, fault in sorted(verdict.faults.items())
    )
    return {"facts": row, "files": files}


async def _first_header(parts: Parts, record: VolumeRecord, index: int) -> str:
    """Whether the file answers at all: a look at its first bytes, not a verification."""
    disk = parts.disks.get(record.disks[index])
    if disk is None:
        return "no such disk"
    data = bytearray(RECORD_HEADER_SIZE)
    try:
        count = await disk.read(record.id, index, 0, [memoryview(data)])
    except Unavailable:
        return "away"
    except FileNotFoundError:
        return "missing"
    except (Corrupt, OSError) as failure:
        return str(failure)
    return "there" if count else "empty"
