"""`objstore audit`: what an auditor is shown."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import typer

from objstore.cli.output import DEGRADED, FAILURE, OK, REFUSED
from objstore.cli.store import PAGE, Store, asks, quoted
from objstore.cli.waiting import until_done

CODES: Final = {"proven": OK, "incomplete": DEGRADED, "violated": REFUSED}
FINDING_COLUMNS: Final = ("volume", "index", "disk", "site", "trash", "policy", "why")

audit_app = typer.Typer(help="What an auditor is shown.", no_args_is_help=True)


@audit_app.command("list")
@asks
def acts(
    store: Store,
    since: Annotated[str, typer.Option(help="A moment, as 2026-11-22T08:00:00Z.", show_default=False)] = "",
    who: Annotated[str, typer.Option(help="A user's name, or operator.", show_default=False)] = "",
    what: Annotated[str, typer.Option(help="A part of action or target.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(help="At most so many, the newest.", min=1)] = 100,
) -> None:
    """Administrative acts, newest first: who did what, when, from where, and what became of it."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None and len(found) < limit:
        asked = {"since": since, "who": who, "what": what, "cursor": cursor, "limit": min(limit, PAGE)}
        page = store.get("/api/v1/audit?" + urlencode({name: one for name, one in asked.items() if one}))
        found += page["items"]
        cursor = page["next"]
    columns = ("sequence", "at", "who", "action", "target", "outcome", "source")
    store.show(found[:limit], *columns)


@audit_app.command("verify")
@asks
def verify(
    store: Store,
    anchor: Annotated[
        str, typer.Option(help="What an earlier verification printed, kept elsewhere.", show_default=False)
    ] = "",
) -> None:
    """Whether the log of administrative acts is what was written: nothing edited, removed, moved, cut off.

    Prints an anchor: keep it outside the store, and give it to the next verification. Ends with 4 if
    something is wrong."""
    upto = ""
    while True:
        asked = urlencode({name: one for name, one in (("after", upto), ("anchor", anchor)) if one})
        found = store.get(f"/api/v1/audit/verify?{asked}")
        upto = found["upto"]
        if found["finding"]:
            store.show([found], "finding", "records", "upto")
            raise SystemExit(REFUSED)
        if found["finished"]:
            break
    store.tell(f"{found['records']} records, nothing wrong. Anchor to keep: {upto}", found)


@audit_app.command("residency")
@asks
def residency(
    store: Store,
    bucket: Annotated[
        str, typer.Option(help="Only the volumes with bytes of this bucket, held to its policy.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="The whole document, every volume and file, as JSON.")
    ] = False,
) -> None:
    """Prove where bytes lie: every disk is asked for every file, and each is held against its policy.

    Ends with 0 if everything lies where it may, 3 if that cannot be proven, 4 if something does not."""
    found = _taken(store, bucket)
    if as_json:
        _write(found, _rows(store))
    else:
        _show(store, found)
    raise SystemExit(CODES.get(found["verdict"], FAILURE))


def _taken(store: Store, bucket: str) -> dict[str, Any]:
    """Take the inventory: its summary."""
    path = "/api/v1/audit/residency"
    found: dict[str, Any] = store.post(path + (f"?bucket={quoted(bucket)}" if bucket else ""), {})
    return until_done(store, path, found)


def _rows(store: Store) -> Iterator[dict[str, Any]]:
    after: int | None = 0
    while after is not None:
        page = store.get(f"/api/v1/audit/residency/volumes?after={after}")
        yield from page["volumes"]
        after = page["next"]


def _write(found: dict[str, Any], rows: Iterator[dict[str, Any]]) -> None:
    """One JSON document; a volume a line, so that it need not be held in memory."""
    print(json.dumps(found, indent=2)[:-2] + ',\n  "volumes": [', end="")
    before = "\n    "
    for row in rows:
        print(before + json.dumps(row), end="")
        before = ",\n    "
    print("\n  ]\n}")


def _show(store: Store, found: dict[str, Any]) -> None:
    facts = {
        "verdict": found["verdict"],
        **{f"because ({at})": words for at, words in enumerate(found["reasons"], 1)},
        "began": found["began"],
        "ended": found["ended"],
        "cluster": found["cluster"],
        "layout": found["layout_version"],
    }
    if found["bucket"]:
        allowed = ", ".join(found["sites"]) or "every site"
        facts |= {"bucket": found["bucket"], "policy": found["policy"] or "default", "allowed": allowed}
        if found["metadata_elsewhere"]:
            sites = ", ".join(site or "(no site)" for site in found["metadata_elsewhere"])
            facts["verdict"] += (
                f": its bytes. Keys and names of all buckets lie at {sites} as well (meta.sites)"
            )
    facts |= found["counts"]
    facts["metadata allowed"] = ", ".join(found["metadata_sites"]) or "every site"
    facts["copies of metadata"] = " ".join(f"volume {volume}" for volume in found["metadata_copies"])
    store.show([{"what": what, "value": value} for what, value in facts.items()], "what", "value")
    store.show(_by_site(found), "site", "disks", "unreachable", "files", "trash", "bytes", "metadata_files")
    if found["replicas"]:
        print("\nreplicas in other stores:")
        store.show(found["replicas"], "bucket", "endpoint", "target", "site", "sites", "allowed")
    for kind in ("forbidden", "unknown", "elsewhere"):
        if found[kind]:
            print(f"\n{kind}:")
            store.show(found[kind], *FINDING_COLUMNS)
    away = [place for place in found["places"] if place["unreachable"]]
    if away:
        print("\nunreachable:")
        store.show(away, "disk", "site", "node", "unreachable")
    for note in found["notes"]:
        print(note, file=sys.stderr)


def _by_site(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What lies at each site."""
    sites: dict[str, dict[str, Any]] = {}
    for place in found["places"]:
        row = sites.setdefault(
            place["site"],
            dict.fromkeys(("disks", "unreachable", "files", "trash", "bytes", "metadata_files"), 0),
        )
        row["disks"] += 1
        row["unreachable"] += bool(place["unreachable"])
        for name in ("files", "trash", "bytes"):
            row[name] += place[name]
    for file in found["metadata"]:
        sites[file["site"]]["metadata_files"] += 1
    return [{"site": site or "(none)", **row} for site, row in sorted(sites.items())]
