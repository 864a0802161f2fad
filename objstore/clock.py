"""Time as an argument: whoever needs it is given a Clock, so that a test can be one."""

import time
from typing import Final, Protocol

SECOND_US: Final = 1_000_000  # Microseconds: what stands in records is counted in them.


class Clock(Protocol):
    def now_us(self) -> int:
        """Wall clock, microseconds since 1970 UTC. May jump. Never decides an order."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes back. For waits and deadlines."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


def utc_text(seconds: float) -> str:
    """Since 1970 UTC -> `2026-11-21T22:41:18Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
