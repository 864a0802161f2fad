"""The audit log verified in the background: what is done to it shows, and stays shown."""

import pytest

from objstore.audit import log as audit_log
from objstore.audit.records import HEAD_KEY, audit_key
from objstore.meta.kv import DictKv, Transaction
from objstore.upkeep.auditing import ALARM, ROUND_US, Auditing
from objstore.upkeep.context import Alarms
from tests.audit.test_log import log_of
from tests.objects.fakes import FakeClock


def told(auditing: Auditing) -> dict[str, float]:
    return {family.name: family.samples[0][1][0] for family in auditing.families() if family.samples}


def watched(kv: DictKv) -> tuple[Auditing, FakeClock, Alarms]:
    clock, alarms = FakeClock(), Alarms()
    return Auditing(kv, clock, alarms), clock, alarms


async def spoil(kv: DictKv, sequence: int) -> bytes:
    """Change a record; what it was."""
    key = audit_key(sequence)
    before = await kv.get(key)
    assert before is not None
    await kv.commit(Transaction(put={key: before.replace(b"operator", b"nobody!!")}))
    return before


async def test_a_log_that_is_whole_is_told_with_when_it_was_looked_at() -> None:
    auditing, clock, alarms = watched(await log_of(5))
    assert told(auditing) == {}
    assert await auditing.run() == "all 5 records are as they were written"
    assert told(auditing) == {
        "audit_records": 5,
        "audit_broken": 0,
        "audit_verified_timestamp_seconds": clock.now / 1e6,
    }
    assert alarms.raised == {}


async def test_a_record_that_is_changed_is_found_within_a_day_and_told_until_it_is_put_back() -> None:
    kv = await log_of(5)
    auditing, clock, alarms = watched(kv)
    await auditing.run()
    before = await spoil(kv, 2)
    await auditing.run()  # What is new only: nothing is.
    assert told(auditing)["audit_broken"] == 0
    clock.now += ROUND_US
    assert "record 3 does not follow record 2" in await auditing.run()
    assert told(auditing)["audit_broken"] == 1
    assert "objstore audit verify" in alarms.raised[ALARM]
    await auditing.run()
    assert told(auditing)["audit_broken"] == 1
    await kv.commit(Transaction(put={audit_key(2): before}))
    await auditing.run()
    assert told(auditing)["audit_broken"] == 0
    assert alarms.raised == {}


async def test_a_log_that_is_cut_and_whose_head_was_set_back_is_found_out_at_the_next_pass() -> None:
    kv = await log_of(5)
    auditing, _, _ = watched(kv)
    await auditing.run()
    shorter = await log_of(4)
    await kv.commit(Transaction(put={HEAD_KEY: await shorter.get(HEAD_KEY) or b""}, delete=[audit_key(5)]))
    assert "before anchor 5" in await auditing.run()
    assert told(auditing)["audit_broken"] == 1


async def test_a_long_log_is_verified_step_by_step_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit_log, "VERIFIED_MAX", 2)
    auditing, clock, _ = watched(await log_of(5))
    began = clock.now
    words = []
    for _ in range(3):
        words.append(await auditing.run())
        clock.now += ROUND_US
    assert words == [
        "2 of 5 records verified",
        "4 of 5 records verified",
        "all 5 records are as they were written",
    ]
    assert told(auditing)["audit_verified_timestamp_seconds"] == began / 1e6
