"""What the commands have in common: the store they are about, and the form of their answers.

`asks` is for commands to a running store: it adds the options that they share, and calls them with a `Store`.
`stopped` is for commands that open the disks themselves.
"""

import functools
import inspect
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Concatenate, Final
from urllib.parse import quote, urlencode

import typer

from objstore.cli.client import AdminClient, AdminOption, ConfigOption, DataOption, settings
from objstore.cli.output import OK, REFUSED, Format, OutputOption, fail, harmless, show
from objstore.cli.starting import explained
from objstore.config import Loaded

Facts = dict[str, Any]
PAGE: Final = 500  # Rows asked for at once.
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be sent to the store, and send nothing.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask: it is meant.")]


class Store(AdminClient):
    """A running store, as a command asks it and shows what it says."""

    def __init__(
        self,
        data: Path | None,
        config: Path | None,
        admin: str | None,
        form: Format | None,
        *,
        dry_run: bool = False,
    ) -> None:
        super().__init__(data, config, admin)
        self._form = form
        self._dry_run = dry_run

    def listed(self, path: str, **query: object) -> list[Facts]:
        """All rows of a list of the API, page after page; a field of the query that is empty is left out."""
        rows: list[Facts] = []
        cursor: str | None = ""
        while cursor is not None:
            given = {"limit": PAGE, **query, "cursor": cursor}
            page = self.get(f"{path}?{urlencode({name: one for name, one in given.items() if one})}")
            rows += page["items"]
            cursor = page["next"]
        return rows

    def change(self, method: str, path: str, content: object = None) -> Any:
        """Carry a change out, or show what would be sent and end the command (--dry-run).

        A POST has an Idempotency-Key of its own: where its answer is lost it is sent once more, and carried
        out once.
        """
        if self._dry_run:
            asked = {"method": method, "path": path, "body": content}
            show([asked], list(asked), self._form or Format.JSON)
            raise SystemExit(OK)
        key = secrets.token_hex(16) if method == "POST" else ""
        return self.call(method, path, {} if content is None else content, key=key)[1]

    def confirm(self, what: str, words: str, *, yes: bool) -> None:
        """Before what cannot be undone: its name is typed, or --yes was. Ends the command otherwise."""
        if yes or self._dry_run:
            return
        if not sys.stdin.isatty():
            fail(f"not confirmed: {words} Say --yes if you mean it.", REFUSED)
        print(words, file=sys.stderr)
        if input(f"To go on, type: {what}\n> ").strip() != what:
            fail("not confirmed: nothing was done", REFUSED)

    def show_facts(self, facts: Facts) -> None:
        """One thing: a field a line for people, as it is for programs."""
        if not self.show_whole(facts):
            rows = [{"what": what, "value": value} for what, value in flat(facts)]
            show(rows, ("what", "value"), self._form)

    def show_with(self, facts: Facts, name: str, rows: Sequence[Facts], *columns: str) -> None:
        """One thing, and a list that belongs to it under `name`: two tables, but one in CSV."""
        if self.show_whole({**facts, name: rows}):
            return
        if self._form is Format.CSV:
            self.show_facts({**facts, name: list(rows)})
            return
        self.show_facts(facts)
        self.show(rows, *columns)

    def show_each(self, things: Sequence[Facts], for_people: Sequence[Facts], name: str) -> None:
        """Several things of a kind, each as `show_facts` does it.

        Args:
            for_people: the same in their order, as tables have them.
            name: the field that tells them apart.
        """
        if self.nests:
            self.show(things)
        elif self._form is Format.CSV:
            rows = [
                {name: one[name], "what": what, "value": value}
                for one in for_people
                for what, value in flat(one)
            ]
            self.show(rows, name, "what", "value")
        else:
            for one in for_people:
                self.show_facts(one)

    def show(self, rows: Sequence[Facts], *columns: str) -> None:
        """Rows in the form that was asked for."""
        show(rows, columns, self._form)

    def tell(self, line: str, facts: Facts) -> None:
        """A line for people, or, if a form was asked for, the facts behind it."""
        if self._form is None:
            print(harmless(line))
        else:
            show([facts], list(facts), self._form)

    def show_whole(self, facts: Facts) -> bool:
        """Show all of a nested answer in a form that can; whether it was shown."""
        if self.nests:
            show([facts], [], self._form)
        return self.nests

    @property
    def nests(self) -> bool:
        """Whether what was asked for is a form for programs, that has everything as it is."""
        return self._form in (Format.JSON, Format.YAML)


def flat(facts: Facts, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is nested under dotted names; lists of objects as JSON."""
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            yield f"{prefix}{name}", json.dumps(value)
        else:
            yield f"{prefix}{name}", value


def changes(command: Callable[Concatenate[Store, ...], None]) -> Callable[..., None]:
    """As `asks`, with --dry-run: for commands that change something by `Store.change`."""
    return _command(command, {"dry_run": (DryRunOption, False)})


def asks(command: Callable[Concatenate[Store, ...], None]) -> Callable[..., None]:
    """Make a command of a function of a `Store`: its own options, then --data, --config, --admin and -o."""
    return _command(command, {})


def _command(
    command: Callable[Concatenate[Store, ...], None], more: dict[str, tuple[Any, Any]]
) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapper(
        *,
        data: Path | None,
        config: Path | None,
        admin: str | None,
        form: Format | None,
        dry_run: bool = False,
        **options: Any,
    ) -> None:
        command(Store(data, config, admin, form, dry_run=dry_run), **options)

    # Typer reads a command's options from its signature and its annotations.
    own = list(inspect.signature(command).parameters.values())[1:]
    common = {"data": DataOption, "config": ConfigOption, "admin": AdminOption, "form": OutputOption}
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=default, annotation=option)
        for name, (option, default) in {
            **more,
            **{name: (option, None) for name, option in common.items()},
        }.items()
    ]
    wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return wrapper


def quoted(text: str) -> str:
    """A name as one part of a path."""
    return quote(text, safe="")


@contextmanager
def stopped(data: Path | None, config: Path | None) -> Iterator[Loaded]:
    """The configuration of a store that does not serve; whatever is wrong with it ends the command."""
    from objstore.errors import StoreError

    with explained(StoreError, OSError):
        yield settings(data, config)
