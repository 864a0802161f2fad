"""The committer's process: metadata's only writer. It recovers before it says that it is ready."""

import asyncio
import logging
import signal
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from objstore.errors import StaleEpoch
from objstore.meta.committer import CommitterOptions, CommitterStats, run_committer
from objstore.meta.fold import finder_process, folder_process
from objstore.metrics import Family, Registry, counter, gauge
from objstore.processes.control import serve_metrics
from objstore.processes.link import Link
from objstore.processes.spec import (
    Opener,
    Spec,
    StoreDisk,
    disk_options,
    open_disk_list,
    open_disks,
    opener_of,
    places_of,
)

log = logging.getLogger(__name__)

# Pages that cannot be read, or in which LMDB finds what cannot be: the next start would die of them again.
MAPPING_DEATHS = ("SIGBUS", "SIGSEGV", "SIGABRT")
SERVED_NAME = "newest-epoch"  # In the data directory.
NODES_WAIT_S: Final = 600.0  # For storage nodes to come back: a machine with many disks boots for minutes.
LOOK_SECONDS: Final = 0.5


def run(link: Link, died: str, spec: Spec, *, forget: bool = False) -> None:
    """Until SIGTERM.

    Args:
        died: how the last committer ended; after MAPPING_DEATHS the state it had mapped is not trusted.
        forget: begin with empty metadata: see meta/recovery.py.
    """
    uvloop.run(_serve(link, died, spec, forget))


async def _serve(link: Link, died: str, spec: Spec, forget: bool) -> None:
    loop = asyncio.get_running_loop()
    link.attach(loop)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    config = spec.config
    _, m = spec.cluster.codec
    opener = opener_of(spec)
    disks = open_disks(opener, spec.cluster)
    stats = CommitterStats()
    registry = Registry()
    registry.include(lambda: _families(stats))
    metrics = await serve_metrics(spec.run_directory, "committer-metrics", registry)

    open_again = partial(
        open_disk_list,
        spec.cluster.cluster_id,
        places_of(spec.cluster),
        disk_options(config),
        spec.cluster.tls,
        spec.cluster.term,
    )

    def progress(loaded: int, expected: int) -> None:
        share = f" ({100 * loaded // expected}%)" if expected else ""
        link.progress(f"rebuilding metadata from the journal: {loaded:,} of {expected:,} keys{share}")

    try:
        await opener.look()
        if spec.cluster.term and not await until_most_answer(opener, disks, link.progress, stop):
            return
        await run_committer(
            socket_path=spec.committer_socket,
            disks=list(disks.values()),
            copies=m + 1,
            cluster=spec.cluster.cluster_id,
            state_directories=_state_directories(spec),
            ready=link.ready,
            stop=stop,
            folder=folder_process(open_again),
            finder=finder_process(open_again),
            options=CommitterOptions(
                append_timeout_s=config.meta.copy_seconds,
                sync_interval_s=config.meta.sync_seconds,
                # A node is away for a restart more often than a disk is broken.
                verify_interval_s=5.0 if spec.cluster.term else 60.0,
            ),
            trust_state=not any(name in died for name in MAPPING_DEATHS),
            progress=progress,
            stats=stats,
            forget=forget,
            served=Path(spec.data, SERVED_NAME),
            beacon=spec.beacon,
            term=spec.cluster.term,
            allowed=lambda number: may_hold_metadata(config.meta.sites, opener.site(number)),
            machine=opener.machine,
            copy_times=lambda number: _copy_times(disks[number]),
        )
    except StaleEpoch as failure:
        # Started again, this committer could only find the same; and what the workers read is the past.
        link.shut_out(f"another gateway machine has taken over ({failure}): this one stops")
        raise
    finally:
        metrics.close()
        for disk in disks.values():
            disk.close()
        opener.close()


async def until_most_answer(
    opener: Opener, disks: Collection[int], progress: Callable[[str], None], stop: asyncio.Event
) -> bool:
    """Wait until more than half of all disks can be reached, as recovery wants it; False if asked to stop.

    After a power cut machines come back in any order. After NODES_WAIT_S recovery says what is missing.
    """
    loop = asyncio.get_running_loop()
    limit, told = loop.time() + NODES_WAIT_S, -1
    while not stop.is_set() and loop.time() < limit:
        there = sum(not opener.is_away(number) for number in disks)
        if 2 * there > len(disks):
            break
        if there != told:
            progress(
                f"waiting for storage nodes: {there} of {len(disks)} disks can be reached, and more than half"
                " are needed"
            )
            told = there
        await asyncio.sleep(LOOK_SECONDS)
    return not stop.is_set()


def may_hold_metadata(sites: list[str], site: str | None) -> bool:
    """Whether the journal may lie on a disk of this site; None: of the gateway's own machine, as LMDB's."""
    return not sites or site is None or site in sites


def _copy_times(disk: StoreDisk) -> tuple[int, float]:
    """How many batches this process has appended to a disk, and the seconds that took."""
    count = disk.counts.get("log_append")
    return (count.count, count.seconds) if count is not None else (0, 0.0)


def _state_directories(spec: Spec) -> list[Path]:
    """Where LMDB may live. A gateway has a place of its own for it: its data directory, which no disk is."""
    own = [Path(spec.data, "meta")] if spec.cluster.term else []
    return own + [Path(disk.path, "meta") for disk in spec.cluster.disks if not disk.node]


def _families(stats: CommitterStats) -> list[Family]:
    return [
        counter("meta_transactions", "Mini-transactions decided.", stats.transactions),
        counter("meta_conflicts", "Mini-transactions refused: an expectation or limit.", stats.refused),
        counter("meta_rounds", "Group commits of metadata.", stats.rounds),
        counter("meta_journal_bytes", "Bytes appended to the journal, once per round.", stats.journal_size),
        counter("meta_journal_rolls", "Journal epochs opened while running.", stats.rolls),
        counter("meta_folds", "Snapshots made.", stats.folds),
        counter("meta_rotten_records", "Records that failed their checksum.", stats.rotten),
        counter("meta_mended_records", "Of those, put back from the journal.", stats.mended),
        gauge("meta_damaged", "Records that fail their checksum now.", stats.damaged),
        gauge("meta_clients", "Processes connected to the committer.", stats.clients),
    ]
