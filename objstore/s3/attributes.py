"""GetObjectAttributes: what is known of an object, without its bytes."""

from typing import Final

from aiohttp import web

from objstore.meta.schema import Checksum
from objstore.objects import multipart, reads
from objstore.objects.placing import STANDARD, storage_class_of
from objstore.objects.values import Found
from objstore.s3.answers import document
from objstore.s3.call import Call
from objstore.s3.errors import invalid_argument, invalid_request
from objstore.s3.headers import check_expected_owner, http_date, query_number, read_conditions, version_id
from objstore.s3.xml import XMLNS, checksum_element

PARTS_MAX: Final = 1000
_KNOWN: Final = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")


def _wanted(call: Call) -> set[str]:
    """Raises: S3Fault."""
    listed = ",".join(call.headers.getall("x-amz-object-attributes", []))
    names = {name.strip() for name in listed.split(",") if name.strip()}
    if not names:
        raise invalid_request(
            "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing "
            "or empty"
        )
    if not names.issubset(_KNOWN):
        raise invalid_argument("Invalid attribute name specified.", "x-amz-object-attributes", listed)
    return names


async def _parts(call: Call, found: Found) -> str:
    numbers = {
        name: call.headers[name]
        for name in ("x-amz-max-parts", "x-amz-part-number-marker")
        if name in call.headers
    }
    limit = query_number(numbers, "x-amz-max-parts", default=PARTS_MAX, most=PARTS_MAX)
    after = query_number(numbers, "x-amz-part-number-marker", default=0, most=10_000)
    parts, count, truncated = await multipart.object_parts(
        call.store, call.who, call.bucket, call.key, after=after, limit=limit
    )
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><Size>{size}</Size>{checksum_element(checksum)}</Part>"
        for number, size, checksum in parts
    )
    last = parts[-1][0] if parts else after
    return (
        f"<ObjectParts><PartsCount>{count}</PartsCount><PartNumberMarker>{after}</PartNumberMarker>"
        f"<NextPartNumberMarker>{last}</NextPartNumberMarker><MaxParts>{limit}</MaxParts>"
        f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>{rows}</ObjectParts>"
    )


async def get_attributes(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    wanted = _wanted(call)
    if "x-amz-server-side-encryption-customer-algorithm" in call.headers:
        raise invalid_request("The encryption parameters are not applicable to this object.")
    version = version_id(call.query)
    found = await reads.find_object(
        call.store,
        call.who,
        call.bucket,
        call.key,
        version=version,
        conditions=read_conditions(call.headers),
    )
    text = ""
    if "ETag" in wanted:
        text += f"<ETag>{found.etag}</ETag>"
    if "Checksum" in wanted:
        checksum = Checksum.unpack(found.record.checksum)
        if checksum is not None:
            kind = f"<ChecksumType>{checksum.type}</ChecksumType>"
            text += f"<Checksum>{checksum_element(checksum)}{kind}</Checksum>"
    if "ObjectParts" in wanted and found.part_count:
        text += await _parts(call, found)
    if "StorageClass" in wanted:
        text += f"<StorageClass>{storage_class_of(found.record.extra) or STANDARD}</StorageClass>"
    if "ObjectSize" in wanted:
        text += f"<ObjectSize>{found.record.size}</ObjectSize>"
    headers = {"Last-Modified": http_date(found.record.order // 1_000_000)}
    if version is not None:
        headers["x-amz-version-id"] = "null"
    return document(f"<GetObjectAttributesResponse{XMLNS}>{text}</GetObjectAttributesResponse>", headers)
