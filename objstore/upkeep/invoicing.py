"""Invoices as time goes by: drafts become final once late usage has come in, and who does not pay is dunned.

A draft that cannot be final (its customer changed since, a purchase order is missing) raises an alarm that
names it and says why; it holds up no other.

Concurrency: one process at a time, under the upkeep's claim. A pass may be cut anywhere: each commit leaves a
state from which the next pass goes on.
"""

from typing import Final

from objstore.clock import Clock
from objstore.meta.kv import Kv
from objstore.rental.dunning import review_all
from objstore.rental.invoices import finalise_due
from objstore.upkeep.context import Alarms

ALARM: Final = "invoices"
NAMED_MAX: Final = 5  # Drafts or tenants in an alarm.


class Invoicing:
    """What one process does for invoices, pass by pass."""

    def __init__(self, kv: Kv, clock: Clock, alarms: Alarms) -> None:
        """kv: metadata under the upkeep's claim."""
        self._kv = kv
        self._clock = clock
        self._alarms = alarms

    async def run(self) -> str:
        """One pass; what it came to, in words. Raises: Deposed, MetaUnavailable, Overloaded."""
        now_us = self._clock.now_us()
        final = await finalise_due(self._kv, now_us=now_us)
        dunned = await review_all(self._kv, now_us=now_us)
        refused = [*final.refused, *dunned.refused]
        if refused:
            words = "; ".join(f"{who}: {why}" for who, why in refused[:NAMED_MAX])
            self._alarms.set(ALARM, f"{len(refused)} wait for an operator: {words}")
        else:
            self._alarms.clear(ALARM)
        return (
            f"{final.issued} invoices issued, {final.waiting} drafts wait, {dunned.overdue} became overdue, "
            f"{len(dunned.moved)} accounts changed"
        )
