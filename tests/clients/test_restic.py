"""restic (Debian's, on minio-go): bodies in signed chunks without Content-Encoding, ListV2 with fetch-
owner."""

import filecmp
import json
import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import AWKWARD_KEY, Samples, Server, Witness
from tests.clients.programs import program, run

pytestmark = pytest.mark.clients


def test_restic_backs_up_restores_checks_and_forgets(
    server: Server, env: dict[str, str], bucket: str, samples: Samples, stored: Witness, tmp_path: Path
) -> None:
    env |= {"RESTIC_PASSWORD": "correct horse", "RESTIC_REPOSITORY": f"s3:{server.url}/{bucket}/repository"}
    restic = [program("restic", "apt-get install restic"), "--no-cache"]
    there, back = tmp_path / "there", tmp_path / "back"
    (there / AWKWARD_KEY).parent.mkdir(parents=True)
    (there / AWKWARD_KEY).write_bytes(samples.small)
    (there / "large").write_bytes(samples.large)
    for number in range(30):
        (there / f"file{number}").write_bytes(samples.small[number : number * 500])

    run([*restic, "init"], env)
    run([*restic, "backup", str(there)], env)
    (there / "large").write_bytes(samples.large[::-1])
    (there / "file1").unlink()
    run([*restic, "backup", str(there)], env)
    snapshots = json.loads(run([*restic, "snapshots", "--json"], env))
    assert len(snapshots) == 2
    run([*restic, "check", "--read-data"], env)

    run([*restic, "restore", "latest", "--target", str(back), "--verify"], env)
    restored = back / there.relative_to("/")
    assert {path.name for path in restored.rglob("*")} == {path.name for path in there.rglob("*")}
    compared = filecmp.cmpfiles(
        there,
        restored,
        [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()],
        shallow=False,
    )
    assert (compared[1], compared[2]) == ([], [])

    run([*restic, "restore", snapshots[0]["id"], "--target", str(tmp_path / "first")], env)
    assert (tmp_path / "first" / there.relative_to("/") / "large").read_bytes() == samples.large
    before = len(stored.keys())
    run([*restic, "forget", "--keep-last", "1", "--prune"], env)
    assert len(stored.keys()) < before
    run([*restic, "check", "--read-data"], env)
    shutil.rmtree(back)
    run([*restic, "restore", "latest", "--target", str(back)], env)
    assert (restored / "large").read_bytes() == samples.large[::-1]
    assert stored.uploads() == 0
