"""The cluster port and those who come to it, over real connections in one process: names first.

The gateway's side is the port, the members over the reference engine, and the heartbeats; the machine's side
is what `objstore node` uses (processes/joining.py), in a thread.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from objstore.admin import cluster_port
from objstore.admin.cluster_port import ClusterApi, ClusterPort
from objstore.clock import SystemClock
from objstore.errors import MetaUnavailable
from objstore.meta.kv import DictKv
from objstore.meta.schema import MemberRecord, decode, member_key
from objstore.node import authority as ca
from objstore.node import handshakes, server, tls
from objstore.node.authority import GATEWAY, NODE, Name
from objstore.node.membership import JOIN_PATH, Machine, Roots, Standing
from objstore.node.peers import NoAnswer, PeerClient
from objstore.node.port import NodePort, standing_of
from objstore.node.tls import Credentials, Trust, unverified_context
from objstore.objects.ledger import MetaLedger
from objstore.processes import joining
from objstore.processes.doctor import as_heard, machines
from objstore.processes.heartbeats import Heartbeats
from objstore.processes.joining import CannotJoin
from objstore.processes.machine_families import member_families
from objstore.processes.members import Members
from tests.waiting import until

CLUSTER = bytes(range(16))
WAIT_S = 20.0  # A starved machine; milliseconds otherwise.


def listener() -> socket.socket:
    made = socket.create_server(("127.0.0.1", 0))
    made.setblocking(False)
    return made


def about(name: str, port: int = 9) -> Machine:
    return Machine(name=name, addresses=[f"127.0.0.1:{port}"])


class Gateway:
    """One gateway's upkeep process, as far as its cluster goes. Several may share a `kv`."""

    def __init__(self, directory: Path, kv: DictKv, authority: ca.Authority, name: str = "g1") -> None:
        self.socket = listener()
        self.port = self.socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.kv = kv
        clock = SystemClock()
        key = ca.make_key()
        own = Name(authority.cluster, GATEWAY, ca.random_id())
        directory.mkdir(parents=True)
        issued = authority.issue(key.public_key(), own, clock.now_us())
        tls.save_identity(directory, ca.key_to_pem(key), ca.to_pem(issued))
        tls.save_trust(
            directory,
            Trust(
                cluster=authority.cluster.hex(),
                number=0,
                roots=[root.pem for root in authority.roots],
                signer=authority.signing.name,
            ),
        )
        self.credentials = Credentials(directory)
        self.members = Members(
            kv=kv,
            ledger=MetaLedger(kv),
            clock=clock,
            master_key=b"m" * 32,
            cluster=authority.cluster,
            checksum_secret=7,
            addresses=[self.address],
            epoch=self._epoch,
            known=authority,
        )
        self.leads = True
        self.removed: list[str] = []
        self.beats = Heartbeats(
            self.members,
            self.credentials,
            about(name, self.port),
            clock,
            lambda: self.leads,
            beat_s=5.0,
            away_s=0.0,
            removed=self.removed.append,
        )
        self.cluster_port = ClusterPort(
            ClusterApi(
                roots=self._roots,
                join=self.members.join,
                register=self.members.register,
                renew=self.members.renew,
                standing=lambda: standing_of(self.credentials),
                take_trust=self._take_trust,
            ),
            self.credentials,
        )

    async def _epoch(self) -> int:
        return 3

    async def _roots(self) -> Roots:
        authority, _ = await self.members.authority()
        return Roots(roots=[root.pem for root in authority.roots])

    async def _take_trust(self, trust: Trust) -> Standing:
        await self.credentials.take_trust(trust)
        return standing_of(self.credentials)

    async def away(self, id_: bytes) -> bool:
        value = await self.kv.get(member_key(id_))
        assert value is not None
        return bool(decode(value, MemberRecord).away_us)


class Node:
    """A storage node without disks: its credentials and its port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = listener()
        self.port = self.socket.getsockname()[1]

    async def join(self, token: str, name: str, role: str = NODE) -> Name:
        joined = await asyncio.to_thread(joining.join, token, self.directory, about(name, self.port), role)
        self.credentials = Credentials(self.directory)
        return joined

    async def serve(self) -> None:
        self.served = NodePort({}, self.credentials)
        await self.served.listen([self.socket])


Made = Callable[..., Any]


@contextlib.asynccontextmanager
async def gateway_in(directory: Path, cluster: bytes = CLUSTER) -> AsyncIterator[Gateway]:
    authority = ca.make_authority(cluster, 7, time.time_ns() // 1000)
    gateway = Gateway(directory / "tls", DictKv(), authority)
    await gateway.beats.beat()
    await gateway.cluster_port.listen([gateway.socket])
    try:
        yield gateway
    finally:
        await gateway.cluster_port.close()
        await gateway.beats.close()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway_in(tmp_path / "gateway") as one:
        yield one


@pytest.fixture
async def nodes(tmp_path: Path, gateway: Gateway) -> AsyncIterator[Made]:
    made: list[Node] = []

    async def make(name: str) -> Node:
        node = Node(tmp_path / name)
        await node.join(await gateway.members.token(NODE), name)
        await node.serve()
        made.append(node)
        return node

    yield make
    for node in made:
        await node.served.close()


async def say(
    gateway: Gateway, context: ssl.SSLContext, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    """One request with the standard library's client; (status, document)."""

    def exchange() -> tuple[int, Any]:
        connection = http.client.HTTPSConnection("127.0.0.1", gateway.port, timeout=WAIT_S, context=context)
        try:
            content = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
            connection.request(method, path, content)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    return await asyncio.to_thread(exchange)


# Joining.


async def test_a_machine_joins_and_both_sides_know_each_other_from_then_on(
    gateway: Gateway, nodes: Made
) -> None:
    node = await nodes("n1")
    await gateway.beats.beat()
    name = node.credentials.name
    assert gateway.beats.standings[name.id].number == gateway.credentials.trust.number
    assert node.credentials.trust.number == gateway.credentials.trust.number
    assert {member.name for member in node.credentials.trust.members} == {"g1", "n1"}
    assert not (node.directory / "joining.key").exists()
    for path in node.directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


async def test_whom_another_gateway_let_in_is_known_here_before_the_next_beat(
    gateway: Gateway, nodes: Made
) -> None:
    node = await nodes("n1")  # This port tells nobody: as if another gateway had taken it in.
    assert node.credentials.name.id.hex() not in {one.id for one in gateway.credentials.trust.members}
    await gateway.beats.follow()
    assert node.credentials.name.id.hex() in {one.id for one in gateway.credentials.trust.members}
    assert Credentials(gateway.credentials.directory).trust == gateway.credentials.trust


async def test_the_key_of_a_machine_never_leaves_it(gateway: Gateway, tmp_path: Path) -> None:
    seen: list[bytes] = []
    real = gateway.members.join

    async def join(request: Any) -> Any:
        seen.append(repr(request.csr).encode())
        return await real(request)

    object.__setattr__(gateway.cluster_port._api, "join", join)
    node = Node(tmp_path / "n1")
    await node.join(await gateway.members.token(NODE), "n1")
    text = (node.directory / tls.IDENTITY).read_text()
    secret = text.split("-----")[2].strip().replace("\n", "")
    assert len(secret) > 100
    assert seen
    assert all(secret[40:80].encode() not in one for one in seen)
    assert b"PRIVATE" not in b"".join(seen)


async def test_a_listener_with_another_authority_learns_nothing_of_the_token(
    gateway: Gateway, tmp_path: Path
) -> None:
    # A man in the middle: his own cluster, at the address where the gateway should be.
    async with gateway_in(tmp_path / "middle") as middle:
        came: list[Any] = []

        async def join(request: Any) -> Any:
            came.append(request)
            raise AssertionError("it was sent")

        object.__setattr__(middle.cluster_port._api, "join", join)
        authority, _ = await gateway.members.authority()
        token = authority.token(NODE, [middle.address], time.time_ns() // 1000)
        with pytest.raises(CannotJoin, match="or somebody stands between"):
            await Node(tmp_path / "n1").join(token, "n1")

        # And one that shows the right root, but has no certificate of it.
        async def roots() -> Roots:
            return Roots(roots=[authority.signing.pem])

        object.__setattr__(middle.cluster_port._api, "roots", roots)
        with pytest.raises(CannotJoin, match="no gateway answers"):
            await Node(tmp_path / "n1").join(token, "n1")
        assert came == []
    assert set((tmp_path / "n1").iterdir()) == {tmp_path / "n1" / "joining.key"}


async def test_a_node_of_the_cluster_cannot_pose_as_its_gateway_to_one_who_joins(
    gateway: Gateway, nodes: Made, tmp_path: Path
) -> None:
    node = await nodes("n1")
    # Its listener shows the right root and a certificate of it; only the role is wrong.
    pose = ClusterPort(gateway.cluster_port._api, node.credentials)
    where = listener()
    await pose.listen([where])
    try:
        authority, _ = await gateway.members.authority()
        token = authority.token(NODE, [f"127.0.0.1:{where.getsockname()[1]}"], time.time_ns() // 1000)
        with pytest.raises(CannotJoin, match=r"no gateway of the cluster.*Nothing was sent"):
            await Node(tmp_path / "n2").join(token, "n2")
    finally:
        await pose.close()
    assert len(await gateway.members.ledger.members()) == 2


@pytest.mark.parametrize(("given", "role"), [(GATEWAY, NODE), (NODE, GATEWAY)])
async def test_a_token_for_another_role_is_refused_before_anything_is_sent(
    gateway: Gateway, tmp_path: Path, given: str, role: str
) -> None:
    token = await gateway.members.token(given)
    before = await gateway.members.ledger.members()
    with pytest.raises(CannotJoin, match=f"is for a {given}, and this is a {role}.*still good"):
        await Node(tmp_path / "n1").join(token, "n1", role)
    assert await gateway.members.ledger.members() == before
    assert not (tmp_path / "n1").exists()
    joined = await Node(tmp_path / "n2").join(token, "n2", given)
    assert joined.role == given


@pytest.mark.parametrize("what", ["used", "expired", "of another cluster", "damaged", "no token"])
async def test_a_token_that_is_not_good_is_refused_in_words(
    gateway: Gateway, tmp_path: Path, what: str
) -> None:
    authority, _ = await gateway.members.authority()
    now = time.time_ns() // 1000
    token = await gateway.members.token(NODE)
    if what == "used":
        await Node(tmp_path / "first").join(token, "first")
    elif what == "expired":
        token = authority.token(NODE, [gateway.address], now, seconds=-1)
    elif what == "of another cluster":
        # Of our authority's making in every respect but the cluster's id: nobody but a thief could.
        other = ca.make_authority(b"o" * 16, 7, now)
        token = ca.Authority(
            cluster=b"o" * 16, roots=(authority.signing, other.signing), checksum_secret=7
        ).token(NODE, [gateway.address], now)
    elif what == "damaged":
        token = token[:-6] + ("AAAAAA" if token[-6:] != "AAAAAA" else "BBBBBB")
    else:
        token = "secret"
    words = {
        "used": "used already",
        "expired": "has expired",
        "of another cluster": "no gateway of the cluster",
        "damaged": "was not made by this cluster's authority",
        "no token": "not a join token",
    }
    before = len(await gateway.members.ledger.members())
    with pytest.raises(CannotJoin, match=words[what]):
        await Node(tmp_path / "n1").join(token, "n1")
    assert len(await gateway.members.ledger.members()) == before


@pytest.mark.parametrize("what", ["another key", "another root", "another name", "another cluster's trust"])
async def test_a_certificate_that_was_not_asked_for_is_not_put_in_place(
    gateway: Gateway, tmp_path: Path, what: str
) -> None:
    real = gateway.members.join
    now = time.time_ns() // 1000
    other = ca.make_authority(CLUSTER, 7, now)

    async def join(request: Any) -> Any:
        welcome = await real(request)
        key = ca.check_request(request.csr)
        name = ca.name_of(ca.from_pem(welcome.certificate))
        authority, _ = await gateway.members.authority()
        if what == "another key":
            issued = authority.issue(ca.make_key().public_key(), name, now)
        elif what == "another root":
            issued = other.issue(key, name, now)
        elif what == "another name":
            issued = authority.issue(key, name._replace(id=b"\x77" * 16), now)
        else:
            trust = msgspec.structs.replace(welcome.trust, cluster="00" * 16)
            return msgspec.structs.replace(welcome, trust=trust)
        return msgspec.structs.replace(welcome, certificate=ca.to_pem(issued))

    object.__setattr__(gateway.cluster_port._api, "join", join)
    with pytest.raises(CannotJoin, match=r"for another key|of no root|not asked for|another cluster than"):
        await Node(tmp_path / "n1").join(await gateway.members.token(NODE), "n1")
    assert [path.name for path in (tmp_path / "n1").iterdir()] == ["joining.key"]


async def test_addresses_that_do_not_answer_are_passed_over_and_named(
    gateway: Gateway, tmp_path: Path
) -> None:
    authority, _ = await gateway.members.authority()
    now = time.time_ns() // 1000
    silent = listener()
    nowhere = f"127.0.0.1:{silent.getsockname()[1]}"
    silent.close()
    await Node(tmp_path / "n1").join(authority.token(NODE, [nowhere, gateway.address], now), "n1")
    with pytest.raises(CannotJoin, match=nowhere):
        await Node(tmp_path / "n2").join(authority.token(NODE, [nowhere], now), "n2")


async def test_a_machine_that_is_put_off_asks_again(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "PAUSE_S", 0.01)
    real, tries = gateway.members.join, []

    async def join(request: Any) -> Any:
        tries.append(request)
        if len(tries) < 3:
            raise MetaUnavailable("the committer is away")
        return await real(request)

    object.__setattr__(gateway.cluster_port._api, "join", join)
    await Node(tmp_path / "n1").join(await gateway.members.token(NODE), "n1")
    assert len(tries) == 3
    monkeypatch.setattr(joining, "PATIENCE_S", 0.0)
    tries.clear()
    with pytest.raises(CannotJoin, match="the committer is away"):
        await Node(tmp_path / "n2").join(await gateway.members.token(NODE), "n2")
    assert len(tries) == 1


async def test_a_listener_that_trickles_does_not_hold_a_machine_for_ever(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "WHOLE_LIMIT_S", 0.3)
    ended = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readline()
            writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not ended.is_set() and not writer.is_closing():
                writer.write(b"a")  # Each within the limit for the next piece, the whole never.
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()

    server = await asyncio.start_server(
        trickle, "127.0.0.1", 0, ssl=gateway.credentials.server_context(NODE, strangers=True)
    )
    authority, _ = await gateway.members.authority()
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    token = authority.token(NODE, [address], time.time_ns() // 1000)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(CannotJoin, match="no gateway answers"):
            await Node(tmp_path / "n1").join(token, "n1")
    ended.set()
    server.close()


# Who may what.


async def test_without_a_certificate_nothing_but_join_is_answered(gateway: Gateway) -> None:
    authority, _ = await gateway.members.authority()
    stranger = tls.joining_context(CLUSTER, authority.signing.pem)
    assert (await say(gateway, stranger, "GET", "/join"))[0] == 200
    for method, path in (
        ("POST", "/v1/register"),
        ("POST", "/v1/renew"),
        ("GET", "/v1/member"),
        ("PUT", "/v1/member"),
        ("GET", "/v1/trust"),
        ("GET", "/"),
        ("GET", "/api/v1/status"),
        ("POST", "/join/../v1/renew"),
        ("DELETE", "/join"),
    ):
        status, answer = await say(gateway, stranger, method, path, {})
        assert (status, answer["detail"]) == (401, "a certificate of the cluster is needed"), path
    assert (await say(gateway, stranger, "POST", "/join", {}))[0] == 400
    assert (await say(gateway, stranger, "POST", "/join", b"\xff{"))[0] == 400
    assert (await say(gateway, stranger, "POST", "/join", b"[" * 100_000))[0] == 400
    with contextlib.suppress(OSError, http.client.HTTPException):  # It may hang up before we have sent all.
        assert (await say(gateway, stranger, "POST", "/join", b" " * 300_000))[0] == 413


async def test_strangers_who_never_finish_a_handshake_are_few_and_keep_out_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKES_MAX", 2)
    for module in (cluster_port, server):
        monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 3600.0)
    async with gateway_in(tmp_path / "gateway") as gateway:
        node = Node(tmp_path / "node")
        await node.join(await gateway.members.token(NODE), "node")
        await node.serve()
        context = node.credentials.client_context(GATEWAY)
        to_node = gateway.credentials.client_context(NODE)
        for port, who in ((gateway.port, context), (node.port, to_node)):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            for reader, _ in silent[:3]:
                assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
            _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=who), WAIT_S)
            for _, stranger in silent:
                stranger.close()
            writer.close()
        await node.served.close()


async def test_a_stranger_who_is_slow_to_send_his_token_holds_up_nobody_who_joins(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_port, "JOINS_AT_ONCE", 1)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=unverified_context())
    writer.write(b"POST %s HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n" % JOIN_PATH.encode())
    port = gateway.cluster_port.server
    await until(lambda: any(one._current_request for one in port.connections), "its head is being served")
    request = {"token": "", "csr": "", "machine": {"name": "node", "addresses": ["127.0.0.1:1"]}}
    status, answer = await say(gateway, unverified_context(), "POST", JOIN_PATH, request)
    assert status == 403, answer
    writer.close()


async def test_a_nodes_certificate_does_not_do_what_a_gateways_does(gateway: Gateway, nodes: Made) -> None:
    node = await nodes("n1")
    context = node.credentials.client_context(GATEWAY)
    for method in ("GET", "PUT"):
        body = None if method == "GET" else json.loads(tls.encode_trust(node.credentials.trust))
        status, answer = await say(gateway, context, method, "/v1/member", body)
        assert (status, "is no gateway" in answer["detail"]) == (403, True), answer
    assert (await say(gateway, context, "GET", "/nothing"))[0] == 404
    # Nor does another node take it.
    other = await nodes("n2")
    client = PeerClient(node.credentials, NODE, other.credentials.name.id, [f"127.0.0.1:{other.port}"])
    with pytest.raises(NoAnswer):
        await client.standing()
    await client.close()


async def test_a_gateway_of_another_cluster_is_refused_by_nodes_and_gateways(
    gateway: Gateway, nodes: Made, tmp_path: Path
) -> None:
    node = await nodes("n1")
    async with gateway_in(tmp_path / "other", b"o" * 16) as other:
        # It trusts our root, so that the refusal is ours.
        trust = other.credentials.trust
        forged = Trust(
            cluster=trust.cluster,
            number=trust.number + 1,
            roots=[*trust.roots, *gateway.credentials.trust.roots],
            signer=trust.signer,
        )
        await other.credentials.take_trust(forged)
        for role, id_, port in (
            (NODE, node.credentials.name.id, node.port),
            (GATEWAY, gateway.credentials.name.id, gateway.port),
        ):
            client = PeerClient(other.credentials, role, id_, [f"127.0.0.1:{port}"])
            with pytest.raises(NoAnswer):
                await client.standing()
            with pytest.raises(NoAnswer):
                await client.tell(forged)
            await client.close()
    assert node.credentials.trust.cluster == CLUSTER.hex()


async def test_a_removed_node_loses_its_connections_and_gets_no_others(
    gateway: Gateway, nodes: Made, tmp_path: Path
) -> None:
    first, second = await nodes("n1"), await nodes("n2")
    await gateway.beats.beat()
    await gateway.members.remove(first.credentials.name.id, lost=False)
    await gateway.beats.beat()
    assert first.credentials.name.id not in gateway.beats.standings
    assert second.credentials.trust.denied == [first.credentials.name.id.hex()]
    # It may not renew, and nothing it says is heard.
    with pytest.raises((joining.NoGateway, joining.Refused)):
        await asyncio.to_thread(joining.renew, first.credentials)
    # And whoever finds it does not take it for a member.
    client = PeerClient(gateway.credentials, NODE, first.credentials.name.id, [f"127.0.0.1:{first.port}"])
    with pytest.raises(NoAnswer, match="was removed"):
        await client.standing()
    await client.close()
    # A new token makes it a new member.
    again = Node(tmp_path / "again")
    name = await again.join(await gateway.members.token(NODE), "n1")
    assert name.id != first.credentials.name.id


async def test_a_removed_gateways_open_connections_to_a_node_are_ended(
    gateway: Gateway, nodes: Made, tmp_path: Path
) -> None:
    node = await nodes("n1")
    authority, _ = await gateway.members.authority()
    other = Gateway(tmp_path / "g2", gateway.kv, authority, "g2")
    await other.beats.beat()
    other.socket.close()
    context = other.credentials.client_context(NODE, node.credentials.name.id)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=context)
    writer.write(b"GET /v1/member HTTP/1.1\r\nHost: n\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        assert b" 200 " in await reader.readline()
    await gateway.members.remove(other.credentials.name.id, lost=False)
    await gateway.beats.beat()
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(OSError):
            while await reader.read(1000):
                pass  # The rest of the answer, then the end: not the idle limit of 75 s.
    writer.close()
    with pytest.raises(NoAnswer):
        await PeerClient(
            other.credentials, NODE, node.credentials.name.id, [f"127.0.0.1:{node.port}"]
        ).standing()
    await other.beats.close()


# Heartbeats.


async def test_a_node_that_does_not_answer_is_away_until_it_does(gateway: Gateway, nodes: Made) -> None:
    node = await nodes("n1")
    id_ = node.credentials.name.id
    await gateway.beats.beat()
    assert not await gateway.away(id_)
    await node.served.close()
    gateway.leads = False
    await gateway.beats.beat()
    assert not await gateway.away(id_), "another process holds the claim: it will say so"
    gateway.leads = True
    await gateway.beats.beat()
    assert await gateway.away(id_)
    assert gateway.beats.failures[id_]
    node.socket = listener()  # Back, at another address: it says where itself.
    node.port = node.socket.getsockname()[1]
    await node.serve()
    registration = joining.Registration(machine=about("n1", node.port), disks=[])
    await asyncio.to_thread(joining.register, node.credentials, registration)
    await gateway.beats.beat()
    assert not await gateway.away(id_)


async def test_who_is_silent_is_known_while_no_commit_can_note_it(
    gateway: Gateway, nodes: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [await nodes("n1"), await nodes("n2")]
    await gateway.beats.beat()
    assert gateway.beats.silent() == {}
    await both[0].served.close()
    began_us = time.time_ns() // 1_000

    async def refused(transaction: Any) -> None:
        raise MetaUnavailable("the committer is away")

    with monkeypatch.context() as patched:
        patched.setattr(gateway.kv, "commit", refused)
        with pytest.raises(MetaUnavailable):
            await gateway.beats.beat()
    id_ = both[0].credentials.name.id
    assert not await gateway.away(id_)
    silent = gateway.beats.silent()
    assert silent.keys() == {id_}
    assert 0 <= began_us - silent[id_] < 3_600_000_000, "since its last answer"
    heard = as_heard(await gateway.members.ledger.members(), silent)
    told = [one["finding"] for one in machines(heard, time.time()) if one["level"] == "problem"]
    assert [words.split(" since ")[0] for words in told] == ["node n1 has not answered"]


async def test_what_a_gateway_has_seen_of_each_machine_is_told_as_metrics(
    gateway: Gateway, nodes: Made
) -> None:
    node = await nodes("n1")
    began = time.time()
    await gateway.beats.beat()
    told = {(one.role, one.name): one for one in gateway.beats.seen()}
    assert {names: one.up for names, one in told.items()} == {
        ("node", "n1"): True,
        ("gateway", "g1"): True,
    }
    assert told["node", "n1"].answered_s > began - 60
    ends = node.credentials.certificate.not_valid_after_utc.timestamp()
    await node.served.close()
    await gateway.beats.beat()
    (gone,) = [one for one in gateway.beats.seen() if one.role == "node"]
    assert not gone.up
    assert gone.answered_s > began - 60
    samples = {family.name: dict(family.samples) for family in member_families(told.values())}
    assert samples["member_up"]["n1", "node"] == [1]
    assert samples["member_certificate_expiry_timestamp_seconds"]["n1", "node"] == [ends]
    assert samples["member_info"]["n1", "node", told["node", "n1"].version] == [1]


async def test_a_gateway_that_reaches_no_node_calls_none_away_where_another_gateway_may(
    gateway: Gateway, nodes: Made
) -> None:
    both = [await nodes("n1"), await nodes("n2")]
    await gateway.members.introduce(b"g" * 16, GATEWAY, about("g2", 1), "a root", 1 << 40)
    for node in both:
        await node.served.close()
    await gateway.beats.beat()
    assert gateway.beats.cut_off
    assert not any([await gateway.away(node.credentials.name.id) for node in both])
    both[0].socket = listener()
    both[0].port = both[0].socket.getsockname()[1]
    await both[0].serve()
    registration = joining.Registration(machine=about("n1", both[0].port), disks=[])
    await asyncio.to_thread(joining.register, both[0].credentials, registration)
    await gateway.beats.beat()
    assert not gateway.beats.cut_off
    assert [await gateway.away(node.credentials.name.id) for node in both] == [False, True]


async def test_what_changes_after_metadata_was_restored_reaches_a_node_that_knows_what_was_before(
    gateway: Gateway, nodes: Made
) -> None:
    node, other = await nodes("n1"), await nodes("n2")
    await gateway.beats.beat()
    trust = node.credentials.trust
    await node.credentials.take_trust(msgspec.structs.replace(trust, number=trust.number + 5))
    await gateway.beats.beat()
    await gateway.members.remove(other.credentials.name.id, lost=False)
    await gateway.beats.beat()
    assert node.credentials.trust.denied == [other.credentials.name.id.hex()]


async def test_a_gateway_that_was_removed_hears_of_it(gateway: Gateway) -> None:
    await gateway.members.remove(gateway.credentials.name.id, lost=False)
    beating = asyncio.create_task(gateway.beats.run())
    try:
        await until(lambda: bool(gateway.removed), "it was told")
    finally:
        beating.cancel()
    assert gateway.removed == ["this gateway was removed from the cluster"]


async def test_the_authority_is_replaced_while_all_goes_on(gateway: Gateway, nodes: Made) -> None:
    both = [await nodes("n1"), await nodes("n2")]
    await gateway.beats.beat()
    old = gateway.credentials.trust.signer
    new = await gateway.members.begin_root()
    steps = 0
    while len(gateway.credentials.trust.roots) > 1 or gateway.credentials.trust.signer == old:
        steps += 1
        assert steps < 12, gateway.beats.waits
        await gateway.beats.beat()
        assert len(gateway.beats.standings) == 3, "everyone answers at every step"
        for node in both:
            if node.credentials.renewal_due:
                await asyncio.to_thread(joining.renew, node.credentials)
                node.credentials.reload()
    await gateway.beats.beat()
    for credentials in (gateway.credentials, *(node.credentials for node in both)):
        assert credentials.trust.signer == new
        assert len(credentials.trust.roots) == 1
        assert ca.common_name(credentials.certificate.issuer) == new
    assert set(gateway.beats.standings) == {
        gateway.credentials.name.id,
        *(node.credentials.name.id for node in both),
    }


async def test_a_trust_that_is_damaged_or_older_changes_nothing_at_a_node(
    gateway: Gateway, nodes: Made
) -> None:
    node = await nodes("n1")
    await gateway.beats.beat()
    trust = node.credentials.trust
    client = PeerClient(gateway.credentials, NODE, node.credentials.name.id, [f"127.0.0.1:{node.port}"])
    old = Trust(cluster=trust.cluster, number=trust.number - 1, roots=trust.roots, signer=trust.signer)
    assert (await client.tell(old)).number == trust.number
    for wrong in (
        Trust(cluster=trust.cluster, number=trust.number + 1, roots=["rot"], signer=""),
        Trust(cluster=trust.cluster, number=trust.number + 1, roots=[], signer=""),
        Trust(cluster="00" * 16, number=trust.number + 1, roots=trust.roots, signer=trust.signer),
    ):
        with pytest.raises(NoAnswer, match="400"):
            await client.tell(wrong)
    await client.close()
    assert node.credentials.trust == trust
    assert Credentials(node.directory).trust == trust
