"""The Condition of a statement: operators, condition keys, what they say of a request.

All operators and all keys of a block must hold. Of several values in a policy one is enough, and of a
negated operator (NotEquals, NotLike, NotIpAddress) none may match. A key of which the request says nothing
fails, save with negated and ...IfExists operators; ForAllValues holds of nothing, ForAnyValue does not, and
both ignore IfExists.

Source: IAM User Guide, "Condition operators" and "Multivalued context keys".
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, NamedTuple, TypeVar

from objstore.errors import BadArgument
from objstore.iam.patterns import Text, Values

# What a request may say of itself, in lower case. A key that is not here is a mistake in the policy: it would
# never hold, and a Deny that never holds is a hole.
KEYS: Final = frozenset(
    {
        "aws:currenttime",
        "aws:epochtime",
        "aws:principalaccount",
        "aws:principalarn",
        "aws:principaltype",
        "aws:referer",
        "aws:requestedregion",
        "aws:securetransport",
        "aws:sourceip",
        "aws:useragent",
        "aws:userid",
        "aws:username",
        "s3:authtype",
        "s3:delimiter",
        "s3:if-match",
        "s3:if-none-match",
        "s3:max-keys",
        "s3:prefix",
        "s3:resourceaccount",
        "s3:signatureage",
        "s3:signatureversion",
        "s3:versionid",
        "s3:x-amz-acl",
        "s3:x-amz-content-sha256",
        "s3:x-amz-copy-source",
        "s3:x-amz-metadata-directive",
        "s3:x-amz-server-side-encryption",
        "s3:x-amz-storage-class",
        "s3:x-amz-website-redirect-location",
    }
)
# Known to AWS, and of no request here: no object has tags, no one carries a second factor or a session.
ABSENT: Final = frozenset(
    {
        "aws:multifactorauthage",
        "aws:multifactorauthpresent",
        "aws:principalorgid",
        "aws:sourcevpc",
        "aws:sourcevpce",
        "aws:tagkeys",
        "aws:viaawsservice",
        "s3:requestobjecttagkeys",
    }
)
ABSENT_FAMILIES: Final = (
    "aws:principaltag/",
    "aws:requesttag/",
    "aws:resourcetag/",
    "s3:existingobjecttag/",
    "s3:requestobjecttag/",
)

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,9})?", re.ASCII)
_DATE: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?",
    re.ASCII,
)
_EPOCH: Final = re.compile(r"[0-9]{1,3}|[0-9]{5,11}", re.ASCII)  # Four digits may be meant for a year.
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_IPV4: Final = (1 << 32) - 1
_OPERATOR: Final = re.compile(r"(?:(ForAnyValue|ForAllValues):)?([A-Za-z]+?)(IfExists)?", re.ASCII)

Holds = Callable[[str, Values], bool]  # Whether one value of a request matches one of a policy.
T = TypeVar("T")


def parse_number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


@lru_cache(maxsize=256)
def parse_date(text: str) -> datetime | None:
    """A date, a moment (UTC if no zone is named), or seconds since 1970."""
    try:
        if _EPOCH.fullmatch(text):
            return datetime.fromtimestamp(int(text), UTC)
        if _DATE.fullmatch(text):
            found = datetime.fromisoformat(text)
            return found.astimezone(UTC) if found.tzinfo is not None else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    return None


def parse_bool(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text.lower())


class Network(NamedTuple):
    """As integers: a look costs a tenth of ipaddress's own."""

    version: int  # 4 or 6.
    first: int
    mask: int

    def holds(self, address: str) -> bool:
        version, number = parse_address(address)
        return version == self.version and number & self.mask == self.first


@lru_cache(maxsize=4096)
def parse_address(text: str) -> tuple[int, int]:
    """(version, address), (0, 0) if it is none. One in IPv6's clothes (::ffff:192.0.2.1) is IPv4."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return 0, 0
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.version, int(found)


def parse_network(text: str) -> Network | None:
    """An address or a network, such as 192.0.2.0/24 or 2001:db8::/32. One in IPv6's clothes
    (::ffff:192.0.2.0/120) is IPv4, as the addresses are that it is held against."""
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        return None
    first, mask = int(found.network_address), int(found.netmask)
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        return Network(4, first & _IPV4, mask & _IPV4)
    return Network(found.version, first, mask)


# Operators: how a value of the policy becomes a test of the request's value.


def _texts(*, wildcards: bool = False, fold: bool = False) -> Callable[[str, bool], Holds]:
    def make(wanted: str, variables: bool) -> Holds:
        return _text(wanted, wildcards=wildcards, variables=variables, fold=fold).matches

    return make


def _text(wanted: str, *, wildcards: bool, variables: bool, fold: bool = False) -> Text:
    text = Text(wanted, wildcards=wildcards, variables=variables, fold=fold)
    for name in text.variables:
        check_key(name)
    return text


def _arns(wanted: str, variables: bool) -> Holds:
    segments = split_arn(wanted)
    if segments is None:
        raise BadArgument(f"{wanted!r} is no ARN", name="policy", value=wanted)
    tests = [_text(segment, wildcards=True, variables=variables) for segment in segments]

    def holds(value: str, values: Values) -> bool:
        pieces = value.split(":", 5)
        return len(pieces) == 6 and all(
            test.matches(piece, values) for test, piece in zip(tests, pieces, strict=True)
        )

    return holds


def split_arn(text: str) -> list[str] | None:
    """arn, partition, service, region, account, resource; a colon in `${...}` parts nothing. None: no ARN."""
    pieces = re.findall(r"((?:\$\{[^{}]*\}|[^:])*)(?::|\Z)", text)
    if len(pieces) < 6 or pieces[0] != "arn":
        return None
    head = pieces[:5]
    resource = text[sum(len(piece) + 1 for piece in head) :]
    return [*head, resource] if resource else None


def _compared(
    parse: Callable[[str], T | None], what: str, holds: Callable[[Any, Any], bool]
) -> Callable[[str, bool], Holds]:
    """Of values that are parsed. What a request says and nobody can parse matches nothing."""

    def make(wanted: str, variables: bool) -> Holds:
        limit = parse(wanted)
        if limit is None:
            raise BadArgument(f"{wanted!r} is no {what}", name="policy", value=wanted)

        def test(value: str, _: Values) -> bool:
            found = parse(value)
            return found is not None and holds(found, limit)

        return test

    return make


def _networks(wanted: str, variables: bool) -> Holds:
    network = parse_network(wanted)
    if network is None:
        raise BadArgument(f"{wanted!r} is no address and no network", name="policy", value=wanted)

    def test(value: str, _: Values) -> bool:
        return network.holds(value)

    return test


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)


_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "Equals": _equal,
    "LessThan": lambda a, b: a < b,
    "LessThanEquals": lambda a, b: a <= b,
    "GreaterThan": lambda a, b: a > b,
    "GreaterThanEquals": lambda a, b: a >= b,
}


class _Operator(NamedTuple):
    make: Callable[[str, bool], Holds]
    negated: bool = False


_OPERATORS: Final[dict[str, _Operator]] = {
    "StringEquals": _Operator(_texts()),
    "StringNotEquals": _Operator(_texts(), negated=True),
    "StringEqualsIgnoreCase": _Operator(_texts(fold=True)),
    "StringNotEqualsIgnoreCase": _Operator(_texts(fold=True), negated=True),
    "StringLike": _Operator(_texts(wildcards=True)),
    "StringNotLike": _Operator(_texts(wildcards=True), negated=True),
    "ArnEquals": _Operator(_arns),
    "ArnLike": _Operator(_arns),
    "ArnNotEquals": _Operator(_arns, negated=True),
    "ArnNotLike": _Operator(_arns, negated=True),
    "Bool": _Operator(_compared(parse_bool, "true or false", _equal)),
    "IpAddress": _Operator(_networks),
    "NotIpAddress": _Operator(_networks, negated=True),
    "NumericNotEquals": _Operator(_compared(parse_number, "number", _equal), negated=True),
    "DateNotEquals": _Operator(_compared(parse_date, "date", _equal), negated=True),
    **{
        f"Numeric{name}": _Operator(_compared(parse_number, "number", holds))
        for name, holds in _ORDERS.items()
    },
    **{f"Date{name}": _Operator(_compared(parse_date, "date", holds)) for name, holds in _ORDERS.items()},
}


class Condition:
    """One operator on one key."""

    __slots__ = ("_absent", "_all", "_negated", "_tests", "key")

    def __init__(
        self, key: str, tests: tuple[Holds, ...], *, negated: bool, every: bool, absent: bool
    ) -> None:
        self.key = key
        self._tests = tests
        self._negated = negated
        self._all = every  # Of several values of the request, all must hold; else one.
        self._absent = absent  # What holds if the request says nothing.

    def holds(self, values: Values) -> bool:
        found = values(self.key)
        if not found:
            return self._absent
        every = self._all
        for value in found:  # Loops: generators would cost more than what they run.
            hit = self._negated
            for test in self._tests:
                if test(value, values):
                    hit = not hit
                    break
            if hit != every:
                return hit
        return every


class Presence:
    """Null: whether the request says nothing of a key."""

    __slots__ = ("_absent", "key")

    def __init__(self, key: str, absent: frozenset[bool]) -> None:
        self.key = key
        self._absent = absent

    def holds(self, values: Values) -> bool:
        return (not values(self.key)) in self._absent


def parse_conditions(
    block: Mapping[str, Mapping[str, list[str]]], *, variables: bool
) -> tuple[Condition | Presence, ...]:
    """Raises: BadArgument."""
    return tuple(
        _parse_one(operator, key, wanted, variables=variables)
        for operator, keys in block.items()
        for key, wanted in keys.items()
    )


def check_key(key: str) -> str:
    """In lower case. Raises: BadArgument for one that no request here can ever say anything of."""
    low = key.lower()
    if low not in KEYS and low not in ABSENT and not low.startswith(ABSENT_FAMILIES):
        raise BadArgument(f"the condition key {key!r} is not known here", name="policy", value=key)
    return low


def _parse_one(operator: str, key: str, wanted: list[str], *, variables: bool) -> Condition | Presence:
    match = _OPERATOR.fullmatch(operator)
    name = match[2] if match is not None else ""
    low = check_key(key)
    if match is not None and name == "Null" and not match[1] and not match[3]:
        parsed = [parse_bool(value) for value in wanted]
        if None in parsed:
            raise BadArgument(f"{operator} of {key} takes true or false", name="policy", value=operator)
        return Presence(low, frozenset(value for value in parsed if value is not None))
    known = _OPERATORS.get(name)
    if match is None or known is None:
        raise BadArgument(f"there is no condition operator {operator!r}", name="policy", value=operator)
    try:
        tests = tuple(known.make(value, variables) for value in wanted)
    except BadArgument as failure:
        raise BadArgument(f"{operator} of {key}: {failure}", name="policy", value=operator) from None
    quantifier = match[1]
    every = quantifier == "ForAllValues" or (quantifier is None and known.negated)
    absent = quantifier == "ForAllValues" or (quantifier is None and (known.negated or match[3] is not None))
    return Condition(low, tests, negated=known.negated, every=every, absent=absent)
