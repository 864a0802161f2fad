"""Objects over HTTP: put, get, head, delete, multi-delete, copy.

The hot path is here: `get_object` and `put_object` do nothing for a feature that the request does not use.
"""

import asyncio

from aiohttp import hdrs, web
from multidict import CIMultiDict, istr

from objstore.errors import Denied, StoreError, TooLarge
from objstore.meta.schema import Checksum
from objstore.objects import copies, reads, writes
from objstore.objects.placing import STORAGE_CLASS
from objstore.objects.values import NO_CONDITIONS, Conditions, Found, Written
from objstore.objects.writes import Doomed
from objstore.s3.answers import document, empty, eventually, stream
from objstore.s3.buckets import acl_document
from objstore.s3.call import Call
from objstore.s3.errors import (
    S3Fault,
    escape,
    fault_of,
    invalid_argument,
    invalid_request,
    malformed_xml,
    missing_content_length,
    not_implemented,
)
from objstore.s3.headers import (
    about,
    add_checksum,
    byte_range,
    check_acl,
    check_expected_owner,
    checksum_mode,
    copy_source,
    delete_conditions,
    object_headers,
    override,
    parse_date,
    part_number,
    read_conditions,
    version_id,
    wanted_algorithm,
    write_conditions,
)
from objstore.s3.limits import DOCUMENT_SIZE_MAX
from objstore.s3.outbox import Answer
from objstore.s3.xml import XMLNS, Element, checksum_element, parse, timestamp

# Looked for in every request; an istr need not be put into lower case again.
_EXPECTED_OWNER = istr("x-amz-expected-bucket-owner")
_CUSTOMER_KEY = istr("x-amz-server-side-encryption-customer-algorithm")
_CHECKSUM_MODE = istr("x-amz-checksum-mode")

PUT_SIZE_MAX = 5 * 1024**3  # Bytes of one PutObject, UploadPart or CopyObject.
DELETES_MAX = 1000

PARSE_IN_LOOP_MAX = 64 * 1024  # Bytes; longer documents are parsed in a thread.
_ECHO_MAX = 1024  # Characters: no key is longer, and what is longer is not worth an answer of megabytes.

_DOOMED_FIELDS = frozenset(("Key", "VersionId", "ETag", "LastModifiedTime", "Size"))
# For one key more than may be named, so that it is counted and refused.
_DELETE_ELEMENTS_MAX = 2 + (1 + len(_DOOMED_FIELDS)) * (DELETES_MAX + 1)


# --- Read ----------------------------------------------------------------------------------------


async def _find(call: Call) -> tuple[Found, bool]:
    """The version, and whether the client asked for a range or a part."""
    headers = call.headers
    query = call.query
    wanted = byte_range(headers) if hdrs.RANGE in headers else None
    version = part = None
    if query:
        version = version_id(query)
        part = part_number(query)
        if part is not None and "range" in headers:
            raise invalid_request("Cannot specify both Range header and partNumber query parameter")
    if _EXPECTED_OWNER in headers:
        check_expected_owner(headers, call.who)
    if _CUSTOMER_KEY in headers:
        raise invalid_request("The encryption parameters are not applicable to this object.")
    found = await reads.find_object(
        call.store,
        call.who,
        call.bucket,
        call.key,
        version=version,
        conditions=read_conditions(headers),
        byte_range=wanted,
        part_number=part,
    )
    return found, wanted is not None or part is not None


def _headers(call: Call, found: Found) -> tuple[int, CIMultiDict[str]]:
    """Status and headers of a GET or HEAD, Content-Length aside."""
    headers = object_headers(found)
    query = call.query
    status = 200
    if found.ranged:
        status = 206
        last = found.first + found.length - 1
        headers["Content-Range"] = f"bytes {found.first}-{last}/{found.record.size}"
    if query:
        override(headers, query)
        if "versionId" in query:
            headers["x-amz-version-id"] = "null"
        if "partNumber" in query and found.part_count:
            headers["x-amz-mp-parts-count"] = str(found.part_count)
    if _CHECKSUM_MODE in call.headers and checksum_mode(call):
        if "partNumber" in query and found.part_count:
            # The part's own digest, and the type of the object's checksum.
            add_checksum(headers, found.part_checksum, typed=False)
            whole = Checksum.unpack(found.record.checksum)
            if whole is not None and found.part_checksum is not None:
                headers["x-amz-checksum-type"] = whole.type
        elif not found.ranged:
            add_checksum(headers, Checksum.unpack(found.record.checksum))
    return status, headers


async def get_object(call: Call) -> web.StreamResponse:
    found, _ = await _find(call)
    status, headers = _headers(call, found)
    if found.length == 0:
        return Answer(headers, status=status)
    small = await reads.read_small(call.store, found)
    if small is not None:
        assert len(small) == found.length
        return Answer(headers, small if isinstance(small, bytes) else bytes(small), status)
    return await stream(call, status, headers, reads.read(call.store, found), found.length)


async def head_object(call: Call) -> web.Response:
    found, _ = await _find(call)
    status, headers = _headers(call, found)
    headers[hdrs.CONTENT_LENGTH] = str(found.length)
    return Answer(headers, status=status)


async def get_acl(call: Call) -> web.Response:
    """An object's ACL is its bucket's: the owner may do everything, nobody else anything."""
    found, _ = await _find(call)
    return document(acl_document(found.bucket.tenant))


async def put_acl(call: Call) -> web.Response:
    """Taken only if it says what already holds."""
    check_acl(call.headers)
    if "x-amz-acl" not in call.headers:
        raise not_implemented("Setting an ACL other than private")
    await _find(call)
    return empty()


async def get_tagging(call: Call) -> web.Response:
    """No object can have tags yet: an empty set is the truth."""
    await _find(call)
    return document(f"<Tagging{XMLNS}><TagSet></TagSet></Tagging>")


async def get_lock(call: Call) -> web.Response:
    """Retention and legal hold, of a bucket that cannot have object lock yet."""
    await _find(call)
    raise invalid_request("Bucket is missing Object Lock Configuration")


# --- Write ---------------------------------------------------------------------------------------


def written_headers(written: Written) -> CIMultiDict[str]:
    headers = CIMultiDict({"ETag": f'"{written.etag}"'})
    add_checksum(headers, written.checksum)
    return headers


def check_size(call: Call) -> None:
    """Raises: S3Fault MissingContentLength; TooLarge."""
    size = call.body.size
    if size is None:
        raise missing_content_length()
    if size > PUT_SIZE_MAX:
        raise TooLarge(size=size, maximum=PUT_SIZE_MAX)


def _only_the_key(call: Call) -> None:
    """A PUT that names a version, or a part without an upload, must not overwrite the key."""
    for name in ("versionId", "partNumber"):
        if name in call.query:
            raise invalid_argument(f"This operation does not accept {name}.", name, call.query[name])


async def put_object(call: Call) -> web.Response:
    headers = call.headers
    if call.query:
        _only_the_key(call)
    check_size(call)
    if "x-amz-expected-bucket-owner" in headers:
        check_expected_owner(headers, call.who)
    written = await writes.put_object(
        call.store,
        call.who,
        call.bucket,
        call.key,
        about(headers),
        call.body,
        write_conditions(headers),
    )
    return Answer(written_headers(written))


async def delete_object(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    version = version_id(call.query)
    await writes.delete_object(
        call.store,
        call.who,
        call.bucket,
        call.key,
        version=version,
        conditions=delete_conditions(call.headers),
    )
    return empty(204, {"x-amz-version-id": version} if version is not None else None)


def _doomed(element: Element) -> Doomed:
    element.only(_DOOMED_FIELDS)
    etag = element.get("ETag")
    modified = element.get("LastModifiedTime")
    size = element.get("Size")
    conditions = NO_CONDITIONS
    if etag is not None or modified is not None or size is not None:
        seconds = None if modified is None else parse_date(modified)
        if modified is not None and seconds is None:
            raise malformed_xml()
        if size is not None and not (size.isascii() and size.isdigit() and len(size) < 20):
            raise malformed_xml()
        conditions = Conditions(
            if_match=etag,
            if_match_size=None if size is None else int(size),
            if_match_last_modified=seconds,
        )
    key = element.need("Key")
    if not key:
        raise S3Fault("UserKeyMustBeSpecified", 400, "The request must specify a key.")
    return Doomed(key=key, version=element.get("VersionId") or None, conditions=conditions)


def parse_deletes(body: bytes) -> tuple[list[Doomed], bool]:
    """What a DeleteObjects document names, and whether it asks for quiet. Raises: S3Fault."""
    root = parse(body, "Delete", elements_max=_DELETE_ELEMENTS_MAX)
    root.only(frozenset(("Object", "Quiet")))
    quiet = (root.get("Quiet") or "false").strip().lower()
    if quiet not in ("true", "false"):
        raise malformed_xml()
    doomed = [_doomed(child) for child in root.children if child.name == "Object"]
    if not 1 <= len(doomed) <= DELETES_MAX:
        raise malformed_xml()
    return doomed, quiet == "true"


def _promised(call: Call) -> bool:
    """Whether the client sent a digest of the document."""
    return any(
        name.startswith("x-amz-checksum-") or name in ("content-md5", "x-amz-trailer")
        for name in map(str.lower, call.headers)
    )


async def delete_objects(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    if not _promised(call):
        raise invalid_request("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
    body = await call.read_document(DOCUMENT_SIZE_MAX)
    if len(body) <= PARSE_IN_LOOP_MAX:
        doomed, quiet = parse_deletes(body)
    else:
        doomed, quiet = await asyncio.to_thread(parse_deletes, body)
    outcomes = await _delete_allowed(call, doomed)
    rows = []
    for one, outcome in zip(doomed, outcomes, strict=True):
        version = f"<VersionId>{escape(one.version[:_ECHO_MAX])}</VersionId>" if one.version else ""
        if outcome is not None:
            rows.append(_delete_error(one, version, outcome))
        elif not quiet:
            rows.append(f"<Deleted><Key>{escape(one.key)}</Key>{version}</Deleted>")
    return document(f"<DeleteResult{XMLNS}>{''.join(rows)}</DeleteResult>")


async def _delete_allowed(call: Call, doomed: list[Doomed]) -> list[StoreError | None]:
    """Delete those that policies allow; the others are refused one by one."""
    access = call.access
    if access is None:
        return await writes.delete_objects(call.store, call.who, call.bucket, doomed)
    allowed = [access.may_delete(one.key, one.version) for one in doomed]
    chosen = [one for one, may in zip(doomed, allowed, strict=True) if may]
    outcomes = iter(await writes.delete_objects(call.store, call.who, call.bucket, chosen) if chosen else ())
    denied = Denied("no policy allows the deletion of this key")
    return [next(outcomes) if may else denied for may in allowed]


def _delete_error(one: Doomed, version: str, outcome: StoreError) -> str:
    fault = fault_of(outcome)
    return (
        f"<Error><Key>{escape(one.key[:_ECHO_MAX])}</Key>{version}<Code>{fault.code}</Code>"
        f"<Message>{escape(fault.message)}</Message></Error>"
    )


# --- Copy ----------------------------------------------------------------------------------------


def source_of(call: Call) -> copies.Source:
    """What x-amz-copy-source and its conditions say. Raises: S3Fault."""
    bucket, key, version = copy_source(call.headers)
    return copies.Source(
        bucket=bucket,
        key=key,
        version=version,
        conditions=read_conditions(call.headers, "x-amz-copy-source-"),
    )


def check_copy(call: Call) -> None:
    check_expected_owner(call.headers, call.who)
    for name in call.headers:
        if name.lower().startswith("x-amz-copy-source-server-side-encryption"):
            raise not_implemented(header=name.lower())


def copied(root: str, written: Written) -> tuple[str, dict[str, str]]:
    checksum = checksum_element(written.checksum)
    if written.checksum is not None and root == "CopyObjectResult":
        checksum += f"<ChecksumType>{written.checksum.type}</ChecksumType>"
    return (
        f"<{root}{XMLNS}><LastModified>{timestamp(written.order)}</LastModified>"
        f"<ETag>&quot;{written.etag}&quot;</ETag>{checksum}</{root}>"
    ), {}


async def copy_object(call: Call) -> web.StreamResponse:
    headers = call.headers
    _only_the_key(call)
    check_copy(call)
    if "range" in headers:
        raise invalid_argument(
            "The Range header is not supported for this operation", "Range", headers["range"]
        )
    directive = headers.get("x-amz-metadata-directive", "COPY")
    if directive not in ("COPY", "REPLACE"):
        raise invalid_argument("Unknown metadata directive.", "x-amz-metadata-directive", directive)
    tagging = headers.get("x-amz-tagging-directive", "COPY")
    if tagging not in ("COPY", "REPLACE"):
        raise invalid_argument("Unknown tagging directive.", "x-amz-tagging-directive", tagging)
    said = about(headers)  # Also with COPY: it refuses what is not implemented.
    source = source_of(call)
    return await eventually(
        call,
        copies.copy_object(
            call.store,
            call.who,
            source,
            call.bucket,
            call.key,
            about=said if directive == "REPLACE" else None,
            storage_class=said.headers.get(STORAGE_CLASS, ""),
            checksum_algorithm=wanted_algorithm(headers),
            conditions=write_conditions(headers),
        ),
        lambda written: copied("CopyObjectResult", written),
    )
