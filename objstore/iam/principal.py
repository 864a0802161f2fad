"""Who asks: the result of verifying a request."""

from dataclasses import dataclass

from objstore.iam.conditions import Network
from objstore.iam.policy import Policy
from objstore.meta.schema import AccountRecord, Limits

NO_ACCOUNT = AccountRecord()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """The right of a bucket's source to change its replica: checked against the replica's record."""

    generation: int
    session: int
    order: int = 0  # Of the version that is sent, by its source: the replica's version has the same.


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What holds of a request beside its tenant's right: everything in here must allow it."""

    policies: tuple[Policy, ...] = ()  # Of the user's role, and of the key.
    networks: tuple[Network, ...] = ()  # From where it may come; none: from anywhere.
    expires_us: int = 0  # 0: never.


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. Anonymous requests never get this far yet."""

    tenant: str
    user: str
    access_key_id: str
    root: bool = False
    mirror: Mirror | None = None  # Of a request that a bucket's source sends.
    project: str = ""  # Of the key: nothing outside of it is there. Empty: all of the tenant's.
    bounds: Bounds | None = None  # None: whatever the tenant may.
    limits: Limits | None = None  # The key's own; None: it has none.
    account: AccountRecord = NO_ACCOUNT  # The tenant's, as it was when the request began.
