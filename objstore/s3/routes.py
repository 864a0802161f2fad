"""The whole S3 API as rows: what is answered, what is known and answers 501, and who may.

`choose` finds the row of a request. It never falls back from a sub-resource to the plain operation: a PUT of
a key with an unknown sub-resource must not overwrite the key.
"""

from collections.abc import Mapping
from typing import Final

from objstore.s3 import attributes, buckets, listing, multipart, objects, replica
from objstore.s3.actions import ACTIONS
from objstore.s3.call import Handler, Route
from objstore.s3.errors import S3Fault, invalid_argument, method_not_allowed, not_implemented
from objstore.s3.xml import XMLNS


def _row(
    operation: str,
    method: str,
    target: str,
    flag: str | None = None,
    *,
    header: str | None = None,
    handler: Handler | None = None,
    rule: str = "tenant",
    each_key: bool = False,
) -> Route:
    return Route(
        operation=operation,
        method=method,
        target=target,
        flag=flag,
        header=header,
        handler=handler,
        rule=rule,
        actions=ACTIONS.get(operation, ()),
        each_key=each_key,
    )


def _absent(method: str, target: str, operations: str) -> list[Route]:
    """Rows known to S3 and not to us: "Operation:flag ..."."""
    return [
        _row(operation, method, target, flag)
        for operation, _, flag in (pair.partition(":") for pair in operations.split())
    ]


def _unset(operation: str, flag: str, code: str, message: str) -> Route:
    return _row(operation, "GET", "bucket", flag, handler=buckets.unset(code, message))


def _default(operation: str, flag: str, document: str) -> Route:
    return _row(operation, "GET", "bucket", flag, handler=buckets.default(lambda: document))


ROUTES: Final[list[Route]] = [
    # --- Service
    _row("ListBuckets", "GET", "service", handler=buckets.list_buckets, rule="any-user"),
    *_absent("POST", "service", "PostService:"),
    # --- Buckets
    _row("CreateBucket", "PUT", "bucket", handler=buckets.create_bucket, rule="any-user"),
    _row("HeadBucket", "HEAD", "bucket", handler=buckets.head_bucket),
    _row("DeleteBucket", "DELETE", "bucket", handler=buckets.delete_bucket),
    _row("GetBucketLocation", "GET", "bucket", "location", handler=buckets.get_location),
    _row("GetBucketAcl", "GET", "bucket", "acl", handler=buckets.get_acl),
    _row("PutBucketAcl", "PUT", "bucket", "acl", handler=buckets.put_acl),
    # Unset configurations, read: nothing can set them yet, so this is what AWS answers before anything is.
    _default(
        "GetBucketVersioning", "versioning", f"<VersioningConfiguration{XMLNS}></VersioningConfiguration>"
    ),
    _default("GetBucketLogging", "logging", f"<BucketLoggingStatus{XMLNS}></BucketLoggingStatus>"),
    _default(
        "GetBucketNotificationConfiguration",
        "notification",
        f"<NotificationConfiguration{XMLNS}></NotificationConfiguration>",
    ),
    _default(
        "GetBucketRequestPayment",
        "requestPayment",
        f"<RequestPaymentConfiguration{XMLNS}><Payer>BucketOwner</Payer></RequestPaymentConfiguration>",
    ),
    _default(
        "GetBucketAccelerateConfiguration",
        "accelerate",
        f"<AccelerateConfiguration{XMLNS}></AccelerateConfiguration>",
    ),
    _default(
        "GetBucketOwnershipControls",
        "ownershipControls",
        f"<OwnershipControls{XMLNS}><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>"
        "</OwnershipControls>",
    ),
    _unset("GetBucketPolicy", "policy", "NoSuchBucketPolicy", "The bucket policy does not exist"),
    _unset("GetBucketPolicyStatus", "policyStatus", "NoSuchBucketPolicy", "The bucket policy does not exist"),
    _unset("GetBucketTagging", "tagging", "NoSuchTagSet", "The TagSet does not exist"),
    _unset(
        "GetBucketLifecycleConfiguration",
        "lifecycle",
        "NoSuchLifecycleConfiguration",
        "The lifecycle configuration does not exist",
    ),
    _unset("GetBucketCors", "cors", "NoSuchCORSConfiguration", "The CORS configuration does not exist"),
    _unset(
        "GetBucketWebsite",
        "website",
        "NoSuchWebsiteConfiguration",
        "The specified bucket does not have a website configuration",
    ),
    _unset(
        "GetBucketReplication",
        "replication",
        "ReplicationConfigurationNotFoundError",
        "The replication configuration was not found",
    ),
    _unset(
        "GetBucketEncryption",
        "encryption",
        "ServerSideEncryptionConfigurationNotFoundError",
        "The server side encryption configuration was not found",
    ),
    _unset(
        "GetObjectLockConfiguration",
        "object-lock",
        "ObjectLockConfigurationNotFoundError",
        "Object Lock configuration does not exist for this bucket",
    ),
    _unset(
        "GetPublicAccessBlock",
        "publicAccessBlock",
        "NoSuchPublicAccessBlockConfiguration",
        "The public access block configuration was not found",
    ),
    *_absent(
        "GET",
        "bucket",
        "GetBucketAnalyticsConfiguration:analytics GetBucketInventoryConfiguration:inventory "
        "GetBucketMetricsConfiguration:metrics GetBucketIntelligentTieringConfiguration:intelligent-tiering "
        "GetBucketMetadataTableConfiguration:metadataTable "
        "GetBucketMetadataConfiguration:metadataConfiguration GetBucketAbac:abac CreateSession:session",
    ),
    *_absent(
        "PUT",
        "bucket",
        "PutBucketVersioning:versioning PutBucketPolicy:policy PutBucketTagging:tagging "
        "PutBucketLifecycleConfiguration:lifecycle PutBucketCors:cors PutBucketWebsite:website "
        "PutBucketReplication:replication PutBucketEncryption:encryption "
        "PutObjectLockConfiguration:object-lock PutPublicAccessBlock:publicAccessBlock "
        "PutBucketOwnershipControls:ownershipControls PutBucketLogging:logging "
        "PutBucketNotificationConfiguration:notification PutBucketRequestPayment:requestPayment "
        "PutBucketAccelerateConfiguration:accelerate PutBucketAnalyticsConfiguration:analytics "
        "PutBucketInventoryConfiguration:inventory PutBucketMetricsConfiguration:metrics "
        "PutBucketIntelligentTieringConfiguration:intelligent-tiering PutBucketAbac:abac "
        "UpdateBucketMetadataInventoryTableConfiguration:metadataInventoryTable "
        "UpdateBucketMetadataJournalTableConfiguration:metadataJournalTable",
    ),
    *_absent(
        "DELETE",
        "bucket",
        "DeleteBucketPolicy:policy DeleteBucketTagging:tagging DeleteBucketLifecycle:lifecycle "
        "DeleteBucketCors:cors DeleteBucketWebsite:website DeleteBucketReplication:replication "
        "DeleteBucketEncryption:encryption DeletePublicAccessBlock:publicAccessBlock "
        "DeleteBucketOwnershipControls:ownershipControls DeleteBucketAnalyticsConfiguration:analytics "
        "DeleteBucketInventoryConfiguration:inventory DeleteBucketMetricsConfiguration:metrics "
        "DeleteBucketIntelligentTieringConfiguration:intelligent-tiering "
        "DeleteBucketMetadataTableConfiguration:metadataTable "
        "DeleteBucketMetadataConfiguration:metadataConfiguration",
    ),
    *_absent(
        "POST",
        "bucket",
        "PostObject: PostBucketLogging:logging CreateBucketMetadataTableConfiguration:metadataTable "
        "CreateBucketMetadataConfiguration:metadataConfiguration",
    ),
    *_absent("OPTIONS", "bucket", "PreflightBucket:"),
    # --- Listing
    _row("ListObjects", "GET", "bucket", handler=listing.list_objects),
    _row("ListObjectsV2", "GET", "bucket", "list-type", handler=listing.list_objects_v2),
    _row("ListObjectVersions", "GET", "bucket", "versions", handler=listing.list_object_versions),
    _row("ListMultipartUploads", "GET", "bucket", "uploads", handler=multipart.list_uploads),
    # --- Objects
    _row("DeleteObjects", "POST", "bucket", "delete", handler=objects.delete_objects, each_key=True),
    _row("GetObject", "GET", "object", handler=objects.get_object),
    _row("HeadObject", "HEAD", "object", handler=objects.head_object),
    _row("PutObject", "PUT", "object", handler=objects.put_object),
    _row("CopyObject", "PUT", "object", header="x-amz-copy-source", handler=objects.copy_object),
    _row("DeleteObject", "DELETE", "object", handler=objects.delete_object),
    _row("GetObjectAttributes", "GET", "object", "attributes", handler=attributes.get_attributes),
    _row("GetObjectAcl", "GET", "object", "acl", handler=objects.get_acl),
    _row("PutObjectAcl", "PUT", "object", "acl", handler=objects.put_acl),
    _row("GetObjectTagging", "GET", "object", "tagging", handler=objects.get_tagging),
    _row("GetObjectRetention", "GET", "object", "retention", handler=objects.get_lock),
    _row("GetObjectLegalHold", "GET", "object", "legal-hold", handler=objects.get_lock),
    *_absent("GET", "object", "GetObjectTorrent:torrent GetObjectLambda:object-lambda"),
    *_absent(
        "PUT",
        "object",
        "PutObjectTagging:tagging PutObjectRetention:retention PutObjectLegalHold:legal-hold "
        "RenameObject:renameObject UpdateObjectEncryption:encryption AppendObject:append",
    ),
    *_absent("DELETE", "object", "DeleteObjectTagging:tagging"),
    *_absent(
        "POST",
        "object",
        "PostObjectForm: SelectObjectContent:select RestoreObject:restore AppendObject:append",
    ),
    *_absent("OPTIONS", "object", "PreflightObject:"),
    # --- Multipart
    _row("CreateMultipartUpload", "POST", "object", "uploads", handler=multipart.create_upload),
    _row("UploadPart", "PUT", "object", "uploadId", handler=multipart.upload_part),
    _row(
        "UploadPartCopy",
        "PUT",
        "object",
        "uploadId",
        header="x-amz-copy-source",
        handler=multipart.upload_part_copy,
    ),
    _row("CompleteMultipartUpload", "POST", "object", "uploadId", handler=multipart.complete_upload),
    _row("AbortMultipartUpload", "DELETE", "object", "uploadId", handler=multipart.abort_upload),
    _row("ListParts", "GET", "object", "uploadId", handler=multipart.list_parts),
    # --- Replication: not S3's, spoken between two of our stores
    _row("AttachReplica", "PUT", "bucket", replica.FLAG, handler=replica.attach),
    _row("OpenReplicaSession", "POST", "bucket", replica.FLAG, handler=replica.open_session),
    _row("ListReplica", "GET", "bucket", replica.FLAG, handler=replica.listed),
    _row("PutReplica", "PUT", "object", replica.FLAG, handler=replica.put),
    _row("PostReplica", "POST", "object", replica.FLAG, handler=replica.post),
    _row("DeleteReplica", "DELETE", "object", replica.FLAG, handler=replica.delete),
]

# --- Finding the row -----------------------------------------------------------------------------

_PLAIN_QUERY: Final = frozenset(  # Parameters that mean something, or nothing, when their value is empty.
    (
        "prefix",
        "delimiter",
        "marker",
        "max-keys",
        "encoding-type",
        "continuation-token",
        "start-after",
        "fetch-owner",
        "key-marker",
        "version-id-marker",
        "upload-id-marker",
        "max-uploads",
        "max-parts",
        "part-number-marker",
        "max-buckets",
        "bucket-region",
        "partNumber",
        "versionId",
        "AWSAccessKeyId",
        "Signature",
        "Expires",
        "allow-unordered",
    )
)

_Key = tuple[str, str]
_plain: dict[_Key, Route] = {}
_with_header: dict[_Key, list[Route]] = {}
_flagged: dict[_Key, dict[str, Route]] = {}
_flagged_with_header: dict[tuple[str, str, str], Route] = {}
for _route in ROUTES:
    assert _route.rule, f"{_route.operation} says nobody may"
    _where = (_route.method, _route.target)
    if not _route.flag:
        if _route.header is None:
            assert _where not in _plain, _route
            _plain[_where] = _route
        else:
            _with_header.setdefault(_where, []).append(_route)
    elif _route.header is None:
        assert _route.flag not in _flagged.setdefault(_where, {}), _route
        _flagged[_where][_route.flag] = _route
    else:
        _flagged_with_header[(*_where, _route.flag)] = _route
_FLAGS: Final = frozenset(route.flag for route in ROUTES if route.flag)
_METHODS: Final = frozenset(route.method for route in ROUTES)
_QUIET: Final[
    Mapping[_Key, frozenset[str]]
] = {  # Sub-resources that these methods take as parameters or as nothing.
    ("GET", "object"): frozenset(("list-type",)),
}


def choose(method: str, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Route:
    """The row of a request. `handler` None in it means 501.

    Raises: S3Fault MethodNotAllowed (405), NotImplemented (501: an unknown sub-resource or method),
    InvalidArgument (two sub-resources at once).
    """
    target = "object" if key else "bucket" if bucket else "service"
    where = (method, target)
    if query:
        flags = _flagged.get(where, {})
        found = None
        for name in query:
            if name in flags:
                if found is not None:
                    raise invalid_argument(
                        f"Conflicting query string parameters: {found}, {name}", "ResourceType", found
                    )
                found = name
            elif name in _FLAGS:
                if name not in _QUIET.get(where, ()):
                    raise _wrong_method(method, target)
            elif not query[name] and name not in _PLAIN_QUERY and not _ignored(name):
                raise not_implemented(f"The sub-resource {name}")
        if found is not None:
            route = _flagged_with_header.get((method, target, found))
            if route is not None and route.header is not None and route.header in headers:
                return route
            return flags[found]
    for route in _with_header.get(where, ()):
        if route.header is not None and route.header in headers:
            return route
    plain = _plain.get(where)
    if plain is None:
        if method not in _METHODS:
            raise not_implemented(f"The method {method}")
        raise _wrong_method(method, target)
    return plain


def _ignored(name: str) -> bool:
    """x-id, X-Amz-... and other x- parameters mean nothing here; response-... may be empty."""
    return name.lower().startswith(("x-", "response-"))


def _wrong_method(method: str, target: str) -> S3Fault:
    return method_not_allowed(method, target.upper())
