"""The `longvita` command: puts the commands of `longvita.commands` together.

A command is a function in a module of its own, named after its verb; it returns the exit code. It imports its work when
it is called, which keeps `--help` fast. Errors that a user can fix (UserError, missing files) end a command with one
message and exit code 2.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any

import typer

import longvita
from longvita.commands import chat, convert, doctor, evaluate, generate, plan, train, verify
from longvita.commands.config import show
from longvita.commands.data import convert as data_convert
from longvita.commands.data import encode, fetch, index, report, retry, view
from longvita.errors import USER_ERRORS
from longvita.processes import EXIT_REFUSED, LaunchError, is_first_on_machine, leave_devices_to_platforms

app = typer.Typer(
    help="Train, convert and run Long-VITA models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
data_app = typer.Typer(help="Fetch, convert and look at training data.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"longvita {longvita.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def _add(group: typer.Typer, module: ModuleType) -> None:
    """Add a module's command. A parameter that is a dataclass stands for its fields, each an option of its own."""
    command = getattr(module, module.__name__.rpartition(".")[2])
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    sections: dict[str, Any] = {
        one.name: one.annotation for one in parameters if dataclasses.is_dataclass(one.annotation)
    }

    @functools.wraps(command)
    def run(**values: object) -> None:
        for name, section in sections.items():
            values[name] = section(**{field.name: values.pop(field.name) for field in dataclasses.fields(section)})
        raise typer.Exit(command(**values))

    shown: list[inspect.Parameter] = []
    for one in parameters:
        section = sections.get(one.name)
        shown += inspect.signature(section, eval_str=True).parameters.values() if section else [one]
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in shown]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    group.command()(run)


for _module in (train, plan, doctor, convert, verify, generate, chat, evaluate):
    _add(app, _module)
_add(config_app, show)
for _module in (encode, data_convert, index, retry, report, view, fetch):
    _add(data_app, _module)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, of this process when `arguments` is absent, and end the process."""
    leave_devices_to_platforms()
    try:
        app(arguments)
    except USER_ERRORS as error:
        if _prints_errors():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


def _prints_errors() -> bool:
    """Whether this process prints what every process of its machine finds before the ranks start."""
    try:
        return is_first_on_machine()
    except LaunchError:  # the launcher's variables are incomplete, which is the error to print
        return True


if __name__ == "__main__":
    main()
