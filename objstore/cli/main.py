"""`objstore`: the tree of commands, the entry point, and `serve`."""

import os
from typing import Annotated

import typer

from objstore import __version__
from objstore.cli import health
from objstore.cli.accounts import key_app, project_app, seller_app, tenant_app, user_app
from objstore.cli.audit import audit_app
from objstore.cli.client import ConfigOption, DataOption, Refused, Unreachable, settings
from objstore.cli.cluster import cluster_app
from objstore.cli.compliance import compliance_app
from objstore.cli.configuration import config_app
from objstore.cli.departures import export_tenant, purge_tenant
from objstore.cli.dev import dev_app
from objstore.cli.disks import disk_app, volume_app
from objstore.cli.durability import durability
from objstore.cli.finance import finance
from objstore.cli.gateway import gateway
from objstore.cli.layout import bucket_app, layout_app
from objstore.cli.metadata import meta_app
from objstore.cli.node import node_app
from objstore.cli.output import FAILURE, REFUSED, USAGE, fail
from objstore.cli.renting import (
    capacity_app,
    invoice_app,
    lease_app,
    offer_app,
    payment_app,
    plan_app,
    quota_app,
    usage_app,
)
from objstore.cli.replication import replication_app
from objstore.cli.reports import report_app
from objstore.cli.starting import AdminListenOption, CodecOption, ListenOption, WorkersOption, explained
from objstore.config import ConfigError

app = typer.Typer(
    name="objstore",
    help="An S3-compatible, erasure-coded object store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)


def run() -> None:
    """The entry point: turns what we expect to go wrong into one line and an exit code."""
    try:
        app()
    except ConfigError as failure:
        fail(str(failure), USAGE)
    except Unreachable as failure:
        fail(str(failure))
    except Refused as failure:
        fail(str(failure), REFUSED if failure.status in (403, 409) else FAILURE)
    except BrokenPipeError:
        os._exit(FAILURE)  # The reader of our pipe has gone; nothing is left to tell it.


def _version(wanted: bool) -> None:
    if wanted:
        print(f"objstore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    data: DataOption = None,
    listen: ListenOption = None,
    admin_listen: AdminListenOption = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(help="A disk's directory, empty at the first start; once per disk.", show_default=False),
    ] = None,
    codec: CodecOption = None,
    workers: WorkersOption = None,
    config: ConfigOption = None,
) -> None:
    """Run the store. The first start makes it, and prints the root key once."""
    loaded = settings(
        data,
        config,
        ("server.listen", "--listen", listen),
        ("server.admin_listen", "--admin-listen", admin_listen),
        ("disks.paths", "--disk", disk),
        ("blobs.codec", "--codec", codec),
        ("server.workers", "--workers", workers),
    )
    from objstore.processes.serve import serve as serve_

    with explained():
        raise SystemExit(serve_(loaded))


# In the order in which the help names them.
for command in (
    gateway,
    health.status,
    health.upkeep,
    health.doctor,
    health.health,
    health.safe_to_stop,
    health.token,
    durability,
    finance,
):
    app.command()(command)
tenant_app.command("export")(export_tenant)
tenant_app.command("purge")(purge_tenant)
for group, name in (
    (node_app, "node"),
    (cluster_app, "cluster"),
    (config_app, "config"),
    (tenant_app, "tenant"),
    (seller_app, "seller"),
    (project_app, "project"),
    (user_app, "user"),
    (key_app, "key"),
    (quota_app, "quota"),
    (plan_app, "plan"),
    (lease_app, "lease"),
    (offer_app, "offer"),
    (usage_app, "usage"),
    (invoice_app, "invoice"),
    (payment_app, "payment"),
    (capacity_app, "capacity"),
    (report_app, "report"),
    (disk_app, "disk"),
    (volume_app, "volume"),
    (layout_app, "layout"),
    (bucket_app, "bucket"),
    (replication_app, "replication"),
    (audit_app, "audit"),
    (compliance_app, "compliance"),
    (meta_app, "meta"),
    (dev_app, "dev"),
):
    app.add_typer(group, name=name)


if __name__ == "__main__":
    run()
