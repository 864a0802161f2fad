"""`objstore meta`: copies, exports and salvage of all metadata."""

from pathlib import Path
from typing import Annotated

import typer

from objstore.cli.client import ConfigOption, DataOption
from objstore.cli.output import DEGRADED, OK, REFUSED, OutputOption, show
from objstore.cli.store import Store, asks, stopped

meta_app = typer.Typer(help="The store's metadata: copies, exports, salvage.", no_args_is_help=True)


@meta_app.command("copy")
@asks
def meta_copy(store: Store) -> None:
    """Store a copy of all metadata in volumes now, for a later rebuild. It is done daily anyway."""
    store.show([store.post("/api/v1/meta/copy")], "began", "bytes")


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
        "snapshot": "found" if report.snapshot else "none",
        "buckets": report.buckets,
        "objects": report.objects,
        "parts": report.parts,
        "unreadable": len(report.unreadable),
        "doubtful": len(report.doubtful),
    }
    show([{"what": what, "value": value} for what, value in facts.items()], ["what", "value"], form)
    rows = [{"what": "unreadable", "reason": reason} for reason in report.unreadable]
    rows += [{"what": name, "reason": reason} for name, reason in report.doubtful]
    if rows:
        show(rows, ["what", "reason"], form)
    raise SystemExit(DEGRADED if rows else OK)
