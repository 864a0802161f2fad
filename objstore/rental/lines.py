"""Lines of invoices and credit notes as they are kept: in pages, each a value of its own.

The bytes of a final document's pages are never written again: what a later release adds to a Line changes
nothing of them, and nothing of the digest over them.
"""

from collections.abc import Callable, Sequence
from typing import Final

from objstore.errors import BadArgument, Corrupt
from objstore.meta.kv import Kv
from objstore.meta.schema import decode, encode
from objstore.rental.names import check_text
from objstore.rental.records import Line, LinesPage, lines_key

PAGE_LINES_MAX: Final = 20
PAGE_SIZE_MAX: Final = 7_680  # Bytes of lines; with the page's own few under the 8 KiB of a value.
LINE_SIZE_MAX: Final = 3_072  # Bytes: exact quantities may have hundreds of digits.
LINES_MAX: Final = 4_000  # Of a document: all its pages are written in one commit, of some 200 keys.
DESCRIPTION_SIZE_MAX: Final = 400  # Bytes of UTF-8.


def check_lines(lines: Sequence[Line]) -> Sequence[Line]:
    """Raises: BadArgument."""
    if len(lines) > LINES_MAX:
        raise BadArgument(
            f"a document has at most {LINES_MAX} lines, not {len(lines)}: bill by larger parts", name="lines"
        )
    for line in lines:
        check_text(line.description, "description", size_max=DESCRIPTION_SIZE_MAX)
        if len(encode(line)) > LINE_SIZE_MAX:
            raise BadArgument(f"a line has more than {LINE_SIZE_MAX} bytes", name="line", value=line.meter)
    return lines


def pack_lines(lines: Sequence[Line]) -> list[bytes]:
    """Pages in order, each a LinesPage as it is stored."""
    pages: list[list[Line]] = []
    size = 0
    for line in lines:
        more = len(encode(line))
        if not pages or len(pages[-1]) == PAGE_LINES_MAX or size + more > PAGE_SIZE_MAX:
            pages.append([])
            size = 0
        pages[-1].append(line)
        size += more
    return [encode(LinesPage(lines=page)) for page in pages]


def unpack_lines(pages: Sequence[bytes]) -> list[Line]:
    return [line for page in pages for line in decode(page, LinesPage).lines]


async def read_pages(kv: Kv, count: int, key_of: Callable[[int], bytes], whose: str) -> list[bytes]:
    """The stored bytes of `count` pages. Raises: Corrupt (one is missing)."""
    values = await kv.get_many([key_of(page) for page in range(count)])
    pages = [value for value in values if value is not None]
    if len(pages) < count:
        raise Corrupt(f"{count - len(pages)} of {count} pages of lines of {whose} are missing")
    return pages


async def read_document_pages(kv: Kv, document: str, count: int) -> list[bytes]:
    """Raises: Corrupt (a page is missing)."""
    return await read_pages(kv, count, lambda page: lines_key(document, page), document)
