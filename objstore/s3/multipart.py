"""The multipart family over HTTP."""

import asyncio
import re
from urllib.parse import quote

from aiohttp import web
from multidict import CIMultiDict

from objstore.errors import ConditionalConflict, NoParts
from objstore.meta.schema import CHECKSUMS, Checksum
from objstore.objects import copies, multipart
from objstore.objects.multipart import Claimed, UploadsPage
from objstore.objects.placing import STANDARD, storage_class_of
from objstore.objects.values import Written, etag_text
from objstore.s3.answers import document, empty, eventually
from objstore.s3.call import Call
from objstore.s3.errors import (
    bad_checksum,
    escape,
    fault_of,
    invalid_argument,
    invalid_request,
    malformed_xml,
)
from objstore.s3.headers import (
    about,
    add_checksum,
    check_expected_owner,
    checksum_digest,
    checksum_header,
    copy_source_range,
    header_number,
    part_number,
    query_number,
    upload_checksum,
    write_conditions,
)
from objstore.s3.listing import encoding_of, url_encoding
from objstore.s3.objects import PARSE_IN_LOOP_MAX, check_copy, check_size, copied, source_of
from objstore.s3.xml import XMLNS, Element, checksum_element, owner, parse, timestamp

PAGE_MAX = 1000
PARTS_MAX = 10_000
COMPLETE_DOCUMENT_MAX = 4 * 1024 * 1024  # Bytes: 10,000 parts with ETag and SHA-256 are 2.5 MB.

_PART_FIELDS = frozenset(("PartNumber", "ETag", *(f"Checksum{name}" for name in CHECKSUMS)))
_upload_id = re.compile(r"[0-9a-f]{32}").fullmatch


async def create_upload(call: Call) -> web.Response:
    headers = call.headers
    check_expected_owner(headers, call.who)
    algorithm, kind = upload_checksum(headers)
    upload, _ = await multipart.create_upload(
        call.store,
        call.who,
        call.bucket,
        call.key,
        about(headers),
        checksum_algorithm=algorithm,
        checksum_type=kind,
    )
    extra = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind} if algorithm else None
    return document(
        f"<InitiateMultipartUploadResult{XMLNS}><Bucket>{escape(call.bucket)}</Bucket>"
        f"<Key>{escape(call.key)}</Key><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>",
        extra,
    )


def _place(call: Call) -> tuple[str, int]:
    """Upload id and part number of a part to be written. Raises: S3Fault InvalidArgument."""
    number = part_number(call.query)
    upload = call.query.get("uploadId", "")
    if number is None:
        raise invalid_argument("This operation needs a partNumber", "partNumber", "")
    if not upload:
        raise invalid_argument("This operation does not accept an empty uploadId", "uploadId", "")
    return upload, number


async def upload_part(call: Call) -> web.Response:
    upload, number = _place(call)
    check_size(call)
    check_expected_owner(call.headers, call.who)
    written = await multipart.put_part(call.store, call.who, call.bucket, call.key, upload, number, call.body)
    headers = CIMultiDict({"ETag": f'"{written.etag}"'})
    add_checksum(headers, written.checksum, typed=False)
    return web.Response(headers=headers)


async def upload_part_copy(call: Call) -> web.StreamResponse:
    upload, number = _place(call)
    check_copy(call)
    return await eventually(
        call,
        copies.copy_part(
            call.store,
            call.who,
            source_of(call),
            copy_source_range(call.headers),
            call.bucket,
            call.key,
            upload,
            number,
        ),
        lambda written: copied("CopyPartResult", written),
    )


def _part_checksum(part: Element) -> tuple[str, bytes] | None:
    found = None
    for name in CHECKSUMS:
        text = part.get(f"Checksum{name}")
        if text is None:
            continue
        digest = checksum_digest(name, text)
        if digest is None:
            raise invalid_request(f"Value for Checksum{name} is invalid.")
        if found is not None:
            raise invalid_request("Expecting a single checksum for a part.")
        found = name, digest
    return found


def _claimed(part: Element) -> Claimed:
    part.only(_PART_FIELDS)
    number = part.need("PartNumber").strip()
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise malformed_xml()
    if not 1 <= int(number) <= PARTS_MAX:
        raise invalid_argument(
            "Part number must be an integer between 1 and 10000, inclusive", "partNumber", number
        )
    etag = part.need("ETag").strip().strip('"')
    return Claimed(number=int(number), etag=etag, checksum=_part_checksum(part))


def parse_parts(body: bytes) -> list[Claimed]:
    """The parts of a CompleteMultipartUpload document. Raises: S3Fault; NoParts."""
    if not body.strip():
        raise NoParts("the document is empty")
    root = parse(body, "CompleteMultipartUpload")
    root.only(frozenset(("Part",)))
    if not root.children:
        raise NoParts("the document names no part")
    if len(root.children) > PARTS_MAX:
        raise malformed_xml()
    parts: list[Claimed] = []
    for part in root.children:
        claimed = _claimed(part)
        if parts and parts[-1].number == claimed.number:
            parts.pop()  # A part sent twice and listed twice: the later one counts.
        parts.append(claimed)
    return parts


def _whole_checksum(call: Call) -> tuple[Checksum | None, str]:
    """What the client expects of the whole object: the checksum header and its type. Raises: S3Fault."""
    kind = call.headers.get("x-amz-checksum-type", "").upper()
    if kind not in ("", "FULL_OBJECT", "COMPOSITE"):
        raise invalid_request("Value for x-amz-checksum-type header is invalid.")
    named = checksum_header(call.headers)
    if named is None:
        return None, kind
    algorithm, text = named
    base, dash, count = text.partition("-")
    digest = checksum_digest(algorithm, base)
    parts = int(count) if count.isascii() and count.isdigit() and len(count) < 6 else 0
    if digest is None or (dash and not parts):
        raise bad_checksum(algorithm)  # It cannot be the object's, whatever it is.
    return Checksum(algorithm, "COMPOSITE" if dash else "FULL_OBJECT", digest, parts), kind


async def complete_upload(call: Call) -> web.StreamResponse:
    headers = call.headers
    check_expected_owner(headers, call.who)
    upload = call.query["uploadId"]
    conditions = write_conditions(headers)
    object_size = header_number(headers, "x-amz-mp-object-size")
    body = await call.read_document(COMPLETE_DOCUMENT_MAX)
    checksum, kind = _whole_checksum(call)
    if len(body) <= PARSE_IN_LOOP_MAX:
        parts = parse_parts(body)
    else:
        parts = await asyncio.to_thread(parse_parts, body)

    def show(written: Written) -> tuple[str, dict[str, str]]:
        where = escape(f"{call.base_url}/{call.bucket}/{quote(call.key)}")
        summed = checksum_element(written.checksum)
        if written.checksum is not None:
            summed += f"<ChecksumType>{written.checksum.type}</ChecksumType>"
        return (
            f"<CompleteMultipartUploadResult{XMLNS}><Location>{where}</Location>"
            f"<Bucket>{escape(call.bucket)}</Bucket><Key>{escape(call.key)}</Key>"
            f"<ETag>&quot;{written.etag}&quot;</ETag>{summed}</CompleteMultipartUploadResult>"
        ), {}

    async def complete() -> Written:
        try:
            return await multipart.complete_upload(
                call.store,
                call.who,
                call.bucket,
                call.key,
                upload,
                parts,
                conditions=conditions,
                object_size=object_size,
                checksum=checksum,
                checksum_type=kind,
            )
        except ConditionalConflict as conflict:
            fault = fault_of(conflict)
            fault.fields["Key"] = call.key  # Only here does S3 name the key.
            raise fault from conflict

    return await eventually(call, complete(), show)


async def abort_upload(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    await multipart.abort_upload(call.store, call.who, call.bucket, call.key, call.query["uploadId"])
    return empty(204)


async def list_parts(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    query = call.query
    upload = query["uploadId"]
    limit = query_number(query, "max-parts", default=PAGE_MAX, most=PAGE_MAX)
    after = query_number(query, "part-number-marker", default=0, most=PARTS_MAX)
    record, parts, truncated = await multipart.list_parts(
        call.store, call.who, call.bucket, call.key, upload, after=after, limit=limit
    )
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><LastModified>{timestamp(part.order)}</LastModified>"
        f"<ETag>&quot;{etag_text(part.etag)}&quot;</ETag><Size>{part.size}</Size>"
        f"{checksum_element(Checksum.unpack(part.checksum))}</Part>"
        for number, part in parts
    )
    last = parts[-1][0] if parts else after
    summed = (
        f"<ChecksumAlgorithm>{record.checksum_algorithm}</ChecksumAlgorithm>"
        f"<ChecksumType>{record.checksum_type}</ChecksumType>"
        if record.checksum_algorithm
        else ""
    )
    who = call.who.tenant
    return document(
        f"<ListPartsResult{XMLNS}><Bucket>{escape(call.bucket)}</Bucket><Key>{escape(call.key)}</Key>"
        f"<UploadId>{upload}</UploadId>{owner(who, 'Initiator')}{owner(who)}"
        f"<StorageClass>{storage_class_of(record.extra) or STANDARD}</StorageClass>"
        f"<PartNumberMarker>{after}</PartNumberMarker>"
        f"<NextPartNumberMarker>{last}</NextPartNumberMarker><MaxParts>{limit}</MaxParts>"
        f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>{rows}{summed}</ListPartsResult>"
    )


async def list_uploads(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    query = call.query
    url_encoding(query)
    prefix = query.get("prefix", "")
    delimiter = query.get("delimiter", "")
    key_marker = query.get("key-marker", "")
    upload_marker = query.get("upload-id-marker", "") if key_marker else ""
    if upload_marker and not _upload_id(upload_marker):
        raise invalid_argument("Invalid uploadId marker", "upload-id-marker", upload_marker)
    limit = query_number(query, "max-uploads", default=PAGE_MAX, most=PAGE_MAX)
    if limit == 0:
        raise invalid_argument("Argument max-uploads must be between 1 and 1000", "max-uploads", "0")
    page: UploadsPage = await multipart.list_uploads(
        call.store,
        call.who,
        call.bucket,
        prefix=prefix,
        delimiter=delimiter,
        after_key=key_marker,
        after_upload=upload_marker,
        limit=limit,
    )
    write, encoding = encoding_of(
        query, [prefix, delimiter, key_marker, *(key for key, _, _ in page.uploads), *page.prefixes]
    )
    people = owner(page.bucket.tenant, "Initiator") + owner(page.bucket.tenant)
    rows = "".join(
        f"<Upload><Key>{write(key)}</Key><UploadId>{upload}</UploadId>{people}"
        f"<StorageClass>{storage_class_of(record.extra) or STANDARD}</StorageClass>"
        f"<Initiated>{timestamp(record.order)}</Initiated>"
        + (
            f"<ChecksumAlgorithm>{record.checksum_algorithm}</ChecksumAlgorithm>"
            f"<ChecksumType>{record.checksum_type}</ChecksumType></Upload>"
            if record.checksum_algorithm
            else "</Upload>"
        )
        for key, upload, record in page.uploads
    )
    rows += "".join(
        f"<CommonPrefixes><Prefix>{write(one)}</Prefix></CommonPrefixes>" for one in page.prefixes
    )
    following = ""
    if page.truncated:
        following = (
            f"<NextKeyMarker>{write(page.next_key)}</NextKeyMarker>"
            f"<NextUploadIdMarker>{escape(page.next_upload)}</NextUploadIdMarker>"
        )
    return document(
        f"<ListMultipartUploadsResult{XMLNS}><Bucket>{escape(call.bucket)}</Bucket>"
        f"<KeyMarker>{write(key_marker)}</KeyMarker>"
        f"<UploadIdMarker>{escape(upload_marker)}</UploadIdMarker>{following}"
        f"<Prefix>{write(prefix)}</Prefix>"
        + (f"<Delimiter>{write(delimiter)}</Delimiter>" if delimiter else "")
        + f"<MaxUploads>{limit}</MaxUploads>"
        f"<IsTruncated>{'true' if page.truncated else 'false'}</IsTruncated>{encoding}{rows}"
        "</ListMultipartUploadsResult>"
    )
