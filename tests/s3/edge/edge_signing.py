"""Signers for the edge's tests: botocore's own, so that our verifier is held to somebody else's code."""

import datetime
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from multidict import CIMultiDict, CIMultiDictProxy

from objstore.objects.values import Principal

KEY_ID = "AKIAEDGETEST0000001"
SECRET = "edge/secret+of/the-test-suite/000000001"
OTHER_ID = "AKIAEDGETEST0000002"
OTHER_SECRET = "another/secret+of/the-suite/0000000002"
DISABLED_ID = "AKIAEDGETEST0000003"
NOW = 1_795_300_000.0  # 2026-11-21T21:46:40Z
REGION = "us-east-1"


@dataclass(frozen=True)
class FakeCredential:
    secret: str
    principal: Principal
    disabled: bool = False


def principal(key_id: str) -> Principal:
    return Principal(tenant="t1", user="u1", access_key_id=key_id)


@dataclass
class FakeDirectory:
    keys: dict[str, FakeCredential] = field(
        default_factory=lambda: {
            KEY_ID: FakeCredential(SECRET, principal(KEY_ID)),
            OTHER_ID: FakeCredential(OTHER_SECRET, principal(OTHER_ID)),
            DISABLED_ID: FakeCredential(SECRET, principal(DISABLED_ID), disabled=True),
        }
    )

    async def credential(self, access_key_id: str) -> FakeCredential | None:
        return self.keys.get(access_key_id)


@contextmanager
def botocore_clock(seconds: float) -> Iterator[None]:
    """botocore asks `get_current_datetime` for the time: within this block it stands still."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    real = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *_, **__: moment
    try:
        yield
    finally:
        botocore.auth.get_current_datetime = real


def _at(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")


@dataclass
class Signed:
    """A request as it goes onto the wire."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def proxy(self) -> CIMultiDictProxy[str]:
        return CIMultiDictProxy(CIMultiDict(self.headers))

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    def with_header(self, name: str, value: str | None) -> "Signed":
        """A copy with a header replaced, added or (None) removed."""
        kept = [(k, v) for k, v in self.headers if k.lower() != name.lower()]
        if value is not None:
            kept.append((name, value))
        return Signed(self.method, self.target, kept, self.body)

    def wire(self) -> bytes:
        head = f"{self.method} {self.target} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return head.encode("utf-8", "surrogateescape") + b"\r\n" + self.body


def sign(
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    host: str = "s3.test:9000",
    key_id: str = KEY_ID,
    secret: str = SECRET,
    payload: str | None = None,
    region: str = REGION,
    now: float | None = None,
    length: bool = True,
) -> Signed:
    """Sign in the header, with botocore. `path` is raw; `payload` overrides x-amz-content-sha256."""
    target = path + ("?" + query if query else "")
    request = AWSRequest(method=method, url=f"http://{host}{target}", data=body)
    for name, value in dict(headers).items():
        request.headers[name] = value
    signer = botocore.auth.S3SigV4Auth(Credentials(key_id, secret), "s3", region)
    if payload is not None:
        request.headers["X-Amz-Content-SHA256"] = payload
        signer.payload = lambda _: payload  # type: ignore[method-assign]
    with botocore_clock(NOW if now is None else now):
        signer.add_auth(request)
    assert request.headers["X-Amz-Date"] == _at(NOW if now is None else now)
    sent = [("Host", host), *((k, v) for k, v in request.headers.items())]
    if length and (body or method in ("PUT", "POST")) and "content-length" not in dict(headers):
        sent.append(("Content-Length", str(len(body))))
    return Signed(method, target, sent, body)


def presign(
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    host: str = "s3.test:9000",
    key_id: str = KEY_ID,
    secret: str = SECRET,
    expires_s: int = 900,
    region: str = REGION,
    now: float | None = None,
) -> Signed:
    """Sign in the query, with botocore."""
    target = path + ("?" + query if query else "")
    request = AWSRequest(method=method, url=f"http://{host}{target}")
    for name, value in (headers or {}).items():
        request.headers[name] = value
    signer = botocore.auth.S3SigV4QueryAuth(Credentials(key_id, secret), "s3", region, expires=expires_s)
    with botocore_clock(NOW if now is None else now):
        signer.add_auth(request)
    parts = urllib.parse.urlsplit(request.url)
    sent = [("Host", host), *((k, v) for k, v in request.headers.items())]
    if body or method in ("PUT", "POST"):
        sent.append(("Content-Length", str(len(body))))
    return Signed(method, parts.path + "?" + parts.query, sent, body)
