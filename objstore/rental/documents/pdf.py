"""PDFs of invoices, credit notes and reports, by typst: the same document always gives the same bytes.

What goes in is a string of JSON; it is shown, never evaluated. The template's directory is all that a
compilation may read. Only the fonts of one directory are used, whatever else a machine has. The creation date
in the file is the document's own.

Concurrency: a Typesetter is one compiler and used by one thread at a time. A Printer owns a thread for it;
the event loop only waits, and not for ever.
"""

import asyncio
import importlib.resources
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from objstore.errors import BadArgument, Overloaded
from objstore.rental.documents.content import Document, content

FONTS: Final = Path("/usr/share/fonts/truetype/dejavu")  # Debian's fonts-dejavu-core; it shapes Arabic.
FONT: Final = "DejaVu Sans"
STANDARD: Final = "a-2u"  # For archives, as invoices are kept for ten years; text can be copied out.
WAITING_MAX: Final = 64  # Documents that wait for the thread: a second's work.
TIMEOUT_S: Final = 60.0
_TEMPLATE: Final = "document.typ"
_REPORT: Final = "report.typ"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Typesetter:
    """A compiler with the template read and the fonts found: 0.1 s; a document then takes 20 ms of CPU."""

    def __init__(self, fonts: Path = FONTS) -> None:
        """Raises: BadArgument if the fonts are not there."""
        self._compiler, self._failure = _compiler(_TEMPLATE, fonts)

    def render(self, document: Document) -> bytes:
        """The PDF. Blocks the CPU, not the interpreter: other threads go on.

        Raises: BadArgument for a language that is none, or a logo that cannot be drawn.
        """
        data = msgspec.json.encode(content(document)).decode()
        invoice = document.invoice
        at = _EPOCH + timedelta(seconds=(invoice.issued_us or invoice.made_us) // 1_000_000)  # As PDF has it.
        try:
            return self._compile(data, at, [STANDARD])
        except self._failure:
            # The standard wants a letter in the font for each in the text. One that has none is an empty box
            # in plain PDF: better than a customer whose name keeps him from being billed.
            pass
        try:
            return self._compile(data, at, [])
        except self._failure as failure:
            if not document.seller.logo:
                raise  # A bug: whatever people typed can be printed.
            raise BadArgument(f"the seller's logo cannot be drawn: {failure}", name="logo") from failure

    def _compile(self, data: str, at: datetime, standards: list[Any]) -> bytes:
        pdf = self._compiler.compile(
            format="pdf", sys_inputs={"data": data}, pdf_standards=standards, pdf_tags=False, timestamp=at
        )
        assert isinstance(pdf, bytes)
        return pdf


def _compiler(template: str, fonts: Path) -> tuple[Any, type[Exception]]:
    """A compiler of a template, and what it raises. Raises: BadArgument if the fonts are not there."""
    import typst  # 30 MB of machine code: only where documents are made.

    found = typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=[fonts])
    if FONT not in found.families():
        raise BadArgument(f"no {FONT} in {fonts}: install fonts-dejavu-core", name="fonts", value=str(fonts))
    root = Path(str(importlib.resources.files("objstore.rental.documents")))
    compiler = typst.Compiler(root / template, root=root, font_paths=found, ignore_system_fonts=True)
    return compiler, typst.TypstError


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Of a report: sentences, then a table whose cells are texts."""

    title: str
    words: list[str] = []
    columns: list[str] = []
    rows: list[list[str]] = []


def render_report(title: str, sections: Sequence[Section], *, at: datetime, fonts: Path = FONTS) -> bytes:
    """The PDF of a report. Blocks the CPU: 0.1 s and more.

    Args:
        at: when it was made.

    Raises: BadArgument if the fonts are not there.
    """
    compiler, _ = _compiler(_REPORT, fonts)
    data = msgspec.json.encode({"title": title, "sections": sections}).decode()
    pdf = compiler.compile(format="pdf", sys_inputs={"data": data}, timestamp=at)
    assert isinstance(pdf, bytes)
    return pdf


class Printer:
    """A typesetter behind the event loop."""

    def __init__(self, make: Callable[[], Typesetter] = Typesetter) -> None:
        self._make = make
        self._typesetter: Typesetter | None = None  # Of the thread: made with the first document.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="typesetter")
        self._waiting = 0

    async def render(self, document: Document) -> bytes:
        """The PDF.

        Raises: what Typesetter does; Overloaded (too many wait, or it took too long).
        """
        if self._waiting >= WAITING_MAX:
            raise Overloaded(f"{self._waiting} documents wait for being typeset")
        self._waiting += 1
        job = self._thread.submit(self._render, document)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.wrap_future(job)
        except TimeoutError as failure:
            raise Overloaded(f"a document was not typeset within {TIMEOUT_S:g} s") from failure
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Does not wait: what is being typeset is finished by the thread, what waits is not begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _render(self, document: Document) -> bytes:
        if self._typesetter is None:
            self._typesetter = self._make()
        return self._typesetter.render(document)
