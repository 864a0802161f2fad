"""What real AWS S3 was recorded to answer to bad requests is our answer: status, code, message, fields.

`aws_errors.tsv` holds the recordings that lie within our scope; each row is reproduced here by a function
of the same name. A row without one fails, and so does a function without a row.
"""

import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.s3.handlers.client import Answer, Client, complete_document
from tests.s3.handlers.test_cases_multipart import checksummed

Reproduction = Callable[[Client], Awaitable[Answer]]

PAST = "Tue, 14 Nov 2000 22:13:20 GMT"
ROWS = {
    row[0]: row[1:]
    for row in (
        line.split("\t")
        for line in Path(__file__).with_name("aws_errors.tsv").read_text().splitlines()
        if not line.startswith("#")
    )
}
FOUND: dict[str, Reproduction] = {}


def row(*names: str) -> Callable[[Reproduction], Reproduction]:
    def register(function: Reproduction) -> Reproduction:
        for name in names:
            assert name not in FOUND
            FOUND[name] = function
        return function

    return register


def request(
    name: str,
    method: str,
    key: str = "",
    *,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    bucket: str = "bkt",
    before: dict[str, bytes] | None = None,
) -> None:
    """A row that is one request, after some objects were put."""

    async def send(s3: Client) -> Answer:
        for existing, data in (before or {}).items():
            await s3("PUT", "bkt", existing, body=data)
        return await s3(method, bucket, key, query=query or {}, headers=headers, body=body)

    row(name)(send)


def copying(source: str, **headers: str) -> dict[str, str]:
    return {"x-amz-copy-source": source} | {name.replace("_", "-"): value for name, value in headers.items()}


ABSENT = "does-not-exist-localstack-test"
TEN = {"k": b"0123456789"}

# --- Buckets and configurations --------------------------------------------------------------------

request("test_delete_bucket_no_such_bucket/expected_error", "DELETE", bucket=ABSENT)
request("test_bucket_not_exist/bucket_not_exists", "GET", bucket=ABSENT, query={"lifecycle": ""})
for _name, _flag in (
    ("test_get_bucket_notification_configuration_no_such_bucket/expected_error", "notification"),
    ("test_bucket_availability/bucket-lifecycle", "lifecycle"),
    ("test_bucket_availability/bucket-replication", "replication"),
    ("test_get_object_lock_configuration_exc/get-lock-config-bucket-not-exists", "object-lock"),
):
    request(_name, "GET", bucket=ABSENT, query={_flag: ""})
for _name, _flag in (
    ("test_delete_bucket_lifecycle_configuration/get-bucket-lifecycle-exc-1", "lifecycle"),
    ("test_crud_website_configuration/get-no-such-website-config", "website"),
    ("test_get_bucket_policy/get-bucket-policy-no-such-bucket-policy", "policy"),
    ("test_bucket_tagging_crud/get-bucket-tags-empty", "tagging"),
    ("test_get_object_lock_configuration_exc/get-lock-config-no-enabled", "object-lock"),
    ("test_crud_public_access_block/get-public-access-block-after-delete", "publicAccessBlock"),
):
    request(_name, "GET", query={_flag: ""})
for _name, _region in (
    (
        "test_create_bucket_with_invalid_location_constraint[us-east-1-us-east-1]"
        "/us-east-1-location-constraint-us-east-1-error",
        "us-east-1",
    ),
    (
        "test_create_bucket_with_invalid_location_constraint[us-east-1-foo]"
        "/us-east-1-location-constraint-foo-error",
        "foo",
    ),
):
    request(
        _name,
        "PUT",
        bucket="elsewhere",
        body=b"<CreateBucketConfiguration><LocationConstraint>%s</LocationConstraint>"
        b"</CreateBucketConfiguration>" % _region.encode(),
    )
request(
    "test_bucket_ownership_controls_exc/ownership-wrong-value-at-creation",
    "PUT",
    bucket="elsewhere",
    headers={"x-amz-object-ownership": "RandomValue"},
)
request("test_create_bucket_with_tags_us_east_1_idempotency/create-bucket-with-same-tags", "PUT")

# --- Objects ---------------------------------------------------------------------------------------

request("test_s3_uppercase_key_names/wrong-case-key", "GET", "camelcasekey", before={"CamelCaseKey": b"x"})
request(
    "test_precondition_failed_error/get-object-if-match", "GET", "k", headers={"If-Match": '"x"'}, before=TEN
)
request(
    "test_s3_get_object_preconditions[get_object]/precondition-if-match",
    "GET",
    "k",
    headers={"If-Match": "nope"},
    before=TEN,
)
request(
    "test_s3_get_object_preconditions[get_object]/precondition-if-unmodified-since",
    "GET",
    "k",
    headers={"If-Unmodified-Since": PAST},
    before=TEN,
)
for _wanted in ("-0", "100-200"):
    request(
        f"test_get_object_range/get-{_wanted}", "GET", "k", headers={"Range": f"bytes={_wanted}"}, before=TEN
    )
request(
    "test_get_response_overrides_unicode_metadata_with_sig_s3/unicode-error",
    "GET",
    "k",
    query={"response-cache-control": "non-ascii-%E2%80%94_—_é_"},
    before=TEN,
)
request(
    "test_put_object_legal_hold_exc/put-object-legal-hold-no-bucket",
    "GET",
    "k",
    bucket=ABSENT,
    query={"legal-hold": ""},
)
request(
    "test_put_object_legal_hold_exc/get-object-retention-regular-bucket",
    "GET",
    "k",
    query={"retention": ""},
    before=TEN,
)
for _algorithm in ("CRC32", "CRC32C", "SHA1"):
    _header = f"x-amz-checksum-{_algorithm.lower()}"
    _size = 20 if _algorithm == "SHA1" else 4
    for _step, _value in (
        ("put-wrong-checksum-no-b64", "TEST"),
        ("put-wrong-checksum-value", base64.b64encode(bytes(_size)).decode()),
    ):
        request(
            f"test_put_object_checksum[{_algorithm}]/{_step}",
            "PUT",
            "k",
            headers={_header: _value},
            body=b"x",
        )
request(
    "test_s3_checksum_no_algorithm/put-wrong-checksum",
    "PUT",
    "k",
    headers={"x-amz-checksum-sha256": "TEST"},
    body=b"x",
)
request(
    "test_s3_checksum_no_algorithm/put-2-checksums",
    "PUT",
    "k",
    headers={"x-amz-checksum-crc32": "NhCmhg==", "x-amz-checksum-crc32c": "mnG7TA=="},
    body=b"hello",
)
request(
    "test_put_object_if_none_match/put-obj-if-none-match",
    "PUT",
    "k",
    headers={"If-None-Match": "*"},
    before=TEN,
)
request(
    "test_put_object_if_match/put-obj-if-match-wrong-etag", "PUT", "k", headers={"If-Match": "x"}, before=TEN
)
request(
    "test_put_object_if_match/put-obj-if-match-key-not-exists",
    "PUT",
    "test-precondition",
    headers={"If-Match": "x"},
)
request(
    "test_delete_object_if_match_non_express/delete-obj-if-match",
    "DELETE",
    "k",
    headers={"If-Match": "x"},
    before=TEN,
)


@row("test_delete_non_existing_keys_in_non_existing_bucket/error-non-existent-bucket")
async def delete_many_in_no_bucket(s3: Client) -> Answer:
    body = b"<Delete><Object><Key>dummy1</Key></Object></Delete>"
    headers = {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}
    return await s3("POST", ABSENT, query={"delete": ""}, headers=headers, body=body)


# --- Copies ----------------------------------------------------------------------------------------

request(
    "test_s3_copy_object_src_not_exists/copy-object-src-bucket-not-exists",
    "PUT",
    "c",
    headers=copying("no-such-source/k"),
)
request(
    "test_s3_copy_object_src_not_exists/copy-object-src-object-not-exists",
    "PUT",
    "c",
    headers=copying("bkt/random-src-key"),
)
request(
    "test_s3_copy_object_wrong_format/copy-object-wrong-copy-source",
    "PUT",
    "c",
    headers=copying("wrongformat"),
)
request(
    "test_s3_copy_object_in_place_versioned/copy-object-in-place-no-change",
    "PUT",
    "k",
    headers=copying("bkt/k"),
    before=TEN,
)
request(
    "test_copy_object_if_none_match/copy-obj-if-none-match-fail",
    "PUT",
    "c",
    headers=copying("bkt/k", if_none_match="*"),
    before={**TEN, "c": b"there"},
)
request(
    "test_copy_object_if_match/copy-obj-if-match-fail-wrong-etag",
    "PUT",
    "c",
    headers=copying("bkt/k", if_match="nope"),
    before={**TEN, "c": b"there"},
)
request(
    "test_copy_object_if_match/copy-obj-if-match-fail-no-object",
    "PUT",
    "non-existent-key",
    headers=copying("bkt/k", if_match="nope"),
    before=TEN,
)
request(
    "test_copy_object_precondition_write_validation/copy-obj-both",
    "PUT",
    "c",
    headers=copying("bkt/k", if_match="x", if_none_match="*"),
    before=TEN,
)

# --- Multipart -------------------------------------------------------------------------------------

for _name, _headers in (
    (
        "test_multipart_parts_checksum_exceptions_composite/create-mpu-wrong-checksum-algo",
        {"x-amz-checksum-algorithm": "MD6"},
    ),
    (
        "test_multipart_parts_checksum_exceptions_composite/create-mpu-no-checksum-algo-with-type",
        {"x-amz-checksum-type": "COMPOSITE"},
    ),
    (
        "test_multipart_checksum_type_compatibility[COMPOSITE-CRC64NVME]/create-mpu-checksum-exc",
        {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "COMPOSITE"},
    ),
    (
        "test_multipart_checksum_type_compatibility[FULL_OBJECT-SHA1]/create-mpu-checksum-exc",
        {"x-amz-checksum-algorithm": "SHA1", "x-amz-checksum-type": "FULL_OBJECT"},
    ),
):
    request(_name, "POST", "k", query={"uploads": ""}, headers=_headers)

_FAKE = {"uploadId": "fakeid"}
_ONE = complete_document([(1, "x")])
request("test_multipart_no_such_upload/upload-exc", "PUT", "k", query={**_FAKE, "partNumber": "1"}, body=b"x")
request("test_multipart_no_such_upload/complete-exc", "POST", "k", query=_FAKE, body=_ONE)
request("test_multipart_no_such_upload/abort-exc", "DELETE", "k", query=_FAKE)


def with_upload(
    name: str,
    method: str,
    *,
    key: str = "k",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    created: dict[str, str] | None = None,
    number: bool = False,
) -> None:
    """A row that is one request to an upload of `k`."""

    async def send(s3: Client) -> Answer:
        await s3("PUT", "bkt", "source", body=b"0123456789")
        upload, _ = await s3.upload("bkt", "k", [], created)
        query = {"uploadId": upload} | ({"partNumber": "1"} if number else {})
        return await s3(method, "bkt", key, query=query, headers=headers, body=body)

    row(name)(send)


with_upload("test_multipart_key_validation/upload-part-wrong-key-name", "PUT", key="other", number=True)
with_upload("test_multipart_key_validation/complete-multipart-wrong-key-name", "POST", key="other", body=_ONE)
with_upload("test_multipart_key_validation/list-parts-wrong-key-name", "GET", key="other")
with_upload("test_multipart_key_validation/abort-multipart-wrong-key-name", "DELETE", key="other")
with_upload(
    "test_multipart_parts_checksum_exceptions_composite/upload-part-different-checksum-exc",
    "PUT",
    headers={"x-amz-checksum-crc32": "NhCmhg=="},
    body=b"hello",
    created={"x-amz-checksum-algorithm": "SHA256"},
    number=True,
)
for _step, _value in (("no-b64", "TEST"), ("value", "AAAAAA==")):
    with_upload(
        f"test_multipart_upload_part_checksum_exception[CRC32]/put-wrong-checksum-{_step}",
        "PUT",
        headers={"x-amz-checksum-crc32": _value},
        body=b"hello",
        created={"x-amz-checksum-algorithm": "CRC32"},
        number=True,
    )
for _step, _wanted in (
    ("upload-part-copy-wrong-format", "0-8"),
    ("upload-part-copy-range-exc-1-0", "bytes=1-0"),
    ("upload-part-copy-range-exc-0-100", "bytes=0-100"),
    ("upload-part-copy-range-exc-100-200", "bytes=100-200"),
):
    with_upload(
        f"test_upload_part_copy_range/{_step}",
        "PUT",
        headers=copying("bkt/source", x_amz_copy_source_range=_wanted),
        number=True,
    )
with_upload(
    "test_upload_part_copy_with_copy_source_if_none_match_failed/upload-part-copy-source-if-none-match",
    "PUT",
    headers=copying("bkt/source", x_amz_copy_source_if_none_match=hashlib.md5(b"0123456789").hexdigest()),
    number=True,
)


@row("test_multipart_and_list_parts/list-part-after-complete-exc")
async def list_parts_after_complete(s3: Client) -> Answer:
    upload, parts = await s3.upload("bkt", "k", [b"x"])
    assert (await s3.complete("bkt", "k", upload, parts)).status == 200
    return await s3("GET", "bkt", "k", query={"uploadId": upload})


async def _sha256_upload(s3: Client, data: bytes) -> tuple[dict[str, str], str]:
    upload, _ = await s3.upload("bkt", "k", [], {"x-amz-checksum-algorithm": "SHA256"})
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    answer = await s3(
        "PUT",
        "bkt",
        "k",
        query={"uploadId": upload, "partNumber": "1"},
        headers={"x-amz-checksum-sha256": digest},
        body=data,
    )
    return {"uploadId": upload}, answer.headers["ETag"]


@row("test_multipart_parts_checksum_exceptions_composite/complete-part-with-bad-checksum-type")
async def complete_with_another_type(s3: Client) -> Answer:
    query, etag = await _sha256_upload(s3, b"x")
    digest = base64.b64encode(hashlib.sha256(b"x").digest()).decode()
    return await s3(
        "POST",
        "bkt",
        "k",
        query=query,
        headers={"x-amz-checksum-type": "FULL_OBJECT"},
        body=checksummed([(1, etag, digest)], "SHA256"),
    )


@row("test_complete_multipart_parts_checksum_composite[SHA256]/complete-multipart-no-checksum")
async def complete_without_part_checksums(s3: Client) -> Answer:
    query, etag = await _sha256_upload(s3, b"x")
    return await s3("POST", "bkt", "k", query=query, body=checksummed([(1, etag, "")], "SHA256"))


@row("test_complete_multipart_parts_checksum_composite[SHA256]/complete-multipart-wrong-parts-checksum")
async def complete_with_wrong_part_checksum(s3: Client) -> Answer:
    query, etag = await _sha256_upload(s3, b"x")
    wrong = base64.b64encode(bytes(32)).decode()
    return await s3("POST", "bkt", "k", query=query, body=checksummed([(1, etag, wrong)], "SHA256"))


def conditional(name: str, condition: Callable[[str], dict[str, str]], *steps: str) -> None:
    """Complete under a condition, with puts and deletes before and during the upload.

    Args:
        steps: "put", "delete" and "begin" (the upload) in their order.
    """

    async def send(s3: Client) -> Answer:
        key = "test-precondition"
        etag, upload, parts = "", "", []
        for step in steps:
            if step == "put":
                etag = (await s3("PUT", "bkt", key, body=b"same")).headers["ETag"]
            elif step == "delete":
                await s3("DELETE", "bkt", key)
            else:
                upload, parts = await s3.upload("bkt", key, [b"part"])
        return await s3.complete("bkt", key, upload, parts, condition(etag))

    row(name)(send)


conditional(
    "test_multipart_if_none_match_with_delete/complete-multipart-if-none-match",
    lambda _: {"If-None-Match": "*"},
    *("put", "begin"),
)
conditional(
    "test_multipart_if_none_match_with_delete/complete-multipart-after-del",
    lambda _: {"If-None-Match": "*"},
    *("put", "begin", "delete"),
)
conditional(
    "test_multipart_if_match_with_put/complete-multipart-if-match-put-before",
    lambda _: {"If-Match": "nope"},
    *("put", "begin"),
)
conditional(
    "test_multipart_if_match_with_put/complete-multipart-if-match-put-during",
    lambda etag: {"If-Match": etag},
    *("put", "begin", "put"),
)
conditional(
    "test_multipart_if_match_with_delete/complete-multipart-after-del",
    lambda etag: {"If-Match": etag},
    *("put", "begin", "delete"),
)
conditional(
    "test_multipart_if_match_with_delete/complete-multipart-if-match-after-put",
    lambda etag: {"If-Match": etag},
    *("put", "begin", "delete", "put"),
)

# --- Listings --------------------------------------------------------------------------------------

request(
    "test_list_objects_v2_continuation_start_after/exc-continuation-token",
    "GET",
    query={"list-type": "2", "continuation-token": "test"},
)
request(
    "test_list_objects_versions_markers/list-objects-next-version-only",
    "GET",
    query={"versions": "", "version-id-marker": "any"},
)
request(
    "test_list_multiparts_next_marker/list-multiparts-wrong-id-for-key",
    "GET",
    query={"uploads": "", "key-marker": "k", "upload-id-marker": "any"},
)
for _scenario, _step, _query in (
    ("list_objects_v2", "wrong", {"list-type": "2", "encoding-type": "value"}),
    ("list_objects_v2", "empty", {"list-type": "2", "encoding-type": ""}),
    ("list_object_versions", "wrong", {"versions": "", "encoding-type": "value"}),
    ("list_multipart_uploads", "empty", {"uploads": "", "encoding-type": ""}),
):
    request(
        f"test_list_ops_encoding_type_validation[{_scenario}]/{_scenario}-error-{_step}-value",
        "GET",
        query=_query,
    )


def test_every_recording_has_a_reproduction_and_the_other_way_round() -> None:
    assert set(FOUND) == set(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
async def test_the_recorded_answer(s3: Client, name: str) -> None:
    status, code, message, fields = ROWS[name]
    answer = await FOUND[name](s3)
    assert answer.code == code
    assert str(answer.status) == status or not status
    assert answer.text("Message") == message
    expected = json.loads(fields) if fields else {}
    assert set(answer.fields) == set(expected)
    for field, value in expected.items():
        if value is None:
            assert answer.fields[field] == ""
        elif not re.fullmatch(r"<.*>", value):
            assert answer.fields[field] == value, field
