"""A socket in every process that says what it has counted. The upkeep process asks when it is scraped.

`run/<process>.sock`: who connects says `tenants` or nothing, and the end; and gets one MessagePack value,
`[incarnation, families, tenants]`, and the end. What is counted by tenant comes only where it is asked for,
by a scrape, and as it was counted: samples of thousands of tenants would keep a worker from its requests for
tens of milliseconds. The directory is closed to other users, so there is no one to refuse.
"""

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from objstore.ids import random_id
from objstore.metrics import Family, Registry, TenantNumbers, merge

SNAPSHOT_SIZE_MAX = 16 * 1024 * 1024  # Bytes; a worker has about 20 KB.
ASK_SECONDS = 2.0
BY_TENANT = b"tenants"
EJECTED = "disk_ejected"  # How many processes find a disk slow, by disk and op.


class Snapshot(msgspec.Struct, array_like=True):
    incarnation: str  # Changes when the process is another one.
    families: list[Family]
    tenants: dict[str, TenantNumbers] = {}  # "": of those that the process does not know by name.


_decoder = msgspec.msgpack.Decoder(Snapshot)


def _path(run_directory: str, process: str) -> str:
    return f"{run_directory}/{process}.sock"


async def serve_metrics(run_directory: str, process: str, registry: Registry) -> asyncio.Server:
    """Answer until the server is closed."""
    incarnation = random_id().hex()
    path = _path(run_directory, process)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                by_tenant = await reader.read(len(BY_TENANT)) == BY_TENANT
                tenants = registry.tenants if by_tenant else {}
                writer.write(msgspec.msgpack.encode(Snapshot(incarnation, registry.families(), tenants)))
                await writer.drain()
        except (OSError, TimeoutError):
            pass
        finally:
            writer.close()

    return await asyncio.start_unix_server(answer, path)


async def ask(run_directory: str, process: str, *, by_tenant: bool = False) -> Snapshot | None:
    """What the process has counted, by tenant only if that is said; None if it does not answer in time."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(_path(run_directory, process))
            try:
                if by_tenant:
                    writer.write(BY_TENANT)
                writer.write_eof()
                content = bytearray()
                while len(content) <= SNAPSHOT_SIZE_MAX and (chunk := await reader.read(1 << 16)):
                    content += chunk
            finally:
                writer.close()
        return _decoder.decode(content)
    except (OSError, TimeoutError, msgspec.MsgspecError):
        return None


async def ejected(run_directory: str) -> tuple[dict[tuple[int, str], int], int]:
    """How many processes of this machine find a disk slow, by disk and op; and how many answered."""
    names = processes(run_directory)
    snapshots = [one for one in await asyncio.gather(*(ask(run_directory, name) for name in names)) if one]
    found = {
        (int(disk), op): int(number)
        for family in merge([one.families for one in snapshots])
        if family.name == EJECTED
        for (disk, op), (number,) in family.samples
    }
    return found, len(snapshots)


async def slow_disks(run_directory: str) -> dict[int, str]:
    """In words, by number: the disks that processes of this machine find slow (processes/minding.py)."""
    found, asked = await ejected(run_directory)
    words: dict[int, str] = {}
    for (disk, op), count in sorted(found.items()):
        if count:
            what = "reads come late" if op == "read" else "appends take long"
            told = f"{what} beside its peers', say {count} of {asked} processes"
            words[disk] = f"{words[disk]}; {told}" if disk in words else told
    return words


def processes(run_directory: str) -> list[str]:
    """Those that have a socket, alive or not."""
    return sorted(
        path.name.removesuffix(".sock")
        for path in Path(run_directory).glob("*.sock")
        if path.name != "committer.sock"
    )
