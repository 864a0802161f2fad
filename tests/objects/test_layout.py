"""The layout's record: staged under a number, applied as it was seen, reverted."""

import msgspec
import pytest

from objstore.blobs.topology import Policy
from objstore.errors import BadArgument
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import DiskRecord, MemberRecord, encode
from objstore.objects.layout import (
    EMPTY,
    LAYOUT_KEY,
    LayoutRecord,
    MachinePlace,
    Plan,
    applied,
    check_plan,
    layout_of,
    read_layout,
    revert,
    stage,
)

NODE = bytes(16)


def with_policy(policy: Policy, plan: Plan = EMPTY) -> Plan:
    return msgspec.structs.replace(plan, policies={**plan.policies, policy.name: policy})


def disk(state: str = "healthy", node: bytes = NODE) -> DiskRecord:
    return DiskRecord(uuid=b"u" * 16, path="/d", state=state, node=node, size=100)


def member(**fields: object) -> MemberRecord:
    facts = {"role": "node", "name": "n1", "state": "joined", "addresses": ["h:1"], "site": "a", "rack": "r"}
    return MemberRecord(**(facts | fields))  # type: ignore[arg-type]


async def test_what_is_staged_changes_nothing_before_it_is_applied_and_only_as_it_was_seen() -> None:
    kv = DictKv()
    await stage(kv, lambda plan: with_policy(Policy(name="here", sites=("a",)), plan))
    first = await stage(kv, lambda plan: with_policy(Policy(name="there", sites=("b",)), plan))
    assert first.current == EMPTY
    assert first.serial == 2
    with pytest.raises(BadArgument, match="version 2 is staged, not 1"):
        applied(first, 1, 7)
    after = applied(first, 2, 7)
    assert set(after.current.policies) == {"here", "there"}
    assert (after.version, after.staged, after.previous) == (2, None, EMPTY)
    with pytest.raises(BadArgument, match="nothing is staged"):
        applied(after, 2, 7)


async def test_a_revert_drops_what_is_staged_and_after_an_apply_stages_what_was_before() -> None:
    kv = DictKv()
    with pytest.raises(BadArgument, match="no layout was applied before"):
        await revert(kv)
    staged = await stage(kv, lambda plan: with_policy(Policy(name="here", sites=("a",)), plan))
    dropped = await revert(kv)
    assert dropped.staged is None
    assert dropped.serial == staged.serial, "a number is never used again"
    after = applied(await stage(kv, lambda plan: with_policy(Policy(name="b", sites=("b",)), plan)), 2, 7)
    await kv.commit(Transaction(put={LAYOUT_KEY: encode(after)}))
    again = await revert(kv)
    assert again.staged == EMPTY
    assert again.current == after.current
    assert (await read_layout(kv))[1] == again


@pytest.mark.parametrize(
    "plan",
    [
        with_policy(Policy(name="Loud")),
        with_policy(Policy(name="x", sites=("",))),
        with_policy(Policy(name="x", spread="disk")),
        with_policy(Policy(name="x", require="most")),
        with_policy(Policy(name="x", storage_class="STANDARD")),
        with_policy(Policy(name="x", k=4)),
        with_policy(Policy(name="x", k=30, m=4)),
        with_policy(
            Policy(name="x", storage_class="COLD"), with_policy(Policy(name="y", storage_class="COLD"))
        ),
        Plan(policies={"a": Policy(name="b")}),
        Plan(machines={"": MachinePlace(site="a b")}),
        Plan(machines={"": MachinePlace(weight=-1)}),
    ],
)
def test_what_cannot_be_is_refused_in_words(plan: Plan) -> None:
    with pytest.raises(BadArgument):
        check_plan(plan)


def test_the_layout_goes_before_what_a_machine_says_of_itself() -> None:
    disks = {1: disk(), 2: disk("draining"), 3: disk("retired"), 4: disk(node=b""), 5: disk("suspect")}
    plain = layout_of(EMPTY, 1, disks, {NODE: member()}, leaving=lambda one: one.state == "draining")
    assert sorted(plain.spots) == [1, 2, 4, 5]
    assert (plain.spots[1].site, plain.spots[1].rack, plain.spots[1].node) == ("a", "r", NODE.hex())
    assert [plain.spots[number].usable for number in (1, 2, 4, 5)] == [True, False, True, False]
    assert plain.spots[2].leaving
    assert plain.spots[4].node == ""
    plan = Plan(machines={NODE.hex(): MachinePlace(site="b", pool="leased", weight=0.5)}, drains=[NODE.hex()])
    moved = layout_of(plan, 2, disks, {NODE: member(away_us=5)}, leaving=lambda one: False)
    spot = moved.spots[1]
    assert (spot.site, spot.rack, spot.pool, spot.weight) == ("b", "r", "leased", 0.5)
    assert spot.leaving
    assert not spot.usable, "its machine is away"
    assert [moved.spots[number].away for number in (1, 2, 4, 5)] == [True, False, False, False]


def test_a_name_without_a_policy_is_that_of_a_site_so_that_nothing_ever_lies_elsewhere() -> None:
    layout = layout_of(EMPTY, 1, {1: disk()}, {NODE: member()}, leaving=lambda one: False)
    assert layout.policy("").sites == ()
    assert layout.policy("a") == Policy(name="a", sites=("a",))
    assert layout.policy("gone").sites == ("gone",)
    assert layout.sites == {"a"}


def test_a_policy_is_within_another_if_it_admits_nothing_more() -> None:
    both, one = Policy(sites=("a", "b")), Policy(sites=("a",))
    assert one.within(both)
    assert not both.within(one)
    assert both.within(Policy())
    assert not Policy().within(both)
    assert Policy(pool="p").within(Policy())
    assert not Policy().within(Policy(pool="p"))


def test_a_record_without_anything_is_the_layout_of_a_store_that_never_had_one() -> None:
    assert LayoutRecord().current == EMPTY
    assert LayoutRecord().version == 0
