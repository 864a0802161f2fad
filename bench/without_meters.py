"""The store with meters and quotas that count nothing: what `bench/metering.py` holds the store against.

    python -m bench.without_meters serve --data DIRECTORY ...

A build for measuring only: in this process and the workers that it forks, what counts towards bills and
limits is replaced by nothing, and a tenant's account is never read. Only a bucket's number of objects is
kept, which was counted before there were meters.
"""

import sys
from collections.abc import Callable
from typing import Any

from objstore.meta.kv import Add
from objstore.meta.schema import BucketRecord, ObjectRecord, bucket_objects_key
from objstore.objects import commits, doomed, multipart
from objstore.rental.terms import Account
from objstore.s3.traffic import Traffic

_ACCOUNTS: dict[str, Account] = {}


async def _account(store: object, tenant: str) -> Account:
    return _ACCOUNTS.setdefault(tenant, Account(tenant, None))


def _charge(
    add: dict[bytes, Add],
    account: Account,
    bucket: BucketRecord,
    raw_key: bytes,
    old: ObjectRecord | None,
    new: ObjectRecord | None,
    *_: object,
    **__: object,
) -> None:
    objects = (new is not None) - (old is not None)
    if objects:
        add[bucket_objects_key(bucket.id)] = Add(objects)


def _nothing(*_: object, **__: object) -> None:
    pass


def take_meters_away() -> None:
    """In this process, and those that it forks from now on."""
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (commits, "open_account", _account),
        (commits, "charge", _charge),
        (multipart, "use", _nothing),
        (multipart, "count", _nothing),
        (doomed, "use", _nothing),
        (doomed, "count", _nothing),
        (Traffic, "note", _nothing),
    ]
    for place, name, other in replaced:
        getattr(place, name)  # It is still called so, or nothing would be measured.
        setattr(place, name, other)


if __name__ == "__main__":
    take_meters_away()
    from objstore.cli.main import run

    sys.argv[0] = "objstore"
    run()
