"""The generator must not flatter a server: what it signs, sends, receives and counts is right."""

import asyncio
import contextlib
import json
import math
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from bench import compare, figures, report
from bench.load import Endpoint, Generator, GeneratorFailed, Job, Payload
from bench.rows import KIB, MIB, Bench, Plan, Row, median_row, percentile
from bench.shares import descendants
from bench.sigv4 import Credentials, Signer, canonical_query
from bench.targets import ROOT, Target, TargetFailed, bare_aiohttp, filesystem_of, parse

CREDENTIALS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "/bucket/key", {}),
        ("PUT", "/bucket/a%20b%2Bc", {"partNumber": "1", "uploadId": "x/y+z="}),
        ("GET", "/bucket", {"list-type": "2", "prefix": "a b/é", "start-after": "~._-", "delimiter": "/"}),
        ("POST", "/bucket/key", {"uploads": ""}),
    ],
)
def test_a_prepared_head_carries_the_signature_that_botocore_computes(
    method: str, path: str, query: dict[str, str]
) -> None:
    at = 1_790_000_000
    head = Signer(CREDENTIALS, "127.0.0.1:9000", at).head(method, path, query=canonical_query(query)).decode()
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)

    request = AWSRequest(method, f"http://127.0.0.1:9000{path}?{canonical_query(query)}".rstrip("?"))
    request.context["timestamp"] = headers["x-amz-date"]
    request.headers["x-amz-date"] = headers["x-amz-date"]
    request.headers["x-amz-content-sha256"] = headers["x-amz-content-sha256"]
    auth = S3SigV4Auth(
        BotocoreCredentials(CREDENTIALS.access_key, CREDENTIALS.secret_key), "s3", CREDENTIALS.region
    )
    text = auth.canonical_request(request)
    signature = auth.signature(auth.string_to_sign(request, text), request)

    assert headers["Authorization"].endswith(f"Signature={signature}")
    assert head.endswith("\r\n\r\n")


@contextlib.contextmanager
def scripted_server(answers: list[bytes], *, close_after: bool = False) -> Iterator[Endpoint]:
    """A server that answers whatever it is asked with the given bytes, in turn, over and over."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    started = threading.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                if length:
                    await reader.readexactly(int(length[1]))
                writer.write(answers[count % len(answers)])
                count += 1
                if close_after:
                    break
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=2**20)
        ready.append(server.sockets[0].getsockname()[1])
        started.set()
        await asyncio.Event().wait()

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield Endpoint(url=f"http://127.0.0.1:{ready[0]}", credentials=CREDENTIALS)
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(10)


def answer(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def job(count: int = 6, **more: object) -> Job:
    fields: dict[str, object] = {
        "method": "GET",
        "paths": [f"/b/{number}" for number in range(count)],
        "connections": 2,
        "seconds": None,
    }
    return Job(**{**fields, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 4 * KIB, 200 * KIB, 3 * MIB])
def test_a_right_body_of_any_size_counts_once_a_request(size: int) -> None:
    payload = Payload(size=size, seed=7)
    with scripted_server([answer(payload.make())]) as endpoint, Generator(endpoint, 1) as generator:
        outcome = generator.run([job(count=20, expect=payload)])
    assert outcome.errors == {}
    assert outcome.operations == 20 == len(outcome.latencies)
    assert outcome.bytes_received == 20 * size


def test_one_wrong_byte_in_a_small_body_is_an_error() -> None:
    right = Payload(size=4 * KIB).make()
    wrong = right[:1000] + bytes([right[1000] ^ 1]) + right[1001:]
    with scripted_server([answer(right), answer(wrong)]) as endpoint, Generator(endpoint, 1) as generator:
        outcome = generator.run([job(connections=1, expect=Payload(size=4 * KIB))])
    assert outcome.errors == {"WRONG BYTES": 3}


def test_a_short_body_an_s3_error_and_a_torn_connection_each_have_a_name() -> None:
    body = Payload(size=KIB).make()
    fault = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"
    cases = [
        ([answer(body[:-1])], False, "1023 bytes instead of 1024"),
        ([answer(fault, "503 Service Unavailable")], False, "503 SlowDown"),
        ([answer(body)[:-9]], True, "closed by the server in mid-body"),
        ([b""], True, "closed by the server in mid-request"),
    ]
    for answers, close, name in cases:
        with scripted_server(answers, close_after=close) as endpoint, Generator(endpoint, 1) as generator:
            outcome = generator.run([job(connections=1, expect=Payload(size=KIB))])
        assert outcome.operations == 0
        assert outcome.errors == {name: 6}


def test_a_chunked_answer_and_an_interim_100_are_understood() -> None:
    body = Payload(size=5).make()
    chunked = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n"
        + body[:2] + b"\r\n3;x=y\r\n" + body[2:] + b"\r\n0\r\n\r\n"
    )  # fmt: skip
    with scripted_server([chunked]) as endpoint, Generator(endpoint, 1) as generator:
        outcome = generator.run([job(expect=Payload(size=5))])
    assert (outcome.operations, outcome.errors) == (6, {})


def test_a_server_that_closes_after_each_answer_is_followed_over_new_connections() -> None:
    closing = answer(b"", more="Connection: close\r\n")
    with scripted_server([closing], close_after=True) as endpoint, Generator(endpoint, 1) as generator:
        outcome = generator.run([job(connections=2)])
    assert (outcome.operations, outcome.errors) == (6, {})
    assert outcome.reconnects >= 4


def test_nobody_listening_is_a_failure_of_the_run_not_a_row_of_zeros() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = Endpoint(url=f"http://127.0.0.1:{unused.getsockname()[1]}", credentials=CREDENTIALS)
        with Generator(endpoint, 1) as generator, pytest.raises(GeneratorFailed, match="cannot connect"):
            generator.run([job()])


def test_two_workers_hold_equal_shares_of_the_connections_and_every_operation_measures() -> None:
    with bare_aiohttp(2) as target, Generator(target.endpoint, 2) as generator:
        bench = Bench(target, generator, Plan(seconds=0.3, bytes_max=16 * MIB))
        assert len(target.worker_pids()) == 2
        rows = [
            bench.put(4 * KIB, 16),
            bench.get(4 * KIB, 16),
            bench.put(MIB, 4, unsigned=True),
            bench.get(MIB, 4),
        ]
    for row in rows:
        assert row.errors == {}
        assert row.operations > 0
        assert row.shares == [row.connections // 2] * 2
        assert 0 < row.p50_ms <= row.p99_ms
        assert row.cpu_us is not None
        assert row.worker_anonymous_peak


def test_odd_numbers_of_connections_differ_by_one_at_most() -> None:
    with bare_aiohttp(2) as target, Generator(target.endpoint, 1) as generator:
        row = Bench(target, generator, Plan(seconds=0.2)).put(KIB, 5)
    assert row.shares == [2, 3]


def test_a_stopped_floor_leaves_no_process_behind() -> None:
    with bare_aiohttp(2) as target:
        tree = target.tree()
        assert len(tree) == 3
    assert all(descendants(pid) == [pid] and not Path(f"/proc/{pid}").exists() for pid in tree)


def row(**more: object) -> Row:
    fields: dict[str, object] = {
        "target": "objstore/1", "workers": 1, "operation": "PUT", "size": 4 * KIB, "connections": 64,
        "operations": 100, "seconds": 1.0, "rate": 100.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 50.0,
        "worker_anonymous_peak": None, "generator_cpu_us": 10.0,
    }  # fmt: skip
    return Row(**{**fields, **more})  # type: ignore[arg-type]


def test_a_figure_passes_at_its_bar_and_fails_below_it() -> None:
    bare = row(target="aiohttp/1", rate=1000.0)
    assert [f.passed for f in figures.against_bare_aiohttp([bare, row(rate=180.0)], [1])] == [True]
    assert [f.passed for f in figures.against_bare_aiohttp([bare, row(rate=179.0)], [1])] == [False]


def test_a_row_with_errors_is_never_a_figure() -> None:
    bare = row(target="aiohttp/1", rate=1000.0)
    assert figures.against_bare_aiohttp([bare, row(rate=900.0, errors={"503": 1})], [1]) == []


def test_of_repeated_rows_the_median_counts() -> None:
    assert median_row([row(rate=rate) for rate in (5.0, 1.0, 3.0)]).rate == 3.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([], 0.5) == 0.0


def test_a_list_page_is_judged_by_the_median_cpu_against_the_bare_handler_and_nothing_else() -> None:
    pages = [row(operation="LIST", connections=1, cpu_us=cpu) for cpu in (900.0, 5_000.0, 1_000.0)]
    spoiled = row(operation="LIST", connections=1, cpu_us=1.0, errors={"500": 1})
    folded = [row(operation="LIST-DELIMITER", connections=1, cpu_us=201.0)]
    bare = [row(target="aiohttp/1", connections=1, cpu_us=cpu) for cpu in (100.0, 90.0, 400.0)]
    own = [row(connections=1, cpu_us=1_000_000.0)]
    found = figures.listing([*pages, spoiled, *folded], bare, own)
    assert [(figure.value, figure.bar, figure.passed) for figure in found] == [
        (10.0, 10.0, True),
        (2.01, 2.0, False),
    ]
    assert figures.listing(pages, [], own) == []
    with pytest.raises(AssertionError):
        figures.listing(pages, [row(target="aiohttp/1", connections=32)], own)


def test_the_plot_is_well_formed_and_shows_every_row() -> None:
    from xml.etree import ElementTree

    text = report.plot([row(), row(target="other <&>", rate=7.0), row(operation="GET", rate=0.5)])
    shown = " ".join(element.text or "" for element in ElementTree.fromstring(text).iter())
    assert all(text in shown for text in ("PUT 4 KiB x64", "GET 4 KiB x64", "other <&>"))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "name=127.0.0.1:9000,a,b",
        "name=http://h:1,a",
        "name=http://h:1,a,b,what=1",
        "name=http://h:1,a,b,pid",
    ],
)
def test_a_target_that_cannot_be_read_is_refused_in_plain_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"name=http|only pid="):
        parse(text)


def test_a_target_line_gives_name_address_keys_and_region() -> None:
    target = parse("other=http://192.0.2.1:8333,KEY,SEC=RET,region=eu-1")
    assert (target.name, target.endpoint.address) == ("other", ("192.0.2.1", 8333))
    assert target.endpoint.credentials == Credentials("KEY", "SEC=RET", "eu-1")


def test_a_directory_in_memory_is_no_data_disk(capsys: pytest.CaptureFixture[str]) -> None:
    shared = Path("/dev/shm")
    if filesystem_of(shared) != "tmpfs":
        shared = Path("/run")
    assert filesystem_of(shared) == "tmpfs"
    scratch = shared / "objstore-bench-test"
    try:
        status = compare.main(["--quick", "--no-objstore", "--scratch", str(scratch), "--out", str(scratch)])
    finally:
        import shutil

        shutil.rmtree(scratch)
    assert status == 2
    assert "tmpfs" in capsys.readouterr().err


def test_allocated_bytes_count_blocks_and_each_inode_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 100_000)
    (tmp_path / "same").hardlink_to(tmp_path / "one")
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(2**30)
    target = Target(
        name="t", endpoint=Endpoint(url="http://h:1", credentials=CREDENTIALS), directory=tmp_path
    )
    allocated = target.allocated_bytes()
    assert allocated is not None
    assert 100_000 <= allocated < 150_000


@pytest.mark.timeout(900)
def test_a_short_run_over_store_and_floor_writes_a_table_a_document_and_a_plot(tmp_path: Path) -> None:
    sections = ["--only", "figures", "--only", "list", "--only", "space"]
    short = ["--quick", "--seconds", "0.2", "--objects", "2000", "--bytes-max", "16"]
    done = subprocess.run(
        [sys.executable, "bench/compare.py", *sections, *short, "--workers", "2", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=840,
    )
    # 1: a figure missed its bar, which so short a run on a busy machine says nothing about.
    assert done.returncode in (0, 1), done.stderr
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["machine"]["md5_rate"] > 0
    assert all(math.isfinite(line["rate"]) and not line["errors"] for line in document["rows"])
    measured = {line["name"] for line in document["figures"]}
    for name in (
        "PUT 4 KiB x64",
        "GET 4 KiB x32",
        "GET 64 MiB x4",
        "PUT 4 KiB x1",
        "space",
        "LIST",
        "LIST-DELIMITER",
    ):
        assert any(figure.startswith(name) for figure in measured), f"{name} is not among {measured}"
    assert "objstore/2  PUT 4 KiB x64" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    assert list((tmp_path / "scratch").iterdir()) == []  # The stores' data is gone.


def test_deleting_what_was_never_put_is_refused() -> None:
    target = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:1", credentials=CREDENTIALS))
    with Generator(target.endpoint, 1) as generator, pytest.raises(TargetFailed, match="put some first"):
        Bench(target, generator, Plan()).delete(KIB, 1)


def test_slow_readers_take_no_more_than_their_rate() -> None:
    payload = Payload(size=8 * MIB)
    with scripted_server([answer(payload.make())]) as endpoint, Generator(endpoint, 1) as generator:
        outcome = generator.run([job(connections=4, seconds=0.6, cycle=True, read_rate=MIB)])
    # Four readers of 1 MiB/s for 0.6 s have not nearly seen the end of 8 MiB.
    assert (outcome.operations, outcome.errors) == (0, {})
