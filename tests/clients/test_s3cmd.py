"""s3cmd: asks for the bucket's location first and compares ETags with MD5 sums, five times if they differ."""

from pathlib import Path

import pytest

from tests.clients.conftest import AWKWARD_KEY, Samples, Server, Witness
from tests.clients.programs import program, run

pytestmark = pytest.mark.clients


def test_s3cmd_puts_gets_resumes_lists_copies_and_deletes(
    server: Server, env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    s3cmd = [
        *(
            program("s3cmd", "pip install s3cmd (requirements/clients.txt)"),
            "--config",
            "/dev/null",
            "--no-progress",
        ),
        *(f"--host={server.host}", f"--host-bucket={server.host}", "--no-ssl", "--multipart-chunk-size-mb=5"),
        *(f"--access_key={server.access_key}", f"--secret_key={server.secret_key}", "--max-retries=1"),
    ]
    small, large, back = tmp_path / "small", tmp_path / "large", tmp_path / "back"
    small.write_bytes(samples.small)
    large.write_bytes(samples.large)

    run([*s3cmd, "put", str(small), f"s3://{bucket}/{AWKWARD_KEY}"], env)
    assert stored.content(AWKWARD_KEY) == samples.small
    run([*s3cmd, "get", f"s3://{bucket}/{AWKWARD_KEY}", str(back)], env)
    assert back.read_bytes() == samples.small

    run([*s3cmd, "put", str(large), f"s3://{bucket}/large"], env)
    assert stored.parts("large") == 4
    back.write_bytes(samples.large[:9_000_001])
    run([*s3cmd, "get", "--continue", f"s3://{bucket}/large", str(back)], env)  # The rest comes by a range.
    assert back.read_bytes() == samples.large

    run([*s3cmd, "cp", f"s3://{bucket}/{AWKWARD_KEY}", f"s3://{bucket}/copied/small"], env)
    assert stored.content("copied/small") == samples.small
    listed = run([*s3cmd, "ls", "--recursive", f"s3://{bucket}"], env)
    assert [line.partition(f"s3://{bucket}/")[2] for line in listed.splitlines()] == [
        "copied/small",
        AWKWARD_KEY,
        "large",
    ]
    run([*s3cmd, "del", f"s3://{bucket}/large"], env)
    assert stored.content("large") is None
    run([*s3cmd, "del", "--recursive", "--force", f"s3://{bucket}"], env)  # A multi-object delete.
    assert stored.keys() == []
    assert stored.uploads() == 0
    run([*s3cmd, "rb", f"s3://{bucket}"], env)
