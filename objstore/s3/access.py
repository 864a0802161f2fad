"""Whether a request may do what it asks for, held against the bounds of who asks.

`app.py` makes an Access for every request of a key or user that has bounds, right after the signature; the
others pay nothing. A route names its actions (actions.py); what they are done to, and which more a request
needs (a copy's source, a version, an ACL), is decided here, so that nobody reaches a handler past it.
DeleteObjects alone asks again for every key that its document names.

Source: AWS Service Authorization Reference, "Actions, resources, and condition keys for Amazon S3"; Amazon S3
API Reference, the permissions of each operation.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
from multidict import CIMultiDictProxy

from objstore.clock import utc_text
from objstore.iam.policy import Decision, first_refusal
from objstore.iam.principal import Bounds, Principal
from objstore.s3.errors import S3Fault, access_denied, invalid_request
from objstore.s3.headers import copy_source
from objstore.s3.sigv4 import ALGORITHM, Verified, amz_seconds
from objstore.s3.target import Target

if TYPE_CHECKING:
    from objstore.s3.call import Route

COPY_SOURCE: Final = "x-amz-copy-source"
ARN: Final = "arn:aws:s3:::"

OF_VERSIONS: Final = {
    "s3:GetObject": "s3:GetObjectVersion",
    "s3:GetObjectAcl": "s3:GetObjectVersionAcl",
    "s3:GetObjectAttributes": "s3:GetObjectVersionAttributes",
    "s3:GetObjectTagging": "s3:GetObjectVersionTagging",
    "s3:GetObjectTorrent": "s3:GetObjectVersionTorrent",
    "s3:PutObjectAcl": "s3:PutObjectVersionAcl",
    "s3:PutObjectTagging": "s3:PutObjectVersionTagging",
    "s3:DeleteObject": "s3:DeleteObjectVersion",
    "s3:DeleteObjectTagging": "s3:DeleteObjectVersionTagging",
}
WITH_ACL: Final = {"s3:PutObject": "s3:PutObjectAcl", "s3:CreateBucket": "s3:PutBucketAcl"}


class Access(msgspec.Struct, frozen=True, gc=False):
    """One request, as policies see it."""

    _bounds: Bounds
    _verified: Verified
    _target: Target
    _headers: CIMultiDictProxy[str]  # As they came: of one that stands twice, nobody can tell which is meant.
    _peer: str  # The address it comes from; empty: unknown, and then it is from nowhere that a policy names.
    _secure: bool
    _now: float  # Seconds since 1970.
    _region: str

    @property
    def _who(self) -> Principal:
        return self._verified.who

    def check_use(self) -> None:
        """Whether its key may be used at all, now and from there. Raises: S3Fault."""
        bounds = self._bounds
        if bounds.expires_us and self._now * 1e6 >= bounds.expires_us:
            raise S3Fault(
                "InvalidAccessKeyId",
                403,
                "The AWS Access Key Id you provided has expired.",
                {"AWSAccessKeyId": self._who.access_key_id},
            )
        if bounds.networks and not any(network.holds(self._peer) for network in bounds.networks):
            raise access_denied(f"This access key may not be used from {self._peer or 'an unknown address'}")

    def check(self, route: "Route") -> None:
        """Whether the request may do what its route does. Raises: S3Fault."""
        if not self._bounds.policies:
            return
        if not route.actions:
            raise access_denied()
        if route.each_key:
            return  # What it is done to stands in its body: its handler asks `may_delete` for each.
        target = self._target
        resource = f"{target.bucket}/{target.key}" if target.key else target.bucket or "*"
        versioned = "versionId" in target.query
        for action in route.actions:
            self._require(OF_VERSIONS.get(action, action) if versioned else action, resource)
            if action in WITH_ACL and "x-amz-acl" in self._verified.headers:
                self._require(WITH_ACL[action], resource)
        if route.header == COPY_SOURCE:
            bucket, key, version = copy_source(self._headers)
            self._require("s3:GetObject" if version is None else "s3:GetObjectVersion", f"{bucket}/{key}")

    def may_delete(self, key: str, version: str | None) -> bool:
        """Whether it may delete this key of its bucket."""
        action = "s3:DeleteObject" if version is None else "s3:DeleteObjectVersion"
        return self._refusal(action, f"{self._target.bucket}/{key}") is None

    def may_miss(self, route: "Route") -> bool:
        """Whether it may be told that a key is not there: only who may list it may know."""
        bucket, key = self._target.bucket, self._target.key
        if route.header == COPY_SOURCE:
            bucket, key, _ = copy_source(self._headers)

        def values(name: str) -> tuple[str, ...] | None:
            return (key,) if name == "s3:prefix" else self.values(name)

        return first_refusal(self._bounds.policies, "s3:ListBucket", bucket, values) is None

    def values(self, name: str) -> tuple[str, ...] | None:
        """What the request says of a condition key, in lower case; None: nothing."""
        tell = TELLERS.get(name)
        if tell is None:
            return None
        said = tell(self)
        return None if said is None else (said,)

    def _refusal(self, action: str, resource: str) -> Decision | None:
        return first_refusal(self._bounds.policies, action, resource, self.values)

    def _require(self, action: str, resource: str) -> None:
        refusal = self._refusal(action, resource)
        if refusal is None:
            return
        why = (
            "with an explicit deny in an identity-based policy"
            if refusal is Decision.DENY
            else f"because no identity-based policy allows the {action} action"
        )
        raise access_denied(
            f"User: {_arn_of(self._who)} is not authorized to perform: {action} on resource: "
            f'"{ARN}{resource}" {why}'
        )

    def _header(self, name: str) -> str | None:
        said = self._headers.getall(name, [])
        if len(said) > 1:
            raise invalid_request(f"The header {name} must not be given twice")
        return said[0].strip() if said else None


def _arn_of(who: Principal) -> str:
    return f"arn:aws:iam::{who.tenant}:user/{who.user}"


def _signature_age(access: Access) -> str | None:
    """Milliseconds."""
    seconds = amz_seconds(access._verified.amz_date)
    return None if seconds is None else str(max(0, int((access._now - seconds) * 1000)))


def _copied(access: Access) -> str | None:
    """bucket/key, decoded: however it was escaped, it is the same object."""
    if COPY_SOURCE not in access._headers:
        return None
    bucket, key, _ = copy_source(access._headers)
    return f"{bucket}/{key}"


def _of_query(name: str) -> Callable[[Access], str | None]:
    return lambda access: access._target.query.get(name)


def _of_header(name: str) -> Callable[[Access], str | None]:
    return lambda access: access._header(name)


TELLERS: Final[dict[str, Callable[[Access], str | None]]] = {
    "aws:currenttime": lambda access: utc_text(access._now),
    "aws:epochtime": lambda access: str(int(access._now)),
    "aws:principalaccount": lambda access: access._who.tenant,
    "aws:principalarn": lambda access: _arn_of(access._who),
    "aws:principaltype": lambda access: "Account" if access._who.root else "User",
    "aws:referer": _of_header("referer"),
    "aws:requestedregion": lambda access: access._region,
    "aws:securetransport": lambda access: "true" if access._secure else "false",
    "aws:sourceip": lambda access: access._peer or None,
    "aws:useragent": _of_header("user-agent"),
    "aws:userid": lambda access: access._who.user,
    "aws:username": lambda access: access._who.user,
    "s3:authtype": lambda access: "REST-QUERY-STRING" if access._verified.presigned else "REST-HEADER",
    "s3:delimiter": _of_query("delimiter"),
    "s3:if-match": _of_header("if-match"),
    "s3:if-none-match": _of_header("if-none-match"),
    "s3:max-keys": _of_query("max-keys"),
    "s3:prefix": _of_query("prefix"),
    "s3:resourceaccount": lambda access: access._who.tenant,  # No bucket of others is within reach.
    "s3:signatureage": _signature_age,
    "s3:signatureversion": lambda _: ALGORITHM,
    "s3:versionid": _of_query("versionId"),
    "s3:x-amz-acl": _of_header("x-amz-acl"),
    "s3:x-amz-content-sha256": _of_header("x-amz-content-sha256"),
    "s3:x-amz-copy-source": _copied,
    "s3:x-amz-metadata-directive": _of_header("x-amz-metadata-directive"),
    "s3:x-amz-server-side-encryption": _of_header("x-amz-server-side-encryption"),
    "s3:x-amz-storage-class": _of_header("x-amz-storage-class"),
    "s3:x-amz-website-redirect-location": _of_header("x-amz-website-redirect-location"),
}
