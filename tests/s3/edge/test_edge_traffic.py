"""What is billed of requests that commit nothing: which of them, in which class, and the bytes sent."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from edge_running import Start, read_head
from edge_signing import KEY_ID, OTHER_ID, SECRET, FakeCredential, FakeDirectory, principal, sign
from multidict import CIMultiDict

from objstore.errors import Denied, MetaUnavailable
from objstore.meta.kv import DictKv, Transaction, counter, prefix_end
from objstore.meta.schema import AccountRecord, BucketRecord, Limits, TitleRecord, decode, title_key
from objstore.objects.store import KnownBucket
from objstore.objects.values import Principal
from objstore.rental.meters import (
    HOUR_S,
    REQUESTS_A,
    REQUESTS_B,
    SENT_INTERNAL,
    SENT_INTERNET,
    SENT_REPLICATION,
    split_meter,
)
from objstore.rental.rates import Rates
from objstore.s3.answers import stream
from objstore.s3.call import Call
from objstore.s3.routes import ROUTES
from objstore.s3.traffic import Scopes, Traffic, request_class
from tests.waiting import until

WHO = Principal(tenant="t1", user="u1", access_key_id="k")
NOW_S = 472_222 * HOUR_S + 5
PIECE = 64 * 1024
SCOPES = Scopes(["10.0.0.0/8", "fd00::/8"], ["10.9.0.0/16"])


def known(*names: str, tenant: str = "t1") -> dict[str, KnownBucket]:
    return {
        name: KnownBucket(b"", BucketRecord(id=number, tenant=tenant, owner="u1", created_us=1))
        for number, name in enumerate(names, 1)
    }


async def committed(kv: DictKv) -> dict[tuple[int, bytes], int]:
    """By bucket and meter."""
    found = {}
    for key, value in await kv.scan(b"M", prefix_end(b"M"), 10_000):
        hour, bucket, storage_class, meter = split_meter(key)
        assert (hour, storage_class) == (472_222, "")
        found[bucket, meter] = counter(value)
    return found


async def counted(*requests: tuple[str, str, int, int], who: Principal | None = WHO) -> dict[bytes, int]:
    """What requests to a bucket are billed. Each: operation, method, status, bytes sent."""
    traffic, kv = Traffic(known("b"), SCOPES), DictKv()
    for operation, method, status, sent in requests:
        traffic.note(who, "b", operation, method, status, sent, "198.51.100.7")
    await traffic.commit(kv, NOW_S)
    return {meter: count for (_, meter), count in (await committed(kv)).items()}


async def test_reads_listings_and_refusals_are_counted_in_their_class() -> None:
    assert await counted(
        ("GetObject", "GET", 200, 4_096),
        ("GetObject", "GET", 304, 0),
        ("HeadObject", "HEAD", 404, 0),
        ("GetBucketAcl", "GET", 200, 10),
        ("ListObjectsV2", "GET", 200, 100),
        ("PutBucketAcl", "PUT", 200, 0),
        ("PutObject", "PUT", 400, 300),
        ("GetObject", "GET", 403, 0),
    ) == {REQUESTS_A: 3, REQUESTS_B: 5, SENT_INTERNET: 4_506}


async def test_what_its_own_commit_counts_is_not_counted_again() -> None:
    for operation in ("PutObject", "CopyObject", "UploadPart", "UploadPartCopy", "PutReplica"):
        assert await counted((operation, "PUT", 200, 0)) == {}
    for operation in ("CreateMultipartUpload", "CompleteMultipartUpload", "PostReplica"):
        assert await counted((operation, "POST", 200, 0)) == {}


async def test_what_names_no_bucket_is_billed_to_the_callers_tenant() -> None:
    traffic, kv = Traffic(known("b"), SCOPES), DictKv()
    other = Principal(tenant="t2", user="u", access_key_id="k")
    for who in (WHO, WHO, other):
        traffic.note(who, "", "ListBuckets", "GET", 200, 50, "10.1.2.3")
    traffic.note(WHO, "new", "CreateBucket", "PUT", 200, 0, "10.1.2.3")  # By its own commit.
    traffic.note(WHO, "taken", "CreateBucket", "PUT", 409, 300, "10.1.2.3")
    traffic.note(WHO, "", "ListBuckets", "GET", 503, 50, "10.1.2.3")
    traffic.note(None, "", "ListBuckets", "GET", 403, 50, "10.1.2.3")
    traffic.note(WHO, "unknown", "GetObject", "GET", 404, 50, "10.1.2.3")
    await traffic.commit(kv, NOW_S)
    await traffic.commit(kv, NOW_S + 1)
    found: dict[tuple[str, bytes], int] = {}
    for (number, meter), count in (await committed(kv)).items():
        title = await kv.get(title_key(number))
        assert title is not None
        found[decode(title, TitleRecord).tenant, meter] = count
    assert found == {
        ("t1", REQUESTS_A): 3,
        ("t1", SENT_INTERNAL): 400,
        ("t2", REQUESTS_A): 1,
        ("t2", SENT_INTERNAL): 50,
    }


async def test_all_workers_count_a_tenants_requests_under_one_id() -> None:
    kv = DictKv()
    workers = [Traffic({}, SCOPES) for _ in range(4)]
    for worker in workers:
        worker.note(WHO, "", "ListBuckets", "GET", 200, 0, "10.1.2.3")
    await asyncio.gather(*(worker.commit(kv, NOW_S) for worker in workers))
    assert list((await committed(kv)).values()) == [4]


async def test_deletes_aborts_and_what_the_store_fails_at_are_free() -> None:
    assert (
        await counted(
            ("DeleteObject", "DELETE", 204, 0),
            ("DeleteObject", "DELETE", 403, 0),
            ("DeleteObjects", "POST", 200, 0),
            ("AbortMultipartUpload", "DELETE", 404, 0),
            ("GetObject", "GET", 500, 400),
            ("GetObject", "GET", 503, 400),
            ("PutBucketTagging", "PUT", 501, 400),
        )
        == {}
    )


async def test_who_takes_its_data_along_pays_for_requests_and_not_for_bytes() -> None:
    leaving = replace(WHO, account=AccountRecord(state="terminating"))
    assert await counted(("GetObject", "GET", 200, 70_000), who=leaving) == {REQUESTS_B: 1}


async def test_strangers_cost_nobody_anything() -> None:
    assert await counted(("GetObject", "GET", 403, 300), who=None) == {}
    other = Principal(tenant="t2", user="u", access_key_id="k")
    assert await counted(("GetObject", "GET", 403, 300), who=other) == {}
    # Malformed before anybody asks whose the bucket is.
    malformed = [("ListMultipartUploads", "GET", 400, 300), ("PutObject", "PUT", 411, 300)]
    assert await counted(*malformed, ("PutObject", "PUT", 499, 0), who=other) == {}
    assert await counted(*malformed) == {REQUESTS_A: 2, SENT_INTERNET: 600}


async def test_a_download_that_the_client_gave_up_is_billed_for_what_was_sent() -> None:
    assert await counted(("GetObject", "GET", 499, 70_000)) == {REQUESTS_B: 1, SENT_INTERNET: 70_000}
    assert await counted(("PutObject", "PUT", 499, 0)) == {}


async def test_what_was_sent_before_the_client_hung_up_is_billed_and_held_to_its_rate(
    start_edge: Start,
) -> None:
    gone = asyncio.Event()

    async def blocks() -> AsyncGenerator[list[memoryview], None]:
        yield [memoryview(bytes(PIECE))]
        await gone.wait()
        while True:  # Until the socket says that nobody is there.
            yield [memoryview(bytes(PIECE))]

    async def give(call: Call) -> web.StreamResponse:
        return await stream(call, 200, CIMultiDict(), blocks(), 1_000 * PIECE)

    who = replace(principal(KEY_ID), account=AccountRecord(limits=Limits(bytes_per_s=1)))
    buckets = known("b")
    traffic, kv = Traffic(buckets, Scopes()), DictKv()
    edge = await start_edge(
        give,
        traffic=traffic,
        rates=Rates(lambda: 0.0),
        directory=FakeDirectory({KEY_ID: FakeCredential(SECRET, who)}),
        operation=lambda *_: "GetObject",
    )
    edge.app.store = cast(Any, SimpleNamespace(buckets={}))
    reader, writer = await edge.connect()
    writer.write(sign("GET", "/b/k").wire())
    assert (await read_head(reader))[0] == 200
    await reader.readexactly(PIECE)
    buckets.clear()  # Others' requests may let a worker forget whose the bucket is.
    writer.transport.abort()
    gone.set()
    await until(lambda: not edge.app.observer.in_flight)
    await traffic.commit(kv, NOW_S)
    found = await committed(kv)
    assert found[1, REQUESTS_B] == 1
    assert PIECE <= found[1, SENT_INTERNET] < 1_000 * PIECE
    assert (await edge.send(sign("GET", "/b/k").wire())).status == 503


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.operation} {route.method}")
def test_every_route_has_its_price(route: object) -> None:
    operation, method = route.operation, route.method  # type: ignore[attr-defined]
    success, refusal = request_class(operation, method)
    assert success in (b"", REQUESTS_A, REQUESTS_B)
    if method == "DELETE":
        assert success == refusal == b""
    elif method in ("GET", "HEAD"):
        assert success == refusal == (REQUESTS_A if operation.startswith("List") else REQUESTS_B)


@pytest.mark.parametrize(
    ("peer", "meter"),
    [
        ("10.1.2.3", SENT_INTERNAL),
        ("10.9.2.3", SENT_REPLICATION),
        ("::ffff:10.1.2.3", SENT_INTERNAL),
        ("fd00::7%eth0", SENT_INTERNAL),
        ("2001:db8::1", SENT_INTERNET),
        ("192.0.2.1", SENT_INTERNET),
        ("", SENT_INTERNAL),
    ],
)
async def test_bytes_are_counted_by_where_they_go(peer: str, meter: bytes) -> None:
    traffic, kv = Traffic(known("a", "b"), SCOPES), DictKv()
    traffic.note(WHO, "b", "GetObject", "GET", 206, 5, peer)
    traffic.note(WHO, "b", "GetObject", "GET", 206, 6, peer)
    await traffic.commit(kv, NOW_S)
    assert await committed(kv) == {(2, REQUESTS_B): 2, (2, meter): 11}


class AwayKv(DictKv):
    async def commit(self, transaction: Transaction) -> None:
        raise MetaUnavailable("the outcome is unknown")


async def test_a_commit_of_unknown_outcome_is_not_made_again() -> None:
    traffic, kv = Traffic(known("b"), SCOPES), DictKv()
    traffic.note(WHO, "b", "GetObject", "GET", 200, 5, "192.0.2.1")
    await traffic.commit(AwayKv(), NOW_S)
    await traffic.commit(kv, NOW_S)
    assert await committed(kv) == {}
    assert traffic.lost == 2


async def test_counters_are_bounded_and_those_that_are_there_go_on() -> None:
    names = [f"b{number}" for number in range(10)]
    traffic, kv = Traffic(known(*names), SCOPES, size_max=5), DictKv()
    for _ in range(2):
        for name in names:
            traffic.note(WHO, name, "GetObject", "GET", 200, 0, "192.0.2.1")
    await traffic.commit(kv, NOW_S)
    assert await committed(kv) == {(number, REQUESTS_B): 2 for number in range(1, 6)}
    assert traffic.lost == 10


async def test_requests_through_the_edge_are_counted_with_what_was_sent(start_edge: Start) -> None:
    traffic, kv = Traffic(known("b"), Scopes()), DictKv()
    edge = await start_edge(traffic=traffic, operation=lambda method, *_: "GetObject")
    await edge.send(sign("GET", "/b/k").wire())
    await edge.send(sign("GET", "/b/k", secret="wrong").wire())
    await edge.send(sign("GET", "/other/k").wire())
    await edge.send(sign("GET", "/b/k", key_id=OTHER_ID, secret="wrong").wire())
    await edge.runner.stop(0.5)
    await traffic.commit(kv, NOW_S)
    assert await committed(kv) == {(1, REQUESTS_B): 1, (1, SENT_INTERNET): len(b"hello")}


async def test_a_refusal_is_counted_at_the_edge(start_edge: Start) -> None:
    async def refuse(call: Call) -> None:
        raise Denied("the policy says no")

    traffic, kv = Traffic(known("b"), Scopes()), DictKv()
    edge = await start_edge(refuse, traffic=traffic, operation=lambda *_: "GetObject")
    answer = await edge.send(sign("GET", "/b/k").wire())
    assert answer.status == 403
    await edge.runner.stop(0.5)
    await traffic.commit(kv, NOW_S)
    assert await committed(kv) == {(1, REQUESTS_B): 1, (1, SENT_INTERNET): len(answer.body)}
