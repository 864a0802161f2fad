"""Another master key: which one a start takes, and all that is sealed, sealed anew in the background."""

import dataclasses
import os
from pathlib import Path

import msgspec
import pytest

from objstore.clock import SystemClock
from objstore.config import Config, Security
from objstore.errors import BadArgument, Conflict, Corrupt
from objstore.iam.directory import Directory
from objstore.iam.secrets import SecretBox
from objstore.ids import master_key_id
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import (
    AuthorityRecord,
    BucketRecord,
    ReplicationRecord,
    bucket_key,
    decode,
    encode,
    setting_key,
)
from objstore.node.authority import decode_authority, encode_authority, make_authority
from objstore.objects.changes import REPLICATION, replication_of
from objstore.processes import rotation
from objstore.processes.cluster import CannotStart, Cluster
from objstore.processes.doctor import master_keys
from objstore.processes.founding import founded_secrets, init, read_authority
from objstore.processes.rotation import Rotation, secret_context
from tests.processes.test_founding import config, start
from tests.processes.test_members import MASTER
from tests.processes.test_members import Cluster as InCluster

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32
OLD, NEW = b"o" * 32, b"n" * 32


def given(data: Path, newest: str, *others: str) -> Config:
    return msgspec.structs.replace(
        config(data), security=Security(master_key=newest, other_master_keys=list(others))
    )


def known(cluster: Cluster) -> tuple[str, ...]:
    return tuple(key.hex() for key in (cluster.master_key, *cluster.other_master_keys))


# Which keys a start takes.


def test_another_key_begins_only_where_the_one_before_is_named_and_then_it_is_the_key(tmp_path: Path) -> None:
    assert known(start(tmp_path, given(tmp_path, A))) == (A,)
    with pytest.raises(CannotStart, match="name the one before in"):
        start(tmp_path, given(tmp_path, B))
    with pytest.raises(CannotStart, match="not the key that this store was made with"):
        start(tmp_path, given(tmp_path, B, C))
    assert known(start(tmp_path, given(tmp_path, A, B))) == (A, B), "the coming one is known, and A seals"
    assert known(start(tmp_path, given(tmp_path, B.upper(), A))) == (B, A)
    assert known(start(tmp_path, given(tmp_path, B))) == (B,)
    with pytest.raises(CannotStart):
        start(tmp_path, given(tmp_path, A))
    assert known(start(tmp_path, given(tmp_path, A, B))) == (A, B), "and back"


def test_a_store_that_keeps_its_key_on_its_disks_may_be_given_another_one(tmp_path: Path) -> None:
    (on_disks,) = known(start(tmp_path, config(tmp_path)))
    with pytest.raises(CannotStart, match="keeps its master key on its disks"):
        start(tmp_path, given(tmp_path, A))
    assert known(start(tmp_path, given(tmp_path, A, on_disks))) == (A, on_disks)
    assert known(start(tmp_path, given(tmp_path, A))) == (A, on_disks), "the disks have it still"
    with pytest.raises(CannotStart, match="given from outside"):
        start(tmp_path, config(tmp_path))
    assert known(start(tmp_path, given(tmp_path, B, A))) == (B, A, on_disks)


def test_a_gateway_whose_key_lies_in_a_file_may_be_given_another_one(tmp_path: Path) -> None:
    init(config(tmp_path), tmp_path)
    (kept,) = known(start(tmp_path, config(tmp_path)))
    with pytest.raises(CannotStart, match="remove the one that is wrong"):
        start(tmp_path, given(tmp_path, A))
    settings = given(tmp_path, A, kept)
    assert known(start(tmp_path, settings)) == (A, kept)
    assert founded_secrets(settings, tmp_path) is not None, "what the file's key sealed is opened"
    assert read_authority(tmp_path, bytes.fromhex(A), [bytes.fromhex(kept)]) is not None
    assert known(start(tmp_path, given(tmp_path, kept, A))) == (kept, A), "and back"
    assert known(start(tmp_path, given(tmp_path, A, kept))) == (A, kept)
    os.remove(tmp_path / "master.key")
    with pytest.raises(CannotStart, match="another master key"):
        start(tmp_path, given(tmp_path, A))  # authority.json is still sealed under the old one.


# All that is sealed.


async def sealed_store(kv: DictKv, targets: int = 3) -> None:
    directory = Directory(kv, OLD)
    await directory.bootstrap("root-key", "root-secret")
    box = SecretBox(OLD, os.urandom)
    put = {}
    for number in range(2 * targets):
        record = BucketRecord(id=number, tenant="default", owner="root", created_us=1)
        if number % 2:
            target = ReplicationRecord(
                endpoint="http://127.0.0.1:1",
                bucket="b",
                access_key="k",
                secret=box.seal(secret_context(number), f"target secret {number}"),
                sealed_under=box.newest if number % 4 == 1 else "",
            )
            settings = {REPLICATION: encode(target), "other": b"kept"}
            record = msgspec.structs.replace(record, settings=settings)
        put[bucket_key(f"bucket-{number}")] = encode(record)
    authority = make_authority(b"c" * 16, 7, SystemClock().now_us())
    put[setting_key("authority")] = encode(AuthorityRecord(bundle=encode_authority(authority, OLD)))
    await kv.commit(Transaction(put=put))


def rotation_of(kv: DictKv, newest: bytes = NEW, *others: bytes) -> Rotation:
    return Rotation(kv, SecretBox(newest, os.urandom, others), SystemClock(), newest, others)


async def test_all_that_an_old_key_sealed_is_sealed_anew_and_the_old_key_is_needed_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotation, "PAGE", 2)
    kv = DictKv()
    await sealed_store(kv)
    turning = rotation_of(kv, NEW, OLD)
    old = master_key_id(OLD)
    assert await turning.needs() == {old: {"keys": 1, "targets": 3, "authorities": 1}}
    assert (await turning.status())["state"] == "none"
    assert not await turning.step(), "nothing was begun"

    assert (await turning.begin())["state"] == "under way"
    steps = 0
    while await turning.step():
        turning = rotation_of(kv, NEW, OLD)  # Another leader goes on at every step.
        assert (await turning.begin())["state"] == "under way", "begun again it goes on"
        steps += 1
    assert steps >= 5
    status = await turning.status()
    assert (status["state"], status["done"], status["master_key"]) == ("done", 5, master_key_id(NEW))
    assert status["needed"] == [{"master_key": old, "keys": 0, "targets": 0, "authorities": 0}]

    box = SecretBox(NEW, os.urandom)
    for number in range(1, 6, 2):
        record = decode((await kv.get(bucket_key(f"bucket-{number}"))) or b"", BucketRecord)
        target = replication_of(record)
        assert target is not None
        assert record.settings is not None
        assert record.settings["other"] == b"kept"
        opened = box.open(secret_context(number), target.secret, target.sealed_under)
        assert opened == f"target secret {number}"
    bundle = decode((await kv.get(setting_key("authority"))) or b"", AuthorityRecord).bundle
    assert decode_authority(bundle, NEW).checksum_secret == 7
    credential = await Directory(kv, NEW).credential("root-key")
    assert credential is not None
    assert credential.secret == "root-secret"


async def test_a_change_at_the_same_moment_is_kept_and_the_page_is_done_again() -> None:
    class ContestedKv(DictKv):
        contested: set[bytes] | None = None  # Keys whose first change each loses against somebody else's.

        async def commit(self, transaction: Transaction) -> None:
            if self.contested is not None:
                for key in transaction.expect:
                    if key not in self.contested:
                        self.contested.add(key)
                        raise Conflict(key)
            await super().commit(transaction)

    kv = ContestedKv()
    await sealed_store(kv)
    turning = rotation_of(kv, NEW, OLD)
    await turning.begin()
    kv.contested = set()
    lost, more = 0, True
    while more:
        try:
            more = await turning.step()
        except Conflict:
            lost += 1
    assert lost == 1 + 3 + 1, "its own state, three targets, the authority; a key is tried again at once"
    assert (await turning.needs())[master_key_id(OLD)] == {"keys": 0, "targets": 0, "authorities": 0}


async def test_nothing_is_begun_where_one_key_is_known_and_nothing_goes_on_under_another_newest() -> None:
    kv = DictKv()
    await sealed_store(kv)
    with pytest.raises(BadArgument, match="one master key only"):
        await rotation_of(kv, OLD).begin()
    assert await rotation_of(kv, OLD).needs() == {}
    await rotation_of(kv, NEW, OLD).begin()
    behind = rotation_of(kv, OLD, NEW)  # A gateway that was not started anew yet.
    assert not await behind.step()
    assert (await behind.status())["state"] == "none"
    assert (await rotation_of(kv, NEW, OLD).status())["state"] == "under way"


async def test_what_no_given_key_opens_is_told_by_the_key_that_it_names() -> None:
    kv = DictKv()
    await sealed_store(kv, targets=1)
    needs = await rotation_of(kv, NEW, b"x" * 32).needs()
    assert needs[master_key_id(OLD)] == {"keys": 1, "targets": 1, "authorities": 0}
    assert needs["unknown"] == {"keys": 0, "targets": 0, "authorities": 1}


def test_the_doctor_says_whether_an_old_key_is_still_needed() -> None:
    needed = {"k1": {"keys": 2, "targets": 0, "authorities": 1}, "k2": {"keys": 0, "targets": 0}}
    first, second = master_keys(needed)
    assert (first["level"], first["remedy"]) == ("warning", "objstore key rotate-master")
    assert "2 keys, 1 authorities are still sealed under master key k1" in first["finding"]
    assert second["level"] == "ok"
    assert "nothing needs master key k2" in second["finding"]
    assert master_keys({}) == []


async def test_a_gateway_that_knows_both_keys_follows_the_authority_and_then_needs_the_new_one_only(
    tmp_path: Path,
) -> None:
    cluster = InCluster(tmp_path)
    before = cluster.members
    await before.authority()  # Founds it in metadata, under the old key.
    after = dataclasses.replace(before, master_key=NEW, other_master_keys=(MASTER,), known=None, _bundle=b"")
    assert (await after.authority())[0].checksum_secret == 7
    turning = rotation_of(cluster.kv, NEW, MASTER)
    await turning.begin()
    while await turning.step():
        pass
    await after.authority()  # As every heartbeat asks for it.
    bundle = (tmp_path / "authority.json").read_bytes()
    assert decode_authority(bundle, NEW).checksum_secret == 7
    with pytest.raises(Corrupt):
        decode_authority(bundle, MASTER)
