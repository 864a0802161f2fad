"""The identity file of a disk: who it is, to which cluster it belongs, and what only the disks know.

One JSON object in `objstore.id` at the root of the disk directory, mode 0600, replaced as a whole (temporary
file, sync, rename, directory sync). It is drawn in docs/formats.md. It holds the cluster's secrets:
never log an Identity (its repr hides them).
"""

import errno
import os
from collections.abc import Iterable

import msgspec
from xxhash import xxh3_64_hexdigest

from objstore.errors import Corrupt, DiskFailed, DiskMissing
from objstore.ids import ID_SIZE
from objstore.node.syscalls import Syscalls

IDENTITY_NAME = "objstore.id"
IDENTITY_SIZE_MAX = 1024 * 1024  # Bytes: 4,096 peers with long paths.
FORMAT = 1
MASTER_KEY_SIZE = 32  # Bytes: AES-256.
CHECKSUM_SECRET_MAX = (1 << 64) - 1


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another disk of the cluster: how a start finds the ones that are missing."""

    number: int  # Counts from 1.
    uuid: str  # 32 hex digits.
    path: str  # Where it was last seen.


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's content.

    Invariants: cluster, uuid, number and the secrets never change; epoch never falls; uuids and numbers
    are unique in the cluster and never reused.
    """

    format: int = FORMAT
    cluster: str  # 32 hex digits.
    uuid: str  # 32 hex digits.
    number: int  # Counts from 1.
    checksum_secret: str  # 16 hex digits: the 64-bit seed of every checksum in the fragment files.
    master_key: str = ""  # 64 hex digits; empty if it is given from outside.
    peers: tuple[Peer, ...] = ()
    epoch: int = 0  # Newest journal epoch that this disk was told of.
    created_us: int = 0
    checksum: str = ""  # xxh3-64, hex, of the file's JSON with this field empty.

    def __repr__(self) -> str:
        return f"Identity(cluster={self.cluster}, uuid={self.uuid}, number={self.number}, epoch={self.epoch})"

    @property
    def cluster_id(self) -> bytes:
        return bytes.fromhex(self.cluster)

    @property
    def disk_uuid(self) -> bytes:
        return bytes.fromhex(self.uuid)

    @property
    def secret(self) -> int:
        return int.from_bytes(bytes.fromhex(self.checksum_secret), "big")


def make_identity(
    *,
    cluster: bytes,
    uuid: bytes,
    number: int,
    checksum_secret: int,
    master_key: bytes = b"",
    peers: Iterable[Peer] = (),
    epoch: int = 0,
    created_us: int = 0,
) -> Identity:
    """An identity from raw values.

    Args:
        cluster, uuid: 16 bytes each.
        checksum_secret: 64 random bits.
        master_key: 32 bytes, or empty if it is given from outside.
    """
    assert len(cluster) == len(uuid) == ID_SIZE
    assert number >= 1
    assert 0 <= checksum_secret <= CHECKSUM_SECRET_MAX
    assert len(master_key) in (0, MASTER_KEY_SIZE)
    return Identity(
        cluster=cluster.hex(),
        uuid=uuid.hex(),
        number=number,
        checksum_secret=f"{checksum_secret:016x}",
        master_key=master_key.hex(),
        peers=tuple(peers),
        epoch=epoch,
        created_us=created_us,
    )


def encode_identity(identity: Identity) -> bytes:
    """The file's bytes: indented JSON with its checksum."""
    plain = msgspec.structs.replace(identity, checksum="")
    digest = xxh3_64_hexdigest(msgspec.json.encode(plain))
    return (
        msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(identity, checksum=digest)), indent=2)
        + b"\n"
    )


def decode_identity(data: bytes, where: str) -> Identity:
    """Raises: Corrupt, in words, if the bytes are no identity file of a format this release knows."""
    try:
        form = msgspec.json.decode(data, type=dict[str, object]).get("format")
    except msgspec.MsgspecError as failure:
        raise Corrupt(f"{where} is not an identity file: {failure}") from failure
    if form != FORMAT:
        raise Corrupt(f"{where} has format {form}; this release reads {FORMAT}")
    try:
        identity = msgspec.json.decode(data, type=Identity)
    except msgspec.MsgspecError as failure:
        raise Corrupt(f"{where} is damaged: {failure}") from failure
    digest = xxh3_64_hexdigest(msgspec.json.encode(msgspec.structs.replace(identity, checksum="")))
    if digest != identity.checksum:
        raise Corrupt(f"{where} is damaged or was edited: its checksum is wrong")
    sizes = (
        (identity.cluster, ID_SIZE),
        (identity.uuid, ID_SIZE),
        (identity.checksum_secret, 8),
        (identity.master_key, MASTER_KEY_SIZE if identity.master_key else 0),
    )
    for text, size in sizes:
        try:
            right = len(bytes.fromhex(text)) == size
        except ValueError:
            right = False
        if not right:
            raise Corrupt(f"{where} is damaged: {size} bytes in hex expected")
    if identity.number < 1 or identity.epoch < 0:
        raise Corrupt(f"{where} is damaged: number {identity.number}, epoch {identity.epoch}")
    return identity


def read_identity(path: str, sys: Syscalls) -> Identity:
    """The identity of the disk directory at `path`. Blocks.

    Raises: DiskMissing if no identity file is there; Corrupt if it is damaged; DiskFailed if it cannot be
        read.
    """
    name = os.path.join(path, IDENTITY_NAME)
    try:
        data = read_whole(name, IDENTITY_SIZE_MAX, sys)
    except (FileNotFoundError, NotADirectoryError):
        raise DiskMissing(f"no {IDENTITY_NAME} in {path}: not a disk of this store, or not mounted") from None
    except OSError as failure:
        raise DiskFailed(f"{name} cannot be read: {failure.strerror}") from failure
    return decode_identity(data, name)


def write_identity(path: str, identity: Identity, sys: Syscalls) -> None:
    """Replace the identity file, durably. Blocks. One writer at a time.

    Raises: OSError.
    """
    name = os.path.join(path, IDENTITY_NAME)
    temporary = name + ".new"
    write_new(temporary, encode_identity(identity), sys)  # 1. The bytes, before a name points at them.
    sys.rename(temporary, name)  # 2. The name, all at once.
    sync_directory(path, sys)  # 3. The name outlives a power cut.


# Whole small files, for this module and local.py.


def read_whole(name: str, size_max: int, sys: Syscalls) -> bytes:
    """Raises: OSError, also EFBIG if the file is larger than `size_max`."""
    fd = sys.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = sys.fstat(fd).st_size
        if size > size_max:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        data = bytearray(size)
        at = 0
        while at < size:
            count = sys.preadv(fd, [memoryview(data)[at:]], at, 0)
            if count == 0:
                break
            at += count
        return bytes(data[:at])
    finally:
        sys.close(fd)


def write_new(name: str, content: bytes | bytearray | memoryview, sys: Syscalls) -> None:
    """Make (or make anew) a file that holds `content`, its bytes synced; its name is not. Raises: OSError."""
    fd = sys.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        at = 0
        while at < len(view):
            at += sys.pwritev(fd, [view[at:]], at, 0)
        sys.fdatasync(fd)
    finally:
        sys.close(fd)


def sync_directory(path: str, sys: Syscalls) -> None:
    """Make the names in a directory durable. Raises: OSError."""
    fd = sys.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sys.fsync(fd)
    finally:
        sys.close(fd)
