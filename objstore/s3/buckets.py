"""Buckets over HTTP: list, create, head, delete, where they are, and what they are not configured for."""

import re
from collections.abc import Callable

from aiohttp import web

from objstore.meta.schema import BucketRecord
from objstore.objects import buckets
from objstore.objects.placing import sites_open_to_all
from objstore.s3.answers import document, empty
from objstore.s3.call import Call, Handler
from objstore.s3.errors import S3Fault, escape, invalid_argument, malformed_xml, not_implemented
from objstore.s3.headers import check_acl, check_expected_owner, query_number
from objstore.s3.listing import continuation, continue_after
from objstore.s3.xml import XMLNS, owner, parse, timestamp

BUCKETS_MAX = 10_000  # Of one page, with or without max-buckets.

_TRUE_BUCKET_ACLS = frozenset(("private",))
_REGION = re.compile(r"EU|[a-z]{2}(?:-gov|-iso[a-z]?)?-[a-z]+-[0-9]").fullmatch


async def list_buckets(call: Call) -> web.Response:
    query = call.query
    limit = query_number(query, "max-buckets", default=BUCKETS_MAX, most=BUCKETS_MAX)
    if limit == 0:
        raise invalid_argument(
            f"Argument max-buckets must be between 1 and {BUCKETS_MAX}", "max-buckets", "0"
        )
    prefix = query.get("prefix", "")
    region = query.get("bucket-region")
    after = continue_after(query.get("continuation-token", ""))
    page: list[tuple[str, BucketRecord]] = []
    follows = ""
    if region is None or region == call.store.region:  # Every bucket lies in the store's own region.
        page, follows = await buckets.list_buckets(
            call.store, call.who.tenant, prefix=prefix, after=after, limit=limit, project=call.who.project
        )
    rows = "".join(
        f"<Bucket><Name>{name}</Name><CreationDate>{timestamp(record.created_us)}</CreationDate>"
        f"<BucketRegion>{escape(record.region or call.store.region)}</BucketRegion></Bucket>"
        for name, record in page
    )
    tail = f"<ContinuationToken>{continuation(follows)}</ContinuationToken>" if follows else ""
    if "prefix" in query:
        tail += f"<Prefix>{escape(prefix)}</Prefix>"
    return document(
        f"<ListAllMyBucketsResult{XMLNS}>{owner(call.who.tenant)}<Buckets>{rows}</Buckets>{tail}"
        "</ListAllMyBucketsResult>"
    )


def _check_location(wanted: str, region: str) -> None:
    """Where no site is named: the one region there is may be, save us-east-1, which S3 names by silence."""
    if wanted == "" or (wanted == region and region != "us-east-1"):
        return
    if region == "us-east-1" and (wanted == region or not _REGION(wanted)):
        raise S3Fault(
            "InvalidLocationConstraint",
            400,
            "The specified location-constraint is not valid",
            {"LocationConstraint": wanted},
        )
    raise S3Fault(
        "IllegalLocationConstraintException",
        400,
        f"The {wanted} location constraint is incompatible for the region specific endpoint this request was "
        "sent to.",
    )


async def create_bucket(call: Call) -> web.Response:
    headers = call.headers
    check_acl(headers, _TRUE_BUCKET_ACLS)
    lock = headers.get("x-amz-bucket-object-lock-enabled", "false").lower()
    if lock == "true":
        raise not_implemented(header="x-amz-bucket-object-lock-enabled")
    if lock != "false":
        raise invalid_argument("Invalid boolean", "x-amz-bucket-object-lock-enabled", lock)
    ownership = headers.get("x-amz-object-ownership")
    if ownership is not None and ownership != "BucketOwnerEnforced":
        if ownership not in ("BucketOwnerPreferred", "ObjectWriter"):
            raise invalid_argument(
                f"Invalid x-amz-object-ownership header: {ownership}", "x-amz-object-ownership"
            )
        raise not_implemented(header="x-amz-object-ownership")
    body = await call.read_document(64 * 1024)
    policy = ""
    if body:
        configuration = parse(body, "CreateBucketConfiguration")
        for child in configuration.children:
            if child.name not in ("LocationConstraint", "Tags", "Location", "Bucket"):
                raise malformed_xml()
            if child.name != "LocationConstraint" and (child.children or child.text.strip()):
                raise not_implemented(f"{child.name} of a CreateBucketConfiguration")
        wanted = configuration.get("LocationConstraint") or ""
        if wanted and wanted != call.store.region and wanted in await sites_open_to_all(call.store):
            policy = wanted  # A site's name is that of its policy.
        else:
            _check_location(wanted, call.store.region)
    await buckets.create_bucket(call.store, call.who, call.bucket, region=call.store.region, policy=policy)
    return empty(headers={"Location": f"/{call.bucket}"})


async def head_bucket(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    record = await buckets.find_bucket(call.store, call.who, call.bucket)
    return empty(
        headers={
            "Content-Type": "application/xml",
            "x-amz-bucket-region": record.region or call.store.region,
            "x-amz-access-point-alias": "false",
        }
    )


async def delete_bucket(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    await buckets.delete_bucket(call.store, call.who, call.bucket)
    return empty(204)


async def get_location(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    record = await buckets.find_bucket(call.store, call.who, call.bucket)
    region = record.region or call.store.region
    where = "" if region == "us-east-1" else escape(region)
    return document(f"<LocationConstraint{XMLNS}>{where}</LocationConstraint>")


def acl_document(tenant: str) -> str:
    """The one ACL there is: the owner may do everything, nobody else anything."""
    grantee = owner(tenant, "Grantee").replace(
        "<Grantee>",
        '<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser">',
    )
    return (
        f"<AccessControlPolicy{XMLNS}>{owner(tenant)}<AccessControlList><Grant>{grantee}"
        "<Permission>FULL_CONTROL</Permission></Grant></AccessControlList></AccessControlPolicy>"
    )


async def get_acl(call: Call) -> web.Response:
    check_expected_owner(call.headers, call.who)
    record = await buckets.find_bucket(call.store, call.who, call.bucket)
    return document(acl_document(record.tenant))


async def put_acl(call: Call) -> web.Response:
    """Taken only if it says what already holds."""
    check_expected_owner(call.headers, call.who)
    check_acl(call.headers, _TRUE_BUCKET_ACLS)
    if "x-amz-acl" not in call.headers:
        raise not_implemented("Setting an ACL other than private")
    await buckets.find_bucket(call.store, call.who, call.bucket)
    return empty()


def unset(code: str, message: str) -> Handler:
    """Reads a configuration that no bucket can have yet: AWS's 404 for one that is not set."""

    async def answer(call: Call) -> web.Response:
        check_expected_owner(call.headers, call.who)
        await buckets.find_bucket(call.store, call.who, call.bucket)
        raise S3Fault(code, 404, message, {"BucketName": call.bucket})

    return answer


def default(document_of: Callable[[], str]) -> Handler:
    """Reads a configuration whose unset state is a document, and true of every bucket."""

    async def answer(call: Call) -> web.Response:
        check_expected_owner(call.headers, call.who)
        await buckets.find_bucket(call.store, call.who, call.bucket)
        return document(document_of())

    return answer
