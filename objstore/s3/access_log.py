"""One JSON line per request, buffered. No secret ever stands in it: credentials of queries are redacted.

Concurrency: lines are added by the event loop's thread. A flush takes all of them to one thread that makes
text of them and writes it; while one flush is under way lines wait, up to a bound, and beyond it they are
dropped and counted: a full log disk never stops the store. `close` writes what is left.
"""

import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import unquote

import msgspec

from objstore.s3.target import PARAMETERS_MAX

FLUSH_SECONDS: Final = 1.0
FLUSH_LINES: Final = 512  # About 200 KiB.
WAITING_LINES_MAX: Final = 50_000  # About 40 MiB: a log disk that hangs for some seconds loses nothing.

_SECRET_NAMES: Final = (
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "Signature",
    "AWSAccessKeyId",
)
_SECRET_IN_QUERY = re.compile(rf"(?i)(^|[&?])({'|'.join(_SECRET_NAMES)})=[^&]*")
_SECRET_LOWER: Final = frozenset(name.lower() for name in _SECRET_NAMES)
_SECRET_WORDS: Final = ("signature", "credential", "token", "accesskey")  # One is in each name.
_ESCAPED_NAME: Final = re.compile(r"(?:^|&)[^=&]*%").search


class Line(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """One request. Times in milliseconds, `time` in seconds since 1970, sizes in bytes of bodies."""

    time: float
    request_id: str
    remote: str
    method: str
    operation: str
    status: int
    duration_ms: float
    ttfb_ms: float = 0.0
    bucket: str = ""
    key: str = ""
    query: str = ""  # As sent, credentials redacted.
    tenant: str = ""
    user: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    error: str = ""  # S3's code.
    agent: str = ""


def redact(query: str) -> str:
    """A raw query without the values of its credentials, however their names are escaped."""
    if not query:
        return query
    lower = query.lower()
    if any(word in lower for word in _SECRET_WORDS):
        query = _SECRET_IN_QUERY.sub(r"\1\2=REDACTED", query)
    if "%" not in query or _ESCAPED_NAME(query) is None:
        return query
    # A request with more parameters is refused whatever they are.
    pieces = (piece.partition("=") for piece in query.split("&", PARAMETERS_MAX)[:PARAMETERS_MAX])
    return "&".join(
        f"{name}=REDACTED" if unquote(name).lower() in _SECRET_LOWER else name + equals + value
        for name, equals, value in pieces
    )


def _printable(line: Line) -> Line:
    """aiohttp hands over bytes that are not UTF-8 as surrogates, which JSON cannot carry."""
    texts = {name: value for name in line.__struct_fields__ if isinstance(value := getattr(line, name), str)}
    return msgspec.structs.replace(
        line, **{name: text.encode(errors="backslashreplace").decode() for name, text in texts.items()}
    )


class AccessLog:
    """Collects lines and writes them to a file descriptor.

    Args:
        fd: open for appending; not closed here.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.dropped = 0  # Lines, since the start.
        self._lines: list[Line] = []
        self._encoder = msgspec.json.Encoder()
        self._writer = ThreadPoolExecutor(1, "access-log")
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._closed = False

    def add(self, line: Line) -> None:
        lines = self._lines
        if len(lines) >= WAITING_LINES_MAX or self._closed:
            self.dropped += 1
            return
        lines.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)
        elif len(lines) == FLUSH_LINES:
            self._timer.cancel()
            self._flush()

    def _flush(self) -> None:
        self._timer = None
        if not self._lines or self._flushing:
            return
        lines, self._lines = self._lines, []
        self._flushing = True
        asyncio.get_running_loop().run_in_executor(self._writer, self._write, lines).add_done_callback(
            self._flushed
        )

    def _flushed(self, done: "asyncio.Future[None]") -> None:
        self._flushing = False
        done.exception()  # _write raises nothing; this marks the future as seen.
        if self._lines and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _write(self, lines: list[Line]) -> None:
        try:
            text = self._encoder.encode_lines(lines)
        except UnicodeEncodeError:
            text = self._encoder.encode_lines(map(_printable, lines))
        data = memoryview(text)
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError:
            self.dropped += len(lines)  # The disk is full or gone: the store goes on.

    async def close(self) -> None:
        """Write what is left. Lines added afterwards are dropped and counted."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._write, lines)
        self._writer.shutdown(wait=True)
