"""The effects of importing MindSpeed, and `repatch`."""

from __future__ import annotations

import importlib.metadata
import logging
from argparse import Namespace
from typing import Any

import torch
from torch_npu.contrib import transfer_to_npu  # noqa: F401 - imported for its side effects

from mindspeed.args_utils import get_full_args, get_mindspeed_args
from mindspeed.log_config import set_log_config
from mindspeed.patch_utils import MindSpeedPatchesManager

register = MindSpeedPatchesManager.register_patch
TE = "megatron.core.extensions.transformer_engine"


def repatch(args: dict[str, Any] | Namespace) -> None:
    """Override arguments by these values, and replace all names again."""
    MindSpeedPatchesManager.remove_patches()
    full_args = get_full_args()
    for key, value in (args if isinstance(args, dict) else vars(args)).items():
        setattr(full_args, key, value)
    _pre_patches(full_args)
    _patches(full_args)


def _pre_patches(args: Namespace) -> None:
    """Create dummies of the packages that megatron.core looks for on import."""
    from mindspeed.adamw import AdamW
    from mindspeed.multi_tensor import multi_tensor_applier, multi_tensor_l2norm, multi_tensor_scale

    register("importlib.metadata.version", version_wrapper)
    for name in ("LayerNorm", "LayerNormLinear", "DotProductAttention", "Linear", "GroupedLinear"):
        register(f"transformer_engine.pytorch.{name}", torch.nn.Module, create_dummy=True)
    register("transformer_engine.pytorch.tensor.QuantizedTensor", torch.nn.Module, create_dummy=True)
    register("transformer_engine.pytorch.float8_tensor.Float8Tensor", torch.nn.Module, create_dummy=True)
    for name in ("CudaRNGStatesTracker", "activation_recompute_forward"):
        register(f"transformer_engine.pytorch.distributed.{name}", torch.nn.Module, create_dummy=True)
    register("transformer_engine.common.recipe.DelayedScaling", torch.nn.Module, create_dummy=True)
    for name in ("FP8GlobalStateManager", "fp8_autocast"):
        register(f"transformer_engine.pytorch.fp8.{name}", torch.nn.Module, create_dummy=True)
    for name in ("Sequential", "GELU", "GEGLU", "SwiGLU", "ReLU", "ReGLU", "FusibleOperation"):
        register(f"transformer_engine.pytorch.ops.{name}", torch.nn.Module, create_dummy=True)
    register("amp_C.multi_tensor_l2norm", multi_tensor_l2norm, create_dummy=True)
    register("amp_C.multi_tensor_scale", multi_tensor_scale, create_dummy=True)
    register("apex.multi_tensor_apply.multi_tensor_applier", multi_tensor_applier, create_dummy=True)
    register("apex.optimizers.FusedAdam", AdamW, create_dummy=True)
    register("apex.optimizers.FusedSGD", torch.optim.SGD, create_dummy=True)


def version_wrapper(fn: Any) -> Any:
    """Add a version for the missing package."""

    def version(name: str, *args: Any, **kwargs: Any) -> str:
        return "2.2.0" if name == "transformer-engine" else fn(name, *args, **kwargs)

    return version


def _patches(args: Namespace) -> None:
    from mindspeed import layers
    from mindspeed.te.pytorch.module.layernorm_column_parallel_linear import TELayerNormColumnParallelLinear
    from mindspeed.te.pytorch.module.linear import TEColumnParallelLinear, TERowParallelLinear
    from mindspeed.transformer_config import transformer_config_init_wrapper, transformer_config_post_init_wrapper

    config = "megatron.core.transformer.transformer_config.TransformerConfig"
    register(f"{config}.__init__", transformer_config_init_wrapper)
    register(f"{config}.__post_init__", transformer_config_post_init_wrapper)
    for name in (
        "megatron.core.models.gpt.gpt_layer_specs.LNImpl",
        "megatron.core.transformer.torch_norm.WrappedTorchNorm",
        "megatron.core.transformer.transformer_block.LayerNormImpl",
        f"{TE}.TENorm",
    ):
        register(name, layers.PTNorm)
    register(f"{TE}.TEColumnParallelLinear", TEColumnParallelLinear)
    register(f"{TE}.TERowParallelLinear", TERowParallelLinear)
    register(f"{TE}.TELayerNormColumnParallelLinear", TELayerNormColumnParallelLinear)
    if args.use_fused_swiglu:
        register("megatron.core.fusions.fused_bias_swiglu.SwiGLUFunction", layers.SwiGLUFunction)
    _attention_patches(args)


def _attention_patches(args: Namespace) -> None:
    from mindspeed import attention, context_parallel

    core = "megatron.core.transformer.dot_product_attention.DotProductAttention"
    if int(getattr(args, "context_parallel_size", 1)) == 1:
        if getattr(args, "use_flash_attn", False):
            register(f"{core}.forward", attention.dot_product_attention_forward_wrapper)
            register(f"{core}.__init__", attention.dot_product_attention_init_wrapper)
        register(f"{TE}.TEDotProductAttention", attention.te_dot_product_attention())
        return
    cp_attention = attention.cp_dot_product_attention()
    register(core, cp_attention)
    register(f"{TE}.TEDotProductAttention", cp_attention)
    state = "megatron.core.parallel_state"
    register(f"{state}.initialize_model_parallel", context_parallel.initialize_model_parallel_cp_wrapper)
    register(f"{state}.destroy_model_parallel", context_parallel.destroy_model_parallel_cp_wrapper)
    register(
        "megatron.core.models.common.embeddings.rotary_pos_embedding.get_pos_emb_on_this_cp_rank",
        context_parallel.get_pos_emb_on_this_cp_rank,
    )


set_log_config()
logging.getLogger(__name__).info("start to patch features in megatron adaptor.")
_pre_patches(get_mindspeed_args())
_patches(get_mindspeed_args())
assert importlib.metadata.version("transformer-engine") == "2.2.0"
