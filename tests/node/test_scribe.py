"""What is particular to appends by the scribe; all that holds for both ways is in test_local_disk.py."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from objstore.errors import DiskFailed
from objstore.node import local, scribe
from objstore.node.aio import Aio, probe
from objstore.node.disk import DiskState
from objstore.node.identity import make_identity
from objstore.node.local import DiskOptions, LocalDisk, format_disk, open_disk
from objstore.node.syscalls import RealSyscalls
from tests.sim.faulty_syscalls import FaultySyscalls, ThreadedSyncs


def make_disk(path: Path, sys: object, number: int = 1, **options: float) -> LocalDisk:
    one = make_identity(cluster=b"c" * 16, uuid=bytes([number]) * 16, number=number, checksum_secret=77)
    format_disk(str(path), one)
    return open_disk(str(path), options=DiskOptions(low_water=0, **options), sys=sys)  # type: ignore[arg-type]


@pytest.fixture
def sys() -> FaultySyscalls:
    return FaultySyscalls(kernel_syncs=True)


@pytest.fixture
async def disk(tmp_path: Path, sys: FaultySyscalls) -> AsyncIterator[LocalDisk]:
    made = make_disk(tmp_path / "disk", sys)
    await made.create(1, 0)
    await made.usage()  # No look around meets what is meant for the append.
    yield made
    sys.release()
    made.close()


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_an_append_is_not_acknowledged_before_its_sync_has_ended(
    disk: LocalDisk, sys: FaultySyscalls, tmp_path: Path
) -> None:
    sys.hang("fdatasync")
    append = asyncio.ensure_future(disk.append(1, 0, 0, [b"ab", b"c"], sync=True))
    await until(lambda: sys.calls["fdatasync"])
    assert (tmp_path / "disk/fragments/01/1.0").read_bytes() == b"abc"
    assert not append.done()
    sys.release()
    await append
    assert [name for name, _ in sys.trace if name in ("pwritev", "fdatasync")] == ["pwritev", "fdatasync"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
async def test_a_failed_sync_makes_the_disk_suspect_and_nothing_is_written_any_more(
    disk: LocalDisk, sys: FaultySyscalls, number: int
) -> None:
    sys.fail("fdatasync", number, times=1)
    with pytest.raises(DiskFailed):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    assert disk.state is DiskState.SUSPECT
    with pytest.raises(DiskFailed, match="suspect"):
        await disk.append(1, 0, 3, [b"def"], sync=True)
    assert (sys.calls["pwritev"], sys.calls["fdatasync"]) == (1, 1)
    assert disk._files[1, 0].dirty


async def test_a_failed_sync_is_judged_even_when_its_caller_has_gone(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    sys.fail("fdatasync", errno.EIO, times=1)
    append = asyncio.ensure_future(disk.append(1, 0, 0, [b"abc"], sync=True))
    append.cancel()
    await until(lambda: disk.state is DiskState.SUSPECT)


async def test_an_overdue_sync_makes_the_disk_suspect_until_it_is_back_and_verified(
    tmp_path: Path, sys: FaultySyscalls
) -> None:
    disk = make_disk(tmp_path / "disk", sys, limit_s=0.2)
    await disk.create(1, 0)
    fd = disk._files[1, 0].fd
    sys.hang("fdatasync")
    with pytest.raises(DiskFailed, match=r"append took longer than 0\.2 s"):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    with pytest.raises(DiskFailed, match="still hang"):
        await disk.verify()
    disk._forget(1, 0)
    os.fstat(fd)  # Raises if it was closed: the kernel still syncs it.
    sys.release()
    await until(lambda: not disk.hung)
    await until(lambda: ("close", (fd,)) in sys.trace)
    await disk.verify()
    assert disk.state is DiskState.HEALTHY
    disk.close()


async def test_a_disk_that_hangs_in_a_write_does_not_hold_up_the_others(tmp_path: Path) -> None:
    sys = FaultySyscalls(kernel_syncs=True)
    disks = [make_disk(tmp_path / f"disk{number}", sys, number) for number in range(1, 6)]
    for disk in disks:
        await disk.create(1, 0)
        await disk.usage()
    sys.hang("pwritev")
    sys.hang("pwritev")
    appends = [asyncio.ensure_future(disk.append(1, 0, 0, [b"abc"], sync=True)) for disk in disks]
    async with asyncio.timeout(20):
        await asyncio.gather(*appends[2:])
    assert not any(append.done() for append in appends[:2])
    # And the next ones, which find every scribe so far in a call that hangs or idle.
    async with asyncio.timeout(20):
        await asyncio.gather(*(disk.append(1, 0, 3, [b"def"], sync=True) for disk in disks[2:]))
    sys.release()
    await asyncio.gather(*appends)
    for disk in disks:
        disk.close()


async def test_a_disks_second_append_goes_to_its_own_threads_while_its_first_hangs(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(2, 0)
    sys.hang("fdatasync")
    first = asyncio.ensure_future(disk.append(1, 0, 0, [b"abc"], sync=True))
    await until(lambda: sys.calls["fdatasync"])
    async with asyncio.timeout(20):
        await disk.append(2, 0, 0, [b"def"], sync=True)
    assert not first.done()
    assert [arguments[3] for name, arguments in sys.trace if name == "pwritev"] == [0, os.RWF_DSYNC]
    sys.release()
    await first


async def test_a_disk_whose_writes_wait_for_it_writes_in_its_own_threads_for_a_while(
    disk: LocalDisk, sys: FaultySyscalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SCRIBE_WRITE_S", 0.0)
    monkeypatch.setattr(local, "SCRIBE_REST_S", 3600.0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    await disk.append(1, 0, 3, [b"def"], sync=True)
    assert [arguments[3] for name, arguments in sys.trace if name == "pwritev"] == [0, os.RWF_DSYNC]


async def test_a_kernel_that_takes_no_more_syncs_leaves_them_to_the_disks_threads(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    taker = ThreadedSyncs(sys)
    taker.takes_max = 0
    disk._loop, disk._scribe = (loop := asyncio.get_running_loop()), scribe.Scribe(loop, taker)
    disk._scribe.join()
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    assert sys.calls["fdatasync"] == 1
    assert not disk._files[1, 0].dirty
    sys.fail("fdatasync", errno.EIO, times=1)
    with pytest.raises(DiskFailed):
        await disk.append(1, 0, 3, [b"def"], sync=True)
    assert disk.state is DiskState.SUSPECT


async def test_what_is_overdue_before_it_began_is_not_written_any_more(
    tmp_path: Path, sys: FaultySyscalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe.Scribe, "_tick", lambda self: None)  # Nobody comes to help.
    disk, other = make_disk(tmp_path / "1", sys), make_disk(tmp_path / "2", sys, 2)
    for one in disk, other:
        await one.create(1, 0)
        await one.usage()
    sys.hang("pwritev")
    first = asyncio.ensure_future(disk.append(1, 0, 0, [b"abc"], sync=True))
    second = asyncio.ensure_future(other.append(1, 0, 0, [b"abc"], sync=True))
    await until(lambda: sys.calls["pwritev"])
    assert disk._scribe is not None
    (call,) = disk._scribe._waiting
    call.late = True
    call.expired()
    with pytest.raises(DiskFailed, match="longer"):
        await second
    sys.release()
    await first
    await until(lambda: not other.hung)
    assert sys.calls["pwritev"] == 1
    assert other.state is DiskState.SUSPECT
    disk.close()
    other.close()


async def test_the_last_disk_that_is_closed_ends_the_scribe(tmp_path: Path) -> None:
    disks = [make_disk(tmp_path / str(number), RealSyscalls(), number) for number in (1, 2)]
    for disk in disks:
        await disk.create(1, 0)
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    loop = asyncio.get_running_loop()
    assert scribe.scribe_of(loop) is disks[0]._scribe is disks[1]._scribe is not None
    disks[0].close()
    assert loop in scribe._scribes
    disks[1].close()
    assert loop not in scribe._scribes
    await until(lambda: not any(one.name.startswith("scribe") for one in threading.enumerate()))


def test_the_kernel_syncs_files_by_itself_and_says_which_have_ended(tmp_path: Path) -> None:
    assert probe() == ""
    aio = Aio()
    files = [os.open(tmp_path / str(number), os.O_CREAT | os.O_RDWR) for number in range(3)]
    for fd in files:
        os.write(fd, b"x")
    assert aio.submit([(7 + number, fd) for number, fd in enumerate(files)]) == 3
    ended: list[tuple[int, int]] = []
    while len(ended) < 3:
        os.eventfd_write(aio.descriptor, 0)
        ended += aio.ended()
    assert sorted(ended) == [(7, 0), (8, 0), (9, 0)]
    reader, writer = os.pipe()  # Cannot be synced: refused at once, as a kernel without the command would.
    assert aio.submit([(1, writer)]) == 0
    for fd in [*files, reader, writer]:
        os.close(fd)
    aio.close()


def test_a_kernel_that_refuses_is_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    assert probe() == "the kernel does not offer it: not known on pdp11"
