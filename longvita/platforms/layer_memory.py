"""What the layers of each platform keep for their backward pass, as far as memory depends on it.

`LOCAL` is the door that runs without an accelerator; its figures are measured (tools/benchmark/plan_accuracy.py). The
others are read from the sources named below and have not been measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerMemory:
    """How a platform's layers treat what they compute."""

    name: str
    platform: str
    """The platform that has them."""
    fused: bool
    """Whether norms and SwiGLU are one kernel each, which keeps its input and no intermediate."""
    fused_rotary: bool
    """Whether the rotary embedding is one kernel, which keeps nothing; else it keeps cosines and sines of its rows."""
    statistics_bytes: int
    """What attention keeps per query row and head beside its inputs and output."""
    gather_buffer: bool
    """Whether sequence parallelism gathers into one buffer that stays (Megatron's own linear layers), or anew."""
    copying_collectives: bool
    """Whether reduce-scatter and all-gather copy what they move (gloo)."""
    batch_on_device: bool
    """Whether a micro batch's tiles are copied to the device's memory."""
    ulysses: bool
    """Whether attention may trade tokens for heads where the config leaves the method open."""
    frees_stage_outputs: bool
    """Whether a pipeline stage lets go of its output once it is sent (deallocate_pipeline_outputs)."""


LOCAL = LayerMemory("local", "cpu", False, False, 4, True, True, False, True, False)
"""megatron-core's own layers around torch's flash attention for CPUs; collectives by gloo."""
NVIDIA = LayerMemory("transformer_engine", "cuda", True, True, 4, False, False, True, True, True)
"""transformer_engine/pytorch/module/layernorm_linear.py keeps the norm's input and output, attention keeps its inputs,
its output and one fp32 logsumexp a row (attention/dot_product_attention/backends.py); 2.x. Not measured."""
ASCEND = LayerMemory("mindspeed", "npu", True, False, 64, False, False, True, False, True)
"""The same, but its fused attention keeps softmax maximum and sum, each [rows, heads, 8] fp32, and its fused rotary
embedding is for a field that megatron-core's config does not have (position_embedding_type). Not measured."""
