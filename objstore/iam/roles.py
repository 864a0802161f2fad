"""Roles of users: what each may do at most, as policies. A key's own policy narrows it further.

Beside S3's, actions are those of the admin API: an area and Read or Write (`invoices:Read`). Which area a
request of the admin API belongs to is its routes' business; what a role may do is decided here.
"""

import json
from typing import Final

from objstore.errors import BadArgument
from objstore.iam.policy import Decision, Policy, compile_policy

DEFAULT_ROLE: Final = "owner"
AREAS: Final = (
    "audit", "buckets", "invoices", "keys", "leases", "offers", "payments", "plans", "policies", "projects",
    "quotas", "reports", "tenant", "usage", "users",
)  # fmt: skip
READ: Final = "Read"
WRITE: Final = "Write"


def _statement(effect: str, actions: list[str]) -> dict[str, object]:
    return {"Effect": effect, "Action": actions, "Resource": "*"}


def _document(*statements: dict[str, object]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


PRESETS: Final[dict[str, str]] = {
    # Who signed: everything.
    "owner": _document(_statement("Allow", ["*"])),
    # Who runs it: everything but what binds the firm (leases, its own contract) or pays.
    "admin": _document(
        _statement("Allow", ["*"]),
        _statement("Deny", ["leases:Write", "offers:Write", "payments:Write", "tenant:Write"]),
    ),
    # Who pays: money and what it is owed for, no object.
    "billing": _document(
        _statement(
            "Allow",
            [
                "invoices:*", "payments:*", "leases:Read", "offers:Read", "plans:Read", "reports:Read",
                "tenant:Read", "usage:Read", "projects:Read", "quotas:Read",
            ],
        )
    ),
    # Who looks: all of it, and changes nothing.
    "reader": _document(_statement("Allow", ["s3:Get*", "s3:List*", *(f"{area}:{READ}" for area in AREAS)])),
}  # fmt: skip
ROLES: Final = tuple(PRESETS)
_ALL_OF_S3: Final = frozenset({"owner", "admin"})  # Nothing need be decided for these.
_NONE_OF_S3: Final = frozenset({"billing"})
_ADMIN_ACTIONS: Final = tuple(f"{area}:{verb}" for area in AREAS for verb in (READ, WRITE))


def check_role(role: str) -> str:
    """Raises: BadArgument."""
    if role not in PRESETS:
        raise BadArgument(f"a user is {', '.join(ROLES)}", name="role", value=role)
    return role


def role_policy(role: str) -> Policy:
    """Raises: BadArgument (no such role)."""
    return compile_policy(PRESETS[check_role(role)])


def objects_policy(role: str) -> Policy | None:
    """What bounds the role's requests to S3; None: nothing does. A role that is not known may do nothing."""
    if role in _ALL_OF_S3:
        return None
    return compile_policy(PRESETS[role]) if role in PRESETS else NOTHING


def may(role: str, action: str) -> bool:
    """Whether a role may do it in the admin API: `invoices:Read`. A role that is not known may nothing."""
    if role not in PRESETS:
        return False
    return role_policy(role).decide(action, "*", lambda _: None) is Decision.ALLOW


def may_grant(role: str, other: str) -> bool:
    """Whether one of this role may give another role to somebody: never more than they may themselves."""
    if role not in PRESETS or other not in PRESETS:
        return False
    if not all(may(role, action) for action in _ADMIN_ACTIONS if may(other, action)):
        return False
    return role in _ALL_OF_S3 or role == other or other in _NONE_OF_S3


NOTHING: Final = Policy(())
