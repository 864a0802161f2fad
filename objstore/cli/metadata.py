"""`objstore meta`: copies, exports and salvage of all metadata."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from objstore.cli.client import AdminOption, ConfigOption, DataOption
from objstore.cli.output import DEGRADED, OK, REFUSED, USAGE, Format, OutputOption, fail, show
from objstore.cli.store import Store, stopped
from objstore.clock import utc_text

meta_app = typer.Typer(help="The store's metadata: copies, exports, salvage.", no_args_is_help=True)


@meta_app.command("copy")
def meta_copy(
    source: Annotated[
        str | None,
        typer.Option("--from", help="lmdb:DIR, the data directory of a store with embedded metadata."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="postgresql://USER@HOST/DATABASE, an empty one. Just postgresql: takes meta.url, which may"
            " come from a file (OBJSTORE_META__URL_FILE) and is not seen in the list of processes.",
        ),
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    form: OutputOption = None,
) -> None:
    """Store a copy of all metadata in volumes now, for a later rebuild. It is done daily anyway.

    With --from and --to: move a store's metadata into PostgreSQL. Run it while the store serves, as often as
    you like: nearly everything is copied. Then stop the store and run it again: what has changed is copied,
    everything is compared and verified, and the copy is finished. The old store does not start after that."""
    if source is None and target is None:
        store = Store(data, config, admin, form)
        store.show([store.post("/api/v1/meta/copy")], "began", "bytes")
        return
    if source is None or target is None:
        fail("--from and --to belong together", USAGE)
    if data is not None and source not in ("lmdb:", f"lmdb:{data}"):
        fail("--from and --data name different stores", USAGE)
    _copy_engine(source if data is None else f"lmdb:{data}", target, config, form)


def _copy_engine(source: str, target: str, config: Path | None, form: Format | None) -> None:
    kind, _, directory = source.partition(":")
    if kind != "lmdb" or not directory:
        fail("--from is lmdb:DIR, the data directory of the store", USAGE)
    with stopped(Path(directory), config) as loaded:
        url = loaded.config.meta.url if target == "postgresql:" else target
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from objstore.meta.kv_postgres import check_url
        from objstore.processes.moving import copy_metadata

        try:
            check_url(url)
        except ValueError as failure:
            fail(f"--to: {failure}", USAGE)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
            task = bar.add_task("copying", total=None)
            report = copy_metadata(
                loaded,
                url,
                progress=lambda what, count: bar.update(task, description=what, completed=count),
                total=lambda count: bar.update(task, total=count),
            )
    facts = {
        "finished": report.finished,
        "compared": report.compared,
        "put": report.put,
        "deleted": report.deleted,
        "digest": report.digest,
    }
    if form is not None:
        show([facts], list(facts), form)
    elif report.finished:
        print(
            f"{report.compared:,} records are in PostgreSQL, verified (digest {report.digest});"
            f" {report.put:,} were copied now. Set meta.url for the gateways; this store starts no more."
        )
    else:
        print(
            f"{report.compared:,} records compared, {report.put:,} copied while the store serves."
            " To finish: stop the store and run this again."
        )


@meta_app.command("export")
def meta_export(
    file: Annotated[Path, typer.Argument(help="The file to make; it must not exist.")],
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """All metadata into one portable, checksummed file. The store must not be serving."""
    with stopped(data, config) as loaded:
        from objstore.processes import offline

        count = offline.export(loaded, file)
    print(f"{file}: {count:,} records")


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
    with stopped(data, config) as loaded:
        from objstore.processes import offline

        count = offline.import_(loaded, file, replace=replace)
    print(f"{file}: {count:,} records")


@meta_app.command("rebuild")
def meta_rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without: only say what would happen.")] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    form: OutputOption = None,
) -> None:
    """Salvage metadata from fragments alone, when the journal is lost. What is left of it is set aside.

    Deletes and changes of settings since the newest snapshot cannot be known; what is doubtful is listed."""
    if not yes:
        print(
            "This sets aside what is left of the journal and LMDB, and makes metadata anew from the newest\n"
            "snapshot in the volumes and every stripe after it. Deletes since then come back. If the store\n"
            "still starts, do not do it. To go on: --yes"
        )
        raise SystemExit(REFUSED)
    with stopped(data, config) as loaded:
        from objstore.processes import offline

        report = offline.rebuild(loaded)
    facts = {
        "volumes": report.volumes,
        "stripes": report.stripes,
        "snapshot": f"of {utc_text(report.snapshot.began_us / 1e6)}" if report.snapshot else "none",
        "buckets": report.all_buckets,
        "objects": report.all_objects,
        "parts": report.all_parts,
        "buckets newer than the snapshot": report.buckets,
        "objects newer than the snapshot": report.objects,
        "parts newer than the snapshot": report.parts,
        "unreadable": len(report.unreadable),
        "doubtful": len(report.doubtful),
    }
    show([{"what": what, "value": value} for what, value in facts.items()], ["what", "value"], form)
    rows = [{"what": "unreadable", "reason": reason} for reason in report.unreadable]
    rows += [{"what": name, "reason": reason} for name, reason in report.doubtful]
    if rows:
        show(rows, ["what", "reason"], form)
    raise SystemExit(DEGRADED if rows else OK)
