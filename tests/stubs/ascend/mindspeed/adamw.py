"""MindSpeed's AdamW (core/optimizer/adamw.py at e4772499), which replaces apex's FusedAdam."""

from __future__ import annotations

from typing import Any

import torch


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        adam_w_mode: bool = True,  # what megatron-core 0.16.1 passes
    ) -> None:
        if amsgrad or maximize or not adam_w_mode:
            raise NotImplementedError("amsgrad, maximize and Adam without decoupled decay are not modelled here")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            # A number or a tensor of either device is taken; a number stays.
            step = group["step"] = int(group.get("step", 0)) + 1
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for name in ("exp_avg", "exp_avg_sq"):
                    if name not in state:
                        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                corrected = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"], corrected, value=-group["lr"] / (1 - beta1**step))
