"""Replication between stores: the service that sends, and what operators ask of it.

Concurrency: the upkeep process's event loop. Only the holder of the upkeep's claim sends; every gateway
answers operators from metadata.
"""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from objstore.admin.app import Problem, SitesAdmin
from objstore.blobs.topology import Layout
from objstore.clock import utc_text
from objstore.errors import BadArgument, StoreError
from objstore.meta.kv import pages, prefix_end
from objstore.meta.schema import BucketRecord, ReplicationRecord, bucket_key, decode
from objstore.metrics import Family, Labels
from objstore.objects import replicas, replication
from objstore.objects.buckets import check_bucket_name
from objstore.objects.changes import replica_of, replication_of
from objstore.objects.placing import policy_of_bucket
from objstore.processes.parts import Parts
from objstore.processes.rotation import box_of, secret_context
from objstore.s3.replica_client import ReplicaClient, check_endpoint
from objstore.upkeep.replication import Replication, Rules, Sender
from objstore.upkeep.sending import TargetAway, TargetRefuses
from objstore.upkeep.service import Service

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # Between two looks for buckets with something to be sent.
METRICS_S: Final = 5.0  # Between two counts of what is pending.
LAYOUT_S: Final = 5.0  # How old a layout may be by which a bucket is sent: it is a record for every disk.
LABELS_MAX: Final = 100  # Buckets with series of their own; the rest is one, `_other`.
SHOWN_MAX: Final = 20  # Pending keys that are shown of a bucket.
PAGE: Final = 1_000

Json = dict[str, Any]


class Sites:
    """Sends, counts and answers. `keep` runs for good; `close` at the end."""

    def __init__(self, parts: Parts, service: Service) -> None:
        self._parts = parts
        self._service = service
        self._store = parts.store
        self._box = box_of(parts)
        config = parts.spec.config.replication
        self._replication = Replication(
            replace(parts.store, kv=service.context.kv),
            self._connect,
            self._check_residency,
            Rules(keys_at_once=config.keys_at_once, bytes_per_second=config.bytes_per_second),
        )
        self._layout: tuple[float, Layout] | None = None  # When it was read, monotonic.
        self._rows: list[Json] = []  # As of the last count: what the metrics show.
        self._setting = asyncio.Lock()  # One operator's change of a target at a time.

    def admin(self) -> SitesAdmin:
        return SitesAdmin(
            replication=self.listed,
            replicated=self.shown,
            set_replication=self.set,
            remove_replication=self.remove,
            resync_replication=self.resync,
            promote_replica=self.promote,
        )

    async def keep(self) -> None:
        """Send whenever this process leads. Never returns."""
        counted = 0.0
        clock = self._store.clock
        while True:
            try:
                if self._service.leads:
                    await self._replication.run()
                    if clock.monotonic() - counted >= METRICS_S:
                        self._rows = await self._count()
                        counted = clock.monotonic()
                else:
                    await self._replication.close()
                    self._rows = []
            except StoreError as failure:
                log.warning("replication is not looked after: %s", failure)
            except Exception:
                log.exception("replication: a bug")
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        await self._replication.close()

    def _connect(self, name: str, record: BucketRecord, config: ReplicationRecord) -> ReplicaClient:
        secret = self._box.open(secret_context(record.id), config.secret, config.sealed_under)
        return ReplicaClient(config, secret, tls=self._trusted())

    async def _check_residency(self, record: BucketRecord, config: ReplicationRecord) -> None:
        """Bytes leave a bucket's sites by replication no more than in any other way.

        Asked before every page that is sent: the bucket's policy and the layout may change at any time.

        Raises: BadArgument.
        """
        now = self._store.clock.monotonic()
        if self._layout is None or now - self._layout[0] > LAYOUT_S:
            self._layout = now, await self._store.ledger.layout()
        policy = self._layout[1].policy(policy_of_bucket(record))
        if policy.sites and config.site not in policy.sites:
            where = f"site {config.site}" if config.site else "a site that was not named (--site)"
            raise BadArgument(
                f"policy {policy.name} keeps it in {', '.join(policy.sites)}, its target is in {where}",
                name="site",
                value=config.site,
            )

    def _trusted(self) -> ssl.SSLContext | None:
        """Read anew each time: certificates are replaced while a store runs. Raises: BadArgument."""
        place = self._parts.spec.config.replication.ca_file
        if not place:
            return None
        try:
            return ssl.create_default_context(cafile=place)
        except OSError as failure:
            raise BadArgument(f"replication.ca_file {place}: {failure}", name="ca_file") from failure

    # What operators ask.

    async def listed(self) -> list[Json]:
        """Every bucket that has a target, or is or was a replica."""
        rows: list[Json] = []
        async for pairs in pages(self._store.kv, b"b", prefix_end(b"b"), PAGE):
            for key, value in pairs:
                record = decode(value, BucketRecord)
                if record.settings:
                    rows += await self._rows_of(key[1:].decode(), record)
        return rows

    async def _count(self) -> list[Json]:
        """The rows of buckets with a target, by their own list: not every bucket is looked at."""
        rows: list[Json] = []
        for name, _ in await replication.replicated(self._store.kv):
            value = await self._store.kv.get(bucket_key(name))
            if value is not None:
                found = await self._rows_of(name, decode(value, BucketRecord))
                rows += [row for row in found if row["role"] == "source"]
        return rows

    async def _rows_of(self, name: str, record: BucketRecord) -> list[Json]:
        rows: list[Json] = []
        config, replica = replication_of(record), replica_of(record)
        if config is not None:
            rows.append(await self._source_row(name, record, config))
        if replica is not None:
            rows.append(
                {
                    "bucket": name,
                    "role": "promoted" if replica.promoted_us else "replica",
                    "state": "takes its tenant's writes" if replica.promoted_us else "read-only",
                    "other": f"{replica.cluster}/{replica.bucket}",
                    "generation": replica.generation,
                    "since": _time(replica.promoted_us or replica.since_us),
                }
            )
        return rows

    async def _source_row(self, name: str, record: BucketRecord, config: ReplicationRecord) -> Json:
        backlog = await replication.backlog(self._store, record.id)
        progress = await replication.progress_of(self._store, name)
        now_us = self._store.clock.now_us()
        lag_us = max(now_us - backlog.oldest_us, 0) if backlog.oldest_us else 0
        copying = progress is not None and not progress.finished_us
        sender = self._replication.senders.get(name)
        row: Json = {
            "bucket": name,
            "role": "source",
            "state": _state(config, copying, backlog.changes, sender),
            "other": f"{config.endpoint}/{config.bucket}",
            "site": config.site,
            "pending": backlog.changes,
            "bytes": backlog.size,
            "lag_seconds": round(lag_us / 1e6, 3),
            "oldest_us": backlog.oldest_us,
            "copying": copying,
            "generation": config.generation,
            "since": _time(config.since_us),
        }
        if sender is not None:
            row |= {
                "sent_keys": sender.sent.keys,
                "sent_bytes": sender.sent.size,
                "failures": sender.sent.failures,
                "failing_keys": sender.failing_keys,
                "refused": sender.refused,
                "last_failure": sender.sent.last_failure,
            }
        return row

    async def shown(self, bucket: str) -> Json:
        """Its rows, and the oldest keys that its target lacks."""
        _, record = await replication.bucket_of(self._store, bucket)
        rows = await self._rows_of(bucket, record)
        if not rows:
            raise Problem(404, f"bucket {bucket!r} is neither replicated nor a replica")
        now_us = self._store.clock.now_us()
        some = await replication.pending(self._store, record.id, b"", SHOWN_MAX)
        return {
            "rows": rows,
            "oldest": [
                {
                    "key": one.key.decode(errors="replace"),
                    "since": _time(one.since_us),
                    "seconds": round(max(now_us - one.since_us, 0) / 1e6, 3),
                    "bytes": one.size,
                }
                for one in some
            ],
        }

    async def _source(self, bucket: str) -> Json:
        _, record = await replication.bucket_of(self._store, bucket)
        config = replication_of(record)
        if config is None:
            raise Problem(409, f"bucket {bucket!r} is replicated no more")
        return await self._source_row(bucket, record, config)

    async def set(self, bucket: str, given: Mapping[str, str]) -> Json:
        """Give the bucket a target, or another one.

        The bucket is marked before the target is asked: a bucket that is replicated itself becomes no
        replica, so two stores that name each other at the same time both refuse.

        Args:
            given: endpoint, bucket, access_key, secret_key; region, site; "yes" for overwrite, insecure.

        Raises: BadArgument, NoSuchBucket, BucketReplicates; Problem with what the target says.
        """
        async with self._setting:
            return await self._set(bucket, given)

    async def _set(self, bucket: str, given: Mapping[str, str]) -> Json:
        endpoint = check_endpoint(given["endpoint"], insecure=given.get("insecure") == "yes")
        check_bucket_name(given["bucket"])
        overwrite = given.get("overwrite") == "yes"
        trusted = self._trusted()
        _, before = await replication.bucket_of(self._store, bucket)
        old = replication_of(before)
        same = old is not None and (old.endpoint, old.bucket) == (endpoint, given["bucket"])

        def make(record: BucketRecord) -> ReplicationRecord:
            return ReplicationRecord(
                endpoint=endpoint,
                bucket=given["bucket"],
                access_key=given["access_key"],
                secret=self._box.seal(secret_context(record.id), given["secret_key"]),
                sealed_under=self._box.newest,
                region=given.get("region", "") or self._parts.spec.config.server.region,
                site=given.get("site", ""),
                since_us=old.since_us if old is not None and same else self._store.clock.now_us(),
            )

        self._layout = None  # An operator may have changed it just now.
        await self._check_residency(before, make(before))
        noted = await replication.set_target(self._store, bucket, make, resync=False)
        client = ReplicaClient(noted, given["secret_key"], tls=trusted)
        source = replicas.Source(
            cluster=self._parts.spec.cluster.cluster_id.hex(), bucket=bucket, id=before.id
        )
        try:
            generation = await client.attach(source, replace=overwrite)
        except (TargetAway, TargetRefuses) as failure:
            if old is None:
                await replication.remove_target(self._store, bucket)
            else:
                await replication.set_target(self._store, bucket, lambda record: old, resync=False)
            raise Problem(409, f"the target did not agree: {failure}") from failure
        finally:
            await client.close()
        attached = msgspec.structs.replace(noted, generation=generation)
        fresh = not same or old is None or old.generation != generation
        await replication.set_target(self._store, bucket, lambda record: attached, resync=fresh)
        return await self._source(bucket)

    async def remove(self, bucket: str) -> Json:
        dropped = await replication.remove_target(self._store, bucket)
        return {"bucket": bucket, "dropped_changes": dropped}

    async def resync(self, bucket: str) -> Json:
        await replication.resync(self._store, bucket)
        return await self._source(bucket)

    async def promote(self, bucket: str) -> Json:
        record = await replicas.promote(self._store, bucket)
        return {
            "bucket": bucket,
            "promoted": _time(record.promoted_us),
            "generation": record.generation,
            "source": f"{record.cluster}/{record.bucket}",
        }

    # Metrics.

    def families(self) -> list[Family]:
        """Of the process that leads; from its last count."""
        now_us = self._store.clock.now_us()
        shown: dict[str, dict[str, float]] = {}
        for row in self._rows:
            name = row["bucket"] if len(shown) < LABELS_MAX or row["bucket"] in shown else "_other"
            into = shown.setdefault(name, dict.fromkeys(_FAMILIES, 0.0))
            lag = max(now_us - row["oldest_us"], 0) / 1e6 if row["oldest_us"] else 0.0
            into["replication_lag_seconds"] = max(into["replication_lag_seconds"], lag)
            into["replication_pending_changes"] += row["pending"]
            into["replication_pending_bytes"] += row["bytes"]
            into["replication_copying"] = max(into["replication_copying"], row["copying"])
            into["replication_refused"] = max(into["replication_refused"], row.get("refused", False))
            into["replication_failing_keys"] += row.get("failing_keys", 0)
            into["replication_failures"] += row.get("failures", 0)
            into["replication_sent_keys"] += row.get("sent_keys", 0)
            into["replication_sent_bytes"] += row.get("sent_bytes", 0)
        families: list[Family] = []
        for name, (kind, doc) in _FAMILIES.items():
            samples: list[tuple[Labels, list[float]]] = [
                ((bucket,), [float(numbers[name])]) for bucket, numbers in shown.items()
            ]
            families.append(Family(name, kind, doc, ("bucket",), (), samples))
        return families


_FAMILIES: Final = {
    "replication_lag_seconds": ("gauge", "Age of the oldest change that the bucket's target lacks."),
    "replication_pending_changes": ("gauge", "Changes that the bucket's target lacks."),
    "replication_pending_bytes": ("gauge", "Bytes of those changes."),
    "replication_copying": ("gauge", "1 while all that the bucket holds is compared with its target."),
    "replication_refused": ("gauge", "1 if the target takes nothing more: promoted, or another's."),
    "replication_failing_keys": ("gauge", "Keys that could not be sent, and wait."),
    "replication_failures": ("counter", "Keys and sessions that failed."),
    "replication_sent_keys": ("counter", "Keys that the target has acknowledged."),
    "replication_sent_bytes": ("counter", "Bytes that the target has acknowledged."),
}


def _state(config: ReplicationRecord, copying: bool, changes: int, sender: Sender | None) -> str:
    if not config.generation:
        return "not agreed"  # `set` was cut short: to be given again.
    if sender is not None and sender.refused:
        return "refused"
    if copying:
        return "copying"
    return "behind" if changes else "in step"


def _time(us: int) -> str:
    return utc_text(us / 1e6) if us else ""
