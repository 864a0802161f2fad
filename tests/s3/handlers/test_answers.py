"""s3/answers.py: long bodies and slow documents, when things go wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from objstore.objects import reads
from objstore.objects.store import Store
from objstore.s3 import answers
from tests.objects.fakes import FakeReader, blobs_of
from tests.s3.handlers.client import Client, complete_document

MIB = 1024 * 1024
DATA = bytes(range(256)) * 4096 * 4  # 4 MiB: four stripes.

Blocks = Callable[[], AsyncIterator[list[memoryview]]]


def serve_blocks(monkeypatch: pytest.MonkeyPatch, blocks: Blocks) -> None:
    monkeypatch.setattr(reads, "read", lambda _store, _found: blocks())


async def opened(s3: Client, key: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a GET and read the answer's head; the body is left to the test."""
    target, headers = s3.sign("GET", "bkt", key)
    host, _, port = s3.host.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=64 * 1024)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n"), reader, writer


async def test_a_beginning_that_cannot_be_read_is_an_error(s3: Client, store: Store) -> None:
    await s3("PUT", "bkt", "k", body=DATA)
    blobs_of(store).payloads.clear()
    answer = await s3("GET", "bkt", "k")
    assert (answer.status, answer.code) == (500, "InternalError")


async def test_a_small_object_that_cannot_be_read_is_an_error(s3: Client, store: Store) -> None:
    await s3("PUT", "bkt", "k", body=b"small")
    blobs_of(store).payloads.clear()
    answer = await s3("GET", "bkt", "k")
    assert (answer.status, answer.code) == (500, "InternalError")


async def test_a_body_that_cannot_be_finished_cuts_the_connection(s3: Client, store: Store) -> None:
    await s3("PUT", "bkt", "k", body=DATA)
    payloads = blobs_of(store).payloads
    del payloads[max(payloads)]
    with pytest.raises(aiohttp.ClientPayloadError):
        await s3("GET", "bkt", "k")
    assert (await s3("HEAD", "bkt", "k")).status == 200


async def test_a_reader_with_fewer_bytes_than_promised_cuts_the_connection(
    s3: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s3("PUT", "bkt", "k", body=DATA)

    async def short() -> AsyncIterator[list[memoryview]]:
        yield [memoryview(DATA)[:-1]]

    serve_blocks(monkeypatch, short)
    with pytest.raises(aiohttp.ClientPayloadError):
        await s3("GET", "bkt", "k")


async def test_a_reader_with_more_bytes_than_promised_cuts_the_connection(
    s3: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s3("PUT", "bkt", "k", body=DATA)

    async def long() -> AsyncIterator[list[memoryview]]:
        yield [memoryview(DATA)]
        yield [memoryview(b"x")]

    serve_blocks(monkeypatch, long)
    _, reader, writer = await opened(s3, "k")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await reader.readexactly(len(DATA) + 1)  # No stray byte for the next answer to begin with.
    writer.close()


async def test_buffers_are_on_the_wire_before_the_next_ones_are_asked_for(
    s3: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s3("PUT", "bkt", "k", body=DATA)

    async def reusing() -> AsyncIterator[list[memoryview]]:
        buffer = bytearray(MIB)
        for at in range(0, len(DATA), MIB):
            buffer[:] = DATA[at : at + MIB]
            yield [memoryview(buffer)[: MIB // 2], memoryview(buffer)[MIB // 2 :]]
            buffer[:] = b"\xee" * MIB  # Whoever still holds it sends rubbish.

    serve_blocks(monkeypatch, reusing)
    head, reader, writer = await opened(s3, "k")
    assert f"content-length: {len(DATA)}".encode() in head.lower()
    received = bytearray()
    async with asyncio.timeout(60):
        while len(received) < len(DATA):
            received += await reader.read(64 * 1024)
            await asyncio.sleep(0)  # Slower than the server.
    writer.close()
    assert received == DATA


async def test_a_client_that_goes_away_ends_the_reading(s3: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await s3("PUT", "bkt", "k", body=DATA)
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[list[memoryview]]:
        try:
            while True:
                yield [memoryview(DATA)[:MIB]]
        finally:
            ended.set()

    serve_blocks(monkeypatch, endless)
    _, _, writer = await opened(s3, "k")
    writer.transport.abort()
    async with asyncio.timeout(60):
        await ended.wait()


async def test_head_reads_nothing(s3: Client, store: Store) -> None:
    await s3("PUT", "bkt", "k", body=DATA)
    reader = store.reader
    assert isinstance(reader, FakeReader)
    before = reader.extents_read
    assert (await s3("HEAD", "bkt", "k")).headers["Content-Length"] == str(len(DATA))
    assert reader.extents_read == before


async def test_slow_work_goes_on_when_its_client_is_gone(
    s3: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATIENCE_S", 0.01)
    monkeypatch.setattr(answers, "PULSE_S", 0.01)
    upload, parts = await s3.upload("bkt", "k", [b"part"])
    gate = blobs_of(store).gate = asyncio.Event()
    body = complete_document(parts)
    target, headers = s3.sign("POST", "bkt", "k", query={"uploadId": upload}, body=body)
    host, _, port = s3.host.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"POST {target} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    async with asyncio.timeout(60):
        while not blobs_of(store).waiting:
            await asyncio.sleep(0.01)
        gate.set()
        blobs_of(store).gate = None
        while (await s3("HEAD", "bkt", "k")).status != 200:
            await asyncio.sleep(0.01)
    again = await s3.complete("bkt", "k", upload, parts)
    assert again.status == 200


async def test_answers_of_many_sizes_share_a_connection(s3: Client) -> None:
    sizes = [0, 1, 100, 70_000, 128 * 1024, 128 * 1024 + 1, 3 * MIB]
    for size in sizes:
        await s3("PUT", "bkt", f"k{size}", body=DATA[:size])
    for size in sizes + sizes[::-1]:
        answer = await s3("GET", "bkt", f"k{size}")
        assert (answer.status, answer.body == DATA[:size]) == (200, True)
