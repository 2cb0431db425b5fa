"""transformer_engine/pytorch/module/linear.py"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...refuse import only
from .base import TransformerEngineBaseModule, set_tensor_model_parallel_attributes
from .collectives import copied, gathered, scattered_sum, summed


class Linear(TransformerEngineBaseModule):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: Any = None,
        device: torch.device | str = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        save_original_input: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        only(
            "Linear",
            fuse_wgrad_accumulation=fuse_wgrad_accumulation,
            overlap=(ub_overlap_ag or ub_overlap_rs or ub_overlap_rs_dgrad or ub_bulk_dgrad or ub_bulk_wgrad),
            parameters_split=parameters_split,
            delay_wgrad_compute=delay_wgrad_compute,
            symmetric_ar_type=symmetric_ar_type,
        )
        self.in_features, self.out_features = in_features, out_features
        self.use_bias, self.return_bias = bias, return_bias
        self.parallel_mode, self.tp_group, self.tp_size = parallel_mode, tp_group, tp_size
        self.sequence_parallel = sequence_parallel and tp_size > 1
        rows, columns = out_features, in_features
        if parallel_mode == "column":
            rows //= tp_size
        elif parallel_mode == "row":
            columns //= tp_size
        self.weight = torch.nn.Parameter(torch.empty(rows, columns, device=device, dtype=params_dtype))
        if init_method is not None:
            init_method(self.weight)
        dim = 1 if parallel_mode == "row" else 0
        set_tensor_model_parallel_attributes(self.weight, True, dim, 1)
        if not bias:
            self.bias = None
            return
        self.bias = torch.nn.Parameter(torch.zeros(rows, device=device, dtype=params_dtype))
        if parallel_mode == "row":
            self.bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        elif parallel_mode == "column":
            set_tensor_model_parallel_attributes(self.bias, True, 0, 1)

    def forward(
        self,
        inp: Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        only("Linear.forward", fp8_output=fp8_output, fp8_grad=fp8_grad)
        out = product(self, inp)
        bias = self.bias
        if bias is not None and not self.return_bias:
            out = out + bias
        return (out, bias) if self.return_bias else out


def product(module: Any, x: Tensor) -> Tensor:
    """The product with the weight and the collectives of the module's parallel mode, without the bias."""
    group = module.tp_group if module.tp_size > 1 else None
    if group is None or module.parallel_mode is None:
        return linear(x, module.weight)
    if module.parallel_mode == "column":
        x = gathered(x, group) if module.sequence_parallel else copied(x, group)
        return linear(x, module.weight)
    out = linear(x, module.weight)
    return scattered_sum(out, group) if module.sequence_parallel else summed(out, group)
