"""What a machine asks of its cluster's gateways: to be taken in, numbers for its disks, another certificate.

Joining, step by step; a crash between two of them is mended by doing it again:

    1  a key of our own, kept in joining.key until it has a certificate: a lost answer is asked for again
    2  the gateway's roots, over a connection that proves nothing yet; one must have the token's fingerprint
    3  a connection under that root, to a gateway of the token's cluster, or nothing more is sent
    4  token and signing request there; certificate and trust back; both are checked, then put in place

Blocking, each exchange within a limit: a supervisor calls it before it forks, a server in a thread.
"""

import contextlib
import functools
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from objstore.config import host_and_port
from objstore.errors import BadArgument, Corrupt
from objstore.node.authority import (
    GATEWAY,
    Name,
    fingerprint,
    from_pem,
    key_from_pem,
    key_to_pem,
    make_key,
    make_request,
    name_of,
    read_token,
)
from objstore.node.identity import read_whole
from objstore.node.membership import (
    ANSWER_SIZE_MAX,
    JOIN_PATH,
    REGISTER_PATH,
    RENEW_PATH,
    Document,
    JoinRequest,
    Machine,
    Refusal,
    Registered,
    Registration,
    Renewed,
    RenewRequest,
    Roots,
    Welcome,
    check_address,
    decode,
)
from objstore.node.syscalls import RealSyscalls
from objstore.node.tls import (
    Credentials,
    Trust,
    WrongPeer,
    joining_context,
    save_identity,
    save_trust,
    unverified_context,
)
from objstore.processes.cluster import CannotStart, save

LIMIT_S: Final = 10.0  # For one step of an exchange: connecting, sending, the next bytes of the answer.
WHOLE_LIMIT_S: Final = 30.0  # For a whole exchange.
PATIENCE_S: Final = 30.0  # With a gateway that says: later.
PAUSE_S: Final = 0.5
KEY_NAME: Final = "joining.key"
OS: Final = RealSyscalls()

T = TypeVar("T")


class CannotJoin(CannotStart):
    """In plain words: why, and what to do."""


class Refused(Exception):
    """The gateway answered with an error."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class NoGateway(Exception):
    """No gateway could be reached. The message says what happened at each address."""


def advertised(listener: socket.socket, given: str) -> str:
    """host:port under which other machines reach a listening socket: as given, else as it is bound."""
    host, port = listener.getsockname()[:2]
    if given:
        given_host, given_port = host_and_port(given)
        return given if given_port else _address(given_host, port)
    if host in ("0.0.0.0", "::"):  # noqa: S104  (Bound by an operator's word.)
        host = socket.gethostname()
    return _address(host, port)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def machine(name: str, address: str, site: str, rack: str) -> Machine:
    """What this machine says of itself. Raises: CannotStart, naming what is wrong."""
    found = Machine(name=name or socket.gethostname()[:63], addresses=[address], site=site, rack=rack)
    try:
        found.check()
    except BadArgument as failure:
        raise CannotStart(str(failure)) from None
    return found


def join(text: str, directory: Path, about: Machine, role: str) -> Name:
    """Become a member with a join token; key, certificate and trust are in `directory` then.

    Args:
        role: NODE or GATEWAY: what this machine is. A token for the other is not used up.

    Raises: CannotJoin.
    """
    try:
        token = read_token(text.strip())
        for address in token.addresses:
            check_address(address)
    except BadArgument as failure:
        raise CannotJoin(f"--join: {failure}") from None
    if token.role != role:
        option = " --gateway" if role == GATEWAY else ""
        raise CannotJoin(
            f"--join: this token is for a {token.role}, and this is a {role}. Nothing was sent, the token is"
            f" still good. One for a {role}: objstore cluster token{option}"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _own_key(directory)
    request = JoinRequest(token=text.strip(), csr=make_request(key), machine=about)
    failures: list[str] = []
    for address in token.addresses:
        try:
            root = _root(address, token.fingerprint)
            # From here on we know whom we talk to.
            context = joining_context(token.cluster, root)
            send = functools.partial(ask, address, context, "POST", JOIN_PATH, request, Welcome)
            welcome = patiently(send)
        except Refused as refused:
            raise CannotJoin(f"{address} refuses: {refused}") from None
        except WrongPeer as failure:
            raise CannotJoin(f"{address}: {failure}. Nothing was sent to it.") from None
        except (OSError, http.client.HTTPException, BadArgument) as failure:
            failures.append(f"{address}: {failure}")
            continue
        certificate = _checked(welcome.certificate, key, welcome.trust)
        name = name_of(certificate)
        if (name.cluster, name.role, name.id.hex()) != (token.cluster, token.role, welcome.id):
            raise CannotJoin(f"{address} gave a certificate for {name.uri}, which was not asked for")
        save_trust(directory, welcome.trust)
        save_identity(directory, key_to_pem(key), welcome.certificate)
        (directory / KEY_NAME).unlink(missing_ok=True)
        return name
    raise CannotJoin("no gateway answers at the join token's addresses:\n  " + "\n  ".join(failures))


def register(credentials: Credentials, request: Registration) -> Registered:
    """Say what this node is and has. Raises: Refused, NoGateway."""
    return call_gateway(credentials, REGISTER_PATH, request, Registered)


def renew(credentials: Credentials) -> None:
    """A new key and certificate in the files of `credentials`, which are to be reloaded then.

    Raises: Refused, NoGateway, OSError, CannotJoin.
    """
    key = make_key()
    renewed = call_gateway(credentials, RENEW_PATH, RenewRequest(csr=make_request(key)), Renewed)
    put_in_place(credentials, key, renewed)


def put_in_place(credentials: Credentials, key: ec.EllipticCurvePrivateKey, renewed: Renewed) -> None:
    """Save a renewed certificate with its key. Raises: OSError, CannotJoin."""
    certificate = _checked(renewed.certificate, key, renewed.trust)
    if name_of(certificate) != credentials.name:
        raise CannotJoin(f"the renewed certificate is for {name_of(certificate).uri}")
    # The trust first: the certificate may be of a root that we do not know yet.
    credentials.store_trust(renewed.trust)
    save_identity(credentials.directory, key_to_pem(key), renewed.certificate)


def call_gateway(credentials: Credentials, path: str, document: Document, kind: type[T]) -> T:
    """POST to the first gateway that answers. Raises: Refused, NoGateway."""
    failures: list[str] = []
    gateways = [member for member in credentials.trust.members if member.role == GATEWAY]
    random.shuffle(gateways)  # Not always the same one, and not always the one that is away.
    for member in gateways:
        context = credentials.client_context(GATEWAY, bytes.fromhex(member.id))
        for address in member.addresses:
            try:
                return ask(address, context, "POST", path, document, kind)
            except (OSError, http.client.HTTPException, BadArgument) as failure:
                failures.append(f"{address}: {failure or type(failure).__name__}")
    raise NoGateway("; ".join(failures) or "this machine knows no gateway of its cluster")


def ask(
    address: str, context: ssl.SSLContext, method: str, path: str, document: Document | None, kind: type[T]
) -> T:
    """One exchange.

    Raises: Refused, OSError (WrongPeer among them), http.client.HTTPException, BadArgument.
    """
    host, port = host_and_port(address)
    connection = http.client.HTTPSConnection(host, port, timeout=LIMIT_S, context=context)
    # The client's own limit is for each piece that comes: one who trickles would never meet it.
    overdue = threading.Timer(WHOLE_LIMIT_S, _hang_up, [connection])
    overdue.daemon = True
    overdue.start()
    try:
        body = None if document is None else msgspec.json.encode(document)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        content = answer.read(ANSWER_SIZE_MAX + 1)
    finally:
        overdue.cancel()
        overdue.join()  # No thread is left when a supervisor forks.
        connection.close()
    if len(content) > ANSWER_SIZE_MAX:
        raise BadArgument("the answer is too long")
    if answer.status >= 400:
        with contextlib.suppress(BadArgument):
            raise Refused(answer.status, decode(content, Refusal).detail)
        raise Refused(answer.status, f"{answer.status} {answer.reason}")
    return decode(content, kind)


def _hang_up(connection: http.client.HTTPSConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # Below TLS: its reader sees the end.


def patiently(call: Callable[[], T]) -> T:
    """Repeat a call that a gateway puts off (503): it is starting, or many ask at once.

    Raises: what the last one raises.
    """
    limit = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except Refused as refused:
            if refused.status != 503 or time.monotonic() >= limit:
                raise
        time.sleep(random.uniform(0.5, 1.5) * PAUSE_S)  # noqa: S311  (Spreads those who wait.)


def _root(address: str, wanted: bytes) -> str:
    """The root with the fingerprint that the token names, as the listener at `address` shows it.

    Raises: CannotJoin if it shows none such: then it is not the gateway that the token came from.
    """
    roots = ask(address, unverified_context(), "GET", JOIN_PATH, None, Roots).roots
    for text in roots[:8]:
        with contextlib.suppress(Corrupt):
            if fingerprint(from_pem(text)) == wanted:
                return text
    raise CannotJoin(
        f"what answers at {address} is not the gateway that made the join token: its authority has another"
        f" fingerprint than {wanted.hex()[:16]}... Either the cluster's authority was renewed since (make"
        " another token), or somebody stands between. Nothing was sent."
    )


def _own_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    place = str(directory / KEY_NAME)
    try:
        return key_from_pem(read_whole(place, 16 * 1024, OS).decode())
    except FileNotFoundError:
        key = make_key()
    except (OSError, ValueError, Corrupt) as failure:
        raise CannotJoin(f"{place} cannot be read ({failure}): remove it") from None
    save(directory, KEY_NAME, key_to_pem(key).encode())
    return key


def _checked(pem: str, key: ec.EllipticCurvePrivateKey, trust: Trust) -> x509.Certificate:
    """A certificate that a gateway gave: for our key, of a root that comes with it. Raises: CannotJoin."""
    try:
        certificate = from_pem(pem)
        if certificate.public_key() != key.public_key():
            raise CannotJoin("the certificate that the gateway gave is for another key")
        if name_of(certificate).cluster.hex() != trust.cluster:
            raise CannotJoin("the certificate that the gateway gave is of another cluster than its trust")
        issued = any(_issued(certificate, from_pem(root)) for root in trust.roots)
    except Corrupt as failure:
        raise CannotJoin(f"the gateway's answer makes no sense: {failure}") from None
    if not issued:
        raise CannotJoin("the certificate that the gateway gave is of no root that it names")
    return certificate


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
