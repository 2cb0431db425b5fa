"""The work of `longvita verify`."""

from __future__ import annotations

from typing import Any

from longvita.commands.support.model_process import check_sizes, in_world, launch_replica
from longvita.config import dump
from longvita.config.layout_text import parse_layout
from longvita.config.schema import Config


def verify(model: str, golden: str, layout: str, platform: str = "auto", as_json: bool = False) -> int:
    """Compares a model with golden vectors in a layout; 0 when all is within tolerance, else 1."""
    from longvita.checkpoint.sources import model_config
    from longvita.verify.golden import golden_config, load_golden

    config = golden_config(model_config(model), parse_layout(layout), load_golden(golden), platform)
    check_sizes(config)
    payload = {"source": model, "golden": golden, "config": dump(config), "json": as_json}
    return launch_replica("longvita.commands.verify:verify_process", payload, config)


def verify_process(payload: dict[str, Any]) -> int:
    """One process of `longvita verify`."""
    return in_world(payload, _verify_in_world)


def _verify_in_world(payload: dict[str, Any], config: Config, groups: Any, platform: Any) -> int:
    from longvita.verify.compare import run

    return run(payload, config, groups, platform)
