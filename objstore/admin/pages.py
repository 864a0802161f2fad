"""Lists in pages: an opaque cursor says behind which name the next page begins."""

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from objstore.admin.problems import Problem
from objstore.admin.views import List

T = TypeVar("T")


def cursor_of(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).rstrip(b"=").decode()


def name_of(cursor: str) -> str:
    """A cursor only says where in its own list to go on: a made-up one reaches nothing else.

    Raises: Problem 400.
    """
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        name = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise Problem(400, "the address's query: cursor is not one of ours") from None
    if not name.isprintable() or len(name) > 512:
        raise Problem(400, "the address's query: cursor is not one of ours")
    return name


async def page(
    query: Any,
    read: Callable[[str, int], Awaitable[Sequence[T]]],
    name: Callable[[T], str],
    show: Callable[[T], Any],
) -> List[Any]:
    """One page of what `read(after, limit)` gives in order of `name`."""
    found = list(await read(name_of(query.cursor), query.limit + 1))
    more = len(found) > query.limit
    found = found[: query.limit]
    return List([show(one) for one in found], cursor_of(name(found[-1])) if more else None)
