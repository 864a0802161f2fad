"""Several master keys: what each seals and opens, and access keys that change from one to the other."""

import contextlib
import random

import pytest

from objstore.errors import Conflict, Corrupt
from objstore.iam import rotation
from objstore.iam.directory import Directory
from objstore.iam.keys import KeyTerms
from objstore.iam.rotation import reseal_keys
from objstore.iam.secrets import SecretBox
from objstore.ids import master_key_id
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import AccessKeyRecord, access_key_key, decode, encode
from tests.seed import SEED

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
CHANCE = random.Random(SEED)


def test_what_any_of_the_keys_sealed_is_opened_and_what_is_sealed_is_under_the_newest() -> None:
    before = SecretBox(OLD, CHANCE.randbytes)
    after = SecretBox(NEW, CHANCE.randbytes, [OLD])
    sealed = before.seal("key", "secret")
    for under in ("", before.newest):
        assert after.open("key", sealed, under) == "secret"
        assert after.sealed_under("key", sealed, under) == master_key_id(OLD)
    assert SecretBox(NEW, CHANCE.randbytes).open("key", after.seal("key", "s2"), after.newest) == "s2"
    with pytest.raises(Corrupt):
        before.open("key", after.seal("key", "s3"))
    with pytest.raises(Corrupt, match="sealed under another master key"):
        before.open("key", after.seal("key", "s3"), after.newest)
    with pytest.raises(Corrupt):
        after.open("other", sealed)


async def some_keys(kv: DictKv, count: int) -> dict[str, str]:
    directory = Directory(kv, OLD)
    await directory.bootstrap("root-key", "root-secret")
    secrets = {"root-key": "root-secret"}
    for number in range(count - 1):
        key, secret = await directory.create_key("root", terms=KeyTerms(networks=("10.0.0.0/8",)))
        secrets[key] = secret
        if number % 2:  # As releases made them that knew one master key only.
            name = access_key_key(key)
            record = decode((await kv.get(name)) or b"", AccessKeyRecord)
            whole = (1, record.user, record.secret, record.created_us, record.disabled, record.comment)
            await kv.commit(Transaction(put={name: encode(whole)}))
    return secrets


async def all_pages(kv: DictKv, box: SecretBox) -> int:
    done, after = await reseal_keys(kv, box, "")
    total = done
    while after:
        done, after = await reseal_keys(kv, box, after)
        total += done
    return total


async def test_keys_are_sealed_anew_page_by_page_and_their_secrets_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotation, "PAGE", 3)
    kv = DictKv()
    secrets = await some_keys(kv, 10)
    box = SecretBox(NEW, CHANCE.randbytes, [OLD])
    assert await all_pages(kv, box) == 10
    assert await all_pages(kv, box) == 0, "what is done stays done"
    directory = Directory(kv, NEW)  # The old one is not known any more.
    for key, secret in secrets.items():
        credential = await directory.credential(key)
        assert credential is not None
        assert credential.secret == secret
    for _, record in await directory.list_keys():
        assert record.sealed_under == master_key_id(NEW)


async def test_requests_are_served_at_every_moment_of_it_and_a_stop_leaves_nothing_half_done() -> None:
    class Stopped(Exception):
        pass

    class StoppingKv(DictKv):
        left = 10**9

        async def commit(self, transaction: Transaction) -> None:
            if self.left == 0:
                raise Stopped
            self.left -= 1
            await super().commit(transaction)

    kv = StoppingKv()
    secrets = await some_keys(kv, 6)
    box = SecretBox(NEW, CHANCE.randbytes, [OLD])
    for _ in range(6):
        kv.left = 1
        with contextlib.suppress(Stopped):
            await reseal_keys(kv, box, "")
        directory = Directory(kv, NEW, other_master_keys=[OLD])
        for key, secret in secrets.items():
            credential = await directory.credential(key)
            assert credential is not None
            assert credential.secret == secret
    kv.left = 10**9
    assert await all_pages(kv, box) == 0, "each of six turns did one"


async def test_a_key_that_an_operator_changes_meanwhile_keeps_the_change() -> None:
    class ChangedKv(DictKv):
        once = True

        async def commit(self, transaction: Transaction) -> None:
            if self.once and transaction.expect:
                self.once = False
                await Directory(self, OLD).set_key_disabled("root-key")
                raise Conflict(access_key_key("root-key"))
            await super().commit(transaction)

    kv = ChangedKv()
    kv.once = False
    await some_keys(kv, 1)
    kv.once = True
    assert await reseal_keys(kv, SecretBox(NEW, CHANCE.randbytes, [OLD]), "") == (1, "")
    found = await Directory(kv, NEW).find_key("root-key")
    assert (found.disabled, found.sealed_under) == (True, master_key_id(NEW))


async def test_a_secret_that_no_given_key_opens_stops_it_and_is_named() -> None:
    kv = DictKv()
    await some_keys(kv, 2)
    with pytest.raises(Corrupt, match="access key"):
        await reseal_keys(kv, SecretBox(NEW, CHANCE.randbytes, [OTHER]), "")
