"""Conditional reads, copies, writes and deletes: pure decisions on what was read.

Where AWS, its documentation and ceph/s3-tests differ, the project's table of disagreements decides:
writes take If-None-Match with an ETag and If-Match: *, a superset that other stores have too.
"""

from typing import Final

from objstore.clock import SECOND_US
from objstore.errors import (
    ConditionalConflict,
    ConditionFailed,
    NoSuchKey,
    NotImplementedYet,
    NotModified,
)
from objstore.meta.schema import ObjectRecord
from objstore.objects.values import ByteRange, Conditions, etag_text

COPY_SOURCE: Final = "x-amz-copy-source-"


def etag_in(header: str, etag: str) -> bool:
    """Whether an If-Match or If-None-Match value names this ETag: `*`, or a list, quoted or not."""
    if header == "*" or header == etag:
        return True
    for one in header.split(","):
        text = one.strip()
        if text.startswith("W/"):
            text = text[2:]
        if text == "*" or text.strip('"') == etag:
            return True
    return False


def check_read(conditions: Conditions, record: ObjectRecord, *, now_us: int, prefix: str = "") -> None:
    """If-Match overrides If-Unmodified-Since, If-None-Match overrides If-Modified-Since; a future
    If-Modified-Since is ignored. With a prefix (copy sources) all four fail as ConditionFailed.

    Raises: ConditionFailed, NotModified.
    """
    etag = etag_text(record.etag)
    modified_s = record.order // SECOND_US
    if conditions.if_match is not None:
        if not etag_in(conditions.if_match, etag):
            raise ConditionFailed(prefix + "If-Match")
    elif conditions.if_unmodified_since is not None and modified_s > conditions.if_unmodified_since:
        raise ConditionFailed(prefix + "If-Unmodified-Since")
    if conditions.if_none_match is not None:
        if etag_in(conditions.if_none_match, etag):
            if prefix:
                raise ConditionFailed(prefix + "If-None-Match")
            raise NotModified(etag=etag, order=record.order)
    elif (
        conditions.if_modified_since is not None
        and modified_s <= conditions.if_modified_since <= now_us // SECOND_US
    ):
        if prefix:
            raise ConditionFailed(prefix + "If-Modified-Since")
        raise NotModified(etag=etag, order=record.order)


def is_range_of(wanted: ByteRange, record: ObjectRecord) -> bool:
    """Whether If-Range, if it was sent, names this object; if not, the range is ignored (RFC 9110, 13.1.5).

    A weak ETag names none: the bytes may be others. A date must be Last-Modified itself.
    """
    named = wanted.if_range
    if named is None:
        return True
    if isinstance(named, int):
        return named == record.order // SECOND_US
    return named.strip('"') == etag_text(record.etag)


def check_write(
    conditions: Conditions, old: ObjectRecord | None, key: str, *, vanished: bool = False
) -> None:
    """PUT, Copy's destination and Complete.

    Args:
        vanished: an object was there since the request began (or the upload was initiated), and is not now.

    Raises: NotImplementedYet (both headers), NoSuchKey, ConditionFailed, ConditionalConflict.
    """
    if conditions.if_match is not None:
        if conditions.if_none_match is not None:
            raise NotImplementedYet("If-Match together with If-None-Match")
        if old is None:
            raise NoSuchKey(key)
        if not etag_in(conditions.if_match, etag_text(old.etag)):
            raise ConditionFailed("If-Match")
    elif conditions.if_none_match is not None:
        if old is not None:
            if etag_in(conditions.if_none_match, etag_text(old.etag)):
                raise ConditionFailed("If-None-Match")
        elif vanished:
            raise ConditionalConflict("If-None-Match")


def check_complete(
    conditions: Conditions, old: ObjectRecord | None, key: str, *, seen: int, present: int
) -> None:
    """CompleteMultipartUpload: an object that was put since the upload began conflicts with If-Match even
    if its content is identical; one that was deleted since conflicts with If-None-Match.

    Args:
        seen: the hash of the object's record when the upload began, 0 if there was none; present: now.
    """
    if (
        conditions.if_match is not None
        and conditions.if_none_match is None
        and old is not None
        and seen != present
    ):
        raise ConditionalConflict("If-Match")
    check_write(conditions, old, key, vanished=old is None and seen != 0)


def check_delete(conditions: Conditions, old: ObjectRecord) -> None:
    """Raises: ConditionFailed."""
    if conditions.if_match is not None and not etag_in(conditions.if_match, etag_text(old.etag)):
        raise ConditionFailed("If-Match")
    if conditions.if_match_size is not None and conditions.if_match_size != old.size:
        raise ConditionFailed("x-amz-if-match-size")
    if (
        conditions.if_match_last_modified is not None
        and conditions.if_match_last_modified != old.order // SECOND_US
    ):
        raise ConditionFailed("x-amz-if-match-last-modified-time")
