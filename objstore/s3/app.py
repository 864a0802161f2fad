"""The S3 face of one worker: every request comes in here, and every answer goes out from here.

    aiohttp's parser -> EdgeProtocol (server.py) -> App.handle -> target -> sigv4 -> route -> body -> handler

No router, no middleware, no Application: one handler on a low-level `web.Server`. Default deny stands in
`_serve`: the signature is verified before a route is even chosen, then the route's actions must be allowed to
who asks (access.py), and there is no second way to a handler.

What may be relied on:
- a request gets exactly one answer, in S3's XML when it is an error (none on HEAD), with x-amz-request-id;
- an answer that has begun and fails is cut off, never ended as if it were whole;
- an unread body is read away if it is small, otherwise the connection closes: never a desync or a hang;
- a bug is logged once with its traceback and answered 500; a client's fault is not logged beyond its line.

Concurrency: one App per worker, used by its event loop only.
"""

import asyncio
import base64
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import count
from typing import Any, Protocol

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadHttpMethod, InvalidURLError, LineTooLong
from multidict import istr

from objstore.errors import AccountClosed, Contended, NoSuchKey, NoSuchVersion, StoreError
from objstore.iam.principal import Bounds
from objstore.objects.store import KnownBucket, Store
from objstore.objects.values import Principal
from objstore.rental.rates import Rated, Rates, Scope, retry_after
from objstore.rental.terms import READS
from objstore.s3.access import Access
from objstore.s3.access_log import AccessLog, Line, redact
from objstore.s3.availability import Availability, is_failure
from objstore.s3.body import NoBody, RequestBody, open_body
from objstore.s3.call import Call, Route
from objstore.s3.errors import (
    S3Fault,
    access_denied,
    bad_http,
    fault_of,
    internal_error,
    invalid_uri,
    not_implemented,
    render,
    service_unavailable,
    slow_down,
)
from objstore.s3.limits import Admission, Limits, document_weight, scopes_of, weight
from objstore.s3.outbox import Outbox
from objstore.s3.refusals import Refusals
from objstore.s3.sigv4 import Directory, Verified, Verifier
from objstore.s3.target import Target, parse_target
from objstore.s3.traffic import Traffic

_log = logging.getLogger("objstore.s3")

SERVER = "objstore"
RULES = frozenset({"tenant", "any-user"})
_REQUEST_ID = istr("x-amz-request-id")
_HOST_ID = istr("x-amz-id-2")
_COPY_SOURCE = istr("x-amz-copy-source")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_VERSIONS = (HttpVersion11, HttpVersion10)
_OBJECT_PUTS = frozenset({"PutObject", "UploadPart"})  # Their bodies need a length.
_READS = frozenset({"GET", "HEAD"})
_HASH_THREADS = min(8, (os.cpu_count() or 1) + 1)

Chooser = Callable[[str, str, str, Mapping[str, str], Mapping[str, str]], Route]


class Observer(Protocol):
    """What counts requests: objstore/metrics.py `RequestMetrics`, or nothing."""

    in_flight: int
    connections: int

    def finished(
        self,
        operation: str,
        status: int,
        seconds: float,
        received: int = 0,
        sent: int = 0,
        error_code: str = "",
        first_byte_seconds: float | None = None,
        tenant: str = "",
        refusal: str = "",
    ) -> None: ...


class Nobody:
    """Counts nothing."""

    in_flight = 0
    connections = 0

    def finished(self, *_: Any, **__: Any) -> None:
        pass


class EdgeRequest(web.BaseRequest):
    """A request on its way through `App.handle`; what the access log will say of it."""

    app: "App"
    request_id = ""
    operation = "Unknown"
    bucket = ""
    key = ""
    who: Principal | None = None
    body: RequestBody | NoBody | None = None
    first_byte_at = 0.0
    waits_for_100 = False
    body_weight = 0
    admitted = False  # It has a place among the requests in flight.
    claimed: str | None = None  # The tenant that the request counts against.
    rated: Rated | None = None  # Of one that is held to a rate.
    begun: web.StreamResponse | None = None  # The answer whose head was written last,
    known: KnownBucket | None = None  # and its bucket then.
    refusal = ""  # What its tenant was refused for: rate | share.
    late: S3Fault | None = None  # A failure that was told behind a status of 200 (answers.py).
    contended = False  # It was in the way of others of its tenant.

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """The last moment before the head is written; aiohttp calls it for every answer that it writes."""
        self.first_byte_at = time.monotonic()
        self.begun = response
        if self.app.traffic is not None:  # A long answer is billed to whom it was begun for.
            self.known = self.app.traffic.known(self.bucket)
        self.decorate(response)
        if self.rated is not None and self.method != hdrs.METH_HEAD:
            self.rated.expect(response.content_length or 0)

    def decorate(self, response: web.StreamResponse) -> None:
        """Add what every answer says, and decide whether the connection goes on."""
        headers = response._headers
        headers[hdrs.SERVER] = SERVER
        headers[_REQUEST_ID] = self.request_id
        headers[_HOST_ID] = self.app.host_id
        if not self.may_go_on():
            response.force_close()
            headers[hdrs.CONNECTION] = "close"

    def may_go_on(self) -> bool:
        """Whether the connection may serve another request after this one's answer.

        Not after one that asks for an upgrade: none is taken, and aiohttp's parser drops the bytes that came
        with it (unless it asks for websocket).
        """
        return not self.app.draining and self._body_is_dealt_with() and not self._message.upgrade

    def _body_is_dealt_with(self) -> bool:
        """Whether the connection can go on after this answer. If not, set how long it lingers."""
        protocol: Any = self._protocol
        if protocol.half_closed:
            return False
        payload = self._payload
        if payload.is_eof() and not self.waits_for_100:
            return True
        limits = self.app.limits
        if self.waits_for_100 or payload.exception() is not None:
            # It was never told to go on, or what it sends makes no sense: nothing to wait for.
            protocol._lingering_time = 0.0
            return False
        protocol._lingering_time = limits.linger_seconds
        size = self._message.headers.get(hdrs.CONTENT_LENGTH, "")
        return size.isascii() and size.isdigit() and len(size) < 10 and int(size) <= limits.drain_bytes

    def send_continue(self) -> None:
        """Tell the client to go on, once; also one that did not wait, for it may count on the answer."""
        if not self.waits_for_100:
            return
        self.waits_for_100 = False
        transport = self._protocol.transport
        if transport is not None:
            transport.write(CONTINUE)


class App:
    """Everything between a parsed HTTP request and its handler.

    Args:
        store: given to handlers, not touched here.
        directory: access keys.
        routes: the whole route table, checked here: a row without a rule makes construction fail.
        choose: finds the row of a request (s3/routes.py `choose`).
        domains: base domains of virtual-host style.
        now: wall clock in seconds, for signatures.
        hash_pool: threads that hash large bodies; made here if not given.
        no_writes: whether no change could be committed now: then its request is refused, its body unread.
        rates: holds requests to the rates of who sends them; None: there are none.
        traffic: counts what is billed of requests that commit nothing, and of bytes sent.
        availability: counts what service levels are measured by.
        used: told the access key's id of every verified request.

    Raises: ValueError for a route without a rule that we know.
    """

    def __init__(
        self,
        *,
        store: Store,
        directory: Directory,
        routes: Iterable[Route],
        choose: Chooser,
        region: str = "us-east-1",
        domains: Iterable[str] = (),
        limits: Limits | None = None,
        access_log: AccessLog | None = None,
        observer: Observer | None = None,
        now: Callable[[], float] = time.time,
        hash_pool: Executor | None = None,
        randomness: random.Random | None = None,
        no_writes: Callable[[], bool] = lambda: False,
        traffic: Traffic | None = None,
        availability: Availability | None = None,
        rates: Rates | None = None,
        used: Callable[[str], None] = lambda _: None,
    ) -> None:
        for route in routes:
            if route.rule not in RULES:
                raise ValueError(f"route {route.operation} has no authorisation rule ({route.rule!r})")
            if route.handler is not None and not route.actions:
                raise ValueError(f"route {route.operation} has no action that policies could allow")
        self.store = store
        self.verifier = Verifier(directory, region, now)
        self.choose = choose
        self.domains = tuple(domain.lower().strip(".") for domain in domains)
        self.limits = limits or Limits()
        self.refusals = Refusals(self.limits.connections)
        self.admission = Admission(self.limits)
        self.access_log = access_log
        self.observer: Observer = observer or Nobody()
        self.now = now
        self.hash_pool = hash_pool or ThreadPoolExecutor(_HASH_THREADS, "hash")
        self.no_writes = no_writes
        self.traffic = traffic
        self.availability = availability
        self.rates = rates
        self.used = used
        self.draining = False
        self._random = randomness or random.Random(os.urandom(16))  # noqa: S311 # Names requests, guards nothing.
        self._id_prefix = self._random.randbytes(4).hex().upper()
        self._id_count = count(self._random.getrandbits(32))
        self.host_id = base64.b64encode(self._random.randbytes(24)).decode()
        self.outbox = Outbox(f"Server: {SERVER}\r\n{_HOST_ID}: {self.host_id}\r\n".encode())

    def new_request_id(self) -> str:
        """16 hex digits: 8 of this worker's life, 8 that count."""
        return f"{self._id_prefix}{next(self._id_count) & 0xFFFFFFFF:08X}"

    async def handle(self, request: EdgeRequest) -> web.StreamResponse:
        """Serve one request to its last byte. Raises: ConnectionError: the connection is of no more use."""
        began = time.monotonic()
        request.app = self
        request.request_id = self.new_request_id()
        protocol: Any = request._protocol
        protocol.request_began(request)
        message = request._message
        headers = message.headers
        length = headers.get(hdrs.CONTENT_LENGTH)
        body_weight = 0
        if length is not None or not request._payload.is_eof():
            size = None
            if length is not None and length.isascii() and length.isdigit() and len(length) < 20:
                size = int(length)
            body_weight = document_weight(size) if message.method == "POST" else weight(size)
        if _COPY_SOURCE in headers:  # No body to receive, but one to move.
            body_weight = max(body_weight, weight(None))

        request.body_weight = body_weight
        fault: S3Fault | None = None
        request.admitted = self.admission.enter(body_weight)
        observer = self.observer
        observer.in_flight += 1
        response: web.StreamResponse | None = None
        try:
            try:
                if not request.admitted:
                    raise slow_down()
                response = await self._serve(request)
                if isinstance(response, web.Response) and not response.prepared and not request.waits_for_100:
                    await self.outbox.answer(request, response)
                else:
                    await response.prepare(request)
                    await response.write_eof()
                    self._check_whole(request, response)
            except (S3Fault, StoreError) as error:
                request.contended = isinstance(error, Contended)
                fault = fault_of(error)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                _log.exception("bug while serving %s, request %s", request.operation, request.request_id)
                fault = internal_error()
            if fault is not None:
                response = await self._answer_fault(request, fault)
        except ConnectionError:
            fault = fault or S3Fault("ClientDisconnected", 499, "")
            raise
        finally:
            protocol.ended += 1
            observer.in_flight -= 1
            self._give_place_up(request)
            self._note(request, response, fault, began)
        assert response is not None
        if protocol.half_closed:
            response._keep_alive = False
        return response

    async def _serve(self, request: EdgeRequest) -> web.StreamResponse:
        message = request._message
        method = message.method
        if message.version not in _VERSIONS:
            request._version = HttpVersion11
            raise bad_http("The version of HTTP must be 1.0 or 1.1")
        expect = message.headers.get(hdrs.EXPECT)
        if expect is not None and expect.lower() == "100-continue":  # S3 ignores every other expectation.
            request.waits_for_100 = message.version >= HttpVersion11
        host = message.headers.get(hdrs.HOST, "")
        target = parse_target(message.path, host, self.domains)
        request.bucket, request.key = target.bucket, target.key

        # Default deny: nothing is done before it.
        verified = await self.verifier.verify(method, target, message.headers)
        request.who = who = verified.who
        access = None
        if who.bounds is not None:  # Before anything counts against its tenant.
            access = self._access(request, who.bounds, verified, target)
            access.check_use()
        self.used(who.access_key_id)
        if not self.admission.claim(who.tenant, request.body_weight):
            request.refusal = "share"
            await self._put_off(request, who.tenant)
            raise slow_down()
        request.claimed = who.tenant
        if who.account.state not in READS:
            raise AccountClosed(who.account.state)
        if self.rates is not None and (scopes := scopes_of(who, self.store.buckets.get(target.bucket))):
            await self._admit(request, who.tenant, self.rates, scopes)
        route = self.choose(method, target.bucket, target.key, target.query, verified.headers)
        request.operation = operation = route.operation
        if route.handler is None:
            raise not_implemented(operation)
        if access is not None:
            access.check(route)
        if method not in _READS and self.no_writes():
            raise service_unavailable()  # Before the body is received: nothing could be committed for it.
        body = request.body = open_body(
            payload=request._payload,
            headers=verified.headers,
            verified=verified,
            chunked=message.chunked,
            pool=self.hash_pool,
            go_on=request.send_continue if request.waits_for_100 else None,
            object_put=operation in _OBJECT_PUTS,
            checksum_in_body=operation != "CompleteMultipartUpload",
        )
        if request.waits_for_100 and request._payload.is_eof():
            # Nothing is to come, but botocore misreads the next answer of a connection on which an
            # expectation was answered without 100 (it keeps the status line), and waits for the close.
            request.send_continue()
        scheme = "https" if request._transport_sslcontext is not None else "http"
        call = Call(
            request=request,
            store=self.store,
            who=verified.who,
            operation=operation,
            method=method,
            bucket=target.bucket,
            key=target.key,
            query=target.query,
            headers=message.headers,
            request_id=request.request_id,
            body=body,
            presigned=verified.presigned,
            base_url=f"{scheme}://{host}",
            access=access,
        )
        if access is None:
            return await route.handler(call)
        try:
            return await route.handler(call)
        except (NoSuchKey, NoSuchVersion):
            if access.may_miss(route):
                raise
            raise access_denied() from None

    async def _admit(self, request: EdgeRequest, tenant: str, rates: Rates, scopes: list[Scope]) -> None:
        """Hold a request to the rates of its tenant, project, bucket and key. Raises: S3Fault."""
        length = request._message.headers.get(hdrs.CONTENT_LENGTH, "")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
        admitted = rates.admit(scopes, size)
        if isinstance(admitted, float):
            request.refusal = "rate"
            await self._put_off(request, tenant)
            raise slow_down(retry_after=retry_after(admitted))
        request.rated = admitted

    async def _put_off(self, request: EdgeRequest, tenant: str) -> None:
        """Before a refusal for a rate or a share: its place is free at once, its answer has time."""
        self._give_place_up(request)
        protocol: Any = request._protocol
        leaves = protocol.put_off = asyncio.get_running_loop().create_future()
        protocol.hold_body(request._payload)
        try:
            await self.refusals.wait(leaves, tenant, time.monotonic(), self._random.random())
        finally:
            protocol.put_off = None
            protocol.let_body_come()

    def _give_place_up(self, request: EdgeRequest) -> None:
        if request.admitted:
            request.admitted = False
            self.admission.leave(request.body_weight, request.claimed)

    def _access(self, request: EdgeRequest, bounds: Bounds, verified: Verified, target: Target) -> Access:
        peer = request._transport_peername
        return Access(
            bounds,
            verified,
            target,
            request._message.headers,
            peer[0] if isinstance(peer, (list, tuple)) else "",
            request._transport_sslcontext is not None,
            self.now(),
            self.verifier.region,
        )

    @staticmethod
    def _check_whole(request: EdgeRequest, response: web.StreamResponse) -> None:
        """A streamed answer that is shorter than its Content-Length is a bug: never let it pass as whole."""
        missing = request._payload_writer.length
        if missing and not isinstance(response, web.Response) and not response._must_be_empty_body:
            raise AssertionError(f"{request.operation} answered {missing} bytes too few")

    async def _answer_fault(self, request: EdgeRequest, fault: S3Fault) -> web.StreamResponse:
        """Send an error, or cut the connection if an answer has already begun.

        Raises: ConnectionResetError after a cut.
        """
        writer = request._payload_writer
        if writer.output_size > 0:
            transport = request._protocol.transport
            if transport is not None:
                transport.abort()
            raise ConnectionResetError("the answer was cut off")
        writer.length = None
        response = self.fault_response(request.request_id, fault, request.method, request.bucket, request.key)
        if request.waits_for_100:
            await response.prepare(request)
            await response.write_eof()
        else:
            await self.outbox.answer(request, response)
        return response

    def fault_response(
        self, request_id: str, fault: S3Fault, method: str = "GET", bucket: str = "", key: str = ""
    ) -> web.Response:
        body = None
        if method != "HEAD" and fault.status != 304:
            resource = f"/{bucket}/{key}" if key else f"/{bucket}"
            body = render(fault, resource=resource, request_id=request_id, host_id=self.host_id)
        response = web.Response(status=fault.status, body=body, headers=fault.headers)
        if fault.status != 304:
            response.headers["Content-Type"] = "application/xml"
        if fault.headers.get("Connection") == "close":
            response.force_close()
        return response

    def parse_fault(self, error: BaseException) -> S3Fault:
        """What the HTTP parser refused, in S3's words."""
        if isinstance(error, LineTooLong):
            return S3Fault(
                "RequestHeaderSectionTooLarge",
                400,
                "Your request header section exceeds the maximum allowed size",
                {"MaxSizeAllowed": str(self.limits.head_bytes)},
                {"Connection": "close"},
            )
        if isinstance(error, InvalidURLError):
            fault = invalid_uri()
            fault.headers["Connection"] = "close"
            return fault
        if isinstance(error, BadHttpMethod):
            return bad_http("The request line is not HTTP")
        return bad_http("An error occurred when parsing the HTTP request")

    async def refuse_unparsed(self, request: EdgeRequest, error: BaseException) -> web.StreamResponse:
        """Answer what the HTTP parser refused: 400, XML, close. One access log line, no traceback."""
        began = time.monotonic()
        request.app = self
        request.request_id = self.new_request_id()
        request._version = HttpVersion11  # The parser's placeholder says 1.0.
        fault = self.parse_fault(error)
        response = self.fault_response(request.request_id, fault)
        try:
            await response.prepare(request)
            await response.write_eof()
        finally:
            protocol: Any = request._protocol
            protocol.ended += 1
            self._note(request, response, fault, began)
        return response

    def _note(
        self, request: EdgeRequest, response: web.StreamResponse | None, fault: S3Fault | None, began: float
    ) -> None:
        """Count and log one finished request."""
        ended = time.monotonic()
        status = response.status if response is not None else 499
        told = fault.status if fault is not None else status
        code = ""
        if (failure := fault or request.late) is not None:
            status, code = failure.status, failure.code
        body = request.body
        received = body.received if body is not None else 0
        sent = _sent(request, response if response is not None else request.begun)
        first = request.first_byte_at
        who = request.who
        self.observer.finished(
            request.operation,
            status,
            ended - began,
            received,
            sent,
            code,
            first - began if first else None,
            "" if who is None else who.tenant,
            "quota" if code == "QuotaExceeded" else request.refusal,
        )
        log, traffic = self.access_log, self.traffic
        message = request._message
        peer = request._transport_peername
        remote = peer[0] if isinstance(peer, (list, tuple)) else ""
        if request.rated is not None:
            request.rated.settle(received + sent)
        if traffic is not None:
            traffic.note(
                who, request.bucket, request.operation, message.method, status, sent, remote, request.known
            )
        if self.availability is not None and who is not None:
            own = request.refusal or request.contended
            self.availability.note(who.tenant, is_failure(status) and not own)
        if log is None:
            return
        path = message.path
        agent = message.headers.get(hdrs.USER_AGENT, "") if message.headers else ""
        log.add(
            Line(
                time=self.now(),
                request_id=request.request_id,
                remote=remote,
                method=message.method,
                operation=request.operation,
                status=told,
                duration_ms=_milliseconds(ended - began),
                ttfb_ms=_milliseconds(first - began) if first else 0.0,
                bucket=request.bucket,
                key=request.key,
                query=redact(path.partition("?")[2]) if "?" in path else "",
                tenant=who.tenant if who is not None else "",
                user=who.user if who is not None else "",
                bytes_in=received,
                bytes_out=sent,
                error=code,
                agent=agent[:256],
            )
        )

    def close(self) -> None:
        """Release the threads. After the server has drained."""
        self.hash_pool.shutdown(wait=True, cancel_futures=True)


def _milliseconds(seconds: float) -> float:
    """With three digits after the point. `round` takes three times as long."""
    return int(seconds * 1e6 + 0.5) / 1000


def _sent(request: EdgeRequest, response: web.StreamResponse | None) -> int:
    """Bytes of an answer's body that were given to the socket, also of one that its client did not take to
    the end."""
    output = request._payload_writer.output_size
    if not output or response is None or response._must_be_empty_body:
        return 0
    if isinstance(response, web.Response):
        body = response._body
        return len(body) if isinstance(body, (bytes, bytearray)) else 0
    left = request._payload_writer.length
    declared = response.headers.get(hdrs.CONTENT_LENGTH)
    if left is not None and declared is not None:
        return int(declared) - left
    return output  # Chunked: with the head and the framing.
