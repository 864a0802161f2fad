"""The background services of one process: each in its own loop, paced together, one claim for all.

    disks       every minute        suspect disks are verified, and cleared if they pass
    seal        every 30 s          volumes of dead writers
    repair      every minute        intents, missing files, gone disks
    rebalance   every 5 minutes     files to where the layout wants them, and to emptier disks
    trash       every 10 minutes    retired files after their grace
    compaction  every 5 minutes     garbage, narrow codes, small volumes
    scrub       all the time        one volume after the other, a round within its period
    doomed      every minute        what dropped uploads left behind (objects/doomed.py, given as a callable)
    carried     every minute        bodies that dead workers left in metadata (objects/carrying.py, so too)
    reserved    every minute        room that dead uploads had reserved (objects/reservations.py, so too)
    sweep       every day           the audit of live bytes
    metering    every minute        hours that are over become usage records
    quotas      every minute        what tenants use, against what they may: for metrics and alerts
    adoption    every minute        what is from before there were meters (objects/adoption.py, so too)
    purges      every minute        data of tenants that are gone: deleted, cleared off the disks, proven
    leases      every minute        leases begin, renew and end; what is sold is held against what is there
    invoices    every hour          drafts become final, and who does not pay is dunned
    figures     every 5 minutes     what is sold, billed and sealed: for metrics and alerts
    audit       every minute        the audit log is verified: what is new, and all of it once a day

Concurrency: one asyncio task per service, at most one run of each at a time; those that could disturb each
other (repair, rebalance, scrub, compaction and trash move or remove files) take turns under one lock. A
failure ends the run, is shown in `status` and is tried again at the next turn; a bug too, and is logged with
its trace.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from objstore.blobs.volumes import VolumeState
from objstore.errors import StoreError
from objstore.meta.kv import Kv
from objstore.metrics import Family, counter, gauge
from objstore.node.disk import DiskState
from objstore.objects.ledger import BEING_ADDED, DOUBTS
from objstore.objects.store import Store
from objstore.upkeep import auditing, compaction, invoicing, leasing, metering, scrub, trash
from objstore.upkeep.auditing import Auditing
from objstore.upkeep.claims import Claim
from objstore.upkeep.context import Context
from objstore.upkeep.damage import Checks, note_lost
from objstore.upkeep.figures import Figures
from objstore.upkeep.invoicing import Invoicing
from objstore.upkeep.leasing import Leasing
from objstore.upkeep.metering import Metering
from objstore.upkeep.plans import Damage
from objstore.upkeep.purging import DEFAULT_RULES as PURGE_RULES
from objstore.upkeep.purging import PurgeRules, Purging
from objstore.upkeep.quotas import QuotaWatch
from objstore.upkeep.rebalance import DEFAULT_RULES as REBALANCE_RULES
from objstore.upkeep.rebalance import Rebalance, RebalanceRules
from objstore.upkeep.repair import Repair, RepairReport
from objstore.upkeep.restorations import restorations
from objstore.upkeep.seal import Alive, seal_dead
from objstore.upkeep.sweep import LiveBytesAudit, Sweep

log = logging.getLogger(__name__)

CLAIM_RENEWAL_S: Final = 4.0
YOUNG_VOLUME_S: Final = 30.0  # News of a new worker takes less.
COMPACTED_AT_ONCE: Final = 4  # Volumes of one run: then the others get their turn.
REPAIRED_AT_ONCE: Final = 8  # Files of one pass.
REPAIRS_IN_A_ROW: Final = 64  # Passes without a pause while there is much to rebuild.
# Alarms of renting: each has a metric and an alert of its own, most of them for a working day.
RENTING: Final = frozenset(
    {
        leasing.ALARM,
        leasing.RUNWAY,
        leasing.IDLE,
        invoicing.REFUSED,
        invoicing.UNPRICED,
        metering.AHEAD,
        auditing.ALARM,
    }
)
JUDGED_MAX: Final = 100_000  # Volumes whose garbage was found not worth it, remembered.


class ServiceStatus(msgspec.Struct):
    """One service, for the admin page."""

    runs: int = 0
    failures: int = 0
    running: bool = False
    last_us: int = 0  # End of the last run.
    last_failure: str = ""
    last: str = ""  # What the last run came to, in a few words.


class Periods(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between two runs."""

    disks_s: float = 60.0
    seal_s: float = 30.0
    repair_s: float = 60.0
    rebalance_s: float = 300.0
    trash_s: float = 600.0
    compaction_s: float = 300.0
    scrub_s: float = 1.0  # Between two volumes of a round.
    scrub_round_s: float = scrub.PERIOD_S  # From the end of one round to the start of the next: half of it.
    doomed_s: float = 60.0
    carried_s: float = 60.0
    reserved_s: float = 60.0
    sweep_s: float = 86_400.0
    metering_s: float = 60.0
    quotas_s: float = 60.0
    adoption_s: float = 60.0
    leases_s: float = 60.0
    purges_s: float = 60.0
    invoices_s: float = 3_600.0
    figures_s: float = 300.0
    audit_s: float = 60.0

    def scaled(self, factor: float) -> "Periods":
        """Everything but the scrub, whose pace is a promise of its own, `factor` times as far apart."""
        names = (
            "disks_s",
            "seal_s",
            "repair_s",
            "rebalance_s",
            "trash_s",
            "compaction_s",
            "doomed_s",
            "carried_s",
            "reserved_s",
            "sweep_s",
            "metering_s",
            "quotas_s",
            "adoption_s",
            "leases_s",
            "purges_s",
            "invoices_s",
            "figures_s",
            "audit_s",
        )
        return msgspec.structs.replace(self, **{name: getattr(self, name) * factor for name in names})


class Service:
    """Runs everything. `start`, then `close`."""

    def __init__(
        self,
        ctx: Context,
        *,
        holder: bytes,
        alive: Alive,
        sweep_doomed: Callable[[Kv], Awaitable[int]] | None = None,
        pack_carried: Callable[[Kv], Awaitable[int]] | None = None,
        adopt: Callable[[Kv], Awaitable[int]] | None = None,
        release_reserved: Callable[[Kv], Awaitable[int]] | None = None,
        store: Store | None = None,
        periods: Periods | None = None,
        compaction_rules: compaction.CompactionRules = compaction.DEFAULT_RULES,
        trash_rules: trash.TrashRules = trash.DEFAULT_RULES,
        repair_grace_s: float = 900.0,
        rebalance_rules: RebalanceRules = REBALANCE_RULES,
        purge_rules: PurgeRules = PURGE_RULES,
        tenants_shown: int = 50,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            holder: 16 bytes, this incarnation's id.
            alive: whether a writer (16 bytes) may still write. Must never call a living one dead.
            sweep_doomed: objects.doomed.sweep with its store bound but for the `Kv` to commit through.
            pack_carried: objects.carrying.pack_left_behind, in the same way.
            release_reserved: objects.reservations.release_expired, in the same way.
            adopt: objects.adoption.adopt, in the same way.
            store: the verbs over the same metadata, for leases and purges; None: there are none.
            tenants_shown: how many are named in metrics, of those that store and lease most.
        """
        self._claim = Claim(ctx.kv, "upkeep", holder, ctx.clock)
        self._ctx = ctx = ctx.under(self._claim)
        self._alive = alive
        self._sweep_doomed = sweep_doomed
        self._pack_carried = pack_carried
        self._adopt = adopt
        self._release_reserved = release_reserved
        self._periods = periods if periods is not None else Periods()
        self._compaction_rules = compaction_rules
        self._trash_rules = trash_rules
        self._sleep = sleep
        self._repair = Repair(ctx, grace_s=repair_grace_s)
        self._rebalance = Rebalance(ctx, rebalance_rules)
        self.checks = Checks(ctx)
        self._audit = LiveBytesAudit(ctx)
        self._sweep = Sweep(ctx, [self._audit], sleep=sleep)
        self.quotas = QuotaWatch(ctx.kv, tenants_shown)
        self.metering = Metering(ctx.kv, ctx.clock, ctx.crash_point, ctx.alarms)
        self.leasing = None if store is None else Leasing(ctx, store)
        self._invoicing = Invoicing(ctx.kv, ctx.clock, ctx.alarms)
        report = None if self.leasing is None else self.leasing.report
        self._figures = Figures(ctx.kv, ctx.clock, report, tenants_shown)
        self._auditing = Auditing(ctx.kv, ctx.clock, ctx.alarms)
        self._files = asyncio.Lock()  # Held by whoever moves or removes fragment files.
        self._purging = None if store is None else Purging(ctx, store, self._files, purge_rules)
        self._tasks: list[asyncio.Task[None]] = []
        self._held = asyncio.Event()
        self._unfit: Callable[[], bool] = lambda: False
        self._judged: dict[int, int] = {}  # Volume -> live bytes when rewriting was found not worth it.
        self.services: dict[str, ServiceStatus] = {}
        self._last_repair = RepairReport()
        self._repair_has_looked = False  # Since the start: rebalancing comes after it.
        self._last_trash = trash.TrashReport()

    def stand_by_while(self, unfit: Callable[[], bool]) -> None:
        """Leave the claim to other processes for as long as this one could not do the work."""
        self._unfit = unfit

    def start(self) -> None:
        periods = self._periods
        loops: dict[str, tuple[Callable[[], Awaitable[str]], float]] = {
            "disks": (self.verify_disks, periods.disks_s),
            "seal": (self.seal, periods.seal_s),
            "repair": (self.repair, periods.repair_s),
            "rebalance": (self.rebalance, periods.rebalance_s),
            "trash": (self.empty_trash, periods.trash_s),
            "compaction": (self.compact, periods.compaction_s),
            "scrub": (self.scrub, periods.scrub_s),
            "sweep": (self.sweep, periods.sweep_s),
            "metering": (self.metering.run, periods.metering_s),
            "quotas": (self.quotas.look, periods.quotas_s),
            "invoices": (self._invoicing.run, periods.invoices_s),
            "figures": (self._figures.look, periods.figures_s),
            "audit": (self._auditing.run, periods.audit_s),
        }
        if self.leasing is not None:
            loops["leases"] = (self.leasing.run, periods.leases_s)
        if self._purging is not None:
            loops["purges"] = (self._purging.run, periods.purges_s)
        if self._sweep_doomed is not None:
            loops["doomed"] = (self.doomed, periods.doomed_s)
        if self._pack_carried is not None:
            loops["carried"] = (self.carried, periods.carried_s)
        if self._release_reserved is not None:
            loops["reserved"] = (self.reserved, periods.reserved_s)
        if self._adopt is not None:
            loops["adoption"] = (self.adopt, periods.adoption_s)
        create = asyncio.get_running_loop().create_task
        self._tasks.append(create(self._keep_claim(), name="upkeep claim"))
        for name, (run, period_s) in loops.items():
            self.services[name] = ServiceStatus()
            self._tasks.append(create(self._loop(name, run, period_s), name=f"upkeep {name}"))

    async def close(self) -> None:
        """End all loops where they are (each step is safe to cut), and give up the claim."""
        await self.checks.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=30)
        self._tasks.clear()
        try:
            await self._claim.give_up()
        except StoreError as failure:
            log.info("the claim was not given up: %s", failure)

    async def status(self) -> dict[str, Any]:
        """For the admin page: plain values only. Raises: MetaUnavailable."""
        ctx = self._ctx
        states = dict.fromkeys((state.name.lower() for state in VolumeState), 0)
        stored = live = 0
        after = 0
        while records := await ctx.ledger.volumes(after):
            after = records[-1].id
            amounts = await ctx.ledger.lengths([record.id for record in records])
            for record, (length, alive) in zip(records, amounts, strict=True):
                states[VolumeState(record.state).name.lower()] += 1
                stored += max(length, record.length) * record.k
                live += alive
        place = await scrub.cursor(ctx)
        return {
            "claim_held": self._claim.held,
            "services": {name: msgspec.to_builtins(status) for name, status in self.services.items()},
            "alarms": dict(ctx.alarms.raised),
            "volumes": states,
            "payload_bytes": stored,
            "live_bytes": live,
            "intents": len(await ctx.ledger.intents()),
            "repair": msgspec.to_builtins(self._last_repair),
            "restorations": [
                {"disk": one.disk, "gone_us": one.gone_us, "restored_us": one.restored_us}
                for one in (await restorations(ctx)).done
            ],
            "rebalance": msgspec.to_builtins(self._rebalance.status),
            "trash": msgspec.to_builtins(self._last_trash),
            "scrub": {
                "volume": place.volume,
                "round_started_us": place.started_us,
                "last_round_finished_us": place.finished_us,
            },
            "bytes_worked": ctx.pace.spent,
        }

    def families(self) -> list[Family]:
        """What the services have found, for /metrics; of the process that leads only."""
        leads = self._claim.held
        if not leads:
            self.quotas.forget()
            self._figures.forget()
        meters = self.metering
        return [
            *self.quotas.families(),
            *self._figures.families(),
            *(_shown(family, leads) for family in self._of_passes()),
            gauge(
                "metering_clock_ahead_hours",
                "Hours that the clock is too far beyond the last sealed one; 0: it may be right.",
                meters.ahead_hours,
            ),
            counter("metering_records", "Usage records sealed.", meters.sealed),
            counter(
                "metering_corrections", "Usage records made or changed by what came late.", meters.corrected
            ),
        ]

    def _of_passes(self) -> list[Family]:
        of_leases = [] if self.leasing is None else self.leasing.families()
        return [*of_leases, *self._invoicing.families(), *self._auditing.families()]

    @property
    def leads(self) -> bool:
        """Whether this process holds the claim on the upkeep, as far as it knows."""
        return self._claim.held

    @property
    def context(self) -> Context:
        """What the services work with: under their claim."""
        return self._ctx

    async def damages(self) -> list[Damage]:
        """Every fragment file that is damaged, or to be moved, right now. Raises: MetaUnavailable."""
        return await self._repair.find()

    # What each service does in one run; the words are for people.

    async def verify_disks(self) -> str:
        """Suspect disks are tried; those that pass take writes again, for every process."""
        ctx = self._ctx
        words: list[str] = []
        for number, record in (await ctx.ledger.disks()).items():
            disk = ctx.disks.get(number)
            if disk is None or (record.state not in DOUBTS and disk.state is not DiskState.SUSPECT):
                continue
            if record.reason == BEING_ADDED:
                continue  # Whoever adds it says when it is done: it may be locked by nobody yet.
            try:
                await disk.verify()
            except StoreError as failure:
                words.append(f"disk {number} stays {record.state}: {failure}")
            else:
                # Only a doubt ends so: a disk that is to be emptied or was given up stays what it is.
                if await ctx.ledger.change_disk(number, before=DOUBTS, state="healthy"):
                    words.append(f"disk {number} is well again")
        return "; ".join(words)

    async def seal(self) -> str:
        sealed = await seal_dead(self._ctx, self._alive, young_s=YOUNG_VOLUME_S)
        return f"{len(sealed)} volumes sealed"

    async def repair(self) -> str:
        for _ in range(REPAIRS_IN_A_ROW):
            async with self._files:  # Let go now and then, so that the others get their turn.
                report = self._last_repair = await self._repair.run(limit=REPAIRED_AT_ONCE)
            self._repair_has_looked = True
            await note_lost(self._ctx, add=report.lost_volumes)  # Also shows what an earlier process found.
            if report.repaired + report.moved < REPAIRED_AT_ONCE:
                break
        words = f"{report.repaired} of {report.found} damaged files rebuilt"
        if report.moving:
            words += f", {report.moved} of {report.moving} moved off disks to be emptied"
        return f"{words}, {report.waiting} wait for a disk"

    async def rebalance(self) -> str:
        moved = 0
        for planned in await self._rebalance.plan():
            if self._last_repair.goes_on or not self._repair_has_looked:
                return f"{moved} files moved; it waits for repair"
            async with self._files:  # For one file: then the others get their turn.
                moved += await self._rebalance.move(planned)
        status = self._rebalance.status
        words = f"{moved} files moved, {status.misplaced} volumes misplaced"
        return f"{words}, disks {status.emptiest:.1%} to {status.fullest:.1%} full"

    async def empty_trash(self) -> str:
        async with self._files:
            report = self._last_trash = await trash.clear(self._ctx, self._trash_rules)
        return report.stopped or f"{report.purged} files purged ({report.purged_bytes} bytes)"

    async def compact(self) -> str:
        ctx = self._ctx
        done: list[str] = []
        for candidate in await compaction.candidates(ctx, self._compaction_rules):
            if len(done) >= COMPACTED_AT_ONCE:
                break
            async with self._files:
                if candidate.reason == "garbage" and not await self._worth_it(candidate.volume):
                    continue
                outcome = await compaction.compact(ctx, candidate.volume, self._compaction_rules)
            done.append(
                f"volume {outcome.volume} ({candidate.reason}): {outcome.moved_bytes} bytes moved, "
                f"{outcome.dead_bytes} dropped" + ("" if outcome.retired else ", not retired")
            )
        return "; ".join(done)

    async def _worth_it(self, volume: int) -> bool:
        live = (await self._ctx.ledger.lengths([volume]))[0][1]
        if live <= 0:
            return True
        known = self._judged.get(volume)
        if known is not None and live > 0.9 * known:
            return False  # Nothing much has died since.
        if await compaction.gain(self._ctx, volume) >= self._compaction_rules.gain:
            self._judged.pop(volume, None)
            return True
        if len(self._judged) >= JUDGED_MAX:
            self._judged.clear()
        self._judged[volume] = live
        return False

    async def scrub(self) -> str:
        place = await scrub.cursor(self._ctx)
        now_us = self._ctx.clock.now_us()
        rest_us = int(self._periods.scrub_round_s / 2 * 1e6)
        if not place.started_us and place.finished_us and now_us - place.finished_us < rest_us:
            return "resting between two rounds"
        async with self._files:
            report = await scrub.step(self._ctx)
        if report is None:
            return "a round has ended"
        return f"volume {report.volume}: {len(report.damaged)} damaged, {report.repaired} repaired"

    async def doomed(self) -> str:
        assert self._sweep_doomed is not None
        return f"{await self._sweep_doomed(self._ctx.kv)} ids swept"

    async def carried(self) -> str:
        assert self._pack_carried is not None
        return f"{await self._pack_carried(self._ctx.kv)} bodies packed"

    async def reserved(self) -> str:
        assert self._release_reserved is not None
        return f"{await self._release_reserved(self._ctx.kv)} reservations released"

    async def adopt(self) -> str:
        assert self._adopt is not None
        return f"{await self._adopt(self._ctx.kv)} versions adopted"

    async def sweep(self) -> str:
        whole = await self._sweep.run()
        return f"{self._sweep.keys_seen} keys, {len(self._audit.corrected)} counters corrected" + (
            "" if whole else " (begun by another process: not judged)"
        )

    # Loops.

    async def _keep_claim(self) -> None:
        while True:
            try:
                if self._unfit():
                    self._held.clear()
                    await self._claim.give_up()
                elif await self._claim.keep():
                    self._held.set()
                else:
                    self._held.clear()
            except StoreError as failure:
                self._held.clear()
                log.warning("the claim on the upkeep was not renewed: %s", failure)
            except Exception:  # Else nobody would renew it any more, and every service would stand still.
                self._held.clear()
                log.exception("the claim on the upkeep was not renewed: a bug")
            await self._sleep(CLAIM_RENEWAL_S)

    async def _loop(self, name: str, run: Callable[[], Awaitable[str]], period_s: float) -> None:
        status = self.services[name]
        while True:
            await self._held.wait()
            status.running = True
            try:
                status.last = await run()
                status.last_failure = ""
            except StoreError as failure:
                status.failures += 1
                status.last_failure = f"{type(failure).__name__}: {failure}"
                log.warning("%s: %s", name, status.last_failure)
            except Exception as bug:
                status.failures += 1
                status.last_failure = f"a bug: {bug!r}"
                log.exception("%s: a bug", name)
            finally:
                status.running = False
                status.runs += 1
                status.last_us = self._ctx.clock.now_us()
            await self._sleep(period_s)


def _shown(family: Family, leads: bool) -> Family:
    """Without samples where another process knows better."""
    return family if leads else msgspec.structs.replace(family, samples=[])
