"""Which disks belong to this store, where they are, and what is wrong with those that are not there.

The identity files on the disks are the truth. A disk of a storage node is only named here: every process asks
its node. `cluster.json` under the data directory remembers where the disks were last seen, so that a later
start needs no `--disk`, and a path that has lost its disk (not mounted, say) is never taken for an empty one:
once the store is formed, nothing is ever formatted by a start.

A first start writes `cluster.json` with `formed: false` and every id, formats each disk under
its id, and then sets `formed`. A crash in between leaves a store that has acknowledged nothing;
the next start goes on where it stopped.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from objstore.config import Config, parse_codec
from objstore.errors import Corrupt, DiskFailed, DiskMissing, StoreError
from objstore.ids import master_key_id, random_id
from objstore.node.disk import DiskState
from objstore.node.identity import (
    Identity,
    Peer,
    make_identity,
    read_identity,
    sync_directory,
    write_identity,
    write_new,
)
from objstore.node.local import Expected, format_disk, lock_disk, open_disk
from objstore.node.syscalls import RealSyscalls

RECORD_NAME = "cluster.json"
MASTER_NAME = "master.key"
OS = RealSyscalls()
LOCK_WAIT_S = 3.0  # After kill -9 of the last supervisor its children are just ending.
FIRST_TERM = 1  # Of a cluster's journal; every machine that takes over begins a later one.
DEFAULT_DISKS = 6  # The default codec's k+m: a convenience to begin with, all on one device.


class CannotStart(Exception):
    """In plain words: what is wrong and what to do."""


class KnownDisk(msgspec.Struct, kw_only=True):
    number: int
    uuid: str  # 32 hex digits.
    path: str  # Where it was last seen; relative to the data directory if it lies in there.
    node: str = ""  # 32 hex digits: the storage node that has it, and `path` is there. Empty: this machine.


class ClusterRecord(msgspec.Struct, kw_only=True):
    """cluster.json. A hint where to look; the identity files decide."""

    cluster: str  # 32 hex digits.
    formed: bool
    disks: list[KnownDisk]
    codec: str = ""  # k+m of the last start: holds until another is asked for.
    master_key: str = ""  # First 16 hex digits of SHA-256 of the key given from outside, to know it again.
    term: int = 0  # Of the journal (meta/journal.py), for a cluster's gateway. 0: one machine.


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDisk:
    number: int
    uuid: bytes
    path: str
    state: DiskState  # HEALTHY: the identity was read; what else is wrong shows when the disk is opened.
    reason: str = ""
    device: int = 0  # st_dev.
    node: bytes = b""  # 16 bytes: the storage node that has it. Empty: this machine.


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the children need to know of the store."""

    cluster_id: bytes
    checksum_secret: int
    master_key: bytes
    disks: list[FoundDisk]  # By number.
    codec: tuple[int, int]  # (k, m).
    first_start: bool
    epoch: int  # Newest journal epoch that any disk of this machine knows of.
    term: int = 0  # See ClusterRecord.
    tls: str = ""  # Directory of this gateway's credentials; empty: no disk is on another machine.
    other_master_keys: tuple[bytes, ...] = ()  # That open what they sealed.
    # File descriptors, one per disk that is there.
    locks: list[int] = field(repr=False, default_factory=list)


def open_cluster(
    config: Config,
    data: Path,
    announce: Callable[[str], None],
    *,
    codec_given: bool = True,
    founded: "StoreSecrets | None" = None,
    tls: str = "",
) -> Cluster:
    """Find the store's disks, or make a store. Takes a lock on every disk that is there.

    Args:
        codec_given: whether an operator chose config's codec; otherwise the last start's holds.
        founded: of a cluster that was founded here before its store; a first start makes the store with them.
        tls: directory of a gateway's credentials: its disks may be on storage nodes, and one of its own is
            enough to begin with.

    Raises: CannotStart.
    """
    record = read_record(data)
    if record is not None and record.term and not tls:
        raise CannotStart(f"the store at {data} is a cluster: start it with objstore gateway")
    named = [str(Path(path).absolute()) for path in config.disks.paths]
    first_start, elsewhere = False, _IS_FORMED
    if record is None:
        count = DEFAULT_DISKS if not tls else 1 if not config.meta.url else 0
        paths = named or [str(data / f"disk{number}") for number in range(1, count + 1)]
        record = _adopt(paths)
        if record is None:
            record, first_start = _plan(paths, config, announce, founded, alone=not tls), True
            write_record(data, record)
        else:  # Remembered only when its disks were looked at and locked: a refused start changes nothing.
            elsewhere = _who_brought(record, paths)
    if tls and not record.term:
        record.term = FIRST_TERM
    if codec_given or not record.codec:
        record.codec = config.blobs.codec
    if not record.formed:
        first_start = True
        _form(record, config, announce, founded)
        record.formed = True
        write_record(data, record)

    found, identities = _look(record, named, elsewhere)
    good = [identity for identity in identities if identity is not None]
    if good:
        secrets = StoreSecrets(good[0].cluster_id, good[0].secret, *_master_keys(record, good, config))
    elif founded is not None and (not found or any(disk.node for disk in found)):
        secrets = founded
    else:
        reasons = "\n".join(f"  disk {disk.number}: {disk.reason}" for disk in found)
        raise CannotStart(
            f"none of the store's {len(found)} disks is there:\n{reasons}\n"
            "Are they mounted? Nothing was changed; a disk that is not there is never formatted anew."
        )
    for disk in record.disks:  # Remember where they are now.
        disk.path = next(place.path for place in found if place.number == disk.number)
    locks = [
        _take(secrets.cluster_id, disk, record.disks)
        for disk in found
        if disk.state is DiskState.HEALTHY and not disk.node
    ]
    write_record(data, record)
    return Cluster(
        cluster_id=secrets.cluster_id,
        checksum_secret=secrets.checksum_secret,
        master_key=secrets.master_key,
        other_master_keys=secrets.other_master_keys,
        disks=found,
        codec=parse_codec(record.codec),
        first_start=first_start,
        epoch=max((identity.epoch for identity in good), default=0),
        term=record.term,
        tls=tls,
        locks=locks,
    )


def with_kept_master_key(config: Config, data: Path) -> Config:
    """The configuration with the master key that lies in the data directory of a cluster's first gateway, if
    one lies there: it counts as given from outside, and is never written to a disk.

    Raises: CannotStart if it cannot be read, or another one is given.
    """
    place = data / MASTER_NAME
    try:
        kept = place.read_text().strip().lower()
    except FileNotFoundError:
        return config
    except (OSError, ValueError) as failure:
        raise CannotStart(f"{place} cannot be read: {failure}") from None
    if not re.fullmatch("[0-9a-f]{64}", kept):
        raise CannotStart(f"{place} is damaged: 64 hex digits expected")
    security = config.security
    if security.master_key and security.master_key.lower() != kept:
        if kept in map(str.lower, security.other_master_keys):
            return config  # It was the key; now another one is.
        raise CannotStart(
            f"security.master_key is not the key in {place}: remove the one that is wrong. Or, to begin with"
            " another key, name the one of the file in security.other_master_keys"
        )
    return msgspec.structs.replace(config, security=msgspec.structs.replace(security, master_key=kept))


def keep_master_key(data: Path, master_key: bytes) -> None:
    """Put the master key into the data directory of a gateway whose own disks have it: those may leave.

    Raises: CannotStart.
    """
    try:
        save(data, MASTER_NAME, master_key.hex().encode() + b"\n")
    except OSError as failure:
        raise CannotStart(f"cannot write {data / MASTER_NAME}: {failure.strerror}") from None


def save(directory: Path, name: str, content: bytes) -> None:
    """Put a file in place: mode 0600, whole, durable. Raises: OSError."""
    place = str(directory / name)
    write_new(place + ".new", content, OS)
    OS.rename(place + ".new", place)
    sync_directory(str(directory), OS)


class StoreSecrets(NamedTuple):
    cluster_id: bytes
    checksum_secret: int
    master_key: bytes
    other_master_keys: tuple[bytes, ...] = ()


def store_secrets(config: Config, data: Path) -> StoreSecrets | None:
    """Of the store at `data`, as its disks have them; None if there is none yet. Changes nothing.

    Raises: CannotStart.
    """
    record = read_record(data)
    if record is None or not record.formed:
        return None
    found, identities = _look(record, [str(Path(path).absolute()) for path in config.disks.paths])
    good = [identity for identity in identities if identity is not None]
    if not good:
        raise CannotStart(f"none of the store's {len(found)} disks is there: are they mounted?")
    return StoreSecrets(good[0].cluster_id, good[0].secret, *_master_keys(record, good, config))


def begin_term(data: Path, cluster: Cluster, term: int) -> Cluster:
    """Another term for this gateway's journal, remembered before anything names it. Raises: CannotStart."""
    record = read_record(data)
    if record is None:
        raise CannotStart(f"there is no {RECORD_NAME} at {data}")
    assert term > record.term
    record.term = term
    write_record(data, record)
    return replace(cluster, term=term)


class DiskChange(msgspec.Struct, kw_only=True):
    """What the upkeep process asks of the supervisor, as JSON."""

    number: int
    uuid: str
    path: str
    node: str = ""  # 32 hex digits: the storage node that has it; empty: this machine.
    drop: bool = False  # Else it is added: made and known to metadata already.
    soon: bool = False  # Its node does not serve it yet: remembered for the next start, and not opened.


def change_disks(cluster: Cluster, data: Path, text: str) -> tuple[str, bool]:
    """In the supervisor, while the store runs: take the lock of a new disk and remember it, or forget one.

    Children started from now on open the disks so; those that run are told by metadata (minding.py), all but
    the committer. A forgotten disk stays locked until the supervisor ends.

    Returns: what is wrong, in plain words, empty if it is done; and whether the disks are others now.
        Doing it again changes nothing.
    """
    change = msgspec.json.decode(text, type=DiskChange)
    try:
        record = read_record(data)
        if record is None:
            return f"there is no {RECORD_NAME} at {data}", False
        before = [disk.number for disk in cluster.disks]
        if change.drop:
            record.disks = [disk for disk in record.disks if disk.number != change.number]
            write_record(data, record)
            cluster.disks[:] = [disk for disk in cluster.disks if disk.number != change.number]
            return "", before != [disk.number for disk in cluster.disks]
        if not change.soon and not any(disk.number == change.number for disk in cluster.disks):
            if not change.node:
                cluster.locks.append(lock_disk(change.path))
            found = FoundDisk(
                number=change.number,
                uuid=bytes.fromhex(change.uuid),
                path=change.path,
                state=DiskState.HEALTHY,
                device=0 if change.node else os.stat(change.path).st_dev,
                node=bytes.fromhex(change.node),
            )
            cluster.disks.append(found)
        if not any(disk.number == change.number for disk in record.disks):
            record.disks.append(
                KnownDisk(number=change.number, uuid=change.uuid, path=change.path, node=change.node)
            )
            write_record(data, record)
    except (CannotStart, StoreError, OSError) as failure:
        return str(failure), False
    return "", before != [disk.number for disk in cluster.disks]


def _master_keys(
    record: ClusterRecord, identities: list[Identity], config: Config
) -> tuple[bytes, tuple[bytes, ...]]:
    """The newest and the others. A key that was given takes the place of one that is named among the others;
    the record remembers which it is now. Raises: CannotStart."""
    on_disks = next((identity.master_key for identity in identities if identity.master_key), "")
    newest, *others = given_master_keys(config)
    if not newest:
        if not on_disks or record.master_key not in ("", _fingerprint(on_disks)):
            raise CannotStart(
                "this store's master key was given from outside: set OBJSTORE_SECURITY__MASTER_KEY_FILE"
            )
        newest = bytes.fromhex(on_disks)
    known = record.master_key or (_fingerprint(on_disks) if on_disks else "")
    if known and known != master_key_id(newest):
        if known not in map(master_key_id, others):
            raise CannotStart(
                (
                    "security.master_key is not the key that this store was made with"
                    if record.master_key
                    else "security.master_key is set, but this store keeps its master key on its disks"
                )
                + ": to begin with another key, name the one before in security.other_master_keys"
            )
        record.master_key = master_key_id(newest)
    if on_disks:
        others.append(bytes.fromhex(on_disks))
    return newest, tuple(key for key in dict.fromkeys(others) if key != newest)


def given_master_keys(config: Config) -> list[bytes]:
    """The newest (empty: none is given), then the others."""
    security = config.security
    return [bytes.fromhex(key) for key in (security.master_key, *security.other_master_keys)]


def _fingerprint(master_key: str) -> str:
    return master_key_id(bytes.fromhex(master_key))


def read_record(data: Path) -> ClusterRecord | None:
    place = data / RECORD_NAME
    try:
        record = msgspec.json.decode(place.read_bytes(), type=ClusterRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as failure:
        raise CannotStart(
            f"{place} cannot be read ({failure}). It only remembers where the disks are: move it away and"
            " name every disk with --disk."
        ) from None
    for disk in record.disks:
        if not disk.node:
            disk.path = str(data / disk.path)  # An absolute one stays as it is.
    return record


def write_record(data: Path, record: ClusterRecord) -> None:
    place = data / RECORD_NAME
    disks = [
        disk if disk.node else msgspec.structs.replace(disk, path=_relative(disk.path, data))
        for disk in record.disks
    ]
    plain = msgspec.structs.replace(record, disks=disks)
    content = msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"
    try:
        if place.exists() and place.read_bytes() == content:
            return
        save(data, RECORD_NAME, content)
    except OSError as failure:
        raise CannotStart(f"cannot write {place}: {failure.strerror}") from None


def _relative(path: str, data: Path) -> str:
    """So that a data directory may be moved as a whole."""
    return str(Path(path).relative_to(data)) if Path(path).is_relative_to(data) else path


def _adopt(paths: list[str]) -> ClusterRecord | None:
    """The record of a store whose disks lie at `paths` although the data directory knows nothing of it:
    moved to another machine, say. None if no path holds an identity."""
    identities = [identity for path in paths if (identity := _identity_or_none(path)) is not None]
    if not identities:
        return None
    clusters = {identity.cluster for identity in identities}
    if len(clusters) > 1:
        raise CannotStart(
            f"the --disk paths belong to {len(clusters)} different stores: name one store's disks"
        )
    places = {identity.uuid: path for path in paths if (identity := _identity_or_none(path)) is not None}
    newest = max(identities, key=lambda identity: identity.epoch)
    known = {peer.uuid: peer for identity in (*identities, newest) for peer in identity.peers}
    for identity in identities:
        known[identity.uuid] = Peer(number=identity.number, uuid=identity.uuid, path=places[identity.uuid])
    return ClusterRecord(
        cluster=newest.cluster,
        formed=True,
        disks=[
            KnownDisk(number=peer.number, uuid=peer.uuid, path=places.get(peer.uuid, peer.path))
            for peer in sorted(known.values(), key=lambda peer: peer.number)
        ],
    )


def _who_brought(record: ClusterRecord, paths: list[str]) -> str:
    """What to do about a path that is no disk of the store that others of `paths` belong to."""
    own = [path for path in paths if _identity_or_none(path) is not None]
    return (
        f"But {', '.join(own)} {'is a disk' if len(own) == 1 else 'are disks'} of a store"
        f" ({record.cluster[:8]}...): name disks of that store alone to start it, or only empty directories"
        " to make another. Nothing was changed."
    )


def _identity_or_none(path: str) -> Identity | None:
    try:
        return read_identity(path, OS)
    except StoreError:
        return None


def _plan(
    paths: list[str],
    config: Config,
    announce: Callable[[str], None],
    founded: StoreSecrets | None,
    *,
    alone: bool,
) -> ClusterRecord:
    """A new store's record. Every path must be free to take: checked before anything is made.

    Args:
        alone: no disks of storage nodes will come.
    """
    k, m = config.codec
    if len(set(map(os.path.realpath, paths))) != len(paths):
        raise CannotStart("--disk names the same directory twice")
    if alone and len(paths) < 1 + m:
        raise CannotStart(
            f"{len(paths)} disks are too few for codec {k}+{m}: it needs at least {1 + m}, and {k + m} to be"
            " used in full. Name more with --disk, or choose a smaller --codec"
        )
    for path in paths:
        _must_be_free(path)
    _about_mounts(paths, announce)
    return ClusterRecord(
        cluster=(founded.cluster_id if founded else random_id()).hex(),
        formed=False,
        term=0 if alone else FIRST_TERM,
        codec=config.blobs.codec,
        master_key=_fingerprint(config.security.master_key) if config.security.master_key else "",
        disks=[
            KnownDisk(number=number, uuid=random_id().hex(), path=path)
            for number, path in enumerate(paths, start=1)
        ],
    )


def _about_mounts(paths: list[str], announce: Callable[[str], None]) -> None:
    """Where some disks are mounted, one that is not may be waiting for its device.

    Raises: CannotStart for a directory that is there: that is how a mount point looks without its device.
    """
    mounted = [path for path in paths if os.path.ismount(path)]
    for path in paths:
        if not mounted or path in mounted:
            continue
        if os.path.isdir(path):
            raise CannotStart(
                f"--disk {path} is no mount point, while {mounted[0]} is: mount its device. Or, if it"
                " shall be a plain directory, remove it: the start makes it. Nothing was changed."
            )
        announce(
            f"--disk {path} is no mount point, while {mounted[0]} is. If a device was to be mounted there,"
            f" stop the store, remove --data, empty {', '.join(paths)}, mount it, and begin again."
        )


def _must_be_free(path: str) -> None:
    """Raises: CannotStart unless `path` may become a disk."""
    if words := why_not_free(path):
        raise CannotStart(f"--disk {words}")


def why_not_free(path: str) -> str:
    """Empty if `path` is absent or an empty directory (lost+found does not count); else what is wrong."""
    try:
        content = sorted(set(os.listdir(path)) - {"lost+found"})
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        return f"{path} is not a directory"
    except OSError as failure:
        return f"{path}: {failure.strerror}"
    if content:
        some = f"{', '.join(content[:3])}{', ...' if content[3:] else ''}"
        return f"{path} holds something else ({some}) and is left alone: name an empty directory"
    return ""


def _form(
    record: ClusterRecord, config: Config, announce: Callable[[str], None], founded: StoreSecrets | None
) -> None:
    """Format every disk that is not yet. Only ever called before the store has acknowledged anything."""
    if record.disks:
        count = f"{len(record.disks)} disk{'s' if len(record.disks) > 1 else ''}"
        announce(f"First start: making a store of {count} (codec {config.blobs.codec}).")
    peers = [Peer(number=disk.number, uuid=disk.uuid, path=disk.path) for disk in record.disks]
    # An interrupted first start: the disks already made have the secrets that the others must share.
    done = {
        disk.number: identity
        for disk in record.disks
        if (identity := _identity_or_none(disk.path)) is not None
    }
    for number, identity in done.items():
        if identity.cluster != record.cluster:
            raise CannotStart(f"disk {number} belongs to another store: name an empty directory")
    example = next(iter(done.values()), None)
    secret = founded.checksum_secret if founded else int.from_bytes(os.urandom(8), "big")
    if example is not None:
        secret = example.secret
    # A key given from outside stays outside.
    master = b"" if config.security.master_key else os.urandom(32)
    if example is not None:
        master = bytes.fromhex(example.master_key)
    for disk in record.disks:
        if disk.number in done:
            continue
        identity = make_identity(
            cluster=bytes.fromhex(record.cluster),
            uuid=bytes.fromhex(disk.uuid),
            number=disk.number,
            checksum_secret=secret,
            master_key=master,
            peers=[peer for peer in peers if peer.number != disk.number],
            created_us=time.time_ns() // 1000,
        )
        try:
            format_disk(disk.path, identity)
        except (OSError, StoreError) as failure:
            raise CannotStart(f"cannot format {disk.path}: {failure}") from None


_IS_FORMED = "The store is formed; disks are added by objstore disk add while it runs."


def _look(
    record: ClusterRecord, named: list[str], elsewhere: str = _IS_FORMED
) -> tuple[list[FoundDisk], list[Identity | None]]:
    """Every disk of the record with what lies at its place now.

    Args:
        elsewhere: what to do about a named path that is none of them.

    Raises: CannotStart, for a named path that is not the store's.
    """
    candidates = list(dict.fromkeys([*named, *(disk.path for disk in record.disks if not disk.node)]))
    at: dict[str, Identity] = {}
    wrong: dict[str, tuple[DiskState, str]] = {}
    for path in candidates:
        try:
            at[path] = read_identity(path, OS)
        except DiskMissing as failure:
            wrong[path] = (DiskState.MISSING, str(failure))
        except (Corrupt, DiskFailed) as failure:
            wrong[path] = (DiskState.FAILED, str(failure))
    by_uuid = {identity.uuid: path for path, identity in at.items() if identity.cluster == record.cluster}
    known = {disk.uuid for disk in record.disks}
    for path in named:
        if path in wrong and path not in {disk.path for disk in record.disks}:
            raise CannotStart(f"--disk {path} is not a disk of this store: {wrong[path][1]}. {elsewhere}")
        if path in at and at[path].cluster == record.cluster and at[path].uuid not in known:
            raise CannotStart(
                f"--disk {path} is disk {at[path].number}, which was removed from this store: do not name it"
            )
        if path in at and at[path].cluster != record.cluster:
            raise CannotStart(
                f"--disk {path} belongs to another store ({at[path].cluster[:8]}...): not touched"
            )
    found: list[FoundDisk] = []
    identities: list[Identity | None] = []
    for disk in record.disks:
        if disk.node:
            # What is wrong with it, its node says to whoever opens it.
            found.append(
                FoundDisk(
                    number=disk.number,
                    uuid=bytes.fromhex(disk.uuid),
                    path=disk.path,
                    state=DiskState.HEALTHY,
                    node=bytes.fromhex(disk.node),
                )
            )
            identities.append(None)
            continue
        if disk.uuid in by_uuid:
            place = by_uuid[disk.uuid]
            found.append(
                FoundDisk(
                    number=disk.number,
                    uuid=bytes.fromhex(disk.uuid),
                    path=place,
                    state=DiskState.HEALTHY,
                    device=os.stat(place).st_dev,
                )
            )
            identities.append(at[place])
            continue
        if disk.path in at:  # Something lies there, but not this disk.
            other = at[disk.path]
            whose = "of another store" if other.cluster != record.cluster else f"{other.number}"
            state, reason = DiskState.FOREIGN, f"disk {whose} lies at {disk.path}: swapped?"
        else:
            state, reason = wrong[disk.path]
        found.append(
            FoundDisk(
                number=disk.number, uuid=bytes.fromhex(disk.uuid), path=disk.path, state=state, reason=reason
            )
        )
        identities.append(None)
    return found, identities


def _take(cluster: bytes, disk: FoundDisk, known: list[KnownDisk]) -> int:
    lock = lock_and_sweep(cluster, disk)
    _tell_peers(disk, known)
    return lock


def lock_and_sweep(cluster: bytes, disk: FoundDisk) -> int:
    """The lock of a disk that is there, and the end of what a crash left in it.

    Returns: its file descriptor, held by every process of the supervisor through inheritance, for as long as
        one of them lives.

    Raises: CannotStart: another process has the disk.
    """
    try:
        lock = lock_disk(disk.path, wait_s=LOCK_WAIT_S)
    except StoreError as failure:
        raise CannotStart(f"disk {disk.number}: {failure}") from None
    opened = open_disk(disk.path, expected=Expected(cluster, disk.uuid, disk.number))
    try:
        opened.sweep()
    except OSError:
        pass  # A read-only or failing disk: it shows when it is used.
    finally:
        opened.close()
    return lock


def _tell_peers(disk: FoundDisk, known: list[KnownDisk]) -> None:
    """Disks come and go: let each know of all others, for a start without cluster.json.

    Under the lock, before the committer runs: it writes the same file.
    """
    peers = tuple(
        Peer(number=other.number, uuid=other.uuid, path=other.path)
        for other in known
        if other.number != disk.number and not other.node
    )
    try:
        identity = read_identity(disk.path, OS)
        if {peer.uuid for peer in identity.peers} != {peer.uuid for peer in peers}:
            write_identity(disk.path, msgspec.structs.replace(identity, peers=peers), OS)
    except (StoreError, OSError):
        pass  # A read-only or failing disk: it shows when it is used.


def warnings_of(cluster: Cluster) -> list[str]:
    """What an operator should hear at every start."""
    lines = [
        f"Disk {disk.number} ({disk.path}) is {disk.state.value}: {disk.reason}. Its bytes are"
        " reconstructed from the others; new ones go elsewhere."
        for disk in cluster.disks
        if disk.state is not DiskState.HEALTHY
    ]
    lines += [
        f"Disk {disk.number} ({disk.path}) is read-only: its file system is mounted so. It is read from; new"
        " bytes and journal copies go elsewhere."
        for disk in cluster.disks
        if disk.state is DiskState.HEALTHY and not disk.node and _is_read_only(disk.path)
    ]
    lines += shared_devices(cluster.disks)
    return lines


def _is_read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False  # What is wrong with it shows when it is used.


def shared_devices(disks: list[FoundDisk]) -> list[str]:
    """Disk directories that share a device, named as what they are."""
    by_device: dict[int, list[int]] = {}
    for disk in disks:
        if disk.state is DiskState.HEALTHY and not disk.node:
            by_device.setdefault(disk.device, []).append(disk.number)
    return [
        f"Disks {', '.join(map(str, numbers))} are directories on one device: a convenience that survives no"
        " disk. Its capacity counts once. For real data give each --disk a device of its own."
        for numbers in by_device.values()
        if len(numbers) > 1
    ]
