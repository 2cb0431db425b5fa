"""transformer_engine/pytorch/optimizers: multi_tensor_apply.py, fused_adam.py, and two kernels of the extension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...refuse import only


class MultiTensorApply:
    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size

    def __call__(self, op: Any, noop_flag_buffer: Tensor, tensor_lists: list, *args: Any) -> Any:
        if any(len(tensors) != len(tensor_lists[0]) for tensors in tensor_lists):
            raise RuntimeError("Expected aligned multi-tensor lists.")
        keep = [tensor.numel() > 0 for tensor in tensor_lists[0]]
        for number, tensors in enumerate(tensor_lists):
            tensor_lists[number] = [tensor for tensor, kept in zip(tensors, keep, strict=True) if kept]
        if not tensor_lists[0]:
            return None
        return op(self.chunk_size, noop_flag_buffer, tensor_lists, *args)


multi_tensor_applier = MultiTensorApply(2048 * 32)


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list, per_tensor: bool | None = None
) -> tuple[Tensor, Tensor]:
    only("multi_tensor_l2norm", per_tensor=per_tensor)
    norms = [torch.linalg.vector_norm(tensor.float()) for tensor in tensor_lists[0]]
    return torch.linalg.vector_norm(torch.stack(norms))[None], torch.zeros(0)


def multi_tensor_scale(chunk_size: int, noop_flag: Tensor, tensor_lists: list, scale: float) -> None:
    for source, target in zip(*tensor_lists, strict=True):
        target.copy_(source * scale)


class FusedSGD(torch.optim.SGD): ...


class FusedAdam(torch.optim.Optimizer):
    """State of a parameter: exp_avg and exp_avg_sq; of a group: step."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        capturable: bool = False,
        master_weights: bool = False,
        master_weight_dtype: torch.dtype = torch.float32,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = False,
        store_param_remainders: bool = False,
        set_grad_none: bool | None = None,
    ) -> None:
        only(
            "FusedAdam",
            amsgrad=amsgrad,
            plain=not (bias_correction and adam_w_mode),
            capturable=capturable,
            master_weights=master_weights,
            decoupled=use_decoupled_grad or store_param_remainders or set_grad_none,
        )
        if {exp_avg_dtype, exp_avg_sq_dtype} != {torch.float32}:
            raise NotImplementedError("moments of other types than fp32")
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None, grad_scaler: Any = None) -> None:  # type: ignore[override]
        only("FusedAdam.step", closure=closure, grad_scaler=grad_scaler)
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            only("FusedAdam.step", plain=not group["bias_correction"])
            (beta1, beta2), step = group["betas"], group["step"]
            for param in group["params"]:
                if param.grad is None or not param.numel():
                    continue
                state = self.state[param]
                for name in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(name, torch.zeros_like(param))
                state["exp_avg"].lerp_(param.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
                root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
                update = state["exp_avg"] / (1 - beta1**step) / root + group["weight_decay"] * param
                param.sub_(update, alpha=float(group["lr"]))
