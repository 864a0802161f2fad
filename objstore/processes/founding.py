"""What makes a store a cluster: its authority, and where that lies. `objstore cluster init`, and reading it.

Under the data directory of a gateway (docs/formats.md):

    authority.json      the roots, their keys and the checksum secret, encrypted under the master key
    master.key          only where nobody gave a master key and no disk of this store has one
    tls/                this gateway's own key and certificate, and whom it trusts

A store that exists keeps its id and its secrets; without one they are made here, and the store that is formed
in this data directory later takes them from here.

Blocking; used before any process is forked, and by commands.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from objstore.config import Config
from objstore.errors import Corrupt
from objstore.ids import random_id
from objstore.node.authority import (
    GATEWAY,
    Authority,
    Name,
    decode_authority,
    encode_authority,
    key_to_pem,
    make_authority,
    make_key,
    to_pem,
)
from objstore.node.identity import MASTER_KEY_SIZE, read_whole
from objstore.node.syscalls import RealSyscalls
from objstore.node.tls import Credentials, Trust, save_identity, save_trust
from objstore.processes.cluster import (
    MASTER_NAME,
    CannotStart,
    StoreSecrets,
    given_master_keys,
    save,
    store_secrets,
    with_kept_master_key,
)

AUTHORITY_NAME: Final = "authority.json"
TLS_NAME: Final = "tls"
BUNDLE_SIZE_MAX: Final = 64 * 1024

OS: Final = RealSyscalls()


class Founded(NamedTuple):
    """What `init` made."""

    cluster: bytes
    gateway: Name
    root: str  # The root's fingerprint in hex.
    made_master_key: bool  # It lies in master.key now.
    existing_store: bool  # The store was there before.


def init(config: Config, data: Path) -> Founded:
    """Make the authority of a cluster, and this gateway's certificate. Interrupted, it may be done again.

    Raises: CannotStart if there is one already, or if the store's disks cannot be read.
    """
    if (data / AUTHORITY_NAME).exists():
        raise CannotStart(
            f"{data} is a cluster's gateway already ({AUTHORITY_NAME} is there): nothing changed"
        )
    if (data / TLS_NAME / "identity.pem").exists() and (data / "node.json").exists():
        raise CannotStart(f"{data} is the data directory of a storage node")
    config = with_kept_master_key(config, data)
    secrets = store_secrets(config, data)
    made_master = False
    if secrets is not None:
        cluster, checksum_secret, master, _ = secrets
    else:
        cluster, checksum_secret = random_id(), int.from_bytes(os.urandom(8), "big")
        master = bytes.fromhex(config.security.master_key)
        if not master:
            master, made_master = os.urandom(MASTER_KEY_SIZE), True
            save(data, MASTER_NAME, master.hex().encode() + b"\n")
    now_us = time.time_ns() // 1000
    authority = make_authority(cluster, checksum_secret, now_us)
    name = Name(cluster, GATEWAY, random_id())
    key = make_key()
    certificate = authority.issue(key.public_key(), name, now_us)
    directory = data / TLS_NAME
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    save_trust(directory, first_trust(authority))
    save_identity(directory, key_to_pem(key), to_pem(certificate))
    # Last: what is there without it is made again.
    save_authority(data, encode_authority(authority, master))
    return Founded(cluster, name, authority.signing.fingerprint.hex(), made_master, secrets is not None)


def first_trust(authority: Authority) -> Trust:
    """What the first gateway trusts before metadata knows more: number 0."""
    return Trust(
        cluster=authority.cluster.hex(),
        number=0,
        roots=[root.pem for root in authority.roots],
        signer=authority.signing.name,
    )


def read_authority(data: Path, master_key: bytes, others: Sequence[bytes] = ()) -> Authority | None:
    """What authority.json holds; None if there is none.

    Args:
        others: master keys that may have sealed it instead.

    Raises: CannotStart.
    """
    place = data / AUTHORITY_NAME
    try:
        return decode_authority(read_whole(str(place), BUNDLE_SIZE_MAX, OS), master_key, others)
    except FileNotFoundError:
        return None
    except (OSError, Corrupt) as failure:
        raise CannotStart(f"{place}: {failure}") from None


def founded_secrets(config: Config, data: Path) -> StoreSecrets | None:
    """What a store that is made in this data directory begins with; None if no cluster was founded here, or
    the disks of a store have the key already. Raises: CannotStart."""
    if not config.security.master_key or not (data / AUTHORITY_NAME).exists():
        return None
    master, *others = given_master_keys(config)
    authority = read_authority(data, master, others)
    if authority is None:
        return None
    return StoreSecrets(authority.cluster, authority.checksum_secret, master, tuple(others))


def renew_ended(config: Config, data: Path) -> bool:
    """Another certificate for this gateway if its own ended while it was off. Whether it had.

    Nobody takes an ended certificate, nor renews it; but a gateway has the authority, and signs for itself.

    Raises: CannotStart.
    """
    credentials = own_credentials(data)
    if not credentials.ended:
        return False
    key = make_key()
    certificate = _opened(config, data).issue(key.public_key(), credentials.name, time.time_ns() // 1000)
    try:
        save_identity(credentials.directory, key_to_pem(key), to_pem(certificate))
    except OSError as failure:
        raise CannotStart(f"cannot write to {credentials.directory}: {failure.strerror}") from None
    return True


def identity_of(config: Config, data: Path, who: str) -> str:
    """A key and a certificate, as identity.pem has them, for a member whose own ended while no gateway ran.

    Args:
        data: a gateway's; it need not run.
        who: the member's name, or the beginning of its id.

    Raises: CannotStart.
    """
    trust = own_credentials(data).trust
    found = [member for member in trust.members if who in (member.name, member.id)]
    found = found or [member for member in trust.members if len(who) >= 4 and member.id.startswith(who)]
    if len(found) != 1:
        words = "there is no member" if not found else f"{len(found)} members are called"
        raise CannotStart(f"{words} {who}, as far as {data / TLS_NAME} knows")
    authority, key = _opened(config, data), make_key()
    name = Name(authority.cluster, found[0].role, bytes.fromhex(found[0].id))
    return key_to_pem(key) + to_pem(authority.issue(key.public_key(), name, time.time_ns() // 1000))


def _opened(config: Config, data: Path) -> Authority:
    """This gateway's authority, by its file. Raises: CannotStart."""
    master_key, *others = given_master_keys(with_kept_master_key(config, data))
    if not master_key:
        raise CannotStart(
            "the master key is needed, to sign a certificate: set OBJSTORE_SECURITY__MASTER_KEY_FILE"
        )
    authority = read_authority(data, master_key, others)
    if authority is None:
        raise CannotStart(f"{data} is no gateway of a cluster: there is no {AUTHORITY_NAME}")
    return authority


def save_authority(data: Path, bundle: bytes) -> None:
    """Raises: OSError."""
    save(data, AUTHORITY_NAME, bundle)


def own_credentials(data: Path) -> Credentials:
    """This machine's. Raises: CannotStart if it is no member of a cluster."""
    try:
        return Credentials(data / TLS_NAME)
    except Corrupt as failure:
        raise CannotStart(
            f"{failure}. A cluster begins with objstore cluster init --data {data}; another machine joins it"
            " with a token"
        ) from None
