"""Lists in pages: an opaque cursor says behind which name the next page begins.

Where reading stopped at a record that is not the caller's, its name is sealed in the cursor.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from objstore.admin.problems import Problem
from objstore.admin.routes import Call
from objstore.admin.views import List
from objstore.errors import BadArgument
from objstore.iam.picking import Picked
from objstore.meta.schema import Record

T = TypeVar("T")
R = TypeVar("R", bound=Record)
SEALED: Final = "~"  # Begins a sealed cursor: not among the letters of the others.


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


async def picked_page(
    call: Call,
    read: Callable[[str, int], Awaitable[Picked[R]]],
    show: Callable[[list[tuple[str, R]]], Awaitable[list[Any]]],
) -> List[Any]:
    """One page of what `read(after, limit)` picks; it can be short, or empty, while there is more.

    Raises: Problem 400: the cursor is not one of ours.
    """
    given = call.query.cursor
    if given.startswith(SEALED):
        try:
            after = call.directory.reveal(given.removeprefix(SEALED))
        except BadArgument:
            raise Problem(400, "the address's query: cursor is not one of ours") from None
    else:
        after = name_of(given)
    picked = await read(after, call.query.limit)
    cursor = None
    if picked.after:
        own = bool(picked.found) and picked.found[-1][0] == picked.after
        cursor = cursor_of(picked.after) if own else SEALED + call.directory.hide(picked.after)
    return List(await show(picked.found), cursor)
