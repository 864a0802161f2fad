"""The audit log is verified without being asked: all of it once a day, what is new at every pass.

A pass verifies at most one step of records (audit/log.py); the next one goes on where it came to. What was
verified is held as an anchor in memory: who rewrites the log or cuts its end while the store runs is found
out, also by what was there before. A process that is started anew begins at the first record.

Concurrency: one process at a time, under the upkeep's claim; a pass only reads.
"""

from typing import Final

from objstore.audit.log import read_head, verify
from objstore.audit.records import BEGINNING, Anchor
from objstore.clock import Clock
from objstore.meta.kv import Kv
from objstore.metrics import Family, Labels
from objstore.upkeep.context import Alarms

ALARM: Final = "audit log"
ROUND_US: Final = 86_400 * 1_000_000  # From the beginning of one verification of all to the next.


class Auditing:
    """What one process knows of the log."""

    def __init__(self, kv: Kv, clock: Clock, alarms: Alarms) -> None:
        self._kv = kv
        self._clock = clock
        self._alarms = alarms
        self._whole = BEGINNING  # Up to here the log was verified once: it must go on from it.
        self._upto = BEGINNING  # Up to here in this round.
        self._began_us: int | None = None  # This round; None: the next pass begins one.
        self._ended = False  # This round came to the head, and follows it.
        self._round_us = 0  # When the round that ended last had begun; 0: none has ended.
        self._records = 0  # In the log.
        self._finding = ""

    async def run(self) -> str:
        """One step; what it came to, in words. Raises: MetaUnavailable."""
        now_us = self._clock.now_us()
        if self._began_us is None or (self._ended and not 0 <= now_us - self._began_us < ROUND_US):
            self._upto, self._began_us, self._ended = BEGINNING, now_us, False
        verdict = await verify(self._kv, after=self._upto, anchor=self._anchor())
        self._upto = verdict.upto
        self._records = (await read_head(self._kv)).sequence
        if verdict.finding:
            return self._found(verdict.finding)
        if not verdict.finished:
            return f"{self._upto.sequence} of {self._records} records verified"
        self._whole, self._ended = self._upto, True
        self._round_us = self._began_us
        self._finding = ""
        self._alarms.clear(ALARM)
        return f"all {self._upto.sequence} records are as they were written"

    def _anchor(self) -> Anchor | None:
        return self._whole if self._whole.sequence else None

    def _found(self, finding: str) -> str:
        """Told until a whole round finds nothing: a record that is put back ends it."""
        self._finding = finding
        self._began_us = None
        self._alarms.set(ALARM, f"{finding}: objstore audit verify")
        return finding

    def families(self) -> list[Family]:
        """For /metrics; without samples until a round has ended, or something was found."""
        told = bool(self._round_us or self._finding)
        numbers = {
            "audit_records": ("Acts in the audit log.", self._records),
            "audit_broken": (
                "1 if a record is missing, was changed, or does not follow.",
                bool(self._finding),
            ),
            "audit_verified_timestamp_seconds": (
                "When the last verification of all records that found nothing had begun.",
                self._round_us / 1e6,
            ),
        }
        families: list[Family] = []
        for name, (doc, number) in numbers.items():
            samples: list[tuple[Labels, list[float]]] = [((), [float(number)])] if told else []
            families.append(Family(name, "gauge", doc, (), (), samples))
        return families
