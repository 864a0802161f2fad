"""S3's words for every way to fail: one row for each leaf of objstore/errors.py, and the XML around them.

The only module that knows which status, code, message and fields AWS gives. Messages and field names are
AWS's own where a recorded answer exists. Handlers raise `S3Fault` (through the helpers below) for what only
S3 knows, and StoreErrors for the rest; `fault_of` turns either into an S3Fault, `render` into XML.

It may not know: aiohttp, requests, the store.
"""

import re
from collections.abc import Callable
from email.utils import formatdate

from objstore import errors

# Long enough to let a flush or a restart of the committer pass, short enough for SDK back-off.
RETRY_AFTER_S = 1


class S3Fault(Exception):
    """An answer that is an error: what the client sees, complete."""

    def __init__(
        self,
        code: str,
        status: int,
        message: str,
        fields: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.code = code
        self.status = status
        self.message = message
        self.fields = fields or {}  # Elements of the XML beside Code and Message, in order.
        self.headers = headers or {}  # Of the response, e.g. Retry-After. Values must be free of CR and LF.


# --- Helpers: what the edge and the handlers refuse by themselves ------------------------------


def access_denied(message: str = "Access Denied", **fields: str) -> S3Fault:
    return S3Fault("AccessDenied", 403, message, fields)


def invalid_argument(message: str, name: str = "", value: str | None = None) -> S3Fault:
    """One argument is wrong: AWS names it and echoes the value."""
    fields = {"ArgumentName": name} if name else {}
    if value is not None:
        fields["ArgumentValue"] = value
    return S3Fault("InvalidArgument", 400, message, fields)


def invalid_request(message: str, **fields: str) -> S3Fault:
    return S3Fault("InvalidRequest", 400, message, fields)


def invalid_uri() -> S3Fault:
    return S3Fault("InvalidURI", 400, "Couldn't parse the specified URI.")


def bad_http(message: str) -> S3Fault:
    """Not HTTP as we accept it: AWS answers such requests 400 BadRequest."""
    return S3Fault("BadRequest", 400, message, headers={"Connection": "close"})


def malformed_xml() -> S3Fault:
    return S3Fault(
        "MalformedXML",
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    )


def not_implemented(feature: str = "", *, header: str = "", note: str = "") -> S3Fault:
    """501. With `header`, AWS's wording and field; else the feature is named in our words."""
    if header:
        fields = {"Header": header}
        if note:
            fields["additionalMessage"] = note
        message = "A header you provided implies functionality that is not implemented"
        return S3Fault("NotImplemented", 501, message, fields)
    message = f"{feature} is not implemented" if feature else "This operation is not implemented"
    return S3Fault("NotImplemented", 501, message)


def method_not_allowed(method: str, resource_type: str, *, allow: str = "") -> S3Fault:
    return S3Fault(
        "MethodNotAllowed",
        405,
        "The specified method is not allowed against this resource.",
        {"Method": method, "ResourceType": resource_type},
        {"Allow": allow} if allow else None,
    )


def missing_content_length() -> S3Fault:
    return S3Fault("MissingContentLength", 411, "You must provide the Content-Length HTTP header.")


def incomplete_body(message: str = "The request body terminated unexpectedly") -> S3Fault:
    return S3Fault("IncompleteBody", 400, message)


def invalid_digest(value: str) -> S3Fault:
    return S3Fault("InvalidDigest", 400, "The Content-MD5 you specified was invalid.", {"Content-MD5": value})


def bad_md5(*, expected: str, calculated: str) -> S3Fault:
    """Both base64 or hex as AWS shows them: ExpectedDigest as the client wrote it."""
    return S3Fault(
        "BadDigest",
        400,
        "The Content-MD5 you specified did not match what we received.",
        {"ExpectedDigest": expected, "CalculatedDigest": calculated},
    )


def bad_checksum(algorithm: str) -> S3Fault:
    return S3Fault("BadDigest", 400, f"The {algorithm} you specified did not match the calculated checksum.")


def payload_mismatch(*, client: str, computed: str) -> S3Fault:
    return S3Fault(
        "XAmzContentSHA256Mismatch",
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
        {"ClientComputedContentSHA256": client, "S3ComputedContentSHA256": computed},
    )


def entity_too_large(*, size: int, maximum: int) -> S3Fault:
    return S3Fault(
        "EntityTooLarge",
        400,
        "Your proposed upload exceeds the maximum allowed size",
        {"ProposedSize": str(size), "MaxSizeAllowed": str(maximum)},
    )


def request_timeout() -> S3Fault:
    return S3Fault(
        "RequestTimeout",
        400,
        "Your socket connection to the server was not read from or written to within the timeout period. "
        "Idle connections will be closed.",
    )


def slow_down(
    message: str = "Please reduce your request rate.", *, retry_after: int = RETRY_AFTER_S
) -> S3Fault:
    """retry_after: seconds."""
    return S3Fault("SlowDown", 503, message, headers={"Retry-After": str(retry_after)})


def service_unavailable(message: str = "Service is unable to handle request.") -> S3Fault:
    return S3Fault("ServiceUnavailable", 503, message, headers={"Retry-After": str(RETRY_AFTER_S)})


def internal_error() -> S3Fault:
    return S3Fault("InternalError", 500, "We encountered an internal error. Please try again.")


# --- One row a leaf ----------------------------------------------------------------------------

_NO_KEY = "The specified key does not exist."
_NO_BUCKET = "The specified bucket does not exist"
_NO_UPLOAD = (
    "The specified upload does not exist. The upload ID may be invalid, or the upload may have been "
    "aborted or completed."
)
_NO_PART = (
    "One or more of the specified parts could not be found.  The part may not have been uploaded, or "
    "the specified entity tag may not match the part's entity tag."
)
_COPY_TO_SELF = (
    "This copy request is illegal because it is trying to copy an object to itself without changing the "
    "object's metadata, storage class, website redirect location or encryption attributes."
)
_CONDITION = "At least one of the pre-conditions you specified did not hold"
_CONFLICTING = "The conditional request cannot succeed due to a conflicting operation against this resource."
_ABORTED = (
    "A conflicting conditional operation is currently in progress against this resource. Please try again."
)
_EXISTS = (
    "The requested bucket name is not available. The bucket namespace is shared by all users of the system. "
    "Please select a different name and try again."
)


def _range(error: errors.BadRange) -> S3Fault:
    return S3Fault(
        "InvalidRange",
        416,
        "The requested range is not satisfiable",
        {"RangeRequested": error.wanted, "ActualObjectSize": str(error.size)},
        {"Content-Range": f"bytes */{error.size}"},
    )


def _part_small(error: errors.PartTooSmall) -> S3Fault:
    return S3Fault(
        "EntityTooSmall",
        400,
        "Your proposed upload is smaller than the minimum allowed size",
        {
            "ProposedSize": str(error.size),
            "MinSizeAllowed": str(error.minimum),
            "PartNumber": str(error.number),
            "ETag": error.etag,
        },
    )


def _metadata(error: errors.MetadataTooLarge) -> S3Fault:
    return S3Fault(
        "MetadataTooLarge",
        400,
        "Your metadata headers exceed the maximum allowed metadata size",
        {"Size": str(error.size), "MaxSizeAllowed": str(error.maximum)},
    )


def _not_modified(error: errors.NotModified) -> S3Fault:
    """No body; the validators go with it."""
    headers = {
        "ETag": f'"{error.etag}"',
        "Last-Modified": formatdate(error.order // 1_000_000, usegmt=True),
    }
    return S3Fault("NotModified", 304, "Not Modified", headers=headers)


def _argument(error: errors.BadArgument) -> S3Fault:
    return invalid_argument(error.message, error.name, error.value if error.name else None)


def _unavailable(_: errors.StoreError) -> S3Fault:
    return service_unavailable()


def _internal(_: errors.StoreError) -> S3Fault:
    return internal_error()


ROWS: dict[type[errors.StoreError], Callable[..., S3Fault]] = {
    errors.NoSuchBucket: lambda e: S3Fault("NoSuchBucket", 404, _NO_BUCKET, {"BucketName": e.bucket}),
    errors.NoSuchKey: lambda e: S3Fault("NoSuchKey", 404, _NO_KEY, {"Key": e.key}),
    errors.BadStorageClass: lambda e: S3Fault(
        "InvalidStorageClass",
        400,
        "The storage class you specified is not valid",
        {"StorageClassRequested": e.storage_class},
    ),
    errors.NoSuchVersion: lambda e: S3Fault(
        "NoSuchVersion", 404, "The specified version does not exist.", {"Key": e.key, "VersionId": e.version}
    ),
    errors.NoSuchUpload: lambda e: S3Fault("NoSuchUpload", 404, _NO_UPLOAD, {"UploadId": e.upload}),
    errors.BucketExists: lambda e: S3Fault("BucketAlreadyExists", 409, _EXISTS, {"BucketName": e.bucket}),
    errors.BucketOwnedByCaller: lambda e: S3Fault(
        "BucketAlreadyOwnedByYou",
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
        {"BucketName": e.bucket},
    ),
    errors.BucketNotEmpty: lambda e: S3Fault(
        "BucketNotEmpty", 409, "The bucket you tried to delete is not empty", {"BucketName": e.bucket}
    ),
    errors.Denied: lambda e: access_denied(str(e) or "Access Denied"),
    errors.ConditionFailed: lambda e: S3Fault(
        "PreconditionFailed", 412, _CONDITION, {"Condition": e.condition}
    ),
    errors.NotModified: _not_modified,
    errors.ConditionalConflict: lambda e: S3Fault(
        "ConditionalRequestConflict", 409, _CONFLICTING, {"Condition": e.condition}
    ),
    errors.BadRange: _range,
    errors.BadPartNumber: lambda e: S3Fault(
        "InvalidPartNumber",
        416,
        "The requested partnumber is not satisfiable",
        {"PartNumberRequested": str(e.wanted), "ActualPartCount": str(e.count)},
    ),
    errors.BadPart: lambda e: S3Fault(
        "InvalidPart", 400, _NO_PART, {"UploadId": e.upload, "PartNumber": str(e.number), "ETag": e.etag}
    ),
    errors.BadPartOrder: lambda e: S3Fault(
        "InvalidPartOrder",
        400,
        "The list of parts was not in ascending order. Parts must be ordered by part number.",
        {"UploadId": e.upload},
    ),
    errors.PartTooSmall: _part_small,
    errors.NoParts: lambda e: invalid_request("You must specify at least one part"),
    errors.ChecksumMismatch: lambda e: bad_checksum(e.algorithm),
    errors.BadArgument: _argument,
    errors.BadRequest: lambda e: invalid_request(str(e) or "Invalid Request"),
    errors.BadName: lambda e: S3Fault(
        "InvalidBucketName", 400, "The specified bucket is not valid.", {"BucketName": e.bucket}
    ),
    errors.KeyTooLong: lambda e: S3Fault(
        "KeyTooLongError",
        400,
        "Your key is too long",
        {"Size": str(e.size), "MaxSizeAllowed": str(e.maximum)},
    ),
    errors.TooLarge: lambda e: entity_too_large(size=e.size, maximum=e.maximum),
    errors.MetadataTooLarge: _metadata,
    errors.CopyToSelf: lambda e: invalid_request(_COPY_TO_SELF),
    errors.QuotaExceeded: lambda e: S3Fault(
        "QuotaExceeded",
        403,
        f"The quota of this {e.scope} does not allow the request",
        {"Scope": e.scope, "Unit": e.unit, "Limit": str(e.limit), "Used": str(e.used)},
    ),
    errors.AccountClosed: lambda e: S3Fault(
        "AccountPastDue" if e.state == "read_only" else "AccountProblem",
        403,
        f"The account of this tenant is {e.state.replace('_', ' ')} and does not allow the request",
    ),
    errors.NotEnoughCapacity: lambda e: S3Fault("InsufficientCapacity", 409, str(e)),
    errors.BucketReplicates: lambda e: S3Fault("InvalidBucketState", 409, str(e)),
    errors.BucketIsReplica: lambda e: access_denied(str(e)),
    errors.ReplicaTakenOver: lambda e: S3Fault("ReplicaTakenOver", 409, str(e)),
    errors.ReplicaSessionOver: lambda e: S3Fault("ReplicaSessionOver", 409, str(e)),
    errors.NotImplementedYet: lambda e: not_implemented(str(e)),
    errors.DiskFailed: _unavailable,
    errors.DiskFull: lambda e: service_unavailable(
        "There is no space left for writes; reads and deletes work."
    ),
    errors.DiskMissing: _unavailable,
    errors.StaleEpoch: _unavailable,
    errors.WriteQuorumNotMet: _unavailable,
    errors.TooFewDisks: _unavailable,
    errors.WeakerPromise: _unavailable,
    errors.MetaUnavailable: _unavailable,
    errors.Overloaded: lambda e: slow_down(),
    errors.Conflict: lambda e: S3Fault("OperationAborted", 409, _ABORTED),
    errors.LimitReached: lambda e: S3Fault(
        "QuotaExceeded", 403, "The quota of this tenant does not allow the request"
    ),
    errors.Corrupt: _internal,
}

_BRANCHES: dict[type[errors.StoreError], Callable[..., S3Fault]] = {
    errors.Rejected: lambda e: invalid_request(str(e)),
    errors.Unavailable: _unavailable,
    errors.StoreError: _internal,
}


def fault_of(error: S3Fault | errors.StoreError) -> S3Fault:
    """The answer to an error. A class without a row takes that of its nearest ancestor."""
    if isinstance(error, S3Fault):
        return error
    for kind in type(error).__mro__:
        row = ROWS.get(kind) or _BRANCHES.get(kind)
        if row is not None:
            return row(error)
    raise AssertionError(f"not a StoreError: {error!r}")


# --- XML ---------------------------------------------------------------------------------------

_SPECIAL = re.compile("[&<>\"'\r\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_ESCAPES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&apos;",
    "\r": "&#13;",
    "\x7f": "&#127;",
}


def escape(text: str) -> str:
    """Text for an element. What XML 1.0 cannot carry at all (most control characters) becomes U+FFFD."""
    return _SPECIAL.sub(lambda match: _ESCAPES.get(match[0], "\ufffd"), text)


def render(fault: S3Fault, *, resource: str, request_id: str, host_id: str) -> bytes:
    """The XML body of an error.

    Args:
        resource: bucket and key as the request named them, "/bucket/key" (decoded).
    """
    fields = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fault.fields.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>{escape(fault.message)}</Message>{fields}"
        f"<Resource>{escape(resource)}</Resource>"
        f"<RequestId>{request_id}</RequestId><HostId>{host_id}</HostId></Error>"
    ).encode()
