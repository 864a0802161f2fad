"""Every key and record of the metadata, on one page. docs/formats.md draws them byte by byte.

A key is one ASCII letter, then fixed-width big-endian ids, then the client's own bytes. A record
is a MessagePack array whose first element is its format number; fields are only ever added at
the end, with a default, so that every later release reads every earlier record.

    b <bucket name>                         BucketRecord
    i <tenant> 00 <bucket name>             empty; the buckets of a tenant, in order of name
    c <bucket id 8> o|s|b|u|n|z             counters: objects, bytes, billed bytes, uploads under way; of a
                                            replicated bucket also the changes in r, and their bytes
    o <bucket id 8> <key>                   ObjectRecord: the current version, never a delete marker,
                                            so a listing costs O(page) whatever lies beside it
    B <bucket id 8> <key>                   the body of the object at o ..., until it is packed into a stripe:
                                            only of a record without extents whose size is not zero
    v <bucket id 8> <key, escaped> 00 01 <~order 8>
                                            noncurrent versions and delete markers, newest first
                                            (reserved for the versioning API; none is written yet)
    x <blob id 16> <page 2>                 ExtentPage: extents that do not fit an object's or part's record
    m <bucket id 8> <key, escaped> 00 01 <upload id 16>
                                            UploadRecord
    p <upload id 16> <part number 2>        PartRecord; stays the home of its bytes after Complete
    q <upload id 16> <page 2>               PartsPage: the part list of a completed multipart object
    g <upload id 16> n|s                    counters of an upload under way: part commits (generation), bytes
    d <blob or upload id 16>                DoomedRecord: its x, p and q keys wait to be swept
    r <bucket id 8> <microseconds 8> <key>  ChangeRecord: its bucket's target lacks a change of this key
    V <volume 8>                            blobs.volumes.VolumeRecord (opaque here)
    L <volume 8>                            counter: length in bytes of each fragment file, as committed
    G <volume 8>                            counter: live bytes (extent lengths that a home points at)
    R <volume 8> <fragment index 1>         repair intent: this fragment file lacks acknowledged stripes
    D <disk number 2>                       DiskRecord
    n <member id 16>                        MemberRecord: a storage node or a gateway
    j <token id 16>                         JoinRecord: a join token that was used
    N <name>                                serial numbers: volumes, buckets
    C <name>                                claims
    S <name>                                settings of the cluster
    a <tenant>                              AccountRecord: what its requests are held to; absent: no limits
    Q t <tenant> 00 o|s|b|u                 counters: a tenant's objects, billed bytes (reservations among
                                            them), buckets
    Q p <tenant> 00 <project> 00 o|s        the same of a project
    Q k <access key id> 00 o|s              what an access key has stored while it had limits
    E <reservation id 16>                   ReservationRecord: bytes that an upload under way may still store
    M <hour 4> <bucket id 8> <class> 00 <meter 1>
                                            counters of an hour that is not sealed yet (rental/meters.py)
    y, h, H                                 sealed hours of meters (rental/records.py)
    f, F                                    what service levels are measured by, open and sealed
                                            (rental/availability.py)
    z <process id 16>                       DemandRecord: what is asked of a process (rental/rates.py)
    w <bucket id 8>                         TitleRecord: whose a bucket is or was; it outlives the bucket
    t <tenant>                              TenantRecord
    u <user>                                UserRecord
    k <access key id>                       AccessKeyRecord
    K <token id>                            TokenRecord: the admin API's bearer tokens of users
    I <SHA-256 32>                          RepeatRecord: a request of the admin API with an Idempotency-Key
    T <sequence 8>                          audit.records.AuditRecord: an administrative act; hash-chained
    l <access key or token id>              LastUseRecord

One home: bytes are live if the record whose key their stripe's directory names (o... or p...)
holds their address, itself or in its x pages, and for no other reason.

Records are immutable trees: the garbage collector need not walk them (gc=False), of which a listing makes
thousands.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from objstore.extents import Extent

FORMAT: Final = 1
INLINE_EXTENTS_MAX: Final = 40  # About 20 bytes each: the record stays under 1 KB.
PAGE_EXTENTS_MAX: Final = 90  # About 20 bytes each: a page stays under 2 KB.
PAGE_PARTS_MAX: Final = 40  # PartEntry of up to about 48 bytes: a page stays under 2 KB.

_encoder = msgspec.msgpack.Encoder()


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    format: int = FORMAT


class BucketRecord(Record, frozen=True, array_like=True, kw_only=True):
    id: int
    tenant: str
    owner: str  # The user who created it.
    created_us: int
    region: str = ""
    settings: dict[str, bytes] | None = None  # Later features, by name; unknown names are kept.


class ReplicationRecord(Record, frozen=True, array_like=True, kw_only=True):
    """In a bucket's settings as "replication": where its changes go."""

    endpoint: str  # http(s)://host:port of the other store.
    bucket: str
    access_key: str
    secret: bytes  # As in AccessKeyRecord; AAD is "replication " and the bucket's id.
    region: str = ""
    site: str = ""  # Where the target's bytes lie, as the operator declares it.
    generation: int = 0  # Of the replica, as its store gave it to this source.
    since_us: int = 0
    sealed_under: str = ""  # As in AccessKeyRecord.


class ReplicaRecord(Record, frozen=True, array_like=True, kw_only=True):
    """In a bucket's settings as "replica": what may change it.

    It stays when the bucket is promoted, so that its source is refused from then on.
    """

    cluster: str  # Of the source, in hex;
    source: int  # the id of the source's bucket there,
    bucket: str  # and its name.
    access_key: str  # Whose requests count as the source's.
    generation: int  # Grows when the replica is promoted and when it gets a source.
    session: int = 0  # Grows when the source opens a session: what an earlier one sent is refused.
    promoted_us: int = 0  # 0: it is a replica.
    since_us: int = 0


class ReplicationProgress(Record, frozen=True, array_like=True, kw_only=True):
    """At S replication/<bucket name>: how far the pass over what a bucket held before has come."""

    bucket: int  # Its id.
    cursor: bytes = b""  # The last key that was compared.
    began_us: int = 0
    finished_us: int = 0  # 0: the pass is under way.


class ChangeRecord(Record, frozen=True, array_like=True, kw_only=True):
    size: int = 0  # Bytes of the version; 0: deleted, or empty.


class Multipart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a completed multipart object has instead of extents."""

    upload: bytes  # 16 bytes: its parts are p <upload> <number>, its part list q <upload> <page>.
    count: int  # Parts.
    manifest: Extent | None = None  # The small stripe with the part list, for salvage.


class Extra(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The rare fields of an object: a map, so that an absent one costs nothing.

    The one-letter names are the format; never reuse one.
    """

    content_type: str = msgspec.field(default="", name="t")
    headers: dict[str, str] = msgspec.field(default_factory=dict, name="h")
    """System headers as given: cache-control, content-disposition, content-encoding,
    content-language, expires, x-amz-website-redirect-location, x-amz-storage-class."""
    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="m")
    """x-amz-meta-*, names in lower case without the prefix."""
    multipart: Multipart | None = msgspec.field(default=None, name="p")
    blob: bytes = msgspec.field(default=b"", name="x")  # 16 bytes: the rest of the extents are in x pages.
    pages: int = msgspec.field(default=0, name="n")  # Count of x pages.
    salvaged: bool = msgspec.field(default=False, name="s")  # Rebuilt from fragments: may be doubtful.
    padding: int = msgspec.field(default=0, name="b")  # Bytes billed beyond its own, as its class demanded.
    access_key: str = msgspec.field(default="", name="k")  # The key with limits that it counts for.
    counted: int = msgspec.field(default=0, name="c")  # By its own commit: begun_us of its bucket's adoption.
    came_us: int = msgspec.field(default=0, name="a")  # When it began to count here, if not at its order.


class ObjectRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One version. Positional and small: a simple object is one key and at most about 100 bytes."""

    format: int
    order: int  # Microseconds since 1970 by the writer's clock, never below its predecessor's: Last-Modified.
    version: bytes  # b"" is the null version; otherwise 16 bytes.
    size: int  # Bytes.
    etag: bytes  # Raw MD5 (16); of a multipart object MD5 of MD5s, then the part count in 2 bytes (18).
    checksum: bytes  # Checksum.pack(); b"" if none.
    extents: list[Extent]  # All, or the first ones if extra.pages.
    extra: Extra | None = None
    owner: str = ""  # Only if it is not the bucket's owner.


class ListedRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The head of an ObjectRecord: what a listing shows, decoded in a third of the time of the whole."""

    format: int
    order: int
    version: bytes
    size: int
    etag: bytes
    checksum: bytes


class ExtentPage(Record, frozen=True, array_like=True, kw_only=True):
    extents: list[Extent]
    begin: int = 0  # Bytes of the object or part before this page: what a binary search compares.


class UploadRecord(Record, frozen=True, array_like=True, kw_only=True):
    order: int  # Microseconds: Initiated.
    generation: int = 0  # Unused: part commits add one to the counter g <upload> n, which Complete and
    # Abort expect unchanged, so that parts sent side by side do not conflict.
    extra: Extra | None = None
    checksum_algorithm: str = ""  # "CRC32", ... as S3 spells it; "" if the client named none.
    checksum_type: str = ""  # FULL_OBJECT or COMPOSITE.
    owner: str = ""
    seen: int = 0  # xxh3-64 of what tells apart the object that the upload's start found; 0: there was none.
    counted: bool = False  # Among its tenant's uploads under way: not those of before these were counted.


class PartRecord(Record, frozen=True, array_like=True, kw_only=True):
    order: int
    size: int
    etag: bytes  # Raw MD5 (16).
    checksum: bytes  # Checksum.pack(), may be b"".
    extents: list[Extent]
    blob: bytes = b""
    pages: int = 0
    home: bytes = b""  # The m key of the upload: it names bucket and key, before and after Complete.


class PartEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    number: int
    size: int
    etag: bytes
    checksum: bytes = b""


class PartsPage(Record, frozen=True, array_like=True, kw_only=True):
    parts: list[PartEntry]
    begin: int = 0  # Bytes of the object before this page.


class DoomedRecord(Record, frozen=True, array_like=True, kw_only=True):
    """The p, q and x keys of this id are no longer part of any object; live bytes leave with them.

    Written by the commit that dropped them, so that this commit stays small however many parts there were.
    """

    since_us: int  # Swept after a grace: whoever began to read earlier can finish.
    unlisted: bool = False  # Only parts that are in no q page: Complete left them out.


class DiskRecord(Record, frozen=True, array_like=True, kw_only=True):
    uuid: bytes  # 16 bytes, as in the disk's identity file.
    path: str
    state: str  # healthy | suspect | read-only | failed | retired: see docs/formats.md.
    reason: str = ""  # In plain words, for people.
    since_us: int = 0
    node: bytes = b""  # Member id (16) of the storage node that has it; empty: the gateway's own machine.
    size: int = 0  # Bytes of its file system, as its node said; 0: unknown.


class MemberRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A machine of the cluster. The record stays when it is removed: its id is denied from then on."""

    role: str  # node | gateway
    name: str  # For people; unique among those that are joined.
    state: str  # joined | removed
    addresses: list[str]  # host:port of its internal listener.
    site: str = ""
    rack: str = ""
    joined_us: int = 0
    away_us: int = 0  # Since when it has not answered; 0: it answers. Its disks take no new volumes.
    issuer: str = ""  # The root that issued its newest certificate,
    ends_s: int = 0  # and when that ends, seconds since 1970.
    removed_us: int = 0


class JoinRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A join token is good once: for this key, and for nobody else."""

    member: bytes  # 16 bytes: who joined with it.
    key: bytes  # SHA-256 of the public key: the same machine may ask again after a lost answer.
    expires_s: int  # Of the token, seconds since 1970: the record may go a while after.


class AuthorityRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At S authority: what every gateway with the master key can sign with."""

    bundle: bytes  # node/authority.py's; its secrets are encrypted under the master key.


class RotationRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At S master-key: how far what older master keys sealed is sealed anew."""

    under: str  # Id of the newest master key.
    part: int = 0  # 0: access keys, 1: targets of replication, 2: the authority, 3: all is done.
    after: str = ""  # The access key or bucket after which it goes on.
    done: int = 0  # Secrets sealed anew.
    began_us: int = 0
    finished_us: int = 0


class Limits(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Quotas and rates of a tenant, a project, a bucket or an access key. None: no limit."""

    bytes_max: int | None = None  # Billed bytes.
    objects_max: int | None = None
    bytes_soft: int | None = None  # Passing it is reported, not refused.
    buckets_max: int | None = None
    requests_per_s: int | None = None
    bytes_per_s: int | None = None


class ClassTerms(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a version of a storage class is billed for at least."""

    bytes_min: int = 0
    seconds_min: int = 0


class AccountRecord(Record, frozen=True, array_like=True, kw_only=True):
    """What a tenant's requests are held to. A commit that stores expects it."""

    state: str = "active"  # rental/terms.py says what each allows.
    limits: Limits = Limits()
    projects: dict[str, Limits] = {}
    classes: dict[str, ClassTerms] = {}  # By storage class; "" is STANDARD.
    sites: list[str] = []  # Where the tenant's bytes may lie; none: anywhere.
    placement: str = ""  # The placement policy within which its buckets lie; empty: any.
    leased: int | None = None  # Billed bytes that its leases in force let it store; None: no lease bounds it.
    stream: int = 0  # Like a bucket's id: what requests that name no bucket count under; 0: none has come.


class AdoptionRecord(Record, frozen=True, array_like=True, kw_only=True):
    """In a bucket's settings as "adoption": it is from before there were meters (objects/adoption.py)."""

    begun_us: int = 0  # 0: nothing of it is metered yet.
    cursor: bytes = b""  # Versions of keys up to this one are.


class ReservationRecord(Record, frozen=True, array_like=True, kw_only=True):
    tenant: str
    project: str
    bucket: int
    size: int  # Billed bytes, counted as used by all three.
    expires_us: int
    access_key: str = ""  # The key with limits that stores them,
    key_size: int = 0  # and the bytes counted as used by it.


class TitleRecord(Record, frozen=True, array_like=True, kw_only=True):
    tenant: str
    project: str
    name: str
    created_us: int
    removed_us: int = 0  # 0: the bucket is there.


class TenantRecord(Record, frozen=True, array_like=True, kw_only=True):
    name: str
    created_us: int
    disabled: bool = False


class UserRecord(Record, frozen=True, array_like=True, kw_only=True):
    tenant: str
    name: str
    created_us: int
    disabled: bool = False
    root: bool = False
    email: str = ""
    role: str = "owner"  # iam/roles.py: what the user may do at most.


class AccessKeyRecord(Record, frozen=True, array_like=True, kw_only=True):
    user: str
    secret: bytes  # AES-256-GCM: nonce 12, ciphertext, tag 16; AAD is the access key id.
    created_us: int
    disabled: bool = False
    comment: str = ""
    project: str = ""  # It sees and makes buckets of this project only; empty: all of the tenant's.
    policy: str = ""  # JSON (iam/policy.py); empty: whatever its user may.
    expires_us: int = 0  # 0: never.
    networks: list[str] = []  # From where it may be used, as CIDR; none: from anywhere.
    limits: Limits = Limits()  # Its own quotas and rates.
    sealed_under: str = ""  # Id of the master key that opens its secret; empty: one of before rotation.


class TokenRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A bearer token of a user: what its user may, until it expires."""

    user: str
    digest_of_secret: bytes  # SHA-256: 40 random letters need no slow hash.
    created_us: int
    expires_us: int
    comment: str = ""


class RepeatRecord(Record, frozen=True, array_like=True, kw_only=True):
    """What became of a request that may be sent again. Its key: of who asks and the key that they chose."""

    digest: bytes  # SHA-256 of method, path and body: the same key with another request is refused.
    since_us: int
    state: str = "begun"  # begun | committed | answered
    attempt: bytes = b""  # Random: a repeat that takes over shuts out the one before.
    status: int = 0
    answer: bytes = b""  # JSON, without what is shown only once; empty: it does not fit a record.


class LastUseRecord(Record, frozen=True, array_like=True, kw_only=True):
    """Apart from the key's record: requests must not change what every request compares."""

    hour: int  # Hours since 1970.


class Checksum(msgspec.Struct, frozen=True, gc=False):
    """One S3 checksum of an object or part."""

    algorithm: str  # CRC32 | CRC32C | CRC64NVME | SHA1 | SHA256
    type: str  # FULL_OBJECT | COMPOSITE
    digest: bytes  # Raw.
    parts: int = 0  # Of a composite checksum: the N of base64-N.

    def pack(self) -> bytes:
        """One byte (algorithm, type in the high bit), the digest, then 2 bytes of parts if composite."""
        code = CHECKSUMS.index(self.algorithm) | (0x80 if self.type == "COMPOSITE" else 0)
        tail = self.parts.to_bytes(2, "big") if self.type == "COMPOSITE" else b""
        return bytes([code]) + self.digest + tail

    @classmethod
    def unpack(cls, packed: bytes) -> "Checksum | None":
        if not packed:
            return None
        algorithm = CHECKSUMS[packed[0] & 0x7F]
        if packed[0] & 0x80:
            return cls(algorithm, "COMPOSITE", packed[1:-2], int.from_bytes(packed[-2:], "big"))
        return cls(algorithm, "FULL_OBJECT", packed[1:])


CHECKSUMS: Final = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]  # The order is the format.

T = TypeVar("T")


def encode(record: msgspec.Struct | tuple[object, ...]) -> bytes:
    return _encoder.encode(record)


_decoders: dict[type, msgspec.msgpack.Decoder] = {}  # type: ignore[type-arg]


def decode(value: bytes, kind: type[T]) -> T:
    """Raises: msgspec.ValidationError if the value is no such record (the engine has verified its
    checksum, so this is a bug or a later format)."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder.decode(value)  # type: ignore[no-any-return]


_decode_listed = msgspec.msgpack.Decoder(list[ListedRecord]).decode


def decode_listed(values: Sequence[bytes]) -> list[ListedRecord]:
    """The heads of many ObjectRecords in one call: as one MessagePack array of them."""
    return _decode_listed(b"\xdd" + len(values).to_bytes(4, "big") + b"".join(values))


def escape(key: bytes) -> bytes:
    """Make a key self-delimiting without changing the order: 00 becomes 00 ff; 00 01 ends it."""
    return key.replace(b"\0", b"\0\xff") + b"\0\x01"


def unescape(escaped: bytes) -> tuple[bytes, bytes]:
    """Split what `escape` made from what follows it."""
    end = escaped.index(b"\0\x01")
    return escaped[:end].replace(b"\0\xff", b"\0"), escaped[end + 2 :]


def bucket_key(name: str) -> bytes:
    return b"b" + name.encode()


def tenant_bucket_key(tenant: str, name: str) -> bytes:
    return b"i" + tenant.encode() + b"\0" + name.encode()


def bucket_objects_key(bucket: int) -> bytes:
    return b"c" + bucket.to_bytes(8, "big") + b"o"


def bucket_bytes_key(bucket: int) -> bytes:
    return b"c" + bucket.to_bytes(8, "big") + b"s"


def bucket_billed_key(bucket: int) -> bytes:
    return b"c" + bucket.to_bytes(8, "big") + b"b"


def bucket_uploads_key(bucket: int) -> bytes:
    return b"c" + bucket.to_bytes(8, "big") + b"u"


def bucket_changes_key(bucket: int) -> bytes:
    return b"c" + bucket.to_bytes(8, "big") + b"n"


def bucket_change_bytes_key(bucket: int) -> bytes:
    return b"c" + bucket.to_bytes(8, "big") + b"z"


def change_key(bucket: int, order: int, key: bytes) -> bytes:
    return b"r" + bucket.to_bytes(8, "big") + order.to_bytes(8, "big") + key


def replication_key(bucket_name: str) -> bytes:
    return setting_key(f"replication/{bucket_name}")


def object_key(bucket: int, key: bytes) -> bytes:
    return b"o" + bucket.to_bytes(8, "big") + key


def body_key(home: bytes) -> bytes:
    """Where metadata carries the body of the object at this o key."""
    return b"B" + home[1:]


def extent_page_key(blob: bytes, page: int) -> bytes:
    return b"x" + blob + page.to_bytes(2, "big")


def upload_key(bucket: int, key: bytes, upload: bytes) -> bytes:
    return b"m" + bucket.to_bytes(8, "big") + escape(key) + upload


def part_key(upload: bytes, number: int) -> bytes:
    return b"p" + upload + number.to_bytes(2, "big")


def parts_page_key(upload: bytes, page: int) -> bytes:
    return b"q" + upload + page.to_bytes(2, "big")


def upload_generation_key(upload: bytes) -> bytes:
    return b"g" + upload + b"n"


def upload_bytes_key(upload: bytes) -> bytes:
    return b"g" + upload + b"s"


def doomed_key(blob: bytes) -> bytes:
    return b"d" + blob


def volume_key(volume: int) -> bytes:
    return b"V" + volume.to_bytes(8, "big")


def volume_length_key(volume: int) -> bytes:
    return b"L" + volume.to_bytes(8, "big")


def volume_live_key(volume: int) -> bytes:
    return b"G" + volume.to_bytes(8, "big")


def repair_key(volume: int, index: int) -> bytes:
    return b"R" + volume.to_bytes(8, "big") + bytes([index])


def disk_key(number: int) -> bytes:
    return b"D" + number.to_bytes(2, "big")


def member_key(member: bytes) -> bytes:
    return b"n" + member


def join_key(token: bytes) -> bytes:
    return b"j" + token


def serial_key(name: str) -> bytes:
    return b"N" + name.encode()


def claim_key(name: str) -> bytes:
    return b"C" + name.encode()


def setting_key(name: str) -> bytes:
    return b"S" + name.encode()


def account_key(tenant: str) -> bytes:
    return b"a" + tenant.encode()


def tenant_use_key(tenant: str) -> bytes:
    """Of four counters: + b"o" objects, + b"s" billed bytes, + b"b" buckets, + b"u" uploads under way."""
    return b"Qt" + tenant.encode() + b"\0"


def project_use_key(tenant: str, project: str) -> bytes:
    """Of two counters: + b"o" objects, + b"s" billed bytes."""
    return b"Qp" + tenant.encode() + b"\0" + project.encode() + b"\0"


def key_use_key(access_key: str) -> bytes:
    """Of two counters: + b"o" objects, + b"s" billed bytes."""
    return b"Qk" + access_key.encode() + b"\0"


def reservation_key(one: bytes) -> bytes:
    return b"E" + one


def title_key(bucket: int) -> bytes:
    return b"w" + bucket.to_bytes(8, "big")


def tenant_key(tenant: str) -> bytes:
    return b"t" + tenant.encode()


def user_key(user: str) -> bytes:
    return b"u" + user.encode()


def project_key(tenant: str, project: str) -> bytes:
    """Of a rental/records.py ProjectRecord: there is such a project."""
    return b"Yj" + tenant.encode() + b"\0" + project.encode()


def access_key_key(access_key_id: str) -> bytes:
    return b"k" + access_key_id.encode()


def last_use_key(access_key_id: str) -> bytes:
    return b"l" + access_key_id.encode()


def token_key(token: str) -> bytes:
    return b"K" + token.encode()


def repeat_key(digest: bytes) -> bytes:
    return b"I" + digest
