"""A plain S3 client for tests: signs what it is told to send, changes nothing, and reads answers as XML.

Not boto3: a test must be able to send what no SDK would, and to see every header and byte of the answer.
"""

import asyncio
import datetime
import hashlib
import hmac
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

Query = Mapping[str, str] | Iterable[tuple[str, str]]
_NAMESPACE = re.compile(r' xmlns="[^"]*"')


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def xml(self) -> ElementTree.Element:
        """The document, its namespace removed. Fails the test if it is not valid XML."""
        return ElementTree.fromstring(_NAMESPACE.sub("", self.body.decode()))

    def text(self, path: str) -> str | None:
        """The text at a path below the root: None if there is no such element, "" if it is empty."""
        found = self.xml.find(path)
        return None if found is None else found.text or ""

    def texts(self, path: str) -> list[str]:
        return [element.text or "" for element in self.xml.findall(path)]

    @property
    def code(self) -> str | None:
        return self.text("Code") if self.body.lstrip().startswith(b"<") else None

    @property
    def fields(self) -> dict[str, str]:
        """The elements of an error beside those that every error has."""
        every = ("Code", "Message", "Resource", "RequestId", "HostId")
        return {child.tag: child.text or "" for child in self.xml if child.tag not in every}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Client:
    """One user's view of a server on loopback."""

    def __init__(self, session: aiohttp.ClientSession, port: int, access_key: str, secret_key: str) -> None:
        self.session = session
        self.host = f"127.0.0.1:{port}"
        self.access_key = access_key
        self.secret_key = secret_key

    def sign(
        self,
        method: str,
        bucket: str = "",
        key: str = "",
        *,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[str, CIMultiDict[str]]:
        """Request target and headers. `query` and `key` are decoded; they are encoded here, once."""
        path = "/" + quote(bucket, safe="") + ("/" + quote(key, safe="/-_.~") if key else "")
        pairs = sorted(
            (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
            for name, value in (query.items() if isinstance(query, Mapping) else query)
        )
        text = "&".join(f"{name}={value}" for name, value in pairs)
        sent = CIMultiDict(headers or {})
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        sent["Host"] = self.host
        sent["x-amz-date"] = now
        sent.setdefault("x-amz-content-sha256", hashlib.sha256(body).hexdigest())
        names = sorted({name.lower() for name in sent})
        lines = "".join(f"{name}:{','.join(v.strip() for v in sent.getall(name))}\n" for name in names)
        canonical = "\n".join((method, path, text, lines, ";".join(names), sent["x-amz-content-sha256"]))
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
        signing_key = _hmac(f"AWS4{self.secret_key}".encode(), now[:8])
        for word in ("us-east-1", "s3", "aws4_request"):
            signing_key = _hmac(signing_key, word)
        signature = _hmac(signing_key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}").hex()
        sent["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={signature}"
        )
        return path + ("?" + text if text else ""), sent

    async def __call__(
        self,
        method: str,
        bucket: str = "",
        key: str = "",
        *,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send one signed request and read its answer."""
        target, sent = self.sign(method, bucket, key, query=query, headers=headers, body=body)
        url = URL(f"http://{self.host}{target}", encoded=True)
        skipped = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
        async with self.session.request(
            method, url, headers=sent, data=body, skip_auto_headers=skipped, allow_redirects=False
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def raw(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[bytes, bytes]:
        """Send bytes on a connection of their own; the answer's status line and its body."""
        host, _, port = self.host.partition(":")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {target} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n"
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(head.encode() + body)
                status, _, fields = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
                length = re.search(rb"content-length: ([0-9]+)", fields.lower())
                return status, await reader.readexactly(int(length[1]) if length else 0)
            finally:
                writer.close()

    async def upload(
        self, bucket: str, key: str, parts: list[bytes], headers: Mapping[str, str] | None = None
    ) -> tuple[str, list[tuple[int, str]]]:
        """Create a multipart upload and send its parts 1, 2, ...; returns its id and (number, ETag)s."""
        made = await self("POST", bucket, key, query={"uploads": ""}, headers=headers)
        assert made.status == 200, made.body
        upload = made.text("UploadId") or ""
        sent = []
        for number, part in enumerate(parts, start=1):
            query = {"uploadId": upload, "partNumber": str(number)}
            answer = await self("PUT", bucket, key, query=query, body=part)
            assert answer.status == 200, answer.body
            sent.append((number, answer.headers["ETag"]))
        return upload, sent

    async def complete(
        self,
        bucket: str,
        key: str,
        upload: str,
        parts: list[tuple[int, str]],
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return await self(
            "POST", bucket, key, query={"uploadId": upload}, headers=headers, body=complete_document(parts)
        )


def complete_document(parts: Iterable[tuple[int, str]]) -> bytes:
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in parts
    )
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
