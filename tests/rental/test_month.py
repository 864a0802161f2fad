"""One month in the life of a datacentre, played on an injected clock, and what it has to come to.

Six tenants, one of each kind, store and read by boto3; hours are sealed as time goes by, a quota is hit, a
plan is changed, a node is lost and comes back, a service level is missed, a customer does not pay and then
does. What usage, invoices, exports and reports say is held against figures that are worked out here, from the
table of what was done (ACTS) and from prices that are written down here once more: by fractions, and not by
what is tested. Failures are real answers to real requests; the minutes that gateways note are committed as
they would commit them (datacentre.py), since a clock that jumps has no seconds in which to look.

The rate cards are those of config/plans with one change: what they count in gigabytes or requests they count
here in kilobytes or millionths, so that objects of some megabytes come to bills of thousands of dinars.
"""

import csv
import io
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, pairwise
from math import floor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyarrow import parquet

from objstore.clock import SECOND_US
from objstore.errors import NotEnoughCapacity
from objstore.meta.schema import Limits, ObjectRecord, decode, object_key
from objstore.rental.billing import rate_customer
from objstore.rental.catalogue import publish_plan, put_service_level, put_tax_rule
from objstore.rental.credit_notes import Credit, issue_credit_note
from objstore.rental.customers import account_state, create_customer, find_customer, new_customer
from objstore.rental.documents.content import Document
from objstore.rental.documents.pdf import Typesetter
from objstore.rental.focus import rows, write_csv, write_parquet
from objstore.rental.invoices import find_document, list_documents, read_lines
from objstore.rental.leases import after_months, find_lease, make_lease, sign
from objstore.rental.meters import EARLY, HOUR_S, REQUESTS_A, REQUESTS_B, SENT_INTERNET, STORED
from objstore.rental.money import Money
from objstore.rental.months import Month
from objstore.rental.payments import new_payment, receive_payment
from objstore.rental.plan_changes import give_plan
from objstore.rental.plans import Plan, Rate, Tier, parse_plan
from objstore.rental.quota import Scope, set_limits, show_quota
from objstore.rental.records import InvoiceRecord, LeaseRecord, Line, PaymentRecord, pool_of_lease
from objstore.rental.sellers import create_seller
from objstore.rental.series import verify_series
from objstore.rental.service_credits import put_service_event, settled_service
from objstore.rental.service_levels import CreditTier, ServiceEventRecord, ServiceLevel
from objstore.rental.taxes import parse_rules
from objstore.rental.usage import usage_pages, usage_row, verify_usage
from objstore.s3 import answers
from objstore.upkeep.leasing import ALARM
from tests.objects.audit import audit
from tests.rental import focus_rules
from tests.rental.datacentre import COLD, DAY_S, NOON_S, OWN, SHARED, TB, Datacentre, node
from tests.rental.parties import SELLER, an_id
from tests.rental.test_documents import words

CONFIG = Path(__file__).resolve().parents[2] / "config"
MARCH = Month(2026, 3)
APRIL = MARCH.following()
SMALLER = 10**6  # By so much, and its price is as much higher: see above.
PACKAGE_SMALLER = 50  # And in single requests instead of thousands: of 100,000 two are left.
MIB = 2**20
# Tenant: kind, language.
TENANTS = {
    "amira": ("auto_entrepreneur", "ar"),
    "atelier": ("tpe_pme", "fr"),
    "minoterie": ("grande_entreprise", "fr"),
    "wilaya": ("administration", "fr"),
    "hyper": ("wholesale", "en"),
    "archives": ("internal", "fr"),
}
PROJECTS = {"atelier": "boutique"}
CURRENCY = {tenant: "USD" if tenant == "hyper" else "DZD" for tenant in TENANTS}
TERMS_DAYS = {"amira": 15, "atelier": 30, "minoterie": 45, "wilaya": 60, "hyper": 30, "archives": 30}


def at(day: int, hour: int = 0, minute: int = 0, second: int = 0, *, month: Month = MARCH) -> int:
    """Seconds since 1970; day: from 1."""
    return month.begin_s + (day - 1) * DAY_S + hour * 3_600 + minute * 60 + second


DEDICATED_S, GUARANTEED_S = at(3), at(16, 8)  # When the two leases begin.


# What is done.


@dataclass(frozen=True, slots=True)
class Act:
    at_s: int
    tenant: str
    verb: str  # put | copy | delete | get | list | begin | part | complete
    key: str = ""
    size: int = 0  # Bytes of content; of a copy: 0.
    storage_class: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    source: str = ""  # Of a copy.


FILM_PARTS = (5 * MIB + 11, 123_456)
ACTS = (
    Act(at(4, 10, 0, 1), "minoterie", "put", "rapports/2025.pdf", 2_500_000),
    Act(at(4, 10, 0, 2), "atelier", "put", "a.jpg", 1_200_000, metadata=(("ville", "Oran"),)),
    Act(at(5, 23, 59, 59), "atelier", "put", "b.jpg", 700_001),
    Act(at(6, 0, 0, 0), "minoterie", "put", "froid/journal", 50_000, COLD),
    Act(at(6, 7, 30, 15), "hyper", "put", "blob/0001", 300_000),
    Act(at(6, 7, 30, 16), "hyper", "put", "blob/0002", 900),
    Act(at(7, 12, 34, 56), "wilaya", "put", "actes/naissance", 1_000_000),
    Act(at(8, 3, 3, 3), "amira", "put", "كتاب.txt", 40_000),
    Act(at(9, 9, 0, 0), "atelier", "put", "a.jpg", 400_000),
    Act(at(10, 17, 45, 0), "archives", "put", "2019.tar", 800_000),
    Act(at(11, 1, 2, 3), "atelier", "copy", "c.jpg", source="b.jpg"),
    Act(at(12, 6, 0, 1), "minoterie", "put", "froid/autre", 400_000, COLD),
    Act(at(14, 10, 0, 0), "atelier", "begin", "film.mp4"),
    Act(at(14, 10, 0, 7), "atelier", "part", "film.mp4", FILM_PARTS[0]),
    Act(at(14, 11, 5, 0), "atelier", "part", "film.mp4", FILM_PARTS[1]),
    Act(at(15, 2, 0, 30), "atelier", "complete", "film.mp4", sum(FILM_PARTS)),
    Act(at(18, 0, 0, 1), "minoterie", "delete", "froid/journal"),
    Act(at(19, 8, 0, 0), "amira", "get", "كتاب.txt"),
    Act(at(20, 20, 20, 20), "atelier", "delete", "b.jpg"),
    Act(at(21, 8, 0, 0), "atelier", "get", "film.mp4"),
    Act(at(21, 8, 0, 5), "atelier", "get", "film.mp4"),
    Act(at(21, 9, 0, 0), "archives", "list"),
    Act(at(21, 9, 0, 1), "archives", "get", "2019.tar"),
    Act(at(21, 9, 30, 0), "hyper", "get", "blob/0001"),
)
# What hyper was promised, and what became of it on the 23rd: six times five minutes in which each of its
# reads failed and twice in which every other did, for want of three of its nodes; twelve minutes in which
# nobody was served; ten that were announced, and do not count. Failures alone would be no reason for a
# credit, nor would the twelve minutes.
GOLD = ServiceLevel(
    id="gold",
    tiers=(
        CreditTier(below=Decimal("0.999"), credit=Decimal("0.10")),
        CreditTier(below=Decimal("0.99"), credit=Decimal("0.25")),
    ),
)
WINDOW_S = 300
MAINTENANCE_S = (at(23, 1), at(23, 1, 10))
NODES_AWAY_S = (at(23, 2, 1), at(23, 2, 34))
DOWN_S = (at(23, 4), at(23, 4, 12))


def reads(*moments: int) -> tuple[Act, ...]:
    return tuple(Act(moment, "hyper", "get", "blob/0001") for moment in moments)


# While a node is lost.
LATER_ACTS = (
    Act(at(24, 15, 0, 0), "minoterie", "get", "rapports/2025.pdf"),
    Act(at(24, 15, 0, 9), "amira", "put", "deux.txt", 9_000),
    Act(at(25, 4, 0, 0), "wilaya", "delete", "actes/naissance"),
)
CLASS_A = frozenset({"put", "copy", "list", "begin", "part", "complete"})
COLD_LEAST, COLD_LEAST_S = 131_072, 30 * DAY_S  # As the card of large firms has it.


def body_of(act: Act) -> bytes:
    return random.Random(f"{act.key} {act.at_s}").randbytes(act.size)


# What it comes to.


@dataclass(slots=True)
class Stay:
    """Billed bytes that were there from one second until another."""

    tenant: str
    storage_class: str
    billed: int
    content: int
    begin_s: int
    end_s: int | None = None

    def byte_seconds(self, begin_s: int, end_s: int) -> int:
        until_s = end_s if self.end_s is None else self.end_s
        return self.billed * max(0, min(until_s, end_s) - max(self.begin_s, begin_s))

    def is_there(self, at_s: int) -> bool:
        return self.begin_s <= at_s and (self.end_s is None or at_s < self.end_s)


@dataclass(slots=True)
class Books:
    """What was done, added up by whoever did it."""

    stays: list[Stay] = field(default_factory=list)
    there: dict[tuple[str, str], Stay] = field(default_factory=dict)
    parts: list[Stay] = field(default_factory=list)
    early: Counter[str] = field(default_factory=Counter)  # Byte-seconds, by tenant.
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)  # Bytes of answers, as the clients had them.
    answers: list[tuple[str, int, int]] = field(default_factory=list)  # Tenant, when, status.

    def note(self, act: Act) -> None:
        self.requests[act.tenant, "a" if act.verb in CLASS_A else "b"] += act.verb != "delete"
        if act.verb in ("put", "complete"):
            extra = sum(len(name) + len(value) for name, value in act.metadata)
            for part in self.parts:
                part.end_s = act.at_s
            self.parts = []
            self._comes(act, act.size, extra, act.storage_class)
        elif act.verb == "copy":
            source = self.there[act.tenant, act.source]
            self._comes(act, source.content, 0, source.storage_class)
        elif act.verb == "part":
            self.parts.append(Stay(act.tenant, "", act.size, act.size, act.at_s))
            self.stays.append(self.parts[-1])
        elif act.verb == "delete":
            self._goes(act)

    def _comes(self, act: Act, content: int, extra: int, storage_class: str) -> None:
        if (act.tenant, act.key) in self.there:
            self._goes(act)
        billed = content + len(act.key.encode()) + extra
        if storage_class == COLD:
            billed = max(billed, COLD_LEAST)
        stay = Stay(act.tenant, storage_class, billed, content, act.at_s)
        self.there[act.tenant, act.key] = stay
        self.stays.append(stay)

    def _goes(self, act: Act) -> None:
        stay = self.there.pop((act.tenant, act.key))
        stay.end_s = act.at_s
        if stay.storage_class == COLD:
            self.early[act.tenant] += stay.billed * max(0, COLD_LEAST_S - (act.at_s - stay.begin_s))

    def stored(self, tenant: str, begin_s: int, end_s: int, storage_class: str | None = "") -> int:
        """Byte-seconds; storage_class: None for all."""
        return sum(
            stay.byte_seconds(begin_s, end_s)
            for stay in self.stays
            if stay.tenant == tenant and storage_class in (None, stay.storage_class)
        )

    def lost_windows(self, tenant: str) -> tuple[Fraction, int]:
        """Of March's five minutes that count: how much of them was lost, and how many they are.

        The account was made a moment after midnight: the first whole five minutes of it are the second.
        """
        asked: dict[int, list[bool]] = {}
        for who, at_s, status in self.answers:
            if who == tenant:
                asked.setdefault(at_s // WINDOW_S, []).append(status >= 500)
        lost, count = Fraction(0), 0
        for window in range(MARCH.begin_s // WINDOW_S + 1, MARCH.end_s // WINDOW_S):
            begin_s = window * WINDOW_S
            if MAINTENANCE_S[0] <= begin_s < MAINTENANCE_S[1]:
                continue
            count += 1
            seconds = range(begin_s, begin_s + WINDOW_S, 60)
            away = Fraction(sum(DOWN_S[0] <= second < DOWN_S[1] for second in seconds), len(seconds))
            failed = asked.get(window, [False])
            lost += away + (1 - away) * Fraction(sum(failed), len(failed))
        return lost, count

    def content(self, at_s: int, *, own: bool) -> int:
        """Bytes of content that lie on the lease's nodes, or on the others."""
        there = [stay for stay in self.stays if stay.is_there(at_s) and (stay.tenant == "hyper") == own]
        return sum(stay.content for stay in there)


def half_up(amount: Fraction) -> int:
    assert amount >= 0
    return int(amount + Fraction(1, 2))


@dataclass(frozen=True, slots=True)
class Due:
    """A line that an invoice has to have."""

    kind: str
    meter: str
    storage_class: str
    quantity: Fraction
    price: Fraction  # Of one of the quantity, in whole dinars or dollars.

    @property
    def net(self) -> int:
        return half_up(self.quantity * self.price * 100)


def due(
    meter: str, quantity: Fraction | int, price: str, storage_class: str = "", kind: str = "usage"
) -> Due:
    return Due(kind, meter, storage_class, Fraction(quantity), Fraction(price))


def unit_months(byte_seconds: int, unit: int, hours: int = MARCH.hours) -> Fraction:
    return Fraction(byte_seconds, unit * 3_600 * hours)


def dues_of_march(books: Books) -> dict[str, list[Due]]:
    """Every line of every invoice, in order. Kilobytes are what the cards call gigabytes, and so on."""

    def stored(tenant: str, storage_class: str | None = "", until_s: int = MARCH.end_s) -> int:
        return books.stored(tenant, MARCH.begin_s, until_s, storage_class)

    def kept(tenant: str) -> Fraction:
        """Bytes, on average: so many go out free of charge."""
        return Fraction(stored(tenant, None), MARCH.seconds)

    def egress(tenant: str, unit: int, ratio: int, price: str) -> list[Due]:
        used, allowed = Fraction(books.sent[tenant], unit), ratio * kept(tenant) / unit
        free = min(used, allowed)
        lines = [due("egress_internet", free, "0")]
        return lines + ([due("egress_internet", used - free, price)] if used > free else [])

    small = unit_months(stored("atelier"), 1_000)
    assert 1_000 < small < 50_000  # It reaches the second tier.
    packages = -(-(books.requests["atelier", "a"] - 2) // 2)  # Two requests are free, as many are in one.
    assert 0 < unit_months(stored("minoterie", until_s=GUARANTEED_S), 10**6) < 1  # Billed as one at least.
    cold = unit_months(stored("minoterie", COLD) + books.early["minoterie"], 10**6)
    leased_s = MARCH.end_s - GUARANTEED_S
    return {
        "amira": [
            due("storage", 5, "0", "STANDARD"),
            due("storage", unit_months(stored("amira"), 1_000) - 5, "2.50", "STANDARD"),
            *egress("amira", 1_000, 1, "4.00"),
        ],
        "atelier": [
            due("subscription", 1, "1500.00"),
            due("storage", 1_000, "2.20", "STANDARD"),
            due("storage", small - 1_000, "1.90", "STANDARD"),
            due("requests_a", 2, "0"),
            due("requests_a", packages, "60.00"),
            *egress("atelier", 1_000, 1, "3.50"),
        ],
        "minoterie": [
            due("storage", 1, "1600.00", "STANDARD"),
            due("storage", cold, "900.00", COLD),
            *egress("minoterie", 10**6, 1, "2500.00"),
            due(
                "storage",
                Fraction(36, 10) * Fraction(leased_s, MARCH.seconds),
                "1500.00",
                "STANDARD",
                "commitment",
            ),
        ],
        "wilaya": [
            due("subscription", 1, "5000.00"),
            due("storage", unit_months(stored("wilaya"), 10**6, 730), "1750.00", "STANDARD"),
        ],
        "hyper": [
            *egress("hyper", 10**6, 3, "8.00"),
            due(
                "storage",
                Fraction(5, 2) * Fraction(MARCH.end_s - DEDICATED_S, MARCH.seconds),
                "590.00",
                "STANDARD",
                "commitment",
            ),
        ],
        "archives": [
            due("storage", Fraction(stored("archives") * SMALLER, 2**30 * MARCH.seconds), "0.85", "STANDARD"),
            due("requests_a", books.requests["archives", "a"], "120.00"),
            due("requests_b", books.requests["archives", "b"], "12.00"),
        ],
    }


def tax_of(tenant: str, net: int) -> int:
    """The operator's own departments are exempt; all others are billed under Algerian law."""
    return 0 if tenant == "archives" else half_up(Fraction(net * 19, 100))


# The cards.


def smaller(plan: Plan) -> Plan:
    """The card with what it counts in units a million times smaller, at prices as much higher."""
    return msgspec.structs.replace(
        plan, items=tuple(rate if rate.meter == "subscription" else _smaller(rate) for rate in plan.items)
    )


def _smaller(rate: Rate) -> Rate:
    # The price of a package is that of one; what is in it shrinks, to two requests.
    packed = rate.model == "package"
    by, times = (PACKAGE_SMALLER, 1) if packed else (SMALLER, SMALLER)
    return msgspec.structs.replace(
        rate,
        unit="Requests" if packed else rate.unit,
        free_fixed=rate.free_fixed / by,
        min_billable=rate.min_billable / by,
        package=rate.package / by,
        tiers=tuple(
            Tier(
                unit_price=tier.unit_price * times,
                up_to=None if tier.up_to is None else tier.up_to / by,
                flat=tier.flat,
            )
            for tier in rate.tiers
        ),
    )


def card(kind: str) -> Plan:
    return smaller(parse_plan((CONFIG / "plans" / f"{kind}.toml").read_text()))


# The month.


@pytest.fixture
async def centre(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Datacentre]:
    # An answer that keeps its client waiting has spaces in it, which count as sent: none is so late here.
    monkeypatch.setattr(answers, "PATIENCE_S", 600.0)
    opened = await Datacentre(MARCH.begin_s).open()
    yield opened
    await opened.close()


async def open_for_business(centre: Datacentre) -> None:
    kv = centre.kv
    await create_seller(kv, SELLER)
    for rule in parse_rules((CONFIG / "taxes.toml").read_text()):
        await put_tax_rule(kv, rule, made_us=centre.now_us)
    for tenant, (kind, language) in TENANTS.items():
        record = new_customer(
            kind,
            tenant,
            SELLER.id,
            legal_name=f"{tenant.title()} SARL",
            address=["2, rue Larbi Ben M'hidi", "16000 Alger"],
            country="DZ",
            language=language,
            identity_checked_us=1,
            purchase_order="BC-77/2026" if kind == "administration" else "",
        )
        await create_customer(kv, record, now_us=centre.now_us, trial_days=0)
        await publish_plan(kv, card(kind), made_us=centre.now_us)
        await give_plan(kv, tenant, record.plan, now_us=centre.now_us)
        await centre.admit(tenant, PROJECTS.get(tenant, ""))


async def lease_out(centre: Datacentre) -> tuple[LeaseRecord, LeaseRecord]:
    """Six nodes for hyper alone, 3.6 TB of the others for minoterie: both signed on the first of March."""
    await put_service_level(centre.kv, GOLD, made_us=centre.now_us)
    base = LeaseRecord(
        id=an_id(1),
        tenant="hyper",
        kind="dedicated",
        state="draft",
        capacity=25 * TB // 10,
        begin_us=DEDICATED_S * SECOND_US,
        end_us=after_months(DEDICATED_S * SECOND_US, 12),
        term_months=12,
        nodes=[node(number).hex() for number in OWN],
        unit_price="590.00",
        currency="USD",
        sla=GOLD.id,
    )
    shared = msgspec.structs.replace(
        base,
        id=an_id(2),
        tenant="minoterie",
        kind="guaranteed",
        capacity=36 * TB // 10,
        begin_us=GUARANTEED_S * SECOND_US,
        end_us=after_months(GUARANTEED_S * SECOND_US, 12),
        nodes=[],
        unit_price="1500.00",
        currency="DZD",
        overage_mode="average",
        overage_price="2000.00",
        sla="",
    )
    for lease in (base, shared):
        await make_lease(centre.kv, lease, now_us=centre.now_us)
        await sign(centre.kv, lease.id, centre.leasing.survey, now_us=centre.now_us)
    return base, shared


class Story:
    """What happens, act by act, with the books of it."""

    def __init__(self, centre: Datacentre) -> None:
        self.centre = centre
        self.books = Books()
        self.bodies: dict[tuple[str, str], bytes] = {}
        self.upload = ""
        self.film: list[tuple[bytes, str]] = []  # Parts, and their ETags.

    async def play(self, acts: tuple[Act, ...]) -> None:
        for act in acts:
            await self.centre.go_to(act.at_s)
            answer = await self.ask(act)
            assert "Error" not in answer, (act, answer)
            self.books.note(act)

    async def refused(self, act: Act) -> str:
        """Play what has to fail; the error's code. It is paid for like any other request."""
        await self.centre.go_to(act.at_s)
        answer = await self.ask(act)
        self.books.requests[act.tenant, "a"] += 1
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 403
        return str(answer["Error"]["Code"])

    async def ask(self, act: Act) -> dict[str, Any]:
        place = {"Bucket": f"{act.tenant}-data", "Key": act.key}
        name = (act.tenant, act.key)
        if act.verb == "put":
            body = body_of(act)
            extra: dict[str, Any] = {"StorageClass": act.storage_class} if act.storage_class else {}
            if act.metadata:
                extra["Metadata"] = dict(act.metadata)
            answer = await self._sent(act, "put_object", **place, Body=body, **extra)
            if "Error" not in answer:
                self.bodies[name] = body
            return answer
        if act.verb == "copy":
            self.bodies[name] = self.bodies[act.tenant, act.source]
            source = {"Bucket": place["Bucket"], "Key": act.source}
            return await self._sent(act, "copy_object", **place, CopySource=source)
        if act.verb == "delete":
            del self.bodies[name]
            return await self._sent(act, "delete_object", **place)
        if act.verb == "get":
            answer = await self._sent(act, "get_object", **place)
            assert "Error" in answer or answer["Content"] == self.bodies[name]
            return answer
        if act.verb == "list":
            answer = await self._sent(act, "list_objects_v2", Bucket=place["Bucket"])
            assert [one["Key"] for one in answer["Contents"]] == ["2019.tar"]
            return answer
        return await self._film(act, place)

    async def _film(self, act: Act, place: dict[str, str]) -> dict[str, Any]:
        if act.verb == "begin":
            answer = await self._sent(act, "create_multipart_upload", **place)
            self.upload = answer["UploadId"]
            return answer
        if act.verb == "part":
            body, number = body_of(act), len(self.film) + 1
            answer = await self._sent(
                act, "upload_part", **place, UploadId=self.upload, PartNumber=number, Body=body
            )
            self.film.append((body, answer["ETag"]))
            return answer
        parts = [{"PartNumber": number, "ETag": etag} for number, (_, etag) in enumerate(self.film, 1)]
        self.bodies[act.tenant, act.key] = b"".join(body for body, _ in self.film)
        return await self._sent(
            act,
            "complete_multipart_upload",
            **place,
            UploadId=self.upload,
            MultipartUpload={"Parts": parts},
        )

    async def _sent(self, act: Act, operation: str, **arguments: Any) -> dict[str, Any]:
        """Ask, and note how long the answer's body was."""
        answer = await self.centre.ask(act.tenant, operation, **arguments)
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        self.books.answers.append((act.tenant, act.at_s, status))
        if status < 500:  # What fails through the store is free.
            length = answer["ResponseMetadata"]["HTTPHeaders"].get("content-length", 0)
            self.books.sent[act.tenant] += int(length)
        return answer


async def hit_the_quota(story: Story) -> None:
    """A limit that is one byte too low refuses an object, and the very byte more admits it."""
    centre, act = story.centre, Act(at(22, 9, 0, 0), "atelier", "put", "d.jpg", 600_000)
    stored = sum(
        stay.billed for stay in story.books.stays if stay.tenant == act.tenant and stay.is_there(act.at_s)
    )
    limit = stored + act.size + len(act.key)
    scope = Scope(kind="tenant", tenant=act.tenant)
    await set_limits(centre.kv, scope, Limits(bytes_max=limit - 1))
    assert await story.refused(act) == "QuotaExceeded"
    await set_limits(centre.kv, scope, Limits(bytes_max=limit))
    await story.play((replace(act, at_s=act.at_s + 300),))


async def change_the_plan(centre: Datacentre) -> None:
    """From the next month on atelier has another version of its card."""
    await centre.go_to(at(22, 12, 30))
    before = card("tpe_pme")
    items = []
    for rate in before.items:
        if rate.meter == "subscription":
            rate = msgspec.structs.replace(rate, tiers=(Tier(flat=Decimal("1800.00")),))
        elif rate.meter == "storage" and rate.storage_class == "STANDARD":
            first = msgspec.structs.replace(rate.tiers[0], unit_price=Decimal("2.60") * SMALLER)
            rate = msgspec.structs.replace(rate, tiers=(first, *rate.tiers[1:]))
        items.append(rate)
    after = msgspec.structs.replace(before, version=2, items=tuple(items))
    await publish_plan(centre.kv, after, made_us=centre.now_us)
    given = await give_plan(centre.kv, "atelier", after.code, now_us=centre.now_us)
    assert (given.plan_version, given.next_plan_version) == (1, 2)


async def fail_hyper(story: Story) -> None:
    """Reads that fail for want of nodes, minutes that nobody serves, and some that were announced."""
    centre = story.centre
    begin_s, end_s = MAINTENANCE_S
    announced = ServiceEventRecord(
        id=an_id(300),
        kind="maintenance",
        begin_us=begin_s * SECOND_US,
        end_us=end_s * SECOND_US,
        reason="new switches",
        tenant="hyper",
    )
    await put_service_event(centre.kv, announced, now_us=centre.now_us)
    centre.down = frozenset(range(DOWN_S[0] // 60, DOWN_S[1] // 60))
    away = OWN[:3]  # One more than may be: of six fragments four are needed.

    async def fail(acts: tuple[Act, ...]) -> None:
        kept = {number: centre.disks.pop(number) for number in away}
        for act in acts:
            await centre.go_to(act.at_s)
            answer = await story.ask(act)
            assert answer["ResponseMetadata"]["HTTPStatusCode"] == 503, answer
        centre.disks.update(kept)

    await fail(reads(at(23, 1, 2)))
    await story.play(reads(at(23, 2, 0, 10)))
    await fail(reads(*range(NODES_AWAY_S[0], NODES_AWAY_S[1], WINDOW_S)))
    await story.play(reads(at(23, 4, 13)))
    await fail(reads(at(23, 4, 14)))
    await story.play(reads(at(23, 5)))


async def lose_a_node(story: Story, leases: tuple[LeaseRecord, LeaseRecord]) -> None:
    """What is left no longer holds what was sold: the lease is named, and nothing more is sold."""
    centre, (_, shared) = story.centre, leases
    await centre.go_to(at(24, 14))
    lost = centre.disks.pop(3)
    await centre.leasing.run()
    usable = int(6 * TB * Fraction(85, 100) * Fraction(4, 6))  # Seven nodes, one of them spare.
    assert centre.leasing.oversold == shared.capacity - usable == 200_000_000_000
    assert f"leases at risk: {shared.id} of minoterie" in centre.ctx.alarms.raised[ALARM]
    found, _ = await centre.leasing.report()
    assert (found.raw, found.failed, found.usable) == (7 * TB, TB, usable)
    assert (found.oversold, found.sellable, [lease.id for lease in found.at_risk]) == (
        shared.capacity - usable,
        0,
        [shared.id],
    )
    more = msgspec.structs.replace(
        shared, id=an_id(3), tenant="atelier", capacity=1, begin_us=at(25) * SECOND_US
    )
    await make_lease(centre.kv, more, now_us=centre.now_us)
    with pytest.raises(NotEnoughCapacity) as refusal:
        await sign(centre.kv, more.id, centre.leasing.survey, now_us=centre.now_us)
    assert refusal.value.missing == shared.capacity + 1 - usable
    await story.play(LATER_ACTS)
    await centre.go_to(at(26, 6))
    centre.disks[3] = lost
    await centre.ledger.set_disk_state(3, "healthy")  # As a verification does: a write to it had failed.
    await centre.leasing.run()
    assert ALARM not in centre.ctx.alarms.raised
    assert (await find_lease(centre.kv, shared.id)).state == "active"


async def close_the_month(story: Story) -> dict[str, InvoiceRecord]:
    """Drafts on the first of April, documents on the third."""
    centre = story.centre
    await centre.go_to(at(1, 0, 20, month=APRIL))
    await centre.metering.run()
    await centre.invoicing.run()
    drafts = await invoices_of(centre, MARCH)
    assert {record.state for record in drafts.values()} == {"draft"}
    await centre.go_to(at(2, 23, 59, 59, month=APRIL))
    assert "6 drafts wait" in await centre.invoicing.run()
    await centre.go_to(at(3, 0, 0, 5, month=APRIL))
    assert "6 invoices issued" in await centre.invoicing.run()
    assert "invoices" not in centre.ctx.alarms.raised
    found = await invoices_of(centre, MARCH)
    assert [record.id for record in found.values()] == [record.id for record in drafts.values()]
    return found


async def invoices_of(centre: Datacentre, month: Month) -> dict[str, InvoiceRecord]:
    """By tenant: one each."""
    found: dict[str, InvoiceRecord] = {}
    for tenant in TENANTS:
        [found[tenant]] = [
            record
            for record in await list_documents(centre.kv, tenant)
            if record.type == "invoice" and record.period_begin_us == month.begin_s * SECOND_US
        ]
    return found


def is_shrunken(unit: str) -> bool:
    return unit not in ("Months", "Requests", "2 Requests")


def as_due(line: Line) -> Due:
    """A line as it stands, with what its card counts in shrunken units in those."""
    quantity, price = Fraction(line.quantity), Fraction(Decimal(line.unit_price))
    if line.kind == "usage" and is_shrunken(line.unit):
        quantity, price = quantity * SMALLER, price / SMALLER
    return Due(line.kind, line.meter, line.storage_class, quantity, price)


async def check_invoices(story: Story, invoices: dict[str, InvoiceRecord]) -> None:
    """Every line, tax and total, the numbers and their chain."""
    wanted = dues_of_march(story.books)
    for tenant, record in invoices.items():
        lines = await read_lines(story.centre.kv, record)
        assert [as_due(line) for line in lines] == wanted[tenant], tenant
        assert [line.net for line in lines] == [one.net for one in wanted[tenant]], tenant
        net = sum(one.net for one in wanted[tenant])
        tax = tax_of(tenant, net)
        assert net > 0
        assert (record.total_net, record.total_tax, record.total) == (net, tax, net + tax), tenant
        assert record.currency == CURRENCY[tenant]
        assert record.due_us - record.issued_us == TERMS_DAYS[tenant] * DAY_S * SECOND_US
    assert [bool(tax.legal_basis) for tax in invoices["archives"].taxes] == [True]
    issued = sorted(invoices.values(), key=lambda one: one.number)
    assert [one.number for one in issued] == [f"FA-2026-{number:06d}" for number in range(1, 7)]
    assert all(later.previous == earlier.digest for earlier, later in pairwise(issued))


async def check_usage(story: Story) -> None:
    """What is sealed of every tenant: byte-seconds hour by hour, requests, bytes sent, and the chain."""
    kv, books = story.centre.kv, story.books
    hours = range(MARCH.first_hour, MARCH.first_hour + MARCH.hours)
    for tenant in TENANTS:
        stored: Counter[tuple[int, str]] = Counter()
        others: Counter[bytes] = Counter()
        async for page in usage_pages(kv, tenant, hours.start, hours.stop):
            for name, value in page:
                row = usage_row(name, value)
                if row.meter == STORED:
                    stored[row.hour, row.storage_class] += row.record.total
                else:
                    others[row.meter] += row.record.total
        wanted = {
            (hour, storage_class): books.stored(tenant, hour * HOUR_S, (hour + 1) * HOUR_S, storage_class)
            for hour in hours
            for storage_class in ("", COLD)
        }
        assert stored == {place: amount for place, amount in wanted.items() if amount}, tenant
        assert (others[REQUESTS_A], others[REQUESTS_B], others[SENT_INTERNET], others[EARLY]) == (
            books.requests[tenant, "a"],
            books.requests[tenant, "b"],
            books.sent[tenant],
            books.early[tenant],
        ), tenant
        assert (await verify_usage(kv, tenant)).wrong == ()


async def listed_parts(centre: Datacentre) -> int:
    """Bytes of the film's list of parts, which is kept beside its content and billed to nobody."""
    bucket = centre.store.buckets["atelier-data"].record.id
    value = await centre.kv.get(object_key(bucket, b"film.mp4"))
    assert value is not None
    extra = decode(value, ObjectRecord).extra
    assert extra is not None
    assert extra.multipart is not None
    manifest = extra.multipart.manifest
    assert manifest is not None
    return manifest.length


async def check_capacity(story: Story, leases: tuple[LeaseRecord, LeaseRecord]) -> None:
    """The report of both pools on the third of April, before noon."""
    centre, (dedicated, shared) = story.centre, leases
    for lease, bound in ((dedicated, dedicated.capacity), (shared, None)):  # The one without overage.
        quota = await show_quota(centre.kv, Scope(kind="tenant", tenant=lease.tenant))
        assert (quota.leased, quota.in_force.bytes_max) == (bound, bound)
    listed = await listed_parts(centre)
    [listed_s] = [act.at_s for act in ACTS if act.verb == "complete"]

    def used_at(at_s: int, own: bool) -> int:
        return story.books.content(at_s, own=own) + (listed if at_s >= listed_s and not own else 0)

    today = centre.now_us // SECOND_US // DAY_S
    first, second = await centre.leasing.report()
    assert (first.pool, second.pool) == ("", pool_of_lease(dedicated.id))
    for found, nodes, sold, own in (
        (first, len(SHARED), shared.capacity, False),
        (second, len(OWN), dedicated.capacity, True),
    ):
        usable = int((nodes - 1) * TB * Fraction(85, 100) * Fraction(4, 6))
        assert (found.raw, found.failed, found.spare, found.usable) == (nodes * TB, 0, TB, usable)
        assert (found.sold_guaranteed, found.oversold, found.at_risk) == (sold, 0, ())
        used = used_at(centre.now_us // SECOND_US, own)
        assert found.used_logical == used
        assert found.fill == Fraction(used, usable)
        assert (found.reserved, found.overhead) == (0, Fraction(found.used_physical, used))
        assert found.overhead >= Fraction(6, 4)
        points = [(day, used_at(day * DAY_S + NOON_S, own)) for day in range(today - 28, today)]
        slopes = sorted(
            Fraction(later[1] - earlier[1], later[0] - earlier[0])
            for earlier, later in combinations(points, 2)
        )
        middle = len(slopes) // 2
        assert found.growth == (slopes[middle] + slopes[~middle]) / 2
    assert (first.sellable, second.sellable) == (first.usable - shared.capacity, 0)
    assert first.growth is not None
    assert first.growth > 0
    assert first.runway_days == int((first.usable * Fraction(85, 100) - first.used_logical) / first.growth)


async def check_places(centre: Datacentre, dedicated: LeaseRecord) -> None:
    """What lies on the lease's nodes is its tenant's, and lies nowhere else."""
    policies = {volume.id: volume.policy for volume in await centre.ledger.volumes()}
    found = {
        number: {policies[volume] for volume, _ in disk.fragments} for number, disk in centre.disks.items()
    }
    own = pool_of_lease(dedicated.id)
    assert all(found[number] == {own} for number in OWN)
    assert set().union(*(found[number] for number in SHARED)) == {"", "cold"}


def printed(minor: int, language: str) -> str:
    """An amount as it is written there."""
    separators = {"fr": (" ", ","), "en": (",", "."), "ar": (".", ",")}[language]
    whole, part = divmod(minor, 100)
    return f"{whole:,}".replace(",", separators[0]) + separators[1] + f"{part:02d}"


async def check_papers(story: Story, documents: list[InvoiceRecord]) -> None:
    """Each is typeset, and says its number and its total."""
    kv, typesetter = story.centre.kv, Typesetter()
    for record in documents:
        document = Document.of(record, await read_lines(kv, record))
        page = words(typesetter.render(document))
        assert record.number in page
        minus = "-" if record.total < 0 else ""
        assert minus + printed(abs(record.total), document.language) in page, record.number


async def check_exports(story: Story, documents: list[InvoiceRecord]) -> None:
    """The FOCUS file keeps every rule, and adds up to each document's total."""
    kv = story.centre.kv
    found = []
    for record in documents:
        rated = await rate_customer(kv, await find_customer(kv, record.tenant), MARCH)
        uses = {use.lease: use for use in rated.uses}
        found += list(rows(record, await read_lines(kv, record), region="dz-oran", uses=uses))
    text, table = io.StringIO(newline=""), io.BytesIO()
    assert write_csv(found, text) == write_parquet(found, table) == len(found)
    totals = {one.number: Decimal(one.total).scaleb(-2) for one in documents}
    assert focus_rules.broken_rules(text.getvalue(), totals) == []
    lines = list(csv.DictReader(io.StringIO(text.getvalue(), newline="")))
    for number, total in totals.items():
        assert sum(Decimal(line["BilledCost"]) for line in lines if line["InvoiceId"] == number) == total
    table.seek(0)
    assert sum(parquet.read_table(table).column("BilledCost").to_pylist()) == sum(totals.values())
    check_rows(lines, dues_of_march(story.books))
    used = {
        line["BillingAccountId"]: int(line["ConsumedQuantity"])
        for line in lines
        if line["CapacityReservationStatus"] == "Used"
    }
    assert used == {
        "hyper": story.books.stored("hyper", DEDICATED_S, MARCH.end_s),
        "minoterie": story.books.stored("minoterie", GUARANTEED_S, MARCH.end_s),
    }


def check_rows(lines: list[dict[str, str]], dues: dict[str, list[Due]]) -> None:
    """What each row of the invoices charges for: its meter, quantity, unit price, cost and project."""
    for tenant, wanted in dues.items():
        charged = [
            line
            for line in lines
            if line["BillingAccountId"] == tenant
            and line["InvoiceId"].startswith("FA")
            and line["ChargeCategory"] in ("Usage", "Purchase")
            and not line["CapacityReservationStatus"]  # What became of a lease's charge, and no charge.
        ]
        for line, one in zip(charged, wanted, strict=True):
            assert line["SkuId"] == "/".join(filter(None, (one.meter, one.storage_class))), line
            assert (line["ChargeCategory"] == "Purchase") == (one.kind == "commitment"), line
            by = SMALLER if one.kind == "usage" and is_shrunken(line["PricingUnit"]) else 1
            quantity = Fraction(line["PricingQuantity"]) * by
            assert abs(quantity - one.quantity) <= Fraction(by, 2 * 10**12), line  # To twelve places.
            assert Fraction(line["ContractedUnitPrice"]) / by == one.price, line
            assert Decimal(line["BilledCost"]) == Decimal(one.net).scaleb(-2), line
            whole = (
                one.meter == "subscription" or one.kind == "commitment"
            )  # The tenant's, whatever projects.
            assert line["SubAccountId"] == ("" if whole else PROJECTS.get(tenant, "")), line


async def pay(centre: Datacentre, number: int, record: InvoiceRecord) -> PaymentRecord:
    payment = new_payment(
        an_id(100 + number),
        record.tenant,
        "mandat_administratif" if record.tenant == "wilaya" else "virement",
        Money(record.total, record.currency),
        received_us=centre.now_us,
        reference=f"no. {number}",
    )
    return await receive_payment(centre.kv, payment, [(record.id, record.total)], now_us=centre.now_us)


async def give_back(centre: Datacentre, invoice: InvoiceRecord) -> InvoiceRecord:
    """1,000.00 of a subscription, billed wrongly: with its tax, and into the wallet, as it was paid."""
    note = await issue_credit_note(
        centre.kv,
        an_id(200),
        invoice.id,
        [Credit(line=1, amount=1_000_00)],
        reason="billing_error",
        now_us=centre.now_us,
    )
    assert (note.number, note.corrects) == ("AV-2026-000001", invoice.number)
    assert (note.total_net, note.total_tax, note.total) == (-1_000_00, -190_00, -1_190_00)
    return note


async def wait_for_amira(story: Story, invoice: InvoiceRecord) -> None:
    """An invoice that nobody pays: reminded of, then no more is stored, until it is paid."""
    centre = story.centre
    kv = centre.kv

    async def standing() -> tuple[str, str]:
        await centre.invoicing.run()
        return (await find_document(kv, invoice.id)).state, await account_state(kv, "amira")

    def put(at_s: int) -> Act:
        return Act(at_s, "amira", "put", "trois.txt", 1_000)

    await centre.go_to(at(18, 0, 0, 4, month=APRIL))
    assert await standing() == ("final", "active")
    await centre.go_to(at(18, 0, 0, 6, month=APRIL))
    assert await standing() == ("overdue", "active")
    await centre.go_to(at(19, 0, 0, 6, month=APRIL))
    assert await standing() == ("overdue", "past_due")
    await story.play((put(at(19, 8, month=APRIL)),))
    await centre.go_to(APRIL.end_s + 1_200)
    await centre.metering.run()
    assert await standing() == ("overdue", "past_due")
    await centre.go_to(APRIL.end_s + 2 * DAY_S + 6)
    assert await standing() == ("overdue", "read_only")
    assert await story.refused(put(APRIL.end_s + 2 * DAY_S + 60)) == "AccountPastDue"
    await story.play((Act(APRIL.end_s + 2 * DAY_S + 61, "amira", "get", "deux.txt"),))
    await pay(centre, 99, invoice)
    assert await standing() == ("paid", "active")
    await story.play((put(APRIL.end_s + 2 * DAY_S + 62),))


async def check_april(story: Story) -> None:
    """The new card holds, and what was given back pays a part of it."""
    invoices = await invoices_of(story.centre, APRIL)
    stored = unit_months(story.books.stored("atelier", APRIL.begin_s, APRIL.end_s), 1_000, APRIL.hours)
    wanted = [
        due("subscription", 1, "1800.00"),
        due("storage", 1_000, "2.60", "STANDARD"),
        due("storage", stored - 1_000, "1.90", "STANDARD"),
    ]
    record = invoices["atelier"]
    assert [as_due(line) for line in await read_lines(story.centre.kv, record)] == wanted
    net = sum(one.net for one in wanted)
    assert (record.total_net, record.total, record.prepaid) == (net, net + tax_of("atelier", net), 1_190_00)
    await check_credit(story, invoices["hyper"])


async def check_credit(story: Story, invoice: InvoiceRecord) -> None:
    """What was lost of March is given back on April's invoice: a tenth of what the lease cost in it."""
    lost, count = story.books.lost_windows("hyper")
    uptime = 1 - lost / count
    assert (lost, count) == (Fraction(92, 10), MARCH.seconds // WINDOW_S - 1 - 2)
    assert Fraction(99, 100) <= uptime < Fraction(999, 1000)
    [lease] = [one for one in dues_of_march(story.books)["hyper"] if one.kind == "commitment"]
    credit = half_up(Fraction(lease.net, 10))
    assert credit == 137_98
    kept = await settled_service(story.centre.kv, "hyper", MARCH)
    assert kept is not None
    assert (Fraction(kept.uptime), kept.counted, kept.failed) == (uptime, count, 1 + 6 + 3)
    assert [(one.level, one.share, one.net) for one in kept.credits] == [(GOLD.id, "0.10", credit)]
    lines = await read_lines(story.centre.kv, invoice)
    assert [(line.kind, line.net) for line in lines] == [("commitment", 1_475_00), ("credit", -credit)]
    said = f"{floor(uptime * 1_000_000) / 10_000:.4f} %; 10 % × {lease.net / 100:.2f}"
    assert said in lines[1].description, lines[1].description
    net = 1_475_00 - credit
    assert (invoice.total_net, invoice.total) == (net, net + tax_of("hyper", net))
    others = [tenant for tenant in TENANTS if tenant != "hyper"]
    assert not any([await settled_service(story.centre.kv, tenant, MARCH) for tenant in others])


async def test_one_month_in_the_life_of_a_datacentre(centre: Datacentre) -> None:
    await open_for_business(centre)
    leases = await lease_out(centre)
    await centre.go_to(at(4))
    story = Story(centre)
    for tenant in TENANTS:
        await centre.ask(tenant, "create_bucket", Bucket=f"{tenant}-data")
        story.books.requests[tenant, "a"] += 1
    await story.play(ACTS)
    await hit_the_quota(story)
    await change_the_plan(centre)
    await fail_hyper(story)
    await lose_a_node(story, leases)
    march = await close_the_month(story)
    await check_invoices(story, march)
    await check_usage(story)
    await check_capacity(story, leases)
    await check_places(centre, leases[0])

    await centre.go_to(at(10, 9, month=APRIL))
    for number, (tenant, record) in enumerate(march.items()):
        if tenant != "amira":
            await pay(centre, number, record)
    note = await give_back(centre, march["atelier"])
    documents = [*march.values(), note]
    await check_papers(story, documents)
    await check_exports(story, documents)

    await wait_for_amira(story, march["amira"])
    await check_april(story)
    report = await verify_series(centre.kv, SELLER.id, 2026, "invoice")
    assert (report.findings, report.count) == ([], 12)
    await audit(centre.store)
