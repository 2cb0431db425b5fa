"""Adam for megatron-core's optimizers on CPU, with the interface of the fused GPU one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_patches.patch import Patch


class GroupStepAdam(torch.optim.Optimizer):
    """Adam or AdamW whose step count stands in the parameter group, on torch's fused CPU kernel.

    State of a parameter: `exp_avg` and `exp_avg_sq`, its own shape. State of a group: `step`, an int. This is the
    form of Apex's and Transformer Engine's FusedAdam, and the only one that megatron-core's fully_reshardable
    checkpoints can load: torch's Adam keeps a `step` tensor per parameter.

    params: parameters or groups; lr, betas, eps, weight_decay as in torch; adam_w_mode: decoupled weight decay.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.update = torch._fused_adamw_ if adam_w_mode else torch._fused_adam_

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        """One step with the gradients at hand; parameters without one stay as they are."""
        if closure is not None:
            raise ValueError("GroupStepAdam takes no closure: compute the gradients before step()")
        for group in self.param_groups:
            if group["params"]:
                group["step"] = int(group.get("step", 0)) + 1
                self._step_group(group)

    def _step_group(self, group: dict) -> None:
        params = [param for param in group["params"] if param.grad is not None and param.numel() > 0]
        if not params:
            return
        states = [self._state(param) for param in params]
        beta1, beta2 = group["betas"]
        self.update(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [torch.tensor(float(group["step"]))] * len(params),
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _state(self, param: torch.Tensor) -> dict:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state


def _patch(target: str, replacement: Any, why: str, signature: str) -> Patch:
    return Patch(
        target=f"megatron.core.{target}",
        replacement=replacement,
        why=why,
        versions="megatron-core==0.16.1",
        remove_when="fully_reshardable checkpoints take torch's Adam",
        signature=signature,
    )


PATCHES = [
    _patch(
        "optimizer:Adam",
        GroupStepAdam,
        "torch's AdamW keeps `step` per parameter, which fully_reshardable checkpoints cannot load",
        "class torch.optim.adamw.AdamW",
    ),
    _patch(
        "optimizer:USING_PYTORCH_OPTIMIZER",
        False,
        "get_megatron_optimizer takes torch.optim.AdamW instead of the name Adam",
        "True",
    ),
    _patch(
        "optimizer.distrib_optimizer:Adam",
        GroupStepAdam,
        "DistributedOptimizer accepts this Adam only",
        "class torch.optim.adam.Adam",
    ),
    _patch(
        "optimizer.distrib_optimizer:HAVE_APEX_OR_TE",
        True,
        "the step would be looked for in each parameter's state; a stage without parameters would fail",
        "False",
    ),
    _patch(
        "optimizer.distrib_optimizer:USING_TE_OPTIMIZER",
        True,
        "the step of the groups would not be saved",
        "False",
    ),
]
