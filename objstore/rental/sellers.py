"""Sellers: the legal entities whose names stand on invoices, each with its own series of numbers."""

import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import decode
from objstore.rental.changes import Change, commit_change
from objstore.rental.names import check_country, check_days, check_labels, check_name, check_text, check_texts
from objstore.rental.records import SellerRecord, seller_key

LOGO_SIZE_MAX: Final = 4_096  # Bytes.
_PREFIX = re.compile(r"[A-Z][A-Z0-9]{0,7}", re.ASCII)  # FA, AV.
ALWAYS_KNOWN: Final = "UTC"  # Where there is a table of time zones.
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def no_such_seller(name: str) -> BadArgument:
    return BadArgument(f"there is no seller {name!r}", name="seller", value=name)


def check_seller(record: SellerRecord) -> SellerRecord:
    """Raises: BadArgument for what could not stand on an invoice."""
    check_name(record.id, "seller")
    if not check_text(record.name, "name"):
        raise BadArgument("a seller has a legal name", name="name")
    check_texts(record.address, "address")
    check_country(record.country)
    check_labels(record.tax_ids, "tax ids")
    check_text(record.capital, "capital")
    check_text(record.bank, "bank")
    check_timezone(record.timezone)
    if len(record.logo) > LOGO_SIZE_MAX:
        raise BadArgument(f"a logo has at most {LOGO_SIZE_MAX} bytes", name="logo")
    for name, prefix in (
        ("invoice prefix", record.invoice_prefix),
        ("credit prefix", record.credit_prefix),
    ):
        if not _PREFIX.fullmatch(prefix):
            raise BadArgument(f"the {name} has 1 to 8 of A-Z and 0-9", name=name, value=prefix)
    if record.invoice_prefix == record.credit_prefix:
        raise BadArgument("invoices and credit notes have different prefixes", name="credit prefix")
    check_days(record.collection_hours, "collection hours", most=744)
    check_days(record.reversibility_days, "reversibility days")
    days = (record.past_due_days, record.read_only_days, record.suspended_days)
    for name, value in zip(("past due days", "read-only days", "suspended days"), days, strict=True):
        check_days(value, name)
    if list(days) != sorted(days):
        raise BadArgument("past due comes first, then read-only, then suspended", name="past due days")
    return record


def check_timezone(name: str) -> zoneinfo.ZoneInfo:
    """Raises: BadArgument: there is none of this name, or this machine knows none at all."""
    zone = known_zone(name)
    if zone is None:
        words = f"there is no time zone {name!r}"
        if known_zone(ALWAYS_KNOWN) is None:
            words = f"this machine knows no time zones, so not {name!r} either: install tzdata"
        raise BadArgument(words, name="timezone", value=name)
    return zone


def known_zone(name: str) -> zoneinfo.ZoneInfo | None:
    """None if this machine does not know it. Reads a file, the first time."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def local_year(seller: SellerRecord, at_us: int) -> int:
    """The year that the seller's calendar shows: its numbers begin again with it."""
    return (_EPOCH + timedelta(microseconds=at_us)).astimezone(check_timezone(seller.timezone)).year


async def create_seller(kv: Kv, record: SellerRecord) -> SellerRecord:
    """Raises: BadArgument, also if it exists."""
    check_seller(record)

    async def decide(change: Change) -> SellerRecord:
        if await change.value(seller_key(record.id)) is not None:
            raise BadArgument(f"seller {record.id!r} exists", name="seller", value=record.id)
        change.put(seller_key(record.id), record)
        return record

    return await commit_change(kv, decide, what=f"seller {record.id!r}")


async def change_seller(kv: Kv, seller: str, /, **changes: object) -> SellerRecord:
    """From the next document on; what is issued keeps the seller as it was.

    Raises: BadArgument. The prefixes stay: a series of numbers has one name.
    """
    for fixed in ("id", "format", "invoice_prefix", "credit_prefix"):
        if fixed in changes:
            raise BadArgument(f"a seller's {fixed.replace('_', ' ')} does not change", name=fixed)
    _check_fields(changes)

    async def decide(change: Change) -> SellerRecord:
        record = await read_seller(change, seller)
        record = check_seller(msgspec.structs.replace(record, **changes))
        change.put(seller_key(seller), record)
        return record

    return await commit_change(kv, decide, what=f"seller {seller!r}")


def _check_fields(changes: dict[str, object]) -> None:
    unknown = changes.keys() - set(SellerRecord.__struct_fields__)
    if unknown:
        raise BadArgument(f"a seller has no {', '.join(sorted(unknown))}", name=min(unknown))


async def find_seller(kv: Kv, name: str) -> SellerRecord:
    """Raises: BadArgument (no such seller)."""
    value = await kv.get(seller_key(name))
    if value is None:
        raise no_such_seller(name)
    return decode(value, SellerRecord)


async def read_seller(change: Change, name: str) -> SellerRecord:
    """`find_seller` as a part of a change. Raises: BadArgument (no such seller)."""
    return await change.found(seller_key(name), SellerRecord, no_such_seller(name))


async def list_sellers(kv: Kv, *, after: str = "", limit: int = 1_000) -> list[SellerRecord]:
    """Names > after, in order."""
    start = seller_key(after) + b"\0" if after else seller_key("")
    return [
        decode(value, SellerRecord) for _, value in await kv.scan(start, prefix_end(seller_key("")), limit)
    ]
