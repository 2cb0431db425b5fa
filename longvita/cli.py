"""The `longvita` command: puts the commands of `longvita.commands` together.

A command is a function in a module of its own, named after its verb; it returns the exit code. It imports its work when
it is called, which keeps `--help` fast. Errors that a user can fix (UserError, missing files) end a command with one
message and exit code 2.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

import typer

from longvita.commands import chat, convert, doctor, evaluate, generate, plan, train, verify
from longvita.commands.config import show as config_show
from longvita.commands.data import convert as data_convert
from longvita.commands.data import encode, fetch, index, report, retry, view
from longvita.errors import USER_ERRORS
from longvita.processes import EXIT_REFUSED, LaunchError, is_first_on_machine

app = typer.Typer(
    help="Train, convert and run Long-VITA models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
data_app = typer.Typer(help="Fetch, convert and look at training data.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")


def _add(group: typer.Typer, command: Callable[..., int]) -> None:
    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        raise typer.Exit(command(*arguments, **options))

    group.command()(run)


COMMANDS: tuple[Callable[..., int], ...] = (
    train.train,
    plan.plan,
    doctor.doctor,
    convert.convert,
    verify.verify,
    generate.generate,
    chat.chat,
    evaluate.evaluate,
)
DATA_COMMANDS: tuple[Callable[..., int], ...] = (
    encode.encode,
    data_convert.convert,
    index.index,
    retry.retry,
    report.report,
    view.view,
    fetch.fetch,
)
for _command in COMMANDS:
    _add(app, _command)
_add(config_app, config_show.show)
for _command in DATA_COMMANDS:
    _add(data_app, _command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, of this process when `arguments` is absent, and end the process."""
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
