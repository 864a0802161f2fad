"""The layout as operators change it: staged, planned, applied, reverted, over real volumes in memory."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from objstore.admin.app import Problem
from objstore.blobs.topology import Policy, policy_of_sites
from objstore.config import Config
from objstore.errors import BadArgument
from objstore.meta.kv import Transaction
from objstore.meta.schema import encode
from objstore.objects.buckets import create_bucket
from objstore.objects.dedication import prepare
from objstore.objects.residence import bind_tenant
from objstore.objects.store import Store
from objstore.objects.writes import put_object
from objstore.processes.layout import LayoutSet
from objstore.rental.records import LeaseRecord, lease_key, pool_of_lease
from tests.blobs.rig import Rig
from tests.blobs.sites import node, two_sites
from tests.objects.fakes import MemoryBody, principal
from tests.objects.test_placing import ANYWHERE

WHO = principal()
HERE = Policy(name="here", sites=("a",))


async def operated(policies: list[Policy], **how: Any) -> tuple[LayoutSet, Store, Rig]:
    rig = await two_sites(policies, **how)
    store = Store(kv=rig.kv, writer=rig.writer, reader=rig.reader, ledger=rig.ledger, clock=rig.clock)
    spec = SimpleNamespace(config=Config(), cluster=SimpleNamespace(codec=(rig.k, rig.m)))
    parts: Any = SimpleNamespace(store=store, disks=rig.disks, spec=spec)
    return LayoutSet(parts), store, rig


async def sealed_volume(store: Store, bucket: str, policy: str = "") -> None:
    await create_bucket(store, WHO, bucket, region="", policy=policy)
    await put_object(store, WHO, bucket, "key", ANYWHERE, MemoryBody(bytes(100_000)))
    await store.writer.close()


async def test_the_layout_shows_machines_and_what_every_policy_promises() -> None:
    layout, _, _ = await operated([HERE])
    found = await layout.show()
    assert found["staged"] is None
    assert [row["site"] for row in found["machines"]].count("a") == 6
    assert {row["machine"]: row["disks"] for row in found["machines"]}["n1"] == 1
    promises = {row["policy"]: row["promise"] for row in found["policies"]}
    assert promises == {
        "(default)": "site none, rack none, node spare",
        "here": "site none, rack none, node spare",
    }


async def test_a_plan_says_what_moves_and_an_apply_of_just_that_makes_it_current() -> None:
    layout, store, rig = await operated([HERE])
    await sealed_volume(store, "bucket", "here")
    with pytest.raises(Problem, match="nothing is staged"):
        await layout.plan()
    staged = await layout.policy("here", {"sites": "b"})
    plan = await layout.plan()
    assert plan["version"] == staged["staged"]
    rows = {row["policy"]: row for row in plan["policies"]}
    length = (await rig.ledger.volumes())[0].length
    assert (rows["here"]["volumes"], rows["here"]["files_to_move"]) == (1, 6)
    assert rows["here"]["buckets"] == 1
    assert plan["bytes_to_move"] == 6 * length
    assert plan["seconds"] == round(6 * length / plan["bytes_per_second"])
    assert plan["incoming"] == [{"site": "b", "bytes": 6 * length, "free": plan["incoming"][0]["free"]}]
    assert plan["refused"] == []
    assert (await rig.ledger.layout()).policy("here").sites == ("a",), "nothing has changed yet"
    with pytest.raises(BadArgument, match="is staged, not"):
        await layout.apply(plan["version"] + 1)
    assert (await layout.apply(plan["version"]))["files_to_move"] == 6
    assert (await rig.ledger.layout()).policy("here").sites == ("b",)
    assert (await layout.show())["staged"] is None


async def test_a_revert_stages_what_was_before() -> None:
    layout, _, rig = await operated([HERE])
    version = (await layout.policy("here", {"spread": "rack"}))["staged"]
    assert (await layout.revert())["staged"] is None
    version = (await layout.policy("here", {"spread": "rack"}))["staged"]
    await layout.apply(version)
    back = (await layout.revert())["staged"]
    assert back > version
    await layout.apply(back)
    assert (await rig.ledger.layout()).policy("here").spread == ""


async def test_machines_are_moved_and_drained_in_one_commit() -> None:
    layout, store, rig = await operated([])
    await sealed_volume(store, "bucket")
    await layout.machine("n1", {"site": "c", "rack": "r9", "weight": "0.5"})
    staged = await layout.machine(node(2).hex()[:8], {"drain": "true"})
    row = next(row for row in (await layout.show())["machines"] if row["machine"] == "n1")
    assert row["staged"] == "site: a -> c, rack: - -> r9, weight: 1.0 -> 0.5"
    await layout.apply(staged["staged"])
    after = await rig.ledger.layout()
    assert (after.spots[1].site, after.spots[1].rack, after.spots[1].weight) == ("c", "r9", 0.5)
    assert after.spots[2].leaving
    assert (await rig.ledger.disks())[2].state == "draining"
    again = await layout.machine("n1", {"site": "-"})
    await layout.apply(again["staged"])
    assert (await rig.ledger.layout()).spots[1].site == "a", "as the machine says"
    assert (await rig.ledger.disks())[2].state == "draining", "a drain is not part of the layout"


async def test_what_would_leave_a_policy_without_disks_is_refused() -> None:
    layout, store, _ = await operated([HERE])
    await sealed_volume(store, "bucket", "here")
    for number in range(1, 5):
        staged = await layout.machine(f"n{number}", {"pool": "leased"})
    plan = await layout.plan()
    assert plan["refused"] == ["policy here would have 2 disks, and 3 are needed"]
    with pytest.raises(Problem, match="2 disks, and 3 are needed"):
        await layout.apply(staged["staged"])


async def test_a_policy_that_somebody_names_is_not_dropped() -> None:
    layout, store, rig = await operated([HERE, Policy(name="unused")])
    await sealed_volume(store, "bucket", "here")
    await layout.policy("unused", {"drop": "true"})
    staged = await layout.policy("here", {"drop": "true"})
    with pytest.raises(Problem, match=r"^policy here is dropped, and 1 buckets and 1 volumes name it$"):
        await layout.apply(staged["staged"])
    await layout.revert()
    staged = await layout.policy("unused", {"drop": "true"})
    await layout.apply(staged["staged"])
    assert set((await rig.ledger.layout()).policies) == {"here"}
    with pytest.raises(Problem, match="there is no policy unused"):
        await layout.policy("unused", {"drop": "true"})


async def test_a_plan_names_the_code_that_new_volumes_will_have() -> None:
    layout, _, _ = await operated([])
    await layout.policy("wide", {"codec": "10+4", "sites": "a"})
    await layout.policy("nowhere", {"sites": "c"})
    plan = await layout.plan()
    assert {row["policy"]: (row["codec"], row["in_effect"]) for row in plan["policies"]} == {
        "(default)": ("4+2", "4+2"),
        "wide": ("10+4", "2+4"),
        "nowhere": ("4+2", "none"),
    }
    await layout.apply(plan["version"])
    rows = {row["policy"]: row for row in (await layout.show())["policies"]}
    assert (rows["wide"]["codec"], rows["wide"]["in_effect"]) == ("10+4", "2+4")


async def test_a_plan_tells_of_buckets_that_are_pinned_to_a_site() -> None:
    layout, store, _ = await operated([])
    await sealed_volume(store, "bucket", policy_of_sites(["a"]))
    for number in range(1, 4):
        await layout.machine(f"n{number}", {"site": "b"})
    plan = await layout.plan()
    rows = {row["policy"]: row for row in plan["policies"]}
    pinned = rows[policy_of_sites(["a"])]
    assert (pinned["buckets"], pinned["volumes"], pinned["in_effect"]) == (1, 1, "1+2")


async def test_a_promise_that_the_machines_cannot_give_is_refused_before_anything_is_written() -> None:
    layout, _, _ = await operated([])
    staged = await layout.policy("strict", {"spread": "site", "require": "bare"})
    with pytest.raises(Problem, match="strict requires the promise bare, and its 12 disks cannot give it"):
        await layout.apply(staged["staged"])
    await layout.policy("strict", {"spread": "node"})
    again = await layout.policy("strict", {"require": "spare"})
    assert (await layout.apply(again["staged"]))["version"] == again["staged"]


async def test_a_bucket_is_placed_by_an_operator() -> None:
    layout, store, _ = await operated([HERE])
    await create_bucket(store, WHO, "bucket", region="")
    assert (await layout.place("bucket", "here", False))["objects_that_stay"] == 0
    await put_object(store, WHO, "bucket", "key", ANYWHERE, MemoryBody(b"x"))
    with pytest.raises(Problem, match="--new-only"):
        await layout.place("bucket", "-", False)
    assert await layout.place("bucket", "-", True) == {
        "bucket": "bucket",
        "policy": "(default)",
        "objects_that_stay": 1,
    }


@pytest.mark.parametrize(
    "given",
    [{"codec": "4"}, {"spread": "disk"}, {"require": "all"}, {"class": "cold"}, {"sites": "a b"}],
)
async def test_a_policy_that_makes_no_sense_is_refused_with_the_rule(given: dict[str, str]) -> None:
    layout, _, _ = await operated([])
    with pytest.raises(BadArgument):
        await layout.policy("x", given)


async def test_an_unknown_machine_and_a_weight_that_is_none_are_refused() -> None:
    layout, _, _ = await operated([])
    with pytest.raises(Problem, match="there is no machine n99"):
        await layout.machine("n99", {"site": "c"})
    with pytest.raises(BadArgument, match="a weight is a number"):
        await layout.machine("n1", {"weight": "1_0"})


async def test_a_policy_is_not_widened_beyond_the_sites_that_bind_a_tenant_of_it() -> None:
    layout, store, _ = await operated([HERE])
    await create_bucket(store, WHO, "bucket", region="", policy="here")
    await bind_tenant(store, WHO.tenant, sites=["a"])
    staged = await layout.policy("here", {"sites": "a,b"})
    words = "bucket bucket would lead out of where bytes of default may lie"
    assert (await layout.plan())["refused"] == [words]
    with pytest.raises(Problem, match=words):
        await layout.apply(staged["staged"])
    await bind_tenant(store, WHO.tenant, sites=[])
    await layout.apply(staged["staged"])


async def test_nodes_of_a_lease_stay_its_own_and_no_other_policy_is_on_them_until_it_ends() -> None:
    layout, store, rig = await operated([])
    nodes = [node(number).hex() for number in range(7, 13)]
    lease = LeaseRecord(
        id="L1",
        tenant="acme",
        kind="dedicated",
        state="signed",
        capacity=1,
        begin_us=1,
        end_us=2,
        term_months=1,
        nodes=nodes,
    )
    await rig.kv.commit(Transaction(put={lease_key("L1"): encode(lease)}))
    await prepare(store, lease, code=(rig.k, rig.m))
    staged = await layout.machine("n9", {"pool": "-"})
    with pytest.raises(Problem, match="the nodes of lease L1 are acme's own until it ends"):
        await layout.apply(staged["staged"])
    await layout.revert()
    staged = await layout.policy("mine", {"pool": pool_of_lease("L1"), "class": "MINE"})
    with pytest.raises(Problem, match="policy mine is on the nodes of lease L1"):
        await layout.apply(staged["staged"])
    ended = msgspec.structs.replace(lease, state="ended")
    await rig.kv.commit(Transaction(put={lease_key("L1"): encode(ended)}))
    await layout.apply(staged["staged"])
