"""What a commit changes, for people and without secrets: the fields that differ, record by record."""

import hashlib
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from objstore.audit.records import Changed
from objstore.meta import schema
from objstore.meta.kv import Transaction
from objstore.meta.schema import Limits, Record, decode
from objstore.rental import records as rental
from objstore.rental.plans import PlanRecord
from objstore.rental.service_levels import ServiceEventRecord, ServiceLevelRecord
from objstore.rental.taxes import TaxRuleRecord
from objstore.rental.terms import QUOTA

RECORD_SIZE_MAX: Final = 6_000  # Bytes of changes in one AuditRecord: the whole stays under a value's 8 KiB.
TEXT_SIZE_MAX: Final = 400  # Bytes of a before or after, once they are too many for that.
BYTES_SHOWN: Final = 64
HIDDEN: Final = frozenset({"secret", "digest_of_secret", "sealed_under", "logo"})


class Kind(NamedTuple):
    name: str
    record: type[Record]


# By the beginning of the key; the longest that fits counts. What is not here is counted, not shown.
KINDS: Final[Mapping[bytes, Kind]] = {
    b"t": Kind("tenant", schema.TenantRecord),
    b"u": Kind("user", schema.UserRecord),
    b"k": Kind("access key", schema.AccessKeyRecord),
    b"K": Kind("token", schema.TokenRecord),
    b"a": Kind("account", schema.AccountRecord),
    b"b": Kind("bucket", schema.BucketRecord),
    b"Yl": Kind("seller", rental.SellerRecord),
    b"Yc": Kind("customer", rental.CustomerRecord),
    b"Yj": Kind("project", rental.ProjectRecord),
    b"Yi": Kind("document", rental.InvoiceRecord),
    b"YP": Kind("payment", rental.PaymentRecord),
    b"YW": Kind("wallet", rental.WalletRecord),
    b"YL": Kind("lease", rental.LeaseRecord),
    b"Yo": Kind("offer", rental.OfferRecord),
    b"Ye": Kind("capacity event", rental.CapacityEventRecord),
    b"YV": Kind("rules of sale", rental.SalesRecord),
    b"Yp": Kind("plan", PlanRecord),
    b"Yt": Kind("tax rule", TaxRuleRecord),
    b"YS": Kind("service level", ServiceLevelRecord),
    b"YM": Kind("service event", ServiceEventRecord),
    b"YE": Kind("export", rental.ExportRecord),
    b"Yz": Kind("purge", rental.PurgeRecord),
}
_LINES_KEY_SIZE: Final = 2 + 26 + 3  # Yi <document id> 00 <page 2>: lines, not the document.


def plain(value: Any) -> Any:
    """A record as JSON can have it: fields by name, bytes in hex or by their SHA-256, secrets gone."""
    if isinstance(value, msgspec.Struct):
        return {
            name: _field(name, getattr(value, name)) for name in value.__struct_fields__ if name != "format"
        }
    if isinstance(value, (date, Decimal)):
        return str(value)
    if isinstance(value, bytes):
        return value.hex() if len(value) <= BYTES_SHOWN else f"sha256 {hashlib.sha256(value).hexdigest()}"
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def _field(name: str, value: Any) -> Any:
    if name == "settings" and value:  # Of a bucket: its limits, and names of what else there is.
        return {
            one: plain(decode(its, Limits)) if one == QUOTA else "(not shown)" for one, its in value.items()
        }
    return "(not shown)" if name in HIDDEN and value else plain(value)


def changes_of(transaction: Transaction) -> list[Changed]:
    """Of the records of KINDS that a commit puts or deletes; what was there before is what it expects."""
    found: list[Changed] = []
    others = 0
    for key, new in [*transaction.put.items(), *((key, None) for key in transaction.delete)]:
        kind = _kind_of(key)
        if kind is None:
            others += 1
            continue
        prefix, (name, record) = kind
        before, after = _differing(_plain(transaction.expect.get(key), record), _plain(new, record))
        words = key[len(prefix) :].replace(b"\0", b"/").decode(errors="replace")
        found.append(Changed(f"{name} {words}".rstrip(), before, after))
    if others:
        found.append(Changed(f"{others} other records", "", ""))
    return _bounded(found)


def _kind_of(key: bytes) -> tuple[bytes, Kind] | None:
    if key[:2] == b"Yi" and len(key) == _LINES_KEY_SIZE:
        return None
    for size in (2, 1):
        if kind := KINDS.get(key[:size]):
            return key[:size], kind
    return None


def _plain(value: bytes | None, record: type[Record]) -> dict[str, Any] | None:
    if value is None:
        return None
    shown: dict[str, Any] = plain(decode(value, record))
    return shown


def _differing(before: dict[str, Any] | None, after: dict[str, Any] | None) -> tuple[str, str]:
    if before is None or after is None:
        return _text(before), _text(after)
    names = [name for name in after if before.get(name) != after[name]]
    return _text({name: before.get(name) for name in names}), _text({name: after[name] for name in names})


def _text(facts: dict[str, Any] | None) -> str:
    return "" if facts is None else msgspec.json.encode(facts).decode()


def _bounded(changes: list[Changed]) -> list[Changed]:
    """The same, or what fits of it: long texts by their SHA-256, then the first ones only."""
    if _size(changes) <= RECORD_SIZE_MAX:
        return changes
    changes = [Changed(one.what[:200], _short(one.before), _short(one.after)) for one in changes]
    kept: list[Changed] = []
    for one in changes:
        if _size([*kept, one]) > RECORD_SIZE_MAX:
            return [*kept, Changed(f"{len(changes) - len(kept)} more", "", "")]
        kept.append(one)
    return kept


def _size(changes: list[Changed]) -> int:
    return sum(len(text.encode()) + 3 for one in changes for text in (one.what, one.before, one.after))


def _short(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= TEXT_SIZE_MAX:
        return text
    digest = hashlib.sha256(encoded).hexdigest()
    return msgspec.json.encode({"bytes": len(encoded), "sha256": digest}).decode()
