"""Bodies: framing, signatures, Content-MD5 and checksums, each right and each wrong."""

import base64
import hashlib
import hmac
import os
import random
import zlib
from collections.abc import Sequence
from itertools import pairwise

import pytest
from awscrt import checksums as crt
from edge_running import Answer, Edge, Start, read_answer
from edge_signing import NOW, REGION, SECRET, Signed, sign

from objstore.objects import checksums as whole_checksums
from objstore.s3 import checksums
from objstore.s3.chunked import AVERAGE_SIZE_MIN, FREE_COUNT, ChunkedDecoder, ChunkEnd, SignatureChain
from objstore.s3.errors import S3Fault
from objstore.s3.sigv4 import signing_key

STAMP = "20261121T222640Z"
SCOPE = "20261121/us-east-1/s3/aws4_request"
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def value_of(algorithm: str, data: bytes) -> str:
    return b64(checksums.compute(algorithm, data))


def chunk_signature(kind: str, previous: str, *hashes: bytes) -> str:
    key = signing_key(SECRET, "20261121", REGION)
    digests = "\n".join(hashlib.sha256(data).hexdigest() for data in hashes)
    return hmac.new(key, f"{kind}\n{STAMP}\n{SCOPE}\n{previous}\n{digests}".encode(), "sha256").hexdigest()


def frame(
    data: bytes,
    seed: str,
    *,
    chunk_size: int = 65536,
    signed: bool = True,
    trailers: Sequence[tuple[str, str]] = (),
) -> bytes:
    """aws-chunked, written independently of the decoder, after AWS's description."""
    framed, previous = [], seed
    for start in [*range(0, len(data), chunk_size), len(data)]:
        chunk = data[start : start + chunk_size]
        if signed:
            previous = chunk_signature("AWS4-HMAC-SHA256-PAYLOAD", previous, b"", chunk)
            framed.append(f"{len(chunk):x};chunk-signature={previous}\r\n".encode())
        else:
            framed.append(f"{len(chunk):x}\r\n".encode())
        if chunk:
            framed += [chunk, b"\r\n"]
    framed += [f"{name}:{value}\r\n".encode() for name, value in trailers]
    if trailers and signed:
        text = "".join(f"{name}:{value}\n" for name, value in trailers).encode()
        signature = chunk_signature("AWS4-HMAC-SHA256-TRAILER", previous, text)
        framed.append(f"x-amz-trailer-signature:{signature}\r\n".encode())
    return b"".join([*framed, b"\r\n"])


def streaming(
    payload: str,
    data: bytes,
    *,
    chunk_size: int = 65536,
    trailers: Sequence[tuple[str, str]] = (),
    declare: str | None = None,
    headers: dict[str, str] | None = None,
    size: int | None = None,
    http_chunked: bool = False,
    path: str = "/b/k",
) -> Signed:
    """A PUT with a framed body. `declare`: x-amz-trailer, by default the trailers' name."""
    sent = dict(headers or {})
    sent["x-amz-decoded-content-length"] = str(len(data) if size is None else size)
    if declare is None and trailers:
        declare = trailers[0][0]
    if declare:
        sent["x-amz-trailer"] = declare
    request = sign("PUT", path, headers=sent, payload=payload, length=False)
    seed = request.header("Authorization")[-64:]
    body = frame(data, seed, chunk_size=chunk_size, signed=payload != UNSIGNED_TRAILER, trailers=trailers)
    if http_chunked:
        request.headers.append(("Transfer-Encoding", "chunked"))
        pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
        body = b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in pieces) + b"0\r\n\r\n"
    else:
        request.headers.append(("Content-Length", str(len(body))))
    return Signed(request.method, request.target, request.headers, body)


def with_body(request: Signed, body: bytes) -> Signed:
    headers = [(k, str(len(body)) if k == "Content-Length" else v) for k, v in request.headers]
    return Signed(request.method, request.target, headers, body)


SIZES = [0, 1, 5000, 65536, 131072, 200_000, 700_001, 3_000_000]
DATA = random.Random(7).randbytes(max(SIZES))


# --- What is right arrives -------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_bodies_of_every_mode_and_size_arrive_unchanged(edge: Edge, size: int) -> None:
    data = DATA[:size]
    crc = [("x-amz-checksum-crc32", value_of("CRC32", data))]
    requests = [
        sign("PUT", "/b/k", body=data),
        sign("PUT", "/b/k", body=data, payload="UNSIGNED-PAYLOAD"),
        sign("PUT", "/b/k", body=data, headers={"Content-MD5": b64(hashlib.md5(data).digest())}),
        streaming(SIGNED, data),
        streaming(SIGNED_TRAILER, data, trailers=crc),
        streaming(UNSIGNED_TRAILER, data, trailers=crc),
        streaming(UNSIGNED_TRAILER, data, trailers=crc, http_chunked=True),
        streaming(SIGNED, data, chunk_size=8192),
        streaming(UNSIGNED_TRAILER, data, chunk_size=777, trailers=crc),
    ]
    for request in requests:
        answer = await edge.send(request.wire())
        assert answer.status == 200, (request.headers, answer)
        assert edge.seen[-1].body == data


async def test_a_body_that_arrives_in_single_bytes_is_the_same_body(edge: Edge) -> None:
    data = DATA[:9000]
    request = streaming(
        SIGNED_TRAILER, data, chunk_size=8192, trailers=[("x-amz-checksum-sha256", value_of("SHA256", data))]
    )
    reader, writer = await edge.connect()
    head, body = request.wire()[: -len(request.body)], request.body
    writer.write(head)
    for at in range(0, len(body), 97):
        writer.write(body[at : at + 97])
        await writer.drain()
    assert (await read_answer(reader)).status == 200
    writer.close()
    assert edge.seen[-1].body == data


@pytest.mark.parametrize("algorithm", checksums.ALGORITHMS)
@pytest.mark.parametrize("size", [0, 4096, 300_000])
async def test_a_right_checksum_in_header_or_trailer_is_accepted_and_a_wrong_one_is_not(
    edge: Edge, algorithm: str, size: int
) -> None:
    data = DATA[:size]
    name = f"x-amz-checksum-{algorithm.lower()}"
    right, wrong = value_of(algorithm, data), value_of(algorithm, data + b"x")
    for value, status in ((right, 200), (wrong, 400)):
        answers = [
            await edge.send(sign("PUT", "/b/k", body=data, headers={name: value}).wire()),
            await edge.send(streaming(SIGNED_TRAILER, data, trailers=[(name, value)]).wire()),
            await edge.send(streaming(UNSIGNED_TRAILER, data, trailers=[(name, value)]).wire()),
            await edge.send(streaming(SIGNED, data, headers={name: value}).wire()),
        ]
        for answer in answers:
            assert answer.status == status
            if status == 400:
                assert answer.code == "BadDigest"
                message = f"The {algorithm} you specified did not match the calculated checksum."
                assert message.encode() in answer.body


async def test_known_answers() -> None:
    known = {"CRC32": "NhCmhg==", "CRC32C": "mnG7TA==", "CRC64NVME": "M3eFcAZSQlc="}
    for algorithm, value in known.items():
        assert value_of(algorithm, b"hello") == value
    nine = b"123456789"
    assert checksums.compute("CRC32", nine).hex() == "cbf43926"
    assert checksums.compute("CRC32C", nine).hex() == "e3069283"
    assert checksums.compute("CRC64NVME", nine).hex() == "ae8b14860a799888"


async def test_a_put_without_a_checksum_gets_crc64nvme(start_edge: Start) -> None:
    from aiohttp import web

    found = []

    async def handle(call):  # type: ignore[no-untyped-def]
        async for _ in call.body:
            pass
        found.append(await call.body.digests())
        return web.Response()

    edge = await start_edge(handle)
    for size in (0, 10, 500_000):
        data = DATA[:size]
        assert (await edge.send(sign("PUT", "/b/k", body=data).wire())).status == 200
        assert found[-1].size == size
        assert found[-1].md5 == hashlib.md5(data).digest()
        assert found[-1].checksum.algorithm == "CRC64NVME"
        assert found[-1].checksum.type == "FULL_OBJECT"
        assert found[-1].checksum.digest == crt.crc64nvme(data).to_bytes(8, "big")


# --- What is wrong does not ------------------------------------------------------------------------


def refused(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer


@pytest.mark.parametrize("size", [0, 4096, 300_000])
async def test_a_body_that_does_not_match_its_hash_is_refused(edge: Edge, size: int) -> None:
    data = DATA[:size]
    request = sign("PUT", "/b/k", body=data, payload=hashlib.sha256(data + b"x").hexdigest())
    answer = await edge.send(request.wire())
    refused(answer, 400, "XAmzContentSHA256Mismatch")
    assert hashlib.sha256(data).hexdigest().encode() in answer.body
    assert edge.seen == []


@pytest.mark.parametrize("size", [0, 4096, 300_000])
async def test_content_md5_is_checked(edge: Edge, size: int) -> None:
    data = DATA[:size]
    wrong = b64(hashlib.md5(data + b"x").digest())
    answer = await edge.send(sign("PUT", "/b/k", body=data, headers={"Content-MD5": wrong}).wire())
    refused(answer, 400, "BadDigest")
    assert f"<ExpectedDigest>{wrong}<".encode() in answer.body
    for malformed in (
        "",
        "x",
        "AAAA",
        b64(bytes(15)),
        b64(bytes(17)),
        b64(bytes(16))[:-1],
        b64(bytes(16)) + "=",
    ):
        answer = await edge.send(sign("PUT", "/b/k", body=data, headers={"Content-MD5": malformed}).wire())
        refused(answer, 400, "InvalidDigest")
    assert edge.seen == []


async def test_which_of_two_wrong_digests_is_named(edge: Edge) -> None:
    wrong_md5 = b64(bytes(16))
    wrong_sha = "0" * 64
    both = sign("PUT", "/b/k", body=b"x", payload=wrong_sha, headers={"Content-MD5": wrong_md5})
    refused(await edge.send(both.wire()), 400, "XAmzContentSHA256Mismatch")
    malformed = sign("PUT", "/b/k", body=b"x", payload=wrong_sha, headers={"Content-MD5": "???"})
    refused(await edge.send(malformed.wire()), 400, "InvalidDigest")


@pytest.mark.parametrize("name", list(checksums.HEADERS))
async def test_a_checksum_that_is_not_base64_of_its_size_is_refused(edge: Edge, name: str) -> None:
    for value in ("bad", "", "====", b64(b"12345"), "AAAA AAAA"):
        answer = await edge.send(sign("PUT", "/b/k", body=b"x", headers={name: value}).wire())
        refused(answer, 400, "InvalidRequest")
        assert f"Value for {name} header is invalid.".encode() in answer.body
        answer = await edge.send(
            streaming(UNSIGNED_TRAILER, b"x", trailers=[(name, value.replace(" ", ""))]).wire()
        )
        assert answer.status == 400
    answer = await edge.send(streaming(UNSIGNED_TRAILER, b"x", trailers=[(name, "bad")]).wire())
    assert f"Value for {name} trailing header is invalid.".encode() in answer.body


async def test_two_checksums_are_refused(edge: Edge) -> None:
    two = {"x-amz-checksum-crc32": value_of("CRC32", b"x"), "x-amz-checksum-sha1": value_of("SHA1", b"x")}
    refused(await edge.send(sign("PUT", "/b/k", body=b"x", headers=two).wire()), 400, "InvalidRequest")
    both = streaming(
        UNSIGNED_TRAILER,
        b"x",
        trailers=[("x-amz-checksum-crc32", two["x-amz-checksum-crc32"])],
        headers={"x-amz-checksum-sha1": two["x-amz-checksum-sha1"]},
    )
    refused(await edge.send(both.wire()), 400, "InvalidRequest")
    unknown = sign("PUT", "/b/k", body=b"x", headers={"x-amz-checksum-md7": "x"})
    refused(await edge.send(unknown.wire()), 400, "InvalidRequest")


@pytest.mark.parametrize("size", [20_000, 400_000])
async def test_every_kind_of_broken_framing_is_refused(edge: Edge, size: int) -> None:
    data = DATA[:size]
    good = streaming(SIGNED, data, chunk_size=8192)
    framed = good.body
    final = framed.rindex(b"0;chunk-signature=")
    first_end = framed.index(b"\r\n")
    broken = {
        "no final chunk": framed[:final],
        "truncated": framed[: len(framed) // 2],
        "no last CRLF": framed[:-2],
        "half a CRLF": framed[:-1],
        "data after the end": framed + b"x",
        "a second body": framed + framed,
        "LF only": framed.replace(b"\r\n", b"\n", 1),
        "no CRLF after data": framed[: first_end + 2 + 8192] + framed[first_end + 4 + 8192 :],
        "0x size": b"0x2000" + framed[4:],
        "signed size": b"+2000" + framed[4:],
        "underscored size": b"2_000" + framed[4:],
        "spaced size": b" 2000" + framed[4:],
        "arabic size": "\u0662000".encode() + framed[4:],
        "negative size": b"-2000" + framed[4:],
        "huge size": b"f" * 17 + framed[4:],
        "no signature": framed[:4] + framed[first_end:],
        "short signature": framed[: first_end - 1] + framed[first_end:],
        "another extension": framed[:first_end] + b";a=b" + framed[first_end:],
        "an endless head": b"0" * 5000,
        "empty": b"",
    }
    for name, body in broken.items():
        answer = await edge.send(with_body(good, body).wire())
        assert (answer.status, answer.code) == (400, "IncompleteBody"), (name, answer)
    for wrong in (size - 1, size + 1, 0):
        request = streaming(SIGNED, data, chunk_size=8192, size=wrong)
        refused(await edge.send(request.wire()), 400, "IncompleteBody")
    assert edge.seen == []


@pytest.mark.parametrize("size", [20_000, 400_000])
@pytest.mark.parametrize("payload", [SIGNED, SIGNED_TRAILER])
async def test_every_wrong_chunk_signature_is_refused(edge: Edge, size: int, payload: str) -> None:
    good = streaming(payload, DATA[:size], chunk_size=16384)
    at, places = 0, []
    while (at := good.body.find(b"chunk-signature=", at)) >= 0:
        at += 16
        places.append(at)
    assert len(places) >= 3
    for place in (places[0], places[1], places[-2], places[-1]):
        letter = b"a" if good.body[place : place + 1] != b"a" else b"b"
        body = good.body[:place] + letter + good.body[place + 1 :]
        answer = await edge.send(with_body(good, body).wire())
        refused(answer, 403, "SignatureDoesNotMatch")
        assert b"<StringToSign>AWS4-HMAC-SHA256-PAYLOAD\n" in answer.body
    place = good.body.index(b"\r\n") + 2
    flipped = good.body[:place] + bytes([good.body[place] ^ 1]) + good.body[place + 1 :]
    refused(await edge.send(with_body(good, flipped).wire()), 403, "SignatureDoesNotMatch")
    assert edge.seen == []


async def test_chunks_cannot_be_swapped_or_replayed(edge: Edge) -> None:
    good = streaming(SIGNED, DATA[:32768], chunk_size=8192)
    size = 4 + 17 + 64 + 2 + 8192 + 2
    chunks = [good.body[at : at + size] for at in range(0, 4 * size, size)]
    assert all(chunk.startswith(b"2000;") for chunk in chunks)
    rest = good.body[4 * size :]
    for order in ([1, 0, 2, 3], [0, 0, 2, 3], [0, 1, 3, 2]):
        body = b"".join(chunks[n] for n in order) + rest
        refused(await edge.send(with_body(good, body).wire()), 403, "SignatureDoesNotMatch")


async def test_a_small_chunk_that_is_not_the_last_is_refused(edge: Edge) -> None:
    answer = await edge.send(streaming(SIGNED, DATA[:20_000], chunk_size=8191).wire())
    refused(answer, 403, "InvalidChunkSizeError")
    assert b"<Chunk>1</Chunk><BadChunkSize>8191</BadChunkSize>" in answer.body


async def test_a_body_of_a_million_tiny_chunks_is_refused_early(edge: Edge) -> None:
    data = bytes(FREE_COUNT + 10)
    refused(
        await edge.send(streaming(UNSIGNED_TRAILER, data, chunk_size=1).wire()), 403, "InvalidChunkSizeError"
    )
    many = DATA[:3_000_000]
    for size in (AVERAGE_SIZE_MIN, 3000):  # Small ones of an unsigned body are taken, also many.
        assert (await edge.send(streaming(UNSIGNED_TRAILER, many, chunk_size=size).wire())).status == 200
        assert edge.seen[-1].body == many


async def test_trailers_must_be_those_that_were_declared_and_signed(edge: Edge) -> None:
    data = DATA[:9000]
    crc = ("x-amz-checksum-crc32", value_of("CRC32", data))
    sha = ("x-amz-checksum-sha1", value_of("SHA1", data))
    for payload in (SIGNED_TRAILER, UNSIGNED_TRAILER):
        cases = [
            (streaming(payload, data, trailers=[crc], declare=""), "MalformedTrailerError"),
            (streaming(payload, data, declare=crc[0]), "MalformedTrailerError"),
            (streaming(payload, data, trailers=[sha], declare=crc[0]), "MalformedTrailerError"),
            (streaming(payload, data, trailers=[crc, sha], declare=crc[0]), "MalformedTrailerError"),
            (streaming(payload, data, trailers=[crc, crc], declare=crc[0]), "MalformedTrailerError"),
            (streaming(payload, data, trailers=[crc], declare="x-amz-meta-a"), "InvalidRequest"),
        ]
        for request, code in cases:
            refused(await edge.send(request.wire()), 400, code)
        accepted = await edge.send(streaming(payload, data).wire())
        assert accepted.status == 200, "no trailer declared and none sent is right"
    good = streaming(SIGNED_TRAILER, data, trailers=[crc])
    mark = b"x-amz-trailer-signature:"
    at = good.body.index(mark)
    refused(await edge.send(with_body(good, good.body[:at] + b"\r\n").wire()), 400, "IncompleteBody")
    digit = b"a" if good.body[at + 24 : at + 25] != b"a" else b"b"
    wrong = good.body[: at + 24] + digit + good.body[at + 25 :]
    answer = await edge.send(with_body(good, wrong).wire())
    refused(answer, 403, "SignatureDoesNotMatch")
    assert b"<StringToSign>AWS4-HMAC-SHA256-TRAILER\n" in answer.body
    changed = good.body.replace(crc[1].encode(), value_of("CRC32", b"?").encode())
    refused(await edge.send(with_body(good, changed).wire()), 403, "SignatureDoesNotMatch")
    unsigned = streaming(UNSIGNED_TRAILER, data, trailers=[crc])
    refused(await edge.send(with_body(unsigned, unsigned.body[:-2]).wire()), 400, "IncompleteBody")
    broken = unsigned.body[:-2] + b"no colon\r\n\r\n"
    refused(await edge.send(with_body(unsigned, broken).wire()), 400, "MalformedTrailerError")
    endless = unsigned.body[:-2] + b"x-amz-meta-a:" + b"a" * 20_000 + b"\r\n\r\n"
    refused(await edge.send(with_body(unsigned, endless).wire()), 400, "MalformedTrailerError")


async def test_a_trailer_that_ends_with_lf_crlf_is_understood(edge: Edge) -> None:
    """Some SDKs end a trailer's line with LF and then CRLF."""
    data = DATA[:9000]
    crc = ("x-amz-checksum-crc32", value_of("CRC32", data))
    good = streaming(SIGNED_TRAILER, data, trailers=[crc])
    body = good.body.replace(crc[1].encode() + b"\r\n", crc[1].encode() + b"\n\r\n")
    assert (await edge.send(with_body(good, body).wire())).status == 200


async def test_streaming_needs_the_decoded_length(edge: Edge) -> None:
    request = sign("PUT", "/b/k", payload=SIGNED, length=False)
    request.headers.append(("Content-Length", "0"))
    refused(await edge.send(request.wire()), 411, "MissingContentLength")
    for value in ("1_0", "+5", "\u0661", " ", "x", "-1", "9" * 30):
        request = sign(
            "PUT", "/b/k", payload=SIGNED, headers={"x-amz-decoded-content-length": value}, length=False
        )
        request.headers.append(("Content-Length", "0"))
        answer = await edge.send(request.wire())
        assert answer.status in (400, 403), value


async def test_an_object_put_needs_a_length(edge: Edge) -> None:
    request = sign("PUT", "/b/k", payload="UNSIGNED-PAYLOAD", length=False)
    refused(await edge.send(request.wire()), 411, "MissingContentLength")
    bucket = sign("PUT", "/b", payload="UNSIGNED-PAYLOAD", length=False)
    assert (await edge.send(bucket.wire())).status == 200


async def test_an_object_larger_than_s3_allows_is_refused_before_its_bytes(edge: Edge) -> None:
    request = sign("PUT", "/b/k", payload="UNSIGNED-PAYLOAD", length=False)
    request.headers.append(("Content-Length", str(5 * 1024**3 + 1)))
    refused(await edge.send(request.wire()), 400, "EntityTooLarge")


async def test_chunk_framing_is_told_by_the_payload_word_alone(edge: Edge) -> None:
    plain = sign("PUT", "/b/k", body=b"5\r\nhello\r\n", headers={"Content-Encoding": "aws-chunked"})
    assert (await edge.send(plain.wire())).status == 200
    assert edge.seen[-1].body == b"5\r\nhello\r\n"


async def test_a_gzip_body_stays_as_it_is(edge: Edge) -> None:
    packed = zlib.compress(b"0" * 100_000, wbits=31)
    request = sign("PUT", "/b/k", body=packed, headers={"Content-Encoding": "gzip"})
    assert (await edge.send(request.wire())).status == 200
    assert edge.seen[-1].body == packed


async def test_a_wrong_hash_on_a_get_is_ignored_and_a_malformed_one_is_not(edge: Edge) -> None:
    assert (await edge.send(sign("GET", "/b/k", payload="0" * 64).wire())).status == 200
    refused(await edge.send(sign("GET", "/b/k", payload="0" * 63).wire()), 400, "InvalidArgument")


async def test_complete_multipart_checksums_speak_of_the_object_not_of_the_document(
    start_edge: Start,
) -> None:
    edge = await start_edge(operation=lambda *_: "CompleteMultipartUpload")
    name = "x-amz-checksum-crc64nvme"
    request = sign("POST", "/b/k", body=b"<x/>", headers={name: value_of("CRC64NVME", b"another")})
    assert (await edge.send(request.wire())).status == 200


# --- The decoder and the chain by themselves -----------------------------------------------------------


def test_the_decoder_gives_the_same_whatever_the_cuts() -> None:
    seed = int(os.environ.get("OBJSTORE_EDGE_SEED", random.randrange(1 << 32)))
    print(f"OBJSTORE_EDGE_SEED={seed}")
    rng = random.Random(seed)
    for _ in range(60):
        data = rng.randbytes(rng.randrange(60_000))
        signed, trailer = rng.random() < 0.5, rng.random() < 0.5
        trailers = [("x-amz-checksum-crc32", "AAAAAA==")] if trailer else []
        body = frame(data, "0" * 64, chunk_size=rng.randrange(8192, 30_000), signed=signed, trailers=trailers)
        decoder = ChunkedDecoder(signed=signed, trailer=trailer, size=len(data))
        found, at = [], 0
        while at < len(body):
            step = rng.choice([1, 2, 3, 50, 5000, 70_000])
            found += decoder.feed(body[at : at + step])
            at += step
        decoder.finish()
        assert b"".join(p for p in found if not isinstance(p, ChunkEnd)) == data
        assert decoder.trailers == trailers


def test_garbage_never_does_worse_than_a_fault() -> None:
    seed = int(os.environ.get("OBJSTORE_EDGE_SEED", random.randrange(1 << 32)))
    print(f"OBJSTORE_EDGE_SEED={seed}")
    rng = random.Random(seed)
    good = frame(bytes(20_000), "0" * 64, chunk_size=8192, trailers=[("x-amz-checksum-crc32", "AAAAAA==")])
    whole = 0
    for _ in range(2000):
        body = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        decoder = ChunkedDecoder(signed=True, trailer=True, size=20_000)
        try:
            decoder.feed(bytes(body))
            decoder.finish()
            whole += 1  # Only data or signatures were hit: the chain's business.
        except S3Fault as fault:
            assert fault.status in (400, 403)  # noqa: PT017
    assert whole


def test_the_chain_of_the_documentation_is_verified() -> None:
    """AWS's example: 66,560 bytes in chunks of 65,536, 1,024 and 0."""
    key = signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1")
    chain = SignatureChain(
        key=key,
        amz_date="20130524T000000Z",
        scope="20130524/us-east-1/s3/aws4_request",
        seed="4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    )
    chain.update(b"a" * 65536)
    chain.end_chunk("ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648")
    chain.update(b"a" * 1024)
    chain.end_chunk("0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497")
    chain.end_chunk("b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9")
    with pytest.raises(S3Fault):
        chain.end_chunk("b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9")


def test_the_trailer_chain_of_the_documentation_is_verified() -> None:
    key = signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1")
    chain = SignatureChain(
        key=key,
        amz_date="20130524T000000Z",
        scope="20130524/us-east-1/s3/aws4_request",
        seed="106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
    )
    chain.update(b"a" * 65536)
    chain.end_chunk("b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2")
    chain.update(b"a" * 1024)
    chain.end_chunk("1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7")
    chain.end_chunk("2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992")
    chain.end_trailers(
        b"x-amz-checksum-crc32c:sOO8/Q==\n",
        "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435",
    )


# --- Combining -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
def test_crcs_of_parts_combine_to_the_crc_of_the_whole(algorithm: str) -> None:
    cuts = [0, 1, 5000, 5000, 70_000, 200_000]
    parts = [DATA[a:b] for a, b in pairwise(cuts)]
    whole = whole_checksums.full_object(algorithm, [(checksums.compute(algorithm, p), len(p)) for p in parts])
    assert whole.digest == checksums.compute(algorithm, DATA[:200_000])
    assert (whole.algorithm, whole.type) == (algorithm, "FULL_OBJECT")


def test_a_composite_checksum_is_that_of_the_digests_with_their_number() -> None:
    digests = [hashlib.sha256(part).digest() for part in (b"a", b"b", b"c")]
    composite = whole_checksums.composite("SHA256", digests)
    assert (composite.type, composite.parts) == ("COMPOSITE", 3)
    assert composite.digest == hashlib.sha256(b"".join(digests)).digest()


def test_a_running_checksum_is_that_of_the_whole() -> None:
    for algorithm in checksums.ALGORITHMS:
        running = checksums.running(algorithm)
        for at in range(0, 100_000, 33_333):
            running.update(memoryview(DATA)[at : min(at + 33_333, 100_000)])
        assert running.digest() == checksums.compute(algorithm, DATA[:100_000])


assert NOW == 1_795_300_000.0
