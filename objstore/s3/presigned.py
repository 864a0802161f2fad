"""SigV4 in the query: presigned URLs. Parses the query's carrier, then ends in the same check as a header.

A presigned URL authorises exactly one canonical request for at most seven days. Its body is unsigned unless
x-amz-content-sha256 is among the signed headers.
"""

import re

from objstore.clock import utc_text
from objstore.s3.errors import S3Fault, access_denied, invalid_request
from objstore.s3.sigv4 import (
    ALGORITHM,
    SKEW_S,
    UNSIGNED,
    Scope,
    Verified,
    Verifier,
    amz_seconds,
    check_payload_word,
    invalid_token,
    parse_credential,
    parse_signed_headers,
)
from objstore.s3.target import Target, canonical_query

EXPIRES_S_MAX = 7 * 24 * 3600

_NEEDED = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Signature",
    "X-Amz-Date",
    "X-Amz-SignedHeaders",
    "X-Amz-Expires",
)
_NEGATIVE = re.compile(r"-[0-9]{1,20}").fullmatch
_NUMBER = re.compile(r"[0-9]{1,10}").fullmatch  # int() alone takes 1_0, +5, Arabic digits and spaces.


def _wrong(message: str, **fields: str) -> S3Fault:
    return S3Fault("AuthorizationQueryParametersError", 400, message, fields)


async def verify_presigned(
    verifier: Verifier, method: str, target: Target, found: dict[str, str]
) -> Verified:
    """Prove who signed this URL. Raises: S3Fault."""
    query = target.query
    if "X-Amz-Algorithm" not in query and "X-Amz-Credential" not in query and "X-Amz-Signature" not in query:
        # Signature / AWSAccessKeyId / Expires: version 2.
        raise invalid_request(
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
        )
    names = [name for name, _ in target.pairs if name in _NEEDED]
    if len(names) != len(set(names)):
        raise _wrong("Query-string authentication parameters must be given once each.")
    if len(names) != len(_NEEDED):
        raise _wrong(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
            "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
        )
    if query["X-Amz-Algorithm"] != ALGORITHM:
        raise _wrong('X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"')

    credential = parse_credential(query["X-Amz-Credential"])
    if credential is None:
        raise _wrong(
            "Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting "
            '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
        )
    access_key_id, date, region, service, terminator = credential
    if region != verifier.region:
        raise _wrong(
            f"Error parsing the X-Amz-Credential parameter; the region '{region}' is wrong; expecting "
            f"'{verifier.region}'",
            Region=verifier.region,
        )
    if service != "s3":
        raise _wrong(
            f"Error parsing the X-Amz-Credential parameter; incorrect service '{service}'. "
            "This endpoint belongs to 's3'."
        )
    if terminator != "aws4_request":
        raise _wrong(
            f"Error parsing the X-Amz-Credential parameter; incorrect terminal '{terminator}'. "
            "This endpoint uses 'aws4_request'."
        )
    if not parse_signed_headers(query["X-Amz-SignedHeaders"]):
        raise _wrong(
            "X-Amz-SignedHeaders must be lower-case names in ascending order, each once, 'host' among them."
        )

    expires_text = query["X-Amz-Expires"]
    if _NEGATIVE(expires_text):
        raise _wrong("X-Amz-Expires must be non-negative")
    if _NUMBER(expires_text) is None:
        raise _wrong("X-Amz-Expires should be a number")
    expires_s = int(expires_text)
    if expires_s > EXPIRES_S_MAX:
        raise _wrong(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires "
            "must be less than 604800 seconds"
        )

    amz_date = query["X-Amz-Date"]
    seconds = amz_seconds(amz_date)
    if seconds is None:
        raise _wrong("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if amz_date[:8] != date:
        raise _wrong(
            f"Error parsing the X-Amz-Credential parameter; Invalid credential date {date}. "
            "This date is not the same as X-Amz-Date."
        )
    now = verifier.now()
    if seconds - now > SKEW_S:
        raise access_denied("Request is not yet valid", ServerTime=utc_text(now))
    if now >= seconds + expires_s:
        raise S3Fault(
            "AccessDenied",
            403,
            "Request has expired",
            {
                "X-Amz-Expires": expires_text,
                "Expires": utc_text(seconds + expires_s),
                "ServerTime": utc_text(now),
            },
        )
    if "X-Amz-Security-Token" in query:
        raise invalid_token()

    scope = Scope(access_key_id, date, region, query["X-Amz-SignedHeaders"])
    payload = found.get("x-amz-content-sha256", UNSIGNED)
    check_payload_word(payload)
    signed_payload = payload if "x-amz-content-sha256" in scope.signed_set else UNSIGNED
    return await verifier._check(
        method,
        target.canonical_path,
        canonical_query(target.pairs, leave_out="X-Amz-Signature"),
        found,
        scope,
        query["X-Amz-Signature"],
        amz_date,
        signed_payload,
        payload,
        True,
    )
