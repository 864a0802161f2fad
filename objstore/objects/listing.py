"""ListObjects, ListObjectVersions: a page costs O(page), whatever the bucket's size.

A common prefix is skipped by seeking to the first key behind it. How many pairs a scan asks for adapts:
few where prefixes make it jump, many where keys follow each other.
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from objstore.meta.heads import NO_HEADS, Heads, decode_heads
from objstore.meta.kv import prefix_end
from objstore.meta.schema import BucketRecord, ObjectRecord, decode, object_key
from objstore.objects.buckets import find_bucket
from objstore.objects.placing import STORAGE_CLASS, storage_class_of
from objstore.objects.store import Store
from objstore.objects.values import Principal

SCAN_FEW: Final = 4  # Pairs of the first scan after a jump.
SCAN_MANY: Final = 1_001
_NAMES_A_CLASS: Final = STORAGE_CLASS.encode()  # As a record has it.

Pair = tuple[bytes, bytes]
Scan = Callable[[bytes, bytes, int], Awaitable[list[Pair]]]  # start, end, limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    bucket: BucketRecord
    names: list[str]  # The keys, in order.
    heads: Heads  # One for each name.
    classes: Mapping[int, str]  # Storage classes that are not STANDARD, by index in them.
    prefixes: list[str]  # Common prefixes, in order.
    truncated: bool
    next: str  # The last key or common prefix returned; "" if not truncated.


async def list_objects(
    store: Store, who: Principal, bucket: str, *, prefix: str, delimiter: str, after: str, limit: int
) -> Page:
    """Keys > after in byte order. A common prefix counts to the limit as a key does, is skipped by seeking,
    and never comes back when it is <= after (after may itself be a common prefix).

    Raises: NoSuchBucket, Denied.
    """
    assert limit >= 0
    record = await find_bucket(store, who, bucket)
    if limit == 0:
        return empty_page(record)
    base = object_key(record.id, b"")
    start = base + prefix.encode()
    end = prefix_end(start)
    after_raw = after.encode()
    if after_raw:
        start = max(start, base + after_raw + b"\0")
    separator = delimiter.encode()
    if not separator:
        pairs = await store.kv.scan(start, end, limit + 1) if start < end else []
        truncated = len(pairs) > limit
        del pairs[limit:]
        names = _names(pairs, len(base))
        heads, classes = _heads(pairs)
        return Page(
            bucket=record,
            names=names,
            heads=heads,
            classes=classes,
            prefixes=[],
            truncated=truncated,
            next=names[-1] if truncated else "",
        )

    depth = len(base) + len(prefix.encode())  # Where a delimiter may begin.
    marker = base + after_raw
    if start > marker and marker.startswith(base + prefix.encode()):
        cut = marker.find(separator, depth)
        if cut >= 0:  # The marker lies in, or is, a common prefix: all of that is behind us.
            start = prefix_end(marker[: cut + len(separator)])
    found = await roll_up(store.kv.scan, start, end, depth, separator, limit + 1)
    truncated = len(found) > limit
    del found[limit:]
    at = len(base)
    pairs = [(key, value) for key, value in found if value is not None]
    heads, classes = _heads(pairs)
    return Page(
        bucket=record,
        names=_names(pairs, at),
        heads=heads,
        classes=classes,
        prefixes=[key[at:].decode() for key, value in found if value is None],
        truncated=truncated,
        next=found[-1][0][at:].decode() if truncated else "",
    )


def empty_page(bucket: BucketRecord) -> Page:
    return Page(bucket=bucket, names=[], heads=NO_HEADS, classes={}, prefixes=[], truncated=False, next="")


def _names(pairs: list[Pair], at: int) -> list[str]:
    name = slice(at, None)
    return [key[name].decode() for key, _ in pairs]


def _heads(pairs: list[Pair]) -> tuple[Heads, dict[int, str]]:
    """The heads of the records, and the storage classes that are not STANDARD."""
    values = [value for _, value in pairs]
    # One search over all of them: the records of few buckets name a class, and decoding them whole is dear.
    return decode_heads(values), _classes(values) if _NAMES_A_CLASS in b"".join(values) else {}


def _classes(values: list[bytes]) -> dict[int, str]:
    found = {
        index: storage_class_of(decode(value, ObjectRecord).extra)
        for index, value in enumerate(values)
        if _NAMES_A_CLASS in value
    }
    return {index: name for index, name in found.items() if name}  # A client's own words may name it, too.


async def roll_up(
    scan: Scan, start: bytes, end: bytes, depth: int, separator: bytes, limit: int, *, tail: int = 0
) -> list[tuple[bytes, bytes | None]]:
    """At most `limit` entries of [start, end): pairs, or common prefixes (their value is None).

    Args:
        depth: index in the keys from which on the separator is looked for.
        tail: bytes at the end of every key that do not belong to the name.
    """
    found: list[tuple[bytes, bytes | None]] = []
    few = SCAN_FEW
    while len(found) < limit and start < end:
        wanted = min(few, limit - len(found))
        pairs = await scan(start, end, wanted)
        jumped = False
        index = 0
        while index < len(pairs):
            key, value = pairs[index]
            cut = key.find(separator, depth, len(key) - tail)
            if cut < 0:
                found.append((key, value))
                index += 1
                continue
            prefix = key[: cut + len(separator)]
            found.append((prefix, None))
            behind = prefix_end(prefix)
            index = bisect_left(pairs, (behind,), index + 1)
            if index == len(pairs):
                start, jumped = behind, True
        if len(pairs) < wanted:
            break  # That was the end of the range.
        if jumped:
            few = max(SCAN_FEW, few // 2)
        else:
            start = pairs[-1][0] + b"\0"
            few = min(few * 4, SCAN_MANY)
    return found
