"""Metadata from one engine into another: what a copy leaves behind, whenever it is interrupted."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from objstore.clock import SystemClock
from objstore.errors import BadRequest, Corrupt, MetaUnavailable
from objstore.meta import copy as copying
from objstore.meta.copy import copy, verify
from objstore.meta.kv import DictKv, Kv, Transaction
from objstore.meta.kv_postgres import PostgresKv
from objstore.meta.spill import seal
from tests import postgres

STORE = "5" * 32
ALL = (b"\0", b"\xff" * 3_000, 1 << 20)


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as address:
        yield address


@asynccontextmanager
async def target(url: str) -> AsyncIterator[PostgresKv]:
    kv = PostgresKv(url, may_copy=True)
    await kv.start()
    try:
        yield kv
    finally:
        await kv.close()


@asynccontextmanager
async def gateway(url: str) -> AsyncIterator[PostgresKv]:
    kv = PostgresKv(url)
    await kv.start()
    try:
        yield kv
    finally:
        await kv.close()


async def filled(count: int, rng: random.Random) -> DictKv:
    source = DictKv()
    for number in range(count):
        long = b"x" * rng.choice([0, 0, 0, 600])
        await source.commit(Transaction(put={b"o%05d" % number + long: rng.randbytes(rng.randrange(80))}))
    return source


class Failing(DictKv):
    """Fails at the n-th scan."""

    def __init__(self, inner: DictKv, at: int) -> None:
        super().__init__()
        self._inner = inner
        self._left = at

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        self._left -= 1
        if self._left < 0:
            raise MetaUnavailable("the source is away")
        return await self._inner.scan(start, end, limit, reverse=reverse)


class Hasty(SystemClock):
    """Much time passes between two looks at it."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 100
        return self._now


async def test_passes_beside_a_serving_store_and_a_last_one_leave_exactly_what_the_source_holds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SCAN_COUNT", 70)
    monkeypatch.setattr(copying, "COMMIT_COUNT", 20)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    source = await filled(500, rng)
    async with target(url) as kv:
        first = await copy(source, kv, name=STORE, standing=False)
        assert (first.compared, first.put, first.deleted, first.finished) == (500, 500, 0, False)
        # The store goes on: every kind of change, at every kind of place.
        keys = [key for key, _ in await source.scan(*ALL)]
        gone, changed = rng.sample(keys, 90), rng.sample(keys, 60)
        await source.commit(Transaction(delete=gone))
        await source.commit(Transaction(put=dict.fromkeys(changed, b"changed")))
        await source.commit(Transaction(put={b"a%d" % number: b"new" for number in range(100)}))
        await source.commit(Transaction(put={b"z%d" % number: b"new" for number in range(100)}))
    async with target(url) as kv:
        last = await copy(source, kv, name=STORE, standing=True)
        assert last.finished
        assert last.deleted == len(set(gone) - set(changed))
        assert last.put == 200 + len(changed)
    async with gateway(url) as kv:
        assert await kv.scan(*ALL) == await source.scan(*ALL)
        await kv.commit(Transaction(put={b"b1": b"serves"}))


async def test_a_copy_that_was_interrupted_goes_on_where_it_stood(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SCAN_COUNT", 50)
    source = await filled(400, random.Random(1))
    async with target(url) as kv:
        with pytest.raises(MetaUnavailable, match="away"):
            await copy(Failing(source, 4), kv, name=STORE, standing=False, clock=Hasty())
    async with target(url) as kv:
        again = await copy(source, kv, name=STORE, standing=False, clock=Hasty())
        assert (again.compared, again.put) == (200, 200)  # 4 steps of 50 were behind it.
        with pytest.raises(MetaUnavailable, match="away"):
            await copy(Failing(source, 4), kv, name=STORE, standing=True)
        last = await copy(source, kv, name=STORE, standing=True)
        assert (last.compared, last.put, last.finished) == (400, 0, True)


async def test_no_gateway_works_on_a_database_while_a_copy_into_it_is_not_finished(url: str) -> None:
    source = await filled(10, random.Random(1))
    async with gateway(url) as early, target(url) as kv:  # The first was there on the empty database.
        await copy(source, kv, name=STORE, standing=False)
        with pytest.raises(MetaUnavailable, match="not finished"):
            await PostgresKv(url).start()
        with pytest.raises(MetaUnavailable):
            await early.commit(Transaction(put={b"o": b"from a gateway"}))
        assert await kv.get(b"o") is None
        await copy(source, kv, name=STORE, standing=True)
    async with gateway(url) as late:
        assert await late.scan(*ALL) == await source.scan(*ALL)


async def test_a_database_with_records_of_its_own_is_never_copied_into(url: str) -> None:
    async with gateway(url) as kv:
        await kv.commit(Transaction(put={b"o1": b"mine"}))
    async with target(url) as kv:
        with pytest.raises(BadRequest, match="not empty"):
            await copy(await filled(3, random.Random(1)), kv, name=STORE, standing=True)
        assert await kv.scan(*ALL) == [(b"o1", b"mine")]


async def test_a_copy_is_not_continued_from_another_store(url: str) -> None:
    source = await filled(3, random.Random(1))
    async with target(url) as kv:
        await copy(source, kv, name=STORE, standing=False)
        with pytest.raises(BadRequest, match="another store"):
            await copy(DictKv(), kv, name="6" * 32, standing=True)
        assert len(await kv.scan(b"o", b"p", 10)) == 3


async def test_a_run_that_another_has_followed_changes_nothing_any_more(url: str) -> None:
    source = await filled(3, random.Random(1))
    async with target(url) as kv, target(url) as other:

        class Overtaken(DictKv):
            """While the first run reads, a second one begins and finishes."""

            async def scan(
                self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
            ) -> list[tuple[bytes, bytes]]:
                old = await source.scan(start, end, limit)
                await source.commit(Transaction(put={b"o00000": b"newer"}, delete=[b"o00001"]))
                assert (await copy(source, other, name=STORE, standing=True)).finished
                return old

        with pytest.raises(BadRequest, match="taken over"):
            await copy(Overtaken(), kv, name=STORE, standing=False)
        assert await kv.scan(*ALL) == await source.scan(*ALL)


async def test_a_copy_that_is_not_equal_is_not_finished(url: str) -> None:
    source = await filled(20, random.Random(1))
    async with target(url) as kv:
        await copy(source, kv, name=STORE, standing=False)
        tampered = False  # Somebody changes a record that has been compared, its checksum too.

        def progress(what: str, count: int) -> None:
            nonlocal tampered
            if what == "copying" and not tampered:
                tampered = True
                sealed = seal(b"o00007", b"other").hex()
                name = url.rpartition("/")[2]
                text = f"UPDATE objstore.kv SET value = '\\x{sealed}' WHERE key = 'o00007'"
                postgres.shared_server().sql(text, name)

        with pytest.raises(Corrupt, match="20 records"):
            await copy(source, kv, name=STORE, standing=True, progress=progress)
        assert tampered
        with pytest.raises(MetaUnavailable, match="not finished"):
            await PostgresKv(url).start()
        last = await copy(source, kv, name=STORE, standing=True)
        assert (last.put, last.finished) == (1, True)
        await verify(kv, 20, last.digest)


async def test_nobody_is_let_into_a_copy_before_its_source_is_shut(url: str) -> None:
    source = await filled(20, random.Random(3))

    def fails() -> None:
        raise OSError("no space left")

    async with target(url) as kv:
        with pytest.raises(OSError, match="no space left"):
            await copy(source, kv, name=STORE, standing=True, before_end=fails)
        with pytest.raises(MetaUnavailable, match="not finished"):
            await PostgresKv(url).start()
        assert (await copy(source, kv, name=STORE, standing=True)).finished
    again = PostgresKv(url)
    await again.start()
    await again.close()


async def test_a_copy_into_an_equal_target_writes_nothing() -> None:
    """Of any engine: the pass itself knows nothing of PostgreSQL."""

    class Plain(DictKv):
        def __init__(self) -> None:
            super().__init__()
            self.note = ""

        async def begin_copy(self, note: str) -> str:
            self.note = self.note or note
            return self.note

        async def note_copy(self, note: str) -> None:
            self.note = note

        async def end_copy(self, note: str) -> None:
            self.note = note

    source = await filled(50, random.Random(2))
    plain = Plain()
    assert (await copy(source, plain, name=STORE, standing=False)).put == 50
    last = await copy(source, plain, name=STORE, standing=True)
    assert (last.put, last.deleted, last.finished) == (0, 0, True)
    kv: Kv = plain
    assert await kv.scan(*ALL) == await source.scan(*ALL)
