"""AWS Signature Version 4: who sent this request, proven before anything else looks at it.

`Verifier.verify` is the one place that turns a request into a Principal; app.py calls it for every request
before a route is chosen. Header carrier here, query carrier in presigned.py, both end in `_check`. Anything
that is not a whole, fresh, matching signature is an S3Fault; there is no other way out.

The order is: shape (400), clock and scope (400, 403), headers that had to be signed (403), then the HMAC.
An unknown key does the same HMAC work as a known one.

Speed: the part of an Authorization header before its signature is the same for all requests of a client
in a day, so it is parsed once and kept with its signing key; a typical GET costs one pass over the headers,
one SHA-256 and one HMAC. Only verified requests enter that memory, and it has a bound.

Source: "Signature Calculations for the Authorization Header" (AWS S3 API reference); the checklist of
RELIABILITY, section 4.

It may not know: the store, routes, bodies.
"""

import hmac
import re
import time
from calendar import timegm
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from operator import itemgetter
from typing import Any, Protocol

import msgspec
from multidict import CIMultiDictProxy, MultiMapping

from objstore.clock import utc_text
from objstore.objects.values import Principal
from objstore.s3.errors import S3Fault, access_denied, invalid_argument, invalid_request
from objstore.s3.target import Target, canonical_query_of

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_S = 15 * 60
UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
EMPTY_SHA256 = sha256().hexdigest()  # Of most reads.
PAYLOAD_WORDS = frozenset({UNSIGNED, STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER})

_REMEMBERED_MAX = 4096  # Parsed heads, about 1 KiB each: clients times header sets of a day.
_CHECKED_MAX = 64  # Sets of header names remembered for each.
_DUMMY_SECRET = "0" * 40

_HEX64 = re.compile(r"[0-9a-f]{64}").fullmatch
_AMZ_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z").fullmatch
_HTTP_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{2} "
    r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} "
    r"(?:GMT|[+-]0000)"  # botocore signs with -0000.
).fullmatch
_CREDENTIAL = re.compile(
    r"([\x21-\x2b\x2d\x2e\x30-\x7e]{1,128})/([0-9]{8})/([a-zA-Z0-9-]{1,64})/([a-z0-9-]{1,32})/([a-z0-9_]{1,32})"
).fullmatch
_SIGNED_HEADERS = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+(?:;[a-z0-9!#$%&'*+.^_`|~-]+)*").fullmatch
_SPACES = re.compile(r" {2,}")


class Credential(Protocol):
    """What iam/directory.py knows of an access key."""

    @property
    def secret(self) -> str: ...
    @property
    def principal(self) -> Principal: ...
    @property
    def disabled(self) -> bool: ...


class Directory(Protocol):
    async def credential(self, access_key_id: str) -> Credential | None: ...


class Scope:
    """The parsed part of a signature's carrier that stays the same from request to request."""

    __slots__ = (
        "_inner", "_outer", "_template", "_values", "access_key_id", "checked", "date", "key", "scope",
        "secret", "signed", "signed_set", "signed_text",
    )  # fmt: skip

    def __init__(self, access_key_id: str, date: str, region: str, signed_text: str) -> None:
        self.access_key_id = access_key_id
        self.date = date  # YYYYMMDD
        self.scope = f"{date}/{region}/s3/aws4_request"
        self.signed_text = signed_text
        self.signed = tuple(signed_text.split(";"))
        self.signed_set = frozenset(self.signed)
        self.checked: set[tuple[str, ...]] = set()  # Header sets that were found to be signed as they must.
        self.secret = ""  # Whose signing key the next three are.
        self.key = b""
        self._inner, self._outer = hmac_begun(self.key)
        self._values = itemgetter(*self.signed)
        lines = ["%s", "%s", "%s", *(f"{name.replace('%', '%%')}:%s" for name in self.signed)]
        self._template = "\n".join([*lines, "", signed_text.replace("%", "%%"), "%s"])

    def canonical(
        self, method: str, path: str, query: str, found: dict[str, str], payload: str
    ) -> tuple[str, bool]:
        """The canonical request, and whether every signed header was there (else it counts as empty)."""
        try:
            values = self._values(found)
            whole = True
        except KeyError:
            values = tuple(found.get(name, "") for name in self.signed)
            whole = False
        if len(self.signed) == 1:
            values = (values,) if whole else values
        return self._template % (method, path, query, *values, payload), whole

    def unlock(self, secret: str, region: str) -> None:
        """Compute the signing key, or find it computed."""
        if self.secret != secret or not self.key:
            self.key = signing_key(secret, self.date, region)
            self._inner, self._outer = hmac_begun(self.key)
            self.secret = secret

    def sign(self, text: bytes) -> str:
        """HMAC-SHA256 under the signing key, in hex."""
        inner = self._inner.copy()
        inner.update(text)
        outer = self._outer.copy()
        outer.update(inner.digest())
        signature: str = outer.hexdigest()
        return signature


def hmac_begun(key: bytes) -> tuple[Any, Any]:
    """The two SHA-256 of an HMAC (RFC 2104) that have seen the key and nothing else, to be copied.

    A copy of hmac's own object costs a microsecond more, of the few that a request may cost.
    """
    block = key.ljust(64, b"\0")
    assert len(block) == 64
    return sha256(bytes(byte ^ 0x36 for byte in block)), sha256(bytes(byte ^ 0x5C for byte in block))


class Verified(msgspec.Struct, frozen=True, gc=False):
    """A proven request: who sent it and what its body may be checked against."""

    who: Principal
    payload: str  # x-amz-content-sha256: 64 hex digits or one of PAYLOAD_WORDS.
    presigned: bool
    key: bytes  # Signing key: of chunks, too.
    amz_date: str
    scope: str
    signature: str  # The seed of chunk signatures.
    headers: dict[str, str]  # All of the request's, by lower-case name, duplicates joined.


def signing_key(secret: str, date: str, region: str, service: str = "s3") -> bytes:
    key = hmac.digest(("AWS4" + secret).encode(), date.encode(), "sha256")
    for word in (region, service, "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    return key


@lru_cache(maxsize=256)
def amz_seconds(text: str) -> int | None:
    """`20261121T224118Z` -> seconds since 1970; None if it is not exactly such a date."""
    if _AMZ_DATE(text) is None:
        return None
    try:
        moment = datetime(
            int(text[0:4]),
            int(text[4:6]),
            int(text[6:8]),
            int(text[9:11]),
            int(text[11:13]),
            int(text[13:15]),
        )
    except ValueError:
        return None
    return timegm(moment.timetuple())


def amz_text(seconds: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def http_date_seconds(text: str) -> int | None:
    """An RFC 1123 date, exactly; None otherwise. (strptime alone takes Arabic digits and more.)"""
    if _HTTP_DATE(text) is None:
        return None
    try:
        return timegm(time.strptime(text.rpartition(" ")[0], "%a, %d %b %Y %H:%M:%S"))
    except ValueError:
        return None


def parse_credential(text: str) -> tuple[str, str, str, str, str] | None:
    """`AKID/20261121/us-east-1/s3/aws4_request` -> its five words, or None.

    An access key id may itself contain no slash: ours never do.
    """
    match = _CREDENTIAL(text)
    return None if match is None else (match[1], match[2], match[3], match[4], match[5])


def parse_signed_headers(text: str) -> bool:
    """Lower-case names, sorted, each once, `host` among them."""
    if _SIGNED_HEADERS(text) is None:
        return False
    names = text.split(";")
    return "host" in names and all(a < b for a, b in pairwise(names))


def gather(headers: Mapping[str, str] | MultiMapping[str]) -> dict[str, str]:
    """All headers by lower-case name; duplicates joined by commas in order, spaces folded."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        low = name.lower()
        value = value.strip(" \t")
        if "  " in value:
            value = _SPACES.sub(" ", value)
        if low in found:
            found[low] += "," + value
        else:
            found[low] = value
    return found


def malformed(reason: str, **fields: str) -> S3Fault:
    return S3Fault(
        "AuthorizationHeaderMalformed", 400, f"The authorization header is malformed; {reason}", fields
    )


def _skewed(amz_date: str, now: float) -> S3Fault:
    return S3Fault(
        "RequestTimeTooSkewed",
        403,
        "The difference between the request time and the current time is too large.",
        {
            "RequestTime": amz_date,
            "ServerTime": utc_text(now),
            "MaxAllowedSkewMilliseconds": str(SKEW_S * 1000),
        },
    )


def _bytes_text(text: bytes) -> str:
    return text.hex(" ")


class Verifier:
    """Verifies requests against one directory of keys and one region.

    Concurrency: used by one event loop. `_remembered` maps the constant part of Authorization headers to
    their parsed form; it holds verified ones only and is emptied when full.
    """

    def __init__(self, directory: Directory, region: str, now: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.region = region
        self.now = now  # Wall clock, seconds.
        self._remembered: dict[str, Scope] = {}

    async def verify(self, method: str, target: Target, headers: CIMultiDictProxy[str]) -> Verified:
        """Prove who sent a request.

        Raises: S3Fault. Never returns for an anonymous, unsigned or wrongly signed request.
        """
        found = gather(headers)
        authorization = found.get("authorization")
        if target.query:
            query = target.query
            carried = (
                "X-Amz-Algorithm" in query
                or "X-Amz-Signature" in query
                or "X-Amz-Credential" in query
                or "Signature" in query
                or "AWSAccessKeyId" in query
            )
            if carried:
                if authorization is not None:
                    raise invalid_argument(
                        "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, "
                        "Signature query string parameter or the Authorization header should be specified",
                        "Authorization",
                    )
                from objstore.s3.presigned import verify_presigned  # It imports this module.

                return await verify_presigned(self, method, target, found)
        if not authorization:
            raise access_denied()

        at = authorization.rfind("Signature=")
        head = authorization[:at] if at > 0 else ""
        scope = self._remembered.get(head)
        if scope is None:
            scope, signature = self._parse(authorization)
        else:
            signature = authorization[at + 10 :]

        payload = found.get("x-amz-content-sha256")
        if payload is None:
            raise invalid_request("Missing required header for this request: x-amz-content-sha256")
        check_payload_word(payload)

        amz_date = found.get("x-amz-date")
        if amz_date is None:
            amz_date = _from_date_header(found.get("date"))
        seconds = amz_seconds(amz_date)
        if seconds is None:
            raise access_denied("AWS authentication requires a valid Date or x-amz-date header")
        now = self.now()
        if not -SKEW_S <= seconds - now <= SKEW_S:
            raise _skewed(amz_date, now)
        if amz_date[:8] != scope.date:
            raise malformed(f"Invalid credential date {scope.date}. This date is not the same as X-Amz-Date.")

        verified = await self._check(
            method,
            target.canonical_path,
            canonical_query_of(target) if target.pairs else "",
            found,
            scope,
            signature,
            amz_date,
            payload,
            payload,
            False,
        )
        if at + 74 == len(authorization) and head not in self._remembered:  # Signature= and 64 digits end it.
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[head] = scope
        return verified

    def _parse(self, authorization: str) -> tuple[Scope, str]:
        """The slow path: an Authorization header not seen before. Raises: S3Fault."""
        scheme, _, rest = authorization.partition(" ")
        if scheme == "AWS":
            if ":" not in rest:
                raise invalid_argument(
                    "AWS authorization header is invalid.  Expected AwsAccessKeyId:signature", "Authorization"
                )
            raise invalid_request(
                "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
            )
        if scheme != ALGORITHM:
            if scheme.startswith("AWS4-"):
                raise invalid_request(
                    "The authorization mechanism you have provided is not supported. "
                    "Please use AWS4-HMAC-SHA256."
                )
            raise invalid_argument("Unsupported Authorization Type", "Authorization", authorization[:64])
        words: dict[str, str] = {}
        for piece in rest.split(","):
            name, equals, value = piece.strip(" ").partition("=")
            if not equals or name in words or name not in ("Credential", "SignedHeaders", "Signature"):
                raise malformed(
                    "the authorization header requires exactly the fields Credential, SignedHeaders and "
                    "Signature, each once."
                )
            words[name] = value
        for name in ("Credential", "SignedHeaders", "Signature"):
            if name not in words:
                raise malformed(f"the authorization header requires the {name} field.")
        credential = parse_credential(words["Credential"])
        if credential is None:
            raise malformed(
                'the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
            )
        access_key_id, date, region, service, terminator = credential
        if region != self.region:
            raise malformed(f"the region '{region}' is wrong; expecting '{self.region}'", Region=self.region)
        if service != "s3":
            raise malformed(f"incorrect service '{service}'. This endpoint belongs to 's3'.")
        if terminator != "aws4_request":
            raise malformed(f"incorrect terminal '{terminator}'. This endpoint uses 'aws4_request'.")
        if not parse_signed_headers(words["SignedHeaders"]):
            raise malformed(
                "SignedHeaders must be lower-case names in ascending order, each once, 'host' among them."
            )
        return Scope(access_key_id, date, region, words["SignedHeaders"]), words["Signature"]

    async def _check(
        self,
        method: str,
        canonical_path: str,
        query: str,
        found: dict[str, str],
        scope: Scope,
        signature: str,
        amz_date: str,
        signed_payload: str,
        payload: str,
        presigned: bool,
    ) -> Verified:
        """Everything is shaped well: do the headers and the HMAC agree?"""
        names = tuple(found)
        if names not in scope.checked:
            self._refuse_unsigned(names, scope.signed_set)
            if len(scope.checked) < _CHECKED_MAX:
                scope.checked.add(names)
        canonical, whole = scope.canonical(method, canonical_path, query, found, signed_payload)
        canonical_bytes = canonical.encode("utf-8", "surrogateescape")
        to_sign = f"{ALGORITHM}\n{amz_date}\n{scope.scope}\n{sha256(canonical_bytes).hexdigest()}"

        credential = await self.directory.credential(scope.access_key_id)
        scope.unlock(_DUMMY_SECRET if credential is None else credential.secret, self.region)
        wanted = scope.sign(to_sign.encode())
        matches = signature.isascii() and hmac.compare_digest(wanted, signature)  # It raises on other text.
        if credential is None or credential.disabled:
            raise S3Fault(
                "InvalidAccessKeyId",
                403,
                "The AWS Access Key Id you provided does not exist in our records.",
                {"AWSAccessKeyId": scope.access_key_id},
            )
        if not matches or not whole:
            raise S3Fault(
                "SignatureDoesNotMatch",
                403,
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
                {
                    "AWSAccessKeyId": scope.access_key_id,
                    "StringToSign": to_sign,
                    "SignatureProvided": signature[:256],
                    "StringToSignBytes": _bytes_text(to_sign.encode()),
                    "CanonicalRequest": canonical_bytes.decode("utf-8", "replace"),
                    "CanonicalRequestBytes": _bytes_text(canonical_bytes),
                },
            )
        if "x-amz-security-token" in found:
            raise invalid_token()
        return Verified(
            credential.principal, payload, presigned, scope.key, amz_date, scope.scope, signature, found
        )

    @staticmethod
    def _refuse_unsigned(names: tuple[str, ...], signed: frozenset[str]) -> None:
        """Every x-amz-* header must be signed. x-amz-content-sha256 always is: it ends what is signed."""
        unsigned = [
            n for n in names if n.startswith("x-amz-") and n not in signed and n != "x-amz-content-sha256"
        ]
        if unsigned:
            raise access_denied(
                "There were headers present in the request which were not signed",
                HeadersNotSigned=", ".join(sorted(unsigned)),
            )


def check_payload_word(payload: str) -> None:
    """x-amz-content-sha256 must be exactly a known word or 64 hex digits. Raises: S3Fault."""
    if payload != EMPTY_SHA256 and payload not in PAYLOAD_WORDS and _HEX64(payload) is None:
        raise invalid_argument(
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid "
            "sha256 value.",
            "x-amz-content-sha256",
            payload[:128],
        )


def invalid_token() -> S3Fault:
    """We hand out no session tokens, so none can be right."""
    return S3Fault("InvalidToken", 400, "The provided token is malformed or otherwise invalid.")


def _from_date_header(date: str | None) -> str:
    """The Date header as an amz date; "" if there is none that is right."""
    if date is None:
        return ""
    if _AMZ_DATE(date) is not None:
        return date
    seconds = http_date_seconds(date)
    return "" if seconds is None else amz_text(seconds)
