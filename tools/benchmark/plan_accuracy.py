"""`longvita plan` compared with measured training steps of a model of 20 million parameters, on one and two processes.

    python tools/benchmark/plan_accuracy.py --json

`parameter_bytes_error` and `state_bytes_error`: the largest difference, in bytes, between planned and allocated
weights, and weights, gradients and optimizer state, over all settings and processes. `worst_activation_error`: the
largest relative difference between the planned peak of a step and the measured one (torch's CPU allocations by its
profiler, without weights, gradients and optimizer state). `rank_correlation`: Spearman's, of planned and measured
seconds of a step at six layouts of the same global batch; the plan uses rates that were measured before.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import print_figures
from plan_accuracy_settings import MEMORY, TIME, PlanSetting

from longvita.planning.activations import activations
from longvita.planning.hardware import HARDWARE, Hardware
from longvita.planning.memory import plan_memory
from longvita.planning.parameters import state_bytes
from longvita.planning.throughput import step_time
from longvita.platforms.layer_memory import LOCAL
from longvita.processes import launch

STATE = ("parameters", "gradients", "optimizer")
RATES = ("flops", "attention", "bandwidth", "link")


def main() -> int:
    """Measure with two processes and with one, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--only", choices=("memory", "time"), help="measure one of the two")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timed steps; the fastest counts")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "time":
            for processes in (2, 1):
                measure("run_memory", folder, processes)
            figures |= memory_figures(read(folder, "memory-*.json"))
        if arguments.only != "memory":
            for number, processes in itertools.product(range(arguments.rounds), (2, 1)):
                measure("run_times", folder, processes, number)
            figures |= time_figures(read(folder, "times-*-0.json"))
    print_figures(figures, arguments.json)
    return 0


def measure(function: str, folder: str, processes: int, number: int = 0) -> None:
    """Run a measurement in processes, which write their results. Raises SystemExit if one fails."""
    code = launch(f"plan_accuracy_runs:{function}", {"folder": folder, "round": number}, processes)
    if code:
        raise SystemExit(code)


def read(folder: str, pattern: str) -> dict[str, Any]:
    """Results of the processes, by number of processes and rank."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob(pattern))}


def memory_figures(found: dict[str, Any]) -> dict[str, float]:
    """Print the errors of all settings and processes, and return the largest."""
    parameters = state = worst = 0.0
    for process, settings in found.items():
        for name, measured in settings.items():
            setting = MEMORY[name]
            config = setting.config()
            planned = state_bytes(config, setting.processes, measured["stage"], measured["shard"])
            differences = [abs(getattr(planned, field) - measured[field]) for field in STATE]
            parameters, state = max(parameters, differences[0]), max(state, *differences)
            peak = planned_peak(setting, measured["stage"])
            error = peak / measured["peak"] - 1
            worst = max(worst, abs(error))
            sizes = f"measured {measured['peak'] / 2**20:.1f} MiB, planned {peak / 2**20:.1f} ({error:+.1%})"
            print(f"{name}, {process}: {sizes}")
    return {"parameter_bytes_error": parameters, "state_bytes_error": state, "worst_activation_error": worst}


def planned_peak(setting: PlanSetting, stage: int) -> int:
    """Planned peak of the activations, bytes."""
    config = setting.config()
    replicas = setting.processes // (config.layout.pipeline_parallel * config.layout.tensor_parallel)
    replicas //= config.layout.context_parallel
    micro_batches = config.training.global_batch_size // replicas
    return activations(config, LOCAL, setting.contents, stage, micro_batches).peak


def time_figures(found: dict[str, Any]) -> dict[str, float]:
    """Print planned seconds and the fastest measured ones, and return their rank correlation."""
    rates = {name: max(each["rates"].get(name, 0.0) for each in found.values()) for name in RATES}
    planned, measured = [], []
    for name, setting in TIME.items():
        config, hardware = setting.config(), this_machine(rates)
        stages = plan_memory(config, setting.processes, hardware, [setting.contents])
        planned.append(step_time(config, setting.processes, hardware, stages, setting.contents).seconds)
        measured.append(min(each["times"][name] for each in found.values() if name in each["times"]))
        print(f"{name}: a step took {measured[-1]:.2f} s, planned {planned[-1]:.2f} s")
    first, second = (np.argsort(np.argsort(values)) for values in (planned, measured))
    return {"rank_correlation": float(np.corrcoef(first, second)[0, 1])}


def this_machine(rates: dict[str, float]) -> Hardware:
    """The device of the plan, with measured rates."""
    return dataclasses.replace(
        HARDWARE["local"],
        flops=rates["flops"],
        attention_efficiency=rates["attention"] / rates["flops"],
        bandwidth=rates["bandwidth"],
        link=rates["link"],
    )


if __name__ == "__main__":
    raise SystemExit(main())
