"""Replicated buckets: where a bucket's changes go, and what is still to be sent.

A change of a replicated bucket leaves a record `r <bucket> <time> <key>` in the commit that makes it
(changes.py). The record says that the target lacks something of this key, not what: the sender
(upkeep/replication.py) sends the key's present state and then removes the records that it had read before.
So a key that changes often is sent once, in the right order, and nothing needs to be kept of older versions.
What the bucket held before is compared with the target by a pass in order of keys.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from objstore.errors import BadRequest, BucketReplicates, Conflict, NoSuchBucket, Overloaded
from objstore.meta.kv import Add, Kv, Transaction, counter, pages, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    ChangeRecord,
    ReplicationProgress,
    ReplicationRecord,
    bucket_change_bytes_key,
    bucket_changes_key,
    bucket_key,
    bucket_objects_key,
    decode,
    encode,
    replication_key,
    setting_key,
)
from objstore.objects.changes import REPLICATION, note_change, replica_of, replication_of
from objstore.objects.replicas import settled
from objstore.objects.store import Store

ATTEMPTS_MAX: Final = 64
REMOVED_AT_ONCE: Final = 256  # Change records of one commit: keys of up to 1 KB each.
PREFIX: Final = setting_key("replication/")
LISTED_MAX: Final = 1_000
CHANGES_MAX: Final = 1_000_000  # Change records of a bucket that are never too many: about 100 MB.


class Pending(NamedTuple):
    """One change record."""

    name: bytes  # Its key.
    value: bytes
    since_us: int
    key: bytes  # Of the object.
    size: int


class Backlog(NamedTuple):
    """What a bucket's target lacks."""

    changes: int
    size: int  # Bytes.
    oldest_us: int  # When the first of these changes was committed; 0: none.


async def bucket_of(store: Store, name: str) -> tuple[bytes, BucketRecord]:
    """An operator's look at any tenant's bucket. Raises: NoSuchBucket."""
    value = await store.kv.get(bucket_key(name))
    if value is None:
        raise NoSuchBucket(name)
    return value, decode(value, BucketRecord)


def check_can_replicate(name: str, record: BucketRecord) -> None:
    """Chains and loops of replicas are impossible. Raises: BucketReplicates."""
    replica = replica_of(record)
    if replica is not None and not replica.promoted_us:
        raise BucketReplicates(f"bucket {name!r} is a replica itself: promote it first")


async def set_target(
    store: Store, name: str, make: Callable[[BucketRecord], ReplicationRecord], *, resync: bool
) -> ReplicationRecord:
    """From this commit on every change of the bucket is noted for its target.

    Args:
        make: the target, for the bucket as it is.
        resync: the pass over what the bucket holds begins anew, even if it has been finished for this target.

    Raises: NoSuchBucket, BucketReplicates (it is a replica), Overloaded.
    """
    progress_key = replication_key(name)
    for _ in range(ATTEMPTS_MAX):
        value, record = await bucket_of(store, name)
        check_can_replicate(name, record)
        target = make(record)
        progress = await store.kv.get(progress_key)
        put = {bucket_key(name): encode(settled(record, REPLICATION, encode(target)))}
        if resync or progress is None:
            put[progress_key] = encode(ReplicationProgress(bucket=record.id, began_us=store.clock.now_us()))
        try:
            await store.kv.commit(
                Transaction(expect={bucket_key(name): value, progress_key: progress}, put=put)
            )
        except Conflict:
            continue
        return target
    raise Overloaded(f"the record of bucket {name!r} kept changing")


async def resync(store: Store, name: str) -> None:
    """Compare all that the bucket holds with its target once more.

    Raises: NoSuchBucket, BadRequest (it is not replicated), Overloaded.
    """
    _, record = await bucket_of(store, name)
    target = _target_of(name, record)
    await set_target(store, name, lambda record: replication_of(record) or target, resync=True)


async def remove_target(store: Store, name: str) -> int:
    """The bucket is replicated no more; returns how many changes its target will never get.

    Raises: NoSuchBucket, BadRequest (it is not replicated), Overloaded.
    """
    for _ in range(ATTEMPTS_MAX):
        value, record = await bucket_of(store, name)
        if replication_of(record) is None and await store.kv.get(replication_key(name)) is None:
            _target_of(name, record)
        try:
            await store.kv.commit(
                Transaction(
                    expect={bucket_key(name): value},
                    put={bucket_key(name): encode(settled(record, REPLICATION, None))},
                )
            )
        except Conflict:
            continue
        dropped = 0
        while some := await pending(store, record.id, b"", REMOVED_AT_ONCE):
            dropped += await done(store, record.id, some)
        # Last: while it is there, a command that was cut short can be given again.
        await store.kv.commit(Transaction(delete=[replication_key(name), *_counters(record.id)]))
        return dropped
    raise Overloaded(f"the record of bucket {name!r} kept changing")


def _target_of(name: str, record: BucketRecord) -> ReplicationRecord:
    target = replication_of(record)
    if target is None:
        raise BadRequest(f"bucket {name!r} is not replicated")
    return target


async def replicated(kv: Kv) -> list[tuple[str, ReplicationProgress]]:
    """All buckets that are replicated, or were and are being cleared, in order of name."""
    found: list[tuple[str, ReplicationProgress]] = []
    async for pairs in pages(kv, PREFIX, prefix_end(PREFIX), LISTED_MAX):
        found += [(key[len(PREFIX) :].decode(), decode(value, ReplicationProgress)) for key, value in pairs]
    return found


async def progress_of(store: Store, name: str) -> ReplicationProgress | None:
    """How far the pass over the bucket has come; None: it is not replicated."""
    value = await store.kv.get(replication_key(name))
    return None if value is None else decode(value, ReplicationProgress)


def _counters(bucket: int) -> list[bytes]:
    return [bucket_changes_key(bucket), bucket_change_bytes_key(bucket)]


def _changes(bucket: int) -> bytes:
    return b"r" + bucket.to_bytes(8, "big")


async def pending(store: Store, bucket: int, after: bytes, limit: int) -> list[Pending]:
    """Change records behind the name `after` (b"": from the first), oldest first."""
    base = _changes(bucket)
    start = after + b"\0" if after else base
    pairs = await store.kv.scan(start, prefix_end(base), limit)
    at = len(base)
    return [
        Pending(
            name,
            value,
            int.from_bytes(name[at : at + 8], "big"),
            name[at + 8 :],
            decode(value, ChangeRecord).size,
        )
        for name, value in pairs
    ]


async def done(store: Store, bucket: int, some: list[Pending]) -> int:
    """Remove change records; returns how many. None if another process was faster with one of them."""
    if not some:
        return 0
    add = {bucket_changes_key(bucket): Add(-len(some))}
    if size := sum(one.size for one in some):
        add[bucket_change_bytes_key(bucket)] = Add(-size)
    try:
        await store.kv.commit(
            Transaction(
                expect={one.name: one.value for one in some}, delete=[one.name for one in some], add=add
            )
        )
    except Conflict:
        return 0
    return len(some)


async def backlog(store: Store, bucket: int) -> Backlog:
    """What is still to be sent: from counters and the first change record."""
    changes, size = await store.kv.get_many(_counters(bucket))
    first = await pending(store, bucket, b"", 1)
    if first:
        return Backlog(max(counter(changes), 1), max(counter(size), 0), first[0].since_us)
    if counter(changes) or counter(size):
        # Two changes of one key in one microsecond are one record that was counted twice. Nothing is pending:
        # a change after our look would have changed the counters.
        try:
            await store.kv.commit(
                Transaction(
                    expect=dict(zip(_counters(bucket), [changes, size], strict=True)),
                    delete=_counters(bucket),
                )
            )
        except Conflict:
            pass
    return Backlog(0, 0, 0)


async def fold(store: Store, name: str, record: BucketRecord) -> bool:
    """If there are more changes than keys, give them up for a pass over all keys; whether that was done.

    So a target that is away for weeks costs metadata no more than the bucket itself does. Only for whoever
    sends: no pass may be under way elsewhere.
    """
    counted, objects = await store.kv.get_many([bucket_changes_key(record.id), bucket_objects_key(record.id)])
    changes = counter(counted)
    before = await progress_of(store, name)
    if before is None or changes <= max(CHANGES_MAX, counter(objects)):
        return False
    after = ReplicationProgress(bucket=record.id, began_us=store.clock.now_us())
    if not await note_progress(store, name, before, after):
        return False
    removed = 0
    while removed < changes and (some := await pending(store, record.id, b"", REMOVED_AT_ONCE)):
        removed += await done(store, record.id, some)
    return True


async def note_progress(
    store: Store, name: str, before: ReplicationProgress, after: ReplicationProgress
) -> bool:
    """Write how far the pass has come; False if an operator began it anew, or ended it."""
    try:
        await store.kv.commit(
            Transaction(
                expect={replication_key(name): encode(before)}, put={replication_key(name): encode(after)}
            )
        )
    except Conflict:
        return False
    return True


async def note_again(store: Store, name: str, progress: ReplicationProgress, key: bytes, size: int) -> None:
    """The pass could not send this key: it waits among the changes, unless the pass is no longer this one."""
    put: dict[bytes, bytes] = {}
    add: dict[bytes, Add] = {}
    note_change(progress.bucket, key, store.clock.now_us(), size, put, add)
    try:
        await store.kv.commit(Transaction(expect={replication_key(name): encode(progress)}, put=put, add=add))
    except Conflict:
        pass
