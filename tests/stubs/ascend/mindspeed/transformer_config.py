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
        size = getattr(self, "context_parallel_size", 1)
        ring = size > 1 and self.context_parallel_algo == "megatron_cp_algo"
        if ring and hasattr(self, "seq_length") and self.seq_length % (2 * size):
            raise AssertionError("sequence length must be divisible by 2 * context_parallel_size")

    return wrapper
