"""`objstore durability`: what a code is worth before anyone buys disks, and how safe a running store is."""

import math
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from objstore.cli.client import AdminClient, AdminOption, ConfigOption, DataOption
from objstore.cli.output import USAGE, Format, OutputOption, fail, show
from objstore.durability import units
from objstore.durability.assessment import Assessment, Measured, assess, longest_repair, nines, with_measured
from objstore.durability.chain import loss_rate
from objstore.durability.formulas import acknowledge_exposure, burst_loss
from objstore.durability.model import HOURS_A_YEAR, Code, Domain, Model, hourly_rate, latent_rate
from objstore.durability.plot import svg as drawn
from objstore.durability.simulation import Estimate, Repairs, estimate
from objstore.errors import BadArgument

Facts = dict[str, Any]

CODECS_MAX: Final = 20
CYCLES_MAX: Final = 10_000_000  # About ten minutes.
PLOTTED_H: Final = (1.0, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 168.0, 336.0, 720.0)
SHORTEST_H: Final = 1 / 60  # Of a measured repair: repair looks once a minute.
SHARE_SHOWN: Final = 0.005  # A cause below half a percent is none.
CAVEAT: Final = (
    "Of hardware as assumed here. Software, operators and theft lose more data than disks do, "
    "and no code protects from them."
)


def durability(
    codec: Annotated[
        str | None, typer.Option(help="data+parity, one or more: 4+2,8+4.  [8+4]", show_default=False)
    ] = None,
    afr: Annotated[str, typer.Option(help="Disks that fail within a year.")] = "1.5%",
    repair: Annotated[str, typer.Option(help="Mean, from failure to fragments restored.")] = "24h",
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="A stripe's fragments are restored one after another.")
    ] = False,
    latent: Annotated[str, typer.Option(help="Places on a disk that go bad unnoticed.")] = "1/year",
    scrub: Annotated[str, typer.Option(help="All is read and verified once in this time.")] = "14d",
    disk_size: Annotated[str, typer.Option(help="Size of a disk (with --latent).")] = "16TB",
    object_size: Annotated[str, typer.Option(help="Size of an object (with --latent).")] = "1MiB",
    domain: Annotated[
        list[str] | None,
        typer.Option(
            help="What fails as a whole, narrowest first, once per level: "
            "rack:fragments=3,afr=0.5%[,lost=1%][,repair=3d], or rate=2/year for afr.",
            show_default=False,
        ),
    ] = None,
    objects: Annotated[str, typer.Option(help="Objects stored.")] = "1G",
    volumes: Annotated[
        str | None, typer.Option(help="Volumes: the chance that any of them is lost.", show_default=False)
    ] = None,
    burst: Annotated[
        str | None,
        typer.Option(help="50/5000: disks lost at once, of so many (with --volumes).", show_default=False),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Nines: the longest repair that reaches them.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check by simulation.")] = False,
    cycles: Annotated[int, typer.Option(help="Simulated cycles (with --check).")] = 20_000,
    seed: Annotated[
        int | None, typer.Option(help="Of the simulation.  [from the clock]", show_default=False)
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Nines for repairs from 1 hour to 30 days.")] = False,
    svg: Annotated[
        Path | None, typer.Option(help="The same, drawn into this file.", show_default=False)
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the running store for its code and what it has measured.")
    ] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    form: OutputOption = None,
) -> None:
    """How safe is a code: nines a year, objects lost, what would lose them, what would help.

    The answer is exact for independent and for correlated failures (docs/durability.md); --check simulates it
    too.
    """
    try:
        store = AdminClient(data, config, admin) if live else None
        codes, origins, measured = _asked(store, codec)
        if len(codes) > CODECS_MAX:
            raise BadArgument(f"--codec: at most {CODECS_MAX} at once")
        if not 2 <= cycles <= CYCLES_MAX:
            raise BadArgument(f"--cycles: {cycles} must be from 2 to {CYCLES_MAX}")
        if target is not None and not 0 < target <= 100:
            raise BadArgument(f"--target: {target} nines must be above 0 and at most 100")
        lost = units.burst(burst, "--burst") if burst is not None else None
        groups = units.count(volumes, "--volumes") if volumes is not None else None
        if lost and groups is None:
            raise BadArgument("--burst needs --volumes")
        many = units.count(objects, "--objects")
        domains = tuple(units.domain(text) for text in domain or ())
        failures = units.percentage(afr, "--afr")
        models = [
            Model(
                code=code,
                failure_rate=hourly_rate(failures),
                repair_h=units.hours(repair, "--repair"),
                serial=one_by_one,
                latent_rate=latent_rate(
                    per_disk_year=units.per_year(latent, "--latent"),
                    disk_size=units.size(disk_size, "--disk-size"),
                    object_size=units.size(object_size, "--object-size"),
                    k=code.k,
                ),
                scrub_h=units.hours(scrub, "--scrub"),
                domains=domains,
            )
            for code in codes
        ]
        if measured is not None:
            words: list[str] = []
            for at, model in enumerate(models):
                models[at], words = with_measured(model, measured)
            origins += words
        seed = seed if seed is not None else time.time_ns() % 2**32
        rows: list[Facts] = []
        details: list[tuple[Assessment, list[Estimate]]] = []
        for model in models:
            found = assess(model)
            kinds = Repairs if check else ()
            checks = [estimate(model, seed=seed, cycles=cycles, repairs=kind) for kind in kinds]
            row = _row(found, many, groups, checks)
            if lost and groups is not None:
                _fits(model.code, lost)
                row["burst_loss"] = _short(burst_loss(model.code, disks=lost[1], lost=lost[0], groups=groups))
            if target is not None:
                row["target_nines"] = target
                row["longest_repair_h"] = _short(longest_repair(model, target))
            if plot or svg is not None:
                row["by_repair"] = [
                    {"repair_h": hours, "nines": _short(nines(loss_rate(replace(model, repair_h=hours))))}
                    for hours in PLOTTED_H
                ]
            row["origins"] = origins
            rows.append(row)
            details.append((found, checks))
    except BadArgument as failure:
        fail(str(failure), USAGE)
    if svg is not None:
        _draw(svg, rows)
    if form is None and sys.stdout.isatty():
        form = Format.TABLE
    if form is Format.TABLE:
        _for_people(rows, details, many, plot)
    else:
        show(rows, [name for name in rows[0] if name not in NESTED], form)


NESTED: Final = ("causes", "improvements", "checks", "acknowledged", "by_repair", "assumed", "origins")


def _fits(code: Code, lost: tuple[int, int]) -> None:
    if code.n > lost[1]:
        raise BadArgument(f"--burst: {code} does not fit on {lost[1]} disks")


# --- asking the store -----------------------------------------------------------------------------


def _asked(store: AdminClient | None, codec: str | None) -> tuple[list[Code], list[str], Measured | None]:
    """(codes, where they are from, what was measured or None when no store was asked)."""
    if store is None:
        return units.codecs(codec if codec is not None else "8+4"), [], None
    facts = store.get("/api/v1/status").get("facts", {})
    own = str(facts.get("codec", "")).partition(",")[0]
    if codec is not None:
        codes, origins = units.codecs(codec), [f"codec {codec}: given (the store's is {own or 'unknown'})"]
    elif own:
        codes, origins = units.codecs(own), [f"codec {own}: the store's"]
    else:
        raise BadArgument("the store does not say which codec it uses: name one with --codec")
    return codes, origins, measured_by(store.get("/api/v1/upkeep"), time.time())


def measured_by(upkeep: Facts, now_s: float) -> Measured:
    """What a store says of its own repairs and scrubs (GET /api/v1/upkeep).

    Not how many disks fail: a node that is off takes its disks with it, and they come back.
    """
    finished_us = upkeep["scrub"]["last_round_finished_us"]
    repairs_h = [(one["restored_us"] - one["gone_us"]) / 3.6e9 for one in upkeep["restorations"]]
    return Measured(
        repairs_h=[max(hours, SHORTEST_H) for hours in repairs_h],
        scrub_age_h=max(now_s - finished_us / 1e6, 0.0) / 3600 if finished_us else None,
    )


# --- answers --------------------------------------------------------------------------------------


def _short(value: float | None) -> float | None:
    """Six digits: the inputs have two or three. None for what JSON has no number for."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _row(found: Assessment, objects: int, groups: int | None, checks: list[Estimate]) -> Facts:
    model = found.model
    code = model.code
    lost = found.lost_a_year(objects)
    cause, share = found.causes[0] if found.causes else ("nothing", 0.0)
    help_words, help_gain = found.improvements[0]
    row: Facts = {
        "codec": str(code),
        "overhead": _short(code.overhead),
        "nines": _short(found.nines),
        "annual_loss": _short(found.annual_loss),
        "objects": objects,
        "objects_lost_per_year": _short(lost),
        "mttdl_years": _short(found.mttdl_years),
        "dominated_by": cause,
        "dominated_by_share": _short(share),
        "best_improvement": help_words,
        "best_improvement_nines": _short(help_gain),
        "window_model_nines": _short(found.published_nines),
    }
    if groups is not None:
        row["volumes"] = groups
        row["any_volume_lost_per_year"] = _short(found.any_loss(groups))
    for one in checks:
        row[f"check_{one.repairs}_nines"] = _short(_estimated_nines(one.rate))
    row["assumed"] = {
        "afr": _short(_yearly(model.failure_rate)),
        "repair_h": _short(model.repair_h),
        "one_by_one": model.serial,
        "latent_errors_per_fragment_year": _short(model.latent_rate * HOURS_A_YEAR),
        "scrub_h": _short(model.scrub_h),
        "domains": [_domain_facts(domain) for domain in model.domains],
    }
    row["causes"] = [{"cause": name, "share": _short(share)} for name, share in found.causes]
    row["improvements"] = [{"change": words, "nines": _short(gain)} for words, gain in found.improvements]
    if found.stronger is not None:
        more, gain = found.stronger
        row["improvements"].append({"change": f"codec {more}", "nines": _short(gain)})
    row["acknowledged"] = [
        {
            "fragments": code.k + spare,
            "loss": _short(acknowledge_exposure(code, model.failure_rate, model.repair_h, spare=spare)),
        }
        for spare in range(min(code.m, 4) + 1)
    ]
    if checks:
        row["checks"] = [_check_facts(found, one) for one in checks]
    return row


def _domain_facts(domain: Domain) -> Facts:
    return {
        "name": domain.name,
        "fragments": domain.fragments,
        "events_per_year": _short(domain.rate * HOURS_A_YEAR),
        "lost": domain.lost,
        "repair_h": domain.repair_h,
    }


def _check_facts(found: Assessment, one: Estimate) -> Facts:
    return {
        "repairs": str(one.repairs),
        "nines": _short(_estimated_nines(one.rate)),
        "nines_low": _short(_estimated_nines(one.high)),
        "nines_high": _short(_estimated_nines(one.low)),
        "verdict": _verdict(found, one),
        "cycles": one.cycles,
        "effective_losses": _short(one.hits),
        "seed": one.seed,
    }


def _verdict(found: Assessment, one: Estimate) -> str:
    if not one.trusted:
        return "not conclusive: too few losses, give more --cycles"
    if one.holds(float(found.hourly_loss)):
        return "agrees"
    if one.repairs is Repairs.FIXED:
        return "repairs that all take equally long change the result"
    return "outside the 95% interval (one seed in twenty is): try another --seed"


def _estimated_nines(rate: float) -> float | None:
    return nines(Decimal(rate)) if rate else None


def _yearly(rate: float) -> float:
    return -math.expm1(-rate * HOURS_A_YEAR)


def _for_people(
    rows: list[Facts], details: list[tuple[Assessment, list[Estimate]]], objects: int, plot: bool
) -> None:
    lines: list[Facts] = []
    for row, (found, _) in zip(rows, details, strict=True):
        words, gain = found.improvements[0]
        lost = found.lost_a_year(objects)
        line: Facts = {
            "codec": row["codec"],
            "overhead": f"{row['overhead']:.3g}x",
            "nines": f"{found.nines:.2f}",
            f"lost a year of {objects:.3g}": f"{lost:.2g}",
            "one lost in": units.time_text(HOURS_A_YEAR / lost) if lost else "never",
            "MTTDL": units.time_text(found.mttdl_years * HOURS_A_YEAR),
        }
        if "any_volume_lost_per_year" in row:
            line[f"any of {row['volumes']} volumes lost in a year"] = _chance(row["any_volume_lost_per_year"])
        if "burst_loss" in row:
            line["lost in such a burst"] = _chance(row["burst_loss"])
        if "target_nines" in row:
            longest = row["longest_repair_h"]
            line[f"repair for {row['target_nines']:g} nines"] = (
                "none is quick enough" if longest is None else f"at most {units.time_text(longest)}"
            )
        line["dominated by"] = f"{row['dominated_by']} ({row['dominated_by_share']:.0%})"
        line["would help most"] = f"{words} (+{gain:.2f} nines)"
        lines.append(line)
    if len(lines) == 1:
        facts = [{"what": what, "value": value} for what, value in lines[0].items()]
        show(facts, ["what", "value"], Format.TABLE)
        found, _ = details[0]
        show(
            [
                {"without": name, "loss_shrinks_by": f"{share:.1%}"}
                for name, share in found.causes
                if share >= SHARE_SHOWN
            ],
            ["without", "loss_shrinks_by"],
            Format.TABLE,
        )
        gains = [*found.improvements]
        if found.stronger is not None:
            gains.append((f"codec {found.stronger[0]}", found.stronger[1]))
        show(
            [{"change": words, "nines gained": f"{gain:+.2f}"} for words, gain in gains],
            ["change", "nines gained"],
            Format.TABLE,
        )
    else:
        show(lines, list(lines[0]), Format.TABLE)
    checked = [{"codec": row["codec"], **one} for row in rows for one in row.get("checks", ())]
    if checked:
        columns = ["codec", "repairs", "nines", "nines_low", "nines_high", "verdict", "cycles", "seed"]
        show(checked, columns, Format.TABLE)
    if plot:
        by_repair = [
            {
                "repair": units.time_text(hours),
                **{row["codec"]: f"{row['by_repair'][at]['nines']:.2f}" for row in rows},
            }
            for at, hours in enumerate(PLOTTED_H)
        ]
        show(by_repair, list(by_repair[0]), Format.TABLE)
    for words in rows[0]["origins"]:
        print(words)
    print(f"Assumed: {_assumptions(details[0][0].model)}.")
    print(CAVEAT)


def _chance(value: float) -> str:
    return f"{value:.2%}" if value >= 1e-4 else f"{value:.2g}"


def _assumptions(model: Model) -> str:
    words = [
        f"AFR {_yearly(model.failure_rate):.3g}",
        f"repair {units.time_text(model.repair_h)}{' one by one' if model.serial else ''}",
        f"latent errors {model.latent_rate * HOURS_A_YEAR:.2g} per fragment and year",
        f"scrub {units.time_text(model.scrub_h)}",
    ]
    words += [
        f"{domain.name}: {domain.rate * HOURS_A_YEAR:.3g} a year, {domain.fragments} fragments, "
        f"{domain.lost:.3g} lost"
        for domain in model.domains
    ]
    return "; ".join(words)


def _draw(place: Path, rows: list[Facts]) -> None:
    lines = {row["codec"]: [point["nines"] for point in row["by_repair"]] for row in rows}
    try:
        place.write_text(drawn("Durability by repair time", PLOTTED_H, lines), encoding="utf-8")
    except OSError as failure:
        fail(f"{place} was not written: {failure.strerror}")
