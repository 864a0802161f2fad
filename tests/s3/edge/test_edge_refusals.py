"""Refusals for a rate or a share: told at a pace, on places that are free for others."""

import asyncio
import socket
import struct
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from edge_running import SMALL_LIMITS, WITHIN_S, Edge, Line, Start, read_answer
from edge_signing import (
    KEY_ID,
    OTHER_ID,
    OTHER_SECRET,
    SECRET,
    FakeCredential,
    FakeDirectory,
    principal,
    sign,
)

from objstore.meta.schema import AccountRecord, Limits
from objstore.rental.rates import Rates
from objstore.s3.limits import Limits as EdgeLimits
from objstore.s3.refusals import LEAST_S, MOST_S, PACE, TENANTS_MAX, Refusals
from tests.waiting import until

MIDDLE = 0.5  # Of what chance adds.
NOISY_GET = sign("GET", "/b/k").wire()
QUIET_GET = sign("GET", "/b/k", key_id=OTHER_ID, secret=OTHER_SECRET).wire()
FOR_EVER_S = 3_600.0
THIRD_ID = "AKIATHIRDTENANTSKEY1"
NOTHING = Limits(requests_per_s=0)


def test_refusals_of_one_tenant_leave_one_after_the_other_and_hold_up_nobody_elses() -> None:
    refusals = Refusals(1_000)
    some = int((MOST_S - LEAST_S) * PACE)
    waits = [refusals.wait_s("noisy", 10.0, MIDDLE) for _ in range(some)]
    assert waits == pytest.approx([LEAST_S + number / PACE for number in range(some)])
    assert refusals.wait_s("other", 10.0, MIDDLE) == pytest.approx(LEAST_S)


def test_however_many_are_refused_nobody_waits_longer_than_clients_do() -> None:
    refusals = Refusals(1_000)
    waits = [refusals.wait_s("noisy", 10.0, MIDDLE) for _ in range(10_000)]
    assert max(waits) == pytest.approx(MOST_S)
    assert refusals.wait_s("noisy", 11.0, MIDDLE) == pytest.approx(MOST_S - 1 + 1 / PACE)


def test_who_is_refused_now_and_then_hardly_waits() -> None:
    refusals = Refusals(1_000)
    for second in range(100):
        assert refusals.wait_s("guest", float(second), MIDDLE) == pytest.approx(LEAST_S)


def test_what_is_known_of_tenants_has_a_bound_and_forgets_whom_nobody_waits_for_first() -> None:
    refusals = Refusals(1_000)
    for number in range(TENANTS_MAX - 1):
        refusals.wait_s(f"t{number}", 1.0, MIDDLE)
    for _ in range(100):
        refusals.wait_s("noisy", 9.0, MIDDLE)
    for number in range(3 * TENANTS_MAX):
        refusals.wait_s(f"u{number}", 9.0, MIDDLE)
        assert len(refusals._last) <= TENANTS_MAX
        if number == TENANTS_MAX // 2:
            assert refusals.wait_s("noisy", 9.0, MIDDLE) == pytest.approx(MOST_S)


async def test_answers_are_put_off_only_within_bounds_and_while_the_process_serves() -> None:
    most = 8
    refusals = Refusals(most, least_s=2 * FOR_EVER_S, most_s=FOR_EVER_S)

    def put_off() -> asyncio.Task[None]:
        leaves = asyncio.get_running_loop().create_future()
        return asyncio.create_task(refusals.wait(leaves, "noisy", 10.0, MIDDLE))

    waiting = [put_off() for _ in range(most)]
    await asyncio.sleep(0)
    assert refusals.waiting == most
    await put_off()
    assert not any(one.done() for one in waiting)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    waiting.append(put_off())
    await asyncio.sleep(0)
    assert refusals.waiting == most
    refusals.end()
    await asyncio.wait(waiting)
    assert refusals.waiting == 0
    await put_off()


PATIENT = replace(
    SMALL_LIMITS,
    header_seconds=FOR_EVER_S,
    idle_seconds=FOR_EVER_S,
    body_seconds=FOR_EVER_S,
    rate_after_seconds=FOR_EVER_S,
    linger_seconds=FOR_EVER_S,
)


async def beside(
    start_edge: Start, *, limits: Limits, body_bytes: int = 8_000, times: EdgeLimits = SMALL_LIMITS
) -> Edge:
    """An edge with five places for requests; the noisy one has these limits, and waits for ever.

    Args:
        times: whose seconds the edge has.
    """
    directory = FakeDirectory()
    noisy = replace(principal(KEY_ID), tenant="noisy", account=AccountRecord(limits=limits))
    directory.keys[KEY_ID] = FakeCredential(SECRET, noisy)
    directory.keys[OTHER_ID] = FakeCredential(OTHER_SECRET, replace(principal(OTHER_ID), tenant="quiet"))
    few = replace(times, requests=4, body_bytes=body_bytes)
    edge = await start_edge(directory=directory, limits=few, rates=Rates(lambda: 1_000.0))
    edge.app.store = cast(Any, SimpleNamespace(buckets={}))
    edge.app.refusals = Refusals(few.connections, least_s=2 * FOR_EVER_S, most_s=FOR_EVER_S)
    return edge


@pytest.mark.parametrize("noisy", [Limits(requests_per_s=2), Limits(requests_per_s=0)])
async def test_a_tenant_past_its_rate_has_its_share_of_the_work_and_its_neighbour_all_it_asks_for(
    start_edge: Start, noisy: Limits
) -> None:
    edge = await beside(start_edge, limits=noisy)
    asked, served = 25, 1 if noisy.requests_per_s else 0
    waiting = [await edge.connect() for _ in range(asked)]
    try:
        for _, writer in waiting:
            writer.write(NOISY_GET)
        await until(lambda: edge.app.refusals.waiting == asked - served, "all but its rate wait")
        await until(lambda: edge.app.admission.requests == 0, "and hold no place")
        assert len(edge.seen) == served
        line = Line(edge)
        assert [(await line.send(QUIET_GET)).status for _ in range(20)] == [200] * 20
        assert len(edge.seen) == served + 20
        line.close()
    finally:
        for _, writer in waiting:
            writer.close()


async def test_who_waits_for_a_refusal_is_told_when_the_process_is_to_stop(start_edge: Start) -> None:
    edge = await beside(start_edge, limits=NOTHING)
    told = [asyncio.create_task(edge.send(NOISY_GET)) for _ in range(10)]
    await until(lambda: edge.app.refusals.waiting == len(told))
    await edge.runner.stop(WITHIN_S)
    for answer in await asyncio.gather(*told):
        assert (answer.status, answer.code, answer.headers["connection"]) == (503, "SlowDown", "close")


async def test_a_copy_and_a_large_body_wait_for_their_refusal_like_others(start_edge: Start) -> None:
    edge = await beside(start_edge, limits=NOTHING, body_bytes=4 << 20)
    large = sign("PUT", "/b/k", body=bytes(3 << 20))
    copy = sign("PUT", "/b/k", headers={"x-amz-copy-source": "/b/other"}).wire()
    waiting = [await edge.connect() for _ in range(2)]
    try:
        waiting[0][1].write(large.wire()[: -len(large.body)])
        waiting[1][1].write(copy)
        await until(lambda: edge.app.refusals.waiting == len(waiting))
    finally:
        for _, writer in waiting:
            writer.close()


async def test_bodies_that_are_announced_and_never_sent_take_the_pace_off_nobodys_refusals(
    start_edge: Start,
) -> None:
    edge = await beside(start_edge, limits=NOTHING, times=PATIENT)
    refused = replace(principal(THIRD_ID), tenant="third", account=AccountRecord(limits=NOTHING))
    cast(FakeDirectory, edge.app.verifier.directory).keys[THIRD_ID] = FakeCredential(SECRET, refused)
    announced = sign("PUT", "/b/k", body=bytes(edge.app.limits.body_bytes))
    count = 150
    waiting = [await edge.connect() for _ in range(count + 2)]
    try:
        for number, (_, writer) in enumerate(waiting[:count], 1):
            writer.write(announced.wire()[: -len(announced.body)])
            await until(partial(lambda wanted: edge.app.refusals.waiting == wanted, number))
        waiting[count][1].write(NOISY_GET)
        waiting[count + 1][1].write(sign("GET", "/b/k", key_id=THIRD_ID).wire())
        await until(lambda: edge.app.refusals.waiting == count + 2, "its own others, and those of a third")
        assert (edge.app.admission.requests, edge.app.admission.body_bytes) == (0, 0)
        own = sign("PUT", "/b/k", body=bytes(8_000), key_id=OTHER_ID, secret=OTHER_SECRET).wire()
        assert (await edge.send(own)).status == 200
    finally:
        for _, writer in waiting:
            writer.close()


@pytest.mark.parametrize("sent", [0, 700, 300_000, 900_000])
async def test_of_a_body_that_waits_for_a_refusal_nothing_is_held_and_its_connection_is_good_for_more(
    start_edge: Start, sent: int
) -> None:
    edge = await beside(start_edge, limits=NOTHING, body_bytes=4 << 20, times=PATIENT)
    request = sign("PUT", "/b/k", body=bytes(900_000)).wire()
    upto = len(request) - 900_000 + sent
    reader, writer = await edge.connect()
    try:
        writer.write(request[:upto])
        await until(lambda: edge.app.refusals.waiting == 1)
        [connection] = edge.runner.server.connections
        held = connection._current_request._payload  # type: ignore[union-attr]
        assert held._size == 0
        writer.write(request[upto:])
        for _ in range(10):
            await asyncio.sleep(0)
        assert held._size == 0
        edge.app.refusals.end()
        answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
        assert (answer.status, answer.code) == (503, "SlowDown")
        writer.write(QUIET_GET)
        assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
    finally:
        writer.close()


async def test_who_waits_for_a_refusal_makes_room_for_a_new_connection(start_edge: Start) -> None:
    edge = await beside(start_edge, limits=NOTHING)
    most = 3
    edge.app.limits = replace(
        edge.app.limits, connections=most, idle_seconds=FOR_EVER_S, evict_seconds=FOR_EVER_S
    )
    waiting = [await edge.connect() for _ in range(most)]
    try:
        for _, writer in waiting:
            writer.write(NOISY_GET)
        await until(lambda: edge.app.refusals.waiting == most)
        for left in range(most - 1, -1, -1):
            line = Line(edge)
            assert (await line.send(QUIET_GET)).status == 200
            assert line.streams is not None
            waiting.append(line.streams)
            await until(partial(lambda left: edge.app.refusals.waiting == left, left))
        assert (await edge.send(QUIET_GET)).code == "SlowDown", "nobody is left that could make room"
        for reader, _ in waiting[:most]:
            assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    finally:
        for _, writer in waiting:
            writer.close()


async def test_who_hangs_up_does_not_wait_for_a_refusal_any_longer(start_edge: Start) -> None:
    edge = await beside(start_edge, limits=NOTHING)
    for _ in range(3):
        _, writer = await edge.connect()
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.write(NOISY_GET)
        await until(lambda: edge.app.refusals.waiting == 1)
        writer.transport.abort()  # At once, and the other end is told so.
        await until(lambda: not edge.runner.server.connections)
        assert edge.app.refusals.waiting == 0


async def test_a_copy_holds_no_body_while_it_waits_for_its_refusal(start_edge: Start) -> None:
    edge = await beside(start_edge, limits=NOTHING)
    copy = sign("PUT", "/b/k", headers={"x-amz-copy-source": "/b/other"}).wire()
    waiting = []
    try:
        for number in range(1, 6):
            waiting.append(await edge.connect())
            waiting[-1][1].write(copy)
            await until(partial(lambda wanted: edge.app.refusals.waiting == wanted, number))
    finally:
        for _, writer in waiting:
            writer.close()
