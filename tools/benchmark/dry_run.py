"""Seconds and memory of `longvita plan CONFIG --dry-run` for every recipe, one after the other.

    python tools/benchmark/dry_run.py --json

The processes of a dry run are those that the recipe's own layout asks for, one replica, or as `--devices` says.
`seconds` is the whole command's wall time; `peak_bytes` the most that one of its two processes takes; `problems` what
it finds, split into those of files that are not there and others; `state_error` and `activation_error` how far the
plan is from the count at most: parameters, weights, gradients and optimizer state, and activations.
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
NOT_THERE = ("there is no file", "there is no such folder", "is neither a folder here nor a Hub id")


def main() -> int:
    """Dry-runs each recipe and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--devices", type=int, help="processes of the run; one replica when absent")
    parser.add_argument("recipes", nargs="*", type=Path, help="files; every one in configs/train when absent")
    arguments = parser.parse_args()
    found = arguments.recipes or [path for path in sorted(RECIPES.glob("*.yaml")) if path.stem != "common"]
    figures = [dry_run(path, arguments.devices) for path in found]
    names = ("recipe", "processes", "seconds", "GiB", "files not there", "other problems", "state", "activations")
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


def dry_run(path: Path, devices: int | None) -> dict:
    """What the dry run of one recipe took and found."""
    command = [sys.executable, "-m", "longvita", "plan", str(path), "--dry-run", "--json"]
    started = time.perf_counter()
    done = subprocess.run(
        command + ([f"--devices={devices}"] if devices else []), capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1, 2) or not done.stdout:
        raise SystemExit(f"{path}: {done.stderr}")
    told = json.loads(done.stdout)
    absent = [problem for problem in told["problems"] if any(words in problem["message"] for words in NOT_THERE)]
    errors: dict[bool, float] = {True: 0.0, False: 0.0}
    for one in told["comparison"]:
        of_state = not one["name"].startswith("activations")
        errors[of_state] = max(errors[of_state], abs(one["error"]))
    return {
        "recipe": path.stem,
        "processes": told["world_size"],
        "seconds": round(seconds, 1),
        "peak_bytes": told["peak_bytes"],
        "ranks": [rank["rank"] for rank in told["ranks"]],
        "files_not_there": len(absent),
        "other_problems": len(told["problems"]) - len(absent),
        "state_error": errors[True],
        "activation_error": errors[False],
    }


if __name__ == "__main__":
    raise SystemExit(main())
