"""A change of several records: it stands on what it read, or it is decided again."""

import asyncio

import pytest

from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.meta.kv import VALUE_SIZE_MAX, DictKv, Transaction
from objstore.meta.schema import decode, encode
from objstore.rental.changes import ATTEMPTS_MAX, Change, commit_change
from objstore.rental.records import WalletRecord


def amount(number: int) -> WalletRecord:
    return WalletRecord(currency="DZD", balance=number)


async def read(kv: DictKv, key: bytes) -> int:
    value = await kv.get(key)
    assert value is not None
    return decode(value, WalletRecord).balance


class Yielding(DictKv):
    """Lets others run before every call, as a real engine does."""

    async def get(self, key: bytes) -> bytes | None:
        await asyncio.sleep(0)
        return await super().get(key)

    async def commit(self, transaction: Transaction) -> None:
        await asyncio.sleep(0)
        await super().commit(transaction)


async def add(change: Change, key: bytes, more: int) -> int:
    record = await change.record(key, WalletRecord) or amount(0)
    change.put(key, amount(record.balance + more))
    return record.balance + more


async def test_many_at_once_lose_nothing_of_each_other() -> None:
    kv = Yielding()
    tasks = [commit_change(kv, lambda change: add(change, b"a", 1), what="a") for _ in range(20)]
    assert sorted(await asyncio.gather(*tasks)) == list(range(1, 21))
    assert await read(kv, b"a") == 20


async def test_what_was_put_is_read_back_within_the_change_and_put_at_once_with_the_rest() -> None:
    kv = DictKv()

    async def decide(change: Change) -> None:
        await add(change, b"a", 1)
        await add(change, b"a", 1)
        await add(change, b"b", 5)
        change.delete(b"b")
        assert await change.value(b"b") is None

    await commit_change(kv, decide, what="both")
    assert await kv.scan(b"", b"\xff", 9) == [(b"a", encode(amount(2)))]


async def test_a_decision_on_a_record_that_changed_meanwhile_is_made_again() -> None:
    kv = DictKv()
    await kv.commit(Transaction(put={b"a": encode(amount(1))}))
    runs = 0

    async def decide(change: Change) -> None:
        nonlocal runs
        runs += 1
        await change.value(b"a")
        if runs == 1:  # Somebody else, between the look and the commit.
            await kv.commit(Transaction(put={b"a": encode(amount(7))}))
        change.put(b"b", amount(runs))

    await commit_change(kv, decide, what="b")
    assert (runs, await read(kv, b"b")) == (2, 2)


async def test_a_refusal_of_what_was_never_there_at_one_moment_is_not_believed() -> None:
    kv = DictKv()
    await kv.commit(Transaction(put={b"a": encode(amount(1)), b"b": encode(amount(0))}))
    moved = False

    async def decide(change: Change) -> int:
        nonlocal moved
        first = await change.found(b"a", WalletRecord, BadArgument("no a"))
        if not moved:  # The unit moves from a to b... and is seen at neither.
            moved = True
            await kv.commit(Transaction(put={b"a": encode(amount(0)), b"b": encode(amount(-1))}))
        second = await change.found(b"b", WalletRecord, BadArgument("no b"))
        if first.balance + second.balance == 0:
            raise BadArgument("they add up to nothing")
        return first.balance + second.balance

    assert await commit_change(kv, decide, what="both") == -1


async def test_a_refusal_of_what_is_there_is_told_and_changes_nothing() -> None:
    kv = DictKv()

    async def decide(change: Change) -> None:
        change.put(b"a", amount(1))
        await change.found(b"b", WalletRecord, BadArgument("there is no b"))

    with pytest.raises(BadArgument, match="there is no b"):
        await commit_change(kv, decide, what="b")
    assert await kv.scan(b"", b"\xff", 9) == []


async def test_a_decision_that_changes_nothing_commits_nothing() -> None:
    class NoCommits(DictKv):
        async def commit(self, transaction: Transaction) -> None:
            raise AssertionError("nothing was to be committed")

    async def decide(change: Change) -> str:
        await change.value(b"a")
        change.delete(b"a")  # It is not there.
        return "done"

    assert await commit_change(NoCommits(), decide, what="a") == "done"


async def test_records_that_keep_changing_are_given_up_in_the_end() -> None:
    class Restless(DictKv):
        commits = 0

        async def commit(self, transaction: Transaction) -> None:
            self.commits += 1
            raise Conflict(b"a")

    kv = Restless()
    with pytest.raises(Overloaded, match="purse kept changing"):
        await commit_change(kv, lambda change: add(change, b"a", 1), what="purse")
    assert kv.commits == ATTEMPTS_MAX


async def test_a_record_that_is_larger_than_a_value_may_be_is_refused_by_name() -> None:
    with pytest.raises(BadArgument, match="WalletRecord of 8") as refusal:
        Change(DictKv()).put(b"a", WalletRecord(currency="x" * VALUE_SIZE_MAX, balance=0))
    assert refusal.value.name == "size"
