"""`objstore gateway`: the S3 side of a cluster, its disks on storage nodes."""

import os
from typing import Annotated

import typer

from objstore.cli.client import ConfigOption, DataOption, config_file
from objstore.cli.output import fail
from objstore.config import load

CLUSTER_LISTEN = "127.0.0.1:9002"


def gateway(
    data: DataOption = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port of the S3 API.  [127.0.0.1:9000]", show_default=False)
    ] = None,
    admin_listen: Annotated[
        str | None, typer.Option(help="host:port of the admin API.  [127.0.0.1:9001]", show_default=False)
    ] = None,
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
    codec: Annotated[
        str | None, typer.Option(help="data+parity fragments.  [4+2]", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Gateway processes.  [one per core]", show_default=False)
    ] = None,
    recover: Annotated[
        str,
        typer.Option(
            metavar="NODE",
            help="host:port of any storage node: take over from a gateway machine that is lost. Needs copies"
            " of its authority.json and master.key in the data directory.",
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
    given: dict[str, tuple[str, object]] = {}
    for name, flag, value in (
        ("server.data", "--data", str(data) if data is not None else None),
        ("server.listen", "--listen", listen),
        ("server.admin_listen", "--admin-listen", admin_listen),
        ("cluster.listen", "--cluster-listen", cluster_listen),
        ("disks.paths", "--disk", disk),
        ("blobs.codec", "--codec", codec),
        ("server.workers", "--workers", workers),
    ):
        if value is not None and value != []:
            given[name] = (flag, value)
    loaded = load(config_file(config), os.environ, given)
    if not loaded.config.cluster.listen:
        given["cluster.listen"] = ("--cluster-listen", CLUSTER_LISTEN)
        loaded = load(config_file(config), os.environ, given)
    from objstore.processes.cluster import CannotStart
    from objstore.processes.gateway import gateway as gateway_

    try:
        code = gateway_(loaded, recover=recover, join=join)
    except CannotStart as failure:
        fail(str(failure))
    raise SystemExit(code)
