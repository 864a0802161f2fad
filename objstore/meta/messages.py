"""What a client and the committer say to each other over the Unix socket.

A frame is its size (4 bytes, little-endian) and a MessagePack value. The first frame of each side
is a greeting; then the client sends batches and the committer answers each, in order.

    client      Hello          [format, client id]
    committer   Welcome        [format, state path, device, inode, epoch, pid, last applied number]
    client      batch          [number, [transaction, ...]]     transaction: kv.Transaction, positional
    committer   Answer         [number, known, [failure, ...]]

Batch numbers of one client ascend, gaps included: a batch that the client has given up is never
sent again. A batch whose number is at or below the client's last applied one is not applied again:
its outcome is looked up. `known` is false when that lies too far back. Number 0 is a report, not a batch:
the client could not read the keys that its transactions name in `expect`. It is not answered.

Pure: bytes in, values out.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from objstore.errors import Conflict, Corrupt, LimitReached, StoreError
from objstore.meta.kv import KEY_SIZE_MAX, VALUE_SIZE_MAX, Transaction
from objstore.meta.kv_lmdb import BatchFailures, ClientRecord, Failure

FORMAT = 1
FRAME_SIZE_MAX = 16 * 1024 * 1024  # Bytes; longer ones end the connection.
TRANSACTION_SIZE_MAX = 8 * 1024 * 1024  # Bytes: a CompleteMultipartUpload of 10,000 parts has about 1 MB.
REMEMBERED_BATCHES = 16  # Batches back for which failures are kept; a client has fewer outstanding.

REPORT = 0  # In place of a batch's number.

CONFLICT = 1  # Failure.kind
LIMIT = 2
ROTTEN = 3  # A record that the decision needs fails its checksum.

_FRAME = struct.Struct("<I")


class Hello(msgspec.Struct, frozen=True, array_like=True):
    format: int
    client: bytes  # 16 bytes.


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    format: int
    path: str  # Of the LMDB environment.
    device: int
    inode: int
    epoch: int
    pid: int
    last: int  # The client's last applied batch; 0 if none is known. New numbers lie above it.


class Answer(msgspec.Struct, frozen=True, array_like=True):
    number: int
    known: bool
    failures: list[Failure]


class ReceivedTransaction(NamedTuple):
    """`kv.Transaction` as the committer gets it. Sums beyond 64 bits travel as 16 bytes."""

    expect: dict[bytes, bytes | None]
    put: dict[bytes, bytes]
    delete: list[bytes]
    add: dict[bytes, tuple[int | bytes, int | bytes | None]]


class ReceivedBatch(NamedTuple):
    number: int
    transactions: list[ReceivedTransaction]


encode = msgspec.msgpack.Encoder().encode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_welcome = msgspec.msgpack.Decoder(Welcome).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_batch = msgspec.msgpack.Decoder(ReceivedBatch).decode


def frame(payload: bytes) -> bytes:
    assert len(payload) <= FRAME_SIZE_MAX
    return _FRAME.pack(len(payload)) + payload


def encode_transaction(transaction: Transaction) -> bytes:
    """Raises: ValueError if a key, a value or the whole is too long, or a key is written twice."""
    expect, put, delete, add = transaction
    for key, value in put.items():
        if not 1 <= len(key) <= KEY_SIZE_MAX or len(value) > VALUE_SIZE_MAX:
            raise ValueError(f"a key of {len(key)} bytes with a value of {len(value)} bytes: {key[:100]!r}")
    written = len(put) + len(delete) + len(add)
    if (delete or add) and len({*put, *delete, *add}) != written:
        raise ValueError("a key is written twice in one transaction")
    try:
        encoded = encode((expect, put, delete, add))
    except OverflowError:
        wide = {key: tuple(_wide(number) for number in one) for key, one in add.items()}
        encoded = encode((expect, put, delete, wide))
    if len(encoded) > TRANSACTION_SIZE_MAX:
        raise ValueError(f"a transaction of {len(encoded)} bytes, at most {TRANSACTION_SIZE_MAX}")
    return encoded


def _wide(number: int | None) -> bytes | None:
    return None if number is None else number.to_bytes(16, "big", signed=True)


def narrow(number: int | bytes) -> int:
    return int.from_bytes(number, "big", signed=True) if isinstance(number, bytes) else number


def batch_frame(number: int, transactions: Sequence[bytes]) -> bytes:
    """The frame of one batch from transactions that are already encoded."""
    # [number, [transactions]]: MessagePack by hand, so that nothing is encoded twice.
    head = b"\x92\xcf" + number.to_bytes(8, "big") + b"\xdd" + len(transactions).to_bytes(4, "big")
    body = b"".join((head, *transactions))
    return frame(body)


def failure_of(failure: Failure) -> StoreError:
    if failure.kind == LIMIT:
        return LimitReached(failure.key, value=_unpacked(failure.value), at_most=_unpacked(failure.at_most))
    if failure.kind == ROTTEN:
        return Corrupt(f"metadata record {failure.key!r} fails its checksum; it is being mended")
    assert failure.kind == CONFLICT
    return Conflict(failure.key)


def packed(number: int) -> int | bytes:
    return number if -(1 << 63) <= number < 1 << 63 else number.to_bytes(16, "big", signed=True)


def _unpacked(number: int | bytes) -> int:
    return narrow(number)


def advanced(
    record: ClientRecord | None, number: int, time_us: int, failures: list[BatchFailures]
) -> ClientRecord:
    """A client's record after its batch `number`; failures beyond REMEMBERED_BATCHES are forgotten."""
    kept = [one for one in record.failures if one.number > number - REMEMBERED_BATCHES] if record else []
    return ClientRecord(number, time_us, [*kept, *failures] if failures else kept)


class FrameReader:
    """Cuts a byte stream into frames. Raises ValueError on a frame beyond the limit."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        held = self._held
        held += data
        frames: list[bytes] = []
        at = 0
        while len(held) - at >= 4:
            (size,) = _FRAME.unpack_from(held, at)
            if size > FRAME_SIZE_MAX:
                raise ValueError(f"a frame of {size} bytes, at most {FRAME_SIZE_MAX}")
            if len(held) - at - 4 < size:
                break
            frames.append(bytes(memoryview(held)[at + 4 : at + 4 + size]))
            at += 4 + size
        if at:
            del held[:at]
        return frames
