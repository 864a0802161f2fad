"""All metadata from one engine into another: `objstore meta copy --from lmdb:DIR --to postgresql:URL`.

Twice, like copying a directory that is in use: a first pass while the store serves takes nearly everything,
and the last one, with the store stopped, takes what has changed since. Both are the same pass: source and
target are read side by side in the order of their keys, and what differs is put or deleted. So it does not
matter what an earlier pass saw, when it was interrupted, or whether what it read was one view (it was not):
the last pass ends with the target equal to a source that stands still. The store is away for as long as it
takes to compare, not to copy.

Then the target is read once more by itself, and must have the number of records and the digest that the
source had.

While a copy is not finished a note in the target keeps gateways off it. Every commit of a copy expects a
control record, CONTROL, that holds the run's own id: a second run takes it over, and what is left of the
first can change nothing more. The note has the source's id, so that a copy is never continued from another
store, and where the first pass stood.

Concurrency: one run at a time works on a target; the pairs of one step are put by COMMITS_AT_ONCE commits
side by side.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import xxhash

from objstore.clock import Clock, SystemClock
from objstore.errors import BadRequest, Conflict, Corrupt
from objstore.ids import random_id
from objstore.meta.kv import KEY_SIZE_MAX, Kv, Transaction

CONTROL = b"\0copy"  # Before every key of ours: they begin with a letter.
FIRST = b"\1"
END = b"\xff" * KEY_SIZE_MAX
SCAN_COUNT = 4_000  # Pairs of each side in a step: about 400 KB.
COMMIT_COUNT = 500  # Pairs in one mini-transaction.
COMMITS_AT_ONCE = 8
NOTE_S = 5.0  # Between two notes of where the first pass stands.


class Note(msgspec.Struct, frozen=True):
    """What the target remembers of a copy."""

    source: str  # The id of the store it comes from.
    position: str = ""  # Hexadecimal: up to here the first pass has been.
    finished_us: int = 0  # 0: it is not.
    count: int = 0
    digest: str = ""


class Target(Kv, Protocol):
    """An engine that can be copied into."""

    async def begin_copy(self, note: str) -> str:
        """Keep everybody else off, from now on; returns the note that is there now, `note` if there was none.

        Raises: BadRequest if it holds records and none of them by a copy.
        """
        ...

    async def note_copy(self, note: str) -> None:
        """Replace the note. Raises: BadRequest if there is none."""
        ...

    async def end_copy(self, note: str) -> None:
        """Let everybody in; the note stays as a memory."""
        ...


@dataclass(slots=True)
class Report:
    """What a run has done."""

    compared: int = 0  # Records of the source.
    put: int = 0
    deleted: int = 0
    finished: bool = False
    digest: str = ""


Progress = Callable[[str, int], None]
"""What is being done, and records so far."""


def no_progress(what: str, count: int) -> None:
    pass


def nothing() -> None:
    pass


async def copy(
    source: Kv,
    target: Target,
    *,
    name: str,
    standing: bool,
    before_end: Callable[[], None] = nothing,
    progress: Progress = no_progress,
    clock: Clock | None = None,
) -> Report:
    """One run of a copy.

    Args:
        name: the id of the store that `source` belongs to.
        standing: nobody changes `source` while this runs. Only such a run finishes the copy.
        before_end: called when the copy is whole and verified, before anybody is let into it; what it raises
            ends the run.

    Raises: BadRequest (the target is not for this copy, or another run has taken over), Corrupt (a record of
        either side is damaged, or the result is not equal), and what the engines raise. Run it again then.
    """
    clock = clock or SystemClock()
    note = msgspec.json.decode(await target.begin_copy(_text(Note(name))), type=Note)
    if note.source != name:
        raise BadRequest(f"a copy from another store, {note.source}, is under way into this database")
    run = random_id()
    await target.commit(Transaction(put={CONTROL: run}))
    start = FIRST
    if not standing and note.position:
        start = max(FIRST, bytes.fromhex(note.position))
    report = Report()
    pass_ = _Pass(source, target, run, report, progress, clock)
    if not standing:

        async def remember(position: bytes) -> None:
            await target.note_copy(_text(Note(name, position.hex())))

        await pass_.equalize(start, remember=remember)
        await target.note_copy(_text(Note(name)))
        return report
    report.digest = await pass_.equalize(start)
    await verify(target, report.compared, report.digest, progress)
    done = Note(name, "", clock.now_us(), report.compared, report.digest)
    await pass_.commit(Transaction(delete=[CONTROL]))
    before_end()
    await target.end_copy(_text(done))
    report.finished = True
    return report


class _Pass:
    def __init__(
        self, source: Kv, target: Kv, run: bytes, report: Report, progress: Progress, clock: Clock
    ) -> None:
        self._source = source
        self._target = target
        self._run = run
        self._report = report
        self._progress = progress
        self._clock = clock

    async def equalize(
        self, start: bytes, *, remember: Callable[[bytes], Awaitable[None]] | None = None
    ) -> str:
        """Make the target's records from `start` on equal to the source's; returns the digest of these."""
        hasher = xxhash.xxh3_128()
        noted = self._clock.monotonic()
        report = self._report
        while start < END:
            ours, theirs = await asyncio.gather(
                self._source.scan(start, END, SCAN_COUNT), self._target.scan(start, END, SCAN_COUNT)
            )
            # Up to where both are known.
            ends = [pairs[-1][0] + b"\0" for pairs in (ours, theirs) if len(pairs) == SCAN_COUNT]
            end = min(ends, default=END)
            wanted = {key: value for key, value in ours if key < end}
            there = {key: value for key, value in theirs if key < end}
            put = {key: value for key, value in wanted.items() if there.get(key) != value}
            delete = [key for key in there if key not in wanted]
            await self._change(put, delete)
            _digest_of(hasher, wanted)
            report.compared += len(wanted)
            report.put += len(put)
            report.deleted += len(delete)
            start = end
            self._progress("copying", report.compared)
            if remember is not None and self._clock.monotonic() - noted >= NOTE_S:
                noted = self._clock.monotonic()
                await remember(start)
        return hasher.hexdigest()

    async def _change(self, put: dict[bytes, bytes], delete: list[bytes]) -> None:
        pairs = list(put.items())
        transactions = [
            Transaction(put=dict(pairs[at : at + COMMIT_COUNT])) for at in range(0, len(pairs), COMMIT_COUNT)
        ]
        transactions += [
            Transaction(delete=delete[at : at + COMMIT_COUNT]) for at in range(0, len(delete), COMMIT_COUNT)
        ]
        for at in range(0, len(transactions), COMMITS_AT_ONCE):
            outcomes = await asyncio.gather(
                *(self.commit(one) for one in transactions[at : at + COMMITS_AT_ONCE]), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome

    async def commit(self, transaction: Transaction) -> None:
        """As long as this run is the one that counts. Raises: BadRequest."""
        try:
            await self._target.commit(transaction._replace(expect={CONTROL: self._run}))
        except Conflict:
            raise BadRequest("another run of this copy has taken over") from None


async def verify(target: Kv, count: int, digest: str, progress: Progress = no_progress) -> None:
    """Read all of the target. Raises: Corrupt if it does not have `count` records with this digest."""
    hasher = xxhash.xxh3_128()
    found = 0
    start = FIRST
    while True:
        pairs = await target.scan(start, END, SCAN_COUNT)
        _digest_of(hasher, dict(pairs))
        found += len(pairs)
        progress("verifying", found)
        if len(pairs) < SCAN_COUNT:
            break
        start = pairs[-1][0] + b"\0"
    if (found, hasher.hexdigest()) != (count, digest):
        raise Corrupt(f"the copy has {found} records, digest {hasher.hexdigest()}: not {count}, {digest}")


def _digest_of(hasher: "xxhash.xxh3_128", pairs: dict[bytes, bytes]) -> None:
    """Sizes first, so that no two lists of pairs have the same bytes."""
    parts: list[bytes] = []
    for key, value in pairs.items():
        parts += (len(key).to_bytes(4, "big"), len(value).to_bytes(4, "big"), key, value)
    hasher.update(b"".join(parts))


def _text(note: Note) -> str:
    return msgspec.json.encode(note).decode()
