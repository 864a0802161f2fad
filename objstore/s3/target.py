"""What a request's target names: bucket, key and query, decoded exactly once, strictly.

aiohttp's own `path`, `query` and `match_info` decode so that distinct keys collide; nothing here uses them.
The input is the raw request target as it stood in the request line. Percent-escapes decode to bytes,
the bytes must be UTF-8, and a broken escape is an error, never literal text. No path is normalised:
`//`, `.` and `..` are parts of keys.

Pure functions; it may not know: aiohttp, the store.
"""

import re
from urllib.parse import quote, unquote_to_bytes

import msgspec

from objstore.errors import KeyTooLong
from objstore.s3.errors import S3Fault, bad_http, fault_of, invalid_uri

_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*", re.ASCII).fullmatch  # Its own canonical form.
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_.~-]*", re.ASCII).fullmatch
# A query of words that are their own canonical form, as most clients send them: escaped is only what must be.
# Written so that there is one way to match it: a refusal takes no longer than a match.
_ESCAPE = r"%(?:[018-9A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF])"
_WORD = rf"[A-Za-z0-9_.~-]*(?:{_ESCAPE}[A-Za-z0-9_.~-]*)*"
_PARAMETER = rf"(?=[^=&]){_WORD}(?:={_WORD})?"
_CANONICAL_QUERY = re.compile(rf"{_PARAMETER}(?:&{_PARAMETER})*", re.ASCII).fullmatch
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.ASCII | re.IGNORECASE).match
_PORT = re.compile(r":[0-9]{1,5}\Z", re.ASCII)

# Bounds on work that is done before it is known who asks. No operation has 30 parameters; a key has 1,024
# bytes, which are at most three characters each in a path.
PARAMETERS_MAX = 128
PATH_SIZE_MAX = 4096
_KEY_SIZE_MAX = 1024

Pairs = list[tuple[str, str]]


class Target(msgspec.Struct, frozen=True, gc=False):
    """A request target, split and decoded. `canonical_path` is SigV4's: encoded once, never normalised."""

    bucket: str
    key: str
    canonical_path: str
    raw_query: str
    pairs: Pairs  # Decoded, in order, duplicates kept.
    query: dict[str, str]  # The first value of each.


def decode(text: str) -> str:
    """Percent-decode once. Raises: S3Fault InvalidURI for a broken escape or bytes that are not UTF-8."""
    if "%" not in text:
        if text.isascii():
            return text
    elif _BROKEN_ESCAPE(text) is not None:
        raise invalid_uri()
    try:
        # aiohttp keeps undecodable bytes of the request line as surrogates: back to bytes first.
        return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "strict")
    except UnicodeError:
        raise invalid_uri() from None


def encode(text: str) -> str:
    """SigV4's URI encoding of one word: everything but A-Z a-z 0-9 - _ . ~ becomes %XX."""
    if _PLAIN_WORD(text):
        return text
    return quote(text, safe="-_.~")


def _canonical_path(raw: str) -> str:
    """Every segment decoded and encoded again. A `%2F` stays one: it is signed as it was sent."""
    words = (unquote_to_bytes(word.encode("utf-8", "surrogateescape")) for word in raw.split("/"))
    return "/".join([quote(word, safe="-_.~") for word in words])


def split_query(raw: str) -> Pairs:
    """`a=1&b` -> [("a", "1"), ("b", "")]. `+` is a space, as in forms and in AWS.

    Raises: S3Fault InvalidURI, also for more than PARAMETERS_MAX of them.
    """
    if raw.count("&") >= PARAMETERS_MAX:
        raise invalid_uri()
    pairs = []
    for piece in raw.split("&"):
        if not piece:
            continue
        name, _, value = piece.partition("=")
        if "+" in piece:
            name, value = name.replace("+", " "), value.replace("+", " ")
        pairs.append((decode(name), decode(value)))
    return pairs


def canonical_query(pairs: Pairs, *, leave_out: str = "") -> str:
    """SigV4: encoded, then sorted by encoded name and value; empty values kept."""
    words = [(encode(name), encode(value)) for name, value in pairs if name != leave_out]
    words.sort()
    return "&".join([f"{name}={value}" for name, value in words])


def canonical_query_of(target: "Target") -> str:
    """The canonical query of a target's whole query, mostly without decoded words being encoded again."""
    raw = target.raw_query
    if _CANONICAL_QUERY(raw) is None:
        return canonical_query(target.pairs)
    words = [piece.partition("=") for piece in raw.split("&")]
    words.sort()
    return "&".join([f"{name}={value}" for name, _, value in words])


def host_name(host: str) -> str:
    """The Host header without its port, lower case."""
    if host[-1:].isdigit() and ":" in host and not host.endswith("]"):
        host = _PORT.sub("", host)
    return host.lower()


def parse_target(raw: str, host: str, domains: tuple[str, ...] = ()) -> Target:
    """Split and decode a raw request target.

    Args:
        raw: the target of the request line, "/bucket/key?query", or absolute with `host` as its authority.
        host: the Host header.
        domains: base domains of virtual-host style, lower case, without leading dot.

    Raises: S3Fault (400) for anything that is not such a target.
    """
    path, _, raw_query = raw.partition("?")
    if path[:1] != "/":
        absolute = _ABSOLUTE(raw)
        if absolute is None:
            raise invalid_uri()
        if absolute[1].lower() != host.lower():
            raise bad_http("The authority of the request target differs from the Host header")
        path, _, raw_query = raw[absolute.end() :].partition("?")
        path = path or "/"
    if "#" in raw:
        raise invalid_uri()
    if len(path) > PATH_SIZE_MAX:
        raise fault_of(KeyTooLong(size=len(path), maximum=_KEY_SIZE_MAX))

    bucket = ""
    if domains:
        name = host_name(host)
        for domain in domains:
            if name.endswith(domain) and name[-len(domain) - 1 : -len(domain)] == ".":
                bucket = name[: -len(domain) - 1]
                break
    if _PLAIN(path):
        canonical = path
        if bucket:
            key = path[1:]
        else:
            bucket, _, key = path[1:].partition("/")
    else:
        if bucket:
            key = decode(path[1:])
        else:
            raw_bucket, _, raw_key = path[1:].partition("/")
            bucket, key = decode(raw_bucket), decode(raw_key)
        canonical = _canonical_path(path)
    if key and not bucket:
        raise S3Fault("InvalidBucketName", 400, "The specified bucket is not valid.", {"BucketName": ""})
    if not raw_query:
        return Target(bucket, key, canonical, "", [], {})
    pairs = split_query(raw_query)
    query: dict[str, str] = {}
    for name, value in pairs:
        query.setdefault(name, value)
    return Target(bucket, key, canonical, raw_query, pairs, query)
