"""One session with a replica: keys of one bucket go to its target, each as it is now.

    changes      oldest first, a page at a time; the keys of a page side by side, each key alone
    the pass     what the bucket held before: its keys and the target's, side by side; what differs is sent
    one key      its present record is read and sent; only when the target has acknowledged it, with the ETag
                 that it must have, the change records that were read before go

An outcome that stays unknown (a connection that broke, an answer that did not come) ends the session: the
next one is opened before anything else is sent, and with that the lost request can no longer commit.

What it knows of the target is `Target`; the one over HTTP is s3/replica_client.py.

Concurrency: one event loop; a key is sent by one task at a time. A crash loses nothing but the work since the
last commit, which is done again to the same effect.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol

import msgspec

from objstore.clock import Clock
from objstore.errors import Corrupt, StoreError, Unavailable
from objstore.ids import Randomness
from objstore.meta.kv import pages, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    Checksum,
    Multipart,
    ObjectRecord,
    PartEntry,
    PartsPage,
    decode,
    decode_listed,
    object_key,
    parts_page_key,
)
from objstore.objects import replication
from objstore.objects.multipart import Claimed
from objstore.objects.reads import read, with_body
from objstore.objects.replicas import Held
from objstore.objects.replication import Pending
from objstore.objects.store import Store
from objstore.objects.values import About, Buffer, Found, etag_text
from objstore.upkeep.context import Pace

log = logging.getLogger(__name__)

PAGE_CHANGES: Final = 256  # Change records read and removed at once: keys of up to 1 KB.
PAGE_KEYS: Final = 500  # Keys of the pass compared at once.
PAGE_PARTS: Final = 100  # Pages of a part list read at once.
PART_TRIES: Final = 3  # A part sent twice is the same part: no new session is needed for it.
BACKOFF_S: Final = (1.0, 60.0)  # First and longest wait after a failure; doubled in between.
FAILING_MAX: Final = 10_000  # Keys with a failure remembered; more, and they are simply tried again.


class TargetAway(Unavailable):
    """The target does not answer, or not now. What was sent may have arrived."""


class TargetRefuses(StoreError):
    """The target takes nothing from this source: promoted, another's, gone, or the key is wrong."""


class SessionOver(Unavailable):
    """Another session was opened: whoever opened it sends now."""


class KeyRefused(StoreError):
    """The target takes others, but not this key."""


class Target(Protocol):
    """The replica, as its source speaks to it. A body is read to its end, or not at all.

    Every call raises TargetAway, TargetRefuses, SessionOver; those of one key also KeyRefused.
    """

    async def open(self) -> None:
        """Open a session: what an earlier one still has on the wire is refused from here on."""
        ...

    async def listed(self, after: bytes) -> tuple[list[Held], bool]:
        """What it holds of keys > after, in order, and whether there is more."""
        ...

    async def put(
        self,
        key: bytes,
        order: int,
        about: About,
        body: AsyncIterator[Buffer],
        *,
        size: int,
        md5: bytes,
        checksum: Checksum | None,
    ) -> str:
        """Returns the ETag."""
        ...

    async def delete(self, key: bytes) -> None: ...

    async def begin(self, key: bytes, about: About, checksum: Checksum | None) -> str:
        """Begin a multipart upload whose object will have a checksum of this kind: the upload's id."""
        ...

    async def put_part(
        self,
        key: bytes,
        upload: str,
        number: int,
        body: AsyncIterator[Buffer],
        *,
        size: int,
        md5: bytes,
        checksum: Checksum | None,
    ) -> str:
        """Returns the ETag."""
        ...

    async def complete(self, key: bytes, order: int, upload: str, parts: Sequence[Claimed]) -> str:
        """Returns the ETag of the whole."""
        ...

    async def close(self) -> None: ...


def longer(wait_s: float, randomness: Randomness) -> float:
    """The next wait after a failure: doubled, with jitter so that not all come back together."""
    least, most = BACKOFF_S
    return min(most, max(least, 2 * wait_s)) * (0.75 + randomness(1)[0] / 510)


class Failing:
    """Keys that fail: each waits longer and longer, and holds up no others."""

    def __init__(self, clock: Clock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._keys: dict[bytes, tuple[float, float]] = {}  # Key -> (not before, monotonic; its last wait).

    def __len__(self) -> int:
        return len(self._keys)

    def is_due(self, key: bytes) -> bool:
        known = self._keys.get(key)
        return known is None or self._clock.monotonic() >= known[0]

    def failed(self, key: bytes) -> None:
        wait_s = longer(self._keys.get(key, (0.0, 0.0))[1], self._randomness)
        if len(self._keys) >= FAILING_MAX:
            self._keys.clear()
        self._keys[key] = (self._clock.monotonic() + wait_s, wait_s)

    def sent(self, key: bytes) -> None:
        self._keys.pop(key, None)


class Sent(msgspec.Struct):
    """What was sent, since the process began."""

    keys: int = 0
    size: int = 0  # Bytes.
    failures: int = 0
    last_failure: str = ""


class _Body:
    """An object's bytes on their way out, at the pace, and whether reading them has failed."""

    def __init__(self, store: Store, found: Found, pace: Pace) -> None:
        self._store = store
        self._found = found
        self._pace = pace
        self.failure: StoreError | None = None

    async def chunks(self) -> AsyncIterator[Buffer]:
        source: Any = read(self._store, self._found)
        left = self._found.length
        try:
            async with aclosing(source):
                async for buffers in source:
                    size = sum(map(len, buffers))
                    left -= size
                    await self._pace.spend(size)
                    for buffer in buffers:
                        yield buffer
            if left:
                raise Corrupt(f"{left} bytes fewer than were written")
        except StoreError as failure:
            self.failure = failure
            raise


class Session:
    """One session of a bucket with its target, opened. `changes_step` and `pass_step` until both are done."""

    def __init__(
        self,
        store: Store,
        name: str,
        bucket: BucketRecord,
        target: Target,
        *,
        turns: asyncio.Semaphore,
        pace: Pace,
        failing: Failing,
        sent: Sent,
    ) -> None:
        """
        Args:
            store: its `kv` is the one to commit through.
            turns: how many keys may be under way, over all sessions.
        """
        self._store = store
        self._name = name
        self._bucket = bucket
        self._target = target
        self._turns = turns
        self._pace = pace
        self._failing = failing
        self._sent = sent
        self._at = b""  # The change record behind which the round goes on.
        self._broken = False

    async def changes_step(self) -> bool:
        """Send the keys of one page of changes; whether there may be more to do at once.

        Raises: TargetAway, TargetRefuses, SessionOver: the session is of no more use. MetaUnavailable.
        """
        store, bucket = self._store, self._bucket.id
        some = await replication.pending(store, bucket, self._at, PAGE_CHANGES)
        whole = len(some) < PAGE_CHANGES
        self._at = b"" if whole else some[-1].name
        changes: dict[bytes, list[Pending]] = {}
        for one in some:
            if self._failing.is_due(one.key):
                changes.setdefault(one.key, []).append(one)
        sent, failure = await self._send_all(changes)
        await replication.done(store, bucket, [one for key in sent for one in changes[key]])
        if failure is not None:
            raise failure
        return bool(sent) or not whole

    async def pass_step(self) -> bool:
        """Compare one page of keys with what the target holds, and send what differs; False at the end.

        Raises: as changes_step.
        """
        store, bucket = self._store, self._bucket.id
        progress = await replication.progress_of(store, self._name)
        if progress is None or progress.finished_us or progress.bucket != bucket:
            return False
        held, more = await self._target.listed(progress.cursor)
        base = object_key(bucket, b"")
        start = base + progress.cursor + b"\0" if progress.cursor else base
        pairs = await store.kv.scan(start, prefix_end(base), PAGE_KEYS)
        heads = decode_listed([value for _, value in pairs])
        ours = {
            name[len(base) :]: (head.order, head.size, head.etag)
            for (name, _), head in zip(pairs, heads, strict=True)
        }
        theirs = {one.key: (one.order, one.size, one.etag) for one in held}
        # Beyond the end of a page that is not the last nothing is known.
        ends = [held[-1].key] if more else []
        if len(pairs) == PAGE_KEYS:
            ends.append(pairs[-1][0][len(base) :])
        end = min(ends, default=None)
        differ = [
            key
            for key in sorted(ours.keys() | theirs.keys())
            if (end is None or key <= end) and ours.get(key) != theirs.get(key)
        ]
        sent, failure = await self._send_all(differ)
        if failure is not None:
            raise failure
        for key in differ:
            if key not in sent:
                size = ours.get(key, (0, 0, b""))[1]
                await replication.note_again(store, self._name, progress, key, size)
        after = (
            msgspec.structs.replace(progress, cursor=end)
            if end is not None
            else msgspec.structs.replace(progress, finished_us=store.clock.now_us())
        )
        await replication.note_progress(store, self._name, progress, after)
        return True

    async def _send_all(self, keys: Iterable[bytes]) -> tuple[set[bytes], StoreError | None]:
        """Those that the target has acknowledged, and what ended the session, if anything did."""
        wanted = list(keys)
        outcomes = await asyncio.gather(*(self._send_in_turn(key) for key in wanted), return_exceptions=True)
        sent: set[bytes] = set()
        ended: StoreError | None = None
        for key, outcome in zip(wanted, outcomes, strict=True):
            if outcome is True:
                sent.add(key)
            elif isinstance(outcome, (TargetAway, TargetRefuses, SessionOver)):
                ended = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
        return sent, ended

    async def _send_in_turn(self, key: bytes) -> bool:
        async with self._turns:
            if self._broken:
                return False
            try:
                size = await self._send(key)
            except (TargetAway, TargetRefuses, SessionOver):
                self._broken = True
                raise
            except StoreError as failure:  # The key's own: others are sent.
                self._failing.failed(key)
                self._sent.failures += 1
                words = f"key {key[:64]!r}: {type(failure).__name__}: {failure}"
                self._sent.last_failure = words
                log.warning("replication of bucket %s: %s", self._name, words)
                return False
        self._failing.sent(key)
        self._sent.keys += 1
        self._sent.size += size
        return True

    async def _send(self, key: bytes) -> int:
        """Let the target hold of this key what the bucket holds now. Returns the bytes sent."""
        record, carried = await with_body(self._store, object_key(self._bucket.id, key))
        if record is None:
            await self._target.delete(key)
            return 0
        multipart = record.extra.multipart if record.extra is not None else None
        if multipart is not None:
            etag = await self._send_parts(key, record, multipart)
        else:
            found = self._found(key, record, 0, record.size, carried)
            body = _Body(self._store, found, self._pace)
            try:
                etag = await self._target.put(
                    key,
                    record.order,
                    _about(record),
                    body.chunks(),
                    size=record.size,
                    md5=record.etag,
                    checksum=Checksum.unpack(record.checksum),
                )
            except TargetAway as failure:
                raise _cause(body, failure) from failure
        if etag != etag_text(record.etag):
            raise KeyRefused(f"the target has ETag {etag}, the source {etag_text(record.etag)}")
        return record.size

    async def _send_parts(self, key: bytes, record: ObjectRecord, multipart: Multipart) -> str:
        target = self._target
        checksum = Checksum.unpack(record.checksum)
        upload = await target.begin(key, _about(record), checksum)
        claims: list[Claimed] = []
        first = 0
        async for entry in self._entries(multipart):
            found = self._found(key, record, first, entry.size)
            part_checksum = Checksum.unpack(entry.checksum)
            for tries_left in reversed(range(PART_TRIES)):
                body = _Body(self._store, found, self._pace)
                try:
                    await target.put_part(
                        key,
                        upload,
                        entry.number,
                        body.chunks(),
                        size=entry.size,
                        md5=entry.etag,
                        checksum=part_checksum,
                    )
                except TargetAway as failure:
                    if body.failure is not None or not tries_left:
                        raise _cause(body, failure) from failure
                else:
                    break
            composite = checksum is not None and checksum.type == "COMPOSITE" and part_checksum is not None
            words = (part_checksum.algorithm, part_checksum.digest) if composite and part_checksum else None
            claims.append(Claimed(number=entry.number, etag=entry.etag.hex(), checksum=words))
            first += entry.size
        return await target.complete(key, record.order, upload, claims)

    async def _entries(self, multipart: Multipart) -> AsyncIterator[PartEntry]:
        start = parts_page_key(multipart.upload, 0)
        async for pairs in pages(self._store.kv, start, prefix_end(start[:-2]), PAGE_PARTS):
            for _, value in pairs:
                for entry in decode(value, PartsPage).parts:
                    yield entry

    def _found(
        self, key: bytes, record: ObjectRecord, first: int, length: int, carried: bytes | None = None
    ) -> Found:
        return Found(
            bucket=self._bucket,
            key=key.decode(),
            record=record,
            etag=etag_text(record.etag),
            first=first,
            length=length,
            ranged=length != record.size,
            part_count=0,
            carried=carried,
        )


def _about(record: ObjectRecord) -> About:
    extra = record.extra
    if extra is None:
        return About()
    return About(content_type=extra.content_type, headers=extra.headers, metadata=extra.metadata)


def _cause(body: _Body, failure: TargetAway) -> StoreError:
    """A body that could not be read never ended: its request cannot commit, and others may go on."""
    if body.failure is None:
        return failure
    return KeyRefused(f"the source's bytes cannot be read: {body.failure}")
