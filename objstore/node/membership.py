"""What the machines of a cluster tell each other about themselves: documents, paths, rules. Pure.

    GET  /join            anyone: the roots' certificates, to be held against a token's fingerprint
    POST /join            anyone with a token: JoinRequest -> Welcome
    POST /v1/register     a node: Registration -> Registered
    POST /v1/renew        a member: RenewRequest -> Renewed
    GET  /v1/member       a gateway asks any member: Standing
    PUT  /v1/member       a gateway tells any member: Trust -> Standing
    GET  /v1/trust        a gateway asks a node: Trust, as the node last heard it
    GET  /v1/trust        a gateway that has lost all it knew asks a node: Trust

The first four are served by a gateway's cluster port (admin/cluster_port.py), the next two by both roles. A
document is JSON. Strings are checked here once, by anchored patterns, before anybody uses them.
"""

import re
from typing import Any, Final, TypeVar

import msgspec

from objstore.config import ConfigError, host_and_port
from objstore.errors import BadArgument
from objstore.node.authority import CSR_SIZE_MAX
from objstore.node.tls import Trust, is_hex_id

JOIN_PATH: Final = "/join"
REGISTER_PATH: Final = "/v1/register"
RENEW_PATH: Final = "/v1/renew"
MEMBER_PATH: Final = "/v1/member"
TRUST_PATH: Final = "/v1/trust"

BODY_SIZE_MAX: Final = 256 * 1024  # Bytes of a request: 256 disks with long paths.
ANSWER_SIZE_MAX: Final = 8 * 1024 * 1024  # Bytes: a trust of 10,000 members.
DISKS_MAX: Final = 256  # Of one node.
ADDRESSES_MAX: Final = 8

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_PLACE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})?", re.ASCII)

T = TypeVar("T")


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Unknown fields are ignored: the other side may be of a later release."""


class Roots(Document, frozen=True, kw_only=True):
    roots: list[str]  # PEM.


class Machine(Document, frozen=True, kw_only=True):
    """What a machine says of itself."""

    name: str
    addresses: list[str]
    site: str = ""
    rack: str = ""

    def check(self) -> None:
        """Raises: BadArgument, naming the field and the rule."""
        if not _NAME.fullmatch(self.name):
            raise BadArgument(
                f"a name has 1 to 63 letters, digits, dots, dashes or underscores, not {self.name!r}",
                name="name",
            )
        for field, place in (("site", self.site), ("rack", self.rack)):
            if not _PLACE.fullmatch(place):
                raise BadArgument(
                    f"a {field} has at most 63 letters, digits, dots, dashes or underscores, not {place!r}",
                    name=field,
                )
        if not 1 <= len(self.addresses) <= ADDRESSES_MAX:
            raise BadArgument(f"1 to {ADDRESSES_MAX} addresses are needed", name="addresses")
        for address in self.addresses:
            check_address(address)


class JoinRequest(Document, frozen=True, kw_only=True):
    token: str = msgspec.field()
    csr: str  # PEM.
    machine: Machine

    def __repr__(self) -> str:  # The token is a secret.
        return f"JoinRequest(machine={self.machine!r})"

    def check(self) -> None:
        """Raises: BadArgument."""
        if len(self.csr) > CSR_SIZE_MAX:
            raise BadArgument("the signing request is too long", name="csr")
        self.machine.check()


class Welcome(Document, frozen=True, kw_only=True):
    id: str  # 32 hex digits: the new member's.
    certificate: str  # PEM.
    trust: Trust


class DiskFacts(Document, frozen=True, kw_only=True):
    uuid: str  # 32 hex digits, made by the node before it asks: asking again means the same disk.
    path: str  # On the node; for people.
    size: int  # Bytes of its file system; 0: it is not there.
    formatted: bool  # Its identity file bears the number that this uuid was given.


class Registration(Document, frozen=True, kw_only=True):
    machine: Machine
    disks: list[DiskFacts]

    def check(self) -> None:
        """Raises: BadArgument."""
        self.machine.check()
        if len(self.disks) > DISKS_MAX:
            raise BadArgument(f"a node has at most {DISKS_MAX} disks", name="disks")
        if len({disk.uuid for disk in self.disks}) != len(self.disks):
            raise BadArgument("a disk is named twice", name="disks")
        for disk in self.disks:
            if not is_hex_id(disk.uuid):
                raise BadArgument("a disk's uuid has 32 hex digits", name="uuid")
            if not (1 <= len(disk.path) <= 1_000 and disk.path.isprintable()):
                raise BadArgument("a disk's path has 1 to 1,000 printable characters", name="path")
            if not 0 <= disk.size < 1 << 63:
                raise BadArgument("a disk's size is a number of bytes", name="size")


class Registered(Document, frozen=True, kw_only=True):
    """What a node needs to format its disks."""

    numbers: dict[str, int]  # By uuid.
    checksum_secret: str  # 16 hex digits.
    epoch: int  # The newest that is in force.

    def __repr__(self) -> str:
        return f"Registered(numbers={self.numbers}, epoch={self.epoch})"


class RenewRequest(Document, frozen=True, kw_only=True):
    csr: str  # PEM; of a new key.

    def check(self) -> None:
        """Raises: BadArgument."""
        if len(self.csr) > CSR_SIZE_MAX:
            raise BadArgument("the signing request is too long", name="csr")


class Renewed(Document, frozen=True, kw_only=True):
    certificate: str  # PEM.
    trust: Trust


class SlowDisk(Document, frozen=True, kw_only=True):
    """A disk whose reads come late."""

    disk: int
    by: int  # Processes of the machine that do without it.


class Standing(Document, frozen=True, kw_only=True):
    """How a member stands: what it trusts, and what it shows."""

    id: str
    number: int  # Of the trust that it follows.
    issuer: str  # Of the certificate that its new connections show.
    ends_s: int  # When that ends, seconds since 1970.
    version: str  # Of its release.
    started_s: int  # Seconds since 1970.
    slow: list[SlowDisk] = msgspec.field(default_factory=list)  # Of a gateway.


class Refusal(Document, frozen=True, kw_only=True):
    """The body of every answer that is an error."""

    detail: str


def check_address(address: str) -> None:
    """Raises: BadArgument unless it is host:port of a place that others can reach."""
    try:
        host, port = host_and_port(address)
    except ConfigError:
        raise BadArgument(f"an address is host:port, not {address!r}", name="addresses") from None
    if port == 0 or host in ("0.0.0.0", "::"):  # noqa: S104  (Refused, not listened on.)
        raise BadArgument(f"{address} is nowhere that others can reach", name="addresses")


def decode(content: bytes, kind: type[T]) -> T:
    """A document that somebody sent. Raises: BadArgument."""
    try:
        found: Any = msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as failure:
        raise BadArgument(f"the document cannot be read: {failure}") from None
    return found  # type: ignore[no-any-return]
