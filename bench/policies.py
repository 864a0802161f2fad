"""What a policy costs a request: CPU of the whole look at the edge, best of some rounds, in microseconds.

python bench/policies.py
"""

import json
import time
from typing import Any, Final

from multidict import CIMultiDict, CIMultiDictProxy

from objstore.iam.conditions import parse_network
from objstore.iam.policy import compile_policy
from objstore.iam.principal import Bounds, Principal
from objstore.iam.roles import role_policy
from objstore.s3.access import Access
from objstore.s3.routes import choose
from objstore.s3.sigv4 import Verified
from objstore.s3.target import parse_target

ROUNDS: Final = 9
DECISIONS: Final = 5_000  # Of a round.
TARGET: Final = parse_target("/photos/home/bob/a.jpg", "store")
OBJECTS: Final = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]


def allow(action: Any, *resources: str, condition: Any = None) -> dict[str, Any]:
    found = {"Effect": "Allow", "Action": action, "Resource": [f"arn:aws:s3:::{one}" for one in resources]}
    return {**found, "Condition": condition} if condition else found


def deny(condition: Any) -> dict[str, Any]:
    return {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition}


def bounds(*statements: dict[str, Any]) -> Bounds:
    text = json.dumps({"Version": "2012-10-17", "Statement": statements})
    return Bounds(policies=(compile_policy(text),))


LISTING: Final = {"StringLike": {"s3:prefix": ["", "home/${aws:username}/*"]}}
CASES: Final[dict[str, Bounds]] = {
    "one bucket": bounds(allow("s3:ListBucket", "photos"), allow(OBJECTS, "photos/*")),
    "a home directory": bounds(
        allow("s3:ListBucket", "photos", condition=LISTING),
        allow(OBJECTS, "photos/home/${aws:username}/*"),
    ),
    "two Deny with conditions": bounds(
        allow("s3:*", "photos", "photos/*"),
        deny({"NotIpAddress": {"aws:SourceIp": ["192.0.2.0/24", "127.0.0.0/8"]}}),
        deny({"Bool": {"aws:SecureTransport": "false"}}),
    ),
    "a reader": Bounds(policies=(role_policy("reader"),)),
    "networks, expiry": Bounds(
        networks=tuple(one for one in [parse_network("127.0.0.0/8")] if one), expires_us=1 << 62
    ),
}


def cost_us(bound: Bounds) -> float:
    """Of one GET."""
    who = Principal(tenant="t", user="bob", access_key_id="k", bounds=bound)
    verified = Verified(who, "UNSIGNED-PAYLOAD", False, b"", "20261122T000000Z", "", "", {})
    headers = CIMultiDictProxy(CIMultiDict({"Host": "store", "x-amz-date": "20261122T000000Z"}))
    route = choose("GET", TARGET.bucket, TARGET.key, {}, {})
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time_ns()
        for _ in range(DECISIONS):
            access = Access(bound, verified, TARGET, headers, "127.0.0.1", True, 1.8e9, "us-east-1")
            access.check_use()
            access.check(route)
        best = min(best, time.process_time_ns() - began)
    return best / DECISIONS / 1_000


def main() -> None:
    for name, bound in CASES.items():
        print(f"{name:26} {cost_us(bound):6.2f} us")


if __name__ == "__main__":
    main()
