"""Records as the API shows them: objects with named fields, moments as RFC 3339 text, bytes in hex.

The type of an answer is made from the record's own, so that a field that is added there shows up here, and in
the OpenAPI description, by itself.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from objstore.clock import utc_text
from objstore.meta.schema import Limits

HIDDEN: Final = frozenset(
    {"format", "secret", "digest_of_secret", "sealed_under", "customer_snapshot", "seller_snapshot", "logo"}
)
# Where a moment without its unit would be called as another field is.
MOMENTS: Final = {"paid_us": "paid_at"}
_made: dict[type, Any] = {}

T = TypeVar("T")


class List(msgspec.Struct, typing.Generic[T], frozen=True):
    """A page of a list; `next` is the cursor of the page behind it, null on the last one."""

    items: list[T]
    next: str | None


class Done(msgspec.Struct, frozen=True):
    """What has been done; there is nothing else to say."""

    done: str


class LimitsView(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quotas and rates; null: no limit. Bytes are billed bytes."""

    bytes_max: int | None = None
    objects_max: int | None = None
    bytes_soft: int | None = None
    buckets_max: int | None = None
    requests_per_s: int | None = None
    bytes_per_s: int | None = None

    def limits(self) -> Limits:
        return Limits(**msgspec.structs.asdict(self))


def view(record: type, name: str = "") -> Any:
    """The type of what `shown` makes of such a record."""
    if record is Limits:
        return LimitsView
    if record not in _made:
        fields = [
            (_name_of(field.name), _type_of(field.name, field.type))
            for field in msgspec.structs.fields(record)
            if field.name not in HIDDEN
        ]
        assert len(dict(fields)) == len(fields), f"{record.__name__}: two fields of one name"
        title = name or record.__name__.removesuffix("Record")
        _made[record] = msgspec.defstruct(title, fields, frozen=True, kw_only=True, module=__name__)
    return _made[record]


def list_of(kind: Any) -> Any:
    """The type of a page of what `view` made."""
    return List[kind]


def _name_of(field: str) -> str:
    return MOMENTS.get(field) or field.removesuffix("_us")


def _type_of(name: str, kind: Any) -> Any:
    if name.endswith("_us"):
        return str | None
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return view(kind)
    if kind in (bytes, Decimal, Fraction):
        return str
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return Union[tuple(_type_of("", one) for one in inner)]  # noqa: UP007  (Made at run time.)
    if origin in (list, tuple):
        if origin is tuple and inner[-1] is not Ellipsis:
            return list[Any]
        return list[_type_of("", inner[0])]  # type: ignore[misc]
    if origin in (dict, Mapping):
        return dict[str, _type_of("", inner[1])]  # type: ignore[misc]
    return kind


def body_of(
    record: type, name: str, *, omit: Sequence[str] = (), more: Sequence[Any] = (), partial: bool = False
) -> Any:
    """The type of a body that says what a record is to hold; `given_of` gives it back by the record's names.

    Args:
        omit: fields that are not the client's to say.
        more: fields beside the record's, as msgspec.defstruct takes them.
        partial: all of it may be left out, and stays as it is.
    """
    fields: list[Any] = []
    for field in msgspec.structs.fields(record):
        if field.name in (*omit, "format"):
            continue
        kind: Any = (datetime | None) if field.name.endswith("_us") else _type_of("", field.type)
        if partial:
            fields.append((_name_of(field.name), kind | msgspec.UnsetType, msgspec.UNSET))
        elif field.required:
            fields.append((_name_of(field.name), datetime if field.name.endswith("_us") else kind))
        else:
            default = None if field.name.endswith("_us") else _default_of(field)
            fields.append((_name_of(field.name), kind, default))
    return msgspec.defstruct(
        name, [*fields, *more], frozen=True, kw_only=True, forbid_unknown_fields=True, module=__name__
    )


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return LimitsView() if isinstance(field.default, Limits) else field.default


def given_of(body: Any, record: type) -> dict[str, Any]:
    """What a body says, by the names of the record's fields, without what was left out of a partial one."""
    found: dict[str, Any] = {}
    names = {_name_of(name): name for name in record.__struct_fields__}  # type: ignore[attr-defined]
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if name in names and value is not msgspec.UNSET:
            is_moment = names[name].endswith("_us")
            found[names[name]] = microseconds(value) if is_moment else value
    return found


def shown(value: Any, **more: Any) -> Any:
    """A record, or what is in one, as JSON has it; `more` fields beside its own."""
    if isinstance(value, msgspec.Struct):
        fields = {}
        for name in value.__struct_fields__:
            if name not in HIDDEN:
                one = getattr(value, name)
                fields[_name_of(name)] = moment(one) if name.endswith("_us") else shown(one)
        return {**fields, **more}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        return {str(name): shown(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(one) for one in value]
    return value


def moment(us: int) -> str | None:
    """Microseconds since 1970 -> 2026-11-22T09:00:00Z; 0 is never."""
    return utc_text(us // 1_000_000) if us else None


def microseconds(given: datetime | None) -> int:
    """A moment as it came in a body or query; without a zone it is UTC. None: 0."""
    if given is None:
        return 0
    aware = given if given.tzinfo is not None else given.replace(tzinfo=UTC)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds
