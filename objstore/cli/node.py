"""`objstore node`: run a storage node; of a running cluster: see its nodes, empty and remove them."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from objstore.cli.client import ConfigOption, DataOption, Refused, settings
from objstore.cli.emptying import Left, wait_empty
from objstore.cli.output import FAILURE, OK, REFUSED, OutputOption, fail, show, size_text
from objstore.cli.starting import explained
from objstore.cli.store import Store, asks, quoted

NODE_COLUMNS: Final = ("name", "state", "site", "rack", "disks", "files", "bytes", "size", "addresses", "id")
NODE_DISK_COLUMNS: Final = ("disk", "path", "state", "files", "bytes", "total", "reason")
LOST_NAMED_MAX: Final = 100  # Volumes in one sentence.

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


# --- asked of a gateway ---------------------------------------------------------------------------

Name = Annotated[str, typer.Argument(help="The node's name, or the first letters of its id.", metavar="NODE")]


def _tell(store: Store, found: dict[str, Any]) -> None:
    store.show([{**found, "disks": [disk["disk"] for disk in found["disks"]]}], *NODE_COLUMNS)
    for note in found.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)


@node_app.command("list")
@asks
def node_list(store: Store) -> None:
    """The cluster's storage nodes: where they stand, what counts on their disks."""
    store.show(store.get("/api/v1/nodes")["nodes"], *NODE_COLUMNS)


@node_app.command("show")
@asks
def node_show(store: Store, name: Name) -> None:
    """One node, disk by disk."""
    found = store.get(f"/api/v1/nodes/{quoted(name)}")
    if store.show_whole(found):
        return
    facts = [{"what": what, "value": value} for what, value in found.items() if what != "disks"]
    store.show(facts, "what", "value")
    store.show(found["disks"], *NODE_DISK_COLUMNS)


@node_app.command("drain")
@asks
def node_drain(
    store: Store,
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is empty, showing progress.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", help="With --wait: seconds, then exit code 3.", min=0)
    ] = 30 * 86_400,
) -> None:
    """Empty a node: no new volumes on its disks, and their files move to others. Reads go on.

    It is a state of the store: it goes on without this command, and doing it again shows how far it is."""
    path = f"/api/v1/nodes/{quoted(name)}"
    _tell(store, store.post(f"{path}/drain"))

    def left() -> Left:
        found = store.get(path)
        return Left(found["files"], found["bytes"])

    if wait:
        wait_empty(f"node {name}", left, timeout, f"objstore node show {name}")


@node_app.command("undrain")
@asks
def node_undrain(store: Store, name: Name) -> None:
    """Use a node again that was to be emptied; what has moved stays moved."""
    _tell(store, store.post(f"/api/v1/nodes/{quoted(name)}/undrain"))


@node_app.command("remove")
@asks
def node_remove(
    store: Store,
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Although files count on its disks: give them up for good.")
    ] = False,
    confirm: Annotated[
        str,
        typer.Option(
            "--confirm", help="With --force: the words, instead of typing them.", show_default=False
        ),
    ] = "",
) -> None:
    """Take an empty node out of the cluster for good: no certificate of it is accepted from then on.

    First: objstore node drain NODE --wait. With --force whatever lies on it is given up for good."""
    path = f"/api/v1/nodes/{quoted(name)}/remove"
    try:
        facts = store.post(path, {"confirm": _confirmed(store, path, confirm)} if force else {})
    except Refused as refusal:
        fail(str(refusal), REFUSED)
    store.tell(f"{facts['name']} is removed", facts)


def _confirmed(store: Store, path: str, given: str) -> str:
    prospect = store.get(path)
    lost = prospect["volumes_that_lose_data"]
    print(
        f"{prospect['files']} fragment files ({size_text(prospect['bytes'])}) on disks"
        f" {', '.join(map(str, prospect['disks']))} count as lost from then on, even if they come back.\n"
        f"{prospect['volumes']} volumes have files there; {len(lost)} of them keep too few others, and lose"
        f" objects: {size_text(prospect['bytes_in_them'])} of stored bytes lie in them"
        + (f" (volumes {', '.join(map(str, lost[:LOST_NAMED_MAX]))})." if lost else "."),
        file=sys.stderr,
    )
    wanted = str(prospect["confirm"])
    if not given:
        if not sys.stdin.isatty():
            fail(f'not confirmed: --confirm "{wanted}"', REFUSED)
        given = input(f"To go on, type: {wanted}\n> ").strip()
    if given != wanted:
        fail(f'not confirmed: "{wanted}" was to be given', REFUSED)
    return given
