"""A data directory's path may be of any length: the kernel's bound on the names of sockets is not ours."""

import os
from pathlib import Path

import pytest

from tests.server import running_server


@pytest.mark.parametrize("length", [90, 200])
def test_a_store_starts_and_is_measured_whatever_the_length_of_its_path(length: int, tmp_path: Path) -> None:
    rest = length - len(os.fsencode(tmp_path / "x")) - len("/data/run")
    assert rest >= 0, "a shorter TMPDIR is needed"
    with running_server(tmp_path / ("x" * (rest + 1))) as store:
        assert len(os.fsencode(store.data / "run")) == length
        status, page = store.admin("GET", "/metrics")
    assert status == 200
    assert "objstore_meta_rounds_total" in page  # The committer's: its socket has the longest name.
