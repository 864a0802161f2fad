"""What dominates the loss, what would help, and what measured values change."""

import math
from dataclasses import replace
from decimal import Decimal
from xml.etree import ElementTree

import pytest

from objstore.durability import chain
from objstore.durability.assessment import Measured, assess, longest_repair, nines, with_measured
from objstore.durability.chain import loss_rate
from objstore.durability.model import DISKS, HOURS_A_YEAR, LATENT, Code, Domain, Model, hourly_rate
from objstore.durability.plot import svg
from objstore.errors import BadArgument

BASE = Model(code=Code(8, 4), failure_rate=hourly_rate(0.015), repair_h=24, latent_rate=1e-12)
RACKS = (Domain(name="rack", fragments=3, rate=hourly_rate(0.01), repair_h=72),)


def test_disks_dominate_where_nothing_else_happens_and_quicker_repair_helps_most() -> None:
    found = assess(BASE)
    assert found.causes[0] == (DISKS, pytest.approx(1))
    words, gain = found.improvements[0]
    assert words == "repair in half the time"
    assert gain == pytest.approx(4 * math.log10(2), abs=0.01)  # m of the failures fall into the repair.


def test_racks_that_hold_three_fragments_dominate_a_code_that_survives_four() -> None:
    found = assess(replace(BASE, domains=RACKS))
    assert found.causes[0][0] == "rack"
    assert found.causes[0][1] > 0.99
    assert found.improvements[0][0] == "at most 2 fragments in a rack"
    narrower = replace(BASE, domains=(replace(RACKS[0], fragments=2),))
    assert found.improvements[0][1] == pytest.approx(nines(loss_rate(narrower)) - found.nines)
    assert found.nines < assess(BASE).nines - 5


def test_latent_errors_dominate_where_scrubs_are_rare_and_scrubbing_helps_most() -> None:
    found = assess(replace(BASE, latent_rate=1e-5, scrub_h=2000, repair_h=1))
    assert found.causes[0][0] == LATENT
    assert found.improvements[0][0] == "scrub twice as often"


def test_every_improvement_is_no_worse_than_what_is() -> None:
    found = assess(replace(BASE, serial=True, domains=RACKS))
    assert {words for words, _ in found.improvements} == {
        "repair in half the time",
        "repair side by side",
        "scrub twice as often",
        "at most 2 fragments in a rack",
        "repair of a rack in half the time",
    }
    assert all(gain >= 0 for _, gain in found.improvements)
    assert found.stronger is not None
    assert found.stronger[0] == Code(8, 5)
    assert found.stronger[1] > 0


def test_a_code_is_judged_even_where_the_next_stronger_one_is_beyond_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert assess(replace(BASE, code=Code(252, 4))).stronger is None  # 257 fragments.
    assert assess(replace(BASE, code=Code(40, 32), latent_rate=0.0)).stronger is None
    racks = (replace(RACKS[0], repair_h=None),)
    model = replace(BASE, latent_rate=0.0, domains=racks)
    assert assess(model).stronger is not None
    monkeypatch.setattr(chain, "STATES_MAX", 12)  # 8+4 has 11, 8+5 has more.
    assert assess(model).stronger is None


def test_a_narrow_domain_is_never_asked_to_hold_more_than_the_wide_one_around_it() -> None:
    domains = (Domain(name="node", fragments=2, rate=1e-6), Domain(name="rack", fragments=2, rate=1e-6))
    words = [words for words, _ in assess(replace(BASE, domains=domains)).improvements]
    assert "at most 1 fragment in a node" in words
    assert not any("in a rack" in each for each in words)


def test_the_chance_of_losing_any_volume_grows_with_their_number() -> None:
    found = assess(replace(BASE, code=Code(4, 2)))
    one = found.any_loss(1)
    assert one == pytest.approx(found.annual_loss)
    assert found.any_loss(1000) == pytest.approx(1000 * one, rel=1e-5)
    assert found.any_loss(10**15) == 1


def test_nines_are_right_from_certain_loss_to_beyond_floats() -> None:
    for mean in (1e-300, 1e-20, 0.0099, 0.0101, 1.0, 30.0):
        rate = mean / HOURS_A_YEAR
        assert nines(Decimal(rate)) == pytest.approx(-math.log10(-math.expm1(-mean)), rel=1e-12)


def test_a_year_of_repair_is_long_enough_to_ask_for() -> None:
    lasting = replace(BASE, failure_rate=1e-12, latent_rate=0.0)
    assert longest_repair(lasting, 5) == HOURS_A_YEAR


# --- measured values ------------------------------------------------------------------------------


def test_measured_repairs_replace_the_assumed_ones_with_their_mean() -> None:
    model, words = with_measured(BASE, Measured(repairs_h=[2.0, 4.0, 12.0], scrub_age_h=100))
    assert model.repair_h == 6
    assert words[0] == "repair 6 h: mean of 3 measured"
    assert nines(loss_rate(model)) > nines(loss_rate(BASE))


def test_what_was_not_measured_stays_as_assumed_and_is_said_to_be() -> None:
    model, words = with_measured(BASE, Measured())
    assert model == BASE
    assert "repair 24 h: assumed, none has been measured yet" in words
    assert "scrub 336 h: assumed, no round has ended yet" in words
    assert any(line.startswith("AFR 0.015: assumed") for line in words)


def test_a_scrub_that_is_late_counts_as_late_and_one_in_time_does_not_count_as_quicker() -> None:
    assert with_measured(BASE, Measured(scrub_age_h=700))[0].scrub_h == 700
    assert with_measured(BASE, Measured(scrub_age_h=3))[0].scrub_h == BASE.scrub_h


def test_an_afr_is_measured_only_after_ten_failures() -> None:
    few, _ = with_measured(BASE, Measured(failures=9, disk_hours=1e6))
    assert few.failure_rate == BASE.failure_rate
    many, words = with_measured(BASE, Measured(failures=10, disk_hours=1e6))
    assert many.failure_rate == 1e-5
    assert "AFR: measured, 10 failures" in words


# --- values that make no sense, and the drawing ---------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"failure_rate": -1.0}, "rate of failures"),
        ({"failure_rate": math.nan}, "rate of failures"),
        ({"repair_h": 0.0}, "repair must take"),
        ({"latent_rate": -1.0}, "latent errors"),
        ({"scrub_h": math.inf}, "scrub period"),
        ({"domains": (RACKS[0], replace(RACKS[0], name="node", fragments=1))}, "narrowest to the widest"),
        ({"domains": (RACKS[0], RACKS[0])}, "the same name"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        replace(BASE, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"fragments": 0}, {"rate": -1.0}, {"lost": 0.0}, {"repair_h": 0.0}])
def test_a_domain_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadArgument, match="domain rack"):
        replace(RACKS[0], **wrong)  # type: ignore[arg-type]


def test_the_drawing_is_well_formed_and_has_a_line_for_every_code() -> None:
    text = svg("a <title>", [1, 10, 100], {"4+2": [9, 7, 5], "8+4": [20, 16, 12]})
    root = ElementTree.fromstring(text)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    heights = [float(point.split(",")[1]) for point in lines[0].attrib["points"].split()]
    assert heights == sorted(heights)  # Fewer nines lie lower, and y grows downwards.
    assert "a &lt;title&gt;" in text
