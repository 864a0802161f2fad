"""The upkeep process: the admin port, everyone's metrics, and the services that run in the background.

At its start it makes sure of what every store has in its metadata: the disks' records, the root user and
a key of its own.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from objstore.admin import server as admin_server
from objstore.admin.snippets import SNIPPETS
from objstore.errors import BadArgument
from objstore.iam.directory import Directory
from objstore.meta.kv import Kv
from objstore.metrics import Registry
from objstore.objects import adoption, carrying, doomed, reservations
from objstore.processes.admin_port import AdminPort, sweep_repeats
from objstore.processes.compliance import Compliance
from objstore.processes.control import serve_metrics
from objstore.processes.disks import DiskSet
from objstore.processes.doctor import time_zones
from objstore.processes.engine import is_shared
from objstore.processes.layout import LayoutSet
from objstore.processes.link import Link
from objstore.processes.machine_families import member_families
from objstore.processes.minding import follow_disks, judge_slowness, mind_disks, tell_used_keys
from objstore.processes.parts import (
    Parts,
    alive_of,
    context_of,
    directory_of,
    introduce,
    open_parts,
    until_stopped,
)
from objstore.processes.replication import Sites
from objstore.processes.residency import Residency
from objstore.processes.rotation import Rotation
from objstore.processes.salvage_copies import Copies
from objstore.processes.spec import Spec
from objstore.processes.stopping import Stopping
from objstore.rental.sellers import list_sellers
from objstore.upkeep.compaction import CompactionRules
from objstore.upkeep.purging import LMDB, POSTGRESQL, PurgeRules
from objstore.upkeep.rebalance import RebalanceRules
from objstore.upkeep.service import Periods, Service
from objstore.upkeep.trash import TrashRules

log = logging.getLogger(__name__)


def run(
    link: Link,
    died: str,
    spec: Spec,
    sockets: Sequence[socket.socket],
    cluster_sockets: Sequence[socket.socket] = (),
) -> None:
    """Until SIGTERM.

    Args:
        sockets: of the admin port, bound.
        cluster_sockets: of a gateway's cluster port, bound; empty: this store is one machine.
    """
    uvloop.run(_serve(link, spec, sockets, cluster_sockets, first=not died))


async def _serve(
    link: Link,
    spec: Spec,
    sockets: Sequence[socket.socket],
    cluster_sockets: Sequence[socket.socket],
    *,
    first: bool,
) -> None:
    loop = asyncio.get_running_loop()
    link.attach(loop)
    registry = Registry()
    parts = await open_parts(spec, registry)
    await introduce(parts, link, looks=True)
    directory = directory_of(parts)
    if refusal := await bootstrap(link, parts, directory):
        if first:
            link.shut_out(f"root.access_key: {refusal}. Give the root user a key of its own.")
            await until_stopped()
            await parts.close()
            return
        log.error("the root key that is given was not taken: %s", refusal)  # A store that runs goes on.
    service = _service(parts)
    registry.include(service.families)
    copies = Copies(parts)
    disk_set = DiskSet(parts, link)
    stopping = Stopping(parts, service)
    port = AdminPort(parts, service, copies, disk_set, stopping)
    registry.include(port.own_families)
    sites = Sites(parts, service)
    registry.include(sites.families)
    residency = Residency(parts)
    rotation = Rotation.of(parts, service.context.kv)
    compliance = Compliance(parts, rotation, copies)
    metrics = await serve_metrics(spec.run_directory, "upkeep", registry)

    config = spec.config
    tasks: list[asyncio.Task[None]] = [
        loop.create_task(mind(parts)) for mind in (follow_disks, judge_slowness, sweep_repeats)
    ]
    tasks.append(loop.create_task(mind_disks(parts, lambda: not service.leads)))
    tasks.append(loop.create_task(tell_used_keys(parts, port.used_tokens)))
    for unknown in time_zones(await list_sellers(parts.kv)):
        log.error(unknown["finding"], extra={"remedy": unknown["remedy"]})
    if spec.cluster.term and not is_shared(spec):
        from objstore.processes.founder import follow_nodes, mark_founder

        await mark_founder(parts)
        tasks.append(loop.create_task(follow_nodes(parts, disk_set)))
    context: ssl.SSLContext | None = None
    if config.tls.admin and (name := config.tls.admin_certificate or config.tls.certificate):
        from objstore.s3.tls import Certificate  # Loads x509: a tenth of a second that plain HTTP saves.

        certificate = Certificate(Path(name), Path(config.tls.admin_key or config.tls.key))
        context = certificate.context
        tasks.append(loop.create_task(certificate.watch()))
    admin = replace(port.admin(), sites=sites.admin(), residency=residency.admin())
    admin = replace(admin, layout=LayoutSet(parts).admin(), rotation=rotation.admin())
    admin = replace(admin, compliance=compliance.admin())
    gateway = None
    if cluster_sockets:
        from objstore.processes.cluster_gateway import ClusterGateway  # Loads x509, as above.
        from objstore.processes.nodes import NodeSet

        gateway = ClusterGateway(
            parts,
            cluster_sockets,
            lambda: service.leads,
            lambda words: link.shut_out(f"{words}, which takes nothing from it: it stops"),
            None if is_shared(spec) else disk_set.remember,
        )
        heartbeats = gateway.heartbeats
        service.stand_by_while(lambda: heartbeats.cut_off)
        port.hear_of(heartbeats.silent)
        nodes = NodeSet(parts, disk_set, stopping, gateway.members, gateway.remove)
        admin = replace(admin, clustered=gateway.admin(), nodes=nodes.admin())
        await gateway.start()
        if not is_shared(spec):
            from objstore.processes.founder import remove_predecessors

            own = gateway.credentials.name.id
            tasks.append(loop.create_task(remove_predecessors(gateway.members, own)))
    registry.include(lambda: member_families([] if gateway is None else gateway.heartbeats.seen()))
    server = await admin_server.serve(admin, sockets, context)
    if config.upkeep.enabled:
        service.start()
        tasks.append(loop.create_task(copies.keep()))
        tasks.append(loop.create_task(sites.keep()))
        tasks.append(loop.create_task(rotation.keep(lambda: service.leads)))
    link.ready()
    await until_stopped()
    for task in tasks:
        task.cancel()
    await server.close()
    if gateway is not None:
        await gateway.close()
    await residency.close()
    await compliance.close()
    await sites.close()
    await service.close()
    metrics.close()
    await parts.close()


def _service(parts: Parts) -> Service:
    store, config = parts.store, parts.spec.config.upkeep
    context = context_of(parts)
    grace_s = config.trash_days * 86_400
    return Service(
        context,
        holder=parts.writer_id,
        alive=alive_of(parts),
        sweep_doomed=lambda kv: doomed.sweep(replace(store, kv=kv)),
        pack_carried=lambda kv: carrying.pack_left_behind(replace(store, kv=kv)),
        adopt=lambda kv: _adopt(parts, kv),
        release_reserved=lambda kv: reservations.release_expired(replace(store, kv=kv)),
        store=store,
        periods=Periods(scrub_round_s=config.scrub_days * 86_400).scaled(config.period_factor),
        compaction_rules=CompactionRules(garbage_share=config.garbage_percent / 100),
        trash_rules=TrashRules(grace_s=grace_s, grace_least_s=min(grace_s, 86_400)),
        repair_grace_s=config.repair_grace_seconds,
        purge_rules=PurgeRules(
            settle_s=PurgeRules().settle_s * config.period_factor,
            rest_s=PurgeRules().rest_s * config.period_factor,
            trash_s=grace_s,
            engine=POSTGRESQL if is_shared(parts.spec) else LMDB,
        ),
        tenants_shown=parts.spec.config.metrics.tenant_limit,
        rebalance_rules=RebalanceRules(
            enabled=config.rebalance,
            bytes_per_second=config.rebalance_bytes_per_second,
            tolerance=config.rebalance_percent / 100,
        ),
    )


async def _adopt(parts: Parts, kv: Kv) -> int:
    """Not while a process of a release without meters may write: what it changes would not be counted."""
    if parts.writers is not None and not await parts.writers.all_count():
        return 0
    return await adoption.adopt(replace(parts.store, kv=kv))


async def bootstrap(link: Link, parts: Parts, directory: Directory) -> str:
    """Note this machine's disks, and make sure of root and its key; what is new is told to the operator.

    Returns: why the root key that is given was not taken (it is another user's, say); empty: it was.
    """
    spec = parts.spec
    for place in spec.cluster.disks:
        if not place.node:  # The others register themselves.
            await parts.store.ledger.register_disk(place.number, uuid=place.uuid, path=place.path)
    root = spec.config.root
    try:
        access_key, secret = await directory.bootstrap(root.access_key or None, root.secret_key or None)
    except BadArgument as failure:
        return str(failure)
    if root.access_key and (await directory.find_key(access_key)).disabled:
        link.notice(
            f"The root key {access_key} that is given (root.access_key) was disabled, and stays so:"
            f" objstore key enable {access_key}, or give it another secret."
        )
    if secret is None:
        return ""
    region = spec.config.server.region
    link.notice(f"\nThe root key, shown this once:\n\n  access key  {access_key}\n  secret key  {secret}\n")
    for tool, snippet in SNIPPETS.items():
        text = snippet(spec.endpoint, region, access_key, secret).replace("\n", "\n  ")
        link.notice(f"{tool}:\n  {text}\n")
    return ""
