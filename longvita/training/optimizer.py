"""Build megatron-core's distributed optimizer, its parameter groups and the schedule of their learning rates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride

from longvita.config.schema import Config

_VISION_LAYER = re.compile(r"vision_model\.decoder\.layers\.(\d+)\.")


def learning_rate_multiplier(name: str, config: Config) -> float:
    """Factor from `optimizer.lr` to the learning rate of the parameter called `name`.

    In the vision encoder it falls from layer to layer as in BEiT (arXiv 2106.08254): layer i of L, counted from 0, has
    decay ** (L - i) and the embeddings decay ** (L + 1), times vision_lr_mult.
    """
    optimizer = config.optimizer
    if "vision_projection." in name:
        return optimizer.projector_lr_mult
    if "vision_model." not in name:
        return 1.0
    layers = config.model.vision.num_layers
    layer = _VISION_LAYER.search(name)
    depth = layers - int(layer.group(1)) if layer else layers + 1
    return optimizer.vision_lr_mult * optimizer.vision_layer_decay**depth


def weight_decay_multiplier(name: str, parameter: torch.Tensor) -> float:
    """0 for biases, norms, layer scales and other parameters of one dimension; 1 for all others."""
    return 0.0 if parameter.dim() <= 1 or name.endswith(".bias") else 1.0


def group_overrides(chunks: Sequence[torch.nn.Module], config: Config) -> dict[ParamKey, ParamGroupOverride]:
    """Megatron's overrides that put each parameter in the group of its learning rate and weight decay.

    Every group has its own multipliers: on load Megatron identifies groups by `lr_mult` and `wd_mult`, not by their
    rates.
    """
    kinds = {
        (learning_rate_multiplier(name, config), weight_decay_multiplier(name, parameter))
        for chunk in chunks
        for name, parameter in chunk.named_parameters()
        if parameter.requires_grad
    }
    rates = config.optimizer
    return {
        _group_key(lr, decay, config): ParamGroupOverride(
            lr_mult=lr, wd_mult=decay, max_lr=rates.lr * lr, min_lr=rates.min_lr * lr
        )
        for lr, decay in sorted(kinds)
    }


def _group_key(lr: float, decay: float, config: Config) -> ParamKey:
    def belongs(parameter: torch.nn.Parameter, name: str) -> bool:
        return (learning_rate_multiplier(name, config), weight_decay_multiplier(name, parameter)) == (lr, decay)

    return ParamKey(with_name_predicate=ParamWithNamePredicate(name=f"lr {lr} wd {decay}", fn=belongs))


@torch.no_grad()
def build_optimizer(chunks: Sequence[torch.nn.Module], config: Config) -> MegatronOptimizer:
    """AdamW sharded over data-parallel ranks, with fp32 main parameters for bf16 ones.

    `chunks` are wrapped in Megatron's DDP. A pipeline stage without trainable parameters gets the same groups, empty:
    it takes part in the reduction of the gradient norm and in checkpoints. It is built without autograd: its fp32 main
    parameters are views of the weights, and torch would warn at each use of `.grad` of a view that has a history.
    """
    settings = config.optimizer
    bf16 = config.training.precision == "bf16"
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            adam_eps=settings.adam_eps,
            clip_grad=settings.clip_grad,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=True,
        ),
        list(chunks),
        config_overrides=group_overrides(chunks, config),
        use_gloo_process_groups=False,
    )


def warmup_steps(config: Config) -> int:
    """Steps in which the rate rises; fewer than all steps, as Megatron's schedule requires."""
    steps = decay_steps(config)
    return min(round(config.optimizer.warmup_fraction * steps), steps - 1)


def decay_steps(config: Config) -> int:
    """Steps after which the rate is at its lowest."""
    return max(1, config.training.train_iterations)


def build_scheduler(optimizer: Any, config: Config) -> OptimizerParamScheduler:
    """Warm up from 0, then decay; advance it before each step, so that the last of N steps has `min_lr`.

    The rates depend on the number of steps alone: settings come from the config, the number from a checkpoint.
    """
    settings, steps = config.optimizer, decay_steps(config)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=warmup_steps(config),
        lr_decay_steps=steps,
        lr_decay_style=settings.decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=max(1, round(settings.decay_fraction * steps)),
        lr_wsd_decay_style="linear",
    )
