"""MindSpeed's column- and row-parallel linear layers (te/pytorch/module/linear.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.parallel_state import get_tensor_model_parallel_group, get_tensor_model_parallel_world_size
from megatron.core.tensor_parallel.layers import _initialize_affine_weight_gpu, set_tensor_model_parallel_attributes
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import divide
from torch import Tensor

from mindspeed.te.pytorch.module.ops import allgather_matmul, matmul_all_reduce, matmul_reduce_scatter


class _ParallelLinear(torch.nn.Module):
    """A weight that is split over the tensor-parallel ranks along `dimension`."""

    dimension: int

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable,
        bias: bool,
        skip_bias_add: bool,
        is_expert: bool,
        stride: int = 1,
        tp_comm_buffer_name: str | None = None,
        tp_group: Any = None,
    ) -> None:
        super().__init__()
        if is_expert:
            raise NotImplementedError("experts are not modelled here")
        self.config, self.skip_bias_add = config, skip_bias_add
        size = get_tensor_model_parallel_world_size()
        shape = [output_size, input_size]
        shape[self.dimension] = divide(shape[self.dimension], size)
        self.weight = torch.nn.Parameter(torch.empty(shape, dtype=config.params_dtype))
        if config.perform_initialization:
            _initialize_affine_weight_gpu(self.weight, init_method, partition_dim=self.dimension, stride=stride)
        self.weight.tensor_model_parallel, self.weight.partition_dim = True, self.dimension
        self.weight.partition_stride, self.weight.allreduce = stride, True
        self.register_parameter("bias", None)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(shape[0], dtype=config.params_dtype))
            self.bias.allreduce = True
        self._register_load_state_dict_pre_hook(
            lambda state, prefix, *args, **kwargs: state.setdefault(f"{prefix}_extra_state")
        )

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict:
        """Parts of the weight, and of a column-parallel bias."""
        state = self.state_dict(prefix="", keep_vars=True)
        axes = {"weight": 0, "bias": 0} if self.dimension == 0 else {"weight": 1}
        return make_sharded_tensors_for_checkpoint(state, prefix, axes, sharded_offsets)

    def set_extra_state(self, state: Any) -> None:
        """Ignored."""

    def get_extra_state(self) -> None:
        """A state dict has the name, as Transformer Engine's."""


class TEColumnParallelLinear(_ParallelLinear):
    """Its bias is added to the output of every rank's columns."""

    dimension = 0

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        gather_output: bool,
        skip_weight_param_allocation: bool = False,
        **how: Any,
    ) -> None:
        if gather_output:
            raise ValueError("Transformer Engine linear layers do not support gather_output = True")
        if skip_weight_param_allocation:
            raise NotImplementedError("a layer without a weight of its own is not modelled here")
        super().__init__(input_size, output_size, **how)
        size = get_tensor_model_parallel_world_size()
        self.sequence_parallel = self.config.sequence_parallel and size > 1
        if self.bias is not None:
            set_tensor_model_parallel_attributes(self.bias, True, 0, 1)

    def forward(self, input_: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """[s, b, h] to [s, b, n / TP]."""
        function = _ColumnSequence if self.sequence_parallel else _Column
        output = function.apply(input_, self.weight if weight is None else weight)
        if self.bias is not None and not self.skip_bias_add:
            output = output + self.bias
        return output, self.bias if self.skip_bias_add else None


class TERowParallelLinear(_ParallelLinear):
    """Its bias is added once, after the sum over the ranks."""

    dimension = 1

    def __init__(self, input_size: int, output_size: int, *, input_is_parallel: bool, **how: Any) -> None:
        if not input_is_parallel:
            raise ValueError("Transformer Engine linear layers do not support input_is_parallel = False")
        super().__init__(input_size, output_size, **how)
        self.sequence_parallel = self.config.sequence_parallel and self.config.tensor_model_parallel_size > 1
        if self.bias is not None:
            self.bias.sequence_parallel = self.sequence_parallel

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s, b, h / TP] to [s, b, n]; with sequence parallelism to [s / TP, b, n]."""
        function = _RowSequence if self.sequence_parallel else _Row
        output = function.apply(input_, self.weight)
        if self.bias is not None and not self.skip_bias_add:
            output = output + self.bias
        return output, self.bias if self.skip_bias_add else None


def _weight_gradient(ctx: Any, grad: Tensor, rows: Tensor) -> Tensor | None:
    return grad.flatten(0, -2).t() @ rows.flatten(0, -2) if ctx.needs_input_grad[1] else None


class _Column(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input_, weight)
        return input_ @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        input_, weight = ctx.saved_tensors
        grad_input = grad @ weight
        if get_tensor_model_parallel_world_size() > 1:
            dist.all_reduce(grad_input, group=get_tensor_model_parallel_group())
        return grad_input, _weight_gradient(ctx, grad, input_)


class _ColumnSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight: Tensor) -> Tensor:
        output, total = allgather_matmul(input_, weight.t())
        ctx.save_for_backward(total, weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        total, weight = ctx.saved_tensors
        grad_input = grad @ weight
        own = grad_input.new_empty(len(grad_input) // get_tensor_model_parallel_world_size(), *grad_input.shape[1:])
        dist.reduce_scatter_tensor(own, grad_input.contiguous(), group=get_tensor_model_parallel_group())
        return own, _weight_gradient(ctx, grad, total)


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input_, weight)
        return matmul_all_reduce(input_, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        input_, weight = ctx.saved_tensors
        return grad @ weight, _weight_gradient(ctx, grad, input_)


class _RowSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input_, weight)
        return matmul_reduce_scatter(input_, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        input_, weight = ctx.saved_tensors
        grad_input, total = allgather_matmul(grad, weight)
        return grad_input, _weight_gradient(ctx, total, input_)
