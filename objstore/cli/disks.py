"""`objstore disk` and `objstore volume`: what the bytes lie on, and what is damaged."""

import os
import sys
import time
from typing import Annotated, Any, Final

import typer

from objstore.cli.client import Refused
from objstore.cli.emptying import POLL_SECONDS, Left, wait_empty
from objstore.cli.output import DEGRADED, OK, REFUSED, fail
from objstore.cli.store import Store, asks

DISK_COLUMNS: Final = ("disk", "path", "state", "free", "total", "files", "node", "reason")
VOLUME_COLUMNS: Final = (
    "volume",
    "state",
    "code",
    "bytes",
    "damaged",
    "away",
    "moving",
    "spare",
    "lost",
    "reason",
)

disk_app = typer.Typer(help="The store's disks.", no_args_is_help=True)
volume_app = typer.Typer(help="Volumes: what is damaged, and what is lost.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(help="The disk's number.")]
NewPath = Annotated[str, typer.Argument(help="The new disk's directory: absent or empty.")]
Wait = Annotated[
    float, typer.Option("--wait", help="Seconds to wait for it to be empty, showing progress.", min=0)
]


def _tell(store: Store, disk: dict[str, Any]) -> None:
    store.show([disk], *DISK_COLUMNS)
    for note in disk.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)


@disk_app.command("list")
@asks
def disk_list(store: Store) -> None:
    """Every disk: state, space, fragment files, and why."""
    store.show(store.get("/api/v1/disks")["disks"], *DISK_COLUMNS)


@disk_app.command("verify")
@asks
def disk_verify(store: Store, number: Number) -> None:
    """Write, sync and read back a probe; a suspect disk that passes takes writes again."""
    disk = store.post(f"/api/v1/disks/{number}/verify")
    store.show([disk], *DISK_COLUMNS)
    raise SystemExit(OK if disk["state"] == "healthy" else DEGRADED)


@disk_app.command("add")
@asks
def disk_add(store: Store, path: NewPath) -> None:
    """Make a disk of PATH and use it at once. A path that holds anything is refused."""
    _tell(store, store.post("/api/v1/disks", {"path": os.path.abspath(path)}))


@disk_app.command("replace")
@asks
def disk_replace(store: Store, number: Number, path: NewPath, wait: Wait = 0) -> None:
    """Add PATH as a new disk and move off disk NUMBER whatever counts on it.

    Of a storage node: PATH is a disk that the node has brought already (objstore node --disk PATH). The old
    disk may be lost already: then its fragments are rebuilt from the others. Its number is never used again.
    When it is empty: objstore disk remove NUMBER."""
    _tell(store, store.post(f"/api/v1/disks/{number}/replace", {"path": os.path.abspath(path)}))
    _wait_empty(store, number, wait)


@disk_app.command("drain")
@asks
def disk_drain(
    store: Store,
    number: Number,
    wait: Wait = 0,
    undo: Annotated[bool, typer.Option("--undo", help="Use it again; what has moved stays moved.")] = False,
) -> None:
    """Empty a disk: no new volumes on it, and its files move to others. Reads go on."""
    _tell(store, store.post(f"/api/v1/disks/{number}/{'undrain' if undo else 'drain'}"))
    if not undo:
        _wait_empty(store, number, wait)


def _wait_empty(store: Store, number: int, seconds: float) -> None:
    def left() -> Left:
        disks = store.get("/api/v1/disks")["disks"]
        disk = next((each for each in disks if each["disk"] == number), {"files": 0, "bytes": 0})
        return Left(disk["files"], disk["bytes"])

    if seconds:
        wait_empty(f"disk {number}", left, seconds, "objstore disk list")


@disk_app.command("remove")
@asks
def disk_remove(store: Store, number: Number) -> None:
    """Take an empty disk out of the store for good.

    The store's processes keep its directory open until they are restarted: restart before you unmount it."""
    facts = store.post(f"/api/v1/disks/{number}/remove")
    store.tell(f"disk {number} is removed; restart the store before you unmount it", facts)


@disk_app.command("forget")
@asks
def disk_forget(
    store: Store,
    number: Number,
    confirm: Annotated[
        str, typer.Option("--confirm", help='"forget disk N", instead of typing it.', show_default=False)
    ] = "",
) -> None:
    """Give a lost disk up for good, although it might come back.

    Repair then rebuilds every stripe that still has enough fragments; the others are lost, and
    objstore volume check names the objects in them."""
    prospect = store.get(f"/api/v1/disks/{number}/forget")
    print(
        f"Disk {number} is {prospect['state']}. {prospect['volumes']} volumes have a fragment file on it;"
        f" {prospect['volumes_that_lose_data']} of them have too few others that can be read now, and lose"
        " data for good unless those come back.\n"
        "What it holds will not be used again, even if it comes back.",
        file=sys.stderr,
    )
    wanted = prospect["confirm"]
    if not confirm:
        if not sys.stdin.isatty():
            fail(f'not confirmed: --confirm "{wanted}"', REFUSED)
        confirm = input(f"To go on, type: {wanted}\n> ").strip()
    try:
        facts = store.post(f"/api/v1/disks/{number}/forget", {"confirm": confirm or "nothing"})
    except Refused as refusal:
        fail(str(refusal), REFUSED)
    store.tell(f"disk {number} is given up; repair goes on: objstore volume list --damaged", facts)


# --- volumes --------------------------------------------------------------------------------------


@volume_app.command("list")
@asks
def volume_list(
    store: Store,
    damaged: Annotated[bool, typer.Option("--damaged", help="Only those that are not whole.")] = False,
) -> None:
    """Every volume, or those with files that are damaged, to be moved, or lost."""
    found = store.get("/api/v1/volumes" + ("?damaged" if damaged else ""))["volumes"]
    store.show(found, *VOLUME_COLUMNS)


@volume_app.command("show")
@asks
def volume_show(store: Store, volume: Annotated[int, typer.Argument(help="The volume's number.")]) -> None:
    """A volume: what it promises, and where its files are."""
    found = store.get(f"/api/v1/volumes/{volume}")
    if store.show_whole(found):
        return
    store.show([{"what": what, "value": value} for what, value in found["facts"].items()], "what", "value")
    store.show(found["files"], "file", "kind", "disk", "state", "found", "damage")


@volume_app.command("check")
@asks
def volume_check(
    store: Store,
    volumes: Annotated[list[int] | None, typer.Argument(help="Numbers; none: the damaged ones.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Only show the last one, or where it is.")] = False,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for its end.", min=0)] = 600,
) -> None:
    """Read whole volumes, and name every object of which something is lost.

    Exit code 3: something is lost, or cannot be read while a disk is away."""
    if not status:
        wanted = ",".join(map(str, volumes or ()))
        store.post("/api/v1/volumes/check" + (f"?volumes={wanted}" if wanted else ""))
    limit = time.monotonic() + wait
    while (found := store.get("/api/v1/volumes/check"))["state"] in ("reading", "searching"):
        print(f"{found['state']}: {found['checked']} of {found['volumes']} volumes read", file=sys.stderr)
        if status or time.monotonic() >= limit:
            break
        time.sleep(min(POLL_SECONDS, max(0.0, limit - time.monotonic())))
    if not store.show_whole(found):
        facts = ("state", "volumes", "checked", "damaged_stripes", "waiting_stripes", "lost_stripes")
        store.show([found], *facts, "lost_count", "failure")
        store.show(found["lost"], "bucket", "key", "what", "volume", "bytes", "waiting")
    bad = found["lost_count"] or found["waiting_stripes"] or found["state"] != "done"
    raise SystemExit(DEGRADED if bad else OK)
