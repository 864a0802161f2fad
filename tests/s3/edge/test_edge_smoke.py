"""Signed requests get through the edge, others do not."""

from edge_running import Edge
from edge_signing import KEY_ID, presign, sign


async def test_a_signed_get_reaches_its_handler(edge: Edge) -> None:
    answer = await edge.send(sign("GET", "/bucket/key").wire())
    assert (answer.status, answer.body) == (200, b"hello")
    assert len(answer.headers["x-amz-request-id"]) == 16
    assert answer.headers["server"] == "objstore"
    assert "x-amz-id-2" in answer.headers
    assert "date" in answer.headers
    assert (edge.seen[0].bucket, edge.seen[0].key, edge.seen[0].user) == ("bucket", "key", "u1")


async def test_a_signed_put_hands_its_body_to_the_handler(edge: Edge) -> None:
    answer = await edge.send(sign("PUT", "/bucket/key", body=b"x" * 5000).wire())
    assert answer.status == 200
    assert edge.seen[0].body == b"x" * 5000


async def test_a_presigned_get_reaches_its_handler(edge: Edge) -> None:
    answer = await edge.send(presign("GET", "/bucket/key").wire())
    assert answer.status == 200


async def test_an_anonymous_request_is_refused(edge: Edge) -> None:
    answer = await edge.send(b"GET /bucket/key HTTP/1.1\r\nHost: s3.test\r\n\r\n")
    assert (answer.status, answer.code) == (403, "AccessDenied")
    assert answer.headers["content-type"] == "application/xml"
    assert f"<RequestId>{answer.headers['x-amz-request-id']}</RequestId>".encode() in answer.body
    assert edge.seen == []


async def test_a_wrong_secret_is_refused(edge: Edge) -> None:
    answer = await edge.send(sign("GET", "/bucket/key", secret="wrong").wire())
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
    assert KEY_ID.encode() in answer.body
    assert edge.seen == []
