"""The forty cases that stores get wrong: objects, conditions, ranges, copies, deletes.

Each test is named after its case in the list of S3's own answers; what AWS was recorded to say is expected
to the letter.
"""

import asyncio
import base64
import hashlib
from email.utils import formatdate

import pytest

from objstore.s3.xml import escape
from tests.s3.handlers.client import Answer, Client

TEN = b"0123456789"
PAST = "Tue, 14 Nov 2000 22:13:20 GMT"
FUTURE = "Tue, 14 Nov 2090 22:13:20 GMT"


def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


async def put(s3: Client, key: str, data: bytes = TEN, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await s3("PUT", "bkt", key, headers=sent, body=data)
    assert answer.status == 200, answer.body
    return answer


async def test_a_body_comes_back_with_what_was_said_of_it(s3: Client) -> None:
    said = {
        "content_type": "text/plain",
        "cache_control": "no-cache",
        "content_disposition": "attachment",
        "content_language": "fr",
        "expires": PAST,
        "x_amz_meta_colour": "blue",
    }
    written = await put(s3, "k", **said)
    assert written.headers["ETag"] == etag_of(TEN)
    for method in ("GET", "HEAD"):
        answer = await s3(method, "bkt", "k")
        assert answer.status == 200
        assert answer.body == (TEN if method == "GET" else b"")
        assert answer.headers["Content-Length"] == "10"
        assert answer.headers["ETag"] == etag_of(TEN)
        assert answer.headers["Accept-Ranges"] == "bytes"
        for name, value in said.items():
            assert answer.headers[name.replace("_", "-")] == value


async def test_an_object_without_content_type_is_binary(s3: Client) -> None:
    await put(s3, "k")
    assert (await s3("GET", "bkt", "k")).headers["Content-Type"] == "binary/octet-stream"


async def test_a_large_object_streams_whole_and_in_ranges(s3: Client) -> None:
    data = bytes(range(256)) * 4 * 1024 * 3  # 3 MiB: several stripes.
    await put(s3, "big", data)
    assert (await s3("GET", "bkt", "big")).body == data
    answer = await s3("GET", "bkt", "big", headers={"Range": "bytes=1000000-2500000"})
    assert answer.status == 206
    assert answer.body == data[1_000_000:2_500_001]
    assert answer.headers["Content-Range"] == f"bytes 1000000-2500000/{len(data)}"
    # The connection's write limits are as before: small answers still come.
    assert (await s3("HEAD", "bkt", "big")).headers["Content-Length"] == str(len(data))


async def test_an_empty_object_has_a_body_of_nothing(s3: Client) -> None:
    await put(s3, "dir/", b"")
    answer = await s3("GET", "bkt", "dir/")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert answer.headers["ETag"] == etag_of(b"")


# --- 7, 6: ranges ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "body", "shown"),
    [
        ("bytes=0-100", TEN, "bytes 0-9/10"),
        ("bytes=-15", TEN, "bytes 0-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=9-", b"9", "bytes 9-9/10"),
    ],
)
async def test_case_7_a_range_is_answered_206(s3: Client, wanted: str, body: bytes, shown: str) -> None:
    await put(s3, "k")
    for method in ("GET", "HEAD"):
        answer = await s3(method, "bkt", "k", headers={"Range": wanted, "x-amz-checksum-mode": "ENABLED"})
        assert (answer.status, answer.headers["Content-Range"]) == (206, shown)
        assert answer.headers["Content-Length"] == str(len(body))
        assert answer.body == (body if method == "GET" else b"")
        assert not [name for name in answer.headers if name.lower().startswith("x-amz-checksum")]


@pytest.mark.parametrize("wanted", ["bytes=-0", "bytes=100-200", "bytes=10-"])
async def test_case_7_a_range_outside_is_416(s3: Client, wanted: str) -> None:
    await put(s3, "k")
    answer = await s3("GET", "bkt", "k", headers={"Range": wanted})
    assert (answer.status, answer.code) == (416, "InvalidRange")
    assert answer.text("Message") == "The requested range is not satisfiable"
    assert answer.fields == {"ActualObjectSize": "10", "RangeRequested": wanted}


async def test_case_7_an_empty_object_satisfies_no_range(s3: Client) -> None:
    await put(s3, "k", b"")
    assert (await s3("GET", "bkt", "k", headers={"Range": "bytes=0-0"})).status == 416


@pytest.mark.parametrize("wanted", ["bytes=1-0", "bytes=-1-", "bytes=0-1,3-4", "bytes=-", "rubbish"])
async def test_case_7_a_range_without_sense_gives_the_whole_object(s3: Client, wanted: str) -> None:
    await put(s3, "k")
    answer = await s3("GET", "bkt", "k", headers={"Range": wanted})
    assert (answer.status, answer.body) == (200, TEN)


async def test_a_range_of_an_object_that_is_another_by_now_gives_the_whole_object(s3: Client) -> None:
    old = await put(s3, "k")
    new = await put(s3, "k", b"abcdefghijklmnop")
    modified = (await s3("HEAD", "bkt", "k")).headers["Last-Modified"]
    tag = new.headers["ETag"]
    for named in (tag, tag.strip('"'), modified):
        answer = await s3("GET", "bkt", "k", headers={"Range": "bytes=10-", "If-Range": named})
        assert (answer.status, answer.body) == (206, b"klmnop"), named
        assert answer.headers["Content-Range"] == "bytes 10-15/16"
    for named in (old.headers["ETag"], f"W/{tag}", "*", f'{tag}, "x"', PAST, FUTURE, "rubbish", ""):
        for wanted in ("bytes=10-", "bytes=100-200"):  # Nor is one outside refused that does not count.
            answer = await s3("GET", "bkt", "k", headers={"Range": wanted, "If-Range": named})
            assert (answer.status, answer.body) == (200, b"abcdefghijklmnop"), named
            assert "Content-Range" not in answer.headers
    answer = await s3("HEAD", "bkt", "k", headers={"Range": "bytes=10-", "If-Range": old.headers["ETag"]})
    assert (answer.status, answer.headers["Content-Length"]) == (200, "16")
    answer = await s3("GET", "bkt", "k", headers={"If-Range": old.headers["ETag"]})
    assert (answer.status, answer.body) == (200, b"abcdefghijklmnop")
    changed = {"Range": "bytes=10-", "If-Range": old.headers["ETag"], "If-Match": old.headers["ETag"]}
    assert (await s3("GET", "bkt", "k", headers=changed)).status == 412


async def test_case_6_a_part_of_a_simple_object_is_the_first_or_none(s3: Client) -> None:
    await put(s3, "k")
    answer = await s3("GET", "bkt", "k", query={"partNumber": "1"})
    assert (answer.status, answer.body) == (206, TEN)
    answer = await s3("GET", "bkt", "k", query={"partNumber": "2"})
    assert (answer.status, answer.code) == (416, "InvalidPartNumber")
    assert answer.fields == {"ActualPartCount": "1", "PartNumberRequested": "2"}
    answer = await s3("GET", "bkt", "k", query={"partNumber": "1"}, headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert answer.text("Message") == "Cannot specify both Range header and partNumber query parameter"


# --- 9: read conditions ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_case_9_read_conditions(s3: Client, method: str) -> None:
    await put(s3, "k")
    tag, wrong = etag_of(TEN), '"00000000000000000000000000000000"'

    async def status(**headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await s3(method, "bkt", "k", headers=sent)).status

    assert await status(if_match=tag) == 200
    assert await status(if_match=tag.strip('"')) == 200
    assert await status(if_match="*") == 200
    assert await status(if_match=wrong) == 412
    assert await status(if_none_match=wrong) == 200
    assert await status(if_none_match=tag) == 304
    assert await status(if_none_match=tag.strip('"')) == 304
    assert await status(if_modified_since=PAST) == 200
    assert await status(if_modified_since=formatdate(usegmt=True)) == 304
    assert await status(if_modified_since=FUTURE) == 200  # In the future: ignored.
    assert await status(if_modified_since="rubbish") == 200
    assert await status(if_unmodified_since=FUTURE) == 200
    assert await status(if_unmodified_since=PAST) == 412
    assert await status(if_match=tag, if_unmodified_since=PAST) == 200
    assert await status(if_none_match=wrong, if_modified_since=formatdate(usegmt=True)) == 200


async def test_case_9_a_failed_condition_is_named_and_a_304_has_no_body(s3: Client) -> None:
    await put(s3, "k")
    answer = await s3("GET", "bkt", "k", headers={"If-Match": "nope"})
    assert (answer.code, answer.fields) == ("PreconditionFailed", {"Condition": "If-Match"})
    answer = await s3("GET", "bkt", "k", headers={"If-Unmodified-Since": PAST})
    assert answer.fields == {"Condition": "If-Unmodified-Since"}
    answer = await s3("GET", "bkt", "k", headers={"If-None-Match": etag_of(TEN)})
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["ETag"] == etag_of(TEN)


# --- 10, 15, 16: copies ------------------------------------------------------------------------------


async def copy(s3: Client, source: str, key: str, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await s3("PUT", "bkt", key, headers={"x-amz-copy-source": source, **sent})


async def test_a_copy_keeps_bytes_and_metadata_and_replace_replaces_them(s3: Client) -> None:
    await put(s3, "k", content_type="text/plain", x_amz_meta_a="1")
    answer = await copy(s3, "bkt/k", "c")
    assert answer.status == 200
    assert (answer.text("ETag"), answer.xml.tag) == (etag_of(TEN), "CopyObjectResult")
    copied = await s3("GET", "bkt", "c")
    assert (copied.body, copied.headers["Content-Type"], copied.headers["x-amz-meta-a"]) == (
        TEN,
        "text/plain",
        "1",
    )
    answer = await copy(s3, "bkt/k", "c", x_amz_metadata_directive="REPLACE", x_amz_meta_b="2")
    assert answer.status == 200
    copied = await s3("GET", "bkt", "c")
    assert (copied.body, copied.headers["Content-Type"], copied.headers["x-amz-meta-b"]) == (
        TEN,
        "binary/octet-stream",
        "2",
    )
    assert "x-amz-meta-a" not in copied.headers


async def test_case_10_copy_source_conditions_all_fail_as_412(s3: Client) -> None:
    await put(s3, "k")
    now = formatdate(usegmt=True)
    failing = [
        ("x_amz_copy_source_if_match", "nope", "x-amz-copy-source-If-Match"),
        ("x_amz_copy_source_if_none_match", etag_of(TEN), "x-amz-copy-source-If-None-Match"),
        ("x_amz_copy_source_if_modified_since", now, "x-amz-copy-source-If-Modified-Since"),
        ("x_amz_copy_source_if_unmodified_since", PAST, "x-amz-copy-source-If-Unmodified-Since"),
    ]
    for name, value, condition in failing:
        answer = await copy(s3, "bkt/k", "c", **{name: value})
        assert (answer.status, answer.code) == (412, "PreconditionFailed")
        assert answer.fields == {"Condition": condition}
    holding = [
        {"x_amz_copy_source_if_match": etag_of(TEN)},
        {"x_amz_copy_source_if_match": etag_of(TEN), "x_amz_copy_source_if_unmodified_since": PAST},
        {"x_amz_copy_source_if_none_match": "nope", "x_amz_copy_source_if_modified_since": now},
    ]
    for headers in holding:
        assert (await copy(s3, "bkt/k", "c", **headers)).status == 200


async def test_case_15_a_copy_onto_itself_must_change_something(s3: Client) -> None:
    await put(s3, "k", x_amz_meta_a="1")
    answer = await copy(s3, "bkt/k", "k")
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert (answer.text("Message") or "").startswith(
        "This copy request is illegal because it is trying to copy an object to itself without changing"
    )
    answer = await copy(s3, "bkt/k", "k", x_amz_metadata_directive="REPLACE", x_amz_meta_a="2")
    assert answer.status == 200
    answer = await s3("GET", "bkt", "k")
    assert (answer.body, answer.headers["x-amz-meta-a"]) == (TEN, "2")
    answer = await copy(s3, "bkt/k", "k", x_amz_metadata_directive="MOVE")
    assert (answer.status, answer.code) == (400, "InvalidArgument")


async def test_case_16_a_copy_source_is_decoded_once(s3: Client) -> None:
    for key in ("a b+c", "a%2Fb", "é/?x"):
        await put(s3, key, key.encode())
    for source, key in (("bkt/a%20b+c", "a b+c"), ("bkt/a%252Fb", "a%2Fb"), ("/bkt/%C3%A9/%3Fx", "é/?x")):
        assert (await copy(s3, source, "c")).status == 200
        assert (await s3("GET", "bkt", "c")).body == key.encode()
    for source in ("bkt", "bkt/", "bkt/%zz"):
        answer = await copy(s3, source, "c")
        assert (answer.status, answer.code) == (400, "InvalidArgument")


async def test_case_16_an_encoded_question_mark_is_part_of_the_copied_key(s3: Client) -> None:
    await put(s3, "page", b"another object")
    await put(s3, "page?versionId=null", b"the one that was named")
    source = "bkt/page%3FversionId%3Dnull"
    assert (await copy(s3, source, "c")).status == 200
    assert (await s3("GET", "bkt", "c")).body == b"the one that was named"
    upload, _ = await s3.upload("bkt", "parts", [])
    query = {"uploadId": upload, "partNumber": "1"}
    answer = await s3("PUT", "bkt", "parts", query=query, headers={"x-amz-copy-source": source})
    assert answer.text("ETag") == etag_of(b"the one that was named")


async def test_case_16_a_copy_source_that_is_not_there(s3: Client, other: Client) -> None:
    answer = await copy(s3, "bkt/none", "c")
    assert (answer.status, answer.code, answer.fields) == (404, "NoSuchKey", {"Key": "none"})
    answer = await copy(s3, "no-such-bucket/k", "c")
    assert (answer.status, answer.code) == (404, "NoSuchBucket")
    await put(s3, "k")
    assert (await copy(s3, "bkt/k?versionId=null", "c")).status == 200
    await other("PUT", "theirs")
    answer = await other("PUT", "theirs", "c", headers={"x-amz-copy-source": "bkt/k"})
    assert (answer.status, answer.code) == (403, "AccessDenied")


async def test_case_8_a_range_header_on_a_copy_is_an_invalid_argument(s3: Client) -> None:
    await put(s3, "k")
    answer = await copy(s3, "bkt/k", "c", range="bytes=0-1")
    assert (answer.status, answer.code) == (400, "InvalidArgument")


# --- 11, 12, 14: write conditions --------------------------------------------------------------------


async def test_case_11_put_if_none_match(s3: Client) -> None:
    answer = await s3("PUT", "bkt", "k", headers={"If-None-Match": "*"}, body=TEN)
    assert answer.status == 200
    answer = await s3("PUT", "bkt", "k", headers={"If-None-Match": "*"}, body=b"other")
    assert (answer.status, answer.code) == (412, "PreconditionFailed")
    assert answer.fields == {"Condition": "If-None-Match"}
    assert (await s3("GET", "bkt", "k")).body == TEN
    answers = await asyncio.gather(
        *(s3("PUT", "bkt", "race", headers={"If-None-Match": "*"}, body=b"%d" % n) for n in range(8))
    )
    assert sorted(answer.status for answer in answers) == [200] + [412] * 7


async def test_case_12_put_if_match(s3: Client) -> None:
    answer = await s3("PUT", "bkt", "k", headers={"If-Match": etag_of(TEN)}, body=TEN)
    assert (answer.status, answer.code, answer.fields) == (404, "NoSuchKey", {"Key": "k"})
    await put(s3, "k")
    answer = await s3("PUT", "bkt", "k", headers={"If-Match": "nope"}, body=b"x")
    assert (answer.status, answer.fields) == (412, {"Condition": "If-Match"})
    answer = await s3("PUT", "bkt", "k", headers={"If-Match": etag_of(TEN)}, body=b"x")
    assert answer.status == 200
    answer = await s3("PUT", "bkt", "k", headers={"If-Match": "x", "If-None-Match": "*"}, body=b"x")
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert answer.fields == {
        "Header": "If-Match,If-None-Match",
        "additionalMessage": "Multiple conditional request headers present in the request",
    }


async def test_case_14_delete_if_match(s3: Client) -> None:
    await put(s3, "k")
    answer = await s3("DELETE", "bkt", "k", headers={"If-Match": "nope"})
    assert (answer.status, answer.fields) == (412, {"Condition": "If-Match"})
    answer = await s3("DELETE", "bkt", "k", headers={"x-amz-if-match-size": "9"})
    assert answer.status == 412
    answer = await s3("DELETE", "bkt", "k", headers={"x-amz-if-match-last-modified-time": PAST})
    assert answer.status == 412
    answer = await s3("DELETE", "bkt", "k", headers={"If-Match": etag_of(TEN), "x-amz-if-match-size": "10"})
    assert (answer.status, answer.body) == (204, b"")


# --- 17, 18: the null version ------------------------------------------------------------------------


async def test_case_18_an_object_of_a_plain_bucket_is_the_null_version(s3: Client) -> None:
    written = await put(s3, "k")
    assert "x-amz-version-id" not in written.headers
    answer = await s3("GET", "bkt", "k", query={"versionId": "null"})
    assert (answer.status, answer.body) == (200, TEN)
    answer = await s3("DELETE", "bkt", "k", query={"versionId": "null"})
    assert answer.status == 204
    assert "x-amz-delete-marker" not in answer.headers
    answer = await s3("GET", "bkt", "k")
    assert (answer.status, answer.code, answer.fields) == (404, "NoSuchKey", {"Key": "k"})


async def test_case_17_unknown_versions_are_404_and_malformed_ones_400(s3: Client) -> None:
    await put(s3, "k")
    for version in ("", "rubbish!"):
        answer = await s3("GET", "bkt", "k", query={"versionId": version})
        assert (answer.status, answer.code) == (400, "InvalidArgument")
    answer = await s3("PUT", "bkt", "k", query={"versionId": "null"}, body=b"x")
    assert (answer.status, answer.code) == (400, "InvalidArgument")


async def test_deleting_what_is_not_there_is_204(s3: Client) -> None:
    assert (await s3("DELETE", "bkt", "none")).status == 204


# --- 20: DeleteObjects -------------------------------------------------------------------------------


async def delete_many(s3: Client, document: str, **headers: str) -> Answer:
    body = document.encode()
    sent = {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode(), **headers}
    return await s3("POST", "bkt", query={"delete": ""}, headers=sent, body=body)


def objects(*keys: str) -> str:
    return "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)


async def test_case_20_many_are_deleted_in_order_and_absent_ones_count_as_deleted(s3: Client) -> None:
    keys = ["a&b", "a%2Fb", "a/b", " spaced ", "<é>", "line\nfeed"]
    for key in keys:
        await put(s3, key)
    answer = await delete_many(s3, f"<Delete>{objects(*keys, 'absent')}</Delete>")
    assert answer.status == 200
    assert answer.texts("Deleted/Key") == [*keys, "absent"]
    listed = await s3("GET", "bkt")
    assert listed.texts("Contents/Key") == []


async def test_case_20_keys_of_megabytes_are_refused_in_an_answer_of_kilobytes(s3: Client) -> None:
    keys = ["<" * 500_000, "é" * 500_000]
    answer = await delete_many(s3, f"<Delete>{objects(*keys, 'absent')}</Delete>")
    assert answer.status == 200
    assert answer.texts("Error/Code") == ["KeyTooLongError"] * 2
    assert answer.texts("Deleted/Key") == ["absent"]
    assert len(answer.body) < 20_000


async def test_case_20_percent_signs_in_keys_are_literal(s3: Client) -> None:
    await put(s3, "a/b")
    await delete_many(s3, f"<Delete>{objects('a%2Fb')}</Delete>")
    assert (await s3("HEAD", "bkt", "a/b")).status == 200


async def test_case_20_quiet_shows_only_errors(s3: Client) -> None:
    await put(s3, "k")
    wrong = "<Object><Key>k</Key><VersionId>Zm9vYmFyYmF6cXV4</VersionId></Object>"
    conditional = "<Object><Key>k</Key><ETag>nope</ETag></Object>"
    answer = await delete_many(s3, f"<Delete><Quiet>true</Quiet>{objects('x')}{wrong}{conditional}</Delete>")
    assert answer.status == 200
    assert answer.texts("Deleted/Key") == []
    assert answer.texts("Error/Code")[-1] == "PreconditionFailed"
    assert answer.texts("Error/Key") == ["k", "k"]
    assert (await s3("HEAD", "bkt", "k")).status == 200


async def test_case_20_at_most_1000_and_at_least_one(s3: Client) -> None:
    for count in (0, 1001):
        document = f"<Delete>{objects(*(f'k{n}' for n in range(count)))}</Delete>"
        answer = await delete_many(s3, document)
        assert (answer.status, answer.code) == (400, "MalformedXML")
    document = f"<Delete>{objects(*(f'k{n}' for n in range(1000)))}</Delete>"
    assert len((await delete_many(s3, document)).texts("Deleted/Key")) == 1000


async def test_case_20_a_digest_is_required(s3: Client) -> None:
    body = f"<Delete>{objects('k')}</Delete>".encode()
    answer = await s3("POST", "bkt", query={"delete": ""}, body=body)
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert (
        answer.text("Message") == "Missing required header for this request: Content-MD5 OR x-amz-checksum-*"
    )
    headers = {"Content-MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}
    answer = await s3("POST", "bkt", query={"delete": ""}, headers=headers, body=body)
    assert (answer.status, answer.code) == (400, "BadDigest")


async def test_case_20_an_unknown_field_deletes_nothing(s3: Client) -> None:
    await put(s3, "k")
    answer = await delete_many(s3, "<Delete><Object><Key>k</Key><OnlyIf>x</OnlyIf></Object></Delete>")
    assert (answer.status, answer.code) == (400, "MalformedXML")
    assert (await s3("HEAD", "bkt", "k")).status == 200


async def test_the_bypass_header_of_a_lock_that_no_bucket_has_is_ignored(s3: Client) -> None:
    await put(s3, "k")
    header = {"x-amz-bypass-governance-retention": "true"}
    assert (await s3("DELETE", "bkt", "k", headers=header)).status == 204


# --- 24: keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "a//b",
        "./a",
        "../a",
        "a/./b",
        "a/../b",
        "a/",
        "/a",
        " a",
        "a ",
        "a%2Fb",
        "%",
        "a+b",
        "é",
        "a?b#c",
        "☃/𝄞",
    ],
)
async def test_case_24_keys_are_literal_data(s3: Client, key: str) -> None:
    await put(s3, key, key.encode())
    await put(s3, "decoy", b"decoy")
    assert (await s3("GET", "bkt", key)).body == key.encode()
    listed = await s3("GET", "bkt", query={"list-type": "2"})
    assert sorted(listed.texts("Contents/Key")) == sorted([key, "decoy"])


async def test_case_24_keys_have_1024_bytes(s3: Client) -> None:
    for key in ("k" * 1024, "é" * 512):
        await put(s3, key)
        assert (await s3("GET", "bkt", key)).body == TEN
    for key in ("k" * 1025, "é" * 513):
        answer = await s3("PUT", "bkt", key, body=TEN)
        assert (answer.status, answer.code) == (400, "KeyTooLongError")


# --- 31, 32, 33: what travels with a body -------------------------------------------------------------


async def test_case_31_aws_chunked_is_not_stored(s3: Client) -> None:
    await put(s3, "a", content_encoding="aws-chunked")
    assert "Content-Encoding" not in (await s3("HEAD", "bkt", "a")).headers
    await put(s3, "b", content_encoding="gzip, aws-chunked")
    assert (await s3("GET", "bkt", "b")).headers["Content-Encoding"] == "gzip"


async def test_case_32_content_md5(s3: Client) -> None:
    answer = await s3("PUT", "bkt", "k", headers={"Content-MD5": "rubbish"}, body=TEN)
    assert (answer.status, answer.code) == (400, "InvalidDigest")
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    answer = await s3("PUT", "bkt", "k", headers={"Content-MD5": wrong}, body=TEN)
    assert (answer.status, answer.code) == (400, "BadDigest")
    assert set(answer.fields) == {"ExpectedDigest", "CalculatedDigest"}
    assert (await s3("HEAD", "bkt", "k")).status == 404


async def test_case_33_a_checksum_is_checked_stored_and_shown_on_request(s3: Client) -> None:
    answer = await s3("PUT", "bkt", "k", headers={"x-amz-checksum-crc32": "NhCmhg=="}, body=b"hello")
    assert (answer.status, answer.headers["x-amz-checksum-crc32"]) == (200, "NhCmhg==")
    assert answer.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    answer = await s3("HEAD", "bkt", "k", headers={"x-amz-checksum-mode": "ENABLED"})
    assert answer.headers["x-amz-checksum-crc32"] == "NhCmhg=="
    assert answer.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    answer = await s3("GET", "bkt", "k")
    assert "x-amz-checksum-crc32" not in answer.headers

    answer = await s3("PUT", "bkt", "k", headers={"x-amz-checksum-crc32": "AAAAAA=="}, body=b"hello")
    assert (answer.status, answer.code) == (400, "BadDigest")
    assert answer.text("Message") == "The CRC32 you specified did not match the calculated checksum."
    answer = await s3("PUT", "bkt", "k", headers={"x-amz-checksum-crc32": "rubbish"}, body=b"hello")
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert answer.text("Message") == "Value for x-amz-checksum-crc32 header is invalid."
    two = {"x-amz-checksum-crc32": "NhCmhg==", "x-amz-checksum-crc32c": "mnG7TA=="}
    answer = await s3("PUT", "bkt", "k", headers=two, body=b"hello")
    assert (answer.status, answer.code) == (400, "InvalidRequest")


async def test_an_announced_checksum_that_is_not_sent_is_refused_and_nothing_is_stored(s3: Client) -> None:
    announced = {"x-amz-sdk-checksum-algorithm": "CRC32"}
    answer = await s3("PUT", "bkt", "k", headers=announced, body=b"hello")
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert answer.text("Message") == (
        "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer"
        " headers were found."
    )
    assert (await s3("HEAD", "bkt", "k")).status == 404
    sent = {"x-amz-checksum-crc32": "NhCmhg=="}
    for other in ("SHA256", "CRC32C", "MD5", ""):
        wrong = {**sent, "x-amz-sdk-checksum-algorithm": other}
        answer = await s3("PUT", "bkt", "k", headers=wrong, body=b"hello")
        assert (answer.status, answer.code) == (400, "InvalidRequest"), other
        assert answer.text("Message") == "Value for x-amz-sdk-checksum-algorithm header is invalid."
    assert (await s3("HEAD", "bkt", "k")).status == 404
    for same in ("CRC32", "crc32"):
        right = {**sent, "x-amz-sdk-checksum-algorithm": same}
        assert (await s3("PUT", "bkt", "k", headers=right, body=b"hello")).status == 200


async def test_case_33_without_a_checksum_crc64nvme_is_stored(s3: Client) -> None:
    await put(s3, "k", b"hello")
    answer = await s3("HEAD", "bkt", "k", headers={"x-amz-checksum-mode": "ENABLED"})
    assert answer.headers["x-amz-checksum-crc64nvme"] == "M3eFcAZSQlc="


async def test_a_copy_can_ask_for_another_checksum(s3: Client) -> None:
    await put(s3, "k", b"hello")
    answer = await copy(s3, "bkt/k", "c", x_amz_checksum_algorithm="CRC32C")
    assert (answer.status, answer.text("ChecksumCRC32C")) == (200, "mnG7TA==")


# --- 35, 39, 40 ----------------------------------------------------------------------------------------


async def test_case_35_response_overrides(s3: Client) -> None:
    await put(s3, "k", content_type="text/plain")
    query = {
        "response-cache-control": "no-cache",
        "response-content-disposition": "bla",
        "response-content-encoding": "aaa",
        "response-content-language": "esperanto",
        "response-content-type": "foo/bar",
        "response-expires": "123",
    }
    for method in ("GET", "HEAD"):
        answer = await s3(method, "bkt", "k", query=query)
        assert answer.status == 200
        for name, value in query.items():
            assert answer.headers[name.removeprefix("response-")] == value
    answer = await s3("GET", "bkt", "k", query={"response-content-type": "a\r\nx: y"})
    assert (answer.status, answer.code) == (400, "InvalidArgument")


async def test_case_39_errors_of_head_have_no_body(s3: Client, other: Client) -> None:
    answer = await s3("HEAD", "bkt", "none")
    assert (answer.status, answer.body) == (404, b"")
    assert (await s3("HEAD", "no-such-bucket")).status == 404
    answer = await other("HEAD", "bkt")
    assert (answer.status, answer.body) == (403, b"")


async def test_case_39_the_request_id_is_in_the_document_and_in_the_header(s3: Client) -> None:
    answer = await s3("GET", "bkt", "none")
    assert answer.text("RequestId") == answer.headers["x-amz-request-id"]
    assert answer.text("Resource") == "/bkt/none"


async def test_case_39_another_tenants_bucket_is_closed(s3: Client, other: Client) -> None:
    await put(s3, "k")
    for method, key, query in (
        ("GET", "k", {}),
        ("HEAD", "k", {}),
        ("PUT", "x", {}),
        ("DELETE", "k", {}),
        ("GET", "", {}),
        ("GET", "", {"acl": ""}),
        ("GET", "", {"policy": ""}),
        ("GET", "", {"uploads": ""}),
        ("POST", "x", {"uploads": ""}),
        ("DELETE", "", {}),
    ):
        answer = await other(method, "bkt", key, query=query)
        assert answer.status == 403, (method, key, query)
    assert (await s3("GET", "bkt", "k")).body == TEN


async def test_case_40_metadata_over_2_kb_and_non_ascii_metadata(s3: Client) -> None:
    answer = await s3("PUT", "bkt", "k", headers={"x-amz-meta-a": "x" * 2048}, body=TEN)
    assert (answer.status, answer.code) == (400, "MetadataTooLarge")
    assert answer.fields == {"Size": "2049", "MaxSizeAllowed": "2048"}
    await put(s3, "k", x_amz_meta_a="café")
    assert (await s3("HEAD", "bkt", "k")).headers["x-amz-meta-a"] == "=?UTF-8?Q?caf=C3=A9?="


async def test_case_40_tags_and_acls_that_do_not_exist_yet_are_501(s3: Client) -> None:
    for name, value in (
        ("x-amz-tagging", "a=b"),
        ("x-amz-acl", "public-read"),
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-object-lock-mode", "COMPLIANCE"),
    ):
        answer = await s3("PUT", "bkt", "k", headers={name: value}, body=TEN)
        assert (answer.status, answer.code, answer.fields["Header"]) == (501, "NotImplemented", name)
    assert (await s3("HEAD", "bkt", "k")).status == 404
    assert (await s3("PUT", "bkt", "k", headers={"x-amz-acl": "private"}, body=TEN)).status == 200


async def test_case_40_more_than_5_gib_is_refused_by_its_length(s3: Client) -> None:
    length = str(5 * 1024**3 + 1)
    target, headers = s3.sign(
        "PUT", "bkt", "k", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD", "Content-Length": length}
    )
    head, answer = await s3.raw("PUT", target, headers)  # Not a byte of the body is sent.
    assert head.split()[1] == b"400"
    assert b"EntityTooLarge" in answer


async def test_case_40_a_put_without_length_is_411(s3: Client) -> None:
    target, headers = s3.sign(
        "PUT",
        "bkt",
        "k",
        headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD", "Transfer-Encoding": "chunked"},
    )
    head, answer = await s3.raw("PUT", target, headers, b"1\r\nx\r\n0\r\n\r\n")
    assert head.split()[1] == b"411"
    assert b"MissingContentLength" in answer


async def test_storage_classes_other_than_standard_do_not_exist(s3: Client) -> None:
    await put(s3, "k", x_amz_storage_class="STANDARD")
    answer = await s3("PUT", "bkt", "k", headers={"x-amz-storage-class": "GLACIER"}, body=b"x")
    assert (answer.status, answer.code) == (400, "InvalidStorageClass")
    assert (await s3("GET", "bkt", "k")).body == TEN


async def test_an_expected_owner_is_checked(s3: Client) -> None:
    await put(s3, "k")
    for method, key in (("GET", "k"), ("HEAD", "k"), ("PUT", "k"), ("DELETE", "k"), ("GET", "")):
        answer = await s3(method, "bkt", key, headers={"x-amz-expected-bucket-owner": "123456789012"})
        assert answer.status == 403
    answer = await s3("GET", "bkt", "k", headers={"x-amz-expected-bucket-owner": "main"})
    assert answer.status == 200


async def test_get_object_attributes_of_a_simple_object(s3: Client) -> None:
    await put(s3, "k", b"hello")
    wanted = {"x-amz-object-attributes": "ETag,Checksum,ObjectParts,StorageClass,ObjectSize"}
    answer = await s3("GET", "bkt", "k", query={"attributes": ""}, headers=wanted)
    assert answer.status == 200
    assert answer.text("ETag") == hashlib.md5(b"hello").hexdigest()
    assert answer.text("Checksum/ChecksumCRC64NVME") == "M3eFcAZSQlc="
    assert (answer.text("ObjectSize"), answer.text("StorageClass")) == ("5", "STANDARD")
    assert answer.text("ObjectParts") is None
    answer = await s3(
        "GET", "bkt", "k", query={"attributes": ""}, headers={"x-amz-object-attributes": "ObjectSize"}
    )
    assert [child.tag for child in answer.xml] == ["ObjectSize"]
    for value in ("", "Colour"):
        answer = await s3(
            "GET", "bkt", "k", query={"attributes": ""}, headers={"x-amz-object-attributes": value}
        )
        assert answer.status == 400
