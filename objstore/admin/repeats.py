"""Requests that may be sent again: a POST with an Idempotency-Key is carried out once.

    begun       claimed; the act's first commit expects this very record and makes it
    committed   in the same mini-transaction: whatever dies from here on, it is not done again
    answered    with the answer, which repeats get for 24 hours

A claim whose request is long over and committed nothing is taken over by the next repeat, which shuts the
first one out: its commit no longer finds its own record.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.admin.callers import Caller
from objstore.admin.guard import REQUEST_SECONDS
from objstore.admin.problems import Problem
from objstore.errors import Conflict
from objstore.ids import Randomness
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import RepeatRecord, decode, encode, repeat_key

KEPT_US: Final = 24 * 3_600 * 1_000_000
TAKEN_OVER_US: Final = int(2 * REQUEST_SECONDS * 1e6)  # No request takes so long: guard.py ends it.
KEY_SIZE_MAX: Final = 255  # Characters.
ANSWER_SIZE_MAX: Final = 7_000  # Bytes: the record stays under 8 KiB.
SWEPT_MAX: Final = 200  # Records removed in one commit.
_ATTEMPTS_MAX: Final = 64


class Refused(Problem):
    """A repeat that is not answered: no act of its own."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that is carried out now, for the first time as far as anything was committed."""

    key: bytes
    begun: bytes  # The record as its commit expects it,
    committed: bytes  # and as it makes it.


@dataclass(frozen=True, slots=True)
class Repeated:
    status: int
    answer: bytes


async def claim(
    kv: Kv, caller: Caller, text: str, request: bytes, *, now_us: int, randomness: Randomness
) -> Claim | Repeated:
    """Claim a key for a request, or what became of the request that had it.

    Args:
        text: the Idempotency-Key.
        request: what must be the same in a repeat: method, path and body.

    Raises: Refused 400 (no such key can be), 409 (it is under way, or its answer is lost), 422 (the key was
        used for another request), 503.
    """
    if not text or len(text) > KEY_SIZE_MAX or not text.isascii() or not text.isprintable():
        raise Refused(400, f"an Idempotency-Key has 1 to {KEY_SIZE_MAX} printable ASCII characters")
    owner = f"{caller.tenant}\0{caller.name}\0{text}".encode()
    key = repeat_key(hashlib.sha256(owner).digest())
    digest = hashlib.sha256(request).digest()
    for _ in range(_ATTEMPTS_MAX):
        value = await kv.get(key)
        if value is not None:
            record = decode(value, RepeatRecord)
            if now_us < record.since_us + KEPT_US and not _is_abandoned(record, digest, now_us):
                return _repeated(record, digest)
        begun = RepeatRecord(digest=digest, since_us=now_us, attempt=randomness(8))
        new = Claim(key, encode(begun), encode(msgspec.structs.replace(begun, state="committed")))
        try:
            await kv.commit(Transaction(expect={key: value}, put={key: new.begun}))
        except Conflict:
            continue
        return new
    raise Refused(503, "too many requests with this Idempotency-Key")


def _is_abandoned(record: RepeatRecord, digest: bytes, now_us: int) -> bool:
    return record.state == "begun" and record.digest == digest and now_us >= record.since_us + TAKEN_OVER_US


def _repeated(record: RepeatRecord, digest: bytes) -> Repeated:
    if record.digest != digest:
        raise Refused(422, "this Idempotency-Key was used for another request")
    if record.state == "begun":
        raise Refused(409, "a request with this Idempotency-Key is under way: try again in a few minutes")
    if record.state == "committed" or not record.answer:
        raise Refused(409, "this was carried out already; its answer is not kept: look at what it made")
    return Repeated(record.status, record.answer)


async def answered(kv: Kv, claimed: Claim, status: int, answer: bytes) -> None:
    """Keep the answer for repeats: of an act that committed, or of one that needed no commit."""
    record = decode(claimed.begun, RepeatRecord)
    value = await kv.get(claimed.key)
    if value not in (claimed.begun, claimed.committed):
        return  # Taken over, or expired and swept.
    kept = answer if len(answer) <= ANSWER_SIZE_MAX else b""
    new = msgspec.structs.replace(record, state="answered", status=status, answer=kept)
    try:
        await kv.commit(Transaction(expect={claimed.key: value}, put={claimed.key: encode(new)}))
    except Conflict:
        pass  # As above.


async def released(kv: Kv, claimed: Claim) -> None:
    """The request failed: if it committed nothing, the same may be tried again."""
    try:
        await kv.commit(Transaction(expect={claimed.key: claimed.begun}, delete=[claimed.key]))
    except Conflict:
        pass  # It committed, or was taken over.


async def sweep(kv: Kv, *, now_us: int) -> int:
    """Remove those that have expired; how many."""
    removed = 0
    start = b"I"
    while pairs := await kv.scan(start, prefix_end(b"I"), SWEPT_MAX):
        start = pairs[-1][0] + b"\0"
        old = {key: value for key, value in pairs if now_us >= decode(value, RepeatRecord).since_us + KEPT_US}
        if not old:
            continue
        try:
            await kv.commit(Transaction(expect=old, delete=list(old)))
        except Conflict:
            continue  # One of them was used anew just now: the next sweep takes the others.
        removed += len(old)
    return removed
