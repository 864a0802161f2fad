"""`objstore replication`: buckets whose changes go to another store, and replicas."""

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from objstore.cli.output import DEGRADED, REFUSED, fail
from objstore.cli.store import Store, asks, quoted

COLUMNS: Final = ("bucket", "role", "state", "other", "site", "pending", "bytes", "lag_seconds", "since")
SECRET_VARIABLE: Final = "OBJSTORE_TARGET_SECRET_KEY"  # noqa: S105  (A name.)

replication_app = typer.Typer(
    help="Buckets whose changes go to a second site, and replicas.", no_args_is_help=True
)

Bucket = Annotated[str, typer.Argument(help="The bucket's name.")]


def _path(bucket: str, verb: str = "") -> str:
    return f"/api/v1/replication/{quoted(bucket)}" + (f"/{verb}" if verb else "")


def _confirmed(wanted: str, given: str, warning: str) -> None:
    """Let the operator type what is to happen. Ends the command if it is something else."""
    print(warning, file=sys.stderr)
    if not given:
        if not sys.stdin.isatty():
            fail(f'not confirmed: --confirm "{wanted}"', REFUSED)
        given = input(f"To go on, type: {wanted}\n> ").strip()
    if given != wanted:
        fail(f'not confirmed: "{wanted}" was to be given', REFUSED)


def _secret(file: Path | None) -> str:
    """The target's secret key: never an argument, which others on the machine can read."""
    if file is not None:
        try:
            return file.read_text().strip()
        except (OSError, UnicodeDecodeError) as failure:
            fail(f"{file}: {failure}")
    if given := os.environ.get(SECRET_VARIABLE):
        return given
    if not sys.stdin.isatty():
        fail(f"the target's secret key: --secret-key-file FILE, or {SECRET_VARIABLE}")
    return str(typer.prompt("The target's secret key", hide_input=True))


@replication_app.command("set")
@asks
def set_target(
    store: Store,
    bucket: Bucket,
    endpoint: Annotated[str, typer.Option(help="S3 endpoint of the other store: https://host:port.")],
    target: Annotated[str, typer.Option(help="The bucket there. It must exist, and be empty.")],
    access_key: Annotated[str, typer.Option(help="An access key of the tenant that has it there.")],
    secret_key_file: Annotated[
        Path | None, typer.Option(help=f"File with its secret key; or {SECRET_VARIABLE}; or typed.")
    ] = None,
    site: Annotated[
        str,
        typer.Option(help="Where the target's bytes lie: must be a site that the bucket's policy allows."),
    ] = "",
    region: Annotated[str, typer.Option(help="The other store's region.  [this store's]")] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain http, over which objects can be read on the way.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Also if it holds objects, or was promoted: it becomes what this bucket is."
        ),
    ] = False,
    confirm: Annotated[
        str, typer.Option("--confirm", help='With --overwrite: "overwrite TARGET", instead of typing it.')
    ] = "",
) -> None:
    """Send every change of a bucket to a bucket of another store, and first what it holds already.

    The other bucket is a replica from then on: read-only, until it is promoted there."""
    if overwrite:
        _confirmed(
            f"overwrite {target}",
            confirm,
            f"What {target} at {endpoint} holds and {bucket} does not will be deleted there.",
        )
    given = {
        "endpoint": endpoint,
        "bucket": target,
        "access_key": access_key,
        "secret_key": _secret(secret_key_file),
        "region": region,
        "site": site,
        "insecure": "yes" if insecure else "",
        "overwrite": "yes" if overwrite else "",
    }
    facts = store.post(_path(bucket), given)
    store.tell(f"{bucket} goes to {facts['other']}: objstore replication status {bucket}", facts)


@replication_app.command("list")
@asks
def list_all(store: Store) -> None:
    """Every bucket that is replicated, is a replica, or was one."""
    store.show(store.get("/api/v1/replication")["buckets"], *COLUMNS)


@replication_app.command("show")
@asks
def show(store: Store, bucket: Bucket) -> None:
    """One bucket: its target or its source, and how it stands."""
    store.show(
        [
            {"what": what, "value": value}
            for row in store.get(_path(bucket))["rows"]
            for what, value in row.items()
        ],
        "what",
        "value",
    )


@replication_app.command("status")
@asks
def status(store: Store, bucket: Annotated[str, typer.Argument(help="One bucket.")] = "") -> None:
    """How far behind targets are; of one bucket also the oldest keys that its target lacks.

    Ends with 3 if a target refuses, or keys cannot be sent."""
    if bucket:
        found = store.get(_path(bucket))
        rows = found["rows"]
        if found["oldest"]:
            store.show(found["oldest"], "key", "since", "seconds", "bytes")
    else:
        rows = store.get("/api/v1/replication")["buckets"]
    sources = [row for row in rows if row["role"] == "source"]
    store.show(sources, "bucket", "state", "pending", "bytes", "lag_seconds", "last_failure")
    if any(row.get("refused") or row.get("failing_keys") for row in sources):
        raise SystemExit(DEGRADED)


@replication_app.command("resync")
@asks
def resync(store: Store, bucket: Bucket) -> None:
    """Compare all that a bucket holds with its target once more, and send what differs."""
    store.tell(f"{bucket} is being compared", store.post(_path(bucket, "resync"), {}))


@replication_app.command("remove")
@asks
def remove(
    store: Store,
    bucket: Bucket,
    confirm: Annotated[str, typer.Option("--confirm", help='"remove BUCKET", instead of typing it.')] = "",
) -> None:
    """Stop sending a bucket's changes. Its replica stays as it is, read-only until it is promoted there."""
    pending = sum(row.get("pending", 0) for row in store.get(_path(bucket))["rows"])
    if pending:
        _confirmed(f"remove {bucket}", confirm, f"{pending} changes have not been sent, and never will be.")
    facts = store.post(_path(bucket, "remove"), {})
    store.tell(f"{bucket} is replicated no more", facts)


@replication_app.command("promote")
@asks
def promote(
    store: Store,
    bucket: Bucket,
    confirm: Annotated[str, typer.Option("--confirm", help='"promote BUCKET", instead of typing it.')] = "",
) -> None:
    """Let a replica take its tenant's writes, for its source is lost: nothing more of the source gets in.

    Give this command to the store that has the replica. The source, if it lives, is not told."""
    rows = store.get(_path(bucket))["rows"]
    if any(row["role"] == "replica" for row in rows):
        _confirmed(
            f"promote {bucket}",
            confirm,
            "What its source has not sent by now will never arrive. Let no client write to the source.",
        )
    facts = store.post(_path(bucket, "promote"), {})
    store.tell(f"{bucket} takes writes since {facts['promoted']}", facts)
