"""aws-chunked: the framing inside a body, with or without signatures and trailers.

    hex-size[;chunk-signature=64 hex]CRLF data CRLF ... 0[;chunk-signature=64 hex]CRLF [trailers] CRLF

Whether a body is framed so is decided by x-amz-content-sha256 only, never by Content-Encoding. The decoder
splits bytes into data and chunk ends; the chain verifies signatures. Both are pure: bytes in, values out. The
data of a chunk leaves before its signature is checked, so whoever reads a body may not commit it before
`Body.digests` has returned.

Source: "Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks" and
"... Including Trailing Headers" (AWS S3 API reference).
"""

import hmac
import re
from hashlib import sha256

from objstore.objects.values import Buffer
from objstore.s3.errors import S3Fault, incomplete_body

CHUNK_SIZE_MIN = 8192  # Of every signed chunk but the last data chunk.
# Without signatures smaller ones are taken, too, but a body of tiny ones would cost its worker 2 us a byte:
# beyond FREE_COUNT of them they must have AVERAGE_SIZE_MIN bytes on average.
FREE_COUNT = 1024
AVERAGE_SIZE_MIN = 1024
_LINE_SIZE_MAX = 256  # Bytes of a chunk's head: 16 digits, the signature, CRLF.
TRAILERS_SIZE_MAX = 8192  # Bytes.
_EMPTY_SHA256 = sha256(b"").hexdigest()

_HEAD = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?", re.ASCII).fullmatch
_TRAILER = re.compile(rb"([A-Za-z0-9-]{1,64}):[ \t]*([\x21-\x7e]{0,256})[ \t]*", re.ASCII).fullmatch
_HEX64 = re.compile(r"[0-9a-f]{64}").fullmatch


class ChunkEnd:
    """Between data: a chunk is complete. `signature` is "" in unsigned framing."""

    __slots__ = ("signature", "size")

    def __init__(self, size: int, signature: str) -> None:
        self.size = size
        self.signature = signature


Piece = memoryview | ChunkEnd


class ChunkedDecoder:
    """Splits a framed body. Feed bytes as they come; call `finish` at the end of the body.

    Raises (both methods): S3Fault. Nothing is buffered but an incomplete head or trailer section.
    """

    __slots__ = (
        "_chunk_left", "_chunk_size", "_count", "_line", "_signature", "_signed", "_small", "_state",
        "_trailer", "decoded", "signed_trailer", "size", "trailer_signature", "trailers",
    )  # fmt: skip

    def __init__(self, *, signed: bool, trailer: bool, size: int) -> None:
        self.size = size  # x-amz-decoded-content-length.
        self.decoded = 0
        self.trailers: list[tuple[str, str]] = []  # Lower-case names, in order.
        self.trailer_signature = ""
        self.signed_trailer = b""  # What the trailer signature covers: "name:value\n" of each.
        self._signed = signed
        self._trailer = trailer
        self._state = "head"  # head | data | data-end | tail (all of the rest) | done
        self._line = b""
        self._chunk_size = 0
        self._chunk_left = 0
        self._signature = ""
        self._count = 0  # Chunks begun.
        self._small = False  # The chunk before this head is smaller than the minimum.

    def feed(self, data: bytes) -> list[Piece]:
        """Decode the next bytes of the body."""
        pieces: list[Piece] = []
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end:
            if self._state == "data":
                take = min(self._chunk_left, end - at)
                pieces.append(view[at : at + take])
                at += take
                self._chunk_left -= take
                if self._chunk_left == 0:
                    self._state = "data-end"
            elif self._state == "data-end":
                take = min(2 - len(self._line), end - at)
                self._line += data[at : at + take]
                at += take
                if not b"\r\n".startswith(self._line):
                    raise incomplete_body("A chunk is not followed by CRLF")
                if len(self._line) == 2:
                    self._line = b""
                    self._state = "head"
                    pieces.append(ChunkEnd(self._chunk_size, self._signature))
            elif self._state == "head":
                newline = data.find(b"\n", at, at + _LINE_SIZE_MAX)
                stop = end if newline < 0 else newline + 1
                self._line += data[at:stop]
                at = stop
                if len(self._line) > _LINE_SIZE_MAX:
                    raise incomplete_body("The head of a chunk is too long")
                if newline >= 0:
                    line, self._line = self._line, b""
                    self._head(line, pieces)
            else:
                self._line += data[at:]
                if not self._trailer and not b"\r\n".startswith(self._line):
                    raise incomplete_body("The body goes on after its last chunk")
                if len(self._line) > TRAILERS_SIZE_MAX:
                    raise malformed_trailer()
                break
        return pieces

    def _head(self, line: bytes, pieces: list[Piece]) -> None:
        match = _HEAD(line[:-2]) if line.endswith(b"\r\n") else None
        if match is None or (match[2] is not None) != self._signed:
            raise incomplete_body("The head of a chunk is malformed")
        size = int(match[1], 16)
        self._signature = match[2].decode() if self._signed else ""
        if size and (
            (self._small and self._signed)  # Only now is it known that the small chunk was not the last one.
            or self._count > FREE_COUNT + self.decoded // AVERAGE_SIZE_MIN
        ):
            raise S3Fault(
                "InvalidChunkSizeError",
                403,
                "Only the last chunk is allowed to have a size less than 8192 bytes",
                {"Chunk": str(self._count), "BadChunkSize": str(self._chunk_size)},
            )
        self._chunk_left = self._chunk_size = size
        self.decoded += size
        if self.decoded > self.size:
            raise incomplete_body("The body is longer than x-amz-decoded-content-length")
        if size:
            self._state = "data"
            self._count += 1
            self._small = size < CHUNK_SIZE_MIN
        else:
            self._state = "tail"
            pieces.append(ChunkEnd(0, self._signature))

    def finish(self) -> None:
        """The body has ended. Raises: S3Fault IncompleteBody, MalformedTrailerError."""
        if self._state != "tail":
            raise incomplete_body("The body ends within a chunk or without its last chunk")
        if self.decoded != self.size:
            raise incomplete_body(
                f"x-amz-decoded-content-length is {self.size}, the body has {self.decoded} bytes"
            )
        tail, self._line = self._line, b""
        self._state = "done"
        if tail != b"\r\n" and not tail.endswith(b"\n\r\n"):
            raise incomplete_body("The body does not end with CRLF")
        if not self._trailer:
            return
        # Lines end with CRLF; some clients end a trailer with LF CRLF. Empty lines carry nothing.
        for line in tail.split(b"\n"):
            line = line.removesuffix(b"\r")
            if not line:
                continue
            match = _TRAILER(line)
            if match is None:
                raise malformed_trailer()
            name, value = match[1].decode().lower(), match[2].decode()
            if self.trailer_signature or any(name == seen for seen, _ in self.trailers):
                raise malformed_trailer()
            if name == "x-amz-trailer-signature":
                if not self._signed or _HEX64(value) is None:
                    raise malformed_trailer()
                self.trailer_signature = value
            else:
                self.trailers.append((name, value))
                self.signed_trailer += f"{name}:{value}\n".encode()


class SignatureChain:
    """Verifies chunk after chunk: each signature covers the one before, the first the request's own."""

    __slots__ = ("_hash", "_key", "_previous", "_stamp")

    def __init__(self, *, key: bytes, amz_date: str, scope: str, seed: str) -> None:
        self._key = key
        self._stamp = f"{amz_date}\n{scope}"
        self._previous = seed
        self._hash = sha256()

    def update(self, data: Buffer) -> None:
        self._hash.update(data)

    def end_chunk(self, signature: str) -> None:
        """Raises: S3Fault SignatureDoesNotMatch."""
        to_sign = (
            f"AWS4-HMAC-SHA256-PAYLOAD\n{self._stamp}\n{self._previous}\n{_EMPTY_SHA256}\n"
            f"{self._hash.hexdigest()}"
        )
        self._compare(to_sign, signature)
        self._hash = sha256()

    def end_trailers(self, signed_trailer: bytes, signature: str) -> None:
        """Raises: S3Fault SignatureDoesNotMatch."""
        to_sign = (
            f"AWS4-HMAC-SHA256-TRAILER\n{self._stamp}\n{self._previous}\n{sha256(signed_trailer).hexdigest()}"
        )
        self._compare(to_sign, signature)

    def _compare(self, to_sign: str, signature: str) -> None:
        wanted = hmac.digest(self._key, to_sign.encode(), "sha256").hex()
        if not hmac.compare_digest(wanted, signature):
            raise S3Fault(
                "SignatureDoesNotMatch",
                403,
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
                {"StringToSign": to_sign, "SignatureProvided": signature},
            )
        self._previous = wanted


def malformed_trailer() -> S3Fault:
    return S3Fault(
        "MalformedTrailerError",
        400,
        "The request contained trailing data that was not well-formed or did not conform to our published "
        "schema.",
    )
