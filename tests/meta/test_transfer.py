"""Exports carry everything, and an import takes nothing from a damaged one."""

import asyncio
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from objstore.errors import BadRequest, Corrupt
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.transfer import export, import_

EVERYTHING = (b"\0", b"\xff" * 3_000, 1 << 30)


async def filled(count: int) -> DictKv:
    kv = DictKv()
    rng = random.Random(3)
    await kv.commit(
        Transaction(
            put={rng.randbytes(rng.choice([1, 20, 600, 2_000])): rng.randbytes(40) for _ in range(count)}
        )
    )
    return kv


@pytest.mark.parametrize("count", [0, 1, 1_000, 2_501])
async def test_an_export_imported_elsewhere_is_the_same_store(tmp_path: Path, count: int) -> None:
    source, target = await filled(count), DictKv()
    wanted = await source.scan(*EVERYTHING)
    assert await export(source, tmp_path / "file", now_us=1) == len(wanted)
    assert await import_(target, tmp_path / "file") == len(wanted)
    assert await target.scan(*EVERYTHING) == wanted


async def test_every_flipped_byte_and_every_cut_is_refused_before_anything_changes(tmp_path: Path) -> None:
    await export(await filled(20), tmp_path / "file", now_us=1)
    content = (tmp_path / "file").read_bytes()
    damaged = tmp_path / "damaged"
    rng = random.Random(7)
    for at in sorted(rng.sample(range(len(content)), 300)):
        target = DictKv()
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        with pytest.raises(Corrupt):
            await import_(target, damaged)
        damaged.write_bytes(content[:at])
        with pytest.raises(Corrupt):
            await import_(target, damaged)
        assert await target.scan(*EVERYTHING) == []
    damaged.write_bytes(content + b"\0")
    with pytest.raises(Corrupt):
        await import_(DictKv(), damaged)


async def test_an_import_does_not_mix_two_stores_unless_it_is_told_to(tmp_path: Path) -> None:
    await export(await filled(20), tmp_path / "file", now_us=1)
    target = DictKv()
    await target.commit(Transaction(put={b"mine": b"1"}))
    with pytest.raises(BadRequest, match="not empty"):
        await import_(target, tmp_path / "file")
    assert await target.scan(*EVERYTHING) == [(b"mine", b"1")]
    assert await import_(target, tmp_path / "file", replace=True) == 20
    assert len(await target.scan(*EVERYTHING)) == 21


async def test_an_export_is_its_owners_alone_from_its_first_byte_and_its_name_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    synced: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        "objstore.meta.transfer.sync_directory",
        lambda path, sys: synced.append((path, [each.name for each in tmp_path.iterdir()])),
    )
    await export(
        await filled(1),
        tmp_path / "file",
        now_us=1,
        progress=lambda count: modes.extend(part.stat().st_mode for part in tmp_path.iterdir()),
    )
    assert [oct(mode & 0o777) for mode in (*modes, (tmp_path / "file").stat().st_mode)] == ["0o600"] * 2
    assert synced == [(str(tmp_path), ["file"])], "once the name is there"


class Meeting(DictKv):
    """Its scans wait until so many have begun."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count
        self.together = asyncio.Event()

    async def scan(self, *given: Any, **named: Any) -> list[tuple[bytes, bytes]]:
        self.left -= 1
        if self.left <= 0:
            self.together.set()
        await asyncio.wait_for(self.together.wait(), 60)
        return await super().scan(*given, **named)


async def test_of_two_exports_to_one_path_one_has_it_whole_and_the_other_is_told(tmp_path: Path) -> None:
    kv, path = Meeting(2), tmp_path / "file"
    await kv.commit(Transaction(put={b"key": b"value"}))
    outcomes = await asyncio.gather(*(export(kv, path, now_us=1) for _ in range(2)), return_exceptions=True)
    refusal = next(one for one in outcomes if one != 1)
    assert (outcomes.count(1), type(refusal), str(refusal)) == (1, FileExistsError, f"{path} exists")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert await import_(DictKv(), path) == 1


async def test_an_export_goes_to_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    await export(await filled(3), tmp_path / "file", now_us=1)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert await import_(DictKv(), tmp_path / "file") == 3


async def test_what_a_killed_export_left_is_in_no_ones_way(tmp_path: Path) -> None:
    left = tmp_path / "file.part"
    left.write_bytes(b"left")
    await export(await filled(1), tmp_path / "file", now_us=1)
    assert left.read_bytes() == b"left"
    assert await import_(DictKv(), tmp_path / "file") == 1


async def test_an_export_never_overwrites_and_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        await export(await filled(1), tmp_path / "file", now_us=1)
    with pytest.raises(OSError, match="there is no directory"):
        await export(await filled(1), tmp_path / "nowhere" / "file", now_us=1)
    assert (tmp_path / "file").read_bytes() == b"precious"

    class Broken(DictKv):
        async def scan(self, *_: object, **__: object) -> list[tuple[bytes, bytes]]:
            raise Corrupt("a record")

    with pytest.raises(Corrupt):
        await export(Broken(), tmp_path / "other", now_us=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
