"""Storage nodes emptied, used again and removed, over metadata alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from objstore.admin.app import Problem
from objstore.blobs.volumes import Lane
from objstore.errors import BadArgument
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import MemberRecord, encode, member_key
from objstore.objects.ledger import MetaLedger
from objstore.processes.disks import DiskSet
from objstore.processes.nodes import NodeSet
from tests.processes.test_disk_set import Line

NAMES = ("a", "b", "c", "d")


def id_of(name: str) -> bytes:
    return name.encode() * 16


class Cluster:
    """Four nodes of two disks each (a: 1 and 2, b: 3 and 4, ...), and one sealed volume on six of them."""

    async def start(self) -> "Cluster":
        self.kv = DictKv()
        self.ledger = MetaLedger(self.kv)
        for name in NAMES:
            member = MemberRecord(role="node", name=name, state="joined", addresses=[f"{name}:9003"])
            await self.kv.commit(Transaction(put={member_key(id_of(name)): encode(member)}))
            for _ in range(2):
                number = await self.ledger.reserve_disk(
                    uuid=id_of(name), path="/d", reason="", node=id_of(name), size=1_000
                )
                await self.ledger.set_disk_state(number, "healthy")
        record, _ = await self.ledger.create(
            k=4, m=2, disks=[1, 2, 3, 4, 5, 7], lane=Lane.SMALL, writer=bytes(16), policy=""
        )
        self.record = await self.ledger.seal(record.id, 100)
        self.removed: list[tuple[str, bool]] = []
        parts: Any = SimpleNamespace(
            store=SimpleNamespace(ledger=self.ledger),
            disks={},
            spec=SimpleNamespace(cluster=SimpleNamespace(codec=(4, 2))),
        )
        self.disks = DiskSet(parts, Line())  # type: ignore[arg-type]
        self.nodes = NodeSet(parts, self.disks, self, self, self._remove)  # type: ignore[arg-type]
        return self

    async def facts(self) -> Any:
        """As of Stopping."""
        return SimpleNamespace(records=await self.ledger.volumes(), away=set(), damaged={})

    async def find(self, text: str) -> tuple[bytes, MemberRecord]:
        """As of Members."""
        for id_, member in (await self.ledger.members()).items():
            if member.name == text:
                return id_, member
        raise BadArgument(f"there is no member {text}", name="member")

    async def _remove(self, id_: str, lost: bool) -> dict[str, Any]:
        self.removed.append((id_, lost))
        return {"name": bytes.fromhex(id_)[:1].decode(), "state": "removed"}

    async def states(self) -> dict[int, str]:
        return {number: disk.state for number, disk in (await self.ledger.disks()).items()}

    async def move(self, file: int, disk: int) -> None:
        self.record = await self.ledger.repaired(self.record, file, disk)


async def test_a_drain_is_a_state_of_the_nodes_disks_and_shows_what_is_left() -> None:
    cluster = await Cluster().start()
    nodes = {row["name"]: row for row in await cluster.nodes.listed()}
    assert {name: row["state"] for name, row in nodes.items()} == dict.fromkeys(NAMES, "joined")
    assert [nodes[name]["files"] for name in NAMES] == [2, 2, 1, 1]
    assert nodes["a"]["bytes"] == 200
    found = await cluster.nodes.drain("d", False)
    assert (found["state"], found["files"], found["bytes"]) == ("draining", 1, 100)
    assert {number for number, state in (await cluster.states()).items() if state == "draining"} == {7, 8}
    again = await cluster.nodes.drain("d", False)
    assert (again["state"], again["notes"]) == ("draining", [])
    await cluster.move(5, 6)
    assert (await cluster.nodes.shown("d"))["state"] == "empty"


async def test_a_node_whose_going_would_leave_too_few_disks_for_writes_is_not_drained_in_part() -> None:
    cluster = await Cluster().start()
    await cluster.nodes.drain("a", False)
    await cluster.nodes.drain("b", False)
    with pytest.raises(Problem, match="without disks 5, 6 only 2 disks take writes; 3 are needed"):
        await cluster.nodes.drain("c", False)
    assert [(await cluster.states())[number] for number in (5, 6)] == ["healthy", "healthy"]


async def test_a_node_is_removed_only_when_nothing_counts_on_its_disks() -> None:
    cluster = await Cluster().start()
    with pytest.raises(
        Problem, match=r"1 fragment files \(100 bytes\) still count on d's 2 disks, 2 of which"
    ):
        await cluster.nodes.remove("d", "")
    await cluster.nodes.drain("d", False)
    with pytest.raises(Problem, match="objstore node drain d --wait"):
        await cluster.nodes.remove("d", "")
    await cluster.move(5, 6)
    assert (await cluster.nodes.remove("d", ""))["name"] == "d"
    assert cluster.removed == [(id_of("d").hex(), False)]
    assert [(await cluster.states())[number] for number in (7, 8)] == ["retired", "retired"]
    with pytest.raises(Problem, match="no member e"):
        await cluster.nodes.remove("e", "")


async def test_removing_by_force_says_exactly_what_is_lost_and_wants_the_words() -> None:
    cluster = await Cluster().start()
    harmless = await cluster.nodes.prospect("a")
    assert (harmless["files"], harmless["volumes"], harmless["volumes_that_lose_data"]) == (2, 1, [])
    # A volume that was made when there were no other nodes: it can do without one of its files.
    record, _ = await cluster.ledger.create(
        k=1, m=1, disks=[1, 2], lane=Lane.SMALL, writer=bytes(16), policy=""
    )
    await cluster.ledger.seal(record.id, 50)
    facts = await cluster.nodes.prospect("a")
    assert facts["volumes_that_lose_data"] == [2]
    with pytest.raises(Problem, match="not confirmed"):
        await cluster.nodes.remove("a", "yes")
    assert cluster.removed == []
    await cluster.nodes.remove("a", facts["confirm"])
    assert cluster.removed == [(id_of("a").hex(), True)]


async def test_a_disk_of_a_node_is_replaced_by_one_that_the_node_has_brought() -> None:
    cluster = await Cluster().start()
    with pytest.raises(Problem, match="its node d has no disk in use at /new: start objstore node there"):
        await cluster.disks.replace(7, "/new")
    number = await cluster.ledger.reserve_disk(
        uuid=b"u" * 16, path="/new", reason="", node=id_of("d"), size=1_000
    )
    await cluster.ledger.set_disk_state(number, "healthy")
    assert await cluster.disks.replace(7, "/new") == (number, [])
    assert (await cluster.states())[7] == "draining"
