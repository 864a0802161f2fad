"""Rate cards, tax rules and service levels in metadata: what documents were made from stays as it was."""

import asyncio
from datetime import date
from decimal import Decimal

import msgspec
import pytest

from objstore.errors import BadArgument
from objstore.meta.kv import DictKv
from objstore.rental import catalogue
from objstore.rental.catalogue import (
    find_plan,
    find_service_level,
    list_plans,
    list_service_levels,
    publish_plan,
    put_service_level,
    put_tax_rule,
    tax_rules,
)
from objstore.rental.plans import Plan
from objstore.rental.service_levels import S3_STANDARD
from objstore.rental.taxes import TaxRule
from tests.rental.cards import SharedKv, plan, rate


def version(number: int, price: str = "1", code: str = "test") -> Plan:
    return msgspec.structs.replace(plan(rate(price)), version=number, code=code)


async def test_versions_of_a_plan_count_up_and_the_newest_is_found() -> None:
    kv = DictKv()
    for number in range(1, 301):
        await publish_plan(kv, version(number, str(number)), made_us=number, made_by="ops")
    assert (await find_plan(kv, "test")).plan == version(300, "300")
    assert (await find_plan(kv, "test", 2)).made_us == 2
    with pytest.raises(BadArgument, match="there is no version 301 of plan 'test'"):
        await publish_plan(kv, version(302), made_us=1)
    with pytest.raises(BadArgument, match="there is no version 301"):
        await find_plan(kv, "test", 301)
    with pytest.raises(BadArgument, match="there is no plan 'tes'"):
        await find_plan(kv, "tes")


@pytest.mark.parametrize("name", ["", "A", "a\0", "\ud800", "a" * 99, "../x"])
async def test_a_name_that_nothing_can_have_is_a_clear_error(name: str) -> None:
    for find in (find_plan, find_service_level):
        with pytest.raises(BadArgument, match="1 to 48 of a-z"):
            await find(DictKv(), name)
    for number in (-1, 2**32):
        with pytest.raises(BadArgument, match="version must be"):
            await find_plan(DictKv(), "test", number)


async def test_a_version_never_changes_and_the_same_again_is_no_change() -> None:
    kv = DictKv()
    first = await publish_plan(kv, version(1), made_us=1, made_by="ops")
    assert await publish_plan(kv, version(1), made_us=2, made_by="other") == first
    with pytest.raises(BadArgument, match="never changes: publish version 2"):
        await publish_plan(kv, version(1, "2"), made_us=3)
    assert await find_plan(kv, "test") == first


async def test_of_two_who_publish_a_version_at_once_one_is_told_that_it_is_taken() -> None:
    kv = SharedKv()
    ended = await asyncio.gather(
        *(publish_plan(kv, version(1, price), made_us=1) for price in ("1", "2")), return_exceptions=True
    )
    assert sum(isinstance(one, BadArgument) for one in ended) == 1
    assert len(await list_plans(kv)) == 1


async def test_plans_are_listed_by_code_and_version_page_by_page() -> None:
    kv = DictKv()
    for code in ("b", "a", "a-b"):
        for number in (1, 2):
            await publish_plan(kv, version(number, code=code), made_us=1)
    wanted = [("a", 1), ("a", 2), ("a-b", 1), ("a-b", 2), ("b", 1), ("b", 2)]
    found: list[tuple[str, int]] = []
    while page := await list_plans(kv, after=found[-1] if found else None, limit=4):
        found += [(record.plan.code, record.plan.version) for record in page]
    assert found == wanted


async def test_a_plan_that_makes_no_sense_is_not_kept() -> None:
    kv = DictKv()
    with pytest.raises(BadArgument, match="items must be"):
        await publish_plan(kv, Plan(code="a", version=1, currency="EUR", items=()), made_us=1)
    assert await list_plans(kv) == []


async def test_of_a_tax_rule_only_its_end_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    kv = DictKv()
    rule = TaxRule(id="dz", country="DZ", rate=Decimal("0.19"), label="TVA 19 %")
    ended = msgspec.structs.replace(rule, valid_to=date(2027, 1, 1))
    await put_tax_rule(kv, rule, made_us=1)
    await put_tax_rule(kv, ended, made_us=2)
    assert await tax_rules(kv) == (ended,)
    with pytest.raises(BadArgument, match="only valid_to may change"):
        await put_tax_rule(kv, msgspec.structs.replace(ended, rate=Decimal("0.2")), made_us=3)
    with pytest.raises(BadArgument, match="label must be"):
        await put_tax_rule(kv, msgspec.structs.replace(rule, id="x", label=""), made_us=3)
    await put_tax_rule(kv, msgspec.structs.replace(rule, id="a"), made_us=3)
    assert [one.id for one in await tax_rules(kv)] == ["a", "dz"]
    monkeypatch.setattr(catalogue, "RULES_MAX", 2)
    with pytest.raises(BadArgument, match="2 tax rules at most"):
        await put_tax_rule(kv, msgspec.structs.replace(rule, id="b"), made_us=3)
    assert (await put_tax_rule(kv, ended, made_us=9)).made_us == 2


async def test_a_service_level_never_changes() -> None:
    kv = DictKv()
    kept = await put_service_level(kv, S3_STANDARD, made_us=1)
    assert await put_service_level(kv, S3_STANDARD, made_us=2) == kept
    other = msgspec.structs.replace(S3_STANDARD, tiers=S3_STANDARD.tiers[:1])
    with pytest.raises(BadArgument, match="never changes"):
        await put_service_level(kv, other, made_us=2)
    await put_service_level(kv, msgspec.structs.replace(other, id="a"), made_us=2)
    assert await find_service_level(kv, "s3-standard") == S3_STANDARD
    assert [level.id for level in await list_service_levels(kv)] == ["a", "s3-standard"]
    assert [level.id for level in await list_service_levels(kv, after="a")] == ["s3-standard"]
    with pytest.raises(BadArgument, match="there is no service level 'gold'"):
        await find_service_level(kv, "gold")
