"""`objstore config`: what is set, and where from."""

from typing import Annotated, Any

import typer

from objstore.cli.client import ConfigOption, config_file, settings
from objstore.cli.output import OutputOption, show
from objstore.config import defaults_text

config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Read the file and the environment, and say what is wrong."""
    settings(None, config)
    print(f"{config_file(config) or 'defaults and environment'}: ok")


@config_app.command("show")
def config_show(
    config: ConfigOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also show where each value comes from.")] = False,
    form: OutputOption = None,
) -> None:
    """Every option with the value in force."""
    loaded = settings(None, config)
    rows: list[dict[str, Any]] = [
        {"option": name, "value": loaded.shown(name), "origin": where}
        for name, where in loaded.origins.items()
    ]
    show(rows, ["option", "value", *(["origin"] if origin else [])], form)


@config_app.command("defaults")
def config_defaults() -> None:
    """The commented file with every option and its default."""
    print(defaults_text(), end="")
