"""Devices that a plan may be for, with what it assumes of them.

Peaks, memory and links are the makers' figures for one device; the rest are assumptions of this project, which has
measured none of them. `--memory` replaces the memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from longvita.errors import UserError
from longvita.platforms.kernels import LOCAL, MINDSPEED, TRANSFORMER_ENGINE, Kernels

GB, GIB = 10**9, 1 << 30
_UNITS = {"GIB": GIB, "GB": GB, "G": GIB, "MIB": 1 << 20, "MB": 10**6, "TIB": 1 << 40, "TB": 10**12}


class PlanError(UserError, ValueError):
    """A plan that cannot be made of what was asked."""


@dataclass(frozen=True)
class Hardware:
    """One device, its node and what a training run gets out of them."""

    name: str
    memory: int
    """Bytes of one device."""
    flops: float
    """Dense bf16 matrix products at the maker's peak, FLOP/s."""
    bandwidth: float
    """Of the device's memory, bytes/s."""
    link: float
    """To another device of the node, one direction, bytes/s."""
    network: float
    """Of one device to another node, one direction, bytes/s."""
    kernels: Kernels
    devices_per_node: int = 8
    host_link: float = 25e9
    """To the host's memory, one direction, bytes/s."""
    matmul_efficiency: float = 0.6
    """Share of the peak that large matrix products reach (assumption)."""
    attention_efficiency: float = 0.45
    """Share of the peak that causal attention's useful operations reach (assumption)."""
    link_efficiency: float = 0.7
    """Share of a link's rate that collectives reach (assumption)."""
    reserved: int = 3 * GIB
    """Bytes that the driver, kernels, libraries and collectives take for themselves (assumption)."""
    fragmentation: float = 0.05
    """Bytes lost between the allocator's blocks over those of activations (assumption)."""

    def usable(self) -> int:
        """Bytes that weights, state and activations may take."""
        return self.memory - self.reserved


HARDWARE = {
    # NVIDIA A100 80GB, H100, H200 and H20 datasheets (SXM): dense bf16, HBM, half of NVLink's both directions; one
    # 200 or 400 Gb/s adapter a device, as in DGX systems.
    "a100-80": Hardware("a100-80", 80 * GB, 312e12, 2.04e12, 300e9, 25e9, TRANSFORMER_ENGINE),
    "h100-80": Hardware("h100-80", 80 * GB, 989e12, 3.35e12, 450e9, 50e9, TRANSFORMER_ENGINE, host_link=50e9),
    "h200-141": Hardware("h200-141", 141 * GB, 989e12, 4.8e12, 450e9, 50e9, TRANSFORMER_ENGINE, host_link=50e9),
    "h20-96": Hardware("h20-96", 96 * GB, 148e12, 4.0e12, 450e9, 50e9, TRANSFORMER_ENGINE, host_link=50e9),
    # Atlas 800T A2 server, as described by Huawei: 8 devices, 392 GB/s HCCS in both directions, 200 Gb/s RoCE each.
    "ascend-910b-64": Hardware("ascend-910b-64", 64 * GB, 313e12, 1.6e12, 196e9, 25e9, MINDSPEED),
    # A processor core for tests: what tools/benchmark/plan_accuracy.py runs on; it measures the rates itself.
    "local": Hardware(
        "local", 16 * GIB, 60e9, 8e9, 1.5e9, 1e9, LOCAL, host_link=0.5e9, reserved=0, fragmentation=0.0,
        matmul_efficiency=1.0, attention_efficiency=1.0, link_efficiency=1.0,
    ),
}  # fmt: skip


def find_hardware(name: str, memory: str | None = None) -> Hardware:
    """The device called `name`, with another memory if one is given ("96GiB", "80GB"). Raises PlanError."""
    if name not in HARDWARE:
        raise PlanError(f"--hardware {name} is not known; one of {', '.join(HARDWARE)}")
    hardware = HARDWARE[name]
    return hardware if memory is None else replace(hardware, memory=parse_bytes(memory))


def parse_bytes(text: str) -> int:
    """Bytes of "96GiB", "80GB" and the like. Raises PlanError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    if match is None or match.group(2).upper() not in _UNITS:
        raise PlanError(f"--memory {text}: write a number and a unit, such as 96GiB or 80GB")
    return round(float(match.group(1)) * _UNITS[match.group(2).upper()])
