"""`objstore dev cluster`: one command starts a cluster, one Ctrl-C ends it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.server import ROOT, environment_for, run_command, wait_gone

STARTED_S = 90.0


@pytest.mark.timeout(150)
def test_one_command_starts_a_cluster_and_ctrl_c_ends_every_process_of_it(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as log:
        command = [sys.executable, str(ROOT / "cmd" / "objstore"), "dev", "cluster"]
        process = subprocess.Popen(
            [*command, "--nodes=3", "--sites=2", "--port=0"],
            env=environment_for(TMPDIR=str(tmp_path)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        limit = time.monotonic() + STARTED_S
        while "Ctrl-C ends all" not in (text := output.read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < limit, text
            time.sleep(0.05)
        assert "import boto3" in text
        pids = [int(found) for found in re.findall(r"pid ([0-9]+)", text)]
        assert len(pids) == 4  # A gateway and three nodes.
        data = re.findall(r"objstore disk list --data (\S+)", text)
        listed = run_command("disk", "list", "--data", data[0]).stdout.splitlines()[1:]
        assert [line.split("\t")[2] for line in listed] == ["healthy"] * 3
        nodes = run_command("cluster", "nodes", "--data", data[0]).stdout
        assert nodes.count("site-1") == 2
        assert nodes.count("site-2") == 1

        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, output.read_text()
        wait_gone(pids)
        assert not Path(data[0]).exists()
    finally:
        if process.poll() is None:
            process.kill()  # What it started dies with it.
            process.wait()
