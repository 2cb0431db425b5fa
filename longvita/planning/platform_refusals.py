"""What a launch would refuse of a config on the platform that it is planned for."""

from __future__ import annotations

from longvita import platforms
from longvita.config.errors import Problem
from longvita.config.schema import Config
from longvita.planning.hardware import HARDWARE, Hardware


def find_problems(config: Config, hardware: Hardware) -> list[Problem]:
    """Problems of a config that names a platform there, and of platform auto on that of the hardware."""
    name = hardware.layer_memory.platform if config.platform == "auto" else config.platform
    problems = platforms.named(name).problems(config)
    fp8 = config.training.fp8
    if fp8 is not None and not hardware.fp8_flops and all(problem.field != "training.fp8" for problem in problems):
        able = ", ".join(sorted(one.name for one in HARDWARE.values() if one.fp8_flops))
        message, fix = f"{hardware.name} has no FP8 products", f"leave it out, or --hardware of {able}"
        problems = [*problems, Problem(message, "training.fp8", fp8, fix=fix)]
    return problems
