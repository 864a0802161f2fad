"""Changing one record of the directory: read, altered, committed against what was read."""

from collections.abc import Callable
from typing import Final, TypeVar

from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import Record, decode, encode

R = TypeVar("R", bound=Record)

ATTEMPTS_MAX: Final = 64  # Commits tried while others change the same record.


async def change_record(
    kv: Kv, key: bytes, kind: type[R], alter: Callable[[R], R], *, absent: BadArgument
) -> R:
    """The record as it is now.

    Raises: `absent` if there is none, whatever `alter` raises, Overloaded (it kept changing).
    """
    for _ in range(ATTEMPTS_MAX):
        value = await kv.get(key)
        if value is None:
            raise absent
        record = alter(decode(value, kind))
        try:
            await kv.commit(Transaction(expect={key: value}, put={key: encode(record)}))
        except Conflict:
            continue
        return record
    raise Overloaded(f"the record of {absent.value!r} kept changing")
