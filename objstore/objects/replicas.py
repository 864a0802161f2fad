"""Replicas: buckets that take what their source, a bucket of another store, sends; what that store may ask.

    attach           the bucket becomes a replica of a source, and gets a generation
    open_session     whatever the source sent before is refused from here on
    listed           what the replica holds, to be compared
    writes, multipart  the verbs that everybody uses, under a Principal with a Mirror
    promote          an operator's word: the bucket takes its tenant's writes, and no more from the source

Generation and session stand in the bucket's record, which every commit in the bucket expects. So nothing that
a source sent before a promotion, or before its own later session, can arrive afterwards: however late the
network delivers it, its commit fails.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.errors import BadRequest, BucketNotEmpty, BucketReplicates, Conflict, NoSuchBucket, Overloaded
from objstore.meta.kv import Transaction, counter, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    ReplicaRecord,
    bucket_key,
    bucket_objects_key,
    decode,
    decode_listed,
    encode,
    object_key,
)
from objstore.objects.buckets import read_bucket
from objstore.objects.changes import REPLICA, check_source, replica_of, replication_of
from objstore.objects.doomed import abort_all
from objstore.objects.store import Store
from objstore.objects.values import Principal

ATTEMPTS_MAX: Final = 64
LISTED_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose replica a bucket is to be."""

    cluster: str  # Id, in hex.
    bucket: str
    id: int  # The bucket's id there.


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One version of a replica, as its source compares it."""

    key: bytes
    order: int
    size: int
    etag: bytes


def settled(record: BucketRecord, name: str, value: bytes | None) -> BucketRecord:
    """The bucket's record with one of its settings changed, or dropped (None)."""
    settings = dict(record.settings or {})
    if value is None:
        settings.pop(name, None)
    else:
        settings[name] = value
    return msgspec.structs.replace(record, settings=settings or None)


async def attach(
    store: Store, who: Principal, bucket: str, source: Source, *, replace: bool = False
) -> ReplicaRecord:
    """Make the bucket a replica of the source. Idempotent for its present source.

    Args:
        replace: also if it holds objects, was promoted, or has another source: what it holds and the source
            does not is then deleted by the source's first pass.

    Raises: NoSuchBucket, Denied, BucketReplicates, BucketNotEmpty, BadRequest (without `replace`).
    """
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_bucket(store, who, bucket)
        if replication_of(record) is not None:
            raise BucketReplicates(f"bucket {bucket!r} is replicated itself: a replica cannot have replicas")
        old = replica_of(record)
        same = old is not None and (old.cluster, old.source) == (source.cluster, source.id)
        if old is not None and not replace:
            if old.promoted_us:
                raise BadRequest(f"bucket {bucket!r} was promoted: to make it a replica again, replace it")
            if not same:
                raise BadRequest(f"bucket {bucket!r} is a replica of {old.bucket!r} of another store")
        count_key = bucket_objects_key(record.id)
        count = await store.kv.get(count_key)
        if old is None and counter(count) and not replace:
            raise BucketNotEmpty(bucket)
        goes_on = old is not None and same and not old.promoted_us
        generation = 0 if old is None else old.generation
        new = ReplicaRecord(
            cluster=source.cluster,
            source=source.id,
            bucket=source.bucket,
            access_key=who.access_key_id,
            generation=generation if goes_on else generation + 1,
            session=0 if old is None else old.session + 1,
            since_us=old.since_us if goes_on and old is not None else store.clock.now_us(),
        )
        expect: dict[bytes, bytes | None] = {bucket_key(bucket): value}
        if old is None and not replace:
            expect[count_key] = count  # Still empty.
        if await _settle(store, bucket, record, new, expect):
            await _drop_uploads(store, who, bucket)
            return new
    raise Overloaded(f"the record of bucket {bucket!r} kept changing")


async def open_session(store: Store, who: Principal, bucket: str, generation: int) -> int:
    """The number of a new session; older ones are over. Raises: NoSuchBucket, Denied, ReplicaTakenOver."""
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_bucket(store, who, bucket)
        old = replica_of(record)
        check_source(bucket, old, who, generation)
        assert old is not None
        new = msgspec.structs.replace(old, session=old.session + 1)
        if await _settle(store, bucket, record, new, {bucket_key(bucket): value}):
            await _drop_uploads(store, who, bucket)
            return new.session
    raise Overloaded(f"the record of bucket {bucket!r} kept changing")


async def listed(
    store: Store, who: Principal, bucket: str, generation: int, *, after: bytes
) -> tuple[list[Held], bool]:
    """What the replica holds of keys > after, in order; whether there is more.

    Raises: NoSuchBucket, Denied, ReplicaTakenOver.
    """
    limit = LISTED_MAX
    _, record = await read_bucket(store, who, bucket)
    check_source(bucket, replica_of(record), who, generation)
    base = object_key(record.id, b"")
    start = base + after + b"\0" if after else base
    pairs = await store.kv.scan(start, prefix_end(base), limit + 1)
    heads = decode_listed([value for _, value in pairs[:limit]])
    found = [
        Held(key[len(base) :], head.order, head.size, head.etag)
        for (key, _), head in zip(pairs, heads, strict=False)
    ]
    return found, len(pairs) > limit


async def promote(store: Store, bucket: str) -> ReplicaRecord:
    """The bucket takes its tenant's writes, and nothing more from its source. Idempotent.

    Raises: NoSuchBucket; BadRequest (it is no replica).
    """
    key = bucket_key(bucket)
    for _ in range(ATTEMPTS_MAX):
        value = await store.kv.get(key)
        if value is None:
            raise NoSuchBucket(bucket)
        record = decode(value, BucketRecord)
        old = replica_of(record)
        if old is None:
            raise BadRequest(f"bucket {bucket!r} is no replica")
        if old.promoted_us:
            return old
        new = msgspec.structs.replace(old, generation=old.generation + 1, promoted_us=store.clock.now_us())
        if await _settle(store, bucket, record, new, {key: value}):
            return new
    raise Overloaded(f"the record of bucket {bucket!r} kept changing")


async def _settle(
    store: Store,
    bucket: str,
    record: BucketRecord,
    new: ReplicaRecord,
    expect: dict[bytes, bytes | None],
) -> bool:
    changed = encode(settled(record, REPLICA, encode(new)))
    try:
        await store.kv.commit(Transaction(expect=expect, put={bucket_key(bucket): changed}))
    except Conflict:
        return False
    return True


async def _drop_uploads(store: Store, who: Principal, bucket: str) -> None:
    """Uploads that an earlier session, or a tenant before there was a source, has left."""
    value, record = await read_bucket(store, who, bucket)
    await abort_all(store, bucket, value, record)
