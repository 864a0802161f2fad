"""What every metadata engine does: one suite for the reference, LMDB with its committer, and PostgreSQL."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from objstore.clock import SystemClock
from objstore.errors import Conflict, LimitReached
from objstore.meta.client import MetaClient
from objstore.meta.committer import run_committer
from objstore.meta.kv import Add, DictKv, Kv, Transaction, Versioned, counter, counter_value, prefix_end
from objstore.meta.kv_postgres import PostgresKv
from tests import postgres
from tests.meta.directory_disk import open_disks
from tests.meta.process import CLUSTER, COPIES, state_directories

Engine = Callable[[Path], AbstractAsyncContextManager[Kv]]


@asynccontextmanager
async def dict_engine(path: Path) -> AsyncIterator[Kv]:
    yield DictKv()


@asynccontextmanager
async def lmdb_engine(path: Path) -> AsyncIterator[Kv]:
    """The committer in this process: the same code, quicker to start."""
    path.mkdir()
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(
        run_committer(
            socket_path=path / "s",
            disks=open_disks(path),
            copies=COPIES,
            cluster=CLUSTER,
            state_directories=state_directories(path),
            ready=ready.set,
            stop=stop,
            clock=SystemClock(),
        )
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    if task.done():
        task.result()
    client = MetaClient(path / "s")
    await client.start()
    try:
        yield client
    finally:
        await client.close()
        stop.set()
        await asyncio.wait_for(task, 20)


@asynccontextmanager
async def postgres_engine(path: Path) -> AsyncIterator[Kv]:
    with postgres.database() as url:
        kv = PostgresKv(url)
        await kv.start()
        try:
            yield kv
        finally:
            await kv.close()


ENGINES: dict[str, Engine] = {
    "dict": dict_engine,
    "lmdb": lmdb_engine,
    "postgres": postgres_engine,
}  # A new engine adds one line here and inherits every test below.


@pytest.fixture(params=ENGINES)
async def kv(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kv]:
    async with ENGINES[request.param](tmp_path / "kv") as engine:
        yield engine


async def put(kv: Kv, **values: bytes) -> None:
    await kv.commit(Transaction(put={name.encode(): value for name, value in values.items()}))


async def everything(kv: Kv) -> list[tuple[bytes, bytes]]:
    return await kv.scan(b"\x00", b"\xff" * 3_000, 1 << 30)


async def test_a_new_store_is_empty(kv: Kv) -> None:
    assert await everything(kv) == []
    assert await kv.get(b"a") is None


async def test_an_engine_with_a_version_shows_another_one_after_every_commit(kv: Kv) -> None:
    if not isinstance(kv, Versioned):
        assert isinstance(kv, DictKv | PostgresKv)  # These have none; a new engine says so here.
        return
    seen = [kv.version()]
    for number in range(20):
        assert kv.version() == seen[-1]
        await put(kv, a=b"%d" % number)
        seen.append(kv.version())
    assert len(set(seen)) == 21


async def test_a_read_at_a_version_is_refused_after_any_commit(kv: Kv) -> None:
    if not isinstance(kv, Versioned):
        assert isinstance(kv, DictKv | PostgresKv)
        return
    long = b"a" * 1_000  # Beyond what the engine keeps in one key.
    before = kv.version()
    await kv.commit(Transaction(put={b"a": b"1", long: b"2"}))
    for key in (b"a", long, b"never"):
        assert kv.get_at(key, before) == (False, None)
        assert kv.get_at(key, kv.version()) == (True, await kv.get(key))
    now = kv.version()
    await kv.commit(Transaction(delete=[b"a"]))
    assert kv.get_at(long, now) == (False, None), "it is the same, and yet another view"
    assert kv.get_at(b"a", kv.version()) == (True, None)
    serial, number = kv.version()
    assert kv.get_at(long, (serial + 1, number)) == (False, None), "another state"


async def test_the_last_put_wins(kv: Kv) -> None:
    await put(kv, a=b"old")
    await put(kv, a=b"new")
    assert await kv.get(b"a") == b"new"
    assert await everything(kv) == [(b"a", b"new")]


async def test_a_deleted_key_is_absent_and_deleting_what_is_absent_is_no_error(kv: Kv) -> None:
    await put(kv, a=b"1")
    await kv.commit(Transaction(delete=[b"a", b"never"]))
    assert await kv.get(b"a") is None
    assert await everything(kv) == []


async def test_an_empty_value_is_a_value(kv: Kv) -> None:
    await put(kv, a=b"")
    assert await kv.get(b"a") == b""
    with pytest.raises(Conflict):
        await kv.commit(Transaction(expect={b"a": None}, put={b"a": b"x"}))


async def test_get_many_answers_in_the_order_of_the_question(kv: Kv) -> None:
    await put(kv, a=b"1", b=b"2")
    assert await kv.get_many([b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
    assert await kv.get_many([]) == []


async def test_a_transaction_whose_expectation_fails_changes_nothing_and_names_the_key(kv: Kv) -> None:
    await put(kv, a=b"1", c=counter_value(5))
    with pytest.raises(Conflict) as caught:
        await kv.commit(
            Transaction(
                expect={b"a": b"1", b"b": b"is absent"},
                put={b"x": b"1"},
                delete=[b"a"],
                add={b"c": Add(1)},
            )
        )
    assert caught.value.key == b"b"
    assert await everything(kv) == [(b"a", b"1"), (b"c", counter_value(5))]


async def test_expecting_absence_lets_one_of_many_win(kv: Kv) -> None:
    outcomes = await asyncio.gather(
        *(kv.commit(Transaction(expect={b"a": None}, put={b"a": b"%d" % number})) for number in range(20)),
        return_exceptions=True,
    )
    won = [number for number, outcome in enumerate(outcomes) if outcome is None]
    assert len(won) == 1
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome is not None)
    assert await kv.get(b"a") == b"%d" % won[0]


async def test_counters_start_at_zero_add_up_and_may_be_negative(kv: Kv) -> None:
    await asyncio.gather(*(kv.commit(Transaction(add={b"c": Add(3)})) for _ in range(50)))
    assert counter(await kv.get(b"c")) == 150
    await kv.commit(Transaction(add={b"c": Add(-151)}))
    assert counter(await kv.get(b"c")) == -1


async def test_a_limit_is_exact_however_many_push_at_once(kv: Kv) -> None:
    outcomes = await asyncio.gather(
        *(kv.commit(Transaction(add={b"c": Add(3, at_most=100)})) for _ in range(50)),
        return_exceptions=True,
    )
    assert sum(outcome is None for outcome in outcomes) == 33
    assert counter(await kv.get(b"c")) == 99
    refused = next(outcome for outcome in outcomes if outcome is not None)
    assert isinstance(refused, LimitReached)
    assert (refused.key, refused.value, refused.at_most) == (b"c", 99, 100)


async def test_a_counter_above_its_limit_may_still_go_down(kv: Kv) -> None:
    await kv.commit(Transaction(add={b"c": Add(100)}))
    await kv.commit(Transaction(add={b"c": Add(-10, at_most=5)}))
    assert counter(await kv.get(b"c")) == 90


async def test_counters_outgrow_64_bits(kv: Kv) -> None:
    await kv.commit(Transaction(add={b"c": Add(1 << 80, at_most=1 << 81)}))
    await kv.commit(Transaction(add={b"c": Add(1 << 63)}))
    assert counter(await kv.get(b"c")) == (1 << 80) + (1 << 63)
    with pytest.raises(LimitReached) as caught:
        await kv.commit(Transaction(add={b"c": Add(1 << 81, at_most=1 << 81)}))
    assert caught.value.value == (1 << 80) + (1 << 63)
    assert caught.value.at_most == 1 << 81


async def test_a_refused_transaction_does_not_touch_its_neighbours_in_the_same_message(kv: Kv) -> None:
    await put(kv, a=b"1")
    outcomes = await asyncio.gather(
        kv.commit(Transaction(put={b"x": b"1"})),
        kv.commit(Transaction(expect={b"a": b"2"}, put={b"y": b"1"})),
        kv.commit(Transaction(expect={b"x": b"1"}, put={b"z": b"sees its predecessor"})),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), Conflict, type(None)]
    assert [key for key, _ in await everything(kv)] == [b"a", b"x", b"z"]


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_scan_is_in_byte_order_within_its_bounds_and_its_limit(kv: Kv, reverse: bool) -> None:
    keys = [b"\x01", b"a", b"a\x00", b"a\x00\xff", b"aa", b"b", b"b\xff\xff", b"c"]
    await kv.commit(Transaction(put=dict.fromkeys(keys, b"v")))

    async def scanned(start: bytes, end: bytes, limit: int) -> list[bytes]:
        return [key for key, _ in await kv.scan(start, end, limit, reverse=reverse)]

    def wanted(start: bytes, end: bytes, limit: int) -> list[bytes]:
        chosen = [key for key in keys if start <= key < end]
        return (chosen[::-1] if reverse else chosen)[:limit]

    for start in [b"\x00", b"a", b"a\x00", b"a\x00\xfe", b"b", b"c", b"d"]:
        for end in [b"\x01", b"a\x00", b"b", b"b\x00", b"c", b"d", b"\xff"]:
            for limit in [0, 1, 3, 100]:
                assert await scanned(start, end, limit) == wanted(start, end, limit), (start, end, limit)


async def test_a_scan_over_more_than_one_chunk_finds_every_key_once(kv: Kv) -> None:
    keys = [b"k%05d" % number for number in range(3_500)]
    for start in range(0, len(keys), 500):
        await kv.commit(Transaction(put=dict.fromkeys(keys[start : start + 500], b"v")))
    found = await kv.scan(b"k", prefix_end(b"k"), 10_000)
    assert [key for key, _ in found] == keys
    backward = await kv.scan(b"k", prefix_end(b"k"), 10_000, reverse=True)
    assert backward == found[::-1]
    assert len(await kv.scan(b"k", prefix_end(b"k"), 2_500)) == 2_500


async def test_keys_of_any_length_keep_their_place(kv: Kv) -> None:
    long = b"p" * 508
    keys = sorted(
        long[:cut] + tail
        for cut in (1, 500, 508)
        for tail in (b"", b"a", b"aa", b"ab", b"abc", b"b", b"\xff", b"a" * 600, b"a" * 1_200, b"b" * 1_500)
    )
    await kv.commit(Transaction(put={key: b"v%d" % len(key) for key in keys}))
    assert await everything(kv) == [(key, b"v%d" % len(key)) for key in keys]
    assert await kv.scan(keys[5], keys[20], 100, reverse=True) == [
        (key, b"v%d" % len(key)) for key in keys[5:20][::-1]
    ]
    await kv.commit(Transaction(delete=keys[::2], expect={keys[1]: b"v%d" % len(keys[1])}))
    assert [key for key, _ in await everything(kv)] == keys[1::2]


async def test_random_transactions_leave_every_engine_like_the_reference(kv: Kv) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = DictKv()
    keys = [b"k%d" % number for number in range(8)] + [b"l" * size for size in (509, 510, 511, 512, 1_500)]
    counters = [b"c1", b"c2"]

    async def outcome(attempt: Awaitable[None]) -> str:
        try:
            await attempt
        except (Conflict, LimitReached) as failure:
            return repr(failure)
        return "done"

    for number in range(300):
        chosen = rng.sample(keys, rng.randrange(0, 5))
        held = await model.get_many(chosen)
        transaction = Transaction(
            expect={
                key: value if rng.random() < 0.9 else b"other"
                for key, value in zip(chosen, held, strict=True)
            },
            put=dict.fromkeys(chosen[:2], b"%d" % number),
            delete=chosen[2:],
            add={
                key: Add(rng.randrange(-5, 9), rng.choice([None, 40])) for key in counters[: rng.randrange(3)]
            },
        )
        assert await outcome(kv.commit(transaction)) == await outcome(model.commit(transaction))
    assert await everything(kv) == await everything(model)
