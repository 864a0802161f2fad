"""Access keys of users: their secrets, and the terms on which each may be used."""

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.iam.changes import ATTEMPTS_MAX, change_record
from objstore.iam.conditions import parse_network
from objstore.iam.names import check_access_key_id, check_secret, new_access_key_id, new_secret
from objstore.iam.picking import Picked, owned, pick
from objstore.iam.policy import check_policy
from objstore.iam.secrets import SecretBox
from objstore.iam.users import no_such_user
from objstore.ids import Randomness
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import (
    AccessKeyRecord,
    Limits,
    UserRecord,
    access_key_key,
    decode,
    encode,
    last_use_key,
    project_key,
    user_key,
)

COMMENT_SIZE_MAX: Final = 256  # Characters.
NETWORKS_MAX: Final = 16  # With the longest policy and comment the record stays under 8 KiB.
NETWORK_SIZE_MAX: Final = 49  # Characters: the longest way to write one.
NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """On which terms a key may be used. Limits are the caller's to check (rental/terms.py)."""

    project: str = ""  # One of its tenant's; empty: all of the tenant's buckets.
    policy: str = ""  # JSON in AWS's policy language; empty: whatever its user may.
    expires_us: int = 0  # 0: never.
    networks: tuple[str, ...] = ()  # Addresses and networks (CIDR); none: from anywhere.
    limits: Limits = NO_LIMITS


NO_TERMS: Final = KeyTerms()


def check_terms(terms: KeyTerms, *, now_us: int) -> KeyTerms:
    """As they are kept: the policy without spaces. Raises: BadArgument."""
    if terms.expires_us and terms.expires_us <= now_us:
        raise BadArgument("an access key expires in the future", name="expires")
    if len(terms.networks) > NETWORKS_MAX:
        raise BadArgument(f"an access key has at most {NETWORKS_MAX} networks", name="networks")
    for network in terms.networks:
        if len(network) > NETWORK_SIZE_MAX or parse_network(network) is None:
            raise BadArgument(f"{network!r} is no address and no network", name="networks", value=network)
    return replace(terms, policy=check_policy(terms.policy) if terms.policy else "")


async def _known_project(kv: Kv, owner: bytes, project: str) -> dict[bytes, bytes | None]:
    """What a commit that names a project of a user's tenant expects. Raises: BadArgument (there is none)."""
    if not project:
        return {}
    tenant = decode(owner, UserRecord).tenant
    key = project_key(tenant, project)
    value = await kv.get(key)
    if value is None:
        raise BadArgument(f"tenant {tenant!r} has no project {project!r}", name="project", value=project)
    return {key: value}


def no_such_key(access_key_id: str) -> BadArgument:
    return BadArgument(f"there is no access key {access_key_id!r}", name="access key", value=access_key_id)


async def create_key(
    kv: Kv,
    box: SecretBox,
    user: str,
    *,
    now_us: int,
    randomness: Randomness,
    access_key_id: str | None = None,
    secret: str | None = None,
    comment: str = "",
    terms: KeyTerms = NO_TERMS,
) -> tuple[str, str]:
    """Returns the access key's id and its secret, given or made. The secret is not shown again.

    Raises: BadArgument (not an id or a secret, terms that cannot be, the id exists, there is no such user or
    project).
    """
    terms = check_terms(terms, now_us=now_us)
    if len(comment) > COMMENT_SIZE_MAX:
        raise BadArgument(f"a comment has at most {COMMENT_SIZE_MAX} characters", name="comment")
    owner = user_key(user)
    for _ in range(ATTEMPTS_MAX):
        one = new_access_key_id(randomness) if access_key_id is None else check_access_key_id(access_key_id)
        words = new_secret(randomness) if secret is None else check_secret(secret)
        owner_value = await kv.get(owner)
        if owner_value is None:
            raise no_such_user(user)
        known = await _known_project(kv, owner_value, terms.project)
        record = _on_terms(
            AccessKeyRecord(
                user=user,
                secret=box.seal(one, words),
                created_us=now_us,
                comment=comment,
                sealed_under=box.newest,
            ),
            terms,
        )
        key = access_key_key(one)
        expect = {key: None, owner: owner_value, **known}
        try:
            await kv.commit(Transaction(expect=expect, put={key: encode(record)}))
        except Conflict as conflict:
            if conflict.key == key and access_key_id is not None:
                raise BadArgument(f"access key {one!r} exists", name="access key", value=one) from conflict
            continue
        return one, words
    raise Overloaded(f"user {user!r} kept changing")


def _on_terms(record: AccessKeyRecord, terms: KeyTerms) -> AccessKeyRecord:
    return msgspec.structs.replace(
        record,
        project=terms.project,
        policy=terms.policy,
        expires_us=terms.expires_us,
        networks=list(terms.networks),
        limits=terms.limits,
    )


async def find_key(kv: Kv, access_key_id: str) -> AccessKeyRecord:
    """Its secret is sealed. Raises: BadArgument (no such key)."""
    value = await kv.get(access_key_key(access_key_id))
    if value is None:
        raise no_such_key(access_key_id)
    return decode(value, AccessKeyRecord)


async def set_terms(kv: Kv, access_key_id: str, terms: KeyTerms, *, now_us: int) -> AccessKeyRecord:
    """Other terms for a key, from the next request on.

    Raises: BadArgument (terms that cannot be, there is no such key or project), Overloaded.
    """
    terms = check_terms(terms, now_us=now_us)
    key = access_key_key(access_key_id)
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(key)
        if value is None:
            raise no_such_key(access_key_id)
        record = _on_terms(decode(value, AccessKeyRecord), terms)
        owner = await kv.get(user_key(record.user))
        if owner is None:
            raise no_such_user(record.user)
        known = await _known_project(kv, owner, terms.project)
        try:
            await kv.commit(Transaction(expect={key: value, **known}, put={key: encode(record)}))
        except Conflict:
            continue
        return record
    raise Overloaded(f"access key {access_key_id!r} kept changing")


async def remove_key(kv: Kv, access_key_id: str) -> None:
    """For good: its secret is gone with it. Raises: BadArgument (no such key), Overloaded."""
    key = access_key_key(access_key_id)
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(key)
        if value is None:
            raise no_such_key(access_key_id)
        try:
            await kv.commit(Transaction(expect={key: value}, delete=[key, last_use_key(access_key_id)]))
        except Conflict:
            continue
        return
    raise Overloaded(f"access key {access_key_id!r} kept changing")


async def list_keys(
    kv: Kv, *, user: str | None = None, after: str = "", limit: int = 1_000
) -> list[tuple[str, AccessKeyRecord]]:
    """Ids > after, in order; of one user or of all. The records' secrets are sealed."""
    found: list[tuple[str, AccessKeyRecord]] = []
    start = access_key_key(after) + b"\0" if after else b"k"
    while len(found) < limit and (pairs := await kv.scan(start, prefix_end(b"k"), 1_000)):
        records = [(key[1:].decode(), decode(value, AccessKeyRecord)) for key, value in pairs]
        found += [(one, record) for one, record in records if user is None or record.user == user]
        start = pairs[-1][0] + b"\0"
    return found[:limit]


async def page_of_keys(kv: Kv, *, user: str, tenant: str, after: str, limit: int) -> Picked[AccessKeyRecord]:
    """Ids > after, in order; of one user, else of one tenant, else of all. Their secrets are sealed."""
    return await pick(
        kv, access_key_key(""), AccessKeyRecord, owned(kv, user, tenant), after=after, limit=limit
    )


async def set_key_disabled(kv: Kv, access_key_id: str, disabled: bool) -> AccessKeyRecord:
    """A disabled key is refused from the next request on. Raises: BadArgument (no such key)."""

    def switch(record: AccessKeyRecord) -> AccessKeyRecord:
        return msgspec.structs.replace(record, disabled=disabled)

    return await change_record(
        kv, access_key_key(access_key_id), AccessKeyRecord, switch, absent=no_such_key(access_key_id)
    )


async def give_key(
    kv: Kv, box: SecretBox, user: str, access_key_id: str, secret: str, *, now_us: int
) -> bool:
    """Make this very key the user's, whatever it was before; whether anything had to change.

    Disabled with this very secret, it stays so: whoever disabled it meant the secret that is given still.

    Raises: BadArgument (not an id or a secret, or the key is another user's).
    """
    key = access_key_key(check_access_key_id(access_key_id))
    check_secret(secret)
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(key)
        record = AccessKeyRecord(user=user, secret=b"", created_us=now_us)
        if value is not None:
            record = decode(value, AccessKeyRecord)
            if record.user != user:
                raise BadArgument(
                    f"access key {access_key_id!r} is another user's", name="access key", value=access_key_id
                )
            if box.open(access_key_id, record.secret, record.sealed_under) == secret:
                return False
        given = msgspec.structs.replace(
            record, secret=box.seal(access_key_id, secret), sealed_under=box.newest, disabled=False
        )
        try:
            await kv.commit(Transaction(expect={key: value}, put={key: encode(given)}))
        except Conflict:
            continue
        return True
    raise Overloaded(f"access key {access_key_id!r} kept changing")
