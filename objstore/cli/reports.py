"""`objstore report`: what operators and resellers ask for at a month's end, as a table or as a file."""

import http.client
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from objstore.cli.client import Refused
from objstore.cli.renting import report_app as report_app  # With the commands of this module.
from objstore.cli.store import Store, asks, quoted
from objstore.config import ConfigError

MonthOption = Annotated[str, typer.Option("--month", help="As 2026-10.")]
OneTenant = Annotated[str, typer.Option("--tenant", help="Of this one only.", show_default=False)]
OneSeller = Annotated[str, typer.Option("--seller", help="Of this one's documents only.", show_default=False)]
PIECE: Final = 1 << 20  # Bytes of a file that are read at once.


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
    asked = f"month={quoted(month)}&tenant={quoted(tenant)}&seller={quoted(seller)}&format={form}"
    count = _fetched(store, f"/api/v1/reports/focus?{asked}", out)
    store.tell(f"{out}: {count} bytes", {"file": str(out), "bytes": count})


def _fetched(store: Store, path: str, to: Path) -> int:
    """Write a file as it comes, under its name once it is whole; how many bytes.

    Raises: Unreachable (also where it was cut off), Refused, ConfigError.
    """
    part = to.with_name(f"{to.name}.part")
    connection = store.connect()
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {store.token()}"})
        response = connection.getresponse()
        if response.status >= 400:
            raise Refused(response.status, _detail(response))
        count = 0
        try:
            with part.open("wb") as file:
                while piece := response.read(PIECE):
                    count += file.write(piece)
                    _progress(count)
            os.replace(part, to)
        except (http.client.HTTPException, ConnectionError, TimeoutError):
            part.unlink(missing_ok=True)
            raise
        except OSError as failure:
            raise ConfigError(f"{to}: {failure}") from None
        return count
    except (OSError, http.client.HTTPException) as failure:
        raise store.unreachable(failure) from None
    finally:
        connection.close()


def _detail(response: http.client.HTTPResponse) -> str:
    import json

    text = response.read().decode(errors="replace")
    try:
        return str(json.loads(text).get("detail", text))
    except (ValueError, AttributeError):
        return text


def _progress(count: int) -> None:
    """On a terminal, one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r{count >> 20} MiB ...", end="", file=sys.stderr, flush=True)
