"""Mutually authenticated TLS between the machines of a cluster: who we are, whom we trust, from two files.

    identity.pem   our key and certificate, mode 0600, replaced as a whole: no moment with a key of another
    trust.json     the roots, who is no longer a member, and where the others are

Both ends show a certificate, TLS 1.3 only. What counts is the name in it (cluster, role, id): host names and
addresses prove nothing here. The name is checked within the handshake, by the very classes that the contexts
make their connections of, so that no byte of a request is sent to, or read from, the wrong one, whichever
library holds the connection. Sessions are never resumed: every connection is judged anew.

A context follows its `Credentials`: renewed files are taken up by connections made from then on. Who was
removed is refused at every new connection; `allows` says the same of one that is open, for each request.

Concurrency: contexts belong to the thread of the event loop, and so does `reload`, which changes them: a
handshake never sees a certificate without its key. `store_trust` only writes a file; any thread may call it.
"""

import asyncio
import contextlib
import logging
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from cryptography import x509

from objstore.errors import Corrupt
from objstore.ids import ID_SIZE
from objstore.node.authority import (
    Name,
    common_name,
    from_pem,
    key_from_pem,
    name_of,
    parse_uri,
    renew_at,
)
from objstore.node.identity import read_whole, sync_directory, write_new
from objstore.node.syscalls import RealSyscalls, Syscalls

log = logging.getLogger(__name__)

IDENTITY: Final = "identity.pem"
TRUST: Final = "trust.json"
TRUST_SIZE_MAX: Final = 4 * 1024 * 1024  # Bytes; 10,000 members have 2 MiB.
WATCH_SECONDS: Final = 2.0  # A removed member's next connection is refused after that at the latest.
HANDSHAKE_SECONDS: Final = 5.0  # Loopback takes 3 ms, another continent 300.

_OS: Final = RealSyscalls()


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Another machine of the cluster, as everyone knows it."""

    id: str  # 32 hex digits.
    role: str
    name: str = ""  # For people.
    addresses: list[str] = []  # host:port of its internal listener.
    disks: dict[str, str] = {}  # A node's, for a gateway that takes over: number -> uuid in hex.
    site: str | None = None  # Where it stands, by the layout; None: who wrote this did not know of sites.


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """trust.json: the same on every machine, as far as it has been told. Unknown fields are ignored."""

    format: int = 1
    cluster: str  # 32 hex digits.
    number: int  # Grows with every change; an older one never replaces a newer one.
    roots: list[str]  # PEM.
    signer: str  # Name of the root that signs now: whose certificate is another's renews it.
    denied: list[str] = []  # Ids (32 hex digits) of who was removed. Ids are never reused.
    members: list[Member] = []
    metadata: str = ""  # "postgresql"; empty: in a journal, or who wrote this did not say.


class Peer(NamedTuple):
    """Who is at the other end of a connection."""

    name: Name
    serial: str  # In hex, without leading zeros.
    issuer: str  # The root's name.
    ends: float  # Seconds since 1970: when the certificate ends.


class WrongPeer(ssl.SSLCertVerificationError):
    """The certificate is genuine, but its holder is not whom this connection is for."""


def encode_trust(trust: Trust) -> bytes:
    return msgspec.json.format(msgspec.json.encode(trust), indent=2) + b"\n"


def decode_trust(content: bytes) -> Trust:
    """Raises: Corrupt."""
    try:
        trust = msgspec.json.decode(content, type=Trust)
    except (msgspec.MsgspecError, ValueError) as failure:
        raise Corrupt(f"{TRUST} is damaged: {failure}") from None
    if trust.format != 1:
        raise Corrupt(f"{TRUST} has format {trust.format}; this release reads 1")
    if not trust.roots:
        raise Corrupt(f"{TRUST} names no root")
    for root in trust.roots:
        from_pem(root)
    return trust


# Files.


def save_identity(directory: Path, key_pem: str, certificate_pem: str, *, sys: Syscalls = _OS) -> None:
    """Put a key and its certificate in place, whole and durable. Blocks. Raises: OSError."""
    _save(directory, IDENTITY, (key_pem + certificate_pem).encode(), sys)


def save_trust(directory: Path, trust: Trust, *, sys: Syscalls = _OS) -> None:
    """Blocks. Raises: OSError."""
    _save(directory, TRUST, encode_trust(trust), sys)


def _save(directory: Path, name: str, content: bytes, sys: Syscalls) -> None:
    place = str(directory / name)
    write_new(place + ".new", content, sys)  # Mode 0600 from its first byte on.
    sys.rename(place + ".new", place)
    sync_directory(str(directory), sys)


class _Own(NamedTuple):
    certificate: x509.Certificate
    name: Name


class Credentials:
    """One machine's key, certificate and trust, and the contexts that follow them.

    Args:
        directory: holds identity.pem and trust.json.

    Raises: Corrupt, with the file and what is wrong with it.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.reloads = 0
        self.failures = 0  # Of taking up new files: what was before goes on being used.
        self._clock = clock
        self._contexts: weakref.WeakSet[PeerContext] = weakref.WeakSet()
        self._storing = threading.Lock()
        self._stored = -1  # Number of the newest trust that `store_trust` saved.
        self._stamp = self._read_stamp()
        self._own, self.trust = self._read()
        self._note_trust()

    @property
    def name(self) -> Name:
        return self._own.name

    @property
    def certificate(self) -> x509.Certificate:
        return self._own.certificate

    @property
    def ended(self) -> bool:
        """Whether our certificate has ended: nobody takes it any more, and it cannot be renewed."""
        return self._clock() >= self._own.certificate.not_valid_after_utc.timestamp()

    @property
    def renewal_due(self) -> bool:
        """Whether our certificate is two thirds through its life, or of a root that no longer signs."""
        certificate = self._own.certificate
        return self._clock() >= renew_at(certificate) or common_name(certificate.issuer) != self.trust.signer

    # Contexts.

    def server_context(self, *roles: str, strangers: bool = False) -> ssl.SSLContext:
        """For a listener that takes members with one of `roles`.

        Args:
            strangers: take connections without a certificate too. Then every request must ask `peer_of`
                who sent it: None is a stranger.
        """

        def judge(peer: Peer | None) -> None:
            if peer is None:
                if not strangers:
                    raise WrongPeer("a certificate of the cluster is needed")
                return
            self._check(peer, roles)

        context = self._context(ssl.PROTOCOL_TLS_SERVER, judge)
        context.verify_mode = ssl.CERT_OPTIONAL if strangers else ssl.CERT_REQUIRED
        context.num_tickets = 0  # Nobody comes back with a session from before it was removed.
        return context

    def client_context(self, role: str, id_: bytes | None = None) -> ssl.SSLContext:
        """For connections to one member (its id), or to any one of a role."""

        def judge(peer: Peer | None) -> None:
            if peer is None:
                raise WrongPeer("the other end has no certificate of the cluster")
            self._check(peer, (role,))
            if id_ is not None and peer.name.id != id_:
                raise WrongPeer(f"{role} {id_.hex()[:8]} was expected here, this is {peer.name}")

        return self._context(ssl.PROTOCOL_TLS_CLIENT, judge)

    def _context(self, protocol: int, judge: "Judge") -> "PeerContext":
        context = PeerContext(protocol)
        context.judge = judge
        self._load(context)
        self._contexts.add(context)
        return context

    def _load(self, context: "PeerContext") -> None:
        context.load_cert_chain(self.directory / IDENTITY)
        # What was a root once stays one for the context; `_check` knows whether it still is.
        context.load_verify_locations(cadata="".join(self.trust.roots))

    # Verdicts.

    def allows(self, peer: Peer) -> bool:
        """Whether an open connection's other end is still a member, with a certificate that still holds."""
        return self._objection(peer) == ""

    def _check(self, peer: Peer, roles: tuple[str, ...]) -> None:
        words = self._objection(peer)
        if not words and peer.name.role not in roles:
            words = f"{peer.name} is not what this connection is for ({' or '.join(roles)})"
        if words:
            raise WrongPeer(words)

    def _objection(self, peer: Peer) -> str:
        name = peer.name
        if name.cluster != self._own.name.cluster:
            return f"{name} belongs to another cluster"
        if name.id in self._denied:
            return f"{name} was removed from the cluster"
        if peer.issuer not in self._issuers:
            return f"the certificate of {name} is of a root that is trusted no longer"
        if self._clock() >= peer.ends:
            return f"the certificate of {name} has expired"
        return ""

    # Taking up what is new.

    def store_trust(self, trust: Trust) -> bool:
        """Save a newer trust, durably; `reload` takes it up. Whether it was newer. Blocks.

        Raises: Corrupt if it is another cluster's, or damaged; OSError.
        """
        if trust.cluster != self.trust.cluster:
            raise Corrupt("this trust is another cluster's")
        decode_trust(encode_trust(trust))
        with self._storing:
            if trust.number <= max(self.trust.number, self._stored):
                return False
            save_trust(self.directory, trust)
            self._stored = trust.number
        return True

    async def take_trust(self, trust: Trust) -> bool:
        """Save and follow a newer trust. Whether it was newer. Raises: Corrupt, OSError."""
        newer = await asyncio.to_thread(self.store_trust, trust)
        if newer:
            self.reload()
        return newer

    def reload(self) -> bool:
        """Take up the files as they are now. Returns: whether that worked.

        Blocks for a millisecond, and where key or roots are others for a third of one for each context.
        """
        stamp = self._read_stamp()
        try:
            own, trust = self._read()
            if own.name != self._own.name:
                raise Corrupt(f"{self.directory / IDENTITY} is another member's now")
            if trust.number < self.trust.number:
                raise Corrupt(f"{self.directory / TRUST} is older than what is followed")
            probe = PeerContext(ssl.PROTOCOL_TLS_CLIENT)
            probe.load_cert_chain(self.directory / IDENTITY)  # Before it goes where it is used.
            same = own.certificate == self._own.certificate and trust.roots == self.trust.roots
            self._own, self.trust = own, trust
            self._note_trust()
            for context in [] if same else list(self._contexts):
                self._load(context)
        except (Corrupt, OSError) as failure:  # ssl.SSLError is an OSError.
            self.failures += 1
            self._stamp = stamp
            log.warning("new credentials are not taken up", extra={"failure": str(failure)})
            return False
        self._stamp = stamp
        self.reloads += 1
        return True

    def reload_if_changed(self) -> bool:
        """Whether the files had changed and were taken up. A change that fails waits for the next change."""
        return self._read_stamp() != self._stamp and self.reload()

    async def watch(self, every_seconds: float = WATCH_SECONDS) -> None:
        """Look at the files for ever. Run it as a task; cancel it to end."""
        while True:
            await asyncio.sleep(every_seconds)
            self.reload_if_changed()

    def _note_trust(self) -> None:
        self._issuers = frozenset(common_name(from_pem(root).subject) for root in self.trust.roots)
        self._denied = frozenset(bytes.fromhex(text) for text in self.trust.denied)

    def _read(self) -> tuple[_Own, Trust]:
        place = self.directory / IDENTITY
        try:
            text = read_whole(str(place), 64 * 1024, _OS).decode()
            trust = decode_trust(read_whole(str(self.directory / TRUST), TRUST_SIZE_MAX, _OS))
        except FileNotFoundError as failure:
            raise Corrupt(f"{failure.filename or place} is not there: join a cluster first") from None
        except (OSError, ValueError) as failure:
            raise Corrupt(f"{self.directory}: {failure}") from None
        begin = text.find("-----BEGIN CERTIFICATE-----")
        try:
            key, certificate = key_from_pem(text[: max(begin, 0)]), from_pem(text[begin:])
            name = name_of(certificate)
        except Corrupt as failure:
            raise Corrupt(f"{place}: {failure}") from None
        if key.public_key() != certificate.public_key():
            raise Corrupt(f"{place}: the certificate is of another key")
        if name.cluster.hex() != trust.cluster:
            raise Corrupt(f"{place}: the certificate is of another cluster than {TRUST}")
        return _Own(certificate, name), trust

    def _read_stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes with the files' content. (0, 0, 0) while a file is missing."""
        stamps = []
        for name in (IDENTITY, TRUST):
            try:
                found = os.stat(self.directory / name)
                stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)


def joining_context(cluster: bytes, roots: str) -> ssl.SSLContext:
    """For one who has no certificate yet: connections to a gateway of `cluster`, under `roots` (PEM)."""

    def judge(peer: Peer | None) -> None:
        if peer is None or peer.name.cluster != cluster or peer.name.role != "gateway":
            raise WrongPeer("this is no gateway of the cluster that the join token is for")

    context = PeerContext(ssl.PROTOCOL_TLS_CLIENT)
    context.judge = judge
    context.load_verify_locations(cadata=roots)
    return context


def unverified_context() -> ssl.SSLContext:
    """For asking a listener for its root's certificate, which is then held against a fingerprint. Whatever
    comes over such a connection proves nothing by itself, and nothing secret may be sent."""
    context = PeerContext(ssl.PROTOCOL_TLS_CLIENT)
    context.judge = None
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_of(connection: Any) -> Peer | None:
    """Who is at the other end of an asyncio transport; None for one without a certificate, or without TLS."""
    checked = connection.get_extra_info("ssl_object") if connection is not None else None
    peer = getattr(checked, "peer", None)
    return peer if isinstance(peer, Peer) else None


Judge = Callable[[Peer | None], None]  # Raises: WrongPeer.


class PeerContext(ssl.SSLContext):
    """TLS 1.3 only; connections made of it are checked by `judge` within their handshake."""

    judge: Judge | None  # None: whoever it is.

    def __new__(cls, protocol: int) -> "PeerContext":
        context: PeerContext = super().__new__(cls, protocol)
        return context

    def __init__(self, protocol: int) -> None:
        self.sslobject_class = _CheckedObject
        self.sslsocket_class = _CheckedSocket
        self.judge = _refuse
        self.minimum_version = self.maximum_version = ssl.TLSVersion.TLSv1_3
        self.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        self.set_alpn_protocols(["http/1.1"])
        if protocol == ssl.PROTOCOL_TLS_CLIENT:
            self.check_hostname = False  # The name in the certificate decides, not where we found it.
        self.verify_mode = ssl.CERT_REQUIRED
        self.verify_flags |= ssl.VERIFY_X509_STRICT


def _refuse(peer: Peer | None) -> None:
    raise WrongPeer("this context has no judge")


def _judged(connection: "_CheckedObject | _CheckedSocket") -> None:
    context = connection.context
    assert isinstance(context, PeerContext)
    connection.peer = None
    if context.judge is None:
        return
    connection.peer = _peer(connection.getpeercert())
    context.judge(connection.peer)


class _CheckedObject(ssl.SSLObject):
    peer: Peer | None = None

    def do_handshake(self) -> None:
        super().do_handshake()
        _judged(self)


class _CheckedSocket(ssl.SSLSocket):
    peer: Peer | None = None

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _judged(self)


def _peer(found: Any) -> Peer | None:
    """What ssl says of a certificate that it has verified. Raises: WrongPeer if it names no member."""
    if not found:
        return None
    names = found.get("subjectAltName", ())
    name = parse_uri(names[0][1]) if len(names) == 1 and names[0][0] == "URI" else None
    issuers = [value for part in found.get("issuer", ()) for kind, value in part if kind == "commonName"]
    if name is None or len(issuers) != 1:
        raise WrongPeer("the certificate names no member of a cluster")
    ends = float(ssl.cert_time_to_seconds(found["notAfter"]))
    return Peer(name, f"{int(found['serialNumber'], 16):x}", issuers[0], ends)


def is_hex_id(text: str) -> bool:
    """Whether `text` is an id as names carry it."""
    with contextlib.suppress(ValueError):
        return len(bytes.fromhex(text)) == ID_SIZE and text == text.lower()
    return False
