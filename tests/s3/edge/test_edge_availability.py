"""What service levels are measured by, at the edge: which requests count, and which of them as failed."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from edge_running import WITHIN_S, Start, read_head
from edge_signing import KEY_ID, SECRET, FakeCredential, FakeDirectory, principal, sign

from objstore.errors import Contended, Corrupt, MetaUnavailable, NoSuchKey, Overloaded, QuotaExceeded
from objstore.meta.kv import DictKv
from objstore.meta.schema import AccountRecord, Limits
from objstore.rental.availability import measured, seal_service
from objstore.rental.rates import Rates
from objstore.rental.service_levels import Interval
from objstore.s3 import answers
from objstore.s3.availability import Availability
from objstore.s3.call import Call
from objstore.s3.errors import not_implemented
from tests.waiting import until

NOW_S = 472_222 * 3_600 + 5


async def found(counts: Availability, tenant: str) -> Interval | None:
    kv = DictKv()
    counts.turn(NOW_S)
    await counts.commit(kv)
    await seal_service(kv, NOW_S // 3_600 + 1)
    return (await measured(kv, tenant, NOW_S - 5, NOW_S + 295)).get(NOW_S // 300)


@pytest.mark.parametrize(
    ("failure", "failures"),
    [
        (Corrupt("fragments"), 1),
        (MetaUnavailable("away"), 1),
        (Overloaded("all at once"), 1),
        (Contended("writes of one key"), 0),
        (NoSuchKey("k"), 0),
        (QuotaExceeded(scope="tenant", unit="bytes", limit=1, used=1), 0),
        (not_implemented("torrents"), 0),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_what_the_store_fails_at_counts_and_what_the_client_asks_wrongly_does_not(
    failure: Exception, failures: int, start_edge: Start
) -> None:
    async def fail(call: Call) -> web.StreamResponse:
        raise failure

    counts = Availability()
    edge = await start_edge(fail, availability=counts)
    answer = await edge.send(sign("GET", "/b/k").wire())
    assert answer.status >= 400
    assert await found(counts, principal(KEY_ID).tenant) == Interval(1, failures)


@pytest.mark.parametrize(
    ("failure", "failures"),
    [(MetaUnavailable("away"), 1), (Contended("writes of one key"), 0), (NoSuchKey("k"), 0)],
    ids=lambda one: type(one).__name__,
)
async def test_what_fails_behind_a_status_of_200_counts_as_what_it_is(
    failure: Exception, failures: int, start_edge: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATIENCE_S", 0.001)
    monkeypatch.setattr(answers, "PULSE_S", 0.001)
    begun = asyncio.Event()

    async def work() -> str:
        await begun.wait()
        raise failure

    async def fail_late(call: Call) -> web.StreamResponse:
        return await answers.eventually(call, work(), lambda text: (text, {}))

    counts = Availability()
    edge = await start_edge(fail_late, availability=counts)
    reader, writer = await edge.connect()
    writer.write(sign("GET", "/b/k").wire())
    assert (await asyncio.wait_for(read_head(reader), WITHIN_S))[0] == 200
    begun.set()
    assert b"<Error>" in await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), WITHIN_S)
    writer.close()
    await until(lambda: not edge.app.observer.in_flight, "it has ended")
    assert await found(counts, principal(KEY_ID).tenant) == Interval(1, failures)


async def test_a_bug_is_our_failure(start_edge: Start, bug_expected: None) -> None:
    async def fail(call: Call) -> web.StreamResponse:
        raise ZeroDivisionError

    counts = Availability()
    edge = await start_edge(fail, availability=counts)
    assert (await edge.send(sign("GET", "/b/k").wire())).status == 500
    assert await found(counts, principal(KEY_ID).tenant) == Interval(1, 1)


async def test_who_is_held_to_a_rate_of_its_own_did_not_meet_a_failure(start_edge: Start) -> None:
    who = replace(principal(KEY_ID), account=AccountRecord(limits=Limits(requests_per_s=1)))
    counts = Availability()
    edge = await start_edge(
        availability=counts,
        rates=Rates(lambda: 0.0),
        directory=FakeDirectory({KEY_ID: FakeCredential(SECRET, who)}),
    )
    edge.app.store = cast(Any, SimpleNamespace(buckets={}))
    statuses: list[int] = []
    while 503 not in statuses:
        assert len(statuses) < 100
        statuses.append((await edge.send(sign("GET", "/b/k").wire())).status)
    assert set(statuses) == {200, 503}
    assert await found(counts, who.tenant) == Interval(len(statuses), 0)


async def test_who_is_a_stranger_counts_for_nobody(start_edge: Start) -> None:
    counts = Availability()
    edge = await start_edge(availability=counts)
    assert (await edge.send(sign("GET", "/b/k", secret="wrong").wire())).status == 403
    counts.turn(NOW_S)
    assert not counts.waits
