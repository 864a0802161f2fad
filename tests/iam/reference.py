"""Policies decided as slowly and as plainly as the User Guide tells it: what iam/policy.py is held against.

It shares no code with it: wildcards by trying everything, documents walked anew for every request.
"""

import datetime
import ipaddress
import re
from decimal import Decimal
from functools import cache
from typing import Any

Request = dict[str, tuple[str, ...]]  # Condition keys in lower case.


def decide(policy: dict[str, Any], action: str, resource: str, request: Request) -> str:
    """'deny', 'allow' or 'nothing'."""
    statements = policy["Statement"]
    new = policy.get("Version") == "2012-10-17"
    effects = {
        statement["Effect"]
        for statement in (statements if isinstance(statements, list) else [statements])
        if _applies(statement, action, resource, request, new)
    }
    return "deny" if "Deny" in effects else "allow" if "Allow" in effects else "nothing"


def _applies(statement: dict[str, Any], action: str, resource: str, request: Request, new: bool) -> bool:
    if "Action" in statement:
        if not _any_action(statement["Action"], action):
            return False
    elif _any_action(statement["NotAction"], action):
        return False
    if "Resource" in statement:
        if not _any_resource(statement["Resource"], resource, request, new):
            return False
    elif _any_resource(statement["NotResource"], resource, request, new):
        return False
    return all(
        _holds(operator, key, _list(wanted), request, new)
        for operator, keys in statement.get("Condition", {}).items()
        for key, wanted in keys.items()
    )


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _any_action(patterns: Any, action: str) -> bool:
    return any(like(_wild(pattern.lower()), action.lower()) for pattern in _list(patterns))


def _any_resource(patterns: Any, resource: str, request: Request, new: bool) -> bool:
    for pattern in _list(patterns):
        if pattern == "*":
            return True
        *head, last = pattern.split(":", 5)
        ours = ["arn", "aws", "s3", "", ""]
        if all(like(_wild(wanted), given) for wanted, given in zip(head, ours, strict=True)):
            symbols = _symbols(last, request, new)
            if symbols is not None and like(symbols, resource):
                return True
    return False


def _wild(text: str) -> tuple[tuple[str, bool], ...]:
    """Characters, and whether each is a wildcard."""
    return tuple((letter, letter in "*?") for letter in text)


def _symbols(
    text: str, request: Request, new: bool, wild: bool = True
) -> tuple[tuple[str, bool], ...] | None:
    """With variables in place; None if the request says nothing of one."""
    found: list[tuple[str, bool]] = []
    at = 0
    while at < len(text):
        if new and text.startswith("${", at):
            end = text.index("}", at)
            name, _, default = text[at + 2 : end].partition(",")
            at = end + 1
            if name in ("*", "?", "$"):
                said: str | None = name
            else:
                said = request.get(name.strip().lower(), (None,))[0]
                if said is None and default:
                    said = default.strip().strip("'")
            if said is None:
                return None
            found += [(letter, False) for letter in said]
        else:
            found.append((text[at], wild and text[at] in "*?"))
            at += 1
    return tuple(found)


def like(pattern: tuple[tuple[str, bool], ...], text: str) -> bool:
    @cache
    def from_(i: int, j: int) -> bool:
        if i == len(pattern):
            return j == len(text)
        letter, wild = pattern[i]
        if wild and letter == "*":
            return from_(i + 1, j) or (j < len(text) and from_(i, j + 1))
        return j < len(text) and (wild or letter == text[j]) and from_(i + 1, j + 1)

    return from_(0, 0)


def _holds(operator: str, key: str, wanted: list[Any], request: Request, new: bool) -> bool:
    said = request.get(key.lower(), ())
    quantifier, _, name = operator.rpartition(":")
    if name == "Null":
        return (str(wanted[0]).lower() == "true") == (not said)
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    negated = "Not" in name
    positive = name.replace("Not", "", 1)
    if not said:
        if quantifier:
            return quantifier == "ForAllValues"
        return if_exists or negated
    hits = [any(_one(positive, str(value), given, request, new) for value in wanted) for given in said]
    if quantifier == "ForAllValues":
        return all(hit != negated for hit in hits)
    if quantifier == "ForAnyValue":
        return any(hit != negated for hit in hits)
    return not any(hits) if negated else any(hits)


def _one(name: str, wanted: str, given: str, request: Request, new: bool) -> bool:
    if name.startswith(("String", "Arn")):
        symbols = _symbols(wanted, request, new, wild=name in ("StringLike", "ArnLike", "ArnEquals"))
        if symbols is None:
            return False
        if name == "StringEqualsIgnoreCase":
            return "".join(letter for letter, _ in symbols).casefold() == given.casefold()
        return like(symbols, given)
    if name == "Bool":
        return wanted.lower() == given.lower()
    if name == "IpAddress":
        address = ipaddress.ip_address(given)
        network = ipaddress.ip_network(wanted, strict=False)
        return address.version == network.version and address in network
    order = name.removeprefix("Numeric").removeprefix("Date")
    if name.startswith("Numeric"):
        if not re.fullmatch(r"-?\d+(\.\d+)?", given):
            return False
        a: Any = Decimal(given)
        b: Any = Decimal(wanted)
    else:
        a, b = _moment(given), _moment(wanted)
    return bool(
        {
            "Equals": a == b,
            "LessThan": a < b,
            "LessThanEquals": a <= b,
            "GreaterThan": a > b,
            "GreaterThanEquals": a >= b,
        }[order]
    )


def _moment(text: str) -> datetime.datetime:
    if text.isdigit():
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC)
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).replace(tzinfo=datetime.UTC)
