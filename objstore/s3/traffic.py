"""What requests use that no commit of theirs counts: reads, listings, refusals, and bytes that are sent.

A worker adds them up and commits them once a second, under the id of the bucket and so for its tenant; what
names no bucket, or one that could not be made, under an id of the caller's tenant. What a
kill loses of them is the tenant's gain, and so is what a commit of unknown outcome would have counted.

    class A   PUT, POST, COPY, LIST, and what changes uploads; changes that succeed are counted by a commit
    class B   GET, HEAD and others
    free      DELETE and Abort, answers of 5xx (503 SlowDown among them), strangers, and whatever is asked of
              another tenant's bucket; bytes that are sent to who takes its data along (terminating)

Concurrency: one per worker, on its event loop. `note` is on the way of every request: some lookups, no await.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final

from objstore.clock import SECOND_US, Clock
from objstore.errors import StoreError
from objstore.meta.kv import Add, Kv, Transaction
from objstore.objects.accounting import is_metered
from objstore.objects.buckets import stream_of_tenant
from objstore.objects.store import KnownBucket
from objstore.objects.values import Principal
from objstore.rental.meters import (
    HOUR_S,
    REQUESTS_A,
    REQUESTS_B,
    SENT_INTERNAL,
    SENT_INTERNET,
    SENT_REPLICATION,
    meter_prefix,
)

log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
COUNTERS_MAX: Final = 65_536  # 16,384 known buckets x 4: more are not begun until these are committed.
COMMITTED_AT_ONCE: Final = 256  # Counters of one commit.
PEERS_MAX: Final = 16_384  # Addresses whose scope is remembered.
STREAMS_MAX: Final = 16_384  # Tenants whose id is remembered.
FREE: Final = b""
LEAVING: Final = "terminating"
_CREATE: Final = "CreateBucket"
_COUNTED: Final = frozenset(
    {
        _CREATE,
        "PutObject",
        "CopyObject",
        "UploadPart",
        "UploadPartCopy",
        "CreateMultipartUpload",
        "CompleteMultipartUpload",
        "PutReplica",
        "PostReplica",
    }
)  # When they succeed: by their own commits.
_FREE: Final = frozenset({"DeleteObjects", "AbortMultipartUpload"})
_CLIENT_GONE: Final = 499
_SERVER_FAULT: Final = 500
_CLIENT_FAULT: Final = 400


def request_class(operation: str, method: str) -> tuple[bytes, bytes]:
    """The meters of such a request when it succeeds, and when it is the client's fault that it does not."""
    if method == "DELETE" or operation in _FREE:
        return FREE, FREE
    if operation in _COUNTED:
        return FREE, REQUESTS_A
    meter = REQUESTS_A if method in ("PUT", "POST") or operation.startswith("List") else REQUESTS_B
    return meter, meter


class Scopes:
    """Where bytes go, by the address that they are sent to."""

    def __init__(self, internal: Iterable[str] = (), replication: Iterable[str] = ()) -> None:
        """Networks in CIDR notation. Raises: ValueError."""
        self._networks = [
            (ip_network(text), meter)
            for meter, texts in ((SENT_REPLICATION, replication), (SENT_INTERNAL, internal))
            for text in texts
        ]
        self._known: dict[str, bytes] = {}

    def meter(self, address: str) -> bytes:
        found = self._known.get(address)
        if found is None:
            if len(self._known) >= PEERS_MAX:
                self._known.clear()
            found = self._known[address] = self._find(address)
        return found

    def _find(self, address: str) -> bytes:
        try:
            peer: Any = ip_address(address.partition("%")[0])
        except ValueError:
            return SENT_INTERNAL  # A socket of this machine.
        peer = getattr(peer, "ipv4_mapped", None) or peer
        for network, meter in self._networks:
            if peer in network:
                return meter
        return SENT_INTERNET


class Traffic:
    """Counters of one worker that are not committed yet."""

    def __init__(
        self, buckets: Mapping[str, KnownBucket], scopes: Scopes, *, size_max: int = COUNTERS_MAX
    ) -> None:
        """buckets: by name, as the store of this worker knows them."""
        self._buckets = buckets
        self._scopes = scopes
        self._size_max = size_max
        self._classes: dict[str, tuple[bytes, bytes]] = {}
        self._open: dict[tuple[int | str, bytes], int] = {}  # By bucket id, or tenant, and meter.
        self._streams: dict[str, int] = {}  # Of tenants: the ids under which they are committed.
        self.lost = 0  # Counters that were given up, in commits that failed or for want of room.

    def known(self, bucket: str) -> KnownBucket | None:
        """The bucket as this worker knows it now: it may be forgotten while a long answer is sent."""
        return self._buckets.get(bucket)

    def note(
        self,
        who: Principal | None,
        bucket: str,
        operation: str,
        method: str,
        status: int,
        sent: int,
        peer: str,
        known: KnownBucket | None = None,
    ) -> None:
        """Count one finished request.

        Args:
            bucket: its name, empty if it names none; one that this worker does not know is not counted, but
                where it was to be made.
            sent: bytes of the answer's body that were handed to the socket.
            peer: the address at the other end.
            known: the bucket as it was known when the answer began.
        """
        if who is None or status >= _SERVER_FAULT:
            return
        known = known or self._buckets.get(bucket)
        stream: int | str
        if known is not None:
            record = known.record
            if record.tenant != who.tenant:
                return  # Refused, whatever it was refused for first: whose the bucket is does not pay for it.
            if record.settings is not None and not is_metered(record):
                return
            stream = record.id
        elif not bucket or operation == _CREATE:
            stream = who.tenant
        else:
            return
        classes = self._classes.get(operation)
        if classes is None:
            classes = self._classes[operation] = request_class(operation, method)
        meter = classes[_CLIENT_FAULT <= status < _CLIENT_GONE]
        if meter:
            self._add((stream, meter), 1)
        if sent and who.account.state != LEAVING:
            self._add((stream, self._scopes.meter(peer)), sent)

    def _add(self, key: tuple[int | str, bytes], count: int) -> None:
        there = self._open.get(key)
        if there is not None:
            self._open[key] = there + count
        elif len(self._open) < self._size_max:
            self._open[key] = count
        else:
            self.lost += 1

    async def commit(self, kv: Kv, now_s: int) -> None:
        """Commit what has been counted, at this second since 1970; what fails is given up."""
        taken, self._open = list(self._open.items()), {}
        hour = now_s // HOUR_S
        for begin in range(0, len(taken), COMMITTED_AT_ONCE):
            some = taken[begin : begin + COMMITTED_AT_ONCE]
            try:
                add = {
                    meter_prefix(hour, await self._id_of(kv, stream, now_s), "") + meter: Add(count)
                    for (stream, meter), count in some
                }
                await kv.commit(Transaction(add=add))
            except StoreError as failure:
                # Its outcome may be unknown, and nothing is billed twice.
                self.lost += len(some)
                log.warning("%d counters of requests and transfer are lost: %s", len(some), failure)

    async def _id_of(self, kv: Kv, stream: int | str, now_s: int) -> int:
        """Raises: Overloaded, MetaUnavailable."""
        if isinstance(stream, int):
            return stream
        if stream not in self._streams:
            if len(self._streams) >= STREAMS_MAX:
                self._streams.clear()
            self._streams[stream] = await stream_of_tenant(kv, stream, now_s * SECOND_US)
        return self._streams[stream]

    async def keep(self, kv: Kv, clock: Clock, away: Callable[[], bool], period_s: float = PERIOD_S) -> None:
        """Commit once a second while metadata takes commits. Never returns."""
        while True:
            await asyncio.sleep(period_s)
            if self._open and not away():
                await self.commit(kv, clock.now_us() // SECOND_US)
