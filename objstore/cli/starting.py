"""What the commands that start something have in common: their options, and how a failed start ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from objstore.cli.output import fail

ListenOption = Annotated[
    str | None,
    typer.Option("--listen", help="host:port of the S3 API.  [127.0.0.1:9000]", show_default=False),
]
AdminListenOption = Annotated[
    str | None,
    typer.Option("--admin-listen", help="host:port of the admin API.  [127.0.0.1:9001]", show_default=False),
]
CodecOption = Annotated[
    str | None, typer.Option("--codec", help="data+parity fragments.  [4+2]", show_default=False)
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Gateway processes.  [one per core]", show_default=False)
]


@contextmanager
def explained(*others: type[Exception]) -> Iterator[None]:
    """CannotStart, and `others` that are as clear, end the command with what is wrong and what to do."""
    from objstore.processes.cluster import CannotStart

    expected: tuple[type[Exception], ...] = (CannotStart, *others)
    try:
        yield
    except expected as failure:
        fail(str(failure))
