"""MindSpeed's change of TransformerConfig."""

from __future__ import annotations

import inspect
from dataclasses import field, make_dataclass
from functools import wraps
from typing import Any

from mindspeed.args_utils import get_full_args


def transformer_config_init_wrapper(fn: Any) -> Any:
    """Missing fields come from the arguments; arguments that are not fields become attributes.

    Each object gets a class of its own, so pickle and dataclasses.replace fail.
    """

    @wraps(fn)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        full = vars(get_full_args()) | kwargs
        fields = inspect.signature(self.__class__).parameters
        known = {key: value for key, value in full.items() if key in fields}
        unknown = {key: value for key, value in full.items() if key not in fields}
        extra = [(key, type(value), field(init=False)) for key, value in unknown.items() if not hasattr(self, key)]
        self.__class__ = make_dataclass(self.__class__.__name__, fields=extra, bases=(self.__class__,))
        for key, value in unknown.items():
            if not hasattr(self, key):
                setattr(self, key, value)
        fn(self, *args, **known)

    return wrapper


def transformer_config_post_init_wrapper(fn: Any) -> Any:
    """Megatron's own checks, then those of MindSpeed's features that apply to a dense model with ring attention."""

    @wraps(fn)
    def wrapper(self: Any) -> None:
        fn(self)
        _check_megatron_basic(self)
        _check_transformer_engine(self)
        _check_context_parallelism(self)

    return wrapper


def _check_megatron_basic(config: Any) -> None:
    if getattr(config, "num_layers_per_virtual_pipeline_stage", None) is not None:
        raise NotImplementedError("layers per virtual stage are not modelled here")
    if getattr(config, "defer_embedding_wgrad_compute", False):
        raise AssertionError(
            "--defer_embedding_wgrad_compute, although exclusive to TE scenarios, is not yet supported."
        )


def _check_transformer_engine(config: Any) -> None:
    if config.fp8 and config.transformer_impl == "local":
        raise AssertionError("FP8 just support TE implement.")
    te = getattr(config, "transformer_impl", "transformer_engine") == "transformer_engine"
    if te and getattr(config, "use_legacy_models", False):
        raise AssertionError("transformer engine only support for mcore models")


def _check_context_parallelism(config: Any) -> None:
    size = config.context_parallel_size
    if size == 1 or config.context_parallel_algo != "megatron_cp_algo":
        return
    if hasattr(config, "seq_length") and config.seq_length % (2 * size):
        raise AssertionError("sequence length must be divisible by 2 * context_parallel_size")
    if not 1 <= config.cp_window_size < size or size % config.cp_window_size:
        raise AssertionError("cp_window_size should in range [1, context_parallel_size) and divide it")
    config.use_flash_attn = True
