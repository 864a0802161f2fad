"""PostgreSQL under kills: linearizable key by key, nothing lost and nothing applied twice at a failover."""

import asyncio
import os
import random
import signal
from pathlib import Path

import asyncpg
import pytest

from objstore.errors import MetaUnavailable, Unavailable
from objstore.meta.kv import Add, Transaction, counter, prefix_end
from objstore.meta.kv_postgres import PostgresKv
from tests import postgres
from tests.linearizability import CAS, DONE, REFUSED, UNKNOWN, violations
from tests.meta import registers
from tests.waiting import until

LONG = bool(os.environ.get("OBJSTORE_LONG"))

KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE 'objstore %' ORDER BY random() LIMIT 1"
)
BACKEND = (
    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'objstore write%' ORDER BY random() LIMIT 1"
)


@pytest.mark.timeout(7_000 if LONG else 240)
async def test_registers_are_linearizable_while_connections_backends_and_clients_are_killed(
    tmp_path: Path,
) -> None:
    """Connections are terminated all the time, the server crashes and recovers twice, a client dies."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    clients, count, keys = (4, 36_000, 500) if LONG else (4, 900, 24)
    server = postgres.PostgresServer()
    try:
        server.start()
        outputs = [tmp_path / f"client{number}" for number in range(clients)]
        running = [
            # The first is killed, so it has more to do than it lives for.
            await registers.spawn(
                path, server.url(), f"c{number}", seed + number, count if number else registers.ENDLESS, keys
            )
            for number, path in enumerate(outputs)
        ]
        crashes = 20 if LONG else 2
        killed = False
        step = 0
        while any(process.returncode is None for process in running):
            step += 1
            await asyncio.sleep(rng.uniform(0.02, 0.2))
            lines = sum(path.stat().st_size for path in outputs)
            try:
                admin = await asyncpg.connect(server.url(), timeout=5)
                try:
                    await admin.execute(KILL)
                    if crashes and step % 10 == 0 and lines > 20_000:
                        crashes -= 1
                        pid = await admin.fetchval(BACKEND)
                        if pid:
                            os.kill(pid, signal.SIGKILL)  # All of the server restarts after that.
                finally:
                    admin.terminate()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass  # It recovers.
            if not killed and step > 12 and lines > 20_000:
                killed = True
                running[0].kill()
        codes = [process.returncode for process in running]
        assert codes == [-signal.SIGKILL] + [0] * (clients - 1), codes
        history = registers.histories([path.read_bytes() for path in outputs])
        outcomes = {name: sum(one.outcome == name for one in history) for name in (DONE, REFUSED, UNKNOWN)}
        print(f"{len(history)} operations, {outcomes}, {step} kills")
        assert outcomes[DONE] > count
        assert any(one.kind == CAS and one.outcome == DONE for one in history)
        assert violations(history) == []
    finally:
        server.remove()


@pytest.mark.timeout(240)
async def test_a_primary_lost_during_commits_takes_no_acknowledged_one_along_and_doubles_none() -> None:
    """A synchronous standby takes over; each commit puts a key of its own and adds to a counter."""
    primary = postgres.PostgresServer({"synchronous_commit": "on"})
    standby: postgres.PostgresServer | None = None
    clients: list[PostgresKv] = []
    try:
        primary.start()
        standby = postgres.PostgresServer(standby_of=primary)
        standby.start()
        primary.configure(f"synchronous_standby_names = '{standby.name}'")
        primary.reload()
        await until(lambda: primary.sql("SELECT sync_state FROM pg_stat_replication") == "sync")

        acknowledged: list[bytes] = []
        doubtful: set[bytes] = set()
        clients = [PostgresKv(primary.url("postgres", standby), timeout_s=60, away_s=60) for _ in range(3)]
        for kv in clients:
            await kv.start()
        stop = asyncio.Event()

        async def caller(kv: PostgresKv, client: int, number: int) -> None:
            at = 0
            while not stop.is_set():
                at += 1
                key = b"k%d-%d-%d" % (client, number, at)
                try:
                    await kv.commit(
                        Transaction(put={key: b"v"}, add={b"c%d" % client: Add(1), b"call": Add(1)})
                    )
                    acknowledged.append(key)
                except MetaUnavailable:
                    doubtful.add(key)

        callers = [
            asyncio.create_task(caller(kv, client, number))
            for client, kv in enumerate(clients)
            for number in range(8)
        ]
        while len(acknowledged) < 300:
            await asyncio.sleep(0.05)
        primary.kill()
        before = len(acknowledged)
        await asyncio.to_thread(standby.promote)
        while len(acknowledged) < before + 300:
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*callers)

        reader = PostgresKv(standby.url())
        clients.append(reader)
        await reader.start()
        found = {key for key, _ in await reader.scan(b"k", prefix_end(b"k"), 1 << 20)}
        assert not set(acknowledged) - found, "acknowledged, and lost"
        assert found <= set(acknowledged) | doubtful
        for client in range(3):
            mine = sum(key.startswith(b"k%d-" % client) for key in found)
            assert counter(await reader.get(b"c%d" % client)) == mine, "applied twice, or half"
        assert counter(await reader.get(b"call")) == len(found)
        read_back = sum(kv.stats.read_back for kv in clients)
        print(f"{before} before, {len(acknowledged)} in all, {len(doubtful)} doubtful, {read_back} read back")
        assert sum(kv.stats.connections for kv in clients[:3]) >= 6  # Each has moved over.
    finally:
        for kv in clients:
            await kv.close()
        primary.remove()
        if standby is not None:
            standby.remove()


async def commits_wait(server: postgres.PostgresServer) -> None:
    """Until a commit waits for the standby: the setting is in force when the checkpointer has read it."""
    probe, admin = [await asyncpg.connect(server.url()) for _ in range(2)]
    waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'"
    waited = False
    async with asyncio.timeout(60):
        while not waited:
            write = asyncio.ensure_future(probe.execute("CREATE TABLE probe (); DROP TABLE probe"))
            while not write.done():
                waited = waited or bool(await admin.fetch(waiting, probe.get_server_pid()))
                await asyncio.sleep(0.02)
            await write
    await probe.close()
    await admin.close()


@pytest.mark.timeout(240)
async def test_a_commit_that_the_standby_does_not_have_is_never_acknowledged() -> None:
    """The standby is gone: the server would wait for good, and tells a cancelled waiter that all is well."""
    primary = postgres.PostgresServer()
    kv: PostgresKv | None = None
    try:
        primary.start()
        kv = PostgresKv(primary.url(), timeout_s=4, answer_s=1.5)
        await kv.start()
        await kv.commit(Transaction(put={b"a": b"1"}))
        primary.configure("synchronous_standby_names = 'nobody'")
        primary.reload()
        await commits_wait(primary)
        # Somebody cancels whatever waits: the server says COMMIT, with a warning.
        attempt = asyncio.create_task(kv.commit(Transaction(put={b"a": b"2"})))
        admin = await asyncpg.connect(primary.url())
        cancelled = 0
        while not attempt.done():
            cancelled += len(
                await admin.fetch(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                )
            )
            await asyncio.sleep(0.05)
        await admin.close()
        assert cancelled > 0
        with pytest.raises(MetaUnavailable):
            attempt.result()
        # And nobody does: the wait has an end.
        with pytest.raises(Unavailable):
            await kv.commit(Transaction(put={b"a": b"3"}))
        primary.configure("synchronous_standby_names = ''")
        primary.reload()
        async with asyncio.timeout(30):
            while True:  # All is well again by itself.
                try:
                    await kv.commit(Transaction(put={b"b": b"1"}))
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
    finally:
        if kv is not None:
            await kv.close()
        primary.remove()
