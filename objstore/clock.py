"""Time as an argument: whoever needs it is given a Clock, so that a test can be one."""

import time
from typing import Protocol


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
