"""`objstore dev`: a cluster on this machine, to try."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from objstore.cli.output import fail

dev_app = typer.Typer(help="Try a cluster on this machine.", no_args_is_help=True)


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
    workers: Annotated[int, typer.Option(min=1, max=64, help="Gateway processes.")] = 1,
) -> None:
    """Start a gateway and nodes as processes of this machine. Ctrl-C ends them all."""
    from objstore.processes.cluster import CannotStart
    from objstore.processes.dev import LocalCluster, run
    from objstore.processes.machine import announce

    codec = codec or ("4+2" if nodes >= 6 else "2+1")
    with tempfile.TemporaryDirectory(prefix="objstore-dev-") as temporary:
        try:
            local = LocalCluster(
                directory=data.resolve() if data is not None else Path(temporary),
                nodes=nodes,
                sites=sites,
                disks=disks,
                codec=codec,
                port=port,
                workers=workers,
                bound=True,
            )
            code = run(local, announce, keeps=data is not None)
        except CannotStart as failure:
            fail(str(failure))
    raise SystemExit(code)
