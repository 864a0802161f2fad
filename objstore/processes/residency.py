"""The residency audit as operators ask for it: begun, watched, and read page by page.

Concurrency: one audit at a time, a task of the upkeep process; its inventory is kept until the next one
begins, or for an hour.
"""

import asyncio
import logging
from typing import Any, Final

import msgspec

from objstore import __version__
from objstore.admin.app import Problem, ResidencyAdmin
from objstore.clock import utc_text
from objstore.errors import StoreError
from objstore.objects.replication import bucket_of
from objstore.processes.parts import Parts, context_of
from objstore.upkeep.residency import PAGE_VOLUMES, Audit, Summary

log = logging.getLogger(__name__)

KEPT_S: Final = 3_600.0  # An inventory of a hundred million files is a gigabyte.

Json = dict[str, Any]


class Residency:
    """Audits of one store. `close` at the end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._context = context_of(parts)
        self._audit: Audit | None = None
        self._task: asyncio.Task[Summary] | None = None
        self._forget: asyncio.TimerHandle | None = None

    def admin(self) -> ResidencyAdmin:
        return ResidencyAdmin(begin=self.begin, status=self.status, rows=self.rows)

    async def begin(self, bucket: str) -> Json:
        """Begin one. Raises: Problem (one is running), NoSuchBucket."""
        if self._task is not None and not self._task.done():
            raise Problem(409, "an audit is under way")
        if bucket:
            await bucket_of(self._parts.store, bucket)
        sites = tuple(self._parts.spec.config.meta.sites)
        self._audit = Audit(self._context, bucket=bucket, metadata_sites=sites)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._audit.take(), name="audit of residency")
        if self._forget is not None:
            self._forget.cancel()
        self._forget = loop.call_later(KEPT_S, self._drop)
        return await self.status()

    def _drop(self) -> None:
        if self._task is None or self._task.done():
            self._audit = self._task = None

    async def status(self) -> Json:
        """How far it is, or what it came to. Raises: Problem: there is none, or it failed."""
        audit, task = self._audit, self._task
        if audit is None or task is None:
            raise Problem(404, "no audit was taken, or it was longer ago than an hour")
        if not task.done():
            return {"running": True, "disks_asked": audit.asked}
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            if not isinstance(failure, StoreError):
                log.error("residency audit: a bug", exc_info=failure)
            raise Problem(503, f"the audit ended early: {failure}")
        summary = task.result()
        return {
            "running": False,
            "document": "objstore audit residency",
            "format": 1,
            "cluster": self._parts.spec.cluster.cluster_id.hex(),
            "version": __version__,
            "began": utc_text(summary.began_us / 1e6),
            "ended": utc_text(summary.ended_us / 1e6),
            **msgspec.to_builtins(summary),
        }

    async def rows(self, after: int) -> Json:
        """A page of what was found of the volumes behind `after`; `next` is None at the end."""
        audit = self._audit
        if audit is None or audit.summary is None:
            raise Problem(404, "no audit was taken, or it is not done")
        rows = await audit.rows(after)
        return {
            "volumes": msgspec.to_builtins(rows),
            "next": rows[-1].volume if len(rows) == PAGE_VOLUMES else None,
        }

    async def close(self) -> None:
        if self._forget is not None:
            self._forget.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=10)
