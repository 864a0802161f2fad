"""Fixtures of the edge's tests."""

from edge_running import bug_expected, edge, no_tracebacks, start_edge

__all__ = ["bug_expected", "edge", "no_tracebacks", "start_edge"]
