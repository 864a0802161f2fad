"""The access log: one line per request, and no secret in it or anywhere else."""

import json
import logging
import os
from pathlib import Path

import msgspec
import pytest
from edge_running import Start, read_answer
from edge_signing import SECRET, presign, sign

from objstore.metrics import Registry, RequestMetrics
from objstore.s3.access_log import WAITING_LINES_MAX, AccessLog, Line, redact


def line(**values: object) -> Line:
    given = {
        "time": 1.0, "request_id": "R", "remote": "1.2.3.4", "method": "GET", "operation": "GetObject",
        "status": 200, "duration_ms": 1.5,
    }  # fmt: skip
    return msgspec.convert({**given, **values}, Line)


async def test_every_request_leaves_one_line_that_says_what_happened(
    start_edge: Start, tmp_path: Path
) -> None:
    path = tmp_path / "access.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = AccessLog(fd)
    edge = await start_edge(access_log=log)
    await edge.send(sign("PUT", "/bucket/a%20b", body=b"x" * 10, headers={"User-Agent": "me/1"}).wire())
    answer = await edge.send(sign("GET", "/bucket/a%20b?versionId=null").wire())
    await edge.send(b"GET /bucket/key HTTP/1.1\r\nHost: h\r\n\r\n")
    await edge.send(b"nonsense\r\n\r\n")
    await log.close()
    put, get, denied, malformed = [json.loads(text) for text in path.read_text().splitlines()]
    assert (put["bucket"], put["key"], put["bytes_in"], put["agent"]) == ("bucket", "a b", 10, "me/1")
    assert (put["tenant"], put["user"], put["operation"]) == ("t1", "u1", "PutObject")
    assert (get["status"], get["bytes_out"], get["query"]) == (200, 5, "versionId=null")
    assert get["request_id"] == answer.headers["x-amz-request-id"]
    assert 0 <= get["ttfb_ms"] <= get["duration_ms"]
    assert get["remote"] == "127.0.0.1"
    assert (denied["status"], denied["error"], denied["bucket"]) == (403, "AccessDenied", "bucket")
    assert "tenant" not in denied
    assert (malformed["status"], malformed["error"]) == (400, "BadRequest")
    os.close(fd)


async def test_no_secret_stands_in_any_log_or_answer(
    start_edge: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "access.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = AccessLog(fd)
    edge = await start_edge(access_log=log)
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    signed, presigned = sign("GET", "/b/k"), presign("GET", "/b/k")
    signature = presigned.target.partition("X-Amz-Signature=")[2][:64]
    caplog.clear()
    answers = b""
    for request in (
        signed,
        presigned,
        sign("GET", "/b/k", secret="wrong"),
        presign("GET", "/b/k", secret="wrong"),
        sign("PUT", "/b/k", body=b"x", payload="0" * 64),
        sign("GET", "/b/k", headers={"x-amz-security-token": "TOKEN-IN-HEADER"}),
        presign("GET", "/b/k", query="X-Amz-Security-Token=TOKEN-IN-QUERY"),
        sign("GET", "/b/%ff"),
    ):
        answers += (await edge.send(request.wire())).body
    await edge.send(presigned.wire().replace(b"HTTP/1.1", b"HTTP/7.7"))
    await log.close()
    text = path.read_text()
    for secret in (
        SECRET,
        signature,
        signed.header("Authorization")[-64:],
        "TOKEN-IN-HEADER",
        "TOKEN-IN-QUERY",
    ):
        assert secret not in text
        assert secret not in caplog.text
    assert SECRET.encode() not in answers
    assert "REDACTED" in text
    os.close(fd)


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", ""),
        ("prefix=a", "prefix=a"),
        ("X-Amz-Signature=abc", "X-Amz-Signature=REDACTED"),
        ("a=1&x-amz-signature=abc&b=2", "a=1&x-amz-signature=REDACTED&b=2"),
        ("AWSAccessKeyId=A&Signature=B%2F&Expires=1", "AWSAccessKeyId=REDACTED&Signature=REDACTED&Expires=1"),
        (
            "X-Amz-Security-Token=t&X-Amz-Credential=c",
            "X-Amz-Security-Token=REDACTED&X-Amz-Credential=REDACTED",
        ),
        ("X%2DAmz%2dSignature=abc&b=%41", "X%2DAmz%2dSignature=REDACTED&b=%41"),
        ("a=%41&%53ignature=abc", "a=%41&%53ignature=REDACTED"),
        ("prefix=a%2Fb&x=%41=%42", "prefix=a%2Fb&x=%41=%42"),
        ("SIGNATURE=abc&token=b&prefix=%2F", "SIGNATURE=REDACTED&token=b&prefix=%2F"),
        ("%41&" * 5000 + "X%2DAmz-Signature=abc", "&".join(["%41"] * 128)),
    ],
)
def test_credentials_of_a_query_are_redacted(query: str, shown: str) -> None:
    assert redact(query) == shown


async def test_bytes_that_are_no_text_do_not_keep_a_request_out_of_the_log(
    start_edge: Start, tmp_path: Path
) -> None:
    fd = os.open(tmp_path / "access.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    edge = await start_edge(access_log=AccessLog(fd))
    wire = sign("GET", "/b/k").wire()
    for agent in (b"\xff\xfe", b"\xed\xa0\x80", "é".encode()):
        odd = wire.replace(b"\r\n\r\n", b"\r\nUser-Agent: " + agent + b"\r\n\r\n")
        reader, writer = await edge.connect()
        for _ in range(2):  # The connection survives it, too.
            writer.write(odd)
            assert (await read_answer(reader)).status == 200
        writer.close()
        assert (
            await edge.send(b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: " + agent + b"\r\n\r\n")
        ).status == 403
    await edge.runner.stop(1.0)
    lines = [json.loads(text) for text in (tmp_path / "access.log").read_text().splitlines()]
    assert [one["status"] for one in lines] == [200, 200, 403] * 3
    assert [one["agent"] for one in lines[::3]] == ["\\udcff\\udcfe", "\\udced\\udca0\\udc80", "é"]
    os.close(fd)


async def test_a_log_that_cannot_be_written_stops_nothing_and_is_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(writer)
    for _ in range(10):
        log.add(line())
    await log.close()
    assert log.dropped == 10
    log.add(line())
    assert log.dropped == 11, "a closed log takes no more lines"
    os.close(writer)


async def test_lines_that_wait_for_a_hanging_disk_are_bounded() -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer)
    log._flushing = True  # As while a write hangs.
    one = line()
    for _ in range(WAITING_LINES_MAX + 5):
        log.add(one)
    assert log.dropped == 5
    log._lines.clear()
    await log.close()
    os.close(reader)
    os.close(writer)


async def test_requests_are_counted_by_operation_and_error(start_edge: Start) -> None:
    registry = Registry()
    edge = await start_edge(observer=RequestMetrics(registry))
    await edge.send(sign("PUT", "/b/k", body=b"x" * 10).wire())
    await edge.send(sign("PUT", "/b/k", body=b"x", secret="wrong").wire())
    families = {family.name: family for family in registry.families()}
    received = families["s3_received_bytes"].samples
    assert received == [((), [10])]
    assert (("Unknown", "SignatureDoesNotMatch"), [1]) in families["s3_errors"].samples
