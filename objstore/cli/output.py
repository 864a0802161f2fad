"""How answers look: a table for people, tab-separated lines for pipes, JSON, YAML or CSV when asked for."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from objstore.config import ConfigError
from objstore.rental.names import as_cell

if TYPE_CHECKING:
    from rich.text import Text

OK, FAILURE, USAGE, DEGRADED, REFUSED = 0, 1, 2, 3, 4  # Exit codes.
WIDTH_MAX = 10_000  # Of a terminal.
SIZE_COLUMNS = frozenset(("free", "total", "bytes", "size"))  # Of disks: in powers of 1024.
SOLD_COLUMNS = frozenset(
    (
        "capacity", "least", "most", "leased", "bytes_max", "bytes_soft", "bytes_per_s", "overage_max",
        "raw", "spare", "usable", "sold_guaranteed", "sold_best_effort", "used_logical", "used_physical",
        "reserved", "sellable", "oversold",
    )
)  # fmt: skip
"""What is sold, and what limits are: in powers of 1000, as it is typed."""
NAME_COLUMNS = frozenset(("what", "id", "name", "tenant", "user", "bucket", "project", "pool"))


class Format(StrEnum):
    TABLE = "table"
    TSV = "tsv"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"


OutputOption = Annotated[
    Format | None,
    typer.Option("-o", "--output", help="Default: a table on a terminal, TSV in a pipe.", show_default=False),
]


def fail(text: str, code: int = FAILURE) -> NoReturn:
    """End the command with one line for people and an exit code for programs."""
    print(f"objstore: {harmless(text)}", file=sys.stderr)
    raise SystemExit(code)


def check_writable(place: Path) -> None:
    """Whether a file can be written there: asked before the work whose result it is to hold.

    Raises: ConfigError.
    """
    if place.is_dir():
        raise ConfigError(f"{place} is a directory: name a file")
    if not place.parent.is_dir():
        raise ConfigError(f"{place}: there is no directory {place.parent}")
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise ConfigError(f"{place} is not yours to write")


def write_file(place: Path, content: bytes) -> None:
    """Raises: ConfigError."""
    try:
        place.write_bytes(content)
    except OSError as failure:
        raise ConfigError(f"{place}: {failure}") from None


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], output: Format | None) -> None:
    """Print the rows; `columns` orders (and for tables chooses) the fields. JSON and YAML show all."""
    if output is None:
        output = Format.TABLE if sys.stdout.isatty() else Format.TSV
    if output is Format.JSON:
        print(json.dumps(list(rows), indent=2, default=str))
    elif output is Format.YAML:
        print("\n".join(_yaml(list(rows), 0)))
    elif output is Format.TABLE:
        _table(rows, columns)
    else:
        if output is Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(columns)
            seen = harmless if sys.stdout.isatty() else str  # Programs are given what there is.
            writer.writerows([seen(as_cell(_cell(row.get(column)))) for column in columns] for row in rows)
        else:
            print("\t".join(columns))
            for row in rows:
                cells = (_cell(row.get(column)) for column in columns)
                print("\t".join(harmless(cell.replace("\t", " ").replace("\n", " ")) for cell in cells))


def harmless(text: str) -> str:
    """The same, with escapes for what a terminal might obey (new lines excepted): a key may hold any
    character, and its tenant chose it."""
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        if any(isinstance(one, dict) for one in value):
            return json.dumps(value, default=str)
        parts = [str(one) for one in value]
        return ("; " if any(" " in one for one in parts) else " ").join(parts)
    return str(value)


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """A table; where the terminal is too narrow for it a block for each row. What is copied (ids, moments,
    sizes) is never broken: only cells of several words are."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    if not rows:
        print("none")
        return
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="" if console.no_color else None)
    for column in columns:
        numeric = all(
            isinstance(row.get(column), (int, float)) and not isinstance(row.get(column), bool)
            for row in rows
        )
        whole = column != "value" and all(_for_people(row, column).count(" ") <= 1 for row in rows)
        table.add_column(
            column.replace("_", " "), justify="right" if numeric else "left", overflow="fold", no_wrap=whole
        )
    for row in rows:
        table.add_row(*(_styled(row, column, color=not console.no_color) for column in columns))
    needed = Measurement.get(console, console.options.update(max_width=WIDTH_MAX), table).minimum
    if needed <= console.width or "value" in columns:
        console.print(table)
        return
    for row in rows:
        block = Table.grid(padding=(0, 2))
        for column in columns:
            block.add_row(column.replace("_", " "), _styled(row, column, color=not console.no_color))
        console.print(block)
        console.print()


def _styled(row: dict[str, Any], column: str, *, color: bool) -> "Text":
    from rich.text import Text

    style = _style(row.get(column)) if color and column not in NAME_COLUMNS else ""
    return Text(_for_people(row, column), style=style, overflow="fold")


def _for_people(row: dict[str, Any], column: str) -> str:
    """Sizes in units, what is nested in words; tables only, since programs read the other forms."""
    value = row.get(column)
    name = str(row["what"]).rpartition(".")[2] if column == "value" and "what" in row else column
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if name in SOLD_COLUMNS:
            return sold_text(value)
        if name in SIZE_COLUMNS or (column == "value" and name.endswith("_bytes")):
            return size_text(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, dict) for one in value):
        return harmless("; ".join(", ".join(f"{what} {_cell(one[what])}" for what in one) for one in value))
    return harmless(_cell(value))


def _style(value: Any) -> str:
    if value in ("problem", "failed", "missing", "foreign"):
        return "bold red"
    if value in ("warning", "suspect", "full", "read-only"):
        return "yellow"
    return "green" if value in ("ok", "healthy") else ""


def _yaml(value: Any, depth: int) -> list[str]:
    """JSON scalars in YAML's block form: every JSON string is a YAML string."""
    pad = "  " * depth
    if isinstance(value, dict) and value:
        lines = []
        for key, inner in value.items():
            if isinstance(inner, (dict, list)) and inner:
                lines += [f"{pad}{key}:", *_yaml(inner, depth + 1)]
            else:
                lines.append(f"{pad}{key}: {json.dumps(inner, default=str)}")
        return lines
    if isinstance(value, list) and value:
        lines = []
        for inner in value:
            first, *rest = (
                _yaml(inner, depth + 1) if isinstance(inner, (dict, list)) and inner else [json.dumps(inner)]
            )
            lines += [f"{pad}- {first.strip()}", *rest]
        return lines
    return [pad + json.dumps(value, default=str)]


def size_text(size: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def sold_text(size: float) -> str:
    """Bytes as they are sold and limits are typed, rounded to hundredths: 1.5 TB. For people only."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 1_000 or unit == "PB":
            break
        size /= 1_000
    return f"{size:.2f}".rstrip("0").rstrip(".") + f" {unit}"
