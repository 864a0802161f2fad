"""Who may talk to whom within a cluster, and what a join token is worth. Names first."""

import asyncio
import contextlib
import dataclasses
import http.client
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from objstore.errors import BadArgument, Corrupt, Denied
from objstore.node import authority as ca
from objstore.node import tls
from objstore.node.authority import GATEWAY, NODE, Authority, Name
from objstore.node.tls import Credentials, Peer, Trust, WrongPeer, peer_of

CLUSTER = bytes(range(16))
OTHER = bytes(reversed(range(16)))
MASTER = b"m" * 32
US = 1_000_000
HOUR_US = 3_600 * US
WAIT_S = 20.0  # A starved machine; milliseconds otherwise.


def now_us() -> int:
    return time.time_ns() // 1000


def authority_of(cluster: bytes = CLUSTER) -> Authority:
    return ca.make_authority(cluster, 7, now_us())


def trust_of(authority: Authority, number: int = 1, **changes: Any) -> Trust:
    trust = Trust(
        cluster=authority.cluster.hex(),
        number=number,
        roots=[root.pem for root in authority.roots],
        signer=authority.signing.name,
    )
    return msgspec.structs.replace(trust, **changes)


def member(
    directory: Path,
    authority: Authority,
    role: str,
    id_: bytes = b"\1" * 16,
    *,
    issued_us: int | None = None,
    days: float = 90,
    cluster: bytes | None = None,
    signed_by: Authority | None = None,
) -> Path:
    """A directory of credentials: `signed_by` another authority, it trusts `authority` all the same."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ca.make_key()
    signer = signed_by or authority
    if cluster is not None:  # A name that the signer would never write.
        signer = dataclasses.replace(signer, cluster=cluster)
    name = Name(signer.cluster, role, id_)
    certificate = signer.issue(key.public_key(), name, issued_us or now_us(), days=days)
    tls.save_identity(directory, ca.key_to_pem(key), ca.to_pem(certificate))
    tls.save_trust(directory, trust_under(authority, signer))
    return directory


def trust_under(authority: Authority, signer: Authority) -> Trust:
    return msgspec.structs.replace(trust_of(authority), cluster=signer.cluster.hex())


@contextlib.asynccontextmanager
async def listening(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[Peer | None]]]:
    """A listener that notes who came and answers `ok`; (port, who came)."""
    came: list[Peer | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if await reader.readline():
                came.append(peer_of(writer.transport))
                writer.write(b"ok\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], came
    finally:
        server.close()


async def ask(port: int, context: ssl.SSLContext) -> bytes:
    """One line from the listener; b"" if it hung up. Raises what a refused handshake raises."""
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(b"hello\n")
            with contextlib.suppress(OSError):
                return await reader.readline()
            return b""
        finally:
            writer.close()


@pytest.fixture
def cluster(tmp_path: Path) -> tuple[Authority, Path]:
    authority = authority_of()
    member(tmp_path / "gateway", authority, GATEWAY, b"\1" * 16)
    member(tmp_path / "node", authority, NODE, b"\2" * 16)
    return authority, tmp_path


# Connections.


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_gateway_and_a_node_of_one_cluster_know_each_other(
    cluster: tuple[Authority, Path], loop: str
) -> None:
    _, root = cluster
    gateway, node = Credentials(root / "gateway"), Credentials(root / "node")

    async def meet() -> None:
        async with listening(node.server_context(GATEWAY)) as (port, came):
            assert await ask(port, gateway.client_context(NODE, b"\2" * 16)) == b"ok\n"
            assert await ask(port, gateway.client_context(NODE)) == b"ok\n"
            with pytest.raises(WrongPeer, match="was expected here"):
                await ask(port, gateway.client_context(NODE, b"\3" * 16))
            assert await ask(port, node.client_context(NODE)) == b""
        assert [peer.name for peer in came if peer] == [gateway.name] * 2
        assert all(peer and node.allows(peer) for peer in came)

    if loop == "uvloop":
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(meet())
    else:
        asyncio.run(meet())


async def test_the_other_end_is_checked_before_a_byte_of_the_request_is_sent(
    cluster: tuple[Authority, Path],
) -> None:
    _, root = cluster
    gateway, node = Credentials(root / "gateway"), Credentials(root / "node")
    async with listening(node.server_context(GATEWAY)) as (port, came):
        with pytest.raises(WrongPeer, match="03030303 was expected here, this is node 02020202"):
            await ask(port, gateway.client_context(NODE, b"\3" * 16))
        with pytest.raises(WrongPeer, match="not what this connection is for"):
            await ask(port, gateway.client_context(GATEWAY))
    assert came == []


async def test_a_nodes_certificate_is_no_gateways(cluster: tuple[Authority, Path]) -> None:
    _, root = cluster
    node = Credentials(root / "node")
    async with listening(node.server_context(GATEWAY)) as (port, came):
        assert await ask(port, node.client_context(NODE)) == b""
    assert came == []


@pytest.mark.parametrize("what", ["another authority", "its own cluster, signed by ours", "a self-made root"])
async def test_a_gateway_of_another_cluster_is_refused_by_both_ends(
    cluster: tuple[Authority, Path], what: str
) -> None:
    authority, root = cluster
    node = Credentials(root / "node")
    if what == "another authority":
        stranger = member(root / "x", authority_of(OTHER), GATEWAY)
    elif what == "a self-made root":  # Of our cluster's name, and trusting our root.
        stranger = member(root / "x", authority, GATEWAY, signed_by=authority_of())
    else:
        stranger = member(root / "x", authority, GATEWAY, cluster=OTHER)
    guest = Credentials(stranger)
    async with listening(node.server_context(GATEWAY)) as (port, came):
        with contextlib.suppress(ssl.SSLError):
            assert await ask(port, guest.client_context(NODE)) == b""
    assert came == []
    # And the other way round: the stranger listens, our gateway calls.
    gateway = Credentials(root / "gateway")
    place = root / "x-node"
    if what == "another authority":
        member(place, authority_of(OTHER), NODE, b"\2" * 16)
    elif what == "a self-made root":
        member(place, authority, NODE, b"\2" * 16, signed_by=authority_of())
    else:
        member(place, authority, NODE, b"\2" * 16, cluster=OTHER)
    async with listening(Credentials(place).server_context(GATEWAY)) as (port, came):
        with pytest.raises(ssl.SSLError):
            await ask(port, gateway.client_context(NODE, b"\2" * 16))
    assert came == []


async def test_an_expired_certificate_opens_nothing(cluster: tuple[Authority, Path]) -> None:
    authority, root = cluster
    long_ago = now_us() - 100 * 24 * HOUR_US
    old = Credentials(member(root / "old", authority, GATEWAY, issued_us=long_ago))
    node = Credentials(root / "node")
    async with listening(node.server_context(GATEWAY)) as (port, came):
        with contextlib.suppress(ssl.SSLError):
            assert await ask(port, old.client_context(NODE)) == b""
        assert came == []
    async with listening(
        Credentials(member(root / "old-node", authority, NODE, issued_us=long_ago)).server_context(GATEWAY)
    ) as (port, came):
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await ask(port, Credentials(root / "gateway").client_context(NODE))
        assert came == []


async def test_a_certificate_that_expires_while_a_connection_is_open_ends_what_it_may_do(
    cluster: tuple[Authority, Path],
) -> None:
    _, root = cluster
    clock = [time.time()]
    node = Credentials(root / "node", clock=lambda: clock[0])
    async with listening(node.server_context(GATEWAY)) as (port, came):
        await ask(port, Credentials(root / "gateway").client_context(NODE))
    [peer] = came
    assert peer is not None
    assert node.allows(peer)
    clock[0] += 91 * 86_400
    assert not node.allows(peer)


@pytest.mark.parametrize("kind", ["plain HTTP", "TLS 1.2", "no certificate"])
async def test_what_is_not_mutual_tls_13_gets_no_answer(cluster: tuple[Authority, Path], kind: str) -> None:
    _, root = cluster
    node, gateway = Credentials(root / "node"), Credentials(root / "gateway")
    async with listening(node.server_context(GATEWAY)) as (port, came):
        if kind == "plain HTTP":
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v1/state HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(WAIT_S):
                answer = b""
                with contextlib.suppress(OSError):
                    answer = await reader.read(1000)
            assert b"HTTP" not in answer
            writer.close()
        elif kind == "TLS 1.2":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.load_verify_locations(cadata="".join(gateway.trust.roots))
            context.load_cert_chain(root / "gateway" / tls.IDENTITY)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await ask(port, context)
        else:
            context = tls.joining_context(CLUSTER, "".join(gateway.trust.roots))
            with contextlib.suppress(ssl.SSLError):
                assert await ask(port, context) == b""
    assert came == []


async def test_a_listener_for_strangers_says_who_is_one(cluster: tuple[Authority, Path]) -> None:
    authority, root = cluster
    gateway, node = Credentials(root / "gateway"), Credentials(root / "node")
    async with listening(gateway.server_context(NODE, GATEWAY, strangers=True)) as (port, came):
        assert await ask(port, tls.joining_context(CLUSTER, authority.signing.pem)) == b"ok\n"
        assert await ask(port, node.client_context(GATEWAY)) == b"ok\n"
        forged = Credentials(member(root / "x", authority, NODE, signed_by=authority_of()))
        with contextlib.suppress(ssl.SSLError):
            assert await ask(port, forged.client_context(GATEWAY)) == b""
    assert [peer and peer.name for peer in came] == [None, node.name]


async def test_one_who_joins_refuses_a_gateway_that_is_not_of_the_tokens_cluster(
    cluster: tuple[Authority, Path],
) -> None:
    authority, root = cluster
    roots = authority.signing.pem
    async with listening(Credentials(root / "gateway").server_context(NODE, strangers=True)) as (port, came):
        with pytest.raises(WrongPeer, match="no gateway of the cluster"):
            await ask(port, tls.joining_context(OTHER, roots))
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(port, tls.joining_context(CLUSTER, authority_of().signing.pem))
    # A node of the right cluster, listening where the gateway should: it learns no token either.
    async with listening(Credentials(root / "node").server_context(GATEWAY, strangers=True)) as (port, came):
        with pytest.raises(WrongPeer, match="no gateway of the cluster"):
            await ask(port, tls.joining_context(CLUSTER, roots))
    assert came == []


async def test_a_removed_member_is_refused_at_its_next_connection_and_its_next_request(
    cluster: tuple[Authority, Path],
) -> None:
    authority, root = cluster
    gateway, node = Credentials(root / "gateway"), Credentials(root / "node")
    async with listening(node.server_context(GATEWAY)) as (port, came):
        assert await ask(port, gateway.client_context(NODE)) == b"ok\n"
        [peer] = came
        assert peer is not None
        assert await node.take_trust(trust_of(authority, 2, denied=[gateway.name.id.hex()]))
        assert not node.allows(peer)
        assert await ask(port, gateway.client_context(NODE)) == b""
        assert await node.take_trust(trust_of(authority, 3))
        assert await ask(port, gateway.client_context(NODE)) == b"ok\n"
        # A client refuses a removed node just so.
        await gateway.take_trust(trust_of(authority, 2, denied=[node.name.id.hex()]))
        with pytest.raises(WrongPeer, match="was removed"):
            await ask(port, gateway.client_context(NODE))


async def test_an_older_trust_never_replaces_a_newer_one(cluster: tuple[Authority, Path]) -> None:
    authority, root = cluster
    node = Credentials(root / "node")
    assert await node.take_trust(trust_of(authority, 5, denied=["07" * 16]))
    assert not await node.take_trust(trust_of(authority, 5))
    assert not await node.take_trust(trust_of(authority, 4))
    assert Credentials(root / "node").trust.denied == ["07" * 16]
    with pytest.raises(Corrupt, match="another cluster's"):
        await node.take_trust(trust_of(authority_of(OTHER), 6))


async def test_renewed_certificates_and_roots_are_taken_up_without_a_restart(
    cluster: tuple[Authority, Path],
) -> None:
    authority, root = cluster
    gateway, node = Credentials(root / "gateway"), Credentials(root / "node")
    server, client = node.server_context(GATEWAY), gateway.client_context(NODE, b"\2" * 16)

    def renew(who: Credentials, by: Authority) -> None:
        key = ca.make_key()
        issued = by.issue(key.public_key(), who.name, now_us())
        tls.save_identity(who.directory, ca.key_to_pem(key), ca.to_pem(issued))
        assert who.reload_if_changed()

    async with listening(server) as (port, came):
        assert await ask(port, client) == b"ok\n"
        renew(gateway, authority)
        renew(node, authority)
        assert await ask(port, client) == b"ok\n"
        serials = {peer.serial for peer in came if peer}
        assert len(serials) == 2, "the second connection came with the second certificate"

        # Another root: first trusted by all, then signing, then alone. At no step is anyone refused.
        both = authority.with_root(ca.make_root(CLUSTER, now_us()))
        for who in (gateway, node):
            assert await who.take_trust(trust_of(both, 2))
            assert await ask(port, client) == b"ok\n"
            assert not who.renewal_due
        signing = both.signing_newest()
        for who in (gateway, node):
            assert await who.take_trust(trust_of(signing, 3))
            assert who.renewal_due
            assert await ask(port, client) == b"ok\n"
        old_gateway = (root / "gateway" / tls.IDENTITY).read_bytes()
        for who in (gateway, node):
            renew(who, signing)
            assert await ask(port, client) == b"ok\n"
        alone = signing.without_oldest()
        for who in (node, gateway):
            assert await who.take_trust(trust_of(alone, 4))
            assert await ask(port, client) == b"ok\n"

        # What the old root signed is worth nothing now, though the context once learned that root.
        (root / "late").mkdir()
        (root / "late" / tls.IDENTITY).write_bytes(old_gateway)
        tls.save_trust(root / "late", trust_of(alone, 4))
        before = len(came)
        assert await ask(port, Credentials(root / "late").client_context(NODE)) == b""
        assert len(came) == before


def test_damaged_credentials_are_named_and_never_replace_what_works(
    cluster: tuple[Authority, Path],
) -> None:
    authority, root = cluster
    node = Credentials(root / "node")
    good = (root / "node" / tls.IDENTITY).read_bytes()
    for bad in (
        b"",
        good[:200],
        good.replace(b"CERTIFICATE", b"CERTAINTY"),
        (root / "gateway" / tls.IDENTITY).read_bytes(),
    ):
        (root / "node" / tls.IDENTITY).write_bytes(bad)
        assert not node.reload_if_changed()
    assert node.failures == 4
    (root / "node" / tls.IDENTITY).write_bytes(good)
    assert node.reload_if_changed()
    (root / "node" / tls.TRUST).write_bytes(b"{}")
    assert not node.reload_if_changed()
    with pytest.raises(Corrupt, match="is damaged"):
        Credentials(root / "node")
    with pytest.raises(Corrupt, match="join a cluster first"):
        Credentials(root / "nobody")
    mixed = member(root / "mixed", authority, NODE)
    key = ca.key_to_pem(ca.make_key())
    tls.save_identity(mixed, key, ca.to_pem(node.certificate))
    with pytest.raises(Corrupt, match="of another key"):
        Credentials(mixed)


def test_no_key_lies_in_a_file_that_others_may_read(cluster: tuple[Authority, Path]) -> None:
    _, root = cluster
    for path in root.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_blocking_client_checks_the_other_end_too(cluster: tuple[Authority, Path]) -> None:
    _, root = cluster
    gateway, node = Credentials(root / "gateway"), Credentials(root / "node")
    came: list[bytes] = []
    with serving_blocking(gateway.server_context(NODE, strangers=True), came) as port:
        for context, expected in (
            (node.client_context(GATEWAY), b"hello"),
            (tls.joining_context(CLUSTER, "".join(node.trust.roots)), b"hello"),
            (tls.unverified_context(), b"hello"),
        ):
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=WAIT_S, context=context)
            connection.request("GET", "/")
            assert connection.getresponse().read() == expected
            connection.close()
        count = len(came)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=WAIT_S, context=node.client_context(NODE)
        )
        with pytest.raises(WrongPeer):
            connection.request("GET", "/")
        assert len(came) == count


@contextlib.contextmanager
def serving_blocking(context: ssl.SSLContext, came: list[bytes]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                plain, _ = listener.accept()
            except TimeoutError:
                continue
            plain.settimeout(WAIT_S)
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as one:
                if request := one.recv(4096):
                    came.append(request)
                    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        thread.join()
        listener.close()


# Certificates and requests.


def test_a_certificate_says_one_name_and_nothing_that_it_was_not_asked_to() -> None:
    authority = authority_of()
    name = Name(CLUSTER, NODE, b"\5" * 16)
    issued = authority.issue(ca.make_key().public_key(), name, now_us())
    assert ca.name_of(issued) == name
    assert issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    life = issued.not_valid_after_utc - issued.not_valid_before_utc
    assert life.total_seconds() == 90 * 86_400 + 3_600
    issued.verify_directly_issued_by(authority.signing.certificate)


def test_a_member_cannot_sign_for_others(tmp_path: Path) -> None:
    authority = authority_of()
    key = ca.make_key()
    issued = authority.issue(key.public_key(), Name(CLUSTER, NODE, b"\2" * 16), now_us())
    upstart = Authority(cluster=CLUSTER, roots=(ca.Root(issued, key),), checksum_secret=0)
    forged = Credentials(member(tmp_path / "x", authority, GATEWAY, signed_by=upstart))
    # With the node's certificate in the chain, so that the way to the root is complete.
    place = tmp_path / "x" / tls.IDENTITY
    place.write_text(place.read_text() + ca.to_pem(issued))
    node = Credentials(member(tmp_path / "node", authority, NODE))

    async def try_it() -> None:
        async with listening(node.server_context(GATEWAY)) as (port, came):
            with contextlib.suppress(ssl.SSLError):
                assert await ask(port, forged.client_context(NODE)) == b""
        assert came == []

    asyncio.run(try_it())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("x" * 5_000, "too long"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "cannot be read"),
    ],
)
def test_a_request_that_is_none_is_a_bad_argument(text: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        ca.check_request(text)


def test_a_request_must_be_of_p256_and_signed_by_its_own_key() -> None:
    key = ca.make_key()
    assert ca.key_digest(ca.check_request(ca.make_request(key))) == ca.key_digest(key.public_key())
    other = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(other, hashes.SHA256())
    from cryptography.hazmat.primitives.serialization import Encoding

    with pytest.raises(BadArgument, match="P-256"):
        ca.check_request(request.public_bytes(Encoding.PEM).decode())
    der = bytearray(x509.load_pem_x509_csr(ca.make_request(key).encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    with contextlib.suppress(ValueError):  # A flipped bit may end the signature's own form.
        damaged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
        with pytest.raises(BadArgument):
            ca.check_request(damaged)


# The bundle.


def test_the_bundle_opens_under_its_master_key_only_and_shows_no_secret() -> None:
    authority = authority_of().with_root(ca.make_root(CLUSTER, now_us()))
    content = ca.encode_authority(authority, MASTER)
    again = ca.decode_authority(content, MASTER)
    assert [root.fingerprint for root in again.roots] == [root.fingerprint for root in authority.roots]
    assert (again.signer, again.number, again.checksum_secret) == (0, 2, 7)
    assert ca.key_to_pem(again.roots[1].key) == ca.key_to_pem(authority.roots[1].key)
    with pytest.raises(Corrupt, match="another master key"):
        ca.decode_authority(content, b"n" * 32)
    scalar = authority.roots[0].key.private_numbers().private_value.to_bytes(32, "big")
    import base64

    for form in (scalar, scalar.hex().encode(), base64.b64encode(scalar), MASTER):
        assert form not in content
    assert str(authority.roots[0].key.private_numbers().private_value) not in repr(authority)
    assert "checksum_secret" not in repr(authority)


def test_a_key_of_one_root_does_not_open_in_anothers_place() -> None:
    authority = authority_of().with_root(ca.make_root(CLUSTER, now_us()))
    bundle = msgspec.json.decode(ca.encode_authority(authority, MASTER))
    keys = [root["key"] for root in bundle["roots"]]
    for root, key in zip(bundle["roots"], reversed(keys), strict=True):
        root["key"] = key
    with pytest.raises(Corrupt):
        ca.decode_authority(msgspec.json.encode(bundle), MASTER)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"cluster": "x"}, {"signer": 2}, {"roots": []}, {"more": 1}]
)
def test_a_bundle_that_this_release_does_not_know_is_refused_in_words(change: dict[str, Any]) -> None:
    bundle = msgspec.json.decode(ca.encode_authority(authority_of(), MASTER))
    with pytest.raises(Corrupt, match="bundle"):
        ca.decode_authority(msgspec.json.encode(bundle | change), MASTER)


# Join tokens.


def test_a_token_says_where_to_go_and_whom_to_trust_and_is_good_for_an_hour() -> None:
    authority, now = authority_of(), now_us()
    text = authority.token(NODE, ["10.0.0.1:9002", "gw.example:9002"], now)
    assert text.isprintable()
    assert " " not in text
    read = ca.read_token(text)
    assert read == authority.check_token(text, now)
    assert read.fingerprint == authority.signing.fingerprint
    assert read.addresses == ("10.0.0.1:9002", "gw.example:9002")
    authority.check_token(text, now + HOUR_US - US)
    with pytest.raises(Denied, match="expired"):
        authority.check_token(text, now + HOUR_US)


def test_a_token_of_another_cluster_or_of_another_authority_is_refused() -> None:
    authority, now = authority_of(), now_us()
    with pytest.raises(Denied, match="another cluster's"):
        authority.check_token(authority_of(OTHER).token(NODE, ["a:1"], now), now)
    with pytest.raises(Denied, match="not made by this cluster's authority"):
        authority.check_token(authority_of().token(NODE, ["a:1"], now), now)


def test_a_token_outlives_the_change_of_the_root_as_long_as_its_root_is_trusted() -> None:
    authority, now = authority_of(), now_us()
    text = authority.token(NODE, ["a:1"], now)
    changed = authority.with_root(ca.make_root(CLUSTER, now)).signing_newest()
    changed.check_token(text, now)
    with pytest.raises(Denied):
        changed.without_oldest().check_token(text, now)


_FIXED = authority_of()
_TEXT = _FIXED.token(NODE, ["gateway:9002"], now_us())


@given(at=st.integers(8, len(_TEXT) - 2), other=st.sampled_from("AZaz09-_"))
def test_no_character_of_a_token_can_be_changed(at: int, other: str) -> None:
    changed = _TEXT[:at] + other + _TEXT[at + 1 :]
    if changed != _TEXT:
        with pytest.raises(Denied):
            _FIXED.check_token(changed, now_us())


_LETTERS = st.text("AZaz09-_", min_size=100, max_size=300)


@given(text=st.one_of(st.text(max_size=300), _LETTERS.map(lambda letters: "osjoin1." + letters)))
def test_whatever_is_given_as_a_token_is_refused_in_words(text: str) -> None:
    with pytest.raises(Denied):
        _FIXED.check_token(text, now_us())
    with contextlib.suppress(BadArgument):
        ca.read_token(text)


@pytest.mark.parametrize(
    "text",
    [
        "objstore://" + "0" * 32 + "/node/" + "0" * 31,
        "objstore://" + "0" * 32 + "/admin/" + "0" * 32,
        "objstore://" + "A" * 32 + "/node/" + "0" * 32,
        "OBJSTORE://" + "0" * 32 + "/node/" + "0" * 32,
        "objstore://" + "0" * 32 + "/node/" + "0" * 32 + "\n",
        "objstore://" + "0" * 32 + "/node/" + "0" * 32 + "/gateway/" + "0" * 32,
        "objstore://" + "٠" * 32 + "/node/" + "0" * 32,
    ],
)
def test_a_name_is_read_exactly_or_not_at_all(text: str) -> None:
    assert ca.parse_uri(text) is None
    good = Name(CLUSTER, GATEWAY, OTHER)
    assert ca.parse_uri(good.uri) == good
