"""The JavaScript SDK from npm: signed bytes, streams as unsigned chunks with a CRC32 trailer, x-id in every
query."""

from pathlib import Path

import pytest

from tests.clients.conftest import Samples, Server, Witness
from tests.clients.programs import HERE, program, session

pytestmark = pytest.mark.clients


def test_the_javascript_sdk_puts_gets_ranges_lists_uploads_copies_and_deletes(
    server: Server, env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    node = program("node", "apt-get install nodejs npm")
    if not (HERE / "node_modules").is_dir():
        pytest.fail(
            "the JavaScript SDK is not installed: npm ci --prefix tests/clients (make setup-test does it)"
        )
    (tmp_path / "small").write_bytes(samples.small)
    (tmp_path / "large").write_bytes(samples.large)
    done = session([node, str(HERE / "session.mjs"), server.url, bucket, str(tmp_path)], env)
    assert done == ["put", "get", "range", "stream", "multipart", "copy", "list", "errors", "delete"]
    assert stored.content("kept") == samples.small
    assert stored.keys() == ["kept"]
    assert stored.uploads() == 0


def test_the_lock_file_names_no_registry() -> None:
    assert "resolved" not in (HERE / "package-lock.json").read_text()
