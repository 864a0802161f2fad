"""`objstore dev`: a cluster on this machine, to try."""

import contextlib
import os
import re
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from objstore.cli.output import USAGE, fail
from objstore.cli.starting import explained
from objstore.config import parse_codec

dev_app = typer.Typer(help="Try a cluster on this machine.", no_args_is_help=True)


class Metadata(StrEnum):
    LMDB = "lmdb"
    POSTGRESQL = "postgresql"


@dev_app.callback()
def _group() -> None:
    """Keeps `cluster` a command of its own: a group of one would be that one."""


@dev_app.command()
def cluster(
    nodes: Annotated[int, typer.Option(min=3, max=64, help="Storage nodes.")] = 8,
    sites: Annotated[int, typer.Option(min=1, max=16, help="Sites, to which the nodes belong by turns.")] = 1,
    disks: Annotated[int, typer.Option(min=1, max=16, help="Disks of each node.")] = 1,
    codec: Annotated[
        str, typer.Option(help="data+parity fragments.  [4+2; 2+1 with fewer than six nodes]")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Directory that keeps everything, for another start.  [a temporary one]", show_default=False
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65_000, help="Port of S3; admin, cluster port and nodes follow it. 0: free ones."
        ),
    ] = 9000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes of each gateway.")] = 1,
    metadata: Annotated[
        Metadata,
        typer.Option(
            help="lmdb: one gateway, its journal on nodes. postgresql: many, and a server for them."
        ),
    ] = Metadata.LMDB,
    gateways: Annotated[int, typer.Option(min=1, max=16, help="Gateways, with --metadata postgresql.")] = 1,
) -> None:
    """Start a gateway and nodes as processes of this machine. Ctrl-C ends them all."""
    from objstore.processes.dev import LocalCluster, free_ports, run
    from objstore.processes.machine import announce

    if gateways > 1 and metadata is Metadata.LMDB:
        fail("several gateways need --metadata postgresql", USAGE)
    codec = codec or ("4+2" if nodes * disks >= 6 else "2+1")
    if not re.fullmatch(r"[0-9]{1,2}\+[0-9]{1,2}", codec) or nodes * disks < sum(parse_codec(codec)):
        fail(f"--codec is k+m with at most as many fragments as there are disks, not {codec}", USAGE)
    with (
        tempfile.TemporaryDirectory(prefix="objstore-dev-") as temporary,
        contextlib.ExitStack() as stack,
        explained(),
    ):
        directory = data.resolve() if data is not None else Path(temporary)
        url = ""
        if metadata is Metadata.POSTGRESQL:
            from objstore.processes.dev_postgres import LocalPostgres

            os.chmod(temporary, 0o711)  # noqa: S103  (PostgreSQL's own user must come through.)
            server = LocalPostgres(directory / "postgresql", port + 999 if port else free_ports(1)[0])
            stack.callback(server.stop)
            server.start()
            url = server.url
        local = LocalCluster(
            directory=directory,
            gateway_count=gateways,
            url=url,
            nodes=nodes,
            sites=sites,
            disks=disks,
            codec=codec,
            port=port,
            workers=workers,
            bound=True,
        )
        code = run(local, announce, keeps=data is not None)
    raise SystemExit(code)
