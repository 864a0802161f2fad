"""Who leaves: what is stored handed back (exports), and its end (purges).

An export is begun, resumed and finished by acts that the audit log has; what is fetched in between needs one
that is open. The operator exports at any time; a tenant's owner only while the account is terminating, for
what is read here is not metered: until then its data are read through S3.
"""

import base64
import binascii
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, File, Nothing, Page, Route, in_path
from objstore.admin.views import LimitsView, List, list_of, moment, shown, view
from objstore.errors import Denied, NoSuchBucket, NoSuchKey
from objstore.ids import ulid
from objstore.meta.schema import Checksum, Extra, ObjectRecord, PartEntry
from objstore.objects.exports import Exports, Holding
from objstore.objects.values import etag_text
from objstore.rental import departures
from objstore.rental.customers import account_state
from objstore.rental.records import ExportRecord, PurgeRecord, export_key, purge_key

OWNER: Final = Rule(action="tenant:Write", resellers=False)  # What is stored is not its reseller's to read.
OBJECTS_MAX: Final = 500  # Of one page: with all their metadata about 2 MB.
STORAGE_CLASS: Final = "x-amz-storage-class"
NULL_VERSION: Final = "null"
EXPORT: Final = view(ExportRecord)
T = TypeVar("T")


class BucketHeld(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket: its settings, and what it holds now."""

    name: str
    id: int
    owner: str
    created: str | None
    region: str
    project: str
    placement: str  # Its placement policy; empty: the default one.
    limits: LimitsView
    replicated_to: str
    is_replica: bool
    objects: int
    bytes: int  # Of bodies, and of parts of uploads under way.
    uploads: int  # Under way.


class ObjectRow(msgspec.Struct, frozen=True, kw_only=True):
    """The version that a key has, with all that is known of it but its bytes."""

    key: str
    key_base64: str  # URL-safe, without padding: what the API is asked by.
    version: str
    order: int  # Microseconds since 1970: tells it from what the key had before, or gets later.
    last_modified: str | None
    size: int
    etag: str
    checksum: dict[str, str] | None  # algorithm, type, value (as in S3's headers).
    content_type: str
    headers: dict[str, str]
    metadata: dict[str, str]
    storage_class: str
    owner: str  # Empty: the bucket's.
    parts: int  # 0: it was stored in one piece.
    rebuilt: bool  # Found again by a salvage from fragments: it may be doubtful.


class ObjectRows(msgspec.Struct, frozen=True, kw_only=True):
    items: list[ObjectRow]
    next: str | None  # `after` of the page behind it.


class PartRow(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    size: int
    etag: str
    checksum: dict[str, str] | None


class PartRows(msgspec.Struct, frozen=True, kw_only=True):
    items: list[PartRow]
    next: int | None  # `page` of the page behind it.


class Finish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an export came to."""

    objects: int
    bytes: int
    missing: int
    manifest: str  # SHA-256, in hexadecimal digits.


class Behind(Nothing, frozen=True, kw_only=True, forbid_unknown_fields=True):
    after: str = ""  # A key_base64: keys behind it.
    only: str = ""  # A key_base64: this one alone.
    limit: int = 200


class OfVersion(Nothing, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str  # A key_base64.
    order: int
    page: int = 0


class OfBody(Nothing, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str  # A key_base64.
    order: int
    first: int = 0  # Offset of the first byte.


class Purge(msgspec.Struct, frozen=True, kw_only=True):
    """How far the end of a tenant's data is."""

    tenant: str
    state: str  # none | deleting | clearing | proven
    by: str
    begun: str | None
    buckets: int  # What it held when it began,
    objects: int
    bytes: int  # billed.
    deleted: str | None
    looked: str | None
    waiting: str  # Why it is not proven yet,
    volumes: int  # how many volumes may still hold bytes of it,
    until: str | None  # and when that ends, as far as is known.
    proven: str | None
    proof: dict[str, Any] | None


def text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_of(text: str) -> bytes:
    """Raises: Problem 400."""
    try:
        return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, "the address's query: a key is given in URL-safe base64") from None


def _key(text: str) -> str:
    try:
        return raw_of(text).decode()
    except UnicodeDecodeError:
        raise Problem(400, "the address's query: a key is UTF-8, in URL-safe base64") from None


# What a tenant holds.


def _exports(call: Call) -> Exports:
    if call.services.exports is None:
        raise Problem(503, "this process reads no objects")
    return call.services.exports


async def buckets(call: Call) -> List[Any]:
    exports, tenant = _exports(call), call.params["tenant"]

    async def read(after: str, limit: int) -> list[Holding]:
        return await exports.buckets(tenant, after=after, limit=limit)

    return await page(call.query, read, lambda one: one.name, _holding)


def _holding(one: Holding) -> dict[str, Any]:
    return {
        "name": one.name,
        "id": one.record.id,
        "owner": one.record.owner,
        "created": moment(one.record.created_us),
        "region": one.record.region,
        "project": one.project,
        "placement": one.policy,
        "limits": shown(one.limits),
        "replicated_to": one.replicated_to,
        "is_replica": one.is_replica,
        "objects": one.objects,
        "bytes": one.size,
        "uploads": one.uploads,
    }


# Exports.


def records(call: Call) -> Sequence[bytes]:
    return [export_key(call.params["tenant"], call.params["export"])]


async def _check_may(call: Call) -> None:
    """Raises: Problem 403."""
    if call.caller.is_operator or await account_state(call.kv, call.params["tenant"]) == "terminating":
        return
    raise Problem(403, "only the operator exports an account that is not terminating: read it through S3")


async def begin(call: Call) -> Any:
    await _check_may(call)
    export = ulid(call.now_us, call.services.randomness)
    by, tenant = call.caller.name, call.params["tenant"]
    return shown(await departures.begin_export(call.kv, tenant, export, by=by, now_us=call.now_us))


async def exports(call: Call) -> List[Any]:
    async def read(after: str, limit: int) -> list[ExportRecord]:
        return await departures.list_exports(call.kv, call.params["tenant"], after=after, limit=limit)

    return await page(call.query, read, lambda record: record.id, shown)


async def resume(call: Call) -> Any:
    await _check_may(call)
    tenant, export = call.params["tenant"], call.params["export"]
    return shown(await departures.resume_export(call.kv, tenant, export, now_us=call.now_us))


async def finish(call: Call) -> Any:
    await _check_may(call)  # A purge's proof names the manifest that is told here.
    body: Finish = call.body
    try:
        manifest = bytes.fromhex(body.manifest)
    except ValueError:
        manifest = b""  # The record's rules say what is wrong with it.
    record = await departures.finish_export(
        call.kv,
        call.params["tenant"],
        call.params["export"],
        objects=body.objects,
        size=body.bytes,
        missing=body.missing,
        manifest=manifest,
        now_us=call.now_us,
    )
    return shown(record)


async def _open(call: Call) -> Exports:
    """What an open export reads. Raises: Problem 403, 503, BadArgument."""
    await _check_may(call)
    record = await departures.find_export(call.kv, call.params["tenant"], call.params["export"])
    departures.check_open(record, now_us=call.now_us)
    return _exports(call)


async def _there(asked: Awaitable[T]) -> T:
    """Raises: Problem 404 (it is not there, or not the tenant's)."""
    try:
        return await asked
    except (NoSuchBucket, NoSuchKey, Denied) as absent:
        raise Problem(404, str(absent)) from None


async def objects(call: Call) -> Any:
    found, query = await _open(call), call.query
    if not 1 <= query.limit <= OBJECTS_MAX:
        raise Problem(400, f"the address's query: limit is 1 to {OBJECTS_MAX}")
    tenant, bucket = call.params["tenant"], call.params["bucket"]
    if query.only:
        record = await _there(found.find(tenant, bucket, _key(query.only)))
        return {"items": [_object(_key(query.only), record)], "next": None}
    after = raw_of(query.after)
    rows = await _there(found.objects(tenant, bucket, after=after, limit=query.limit))
    following = text_of(rows[-1][0].encode()) if len(rows) == query.limit else None
    return {"items": [_object(key, record) for key, record in rows], "next": following}


def _object(key: str, record: ObjectRecord) -> dict[str, Any]:
    extra = record.extra or Extra()
    headers = {name: text for name, text in extra.headers.items() if name != STORAGE_CLASS}
    return {
        "key": key,
        "key_base64": text_of(key.encode()),
        "version": record.version.hex() or NULL_VERSION,
        "order": record.order,
        "last_modified": moment(record.order),
        "size": record.size,
        "etag": etag_text(record.etag),
        "checksum": _checksum(record.checksum),
        "content_type": extra.content_type,
        "headers": headers,
        "metadata": extra.metadata,
        "storage_class": extra.headers.get(STORAGE_CLASS, "STANDARD"),
        "owner": record.owner,
        "parts": 0 if extra.multipart is None else extra.multipart.count,
        "rebuilt": extra.salvaged,
    }


def _checksum(packed: bytes) -> dict[str, str] | None:
    found = Checksum.unpack(packed)
    if found is None:
        return None
    value = base64.b64encode(found.digest).decode() + (f"-{found.parts}" if found.parts else "")
    return {"algorithm": found.algorithm, "type": found.type, "value": value}


async def parts(call: Call) -> Any:
    found, query = await _open(call), call.query
    if not 0 <= query.page <= 1_000:
        raise Problem(400, "the address's query: page is what the page before said")
    tenant, bucket = call.params["tenant"], call.params["bucket"]
    entries, following = await _there(
        found.parts(tenant, bucket, _key(query.key), query.order, page=query.page)
    )
    return {"items": [_part(entry) for entry in entries], "next": following}


def _part(entry: PartEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "size": entry.size,
        "etag": entry.etag.hex(),
        "checksum": _checksum(entry.checksum),
    }


async def body(call: Call) -> Any:
    found, query = await _open(call), call.query
    if query.first < 0:
        raise Problem(400, "the address's query: first is 0 or more")
    tenant, bucket = call.params["tenant"], call.params["bucket"]
    piece = await _there(found.piece(tenant, bucket, _key(query.key), query.order, first=query.first))
    return File(piece, "application/octet-stream", "piece")


# Purges.


def purge_records(call: Call) -> Sequence[bytes]:
    return [purge_key(call.params["tenant"])]


async def purge(call: Call) -> Any:
    by, tenant = call.caller.name, call.params["tenant"]
    return _purge(await departures.begin_purge(call.kv, tenant, by=by, now_us=call.now_us))


async def show_purge(call: Call) -> Any:
    found = await departures.find_purge(call.kv, call.params["tenant"])
    return _purge(found or PurgeRecord(tenant=call.params["tenant"], by="", begun_us=0, state="none"))


def _purge(record: PurgeRecord) -> dict[str, Any]:
    return {
        "tenant": record.tenant,
        "state": record.state,
        "by": record.by,
        "begun": moment(record.begun_us),
        "buckets": record.buckets,
        "objects": record.objects,
        "bytes": record.size,
        "deleted": moment(record.deleted_us),
        "looked": moment(record.looked_us),
        "waiting": record.waiting,
        "volumes": record.volumes,
        "until": moment(record.until_us),
        "proven": moment(record.proven_us),
        "proof": msgspec.json.decode(record.proof) if record.proof else None,
    }


_TENANT: Final = "/api/v1/tenants/{tenant}"
_EXPORT: Final = f"{_TENANT}/exports/{{export}}"
_BUCKET: Final = f"{_EXPORT}/buckets/{{bucket}}"
ROUTES: Final = (
    Route(
        method="GET", path=f"{_TENANT}/buckets", name="list_buckets",
        summary="A tenant's buckets: settings, and what they hold.",
        rule=Rule(action="buckets:Read"), owner=in_path, query=Page, handler=buckets, answer=List[BucketHeld],
    ),
    Route(
        method="GET", path=f"{_TENANT}/exports", name="list_exports", summary="Its exports.",
        rule=Rule(action="tenant:Read"), owner=in_path, query=Page, handler=exports, answer=list_of(EXPORT),
    ),
    Route(
        method="POST", path=f"{_TENANT}/exports", name="begin_export",
        summary="Open an export of all that it has stored, for a week.",
        rule=OWNER, owner=in_path, handler=begin, answer=EXPORT, status=201,
    ),
    Route(
        method="POST", path=f"{_EXPORT}/resume", name="resume_export", summary="Open it for another week.",
        rule=OWNER, owner=in_path, handler=resume, answer=EXPORT, tags=records,
    ),
    Route(
        method="POST", path=f"{_EXPORT}/finish", name="finish_export",
        summary="Close it, with the SHA-256 of its manifest.",
        rule=OWNER, owner=in_path, body=Finish, handler=finish, answer=EXPORT, tags=records,
    ),
    Route(
        method="GET", path=f"{_BUCKET}/objects", name="list_exported_objects",
        summary="Keys in the order of their bytes, with all their metadata.",
        rule=OWNER, owner=in_path, query=Behind, handler=objects, answer=ObjectRows,
    ),
    Route(
        method="GET", path=f"{_BUCKET}/parts", name="list_exported_parts",
        summary="The parts of an object that was stored in several.",
        rule=OWNER, owner=in_path, query=OfVersion, handler=parts, answer=PartRows,
    ),
    Route(
        method="GET", path=f"{_BUCKET}/body", name="read_exported_body",
        summary="A piece of a body: at most 4 MiB from `first` on.",
        rule=OWNER, owner=in_path, query=OfBody, handler=body, answer=File,
    ),
    Route(
        method="GET", path=f"{_TENANT}/purge", name="show_purge", summary="How far its purge is; its proof.",
        rule=Rule(action="tenant:Read"), owner=in_path, handler=show_purge, answer=Purge, tags=purge_records,
    ),
    Route(
        method="POST", path=f"{_TENANT}/purge", name="purge_tenant",
        summary="Delete all that it has stored, for ever; the proof follows.",
        rule=OPERATORS, owner=in_path, handler=purge, answer=Purge, status=202, tags=purge_records,
    ),
)  # fmt: skip
