"""When an access key or a bearer token was last used, to the hour.

Requests only add to a set; every process tells metadata now and then, once an hour for each key. It lies
apart from the keys' records: those are compared on every request.

Concurrency: one UsedKeys a process, on its event loop. Two processes that tell the same hour do no harm.
"""

from collections.abc import Callable, Sequence
from typing import Final

from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import LastUseRecord, access_key_key, decode, encode, last_use_key

HOUR_US: Final = 3_600_000_000
TOLD_AT_ONCE: Final = 200  # Keys of one commit.
TOLD_MAX: Final = 20_000  # Keys remembered as told this hour.


class UsedKeys:
    """Keys that this process saw used: `add` is all that a request does.

    Args:
        record_key: where the record of one of them lies: access keys, unless it is said.
    """

    def __init__(self, record_key: Callable[[str], bytes] = access_key_key) -> None:
        self._record_key = record_key
        self._fresh: set[str] = set()
        self._told: set[str] = set()
        self._hour = 0
        self.add = self._fresh.add

    async def tell(self, kv: Kv, now_us: int) -> None:
        """Bring metadata up to date. Raises: MetaUnavailable: what was not told yet is told next time."""
        hour = now_us // HOUR_US
        if hour != self._hour or len(self._told) > TOLD_MAX:
            self._told.clear()
            self._hour = hour
        waiting = sorted(self._fresh - self._told)
        self._fresh.clear()
        try:
            while waiting:
                some = waiting[:TOLD_AT_ONCE]
                await note_used(kv, some, hour, self._record_key)
                self._told.update(some)
                del waiting[:TOLD_AT_ONCE]
        finally:
            self._fresh.update(waiting)


async def note_used(kv: Kv, ids: Sequence[str], hour: int, record_key: Callable[[str], bytes]) -> None:
    """Note an hour for keys that still exist and were not used later. Raises: MetaUnavailable."""
    names = [last_use_key(one) for one in ids]
    values = await kv.get_many([*names, *map(record_key, ids)])
    put = {
        name: encode(LastUseRecord(hour=hour))
        for name, value, key in zip(names, values, values[len(names) :], strict=False)
        if key is not None and (value is None or decode(value, LastUseRecord).hour < hour)
    }
    if put:
        await kv.commit(Transaction(put=put))


async def last_used(kv: Kv, ids: Sequence[str]) -> list[int | None]:
    """Seconds since 1970, to the hour; None: never, as far as is known."""
    values = await kv.get_many([last_use_key(one) for one in ids])
    return [None if value is None else decode(value, LastUseRecord).hour * 3_600 for value in values]
