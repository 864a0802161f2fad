"""Pages of one's own among everybody's: whole, in order, bounded by what is read."""

import random

import pytest

from objstore.iam.picking import Pick, Picked, owned, pick
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import TokenRecord, UserRecord, encode, token_key, user_key
from tests.seed import SEED

READ_MAX = 50


@pytest.fixture(autouse=True)
def few_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objstore.iam.picking.READ_MAX", READ_MAX)


class CountingKv(DictKv):
    """Counts the records that scans gave."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        pairs = await super().scan(start, end, limit, reverse=reverse)
        self.read += len(pairs)
        return pairs


async def furnished(count: int, chance: random.Random) -> tuple[CountingKv, list[str]]:
    """Tokens of ten tenants; the names of one tenant's, which has few."""
    kv = CountingKv()
    users = {f"u{number}": f"t{number}" for number in range(10)}
    put = {
        user_key(user): encode(UserRecord(tenant=tenant, name=user, created_us=1))
        for user, tenant in users.items()
    }
    few: list[str] = []
    for number in range(count):
        name = f"OT{number:05}"
        user = "u0" if chance.random() < 0.02 else f"u{chance.randint(1, 9)}"
        few += [name] if user == "u0" else []
        record = TokenRecord(user=user, digest_of_secret=b"-", created_us=1, expires_us=2)
        put[token_key(name)] = encode(record)
    await kv.commit(Transaction(put=put))
    return kv, few


async def page(kv: CountingKv, *, user: str, tenant: str, after: str, limit: int) -> Picked[TokenRecord]:
    own: Pick[TokenRecord] = owned(kv, user, tenant)
    return await pick(kv, token_key(""), TokenRecord, own, after=after, limit=limit)


async def test_a_page_reads_no_more_than_it_may_and_all_pages_hold_everything_of_ones_own_once() -> None:
    chance = random.Random(SEED)
    kv, few = await furnished(1_000, chance)
    for user, tenant in (("", "t0"), ("u0", "")):
        for limit in (1, 3, 1_000):
            seen: list[str] = []
            after, pages = "", 0
            while not pages or after:
                kv.read = 0
                found = await page(kv, user=user, tenant=tenant, after=after, limit=limit)
                assert kv.read <= READ_MAX, SEED
                assert len(found.found) <= limit, SEED
                seen += [name for name, _ in found.found]
                after, pages = found.after, pages + 1
            assert seen == few, SEED


async def test_the_last_page_says_that_it_is_the_last() -> None:
    kv, _ = await furnished(READ_MAX, random.Random(SEED))
    everybody = await page(kv, user="", tenant="", after="", limit=READ_MAX - 1)
    assert (len(everybody.found), everybody.after) == (READ_MAX - 1, f"OT{READ_MAX - 2:05}")
    rest = await page(kv, user="", tenant="", after=everybody.after, limit=READ_MAX)
    assert ([name for name, _ in rest.found], rest.after) == ([f"OT{READ_MAX - 1:05}"], "")


async def test_tokens_of_a_user_who_is_gone_are_nobodys_but_the_operators() -> None:
    kv, _ = await furnished(3, random.Random(SEED))
    record = TokenRecord(user="ghost", digest_of_secret=b"-", created_us=1, expires_us=2)
    await kv.commit(Transaction(put={token_key("OTghost"): encode(record)}))
    whole = await page(kv, user="", tenant="", after="", limit=10)
    assert "OTghost" in [name for name, _ in whole.found]
    for tenant in ("t0", "t1", "ghost"):
        found = await page(kv, user="", tenant=tenant, after="", limit=10)
        assert "OTghost" not in [name for name, _ in found.found]
