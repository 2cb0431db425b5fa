"""The schema of a config and the loader that reads YAML files into it."""

from longvita.config.checks import check_world_size
from longvita.config.errors import ConfigError
from longvita.config.loader import dump, load, load_with_origins, to_yaml
from longvita.config.schema import Config

__all__ = ["Config", "ConfigError", "check_world_size", "dump", "load", "load_with_origins", "to_yaml"]
