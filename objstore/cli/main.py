"""`objstore`: the commands. Each is a few lines: read the options, ask the store, show the answer."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from objstore import __version__
from objstore.cli import output
from objstore.cli.client import (
    AdminClient,
    AdminOption,
    ConfigOption,
    DataOption,
    Refused,
    Unreachable,
    config_file,
)
from objstore.cli.output import OutputOption, show
from objstore.config import ConfigError, Loaded

T = TypeVar("T")

app = typer.Typer(
    name="objstore",
    help="An S3-compatible, erasure-coded object store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)
config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)
user_app = typer.Typer(help="Users of tenants.", no_args_is_help=True)
key_app = typer.Typer(help="Access keys of users.", no_args_is_help=True)
disk_app = typer.Typer(help="The store's disks.", no_args_is_help=True)
meta_app = typer.Typer(help="The store's metadata: copies, exports, salvage.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(user_app, name="user")
app.add_typer(key_app, name="key")
app.add_typer(disk_app, name="disk")
app.add_typer(meta_app, name="meta")


def run() -> None:
    """The entry point: turns what we expect to go wrong into one line and an exit code."""
    try:
        app()
    except ConfigError as failure:
        fail(str(failure), output.USAGE)
    except Unreachable as failure:
        fail(str(failure), output.FAILURE)
    except Refused as failure:
        fail(str(failure), output.REFUSED if failure.status in (403, 409) else output.FAILURE)
    except BrokenPipeError:
        os._exit(output.FAILURE)  # The reader of our pipe has gone; nothing is left to tell it.


def fail(text: str, code: int) -> None:
    print(f"objstore: {text}", file=sys.stderr)
    raise SystemExit(code)


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
    listen: Annotated[
        str | None, typer.Option(help="host:port of the S3 API.  [127.0.0.1:9000]", show_default=False)
    ] = None,
    admin_listen: Annotated[
        str | None, typer.Option(help="host:port of the admin API.  [127.0.0.1:9001]", show_default=False)
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(help="A disk's directory, empty at the first start; once per disk.", show_default=False),
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="data+parity fragments.  [4+2]", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Gateway processes.  [one per core]", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run the store. The first start makes it, and prints the root key once."""
    given: dict[str, tuple[str, object]] = {}
    for name, flag, value in (
        ("server.data", "--data", str(data) if data is not None else None),
        ("server.listen", "--listen", listen),
        ("server.admin_listen", "--admin-listen", admin_listen),
        ("disks.paths", "--disk", disk),
        ("blobs.codec", "--codec", codec),
        ("server.workers", "--workers", workers),
    ):
        if value is not None and value != []:
            given[name] = (flag, value)
    from objstore.config import load

    loaded = load(config_file(config), os.environ, given)
    from objstore.processes.serve import CannotStart
    from objstore.processes.serve import serve as serve_

    try:
        code = serve_(loaded)
    except CannotStart as failure:
        fail(str(failure), output.FAILURE)
    raise SystemExit(code)


# --- configuration --------------------------------------------------------------------------------


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Read the file and the environment, and say what is wrong."""
    from objstore.config import load

    file = config_file(config)
    load(file, os.environ)
    print(f"{file or 'defaults and environment'}: ok")


@config_app.command("show")
def config_show(
    config: ConfigOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also show where each value comes from.")] = False,
    format_: OutputOption = None,
) -> None:
    """Every option with the value in force."""
    from objstore.config import load

    loaded = load(config_file(config), os.environ)
    rows: list[dict[str, Any]] = [
        {"option": name, "value": loaded.shown(name), "origin": where}
        for name, where in loaded.origins.items()
    ]
    show(rows, ["option", "value", *(["origin"] if origin else [])], format_)


@config_app.command("defaults")
def config_defaults() -> None:
    """The commented file with every option and its default."""
    from objstore.config import defaults_text

    print(defaults_text(), end="")


# --- users and keys -------------------------------------------------------------------------------


@user_app.command("create")
def user_create(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    tenant: Annotated[
        str | None, typer.Option(help="The tenant; made if it is new.  [the user's name]", show_default=False)
    ] = None,
    email: Annotated[str, typer.Option(show_default=False)] = "",
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Create a user. A bucket belongs to its creator's tenant and is closed to all others."""
    user = AdminClient(data, config, admin).post(
        "/api/v1/users", {"name": name, "tenant": tenant or name, "email": email}
    )
    show([user], ["name", "tenant"], format_)


@user_app.command("list")
def user_list(
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Every user."""
    users = AdminClient(data, config, admin).get("/api/v1/users")["users"]
    show(users, ["name", "tenant", "root", "disabled", "created", "email"], format_)


@user_app.command("disable")
def user_disable(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    enable: Annotated[bool, typer.Option("--undo", help="Enable again.")] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
) -> None:
    """Refuse every request signed with the user's keys."""
    verb = "enable" if enable else "disable"
    AdminClient(data, config, admin).post(f"/api/v1/users/{_quoted(name)}/{verb}")
    print(f"{name}: {verb}d")


@key_app.command("create")
def key_create(
    user: Annotated[str, typer.Argument(help="The user's name.")],
    comment: Annotated[str, typer.Option(show_default=False)] = "",
    print_: Annotated[
        str | None,
        typer.Option("--print", help="Also print settings for: aws,rclone,boto3.", show_default=False),
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Create an access key. Its secret is shown now and never again."""
    from objstore.admin.snippets import SNIPPETS

    wanted = [tool for tool in (print_ or "").split(",") if tool]
    if unknown := [tool for tool in wanted if tool not in SNIPPETS]:
        raise ConfigError(f"--print {unknown[0]}: one of {', '.join(SNIPPETS)}")
    key = AdminClient(data, config, admin).post("/api/v1/keys", {"user": user, "comment": comment})
    show([key], ["access_key", "secret_key", "user"], format_)
    for tool in wanted:
        print()
        print(SNIPPETS[tool](key["endpoint"], key["region"], key["access_key"], key["secret_key"]))


@key_app.command("list")
def key_list(
    user: Annotated[str | None, typer.Option(help="Only this user's.", show_default=False)] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Every access key; secrets are never shown."""
    keys = AdminClient(data, config, admin).get("/api/v1/keys")["keys"]
    show(
        [key for key in keys if user is None or key["user"] == user],
        ["access_key", "user", "disabled", "created", "comment"],
        format_,
    )


@key_app.command("disable")
def key_disable(
    access_key: Annotated[str, typer.Argument(help="The access key id.")],
    enable: Annotated[bool, typer.Option("--undo", help="Enable again.")] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
) -> None:
    """Refuse every request signed with the key."""
    verb = "enable" if enable else "disable"
    AdminClient(data, config, admin).post(f"/api/v1/keys/{_quoted(access_key)}/{verb}")
    print(f"{access_key}: {verb}d")


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


# --- health ---------------------------------------------------------------------------------------


@app.command()
def status(
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """The store on one screen. Exit code 3: it serves, but something is not as it should be."""
    found = AdminClient(data, config, admin).get("/api/v1/status")
    if format_ in (output.Format.JSON, output.Format.YAML):
        show([found], [], format_)
    else:
        facts = [{"what": what, "value": value} for what, value in found["facts"].items()]
        show(facts, ["what", "value"], format_)
        show(found["processes"], ["process", "pid", "ready", "restarts"], format_)
        show(found["disks"], DISK_COLUMNS, format_)
    raise SystemExit(output.DEGRADED if found["degraded"] else output.OK)


DISK_COLUMNS = ["disk", "path", "state", "free", "total", "reason"]


@app.command()
def upkeep(
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """What runs in the background: repair, scrub, compaction, trash."""
    found = AdminClient(data, config, admin).get("/api/v1/upkeep")
    if format_ in (output.Format.JSON, output.Format.YAML):
        show([found], [], format_)
        return
    services = [{"service": name, **service} for name, service in found["services"].items()]
    show(services, ["service", "runs", "failures", "running", "last", "last_failure"], format_)


@app.command()
def doctor(
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Look for what will hurt later, and say what to do. Exit code 3: something was found."""
    findings = AdminClient(data, config, admin).get("/api/v1/doctor")["findings"]
    show(findings, ["check", "level", "finding", "remedy"], format_)
    raise SystemExit(output.DEGRADED if any(finding["level"] != "ok" for finding in findings) else output.OK)


@app.command()
def health(
    ready: Annotated[bool, typer.Option("--ready", help="Ready to serve, not merely alive.")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="Enough disks to write.")] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
) -> None:
    """Exit code 0 if the store is alive (with --ready: serves). For containers and load balancers."""
    path = "/health/cluster" if cluster else "/health/ready" if ready else "/health/live"
    code, answer = AdminClient(data, config, admin).call("GET", path, token=False, accept_errors=True)
    text = answer.get("status", answer) if isinstance(answer, dict) else answer
    print(text)
    raise SystemExit(output.OK if code == 200 else output.FAILURE)


@app.command()
def token(data: DataOption = None, config: ConfigOption = None) -> None:
    """Show the admin token (for Prometheus and for the command line elsewhere)."""
    print(AdminClient(data, config, None).token())


# --- disks ----------------------------------------------------------------------------------------


@disk_app.command("list")
def disk_list(
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Every disk: state, space and why."""
    show(AdminClient(data, config, admin).get("/api/v1/disks")["disks"], DISK_COLUMNS, format_)


@disk_app.command("verify")
def disk_verify(
    number: Annotated[int, typer.Argument(help="The disk's number.")],
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Write, sync and read back a probe; a suspect disk that passes takes writes again."""
    disk = AdminClient(data, config, admin).post(f"/api/v1/disks/{number}/verify")
    show([disk], DISK_COLUMNS, format_)
    raise SystemExit(output.OK if disk["state"] == "healthy" else output.DEGRADED)


# --- metadata -------------------------------------------------------------------------------------


def _offline(data: Path | None, config: Path | None, work: Callable[[Loaded], T]) -> T:
    """Run work of processes/offline.py on a store that does not serve."""
    from objstore.config import load
    from objstore.errors import StoreError
    from objstore.processes.cluster import CannotStart

    flags: dict[str, tuple[str, object]] = {"server.data": ("--data", str(data))} if data is not None else {}
    try:
        return work(load(config_file(config), os.environ, flags))
    except (CannotStart, StoreError, OSError) as failure:
        fail(str(failure), output.FAILURE)
        raise AssertionError from failure  # fail() has raised.


@meta_app.command("copy")
def meta_copy(
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    format_: OutputOption = None,
) -> None:
    """Store a copy of all metadata in volumes now, for a later rebuild. It is done daily anyway."""
    show([AdminClient(data, config, admin).post("/api/v1/meta/copy")], ["began", "bytes"], format_)


@meta_app.command("export")
def meta_export(
    file: Annotated[Path, typer.Argument(help="The file to make; it must not exist.")],
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """All metadata into one portable, checksummed file. The store must not be serving."""

    def work(loaded: Loaded) -> int:
        from objstore.processes import offline

        return offline.export(loaded, file)

    print(f"{file}: {_offline(data, config, work):,} records")


@meta_app.command("import")
def meta_import(
    file: Annotated[Path, typer.Argument(help="A file that `objstore meta export` made.")],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Set aside the metadata that is there. Else it must be empty."),
    ] = False,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Metadata from such a file into this store. The file is verified before anything is changed."""

    def work(loaded: Loaded) -> int:
        from objstore.processes import offline

        return offline.import_(loaded, file, replace=replace)

    print(f"{file}: {_offline(data, config, work):,} records")


@meta_app.command("rebuild")
def meta_rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without: only say what would happen.")] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    format_: OutputOption = None,
) -> None:
    """Salvage metadata from fragments alone, when the journal is lost. What is left of it is set aside.

    Deletes and changes of settings since the newest snapshot cannot be known; what is doubtful is listed."""
    if not yes:
        print(
            "This sets aside what is left of the journal and LMDB, and makes metadata anew from the newest\n"
            "snapshot in the volumes and every stripe after it. Deletes since then come back. If the store\n"
            "still starts, do not do it. To go on: --yes"
        )
        raise SystemExit(output.REFUSED)

    def work(loaded: Loaded) -> Any:
        from objstore.processes import offline

        return offline.rebuild(loaded)

    report = _offline(data, config, work)
    facts = {
        "volumes": report.volumes,
        "stripes": report.stripes,
        "snapshot": "found" if report.snapshot else "none",
        "buckets": report.buckets,
        "objects": report.objects,
        "parts": report.parts,
        "unreadable": len(report.unreadable),
        "doubtful": len(report.doubtful),
    }
    show([{"what": what, "value": value} for what, value in facts.items()], ["what", "value"], format_)
    rows = [{"what": "unreadable", "reason": reason} for reason in report.unreadable]
    rows += [{"what": name, "reason": reason} for name, reason in report.doubtful]
    if rows:
        show(rows, ["what", "reason"], format_)
    raise SystemExit(output.DEGRADED if rows else output.OK)


if __name__ == "__main__":
    run()
