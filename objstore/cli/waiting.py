"""Waiting for an inventory of all disks that the store takes: how many were asked."""

import sys
import time
from typing import Any, Final

from objstore.cli.store import Store

LOOK_S: Final = 0.2


def until_done(store: Store, path: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the path says once nothing runs any more, without `running`.

    Args:
        found: what it said at first.
    """
    while found["running"]:
        if sys.stderr.isatty():
            print(f"\r{found['disks_asked']} disks asked ...", end="", file=sys.stderr, flush=True)
        time.sleep(LOOK_S)
        found = store.get(path)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
    return {name: value for name, value in found.items() if name != "running"}
