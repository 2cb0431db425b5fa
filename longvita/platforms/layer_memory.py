"""Memory that the layers of each platform keep for their backward pass.

`LOCAL` is the CPU platform; its values are measured (tools/benchmark/plan_accuracy.py). The others come from the source
code named below; this project has not measured them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerMemory:
    """Which tensors a platform's layers keep, copy and free."""

    name: str
    platform: str
    """Name of the platform that has these layers."""
    fused: bool
    """Whether norms and SwiGLU are one kernel each, which keeps only its input."""
    fused_rotary: bool
    """Whether the rotary embedding is one kernel, which keeps nothing; otherwise it keeps cosines and sines."""
    statistics_bytes: int
    """Bytes that attention keeps per query row and head in addition to its inputs and output."""
    gather_buffer: bool
    """Whether sequence parallelism gathers into one permanent buffer (Megatron's own linear layers) or a new one."""
    copying_collectives: bool
    """Whether reduce-scatter and all-gather copy their input (gloo)."""
    batch_on_device: bool
    """Whether a micro batch's tiles are copied to the device's memory."""
    ulysses: bool
    """Whether attention may use Ulysses if the config does not set the method."""
    frees_stage_outputs: bool
    """Whether a pipeline stage frees its output after sending it (deallocate_pipeline_outputs)."""


LOCAL = LayerMemory("local", "cpu", False, False, 4, True, True, False, True, False)
"""megatron-core's own layers around torch's flash attention for CPUs; collectives by gloo."""
NVIDIA = LayerMemory("transformer_engine", "cuda", True, True, 4, False, False, True, True, True)
"""transformer_engine/pytorch/module/layernorm_linear.py (2.x) keeps the norm's input and output; attention keeps its
inputs, its output and one fp32 logsumexp a row (attention/dot_product_attention/backends.py). Not measured."""
ASCEND = LayerMemory("mindspeed", "npu", True, False, 64, False, False, True, False, True)
"""As NVIDIA, but its fused attention keeps the softmax maximum and sum, each [rows, heads, 8] fp32, and its fused
rotary embedding depends on a field that megatron-core's config does not have (position_embedding_type). Not measured.
"""
