"""The facts of `objstore compliance report` that only the store can say: begun, watched, read.

Encryption, residency of tenants that are bound to sites (from an inventory of all disks), copies of metadata,
how long records are kept. Users, keys, tenants and the audit log are read through the API beside it. What is
not encrypted is said to be not encrypted.

Concurrency: one at a time, a task of the upkeep process; its result is kept until the next one begins.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from objstore import __version__
from objstore.admin.app import ComplianceAdmin, Problem
from objstore.admin.repeats import KEPT_US
from objstore.clock import SECOND_US, utc_text
from objstore.errors import StoreError
from objstore.processes.doctor import certificates, expiry
from objstore.processes.engine import is_shared
from objstore.processes.parts import Parts, context_of
from objstore.processes.rotation import Rotation
from objstore.processes.salvage_copies import Copies
from objstore.upkeep.metering import KEPT_HOURS
from objstore.upkeep.residency import Audit, Summary, housed

log = logging.getLogger(__name__)

HOUSED_MAX: Final = 5_000  # Buckets of bound tenants that are named: some 1 MB of the answer.
DAY_HOURS: Final = 24

Json = dict[str, Any]


class Compliance:
    """Reports of one store. `close` at the end."""

    def __init__(self, parts: Parts, rotation: Rotation, copies: Copies) -> None:
        self._parts = parts
        self._rotation = rotation
        self._copies = copies
        self._audit: Audit | None = None
        self._task: asyncio.Task[Json] | None = None

    def admin(self) -> ComplianceAdmin:
        return ComplianceAdmin(begin=self.begin, status=self.status)

    async def begin(self) -> Json:
        """Raises: Problem (one is under way)."""
        if self._task is not None and not self._task.done():
            raise Problem(409, "a report is being made")
        config = self._parts.spec.config
        self._audit = Audit(context_of(self._parts), metadata_sites=tuple(config.meta.sites))
        self._task = asyncio.get_running_loop().create_task(self._gathered(self._audit), name="compliance")
        return await self.status()

    async def status(self) -> Json:
        """How far it is, or its facts. Raises: Problem: there is none, or it failed."""
        audit, task = self._audit, self._task
        if audit is None or task is None:
            raise Problem(404, "no report was made since this process began")
        if not task.done():
            return {"running": True, "disks_asked": audit.asked}
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            if not isinstance(failure, StoreError):
                log.error("compliance report: a bug", exc_info=failure)
            raise Problem(503, f"the report ended early: {failure}")
        return {"running": False, **task.result()}

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=10)

    async def _gathered(self, audit: Audit) -> Json:
        parts = self._parts
        summary = await audit.take()
        rows = await housed(context_of(parts), parts.store, audit, most=HOUSED_MAX + 1)
        return {
            "cluster": parts.spec.cluster.cluster_id.hex(),
            "version": __version__,
            "made": utc_text(parts.store.clock.now_us() / SECOND_US),
            "encryption": await self._encryption(),
            "residency": _residency(summary, rows),
            "backups": await self._backups(summary),
            "retention": self._retention(),
        }

    async def _encryption(self) -> Json:
        spec = self._parts.spec
        config = spec.config
        files = certificates(config)
        given = bool(config.security.master_key)
        return {
            "ports": [
                _port("S3", config.server.listen, files.get("s3")),
                _port("admin", config.server.admin_listen, files.get("admin")),
                {
                    "port": "between machines",
                    "listen": config.cluster.listen,
                    "tls": bool(spec.cluster.tls),
                    "certificate_ends": None,
                    "words": "mutual TLS 1.3 under the cluster's own authority"
                    if spec.cluster.tls
                    else "none: this store is one machine",
                },
                *_database(config.meta.url),
            ],
            "at_rest": "Objects and metadata lie on the disks as they are: this store does not encrypt them."
            " Whether the disks themselves are encrypted (LUKS, self-encrypting drives) it cannot see.",
            "secrets": "Secrets of access keys and of replication targets, and the cluster's authority, are"
            " sealed with AES-256-GCM under the master key; bearer tokens are kept as SHA-256.",
            "master_key_given": given,
            "master_key_place": "given to each start, and written nowhere by the store"
            if given
            else "kept by the store itself, in clear, on its disks or in its data directory",
            "rotation": await self._rotation.status(),
        }

    async def _backups(self, summary: Summary) -> Json:
        about = await self._copies.newest()
        now_us = self._parts.store.clock.now_us()
        config = self._parts.spec.config
        copies = len({file.disk for file in summary.metadata if file.name.startswith("journal.")})
        return {
            "engine": "PostgreSQL" if is_shared(self._parts.spec) else "LMDB with a journal",
            "disks_with_journal": copies,
            "copy_in_volumes": None
            if about is None
            else {
                "began": utc_text(about.began_us / SECOND_US),
                "age_seconds": (now_us - about.began_us) // SECOND_US,
                "bytes": about.size,
            },
            "copy_every_hours": config.upkeep.snapshot_hours,
            "elsewhere": "Backups outside the store (objstore meta export, PostgreSQL's) are the operator's:"
            " the store does not know of them.",
        }

    def _retention(self) -> list[Json]:
        upkeep = self._parts.spec.config.upkeep
        kept = [
            ("invoices, credit notes, payments", "for ever; final documents are never changed"),
            ("usage records", f"{KEPT_HOURS // DAY_HOURS} days, then their chain's ends"),
            ("audit log", "for ever, hash-chained"),
            ("removed volumes (trash)", f"{upkeep.trash_days:g} days"),
            ("copies of metadata in volumes", "the newest one"),
            ("requests with an Idempotency-Key", f"{KEPT_US // SECOND_US // 3600} hours"),
            ("access logs", "as the operator rotates them"),
        ]
        return [{"what": what, "how_long": words} for what, words in kept]


def _port(name: str, listen: str, certificate: str | None) -> Json:
    if certificate is None:
        return {
            "port": name,
            "listen": listen,
            "tls": False,
            "certificate_ends": None,
            "words": "plain HTTP; whether a TLS proxy stands before it the store cannot see",
        }
    try:
        ends, words = utc_text(expiry(certificate)), f"TLS with {Path(certificate).name}"
    except (OSError, ValueError) as failure:
        ends, words = None, f"TLS; its certificate cannot be read: {failure}"
    return {"port": name, "listen": listen, "tls": True, "certificate_ends": ends, "words": words}


def _database(url: str) -> list[Json]:
    if not url:
        return []
    mode = parse_qs(urlsplit(url).query).get("sslmode", [""])[0]
    return [
        {
            "port": "PostgreSQL",
            "listen": urlsplit(url).hostname or "",
            "tls": mode in ("require", "verify-ca", "verify-full"),
            "certificate_ends": None,
            "words": f"sslmode={mode}" if mode else "no sslmode in meta.url: TLS is not demanded",
        }
    ]


def _residency(summary: Summary, rows: list[Any]) -> Json:
    return {
        "verdict": summary.verdict,
        "reasons": summary.reasons,
        "began": utc_text(summary.began_us / SECOND_US),
        "ended": utc_text(summary.ended_us / SECOND_US),
        "counts": msgspec.to_builtins(summary.counts),
        "sites": sorted({place.site for place in summary.places}),
        "notes": summary.notes,
        "bound_buckets": msgspec.to_builtins(rows[:HOUSED_MAX]),
        "more_bound_buckets": len(rows) > HOUSED_MAX,
    }
