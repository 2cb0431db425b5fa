"""The work of `longvita convert` and `longvita verify`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from longvita.checkpoint.errors import CheckpointError
from longvita.commands.support.model_process import check_sizes, joined_replica, launch_replica
from longvita.config import dump
from longvita.config.layout_text import parse_layout
from longvita.config.schema import Config, DataConfig, TrainingConfig
from longvita.platforms.base import Platform
from longvita.processes import is_first_process

if TYPE_CHECKING:
    from longvita.parallel.groups import ParallelGroups

FORMATS = ("long_vita", "internvl", "checkpoint")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def convert(
    source: str,
    target: str,
    layout_format: str = "long_vita",
    layout: str = "tp=1",
    tokenizer: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    platform: str = "auto",
    as_json: bool = False,
    optimizer: str | None = None,
) -> int:
    """Converts between our training checkpoints and the Hugging Face layouts; 0 when done.

    `dtype` is bf16, fp32 or None for the source's; `layout` is how the model is built on the way, where one is.
    `optimizer` is the format of the optimizer's state in a new checkpoint of a training checkpoint, None for none.
    """
    from longvita.checkpoint.hf.media_limits import read_media_limits, write_media_limits
    from longvita.checkpoint.sources import is_training_checkpoint
    from longvita.convert.folders import convert_folder

    if layout_format not in FORMATS:
        raise CheckpointError(f"--format {layout_format!r} is none of {', '.join(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"--dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if optimizer is not None:
        _check_optimizer_format(source, layout_format, optimizer)
    folder, start = Path(target), time.monotonic()
    with_model = is_training_checkpoint(source) or layout_format == "checkpoint"
    if not with_model and not is_first_process():
        return 0  # tensors stream from folder to folder: the first process does it alone
    _check_target(folder)
    limits = read_media_limits(source)
    options = {"format": layout_format, "tokenizer": tokenizer, "dtype": dtype, "max_shard_size": max_shard_size}
    if optimizer is not None:
        code = _convert_optimizer(source, folder, layout, platform, optimizer)
    elif with_model:
        code = _convert_with_model(source, folder, layout, platform, limits, options)
    else:
        held = load_source_tokenizer(source, tokenizer)
        convert_folder(source, folder, layout_format, held, max_shard_size, DTYPES[dtype] if dtype else None)
        code = 0
    if code == 0 and is_first_process():
        if layout_format != "checkpoint":
            write_media_limits(folder, limits)
        _report_conversion(source, folder, layout_format, time.monotonic() - start, as_json)
    return code


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"--to {folder} is a file; give a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"--to {folder} is there already and not empty; give a new folder or empty it")


def _convert_with_model(
    source: str, folder: Path, layout: str, platform: str, limits: DataConfig, options: dict[str, Any]
) -> int:
    from longvita.checkpoint.hf.internvl import check_internvl
    from longvita.checkpoint.sources import model_config

    model = model_config(source)
    if options["format"] == "internvl":
        check_internvl(model)
    config = Config(
        name="convert",
        platform=platform,
        model=model,
        data=limits,
        layout=parse_layout(layout),
        training=TrainingConfig(precision=options["dtype"] or source_precision(source)),
    )
    check_sizes(config)
    payload = {"source": source, "target": str(folder), "config": dump(config), **options}
    return launch_replica("longvita.commands.convert:convert_process", payload, config)


def _check_optimizer_format(source: str, layout_format: str, optimizer: str) -> None:
    from longvita.checkpoint.sources import is_training_checkpoint
    from longvita.convert.optimizer_format import FORMATS

    if optimizer not in FORMATS:
        raise CheckpointError(f"--optimizer {optimizer!r} is none of {', '.join(FORMATS)}")
    if layout_format != "checkpoint" or not is_training_checkpoint(source):
        raise CheckpointError("--optimizer goes with --format checkpoint, from a training checkpoint")


def _convert_optimizer(source: str, folder: Path, layout: str, platform: str, optimizer: str) -> int:
    from longvita.checkpoint.sources import training_config

    config = training_config(source).model_copy(update={"layout": parse_layout(layout), "platform": platform})
    check_sizes(config)
    payload = {"source": source, "target": str(folder), "config": dump(config), "optimizer": optimizer}
    return launch_replica("longvita.commands.convert:optimizer_process", payload, config)


def source_precision(source: str | Path) -> Literal["bf16", "fp32"]:
    """The precision of a source's weights: its config's word for it."""
    from longvita.checkpoint.hf.config_json import read_json
    from longvita.checkpoint.hf.hub import local_folder
    from longvita.checkpoint.sources import is_training_checkpoint, training_config

    if is_training_checkpoint(source):
        return training_config(source).training.precision
    config = read_json(local_folder(source) / "config.json")
    return "bf16" if config.get("torch_dtype", config.get("dtype")) == "bfloat16" else "fp32"


def _report_conversion(source: str, folder: Path, layout_format: str, seconds: float, as_json: bool) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if as_json:
        facts = {
            "from": source,
            "to": str(folder),
            "format": layout_format,
            "bytes": size,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(facts))
    else:
        print(f"{source} -> {folder} ({layout_format}, {size / 1e6:,.1f} MB, {seconds:.1f} s)")


def load_source_tokenizer(source: str | Path, explicit: str | None) -> Any:
    """The tokenizer to write: the one asked for, else the source's own; None when there is neither."""
    from longvita.checkpoint.hf.hub import local_folder
    from longvita.checkpoint.sources import is_training_checkpoint, training_config
    from longvita.data.tokenizer import load_transformers_tokenizer

    if explicit is not None:
        return load_transformers_tokenizer(local_folder(explicit, weights=False))
    if is_training_checkpoint(source):
        name = training_config(source).data.tokenizer
        return load_transformers_tokenizer(Path(name)) if name and Path(name).is_dir() else None
    folder = local_folder(source)
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    return load_transformers_tokenizer(folder) if any((folder / name).is_file() for name in files) else None


def convert_process(payload: dict[str, Any]) -> int:
    """The body of a rank where a model is built on the way."""
    config = Config.model_validate(payload["config"])
    with joined_replica(config) as (groups, platform):
        _convert_in_world(payload, config, groups, platform)
    return 0


def optimizer_process(payload: dict[str, Any]) -> int:
    """The body of a rank where the optimizer's state is converted too."""
    config = Config.model_validate(payload["config"])
    with joined_replica(config) as (groups, platform):
        from longvita.convert.optimizer_format import resave

        resave(Path(payload["source"]), Path(payload["target"]), payload["optimizer"], config, groups, platform)
    return 0


def _convert_in_world(payload: dict[str, Any], config: Config, groups: ParallelGroups, platform: Platform) -> None:
    from longvita.checkpoint.hf.write_weights import write_internvl, write_long_vita
    from longvita.checkpoint.save import save_weights
    from longvita.checkpoint.sources import load_weights
    from longvita.model.build import build_model

    models = build_model(config, groups, platform, fresh=False)
    load_weights(models, payload["source"], groups, platform)
    folder, dtype = Path(payload["target"]), DTYPES[config.training.precision]
    if payload["format"] == "checkpoint":
        save_weights(models, config, folder, platform)
        return
    tokenizer = load_source_tokenizer(payload["source"], payload["tokenizer"])
    if payload["format"] == "internvl":
        if tokenizer is None:
            raise CheckpointError(f"{payload['source']} names no tokenizer; give --tokenizer FOLDER")
        write_internvl(models, config, folder, groups, tokenizer, payload["max_shard_size"], dtype)
    else:
        write_long_vita(models, config, folder, groups, tokenizer, payload["max_shard_size"], dtype)
