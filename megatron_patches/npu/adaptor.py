"""MindSpeed's adaptor: imported before megatron-core, and told its arguments by a dict.

MindSpeed replaces some forty names of megatron-core when it is imported, and makes packages up that are not installed
(transformer_engine, apex, amp_C, flash_attn). megatron-core looks for those once, when it is imported itself: after
that MindSpeed comes too late, and Megatron's TE-shaped layers raise NameError. It also reads the command line, where
every value is text (`context_parallel_size='2'`), so it is shown an empty one.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from megatron_patches.patch import PatchError

ADAPTOR = "mindspeed.megatron_adaptor"
RING = "megatron_cp_algo"
"""MindSpeed's name of the ring."""
REFUSED_ALGORITHMS = {
    "ulysses_cp_algo": "Ulysses on packed documents ends with an IndexError, and on whole sequences its loss is wrong",
    "kvallgather_cp_algo": (
        "the all-gather of keys and values takes contiguous shares of packed documents, where rotary angles are "
        "zigzag: its loss is wrong without a word"
    ),
    "hybrid_cp_algo": "the hybrid of Ulysses and ring has not been checked on packed documents",
    "adaptive_cp_algo": "the adaptive ring has not been checked on packed documents",
    "hybrid_adaptive_cp_algo": "the adaptive hybrid has not been checked on packed documents",
}
"""Context-parallel algorithms of MindSpeed that must not be used, and what is wrong with each."""
REQUIRED = {
    "use_flash_attn": True,
    "attention_mask_type": "causal",
    "reset_attention_mask": False,
    "reset_position_ids": False,
    "use_legacy_models": False,
    "transformer_impl": "transformer_engine",
}
"""Arguments that have one right value here.

use_flash_attn: without it attention silently never calls the fused operator. attention_mask_type: masks of other types
are not made, which leaves attention open in both directions. reset_*: a dataset of Megatron's own would do it;
documents are told by their bounds. transformer_impl: must be what the layer spec is.
"""


def activate() -> None:
    """Imports MindSpeed; nothing the second time.

    Raises PatchError if megatron-core is there already, or did not take MindSpeed's Transformer Engine for one;
    ImportError if MindSpeed or something it needs is not installed.
    """
    if ADAPTOR in sys.modules:
        return
    early = sorted(name for name in sys.modules if name == "megatron.core" or name.startswith("megatron.core."))
    if early:
        raise PatchError(
            f"MindSpeed must be imported before megatron-core, and {early[0]} is there already ({len(early)} modules "
            f"of it): activate the platform first, import what builds models after it"
        )
    with _empty_command_line():
        importlib.import_module(ADAPTOR)
    from megatron.core.extensions import transformer_engine

    if not transformer_engine.HAVE_TE:
        raise PatchError(
            "megatron-core found no Transformer Engine although MindSpeed is imported: is this its branch "
            "core_r0.16.0? (`git -C MindSpeed branch --show-current`)"
        )


def repatch(arguments: dict[str, Any]) -> None:
    """Has MindSpeed replace names anew by these arguments, laid over those before.

    Process groups and layer specs must be made after it: those made before keep the classes of before. Raises
    PatchError for an argument that MindSpeed accepts and gets wrong.
    """
    check(arguments)
    sys.modules[ADAPTOR].repatch(arguments)


def check(arguments: dict[str, Any]) -> None:
    """Raises PatchError for a missing argument, or a value that MindSpeed accepts and gets wrong."""
    for name, value in REQUIRED.items():
        if name not in arguments or arguments[name] != value:
            raise PatchError(f"MindSpeed's {name} must be {value!r}, and is {arguments.get(name)!r}")
    algorithm = arguments.get("context_parallel_algo")
    if algorithm != RING:
        reason = REFUSED_ALGORITHMS.get(str(algorithm), "it is not known here")
        raise PatchError(f"MindSpeed's context_parallel_algo {algorithm!r} is refused: {reason}; use {RING!r}")
    for name in ("context_parallel_size", "seq_length", "micro_batch_size"):
        if type(arguments.get(name)) is not int:
            raise PatchError(f"MindSpeed's {name} must be a whole number, and is {arguments.get(name)!r}")


def replaced_names() -> list[str]:
    """Names that MindSpeed has replaced, sorted."""
    if ADAPTOR not in sys.modules:
        return []
    return sorted(importlib.import_module("mindspeed.patch_utils").MindSpeedPatchesManager.patches_info)


@contextlib.contextmanager
def _empty_command_line() -> Iterator[None]:
    """The command line without its arguments, which are not MindSpeed's."""
    whole = sys.argv
    sys.argv = whole[:1]
    try:
        yield
    finally:
        sys.argv = whole
