"""Access keys' terms, users' roles, last uses: from what operators say to what requests get."""

import msgspec
import pytest

from objstore.errors import BadArgument, Denied
from objstore.iam import roles
from objstore.iam.directory import Directory, bounds_of
from objstore.iam.keys import NETWORKS_MAX, KeyTerms
from objstore.iam.last_use import HOUR_US, UsedKeys
from objstore.iam.policy import POLICY_SIZE_MAX, Decision, check_policy, first_refusal
from objstore.iam.principal import Principal
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import (
    AccessKeyRecord,
    Limits,
    UserRecord,
    access_key_key,
    encode,
    project_key,
    user_key,
)
from tests.iam.test_directory import MASTER, CountingKv

READ_PHOTOS = (
    '{"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::photos/*"}}'
)
NOW_US = 1_800_000_000_000_000


class Clock:
    def now_us(self) -> int:
        return NOW_US

    def monotonic(self) -> float:
        return 0.0


async def ready(kv: DictKv) -> Directory:
    directory = Directory(kv, MASTER, clock=Clock())
    await directory.create_tenant("acme")
    await directory.create_user("ann", tenant="acme")
    await kv.commit(Transaction(put={project_key("acme", "photos"): b"a project's record"}))
    return directory


async def who(directory: Directory, key: str) -> Principal:
    credential = await directory.credential(key)
    assert credential is not None
    return credential.principal


def refusal(who: Principal, action: str, resource: str) -> Decision | None:
    assert who.bounds is not None
    return first_refusal(who.bounds.policies, action, resource, lambda _: None)


async def test_a_key_without_terms_is_bound_by_nothing() -> None:
    directory = await ready(DictKv())
    key, _ = await directory.create_key("ann")
    found = await who(directory, key)
    assert (found.project, found.bounds, found.limits) == ("", None, None)


async def test_a_keys_terms_reach_the_requests_that_it_signs() -> None:
    directory = await ready(DictKv())
    terms = KeyTerms(
        project="photos",
        policy=READ_PHOTOS,
        expires_us=NOW_US + 1,
        networks=("192.0.2.0/24", "2001:db8::1"),
        limits=Limits(requests_per_s=5),
    )
    key, secret = await directory.create_key("ann", terms=terms)
    found = await who(directory, key)
    assert found.project == "photos"
    assert found.limits == Limits(requests_per_s=5)
    assert found.bounds is not None
    assert found.bounds.expires_us == NOW_US + 1
    inside = [any(one.holds(text) for one in found.bounds.networks) for text in ("192.0.2.9", "2001:db8::1")]
    outside = [any(one.holds(text) for one in found.bounds.networks) for text in ("192.0.3.1", "::1", "")]
    assert (inside, outside) == ([True, True], [False, False, False])
    assert refusal(found, "s3:GetObject", "photos/a") is None
    assert refusal(found, "s3:PutObject", "photos/a") is Decision.NOTHING

    await directory.set_terms(key, KeyTerms())
    found = await who(directory, key)
    assert (found.project, found.bounds, found.limits) == ("", None, None)
    credential = await directory.credential(key)
    assert credential is not None
    assert credential.secret == secret, "other terms leave the secret"


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (KeyTerms(project="films"), "no project 'films'"),
        (KeyTerms(policy="{}"), "Statement is missing"),
        (KeyTerms(expires_us=NOW_US), "expires in the future"),
        (KeyTerms(networks=("192.0.2.0/40",)), "no address and no network"),
        (KeyTerms(networks=("192.0.2.1",) * 17), "at most 16 networks"),
    ],
)
async def test_terms_that_cannot_be_are_refused_and_change_nothing(terms: KeyTerms, words: str) -> None:
    kv = DictKv()
    directory = await ready(kv)
    key, _ = await directory.create_key("ann")
    before = await kv.get(access_key_key(key))
    with pytest.raises(BadArgument, match=words):
        await directory.create_key("ann", terms=terms)
    with pytest.raises(BadArgument, match=words):
        await directory.set_terms(key, terms)
    assert await kv.get(access_key_key(key)) == before
    assert len(await directory.list_keys()) == 1


async def test_the_longest_terms_fit_into_a_record_of_8_kib() -> None:
    kv = DictKv()
    directory = await ready(kv)
    room = POLICY_SIZE_MAX - len(check_policy(READ_PHOTOS))
    policy = READ_PHOTOS.replace("photos/*", "photos/*" + "x" * room)
    terms = KeyTerms(
        project="photos",
        policy=policy,
        expires_us=2 * NOW_US,
        networks=("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128",) * NETWORKS_MAX,
        limits=Limits(*[2**62] * 6),
    )
    key, _ = await directory.create_key("ann", access_key_id="K" * 128, comment="ü" * 256, terms=terms)
    value = await kv.get(access_key_key(key))
    assert value is not None
    assert 7_600 < len(value) <= 8_192


async def test_a_key_that_is_removed_is_nobodys_from_the_next_request_on() -> None:
    kv = DictKv()
    directory = await ready(kv)
    key, _ = await directory.create_key("ann")
    await who(directory, key)
    used = UsedKeys()
    used.add(key)
    await used.tell(kv, NOW_US)
    await directory.remove_key(key)
    assert await directory.credential(key) is None
    assert await directory.last_used([key]) == [None]
    with pytest.raises(BadArgument, match="no access key"):
        await directory.remove_key(key)


async def test_a_given_root_key_keeps_its_terms_when_its_secret_is_given_anew() -> None:
    kv = DictKv()
    directory = Directory(kv, MASTER, clock=Clock())
    await directory.bootstrap("root-key", "first-secret")
    await directory.set_terms("root-key", KeyTerms(networks=("10.0.0.0/8",)))
    await directory.bootstrap("root-key", "second-secret")
    credential = await directory.credential("root-key")
    assert credential is not None
    assert credential.secret == "second-secret"
    assert credential.principal.bounds is not None


# Fail closed.


@pytest.mark.parametrize(
    "odd",
    [
        {"policy": '{"Version": "2032-01-01", "Statement": []}'},
        {"networks": ["everywhere"]},
        {"networks": ["10.0.0.0/8", "everywhere"]},
    ],
)
def test_terms_that_cannot_be_read_allow_nothing(odd: dict[str, object]) -> None:
    key = msgspec.structs.replace(AccessKeyRecord(user="ann", secret=b"", created_us=0), **odd)
    bounds = bounds_of(UserRecord(tenant="acme", name="ann", created_us=0), key)
    assert bounds is not None
    assert first_refusal(bounds.policies, "s3:GetObject", "b/k", lambda _: None) is Decision.NOTHING


def test_a_role_that_is_not_known_may_do_nothing() -> None:
    user = UserRecord(tenant="acme", name="ann", created_us=0, role="emperor")
    bounds = bounds_of(user, AccessKeyRecord(user="ann", secret=b"", created_us=0))
    assert bounds is not None
    assert first_refusal(bounds.policies, "s3:GetObject", "b/k", lambda _: None) is Decision.NOTHING
    assert not roles.may("emperor", "usage:Read")


# Roles.

OBJECT_ACTIONS = ("s3:GetObject", "s3:ListBucket", "s3:ListAllMyBuckets")
CHANGES = ("s3:PutObject", "s3:DeleteObject", "s3:CreateBucket", "s3:AbortMultipartUpload", "s3:PutBucketAcl")


@pytest.mark.parametrize(
    ("role", "reads", "changes"),
    [
        ("owner", True, True),
        ("admin", True, True),
        ("reader", True, False),
        ("billing", False, False),
    ],
)
async def test_a_role_bounds_what_all_keys_of_its_user_may_do(role: str, reads: bool, changes: bool) -> None:
    directory = await ready(DictKv())
    await directory.create_user("rob", tenant="acme", role=role)
    key, _ = await directory.create_key("rob")
    wide, _ = await directory.create_key(
        "rob", terms=KeyTerms(policy='{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}')
    )
    for one in (key, wide):
        found = await who(directory, one)
        policies = found.bounds.policies if found.bounds is not None else ()
        for actions, allowed in ((OBJECT_ACTIONS, reads), (CHANGES, changes)):
            for action in actions:
                assert (first_refusal(policies, action, "b/k", lambda _: None) is None) == allowed, action


async def test_another_role_holds_from_the_next_request_on_and_root_keeps_its_own() -> None:
    directory = await ready(DictKv())
    key, _ = await directory.create_key("ann")
    assert (await who(directory, key)).bounds is None
    await directory.set_role("ann", "reader")
    assert refusal(await who(directory, key), "s3:PutObject", "b/k") is Decision.NOTHING
    assert (await directory.find_user("ann")).role == "reader"
    with pytest.raises(BadArgument, match="owner, admin, billing, reader"):
        await directory.set_role("ann", "emperor")
    with pytest.raises(BadArgument, match="no user"):
        await directory.set_role("bob", "reader")
    await directory.bootstrap()
    with pytest.raises(Denied):
        await directory.set_role("root", "reader")


async def test_a_record_of_before_roles_is_an_owners() -> None:
    kv = DictKv()
    directory = await ready(kv)
    key, _ = await directory.create_key("ann")
    await kv.commit(Transaction(put={user_key("ann"): encode((1, "acme", "ann", 5, False, False, ""))}))
    assert (await directory.find_user("ann")).role == "owner"
    assert (await who(directory, key)).bounds is None


def test_nobody_grants_more_than_they_may_themselves() -> None:
    actions = [f"{area}:{verb}" for area in roles.AREAS for verb in (roles.READ, roles.WRITE)]
    for role in roles.ROLES:
        for other in roles.ROLES:
            within = all(roles.may(role, action) for action in actions if roles.may(other, action))
            objects = role in ("owner", "admin") or other == "billing" or role == other
            assert roles.may_grant(role, other) == (within and objects), (role, other)
    assert roles.may_grant("owner", "owner")
    assert not roles.may_grant("admin", "owner")
    assert not roles.may_grant("reader", "admin")
    assert not roles.may_grant("emperor", "reader")
    assert not roles.may_grant("owner", "emperor")


# Last use.


class CommitsKv(CountingKv):
    commits = 0

    async def commit(self, transaction: Transaction) -> None:
        await super().commit(transaction)
        self.commits += 1


async def test_a_key_is_told_as_used_once_an_hour_however_often_it_is() -> None:
    kv = CommitsKv()
    directory = await ready(kv)
    key, _ = await directory.create_key("ann")
    idle, _ = await directory.create_key("ann")
    assert await directory.last_used([key, idle]) == [None, None]
    commits = kv.commits
    used = UsedKeys()
    for _ in range(5):
        used.add(key)
        await used.tell(kv, NOW_US)
    assert kv.commits == commits + 1
    assert await directory.last_used([key, idle]) == [NOW_US // HOUR_US * 3_600, None]

    used.add(key)
    await used.tell(kv, NOW_US + HOUR_US)
    await UsedKeys().tell(kv, NOW_US)  # Another process, that saw nothing.
    late = UsedKeys()
    late.add(key)
    await late.tell(kv, NOW_US)  # And one whose clock is behind.
    assert kv.commits == commits + 2
    assert await directory.last_used([key]) == [(NOW_US // HOUR_US + 1) * 3_600]


async def test_what_metadata_did_not_take_is_told_the_next_time() -> None:
    class Away(CommitsKv):
        away = False

        async def commit(self, transaction: Transaction) -> None:
            if self.away:
                raise OSError("away")
            await super().commit(transaction)

    kv = Away()
    directory = await ready(kv)
    key, _ = await directory.create_key("ann")
    used = UsedKeys()
    used.add(key)
    kv.away = True
    with pytest.raises(OSError, match="away"):
        await used.tell(kv, NOW_US)
    kv.away = False
    await used.tell(kv, NOW_US)
    assert await directory.last_used([key]) == [NOW_US // HOUR_US * 3_600]
