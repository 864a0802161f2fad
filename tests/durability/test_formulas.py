"""Closed forms, against what others published."""

import math

import pytest

from objstore.durability.assessment import assess
from objstore.durability.chain import loss_rate
from objstore.durability.formulas import (
    acknowledge_exposure,
    any_loss,
    burst_loss,
    closed_loss_rate,
    window_annual_loss,
)
from objstore.durability.model import HOURS_A_YEAR, Code, Model, hourly_rate, latent_rate


@pytest.mark.parametrize(
    ("k", "m", "per_year", "years"), [(4, 2, 2, 98.5), (8, 3, 4, 27.4), (17, 3, 2, 29.7)]
)
def test_the_window_model_gives_its_published_mean_times(
    k: int, m: int, per_year: float, years: float
) -> None:
    loss = window_annual_loss(Code(k, m), per_year / HOURS_A_YEAR, 72)
    assert -1 / math.log1p(-loss) == pytest.approx(years, rel=2e-3)


def test_backblazes_published_figure_is_reproduced_and_is_four_times_too_good() -> None:
    # 17+3, an annual rate of 0.405% in years of 8,760 h, repair in 156 h.
    rate = 0.00405 / 8760
    windows = window_annual_loss(Code(17, 3), rate, 156)
    assert windows == pytest.approx(7.354e-12, rel=1e-3)
    exact = any_loss(float(loss_rate(Model(code=Code(17, 3), failure_rate=rate, repair_h=156))), 1)
    assert exact == pytest.approx(2.94e-11, rel=3e-3)
    assert -math.log10(exact) == pytest.approx(10.5, abs=0.05)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_window_model_is_m_plus_1_times_too_good(m: int) -> None:
    rate, repair_h = 1e-8, 10.0
    windows = window_annual_loss(Code(8, m), rate, repair_h) / HOURS_A_YEAR
    exact = float(loss_rate(Model(code=Code(8, m), failure_rate=rate, repair_h=repair_h)))
    assert exact / windows == pytest.approx(m + 1, rel=1e-4)


@pytest.mark.parametrize("code", [Code(4, 2), Code(8, 3), Code(8, 4), Code(17, 3)])
def test_the_closed_form_is_the_chain_s_limit(code: Code) -> None:
    model = Model(code=code, failure_rate=1e-8, repair_h=24)
    assert float(loss_rate(model)) == pytest.approx(closed_loss_rate(model), rel=1e-4)


@pytest.mark.parametrize(
    ("repair_h", "spare", "published"),
    [
        (1, 0, 1.4e-5),
        (1, 1, 1.1e-10),
        (1, 2, 6.8e-16),
        (24, 0, 3.4e-4),
        (24, 1, 6.6e-8),
        (24, 2, 9.4e-12),
    ],
)
def test_a_write_acknowledged_short_is_exposed_as_published(
    repair_h: float, spare: int, published: float
) -> None:
    found = acknowledge_exposure(Code(8, 4), hourly_rate(0.0155), repair_h, spare=spare)
    assert found == pytest.approx(published, rel=0.04)  # Two digits.


@pytest.mark.parametrize(
    ("groups", "published"),
    [
        (275_000, 0.228),  # Each of 5,000 nodes in 55 sets: a window of ten neighbours.
        (8_333, 0.0078),  # Copysets with the same scatter width: five permutations.
        (1_667, 0.0015),  # Copysets of the least scatter width: one permutation.
    ],
)
def test_copysets_lower_the_chance_of_loss_in_a_power_outage_as_published(
    groups: int, published: float
) -> None:
    # 1% of 5,000 nodes do not come back; three copies.
    found = burst_loss(Code(1, 2), disks=5_000, lost=50, groups=groups)
    assert found == pytest.approx(published, rel=0.05)


def test_blind_spreading_loses_something_in_almost_every_power_outage() -> None:
    chunks = 5_000 * 10_000 // 3
    assert burst_loss(Code(1, 2), disks=5_000, lost=50, groups=chunks) > 0.9999


def test_a_burst_loses_all_or_nothing_at_its_ends() -> None:
    assert burst_loss(Code(4, 2), disks=6, lost=2, groups=1_000) == 0
    assert burst_loss(Code(4, 2), disks=6, lost=3, groups=1) == 1
    # 3 of 12 lost, groups of 6 of them with more than 2 in: C(9,3) / C(12,6) = 84 / 924.
    assert burst_loss(Code(4, 2), disks=12, lost=3, groups=1) == pytest.approx(84 / 924)


def test_eleven_nines_are_one_of_ten_million_objects_in_ten_thousand_years() -> None:
    rate = 1e-11 / HOURS_A_YEAR  # As 1+1 with failures this rare and slow repair would have it.
    repair_h = 1.0
    failure_rate = math.sqrt(rate / (2 * repair_h))
    found = assess(Model(code=Code(1, 1), failure_rate=failure_rate, repair_h=repair_h))
    assert found.nines == pytest.approx(11, abs=1e-3)
    assert 1 / found.lost_a_year(10_000_000) == pytest.approx(10_000, rel=1e-3)


def test_latent_errors_hit_an_object_by_its_share_of_the_disk() -> None:
    # 8 MiB over 8 disks: 1 MiB of a disk of 1 TiB, 2**20 such places.
    found = latent_rate(per_disk_year=2, disk_size=2**40, object_size=8 * 2**20, k=8)
    assert found * HOURS_A_YEAR == pytest.approx(2 / 2**20)
    tiny = latent_rate(per_disk_year=2, disk_size=2**40, object_size=1, k=8)
    assert tiny * HOURS_A_YEAR == pytest.approx(2 * 4096 / 2**40)
    assert latent_rate(per_disk_year=3, disk_size=10, object_size=10**6, k=1) * HOURS_A_YEAR == pytest.approx(
        3
    )
