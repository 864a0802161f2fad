"""What a bucket's source asks of its replica over HTTP: S3 requests with the sub-resource `objstore-replica`.

    PUT    /bucket?objstore-replica              attach: {cluster, bucket, id, replace} -> {generation}
    POST   /bucket?objstore-replica=G            open a session -> {session}
    GET    /bucket?objstore-replica=G&after=KEY  MessagePack: [more, [[key, order, size, etag], ...]]
    PUT    /bucket/key?objstore-replica=G.S.ORDER                 an object
    DELETE /bucket/key?objstore-replica=G.S
    POST   /bucket/key?objstore-replica=G.S                       begin an upload -> {upload}
    PUT    /bucket/key?objstore-replica=G.S&upload=ID&number=N    a part of it
    POST   /bucket/key?objstore-replica=G.S.ORDER&upload=ID       complete: [[number, etag, algorithm,
                                                                  digest], ...]

G is the replica's generation, S the session, ORDER the version's order at the source, in microseconds.
All are signed as every request is, and may do no more than the key's tenant may; who may change the replica
is decided by its record (objects/replicas.py). An object's words come in x-amz-objstore-about: Base64 of
MessagePack [content type, system headers, metadata]. The client of this is s3/replica_client.py.
"""

import base64
import binascii
import re
from dataclasses import replace
from typing import Annotated, Final, TypeVar

import msgspec
from aiohttp import web

from objstore.iam.principal import Mirror, Principal
from objstore.meta.schema import CHECKSUMS
from objstore.objects import multipart, replicas, writes
from objstore.objects.multipart import Claimed
from objstore.objects.placing import STORAGE_CLASS
from objstore.objects.replicas import Held, Source
from objstore.objects.values import About
from objstore.s3.answers import empty
from objstore.s3.call import Call
from objstore.s3.errors import invalid_argument, invalid_request
from objstore.s3.headers import check_checksum_type, is_sayable
from objstore.s3.objects import check_size, written_headers

FLAG: Final = "objstore-replica"
ABOUT: Final = "x-amz-objstore-about"
DOCUMENT_SIZE_MAX: Final = 2 * 1024 * 1024  # Bytes: 10,000 parts of 100 bytes and more.

ORDER_MAX: Final = 253_402_300_799 * 1_000_000  # Microseconds: what Last-Modified can say.
_MIRROR = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18})(?:\.([0-9]{1,18}))?)?", re.ASCII).fullmatch
_NUMBER = re.compile(r"[0-9]{1,5}", re.ASCII).fullmatch

T = TypeVar("T")


class Attach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What operators are shown of a source, and what its records hold: whoever may attach can say it."""

    cluster: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    bucket: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9.-]{3,63}\Z")]
    id: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    replace: bool = False


class ClaimedPart(msgspec.Struct, frozen=True, array_like=True):
    number: int
    etag: str
    algorithm: str = ""
    digest: bytes = b""


class Words(msgspec.Struct, frozen=True, array_like=True):
    """An object's About on the wire."""

    content_type: str
    headers: dict[str, str]
    metadata: dict[str, str]


class Page(msgspec.Struct, frozen=True, array_like=True):
    more: bool
    held: list[Held]


class Upload(msgspec.Struct, frozen=True):
    algorithm: Annotated[str, msgspec.Meta(pattern=rf"\A({'|'.join(CHECKSUMS)})?\Z")] = ""
    type: str = ""


def pack_about(about: About) -> str:
    words = Words(about.content_type, about.headers, about.metadata)
    return base64.b64encode(msgspec.msgpack.encode(words)).decode()


def unpack_about(text: str) -> About:
    """Raises: S3Fault."""
    try:
        words = msgspec.msgpack.decode(binascii.a2b_base64(text, strict_mode=True), type=Words)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        raise invalid_argument("not an object's words", ABOUT) from None
    headers = {name: value for name, value in words.headers.items() if name != STORAGE_CLASS}  # Not ours.
    found = About(content_type=words.content_type, headers=headers, metadata=words.metadata)
    if not is_sayable(found):
        raise invalid_argument("words that no headers could have said of an object", ABOUT)
    return found


def _source(call: Call) -> tuple[Principal, Mirror]:
    """Who asks, as a replica's source, and as what. Raises: S3Fault."""
    match = _MIRROR(call.query[FLAG])
    if match is None:
        raise invalid_argument("a generation, or generation.session, or with .order", FLAG, call.query[FLAG])
    generation, session, order = (int(word or 0) for word in match.groups())
    if order > ORDER_MAX:
        raise invalid_argument("an order lies before the year 10000", FLAG, call.query[FLAG])
    mirror = Mirror(generation=generation, session=session, order=order)
    return replace(call.who, mirror=mirror), mirror


async def _document(call: Call, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await call.read_document(DOCUMENT_SIZE_MAX), type=kind)
    except msgspec.MsgspecError as failure:
        raise invalid_request(f"not the document that is expected here: {failure}") from None


def _json(content: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), headers={"Content-Type": "application/json"})


# --- The bucket ----------------------------------------------------------------------------------


async def attach(call: Call) -> web.Response:
    wanted = await _document(call, Attach)
    source = Source(cluster=wanted.cluster, bucket=wanted.bucket, id=wanted.id)
    record = await replicas.attach(call.store, call.who, call.bucket, source, replace=wanted.replace)
    return _json({"generation": record.generation})


async def open_session(call: Call) -> web.Response:
    _, mirror = _source(call)
    session = await replicas.open_session(call.store, call.who, call.bucket, mirror.generation)
    return _json({"session": session})


async def listed(call: Call) -> web.Response:
    _, mirror = _source(call)
    held, more = await replicas.listed(
        call.store,
        call.who,
        call.bucket,
        mirror.generation,
        after=call.query.get("after", "").encode(),
    )
    return web.Response(
        body=msgspec.msgpack.encode(Page(more, held)), headers={"Content-Type": "application/x-msgpack"}
    )


# --- Its objects ---------------------------------------------------------------------------------


async def put(call: Call) -> web.Response:
    """An object, or a part of one."""
    who, _ = _source(call)
    check_size(call)
    upload = call.query.get("upload")
    if upload is None:
        about = unpack_about(call.headers.get(ABOUT, ""))
        written = await writes.put_object(call.store, who, call.bucket, call.key, about, call.body)
    else:
        number = call.query.get("number", "")
        if _NUMBER(number) is None:
            raise invalid_argument("Part number must be an integer", "number", number[:64])
        written = await multipart.put_part(
            call.store, who, call.bucket, call.key, upload, int(number), call.body
        )
    return web.Response(headers=written_headers(written))


async def post(call: Call) -> web.Response:
    """Begin a multipart upload, or complete it."""
    who, _ = _source(call)
    upload = call.query.get("upload")
    if upload is None:
        wanted = await _document(call, Upload)
        if bool(wanted.algorithm) != bool(wanted.type):
            raise invalid_request("a checksum has an algorithm and a type")
        check_checksum_type(wanted.algorithm, wanted.type)
        about = unpack_about(call.headers.get(ABOUT, ""))
        made, _ = await multipart.create_upload(
            call.store,
            who,
            call.bucket,
            call.key,
            about,
            checksum_algorithm=wanted.algorithm,
            checksum_type=wanted.type,
        )
        return _json({"upload": made})
    parts = [
        Claimed(
            number=part.number,
            etag=part.etag,
            checksum=(part.algorithm, part.digest) if part.algorithm else None,
        )
        for part in await _document(call, list[ClaimedPart])
    ]
    written = await multipart.complete_upload(call.store, who, call.bucket, call.key, upload, parts)
    return web.Response(headers=written_headers(written))


async def delete(call: Call) -> web.Response:
    who, _ = _source(call)
    await writes.delete_object(call.store, who, call.bucket, call.key)
    return empty(204)
