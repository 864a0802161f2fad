"""Access keys of users."""

from typing import Final

import msgspec

from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.iam.changes import ATTEMPTS_MAX, change_record
from objstore.iam.names import check_access_key_id, check_secret, new_access_key_id, new_secret
from objstore.iam.secrets import SecretBox
from objstore.iam.users import no_such_user
from objstore.ids import Randomness
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import AccessKeyRecord, access_key_key, decode, encode, user_key

COMMENT_SIZE_MAX: Final = 256  # Characters.


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
) -> tuple[str, str]:
    """Returns the access key's id and its secret, given or made. The secret is not shown again.

    Raises: BadArgument (not an id or a secret, the id exists, or there is no such user).
    """
    if len(comment) > COMMENT_SIZE_MAX:
        raise BadArgument(f"a comment has at most {COMMENT_SIZE_MAX} characters", name="comment")
    owner = user_key(user)
    for _ in range(ATTEMPTS_MAX):
        one = new_access_key_id(randomness) if access_key_id is None else check_access_key_id(access_key_id)
        words = new_secret(randomness) if secret is None else check_secret(secret)
        owner_value = await kv.get(owner)
        if owner_value is None:
            raise no_such_user(user)
        record = AccessKeyRecord(user=user, secret=box.seal(one, words), created_us=now_us, comment=comment)
        key = access_key_key(one)
        try:
            await kv.commit(Transaction(expect={key: None, owner: owner_value}, put={key: encode(record)}))
        except Conflict as conflict:
            if conflict.key == key and access_key_id is not None:
                raise BadArgument(f"access key {one!r} exists", name="access key", value=one) from conflict
            continue
        return one, words
    raise Overloaded(f"user {user!r} kept changing")


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
    """Make this very key valid for the user, whatever it was before; whether anything had to change.

    Raises: BadArgument (not an id or a secret, or the key is another user's).
    """
    key = access_key_key(check_access_key_id(access_key_id))
    check_secret(secret)
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(key)
        created_us, comment = now_us, ""
        if value is not None:
            record = decode(value, AccessKeyRecord)
            if record.user != user:
                raise BadArgument(
                    f"access key {access_key_id!r} is another user's", name="access key", value=access_key_id
                )
            if not record.disabled and box.open(access_key_id, record.secret) == secret:
                return False
            created_us, comment = record.created_us, record.comment
        record = AccessKeyRecord(
            user=user, secret=box.seal(access_key_id, secret), created_us=created_us, comment=comment
        )
        try:
            await kv.commit(Transaction(expect={key: value}, put={key: encode(record)}))
        except Conflict:
            continue
        return True
    raise Overloaded(f"access key {access_key_id!r} kept changing")
