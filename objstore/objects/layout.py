"""The layout: where machines stand, their pools, and the placement policies, as operators change it.

All of it is one record (S layout). Changes are staged in it, shown as a plan, and made current in one commit:

    stage     a change of what is staged (what is current, at first); every one has a number of its own
    apply     what is staged is current; expects the number that the plan was made for. Machines to be drained
              have their disks marked so in the same commit; that is not part of the layout afterwards
    revert    nothing is staged any more; after an apply: what was current before is staged

Machines say their site and rack when they register; what the layout says of a machine goes before that.

May not know: the disks' free space (blobs/survey.py does), HTTP.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from objstore.blobs.topology import SPREADS, Layout, Policy, Spot
from objstore.errors import BadArgument, Conflict, MetaUnavailable
from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import DiskRecord, MemberRecord, Record, decode, encode, serial_key, setting_key

LAYOUT_KEY: Final = setting_key("layout")
PLACED_KEY: Final = serial_key("placed")
"""A counter of commits that gave a bucket a policy: an apply that drops one expects that nobody just did."""
ATTEMPTS_MAX: Final = 64  # Of a conditional commit; each lost round means that another one won.
POLICIES_MAX: Final = 256  # Each may have open volumes of its own in every process.
SITES_MAX: Final = 64  # That one policy names.
OWN: Final = ""  # The machine of a store of one machine, among the machines of a layout.

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", re.ASCII)
_PLACE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62})", re.ASCII)
_CLASS = re.compile(r"[A-Z][A-Z0-9_]{0,62}", re.ASCII)
CODES_MAX: Final = 32  # Fragments of one volume.


class MachinePlace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the layout says of one machine. A map: fields may be added."""

    site: str | None = None  # None: as the machine says.
    rack: str | None = None
    pool: str = ""
    weight: float = 1.0  # Its free bytes count so much for new volumes; 0: it gets none.


NO_PLACE: Final = MachinePlace()


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One state of the layout. A map: fields may be added."""

    machines: dict[str, MachinePlace] = {}  # By member id in hex; `OWN` for disks without a node.
    policies: dict[str, Policy] = {}  # By name.
    drains: list[str] = []  # Member ids, in hex, of machines to be emptied; never of what is current.


EMPTY: Final = Plan()


class LayoutRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At S layout. Numbers count changes, staged ones included, and are never used again."""

    serial: int = 0  # The number of the newest change.
    version: int = 0  # The number of what is current,
    current: Plan = EMPTY
    staged: Plan | None = None  # of what is staged it is `serial`.
    previous: Plan | None = None  # What was current before the last apply.
    applied_us: int = 0


async def read_layout(kv: Kv) -> tuple[bytes | None, LayoutRecord]:
    """The record's bytes, for a commit to expect, and the record."""
    value = await kv.get(LAYOUT_KEY)
    return value, LayoutRecord() if value is None else decode(value, LayoutRecord)


def layout_of(
    plan: Plan,
    version: int,
    disks: Mapping[int, DiskRecord],
    members: Mapping[bytes, MemberRecord],
    *,
    leaving: Callable[[DiskRecord], bool],
) -> Layout:
    """Where every disk stands under a plan."""
    spots: dict[int, Spot] = {}
    for number, disk in disks.items():
        if disk.state == "retired":
            continue
        member = members.get(disk.node) if disk.node else None
        key = disk.node.hex()
        place = plan.machines.get(key, NO_PLACE)
        joined = not disk.node or (member is not None and member.state == "joined")
        away = member is not None and member.away_us > 0
        well = disk.state == "healthy" and joined
        spots[number] = Spot(
            number=number,
            free=0,
            size=disk.size,
            site=place.site if place.site is not None else (member.site if member else ""),
            rack=place.rack if place.rack is not None else (member.rack if member else ""),
            node=key,
            pool=place.pool,
            weight=place.weight,
            usable=well and not away,
            leaving=leaving(disk) or key in plan.drains,
            away=well and away,
        )
    return Layout(version, spots, dict(plan.policies))


# Changing it.

Edit = Callable[[Plan], Plan]


async def stage(kv: Kv, edit: Edit) -> LayoutRecord:
    """Change what is staged. Raises: what `edit` raises; MetaUnavailable."""

    def staged(record: LayoutRecord) -> LayoutRecord:
        before = record.staged if record.staged is not None else record.current
        after = edit(before)
        check_plan(after)
        return msgspec.structs.replace(record, serial=record.serial + 1, staged=after)

    return await _change(kv, staged)


async def revert(kv: Kv) -> LayoutRecord:
    """Drop what is staged; with nothing staged, stage what was current before the last apply.

    Raises: BadArgument (there is nothing to go back to), MetaUnavailable.
    """

    def reverted(record: LayoutRecord) -> LayoutRecord:
        if record.staged is not None:
            return msgspec.structs.replace(record, staged=None)
        if record.previous is None:
            raise BadArgument("nothing is staged, and no layout was applied before", name="layout")
        return msgspec.structs.replace(record, serial=record.serial + 1, staged=record.previous)

    return await _change(kv, reverted)


def applied(record: LayoutRecord, version: int, now_us: int) -> LayoutRecord:
    """The record after an apply. Raises: BadArgument: nothing is staged, or something else."""
    if record.staged is None:
        raise BadArgument("nothing is staged: see objstore layout show", name="version")
    if record.serial != version:
        raise BadArgument(
            f"version {record.serial} is staged, not {version}: see its plan first (objstore layout plan)",
            name="version",
        )
    return msgspec.structs.replace(
        record,
        version=record.serial,
        current=msgspec.structs.replace(record.staged, drains=[]),
        staged=None,
        previous=record.current,
        applied_us=now_us,
    )


async def _change(kv: Kv, change: Callable[[LayoutRecord], LayoutRecord]) -> LayoutRecord:
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_layout(kv)
        new = change(record)
        try:
            await kv.commit(Transaction(expect={LAYOUT_KEY: value}, put={LAYOUT_KEY: encode(new)}))
        except Conflict:
            continue
        return new
    raise MetaUnavailable(f"the layout was not changed in {ATTEMPTS_MAX} attempts")


# What may be said.


def check_plan(plan: Plan) -> None:
    """Raises: BadArgument."""
    if len(plan.policies) > POLICIES_MAX:
        raise BadArgument(f"more than {POLICIES_MAX} policies", name="policy")
    classes: dict[str, str] = {}
    for name, policy in plan.policies.items():
        _check_policy(name, policy)
        other = classes.setdefault(policy.storage_class, name) if policy.storage_class else name
        if other != name:
            raise BadArgument(
                f"storage class {policy.storage_class} is that of policy {other} already", name="class"
            )
    for place in plan.machines.values():
        for field, text in (("site", place.site), ("rack", place.rack), ("pool", place.pool)):
            _check_place(field, text or "")
        if not 0 <= place.weight <= 100:
            raise BadArgument("a weight is a number from 0 to 100", name="weight", value=str(place.weight))


def _check_policy(name: str, policy: Policy) -> None:
    if not _NAME.fullmatch(name) or policy.name != name:
        raise BadArgument(
            f"{name!r} is no name of a policy: small letters, digits, - and ., at most 63",
            name="name",
            value=name,
        )
    if len(policy.sites) > SITES_MAX:
        raise BadArgument(f"more than {SITES_MAX} sites", name="sites")
    for site in policy.sites:
        _check_place("site", site)
        if not site:
            raise BadArgument("a site without a name", name="sites")
    _check_place("pool", policy.pool)
    if policy.spread and policy.spread not in SPREADS:
        raise BadArgument("a policy spreads over node, rack or site", name="spread", value=policy.spread)
    if policy.require not in ("", "spare", "bare"):
        raise BadArgument("a policy requires spare or bare", name="require", value=policy.require)
    if policy.storage_class and (
        not _CLASS.fullmatch(policy.storage_class) or policy.storage_class == "STANDARD"
    ):
        raise BadArgument(
            "a storage class is a name in capitals, and not STANDARD",
            name="class",
            value=policy.storage_class,
        )
    if bool(policy.k) != bool(policy.m) or policy.k < 0 or policy.m < 0 or policy.k + policy.m > CODES_MAX:
        raise BadArgument(f"a code is k+m, at most {CODES_MAX} together", name="codec")


def _check_place(field: str, text: str) -> None:
    if text and not _PLACE.fullmatch(text):
        raise BadArgument(
            f"{text!r} is no name of a {field}: letters, digits, -, _ and ., at most 63",
            name=field,
            value=text,
        )
