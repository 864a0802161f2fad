"""Who asks the admin API, and what they may: whose resource it is, and what their role allows.

    operator         who has the store's own token: everything
    reseller         a user of a customer above the resource's tenant, within its role
    tenant           a user of the resource's own tenant, within its role (owner, admin, billing, reader)

What belongs to any other tenant is answered as if it were not there.
"""

import hmac
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from objstore.admin.problems import Problem
from objstore.errors import BadArgument
from objstore.iam.roles import AREAS, READ, WRITE, may
from objstore.iam.tokens import bearer_of
from objstore.meta.kv import Kv
from objstore.rental.customers import LEVELS_MAX, find_customer

OPERATOR: Final = "operator"
AUTHORIZATION_SIZE_MAX: Final = 512  # Characters.


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. Of the operator all but the name is empty."""

    name: str
    tenant: str = ""
    role: str = ""
    token: str = ""

    @property
    def is_operator(self) -> bool:
        return not self.tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who beside the operator may: with which action their role must allow it (iam/roles.py)."""

    action: str = ""  # "users:Write"; empty: nobody beside the operator.
    tenants: bool = True  # Users of the tenant itself may.
    resellers: bool = True  # Users of those above it may.

    def __post_init__(self) -> None:
        area, _, verb = self.action.partition(":")
        assert not self.action or (area in AREAS and verb in (READ, WRITE)), self.action


OPERATORS: Final = Rule(tenants=False, resellers=False)


async def caller_of(request: web.BaseRequest, kv: Kv, token: str, *, now_us: int) -> Caller | None:
    """Whose token the request bears; None: nobody's."""
    header = request.headers.get("Authorization", "")[:AUTHORIZATION_SIZE_MAX]
    scheme, _, given = header.partition(" ")
    given = given.strip()
    # Bytes, since compare_digest raises on text beyond ASCII.
    same = hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())
    if scheme.lower() != "bearer":
        return None
    if same:
        return Caller(name=OPERATOR)
    bearer = await bearer_of(kv, given, now_us=now_us)
    if bearer is None:
        return None
    user = bearer.user
    return Caller(name=user.name, tenant=user.tenant, role=user.role, token=bearer.token)


async def check_may(kv: Kv, caller: Caller, rule: Rule, tenant: str | None) -> None:
    """Whether the caller may.

    Args:
        tenant: whose the resource is; empty: the store's own; None: it is not there.

    Raises: Problem 403 (it may not), 404 (it is not there, or not for this caller).
    """
    if caller.is_operator:
        if tenant is None:
            raise Problem(404, "it is not there")
        return
    if not rule.action:
        raise Problem(403, "only the operator may do this")
    if tenant is None:
        raise Problem(404, "it is not there")
    own = tenant == caller.tenant
    if not own and not await is_above(kv, caller.tenant, tenant):
        raise Problem(404, "it is not there")
    if not may(caller.role, rule.action):
        raise Problem(403, f"the role {caller.role} does not allow {rule.action}")
    if not (rule.tenants if own else rule.resellers):
        raise Problem(
            403, "only who is above the tenant may do this" if own else "only the tenant itself may"
        )


async def is_above(kv: Kv, reseller: str, tenant: str) -> bool:
    """Whether a tenant is among the customers of a reseller, or of one of its customers."""
    above = tenant
    for _ in range(LEVELS_MAX + 1):
        if not above:
            return False
        try:
            above = (await find_customer(kv, above)).parent
        except BadArgument:
            return False
        if above == reseller:
            return True
    return False


def covers(role: str, other: str) -> bool:
    """Whether a role may whatever the other one may: nobody gives more than they have."""
    actions = [f"{area}:{verb}" for area in AREAS for verb in (READ, WRITE)]
    actions += ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:CreateBucket"]
    return all(may(role, action) for action in actions if may(other, action))


def check_gives(caller: Caller, role: str) -> None:
    """Raises: Problem 403 (it would give more than it has)."""
    if not caller.is_operator and not covers(caller.role, role):
        raise Problem(403, f"the role {caller.role} may not act for a user who is {role}")
