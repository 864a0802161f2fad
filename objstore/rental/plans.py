"""Rate cards: what is paid for what is used. A plan is a value; a version that was used never changes.

Operators write them in TOML or JSON (`config/plans/` has samples), metadata keeps them as PlanRecord. Prices
are decimals of at most 12 places: text, or numbers that are read as the decimals they are, never as binary
fractions.

    meter              in units of                                what is counted
    storage            GB GiB TB TiB PB PiB [-Hours]              byte-seconds of what is stored
    early_delete       the same                                   what the class's least age adds to them
    early_accrued      the same                                   the same, day by day as it would have passed
    requests_a, _b     [1000 | 10000 | 1000000] Requests          requests that are paid for
    egress_internet, _internal, _replication   GB ... PiB         bytes of bodies handed to the socket
    subscription       Month, Hour                                seconds in which the tenant had the plan

A quantity of storage is byte-seconds / (unit x 3,600 x the month's hours): calendar (24 x days), 730 or 720.
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import VALUE_SIZE_MAX
from objstore.meta.schema import ClassTerms, Record, encode
from objstore.rental.meters import HOUR_S
from objstore.rental.money import PLACES_MAX, minor_units
from objstore.rental.months import DAY_HOURS, Month
from objstore.rental.names import check_text

STORAGE: Final = "storage"
EARLY_DELETE: Final = "early_delete"
EARLY_ACCRUED: Final = "early_accrued"
REQUESTS: Final = ("requests_a", "requests_b")
EGRESS: Final = ("egress_internet", "egress_internal", "egress_replication")
SUBSCRIPTION: Final = "subscription"
STORED: Final = (STORAGE, EARLY_DELETE, EARLY_ACCRUED)  # Meters of byte-seconds.
METERS: Final = (*STORED, *REQUESTS, *EGRESS, SUBSCRIPTION)

BYTES: Final = {"GB": 10**9, "GiB": 2**30, "TB": 10**12, "TiB": 2**40, "PB": 10**15, "PiB": 2**50}
COUNTS: Final = {"Requests": 1, "1000 Requests": 1_000, "10000 Requests": 10_000, "1000000 Requests": 10**6}
_HOURS: Final = "-Hours"
_BYTE_HOURS: Final = {name + _HOURS: size for name, size in BYTES.items()}
TIMES: Final = ("Month", "Hour")

ANY: Final = "*"
STANDARD: Final = "STANDARD"
DAY_S: Final = DAY_HOURS * HOUR_S
ITEMS_MAX: Final = 64
TIERS_MAX: Final = 16
DISCOUNTS_MAX: Final = 16
TEXT_MAX: Final = 64 * 1024  # Letters of a plan as operators write it.
PRICE_MAX: Final = Decimal(10**15)
_CODE = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}", re.ASCII)
_NAME = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9_-]{0,47}", re.ASCII)
_ZERO: Final = Decimal(0)
V = TypeVar("V")


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What operators write, and metadata keeps as a map: what was not said is not there.

    An unknown name is an error in what is written (`parse_value`), but not in what a later release kept.
    """


class Tier(Value, frozen=True, kw_only=True):
    unit_price: Decimal = _ZERO
    up_to: Decimal | None = None  # The month's quantity up to which it holds, in units; None: without end.
    flat: Decimal = _ZERO  # Once a month, if the tier is reached.


class Rate(Value, frozen=True, kw_only=True):
    """What one meter costs.

    flat        the tier's `flat` once a month: of a subscription for the time it was held, else if anything
                was used
    per_unit    quantity x price
    graduated   each tier's part of the quantity at that tier's price
    volume      the whole quantity at the price of the tier that it ends in: where prices fall, one unit more
                can make the whole cheaper
    package     started packages of `package` units, each at the price
    """

    meter: str
    model: Literal["flat", "per_unit", "graduated", "volume", "package"]
    unit: str
    tiers: tuple[Tier, ...]
    storage_class: str = ANY
    region: str = ANY
    month_hours: Literal["calendar", 730, 720] = "calendar"
    free_fixed: Decimal = _ZERO  # Units a month.
    free_ratio: Decimal = _ZERO  # Of the bytes that were stored on average: egress up to that is free.
    min_billable: Decimal = _ZERO  # Units a month, once anything was used.
    min_object_bytes: int = 0  # A version of the class is billed as if it had at least so many;
    min_duration_days: int = 0  # and was there so long:
    early: Literal["once", "accrual"] = "once"  # what is missing in one sum, or as the days pass.
    package: Decimal = _ZERO  # Units in one.
    product: str = "storage"  # For tax rules.

    def base(self, month: Month) -> int:
        """Byte-seconds, requests, bytes or seconds in one unit, in that month."""
        if self.meter in STORED:
            if self.unit in _BYTE_HOURS:
                return _BYTE_HOURS[self.unit] * HOUR_S
            hours = month.hours if self.month_hours == "calendar" else self.month_hours
            return BYTES[self.unit] * HOUR_S * hours
        if self.meter == SUBSCRIPTION:
            return HOUR_S if self.unit == "Hour" else month.seconds
        return COUNTS[self.unit] if self.meter in REQUESTS else BYTES[self.unit]

    @property
    def label(self) -> str:
        """The unit as invoices and exports name it: GB-Months, TiB-Hours, 1000 Requests, Months."""
        if self.meter in STORED and self.unit in BYTES:
            return f"{self.unit}-Months"
        return f"{self.unit}s" if self.meter == SUBSCRIPTION else self.unit


class Discount(Value, frozen=True, kw_only=True):
    """A part of what lines come to. Several apply one after the other, each to what is left."""

    description: str
    rate: Decimal  # Above 0, at most 1: "0.10" is ten percent.
    kinds: tuple[Literal["usage", "commitment", "overage"], ...] = ("usage", "commitment", "overage")
    meters: tuple[str, ...] = ()  # None: all.
    storage_classes: tuple[str, ...] = ()


class Plan(Value, frozen=True, kw_only=True):
    code: str
    version: int
    currency: str
    items: tuple[Rate, ...]
    title: str = ""
    valid_from: date | None = None  # Tenants may be given it from this day on,
    valid_to: date | None = None  # and no longer from this day on.
    discounts: tuple[Discount, ...] = ()
    sla: str = ""  # The service level that it promises; a lease may promise another. Empty: none.

    def offered(self, day: date) -> bool:
        """Whether a tenant may be given it on that day."""
        begun = self.valid_from is None or self.valid_from <= day
        return begun and (self.valid_to is None or day < self.valid_to)

    def rate_for(self, meter: str, storage_class: str, region: str = "") -> Rate | None:
        """The one that names most of these; None: the plan has no price for it."""
        wanted = storage_class or STANDARD
        fitting = [
            rate
            for rate in self.items
            if rate.meter == meter and rate.storage_class in (ANY, wanted) and rate.region in (ANY, region)
        ]
        return max(fitting, key=lambda rate: (rate.storage_class != ANY, rate.region != ANY), default=None)


class PlanRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A version of a rate card, at Y p <plan> 00 <version 4>."""

    plan: Plan
    made_us: int = 0
    made_by: str = ""


def plan_key(code: str, version: int) -> bytes:
    """Raises: BadArgument, for what no plan is called."""
    if not _CODE.fullmatch(code):
        _refuse("code", "1 to 48 of a-z, 0-9, _ and -", code)
    if not 0 <= version < 2**32:
        _refuse("version", "1 to 4294967295", version)
    return b"Yp" + code.encode() + b"\0" + version.to_bytes(4, "big")


def parse_plan(text: str, form: Literal["toml", "json"] = "toml") -> Plan:
    """What an operator wrote. Raises: BadArgument, naming the field and the rule."""
    return check_plan(parse_value(text, form, Plan, "plan"))


def parse_value(text: str, form: Literal["toml", "json"], kind: type[V], name: str) -> V:
    """Text as a value, its numbers as the decimals they are. Raises: BadArgument."""
    if len(text) > TEXT_MAX:
        raise BadArgument(f"a {name} has at most {TEXT_MAX} letters", name=name)
    try:
        if form == "toml":
            data: Any = tomllib.loads(text, parse_float=Decimal)
            value = msgspec.convert(data, kind)
        else:
            data = msgspec.json.decode(text)
            value = msgspec.json.decode(text, type=kind)
        _check_names(data, value, "")
    except (ValueError, ArithmeticError, RecursionError) as failure:  # Of tomllib, msgspec and Decimal.
        raise BadArgument(f"not a {name}: {failure}", name=name) from failure
    return value


def _check_names(data: Any, value: Any, where: str) -> None:
    """Raises: ValueError, if what was written says more than was understood."""
    if isinstance(value, tuple):
        for index, (one, understood) in enumerate(zip(data, value, strict=True)):
            _check_names(one, understood, f"{where}[{index}]")
    elif isinstance(value, Value):
        for name, one in data.items():
            at = f"{where}.{name}" if where else name
            if name not in value.__struct_fields__:
                raise ValueError(f"unknown field {at}")
            _check_names(one, getattr(value, name), at)


def plan_json(plan: Plan) -> str:
    """As `parse_plan(..., "json")` reads it."""
    return msgspec.json.encode(plan).decode()


def class_terms(plan: Plan) -> dict[str, ClassTerms]:
    """What versions are billed for at least, for the account's record; by storage class, "" is STANDARD.

    Raises: BadArgument for a plan that accrues early deletes: they are metered once, when the version goes.
    """
    terms: dict[str, ClassTerms] = {}
    for rate in plan.items:
        if rate.min_object_bytes or rate.min_duration_days:
            if rate.early == "accrual":
                raise BadArgument(
                    f"plan {plan.code} bills early deletes day by day, but this store meters them once,"
                    ' when a version goes: make it early = "once"',
                    name="early",
                    value=rate.early,
                )
            name = "" if rate.storage_class == STANDARD else rate.storage_class
            terms[name] = ClassTerms(rate.min_object_bytes, rate.min_duration_days * DAY_S)
    return terms


def accrued_early(gone: Iterable[tuple[int, int, int]], begin_s: int, end_s: int) -> int:
    """Byte-seconds that versions which went too early are billed for in [begin, end), as the days pass.

    Args:
        gone: of each version: billed bytes, the second it went, and the second its least age ends.
    """
    return sum(size * max(0, min(due_s, end_s) - max(gone_s, begin_s)) for size, gone_s, due_s in gone)


# What a plan must be.


def check_plan(plan: Plan) -> Plan:
    """Raises: BadArgument, naming the field and the rule."""
    if not _CODE.fullmatch(plan.code):
        _refuse("code", "1 to 48 of a-z, 0-9, _ and -", plan.code)
    if not 1 <= plan.version < 2**32:
        _refuse("version", "1 to 4294967295", plan.version)
    minor_units(plan.currency)
    check_text(plan.title, "title")
    if plan.valid_from is not None and plan.valid_to is not None and plan.valid_from >= plan.valid_to:
        _refuse("valid_to", "a day after valid_from", plan.valid_to)
    if not 1 <= len(plan.items) <= ITEMS_MAX:
        _refuse("items", f"1 to {ITEMS_MAX} of them", len(plan.items))
    if len(plan.discounts) > DISCOUNTS_MAX:
        _refuse("discounts", f"at most {DISCOUNTS_MAX} of them", len(plan.discounts))
    places: set[tuple[str, str, str]] = set()
    for index, rate in enumerate(plan.items):
        where = f"items[{index}]"
        _check_rate(rate, where)
        place = (rate.meter, rate.storage_class, rate.region)
        if place in places:
            _refuse(where, "one price for a meter, class and region", "/".join(place))
        places.add(place)
    for index, discount in enumerate(plan.discounts):
        check_discount(discount, f"discounts[{index}]")
    size = len(encode(PlanRecord(plan=plan)))
    if size > VALUE_SIZE_MAX - 256:  # The record also says when and by whom.
        _refuse("items", f"at most {VALUE_SIZE_MAX - 256} bytes in all", size)
    return plan


def check_discount(discount: Discount, where: str = "discount") -> Discount:
    """Raises: BadArgument."""
    _check_decimal(discount.rate, f"{where}.rate")
    if not 0 < discount.rate <= 1:
        _refuse(f"{where}.rate", "above 0 and at most 1", discount.rate)
    if not check_text(discount.description, f"{where}.description"):
        _refuse(f"{where}.description", "given", "")
    _check_among(f"{where}.meters", discount.meters, METERS)
    for storage_class in discount.storage_classes:
        if not _NAME.fullmatch(storage_class) or storage_class == ANY:
            _refuse(f"{where}.storage_classes", "names; none for all", storage_class)
    return discount


def _check_rate(rate: Rate, where: str) -> None:
    _check_among(f"{where}.meter", (rate.meter,), METERS)
    _check_among(f"{where}.unit", (rate.unit,), units_of(rate.meter))
    for field, text in (("storage_class", rate.storage_class), ("region", rate.region)):
        if not _NAME.fullmatch(text):
            _refuse(f"{where}.{field}", "a name, or * for all", text)
    if not _CODE.fullmatch(rate.product):
        _refuse(f"{where}.product", "1 to 48 of a-z, 0-9, _ and -", rate.product)
    if rate.month_hours != "calendar" and (rate.meter not in STORED or rate.unit in _BYTE_HOURS):
        _refuse(f"{where}.month_hours", "for byte-months only", rate.month_hours)
    for field, value in (
        ("free_fixed", rate.free_fixed),
        ("free_ratio", rate.free_ratio),
        ("min_billable", rate.min_billable),
        ("package", rate.package),
    ):
        _check_decimal(value, f"{where}.{field}")
    _check_allowances(rate, where)
    _check_minimums(rate, where)
    _check_tiers(rate, where)


def _check_allowances(rate: Rate, where: str) -> None:
    if rate.free_ratio and rate.meter not in EGRESS:
        _refuse(f"{where}.free_ratio", "for egress only", rate.free_ratio)
    if (rate.free_fixed or rate.min_billable) and (rate.meter == SUBSCRIPTION or rate.model == "flat"):
        _refuse(where, "no free allowance and no least quantity of what has a fixed price", rate.model)
    if rate.min_billable and (rate.free_fixed or rate.free_ratio):
        _refuse(f"{where}.min_billable", "not beside a free allowance: they contradict each other", "")


def _check_minimums(rate: Rate, where: str) -> None:
    if rate.min_object_bytes < 0 or rate.min_object_bytes > 2**30:
        _refuse(f"{where}.min_object_bytes", "0 to 1073741824", rate.min_object_bytes)
    if not 0 <= rate.min_duration_days <= 3_650:
        _refuse(f"{where}.min_duration_days", "0 to 3650", rate.min_duration_days)
    if rate.min_object_bytes or rate.min_duration_days:
        if rate.meter != STORAGE or rate.storage_class == ANY or rate.region != ANY:
            _refuse(
                where, "a least size or age is that of one storage class, in all regions", rate.storage_class
            )
    elif rate.early != "once":
        _refuse(f"{where}.early", "only beside min_duration_days", rate.early)


def _check_tiers(rate: Rate, where: str) -> None:
    tiered = rate.model in ("graduated", "volume")
    if not 1 <= len(rate.tiers) <= (TIERS_MAX if tiered else 1):
        _refuse(f"{where}.tiers", f"1 to {TIERS_MAX} of them" if tiered else "one", len(rate.tiers))
    below = _ZERO
    for index, tier in enumerate(rate.tiers):
        at = f"{where}.tiers[{index}]"
        _check_decimal(tier.unit_price, f"{at}.unit_price")
        _check_decimal(tier.flat, f"{at}.flat")
        last = index == len(rate.tiers) - 1
        if (tier.up_to is None) != last:
            _refuse(f"{at}.up_to", "in every tier but the last, which has no end", tier.up_to)
        if tier.up_to is not None:
            _check_decimal(tier.up_to, f"{at}.up_to")
            if tier.up_to <= below:
                _refuse(f"{at}.up_to", "above that of the tier before", tier.up_to)
            below = tier.up_to
        if rate.model == "flat" and tier.unit_price:
            _refuse(f"{at}.unit_price", 'not in the model "flat", whose amount is flat', tier.unit_price)
        if rate.model in ("per_unit", "package") and tier.flat:
            _refuse(f"{at}.flat", f'not in the model "{rate.model}"', tier.flat)
    if (rate.model == "package") != bool(rate.package):
        _refuse(
            f"{where}.package", 'units in one package, in the model "package" and only there', rate.package
        )
    if rate.meter == SUBSCRIPTION and rate.model not in ("flat", "per_unit"):
        _refuse(f"{where}.model", "flat or per_unit for a subscription", rate.model)


def units_of(meter: str) -> tuple[str, ...]:
    """In which a meter's price may stand."""
    if meter in STORED:
        return (*BYTES, *_BYTE_HOURS)
    if meter == SUBSCRIPTION:
        return TIMES
    return tuple(COUNTS) if meter in REQUESTS else tuple(BYTES)


def _check_decimal(value: Decimal, name: str) -> None:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -PLACES_MAX or not 0 <= value < PRICE_MAX:
        _refuse(name, f"0 or more, below 1e15, of at most {PLACES_MAX} places", value)


def _check_among(name: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for one in given:
        if one not in allowed:
            _refuse(name, f"one of {', '.join(allowed)}", one)


def _refuse(name: str, rule: str, value: object) -> None:
    raise BadArgument(f"{name} must be {rule}: {str(value)[:100]!r}", name=name, value=str(value)[:100])
