"""The exact chain, against published figures and against a solution that is obviously right."""

import random
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import product

import pytest

from objstore.durability.assessment import longest_repair, nines
from objstore.durability.chain import loss_rate
from objstore.durability.formulas import birth_death_mttdl, closed_loss_rate
from objstore.durability.model import HOURS_A_YEAR, Code, Domain, Model, hourly_rate
from objstore.errors import BadArgument


def plain(k: int, m: int, afr: float, repair_h: float, *, serial: bool = False) -> Model:
    return Model(code=Code(k, m), failure_rate=hourly_rate(afr), repair_h=repair_h, serial=serial)


def annual(model: Model) -> float:
    return float(10 ** -Decimal(nines(loss_rate(model))))


@pytest.mark.parametrize(
    ("k", "m", "at_155", "at_4"),
    [
        (4, 2, 1.714e-9, 2.746e-7),
        (6, 3, 6.156e-13, None),
        (8, 3, 1.612e-12, 2.022e-9),
        (8, 4, 2.069e-16, 2.034e-12),
        (12, 4, 1.141e-15, 1.120e-11),
        (17, 3, 2.366e-11, 2.957e-8),
    ],
)
def test_the_published_annual_losses_come_out(k: int, m: int, at_155: float, at_4: float | None) -> None:
    assert annual(plain(k, m, 0.0155, 24)) == pytest.approx(at_155, rel=1e-3)
    if at_4 is not None:
        assert annual(plain(k, m, 0.04, 72)) == pytest.approx(at_4, rel=1e-3)


@pytest.mark.parametrize(
    ("k", "m", "per_year", "years"), [(4, 2, 2, 35.2), (8, 3, 4, 8.40), (17, 3, 2, 8.94)]
)
def test_the_published_mean_times_come_out_where_failures_are_frequent(
    k: int, m: int, per_year: float, years: float
) -> None:
    model = Model(code=Code(k, m), failure_rate=per_year / HOURS_A_YEAR, repair_h=72)
    assert 1 / (float(loss_rate(model)) * HOURS_A_YEAR) == pytest.approx(years, rel=2e-3)


@pytest.mark.parametrize(
    ("k", "m", "hours"),
    [
        (4, 2, (1.8, 0.43, 0.1)),
        (6, 3, (61, 17, 4.8)),
        (8, 3, (44, 12, 3.5)),
        (8, 4, (356, 107, 33)),
        (10, 4, (282, 85, 26)),
        (12, 4, (232, 70, 21)),
        (16, 4, (169, 51, 16)),
        (17, 3, (18, 5, 1.4)),
    ],
)
def test_the_longest_repair_for_eleven_nines_is_as_published(
    k: int, m: int, hours: tuple[float, float, float]
) -> None:
    for afr, published in zip((0.0155, 0.04, 0.10), hours, strict=True):
        found = longest_repair(plain(k, m, afr, 24), 11)
        # Published with one to three digits, some rounded and some cut.
        digit = 10 ** -len(str(published).partition(".")[2]) if "." in str(published) else 1
        assert found == pytest.approx(published, abs=digit)


@pytest.mark.parametrize("serial", [False, True])
@pytest.mark.parametrize("code", [Code(1, 1), Code(4, 2), Code(8, 4), Code(17, 3), Code(20, 12)])
def test_without_domains_and_latent_errors_it_is_the_birth_and_death_chain(code: Code, serial: bool) -> None:
    model = Model(code=code, failure_rate=2e-6, repair_h=31, serial=serial)
    expected = birth_death_mttdl(code, 2e-6, 31, serial=serial)
    assert float(1 / loss_rate(model)) == pytest.approx(expected, rel=1e-12)


def test_nothing_cancels_however_rare_a_loss_is() -> None:
    # 1e-13 an hour against repair in 0.1 h: a float's 16 digits would be gone in one subtraction.
    rate, repair_h, n, m = Fraction(1e-13), Fraction(0.125), 12, 4
    total = step = 1 / (n * rate)
    for down in range(1, m + 1):
        step = (1 + down / repair_h * step) / ((n - down) * rate)
        total += step
    model = Model(code=Code(8, 4), failure_rate=1e-13, repair_h=0.125)
    found = Fraction(loss_rate(model)) * total
    assert abs(found - 1) < Fraction(1, 10**40)
    rarest = loss_rate(Model(code=Code(64, 32), failure_rate=1e-13, repair_h=0.001))
    assert rarest.adjusted() < -400  # Beyond any float, and still a number.
    assert nines(rarest) > 400


@pytest.mark.parametrize("code", [Code(4, 2), Code(8, 3), Code(8, 4)])
def test_latent_errors_follow_the_closed_form_while_they_are_rare(code: Code) -> None:
    for u in (1e-9, 1e-7, 1e-6):
        model = Model(code=code, failure_rate=hourly_rate(0.0155), repair_h=2, latent_rate=u, scrub_h=336)
        assert float(loss_rate(model)) == pytest.approx(closed_loss_rate(model), rel=5e-3)


# --- every fragment for itself --------------------------------------------------------------------


def one_by_one(model: Model) -> Fraction:
    """The loss rate from a chain that tells every fragment apart, solved by Gauss in rationals.

    A state is a kind per fragment: None good, "disk", "latent", or the index of the domain that took it.
    """
    n, m = model.code.n, model.code.m
    levels = model.layout()
    means: dict[object, float] = {"disk": model.repair_h, "latent": model.latent_repair_h}
    for at, domain in enumerate(model.domains):
        means[at] = domain.repair_h if domain.repair_h is not None else model.repair_h
    good = (None,) * n
    numbers: dict[tuple[object, ...], int] = {good: 0}
    order: list[tuple[object, ...]] = [good]
    rows: list[dict[int, Fraction]] = []
    leaving: list[Fraction] = []
    for state in order:  # It grows.
        moves: list[tuple[Fraction, tuple[object, ...]]] = []

        def changed(state: tuple[object, ...], at: int, kind: object) -> tuple[object, ...]:
            return (*state[:at], kind, *state[at + 1 :])

        known = sum(kind not in (None, "latent") for kind in state)
        for at, kind in enumerate(state):
            if kind in (None, "latent"):
                moves.append((Fraction(model.failure_rate), changed(state, at, "disk")))
            if kind is None:
                moves.append((Fraction(model.latent_rate), changed(state, at, "latent")))
            else:
                share = known if model.serial and kind != "latent" else 1
                moves.append((1 / Fraction(means[kind]) / share, changed(state, at, None)))
        for level, (domain, places) in enumerate(zip(model.domains, levels, strict=True)):
            lost = Fraction(domain.lost)
            for place in set(places):
                there = [at for at in range(n) if places[at] == place and state[at] in (None, "latent")]
                for hits in product([False, True], repeat=len(there)):
                    chance = Fraction(domain.rate)
                    target = state
                    for at, hit in zip(there, hits, strict=True):
                        chance *= lost if hit else 1 - lost
                        target = changed(target, at, level) if hit else target
                    moves.append((chance, target))
        row: dict[int, Fraction] = {}
        out = Fraction(0)
        for rate, target in moves:
            if not rate or target == state:
                continue
            out += rate
            if sum(kind is not None for kind in target) <= m:
                if target not in numbers:
                    numbers[target] = len(order)
                    order.append(target)
                row[numbers[target]] = row.get(numbers[target], Fraction(0)) + rate
        rows.append(row)
        leaving.append(out)
    # leaving[i] T[i] - sum rows[i][j] T[j] = 1
    size = len(order)
    matrix = [[-rows[i].get(j, Fraction(0)) for j in range(size)] + [Fraction(1)] for i in range(size)]
    for i in range(size):
        matrix[i][i] += leaving[i]
    for pivot in range(size - 1, 0, -1):
        for i in range(pivot):
            if factor := matrix[i][pivot] / matrix[pivot][pivot]:
                matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[pivot], strict=True)]
    return matrix[0][0] / matrix[0][size]


RACK = Domain(name="rack", fragments=2, rate=1e-5)
WORLDS = {
    "disks": Model(code=Code(3, 2), failure_rate=1e-4, repair_h=20),
    "disks, one by one": Model(code=Code(3, 2), failure_rate=1e-4, repair_h=20, serial=True),
    "latent": Model(code=Code(2, 2), failure_rate=1e-4, repair_h=20, latent_rate=3e-4, scrub_h=100),
    "racks": Model(code=Code(3, 2), failure_rate=1e-4, repair_h=20, domains=(RACK,)),
    "racks of unequal size": Model(
        code=Code(3, 2), failure_rate=1e-4, repair_h=20, domains=(replace(RACK, fragments=3),)
    ),
    "slow racks": Model(
        code=Code(2, 2), failure_rate=1e-4, repair_h=20, domains=(replace(RACK, repair_h=90),)
    ),
    "half of a rack": Model(
        code=Code(2, 2), failure_rate=1e-4, repair_h=20, domains=(replace(RACK, lost=0.5),)
    ),
    "everything": Model(
        code=Code(2, 2),
        failure_rate=1e-4,
        repair_h=20,
        latent_rate=2e-4,
        scrub_h=50,
        domains=(
            Domain(name="node", fragments=1, rate=3e-5),
            replace(RACK, repair_h=90, lost=0.75),
            Domain(name="site", fragments=3, rate=1e-6),
        ),
    ),
}


@pytest.mark.parametrize("world", WORLDS)
def test_places_that_are_alike_may_be_taken_for_one_another(world: str) -> None:
    model = WORLDS[world]
    assert abs(Fraction(loss_rate(model)) / one_by_one(model) - 1) < Fraction(1, 10**40)


def test_more_failures_slower_repair_and_fuller_domains_never_make_it_safer() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(40):
        model = Model(
            code=Code(chance.randint(1, 10), chance.randint(1, 3)),
            failure_rate=10 ** chance.uniform(-8, -4),
            repair_h=10 ** chance.uniform(-1, 3),
            serial=chance.random() < 0.5,
            latent_rate=10 ** chance.uniform(-10, -5),
            scrub_h=10 ** chance.uniform(1, 3),
            domains=(Domain(name="rack", fragments=chance.randint(1, 3), rate=10 ** chance.uniform(-8, -5)),),
        )
        rack = model.domains[0]
        rate = loss_rate(model)
        for worse in (
            replace(model, failure_rate=model.failure_rate * 1.5),
            replace(model, repair_h=model.repair_h * 1.5),
            replace(model, latent_rate=model.latent_rate * 1.5),
            replace(model, scrub_h=model.scrub_h * 1.5),
            replace(model, domains=(replace(rack, rate=rack.rate * 1.5),)),
            replace(model, serial=True),
        ):
            assert loss_rate(worse) >= rate * Decimal("0.999999999"), worse


def test_what_one_domain_can_take_alone_bounds_the_loss_from_below() -> None:
    # 4 fragments of 4+2 in one rack: the rack's failure is the loss, however quick repair is.
    rack = Domain(name="rack", fragments=4, rate=1e-7)
    model = Model(code=Code(4, 2), failure_rate=1e-9, repair_h=0.01, domains=(rack,))
    assert float(loss_rate(model)) == pytest.approx(1e-7, rel=1e-6)  # The other rack holds 2: survivable.
    assert longest_repair(model, 11) is None


def test_a_world_without_failures_loses_nothing() -> None:
    model = Model(code=Code(4, 2), failure_rate=0.0, repair_h=24)
    assert loss_rate(model) == 0
    assert nines(loss_rate(model)) == float("inf")


def test_a_chain_too_large_to_solve_is_refused_and_says_what_to_leave_out() -> None:
    racks = (
        Domain(name="node", fragments=2, rate=1e-6, repair_h=30),
        Domain(name="rack", fragments=4, rate=1e-6, repair_h=40),
    )
    model = Model(code=Code(16, 8), failure_rate=1e-6, repair_h=24, latent_rate=1e-8, domains=racks)
    with pytest.raises(BadArgument, match=r"codec 16\+8: more than .* leave out"):
        loss_rate(model)


def test_domains_are_filled_one_after_another_each_within_the_wider_one() -> None:
    domains = (Domain(name="rack", fragments=2, rate=0), Domain(name="site", fragments=5, rate=0))
    rack, site = replace(plain(8, 4, 0.01, 1), domains=domains).layout()
    assert site == [0] * 5 + [1] * 5 + [2] * 2
    assert rack == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6]
