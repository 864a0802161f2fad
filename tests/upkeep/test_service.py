"""Claims, the sweep, and the services together."""

import pytest

from objstore.blobs.volumes import VolumeState
from objstore.meta.kv import Add, DictKv, Kv, Transaction
from objstore.meta.schema import DiskRecord, disk_key, encode, object_key, setting_key, volume_live_key
from objstore.objects.ledger import BEING_ADDED
from objstore.upkeep import service as service_module
from objstore.upkeep.claims import Claim
from objstore.upkeep.context import Pace
from objstore.upkeep.service import Periods, Service
from objstore.upkeep.sweep import LiveBytesAudit, Sweep
from objstore.upkeep.trash import TrashRules
from tests.blobs.rig import StepClock
from tests.upkeep.rig import BUCKET, Yard, no_sleep
from tests.waiting import until, until_true

# Claims.


async def test_a_claim_is_taken_only_from_one_who_was_silent_for_the_whole_patience() -> None:
    kv, clock = DictKv(), StepClock()
    one, two = Claim(kv, "x", b"1" * 16, clock), Claim(kv, "x", b"2" * 16, clock)
    assert await one.keep()
    assert not await two.keep()
    clock.advance(14)
    assert not await two.keep()
    assert await one.keep(), "renewed in time"
    clock.advance(14)
    assert not await two.keep(), "it has seen a change since"
    clock.advance(16)
    assert await two.keep()
    assert not await one.keep()
    assert not one.held


async def test_a_holder_that_slept_commits_nothing_under_its_claim() -> None:
    kv, clock = DictKv(), StepClock()
    one, two = Claim(kv, "x", b"1" * 16, clock), Claim(kv, "x", b"2" * 16, clock)
    await one.keep()
    await two.keep()
    expected = one.expectation()
    clock.advance(16)
    assert await two.keep()
    from objstore.errors import Conflict

    with pytest.raises(Conflict):
        await kv.commit(Transaction(expect=expected, put={b"Swork": b"done"}))


async def test_a_claim_given_up_is_free_at_once() -> None:
    kv, clock = DictKv(), StepClock()
    one, two = Claim(kv, "x", b"1" * 16, clock), Claim(kv, "x", b"2" * 16, clock)
    await one.keep()
    await one.give_up()
    await one.give_up()
    assert await two.keep()


# Pace.


async def test_the_pace_holds_over_any_sizes() -> None:
    clock = StepClock()
    slept = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        clock.advance(seconds)

    pace = Pace(1_000_000, clock, sleep)
    for size in (10, 1_000_000, 500_000, 3, 4_000_000):
        await pace.spend(size)
    assert 5.5 - 0.3 <= slept <= 5.6


# The sweep.


async def test_the_audit_corrects_a_counter_that_drifted_and_leaves_the_right_ones() -> None:
    yard = await Yard().start()
    for number in range(20):
        await yard.put_object(f"o{number}", bytes(1_000))
    await yard.put_object("paged", bytes(9_000_000), paged=True)
    await yard.put_multipart("multi", [bytes(5_000_000)])
    await yard.kv.commit(Transaction(add={volume_live_key(1): Add(777)}))
    ctx = yard.context()
    audit = LiveBytesAudit(ctx)
    assert await Sweep(ctx, [audit], sleep=no_sleep).run()
    assert audit.corrected == {1: -777}
    assert audit.dangling == []
    await yard.check()


async def test_a_counter_of_a_volume_that_is_gone_is_removed() -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(1_000))
    await yard.kv.commit(Transaction(add={volume_live_key(77): Add(-5_000)}))
    ctx = yard.context()
    audit = LiveBytesAudit(ctx)
    await Sweep(ctx, [audit], sleep=no_sleep).run()
    assert await yard.kv.get(volume_live_key(77)) is None
    await yard.check()


async def test_a_counter_in_use_during_the_pass_is_left_alone() -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(1_000))
    ctx = yard.context()
    audit = LiveBytesAudit(ctx)

    async def busy(seconds: float) -> None:
        await yard.put_object("later", bytes(500))

    await Sweep(ctx, [audit], sleep=busy).run()
    assert audit.corrected == {}
    await yard.check()


class Crash(BaseException):
    """The process is gone."""


async def test_a_sweep_goes_on_where_it_was_and_judges_only_whole_passes() -> None:
    yard = await Yard().start()
    many = {object_key(BUCKET, b"k%06d" % number): b"" for number in range(60_000)}
    value = await yard.put_object("model", b"m")
    record = await yard.kv.get(value)
    assert record is not None
    yard.kv._values.update(dict.fromkeys(many, record))
    yard.kv._keys = sorted(yard.kv._values)
    pages = 0

    def crash(name: str) -> None:
        nonlocal pages
        pages += 1
        if pages == 55:
            raise Crash

    ctx = yard.context(crash)
    with pytest.raises(Crash):
        await Sweep(ctx, [LiveBytesAudit(ctx)], sleep=no_sleep).run()
    ctx = yard.context()
    audit = LiveBytesAudit(ctx)
    sweep = Sweep(ctx, [audit], sleep=no_sleep)
    assert not await sweep.run()
    assert sweep.keys_seen < 15_000
    assert audit.corrected == {}
    assert await sweep.run()
    assert audit.corrected == {1: 60_000}


async def test_a_record_that_points_into_no_volume_raises_an_alarm() -> None:
    yard = await Yard().start()
    home = await yard.put_object("o", bytes(1_000))
    await yard.restart_writer()
    del yard.kv._values[b"V" + (1).to_bytes(8, "big")]
    yard.kv._keys.remove(b"V" + (1).to_bytes(8, "big"))
    ctx = yard.context()
    audit = LiveBytesAudit(ctx)
    await Sweep(ctx, [audit], sleep=no_sleep).run()
    assert audit.dangling == [home]
    assert "dangling records" in ctx.alarms.raised


# All together.


async def test_the_services_bring_a_worn_store_back_to_order() -> None:
    yard = await Yard("+++++++").start()
    for number in range(40):
        await yard.put_object(f"o{number}", bytes([number]) * 9_000)
    await yard.put_object("large", bytes(5_000_000))
    for number in range(0, 40, 2):
        await yard.delete(object_key(BUCKET, b"o%d" % number))
    yard.moods("+!+++++")  # A disk fails under a write.
    await yard.put_object("during", b"d" * 9_000)
    dead = yard.writer
    yard.writer = yard.new_writer()  # The worker dies with its volumes open.
    yard.wake()
    rotten = (await yard.ledger.get(1, fresh=True)).disks[2]
    yard.disks[rotten].flip(1, 2, 500)
    yard.clock.advance(60)
    ctx = yard.context()
    swept = 0

    async def doomed(kv: Kv) -> int:
        nonlocal swept
        swept += 1
        return 0

    service = Service(
        ctx,
        holder=b"h" * 16,
        alive=lambda writer: writer != dead._writer,
        sweep_doomed=doomed,
        periods=Periods(
            disks_s=0.01, seal_s=0.01, repair_s=0.01, trash_s=0.01, compaction_s=0.01, scrub_s=0.001,
            doomed_s=0.01, sweep_s=0.05,
        ),
        trash_rules=TrashRules(grace_s=3_600, grace_least_s=60),
    )  # fmt: skip
    service.start()

    async def in_order() -> bool:
        return (
            (await yard.states()).get(1) == VolumeState.RETIRED
            and not await yard.ledger.intents()
            and len(await yard.ledger.usable_disks()) == 7
            and service.services["scrub"].last == "resting between two rounds"
            and bool(service.services["sweep"].runs)
            and bool(swept)
        )

    async def purged() -> bool:
        return 1 not in await yard.states()

    await until_true(in_order)
    status = await service.status()
    assert status["services"]["compaction"]["failures"] == 0, status
    assert status["intents"] == 0, status
    assert status["alarms"] == {}
    assert status["claim_held"]
    yard.clock.advance(3_700)
    await until_true(purged)  # After its grace.
    await service.close()
    await ctx.writer.close()
    await yard.check()


async def test_a_disk_that_a_writer_found_read_only_is_called_so_until_it_is_verified() -> None:
    yard = await Yard("+++++++").start()
    await yard.put_object("o", b"o" * 9_000)
    victim = (await yard.ledger.get(1)).disks[3]
    yard.disks[victim].mood = "read-only"
    await yard.put_object("o2", b"o" * 9_000)
    service = Service(yard.context(), holder=b"h" * 16, alive=lambda writer: True)
    await service._claim.keep()
    assert (await yard.ledger.disks())[victim].state == "read-only"
    assert f"disk {victim} stays read-only" in await service.verify_disks()
    yard.wake()
    assert await service.verify_disks() == f"disk {victim} is well again"
    assert (await yard.ledger.disks())[victim].state == "healthy"


async def test_only_one_of_two_upkeep_processes_works() -> None:
    yard = await Yard().start()
    periods = Periods(disks_s=0.01, seal_s=0.01)
    services = [
        Service(yard.context(), holder=bytes([number]) * 16, alive=lambda writer: True, periods=periods)
        for number in (1, 2)
    ]
    for service in services:
        service.start()
    seals = [service.services["seal"] for service in services]
    await until(lambda: max(seal.runs for seal in seals) > 5)
    assert min(seal.runs for seal in seals) == 0
    for service in services:
        await service.close()


async def test_a_failing_service_shows_its_words_and_the_others_go_on() -> None:
    yard = await Yard().start()

    async def broken(kv: Kv) -> int:
        raise TypeError("a bug")

    service = Service(
        yard.context(),
        holder=b"h" * 16,
        alive=lambda writer: True,
        sweep_doomed=broken,
        periods=Periods(doomed_s=0.01, seal_s=0.01),
    )
    service.start()
    await until(lambda: service.services["doomed"].failures > 1 and service.services["seal"].runs > 1)
    status = (await service.status())["services"]
    assert "a bug" in status["doomed"]["last_failure"]
    assert status["seal"]["failures"] == 0
    await service.close()
    assert await yard.kv.get(setting_key("nothing")) is None


async def test_the_claim_is_renewed_again_after_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "CLAIM_RENEWAL_S", 0.01)
    yard = await Yard().start()
    service = Service(
        yard.context(), holder=b"h" * 16, alive=lambda writer: True, periods=Periods(seal_s=0.01)
    )
    looks = 0

    def unfit() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise TypeError("a bug")
        return False

    service.stand_by_while(unfit)
    service.start()
    await until(lambda: service.leads and service.services["seal"].runs > 0)
    await service.close()


async def test_a_disk_whose_adding_was_cut_short_takes_no_writes_though_it_is_well() -> None:
    # The supervisor may not have locked it, nor would the next start look for it.
    yard = await Yard("+++++++").start()
    service = Service(yard.context(), holder=b"h" * 16, alive=lambda writer: True)
    await service._claim.keep()
    record = DiskRecord(uuid=b"u" * 16, path="/new", state="suspect", reason=BEING_ADDED)
    await yard.kv.commit(Transaction(put={disk_key(7): encode(record)}))
    assert await service.verify_disks() == ""
    assert 7 not in await yard.ledger.usable_disks()
