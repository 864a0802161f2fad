"""Request headers and query parameters into values, and objects into response headers.

Everything a client may write is matched against an anchored ASCII pattern before it is converted, and what
asks for a feature that does not exist is refused here by name: a header ignored would be a promise broken.

May not know: the store, XML.
"""

import re
from base64 import b64decode
from binascii import Error as BinasciiError
from calendar import timegm
from collections.abc import Mapping
from functools import lru_cache
from time import gmtime
from typing import Final
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

from objstore.errors import MetadataTooLarge
from objstore.meta.schema import CHECKSUMS, Checksum
from objstore.objects.placing import STANDARD, STORAGE_CLASS
from objstore.objects.values import NO_CONDITIONS, About, ByteRange, Conditions, Found, Principal
from objstore.s3.call import Call
from objstore.s3.errors import S3Fault, access_denied, invalid_argument, invalid_request, not_implemented
from objstore.s3.xml import checksum_text

Headers = CIMultiDictProxy[str]

METADATA_SIZE_MAX: Final = 2048  # Bytes: names without prefix, and values.
INTEGER_MAX: Final = 2**31 - 1  # What S3 takes for max-keys and friends.
DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"

# --- Numbers, dates, text ------------------------------------------------------------------------

_decimal = re.compile(r"[0-9]{1,19}", re.ASCII).fullmatch
_integer = re.compile(r"-?[0-9]{1,19}", re.ASCII).fullmatch
_MONTH_NAMES: Final = [
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
]
_MONTHS: Final = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_DAY_NAMES: Final = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_rfc1123 = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r" (?:GMT|UTC|\+0000|-0000)"
).fullmatch
_rfc850 = re.compile(
    r"[A-Z][a-z]{5,8}, ([0-9]{2})-([A-Z][a-z]{2})-([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
).fullmatch
_asctime = re.compile(
    r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) ([ 0-9][0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([0-9]{4})"
).fullmatch
_iso8601 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]{1,9})?Z"
).fullmatch


def parse_date(text: str) -> int | None:
    """Seconds since 1970 of an HTTP date (three forms) or an ISO 8601 one; None if it is neither."""
    if match := _rfc1123(text):
        day, month, year, hour, minute, second = match.groups()
    elif match := _rfc850(text):
        day, month, year, hour, minute, second = match.groups()
        year = ("19" if year >= "70" else "20") + year
    elif match := _asctime(text):
        month, day, hour, minute, second, year = match.groups()
    elif match := _iso8601(text):
        year, month, day, hour, minute, second = match.groups()
    else:
        return None
    number = int(month) if month.isdigit() else _MONTHS.get(month, 0)
    parts = (int(year), number, int(day), int(hour), int(minute), int(second))
    if not (
        1 <= parts[1] <= 12 and 1 <= parts[2] <= 31 and parts[3] < 24 and parts[4] < 60 and parts[5] <= 60
    ):
        return None
    try:
        return timegm((*parts, 0, 0, 0))
    except ValueError:  # 31 February.
        return None


@lru_cache(maxsize=8192)
def http_date(seconds: int) -> str:
    year, month, day, hour, minute, second, weekday, *_ = gmtime(seconds)
    date = f"{_DAY_NAMES[weekday]}, {day:02d} {_MONTH_NAMES[month - 1]} {year:04d}"
    return f"{date} {hour:02d}:{minute:02d}:{second:02d} GMT"


def query_number(query: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    """A parameter such as max-keys: 0 to 2**31 - 1, clamped to `most`. Raises: S3Fault InvalidArgument."""
    text = query.get(name)
    if text is None:
        return default
    if not _integer(text) or int(text) > INTEGER_MAX:
        raise invalid_argument(f"Provided {name} not an integer or within integer range", name, text)
    value = int(text)
    if value < 0:
        raise invalid_argument(f"Argument {name} must be an integer between 0 and {INTEGER_MAX}", name, text)
    return min(value, most)


def header_number(headers: Headers, name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not _decimal(text):
        raise invalid_argument(f"The value of {name} is not a number", name, text)
    return int(text)


def part_number(query: Mapping[str, str]) -> int | None:
    """?partNumber, 1 to 10,000. Raises: S3Fault InvalidArgument."""
    text = query.get("partNumber")
    if text is None:
        return None
    if not _decimal(text) or not 1 <= int(text) <= 10_000:
        raise invalid_argument(
            "Part number must be an integer between 1 and 10000, inclusive", "partNumber", text
        )
    return int(text)


def version_id(query: Mapping[str, str]) -> str | None:
    version = query.get("versionId")
    if version == "":
        raise invalid_argument("Version id cannot be the empty string", "versionId", "")
    return version


def readable(value: str) -> str:
    """Header text as Unicode: UTF-8, or else ISO 8859-1. (aiohttp hands over odd bytes as surrogates.)"""
    if value.isascii():
        return value
    raw = value.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


_Q_SAFE: Final = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!*+-/.,:;()[]{}@#$%&'\"<>|~^`\\"
)


def rfc2047(value: str) -> str:
    """Non-ASCII metadata as S3 reads it back: =?UTF-8?Q?...?="""
    if value.isascii():
        return value
    quoted = "".join(
        chr(byte) if byte in _Q_SAFE else "_" if byte == 0x20 else f"={byte:02X}" for byte in value.encode()
    )
    return f"=?UTF-8?Q?{quoted}?="


# --- What a client says of an object -------------------------------------------------------------

_SYSTEM: Final = frozenset(
    (
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "expires",
        "x-amz-website-redirect-location",
    )
)
_REDIRECTS: Final = ("/", "http://", "https://")
_SHOWN: Final = {  # System headers as they are written out.
    "cache-control": "Cache-Control",
    "content-disposition": "Content-Disposition",
    "content-encoding": "Content-Encoding",
    "content-language": "Content-Language",
    "expires": "Expires",
}
_ACLS: Final = frozenset(
    (
        "private",
        "public-read",
        "public-read-write",
        "aws-exec-read",
        "authenticated-read",
        "bucket-owner-read",
        "bucket-owner-full-control",
        "log-delivery-write",
    )
)
_TRUE_OBJECT_ACLS: Final = frozenset(("private", "bucket-owner-read", "bucket-owner-full-control"))
_NOT_YET: Final = (  # Prefixes, without "x-amz-", of headers whose features do not exist.
    "server-side-encryption",
    "object-lock-",
    "write-offset-bytes",
)


def check_acl(headers: Headers, allowed: frozenset[str] = _TRUE_OBJECT_ACLS) -> None:
    """Every bucket and object belongs to one tenant and is closed to all others: an ACL that says just that
    is taken, any other is refused.

    Raises: S3Fault InvalidArgument, InvalidRequest, NotImplemented.
    """
    acl = headers.get("x-amz-acl")
    grants = [name for name in headers if name.lower().startswith("x-amz-grant-")]
    if acl is not None and grants:
        raise invalid_request("Specifying both Canned ACLs and Header Grants is not allowed")
    if grants:
        raise not_implemented(header=grants[0].lower())
    if acl is not None and acl not in allowed:
        if acl not in _ACLS:
            raise invalid_argument("", "x-amz-acl", acl)
        raise not_implemented(header="x-amz-acl", note=f"The canned ACL {acl} is not implemented")


def _check_amz(name: str, value: str, headers: Headers) -> None:
    """One x-amz-* header that is not metadata, of a request that writes an object."""
    rest = name[6:]
    if rest == "acl" or rest.startswith("grant-"):
        check_acl(headers)
    elif rest == "tagging":
        if value:
            raise not_implemented(header=name)
    elif rest.startswith(_NOT_YET):
        raise not_implemented(header=name)


def content_encoding(value: str) -> str:
    """Without aws-chunked, which is framing and not an encoding."""
    if "aws-chunked" not in value:
        return value
    codings = (coding.strip() for coding in value.split(","))
    return ", ".join(coding for coding in codings if coding and coding != "aws-chunked")


def about(headers: Headers) -> About:
    """What is stored beside the bytes. Raises: S3Fault for what is not implemented; MetadataTooLarge."""
    content_type = ""
    system: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for original, value in headers.items():
        name = original.lower()
        if name.startswith("x-amz-"):
            if name.startswith("x-amz-meta-"):
                name = name[11:]
                value = readable(value)
                # Sent twice: one value, as HTTP would have it.
                metadata[name] = f"{metadata[name]},{value}" if name in metadata else value
                continue
            if name == STORAGE_CLASS:
                if value != STANDARD:
                    system[name] = readable(value)  # Whether there is such a class, its bucket decides.
                continue
            if name not in _SYSTEM:
                _check_amz(name, value, headers)
                continue
        if name == "content-type":
            content_type = readable(value)
        elif name in _SYSTEM:
            if name == "content-encoding":
                value = content_encoding(value)
            elif name == "x-amz-website-redirect-location" and not value.startswith(_REDIRECTS):
                raise S3Fault(
                    "InvalidRedirectLocation",
                    400,
                    "The website redirect location must have a prefix of 'http://' or 'https://' or '/'.",
                )
            if value:
                system[name] = readable(value)
    if metadata:
        size = sum(len(name) + len(value.encode()) for name, value in metadata.items())
        if size > METADATA_SIZE_MAX:
            raise MetadataTooLarge(size=size, maximum=METADATA_SIZE_MAX)
    return About(content_type=content_type, headers=system, metadata=metadata)


_metadata_name = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]*", re.ASCII).fullmatch  # Behind x-amz-meta-.


def is_sayable(given: About) -> bool:
    """Whether a client's headers could have said this of an object, for what came in another way.

    All of it becomes headers of answers. Were a Content-Length among them, or a line break, an object's bytes
    could pass for the next answer of a connection that a proxy shares among many.
    """
    values = (given.content_type, *given.headers.values(), *given.metadata.values())
    return (
        given.headers.keys() <= _SYSTEM
        and all(map(_metadata_name, given.metadata))
        and not any(map(_control, values))
    )


def check_expected_owner(headers: Headers, who: Principal) -> None:
    """x-amz-expected-bucket-owner: whoever gets as far as a bucket is of the tenant that owns it.

    Raises: S3Fault AccessDenied.
    """
    for name in ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"):
        expected = headers.get(name)
        if expected is not None and expected != who.tenant:
            raise access_denied()


# --- Conditions and ranges -----------------------------------------------------------------------


_READ_CONDITIONS: Final = [
    hdrs.IF_MATCH,
    hdrs.IF_NONE_MATCH,
    hdrs.IF_MODIFIED_SINCE,
    hdrs.IF_UNMODIFIED_SINCE,
]


def read_conditions(headers: Headers, prefix: str = "") -> Conditions:
    """If-Match and friends of a read, or of a copy's source with `prefix` "x-amz-copy-source-"."""
    names = [prefix + name for name in _READ_CONDITIONS] if prefix else _READ_CONDITIONS
    match, none_match, modified, unmodified = [headers.get(name) for name in names]
    if match is None and none_match is None and modified is None and unmodified is None:
        return NO_CONDITIONS
    return Conditions(
        if_match=match,
        if_none_match=none_match,
        if_modified_since=None if modified is None else parse_date(modified),
        if_unmodified_since=None if unmodified is None else parse_date(unmodified),
    )


def write_conditions(headers: Headers) -> Conditions:
    """If-Match or If-None-Match of a write; ETags and `*` for both (more than AWS takes, as other stores do).

    Raises: S3Fault NotImplemented for both at once.
    """
    match = headers.get("if-match")
    none_match = headers.get("if-none-match")
    if match is None and none_match is None:
        return NO_CONDITIONS
    if match is not None and none_match is not None:
        raise not_implemented(
            header="If-Match,If-None-Match",
            note="Multiple conditional request headers present in the request",
        )
    return Conditions(if_match=match, if_none_match=none_match)


def delete_conditions(headers: Headers) -> Conditions:
    """Raises: S3Fault InvalidArgument (not a number, not a date)."""
    match = headers.get("if-match")
    size = header_number(headers, "x-amz-if-match-size")
    modified = headers.get("x-amz-if-match-last-modified-time")
    if match is None and size is None and modified is None:
        return NO_CONDITIONS
    seconds = None
    if modified is not None:
        seconds = parse_date(modified)
        if seconds is None:  # A condition that cannot be checked must not delete.
            raise invalid_argument("Not a date", "x-amz-if-match-last-modified-time", modified)
    return Conditions(if_match=match, if_match_size=size, if_match_last_modified=seconds)


_range = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.ASCII | re.IGNORECASE).fullmatch


def byte_range(headers: Headers) -> ByteRange | None:
    """None if there is no Range header, or one that S3 ignores: malformed, reversed, or several ranges."""
    text = headers.get("range")
    if text is None:
        return None
    match = _range(text)
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if first and last and int(first) > int(last):
        return None
    named = headers.get("if-range")
    date = None if named is None else parse_date(named)
    return ByteRange(
        first=int(first) if first else None,
        last=int(last) if last else None,
        text=text,
        if_range=named if date is None else date,
    )


_copy_range = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})", re.ASCII).fullmatch


def copy_source_range(headers: Headers) -> tuple[int, int] | None:
    """x-amz-copy-source-range: first and last byte. Raises: S3Fault InvalidArgument."""
    text = headers.get("x-amz-copy-source-range")
    if text is None:
        return None
    match = _copy_range(text)
    if match is None or int(match[1]) > int(match[2]):
        raise invalid_argument(
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are "
            "the zero-based offsets of the first and last bytes to copy",
            "x-amz-copy-source-range",
            readable(text),
        )
    return int(match[1]), int(match[2])


_bad_escape = re.compile(r"%(?![0-9A-Fa-f]{2})").search


def copy_source(headers: Headers) -> tuple[str, str, str | None]:
    """Bucket, key and version of x-amz-copy-source, decoded once; `+` stays `+`.

    Raises: S3Fault InvalidArgument.
    """
    text, *more = headers.getall("x-amz-copy-source", [""])
    fault = invalid_argument("Invalid copy source object key", "x-amz-copy-source", "x-amz-copy-source")
    if more or _bad_escape(text):  # Of two sources whoever looks before us may have judged the other one.
        raise fault
    try:
        # What names a version is looked for before decoding: an encoded `?` is part of the key.
        encoded, mark, encoded_version = readable(text).partition("?versionId=")
        path, version = unquote_to_bytes(encoded).decode(), unquote_to_bytes(encoded_version).decode()
    except UnicodeDecodeError:
        raise fault from None
    bucket, slash, key = path.removeprefix("/").partition("/")
    if not bucket or not slash or not key or (mark and not version):
        raise fault
    if bucket.startswith("arn:"):
        raise not_implemented("Copying from an access point")
    return bucket, key, version if mark else None


# --- Checksums -----------------------------------------------------------------------------------

_DIGEST_SIZES: Final = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}
_ALGORITHM_OF: Final = {f"x-amz-checksum-{name.lower()}": name for name in CHECKSUMS}


def checksum_digest(algorithm: str, text: str) -> bytes | None:
    """The raw digest of base64 text, None if it is not one. A composite's `-N` must be cut off before."""
    try:
        digest = b64decode(text, validate=True)
    except (BinasciiError, ValueError):
        return None
    return digest if len(digest) == _DIGEST_SIZES[algorithm] else None


def checksum_header(headers: Headers) -> tuple[str, str] | None:
    """Algorithm and text of the one x-amz-checksum-<algorithm> header, or None.

    Raises: S3Fault InvalidRequest if there are several.
    """
    found = None
    for name, algorithm in _ALGORITHM_OF.items():
        text = headers.get(name)
        if text is not None:
            if found is not None:
                raise invalid_request(
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
                )
            found = algorithm, text
    return found


def wanted_algorithm(headers: Headers) -> str:
    """x-amz-checksum-algorithm; "" if absent. Raises: S3Fault InvalidRequest."""
    name = headers.get("x-amz-checksum-algorithm")
    if name is None:
        return ""
    algorithm = name.upper()
    if algorithm not in _DIGEST_SIZES:
        raise invalid_request(
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
            "[CRC32, CRC32C, CRC64NVME, SHA1, SHA256]"
        )
    return algorithm


def check_checksum_type(algorithm: str, kind: str) -> None:
    """Of a multipart upload; "" is the algorithm's own. Raises: S3Fault InvalidRequest: no such pair."""
    if kind not in ("", "FULL_OBJECT", "COMPOSITE"):
        raise invalid_request("Value for x-amz-checksum-type header is invalid.")
    if (algorithm == "CRC64NVME" and kind == "COMPOSITE") or (
        algorithm in ("SHA1", "SHA256") and kind == "FULL_OBJECT"
    ):
        raise invalid_request(
            f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm."
        )


def upload_checksum(headers: Headers) -> tuple[str, str]:
    """Algorithm and type of a new multipart upload; "", "" if the client names none.

    Raises: S3Fault InvalidRequest for a combination that cannot be.
    """
    algorithm = wanted_algorithm(headers)
    kind = headers.get("x-amz-checksum-type", "").upper()
    if not algorithm:
        if kind:
            raise invalid_request(
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
            )
        return "", ""
    check_checksum_type(algorithm, kind)
    if not kind:
        kind = "FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE"
    return algorithm, kind


_CHECKSUM_HEADERS: Final = {name: f"x-amz-checksum-{name.lower()}" for name in CHECKSUMS}


def add_checksum(headers: CIMultiDict[str], checksum: Checksum | None, *, typed: bool = True) -> None:
    if checksum is not None:
        headers[_CHECKSUM_HEADERS[checksum.algorithm]] = checksum_text(checksum)
        if typed:
            headers["x-amz-checksum-type"] = checksum.type


# --- An object as response headers ---------------------------------------------------------------

_OVERRIDES: Final = {
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
    "response-content-language": "Content-Language",
    "response-content-type": "Content-Type",
    "response-expires": "Expires",
}
_control = re.compile("[\x00-\x08\x0a-\x1f\x7f]").search


def object_headers(found: Found) -> CIMultiDict[str]:
    """What every GET and HEAD of this version shows, whatever was asked for."""
    record = found.record
    extra = record.extra
    headers: CIMultiDict[str] = CIMultiDict()
    headers[hdrs.LAST_MODIFIED] = http_date(record.order // 1_000_000)
    headers[hdrs.ETAG] = f'"{found.etag}"'
    headers[hdrs.ACCEPT_RANGES] = "bytes"
    if extra is None:
        headers[hdrs.CONTENT_TYPE] = DEFAULT_CONTENT_TYPE
        return headers
    headers[hdrs.CONTENT_TYPE] = extra.content_type or DEFAULT_CONTENT_TYPE
    for name, value in extra.headers.items():
        headers[_SHOWN.get(name, name)] = value
    for name, value in extra.metadata.items():
        headers["x-amz-meta-" + name] = value if value.isascii() else rfc2047(value)
    return headers


def override(headers: CIMultiDict[str], query: Mapping[str, str]) -> None:
    """response-* parameters. Raises: S3Fault InvalidArgument (what no header can carry)."""
    for name, value in query.items():
        shown = _OVERRIDES.get(name)
        if shown is None:
            continue
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise invalid_argument(
                "Header value cannot be represented using ISO-8859-1.", name, value
            ) from None
        if _control(value):
            raise invalid_argument("Header value contains control characters.", name, value)
        headers[shown] = value


def checksum_mode(call: Call) -> bool:
    return call.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
