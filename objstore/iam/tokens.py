"""Bearer tokens of users, for the admin API: `OT` and 18 letters, a dot, 40 letters of secret.

Only the secret's SHA-256 is kept: it has more than 200 random bits, so nothing slower is needed. A token may
what its user may, as long as it has not expired and neither user nor tenant is disabled.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.iam.changes import ATTEMPTS_MAX
from objstore.iam.keys import COMMENT_SIZE_MAX
from objstore.iam.names import new_access_key_id, new_secret
from objstore.iam.picking import Picked, owned, pick
from objstore.iam.users import no_such_user
from objstore.ids import Randomness
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import (
    TenantRecord,
    TokenRecord,
    UserRecord,
    decode,
    encode,
    last_use_key,
    tenant_key,
    token_key,
    user_key,
)

DAYS_MAX: Final = 366
PREFIX: Final = "OT"
_DAY_US: Final = 86_400 * 1_000_000
_TOKEN: Final = re.compile(r"(OT[A-Z0-9]{18})\.([A-Za-z0-9]{40})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """Whose a token is."""

    token: str  # Its id.
    user: UserRecord


def no_such_token(token: str) -> BadArgument:
    return BadArgument(f"there is no token {token!r}", name="token", value=token)


async def create_token(
    kv: Kv, user: str, *, now_us: int, days: int, randomness: Randomness, comment: str = ""
) -> tuple[str, TokenRecord]:
    """The token as it is sent, which is not shown again, and its record.

    Raises: BadArgument (no such user, or the days), Overloaded.
    """
    if not 1 <= days <= DAYS_MAX:
        raise BadArgument(f"a token is good for 1 to {DAYS_MAX} days", name="days", value=str(days))
    if len(comment) > COMMENT_SIZE_MAX:
        raise BadArgument(f"a comment has at most {COMMENT_SIZE_MAX} characters", name="comment")
    owner = user_key(user)
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(owner)
        if value is None:
            raise no_such_user(user)
        token = PREFIX + new_access_key_id(randomness)[2:]
        secret = new_secret(randomness)
        record = TokenRecord(
            user=user,
            digest_of_secret=hashlib.sha256(secret.encode()).digest(),
            created_us=now_us,
            expires_us=now_us + days * _DAY_US,
            comment=comment,
        )
        key = token_key(token)
        try:
            await kv.commit(Transaction(expect={key: None, owner: value}, put={key: encode(record)}))
        except Conflict:
            continue
        return f"{token}.{secret}", record
    raise Overloaded(f"user {user!r} kept changing")


async def find_token(kv: Kv, token: str) -> TokenRecord:
    """Raises: BadArgument (no such token)."""
    value = await kv.get(token_key(token))
    if value is None:
        raise no_such_token(token)
    return decode(value, TokenRecord)


async def list_tokens(kv: Kv, *, after: str = "", limit: int = 1_000) -> list[tuple[str, TokenRecord]]:
    """Ids > after, in order, of all users."""
    start = token_key(after) + b"\0" if after else token_key("")
    pairs = await kv.scan(start, prefix_end(token_key("")), limit)
    return [(key[1:].decode(), decode(value, TokenRecord)) for key, value in pairs]


async def page_of_tokens(kv: Kv, *, user: str, tenant: str, after: str, limit: int) -> Picked[TokenRecord]:
    """Ids > after, in order; of one user, else of one tenant, else of all."""
    return await pick(kv, token_key(""), TokenRecord, owned(kv, user, tenant), after=after, limit=limit)


async def remove_token(kv: Kv, token: str) -> TokenRecord:
    """What it was. Raises: BadArgument (no such token), Overloaded."""
    key = token_key(token)
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(key)
        if value is None:
            raise no_such_token(token)
        try:
            await kv.commit(Transaction(expect={key: value}, delete=[key, last_use_key(token)]))
        except Conflict:
            continue
        return decode(value, TokenRecord)
    raise Overloaded(f"token {token!r} kept changing")


async def bearer_of(kv: Kv, text: str, *, now_us: int) -> Bearer | None:
    """Whose token this is; None if it is nobody's, has expired, or its user or tenant is disabled."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        return None
    value = await kv.get(token_key(match[1]))
    if value is None:
        return None
    record = decode(value, TokenRecord)
    digest = hashlib.sha256(match[2].encode()).digest()
    if not hmac.compare_digest(digest, record.digest_of_secret) or now_us >= record.expires_us:
        return None
    user_value = await kv.get(user_key(record.user))
    user = None if user_value is None else decode(user_value, UserRecord)
    if user is None or user.disabled:
        return None
    tenant_value = await kv.get(tenant_key(user.tenant))
    if tenant_value is None or decode(tenant_value, TenantRecord).disabled:
        return None
    return Bearer(token=match[1], user=user)
