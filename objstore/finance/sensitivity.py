"""What would have to be so for all to be repaid in time, and what matters most.

Revenue is proportional to the price and to the share that is sold: so the prices and shares at which a plan
just repays are quotients. Months are rounded to the hundredth each; a price found here may be short of that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

from objstore.errors import BadArgument
from objstore.finance.cash import cumulative_after, curve
from objstore.finance.hardware import capex, hardware, opex
from objstore.finance.inputs import KINDS, Inputs

VARIED: Final = (
    "price", "fill", "ramp", "committed_price", "facility", "network", "integration", "disk_tb", "disk_price",
    "node_price", "fill_max", "pue", "kwh_price", "staff", "connectivity", "other", "maintenance", "afr",
)  # fmt: skip
STEP: Final = Fraction(20, 100)  # By so much each is varied, up and down.
SHOWN: Final = 5
PRICE_MAX: Final = 10**9


def break_even_price(plan: Inputs) -> Fraction | None:
    """The retail price at which all is repaid after `target_months`; 0: what is committed repays all.

    None: at none below PRICE_MAX, since hardly anything is sold at retail by then.
    """
    sold, rest = _sold_and_rest(plan)
    if rest <= 0:
        return Fraction(0)
    return rest / sold if sold * PRICE_MAX > rest else None


def break_even_fill(plan: Inputs) -> Fraction | None:
    """The share to be sold in the end at which it is repaid; None: not even if all is sold."""
    sold, rest = _sold_and_rest(plan)
    if rest <= 0:
        return Fraction(0)
    if not sold or not plan.price:
        return None
    share = plan.fill * rest / (sold * plan.price)
    return share if share <= 1 else None


def _sold_and_rest(plan: Inputs) -> tuple[Fraction, Fraction]:
    """TB-months at retail that are paid for until then, and what they have to bring."""
    machines = hardware(plan)
    months = plan.target_months
    paid = 1 - plan.bad_debt
    shares = sum(
        ((before + after) / 2 for before, after in pairwise(curve(replace(plan, months=months)))), Fraction(0)
    )
    retail = machines.usable_tb * (1 - plan.committed) * shares * paid
    fixed = machines.usable_tb * plan.committed * plan.committed_price * months * paid
    return retail, capex(plan, machines) + months * opex(plan, machines).total - fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One input, lower and higher, and what is left after `target_months` then."""

    name: str
    low: Fraction | int  # The input,
    high: Fraction | int
    at_low: Fraction  # and what it comes to.
    at_high: Fraction

    @property
    def span(self) -> Fraction:
        return abs(self.at_high - self.at_low)


def tornado(plan: Inputs, *, step: Fraction = STEP, shown: int = SHOWN) -> list[Bar]:
    """The inputs that matter most, the widest bar first. What is zero has no bar."""
    bars: list[Bar] = []
    for name in VARIED:
        value = getattr(plan, name)
        low, high = _varied(name, value, 1 - step), _varied(name, value, 1 + step)
        if low == high:
            continue
        at_low, at_high = _left(plan, {name: low}), _left(plan, {name: high})
        if at_low is not None and at_high is not None:
            bars.append(Bar(name=name, low=low, high=high, at_low=at_low, at_high=at_high))
    bars = [bar for bar in bars if bar.span]
    return sorted(bars, key=lambda bar: (-bar.span, bar.name))[:shown]


def _varied(name: str, value: Fraction | int, factor: Fraction) -> Fraction | int:
    """Counts stay whole, shares at most 100 %."""
    if KINDS[name] == "count":
        return max(1, round(value * factor))
    varied = value * factor
    return min(varied, Fraction(1)) if KINDS[name] == "share" else varied


def _left(plan: Inputs, changes: Mapping[str, Any]) -> Fraction | None:
    """None: there is no such plan."""
    try:
        return cumulative_after(replace(plan, **changes), plan.target_months)
    except BadArgument:
        return None
