"""What an operator wants to know of a model: how safe it is, what would lose data, what would help most; and
the same of what a store has measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from typing import Final

from objstore.durability.chain import CONTEXT, loss_rate
from objstore.durability.formulas import any_loss, window_annual_loss
from objstore.durability.model import FRAGMENTS_MAX, HOURS_A_YEAR, PARITY_MAX, Code, Model
from objstore.errors import BadArgument

REPAIR_LONGEST_H: Final = HOURS_A_YEAR
REPAIR_SHORTEST_H: Final = 0.01
FAILURES_MIN: Final = 10  # A rate from fewer events is uncertain by more than a factor of two (95%).


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """One code, judged. All of one stripe (hence of any object in it) unless said otherwise."""

    model: Model
    hourly_loss: Decimal  # Exact.
    nines: float  # -log10 of the chance that one object is lost within a year.
    annual_loss: float  # That chance.
    mttdl_years: float
    published_nines: float  # Disk failures alone, in the window model: what others would print.
    causes: list[tuple[str, float]]  # By how much of the loss would be gone without each; largest first.
    improvements: list[tuple[str, float]]  # What could be done, and the nines gained; most first.
    stronger: tuple[Code, float] | None  # One more parity fragment, and the nines gained; None: not known.

    def lost_a_year(self, objects: int) -> float:
        """Objects expected to be lost per year, of so many."""
        return float(self.hourly_loss * Decimal(HOURS_A_YEAR)) * objects

    def any_loss(self, groups: int) -> float:
        """The chance that a year loses any of so many volumes."""
        return any_loss(float(self.hourly_loss), groups)


def assess(model: Model) -> Assessment:
    """Judge one model: about ten chains are solved. Blocks the CPU. Raises: BadArgument (too many states)."""
    rate = loss_rate(model)
    code = model.code
    if model.failure_rate:
        published = -math.log10(window_annual_loss(code, model.failure_rate, model.repair_h) or 5e-324)
    else:
        published = math.inf
    causes = (
        [(cause, 1 - float(loss_rate(model.without(cause)) / rate)) for cause in model.causes] if rate else []
    )
    improvements = [(words, _gain(rate, changed)) for words, changed in _changes(model)]
    stronger = None
    if code.m < PARITY_MAX and code.n < FRAGMENTS_MAX and rate:
        more = Code(code.k, code.m + 1)
        try:
            stronger = (more, _gain(rate, replace(model, code=more)))
        except BadArgument:
            pass  # Its chain has too many states; nobody asked for that code.
    return Assessment(
        model=model,
        hourly_loss=rate,
        nines=nines(rate),
        annual_loss=float(_annual(rate)),
        mttdl_years=float(1 / (rate * Decimal(HOURS_A_YEAR))) if rate else math.inf,
        published_nines=published,
        causes=sorted(causes, key=lambda cause: -cause[1]),
        improvements=sorted(improvements, key=lambda change: -change[1]),
        stronger=stronger,
    )


def _changes(model: Model) -> list[tuple[str, Model]]:
    """What an operator can do without buying another code."""
    changes = [("repair in half the time", replace(model, repair_h=model.repair_h / 2))]
    if model.serial:
        changes.append(("repair side by side", replace(model, serial=False)))
    if model.latent_rate:
        changes.append(("scrub twice as often", replace(model, scrub_h=model.scrub_h / 2)))
    for at, domain in enumerate(model.domains):
        narrower = model.domains[at - 1].fragments if at else 1
        if domain.fragments > narrower:
            fewer = replace(domain, fragments=min(domain.fragments, model.code.n) - 1)
            domains = (*model.domains[:at], fewer, *model.domains[at + 1 :])
            words = f"at most {fewer.fragments} fragment{'s' * (fewer.fragments > 1)} in a {domain.name}"
            if fewer.fragments >= narrower:
                changes.append((words, replace(model, domains=domains)))
        if domain.repair_h is not None:
            quicker = replace(domain, repair_h=domain.repair_h / 2)
            domains = (*model.domains[:at], quicker, *model.domains[at + 1 :])
            changes.append((f"repair of a {domain.name} in half the time", replace(model, domains=domains)))
    return changes


def _gain(rate: Decimal, changed: Model) -> float:
    return nines(loss_rate(changed)) - nines(rate)


def _annual(rate: Decimal) -> Decimal:
    """1 - exp(-rate x year), without cancellation."""
    with localcontext(CONTEXT):
        mean = rate * Decimal(HOURS_A_YEAR)
        if mean > Decimal("0.01"):
            return 1 - (-mean).exp()
        term = total = mean
        for power in range(2, 30):  # 0.01 ** 29 / 29! is beyond the last digit.
            term *= -mean / power
            total += term
        return total


def nines(rate: Decimal) -> float:
    """Of durability in a year, at so many losses per hour."""
    with localcontext(CONTEXT):
        return -float(_annual(rate).log10()) if rate else math.inf


def longest_repair(model: Model, target: float) -> float | None:
    """The longest mean repair (hours, to 0.1%, up to a year) that gives so many nines; None: none does."""

    def enough(repair_h: float) -> bool:
        return nines(loss_rate(replace(model, repair_h=repair_h))) >= target

    if not enough(REPAIR_SHORTEST_H):
        return None
    if enough(REPAIR_LONGEST_H):
        return REPAIR_LONGEST_H
    low, high = REPAIR_SHORTEST_H, REPAIR_LONGEST_H
    while high / low > 1.001:  # 14 steps.
        middle = math.sqrt(low * high)
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


# --- What a running store has measured ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of a store in service. Whatever it has not measured is absent, never a guess."""

    repairs_h: Sequence[float] = ()  # Each from a disk's failure to its fragments restored.
    scrub_age_h: float | None = None  # Since the bytes least recently verified were.
    failures: int = 0  # Of disks, within
    disk_hours: float = 0.0  # so many hours of all disks together.


def with_measured(model: Model, measured: Measured) -> tuple[Model, list[str]]:
    """The model with what was measured in place of what was assumed, and words for each value's origin.

    Repairs count with their mean (the loss rate depends on no more of them while failures are independent). A
    scrub age longer than the period replaces it: a round that is late is no round. The AFR is replaced after
    `FAILURES_MIN` failures.
    """
    words: list[str] = []
    if measured.repairs_h:
        mean = math.fsum(measured.repairs_h) / len(measured.repairs_h)
        model = replace(model, repair_h=mean)
        words.append(f"repair {mean:.3g} h: mean of {len(measured.repairs_h)} measured")
    else:
        words.append(f"repair {model.repair_h:.3g} h: assumed, none has been measured yet")
    if measured.scrub_age_h is None:
        words.append(f"scrub {model.scrub_h:.3g} h: assumed, no round has ended yet")
    elif measured.scrub_age_h > model.scrub_h:
        model = replace(model, scrub_h=measured.scrub_age_h)
        words.append(f"scrub {measured.scrub_age_h:.3g} h: measured, longer than the period")
    else:
        words.append(
            f"scrub {model.scrub_h:.3g} h: the period, kept (last round {measured.scrub_age_h:.3g} h ago)"
        )
    if measured.failures >= FAILURES_MIN and measured.disk_hours > 0:
        model = replace(model, failure_rate=measured.failures / measured.disk_hours)
        words.append(f"AFR: measured, {measured.failures} failures")
    else:
        assumed = -math.expm1(-model.failure_rate * HOURS_A_YEAR)
        words.append(f"AFR {assumed:.3g}: assumed, {measured.failures} failures say too little")
    return model, words
