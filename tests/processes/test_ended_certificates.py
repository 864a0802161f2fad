"""A cluster that was off for longer than its certificates live: nobody could renew any."""

import time
from pathlib import Path

import pytest

from objstore.node.authority import CERTIFICATE_DAYS, key_to_pem, make_key, to_pem
from objstore.node.tls import Credentials, save_identity
from objstore.processes.dev import LocalCluster, Process
from objstore.processes.founding import read_authority
from tests.processes.test_gateway import check, put, store
from tests.server import run_command
from tests.waiting import LIMIT_S

NODES = 2
OFF_S = (CERTIFICATE_DAYS + 1) * 86_400


def age(cluster: LocalCluster, process: Process) -> None:
    """Its certificate becomes what it would be if it had been off since its last day but one."""
    gateway = cluster.gateway.data
    key = bytes.fromhex((gateway / "master.key").read_text())
    authority = read_authority(gateway, key)
    assert authority is not None
    directory, own = process.data / "tls", make_key()
    then_us = int((time.time() - OFF_S) * 1e6)
    certificate = authority.issue(own.public_key(), Credentials(directory).name, then_us)
    save_identity(directory, key_to_pem(own), to_pem(certificate))
    assert Credentials(directory).ended


def wait_for_words(process: Process, words: str) -> None:
    limit = time.monotonic() + LIMIT_S
    while words not in process.log.read_text():
        assert time.monotonic() < limit, process.words()
        time.sleep(0.05)


@pytest.mark.timeout(240)
def test_a_cluster_whose_certificates_have_all_ended_is_started_again(tmp_path: Path) -> None:
    cluster = LocalCluster(directory=tmp_path / "cluster", nodes=NODES, codec="1+1")
    data = f"--data={cluster.gateway.data}"
    try:
        cluster.start()
        assert put(cluster, "/bucket")[0] == 200
        store(cluster, range(5))
        cluster.close()
        for process in (cluster.gateway, *cluster.members):
            age(cluster, process)

        first = cluster.members[0]
        cluster.start_node(first)
        wait_for_words(first, f"objstore cluster certificate {first.name}")
        cluster.stop([first])
        cluster.start_gateway(wait=False)  # As after a power cut: the gateway is back before its nodes.
        wait_for_words(cluster.gateway, "waiting for storage nodes: 0 of 2 disks")
        for node in cluster.members:
            made = tmp_path / f"{node.name}.pem"
            run_command("cluster", "certificate", node.name, f"--to={made}", data)
            assert made.stat().st_mode & 0o077 == 0
            made.rename(node.data / "tls" / "identity.pem")
            cluster.start_node(node)
        cluster.wait_for_gateway(cluster.gateway)
        assert "made itself another one" in cluster.gateway.log.read_text()
        cluster.wait_for_disks(NODES)
        check(cluster, range(5))
        store(cluster, range(5, 7))

        cluster.close()
        cluster.start()  # All of it once more, from what is there.
        check(cluster, range(7))
    finally:
        cluster.close()
    refused = run_command("cluster", "certificate", "nobody", f"--to={tmp_path / 'x'}", data, check=False)
    assert (refused.returncode, (tmp_path / "x").exists()) == (1, False)
    assert "there is no member nobody" in refused.stderr
