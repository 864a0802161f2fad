"""Kill -9 at every step of making invoices final: numbers without a gap, no invoice twice, none lost."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from objstore.errors import MetaUnavailable
from objstore.meta.kv import DictKv, Kv
from objstore.meta.kv_postgres import PostgresKv
from objstore.rental import invoices, wallets
from objstore.rental.carried import carry, list_carried
from objstore.rental.invoices import finalise_due, list_documents, list_drafts
from objstore.rental.money import Money
from objstore.rental.sellers import create_seller
from objstore.rental.series import verify_series
from tests import postgres
from tests.meta.process import CommitterProcess
from tests.rental.dying import Dying, MortalKv
from tests.rental.parties import ISSUED_US, SELLER, a_customer, a_draft, line, pay
from tests.seed import SEED
from tests.waiting import until_true

LONG = bool(os.environ.get("OBJSTORE_LONG"))
TENANTS = [f"t{number}" for number in range(7)]
LIMIT_S = 60.0


class Killed(BaseException):
    """No code of the product catches it."""


async def fill(kv: Kv) -> None:
    """A draft of each tenant; one has paid in advance, one carries a credit that is larger than its month."""
    await create_seller(kv, SELLER)
    for tenant in TENANTS:
        await a_customer(kv, tenant)
    await pay(kv, 1, "t2", 50, [])
    await carry(kv, "t3", {"sla": line(-150, kind="credit")}, source="", now_us=1)
    for tenant in TENANTS:
        await a_draft(kv, tenant, [line(100)])


async def check(kv: Kv) -> None:
    """All is as if nobody had died."""
    report = await verify_series(kv, "oran", 2026, "invoice")
    assert report.findings == []
    assert (report.count, report.first, report.last) == (7, "FA-2026-000001", "FA-2026-000007")
    assert await list_drafts(kv) == []
    numbers: list[str] = []
    for tenant in TENANTS:
        (record,) = await list_documents(kv, tenant)
        numbers.append(record.number)
        assert record.prepaid == (50 if tenant == "t2" else 0)
        assert record.total_net == (0 if tenant == "t3" else 100)
    assert sorted(numbers) == [f"FA-2026-{number:06d}" for number in range(1, 8)]
    assert await wallets.balance(kv, "t2") == Money(0, "DZD")
    assert await wallets.verify_wallet(kv, "t2") == []
    assert [one.left for _, one in await list_carried(kv, "t3")] == [-50]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invoices, "BATCH", 3)
    monkeypatch.setattr(invoices, "DRAFTS_AT_ONCE", 4)


async def killed_before(call: Callable[[], Awaitable[object]]) -> None:
    raise Killed


async def killed_behind(call: Callable[[], Awaitable[object]]) -> None:
    await call()
    raise Killed


async def answer_lost(call: Callable[[], Awaitable[object]]) -> None:
    await call()
    raise MetaUnavailable("the answer was lost")


@pytest.mark.parametrize("die", [killed_before, killed_behind, answer_lost])
async def test_whatever_step_is_the_last_one_the_next_run_ends_it(die: Dying) -> None:
    whole = DictKv()
    await fill(whole)
    counting = MortalKv(whole, 0, die)
    assert (await finalise_due(counting, now_us=ISSUED_US)).issued == 7
    await check(whole)
    assert counting.calls > 30
    for last in range(1, counting.calls + 1):
        kv = DictKv()
        await fill(kv)
        with pytest.raises((Killed, MetaUnavailable)):
            await finalise_due(MortalKv(kv, last, die), now_us=ISSUED_US)
        # Killed once more, at a step of the run that follows, by chance; then left alone.
        again = MortalKv(kv, random.Random(SEED + last).randrange(1, 20), die)
        try:
            await finalise_due(again, now_us=ISSUED_US)
        except (Killed, MetaUnavailable):
            pass
        run = await finalise_due(kv, now_us=ISSUED_US)
        assert run.refused == []
        await check(kv)


async def run_process(socket: Path, last: int) -> tuple[int, str]:
    """Exit status and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.rental.dying",
        str(socket),
        str(ISSUED_US),
        str(last),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    async with asyncio.timeout(LIMIT_S):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_real_processes_that_are_killed_at_their_steps_leave_a_whole_series(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    async with CommitterProcess(tmp_path) as committer:
        client = await committer.client()
        await fill(client)
        # Each process goes on where the one before it died: the steps are those of what is left.
        killed = 0
        for _ in range(40 if LONG else 4):
            # The first one has more than twenty steps to go, and so it dies.
            status, said = await run_process(committer.socket, rng.randrange(5, 40 if killed else 20))
            assert status in (0, -signal.SIGKILL), said
            killed += status == -signal.SIGKILL
        assert killed > 0
        status, said = await run_process(committer.socket, 0)
        assert (status, said.endswith("[]\n")) == (0, True), said
        await check(client)
        await client.close()


async def test_a_committer_that_is_killed_under_a_run_loses_no_number_and_gives_none_twice(
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    async with CommitterProcess(tmp_path) as committer:
        client = await committer.client()
        await fill(client)
        for _ in range(10 if LONG else 2):
            last = rng.randrange(10, 35)

            async def die(call: Callable[[], Awaitable[object]]) -> None:
                under_way = asyncio.ensure_future(call())
                await asyncio.sleep(0)
                await committer.kill()
                await committer.start()
                try:
                    await under_way
                except MetaUnavailable:
                    pass
                raise MetaUnavailable("it was killed")

            try:
                await finalise_due(MortalKv(client, last, die), now_us=ISSUED_US)
            except MetaUnavailable:
                continue

        async def ends() -> bool:
            try:
                return (await finalise_due(client, now_us=ISSUED_US)).refused == []
            except MetaUnavailable:
                return False  # It has not found the committer again yet.

        await until_true(ends)
        await check(client)
        await client.close()


async def test_runs_side_by_side_give_every_draft_one_number(tmp_path: Path) -> None:
    async with CommitterProcess(tmp_path) as committer:
        clients = [await committer.client() for _ in range(3)]
        await fill(clients[0])
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(finalise_due(client, now_us=ISSUED_US))
        await check(clients[0])
        for client in clients:
            await client.close()


async def test_gateways_that_share_postgresql_give_every_draft_one_number() -> None:
    with postgres.database() as url:
        engines = [PostgresKv(url) for _ in range(3)]
        for engine in engines:
            await engine.start()
        await fill(engines[0])
        async with asyncio.TaskGroup() as group:
            for engine in engines:
                group.create_task(finalise_due(engine, now_us=ISSUED_US))
        await check(engines[0])
        for engine in engines:
            await engine.close()
