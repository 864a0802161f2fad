"""A request's body and query into values: within bounds, by their types, with words for what is wrong."""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from objstore.admin.problems import FieldError, Problem

BODY_SIZE_MAX: Final = 64 * 1024  # Bytes; ours have a few hundred, an access key's policy a few thousand.
NUMBER_MAX: Final = (1 << 63) - 1  # Records keep 64 bits, with a sign.
_AT: Final = re.compile(r" - at `\$([^`]*)`")
_STEP: Final = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]*)`")
# Save tabs and line ends (of a policy, of a plan); with what turns a text's direction unseen.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CHOICE: Final = re.compile(r"Invalid enum value (.*)", re.DOTALL)
MOMENT: Final = "2027-01-31T00:00:00Z"
_MISSING: Final = re.compile(r"Object missing required field `([^`]*)`")

T = TypeVar("T")


async def read_body(request: web.BaseRequest) -> bytes:
    """Raises: Problem 413, 415."""
    kind = request.headers.get("Content-Type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and request.can_read_body:
        raise Problem(415, "the request's body must be application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "the request's body must not be compressed")
    if request.content_length is not None and request.content_length > BODY_SIZE_MAX:
        raise Problem(413, "the request's body is too large")
    content = await request.content.read(BODY_SIZE_MAX + 1)
    while len(content) <= BODY_SIZE_MAX and (more := await request.content.read(BODY_SIZE_MAX + 1)):
        content += more
    if len(content) > BODY_SIZE_MAX:
        raise Problem(413, "the request's body is too large")
    return content


def parse_body(content: bytes, kind: type[T]) -> T:
    """Raises: Problem 400."""
    try:
        value = msgspec.json.decode(content or b"{}", type=kind)
    except msgspec.ValidationError as failure:
        raise _invalid(str(failure), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, "the request's body is not JSON") from None
    _check_sane(value, "")
    return value


def parse_query(query: Mapping[str, str], kind: type[T]) -> T:
    """Raises: Problem 400."""
    try:
        value = msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as failure:
        words, _ = explained(str(failure), kind)
        raise Problem(400, f"the address's query: {words}") from None
    try:
        _check_sane(value, "")
    except Problem as problem:
        raise Problem(400, f"the address's query: {problem.detail}") from None
    return value


def explained(failure: str, kind: Any = None) -> tuple[str, str]:
    """msgspec's words -> what is wrong, and where as a JSON pointer.

    Args:
        kind: the type that was asked for; it has the choices that there are.
    """
    match = _AT.search(failure)
    words = failure if match is None else failure[: match.start()]
    steps = [] if match is None else _STEP.findall(match[1])
    parts = [name or index for name, index in steps]
    for pattern, text in ((_UNKNOWN, "unknown field {}"), (_MISSING, "{} is missing")):
        if found := pattern.fullmatch(words):
            parts.append(found[1])
            words = text.format(found[1])
    if parts and (clearer := _clearer(words, parts, kind)):
        words = f"{parts[-1]} {clearer}"
    return words, "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _clearer(words: str, parts: list[str], kind: Any) -> str:
    """What a value must be instead, where msgspec's words do not tell; empty: they do."""
    if words == "Invalid RFC3339 encoded datetime":
        return f"is a moment, as {MOMENT}"
    if (found := _CHOICE.fullmatch(words)) and len(parts) == 1:
        shape = msgspec.inspect.type_info(kind)
        fields = getattr(shape, "fields", ())
        type_ = next((field.type for field in fields if field.encode_name == parts[0]), None)
        if isinstance(type_, msgspec.inspect.LiteralType):
            return f"is one of {', '.join(sorted(str(one) for one in type_.values if one))}, not {found[1]}"
    return ""


def _invalid(failure: str, kind: Any) -> Problem:
    words, pointer = explained(failure, kind)
    named = words.startswith(f"{pointer.rpartition('/')[2]} ")
    place = "" if not pointer or named or "field" in words or "missing" in words else f" at {pointer}"
    return Problem(400, f"the request's body: {words}{place}", [FieldError(pointer, words)])


def _check_sane(value: Any, pointer: str) -> None:
    """No text holds control characters, and no number is more than a record keeps. Raises: Problem 400."""
    if isinstance(value, str):
        if _CONTROL.search(value):
            words = "has characters that cannot be printed"
            raise Problem(400, f"{pointer or 'a text'} {words}", [FieldError(pointer, words)])
    elif isinstance(value, int):
        if not -NUMBER_MAX <= value <= NUMBER_MAX:
            words = f"is a number beyond {NUMBER_MAX}"
            raise Problem(400, f"{pointer or 'a number'} {words}", [FieldError(pointer, words)])
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check_sane(getattr(value, name), f"{pointer}/{name}")
    elif isinstance(value, Mapping):
        for name, one in value.items():
            _check_sane(name, pointer)
            _check_sane(one, f"{pointer}/{name}")
    elif isinstance(value, (list, tuple)):
        for at, one in enumerate(value):
            _check_sane(one, f"{pointer}/{at}")
