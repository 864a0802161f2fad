"""The audit log: every act is in it, and what is done to it shows."""

import asyncio
import random

import pytest

from objstore.audit.described import RECORD_SIZE_MAX, changes_of
from objstore.audit.log import Deed, RecordedKv, Wanted, newest, note, read_head, verify
from objstore.audit.records import HEAD_KEY, Anchor, AuditHead, AuditRecord, audit_key
from objstore.errors import BadArgument, ConditionFailed, Conflict
from objstore.iam.tenants import create_tenant, set_tenant_disabled
from objstore.meta.kv import VALUE_SIZE_MAX, Add, DictKv, Transaction, counter_value
from objstore.meta.schema import (
    AccessKeyRecord,
    TenantRecord,
    access_key_key,
    decode,
    encode,
    tenant_key,
)
from tests.seed import SEED


class Clock:
    def __init__(self) -> None:
        self.us = 1_000_000

    def now_us(self) -> int:
        self.us += 1
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


DEED = Deed(who="operator", action="create_tenant", target="tenants/acme", source="192.0.2.1", request="r1")


def recorded(kv: DictKv, **changes: object) -> RecordedKv:
    return RecordedKv(kv, DEED, Clock(), **changes)  # type: ignore[arg-type]


async def entries(kv: DictKv) -> list[AuditRecord]:
    return [record for _, record in (await newest(kv, Wanted(), before=None, limit=1_000))[0]]


async def log_of(count: int) -> DictKv:
    kv = DictKv()
    for number in range(count):
        await create_tenant(recorded(kv), f"tenant-{number}", now_us=5)
    return kv


async def test_an_act_and_its_record_are_one_commit() -> None:
    kv = DictKv()
    await create_tenant(recorded(kv), "acme", now_us=5)
    (record,) = await entries(kv)
    assert (record.who, record.action, record.source, record.outcome) == (
        "operator", "create_tenant", "192.0.2.1", "done",
    )  # fmt: skip
    (change,) = record.changes
    assert (change.what, change.before) == ("tenant acme", "")
    assert change.after == '{"name":"acme","created_us":5,"disabled":false}'


async def test_an_act_that_does_not_happen_is_not_recorded_as_done() -> None:
    kv = await log_of(1)
    with pytest.raises(BadArgument, match="exists"):
        await create_tenant(recorded(kv), "tenant-0", now_us=5)
    assert len(await entries(kv)) == 1


async def test_of_a_change_only_the_fields_that_differ_are_shown() -> None:
    kv = await log_of(1)
    await set_tenant_disabled(recorded(kv), "tenant-0", True)
    (change,) = (await entries(kv))[0].changes
    assert (change.before, change.after) == ('{"disabled":false}', '{"disabled":true}')


def test_no_secret_is_in_a_record() -> None:
    record = AccessKeyRecord(user="u", secret=b"sealed words", created_us=1)
    (change,) = changes_of(
        Transaction({access_key_key("OS1"): None}, {access_key_key("OS1"): encode(record)})
    )
    assert "(not shown)" in change.after
    assert b"sealed words".hex() not in change.after


def test_a_removal_shows_what_there_was_and_unknown_records_are_counted() -> None:
    key = tenant_key("acme")
    value = encode(TenantRecord(name="acme", created_us=5))
    removed, others = changes_of(Transaction({key: value}, {b"X1": b"", b"X2": b""}, [key]))
    assert removed.before.startswith('{"name":"acme"')
    assert removed.after == ""
    assert others.what == "2 other records"


async def test_an_act_that_changes_much_still_has_a_record_that_fits() -> None:
    kv = DictKv()
    records = {
        access_key_key(f"OS{number}"): encode(
            AccessKeyRecord(user="u" * 100, secret=b"s", created_us=1, policy="x" * 3_000)
        )
        for number in range(100)
    }
    await recorded(kv).commit(Transaction(dict.fromkeys(records), records))
    value = await kv.get(audit_key(1))
    assert value is not None
    assert RECORD_SIZE_MAX / 2 < len(value) <= VALUE_SIZE_MAX
    assert decode(value, AuditRecord).changes[-1].what.endswith(" more")


async def test_acts_at_the_same_time_form_one_chain() -> None:
    kv = DictKv()
    await asyncio.gather(*(create_tenant(recorded(kv), f"t{number}", now_us=5) for number in range(30)))
    assert (await read_head(kv)).sequence == 30
    assert (await verify(kv)).finished


async def test_moments_never_go_back_whatever_the_clock_does() -> None:
    kv = DictKv()
    for step in (5_000_000, -4_000_000, 1):
        clock = Clock()
        clock.us += step
        await note(kv, DEED, clock, "done")
    moments = [record.at_us for record in reversed(await entries(kv))]
    assert moments == sorted(moments)


async def test_what_a_client_had_seen_must_still_be_so_at_the_commit() -> None:
    kv = await log_of(1)
    key = tenant_key("tenant-0")
    seen = await kv.get(key)
    await set_tenant_disabled(recorded(kv), "tenant-0", True)
    late = recorded(kv, guards={key: (seen, "If-Match")})
    with pytest.raises(ConditionFailed, match="If-Match"):
        await set_tenant_disabled(late, "tenant-0", False)
    now = recorded(kv, guards={key: (await kv.get(key), "If-Match")})
    assert not (await set_tenant_disabled(now, "tenant-0", False)).disabled


async def test_a_guard_of_another_record_fails_at_once_and_is_not_tried_again() -> None:
    kv = await log_of(2)
    guards = {tenant_key("tenant-1"): (b"something else", "If-Match")}
    with pytest.raises(ConditionFailed):
        await set_tenant_disabled(recorded(kv, guards=guards), "tenant-0", True)


async def test_what_the_first_commit_puts_beside_comes_with_it_and_with_no_other() -> None:
    kv = DictKv()
    act = recorded(kv, first={b"X": b"1"})
    await create_tenant(act, "a", now_us=5)
    await kv.commit(Transaction({}, {}, [b"X"]))
    await create_tenant(act, "b", now_us=5)
    assert await kv.get(b"X") is None


async def test_a_conflict_of_the_act_itself_is_the_acts_to_handle() -> None:
    kv = await log_of(1)
    with pytest.raises(Conflict):
        await recorded(kv).commit(Transaction({tenant_key("tenant-0"): None}, {}))


async def test_a_whole_log_verifies_in_steps_and_names_its_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objstore.audit.log.VERIFIED_MAX", 4)
    kv = await log_of(10)
    verdict, steps = await verify(kv), 1
    while not verdict.finished:
        assert verdict.finding == ""
        verdict, steps = await verify(kv, after=verdict.upto), steps + 1
    assert (verdict.upto.sequence, steps) == (10, 3)
    assert verdict.upto.digest == (await read_head(kv)).digest
    assert Anchor.parse(str(verdict.upto)) == verdict.upto


async def test_an_empty_log_verifies() -> None:
    assert (await verify(DictKv())).finished


async def tampered(kv: DictKv, key: bytes, value: bytes | None) -> None:
    await kv.commit(Transaction({}, {} if value is None else {key: value}, [key] if value is None else []))


async def test_any_changed_byte_of_any_record_is_found() -> None:
    kv = await log_of(4)
    dice = random.Random(SEED)
    for sequence in range(1, 5):
        value = await kv.get(audit_key(sequence))
        assert value is not None
        for _ in range(40):
            at, flip = dice.randrange(len(value)), 1 + dice.randrange(255)
            edited = value[:at] + bytes([value[at] ^ flip]) + value[at + 1 :]
            await tampered(kv, audit_key(sequence), edited)
            verdict = await verify(kv)
            assert verdict.finding, f"seed {SEED}: record {sequence}, byte {at}, xor {flip}"
        await tampered(kv, audit_key(sequence), value)
    assert (await verify(kv)).finished


@pytest.mark.parametrize("gone", [1, 2, 4])
async def test_a_removed_record_is_found(gone: int) -> None:
    kv = await log_of(4)
    await tampered(kv, audit_key(gone), None)
    assert f"record {gone} is missing" in (await verify(kv)).finding


async def test_records_in_another_order_are_found() -> None:
    kv = await log_of(4)
    second, third = await kv.get_many([audit_key(2), audit_key(3)])
    await tampered(kv, audit_key(2), third)
    await tampered(kv, audit_key(3), second)
    assert (await verify(kv)).finding


async def test_a_log_that_was_cut_off_is_found_even_with_a_new_head_if_an_anchor_was_kept() -> None:
    kv = await log_of(4)
    anchor = (await verify(kv)).upto
    await tampered(kv, audit_key(4), None)
    third = await kv.get(audit_key(3))
    assert third is not None
    head = Anchor(3, (await verify(kv)).upto.digest)
    await tampered(kv, HEAD_KEY, encode(AuditHead(sequence=3, digest=head.digest, at_us=5)))
    assert (await verify(kv)).finished  # Nothing inside shows it:
    assert "ends at 3, before anchor 4" in (await verify(kv, anchor=anchor)).finding


async def test_a_log_that_was_written_anew_is_found_with_an_anchor() -> None:
    anchor = (await verify(await log_of(4))).upto
    other = DictKv()
    for number in range(6):
        await create_tenant(recorded(other), f"other-{number}", now_us=5)
    assert "record 4 is not the one of the anchor" in (await verify(other, anchor=anchor)).finding


async def test_a_record_behind_the_head_is_found_and_no_act_overwrites_it() -> None:
    kv = await log_of(2)
    await tampered(kv, audit_key(3), b"x")
    assert "behind the head" in (await verify(kv)).finding
    with pytest.raises(Exception, match="lies behind the log's head"):
        await create_tenant(recorded(kv), "acme", now_us=5)
    assert await kv.get(tenant_key("acme")) is None


async def test_a_page_goes_on_where_the_last_one_ended_and_filters() -> None:
    kv = await log_of(7)
    seen: list[int] = []
    before: int | None = None
    while True:
        page, before = await newest(kv, Wanted(), before=before, limit=3)
        seen += [sequence for sequence, _ in page]
        if before is None:
            break
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    moment = (await entries(kv))[2].at_us
    assert len((await newest(kv, Wanted(since_us=moment), before=None, limit=9))[0]) >= 1
    assert (await newest(kv, Wanted(who="nobody"), before=None, limit=9))[0] == []
    assert len((await newest(kv, Wanted(what="create_", who="operator"), before=None, limit=9))[0]) == 7


@pytest.mark.parametrize(
    "text", ["", "1", "1:", "-1:" + "0" * 64, "1:" + "g" * 64, "9" * 30 + ":" + "0" * 64]
)
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(BadArgument, match="an anchor"):
        Anchor.parse(text)


async def test_counters_that_an_act_adds_to_are_left_to_it() -> None:
    kv = DictKv()
    await recorded(kv).commit(Transaction(add={b"Qx": Add(5)}))
    assert await kv.get(b"Qx") == counter_value(5)
