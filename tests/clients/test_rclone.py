"""rclone (Debian's): HEAD first, then UNSIGNED-PAYLOAD with Content-MD5; keeps modification times as
metadata."""

from pathlib import Path

import pytest

from tests.clients.conftest import AWKWARD_KEY, MIB, Samples, Server, Witness
from tests.clients.programs import program, run, run_bytes

pytestmark = pytest.mark.clients


def test_rclone_puts_gets_ranges_lists_copies_checks_and_deletes(
    server: Server, env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    rclone = [program("rclone", "apt-get install rclone"), "--retries", "1", "--low-level-retries", "1"]
    env |= {
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": server.url,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": server.access_key,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": server.secret_key,
        "RCLONE_S3_CHUNK_SIZE": "5M",
        "RCLONE_S3_UPLOAD_CUTOFF": "6M",
        "RCLONE_S3_COPY_CUTOFF": "6M",
    }
    there, back = tmp_path / "there", tmp_path / "back"
    (there / AWKWARD_KEY).parent.mkdir(parents=True)
    (there / AWKWARD_KEY).write_bytes(samples.small)
    (there / "large").write_bytes(samples.large)
    (there / "empty").write_bytes(b"")

    run([*rclone, "copy", str(there), f"store:{bucket}"], env)
    assert stored.content(AWKWARD_KEY) == samples.small
    assert stored.parts("large") == 4
    run([*rclone, "check", "--download", str(there), f"store:{bucket}"], env)
    run([*rclone, "copy", f"store:{bucket}", str(back)], env)
    for name in (AWKWARD_KEY, "large", "empty"):
        assert (back / name).read_bytes() == (there / name).read_bytes()
        assert int((back / name).stat().st_mtime) == int((there / name).stat().st_mtime)

    part = run_bytes(
        [*rclone, "cat", "--offset", str(5 * MIB - 3), "--count", "1000", f"store:{bucket}/large"], env
    )
    assert part == samples.large[5 * MIB - 3 :][:1000]
    assert sorted(run([*rclone, "lsf", "-R", "--files-only", f"store:{bucket}"], env).splitlines()) == sorted(
        [AWKWARD_KEY, "empty", "large"]
    )

    run(
        [*rclone, "copyto", f"store:{bucket}/large", f"store:{bucket}/copied/large"], env
    )  # Copied part by part.
    assert stored.content("copied/large") == samples.large
    run([*rclone, "moveto", f"store:{bucket}/{AWKWARD_KEY}", f"store:{bucket}/moved"], env)
    assert stored.content(AWKWARD_KEY) is None
    assert stored.content("moved") == samples.small

    run([*rclone, "deletefile", f"store:{bucket}/moved"], env)
    assert stored.keys() == ["copied/large", "empty", "large"]
    run([*rclone, "purge", f"store:{bucket}"], env)
    assert f"{bucket}/" not in run([*rclone, "lsf", "store:"], env)
