"""Closed forms: quick, approximate, and what others publish. The exact answer is `chain.py`'s.

r is the mean repair time in hours, rates are per hour. Each holds while r times the rate of all failures of a
stripe is far below 1.
"""

from math import comb, expm1, log1p

from objstore.durability.model import HOURS_A_YEAR, Code, Model


def birth_death_mttdl(code: Code, failure_rate: float, repair_h: float, *, serial: bool = False) -> float:
    """Mean hours to data loss from disk failures alone: the sum of the mean times from i to i+1 down.

    T[0] = 1/(n λ), T[i] = (1 + i μ T[i-1]) / ((n-i) λ); only sums of positive numbers, so nothing cancels.
    """
    total = step = 1 / (code.n * failure_rate)
    for down in range(1, code.m + 1):
        repairs = (1 if serial else down) / repair_h
        step = (1 + repairs * step) / ((code.n - down) * failure_rate)
        total += step
    return total


def closed_loss_rate(model: Model) -> float:
    """Losses per hour from disks and latent errors: (n-m)(λ+u) C(n,m) a^m, a = λr + u(S/2+r). No domains.

    It needs no more of the repair times than their means, whatever their distribution.
    """
    code = model.code
    bad = model.failure_rate * model.repair_h + model.latent_rate * model.latent_repair_h
    arrivals = (code.n - code.m) * (model.failure_rate + model.latent_rate)
    return arrivals * comb(code.n, code.m) * bad**code.m


def window_annual_loss(code: Code, failure_rate: float, repair_h: float) -> float:
    """The chance of loss within a year as Backblaze publishes it: a year is windows of one repair time.

    For comparison only. It misses overlaps across the windows' edges and is m+1 times too good for small λr.
    """
    down = -expm1(-failure_rate * repair_h)
    more = range(code.m + 1, code.n + 1)
    loss = sum(comb(code.n, count) * down**count * (1 - down) ** (code.n - count) for count in more)
    return -expm1(HOURS_A_YEAR / repair_h * log1p(-loss)) if loss < 1 else 1.0


def acknowledge_exposure(code: Code, failure_rate: float, repair_h: float, *, spare: int) -> float:
    """The chance that a write acknowledged with k+spare fragments is lost before its others are restored."""
    assert 0 <= spare <= code.m
    return comb(code.k + spare, spare + 1) * (failure_rate * repair_h) ** (spare + 1)


def any_loss(rate: float, groups: int) -> float:
    """The chance that any of so many groups of fragments (volumes) is lost within a year."""
    return -expm1(-rate * HOURS_A_YEAR * groups)


def burst_loss(code: Code, *, disks: int, lost: int, groups: int) -> float:
    """The chance that an event which takes so many disks at once, picked blindly, takes any group with it.

    Args:
        groups: different sets of n disks that hold a volume, spread blindly. Fewer sets, less often a loss,
            but then of more at once (Cidon et al., Copysets, 2013).
    """
    assert code.n <= disks
    assert 0 <= lost <= disks
    hit = sum(
        comb(lost, bad) * comb(disks - lost, code.n - bad)
        for bad in range(code.m + 1, min(code.n, lost) + 1)
        if code.n - bad <= disks - lost
    )
    one = hit / comb(disks, code.n)
    return -expm1(groups * log1p(-one)) if one < 1 else 1.0
