"""Settings of a config that Transformer Engine does not support or computes wrongly, from the source of 2.20.2."""

from __future__ import annotations

from collections.abc import Iterator

from longvita.config.errors import Problem
from longvita.config.schema import Config
from longvita.config.sizes import ulysses_size
from longvita.platforms.cuda.requirements import INSTALL_ENGINE

FP8_CAPABILITY = {"tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}
"""Minimum compute capability by FP8 scaling."""
FP8_UNITS = {"tensorwise": 16, "blockwise": 16, "mxfp8": 32}
"""Rows and columns of FP8 matrix products must be multiples of this: 16 bytes for both operands, because the backward
pass transposes them, and 32 numbers for a block of MXFP8.
"""


def find_problems(config: Config, engine: bool, capability: tuple[int, int] | None) -> list[Problem]:
    """Problems of a config. engine: whether Transformer Engine is installed; capability: the GPU's, None for any."""
    found: list[Problem] = []
    if engine:
        found += _of_context_parallelism(config)
        field, overlap = "training.megatron.tp_comm_overlap", config.training.megatron.get("tp_comm_overlap")
        if overlap:
            message = "needs buffers that this project does not allocate"
            found.append(Problem(message, field, overlap, fix="leave it out"))
    if config.training.fp8 is not None:
        found += _of_fp8(config, engine, capability)
    return found


def _of_context_parallelism(config: Config) -> Iterator[Problem]:
    """Attention over a split sequence has no kernel for fp32, and Ulysses ranks get undivided groups."""
    layout, language = config.layout, config.model.language
    if layout.context_parallel == 1:
        return
    if config.training.precision != "bf16":
        message = (
            f"has no kernel in Transformer Engine's attention with layout.context_parallel {layout.context_parallel}"
        )
        yield Problem(message, "training.precision", config.training.precision, fix="use bf16, or context_parallel 1")
    heads = language.num_attention_heads // layout.tensor_parallel
    groups, ulysses = language.num_query_groups // layout.tensor_parallel, ulysses_size(config)
    if heads % ulysses or groups % ulysses:
        message = f"does not divide the {heads} heads and {groups} groups of a TP rank: Transformer Engine requires it"
        yield Problem(message, "layout.ulysses", ulysses, fix="leave layout.ulysses out, or use a divisor of both")


def _of_fp8(config: Config, engine: bool, capability: tuple[int, int] | None) -> Iterator[Problem]:
    kind, chunk = str(config.training.fp8), config.training.mlp_chunk_size
    unit, tp = FP8_UNITS[kind], config.layout.tensor_parallel
    if not engine:
        yield Problem("needs Transformer Engine", "training.fp8", kind, fix=f"install it with {INSTALL_ENGINE}")
    if capability is not None and capability < FP8_CAPABILITY[kind]:
        needed, there = (".".join(map(str, one)) for one in (FP8_CAPABILITY[kind], capability))
        message = f"needs a GPU of compute capability {needed}; this one has {there}"
        yield Problem(message, "training.fp8", kind, fix="another scaling, or leave fp8 out")
    rows = unit * (tp if config.layout.sequence_parallel else 1)
    # With context parallelism the sequence layout adds padding.
    if config.layout.context_parallel == 1 and config.data.sequence_length % rows:
        yield _no_multiple(config.data.sequence_length, "data.sequence_length", kind, rows)
    if chunk is not None and chunk % unit:
        yield _no_multiple(chunk, "training.mlp_chunk_size", kind, unit)
    language = config.model.language
    qkv = (language.num_attention_heads + 2 * language.num_query_groups) * language.head_dim
    widths = {
        "ffn_hidden_size": language.ffn_hidden_size // tp,
        "hidden_size": language.hidden_size,
        "head_dim": qkv // tp,
        "num_attention_heads": language.num_attention_heads * language.head_dim // tp,
    }
    for name, width in widths.items():
        if width % unit:
            message = f"gives {width} columns on a TP rank; training.fp8 {kind} requires multiples of {unit}"
            fix = "another layout.tensor_parallel or scaling, or leave fp8 out"
            yield Problem(message, f"model.language.{name}", getattr(language, name), fix=fix)


def _no_multiple(value: int, field: str, kind: str, unit: int) -> Problem:
    fix = f"{value // unit * unit or unit}, or {value // unit * unit + unit}"
    return Problem(f"must be a multiple of {unit} with training.fp8 {kind}", field, value, fix=fix)
