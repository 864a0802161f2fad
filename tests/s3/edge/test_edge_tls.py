"""TLS: modern versions only, and a renewed certificate without a restart."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import NameOID
from edge_running import SMALL_LIMITS, WITHIN_S, Edge, Start, read_answer
from edge_signing import sign
from multidict import CIMultiDict

from objstore.s3.answers import stream
from objstore.s3.call import Call
from objstore.s3.limits import Limits
from objstore.s3.outbox import JOINED_MAX
from objstore.s3.server import serve_s3
from objstore.s3.tls import Certificate, TlsFailure
from tests.certificates import issue
from tests.waiting import until


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def served_name(port: int) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    found = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return str(found)


async def over_tls(edge: Edge, certificate: Certificate) -> Edge:
    runner = await serve_s3(edge.app, [socket.create_server(("127.0.0.1", 0))], certificate.context)
    return Edge(edge.app, runner, edge.seen)


async def test_a_signed_request_is_served_over_tls(start_edge: Start, tmp_path: Path) -> None:
    secure = await over_tls(await start_edge(limits=SMALL_LIMITS), Certificate(*issue(tmp_path, "one")))
    reader, writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=client_context())
    for body in (b"", b"x" * 1000, b"x" * 1_000_000):
        writer.write(sign("PUT", "/b/k", body=body).wire())
        assert (await read_answer(reader)).status == 200
        assert secure.seen[-1].body == body
    writer.write(b"nonsense\r\n\r\n")
    assert (await read_answer(reader)).code == "BadRequest"
    writer.close()
    await secure.runner.stop(0.5)


async def test_an_answer_of_one_piece_arrives_whole_over_tls_however_large(
    start_edge: Start, tmp_path: Path
) -> None:
    async def handle(call: Call) -> web.StreamResponse:
        return web.Response(body=bytes(int(call.key)))

    edge = await start_edge(handle)
    secure = await over_tls(edge, Certificate(*issue(tmp_path, "one")))
    reader, writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=client_context())
    for size in (0, 100, JOINED_MAX, JOINED_MAX + 1, 20 * JOINED_MAX, 100):
        writer.write(sign("GET", f"/b/{size}").wire())
        assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).body == bytes(size)
    writer.close()
    await secure.runner.stop(0.5)


async def test_a_long_answer_arrives_whole_over_tls_and_waits_for_its_reader(
    start_edge: Start, tmp_path: Path
) -> None:
    block, count = bytes(range(256)) * 4096, 48  # A MiB each: more than the kernel's buffers take.
    asked = 0

    async def blocks() -> AsyncIterator[list[memoryview]]:
        nonlocal asked
        whole = memoryview(block)
        for number in range(count):
            asked += 1
            size = len(block) // (number % 3 + 1) + 1  # 1, 2 or 3 writes.
            yield [whole[at : at + size] for at in range(0, len(block), size)]

    async def handle(call: Call) -> web.StreamResponse:
        return await stream(call, 200, CIMultiDict(), blocks(), len(block) * count)

    edge = await start_edge(handle, limits=Limits(body_seconds=8.0))
    secure = await over_tls(edge, Certificate(*issue(tmp_path, "one")))
    reader, writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=client_context())
    writer.write(sign("GET", "/b/k").wire())
    seen = -1
    while seen != asked:
        seen = asked
        await asyncio.sleep(0.3)
    assert asked < count // 2, "the store keeps what its reader has not taken"
    answer = await asyncio.wait_for(read_answer(reader), 30)
    assert answer.status == 200
    assert answer.body == block * count
    writer.close()
    await secure.runner.stop(0.5)


async def test_a_renewed_certificate_is_taken_up_without_a_restart(start_edge: Start, tmp_path: Path) -> None:
    certificate = Certificate(*issue(tmp_path, "one"))
    # Default limits: to make a certificate may take longer than the small ones keep an idle connection.
    secure = await over_tls(await start_edge(limits=Limits()), certificate)
    old_reader, old_writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=client_context())
    assert await served_name(secure.port) == "one"
    assert not certificate.reload_if_changed()
    before = certificate.not_after
    issue(tmp_path, "two", days=60)
    assert certificate.reload_if_changed()
    assert certificate.not_after > before
    assert await served_name(secure.port) == "two"
    old_writer.write(sign("GET", "/b/k").wire())
    assert (await read_answer(old_reader)).status == 200
    old_writer.close()
    await secure.runner.stop(0.5)


async def test_a_broken_renewal_changes_nothing_until_it_is_mended(start_edge: Start, tmp_path: Path) -> None:
    chain, key = issue(tmp_path, "one")
    certificate = Certificate(chain, key)
    secure = await over_tls(await start_edge(), certificate)
    good = chain.read_bytes()
    for broken in (b"", good[: len(good) // 2], issue_elsewhere(tmp_path)):
        chain.write_bytes(broken)
        assert not certificate.reload_if_changed()
        assert await served_name(secure.port) == "one"
    chain.unlink()
    assert not certificate.reload_if_changed()
    assert await served_name(secure.port) == "one"
    assert certificate.failures == 4
    issue(tmp_path, "two")
    assert certificate.reload_if_changed()
    assert await served_name(secure.port) == "two"
    await secure.runner.stop(0.5)


def issue_elsewhere(directory: Path) -> bytes:
    """The certificate of another key."""
    other = directory / "other"
    other.mkdir(exist_ok=True)
    return issue(other, "stranger")[0].read_bytes()


def test_a_certificate_that_cannot_be_used_is_named_at_the_start(tmp_path: Path) -> None:
    chain, key = issue(tmp_path, "one")
    with pytest.raises(TlsFailure, match="not there"):
        Certificate(tmp_path / "nowhere.pem", key)
    chain.write_bytes(b"not a certificate")
    with pytest.raises(TlsFailure, match=r"cert\.pem"):
        Certificate(chain, key)


async def test_old_versions_of_tls_are_refused(start_edge: Start, tmp_path: Path) -> None:
    secure = await over_tls(await start_edge(), Certificate(*issue(tmp_path, "one")))
    context = client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", secure.port, ssl=context)
    await secure.runner.stop(0.5)


async def test_plain_http_on_a_tls_port_ends_and_leaves_no_traceback(
    start_edge: Start, tmp_path: Path
) -> None:
    secure = await over_tls(await start_edge(), Certificate(*issue(tmp_path, "one")))
    reader, writer = await secure.connect()
    writer.write(sign("GET", "/b/k").wire())
    try:
        assert not (await asyncio.wait_for(reader.read(), WITHIN_S)).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        pass
    writer.close()
    await secure.runner.stop(0.5)


async def gone(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has closed, or closes in time."""
    try:
        return await asyncio.wait_for(reader.read(), 30) == b""
    except ConnectionError:
        return True


async def test_silent_connections_are_counted_before_their_handshake_and_give_way(
    start_edge: Start, tmp_path: Path
) -> None:
    limits = replace(SMALL_LIMITS, connections=3, header_seconds=60.0, idle_seconds=60.0, evict_seconds=0.2)
    secure = await over_tls(await start_edge(limits=limits), Certificate(*issue(tmp_path, "one")))
    server = secure.runner.server
    silent = [await secure.connect() for _ in range(3)]
    while len(server.handshakes) < 3:
        await asyncio.sleep(0.01)
    assert server.is_full()
    await asyncio.sleep(limits.evict_seconds)
    # Each newcomer takes the place of the oldest of them.
    newcomers = []
    for reader, _ in silent:
        newcomers.append(await asyncio.open_connection("127.0.0.1", secure.port, ssl=client_context()))
        newcomers[-1][1].write(sign("GET", "/b/k").wire())
        assert (await read_answer(newcomers[-1][0])).status == 200
        assert await gone(reader)
    assert not server.handshakes
    for _, writer in (*silent, *newcomers):
        writer.close()
    await secure.runner.stop(0.5)


async def test_beyond_the_limit_some_are_told_so_over_tls_and_the_others_cut_at_once(
    start_edge: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objstore.s3.server._REFUSED_MAX", 2)
    limits = replace(SMALL_LIMITS, connections=1, evict_seconds=3600.0)
    secure = await over_tls(await start_edge(limits=limits), Certificate(*issue(tmp_path, "one")))
    server = secure.runner.server
    first = await asyncio.open_connection("127.0.0.1", secure.port, ssl=client_context())
    first[1].write(sign("GET", "/b/k").wire())
    assert (await read_answer(first[0])).status == 200
    reader, refused = await asyncio.open_connection("127.0.0.1", secure.port, ssl=client_context())
    refused.write(sign("GET", "/b/k").wire())
    assert (await read_answer(reader)).code == "SlowDown"
    silent = [await secure.connect() for _ in range(2)]
    while len(server.handshakes) < 2:
        await asyncio.sleep(0.01)
    cut = await secure.connect()
    assert await gone(cut[0])
    for _, writer in silent:
        writer.close()
    while server.handshakes:  # Who goes away is counted no more.
        await asyncio.sleep(0.01)
    for _, writer in (first, cut):
        writer.close()
    refused.close()
    await secure.runner.stop(0.5)


async def test_stopping_ends_handshakes_under_way(start_edge: Start, tmp_path: Path) -> None:
    secure = await over_tls(await start_edge(), Certificate(*issue(tmp_path, "one")))
    reader, writer = await secure.connect()
    while not secure.runner.server.handshakes:
        await asyncio.sleep(0.01)
    await secure.runner.stop(0.5)
    assert await gone(reader)
    writer.close()


async def test_watching_takes_up_a_renewal_by_itself(tmp_path: Path) -> None:
    certificate = Certificate(*issue(tmp_path, "one"))
    watching = asyncio.ensure_future(certificate.watch(0.01))
    issue(tmp_path, "two")
    await until(lambda: certificate.reloads)
    watching.cancel()
