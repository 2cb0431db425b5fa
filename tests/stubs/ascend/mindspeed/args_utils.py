"""MindSpeed's arguments: its own defaults, overridden by the command line, as text."""

from __future__ import annotations

import sys
from argparse import Namespace

# Defaults of its features' arguments. Megatron's own arguments have no defaults without megatron.training: reading one
# before `repatch` has set it raises AttributeError.
DEFAULTS = {
    "context_parallel_algo": "megatron_cp_algo",
    "cp_window_size": 1,
    "attention_mask_type": "causal",
    "use_cp_send_recv_overlap": False,
    "use_fusion_attn_v2": False,
    "pre_tockens": 65536,
    "next_tockens": 0,
    "sparse_mode": 0,
    "use_fused_rmsnorm": False,
    "use_fused_swiglu": False,
    "use_fused_rotary_pos_emb": False,
    "optimizer_selection": "fused_adamw",
}

_ARGS: Namespace | None = None


def get_mindspeed_args() -> Namespace:
    """Defaults, and every `--name value` of the command line."""
    global _ARGS
    if _ARGS is None:
        _ARGS = Namespace(**DEFAULTS)
        words = iter(sys.argv[1:])
        for word in words:
            if word.startswith("--"):
                setattr(_ARGS, word[2:].replace("-", "_"), next(words, True))
    return _ARGS


def get_full_args() -> Namespace:
    """Megatron's arguments with MindSpeed's in them; here there is no megatron.training."""
    return get_mindspeed_args()
