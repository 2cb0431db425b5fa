"""Options and arguments that several commands share. Imported for `--help`: nothing here imports a large library."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from longvita.errors import UserError

if TYPE_CHECKING:
    from longvita.config.schema import Section

_Number = TypeVar("_Number", int, float)


def in_home(path: str | None) -> str | None:
    """Expand a ~ at the beginning of a path, which a shell leaves in --option=~/path."""
    return os.path.expanduser(path) if path else path


ConfigFile = Annotated[Path, typer.Argument(help="YAML file", metavar="CONFIG", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="section.field=value, overrides the file", metavar="[OVERRIDES]...", show_default=False),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
PlatformOption = Annotated[str, typer.Option(help="Platform to run on; auto selects the one that is there.")]

# ---- model commands

ModelArgument = Annotated[
    str,
    typer.Argument(help="Long-VITA folder or Hub id, or a training checkpoint.", metavar="MODEL", show_default=False),
]
LayoutOption = Annotated[
    str, typer.Option(help="Parallel layout, such as tp=2,pp=2,sp=true (also cp and vp).", metavar="LAYOUT")
]


class OptionError(UserError, ValueError):
    """An option of a model command that cannot be used."""


def _check_values(section: type[Section], values: Mapping[str, object]) -> None:
    """Raise OptionError for a value that the field of that name in a config section may not have."""
    from pydantic import ValidationError

    try:
        section.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]).replace("_", "-")
        message = problem["msg"].replace("Input should", "but must")
        raise OptionError(f"--{name} is {problem['input']}, {message}") from error


@dataclass(frozen=True)
class EngineOptions:
    """Options of the commands that answer questions; None for one that is not given."""

    layout: Annotated[
        str | None,
        typer.Option(help="Parallel layout, such as tp=2,pp=2,sp=true.", metavar="LAYOUT", show_default=False),
    ] = None
    config: Annotated[
        str | None,
        typer.Option(
            "--config", help="YAML file with layout and inference sections.", show_default=False, callback=in_home
        ),
    ] = None
    """YAML file for layout, inference, platform, tiling and frame rate; the model stays the folder's."""
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer folder; the model's own when absent.", callback=in_home)
    ] = None
    platform: PlatformOption = "auto"
    precision: Annotated[str, typer.Option(help="bf16, fp32, or auto: fp32 on the CPU, bf16 elsewhere.")] = "auto"
    max_seq_len: Annotated[
        int | None, typer.Option("--max-seq-len", "--max_seq_len", help="Longest prompt and answer together, tokens.")
    ] = None
    max_num_frames: Annotated[
        int | None,
        typer.Option(
            "--max-num-frames", "--max_num_frame", "--max_num_frames", help="Most frames sampled from a video."
        ),
    ] = None
    prefill_chunk_size: Annotated[int | None, typer.Option(help="Prompt tokens that go through the model at once.")] = (
        None
    )

    def __post_init__(self) -> None:
        """Raise UserError for values that no model can use."""
        from longvita.config.layout_text import parse_layout
        from longvita.config.schema import InferenceConfig

        _check_values(InferenceConfig, self.inference_values())
        if self.layout:
            parse_layout(self.layout)
        if self.config and not Path(self.config).is_file():
            raise OptionError(f"--config {self.config} is not a file")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise OptionError(f"--precision is {self.precision!r}; choose auto, bf16 or fp32")

    def inference_values(self) -> dict[str, object]:
        """The given options that are fields of a config's inference section."""
        from longvita.config.schema import InferenceConfig

        values = {name: getattr(self, name, None) for name in InferenceConfig.model_fields}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def names_layout(self) -> bool:
        """Whether the user chose the layout, rather than `default_layout`."""
        return bool(self.layout or self.config)


@dataclass(frozen=True)
class ModelOptions(EngineOptions):
    """The same, and how the text of an answer is chosen."""

    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, tokens.")] = None
    temperature: Annotated[float | None, typer.Option(help="0 takes the most probable token, above 0 samples.")] = None
    top_k: Annotated[int | None, typer.Option(help="Sample among this many tokens; 0 for all.")] = None
    top_p: Annotated[float | None, typer.Option(help="Sample among the tokens that hold this much probability.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling, 0 to 2^64 - 1.")] = None

    def __post_init__(self) -> None:
        """Raise UserError for values that no model can use."""
        from longvita.config.schema import Config

        super().__post_init__()
        if self.seed is not None:
            _check_values(Config, {"seed": self.seed})


@dataclass(frozen=True)
class EvaluationRequest:
    """What `longvita evaluate` asks and where it writes."""

    task: Annotated[Literal["video_mme", "needle"], typer.Option(help="Benchmark.", show_default=False)]
    data: Annotated[str, typer.Option(help="Folder of the data set, as downloaded.", show_default=False)]
    output: Annotated[str, typer.Option(help="Folder for answers and scores; a stopped run resumes in it.")]
    replicas: Annotated[
        int | None, typer.Option(help="Models that answer at the same time, each in its own layout.")
    ] = None
    """None: one, or as many as a launcher's processes hold."""
    subtitles: Annotated[bool, typer.Option("--subtitles", help="video_mme: ask with subtitles.")] = False
    limit: Annotated[int | None, typer.Option(min=1, help="video_mme: only the first questions.")] = None
    lengths: Annotated[str | None, typer.Option(help="needle: frames of the film, such as 200,400.")] = None
    depths: Annotated[str | None, typer.Option(help="needle: places of the needle, such as 0,0.5,1.")] = None

    def __post_init__(self) -> None:
        """Raise OptionError for values that no data set can use."""
        if self.replicas is not None and self.replicas < 1:
            raise OptionError(f"--replicas is {self.replicas}, but must be at least 1")
        if not Path(self.data).expanduser().is_dir():
            raise OptionError(f"--data {self.data} is not a folder; give the folder of the data set")
        if any(length < 1 for length in self.numbers("lengths", int)):
            raise OptionError(f"--lengths is {self.lengths}; a film has at least 1 frame")
        if not all(0 <= depth <= 1 for depth in self.numbers("depths", float)):
            raise OptionError(f"--depths is {self.depths}; depths are from 0 to 1")

    def numbers(self, name: str, kind: type[_Number]) -> list[_Number]:
        """The numbers of --lengths or --depths; none where it is not given. Raises OptionError."""
        text = getattr(self, name)
        try:
            return [kind(part) for part in text.split(",")] if text is not None else []
        except ValueError as error:
            raise OptionError(f"--{name} is {text!r}; give numbers with commas between them") from error


@dataclass(frozen=True)
class PlanOptions:
    """Hardware and contents of a plan."""

    devices: Annotated[int | None, typer.Option(min=1, help="Devices; as train would start when absent.")] = None
    memory: Annotated[str | None, typer.Option(help="Memory of a device, such as 96GiB.")] = None
    hardware: Annotated[
        str | None, typer.Option(help="Device; h100-80 or the platform's own when absent. An unknown name lists all.")
    ] = None
    host_memory: Annotated[str | None, typer.Option(help="Memory of a node for offload, such as 2TiB.")] = None
    tiles: Annotated[int | None, typer.Option(min=0, help="Tiles of a sequence; as many as fit when absent.")] = None
    loss_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens with loss of a sequence.")] = None
    documents: Annotated[int, typer.Option(min=1, help="Documents of a sequence.")] = 1

    @property
    def names_contents(self) -> bool:
        """Whether the user chose what a sequence holds, rather than the worst that it can hold."""
        return self.tiles is not None or self.loss_tokens is not None or self.documents != 1


# ---- data commands

DataFile = Annotated[
    str, typer.Argument(help="Data file, folder or address of samples.", metavar="FILE", show_default=False)
]
DataFormat = Annotated[
    str | None, typer.Option("--format", help="Format of FILE; by the end of its name when absent.", show_default=False)
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Such as answer=label; may be repeated.", metavar="WHAT=NAME"),
]
Roles = Annotated[
    list[str] | None,
    typer.Option("--role", help="Such as robot=assistant; may be repeated.", metavar="WORD=ROLE"),
]
CaptionPrompt = Annotated[str | None, typer.Option("--prompt", help="Question of a caption.", show_default=False)]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Leave out files that are missing.")]


def with_missing(overrides: list[str] | None, allow_missing: bool) -> list[str]:
    """The overrides, with the one that --allow-missing stands for."""
    return [*(overrides or []), *(["data.allow_missing=true"] if allow_missing else [])]
