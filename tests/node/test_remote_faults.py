"""A network that cuts, slows down and swallows, between a gateway and a node: what becomes of each call."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from objstore.errors import DiskFailed, DiskMissing, NodeAway, Overloaded
from objstore.node import threads
from objstore.node.disk import DiskState
from objstore.node.local import DiskOptions, open_disk
from objstore.node.pool import PoolLimits, Unreachable
from objstore.node.remote import AGAIN_S, RemoteDisk, RemoteNode
from objstore.node.wire import Item, NodeReport
from tests.node.rig import OPTIONS, Node, disks_of, formatted, uuid
from tests.proxy import Proxy
from tests.sim.faulty_syscalls import FaultySyscalls
from tests.waiting import until, until_true

# The proxy counts bytes: polls that come between would be counted, too.
SELDOM = replace(OPTIONS, poll_s=3_600.0)


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """What a store runs on; tests/node/test_remote.py runs on the standard library's loop."""
    return uvloop.EventLoopPolicy()


class Rig:
    def __init__(self, path: Path) -> None:
        self.sys = FaultySyscalls()
        self.paths = {1: path}
        self.node = Node(self.paths, sys=self.sys)
        self.proxy: Proxy
        self.seen: RemoteNode
        self.disk: RemoteDisk

    async def start(self) -> "Rig":
        await self.node.start()
        self.proxy = await Proxy(self.node.port).start()
        await self.see()
        await self.disk.logs()  # The node has read its fence: writes go straight on from here.
        return self

    async def see(self, **options: float) -> None:
        """As a gateway sees the node through the proxy, with options of its own."""
        if hasattr(self, "seen"):
            self.seen.close()
        self.seen = self.node.seen(port=self.proxy.port, options=replace(SELDOM, **options))
        (self.disk,) = disks_of(self.seen, 1)
        await self.seen.start()

    async def stop(self) -> None:
        self.sys.release()
        self.seen.close()
        await self.proxy.stop()
        await self.node.stop()

    def held(self, name: str = "fragments/01/1.0") -> bytes:
        return (self.paths[1] / name).read_bytes()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(formatted(tmp_path / "disk")).start()
    yield rig
    await rig.stop()


async def whole(disk: RemoteDisk, size: int = 1 << 20) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await disk.read(1, 0, 0, [memoryview(buffer)])])


# Lost before, during and after.


def before(proxy: Proxy) -> None:
    proxy.cut_request(0)


def during(proxy: Proxy) -> None:
    proxy.cut_request(700)  # Behind the head, within the body.


def after(proxy: Proxy) -> None:
    proxy.cut_answer(0)


@pytest.mark.parametrize("cut", [before, during, after])
@pytest.mark.parametrize("sync", [True, False])
async def test_an_append_whose_connection_is_lost_is_done_once(
    rig: Rig, cut: Callable[[Proxy], None], sync: bool
) -> None:
    content = os.urandom(5_000)
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [b"first"], sync=True)
    writes = rig.sys.calls["pwritev"]
    cut(rig.proxy)
    await rig.disk.append(1, 0, 5, [content[:10], content[10:]], sync=sync)
    assert rig.proxy.cuts == 1
    assert rig.held() == b"first" + content
    assert rig.sys.calls["pwritev"] == writes + 1
    await rig.disk.append(1, 0, 5_005, [b"next"], sync=True)
    assert rig.held() == b"first" + content + b"next"
    assert rig.disk.state is DiskState.HEALTHY


@pytest.mark.parametrize("cut", [before, during, after])
async def test_a_journal_batch_whose_connection_is_lost_is_appended_once(
    rig: Rig, cut: Callable[[Proxy], None]
) -> None:
    content = os.urandom(5_000)
    await rig.disk.log_create("epoch-1", b"head")
    writes = rig.sys.calls["pwritev"]
    cut(rig.proxy)
    await rig.disk.log_append("epoch-1", 4, content)
    assert rig.proxy.cuts == 1
    assert rig.held("logs/epoch-1") == b"head" + content
    assert rig.sys.calls["pwritev"] == writes + 1


async def replaced(disk: RemoteDisk) -> None:
    name = await disk.replace_begin(1, 0)
    await disk.replace_append(name, 0, [b"new "])
    await disk.replace_append(name, 4, [b"bytes"])
    await disk.replace_publish(name, 9)


async def prepared_replacement(disk: RemoteDisk) -> str:
    name = await disk.replace_begin(1, 0)
    await disk.replace_append(name, 0, [b"new "])
    return name


async def nothing(disk: RemoteDisk) -> str:
    return ""


async def with_file(disk: RemoteDisk) -> str:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    return ""


async def with_unsynced(disk: RemoteDisk) -> str:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=False)
    return ""


async def with_trash(disk: RemoteDisk) -> str:
    await with_file(disk)
    await disk.retire(1, 0, 500)
    return ""


async def with_log(disk: RemoteDisk) -> str:
    await disk.log_create("epoch-1", b"head")
    return ""


Before = Callable[[RemoteDisk], Awaitable[str]]
Call = Callable[[RemoteDisk, str], Awaitable[object]]
CALLS: dict[str, tuple[Before, Call, object]] = {
    "create": (nothing, lambda disk, _: disk.create(1, 0), None),
    "sync": (with_unsynced, lambda disk, _: disk.sync(1, 0), None),
    "seal": (with_file, lambda disk, _: disk.seal(1, 0, 2), None),
    "retire": (with_file, lambda disk, _: disk.retire(1, 0, 500), None),
    "purge": (with_trash, lambda disk, _: disk.purge(1, 0, retired_before_us=900), None),
    "replace_append": (prepared_replacement, lambda disk, name: disk.replace_append(name, 4, [b"x"]), None),
    "replace_publish": (prepared_replacement, lambda disk, name: disk.replace_publish(name, 4), None),
    "replace_abandon": (prepared_replacement, lambda disk, name: disk.replace_abandon(name), None),
    "fragment_files": (with_trash, lambda disk, _: disk.fragment_files(), [(1, 0, 3, 500)]),
    "log_create": (nothing, lambda disk, _: disk.log_create("epoch-1", b"head"), None),
    "log_read": (with_log, lambda disk, _: disk.log_read("epoch-1", 1, 10), b"ead"),
    "log_remove": (with_log, lambda disk, _: disk.log_remove("epoch-1"), None),
    "logs": (with_log, lambda disk, _: disk.logs(), [("epoch-1", 4)]),
    "note_epoch": (nothing, lambda disk, _: disk.note_epoch(0), None),
    "noted_epoch": (nothing, lambda disk, _: disk.noted_epoch(), 0),
    "fence": (nothing, lambda disk, _: disk.fence(0), None),
    "verify": (nothing, lambda disk, _: disk.verify(), None),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("cut", [before, after])
async def test_a_call_whose_connection_is_lost_ends_as_if_it_had_not_been(
    rig: Rig, name: str, cut: Callable[[Proxy], None]
) -> None:
    prepare, call, result = CALLS[name]
    argument = await prepare(rig.disk)
    cut(rig.proxy)
    assert await call(rig.disk, argument) == result
    assert rig.proxy.cuts == 1
    assert rig.disk.state is DiskState.HEALTHY


CALLS_THAT_WRITE: dict[str, tuple[Before, Call, str]] = {
    "create": (nothing, lambda disk, _: disk.create(1, 0), "fsync"),
    "append": (with_file, lambda disk, _: disk.append(1, 0, 3, [b"d"], sync=True), "pwritev"),
    "unsynced append": (with_file, lambda disk, _: disk.append(1, 0, 3, [b"d"], sync=False), "pwritev"),
    "sync": (with_unsynced, lambda disk, _: disk.sync(1, 0), "fdatasync"),
    "seal": (with_file, lambda disk, _: disk.seal(1, 0, 2), "fsync"),
    "retire": (with_file, lambda disk, _: disk.retire(1, 0, 500), "fsync"),
    "purge": (with_trash, lambda disk, _: disk.purge(1, 0, retired_before_us=900), "unlink"),
    "replace_append": (
        prepared_replacement,
        lambda disk, name: disk.replace_append(name, 4, [b"x"]),
        "pwritev",
    ),
    "replace_publish": (prepared_replacement, lambda disk, name: disk.replace_publish(name, 4), "rename"),
    "log_create": (nothing, lambda disk, _: disk.log_create("epoch-1", b"head"), "rename"),
    "log_append": (with_log, lambda disk, _: disk.log_append("epoch-1", 4, b"batch"), "pwritev"),
    "log_remove": (with_log, lambda disk, _: disk.log_remove("epoch-1"), "unlink"),
    "fence": (nothing, lambda disk, _: disk.fence(0), "rename"),
    "note_epoch": (nothing, lambda disk, _: disk.note_epoch(0), "rename"),
}


@pytest.mark.parametrize("name", CALLS_THAT_WRITE)
async def test_a_connection_lost_while_the_disk_is_at_work_is_no_failure_of_the_call(
    rig: Rig, name: str
) -> None:
    prepare, call, syscall = CALLS_THAT_WRITE[name]
    argument = await prepare(rig.disk)
    await rig.disk.usage()  # Its look at the identity file is over.
    made = rig.sys.calls[syscall]
    rig.sys.hang(syscall)
    under_way = asyncio.ensure_future(call(rig.disk, argument))
    await until(lambda: rig.sys.calls[syscall] > made)
    requests = rig.node.server.requests
    rig.proxy.reset()
    await until(lambda: rig.node.server.requests > requests)  # The repeat has come; the first still runs.
    await asyncio.sleep(0.05)
    rig.sys.release()
    await under_way
    assert rig.node.server.bugs == 0
    assert rig.disk.state is DiskState.HEALTHY
    if "append" in name and "replace" not in name:
        held = rig.held("logs/epoch-1") if name == "log_append" else rig.held()
        assert held in (b"headbatch", b"abcd")


async def test_half_an_answer_to_a_read_is_no_answer(rig: Rig) -> None:
    content = os.urandom(300_000)
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [content], sync=True)
    for after_bytes in (50, 150, 70_000, 299_000):
        buffer = bytearray(300_000)
        views = [memoryview(buffer)[:7], memoryview(buffer)[7:100_000], memoryview(buffer)[100_000:]]
        rig.proxy.cut_answer(after_bytes)
        assert await rig.disk.read(1, 0, 0, views) == 300_000
        assert buffer == content
    assert rig.proxy.cuts == 4


async def test_a_call_is_sent_twice_and_not_for_ever(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    rig.proxy.cut_request(0, times=2)
    with pytest.raises(DiskFailed):
        await rig.disk.append(1, 0, 0, [b"abc"], sync=True)
    rig.proxy.cut_answer(0, times=2)
    with pytest.raises(DiskFailed):
        await whole(rig.disk)
    assert rig.proxy.cuts == 4
    assert rig.held() == b""


# What a repeat finds.


async def again(rig: Rig, offset: int, content: bytes, kind: str = "append-sync") -> None:
    item = Item(kind, 1, 1, 0, offset, len(content), repeat=True)
    await rig.seen.write(rig.disk, item, [content])


async def test_a_repeat_that_finds_other_bytes_is_a_failure_and_writes_nothing(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [b"abcdef"], sync=True)
    for offset, content in ((0, b"abcdeX"), (0, b"abcde"), (3, b"deX"), (3, b"X"), (0, b"abcXefgh")):
        with pytest.raises(DiskFailed, match="other bytes"):
            await again(rig, offset, content)
    assert rig.held() == b"abcdef"


async def test_a_repeat_completes_what_was_torn(rig: Rig) -> None:
    content = os.urandom(700_000)
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [content[:300_000]], sync=True)  # As far as the node came.
    await again(rig, 0, content)
    assert rig.held() == content
    await again(rig, 0, content)
    assert rig.held() == content


async def test_a_repeat_beyond_the_end_is_no_append(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    with pytest.raises(AssertionError, match="the file ends at 0"):
        await again(rig, 5, b"abc")
    assert rig.held() == b""


async def test_a_repeat_waits_for_what_the_first_request_still_does(rig: Rig) -> None:
    """The network may delay a request and deliver it after, or while, its repeat is served."""
    await rig.disk.create(1, 0)
    rig.sys.hang("pwritev")
    writes = rig.sys.calls["pwritev"]
    first = rig.disk.append(1, 0, 0, [b"abcdef"], sync=True)
    await until(lambda: rig.sys.calls["pwritev"] > writes)
    second = asyncio.ensure_future(again(rig, 0, b"abcdef"))
    await until(lambda: rig.node.server.requests >= 5)
    rig.sys.release()
    await asyncio.gather(first, second)
    assert rig.held() == b"abcdef"
    assert rig.sys.calls["pwritev"] == writes + 1


async def test_a_request_that_comes_after_its_repeat_changes_nothing(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await again(rig, 0, b"abcdef")
    with pytest.raises(AssertionError, match="the file ends at 6"):  # Nobody waits for this answer any more.
        await rig.disk.append(1, 0, 0, [b"abcdef"], sync=True)
    assert rig.held() == b"abcdef"


# Restarts.


async def restart(rig: Rig) -> None:
    await rig.node.stop()
    await rig.node.start()


async def restart_in_between(rig: Rig, call: Awaitable[object]) -> object:
    """The call's answer is lost, and the node is another one when it is repeated."""
    rig.proxy.cut_answer(0)
    rig.proxy.on_cut = rig.proxy.swallow
    task = asyncio.ensure_future(call)
    await until(lambda: rig.proxy.cuts == 1)
    await restart(rig)
    rig.proxy.open()
    return await task


async def test_a_synced_append_is_known_by_its_bytes_also_after_a_restart(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await restart_in_between(rig, rig.disk.append(1, 0, 0, [b"abc"], sync=True))
    assert rig.held() == b"abc"
    assert rig.sys.calls["fdatasync"] >= 1  # Whether it was durable nobody knows any more: it is now.
    await rig.disk.append(1, 0, 3, [b"def"], sync=True)
    assert rig.held() == b"abcdef"


async def test_what_cannot_be_known_after_a_restart_is_a_failure(rig: Rig) -> None:
    await rig.disk.log_create("epoch-1", b"head")
    for call in (
        rig.disk.log_append("epoch-1", 4, b"batch"),
        rig.disk.create(1, 0),
        rig.disk.log_create("epoch-2", b"head"),
    ):
        rig.proxy.cuts = 0
        with pytest.raises(DiskFailed, match="restarted"):
            await restart_in_between(rig, call)


async def test_bytes_that_were_not_synced_before_a_restart_are_never_called_durable(rig: Rig) -> None:
    """The node may have lost its power: the page cache took them with it, and a sync would find nothing."""
    for volume in (1, 2):
        await rig.disk.create(volume, 0)
        await rig.disk.append(volume, 0, 0, [b"abc"], sync=False)
    await restart(rig)
    with pytest.raises(DiskFailed, match="restarted"):
        await rig.disk.sync(1, 0)
    for sync in (True, False):
        with pytest.raises(DiskFailed, match="restarted"):
            await rig.disk.append(2, 0, 3, [b"def"], sync=sync)
    assert rig.held("fragments/02/2.0") == b"abc"
    await rig.disk.create(3, 0)
    await rig.disk.append(3, 0, 0, [b"abc"], sync=False)
    await rig.disk.sync(3, 0)


async def test_a_sync_answers_for_what_was_appended_before_it_and_not_for_what_came_beside_it(
    rig: Rig,
) -> None:
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [b"abc"], sync=False)
    rig.sys.hang("fdatasync")
    syncs = rig.sys.calls["fdatasync"]
    syncing = asyncio.ensure_future(rig.disk.sync(1, 0))
    await until(lambda: rig.sys.calls["fdatasync"] > syncs)
    await rig.disk.append(1, 0, 3, [b"def"], sync=False)
    rig.sys.release()
    await syncing
    await restart(rig)
    with pytest.raises(DiskFailed, match="restarted"):
        await rig.disk.sync(1, 0)


async def test_a_file_whose_bytes_are_all_synced_outlives_a_restart(rig: Rig) -> None:
    for volume in (1, 2):
        await rig.disk.create(volume, 0)
        await rig.disk.append(volume, 0, 0, [b"abc"], sync=False)
    await rig.disk.sync(1, 0)
    await rig.disk.append(2, 0, 3, [b"def"], sync=True)
    await restart(rig)
    await rig.disk.append(1, 0, 3, [b"def"], sync=True)
    await rig.disk.sync(2, 0)
    assert rig.held() == rig.held("fragments/02/2.0") == b"abcdef"


async def test_a_file_that_a_restart_made_shorter_is_the_disks_failure_and_no_bug_of_the_writer(
    rig: Rig,
) -> None:
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [b"abc"], sync=True)
    await rig.node.stop()
    os.truncate(rig.paths[1] / "fragments/01/1.0", 2)
    await rig.node.start()
    with pytest.raises(DiskFailed, match="restarted since"):
        await rig.disk.append(1, 0, 3, [b"def"], sync=True)


async def test_a_replacement_does_not_outlive_its_node(rig: Rig) -> None:
    name = await rig.disk.replace_begin(1, 0)
    await restart(rig)
    with pytest.raises(DiskFailed, match=r"begin again|restarted"):
        await rig.disk.replace_append(name, 0, [b"abc"])
    with pytest.raises(DiskFailed, match=r"begin again|restarted"):
        await rig.disk.replace_publish(name, 0)
    await rig.disk.replace_abandon(name)


async def test_a_node_that_was_away_and_is_back_is_used_again_and_not_before(rig: Rig) -> None:
    await rig.see(poll_s=0.05)
    await rig.disk.create(1, 0)
    await rig.node.stop()
    await until(lambda: rig.disk.state is DiskState.SUSPECT)
    assert "is away" in rig.disk.reason
    connected = rig.seen._pool.connected
    for call in (
        rig.disk.append(1, 0, 0, [b"abc"], sync=True),
        rig.disk.create(2, 0),
        whole(rig.disk),
        rig.disk.log_append("a", 0, b"x"),
        rig.disk.verify(),
        rig.disk.usage(),
    ):
        with pytest.raises(DiskFailed, match="away"):
            await call
    assert rig.seen._pool.connected == connected, "a call was tried on a node that does not answer"
    await rig.node.start()
    await until(lambda: rig.disk.state is DiskState.HEALTHY)
    assert rig.disk.reason == ""
    await rig.disk.append(1, 0, 0, [b"abc"], sync=True)
    assert await whole(rig.disk) == b"abc"


# Slow, and silent.


async def test_a_black_hole_costs_one_deadline_and_then_nothing_until_it_answers_again(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await rig.see(poll_s=0.05, limit_s=600.0, read_limit_s=600.0)
    patient = rig.seen.options
    rig.seen.options = replace(patient, poll_limit_s=0.3)
    rig.proxy.swallow()
    calls = [
        asyncio.ensure_future(call)
        for call in (rig.disk.append(1, 0, 0, [b"abc"], sync=True), whole(rig.disk), rig.disk.usage())
    ]
    # Their own deadlines are ten minutes: it is the poll's that ends them.
    for failure in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(failure, DiskFailed)
    assert rig.seen.away
    passed = list(rig.proxy.passed)
    with pytest.raises(DiskFailed, match="away"):
        await whole(rig.disk)
    assert rig.disk.state is DiskState.SUSPECT
    assert rig.proxy.passed == passed
    rig.seen.options = patient
    rig.proxy.open()
    await until(lambda: not rig.seen.away)
    # What it did with the append nobody knows: no more writes to this disk before it is verified.
    assert rig.disk.state is DiskState.SUSPECT
    with pytest.raises(DiskFailed, match="suspect"):
        await rig.disk.append(1, 0, 0, [b"abc"], sync=True)
    await rig.disk.verify()
    assert rig.disk.state is DiskState.HEALTHY


async def test_without_polls_a_black_hole_is_found_by_the_calls_own_deadline(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await rig.see(read_limit_s=0.3)
    rig.proxy.swallow()
    with pytest.raises(DiskFailed):
        await whole(rig.disk)
    with pytest.raises(DiskFailed, match="away"):
        await rig.disk.usage()


async def test_a_peer_that_trickles_is_ejected_though_it_never_stops_and_comes_back_when_it_flows(
    rig: Rig,
) -> None:
    content = os.urandom(512 * 1024)
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [content], sync=True)
    # A poll's 500 bytes pass in time, the half MiB within 2.5 s does not.
    await rig.see(poll_s=0.05, poll_limit_s=2.0, read_limit_s=2.0)
    rig.proxy.rate = 20_000
    with pytest.raises(DiskFailed, match="took longer"):
        await whole(rig.disk)
    assert rig.disk.state is DiskState.SUSPECT
    ejections = rig.seen.ejections
    await asyncio.sleep(0.5)  # Ten polls.
    assert rig.seen.away, "it answers polls, but a probe of some size would not come in time"
    rig.proxy.rate = 0
    rig.proxy.reset()
    await until(lambda: not rig.seen.away)
    assert rig.seen.ejections == ejections
    assert await whole(rig.disk) == content


async def test_a_peer_that_takes_an_append_by_the_drop_is_ejected_too(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await rig.see(limit_s=0.5)
    rig.proxy.rate = 20_000
    # More than the sockets on the way hold.
    with pytest.raises(DiskFailed):
        await rig.disk.append(1, 0, 0, [os.urandom(14 << 20)], sync=True)
    assert rig.disk.state is DiskState.SUSPECT


async def test_a_hung_disk_holds_up_no_other_disk_of_its_node(tmp_path: Path) -> None:
    hanging = FaultySyscalls()
    node = Node({1: formatted(tmp_path / "1", 1), 2: formatted(tmp_path / "2", 2)})
    await node.start()
    node.disks[1].close()
    node.disks[1] = open_disk(str(tmp_path / "1"), options=DiskOptions(low_water=0), sys=hanging)
    seen = node.seen(options=SELDOM)
    one, two = disks_of(seen, 1, 2)
    for disk in (one, two):
        await disk.create(1, 0)
    hanging.hang("pwritev")
    requests = node.server.requests
    slow = asyncio.ensure_future(one.append(1, 0, 0, [b"abc"], sync=True))
    quick = asyncio.ensure_future(two.append(1, 0, 0, [b"abc"], sync=True))
    await quick
    assert not slow.done(), "the answer came in two parts"
    assert node.server.requests == requests + 1
    (call,) = threads._ends[asyncio.get_running_loop()]._calls
    call.deadline = 0.0  # The time of the one that hangs is over.
    with pytest.raises(DiskFailed, match="took longer than"):
        await slow
    assert one.state is DiskState.SUSPECT
    assert two.state is DiskState.HEALTHY
    assert not seen.away
    hanging.release()
    seen.close()
    await node.stop()


async def test_one_disk_that_misses_every_deadline_does_not_take_its_node_with_it(rig: Rig) -> None:
    """The node would say so itself, after its disk's own limit; here that is longer than the gateway's."""
    await rig.disk.create(1, 0)
    await rig.see(limit_s=0.2, margin_s=0.1, poll_s=0.05)
    rig.sys.hang("pwritev")
    with pytest.raises(DiskFailed):
        await rig.disk.append(1, 0, 0, [b"abc"], sync=True)
    assert not rig.seen.away
    assert rig.disk.state is DiskState.SUSPECT
    assert await whole(rig.disk) == b""


async def test_a_gateway_that_is_slow_to_send_or_to_take_ends_only_itself(tmp_path: Path) -> None:
    from objstore.node.server import NodeLimits

    node = Node({1: formatted(tmp_path / "1")}, limits=NodeLimits(transfer_s=0.2))
    await node.start()
    seen = node.seen()
    (disk,) = disks_of(seen, 1)
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [bytes(4 << 20)], sync=True)
    head = f"HTTP/1.1\r\nHost: x\r\nX-Cluster: {'63' * 16}\r\nX-Epoch: 0\r\n"
    # A body that does not come.
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(f"POST /v1/write {head}Content-Length: 100\r\n\r\nabc".encode())
    assert await reader.read() == b""
    # Answers that nobody takes: the node's memory for them is not held for ever.
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port, limit=1024)
    for _ in range(8):
        writer.write(f"GET /v1/disks/1/read?volume=1&index=0&at=0&size={4 << 20} {head}\r\n".encode())
    await until(lambda: node.server._memory._free < node.server.limits.memory)
    await until(lambda: node.server._memory._free == node.server.limits.memory)
    assert len(await whole(disk, 4 << 20)) == 4 << 20
    seen.close()
    await node.stop()


# Cancelled.


async def test_a_cancelled_read_writes_into_its_buffers_no_more(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [b"x" * 200_000], sync=True)
    await rig.see()
    rig.proxy.swallow()
    buffer = bytearray(200_000)
    reading = asyncio.ensure_future(rig.disk.read(1, 0, 0, [memoryview(buffer)]))
    await until(lambda: bool(rig.seen._pool._busy))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    rig.proxy.open()
    assert await whole(rig.disk) == b"x" * 200_000
    assert buffer == bytes(200_000)
    assert rig.seen._pool.open <= 2


async def test_a_cancelled_append_is_done_or_not_and_the_others_of_its_turn_are_not_cancelled(
    rig: Rig,
) -> None:
    for volume in (1, 2):
        await rig.disk.create(volume, 0)
    one = asyncio.ensure_future(rig.disk.append(1, 0, 0, [b"abc"], sync=True))
    two = asyncio.ensure_future(rig.disk.append(2, 0, 0, [b"abc"], sync=True))
    await asyncio.sleep(0)
    one.cancel()
    await two
    assert one.cancelled()
    assert rig.held("fragments/02/2.0") == b"abc"


# Bounds.


async def test_connections_to_a_node_and_those_who_wait_for_one_are_bounded(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    rig.seen.close()
    rig.seen = rig.node.seen(
        port=rig.proxy.port, options=SELDOM, limits=PoolLimits(connections=2, queue=3, connect_s=5.0)
    )
    (rig.disk,) = disks_of(rig.seen, 1)
    await rig.seen.start()
    rig.proxy.swallow()
    reads = [asyncio.ensure_future(whole(rig.disk)) for _ in range(5)]
    await until(lambda: len(rig.seen._pool._waiting) == 3)
    with pytest.raises(Overloaded):
        await whole(rig.disk)
    rig.proxy.open()
    assert await asyncio.gather(*reads) == [b""] * 5
    assert rig.seen._pool.open == 2


async def test_a_pool_whose_connections_are_all_lost_serves_those_who_wait(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [b"abc"], sync=True)
    rig.seen.close()
    rig.seen = rig.node.seen(port=rig.proxy.port, options=SELDOM, limits=PoolLimits(connections=2))
    (rig.disk,) = disks_of(rig.seen, 1)
    await rig.seen.start()
    rig.proxy.swallow()
    reads = [asyncio.ensure_future(whole(rig.disk)) for _ in range(8)]
    await until(lambda: len(rig.seen._pool._waiting) == 6)
    rig.proxy.reset()
    rig.proxy.open()
    assert await asyncio.gather(*reads) == [b"abc"] * 8


async def test_disks_that_the_node_does_not_serve_or_serves_as_another_are_called_so(rig: Rig) -> None:
    await rig.disk.create(1, 0)
    rig.seen.close()
    rig.seen = rig.node.seen(port=rig.proxy.port, options=SELDOM)
    foreign = rig.seen.disk(1, uuid(7))
    missing = rig.seen.disk(9, uuid(9))
    rig.disk = foreign
    await rig.seen.start()
    assert foreign.state is DiskState.FOREIGN
    assert uuid(1).hex() in foreign.reason
    assert missing.state is DiskState.MISSING
    requests = rig.node.server.requests
    for call in (foreign.create(2, 0), foreign.append(1, 0, 0, [b"x"], sync=True), whole(foreign)):
        with pytest.raises(DiskMissing):
            await call
    assert rig.node.server.requests == requests
    with pytest.raises(DiskMissing, match="no disk 9"):
        await missing.usage()
    with pytest.raises(DiskMissing, match="no disk 9"):
        await missing.append(1, 0, 0, [b"x"], sync=True)
    assert rig.held() == b""


# Back, and unheard.


@pytest.fixture
def polls(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the node was asked how it is, from now on."""
    found: list[float] = []
    ask = RemoteNode._ask_state

    async def counted(node: RemoteNode, limit_s: float) -> NodeReport:
        found.append(asyncio.get_running_loop().time())
        return await ask(node, limit_s)

    monkeypatch.setattr(RemoteNode, "_ask_state", counted)
    return found


async def go_away(rig: Rig) -> None:
    """It refuses connections, and a call has found that out."""
    await rig.proxy.stop()
    with pytest.raises(NodeAway):
        await rig.disk.usage()


async def test_however_many_look_for_a_node_that_is_back_it_is_asked_once(
    rig: Rig, polls: list[float]
) -> None:
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [b"abc"], sync=True)
    await go_away(rig)
    await rig.proxy.start()
    with pytest.raises(NodeAway):
        await whole(rig.disk)  # The next poll is due in an hour.
    assert all(await asyncio.gather(*(rig.disk.look_again() for _ in range(1_000))))
    assert len(polls) == 1
    assert await whole(rig.disk) == b"abc"
    assert await rig.disk.look_again()
    assert len(polls) == 1, "a node that answers is not asked whether it does"


async def test_a_storm_of_looks_for_a_node_that_stays_away_is_few_questions(
    rig: Rig, polls: list[float]
) -> None:
    await go_away(rig)
    for _ in range(3):
        assert not any(await asyncio.gather(*(rig.disk.look_again() for _ in range(1_000))))
    assert len(polls) == 3
    assert min(after - before for before, after in itertools.pairwise(polls)) >= 0.9 * AGAIN_S


async def test_a_node_that_swallows_keeps_waiting_only_the_first_who_looks_for_it(
    rig: Rig, polls: list[float]
) -> None:
    """Each request that is refused would take the limit of a poll, and hold its place for as long."""
    await rig.see(read_limit_s=0.3, poll_limit_s=0.3)
    await until_true(rig.disk.look_again)
    rig.proxy.swallow()
    with pytest.raises(NodeAway):
        await whole(rig.disk)
    polls.clear()
    assert not await rig.disk.look_again()
    rig.seen._silent_until += 3_600.0  # As if that poll had taken an hour: this machine may stand still.
    for _ in range(3):
        assert not await rig.disk.look_again()
    assert len(polls) == 1
    rig.proxy.reset()
    rig.proxy.open()
    assert not await rig.disk.look_again()
    rig.seen._silent_until -= 3_600.0
    await until_true(rig.disk.look_again)
    assert rig.seen._silent_until == 0.0


async def test_a_node_that_takes_no_connection_keeps_waiting_only_the_first_as_well(
    rig: Rig, polls: list[float]
) -> None:
    async def unheard(*_: object) -> Any:
        await asyncio.Event().wait()

    rig.seen.close()
    rig.seen = rig.node.seen(options=SELDOM, limits=PoolLimits(connect_s=0.05), connect=unheard)
    await rig.seen.start()
    rig.seen._silent_until += 3_600.0
    assert not await rig.seen.look_again()
    assert len(polls) == 1


async def test_who_looks_while_a_poll_is_under_way_hears_of_one_that_began_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one under way may have gone out before the node was back."""
    await go_away(rig)
    ask, asked, answered = RemoteNode._ask_state, 0, asyncio.Event()

    async def late(node: RemoteNode, limit_s: float) -> NodeReport:
        nonlocal asked
        asked += 1
        if asked == 1:
            await answered.wait()
            raise Unreachable("it was not back")
        return await ask(node, limit_s)

    monkeypatch.setattr(RemoteNode, "_ask_state", late)
    first = asyncio.ensure_future(rig.disk.look_again())
    await until(lambda: asked == 1)
    await rig.proxy.start()
    second = asyncio.ensure_future(rig.disk.look_again())
    await asyncio.sleep(0)
    answered.set()
    assert not await first
    assert await second
    assert asked == 2


async def test_a_node_that_is_closed_keeps_nobody_waiting_who_looks_for_it(rig: Rig) -> None:
    await go_away(rig)
    looks = [asyncio.ensure_future(rig.disk.look_again()) for _ in range(3)]
    await asyncio.sleep(0)
    rig.seen.close()
    assert await asyncio.gather(*looks) == [False] * 3
    assert not await rig.disk.look_again()


async def test_a_look_that_is_cancelled_takes_no_other_along(rig: Rig) -> None:
    await go_away(rig)
    await rig.proxy.start()
    looks = [asyncio.ensure_future(rig.disk.look_again()) for _ in range(2)]
    await asyncio.sleep(0)
    looks[0].cancel()
    assert await looks[1]
    assert looks[0].cancelled()


async def test_a_node_that_was_slow_is_tried_before_its_time_when_something_fails_without_it(
    rig: Rig,
) -> None:
    content = os.urandom(512 * 1024)
    await rig.disk.create(1, 0)
    await rig.disk.append(1, 0, 0, [content], sync=True)
    await rig.see(read_limit_s=0.3)
    rig.proxy.swallow()
    with pytest.raises(NodeAway):
        await whole(rig.disk)
    rig.proxy.reset()
    rig.proxy.open()
    assert rig.seen._back_at > asyncio.get_running_loop().time(), "not for a while"
    await until_true(rig.disk.look_again)
    assert await whole(rig.disk) == content
