"""Adding a disk, cut short at each of its steps: the same command goes on, and no number is used twice."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objstore.admin.app import Problem
from objstore.config import Config
from objstore.errors import DiskFailed, MetaUnavailable
from objstore.meta.kv import DictKv
from objstore.node.local import DiskOptions
from objstore.objects.ledger import MetaLedger
from objstore.processes import disks as module
from objstore.processes.disks import DiskSet
from objstore.processes.spec import Opener


class Line:
    """The supervisor's end: `answers` in turn; an exception is raised."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def change_disks(self, text: str) -> str:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else ""
        if isinstance(answer, Exception):
            raise answer
        return answer


def disk_set(line: Line) -> tuple[DiskSet, Any]:
    cluster = SimpleNamespace(cluster_id=b"c" * 16, checksum_secret=7, master_key=b"m" * 32, codec=(4, 2))
    parts: Any = SimpleNamespace(
        store=SimpleNamespace(ledger=MetaLedger(DictKv())),
        disks={},
        opener=Opener(cluster.cluster_id, DiskOptions(), tls="", epoch=lambda: 0),
        spec=SimpleNamespace(cluster=cluster, config=Config()),
    )
    return DiskSet(parts, line), parts  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", ["formatting", "the supervisor", "the supervisor refuses", "the last commit"])
async def test_a_disk_whose_adding_was_cut_short_is_finished_under_its_number(
    cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: dict[str, str | Exception] = {
        "the supervisor": TimeoutError(),
        "the supervisor refuses": "it cannot be locked",
    }
    disks, parts = disk_set(Line(*([answers[cut]] if cut in answers else [])))
    ledger = parts.store.ledger
    path = str(tmp_path / "new")
    with monkeypatch.context() as patch:
        if cut == "formatting":

            def broken(*arguments: object) -> None:
                raise MetaUnavailable("the process ends here")

            patch.setattr(module, "format_disk", broken)
        if cut == "the last commit":

            async def lost(*arguments: object, **options: object) -> bool:
                raise MetaUnavailable("no committer")

            patch.setattr(ledger, "change_disk", lost)
        with pytest.raises((Problem, MetaUnavailable)):
            await disks.add(path)
    assert {number: disk.state for number, disk in (await ledger.disks()).items()} == {1: "suspect"}
    with pytest.raises(Problem, match="not added yet"):
        await disks.verify(1)  # It may be well, but the supervisor may not have locked it.
    with pytest.raises(Problem, match="not added yet"):
        await disks.drain(1, undo=False)
    assert await ledger.usable_disks() == []
    number, _ = await disks.add(path)
    assert number == 1
    assert await ledger.usable_disks() == [1]
    with pytest.raises(Problem, match="disk 1 of this store already"):
        await disks.add(path)
    for disk in parts.disks.values():
        disk.close()


async def test_the_number_of_a_removed_disk_is_never_used_again(tmp_path: Path) -> None:
    disks, parts = disk_set(Line())
    ledger = parts.store.ledger
    assert (await disks.add(str(tmp_path / "one")))[0] == 1
    assert (await disks.add(str(tmp_path / "two")))[0] == 2
    with pytest.raises(Problem, match="drain it first"):
        await disks.remove(2)
    with pytest.raises(Problem, match="only 1 disks take writes"):
        await disks.drain(2, undo=False)
    await ledger.set_disk_state(2, "draining")
    await disks.remove(2)
    await disks.remove(2)  # Done again, as after a crash: nothing changes.
    assert (await disks.add(str(tmp_path / "three")))[0] == 3
    for disk in parts.disks.values():
        disk.close()


async def test_a_disk_that_is_not_emptied_after_all_takes_no_writes_before_a_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks, parts = disk_set(Line())
    ledger = parts.store.ledger
    assert (await disks.add(str(tmp_path / "one")))[0] == 1
    with pytest.raises(Problem, match="not being drained"):
        await disks.drain(1, undo=True)
    # Suspect, then to be emptied: the record tells of the second only.
    await ledger.suspect(1, "a sync failed")
    assert await ledger.change_disk(1, before=["suspect"], state="draining")
    with monkeypatch.context() as patch:

        async def fails() -> None:
            raise DiskFailed("other bytes came back than were written")

        patch.setattr(parts.disks[1], "verify", fails)
        assert "other bytes came back" in "".join(await disks.drain(1, undo=True))
        assert await ledger.usable_disks() == []
    await ledger.set_disk_state(1, "draining")
    assert await disks.drain(1, undo=True) == []
    assert await ledger.usable_disks() == [1]
    parts.disks[1].close()
