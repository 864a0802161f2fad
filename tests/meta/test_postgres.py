"""What PostgreSQL adds to a metadata engine's duties: outcomes in doubt, locks, limits, versions, rot."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import xxhash

from objstore.errors import Conflict, Corrupt, LimitReached, MetaUnavailable, Overloaded
from objstore.meta import migrations
from objstore.meta.kv import VALUE_SIZE_MAX, Add, DictKv, Transaction, counter, counter_value
from objstore.meta.kv_postgres import PostgresKv, check_url, shown_url
from objstore.meta.merge import decide, plan
from tests import postgres


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as address:
        yield address


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresKv]:
    kv = PostgresKv(url, **options)
    await kv.start()
    try:
        yield kv
    finally:
        await kv.close()


@asynccontextmanager
async def several(url: str, count: int, **options: Any) -> AsyncIterator[list[PostgresKv]]:
    clients = [PostgresKv(url, **options) for _ in range(count)]
    await asyncio.gather(*(kv.start() for kv in clients))
    try:
        yield clients
    finally:
        for kv in clients:
            await kv.close()


class Wire:
    """Between a client and the server: passes everything on, until told otherwise."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.rule: Callable[[bytes], str] = lambda data: "pass"
        self.seen: list[str] = []
        self.held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, url: str) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return url.replace(f":{self.port}/", f":{port}/")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        back = asyncio.create_task(self._back(far_reader, writer))
        self._tasks.add(back)
        try:
            while data := await reader.read(1 << 20):
                rule = self.rule(data)
                if rule != "pass":
                    self.seen.append(rule)
                if rule == "cut before":
                    break
                if rule == "hold":  # Neither goes on nor ends, until the test says so.
                    self.held.append((far_writer, data))
                    back.cancel()
                    await asyncio.sleep(3600)
                if rule == "cut after":
                    back.cancel()
                    far_writer.write(data)
                    await far_writer.drain()
                    await far_reader.read(1 << 20)  # The server has answered: it is done.
                    break
                far_writer.write(data)
                await far_writer.drain()
        except OSError:
            pass
        finally:
            back.cancel()
            writer.transport.abort()
            if rule_is_not_hold(self.seen):
                far_writer.transport.abort()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 20):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


def rule_is_not_hold(seen: list[str]) -> bool:
    return "hold" not in seen


def once(rule: str) -> Callable[[bytes], str]:
    """The rule for the first message that commits; the rest passes."""
    done = False

    def decide_it(data: bytes) -> str:
        nonlocal done
        if not done and b"; COMMIT" in data:
            done = True
            return rule
        return "pass"

    return decide_it


# Outcomes in doubt.


async def test_a_batch_whose_answer_was_lost_is_read_back_and_not_applied_twice(url: str) -> None:
    async with Wire(postgres.shared_server().port) as wire, opened(wire.url(url)) as kv:
        await kv.commit(Transaction(put={b"a": b"1"}))
        wire.rule = once("cut after")
        outcomes = await asyncio.gather(
            kv.commit(Transaction(add={b"c": Add(1)})),
            kv.commit(Transaction(expect={b"a": b"other"}, put={b"a": b"2"})),
            return_exceptions=True,
        )
        assert wire.seen == ["cut after"]
        assert [type(outcome) for outcome in outcomes] == [type(None), Conflict]
        assert counter(await kv.get(b"c")) == 1
        assert kv.stats.read_back == 1
        await kv.commit(Transaction(add={b"c": Add(1)}))
        assert counter(await kv.get(b"c")) == 2


async def test_a_batch_that_never_arrived_is_sent_again(url: str) -> None:
    async with Wire(postgres.shared_server().port) as wire, opened(wire.url(url)) as kv:
        wire.rule = once("cut before")
        await kv.commit(Transaction(add={b"c": Add(1)}))
        assert wire.seen == ["cut before"]
        assert counter(await kv.get(b"c")) == 1
        assert kv.stats.read_back == 0


async def test_a_commit_that_wanders_in_after_its_client_has_moved_on_is_refused(url: str) -> None:
    """A network holds the last message back, then delivers it to a server that still has the transaction."""
    async with Wire(postgres.shared_server().port) as wire, opened(wire.url(url), answer_s=0.5) as kv:
        await kv.commit(Transaction(put={b"x": b"1"}))
        wire.rule = once("hold")
        attempt = asyncio.create_task(kv.commit(Transaction(add={b"c": Add(1)})))
        while not wire.held:
            await asyncio.sleep(0.02)
        async with opened(url) as other:
            while other.stats.connections < 1 or kv.stats.connections < 2:
                await asyncio.sleep(0.02)
            # The old transaction still holds the counter's row. Its message arrives: it must fail, not count.
            far, data = wire.held[0]
            far.write(data)
            await far.drain()
            await attempt
            assert counter(await other.get(b"c")) == 1
        far.transport.abort()


async def test_a_commit_is_given_up_in_time_when_the_server_is_silent(url: str) -> None:
    async with (
        Wire(postgres.shared_server().port) as wire,
        opened(wire.url(url), answer_s=0.5, timeout_s=1.5) as kv,
    ):
        wire.rule = lambda data: "hold"
        with pytest.raises(MetaUnavailable):
            await kv.commit(Transaction(put={b"a": b"1"}))
        for far, _ in wire.held:
            far.transport.abort()


async def test_while_no_server_is_there_commits_are_refused_at_once_and_later_go_on(url: str) -> None:
    async with Wire(postgres.shared_server().port) as wire, opened(wire.url(url), away_s=0.3) as kv:
        wire.rule = lambda data: "cut before"
        with pytest.raises(MetaUnavailable):
            await kv.commit(Transaction(put={b"a": b"1"}))
        assert kv.away
        with pytest.raises(MetaUnavailable):
            await kv.commit(Transaction(put={b"a": b"2"}))
        assert kv.stats.refused_away == 1
        wire.rule = lambda data: "pass"
        async with asyncio.timeout(60):
            while kv.away:
                await asyncio.sleep(0.02)
        await kv.commit(Transaction(put={b"a": b"3"}))
        assert await kv.get(b"a") == b"3"


async def test_reads_are_repeated_when_their_connection_breaks(url: str) -> None:
    async with Wire(postgres.shared_server().port) as wire, opened(wire.url(url)) as kv:
        await kv.commit(Transaction(put={b"a": b"1"}))
        assert await kv.get(b"a") == b"1"
        cut = 0

        def rule(data: bytes) -> str:
            nonlocal cut
            cut += 1
            return "cut before" if cut <= 2 else "pass"

        wire.rule = rule
        assert await kv.get_many([b"a", b"b"]) == [b"1", None]
        assert cut > 2


async def test_a_client_that_keeps_its_id_over_a_restart_uses_no_number_twice(url: str) -> None:
    me = b"i" * 16
    for number in range(1, 4):
        async with opened(url, client_id=me) as kv:
            await kv.commit(Transaction(add={b"c": Add(1)}))
            assert counter(await kv.get(b"c")) == number


async def test_a_server_that_has_forgotten_acknowledged_commits_gets_no_more(url: str) -> None:
    """A standby that nobody waited for was promoted, or yesterday's copy restored."""
    async with opened(url) as kv:
        for number in range(3):
            await kv.commit(Transaction(put={b"a": b"%d" % number}))
        admin = await asyncpg.connect(url)
        await admin.execute("UPDATE objstore.clients SET number = 2")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'objstore %' AND datname = current_database()"
        )
        await admin.close()
        with pytest.raises(MetaUnavailable):
            await kv.commit(Transaction(put={b"a": b"4"}))
        with pytest.raises(MetaUnavailable, match="does not know of commits that were acknowledged"):
            await kv.commit(Transaction(put={b"a": b"5"}))


async def test_a_read_that_comes_in_the_turn_in_which_the_last_reader_ends_is_answered(url: str) -> None:
    async with opened(url, readers=1) as kv:
        await kv.commit(Transaction(put={b"a": b"1"}))
        async with asyncio.timeout(8):  # One that is forgotten is ended by its limit of 10 s.
            for _ in range(60):
                assert await kv.get(b"a") == b"1"


# Locks.


async def test_a_limit_is_exact_however_many_gateways_push_at_a_hot_counter(url: str) -> None:
    async with several(url, 4) as clients:
        outcomes = await asyncio.gather(
            *(
                clients[number % 4].commit(Transaction(add={b"c": Add(1, at_most=150)}))
                for number in range(400)
            ),
            return_exceptions=True,
        )
        assert sum(outcome is None for outcome in outcomes) == 150
        assert sum(isinstance(outcome, LimitReached) for outcome in outcomes) == 250
        assert counter(await clients[0].get(b"c")) == 150


async def test_one_of_many_gateways_makes_a_key_that_all_expect_absent(url: str) -> None:
    async with several(url, 4) as clients:
        for round_number in range(15):
            key = b"o%d" % round_number
            outcomes = await asyncio.gather(
                *(
                    kv.commit(Transaction(expect={key: None}, put={key: b"%d" % number}, add={b"cn": Add(1)}))
                    for number, kv in enumerate(clients)
                ),
                return_exceptions=True,
            )
            won = [number for number, outcome in enumerate(outcomes) if outcome is None]
            assert len(won) == 1, outcomes
            assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome is not None)
            assert await clients[0].get(key) == b"%d" % won[0]
        assert counter(await clients[0].get(b"cn")) == 15


async def test_an_expected_absence_holds_although_the_key_is_not_written(url: str) -> None:
    """Write skew: two gateways, each makes its key only while the other's is absent. Never both."""
    async with several(url, 2) as (one, two):
        for number in range(30):
            a, b = b"oa%d" % number, b"ob%d" % number
            await asyncio.gather(
                one.commit(Transaction(expect={b: None}, put={a: b"1"})),
                two.commit(Transaction(expect={a: None}, put={b: b"1"})),
                return_exceptions=True,
            )
            assert sum(value is not None for value in await one.get_many([a, b])) == 1
        leftovers = [key for key, _ in await one.scan(b"\0", b"\xff", 1_000)]
        assert len(leftovers) == 30  # What only held a place is gone.


async def test_an_expected_value_holds_until_the_commit_although_it_is_not_written(url: str) -> None:
    async with several(url, 2) as (one, two):
        for number in range(30):
            a, b = b"oa%d" % number, b"ob%d" % number
            await one.commit(Transaction(put={a: b"0", b: b"0"}))
            await asyncio.gather(
                one.commit(Transaction(expect={b: b"0"}, put={a: b"1"})),
                two.commit(Transaction(expect={a: b"0"}, put={b: b"1"})),
                return_exceptions=True,
            )
            assert sorted(value or b"" for value in await one.get_many([a, b])) == [b"0", b"1"]


async def test_random_batches_over_the_same_keys_never_wait_in_a_circle(url: str) -> None:
    """Deadlock-free by order: the server counts none, and no batch had to be sent again."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    keys = [b"o%d" % number for number in range(20)] + [b"b%d" % number for number in range(4)]
    async with several(url, 4, lock_s=8.0) as clients:

        async def caller(kv: PostgresKv) -> None:
            for _ in range(40):
                chosen = rng.sample(keys, 6)
                held = dict(zip(chosen, await kv.get_many(chosen), strict=True))
                transaction = Transaction(
                    expect={key: held[key] for key in chosen[:3]},
                    put={key: b"%d" % rng.randrange(9) for key in chosen[2:5]},
                    delete=chosen[5:],
                    add={b"c%d" % number: Add(1) for number in rng.sample(range(4), 2)},
                )
                try:
                    await kv.commit(transaction)
                except Conflict:
                    pass

        await asyncio.gather(*(caller(kv) for kv in clients for _ in range(4)))
        assert sum(kv.stats.retries for kv in clients) == 0
        assert sum(kv.stats.commits for kv in clients) >= 640
    name = url.rpartition("/")[2]
    assert (
        postgres.shared_server().sql(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'")
        == "0"
    )


async def test_a_row_that_others_hold_shared_for_long_is_changed_in_the_end(url: str) -> None:
    """After its lock timeout the batch comes again and takes the gate alone."""
    async with opened(url, lock_s=0.3) as kv:
        await kv.commit(Transaction(put={b"b1": b"old"}))
        holder = await asyncpg.connect(url)
        await holder.execute("BEGIN")
        await holder.execute("SELECT 1 FROM objstore.kv WHERE key = 'b1' FOR SHARE")
        attempt = asyncio.create_task(kv.commit(Transaction(expect={b"b1": b"old"}, put={b"b1": b"new"})))
        while kv.stats.retries == 0:
            await asyncio.sleep(0.02)
        assert not attempt.done()
        await holder.execute("ROLLBACK")
        await holder.close()
        await attempt
        assert kv.stats.alone >= 1
        assert await kv.get(b"b1") == b"new"


async def test_a_record_that_busy_gateways_expect_all_the_time_can_be_changed(url: str) -> None:
    """Their shared locks overlap without end; who changes the record must not wait for an end."""
    async with several(url, 4, lock_s=0.5) as clients:
        await clients[0].commit(Transaction(put={b"b1": b"0"}))
        stop = asyncio.Event()
        done = 0

        async def writer(kv: PostgresKv, number: int) -> None:
            nonlocal done
            at = 0
            while not stop.is_set():
                at += 1
                held = await kv.get(b"b1")
                try:
                    await kv.commit(Transaction(expect={b"b1": held}, put={b"o%d-%d" % (number, at): b"x"}))
                    done += 1
                except Conflict:
                    pass

        writers = [
            asyncio.create_task(writer(kv, 10 * index + number))
            for index, kv in enumerate(clients[:3])
            for number in range(6)
        ]
        try:
            for number in range(5):
                before = done
                while done < before + 30:
                    await asyncio.sleep(0.01)
                await clients[3].commit(
                    Transaction(expect={b"b1": b"%d" % number}, put={b"b1": b"%d" % (number + 1)})
                )
        finally:
            stop.set()
            await asyncio.gather(*writers)
        assert await clients[0].get(b"b1") == b"5"


async def test_batches_that_only_expect_the_same_record_do_not_wait_for_each_other(url: str) -> None:
    async with opened(url) as kv:
        await kv.commit(Transaction(put={b"b1": b"bucket"}))
        holder = await asyncpg.connect(url)
        await holder.execute("BEGIN")
        await holder.execute("SELECT 1 FROM objstore.kv WHERE key = 'b1' FOR SHARE")
        await kv.commit(Transaction(expect={b"b1": b"bucket"}, put={b"o1": b"x"}))
        assert kv.stats.retries == 0
        await holder.close()


# Batches, purely.


async def test_a_merged_batch_decides_as_the_reference_does_one_by_one() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    keys = [b"o%d" % number for number in range(5)]
    counters = [b"c%d" % number for number in range(2)]
    for _ in range(300):
        model = DictKv()
        start = {key: b"%d" % rng.randrange(3) for key in rng.sample(keys, 3)}
        start |= {key: counter_value(rng.randrange(-5, 20)) for key in rng.sample(counters, rng.randrange(3))}
        await model.commit(Transaction(put=start))
        batch = []
        for _ in range(rng.randrange(1, 7)):
            chosen = rng.sample([*keys, *counters], 4)
            batch.append(
                Transaction(
                    expect={key: rng.choice([None, b"0", b"1", start.get(key)]) for key in chosen[:2]},
                    put={
                        key: counter_value(3) if key in counters else b"%d" % rng.randrange(3)
                        for key in chosen[1:2]
                    },
                    delete=chosen[2:3],
                    add={
                        key: Add(rng.randrange(-3, 8), rng.choice([None, 15]))
                        for key in counters
                        if key not in chosen
                    },
                )
            )
        needed = plan(batch)
        named = set(needed.keys)
        assert len(named) == len(needed.keys)
        assert named == {key for one in batch for part in one for key in part}
        assert abs(needed.runs[-1]) == len(needed.keys)
        shared = set()
        first = 0
        for run in needed.runs:
            if run < 0:
                shared.update(needed.keys[first:-run])
            first = abs(run)
        changed, refused = decide(batch, start)
        assert not shared & changed.keys()  # Nothing is written that is only locked shared.
        for index, transaction in enumerate(batch):
            outcome = (await asyncio.gather(model.commit(transaction), return_exceptions=True))[0]
            assert repr(refused.pop(index, None)) == repr(outcome)
        assert refused == {}
        after = {**start, **changed}
        expected = dict(await model.scan(b"\0", b"\xff", 100))
        assert {key: value for key, value in after.items() if value is not None} == expected


def test_the_lock_order_of_two_keys_is_the_same_in_every_batch_and_counters_are_last() -> None:
    rng = random.Random(1)
    keys = [b"b1", b"cx", b"o1", b"o2", b"G1", b"V1", b"L1", b"zz"]
    place: dict[tuple[bytes, bytes], bool] = {}
    for _ in range(200):
        chosen = rng.sample(keys, 5)
        batch = [Transaction(expect={chosen[0]: b"x"}, put={chosen[1]: b"y"}, delete=[chosen[2]]),
                 Transaction(expect={chosen[3]: None}, add={chosen[4]: Add(1)})]  # fmt: skip
        ordered = plan(batch).keys
        for at, key in enumerate(ordered):
            for later in ordered[at + 1 :]:
                assert place.setdefault((key, later), True)
                assert (later, key) not in place
    assert ordered == sorted(ordered, key=lambda key: (key[0] in b"cGLgN", key))


# Bounds, and what is refused.


async def test_more_commits_than_the_queue_takes_are_refused_as_overload(url: str) -> None:
    async with opened(url, queue_count_max=10) as kv:
        outcomes = await asyncio.gather(
            *(kv.commit(Transaction(add={b"c": Add(1)})) for _ in range(30)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 20
        assert counter(await kv.get(b"c")) == 10
        await kv.commit(Transaction(add={b"c": Add(1)}))  # Whatever waited is off the books.


async def test_a_transaction_that_no_engine_takes_is_refused_before_it_is_sent(url: str) -> None:
    async with opened(url) as kv:
        for bad in (
            Transaction(put={b"": b"x"}),
            Transaction(put={b"k" * 2_049: b"x"}),
            Transaction(put={b"k": b"x" * (VALUE_SIZE_MAX + 1)}),
            Transaction(put={b"k": b"x"}, delete=[b"k"]),
        ):
            with pytest.raises(ValueError):
                await kv.commit(bad)
        assert kv.stats.messages == 0


async def test_a_counter_that_would_overflow_refuses_its_transaction_and_no_other(url: str) -> None:
    async with opened(url) as kv:
        outcomes = await asyncio.gather(
            kv.commit(Transaction(add={b"c": Add(1 << 126)})),
            kv.commit(Transaction(add={b"c": Add(1 << 126)})),
            kv.commit(Transaction(put={b"a": b"1"})),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), ValueError, type(None)]


def test_an_address_is_checked_and_shown_without_its_password() -> None:
    for bad in ("mysql://h/db", "postgresql://h", "h/db", ""):
        with pytest.raises(ValueError):
            check_url(bad)
    check_url("postgresql://u@h1:1,h2:2/db?sslmode=require")
    assert shown_url("postgresql://u:secret@h:5/db?password=other") == "postgresql://u@h:5/db"


async def test_a_server_that_acknowledges_what_a_power_cut_takes_is_refused(url: str) -> None:
    server = postgres.shared_server()
    server.sql("ALTER SYSTEM SET fsync = off")
    try:
        server.reload()
        async with asyncio.timeout(60):
            while server.sql("SHOW fsync") != "off":
                await asyncio.sleep(0.02)
        with pytest.raises(MetaUnavailable, match="fsync=off"):
            await PostgresKv(url).start()
    finally:
        server.sql("ALTER SYSTEM RESET fsync")
        server.reload()
        while server.sql("SHOW fsync") != "on":
            await asyncio.sleep(0.02)


async def test_a_batch_that_the_server_can_never_apply_is_refused_and_the_next_one_is_not(url: str) -> None:
    async with opened(url) as kv:
        await kv.commit(Transaction(put={b"a": b"1"}))
        admin = await asyncpg.connect(url)
        await admin.execute("ALTER FUNCTION objstore.apply RENAME TO elsewhere")
        with pytest.raises(MetaUnavailable, match="refuses"):
            await kv.commit(Transaction(put={b"a": b"2"}))
        await admin.execute("ALTER FUNCTION objstore.elsewhere RENAME TO apply")
        await admin.close()
        await kv.commit(Transaction(expect={b"a": b"1"}, put={b"a": b"3"}))
        assert kv.stats.connections == 1


# Rot.


async def test_a_record_that_rots_is_never_served_and_hurts_only_who_needs_it(url: str) -> None:
    async with opened(url) as kv:
        await kv.commit(Transaction(put={b"o1": b"good", b"o2": b"good"}))
        admin = await asyncpg.connect(url)
        await admin.execute("UPDATE objstore.kv SET value = set_byte(value, 0, 120) WHERE key = 'o1'")
        await admin.close()
        with pytest.raises(Corrupt, match="o1"):
            await kv.get(b"o1")
        with pytest.raises(Corrupt, match="o1"):
            await kv.get_many([b"o2", b"o1"])
        with pytest.raises(Corrupt, match="o1"):
            await kv.scan(b"o", b"p", 10)
        assert await kv.get(b"o2") == b"good"
        outcomes = await asyncio.gather(
            kv.commit(Transaction(expect={b"o1": b"good"}, put={b"o3": b"x"})),
            kv.commit(Transaction(expect={b"o2": b"good"}, put={b"o4": b"x"})),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [Corrupt, type(None)]
        assert await kv.get_many([b"o3", b"o4"]) == [None, b"x"]
        await kv.commit(Transaction(put={b"o1": b"new"}))  # Written anew it is well.
        assert await kv.get(b"o1") == b"new"


async def test_records_that_were_exchanged_fail_their_checksums(url: str) -> None:
    async with opened(url) as kv:
        await kv.commit(Transaction(put={b"o1": b"good", b"o2": b"other"}))
        admin = await asyncpg.connect(url)
        await admin.execute(
            "UPDATE objstore.kv SET value = (SELECT value FROM objstore.kv WHERE key = 'o2') WHERE key = 'o1'"
        )
        await admin.close()
        with pytest.raises(Corrupt):
            await kv.get(b"o1")


# Versions.


async def test_many_gateways_that_start_at_once_make_the_tables_once(url: str) -> None:
    async with several(url, 6) as clients:
        await clients[0].commit(Transaction(put={b"a": b"1"}))
        assert await clients[5].get(b"a") == b"1"
    admin = await asyncpg.connect(url)
    done = [
        row["number"] for row in await admin.fetch("SELECT number FROM objstore.migrations ORDER BY number")
    ]
    assert done == [step.number for step in migrations.MIGRATIONS]
    facts = dict(await admin.fetch("SELECT name, value FROM objstore.engine"))
    assert facts == {"engine": "postgres", "format": str(migrations.FORMAT), "least": "1"}
    await admin.close()


def test_a_migration_that_was_released_never_changes() -> None:
    """A database that has seen it will not see it again: what is new is a new step."""
    assert {step.number: xxhash.xxh3_64_hexdigest(step.sql.encode()) for step in migrations.MIGRATIONS} == {
        1: "3507f236d8f18027",
    }


async def test_migrations_are_numbered_without_gaps() -> None:
    assert [step.number for step in migrations.MIGRATIONS] == list(range(1, migrations.FORMAT + 1))
    assert all(1 <= step.least <= step.number for step in migrations.MIGRATIONS)


async def test_a_database_of_a_later_release_is_used_only_if_that_release_says_so(url: str) -> None:
    async with opened(url):
        pass
    admin = await asyncpg.connect(url)
    await admin.execute("UPDATE objstore.engine SET value = '99' WHERE name = 'format'")
    async with opened(url) as kv:  # `least` is ours: a rolling upgrade goes on.
        await kv.commit(Transaction(put={b"a": b"1"}))
    await admin.execute("UPDATE objstore.engine SET value = '99' WHERE name = 'least'")
    with pytest.raises(MetaUnavailable, match="needs a release that knows 99"):
        await PostgresKv(url).start()
    await admin.execute("UPDATE objstore.engine SET value = 'sqlite' WHERE name = 'engine'")
    with pytest.raises(MetaUnavailable, match="sqlite"):
        await PostgresKv(url).start()
    await admin.close()


async def test_a_start_without_a_server_fails_in_time_and_says_where() -> None:
    with pytest.raises(MetaUnavailable, match=r"postgresql://u@127\.0\.0\.1:1/db"):
        await PostgresKv("postgresql://u:secret@127.0.0.1:1/db").start(1.0)


# Cost.


async def test_every_statement_goes_by_the_index_and_a_page_reads_no_more_than_itself(url: str) -> None:
    async with opened(url) as kv:
        for start in range(0, 6_000, 500):
            put = {b"o%06d" % number: b"v" * 40 for number in range(start, start + 500)}
            await kv.commit(Transaction(put=put))
        await kv.get(b"o000001")
        reader = await kv._reader()
        for statement, arguments in (
            (reader.up, (b"o001000", b"p", 100)),
            (reader.down, (b"o", b"o005000", 100)),
            (reader.get, ([b"o000001", b"o000777"],)),
        ):
            found = await statement.explain(*arguments, analyze=True)
            text = json.dumps(found)
            kinds = {node["Node Type"] for node in nodes(found[0]["Plan"])}
            assert kinds <= {"Limit", "Index Scan"}, text
            assert "kv_pkey" in text
            assert max(node["Actual Rows"] for node in nodes(found[0]["Plan"])) <= 100
        reader.connection.terminate()


def nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree.get("Plans", []):
        yield from nodes(child)


async def test_reads_of_one_turn_are_one_statement(url: str) -> None:
    async with opened(url) as kv:
        await kv.commit(Transaction(put={b"k%d" % number: b"%d" % number for number in range(50)}))
        await kv.get(b"k1")
        before = kv.stats.read_statements
        values = await asyncio.gather(*(kv.get(b"k%d" % number) for number in range(50)))
        assert values == [b"%d" % number for number in range(50)]
        assert kv.stats.read_statements == before + 1


async def test_commits_of_one_turn_are_one_batch(url: str) -> None:
    async with opened(url) as kv:
        await kv.commit(Transaction(put={b"a": b"1"}))
        before = kv.stats.messages
        await asyncio.gather(*(kv.commit(Transaction(put={b"k%d" % number: b""})) for number in range(50)))
        assert kv.stats.messages == before + 1
