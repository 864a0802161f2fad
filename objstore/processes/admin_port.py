"""What the admin port's functions are, over the upkeep process's parts.

Concurrency: one event loop; nothing here changes but the last usage and status seen, for the metrics.
"""

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from objstore import __version__
from objstore.admin import repeats
from objstore.admin.app import Admin, Problem
from objstore.admin.gate import Gate
from objstore.admin.resources import TABLE
from objstore.admin.routes import Services
from objstore.audit.log import note
from objstore.blobs.topology import DEFAULT_POLICY, Layout, Topology
from objstore.clock import SystemClock, utc_text
from objstore.errors import StoreError
from objstore.iam.last_use import UsedKeys
from objstore.meta.schema import DiskRecord, token_key
from objstore.metrics import Accumulator, Family, Labels, counter, gauge, render
from objstore.node.disk import DiskState, Usage
from objstore.objects.exports import Exports
from objstore.objects.ledger import DRAINING, GIVEN_UP
from objstore.objects.residence import bind_tenant, known_sites
from objstore.processes import doctor, volumes
from objstore.processes.control import ask, processes, slow_disks
from objstore.processes.disks import DiskSet
from objstore.processes.engine import is_shared
from objstore.processes.machine_families import disk_info
from objstore.processes.naming import Naming
from objstore.processes.outlook import Counts, Outlooks, health, unreached
from objstore.processes.parts import Parts, directory_of, survey_of
from objstore.processes.salvage_copies import Copies
from objstore.processes.stopping import Stopping
from objstore.upkeep.service import RENTING, Service

if TYPE_CHECKING:
    from objstore.rental.documents.content import Document
    from objstore.rental.documents.pdf import Printer

log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 3_600.0
# A look at disks and services reads every volume's record: beyond so many, a scrape is shown the last one
VOLUMES_FRESH: Final = 2_000
LOOK_SECONDS: Final = 60.0  # if it is not older than this.


def _rebalance_words(status: dict[str, Any]) -> str:
    if status["left"]:
        return f"{status['left']} files ({status['left_bytes']} bytes) to move"
    if status["misplaced"]:
        return f"{status['misplaced']} volumes do not lie as the layout says"
    return "even" if status["even"] else "uneven"


class _Printing:
    """A printer that is made with the first document: languages and fonts cost memory."""

    def __init__(self) -> None:
        self._printer: Printer | None = None

    async def render(self, document: "Document") -> bytes:
        if self._printer is None:
            from objstore.rental.documents.pdf import Printer

            self._printer = Printer()
        return await self._printer.render(document)


def gate_of(parts: Parts, service: Service, used: Callable[[str], None]) -> Gate:
    """The versioned API over a process's metadata; `used` is told the tokens of those who ask."""
    spec, leasing = parts.spec, service.leasing
    services = Services(
        directory=lambda kv: directory_of(parts, kv),
        endpoint=spec.endpoint,
        region=spec.config.server.region,
        randomness=os.urandom,
        survey=None if leasing is None else leasing.survey,
        capacity=None if leasing is None else leasing.report,
        sites=lambda: known_sites(parts.store),
        bind=lambda kv, tenant, sites: bind_tenant(replace(parts.store, kv=kv), tenant, sites=sites),
        release=None if leasing is None else leasing.release,
        render=_Printing().render,
        exports=Exports(parts.store),
    )
    return Gate(TABLE, parts.kv, services, token=spec.token, clock=SystemClock(), used=used)


async def sweep_repeats(parts: Parts) -> None:
    """Once an hour the records of Idempotency-Keys that have expired go. Never returns."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await repeats.sweep(parts.kv, now_us=SystemClock().now_us())
        except StoreError as failure:
            log.warning("expired requests were not swept", extra={"failure": repr(failure)})


def public_words(child: Mapping[str, Any]) -> str:
    """Why a child of state.json is not ready, for those who show no token; empty if it said nothing.

    What can happen to a store is said; an error that nobody foresaw may name paths and addresses.
    """
    if child.get("crashed"):
        return "it ended with an error that operators see in objstore status"
    return str(child.get("words", ""))


def look_again(volumes: int, age_s: float) -> bool:
    """Whether a scrape looks at disks and services, or is shown what the last look found."""
    return volumes <= VOLUMES_FRESH or age_s >= LOOK_SECONDS


class AdminPort:
    """What the admin port's functions are, over this process's parts."""

    def __init__(
        self,
        parts: Parts,
        service: Service,
        copies: Copies,
        disk_set: DiskSet,
        stopping: Stopping,
    ) -> None:
        self._copies = copies
        self._disk_set = disk_set
        self._stopping = stopping
        self._service = service
        self._parts = parts
        self._spec = parts.spec
        self.used_tokens = UsedKeys(token_key)
        self._gate = gate_of(parts, service, self.used_tokens.add)
        self._outlooks = Outlooks(parts, service.context, parts.store.clock)
        self._silent: Callable[[], Mapping[bytes, int]] = dict  # One machine has no others.
        self._unreadable = 0  # Volumes, as of the last look.
        self._totals = Accumulator()
        self._naming = Naming(parts.spec.config.metrics.tenant_limit)
        self._usage: dict[int, Usage] = {}
        self._code = parts.spec.cluster.codec  # (k, m) of a new volume, as of the last look.
        self._upkeep: dict[str, Any] = {}  # The services' status, as of the last look.
        self._nodes: dict[int, str] = {}  # By disk, as of the last look.
        self._looked = -math.inf  # Monotonic.

    def hear_of(self, silent: Callable[[], Mapping[bytes, int]]) -> None:
        """Ask from now on which members do not answer (Heartbeats.silent)."""
        self._silent = silent

    def admin(self) -> Admin:
        clock = SystemClock()
        return Admin(
            token=self._spec.token,
            metrics_public=self._spec.config.metrics.public,
            ready=self.ready,
            cluster=self.cluster,
            metrics=self.metrics,
            status=self.status,
            doctor=self.doctor,
            disks=self.disks,
            verify_disk=self.verify_disk,
            add_disk=self.add_disk,
            replace_disk=self.replace_disk,
            drain_disk=self.drain_disk,
            remove_disk=self.remove_disk,
            prospect_of_disk=self._disk_set.prospect,
            forget_disk=self._disk_set.forget,
            safe_to_stop=self._stopping.judge,
            volumes=self.volumes,
            volume=self.volume,
            check_volumes=self.check_volumes,
            check=self.check,
            upkeep=self._service.status,
            copy_metadata=self.copy_metadata,
            gate=self._gate,
            note=lambda deed, outcome: note(self._parts.kv, deed, clock, outcome),
        )

    # Health.

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(Path(self._spec.run_directory, "state.json").read_text())
        except (OSError, ValueError):
            return {"children": {}}
        return state

    async def ready(self) -> dict[str, Any]:
        """Whether a request would be served now: a worker lives, and the committer or PostgreSQL.

        For anybody, without a token.
        """
        children = self._state()["children"]
        shared = is_shared(self._spec)
        committer = self._parts.kv.connected and (shared or children.get("committer", {}).get("ready", False))
        workers = sum(child["ready"] for name, child in children.items() if name.startswith("worker"))
        if not committer and shared:
            return {"ready": False, "status": "PostgreSQL is away", "workers": workers}
        if not committer:
            words = public_words(children.get("committer", {})) or "reads only"
            return {"ready": False, "status": f"the committer is away: {words}", "workers": workers}
        if not workers:
            return {"ready": False, "status": "no worker is ready", "workers": 0}
        return {"ready": True, "status": "ready", "workers": workers}

    async def cluster(self) -> dict[str, Any]:
        """Whether anything can be written now, and whether every volume can be read."""
        ready = await self.ready()
        try:
            return health(await self._outlooks.now(), await self._counts(), ready)
        except StoreError as failure:
            words = f"metadata cannot be read: {failure}"
            return {"writable": False, "readable": False, "status": words}

    async def _counts(self) -> Counts:
        records = await self._parts.store.ledger.disks()
        disks = self._parts.disks
        states = [self._state_of(number, records.get(number))[0] for number in disks]
        return Counts(
            disks=len(states),
            there=len(states) - len(unreached(self._parts)),
            healthy=states.count("healthy"),
            m=self._spec.cluster.codec[1],
            fenced=bool(self._spec.cluster.term) and not is_shared(self._spec),
        )

    # Disks.

    def _state_of(self, number: int, record: DiskRecord | None) -> tuple[str, str]:
        """(state, reason): what an operator decided, else what this process sees, else what metadata says."""
        disk = self._parts.disks[number]
        if record is not None and record.state in GIVEN_UP:
            return record.state, record.reason
        if disk.state is not DiskState.HEALTHY:
            return disk.state.value, disk.reason
        if record is not None and record.state != "healthy":
            return record.state, record.reason
        return "healthy", ""

    async def disks(self) -> list[dict[str, Any]]:
        rows = []
        held = await self._disk_set.held()
        records = await self._parts.store.ledger.disks()
        members = await self._parts.store.ledger.members()
        slow = await slow_disks(self._spec.run_directory)
        for number, disk in sorted(self._parts.disks.items()):
            try:
                usage = self._usage[number] = await disk.usage()
            except StoreError:
                self._usage.pop(number, None)
                usage = None
            state, reason = self._state_of(number, records.get(number))
            node = members.get(records[number].node) if number in records else None
            rows.append(
                {
                    "disk": number,
                    "node": node.name if node is not None else "",
                    "path": disk.path,
                    "state": state,
                    "free": usage.free if usage else None,
                    "total": usage.total if usage else None,
                    "device": f"{os.major(usage.device)}:{os.minor(usage.device)}" if usage else None,
                    "files": held[number].files,
                    "bytes": held[number].bytes,
                    "slow": slow.get(number, ""),
                    "reason": reason or slow.get(number, ""),
                }
            )
        return rows

    async def _disk_row(self, number: int, notes: Sequence[str] = ()) -> dict[str, Any]:
        row = next((row for row in await self.disks() if row["disk"] == number), None)
        if row is None:
            raise Problem(404, f"there is no disk {number}")
        return {**row, "notes": list(notes)}

    async def add_disk(self, path: str) -> dict[str, Any]:
        return await self._disk_row(*await self._disk_set.add(path))

    async def replace_disk(self, number: int, path: str) -> dict[str, Any]:
        return await self._disk_row(*await self._disk_set.replace(number, path))

    async def drain_disk(self, number: int, undo: bool) -> dict[str, Any]:
        return await self._disk_row(number, await self._disk_set.drain(number, undo=undo))

    async def remove_disk(self, number: int) -> dict[str, Any]:
        await self._disk_set.remove(number)
        return {"disk": number, "state": "retired"}

    # Volumes.

    async def volumes(self, damaged: bool) -> list[dict[str, Any]]:
        return await volumes.listed(self._parts, self._service, damaged=damaged)

    async def volume(self, number: int) -> dict[str, Any]:
        return await volumes.shown(self._parts, self._service, number)

    async def check_volumes(self, wanted: list[int]) -> dict[str, Any]:
        if not wanted:
            wanted = [row["volume"] for row in await volumes.listed(self._parts, self._service, damaged=True)]
        self._service.checks.begin(wanted)
        return self._service.checks.status()

    async def check(self) -> dict[str, Any]:
        return self._service.checks.status()

    async def verify_disk(self, number: int) -> dict[str, Any]:
        await self._disk_set.verify(number)
        return await self._disk_row(number)

    async def copy_metadata(self) -> dict[str, Any]:
        about = await self._copies.take()
        return {"bytes": about.size, "began": utc_text(about.began_us / 1e6)}

    # The whole.

    async def status(self) -> dict[str, Any]:
        state = self._state()
        disks = await self.disks()
        ready = await self.ready()
        layout, topology = await self._surveyed()
        capacity = self._capacity()
        k, m = self._spec.cluster.codec
        children = [{"process": name, **child} for name, child in state["children"].items()]
        upkeep = await self._service.status()
        outlook = await self._outlooks.now()
        unwell = {"reads": outlook.words, "writes": (await self._counts()).unwritable}
        degraded = (
            not ready["ready"]
            or any(unwell.values())
            or any(disk["state"] not in ("healthy", DRAINING) for disk in disks)
            or bool(upkeep["alarms"])
            or upkeep["repair"]["found"] > upkeep["repair"]["repaired"]
        )
        return {
            "degraded": degraded,
            "facts": {
                "status": "degraded" if degraded and ready["ready"] else ready["status"],
                "version": __version__,
                "cluster": self._spec.cluster.cluster_id.hex(),
                "endpoint": self._spec.endpoint,
                "up_seconds": round(time.time() - state.get("started", time.time())),
                "codec": f"{k}+{m}, {self._spec.backend.name}",
                "free_bytes": int(capacity["free"]),
                "usable_free_bytes": int(capacity["usable_free"]),
                "volumes": ", ".join(f"{count} {state}" for state, count in upkeep["volumes"].items()),
                "placement": doctor.placement(topology, DEFAULT_POLICY, k, m)[1],
                **{
                    f"placement: {name}": doctor.placement(topology, policy, k, m)[1]
                    for name, policy in layout.policies.items()
                },
                "stored_bytes": upkeep["live_bytes"],
                "files_to_move": upkeep["repair"]["moving"] - upkeep["repair"]["moved"],
                "rebalance": _rebalance_words(upkeep["rebalance"]),
                "unreadable_volumes": outlook.count if outlook.known else None,
                **{what: words for what, words in unwell.items() if words},
                "damaged_files": upkeep["repair"]["found"] - upkeep["repair"]["repaired"],
                **{f"alarm: {name}": words for name, words in upkeep["alarms"].items()},
            },
            "processes": children,
            "disks": disks,
        }

    async def doctor(self) -> list[dict[str, Any]]:
        alarms = (await self._service.status())["alarms"]
        outlook, counts, silent = await self._outlooks.now(), await self._counts(), self._silent()
        disks, state = await self.disks(), self._state()
        return await doctor.examine(self._parts, disks, state, alarms, outlook, counts, silent)

    async def _surveyed(self) -> tuple[Layout, Topology]:
        layout = await self._parts.store.ledger.layout()
        topology = await survey_of(self._parts, layout)
        self._code = doctor.code_now(topology, *self._spec.cluster.codec)
        return layout, topology

    def _capacity(self) -> dict[str, float]:
        """Bytes. Disks that share a device count once. Usable is what new volumes could hold."""
        devices = {usage.device: usage for usage in self._usage.values()}
        k, m = self._code
        raw = sum(usage.total for usage in devices.values())
        free = sum(usage.free for usage in devices.values())
        return {"raw": raw, "free": free, "usable": raw * k / (k + m), "usable_free": free * k / (k + m)}

    # Metrics.

    def own_families(self) -> list[Family]:
        """Only this process's: what exists once per store."""
        names: Labels = ("disk",)
        up: list[tuple[Labels, list[float]]] = []
        states: list[tuple[Labels, list[float]]] = []
        total: list[tuple[Labels, list[float]]] = []
        used: list[tuple[Labels, list[float]]] = []
        for number, disk in self._parts.disks.items():
            up.append(((str(number),), [float(disk.state is DiskState.HEALTHY)]))
            states += [((str(number), state.value), [float(disk.state is state)]) for state in DiskState]
            if usage := self._usage.get(number):
                total.append(((str(number),), [usage.total]))
                used.append(((str(number),), [usage.total - usage.free]))
        capacity = self._capacity()

        state = self._state()
        restarts: list[tuple[Labels, list[float]]] = [
            ((name,), [child["restarts"]]) for name, child in state["children"].items()
        ]
        expiries: list[tuple[Labels, list[float]]] = []
        places = doctor.certificates(self._spec.config)
        if self._spec.cluster.tls:
            places["cluster"] = f"{self._spec.cluster.tls}/identity.pem"
        for place, certificate in places.items():
            try:
                expiries.append(((place,), [doctor.expiry(certificate)]))
            except (OSError, ValueError):
                pass
        return [
            Family(
                "build_info", "gauge", "The version that runs.", ("version",), (), [((__version__,), [1])]
            ),
            gauge(
                "uptime_seconds",
                "Since the supervisor's start.",
                time.time() - state.get("started", time.time()),
            ),
            Family("disk_up", "gauge", "Whether the disk is healthy.", names, (), up),
            disk_info(self._nodes),
            Family("disk_state", "gauge", "1 for the state the disk is in.", ("disk", "state"), (), states),
            Family("disk_total_bytes", "gauge", "Size of the disk's file system.", names, (), total),
            Family("disk_used_bytes", "gauge", "Used on the disk's file system.", names, (), used),
            gauge("capacity_raw_bytes", "All devices, each counted once.", capacity["raw"]),
            gauge("capacity_free_bytes", "Free on all devices.", capacity["free"]),
            gauge("capacity_usable_bytes", "Raw times k/(k+m) of new volumes.", capacity["usable"]),
            gauge("meta_db_size_bytes", "Size of LMDB's file.", doctor.state_size(self._parts)),
            Family(
                "process_restarts",
                "counter",
                "Times a process was started again.",
                ("process",),
                (),
                restarts,
            ),
            Family(
                "tls_cert_expiry_timestamp_seconds",
                "gauge",
                "When the certificate ends.",
                ("port",),
                (),
                expiries,
            ),
            *self._upkeep_families(),
        ]

    def _upkeep_families(self) -> list[Family]:
        """From the last look at the services."""
        found = self._upkeep
        if not found:
            return []

        repair, trash = found["repair"], found["trash"]
        runs: list[tuple[Labels, list[float]]] = []
        failures: list[tuple[Labels, list[float]]] = []
        for name, service in found["services"].items():
            runs.append(((name,), [service["runs"]]))
            failures.append(((name,), [service["failures"]]))
        volumes: list[tuple[Labels, list[float]]] = [
            ((state,), [count]) for state, count in found["volumes"].items()
        ]
        live, stored = found["live_bytes"], found["payload_bytes"]
        rebalance = found["rebalance"]
        return [
            Family("volumes", "gauge", "Volumes by state.", ("state",), (), volumes),
            gauge("capacity_used_bytes", "Bytes of objects and parts, uncoded.", live),
            gauge("gc_pending_bytes", "Payload in volumes that nothing points at.", stored - live),
            gauge("trash_bytes", "Removed files that are still readable.", trash["kept_bytes"]),
            gauge(
                "repair_queue_files",
                "Fragment files found damaged and not rebuilt.",
                repair["found"] - repair["repaired"],
            ),
            gauge(
                "drain_files",
                "Fragment files on disks that are to be emptied.",
                repair["moving"] - repair["moved"],
            ),
            gauge("misplaced_volumes", "Volumes that do not lie as the layout says.", rebalance["misplaced"]),
            gauge("rebalance_files", "Fragment files of the last plan not moved yet.", rebalance["left"]),
            gauge("rebalance_bytes", "Bytes of those files.", rebalance["left_bytes"]),
            counter("rebalance_moved_files", "Fragment files that were moved.", rebalance["moved"]),
            counter("rebalance_moved_bytes", "Bytes of files that were moved.", rebalance["moved_bytes"]),
            counter("rebalance_failures", "Moves that failed.", rebalance["failed"]),
            gauge(
                "disk_fill_spread",
                "Between the fullest disk and the emptiest of a pool or site, as a share of a disk.",
                rebalance["fullest"] - rebalance["emptiest"],
            ),
            gauge("endangered_volumes", "Volumes that can lose no disk.", repair["endangered"]),
            gauge(
                "unreadable_volumes",
                "Volumes of which more than m files are away or damaged just now.",
                self._unreadable,
            ),
            gauge("lost_stripes", "Stripes that nothing can rebuild.", repair["lost_stripes"]),
            gauge("alarms", "Conditions that need an operator.", len(found["alarms"])),
            gauge(
                "renting_alarms",
                "Alarms of capacity sold, invoices and the audit log; each has an alert.",
                len(RENTING & found["alarms"].keys()),
            ),
            gauge(
                "scrub_last_round_timestamp_seconds",
                "When the last whole scrub ended.",
                found["scrub"]["last_round_finished_us"] / 1e6,
            ),
            Family("upkeep_runs", "counter", "Runs of each background service.", ("service",), (), runs),
            Family("upkeep_failures", "counter", "Runs that failed.", ("service",), (), failures),
            counter("upkeep_paced_bytes", "Bytes that services moved.", found["bytes_worked"]),
        ]

    async def _look(self, now: float) -> None:
        """Fresh usage and status, but of a large store once a minute."""
        volumes = sum(self._upkeep["volumes"].values()) if self._upkeep else 0
        if not look_again(volumes, now - self._looked):
            return
        self._nodes = {row["disk"]: row["node"] for row in await self.disks()}
        await self._surveyed()
        self._upkeep = await self._service.status()
        outlook = await self._outlooks.now()
        if outlook.known:
            self._unreadable = outlook.count
        self._looked = now

    async def metrics(self) -> bytes:
        await self._look(time.monotonic())
        directory = self._spec.run_directory
        for process in processes(directory):
            snapshot = await ask(directory, process, by_tenant=True)
            if snapshot is None:
                self._totals.drop_gauges(process)
            else:
                self._totals.take(process, snapshot.incarnation, snapshot.families)
                self._naming.take(process, snapshot.incarnation, snapshot.tenants)
        return render([*self._totals.families(), *self._naming.families()])
