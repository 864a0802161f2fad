"""What a local disk promises, on a real file system, with system calls that fail where the test says."""

import asyncio
import dataclasses
import errno
import os
import shutil
import subprocess
import sys as system
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from objstore.errors import (
    Corrupt,
    Denied,
    DiskFailed,
    DiskFull,
    DiskMissing,
    Overloaded,
    Unavailable,
)
from objstore.node import local
from objstore.node.disk import Disk, DiskState
from objstore.node.identity import IDENTITY_NAME, make_identity, read_identity
from objstore.node.local import DiskOptions, Expected, LocalDisk, format_disk, lock_disk, open_disk
from objstore.node.syscalls import RealSyscalls
from tests.sim.faulty_syscalls import FaultySyscalls, SmallDisk
from tests.sim.replacing import replace
from tests.waiting import until

CLUSTER = b"c" * 16
OPTIONS = DiskOptions(low_water=0)


def identity(number: int = 1, cluster: bytes = CLUSTER):  # type: ignore[no-untyped-def]
    return make_identity(cluster=cluster, uuid=bytes([number]) * 16, number=number, checksum_secret=77)


def expected(number: int = 1) -> Expected:
    return Expected(CLUSTER, bytes([number]) * 16, number)


@pytest.fixture
def sys() -> FaultySyscalls:
    return FaultySyscalls()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    format_disk(str(tmp_path / "disk"), identity())
    return tmp_path / "disk"


@pytest.fixture
async def disk(path: Path, sys: FaultySyscalls) -> AsyncIterator[LocalDisk]:
    opened = open_disk(str(path), options=OPTIONS, sys=sys)
    yield opened
    sys.release()
    opened.close()


async def whole(disk: Disk, volume: int, index: int, size: int = 1 << 20) -> bytes:
    buffer = bytearray(size)
    count = await disk.read(volume, index, 0, [memoryview(buffer)])
    return bytes(buffer[:count])


async def settled(disk: LocalDisk) -> None:
    """Wait for the look around that runs beside other calls."""
    if disk._look_task is not None:
        await disk._look_task


# Fragment files.


async def test_what_is_appended_is_read_across_buffers(disk: LocalDisk) -> None:
    await disk.create(258, 3)
    await disk.append(258, 3, 0, [b"abc", bytearray(b"def"), memoryview(b"xghi")[1:]], sync=True)
    await disk.append(258, 3, 9, [b"jkl"], sync=False)
    await disk.sync(258, 3)
    first, second = bytearray(4), bytearray(20)
    assert await disk.read(258, 3, 2, [memoryview(first), memoryview(second)]) == 10
    assert first + second[:6] == b"cdefghijkl"


async def test_a_fragment_file_lies_where_the_layout_says(disk: LocalDisk, path: Path) -> None:
    await disk.create(258, 3)
    assert (path / "fragments/02/258.3").is_file()
    assert (path / "fragments/02/258.3").stat().st_mode & 0o777 == 0o600


async def test_more_buffers_than_the_kernel_takes_at_once_are_written_and_read(disk: LocalDisk) -> None:
    pieces = [os.urandom(1 + number % 7) for number in range(3000)]
    await disk.create(1, 0)
    await disk.append(1, 0, 0, pieces, sync=True)
    read = [memoryview(bytearray(len(piece))) for piece in pieces]
    assert await disk.read(1, 0, 0, read) == sum(map(len, pieces))
    assert b"".join(read) == b"".join(pieces)


async def test_an_append_elsewhere_than_at_the_end_is_a_bug_of_the_caller(disk: LocalDisk) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    for offset in (0, 2, 4):
        with pytest.raises(AssertionError, match="the file ends at 3"):
            await disk.append(1, 0, offset, [b"x"], sync=True)


async def test_ids_are_never_reused(disk: LocalDisk) -> None:
    await disk.create(1, 0)
    with pytest.raises(FileExistsError):
        await disk.create(1, 0)


async def test_a_missing_fragment_file_is_named_as_that_and_not_as_a_missing_disk(disk: LocalDisk) -> None:
    with pytest.raises(FileNotFoundError):
        await whole(disk, 1, 0)
    assert disk.state is DiskState.HEALTHY


async def test_a_synced_append_makes_one_call_to_the_kernel_after_the_file_is_clean(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"a"], sync=True)
    assert sys.calls["fdatasync"] == 0
    assert [arguments[3] for name, arguments in sys.trace if name == "pwritev"] == [os.RWF_DSYNC]
    # After an unsynced append the whole file has to be synced, not only the new range.
    await disk.append(1, 0, 1, [b"b"], sync=False)
    await disk.append(1, 0, 2, [b"c"], sync=True)
    assert sys.calls["fdatasync"] == 1
    assert await whole(disk, 1, 0) == b"abc"


async def test_a_kernel_without_synced_writes_gets_two_calls(disk: LocalDisk, sys: FaultySyscalls) -> None:
    await disk.create(1, 0)
    sys.fail("pwritev", errno.EOPNOTSUPP, times=1)
    await disk.append(1, 0, 0, [b"a"], sync=True)
    await disk.append(1, 0, 1, [b"b"], sync=True)
    assert sys.calls["fdatasync"] == 2
    assert await whole(disk, 1, 0) == b"ab"
    assert disk.state is DiskState.HEALTHY


async def test_bulk_appends_start_their_write_back_and_preallocate_nothing(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    piece = bytes(3 << 20)
    for number in range(6):
        await disk.append(1, 0, number * len(piece), [piece], sync=False)
    await disk.sync(1, 0)
    ranges = [arguments[1:] for name, arguments in sys.trace if name == "write_behind"]
    assert ranges == [(0, 9 << 20), (9 << 20, 9 << 20)]
    assert sys.calls["preallocate"] == 0


async def test_the_page_cache_forgets_bulk_appends_whose_writing_began_a_while_ago(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    piece = bytes(8 << 20)
    for number in range(4):
        await disk.append(1, 0, number * len(piece), [piece], sync=False)
    await disk.sync(1, 0)
    ranges = [arguments[1:] for name, arguments in sys.trace if name == "drop_cache"]
    assert ranges == [(0, 8 << 20), (8 << 20, 8 << 20)]
    sys.fail("drop_cache", errno.EINVAL, times=1)
    await disk.append(1, 0, 4 * len(piece), [piece], sync=False)
    assert disk.state is DiskState.HEALTHY


async def test_space_preallocated_ahead_is_given_back_when_the_file_is_sealed(
    disk: LocalDisk, path: Path
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"x" * 5000], sync=True)
    file = path / "fragments/01/1.0"
    assert file.stat().st_size == 5000
    assert 5000 <= file.stat().st_blocks * 512 <= (1 << 20) + 16384
    await disk.seal(1, 0, 5000)
    assert file.stat().st_size == 5000
    assert file.stat().st_blocks * 512 <= 16384


async def test_a_seal_cuts_what_lies_beyond_the_length_and_adds_no_zeros(disk: LocalDisk) -> None:
    for volume, length in ((1, 4), (2, 100)):
        await disk.create(volume, 0)
        await disk.append(volume, 0, 0, [b"abcdefgh"], sync=True)
        await disk.seal(volume, 0, length)
        assert await whole(disk, volume, 0) == b"abcdefgh"[:length]
    with pytest.raises(AssertionError, match="sealed"):
        await disk.append(1, 0, 4, [b"x"], sync=True)


async def test_a_replaced_file_is_what_every_reader_sees(disk: LocalDisk, path: Path) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"old"], sync=True)
    assert await whole(disk, 1, 0) == b"old"
    other = open_disk(str(path), options=OPTIONS)  # Another process's view, with the old file open.
    assert await whole(other, 1, 0) == b"old"
    await replace(disk, 1, 0, [b"new ", b"bytes"])
    await replace(disk, 2, 5, [b"a lost one"])
    assert await whole(disk, 1, 0) == b"new bytes"
    assert await whole(disk, 2, 5) == b"a lost one"
    await other.usage()  # Looks around: a file without a name is closed.
    assert await whole(other, 1, 0) == b"new bytes"
    assert list((path / "tmp").iterdir()) == []
    other.close()


async def test_a_failed_replacement_leaves_the_old_file_and_no_residue(
    disk: LocalDisk, path: Path, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"old"], sync=True)
    sys.fail("rename", errno.EIO)
    with pytest.raises(DiskFailed):
        await replace(disk, 1, 0, [b"new"])
    assert await whole(disk, 1, 0) == b"old"


async def test_a_replacement_is_unseen_until_it_is_published_and_gone_when_it_is_abandoned(
    disk: LocalDisk, path: Path
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"old"], sync=True)
    name = await disk.replace_begin(1, 0)
    await disk.replace_append(name, 0, [b"half of", b" it"])
    assert await whole(disk, 1, 0) == b"old"
    assert len(list((path / "tmp").iterdir())) == 1
    await disk.replace_abandon(name)
    await disk.replace_abandon(name)
    await until(lambda: not list((path / "tmp").iterdir()))
    assert await whole(disk, 1, 0) == b"old"


async def test_replacements_under_way_are_bounded(disk: LocalDisk) -> None:
    names = [await disk.replace_begin(volume, 0) for volume in range(local.REPLACING_MAX)]
    with pytest.raises(Overloaded):
        await disk.replace_begin(99, 0)
    for name in names:
        await disk.replace_abandon(name)
    assert await disk.fragment_files() == []
    await disk.replace_abandon(await disk.replace_begin(99, 0))


async def test_a_file_put_in_the_place_of_trash_is_no_trash(disk: LocalDisk, path: Path) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"a stale copy"], sync=True)
    await disk.retire(1, 0, 500)
    await replace(disk, 1, 0, [b"whole again"])
    assert await disk.fragment_files() == [(1, 0, 11, 0)]
    with pytest.raises(Denied):
        await disk.purge(1, 0, retired_before_us=10**17)
    await disk.retire(1, 0, 10**17)
    with pytest.raises(Denied):  # The grace begins anew.
        await disk.purge(1, 0, retired_before_us=10**16)


async def test_trash_stays_readable_until_it_is_purged_and_only_old_trash_is(disk: LocalDisk) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    with pytest.raises(Denied):
        await disk.purge(1, 0, retired_before_us=10**17)
    await disk.retire(1, 0, 500)
    await disk.retire(1, 0, 900)  # Again changes nothing: the grace began at the first.
    assert await disk.fragment_files() == [(1, 0, 3, 500)]
    assert await whole(disk, 1, 0) == b"abc"
    with pytest.raises(Denied):
        await disk.purge(1, 0, retired_before_us=500)
    await disk.purge(1, 0, retired_before_us=501)
    assert await disk.fragment_files() == []
    with pytest.raises(FileNotFoundError):
        await whole(disk, 1, 0)
    with pytest.raises(FileNotFoundError):
        await disk.retire(1, 0, 1000)


async def test_the_list_of_files_names_ours_and_leaves_others_alone(disk: LocalDisk, path: Path) -> None:
    for volume, index in ((1, 0), (257, 11), (2**63, 255)):
        await disk.create(volume, index)
    await disk.append(257, 11, 0, [b"abc"], sync=True)
    for name in ("note.txt", "1.0.bak", "01.0", "1.00", "x.0", "1.0.retired.x", "٣.0"):
        (path / "fragments/01" / name).write_text("an operator's")
    assert await disk.fragment_files() == [(1, 0, 0, 0), (257, 11, 3, 0), (2**63, 255, 0, 0)]


# Failures of writes and syncs.


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EINVAL + 1000])
async def test_a_failed_write_makes_the_disk_suspect_until_it_is_verified(
    disk: LocalDisk, sys: FaultySyscalls, number: int
) -> None:
    await disk.create(1, 0)
    sys.fail("pwritev", number, times=1)
    with pytest.raises(DiskFailed):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    assert disk.state is DiskState.SUSPECT
    assert "append" in disk.reason
    writes = sys.calls["pwritev"]
    for call in (
        disk.create(2, 0),
        disk.append(1, 0, 0, [b"abc"], sync=True),
        disk.sync(1, 0),
        disk.seal(1, 0, 0),
        replace(disk, 3, 0, [b"x"]),
        disk.retire(1, 0, 5),
        disk.purge(1, 0, retired_before_us=9),
        disk.log_create("a"),
        disk.log_append("a", 0, b"x"),
        disk.log_remove("a"),
        disk.note_epoch(3),
    ):
        with pytest.raises(DiskFailed, match="suspect"):
            await call
    assert sys.calls["pwritev"] == writes
    assert await whole(disk, 1, 0) == b""  # Reads go on.
    await disk.verify()
    assert disk.state is DiskState.HEALTHY
    assert disk.reason == ""
    await disk.create(2, 0)


async def test_a_failed_sync_is_never_tried_again_on_the_same_bytes(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=False)
    sys.fail("fdatasync", errno.EIO, times=1)
    with pytest.raises(DiskFailed):
        await disk.sync(1, 0)
    with pytest.raises(DiskFailed, match="suspect"):
        await disk.sync(1, 0)
    assert sys.calls["fdatasync"] == 1


async def test_a_sync_that_finds_no_space_has_lost_bytes_and_is_no_mere_full_disk(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=False)
    sys.fail("fdatasync", errno.ENOSPC, times=1)
    with pytest.raises(DiskFailed):
        await disk.sync(1, 0)
    assert disk.state is DiskState.SUSPECT


@pytest.mark.parametrize("call", ["open", "fsync"])
async def test_a_file_that_could_not_be_made_durably_is_not_reported_as_made(
    disk: LocalDisk, sys: FaultySyscalls, call: str
) -> None:
    await disk.usage()  # So that no look around meets the failure instead.
    sys.fail(call, errno.EIO, times=1)
    with pytest.raises(DiskFailed):
        await disk.create(1, 0)
    assert disk.state is DiskState.SUSPECT


async def test_an_overdue_append_makes_the_disk_suspect_and_it_stays_so_while_the_call_hangs(
    path: Path, sys: FaultySyscalls
) -> None:
    disk = open_disk(str(path), options=OPTIONS, sys=sys)
    await disk.create(1, 0)
    await disk.create(2, 0)
    disk.options = dataclasses.replace(OPTIONS, limit_s=0.2)  # Now: it may take longer to make them.
    sys.hang("pwritev")
    with pytest.raises(DiskFailed, match=r"took longer than 0\.2 s"):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    assert disk.state is DiskState.SUSPECT
    with pytest.raises(DiskFailed, match="suspect"):
        await disk.append(2, 0, 0, [b"abc"], sync=True)
    with pytest.raises(DiskFailed, match="still hang"):
        await disk.verify()
    disk.options = OPTIONS
    assert await whole(disk, 2, 0) == b""  # The readers are threads of their own.
    sys.release()
    async with asyncio.timeout(60):
        while disk.hung:
            await asyncio.sleep(0.001)
    await disk.verify()
    assert disk.state is DiskState.HEALTHY
    disk.close()


async def test_the_journal_has_a_shorter_limit_than_data(path: Path, sys: FaultySyscalls) -> None:
    disk = open_disk(str(path), options=OPTIONS, sys=sys)
    await disk.log_create("epoch-1", b"head")
    disk.options = dataclasses.replace(OPTIONS, limit_s=30, log_limit_s=0.1)
    sys.hang("pwritev")
    with pytest.raises(DiskFailed, match=r"log_append took longer than 0\.1 s"):
        await disk.log_append("epoch-1", 4, b"x")
    assert disk.state is DiskState.SUSPECT
    sys.release()
    disk.close()


async def test_a_cancelled_append_keeps_its_file_open_until_the_kernel_is_done(
    path: Path, sys: FaultySyscalls
) -> None:
    disk = open_disk(str(path), options=OPTIONS, sys=sys)
    await disk.create(1, 0)
    await disk.usage()
    sys.hang("pwritev")
    fd = disk._files[1, 0].fd
    task = asyncio.ensure_future(disk.append(1, 0, 0, [b"abc"], sync=True))
    async with asyncio.timeout(60):
        while not sys.calls["pwritev"]:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    disk._forget(1, 0)
    before = len(sys.trace)
    os.fstat(fd)  # Raises if it was closed: another file could take its number.
    sys.release()
    async with asyncio.timeout(60):
        while ("close", (fd,)) not in sys.trace[before:]:
            await asyncio.sleep(0.001)
    assert (path / "fragments/01/1.0").read_bytes() == b"abc"
    disk.close()


async def test_a_read_only_file_system_and_a_vanished_device_are_called_by_their_names(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    sys.fail("pwritev", errno.EROFS, times=1)
    with pytest.raises(DiskFailed):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    assert disk.state is DiskState.READ_ONLY
    assert await whole(disk, 1, 0) == b""
    sys.fail("preadv", errno.ENODEV)
    with pytest.raises(DiskFailed):
        await whole(disk, 1, 0)
    assert disk.state is DiskState.FAILED
    sys.heal()
    with pytest.raises(DiskFailed, match="has failed"):
        await whole(disk, 1, 0)
    await disk.verify()
    assert await whole(disk, 1, 0) == b""


async def test_a_bad_sector_is_an_error_of_one_read_and_many_in_a_row_are_a_failed_disk(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    await settled(disk)  # It reads, too.
    sys.fail("preadv", errno.EIO)
    for _ in range(local.READ_FAILURES_MAX):
        assert disk.state is DiskState.HEALTHY
        with pytest.raises(DiskFailed):
            await whole(disk, 1, 0)
    assert disk.state is DiskState.FAILED
    with pytest.raises(DiskFailed):
        await disk.append(1, 0, 0, [b"abc"], sync=True)


# Space.


async def test_a_full_disk_keeps_no_half_record_and_works_again_when_space_is_freed(
    disk: LocalDisk, sys: FaultySyscalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "FULL_RETRY_S", 0.0)
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    await disk.usage()
    small = SmallDisk(sys, free=5)
    with pytest.raises(DiskFull):
        await disk.append(1, 0, 3, [b"0123456789"], sync=True)
    assert disk.state is DiskState.FULL
    assert await whole(disk, 1, 0) == b"abc"
    small.free = 1 << 30
    await disk.usage()
    assert disk.state is DiskState.HEALTHY
    await disk.append(1, 0, 3, [b"0123456789"], sync=True)
    assert await whole(disk, 1, 0) == b"abc0123456789"


async def test_who_only_asks_for_the_state_of_a_full_or_missing_disk_sees_it_recover(
    disk: LocalDisk, path: Path, sys: FaultySyscalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "FULL_RETRY_S", 0.0)
    await disk.create(1, 0)
    await settled(disk)
    sys.fail("pwritev", errno.ENOSPC, times=1)
    with pytest.raises(DiskFull):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    assert disk.state is DiskState.FULL
    await settled(disk)
    assert disk.state is DiskState.HEALTHY
    path.rename(path.with_name("away"))
    with pytest.raises(DiskMissing):
        await disk.create(2, 0)
    await settled(disk)
    path.with_name("away").rename(path)
    assert disk.state is DiskState.MISSING
    await settled(disk)
    assert disk.state is DiskState.SUSPECT


async def test_below_the_low_water_mark_data_is_refused_but_not_deletes_and_the_journal(path: Path) -> None:
    disk = open_disk(str(path), options=DiskOptions(low_water=0))
    await disk.create(1, 0)
    disk.close()
    free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
    disk = open_disk(str(path), options=DiskOptions(low_water=2 * free))
    await disk.usage()
    assert disk.state is DiskState.FULL
    assert "bytes free" in disk.reason
    with pytest.raises(DiskFull):
        await disk.create(2, 0)
    with pytest.raises(DiskFull):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    await disk.log_create("a", b"x")
    await disk.log_append("a", 1, b"y")
    await disk.note_epoch(4)
    await disk.retire(1, 0, 5)
    await disk.purge(1, 0, retired_before_us=6)
    disk.close()


async def test_usage_is_that_of_the_file_system(disk: LocalDisk, path: Path) -> None:
    usage = await disk.usage()
    assert usage.device == path.stat().st_dev
    assert 0 < usage.free <= usage.total


# Missing and foreign.


async def test_a_removed_disk_is_missing_and_suspect_when_it_is_back(disk: LocalDisk, path: Path) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    away = path.with_name("away")
    path.rename(away)
    path.mkdir()  # An empty mount point is never an empty disk.
    with pytest.raises(DiskMissing, match="not mounted, or removed"):
        await disk.create(2, 0)
    assert disk.state is DiskState.MISSING
    with pytest.raises(DiskMissing):
        await disk.append(1, 0, 3, [b"abc"], sync=True)
    with pytest.raises(DiskMissing):
        await disk.usage()
    assert list(path.iterdir()) == []
    path.rmdir()
    away.rename(path)
    disk._next_look = 0.0
    assert await whole(disk, 1, 0) == b"abc"  # Readable at once: every read is verified anyway.
    assert disk.state is DiskState.SUSPECT
    assert "missing" in disk.reason
    with pytest.raises(DiskFailed):
        await disk.append(1, 0, 3, [b"abc"], sync=True)
    await disk.verify()
    await disk.append(1, 0, 3, [b"def"], sync=True)


async def test_bytes_for_a_file_whose_directory_was_removed_are_not_acknowledged(
    disk: LocalDisk, path: Path
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    await disk.append(1, 0, 3, [b"abc"], sync=False)
    shutil.rmtree(path)
    with pytest.raises(DiskMissing):
        await disk.append(1, 0, 6, [b"abc"], sync=True)
    assert disk.state is DiskState.MISSING
    disk._absent = None
    with pytest.raises(DiskMissing):
        await disk.sync(1, 0)


async def test_a_single_removed_file_is_no_missing_disk(disk: LocalDisk, path: Path) -> None:
    await disk.create(1, 0)
    (path / "fragments/01/1.0").unlink()
    with pytest.raises(DiskFailed, match="removed while it was open"):
        await disk.append(1, 0, 0, [b"abc"], sync=True)
    assert disk.state is DiskState.HEALTHY


async def test_another_disk_at_the_path_is_foreign_and_never_written(
    disk: LocalDisk, path: Path, tmp_path: Path
) -> None:
    await disk.create(1, 0)
    path.rename(tmp_path / "away")
    format_disk(str(path), identity(2))
    before = (path / IDENTITY_NAME).read_bytes()
    with pytest.raises(DiskMissing, match=r"disk 2 .* is at its path"):
        await disk.note_epoch(9)
    assert disk.state is DiskState.FOREIGN
    for call in (disk.create(5, 0), disk.log_create("a"), whole(disk, 1, 0)):
        with pytest.raises(DiskMissing):
            await call
    assert (path / IDENTITY_NAME).read_bytes() == before


def test_a_disk_is_opened_in_the_state_it_is_found_in(path: Path, tmp_path: Path) -> None:
    def state(at: Path, number: int = 1) -> DiskState:
        return open_disk(str(at), expected=expected(number)).state

    assert state(path) is DiskState.HEALTHY
    assert state(path, number=2) is DiskState.FOREIGN
    assert state(tmp_path / "nowhere") is DiskState.MISSING
    (tmp_path / "empty").mkdir()
    assert state(tmp_path / "empty") is DiskState.MISSING
    with pytest.raises(DiskMissing, match="not mounted"):
        open_disk(str(tmp_path / "empty"))
    other = tmp_path / "other"
    format_disk(str(other), identity(1, b"d" * 16))
    assert state(other) is DiskState.FOREIGN
    data = bytearray((path / IDENTITY_NAME).read_bytes())
    data[data.index(b'"number": 1') + 10] ^= 2
    (path / IDENTITY_NAME).write_bytes(data)
    damaged = open_disk(str(path), expected=expected())
    assert damaged.state is DiskState.FAILED
    assert "checksum is wrong" in damaged.reason
    with pytest.raises(Corrupt):
        open_disk(str(path))


# Formatting and the identity.


def test_a_directory_that_holds_something_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DiskFailed, match=r"holds something else \(thesis\.tex\)"):
        format_disk(str(tmp_path), identity())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_disk_is_not_formatted_twice(path: Path) -> None:
    with pytest.raises(DiskFailed, match="is a disk already"):
        format_disk(str(path), identity(2))
    assert read_identity(str(path), RealSyscalls()).number == 1


@pytest.mark.parametrize("name", ["fragments/07/7.1", "logs/epoch-1", "meta/data.mdb"])
def test_data_whose_identity_file_was_lost_is_not_formatted_over(path: Path, name: str) -> None:
    (path / IDENTITY_NAME).unlink()
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("data")
    with pytest.raises(DiskFailed, match="without its identity"):
        format_disk(str(path), identity(2))


def test_an_empty_file_system_and_a_half_made_disk_are_formatted(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    for at in range(1, 1000):
        sys = FaultySyscalls()
        for name in ("mkdir", "open", "pwritev", "fdatasync", "rename", "fsync"):
            sys.fail(name, errno.EIO, at=at, times=1)
        try:
            format_disk(str(tmp_path), identity(), sys=sys)
        except DiskFailed as failure:
            if "already" in str(failure):
                break
    assert open_disk(str(tmp_path)).number == 1


def test_the_identity_file_is_private_and_its_secrets_are_not_shown(path: Path) -> None:
    assert (path / IDENTITY_NAME).stat().st_mode & 0o777 == 0o600
    made = make_identity(
        cluster=CLUSTER, uuid=b"u" * 16, number=1, checksum_secret=0xDEADBEEF, master_key=b"k" * 32
    )
    assert "deadbeef" not in repr(made)
    assert b"k".hex() * 32 not in repr(made)


async def test_the_epoch_is_kept_and_never_falls(disk: LocalDisk, path: Path) -> None:
    assert await disk.noted_epoch() == 0
    await disk.note_epoch(7)
    assert await disk.noted_epoch() == 7
    with pytest.raises(DiskFailed, match="epoch 7"):
        await disk.note_epoch(6)
    reopened = open_disk(str(path))
    assert reopened.identity is not None
    assert reopened.identity.epoch == 7
    assert reopened.identity.secret == 77


def test_a_flipped_bit_in_any_byte_of_an_identity_file_is_detected(path: Path) -> None:
    file = path / IDENTITY_NAME
    good = file.read_bytes()
    right = read_identity(str(path), RealSyscalls())
    for position in range(len(good)):
        rotten = bytearray(good)
        rotten[position] ^= 1
        file.write_bytes(rotten)
        try:
            assert read_identity(str(path), RealSyscalls()) == right  # White space may change.
        except Corrupt:
            continue


def test_a_locked_disk_is_refused_to_a_second_store_until_the_last_child_of_the_first_ends(
    path: Path,
) -> None:
    fd = lock_disk(str(path))
    child = subprocess.Popen(
        [system.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
    )
    os.close(fd)
    try:
        with pytest.raises(DiskFailed, match="in use by another store"):
            lock_disk(str(path), wait_s=0.05)
    finally:
        child.communicate(timeout=60)
    os.close(lock_disk(str(path), wait_s=60))
    with pytest.raises(DiskMissing):
        lock_disk(str(path / "nowhere"))


async def test_the_lock_survives_a_change_of_the_identity_file(disk: LocalDisk, path: Path) -> None:
    fd = disk.lock()
    await disk.note_epoch(5)  # Replaces the file by rename.
    with pytest.raises(DiskFailed, match="in use"):
        lock_disk(str(path))
    os.close(fd)


# Logs.


async def test_a_log_is_whole_or_not_there_and_grows_at_its_end(disk: LocalDisk, path: Path) -> None:
    await disk.log_create("epoch-1", b"head")
    await disk.log_append("epoch-1", 4, b" and more")
    assert await disk.log_read("epoch-1", 0, 1000) == b"head and more"
    assert await disk.log_read("epoch-1", 5, 3) == b"and"
    assert await disk.log_read("epoch-1", 500, 3) == b""
    with pytest.raises(AssertionError):
        await disk.log_append("epoch-1", 4, b"over")
    with pytest.raises(FileExistsError):
        await disk.log_create("epoch-1", b"")
    assert await disk.logs() == [("epoch-1", 13)]
    await disk.log_remove("epoch-1")
    assert await disk.logs() == []
    with pytest.raises(FileNotFoundError):
        await disk.log_read("epoch-1", 0, 1)
    with pytest.raises(FileNotFoundError):
        await disk.log_append("epoch-1", 13, b"x")
    assert list((path / "tmp").iterdir()) == []


async def test_a_large_log_is_written_in_pieces_that_each_have_the_deadline(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    content = os.urandom(local.PIECE_SIZE + 12_345)
    await disk.log_create("snapshot-1", content)
    assert await disk.log_read("snapshot-1", 0, len(content) + 1) == content
    assert sys.calls["pwritev"] == 2


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "A", "a b", "a\n", "a" * 101])
async def test_a_log_name_that_could_leave_its_directory_is_a_bug_of_the_caller(
    disk: LocalDisk, name: str
) -> None:
    for call in (disk.log_create(name), disk.log_read(name, 0, 1), disk.log_append(name, 0, b"x")):
        with pytest.raises(AssertionError):
            await call


# Bounds.


async def test_open_descriptors_are_bounded_and_a_dirty_file_is_not_closed(path: Path) -> None:
    disk = open_disk(str(path), options=DiskOptions(low_water=0, open_files_max=4))
    for volume in range(1, 21):
        await disk.create(volume, 0)
        if volume == 1:
            await disk.append(volume, 0, 0, [b"unsynced"], sync=False)
        assert len(disk._files) <= 4
    assert (1, 0) in disk._files
    await disk.sync(1, 0)
    for volume in range(1, 21):
        assert await whole(disk, volume, 0) == (b"unsynced" if volume == 1 else b"")
    assert len(disk._files) <= 4
    disk.close()


async def test_a_reader_that_opens_late_does_not_close_a_file_with_unsynced_bytes(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"synced "], sync=True)
    disk._forget(1, 0)  # As the cache does with a clean file.
    await disk.usage()  # Looks at the identity file now, and so not below.
    if disk._look_task is not None:
        await disk._look_task
    opened = sys.calls["open"]
    sys.hang("open")
    reading = asyncio.create_task(whole(disk, 1, 0))
    while sys.calls["open"] == opened:
        await asyncio.sleep(0.001)
    await disk.append(1, 0, 7, [b"and not"], sync=False)
    held = disk._files[1, 0]
    assert held.dirty
    sys.release()
    assert await reading == b"synced and not"
    assert disk._files[1, 0] is held, "its write-back error would be nobody's"
    assert not held.doomed


async def test_a_descriptor_closed_between_its_opening_and_its_use_is_opened_again(
    disk: LocalDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the call goes to whatever file has been given the descriptor's number meanwhile."""
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"abc"], sync=True)
    disk._forget(1, 0)
    keep = disk._keep
    kept = 0

    def keep_and_lose(volume: int, index: int, fd: int, *, writable: bool) -> object:
        nonlocal kept
        kept += 1
        file = keep(volume, index, fd, writable=writable)
        if kept == 1:
            disk._forget(volume, index)
        return file

    monkeypatch.setattr(disk, "_keep", keep_and_lose)
    await disk.append(1, 0, 3, [b"def"], sync=True)
    assert kept == 2
    assert await whole(disk, 1, 0) == b"abcdef"
    assert disk.state is DiskState.HEALTHY


async def test_calls_beyond_the_queue_are_turned_away_at_once(path: Path, sys: FaultySyscalls) -> None:
    disk = open_disk(str(path), options=DiskOptions(low_water=0, queue_max=3, write_threads=1), sys=sys)
    await disk.create(1, 0)
    await disk.usage()
    sys.hang("fstat")
    tasks = [asyncio.create_task(disk.sync(1, 0)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await disk.sync(1, 0)
    assert disk.state is DiskState.HEALTHY
    sys.release()
    await asyncio.gather(*tasks)
    disk.close()


async def test_too_many_open_files_of_the_process_is_not_the_disks_fault(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    await disk.usage()
    sys.fail("open", errno.EMFILE, times=2)
    with pytest.raises(Overloaded):
        await disk.create(1, 0)
    with pytest.raises(Overloaded):
        await whole(disk, 1, 0)
    assert disk.state is DiskState.HEALTHY


async def test_many_callers_that_open_one_file_at_once_share_a_descriptor(
    disk: LocalDisk, path: Path, sys: FaultySyscalls
) -> None:
    (path / "fragments/01/1.0").write_bytes(b"abc")
    opens = sys.calls["open"]
    assert await asyncio.gather(*(whole(disk, 1, 0) for _ in range(10))) == [b"abc"] * 10
    named = [arguments[0] for name, arguments in sys.trace[opens:] if name == "open"]
    assert sum(name.endswith("/1.0") for name in named) == 1


async def test_cached_bytes_are_read_without_a_thread(disk: LocalDisk) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"x" * 5000], sync=True)
    buffer = memoryview(bytearray(5000))
    assert await disk.read(1, 0, 0, [buffer]) == 5000
    assert disk.cached_reads == 1
    assert "read" not in disk.counts


async def test_bytes_are_counted_by_operation(disk: LocalDisk, sys: FaultySyscalls) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"a" * 1000, b"b" * 24], sync=True)  # Begun at once: it is open already.
    await disk.append(1, 0, 1024, [b"c" * 76], sync=False)
    await disk.sync(1, 0)
    await disk.log_create("epoch-1", b"head")
    await disk.log_append("epoch-1", 4, b"12345")
    await disk.log_append("epoch-1", 9, b"6789")
    assert await disk.log_read("epoch-1", 0, 100) == b"head123456789"
    name = await disk.replace_begin(2, 0)
    await disk.replace_append(name, 0, [b"d" * 300, b"e" * 200])
    await disk.replace_publish(name, 500)
    assert len(await whole(disk, 1, 0)) == 1100
    sys.fail("pwritev", errno.EIO)
    with pytest.raises(DiskFailed):
        await disk.append(1, 0, 1100, [b"lost"], sync=True)
    assert {what: count.bytes for what, count in disk.counts.items() if count.bytes} == {
        "append": 1100,
        "log_create": 4,
        "log_append": 9,
        "log_read": 13,
        "replace": 500,
        "read": 1100,
    }


async def test_what_would_block_is_read_in_a_thread(disk: LocalDisk, sys: FaultySyscalls) -> None:
    await disk.create(1, 0)
    await disk.append(1, 0, 0, [b"x" * 5000], sync=True)
    disk._preadv = sys.preadv  # type: ignore[attr-defined]
    sys.fail("preadv", errno.EAGAIN, times=1)
    buffer = memoryview(bytearray(5000))
    assert await disk.read(1, 0, 0, [buffer]) == 5000
    assert buffer == b"x" * 5000
    assert disk.cached_reads == 0


def test_a_sweep_removes_what_a_crash_left_unnamed(path: Path) -> None:
    (path / "tmp/7.1.0123").write_bytes(b"half")
    disk = open_disk(str(path))
    assert disk.sweep() == 1
    assert list((path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "call", ["open", "pwritev", "fdatasync", "fsync", "preadv", "unlink", "stat", "statvfs"]
)
async def test_a_verification_that_fails_anywhere_clears_nothing(
    disk: LocalDisk, sys: FaultySyscalls, call: str
) -> None:
    await disk.usage()
    disk.suspect("a test")
    sys.fail(call, errno.EIO, times=1)
    with pytest.raises(Unavailable):
        await disk.verify()
    assert disk.state is not DiskState.HEALTHY
    sys.heal()
    await disk.verify()
    assert disk.state is DiskState.HEALTHY


async def test_a_disk_that_gives_other_bytes_back_is_not_cleared(
    disk: LocalDisk, sys: FaultySyscalls
) -> None:
    disk.suspect("a test")
    real = os.preadv

    def lying(fd: int, buffers: list[memoryview], position: int, flags: int) -> int:
        count = real(fd, buffers, position, flags)
        buffers[0][count // 2] ^= 1
        return count

    await disk.usage()
    sys.preadv = lying  # type: ignore[attr-defined]
    with pytest.raises(DiskFailed, match="other bytes"):
        await disk.verify()
    assert disk.state is DiskState.SUSPECT
