"""Invoices as time goes by: plans begin, months are drafted, drafts become final, who does not pay is dunned.

    every pass     plans whose month has come begin; drafts become final once late usage has come in; overdue
                   invoices move accounts
    every 6 hours  the two months before are drafted again from their sealed usage: what came late is in the
                   draft, or, where the month is final, waits for the next invoice; of a year, whatever
                   month of a customer could not be drafted in its time

What needs an operator (a customer that has no plan or changed since its draft, use that a plan has no price
for) raises an alarm that names it and says why; it holds up nobody else.

Concurrency: one process at a time, under the upkeep's claim. A pass may be cut anywhere: each commit leaves a
state from which the next pass goes on.
"""

import os
from collections.abc import Sequence
from typing import Final

from objstore.clock import SECOND_US, Clock
from objstore.errors import BadArgument
from objstore.ids import Randomness
from objstore.meta.kv import Kv
from objstore.metrics import Family, Labels, gauge
from objstore.rental.billing import check_over, draft_month
from objstore.rental.catalogue import tax_rules
from objstore.rental.customers import list_customers
from objstore.rental.dunning import review_all
from objstore.rental.invoices import finalise_due
from objstore.rental.months import Month
from objstore.rental.plan_changes import start_plans
from objstore.upkeep.context import Alarms

REFUSED: Final = "invoices"  # Alarms.
UNPRICED: Final = "use without a price"
NAMED_MAX: Final = 5  # Drafts or tenants in an alarm.
AGAIN: Final = 2  # Months that are drafted again and again,
MONTHS_BACK: Final = 12  # and months of which no customer is forgotten: usage is kept for thirteen.
DRAFTED_EVERY_US: Final = 6 * 3_600 * SECOND_US  # A month of 2,000 tenants takes about a minute of CPU.


class Invoicing:
    """What one process does for invoices, pass by pass."""

    def __init__(self, kv: Kv, clock: Clock, alarms: Alarms, *, randomness: Randomness = os.urandom) -> None:
        """kv: metadata under the upkeep's claim."""
        self._kv = kv
        self._clock = clock
        self._alarms = alarms
        self._randomness = randomness
        self._drafted_us = 0  # When a month was drafted last, by this process,
        self._problems: list[tuple[str, str]] = []  # and what was wrong then.
        self._waiting = dict.fromkeys((REFUSED, UNPRICED), 0)  # For an operator, as of the last pass.

    async def run(self) -> str:
        """One pass; what it came to, in words. Raises: Deposed, MetaUnavailable, Overloaded."""
        if not await list_customers(self._kv, limit=1):
            return "no customers"
        now_us = self._clock.now_us()
        await start_plans(self._kv, now_us=now_us)
        drafted = await self._draft(now_us)
        final = await finalise_due(self._kv, now_us=now_us)
        dunned = await review_all(self._kv, now_us=now_us)
        self._alarm(REFUSED, [*self._problems, *final.refused, *dunned.refused])
        return (
            f"{drafted}; {final.issued} invoices issued, {final.waiting} drafts wait; "
            f"{dunned.overdue} became overdue, {len(dunned.moved)} accounts changed"
        )

    async def _draft(self, now_us: int) -> str:
        """Draft the months before, if it is time to; what came of it."""
        if self._drafted_us <= now_us < self._drafted_us + DRAFTED_EVERY_US:
            return "drafted before"
        last = _month_before(Month.containing(now_us // SECOND_US))
        rules = await tax_rules(self._kv)
        problems: list[tuple[str, str]] = []
        unpriced: list[tuple[str, str]] = []
        words: list[str] = []
        # In order: what one charges in advance the next does not.
        months = [last]
        while len(months) < MONTHS_BACK:
            months.insert(0, _month_before(months[0]))
        for month in months:
            old = month < months[-AGAIN]
            try:
                await check_over(self._kv, month, now_us)
            except BadArgument as not_yet:
                return not_yet.message
            run = await draft_month(
                self._kv, month, rules=rules, now_us=now_us, randomness=self._randomness, missing=old
            )
            problems += run.problems
            unpriced += run.unpriced
            if old and not run.drafts:
                continue
            words.append(f"{month}: {run.drafts} drafts, {run.final} final, {run.corrections} corrections")
        self._drafted_us, self._problems = now_us, problems
        self._alarm(UNPRICED, unpriced)
        return "; ".join(words)

    def families(self) -> list[Family]:
        """For /metrics; of this process's passes."""
        samples: list[tuple[Labels, list[float]]] = [
            ((alarm,), [count]) for alarm, count in self._waiting.items()
        ]
        doc = "Drafts, invoices and tenants that wait for an operator, by the alarm that names them."
        return [
            Family("billing_waiting", "gauge", doc, ("alarm",), (), samples),
            gauge(
                "billing_drafted_timestamp_seconds",
                "When this process drafted the months before; 0: not yet.",
                self._drafted_us / 1e6,
            ),
        ]

    def _alarm(self, name: str, what: Sequence[tuple[str, str]]) -> None:
        self._waiting[name] = len(what)
        if what:
            words = "; ".join(f"{who}: {why}" for who, why in what[:NAMED_MAX])
            self._alarms.set(name, f"{len(what)} wait for an operator: {words}")
        else:
            self._alarms.clear(name)


def _month_before(month: Month) -> Month:
    return Month.containing(month.begin_s - 1)
