"""The audit log: written with the acts, read, verified.

`RecordedKv` is a `Kv` through which an act commits: every commit takes its audit record along, so an act is
recorded if and only if it happened. What is done elsewhere (disks, layout) is noted before and after.

Concurrency: any number of processes; the head is expected by each commit, so that records form one chain.
Acts are few: a hundred that meet try again in turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from objstore.audit.described import changes_of
from objstore.audit.records import (
    BEGINNING,
    DONE,
    HEAD_KEY,
    Anchor,
    AuditHead,
    AuditRecord,
    Changed,
    audit_key,
    digest_of,
)
from objstore.clock import Clock
from objstore.errors import ConditionFailed, Conflict, Corrupt, Overloaded
from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import decode, encode

ATTEMPTS_MAX: Final = 64  # Commits tried while others write to the log: each conflict is another's success.
PAGE: Final = 500  # Records read at once.
SCANNED_MAX: Final = 5_000  # Records looked at for one page of an answer.
VERIFIED_MAX: Final = 20_000  # Records verified in one step: some tenths of a second.
OUTCOME_SIZE_MAX: Final = 300  # Characters.


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Who does what. `RecordedKv` and `note` add when, what changed and what became of it."""

    who: str
    action: str
    target: str
    tenant: str = ""
    token: str = ""
    source: str = ""
    request: str = ""


def _record(deed: Deed, head: AuditHead, now_us: int, outcome: str, changes: list[Changed]) -> AuditRecord:
    return AuditRecord(
        at_us=max(now_us, head.at_us),
        who=deed.who,
        action=deed.action,
        target=deed.target[:256],
        outcome=outcome[:OUTCOME_SIZE_MAX],
        tenant=deed.tenant,
        token=deed.token,
        source=deed.source,
        request=deed.request,
        changes=changes,
        previous=head.digest,
    )


async def _commit(
    kv: Kv, deed: Deed, clock: Clock, transaction: Transaction, outcome: str, changes: list[Changed]
) -> None:
    """The transaction and its audit record, together. Raises: what Kv.commit raises, Overloaded, Corrupt."""
    for _ in range(ATTEMPTS_MAX):
        head_value = await kv.get(HEAD_KEY)
        head = AuditHead() if head_value is None else decode(head_value, AuditHead)
        record = _record(deed, head, clock.now_us(), outcome, changes)
        value = encode(record)
        sequence = head.sequence + 1
        newest = AuditHead(sequence=sequence, digest=digest_of(value), at_us=record.at_us)
        try:
            await kv.commit(
                Transaction(
                    expect={**transaction.expect, HEAD_KEY: head_value, audit_key(sequence): None},
                    put={**transaction.put, HEAD_KEY: encode(newest), audit_key(sequence): value},
                    delete=transaction.delete,
                    add=transaction.add,
                )
            )
        except Conflict as conflict:
            if conflict.key not in (HEAD_KEY, audit_key(sequence)):
                raise
            if conflict.key != HEAD_KEY and await kv.get(HEAD_KEY) == head_value:
                raise Corrupt(
                    f"audit record {sequence} lies behind the log's head: objstore audit verify"
                ) from None
            continue
        return
    raise Overloaded("too many administrative acts at the same time")


async def note(kv: Kv, deed: Deed, clock: Clock, outcome: str) -> None:
    """Write down what is about to be done, or what became of it, in a commit of its own."""
    await _commit(kv, deed, clock, Transaction(), outcome, [])


@dataclass(slots=True)
class RecordedKv:
    """A `Kv` whose every commit is an administrative act.

    Args:
        guards: what the act's first commit expects beside its own, and which header asks for it.
        first: what its first commit puts beside its own.

    Attributes:
        written: what its commits have put, and deleted (None).
    """

    kv: Kv
    deed: Deed
    clock: Clock
    guards: Mapping[bytes, tuple[bytes | None, str]] = field(default_factory=dict)
    first: Mapping[bytes, bytes] = field(default_factory=dict)
    commits: int = 0
    written: dict[bytes, bytes | None] = field(default_factory=dict)

    async def get(self, key: bytes) -> bytes | None:
        return await self.kv.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self.kv.get_many(keys)

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return await self.kv.scan(start, end, limit, reverse=reverse)

    async def commit(self, transaction: Transaction) -> None:
        """Raises: as `Kv.commit`; ConditionFailed (a guard does not hold; trying again is useless)."""
        whole = transaction if self.commits else self._with_guards(transaction)
        try:
            await _commit(self.kv, self.deed, self.clock, whole, DONE, changes_of(transaction))
        except Conflict as conflict:
            guard = None if self.commits else self.guards.get(conflict.key)
            if guard is not None and await self.kv.get(conflict.key) != guard[0]:
                raise ConditionFailed(guard[1]) from conflict
            raise
        self.commits += 1
        self.written.update(dict.fromkeys(transaction.delete))
        self.written.update(transaction.put)

    def _with_guards(self, transaction: Transaction) -> Transaction:
        for key, (value, condition) in self.guards.items():
            if transaction.expect.get(key, value) != value:
                raise ConditionFailed(condition)
        expected = {key: value for key, (value, _) in self.guards.items()}
        return transaction._replace(
            expect={**transaction.expect, **expected}, put={**transaction.put, **self.first}
        )


# Reading.


async def read_head(kv: Kv) -> AuditHead:
    value = await kv.get(HEAD_KEY)
    return AuditHead() if value is None else decode(value, AuditHead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records: all that fit everything that is given."""

    since_us: int = 0
    who: str = ""
    what: str = ""  # Of the action or the target, somewhere in it.
    tenant: str = ""

    def fits(self, record: AuditRecord) -> bool:
        return (
            (not self.who or record.who == self.who)
            and (not self.what or self.what in record.action or self.what in record.target)
            and (not self.tenant or record.tenant == self.tenant)
        )


async def newest(
    kv: Kv, wanted: Wanted, *, before: int | None, limit: int
) -> tuple[list[tuple[int, AuditRecord]], int | None]:
    """At most `limit` records, newest first, and behind which to go on; None: there are no more.

    Args:
        before: only records with a lower sequence.
    """
    found: list[tuple[int, AuditRecord]] = []
    end = audit_key((1 << 63) - 1 if before is None else before)
    scanned = 0
    while scanned < SCANNED_MAX:
        pairs = await kv.scan(audit_key(0), end, PAGE, reverse=True)
        for key, value in pairs:
            record, sequence = decode(value, AuditRecord), int.from_bytes(key[1:], "big")
            if record.at_us < wanted.since_us:
                return found, None
            if wanted.fits(record):
                found.append((sequence, record))
                if len(found) == limit:
                    return found, sequence
        scanned += len(pairs)
        if len(pairs) < PAGE:
            return found, None
        end = pairs[-1][0]
    return found, int.from_bytes(end[1:], "big")


# Verifying.


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one step found: up to which record all is well, and what is not behind it."""

    upto: Anchor
    finding: str = ""  # Empty: nothing wrong.
    finished: bool = False  # The step came to the head.


async def verify(kv: Kv, *, after: Anchor = BEGINNING, anchor: Anchor | None = None) -> Verdict:
    """Whether the records behind `after` are those that were written; at most VERIFIED_MAX a step.

    Args:
        after: where an earlier step came to.
        anchor: kept elsewhere from an earlier verification: the log must have passed through it.
    """
    head = await read_head(kv)
    upto = after
    end = min(head.sequence, after.sequence + VERIFIED_MAX)
    if anchor is not None and anchor.sequence > head.sequence:
        return Verdict(upto=upto, finding=f"the log ends at {head.sequence}, before anchor {anchor.sequence}")
    while upto.sequence < end:
        pairs = await kv.scan(audit_key(upto.sequence + 1), audit_key(end + 1), PAGE)
        if not pairs:
            return Verdict(upto=upto, finding=f"record {upto.sequence + 1} is missing")
        for key, value in pairs:
            if finding := _link(upto, key, value, anchor):
                return Verdict(upto=upto, finding=finding)
            upto = Anchor(upto.sequence + 1, digest_of(value))
    if upto.sequence < head.sequence:
        return Verdict(upto=upto)
    if upto.digest != (head.digest or BEGINNING.digest):
        return Verdict(upto=upto, finding=f"record {upto.sequence} is not the one that the head names")
    beyond = await kv.scan(audit_key(head.sequence + 1), b"U", 1)
    # What another process wrote meanwhile has moved the head along.
    if beyond and (await read_head(kv)).sequence == head.sequence:
        number = int.from_bytes(beyond[0][0][1:], "big")
        return Verdict(upto=upto, finding=f"record {number} lies behind the head at {head.sequence}")
    return Verdict(upto=upto, finished=True)


def _link(upto: Anchor, key: bytes, value: bytes, anchor: Anchor | None) -> str:
    """What is wrong with the record that follows `upto`; empty: nothing."""
    number = upto.sequence + 1
    if key != audit_key(number):
        return f"record {number} is missing"
    try:
        previous = decode(value, AuditRecord).previous or BEGINNING.digest
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return f"record {number} cannot be read"
    if previous != upto.digest:
        return f"record {number} does not follow record {upto.sequence}: one of the two was changed"
    if anchor is not None and anchor.sequence == number and anchor.digest != digest_of(value):
        return f"record {number} is not the one of the anchor"
    return ""
