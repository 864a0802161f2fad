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
        raise _invalid(str(failure)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, "the request's body is not JSON") from None
    _check_sane(value, "")
    return value


def parse_query(query: Mapping[str, str], kind: type[T]) -> T:
    """Raises: Problem 400."""
    try:
        value = msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as failure:
        words, _ = explained(str(failure))
        raise Problem(400, f"the address's query: {words}") from None
    try:
        _check_sane(value, "")
    except Problem as problem:
        raise Problem(400, f"the address's query: {problem.detail}") from None
    return value


def explained(failure: str) -> tuple[str, str]:
    """msgspec's words -> what is wrong, and where as a JSON pointer."""
    match = _AT.search(failure)
    words = failure if match is None else failure[: match.start()]
    steps = [] if match is None else _STEP.findall(match[1])
    parts = [name or index for name, index in steps]
    for pattern, text in ((_UNKNOWN, "unknown field {}"), (_MISSING, "{} is missing")):
        if found := pattern.fullmatch(words):
            parts.append(found[1])
            words = text.format(found[1])
    return words, "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _invalid(failure: str) -> Problem:
    words, pointer = explained(failure)
    place = "" if not pointer or "field" in words or "missing" in words else f" at {pointer}"
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
