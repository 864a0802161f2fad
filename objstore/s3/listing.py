"""ListObjects v1 and v2, ListObjectVersions: pages as joined strings.

A page of 1,000 keys costs about as much as a few small GETs: whether any key needs escaping or encoding is
decided once for all of them, and each entry is one formatted string.
"""

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BinasciiError
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from objstore.meta.heads import DIGEST_SIZE, NO_CHECKSUM, Heads
from objstore.meta.schema import CHECKSUMS
from objstore.objects import buckets, listing
from objstore.objects.listing import Page, empty_page
from objstore.objects.placing import STANDARD
from objstore.s3.answers import whole_document
from objstore.s3.call import Call
from objstore.s3.errors import S3Fault, escape, invalid_argument
from objstore.s3.headers import check_expected_owner, query_number
from objstore.s3.xml import DECLARATION, XMLNS, encoder, expressible, owner, timestamp

KEYS_MAX: Final = 1000
_URL_SAFE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/*"
_XML_SAFE: Final = bytes(set(range(0x20, 0x7F)) - set(b"&<>\"'"))

_CLASS: Final = "<StorageClass>"
# From the end of the ETag to the size, by the first byte of Checksum.pack() (meta/schema.py).
_CHECKSUM_ROWS: Final = {NO_CHECKSUM: "&quot;</ETag><Size>"} | {
    code | high: f"&quot;</ETag><ChecksumAlgorithm>{name}</ChecksumAlgorithm>"
    f"<ChecksumType>{kind}</ChecksumType><Size>"
    for code, name in enumerate(CHECKSUMS)
    for high, kind in ((0, "FULL_OBJECT"), (0x80, "COMPOSITE"))
}


# --- Continuation tokens -------------------------------------------------------------------------


def continuation(after: str) -> str:
    """An opaque, URL-safe token that stands for "after this name"."""
    raw = after.encode()
    return urlsafe_b64encode(raw + zlib.crc32(raw).to_bytes(4, "big")).decode().rstrip("=")


def _bad_token() -> S3Fault:
    return invalid_argument("The continuation token provided is incorrect", "continuation-token")


def continue_after(token: str) -> str:
    """The name a token stands for; "" for "". Raises: S3Fault InvalidArgument if we never made it."""
    if not token:
        return ""
    try:
        raw = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        name, check = raw[:-4], raw[-4:]
        if len(check) != 4 or zlib.crc32(name) != int.from_bytes(check, "big"):
            raise _bad_token()
        return name.decode()
    except (BinasciiError, ValueError):
        raise _bad_token() from None


# --- Entries -------------------------------------------------------------------------------------


def url_encoding(query: Mapping[str, str], name: str = "encoding-type") -> bool:
    """Raises: S3Fault InvalidArgument for anything but `url`."""
    kind = query.get(name)
    if kind is None:
        return False
    if kind != "url":
        raise invalid_argument("Invalid Encoding Method specified in Request", name, kind)
    return True


def encoding_of(query: Mapping[str, str], texts: list[str]) -> tuple[Callable[[str], str], str]:
    """How to write names, and the element that says so.

    A name that XML cannot carry makes the page URL-encoded unasked, and the page says so: the other choices
    are invalid XML and a wrong key.
    """
    url = url_encoding(query) or not expressible(texts)
    return encoder(url=url), "<EncodingType>url</EncodingType>" if url else ""


def _written(names: list[str], *, url: bool, write: Callable[[str], str]) -> list[str]:
    """All names ready for the document; usually they are so already, which one pass over them shows."""
    if not "".join(names).encode().translate(None, _URL_SAFE if url else _XML_SAFE):
        return names
    return [write(name) for name in names]


class _Times(dict[int, str]):
    """Second -> what stands between a name and its ETag; few seconds make a page's times."""

    def __init__(self, middle: str) -> None:
        super().__init__()
        self._middle = middle

    def __missing__(self, second: int) -> str:
        text = f"{self._middle}{timestamp(second * 1_000_000)}</LastModified><ETag>&quot;"
        self[second] = text
        return text


def _entries(
    heads: Heads,
    names: list[str],
    classes: Mapping[int, str],
    *,
    head: str,
    middle: str,
    tail: str,
) -> list[str]:
    """All objects of a page, in pieces to be joined: for each `head`, name, `middle`, time, ETag, kind of
    checksum and size, `tail`.

    `tail` says STANDARD; of the objects in `classes` (by index) it says what they have.

    What is the same between any two entries is one piece, what is the same in many is another: an entry
    is six pieces. They are laid out column by column and joined once, which is a seventh
    faster than a string an entry (docs/decisions/0004-listing.md).
    """
    if not names:
        return []
    times, checksums = _Times(middle), heads.checksums
    pieces = [tail + head] * (6 * len(names))
    pieces[-1] = tail
    pieces[0::6] = names
    pieces[1::6] = [times[order // 1_000_000] for order in heads.orders]
    pieces[2::6] = heads.digests.hex("\n", DIGEST_SIZE).split("\n")
    pieces[3::6] = (
        [_CHECKSUM_ROWS[checksums[0]]] * len(names)
        if checksums.count(checksums[0]) == len(names)  # As good as always.
        else map(_CHECKSUM_ROWS.__getitem__, checksums)
    )
    pieces[4::6] = map(str, heads.sizes)
    for index, parts in heads.parts.items():
        pieces[6 * index + 2] += f"-{parts}"
    for index, name in classes.items():
        behind = 6 * index + 5
        pieces[behind] = pieces[behind].replace(_CLASS + STANDARD, _CLASS + escape(name), 1)
    pieces.insert(0, head)
    return pieces


def _echo(prefix: str, write: Callable[[str], str]) -> str:
    """The prefix as asked for. botocore decodes it in some listings only, so that a line feed, which XML can
    carry, stays as it is: decoded or not, it reads the same."""
    return "\n".join(map(write, prefix.split("\n")))


class _Request:
    """What the three listings have in common, parsed once."""

    __slots__ = ("delimiter", "limit", "prefix", "query")

    def __init__(self, call: Call) -> None:
        check_expected_owner(call.headers, call.who)
        url_encoding(call.query)
        self.query = call.query
        self.prefix = call.query.get("prefix", "")
        self.delimiter = call.query.get("delimiter", "")
        self.limit = query_number(call.query, "max-keys", default=KEYS_MAX, most=KEYS_MAX)

    async def page(self, call: Call, after: str) -> Page:
        if self.limit == 0:
            bucket = await buckets.find_bucket(call.store, call.who, call.bucket)
            return empty_page(bucket)
        return await listing.list_objects(
            call.store,
            call.who,
            call.bucket,
            prefix=self.prefix,
            delimiter=self.delimiter,
            after=after,
            limit=self.limit,
        )


def _prefixes(names: list[str]) -> str:
    return "".join([f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in names])


def _result(
    call: Call,
    request: _Request,
    page: Page,
    root: str,
    marks: Callable[[Callable[[str], str]], str],
    echoed: list[str],
    *,
    with_owner: bool,
    versions: bool = False,
) -> web.Response:
    # Most names are letters and digits: one pass shows that all of them can stay as they are in any encoding.
    plain = not "".join(page.names).encode().translate(None, _URL_SAFE)
    write, encoding = encoding_of(call.query, [*echoed, *([] if plain else page.names), *page.prefixes])
    url = bool(encoding)
    person = owner(page.bucket.tenant) if with_owner else ""
    element = "Version" if versions else "Contents"
    version = "<VersionId>null</VersionId><IsLatest>true</IsLatest>" if versions else ""
    entries = _entries(
        page.heads,
        page.names if plain else _written(page.names, url=url, write=write),
        page.classes,
        head=f"<{element}><Key>",
        middle=f"</Key>{version}<LastModified>",
        tail=f"</Size>{person}{_CLASS}{STANDARD}</StorageClass></{element}>",
    )
    delimiter = f"<Delimiter>{write(request.delimiter)}</Delimiter>" if request.delimiter else ""
    # One string, made once: a page of 1,000 keys has 330 KB, and copying it costs as much as making it.
    begin = (
        f"{DECLARATION}<{root}{XMLNS}><Name>{escape(call.bucket)}</Name>"
        f"<Prefix>{_echo(request.prefix, write)}</Prefix>"
        f"{marks(write)}<MaxKeys>{request.limit}</MaxKeys>{delimiter}"
        f"<IsTruncated>{'true' if page.truncated else 'false'}</IsTruncated>{encoding}"
    )
    end = f"{_prefixes(_written(page.prefixes, url=url, write=write))}</{root}>"
    entries.insert(0, begin)
    entries.append(end)
    return whole_document("".join(entries))


# --- The three of them ---------------------------------------------------------------------------


async def list_objects(call: Call) -> web.Response:
    request = _Request(call)
    marker = call.query.get("marker", "")
    page = await request.page(call, marker)

    def marks(write: Callable[[str], str]) -> str:
        text = f"<Marker>{write(marker)}</Marker>"
        if page.truncated and request.delimiter:  # Without a delimiter the last key is the marker.
            text += f"<NextMarker>{write(page.next)}</NextMarker>"
        return text

    return _result(
        call,
        request,
        page,
        "ListBucketResult",
        marks,
        [request.prefix, request.delimiter, marker],
        with_owner=True,
    )


async def list_objects_v2(call: Call) -> web.Response:
    request = _Request(call)
    query = call.query
    if query.get("list-type") != "2":
        raise invalid_argument("Invalid List Type specified in Request", "list-type", query.get("list-type"))
    token = query.get("continuation-token")
    start_after = query.get("start-after", "")
    fetch_owner = query.get("fetch-owner", "").lower() == "true"
    page = await request.page(call, continue_after(token) if token else start_after)

    def marks(write: Callable[[str], str]) -> str:
        text = f"<KeyCount>{len(page.names) + len(page.prefixes)}</KeyCount>"
        if token is not None:
            text += f"<ContinuationToken>{escape(token)}</ContinuationToken>"
        if start_after:
            text += f"<StartAfter>{write(start_after)}</StartAfter>"
        if page.truncated:
            text += f"<NextContinuationToken>{continuation(page.next)}</NextContinuationToken>"
        return text

    return _result(
        call,
        request,
        page,
        "ListBucketResult",
        marks,
        [request.prefix, request.delimiter, start_after],
        with_owner=fetch_owner,
    )


async def list_object_versions(call: Call) -> web.Response:
    """Every object has one version, `null`, and it is the latest."""
    request = _Request(call)
    query = call.query
    key_marker = query.get("key-marker", "")
    version_marker = query.get("version-id-marker")
    if version_marker == "":
        raise invalid_argument("A version-id marker cannot be empty.", "version-id-marker", "")
    if version_marker is not None and not key_marker:
        raise invalid_argument(
            "A version-id marker cannot be specified without a key marker.",
            "version-id-marker",
            version_marker,
        )
    page = await request.page(call, key_marker)

    def marks(write: Callable[[str], str]) -> str:
        text = f"<KeyMarker>{write(key_marker)}</KeyMarker>"
        text += f"<VersionIdMarker>{escape(version_marker or '')}</VersionIdMarker>"
        if page.truncated:
            text += f"<NextKeyMarker>{write(page.next)}</NextKeyMarker>"
            if page.names and page.names[-1] == page.next:
                text += "<NextVersionIdMarker>null</NextVersionIdMarker>"
        return text

    return _result(
        call,
        request,
        page,
        "ListVersionsResult",
        marks,
        [request.prefix, request.delimiter, key_marker],
        with_owner=True,
        versions=True,
    )
