"""MindSpeed's adaptor, imported before megatron-core and configured by a dict of arguments.

On import MindSpeed replaces some forty names of megatron-core and creates substitutes for packages that are not
installed (transformer_engine, apex, amp_C, flash_attn). megatron-core checks for those packages once, when it is
imported itself. If MindSpeed is imported later, Megatron's TE-shaped layers raise NameError. MindSpeed also reads the
command line, where every value is text (`context_parallel_size='2'`), so the command line is empty during its import.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from megatron_patches.patch import PatchError

ADAPTOR = "mindspeed.megatron_adaptor"
RING = "megatron_cp_algo"
"""MindSpeed's name for ring attention."""
REFUSED_ALGORITHMS = {
    "ulysses_cp_algo": "Ulysses raises an IndexError for packed documents; for unpacked sequences its loss is wrong",
    "kvallgather_cp_algo": (
        "the all-gather of keys and values expects contiguous CP shards of packed documents, but rotary angles are "
        "zigzag: its loss is silently wrong"
    ),
    "hybrid_cp_algo": "the hybrid of Ulysses and ring has not been checked on packed documents",
    "adaptive_cp_algo": "the adaptive ring has not been checked on packed documents",
    "hybrid_adaptive_cp_algo": "the adaptive hybrid has not been checked on packed documents",
}
"""Context-parallel algorithms of MindSpeed that must not be used, and the reason for each."""
REQUIRED = {
    "use_flash_attn": True,
    "attention_mask_type": "causal",
    "reset_attention_mask": False,
    "reset_position_ids": False,
    "use_legacy_models": False,
    "transformer_impl": "transformer_engine",
}
"""Arguments that have only one correct value here.

use_flash_attn: without it attention silently does not call the fused operator. attention_mask_type: masks of other
types are not created, and attention is silently bidirectional. reset_*: for Megatron's own datasets; this project
separates documents by their bounds. transformer_impl: must match the layer spec.
"""


def activate() -> None:
    """Import MindSpeed; a second call does nothing.

    Raises PatchError if megatron-core is imported already, or does not recognize MindSpeed's Transformer Engine. If
    MindSpeed or a package that it imports is missing or fails, raises that import's own exception, of any type.
    """
    if ADAPTOR in sys.modules:
        return
    early = sorted(name for name in sys.modules if name == "megatron.core" or name.startswith("megatron.core."))
    if early:
        raise PatchError(
            f"MindSpeed must be imported before megatron-core, but {early[0]} is imported already ({len(early)} "
            f"modules of it); fix: activate the platform before importing code that builds models"
        )
    with _empty_command_line(), _output_unchanged():
        importlib.import_module(ADAPTOR)
    from megatron.core.extensions import transformer_engine

    if not transformer_engine.HAVE_TE:
        raise PatchError(
            "megatron-core found no Transformer Engine although MindSpeed is imported; fix: install MindSpeed's branch "
            "core_r0.16.0 (`git -C MindSpeed branch --show-current` prints the present one)"
        )


def repatch(arguments: dict[str, Any]) -> None:
    """Let MindSpeed replace names again for these arguments, which override its previous ones.

    Process groups and layer specs must be built after this call: existing ones keep the previous classes. Raises
    PatchError for an argument that MindSpeed accepts and computes wrongly.
    """
    check(arguments)
    sys.modules[ADAPTOR].repatch(arguments)


def check(arguments: dict[str, Any]) -> None:
    """Raise PatchError for a missing argument, or a value that MindSpeed accepts and computes wrongly."""
    for name, value in REQUIRED.items():
        if name not in arguments or arguments[name] != value:
            raise PatchError(f"MindSpeed's {name} must be {value!r}; it is {arguments.get(name)!r}")
    algorithm = arguments.get("context_parallel_algo")
    if algorithm != RING:
        reason = REFUSED_ALGORITHMS.get(str(algorithm), "this project does not know it")
        raise PatchError(f"MindSpeed's context_parallel_algo {algorithm!r} is refused: {reason}; fix: use {RING!r}")
    for name in ("context_parallel_size", "seq_length", "micro_batch_size"):
        if type(arguments.get(name)) is not int:
            raise PatchError(f"MindSpeed's {name} must be an integer; it is {arguments.get(name)!r}")


def replaced_names() -> list[str]:
    """Names that MindSpeed has replaced, sorted; [] if it is not imported."""
    if ADAPTOR not in sys.modules:
        return []
    return sorted(importlib.import_module("mindspeed.patch_utils").MindSpeedPatchesManager.patches_info)


@contextlib.contextmanager
def _empty_command_line() -> Iterator[None]:
    """The command line without its arguments, which are not meant for MindSpeed."""
    complete = sys.argv
    sys.argv = complete[:1]
    try:
        yield
    finally:
        sys.argv = complete


@contextlib.contextmanager
def _output_unchanged() -> Iterator[None]:
    """Standard output for answers alone, and logging as it was.

    MindSpeed sends the root logger to stdout from the level INFO on, and reports its own steps and deprecated names of
    torch while it is imported. None of it is for users of this project; warnings and errors still go to stderr.
    """
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="mindspeed")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
