"""Who belongs to a cluster, over the reference engine: names first."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from objstore.errors import BadArgument, Conflict, Denied, MetaUnavailable, Unavailable
from objstore.meta.kv import DictKv, Transaction, counter
from objstore.meta.schema import (
    DiskRecord,
    MemberRecord,
    decode,
    disk_key,
    encode,
    member_key,
    serial_key,
    setting_key,
)
from objstore.node import authority as ca
from objstore.node.authority import GATEWAY, NODE, Name
from objstore.node.membership import (
    DiskFacts,
    JoinRequest,
    Machine,
    Registration,
    RenewRequest,
    Standing,
    Welcome,
)
from objstore.node.tls import Peer
from objstore.objects.ledger import MetaLedger
from objstore.processes.members import AHEAD_MAX, WAITING, Members

CLUSTER = bytes(range(16))
MASTER = b"m" * 32
US = 1_000_000
HOUR_US = 3_600 * US
GATEWAY_ID = b"\xaa" * 16


class Clock:
    def __init__(self) -> None:
        self.us = time.time_ns() // 1000

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


class Quicker(DictKv):
    """Before the next commit that touches `key`, another process makes the change `first`."""

    def __init__(self) -> None:
        super().__init__()
        self.key = b""
        self.first: Any = None

    async def commit(self, transaction: Transaction) -> None:
        if self.first is not None and self.key in {*transaction.expect, *transaction.put}:
            first, self.first = self.first, None
            await first()
        await super().commit(transaction)


class Cluster:
    def __init__(self, data: Path | None = None) -> None:
        self.clock = Clock()
        self.kv = Quicker()
        self.authority = ca.make_authority(CLUSTER, 7, self.clock.now_us())
        self.members = self.gateway(data)
        self.keys: dict[bytes, Any] = {}

    def gateway(self, data: Path | None = None, *, knows: bool = True) -> Members:
        async def epoch() -> int:
            return 3

        return Members(
            kv=self.kv,
            ledger=MetaLedger(self.kv, clock=self.clock),
            clock=self.clock,
            master_key=MASTER,
            cluster=CLUSTER,
            checksum_secret=7,
            addresses=["gateway:9002"],
            epoch=epoch,
            data=data,
            known=self.authority if knows else None,
        )

    async def joined(self, name: str, token: str = "", role: str = NODE) -> Peer:
        key = ca.make_key()
        welcome = await self.members.join(request(token or await self.members.token(role), name, key=key))
        return peer_of(welcome, role)

    async def number(self) -> int:
        return counter(await self.kv.get(serial_key("trust")))

    async def record(self, id_: bytes) -> MemberRecord:
        value = await self.kv.get(member_key(id_))
        assert value is not None
        return decode(value, MemberRecord)

    async def disk(self, number: int) -> DiskRecord:
        value = await self.kv.get(disk_key(number))
        assert value is not None
        return decode(value, DiskRecord)


def request(token: str, name: str = "n1", *, key: Any = None, address: str = "10.0.0.9:9003") -> JoinRequest:
    return JoinRequest(
        token=token,
        csr=ca.make_request(key or ca.make_key()),
        machine=Machine(name=name, addresses=[address], site="north", rack="r1"),
    )


def peer_of(welcome: Welcome, role: str = NODE) -> Peer:
    certificate = ca.from_pem(welcome.certificate)
    name = ca.name_of(certificate)
    assert name == Name(CLUSTER, role, bytes.fromhex(welcome.id))
    return Peer(name, "1", ca.common_name(certificate.issuer), certificate.not_valid_after_utc.timestamp())


def facts(number: int, *, formatted: bool = False, size: int = 1000) -> DiskFacts:
    return DiskFacts(uuid=(bytes([number]) * 16).hex(), path=f"/d{number}", size=size, formatted=formatted)


def registration(*disks: DiskFacts, name: str = "n1") -> Registration:
    return Registration(machine=Machine(name=name, addresses=["10.0.0.9:9003"], site="north"), disks=[*disks])


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# Joining.


async def test_a_token_lets_one_machine_in_and_the_trust_names_it(cluster: Cluster) -> None:
    before = await cluster.number()
    peer = await cluster.joined("n1")
    record = await cluster.record(peer.name.id)
    assert (record.role, record.name, record.state, record.site, record.rack) == (
        NODE, "n1", "joined", "north", "r1"
    )  # fmt: skip
    assert await cluster.number() > before
    trust = await cluster.members.trust()
    assert [(member.name, member.addresses) for member in trust.members] == [("n1", ["10.0.0.9:9003"])]
    assert trust.denied == []


async def test_a_token_that_comes_again_is_refused_whoever_brings_it(cluster: Cluster) -> None:
    token = await cluster.members.token(NODE)
    await cluster.joined("n1", token)
    with pytest.raises(Denied, match="used already"):
        await cluster.members.join(request(token, "n2"))
    assert len(await cluster.members.ledger.members()) == 1


async def test_a_machine_whose_answer_was_lost_asks_again_and_is_the_same_one(cluster: Cluster) -> None:
    token, key = await cluster.members.token(NODE), ca.make_key()
    first = await cluster.members.join(request(token, key=key))
    second = await cluster.members.join(request(token, key=key))
    assert first.id == second.id
    assert len(await cluster.members.ledger.members()) == 1
    await cluster.members.remove(bytes.fromhex(first.id), lost=False)
    with pytest.raises(Denied, match="used already"):
        await cluster.members.join(request(token, key=key))


async def test_of_two_machines_with_one_token_at_the_same_moment_one_gets_in(cluster: Cluster) -> None:
    token = await cluster.members.token(NODE)
    tries = await asyncio.gather(
        *[cluster.members.join(request(token, f"n{n}")) for n in range(5)], return_exceptions=True
    )
    assert sum(isinstance(one, Welcome) for one in tries) == 1
    assert sum(isinstance(one, Denied) for one in tries) == 4
    assert len(await cluster.members.ledger.members()) == 1

    # And if the other one commits between our look and our commit:
    token = await cluster.members.token(NODE)
    other = cluster.gateway()

    async def first() -> None:
        await other.join(request(token, "quicker"))

    cluster.kv.key, cluster.kv.first = setting_key("authority"), first
    with pytest.raises(Denied, match="used already"):
        await cluster.members.join(request(token, "slower"))


async def test_an_expired_token_or_one_of_another_cluster_lets_nobody_in(cluster: Cluster) -> None:
    token = await cluster.members.token(NODE)
    cluster.clock.us += HOUR_US
    with pytest.raises(Denied, match="expired"):
        await cluster.members.join(request(token))
    other = ca.make_authority(b"o" * 16, 7, cluster.clock.now_us())
    with pytest.raises(Denied, match="another cluster's"):
        await cluster.members.join(request(other.token(NODE, ["gateway:9002"], cluster.clock.now_us())))
    assert await cluster.members.ledger.members() == {}


@pytest.mark.parametrize(
    ("name", "address", "words"),
    [
        ("", "h:1", "a name has"),
        ("a b", "h:1", "a name has"),
        ("n\n", "h:1", "a name has"),
        ("x" * 64, "h:1", "a name has"),
        ("ok", "nowhere", "host:port"),
        ("ok", "0.0.0.0:9003", "nowhere that others can reach"),
        ("ok", "h:0", "nowhere that others can reach"),
    ],
)
async def test_what_a_machine_says_of_itself_is_checked_before_its_token_is_used(
    cluster: Cluster, name: str, address: str, words: str
) -> None:
    token = await cluster.members.token(NODE)
    with pytest.raises(BadArgument, match=words):
        await cluster.members.join(request(token, name, address=address))
    await cluster.joined("fine", token)


async def test_two_nodes_never_share_a_name_and_a_removed_ones_is_free(cluster: Cluster) -> None:
    first = await cluster.joined("n1")
    with pytest.raises(BadArgument, match="there is a node n1 already"):
        await cluster.joined("n1")
    await cluster.joined("n1", role=GATEWAY)  # Another role is another list.
    await cluster.members.remove(first.name.id, lost=False)
    await cluster.joined("n1")


async def test_a_machine_that_lost_its_credentials_comes_back_as_itself(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    await cluster.members.register(peer, registration(facts(1)))
    again = await cluster.joined("n1", await cluster.members.token(NODE, "n1"))
    assert again.name == peer.name
    answer = await cluster.members.register(again, registration(facts(1, formatted=True)))
    assert answer.numbers == {facts(1).uuid: 1}
    with pytest.raises(BadArgument, match="no member"):
        await cluster.members.token(NODE, "n7")
    token = await cluster.members.token(NODE, "n1")
    await cluster.members.remove(peer.name.id, lost=True)
    with pytest.raises(Denied, match="removed meanwhile"):
        await cluster.joined("n1", token)


async def test_records_of_used_tokens_go_a_day_after_they_expired(cluster: Cluster) -> None:
    await cluster.joined("n1")
    cluster.clock.us += 24 * HOUR_US
    await cluster.members.token(NODE)
    assert len(await cluster.kv.scan(b"j", b"k", 10)) == 1
    cluster.clock.us += 2 * HOUR_US
    await cluster.members.token(NODE)
    assert await cluster.kv.scan(b"j", b"k", 10) == []


# Disks.


async def test_a_nodes_disks_get_numbers_and_are_used_when_they_are_formatted(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    answer = await cluster.members.register(peer, registration(facts(1), facts(2)))
    assert answer.numbers == {facts(1).uuid: 1, facts(2).uuid: 2}
    assert (int(answer.checksum_secret, 16), answer.epoch) == (7, 3)
    ledger = cluster.members.ledger
    assert await ledger.usable_disks() == []
    disk = await cluster.disk(2)
    assert (disk.state, disk.reason, disk.node, disk.size) == ("suspect", WAITING, peer.name.id, 1000)
    again = await cluster.members.register(peer, registration(facts(1), facts(2, formatted=True)))
    assert again.numbers == answer.numbers, "asking again gives the same numbers"
    assert await ledger.usable_disks() == [2]
    await cluster.members.register(peer, registration(facts(1, formatted=True), facts(2, formatted=True)))
    assert await ledger.usable_disks() == [1, 2]
    # What an operator or a doubt decided stays, whatever the node says.
    await ledger.change_disk(1, before=["healthy"], state="draining")
    await ledger.suspect(2, "late")
    await cluster.members.register(peer, registration(facts(1, formatted=True), facts(2, formatted=True)))
    assert [(await cluster.disk(number)).state for number in (1, 2)] == ["draining", "suspect"]


async def test_a_nodes_disk_takes_nothing_before_this_machine_remembers_it(cluster: Cluster) -> None:
    remembered: list[tuple[int, str]] = []
    answers = True

    async def remember(number: int, record: DiskRecord) -> None:
        if not answers:
            raise Unavailable("cluster.json is not written")
        remembered.append((number, (await cluster.disk(number)).state))

    cluster.members.remember = remember
    peer = await cluster.joined("n1")
    await cluster.members.register(peer, registration(facts(1), facts(2)))
    assert remembered == []
    answers = False
    with pytest.raises(Unavailable):
        await cluster.members.register(peer, registration(facts(1, formatted=True), facts(2)))
    assert (await cluster.disk(1)).state == "suspect"
    answers = True
    await cluster.members.register(peer, registration(facts(1, formatted=True), facts(2)))
    assert remembered == [(1, "suspect")]
    assert (await cluster.disk(1)).state == "healthy"
    await cluster.members.register(peer, registration(facts(1, formatted=True), facts(2)))
    assert remembered == [(1, "suspect")], "once is enough"


async def test_registering_what_is_known_changes_nothing(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    whole = registration(facts(1))
    await cluster.members.register(peer, whole)
    number, record = await cluster.number(), await cluster.record(peer.name.id)
    await cluster.members.register(peer, whole)
    assert (await cluster.number(), await cluster.record(peer.name.id)) == (number, record)


async def test_a_disk_record_of_an_earlier_release_is_brought_up_to_date(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    await cluster.members.register(peer, registration(facts(1)))
    # Six positions, as they were before a record had a node: the bytes differ from what we would write.
    record = await cluster.disk(1)
    old = encode((1, record.uuid, record.path, record.state, record.reason, record.since_us))
    await cluster.kv.commit(Transaction(put={disk_key(1): old}))
    with pytest.raises(Denied, match="belongs to a gateway's machine"):
        await cluster.members.register(peer, registration(facts(1)))
    await cluster.kv.commit(
        Transaction(put={disk_key(1): encode((1, record.uuid, "/old", "healthy", "", 0, peer.name.id))})
    )
    await cluster.members.register(peer, registration(facts(1)))
    assert ((await cluster.disk(1)).path, (await cluster.disk(1)).size) == ("/d1", 1000)


async def test_a_disk_carried_to_another_node_is_taken_once_the_first_one_is_removed(
    cluster: Cluster,
) -> None:
    first, second = await cluster.joined("n1"), await cluster.joined("n2")
    await cluster.members.register(first, registration(facts(1, formatted=False)))
    await cluster.members.register(first, registration(facts(1, formatted=True)))
    with pytest.raises(Denied, match="disk 1 belongs to n1"):
        await cluster.members.register(second, registration(facts(1, formatted=True), name="n2"))
    assert (await cluster.disk(1)).node == first.name.id
    await cluster.members.remove(first.name.id, lost=True)
    await cluster.members.register(second, registration(facts(1, formatted=True), name="n2"))
    assert (await cluster.disk(1)).node == second.name.id
    assert (await cluster.disk(1)).state == "failed", "what an operator gave up stays given up"


async def test_a_node_numbers_no_more_disks_than_a_node_may_have(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    ids = [f"{n:032x}" for n in range(1, 258)]
    many = [DiskFacts(uuid=uuid, path="/d", size=0, formatted=False) for uuid in ids]
    with pytest.raises(BadArgument, match="at most 256"):
        await cluster.members.register(peer, registration(*many))
    await cluster.members.register(peer, registration(*many[:256]))
    with pytest.raises(Denied, match="256 disks already"):
        await cluster.members.register(peer, registration(many[256]))


async def test_a_disk_that_says_it_is_formatted_must_be_known(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    with pytest.raises(Denied, match="knows no disk"):
        await cluster.members.register(peer, registration(facts(9, formatted=True)))


async def test_only_a_node_that_is_joined_registers(cluster: Cluster) -> None:
    gateway = await cluster.joined("g1", role=GATEWAY)
    with pytest.raises(Denied, match="only a storage node"):
        await cluster.members.register(gateway, registration())
    peer = await cluster.joined("n1")
    await cluster.members.remove(peer.name.id, lost=False)
    with pytest.raises(Denied, match="was removed"):
        await cluster.members.register(peer, registration())
    unknown = peer._replace(name=Name(CLUSTER, NODE, b"\x33" * 16))
    with pytest.raises(Denied, match="not known"):
        await cluster.members.register(unknown, registration())


async def test_disks_of_a_node_that_is_away_take_no_new_volumes_until_it_is_back(cluster: Cluster) -> None:
    first, second = await cluster.joined("n1"), await cluster.joined("n2")
    for peer, number in ((first, 1), (second, 2)):
        await cluster.members.register(peer, registration(facts(number), name=f"n{number}"))
        await cluster.members.register(peer, registration(facts(number, formatted=True), name=f"n{number}"))
    ledger = cluster.members.ledger
    await ledger.register_disk(3, uuid=b"\x09" * 16, path="/here")
    assert await ledger.usable_disks() == [1, 2, 3]
    await cluster.members.set_away(first.name.id, True)
    since = (await cluster.record(first.name.id)).away_us
    cluster.clock.us += US
    await cluster.members.set_away(first.name.id, True)
    assert (await cluster.record(first.name.id)).away_us == since, "away since the first time"
    assert await ledger.usable_disks() == [2, 3]
    await cluster.members.set_away(first.name.id, False)
    assert await ledger.usable_disks() == [1, 2, 3]


# Renewing, removing.


async def test_a_member_gets_another_certificate_and_nobody_else_does(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    key = ca.make_key()
    cluster.clock.us += 60 * 24 * HOUR_US
    renewed = await cluster.members.renew(peer, RenewRequest(csr=ca.make_request(key)))
    certificate = ca.from_pem(renewed.certificate)
    assert ca.name_of(certificate) == peer.name
    assert certificate.public_key() == key.public_key()
    assert (await cluster.record(peer.name.id)).ends_s == int(certificate.not_valid_after_utc.timestamp())
    assert certificate.not_valid_after_utc.timestamp() > peer.ends
    for stranger in (
        peer._replace(name=Name(CLUSTER, NODE, b"\x33" * 16)),
        peer._replace(name=Name(CLUSTER, GATEWAY, peer.name.id)),
    ):
        with pytest.raises(Denied):
            await cluster.members.renew(stranger, RenewRequest(csr=ca.make_request(key)))
    await cluster.members.remove(peer.name.id, lost=False)
    with pytest.raises(Denied, match="no member"):
        await cluster.members.renew(peer, RenewRequest(csr=ca.make_request(key)))


async def test_a_node_with_disks_is_removed_only_if_they_left_or_are_given_up_with_it(
    cluster: Cluster,
) -> None:
    peer = await cluster.joined("n1")
    await cluster.members.register(peer, registration(facts(1), facts(2)))
    await cluster.members.register(peer, registration(facts(1, formatted=True), facts(2, formatted=True)))
    await cluster.members.ledger.change_disk(2, before=["healthy"], state="retired")
    with pytest.raises(Denied, match="n1 has disks 1:"):
        await cluster.members.remove(peer.name.id, lost=False)
    assert (await cluster.members.trust()).denied == []
    number = await cluster.number()
    assert await cluster.members.remove(peer.name.id, lost=True) == [1]
    assert await cluster.number() > number
    assert [(await cluster.disk(n)).state for n in (1, 2)] == ["failed", "retired"]
    trust = await cluster.members.trust()
    assert (trust.denied, trust.members) == ([peer.name.id.hex()], [])
    assert await cluster.members.remove(peer.name.id, lost=True) == [], "once is enough"


async def test_a_removal_that_was_cut_short_goes_on_when_it_is_asked_for_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await cluster.joined("n1")
    await cluster.members.register(peer, registration(facts(1)))
    await cluster.members.register(peer, registration(facts(1, formatted=True)))

    async def away(*arguments: object, **options: object) -> bool:
        raise MetaUnavailable("no committer")

    with monkeypatch.context() as patch:
        patch.setattr(MetaLedger, "change_disk", away)
        with pytest.raises(MetaUnavailable):
            await cluster.members.remove(peer.name.id, lost=True)
    assert (await cluster.disk(1)).state == "healthy"
    id_, _ = await cluster.members.find(peer.name.id.hex())
    assert await cluster.members.remove(id_, lost=True) == [1]
    assert (await cluster.disk(1)).state == "failed"


async def test_who_was_removed_is_denied_until_its_last_certificate_has_ended(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    cluster.clock.us += 60 * 24 * HOUR_US
    await cluster.members.renew(peer, RenewRequest(csr=ca.make_request(ca.make_key())))
    await cluster.members.register(peer, registration(name="n1"))  # With its first certificate, once more.
    await cluster.members.remove(peer.name.id, lost=False)
    for days, denied in ((0, True), (89, True), (96, True), (98, False)):
        clock = Clock()
        clock.us = cluster.clock.us + days * 24 * HOUR_US
        cluster.members.clock = clock
        assert ((await cluster.members.trust()).denied == [peer.name.id.hex()]) is denied, days


async def test_however_many_machines_joined_none_is_forgotten(cluster: Cluster) -> None:
    record = encode(MemberRecord(role=NODE, name="n", state="removed", addresses=[], ends_s=1 << 40))
    many = {member_key(number.to_bytes(16, "big")): record for number in range(2_500)}
    await cluster.kv.commit(Transaction(put=many))
    assert len(await cluster.members.ledger.members()) == 2_500
    assert len((await cluster.members.trust()).denied) == 2_500


async def test_a_gateway_that_takes_anothers_place_under_its_name_is_told_apart(cluster: Cluster) -> None:
    machine = Machine(name="gw", addresses=["gateway:9002"])
    for id_ in (GATEWAY_ID, b"\xbb" * 16):
        for _ in range(2):  # And stays so.
            await cluster.members.introduce(id_, GATEWAY, machine, "root", 1 << 40)
    names = [record.name for record in (await cluster.members.ledger.members()).values()]
    assert names == ["gw", "gw-bbbb"]


async def test_members_are_found_by_name_or_by_the_beginning_of_their_id(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    for text in ("n1", peer.name.id.hex(), peer.name.id.hex()[:6].upper()):
        assert (await cluster.members.find(text))[0] == peer.name.id
    for text in ("n2", peer.name.id.hex()[:3], ""):
        with pytest.raises(BadArgument, match="no member"):
            await cluster.members.find(text)


# The authority.


async def test_a_gateway_without_the_file_finds_the_authority_in_metadata(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.members.token(NODE)
    assert (tmp_path / "authority.json").exists()
    value = await cluster.kv.get(setting_key("authority"))
    assert value is not None
    assert MASTER not in value
    other = cluster.gateway(knows=False)
    authority, _ = await other.authority()
    assert authority.signing.fingerprint == cluster.authority.signing.fingerprint
    empty = Cluster()
    empty.members.known = None
    with pytest.raises(Denied, match="objstore cluster init"):
        await empty.members.authority()


async def test_the_root_changes_step_by_step_and_each_step_waits_for_everyone(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    members = cluster.members
    peer = await cluster.joined("n1")
    machine = Machine(name="g1", addresses=["gateway:9002"])
    await members.introduce(GATEWAY_ID, GATEWAY, machine, peer.issuer, int(peer.ends))

    def standing(number: int, issuer: str) -> Standing:
        return Standing(id="", number=number, issuer=issuer, ends_s=0, version="", started_s=0)

    assert await members.advance_root({}) == "", "nothing to do"
    old = peer.issuer
    new = await members.begin_root()
    with pytest.raises(Denied, match="already"):
        await members.begin_root()
    assert len((await members.trust()).roots) == 2
    assert (await members.trust()).signer == old

    number = await cluster.number()
    told, untold = standing(number, old), standing(number - 1, old)
    assert "n1 does not answer" in await members.advance_root({GATEWAY_ID: told})
    assert "n1 has not heard" in await members.advance_root({GATEWAY_ID: told, peer.name.id: untold})
    assert (await members.trust()).signer == old, "nothing is signed by a root that somebody does not trust"
    assert await members.advance_root({GATEWAY_ID: told, peer.name.id: told}) == ""
    assert (await members.trust()).signer == new
    assert len((await members.trust()).roots) == 2

    renewed = await members.renew(peer, RenewRequest(csr=ca.make_request(ca.make_key())))
    assert ca.common_name(ca.from_pem(renewed.certificate).issuer) == new
    number = await cluster.number()
    first, second = standing(number, old), standing(number, new)
    assert "g1 has not renewed" in await members.advance_root({GATEWAY_ID: first, peer.name.id: second})
    assert len((await members.trust()).roots) == 2, "the old root is trusted as long as anybody shows it"
    assert await members.advance_root({GATEWAY_ID: second, peer.name.id: second}) == ""
    trust = await members.trust()
    assert len(trust.roots) == 1
    assert trust.signer == new
    # Another gateway, and this one after a start, know of it.
    for other in (cluster.gateway(), cluster.gateway(knows=False)):
        authority, _ = await other.authority()
        assert authority.signing.name == new
    kept = ca.decode_authority((tmp_path / "authority.json").read_bytes(), MASTER)
    assert kept.signing.name == new


async def test_two_gateways_do_not_change_the_root_past_each_other(cluster: Cluster) -> None:
    await cluster.members.authority()
    other = cluster.gateway()

    async def first() -> None:
        await other.begin_root()

    cluster.kv.key, cluster.kv.first = setting_key("authority"), first
    with pytest.raises(Denied, match="another gateway"):
        await cluster.members.begin_root()
    assert len((await cluster.members.trust()).roots) == 2


async def test_a_certificate_is_never_of_a_root_that_was_replaced_in_the_meantime(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    new = await cluster.members.begin_root()
    other = cluster.gateway()
    number = await cluster.number()
    standing = Standing(id="", number=number, issuer="", ends_s=0, version="", started_s=0)

    async def first() -> None:
        assert await other.advance_root({peer.name.id: standing}) == ""

    cluster.kv.key, cluster.kv.first = setting_key("authority"), first
    renewed = await cluster.members.renew(peer, RenewRequest(csr=ca.make_request(ca.make_key())))
    assert ca.common_name(ca.from_pem(renewed.certificate).issuer) == new


async def test_a_commit_that_another_one_overtook_is_made_again(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")

    async def first() -> None:
        await cluster.gateway().set_away(peer.name.id, True)

    cluster.kv.key, cluster.kv.first = member_key(peer.name.id), first
    await cluster.members.remove(peer.name.id, lost=False)
    record = await cluster.record(peer.name.id)
    assert record.state == "removed"
    assert record.away_us, "the other's change is kept"


async def test_the_trust_has_the_counters_number_and_names_the_disks_of_nodes(cluster: Cluster) -> None:
    peer = await cluster.joined("n1")
    await cluster.members.register(peer, registration(*map(facts, range(1, 8))))
    await cluster.members.register(peer, registration(facts(7, formatted=True)))
    trust = await cluster.members.trust()
    assert trust.number == await cluster.number() != 7
    [member] = trust.members
    assert member.disks == {str(number): (bytes([number]) * 16).hex() for number in range(1, 8)}


async def test_metadata_that_was_restored_catches_up_with_what_its_members_follow(cluster: Cluster) -> None:
    await cluster.joined("n1")
    before = await cluster.number()
    for followed in (before - 1, before, before + AHEAD_MAX + 1):
        await cluster.members.catch_up(followed)
        assert await cluster.number() == before, followed
    await cluster.members.catch_up(before + 7)
    assert await cluster.number() == before + 8
    assert (await cluster.members.trust()).number == before + 8


async def test_the_trust_says_where_metadata_is(cluster: Cluster) -> None:
    assert (await cluster.members.trust()).metadata == "postgresql"
    cluster.members.sole = True
    assert (await cluster.members.trust()).metadata == ""
    with pytest.raises(BadArgument, match="several need PostgreSQL"):
        await cluster.members.token(GATEWAY)


async def test_the_number_of_the_trust_grows_with_every_change_and_with_nothing_else(
    cluster: Cluster,
) -> None:
    peer = await cluster.joined("n1")
    number = await cluster.number()
    await cluster.members.set_away(peer.name.id, True)
    await cluster.members.renew(peer, RenewRequest(csr=ca.make_request(ca.make_key())))
    await cluster.members.token(NODE)
    await cluster.members.listed()
    assert await cluster.number() == number
    await cluster.members.begin_root()
    assert await cluster.number() == number + 1
    with pytest.raises(Conflict):
        await cluster.kv.commit(Transaction(expect={serial_key("trust"): None}))
