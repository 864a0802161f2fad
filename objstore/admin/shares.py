"""What one tenant may ask of the admin port: so many changes an hour, so many requests at once.

Each change is a record or two that no quota holds, beside its record in the audit log, and lists are read
from what all tenants have: one tenant's users neither fill metadata nor keep the port from everybody else.
The operator is not bounded.

Concurrency: one event loop; counts are kept in memory, and begin anew with the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from objstore.admin.problems import Problem
from objstore.clock import Clock

CHANGES_MAX: Final = 1_000  # Of a tenant's users within an hour of the clock.
AT_ONCE_MAX: Final = 32  # Requests of a tenant's users under way: an export has as many connections at most.
TENANTS_MAX: Final = 10_000  # Remembered; beyond that those with nothing under way begin anew.
_HOUR_US: Final = 3_600 * 1_000_000
TOO_MANY: Final = 429


@dataclass(slots=True)
class _Share:
    hour: int
    changes: int = 0  # In that hour.
    under_way: int = 0


class Shares:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shares: dict[str, _Share] = {}

    @contextmanager
    def taken(self, tenant: str, *, changes: bool) -> Iterator[None]:
        """One request of a tenant's user, while it is served. Raises: Problem 429."""
        share = self._share(tenant)
        if share.under_way >= AT_ONCE_MAX:
            raise Problem(TOO_MANY, f"{AT_ONCE_MAX} requests of {tenant} are under way: send fewer at once")
        if changes and share.changes >= CHANGES_MAX:
            raise Problem(
                TOO_MANY, f"{tenant} has made {CHANGES_MAX} changes within this hour: go on in the next"
            )
        share.changes += changes
        share.under_way += 1
        try:
            yield
        finally:
            share.under_way -= 1

    def _share(self, tenant: str) -> _Share:
        hour = self._clock.now_us() // _HOUR_US
        if tenant not in self._shares and len(self._shares) >= TENANTS_MAX:
            self._shares = {name: one for name, one in self._shares.items() if one.under_way}
        share = self._shares.setdefault(tenant, _Share(hour))
        if share.hour != hour:
            share.hour, share.changes = hour, 0
        return share
