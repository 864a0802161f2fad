"""Default deny, generated from the route table: every route x carrier x payload mode x way of being unproven.

A route that is added to s3/routes.py is in this matrix at once. Nothing unproven may reach a handler.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, cast

import pytest
from aiohttp import web
from edge_running import Edge, Line, Start, read_answer
from edge_signing import FakeDirectory, Signed, presign, sign

from objstore.s3.app import App
from objstore.s3.call import Call, Route
from objstore.s3.routes import ROUTES, choose

PAYLOADS = [
    "hash",
    "UNSIGNED-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
]
BODY = b"0\r\n\r\n"


def request_for(route: Route, carrier: str, payload: str, **how: Any) -> Signed:
    path = {"service": "/", "bucket": "/bucket", "object": "/bucket/key"}[route.target]
    query = f"{route.flag}=" if route.flag else ""
    headers: dict[str, str] = {}
    if route.header:
        headers[route.header] = "/bucket/source"
    if payload.startswith("STREAMING"):
        headers["x-amz-decoded-content-length"] = "0"
    word = hashlib.sha256(BODY).hexdigest() if payload == "hash" else payload
    if carrier == "header":
        return sign(route.method, path, query=query, headers=headers, body=BODY, payload=word, **how)
    headers["x-amz-content-sha256"] = word
    return presign(route.method, path, query=query, headers=headers, body=BODY, **how)


def spoil(route: Route, carrier: str, payload: str) -> Mapping[str, Signed]:
    """Every way of being unproven."""
    good = request_for(route, carrier, payload)
    wrong_secret = request_for(route, carrier, payload, secret="wrong")
    unknown = request_for(route, carrier, payload, key_id="AKIANOBODY")
    if carrier == "header":
        authorization = good.header("Authorization")
        digit = "0" if authorization[-1] != "0" else "1"
        bad = good.with_header("Authorization", authorization[:-1] + digit)
        none = good.with_header("Authorization", None)
        empty = good.with_header("Authorization", "")
        cut = good.with_header("Authorization", authorization[: authorization.index(", Signature")])
    else:
        at = good.target.index("X-Amz-Signature=") + 16
        digit = "0" if good.target[at] != "0" else "1"
        bad = dataclasses.replace(good, target=good.target[:at] + digit + good.target[at + 1 :])
        empty = dataclasses.replace(good, target=good.target[:at] + good.target[at + 64 :])
        pairs = good.target.partition("?")[2].split("&")
        path = good.target.partition("?")[0]
        kept = "&".join(pair for pair in pairs if not pair.startswith("X-Amz-"))
        none = dataclasses.replace(good, target=f"{path}?{kept}")
        cut_pairs = "&".join(pair for pair in pairs if not pair.startswith("X-Amz-Signature"))
        cut = dataclasses.replace(good, target=f"{path}?{cut_pairs}")
    return {
        "bad signature": bad,
        "no signature": none,
        "empty signature": empty,
        "cut signature": cut,
        "wrong secret": wrong_secret,
        "unknown key": unknown,
    }


@pytest.fixture
async def matrix_edge(start_edge: Start) -> Edge:
    async def reached(call: Call) -> web.StreamResponse:
        reached_by.append(call.operation)
        return web.Response()

    reached_by: list[str] = []

    def choose_real(method: str, bucket: str, key: str, query: Any, headers: Any) -> Route:
        return dataclasses.replace(choose(method, bucket, key, query, headers), handler=reached)

    edge = await start_edge(choose=choose_real, routes=ROUTES)
    cast(Any, edge).reached_by = reached_by
    return edge


def name_of(route: Route) -> str:
    return f"{route.operation}-{route.method}"


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_nothing_unproven_reaches_a_handler(matrix_edge: Edge, route: Route) -> None:
    line = Line(matrix_edge)
    for carrier in ("header", "query"):
        for payload in PAYLOADS:
            for way, request in spoil(route, carrier, payload).items():
                answer = await line.send(request.wire())
                assert answer.status in (400, 403), (route.operation, carrier, payload, way, answer)
    line.close()
    assert cast(Any, matrix_edge).reached_by == []


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_what_is_proven_reaches_its_own_route_and_no_other(matrix_edge: Edge, route: Route) -> None:
    reached = cast(Any, matrix_edge).reached_by
    for carrier in ("header", "query"):
        for payload in PAYLOADS[:2]:
            reached.clear()
            answer = await matrix_edge.send(request_for(route, carrier, payload).wire())
            assert answer.status == 200, (carrier, payload, answer)
            assert reached == [route.operation]


async def test_a_good_request_lends_nothing_to_the_next_on_its_connection(matrix_edge: Edge) -> None:
    good = sign("GET", "/bucket/key")
    reader, writer = await matrix_edge.connect()
    for route in ROUTES[:40]:
        writer.write(good.wire())
        assert (await read_answer(reader)).status == 200
        spoiled = spoil(route, "header", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")["no signature"]
        if route.method == "HEAD":
            continue
        writer.write(spoiled.wire())
        assert (await read_answer(reader)).status == 403
    writer.close()
    assert set(cast(Any, matrix_edge).reached_by) == {"GetObject"}


@pytest.mark.parametrize("rule", ["", "public", "TENANT"])
def test_a_route_without_a_rule_does_not_start(rule: str) -> None:
    route = dataclasses.replace(ROUTES[0], rule=rule)
    with pytest.raises(ValueError, match="no authorisation rule"):
        App(store=cast(Any, None), directory=FakeDirectory(), routes=[*ROUTES, route], choose=choose)


async def test_known_but_unimplemented_operations_answer_501_to_the_proven_only(start_edge: Start) -> None:
    edge = await start_edge(choose=choose, routes=ROUTES)
    missing = [route for route in ROUTES if route.handler is None]
    assert missing
    for route in missing:
        request = request_for(route, "header", "UNSIGNED-PAYLOAD")
        answer = await edge.send(request.wire())
        assert (answer.status, answer.code) == (501, "NotImplemented"), route
        unproven = await edge.send(request.with_header("Authorization", None).wire())
        assert unproven.status == 403
