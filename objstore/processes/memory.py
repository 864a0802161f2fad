"""Memory that nobody uses any more goes back to the system.

The large buffers of uploads and downloads come and go between small things that stay, and glibc by itself
returns only the end of its heap: after ten floods of a thousand slow readers each, a worker that had held
64 MiB for them kept 700 MiB. Connections that were cut leave cycles, and those may hold buffers.

The little that the next answer will need stays: a listing's page is 300 KB, three times over in the making.
"""

import asyncio
import ctypes
import gc
import resource
from typing import Final

TRIM_SECONDS: Final = 30.0
TRIM_GROWTH: Final = 64 * 1024 * 1024  # Bytes: with less than this to gain, nobody looks.
KEPT_PIECE: Final = 4 * 1024 * 1024  # Bytes: larger pieces are the system's again as soon as they are free.


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


def keep_pieces() -> None:
    """From now on malloc keeps free pieces of up to KEPT_PIECE, and up to twice that at the end of its heap.

    By default both are 128 KiB, so that an answer of 300 KB takes new pages from the kernel, touches them for
    the first time and gives them back: 180 page faults, a quarter of a listing's page. glibc raises
    its bounds to the largest piece that it was ever given back; this gives it one.
    """
    piece = bytes(KEPT_PIECE)  # Not touched: it costs address space only.
    del piece


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
