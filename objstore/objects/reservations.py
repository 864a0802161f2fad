"""Room for a body before it is received: what is refused is refused early, and what is begun can end.

Where a tenant, a project, a bucket or a key has a limit, a small body is held against it by a look (its
commit decides), a large one by a commit that counts the growth as used and leaves a record of it. The commit
of the object expects that record, takes it away and counts the difference. What the dead have reserved is
given back by `release_expired`; an upload that outlived its reservation is decided by its commit alone.

Nobody without such limits pays for any of this.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from objstore.errors import Conflict, LimitReached, QuotaExceeded
from objstore.ids import random_id
from objstore.meta.kv import Add, Transaction, counter, pages, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    Limits,
    ReservationRecord,
    TitleRecord,
    bucket_billed_key,
    bucket_objects_key,
    decode,
    encode,
    project_use_key,
    reservation_key,
    title_key,
)
from objstore.objects.accounting import is_metered, limits_of, open_account, project_of
from objstore.rental.terms import QUOTA, UNLIMITED, Account, KeyAccount, add_key_use, add_use, quota_of

if TYPE_CHECKING:
    from objstore.objects.store import Store

Scope = tuple[str, Limits, bytes, bytes]  # Its kind, its limits, its counters of bytes and of objects.
HELD_US: Final = 6 * 3_600 * 1_000_000  # After this an upload's reservation may be given back.
EXPIRED_AT_ONCE: Final = 1_000


class Hold:
    """A reservation that was made: bytes counted as used until the object's commit, or until it is let go."""

    __slots__ = ("key", "record", "settled", "value")

    def __init__(self, key: bytes, record: ReservationRecord) -> None:
        self.key = key
        self.record = record
        self.value = encode(record)
        self.settled = False  # Its record is gone: published, let go or given back.

    def settle(self, expect: dict[bytes, bytes | None], delete: list[bytes]) -> tuple[int, int]:
        """Have a commit expect the reservation and take it away, if it is there still.

        Returns: the billed bytes that the commit settles, and those of them that count for an access key.
        """
        if self.settled:
            return 0, 0
        expect[self.key] = self.value
        delete.append(self.key)
        return self.record.size, self.record.key_size


def is_limited(account: Account, bucket: BucketRecord, key: KeyAccount | None) -> bool:
    """Whether any limit of what may be stored holds in this bucket, for this key."""
    limited = account.limited or key is not None
    if bucket.settings is None:
        return limited
    return (limited or QUOTA in bucket.settings) and is_metered(bucket)


async def reserve(
    store: "Store",
    account: Account,
    bucket: BucketRecord,
    growth: int,
    *,
    objects: int,
    large: bool,
    key: KeyAccount | None = None,
    key_growth: int = 0,
    key_objects: int = 0,
) -> Hold | None:
    """Make sure of room for so many more billed bytes; a Hold if they were reserved.

    Args:
        growth: billed bytes that come, less those that go with what is replaced.
        objects: more objects than before.
        large: the body takes long enough to be worth a reservation.
        key: the access key with limits that they count for,
        key_growth: with so many bytes,
        key_objects: and objects, less those of its own that go.

    Raises: QuotaExceeded, MetaUnavailable.
    """
    await _check_room(store, account, bucket, growth, objects)
    if key is not None:
        scopes = [("access key", key.limits, key.use_key + b"s", key.use_key + b"o")]
        await _check_scopes(store, scopes, key_growth, key_objects)
    if not large or growth <= 0:
        return None
    key_growth = max(0, key_growth)
    project, limits = project_of(bucket), limits_of(bucket)
    record = ReservationRecord(
        tenant=account.tenant,
        project=project,
        bucket=bucket.id,
        size=growth,
        expires_us=store.clock.now_us() + HELD_US,
        access_key="" if key is None else key.access_key,
        key_size=0 if key is None else key_growth,
    )
    hold = Hold(reservation_key(random_id(store.randomness)), record)
    add: dict[bytes, Add] = {}
    add_use(add, account, bucket.id, project, limits, size=growth, objects=0)
    if key is not None:
        add_key_use(add, key.access_key, key.limits, size=key_growth)
    try:
        await store.kv.commit(Transaction({hold.key: None}, {hold.key: hold.value}, (), add))
    except LimitReached as limit:
        raise quota_of(limit) from limit
    return hold


async def _check_room(
    store: "Store", account: Account, bucket: BucketRecord, growth: int, objects: int
) -> None:
    """Refuse what a tenant's, project's or bucket's limit would refuse now. Raises: QuotaExceeded."""
    project = project_of(bucket)
    scopes: list[Scope] = [
        ("bucket", limits_of(bucket), bucket_billed_key(bucket.id), bucket_objects_key(bucket.id)),
        ("tenant", account.limits, account.use_key + b"s", account.use_key + b"o"),
    ]
    if project:
        key = project_use_key(account.tenant, project)
        its = account.record.projects.get(project, UNLIMITED)
        scopes.append(("project", its, key + b"s", key + b"o"))
    await _check_scopes(store, scopes, growth, objects)


async def _check_scopes(store: "Store", scopes: Sequence[Scope], growth: int, objects: int) -> None:
    """Raises: QuotaExceeded."""
    values = await store.kv.get_many([key for _, _, *keys in scopes for key in keys])
    for (scope, limits, _, _), size, count in zip(scopes, values[::2], values[1::2], strict=True):
        for unit, more, used, limit in (
            ("bytes", growth, counter(size), limits.bytes_max),
            ("objects", objects, counter(count), limits.objects_max),
        ):
            if limit is not None and more > 0 and used + more > limit:
                raise QuotaExceeded(scope, unit=unit, limit=limit, used=used)


async def let_go(store: "Store", hold: Hold) -> None:
    """Give a reservation back that no commit has settled. Raises: MetaUnavailable (it expires)."""
    if hold.settled:
        return
    await _give_back(store, hold.key, hold.value, hold.record)
    hold.settled = True


async def release_expired(store: "Store") -> int:
    """Give back what uploads that are long over have reserved; returns how many reservations went."""
    now_us = store.clock.now_us()
    count = 0
    async for pairs in pages(store.kv, b"E", prefix_end(b"E"), EXPIRED_AT_ONCE):
        for key, value in pairs:
            record = decode(value, ReservationRecord)
            if record.expires_us <= now_us:
                await _give_back(store, key, value, record)
                count += 1
    return count


async def _give_back(store: "Store", key: bytes, value: bytes, record: ReservationRecord) -> None:
    account = await open_account(store, record.tenant)
    add: dict[bytes, Add] = {}
    add_use(add, account, record.bucket, record.project, UNLIMITED, size=-record.size, objects=0)
    title = await store.kv.get(title_key(record.bucket))
    if title is None or decode(title, TitleRecord).removed_us:
        del add[bucket_billed_key(record.bucket)]  # It went with the bucket.
    if record.access_key:
        add_key_use(add, record.access_key, UNLIMITED, size=-record.key_size)
    try:
        await store.kv.commit(Transaction({key: value, title_key(record.bucket): title}, {}, (key,), add))
    except Conflict:
        pass  # Settled, or given back by another process.
