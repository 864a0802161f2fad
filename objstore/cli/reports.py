"""`objstore report`: what operators and resellers ask for at a month's end, as a table or as a file."""

import http.client
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from objstore.cli.client import LONG_SECONDS, Refused
from objstore.cli.output import check_writable
from objstore.cli.progress import Steps
from objstore.cli.renting import amount
from objstore.cli.renting import report_app as report_app  # With the commands of this module.
from objstore.cli.store import Store, asks, quoted
from objstore.config import ConfigError

MonthOption = Annotated[str, typer.Option("--month", help="As 2026-10.")]
OneTenant = Annotated[str, typer.Option("--tenant", help="Of this one only.", show_default=False)]
OneSeller = Annotated[str, typer.Option("--seller", help="Of this one's documents only.", show_default=False)]
PIECE: Final = 1 << 20  # Bytes of a file that are read at once.
HEAD_SIZE_MAX: Final = 1_000  # Bytes of the line before a piece.


@report_app.command("focus")
@asks
def report_focus(
    store: Store,
    month: MonthOption,
    out: Annotated[Path, typer.Option(help="The file to write: .csv or .parquet.")],
    tenant: OneTenant = "",
    seller: OneSeller = "",
) -> None:
    """A month's final invoices and credit notes as FOCUS 1.2, for tools that read the costs of clouds.

    Without a tenant of everybody; with a reseller's token of itself and its customers."""
    form = out.suffix.removeprefix(".")
    if form not in ("csv", "parquet"):
        raise ConfigError(f"{out}: a file is .csv or .parquet")
    check_writable(out)
    asked = (
        f"month={quoted(month)}&tenant={quoted(tenant)}&seller={quoted(seller)}&format={form}&progress=true"
    )
    count = _fetched(store, f"/api/v1/reports/focus?{asked}", out)
    store.tell(f"{out}: {count} bytes", {"file": str(out), "bytes": count})


def _fetched(store: Store, path: str, to: Path) -> int:
    """Write a file as it comes, under its name once it is whole; how many bytes.

    Raises: Unreachable (also where it was cut off), Refused, ConfigError.
    """
    part = to.with_name(f"{to.name}.part")
    connection = store.connect(LONG_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {store.token()}"})
        response = connection.getresponse()
        if response.status >= 400:
            raise Refused(response.status, _detail(response))
        count = 0
        try:
            with part.open("wb") as file, Steps("writing", "customers", logged=False) as progress:
                finished = False
                while not finished:
                    head = _head(response)
                    for piece in _pieces(response, head["bytes"]):
                        count += file.write(piece)
                    progress.reached(head["done"], head["customers"])
                    finished = head["finished"]
            os.replace(part, to)
        except (http.client.HTTPException, ConnectionError, TimeoutError):
            raise
        except OSError as failure:
            raise ConfigError(f"{to}: {failure}") from None
        finally:
            part.unlink(missing_ok=True)  # Also where it was cut off here: a full disk, Ctrl-C.
        return count
    except (OSError, http.client.HTTPException) as failure:
        raise store.unreachable(failure) from None
    finally:
        connection.close()


def _head(response: http.client.HTTPResponse) -> dict[str, Any]:
    """How far the file is, before a piece of it. Raises: HTTPException."""
    line = response.readline(HEAD_SIZE_MAX)
    if not line.endswith(b"\n"):
        raise http.client.IncompleteRead(line)
    found: dict[str, Any] = json.loads(line)
    return found


def _pieces(response: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
    """So many bytes. Raises: IncompleteRead."""
    while size:
        piece = response.read(min(size, PIECE))
        if not piece:
            raise http.client.IncompleteRead(b"", size)
        size -= len(piece)
        yield piece


def _detail(response: http.client.HTTPResponse) -> str:
    text = response.read().decode(errors="replace")
    try:
        return str(json.loads(text).get("detail", text))
    except (ValueError, AttributeError):
        return text


By = Annotated[str, typer.Option("--by", help="tenant; reseller: with all under it; all: one sum.")]
Rows = list[dict[str, Any]]


@report_app.command("revenue")
@asks
def report_revenue(
    store: Store,
    month: Annotated[str, typer.Option(help="As 2026-10.  [the one that runs]", show_default=False)] = "",
    until: Annotated[str, typer.Option(help="The last of several months.", show_default=False)] = "",
    by: By = "tenant",
) -> None:
    """What months were invoiced for, credit notes taken off; what came in, and what is open."""
    rows = store.listed("/api/v1/reports/revenue", month=month, until=until)
    amounts = ("net", "tax", "total", "credited", "received", "open")
    found = summed(rows, by, ("month", "currency"), amounts)
    store.show(_in_units(found, amounts), "tenant", "month", "currency", *amounts)


@report_app.command("aging")
@asks
def report_aging(store: Store, by: By = "tenant") -> None:
    """What is owed just now, by how many days it is due."""
    rows = store.listed("/api/v1/reports/aging")
    amounts = ("not_due", "due_30", "due_60", "due_90", "due_longer", "open")
    found = summed(rows, by, ("currency",), (*amounts, "invoices"))
    store.show(_in_units(found, amounts), "tenant", "currency", *amounts, "invoices")


@report_app.command("usage")
@asks
def report_usage(
    store: Store,
    month: Annotated[str, typer.Option(help="As 2026-10.  [the one that runs]", show_default=False)] = "",
    by: By = "tenant",
) -> None:
    """What was used in a month, as far as it is sealed: byte-seconds, requests, bytes sent."""
    rows = store.listed("/api/v1/reports/usage", month=month)
    counts = (
        "stored_byte_seconds", "early_delete_byte_seconds", "requests_a", "requests_b",
        "sent_internet_bytes", "sent_internal_bytes", "sent_replication_bytes",
    )  # fmt: skip
    store.show(summed(rows, by, ("month",), counts), "tenant", "month", *counts)


def summed(rows: Rows, by: str, same: Sequence[str], counts: Sequence[str]) -> Rows:
    """A report's rows by tenant, by whoever stands right under the caller, or all together.

    Args:
        same: fields that rows of one sum have alike.
        counts: what is summed.

    Raises: ConfigError.
    """
    if by not in ("tenant", "reseller", "all"):
        raise ConfigError(f"--by {by}: it is tenant, reseller or all")
    if by == "tenant":
        return rows
    sums: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        who = "" if by == "all" else [*row["resellers"], row["tenant"]][0]
        place = (who, *(row[name] for name in same))
        there = sums.setdefault(
            place, {"tenant": who, **{name: row[name] for name in same}, **dict.fromkeys(counts, 0)}
        )
        for name in counts:
            there[name] += row[name]
    return [sums[place] for place in sorted(sums)]


def _in_units(rows: Rows, amounts: Sequence[str]) -> Rows:
    """Amounts as decimals of their currency: 93242.45."""
    return [
        {**row, **{name: amount(row[name], row["currency"]).partition(" ")[0] for name in amounts}}
        for row in rows
    ]
