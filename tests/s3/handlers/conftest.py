"""A server over a store in memory, and clients of two tenants."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from objstore.objects.store import Store
from objstore.s3.server import Runner
from tests.objects.fakes import memory_store
from tests.s3.handlers.client import Client
from tests.s3.handlers.server import keys_of, start

KEYS = keys_of("main", "alt")


@pytest.fixture
def store() -> Store:
    return memory_store()


@pytest.fixture
async def runner(store: Store) -> AsyncIterator[Runner]:
    running = await start(store, KEYS)
    yield running
    await running.stop(1.0)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=30), auto_decompress=False
    ) as session:
        yield session


def _client(role: str, runner: Runner, session: aiohttp.ClientSession) -> Client:
    return Client(session, runner.port, KEYS[role]["access_key"], KEYS[role]["secret_key"])


@pytest.fixture
async def s3(runner: Runner, session: aiohttp.ClientSession) -> Client:
    """The first tenant, with a bucket `bkt`."""
    client = _client("main", runner, session)
    made = await client("PUT", "bkt")
    assert made.status == 200
    return client


@pytest.fixture
async def other(runner: Runner, session: aiohttp.ClientSession) -> Client:
    """The second tenant."""
    return _client("alt", runner, session)
