"""`objstore layout`: sites, racks, pools and placement policies, staged and applied; `objstore bucket`."""

import sys
from typing import Annotated, Any, Final

import typer

from objstore.cli.output import OK, REFUSED
from objstore.cli.store import Store, asks, quoted

MACHINE_COLUMNS: Final = ("machine", "site", "rack", "pool", "weight", "disks", "staged")
POLICY_COLUMNS: Final = (
    "policy",
    "sites",
    "pool",
    "spread",
    "require",
    "codec",
    "in_effect",
    "class",
    "disks",
    "buckets",
    "promise",
    "staged",
)
PLAN_COLUMNS: Final = (
    "policy",
    "buckets",
    "volumes",
    "files_to_move",
    "bytes_to_move",
    "without_a_disk",
    "codec",
    "in_effect",
    "before",
    "after",
)

layout_app = typer.Typer(
    help="Where machines stand, and placement policies: staged, planned, applied.", no_args_is_help=True
)
bucket_app = typer.Typer(help="Buckets, as operators see them.", no_args_is_help=True)

Place = Annotated[str | None, typer.Option(help="Its name; - for what the machine says of itself.")]


def _given(**options: Any) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value is not None}


def _tell_staged(store: Store, facts: dict[str, Any]) -> None:
    line = (
        "nothing is staged"
        if facts["staged"] is None
        else f"version {facts['staged']} is staged: objstore layout plan shows what it would do"
        if facts["changes"]
        else f"version {facts['staged']} is staged, and changes nothing: objstore layout revert drops it"
    )
    store.tell(line, facts)


@layout_app.command("show")
@asks
def show(store: Store) -> None:
    """Machines and policies, as they are and as they are staged.

    A policy's promise says, for every level of failure domain, what the loss of one domain leaves:
    spare (parity to spare), bare (all data, and nothing to spare), none (data may be lost)."""
    found = store.get("/api/v1/layout")
    if store.show_whole(found):
        return
    store.show(found["machines"], *MACHINE_COLUMNS)
    store.show(found["policies"], *POLICY_COLUMNS)
    if found["staged"] is not None:
        print(f"version {found['version']} is in force, version {found['staged']} is staged", file=sys.stderr)


@layout_app.command("machine")
@asks
def machine(
    store: Store,
    name: Annotated[str, typer.Argument(help="Its name, or the beginning of its id; self: this machine.")],
    site: Place = None,
    rack: Place = None,
    pool: Annotated[
        str | None,
        typer.Option(help="It takes only volumes of policies that name this pool; - for none."),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(help="Its free space counts so much for new volumes; 0: it gets none.", min=0, max=100),
    ] = None,
    drain: Annotated[
        bool | None, typer.Option("--drain/--no-drain", help="Empty it when this is applied.")
    ] = None,
) -> None:
    """Stage where a machine stands."""
    given = _given(site=site, rack=rack, pool=pool, weight=None if weight is None else f"{weight:g}")
    if drain is not None:
        given["drain"] = str(drain).lower()
    _tell_staged(store, store.post(f"/api/v1/layout/machines/{quoted(name)}", given))


@layout_app.command("policy")
@asks
def policy(
    store: Store,
    name: Annotated[str, typer.Argument(help="Its name. One that a site has is that site's own policy.")],
    sites: Annotated[
        str | None, typer.Option(help="Sites that its volumes never leave, with commas; - for all.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="The pool of nodes that it takes; - for those of none.")
    ] = None,
    spread: Annotated[
        str | None,
        typer.Option(help="Failure domain: node, rack or site; - for the highest at which m-1 is possible."),
    ] = None,
    require: Annotated[
        str | None, typer.Option(help="Refuse writes below this promise: spare or bare; - for none.")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="Its own code, k+m; - for the store's.")] = None,
    storage_class: Annotated[
        str | None, typer.Option("--class", help="The x-amz-storage-class that selects it; - for none.")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="There is no such policy any more.")] = False,
) -> None:
    """Stage a placement policy. What is not given stays as it is."""
    given = _given(sites=sites, pool=pool, spread=spread, require=require, codec=codec)
    if storage_class is not None:
        given["class"] = storage_class
    if drop:
        given["drop"] = "true"
    _tell_staged(store, store.post(f"/api/v1/layout/policies/{quoted(name)}", given))


@layout_app.command("plan")
@asks
def plan(store: Store) -> None:
    """What applying would move, how long that takes, and what each policy promises before and after.

    Exit code 4: it cannot be applied, and why."""
    found = store.get("/api/v1/layout/plan")
    if not store.show_whole(found):
        store.show(found["policies"], *PLAN_COLUMNS)
        for row in found["incoming"]:
            print(
                f"site {row['site']} gets {row['bytes']} bytes, and has {row['free']} free", file=sys.stderr
            )
        print(
            f"version {found['version']}: {found['files_to_move']} fragment files, {found['bytes_to_move']}"
            f" bytes to move; about {_duration(found['seconds'])} at {found['bytes_per_second']} bytes/s",
            file=sys.stderr,
        )
        for words in found["refused"]:
            print(f"cannot be applied: {words}", file=sys.stderr)
        if not found["refused"]:
            print(f"to apply it: objstore layout apply --version {found['version']}", file=sys.stderr)
    raise SystemExit(REFUSED if found["refused"] else OK)


@layout_app.command("apply")
@asks
def apply(
    store: Store,
    version: Annotated[int, typer.Option(help="The version that the plan was for.", min=1)],
) -> None:
    """Make what is staged current. What does not lie as it says is moved in the background."""
    facts = store.post("/api/v1/layout/apply", {"version": str(version)})
    store.tell(f"version {facts['version']} is in force: {facts['files_to_move']} files are to move", facts)


@layout_app.command("revert")
@asks
def revert(store: Store) -> None:
    """Drop what is staged; with nothing staged, stage what was in force before the last apply."""
    _tell_staged(store, store.post("/api/v1/layout/revert"))


@bucket_app.command("place")
@asks
def place(
    store: Store,
    bucket: Annotated[str, typer.Argument(help="The bucket's name.")],
    policy: Annotated[str, typer.Option(help="A policy, or a site: its own. - for the default one.")],
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Objects that are there stay until they are written again.")
    ] = False,
) -> None:
    """Set where the bytes of a bucket lie."""
    given = {"policy": policy, **({"new_only": "true"} if new_only else {})}
    facts = store.post(f"/api/v1/buckets/{quoted(bucket)}/policy", given)
    store.tell(f"bucket {bucket}: {facts['policy']}; {facts['objects_that_stay']} objects stay", facts)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3_600:.0f} hours"
