"""Leases from quote to end: signed only if admitted, whoever else signs at the same time."""

import asyncio
import dataclasses
import os
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from objstore.clock import SECOND_US, utc_text
from objstore.errors import BadArgument, NotEnoughCapacity, StateForbids
from objstore.meta.kv import VALUE_SIZE_MAX, DictKv, Transaction
from objstore.meta.schema import AccountRecord, Limits, account_key, decode, encode
from objstore.rental.admission import Node
from objstore.rental.carried import list_carried
from objstore.rental.leased import leases_of, storable_bytes
from objstore.rental.leases import (
    DAY_US,
    accept_quote,
    advance,
    after_months,
    answer,
    charges_between,
    check_lease,
    edit_lease,
    extend_ramp,
    find_lease,
    give_notice,
    make_lease,
    notice_due,
    sign,
    terminate,
    withdraw,
)
from objstore.rental.money import Money
from objstore.rental.offers import list_offers, order, put_offer
from objstore.rental.quota import Scope, change_limits, show_quota
from objstore.rental.records import CapacityEventRecord, LeaseRecord, OfferRecord, pool_of_lease
from objstore.rental.sales import Book, Supply, Survey, check_source, put_event, put_rules, read_book
from tests.rental.parties import a_market, an_id
from tests.seed import SEED

TB = 10**12
START_US = 1_767_225_600 * SECOND_US  # 2026-01-01.
USABLE = 11_333_333_333_333  # Six nodes of four disks of 1 TB, one node spare, 4+2, 85 %.


def six_nodes(count: int = 6, *, first: int = 1, pool: str = "", disks: int = 4) -> list[Node]:
    names = [f"{number:032x}" for number in range(first, first + count)]
    return [Node(id=name, domain=name, disks=[TB] * disks, pool=pool) for name in names]


def surveyed(nodes: Sequence[Node]) -> Survey:
    async def survey() -> Supply:
        return Supply(nodes=nodes, code=(4, 2))

    return survey


SURVEY = surveyed(six_nodes())


def lease(number: int = 1, *, months: int = 12, begin_us: int = START_US, **given: object) -> LeaseRecord:
    base = LeaseRecord(
        id=an_id(number),
        tenant="acme",
        kind="guaranteed",
        state="draft",
        capacity=10 * TB,
        begin_us=begin_us,
        end_us=after_months(begin_us, months),
        term_months=months,
        unit_price="500.00",
    )
    return msgspec.structs.replace(base, **given)


async def signed(
    kv: DictKv, record: LeaseRecord, survey: Survey = SURVEY, now_us: int = START_US
) -> LeaseRecord:
    await make_lease(kv, record, now_us=now_us)
    return await sign(kv, record.id, survey, now_us=now_us)


async def book(kv: DictKv, nodes: Sequence[Node] | None = None) -> Book:
    return await read_book(kv, Supply(nodes=nodes or six_nodes(), code=(4, 2)))


async def test_a_quote_becomes_a_draft_a_lease_and_ends_with_its_term() -> None:
    kv = await a_market()
    quote = lease(state="quote", valid_until_us=START_US + DAY_US)
    assert await answer(kv, quote, SURVEY, now_us=START_US) == ""
    await make_lease(kv, quote, now_us=START_US)
    assert (await accept_quote(kv, quote.id, now_us=START_US)).state == "draft"
    assert (await sign(kv, quote.id, SURVEY, now_us=START_US)).state == "signed"
    assert [one.id for one in await leases_of(kv, "acme")] == [quote.id]
    done = await advance(kv, SURVEY, now_us=START_US)
    assert done.begun == [quote.id]
    assert (await find_lease(kv, quote.id)).active_us == START_US
    assert await advance(kv, SURVEY, now_us=quote.end_us - 1) == await advance(kv, SURVEY, now_us=START_US)
    assert (await advance(kv, SURVEY, now_us=quote.end_us)).ended == [quote.id]
    assert (await find_lease(kv, quote.id)).state == "ended"


async def test_a_quote_that_has_expired_is_not_accepted_and_one_withdrawn_is_not_signed() -> None:
    kv = await a_market()
    await make_lease(kv, lease(state="quote", valid_until_us=START_US), now_us=START_US)
    with pytest.raises(BadArgument, match="expired"):
        await accept_quote(kv, an_id(1), now_us=START_US)
    await withdraw(kv, an_id(1), now_us=START_US)
    with pytest.raises(BadArgument, match="is withdrawn"):
        await sign(kv, an_id(1), SURVEY, now_us=START_US)


async def test_capacity_that_is_not_there_at_one_moment_is_not_sold_and_the_answer_says_when() -> None:
    kv = await a_market()
    later_us = after_months(START_US, 6)
    await signed(kv, lease(1, begin_us=later_us, capacity=6 * TB))
    record = lease(2, capacity=6 * TB)
    assert "are missing in the shared pool on 2026-07-01" in await answer(kv, record, SURVEY, now_us=START_US)
    with pytest.raises(NotEnoughCapacity) as refused:
        await signed(kv, record)
    assert refused.value.missing == 12 * TB - USABLE
    assert utc_text(refused.value.moment_us / 1e6) == "2026-07-01T00:00:00Z"
    assert (await find_lease(kv, record.id)).state == "draft"
    await edit_lease(kv, record.id, term_months=6, end_us=later_us)
    shorter = await edit_lease(kv, record.id, term_months=1)  # Its end follows, unless it is given.
    assert shorter.end_us == after_months(shorter.begin_us, 1)
    await edit_lease(kv, record.id, term_months=6, end_us=later_us)
    assert (await sign(kv, record.id, SURVEY, now_us=START_US)).state == "signed"


async def test_a_lease_that_promises_a_level_that_is_not_there_is_not_signed() -> None:
    kv = await a_market()
    with pytest.raises(BadArgument, match="there is no service level 'never'"):
        await signed(kv, lease(sla="never"))
    assert (await find_lease(kv, an_id(1))).state == "draft"


async def test_terms_of_what_is_signed_do_not_change() -> None:
    kv = await a_market()
    await signed(kv, lease())
    with pytest.raises(BadArgument, match="is signed"):
        await edit_lease(kv, an_id(1), capacity=1)
    with pytest.raises(BadArgument, match="is not set like this"):
        await edit_lease(kv, an_id(1), state="active")


class SlowKv(DictKv):
    """Everyone else gets a turn before each answer."""

    async def get(self, key: bytes) -> bytes | None:
        await asyncio.sleep(0)
        return await super().get(key)

    async def commit(self, transaction: Transaction) -> None:
        await asyncio.sleep(0)
        await super().commit(transaction)


async def test_operators_who_sign_at_the_same_time_cannot_oversell_together() -> None:
    chance = random.Random(SEED)
    kv = SlowKv()
    market = await a_market()
    for key, value in await market.scan(b"", b"\xff", 1_000):
        await kv.commit(Transaction(put={key: value}))
    records = [lease(number, capacity=chance.randint(1, 6) * TB) for number in range(12)]
    for record in records:
        await make_lease(kv, record, now_us=START_US)
    outcomes = await asyncio.gather(
        *(sign(kv, record.id, SURVEY, now_us=START_US) for record in records), return_exceptions=True
    )
    assert all(isinstance(one, (LeaseRecord, NotEnoughCapacity)) for one in outcomes), (SEED, outcomes)
    sold = sum(one.capacity for one in outcomes if isinstance(one, LeaseRecord))
    assert sold <= USABLE, SEED
    refused = [
        record.capacity for record, one in zip(records, outcomes, strict=True) if isinstance(one, Exception)
    ]
    assert all(sold + size > USABLE for size in refused), SEED  # What would still fit was not refused.
    assert (await book(kv)).oversold(START_US) == 0


async def test_a_step_of_a_ramp_is_sold_like_a_new_lease_and_a_smaller_one_gives_back() -> None:
    kv = await a_market()
    await signed(kv, lease(1, capacity=5 * TB))
    ramp_us = START_US + 100 * DAY_US
    grown = await extend_ramp(kv, an_id(1), SURVEY, from_us=ramp_us, size=9 * TB, now_us=START_US)
    assert (grown.ramp, grown.capacity) == ([(START_US, 5 * TB), (ramp_us, 9 * TB)], 9 * TB)
    with pytest.raises(NotEnoughCapacity):
        await extend_ramp(kv, an_id(1), SURVEY, from_us=ramp_us, size=12 * TB, now_us=START_US)
    with pytest.raises(NotEnoughCapacity):
        await signed(kv, lease(2, capacity=3 * TB))
    await extend_ramp(kv, an_id(1), SURVEY, from_us=ramp_us, size=2 * TB, now_us=START_US)
    assert (await sign(kv, an_id(2), SURVEY, now_us=START_US)).state == "signed"
    with pytest.raises(BadArgument, match="a step lies ahead"):
        await extend_ramp(kv, an_id(1), SURVEY, from_us=START_US, size=TB, now_us=START_US + SECOND_US)


async def test_less_is_always_given_back_also_while_more_is_sold_than_there_is() -> None:
    kv = await a_market()
    await signed(kv, lease(1, capacity=11 * TB))
    lost, later_us = surveyed(six_nodes(5)), START_US + DAY_US
    smaller = await extend_ramp(kv, an_id(1), lost, from_us=later_us, size=10 * TB, now_us=START_US)
    assert smaller.ramp[-1] == (later_us, 10 * TB)
    with pytest.raises(NotEnoughCapacity):
        await extend_ramp(kv, an_id(1), lost, from_us=later_us + DAY_US, size=11 * TB, now_us=START_US)


async def test_a_renewed_lease_that_is_ended_in_its_second_term_is_terminated() -> None:
    kv = await a_market()
    await signed(kv, lease(1, capacity=TB, renews=True))
    await advance(kv, SURVEY, now_us=START_US)
    due_us = notice_due(await find_lease(kv, an_id(1))) + SECOND_US
    assert (await advance(kv, SURVEY, now_us=due_us)).renewed == [an_id(1)]
    at_us = after_months(START_US, 18)
    await terminate(kv, an_id(1), at_us=at_us, now_us=due_us)
    await advance(kv, SURVEY, now_us=at_us)
    assert (await find_lease(kv, an_id(1))).state == "terminated"


async def test_an_early_end_frees_the_capacity_and_costs_a_share_of_what_remains() -> None:
    kv = await a_market()
    await signed(kv, lease(fee_share="0.5"))
    await advance(kv, SURVEY, now_us=START_US)
    at_us = after_months(START_US, 9)
    ended = await terminate(kv, an_id(1), at_us=at_us, now_us=START_US, reason="it moves away")
    assert ended.base == Money.parse("15000.00", "DZD")  # Three months of 10 TB at 500.00.
    assert ended.fee == Money.parse("7500.00", "DZD")
    [(name, waiting)] = await list_carried(kv, "acme")
    assert (name, waiting.left, waiting.line.lease) == (f"termination/{an_id(1)}", 750_000, an_id(1))
    assert (await find_lease(kv, an_id(1))).state == "active"
    with pytest.raises(StateForbids, match="cannot be moved"):
        await terminate(kv, an_id(1), at_us=after_months(START_US, 6), now_us=START_US)
    assert (await signed(kv, lease(2, begin_us=at_us, capacity=11 * TB))).state == "signed"
    assert (await advance(kv, SURVEY, now_us=at_us)).ended == [an_id(1)]
    assert (await find_lease(kv, an_id(1))).state == "terminated"
    with pytest.raises(BadArgument, match="is terminated"):
        await terminate(kv, an_id(1), at_us=at_us, now_us=at_us)


async def test_a_fee_of_some_months_is_never_more_than_what_remains() -> None:
    kv = await a_market()
    await signed(kv, lease(fee_months=2))
    ended = await terminate(kv, an_id(1), at_us=after_months(START_US, 11), now_us=START_US)
    assert ended.fee == Money.parse("5000.00", "DZD")


async def test_a_lease_that_is_ended_before_it_begins_sells_nothing_any_more() -> None:
    kv = await a_market()
    await signed(kv, lease(1, begin_us=START_US + DAY_US, fee_share="0"))
    ended = await terminate(kv, an_id(1), at_us=START_US, now_us=START_US)
    assert (ended.lease.state, ended.fee.minor) == ("terminated", 0)
    assert (await signed(kv, lease(2, capacity=USABLE))).state == "signed"
    assert await list_carried(kv, "acme") == []


async def test_charges_of_a_part_of_a_month_are_its_share_of_the_months_seconds() -> None:
    record = lease(begin_us=START_US + 10 * DAY_US, capacity=31 * TB, unit_price="1.00")
    assert charges_between(record, record.begin_us, after_months(START_US, 1)) == Money.parse("21.00", "DZD")
    assert charges_between(record, START_US, after_months(START_US, 2)) == Money.parse("52.00", "DZD")


async def test_a_lease_renews_itself_unless_notice_was_given_in_time() -> None:
    kv = await a_market()
    stays = await signed(kv, lease(1, capacity=TB, renews=True))
    leaves = await signed(kv, lease(2, capacity=TB, renews=True))
    await advance(kv, SURVEY, now_us=START_US)
    due_us = notice_due(stays)
    await give_notice(kv, leaves.id, now_us=due_us)
    with pytest.raises(BadArgument, match="notice was to be given by 2026-12-02"):
        await give_notice(kv, stays.id, now_us=due_us + 1)
    assert (await advance(kv, SURVEY, now_us=due_us + 1)).renewed == [stays.id]
    assert (await advance(kv, SURVEY, now_us=due_us + 1)).renewed == []
    renewed = await find_lease(kv, stays.id)
    assert (renewed.end_us, renewed.renewals) == (after_months(START_US, 24), 1)
    assert (await advance(kv, SURVEY, now_us=stays.end_us)).ended == [leaves.id]


async def test_a_renewal_for_which_no_capacity_is_left_is_refused_and_the_lease_ends_and_says_why() -> None:
    kv = await a_market()
    stays = await signed(kv, lease(1, capacity=6 * TB, renews=True))
    await advance(kv, SURVEY, now_us=START_US)
    await signed(kv, lease(2, begin_us=stays.end_us, capacity=6 * TB))
    done = await advance(kv, SURVEY, now_us=notice_due(stays) + 1)
    assert "666666666667 bytes are missing" in done.waiting[stays.id]
    assert (await advance(kv, SURVEY, now_us=stays.end_us)).ended == [stays.id]
    ended = await find_lease(kv, stays.id)
    assert ended.state == "ended"
    assert "are missing" in ended.reason


async def test_a_node_lost_is_an_oversold_store_that_names_the_leases_signed_last() -> None:
    kv = await a_market()
    await signed(kv, lease(1, capacity=8 * TB), now_us=START_US)
    await signed(kv, lease(2, capacity=2 * TB), now_us=START_US + 1)
    assert (await book(kv)).at_risk(START_US) == []
    five = await book(kv, six_nodes(5))  # 16 TB x 0.85 x 4/6 = 9.067 TB.
    assert five.oversold(START_US) == 10 * TB - 9_066_666_666_666
    assert [(one.id, missing) for one, missing in five.at_risk(START_US)] == [
        (an_id(2), 10 * TB - 9_066_666_666_666)
    ]
    with pytest.raises(NotEnoughCapacity):
        await signed(kv, lease(3, capacity=1), surveyed(six_nodes(5)))


async def test_best_effort_has_its_own_factor_and_never_stands_in_the_way_of_guaranteed() -> None:
    kv = await a_market()
    await signed(kv, lease(1, kind="best_effort", capacity=16 * TB))
    with pytest.raises(NotEnoughCapacity):
        await signed(kv, lease(2, kind="best_effort", capacity=2 * TB))
    assert (await signed(kv, lease(3, capacity=11 * TB))).state == "signed"


async def test_dedicated_nodes_are_sold_once_and_not_while_the_shared_pool_needs_them() -> None:
    kv = await a_market()
    nodes = six_nodes(12)
    survey = surveyed(nodes)
    own = [node.id for node in nodes[:6]]
    await signed(kv, lease(1, capacity=10 * TB), survey)
    dedicated = lease(2, kind="dedicated", nodes=own, capacity=11 * TB, begin_us=START_US + DAY_US)
    assert (await signed(kv, dedicated, survey)).state == "signed"
    with pytest.raises(BadArgument, match="is in another lease"):
        await signed(kv, lease(3, kind="dedicated", nodes=own, capacity=TB), survey)
    # The six that are left give 11.33 TB from tomorrow on; today there are twelve.
    with pytest.raises(NotEnoughCapacity):
        await signed(kv, lease(4, capacity=2 * TB), survey)
    assert (await signed(kv, lease(5, capacity=TB), survey)).state == "signed"
    rest = [node.id for node in nodes[6:]]
    with pytest.raises(NotEnoughCapacity, match="without these nodes 11000000000000 bytes are missing"):
        await signed(kv, lease(6, kind="dedicated", nodes=rest, capacity=TB), survey)
    lost = await book(kv, [*nodes[:5], *nodes[6:]])
    assert [one.id for one, _ in lost.at_risk(START_US)] == [dedicated.id]
    moved = [*six_nodes(6, pool=pool_of_lease(dedicated.id)), *nodes[6:]]
    assert (await book(kv, moved)).oversold(START_US) == 0


async def test_a_dedicated_lease_begins_when_its_nodes_are_ready_and_not_before() -> None:
    kv = await a_market()
    nodes = six_nodes(12)
    record = lease(kind="dedicated", nodes=[node.id for node in nodes[:6]])
    await signed(kv, record, surveyed(nodes))

    async def drained(one: LeaseRecord) -> str:
        return "others' data lies there"

    done = await advance(kv, surveyed(nodes), now_us=START_US, ready=drained)
    assert done.waiting == {record.id: "others' data lies there"}
    assert (await advance(kv, surveyed(nodes), now_us=START_US)).begun == [record.id]


async def test_disks_that_are_delivered_can_be_sold_from_their_day_on_and_planned_ones_if_that_is_said() -> (
    None
):
    kv = await a_market()
    day_us = START_US + 30 * DAY_US
    event = CapacityEventRecord(id="e", at_us=day_us, raw=30 * TB)
    await put_event(kv, event)
    record = lease(1, capacity=20 * TB, begin_us=day_us)
    assert await answer(kv, record, SURVEY, now_us=START_US) != ""
    await put_rules(kv, include_planned=True)
    assert await answer(kv, record, SURVEY, now_us=START_US) == ""
    await put_rules(kv, include_planned=False)
    await put_event(kv, msgspec.structs.replace(event, state="delivered"))
    assert await answer(kv, record, SURVEY, now_us=START_US) == ""
    assert await answer(kv, lease(1, capacity=20 * TB), SURVEY, now_us=START_US) != ""
    # When its day has come the disks say what is there.
    assert await answer(kv, record, SURVEY, now_us=day_us) != ""


async def test_disks_that_will_leave_are_missing_from_their_day_on_until_they_are_gone() -> None:
    kv = await a_market()
    day_us = START_US + 30 * DAY_US
    event = CapacityEventRecord(id="e", at_us=day_us, raw=-10 * TB, state="delivered")
    await put_event(kv, event)
    for now_us in (START_US, day_us, day_us + DAY_US):
        assert await answer(kv, lease(1, capacity=10 * TB), SURVEY, now_us=now_us) != ""
    await put_event(kv, msgspec.structs.replace(event, state="done"))
    assert await answer(kv, lease(1, capacity=10 * TB), SURVEY, now_us=START_US) == ""


async def test_rules_of_sale_are_bounded_and_hold_for_the_next_sale() -> None:
    kv = await a_market()
    with pytest.raises(BadArgument):
        await put_rules(kv, oversubscription="0.9")
    with pytest.raises(BadArgument):
        await put_rules(kv, fill_max="1.01")
    with pytest.raises(BadArgument, match="no rule fill"):
        await put_rules(kv, fill="1")
    await put_rules(kv, fill_max="0.70", spare_domains=2)
    found = await book(kv)
    assert found.usable("", START_US).base == int(16 * TB * Fraction(7, 10) * Fraction(4, 6))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"kind": "cheap"}, "kind"),
        ({"capacity": 0}, "bytes"),
        ({"capacity": 10**19}, "bytes"),
        ({"begin_us": START_US + 1}, "begin"),
        ({"end_us": START_US}, "end"),
        ({"nodes": ["a"]}, "nodes"),
        ({"kind": "dedicated"}, "nodes"),
        ({"unit_price": "-1"}, "unit_price"),
        ({"fee_share": "1.1"}, "fee_share"),
        ({"unit": "PB!"}, "unit"),
        ({"overage_mode": "sometimes"}, "overage_mode"),
        ({"overage_max": 5}, "overage_max"),
        ({"ramp": [(START_US, 5 * TB)]}, "ramp"),
        ({"ramp": [(START_US + SECOND_US, 10 * TB)]}, "ramp"),
        ({"ramp": [(START_US, 10 * TB), (START_US, 1)]}, "ramp"),
        ({"currency": "XXX"}, "currency"),
    ],
)
def test_terms_that_cannot_be_are_refused_by_name(given: dict[str, object], name: str) -> None:
    with pytest.raises(BadArgument) as refused:
        check_lease(lease(**given))  # type: ignore[arg-type]
    assert refused.value.name == name


async def test_only_customers_in_good_standing_and_in_their_own_currency_lease() -> None:
    kv = await a_market()
    with pytest.raises(BadArgument, match="there is no customer"):
        await make_lease(kv, lease(tenant="nobody"), now_us=START_US)
    with pytest.raises(BadArgument, match="billed in DZD"):
        await make_lease(kv, lease(currency="EUR"), now_us=START_US)
    await make_lease(kv, lease(), now_us=START_US)
    await kv.commit(Transaction(put={account_key("acme"): encode(AccountRecord(state="suspended"))}))
    with pytest.raises(BadArgument, match="is suspended"):
        await sign(kv, an_id(1), SURVEY, now_us=START_US)


async def test_who_is_on_trial_gets_a_lease_from_an_operator_only() -> None:
    kv = await a_market()
    await put_offer(kv, OFFER, now_us=START_US)
    await kv.commit(Transaction(put={account_key("acme"): encode(AccountRecord(state="trial"))}))
    await make_lease(kv, lease(), now_us=START_US)
    with pytest.raises(BadArgument, match="is trial"):
        await order(
            kv, "one-year", SURVEY, lease=an_id(2), tenant="acme", size=TB, term_months=12,
            begin_us=START_US, now_us=START_US,
        )  # fmt: skip
    assert (await sign(kv, an_id(1), SURVEY, now_us=START_US)).state == "signed"


@pytest.mark.parametrize(
    ("day", "months", "expected"),
    [("2026-01-31", 1, "2026-02-28"), ("2024-01-31", 1, "2024-02-29"), ("2026-11-30", 3, "2027-02-28")],
)
def test_a_term_ends_on_the_same_day_or_the_months_last(day: str, months: int, expected: str) -> None:
    begin_us = int(datetime.fromisoformat(f"{day}T10:00:00Z").timestamp()) * SECOND_US
    assert utc_text(after_months(begin_us, months) / 1e6) == f"{expected}T10:00:00Z"


OFFER = OfferRecord(
    name="one-year", least=TB, most=10 * TB, step=TB, terms_months=[12, 36], unit_price="400.00", renews=True
)


async def test_a_tenant_orders_from_an_offer_and_gets_a_signed_lease_of_its_terms() -> None:
    kv = await a_market()
    await put_offer(kv, OFFER, now_us=START_US)
    assert [one.name for one in await list_offers(kv)] == ["one-year"]

    async def ordered(number: int, size: int, months: int = 12) -> LeaseRecord:
        return await order(
            kv,
            "one-year",
            SURVEY,
            lease=an_id(number),
            tenant="acme",
            size=size,
            term_months=months,
            begin_us=0,
            now_us=START_US + 5,
        )

    record = await ordered(1, 8 * TB, 36)
    assert (record.state, record.offer, record.unit_price, record.renews) == (
        "signed",
        "one-year",
        "400.00",
        True,
    )
    assert (record.begin_us, record.end_us) == (START_US + SECOND_US, after_months(START_US + SECOND_US, 36))
    assert await find_lease(kv, record.id) == record
    for size, months in ((TB // 2, 12), (11 * TB, 12), (TB + 1, 12), (TB, 24)):
        with pytest.raises(BadArgument):
            await ordered(2, size, months)
    with pytest.raises(NotEnoughCapacity):
        await ordered(2, 4 * TB)
    assert await leases_of(kv, "acme") == [record]
    await put_offer(kv, msgspec.structs.replace(OFFER, open=False), now_us=START_US)
    with pytest.raises(BadArgument, match="is closed"):
        await ordered(2, TB)


async def test_an_offer_is_for_the_kinds_of_customers_that_it_names() -> None:
    kv = await a_market()
    await put_offer(kv, msgspec.structs.replace(OFFER, customer_kinds=["wholesale"]), now_us=START_US)
    with pytest.raises(BadArgument, match="is for wholesale"):
        await order(
            kv,
            "one-year",
            SURVEY,
            lease=an_id(1),
            tenant="acme",
            size=TB,
            term_months=12,
            begin_us=START_US,
            now_us=START_US,
        )


@pytest.mark.parametrize(
    "given", [{"kind": "dedicated"}, {"terms_months": []}, {"least": 0}, {"step": 0}, {"sla": "never"}]
)
async def test_an_offer_of_which_no_order_could_be_signed_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(BadArgument):
        await put_offer(await a_market(), msgspec.structs.replace(OFFER, **given), now_us=START_US)


# What a tenant may store.


async def bound_of(kv: DictKv, tenant: str = "acme") -> int | None:
    value = await kv.get(account_key(tenant))
    assert value is not None
    return decode(value, AccountRecord).leased


@pytest.mark.parametrize(
    ("terms", "bound"),
    [
        ([{}], 2 * TB),
        ([{"overage_mode": "average"}], None),
        ([{"overage_mode": "average", "overage_max": TB}], 3 * TB),
        ([{"overage_mode": "peak_daily", "overage_max": 0}], 2 * TB),
        ([{}, {"overage_mode": "average", "overage_max": TB}], 5 * TB),
        ([{}, {"overage_mode": "instantaneous"}], None),
    ],
)
async def test_who_leases_stores_its_capacity_and_what_may_be_above_it(
    terms: list[dict[str, Any]], bound: int | None
) -> None:
    kv = await a_market()
    for number, given in enumerate(terms, 1):
        await signed(kv, lease(number, capacity=2 * TB, begin_us=START_US + DAY_US, **given))
    await advance(kv, SURVEY, now_us=START_US)
    assert await bound_of(kv) is None  # Signed is not begun.
    await advance(kv, SURVEY, now_us=START_US + DAY_US)
    assert await bound_of(kv) == bound
    end_us = (await find_lease(kv, an_id(1))).end_us
    await advance(kv, SURVEY, now_us=end_us)
    assert await bound_of(kv) is None


async def test_a_ramp_takes_its_steps_and_an_early_end_holds_at_once() -> None:
    kv = await a_market()
    steps = [(START_US, TB), (START_US + DAY_US, 3 * TB)]
    await signed(kv, lease(1, capacity=3 * TB, ramp=steps))
    await signed(kv, lease(2, capacity=TB))
    await advance(kv, SURVEY, now_us=START_US)
    assert await bound_of(kv) == 2 * TB
    assert (await advance(kv, SURVEY, now_us=START_US + DAY_US - 1)).followed == []
    assert (await advance(kv, SURVEY, now_us=START_US + DAY_US)).followed == ["acme"]
    assert await bound_of(kv) == 4 * TB
    assert (await advance(kv, SURVEY, now_us=START_US + DAY_US)).followed == []
    now_us = START_US + 2 * DAY_US
    await extend_ramp(kv, an_id(1), SURVEY, from_us=now_us, size=2 * TB, now_us=now_us)
    assert await bound_of(kv) == 3 * TB
    await terminate(kv, an_id(2), at_us=now_us, now_us=now_us)
    assert await bound_of(kv) == 2 * TB
    await terminate(kv, an_id(1), at_us=now_us + DAY_US, now_us=now_us)
    assert await bound_of(kv) == 2 * TB
    await advance(kv, SURVEY, now_us=now_us + DAY_US)
    assert await bound_of(kv) is None


async def test_a_renewed_lease_holds_its_tenant_without_a_gap() -> None:
    kv = await a_market()
    record = await signed(kv, lease(capacity=TB, renews=True))
    for now_us in (START_US, notice_due(record) + 1, record.end_us - 1, record.end_us, record.end_us + 1):
        await advance(kv, SURVEY, now_us=now_us)
        assert await bound_of(kv) == TB


async def test_a_tenant_whose_account_cannot_be_changed_holds_up_nobody_else() -> None:
    kv = await a_market("acme", "bolt")
    await signed(kv, lease(1, capacity=TB, ramp=[(START_US, 0), (START_US + DAY_US, TB)]))
    await advance(kv, SURVEY, now_us=START_US)
    await signed(kv, lease(2, capacity=TB))
    await signed(kv, lease(3, capacity=TB, tenant="bolt"))
    names = {f"project-{number:03}-{'x' * 40}": Limits(objects_max=1) for number in range(100)}
    full = next(  # The bound has no room to grow in it.
        record
        for size in range(VALUE_SIZE_MAX)
        if len(encode(record := AccountRecord(projects=names, leased=0, placement="z" * size)))
        == VALUE_SIZE_MAX
    )
    await kv.commit(Transaction(put={account_key("acme"): encode(full)}))
    done = await advance(kv, SURVEY, now_us=START_US + DAY_US)
    assert done.begun == [an_id(3)]
    assert "are kept" in done.waiting[an_id(2)]
    assert "are kept" in done.refused["acme"]
    assert await bound_of(kv, "bolt") == TB


async def test_a_lower_quota_holds_beside_a_lease_and_is_not_touched_by_it() -> None:
    kv = await a_market()
    await signed(kv, lease(capacity=2 * TB))
    scope = Scope(kind="tenant", tenant="acme")
    await change_limits(kv, scope, {"bytes_max": TB, "objects_max": 7})
    await advance(kv, SURVEY, now_us=START_US)
    quota = await show_quota(kv, scope)
    assert (quota.limits.bytes_max, quota.leased, quota.in_force) == (TB, 2 * TB, quota.limits)
    await change_limits(kv, scope, {"bytes_max": None})
    quota = await show_quota(kv, scope)
    assert (quota.limits.bytes_max, quota.in_force) == (None, Limits(bytes_max=2 * TB, objects_max=7))


async def test_leases_that_begin_and_end_at_the_same_time_leave_the_bound_of_what_is_in_force() -> None:
    """Several gateways move leases on at once, while operators end and enlarge them."""
    chance = random.Random(SEED)
    for _ in range(20):
        kv = SlowKv()
        market = await a_market()
        await kv.commit(Transaction(put=dict(await market.scan(b"", b"\xff", 1_000))))
        for number in range(1, 5):
            begin_us = START_US + chance.randrange(2) * DAY_US
            await signed(kv, lease(number, capacity=chance.randint(1, 2) * TB, begin_us=begin_us))
        await advance(kv, SURVEY, now_us=START_US)
        now_us = START_US + DAY_US
        later_us = now_us + chance.randrange(2) * SECOND_US
        await asyncio.gather(
            advance(kv, SURVEY, now_us=now_us),
            advance(kv, SURVEY, now_us=now_us),
            terminate(kv, an_id(chance.randint(1, 4)), at_us=later_us, now_us=now_us),
            extend_ramp(kv, an_id(1), SURVEY, from_us=later_us, size=TB, now_us=now_us),
            return_exceptions=True,
        )
        expected = storable_bytes(await leases_of(kv, "acme"), now_us)
        assert await bound_of(kv) == expected, SEED


class WatchedMarket(SlowKv):
    """Nothing is ever sold above what is usable, at no moment of any lease, behind no commit."""

    watching = False

    async def commit(self, transaction: Transaction) -> None:
        await super().commit(transaction)
        if self.watching:
            sold = await read_book(self, Supply(nodes=POOLS, code=(4, 2)))
            assert sold.oversold(START_US) == 0, "a commit sold the same byte twice"


async def test_a_pool_is_one_with_disks_or_policies_or_one_that_is_announced() -> None:
    kv = await a_market()

    async def survey() -> Supply:
        nodes = [*six_nodes(), *six_nodes(first=11, pool="cold"), *six_nodes(first=21, pool=LEASED)]
        return Supply(nodes=nodes, code=(4, 2), pools=frozenset({"", "cold", "dark", LEASED}))

    for pool in ("", "cold", "dark"):  # In which all nodes are away.
        await check_source(kv, survey, pool=pool)
    for pool in ("gold", LEASED):
        with pytest.raises(BadArgument) as refused:
            await check_source(kv, survey, pool=pool)
        assert f"no pool {pool!r}: pools are the shared one, which has no name, cold, dark;" in str(
            refused.value
        )
    event = CapacityEventRecord(id=an_id(1), at_us=START_US + DAY_US, raw=TB, state="planned", pool="gold")
    await put_event(kv, event)
    await check_source(kv, survey, pool="gold")
    await put_event(kv, msgspec.structs.replace(event, state="cancelled"))
    with pytest.raises(BadArgument, match="no pool 'gold'"):
        await check_source(kv, survey, pool="gold")


async def test_a_node_is_one_that_has_joined_also_while_it_is_away() -> None:
    kv, nodes = await a_market(), six_nodes()

    async def survey() -> Supply:
        return Supply(nodes=nodes, code=(4, 2), members=frozenset({"away", *(node.id for node in nodes)}))

    await check_source(kv, survey, nodes=["away", nodes[0].id])
    with pytest.raises(BadArgument, match="there is no node 'never': objstore node list"):
        await check_source(kv, survey, nodes=[nodes[0].id, "never"])


LEASED = pool_of_lease(an_id(9))
POOLS = [*six_nodes(), *six_nodes(first=11, pool="cold")]


async def test_whatever_gateways_sell_at_the_same_time_no_commit_sells_a_byte_twice() -> None:
    """Signatures, orders, larger steps, renewals and early ends of two pools, from many sides at once."""
    chance = random.Random(SEED)
    survey = surveyed(POOLS)
    for _ in range(10):
        kv = WatchedMarket()
        market = await a_market()
        await kv.commit(Transaction(put=dict(await market.scan(b"", b"\xff", 1_000))))
        for pool in ("", "cold"):
            offer = OfferRecord(name=f"of{pool}", least=TB, most=4 * TB, terms_months=[6, 12], pool=pool)
            await put_offer(kv, offer, now_us=START_US)
        for number in range(14):
            pool = chance.choice(["", "cold"])
            base = lease(number, months=chance.choice([1, 6, 12]), capacity=chance.randint(1, 5) * TB)
            await make_lease(
                kv, msgspec.structs.replace(base, pool=pool, renews=chance.random() < 0.5), now_us=START_US
            )
        for number in range(4):
            await asyncio.gather(sign(kv, an_id(number), survey, now_us=START_US), return_exceptions=True)
        await advance(kv, survey, now_us=START_US)
        kv.watching = True
        now_us = (await find_lease(kv, an_id(0))).begin_us + 20 * DAY_US  # Renewals of a month are due.
        acts = [sign(kv, an_id(number), survey, now_us=now_us) for number in range(4, 14)]
        acts += [
            extend_ramp(kv, an_id(number), survey, from_us=now_us + DAY_US, size=size * TB, now_us=now_us)
            for number, size in zip(range(4), chance.sample(range(1, 8), 4), strict=True)
        ]
        orders = [
            order(
                kv, f"of{pool}", survey, lease=an_id(100 + number), tenant="acme", begin_us=now_us,
                size=chance.randint(1, 4) * TB, term_months=6, now_us=now_us,
            )
            for number, pool in enumerate(chance.choices(["", "cold"], k=6))
        ]  # fmt: skip
        others = [
            advance(kv, survey, now_us=now_us),
            terminate(kv, an_id(0), at_us=now_us + 2 * DAY_US, now_us=now_us),
        ]
        everything = [*acts, *orders, *others]
        chance.shuffle(everything)
        outcomes = await asyncio.gather(*everything, return_exceptions=True)
        refusals = [one for one in outcomes if isinstance(one, BaseException)]
        assert all(isinstance(one, (NotEnoughCapacity, BadArgument)) for one in refusals), (SEED, refusals)
        assert len(refusals) < len(outcomes), SEED


# What was sold and may be sold, worked out from what was asked for: not from records, and not by their rules.

MONTHS_AHEAD = 24
LOOKED_AT = [after_months(START_US, number) for number in range(MONTHS_AHEAD)]  # Everything changes at these.
LONG = bool(os.environ.get("OBJSTORE_LONG"))
SALES_HISTORIES = 2_000 if LONG else 40


@dataclass
class Promise:
    """A lease in force, as whoever signed it remembers it."""

    kind: str
    begin_us: int
    end_us: int
    steps: list[tuple[int, int]]  # From when on, bytes.
    nodes: list[str]
    shortened: bool = False  # By an early end, of which a lease has one.

    def size(self, at_us: int) -> int:
        if not self.begin_us <= at_us < self.end_us:
            return 0
        return [size for from_us, size in self.steps if from_us <= at_us][-1]


def usable_bytes(there: Sequence[Node], promises: Collection[Promise], at_us: int) -> Fraction:
    """Four sixths of 85 % of the nodes that are nobody's own, less the largest of them."""
    own = {
        node for one in promises if one.kind == "dedicated" and one.begin_us <= at_us for node in one.nodes
    }
    raws = [sum(node.disks) for node in there if node.id not in own]
    return Fraction(85, 100) * Fraction(4, 6) * (sum(raws) - max(raws, default=0))


def may_be_sold(
    there: Sequence[Node], others: Collection[Promise], one: Promise, before: Promise | None = None
) -> bool:
    """Args: before: the same one, as it was when it is to grow: it may always become less."""
    everyone = [*others, one]
    if before is not None and all(one.size(at_us) <= before.size(at_us) for at_us in LOOKED_AT):
        return True
    if one.kind == "dedicated":
        taken = {node for other in others for node in other.nodes}
        raws = [sum(node.disks) for node in there if node.id in one.nodes]
        gives = Fraction(85, 100) * Fraction(4, 6) * (sum(raws) - max(raws, default=0))
        if taken & set(one.nodes) or len(raws) < 3 or one.steps[0][1] > int(gives):
            return False
    for at_us in LOOKED_AT:
        if one.kind != "dedicated" and not one.size(at_us):
            continue
        if one.kind == "dedicated" and at_us < one.begin_us:
            continue
        guaranteed = sum(each.size(at_us) for each in everyone if each.kind == "guaranteed")
        best_effort = sum(each.size(at_us) for each in everyone if each.kind == "best_effort")
        beside = Fraction(best_effort * 2, 3) if one.kind == "best_effort" else Fraction(0)
        if guaranteed + beside > int(usable_bytes(there, everyone, at_us)):
            return False
    return True


async def test_no_history_of_sales_promises_what_is_not_there_nor_refuses_what_is() -> None:
    """Leases of all kinds are signed, get other steps and end early while nodes are lost and come back."""
    chance = random.Random(SEED)
    seen: Counter[str] = Counter()
    for _ in range(SALES_HISTORIES):
        await play_sales(chance, seen)
    print(f"OBJSTORE_TEST_SEED={SEED}", dict(seen))
    wanted = {f"{act} {kind}" for act in ("sold", "refused") for kind in ("guaranteed", "best_effort")}
    assert wanted | {"sold dedicated", "refused dedicated", "grown", "not grown", "ended", "lost"} <= set(
        seen
    )


async def play_sales(chance: random.Random, seen: Counter[str]) -> None:
    kv = await a_market()
    nodes = six_nodes(9)
    lost: set[str] = set()
    promises: dict[int, Promise] = {}
    for number in range(chance.randint(8, 20)):
        there = [node for node in nodes if node.id not in lost]
        survey = surveyed(there)
        act = chance.random()
        if act < 0.5:
            await _sell(kv, chance, number, promises, there, seen)
        elif act < 0.75 and (growing := [each for each in promises if promises[each].kind != "dedicated"]):
            of = chance.choice(growing)
            before = promises[of]
            from_us = chance.choice([at for at in LOOKED_AT if before.begin_us <= at < before.end_us])
            size = chance.randint(1, 14) * TB
            kept = [step for step in before.steps if step[0] < from_us]
            after = dataclasses.replace(before, steps=[*kept, (from_us, size)])
            others = [promise for each, promise in promises.items() if each != of]
            fits = may_be_sold(there, others, after, before)
            try:
                await extend_ramp(kv, an_id(of), survey, from_us=from_us, size=size, now_us=START_US)
            except NotEnoughCapacity:
                assert not fits, SEED
                seen["not grown"] += 1
            else:
                assert fits, SEED
                promises[of] = after
                seen["grown"] += 1
        elif act < 0.85 and (whole := [each for each in promises if not promises[each].shortened]):
            of = chance.choice(whole)
            ending = promises.pop(of)
            at_us = chance.choice([at for at in LOOKED_AT if at < ending.end_us])
            await terminate(kv, an_id(of), at_us=at_us, now_us=START_US)
            if at_us > ending.begin_us:
                promises[of] = dataclasses.replace(ending, end_us=at_us, shortened=True)
            seen["ended"] += 1
        elif act < 0.95:
            lost.add(chance.choice(nodes).id)
            seen["lost"] += 1
        else:
            lost.clear()


async def _sell(
    kv: DictKv,
    chance: random.Random,
    number: int,
    promises: dict[int, Promise],
    there: Sequence[Node],
    seen: Counter[str],
) -> None:
    kind = chance.choice(["guaranteed", "guaranteed", "best_effort", "dedicated"])
    begins, months = chance.randrange(MONTHS_AHEAD // 2), chance.randint(1, MONTHS_AHEAD // 2)
    begin_us = LOOKED_AT[begins]
    own = [node.id for node in chance.sample(list(there), min(3, len(there)))] if kind == "dedicated" else []
    record = lease(number, months=months, begin_us=begin_us, kind=kind, nodes=own)
    record = msgspec.structs.replace(record, capacity=chance.randint(1, 14) * TB // (3 if own else 1))
    promise = Promise(kind, begin_us, LOOKED_AT[begins + months], [(begin_us, record.capacity)], own)
    fits = may_be_sold(there, list(promises.values()), promise)
    try:
        await signed(kv, record, surveyed(there))
    except (NotEnoughCapacity, BadArgument):
        assert not fits, (SEED, record)
        seen[f"refused {kind}"] += 1
    else:
        assert fits, (SEED, record)
        promises[number] = promise
        seen[f"sold {kind}"] += 1
