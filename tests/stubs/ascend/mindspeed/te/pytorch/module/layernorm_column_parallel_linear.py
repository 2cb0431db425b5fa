"""MindSpeed's fused norm and column-parallel linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_npu
from megatron.core.parallel_state import get_tensor_model_parallel_world_size
from megatron.core.tensor_parallel.layers import (
    _initialize_affine_weight_gpu,
    linear_with_grad_accumulation_and_async_allreduce,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import divide
from torch import Tensor


class TELayerNormColumnParallelLinear(torch.nn.Module):
    """Its groups are Megatron's; tp_group is ignored."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable,
        gather_output: bool,
        bias: bool,
        skip_bias_add: bool,
        is_expert: bool = False,
        skip_weight_param_allocation: bool = False,
        tp_comm_buffer_name: str | None = None,
        tp_group: Any = None,
        stride: int = 1,  # megatron-core 0.16.1 passes it; 2 for two halves of one weight
    ) -> None:
        super().__init__()
        if gather_output or is_expert or skip_weight_param_allocation:
            raise ValueError("Transformer Engine linear layers do not support this")
        self.config, self.skip_bias_add, self.input_size = config, skip_bias_add, input_size
        size = get_tensor_model_parallel_world_size()
        self.sequence_parallel = config.sequence_parallel and size > 1
        self.allreduce_dgrad = size > 1 and not self.sequence_parallel
        self.output_size_per_partition = divide(output_size, size)
        # The order in the optimizer's buffers. Before commit 3df491c3 (2026-06-26), also 0.16.0, the norm was last.
        self._make_norm()
        self._make_linear(init_method, bias)
        self.te_return_bias = skip_bias_add and bias

    def _make_norm(self) -> None:
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(self.input_size, dtype=self.config.params_dtype))
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel
        self.register_parameter("layer_norm_bias", None)
        if self.config.normalization != "RMSNorm":
            self.layer_norm_bias = torch.nn.Parameter(torch.zeros(self.input_size, dtype=self.config.params_dtype))
            self.layer_norm_bias.sequence_parallel = self.sequence_parallel

    def _make_linear(self, init_method: Callable, bias: bool) -> None:
        rows, dtype = self.output_size_per_partition, self.config.params_dtype
        self.weight = torch.nn.Parameter(torch.empty(rows, self.input_size, dtype=dtype))
        _initialize_affine_weight_gpu(self.weight, init_method, partition_dim=0, stride=1)
        self.weight.allreduce = True
        self.register_parameter("bias", None)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(rows, dtype=dtype))
            set_tensor_model_parallel_attributes(self.bias, True, 0, 1)
            self.bias.allreduce = True

    def _norm(self, x: Tensor) -> Tensor:
        eps, weight = self.config.layernorm_epsilon, self.layer_norm_weight
        if self.config.normalization == "LayerNorm":
            return torch.nn.functional.layer_norm(x, [weight.numel()], weight, self.layer_norm_bias, eps)
        if self.config.use_fused_rmsnorm:
            return torch_npu.npu_rms_norm(x, weight, epsilon=eps)[0]
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def forward(
        self, inp: Tensor, is_first_microbatch: bool | None = None, fp8_output: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Norm, then linear; the weight's gradient is computed even if the weight is frozen."""
        normed = self._norm(inp.contiguous())
        if not (self.allreduce_dgrad or self.sequence_parallel):
            normed = copy_to_tensor_model_parallel_region(normed)
        output = linear_with_grad_accumulation_and_async_allreduce(
            input=normed,
            weight=self.weight,
            bias=None if self.skip_bias_add else self.bias,
            gradient_accumulation_fusion=self.config.gradient_accumulation_fusion,
            allreduce_dgrad=self.allreduce_dgrad,
            sequence_parallel=self.sequence_parallel,
        )
        return output, self.bias if self.te_return_bias else None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict:
        """Weight and bias in parts of axis 0."""
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {"weight": 0, "bias": 0}, sharded_offsets)
