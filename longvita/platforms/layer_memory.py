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
    """Whether trained column-parallel linear layers gather the rows of sequence parallelism into Megatron's global
    memory buffer, which is never freed, instead of a new tensor. Frozen layers always use a new tensor."""
    keeps_frozen_row_inputs: bool
    """Whether row-parallel linear layers keep their input for the backward pass although their weight is frozen."""
    copying_collectives: bool
    """Whether reduce-scatter and all-gather copy their input (gloo)."""
    batch_on_device: bool
    """Whether a micro batch's tiles are copied to the device's memory."""
    ulysses: bool
    """Whether attention may use Ulysses if the config does not set the method."""
    frees_stage_outputs: bool
    """Whether a pipeline stage frees its output after sending it (deallocate_pipeline_outputs)."""


LOCAL = LayerMemory(
    name="local",
    platform="cpu",
    fused=False,
    fused_rotary=False,
    statistics_bytes=4,
    gather_buffer=True,
    keeps_frozen_row_inputs=False,
    copying_collectives=True,
    batch_on_device=False,
    ulysses=True,
    frees_stage_outputs=False,
)
"""megatron-core's own layers around torch's flash attention for CPUs; collectives by gloo."""
NVIDIA = LayerMemory(
    name="transformer_engine",
    platform="cuda",
    fused=True,
    fused_rotary=True,
    statistics_bytes=4,
    gather_buffer=False,
    keeps_frozen_row_inputs=False,
    copying_collectives=False,
    batch_on_device=True,
    ulysses=True,
    frees_stage_outputs=True,
)
"""transformer_engine/pytorch/module/layernorm_linear.py (2.x) keeps the norm's input and output, and gathers into a new
tensor; attention keeps its inputs, its output and one fp32 logsumexp a row
(attention/dot_product_attention/backends.py). Not measured."""
ASCEND = LayerMemory(
    name="mindspeed",
    platform="npu",
    fused=True,
    fused_rotary=False,
    statistics_bytes=64,
    gather_buffer=True,
    keeps_frozen_row_inputs=True,
    copying_collectives=False,
    batch_on_device=True,
    ulysses=False,
    frees_stage_outputs=True,
)
"""MindSpeed, core_r0.16.0. Its norm and linear layer (mindspeed/te/pytorch/module/layernorm_column_parallel_linear.py)
keeps the norm's input and output and calls Megatron's linear function, which gathers into the global memory buffer. For
a frozen weight it calls the function that keeps no input (megatron_patches/npu/frozen_weights.py). Its row-parallel
layer (linear.py, RowParallelSeq and RowParallelNoSeq) keeps its input for every weight, and gathers the gradient into a
new tensor (ops/default_ops.py). The layers that would keep a gathered input (ColumnParallelSeq) are not in the layer
spec. Its fused attention keeps the softmax maximum and sum, each [rows, heads, 8] fp32, and its fused rotary embedding
depends on a field that megatron-core's config does not have (position_embedding_type). Not measured."""
