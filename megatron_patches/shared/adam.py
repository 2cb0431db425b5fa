"""Adam for megatron-core's optimizers where no fused one is installed, with the fused one's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_patches.patch import Patch


class GroupStepAdam(torch.optim.Optimizer):
    """Adam or AdamW with the step count in the parameter group, on torch's fused kernel.

    State of a parameter: `exp_avg` and `exp_avg_sq`, of its own shape. State of a group: `step`, an int. Apex's and
    Transformer Engine's FusedAdam have this format, the only one that megatron-core's fully_reshardable checkpoints can
    load: torch's Adam keeps a `step` tensor per parameter.

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
        """Update the parameters that have a gradient. Raises ValueError for a closure."""
        if closure is not None:
            raise ValueError("GroupStepAdam does not support a closure; fix: compute the gradients before step()")
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
        remove_when="fully_reshardable checkpoints support torch's Adam",
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
        "get_megatron_optimizer uses torch.optim.AdamW instead of the name Adam",
        "True",
    ),
    _patch(
        "optimizer.distrib_optimizer:Adam",
        GroupStepAdam,
        "DistributedOptimizer accepts only the class of this name",
        "class torch.optim.adam.Adam",
    ),
    _patch(
        "optimizer.distrib_optimizer:HAVE_APEX_OR_TE",
        True,
        "the step is read from each parameter's state, which fails for a pipeline stage without parameters",
        "False",
    ),
    _patch(
        "optimizer.distrib_optimizer:USING_TE_OPTIMIZER",
        True,
        "the step of the groups is not saved",
        "False",
    ),
]
