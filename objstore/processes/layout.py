"""The layout as operators see and change it: show, stage, plan, apply, revert; and a bucket's policy.

A plan is worked out from every volume's record: what of it lies where it should, now and then. It reads
metadata only, a page at a time, and may take minutes on a store with millions of volumes.

An apply is one commit. It refuses what would leave a policy that somebody uses without disks, or with a
weaker promise than it requires; and to drop a policy that a bucket or a volume names.

Concurrency: the upkeep process's event loop. Everything lies in metadata: any gateway may be asked.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from objstore.admin.app import LayoutAdmin, Problem
from objstore.blobs.placement import Promise, judge, narrowed, promised
from objstore.blobs.topology import Layout, Level, Policy, Topology
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.config import ConfigError, parse_codec
from objstore.errors import BadArgument, BucketNotEmpty, Conflict
from objstore.meta.kv import Add, Transaction, pages, prefix_end
from objstore.meta.schema import BucketRecord, MemberRecord, decode, disk_key, encode, serial_key
from objstore.objects.buckets import place_bucket
from objstore.objects.dedication import is_prepared
from objstore.objects.layout import (
    LAYOUT_KEY,
    NO_PLACE,
    OWN,
    PLACED_KEY,
    LayoutRecord,
    MachinePlace,
    Plan,
    applied,
    read_layout,
    revert,
    stage,
)
from objstore.objects.ledger import DRAINING, GIVEN_UP
from objstore.objects.placing import is_admitted, policy_of_bucket
from objstore.objects.residence import bound_accounts, buckets_of
from objstore.processes.parts import Parts, survey_of
from objstore.rental.records import pool_of_lease
from objstore.rental.sales import SOLD, all_leases

Json = dict[str, Any]

ATTEMPTS_MAX: Final = 16
PAGE: Final = 1_000
WORDS_MAX: Final = 20  # Of what an apply would break.
SELF: Final = "self"  # How operators name the machine of a store of one machine.
_WEIGHT: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,6})?", re.ASCII)
_WEAKER: Final = list(Promise)  # Best first.


class LayoutSet:
    """What the admin port does with the layout."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._kv = parts.store.kv
        self._ledger = parts.store.ledger

    def admin(self) -> LayoutAdmin:
        return LayoutAdmin(
            show=self.show,
            machine=self.machine,
            policy=self.policy,
            plan=self.plan,
            apply=self.apply,
            revert=self.revert,
            place=self.place,
        )

    # Seeing it.

    async def show(self) -> Json:
        """The layout in force, and what is staged."""
        _, record = await read_layout(self._kv)
        after = record.staged or record.current
        members = await self._ledger.members()
        now, then = await self._topology(record.current), await self._topology(after)
        machines = [
            _machine_row(name, key, now[0], record.current, then[0], after)
            for name, key in sorted(_machines(members, now[0]).items())
        ]
        buckets = await self._buckets()
        names = sorted({"", *record.current.policies, *after.policies, *buckets})
        return {
            "version": record.version,
            "staged": record.serial if record.staged is not None else None,
            "machines": machines,
            "policies": [
                self._policy_row(name, *then, record) | {"buckets": buckets[name]} for name in names
            ],
        }

    def _policy_row(self, name: str, layout: Layout, topology: Topology, record: LayoutRecord) -> Json:
        before, after = record.current.policies, (record.staged or record.current).policies
        policy = layout.policy(name) if name in after or name not in before else before[name]
        k, m = self._code(policy)
        change = "" if before.get(name) == after.get(name) else "changed"
        if change and name not in before:
            change = "added"
        elif change and name not in after:
            change = "dropped"
        view = topology.view(policy, takes=False)
        return {
            "policy": name or "(default)",
            "sites": ",".join(policy.sites) or "all",
            "pool": policy.pool,
            "spread": policy.spread or "highest",
            "require": policy.require,
            "codec": f"{k}+{m}",
            "in_effect": _code_in_effect(k, m, len(view.numbers)),
            "class": policy.storage_class or ("STANDARD" if not name else ""),
            "disks": len(view.numbers),
            "promise": promise_words(promised(topology, policy, k, m)),
            "staged": change,
        }

    async def _topology(self, plan: Plan) -> tuple[Layout, Topology]:
        layout = await self._ledger.layout_under(plan)
        return layout, await survey_of(self._parts, layout)

    def _code(self, policy: Policy) -> tuple[int, int]:
        return policy.code(*self._parts.spec.cluster.codec)

    # Staging.

    async def machine(self, text: str, given: Mapping[str, str]) -> Json:
        """Stage what the layout says of a machine: site, rack, pool, weight, drain. Raises: Problem."""
        key = await self._find(text)

        def edited(plan: Plan) -> Plan:
            place = _edited_place(plan.machines.get(key, NO_PLACE), given)
            machines = {one: each for one, each in plan.machines.items() if one != key}
            if place != NO_PLACE:
                machines[key] = place
            drains = [one for one in plan.drains if one != key]
            if given.get("drain", "") == "true" or ("drain" not in given and key in plan.drains):
                drains.append(key)
            return msgspec.structs.replace(plan, machines=machines, drains=drains)

        return _staged(await stage(self._kv, edited))

    async def policy(self, name: str, given: Mapping[str, str]) -> Json:
        """Stage a policy, or that it is dropped. What is not given stays as it is.

        Raises: Problem (404), BadArgument.
        """

        def edited(plan: Plan) -> Plan:
            policies = dict(plan.policies)
            if given.get("drop", "") == "true":
                if policies.pop(name, None) is None:
                    raise Problem(404, f"there is no policy {name}")
            else:
                policies[name] = _edited_policy(policies.get(name, Policy(name=name)), given)
            return msgspec.structs.replace(plan, policies=policies)

        return _staged(await stage(self._kv, edited))

    async def revert(self) -> Json:
        return _staged(await revert(self._kv))

    async def _find(self, text: str) -> str:
        members = await self._ledger.members()
        names = _machines(members, await self._ledger.layout())
        if text in names:
            return names[text]
        found = [key for key in names.values() if key and key.startswith(text)]
        if len(found) != 1:
            raise Problem(404, f"there is no machine {text}: see objstore layout show")
        return found[0]

    # What it would do.

    async def plan(self) -> Json:
        """What applying what is staged would move, and what each policy promises before and after."""
        _, record = await read_layout(self._kv)
        if record.staged is None:
            raise Problem(409, "nothing is staged: see objstore layout --help")
        now, then = await self._topology(record.current), await self._topology(record.staged)
        facts = await self._compare(now, then, record)
        rate = self._parts.spec.config.upkeep.rebalance_bytes_per_second
        # A bucket that is pinned to a site has a policy that nobody recorded.
        names = sorted(
            {"", *record.current.policies, *record.staged.policies, *facts.buckets, *facts.tallies}
        )
        rows = []
        for name in names:
            tally = facts.tallies.get(name, Tally())
            before, after = now[0].policy(name), then[0].policy(name)
            dropped = name in record.current.policies and name not in record.staged.policies
            added = name in record.staged.policies and name not in record.current.policies
            k, m = self._code(after)
            disks = len(then[1].view(after, takes=False).numbers)
            rows.append(
                {
                    "policy": name or "(default)",
                    "buckets": facts.buckets[name],
                    "volumes": tally.volumes,
                    "files_to_move": tally.files,
                    "bytes_to_move": tally.bytes,
                    "without_a_disk": tally.stuck,
                    "codec": f"{k}+{m}",
                    "in_effect": "-" if dropped else _code_in_effect(k, m, disks),
                    "before": "-" if added else promise_words(promised(now[1], before, *self._code(before))),
                    "after": "-" if dropped else promise_words(promised(then[1], after, k, m)),
                }
            )
        moved = sum(tally.bytes for tally in facts.tallies.values())
        return {
            "version": record.serial,
            "policies": rows,
            "files_to_move": sum(tally.files for tally in facts.tallies.values()),
            "bytes_to_move": moved,
            "bytes_per_second": rate,
            "seconds": round(moved / rate),
            "incoming": [
                {"site": site or "-", "bytes": count, "free": _free_at(then[1], site)}
                for site, count in sorted(facts.incoming.items())
            ],
            "refused": self._refusals(now, then, record, facts)
            + await self._promises_to_tenants(then[0], record),
        }

    async def _compare(
        self, now: tuple[Layout, Topology], then: tuple[Layout, Topology], record: LayoutRecord
    ) -> "Comparison":
        facts = Comparison(buckets=await self._buckets())
        chance = random.Random(record.serial).random  # noqa: S311  (The same plan gives the same numbers.)
        after = 0
        while records := await self._ledger.volumes(after, PAGE):
            after = records[-1].id
            for volume in records:
                if volume.state != VolumeState.RETIRED:
                    _count(facts, volume, then, chance)
            await asyncio.sleep(0)
        return facts

    async def _buckets(self) -> Counter[str]:
        found: Counter[str] = Counter()
        async for pairs in pages(self._kv, b"b", prefix_end(b"b"), PAGE):
            found.update(policy_of_bucket(decode(value, BucketRecord)) for _, value in pairs)
        return found

    def _refusals(
        self,
        now: tuple[Layout, Topology],
        then: tuple[Layout, Topology],
        record: LayoutRecord,
        facts: "Comparison",
    ) -> list[str]:
        """Why this may not be applied."""
        assert record.staged is not None
        words: list[str] = []
        if sites := self._parts.spec.config.meta.sites:
            copies = self._parts.spec.cluster.codec[1] + 1
            here = [spot for spot in then[0].spots.values() if spot.site in sites and not spot.leaving]
            if len(here) < copies:
                words.append(
                    f"metadata is kept to {', '.join(sites)} (meta.sites), where {len(here)} disks would be,"
                    f" and {copies} are needed"
                )
        dropped = record.current.policies.keys() - record.staged.policies.keys()
        for name in sorted(dropped):
            used = facts.buckets[name], facts.tallies.get(name, Tally()).volumes
            if any(used):
                words.append(f"policy {name} is dropped, and {used[0]} buckets and {used[1]} volumes name it")
        for name in sorted({"", *facts.buckets, *facts.tallies, *record.staged.policies} - dropped):
            policy = then[0].policy(name)
            k, m = self._code(policy)
            disks = then[1].view(policy, takes=False).numbers
            if policy.require and not _fulfils(promised(then[1], policy, k, m), policy):
                words.append(
                    f"policy {name} requires the promise {policy.require}, and its {len(disks)} disks cannot"
                    " give it"
                )
            used_now = not name or facts.buckets[name] or name in facts.tallies
            had = now[1].view(now[0].policy(name), takes=False).numbers
            if used_now and len(disks) < 1 + m and len(had) >= 1 + m:
                words.append(
                    f"policy {name or '(default)'} would have {len(disks)} disks, and {1 + m} are needed"
                )
        return words

    async def _promises_to_tenants(self, then: Layout, record: LayoutRecord) -> list[str]:
        """Where this would break what tenants were promised: nodes of their own, and sites."""
        assert record.staged is not None
        words: list[str] = []
        pools: dict[str, str] = {}
        for lease in await all_leases(self._kv):
            if lease.kind != "dedicated" or lease.state not in SOLD:
                continue
            pools[pool_of_lease(lease.id)] = lease.id
            if is_prepared(record.current, lease) and not is_prepared(record.staged, lease):
                words.append(f"the nodes of lease {lease.id} are {lease.tenant}'s own until it ends")
        for name, policy in record.staged.policies.items():
            if (lease_id := pools.get(policy.pool)) and name != policy.pool:
                words.append(f"policy {name} is on the nodes of lease {lease_id}")
        async for tenant, account in bound_accounts(self._kv):
            async for bucket, each in buckets_of(self._parts.store, tenant):
                if not is_admitted(account, then, policy_of_bucket(each)):
                    words.append(f"bucket {bucket} would lead out of where bytes of {tenant} may lie")
        return words[:WORDS_MAX]

    # Doing it.

    async def apply(self, version: int) -> Json:
        """Make what is staged current. Raises: Problem (409: why not), BadArgument, StoreError."""
        for _ in range(ATTEMPTS_MAX):
            value, record = await read_layout(self._kv)
            placed = await self._kv.get(PLACED_KEY)  # Before the buckets are looked at.
            after = applied(record, version, self._parts.store.clock.now_us())
            assert record.staged is not None
            now, then = await self._topology(record.current), await self._topology(record.staged)
            facts = await self._compare(now, then, record)
            promised_words = await self._promises_to_tenants(then[0], record)
            if refused := self._refusals(now, then, record, facts) + promised_words:
                raise Problem(409, "; ".join(refused))
            expect: dict[bytes, bytes | None] = {LAYOUT_KEY: value, PLACED_KEY: placed}
            put = {LAYOUT_KEY: encode(after)}
            await self._mark_drained(record.staged.drains, expect, put)
            # Where machines stand is told to all of them with whom they trust: metadata may be kept to sites.
            add = {serial_key("trust"): Add(1)}
            try:
                await self._kv.commit(Transaction(expect=expect, put=put, add=add))
            except Conflict:
                continue
            files = sum(tally.files for tally in facts.tallies.values())
            return {"version": after.version, "files_to_move": files}
        raise Problem(503, "the layout, or the disks, kept changing: try again")

    async def _mark_drained(
        self, drains: list[str], expect: dict[bytes, bytes | None], put: dict[bytes, bytes]
    ) -> None:
        for number, disk in (await self._ledger.disks()).items():
            if disk.node.hex() in drains and disk.state not in (DRAINING, *GIVEN_UP):
                key = disk_key(number)
                expect[key] = encode(disk)
                drained = msgspec.structs.replace(
                    disk,
                    state=DRAINING,
                    reason="an operator wants its machine empty",
                    since_us=self._parts.store.clock.now_us(),
                )
                put[key] = encode(drained)

    async def place(self, bucket: str, policy: str, new_only: bool) -> Json:
        """Give a bucket a policy. Raises: Problem, StoreError."""
        try:
            name = "" if policy == "-" else policy
            left = await place_bucket(self._parts.store, bucket, name, new_only=new_only)
        except BucketNotEmpty:
            raise Problem(
                409,
                f"bucket {bucket} has objects, or uploads under way, that would stay where they are: with"
                " --new-only they may, until they are written again",
            ) from None
        return {"bucket": bucket, "policy": name or "(default)", "objects_that_stay": left}


@dataclass(slots=True)
class Tally:
    """What of one policy's volumes would move."""

    volumes: int = 0
    files: int = 0
    bytes: int = 0
    stuck: int = 0  # Files that are to move, and have no disk to go to.


@dataclass(slots=True)
class Comparison:
    buckets: Counter[str]  # By policy.
    tallies: dict[str, Tally] = field(default_factory=dict)
    incoming: Counter[str] = field(default_factory=Counter)  # Bytes, by the site they would go to.


def _count(facts: Comparison, record: VolumeRecord, then: tuple[Layout, Topology], chance: Any) -> None:
    layout, topology = then
    tally = facts.tallies.setdefault(record.policy, Tally())
    tally.volumes += 1
    verdict = judge(
        topology,
        layout.policy(record.policy),
        k=record.k,
        m=record.m,
        disks=record.disks,
        chance=chance,
        size=record.length,
    )
    tally.files += len(verdict.moves)
    tally.bytes += len(verdict.moves) * record.length
    tally.stuck += len(verdict.faults) - len(verdict.moves)
    for move in verdict.moves:
        site, before = topology.spots[move.target].site, topology.spots.get(move.disk)
        if before is None or before.site != site:
            facts.incoming[site] += record.length


def _free_at(topology: Topology, site: str) -> int:
    devices = {(spot.node, spot.device): spot.free for spot in topology.spots.values() if spot.site == site}
    return sum(devices.values())


def _fulfils(promises: Mapping[Level, Promise], policy: Policy) -> bool:
    level = next((level for level in Level if level.word == policy.spread), None)
    best = [promises.get(level)] if level is not None else list(promises.values())
    wanted = _WEAKER.index(Promise(policy.require))
    return any(promise is not None and _WEAKER.index(promise) <= wanted for promise in best)


def promise_words(promises: Mapping[Level, Promise]) -> str:
    """What may be lost, level by level: "site bare, rack spare"."""
    if not promises:
        return "no volume can be made"
    return ", ".join(f"{level.word} {promise.value}" for level, promise in promises.items())


def _code_in_effect(k: int, m: int, disks: int) -> str:
    """The code of a new volume on so many disks."""
    narrow = narrowed(k, m, disks)
    return f"{narrow}+{m}" if narrow else "none"


def _machines(members: Mapping[bytes, MemberRecord], layout: Layout) -> dict[str, str]:
    """The machines with disks: names for people -> keys of the layout."""
    found = {
        record.name: member.hex()
        for member, record in members.items()
        if record.role == "node" and record.state == "joined"
    }
    if any(not spot.node for spot in layout.spots.values()):
        found[SELF] = OWN
    return found


def _machine_row(name: str, key: str, now: Layout, before: Plan, then: Layout, after: Plan) -> Json:
    spots = [spot for spot in then.spots.values() if spot.node == key]
    old = next((spot for spot in now.spots.values() if spot.node == key), None)
    new = spots[0] if spots else None
    place = after.machines.get(key, NO_PLACE)
    changes = [
        f"{what}: {getattr(old, what) or '-'} -> {getattr(new, what) or '-'}"
        for what in ("site", "rack", "pool", "weight")
        if old is not None and new is not None and getattr(old, what) != getattr(new, what)
    ]
    if not changes and before.machines.get(key, NO_PLACE) != place:
        changes.append("changed")
    if key in after.drains:
        changes.append("drained")
    return {
        "machine": name,
        "site": new.site if new else place.site or "",
        "rack": new.rack if new else place.rack or "",
        "pool": place.pool,
        "weight": place.weight,
        "disks": len(spots),
        "staged": ", ".join(changes),
    }


def _staged(record: LayoutRecord) -> Json:
    return {
        "version": record.version,
        "staged": record.serial if record.staged is not None else None,
        "changes": record.staged is not None and record.staged != record.current,
    }


def _edited_place(place: MachinePlace, given: Mapping[str, str]) -> MachinePlace:
    """`-` for a site or rack: what the machine says of itself; for a pool: none."""
    changes: dict[str, Any] = {}
    for what in ("site", "rack"):
        if what in given:
            changes[what] = None if given[what] == "-" else given[what]
    if "pool" in given:
        changes["pool"] = "" if given["pool"] == "-" else given["pool"]
    if "weight" in given:
        changes["weight"] = _number(given["weight"])
    return msgspec.structs.replace(place, **changes)


def _edited_policy(policy: Policy, given: Mapping[str, str]) -> Policy:
    """`-` for anything: as in the default policy."""
    changes: dict[str, Any] = {}
    for what in ("pool", "spread", "require"):
        if what in given:
            changes[what] = "" if given[what] == "-" else given[what]
    if "class" in given:
        changes["storage_class"] = "" if given["class"] == "-" else given["class"]
    if "sites" in given:
        text = "" if given["sites"] in ("-", "all") else given["sites"]
        changes["sites"] = tuple(sorted({site.strip() for site in text.split(",") if text}))
    if "codec" in given:
        try:
            changes["k"], changes["m"] = (0, 0) if given["codec"] == "-" else parse_codec(given["codec"])
        except (ConfigError, ValueError) as failure:
            raise BadArgument(str(failure), name="codec") from None
    return msgspec.structs.replace(policy, **changes)


def _number(text: str) -> float:
    if not _WEIGHT.fullmatch(text):
        raise BadArgument("a weight is a number from 0 to 100", name="weight", value=text)
    return float(text)
