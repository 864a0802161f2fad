"""The directory: bootstrap, resolution, disabling, sealed secrets."""

import pytest

from objstore.errors import BadArgument, Corrupt, Denied
from objstore.iam.directory import Directory
from objstore.iam.names import new_access_key_id, new_secret
from objstore.meta.kv import DictKv, Kv, Transaction
from objstore.meta.schema import (
    AccessKeyRecord,
    AccountRecord,
    Limits,
    access_key_key,
    account_key,
    decode,
    encode,
)

MASTER = bytes(range(32))


class CountingKv(DictKv):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def get(self, key: bytes) -> bytes | None:
        self.calls += 1
        return await super().get(key)

    async def get_many(self, keys):  # type: ignore[no-untyped-def]
        self.calls += 1
        return await super().get_many(keys)


class VersionedKv(CountingKv):
    commits = 0

    def version(self) -> tuple[int, int]:
        return 1, self.commits

    def get_at(self, key: bytes, version: tuple[int, int]) -> tuple[bool, bytes | None]:
        raise AssertionError("no credential is read so")

    async def commit(self, transaction: Transaction) -> None:
        await super().commit(transaction)
        self.commits += 1


async def ready(kv: Kv | None = None) -> tuple[Directory, str, str]:
    directory = Directory(kv if kv is not None else DictKv(), MASTER)
    one, secret = await directory.bootstrap()
    assert secret is not None
    return directory, one, secret


async def test_the_first_start_makes_a_root_key_and_later_starts_find_it() -> None:
    kv = DictKv()
    directory, one, secret = await ready(kv)
    assert len(one) == 20
    assert len(secret) == 40
    assert await Directory(kv, MASTER).bootstrap() == (one, None)
    credential = await directory.credential(one)
    assert credential is not None
    assert credential.secret == secret
    assert not credential.disabled
    assert (credential.principal.tenant, credential.principal.user) == ("default", "root")
    assert credential.principal.root


async def test_a_given_root_key_is_taken_and_a_changed_one_replaces_it() -> None:
    kv = DictKv()
    for secret in ("minio-like-secret", "minio-like-secret", "another-secret"):
        directory = Directory(kv, MASTER)
        assert await directory.bootstrap("admin", secret) == ("admin", None)
        credential = await directory.credential("admin")
        assert credential is not None
        assert credential.secret == secret
    with pytest.raises(BadArgument):
        await directory.bootstrap("admin", None)


async def test_no_start_makes_another_root_key_where_all_of_them_were_disabled() -> None:
    directory, one, _ = await ready()
    await directory.set_key_disabled(one)
    assert await directory.bootstrap() == (one, None)
    assert [(key, record.disabled) for key, record in await directory.list_keys(user="root")] == [(one, True)]


async def test_a_given_root_key_that_was_disabled_stays_so_until_enabled_or_given_another_secret() -> None:
    directory = Directory(DictKv(), MASTER)

    async def disabled_after_a_start(secret: str) -> bool:
        assert await directory.bootstrap("admin", secret) == ("admin", None)
        return (await directory.find_key("admin")).disabled

    assert not await disabled_after_a_start("first-secret")
    await directory.set_key_disabled("admin")
    assert await disabled_after_a_start("first-secret")
    await directory.set_key_disabled("admin", disabled=False)
    assert not await disabled_after_a_start("first-secret")
    await directory.set_key_disabled("admin")
    assert not await disabled_after_a_start("second-secret")


async def test_a_given_root_key_never_takes_over_another_users() -> None:
    directory, _, _ = await ready()
    await directory.create_user("eve")
    one, secret = await directory.create_key("eve")
    with pytest.raises(BadArgument):
        await directory.bootstrap(one, secret)


async def test_an_unknown_key_is_nobody() -> None:
    directory, _, _ = await ready()
    for text in ("OSNOBODY000000000000", "", "ü" * 20, "x" * 5_000):
        assert await directory.credential(text) is None


@pytest.mark.parametrize("engine", [DictKv, VersionedKv])
@pytest.mark.parametrize("level", ["key", "user", "tenant"])
async def test_what_is_disabled_is_disabled_at_once_and_in_every_process(
    level: str, engine: type[DictKv]
) -> None:
    kv = engine()
    directory, _, _ = await ready(kv)
    await directory.create_tenant("acme")
    await directory.create_user("wile", tenant="acme")
    one, _ = await directory.create_key("wile")
    other_process = Directory(kv, MASTER)
    credential = await other_process.credential(one)
    assert credential is not None
    assert not credential.disabled
    names = {"key": one, "user": "wile", "tenant": "acme"}
    for disabled in (True, False):
        await getattr(directory, f"set_{level}_disabled")(names[level], disabled)
        credential = await other_process.credential(one)
        assert credential is not None
        assert credential.disabled is disabled
        assert getattr(credential, f"{level}_disabled") is disabled


async def test_a_repeated_look_up_costs_one_read_and_no_decryption() -> None:
    kv = CountingKv()
    directory, one, _ = await ready(kv)
    first = await directory.credential(one)
    kv.calls = 0
    assert await directory.credential(one) is first
    assert kv.calls == 1


async def test_a_look_up_costs_no_read_while_nothing_is_committed_and_one_after_any_commit() -> None:
    kv = VersionedKv()
    directory, one, _ = await ready(kv)
    first = await directory.credential(one)
    await directory.credential(one)
    kv.calls = 0
    assert await directory.credential(one) is first
    assert kv.calls == 0
    await kv.commit(Transaction(put={b"other": b"1"}))
    for calls in (1, 1):
        assert await directory.credential(one) is first
        assert kv.calls == calls


async def test_the_root_user_cannot_lock_itself_out() -> None:
    directory, _, _ = await ready()
    with pytest.raises(Denied):
        await directory.set_user_disabled("root")
    with pytest.raises(Denied):
        await directory.set_tenant_disabled("default")


async def test_secrets_are_sealed_and_bound_to_their_key() -> None:
    kv = DictKv()
    directory, one, secret = await ready(kv)
    value = await kv.get(access_key_key(one))
    assert value is not None
    assert secret.encode() not in value
    record = decode(value, AccessKeyRecord)
    assert len(record.secret) == 12 + 40 + 16
    await kv.commit(Transaction(put={access_key_key("OSMOVED0000000000000"): value}))
    with pytest.raises(Corrupt):
        await directory.credential("OSMOVED0000000000000")
    with pytest.raises(Corrupt):
        await Directory(kv, bytes(32)).credential(one)


async def test_nothing_shows_a_secret_by_accident() -> None:
    directory, one, secret = await ready()
    credential = await directory.credential(one)
    assert secret not in repr(credential)
    assert secret not in repr(vars(directory))


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a\n", "a" * 64, "ü", "a/b", "a\0b", "١"])
async def test_a_tenant_name_outside_the_pattern_is_refused(name: str) -> None:
    directory, _, _ = await ready()
    with pytest.raises(BadArgument):
        await directory.create_tenant(name)


@pytest.mark.parametrize("name", ["", ".a", "a.", "a b", "a\n", "a" * 129, "ü", "a/b", "a\0", "١"])
async def test_a_user_name_outside_the_pattern_is_refused(name: str) -> None:
    directory, _, _ = await ready()
    with pytest.raises(BadArgument):
        await directory.create_user(name)


@pytest.mark.parametrize("name", ["operator", "Operator", "upkeep"])
async def test_no_user_is_called_as_the_audit_log_calls_the_operator(name: str) -> None:
    directory, _, _ = await ready()
    with pytest.raises(BadArgument, match="would not tell them apart"):
        await directory.create_user(name)


async def test_names_are_taken_once_and_owners_must_exist() -> None:
    directory, one, _ = await ready()
    await directory.create_tenant("acme")
    await directory.create_user("wile", tenant="acme", email="wile@acme.example")
    for refused in (
        directory.create_tenant("acme"),
        directory.create_user("wile"),
        directory.create_user("road", tenant="nobody"),
        directory.create_key("nobody"),
        directory.create_key("wile", access_key_id=one),
        directory.create_key("wile", secret="short"),
        directory.set_key_disabled("nobody"),
        directory.set_user_disabled("nobody"),
        directory.set_tenant_disabled("nobody"),
        directory.find_tenant("nobody"),
    ):
        with pytest.raises(BadArgument):
            await refused


async def test_lists_are_in_order_and_by_owner() -> None:
    directory, root_key, _ = await ready()
    await directory.create_tenant("acme")
    for name in ("b", "a", "c"):
        await directory.create_user(name, tenant="acme")
    made = sorted([(await directory.create_key("a"))[0] for _ in range(3)])
    assert [tenant.name for tenant in await directory.list_tenants()] == ["acme", "default"]
    assert [user.name for user in await directory.list_users()] == ["a", "b", "c", "root"]
    assert [user.name for user in await directory.list_users(tenant="acme", after="a")] == ["b", "c"]
    assert [user.name for user in await directory.list_users(limit=2)] == ["a", "b"]
    assert [one for one, _ in await directory.list_keys(user="a")] == made
    assert {one for one, _ in await directory.list_keys()} == {*made, root_key}


def test_made_ids_and_secrets_use_every_letter_evenly_and_only_theirs() -> None:
    stream = iter(range(10**9))

    def counting(size: int) -> bytes:
        return bytes(next(stream) % 256 for _ in range(size))

    ids = "".join(new_access_key_id(counting)[2:] for _ in range(2_000))
    assert set(ids) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    assert new_access_key_id(counting).startswith("OS")
    secrets = "".join(new_secret(counting) for _ in range(1_000))
    assert secrets.isalnum()
    assert secrets.isascii()
    assert len(set(secrets)) == 62


async def test_a_credential_knows_its_tenants_account_and_a_change_of_it_holds_at_once() -> None:
    kv = VersionedKv()
    directory, one, _ = await ready(kv)
    credential = await directory.credential(one)
    assert credential is not None
    assert credential.principal.account == AccountRecord()
    account = AccountRecord(state="suspended", limits=Limits(requests_per_s=5))
    await kv.commit(Transaction(put={account_key("default"): encode(account)}))
    credential = await directory.credential(one)
    assert credential is not None
    assert credential.principal.account == account
    kv.calls = 0
    assert await directory.credential(one) is credential  # Seen at another version now, and no more then.
    assert await directory.credential(one) is credential
    assert kv.calls <= 1
