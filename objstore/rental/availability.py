"""What service levels are measured by: five minutes of a tenant's requests, and the minutes that were served.

    f <hour 4> <tenant> 00 <twelfth 1> r|f     counters: requests, and those of them that failed through us
    f <hour 4> 00 <minute 1> u                 empty: in this minute of the hour a gateway could serve
    F <tenant> 00 <day 4>                      ServiceDayRecord: sealed
    F 00 <day 4>                               ServedDayRecord: sealed

Gateways add counters up (s3/availability.py) and commit them every few seconds. The upkeep takes those of
past hours away and adds them to the day's record in one commit, so that each goes over exactly once; what
comes later is added in the same way. A tenant's five minutes without a request have no row.

A store that is down altogether counts no requests: what tells of it are the minutes that no gateway served.
They count from the first that was ever noted on.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Final

from objstore.errors import Conflict, Overloaded
from objstore.meta.kv import Kv, Transaction, counter, pages, prefix_end
from objstore.meta.schema import Record, decode, encode
from objstore.rental.meters import HOUR_S
from objstore.rental.service_levels import INTERVAL_S, Interval

REQUESTS: Final = b"r"
FAILURES: Final = b"f"
SERVED: Final = b"u"
EVERYBODY: Final = ""  # In a tenant's place.
MINUTE_S: Final = 60
DAY_S: Final = 86_400
DAY_HOURS: Final = 24
DAY_MINUTES: Final = 1_440
ALL_MINUTES: Final = (1 << DAY_MINUTES) - 1
DAY_SLOTS: Final = DAY_S // INTERVAL_S
COUNTERS_AT_ONCE: Final = 240  # Sealed by one commit,
DAYS_AT_ONCE: Final = 24  # into at most so many records of some 2 KB.
REMOVED_AT_ONCE: Final = 100
DAYS_READ: Final = 100  # Records in one look: some 200 KB.
OPEN_HOURS: Final = 3  # The one that runs, and those that may not be sealed yet.
ATTEMPTS_MAX: Final = 64


class ServiceDayRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A tenant's day. At most 288 rows of 22 bytes: under 8 KiB whatever they count."""

    rows: list[tuple[int, int, int]]  # Five minutes of the day (0 to 287), requests, failures; in order.


class ServedDayRecord(Record, frozen=True, array_like=True, kw_only=True):
    minutes: bytes  # 180: the bit 1 << minute, little-endian, is set where a gateway could serve.


def open_prefix(hour: int) -> bytes:
    """Of all counters of an hour (since 1970) that is not sealed."""
    return b"f" + hour.to_bytes(4, "big")


def request_keys(tenant: str, slot: int) -> tuple[bytes, bytes]:
    """The counters of a tenant's requests and failures. slot: seconds since 1970 // 300."""
    hour, twelfth = divmod(slot, HOUR_S // INTERVAL_S)
    prefix = open_prefix(hour) + tenant.encode() + b"\0" + bytes([twelfth])
    return prefix + REQUESTS, prefix + FAILURES


def served_key(minute: int) -> bytes:
    """minute: seconds since 1970 // 60."""
    hour, rest = divmod(minute, HOUR_S // MINUTE_S)
    return open_prefix(hour) + b"\0" + bytes([rest]) + SERVED


def day_key(tenant: str, day: int) -> bytes:
    """day: seconds since 1970 // 86,400."""
    return b"F" + tenant.encode() + b"\0" + day.to_bytes(4, "big")


# Sealing.


async def seal_service(kv: Kv, before_hour: int) -> int:
    """Seal all hours before this one (since 1970); how many counters went over.

    Raises: Overloaded, MetaUnavailable.
    """
    sealed = 0
    while found := await kv.scan(b"f", open_prefix(before_hour), COUNTERS_AT_ONCE):
        some = _first_days(found)
        await _seal(kv, some)
        sealed += len(some)
    return sealed


def _first_days(found: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """As many of these counters as belong to few enough records."""
    days: set[bytes] = set()
    for index, (key, _) in enumerate(found):
        days.add(_day_of(key))
        if len(days) > DAYS_AT_ONCE:
            return list(found[:index])
    return list(found)


def _day_of(key: bytes) -> bytes:
    """The key of the record that an open counter goes over to."""
    return day_key(key[5:-3].decode(), int.from_bytes(key[1:5], "big") // DAY_HOURS)


async def _seal(kv: Kv, found: Sequence[tuple[bytes, bytes]]) -> None:
    keys = [key for key, _ in found]
    days = list(dict.fromkeys(map(_day_of, keys)))
    for _ in range(ATTEMPTS_MAX):
        # Read again, in one view with the records: counters may have grown, or been sealed by another.
        values = dict(zip([*keys, *days], await kv.get_many([*keys, *days]), strict=True))
        there = {key: value for key in keys if (value := values[key]) is not None}
        if not there:
            return
        put = {}
        for day in dict.fromkeys(map(_day_of, there)):
            own = {key: value for key, value in there.items() if _day_of(key) == day}
            put[day] = _with_served(values[day], own) if day[1:2] == b"\0" else _with(values[day], own)
        expect = {**there, **{day: values[day] for day in put}}
        try:
            await kv.commit(Transaction(expect, put, list(there)))
        except Conflict:
            continue
        return
    raise Overloaded("counters of five minutes kept changing")


def _with(value: bytes | None, counters: Mapping[bytes, bytes]) -> bytes:
    """A tenant's day with these counters added."""
    rows: dict[int, list[int]] = {}
    if value is not None:
        rows = {
            slot: [requests, failures] for slot, requests, failures in decode(value, ServiceDayRecord).rows
        }
    for key, count in counters.items():
        hour = int.from_bytes(key[1:5], "big") % DAY_HOURS
        row = rows.setdefault(hour * (HOUR_S // INTERVAL_S) + key[-2], [0, 0])
        row[key[-1:] == FAILURES] += counter(count)
    return encode(ServiceDayRecord(rows=[(slot, rows[slot][0], rows[slot][1]) for slot in sorted(rows)]))


def _with_served(value: bytes | None, marks: Iterable[bytes]) -> bytes:
    bits = 0 if value is None else int.from_bytes(decode(value, ServedDayRecord).minutes, "little")
    for key in marks:
        hour = int.from_bytes(key[1:5], "big") % DAY_HOURS
        bits |= 1 << (hour * (HOUR_S // MINUTE_S) + key[-2])
    return encode(ServedDayRecord(minutes=bits.to_bytes(DAY_MINUTES // 8, "little")))


async def retire_service(kv: Kv, before_day: int) -> int:
    """Remove the records of all days before this one (since 1970); how many went. Raises: MetaUnavailable."""
    removed = 0
    start, end = b"F", prefix_end(b"F")
    while found := await kv.scan(start, end, 1):
        tenant = found[0][0][1:-5].decode()
        first, last = day_key(tenant, 0), day_key(tenant, max(0, before_day))
        while old := [key for key, _ in await kv.scan(first, last, REMOVED_AT_ONCE)]:
            await kv.commit(Transaction(delete=old))
            removed += len(old)
        start = b"F" + tenant.encode() + b"\1"
    return removed


# Reading what is sealed.


async def measured(kv: Kv, tenant: str, begin_s: int, end_s: int) -> dict[int, Interval]:
    """A tenant's five minutes with requests in [begin, end), by slot (seconds since 1970 // 300)."""
    found: dict[int, Interval] = {}
    async for day, value in _days(kv, tenant, begin_s, end_s):
        for place, requests, failures in decode(value, ServiceDayRecord).rows:
            slot = day * DAY_SLOTS + place
            if begin_s <= slot * INTERVAL_S < end_s:
                found[slot] = Interval(requests, min(requests, failures))
    return found


async def open_interval(kv: Kv, tenant: str, *, until_hour: int) -> Interval:
    """The sum of what a tenant's hours before this one (since 1970) have that is not sealed."""
    requests = failures = 0
    for hour in range(until_hour - OPEN_HOURS, until_hour):
        prefix = open_prefix(hour) + tenant.encode() + b"\0"
        for key, value in await kv.scan(prefix, prefix_end(prefix), 2 * HOUR_S // INTERVAL_S):
            if key[-1:] == REQUESTS:
                requests += counter(value)
            else:
                failures += counter(value)
    return Interval(requests, min(requests, failures))


async def unserved_minutes(kv: Kv, begin_s: int, end_s: int) -> set[int]:
    """Minutes (seconds since 1970 // 60) of [begin, end) in which no gateway served; end: sealed already.

    What is before the first minute that was ever noted is not known, and is not among them.
    """
    first = await first_served(kv)
    if first is None:
        return set()
    begin, end = max(first, begin_s // MINUTE_S), end_s // MINUTE_S
    served = {day: value async for day, value in _days(kv, EVERYBODY, begin_s, end_s)}
    missing: set[int] = set()
    for day in range(begin // DAY_MINUTES, -(-end // DAY_MINUTES)):
        bits = 0
        if (value := served.get(day)) is not None:
            bits = int.from_bytes(decode(value, ServedDayRecord).minutes, "little")
        minutes = range(max(begin, day * DAY_MINUTES), min(end, (day + 1) * DAY_MINUTES))
        if bits != ALL_MINUTES:
            missing.update(minute for minute in minutes if not bits >> minute % DAY_MINUTES & 1)
    return missing


async def first_served(kv: Kv) -> int | None:
    """The first minute (seconds since 1970 // 60) that was ever noted; None: none was."""
    found = await kv.scan(day_key(EVERYBODY, 0), prefix_end(day_key(EVERYBODY, 0)[:2]), 1)
    if not found:
        return None
    key, value = found[0]
    bits = int.from_bytes(decode(value, ServedDayRecord).minutes, "little")
    return int.from_bytes(key[-4:], "big") * DAY_MINUTES + (bits & -bits).bit_length() - 1


async def _days(kv: Kv, tenant: str, begin_s: int, end_s: int) -> AsyncGenerator[tuple[int, bytes], None]:
    start, end = day_key(tenant, begin_s // DAY_S), day_key(tenant, -(-end_s // DAY_S))
    async for found in pages(kv, start, end, DAYS_READ):
        for key, value in found:
            yield int.from_bytes(key[-4:], "big"), value
