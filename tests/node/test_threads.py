"""Synced appends as one group: what wakes the loop, and what a call that hangs withholds from the others."""

import asyncio
import errno
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from objstore.errors import DiskFailed
from objstore.node import threads
from objstore.node.disk import DiskState
from objstore.node.identity import make_identity
from objstore.node.local import DiskOptions, LocalDisk, format_disk, open_disk
from objstore.node.syscalls import RealSyscalls
from tests.sim.faulty_syscalls import FaultySyscalls
from tests.waiting import until

COUNT = 4


@pytest.fixture
def sys() -> FaultySyscalls:
    return FaultySyscalls()


def make_disk(path: Path, sys: FaultySyscalls, number: int, **options: Any) -> LocalDisk:
    identity = make_identity(cluster=b"c" * 16, uuid=bytes([number]) * 16, number=number, checksum_secret=77)
    format_disk(str(path), identity)
    return open_disk(str(path), options=DiskOptions(low_water=0, **options), sys=cast(Any, sys))


@pytest.fixture
async def disks(tmp_path: Path, sys: FaultySyscalls) -> AsyncIterator[list[LocalDisk]]:
    made = [make_disk(tmp_path / str(number), sys, number) for number in range(1, COUNT + 1)]
    for disk in made:
        await disk.create(1, 0)
        await disk.create(2, 0)
        await disk.usage()  # No look around meets what is meant for an append.
    yield made
    sys.release()
    for disk in made:
        disk.close()


def appends(disks: list[LocalDisk], volume: int, offset: int = 0) -> "list[asyncio.Future[None]]":
    return [asyncio.ensure_future(disk.append(volume, 0, offset, [b"abc"], sync=True)) for disk in disks]


async def test_the_loop_is_woken_once_for_all_appends_of_a_stripe(
    disks: list[LocalDisk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TICK_S", 3600.0)
    woken: list[int] = []
    deliver = threads._Ends._deliver_group

    def counted(self: Any, group: Any) -> None:
        woken.append(len(group.ended) - group.delivered)
        deliver(self, group)

    monkeypatch.setattr(threads._Ends, "_deliver_group", counted)
    await asyncio.gather(*appends(disks, 1))
    assert [count for count in woken if count] == [COUNT]


async def test_appends_of_another_volume_do_not_wait_for_a_stripe_that_hangs(
    disks: list[LocalDisk], sys: FaultySyscalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TICK_S", 3600.0)
    sys.hang("pwritev")
    first = appends(disks[:1], 1)
    await until(lambda: sys.calls["pwritev"])
    second = appends(disks[1:], 1) + appends(disks[1:], 2)  # Volume 1 again: another turn, another group.
    async with asyncio.timeout(60):
        await asyncio.gather(*second)
    assert not first[0].done()
    sys.release()
    await first[0]


async def test_what_has_ended_beside_a_call_that_hangs_is_told_long_before_its_deadline(
    disks: list[LocalDisk], sys: FaultySyscalls
) -> None:
    sys.hang("pwritev")
    started = appends(disks, 1)
    await until(lambda: sum(append.done() for append in started) == COUNT - 1)
    assert not any(disk.hung for disk in disks)
    sys.release()
    await asyncio.gather(*started)


async def test_an_overdue_append_leaves_the_others_of_its_stripe_as_they_are(
    tmp_path: Path, sys: FaultySyscalls
) -> None:
    made = [make_disk(tmp_path / str(number), sys, number) for number in (1, 2)]
    for disk in made:
        await disk.create(1, 0)
        await disk.usage()
    sys.hang("pwritev")
    started = appends(made, 1)
    await until(lambda: sum(append.done() for append in started) == 1)
    (hanging,) = threads._ends[asyncio.get_running_loop()]._calls
    hanging.deadline = 0.0  # Its time is over.
    outcomes = await asyncio.gather(*started, return_exceptions=True)
    late = [disk for disk in made if disk.state is DiskState.SUSPECT]
    assert len(late) == 1
    assert sorted(map(type, outcomes), key=str) == [type(None), DiskFailed]
    assert late[0].hung == 1
    sys.release()
    await until(lambda: not late[0].hung)
    await late[0].verify()
    for disk in made:
        disk.close()


async def test_an_append_that_is_overdue_in_the_queue_is_not_written_any_more(
    tmp_path: Path, sys: FaultySyscalls
) -> None:
    disk = make_disk(tmp_path / "one", sys, 1, write_threads=1)
    await disk.create(1, 0)
    await disk.create(2, 0)
    await disk.usage()
    disk.options = replace(disk.options, limit_s=0.2)
    sys.hang("pwritev")
    started = appends([disk], 1) + appends([disk], 2)
    outcomes = await asyncio.gather(*started, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DiskFailed, DiskFailed]
    sys.release()
    await until(lambda: not disk.hung)
    assert sys.calls["pwritev"] == 1
    disk.close()


async def test_a_failed_sync_is_judged_even_when_its_caller_has_gone(
    disks: list[LocalDisk], sys: FaultySyscalls
) -> None:
    sys.fail("pwritev", errno.EIO, times=1)
    (append,) = appends(disks[:1], 1)
    append.cancel()
    await until(lambda: disks[0].state is DiskState.SUSPECT)


async def test_an_append_that_has_ended_keeps_none_of_its_bytes(tmp_path: Path) -> None:
    class Bytes(bytearray):
        pass

    disk = make_disk(tmp_path / "one", cast(Any, RealSyscalls()), 1)
    await disk.create(1, 0)
    body = Bytes(b"abc")
    gone = weakref.ref(body)
    gc.disable()  # Not even until the collector comes round: it is some MiB a second.
    try:
        await disk.append(1, 0, 0, [body], sync=True)
        del body
        await until(lambda: gone() is None)
    finally:
        gc.enable()
    disk.close()
