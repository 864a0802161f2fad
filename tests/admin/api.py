"""The versioned API over a DictKv, on a port of its own: what the tests of its parts share."""

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession
from aiohttp.test_utils import RawTestServer
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
from objstore.meta.schema import TokenRecord, encode, token_key
from objstore.rental.customers import create_customer, new_customer
from objstore.rental.projects import create_project
from objstore.rental.records import SellerRecord
from objstore.rental.sellers import create_seller

TOKEN = "the-token-of-the-operator"
# What a path's parameters stand for in the little world: things of tenant `lower`.
PLACES = {
    "tenant": "lower",
    "user": "lower-reader",
    "project": "web",
    "seller": "oran",
    "key": "OSOFLOWER",
    "token": "OTOFLOWER",
}
START_US = 1_700_000_000_000_000
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
async def serving(table: Table = TABLE, wrap: Callable[[World], Kv] = lambda kv: kv) -> AsyncIterator[Api]:
    """`wrap`: what the API commits through, over what the test looks into."""
    kv, clock, randomness = World(), Clock(), counted()
    services = Services(
        directory=lambda one: Directory(one, MASTER_KEY, clock=clock, randomness=randomness),
        endpoint="http://127.0.0.1:9000",
        region="here",
        randomness=randomness,
    )
    gate = Gate(table, wrap(kv), services, token=TOKEN, clock=clock)
    others = {
        field.name: _unused
        for field in dataclasses.fields(Admin)
        if field.default is dataclasses.MISSING and field.name not in ("token", "metrics_public")
    }
    admin = Admin(token=TOKEN, metrics_public=False, gate=gate, **others)  # type: ignore[arg-type]
    server = RawTestServer(handler(admin))
    await server.start_server()
    try:
        async with ClientSession() as session:
            yield Api(kv, clock, randomness, session, str(server.make_url("/")).rstrip("/"))
    finally:
        await server.close()


async def people(api: Api) -> dict[str, str]:
    """A little world; the token of everyone in it.

    seller oran; reseller `upper` with customer `lower`; customer `other`; in each of them an owner, an admin,
    a billing and a reader, named like lower-owner; what PLACES names.
    """
    await create_seller(api.kv, SellerRecord(id="oran", name="Oran SARL", address=["1"], country="DZ"))
    await create_tenant(api.kv, "default", now_us=api.clock.us)
    for tenant, fields in (("upper", {"reseller": True}), ("lower", {"parent": "upper"}), ("other", {})):
        record = new_customer("tpe_pme", tenant, "oran", **fields)
        await create_customer(api.kv, record, now_us=api.clock.us)
    tokens = {"operator": TOKEN}
    for tenant in ("upper", "lower", "other"):
        for role in ("owner", "admin", "billing", "reader"):
            user = f"{tenant}-{role}"
            await create_user(api.kv, user, tenant=tenant, now_us=api.clock.us, role=role)
            tokens[user] = await api.token_of(user)
    await create_project(api.kv, "lower", "web", now_us=api.clock.us, tags={"a": "b"})
    directory = Directory(api.kv, MASTER_KEY, clock=api.clock, randomness=api.randomness)
    await directory.create_key("lower-reader", access_key_id=PLACES["key"])
    token = TokenRecord(user="lower-reader", digest_of_secret=b"-", created_us=1, expires_us=2)
    await api.kv.commit(Transaction(put={token_key(PLACES["token"]): encode(token)}))
    return tokens
