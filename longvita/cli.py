"""The `longvita` command. Thin: each command imports its work when it is called and hands its arguments on.

A new command is a function here of a few lines:

    @app.command()
    def train(config: ConfigFile, overrides: Overrides = None) -> None:
        '''Train one stage.'''
        from longvita.training import command

        raise typer.Exit(command.train(load(config, overrides, purpose="training")))

Errors that a user can mend (longvita.errors.UserError, missing files) end the command with one clean message and exit
code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from longvita.errors import UserError

USER_ERRORS: tuple[type[Exception], ...] = (UserError, FileNotFoundError, NotADirectoryError, PermissionError)
USER_ERROR_CODE = 2

ConfigFile = Annotated[Path, typer.Argument(help="YAML file", metavar="CONFIG", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="section.field=value, laid on the file", metavar="[OVERRIDES]...", show_default=False),
]

app = typer.Typer(
    help="Train, convert and run Long-VITA models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("show")
def config_show(
    config: ConfigFile,
    overrides: Overrides = None,
    docs: Annotated[bool, typer.Option("--docs", help="Print what each field means, above it.")] = False,
) -> None:
    """Print the resolved configuration and where each value comes from."""
    from rich.console import Console

    from longvita.config import load_with_sources
    from longvita.config.show import show

    show(load_with_sources(config, overrides), Console(), docs)


@app.command()
def doctor(
    platform: Annotated[str, typer.Option(help="Platform to look at; auto takes the one that is there.")] = "auto",
) -> None:
    """Show the device, versions, patches in place and what is missing."""
    from longvita.doctor import run

    raise typer.Exit(run(platform))


def main() -> None:
    """Run the command line; what the console script and `python -m longvita` call."""
    try:
        app()
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


if __name__ == "__main__":
    main()
