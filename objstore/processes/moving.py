"""`objstore meta copy --from lmdb:DIR --to postgresql://...`: a store's metadata moves into PostgreSQL.

While the store serves, the first pass reads its LMDB beside the workers, as one more client of the committer,
one that never commits. When it does not serve, the store is locked as for serving, a committer recovers it,
and the last pass finishes the copy. See meta/copy.py for why that is sound. Before anybody may use the copy,
the store is marked as moved (moved.py), and serves no more.
"""

import asyncio
import dataclasses
import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from objstore.config import Loaded
from objstore.errors import BadRequest
from objstore.meta.client import MetaClient
from objstore.meta.copy import Progress, Report, copy
from objstore.meta.kv_postgres import PostgresKv, shown_url
from objstore.processes.cluster import RECORD_NAME, CannotStart
from objstore.processes.machine import directories, short
from objstore.processes.moved import mark_moved, moved_to
from objstore.processes.offline import run_job
from objstore.processes.parts import Parts

START_S = 8.0  # An operator waits: an address that does not answer is more likely wrong than busy.

Total = Callable[[int], None]
"""Told how many records there are, about."""


def copy_metadata(loaded: Loaded, url: str, *, progress: Progress, total: Total) -> Report:
    """One pass: the first ones while the store serves, the last one when it does not.

    Raises: CannotStart, StoreError; ValueError for a bad address.
    """
    name = _cluster_id(Path(loaded.config.server.data))
    data, run_directory = directories(loaded.config)
    if serves(run_directory):
        return uvloop.run(_beside(short(run_directory), url, name, progress, total))
    report = Report()

    async def job(parts: Parts) -> None:
        nonlocal report
        assert isinstance(parts.kv, MetaClient)
        if parts.spec.cluster.cluster_id.hex() != name:
            raise CannotStart(f"{data / RECORD_NAME} is of another store than the disks")
        mark = partial(mark_moved, data, parts.spec.cluster, shown_url(url))
        try:
            report = await _run(parts.kv, url, name, progress, total, mark)
        except BadRequest as refused:
            if moved_to(data) != shown_url(url):
                raise
            raise CannotStart(
                f"{refused}. This store was moved to {shown_url(url)} by an earlier pass: if that one ended,"
                " all is done. Next: objstore cluster init, then objstore gateway with meta.url"
            ) from None

    # Where it goes to may be set already; here it is about where it comes from.
    config = loaded.config
    embedded = msgspec.structs.replace(config, meta=msgspec.structs.replace(config.meta, url=""))
    run_job(dataclasses.replace(loaded, config=embedded), job)
    return report


async def _beside(run_directory: str, url: str, name: str, progress: Progress, total: Total) -> Report:
    source = MetaClient(f"{run_directory}/committer.sock")
    await source.start(10.0)
    try:
        return await _run(source, url, name, progress, total, None)
    finally:
        await source.close()


async def _run(
    source: MetaClient,
    url: str,
    name: str,
    progress: Progress,
    total: Total,
    mark: Callable[[], None] | None,
) -> Report:
    """`mark`: of a store that stands still, what keeps it so; None while it serves."""
    total(await asyncio.to_thread(source.reader.entry_count))
    target = PostgresKv(url, may_copy=True)
    await target.start(START_S)
    try:
        if mark is None:
            return await copy(source, target, name=name, standing=False, progress=progress)
        return await copy(source, target, name=name, standing=True, before_end=mark, progress=progress)
    finally:
        await target.close()


def serves(run_directory: Path) -> bool:
    """Whether a process holds the data directory."""
    try:
        fd = os.open(run_directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class _Record(msgspec.Struct):
    cluster: str


def _cluster_id(data: Path) -> str:
    place = data / RECORD_NAME
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Record).cluster
    except FileNotFoundError:
        raise CannotStart(f"no store at {data}: --from lmdb:DIR names its data directory") from None
    except (OSError, msgspec.MsgspecError) as failure:
        raise CannotStart(f"{place} cannot be read: {failure}") from None
