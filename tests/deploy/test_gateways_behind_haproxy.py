"""Two gateways that share metadata in PostgreSQL, behind HAProxy with config/haproxy/haproxy.cfg.

What config/compose.yml starts, as processes of this machine.
"""

import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from objstore.processes.dev import LocalCluster
from tests.deploy.files import CONFIG, free_port, needs
from tests.postgres import PostgresServer
from tests.processes.test_gateway import content, request

WAIT_SECONDS = 30.0


def up(port: int) -> set[str]:
    """The gateways that HAProxy sends requests to."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        page = answer.read().decode()
    return set(re.findall(r'haproxy_server_status\{[^}]*server="([^"]*)",state="UP"\} 1', page))


def wait_up(port: int, wanted: set[str]) -> None:
    limit = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if (found := up(port)) == wanted:
                return
        except OSError:
            found = set()
        assert time.monotonic() < limit, f"{found}, not {wanted}"
        time.sleep(0.1)


@pytest.mark.timeout(240)
def test_clients_go_on_when_one_of_two_gateways_dies(tmp_path: Path) -> None:
    program, server = needs("haproxy"), PostgresServer()
    cluster: LocalCluster | None = None
    proxy: subprocess.Popen[bytes] | None = None
    try:
        server.start()
        cluster = LocalCluster(
            directory=tmp_path / "cluster", nodes=3, codec="2+1", gateway_count=2, url=server.url()
        )
        cluster.start()
        port, statistics = free_port(), free_port()
        text = (CONFIG / "haproxy/haproxy.cfg").read_text()
        for number, gateway in enumerate(cluster.gateways, start=1):
            s3, admin, _ = gateway.ports
            text = text.replace(
                f"gateway-{number} gateway-{number}:9000", f"gateway-{number} 127.0.0.1:{s3} port {admin}"
            )
        text = text.replace("bind :9000", f"bind 127.0.0.1:{port}")
        text = text.replace("bind :8404", f"bind 127.0.0.1:{statistics}")
        text = text.replace("    maxconn 20000", "    maxconn 200").replace("inter 2s", "inter 200ms")
        (tmp_path / "haproxy.cfg").write_text(text)
        with (tmp_path / "haproxy.log").open("wb") as log:
            proxy = subprocess.Popen([program, "-db", "-f", tmp_path / "haproxy.cfg"], stdout=log, stderr=log)
        wait_up(statistics, {"gateway-1", "gateway-2"})  # Both say that they are ready.

        assert request(cluster, "PUT", "/bucket", port=port)[0] == 200
        for number in range(12):
            assert request(cluster, "PUT", f"/bucket/{number}", content(number), port=port)[0] == 200
        cluster.kill(cluster.gateways[0])
        wait_up(statistics, {"gateway-2"})
        for number in range(12, 16):
            assert request(cluster, "PUT", f"/bucket/{number}", content(number), port=port)[0] == 200
        for number in range(16):
            found = request(cluster, "GET", f"/bucket/{number}", port=port)
            assert found == (200, content(number))
    finally:
        if proxy is not None:
            proxy.terminate()
            proxy.wait(60)
        if cluster is not None:
            cluster.close()
        server.remove()
