"""What operators type, into numbers, and numbers into what they read. Anchored patterns, ASCII only."""

import math
import re
from typing import Final

from objstore.durability.model import HOURS_A_YEAR, Code, Domain, hourly_rate
from objstore.errors import BadArgument

_NUMBER: Final = r"([0-9]{1,15}(?:\.[0-9]{1,15})?(?:e[+-]?[0-9]{1,2})?)"
_HOURS: Final = {
    "s": 1 / 3600,
    "m": 1 / 60,
    "min": 1 / 60,
    "h": 1.0,
    "d": 24.0,
    "w": 168.0,
    "y": HOURS_A_YEAR,
}
_DECIMAL: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_PER_YEAR: Final = {"day": 365.25, "month": 12.0, "year": 1.0}


def codecs(text: str) -> list[Code]:
    """'4+2,8+4'. Raises: BadArgument."""
    found: list[Code] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,3})\+([0-9]{1,3})", part.strip(), re.ASCII)
        if match is None:
            raise BadArgument(f"{part.strip()!r} is not a codec: data+parity fragments, as in 8+4 or 4+2,8+4")
        code = Code(int(match[1]), int(match[2]))
        if code not in found:
            found.append(code)
    return found


def percentage(text: str, what: str, *, whole: bool = False) -> float:
    """'1.5%' as 0.015; a bare number is refused, since 1.5 may be meant either way.

    Args:
        whole: 100% is allowed.

    Raises: BadArgument.
    """
    match = re.fullmatch(_NUMBER + " ?%", text.strip(), re.ASCII)
    if match is None:
        hint = f": did you mean {text.strip()}%?" if re.fullmatch(_NUMBER, text.strip(), re.ASCII) else ""
        raise BadArgument(f"{what}: {text!r} is not a percentage like 1.5%{hint}")
    value = float(match[1]) / 100
    if not 0 < value < 1 and not (whole and value == 1):
        raise BadArgument(f"{what}: {text} must be above 0% and {'at most' if whole else 'below'} 100%")
    return value


def hours(text: str, what: str) -> float:
    """'24h', '90min', '3d', '2w', '1y'. Raises: BadArgument."""
    match = re.fullmatch(_NUMBER + " ?([a-z]*)", text.strip(), re.ASCII)
    if match is None or match[2] not in _HOURS:
        hint = ", with its unit" if match is not None and not match[2] else ""
        raise BadArgument(f"{what}: {text!r} is not a time like 30min, 24h, 14d or 2w{hint}")
    value = float(match[1]) * _HOURS[match[2]]
    if not 1 / 3600 <= value <= 100 * HOURS_A_YEAR:
        raise BadArgument(f"{what}: {text} must be at least 1s and at most 100y")
    return value


def per_year(text: str, what: str) -> float:
    """'0.5/year', '2/month', '0/year'. Raises: BadArgument."""
    match = re.fullmatch(_NUMBER + " ?/ ?(day|month|year)", text.strip(), re.ASCII)
    if match is None:
        raise BadArgument(f"{what}: {text!r} is not a rate like 0.5/year or 2/month")
    value = float(match[1]) * _PER_YEAR[match[2]]
    if value > 1e6:
        raise BadArgument(f"{what}: {text} is more than a million a year")
    return value


def size(text: str, what: str) -> int:
    """Bytes: '16TB' (powers of 1000), '1MiB' (powers of 1024). Raises: BadArgument."""
    match = re.fullmatch(_NUMBER + " ?([A-Za-z]{0,2})B", text.strip(), re.ASCII)
    units = {**_DECIMAL, **_BINARY}
    if match is None or match[2] not in units:
        raise BadArgument(f"{what}: {text!r} is not a size like 16TB, 1MiB or 4096B")
    value = float(match[1]) * units[match[2]]
    if not 1 <= value <= 1e18:
        raise BadArgument(f"{what}: {text} must be at least 1B and at most 1EB")
    return round(value)


def count(text: str, what: str) -> int:
    """'1000000', '1e9', '10M'. At least 1. Raises: BadArgument."""
    match = re.fullmatch(_NUMBER + " ?([kMGTPE]?)", text.strip(), re.ASCII)
    if match is None:
        raise BadArgument(f"{what}: {text!r} is not a count like 1000000, 1e9 or 10M")
    value = float(match[1]) * _DECIMAL[match[2]]
    if not 1 <= value <= 1e24 or value != math.floor(value):
        raise BadArgument(f"{what}: {text} must be a whole number from 1 to 1e24")
    return int(value)


def burst(text: str, what: str) -> tuple[int, int]:
    """'50/5000': (lost, of). Raises: BadArgument."""
    match = re.fullmatch(r"([0-9]{1,6}) ?/ ?([0-9]{1,6})", text.strip(), re.ASCII)
    if match is None:
        raise BadArgument(f"{what}: {text!r} is not like 50/5000, disks lost at once of how many")
    lost, disks = int(match[1]), int(match[2])
    if not 1 <= lost <= disks:
        raise BadArgument(f"{what}: {text} loses none of them, or more than there are")
    return lost, disks


def domain(text: str) -> Domain:
    """'rack:fragments=3,afr=0.5%[,lost=1%][,repair=3d]', or rate=2/year for afr. Raises: BadArgument."""
    name, _, rest = text.partition(":")
    what = f"--domain {name}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", name, re.ASCII):
        raise BadArgument(f"--domain: {text!r} is not like rack:fragments=3,afr=0.5%")
    given: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in ("fragments", "afr", "rate", "lost", "repair"):
            raise BadArgument(f"{what}: {part!r} is none of fragments=, afr=, rate=, lost=, repair=")
        if key in given:
            raise BadArgument(f"{what}: {key} is given twice")
        given[key] = value
    if "fragments" not in given:
        raise BadArgument(f"{what}: fragments=N is missing, how many of a stripe lie in one {name}")
    if ("afr" in given) == ("rate" in given):
        raise BadArgument(
            f"{what}: one of afr=0.5% and rate=2/year is needed, how often one {name} is struck"
        )
    if "afr" in given:
        rate = hourly_rate(percentage(given["afr"], f"{what}: afr"))
    else:
        rate = per_year(given["rate"], f"{what}: rate") / HOURS_A_YEAR
    return Domain(
        name=name,
        fragments=count(given["fragments"], f"{what}: fragments"),
        rate=rate,
        lost=percentage(given["lost"], f"{what}: lost", whole=True) if "lost" in given else 1.0,
        repair_h=hours(given["repair"], f"{what}: repair") if "repair" in given else None,
    )


def time_text(value_h: float) -> str:
    """Hours for people: '36 h', '14 d', '3.2e6 years'."""
    if value_h == math.inf:
        return "never"
    if value_h >= HOURS_A_YEAR:
        years = value_h / HOURS_A_YEAR
        return f"{years:,.0f} years" if 100 <= years < 1e6 else f"{years:.3g} years"
    if value_h < 1:
        return f"{value_h * 60:.3g} min"
    return f"{value_h:.3g} h" if value_h < 72 else f"{value_h / 24:.3g} d"
