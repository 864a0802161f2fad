"""The raw-socket corpus: whatever bytes come, a clear 4xx in S3's XML, no traceback, no unbounded wait.

The fixture `no_tracebacks` fails a test that leaves an error in the log.
"""

import asyncio
import contextlib
import os
import random
import socket
import struct
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web
from edge_running import SMALL_LIMITS, WITHIN_S, Answer, Edge, Line, Start, read_answer, read_head
from edge_signing import OTHER_ID, OTHER_SECRET, FakeCredential, FakeDirectory, presign, principal, sign
from multidict import CIMultiDict

from objstore.errors import Corrupt, MetaUnavailable
from objstore.s3.answers import stream
from objstore.s3.call import Call
from objstore.s3.limits import DOCUMENT_COPIES, MIB, Limits
from objstore.s3.outbox import JOINED_MAX
from objstore.s3.server import UNSENT_MAX
from tests.waiting import LIMIT_S, until


def is_s3_error(answer: Answer) -> None:
    assert 400 <= answer.status < 500 or answer.status == 501, answer
    assert answer.headers["content-type"] == "application/xml"
    root = ET.fromstring(answer.body)
    assert root.tag == "Error"
    assert root.findtext("Code")
    assert root.findtext("Message")
    assert root.findtext("RequestId") == answer.headers["x-amz-request-id"]
    assert root.findtext("HostId") == answer.headers["x-amz-id-2"]


GOOD = sign("GET", "/bucket/key").wire()
HOST = b"Host: s3.test\r\n"

MALFORMED: dict[str, bytes] = {
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50 + b"\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no target": b"GET\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "a bad version": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "an odd version": b"GET / HTTP/1.1.1\r\n" + HOST + b"\r\n",
    "version 0.9": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "version 2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "a lower-case protocol": b"GET / http/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tab in the target": b"GET /a\tb HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in the target": b"GET /a\x00b HTTP/1.1\r\n" + HOST + b"\r\n",
    "DEL in the target": b"GET /a\x7fb HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: other\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: s3.test\n\n",
    "bare CR": b"GET / HTTP/1.1\rHost: s3.test\r\r",
    "a folded header": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
    "a header without colon": b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length : 0\r\n\r\n",
    "an empty header name": b"GET / HTTP/1.1\r\n" + HOST + b": x\r\n\r\n",
    "a NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n",
    "a control character in a header": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x01c\r\n\r\n",
    "a control character in a name": b"GET / HTTP/1.1\r\n" + HOST + b"A\x01: b\r\n\r\n",
    "a CR in a header": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\rc\r\n\r\n",
    "a bracket in a name": b"GET / HTTP/1.1\r\n" + HOST + b"A(b): c\r\n\r\n",
    "two lengths": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "two equal lengths": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "a list of lengths": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\nx",
    "length +3": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nxxx",
    "length -1": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "length 1_0": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: 1_0\r\n\r\n",
    "length 0x1": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\n",
    "an arabic length": b"PUT /b/k HTTP/1.1\r\n" + HOST + "Content-Length: \u0661\r\n\r\n".encode(),
    "an endless length": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "length and chunks": b"PUT /b/k HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"PUT /b/k HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and more": b"PUT /b/k HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a tab in the coding": b"PUT /b/k HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a huge header": b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 20_000 + b"\r\n\r\n",
    "a huge name": b"GET / HTTP/1.1\r\n" + HOST + b"A" * 20_000 + b": a\r\n\r\n",
    "a huge target": b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"A%d: b\r\n" % n for n in range(500)) + b"\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a lower-case method": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT s3.test:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a web socket": b"GET / HTTP/1.1\r\n"
    + HOST
    + b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
    "another authority": b"GET http://other/b/k HTTP/1.1\r\n" + HOST + b"\r\n",
    "another scheme": b"GET ftp://s3.test/b/k HTTP/1.1\r\n" + HOST + b"\r\n",
    "a broken escape": b"GET /b/%zz HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes that are not UTF-8": b"GET /b/%ff%fe HTTP/1.1\r\n" + HOST + b"\r\n",
    "raw bytes that are not UTF-8": b"GET /b/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /b/k#f HTTP/1.1\r\n" + HOST + b"\r\n",
    "a key without bucket": b"GET //etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "a traversal": b"GET /b/../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "an escaped traversal": b"GET /b/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\n" + HOST + b"\r\n",
    "another expectation": b"PUT /b/k HTTP/1.1\r\n" + HOST + b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.0": b"GET /b/k HTTP/1.0\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_requests_get_a_clear_answer_in_s3_xml(edge: Edge, name: str) -> None:
    is_s3_error(await edge.send(MALFORMED[name]))
    assert edge.seen == []


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_request_never_reaches_into_the_next_one(edge: Edge, name: str) -> None:
    """A good request, a bad one, and a good one that must be answered on its own or not at all."""
    reader, writer = await edge.connect()
    writer.write(GOOD)
    assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
    writer.write(MALFORMED[name] + GOOD)
    is_s3_error(await asyncio.wait_for(read_answer(reader), WITHIN_S))
    try:
        following = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    except (asyncio.IncompleteReadError, ConnectionError):
        following = None  # Closed: the usual end.
    if following is not None:
        assert (following.status, following.body) == (200, b"hello") or 400 <= following.status < 500
    assert all(seen.key == "key" and seen.body == b"" for seen in edge.seen)
    writer.close()


async def test_a_smuggled_request_is_not_served(edge: Edge) -> None:
    """CL.TE and TE.CL: the second request inside the first one's body is never a request."""
    inner = sign("GET", "/bucket/smuggled").wire()
    for first in (
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        % (5 + len(inner)),
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        b"PUT /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: x\r\n\r\n0\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(inner),
    ):
        is_s3_error(await edge.send(first + inner))
    assert edge.seen == []


async def test_a_refused_put_does_not_turn_its_body_into_a_request(edge: Edge) -> None:
    """An unsigned PUT whose body is a signed GET is refused, and its body read away."""
    inner = sign("GET", "/bucket/smuggled").wire()
    reader, writer = await edge.connect()
    writer.write(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner + GOOD)
    is_s3_error(await read_answer(reader))
    assert (await read_answer(reader)).status == 200
    assert [seen.key for seen in edge.seen] == ["key"]
    writer.close()


async def test_keep_alive_serves_many_requests_and_errors_in_between(edge: Edge) -> None:
    reader, writer = await edge.connect()
    for _ in range(3):
        writer.write(GOOD)
        assert (await read_answer(reader)).status == 200
        writer.write(b"GET /b/k HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await read_answer(reader)).status == 403
        writer.write(sign("PUT", "/b/k", body=b"x" * 300, secret="wrong").wire())
        assert (await read_answer(reader)).status == 403
        writer.write(sign("PUT", "/b/k", body=b"y" * 300).wire())
        assert (await read_answer(reader)).status == 200
    writer.close()


async def test_pipelined_requests_are_answered_in_order(edge: Edge) -> None:
    reader, writer = await edge.connect()
    writer.write(b"".join(sign("GET", f"/b/{n}").wire() for n in range(50)))
    for _ in range(50):
        assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
    assert [seen.key for seen in edge.seen] == [str(n) for n in range(50)]
    writer.close()


async def test_pipelined_answers_of_every_kind_come_in_order_and_the_last_one_before_the_close(
    start_edge: Start,
) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        if not call.key.endswith("streamed"):
            return web.Response(body=call.key.encode())
        response = web.StreamResponse(headers={"Content-Length": str(len(call.key))})
        await response.prepare(call.request)
        await response.write(call.key.encode())
        await response.write_eof()
        return response

    edge = await start_edge(handle)
    reader, writer = await edge.connect()
    unsigned = b"GET /b/k HTTP/1.1\r\nHost: h\r\n\r\n"
    rounds = [sign("GET", f"/b/{n}").wire() + sign("GET", f"/b/{n}-streamed").wire() for n in range(8)]
    last = sign("GET", "/b/last").wire().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    writer.write(b"".join(pair + unsigned for pair in rounds) + last)
    for number in range(len(rounds)):
        for body in (str(number), f"{number}-streamed"):
            answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
            assert (answer.status, answer.body) == (200, body.encode())
        is_s3_error(await asyncio.wait_for(read_answer(reader), WITHIN_S))
    assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).body == b"last"
    assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    writer.close()


async def test_answers_too_large_to_be_copied_behind_their_head_come_whole_and_in_order(
    start_edge: Start,
) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        return web.Response(body=call.key.encode() * (int(call.key) // len(call.key)))

    edge = await start_edge(handle)
    reader, writer = await edge.connect()
    lengths = [5, JOINED_MAX, 10 * JOINED_MAX, JOINED_MAX + 5, 5, 3 * JOINED_MAX]
    for method in ("GET", "HEAD"):
        writer.write(b"".join(sign(method, f"/b/{length}").wire() for length in lengths))
        for length in lengths:
            answer = await asyncio.wait_for(read_answer(reader, head_only=method == "HEAD"), WITHIN_S)
            whole = str(length).encode() * (length // len(str(length)))
            assert answer.headers["content-length"] == str(len(whole))
            assert answer.body == (whole if method == "GET" else b"")
    writer.close()


@pytest.mark.parametrize("wanted", ["h2c", "websocket", "TLS/1.0, h2c"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("halved", [False, True])
async def test_behind_a_request_for_an_upgrade_no_answer_is_given_to_another_request(
    edge: Edge, wanted: str, method: str, halved: bool
) -> None:
    """The parser may have dropped what came with it: the client hears that the connection ends, and sends
    that again, where it would have taken the answer to what follows for its own."""
    body = b"body" if method == "PUT" else b""
    asked = {"Connection": "Upgrade", "Upgrade": wanted}
    first = sign(method, "/bucket/first", body=body, headers=asked).wire()
    dropped, last = sign("GET", "/bucket/dropped").wire(), sign("GET", "/bucket/last").wire()
    reader, writer = await edge.connect()
    together = 20 if halved else len(dropped)
    writer.write(first + dropped[:together])
    answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    with contextlib.suppress(ConnectionError):
        writer.write(dropped[together:] + last)
        assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    assert [seen.key for seen in edge.seen] == ["first"]
    assert (await edge.send(GOOD)).status == 200
    writer.close()


async def test_a_head_error_has_no_body(edge: Edge) -> None:
    reader, writer = await edge.connect()
    writer.write(b"HEAD /b/k HTTP/1.1\r\nHost: h\r\n\r\n" + GOOD)
    status, headers = await read_head(reader)
    assert status == 403
    assert headers["x-amz-request-id"]
    assert (await read_answer(reader)).status == 200  # It follows at once: no byte of a body lay between.
    writer.close()


async def test_a_large_refused_body_closes_the_connection_after_the_answer(edge: Edge) -> None:
    size = 50_000_000
    reader, writer = await edge.connect()
    writer.write(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
    answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    is_s3_error(answer)
    assert answer.headers["connection"] == "close"
    assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    writer.close()


async def test_a_client_that_sends_all_of_a_refused_body_still_sees_the_answer(edge: Edge) -> None:
    reader, writer = await edge.connect()
    writer.write(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 8_000_000)
    is_s3_error(await asyncio.wait_for(read_answer(reader), WITHIN_S))
    writer.close()


@pytest.mark.parametrize(
    "tail",
    [
        b"zz\r\n",
        b"0x5\r\nhello\r\n",
        b"-1\r\n",
        b"5\r\nhelloX",
        b"5;\x00\r\nhello\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"f" * 40,
    ],
)
async def test_broken_http_chunks_are_an_incomplete_body(edge: Edge, tail: bytes) -> None:
    request = sign("PUT", "/b/k", payload="UNSIGNED-PAYLOAD", length=False)
    request.headers.append(("Transfer-Encoding", "chunked"))
    answer = await edge.send(request.wire() + b"5\r\nhello\r\n" + tail)
    is_s3_error(answer)
    assert edge.seen == []


async def test_a_client_that_closes_its_side_gets_its_answer(edge: Edge) -> None:
    assert (await edge.send(GOOD, half_close=True)).status == 200
    truncated = sign("PUT", "/b/k", body=b"x" * 100_000).wire()[:-1]
    answer = await edge.send(truncated, half_close=True)
    assert (answer.status, answer.code) == (400, "IncompleteBody")
    assert edge.seen[1:] == []


async def test_a_half_head_and_goodbye_is_no_error(edge: Edge) -> None:
    reader, writer = await edge.connect()
    writer.write(GOOD[:50])
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    writer.close()


async def test_random_damage_to_a_request_never_hangs_nor_crashes(edge: Edge) -> None:
    seed = int(os.environ.get("OBJSTORE_EDGE_SEED", random.randrange(1 << 32)))
    print(f"OBJSTORE_EDGE_SEED={seed}")
    rng = random.Random(seed)
    originals = [GOOD, sign("PUT", "/b/k", body=b"x" * 200).wire(), presign("GET", "/b/k").wire()]
    for _ in range(150):
        wire = bytearray(rng.choice(originals))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(wire))
            action = rng.randrange(3)
            if action == 0:
                wire[at] = rng.randrange(256)
            elif action == 1:
                del wire[at : at + rng.randrange(1, 5)]
            else:
                wire[at:at] = rng.randbytes(rng.randrange(1, 5))
        reader, writer = await edge.connect()
        writer.write(bytes(wire))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), WITHIN_S)
        writer.close()
        if answer:
            assert answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), answer[:100]
            assert not answer.startswith(b"HTTP/1.1 5") or b"NotImplemented" in answer


# --- Expect ----------------------------------------------------------------------------------------


async def test_100_continue_comes_after_the_signature_is_proven(edge: Edge) -> None:
    request = sign("PUT", "/b/k", body=b"x" * 1000, headers={"Expect": "100-continue"})
    head = request.wire()[:-1000]
    reader, writer = await edge.connect()
    writer.write(head)
    assert (await asyncio.wait_for(read_head(reader), WITHIN_S))[0] == 100
    writer.write(request.body)
    assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
    writer.write(GOOD)
    assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
    writer.close()


@pytest.mark.parametrize("secret", ["wrong", None])
async def test_an_unproven_expectation_is_refused_without_100_and_without_a_wait(
    edge: Edge, secret: str | None
) -> None:
    request = sign("PUT", "/b/k", body=b"x" * 1000, headers={"Expect": "100-continue"}, secret=secret or "x")
    if secret is None:
        request = request.with_header("Authorization", None)
    reader, writer = await edge.connect()
    writer.write(request.wire()[:-1000])
    answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    assert answer.status == 403
    assert answer.headers["connection"] == "close"
    assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    assert edge.seen == []
    writer.close()


async def test_a_handler_that_refuses_before_it_reads_sends_no_100(start_edge: Start) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        raise MetaUnavailable("no committer")

    edge = await start_edge(handle)
    request = sign("PUT", "/b/k", body=b"x" * 1000, headers={"Expect": "100-continue"})
    answer = await edge.send(request.wire()[:-1000])
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "ServiceUnavailable", "1")


# --- Answers that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("sized", [True, False])
async def test_an_answer_that_fails_midway_cuts_the_connection(start_edge: Start, sized: bool) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        if sized:
            response.content_length = 1_000_000
        await response.prepare(call.request)
        await response.write(b"x" * 100_000)
        raise Corrupt("the second half is gone")

    edge = await start_edge(handle)
    reader, writer = await edge.connect()
    writer.write(GOOD)
    status, _ = await read_head(reader)
    assert status == 200
    rest = reader.readexactly(1_000_000) if sized else reader.readuntil(b"\r\n0\r\n\r\n")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await rest
    writer.close()


async def test_an_answer_that_is_too_short_is_never_passed_off_as_whole(
    start_edge: Start, bug_expected: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(call.request)
        await response.write(b"x" * 99)
        return response

    edge = await start_edge(handle)
    reader, writer = await edge.connect()
    writer.write(GOOD)
    await read_head(reader)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(100)
    assert "bug while serving" in caplog.text
    writer.close()


async def test_a_bug_is_logged_once_and_answered_500_without_its_words(
    start_edge: Start, bug_expected: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        raise AssertionError("a secret invariant")

    edge = await start_edge(handle)
    answer = await edge.send(GOOD)
    assert (answer.status, answer.code) == (500, "InternalError")
    assert b"secret invariant" not in answer.body
    assert caplog.text.count("AssertionError: a secret invariant") == 1


async def test_echoed_values_cannot_break_out_of_headers_or_xml(edge: Edge) -> None:
    for evil in ("%0d%0aSet-Cookie:%20a", "%3C/Key%3E%3Cscript%3E", "%00%01%1f", "]]%3E"):
        answer = await edge.send(f"GET /b/{evil} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        is_s3_error(answer)
        assert "set-cookie" not in answer.headers
        assert b"<script>" not in answer.body


# --- Time and bounds -------------------------------------------------------------------------------


async def test_a_head_that_trickles_is_ended(edge: Edge) -> None:
    reader, writer = await edge.connect()
    answer = asyncio.ensure_future(read_answer(reader))
    for letter in GOOD[:-2]:
        if answer.done():
            break
        writer.write(bytes([letter]))
        await asyncio.sleep(0.01)
    found = await asyncio.wait_for(answer, WITHIN_S)
    is_s3_error(found)
    assert found.code == "RequestTimeout"
    writer.close()


class Wire(asyncio.Transport):
    """A connection without a socket: keeps what is written, and when it was closed."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.closed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.protocol.connection_lost(None)


async def test_a_head_that_begins_with_its_connection_and_then_stops_is_ended(edge: Edge) -> None:
    """uvloop may bring the first bytes before the connection's task has begun to wait for them."""
    protocol = edge.runner.server()
    wire = Wire(protocol)
    protocol.connection_made(wire)
    protocol.data_received(GOOD[:20])
    await asyncio.wait_for(wire.closed.wait(), WITHIN_S)
    assert b"<Code>RequestTimeout</Code>" in wire.written, "closed for being idle"


async def test_a_whole_head_that_comes_with_its_connection_is_served_and_not_timed(start_edge: Start) -> None:
    edge = await start_edge(limits=Limits(header_seconds=0.1, idle_seconds=0.5, sweep_seconds=0.05))
    protocol = edge.runner.server()
    wire = Wire(protocol)
    protocol.connection_made(wire)
    protocol.data_received(GOOD)
    await asyncio.wait_for(wire.closed.wait(), WITHIN_S)
    assert wire.written.startswith(b"HTTP/1.1 200 OK")
    assert b"RequestTimeout" not in wire.written, "closed for being idle"


async def test_an_idle_connection_is_closed(start_edge: Start) -> None:
    edge = await start_edge(limits=Limits(idle_seconds=0.2, sweep_seconds=0.05))
    reader, writer = await edge.connect()
    assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    writer.close()
    reader, writer = await edge.connect()
    writer.write(GOOD)
    assert (await read_answer(reader)).status == 200
    assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    writer.close()


async def test_a_body_that_pauses_is_ended(edge: Edge) -> None:
    wire = sign("PUT", "/b/k", body=b"x" * 500_000).wire()
    answer = await edge.send(wire[:-1])
    assert (answer.status, answer.code) == (400, "RequestTimeout")
    assert answer.headers["connection"] == "close"


async def test_a_body_that_trickles_is_ended(edge: Edge) -> None:
    wire = sign("PUT", "/b/k", body=b"x" * 5000).wire()
    reader, writer = await edge.connect()
    writer.write(wire[:-5000])
    answer = asyncio.ensure_future(read_answer(reader))
    while not answer.done():
        writer.write(b"x")
        await asyncio.sleep(0.01)
    assert (await asyncio.wait_for(answer, WITHIN_S)).code == "RequestTimeout"
    writer.close()


def flood(ended: asyncio.Event) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    """A handler that answers with 1 GB, and notes when it has come to an end, however."""

    async def handle(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        try:
            for _ in range(10_000):
                await response.write(b"x" * 100_000)
        finally:
            ended.set()
        return response

    return handle


def narrow_reader(port: int) -> socket.socket:
    """A connection that has asked, and whose system takes in little."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(GOOD)
    return sock


async def test_a_reader_that_takes_nothing_is_cut(start_edge: Start) -> None:
    ended = asyncio.Event()
    edge = await start_edge(flood(ended))
    sock = narrow_reader(edge.port)
    await asyncio.wait_for(ended.wait(), WITHIN_S)
    sock.close()


async def test_a_reader_that_takes_a_little_now_and_then_is_cut(start_edge: Start) -> None:
    ended = asyncio.Event()
    edge = await start_edge(flood(ended), limits=replace(SMALL_LIMITS, body_rate=10_000_000))
    sock = narrow_reader(edge.port)
    sock.setblocking(False)
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not ended.is_set():
        assert asyncio.get_running_loop().time() < deadline, "it may read for ever"
        with contextlib.suppress(BlockingIOError):
            sock.recv(20_000)
        await asyncio.sleep(0.02)
    sock.close()


async def test_little_of_an_answer_waits_in_the_kernel_for_a_reader_that_takes_nothing(
    start_edge: Start,
) -> None:
    made = 0
    block = memoryview(bytes(64 * 1024))
    size = 16 * MIB

    async def blocks() -> AsyncIterator[list[memoryview]]:
        nonlocal made
        while made < size:
            made += len(block)
            yield [block]

    async def handle(call: Call) -> web.StreamResponse:
        return await stream(call, 200, CIMultiDict(), blocks(), size)

    edge = await start_edge(handle, limits=Limits())
    sock = narrow_reader(edge.port)
    # Until the socket is full.
    await until(lambda: any(connection._paused for connection in edge.runner.server.connections))
    assert 0 < made <= UNSENT_MAX + MIB
    sock.close()


async def test_a_quick_reader_of_much_does_not_keep_the_others_waiting(start_edge: Start) -> None:
    loop = asyncio.get_running_loop()
    turns = 0
    seen = []

    def turn() -> None:
        nonlocal turns
        turns += 1
        if len(seen) < 20:
            loop.call_soon(turn)

    async def blocks() -> AsyncIterator[list[memoryview]]:
        for _ in range(20):
            seen.append(turns)
            yield [memoryview(b"x")]

    async def handle(call: Call) -> web.StreamResponse:
        loop.call_soon(turn)
        return await stream(call, 200, CIMultiDict(), blocks(), 20)

    edge = await start_edge(handle)
    assert (await edge.send(GOOD)).body == b"x" * 20
    assert seen == sorted(set(seen)), "the loop had a turn between any two of them"


async def test_an_endless_head_is_refused_by_size(start_edge: Start) -> None:
    edge = await start_edge(limits=Limits(head_bytes=16_384))
    wire = b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"A%d: %s\r\n" % (n, b"a" * 1000) for n in range(20))
    answer = await edge.send(wire)
    assert (answer.status, answer.code) == (400, "RequestHeaderSectionTooLarge")


async def test_one_connection_too_many_is_told_to_slow_down(start_edge: Start) -> None:
    edge = await start_edge(limits=Limits(connections=3))
    open_ones = [await edge.connect() for _ in range(3)]
    for _, writer in open_ones:
        writer.write(GOOD)
    for reader, _ in open_ones:
        assert (await read_answer(reader)).status == 200
    answer = await edge.send(GOOD)
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "SlowDown", "1")
    for _, writer in open_ones:
        writer.close()
    await until(lambda: not edge.runner.server.connections)
    assert (await edge.send(GOOD)).status == 200


async def test_connections_that_idle_give_way_to_one_with_a_request(start_edge: Start) -> None:
    go_on = asyncio.Event()

    async def handle(call: Call) -> web.StreamResponse:
        if call.key == "slow":
            await go_on.wait()
        return web.Response()

    edge = await start_edge(
        handle,
        limits=replace(SMALL_LIMITS, connections=4, header_seconds=60, idle_seconds=60, evict_seconds=0.1),
    )
    busy, used, silent, half = [await edge.connect() for _ in range(4)]
    busy[1].write(sign("GET", "/b/slow").wire())
    used[1].write(GOOD)
    assert (await read_answer(used[0])).status == 200
    half[1].write(GOOD[:20])
    await until(lambda: edge.app.admission.requests == 1)
    await asyncio.sleep(0.15)
    newcomers = [await edge.connect() for _ in range(3)]
    for reader, writer in newcomers:
        writer.write(GOOD)
        assert (await read_answer(reader)).status == 200
    for reader, _ in (used, silent, half):
        assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    edge.app.limits = replace(edge.app.limits, evict_seconds=30)  # However long ago that is.
    assert (await edge.send(GOOD)).code == "SlowDown", "a connection just used is not closed"
    go_on.set()
    assert (await read_answer(busy[0])).status == 200
    for _, writer in (busy, used, silent, half, *newcomers):
        writer.close()


# Refused, and answered, before its body has come.
REFUSED = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n"
LONG_S = 3_600.0


async def refused_with_a_body_to_come(edge: Edge) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that was told so, and whose body is read away for as long as may be."""
    reader, writer = await edge.connect()
    writer.write(REFUSED)
    assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 403
    return reader, writer


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("begun", [b"", b"some of it" * 10_000])
async def test_who_was_refused_and_hangs_up_no_longer_counts_as_a_connection(
    start_edge: Start, resets: bool, begun: bytes
) -> None:
    edge = await start_edge(limits=replace(SMALL_LIMITS, linger_seconds=LONG_S))
    for _ in range(3):
        _, writer = await refused_with_a_body_to_come(edge)
        assert len(edge.runner.server.connections) == 1
        writer.write(begun)
        if resets:
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            writer.transport.abort()
        else:
            writer.close()
        await until(lambda: not edge.runner.server.connections, "its place is free")


async def test_who_was_refused_and_still_sends_makes_room_for_a_new_connection(start_edge: Start) -> None:
    edge = await start_edge(
        limits=replace(SMALL_LIMITS, connections=3, linger_seconds=LONG_S, evict_seconds=LONG_S)
    )
    refused = [await refused_with_a_body_to_come(edge) for _ in range(3)]
    lines = [Line(edge) for _ in refused]
    for line, (reader, _) in zip(lines, refused, strict=True):
        assert (await line.send(GOOD)).status == 200
        assert await asyncio.wait_for(reader.read(), WITHIN_S) == b"", "the one that was refused first went"
    await until(lambda: len(edge.runner.server.connections) == len(lines))
    assert (await edge.send(GOOD)).code == "SlowDown", "nobody is left that could make room"
    for line in lines:
        line.close()
    for _, writer in refused:
        writer.close()


async def test_a_connection_that_can_go_is_found_behind_however_many_that_cannot(
    start_edge: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objstore.s3.server._EVICTION_LOOK", 2)
    go_on = asyncio.Event()

    async def handle(call: Call) -> web.StreamResponse:
        if call.key == "slow":
            await go_on.wait()
        return web.Response()

    limits = replace(SMALL_LIMITS, connections=6, idle_seconds=LONG_S, evict_seconds=0.0)
    edge = await start_edge(handle, limits=limits)
    busy = [await edge.connect() for _ in range(4)]
    for _, writer in busy:
        writer.write(sign("GET", "/b/slow").wire())
    await until(lambda: edge.app.admission.requests == len(busy))
    silent = [await edge.connect() for _ in range(2)]
    await until(edge.runner.server.is_full)
    await asyncio.sleep(0.01)  # The silent ones came before now, also by a clock of milliseconds.
    statuses = [(await edge.send(GOOD)).status for _ in range(3)]
    assert statuses == [503, 503, 200], "two looks at the busy ones, and one behind them"
    go_on.set()
    for reader, writer in busy:
        assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
        writer.close()
    for _, writer in silent:
        writer.close()


async def test_requests_and_body_bytes_in_flight_are_bounded(start_edge: Start) -> None:
    go_on = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def handle(call: Call) -> web.StreamResponse:
        entered.release()
        await go_on.wait()
        async for _ in call.body:
            pass
        await call.body.digests()
        return web.Response()

    edge = await start_edge(handle, limits=Limits(requests=3, body_bytes=1_500_000))
    large = sign("PUT", "/b/k", body=b"x" * 1_000_000).wire()
    waiting = [asyncio.ensure_future(edge.send(large)), asyncio.ensure_future(edge.send(GOOD))]
    for _ in waiting:
        await entered.acquire()
    refused = await edge.send(large)
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "SlowDown", "1")
    waiting.append(asyncio.ensure_future(edge.send(GOOD)))
    await entered.acquire()
    assert (await edge.send(GOOD)).code == "SlowDown"
    go_on.set()
    assert {(await answer).status for answer in waiting} == {200}
    assert edge.app.admission.requests == 0
    assert edge.app.admission.body_bytes == 0
    assert (await edge.send(large)).status == 200


async def test_one_tenant_cannot_hold_all_that_there_is(start_edge: Start) -> None:
    go_on = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def handle(call: Call) -> web.StreamResponse:
        if call.who.tenant == "t1":
            entered.release()
            await go_on.wait()
        async for _ in call.body:
            pass
        await call.body.digests()
        return web.Response()

    directory = FakeDirectory()
    other = replace(principal(OTHER_ID), tenant="t2")
    directory.keys[OTHER_ID] = FakeCredential(OTHER_SECRET, other)
    edge = await start_edge(
        handle, directory=directory, limits=replace(SMALL_LIMITS, requests=8, body_bytes=4_000_000)
    )
    large = sign("PUT", "/b/k", body=b"x" * 1_000_000).wire()
    held = [asyncio.ensure_future(edge.send(large)) for _ in range(4)]
    for _ in held:
        await entered.acquire()
    assert (await edge.send(large)).code == "SlowDown"
    theirs = sign("PUT", "/b/k", body=b"y" * 900_000, key_id=OTHER_ID, secret=OTHER_SECRET).wire()
    assert (await edge.send(theirs)).status == 200
    held += [asyncio.ensure_future(edge.send(GOOD)) for _ in range(4)]
    for _ in held[4:]:
        await entered.acquire()
    assert (await edge.send(GOOD)).code == "SlowDown"
    assert (await edge.send(theirs)).status == 200
    go_on.set()
    assert {(await answer).status for answer in held} == {200}
    assert (edge.app.admission.requests, edge.app.admission.body_bytes) == (0, 0)
    assert edge.app.admission._tenants == {}


async def test_a_copy_counts_as_the_large_body_that_it_moves(start_edge: Start) -> None:
    go_on = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def handle(call: Call) -> web.StreamResponse:
        entered.release()
        await go_on.wait()
        return web.Response()

    edge = await start_edge(handle, limits=replace(SMALL_LIMITS, body_bytes=2 * 1024 * 1024))
    copy = sign("PUT", "/b/k", headers={"x-amz-copy-source": "/b/large"}).wire()
    held = [asyncio.ensure_future(edge.send(copy)) for _ in range(2)]
    for _ in held:
        await entered.acquire()
    assert (await edge.send(copy)).code == "SlowDown"
    go_on.set()
    assert {(await answer).status for answer in held} == {200}
    assert edge.app.admission.body_bytes == 0


@pytest.mark.parametrize("how", ["declared", "with a copy's source", "chunked"])
async def test_a_document_counts_with_all_that_is_made_of_it(start_edge: Start, how: str) -> None:
    go_on = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def handle(call: Call) -> web.StreamResponse:
        entered.release()
        await go_on.wait()
        return web.Response(body=await call.read_document(4 * MIB))

    edge = await start_edge(handle, limits=replace(SMALL_LIMITS, body_bytes=DOCUMENT_COPIES * 2 * MIB))
    document = b"x" * MIB
    headers = {"x-amz-copy-source": "/b/k"} if how == "with a copy's source" else {}
    payload = "UNSIGNED-PAYLOAD"
    if how == "chunked":  # Its size is unknown: it counts as the largest, and one alone always fits.
        signed = sign("POST", "/b", query="delete=", headers=headers, payload=payload, length=False)
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(document), document)
        signed = replace(signed, headers=[*signed.headers, ("Transfer-Encoding", "chunked")], body=framed)
    else:
        signed = sign("POST", "/b", query="delete=", headers=headers, body=document, payload=payload)
    held = []
    for _ in range(1 if how == "chunked" else 2):
        held.append(asyncio.ensure_future(edge.send(signed.wire())))
        await entered.acquire()
    assert (await edge.send(signed.wire())).code == "SlowDown"
    go_on.set()
    assert {(await answer).body for answer in held} == {document}
    assert edge.app.admission.body_bytes == 0


async def test_a_document_that_says_it_is_too_large_is_refused_before_its_bytes(start_edge: Start) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        return web.Response(body=await call.read_document(1000))

    edge = await start_edge(handle)
    wire = sign("POST", "/b", query="delete=", body=b"x" * 1001, payload="UNSIGNED-PAYLOAD").wire()
    assert (await edge.send(wire[:-1001])).code == "EntityTooLarge"
    assert (await edge.send(wire)).code == "EntityTooLarge"


async def test_disconnects_at_every_phase_leave_nothing_behind(edge: Edge) -> None:
    wire = sign("PUT", "/b/k", body=b"x" * 300_000).wire()
    for size in (0, 10, 400, 700, 5000, 250_000, len(wire) - 1, len(wire)):
        for _ in range(3):
            _, writer = await edge.connect()
            writer.write(wire[:size])
            await writer.drain()
            writer.transport.abort()
    await until(lambda: edge.app.admission.requests == 0 and not edge.runner.server.connections)
    assert edge.app.admission.body_bytes == 0
    assert edge.runner.server.connections == []
    assert edge.app.observer.connections == 0
    assert edge.app.observer.in_flight == 0


# --- The end ---------------------------------------------------------------------------------------


async def test_stopping_lets_a_running_upload_end_and_closes_idle_connections(start_edge: Start) -> None:
    edge = await start_edge(limits=Limits())
    idle_reader, idle_writer = await edge.connect()
    idle_writer.write(GOOD)
    await read_answer(idle_reader)
    wire = sign("PUT", "/b/k", body=b"x" * 300_000).wire()
    reader, writer = await edge.connect()
    writer.write(wire[:-1000])
    while edge.app.admission.requests == 0:
        await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(edge.runner.stop(10.0))
    assert await asyncio.wait_for(idle_reader.read(), WITHIN_S) == b""
    assert not stopping.done()
    writer.write(wire[-1000:])
    answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    await asyncio.wait_for(stopping, WITHIN_S)
    with pytest.raises(ConnectionError):
        await edge.connect()
    idle_writer.close()
    writer.close()


async def test_stopping_cuts_what_does_not_end(start_edge: Start) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        await asyncio.sleep(3600)
        raise AssertionError

    edge = await start_edge(handle)
    reader, writer = await edge.connect()
    writer.write(GOOD)
    while edge.app.admission.requests == 0:
        await asyncio.sleep(0.01)
    await asyncio.wait_for(edge.runner.stop(0.1), WITHIN_S)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await read_answer(reader)
    writer.close()


assert SMALL_LIMITS.header_seconds < 1
