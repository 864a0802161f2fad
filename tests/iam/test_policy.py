"""Identity policies: AWS's examples, a plain reference by chance, what is refused, what cannot blow up."""

import json
import os
import random
from typing import Any

import pytest

from objstore.errors import BadArgument
from objstore.iam.conditions import KEYS
from objstore.iam.patterns import Text
from objstore.iam.policy import POLICY_SIZE_MAX, Decision, check_policy, compile_policy, first_refusal
from tests.iam.reference import Request, decide
from tests.seed import SEED

NOTHING: Request = {}
LONG = bool(os.environ.get("OBJSTORE_LONG"))
POLICIES = 20_000 if LONG else 300  # Random ones, eight requests each.


def policy(*statements: dict[str, Any], version: str | None = "2012-10-17") -> str:
    document: dict[str, Any] = {"Version": version} if version else {}
    return json.dumps({**document, "Statement": list(statements)})


def allow(action: Any, resource: Any, condition: Any = None, **more: Any) -> dict[str, Any]:
    conditions = {"Condition": condition} if condition else {}
    return {"Effect": "Allow", "Action": action, "Resource": resource, **conditions, **more}


def deny(action: Any, resource: Any, condition: Any = None) -> dict[str, Any]:
    return {**allow(action, resource, condition), "Effect": "Deny"}


def verdict(text: str, action: str, resource: str, request: Request = NOTHING) -> str:
    decision = compile_policy(text).decide(action, resource, request.get)
    return {Decision.ALLOW: "allow", Decision.DENY: "deny", Decision.NOTHING: "nothing"}[decision]


# Examples of the IAM and S3 User Guides, abridged, with names of our own.

HOME = policy(
    allow(["s3:ListAllMyBuckets", "s3:GetBucketLocation"], "arn:aws:s3:::*"),
    allow(
        "s3:ListBucket",
        "arn:aws:s3:::docs",
        {"StringLike": {"s3:prefix": ["", "home/", "home/${aws:username}/*"]}},
    ),
    allow("s3:*", ["arn:aws:s3:::docs/home/${aws:username}", "arn:aws:s3:::docs/home/${aws:username}/*"]),
)
ONE_BUCKET = policy(
    allow("s3:ListBucket", "arn:aws:s3:::docs"),
    allow(["s3:PutObject", "s3:GetObject", "s3:DeleteObject"], "arn:aws:s3:::docs/*"),
)
ALL_BUT = policy(
    {
        "Effect": "Deny",
        "Action": "s3:*",
        "NotResource": ["arn:aws:s3:::docs", "arn:aws:s3:::docs/*"],
    },
    allow("s3:*", "*"),
)
NETWORK = policy(
    allow("*", "*"),
    deny("*", "*", {"NotIpAddress": {"aws:SourceIp": ["192.0.2.0/24", "203.0.113.0/24"]}}),
)
TLS = policy(allow("s3:*", "*"), deny("s3:*", "*", {"Bool": {"aws:SecureTransport": "false"}}))
DATES = policy(
    allow(
        "s3:*",
        "*",
        {
            "DateGreaterThan": {"aws:CurrentTime": "2020-04-01T00:00:00Z"},
            "DateLessThan": {"aws:CurrentTime": "2020-06-30T23:59:59Z"},
        },
    )
)
KEYS_AT_MOST = policy(
    allow("s3:ListBucket", "arn:aws:s3:::docs"),
    deny("s3:ListBucket", "arn:aws:s3:::docs", {"NumericGreaterThan": {"s3:max-keys": "10"}}),
)
PREFIX = policy(
    allow("s3:ListBucket", "arn:aws:s3:::docs", {"StringEquals": {"s3:prefix": "projects"}}),
    deny("s3:ListBucket", "arn:aws:s3:::docs", {"StringNotEquals": {"s3:prefix": "projects"}}),
)
STORAGE_CLASS = policy(
    allow("s3:PutObject", "arn:aws:s3:::docs/*", {"StringEquals": {"s3:x-amz-storage-class": ["COLD"]}})
)
ENCRYPTED = policy(
    allow("s3:*", "*"),
    deny("s3:PutObject", "*", {"Null": {"s3:x-amz-server-side-encryption": "true"}}),
)
COPY_FROM = policy(
    allow(["s3:PutObject"], "arn:aws:s3:::to/*"),
    deny("s3:PutObject", "arn:aws:s3:::to/*", {"StringNotLike": {"s3:x-amz-copy-source": "from/public/*"}}),
)
TAGS = policy(
    allow("s3:*", "*", {"ForAllValues:StringEquals": {"aws:TagKeys": ["environment", "cost"]}}),
    deny("s3:*", "*", {"ForAnyValue:StringNotEquals": {"aws:TagKeys": ["environment"]}}),
)
NOT_ACTION = policy({"Effect": "Allow", "NotAction": "s3:DeleteBucket", "Resource": "arn:aws:s3:::*"})
IF_EXISTS = policy(allow("s3:*", "*", {"StringEqualsIfExists": {"s3:x-amz-storage-class": "STANDARD"}}))
DEFAULTED = policy(allow("s3:*", "arn:aws:s3:::docs/${aws:username, 'nobody'}/${*}"))
OLD = policy(allow("s3:*", "arn:aws:s3:::docs/${aws:username}/*"), version=None)


@pytest.mark.parametrize(
    ("text", "action", "resource", "request_", "wanted"),
    [
        (HOME, "s3:ListAllMyBuckets", "*", {}, "allow"),
        (HOME, "s3:ListBucket", "docs", {"s3:prefix": ("home/",)}, "allow"),
        (HOME, "s3:ListBucket", "docs", {"s3:prefix": ("home/bob/x",), "aws:username": ("bob",)}, "allow"),
        (HOME, "s3:ListBucket", "docs", {"s3:prefix": ("home/eve/x",), "aws:username": ("bob",)}, "nothing"),
        (HOME, "s3:ListBucket", "docs", {"aws:username": ("bob",)}, "nothing"),
        (HOME, "s3:PutObject", "docs/home/bob/a", {"aws:username": ("bob",)}, "allow"),
        (HOME, "s3:PutObject", "docs/home/bobby/a", {"aws:username": ("bob",)}, "nothing"),
        (HOME, "s3:PutObject", "docs/home/eve/a", {"aws:username": ("*",)}, "nothing"),
        (HOME, "s3:PutObject", "docs/home//a", {}, "nothing"),
        (ONE_BUCKET, "s3:GetObject", "docs/a/b", {}, "allow"),
        (ONE_BUCKET, "s3:GetObject", "docs2/a", {}, "nothing"),
        (ONE_BUCKET, "s3:GetObject", "docs", {}, "nothing"),
        (ONE_BUCKET, "s3:GetObjectVersion", "docs/a", {}, "nothing"),
        (ONE_BUCKET, "S3:getobject", "docs/a", {}, "allow"),
        (ALL_BUT, "s3:GetObject", "docs/a", {}, "allow"),
        (ALL_BUT, "s3:GetObject", "other/docs/a", {}, "deny"),
        (ALL_BUT, "s3:ListAllMyBuckets", "*", {}, "deny"),
        (NETWORK, "s3:GetObject", "b/k", {"aws:sourceip": ("203.0.113.7",)}, "allow"),
        (NETWORK, "s3:GetObject", "b/k", {"aws:sourceip": ("::ffff:203.0.113.7",)}, "allow"),
        (NETWORK, "s3:GetObject", "b/k", {"aws:sourceip": ("203.0.114.7",)}, "deny"),
        (NETWORK, "s3:GetObject", "b/k", {"aws:sourceip": ("2001:db8::1",)}, "deny"),
        (NETWORK, "s3:GetObject", "b/k", {"aws:sourceip": ("no address",)}, "deny"),
        (NETWORK, "s3:GetObject", "b/k", {}, "deny"),
        (TLS, "s3:GetObject", "b/k", {"aws:securetransport": ("true",)}, "allow"),
        (TLS, "s3:GetObject", "b/k", {"aws:securetransport": ("false",)}, "deny"),
        (DATES, "s3:GetObject", "b/k", {"aws:currenttime": ("2020-05-01T00:00:00Z",)}, "allow"),
        (DATES, "s3:GetObject", "b/k", {"aws:currenttime": ("2020-04-01T00:00:00Z",)}, "nothing"),
        (DATES, "s3:GetObject", "b/k", {"aws:currenttime": ("1588291200",)}, "allow"),
        (DATES, "s3:GetObject", "b/k", {"aws:currenttime": ("2020-07-01T02:30:00+02:00",)}, "nothing"),
        (KEYS_AT_MOST, "s3:ListBucket", "docs", {"s3:max-keys": ("10",)}, "allow"),
        (KEYS_AT_MOST, "s3:ListBucket", "docs", {"s3:max-keys": ("11",)}, "deny"),
        (KEYS_AT_MOST, "s3:ListBucket", "docs", {"s3:max-keys": ("9",)}, "allow"),
        (PREFIX, "s3:ListBucket", "docs", {"s3:prefix": ("projects",)}, "allow"),
        (PREFIX, "s3:ListBucket", "docs", {"s3:prefix": ("Projects",)}, "deny"),
        (PREFIX, "s3:ListBucket", "docs", {}, "deny"),
        (STORAGE_CLASS, "s3:PutObject", "docs/a", {"s3:x-amz-storage-class": ("COLD",)}, "allow"),
        (STORAGE_CLASS, "s3:PutObject", "docs/a", {}, "nothing"),
        (ENCRYPTED, "s3:PutObject", "docs/a", {}, "deny"),
        (ENCRYPTED, "s3:PutObject", "docs/a", {"s3:x-amz-server-side-encryption": ("AES256",)}, "allow"),
        (COPY_FROM, "s3:PutObject", "to/a", {"s3:x-amz-copy-source": ("from/public/a",)}, "allow"),
        (COPY_FROM, "s3:PutObject", "to/a", {"s3:x-amz-copy-source": ("from/private/a",)}, "deny"),
        (COPY_FROM, "s3:PutObject", "to/a", {}, "deny"),
        (TAGS, "s3:PutObject", "b/k", {}, "allow"),
        (TAGS, "s3:PutObject", "b/k", {"aws:tagkeys": ("environment",)}, "allow"),
        (TAGS, "s3:PutObject", "b/k", {"aws:tagkeys": ("environment", "cost")}, "deny"),
        (TAGS, "s3:PutObject", "b/k", {"aws:tagkeys": ("other",)}, "deny"),
        (NOT_ACTION, "s3:DeleteBucket", "docs", {}, "nothing"),
        (NOT_ACTION, "s3:DeleteObject", "docs/a", {}, "allow"),
        (IF_EXISTS, "s3:PutObject", "docs/a", {}, "allow"),
        (IF_EXISTS, "s3:PutObject", "docs/a", {"s3:x-amz-storage-class": ("COLD",)}, "nothing"),
        (DEFAULTED, "s3:GetObject", "docs/nobody/*", {}, "allow"),
        (DEFAULTED, "s3:GetObject", "docs/nobody/a", {}, "nothing"),
        (DEFAULTED, "s3:GetObject", "docs/bob/*", {"aws:username": ("bob",)}, "allow"),
        (OLD, "s3:GetObject", "docs/bob/a", {"aws:username": ("bob",)}, "nothing"),
        (OLD, "s3:GetObject", "docs/${aws:username}/a", {"aws:username": ("bob",)}, "allow"),
    ],
)
def test_examples_of_aws_are_decided_as_its_guides_say(
    text: str, action: str, resource: str, request_: Request, wanted: str
) -> None:
    assert verdict(text, action, resource, request_) == wanted


@pytest.mark.parametrize("mapped", ["::ffff:192.0.2.7", "::ffff:192.0.2.0/120", "::ffff:c000:200/119"])
def test_a_network_of_ipv4_in_the_clothes_of_ipv6_is_one_of_ipv4(mapped: str) -> None:
    text = policy(allow("*", "*"), deny("*", "*", {"IpAddress": {"aws:SourceIp": mapped}}))
    for address in ("192.0.2.7", "::ffff:192.0.2.7"):
        assert verdict(text, "s3:GetObject", "b/k", {"aws:sourceip": (address,)}) == "deny"
    for address in ("192.0.4.7", "::c000:207", "2001:db8::1"):
        assert verdict(text, "s3:GetObject", "b/k", {"aws:sourceip": (address,)}) == "allow"


def test_a_star_before_the_resource_does_not_reach_into_it() -> None:
    text = policy(allow("s3:*", "arn:*:s3:::mine"))
    assert verdict(text, "s3:GetObject", "mine") == "allow"
    assert verdict(text, "s3:GetObject", "theirs/x:s3:::mine") == "nothing"
    assert verdict(policy(allow("s3:*", "arn:aws:iam::*:mine")), "s3:GetObject", "mine") == "nothing"
    assert verdict(policy(allow("s3:*", "arn:aws:s3:::a:b/*")), "s3:GetObject", "a:b/c") == "allow"


def test_all_policies_must_allow_and_the_first_that_does_not_is_told() -> None:
    everything = compile_policy(policy(allow("*", "*")))
    reader = compile_policy(policy(allow("s3:Get*", "*")))
    closed = compile_policy(policy(allow("*", "*"), deny("*", "arn:aws:s3:::closed/*")))
    ask = NOTHING.get
    assert first_refusal([everything, reader], "s3:GetObject", "b/k", ask) is None
    assert first_refusal([everything, reader], "s3:PutObject", "b/k", ask) is Decision.NOTHING
    assert first_refusal([everything, closed], "s3:GetObject", "closed/k", ask) is Decision.DENY
    assert first_refusal([], "s3:GetObject", "b/k", ask) is None


# By chance, against the reference.

S3_ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:GetObjectAcl", "s3:ListBucket")
ACTIONS = (*S3_ACTIONS, "usage:Read")  # Also one that a policy may not name; `*` and NotAction are about it.
ACTION_PATTERNS = (*S3_ACTIONS, "*", "s3:*", "s3:Get*", "S3:getobject", "s3:*Object", "s3:?etObject*")
RESOURCES = ("*", "b", "b/k", "b/kk/k", "c/k", "b/*", "bob/a", "b/?", "")
RESOURCE_PATTERNS = (
    "*",
    "arn:aws:s3:::*",
    "arn:aws:s3:::b",
    "arn:aws:s3:::b/*",
    "arn:aws:s3:::b/k?",
    "arn:aws:s3:::*/k*k",
    "arn:aws:s3:::${aws:username}/*",
    "arn:aws:s3:::b/${*}",
    "arn:aws:s3:::?${aws:username, 'ob'}*",
    "arn:*:s3:::b/k",
    "arn:aws:s3:eu:::b",
    "arn:aws:iam:::b",
)
TEXTS = ("b", "B", "bob", "b*", "*", "?", "", "${aws:username}", "b${?}", "bb", "b?b")
SAID: dict[str, tuple[str, ...]] = {
    "aws:username": ("b", "bob", "*"),
    "s3:prefix": ("", "b", "B", "bob", "b?", "bxb"),
    "s3:max-keys": ("0", "5", "10", "x"),
    "aws:currenttime": ("2026-01-01T00:00:00Z", "2026-06-01T12:00:00Z"),
    "aws:securetransport": ("true", "false"),
    "aws:sourceip": ("10.0.0.1", "192.0.2.5", "2001:db8::1"),
    "aws:tagkeys": ("b", "bob", "c"),
    "aws:principalarn": ("arn:aws:iam::t:user/bob", "arn:aws:iam::t:user/b:c", "no arn"),
}
ARNS = (
    "arn:aws:iam::t:user/*",
    "arn:aws:iam::*:user/bob",
    "arn:aws:iam::t:user/${aws:username}",
    "arn:*:iam::t:user/b:?",
)
ORDERS = ("Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals")
FAMILIES: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("StringEquals", "StringNotEquals", "StringLike", "StringNotLike"),
        ("s3:prefix", "aws:username", "aws:TagKeys"),
        TEXTS,
    ),
    (("StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase"), ("s3:prefix", "aws:TagKeys"), TEXTS),
    (tuple(f"Numeric{order}" for order in ORDERS), ("s3:max-keys",), ("0", "5", "7.5", "10")),
    (
        tuple(f"Date{order}" for order in ORDERS),
        ("aws:CurrentTime",),
        ("2026-01-01T00:00:00Z", "2026-06-01", "1780315200"),
    ),
    (("Bool",), ("aws:SecureTransport",), ("true", "false", "True")),
    (
        ("IpAddress", "NotIpAddress"),
        ("aws:SourceIp",),
        ("10.0.0.0/8", "192.0.2.5", "2001:db8::/32", "0.0.0.0/0"),
    ),
    (("ArnEquals", "ArnLike", "ArnNotEquals", "ArnNotLike"), ("aws:PrincipalArn",), ARNS),
    (("Null",), ("s3:prefix", "aws:TagKeys"), ("true", "false")),
)


def some_policy(chance: random.Random) -> dict[str, Any]:
    def few(of: tuple[str, ...]) -> Any:
        return chance.choice(of) if chance.random() < 0.5 else chance.sample(of, chance.randint(1, 3))

    def one() -> dict[str, Any]:
        found = {
            "Effect": chance.choice(("Allow", "Allow", "Deny")),
            chance.choice(("Action", "Action", "Action", "NotAction")): few(ACTION_PATTERNS),
            chance.choice(("Resource", "Resource", "Resource", "NotResource")): few(RESOURCE_PATTERNS),
        }
        conditions: dict[str, dict[str, Any]] = {}
        for _ in range(chance.choice((0, 0, 1, 1, 2))):
            names, keys, values = chance.choice(FAMILIES)
            name = chance.choice(names)
            wanted = few(values) if name != "Null" else chance.choice(values)
            if name != "Null":
                name = chance.choice(("", "", "", "ForAnyValue:", "ForAllValues:")) + name
                name += chance.choice(("", "", "IfExists"))
            conditions.setdefault(name, {})[chance.choice(keys)] = wanted
        return {**found, "Condition": conditions} if conditions else found

    statements = [one() for _ in range(chance.randint(1, 4))]
    version = chance.choice(("2012-10-17", "2012-10-17", "2012-10-17", "2008-10-17"))
    return {"Version": version, "Statement": statements if len(statements) > 1 else statements[0]}


def some_request(chance: random.Random) -> Request:
    request: Request = {key: (chance.choice(of),) for key, of in SAID.items() if chance.random() < 0.7}
    if "aws:tagkeys" in request:
        request["aws:tagkeys"] = tuple(chance.sample(SAID["aws:tagkeys"], chance.randint(1, 3)))
    return request


def test_a_plain_reference_decides_every_random_policy_in_the_same_way() -> None:
    print(f"OBJSTORE_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    seen: dict[str, int] = {"allow": 0, "deny": 0, "nothing": 0}
    for _ in range(POLICIES):
        document = some_policy(chance)
        text = json.dumps(document)
        for _ in range(8):
            action, resource = chance.choice(ACTIONS), chance.choice(RESOURCES)
            request = some_request(chance)
            wanted = decide(document, action, resource, request)
            seen[wanted] += 1
            assert verdict(text, action, resource, request) == wanted, (SEED, text, action, resource, request)
    assert min(seen.values()) > POLICIES // 4, f"the choices decide nothing: {seen}"


def test_what_is_kept_of_a_policy_decides_as_what_was_given() -> None:
    print(f"OBJSTORE_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    for _ in range(100):
        document = some_policy(chance)
        kept = check_policy(json.dumps(document, indent=3))
        assert " " not in kept.replace(", 'ob'", "")
        action, resource, request = chance.choice(ACTIONS), chance.choice(RESOURCES), some_request(chance)
        assert verdict(kept, action, resource, request) == decide(document, action, resource, request), SEED


# What is refused.

ONE = allow("s3:GetObject", "*")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "a policy is a JSON object"),
        ('{"Statement": [}', "not JSON"),
        ("{}", "Statement is missing"),
        (policy(), "Statement is empty"),
        ('{"Version": "2012-10-17", "Version": "2008-10-17", "Statement": []}', "'Version' is given twice"),
        (policy(ONE, version="2013-01-01"), "Version is one of"),
        ('{"Statement": ["x"]}', "statement 1: a statement is a JSON object"),
        ('{"Statement": [{"Effect": NaN}]}', "NaN is not JSON"),
        (policy(ONE, {**ONE, "Effect": "allow"}), "statement 2: Effect is Allow or Deny, not 'allow'"),
        (
            policy({**ONE, "Sid": "Mine", "Colour": "red"}),
            r"statement 1 \(Mine\): a statement has no element",
        ),
        (policy({**ONE, "Sid": "not mine"}), "a Sid has at most"),
        (policy({**ONE, "Sid": "A"}, {**ONE, "Sid": "A"}), "the same Sid"),
        (policy({**ONE, "Principal": "*"}), "Principal belongs in the policy of a bucket"),
        (policy({**ONE, "NotAction": "s3:*"}), "exactly one of Action and NotAction"),
        (policy({"Effect": "Allow", "Action": "*"}), "exactly one of Resource and NotResource"),
        (policy(allow([], "*")), "Action is a text or a list of texts"),
        (policy(allow(["s3:*", {}], "*")), "Action is a text or a list of texts"),
        (policy(allow("GetObject", "*")), "'GetObject' is no action"),
        (policy(allow("s3:${aws:username}", "*")), "is no action"),
        (policy(allow("s3:putobjct", "*")), "'s3:putobjct' is no action of S3: is s3:PutObject meant"),
        (
            policy(ONE, {**ONE, "Effect": "Deny", "Action": ["s3:DeleteObject", "s3:Frob"]}),
            "statement 2: 's3:F",
        ),
        (
            policy({"Effect": "Allow", "NotAction": "s3:DeleteObjct", "Resource": "*"}),
            "is s3:DeleteObject meant",
        ),
        (policy(allow("s3:*", "bucket/*")), "'bucket/\\*' is no resource"),
        (policy(allow("s3:*", "arn:aws:s3:::")), "is no resource"),
        (policy(allow("s3:*", "arn:aws:s3:*")), "is no resource"),
        (policy(allow("s3:*", "arn:aws:s3:::b/${aws:username")), "is not followed by"),
        (policy(allow("s3:*", "arn:aws:s3:::b/${a${aws:username}")), "is not followed by"),
        (policy(allow("s3:*", "arn:aws:s3:::b/${nobody}")), "is no policy variable"),
        (policy(allow("s3:*", "arn:aws:s3:::b/${aws:user}")), "'aws:user' is not known here"),
        (policy(allow("s3:*", "*", {"StringEquals": "x"})), "a Condition is an object of operators"),
        (policy(allow("s3:*", "*", {"StringEquals": {}})), "a Condition is an object of operators"),
        (policy(allow("s3:*", "*", {"StringIs": {"aws:username": "b"}})), "no condition operator 'StringIs'"),
        (policy(allow("s3:*", "*", {"NullIfExists": {"s3:prefix": "true"}})), "no condition operator"),
        (policy(allow("s3:*", "*", {"Null": {"s3:prefix": "maybe"}})), "takes true or false"),
        (policy(allow("s3:*", "*", {"StringEquals": {"aws:user": "b"}})), "'aws:user' is not known here"),
        (policy(allow("s3:*", "*", {"StringEquals": {"aws:username": []}})), "a text or a list"),
        (policy(allow("s3:*", "*", {"StringEquals": {"aws:username": {}}})), "a text or a list"),
        (policy(allow("s3:*", "*", {"Bool": {"aws:SecureTransport": "yes"}})), "no true or false"),
        (policy(allow("s3:*", "*", {"IpAddress": {"aws:SourceIp": "10.0.0.0/33"}})), "no address"),
        (policy(allow("s3:*", "*", {"NumericEquals": {"s3:max-keys": "ten"}})), "'ten' is no number"),
        (policy(allow("s3:*", "*", {"DateLessThan": {"aws:CurrentTime": "tomorrow"}})), "is no date"),
        # A year to whoever writes it, and half an hour of 1970 to whoever reads it.
        (policy(allow("s3:*", "*", {"DateGreaterThan": {"aws:CurrentTime": "2027"}})), "'2027' is no date"),
        (policy(allow("s3:*", "*", {"ArnLike": {"aws:PrincipalArn": "bob"}})), "'bob' is no ARN"),
        ("[" * 6_000, "nested too deeply|not JSON"),
        ('{"Id": "\\ud800", "Statement": ' + json.dumps(ONE) + "}", "text that UTF-8 can carry"),
        (policy(*[ONE] * 120), "at most 6144 bytes"),
        ("{" + " " * 30_000 + "}", "at most 6144 bytes"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_and_the_error_says_where(text: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        check_policy(text)


def test_whatever_is_given_is_a_policy_or_is_refused_in_words() -> None:
    print(f"OBJSTORE_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    odd: list[Any] = [
        None,
        True,
        5,
        1.5,
        "",
        "*",
        "s3:*",
        [],
        {},
        [[]],
        ["*", 5],
        {"a": "b"},
        "\ud800",
        "${",
        "x" * 99,
    ]
    refused = 0

    def spoiled(found: Any, depth: int) -> Any:
        """With one thing in it replaced, left out or renamed."""
        if depth == 0 or not isinstance(found, (dict, list)) or not found:
            return chance.choice(odd)
        if isinstance(found, list):
            at = chance.randrange(len(found))
            return [*found[:at], spoiled(found[at], depth - 1), *found[at + 1 :]]
        name = chance.choice(list(found))
        rest = {key: value for key, value in found.items() if key != name}
        way = chance.randrange(3)
        if way == 0:
            return rest
        if way == 1:
            return {**rest, name + chance.choice("xX:"): found[name]}
        return {**rest, name: spoiled(found[name], depth - 1)}

    for _ in range(40 * POLICIES // 4):
        text = json.dumps(spoiled(some_policy(chance), chance.randint(1, 5)))
        if chance.random() < 0.1:
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice('{}[]",:\\\0') + text[at + 1 :]
        try:
            kept = check_policy(text)
        except BadArgument:
            refused += 1
        else:
            compile_policy(kept).decide("s3:GetObject", "b/k", some_request(chance).get)
    assert POLICIES < refused < 10 * POLICIES


def test_conditions_may_be_written_with_json_numbers_and_booleans() -> None:
    kept = check_policy(
        policy(
            allow("s3:*", "*", {"Bool": {"aws:SecureTransport": True}, "NumericEquals": {"s3:max-keys": 5}})
        )
    )
    request: Request = {"aws:securetransport": ("true",), "s3:max-keys": ("5",)}
    assert verdict(kept, "s3:GetObject", "b/k", request) == "allow"
    assert verdict(kept, "s3:GetObject", "b/k", {**request, "s3:max-keys": ("6",)}) == "nothing"


def test_every_text_that_repeats_is_matched_in_bounded_steps() -> None:
    """Where trying everything takes 2 to the power of hundreds of steps."""
    many = "a*" * 1_000
    assert not Text(many + "b", wildcards=True, variables=False).matches("a" * 1_024, NOTHING.get)
    assert Text(many, wildcards=True, variables=False).matches("a" * 1_024, NOTHING.get)
    dotted = "*a?" * 700
    assert not Text(dotted + "b", wildcards=True, variables=False).matches("a" * 1_024, NOTHING.get)
    assert Text("*?" * 400 + "*", wildcards=True, variables=False).matches("a" * 1_024, NOTHING.get)


def test_the_longest_policy_is_kept_whole() -> None:
    resource = "arn:aws:s3:::b/" + "k" * (POLICY_SIZE_MAX - len(policy(allow("*", "*"))) - 6)
    short = json.dumps(json.loads(policy(allow("*", resource))), separators=(",", ":"))
    room = POLICY_SIZE_MAX - len(short)
    assert len(check_policy(policy(allow("*", resource + "k" * room)))) == POLICY_SIZE_MAX
    with pytest.raises(BadArgument):
        check_policy(policy(allow("*", resource + "k" * (room + 1))))


def test_condition_keys_are_known_in_lower_case() -> None:
    assert all(key == key.lower() for key in KEYS)
