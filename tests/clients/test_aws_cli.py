"""The AWS CLI (version 1, from PyPI): signs its content type, default checksums, parts from 8 MiB."""

import json
import os
import time
from pathlib import Path

import pytest

from tests.clients.conftest import AWKWARD_KEY, Samples, Server, Witness
from tests.clients.programs import program, run, run_bytes

pytestmark = pytest.mark.clients


@pytest.fixture
def aws(server: Server) -> list[str]:
    path = program("aws", "pip install awscli (requirements/clients.txt)")
    return [path, "--endpoint-url", server.url]


def test_the_aws_cli_puts_gets_ranges_lists_copies_and_deletes(
    aws: list[str], env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    small, large, back = tmp_path / "small", tmp_path / "large", tmp_path / "back"
    small.write_bytes(samples.small)
    large.write_bytes(samples.large)

    run([*aws, "s3", "cp", "--quiet", str(small), f"s3://{bucket}/{AWKWARD_KEY}"], env)
    assert stored.content(AWKWARD_KEY) == samples.small
    assert run_bytes([*aws, "s3", "cp", "--quiet", f"s3://{bucket}/{AWKWARD_KEY}", "-"], env) == samples.small

    run([*aws, "s3", "cp", "--quiet", str(large), f"s3://{bucket}/large"], env)
    assert stored.parts("large") == 3
    run([*aws, "s3", "cp", "--quiet", f"s3://{bucket}/large", str(back)], env)
    assert back.read_bytes() == samples.large

    answer = run(
        [
            *aws,
            "s3api",
            "get-object",
            "--bucket",
            bucket,
            "--key",
            "large",
            "--range",
            "bytes=1000-8999999",
            str(back),
        ],
        env,
    )
    assert json.loads(answer)["ContentRange"] == f"bytes 1000-8999999/{len(samples.large)}"
    assert back.read_bytes() == samples.large[1000:9_000_000]

    run(
        [*aws, "s3", "cp", "--quiet", f"s3://{bucket}/large", f"s3://{bucket}/copied/large"], env
    )  # In parts.
    assert stored.content("copied/large") == samples.large
    lines = run([*aws, "s3", "ls", "--recursive", f"s3://{bucket}"], env).splitlines()
    assert [(line.split(None, 3)[2:]) for line in lines] == [
        [str(len(samples.large)), "copied/large"],
        [str(len(samples.small)), AWKWARD_KEY],
        [str(len(samples.large)), "large"],
    ]
    run([*aws, "s3", "rm", "--quiet", "--recursive", f"s3://{bucket}"], env)
    assert stored.keys() == []
    assert stored.uploads() == 0
    run([*aws, "s3", "rb", f"s3://{bucket}"], env)


def test_the_aws_cli_synchronises_a_directory_there_and_back(
    aws: list[str], env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    for number in range(12):
        path = there / f"d{number % 3}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(samples.small[: number * 1000])
        # Last-Modified has whole seconds: a file written in the second of its upload would count as newer.
        os.utime(path, (time.time() - 60, time.time() - 60))
    run([*aws, "s3", "sync", "--quiet", str(there), f"s3://{bucket}/t"], env)
    run([*aws, "s3", "sync", "--quiet", f"s3://{bucket}/t", str(back)], env)
    files = {path.relative_to(there): path.read_bytes() for path in there.rglob("*") if path.is_file()}
    assert {path.relative_to(back): path.read_bytes() for path in back.rglob("*") if path.is_file()} == files
    assert run([*aws, "s3", "sync", str(there), f"s3://{bucket}/t"], env) == ""  # Nothing is left to do.
    assert len(stored.keys()) == 12
