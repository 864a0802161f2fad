"""s3fs (on aiobotocore): a file system for pandas, dask and friends. Runs in an environment of its own."""

from pathlib import Path

import pytest

from tests.clients.conftest import Samples, Server, Witness
from tests.clients.programs import HERE, s3fs_python, session

pytestmark = pytest.mark.clients


def test_s3fs_writes_reads_seeks_lists_copies_and_deletes(
    server: Server, env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    (tmp_path / "small").write_bytes(samples.small)
    (tmp_path / "large").write_bytes(samples.large)
    done = session(
        [s3fs_python(), str(HERE / "s3fs_session.py"), server.url, bucket, str(tmp_path)],
        env | {"PYTHONPATH": ""},
    )
    assert done == ["put", "get", "range", "multipart", "copy", "list", "delete"]
    assert stored.keys() == ["kept"]
    assert stored.content("kept") == samples.small
    assert stored.uploads() == 0
