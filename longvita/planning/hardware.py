"""Devices that a run can be planned for, with their rates and memory.

Peaks and links are the makers' figures for one device, memory is the total that torch reports; the others are
assumptions of this project, which has measured none of them. `--memory` overrides the memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from longvita import platforms
from longvita.config.errors import Problem
from longvita.config.schema import Config
from longvita.errors import UserError
from longvita.platforms.layer_memory import ASCEND, LOCAL, NVIDIA, LayerMemory

GB, GIB, TIB = 10**9, 1 << 30, 1 << 40
_UNITS = {"GIB": GIB, "GB": GB, "G": GIB, "MIB": 1 << 20, "MB": 10**6, "TIB": 1 << 40, "TB": 10**12}


class PlanError(UserError, ValueError):
    """Options from which no plan can be made."""


@dataclass(frozen=True)
class Hardware:
    """One device, its node, and the rates that a training run reaches on them."""

    name: str
    memory: int
    """Bytes of one device that its driver gives to a process."""
    flops: float
    """Peak of dense bf16 matrix products by the maker, FLOP/s."""
    bandwidth: float
    """Rate of the device's memory, bytes/s."""
    link: float
    """Rate to another device of the node, one direction, bytes/s."""
    network: float
    """Rate of one device to another node, one direction, bytes/s."""
    layer_memory: LayerMemory
    devices_per_node: int = 8
    host_memory: int | None = TIB
    """Bytes of a node's memory for offloaded tensors of all its devices, without the system, data workers and caches
    (assumption: half of the 2 TB of the makers' eight-device servers); None where tensors are offloaded to disk."""
    fp8_flops: float = 0.0
    """Peak of dense FP8 matrix products by the maker, FLOP/s; 0 for a device without FP8."""
    host_link: float = 25e9
    """Rate to the host's memory, one direction, bytes/s."""
    matmul_efficiency: float = 0.6
    """Fraction of the peak that large matrix products reach (assumption)."""
    attention_efficiency: float = 0.45
    """Fraction of the peak that causal attention's useful operations reach (assumption)."""
    link_efficiency: float = 0.7
    """Fraction of a link's rate that collectives reach (assumption)."""
    reserved: int = 3 * GIB
    """Bytes that driver, kernels, libraries and collectives take (assumption)."""
    fragmentation: float = 0.05
    """Bytes lost between the allocator's blocks, as a fraction of activations (assumption)."""

    def usable(self) -> int:
        """Return the bytes that are left for weights, gradients, optimizer state and activations."""
        return self.memory - self.reserved

    def host_share(self) -> float:
        """Return the bytes that one device may offload to its node's memory."""
        return math.inf if self.host_memory is None else self.host_memory / self.devices_per_node


def _gib(number: float) -> int:
    return round(number * GIB)


_DEVICES = [
    # NVIDIA A100 80GB, H100, H200 and H20 datasheets (SXM): dense bf16 and FP8, HBM, half of NVLink's both directions;
    # one 200 or 400 Gb/s adapter a device, as in DGX systems. An "80 GB" device has 80 GiB, less ECC and firmware: the
    # memory is the "total capacity" in torch's messages, about half a GiB under nvidia-smi's (81,920 and 81,559 MiB for
    # A100 and H100, modal-labs/modal-client pull 2797; 143,771 MiB for H200 and 97,871 MiB for H20). A100: 79.25 GiB in
    # levihsu/OOTDiffusion issue 235; H100: 79.11 in vllm-project/vllm 27508, 79.10 in huggingface/trl 2688; H20: 95.00
    # in modelscope/DiffSynth-Studio 1238; H200: 139.72 to 139.81 in several logs.
    Hardware("a100-80", _gib(79.2), 312e12, 2.04e12, 300e9, 25e9, NVIDIA),
    Hardware("h100-80", _gib(79.1), 989e12, 3.35e12, 450e9, 50e9, NVIDIA, host_link=50e9, fp8_flops=1979e12),
    Hardware("h200-141", _gib(139.7), 989e12, 4.8e12, 450e9, 50e9, NVIDIA, host_link=50e9, fp8_flops=1979e12),
    Hardware("h20-96", _gib(95.0), 148e12, 4.0e12, 450e9, 50e9, NVIDIA, host_link=50e9, fp8_flops=296e12),
    # Atlas 800T A2 server, as described by Huawei: 8 devices, 392 GB/s HCCS in both directions, 200 Gb/s RoCE each. Of
    # 64 GB torch reports 60.96 or 60.97 GiB (vllm-project/vllm-ascend issues 19 and 1127).
    Hardware("ascend-910b-64", _gib(60.9), 313e12, 1.6e12, 196e9, 25e9, ASCEND),
    # A processor core, for tests and for tools/benchmark/plan_accuracy.py, which measures the rates itself.
    Hardware(
        "local", 16 * GIB, 60e9, 8e9, 1.5e9, 1e9, LOCAL, host_memory=None, host_link=0.5e9, reserved=0,
        fragmentation=0.0, matmul_efficiency=1.0, attention_efficiency=1.0, link_efficiency=1.0,
    ),
]  # fmt: skip
HARDWARE = {device.name: device for device in _DEVICES}


def hardware_of(platform: str) -> Hardware:
    """Return the default device of a config's platform."""
    return HARDWARE["h100-80" if platform == "auto" else platforms.named(platform).planned_hardware]


def find_hardware(name: str, memory: str | None = None, host_memory: str | None = None) -> Hardware:
    """Return the device called `name`, with memory of device and node overridden where given ("96GiB", "80GB").

    Raises PlanError for an unknown name, or memory that is no size or too small.
    """
    if name not in HARDWARE:
        known = f"one of {', '.join(HARDWARE)}, the nearest with its own --memory for another"
        raise PlanError(f"--hardware {name} is not known; {known}")
    hardware = HARDWARE[name]
    if memory is not None:
        hardware = replace(hardware, memory=parse_bytes(memory, "--memory"))
    if hardware.usable() <= 0:
        reserved = f"{hardware.reserved / GIB:.0f} GiB"
        raise PlanError(f"--memory {memory}: {reserved} of it are reserved for software; give more")
    if host_memory is not None:
        hardware = replace(hardware, host_memory=parse_bytes(host_memory, "--host-memory"))
    return hardware


def platform_problems(config: Config, hardware: Hardware) -> list[Problem]:
    """List what the config's platform would refuse at launch; `platform: auto` means that of `hardware`."""
    name = hardware.layer_memory.platform if config.platform == "auto" else config.platform
    problems = platforms.named(name).problems(config)
    fp8 = config.training.fp8
    if fp8 is not None and not hardware.fp8_flops and all(problem.field != "training.fp8" for problem in problems):
        able = ", ".join(sorted(one.name for one in HARDWARE.values() if one.fp8_flops))
        message, fix = f"{hardware.name} has no FP8 products", f"leave it out, or --hardware of {able}"
        problems = [*problems, Problem(message, "training.fp8", fp8, fix=fix)]
    return problems


def parse_bytes(text: str, option: str) -> int:
    """Parse the value of an option, such as "96GiB" or "80GB", as bytes. Raises PlanError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    if match is None or match.group(2).upper() not in _UNITS:
        raise PlanError(f"{option} {text}: write a number and a unit, such as 96GiB or 80GB")
    return round(float(match.group(1)) * _UNITS[match.group(2).upper()])
