"""Who belongs to the cluster, as metadata has it: joining, registering, renewing, leaving; and its roots.

Every change is one conditional commit that also adds one to the counter `N trust`: its value is the number of
the trust that all members follow (node/tls.py), so that whoever has an older one is told.

    join        a token of this cluster, unused: a member, its id and its certificate
    register    a node's disks get numbers, then become healthy
    renew       another certificate for a member that has one
    remove      its id is denied for ever; its disks must have left, or are given up
    roots       another root is trusted by all, then signs, then is alone: each step once all are ready for it

The authority's bundle lies in metadata, encrypted under the master key, so that any gateway that has the key
can sign. A gateway's file holds a copy for the time before there is metadata.

Concurrency: one event loop. Nothing is kept between calls but the authority, which `authority` looks up anew
each time; commits are conditional, and tried again when another gateway was quicker.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from objstore.clock import Clock
from objstore.errors import BadArgument, Conflict, Denied, MetaUnavailable
from objstore.ids import Randomness, random_id
from objstore.meta.kv import Add, Kv, Transaction, counter, prefix_end
from objstore.meta.schema import (
    AuthorityRecord,
    DiskRecord,
    JoinRecord,
    MemberRecord,
    decode,
    disk_key,
    encode,
    join_key,
    member_key,
    serial_key,
    setting_key,
)
from objstore.node.authority import (
    GATEWAY,
    NODE,
    Authority,
    Name,
    check_request,
    common_name,
    decode_authority,
    encode_authority,
    key_digest,
    make_root,
    to_pem,
)
from objstore.node.membership import (
    DISKS_MAX,
    DiskFacts,
    JoinRequest,
    Machine,
    Registered,
    Registration,
    Renewed,
    RenewRequest,
    Standing,
    Welcome,
)
from objstore.node.tls import Member, Peer, Trust
from objstore.objects.layout import NO_PLACE, Plan, read_layout
from objstore.objects.ledger import GIVEN_UP, MetaLedger
from objstore.processes.founding import save_authority

log = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 64  # Of a conditional commit; each lost round means that another one won.
JOINED: Final = "joined"
REMOVED: Final = "removed"
WAITING: Final = "its node has not formatted it yet"
POSTGRESQL: Final = "postgresql"  # As a trust says it: where metadata is, unless in a journal.
AHEAD_MAX: Final = 1_000_000  # Changes of the trust that metadata can have forgotten; more is no truth.
SKEW_S: Final = 7 * 86_400  # Machines' clocks may differ so much, for what was denied to stay denied.
TOKENS_KEPT_S: Final = 86_400  # A used token's record stays so long after it expired.
TOKENS_SWEPT_MAX: Final = 1_000

_AUTHORITY: Final = setting_key("authority")
_NUMBER: Final = serial_key("trust")


class Removed(Denied):
    """The machine is no member any more."""


@dataclass(slots=True, kw_only=True)
class Members:
    """The members of one cluster.

    Args:
        data: this gateway's data directory; its authority.json is kept up to date. None: there is none.
        authority: the one from that file, if there is one; metadata without any gets it.
        addresses: under which machines that join reach this gateway.
        epoch: the newest epoch that is in force.
        remember: lets this machine know of a node's disk for good. Before anything is written to it: a start
            without metadata must find it.
    """

    kv: Kv
    ledger: MetaLedger
    clock: Clock
    master_key: bytes
    cluster: bytes
    checksum_secret: int
    addresses: list[str]
    epoch: Callable[[], Awaitable[int]]
    data: Path | None = None
    known: Authority | None = None  # The newest authority seen.
    other_master_keys: tuple[bytes, ...] = ()  # That may have sealed the authority instead.
    # With a journal there is one gateway: who runs is it, and it may be called as the last.
    sole: bool = False
    randomness: Randomness = os.urandom
    remember: Callable[[int, DiskRecord], Awaitable[None]] | None = None
    _bundle: bytes = b""  # The record that `known` was read from.

    # The authority.

    async def authority(self) -> tuple[Authority, bytes]:
        """The authority in force and its record's bytes, for a commit to expect.

        Raises: Denied if this cluster has none; Corrupt if it does not open under this master key.
        """
        for _ in range(ATTEMPTS_MAX):
            value = await self.kv.get(_AUTHORITY)
            if value is None:
                if self.known is None:
                    raise Denied("this store is no cluster: objstore cluster init makes it one")
                record = AuthorityRecord(bundle=encode_authority(self.known, self.master_key))
                try:
                    await self._commit({_AUTHORITY: None}, {_AUTHORITY: encode(record)})
                except Conflict:
                    pass
                continue
            record = decode(value, AuthorityRecord)
            if self.known is None or self._bundle != value:
                self.known = decode_authority(record.bundle, self.master_key, self.other_master_keys)
                self._bundle = value
                await self._keep(record.bundle)
            return self.known, value
        raise MetaUnavailable(f"no authority agreed on in {ATTEMPTS_MAX} attempts")

    async def _keep(self, bundle: bytes) -> None:
        """The copy in the data directory: a hint for the next start, never the truth."""
        if self.data is None:
            return
        try:
            await asyncio.to_thread(save_authority, self.data, bundle)
        except OSError as failure:
            log.error("authority.json was not written", extra={"failure": str(failure)})

    async def trust_number(self) -> int:
        """The number of `trust`, which grows with every change."""
        return counter(await self.kv.get(_NUMBER))

    async def catch_up(self, followed: int) -> None:
        """Members follow trust `followed`, and metadata may know an older one: it was restored from before.

        What changes from here on must be newer to them, the denial of a removed member above all.
        """
        value = await self.kv.get(_NUMBER)
        number = counter(value)
        if not number < followed <= number + AHEAD_MAX:
            return
        log.warning("metadata is older than what members trust", extra={"number": number, "theirs": followed})
        with contextlib.suppress(Conflict):  # Another gateway was quicker, or it has just changed.
            await self.kv.commit(
                Transaction(expect={_NUMBER: value}, add={_NUMBER: Add(followed + 1 - number)})
            )

    async def trust(self) -> Trust:
        """What every member is to follow."""
        # The number first: what changes while we read makes the content newer than its number, never older.
        number = await self.trust_number()
        authority, _ = await self.authority()
        members = await self.ledger.members()
        _, layout = await read_layout(self.kv)
        now_s = self.clock.now_us() // 1_000_000
        disks: dict[bytes, dict[str, str]] = {}
        for disk_number, disk in (await self.ledger.disks()).items():
            if disk.node and disk.state != "retired":
                disks.setdefault(disk.node, {})[str(disk_number)] = disk.uuid.hex()
        return Trust(
            cluster=self.cluster.hex(),
            number=number,
            roots=[root.pem for root in authority.roots],
            signer=authority.signing.name,
            metadata="" if self.sole else POSTGRESQL,
            # Once its last certificate has ended nobody takes it anyway: the list does not grow for ever.
            denied=[
                id_.hex()
                for id_, record in members.items()
                if record.state == REMOVED and record.ends_s > now_s - SKEW_S
            ],
            members=[
                Member(
                    id=id_.hex(),
                    role=record.role,
                    name=record.name,
                    addresses=record.addresses,
                    disks=disks.get(id_, {}),
                    site=_site(id_, record, layout.current),
                )
                for id_, record in members.items()
                if record.state == JOINED
            ],
        )

    # Joining.

    async def token(self, role: str, member: str = "") -> str:
        """A join token.

        Args:
            member: name or id of a member that has lost its credentials, and is to be who it was.

        Raises: Denied, BadArgument.
        """
        if role not in (NODE, GATEWAY):
            raise BadArgument("a machine joins as node or as gateway", name="role")
        authority, _ = await self.authority()
        await self._sweep_tokens()
        again = b""
        if member:
            again, record = await self.find(member)
            role = record.role
            if record.state != JOINED:
                raise BadArgument(f"{member} was removed: it joins as a new {role}", name="member")
        if self.sole and role == GATEWAY:
            raise BadArgument(
                "metadata is embedded in this gateway, so that there is no other: several need PostgreSQL"
                " (docs/postgresql.md)",
                name="role",
            )
        return authority.token(
            role, self.addresses, self.clock.now_us(), id_=random_id(self.randomness), member=again
        )

    async def join(self, request: JoinRequest) -> Welcome:
        """Take a machine in. Asked again with the same token and key, it gives the same id.

        Raises: Denied, BadArgument.
        """
        request.check()
        authority, bundle = await self.authority()
        now_us = self.clock.now_us()
        token = authority.check_token(request.token, now_us)
        key = check_request(request.csr)
        digest = key_digest(key)
        for _ in range(ATTEMPTS_MAX):
            used = await self.kv.get(join_key(token.id))
            if used is not None:
                join = decode(used, JoinRecord)
                value = await self.kv.get(member_key(join.member))
                if join.key != digest or value is None or decode(value, MemberRecord).state != JOINED:
                    log.warning("a join token came again", extra={"member": join.member.hex()})
                    raise Denied("the join token was used already: make another one (objstore cluster token)")
                id_ = join.member
            else:
                id_ = token.member or random_id(self.randomness)
                await self._check_name(request.machine.name, id_, token.role)
                before = await self.kv.get(member_key(id_))
                if token.member and (before is None or decode(before, MemberRecord).state != JOINED):
                    raise Denied("the join token is for a member that was removed meanwhile")
            certificate = authority.issue(key, Name(self.cluster, token.role, id_), now_us)
            if used is None:
                member = MemberRecord(
                    role=token.role,
                    name=request.machine.name,
                    state=JOINED,
                    addresses=request.machine.addresses,
                    site=request.machine.site,
                    rack=request.machine.rack,
                    joined_us=now_us,
                    issuer=common_name(certificate.issuer),
                    ends_s=int(certificate.not_valid_after_utc.timestamp()),
                )
                join = JoinRecord(member=id_, key=digest, expires_s=token.expires_s)
                try:
                    await self._commit(
                        {join_key(token.id): None, member_key(id_): before, _AUTHORITY: bundle},
                        {join_key(token.id): encode(join), member_key(id_): encode(member)},
                    )
                except Conflict as conflict:
                    if conflict.key == _AUTHORITY:
                        authority, bundle = await self.authority()
                        token = authority.check_token(request.token, now_us)
                    continue
                log.info("a machine joined", extra={"member": id_.hex(), "machine": member.name})
            return Welcome(id=id_.hex(), certificate=to_pem(certificate), trust=await self.trust())
        raise MetaUnavailable(f"no join committed in {ATTEMPTS_MAX} attempts")

    async def _check_name(self, name: str, id_: bytes, role: str) -> None:
        """Names are for people: two that join in the same moment may share one, and are told apart by id."""
        if self.sole and role == GATEWAY:
            return
        for other, record in (await self.ledger.members()).items():
            if (record.state, record.name, record.role) == (JOINED, name, role) and other != id_:
                raise BadArgument(
                    f"there is a {role} {name} already: give another --name, remove that one first (objstore"
                    f" cluster remove {name}), or make a token for it (objstore cluster token --for {name})",
                    name="name",
                )

    async def _sweep_tokens(self) -> None:
        pairs = await self.kv.scan(b"j", prefix_end(b"j"), TOKENS_SWEPT_MAX)
        limit_s = self.clock.now_us() // 1_000_000 - TOKENS_KEPT_S
        old = [key for key, value in pairs if decode(value, JoinRecord).expires_s < limit_s]
        if old:
            await self.kv.commit(Transaction(delete=old))

    # Members.

    async def introduce(self, id_: bytes, role: str, machine: Machine, issuer: str, ends_s: int) -> None:
        """Make sure of a member's record as it is now: of a gateway when it starts.

        A gateway whose name another one has (it takes that one's place, say) adds the beginning of its id.

        Raises: Removed; BadArgument if another node has the name.
        """
        for _ in range(ATTEMPTS_MAX):
            old = await self.kv.get(member_key(id_))
            record = (
                MemberRecord(role=role, name="", state=JOINED, addresses=[], joined_us=self.clock.now_us())
                if old is None
                else decode(old, MemberRecord)
            )
            if record.state != JOINED:
                raise Removed(f"this {role} was removed from the cluster")
            new = _described(record, machine, issuer, ends_s)
            if new.name != record.name:
                try:
                    await self._check_name(new.name, id_, role)
                except BadArgument:
                    if role != GATEWAY:
                        raise
                    new = msgspec.structs.replace(new, name=f"{machine.name[:58]}-{id_.hex()[:4]}")
            if old is not None and new == record:
                return
            try:
                await self._commit({member_key(id_): old}, {member_key(id_): encode(new)})
            except Conflict:
                continue
            return
        raise MetaUnavailable(f"no record of a member committed in {ATTEMPTS_MAX} attempts")

    async def register(self, peer: Peer, request: Registration) -> Registered:
        """A node says what it is and what disks it has. Asking again changes nothing.

        Raises: Denied, BadArgument.
        """
        request.check()
        if peer.name.role != NODE:
            raise Denied("only a storage node registers disks")
        id_ = peer.name.id
        if await self.kv.get(member_key(id_)) is None:
            raise Denied("this node is not known to the cluster's metadata")
        await self.introduce(id_, NODE, request.machine, peer.issuer, int(peer.ends))
        if self.remember is not None:
            formatted = {bytes.fromhex(disk.uuid) for disk in request.disks if disk.formatted}
            for number, record in (await self.ledger.disks()).items():
                if record.uuid in formatted and record.node == id_ and _waits(record):
                    await self.remember(number, record)
        numbers = {disk.uuid: await self._register_disk(id_, disk) for disk in request.disks}
        return Registered(
            numbers=numbers, checksum_secret=f"{self.checksum_secret:016x}", epoch=await self.epoch()
        )

    async def _register_disk(self, node: bytes, facts: DiskFacts) -> int:
        uuid = bytes.fromhex(facts.uuid)
        for _ in range(ATTEMPTS_MAX):
            records = await self.ledger.disks()
            number = next((number for number, record in records.items() if record.uuid == uuid), 0)
            if not number:
                own = [record for record in records.values() if record.node == node]
                if sum(record.state != "retired" for record in own) >= DISKS_MAX:
                    raise Denied(f"this node has {DISKS_MAX} disks already")
                if facts.formatted:
                    raise Denied(f"the cluster's metadata knows no disk {facts.uuid} ({facts.path})")
                return await self.ledger.reserve_disk(
                    uuid=uuid, path=facts.path, reason=WAITING, node=node, size=facts.size
                )
            key = disk_key(number)
            value = await self.kv.get(key)
            if value is None:
                continue
            record = decode(value, DiskRecord)
            await self._check_owner(number, record, node)
            new = msgspec.structs.replace(record, node=node, path=facts.path, size=facts.size or record.size)
            if facts.formatted and _waits(record):
                new = msgspec.structs.replace(new, state="healthy", reason="", since_us=self.clock.now_us())
            if new == record:
                return number
            try:
                await self._commit({key: value}, {key: encode(new)})
            except Conflict:
                continue
            return number
        raise MetaUnavailable(f"disk {facts.uuid} not registered in {ATTEMPTS_MAX} attempts")

    async def _check_owner(self, number: int, record: DiskRecord, node: bytes) -> None:
        """A disk may be carried to another node once the one that had it was removed. Raises: Denied."""
        if record.node == node:
            return
        value = await self.kv.get(member_key(record.node)) if record.node else None
        if value is not None and decode(value, MemberRecord).state == REMOVED:
            return
        whose = decode(value, MemberRecord).name if value is not None else "a gateway's machine"
        raise Denied(f"disk {number} belongs to {whose}: remove that node first (objstore cluster remove)")

    async def renew(self, peer: Peer, request: RenewRequest) -> Renewed:
        """Another certificate for a member. Raises: Denied, BadArgument."""
        request.check()
        return await self.issue(peer.name, request)

    async def issue(self, name: Name, request: RenewRequest) -> Renewed:
        """A certificate for one that is joined: `name`. Raises: Denied, BadArgument."""
        key = check_request(request.csr)
        for _ in range(ATTEMPTS_MAX):
            value = await self.kv.get(member_key(name.id))
            if value is None or (record := decode(value, MemberRecord)).state != JOINED:
                raise Denied(f"{name} is no member of this cluster")
            if record.role != name.role:
                raise Denied(f"{name} is a {record.role}")
            authority, bundle = await self.authority()
            certificate = authority.issue(key, name, self.clock.now_us())
            new = msgspec.structs.replace(
                record,
                issuer=common_name(certificate.issuer),
                ends_s=int(certificate.not_valid_after_utc.timestamp()),
            )
            try:
                # Not a change of trust: nobody else follows from it.
                await self.kv.commit(
                    Transaction(
                        expect={member_key(name.id): value, _AUTHORITY: bundle},
                        put={member_key(name.id): encode(new)},
                    )
                )
            except Conflict:
                continue
            return Renewed(certificate=to_pem(certificate), trust=await self.trust())
        raise MetaUnavailable(f"no renewal committed in {ATTEMPTS_MAX} attempts")

    async def find(self, text: str) -> tuple[bytes, MemberRecord]:
        """A member by its name, or the beginning of its id. Raises: BadArgument."""
        members = (await self.ledger.members()).items()
        found = [pair for pair in members if pair[1].name == text and pair[1].state == JOINED]
        if not found and len(text) >= 4:
            found = [pair for pair in members if pair[0].hex().startswith(text.lower())]
        if len(found) != 1:
            words = "there is no member" if not found else f"{len(found)} members are called"
            raise BadArgument(f"{words} {text}", name="member")
        return found[0]

    async def remove(self, id_: bytes, *, lost: bool) -> list[int]:
        """Deny a member for ever. Returns: the disks that were given up with it.

        Args:
            lost: its disks are given up for good too; otherwise they must have left the store.

        Raises: Denied, naming the disks that stand in the way.
        """
        for _ in range(ATTEMPTS_MAX):
            value = await self.kv.get(member_key(id_))
            if value is None:
                raise Denied("there is no such member")
            record = decode(value, MemberRecord)
            left = [
                number
                for number, disk in (await self.ledger.disks()).items()
                if disk.node == id_ and disk.state not in GIVEN_UP
            ]
            if record.state == REMOVED and not left:
                return []
            if left and not lost:
                raise Denied(
                    f"{record.name} has disks {', '.join(map(str, left))}: drain and remove them first"
                    " (objstore disk drain), or give them up with the node (--lost)"
                )
            if record.state != REMOVED:
                new = msgspec.structs.replace(record, state=REMOVED, removed_us=self.clock.now_us())
                try:
                    await self._commit({member_key(id_): value}, {member_key(id_): encode(new)})
                except Conflict:
                    continue
            # The node first: from here on it can write nothing. Cut short here, it goes on when done again.
            for number in left:
                await self.ledger.change_disk(
                    number,
                    before=["healthy", "suspect", "read-only", "draining"],
                    state="failed",
                    reason=f"given up with its node {record.name}",
                )
            log.warning("a machine was removed", extra={"member": id_.hex(), "machine": record.name})
            return left
        raise MetaUnavailable(f"no removal committed in {ATTEMPTS_MAX} attempts")

    async def set_away(self, id_: bytes, away: bool) -> None:
        """Note that a member does not answer, or does again."""
        for _ in range(ATTEMPTS_MAX):
            value = await self.kv.get(member_key(id_))
            if value is None:
                return
            record = decode(value, MemberRecord)
            if bool(record.away_us) == away:
                return
            new = msgspec.structs.replace(record, away_us=self.clock.now_us() if away else 0)
            try:
                await self.kv.commit(
                    Transaction(expect={member_key(id_): value}, put={member_key(id_): encode(new)})
                )
            except Conflict:
                continue
            return

    # Roots.

    async def begin_root(self) -> str:
        """Trust another root beside the one that signs. Returns: its name. Raises: Denied."""
        authority, value = await self.authority()
        if authority.changing:
            raise Denied("another root is taking over already: see objstore cluster status")
        root = make_root(self.cluster, self.clock.now_us())
        await self._change_authority(authority.with_root(root), value)
        log.info("another root is trusted", extra={"root": root.name})
        return root.name

    async def advance_root(self, standings: Mapping[bytes, Standing]) -> str:
        """Go on with a change of the root if every joined member is ready. Returns: what it waits for, or "".

        Args:
            standings: by member id, as each last said; without those that do not answer now.
        """
        authority, value = await self.authority()
        if not authority.changing:
            return ""
        newest = authority.roots[-1].name
        number = await self.trust_number()
        waiting = []
        for id_, record in (await self.ledger.members()).items():
            if record.state != JOINED:
                continue
            standing = standings.get(id_)
            if standing is None:
                waiting.append(f"{record.name} does not answer")
            elif authority.signing.name != newest and standing.number < number:
                waiting.append(f"{record.name} has not heard of it")
            elif authority.signing.name == newest and standing.issuer != newest:
                waiting.append(f"{record.name} has not renewed its certificate")
        if waiting:
            return "; ".join(sorted(waiting)[:10])
        step = authority.signing_newest if authority.signing.name != newest else authority.without_oldest
        await self._change_authority(step(), value)
        log.info("the root's change went on", extra={"signs": step().signing.name})
        return ""

    async def _change_authority(self, new: Authority, expected: bytes) -> None:
        bundle = encode_authority(new, self.master_key)
        record = encode(AuthorityRecord(bundle=bundle))
        try:
            await self._commit({_AUTHORITY: expected}, {_AUTHORITY: record})
        except Conflict:
            raise Denied("another gateway changed the roots just now: look again") from None
        self.known, self._bundle = new, record
        await self._keep(bundle)

    # For people.

    async def listed(self) -> list[dict[str, Any]]:
        """Every member, and its disks."""
        disks = await self.ledger.disks()
        rows = []
        for id_, record in (await self.ledger.members()).items():
            own = sorted(
                number for number, disk in disks.items() if disk.node == id_ and disk.state != "retired"
            )
            rows.append(
                {
                    "id": id_.hex(),
                    "role": record.role,
                    "name": record.name,
                    "state": "away" if record.state == JOINED and record.away_us else record.state,
                    "site": record.site,
                    "rack": record.rack,
                    "addresses": record.addresses,
                    "disks": own,
                    "size": sum(disks[number].size for number in own),
                    "joined_us": record.joined_us,
                    "away_us": record.away_us,
                    "certificate_ends_s": record.ends_s,
                    "root": record.issuer,
                }
            )
        return sorted(rows, key=lambda row: (str(row["role"]), str(row["name"])))

    async def _commit(self, expect: dict[bytes, bytes | None], put: dict[bytes, bytes]) -> None:
        """A change that every member is to hear of. Raises: Conflict."""
        await self.kv.commit(Transaction(expect=expect, put=put, add={_NUMBER: Add(1)}))


def _waits(record: DiskRecord) -> bool:
    """Whether its node is yet to say that it has formatted it."""
    return record.state == "suspect" and record.reason == WAITING


def _described(record: MemberRecord, machine: Machine, issuer: str, ends_s: int) -> MemberRecord:
    return msgspec.structs.replace(
        record,
        name=machine.name,
        addresses=machine.addresses,
        site=machine.site,
        rack=machine.rack,
        issuer=issuer,
        # Who was given a newer certificate may show the older one still: denied until the last has ended.
        ends_s=max(record.ends_s, ends_s),
    )


def _site(id_: bytes, record: MemberRecord, plan: Plan) -> str:
    """Where a machine stands: the layout's word goes before its own."""
    place = plan.machines.get(id_.hex(), NO_PLACE)
    return record.site if place.site is None else place.site
