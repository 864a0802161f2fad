"""Records of LMDB that rot: the damage stays with them, is told, and is mended from the journal."""

import asyncio
import os
from pathlib import Path

import pytest

from objstore.errors import Corrupt, MetaUnavailable
from objstore.meta.client import MetaClient
from objstore.meta.kv import Add, Transaction, counter
from objstore.meta.recovery import STATE_PREFIX
from tests.meta.process import CommitterProcess

LONG_KEY = b"long/" + b"k" * 600  # Behind a marker.
OPTIONS = {"housekeeping_s": 0.1}


def states(root: Path) -> list[Path]:
    return sorted(root.glob(f"disk*/meta/{STATE_PREFIX}*"))


def rot(root: Path, content: bytes, begin: int = 0) -> None:
    """Flip a bit in every place of the state's file that holds `content`, pages in use and old ones."""
    [state] = states(root)
    held = (state / "data.mdb").read_bytes()
    at = held.find(content)
    assert at >= 0
    descriptor = os.open(state / "data.mdb", os.O_RDWR)
    try:
        while at >= 0:
            os.pwrite(descriptor, bytes([held[at + begin] ^ 1]), at + begin)
            at = held.find(content, at + 1)
    finally:
        os.close(descriptor)


async def mended(client: MetaClient, key: bytes) -> bytes | None:
    """The value, once it can be read again."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await client.get(key)
            except Corrupt:
                await asyncio.sleep(0.02)


async def test_a_rotten_record_fails_only_what_needs_it_and_is_mended_from_the_journal(
    tmp_path: Path,
) -> None:
    async with CommitterProcess(tmp_path, **OPTIONS) as committer:
        client = await committer.client()
        await client.commit(Transaction(put={b"old": b"the first value", b"sound": b"1"}))
        await client.commit(Transaction(put={b"old": b"the value that rots"}, add={b"sum": Add(7)}))
        before = states(tmp_path)
        await committer.kill()  # What it remembers would hide the damage.
        rot(tmp_path, b"the value that rots")
        await committer.start()
        outcomes = await asyncio.gather(
            client.commit(Transaction(expect={b"old": b"the value that rots"}, put={b"x": b""})),
            client.commit(Transaction(expect={b"sound": b"1"}, put={b"sound": b"2"}, add={b"sum": Add(1)})),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], Corrupt), outcomes
        assert "old" in str(outcomes[0])
        assert outcomes[1] is None
        assert await client.get(b"x") is None
        assert await mended(client, b"old") == b"the value that rots"
        await client.commit(Transaction(expect={b"old": b"the value that rots"}, put={b"old": b"new"}))
        assert counter(await client.get(b"sum")) == 8
        assert states(tmp_path) == before, "nothing was built again"
        await client.close()


async def test_a_rotten_record_that_only_readers_touch_is_mended_too(tmp_path: Path) -> None:
    async with CommitterProcess(tmp_path, **OPTIONS) as committer:
        client = await committer.client()
        values = {b"k%d" % number: b"value %d of many" % number for number in range(4)}
        await client.commit(Transaction(put=values))
        # The committer remembers these values: they come from its memory.
        rot(tmp_path, values[b"k0"])
        with pytest.raises(Corrupt):
            await client.get(b"k0")
        assert await mended(client, b"k0") == values[b"k0"]
        await committer.kill()
        for key in (b"k1", b"k2"):
            rot(tmp_path, values[key])
        await committer.start()
        while not client.connected:
            await asyncio.sleep(0.01)
        with pytest.raises(Corrupt):
            await client.scan(b"k", b"l", 10)
        with pytest.raises(Corrupt):
            await client.get_many([b"k3", b"k2"])
        for key in (b"k1", b"k2"):
            assert await mended(client, key) == values[key]
        assert dict(await client.scan(b"k", b"l", 10)) == values
        await client.close()


async def test_a_rotten_record_that_is_written_anew_keeps_the_new_value(tmp_path: Path) -> None:
    async with CommitterProcess(tmp_path, housekeeping_s=0.3) as committer:
        client = await committer.client()
        await client.commit(Transaction(put={b"blind": b"a value that rots", b"gone": b"a value to go"}))
        await committer.kill()
        rot(tmp_path, b"a value that rots")
        rot(tmp_path, b"a value to go")
        await committer.start()
        with pytest.raises(Corrupt):
            await client.commit(Transaction(expect={b"blind": b"a value that rots"}))
        with pytest.raises(Corrupt):
            await client.commit(Transaction(add={b"gone": Add(1)}))
        await client.commit(Transaction(put={b"blind": b"another"}, delete=[b"gone"]))
        await asyncio.sleep(1.0)  # A look-up that was begun ends.
        assert await client.get(b"blind") == b"another"
        assert await client.get(b"gone") is None
        await client.close()


async def ended_and_built_again(committer: CommitterProcess) -> None:
    """The committer gives its state up; its successor builds another and ends no more."""
    before = states(committer.root)
    assert await committer.ended() != 0
    await committer.start()
    assert states(committer.root) != before


async def test_a_key_that_rots_shows_that_others_are_missing_and_the_state_is_built_again(
    tmp_path: Path,
) -> None:
    async with CommitterProcess(tmp_path, **OPTIONS) as committer:
        client = await committer.client()
        await client.commit(Transaction(put={b"this key rots": b"1", b"sound": b"2"}))
        await committer.kill()
        rot(tmp_path, b"this key rots", begin=len("this key"))
        await committer.start()
        while not client.connected:
            await asyncio.sleep(0.01)
        with pytest.raises(Corrupt):
            await client.scan(b"a", b"z", 10)
        await ended_and_built_again(committer)
        await client.commit(Transaction(expect={b"this key rots": b"1"}, put={b"sound": b"3"}))
        assert dict(await client.scan(b"a", b"z", 10)) == {b"this key rots": b"1", b"sound": b"3"}
        await client.close()


async def test_damage_to_what_holds_records_together_costs_the_state_and_no_commit(tmp_path: Path) -> None:
    async with CommitterProcess(tmp_path, **OPTIONS) as committer:
        client = await committer.client()
        await client.commit(Transaction(put={LONG_KEY + b"1": b"1"}))
        await committer.kill()
        # The marker's key, its last zero, then the prefix id, which is the first of all.
        rot(tmp_path, b"k" * 20 + b"\0" + (1).to_bytes(8, "big"), begin=28)
        await committer.start()
        # Appended to the journal before LMDB finds that it cannot take it.
        commit = asyncio.create_task(client.commit(Transaction(put={LONG_KEY + b"2": b"2"})))
        await ended_and_built_again(committer)
        await commit
        assert await client.get_many([LONG_KEY + b"1", LONG_KEY + b"2"]) == [b"1", b"2"]
        await client.close()


async def test_many_rotten_records_cost_the_state(tmp_path: Path) -> None:
    async with CommitterProcess(tmp_path) as committer:
        client = await committer.client(follows=True)
        values = {b"k%02d" % number: b"value %d of many" % number for number in range(60)}
        await client.commit(Transaction(put=values))
        await committer.kill()
        rot(tmp_path, b" of many", begin=1)
        await committer.start()
        commits = [
            asyncio.create_task(client.commit(Transaction(expect={key: value})))
            for key, value in values.items()
        ]
        await ended_and_built_again(committer)
        for outcome in await asyncio.gather(*commits, return_exceptions=True):
            assert outcome is None or isinstance(outcome, (Corrupt, MetaUnavailable)), outcome
        assert dict(await client.scan(b"k", b"l", 100)) == values
        await client.close()


async def test_a_rotten_record_of_a_client_is_no_death_at_every_start(tmp_path: Path) -> None:
    async with CommitterProcess(tmp_path) as committer:
        client = await committer.client()
        await client.commit(Transaction(put={b"a": b"1"}))
        before = states(tmp_path)
        await committer.kill()
        rot(tmp_path, b"c" + client._client_id, begin=8)
        await committer.start()
        assert states(tmp_path) != before
        await client.commit(Transaction(expect={b"a": b"1"}, put={b"a": b"2"}))
        assert await client.get(b"a") == b"2"
        await client.close()
