"""`longvita config show`: a resolved configuration as YAML, each value with a comment that names its origin."""

from __future__ import annotations

from typing import Annotated

import typer

from longvita.commands.support.options import ConfigFile, Overrides
from longvita.processes import EXIT_COMPLETE

COMMENT_COLUMN = 52


def show(
    config: ConfigFile,
    overrides: Overrides = None,
    docs: Annotated[bool, typer.Option("--docs", help="Print what each field means, above it.")] = False,
) -> int:
    """Print the resolved configuration and where each value comes from."""
    from rich.console import Console
    from rich.text import Text

    from longvita.commands.support.config_file import load_config_with_origins
    from longvita.config.show import lines

    console = Console()
    for line in lines(load_config_with_origins(config, overrides), docs):
        text = Text(line.text, no_wrap=True)
        if line.comment:
            gap = " " * max(1, COMMENT_COLUMN - len(line.text)) if line.text.strip() else ""
            text.append(f"{gap}# {line.comment}", style="dim" if line.comment == "default" else "cyan")
        console.print(text, soft_wrap=True)
    return EXIT_COMPLETE
