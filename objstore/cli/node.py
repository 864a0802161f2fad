"""`objstore node`: run a storage node, and see one."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from objstore.cli.client import ConfigOption, DataOption, settings
from objstore.cli.output import FAILURE, OK, OutputOption, fail, show
from objstore.cli.starting import explained

node_app = typer.Typer(help="Run a storage node of a cluster.", invoke_without_command=True)


@node_app.callback()
def node(
    context: typer.Context,
    data: DataOption = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(help="A disk's directory, empty when first named; once per disk.", show_default=False),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port for gateways.  [127.0.0.1:9003]", show_default=False)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="host:port under which gateways reach it.  [as --listen says]", show_default=False),
    ] = None,
    join: Annotated[
        str,
        typer.Option(
            envvar="OBJSTORE_JOIN",
            help="A join token (objstore cluster token); the first start needs one.",
            show_default=False,
        ),
    ] = "",
    name: Annotated[
        str | None, typer.Option(help="The node's name.  [the machine's]", show_default=False)
    ] = None,
    site: Annotated[str | None, typer.Option(help="The site it stands in.", show_default=False)] = None,
    rack: Annotated[str | None, typer.Option(help="The rack within the site.", show_default=False)] = None,
    config: ConfigOption = None,
) -> None:
    """Run a storage node. The first start joins a cluster with --join TOKEN; later ones serve at once."""
    if context.invoked_subcommand is not None:
        return
    loaded = settings(
        data,
        config,
        ("disks.paths", "--disk", disk),
        ("node.listen", "--listen", listen),
        ("node.address", "--address", address),
        ("node.name", "--name", name),
        ("node.site", "--site", site),
        ("node.rack", "--rack", rack),
    )
    from objstore.processes.node import serve_node

    with explained():
        raise SystemExit(serve_node(loaded, join))


@node_app.command("status")
def node_status(data: DataOption = None, config: ConfigOption = None, form: OutputOption = None) -> None:
    """The node in this data directory, as it last said itself. Exit code 1: it does not serve."""
    directory = Path(settings(data, config).config.server.data)
    try:
        state = json.loads((directory / "run" / "state.json").read_text())
        os.kill(state["pid"], 0)
        serves = bool(state["ready"] and state["children"]["server"]["ready"])
    except (OSError, ValueError, KeyError):
        fail(f"no node serves {directory}: objstore node --data {directory}")
    show(
        [
            {
                "node": state["node"],
                "name": state["name"],
                "state": "serves" if serves else "is starting",
                "cluster": state["cluster"],
                "address": state["address"],
                "disks": ", ".join(f"{number}: {path}" for number, path in state["disks"].items()),
                "version": state["version"],
            }
        ],
        ("name", "state", "address", "disks", "node", "cluster", "version"),
        form,
    )
    raise SystemExit(OK if serves else FAILURE)
