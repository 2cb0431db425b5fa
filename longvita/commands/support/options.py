"""Options and arguments that several commands share. Imported for `--help`: nothing here imports a large library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
OptionalLayout = Annotated[
    str | None, typer.Option(help="Parallel layout, such as tp=2,pp=2,sp=true.", metavar="LAYOUT", show_default=False)
]
InferenceFile = Annotated[
    str | None, typer.Option("--config", help="YAML file with layout and inference sections.", show_default=False)
]
TokenizerFolder = Annotated[str | None, typer.Option(help="Tokenizer folder; the model's own when absent.")]
Precision = Annotated[str, typer.Option(help="bf16, fp32, or auto: fp32 on the CPU, bf16 elsewhere.")]
MaxSeqLen = Annotated[
    int | None, typer.Option("--max-seq-len", "--max_seq_len", help="Longest prompt and answer together, tokens.")
]
MaxFrames = Annotated[
    int | None,
    typer.Option("--max-num-frames", "--max_num_frame", "--max_num_frames", help="Most frames sampled from a video."),
]
ChunkSize = Annotated[int | None, typer.Option(help="Prompt tokens that go through the model at once.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the most probable token, above 0 samples.")]
TopK = Annotated[int | None, typer.Option(help="Sample among this many tokens; 0 for all.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the tokens that hold this much probability.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling.")]

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
CaptionPrompt = Annotated[str | None, typer.Option("--prompt", help="Question of a caption.", show_default=False)]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Leave out files that are missing.")]


def with_missing(overrides: list[str] | None, allow_missing: bool) -> list[str]:
    """The overrides, with the one that --allow-missing stands for."""
    return [*(overrides or []), *(["data.allow_missing=true"] if allow_missing else [])]
