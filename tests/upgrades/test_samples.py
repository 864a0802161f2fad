"""What every release's store of one machine left behind is read, listed, exported and written on.

A sample is opened as it lies there: nothing is converted first. See samples.py for what is in one, and
test_rolling.py for clusters.
"""

import re
import shutil
import time
from pathlib import Path

import pytest

from tests.chaos.workload import RESTLESS
from tests.server import Server, run_command, running_server
from tests.upgrades.samples import QUIET, Sample, accounts, samples, seen, write_on

METERED_SECONDS = 60.0


def exported(data: Path, target: Path) -> int:
    """Records in an export of the store at `data`, which does not run."""
    said = run_command("meta", "export", str(target), f"--data={data}").stdout
    found = re.search(r"([\d,]+) records", said)
    assert found, said
    return int(found[1].replace(",", ""))


def wait_until_metered(server: Server) -> None:
    """Until all that is from before there were meters is counted."""
    limit = time.monotonic() + METERED_SECONDS
    while True:
        _, findings = server.admin("GET", "/api/v1/doctor")
        [found] = [one for one in findings["findings"] if one["check"] == "meters"]
        if found["finding"] == "every bucket is metered":
            return
        assert time.monotonic() < limit, found
        time.sleep(0.1)


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)
def test_a_store_of_every_release_reads_back_byte_for_byte_and_is_exported_and_written_on(
    sample: Sample, tmp_path: Path
) -> None:
    wanted = sample.manifest["machine"]
    data = sample.unpack("machine", tmp_path / "store") / "data"
    whole = exported(data, tmp_path / "of LMDB")
    assert whole > sum(len(bucket["objects"]) for bucket in wanted["seen"].values())
    with running_server(data.parent, codec="2+1", environment=QUIET) as server:
        alice = server.boto3(wanted["alice"]["access_key"], wanted["alice"]["secret_key"])
        assert seen(server.boto3()) == wanted["seen"]
        assert seen(alice) == wanted["seen by alice"]
        assert accounts(server.admin) == wanted["accounts"]
        kept = write_on(server.boto3())
    # From the journal and the snapshot of then alone, while upkeep scrubs, compacts and empties the trash.
    [lmdb] = data.glob("disk*/meta")
    shutil.rmtree(lmdb)
    with running_server(data.parent, codec="2+1", environment=RESTLESS) as server:
        assert seen(server.boto3()) == kept
        wait_until_metered(server)
