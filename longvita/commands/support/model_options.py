"""Options of the commands that answer questions, and the settings of the engine that follow from them.

The command line overrides the config file, which overrides the model's folder. Nothing here reads a weight or imports
megatron-core, so what cannot run is refused at once.
"""

from __future__ import annotations

from pathlib import Path

from longvita.checkpoint.hf.config_json import model_config_from_folder
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.hf.media_limits import FIELDS, read_media_limits
from longvita.checkpoint.sources import training_config
from longvita.checkpoint.step_folders import is_checkpoint
from longvita.commands.support.config_file import load_config
from longvita.commands.support.options import EngineOptions, ModelOptions, OptionError
from longvita.config.layout_text import parse_layout
from longvita.config.schema import Config, LayoutConfig
from longvita.data.tokenizer import load_tokenizer
from longvita.inference.default_layout import check_layout, default_layout
from longvita.inference.limits import check_max_seq_len
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.settings import EngineSettings


def engine_settings(model: str, options: EngineOptions, processes: int | None) -> EngineSettings:
    """Settings for a model folder, Hub id or training checkpoint. Reads only configs and headers.

    Args:
        model: Hugging Face folder or Hub id of a Long-VITA, or a training checkpoint (a run's output or one step).
        options: the command line.
        processes: number of processes that a launcher has started, None where none has.

    Raises UserError for what does not fit, before any weight is read.
    """
    base, tokenizer = _from_model(model)
    if options.config:
        chosen = load_config(options.config)
        # Tiling and frame rate are those that the model was trained with; a file without them leaves them as they are.
        limits = chosen.data.model_dump(include=FIELDS, exclude_unset=True)
        update = {name: getattr(chosen, name) for name in ("layout", "inference", "platform")}
        base = base.model_copy(update=update | {"data": base.data.model_copy(update=limits)})
    seed = options.seed if isinstance(options, ModelOptions) else None
    update = {
        "layout": _layout(base, options, processes),
        "inference": base.inference.model_copy(update=options.inference_values()),
        "platform": base.platform if options.platform == "auto" else options.platform,
        "seed": base.seed if seed is None else seed,
    }
    config = base.model_copy(update=update)
    check_max_seq_len(config)
    folder = options.tokenizer or tokenizer
    if not folder:
        raise OptionError(f"{model} names no tokenizer; give its folder with --tokenizer")
    return EngineSettings(model, config, folder, options.precision)  # type: ignore[arg-type]


def _from_model(model: str) -> tuple[Config, str]:
    """The config that comes with a model and the folder of its tokenizer ("" if it names none)."""
    folder = Path(model).expanduser()
    if is_checkpoint(folder):
        config = training_config(folder)
        tokenizer = config.data.tokenizer
    else:
        place = local_folder(model)
        tokenizer, name = str(place), Path(model).resolve().name
        config = Config(name=name, model=model_config_from_folder(place), data=read_media_limits(place))
    # The default length is limited to the positions of a small model.
    limit = min(config.inference.max_seq_len, config.model.language.max_position_embeddings)
    inference = config.inference.model_copy(update={"max_seq_len": limit})
    return config.model_copy(update={"inference": inference}), tokenizer


def _layout(base: Config, options: EngineOptions, processes: int | None) -> LayoutConfig:
    if options.layout:
        layout = parse_layout(options.layout)
    elif options.config:
        layout = base.layout
    else:
        return default_layout(base.model, processes or 1)
    check_layout(base.model, layout, processes)
    return layout


def prompt_encoder(settings: EngineSettings) -> PromptEncoder:
    """The encoder of prompts. Raises OptionError when the tokenizer's folder holds none that fits."""
    try:
        tokenizer = load_tokenizer(settings.tokenizer)
    except (ValueError, FileNotFoundError) as error:
        raise OptionError(f"{error}; name the tokenizer's folder with --tokenizer") from error
    return PromptEncoder(settings.config, tokenizer)
