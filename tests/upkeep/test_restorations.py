"""How long repairs took: observed by repair, kept by the store, and what the planner makes of it."""

from objstore.cli.durability import SHORTEST_H, measured_by
from objstore.durability.assessment import with_measured
from objstore.durability.model import Code, Model
from objstore.upkeep.repair import Repair
from objstore.upkeep.restorations import (
    KEPT_MAX,
    UNDER_WAY_MAX,
    Restoration,
    Restorations,
    observed,
    restorations,
)
from tests.upkeep.rig import Yard

NOTHING = Restorations()


def test_a_restoration_lasts_from_a_disks_going_to_its_last_file() -> None:
    begun = observed(NOTHING, away={1, 2}, gone_us={1: 100}, damaged={1: 3}, now_us=150)
    assert begun == Restorations(under_way={1: 100})
    half = observed(begun, away={1}, gone_us={1: 170}, damaged={1: 1}, now_us=200)
    assert half == begun, "when it went away is known already"
    done = observed(half, away={1}, gone_us={1: 170}, damaged={}, now_us=300)
    assert done == Restorations(done=(Restoration(1, 100, 300),))
    assert observed(done, away={1}, gone_us={1: 170}, damaged={}, now_us=400) == done, "it counts once"


def test_a_disk_that_comes_back_is_no_restoration() -> None:
    begun = observed(NOTHING, away={1}, gone_us={1: 100}, damaged={1: 3}, now_us=150)
    assert observed(begun, away=set(), gone_us={}, damaged={}, now_us=300) == NOTHING


def test_a_disk_that_a_new_process_has_not_yet_given_up_is_still_under_way() -> None:
    begun = observed(NOTHING, away={1}, gone_us={1: 100}, damaged={1: 3}, now_us=150)
    assert observed(begun, away={1}, gone_us={}, damaged={}, now_us=300) == begun


def test_what_is_kept_is_bounded() -> None:
    many = {disk: disk for disk in range(1, 2 * UNDER_WAY_MAX)}
    begun = observed(NOTHING, away=many, gone_us=many, damaged=dict.fromkeys(many, 1), now_us=1)
    assert len(begun.under_way) == UNDER_WAY_MAX
    known = NOTHING
    for at in range(KEPT_MAX + 5):
        known = observed(known, away={1}, gone_us={1: at}, damaged={1: 1}, now_us=at)
        known = observed(known, away={1}, gone_us={1: at}, damaged={}, now_us=at + 1)
    assert [one.gone_us for one in known.done] == list(range(5, KEPT_MAX + 5))


async def test_the_planner_counts_with_the_time_from_a_lost_disk_to_the_last_of_its_files() -> None:
    yard = await Yard("+++++++").start()
    for number in range(6):
        await yard.put_object(f"o{number}", bytes(4_000 + number))
    await yard.restart_writer()
    [record] = await yard.ledger.volumes()
    ctx = yard.context()
    repair = Repair(ctx, grace_s=900.0)
    await repair.run()
    yard.disks[record.disks[0]].mood = "missing"
    await repair.run()  # Seen to be away.
    yard.clock.advance(900)
    assert (await repair.run()).repaired == 1
    yard.clock.advance(60)
    await repair.run()  # Nothing is missing any more.
    [one] = (await restorations(ctx)).done
    assert (one.disk, round(one.seconds)) == (record.disks[0], 960)

    measured = measured_by(
        {
            "scrub": {"last_round_finished_us": 0},
            "restorations": [{"disk": one.disk, "gone_us": one.gone_us, "restored_us": one.restored_us}],
        },
        now_s=0.0,
    )
    model, words = with_measured(Model(code=Code(4, 2), failure_rate=1e-6, repair_h=24.0), measured)
    assert round(model.repair_h * 3600) == 960
    assert "repair 0.267 h: mean of 1 measured" in words
    instant = {"disk": 1, "gone_us": 5, "restored_us": 4}  # A clock that went back.
    odd = measured_by({"scrub": {"last_round_finished_us": 0}, "restorations": [instant]}, now_s=0.0)
    assert odd.repairs_h == [SHORTEST_H]
