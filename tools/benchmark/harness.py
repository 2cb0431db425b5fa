"""What benchmarks share: the start of a process, and how figures are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from longvita.platforms import get
from longvita.platforms.base import Platform
from longvita.processes import init_distributed


def start_process(platform_name: str = "cpu") -> Platform:
    """One thread, the platform with its patches, and torch.distributed."""
    torch.set_num_threads(1)
    platform = get(platform_name)
    platform.activate()
    init_distributed(platform.backend, platform.set_device)
    return platform


def print_figures(figures: Mapping[str, float], as_json: bool) -> None:
    """A line for each, and all of them as one JSON object if asked."""
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    if as_json:
        print(json.dumps(figures), flush=True)
