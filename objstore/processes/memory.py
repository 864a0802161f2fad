"""Memory that nobody uses any more goes back to the system.

The large buffers of uploads and downloads come and go between small things that stay, and glibc by itself
returns only the end of its heap: after ten floods of a thousand slow readers each, a worker that had held
64 MiB for them kept 700 MiB. Connections that were cut leave cycles, and those may hold buffers.
"""

import asyncio
import ctypes
import gc
import resource
from typing import Final

TRIM_SECONDS: Final = 30.0
TRIM_GROWTH: Final = 64 * 1024 * 1024  # Bytes: with less than this to gain, nobody looks.


async def return_memory() -> None:
    """Collect and trim whenever memory has grown, until cancelled. It takes some ten milliseconds."""
    least = private_bytes()
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        now = private_bytes()
        if now - least >= TRIM_GROWTH:
            await asyncio.to_thread(trim)
            now = private_bytes()
            least = now
        least = min(least, now)


def private_bytes() -> int:
    """Memory of this process that no file backs and nobody shares."""
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * resource.getpagesize()


def trim() -> None:
    """Give back what nobody uses. Blocks. Without glibc, only what Python itself gives back."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
