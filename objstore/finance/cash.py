"""Month after month: what is sold, what comes in, what is left, and when all is repaid.

    s_t     sold share of what is not committed at the end of month t: along the curve
    rev_t   ((s_(t-1) + s_t)/2 x retail TB x price + committed TB x its price) x (1 - bad debt), in hundredths
    cum_t   -capex + sum of (rev - opex); discounted: each divided by (1 + r/12)^t
    payback the first t with cum_t >= 0

Rates a year are nominal, a twelfth of them a month. Exact but for exponentials, discounts and the internal
rate of return, which are kept to twenty places: exact quotients of hundreds of months have thousands.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Final

from objstore.finance.hardware import Hardware, Opex, capex, cents, hardware, opex
from objstore.finance.inputs import Inputs

DIGITS: Final = Context(prec=40)
PLACES: Final = 20
IRR_STEPS: Final = 200  # Halvings: more than forty digits have.
RATE_MAX: Final = Decimal(10)  # A month: beyond it nobody asks.


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    number: int  # From 1.
    sold: Fraction  # Of what is usable, at its end.
    revenue: Fraction
    opex: Fraction
    net: Fraction
    cumulative: Fraction
    discounted: Fraction  # Cumulative, not rounded.
    debt_service: Fraction
    dscr: Fraction | None  # Net for each unit of debt service; None: no loan is repaid any more.


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    machines: Hardware
    running: Opex
    capex: Fraction
    months: tuple[Month, ...]
    payback: int | None  # None: not within the plan.
    payback_discounted: int | None
    npv: Fraction
    irr: Decimal | None  # A year, nominal; None: what comes in never outweighs what was invested.
    instalment: Fraction
    interest: Fraction  # Over the loan's whole time.
    dscr_least: Fraction  # Of the months in which the loan is repaid,
    dscr_mean: Fraction  # and on the average.


def precise(value: Fraction) -> Fraction:
    """Rounded down to PLACES places."""
    return Fraction(value * 10**PLACES // 1, 10**PLACES)


def curve(plan: Inputs) -> list[Fraction]:
    """s_0 to s_months: the share that is sold at the end of each month."""
    if plan.curve == "step":
        return [plan.fill if t >= plan.ramp else Fraction(0) for t in range(plan.months + 1)]
    if plan.curve == "linear":
        return [plan.fill * min(Fraction(1), Fraction(t, plan.ramp)) for t in range(plan.months + 1)]
    slope = Decimal(plan.steepness.numerator) / Decimal(plan.steepness.denominator)
    return [
        precise(plan.fill * Fraction(1 / (1 + DIGITS.exp(-slope * (t - plan.ramp)))))
        for t in range(plan.months + 1)
    ]


def revenues(plan: Inputs, usable_tb: Fraction) -> list[Fraction]:
    """Of each month."""
    sold = curve(plan)
    retail = usable_tb * (1 - plan.committed)
    fixed = usable_tb * plan.committed * plan.committed_price
    paid = 1 - plan.bad_debt
    return [
        cents(((before + after) / 2 * retail * plan.price + fixed) * paid) for before, after in pairwise(sold)
    ]


def forecast(plan: Inputs) -> Forecast:
    """The whole plan. Raises: BadArgument."""
    machines = hardware(plan)
    running = opex(plan, machines)
    invested = capex(plan, machines)
    loan = plan.loan or invested
    instalment = annuity(loan, plan.loan_rate, plan.loan_months)
    sold = curve(plan)
    months: list[Month] = []
    cumulative = discounted = -invested
    factor = Fraction(1)
    for number, revenue in enumerate(revenues(plan, machines.usable_tb), 1):
        net = revenue - running.total
        factor = precise(factor / (1 + plan.discount / 12))
        cumulative += net
        discounted += precise(net * factor)
        service = instalment if number <= plan.loan_months else Fraction(0)
        months.append(
            Month(
                number=number,
                sold=plan.committed + (1 - plan.committed) * sold[number],
                revenue=revenue,
                opex=running.total,
                net=net,
                cumulative=cumulative,
                discounted=discounted,
                debt_service=cents(service),
                dscr=net / service if service else None,
            )
        )
    covers = [month.dscr for month in months if month.dscr is not None]
    return Forecast(
        machines=machines,
        running=running,
        capex=invested,
        months=tuple(months),
        payback=_first(month.cumulative for month in months),
        payback_discounted=_first(month.discounted for month in months),
        npv=months[-1].discounted,
        irr=rate_of_return([-invested, *(month.net for month in months)]),
        instalment=cents(instalment),
        interest=cents(instalment * plan.loan_months - loan),
        dscr_least=min(covers, default=Fraction(0)),
        dscr_mean=sum(covers, Fraction(0)) / len(covers) if covers else Fraction(0),
    )


def cumulative_after(plan: Inputs, months: int) -> Fraction:
    """What is left after so many months, less than nothing: what is not repaid yet. Raises: BadArgument."""
    machines = hardware(plan)
    until = replace(plan, months=months, target_months=min(months, plan.target_months))
    received = sum(revenues(until, machines.usable_tb), Fraction(0))
    return received - months * opex(plan, machines).total - capex(plan, machines)


def _first(amounts: Iterable[Fraction]) -> int | None:
    return next((number for number, value in enumerate(amounts, 1) if value >= 0), None)


def annuity(loan: Fraction, rate: Fraction, months: int) -> Fraction:
    """The equal instalment that repays a loan, not rounded. Args: rate: a year."""
    monthly = rate / 12
    if not monthly:
        return loan / months
    return loan * monthly / (1 - (1 + monthly) ** -months)


def rate_of_return(flows: Sequence[Fraction]) -> Decimal | None:
    """The nominal rate a year at which flows, the first of now and one a month, are worth nothing.

    Returns:
        None if the sum of what comes in is less than what was invested.
    """
    if sum(flows) < 0:
        return None
    amounts = [DIGITS.divide(Decimal(flow.numerator), Decimal(flow.denominator)) for flow in flows]
    low, high = Decimal(0), RATE_MAX
    for _ in range(IRR_STEPS):
        middle = (low + high) / 2
        if _worth(amounts, middle) >= 0:
            low = middle
        else:
            high = middle
    return low * 12


def _worth(amounts: Sequence[Decimal], monthly: Decimal) -> Decimal:
    """By Horner: the last month first."""
    total = Decimal(0)
    for amount in reversed(amounts):
        total = DIGITS.add(amount, DIGITS.divide(total, 1 + monthly))
    return total
