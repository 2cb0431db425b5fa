"""The config of a generation run, from the model's folder, a config file and command-line options; no weights yet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from longvita.checkpoint.hf.config_json import model_config_from_folder
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.hf.media_limits import FIELDS, read_media_limits
from longvita.checkpoint.sources import training_config
from longvita.checkpoint.step_folders import is_checkpoint
from longvita.config import load
from longvita.config.layout_text import parse_layout
from longvita.config.schema import Config, InferenceConfig, LayoutConfig
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer
from longvita.errors import UserError
from longvita.inference.default_layout import check_layout, default_layout
from longvita.inference.limits import check_max_seq_len


class OptionError(UserError, ValueError):
    """An option of a generation command that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; None where it says nothing."""

    config: str | None = None
    """YAML file whose layout, inference, platform, tiling and frame rate are taken; the model stays the folder's."""
    layout: str | None = None
    """tp=2,pp=2,sp=true."""
    tokenizer: str | None = None
    """Folder of the tokenizer, where the model's folder holds none."""
    platform: str | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: fp32 on the CPU, bf16 elsewhere."""
    max_seq_len: int | None = None
    max_num_frames: int | None = None
    prefill_chunk_size: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Options:
        """The named arguments of a command that are options; the others are left out. Raises OptionError."""
        names = {field.name for field in dataclasses.fields(cls)}
        options = cls(**{name: value for name, value in arguments.items() if name in names})
        if options.precision not in ("auto", "bf16", "fp32"):
            raise OptionError(f"--precision is {options.precision!r}; choose auto, bf16 or fp32")
        return options


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that a process of the run needs to know."""

    model: str
    """Folder or Hub id of the weights."""
    config: Config
    tokenizer: str
    """Folder of the tokenizer."""
    precision: Literal["auto", "bf16", "fp32"]
    chosen_layout: bool
    """Whether the layout is our choice rather than the user's."""

    def payload(self) -> dict[str, Any]:
        """As plain data for the launcher."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"config": self.config.model_dump()}

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Settings:
        """What `payload` came from."""
        return cls(**(payload | {"config": Config.model_validate(payload["config"])}))


def resolve(model: str, options: Options, processes: int | None) -> Settings:
    """Settings for a model folder, Hub id or training checkpoint. Reads configs and headers alone.

    Args:
        model: Hugging Face folder or Hub id of a Long-VITA, or a checkpoint folder of ours (a run's or one step's).
        options: what the command line says; it goes before the config file, which goes before the model's folder.
        processes: number of processes that a launcher has started, None where none has.

    Raises UserError for what does not fit, before any weight is read.
    """
    base, tokenizer = _from_model(model)
    if options.config:
        chosen = load(options.config)
        # Tiling and frame rate belong to how the model was trained; a file without them leaves them alone.
        limits = chosen.data.model_dump(include=FIELDS, exclude_unset=True)
        base = base.model_copy(
            update={
                "layout": chosen.layout,
                "inference": chosen.inference,
                "platform": chosen.platform,
                "data": base.data.model_copy(update=limits),
            }
        )
    layout = _layout(base, options, processes)
    config = base.model_copy(
        update={
            "layout": layout,
            "inference": _inference(base, options),
            "platform": base.platform if options.platform in (None, "auto") else options.platform,
            "seed": base.seed if options.seed is None else options.seed,
        }
    )
    check_max_seq_len(config)
    folder = options.tokenizer or tokenizer
    if not folder:
        raise OptionError(f"{model} names no tokenizer; give its folder with --tokenizer")
    chosen_layout = not (options.layout or options.config)
    return Settings(model, config, folder, options.precision, chosen_layout)


def _from_model(model: str) -> tuple[Config, str]:
    """The config that comes with a model and the folder of its tokenizer ("" if it names none)."""
    folder = Path(model).expanduser()
    if is_checkpoint(folder):
        config = training_config(folder)
        return config.model_copy(update={"inference": _capped(config)}), config.data.tokenizer
    place = local_folder(model)
    config = Config(
        name=Path(model).resolve().name, model=model_config_from_folder(place), data=read_media_limits(place)
    )
    return config.model_copy(update={"inference": _capped(config)}), str(place)


def _capped(config: Config) -> InferenceConfig:
    """The inference section, its default length held to the positions of a small model."""
    inference = config.inference
    limit = min(inference.max_seq_len, config.model.language.max_position_embeddings)
    return inference.model_copy(update={"max_seq_len": limit})


def _layout(base: Config, options: Options, processes: int | None) -> LayoutConfig:
    if options.layout:
        try:
            layout = parse_layout(options.layout)
        except ValueError as error:
            raise OptionError(str(error)) from error
    elif options.config:
        layout = base.layout
    else:
        return default_layout(base.model, processes or 1)
    check_layout(base.model, layout, processes)
    return layout


def _inference(base: Config, options: Options) -> InferenceConfig:
    given = {
        name: getattr(options, name)
        for name in InferenceConfig.model_fields
        if getattr(options, name, None) is not None
    }
    try:
        return InferenceConfig.model_validate(base.inference.model_dump() | given)
    except ValueError as error:
        raise OptionError(_first_problem(error)) from error


def _first_problem(error: Any) -> str:
    problem = error.errors()[0]
    return f"--{'.'.join(map(str, problem['loc']))} is {problem['input']}: {problem['msg']}"


def open_tokenizer(folder: str) -> LongVITATokenizer:
    """The tokenizer of a folder. Raises OptionError when there is none that fits."""
    try:
        return load_tokenizer(folder)
    except (ValueError, FileNotFoundError) as error:
        raise OptionError(f"{error}; name the tokenizer's folder with --tokenizer") from error
