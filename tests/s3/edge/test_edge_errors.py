"""Every way to fail has one S3 answer, and the answer is well-formed XML with AWS's words."""

import inspect
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from objstore import errors
from objstore.s3.errors import (
    ROWS,
    S3Fault,
    bad_checksum,
    escape,
    fault_of,
    malformed_xml,
    method_not_allowed,
    not_implemented,
    render,
)


def leaves(kind: type[errors.StoreError]) -> set[type[errors.StoreError]]:
    """Classes without children; one with a row answers for its children, too."""
    children = kind.__subclasses__()
    ours = {child for child in children if child.__module__ == "objstore.errors"}
    return {kind} if not ours or kind in ROWS else set().union(*map(leaves, ours))


def sample(kind: type[errors.StoreError]) -> errors.StoreError:
    """Any instance of a leaf: arguments by their annotations."""
    values: dict[Any, Any] = {str: "<&\x01>", int: 7, bytes: b"k"}
    if kind.__init__ is Exception.__init__ or "__init__" not in kind.__dict__:
        return kind("in words")
    arguments = {
        name: values[parameter.annotation] for name, parameter in inspect.signature(kind).parameters.items()
    }
    return kind(**arguments)


def test_every_way_to_fail_has_exactly_one_s3_answer() -> None:
    assert leaves(errors.StoreError) == ROWS.keys()


@pytest.mark.parametrize("kind", sorted(ROWS, key=lambda kind: kind.__name__))
def test_every_row_renders_well_formed_xml_that_echoes_nothing_raw(kind: type[errors.StoreError]) -> None:
    fault = fault_of(sample(kind))
    assert 300 <= fault.status <= 503
    body = render(fault, resource="/b/<k>\r\x00", request_id="R", host_id="H")
    root = ET.fromstring(body)
    assert root.tag == "Error"
    assert root.findtext("Code") == fault.code
    assert root.findtext("RequestId") == "R"
    assert root.findtext("HostId") == "H"
    assert root.findtext("Resource") == "/b/<k>\r\ufffd"
    for value in fault.headers.values():
        assert "\r" not in value
        assert "\n" not in value


def test_errors_that_can_be_retried_say_when() -> None:
    assert fault_of(errors.Overloaded("queue")).code == "SlowDown"
    assert fault_of(errors.Overloaded("queue")).headers["Retry-After"] == "1"
    assert fault_of(errors.MetaUnavailable("away")).headers["Retry-After"] == "1"


def test_a_class_without_a_row_takes_its_ancestors_answer() -> None:
    class Odd(errors.Rejected): ...

    assert fault_of(Odd("because")).status == 400
    assert fault_of(errors.Unavailable("x")).status == 503
    assert fault_of(errors.StoreError("x")).status == 500


def test_an_s3_fault_is_its_own_answer() -> None:
    fault = S3Fault("Odd", 400, "m")
    assert fault_of(fault) is fault


def test_corruption_does_not_tell_the_client_what_was_corrupt() -> None:
    assert "volume" not in fault_of(errors.Corrupt("volume 7 block 9")).message


@pytest.mark.parametrize("text", ["plain", "a&b", "]]>", "\r\n", "\x00\x1f", "é\U0001f600", "\ufffe", "\x7f"])
def test_escaped_text_survives_an_xml_parser(text: str) -> None:
    back = ET.fromstring(f"<a>{escape(text)}</a>").text
    wanted = "".join("\ufffd" if c in "\x00\x1f\ufffe" else c for c in text)
    assert back == wanted


# Recorded from AWS (LocalStack's validated snapshots, Apache-2.0): status, code, message, further fields.
RECORDED: list[tuple[S3Fault | errors.StoreError, int, str, str, set[str]]] = [
    (errors.NoSuchBucket("b"), 404, "NoSuchBucket", "The specified bucket does not exist", {"BucketName"}),
    (errors.NoSuchKey("k"), 404, "NoSuchKey", "The specified key does not exist.", {"Key"}),
    (
        errors.NoSuchUpload("u"),
        404,
        "NoSuchUpload",
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been "
        "aborted or completed.",
        {"UploadId"},
    ),
    (
        errors.BucketOwnedByCaller("b"),
        409,
        "BucketAlreadyOwnedByYou",
        "Your previous request to create the named bucket succeeded and you already own it.",
        {"BucketName"},
    ),
    (
        errors.ConditionFailed("If-Match"),
        412,
        "PreconditionFailed",
        "At least one of the pre-conditions you specified did not hold",
        {"Condition"},
    ),
    (
        errors.BadRange(wanted="bytes=100-200", size=10),
        416,
        "InvalidRange",
        "The requested range is not satisfiable",
        {"ActualObjectSize", "RangeRequested"},
    ),
    (
        errors.BadPart(upload="u", number=3, etag="e"),
        400,
        "InvalidPart",
        "One or more of the specified parts could not be found.  The part may not have been uploaded, or the "
        "specified entity tag may not match the part's entity tag.",
        {"ETag", "PartNumber", "UploadId"},
    ),
    (
        errors.CopyToSelf(),
        400,
        "InvalidRequest",
        "This copy request is illegal because it is trying to copy an object to itself without changing the "
        "object's metadata, storage class, website redirect location or encryption attributes.",
        set(),
    ),
    (
        errors.PartTooSmall(number=1, etag="e", size=1, minimum=5),
        400,
        "EntityTooSmall",
        "Your proposed upload is smaller than the minimum allowed size",
        {"MinSizeAllowed", "ProposedSize", "PartNumber", "ETag"},
    ),
    (
        errors.TooLarge(size=12, maximum=10),
        400,
        "EntityTooLarge",
        "Your proposed upload exceeds the maximum allowed size",
        {"MaxSizeAllowed", "ProposedSize"},
    ),
    (
        malformed_xml(),
        400,
        "MalformedXML",
        "The XML you provided was not well-formed or did not validate against our published schema",
        set(),
    ),
    (
        method_not_allowed("PUT", "DeleteMarker"),
        405,
        "MethodNotAllowed",
        "The specified method is not allowed against this resource.",
        {"Method", "ResourceType"},
    ),
    (
        not_implemented(header="If-Match", note="We don't accept the provided value"),
        501,
        "NotImplemented",
        "A header you provided implies functionality that is not implemented",
        {"Header", "additionalMessage"},
    ),
    (
        bad_checksum("CRC32"),
        400,
        "BadDigest",
        "The CRC32 you specified did not match the calculated checksum.",
        set(),
    ),
    (
        errors.BadArgument(
            "The continuation token provided is incorrect", name="continuation-token", value=""
        ),
        400,
        "InvalidArgument",
        "The continuation token provided is incorrect",
        {"ArgumentName", "ArgumentValue"},
    ),
]


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row[2])
def test_answers_are_those_that_aws_was_recorded_to_give(
    row: tuple[S3Fault | errors.StoreError, int, str, str, set[str]],
) -> None:
    error, status, code, message, fields = row
    fault = fault_of(error)
    assert (fault.status, fault.code, fault.message, set(fault.fields)) == (status, code, message, fields)
