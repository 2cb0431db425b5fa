"""Code shared by benchmarks: starting a process and printing results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import torch

from longvita.doctor.components import missing_programs
from longvita.platforms import get
from longvita.platforms.base import Platform
from longvita.processes import EXIT_REFUSED, init_distributed


def start_process(platform_name: str = "cpu") -> Platform:
    """Start a process with one thread, an active platform and torch.distributed."""
    torch.set_num_threads(1)
    platform = get(platform_name)
    platform.activate()
    init_distributed(platform.backend, platform.set_device)
    return platform


def check_programs(*names: str) -> None:
    """End the benchmark with the command that installs the programs that it needs, if one is missing."""
    if message := missing_programs(names):
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED)


def print_figures(figures: Mapping[str, float], as_json: bool) -> None:
    """Print a line per result, and if `as_json` all of them as one JSON object."""
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    if as_json:
        print(json.dumps(figures), flush=True)
