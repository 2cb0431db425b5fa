"""Devices that a plan may be for, with what it assumes of them.

Peaks and links are the makers' figures for one device, memory is what torch reports of it; the rest are assumptions of
this project, which has measured none of them. `--memory` replaces the memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from longvita import platforms
from longvita.errors import UserError
from longvita.platforms.layer_memory import ASCEND, LOCAL, NVIDIA, LayerMemory

GB, GIB, TIB = 10**9, 1 << 30, 1 << 40
_UNITS = {"GIB": GIB, "GB": GB, "G": GIB, "MIB": 1 << 20, "MB": 10**6, "TIB": 1 << 40, "TB": 10**12}


class PlanError(UserError, ValueError):
    """A plan that cannot be made of what was asked."""


@dataclass(frozen=True)
class Hardware:
    """One device, its node and what a training run gets out of them."""

    name: str
    memory: int
    """Bytes of one device as its driver gives them to a process."""
    flops: float
    """Dense bf16 matrix products at the maker's peak, FLOP/s."""
    bandwidth: float
    """Of the device's memory, bytes/s."""
    link: float
    """To another device of the node, one direction, bytes/s."""
    network: float
    """Of one device to another node, one direction, bytes/s."""
    layer_memory: LayerMemory
    devices_per_node: int = 8
    host_memory: int | None = TIB
    """Bytes of a node for what its devices put away, beside the system, data workers and caches (assumption: half of
    the 2 TB that the makers' eight-device servers have); None where it goes to files."""
    fp8_flops: float = 0.0
    """Dense FP8 matrix products at the maker's peak, FLOP/s; 0 where there are none."""
    host_link: float = 25e9
    """To the host's memory, one direction, bytes/s."""
    matmul_efficiency: float = 0.6
    """Share of the peak that large matrix products reach (assumption)."""
    attention_efficiency: float = 0.45
    """Share of the peak that causal attention's useful operations reach (assumption)."""
    link_efficiency: float = 0.7
    """Share of a link's rate that collectives reach (assumption)."""
    reserved: int = 3 * GIB
    """Bytes that the driver, layer_memory, libraries and collectives take for themselves (assumption)."""
    fragmentation: float = 0.05
    """Bytes lost between the allocator's blocks over those of activations (assumption)."""

    def usable(self) -> int:
        """Bytes that weights, state and activations may take."""
        return self.memory - self.reserved

    def host_share(self) -> float:
        """Bytes that one device may put away in its node's memory."""
        return math.inf if self.host_memory is None else self.host_memory / self.devices_per_node


def _gib(number: float) -> int:
    return round(number * GIB)


HARDWARE = {
    # NVIDIA A100 80GB, H100, H200 and H20 datasheets (SXM): dense bf16 and FP8, HBM, half of NVLink's both directions;
    # one 200 or 400 Gb/s adapter a device, as in DGX systems. An "80 GB" device has 80 GiB, less ECC and firmware: the
    # memory is the "total capacity" in torch's messages, about half a GiB under nvidia-smi's (81,920 and 81,559 MiB for
    # A100 and H100, modal-labs/modal-client pull 2797; 143,771 MiB for H200 and 97,871 MiB for H20). A100: 79.25 GiB in
    # levihsu/OOTDiffusion issue 235; H100: 79.11 in vllm-project/vllm 27508, 79.10 in huggingface/trl 2688; H20: 95.00
    # in modelscope/DiffSynth-Studio 1238; H200: 139.72 to 139.81 in several logs.
    "a100-80": Hardware("a100-80", _gib(79.2), 312e12, 2.04e12, 300e9, 25e9, NVIDIA),
    "h100-80": Hardware(
        "h100-80", _gib(79.1), 989e12, 3.35e12, 450e9, 50e9, NVIDIA, host_link=50e9, fp8_flops=1979e12
    ),
    "h200-141": Hardware(
        "h200-141", _gib(139.7), 989e12, 4.8e12, 450e9, 50e9, NVIDIA, host_link=50e9, fp8_flops=1979e12
    ),
    "h20-96": Hardware(
        "h20-96", _gib(95.0), 148e12, 4.0e12, 450e9, 50e9, NVIDIA, host_link=50e9, fp8_flops=296e12
    ),
    # Atlas 800T A2 server, as described by Huawei: 8 devices, 392 GB/s HCCS in both directions, 200 Gb/s RoCE each. Of
    # 64 GB torch reports 60.96 or 60.97 GiB (vllm-project/vllm-ascend issues 19 and 1127).
    "ascend-910b-64": Hardware("ascend-910b-64", _gib(60.9), 313e12, 1.6e12, 196e9, 25e9, ASCEND),
    # A processor core for tests: what tools/benchmark/plan_accuracy.py runs on; it measures the rates itself.
    "local": Hardware(
        "local", 16 * GIB, 60e9, 8e9, 1.5e9, 1e9, LOCAL, host_memory=None, host_link=0.5e9, reserved=0,
        fragmentation=0.0,
        matmul_efficiency=1.0, attention_efficiency=1.0, link_efficiency=1.0,
    ),
}  # fmt: skip


def hardware_of(platform: str) -> Hardware:
    """The device that a plan for a config of that platform is for when none is named."""
    return HARDWARE["h100-80" if platform == "auto" else platforms.named(platform).planned_hardware]


def find_hardware(name: str, memory: str | None = None, host_memory: str | None = None) -> Hardware:
    """The device called `name`, with other memories of it and of its node if they are given ("96GiB", "80GB").

    Raises PlanError.
    """
    if name not in HARDWARE:
        known = ", ".join(HARDWARE)
        raise PlanError(
            f"--hardware {name} is not known; one of {known}, the nearest with its own --memory for another"
        )
    hardware = HARDWARE[name]
    if memory is not None:
        hardware = replace(hardware, memory=parse_bytes(memory, "--memory"))
    if hardware.usable() <= 0:
        raise PlanError(
            f"--memory {memory}: {hardware.reserved / GIB:.0f} GiB of it are reserved for software; take more"
        )
    if host_memory is not None:
        hardware = replace(hardware, host_memory=parse_bytes(host_memory, "--host-memory"))
    return hardware


def parse_bytes(text: str, option: str) -> int:
    """Bytes of "96GiB", "80GB" and the like, which `option` was given. Raises PlanError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    if match is None or match.group(2).upper() not in _UNITS:
        raise PlanError(f"{option} {text}: write a number and a unit, such as 96GiB or 80GB")
    return round(float(match.group(1)) * _UNITS[match.group(2).upper()])
