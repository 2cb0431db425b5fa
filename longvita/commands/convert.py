"""`longvita convert`: refuse what does not fit, convert in one process or in the ranks of a layout, report."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longvita.commands.support.options import JSONOption, LayoutOption, PlatformOption, in_home
from longvita.processes import EXIT_COMPLETE, is_first_process

if TYPE_CHECKING:
    from longvita.config.schema import Config, DataConfig
    from longvita.convert.request import ConversionRequest


def convert(
    source: Annotated[
        str,
        typer.Option(
            "--from", help="Training checkpoint, Hugging Face folder or Hub id.", show_default=False, callback=in_home
        ),
    ],
    target: Annotated[str, typer.Option("--to", help="New folder.", show_default=False, callback=in_home)],
    target_format: Annotated[str, typer.Option("--format", help="long_vita, internvl or checkpoint.")] = "long_vita",
    layout: LayoutOption = "tp=1",
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer folder; the source's own when absent.", callback=in_home)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp32; the source's when absent.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file, such as 5GB.")] = "5GB",
    platform: PlatformOption = "auto",
    as_json: JSONOption = False,
    optimizer: Annotated[
        str | None,
        typer.Option(help="With --format checkpoint: the optimizer too, as fully_reshardable or dp_reshardable."),
    ] = None,
) -> int:
    """Convert between training checkpoints and Hugging Face formats."""
    from longvita.checkpoint.hf.media_limits import read_media_limits, write_media_limits
    from longvita.commands.support.model_ranks import launch_replica
    from longvita.convert.request import DTYPES, ConversionRequest

    request = ConversionRequest(source, target, target_format, tokenizer, dtype, max_shard_size, optimizer)  # type: ignore[arg-type]
    start = time.monotonic()
    request.check()
    if not request.with_model and not is_first_process():
        return EXIT_COMPLETE  # tensors stream from folder to folder in the first process
    request.check_target()
    limits = read_media_limits(source)
    code = EXIT_COMPLETE
    if request.with_model:
        config = _config(request, layout, platform, limits)
        payload = {"request": dataclasses.asdict(request)}
        code = launch_replica("longvita.commands.convert:convert_rank", payload, config)
    else:
        # Not earlier: it imports megatron-core, before which a platform may come.
        from longvita.convert.folders import convert_folder

        tokens = request.load_tokenizer()
        convert_folder(source, Path(target), target_format, tokens, max_shard_size, DTYPES[dtype] if dtype else None)
    if code == EXIT_COMPLETE and is_first_process():
        if target_format != "checkpoint":
            write_media_limits(Path(target), limits)
        _print_report(request, time.monotonic() - start, as_json)
    return code


def _config(request: ConversionRequest, layout: str, platform: str, limits: DataConfig) -> Config:
    """The config of the model that the conversion builds."""
    from longvita.checkpoint.hf.internvl import check_internvl
    from longvita.checkpoint.sources import model_config, training_config
    from longvita.config.layout_text import UNEVEN_STAGES, parse_layout
    from longvita.config.schema import Config, TrainingConfig

    if request.optimizer is not None:
        saved, sizes = training_config(request.source), parse_layout(layout)
        if sizes.pipeline_parallel == saved.layout.pipeline_parallel:  # The text of a layout has no uneven stages.
            sizes = sizes.model_copy(update={name: getattr(saved.layout, name) for name in UNEVEN_STAGES})
        return saved.model_copy(update={"layout": sizes, "platform": platform})
    model = model_config(request.source)
    if request.format == "internvl":
        check_internvl(model)
    return Config(
        name="convert",
        platform=platform,
        model=model,
        data=limits,
        layout=parse_layout(layout),
        training=TrainingConfig(precision=request.precision),
    )


def convert_rank(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    from longvita.commands.support.model_ranks import joined_replica

    with joined_replica(payload) as (config, groups, platform):
        # Not earlier: they import megatron-core.
        from longvita.convert.optimizer_format import resave
        from longvita.convert.request import ConversionRequest
        from longvita.convert.with_model import convert_with_model

        request = ConversionRequest(**payload["request"])
        if request.optimizer is not None:
            resave(Path(request.source), Path(request.target), request.optimizer, config, groups, platform)
        else:
            convert_with_model(request, config, groups, platform)
    return EXIT_COMPLETE


def _print_report(request: ConversionRequest, seconds: float, as_json: bool) -> None:
    size = sum(path.stat().st_size for path in Path(request.target).rglob("*") if path.is_file())
    if as_json:
        facts = {"from": request.source, "to": request.target, "format": request.format, "bytes": size}
        facts["seconds"] = round(seconds, 3)
        print(json.dumps(facts))
    else:
        print(f"{request.source} -> {request.target} ({request.format}, {size / 1e6:,.1f} MB, {seconds:.1f} s)")
