"""The multipart family.

An upload is an m record; its parts are p records of their own, each the home of its bytes before and after
Complete. A part's commit expects the upload's record and adds one to the upload's generation, a counter that
Complete and Abort expect: parts sent side by side do not conflict, and what Complete has read is what it
completes. Complete moves no bytes: it puts the object's record, with the part list in pages, in one commit.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import xxhash

from objstore.clock import SECOND_US
from objstore.errors import (
    BadArgument,
    BadPart,
    BadPartOrder,
    BadRequest,
    ChecksumMismatch,
    Conflict,
    Contended,
    LimitReached,
    NoParts,
    NoSuchKey,
    NoSuchUpload,
    Overloaded,
    PartTooSmall,
    TooLarge,
)
from objstore.extents import Extent
from objstore.ids import ordered_id
from objstore.meta.kv import Add, Transaction, counter, pages, prefix_end
from objstore.meta.schema import (
    FORMAT,
    PAGE_PARTS_MAX,
    BucketRecord,
    Checksum,
    DoomedRecord,
    Extra,
    Multipart,
    ObjectRecord,
    PartEntry,
    PartRecord,
    PartsPage,
    UploadRecord,
    bucket_bytes_key,
    bucket_uploads_key,
    decode,
    doomed_key,
    encode,
    escape,
    part_key,
    parts_page_key,
    unescape,
    upload_bytes_key,
    upload_generation_key,
    upload_key,
)
from objstore.objects import checksums, doomed
from objstore.objects.accounting import (
    is_metered,
    key_of,
    marked,
    metered_class,
    open_account,
    open_key,
    use,
)
from objstore.objects.bodies import OBJECT_SIZE_MAX, Kept, keep_body, keep_small
from objstore.objects.buckets import find_bucket
from objstore.objects.commits import (
    Change,
    Place,
    change_object,
    choose_class,
    leave_room,
    open_place,
    reopen,
    reserve_part,
)
from objstore.objects.conditions import check_complete
from objstore.objects.ledger import publish
from objstore.objects.listing import roll_up
from objstore.objects.reads import page_of_part, read_record
from objstore.objects.store import Store
from objstore.objects.values import (
    NO_CONDITIONS,
    About,
    Body,
    Conditions,
    Digests,
    Principal,
    Written,
    etag_text,
)
from objstore.objects.writes import extra_of, owner_of
from objstore.rental.meters import count
from objstore.rental.terms import UPLOADS_MAX, add_key_use, quota_of

PART_NUMBER_MAX: Final = 10_000
PART_SIZE_MIN: Final = 5 * 1024 * 1024  # Bytes, of all parts but the last.
ATTEMPTS_MAX: Final = 64
REWRITES_MAX: Final = 4
PARTS_AT_ONCE: Final = 1_000
UPLOAD_ID_SIZE: Final = 16
NAME_TAIL: Final = 2 + UPLOAD_ID_SIZE  # Bytes behind the escaped key in an m key: its end mark and the id.


def upload_bytes(upload: str) -> bytes:
    """Raises: NoSuchUpload if this is no id of ours."""
    if len(upload) != 2 * UPLOAD_ID_SIZE or not all(c in "0123456789abcdef" for c in upload):
        raise NoSuchUpload(upload)
    return bytes.fromhex(upload)


def check_part_number(number: int) -> None:
    """Raises: BadArgument."""
    if not 1 <= number <= PART_NUMBER_MAX:
        raise BadArgument(
            f"Part number must be an integer between 1 and {PART_NUMBER_MAX}, inclusive",
            name="partNumber",
            value=str(number),
        )


async def open_upload(
    store: Store, who: Principal, bucket: str, key: str, upload: str, *, stores: bool = False
) -> tuple[Place, bytes, bytes, UploadRecord]:
    """The place, and the upload's key, record as encoded, and record. Raises: NoSuchUpload, ..."""
    place = await open_place(store, who, bucket, key, stores=stores)
    name = upload_key(place.bucket.id, place.raw_key, upload_bytes(upload))
    value = await store.kv.get(name)
    if value is None:
        raise NoSuchUpload(upload)
    record = decode(value, UploadRecord)
    choose_class(store, place, record.extra)
    if stores:
        await _open_key(store, place, record)
    return place, name, value, record


async def _open_key(store: Store, place: Place, record: UploadRecord) -> None:
    """An upload counts for the access key that began it, whoever sends its parts or completes it."""
    access_key = key_of(record.extra)
    place.charged = await open_key(store, access_key) if access_key else None


async def create_upload(
    store: Store,
    who: Principal,
    bucket: str,
    key: str,
    about: About,
    *,
    checksum_algorithm: str,
    checksum_type: str,
) -> tuple[str, UploadRecord]:
    """Returns the upload id (32 hex digits) and the record. The edge has validated the combination."""
    place = await open_place(store, who, bucket, key, stores=True)
    extra = marked(extra_of(about), place.charged)
    choose_class(store, place, extra)
    for _ in range(ATTEMPTS_MAX):
        present = await store.kv.get(place.home)
        now_us = store.clock.now_us()
        upload = ordered_id(now_us, store.randomness)
        record = UploadRecord(
            order=now_us,
            extra=extra,
            checksum_algorithm=checksum_algorithm,
            checksum_type=checksum_type,
            owner=owner_of(who, place),
            seen=_seen(None if present is None else decode(present, ObjectRecord)),
            counted=True,
        )
        name = upload_key(place.bucket.id, place.raw_key, upload)
        add = {
            bucket_uploads_key(place.bucket.id): Add(1),
            place.account.uploads_key: Add(1, UPLOADS_MAX),
        }
        if is_metered(place.bucket):
            count(add, place.bucket.id, metered_class(extra), now_us // SECOND_US, requests=1)
        try:
            await store.kv.commit(
                Transaction(
                    expect={place.bucket_key: place.bucket_value, name: None},
                    put={name: encode(record)},
                    add=add,
                )
            )
        except Conflict:
            await reopen(store, who, place)
            continue
        except LimitReached as limit:
            raise quota_of(limit) from limit
        store.crash_point("upload-begun")
        return upload.hex(), record
    raise Overloaded("the bucket's record kept changing")


def _seen(record: ObjectRecord | None) -> int:
    """What tells one state of a key from every other, wherever compaction moves its bytes; 0: no object."""
    if record is None:
        return 0
    return xxhash.xxh3_64_intdigest(encode((record.order, record.version, record.size, record.etag))) | 1


async def find_upload(store: Store, who: Principal, bucket: str, key: str, upload: str) -> UploadRecord:
    """Raises: NoSuchUpload (also: right id, wrong key; another bucket's)."""
    return (await open_upload(store, who, bucket, key, upload))[3]


async def put_part(
    store: Store, who: Principal, bucket: str, key: str, upload: str, number: int, body: Body
) -> Written:
    """Sent again, a part replaces its predecessor.

    Raises: NoSuchUpload, BadArgument (number), BadRequest (another checksum algorithm than the upload's),
    TooLarge, Unavailable, and whatever the body raises.
    """
    check_part_number(number)
    place, name, value, record = await open_upload(store, who, bucket, key, upload, stores=True)
    home = part_key(name[-UPLOAD_ID_SIZE:], number)
    algorithm = record.checksum_algorithm or checksums.DEFAULT
    beside = checksums.hasher(algorithm) if checksums.is_crc(algorithm) else None
    began_us = store.clock.now_us()
    packed = b""

    def describe(digests: Digests) -> bytes:
        nonlocal packed
        packed = _part_checksum(record, digests, beside)
        return encode(
            PartRecord(
                order=began_us,
                size=digests.size,
                etag=digests.md5,
                checksum=packed,
                extents=[],
                home=name,
            )
        )

    await reserve_part(store, place, home, body.size)
    try:
        kept, digests = await keep_body(store, home, body, describe, policy=place.policy, beside=beside)
        order = await publish_part(store, who, place, name, value, record, number, kept, digests.md5, packed)
    finally:
        await leave_room(store, place)
    return Written(etag=digests.md5.hex(), order=order, checksum=digests.checksum, size=digests.size)


def _part_checksum(record: UploadRecord, digests: Digests, beside: checksums.Hasher | None) -> bytes:
    """The checksum that the upload needs of each of its parts, packed."""
    given = digests.checksum
    wanted = record.checksum_algorithm
    if wanted and given is not None and given.algorithm not in (wanted, checksums.DEFAULT):
        raise _other_algorithm(wanted, given.algorithm)
    if beside is not None:
        return Checksum(wanted or checksums.DEFAULT, "FULL_OBJECT", beside.digest()).pack()
    if given is None or given.algorithm != wanted:
        raise _other_algorithm(wanted, "null" if given is None else given.algorithm)
    return Checksum(wanted, "FULL_OBJECT", given.digest).pack()


def _other_algorithm(wanted: str, given: str) -> BadRequest:
    return BadRequest(
        f"Checksum Type mismatch occurred, expected checksum Type: {wanted.lower()}, "
        f"actual checksum Type: {given.lower()}"
    )


async def publish_part(
    store: Store,
    who: Principal,
    place: Place,
    name: bytes,
    value: bytes,
    record: UploadRecord,
    number: int,
    kept: Kept,
    etag: bytes,
    checksum: bytes,
) -> int:
    """Commit a part; returns its order. Raises: NoSuchUpload, NoSuchBucket, Overloaded, Unavailable."""
    upload = name[-UPLOAD_ID_SIZE:]
    home = part_key(upload, number)
    rewrites = 0
    for _ in range(ATTEMPTS_MAX):
        old_value = await store.kv.get(home)
        old = None if old_value is None else decode(old_value, PartRecord)
        order = store.clock.now_us() if old is None else max(store.clock.now_us(), old.order + 1)
        part = PartRecord(
            order=order,
            size=kept.size,
            etag=etag,
            checksum=checksum,
            extents=kept.inline,
            blob=kept.blob,
            pages=len(kept.pages or ()),
            home=name,
        )
        expect, put, add = publish(kept.stored, old.extents if old is not None else ())
        expect[place.bucket_key] = place.bucket_value
        expect[place.account.key] = place.account.value
        expect[name] = value
        expect[home] = old_value
        key = place.charged
        put[home] = encode(part)
        put.update(kept.pages or {})
        delta = kept.size
        if old is not None:
            delta -= old.size
            if old.blob:
                put[doomed_key(old.blob)] = encode(DoomedRecord(since_us=store.clock.now_us()))
        add[upload_generation_key(upload)] = Add(1)
        if delta:
            add[upload_bytes_key(upload)] = Add(delta)
            add[bucket_bytes_key(place.bucket.id)] = Add(delta)
        hold = place.hold
        delete: list[bytes] = []
        held, key_held = (0, 0) if hold is None else hold.settle(expect, delete)
        if key is not None:
            expect[key.key] = key.value
        if is_metered(place.bucket):
            use(add, place.account, place.bucket, size=delta - held)
            if key is not None:
                add_key_use(add, key.access_key, key.limits, size=delta - key_held)
            storage_class = metered_class(record.extra)
            count(add, place.bucket.id, storage_class, order // SECOND_US, stored=delta, requests=1)
        store.crash_point("part-decided")
        try:
            await store.kv.commit(Transaction(expect, put, delete, add))
        except Conflict as conflict:
            if hold is not None and conflict.key == hold.key:
                hold.settled = True  # It had expired: from now on the limits decide.
            elif conflict.key == place.bucket_key:
                await reopen(store, who, place)
                await kept.write_under(store, place.policy)
            elif conflict.key == place.account.key:
                place.account = await open_account(store, place.bucket.tenant)
                place.account.check_stores()
            elif key is not None and conflict.key == key.key:
                place.charged = await open_key(store, key.access_key)
            elif conflict.key == name:
                raise NoSuchUpload(upload.hex()) from conflict  # Its record only ever goes away.
            elif conflict.key[:1] == b"V":
                rewrites += 1
                if rewrites > REWRITES_MAX:
                    raise Overloaded("every volume was sealed before the commit") from conflict
                await kept.write_again(store)
            continue
        except LimitReached as limit:
            raise quota_of(limit) from limit
        store.crash_point("part-committed")
        if hold is not None:
            hold.settled = True
        return order
    raise Contended(f"{ATTEMPTS_MAX} rounds lost against other writes of one part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A part as CompleteMultipartUpload names it."""

    number: int
    etag: str  # Without quotes.
    checksum: tuple[str, bytes] | None = None  # Algorithm and raw digest.


async def complete_upload(
    store: Store,
    who: Principal,
    bucket: str,
    key: str,
    upload: str,
    parts: list[Claimed],
    *,
    conditions: Conditions = NO_CONDITIONS,
    object_size: int | None = None,
    checksum: Checksum | None = None,
    checksum_type: str = "",
) -> Written:
    """Idempotent: the same upload and parts again give the same answer, while the object is what it made.

    Args:
        object_size: what the client says the whole has (x-amz-mp-object-size).
        checksum: what the client says the whole has, of the upload's algorithm.

    Raises: NoSuchUpload, NoParts, BadPartOrder, BadPart, PartTooSmall, BadRequest, ChecksumMismatch,
    TooLarge, ConditionFailed, ConditionalConflict, NoSuchKey.
    """
    place = await open_place(store, who, bucket, key, stores=True)
    name = upload_key(place.bucket.id, place.raw_key, upload_bytes(upload))
    for _ in range(ATTEMPTS_MAX):
        generation, size = (
            upload_generation_key(name[-UPLOAD_ID_SIZE:]),
            upload_bytes_key(name[-UPLOAD_ID_SIZE:]),
        )
        value, part_count, part_bytes = await store.kv.get_many([name, generation, size])
        if value is None:
            return await _completed_before(store, place, upload, parts)
        record = decode(value, UploadRecord)
        choose_class(store, place, record.extra)
        await _open_key(store, place, record)
        if checksum_type and record.checksum_type and checksum_type != record.checksum_type:
            raise BadRequest(
                f"The upload was created using the {record.checksum_type} checksum mode. "
                "The complete request must use the same checksum mode."
            )
        made = await _assemble(store, name[-UPLOAD_ID_SIZE:], record, parts)
        if object_size is not None and object_size != made.size:
            raise BadRequest(
                f"The provided 'x-amz-mp-object-size' header value {object_size} does not match what was "
                f"computed: {made.size}"
            )
        if checksum is not None and not _agrees(checksum, made.checksum):
            raise ChecksumMismatch(checksum.algorithm)
        try:
            return await _complete(
                store,
                who,
                place,
                name,
                record,
                made,
                conditions,
                expect={name: value, generation: part_count, size: part_bytes},
                uploaded_bytes=counter(part_bytes),
            )
        except Conflict:
            continue  # A part arrived, or another Complete or Abort was faster.
    raise Contended("parts of the upload kept arriving")


@dataclass(slots=True)
class _Made:
    """What the claimed parts amount to."""

    entries: list[PartEntry]
    size: int
    etag: bytes
    checksum: Checksum | None
    unlisted: bool  # There are parts that were not claimed.
    latest_us: int  # Order of the newest part, claimed or not.


def _agrees(claimed: Checksum, made: Checksum | None) -> bool:
    if made is None or claimed.algorithm != made.algorithm or claimed.digest != made.digest:
        return False
    return not claimed.parts or claimed.parts == made.parts


async def _assemble(store: Store, upload: bytes, record: UploadRecord, claimed: Sequence[Claimed]) -> _Made:
    """Check the claimed parts against the uploaded ones.

    Raises: NoParts, BadPartOrder, BadPart, PartTooSmall, TooLarge, BadRequest (a checksum that a composite
    needs is missing).
    """
    if not claimed:
        raise NoParts("You must specify at least one part")
    if any(one.number >= following.number for one, following in pairwise(claimed)):
        raise BadPartOrder(upload.hex())
    uploaded: dict[int, PartRecord] = {}
    async for pairs in pages(store.kv, part_key(upload, 0), prefix_end(b"p" + upload), PARTS_AT_ONCE):
        uploaded.update((int.from_bytes(key[-2:], "big"), decode(value, PartRecord)) for key, value in pairs)
        await asyncio.sleep(0)  # Ten thousand parts take 50 ms: others may run in between.
    entries: list[PartEntry] = []
    digests: list[bytes] = []
    size = 0
    for index, claim in enumerate(claimed):
        part = uploaded.get(claim.number)
        if part is None or claim.etag.strip('"') != part.etag.hex():
            raise BadPart(upload=upload.hex(), number=claim.number, etag=claim.etag)
        if record.checksum_type == "COMPOSITE" and claim.checksum is None:
            raise BadRequest(
                f"The upload was created using a {record.checksum_algorithm.lower()} checksum. The complete "
                f"request must include the checksum for each part. It was missing for part {claim.number} in "
                "the request."
            )
        stored = Checksum.unpack(part.checksum)
        if (
            claim.checksum is not None
            and stored is not None
            and (record.checksum_algorithm or claim.checksum[0] == stored.algorithm)
            and claim.checksum != (stored.algorithm, stored.digest)
        ):
            raise BadPart(upload=upload.hex(), number=claim.number, etag=claim.etag)
        if part.size < PART_SIZE_MIN and index < len(claimed) - 1:
            raise PartTooSmall(number=claim.number, etag=claim.etag, size=part.size, minimum=PART_SIZE_MIN)
        if stored is not None:
            digests.append(stored.digest)
        size += part.size
        entries.append(PartEntry(number=claim.number, size=part.size, etag=part.etag, checksum=part.checksum))
    if size > OBJECT_SIZE_MAX:
        raise TooLarge(size=size, maximum=OBJECT_SIZE_MAX)
    md5 = checksums.md5()
    md5.update(b"".join(entry.etag for entry in entries))
    whole: Checksum | None = None
    if len(digests) == len(entries):
        algorithm = record.checksum_algorithm or checksums.DEFAULT
        if record.checksum_type == "COMPOSITE":
            whole = checksums.composite(algorithm, digests)
        elif checksums.is_crc(algorithm):
            sizes = [entry.size for entry in entries]
            whole = checksums.full_object(algorithm, zip(digests, sizes, strict=True))
    return _Made(
        entries,
        size,
        md5.digest() + len(entries).to_bytes(2, "big"),
        whole,
        unlisted=len(uploaded) > len(entries),
        latest_us=max(part.order for part in uploaded.values()),
    )


async def _complete(
    store: Store,
    who: Principal,
    place: Place,
    name: bytes,
    record: UploadRecord,
    made: _Made,
    conditions: Conditions,
    *,
    expect: dict[bytes, bytes | None],
    uploaded_bytes: int,
) -> Written:
    upload = name[-UPLOAD_ID_SIZE:]
    packed = made.checksum.pack() if made.checksum is not None else b""
    check = None
    if conditions.if_match is not None or conditions.if_none_match is not None:

        def check_seen(old: ObjectRecord | None, vanished: bool) -> None:
            check_complete(conditions, old, place.key, seen=record.seen, present=_seen(old))

        check = check_seen
        present = await store.kv.get(place.home)  # Refused early if refused already: before the manifest.
        check_seen(None if present is None else decode(present, ObjectRecord), False)

    pages: dict[bytes, bytes] = {}
    begin = 0
    for index, at in enumerate(range(0, len(made.entries), PAGE_PARTS_MAX)):
        some = made.entries[at : at + PAGE_PARTS_MAX]
        pages[parts_page_key(upload, index)] = encode(PartsPage(parts=some, begin=begin))
        begin += sum(entry.size for entry in some)

    def object_record(order: int, manifest: Extent | None) -> ObjectRecord:
        base = record.extra or Extra()
        return ObjectRecord(
            FORMAT,
            order,
            b"",
            made.size,
            made.etag,
            packed,
            [],
            Extra(
                content_type=base.content_type,
                headers=base.headers,
                metadata=base.metadata,
                multipart=Multipart(upload, len(made.entries), manifest),
            ),
            record.owner,
        )

    about = encode(object_record(store.clock.now_us(), None))
    store.crash_point("complete-decided")
    kept = await _keep_manifest(store, place, made.entries, about)
    store.crash_point("complete-manifest")
    put = pages
    if made.unlisted:
        put[doomed_key(upload)] = encode(DoomedRecord(since_us=store.clock.now_us(), unlisted=True))

    def build(old: ObjectRecord | None, order: int) -> Change:
        return Change(
            object_record(order, kept.stored.extents[0]),
            kept,
            parts=uploaded_bytes,
            requests=1,
            expect=expect,
            put=put,
            delete=list(expect),
            add=doomed.ended(place.bucket, record),
        )

    # Parts end when the object begins, and none may end before it came, whatever the clocks say.
    new, _ = await change_object(store, who, place, check, build, not_before_us=made.latest_us)
    assert new is not None
    return Written(etag=etag_text(new.etag), order=new.order, checksum=made.checksum, size=new.size)


async def _keep_manifest(store: Store, place: Place, entries: list[PartEntry], about: bytes) -> Kept:
    """The part list as a small stripe: with the metadata lost, it says which parts the object is made of."""
    data = encode(PartsPage(parts=entries))
    if len(data) <= store.small_size_max:
        return await keep_small(store, place.home, data, about, place.policy)
    stream = store.writer.stream(place.home, policy=place.policy)
    try:
        await stream.write(data)
        stored = await stream.finish(about)
    except BaseException:
        stream.abort()
        raise
    if len(stored.extents) != 1:  # Half-filled stripes are flushed when memory is short: 600 KB are not.
        raise Overloaded("the part list did not fit one stripe")
    return Kept(place.home, about, stored, None, len(data), stored.extents, policy=place.policy)


async def _completed_before(store: Store, place: Place, upload: str, parts: Sequence[Claimed]) -> Written:
    """The answer to a Complete that has been answered. Raises: NoSuchUpload."""
    value = await store.kv.get(place.home)
    record = None if value is None else decode(value, ObjectRecord)
    multipart = record.extra.multipart if record is not None and record.extra is not None else None
    if record is None or multipart is None or multipart.upload.hex() != upload:
        raise NoSuchUpload(upload)
    start = parts_page_key(multipart.upload, 0)
    pages = await store.kv.scan(start, prefix_end(b"q" + multipart.upload), 1 + multipart.count)
    entries = [entry for _, page in pages for entry in decode(page, PartsPage).parts]
    if [(entry.number, entry.etag.hex()) for entry in entries] != [
        (part.number, part.etag.strip('"')) for part in parts
    ]:
        raise NoSuchUpload(upload)
    return Written(
        etag=etag_text(record.etag),
        order=record.order,
        checksum=Checksum.unpack(record.checksum),
        size=record.size,
    )


async def abort_upload(store: Store, who: Principal, bucket: str, key: str, upload: str) -> None:
    """Raises: NoSuchUpload, NoSuchBucket, Denied."""
    place = await open_place(store, who, bucket, key)
    name = upload_key(place.bucket.id, place.raw_key, upload_bytes(upload))
    for _ in range(ATTEMPTS_MAX):
        try:
            await doomed.abort(store, bucket, place.bucket_value, place.bucket, name)
        except Conflict:
            await reopen(store, who, place)
            continue
        return
    raise Overloaded("the bucket's record kept changing")


async def list_parts(
    store: Store, who: Principal, bucket: str, key: str, upload: str, *, after: int, limit: int
) -> tuple[UploadRecord, list[tuple[int, PartRecord]], bool]:
    """Parts with numbers > after, in order, and whether there are more."""
    assert limit >= 0
    _, name, _, record = await open_upload(store, who, bucket, key, upload)
    one = name[-UPLOAD_ID_SIZE:]
    if after >= PART_NUMBER_MAX:
        return record, [], False
    pairs = await store.kv.scan(part_key(one, max(after, 0) + 1), prefix_end(b"p" + one), limit + 1)
    listed = [(int.from_bytes(key[-2:], "big"), decode(value, PartRecord)) for key, value in pairs[:limit]]
    return record, listed, limit > 0 and len(pairs) > limit


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsPage:
    bucket: BucketRecord
    uploads: list[tuple[str, str, UploadRecord]]  # Key, upload id, record.
    prefixes: list[str]
    truncated: bool
    next_key: str
    next_upload: str


async def list_uploads(
    store: Store,
    who: Principal,
    bucket: str,
    *,
    prefix: str,
    delimiter: str,
    after_key: str,
    after_upload: str,
    limit: int,
) -> UploadsPage:
    """Uploads behind (after_key, after_upload) in order of key, then of initiation.

    Without after_upload: those of keys > after_key. A common prefix counts as an upload does.
    """
    assert limit >= 0
    record = await find_bucket(store, who, bucket)
    base = upload_key(record.id, b"", b"")[:-2]
    start = base + _escaped(prefix)
    end = prefix_end(start)
    depth = len(start)
    separator = _escaped(delimiter)
    if after_key:
        behind = base + _escaped(after_key)
        if after_upload and len(after_upload) == 2 * UPLOAD_ID_SIZE:
            start = max(start, behind + b"\0\x01" + upload_bytes(after_upload) + b"\0")
        else:
            start = max(start, behind + b"\0\x02")
        if separator and behind.startswith(base + _escaped(prefix)):
            cut = behind.find(separator, depth)
            if cut >= 0:  # The marker lies in, or is, a common prefix.
                start = max(start, prefix_end(behind[: cut + len(separator)]))
    found: list[tuple[bytes, bytes | None]] = []
    if limit and start < end:
        if separator:
            found = await roll_up(store.kv.scan, start, end, depth, separator, limit + 1, tail=NAME_TAIL)
        else:
            found = list(await store.kv.scan(start, end, limit + 1))
    truncated = len(found) > limit
    del found[limit:]
    uploads: list[tuple[str, str, UploadRecord]] = []
    prefixes: list[str] = []
    at = len(base)
    next_key = next_upload = ""
    for key, value in found:
        if value is None:
            next_key, next_upload = key[at:].replace(b"\0\xff", b"\0").decode(), ""
            prefixes.append(next_key)
        else:
            raw, one = unescape(key[at:])
            next_key, next_upload = raw.decode(), one.hex()
            uploads.append((next_key, next_upload, decode(value, UploadRecord)))
    return UploadsPage(
        bucket=record,
        uploads=uploads,
        prefixes=prefixes,
        truncated=truncated,
        next_key=next_key if truncated else "",
        next_upload=next_upload if truncated else "",
    )


def _escaped(text: str) -> bytes:
    """As `escape`, without the mark at the end: the prefix of the escaped keys that begin with the text."""
    return escape(text.encode())[:-2]


async def object_parts(
    store: Store, who: Principal, bucket: str, key: str, *, after: int, limit: int
) -> tuple[list[tuple[int, int, Checksum | None]], int, bool]:
    """For GetObjectAttributes: a completed object's parts with numbers > after, as (number, size, checksum);
    the count of all its parts, 0 if it is not a multipart object; and whether there are more.

    Raises: NoSuchKey.
    """
    _, record = await read_record(store, who, bucket, key)
    if record is None:
        raise NoSuchKey(key)
    multipart = record.extra.multipart if record.extra is not None else None
    if multipart is None:
        return [], 0, False
    listed: list[PartEntry] = []
    index, page = await page_of_part(store, multipart, max(after, 0) + 1)
    pages = -(-multipart.count // PAGE_PARTS_MAX)
    while True:
        listed += [entry for entry in page.parts if entry.number > after]
        index += 1
        if len(listed) > limit or index >= pages:
            break
        value = await store.kv.get(parts_page_key(multipart.upload, index))
        if value is None:
            raise NoSuchKey(key)  # Dropped and swept meanwhile.
        page = decode(value, PartsPage)
    parts = [(entry.number, entry.size, Checksum.unpack(entry.checksum)) for entry in listed[:limit]]
    return parts, multipart.count, len(listed) > limit
