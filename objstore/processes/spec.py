"""What every child is told, and the disks as every child opens them."""

from dataclasses import dataclass

from objstore.codec.backend import Backend
from objstore.config import Config
from objstore.meta.beacon import Beacon
from objstore.node.local import DiskOptions, Expected, LocalDisk, open_disk
from objstore.processes.cluster import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What every child is told. Inherited by fork, never written anywhere."""

    config: Config
    data: str
    run_directory: str  # Short enough for Unix sockets.
    token: str
    endpoint: str
    cluster: Cluster
    backend: Backend
    beacon: Beacon  # Which metadata state is in force; every child shares the page.

    @property
    def committer_socket(self) -> str:
        return f"{self.run_directory}/committer.sock"


def disk_options(config: Config) -> DiskOptions:
    return DiskOptions(
        limit_s=config.disks.progress_seconds,
        log_limit_s=config.meta.copy_seconds,
        low_water=config.disks.reserve_bytes or None,
    )


def open_disks(spec: Spec) -> dict[int, LocalDisk]:
    """Every disk of the store; one that is not there is opened in that state, and looks again by itself."""
    return {
        disk.number: open_known_disk(spec, disk.number, disk.uuid, disk.path) for disk in spec.cluster.disks
    }


def open_known_disk(spec: Spec, number: int, uuid: bytes, path: str) -> LocalDisk:
    expected = Expected(spec.cluster.cluster_id, uuid, number)
    return open_disk(path, expected=expected, options=disk_options(spec.config))


def open_disk_list(
    cluster: bytes, places: list[tuple[int, bytes, str]], options: DiskOptions
) -> list[LocalDisk]:
    """The same for a process that is told by pickle: a fold's. `places`: number, uuid, path."""
    return [
        open_disk(path, expected=Expected(cluster, uuid, number), options=options)
        for number, uuid, path in places
    ]
