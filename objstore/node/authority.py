"""The cluster's own certificate authority: who belongs to the cluster, and how a machine comes to.

    root      a P-256 key and its certificate of ten years; one, or two while one takes over from the other
    name      objstore://CLUSTER/ROLE/ID, the one URI in a certificate: nothing else says who somebody is
    token     what an operator carries to a new machine: good once, for an hour. It names the root by its
              fingerprint, so that the new machine knows whom it talks to before it sends anything

The bundle (what a gateway keeps in a file and in metadata) holds the roots, their keys and the checksum
secret, these two encrypted under a key derived from the master key of the store.

Pure but for randomness: it knows no file, no socket, no clock. `tls.py` makes contexts of what it issues.

Sources: RFC 5280 (certificates), RFC 5869 (HKDF), RFC 2986 (signing requests).
"""

import contextlib
import datetime
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from objstore.errors import BadArgument, Corrupt, Denied
from objstore.ids import ID_SIZE, random_id

NODE: Final = "node"
GATEWAY: Final = "gateway"
ROLES: Final = (NODE, GATEWAY)

DAY_S: Final = 86_400
ROOT_DAYS: Final = 3_650
CERTIFICATE_DAYS: Final = 90
RENEW_SHARE: Final = 2 / 3  # Of a certificate's life: then it is renewed, with 30 days to notice a failure.
TOKEN_S: Final = 3_600  # An hour: long enough to walk to a machine, too short to lie about.
SKEW_S: Final = 3_600  # A certificate is valid from so much earlier: a machine's clock may be behind.
ROOTS_MAX: Final = 2  # One takes over from the other; the bundle stays under a metadata value's 4,096 bytes.

_TOKEN_PREFIX: Final = "osjoin1."  # noqa: S105  (A format's name.)
_TOKEN: Final = re.compile(r"osjoin1\.([A-Za-z0-9_-]{100,2000})", re.ASCII)
_MAC_SIZE: Final = 32
_NONCE_SIZE: Final = 12
_URI: Final = re.compile(r"objstore://([0-9a-f]{32})/(node|gateway)/([0-9a-f]{32})", re.ASCII)
CSR_SIZE_MAX: Final = 4_096  # Bytes of PEM; ours have 400.


class Name(NamedTuple):
    """Who holds a certificate."""

    cluster: bytes  # 16 bytes.
    role: str  # One of ROLES.
    id: bytes  # 16 bytes, made by the cluster at the join and never reused.

    @property
    def uri(self) -> str:
        return f"objstore://{self.cluster.hex()}/{self.role}/{self.id.hex()}"

    def __str__(self) -> str:
        return f"{self.role} {self.id.hex()[:8]}"


def parse_uri(text: str) -> Name | None:
    """None if it is not one of our names, exactly."""
    match = _URI.fullmatch(text)
    return Name(bytes.fromhex(match[1]), match[2], bytes.fromhex(match[3])) if match else None


@dataclass(frozen=True, slots=True)
class Root:
    """One certificate authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def name(self) -> str:
        """Its subject's common name: unique, so that an issuer's name says which root signed."""
        return common_name(self.certificate.subject)

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.certificate)

    @property
    def pem(self) -> str:
        return to_pem(self.certificate)


class Token(NamedTuple):
    """A join token's content."""

    cluster: bytes
    fingerprint: bytes  # SHA-256 of the root's certificate.
    addresses: tuple[str, ...]  # host:port of the gateway's listener, to be tried in this order.
    expires_s: int  # Seconds since 1970, by the gateway's clock.
    id: bytes  # 16 random bytes: what makes it good once.
    role: str
    member: bytes = b""  # Id of the member that has lost its credentials and comes back; empty: a new one.


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The roots with their keys. Immutable: what changes it returns another one.

    Invariants: 1 <= len(roots) <= 2; the signer is one of them; number grows with every change.
    """

    cluster: bytes
    roots: tuple[Root, ...]  # The oldest first. Each is trusted.
    signer: int = 0  # Index of the one that signs.
    checksum_secret: int = field(repr=False)  # The seed of all checksums in fragment files.
    number: int = 1

    def __post_init__(self) -> None:
        assert len(self.cluster) == ID_SIZE
        assert 1 <= len(self.roots) <= ROOTS_MAX
        assert 0 <= self.signer < len(self.roots)

    @property
    def signing(self) -> Root:
        return self.roots[self.signer]

    @property
    def changing(self) -> bool:
        """Whether one root is taking over from another."""
        return len(self.roots) > 1

    def issue(
        self, key: ec.EllipticCurvePublicKey, name: Name, now_us: int, *, days: float = CERTIFICATE_DAYS
    ) -> x509.Certificate:
        """A certificate for whoever has the private key: client and server, as `name`, nothing else."""
        assert name.cluster == self.cluster
        root = self.signing
        now = _time(now_us)
        end = min(now + datetime.timedelta(days=days), root.certificate.not_valid_after_utc)
        subject = _subject(f"{name.role} {name.id.hex()}", self.cluster)
        builder = _builder(subject, root.certificate.subject)
        issuer_key = root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            builder.public_key(key)
            .not_valid_before(now - datetime.timedelta(seconds=SKEW_S))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=True,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name.uri)]), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False
            )
            .sign(root.key, hashes.SHA256())
        )

    def token(
        self,
        role: str,
        addresses: Sequence[str],
        now_us: int,
        *,
        seconds: int = TOKEN_S,
        id_: bytes = b"",
        member: bytes = b"",
    ) -> str:
        """A token for one machine to join as `role`. One word of printable characters; a secret.

        Args:
            id_: 16 bytes that were never used; empty: random ones.
            member: whom the machine is to be, if it was one before; empty: a new member.
        """
        assert role in ROLES
        assert addresses
        root = self.signing
        content = msgspec.msgpack.encode(
            Token(
                self.cluster,
                root.fingerprint,
                tuple(addresses),
                now_us // 1_000_000 + seconds,
                id_ or random_id(),
                role,
                member,
            )
        )
        return _TOKEN_PREFIX + urlsafe_b64encode(content + _mac(root, content)).decode().rstrip("=")

    def check_token(self, text: str, now_us: int) -> Token:
        """The token, made by this authority and not expired. Whether it was used before, metadata knows.

        Raises: Denied, in words that tell an operator what to do.
        """
        content, mac = _split_token(text)
        token = _decode_token(content)
        if token.cluster != self.cluster:
            raise Denied("the join token is another cluster's")
        root = next((one for one in self.roots if one.fingerprint == token.fingerprint), None)
        # Unknown root or not, the same work is done, and the answer is the same.
        expected = _mac(root or self.signing, content)
        if not hmac.compare_digest(expected, mac) or root is None:
            raise Denied("the join token was not made by this cluster's authority: make another one")
        if now_us // 1_000_000 >= token.expires_s:
            raise Denied("the join token has expired: make another one (objstore cluster token)")
        return token

    # Another root takes over: trusted beside the first, then signing, then alone.

    def with_root(self, root: Root) -> "Authority":
        """Step 1: `root` is trusted too. Nothing is signed by it before everyone trusts it."""
        assert not self.changing
        return replace(self, roots=(*self.roots, root), number=self.number + 1)

    def signing_newest(self) -> "Authority":
        """Step 2: everyone trusts both; from now on the newest signs."""
        return replace(self, signer=len(self.roots) - 1, number=self.number + 1)

    def without_oldest(self) -> "Authority":
        """Step 3: nobody holds a certificate of the oldest any more."""
        assert self.changing
        assert self.signer > 0
        return replace(self, roots=self.roots[1:], signer=self.signer - 1, number=self.number + 1)


def make_root(cluster: bytes, now_us: int, *, days: float = ROOT_DAYS) -> Root:
    """A new root: its key and its self-signed certificate, good for signing what ends a chain."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    name = _subject(f"objstore authority {random_id().hex()}", cluster)
    now = _time(now_us)
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    certificate = (
        _builder(name, name)
        .public_key(public)
        .not_valid_before(now - datetime.timedelta(seconds=SKEW_S))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return Root(certificate, key)


def make_authority(cluster: bytes, checksum_secret: int, now_us: int) -> Authority:
    """A cluster's first authority."""
    return Authority(cluster=cluster, roots=(make_root(cluster, now_us),), checksum_secret=checksum_secret)


# What members do.


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def key_from_pem(text: str) -> ec.EllipticCurvePrivateKey:
    """Raises: Corrupt."""
    try:
        key = serialization.load_pem_private_key(text.encode(), None)
    except (ValueError, TypeError) as failure:
        raise Corrupt(f"not a private key: {failure}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Corrupt("not a private key of an elliptic curve")
    return key


def make_request(key: ec.EllipticCurvePrivateKey) -> str:
    """A signing request: proves that we have the key, and says nothing else. PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def check_request(text: str) -> ec.EllipticCurvePublicKey:
    """The key of a signing request whose sender has its private half. Whatever else it asks for is ignored.

    Raises: BadArgument.
    """
    if len(text) > CSR_SIZE_MAX:
        raise BadArgument("the signing request is too long", name="csr")
    try:
        request = x509.load_pem_x509_csr(text.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except Exception:  # Whatever a parser says of a stranger's bytes.
        raise BadArgument("the signing request cannot be read", name="csr") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadArgument("the signing request's key is not one of curve P-256", name="csr")
    if not valid:
        raise BadArgument("the signing request is not signed by its own key", name="csr")
    return key


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """32 bytes that tell public keys apart."""
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(encoded).digest()


def read_token(text: str) -> Token:
    """What a token says, to one who cannot check it: the machine that is to join.

    Raises: BadArgument if it is none.
    """
    try:
        return _decode_token(_split_token(text)[0])
    except Denied as failure:
        raise BadArgument(str(failure), name="token") from None


# Certificates.


def to_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def from_pem(text: str) -> x509.Certificate:
    """Raises: Corrupt."""
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except ValueError as failure:
        raise Corrupt(f"not a certificate: {failure}") from None


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER form."""
    return certificate.fingerprint(hashes.SHA256())


def common_name(name: x509.Name) -> str:
    [attribute] = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def name_of(certificate: x509.Certificate) -> Name:
    """Raises: Corrupt if it is not one that an authority of ours issued."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    found = parse_uri(uris[0]) if len(uris) == 1 else None
    if found is None:
        raise Corrupt("the certificate names no member of a cluster")
    return found


def renew_at(certificate: x509.Certificate) -> float:
    """Seconds since 1970: from when it should be replaced."""
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return begin + (end - begin) * RENEW_SHARE


# The bundle.


class _SealedRoot(msgspec.Struct):
    certificate: str  # PEM.
    key: bytes  # nonce 12, ciphertext, tag 16; bound to the certificate's fingerprint. Base64 in the file.


class _Bundle(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: int = 1
    cluster: str  # 32 hex digits.
    number: int
    signer: int
    checksum_secret: bytes  # As a root's key; bound to the cluster id.
    roots: list[_SealedRoot]


def encode_authority(authority: Authority, master_key: bytes) -> bytes:
    """The bundle: JSON, at most 4,000 bytes. Secrets in it open under the master key only."""
    cipher = _cipher(authority.cluster, master_key)

    def sealed(secret: bytes, bound_to: bytes) -> bytes:
        nonce = random_id()[:_NONCE_SIZE]  # Random: a handful of secrets are ever sealed under one key.
        return nonce + cipher.encrypt(nonce, secret, bound_to)

    content = msgspec.json.encode(
        _Bundle(
            cluster=authority.cluster.hex(),
            number=authority.number,
            signer=authority.signer,
            checksum_secret=sealed(authority.checksum_secret.to_bytes(8, "big"), authority.cluster),
            roots=[
                _SealedRoot(root.pem, sealed(_scalar(root.key), root.fingerprint)) for root in authority.roots
            ],
        )
    )
    assert len(content) <= 4_000
    return content


def decode_authority(content: bytes, master_key: bytes, others: Sequence[bytes] = ()) -> Authority:
    """
    Args:
        others: master keys that may have sealed it instead.

    Raises: Corrupt if it is no bundle, or opens under none of them.
    """
    bundle = _decode_bundle(content)
    keys = (master_key, *others)
    for key in keys[:-1]:
        with contextlib.suppress(Corrupt):
            return _opened(bundle, key)
    return _opened(bundle, keys[-1])


def _opened(bundle: "_Bundle", master_key: bytes) -> Authority:
    cluster = bytes.fromhex(bundle.cluster)
    cipher = _cipher(cluster, master_key)

    def opened(secret: bytes, bound_to: bytes) -> bytes:
        try:
            return cipher.decrypt(secret[:_NONCE_SIZE], secret[_NONCE_SIZE:], bound_to)
        except (InvalidTag, ValueError):
            raise Corrupt("the authority's key does not open: another master key?") from None

    roots = []
    for sealed in bundle.roots:
        certificate = from_pem(sealed.certificate)
        scalar = int.from_bytes(opened(sealed.key, fingerprint(certificate)), "big")
        roots.append(Root(certificate, ec.derive_private_key(scalar, ec.SECP256R1())))
    secret = int.from_bytes(opened(bundle.checksum_secret, cluster), "big")
    return Authority(
        cluster=cluster,
        roots=tuple(roots),
        signer=bundle.signer,
        checksum_secret=secret,
        number=bundle.number,
    )


def _decode_bundle(content: bytes) -> _Bundle:
    try:
        bundle = msgspec.json.decode(content, type=_Bundle)
    except (msgspec.MsgspecError, ValueError) as failure:
        raise Corrupt(f"the authority's bundle is damaged: {failure}") from None
    if bundle.format != 1:
        raise Corrupt(f"the authority's bundle has format {bundle.format}; this release reads 1")
    if not re.fullmatch("[0-9a-f]{32}", bundle.cluster) or not (
        1 <= len(bundle.roots) <= ROOTS_MAX and 0 <= bundle.signer < len(bundle.roots)
    ):
        raise Corrupt("the authority's bundle is damaged")
    return bundle


def _cipher(cluster: bytes, master_key: bytes) -> AESGCM:
    return AESGCM(_derived(master_key, cluster, b"objstore authority"))


def _derived(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, purpose).derive(secret)


def _scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


# Tokens.


def _mac(root: Root, content: bytes) -> bytes:
    key = _derived(_scalar(root.key), root.fingerprint, b"objstore join token")
    return hmac.digest(key, _TOKEN_PREFIX.encode() + content, "sha256")


def _split_token(text: str) -> tuple[bytes, bytes]:
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise Denied("not a join token: it is one word that begins with osjoin1.")
    try:
        whole = urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4))
    except ValueError:
        raise Denied("not a join token: was it copied whole?") from None
    return whole[:-_MAC_SIZE], whole[-_MAC_SIZE:]


def _decode_token(content: bytes) -> Token:
    try:
        token = msgspec.msgpack.decode(content, type=Token)
    except (msgspec.MsgspecError, ValueError):  # UnicodeDecodeError among them.
        raise Denied("not a join token: was it copied whole?") from None
    sizes = (len(token.cluster), len(token.fingerprint), len(token.id))
    if (
        sizes != (ID_SIZE, 32, ID_SIZE)
        or len(token.member) not in (0, ID_SIZE)
        or token.role not in ROLES
        or not token.addresses
    ):
        raise Denied("not a join token of this release")
    return token


# X.509.


def _time(now_us: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now_us // 1_000_000, datetime.UTC)


def _subject(text: str, cluster: bytes) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster.hex()),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )


def _builder(subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    """Of a member (it signs handshakes), or of a root (it signs certificates)."""
    return x509.KeyUsage(
        digital_signature=signs,
        key_cert_sign=not signs,
        crl_sign=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
