"""Leases over time, on real volumes: nodes of one's own hold nothing of others, and nothing is elsewhere."""

import random
from dataclasses import replace

import msgspec
import pytest

from objstore.blobs.topology import Policy
from objstore.errors import BadArgument, BadStorageClass, Denied
from objstore.meta.kv import Transaction
from objstore.meta.schema import (
    AccountRecord,
    DiskRecord,
    MemberRecord,
    account_key,
    disk_key,
    encode,
    member_key,
)
from objstore.objects.buckets import create_bucket, find_bucket, place_bucket
from objstore.objects.dedication import forget_policies, prepare
from objstore.objects.layout import LAYOUT_KEY, MachinePlace, Plan, read_layout, stage
from objstore.objects.placing import policy_of_bucket
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import delete_object, put_object
from objstore.rental.capacity import DAY_US, days_of
from objstore.rental.leases import after_months, find_lease, make_lease, sign, terminate
from objstore.rental.records import CapacityDayRecord, LeaseRecord, capacity_day_key, pool_of_lease
from objstore.rental.sales import put_rules
from objstore.rental.sellers import create_seller
from objstore.upkeep.leasing import ALARM, IDLE, RUNWAY, Leasing
from objstore.upkeep.rebalance import Rebalance, RebalanceRules
from objstore.upkeep.trash import TrashRules, clear
from tests.objects.fakes import MemoryBody, principal
from tests.rental.parties import SELLER, a_customer, an_id
from tests.upkeep.rig import Yard

TB = 10**12
OWN = range(7, 13)  # The disks of the lease's nodes.
WHO, OTHER = principal("acme"), principal("other")


def node(number: int) -> bytes:
    return bytes([number]) * 16


class Hall(Yard):
    """Twelve nodes with a disk each, two tenants, and the verbs."""

    async def start(self) -> "Hall":
        await super().start()
        put: dict[bytes, bytes] = {}
        for number, disk in self.disks.items():
            disk.total = TB
            put[disk_key(number)] = encode(
                DiskRecord(uuid=disk.uuid, path=disk.path, state="healthy", node=node(number))
            )
            put[member_key(node(number))] = encode(
                MemberRecord(role="node", name=f"n{number}", state="joined", addresses=["h:1"])
            )
        await self.kv.commit(Transaction(put=put))
        await create_seller(self.kv, SELLER)
        for tenant in ("acme", "other"):
            await a_customer(self.kv, tenant)
        await put_rules(self.kv, spare_domains=1)
        self.store = Store(
            kv=self.kv, writer=self.writer, reader=self.reader, ledger=self.ledger, clock=self.clock
        )
        self.ctx = self.context()
        self.leasing = Leasing(self.ctx, self.store)
        self.now_us = int(self.clock.now) * 1_000_000 + 1_000_000
        return self

    def lease(self, number: int = 1, **given: object) -> LeaseRecord:
        base = LeaseRecord(
            id=an_id(number),
            tenant="acme",
            kind="dedicated",
            state="draft",
            capacity=2 * TB,
            begin_us=self.now_us,
            end_us=after_months(self.now_us, 12),
            term_months=12,
            nodes=[node(disk).hex() for disk in OWN],
        )
        return msgspec.structs.replace(base, **given)

    async def signed(self, lease: LeaseRecord) -> LeaseRecord:
        await make_lease(self.kv, lease, now_us=self.now_us)
        return await sign(self.kv, lease.id, self.leasing.survey, now_us=self.now_us)

    async def keep(self, bucket: str, key: str, size: int = 300_000, tenant: str = "other") -> None:
        body = MemoryBody(random.Random(key).randbytes(size))
        await put_object(self.store, principal(tenant), bucket, key, About(), body)

    async def fresh_writer(self) -> None:
        """Open volumes are sealed, and the next ones are made by the layout as it is now."""
        await self.restart_writer()
        self.store = replace(self.store, writer=self.writer)
        self.ctx = self.context()
        self.leasing = Leasing(self.ctx, self.store)

    async def rebalanced(self) -> None:
        work = Rebalance(self.ctx, RebalanceRules())
        for _ in range(20):
            planned = await work.plan()
            if not planned:
                break
            for move in planned:
                await work.move(move)
        for _ in range(3):  # What lay there before goes, after its grace.
            await clear(self.ctx, TrashRules(grace_s=100))
            self.clock.advance(101)

    async def inventory(self) -> dict[int, set[str]]:
        """By disk: the policies of the volumes of which a file is found there, trash included."""
        policies = {record.id: record.policy for record in await self.ledger.volumes()}
        return {
            number: {policies.get(volume, "nobody's") for volume, _ in disk.fragments}
            for number, disk in self.disks.items()
        }


@pytest.fixture
async def hall() -> Hall:
    return await Hall("+" * 12).start()


async def begun(hall: Hall) -> LeaseRecord:
    """A lease that holds its nodes alone."""
    lease = await hall.signed(hall.lease())
    hall.clock.advance(2)
    await hall.leasing.run()
    found = await find_lease(hall.kv, lease.id)
    assert found.state == "active"
    return found


async def test_a_dedicated_lease_begins_when_nothing_of_others_is_left_on_its_nodes(hall: Hall) -> None:
    await create_bucket(hall.store, OTHER, "others", region="")
    for number in range(4):
        await hall.keep("others", f"before-{number}")
        await hall.fresh_writer()
    before = {number for number, found in (await hall.inventory()).items() if found}
    assert before & set(OWN)
    lease = await hall.signed(hall.lease())
    hall.clock.advance(2)
    assert "volumes of others lie on its nodes" in await hall.leasing.run()
    assert (await find_lease(hall.kv, lease.id)).state == "signed"
    await hall.rebalanced()
    assert await hall.leasing.run() == "1 begun"
    assert (await find_lease(hall.kv, lease.id)).state == "active"

    await hall.fresh_writer()
    await create_bucket(hall.store, WHO, "mine", region="")
    for number in range(3):
        await hall.keep("mine", f"big-{number}", 3_000_000, "acme")
        await hall.keep("mine", f"small-{number}", 100, "acme")
        await hall.keep("others", f"after-{number}")
        await hall.fresh_writer()
    await hall.rebalanced()
    pool = pool_of_lease(lease.id)
    found = await hall.inventory()
    assert {number: found[number] for number in OWN} == {number: {pool} for number in OWN}
    assert all(pool not in found[number] and "nobody's" not in found[number] for number in range(1, 7))
    assert any(found[number] for number in range(1, 7))


async def test_a_file_copied_by_hand_onto_a_leases_nodes_keeps_it_from_beginning(hall: Hall) -> None:
    lease = await hall.signed(hall.lease())
    await hall.disks[8].create(77, 0)
    assert await hall.leasing.ready(lease) == "1 fragment files of 1 volumes of others lie on its nodes"
    await hall.disks[8].retire(77, 0, 5)  # In the trash it lies there still.
    assert "of others lie" in await hall.leasing.ready(lease)


async def test_a_node_that_does_not_answer_proves_nothing(hall: Hall) -> None:
    lease = await hall.signed(hall.lease())
    await prepare(hall.store, lease, code=(4, 2))
    del hall.disks[9]
    assert await hall.leasing.ready(lease) == "disks [9] of its nodes do not answer"


async def test_the_policy_of_a_lease_is_for_its_tenant_only(hall: Hall) -> None:
    lease = await begun(hall)
    pool = pool_of_lease(lease.id)
    await create_bucket(hall.store, OTHER, "others", region="")
    for act in (
        create_bucket(hall.store, OTHER, "thief", region="", policy=pool),
        place_bucket(hall.store, "others", pool),
    ):
        with pytest.raises(Denied, match="another tenant's own nodes"):
            await act
    await create_bucket(hall.store, WHO, "mine", region="")
    with pytest.raises(Denied):
        await place_bucket(hall.store, "mine", "")


async def test_a_tenant_with_buckets_elsewhere_moves_them_before_its_lease_begins(hall: Hall) -> None:
    await create_bucket(hall.store, WHO, "old", region="")
    lease = await hall.signed(hall.lease())
    assert await hall.leasing.ready(lease) == "1 buckets lie elsewhere: old"
    await place_bucket(hall.store, "old", pool_of_lease(lease.id))
    assert await hall.leasing.ready(lease) == ""


async def test_too_few_disks_for_others_are_not_left_behind(hall: Hall) -> None:
    nodes = [node(number).hex() for number in range(4, 13)]
    lease = await hall.signed(hall.lease(nodes=nodes))
    with pytest.raises(BadArgument, match="3 disks would be left"):
        await prepare(hall.store, lease, code=(4, 2))


async def test_what_an_operator_has_staged_is_kept_and_has_the_leases_nodes_too(hall: Hall) -> None:
    def staged(plan: Plan) -> Plan:
        return msgspec.structs.replace(plan, policies={"p": Policy(name="p", spread="node")})

    before = await stage(hall.kv, staged)
    lease = await begun(hall)
    _, record = await read_layout(hall.kv)
    pool = pool_of_lease(lease.id)
    assert record.staged is not None
    assert set(record.staged.policies) == {"p", pool}
    assert set(record.current.policies) == {pool}
    assert record.serial > record.version > before.serial
    assert {key for key, place in record.current.machines.items() if place.pool == pool} == set(lease.nodes)


async def ended(hall: Hall, lease: LeaseRecord) -> None:
    await terminate(hall.kv, lease.id, at_us=hall.now_us + 10_000_000, now_us=hall.now_us)
    hall.clock.advance(60)
    assert await hall.leasing.run() == "1 ended"


async def test_nodes_of_a_lease_that_is_over_go_back_on_an_operators_word_and_no_byte_is_lost(
    hall: Hall,
) -> None:
    lease = await begun(hall)
    await hall.fresh_writer()
    for name in ("mine", "more"):
        await create_bucket(hall.store, WHO, name, region="")
    await hall.keep("mine", "before", tenant="acme")
    with pytest.raises(BadArgument, match="is active"):
        await hall.leasing.release(hall.kv, lease.id)
    await ended(hall, lease)
    assert f"{lease.id} of acme; objstore lease release" in hall.ctx.alarms.raised[IDLE]
    await create_bucket(hall.store, OTHER, "others", region="")
    await hall.keep("others", "while-kept-apart")
    pool = pool_of_lease(lease.id)
    assert all(found <= {pool} for number, found in (await hall.inventory()).items() if number in OWN)

    done = await hall.leasing.release(hall.kv, lease.id)
    assert (done.buckets, done.finished, set(done.nodes)) == (2, True, set(lease.nodes))
    _, record = await read_layout(hall.kv)
    assert (record.current.machines, record.current.policies) == ({}, {pool: Policy(name=pool)})
    again = await hall.leasing.release(hall.kv, lease.id)
    assert (again.buckets, again.nodes, again.finished) == (0, (), True)
    await hall.leasing.run()
    assert IDLE not in hall.ctx.alarms.raised

    await hall.fresh_writer()
    for number in range(6):
        await hall.keep("mine", f"after-{number}", tenant="acme")
        await hall.fresh_writer()
    found = await hall.inventory()
    assert any("" in found[number] for number in OWN), "nodes that went back take what comes"
    for key in ("before", "after-0"):
        got = await find_object(hall.store, WHO, "mine", key)
        assert got.record.size == 300_000


async def test_the_policy_of_a_released_lease_goes_with_the_last_volume_under_it(hall: Hall) -> None:
    lease = await begun(hall)
    await hall.fresh_writer()
    await create_bucket(hall.store, WHO, "mine", region="")
    await hall.keep("mine", "key", tenant="acme")
    await ended(hall, lease)
    await hall.leasing.release(hall.kv, lease.id)
    assert await forget_policies(hall.store) == []
    await delete_object(hall.store, WHO, "mine", "key")
    [volume] = [one for one in await hall.ledger.volumes() if one.policy]
    await hall.ledger.seal(volume.id, 64)
    await hall.ledger.forget(await hall.ledger.retire(volume.id))
    hall.clock.advance(86_400)
    await hall.leasing.run()
    _, record = await read_layout(hall.kv)
    assert record.current.policies == {}


async def test_many_buckets_of_a_lease_that_is_over_are_placed_in_steps(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objstore.objects.dedication.BUCKETS_AT_ONCE", 2)
    lease = await begun(hall)
    for number in range(5):
        await create_bucket(hall.store, WHO, f"mine-{number}", region="")
    await ended(hall, lease)
    steps = [await hall.leasing.release(hall.kv, lease.id) for _ in range(3)]
    assert [(one.buckets, one.finished) for one in steps] == [(2, False), (2, False), (1, True)]
    assert [len(one.nodes) for one in steps] == [0, 0, 6]


@pytest.mark.parametrize("site", ["oran", "alger"])
async def test_a_lease_keeps_its_tenants_bytes_at_its_sites(hall: Hall, site: str) -> None:
    _, record = await read_layout(hall.kv)
    places = {
        node(disk).hex(): MachinePlace(site="oran" if disk in OWN else "alger") for disk in range(1, 13)
    }
    current = msgspec.structs.replace(record.current, machines=places)
    account = AccountRecord(sites=[site])
    put = {LAYOUT_KEY: encode(msgspec.structs.replace(record, current=current))}
    await hall.kv.commit(Transaction(put={**put, account_key("acme"): encode(account)}))
    lease = await hall.signed(hall.lease())
    hall.clock.advance(2)
    words = await hall.leasing.run()
    if site == "alger":
        assert "bytes of acme may not lie at site oran" in words
        return
    assert words == "1 begun"
    bucket = await create_bucket(hall.store, WHO, "mine", region="")
    assert policy_of_bucket(bucket) == pool_of_lease(lease.id)
    await ended(hall, lease)
    await hall.leasing.release(hall.kv, lease.id)
    assert policy_of_bucket(await find_bucket(hall.store, WHO, "mine")) == "oran"


async def test_a_node_lost_raises_an_alarm_that_names_the_leases_and_its_return_ends_it(hall: Hall) -> None:
    shared = hall.lease(kind="guaranteed", nodes=[], capacity=6 * TB)
    await hall.signed(shared)
    await hall.leasing.run()
    assert hall.ctx.alarms.raised == {}
    lost = hall.disks.pop(3)
    await hall.leasing.run()
    [gauge, at_risk] = hall.leasing.families()
    assert gauge.samples == [((), [6 * TB - int(10 * TB * 0.85 * 4 / 6)])]
    assert at_risk.samples == [((), [1])]
    assert f"leases at risk: {shared.id} of acme" in hall.ctx.alarms.raised[ALARM]
    hall.disks[3] = lost
    await hall.leasing.run()
    assert ALARM not in hall.ctx.alarms.raised
    assert hall.leasing.oversold == 0


async def test_the_report_counts_what_lies_on_the_disks_of_every_pool(hall: Hall) -> None:
    lease = await begun(hall)
    await hall.fresh_writer()
    await create_bucket(hall.store, WHO, "mine", region="")
    await create_bucket(hall.store, OTHER, "others", region="")
    await hall.keep("mine", "key", 1_000_000, "acme")
    await hall.keep("others", "key", 500_000)
    shared, own = await hall.leasing.report()
    assert (shared.pool, own.pool) == ("", pool_of_lease(lease.id))
    assert (shared.raw, own.raw) == (6 * TB, 6 * TB)
    assert own.used_logical >= 1_000_000
    assert 500_000 <= shared.used_logical < 1_000_000
    assert all(found.used_physical >= found.used_logical * 3 // 2 for found in (shared, own))
    for volume in await hall.ledger.volumes():
        first = hall.disks[volume.disks[0]].fragments[volume.id, 0]
        await hall.ledger.seal(volume.id, len(first.content))
    shared, own = await hall.leasing.report()
    for found in (shared, own):
        lying = sum(
            len(file.content)
            for number in (OWN if found is own else range(1, 7))
            for file in hall.disks[number].fragments.values()
        )
        assert found.used_physical == lying
        assert found.used_physical > found.used_logical * 3 // 2
    assert shared.usable == int(5 * TB * 0.85 * 4 / 6)


async def test_a_pool_that_fills_before_disks_could_come_raises_an_alarm(hall: Hall) -> None:
    for disk in hall.disks.values():
        disk.total = 1_000_000  # 6.2 MB are usable.
    await create_bucket(hall.store, OTHER, "others", region="")
    await hall.keep("others", "key", 3_000_000)
    hall.clock.advance(60 * 86_400)
    today = hall.ctx.clock.now_us() // DAY_US
    for back in range(1, 20):
        point = CapacityDayRecord(usable=0, used=3_000_000 - back * 100_000, sold=0)
        await hall.kv.commit(Transaction(put={capacity_day_key("", today - back): encode(point)}))
    await hall.leasing.run()
    assert "the shared pool lasts 22 days, and an order of disks takes 365" in hall.ctx.alarms.raised[RUNWAY]
    assert len(await days_of(hall.kv, "", now_us=hall.ctx.clock.now_us())) == 20
    await put_rules(hall.kv, lead_days=10)
    hall.clock.advance(86_400)
    await hall.leasing.run()
    assert RUNWAY not in hall.ctx.alarms.raised


async def test_a_pool_is_there_also_while_all_its_nodes_are_away_or_only_a_policy_names_it(
    hall: Hall,
) -> None:
    _, record = await read_layout(hall.kv)
    machines = {node(number).hex(): MachinePlace(pool="cold") for number in OWN}
    policies = {"x": Policy(name="x", pool="empty")}
    current = msgspec.structs.replace(record.current, machines=machines, policies=policies)
    await hall.kv.commit(
        Transaction(put={LAYOUT_KEY: encode(msgspec.structs.replace(record, current=current))})
    )
    for number in OWN:
        hall.disks[number].mood = "dead"
    supply = await hall.leasing.survey()
    assert {one.pool for one in supply.nodes} == {""}
    assert supply.pools == {"", "cold", "empty"}
    assert {node(number).hex() for number in OWN} < supply.members


async def test_a_storage_class_never_leads_onto_a_leases_nodes(hall: Hall) -> None:
    lease = await begun(hall)
    pool = pool_of_lease(lease.id)
    _, record = await read_layout(hall.kv)
    policies = {**record.current.policies, "x": Policy(name="x", pool=pool, storage_class="MINE")}
    current = msgspec.structs.replace(record.current, policies=policies)
    await hall.kv.commit(
        Transaction(put={LAYOUT_KEY: encode(msgspec.structs.replace(record, current=current))})
    )
    hall.store.placing.layout = await hall.ledger.layout()
    await create_bucket(hall.store, OTHER, "others", region="")
    about = About(headers={"x-amz-storage-class": "MINE"})
    with pytest.raises(BadStorageClass):
        await put_object(hall.store, OTHER, "others", "key", about, MemoryBody(b"x"))
