"""When metadata is copied into volumes, for a rebuild from fragments alone."""

import time
from pathlib import Path

import pytest

from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import access_key_key, bucket_key, object_key, tenant_key, user_key
from objstore.processes.salvage_copies import APART_SECONDS, SETTLE_SECONDS, SHARE, Timing, fingerprint
from tests.server import running_server


def test_the_first_copy_is_made_a_minute_after_the_start() -> None:
    timing = Timing(hours=24)
    assert not timing.due(1, now=100, age=None)
    assert not timing.due(2, now=100 + SETTLE_SECONDS - 1, age=None)
    assert timing.due(3, now=100 + SETTLE_SECONDS, age=None)


def test_without_a_change_the_next_copy_is_made_when_the_last_is_old() -> None:
    timing = Timing(hours=24, copied=1)
    assert not timing.due(1, now=0, age=86_400)
    assert timing.due(1, now=1, age=86_401)


def test_a_change_is_copied_once_it_has_settled() -> None:
    timing = Timing(hours=24, copied=1)
    age = 2 * APART_SECONDS
    assert not timing.due(2, now=1_000, age=age)
    assert not timing.due(3, now=1_000 + SETTLE_SECONDS - 1, age=age)
    assert timing.due(4, now=1_000 + SETTLE_SECONDS, age=age), "changes without end put it off no longer"
    timing.copied = 4
    assert not timing.due(4, now=2_000, age=age)
    assert not timing.due(5, now=3_000, age=age), "the next change has its own minute"


def test_a_change_that_was_taken_back_needs_no_copy() -> None:
    timing = Timing(hours=24, copied=1)
    assert not timing.due(2, now=0, age=86_000)
    assert not timing.due(1, now=1_000, age=86_000)


@pytest.mark.parametrize(("took", "apart"), [(1.0, APART_SECONDS), (100.0, SHARE * 100.0)])
def test_however_much_changes_copies_are_far_apart_and_large_ones_farther(took: float, apart: float) -> None:
    timing = Timing(hours=24, copied=1, took=took)
    assert not timing.due(2, now=0, age=apart - 1)
    assert not timing.due(2, now=1e6, age=apart - 1)
    assert timing.due(2, now=1e6, age=apart)


async def test_the_fingerprint_is_that_of_names_and_of_nothing_else() -> None:
    kv = DictKv()
    seen = {await fingerprint(kv)}
    for key in (bucket_key("b"), tenant_key("t"), user_key("u"), access_key_key("k")):
        for value in (b"1", b"2"):
            await kv.commit(Transaction(put={key: value}))
            seen.add(await fingerprint(kv))
    assert len(seen) == 9
    before = await fingerprint(kv)
    await kv.commit(Transaction(put={object_key(1, b"o"): b"1"}))
    assert await fingerprint(kv) == before
    await kv.commit(Transaction(delete=[user_key("u")]))
    assert await fingerprint(kv) not in seen


def test_a_user_made_after_the_last_copy_is_in_the_next_one_soon(tmp_path: Path) -> None:
    """In a store whose periods are a thousand times as short."""

    def copies() -> int:
        return server.text().count("metadata copied into volumes")

    def wait_for(count: int) -> None:
        limit = time.monotonic() + 60
        while copies() < count:
            assert time.monotonic() < limit, server.text()[-4000:]
            time.sleep(0.02)

    environment = {"OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.001"}
    with running_server(tmp_path, environment=environment) as server:
        server.boto3().create_bucket(Bucket="bucket")
        wait_for(1)
        time.sleep(1.0)  # Another for the bucket, should the first have begun before it was there.
        before = copies()  # Now: the copy may be made before the command has ended.
        server.command("user", "create", "late", "--tenant", "late")
        wait_for(before + 1)
