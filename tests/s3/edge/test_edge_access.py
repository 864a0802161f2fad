"""Policies at the edge, generated from the route table: what each route needs, no more and no less.

A route that is added to s3/routes.py is in here at once.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from aiohttp import web
from edge_running import Answer, Edge, Start
from edge_signing import KEY_ID, NOW, SECRET, FakeCredential, FakeDirectory, presign, sign
from test_edge_auth_matrix import name_of, request_for

from objstore.clock import utc_text
from objstore.errors import NoSuchKey
from objstore.iam.conditions import KEYS, parse_network
from objstore.iam.policy import compile_policy
from objstore.iam.principal import Bounds, Principal
from objstore.s3.access import TELLERS
from objstore.s3.actions import ACTIONS
from objstore.s3.app import App
from objstore.s3.call import Call, Route
from objstore.s3.routes import ROUTES, choose

SERVED = [route for route in ROUTES if route.handler is not None]
SOURCE_ACTION = "s3:GetObject"  # Of a copy's source.
RESOURCES = {"service": "*", "bucket": "bucket", "object": "bucket/key"}


def allow(action: Any, resource: str = "*", condition: Mapping[str, Any] | None = None) -> dict[str, Any]:
    arn = resource if resource == "*" else f"arn:aws:s3:::{resource}"
    found = {"Effect": "Allow", "Action": action, "Resource": arn}
    return {**found, "Condition": condition} if condition else found


def deny(action: Any, resource: str = "*", condition: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {**allow(action, resource, condition), "Effect": "Deny"}


class Keys(FakeDirectory):
    """One key, whose bounds a test sets."""

    def bind(self, *statements: dict[str, Any], **bounds: Any) -> None:
        policies: tuple[Any, ...] = ()
        if statements:
            policies = (compile_policy(json.dumps({"Version": "2012-10-17", "Statement": statements})),)
        principal = Principal(
            tenant="t1", user="u1", access_key_id=KEY_ID, bounds=Bounds(policies=policies, **bounds)
        )
        self.keys[KEY_ID] = FakeCredential(SECRET, principal)


@dataclasses.dataclass
class Bound:
    """A running edge whose one key has bounds."""

    edge: Edge
    keys: Keys
    reached: list[str]

    async def ask(self, route: Route, carrier: str = "header") -> Answer:
        return await self.edge.send(request_for(route, carrier, "UNSIGNED-PAYLOAD").wire())

    async def send(self, method: str, path: str, query: str = "", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.edge.send(sign(method, path, query=query, headers=named).wire())


@pytest.fixture
async def bound(start_edge: Start) -> Bound:
    reached: list[str] = []

    async def reach(call: Call) -> web.StreamResponse:
        reached.append(call.operation)
        if call.key == "missing":
            raise NoSuchKey(call.key)
        if call.operation == "DeleteObjects":
            assert call.access is not None
            may = [call.access.may_delete("key", None), call.access.may_delete("other", None)]
            return web.Response(body=repr(may).encode())
        return web.Response()

    def choose_real(method: str, bucket: str, key: str, query: Any, headers: Any) -> Route:
        return dataclasses.replace(choose(method, bucket, key, query, headers), handler=reach)

    keys = Keys()
    edge = await start_edge(choose=choose_real, routes=ROUTES, directory=keys)
    return Bound(edge, keys, reached)


def needs(route: Route) -> list[dict[str, Any]]:
    """A statement for each thing that a route needs."""
    found = [allow(action, RESOURCES[route.target]) for action in route.actions]
    return [*found, allow(SOURCE_ACTION, "bucket/source")] if route.header else found


@pytest.mark.parametrize("route", [one for one in SERVED if not one.each_key], ids=name_of)
async def test_a_route_is_reached_with_all_that_it_needs_and_with_nothing_less(
    bound: Bound, route: Route
) -> None:
    wanted = needs(route)
    for carrier in ("header", "query"):
        bound.keys.bind(*wanted)
        assert (await bound.ask(route, carrier)).status == 200
        for left_out in range(len(wanted)):
            rest = [*wanted[:left_out], *wanted[left_out + 1 :], allow("usage:Read")]
            bound.keys.bind(*rest)
            refused = await bound.ask(route, carrier)
            assert (refused.status, refused.code) == (403, "AccessDenied" if route.method != "HEAD" else "")
        for one in wanted:
            bound.keys.bind(allow("*"), {**one, "Effect": "Deny"})
            assert (await bound.ask(route, carrier)).status == 403
    assert bound.reached == [route.operation] * 2


async def test_keys_to_delete_are_judged_one_by_one(bound: Bound) -> None:
    route = next(one for one in SERVED if one.each_key)
    assert route.operation == "DeleteObjects"
    bound.keys.bind(allow("s3:DeleteObject", "bucket/key"))
    assert (await bound.ask(route)).body == b"[True, False]"
    bound.keys.bind(allow("*"), deny("s3:DeleteObject", "bucket/key"))
    assert (await bound.ask(route)).body == b"[False, True]"


async def test_a_refusal_says_who_may_not_do_what_to_what_and_why(bound: Bound) -> None:
    bound.keys.bind(allow("s3:PutObject"), deny("s3:GetObject", "bucket/secret"))
    refused = await bound.send("GET", "/bucket/key")
    assert (
        b"User: arn:aws:iam::t1:user/u1 is not authorized to perform: s3:GetObject on resource: "
        b"&quot;arn:aws:s3:::bucket/key&quot; because no identity-based policy allows the s3:GetObject action"
    ) in refused.body
    assert b"explicit deny" in (await bound.send("GET", "/bucket/secret")).body


async def test_a_version_needs_the_action_of_versions(bound: Bound) -> None:
    bound.keys.bind(allow("s3:GetObject"), allow("s3:DeleteObjectVersion"))
    assert (await bound.send("GET", "/bucket/key")).status == 200
    assert (await bound.send("GET", "/bucket/key", "versionId=null")).status == 403
    assert (await bound.send("DELETE", "/bucket/key")).status == 403
    assert (await bound.send("DELETE", "/bucket/key", "versionId=null")).status == 200
    bound.keys.bind(allow(["s3:PutObject", "s3:GetObject"]))
    source = {"x_amz_copy_source": "/other/key?versionId=null"}
    assert (await bound.send("PUT", "/bucket/key", **source)).status == 403
    bound.keys.bind(allow(["s3:PutObject", "s3:GetObjectVersion"]))
    assert (await bound.send("PUT", "/bucket/key", **source)).status == 200


async def test_an_acl_with_an_object_or_a_bucket_needs_its_own_action(bound: Bound) -> None:
    bound.keys.bind(allow(["s3:PutObject", "s3:CreateBucket"]))
    for path in ("/bucket/key", "/bucket"):
        assert (await bound.send("PUT", path)).status == 200
        assert (await bound.send("PUT", path, x_amz_acl="private")).status == 403
    bound.keys.bind(allow(["s3:PutObject", "s3:CreateBucket", "s3:PutObjectAcl", "s3:PutBucketAcl"]))
    for path in ("/bucket/key", "/bucket"):
        assert (await bound.send("PUT", path, x_amz_acl="private")).status == 200


async def test_the_source_of_a_copy_is_judged_however_it_is_written(bound: Bound) -> None:
    bound.keys.bind(allow("*"), deny("s3:GetObject", "secret/*"))
    for source in ("secret/key", "/secret/key", "%2Fsecret%2Fkey", "/%73ecret/key", "secret%2Fkey"):
        assert (await bound.send("PUT", "/bucket/key", x_amz_copy_source=source)).status == 403, source
    bound.keys.bind(
        allow("*"), deny("s3:PutObject", "*", {"StringLike": {"s3:x-amz-copy-source": "secret/*"}})
    )
    for source in ("secret/key", "/secret/key", "%2Fsecret%2Fkey"):
        assert (await bound.send("PUT", "/bucket/key", x_amz_copy_source=source)).status == 403, source
    assert (await bound.send("PUT", "/bucket/key", x_amz_copy_source="open/key")).status == 200
    assert bound.reached == ["CopyObject"]


async def test_only_who_may_list_a_key_is_told_that_it_is_not_there(bound: Bound) -> None:
    bound.keys.bind(allow("s3:GetObject"))
    assert (await bound.send("GET", "/bucket/missing")).code == "AccessDenied"
    assert (await bound.send("HEAD", "/bucket/missing")).status == 403
    bound.keys.bind(allow("s3:GetObject"), allow("s3:ListBucket", "bucket"))
    assert (await bound.send("GET", "/bucket/missing")).code == "NoSuchKey"
    for prefix, status in (("mis*", 404), ("other*", 403)):
        listing = allow("s3:ListBucket", "bucket", {"StringLike": {"s3:prefix": prefix}})
        bound.keys.bind(allow("s3:GetObject"), listing)
        assert (await bound.send("HEAD", "/bucket/missing")).status == status


@pytest.mark.parametrize(
    ("condition", "query", "headers", "holds"),
    [
        ({"StringEquals": {"s3:prefix": "a/"}}, "prefix=a%2F", {}, True),
        ({"StringEquals": {"s3:prefix": "a/"}}, "prefix=b%2F&prefix=a%2F", {}, False),
        ({"StringEquals": {"s3:prefix": "a/"}}, "", {}, False),
        ({"StringEquals": {"s3:delimiter": "/"}}, "delimiter=%2F", {}, True),
        ({"NumericLessThanEquals": {"s3:max-keys": "10"}}, "max-keys=10", {}, True),
        ({"NumericLessThanEquals": {"s3:max-keys": "10"}}, "max-keys=11", {}, False),
        ({"NumericLessThanEquals": {"s3:max-keys": "10"}}, "max-keys=lots", {}, False),
        ({"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, "", {}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, "", {"x-forwarded-for": "10.0.0.1"}, False),
        ({"Bool": {"aws:SecureTransport": "false"}}, "", {"x-forwarded-proto": "https"}, True),
        ({"DateLessThan": {"aws:CurrentTime": utc_text(NOW + 1)}}, "", {}, True),
        ({"DateLessThan": {"aws:CurrentTime": utc_text(NOW)}}, "", {}, False),
        ({"NumericEquals": {"aws:EpochTime": str(int(NOW))}}, "", {}, True),
        ({"StringEquals": {"aws:username": "u1", "aws:PrincipalAccount": "t1"}}, "", {}, True),
        ({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/u?"}}, "", {}, True),
        ({"StringEquals": {"aws:PrincipalType": "User", "s3:ResourceAccount": "t1"}}, "", {}, True),
        ({"StringLike": {"aws:UserAgent": "backup/*"}}, "", {"user-agent": "backup/1"}, True),
        ({"StringEquals": {"aws:Referer": "x"}}, "", {"referer": "x"}, True),
        ({"StringEquals": {"aws:RequestedRegion": "us-east-1"}}, "", {}, True),
        ({"StringEquals": {"s3:authType": "REST-HEADER"}}, "", {}, True),
        ({"StringEquals": {"s3:signatureversion": "AWS4-HMAC-SHA256"}}, "", {}, True),
        ({"NumericLessThan": {"s3:signatureAge": "1"}}, "", {}, True),
        ({"StringEquals": {"s3:x-amz-content-sha256": "UNSIGNED-PAYLOAD"}}, "", {}, False),
        ({"StringEquals": {"s3:x-amz-storage-class": "COLD"}}, "", {"x-amz-storage-class": "COLD"}, True),
        ({"Null": {"s3:x-amz-storage-class": "true"}}, "", {}, True),
        ({"Null": {"aws:MultiFactorAuthPresent": "true", "s3:ExistingObjectTag/a": "true"}}, "", {}, True),
    ],
)
async def test_a_condition_asks_the_request_itself(
    bound: Bound, condition: Any, query: str, headers: dict[str, str], holds: bool
) -> None:
    bound.keys.bind(allow("s3:ListBucket", "bucket", condition))
    answer = await bound.edge.send(sign("GET", "/bucket", query=query, headers=headers).wire())
    assert answer.status == (200 if holds else 403)


async def test_a_presigned_request_says_so_and_how_old_it_is(bound: Bound) -> None:
    old = presign("GET", "/bucket/key", now=NOW - 100).wire()
    for condition, status in (
        ({"StringEquals": {"s3:authType": "REST-QUERY-STRING"}}, 200),
        ({"NumericLessThanEquals": {"s3:signatureAge": "100000"}}, 200),
        ({"NumericLessThan": {"s3:signatureAge": "100000"}}, 403),
    ):
        bound.keys.bind(allow("s3:GetObject", "*", condition))
        assert (await bound.edge.send(old)).status == status


async def test_of_a_header_that_stands_twice_no_condition_is_decided(bound: Bound) -> None:
    bound.keys.bind(allow("*"), deny("*", "*", {"StringEquals": {"s3:x-amz-storage-class": "COLD"}}))
    wire = sign("PUT", "/bucket/key", headers={"x-amz-storage-class": "COLD,STANDARD"}).wire()
    twice = wire.replace(
        b"x-amz-storage-class: COLD,STANDARD\r\n",
        b"x-amz-storage-class: COLD\r\nx-amz-storage-class: STANDARD\r\n",
    )
    assert twice != wire
    answer = await bound.edge.send(twice)
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert bound.reached == []


# The key itself.


async def test_a_key_may_be_used_until_it_expires_and_not_a_microsecond_longer(bound: Bound) -> None:
    bound.keys.bind(expires_us=int(NOW * 1e6) + 1)
    assert (await bound.send("GET", "/bucket/key")).status == 200
    bound.keys.bind(expires_us=int(NOW * 1e6))
    for wire in (sign("GET", "/bucket/key").wire(), presign("GET", "/bucket/key").wire()):
        answer = await bound.edge.send(wire)
        assert (answer.status, answer.code) == (403, "InvalidAccessKeyId")
    forged = sign("GET", "/bucket/key", secret="wrong").wire()
    assert (await bound.edge.send(forged)).code == "SignatureDoesNotMatch", "only its holder is told"


async def test_a_key_may_be_used_from_its_networks_only(bound: Bound) -> None:
    for networks, status in ((("10.0.0.0/8",), 403), (("10.0.0.0/8", "127.0.0.1"), 200), (("::/0",), 403)):
        bound.keys.bind(networks=tuple(parse_network(text) for text in networks))
        assert (await bound.send("GET", "/bucket/key", x_forwarded_for="10.0.0.1")).status == status
    assert bound.reached == ["GetObject"]


# The table.


def test_a_route_without_an_action_does_not_start() -> None:
    route = dataclasses.replace(SERVED[0], actions=())
    with pytest.raises(ValueError, match="no action"):
        App(store=cast(Any, None), directory=FakeDirectory(), routes=[*ROUTES, route], choose=choose)


async def test_a_route_without_an_action_is_closed_to_whoever_has_a_policy(start_edge: Start) -> None:
    keys = Keys()
    keys.bind(allow("*"))
    edge = await start_edge(directory=keys)  # Whose routes have none.
    assert (await edge.send(sign("GET", "/bucket/key").wire())).status == 403
    assert edge.seen == []


def test_every_operation_that_s3_has_is_an_action_or_several_and_no_other_is_named() -> None:
    operations = {route.operation for route in ROUTES}
    nameless = {"PostService", "PreflightBucket", "PreflightObject"}  # No one is asked who they are.
    assert operations - set(ACTIONS) == nameless
    assert set(ACTIONS) <= operations
    assert all(route.actions == ACTIONS.get(route.operation, ()) for route in ROUTES)


def test_every_condition_key_that_a_policy_may_name_is_told_of_requests() -> None:
    assert set(TELLERS) == KEYS
