"""transformer_engine/pytorch/module/layernorm_linear.py"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from ...refuse import only
from .base import TransformerEngineBaseModule, set_tensor_model_parallel_attributes
from .linear import product


class LayerNormLinear(TransformerEngineBaseModule):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        init_method: Callable | None = None,
        bias: bool = True,
        normalization: str = "LayerNorm",
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        return_layernorm_output: bool = False,
        return_layernorm_output_gathered: bool = False,
        parameters_split: Any = None,
        zero_centered_gamma: bool = False,
        device: torch.device | str = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        only(
            "LayerNormLinear",
            fuse_wgrad_accumulation=fuse_wgrad_accumulation,
            overlap=(ub_overlap_ag or ub_overlap_rs or ub_overlap_rs_dgrad or ub_bulk_dgrad or ub_bulk_wgrad),
            outputs=(return_layernorm_output or return_layernorm_output_gathered),
            parameters_split=parameters_split,
            zero_centered_gamma=zero_centered_gamma,
            delay_wgrad_compute=delay_wgrad_compute,
            symmetric_ar_type=symmetric_ar_type,
        )
        if parallel_mode != "column" or normalization not in ("LayerNorm", "RMSNorm"):
            raise NotImplementedError(f"LayerNormLinear of {parallel_mode}, {normalization}")
        self.in_features, self.out_features = in_features, out_features
        self.use_bias, self.return_bias = bias, return_bias
        self.eps, self.normalization = eps, normalization
        self.parallel_mode, self.tp_group, self.tp_size = parallel_mode, tp_group, tp_size
        self.sequence_parallel = sequence_parallel and tp_size > 1
        self._make_parameters(bias, init_method, {"device": device, "dtype": params_dtype})

    def _make_parameters(self, bias: bool, init_method: Callable | None, factory: dict[str, Any]) -> None:
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(self.in_features, **factory))
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        self.layer_norm_bias = None
        if self.normalization == "LayerNorm":
            self.layer_norm_bias = torch.nn.Parameter(torch.zeros(self.in_features, **factory))
            self.layer_norm_bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        self.weight = torch.nn.Parameter(torch.empty(self.out_features // self.tp_size, self.in_features, **factory))
        if init_method is not None:
            init_method(self.weight)
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.bias = None
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(self.out_features // self.tp_size, **factory))
            set_tensor_model_parallel_attributes(self.bias, True, 0, 1)

    def forward(
        self,
        inp: Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        only("LayerNormLinear.forward", fp8_output=fp8_output, fp8_grad=fp8_grad)
        shape = (self.in_features,)
        if self.normalization == "RMSNorm":
            normed = rms_norm(inp, shape, self.layer_norm_weight, self.eps)
        else:
            normed = layer_norm(inp, shape, self.layer_norm_weight, self.layer_norm_bias, self.eps)
        out = product(self, normed)
        bias = self.bias
        if bias is not None and not self.return_bias:
            out = out + bias
        return (out, bias) if self.return_bias else out
