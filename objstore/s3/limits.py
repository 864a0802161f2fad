"""The edge's bounds, and the counters that hold it to them.

The figures that operators may change come from the configuration; the rest are constants with their
arithmetic. Past a bound the answer is 503 SlowDown with Retry-After, before the request's signature is looked
at: refusing must cost less than serving.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from objstore import config
from objstore.iam.principal import NO_ACCOUNT, Principal
from objstore.meta.schema import Limits as Quotas
from objstore.meta.schema import decode
from objstore.objects.store import KnownBucket
from objstore.rental.rates import Scope, has_rates
from objstore.rental.terms import PROJECT, QUOTA

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds and bytes. Defaults as in the configuration."""

    connections: int = 4096  # Per worker.
    requests: int = 1024  # In flight, per worker, of one tenant. All together: a fourth more.
    body_bytes: int = 256 * MIB  # Of request bodies in flight, likewise, as `weight` counts them.
    header_seconds: float = 10.0  # From the first byte of a head to its last.
    idle_seconds: float = 60.0  # A connection without a request.
    body_seconds: float = 30.0  # Longest pause of a sender in a body, and of a reader in an answer.
    # Bytes a second that a body averages after its first `rate_after_seconds`, and a reader in each
    # `body_seconds` that an answer waits for him.
    body_rate: int = 1024
    rate_after_seconds: float = 10.0
    head_bytes: int = 64 * KIB  # Of one request's head: eight times what AWS takes.
    line_bytes: int = 16 * KIB  # The request line: a 1,024-byte key, escaped, and a long presigned query fit.
    field_bytes: int = 8 * KIB  # One header.
    fields: int = 128  # Headers of a request.
    read_bytes: int = 128 * KIB  # Receive buffer of a body; reading pauses at twice this.
    drain_bytes: int = 1 * MIB  # An unread body up to this is read away, to keep the connection.
    linger_seconds: float = 5.0  # Reading away what a refused client still sends, so that it sees the answer.
    # Idle, or in a handshake, for so long, a connection gives way to a new one when there are too many.
    evict_seconds: float = 1.0
    sweep_seconds: float = 1.0  # How often connections are looked at: the accuracy of the times above.

    @classmethod
    def from_config(cls, limits: config.Limits) -> "Limits":
        return cls(
            connections=limits.connections,
            requests=limits.requests,
            body_bytes=limits.body_bytes,
            header_seconds=limits.header_seconds,
            idle_seconds=limits.idle_seconds,
            body_seconds=limits.body_seconds,
            body_rate=limits.body_rate,
        )


# What one large upload can pin at the edge: twice the receive buffer, one read, two batches of hashing.
BODY_WEIGHT_MAX = 1 * MIB
RESERVE_PART = 4  # One part in so many, on top of what a single tenant may hold, is for the others.


LOOK_S = 0.1  # How often the event loop is looked at.
# A turn of the loop that comes later than that, on average: the process has more to do than it can. A request
# takes 0.2 to 0.3 ms of it, so some twenty are ready at once, and whoever comes waits for all of them.
LATE_S = 0.005
# And the loop's thread uses so much of a core: below that it is others who keep it from its work. A client
# that sends one request after the other brings it to a sixth.
BUSY = 0.3
LATE_WEIGHT = 0.3  # Of the last look in these averages: two or three looks decide.
RECENT_LOOKS = 10  # Tenants of the last one or two seconds count as those who share the process.
SHARE_LEAST = 8  # Requests in flight, and begun from look to look, that a tenant may have in any case.
STARTS_MAX = 100_000  # From look to look: more than a process can begin.

# A document is held whole: its pieces, the whole that is made of them, and the tree that is made of that.
DOCUMENT_SIZE_MAX = 8 * MIB  # The largest that any operation takes: 1,000 keys of 1,024 bytes, all entities.
DOCUMENT_COPIES = 3


def weight(size: int | None) -> int:
    """Bytes that a body of this declared size can hold in memory at the edge (None: unknown)."""
    return BODY_WEIGHT_MAX if size is None or size > BODY_WEIGHT_MAX else size


def document_weight(size: int | None) -> int:
    """The same for the body of a POST, which is a document and not a stream."""
    return DOCUMENT_COPIES * (DOCUMENT_SIZE_MAX if size is None or size > DOCUMENT_SIZE_MAX else size)


class Admission:
    """Requests and body bytes in flight in this worker. Belongs to the event loop.

    A request is counted in before it is proven, and claimed for its tenant afterwards. What one tenant may
    hold is less than what there is: slow uploads of one never keep out another. While the event loop is
    busy and late, and more than one tenant is there, it is less and less: whoever asks most is refused first,
    and the others' requests find a loop with a short way around.
    """

    __slots__ = (
        "_before", "_busy", "_late_s", "_looks", "_recent", "_starts", "_tenants", "body_bytes",
        "body_bytes_each", "body_bytes_max", "most_each", "refused", "requests", "requests_each",
        "requests_max", "starts_each",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self.requests = 0
        self.most_each = limits.requests
        self.requests_each = limits.requests  # As it is just now.
        self.requests_max = limits.requests + limits.requests // RESERVE_PART
        self.body_bytes = 0
        self.body_bytes_each = limits.body_bytes
        self.body_bytes_max = limits.body_bytes + limits.body_bytes // RESERVE_PART
        self.refused = 0
        self._tenants: dict[str, list[int]] = {}  # Requests and body bytes of each that has any.
        self._recent: set[str] = set()  # Tenants of the last looks,
        self._before: set[str] = set()  # and of those before.
        self._starts: dict[str, int] = {}  # Requests begun since the last look.
        self.starts_each = STARTS_MAX
        self._looks = 0
        self._late_s = self._busy = 0.0  # On average.

    def enter(self, body_weight: int) -> bool:
        """Count a request in, or refuse it. One request alone always fits."""
        if self.requests >= self.requests_max or (
            self.body_bytes + body_weight > self.body_bytes_max and self.body_bytes
        ):
            self.refused += 1
            return False
        self.requests += 1
        self.body_bytes += body_weight
        return True

    def claim(self, tenant: str, body_weight: int) -> bool:
        """Count a request that came in to its tenant, or refuse it. One request alone always fits."""
        starts = self._starts.get(tenant, 0)
        if starts >= self.starts_each:
            self.refused += 1
            return False
        held = self._tenants.get(tenant)
        if held is None:
            self._tenants[tenant] = [1, body_weight]
            self._starts[tenant] = starts + 1
            return True
        if held[0] >= self.requests_each or (held[1] + body_weight > self.body_bytes_each and held[1]):
            self.refused += 1
            return False
        held[0] += 1
        held[1] += body_weight
        self._starts[tenant] = starts + 1
        return True

    def leave(self, body_weight: int, tenant: str | None) -> None:
        """The request has ended. `tenant`: who claimed it, if anyone did."""
        self.requests -= 1
        self.body_bytes -= body_weight
        if tenant is not None:
            held = self._tenants[tenant]
            held[0] -= 1
            held[1] -= body_weight
            if not held[0]:
                del self._tenants[tenant]
        assert self.requests >= 0
        assert self.body_bytes >= 0

    def look(self, late_s: float, busy: float) -> None:
        """Judge what a tenant may have in flight and begin. Every LOOK_S.

        Args:
            late_s: how late the event loop came to this.
            busy: how much of a core its thread has used since the last look.
        """
        self._looks += 1
        self._recent.update(self._starts)
        self._recent.update(self._tenants)
        self._late_s += LATE_WEIGHT * (late_s - self._late_s)
        self._busy += LATE_WEIGHT * (busy - self._busy)
        if self._late_s > LATE_S and self._busy > BUSY and len(self._recent | self._before) > 1:
            held = max((held[0] for held in self._tenants.values()), default=0)
            begun = max(self._starts.values(), default=0)
            least = min(SHARE_LEAST, self.most_each)
            self.requests_each = max(least, min(self.requests_each, held) // 2)
            self.starts_each = max(SHARE_LEAST, min(self.starts_each, begun) * 3 // 4)
        else:
            self.requests_each = _grown(self.requests_each, self.most_each)
            self.starts_each = _grown(self.starts_each, STARTS_MAX)
        self._starts.clear()
        if self._looks % RECENT_LOOKS == 0:
            self._before, self._recent = self._recent, set()

    async def keep_looking(self, monotonic: Callable[[], float]) -> None:
        """Never ends."""
        while True:
            began, used = monotonic(), time.thread_time()
            await asyncio.sleep(LOOK_S)
            passed = monotonic() - began
            self.look(passed - LOOK_S, (time.thread_time() - used) / max(passed, LOOK_S))


def _grown(share: int, most: int) -> int:
    """An eighth more: what was too little is made good within seconds, what is too much is seen before."""
    return min(most, share + share // 8 + 1)


def scopes_of(who: Principal, bucket: KnownBucket | None) -> list[Scope]:
    """The scopes with rates that a request is held to.

    Args:
        bucket: as last read, if this process has read it: its rates are known from its second request on.
    """
    found: list[Scope] = []
    if bucket is not None and bucket.record.tenant != who.tenant:
        bucket = None  # It will be refused there; whose it is shall not pay for it.
    settings = None if bucket is None else bucket.record.settings
    account = who.account
    if account is not NO_ACCOUNT:
        if has_rates(account.limits):
            found.append((f"t {who.tenant}", account.limits))
        if account.projects:
            project = who.project if settings is None else settings.get(PROJECT, b"").decode()
            its = account.projects.get(project)
            if its is not None and has_rates(its):
                found.append((f"p {who.tenant}/{project}", its))
    if who.limits is not None and has_rates(who.limits):
        found.append((f"k {who.access_key_id}", who.limits))
    if settings is not None and QUOTA in settings:
        its = decode(settings[QUOTA], Quotas)
        if has_rates(its):
            assert bucket is not None
            found.append((f"b {bucket.record.id}", its))
    return found
