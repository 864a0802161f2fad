"""What service levels owe a tenant that has left: on its last invoice or a credit note behind it, once."""

import random

import msgspec
import pytest

from objstore.clock import SECOND_US
from objstore.errors import MetaUnavailable
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import AccountRecord, account_key, encode
from objstore.rental.billing import MonthRun, draft_month
from objstore.rental.carried import list_carried
from objstore.rental.credit_notes import Credit
from objstore.rental.customers import find_customer
from objstore.rental.invoices import finalise_due, find_document, list_documents, read_lines
from objstore.rental.last_credits import share_out
from objstore.rental.leases import make_lease, sign
from objstore.rental.months import Month
from objstore.rental.records import InvoiceRecord, Line, customer_key
from objstore.rental.series import CREDIT_NOTE
from tests.rental.cards import DAY_S, GB, TB
from tests.rental.parties import MARCH, RULES, pay
from tests.rental.test_availability import BEGIN, a_promising_store, serve
from tests.rental.test_billing import APRIL, MAY, seal, store
from tests.rental.test_leases import SURVEY, lease
from tests.seed import SEED

IDS = random.Random(SEED)


async def purge(kv: DictKv, at_s: int) -> None:
    """acme is gone from then on."""
    gone = msgspec.structs.replace(await find_customer(kv, "acme"), state_since_us=at_s * SECOND_US)
    account = AccountRecord(state="purged")
    await kv.commit(
        Transaction(put={customer_key("acme"): encode(gone), account_key("acme"): encode(account)})
    )


async def notes_of(kv: DictKv) -> list[InvoiceRecord]:
    return [one for one in await list_documents(kv, "acme") if one.type == CREDIT_NOTE]


async def invoices_of(kv: DictKv) -> list[InvoiceRecord]:
    """In order of months."""
    found = [one for one in await list_documents(kv, "acme") if one.type != CREDIT_NOTE]
    return sorted(found, key=lambda one: one.period_begin_us)


async def bill(kv: DictKv, month: Month) -> MonthRun:
    """Three days behind the month's end, as late as drafts can be made final; ids are new ones each time."""
    now_us = (month.end_s + 3 * DAY_S) * SECOND_US
    return await draft_month(kv, month, rules=RULES, now_us=now_us, randomness=IDS.randbytes)


async def close(kv: DictKv, month: Month) -> list[tuple[str, str]]:
    run = await bill(kv, month)
    final = await finalise_due(kv, now_us=(month.end_s + 3 * DAY_S) * SECOND_US)
    return run.problems + final.refused


async def go_on(kv: DictKv, *months: Month) -> list[tuple[str, str]]:
    """Months end, and are drafted until nothing changes any more; what was wrong."""
    problems = []
    for month in months:
        await seal(kv, month)
        for _ in range(2):
            problems += await close(kv, month)
    for month in months:
        problems += (await bill(kv, month)).problems
    return problems


async def test_who_left_without_another_invoice_is_credited_by_a_note_on_its_last_one_once() -> None:
    kv = await a_promising_store("acme")
    await store(kv, 1, APRIL.begin_s, -10 * GB)
    await serve(kv, MARCH, (10, 55))  # Nine intervals: a tenth is given back.
    await serve(kv, APRIL)
    await purge(kv, APRIL.begin_s + DAY_S)
    for _ in range(2):
        assert await go_on(kv, MARCH, APRIL, MAY) == []
    [note] = await notes_of(kv)
    [line] = await read_lines(kv, note)
    assert (note.corrects, note.reason, line.net, line.corrects) == ("FA-2026-000001", "sla", -10_00, 1)
    assert "s3-standard 2026-03" in line.description
    assert note.total_tax == -1_90  # As it was charged.
    assert await list_carried(kv, "acme") == []
    [invoice] = await invoices_of(kv)
    assert (invoice.total, invoice.credited) == (119_00, 11_90)


async def test_who_has_not_left_waits_for_its_next_invoice() -> None:
    kv = await a_promising_store("acme")
    await store(kv, 1, APRIL.begin_s, -10 * GB)
    await serve(kv, MARCH, (10, 55))
    await serve(kv, APRIL)
    assert await go_on(kv, MARCH, APRIL, MAY) == []
    assert await notes_of(kv) == []
    assert [one.left for _, one in await list_carried(kv, "acme")] == [-10_00]


async def test_its_last_invoice_takes_what_it_can_and_that_months_own_credit_follows_it() -> None:
    kv = await a_promising_store("acme")
    await store(kv, 1, APRIL.begin_s + 15 * DAY_S, -10 * GB)
    await serve(kv, MARCH, (10, 55))
    await serve(kv, APRIL, (100, 160))
    await purge(kv, APRIL.begin_s + 20 * DAY_S)
    assert await go_on(kv, MARCH, APRIL, MAY) == []
    _, april = await invoices_of(kv)
    assert [(line.kind, line.net) for line in await read_lines(kv, april)] == [
        ("usage", 50_00),
        ("credit", -10_00),
    ]
    [note] = await notes_of(kv)
    assert (note.corrects, note.total_net) == ("FA-2026-000002", -5_00)
    assert await list_carried(kv, "acme") == []


async def test_its_last_month_is_as_long_as_it_was_there() -> None:
    """Four intervals of five minutes are more than a thousandth of ten days, and less of a month."""
    for days, notes in ((10, [-3_33]), (29, [])):
        kv = await a_promising_store("acme")
        await store(kv, 1, APRIL.begin_s + days * DAY_S, -10 * GB)
        await serve(kv, MARCH)
        await serve(kv, APRIL, (100, 120))
        await purge(kv, APRIL.begin_s + days * DAY_S)
        assert await go_on(kv, MARCH, APRIL, MAY) == []
        assert [one.total_net for one in await notes_of(kv)] == notes


async def test_what_had_been_paid_goes_to_the_wallet() -> None:
    kv = await a_promising_store("acme")
    await store(kv, 1, APRIL.begin_s, -10 * GB)
    await serve(kv, MARCH, (10, 55))
    await serve(kv, APRIL)
    await purge(kv, APRIL.begin_s + DAY_S)
    await seal(kv, MARCH)
    await close(kv, MARCH)
    [invoice] = await list_documents(kv, "acme")
    await pay(kv, 1, "acme", 119_00)
    assert await go_on(kv, APRIL, MAY) == []
    paid = await find_document(kv, invoice.id)
    assert (paid.state, paid.credited, paid.returned) == ("paid", 11_90, 11_90)


async def test_a_charge_in_advance_of_a_month_without_an_invoice_is_credited_on_the_invoice_before() -> None:
    kv = await a_promising_store("acme")
    await store(kv, 1, BEGIN, -10 * GB)
    number = lease(
        9, begin_us=BEGIN * SECOND_US, capacity=TB, unit_price="400", sla="gold", tenant="acme",
        billing="advance", end_us=APRIL.end_s * SECOND_US,
    )  # fmt: skip
    await make_lease(kv, number, now_us=(BEGIN - DAY_S) * SECOND_US)
    await sign(kv, number.id, SURVEY, now_us=(BEGIN - DAY_S) * SECOND_US)
    await serve(kv, MARCH)
    await serve(kv, APRIL, (0, 5))
    await seal(kv, MARCH)
    await close(kv, MARCH)
    await purge(kv, APRIL.end_s - DAY_S)
    assert await go_on(kv, APRIL, MAY) == []
    [note] = await notes_of(kv)
    assert [(line.net, line.corrects) for line in await read_lines(kv, note)] == [(-200_00, 2)]
    assert note.corrects == "FA-2026-000001"


class Cut(DictKv):
    """Some commits fail, before they did anything or behind it."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    async def commit(self, transaction: Transaction) -> None:
        if self.rng.random() < 0.3:
            raise MetaUnavailable("away")
        await super().commit(transaction)
        if self.rng.random() < 0.3:
            raise MetaUnavailable("its answer was lost")


async def test_however_often_it_is_cut_the_credit_is_given_once() -> None:
    whole = await a_promising_store("acme")
    await store(whole, 1, APRIL.begin_s, -10 * GB)
    await serve(whole, MARCH, (10, 55))
    await serve(whole, APRIL)
    await seal(whole, MARCH)
    await close(whole, MARCH)
    await seal(whole, APRIL)
    await purge(whole, APRIL.begin_s + DAY_S)
    for number in range(8):
        kv = Cut(random.Random(f"{SEED} {number}"))
        await DictKv.commit(kv, Transaction(put=dict(await whole.scan(b"", b"\xff", 100_000))))
        ended = cuts = 0
        while ended < 2:
            try:
                await bill(kv, APRIL)
                ended += 1
            except MetaUnavailable:
                cuts += 1
                assert cuts < 1_000
        assert [one.total_net for one in await notes_of(kv)] == [-10_00], (SEED, number, cuts)
        assert await list_carried(kv, "acme") == []


def charge(net: int, /, **given: object) -> Line:
    return msgspec.structs.replace(
        Line(kind="usage", description="d", net=net, storage_class="STANDARD"), **given
    )


APRILS = APRIL.begin_s * SECOND_US


@pytest.mark.parametrize(
    ("amount", "lines", "before", "given"),
    [
        (10, [charge(60), charge(40)], {}, [(1, 10)]),
        (70, [charge(60), charge(40)], {}, [(1, 60), (2, 10)]),
        (70, [charge(60), charge(40)], {1: 60}, [(2, 40)]),  # What was given back is not given again.
        (70, [charge(60), charge(-20, kind="discount")], {}, [(1, 40)]),  # Behind its discount.
        (70, [charge(60, product="support"), charge(40)], {}, [(2, 40)]),
        (70, [charge(60, storage_class="COLD"), charge(40)], {}, [(2, 40)]),
        (70, [charge(60, kind="adjustment"), charge(40)], {}, [(2, 40)]),
        (70, [charge(60, begin_us=APRILS), charge(40)], {}, [(2, 40)]),  # Another month's, in advance.
        (10, [charge(60), charge(-60, kind="credit")], {}, []),
    ],
)
def test_a_credit_is_of_the_charges_that_it_was_worked_out_of(
    amount: int, lines: list[Line], before: dict[int, int], given: list[tuple[int, int]]
) -> None:
    credit = charge(-amount, kind="credit", begin_us=BEGIN * SECOND_US, description="credit")
    found = share_out(amount, credit, lines, before, period_begin_us=BEGIN * SECOND_US)
    assert found == [Credit(number, part, "credit") for number, part in given]
