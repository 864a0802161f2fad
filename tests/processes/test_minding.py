"""What a worker tells others of disks, and what it keeps to itself."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from objstore.clock import SystemClock
from objstore.meta.kv import DictKv
from objstore.node.disk import DiskState
from objstore.objects.ledger import MetaLedger
from objstore.processes import minding
from tests.waiting import until


class Disk:
    """Unwell until it is verified."""

    reason = "late"

    def __init__(self) -> None:
        self.looks = 0
        self.verified = False

    @property
    def state(self) -> DiskState:
        self.looks += 1
        return DiskState.HEALTHY if self.verified else DiskState.SUSPECT

    async def verify(self) -> None:
        self.verified = True


@pytest.mark.parametrize("cut_off", [True, False])
async def test_a_disk_is_suspect_to_others_only_if_its_node_answered(
    monkeypatch: pytest.MonkeyPatch, cut_off: bool
) -> None:
    monkeypatch.setattr(minding, "LOOK_SECONDS", 0.001)
    ledger, disk, away = MetaLedger(DictKv()), Disk(), cut_off
    await ledger.register_disk(1, uuid=b"u" * 16, path="/d")
    store = SimpleNamespace(clock=SystemClock(), ledger=ledger)
    parts = SimpleNamespace(store=store, disks={1: disk}, opener=SimpleNamespace(is_away=lambda number: away))
    minds = asyncio.create_task(minding.mind_disks(cast(Any, parts)))
    try:
        await until(lambda: disk.looks > 3, "it looks")
        assert (await ledger.disks())[1].state == ("healthy" if cut_off else "suspect")
        away = False
        if not cut_off:
            await ledger.set_disk_state(1, "healthy")  # The upkeep's verdict.
        await until(lambda: disk.verified, "it is verified here")
        assert (await ledger.disks())[1].state == "healthy"
    finally:
        minds.cancel()


async def test_an_upkeep_process_verifies_what_it_doubts_also_where_another_runs_the_services(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(minding, "LOOK_SECONDS", 0.001)
    ledger, disk, turns, leads = MetaLedger(DictKv()), Disk(), 0, True
    await ledger.register_disk(1, uuid=b"u" * 16, path="/d")
    store = SimpleNamespace(clock=SystemClock(), ledger=ledger)
    away = True
    parts = SimpleNamespace(store=store, disks={1: disk}, opener=SimpleNamespace(is_away=lambda number: away))

    def stands_by() -> bool:
        nonlocal turns
        turns += 1
        return not leads

    minds = asyncio.create_task(minding.mind_disks(cast(Any, parts), stands_by))
    try:
        await until(lambda: turns > 3)
        assert disk.looks == 0, "its services see to that"
        leads = False
        await until(lambda: disk.looks > 3)
        away = False
        await until(lambda: disk.verified)
    finally:
        minds.cancel()
