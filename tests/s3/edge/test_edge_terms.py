"""What a tenant's account says, held to at the edge: states, rates, and its share of a busy process."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from edge_running import SMALL_LIMITS, Edge, Start, read_answer
from edge_signing import KEY_ID, SECRET, FakeCredential, FakeDirectory, principal, sign

from objstore.meta.schema import AccountRecord, BucketRecord, Limits, encode
from objstore.objects.store import KnownBucket
from objstore.rental.rates import Rates
from objstore.s3.call import Call
from objstore.s3.limits import LATE_S, RECENT_LOOKS, SHARE_LEAST, Admission, scopes_of

GET = sign("GET", "/b/k").wire()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def started(start_edge: Start, account: AccountRecord, *, key: Limits | None = None) -> Edge:
    directory = FakeDirectory()
    who = replace(principal(KEY_ID), account=account, limits=key)
    directory.keys[KEY_ID] = FakeCredential(SECRET, who)
    clock = Clock()
    edge = await start_edge(directory=directory, rates=Rates(clock))
    edge.app.store = cast(Any, SimpleNamespace(buckets={}, clock=clock))
    return edge


def clock_of(edge: Edge) -> Clock:
    clock: Any = edge.app.store.clock
    return cast(Clock, clock)


@pytest.mark.parametrize("state", ["suspended", "purged"])
async def test_who_is_suspended_or_purged_is_refused_whatever_the_request(
    start_edge: Start, state: str
) -> None:
    edge = await started(start_edge, AccountRecord(state=state))
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        answer = await edge.send(sign(method, "/b/k").wire())
        assert answer.status == 403
        assert answer.code == ("" if method == "HEAD" else "AccountProblem")
    assert edge.seen == []


@pytest.mark.parametrize("state", ["trial", "active", "past_due", "read_only", "terminating"])
async def test_every_other_state_reaches_the_handlers_which_know_what_stores(
    start_edge: Start, state: str
) -> None:
    edge = await started(start_edge, AccountRecord(state=state))
    assert (await edge.send(GET)).status == 200


async def test_a_body_of_one_who_is_refused_is_never_asked_for(start_edge: Start) -> None:
    request = sign("PUT", "/b/k", body=b"x" * 1000, headers={"Expect": "100-continue"})
    suspended = await started(start_edge, AccountRecord(state="suspended"))
    limited = await started(start_edge, AccountRecord(limits=Limits(requests_per_s=0)))
    for edge, status in ((suspended, 403), (limited, 503)):
        reader, writer = await edge.connect()
        writer.write(request.wire()[: -len(request.body)])
        answer = await asyncio.wait_for(read_answer(reader), 9)
        assert answer.status == status, "the first answer is the last, not 100"
        writer.close()


async def test_past_its_rate_a_tenant_is_told_when_to_come_again(start_edge: Start) -> None:
    edge = await started(start_edge, AccountRecord(limits=Limits(requests_per_s=1)))
    assert (await edge.send(GET)).status == 200
    answer = await edge.send(GET)
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "SlowDown", "1")
    clock_of(edge).now += 1
    assert (await edge.send(GET)).status == 200
    assert edge.app.admission.requests == 0


async def test_bytes_count_as_they_come_and_as_they_go(start_edge: Start) -> None:
    edge = await started(start_edge, AccountRecord(limits=Limits(bytes_per_s=10)))
    for _ in range(2):  # Of five bytes each: one is what the bucket holds, one a debt.
        assert (await edge.send(GET)).status == 200
    answer = await edge.send(GET)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    clock_of(edge).now += 1
    assert (await edge.send(sign("PUT", "/b/k", body=bytes(205)).wire())).status == 200
    answer = await edge.send(GET)
    assert (answer.status, answer.headers["retry-after"]) == (503, "20")


async def test_a_key_has_a_rate_of_its_own_whatever_its_tenant_may(start_edge: Start) -> None:
    edge = await started(start_edge, AccountRecord(), key=Limits(requests_per_s=1))
    assert [(await edge.send(GET)).status for _ in range(2)] == [200, 503]


def test_a_request_is_held_to_tenant_project_key_and_bucket_where_these_have_rates() -> None:
    rated, unrated = Limits(requests_per_s=5), Limits(bytes_max=5)
    settings = {"project": b"web", "quota": encode(rated)}
    bucket = KnownBucket(b"", BucketRecord(id=7, tenant="t1", owner="u1", created_us=1, settings=settings))
    account = AccountRecord(limits=rated, projects={"web": rated, "other": rated})
    who = replace(principal(KEY_ID), account=account, limits=rated)
    assert [name for name, _ in scopes_of(who, bucket)] == ["t t1", "p t1/web", f"k {KEY_ID}", "b 7"]
    assert [name for name, _ in scopes_of(who, None)] == ["t t1", f"k {KEY_ID}"]
    of_project = replace(who, project="other", limits=unrated)
    assert [name for name, _ in scopes_of(of_project, None)] == ["t t1", "p t1/other"]
    stranger = replace(who, tenant="t2", account=AccountRecord(limits=unrated), limits=None)
    assert scopes_of(stranger, bucket) == []
    assert scopes_of(principal(KEY_ID), None) == []


def test_while_the_process_is_late_whoever_has_most_in_flight_is_held_to_a_share() -> None:
    admission = Admission(replace(SMALL_LIMITS, requests=1_024))
    for _ in range(200):
        assert admission.enter(0)
        assert admission.claim("noisy", 0)
    admission.look(LATE_S * 20, 1.0)
    assert admission.requests_each == 1_024, "alone it may have all there is"
    admission.enter(0)
    assert admission.claim("victim", 0)
    for _ in range(20):
        admission.look(LATE_S * 2, 1.0)
    assert admission.requests_each == SHARE_LEAST
    admission.enter(0)
    assert not admission.claim("noisy", 0)
    assert admission.claim("victim", 0)
    for _ in range(100):
        admission.look(0.0, 1.0)
    assert admission.requests_each == 1_024, "and it has all again when the process keeps up"


def test_while_the_process_is_late_whoever_begins_most_is_held_to_a_share() -> None:
    admission = Admission(SMALL_LIMITS)
    refused = {"noisy": 0, "victim": 0}
    for _ in range(40):
        for tenant in ["noisy"] * 300 + ["victim"] * 3:  # Each is over before the next begins.
            admission.enter(0)
            if admission.claim(tenant, 0):
                admission.leave(0, tenant)
            else:
                admission.leave(0, None)
                refused[tenant] += 1
        admission.look(LATE_S * 2, 1.0)
    assert admission.starts_each == SHARE_LEAST
    assert refused["noisy"] > 5_000
    assert refused["victim"] == 0


def test_a_loop_that_others_keep_from_its_work_refuses_nobody() -> None:
    admission = Admission(SMALL_LIMITS)
    for _ in range(40):
        for tenant in ["one"] * 300 + ["two"] * 3:
            admission.enter(0)
            assert admission.claim(tenant, 0)
            admission.leave(0, tenant)
        admission.look(LATE_S * 20, 0.2)


def test_a_tenant_that_left_does_not_take_a_share_for_long() -> None:
    admission = Admission(SMALL_LIMITS)
    for _ in range(100):
        admission.enter(0)
        admission.claim("busy", 0)
    admission.enter(0)
    admission.claim("guest", 0)
    admission.leave(0, "guest")
    for _ in range(2 * RECENT_LOOKS):
        admission.look(0.0, 1.0)
    admission.look(LATE_S * 20, 1.0)
    assert admission.requests_each == admission.most_each


async def test_one_who_is_held_to_a_share_gets_slow_down_and_the_other_is_served(start_edge: Start) -> None:
    go_on = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def handle(call: Call) -> web.StreamResponse:
        entered.release()
        await go_on.wait()
        return web.Response()

    edge = await start_edge(handle)
    waiting = [asyncio.ensure_future(edge.send(GET)) for _ in range(SHARE_LEAST)]
    for _ in waiting:
        await entered.acquire()
    edge.app.admission.requests_each = SHARE_LEAST
    assert (await edge.send(GET)).code == "SlowDown"
    go_on.set()
    assert {(await answer).status for answer in waiting} == {200}
