"""Load config files with the checks of the platform and of the data; all problems are reported at once."""

from __future__ import annotations

from pathlib import Path

from longvita import platforms
from longvita.config.loader import Check, Loaded, load_with_origins
from longvita.config.schema import Config


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Load a config of any purpose. Raises ConfigError with every problem found."""
    return load_config_with_origins(path, overrides).config


def load_config_with_origins(path: str | Path, overrides: list[str] | None = None, training: bool = False) -> Loaded:
    """Load a config with the file and line of each value.

    training: also report missing data, tokenizer and files of a training run. Raises ConfigError with
    every problem found.
    """
    checks: list[Check] = [platforms.name_problems]
    if training:
        from longvita.data.mix.missing_files import find_training_problems

        checks.append(find_training_problems)
    return load_with_origins(path, overrides, checks)
