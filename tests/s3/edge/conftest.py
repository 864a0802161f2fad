"""Fixtures of the edge's tests, and the event loop they run on."""

import asyncio
import os
from collections.abc import Callable, Mapping

import uvloop
from edge_running import bug_expected, edge, no_tracebacks, start_edge

__all__ = ["bug_expected", "edge", "no_tracebacks", "start_edge"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production; OBJSTORE_EDGE_LOOP=asyncio for the other."""
    if os.environ.get("OBJSTORE_EDGE_LOOP") == "asyncio":
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}
