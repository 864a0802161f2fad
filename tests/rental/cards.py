"""What tests of rating share: rates and plans in short, and usage records as they are sealed."""

import asyncio
import os
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import encode
from objstore.rental.meters import STORED
from objstore.rental.months import Month
from objstore.rental.plans import Plan, Rate, Tier, check_plan
from objstore.rental.records import UsageRecord
from objstore.rental.tally import Usage, UsageKey
from objstore.rental.usage import usage_prefix

EXAMPLES = 2_000 if os.environ.get("OBJSTORE_LONG") else 50  # Of each property.
MARCH = Month(2026, 3)
NOVEMBER = Month(2026, 11)  # 30 days.
DAY_S = 86_400
GB, TB, GIB, TIB = 10**9, 10**12, 2**30, 2**40


class SharedKv(DictKv):
    """Others get their turn before each call."""

    async def get(self, key: bytes) -> bytes | None:
        await asyncio.sleep(0)
        return await super().get(key)

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        await asyncio.sleep(0)
        return await super().scan(start, end, limit, reverse=reverse)

    async def commit(self, transaction: Transaction) -> None:
        await asyncio.sleep(0)
        await super().commit(transaction)


def tiers(*rows: tuple[str | None, str]) -> tuple[Tier, ...]:
    """Each: up to, price."""
    return tuple(
        Tier(up_to=None if up_to is None else Decimal(up_to), unit_price=Decimal(price))
        for up_to, price in rows
    )


def rate(price: str = "1", **given: Any) -> Rate:
    fields = {"meter": "storage", "model": "per_unit", "unit": "GB", "tiers": tiers((None, price)), **given}
    return Rate(**fields)


def plan(*items: Rate, currency: str = "USD", **given: Any) -> Plan:
    return check_plan(Plan(code="test", version=1, currency=currency, items=items, **given))


def used(quantity: int, meter: str = "storage", storage_class: str = "", **given: Any) -> Usage:
    """One bucket's use, without its hours."""
    return Usage({UsageKey("", "photos", storage_class, meter, **given): quantity})


def stored(size: int, month: Month, storage_class: str = "") -> Usage:
    """So many bytes, all month."""
    return stored_hours([size] * month.hours, storage_class)


def stored_hours(sizes: Iterable[int], storage_class: str = "") -> Usage:
    """Bytes in each hour of the month."""
    hours = [size * 3_600 for size in sizes]
    key = UsageKey("", "photos", storage_class, "storage")
    return Usage({key: sum(hours)}, {storage_class: hours})


def usage_key(tenant: str, hour: int, bucket: int, storage_class: str = "", meter: bytes = STORED) -> bytes:
    stream = bucket.to_bytes(8, "big") + storage_class.encode() + b"\0"
    return usage_prefix(tenant, hour) + stream + meter


def usage_value(quantity: int, project: str = "", bucket: str = "photos") -> bytes:
    return encode(
        UsageRecord(
            quantity=quantity,
            project=project,
            bucket=bucket,
            sealed_us=1,
            previous=bytes(32),
            digest=bytes(32),
        )
    )
