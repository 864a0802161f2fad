"""`objstore cluster`: begin one, take machines in, see them, renew their certificates, remove them."""

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from objstore.cli.client import ConfigOption, DataOption, Refused, settings
from objstore.cli.output import REFUSED, fail
from objstore.cli.starting import explained
from objstore.cli.store import Store, asks, quoted

MEMBER_COLUMNS: Final = (
    "name",
    "role",
    "state",
    "site",
    "rack",
    "addresses",
    "disks",
    "size",
    "version",
    "certificate_ends",
    "id",
    "reason",
)

cluster_app = typer.Typer(help="The machines of a cluster.", no_args_is_help=True)


@cluster_app.command("init")
def init(data: DataOption = None, config: ConfigOption = None) -> None:
    """Begin a cluster: make its certificate authority in a gateway's data directory.

    A store that exists there keeps its id and its objects. Nothing listens yet: start objstore gateway next.
    """
    from objstore.processes.cluster import MASTER_NAME
    from objstore.processes.founding import AUTHORITY_NAME
    from objstore.processes.founding import init as found

    loaded = settings(data, config)
    place = Path(loaded.config.server.data)
    with explained(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = found(loaded.config, place.resolve())
    print(f"cluster    {made.cluster.hex()}\ngateway    {made.gateway.id.hex()}\nauthority  {made.root}")
    key = (
        f"{place / MASTER_NAME}, made now"
        if made.made_master_key
        else "the master key that this store was made with"
        if made.existing_store
        else "the master key that you gave"
    )
    print(
        f"\nKeep copies, apart from each other: {place / AUTHORITY_NAME}, and {key}: it opens that file."
        " With both, another machine can take this gateway's place.\n"
        f"Next: objstore gateway --data {place} --cluster-listen HOST:PORT, then objstore cluster token",
        file=sys.stderr,
    )


@cluster_app.command("token")
@asks
def token(
    store: Store,
    gateway: Annotated[
        bool, typer.Option("--gateway", help="For a gateway, not for a storage node.")
    ] = False,
    again: Annotated[
        str,
        typer.Option(
            "--for", help="A member that has lost its credentials, by name or id: it stays who it was."
        ),
    ] = "",
) -> None:
    """Make a join token: one word, good once, for an hour. A secret until then."""
    role = "gateway" if gateway else "node"
    facts = store.post("/api/v1/cluster/tokens", {"role": role, **({"member": again} if again else {})})
    store.tell(facts["token"], facts)
    if not gateway:
        print("On the new machine: objstore node --join TOKEN --data DIR --disk PATH ...", file=sys.stderr)


@cluster_app.command("certificate")
def certificate(
    machine: Annotated[str, typer.Argument(help="A member's name, or the first letters of its id.")],
    to: Annotated[Path, typer.Option("--to", help="A file that is not there yet. It holds a secret key.")],
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Make another key and certificate for a machine, on a gateway that does not get as far as to serve.

    For a cluster that was off for longer than its certificates live: they can be renewed by nobody then. The
    file takes the place of tls/identity.pem in the machine's data directory. While a gateway serves, a join
    token (--for) does the same, and no key travels."""
    from objstore.processes.founding import identity_of

    loaded = settings(data, config)
    with explained(OSError):
        content = identity_of(loaded.config, Path(loaded.config.server.data).resolve(), machine)
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(content)
    print(f"{to} is to be tls/identity.pem of {machine}: its owner's alone (mode 0600)", file=sys.stderr)


@cluster_app.command("nodes")
@asks
def nodes(store: Store) -> None:
    """Every machine that ever joined: what it is, where it stands, what it has, whether it answers."""
    store.show(store.get("/api/v1/cluster/members")["members"], *MEMBER_COLUMNS)


@cluster_app.command("status")
@asks
def status(store: Store) -> None:
    """The cluster on one screen: its authority, this gateway's certificate, who is away."""
    found = store.get("/api/v1/cluster")
    if not store.show_whole(found):
        store.show([{"what": what, "value": value} for what, value in found.items()], "what", "value")


@cluster_app.command("renew")
@asks
def renew(store: Store) -> None:
    """Replace the authority, and with it every certificate, while all goes on.

    The new authority is trusted by every machine first, then signs, and is alone when every machine has a new
    key and certificate: what the old one signed is worth nothing then. Machines that are away hold this up:
    objstore cluster status says who. Certificates are renewed by themselves; this is for a key that may be
    known to others."""
    facts = store.post("/api/v1/cluster/renew")
    store.tell("the authority is being replaced: objstore cluster status", facts)


@cluster_app.command("remove")
@asks
def remove(
    store: Store,
    machine: Annotated[str, typer.Argument(help="Its name, or the first letters of its id.")],
    lost: Annotated[
        bool, typer.Option("--lost", help="Give up for good the disks that it still has.")
    ] = False,
    confirm: Annotated[
        str, typer.Option("--confirm", help='With --lost: "remove NAME", instead of typing it.')
    ] = "",
) -> None:
    """Remove a machine from the cluster for good: no certificate of it is accepted from then on.

    Its disks must have left before (objstore disk drain, objstore disk remove), unless they are lost with it:
    then repair rebuilds what still has enough fragments elsewhere."""
    if lost:
        wanted = f"remove {machine}"
        print(
            f"The disks of {machine} count as lost from then on, even if they come back; see objstore cluster"
            " nodes for their numbers.",
            file=sys.stderr,
        )
        if not confirm:
            if not sys.stdin.isatty():
                fail(f'not confirmed: --confirm "{wanted}"', REFUSED)
            confirm = input(f"To go on, type: {wanted}\n> ").strip()
        if confirm != wanted:
            fail(f'not confirmed: "{wanted}" was to be given', REFUSED)
    try:
        facts = store.post(
            f"/api/v1/cluster/members/{quoted(machine)}/remove", {"disks": "lost"} if lost else {}
        )
    except Refused as refusal:
        fail(str(refusal), REFUSED)
    store.tell(f"{facts['name']} is removed", facts)
