"""What the commands have in common: the store they are about, and the form of their answers.

`asks` is for commands to a running store: it adds the options that they share, and calls them with a `Store`.
`stopped` is for commands that open the disks themselves.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate
from urllib.parse import quote

from objstore.cli.client import AdminClient, AdminOption, ConfigOption, DataOption, settings
from objstore.cli.output import Format, OutputOption, harmless, show
from objstore.cli.starting import explained
from objstore.config import Loaded

Facts = dict[str, Any]


class Store(AdminClient):
    """A running store, as a command asks it and shows what it says."""

    def __init__(
        self, data: Path | None, config: Path | None, admin: str | None, form: Format | None
    ) -> None:
        super().__init__(data, config, admin)
        self._form = form

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
        nests = self._form in (Format.JSON, Format.YAML)
        if nests:
            show([facts], [], self._form)
        return nests


def asks(command: Callable[Concatenate[Store, ...], None]) -> Callable[..., None]:
    """Make a command of a function of a `Store`: its own options, then --data, --config, --admin and -o."""

    @functools.wraps(command)
    def wrapper(
        *, data: Path | None, config: Path | None, admin: str | None, form: Format | None, **options: Any
    ) -> None:
        command(Store(data, config, admin, form), **options)

    # Typer reads a command's options from its signature and its annotations.
    own = list(inspect.signature(command).parameters.values())[1:]
    common = {"data": DataOption, "config": ConfigOption, "admin": AdminOption, "form": OutputOption}
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=None, annotation=option) for name, option in common.items()
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
