"""Sealed usage: what counters of past hours become, and what bills are made of.

A stream is what a bucket stores in one class; its id is `<bucket id 8> <class> 00`. To seal an hour of it is
one commit that takes its counters away and adds what they come to to its usage records:

    M <hour> <stream> <meter>   counters    ->  h <tenant> 00 <hour> <stream> <meter>   UsageRecords
    y <stream>    what it held when the hour began    ->    when the next one begins

All of it is expected, so that each count goes over exactly once, whatever dies, and whoever tries it again.
What comes to an hour that is sealed already (a slow commit, a clock that is behind) is added to the hour's
records as a further revision; the bytes that it brought go on into the counters of the hour after, and so on
hour by hour until they reach one that is not sealed: each hour's byte-seconds stay exact.

A tenant's records are a chain: each has the SHA-256 of the one sealed before it. A record that is corrected
is kept as it was, so that the chain holds. Of records that are removed after their time the ends of the
chain's pieces stay.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.meta.kv import Add, Kv, Transaction, counter, pages, prefix_end
from objstore.meta.schema import TitleRecord, decode, encode, setting_key, title_key
from objstore.rental.meters import DELTA, METERS, MOMENT, STORED, byte_seconds, hour_key
from objstore.rental.records import (
    ChainRecord,
    HeldRecord,
    RetiredRecord,
    SealedRecord,
    UsageRecord,
    split_wide,
)

SEALED_KEY: Final = setting_key("metering")
STREAMS_AT_ONCE: Final = (
    16  # Sealed by one commit: at most 16 x (8 counters + 6 records, twice if corrected).
)
SCAN_KEYS: Final = 1_000
READ_KEYS: Final = 2_000
RETIRED_AT_ONCE: Final = 100  # Records removed by one commit.
RUNS_MAX: Final = 60  # Of one RetiredRecord: 64 bytes each.
ATTEMPTS_MAX: Final = 64
_FIELDS: Final = msgspec.structs.fields(UsageRecord)
_DEFAULTS: Final = [one.default for one in _FIELDS]
_DIGESTED_FIELDS: Final = 1 + [one.name for one in _FIELDS].index("digest")
CURRENT: Final = b"\0"  # Behind a tenant's name: records as they stand,
SUPERSEDED: Final = b"\1"  # and as they were.


def held_key(stream: bytes) -> bytes:
    return b"y" + stream


def usage_prefix(tenant: str, hour: int, marker: bytes = CURRENT) -> bytes:
    return b"h" + tenant.encode() + marker + hour.to_bytes(4, "big")


def superseded_key(tenant: str, key: bytes, revision: int) -> bytes:
    """Where the record at this h key is kept when it is corrected."""
    begin = len(tenant.encode()) + 1
    return key[:begin] + SUPERSEDED + key[begin + 1 :] + revision.to_bytes(4, "big")


def chain_key(tenant: str) -> bytes:
    return b"H" + tenant.encode()


def retired_key(tenant: str, page: int) -> bytes:
    return chain_key(tenant) + b"\0" + page.to_bytes(4, "big")


def digest_of(key: bytes, record: UsageRecord) -> bytes:
    """What a record's digest has to be.

    Fields behind the digest count only if they, or any behind them, differ from their defaults: a field that
    a later release adds changes no digest.

    Args:
        key: under which the record was sealed, also when it is superseded since.
    """
    values = list(msgspec.structs.astuple(msgspec.structs.replace(record, digest=b"")))
    while len(values) > _DIGESTED_FIELDS and values[-1] == _DEFAULTS[len(values) - 1]:
        values.pop()
    return hashlib.sha256(len(key).to_bytes(2, "big") + key + encode(tuple(values))).digest()


async def sealed_until(kv: Kv) -> int:
    """The first hour (since 1970) that is not sealed; 0: none was ever. Late comers correct earlier ones.

    Raises: MetaUnavailable.
    """
    return (await read_mark(kv)).hour


async def read_mark(kv: Kv) -> SealedRecord:
    """How far hours are sealed; hour 0: none was ever. Raises: MetaUnavailable."""
    value = await kv.get(SEALED_KEY)
    return SealedRecord(hour=0) if value is None else decode(value, SealedRecord)


# Sealing.


class Taken(NamedTuple):
    """What one hour of a stream comes to."""

    quantities: dict[bytes, int]  # By meter, as in usage records.
    held: HeldRecord | None  # Of the stream from now on; None: it holds nothing.
    carried: int  # Bytes that go on into the next hour, which is sealed already or was passed.


def take_hour(hour: int, held: HeldRecord | None, counters: Mapping[bytes, int], *, sealed: bool) -> Taken:
    """Decide what becomes of an hour's counters.

    Args:
        held: of the stream, as it is.
        sealed: the hour was sealed before: what there is came late.
    """
    quantities = {meter: count for meter, count in counters.items() if count and meter not in (DELTA, MOMENT)}
    delta = counters.get(DELTA, 0)
    before = 0 if sealed or held is None else held.size
    stored = byte_seconds(before, delta, counters.get(MOMENT, 0))
    if stored:
        quantities[STORED] = stored
    if sealed:
        return Taken(quantities, held, delta)
    after = before + delta
    return Taken(quantities, HeldRecord(hour=hour + 1, size=after) if after else None, 0)


@dataclass(slots=True)
class _Sealing:
    """A commit in the making."""

    hour: int
    late: bool  # All streams' hour is sealed.
    now_us: int
    expect: dict[bytes, bytes | None] = field(default_factory=dict)
    put: dict[bytes, bytes] = field(default_factory=dict)
    delete: list[bytes] = field(default_factory=list)
    add: dict[bytes, Add] = field(default_factory=dict)
    chains: dict[str, ChainRecord] = field(default_factory=dict)
    sealed: int = 0  # Records.

    def write(
        self, title: TitleRecord, key: bytes, value: bytes | None, quantity: int, *, late: bool
    ) -> None:
        """Add a quantity to a usage record, at the end of its tenant's chain."""
        old = None if value is None else decode(value, UsageRecord)
        chain = self.chains[title.tenant]
        total, high = split_wide(quantity if old is None else old.total + quantity)
        if old is None:
            unsettled, unsettled_high = split_wide(quantity if late else 0)
        else:
            unsettled, unsettled_high = split_wide(old.total_unsettled + quantity)
        record = UsageRecord(
            quantity=total,
            project=title.project,
            bucket=title.name,
            revision=2 if late else 1,  # The first revision of an hour without a record was zero.
            sealed_us=self.now_us,
            previous=chain.digest,
            unsettled=unsettled,
            high=high,
            unsettled_high=unsettled_high,
        )
        if old is not None:
            record = msgspec.structs.replace(record, project=old.project, revision=old.revision + 1)
            assert value is not None
            self.put[superseded_key(title.tenant, key, old.revision)] = value
        record = msgspec.structs.replace(record, digest=digest_of(key, record))
        self.expect[key] = value
        self.put[key] = encode(record)
        self.chains[title.tenant] = msgspec.structs.replace(
            chain, count=chain.count + 1, digest=record.digest
        )
        self.sealed += 1


async def seal_streams(kv: Kv, hour: int, streams: Sequence[bytes], *, late: bool, now_us: int) -> int:
    """Seal an hour of some streams in one commit; returns how many usage records it put.

    Streams of buckets of which nobody knows whose they are stay as they are.

    Args:
        late: the hour is behind the mark (`sealed_until`): all that is found came late.

    Raises: Overloaded, MetaUnavailable.
    """
    assert len(streams) <= STREAMS_AT_ONCE
    for _ in range(ATTEMPTS_MAX):
        sealing = await _plan(kv, hour, streams, late, now_us)
        if not sealing.expect:
            return 0
        try:
            await kv.commit(Transaction(sealing.expect, sealing.put, sealing.delete, sealing.add))
        except Conflict:
            continue
        return sealing.sealed
    raise Overloaded(f"the counters of hour {hour} kept changing")


async def _plan(kv: Kv, hour: int, streams: Sequence[bytes], late: bool, now_us: int) -> _Sealing:
    sealing = _Sealing(hour, late, now_us)
    titles = {stream: title_key(int.from_bytes(stream[:8], "big")) for stream in streams}
    names = list(dict.fromkeys(titles.values()))
    wanted = [key for stream in streams for key in _stream_keys(hour, stream)]
    values = await kv.get_many([*names, *wanted])
    found = dict(zip(names, values, strict=False))
    found.update(zip(wanted, values[len(names) :], strict=True))

    planned: list[tuple[TitleRecord, bytes, int, bool]] = []
    for stream in streams:
        title_value = found[titles[stream]]
        if title_value is None:
            continue
        title = decode(title_value, TitleRecord)
        if _take(sealing, found, stream, title, planned):
            sealing.expect[titles[stream]] = title_value
    tenants = list(dict.fromkeys(title.tenant for title, *_ in planned))
    values = await kv.get_many([*map(chain_key, tenants), *(key for _, key, *_ in planned)])
    for tenant, value in zip(tenants, values, strict=False):
        sealing.expect[chain_key(tenant)] = value
        sealing.chains[tenant] = (
            ChainRecord(count=0, digest=b"") if value is None else decode(value, ChainRecord)
        )
    for (title, key, quantity, late_one), value in zip(planned, values[len(tenants) :], strict=True):
        sealing.write(title, key, value, quantity, late=late_one)
    sealing.put.update({chain_key(tenant): encode(chain) for tenant, chain in sealing.chains.items()})
    return sealing


def _stream_keys(hour: int, stream: bytes) -> list[bytes]:
    prefix = hour_key(hour) + stream
    return [held_key(stream), *(prefix + meter for meter in METERS)]


def _take(
    sealing: _Sealing,
    found: Mapping[bytes, bytes | None],
    stream: bytes,
    title: TitleRecord,
    planned: list[tuple[TitleRecord, bytes, int, bool]],
) -> bool:
    """Take one stream's hour; whether there is anything to it."""
    hour = sealing.hour
    place, *keys = _stream_keys(hour, stream)
    there = {key: value for key in keys if (value := found[key]) is not None}
    held_value = found[place]
    held = None if held_value is None else decode(held_value, HeldRecord)
    late = sealing.late or (held is not None and held.hour > hour)
    if not there and (late or held is None):
        return False
    assert late or held is None or held.hour == hour, f"hour {held} of {stream!r} is not sealed"
    taken = take_hour(hour, held, {key[-1:]: counter(value) for key, value in there.items()}, sealed=late)
    sealing.expect[place] = held_value
    sealing.expect.update(there)
    sealing.delete += there
    if not late:
        if taken.held is not None:
            sealing.put[place] = encode(taken.held)
        elif held is not None:
            sealing.delete.append(place)
    if taken.carried:
        sealing.add[hour_key(hour + 1) + stream + DELTA] = Add(taken.carried)
    prefix = usage_prefix(title.tenant, hour) + stream
    planned += [(title, prefix + meter, taken.quantities[meter], late) for meter in sorted(taken.quantities)]
    return True


async def first_counted(kv: Kv, begin: int = 0) -> int | None:
    """The earliest hour from `begin` on that has counters; None: there is none. Raises: MetaUnavailable."""
    pairs = await kv.scan(hour_key(begin), prefix_end(b"M"), 1)
    return int.from_bytes(pairs[0][0][1:5], "big") if pairs else None


async def streams_of(kv: Kv, hour: int, *, held: bool) -> AsyncGenerator[list[bytes], None]:
    """Streams with counters in the hour, and with `held` those that hold something; in order, some at a time.

    Raises: MetaUnavailable.
    """
    prefix = hour_key(hour)
    counted = _Sorted(kv, prefix, prefix_end(prefix), len(prefix), 1)
    holding = _Sorted(kv, b"y", prefix_end(b"y"), 1, 0) if held else None
    batch: list[bytes] = []
    while True:
        one = await counted.peek()
        other = await holding.peek() if holding is not None else None
        if one is None and other is None:
            break
        chosen = min(stream for stream in (one, other) if stream is not None)
        for source in (counted, holding):
            if source is not None:
                await source.skip(chosen)
        batch.append(chosen)
        if len(batch) == STREAMS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


class _Sorted:
    """The streams that keys of a range name, in order."""

    def __init__(self, kv: Kv, start: bytes, end: bytes, head: int, tail: int) -> None:
        self._kv, self._start, self._end = kv, start, end
        self._head, self._tail = head, tail
        self._found: list[bytes] = []  # The next one last.
        self._ended = False

    async def peek(self) -> bytes | None:
        while not self._found and not self._ended:
            pairs = await self._kv.scan(self._start, self._end, SCAN_KEYS)
            self._ended = len(pairs) < SCAN_KEYS
            if pairs:
                self._start = pairs[-1][0] + b"\0"
            streams = dict.fromkeys(key[self._head : len(key) - self._tail] for key, _ in pairs)
            self._found = list(streams)[::-1]
        return self._found[-1] if self._found else None

    async def skip(self, stream: bytes) -> None:
        """Go behind this one. A page may end between two keys of one stream."""
        while await self.peek() == stream:
            self._found.pop()


async def move_mark(kv: Kv, hour: int) -> None:
    """All streams are sealed up to this hour. Raises: Overloaded, MetaUnavailable."""
    # It may conflict with an earlier commit of this process, whose outcome was unknown.
    await _mark(kv, lambda mark: msgspec.structs.replace(mark, hour=max(mark.hour, hour)))


async def accept_hour(kv: Kv, hour: int) -> SealedRecord:
    """An operator says that it is as late as this hour: however long ago the last one was sealed, those in
    between are sealed now. Raises: Overloaded, MetaUnavailable."""
    return await _mark(kv, lambda mark: msgspec.structs.replace(mark, accepted=hour))


async def _mark(kv: Kv, alter: Callable[[SealedRecord], SealedRecord]) -> SealedRecord:
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(SEALED_KEY)
        before = SealedRecord(hour=0) if value is None else decode(value, SealedRecord)
        after = alter(before)
        if after == before:
            return after
        try:
            await kv.commit(Transaction({SEALED_KEY: value}, {SEALED_KEY: encode(after)}))
        except Conflict:
            continue
        return after
    raise Overloaded("the mark of sealed hours kept changing")


# Reading.


class UsageOf(NamedTuple):
    project: str
    bucket: str  # Name.
    storage_class: str  # Empty: STANDARD.
    meter: bytes  # rental/meters.py: STORED, EARLY, REQUESTS_A, ...


class UsageRow(NamedTuple):
    hour: int  # Since 1970.
    bucket: int  # Id.
    storage_class: str
    meter: bytes
    record: UsageRecord


def usage_row(key: bytes, value: bytes) -> UsageRow:
    """Of an h key as it stands and its record."""
    begin = key.index(CURRENT) + 1
    return UsageRow(
        int.from_bytes(key[begin : begin + 4], "big"),
        int.from_bytes(key[begin + 4 : begin + 12], "big"),
        key[begin + 12 : -2].decode(),
        key[-1:],
        decode(value, UsageRecord),
    )


async def usage_pages(
    kv: Kv, tenant: str, begin_hour: int, end_hour: int, *, size: int = READ_KEYS
) -> AsyncGenerator[list[tuple[bytes, bytes]], None]:
    """Usage records of [begin, end) as stored, in the order of hours, `size` at a time.

    Raises: MetaUnavailable.
    """
    async for found in pages(kv, usage_prefix(tenant, begin_hour), usage_prefix(tenant, end_hour), size):
        yield found


async def list_usage(
    kv: Kv, tenant: str, *, after: bytes = b"", limit: int = 1_000
) -> list[tuple[bytes, UsageRow]]:
    """Records as they stand, in the order of hours, each with its place among the tenant's.

    Args:
        after: the place behind which to begin.
    """
    prefix = usage_prefix(tenant, 0)[:-4]
    start = prefix + after + b"\0" if after else prefix
    pairs = await kv.scan(start, prefix_end(prefix), limit)
    return [(key[len(prefix) :], usage_row(key, value)) for key, value in pairs]


async def total_usage(kv: Kv, tenant: str, begin_hour: int, end_hour: int) -> dict[UsageOf, int]:
    """Byte-seconds, requests and bytes of [begin, end). Memory: a sum for each bucket, class and meter."""
    totals: dict[UsageOf, int] = {}
    async for found in usage_pages(kv, tenant, begin_hour, end_hour):
        for key, value in found:
            row = usage_row(key, value)
            of = UsageOf(row.record.project, row.record.bucket, row.storage_class, row.meter)
            totals[of] = totals.get(of, 0) + row.record.total
    return totals


# The chain.


class Links:
    """Pieces of a chain, joined as they come in any order. Memory: one entry for each end that is loose."""

    def __init__(self) -> None:
        self.last_of: dict[bytes, bytes] = {}  # `previous` of a piece's first record -> digest of its last,
        self._first_of: dict[bytes, bytes] = {}  # and back.
        self.forked = False

    def add(self, previous: bytes, digest: bytes) -> None:
        if previous in self.last_of or digest in self._first_of:
            self.forked = True  # Two records claim the same predecessor, or one is there twice.
            return
        first = self._first_of.pop(previous, previous)
        last = self.last_of.pop(digest, digest)
        self.last_of[first] = last
        self._first_of[last] = first

    @property
    def runs(self) -> list[tuple[bytes, bytes]]:
        return list(self.last_of.items())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verifying a tenant's usage records found."""

    records: int  # That are there,
    retired: int  # and that were removed after their time.
    wrong: tuple[str, ...]  # In words; none: the chain holds.


WRONG_MAX: Final = 20  # Findings that are told of.
STEP_RECORDS: Final = 20_000  # Verified in one step: some tenths of a second.
STEP_PAGES: Final = 100  # Of what was removed, read in one step: RUNS_MAX pieces each at most.
_REMOVED: Final = b"r"  # Where a step begins: at a page of what was removed,
_THERE: Final = b"h"  # or behind a record that is there.
_NO_CHAIN: Final = "the records are not one chain from the first to the last that was sealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Some of a tenant's usage records, each held against its digest; `Joined` makes a verdict of all."""

    records: int  # That are there,
    retired: int  # and that were removed after their time.
    wrong: tuple[str, ...]  # In words; WRONG_MAX at most.
    runs: tuple[tuple[bytes, bytes], ...]  # Pieces of the chain: `previous` of the first, digest of the last.
    sealed: int  # Records that were ever sealed, when the step began,
    newest: bytes  # and the digest of the last of them.
    state: bytes  # Another one once records were sealed, corrected or removed.
    after: bytes | None  # Where the next step begins; None: this was the last one.


async def verify_step(kv: Kv, tenant: str, after: bytes = b"") -> Step:
    """Verify STEP_RECORDS of a tenant's usage records, and at most a page of READ_KEYS more.

    Args:
        after: as the step before said; empty: the first.

    Raises: BadArgument (no step says such an `after`), MetaUnavailable.
    """
    if after and after[:1] != _REMOVED and after[:2] not in (_THERE + CURRENT, _THERE + SUPERSEDED):
        raise BadArgument("no step of a verification ended there", name="cursor")
    chain_value = await kv.get(chain_key(tenant))
    chain = ChainRecord(count=0, digest=b"") if chain_value is None else decode(chain_value, ChainRecord)
    newest_page = await kv.get(retired_key(tenant, chain.pages - 1)) if chain.pages else None
    links = Links()
    wrong: list[str] = []
    records = retired = 0
    following: bytes | None = None
    if after[:1] != _THERE:
        first = int.from_bytes(after[1:], "big")
        end = min(first + STEP_PAGES, chain.pages)
        for page in range(first, end):
            value = await kv.get(retired_key(tenant, page))
            if value is None:
                wrong.append(f"page {page} of what was removed is not there")
                continue
            gone = decode(value, RetiredRecord)
            retired += gone.count
            for run in gone.runs:
                links.add(*run)
        if end < chain.pages:
            following = _REMOVED + end.to_bytes(4, "big")
    if following is None:
        prefix = b"h" + tenant.encode()
        start = prefix + after[1:] + b"\0" if after[:1] == _THERE else prefix + CURRENT
        async for found in pages(kv, start, prefix_end(prefix + SUPERSEDED), READ_KEYS):
            await asyncio.sleep(0)  # A page is work of some 15 ms, and others wait.
            for key, value in found:
                record = decode(value, UsageRecord)
                if digest_of(_sealed_under(tenant, key), record) != record.digest and len(wrong) < WRONG_MAX:
                    wrong.append(f"the record at {key!r} is not what was sealed")
                links.add(record.previous, record.digest)
            records += len(found)
            if records >= STEP_RECORDS:
                following = _THERE + found[-1][0][len(prefix) :]
                break
    if links.forked:
        wrong.insert(0, _NO_CHAIN)
    return Step(
        records=records,
        retired=retired,
        wrong=tuple(wrong[:WRONG_MAX]),
        runs=tuple(links.runs),
        sealed=chain.count,
        newest=chain.digest,
        state=hashlib.sha256((chain_value or b"") + (newest_page or b"")).digest(),
        after=following,
    )


class Joined:
    """The steps of one verification, given in their order. Memory: one entry for each loose end of the chain.

    They are held against what the last step says was sealed: new hours lie behind those that were read. What
    was corrected or removed meanwhile may be found wrong, though: a verdict with a finding stands only if the
    first step, asked for again, still has the `state` that it had.
    """

    def __init__(self, first: Step) -> None:
        self.state = first.state  # When it began.
        self.records = 0
        self.retired = 0
        self._links = Links()
        self._wrong: list[str] = []
        self.add(first)

    def add(self, step: Step) -> None:
        """The next step."""
        self._last = step
        self.records += step.records
        self.retired += step.retired
        self._wrong += [words for words in step.wrong if words != _NO_CHAIN]
        del self._wrong[WRONG_MAX:]
        self._links.forked |= _NO_CHAIN in step.wrong
        for run in step.runs:
            self._links.add(*run)

    @property
    def after(self) -> bytes | None:
        """Where the next step begins; None: there is none."""
        return self._last.after

    @property
    def there(self) -> int:
        """Records that are there, by what was sealed and removed so far as is known."""
        return max(self._last.sealed - self.retired, self.records)

    def verdict(self) -> Verdict:
        """Of all steps."""
        assert self.after is None
        wrong, last = list(self._wrong), self._last
        if self.records + self.retired != last.sealed:
            wrong.append(
                f"{self.records} records and {self.retired} removed ones, where {last.sealed} were sealed"
            )
        whole = [(b"", last.newest)] if last.sealed else []
        if self._links.forked or self._links.runs != whole:
            wrong.append(_NO_CHAIN)
        return Verdict(self.records, self.retired, tuple(wrong))


async def verify_usage(kv: Kv, tenant: str) -> Verdict:
    """Hold all of a tenant's usage records against each other, and against the end of their chain.

    Raises: Overloaded (hours kept being sealed meanwhile), MetaUnavailable.
    """
    first = await verify_step(kv, tenant)
    for _ in range(ATTEMPTS_MAX):
        joined = Joined(first)
        while joined.after is not None:
            joined.add(await verify_step(kv, tenant, joined.after))
        verdict = joined.verdict()
        if not verdict.wrong:
            return verdict
        first = await verify_step(kv, tenant)
        if first.state == joined.state:
            return verdict
    raise Overloaded(f"usage of {tenant!r} kept being sealed")


def _sealed_under(tenant: str, key: bytes) -> bytes:
    begin = len(tenant.encode()) + 1
    if key[begin : begin + 1] == CURRENT:
        return key
    return key[:begin] + CURRENT + key[begin + 1 : -4]


# Retention.


async def tenants_with_usage(kv: Kv) -> list[str]:
    """Tenants that ever used anything, in order."""
    found: list[str] = []
    start, end = b"H", prefix_end(b"H")
    while pairs := await kv.scan(start, end, 1):
        name = pairs[0][0][1:].partition(b"\0")[0]
        found.append(name.decode())
        start = b"H" + name + b"\1"  # Behind its pages.
    return found


async def retire_usage(kv: Kv, tenant: str, before_hour: int) -> int:
    """Remove a tenant's records of hours before this one, a bounded number in one commit; how many went.

    Call it until it returns 0. Raises: Overloaded, MetaUnavailable.
    """
    for _ in range(ATTEMPTS_MAX):
        transaction, count = await _retirement(kv, tenant, before_hour)
        if transaction is None:
            return 0
        try:
            await kv.commit(transaction)
        except Conflict:
            continue
        return count
    raise Overloaded(f"usage of {tenant!r} kept changing")


async def _retirement(kv: Kv, tenant: str, before_hour: int) -> tuple[Transaction | None, int]:
    place = chain_key(tenant)
    chain_value = await kv.get(place)
    if chain_value is None:
        return None, 0
    chain = decode(chain_value, ChainRecord)
    gone: list[tuple[bytes, bytes]] = []
    for marker in (SUPERSEDED, CURRENT):
        start, end = usage_prefix(tenant, 0, marker), usage_prefix(tenant, before_hour, marker)
        gone = await kv.scan(start, end, RETIRED_AT_ONCE)
        if gone:
            break
    if not gone:
        return None, 0
    expect: dict[bytes, bytes | None] = {place: chain_value, **dict(gone)}
    number = max(chain.pages - 1, 0)
    value = await kv.get(retired_key(tenant, number))
    page = None if value is None else decode(value, RetiredRecord)
    merged = _retired(tenant, page, gone)
    if page is not None and len(merged.runs) > RUNS_MAX:
        number += 1
        value = None
        merged = _retired(tenant, None, gone)
    expect[retired_key(tenant, number)] = value
    put = {
        retired_key(tenant, number): encode(merged),
        place: encode(msgspec.structs.replace(chain, pages=number + 1)),
    }
    return Transaction(expect, put, [key for key, _ in gone]), len(gone)


def _retired(tenant: str, page: RetiredRecord | None, gone: Sequence[tuple[bytes, bytes]]) -> RetiredRecord:
    """What stays of these records, beside what a page has already."""
    links = Links()
    digest = hashlib.sha256(b"" if page is None else page.digest)
    for run in page.runs if page is not None else ():
        links.add(*run)
    begin = len(tenant.encode()) + 2
    hours = [int.from_bytes(key[begin : begin + 4], "big") for key, _ in gone]
    for _, value in gone:
        record = decode(value, UsageRecord)
        links.add(record.previous, record.digest)
        digest.update(record.digest)
    if page is not None:
        hours += (page.first_hour, page.last_hour)
    return RetiredRecord(
        first_hour=min(hours),
        last_hour=max(hours),
        count=len(gone) + (0 if page is None else page.count),
        runs=links.runs,
        digest=digest.digest(),
    )
