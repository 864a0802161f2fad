"""What tests of several areas share: one running store for all that leave it as they found it."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from objstore.processes import dev
from tests.server import Server, running_server

# By default an example that takes 0.2 s fails its test, and so do examples that are slow to make.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Processes that share the tests choose from ports of their own: the others' may not be bound yet."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    dev.PORTS = dev.PORTS[number::count]  # type: ignore[misc]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What has no short form is left out of `make test`."""
    if os.environ.get("OBJSTORE_LONG"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store with two workers. Use buckets and users of your own; kill nothing."""
    with running_server(tmp_path_factory.mktemp("store"), workers=2) as server:
        yield server
