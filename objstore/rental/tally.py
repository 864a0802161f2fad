"""A tenant's month, added up: sealed usage records as bytes, batch by batch, into what rating needs.

    h <tenant> 00 <hour 4> <bucket id 8> <class> 00 <meter 1>  ->  project, bucket, class, meter: a sum

Sums of integers in any grouping are the same: what a month comes to does not depend on how it was cut.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from objstore.rental.meters import (
    EARLY,
    REQUESTS_A,
    REQUESTS_B,
    SENT_INTERNAL,
    SENT_INTERNET,
    SENT_REPLICATION,
    STORED,
)
from objstore.rental.months import Month
from objstore.rental.plans import EARLY_DELETE, EGRESS, REQUESTS, STORAGE
from objstore.rental.records import WIDE_BITS
from objstore.rental.usage import usage_prefix

NAMES: Final = {
    STORED: STORAGE,
    EARLY: EARLY_DELETE,
    REQUESTS_A: REQUESTS[0],
    REQUESTS_B: REQUESTS[1],
    SENT_INTERNET: EGRESS[0],
    SENT_INTERNAL: EGRESS[1],
    SENT_REPLICATION: EGRESS[2],
}
BATCH: Final = 2_000  # Records a call of `Tally.add` is meant for: some 300 KB.


class UsageKey(NamedTuple):
    """Whose use, of what."""

    project: str
    bucket: str  # Its name.
    storage_class: str  # Empty: STANDARD.
    meter: str  # rental/plans.py, METERS.
    region: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant used in a month: whole byte-seconds, requests and bytes."""

    totals: Mapping[UsageKey, int] = field(default_factory=dict)
    hourly: Mapping[str, Sequence[int]] = field(default_factory=dict)
    # By storage class: the byte-seconds stored in each hour of the month. Leases are held against them.

    def total(self, meter: str) -> int:
        return sum(quantity for key, quantity in self.totals.items() if key.meter == meter)


class _Head(msgspec.Struct, array_like=True, gc=False):
    """What of a UsageRecord is added up; the rest is skipped."""

    format: int
    quantity: int
    project: str = ""
    bucket: str = ""
    revision: int = 1
    sealed_us: int = 0
    previous: msgspec.Raw = msgspec.Raw()
    digest: msgspec.Raw = msgspec.Raw()
    unsettled: int = 0
    high: int = 0


_decode_heads = msgspec.msgpack.Decoder(list[_Head]).decode


class Tally:
    """Adds up one tenant's records of one month, as `usage_pages` reads them: in order, each once.

    Costs about a microsecond a record, on the caller's thread: hand over a batch at a time.
    """

    def __init__(
        self,
        tenant: str,
        month: Month,
        *,
        regions: Mapping[str, str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            regions: of buckets, by name, where a plan has prices by region.
            progress: told of how many records were added, after each batch.
        """
        self._first = usage_prefix(tenant, month.first_hour)
        self._end = usage_prefix(tenant, month.first_hour + month.hours)
        self._month = month
        self._regions = regions or {}
        self._progress = progress
        self._sums: dict[tuple[bytes, str, str], int] = {}
        self._hours: dict[bytes, list[int]] = {}  # By class: whole numbers of any size.
        self._last = b""

    def add(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """records: keys and values as scanned. Raises: msgspec.ValidationError (no usage record)."""
        if not records:
            return
        keys = [key for key, _ in records]
        self._check(keys)
        heads = _decode_heads(
            b"\xdd" + len(records).to_bytes(4, "big") + b"".join([value for _, value in records])
        )
        sums = self._sums
        suffix = len(self._first)
        for key, head in zip(keys, heads, strict=True):
            place = (key[suffix:], head.project, head.bucket)
            quantity = head.quantity + (head.high << WIDE_BITS) if head.high else head.quantity
            sums[place] = sums.get(place, 0) + quantity
            if key[-1:] == STORED:
                self._add_hour(key, suffix, quantity)
        self._last = keys[-1]
        if self._progress is not None:
            self._progress(len(records))

    def usage(self) -> Usage:
        """Of all that was added."""
        totals: dict[UsageKey, int] = {}
        for (suffix, project, bucket), quantity in self._sums.items():
            region = self._regions.get(bucket, "")
            key = UsageKey(project, bucket, suffix[8:-2].decode(), NAMES[suffix[-1:]], region)
            totals[key] = totals.get(key, 0) + quantity  # A bucket of that name may have been made again.
        return Usage(totals, {name.decode(): hours for name, hours in self._hours.items()})

    def _add_hour(self, key: bytes, suffix: int, quantity: int) -> None:
        storage_class = key[suffix + 8 : -2]
        hours = self._hours.get(storage_class)
        if hours is None:
            hours = self._hours[storage_class] = [0] * self._month.hours
        hours[int.from_bytes(key[suffix - 4 : suffix], "big") - self._month.first_hour] += quantity

    def _check(self, keys: Sequence[bytes]) -> None:
        """Keys of one tenant are in the order of hours: the first and the last tell of all."""
        assert self._first <= keys[0], "a record of an earlier month, or of another tenant"
        assert keys[-1] < self._end, "a record of a later month, or of another tenant"
        assert self._last < keys[0], "a record that was added already"


def add_usage(parts: Iterable[Usage]) -> Usage:
    """The sum of what was used by several, or in several parts of one month."""
    totals: dict[UsageKey, int] = {}
    hourly: dict[str, list[int]] = {}
    for part in parts:
        for key, quantity in part.totals.items():
            totals[key] = totals.get(key, 0) + quantity
        for name, hours in part.hourly.items():
            there = hourly.setdefault(name, [0] * len(hours))
            for hour, quantity in enumerate(hours):
                there[hour] += quantity
    return Usage(totals, hourly)
