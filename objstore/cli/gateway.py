"""`objstore gateway`: the S3 side of a cluster, its disks on storage nodes."""

from typing import Annotated

import typer

from objstore.cli.client import ConfigOption, DataOption, Flag, settings
from objstore.cli.starting import AdminListenOption, CodecOption, ListenOption, WorkersOption, explained

CLUSTER_LISTEN = "127.0.0.1:9002"


def gateway(
    data: DataOption = None,
    listen: ListenOption = None,
    admin_listen: AdminListenOption = None,
    cluster_listen: Annotated[
        str | None,
        typer.Option(
            help=f"host:port where machines join and nodes register.  [{CLUSTER_LISTEN}]", show_default=False
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            help="A disk of this machine, beside those of nodes; once per disk. By default one for metadata"
            " alone, until nodes have joined.",
            show_default=False,
        ),
    ] = None,
    codec: CodecOption = None,
    workers: WorkersOption = None,
    recover: Annotated[
        str,
        typer.Option(
            metavar="NODE",
            help="host:port of any storage node: take over from a gateway machine that is lost. Needs copies"
            " of its authority.json and master.key in the data directory.",
        ),
    ] = "",
    confirm: Annotated[
        str,
        typer.Option(
            help="With --recover, words to type where metadata has moved into PostgreSQL.", show_default=False
        ),
    ] = "",
    join: Annotated[
        str,
        typer.Option(
            envvar="OBJSTORE_JOIN",
            help="A join token (objstore cluster token --gateway): be one more gateway of a cluster whose"
            " metadata is in PostgreSQL. The first start needs one.",
            show_default=False,
        ),
    ] = "",
    config: ConfigOption = None,
) -> None:
    """Run a gateway of a cluster (see: objstore cluster init). Its disks are on storage nodes."""
    flags: list[Flag] = [
        ("server.listen", "--listen", listen),
        ("server.admin_listen", "--admin-listen", admin_listen),
        ("cluster.listen", "--cluster-listen", cluster_listen),
        ("disks.paths", "--disk", disk),
        ("blobs.codec", "--codec", codec),
        ("server.workers", "--workers", workers),
    ]
    loaded = settings(data, config, *flags)
    if not loaded.config.cluster.listen:
        loaded = settings(data, config, *flags, ("cluster.listen", "--cluster-listen", CLUSTER_LISTEN))
    from objstore.processes.gateway import gateway as gateway_

    with explained():
        raise SystemExit(gateway_(loaded, recover=recover, join=join, confirm=confirm))
