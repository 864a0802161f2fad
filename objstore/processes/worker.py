"""A gateway worker's process: one S3 listener, its own open volumes, metadata read straight from LMDB."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from objstore.iam.last_use import UsedKeys
from objstore.metrics import Registry, RequestMetrics, counter
from objstore.processes.control import serve_metrics
from objstore.processes.link import Link
from objstore.processes.memory import keep_pieces, return_memory
from objstore.processes.minding import follow_disks, judge_slowness, mind_disks, report_damage, tell_used_keys
from objstore.processes.parts import directory_of, introduce, open_parts, until_stopped
from objstore.processes.spec import Spec
from objstore.rental.rates import Exchange, Rates
from objstore.s3.access_log import AccessLog
from objstore.s3.app import App
from objstore.s3.availability import Availability
from objstore.s3.limits import Limits
from objstore.s3.routes import ROUTES, choose
from objstore.s3.server import serve_s3
from objstore.s3.traffic import Scopes, Traffic

log = logging.getLogger(__name__)

LOOK_AT_LOG_SECONDS = 2.0


def run(link: Link, died: str, spec: Spec, name: str, sockets: Sequence[socket.socket]) -> None:
    """Until SIGTERM; then drain, flush, seal, end."""
    uvloop.run(_serve(link, spec, name, sockets))


async def _serve(link: Link, spec: Spec, name: str, sockets: Sequence[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    link.attach(loop)
    config = spec.config
    registry = Registry()
    parts = await open_parts(spec, registry)
    # Before the first volume: upkeep seals those of writers that it does not know.
    await introduce(parts, link)
    access_log = _access_log(spec, name)
    limits = Limits.from_config(config.limits)
    used = UsedKeys()
    metering = config.metering
    traffic = Traffic(parts.store.buckets, Scopes(metering.internal_networks, metering.replication_networks))
    availability = Availability()
    lost = "Counters of requests and transfer that could not be committed: nobody is billed for them."
    uncounted = "Requests that five-minute error rates lack: too many tenants waited for metadata."
    registry.include(
        lambda: [
            counter("usage_counters_lost", lost, traffic.lost),
            counter("service_requests_lost", uncounted, availability.lost),
        ]
    )
    rates = Rates(parts.store.clock.monotonic)
    rates.processes = config.server.workers or os.cpu_count() or 1  # Until they have spoken.
    exchange = Exchange(parts.kv, rates, parts.writer_id, parts.store.clock.monotonic)
    app = App(
        store=parts.store,
        directory=directory_of(parts),
        routes=ROUTES,
        choose=choose,
        region=config.server.region,
        domains=config.server.domains,
        limits=limits,
        access_log=access_log,
        observer=RequestMetrics(registry, name.removeprefix("worker-")),
        no_writes=lambda: parts.kv.away,
        traffic=traffic,
        availability=availability,
        rates=rates,
        used=used.add,
    )
    registry.include(
        lambda: [
            counter("s3_rate_refusals", "Requests refused for a rate of who sent them.", rates.refused),
            counter("s3_share_refusals", "Requests refused for what is in flight.", app.admission.refused),
        ]
    )
    minded = (mind_disks, follow_disks, judge_slowness, report_damage)
    tasks = [loop.create_task(mind(parts)) for mind in minded]
    tasks.append(loop.create_task(tell_used_keys(parts, used)))
    tasks.append(loop.create_task(return_memory()))
    tasks.append(loop.create_task(exchange.keep()))
    tasks.append(loop.create_task(app.admission.keep_looking(parts.store.clock.monotonic)))
    tasks.append(loop.create_task(traffic.keep(parts.kv, parts.store.clock, lambda: parts.kv.away)))
    tasks.append(loop.create_task(availability.keep(parts.kv, parts.store.clock, lambda: parts.kv.away)))
    context: ssl.SSLContext | None = None
    if config.tls.certificate:
        from objstore.s3.tls import Certificate  # Loads x509: a tenth of a second that plain HTTP saves.

        certificate = Certificate(Path(config.tls.certificate), Path(config.tls.key))
        context = certificate.context
        tasks.append(loop.create_task(certificate.watch()))
    if access_log is not None and config.log.access == "files":
        tasks.append(loop.create_task(_rotate(access_log, _log_path(spec, name), config.log.access_size_max)))
    runner = await serve_s3(app, sockets, context)
    metrics = await serve_metrics(spec.run_directory, name, registry)
    keep_pieces()
    # What is here now stays: the collector need not look at it again. Young garbage is collected less
    # often than by default, since requests leave next to no cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    link.ready()
    await until_stopped()
    for task in tasks:
        task.cancel()
    await runner.stop(config.server.drain_seconds)
    stopped_s = parts.store.clock.now_us() // 1_000_000
    await traffic.commit(parts.kv, stopped_s)
    availability.turn(stopped_s)
    await availability.commit(parts.kv)
    metrics.close()
    await exchange.leave()
    await parts.close()


def _log_path(spec: Spec, name: str) -> str:
    return f"{spec.data}/log/access-{name.removeprefix('worker-')}.log"


def _access_log(spec: Spec, name: str) -> AccessLog | None:
    kind = spec.config.log.access
    if kind == "off":
        return None
    if kind != "files":
        return AccessLog(sys.stdout.fileno() if kind == "stdout" else sys.stderr.fileno())
    path = _log_path(spec, name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return AccessLog(_open_log(path))
    except OSError as failure:  # A log that cannot be written does not stop the store.
        log.error("no access log", extra={"file": path, "failure": str(failure)})
        return None


def _open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


async def _rotate(access_log: AccessLog, path: str, size_max: int) -> None:
    """Set a full file aside, and follow one that was renamed or removed by others (logrotate)."""
    while True:
        await asyncio.sleep(LOOK_AT_LOG_SECONDS)
        with contextlib.suppress(OSError):
            ours = os.fstat(access_log.fd)
            try:
                there = os.stat(path)
            except FileNotFoundError:
                there = None
            if there is not None and there.st_ino == ours.st_ino:
                if ours.st_size < size_max:
                    continue
                os.replace(path, path + ".1")
            fresh = _open_log(path)
            os.dup2(fresh, access_log.fd, inheritable=False)  # The writer's descriptor keeps its number.
            os.close(fresh)
