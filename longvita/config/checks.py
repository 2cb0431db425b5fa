"""Checks across fields: refuse sizes that do not fit each other before any process starts.

`find_problems` checks every config, `check_world_size` the number of processes that a launcher starts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from longvita.config.errors import ConfigError, Problem, ValueOrigin
from longvita.config.schema import TILE_MARKERS, Config
from longvita.config.sizes import frames_that_fit, layers_per_stage, processes_to_start, replica_size


def find_problems(config: Config) -> list[Problem]:
    """Return every cross-field problem of a config (the loader fills in the origins)."""
    return [problem for check in _CHECKS for problem in check(config)]


def check_world_size(config: Config, world_size: int) -> int:
    """Return the data-parallel size of `world_size` processes.

    Raises:
        ConfigError: the processes are not a multiple of a model replica, or the batch does not split over them.
    """
    problems = list(_world_size_problems(config, world_size))
    if problems:
        raise ConfigError(problems)
    return world_size // replica_size(config)


def _problem(config: Config, field: str, message: str, fix: str, *related: str) -> Problem:
    others = tuple((name, _value(config, name), ValueOrigin()) for name in related)
    return Problem(message, field, _value(config, field), fix=fix, related=others)


def _value(config: Config, dotted: str) -> Any:
    return operator.attrgetter(dotted)(config)


def _divisors(*numbers: int) -> str:
    """List the common divisors of `numbers`, for a fix."""
    common = [d for d in range(1, min(numbers) + 1) if all(number % d == 0 for number in numbers)]
    return ", ".join(str(d) for d in common[:12])


def _check_vision(config: Config) -> Iterator[Problem]:
    vision, downsample = config.model.vision, config.model.projector.downsample
    prefix = "model.vision."
    if vision.hidden_size % vision.num_attention_heads:
        fix, related = f"num_attention_heads of {_divisors(vision.hidden_size)}", prefix + "hidden_size"
        yield _problem(config, prefix + "num_attention_heads", "does not divide the hidden size", fix, related)
    if vision.image_size % vision.patch_size:
        fitting = vision.image_size // vision.patch_size * vision.patch_size
        fix = f"image_size={fitting} or {fitting + vision.patch_size}"
        message, related = "is not a multiple of the patch size", prefix + "patch_size"
        yield _problem(config, prefix + "image_size", message, fix, related)
    elif vision.patches_per_side % downsample:
        message = f"does not divide the {vision.patches_per_side} patches along a tile's side"
        fix = f"downsample of {_divisors(vision.patches_per_side)}"
        related = prefix + "image_size"
        yield _problem(config, "model.projector.downsample", message, fix, related, prefix + "patch_size")


def _check_language(config: Config) -> Iterator[Problem]:
    language = config.model.language
    heads, groups = "model.language.num_attention_heads", "model.language.num_query_groups"
    if language.kv_channels is None and language.hidden_size % language.num_attention_heads:
        fix = f"num_attention_heads of {_divisors(language.hidden_size)}, or kv_channels"
        yield _problem(config, heads, "does not divide the hidden size", fix, "model.language.hidden_size")
    elif language.head_dim % 2:
        message = f"gives heads of odd width {language.head_dim}, but RoPE rotates pairs of channels"
        yield _problem(config, heads, message, "another head count", "model.language.hidden_size")
    if language.num_attention_heads % language.num_query_groups:
        fix = f"num_query_groups of {_divisors(language.num_attention_heads)}"
        yield _problem(config, groups, "does not divide the attention heads", fix, heads)


def _check_tensor_parallel(config: Config) -> Iterator[Problem]:
    tp, language, field = config.layout.tensor_parallel, config.model.language, "layout.tensor_parallel"
    split = ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "vocab_size")
    wrong = [name for name in split if getattr(language, name) % tp]
    if wrong:
        message = f"does not divide the model's {', '.join(wrong)}: each TP rank holds an equal part"
        fix = f"tensor_parallel of {_divisors(*(getattr(language, name) for name in split))}"
        yield _problem(config, field, message, fix, *(f"model.language.{name}" for name in wrong))
    if config.layout.sequence_parallel and tp == 1:
        fix = "layout.sequence_parallel=false, or tensor_parallel above 1"
        yield _problem(config, "layout.sequence_parallel", "requires tensor parallelism", fix, field)


def _check_pipeline(config: Config) -> Iterator[Problem]:
    layout, layers = config.layout, config.model.language.num_layers
    pp, virtual, field = layout.pipeline_parallel, layout.virtual_pipeline, "layout.pipeline_parallel"
    if virtual > 1 and pp == 1:
        fix = "layout.virtual_pipeline=1, or pipeline_parallel above 1"
        yield _problem(config, "layout.virtual_pipeline", "requires pipeline parallelism", fix, field)
        return
    ends = [
        f"layout.num_layers_in_{end}_pipeline_stage"
        for end in ("first", "last")
        if _value(config, f"layout.num_layers_in_{end}_pipeline_stage") is not None
    ]
    if ends and pp == 1:
        yield _problem(config, ends[0], "requires pipeline parallelism", f"remove {' and '.join(ends)}", field)
        return
    middle, stages = layers - sum(_value(config, end) for end in ends), pp - len(ends)
    related = ("model.language.num_layers", *ends)
    if middle < stages or (stages and middle % stages) or (not stages and middle):
        left = f"{middle} layers left for {stages} stages" if ends else f"{layers} layers over {pp} stages"
        fix = (
            "first and last stage sizes that leave a multiple of the stages between them"
            if ends
            else f"pipeline_parallel of {_divisors(layers)}, or num_layers_in_first_pipeline_stage for an uneven split"
        )
        yield _problem(config, field, f"the layers do not fit the stages: {left}", fix, *related)
        return
    uneven = [count for count in layers_per_stage(config) if count % virtual]
    if uneven:
        message = f"does not divide the {uneven[0]} layers of a stage"
        fix = f"virtual_pipeline of {_divisors(*layers_per_stage(config))}"
        yield _problem(config, "layout.virtual_pipeline", message, fix, field, *related)


def _check_context_parallel(config: Config) -> Iterator[Problem]:
    layout, heads = config.layout, config.model.language.num_attention_heads
    local_heads = heads // layout.tensor_parallel
    if layout.ulysses is None:
        return
    for field, number, what in (
        ("layout.context_parallel", layout.context_parallel, "context-parallel ranks"),
        ("model.language.num_attention_heads", local_heads, "heads of a TP rank"),
    ):
        if number % layout.ulysses:
            message = f"does not divide the {number} {what}"
            fix = f"ulysses of {_divisors(layout.context_parallel, local_heads)}"
            yield _problem(config, "layout.ulysses", message, fix, field, "layout.tensor_parallel")


def _check_sequence(config: Config) -> Iterator[Problem]:
    layout, length, field = config.layout, config.data.sequence_length, "data.sequence_length"
    sharers = layout.tensor_parallel if layout.sequence_parallel else 1
    unit = sharers * (2 * layout.context_parallel if layout.context_parallel > 1 else 1)
    if length % unit:
        rule = "2 x CP" if layout.context_parallel > 1 else ""
        rule += (" x " if rule else "") + "TP (sequence parallel)" if sharers > 1 else ""
        lower = length // unit * unit
        fix = f"sequence_length={lower} or {lower + unit}" if lower else f"sequence_length={unit}"
        related = ("layout.context_parallel", "layout.tensor_parallel", "layout.sequence_parallel")
        yield _problem(config, field, f"is not a multiple of {unit} = {rule}", fix, *related)
    yield from _check_positions(config, field)


def _check_positions(config: Config, field: str) -> Iterator[Problem]:
    limit, related = config.model.language.max_position_embeddings, "model.language.max_position_embeddings"
    if _value(config, field) > limit:
        yield _problem(config, field, "is longer than the model accepts", f"at most {limit}", related)


def _check_tiles(config: Config) -> Iterator[Problem]:
    per_tile, length = config.model.tokens_per_tile, config.data.sequence_length
    fit = frames_that_fit(length, per_tile)
    cost = f"{per_tile + TILE_MARKERS} tokens each with their markers"
    for field, extra, what in (("max_num_frames", 0, "frames"), ("max_num_tiles", 1, "tiles and a thumbnail")):
        limit = fit - extra
        value = getattr(config.data, field)
        # A picture of one tile has no thumbnail, so the tile may fill the sequence.
        if value > limit and not (field == "max_num_tiles" and value == 1 and fit >= 1):
            message = f"{value} {what} do not fit the sequence: {cost}, so at most {max(limit, 0)} fit"
            fix = f"data.{field}={limit} or a longer data.sequence_length" if limit > 0 else "a longer sequence"
            yield _problem(config, f"data.{field}", message, fix, "data.sequence_length")


def _check_inference(config: Config) -> Iterator[Problem]:
    inference = config.inference
    fit = frames_that_fit(inference.max_seq_len, config.model.tokens_per_tile)
    yield from _check_positions(config, "inference.max_seq_len")
    if inference.max_num_frames > fit:
        cost = f"{config.model.tokens_per_tile + TILE_MARKERS} tokens each with their markers"
        message = f"{inference.max_num_frames} frames do not fit: {cost}, so at most {fit} fit"
        fix = f"inference.max_num_frames={fit} or a larger inference.max_seq_len"
        yield _problem(config, "inference.max_num_frames", message, fix, "inference.max_seq_len")
    if inference.max_new_tokens >= inference.max_seq_len:
        message, fix = "leaves no room for a prompt", f"less than {inference.max_seq_len}"
        yield _problem(config, "inference.max_new_tokens", message, fix, "inference.max_seq_len")


def _check_batch(config: Config) -> Iterator[Problem]:
    # Where the number of replicas is not known yet: a batch that does not fit one fits none.
    field = "" if config.layout.processes is None else "layout.processes"
    yield from _world_size_problems(config, processes_to_start(config), field)


def _world_size_problems(config: Config, world_size: int, field: str = "") -> Iterator[Problem]:
    """Find problems of running with `world_size` processes; `field`: where the number was configured."""
    replica = replica_size(config)
    sizes = ("layout.tensor_parallel", "layout.pipeline_parallel", "layout.context_parallel")
    if world_size % replica:
        message = f"{world_size} processes are not a multiple of a model replica's {replica} = TP x PP x CP"
        lower = world_size // replica * replica
        fix = f"start {f'{lower} or ' if lower else ''}{lower + replica} processes, or choose another layout"
        yield _problem(config, field or sizes[0], message, fix, *(sizes if field else sizes[1:]))
        return
    batch, micro = config.training.global_batch_size, config.training.micro_batch_size
    data_parallel, pp = world_size // replica, config.layout.pipeline_parallel
    unit = micro * data_parallel
    message = f"is not a multiple of micro batch x DP = {micro} x {data_parallel}"
    related = ["training.micro_batch_size"]
    if config.layout.virtual_pipeline > 1:
        # megatron-core's interleaved schedule processes micro batches in groups of PP.
        unit *= pp
        message += f", x PP = {pp} for the interleaved schedule"
        related.append("layout.virtual_pipeline")
    if batch % unit:
        lower = batch // unit * unit
        fix = f"global_batch_size={f'{lower} or ' if lower else ''}{lower + unit}"
        yield _problem(config, "training.global_batch_size", message, fix, *related, *sizes)


def _check_training(config: Config) -> Iterator[Problem]:
    training, optimizer, recompute = config.training, config.optimizer, config.training.recompute
    if len(set(training.trainable)) < len(training.trainable):
        yield _problem(config, "training.trainable", "names a part twice", "name each part once")
    if optimizer.min_lr > optimizer.lr:
        fix = f"optimizer.min_lr of at most {optimizer.lr}"
        yield _problem(config, "optimizer.min_lr", "is above the highest learning rate", fix, "optimizer.lr")
    if training.fp8 is not None and training.precision != "bf16":
        yield _problem(config, "training.fp8", "requires bf16", "training.precision=bf16", "training.precision")
    if recompute.granularity == "full" and config.model.language.num_layers >= config.layout.pipeline_parallel:
        most = max(layers_per_stage(config)) // config.layout.virtual_pipeline
        if recompute.num_layers > max(most, 1):
            message = f"is more than the {most} layers of a stage's model chunk"
            related = ("model.language.num_layers", "layout.pipeline_parallel", "layout.virtual_pipeline")
            yield _problem(config, "training.recompute.num_layers", message, f"at most {most}", *related)
    if recompute.offload and not _all_layers_recomputed(config):
        message = "offloads the inputs of recomputed layers, but some layers are not recomputed"
        fix = "training.recompute.granularity=full and training.recompute.method=uniform"
        fields = (f"training.recompute.{name}" for name in ("granularity", "method", "num_layers"))
        yield _problem(config, "training.recompute.offload", message, fix, *fields)


def _all_layers_recomputed(config: Config) -> bool:
    recompute = config.training.recompute
    chunk = max(layers_per_stage(config)) // config.layout.virtual_pipeline
    every = recompute.method == "uniform" or recompute.num_layers >= chunk
    return recompute.granularity == "full" and every


_CHECKS: list[Callable[[Config], Iterator[Problem]]] = [
    _check_vision,
    _check_language,
    _check_tensor_parallel,
    _check_pipeline,
    _check_context_parallel,
    _check_sequence,
    _check_tiles,
    _check_inference,
    _check_batch,
    _check_training,
]
