"""`objstore finance`: what a datacentre of storage costs, what it brings, and when it is repaid.

The options are the inputs of `finance/inputs.py`, one each: typer reads them from the command's signature,
which is made from that one list.
"""

import inspect
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from objstore.cli.output import USAGE, Format, OutputOption, fail, show
from objstore.errors import BadArgument
from objstore.finance import plot
from objstore.finance.cash import Forecast, Month, forecast
from objstore.finance.hardware import cents
from objstore.finance.inputs import DOCS, Inputs, inputs, read_toml, written
from objstore.finance.sensitivity import Bar, break_even_fill, break_even_price, tornado

Facts = dict[str, Any]

FILE_SIZE_MAX: Final = 64 * 1024  # Bytes of a file of inputs.
PLACES: Final = 6  # Of a price that just repays.

FileOption = Annotated[
    Path | None,
    typer.Option("--file", help="TOML with inputs by name; options go before it.", show_default=False),
]
MonthlyOption = Annotated[
    bool, typer.Option("--monthly", help="The table of months instead (CSV always is).")
]
TornadoOption = Annotated[
    Path | None, typer.Option("--tornado", help="Draw what matters most into this SVG.", show_default=False)
]
CashFlowOption = Annotated[
    Path | None,
    typer.Option("--cash-flow", help="Draw what is left by month into this SVG.", show_default=False),
]


def _finance(
    file: Path | None,
    monthly: bool,
    tornado_svg: Path | None,
    cash_flow: Path | None,
    form: Format | None,
    **given: str | None,
) -> None:
    try:
        told = {} if file is None else read_toml(_read(file))
        told |= {name: text for name, text in given.items() if text is not None}
        plan = inputs(told)
        found = forecast(plan)
        bars = tornado(plan)
        facts = _facts(plan, found, bars)
    except BadArgument as failure:
        fail(str(failure), USAGE)
    if tornado_svg is not None:
        left = found.months[plan.target_months - 1].cumulative
        title = f"Left after {plan.target_months} months, {plan.currency}, each input 20 % lower and higher"
        _write(tornado_svg, plot.tornado(title, left, bars))
    if cash_flow is not None:
        _write(cash_flow, plot.cash_flow(f"What is left, {plan.currency}", _lines(found)))
    if form is None and sys.stdout.isatty():
        form = Format.TABLE
    if monthly or form is Format.CSV:
        rows = [_month(month, found) for month in found.months]
        show(rows, list(rows[0]), form)
    elif form is Format.TABLE:
        _for_people(facts, bars)
    else:
        show([facts], [name for name, value in facts.items() if not isinstance(value, (dict, list))], form)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to see it: an option for every input, and those that are none."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    defaults = Inputs()
    parameters = [
        inspect.Parameter(
            name,
            keyword,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(help=f"{doc}  [{written(name, getattr(defaults, name))}]", show_default=False),
            ],
        )
        for name, doc in DOCS.items()
    ]
    others: tuple[tuple[str, Any, Any], ...] = (
        ("file", FileOption, None),
        ("monthly", MonthlyOption, False),
        ("tornado_svg", TornadoOption, None),
        ("cash_flow", CashFlowOption, None),
        ("form", OutputOption, None),
    )
    parameters += [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, annotation, default in others
    ]

    def finance(**given: Any) -> None:
        """What storage costs to build and run, what it brings, and when all is repaid.

        Without options: a datacentre of 20 million. Shares are percentages (80%), amounts plain numbers. The
        inputs are assumptions; rates and prices are for whoever decides to confirm.
        """
        command(**given)

    finance.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    finance.__annotations__ = {one.name: one.annotation for one in parameters}
    return finance


finance = _with_options(_finance)


def _read(place: Path) -> str:
    try:
        if place.stat().st_size > FILE_SIZE_MAX:
            fail(f"{place} has more than {FILE_SIZE_MAX} bytes", USAGE)
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        fail(f"{place} cannot be read: {failure}", USAGE)


def _write(place: Path, text: str) -> None:
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as failure:
        fail(f"{place} was not written: {failure.strerror}")


# --- answers --------------------------------------------------------------------------------------


def _money(value: Fraction) -> str:
    """In hundredths: 214837.77."""
    rounded = cents(value)
    return f"{Decimal(rounded.numerator) / Decimal(rounded.denominator):.2f}"


def _decimal(value: Fraction, places: int = 4) -> str:
    return f"{Decimal(value.numerator) / Decimal(value.denominator):.{places}f}"


def _percent(value: Fraction | Decimal | None) -> str | None:
    return None if value is None else f"{_decimal(Fraction(value) * 100, 2)}%"


def _up(value: Fraction | None) -> str | None:
    """To PLACES places, upwards: at such a price it is repaid."""
    if value is None:
        return None
    scale = 10**PLACES
    return _decimal(Fraction(-(-value * scale // 1), scale), PLACES)


def _facts(plan: Inputs, found: Forecast, bars: list[Bar]) -> Facts:
    machines, running = found.machines, found.running
    price = break_even_price(plan)
    return {
        "currency": plan.currency,
        "nodes": machines.nodes,
        "disks": machines.disks,
        "raw_tb": _decimal(machines.raw_tb, 0),
        "usable_tb": _decimal(machines.usable_tb, 0),
        "power_kw": _decimal(machines.watts / 1000, 1),
        "capex": _money(found.capex),
        "opex_a_month": _money(running.total),
        "energy": _money(running.energy),
        "replacement": _money(running.replacement),
        "maintenance": _money(running.maintenance),
        "revenue_in_the_end": _money(found.months[-1].revenue),
        "payback_month": found.payback,
        "payback_month_discounted": found.payback_discounted,
        "npv": _money(found.npv),
        "irr": _percent(found.irr),
        "instalment": _money(found.instalment),
        "interest": _money(found.interest),
        "dscr_least": _decimal(found.dscr_least),
        "dscr_mean": _decimal(found.dscr_mean),
        "target_months": plan.target_months,
        "left_at_target": _money(found.months[plan.target_months - 1].cumulative),
        "break_even_price": None if price is None else _money(price),
        "break_even_price_exact": _up(price),
        "break_even_fill": _percent(break_even_fill(plan)),
        "tornado": [_bar(bar) for bar in bars],
        "inputs": {name: written(name, getattr(plan, name)) for name in DOCS},
    }


def _bar(bar: Bar) -> Facts:
    return {
        "input": bar.name,
        "low": written(bar.name, bar.low),
        "high": written(bar.name, bar.high),
        "left_at_low": _money(bar.at_low),
        "left_at_high": _money(bar.at_high),
    }


def _month(month: Month, found: Forecast) -> Facts:
    running = found.running
    return {
        "month": month.number,
        "sold": _percent(month.sold),
        "revenue": _money(month.revenue),
        "energy": _money(running.energy),
        "replacement": _money(running.replacement),
        "maintenance": _money(running.maintenance),
        "staff": _money(running.staff),
        "connectivity": _money(running.connectivity),
        "other": _money(running.other),
        "opex": _money(month.opex),
        "net": _money(month.net),
        "cumulative": _money(month.cumulative),
        "discounted": _money(month.discounted),
        "debt_service": _money(month.debt_service),
        "dscr": None if month.dscr is None else _decimal(month.dscr),
    }


def _lines(found: Forecast) -> dict[str, list[Fraction]]:
    return {
        "cumulative": [-found.capex, *(month.cumulative for month in found.months)],
        "discounted": [-found.capex, *(month.discounted for month in found.months)],
    }


def _for_people(facts: Facts, bars: list[Bar]) -> None:
    lines = [
        {"what": name.replace("_", " "), "value": "none within the plan" if value is None else value}
        for name, value in facts.items()
        if not isinstance(value, (dict, list))
    ]
    show(lines, ["what", "value"], Format.TABLE)
    if bars:
        show(
            [_bar(bar) for bar in bars], ["input", "low", "high", "left_at_low", "left_at_high"], Format.TABLE
        )
    print("All inputs are assumptions (-o json shows them). Taxes and inflation are not in it.")
