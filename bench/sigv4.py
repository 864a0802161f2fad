"""Real AWS Signature Version 4: whole request heads as bytes, made before the clock starts.

Written again rather than taken from the server: a generator that shares the server's code would share its
mistakes. `tests/bench` holds it against botocore.
"""

import hashlib
import hmac
import time
from dataclasses import dataclass
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_SIGNED = "host;x-amz-content-sha256;x-amz-date"


@dataclass(frozen=True, slots=True)
class Credentials:
    access_key: str
    secret_key: str
    region: str = "us-east-1"


def canonical_query(parameters: dict[str, str]) -> str:
    """The query as it is both signed and sent: sorted, every byte outside the unreserved set escaped."""
    return "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(parameters.items())
    )


class Signer:
    """Makes request heads for one endpoint. The date is fixed when it is made: good for 15 minutes."""

    def __init__(self, credentials: Credentials, host: str, at: float | None = None) -> None:
        stamp = time.gmtime(time.time() if at is None else at)
        self._host = host
        self._time = time.strftime("%Y%m%dT%H%M%SZ", stamp)
        day = self._time[:8]
        self._scope = f"{day}/{credentials.region}/s3/aws4_request"
        key = b"AWS4" + credentials.secret_key.encode()
        for word in (day, credentials.region, "s3", "aws4_request"):
            key = hmac.digest(key, word.encode(), "sha256")
        self._key = key
        self._authorization = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{self._scope},"
            f"SignedHeaders={_SIGNED},Signature="
        )

    def head(
        self, method: str, path: str, *, query: str = "", payload_sha256: str = EMPTY_SHA256, size: int = 0
    ) -> bytes:
        """A whole request head, blank line included.

        `path` is already percent-encoded; `query` comes from `canonical_query`; `size` is the body's length.
        """
        text = (
            f"{method}\n{path}\n{query}\nhost:{self._host}\nx-amz-content-sha256:{payload_sha256}\n"
            f"x-amz-date:{self._time}\n\n{_SIGNED}\n{payload_sha256}"
        )
        digest = hashlib.sha256(text.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{self._time}\n{self._scope}\n{digest}"
        signature = hmac.digest(self._key, to_sign.encode(), "sha256").hex()
        target = f"{path}?{query}" if query else path
        length = f"Content-Length: {size}\r\n" if size or method in ("PUT", "POST") else ""
        return (
            f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\nx-amz-date: {self._time}\r\n"
            f"x-amz-content-sha256: {payload_sha256}\r\nAuthorization: {self._authorization}{signature}\r\n"
            f"{length}\r\n"
        ).encode()
