"""What a storage node and its gateways promise each other beyond the contract of a disk."""

import asyncio
import itertools
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objstore import errors
from objstore.errors import DiskFailed, Overloaded, StaleEpoch
from objstore.node import pool, tls, wire
from objstore.node import server as node_server
from objstore.node.authority import GATEWAY, NODE, Authority, Name
from objstore.node.disk import DiskState
from objstore.node.kept import KeptMemory
from objstore.node.local import open_disk
from objstore.node.pool import Address
from objstore.node.remote import RemoteDisk, RemoteNode
from objstore.node.server import NodeLimits, NodeServer, members_only
from objstore.node.tls import Credentials
from objstore.node.wire import BadMessage, Item
from tests.node import test_authority as cluster_tests
from tests.node.rig import CLUSTER, OPTIONS, Node, disks_of, formatted, listening
from tests.sim.faulty_syscalls import FaultySyscalls
from tests.waiting import until


@pytest.fixture
def sys() -> FaultySyscalls:
    return FaultySyscalls()


@pytest.fixture
async def node(tmp_path: Path, sys: FaultySyscalls) -> AsyncIterator[Node]:
    node = Node({number: formatted(tmp_path / str(number), number) for number in (1, 2)}, sys=sys)
    await node.start()
    yield node
    sys.release()
    await node.stop()


@pytest.fixture
async def four_more(node: Node, tmp_path: Path) -> None:
    for number in range(3, 7):
        path = formatted(tmp_path / str(number), number)
        node.disks[number] = open_disk(str(path), options=node.options, sys=node.sys)


@pytest.fixture
async def seen(node: Node) -> AsyncIterator[RemoteNode]:
    seen = node.seen()
    yield seen
    seen.close()


async def whole(disk: RemoteDisk, volume: int = 1, size: int = 1 << 20) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await disk.read(volume, 0, 0, [memoryview(buffer)])])


# Group commit over the network.


@pytest.mark.usefixtures("four_more")
async def test_what_one_turn_writes_to_the_disks_of_a_node_is_one_request(
    node: Node, seen: RemoteNode
) -> None:
    disks = disks_of(seen, 1, 2, 3, 4, 5, 6)
    for disk in disks:
        await disk.create(1, 0)
    batches = 0
    do_write = node.server._write

    async def counted(request: object) -> object:
        nonlocal batches
        batches += 1
        return await do_write(request)  # type: ignore[arg-type]

    node.server._write = counted  # type: ignore[method-assign, assignment]
    bodies = [os.urandom(4_096 + disk.number) for disk in disks]
    await asyncio.gather(
        *(disk.append(1, 0, 0, [body], sync=True) for disk, body in zip(disks, bodies, strict=True))
    )
    assert batches == 1
    await asyncio.gather(*(disk.append(1, 0, 4_096 + disk.number, [b"x"], sync=False) for disk in disks))
    await asyncio.gather(*(disk.sync(1, 0) for disk in disks))
    assert batches == 3
    for disk, body in zip(disks, bodies, strict=True):
        assert await whole(disk) == body + b"x"


@pytest.mark.usefixtures("four_more")
async def test_a_turn_that_writes_much_is_split_and_each_item_has_an_outcome_of_its_own(
    node: Node, seen: RemoteNode, sys: FaultySyscalls
) -> None:
    disks = disks_of(seen, 1, 2, 3, 4, 5, 6)
    body = os.urandom(2 << 20)
    for disk in disks[:5]:  # Not on the sixth.
        await disk.create(1, 0)
    await node.disks[2].create(7, 0)
    node.disks[3].suspect("a test")
    outcomes = await asyncio.gather(
        *(disk.append(1, 0, 0, [body], sync=True) for disk in disks), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        type(None),
        DiskFailed,
        type(None),
        type(None),
        FileNotFoundError,
    ]
    assert disks[2].state is DiskState.SUSPECT
    assert disks[2].reason == "a test"
    assert disks[5].state is DiskState.HEALTHY
    assert await whole(disks[4], size=3 << 20) == body


async def test_hundreds_of_files_written_in_one_turn_all_arrive(node: Node, seen: RemoteNode) -> None:
    (disk,) = disks_of(seen, 1)
    volumes = range(1, wire.BATCH_ITEMS_MAX + 20)
    await asyncio.gather(*(disk.create(volume, 0) for volume in volumes))
    await asyncio.gather(*(disk.append(volume, 0, 0, [b"%d" % volume], sync=True) for volume in volumes))
    for volume in volumes:
        assert await whole(disk, volume, 10) == b"%d" % volume


async def test_reads_and_logs_larger_than_one_answer_are_whole(node: Node, seen: RemoteNode) -> None:
    content = os.urandom(wire.READ_MAX + 700_001)
    (disk,) = disks_of(seen, 1)
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [content], sync=True)
    buffer = memoryview(bytearray(len(content) + 500))
    cuts = [0, 8, 100_000, 100_008, wire.READ_MAX - 3, wire.READ_MAX + 9, len(buffer)]
    views = [buffer[start:end] for start, end in itertools.pairwise(cuts)]
    assert await disk.read(1, 0, 0, views) == len(content)
    assert buffer[: len(content)] == content
    await disk.log_create("snapshot-1", content)
    assert await disk.log_read("snapshot-1", 0, len(content) + 5) == content
    assert await disk.log_read("snapshot-1", 3, wire.READ_MAX) == content[3 : wire.READ_MAX + 3]
    name = await disk.replace_begin(2, 0)
    await disk.replace_append(name, 0, [content[:10], content[10:]])
    await disk.replace_publish(name, len(content))
    assert await whole(disk, 2, len(content)) == content


# Epochs.


async def test_a_disk_refuses_an_epoch_older_than_the_one_it_has_noted_whatever_is_asked(
    node: Node,
) -> None:
    new, old = node.seen(epoch=lambda: 7), node.seen(epoch=lambda: 6)
    (young,) = disks_of(new, 1)
    (aged,) = disks_of(old, 1)
    await young.create(1, 0)
    await aged.append(1, 0, 0, [b"abc"], sync=True)
    await young.note_epoch(7)
    for call in (
        aged.append(1, 0, 3, [b"def"], sync=True),
        aged.append(1, 0, 3, [b"def"], sync=False),
        aged.sync(1, 0),
        aged.create(2, 0),
        aged.seal(1, 0, 0),
        aged.retire(1, 0, 5),
        aged.purge(1, 0, retired_before_us=9),
        aged.replace_begin(1, 0),
        aged.log_create("a"),
        aged.log_append("a", 0, b"x"),
        aged.log_read("a", 0, 1),
        aged.log_remove("a"),
        aged.logs(),
        aged.fragment_files(),
        aged.usage(),
        aged.note_epoch(6),
        aged.fence(6),
        whole(aged),
    ):
        with pytest.raises(StaleEpoch) as caught:
            await call
        assert (caught.value.named, caught.value.noted) == (6, 7)
    assert await aged.noted_epoch() == 7
    assert aged.state is DiskState.HEALTHY, "nothing is wrong with the disk"
    await young.append(1, 0, 3, [b"def"], sync=True)
    assert await whole(young) == b"abcdef"
    new.close()
    old.close()


async def test_who_is_about_to_learn_of_the_epoch_is_not_shut_out(node: Node) -> None:
    """A committer tells the disks of a new epoch before it can tell its workers."""
    epoch = 6
    new, worker = node.seen(epoch=lambda: 7), node.seen(epoch=lambda: epoch)
    (disk,) = disks_of(worker, 1)
    await disk.create(1, 0)
    await disks_of(new, 1)[0].note_epoch(7)
    requests = node.server.requests
    appending = asyncio.ensure_future(disk.append(1, 0, 0, [b"abc"], sync=True))
    reading = asyncio.ensure_future(whole(disk))
    await until(lambda: node.server.requests > requests + 2)
    epoch = 7
    await appending
    assert await reading in (b"", b"abc")
    new.close()
    worker.close()


async def test_a_fence_holds_across_restarts_and_leaves_the_noted_epoch_as_it_is(node: Node) -> None:
    new, old = node.seen(epoch=lambda: 900), node.seen(epoch=lambda: 6)
    (young,) = disks_of(new, 1)
    (aged,) = disks_of(old, 1)
    await young.note_epoch(5)
    await aged.log_create("epoch-5", b"x")
    await young.fence(500)
    await young.fence(700)
    assert await young.noted_epoch() == 5
    with pytest.raises(StaleEpoch):
        await aged.log_append("epoch-5", 1, b"y")
    assert await young.logs() == [("epoch-5", 1)], "the fence is no log of the journal's"
    with pytest.raises(BadMessage):
        node_server._log_name("fence.700")
    await node.stop()
    await node.start()
    await until(lambda: not old.away and not new.away)
    with pytest.raises(StaleEpoch):
        await aged.log_append("epoch-5", 1, b"y")
    await young.log_append("epoch-5", 1, b"y")
    assert [log.name for log in await node.disks[1].logs()] == ["epoch-5", "fence.700"]
    new.close()
    old.close()


@pytest.mark.parametrize("verb", ["fence", "note_epoch"])
async def test_a_new_epoch_is_answered_when_no_write_of_an_older_one_is_under_way(
    node: Node, sys: FaultySyscalls, verb: str
) -> None:
    new, old = node.seen(epoch=lambda: 7), node.seen(epoch=lambda: 6)
    (young,) = disks_of(new, 1)
    (aged,) = disks_of(old, 1)
    await aged.create(1, 0)
    await aged.create(2, 0)
    writes = sys.calls["pwritev"]
    sys.hang("pwritev")
    late = asyncio.ensure_future(aged.append(1, 0, 0, [b"abc"], sync=True))
    await until(lambda: sys.calls["pwritev"] > writes)
    shutting = asyncio.ensure_future(getattr(young, verb)(7))
    # Nothing older begins any more, though nobody has an answer yet.
    await until(lambda: node.server._served[1].noted == 7)
    for call in (aged.append(2, 0, 0, [b"abc"], sync=True), aged.create(3, 0), whole(aged)):
        with pytest.raises(StaleEpoch):
            await call
    assert not shutting.done()
    sys.release()
    await shutting
    await late  # It was before the fence, and the fence waited for it.
    assert await whole(young) == b"abc"
    new.close()
    old.close()


async def test_an_epoch_that_could_not_be_made_durable_shuts_nobody_out(
    node: Node, sys: FaultySyscalls
) -> None:
    new, old = node.seen(epoch=lambda: 7), node.seen(epoch=lambda: 6)
    (young,) = disks_of(new, 1)
    (aged,) = disks_of(old, 1)
    node.disks[1].suspect("a test")
    for call in (young.note_epoch(7), young.fence(7)):
        with pytest.raises(DiskFailed):
            await call
    assert await aged.fragment_files() == []
    new.close()
    old.close()


# States.


async def test_what_another_gateway_or_the_node_itself_finds_out_shows_in_the_next_poll(
    node: Node, seen: RemoteNode
) -> None:
    one, two = disks_of(seen, 1, 2)
    assert one.state is DiskState.SUSPECT
    assert "not asked" in one.reason
    await seen.start()
    assert one.state is two.state is DiskState.HEALTHY
    node.disks[1].suspect("its neighbour says so")
    await until(lambda: one.state is DiskState.SUSPECT)
    assert one.reason == "its neighbour says so"
    assert two.state is DiskState.HEALTHY
    await one.verify()
    assert one.state is DiskState.HEALTHY
    assert node.disks[1].state is DiskState.HEALTHY


async def test_devices_of_different_nodes_are_different_devices(node: Node, seen: RemoteNode) -> None:
    other = RemoteNode(
        Address("127.0.0.1", node.port), number=2, cluster=CLUSTER, epoch=lambda: 0, options=OPTIONS
    )
    one, two = disks_of(seen, 1, 2)
    (elsewhere,) = disks_of(other, 1)
    assert (await one.usage()).device == (await two.usage()).device
    assert (await one.usage()).device != (await elsewhere.usage()).device
    assert (await one.usage())[0] == (await node.disks[1].usage())[0]
    other.close()


async def test_the_last_of_a_nodes_disks_closes_its_connections(node: Node) -> None:
    seen = node.seen()
    one, two = disks_of(seen, 1, 2)
    await one.usage()
    one.close()
    await two.usage()
    two.close()
    with pytest.raises(DiskFailed, match="closed"):
        await two.usage()
    await until(lambda: not node.server._http.connections)  # type: ignore[union-attr]


async def test_a_replacement_that_nobody_goes_on_with_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_server, "SWEEP_S", 0.01)
    node = Node({1: formatted(tmp_path / "1")}, limits=NodeLimits(replace_idle_s=0.0))
    await node.start()
    seen = node.seen()
    (disk,) = disks_of(seen, 1)
    name = await disk.replace_begin(1, 0)
    await until(lambda: not node.server._served[1].replacing)
    with pytest.raises(DiskFailed, match="begin again"):
        await disk.replace_append(name, 0, [b"abc"])
    await until(lambda: not list((tmp_path / "1/tmp").iterdir()))
    seen.close()
    await node.stop()


# Who may ask, and how.


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(60):
            return await reader.read(100_000) if data else b""
    finally:
        writer.close()


HEAD = {"Host": "x", "X-Cluster": CLUSTER.hex(), "X-Epoch": "0"}


def request(method: str, path: str, body: bytes | None = None, **headers: str | None) -> bytes:
    given = dict(HEAD)
    for name, value in headers.items():
        if value is None:
            del given[name.replace("_", "-")]
        else:
            given[name.replace("_", "-")] = value
    if body is not None:
        given.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


READ = "/v1/disks/1/read?volume=1&index=0&at=0&size=9"
BAD = {
    "no cluster": (request("GET", READ, X_Cluster=None), 400),
    "half a cluster": (request("GET", READ, X_Cluster="63"), 400),
    "another cluster": (request("GET", READ, X_Cluster="64" * 16), 421),
    "no epoch": (request("GET", READ, X_Epoch=None), 400),
    "a signed epoch": (request("GET", READ, X_Epoch="+5"), 400),
    "an epoch with a gap": (request("GET", READ, X_Epoch="1_0"), 400),
    "an epoch of 65 bits": (request("GET", READ, X_Epoch=str(1 << 64)), 400),
    "another instance": (request("GET", READ, X_Since="0" * 16), 409),
    "no such path": (request("GET", "/v1/disk/1/read"), 400),
    "no such version": (request("GET", "/v2/state"), 400),
    "no such call": (request("GET", "/v1/disks/1/format"), 400),
    "no such disk": (request("GET", READ.replace("disks/1", "disks/77")), 410),
    "another method": (request("POST", READ, b""), 400),
    "an argument too few": (request("GET", READ.replace("&size=9", "")), 400),
    "an argument twice": (request("GET", READ + "&size=9"), 400),
    "arguments in another order": (request("GET", READ.replace("volume", "index", 1)), 400),
    "a number in hex": (request("GET", READ.replace("size=9", "size=0x9")), 400),
    "a negative number": (request("GET", READ.replace("at=0", "at=-1")), 400),
    "a number with a leading zero": (request("GET", READ.replace("at=0", "at=00")), 400),
    "a read that is too large": (request("GET", READ.replace("size=9", f"size={wire.READ_MAX + 1}")), 400),
    "a probe that is too large": (request("GET", f"/v1/probe?size={wire.PROBE_MAX + 1}"), 400),
    "a path that climbs": (request("GET", "/v1/disks/1/log-read?name=../../x&at=0&size=1"), 400),
    "a log that is the node's own": (request("GET", "/v1/disks/1/log-read?name=fence.1&at=0&size=1"), 400),
    "a log's name that is none": (request("GET", "/v1/disks/1/log-read?name=.x&at=0&size=1"), 422),
    "a body without a size": (request("POST", "/v1/write"), 400),
    "a body that is too large": (
        request("POST", "/v1/write", b"", **{"Content-Length": str(wire.BODY_MAX + 1)}),
        400,
    ),
    "a batch of nothing": (request("POST", "/v1/write", b""), 400),
    "a batch without items": (request("POST", "/v1/write", wire.encode_manifest([])), 400),
    "a manifest that is cut": (request("POST", "/v1/write", b"\0\0\1\0abc"), 400),
    "a manifest that is none": (request("POST", "/v1/write", b"\0\0\0\3abc"), 400),
    "an item of another kind": (
        request("POST", "/v1/write", wire.encode_manifest([Item("erase", 1)])),
        400,
    ),
    "items larger than the body": (
        request("POST", "/v1/write", wire.encode_manifest([Item("append", 1, 1, 0, 0, 5)]) + b"abc"),
        400,
    ),
    "an item with a negative size": (
        request("POST", "/v1/write", wire.encode_manifest([Item("append", 1, 1, 0, 0, -3)])),
        400,
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_request_that_makes_no_sense_is_refused_in_words_and_changes_nothing(
    node: Node, what: str
) -> None:
    await node.disks[1].create(1, 0)
    data, status = BAD[what]
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(data)
    async with asyncio.timeout(60):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        failure = msgspec.json.decode(await reader.readexactly(length), type=wire.Failure)
    writer.close()
    assert head.startswith(f"HTTP/1.1 {status} "), head
    assert wire.STATUSES[failure.code] == status
    assert failure.words
    assert node.server.bugs == 0
    assert await node.disks[1].fragment_files() == [(1, 0, 0, 0)]


def test_a_node_of_another_version_of_the_protocol_says_which_one_it_speaks() -> None:
    with pytest.raises(wire.BadMessage, match="speaks /v1: its release and the asking machine's"):
        wire.parse_target("/v2/disks/1/read")
    with pytest.raises(wire.BadMessage, match="no such path"):
        wire.parse_target("/v1/disk/1/read")


async def test_noise_on_the_port_leaves_the_node_as_it_was(node: Node, seen: RemoteNode) -> None:
    (disk,) = disks_of(seen, 1)
    await disk.create(1, 0)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    good = request("POST", "/v1/write", wire.encode_manifest([Item("append-sync", 1, 1, 0, 0, 3)]) + b"abc")
    for _ in range(60):
        data = bytearray(good[: chance.randrange(1, len(good))] if chance.random() < 0.5 else good[:-3])
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(data)
        writer.close()
    assert await whole(disk) == b""
    assert node.server.bugs == 0


def test_a_node_does_not_listen_beyond_loopback_without_mutual_tls(tmp_path: Path) -> None:
    async def refused() -> None:
        server = NodeServer({}, cluster=CLUSTER)
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            with socket.socket(family) as sock:
                try:
                    sock.bind((host, 0))
                except OSError:
                    assert family == socket.AF_INET6, "every machine has IPv4"
                    continue
                with pytest.raises(ValueError, match="mutual TLS"):
                    await server.serve([sock], None)
        with listening() as sock, pytest.raises(ValueError, match="client's certificate"):
            await server.serve([sock], ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    asyncio.run(refused())


async def test_the_memory_of_a_node_for_requests_is_bounded(tmp_path: Path) -> None:
    node = Node({1: formatted(tmp_path / "1")}, limits=NodeLimits(memory=wire.BODY_MAX, memory_wait_s=0.05))
    await node.start()
    seen = node.seen()
    (disk,) = disks_of(seen, 1)
    await disk.create(1, 0)
    # A body that is announced and does not come holds what it has announced.
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(request("POST", "/v1/write", b"", **{"Content-Length": str(wire.BODY_MAX)})[: -0 or None])
    await until(lambda: node.server._memory._free == 0)
    for call in (disk.append(1, 0, 0, [b"abc"], sync=True), whole(disk)):
        with pytest.raises(Overloaded):
            await call
    assert disk.state is DiskState.HEALTHY
    writer.close()
    await until(lambda: node.server._memory._free == wire.BODY_MAX)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    seen.close()
    await node.stop()


async def test_connections_to_a_node_are_bounded(tmp_path: Path) -> None:
    node = Node({1: formatted(tmp_path / "1")}, limits=NodeLimits(connections=3))
    await node.start()
    held = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(3)]
    await until(lambda: len(node.server._http.connections) == 3)  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(request("GET", "/v1/state"))
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass
    for _, other in held:
        other.close()
    await until(lambda: not node.server._http.connections)  # type: ignore[union-attr]
    assert b"200 OK" in await raw(node.port, request("GET", "/v1/state"))
    await node.stop()


def test_the_memory_of_an_answer_is_used_again_when_nobody_holds_it_and_not_before() -> None:
    rooms = KeptMemory(wire.MIB, node_server.kept_size)
    first = rooms.take(300_000)
    assert len(first) >= 300_000
    view = memoryview(first)[:10]
    second = rooms.take(300_000)
    assert second is not first
    del view
    assert rooms.take(300_000) is first
    assert len(first) >= 300_000
    for _ in range(50):
        rooms.take(900_000)
    assert sum(len(room) for ring in rooms._rings.values() for room in ring) <= wire.MIB


async def test_answers_beside_each_other_do_not_share_their_memory(node: Node, seen: RemoteNode) -> None:
    (disk,) = disks_of(seen, 1)
    bodies = {volume: os.urandom(1 << 20) for volume in range(1, 7)}
    for volume, body in bodies.items():
        await disk.create(volume, 0)
        await disk.append(volume, 0, 0, [body], sync=True)
    for _ in range(5):
        for volume, found in enumerate(
            await asyncio.gather(*(whole(disk, volume) for volume in bodies)), start=1
        ):
            assert found == bodies[volume]


# Mutual TLS.


class Members:
    """A cluster with a node and a gateway, who have certificates."""

    def __init__(self, directory: Path) -> None:
        self.authority: Authority = cluster_tests.authority_of(CLUSTER)
        member = cluster_tests.member
        self.node = Credentials(member(directory / "node", self.authority, NODE, b"\1" * 16))
        self.gateway = Credentials(member(directory / "gateway", self.authority, GATEWAY, b"\2" * 16))
        self.other = Credentials(member(directory / "other", self.authority, NODE, b"\3" * 16))


async def test_over_mutual_tls_a_gateway_is_served_and_nobody_else(tmp_path: Path) -> None:
    members = Members(tmp_path)
    node = Node({1: formatted(tmp_path / "1")})
    await node.start(members.node.server_context(GATEWAY))
    node.server._admit = members_only(members.node)
    content = os.urandom(600_000)
    seen = node.seen(context=members.gateway.client_context(NODE, b"\1" * 16))
    (disk,) = disks_of(seen, 1)
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [content[:1000], content[1000:]], sync=True)
    buffer = bytearray(len(content))
    assert await disk.read(1, 0, 0, [memoryview(buffer)[:5], memoryview(buffer)[5:]]) == len(content)
    assert buffer == content
    strangers = [
        node.seen(),  # Without TLS.
        node.seen(context=members.other.client_context(NODE, b"\1" * 16)),  # A node is no gateway.
        node.seen(context=members.gateway.client_context(NODE, b"\3" * 16)),  # This is not that node.
    ]
    for stranger in strangers:
        (of_theirs,) = disks_of(stranger, 1)
        with pytest.raises(DiskFailed):
            await whole(of_theirs)
        assert of_theirs.state is DiskState.SUSPECT
        stranger.close()
    # Removed: its open connections are worth nothing from the next request on.
    trust = msgspec.structs.replace(members.node.trust, number=2, denied=[(b"\2" * 16).hex()])
    assert await members.node.take_trust(trust)
    with pytest.raises(DiskFailed):
        await whole(disk)
    seen.close()
    await node.stop()


@given(st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 200_000).map(bytes)), max_size=30))
def test_small_buffers_are_put_together_for_tls_and_no_byte_is_lost_or_moved(pieces: list[bytes]) -> None:
    found = pool._gathered(list(pieces))
    assert b"".join(found) == b"".join(pieces)
    small = [piece for piece in found if len(piece) < pool.DIRECT_MIN]
    large = [piece for piece in pieces if len(piece) >= pool.DIRECT_MIN]
    assert len(small) <= len(large) + 1 + sum(map(len, pieces)) // pool.GATHERED_SIZE
    assert max(map(len, found), default=0) <= max(pool.GATHERED_SIZE + pool.DIRECT_MIN, *map(len, pieces), 0)


# The protocol.


def test_every_error_of_a_disk_has_one_row_and_arrives_as_what_it_was() -> None:
    contract = [
        errors.DiskFailed("it failed"),
        errors.DiskFull("full"),
        errors.DiskMissing("missing"),
        errors.Denied("no"),
        errors.Overloaded("busy"),
        errors.Corrupt("rotten"),
        errors.StaleEpoch(named=3, noted=4),
        FileNotFoundError("none"),
        FileExistsError("there"),
        AssertionError("a misuse"),
    ]
    assert {type(error) for error in contract} == {kind for _, _, kind in wire.ERRORS}
    assert len({code for code, _, _ in wire.ERRORS}) == len(wire.ERRORS)
    for error in contract:
        failure = msgspec.json.decode(msgspec.json.encode(wire.failure_of(error)), type=wire.Failure)
        arrived = wire.error_of(failure, 3)
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)
    assert type(wire.error_of(wire.failure_of(wire.Restarted("gone")), 0)) is wire.Restarted
    assert type(wire.error_of(wire.failure_of(OSError(5, "EIO")), 0)) is errors.DiskFailed
    assert wire.failure_of(ZeroDivisionError()).code == wire.BUG
    assert type(wire.error_of(wire.Failure(wire.BUG, "x"), 0)) is errors.DiskFailed
    assert type(wire.error_of(wire.Failure("of a later release", "x"), 0)) is errors.DiskFailed


def test_every_class_that_a_disk_may_raise_is_unavailable_or_named(tmp_path: Path) -> None:
    for failure in (wire.OTHER_CLUSTER, wire.RESTARTED, wire.BAD_REQUEST, wire.BUG):
        assert issubclass(type(wire.error_of(wire.Failure(failure, "x"), 0)), errors.Unavailable)


@given(
    disk=st.integers(1, 10**9),
    verb=st.sampled_from(sorted(wire.VERBS)),
    numbers=st.lists(st.integers(0, (1 << 64) - 1), min_size=4, max_size=4),
    name=st.from_regex(wire.LOG_NAME, fullmatch=True),
)
def test_a_target_is_read_as_it_was_written(disk: int, verb: str, numbers: list[int], name: str) -> None:
    arguments = {
        argument: name if argument == "name" else number
        for argument, number in zip(wire.VERBS[verb].arguments, numbers, strict=False)
    }
    assert wire.parse_target(wire.target(disk, verb, **arguments)) == (disk, wire.VERBS[verb], arguments)


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        disk, verb, _ = wire.parse_target("/v1/disks/" + text)
    except BadMessage:
        return
    assert disk >= 1
    assert verb.name in wire.VERBS


@given(st.text(max_size=400), st.sampled_from(list(DiskState)))
def test_a_reason_in_a_header_is_one_line_and_comes_back_as_it_was(reason: str, state: DiskState) -> None:
    reason = reason.encode(errors="replace").decode()
    lines = wire.state_headers(state.value, reason).split(b"\r\n")
    assert len(lines) == 3
    assert wire.reason_of(lines[1].partition(b": ")[2].decode()) == reason[: wire.REASON_MAX]


# An answer that is not one.

ANSWERS = {
    "not HTTP": b"hello\r\n\r\n",
    "another version": b"HTTP/1.0 200 OK\r\nX-Instance: " + b"0" * 16 + b"\r\nContent-Length: 0\r\n\r\n",
    "no instance": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\nX-Instance: " + b"0" * 16 + b"\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nX-Instance: "
    + b"0" * 16
    + b"\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "a signed length": b"HTTP/1.1 200 OK\r\nX-Instance: " + b"0" * 16 + b"\r\nContent-Length: +1\r\n\r\nx",
    "a huge length": b"HTTP/1.1 200 OK\r\nX-Instance: "
    + b"0" * 16
    + b"\r\nContent-Length: 999999999999\r\n\r\n",
    "chunks where none are expected": b"HTTP/1.1 200 OK\r\nX-Instance: "
    + b"0" * 16
    + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "more than was announced": b"HTTP/1.1 200 OK\r\nX-Instance: "
    + b"0" * 16
    + b"\r\nContent-Length: 1\r\n\r\nxy",
    "a head without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000,
    "JSON that is none": b"HTTP/1.1 200 OK\r\nX-Instance: " + b"0" * 16 + b"\r\nContent-Length: 3\r\n\r\n{}}",
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_an_answer_that_makes_no_sense_is_a_failure_of_the_node_and_never_hangs(what: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ANSWERS[what])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    seen = RemoteNode(Address("127.0.0.1", port), number=1, cluster=CLUSTER, epoch=lambda: 0, options=OPTIONS)
    (disk,) = disks_of(seen, 1)
    await seen.start()
    assert seen.away
    assert disk.state is DiskState.SUSPECT
    seen.away = ""
    for call in (disk.usage(), disk.append(1, 0, 0, [b"abc"], sync=True), disk.create(1, 0)):
        with pytest.raises(DiskFailed):
            await call
        seen.away = ""
    seen.close()
    server.close()


def test_names_are_those_of_the_authority() -> None:
    assert Name(CLUSTER, NODE, b"\1" * 16).role == NODE
    assert tls.IDENTITY == "identity.pem"
