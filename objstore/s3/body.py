"""A request's body: bytes out, with signatures, framing, Content-MD5 and checksums dealt with.

`open_body` decides from x-amz-content-sha256 alone how the bytes are framed and signed. A small body is read
whole and hashed on the event loop before its first byte leaves; a large one leaves in the pieces in which it
arrives, while threads hash them in order, at most one batch behind. What could not be verified raises from
the iteration or from `digests`, and nothing may be committed before `digests` has returned.

`100 Continue` goes out with the first read: after the signature, and after whatever the handler checks before
it reads.

Concurrency: one task reads a body. The hash states belong to the one job that is under way; the next is
started when it has ended. An abandoned body leaves at most that job, which ends by itself and raises nothing.
"""

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from concurrent.futures import Executor
from hashlib import sha256

from aiohttp import StreamReader
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from objstore.meta.schema import Checksum
from objstore.objects.values import Buffer, Digests, Sink
from objstore.s3 import checksums
from objstore.s3.chunked import ChunkedDecoder, ChunkEnd, Piece, SignatureChain, malformed_trailer
from objstore.s3.errors import (
    S3Fault,
    bad_checksum,
    bad_md5,
    entity_too_large,
    incomplete_body,
    invalid_argument,
    invalid_digest,
    invalid_request,
    missing_content_length,
    payload_mismatch,
)
from objstore.s3.intake import Intake, take_over
from objstore.s3.sigv4 import (
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED,
    Verified,
)

SIZE_MAX = 5 * 1024**3  # Bytes of one PUT or part; S3's own bound.
INLINE_SIZE_MAX = 128 * 1024  # Bytes: hashing this takes 0.2 ms, about what two hops to a thread cost.
_FRAMING_SIZE_MAX = 16 * 1024  # Bytes of framing that a small body may have on top.
_PIECES_MAX = 16  # Of one read: more small chunks than that are joined.
BATCH_SIZE = 256 * 1024  # Bytes handed to the hash threads at once: 0.35 ms of MD5 against 0.05 ms of hop.
# The same where bytes lie in a stripe's memory anyway: fewer hops, 1.7 ms of MD5 each.
POUR_SIZE = 1024 * 1024

_LENGTH = re.compile(r"[0-9]{1,19}").fullmatch  # int() alone takes 1_0, +5, spaces, Arabic digits.
_NOT_VALUES = frozenset({"x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-checksum-mode"})
_STREAMING = frozenset({STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER})
_READ_FAILURES = (RequestPayloadError, HttpProcessingError, ConnectionError, RuntimeError)

NO_DIGESTS = Digests(
    0,
    hashlib.md5(usedforsecurity=False).digest(),
    Checksum(checksums.DEFAULT, checksums.FULL_OBJECT, bytes(8)),
)


class NoBody:
    """The body of a request that has none. One for all."""

    size: int | None = 0
    received = 0

    def __aiter__(self) -> "NoBody":
        return self

    async def __anext__(self) -> Buffer:
        raise StopAsyncIteration

    async def digests(self) -> Digests:
        return NO_DIGESTS


NO_BODY = NoBody()


class RequestBody:
    """The verified bytes of one request. See objects/values.py `Body`."""

    __slots__ = (
        "_algorithm", "_allow_lengthless", "_batch", "_batch_size", "_chain", "_checksum",
        "_checksum_in_body", "_decoder", "_digests", "_ended", "_expected_checksum", "_expected_md5",
        "_fault", "_given", "_go_on", "_headers", "_job", "_loop", "_md5", "_payload", "_pool", "_ready",
        "_sha256", "_small", "_started", "_trailer_name", "_verified", "_wire_size", "received", "size",
    )  # fmt: skip

    def __init__(
        self,
        *,
        payload: StreamReader,
        headers: dict[str, str],
        verified: Verified,
        wire_size: int | None,
        size: int | None,
        pool: Executor,
        go_on: Callable[[], None] | None,
        checksum_in_body: bool,
        allow_lengthless: bool,
    ) -> None:
        self.size = size
        self.received = 0  # Decoded bytes so far.
        self._payload = payload
        self._headers = headers
        self._verified = verified
        self._wire_size = wire_size
        self._pool = pool
        self._go_on = go_on
        self._checksum_in_body = checksum_in_body
        self._allow_lengthless = allow_lengthless
        self._started = False
        self._ended = False
        self._algorithm = checksums.DEFAULT
        self._digests: Digests | None = None

    def __aiter__(self) -> "RequestBody":
        return self

    async def __anext__(self) -> Buffer:
        if not self._started:
            self._begin()
            if self._small:
                data = await self._read_small()
                if data:
                    return data
                raise StopAsyncIteration
        if self._small:
            raise StopAsyncIteration
        return await self._next_large()

    @property
    def is_large(self) -> bool:
        """Whether the body is longer than what is hashed inline: `pour` it."""
        return self._wire_size is not None and self._wire_size > INLINE_SIZE_MAX + _FRAMING_SIZE_MAX

    async def pour(self, sink: Sink) -> None:
        """All of a large body, not begun yet, into the sink: received in its memory where that can be done.

        Raises: as the iteration does, and what the sink raises.
        """
        assert not self._started
        self._begin()
        intake = None
        if self._decoder is None and self._wire_size is not None and not self._small:
            intake = take_over(self._payload, self._wire_size)
        if intake is None:
            async for data in self:
                await sink.write(data)
            return
        sink.hurry = intake.hurry
        try:
            for data in intake.begun:
                await self._pour_copy(data, sink)
            intake.begun.clear()
            while intake.left:
                if sink.is_full:
                    if self._batch:  # All of this memory is in the hands of the hash before it goes on.
                        await self._start_job()
                    await sink.turn(self._job)
                room = sink.room()
                if room is None:
                    # After a hurry nothing is held for a sender that may never go on: its next bytes first.
                    intake.go(memoryview(bytearray(INLINE_SIZE_MAX)))
                    await self._some(intake, 1)
                    intake.hold()
                    await self._pour_copy(bytes(intake.collect()), sink)
                    intake.hurried = False
                else:
                    await self._fill(intake, room, sink)
            self._ended = True
            # While `hurry` is set the memory is ours: its last bytes must not be lent to others unhashed.
            await self._settle()
        finally:
            sink.hurry = None
            intake.end()

    async def _fill(self, intake: Intake, room: memoryview, sink: Sink) -> None:
        """Receive into the sink's memory until it is full, wanted elsewhere, or the body has come."""
        intake.go(room)
        while not (intake.hurried or (intake.is_full and not intake.uncollected)):
            await self._some(intake, POUR_SIZE)
            self._collect(intake, sink)
            if self._batch_size >= POUR_SIZE:
                await self._start_job()  # Bytes go on arriving meanwhile.
        if intake.hurried:
            intake.hold()
            self._collect(intake, sink)
            if self._batch:
                await self._start_job()
            await sink.flush(self._job)
            intake.hurried = False

    def _collect(self, intake: Intake, sink: Sink) -> None:
        piece = intake.collect()
        if piece:
            sink.took(len(piece))
            self._account(piece)

    async def _pour_copy(self, data: bytes, sink: Sink) -> None:
        self._account(data)
        await sink.write(data)

    def _account(self, data: bytes | memoryview) -> None:
        self.received += len(data)
        self._batch.append(data)
        self._batch_size += len(data)

    async def _some(self, intake: Intake, wanted: int) -> None:
        try:
            await intake.some(wanted)
        except _READ_FAILURES as failure:
            raise _broken_off(failure) from None

    async def digests(self) -> Digests:
        if self._digests is None:
            assert self._ended, "digests before the end of the body"
            await self._settle()
            self._digests = self._judge(
                self._md5.digest(),
                self._checksum.digest(),
                self._sha256.hexdigest() if self._sha256 is not None else "",
            )
        return self._digests

    # --- What the headers promise -----------------------------------------------------------------------

    def _begin(self) -> None:
        """Everything that the headers alone can tell. Raises: S3Fault."""
        self._started = True
        headers = self._headers
        if self.size is None and not self._allow_lengthless:
            raise missing_content_length()
        if self.size is not None and self.size > SIZE_MAX:
            raise entity_too_large(size=self.size, maximum=SIZE_MAX)

        self._expected_md5: bytes | None = None
        text = headers.get("content-md5")
        if text is not None:
            self._expected_md5 = _decode_md5(text)
        self._expected_checksum: bytes | None = None
        self._trailer_name = ""
        self._given = ""  # The header or trailer that gave the checksum.
        if self._checksum_in_body:
            self._read_checksum_headers(headers)

        payload = self._verified.payload
        self._decoder: ChunkedDecoder | None = None
        self._chain: SignatureChain | None = None
        if payload in _STREAMING:
            assert self.size is not None
            signed = payload != STREAMING_UNSIGNED_TRAILER
            self._decoder = ChunkedDecoder(signed=signed, trailer=payload != STREAMING_SIGNED, size=self.size)
            if signed:
                proof = self._verified
                self._chain = SignatureChain(
                    key=proof.key, amz_date=proof.amz_date, scope=proof.scope, seed=proof.signature
                )
        wire_size = self._wire_size
        self._small = wire_size is not None and (
            wire_size <= INLINE_SIZE_MAX
            if self._decoder is None
            else wire_size <= INLINE_SIZE_MAX + _FRAMING_SIZE_MAX
        )
        if not self._small:
            self._loop = asyncio.get_running_loop()
            self._job: asyncio.Future[None] | None = None
            self._batch: list[Piece | bytes] = []
            self._batch_size = 0
            self._ready: list[memoryview] = []
            self._fault: S3Fault | None = None
            self._md5 = hashlib.md5(usedforsecurity=False)
            self._checksum = checksums.running(self._algorithm)
            self._sha256 = sha256() if payload not in _STREAMING and payload != UNSIGNED else None
        if self._go_on is not None:
            self._go_on()

    def _read_checksum_headers(self, headers: dict[str, str]) -> None:
        for name in headers:
            if name[:15] != "x-amz-checksum-" or name in _NOT_VALUES:
                continue
            algorithm = checksums.HEADERS.get(name)
            if algorithm is None:
                raise invalid_request(
                    "The algorithm type you specified in x-amz-checksum- header is invalid."
                )
            if self._given:
                raise _two_checksums()
            self._given, self._algorithm = name, algorithm
            self._expected_checksum = checksums.decode_value(algorithm, headers[name])
            if self._expected_checksum is None:
                raise invalid_request(f"Value for {name} header is invalid.")
        trailer = headers.get("x-amz-trailer")
        if trailer is not None:
            if self._verified.payload not in (STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER):
                raise invalid_request("The x-amz-trailer header needs a payload with trailers.")
            if self._given:
                raise _two_checksums()
            name = trailer.lower()
            algorithm = checksums.HEADERS.get(name)
            if algorithm is None:
                raise invalid_request("The value specified in the x-amz-trailer header is not supported")
            self._given, self._algorithm, self._trailer_name = name, algorithm, name
        announced = headers.get("x-amz-sdk-checksum-algorithm")
        if announced is None:
            return
        if not self._given:  # AWS's words, as recorded.
            raise invalid_request(
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or"
                " x-amz-trailer headers were found."
            )
        if not self._trailer_name and announced.upper() != self._algorithm:
            # What AWS was seen to answer; its documents say BadDigest, which is 400 as well.
            raise invalid_request("Value for x-amz-sdk-checksum-algorithm header is invalid.")

    # --- Small: whole, inline ---------------------------------------------------------------------------

    async def _read_small(self) -> bytes:
        payload = self._payload
        try:
            if payload.is_eof():
                data = payload.read_nowait()
            else:
                blocks = [await payload.readany()]
                while not payload.at_eof():
                    blocks.append(await payload.readany())
                data = b"".join(blocks) if len(blocks) > 1 else blocks[0]
        except _READ_FAILURES as failure:
            raise _broken_off(failure) from None
        if self._decoder is not None:
            pieces = self._decoder.feed(data)
            self._decoder.finish()
            kept = []
            for piece in pieces:
                if isinstance(piece, memoryview):
                    kept.append(piece)
                    if self._chain is not None:
                        self._chain.update(piece)
                elif self._chain is not None:
                    self._chain.end_chunk(piece.signature)
            data = b"".join(kept)
            self._check_trailers()
        self.received = len(data)
        self._ended = True
        proof = self._verified.payload
        self._digests = self._judge(
            hashlib.md5(data, usedforsecurity=False).digest(),
            checksums.compute(self._algorithm, data),
            sha256(data).hexdigest() if self._decoder is None and proof != UNSIGNED else "",
        )
        return data

    # --- Large: piece by piece, hashed in threads --------------------------------------------------------

    async def _next_large(self) -> Buffer:
        if self._ready:
            return self._ready.pop(0)
        while not self._ended:
            if self._batch_size >= BATCH_SIZE:
                await self._start_job()
            data = await self._read()
            if not data:
                self._ended = True
                if self._decoder is not None:
                    self._decoder.finish()
                break
            if self._decoder is None:
                self.received += len(data)
                if self.received > SIZE_MAX:  # Only where the client declared no length.
                    raise entity_too_large(size=self.received, maximum=SIZE_MAX)
                self._batch.append(data)
                self._batch_size += len(data)
                return data
            pieces = self._decoder.feed(data)
            ready = [piece for piece in pieces if isinstance(piece, memoryview)]
            if self._chain is None:  # Where the chunks end matters to signatures only.
                if len(ready) > _PIECES_MAX:
                    ready = [memoryview(b"".join(ready))]
                self._batch += ready
            else:
                self._batch += pieces
            self._batch_size += len(data)
            if ready:
                self.received += sum(map(len, ready))
                self._ready = ready
                return ready.pop(0)
        raise StopAsyncIteration

    async def _read(self) -> bytes:
        """The next bytes from the wire; b"" at the end."""
        payload = self._payload
        try:
            if self._wire_size is None:
                return await payload.readany()  # HTTP chunks may be tiny: take all that is there.
            while True:
                data, _ = await payload.readchunk()  # As it was received: nothing is joined.
                if data or payload.at_eof():
                    return data
        except _READ_FAILURES as failure:
            raise _broken_off(failure) from None

    async def _start_job(self) -> None:
        if self._job is not None:
            await self._job
            self._job = None
        if self._fault is not None:
            raise self._fault
        batch, self._batch, self._batch_size = self._batch, [], 0
        self._job = self._loop.run_in_executor(self._pool, self._hash, batch)

    def _hash(self, batch: list[Piece | bytes]) -> None:
        """In a thread: the batch through all hashes. MD5 and SHA-256 release the GIL."""
        chain, sha = self._chain, self._sha256
        md5, checksum = self._md5.update, self._checksum.update
        try:
            for piece in batch:
                if isinstance(piece, ChunkEnd):
                    if chain is not None:
                        chain.end_chunk(piece.signature)
                    continue
                md5(piece)
                checksum(piece)
                if sha is not None:
                    sha.update(piece)
                if chain is not None:
                    chain.update(piece)
        except S3Fault as fault:
            self._fault = self._fault or fault  # A job never raises: nobody may be waiting for it.

    async def _settle(self) -> None:
        """Hash what is left, check chunk signatures and trailers. Raises: S3Fault."""
        if self._batch_size > INLINE_SIZE_MAX:
            await self._start_job()
        if self._job is not None:
            await self._job
            self._job = None
        self._hash(self._batch)
        self._batch, self._batch_size = [], 0
        if self._fault is not None:
            raise self._fault
        if self._decoder is not None:
            self._check_trailers()

    # --- The verdict ------------------------------------------------------------------------------------

    def _check_trailers(self) -> None:
        """Declared and sent trailers are the same, and signed. Raises: S3Fault."""
        decoder, chain = self._decoder, self._chain
        assert decoder is not None
        if decoder.trailers:
            (name, value), *more = decoder.trailers
            if more or name != self._trailer_name:
                raise malformed_trailer()
        elif self._trailer_name:
            raise malformed_trailer()
        if chain is not None and self._verified.payload == STREAMING_SIGNED_TRAILER:
            if decoder.trailer_signature:
                chain.end_trailers(decoder.signed_trailer, decoder.trailer_signature)
            elif decoder.trailers:
                raise incomplete_body("The trailers are not signed")
        if decoder.trailers:
            self._expected_checksum = checksums.decode_value(self._algorithm, value)
            if self._expected_checksum is None:
                raise invalid_request(f"Value for {name} trailing header is invalid.")

    def _judge(self, md5: bytes, checksum: bytes, sha256_hex: str) -> Digests:
        """Compare what came with what was promised. Raises: S3Fault."""
        if self.size is not None and self.received != self.size:
            raise incomplete_body(
                "You did not provide the number of bytes specified by the Content-Length HTTP header"
            )
        if sha256_hex and sha256_hex != self._verified.payload:
            raise payload_mismatch(client=self._verified.payload, computed=sha256_hex)
        if self._expected_md5 is not None and self._expected_md5 != md5:
            raise bad_md5(
                expected=base64.b64encode(self._expected_md5).decode(),
                calculated=base64.b64encode(md5).decode(),
            )
        if self._expected_checksum is not None and self._expected_checksum != checksum:
            raise bad_checksum(self._algorithm)
        return Digests(self.received, md5, Checksum(self._algorithm, checksums.FULL_OBJECT, checksum))


def open_body(
    *,
    payload: StreamReader,
    headers: dict[str, str],
    verified: Verified,
    chunked: bool,
    pool: Executor,
    go_on: Callable[[], None] | None,
    object_put: bool,
    checksum_in_body: bool = True,
) -> RequestBody | NoBody:
    """The body of a verified request.

    Args:
        payload: the HTTP body as aiohttp decodes it (Content-Length or Transfer-Encoding dealt with).
        headers: by lower-case name.
        chunked: Transfer-Encoding: chunked.
        pool: hashes large bodies.
        go_on: sends `100 Continue`; None when the client does not wait for it.
        object_put: a PUT of an object's or part's bytes, which needs a length.
        checksum_in_body: x-amz-checksum-* speak of this body (with CompleteMultipartUpload: of the object).

    Raises: S3Fault, for a length that is missing or malformed.
    """
    text = headers.get("content-length")
    wire_size = None
    if text is not None:
        if _LENGTH(text) is None:
            raise invalid_argument("Content-Length must be a number", "Content-Length", text[:64])
        wire_size = int(text)
    elif not chunked:
        wire_size = None if object_put else 0
    size = wire_size
    if verified.payload in _STREAMING and (wire_size or chunked or object_put):
        decoded = headers.get("x-amz-decoded-content-length")
        if decoded is None:
            raise missing_content_length()
        if _LENGTH(decoded) is None:
            raise invalid_argument(
                "x-amz-decoded-content-length must be a number", "x-amz-decoded-content-length", decoded[:64]
            )
        size = int(decoded)
    elif wire_size == 0 and not object_put and "content-md5" not in headers:
        return NO_BODY
    return RequestBody(
        payload=payload,
        headers=headers,
        verified=verified,
        wire_size=wire_size,
        size=size,
        pool=pool,
        go_on=go_on,
        checksum_in_body=checksum_in_body,
        allow_lengthless=chunked,
    )


def _decode_md5(text: str) -> bytes:
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise invalid_digest(text[:128]) from None
    if len(raw) != 16:
        raise invalid_digest(text[:128])
    return raw


def _two_checksums() -> S3Fault:
    return invalid_request(
        "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
    )


def _broken_off(failure: Exception) -> S3Fault:
    """The body could not be read to its end. The connection is of no further use."""
    fault = incomplete_body()
    fault.headers["Connection"] = "close"
    fault.__cause__ = failure
    return fault
