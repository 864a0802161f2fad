"""Billing months: calendar months in UTC, in whole seconds."""

import calendar
import time
from dataclasses import dataclass
from typing import Final

from objstore.errors import BadArgument
from objstore.rental.meters import HOUR_S

DAY_HOURS: Final = 24
_YEAR_MAX: Final = 2105  # Hours are kept in 4 bytes for longer, but clocks that say more are wrong.


@dataclass(frozen=True, slots=True, order=True)
class Month:
    year: int
    month: int  # 1 to 12.

    def __post_init__(self) -> None:
        assert 1970 <= self.year <= _YEAR_MAX
        assert 1 <= self.month <= 12

    @classmethod
    def parse(cls, text: str) -> "Month":
        """'2026-03'. Raises: BadArgument."""
        year, _, month = text.partition("-")
        digits = text.isascii() and year.isdigit() and month.isdigit()
        if not digits or len(year) != 4 or len(month) != 2:
            raise BadArgument(f"a month is like 2026-03: {text!r}", name="month", value=text)
        if not 1970 <= int(year) <= _YEAR_MAX or not 1 <= int(month) <= 12:
            raise BadArgument(f"there is no month {text}", name="month", value=text)
        return cls(int(year), int(month))

    @classmethod
    def containing(cls, at_s: int) -> "Month":
        """at_s: seconds since 1970."""
        moment = time.gmtime(at_s)
        return cls(moment.tm_year, moment.tm_mon)

    def following(self) -> "Month":
        return Month(self.year + 1, 1) if self.month == 12 else Month(self.year, self.month + 1)

    @property
    def begin_s(self) -> int:
        return calendar.timegm((self.year, self.month, 1, 0, 0, 0))

    @property
    def end_s(self) -> int:
        """The first second that is no longer in it."""
        return self.begin_s + self.seconds

    @property
    def seconds(self) -> int:
        return self.hours * HOUR_S

    @property
    def hours(self) -> int:
        return calendar.monthrange(self.year, self.month)[1] * DAY_HOURS

    @property
    def first_hour(self) -> int:
        """As in the keys of meters: seconds since 1970 // 3,600."""
        return self.begin_s // HOUR_S

    def __str__(self) -> str:
        return f"{self.year}-{self.month:02d}"
