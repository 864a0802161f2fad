"""`objstore tenant export` and `tenant purge`: what a tenant has stored is handed back, and ends."""

import hashlib
import json
import math
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from objstore.cli.client import Unreachable
from objstore.cli.exported import Broken, Sums, manifest_digest, verify
from objstore.cli.exporting import Export
from objstore.cli.output import (
    DEGRADED,
    FAILURE,
    REFUSED,
    check_writable,
    fail,
    harmless,
    size_text,
    write_file,
)
from objstore.cli.progress import Progress, Steps
from objstore.cli.store import Store, YesOption, asks, changes, quoted
from objstore.config import ConfigError

AT_ONCE: Final = 4  # Connections: the admin port is one process.
LOOK_SECONDS: Final = 5.0  # Between two looks at a purge.
SHOWN_MAX: Final = 20  # Findings, and objects that are missing, for people.


@asks
def export_tenant(
    store: Store,
    tenant: Annotated[str | None, typer.Argument(help="The tenant's name.", show_default=False)] = None,
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Where to: a new directory, or one of an export that was cut.", show_default=False
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--verify", help="Hold an export against its manifest; no store is asked.", show_default=False
        ),
    ] = None,
    count: Annotated[bool, typer.Option("--dry-run", help="Say how much it is; fetch nothing.")] = False,
    at_once: Annotated[int, typer.Option(help="Connections.", min=1, max=32)] = AT_ONCE,
    accept_missing: Annotated[
        bool, typer.Option("--accept-missing", help="Finish although some objects cannot be read.")
    ] = False,
) -> None:
    """Hand everything back: objects with all their metadata, settings, users, documents, usage; a manifest.

    Cut anywhere, it goes on where it was when it is run again. docs/export.md says what lies in the
    directory. Ends with 3 if objects could not be read."""
    if check is not None:
        if tenant is not None or count:
            raise ConfigError("--verify DIR stands alone: no store is asked")
        _verify(store, check)
        return
    if tenant is None or (directory is None and not count):
        raise ConfigError("what is exported, and where to: objstore tenant export TENANT DIR")
    work = Export(store, tenant, directory or Path(), at_once=at_once)
    try:
        if count:
            _say(store, work)
        else:
            assert directory is not None
            _export(store, work, directory, accept_missing=accept_missing)
    except Broken as failure:
        fail(str(failure), REFUSED)
    except OSError as failure:
        fail(f"{failure.filename or directory}: {failure.strerror}; run it again to go on")
    except Unreachable as failure:
        fail(f"{failure}\nWhat was fetched stays: run it again to go on")
    except KeyboardInterrupt:
        fail("cut: run it again to go on", DEGRADED)
    finally:
        work.close()


def _say(store: Store, work: Export) -> None:
    buckets = work.buckets()
    rows = [*buckets, {"name": "all of them"} | {name: _sum(buckets, name) for name in ("objects", "bytes")}]
    store.show(rows, "name", "objects", "bytes")


def _sum(buckets: list[dict[str, Any]], name: str) -> int:
    return sum(int(one[name]) for one in buckets)


def _export(store: Store, work: Export, directory: Path, *, accept_missing: bool) -> None:
    work.open()
    if manifest_digest(directory):
        digest = work.finish()
        store.tell(f"it is whole already: {digest}", {"directory": str(directory), "manifest": digest})
        return
    buckets = work.buckets()
    expected = _sum(buckets, "bytes")
    with Progress("looking at what is there", 0, "objects") as bar:
        sums = work.resume(bar.add)
    left = expected - sums.bytes
    if left > (free := shutil.disk_usage(directory).free):
        fail(f"{size_text(left)} are to be fetched, {size_text(free)} are free at {directory}", REFUSED)
    with Progress("fetching", left, "objects") as bar:
        work.fetch(sums, bar.add)
    if sums.missing and not accept_missing:
        _name_missing(sums)
        fail(
            f"{len(sums.missing)} objects could not be read: run it again to try them once more, or with"
            " --accept-missing to finish without them",
            DEGRADED,
        )
    work.records()
    work.seal(sums)
    digest = work.finish()
    told = f"{sums.objects} objects, {size_text(sums.bytes)}. Keep elsewhere, of the manifest: {digest}"
    facts = {
        "directory": str(directory),
        "objects": sums.objects,
        "bytes": sums.bytes,
        "missing": len(sums.missing),
        "doubtful": sums.doubtful,
        "uploads": _sum(buckets, "uploads"),
        "manifest": digest,
    }
    store.tell(told, facts)
    if sums.missing or sums.doubtful:
        _name_missing(sums)
        words = f"{len(sums.missing)} objects are missing, {sums.doubtful} are not what their ETag says"
        fail(f"{words}: {directory / 'objects.jsonl'} says which", DEGRADED)


def _name_missing(sums: Sums) -> None:
    for (bucket, key), why in list(sums.missing.items())[:SHOWN_MAX]:
        print(harmless(f"missing: {bucket}/{key}: {why}"), file=sys.stderr)


def _verify(store: Store, directory: Path) -> None:
    with Progress("verifying", 0, "objects") as bar:
        try:
            sums, wrong = verify(directory, bar.add)
        except Broken as failure:
            fail(str(failure), REFUSED)
    for words in wrong[:SHOWN_MAX]:
        print(harmless(words), file=sys.stderr)
    if wrong:
        more = " or more" if len(wrong) > SHOWN_MAX else ""
        fail(f"{len(wrong)}{more} things are not what the manifest says", FAILURE)
    facts = {
        "objects": sums.objects,
        "bytes": sums.bytes,
        "missing": len(sums.missing),
        "doubtful": sums.doubtful,
    }
    store.tell(f"{sums.objects} objects, {size_text(sums.bytes)}: all is what the manifest says", facts)
    if sums.missing or sums.doubtful:
        fail(f"but {len(sums.missing)} are missing and {sums.doubtful} doubtful", DEGRADED)


@changes
def purge_tenant(
    store: Store,
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    proof: Annotated[
        Path | None,
        typer.Option(help="Write the proof there, as JSON, once it is there.", show_default=False),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Wait so many seconds for the proof, showing progress.", min=0)
    ] = 0,
    yes: YesOption = False,
) -> None:
    """Delete all that a tenant has stored, for ever, and prove from the disks that it is gone.

    Only who is terminating, its time to take data along over, is purged. The store does it by itself, which
    takes as long as its trash is kept (upkeep.trash_days); the same command shows how far it is. Invoices and
    usage stay. Ends with 3 while nothing is proven."""
    if proof is not None:
        check_writable(proof)
    path = f"/api/v1/tenants/{quoted(tenant)}"
    found = store.get(f"{path}/purge")
    if found["state"] == "none":
        use = store.get(path)["use"]
        words = f"All that {tenant} has stored will be deleted for ever: "
        words += f"{use['objects']} objects in {use['buckets']} buckets, {size_text(use['bytes'])}."
        store.confirm(tenant, words, yes=yes)
        found = store.change("POST", f"{path}/purge")
    found = _Watch(store, path, found, wait).run()
    if found["state"] != "proven":
        store.show_whole(found)
        fail(f"{tenant} is not proven to be gone yet: {found['waiting'] or found['state']}", DEGRADED)
    text = json.dumps(found["proof"], indent=2, sort_keys=True) + "\n"
    if proof is not None:
        write_file(proof, text.encode())
    digest = hashlib.sha256(text.encode()).hexdigest()
    store.tell(f"{tenant} is gone since {found['proven']}. SHA-256 of the proof: {digest}", found)


class _Watch:
    """A purge, looked at until it is proven or the time is over. What it waits for is told; on a terminal
    bars show how much of what there was is deleted, then how many volumes are cleared, and the time to go."""

    def __init__(self, store: Store, path: str, found: dict[str, Any], seconds: float) -> None:
        """
        Args:
            path: of the tenant.
            found: the purge as it is.
        """
        self._store = store
        self._path = path
        self._end = time.monotonic() + seconds
        self._told = ""
        self.found = found

    def run(self) -> dict[str, Any]:
        """The purge as it is then."""
        while self._goes_on("deleting", "clearing"):
            self._deleting()
            self._clearing()
        return self.found

    def _goes_on(self, *states: str) -> bool:
        return self.found["state"] in states and time.monotonic() < self._end

    def _deleting(self) -> None:
        if not self._goes_on("deleting"):
            return
        size, count = self.found["bytes"], self.found["objects"]
        with Progress("deleting", size, "objects", logged=False) as progress:
            while self._goes_on("deleting"):
                use = self._store.get(self._path)["use"]
                progress.add(size - use["bytes"], count - use["objects"])
                size, count = use["bytes"], use["objects"]
                self._look()
            if self.found["state"] != "deleting":
                progress.add(size, count)

    def _clearing(self) -> None:
        if not self._goes_on("clearing"):
            return
        most = 0
        with Steps("clearing", "volumes", logged=False) as progress:
            while self._goes_on("clearing"):
                left = self.found["volumes"]
                most = max(most, left)
                progress.reached(most - left, most or None, _to_go(self.found["until"], time.time()))
                self._look()

    def _look(self) -> None:
        """Once more, after a while."""
        words = self.found["waiting"] or self.found["state"]
        if words != self._told:
            print(harmless(f"waiting: {words}"), file=sys.stderr, flush=True)
            self._told = words
        time.sleep(min(LOOK_SECONDS, max(0.0, self._end - time.monotonic())))
        self.found = self._store.get(f"{self._path}/purge")


def _to_go(until: str | None, now_s: float) -> str:
    """From now (seconds since 1970) to a moment, in words; empty: it is not known, or over."""
    minutes = 0 if until is None else math.ceil((datetime.fromisoformat(until).timestamp() - now_s) / 60)
    parts = (minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min")
    words = " ".join([f"{count} {unit}" for count, unit in parts if count][:2])
    return f"{words} to go" if minutes > 0 else ""
