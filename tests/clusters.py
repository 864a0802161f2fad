"""Storage nodes behind gateways, on either metadata engine; each gateway as a store of its own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from objstore.processes.dev import LocalCluster, Process
from tests import postgres
from tests.server import client_of

JOURNAL: Final = "journal"
POSTGRESQL: Final = "postgresql"
ENGINES: Final = (JOURNAL, POSTGRESQL)
NODES: Final = 6


@contextmanager
def running_cluster(
    engine: str, directory: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[LocalCluster]:
    """Six storage nodes: behind one gateway with LMDB, its journal on them, or behind two on PostgreSQL."""
    shared = engine == POSTGRESQL
    with postgres.database() if shared else nullcontext("") as url:
        made = LocalCluster(
            directory=directory,
            nodes=NODES,
            gateway_count=2 if shared else 1,
            url=url,
            environment=environment or {},
        )
        try:
            made.start()
            yield made
        finally:
            made.close()


class Front:
    """A gateway of a cluster, where a test takes a `Server` as well (tests/server.py)."""

    def __init__(self, cluster: LocalCluster, gateway: Process) -> None:
        self.cluster = cluster
        self.gateway = gateway
        self.data = gateway.data

    def boto3(self, access_key: str = "", secret_key: str = "") -> Any:
        root = self.cluster.root
        endpoint = f"http://127.0.0.1:{self.gateway.ports[0]}"
        return client_of(endpoint, access_key or root[0], secret_key or root[1])

    def admin(self, method: str, path: str, content: object = None) -> tuple[int, Any]:
        """(status, JSON) of its admin port; (0, why) if it does not answer."""
        return self.cluster.admin(method, path, content, gateway=self.gateway)


def fronts_of(cluster: LocalCluster) -> list[Front]:
    return [Front(cluster, gateway) for gateway in cluster.gateways]
