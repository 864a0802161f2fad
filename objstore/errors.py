"""Every way an operation can fail, on one page.

StoreError
├── Rejected                    the request is at fault; repeating it unchanged is useless
│   ├── NoSuchBucket, NoSuchKey, NoSuchVersion, NoSuchUpload
│   ├── BucketExists, BucketOwnedByCaller, BucketNotEmpty
│   ├── Denied                  who asks may not
│   ├── ConditionFailed         a precondition of the request does not hold
│   ├── NotModified             a conditional read found nothing new
│   ├── ConditionalConflict     the object changed under a conditional write
│   ├── BadRange, BadPartNumber the request asks for bytes or a part that are not there
│   ├── BadPart, BadPartOrder, PartTooSmall, NoParts, ChecksumMismatch
│   ├── BadArgument, BadRequest, BadName, BadStorageClass, KeyTooLong, TooLarge, MetadataTooLarge
│   ├── CopyToSelf
│   ├── QuotaExceeded, AccountClosed
│   ├── NotEnoughCapacity       a lease would sell more than what is usable
│   ├── BucketReplicates        its changes go to another site: first it must stop
│   ├── BucketIsReplica         only its source may change it
│   ├── ReplicaTakenOver, ReplicaSessionOver  a source may no longer change its replica
│   └── NotImplementedYet       a feature that does not exist: 501, never a pretended success
├── Unavailable                 nobody is at fault; the same request may work later
│   ├── DiskFailed, DiskFull, DiskMissing
│   ├── StaleEpoch              the disk has been told of a newer epoch: who asks was shut out
│   ├── WriteQuorumNotMet, TooFewDisks, WeakerPromise
│   ├── MetaUnavailable         the committer is away or the outcome is unknown
│   └── Overloaded              a bound was reached: slow down
│       └── Contended           by requests that change one thing at once, and get in each other's way
├── Conflict                    an expectation of a commit does not hold: read again, decide again
├── LimitReached                a counter of a commit would exceed its `at_most`
└── Corrupt                     stored bytes are not what was written; never served

Errors name what happened in our own words. HTTP statuses and S3 codes belong to
`s3/errors.py`, which has one row for each leaf (a test counts them). A bug is not a
StoreError: it is an AssertionError, and no one catches it.

The names carry no `Error` suffix (ruff's N818 is off for this reason).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class StoreError(Exception):
    """Root. Catch it only where a request or a background step ends."""


class Rejected(StoreError): ...


class NoSuchBucket(Rejected):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"no bucket {bucket!r}")
        self.bucket = bucket


class NoSuchKey(Rejected):
    def __init__(self, key: str) -> None:
        super().__init__(f"no key {key!r}")
        self.key = key


class BadStorageClass(Rejected):
    """There is no such storage class, or the bucket's placement policy does not admit it."""

    def __init__(self, storage_class: str) -> None:
        super().__init__(f"no storage class {storage_class!r} here")
        self.storage_class = storage_class


class NoSuchVersion(Rejected):
    def __init__(self, key: str, version: str) -> None:
        super().__init__(f"no version {version!r} of {key!r}")
        self.key = key
        self.version = version


class NoSuchUpload(Rejected):
    def __init__(self, upload: str) -> None:
        super().__init__(f"no upload {upload!r}")
        self.upload = upload


class BucketExists(Rejected):
    """Another tenant owns a bucket of this name."""

    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} exists")
        self.bucket = bucket


class BucketOwnedByCaller(Rejected):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} is already the caller's")
        self.bucket = bucket


class BucketNotEmpty(Rejected):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} is not empty")
        self.bucket = bucket


class Denied(Rejected): ...


class ConditionFailed(Rejected):
    def __init__(self, condition: str) -> None:
        super().__init__(f"{condition} does not hold")
        self.condition = condition  # The header's name, e.g. "If-Match".


class NotModified(Rejected):
    def __init__(self, *, etag: str, order: int) -> None:
        super().__init__("not modified")
        self.etag = etag  # Without quotes.
        self.order = order  # Microseconds since 1970: the version's order, hence Last-Modified.


class ConditionalConflict(Rejected):
    def __init__(self, condition: str) -> None:
        super().__init__(f"the object changed while {condition} was being decided")
        self.condition = condition


class BadRange(Rejected):
    def __init__(self, *, wanted: str, size: int) -> None:
        super().__init__(f"range {wanted!r} lies outside {size} bytes")
        self.wanted = wanted
        self.size = size


class BadPartNumber(Rejected):
    def __init__(self, *, wanted: int, count: int) -> None:
        super().__init__(f"part {wanted} of {count}")
        self.wanted = wanted
        self.count = count


class BadPart(Rejected):
    def __init__(self, *, upload: str, number: int, etag: str) -> None:
        super().__init__(f"part {number} is missing or has another ETag")
        self.upload = upload
        self.number = number
        self.etag = etag


class BadPartOrder(Rejected):
    def __init__(self, upload: str) -> None:
        super().__init__("the list of parts is not in ascending order")
        self.upload = upload


class PartTooSmall(Rejected):
    def __init__(self, *, number: int, etag: str, size: int, minimum: int) -> None:
        super().__init__(f"part {number} has {size} bytes, at least {minimum} are needed")
        self.number = number
        self.etag = etag
        self.size = size
        self.minimum = minimum


class NoParts(Rejected): ...


class ChecksumMismatch(Rejected):
    """A checksum that the client named for the whole object is not the one of its parts."""

    def __init__(self, algorithm: str) -> None:
        super().__init__(f"the {algorithm} of the whole object is another one")
        self.algorithm = algorithm


class BadArgument(Rejected):
    """One argument is wrong. `name` and `value` are shown to the client."""

    def __init__(self, message: str, *, name: str = "", value: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.name = name
        self.value = value


class StateForbids(BadArgument):
    """Well said, but what is there does not allow it now: its state, its dates, another one like it."""


class BadRequest(Rejected):
    """The request as a whole makes no sense (S3: InvalidRequest)."""


class BadName(Rejected):
    """Not a bucket name."""

    def __init__(self, bucket: str) -> None:
        super().__init__(f"not a bucket name: {bucket!r}")
        self.bucket = bucket


class KeyTooLong(Rejected):
    def __init__(self, *, size: int, maximum: int) -> None:
        super().__init__(f"the key has {size} bytes, at most {maximum} are allowed")
        self.size = size
        self.maximum = maximum


class TooLarge(Rejected):
    def __init__(self, *, size: int, maximum: int) -> None:
        super().__init__(f"{size} bytes, at most {maximum} are allowed")
        self.size = size
        self.maximum = maximum


class MetadataTooLarge(Rejected):
    def __init__(self, *, size: int, maximum: int) -> None:
        super().__init__(f"{size} bytes of metadata, at most {maximum} are allowed")
        self.size = size
        self.maximum = maximum


class CopyToSelf(Rejected): ...


class QuotaExceeded(Rejected):
    """A limit of the tenant, the project, the bucket or the access key does not allow it."""

    def __init__(self, scope: str, *, unit: str = "bytes", limit: int = 0, used: int = 0) -> None:
        super().__init__(f"the {scope} may hold {limit} {unit} and holds {used}")
        self.scope = scope  # tenant | project | bucket | access key
        self.unit = unit
        self.limit = limit
        self.used = used


class AccountClosed(Rejected):
    """The tenant's account is in a state that does not allow what was asked."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the account is {state.replace('_', ' ')}")
        self.state = state


class NotEnoughCapacity(Rejected):
    """At some moment of a lease more would be sold than what is usable."""

    def __init__(self, text: str, *, missing: int, moment_us: int) -> None:
        super().__init__(text)
        self.missing = missing  # Bytes, at the worst moment,
        self.moment_us = moment_us  # which is this one.


class BucketReplicates(Rejected):
    """The bucket sends its changes to another site, and what was asked cannot be while it does."""


class BucketIsReplica(Rejected):
    """The bucket takes what its source sends, and nothing else until it is promoted."""

    def __init__(self, bucket: str, source: str) -> None:
        super().__init__(f"bucket {bucket!r} is a replica of {source}: read-only until it is promoted")
        self.bucket = bucket
        self.source = source


class ReplicaTakenOver(Rejected):
    """The bucket is no replica of who sends, or no longer: it was promoted, or has another source."""


class ReplicaSessionOver(Rejected):
    """The source has opened a later session, and what an earlier one still has on the wire is refused."""


class NotImplementedYet(Rejected):
    """The message names the feature."""


class Unavailable(StoreError): ...


class DiskFailed(Unavailable):
    """The disk answered with an error, or is suspect because an earlier sync failed or was late."""


class NodeAway(DiskFailed):
    """The disk's storage node does not answer this process. Of the disk itself that says nothing."""


class DiskFull(Unavailable):
    """No space: well again when space is freed; reads and deletes go on."""


class DiskMissing(Unavailable):
    """Nothing, or something else, lies where the disk should be."""


class StaleEpoch(Unavailable):
    """A newer epoch is in force: another gateway machine has taken over. Nothing was done."""

    def __init__(self, *, named: int, noted: int) -> None:
        super().__init__(f"epoch {named} was named, the disk has noted {noted}")
        self.named = named
        self.noted = noted


class WriteQuorumNotMet(Unavailable):
    def __init__(self, *, durable: int, quorum: int) -> None:
        super().__init__(f"{durable} of {quorum} fragments durable")
        self.durable = durable
        self.quorum = quorum


class TooFewDisks(Unavailable):
    def __init__(self, *, wanted: int, usable: int) -> None:
        super().__init__(f"{wanted} disks wanted, {usable} usable")
        self.wanted = wanted
        self.usable = usable


class WeakerPromise(Unavailable):
    """The placement policy refuses volumes with so weak a promise as its disks allow now."""


class MetaUnavailable(Unavailable):
    """The committer is away, or a commit's outcome is unknown and could not be read back."""


class Overloaded(Unavailable):
    """A bound was reached. The message names it."""


class Contended(Overloaded):
    """Too many requests change one thing at the same time: it is who sends them that has to slow down."""


class Conflict(StoreError):
    """An expectation did not hold. Nothing was changed."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"expectation failed at {key!r}")
        self.key = key


class LimitReached(StoreError):
    """A counter would have exceeded its `at_most`. Nothing was changed."""

    def __init__(self, key: bytes, *, value: int, at_most: int) -> None:
        super().__init__(f"counter {key!r} is at {value}, at most {at_most}")
        self.key = key
        self.value = value
        self.at_most = at_most


class Corrupt(StoreError): ...


@contextmanager
def translate(table: Mapping[type[Exception], type[StoreError]]) -> Iterator[None]:
    """Turn a library's exceptions into ours, at the one module that calls it.

    What the table does not name passes through unchanged: an unforeseen failure must stay
    loud, not become a vague one of ours.
    """
    try:
        yield
    except Exception as failure:
        for theirs, ours in table.items():
            if isinstance(failure, theirs):
                raise ours(str(failure)) from failure
        raise
