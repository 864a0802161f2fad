"""One change of several records: what its decision read is expected, and what it puts is put at once.

A decision is an async function of a `Change`. It reads records through it, puts records into it, and runs
again from the start when another process was quicker: so it has no effect but through its Change, and gives
the same answer to the same records.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from objstore.errors import BadArgument, Conflict, Corrupt, Overloaded, Rejected
from objstore.meta.kv import VALUE_SIZE_MAX, Kv, Transaction
from objstore.meta.schema import Record, decode, encode

R = TypeVar("R", bound=Record)
T = TypeVar("T")

ATTEMPTS_MAX: Final = (
    64  # Commits tried while others change the same records: each conflict is another's success.
)


class Change:
    """A mini-transaction in the making, over records as they were when each was read first."""

    def __init__(self, kv: Kv) -> None:
        self.kv = kv  # For scans, which are not expected: what is found by one is read again through here.
        self._expect: dict[bytes, bytes | None] = {}
        self._new: dict[bytes, bytes | None] = {}

    async def value(self, key: bytes) -> bytes | None:
        """As it will be after this change, so far as it is made."""
        if key in self._new:
            return self._new[key]
        if key not in self._expect:
            self._expect[key] = await self.kv.get(key)
        return self._expect[key]

    async def record(self, key: bytes, kind: type[R]) -> R | None:
        value = await self.value(key)
        return None if value is None else decode(value, kind)

    async def found(self, key: bytes, kind: type[R], absent: BadArgument) -> R:
        """Raises: `absent` if there is none."""
        record = await self.record(key, kind)
        if record is None:
            raise absent
        return record

    def put(self, key: bytes, record: Record) -> None:
        """Raises: BadArgument, if it is larger than a value may be."""
        value = encode(record)
        if len(value) > VALUE_SIZE_MAX:
            raise BadArgument(
                f"a {type(record).__name__} of {len(value)} bytes, at most {VALUE_SIZE_MAX} are kept",
                name="size",
                value=str(len(value)),
            )
        self._new[key] = value

    def put_value(self, key: bytes, value: bytes) -> None:
        self._new[key] = value

    def delete(self, key: bytes) -> None:
        self._new[key] = None

    async def still_holds(self) -> bool:
        """Whether all that was read is so at one moment: a refusal of anything else is not believed."""
        keys = list(self._expect)
        return await self.kv.get_many(keys) == [self._expect[key] for key in keys]

    def transaction(self) -> Transaction | None:
        """None if nothing changes."""
        new = {key: value for key, value in self._new.items() if self._expect.get(key, b"\0") != value}
        if not new:
            return None
        put = {key: value for key, value in new.items() if value is not None}
        return Transaction(self._expect, put, [key for key, value in new.items() if value is None])


async def commit_change(kv: Kv, decide: Callable[[Change], Awaitable[T]], *, what: str) -> T:
    """Decide and commit, again and again while the records change under it; what was decided.

    Args:
        what: whose records they are, for the error.

    Raises: whatever `decide` raises, Overloaded (they kept changing), MetaUnavailable (outcome unknown).
    """
    for _ in range(ATTEMPTS_MAX):
        change = Change(kv)
        try:
            decided = await decide(change)
        except (Rejected, Corrupt):
            if await change.still_holds():
                raise
            continue
        transaction = change.transaction()
        if transaction is None:
            return decided
        try:
            await kv.commit(transaction)
        except Conflict:
            continue
        return decided
    raise Overloaded(f"the records of {what} kept changing")
