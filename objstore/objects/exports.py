"""What a tenant has stored, as it is handed back: bucket by bucket, key by key, and the bytes in pieces.

It reads as S3 does, but for an operator: no key of the tenant's is needed, nothing is metered, and it works
in every state of the account. Who may is decided above (an open ExportRecord). An object is named by bucket,
key and the order of its version, so that pieces of two versions are never put together.

Concurrency: any number of readers; at most PIECES_AT_ONCE pieces are in memory at once.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.errors import ConditionFailed
from objstore.meta.kv import counter, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    Limits,
    ObjectRecord,
    PartEntry,
    PartsPage,
    bucket_bytes_key,
    bucket_objects_key,
    bucket_uploads_key,
    decode,
    object_key,
    parts_page_key,
)
from objstore.objects.accounting import limits_of, project_of
from objstore.objects.buckets import find_bucket, list_buckets
from objstore.objects.changes import replica_of, replication_of
from objstore.objects.placing import policy_of_bucket
from objstore.objects.reads import find_object, read
from objstore.objects.store import Store
from objstore.objects.values import Found, Principal

PIECE_SIZE_MAX: Final = 4 * 1024 * 1024  # Bytes: one answer of the admin port; more gains nothing.
PIECES_AT_ONCE: Final = 8  # 32 MiB, beside what the reader holds for them.
PART_PAGES_AT_ONCE: Final = 25  # 1,000 parts.
CHANGED: Final = "order"  # The condition that fails when an object was written again.


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A bucket: its settings, and what it holds now."""

    name: str
    record: BucketRecord
    project: str
    policy: str  # Of placement; empty: the default one.
    limits: Limits
    replicated_to: str  # "endpoint bucket" of another store; empty: nowhere.
    is_replica: bool
    objects: int
    size: int  # Bytes of their bodies, and of parts of uploads under way.
    uploads: int  # Under way: no objects yet, and not handed back.


class Exports:
    """What exports read of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(PIECES_AT_ONCE)

    async def buckets(self, tenant: str, *, after: str, limit: int) -> list[Holding]:
        """A tenant's buckets with names > after, in order."""
        kv = self._store.kv
        found, after = await list_buckets(self._store, tenant, prefix="", after=after, limit=limit)
        # Where some were deleted meanwhile the page is filled up: a short one says that it is the last.
        while after and len(found) < limit:
            left = limit - len(found)
            some, after = await list_buckets(self._store, tenant, prefix="", after=after, limit=left)
            found += some
        counts = await kv.get_many(
            [
                key(record.id)
                for _, record in found
                for key in (bucket_objects_key, bucket_bytes_key, bucket_uploads_key)
            ]
        )
        return [
            _holding(name, record, counts[3 * at : 3 * at + 3]) for at, (name, record) in enumerate(found)
        ]

    async def objects(
        self, tenant: str, bucket: str, *, after: bytes, limit: int
    ) -> list[tuple[str, ObjectRecord]]:
        """Keys > after in the order of their bytes, with their records. Raises: NoSuchBucket, Denied."""
        record = await find_bucket(self._store, _reader(tenant), bucket)
        base = object_key(record.id, b"")
        start = base + after + b"\0" if after else base
        pairs = await self._store.kv.scan(start, prefix_end(base), limit)
        return [(key[len(base) :].decode(), decode(value, ObjectRecord)) for key, value in pairs]

    async def find(self, tenant: str, bucket: str, key: str) -> ObjectRecord:
        """The record that a key has now. Raises: NoSuchBucket, Denied, NoSuchKey."""
        return (await find_object(self._store, _reader(tenant), bucket, key)).record

    async def parts(
        self, tenant: str, bucket: str, key: str, order: int, *, page: int
    ) -> tuple[list[PartEntry], int | None]:
        """Parts of a completed multipart object, and the page to go on with; None: there are no more.

        Raises: NoSuchBucket, Denied, NoSuchKey, ConditionFailed (it was written again).
        """
        record = (await self._found(tenant, bucket, key, order)).record
        multipart = record.extra.multipart if record.extra is not None else None
        if multipart is None:
            return [], None
        keys = [parts_page_key(multipart.upload, number) for number in range(page, page + PART_PAGES_AT_ONCE)]
        values = await self._store.kv.get_many(keys)
        entries = [entry for value in values if value for entry in decode(value, PartsPage).parts]
        more = values[-1] is not None
        return entries, page + PART_PAGES_AT_ONCE if more else None

    async def piece(self, tenant: str, bucket: str, key: str, order: int, *, first: int) -> bytes:
        """Bytes of a body from offset `first`, at most PIECE_SIZE_MAX; none at its end.

        Raises: NoSuchBucket, Denied, NoSuchKey, ConditionFailed (it was written again), Corrupt, Unavailable.
        """
        async with self._turns:
            found = await self._found(tenant, bucket, key, order)
            length = min(PIECE_SIZE_MAX, found.record.size - first)
            if length <= 0:
                return b""
            piece = msgspec.structs.replace(found, first=first, length=length)
            return b"".join([b"".join(buffers) async for buffers in read(self._store, piece)])

    async def _found(self, tenant: str, bucket: str, key: str, order: int) -> Found:
        found = await find_object(self._store, _reader(tenant), bucket, key)
        if found.record.order != order:
            raise ConditionFailed(CHANGED)
        return found


def _reader(tenant: str) -> Principal:
    return Principal(tenant=tenant, user="", access_key_id="")


def _holding(name: str, record: BucketRecord, counts: Sequence[bytes | None]) -> Holding:
    target, replica = replication_of(record), replica_of(record)
    objects, size, uploads = map(counter, counts)
    return Holding(
        name=name,
        record=record,
        project=project_of(record),
        policy=policy_of_bucket(record),
        limits=limits_of(record),
        replicated_to=f"{target.endpoint} {target.bucket}" if target is not None else "",
        is_replica=replica is not None and not replica.promoted_us,
        objects=objects,
        size=size,
        uploads=uploads,
    )
