"""Identity policies in AWS's policy language: parsed strictly, compiled once, decided on every request.

    {"Version": "2012-10-17",
     "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::photos/*",
                    "Condition": {"IpAddress": {"aws:SourceIp": "192.0.2.0/24"}}}]}

A matching Deny wins over every Allow; what no statement allows is denied. `decide` tells "nothing was said"
from "denied", so that the policies of a bucket can join those of who asks.

Pure: it may not know HTTP, metadata or whose a policy is. A resource is what follows arn:aws:s3::: in its
ARN, `bucket` or `bucket/key`; `*` if an action has none.

Source: IAM User Guide, "IAM JSON policy elements reference" and "Policy evaluation logic".
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

from objstore.errors import BadArgument
from objstore.iam.actions import check_action
from objstore.iam.conditions import Condition, Presence, check_key, parse_conditions, split_arn
from objstore.iam.patterns import Text, Values

T = TypeVar("T")

POLICY_SIZE_MAX: Final = 6_144  # Bytes of JSON without spaces: as AWS, and it fits into a key's record.
VERSIONS: Final = ("2012-10-17", "2008-10-17")
_OURS: Final = ("arn", "aws", "s3", "", "")  # Before the resource in the ARN of every bucket and object.

_ACTION: Final = re.compile(r"\*|[a-z0-9-]+:[A-Za-z0-9*?]+", re.ASCII | re.IGNORECASE)
_SID: Final = re.compile(r"[A-Za-z0-9]{0,64}", re.ASCII)
_POLICY_FIELDS: Final = frozenset({"Version", "Id", "Statement"})
_FIELDS: Final = frozenset(
    {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"}
)  # And Principal, NotPrincipal in policies of buckets.


class Decision(Enum):
    NOTHING = "no statement applies"
    ALLOW = "allowed"
    DENY = "denied by a statement"


class Statement:
    """One statement, compiled."""

    __slots__ = ("_actions", "_conditions", "_not_actions", "_not_resources", "_resources", "denies", "sid")

    def __init__(
        self,
        sid: str,
        *,
        denies: bool,
        actions: tuple[Text, ...],
        not_actions: bool,
        resources: tuple[Text, ...],
        not_resources: bool,
        conditions: tuple[Condition | Presence, ...],
    ) -> None:
        self.sid = sid
        self.denies = denies
        self._actions = actions
        self._not_actions = not_actions
        self._resources = resources
        self._not_resources = not_resources
        self._conditions = conditions

    def is_about(self, action: str) -> bool:
        """action: in lower case."""
        return any(text.matches(action, _silent) for text in self._actions) != self._not_actions

    def applies(self, resource: str, values: Values) -> bool:
        """To a request whose action it is about."""
        for text in self._resources:
            if text.matches(resource, values):
                if self._not_resources:
                    return False
                break
        else:
            if not self._not_resources:
                return False
        for condition in self._conditions:  # noqa: SIM110 # A generator costs more than the conditions.
            if not condition.holds(values):
                return False
        return True


def _silent(_: str) -> None:
    """Of a request that says nothing: actions have no variables."""


class Policy:
    """A compiled policy. Immutable but for what it remembers of actions asked for: those of our routes."""

    __slots__ = ("_by_action", "statements")

    def __init__(self, statements: tuple[Statement, ...]) -> None:
        self.statements = statements
        self._by_action: dict[str, tuple[Statement, ...]] = {}

    def decide(self, action: str, resource: str, values: Values) -> Decision:
        """
        Args:
            action: such as s3:GetObject.
            resource: bucket, bucket/key or `*`.
            values: what the request says of a condition key, asked for only where a statement needs it.
        """
        statements = self._by_action.get(action)
        if statements is None:
            statements = self._about(action)
        decision = Decision.NOTHING
        for statement in statements:
            if statement.applies(resource, values):
                if statement.denies:
                    return Decision.DENY
                decision = Decision.ALLOW
        return decision

    def _about(self, action: str) -> tuple[Statement, ...]:
        low = action.lower()
        found = sorted(
            (statement for statement in self.statements if statement.is_about(low)),
            key=lambda statement: not statement.denies,
        )
        self._by_action[action] = tuple(found)
        return self._by_action[action]


def first_refusal(policies: Iterable[Policy], action: str, resource: str, values: Values) -> Decision | None:
    """Each policy must allow it. None: all do; otherwise what the first that does not says."""
    for policy in policies:
        decision = policy.decide(action, resource, values)
        if decision is not Decision.ALLOW:
            return decision
    return None


@lru_cache(maxsize=256)  # At most 256 x about 60 KiB; keys that share a policy share its compiled form.
def compile_policy(text: str) -> Policy:
    """Raises: BadArgument, which names the statement."""
    document = _parse_json(text)
    _only(document, _POLICY_FIELDS, "the policy")
    version = document.get("Version", VERSIONS[1])
    if version not in VERSIONS:
        raise _wrong(f"Version is one of {', '.join(VERSIONS)}, not {version!r}")
    if not isinstance(document.get("Id", ""), str):
        raise _wrong("Id is a text")
    if "Statement" not in document:
        raise _wrong("Statement is missing")
    compiled = _each_statement(document, partial(_parse_statement, variables=version == VERSIONS[0]))
    sids = [statement.sid for statement in compiled if statement.sid]
    if len(sids) != len(set(sids)):
        raise _wrong("two statements have the same Sid")
    return Policy(tuple(compiled))


def _each_statement(document: dict[str, Any], do: Callable[[Any], T]) -> list[T]:
    """Raises: BadArgument, which names the statement."""
    found = document["Statement"]
    statements = found if isinstance(found, list) else [found]
    if not statements:
        raise _wrong("Statement is empty")
    done: list[T] = []
    for number, one in enumerate(statements, 1):
        try:
            done.append(do(one))
        except BadArgument as failure:
            raise _wrong(f"{_name(number, one)}: {failure}") from None
    return done


def check_policy(text: str) -> str:
    """The policy as it is kept: without spaces. Raises: BadArgument.

    Held to more than what is compiled: it may only name actions there are (iam/actions.py). What is kept
    already need not: a release that did not look may have kept it, and it must go on being read.
    """
    too_long = _wrong(f"a policy has at most {POLICY_SIZE_MAX} bytes without spaces")
    if len(text) > 4 * POLICY_SIZE_MAX:  # Before any work.
        raise too_long
    document = _parse_json(text)
    short = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    try:
        size = len(short.encode())
    except UnicodeEncodeError:
        raise _wrong("a policy is text that UTF-8 can carry") from None
    if size > POLICY_SIZE_MAX:
        raise too_long
    compile_policy(short)
    _each_statement(document, _check_actions)
    return short


def _check_actions(statement: dict[str, Any]) -> None:
    """Of a statement that compiles."""
    for action in _either(statement, "Action", "NotAction")[1]:
        check_action(action)


def _wrong(message: str) -> BadArgument:
    return BadArgument(message, name="policy")


def _name(number: int, statement: Any) -> str:
    sid = statement.get("Sid") if isinstance(statement, dict) else None
    return f"statement {number} ({sid})" if isinstance(sid, str) and sid else f"statement {number}"


def _parse_json(text: str) -> dict[str, Any]:
    """Numbers become texts, which is what conditions compare. Raises: BadArgument."""
    try:
        document = json.loads(
            text, object_pairs_hook=_once, parse_int=str, parse_float=str, parse_constant=_no_constant
        )
    except RecursionError:
        raise _wrong("nested too deeply") from None
    except json.JSONDecodeError as failure:
        raise _wrong(f"not JSON: {failure}") from None
    if not isinstance(document, dict):
        raise _wrong("a policy is a JSON object")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _wrong(f"{twice!r} is given twice")
    return found


def _no_constant(name: str) -> None:
    raise _wrong(f"{name} is not JSON")


def _only(found: dict[str, Any], allowed: frozenset[str], what: str) -> None:
    for name in found:
        if name in ("Principal", "NotPrincipal"):
            raise _wrong(f"{name} belongs in the policy of a bucket: here it is who has the policy")
        if name not in allowed:
            raise _wrong(f"{what} has no element {name!r}")


def _parse_statement(found: Any, *, variables: bool) -> Statement:
    if not isinstance(found, dict):
        raise _wrong("a statement is a JSON object")
    _only(found, _FIELDS, "a statement")
    sid = found.get("Sid", "")
    if not isinstance(sid, str) or not _SID.fullmatch(sid):
        raise _wrong("a Sid has at most 64 letters and digits")
    effect = found.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise _wrong(f"Effect is Allow or Deny, not {effect!r}")
    not_actions, actions = _either(found, "Action", "NotAction")
    not_resources, resources = _either(found, "Resource", "NotResource")
    for action in actions:
        if not _ACTION.fullmatch(action):
            raise _wrong(f"{action!r} is no action: an action is like s3:GetObject, s3:Get* or *")
    return Statement(
        sid,
        denies=effect == "Deny",
        actions=tuple(Text(action, wildcards=True, variables=False, fold=True) for action in actions),
        not_actions=not_actions,
        resources=tuple(_resources(resources, variables=variables)),
        not_resources=not_resources,
        conditions=parse_conditions(_block(found.get("Condition", {})), variables=variables),
    )


def _either(found: dict[str, Any], name: str, negated: str) -> tuple[bool, list[str]]:
    """Whether it is the negated element, and what it lists."""
    if (name in found) == (negated in found):
        raise _wrong(f"exactly one of {name} and {negated} is needed")
    which = negated if negated in found else name
    return which == negated, _list(found[which], which)


def _list(found: Any, what: str) -> list[str]:
    listed = found if isinstance(found, list) else [found]
    if not listed or not all(isinstance(one, str) for one in listed):
        raise _wrong(f"{what} is a text or a list of texts")
    return listed


def _resources(listed: Sequence[str], *, variables: bool) -> Iterable[Text]:
    """Those that any bucket or object can match, by what follows arn:aws:s3:::."""
    for resource in listed:
        if resource == "*":
            yield Text("*", wildcards=True, variables=False)
            continue
        segments = split_arn(resource)
        if segments is None:
            raise _wrong(f"{resource!r} is no resource: it is * or like arn:aws:s3:::bucket/key")
        # Cut at its colons, so that no `*` before the resource reaches into it.
        heads = [Text(segment, wildcards=True, variables=False) for segment in segments[:5]]
        text = Text(segments[5], wildcards=True, variables=variables)
        for name in text.variables:
            check_key(name)
        if all(head.matches(ours, _silent) for head, ours in zip(heads, _OURS, strict=True)):
            yield text


def _block(found: Any) -> dict[str, dict[str, list[str]]]:
    if not isinstance(found, dict) or not all(isinstance(keys, dict) and keys for keys in found.values()):
        raise _wrong("a Condition is an object of operators, each an object of condition keys")
    return {
        operator: {key: _list(_texts(wanted), key) for key, wanted in keys.items()}
        for operator, keys in found.items()
    }


def _texts(found: Any) -> Any:
    """Conditions may be written with JSON's true and false."""
    if isinstance(found, list):
        return [_texts(one) if isinstance(one, bool) else one for one in found]
    return ("true" if found else "false") if isinstance(found, bool) else found
