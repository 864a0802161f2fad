"""Invoices: what a draft comes to, how often it is made, and what makes it final."""

import random
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import DictKv, prefix_end
from objstore.meta.schema import decode
from objstore.rental import wallets
from objstore.rental.carried import carry, list_carried, take_carried, termination_fee
from objstore.rental.customers import change_customer
from objstore.rental.drafts import ExchangeRate, draft_invoice
from objstore.rental.invoices import (
    FinalRun,
    finalise,
    finalise_due,
    find_document,
    list_documents,
    list_drafts,
    note_pdf,
    read_lines,
)
from objstore.rental.late_usage import correct_month
from objstore.rental.money import Money
from objstore.rental.months import Month
from objstore.rental.records import CarriedRecord, CustomerRecord
from objstore.rental.sellers import change_seller
from objstore.rental.series import verify_series
from objstore.rental.service_levels import S3_STANDARD, Interval, assess, credit_lines
from tests.rental.parties import (
    DAY_US,
    ISSUED_US,
    MARCH,
    RULES,
    SELLER,
    a_customer,
    a_draft,
    a_market,
    an_invoice,
    line,
    pay,
    randomness,
)
from tests.seed import SEED

APRIL = Month(2026, 4)


@pytest.mark.parametrize(
    ("country", "currency", "net", "tax", "total"),
    [
        ("DZ", "DZD", "78355.00", "14887.45", "93242.45"),
        ("MA", "MAD", "78355.00", "15671.00", "94026.00"),
        ("TN", "TND", "78355.000", "14887.450", "93242.450"),
        ("SN", "XOF", "78355", "14104", "92459"),
    ],
)
async def test_vector_v10_holds_through_a_whole_invoice(
    country: str, currency: str, net: str, tax: str, total: str
) -> None:
    kv = await a_market(seller=msgspec.structs.replace(SELLER, country=country))
    await change_customer(kv, "acme", currency=currency)
    lines = [
        line(Money.of(100 * Decimal("690.00"), currency).minor),
        line(Money.of(10 * Decimal("935.50"), currency).minor),
    ]
    record = await an_invoice(kv, "acme", lines)
    assert str(Money(record.total_net, currency)) == net
    assert str(Money(record.total_tax, currency)) == tax
    assert str(Money(record.total, currency)) == total
    assert record.number == "FA-2026-000001"


async def test_vector_v11_each_line_is_rounded_for_itself() -> None:
    kv = await a_market()
    price = Money.of(Decimal("0.345"), "DZD").minor
    record = await an_invoice(kv, "acme", [line(price)] * 3)
    assert record.total_net == 105
    assert record.total_tax == 20  # 1.05 x 0.19 = 0.1995.


async def test_an_invoice_says_its_total_in_words() -> None:
    kv = await a_market()
    record = await an_invoice(kv, "acme", [line(7_835_500)])
    assert record.words.startswith("quatre-vingt-treize mille deux cent quarante-deux dinars algériens")


async def test_drafting_the_same_lines_again_changes_nothing() -> None:
    kv = await a_market()
    first = await a_draft(kv, "acme", [line(100)])
    before = await kv.scan(b"", b"\xff", 1_000)
    assert await a_draft(kv, "acme", [line(100)], now_us=ISSUED_US + DAY_US) == first
    assert await kv.scan(b"", b"\xff", 1_000) == before


async def test_a_month_has_one_draft_however_often_it_is_made_and_keeps_no_page_of_an_earlier_one() -> None:
    kv = await a_market()
    first = await a_draft(kv, "acme", [line(net) for net in range(1, 50)])
    again = await a_draft(kv, "acme", [line(7), line(8)])
    assert again.id == first.id
    assert again.revision == first.revision + 1
    assert [one.net for one in await read_lines(kv, again)] == [7, 8]
    assert len(await kv.scan(b"Yi" + first.id.encode() + b"\0", b"Yi" + first.id.encode() + b"\1", 99)) == 1
    assert [one.id for one in await list_drafts(kv)] == [first.id]


async def test_a_month_of_which_nothing_is_left_has_no_draft() -> None:
    kv = await a_market()
    await a_draft(kv, "acme", [line(1)])
    gone = await draft_invoice(kv, "acme", MARCH, [], rules=RULES, now_us=ISSUED_US, randomness=randomness())
    assert gone is None
    assert await list_drafts(kv) == []
    assert await list_documents(kv, "acme") == []
    assert await kv.scan(b"Yi", b"Yj", 9) == []


async def test_a_month_that_is_final_is_drafted_no_more() -> None:
    kv = await a_market()
    final = await an_invoice(kv, "acme", [line(100)])
    assert await a_draft(kv, "acme", [line(999)]) == final
    assert (await finalise(kv, [final.id], now_us=ISSUED_US + DAY_US))[0] == final
    assert (await verify_series(kv, "oran", 2026, "invoice")).count == 1


async def test_several_rates_of_tax_have_a_line_each_and_every_line_says_its_own() -> None:
    kv = await a_market()
    record = await an_invoice(kv, "acme", [line(1_000), line(333, product="reduced"), line(50)])
    assert [(tax.rate, tax.base, tax.amount) for tax in record.taxes] == [
        ("0.19", 1_050, 200),
        ("0.09", 333, 30),
    ]
    assert [one.tax for one in await read_lines(kv, record)] == [1, 2, 1]


async def test_an_exempt_customer_pays_no_tax_and_its_invoice_says_by_what_law() -> None:
    kv = await a_market("other")
    await a_customer(kv, "acme", tax_profile="exempt")
    record = await an_invoice(kv, "acme", [line(1_000)])
    assert record.total == 1_000
    assert record.taxes[0].legal_basis == "Art. 42"


async def test_without_a_tax_rule_nothing_is_drafted() -> None:
    kv = await a_market()
    with pytest.raises(BadArgument, match="no tax rule"):
        await draft_invoice(
            kv, "acme", MARCH, [line(1)], rules=RULES[2:], now_us=ISSUED_US, randomness=randomness()
        )
    assert await list_drafts(kv) == []


async def test_a_draft_never_takes_the_place_of_another_document() -> None:
    kv = await a_market("acme", "bolt")

    def always_the_same(size: int) -> bytes:
        return bytes(size)

    args = {"rules": RULES, "now_us": ISSUED_US, "randomness": always_the_same}
    first = await draft_invoice(kv, "acme", MARCH, [line(1)], **args)  # type: ignore[arg-type]
    assert first is not None
    with pytest.raises(BadArgument, match="there is a document"):
        await draft_invoice(kv, "bolt", MARCH, [line(2)], **args)  # type: ignore[arg-type]
    assert await find_document(kv, first.id) == first


async def test_a_draft_stays_open_until_late_usage_has_come_in() -> None:
    kv = await a_market()
    draft = await a_draft(kv, "acme", [line(100)])
    end_us = MARCH.end_s * SECOND_US
    with pytest.raises(BadArgument, match="48 hours"):
        await finalise(kv, [draft.id], now_us=end_us)
    with pytest.raises(BadArgument, match="stays open"):
        await finalise(kv, [draft.id], now_us=end_us + 2 * DAY_US - 1)
    with pytest.raises(BadArgument, match="stays open"):
        await finalise(kv, [draft.id], now_us=end_us - 1, early=True)
    final = await finalise(kv, [draft.id], now_us=end_us, early=True)
    assert final[0].number == "FA-2026-000001"


async def test_a_draft_whose_customer_or_seller_changed_is_made_again_before_it_is_final() -> None:
    kv = await a_market()
    draft = await a_draft(kv, "acme", [line(100)])
    await change_customer(kv, "acme", legal_name="Acme Algérie SARL")
    with pytest.raises(BadArgument, match="draft again"):
        await finalise(kv, [draft.id], now_us=ISSUED_US)
    draft = await a_draft(kv, "acme", [line(100)])
    await change_seller(kv, "oran", bank="BNA 001 00600 0300 000000 12")
    with pytest.raises(BadArgument, match="draft again"):
        await finalise(kv, [draft.id], now_us=ISSUED_US)
    draft = await a_draft(kv, "acme", [line(100)])
    await change_seller(kv, "oran", suspended_days=90)  # Printed nowhere.
    final = (await finalise(kv, [draft.id], now_us=ISSUED_US))[0]
    assert decode(final.customer_snapshot, CustomerRecord).legal_name == "Acme Algérie SARL"


async def test_a_draft_that_was_made_while_its_month_ran_is_made_again_before_it_is_final() -> None:
    kv = await a_market()
    end_us = MARCH.end_s * SECOND_US
    early = await a_draft(kv, "acme", [line(100)], now_us=end_us - 1)
    with pytest.raises(BadArgument, match="while its month ran"):
        await finalise(kv, [early.id], now_us=ISSUED_US)
    again = await a_draft(kv, "acme", [line(100)], now_us=end_us)  # Nothing came since: it says so now.
    assert (again.id, again.made_us) == (early.id, end_us)
    assert (await finalise(kv, [early.id], now_us=ISSUED_US))[0].number == "FA-2026-000001"


async def test_an_administration_gets_no_invoice_without_its_purchase_order() -> None:
    kv = await a_market("other")
    await a_customer(kv, "town", "administration")
    draft = await a_draft(kv, "town", [line(100)])
    with pytest.raises(BadArgument, match="purchase order"):
        await finalise(kv, [draft.id], now_us=ISSUED_US)
    await change_customer(kv, "town", purchase_order="BC 2026/17")
    final = await an_invoice(kv, "town", [line(100)])
    assert final.purchase_order == "BC 2026/17"
    assert final.due_us == final.issued_us + 60 * DAY_US


async def test_all_drafts_or_none_become_final() -> None:
    kv = await a_market("acme", "bolt")
    drafts = [await a_draft(kv, tenant, [line(100)]) for tenant in ("acme", "bolt")]
    await change_customer(kv, "bolt", legal_name="Bolt 2")
    before = await kv.scan(b"", b"\xff", 1_000)
    with pytest.raises(BadArgument):
        await finalise(kv, [draft.id for draft in drafts], now_us=ISSUED_US)
    assert await kv.scan(b"", b"\xff", 1_000) == before


async def test_a_run_makes_all_drafts_final_but_those_that_are_refused_and_holds_up_nobody() -> None:
    tenants = [f"t{number:03d}" for number in range(40)]
    kv = await a_market(*tenants)
    for tenant in tenants:
        await a_draft(kv, tenant, [line(100)])
    await change_customer(kv, "t007", legal_name="Another")
    told: list[int] = []
    run = await finalise_due(kv, now_us=ISSUED_US, progress=lambda run: told.append(run.issued))
    assert (run.issued, [why for _, why in run.refused]) == (39, ["'t007' changed: draft again"])
    assert told == sorted(told)
    assert len(told) == 3
    report = await verify_series(kv, "oran", 2026, "invoice")
    assert (report.count, report.last, report.findings) == (39, "FA-2026-000039", [])
    await a_draft(kv, "t007", [line(100)])
    assert (await finalise_due(kv, now_us=ISSUED_US)).issued == 1


async def test_a_run_before_its_time_makes_nothing_final() -> None:
    kv = await a_market()
    await a_draft(kv, "acme", [line(100)])
    run: FinalRun = await finalise_due(kv, now_us=MARCH.end_s * SECOND_US + DAY_US)
    assert (run.issued, run.waiting, run.refused) == (0, 1, [])


async def test_what_was_paid_in_advance_is_taken_when_an_invoice_becomes_final() -> None:
    kv = await a_market()
    await pay(kv, 1, "acme", 1_000, [])
    march = await an_invoice(kv, "acme", [line(500)])
    assert (march.total, march.prepaid, march.state) == (595, 595, "paid")
    april = await an_invoice(kv, "acme", [line(500)], month=APRIL)
    assert (april.prepaid, april.state) == (405, "final")
    assert await wallets.balance(kv, "acme") == Money(0, "DZD")
    assert await wallets.verify_wallet(kv, "acme") == []


async def test_an_invoice_of_nothing_is_paid_at_once() -> None:
    kv = await a_market()
    assert (await an_invoice(kv, "acme", [line(0)])).state == "paid"


async def test_what_is_below_zero_is_carried_to_the_next_invoice_and_owed_to_nobody_twice() -> None:
    kv = await a_market()
    given_back = [line(-1_000), line(300), line(50, product="reduced")]
    march = await an_invoice(kv, "acme", given_back)
    assert (march.total_net, march.total) == (50, 55)  # 50 and 9 %, half up; nothing of the rest.
    assert [one.net for one in await read_lines(kv, march)] == [-1_000, 300, 50, 700]
    april = await an_invoice(kv, "acme", [line(500)], month=APRIL)
    assert (april.total_net, april.state) == (0, "paid")
    may = await an_invoice(kv, "acme", [line(500)], month=APRIL.following())
    assert may.total_net == 300
    assert await correct_month(kv, "acme", MARCH, given_back, now_us=ISSUED_US) == []
    assert await list_carried(kv, "acme") == []


async def test_a_service_level_credit_is_a_line_of_the_next_invoice() -> None:
    kv = await a_market()
    charged = [msgspec.structs.replace(line(10_000), storage_class="STANDARD")]
    await an_invoice(kv, "acme", charged)
    slots = range(MARCH.begin_s // 300, MARCH.begin_s // 300 + 9)
    measured = {slot: Interval(requests=5, failures=5) for slot in slots}
    assessment = assess(S3_STANDARD, MARCH.begin_s, MARCH.begin_s + 30 * 86_400, measured)
    given = credit_lines(assessment, charged, "DZD")
    named = {f"sla/{MARCH}/{number}": one for number, one in enumerate(given)}
    for _ in range(2):  # Asked twice, given once.
        await carry(kv, "acme", named, source="FA-2026-000001", now_us=ISSUED_US)
    april = await an_invoice(kv, "acme", [line(4_000)], month=APRIL)
    assert april.total_net == 4_000 - 1_000
    assert [one.kind for one in await read_lines(kv, april)] == ["usage", "credit"]
    await carry(kv, "acme", named, source="FA-2026-000001", now_us=ISSUED_US)
    assert await list_carried(kv, "acme") == []
    may = await an_invoice(kv, "acme", [line(4_000)], month=APRIL.following())
    assert may.total_net == 4_000


async def test_a_credit_gives_back_what_the_invoice_charges_and_the_rest_waits_for_the_next() -> None:
    kv = await a_market()
    await carry(kv, "acme", {"sla/x": line(-1_000, kind="credit")}, source="", now_us=1)
    await carry(kv, "acme", {"low": line(-50, kind="credit", product="reduced")}, source="", now_us=1)
    march = await an_invoice(kv, "acme", [line(700), line(200, product="reduced")])
    assert march.total_net == 150
    assert march.total == 150 + 14  # Nine percent of 150, and nothing of nothing.
    assert [(name, one.left) for name, one in await list_carried(kv, "acme")] == [("sla/x", -300)]
    april = await an_invoice(kv, "acme", [line(700)], month=APRIL)
    assert april.total_net == 400
    assert await list_carried(kv, "acme") == []


async def test_what_a_draft_carries_is_taken_once_though_two_drafts_carry_it() -> None:
    kv = await a_market()
    await carry(kv, "acme", {"fee": line(100, kind="adjustment")}, source="lease", now_us=1)
    march = await a_draft(kv, "acme", [line(10)])
    april = await a_draft(kv, "acme", [line(20)], month=APRIL)
    assert (march.total_net, april.total_net) == (110, 120)
    late_us = APRIL.end_s * SECOND_US + 3 * DAY_US
    await finalise(kv, [march.id], now_us=late_us)
    with pytest.raises(BadArgument, match="draft again"):
        await finalise(kv, [april.id], now_us=late_us)
    assert (await an_invoice(kv, "acme", [line(20)], month=APRIL)).total_net == 20


async def test_a_name_that_waits_is_not_another_line() -> None:
    kv = await a_market()
    await carry(kv, "acme", {"fee": line(100, kind="adjustment")}, source="", now_us=1)
    with pytest.raises(BadArgument, match="another line"):
        await carry(kv, "acme", {"fee": line(101, kind="adjustment")}, source="", now_us=1)
    with pytest.raises(BadArgument, match="what waits is one of"):
        await carry(kv, "acme", {"use": line(1)}, source="", now_us=1)


async def test_ending_a_lease_early_costs_its_share_of_what_remains() -> None:
    kv = await a_market()
    fee = termination_fee(
        Money(1_000_001, "DZD"), Fraction(1, 2), description="Résiliation", lease="L1", at_us=ISSUED_US
    )
    await carry(kv, "acme", {"termination/L1": fee}, source="L1", now_us=ISSUED_US)
    record = await an_invoice(kv, "acme", [])
    assert record.total_net == 500_001  # 500 000.5, rounded half up.
    with pytest.raises(BadArgument):
        termination_fee(Money(1, "DZD"), Fraction(3, 2), description="", lease="", at_us=0)


async def test_late_usage_is_a_correction_on_the_next_invoice_and_is_corrected_once() -> None:
    kv = await a_market()
    await carry(kv, "acme", {"fee": line(77, kind="adjustment")}, source="", now_us=1)
    march = await an_invoice(kv, "acme", [line(1_000)])
    with pytest.raises(BadArgument, match="not invoiced"):
        await correct_month(kv, "acme", APRIL, [line(1)], now_us=ISSUED_US)
    for _ in range(2):
        await correct_month(kv, "acme", MARCH, [line(1_250)], now_us=ISSUED_US)
    waiting = await list_carried(kv, "acme")
    assert [(one.line.kind, one.left, one.source) for _, one in waiting] == [
        ("correction", 250, march.number)
    ]
    await correct_month(kv, "acme", MARCH, [line(1_200)], now_us=ISSUED_US)
    april = await an_invoice(kv, "acme", [line(10)], month=APRIL)
    assert april.total_net == 10 + 250 - 50
    assert await find_document(kv, march.id) == march


async def test_a_draft_is_drafted_again_and_not_corrected() -> None:
    kv = await a_market()
    await a_draft(kv, "acme", [line(1_000)])
    with pytest.raises(BadArgument, match="draft"):
        await correct_month(kv, "acme", MARCH, [line(1_250)], now_us=ISSUED_US)


async def test_an_exchange_rate_is_frozen_with_its_invoice() -> None:
    kv = await a_market()
    text = "134.5210 DZD 2026-03-31 Banque d'Algérie"
    rate = ExchangeRate.parse(text)
    record = await draft_invoice(
        kv, "acme", MARCH, [line(1)], rules=RULES, now_us=ISSUED_US, randomness=randomness(), fx=rate
    )
    assert record is not None
    assert (await finalise(kv, [record.id], now_us=ISSUED_US))[0].fx == text


@pytest.mark.parametrize(
    "text", ["", "1.5", "1.5 DZD 2026-03-31", "-1 DZD 2026-03-31 x", "1 XXX 2026-03-31 x", "1 DZD 31/03/26 x"]
)
def test_what_is_no_exchange_rate_is_refused(text: str) -> None:
    with pytest.raises(BadArgument):
        ExchangeRate.parse(text)


async def test_a_final_document_has_one_pdf() -> None:
    kv = await a_market()
    draft = await a_draft(kv, "acme", [line(1)])
    with pytest.raises(BadArgument, match="draft"):
        await note_pdf(kv, draft.id, b"a" * 32)
    final = (await finalise(kv, [draft.id], now_us=ISSUED_US))[0]
    await note_pdf(kv, final.id, b"a" * 32)
    with pytest.raises(BadArgument, match="another PDF"):
        await note_pdf(kv, final.id, b"b" * 32)
    assert (await verify_series(kv, "oran", 2026, "invoice")).findings == []


@pytest.mark.parametrize("description", ["a\nb", "x" * 401])
async def test_a_line_that_cannot_be_printed_is_refused(description: str) -> None:
    kv = await a_market()
    with pytest.raises(BadArgument, match="description"):
        await a_draft(kv, "acme", [line(1, description=description)])


async def test_more_lines_than_a_commit_takes_are_refused_and_as_many_as_it_takes_are_kept() -> None:
    kv: DictKv = await a_market()
    many = [line(net, description="ط" * 200) for net in range(1, 4_001)]
    record = await a_draft(kv, "acme", many)
    assert [one.net for one in await read_lines(kv, record)] == list(range(1, 4_001))
    stored = await kv.scan(b"Yi", prefix_end(b"Yi"), 10_000)
    assert max(len(value) for _, value in stored) <= 8_192
    with pytest.raises(BadArgument, match="4000 lines"):
        await a_draft(kv, "acme", [*many, line(1)])


@pytest.mark.parametrize("seed", range(SEED, SEED + 30))
def test_what_waits_is_taken_to_the_unit_over_any_months_and_never_below_what_a_month_charges(
    seed: int,
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    products = ["storage", "reduced"]
    waiting = {
        str(number): CarriedRecord(
            line=line(rng.randrange(-2_000, 500), kind="credit", product=rng.choice(products)), left=0
        )
        for number in range(rng.randrange(12))
    }
    for name, record in waiting.items():
        waiting[name] = msgspec.structs.replace(record, left=record.line.net, made_us=rng.randrange(3))
    whole = sum(record.left for record in waiting.values())
    taken_in_all = 0
    for _ in range(6):
        charged = [line(rng.randrange(900), product=rng.choice(products)) for _ in range(rng.randrange(4))]
        taken, amounts = take_carried(charged, list(waiting.items()))
        assert sum(one.net for one in taken) == sum(amount for _, amount in amounts)
        for product in products:
            of_it = [one.net for one in [*charged, *taken] if one.product == product]
            assert sum(of_it) >= 0
        for name, amount in amounts:
            waiting[name] = msgspec.structs.replace(waiting[name], left=waiting[name].left - amount)
            taken_in_all += amount
            assert amount * waiting[name].line.net > 0
        waiting = {name: record for name, record in waiting.items() if record.left}
    assert taken_in_all + sum(record.left for record in waiting.values()) == whole
