"""What tests of several areas share: one running store for all that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.server import Server, running_server


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store with two workers. Use buckets and users of your own; kill nothing."""
    with running_server(tmp_path_factory.mktemp("store"), workers=2) as server:
        yield server
