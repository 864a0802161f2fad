"""The forty cases that stores get wrong: multipart uploads."""

import asyncio
import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from awscrt import checksums as crt

from objstore.objects.store import Store
from objstore.s3 import answers
from tests.objects.fakes import blobs_of
from tests.s3.handlers.client import Answer, Client, complete_document

MIB = 1024 * 1024
FIRST = b"a" * (5 * MIB)
LAST = b"the end"


def multipart_etag(*parts: bytes) -> str:
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    return f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'


async def whole(s3: Client, key: str, *parts: bytes, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    upload, made = await s3.upload("bkt", key, list(parts), sent)
    answer = await s3.complete("bkt", key, upload, made)
    assert answer.status == 200, answer.body
    return answer


# --- 1: ETags ----------------------------------------------------------------------------------------


async def test_case_1_the_etag_of_a_multipart_object(s3: Client) -> None:
    answer = await whole(s3, "k", FIRST, LAST, content_type="text/plain", x_amz_meta_a="1")
    assert answer.text("ETag") == multipart_etag(FIRST, LAST)
    assert (answer.text("Bucket"), answer.text("Key")) == ("bkt", "k")
    assert answer.text("Location") == f"http://{s3.host}/bkt/k"
    read = await s3("GET", "bkt", "k")
    assert read.body == FIRST + LAST
    assert read.headers["ETag"] == multipart_etag(FIRST, LAST)
    assert (read.headers["Content-Type"], read.headers["x-amz-meta-a"]) == ("text/plain", "1")
    listed = await s3("GET", "bkt")
    assert listed.text("Contents/ETag") == multipart_etag(FIRST, LAST)


async def test_case_1_a_copy_of_a_multipart_object_has_a_plain_etag(s3: Client) -> None:
    await whole(s3, "k", FIRST, LAST)
    answer = await s3("PUT", "bkt", "c", headers={"x-amz-copy-source": "bkt/k"})
    assert answer.text("ETag") == f'"{hashlib.md5(FIRST + LAST).hexdigest()}"'
    assert (await s3("GET", "bkt", "c")).body == FIRST + LAST


async def test_a_range_over_the_seam_of_two_parts(s3: Client) -> None:
    await whole(s3, "k", FIRST, LAST)
    answer = await s3("GET", "bkt", "k", headers={"Range": f"bytes={5 * MIB - 2}-{5 * MIB + 2}"})
    assert (answer.status, answer.body) == (206, b"aathe")


# --- 2: an answer that takes its time ------------------------------------------------------------------


@asynccontextmanager
async def held_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """Every put of a stripe waits for the event; answers lose their patience at once."""
    monkeypatch.setattr(answers, "PATIENCE_S", 0.01)
    monkeypatch.setattr(answers, "PULSE_S", 0.01)
    gate = asyncio.Event()
    blobs_of(store).gate = gate
    try:
        yield gate
    finally:
        gate.set()
        blobs_of(store).gate = None


async def complete_raw(
    s3: Client, upload: str, parts: list[tuple[int, str]]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    body = complete_document(parts)
    target, headers = s3.sign("POST", "bkt", "k", query={"uploadId": upload}, body=body)
    host, _, port = s3.host.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {target} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


def unchunked(data: bytes) -> bytes:
    whole_body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        whole_body += rest[: int(size, 16)]
        data = rest[int(size, 16) + 2 :]
    return whole_body


async def test_case_2_a_slow_complete_is_kept_alive_with_spaces(
    s3: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, parts = await s3.upload("bkt", "k", [FIRST, LAST])
    async with held_back(store, monkeypatch) as gate, asyncio.timeout(60):
        reader, writer = await complete_raw(s3, upload, parts)
        assert (await reader.readline()).split()[1] == b"200"
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"x-amz-request-id" in head.lower()
        early = await reader.readuntil(b"1\r\n \r\n1\r\n \r\n")  # The declaration, then space after space.
        gate.set()
        body = unchunked(early + await reader.read())
        writer.close()
    assert body.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n  ')
    document = ElementTree.fromstring(re.sub(rb' xmlns="[^"]*"', b"", body))
    assert document.tag == "CompleteMultipartUploadResult"
    assert document.findtext("ETag") == multipart_etag(FIRST, LAST)
    assert (await s3("GET", "bkt", "k")).body == FIRST + LAST


async def test_case_2_a_late_failure_is_an_error_inside_200(
    s3: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, parts = await s3.upload("bkt", "k", [FIRST, LAST])
    async with held_back(store, monkeypatch) as gate, asyncio.timeout(60):
        reader, writer = await complete_raw(s3, upload, parts)
        assert (await reader.readline()).split()[1] == b"200"
        await reader.readuntil(b"\r\n\r\n")
        early = await reader.readuntil(b"1\r\n \r\n")
        aborted = await s3("DELETE", "bkt", "k", query={"uploadId": upload})
        assert aborted.status == 204
        gate.set()
        body = unchunked(early + await reader.read())
        writer.close()
    document = ElementTree.fromstring(body)
    assert (document.tag, document.findtext("Code")) == ("Error", "NoSuchUpload")
    assert (await s3("HEAD", "bkt", "k")).status == 404


async def test_case_2_what_is_known_beforehand_is_a_real_error(
    s3: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, _ = await s3.upload("bkt", "k", [FIRST, LAST])
    async with held_back(store, monkeypatch):
        monkeypatch.setattr(answers, "PATIENCE_S", 5.0)
        answer = await s3.complete("bkt", "k", upload, [(1, "nope")])
    assert (answer.status, answer.code) == (400, "InvalidPart")


# --- 3, 4: Complete ------------------------------------------------------------------------------------


async def test_case_3_complete_again_gives_the_same_answer(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [FIRST, LAST])
    first = await s3.complete("bkt", "k", upload, parts)
    again = await s3.complete("bkt", "k", upload, parts)
    assert (again.status, again.body) == (200, first.body)
    answer = await s3("GET", "bkt", "k", query={"uploadId": upload})
    assert (answer.status, answer.code, answer.fields) == (404, "NoSuchUpload", {"UploadId": upload})


async def test_case_3_unknown_uploads_and_wrong_keys_are_404(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [LAST])
    for key, named in (("k", "fakeid"), ("k", "0" * 32), ("other", upload)):
        query = {"uploadId": named}
        for answer in (
            await s3("PUT", "bkt", key, query={**query, "partNumber": "1"}, body=b"x"),
            await s3("POST", "bkt", key, query=query, body=complete_document(parts)),
            await s3("GET", "bkt", key, query=query),
            await s3("DELETE", "bkt", key, query=query),
        ):
            assert (answer.status, answer.code) == (404, "NoSuchUpload")
            assert answer.fields == {"UploadId": named}
            assert answer.text("Message") == (
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have "
                "been aborted or completed."
            )
    assert (await s3.complete("bkt", "k", upload, parts)).status == 200


async def test_case_4_complete_is_validated(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [FIRST, LAST])
    (_, first), (_, last) = parts

    async def refused(listed: list[tuple[int, str]]) -> Answer:
        answer = await s3.complete("bkt", "k", upload, listed)
        assert answer.status == 400
        return answer

    answer = await refused([])
    assert (answer.code, answer.text("Message")) == (
        "InvalidRequest",
        "You must specify at least one part",
    )
    answer = await refused([(2, last), (1, first)])
    assert answer.code == "InvalidPartOrder"
    answer = await refused([(1, first), (2, last), (1, first)])
    assert answer.code == "InvalidPartOrder"
    answer = await refused([(1, last), (2, last)])
    assert answer.code == "InvalidPart"
    assert answer.fields == {"UploadId": upload, "PartNumber": "1", "ETag": last.strip('"')}
    answer = await refused([(1, first), (3, last)])
    assert (answer.code, answer.fields["PartNumber"]) == ("InvalidPart", "3")

    upload, parts = await s3.upload("bkt", "small", [LAST, LAST])
    answer = await s3.complete("bkt", "small", upload, parts)
    assert (answer.status, answer.code) == (400, "EntityTooSmall")
    assert answer.fields == {
        "ProposedSize": str(len(LAST)),
        "MinSizeAllowed": "5242880",
        "PartNumber": "1",
        "ETag": parts[0][1].strip('"'),
    }
    assert (await s3("HEAD", "bkt", "k")).status == 404


async def test_case_4_gaps_in_the_numbers_are_legal_and_parts_may_be_left_out(s3: Client) -> None:
    made = await s3("POST", "bkt", "k", query={"uploads": ""})
    upload = made.text("UploadId") or ""
    parts = []
    for number, data in ((3, FIRST), (500, b"unused"), (10000, LAST)):
        answer = await s3("PUT", "bkt", "k", query={"uploadId": upload, "partNumber": str(number)}, body=data)
        parts.append((number, answer.headers["ETag"]))
    answer = await s3.complete("bkt", "k", upload, [parts[0], parts[2]])
    assert answer.text("ETag") == multipart_etag(FIRST, LAST)
    assert (await s3("GET", "bkt", "k")).body == FIRST + LAST


async def test_case_4_the_promised_size_must_be_right(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [LAST])
    answer = await s3.complete("bkt", "k", upload, parts, {"x-amz-mp-object-size": "1"})
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    answer = await s3.complete("bkt", "k", upload, parts, {"x-amz-mp-object-size": str(len(LAST))})
    assert answer.status == 200


@pytest.mark.parametrize(
    "document",
    [
        b"<CompleteMultipartUpload>",
        b"<Delete/>",
        b"<CompleteMultipartUpload><Part><ETag>x</ETag></Part></CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Part><PartNumber>1_0</PartNumber><ETag>x</ETag></Part>"
        b"</CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Other/></CompleteMultipartUpload>",
        b'<!DOCTYPE x [<!ENTITY e "1">]><CompleteMultipartUpload><Part><PartNumber>&e;</PartNumber>'
        b"<ETag>x</ETag></Part></CompleteMultipartUpload>",
    ],
)
async def test_case_4_a_document_without_sense_is_malformed(s3: Client, document: bytes) -> None:
    upload, _ = await s3.upload("bkt", "k", [LAST])
    answer = await s3("POST", "bkt", "k", query={"uploadId": upload}, body=document)
    assert (answer.status, answer.code) == (400, "MalformedXML")


async def test_a_complete_of_many_parts_is_parsed_beside_the_loop(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [LAST])
    listed = [(number, parts[0][1]) for number in range(2, 3002)]
    answer = await s3.complete("bkt", "k", upload, listed)  # 200 KB of XML: more than the loop takes.
    assert (answer.status, answer.code) == (400, "InvalidPart")


async def test_of_a_part_listed_twice_the_later_counts(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [LAST])
    answer = await s3.complete("bkt", "k", upload, [(1, "earlier"), (1, parts[0][1])])
    assert answer.status == 200
    assert (await s3("GET", "bkt", "k")).body == LAST


async def test_an_etag_in_the_list_may_be_quoted_or_not(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [LAST])
    answer = await s3.complete("bkt", "k", upload, [(1, parts[0][1].strip('"'))])
    assert answer.status == 200


# --- 5: part numbers -----------------------------------------------------------------------------------


async def test_case_5_part_numbers(s3: Client) -> None:
    upload, _ = await s3.upload("bkt", "k", [b"first"])
    for number in ("0", "10001", "x", ""):
        query = {"uploadId": upload, "partNumber": number}
        answer = await s3("PUT", "bkt", "k", query=query, body=b"x")
        assert (answer.status, answer.code) == (400, "InvalidArgument")
        assert answer.fields["ArgumentName"] == "partNumber"
    answer = await s3("PUT", "bkt", "k", query={"uploadId": upload}, body=b"x")
    assert (answer.status, answer.code) == (400, "InvalidArgument")
    answer = await s3("PUT", "bkt", "k", query={"partNumber": "1"}, body=b"x")
    assert (answer.status, answer.code) == (400, "InvalidArgument")
    assert (await s3("HEAD", "bkt", "k")).status == 404


async def test_case_5_a_part_sent_again_replaces_the_first(s3: Client) -> None:
    upload, _ = await s3.upload("bkt", "k", [b"first"])
    query = {"uploadId": upload, "partNumber": "1"}
    again = await s3("PUT", "bkt", "k", query=query, body=b"second")
    answer = await s3.complete("bkt", "k", upload, [(1, again.headers["ETag"])])
    assert answer.status == 200
    assert (await s3("GET", "bkt", "k")).body == b"second"


# --- 6: parts of a finished object ------------------------------------------------------------------------


async def test_case_6_a_part_of_a_multipart_object(s3: Client) -> None:
    await whole(s3, "k", FIRST, LAST)
    for method in ("GET", "HEAD"):
        answer = await s3(method, "bkt", "k", query={"partNumber": "2"})
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {5 * MIB}-{5 * MIB + 6}/{5 * MIB + 7}"
        assert answer.headers["x-amz-mp-parts-count"] == "2"
        assert answer.headers["ETag"] == multipart_etag(FIRST, LAST)
        assert answer.body == (LAST if method == "GET" else b"")
    answer = await s3("GET", "bkt", "k", query={"partNumber": "3"})
    assert (answer.status, answer.code) == (416, "InvalidPartNumber")
    assert answer.fields == {"ActualPartCount": "2", "PartNumberRequested": "3"}
    answer = await s3("GET", "bkt", "k", query={"partNumber": "1"}, headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.code) == (400, "InvalidRequest")


# --- 8: UploadPartCopy ---------------------------------------------------------------------------------


async def part_copy(s3: Client, upload: str, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    query = {"uploadId": upload, "partNumber": "1"}
    return await s3("PUT", "bkt", "k", query=query, headers={"x-amz-copy-source": "bkt/source", **sent})


async def test_case_8_a_part_can_be_a_copy_of_a_range(s3: Client) -> None:
    await s3("PUT", "bkt", "source", body=b"0123456789")
    upload, _ = await s3.upload("bkt", "k", [])
    answer = await part_copy(s3, upload, x_amz_copy_source_range="bytes=2-5")
    assert (answer.status, answer.xml.tag) == (200, "CopyPartResult")
    assert answer.text("ETag") == f'"{hashlib.md5(b"2345").hexdigest()}"'
    answer = await s3.complete("bkt", "k", upload, [(1, answer.text("ETag") or "")])
    assert answer.status == 200
    assert (await s3("GET", "bkt", "k")).body == b"2345"


async def test_case_8_copy_ranges_outside_the_source(s3: Client) -> None:
    await s3("PUT", "bkt", "source", body=b"0123456789")
    upload, _ = await s3.upload("bkt", "k", [])
    for wanted in ("0-8", "bytes=1-0", "bytes=-1-", "bytes=0-1,3-4", "bytes=-", "bytes=1-", "bytes=-2"):
        answer = await part_copy(s3, upload, x_amz_copy_source_range=wanted)
        assert (answer.status, answer.code) == (400, "InvalidArgument")
        assert answer.text("Message") == (
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are "
            "the zero-based offsets of the first and last bytes to copy"
        )
    answer = await part_copy(s3, upload, x_amz_copy_source_range="bytes=0-100")
    assert (answer.status, answer.code) == (400, "InvalidArgument")
    assert answer.text("Message") == "Range specified is not valid for source object of size: 10"
    answer = await part_copy(s3, upload, x_amz_copy_source_range="bytes=100-200")
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert answer.text("Message") == "The specified copy range is invalid for the source object size"


async def test_case_10_the_conditions_of_a_part_copy(s3: Client) -> None:
    await s3("PUT", "bkt", "source", body=b"0123456789")
    upload, _ = await s3.upload("bkt", "k", [])
    tag = f'"{hashlib.md5(b"0123456789").hexdigest()}"'
    answer = await part_copy(s3, upload, x_amz_copy_source_if_none_match=tag)
    assert (answer.status, answer.fields) == (412, {"Condition": "x-amz-copy-source-If-None-Match"})
    assert (await part_copy(s3, upload, x_amz_copy_source_if_match=tag)).status == 200


# --- 13: conditions ------------------------------------------------------------------------------------


async def test_case_13_if_none_match(s3: Client) -> None:
    condition = {"If-None-Match": "*"}
    upload, parts = await s3.upload("bkt", "k", [LAST])
    await s3("PUT", "bkt", "k", body=b"meanwhile")
    answer = await s3.complete("bkt", "k", upload, parts, condition)
    assert (answer.status, answer.fields) == (412, {"Condition": "If-None-Match"})
    await s3("DELETE", "bkt", "k")
    upload, parts = await s3.upload("bkt", "k", [LAST])
    assert (await s3.complete("bkt", "k", upload, parts, condition)).status == 200


async def test_case_13_if_match(s3: Client) -> None:
    written = await s3("PUT", "bkt", "k", body=b"before")
    upload, parts = await s3.upload("bkt", "k", [LAST])
    answer = await s3.complete("bkt", "k", upload, parts, {"If-Match": "nope"})
    assert (answer.status, answer.fields) == (412, {"Condition": "If-Match"})
    await s3("DELETE", "bkt", "k")
    answer = await s3.complete("bkt", "k", upload, parts, {"If-Match": written.headers["ETag"]})
    assert (answer.status, answer.code) == (404, "NoSuchKey")
    written = await s3("PUT", "bkt", "k", body=b"before")
    upload, parts = await s3.upload("bkt", "k", [LAST])
    answer = await s3.complete("bkt", "k", upload, parts, {"If-Match": written.headers["ETag"]})
    assert answer.status == 200


# --- 34: checksums -------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def checksummed(parts: list[tuple[int, str, str]], algorithm: str) -> bytes:
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>"
        + (f"<Checksum{algorithm}>{checksum}</Checksum{algorithm}>" if checksum else "")
        + "</Part>"
        for number, etag, checksum in parts
    )
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()


async def test_case_34_composite_sha256(s3: Client) -> None:
    made = await s3("POST", "bkt", "k", query={"uploads": ""}, headers={"x-amz-checksum-algorithm": "SHA256"})
    assert made.headers["x-amz-checksum-algorithm"] == "SHA256"
    assert made.headers["x-amz-checksum-type"] == "COMPOSITE"
    upload = made.text("UploadId") or ""
    digests = [hashlib.sha256(FIRST).digest(), hashlib.sha256(LAST).digest()]
    parts = []
    for number, (data, digest) in enumerate(zip((FIRST, LAST), digests, strict=True), start=1):
        query = {"uploadId": upload, "partNumber": str(number)}
        answer = await s3(
            "PUT", "bkt", "k", query=query, headers={"x-amz-checksum-sha256": b64(digest)}, body=data
        )
        assert (answer.status, answer.headers["x-amz-checksum-sha256"]) == (200, b64(digest))
        parts.append((number, answer.headers["ETag"], b64(digest)))
    listed = await s3("GET", "bkt", "k", query={"uploadId": upload})
    assert listed.texts("Part/ChecksumSHA256") == [b64(digest) for digest in digests]
    assert (listed.text("ChecksumAlgorithm"), listed.text("ChecksumType")) == ("SHA256", "COMPOSITE")

    query = {"uploadId": upload}
    body = checksummed([(number, etag, "") for number, etag, _ in parts], "SHA256")
    answer = await s3("POST", "bkt", "k", query=query, body=body)
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert answer.text("Message") == (
        "The upload was created using a sha256 checksum. The complete request must include the checksum for "
        "each part. It was missing for part 1 in the request."
    )
    body = checksummed([parts[0], (2, parts[1][1], b64(digests[0]))], "SHA256")
    answer = await s3("POST", "bkt", "k", query=query, body=body)
    assert (answer.status, answer.code) == (400, "InvalidPart")
    answer = await s3("POST", "bkt", "k", query=query, body=checksummed(parts, "SHA256"))
    expected = b64(hashlib.sha256(b"".join(digests)).digest()) + "-2"
    assert (answer.status, answer.text("ChecksumSHA256")) == (200, expected)
    assert answer.text("ChecksumType") == "COMPOSITE"
    head = await s3("HEAD", "bkt", "k", headers={"x-amz-checksum-mode": "ENABLED"})
    assert head.headers["x-amz-checksum-sha256"] == expected
    assert head.headers["x-amz-checksum-type"] == "COMPOSITE"
    wanted = {"x-amz-object-attributes": "Checksum,ObjectParts,ObjectSize"}
    attributes = await s3("GET", "bkt", "k", query={"attributes": ""}, headers=wanted)
    assert attributes.text("Checksum/ChecksumSHA256") == expected
    assert attributes.texts("ObjectParts/Part/ChecksumSHA256") == [b64(digest) for digest in digests]
    assert attributes.texts("ObjectParts/Part/Size") == [str(len(FIRST)), str(len(LAST))]
    assert attributes.text("ObjectSize") == str(len(FIRST + LAST))
    answer = await s3(
        "GET", "bkt", "k", query={"partNumber": "2"}, headers={"x-amz-checksum-mode": "ENABLED"}
    )
    assert answer.headers["x-amz-checksum-sha256"] == b64(digests[1])
    assert answer.headers["x-amz-checksum-type"] == "COMPOSITE"


async def test_case_34_without_an_algorithm_the_end_is_a_full_crc64nvme(s3: Client) -> None:
    answer = await whole(s3, "k", FIRST, LAST)
    expected = b64(crt.crc64nvme(FIRST + LAST).to_bytes(8, "big"))
    assert (answer.text("ChecksumCRC64NVME"), answer.text("ChecksumType")) == (expected, "FULL_OBJECT")


async def test_case_34_a_full_object_checksum_is_compared(s3: Client) -> None:
    headers = {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"}
    upload, parts = await s3.upload("bkt", "k", [FIRST, LAST], headers)
    expected = b64(crt.crc32(FIRST + LAST).to_bytes(4, "big"))
    for text in ("AAAAAA==", "bad", "AAAAAA==-2"):
        wrong = {"x-amz-checksum-crc32": text, "x-amz-checksum-type": "FULL_OBJECT"}
        answer = await s3.complete("bkt", "k", upload, parts, wrong)
        assert (answer.status, answer.code) == (400, "BadDigest")
    right = {"x-amz-checksum-crc32": expected, "x-amz-checksum-type": "FULL_OBJECT"}
    answer = await s3.complete("bkt", "k", upload, parts, right)
    assert (answer.status, answer.text("ChecksumCRC32")) == (200, expected)


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("CRC64NVME", "COMPOSITE"), ("SHA1", "FULL_OBJECT"), ("SHA256", "FULL_OBJECT")]
)
async def test_case_34_combinations_that_cannot_be(s3: Client, algorithm: str, kind: str) -> None:
    headers = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind}
    answer = await s3("POST", "bkt", "k", query={"uploads": ""}, headers=headers)
    assert (answer.status, answer.code) == (400, "InvalidRequest")


async def test_case_34_a_part_with_another_algorithm_is_refused(s3: Client) -> None:
    upload, _ = await s3.upload("bkt", "k", [], {"x-amz-checksum-algorithm": "SHA256"})
    query = {"uploadId": upload, "partNumber": "1"}
    answer = await s3(
        "PUT", "bkt", "k", query=query, headers={"x-amz-checksum-crc32": "NhCmhg=="}, body=b"hello"
    )
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert answer.text("Message") == (
        "Checksum Type mismatch occurred, expected checksum Type: sha256, actual checksum Type: crc32"
    )


# --- Lists, attributes, abort --------------------------------------------------------------------------


async def test_parts_are_listed_in_pages(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [b"%d" % n for n in range(5)])
    found, marker = [], "0"
    for _ in range(5):
        query = {"uploadId": upload, "max-parts": "2", "part-number-marker": marker}
        answer = await s3("GET", "bkt", "k", query=query)
        assert (answer.text("MaxParts"), answer.text("PartNumberMarker")) == ("2", marker)
        found += list(zip(answer.texts("Part/PartNumber"), answer.texts("Part/ETag"), strict=True))
        marker = answer.text("NextPartNumberMarker") or ""
        if answer.text("IsTruncated") == "false":
            break
    assert found == [(str(number), etag) for number, etag in parts]
    assert answer.text("Owner/DisplayName") == answer.text("Initiator/ID") == "main"


async def test_uploads_are_listed_in_pages_and_rolled_up(s3: Client) -> None:
    ids = {}
    for key in ("a", "a", "b/1", "b/2", "c d"):
        upload, _ = await s3.upload("bkt", key, [])
        ids.setdefault(key, []).append(upload)
    answer = await s3("GET", "bkt", query={"uploads": ""})
    assert answer.texts("Upload/Key") == ["a", "a", "b/1", "b/2", "c d"]
    assert answer.texts("Upload/UploadId")[:2] == ids["a"]
    answer = await s3("GET", "bkt", query={"uploads": "", "delimiter": "/", "encoding-type": "url"})
    assert answer.texts("Upload/Key") == ["a", "a", "c%20d"]
    assert answer.texts("CommonPrefixes/Prefix") == ["b/"]
    found, markers = [], {}
    for _ in range(6):
        answer = await s3("GET", "bkt", query={"uploads": "", "max-uploads": "2", **markers})
        found += answer.texts("Upload/UploadId")
        if answer.text("IsTruncated") == "false":
            break
        markers = {
            "key-marker": answer.text("NextKeyMarker") or "",
            "upload-id-marker": answer.text("NextUploadIdMarker") or "",
        }
    assert found == [one for key in ("a", "b/1", "b/2", "c d") for one in ids[key]]
    query = {"uploads": "", "key-marker": "a", "upload-id-marker": "rubbish"}
    answer = await s3("GET", "bkt", query=query)
    assert (answer.status, answer.text("Message")) == (400, "Invalid uploadId marker")


async def test_an_aborted_upload_is_gone(s3: Client) -> None:
    upload, parts = await s3.upload("bkt", "k", [LAST])
    answer = await s3("DELETE", "bkt", "k", query={"uploadId": upload})
    assert (answer.status, answer.body) == (204, b"")
    assert (await s3.complete("bkt", "k", upload, parts)).code == "NoSuchUpload"
    assert (await s3("GET", "bkt", query={"uploads": ""})).texts("Upload/Key") == []


async def test_get_object_attributes_of_a_multipart_object(s3: Client) -> None:
    await whole(s3, "k", FIRST, FIRST, LAST, x_amz_checksum_algorithm="CRC64NVME")
    headers = {
        "x-amz-object-attributes": "ETag,ObjectParts,ObjectSize",
        "x-amz-max-parts": "1",
        "x-amz-part-number-marker": "1",
    }
    answer = await s3("GET", "bkt", "k", query={"attributes": ""}, headers=headers)
    assert answer.status == 200
    assert answer.text("ETag") == multipart_etag(FIRST, FIRST, LAST).strip('"')
    assert answer.text("ObjectParts/PartsCount") == "3"
    assert answer.texts("ObjectParts/Part/PartNumber") == ["2"]
    assert answer.texts("ObjectParts/Part/Size") == [str(5 * MIB)]
    assert answer.text("ObjectParts/IsTruncated") == "true"
    assert answer.text("ObjectParts/NextPartNumberMarker") == "2"


async def test_an_upload_that_asks_for_what_does_not_exist_is_not_started(s3: Client) -> None:
    for name, value in (("x-amz-tagging", "a=b"), ("x-amz-server-side-encryption", "AES256")):
        answer = await s3("POST", "bkt", "k", query={"uploads": ""}, headers={name: value})
        assert (answer.status, answer.code) == (501, "NotImplemented")
    assert (await s3("GET", "bkt", query={"uploads": ""})).texts("Upload/Key") == []
