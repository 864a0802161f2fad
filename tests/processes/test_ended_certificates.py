"""A cluster that was off for longer than its certificates live: nobody could renew any.

The blocks of docs/operations.md, "Certificates", are run as they stand, with the paths of this cluster.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from objstore.node.authority import CERTIFICATE_DAYS, key_to_pem, make_key, to_pem
from objstore.node.tls import Credentials, save_identity
from objstore.processes.dev import LocalCluster, Process
from objstore.processes.founding import read_authority
from tests.deploy.manual import Block, Machine, blocks
from tests.processes.test_gateway import check, put, store
from tests.server import environment_for, run_command
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


@dataclass
class Operator(Machine):
    """Types what the page says on the machines of a cluster, whose processes are those of `objstore dev`."""

    cluster: LocalCluster | None = None

    def _asked(self, what: str, *arguments: str) -> None:
        """What systemctl would do. A gateway that is already there is left alone."""
        assert self.cluster is not None
        verb, unit = arguments
        _, at, name = unit.partition("@")
        machines = {one.name: one for one in self.cluster.members} if at else {"": self.cluster.gateway}
        machine = machines[name]
        if verb == "restart":
            self.cluster.stop([machine])
        if machine.running is None or machine.running.poll() is not None:
            assert at, "the gateway does not wait"
            self.cluster.start_node(machine)

    def type(self, block: Block, node: Process) -> str:
        """Run a block of the page for one node."""
        return self.run(block._replace(text=block.text.replace("m3", node.name)))


def written(run: str) -> list[Block]:
    return [block for block in blocks() if block.run == run]


@pytest.mark.timeout(480)
def test_a_cluster_whose_certificates_have_all_ended_is_started_again(tmp_path: Path) -> None:
    cluster = LocalCluster(directory=tmp_path / "cluster", nodes=NODES, codec="1+1")
    data = f"--data={cluster.gateway.data}"
    (tmp_path / "operator").mkdir()
    operator = Operator(
        tmp_path / "operator",
        environment=environment_for(OBJSTORE_SERVER__DATA=str(cluster.gateway.data)),
        places={
            "/root/": f"{tmp_path}/",
            "/var/lib/objstore-node-": f"{cluster.directory}/",
            "-o objstore -g objstore ": "",  # The user that a package or systemd-sysusers makes.
        },
        cluster=cluster,
    )
    make, bring, go_on = written("certificates have ended")
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
            operator.type(make, node)
            assert made.stat().st_mode & 0o077 == 0
            operator.type(bring, node)
            assert not made.exists()
            assert (node.data / "tls" / "identity.pem").stat().st_mode & 0o077 == 0
        cluster.wait_for_gateway(cluster.gateway)
        said = operator.run(go_on)
        assert said.count("\tjoined\t") == NODES + 1, said
        assert "made itself another one" in cluster.gateway.log.read_text()
        cluster.wait_for_disks(NODES)
        check(cluster, range(5))
        store(cluster, range(5, 7))

        cluster.close()
        cluster.start()  # All of it once more, from what is there.
        check(cluster, range(7))
    finally:
        cluster.close()
        operator.close()
    refused = run_command("cluster", "certificate", "nobody", f"--to={tmp_path / 'x'}", data, check=False)
    assert (refused.returncode, (tmp_path / "x").exists()) == (1, False)
    assert "there is no member nobody" in refused.stderr
