"""s3/headers.py: what clients write, and what we make of it."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from objstore.errors import MetadataTooLarge
from objstore.objects.values import ByteRange
from objstore.s3 import headers as h
from objstore.s3.errors import S3Fault


def given(**named: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in named.items()}))


def fault(call: object, *args: object, **named: object) -> S3Fault:
    with pytest.raises(S3Fault) as raised:
        call(*args, **named)  # type: ignore[operator]
    return raised.value


# --- Dates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Tue, 14 Nov 2023 22:13:20 GMT",
        "Tuesday, 14-Nov-23 22:13:20 GMT",
        "Tue Nov 14 22:13:20 2023",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.000Z",
    ],
)
def test_all_forms_of_a_date_are_read(text: str) -> None:
    assert h.parse_date(text) == 1_700_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "Tue, 14 Nov 2023 22:13:20",
        "Tue, 14 Nov 2023 22:13:20 CET",
        "Tue, 1 Nov 2023 22:13:20 GMT",
        " Tue, 14 Nov 2023 22:13:20 GMT",
        "Tue, 14 Nov 2023 25:13:20 GMT",
        "Tue, 44 Nov 2023 22:13:20 GMT",
        "Tue, 14 Foo 2023 22:13:20 GMT",
        "Tue, ١٤ Nov 2023 22:13:20 GMT",
        "2023-13-14T22:13:20Z",
        "2023-11-14 22:13:20",
        "1700000000",
    ],
)
def test_what_is_no_date_is_ignored(text: str) -> None:
    assert h.parse_date(text) is None


def test_a_date_is_written_as_http_has_it() -> None:
    assert h.http_date(1_700_000_000) == "Tue, 14 Nov 2023 22:13:20 GMT"


# --- Numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "1_0", "+5", "٣", "0x1f", " 1", "1.0", "blah", "99999999999", "\n1"])
def test_what_is_no_integer_is_an_invalid_argument(text: str) -> None:
    found = fault(h.query_number, {"max-keys": text}, "max-keys", default=1000, most=1000)
    assert (found.code, found.fields) == (
        "InvalidArgument",
        {"ArgumentName": "max-keys", "ArgumentValue": text},
    )


def test_numbers_are_clamped_and_negative_ones_refused() -> None:
    assert h.query_number({}, "max-keys", default=1000, most=1000) == 1000
    assert h.query_number({"max-keys": "5000"}, "max-keys", default=1000, most=1000) == 1000
    assert h.query_number({"max-keys": "0"}, "max-keys", default=1000, most=1000) == 0
    assert fault(h.query_number, {"max-keys": "-1"}, "max-keys", default=1, most=1).code == "InvalidArgument"


@pytest.mark.parametrize("text", ["0", "10001", "-1", "x", "1_0", ""])
def test_case_5_part_numbers_are_1_to_10000(text: str) -> None:
    assert h.part_number({"partNumber": "10000"}) == 10000
    found = fault(h.part_number, {"partNumber": text})
    assert found.code == "InvalidArgument"
    assert found.fields["ArgumentName"] == "partNumber"


# --- Ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("bytes=0-100", 0, 100), ("bytes=5-", 5, None), ("bytes=-15", None, 15), ("bytes=-0", None, 0)],
)
def test_case_7_ranges_are_read(text: str, first: int | None, last: int | None) -> None:
    assert h.byte_range(given(range=text)) == ByteRange(first=first, last=last, text=text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"etag"', '"etag"'),
        ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000),
        ("yesterday", "yesterday"),
        ("", ""),
    ],
)
def test_a_range_says_of_which_object_it_is_to_be(text: str, expected: str | int) -> None:
    wanted = h.byte_range(given(range="bytes=5-", if_range=text))
    assert wanted is not None
    assert (wanted.first, wanted.if_range) == (5, expected)
    assert h.byte_range(given(if_range=text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "bytes=1-0",
        "bytes=-1-",
        "bytes=0-1,3-4",
        "bytes=-",
        "bytes=",
        "0-1",
        "bytes=a-b",
        "bytes=٠-١",
        "items=0-1",
    ],
)
def test_case_7_ranges_that_make_no_sense_are_ignored(text: str) -> None:
    assert h.byte_range(given(range=text)) is None


@pytest.mark.parametrize(
    "text", ["bytes=1-0", "0-8", "bytes=-1-", "bytes=0--1", "bytes=0-1,3-4", "bytes=1-", "bytes=-2"]
)
def test_case_8_copy_ranges_are_strict(text: str) -> None:
    assert h.copy_source_range(given(x_amz_copy_source_range="bytes=0-8")) == (0, 8)
    found = fault(h.copy_source_range, given(x_amz_copy_source_range=text))
    assert (found.code, found.fields) == (
        "InvalidArgument",
        {"ArgumentName": "x-amz-copy-source-range", "ArgumentValue": text},
    )


# --- Copy sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b/k", ("b", "k", None)),
        ("/b/k", ("b", "k", None)),
        ("b/a/b//c", ("b", "a/b//c", None)),
        ("b/a+b", ("b", "a+b", None)),
        ("b/a%2Bb%20c", ("b", "a+b c", None)),
        ("b/a%252Fb", ("b", "a%2Fb", None)),
        ("b%2Fk", ("b", "k", None)),
        ("b/k?versionId=null", ("b", "k", "null")),
        ("b/%C3%A9", ("b", "é", None)),
        ("b/k%3Fx", ("b", "k?x", None)),
        ("b/k%3FversionId%3Dnull", ("b", "k?versionId=null", None)),
        ("b/k%3FversionId=null", ("b", "k?versionId=null", None)),
        ("b/k%3FversionId%3Dx?versionId=n%75ll", ("b", "k?versionId=x", "null")),
    ],
)
def test_case_16_copy_sources_are_decoded_once(text: str, expected: tuple[str, str, str | None]) -> None:
    assert h.copy_source(given(x_amz_copy_source=text)) == expected


@pytest.mark.parametrize("text", ["", "/", "b", "b/", "/b", "b/%zz", "b/%ff", "b/k?versionId="])
def test_case_16_a_bad_copy_source_is_an_invalid_argument(text: str) -> None:
    assert fault(h.copy_source, given(x_amz_copy_source=text)).code == "InvalidArgument"


def test_two_copy_sources_are_none() -> None:
    headers = CIMultiDict([("x-amz-copy-source", "/b/mine"), ("X-Amz-Copy-Source", "/b/other")])
    assert fault(h.copy_source, CIMultiDictProxy(headers)).code == "InvalidArgument"


# --- What a client says of an object ----------------------------------------------------------------


def test_case_31_aws_chunked_is_framing_and_not_an_encoding() -> None:
    assert h.content_encoding("aws-chunked") == ""
    assert h.content_encoding("gzip, aws-chunked") == "gzip"
    assert h.content_encoding("aws-chunked,gzip , br,aws-chunked") == "gzip, br"
    assert h.about(given(content_encoding="aws-chunked")).headers == {}


def test_headers_become_what_is_stored() -> None:
    about = h.about(
        given(
            host="x",
            content_type="text/plain",
            cache_control="no-cache",
            expires="never",
            X_Amz_Meta_Colour="blue",
            x_amz_storage_class="STANDARD",
            x_amz_acl="bucket-owner-full-control",
            x_amz_tagging="",
        )
    )
    assert about.content_type == "text/plain"
    assert about.headers == {"cache-control": "no-cache", "expires": "never"}
    assert about.metadata == {"colour": "blue"}


def test_metadata_sent_twice_is_joined() -> None:
    headers = CIMultiDict([("x-amz-meta-a", "1"), ("X-Amz-Meta-A", "2")])
    assert h.about(CIMultiDictProxy(headers)).metadata == {"a": "1,2"}


def test_case_40_metadata_has_2_kb() -> None:
    h.about(given(x_amz_meta_a="x" * 2047))
    with pytest.raises(MetadataTooLarge) as raised:
        h.about(given(x_amz_meta_a="x" * 2048))
    assert (raised.value.size, raised.value.maximum) == (2049, 2048)
    with pytest.raises(MetadataTooLarge):
        h.about(given(x_amz_meta_a="é" * 1024))


def test_case_40_non_ascii_metadata_reads_back_as_rfc_2047() -> None:
    latin = "caf\udce9"  # The byte E9, as aiohttp hands it over.
    assert h.readable(latin) == "café"
    assert h.readable("café") == "café"
    assert h.rfc2047("café au_lait=1") == "=?UTF-8?Q?caf=C3=A9_au=5Flait=3D1?="
    assert h.rfc2047("plain") == "plain"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("x-amz-tagging", "a=b", "NotImplemented"),
        ("x-amz-object-lock-mode", "COMPLIANCE", "NotImplemented"),
        ("x-amz-object-lock-legal-hold", "ON", "NotImplemented"),
        ("x-amz-server-side-encryption", "AES256", "NotImplemented"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256", "NotImplemented"),
        ("x-amz-grant-read", "id=1", "NotImplemented"),
        ("x-amz-acl", "public-read", "NotImplemented"),
        ("x-amz-acl", "fake-acl", "InvalidArgument"),
        ("x-amz-write-offset-bytes", "0", "NotImplemented"),
        ("x-amz-website-redirect-location", "elsewhere", "InvalidRedirectLocation"),
    ],
)
def test_a_header_that_asks_for_what_does_not_exist_is_refused(name: str, value: str, code: str) -> None:
    assert fault(h.about, CIMultiDictProxy(CIMultiDict({name: value}))).code == code


def test_a_storage_class_is_kept_and_standard_is_not() -> None:
    assert h.about(given(x_amz_storage_class="COLD")).headers == {"x-amz-storage-class": "COLD"}
    assert h.about(given(x_amz_storage_class="STANDARD")).headers == {}


def test_case_40_a_canned_acl_and_grants_exclude_each_other() -> None:
    found = fault(h.about, given(x_amz_acl="private", x_amz_grant_read="id=1"))
    assert found.code == "InvalidRequest"
    assert found.message == "Specifying both Canned ACLs and Header Grants is not allowed"


# --- Checksums -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "kind", "expected"),
    [
        (None, None, ("", "")),
        ("CRC32", None, ("CRC32", "COMPOSITE")),
        ("crc32c", "full_object", ("CRC32C", "FULL_OBJECT")),
        ("SHA256", None, ("SHA256", "COMPOSITE")),
        ("CRC64NVME", None, ("CRC64NVME", "FULL_OBJECT")),
    ],
)
def test_case_34_the_type_of_an_upload_follows_its_algorithm(
    algorithm: str | None, kind: str | None, expected: tuple[str, str]
) -> None:
    headers = CIMultiDict[str]()
    if algorithm:
        headers["x-amz-checksum-algorithm"] = algorithm
    if kind:
        headers["x-amz-checksum-type"] = kind
    assert h.upload_checksum(CIMultiDictProxy(headers)) == expected


@pytest.mark.parametrize(
    ("algorithm", "kind", "message"),
    [
        (
            "CRC64NVME",
            "COMPOSITE",
            "The COMPOSITE checksum type cannot be used with the crc64nvme checksum algorithm.",
        ),
        (
            "SHA1",
            "FULL_OBJECT",
            "The FULL_OBJECT checksum type cannot be used with the sha1 checksum algorithm.",
        ),
        (
            "",
            "COMPOSITE",
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
        ),
        (
            "MD5",
            "",
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
            "[CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
        ),
    ],
)
def test_case_34_other_combinations_are_refused_in_aws_words(algorithm: str, kind: str, message: str) -> None:
    headers = CIMultiDict[str]()
    if algorithm:
        headers["x-amz-checksum-algorithm"] = algorithm
    if kind:
        headers["x-amz-checksum-type"] = kind
    found = fault(h.upload_checksum, CIMultiDictProxy(headers))
    assert (found.code, found.message) == ("InvalidRequest", message)


def test_a_digest_must_be_base64_of_the_right_size() -> None:
    assert h.checksum_digest("CRC32", "NhCmhg==") == bytes.fromhex("3610a686")
    for text in ("NhCmhg", "NhCmhg==\n", "", "M3eFcAZSQlc=", "é"):
        assert h.checksum_digest("CRC32", text) is None


# --- Response headers ------------------------------------------------------------------------------


def test_response_overrides_cannot_smuggle_headers() -> None:
    headers = CIMultiDict[str]()
    h.override(headers, {"response-content-type": "text/html", "other": "x", "response-expires": ""})
    assert headers == {"Content-Type": "text/html", "Expires": ""}
    for value in ("a\r\nSet-Cookie: x", "a\nb", "\x00"):
        assert fault(h.override, headers, {"response-content-type": value}).code == "InvalidArgument"
    found = fault(h.override, headers, {"response-cache-control": "—"})
    assert found.message == "Header value cannot be represented using ISO-8859-1."


# --- Conditions ------------------------------------------------------------------------------------


def test_a_write_takes_one_condition_only() -> None:
    assert h.write_conditions(given(if_none_match="*")).if_none_match == "*"
    found = fault(h.write_conditions, given(if_none_match="*", if_match='"x"'))
    assert (found.status, found.fields["Header"]) == (501, "If-Match,If-None-Match")


def test_a_delete_condition_that_cannot_be_checked_is_refused() -> None:
    assert h.delete_conditions(given(x_amz_if_match_size="7")).if_match_size == 7
    assert fault(h.delete_conditions, given(x_amz_if_match_size="+7")).code == "InvalidArgument"
    assert (
        fault(h.delete_conditions, given(x_amz_if_match_last_modified_time="soon")).code == "InvalidArgument"
    )
