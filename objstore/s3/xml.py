"""XML in and out: a hardened reader of small documents, and what the answers are put together from.

Read: UTF-8 only, whatever a document declares; DOCTYPE, entities, processing instructions, depth, the number
of elements and the size are bounded or refused, and everything refused is MalformedXML. Written: answers are
joined strings (a page of 1,000 keys must stay cheap), and every text in them has gone through `escape`.

May not know: HTTP, requests, the store.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import gmtime
from typing import Any, Final
from urllib.parse import quote
from xml.parsers import expat

from objstore.meta.schema import Checksum
from objstore.s3.errors import escape, malformed_xml

DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
XMLNS: Final = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
DEPTH_MAX: Final = 16  # S3's deepest request document (lifecycle) has 7.
ELEMENTS_MAX: Final = 100_000  # CompleteMultipartUpload: 10,000 parts of up to 4 elements, and room.
_SLICE_SIZE: Final = 64 * 1024  # Bytes. A tag or comment that fills one is no request of S3's.

_EXPRESSIBLE: Final = bytes(set(range(256)) - set(range(0x20)) | {0x09, 0x0A, 0x0D})


@dataclass(slots=True)
class Element:
    name: str  # Without namespace.
    text: str = ""  # Its own text, not its children's.
    children: list["Element"] = field(default_factory=list)

    def only(self, names: frozenset[str]) -> None:
        """Raises: S3Fault MalformedXML if there is a child of another name.

        Whoever ignores what he does not understand would delete under a condition he never checked.
        """
        for child in self.children:
            if child.name not in names:
                raise malformed_xml()

    def get(self, name: str) -> str | None:
        """The text of the one child of that name, or None.

        Raises: S3Fault MalformedXML if there are several, or if it has children.
        """
        found = None
        for child in self.children:
            if child.name == name:
                if found is not None or child.children:
                    raise malformed_xml()
                found = child.text
        return found

    def need(self, name: str) -> str:
        """As `get`, but the child must be there. Raises: S3Fault MalformedXML."""
        text = self.get(name)
        if text is None:
            raise malformed_xml()
        return text


def parse(document: bytes, root: str, *, elements_max: int = ELEMENTS_MAX) -> Element:
    """The document's root element, which must be called `root` (in any namespace or none).

    It goes to expat in slices: between two of them other threads run, and a tag with a hundred thousand
    attributes is refused before it is looked at.

    Raises: S3Fault MalformedXML.
    """
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    parser.buffer_text = True
    top = Element("")
    stack = [top]
    pieces: list[list[str]] = [[]]
    count = 0

    def start(name: str, _attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(stack) > DEPTH_MAX or count > elements_max:
            raise malformed_xml()
        element = Element(name.rpartition(" ")[2])
        stack[-1].children.append(element)
        stack.append(element)
        pieces.append([])

    def end(_name: str) -> None:
        stack.pop().text = "".join(pieces.pop())

    def text(data: str) -> None:
        pieces[-1].append(data)

    def refuse(*_: object) -> Any:
        raise malformed_xml()

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.UnparsedEntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.ProcessingInstructionHandler = refuse
    try:
        document.decode()  # expat would let some of what is not UTF-8 pass.
        for at in range(0, len(document), _SLICE_SIZE):
            if at and parser.CurrentByteIndex < at - _SLICE_SIZE:
                raise malformed_xml()
            parser.Parse(document[at : at + _SLICE_SIZE], False)
        parser.Parse(b"", True)
    except (expat.ExpatError, ValueError) as failure:  # ValueError: bytes that are not UTF-8.
        raise malformed_xml() from failure
    if len(top.children) != 1 or top.children[0].name != root:
        raise malformed_xml()
    return top.children[0]


def expressible(texts: Sequence[str]) -> bool:
    """Whether XML 1.0 can carry all of these (most control characters it cannot)."""
    joined = "".join(texts)
    return not joined.encode().translate(None, _EXPRESSIBLE) and not (
        "\ufffe" in joined or "\uffff" in joined
    )


def url_encoded(text: str) -> str:
    """encoding-type=url: percent-encoded UTF-8, `/` kept. The result needs no escaping."""
    return quote(text, safe="/*")


def encoder(*, url: bool) -> Callable[[str], str]:
    return url_encoded if url else escape


_TWO_DIGITS: Final = [f"{number:02d}" for number in range(60)]


@lru_cache(maxsize=4096)
def _day(days: int) -> str:
    year, month, day, *_ = gmtime(days * 86_400)
    return f"{year:04d}-{month:02d}-{day:02d}"


@lru_cache(maxsize=8192)
def _second(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    minutes, second = divmod(rest, 60)
    two = _TWO_DIGITS
    return f"{_day(days)}T{two[minutes // 60]}:{two[minutes % 60]}:{two[second]}.000Z"


def timestamp(order_us: int) -> str:
    """Microseconds since 1970 -> 2026-11-21T22:41:15.000Z: whole seconds, as Last-Modified has them."""
    return _second(order_us // 1_000_000)


def owner(tenant: str, element: str = "Owner") -> str:
    """An account in S3's sense is a tenant. DisplayName is for older SDKs, which show it."""
    name = escape(tenant)
    return f"<{element}><ID>{name}</ID><DisplayName>{name}</DisplayName></{element}>"


def checksum_text(checksum: Checksum) -> str:
    """base64, and -N if it is the checksum of N checksums."""
    text = b64encode(checksum.digest).decode()
    return f"{text}-{checksum.parts}" if checksum.type == "COMPOSITE" and checksum.parts else text


def checksum_element(checksum: Checksum | None) -> str:
    if checksum is None:
        return ""
    return f"<Checksum{checksum.algorithm}>{checksum_text(checksum)}</Checksum{checksum.algorithm}>"
