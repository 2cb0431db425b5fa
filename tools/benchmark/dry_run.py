"""Seconds and memory of `longvita plan CONFIG --dry-run` for every recipe, one after the other.

    python tools/benchmark/dry_run.py --json

The dry run has as many processes as the recipe's own layout needs for one replica, or `--devices`. `seconds` is the
wall time of the command; `peak_bytes` the larger peak memory of its two processes; `problems` the problems that it
finds, split into missing files and others; `state_error` and `activation_error` the largest differences between the
plan and the count: of parameters, weights, gradients and optimizer state, and of activations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

RECIPES = Path(__file__).parents[2] / "configs" / "train"
MISSING_FILE_MESSAGES = ("there is no file", "there is no such folder", "is neither a folder here nor a Hub id")


def main() -> int:
    """Run each recipe and print its time, memory and errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--devices", type=int, help="processes of the run (default: one replica)")
    parser.add_argument("--hardware", help="type of device (default: that of `longvita plan`)")
    parser.add_argument("recipes", nargs="*", type=Path, help="config files (default: all in configs/train)")
    arguments = parser.parse_args()
    found = arguments.recipes or [path for path in sorted(RECIPES.glob("*.yaml")) if path.stem != "common"]
    figures = [dry_run(path, arguments.devices, arguments.hardware) for path in found]
    names = ("recipe", "processes", "seconds", "GiB", "missing files", "other problems", "state", "activations")
    table = Table(*names, title="Dry runs")
    for one in figures:
        table.add_row(
            one["recipe"],
            str(one["processes"]),
            f"{one['seconds']:.0f}",
            f"{one['peak_bytes'] / 2**30:.2f}",
            str(one["files_not_there"]),
            str(one["other_problems"]),
            f"{one['state_error']:.1%}",
            f"{one['activation_error']:.1%}",
        )
    Console(width=120).print(table)
    if arguments.json:
        most = ("seconds", "peak_bytes", "other_problems", "state_error", "activation_error")
        worst = {name: max(one[name] for one in figures) for name in most}
        print(json.dumps({"recipes": figures, **{f"most_{name}": value for name, value in worst.items()}}))
    return 0


def dry_run(path: Path, devices: int | None, hardware: str | None) -> dict:
    """Time, memory, problems and errors of a recipe's dry run."""
    command = [sys.executable, "-m", "longvita", "plan", str(path), "--dry-run", "--json"]
    command += [f"--devices={devices}"] if devices else []
    command += [f"--hardware={hardware}"] if hardware else []
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1, 2) or not done.stdout:
        raise SystemExit(f"{path}: {done.stderr}")
    plan = json.loads(done.stdout)
    absent = [
        problem for problem in plan["problems"] if any(words in problem["message"] for words in MISSING_FILE_MESSAGES)
    ]
    errors: dict[bool, float] = {True: 0.0, False: 0.0}
    for one in plan["comparison"]:
        of_state = not one["name"].startswith("activations")
        errors[of_state] = max(errors[of_state], abs(one["error"]))
    return {
        "recipe": path.stem,
        "processes": plan["world_size"],
        "seconds": round(seconds, 1),
        "peak_bytes": plan["peak_bytes"],
        "ranks": [rank["rank"] for rank in plan["ranks"]],
        "files_not_there": len(absent),
        "other_problems": len(plan["problems"]) - len(absent),
        "state_error": errors[True],
        "activation_error": errors[False],
    }


if __name__ == "__main__":
    raise SystemExit(main())
