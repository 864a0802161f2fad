"""The records of the audit log, and how they are chained.

    T <sequence 8>          AuditRecord
    S audit                 AuditHead

`previous` of a record is the SHA-256 of the value before it, as it is stored; the head has that of the
newest. So a record that is edited, removed or moved no longer fits its successor, and one cut off at the end
no longer fits the head. Who can write metadata can rewrite all of it: an anchor kept elsewhere
(sequence:digest) shows that as well.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.schema import Record, setting_key

HEAD_KEY: Final = setting_key("audit")
DONE: Final = "done"
BEGUN: Final = "begun"  # What cannot be recorded in one commit with the act: one of these before, one after.
_ANCHOR: Final = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})", re.ASCII)


class Changed(msgspec.Struct, frozen=True, array_like=True):
    """A record that an act changed: the fields that differ, as JSON without secrets; empty: there is none."""

    what: str  # "tenant acme"
    before: str
    after: str


class AuditRecord(Record, frozen=True, array_like=True, kw_only=True):
    """An administrative act, or a part of one that took several commits (they have the same `request`)."""

    at_us: int  # Never below its predecessor's.
    who: str  # A user's name; "operator": who has the store's own token.
    action: str  # As the API names it: create_user.
    target: str  # As its path names it: users/alice.
    outcome: str  # done | begun | failed: WHY | refused: WHY
    tenant: str = ""  # Of `who`.
    token: str = ""  # Id of the token; the operator's has none.
    source: str = ""  # The address that it came from.
    request: str = ""  # Made for each request.
    changes: list[Changed] = []
    previous: bytes = b""  # SHA-256 of the record before; empty: this is the first.


class AuditHead(Record, frozen=True, array_like=True, kw_only=True):
    sequence: int = 0  # Of the newest record,
    digest: bytes = b""  # its SHA-256,
    at_us: int = 0  # and its moment.


@dataclass(frozen=True, slots=True)
class Anchor:
    """A place in the log and what it was: kept elsewhere, it shows whether all up to it is still the same."""

    sequence: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> "Anchor":
        """Raises: BadArgument."""
        match = _ANCHOR.fullmatch(text)
        if match is None or int(match[1]) >= 1 << 63:
            raise BadArgument("an anchor is a number, a colon and 64 hex digits", name="anchor", value=text)
        return cls(int(match[1]), bytes.fromhex(match[2]))


BEGINNING: Final = Anchor(0, b"\0" * 32)


def audit_key(sequence: int) -> bytes:
    return b"T" + sequence.to_bytes(8, "big")


def digest_of(value: bytes) -> bytes:
    """Of a record as it is stored."""
    return hashlib.sha256(value).digest()
