"""What a commit adds to the meters: sums of which stored byte-seconds are exact, without a read.

Of an hour that begins at second S, a bucket and a storage class, with deltas of billed bytes d at seconds t:

    DELTA   sum(d)                      bytes that came less those that went
    MOMENT  sum(d x (t - S))            so that over the hour's 3,600 seconds the stored byte-seconds are
                                        before x 3,600 + DELTA x 3,600 - MOMENT

`before` is what the bucket held when the hour began: the DELTAs of all hours before. All are plain integers
that commits add to, in any order, from any number of gateways.
"""

from functools import lru_cache
from typing import Final

from objstore.meta.kv import Add

HOUR_S: Final = 3_600
DELTA: Final = b"d"
MOMENT: Final = b"m"
REQUESTS_A: Final = b"a"  # PUT, POST, COPY, LIST, and what changes uploads.
REQUESTS_B: Final = b"b"  # GET, HEAD and others.
SENT_INTERNET: Final = b"o"  # Bytes of bodies handed to the socket.
SENT_INTERNAL: Final = b"i"
SENT_REPLICATION: Final = b"r"
EARLY: Final = b"e"  # Byte-seconds of versions that went before their class's least age.
STORED: Final = b"s"  # Only of sealed hours: the byte-seconds that DELTA and MOMENT came to.
METERS: Final = (DELTA, MOMENT, REQUESTS_A, REQUESTS_B, SENT_INTERNET, SENT_INTERNAL, SENT_REPLICATION, EARLY)


_ONE: Final = Add(1)


def hour_key(hour: int) -> bytes:
    """The prefix of an hour's counters. hour: seconds since 1970 // 3,600."""
    return b"M" + hour.to_bytes(4, "big")


def meter_prefix(hour: int, bucket: int, storage_class: str) -> bytes:
    return hour_key(hour) + bucket.to_bytes(8, "big") + storage_class.encode() + b"\0"


def split_meter(key: bytes) -> tuple[int, int, str, bytes]:
    """Hour, bucket, storage class and meter of a counter's key."""
    return (
        int.from_bytes(key[1:5], "big"),
        int.from_bytes(key[5:13], "big"),
        key[13:-2].decode(),
        key[-1:],
    )


def count(
    add: dict[bytes, Add],
    bucket: int,
    storage_class: str,
    at_s: int,
    *,
    stored: int = 0,
    early: int = 0,
    requests: int = 0,
) -> None:
    """Count a change in its own commit.

    Args:
        at_s: the change's second since 1970.
        stored: billed bytes that come, or go if negative.
        early: byte-seconds that are billed because the version went too early.
        requests: of class A.
    """
    hour, second = divmod(at_s, HOUR_S)
    delta_key, moment_key, early_key, requests_key = _counter_keys(hour, bucket, storage_class)
    if stored:
        _more(add, delta_key, stored)
        if second:
            _more(add, moment_key, stored * second)
    if early:
        _more(add, early_key, early)
    if requests:
        _more(add, requests_key, requests)


@lru_cache(maxsize=8_192)
def _counter_keys(hour: int, bucket: int, storage_class: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Made once an hour: every commit needs them."""
    prefix = meter_prefix(hour, bucket, storage_class)
    return prefix + DELTA, prefix + MOMENT, prefix + EARLY, prefix + REQUESTS_A


def _more(add: dict[bytes, Add], key: bytes, delta: int) -> None:
    """Two changes of one commit may meet in a counter."""
    if key in add:
        delta += add[key].delta
    add[key] = _ONE if delta == 1 else Add(delta)


def byte_seconds(before: int, delta: int, moment: int) -> int:
    """What was stored in a whole hour, exactly."""
    return (before + delta) * HOUR_S - moment
