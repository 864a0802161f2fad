"""What a store says of itself while disks are away: at once, and without reading every record each time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from objstore.blobs.absence import Shortage
from objstore.blobs.volumes import Intent, Lane
from objstore.errors import MetaUnavailable
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import repair_key
from objstore.node.disk import DiskState
from objstore.objects.ledger import MetaLedger
from objstore.processes import outlook
from objstore.processes.admin_port import public_words
from objstore.processes.doctor import service
from objstore.processes.outlook import Counts, Outlook, Outlooks, health
from objstore.processes.volumes import listed
from objstore.upkeep.context import named

READY = {"ready": True, "status": "ready", "workers": 2}


def counts(*, disks: int = 8, there: int = 8, healthy: int = 8, fenced: bool = True) -> Counts:
    return Counts(disks=disks, there=there, healthy=healthy, m=2, fenced=fenced)


class Time:
    """Moves only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class Store:
    """Eight disks, each on a node of its own, and volumes 1 and 2 of 4+2 on the first and last six."""

    async def start(self) -> "Store":
        self.kv = DictKv()
        self.ledger = MetaLedger(self.kv)
        self.away: set[int] = set()
        self.looks = 0  # At volumes' records.
        self.time = Time()
        disks = {}
        for number in range(1, 9):
            await self.ledger.reserve_disk(uuid=bytes([number]) * 16, path="/d", reason="", size=1_000)
            await self.ledger.set_disk_state(number, "healthy")
            disks[number] = SimpleNamespace(number=number, state=DiskState.HEALTHY)
        for places in ([1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8]):
            record, _ = await self.ledger.create(
                k=4, m=2, disks=places, lane=Lane.SMALL, writer=bytes(16), policy=""
            )
            await self.ledger.seal(record.id, 100)
        self.parts: Any = SimpleNamespace(
            disks=disks,
            opener=SimpleNamespace(is_away=self.away.__contains__),
            store=SimpleNamespace(ledger=self),
        )
        context: Any = SimpleNamespace(ledger=self.ledger, kv=self.kv)
        self.context = context
        self.outlooks = Outlooks(self.parts, context, self.time)  # type: ignore[arg-type]
        return self

    async def disks(self) -> Any:
        return await self.ledger.disks()

    async def lengths(self, volumes: list[int]) -> Any:
        return await self.ledger.lengths(volumes)

    async def volumes(self, after: int) -> Any:
        self.looks += after == 0
        return await self.ledger.volumes(after)

    async def now(self) -> Outlook:
        """Long after the last look."""
        self.time.now_s += outlook.REST_MAX_S
        return await self.outlooks.now()


async def test_a_volume_cannot_be_read_from_the_moment_at_which_more_than_m_of_its_disks_are_away() -> None:
    store = await Store().start()
    assert (await store.now()).words == ""
    store.away |= {1, 2}
    assert (await store.now()).words == ""
    store.away.add(3)
    found = await store.now()
    assert (found.count, found.first, found.away) == (1, (1,), (1, 2, 3))
    assert found.words == (
        "1 volumes cannot be read now (1): up to 3 of their fragment files are away or damaged, and they can"
        " do without 2"
    )
    store.away |= {4, 5}
    assert (await store.now()).first == (1, 2)
    store.away.clear()
    assert (await store.now()).words == ""


async def test_what_is_to_be_repaired_counts_beside_what_is_away() -> None:
    store = await Store().start()
    store.away |= {7, 8}
    assert (await store.now()).count == 0
    await store.kv.commit(Transaction(put={repair_key(2, 0): b""}))
    assert (await store.ledger.intents())[0] == Intent(2, 0)
    assert (await store.now()).first == (2,)


async def test_records_are_read_again_only_when_something_has_changed_or_cannot_be_read() -> None:
    store = await Store().start()
    for _ in range(3):
        await store.now()
    assert store.looks == 1
    store.away |= {1, 2}
    await store.now()
    await store.now()
    assert store.looks == 2
    store.away.add(3)
    await store.now()
    await store.now()  # Repair may have moved what was away.
    assert store.looks == 4


async def test_a_look_that_took_long_is_followed_by_a_rest_and_by_a_short_one_if_there_is_news() -> None:
    store = await Store().start()
    volumes = store.volumes

    async def slow(after: int) -> Any:
        store.time.now_s += 1.0
        return await volumes(after)

    store.volumes = slow  # type: ignore[method-assign]
    store.away |= {1, 2, 3}
    assert (await store.outlooks.now()).count == 1
    took_s = store.time.now_s
    store.time.now_s += took_s * (outlook.REST - 1)
    assert (await store.outlooks.now()).count == 1
    assert store.looks == 1
    store.away |= {4, 5}
    assert (await store.outlooks.now()).count == 2


async def test_a_long_look_is_shared_and_who_asks_meanwhile_hears_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlook, "PATIENCE_S", 0.0)
    store = await Store().start()
    await store.now()
    goes_on, volumes = asyncio.Event(), store.volumes

    async def slow(after: int) -> Any:
        found = await volumes(after)
        await goes_on.wait()
        return found

    monkeypatch.setattr(store, "volumes", slow)
    store.away |= {1, 2, 3}
    assert [(await store.now()).count for _ in range(3)] == [0, 0, 0]
    assert store.looks == 2
    goes_on.set()
    monkeypatch.setattr(outlook, "PATIENCE_S", 60.0)
    assert (await store.now()).count == 1
    assert store.looks == 2


async def test_a_look_that_metadata_refuses_is_told_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = await Store().start()

    async def refused(after: int) -> Any:
        raise MetaUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "volumes", refused)
        with pytest.raises(MetaUnavailable):
            await store.now()
    assert (await store.now()).count == 0


async def test_after_a_look_that_failed_there_is_no_rest_and_what_was_found_before_it_is_told_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = await Store().start()
    assert (await store.now()).words == ""
    store.away |= {1, 2, 3}
    volumes = store.volumes

    async def refused(after: int) -> Any:
        store.time.now_s += 5.0
        raise MetaUnavailable("away")

    store.time.now_s += outlook.REST_MAX_S
    monkeypatch.setattr(store, "volumes", refused)
    for _ in range(2):
        with pytest.raises(MetaUnavailable):
            await store.outlooks.now()
    monkeypatch.setattr(store, "volumes", volumes)
    assert (await store.outlooks.now()).count == 1


@pytest.mark.parametrize("failed", [False, True])
async def test_while_nothing_can_be_told_who_asks_hears_so_within_a_limit(
    failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await Store().start()
    goes_on, volumes = asyncio.Event(), store.volumes

    async def refused(after: int) -> Any:
        raise MetaUnavailable("away")

    async def slow(after: int) -> Any:
        await goes_on.wait()
        return await volumes(after)

    if failed:
        await store.now()
        store.away.add(1)
        monkeypatch.setattr(store, "volumes", refused)
        with pytest.raises(MetaUnavailable):
            await store.now()
    monkeypatch.setattr(store, "volumes", slow)
    monkeypatch.setattr(outlook, "FIRST_S", 0.0)
    found = await store.now()
    assert not found.known
    told = health(found, counts(), READY)
    assert (told["writable"], told["readable"], told["unreadable_volumes"]) == (True, False, None)
    assert "not known yet" in told["status"]
    [reads, _] = service(found, counts())
    assert (reads["level"], reads["finding"]) == ("warning", found.words)
    goes_on.set()
    monkeypatch.setattr(outlook, "FIRST_S", 60.0)
    assert (await store.now()).known
    assert health(await store.now(), counts(), READY)["readable"]


async def test_the_list_of_what_is_damaged_has_what_cannot_be_read_and_says_why() -> None:
    store = await Store().start()
    store.away |= {1, 2}

    async def no_damage() -> Any:
        return []

    services: Any = SimpleNamespace(damages=no_damage, context=store.context)
    assert await listed(store.parts, services, damaged=True) == []
    assert [(row["spare"], row["away"]) for row in await listed(store.parts, services, damaged=False)] == [
        (0, 2),
        (2, 0),
    ]
    store.away.add(4)
    [row] = await listed(store.parts, services, damaged=True)
    assert (row["volume"], row["spare"], row["away"], row["damaged"]) == (1, -1, 3, 0)
    assert row["reason"] == "3 files on disks that are away"


def test_health_says_what_does_not_go_and_why() -> None:
    fine, short = Outlook(), Outlook().adding([Shortage(7, 3, 2)])
    assert health(fine, counts(), READY)["status"] == "ok"

    found = health(short, counts(there=5, healthy=5), READY)
    assert (found["writable"], found["readable"], found["unreadable_volumes"]) == (True, False, 1)
    assert found["status"] == short.words

    found = health(fine, counts(there=4, healthy=4), READY)
    assert (found["writable"], found["readable"]) == (False, True)
    assert found["status"] == "no commits: 4 of 8 disks are there, and more than half are needed"
    assert health(fine, counts(there=4, healthy=4, fenced=False), READY)["writable"]

    found = health(fine, counts(healthy=2), READY)
    assert (found["writable"], found["readable"]) == (False, True)
    assert found["status"] == "no writes: 2 of 8 disks take them, and 3 are needed"

    away = {"ready": False, "status": "the committer is away: reads only", "workers": 2}
    assert (health(fine, counts(), away)["writable"], health(fine, counts(), away)["readable"]) == (
        False,
        True,
    )
    idle = {"ready": False, "status": "no worker is ready", "workers": 0}
    assert (health(fine, counts(), idle)["writable"], health(fine, counts(), idle)["readable"]) == (
        False,
        False,
    )


def test_why_a_process_is_away_is_told_to_anybody_unless_it_is_a_bug_that_may_name_paths() -> None:
    assert public_words({"words": "too few disks", "crashed": False}) == "too few disks"
    assert public_words({"words": "", "crashed": False}) == public_words({}) == ""
    bug = public_words({"words": "OSError: /var/lib/objstore", "crashed": True})
    assert bug == "it ended with an error that operators see in objstore status"


def test_doctor_names_the_disks_that_must_come_back() -> None:
    assert [one["level"] for one in service(Outlook(away=(1,)), counts())] == ["ok", "ok"]
    short = Outlook(away=(1, 2, 3)).adding([Shortage(7, 3, 2)])
    reads, writes = service(short, counts(there=4, healthy=4))
    assert (reads["level"], reads["finding"]) == ("problem", short.words)
    assert reads["remedy"] == "bring back disks 1, 2, 3; objstore volume list --damaged"
    assert (writes["level"], writes["finding"][:11]) == ("problem", "no commits:")


def test_of_many_volumes_the_first_are_named_and_the_worst_counts() -> None:
    found = Outlook()
    for begin in (0, 30):
        found = found.adding(Shortage(begin + volume, 3 + (volume == 29), 2) for volume in range(30))
    assert (found.count, found.files, found.m) == (60, 4, 2)
    assert found.first == tuple(range(20))
    assert named(found.first, found.count).endswith("18, 19 and 40 more")
    assert f"({named(range(20), 60)})" in found.words
    assert (named("abc", 3, 2), named("ab", 2, 2), named("", 0)) == ("a, b and 1 more", "a, b", "")
