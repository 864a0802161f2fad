"""A replica over HTTP: what s3/replica.py serves, as its source asks for it (upkeep/sending.py `Target`).

Bodies are verified by the target against Content-MD5 and the object's own checksum, and are not hashed here a
second time: the payload is named UNSIGNED-PAYLOAD, everything else is signed.

Concurrency: one event loop; calls side by side, at most so many connections. Every wait has a limit: a
connection, a silence, and a slowest pace for bodies.
"""

import asyncio
import base64
import hmac
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from objstore.errors import BadArgument
from objstore.meta.schema import Checksum, ReplicationRecord
from objstore.objects.multipart import Claimed
from objstore.objects.replicas import Held, Source
from objstore.objects.values import About, Buffer
from objstore.s3.replica import ABOUT, FLAG, Attach, ClaimedPart, Page, Upload, pack_about
from objstore.s3.sigv4 import ALGORITHM, UNSIGNED, amz_text, signing_key
from objstore.s3.target import canonical_query
from objstore.upkeep.sending import KeyRefused, SessionOver, TargetAway, TargetRefuses

CONNECT_S: Final = 10.0
SILENCE_S: Final = 60.0  # Between two pieces of an answer, and for an answer to begin.
SLOWEST: Final = 64 * 1024  # Bytes a second: a body that goes out more slowly is given up.
ANSWER_SIZE_MAX: Final = 4 * 1024 * 1024  # Bytes: a page of 1,000 keys of 1 KB.

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>").search
_MESSAGE = re.compile(rb"<Message>([^<]{0,500})</Message>").search
_LATER = frozenset((429, 500, 502, 503, 504))
_KEYS_OWN = frozenset(  # Codes that speak of one key, and not of the whole target.
    (
        "BadDigest",
        "EntityTooLarge",
        "InvalidArgument",
        "InvalidPart",
        "InvalidRequest",
        "InvalidURI",
        "KeyTooLongError",
        "MetadataTooLarge",
        "NoSuchUpload",
        "QuotaExceeded",
    )
)
_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


def check_endpoint(endpoint: str, *, insecure: bool) -> str:
    """An endpoint as it is kept. Raises: BadArgument: no endpoint, or objects would travel in the clear."""
    parts = urlsplit(endpoint)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or port == -1
        or parts.path not in ("", "/")
        or parts.query
        or parts.username is not None
    ):
        raise BadArgument("an endpoint is http(s)://host:port", name="endpoint", value=endpoint)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not insecure:
        raise BadArgument(
            "over plain http all objects can be read on the way: use https, or say that it may be (insecure)",
            name="endpoint",
            value=endpoint,
        )
    return f"{parts.scheme}://{parts.netloc}"


class ReplicaClient:
    """One replica, for one bucket. `open` before anything but `attach` is asked; `close` at the end."""

    def __init__(
        self,
        config: ReplicationRecord,
        secret: str,
        *,
        tls: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            tls: whom to trust; None: as the machine does.
        """
        self._endpoint = config.endpoint
        self._host = urlsplit(config.endpoint).netloc
        self._bucket = config.bucket
        self._region = config.region
        self._access_key = config.access_key
        self._secret = secret
        self._generation = config.generation
        self._session_number = 0
        self._tls = tls
        self._now = now
        self._http: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"ReplicaClient({self._endpoint}/{self._bucket})"  # Never the secret.

    async def attach(self, source: Source, *, replace: bool) -> int:
        """Make the bucket a replica of the source: its generation. Raises: TargetAway, TargetRefuses."""
        wanted = Attach(source.cluster, source.bucket, source.id, replace)
        content = await self._ask("PUT", b"", [(FLAG, "")], document=wanted)
        self._generation = int(_decoded(content)["generation"])
        return self._generation

    async def open(self) -> None:
        content = await self._ask("POST", b"", [(FLAG, str(self._generation))])
        self._session_number = int(_decoded(content)["session"])

    async def listed(self, after: bytes) -> tuple[list[Held], bool]:
        query = [(FLAG, str(self._generation))]
        if after:
            query.append(("after", after.decode()))
        content = await self._ask("GET", b"", query)
        try:
            page = msgspec.msgpack.decode(content, type=Page)
        except msgspec.MsgspecError as failure:
            raise TargetRefuses(f"not an answer of a replica: {failure}") from None
        return page.held, page.more

    async def put(
        self,
        key: bytes,
        order: int,
        about: About,
        body: AsyncIterator[Buffer],
        *,
        size: int,
        md5: bytes,
        checksum: Checksum | None,
    ) -> str:
        headers = {ABOUT: pack_about(about)}
        return await self._send(key, [(FLAG, self._mirror(order))], headers, body, size, md5, checksum)

    async def put_part(
        self,
        key: bytes,
        upload: str,
        number: int,
        body: AsyncIterator[Buffer],
        *,
        size: int,
        md5: bytes,
        checksum: Checksum | None,
    ) -> str:
        query = [(FLAG, self._mirror()), ("upload", upload), ("number", str(number))]
        return await self._send(key, query, {}, body, size, md5, checksum)

    async def begin(self, key: bytes, about: About, checksum: Checksum | None) -> str:
        wanted = Upload() if checksum is None else Upload(checksum.algorithm, checksum.type)
        content = await self._ask(
            "POST", key, [(FLAG, self._mirror())], {ABOUT: pack_about(about)}, document=wanted
        )
        return str(_decoded(content)["upload"])

    async def complete(self, key: bytes, order: int, upload: str, parts: Sequence[Claimed]) -> str:
        wanted = [
            ClaimedPart(part.number, part.etag, *(part.checksum if part.checksum is not None else ("", b"")))
            for part in parts
        ]
        query = [(FLAG, self._mirror(order)), ("upload", upload)]
        return _etag(await self._request("POST", key, query, {}, msgspec.json.encode(wanted), None, 0))

    async def delete(self, key: bytes) -> None:
        await self._ask("DELETE", key, [(FLAG, self._mirror())])

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    # How it is asked.

    def _mirror(self, order: int | None = None) -> str:
        words = f"{self._generation}.{self._session_number}"
        return words if order is None else f"{words}.{order}"

    async def _send(
        self,
        key: bytes,
        query: list[tuple[str, str]],
        headers: dict[str, str],
        body: AsyncIterator[Buffer],
        size: int,
        md5: bytes,
        checksum: Checksum | None,
    ) -> str:
        headers["content-md5"] = base64.b64encode(md5).decode()
        if checksum is not None and checksum.type == "FULL_OBJECT":
            name = f"x-amz-checksum-{checksum.algorithm.lower()}"
            headers[name] = base64.b64encode(checksum.digest).decode()
        return _etag(await self._request("PUT", key, query, headers, b"", body if size else None, size))

    async def _ask(
        self,
        method: str,
        key: bytes,
        query: list[tuple[str, str]],
        headers: dict[str, str] | None = None,
        document: object = None,
    ) -> bytes:
        content = b"" if document is None else msgspec.json.encode(document)
        return (await self._request(method, key, query, headers or {}, content, None, 0))[0]

    async def _request(
        self,
        method: str,
        key: bytes,
        query: list[tuple[str, str]],
        headers: dict[str, str],
        content: bytes,
        body: AsyncIterator[Buffer] | None,
        size: int,
    ) -> tuple[bytes, Mapping[str, str]]:
        """Content and headers of a good answer.

        Raises: TargetAway, TargetRefuses, SessionOver, KeyRefused.
        """
        path, canonical_path = _paths(self._bucket, key)
        words = canonical_query(query)
        signed = self._signed(method, canonical_path, words, headers)
        signed["Content-Length"] = str(size if body is not None else len(content))
        url = URL(f"{self._endpoint}{path}?{words}", encoded=True)
        try:
            async with (
                asyncio.timeout(2 * SILENCE_S + size / SLOWEST),
                self._client().request(
                    method, url, headers=signed, data=body if body is not None else content,
                    allow_redirects=False, ssl=self._tls if self._tls is not None else True,
                ) as response,
            ):  # fmt: skip
                answer = bytearray()
                while piece := await response.content.readany():
                    answer += piece
                    if len(answer) > ANSWER_SIZE_MAX:
                        raise TargetRefuses(f"{self._endpoint}: an answer of over {ANSWER_SIZE_MAX} bytes")
                status, found = response.status, response.headers
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            raise TargetAway(f"{self._endpoint}: {failure or type(failure).__name__}") from failure
        if 200 <= status < 300:
            return bytes(answer), found
        raise _refusal(status, bytes(answer), self._endpoint, of_a_key=bool(key))

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                auto_decompress=False,
                skip_auto_headers=("Content-Type", "Accept-Encoding", "User-Agent", "Accept"),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=SILENCE_S, sock_connect=CONNECT_S, sock_read=SILENCE_S
                ),
            )
        return self._http

    def _signed(self, method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, str]:
        """The headers to send: the given ones and the signature over them."""
        date = amz_text(self._now())
        found = {
            "host": self._host,
            "x-amz-content-sha256": UNSIGNED,
            "x-amz-date": date,
            **headers,
        }
        names = sorted(found)
        canonical = "\n".join(
            [method, path, query, *(f"{name}:{found[name]}" for name in names), "", ";".join(names), UNSIGNED]
        )
        scope = f"{date[:8]}/{self._region}/s3/aws4_request"
        to_sign = f"{ALGORITHM}\n{date}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        key = signing_key(self._secret, date[:8], self._region)
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        found["Authorization"] = (
            f"{ALGORITHM} Credential={self._access_key}/{scope},SignedHeaders={';'.join(names)},"
            f"Signature={signature}"
        )
        return found


def _paths(bucket: str, key: bytes) -> tuple[str, str]:
    """The path of a request as it is sent, and as it is signed."""
    canonical = f"/{bucket}/{quote(key, safe='-_.~/')}" if key else f"/{bucket}"
    # A client's library may take `.` and `..` for steps in a path: sent encoded, they mean the same.
    words = [word.replace(".", "%2E") if word in (".", "..") else word for word in canonical.split("/")]
    return "/".join(words), canonical


def _decoded(content: bytes) -> dict[str, Any]:
    """Raises: TargetRefuses."""
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError as failure:
        raise TargetRefuses(f"not an answer of a replica: {failure}") from None


def _etag(answer: tuple[bytes, Mapping[str, str]]) -> str:
    return answer[1].get("ETag", "").strip('"')


def _refusal(status: int, answer: bytes, endpoint: str, *, of_a_key: bool) -> Exception:
    """What an answer that is an error means to a source."""
    found, said = _CODE(answer), _MESSAGE(answer)
    code = found[1].decode() if found is not None else ""
    words = f"{endpoint}: {status} {code or 'without a code'}"
    if said is not None:
        words += f": {said[1].decode(errors='replace')}"
    if code == "ReplicaSessionOver":
        return SessionOver(words)
    if status in _LATER or code in ("OperationAborted", "RequestTimeout", "IncompleteBody"):
        return TargetAway(words)
    if of_a_key and code in _KEYS_OWN:
        return KeyRefused(words)
    return TargetRefuses(words)
