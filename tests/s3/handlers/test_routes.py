"""s3/routes.py: every row has a rule, and no sub-resource falls back to the plain operation."""

import pytest

from objstore.s3.errors import S3Fault
from objstore.s3.routes import ROUTES, choose


def operation(method: str, path: str, query: dict[str, str] | None = None, **headers: str) -> str:
    bucket, _, key = path.partition("/")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return choose(method, bucket, key, query or {}, named).operation


def test_every_row_says_who_may_and_is_found_again() -> None:
    for route in ROUTES:
        assert route.rule in ("tenant", "any-user")
        path = {"service": "", "bucket": "b", "object": "b/k"}[route.target]
        headers = {route.header: "x"} if route.header else {}
        found = choose(route.method, path[:1], path[2:], {route.flag: ""} if route.flag else {}, headers)
        assert found is route


def test_operations_are_named_once_a_target() -> None:
    names = [(route.operation, route.target) for route in ROUTES]
    assert len(set(names)) >= len(names) - 1  # AppendObject comes by PUT and by POST.


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "", {}, "ListBuckets"),
        ("GET", "", {"max-buckets": "1"}, "ListBuckets"),
        ("GET", "b", {"prefix": "", "delimiter": "/"}, "ListObjects"),
        ("GET", "b", {"list-type": "2", "prefix": ""}, "ListObjectsV2"),
        ("GET", "b", {"versions": ""}, "ListObjectVersions"),
        ("GET", "b", {"uploads": "", "prefix": "x"}, "ListMultipartUploads"),
        ("POST", "b", {"delete": ""}, "DeleteObjects"),
        ("PUT", "b/k", {"x-id": "PutObject"}, "PutObject"),
        ("PUT", "b/k", {"partNumber": "1", "uploadId": "u"}, "UploadPart"),
        ("GET", "b/k", {"uploadId": "u"}, "ListParts"),
        ("POST", "b/k", {"uploads": ""}, "CreateMultipartUpload"),
        ("POST", "b/k", {"uploadId": "u"}, "CompleteMultipartUpload"),
        ("DELETE", "b/k", {"uploadId": "u"}, "AbortMultipartUpload"),
        ("DELETE", "b/k", {"versionId": "null"}, "DeleteObject"),
        ("GET", "b/k", {"versionId": "null", "tagging": ""}, "GetObjectTagging"),
        ("GET", "b/k", {"response-content-type": "", "X-Amz-Signature": "x"}, "GetObject"),
        ("GET", "b/k", {"unknown": "with a value"}, "GetObject"),
    ],
)
def test_requests_find_their_operation(method: str, path: str, query: dict[str, str], expected: str) -> None:
    assert operation(method, path, query) == expected


def test_a_copy_source_makes_a_put_a_copy() -> None:
    assert operation("PUT", "b/k", x_amz_copy_source="b/j") == "CopyObject"
    query = {"uploadId": "u", "partNumber": "1"}
    assert operation("PUT", "b/k", query, x_amz_copy_source="b/j") == "UploadPartCopy"


def test_case_39_an_unknown_sub_resource_is_not_implemented() -> None:
    for method, path in (("GET", "b"), ("PUT", "b"), ("PUT", "b/k"), ("DELETE", "b/k"), ("POST", "b")):
        with pytest.raises(S3Fault) as raised:
            operation(method, path, {"frobnicate": ""})
        assert (raised.value.code, raised.value.status) == ("NotImplemented", 501)


def test_a_sub_resource_with_the_wrong_method_never_becomes_the_plain_operation() -> None:
    for method, path, flag in (
        ("PUT", "b/k", "lifecycle"),
        ("PUT", "b/k", "uploads"),
        ("DELETE", "b", "versions"),
        ("DELETE", "b/k", "retention"),
        ("PUT", "b", "uploads"),
        ("DELETE", "b/k", "uploads"),
    ):
        with pytest.raises(S3Fault) as raised:
            operation(method, path, {flag: ""})
        assert (raised.value.code, raised.value.status) == ("MethodNotAllowed", 405)


def test_two_sub_resources_at_once_are_refused() -> None:
    with pytest.raises(S3Fault) as raised:
        operation("GET", "b", {"acl": "", "policy": ""})
    assert raised.value.message == "Conflicting query string parameters: acl, policy"


def test_methods_that_s3_does_not_know() -> None:
    with pytest.raises(S3Fault) as raised:
        operation("PATCH", "b/k")
    assert raised.value.status == 501
    with pytest.raises(S3Fault) as raised:
        operation("DELETE", "")
    assert raised.value.status == 405
