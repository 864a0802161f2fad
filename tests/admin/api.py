"""The versioned API over a DictKv, on a port of its own: what the tests of its parts share."""

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession
from aiohttp.test_utils import RawTestServer
from aiohttp.web import Server
from yarl import URL

from objstore.admin.app import Admin, handler
from objstore.admin.gate import Gate
from objstore.admin.resources import TABLE
from objstore.admin.routes import Services, Table
from objstore.iam.directory import Directory
from objstore.iam.tenants import create_tenant
from objstore.iam.tokens import create_token
from objstore.iam.users import create_user
from objstore.ids import Randomness
from objstore.meta.kv import DictKv, Kv, Transaction
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    ObjectRecord,
    TokenRecord,
    account_key,
    bucket_key,
    encode,
    object_key,
    token_key,
)
from objstore.objects.dedication import Released
from objstore.objects.exports import Exports
from objstore.rental.admission import Node
from objstore.rental.capacity import Capacity, Holdings, report
from objstore.rental.catalogue import publish_plan
from objstore.rental.departures import begin_export
from objstore.rental.leases import after_months, find_lease, make_lease, sign
from objstore.rental.months import Month
from objstore.rental.offers import put_offer
from objstore.rental.plans import parse_plan
from objstore.rental.projects import create_project
from objstore.rental.records import CapacityEventRecord, LeaseRecord, OfferRecord
from objstore.rental.sales import Supply, put_event, read_book
from objstore.rental.sellers import create_seller
from objstore.rental.service_credits import put_service_event
from objstore.rental.service_levels import ServiceEventRecord
from tests.objects.fakes import memory_store
from tests.rental.parties import (
    DAY_US,
    ISSUED_US,
    SELLER,
    a_customer,
    a_draft,
    an_id,
    an_invoice,
    line,
    pay,
)
from tests.server import ROOT

TOKEN = "the-token-of-the-operator"
START_US = ISSUED_US
TB = 10**12
QUOTE, DRAFT, SIGNED, CREDITED, PAID = map(an_id, range(1, 6))

# What a path's parameters stand for in the little world: things of tenant `lower`.
PLACES = {
    "tenant": "lower",
    "user": "lower-reader",
    "project": "web",
    "bucket": "lower-bucket",
    "seller": "oran",
    "key": "OSOFLOWER",
    "token": "OTOFLOWER",
    "plan": "tpe-pme",
    "lease": SIGNED,
    "offer": "small",
    "event": an_id(9),
    "service_event": an_id(10),
    "invoice": "",  # Set when it is made: a draft.
    "payment": PAID,
    "export": an_id(11),
}
MASTER_KEY = bytes(32)


class Clock:
    def __init__(self) -> None:
        self.us = START_US

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


def counted() -> Randomness:
    """Bytes that never repeat and are the same in every run."""
    state = 0

    def randomness(size: int) -> bytes:
        nonlocal state
        state += 1
        return hashlib.shake_256(state.to_bytes(8, "big")).digest(size)

    return randomness


@dataclass
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str]


class World(DictKv):
    """An engine whose state can be kept and brought back."""

    def snapshot(self) -> dict[bytes, bytes]:
        return dict(self._values)

    def restore(self, values: Mapping[bytes, bytes]) -> None:
        self._values.clear()
        self._values.update(values)
        self._keys[:] = sorted(values)


@dataclass
class Api:
    kv: World
    clock: Clock
    randomness: Randomness
    session: ClientSession
    url: str
    server: Server

    async def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = TOKEN,
        headers: Mapping[str, str] = {},
        content: bytes | None = None,
    ) -> Answer:
        sent = {**({} if token is None else {"Authorization": f"Bearer {token}"}), **headers}
        data = content if content is not None else None if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self.session.request(
            method, URL(self.url + path, encoded=True), data=data, headers=sent
        ) as answer:
            raw = await answer.read()
            parsed = json.loads(raw) if raw and "json" in answer.headers.get("Content-Type", "") else raw
            return Answer(answer.status, parsed, answer.headers)

    async def token_of(self, user: str) -> str:
        token, _ = await create_token(
            self.kv, user, now_us=self.clock.us, days=30, randomness=self.randomness
        )
        return token


async def _unused(*arguments: object) -> Any:
    raise AssertionError("not of the versioned API")


@asynccontextmanager
async def serving(
    table: Table = TABLE,
    wrap: Callable[[World], Kv] = lambda kv: kv,
    used: Callable[[str], None] = lambda _: None,
    **given: object,
) -> AsyncIterator[Api]:
    """
    Args:
        wrap: what the API commits through, over what the test looks into.
        used: told of the tokens that ask.
        given: fields of Admin.
    """
    kv, clock, randomness = World(), Clock(), counted()
    services = Services(
        directory=lambda one: Directory(one, MASTER_KEY, clock=clock, randomness=randomness),
        endpoint="http://127.0.0.1:9000",
        region="here",
        randomness=randomness,
        survey=survey,
        capacity=lambda: capacity(kv, clock),
        render=render,
        exports=Exports(memory_store(kv=kv, clock=clock)),
        release=release,
        sites=sites,
        bind=bind,
    )
    gate = Gate(table, wrap(kv), services, token=TOKEN, clock=clock, used=used)
    others = {
        field.name: _unused
        for field in dataclasses.fields(Admin)
        if field.default is dataclasses.MISSING and field.name not in ("token", "metrics_public")
    }
    fields = {**others, **given}
    admin = Admin(token=TOKEN, metrics_public=False, gate=gate, **fields)  # type: ignore[arg-type]
    server = RawTestServer(handler(admin))
    await server.start_server()
    try:
        async with ClientSession() as session:
            yield Api(
                kv, clock, randomness, session, str(server.make_url("/")).rstrip("/"), server.runner.server
            )
    finally:
        await server.close()


async def people(api: Api) -> dict[str, str]:
    """A little world; the token of everyone in it.

    seller oran; reseller `upper` with customer `lower`; customer `other`; in each of them an owner, an admin,
    a billing and a reader, named like lower-owner; what PLACES names.
    """
    kv = api.kv
    await create_seller(kv, SELLER)
    await create_tenant(kv, "default", now_us=api.clock.us)
    await a_customer(kv, "upper", reseller=True, plan_version=1)
    await a_customer(kv, "lower", parent="upper", plan_version=1)
    await a_customer(kv, "other")
    tokens = {"operator": TOKEN}
    for tenant in ("upper", "lower", "other"):
        for role in ("owner", "admin", "billing", "reader"):
            user = f"{tenant}-{role}"
            await create_user(kv, user, tenant=tenant, now_us=api.clock.us, role=role)
            tokens[user] = await api.token_of(user)
    return tokens


async def furnish(api: Api) -> dict[str, str]:
    """What PLACES names, with the ids that were made: for routes that are about one thing."""
    kv, now_us = api.kv, api.clock.us
    await create_project(kv, "lower", "web", now_us=now_us, tags={"a": "b"})
    directory = Directory(kv, MASTER_KEY, clock=api.clock, randomness=api.randomness)
    await directory.create_key("lower-reader", access_key_id=PLACES["key"])
    token = TokenRecord(user="lower-reader", digest_of_secret=b"-", created_us=1, expires_us=2)
    bucket = BucketRecord(id=7, tenant="lower", owner="lower-owner", created_us=1)
    made = {token_key(PLACES["token"]): encode(token), bucket_key(PLACES["bucket"]): encode(bucket)}
    await kv.commit(Transaction(put=made))
    await publish_plan(kv, parse_plan((ROOT / "config/plans/tpe_pme.toml").read_text()), made_us=now_us)
    for number, state in ((QUOTE, "quote"), (DRAFT, "draft"), (SIGNED, "draft")):
        lease = LeaseRecord(
            id=number, tenant="lower", kind="guaranteed", state=state, capacity=TB, term_months=12,
            begin_us=now_us, end_us=after_months(now_us, 12), renews=True, fee_share="0.5",
        )  # fmt: skip
        await make_lease(kv, lease, now_us=now_us)
    await sign(kv, SIGNED, survey, now_us=now_us)
    await put_offer(kv, OfferRecord(name="small", least=TB, most=TB, terms_months=[12]), now_us=now_us)
    await begin_export(kv, "lower", PLACES["export"], by="operator", now_us=now_us)
    record = ObjectRecord(1, 1, b"", 0, bytes(16), b"", [])
    await kv.commit(Transaction(put={object_key(7, b"key"): encode(record)}))
    event = CapacityEventRecord(id=PLACES["event"], at_us=now_us + DAY_US, raw=TB)
    await put_event(kv, event)
    maintenance = ServiceEventRecord(
        id=PLACES["service_event"], kind="maintenance", begin_us=now_us + 1, end_us=now_us + 2, reason="power"
    )
    await put_service_event(kv, maintenance, now_us=now_us)
    final = await an_invoice(kv, "lower", [line(100_00)], month=Month(2026, 2))
    draft = await a_draft(kv, "lower", [line(50_00)])
    await pay(kv, 5, "lower", 300_00)
    return {**PLACES, "invoice": draft.id, "final": final.id}


async def survey() -> Supply:
    return Supply(nodes=[Node(id=str(n), domain=str(n), disks=[4 * TB]) for n in range(8)], code=(4, 2))


async def capacity(kv: Kv, clock: Clock) -> list[Capacity]:
    return [report(await read_book(kv, await survey()), "", Holdings(), [], now_us=clock.now_us())]


async def sites() -> frozenset[str]:
    return frozenset({"oran", "alger"})


async def bind(kv: Kv, tenant: str, sites: Sequence[str]) -> AccountRecord:
    """Without buckets to look at."""
    account = AccountRecord(sites=list(sites))
    await kv.commit(Transaction(put={account_key(tenant): encode(account)}))
    return account


async def release(kv: Kv, lease: str) -> Released:
    return Released(lease=await find_lease(kv, lease), nodes=(), buckets=0, finished=True)


async def render(document: object) -> bytes:
    return b"%PDF-1.7 of " + repr(document)[:20].encode()
