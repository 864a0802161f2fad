"""`objstore status`, `doctor`, `health`, `upkeep`, and `token`: how the store is."""

from typing import Annotated
from urllib.parse import urlencode

import typer

from objstore.cli.client import AdminClient, ConfigOption, DataOption, Refused
from objstore.cli.disks import DISK_COLUMNS
from objstore.cli.output import DEGRADED, FAILURE, OK, USAGE, fail
from objstore.cli.store import Store, asks


@asks
def status(store: Store) -> None:
    """The store on one screen. Exit code 3: it serves, but something is not as it should be."""
    found = store.get("/api/v1/status")
    if not store.show_whole(found):
        facts = [{"what": what, "value": value} for what, value in found["facts"].items()]
        store.show(facts, "what", "value")
        store.show(found["processes"], "process", "pid", "ready", "restarts")
        store.show(found["disks"], *DISK_COLUMNS)
    raise SystemExit(DEGRADED if found["degraded"] else OK)


@asks
def upkeep(store: Store) -> None:
    """What runs in the background: repair, scrub, compaction, trash."""
    found = store.get("/api/v1/upkeep")
    if not store.show_whole(found):
        services = [{"service": name, **service} for name, service in found["services"].items()]
        store.show(services, "service", "runs", "failures", "running", "last", "last_failure")


@asks
def doctor(store: Store) -> None:
    """Look for what will hurt later, and say what to do. Exit code 3: something was found."""
    findings = store.get("/api/v1/doctor")["findings"]
    store.show(findings, "check", "level", "finding", "remedy")
    raise SystemExit(DEGRADED if any(finding["level"] != "ok" for finding in findings) else OK)


@asks
def health(
    store: Store,
    ready: Annotated[bool, typer.Option("--ready", help="Ready to serve, not merely alive.")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="Anything can be written.")] = False,
    read: Annotated[bool, typer.Option("--read", help="Every volume can be read.")] = False,
) -> None:
    """Exit code 0 if the store is alive (with --ready: serves). For containers and load balancers."""
    if ready + cluster + read > 1:
        fail("--ready, --cluster and --read are three questions: ask one of them", USAGE)
    whole = "/health/cluster?read" if read else "/health/cluster"
    path = whole if cluster or read else "/health/ready" if ready else "/health/live"
    code, answer = store.call("GET", path, token=False, accept_errors=True)
    facts = answer if isinstance(answer, dict) else {"status": answer}
    store.tell(str(facts.get("status", facts)), facts)
    raise SystemExit(OK if code == 200 else FAILURE)


@asks
def safe_to_stop(
    store: Store,
    what: Annotated[
        list[str], typer.Argument(help="Machines by name or id, disks by number.", metavar="NODE|DISK...")
    ],
) -> None:
    """Whether these can stop now, all at once, without a client noticing.

    Exit code 0: every volume stays readable, writes and metadata go on. 1: they do not, and why. 2: no
    machine or disk is called so."""
    try:
        found = store.get("/api/v1/safe-to-stop?" + urlencode([("what", name) for name in what]))
    except Refused as refusal:
        if refusal.status in (400, 404):
            fail(str(refusal), USAGE)
        raise
    if not store.show_whole(found):
        named = " ".join(what)
        print(f"{named}: safe to stop now" if found["safe"] else f"{named}: not safe to stop now")
        for reason in found["reasons"]:
            print(f"  {reason}")
        for note in found["notes"]:
            print(f"  note: {note}")
    raise SystemExit(OK if found["safe"] else FAILURE)


def token(data: DataOption = None, config: ConfigOption = None) -> None:
    """Show the admin token (for Prometheus and for the command line elsewhere)."""
    print(AdminClient(data, config, None).token())
