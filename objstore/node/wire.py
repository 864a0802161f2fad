"""What a gateway and a storage node say to each other: paths, headers, errors, limits. Pure.

One URL a call of node/disk.py's Disk, and one for what a loop turn writes to several disks of a node; drawn
in docs/protocol.md. Both sides (server.py, remote.py) take every name and number from here, so that they
cannot differ. Nothing is ever unpickled; numbers are parsed by anchored ASCII patterns.

May not know: sockets, aiohttp, disks that are directories.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from objstore.errors import (
    Corrupt,
    Denied,
    DiskFailed,
    DiskFull,
    DiskMissing,
    Overloaded,
    StaleEpoch,
)

VERSION: Final = 1
PREFIX: Final = f"/v{VERSION}"
STATE_PATH: Final = f"{PREFIX}/state"
PROBE_PATH: Final = f"{PREFIX}/probe"
WRITE_PATH: Final = f"{PREFIX}/write"

# Headers. Of a request:
CLUSTER: Final = "X-Cluster"  # 32 hex digits.
EPOCH: Final = "X-Epoch"  # Decimal: the newest epoch that the sender knows to be in force.
SINCE: Final = "X-Since"  # The instance that the sender relies on: another one refuses.
REPEAT: Final = "X-Repeat"  # "1": sent before, and its answer was lost.
# Of an answer:
INSTANCE: Final = "X-Instance"  # 16 hex digits: one start of a node's process.
STATE: Final = "X-State"  # Of a read: the disk's state, where it is not healthy.
REASON: Final = "X-Reason"  # Beside it, percent-encoded.

KIB: Final = 1024
MIB: Final = 1024 * KIB
HEAD_MAX: Final = 8 * KIB  # Bytes of a request's or an answer's head. Ours have 300.
# Bytes of a request's body. A round of the committer ends with the message that brings it to 16 MiB, and one
# message may have as much: twice that is the largest journal batch, and some for what goes around it.
BODY_MAX: Final = 36 * MIB
BATCH_SIZE: Final = 4 * MIB  # Bytes after which what a turn writes goes on in a second request.
BATCH_ITEMS_MAX: Final = 256
READ_MAX: Final = 4 * MIB  # Bytes of one answer to a read; longer reads are several requests.
ANSWER_MAX: Final = 256 * KIB  # Bytes of any other answer, lists excepted.
LIST_MAX: Final = 64 * MIB  # Bytes of a list: a million fragment files.
PROBE_MAX: Final = MIB
REASON_MAX: Final = 300  # Characters of a reason in a header: 3 to 12 bytes each.
WORDS_MAX: Final = 1_000  # Characters of an error's words or of a reason.

# A transfer has this long for each byte, beside its limit: who is slower is ejected. A gigabit link carries
# 110 MiB/s; one hundredth of it is what a link that nobody wants to keep looks like.
RATE_MIN: Final = MIB  # Bytes a second.

LOG_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII)  # As node/local.py has it.
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_CLUSTER: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_INSTANCE: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_TARGET: Final = re.compile(
    r"/v1/disks/([1-9][0-9]{0,9})/([a-z-]{1,20})(?:\?([a-z]+=[A-Za-z0-9._-]*(?:&[a-z]+=[A-Za-z0-9._-]*)*))?",
    re.ASCII,
)


class Verb(NamedTuple):
    """One call of a disk over the wire."""

    name: str
    method: str
    arguments: tuple[str, ...]  # In the query. All are numbers but `name`.
    changes: bool = False  # The disk is written: waited for by a new epoch.
    fenced: bool = True  # Refused from an older epoch.
    body_max: int = 0


VERBS: Final[Mapping[str, Verb]] = {
    verb.name: verb
    for verb in (
        Verb("read", "GET", ("volume", "index", "at", "size")),
        Verb("create", "POST", ("volume", "index"), changes=True),
        Verb("seal", "POST", ("volume", "index", "length"), changes=True),
        Verb("retire", "POST", ("volume", "index", "now"), changes=True),
        Verb("purge", "POST", ("volume", "index", "before"), changes=True),
        Verb("fragments", "GET", ()),
        Verb("replace-begin", "POST", ("volume", "index"), changes=True),
        Verb("replace-append", "POST", ("name", "at"), changes=True, body_max=BODY_MAX),
        Verb("replace-publish", "POST", ("name", "length"), changes=True),
        Verb("replace-abandon", "POST", ("name",), changes=True),
        Verb("log-create", "POST", ("name",), changes=True, body_max=BODY_MAX),
        Verb("log-read", "GET", ("name", "at", "size")),
        Verb("log-remove", "POST", ("name",), changes=True),
        Verb("logs", "GET", ()),
        # Whoever starts anew learns the epoch first: what asks for it names none that could be old.
        Verb("epoch", "GET", (), fenced=False),
        Verb("note-epoch", "POST", ("epoch",)),
        Verb("fence", "POST", ("epoch",)),
        Verb("usage", "GET", ()),
        # Nor what clears a disk that could not even be read when its node started.
        Verb("verify", "POST", (), changes=True, fenced=False),
    )
}


class Item(msgspec.Struct, array_like=True, frozen=True):
    """One write of a batch. Its payload is the next `size` bytes behind the manifest."""

    kind: str  # "append", "append-sync", "sync", "log".
    disk: int
    volume: int = 0
    index: int = 0
    offset: int = 0
    size: int = 0
    name: str = ""  # Of a log.
    since: str = ""  # As the header SINCE, for this item.
    repeat: bool = False


KINDS: Final = frozenset({"append", "append-sync", "sync", "log"})
_items: Final = msgspec.msgpack.Decoder(list[Item])


class Failure(msgspec.Struct, omit_defaults=True):
    """An error as it travels: in a body of JSON, or as one item's outcome."""

    code: str
    words: str
    state: str = ""  # Of the disk, now; empty if it is not about one.
    reason: str = ""
    epoch: int = 0  # stale-epoch: the one that is noted.


class Outcome(msgspec.Struct, array_like=True):
    """What became of one item of a batch: `failure` is None when it is done."""

    item: int
    failure: Failure | None


_outcomes: Final = msgspec.json.Decoder(list[Outcome])


class Success(msgspec.Struct):
    """An answer that is not raw bytes, with the disk's state after the call."""

    state: str
    reason: str
    result: msgspec.Raw = msgspec.Raw(b"null")


class DiskReport(msgspec.Struct):
    number: int
    uuid: str  # 32 hex digits.
    path: str
    state: str
    reason: str
    epoch: int  # The newest that is noted or fenced with.


class NodeReport(msgspec.Struct):
    """The answer to STATE_PATH."""

    cluster: str
    instance: str
    disks: list[DiskReport]


class BadMessage(Exception):
    """What came is not of this protocol. The message says what is wrong."""


# Errors: (code, status, class). A test holds that each class of the Disk contract has exactly one row.

ERRORS: Final[tuple[tuple[str, int, type[Exception]], ...]] = (
    ("disk-failed", 503, DiskFailed),
    ("disk-full", 507, DiskFull),
    ("disk-missing", 410, DiskMissing),
    ("not-found", 404, FileNotFoundError),
    ("exists", 409, FileExistsError),
    ("denied", 403, Denied),
    ("overloaded", 429, Overloaded),
    ("stale-epoch", 412, StaleEpoch),
    ("corrupt", 500, Corrupt),
    ("misuse", 422, AssertionError),  # The caller broke the contract of node/disk.py.
)
# What only the wire knows; at the gateway they are DiskFailed (the first: DiskMissing).
OTHER_CLUSTER: Final = "other-cluster"
RESTARTED: Final = "restarted"  # The instance that was relied on is gone.
BAD_REQUEST: Final = "bad-request"
BUG: Final = "bug"
STATUSES: Final[Mapping[str, int]] = {
    **{code: status for code, status, _ in ERRORS},
    OTHER_CLUSTER: 421,
    RESTARTED: 409,
    BAD_REQUEST: 400,
    BUG: 500,
}
_CLASSES: Final = {code: kind for code, _, kind in ERRORS}


class Restarted(DiskFailed):
    """The node's process is not the one any more that was relied on."""


def failure_of(error: BaseException) -> Failure:
    """An exception of the Disk contract as it travels; anything else is a bug of the node."""
    if isinstance(error, Restarted):
        return Failure(RESTARTED, str(error))
    if isinstance(error, StaleEpoch):
        return Failure("stale-epoch", str(error), epoch=error.noted)
    for code, _, kind in ERRORS:
        if isinstance(error, kind):
            return Failure(code, str(error)[:WORDS_MAX])
    if isinstance(error, OSError):
        return Failure("disk-failed", str(error)[:WORDS_MAX])
    return Failure(BUG, f"a bug in the node: {error!r}"[:WORDS_MAX])


def error_of(failure: Failure, named: int) -> Exception:
    """The exception at the gateway. `named`: the epoch that the request named."""
    if failure.code == "stale-epoch":
        return StaleEpoch(named=named, noted=failure.epoch)
    if failure.code == OTHER_CLUSTER:
        return DiskMissing(failure.words)
    if failure.code == RESTARTED:
        return Restarted(failure.words)
    kind = _CLASSES.get(failure.code, DiskFailed)
    return kind(failure.words)


# Requests.


def parse_number(text: str, name: str) -> int:
    """A decimal number below 2**64. Raises: BadMessage."""
    if not _NUMBER.fullmatch(text):
        raise BadMessage(f"{name} is not a number")
    value = int(text)
    if value >> 64:
        raise BadMessage(f"{name} is too large")
    return value


def state_headers(state: str, reason: str) -> bytes:
    """For an answer that is raw bytes: the state of a disk that is not healthy, as header lines."""
    return f"{STATE}: {state}\r\n{REASON}: {quote(reason[:REASON_MAX])}\r\n".encode()


def reason_of(header: str) -> str:
    return unquote(header)


def target(disk: int, verb: str, **arguments: int | str) -> str:
    """The path and query of a call. Arguments are numbers and names that we made: nothing needs escaping."""
    path = f"{PREFIX}/disks/{disk}/{verb}"
    if not arguments:
        return path
    return path + "?" + "&".join([f"{name}={value}" for name, value in arguments.items()])


def parse_target(path: str) -> tuple[int, Verb, dict[str, Any]]:
    """Disk, verb and arguments (numbers; `name` is text). Raises: BadMessage."""
    match = _TARGET.fullmatch(path)
    if match is None:
        if not path.startswith(f"{PREFIX}/"):
            raise BadMessage(f"this node speaks {PREFIX}: its release and the asking machine's do not fit")
        raise BadMessage("no such path")
    verb = VERBS.get(match[2])
    if verb is None:
        raise BadMessage(f"no such call: {match[2]}")
    found: dict[str, Any] = {}
    if match[3]:
        for pair in match[3].split("&"):
            name, _, value = pair.partition("=")
            if name in found:
                raise BadMessage(f"{name} is given twice")
            found[name] = value if name == "name" else parse_number(value, name)
    if tuple(found) != verb.arguments:
        raise BadMessage(f"{verb.name} takes ({', '.join(verb.arguments)})")
    return int(match[1]), verb, found


def parse_cluster(text: str) -> bytes:
    """Raises: BadMessage."""
    if not _CLUSTER.fullmatch(text):
        raise BadMessage(f"{CLUSTER} is missing, or not 32 hex digits")
    return bytes.fromhex(text)


def is_instance(text: str) -> bool:
    return _INSTANCE.fullmatch(text) is not None


def encode_manifest(items: list[Item]) -> bytes:
    """What goes before the payloads of a batch: four bytes, big endian, of size, and the items."""
    data = msgspec.msgpack.encode(items)
    return len(data).to_bytes(4, "big") + data


def decode_manifest(data: bytes | bytearray | memoryview, payload_size: int) -> list[Item]:
    """`data` without its size. Raises: BadMessage."""
    try:
        items = _items.decode(data)
    except msgspec.MsgspecError as failure:
        raise BadMessage(f"the manifest is damaged: {failure}") from None
    if not 1 <= len(items) <= BATCH_ITEMS_MAX:
        raise BadMessage(f"{len(items)} items, at most {BATCH_ITEMS_MAX} are taken")
    size = 0
    for item in items:
        if item.kind not in KINDS or min(item.disk, item.volume, item.index, item.offset, item.size) < 0:
            raise BadMessage("an item of the manifest makes no sense")
        size += item.size
    if size != payload_size:
        raise BadMessage(f"the items have {size} bytes, {payload_size} came")
    return items


def decode_outcomes(data: bytes | bytearray | memoryview) -> list[Outcome]:
    """Raises: BadMessage."""
    try:
        return _outcomes.decode(data)
    except msgspec.MsgspecError as failure:
        raise BadMessage(f"an outcome is damaged: {failure}") from None
