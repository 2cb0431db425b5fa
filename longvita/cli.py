"""The `longvita` command. Thin: each command imports its work when it is called and hands its arguments on.

A new command is a function here of a few lines:

    @app.command()
    def train(config: ConfigFile, overrides: Overrides = None) -> None:
        '''Train one stage.'''
        from longvita.training import command

        raise typer.Exit(evaluate.train(load_config_with_origins(config, overrides, training=True).config))

Errors that a user can mend (longvita.errors.UserError, missing files) end the command with one clean message and exit
code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longvita.errors import UserError
from longvita.processes import EXIT_REFUSED, is_first_on_machine

if TYPE_CHECKING:
    from longvita.inference.settings import Options

USER_ERRORS: tuple[type[Exception], ...] = (UserError, FileNotFoundError, NotADirectoryError, PermissionError)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file", metavar="CONFIG", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="section.field=value, laid on the file", metavar="[OVERRIDES]...", show_default=False),
]

app = typer.Typer(
    help="Train, convert and run Long-VITA models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
data_app = typer.Typer(help="Fetch, convert and look at training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Check all that can be known before; start nothing.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --check: processes that a launcher will bring.")
    ] = None,
) -> None:
    """Train one stage, or go on with it where it stopped."""
    from longvita.commands import train as train_command
    from longvita.commands.support.config_file import load_config, load_config_with_origins
    from longvita.config.loader import with_origins

    if processes is not None and not check:
        raise typer.BadParameter("goes with --check; layout.processes=N starts so many", param_hint="--processes")
    if check:
        # What would start is told of a config whose files are elsewhere too.
        train_command.report_launch(load_config(config, overrides), processes)
    loaded = load_config_with_origins(config, overrides, training=True)
    with with_origins(loaded):
        if check:
            train_command.check_launch(loaded.config, processes)
            return
        code = train_command.train(loaded.config)
    raise typer.Exit(code)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices; as train would start when absent.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of a device, such as 96GiB.")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Device; h100-80 or the platform's own when absent. An unknown name lists all.")
    ] = None,
    host_memory: Annotated[str | None, typer.Option(help="Memory of a node for offload, such as 2TiB.")] = None,
    search: Annotated[bool, typer.Option("--search", help="Try the layouts and show the ten best.")] = False,
    tiles: Annotated[int | None, typer.Option(min=0, help="Tiles of a sequence; as many as fit when absent.")] = None,
    loss_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens with loss of a sequence.")] = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents of a sequence.")] = 1,
    page: Annotated[Path | None, typer.Option("--html", help="Write this page with the memory picture.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build some ranks by shape, and check every file.")
    ] = False,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Rank to build; may be repeated. Three of them when absent."),
    ] = None,
    no_files: Annotated[
        bool, typer.Option("--no-files", help="Skip data, tokenizer, checkpoints and output folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan memory and time of a run, and find layouts that fit; exit code 1 if it does not fit (with --search, if no
    layout does).

    With --dry-run, build some of its ranks at full size by shape, without launching it; exit code 2 if the launch would
    fail.
    """
    from longvita.commands import plan as plan_command
    from longvita.commands.support.config_file import load_config_with_origins

    options = plan_command.PlanOptions(
        devices, memory, host_memory, hardware, search, as_json, page, tiles, loss_tokens, documents
    )
    if not dry_run and (rank or no_files):
        raise typer.BadParameter("need --dry-run", param_hint="--rank, --no-files")
    if dry_run and (search or page is not None or (tiles, loss_tokens, documents) != (None, None, 1)):
        given = "--search, --html, --tiles, --loss-tokens, --documents"
        raise typer.BadParameter("do not work with --dry-run", param_hint=given)
    loaded = load_config_with_origins(config, overrides)
    if dry_run:
        raise typer.Exit(plan_command.dry_run(loaded, options, rank or (), not no_files))
    raise typer.Exit(plan_command.plan(loaded, options))


@config_app.command("show")
def config_show(
    config: ConfigFile,
    overrides: Overrides = None,
    docs: Annotated[bool, typer.Option("--docs", help="Print what each field means, above it.")] = False,
) -> None:
    """Print the resolved configuration and where each value comes from."""
    from rich.console import Console

    from longvita.commands.support.config_file import load_config_with_origins
    from longvita.config.show import show

    show(load_config_with_origins(config, overrides), Console(), docs)


DataFile = Annotated[
    str, typer.Argument(help="Data file, folder or address of samples.", metavar="FILE", show_default=False)
]
DataFormatOption = Annotated[
    str | None, typer.Option("--format", help="Format of FILE; by the end of its name when absent.", show_default=False)
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--column", help="Such as answer=label; may be given several times.", metavar="WHAT=NAME"),
]
PromptOption = Annotated[str | None, typer.Option(help="Question of a caption.", show_default=False)]


@data_app.command("encode")
def data_encode(
    file: DataFile,
    tokenizer: Annotated[str, typer.Option(help="Tokenizer folder.", show_default=False)],
    data_format: DataFormatOption = None,
    columns: ColumnsOption = None,
    prompt: PromptOption = None,
    media_root: Annotated[str, typer.Option(help="Folder that picture and video paths are relative to.")] = ".",
    max_frames: Annotated[int, typer.Option(min=1, help="Most frames taken from one video.")] = 63,
    max_fps: Annotated[float, typer.Option(min=1e-6, help="Most frames taken from one second of video.")] = 1.0,
    max_tiles: Annotated[int, typer.Option(min=1, help="Most tiles a picture is cut into.")] = 12,
    image_size: Annotated[int, typer.Option(min=1, help="Side of a tile, pixels.")] = 448,
    tokens_per_tile: Annotated[int, typer.Option(min=1, help="Tokens of a tile.")] = 256,
    headers_only: Annotated[bool, typer.Option("--headers-only", help="Measure media, do not decode them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a sample.")] = False,
) -> None:
    """Print samples as the model gets them; broken ones on stderr, and exit code 1 if there are any."""
    from longvita.commands.data.encode import EncodeOptions, encode
    from longvita.data.formats.record import format_options
    from longvita.data.media.item import MediaSettings

    settings = MediaSettings(image_size, max_tiles, max_frames, max_fps)
    options = EncodeOptions(
        file,
        tokenizer,
        media_root,
        settings,
        tokens_per_tile,
        headers_only,
        as_json,
        data_format,
        format_options(columns or [], prompt),
    )
    raise typer.Exit(encode(options))


@data_app.command("convert")
def data_convert(
    source: Annotated[
        str,
        typer.Argument(help="YAML file, or data file, folder or pattern.", metavar="CONFIG|FILE", show_default=False),
    ],
    to: Annotated[str, typer.Option(help="jsonl or webdataset.", show_default=False)],
    output: Annotated[str, typer.Option(help="Folder to make.", show_default=False)],
    shard_bytes: Annotated[int, typer.Option(min=1, help="webdataset: bytes at which a shard is full.")] = 1 << 30,
    media_root: Annotated[
        str | None, typer.Option(help="Folder that paths are relative to; the config's, or the present one.")
    ] = None,
    data_format: DataFormatOption = None,
    columns: ColumnsOption = None,
    prompt: PromptOption = None,
) -> None:
    """Write samples as published JSONL or as WebDataset; exit code 1 if some are broken."""
    from longvita.commands.data.convert import ConvertOptions, convert
    from longvita.data.formats.record import format_options

    options = format_options(columns or [], prompt)
    raise typer.Exit(convert(ConvertOptions(source, to, output, shard_bytes, media_root, data_format, options)))


AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Leave out files that are not there.")]


@data_app.command("index")
def data_index(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Annotated[int | None, typer.Option(min=0, help="Processes; data.index_processes when absent.")] = None,
    allow_missing: AllowMissing = False,
    anew: Annotated[bool, typer.Option("--anew", help="Forget the indexes that are there first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Index every data file of a config, as far as it is not indexed yet, and print what each source holds."""
    from longvita.commands.data import index as index_command
    from longvita.commands.support.config_file import load_config

    own = [] if processes is None else [f"data.index_processes={processes}"]
    raise typer.Exit(
        index_command.index(load_config(config, [*_with_missing(overrides, allow_missing), *own]), as_json, anew)
    )


@data_app.command("retry")
def data_retry(
    quarantine: Annotated[Path, typer.Argument(help="Quarantine file of a run.", metavar="QUARANTINE_FILE")],
    config: ConfigFile,
    overrides: Overrides = None,
) -> None:
    """Look at samples that were set aside again; those of use now leave the file. Exit code 1 while some are left."""
    from longvita.commands.data import retry
    from longvita.commands.support.config_file import load_config

    raise typer.Exit(retry.retry(quarantine, load_config(config, overrides)))


@data_app.command("report")
def data_report(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="HTML page to write; data.html below output when absent.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the figures, no examples; write nothing.")] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Replicas that a step is divided among; 8 when absent, or fewer.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Samples of each source on the page.")] = 4,
    allow_missing: AllowMissing = False,
) -> None:
    """Show what each source holds, how it is packed, examples with their pictures, and what is set aside."""
    from longvita.commands.data import report as report_command
    from longvita.commands.support.config_file import load_config
    from longvita.data.report.mix import ReportOptions

    options = ReportOptions(replicas, 0 if text else examples)
    loaded = load_config(config, _with_missing(overrides, allow_missing))
    page = output or Path(loaded.output) / report_command.PAGE
    raise typer.Exit(report_command.report(loaded, None if text else page, options))


def _with_missing(overrides: list[str] | None, allow_missing: bool) -> list[str]:
    return [*(overrides or []), *(["data.allow_missing=true"] if allow_missing else [])]


@data_app.command("view")
def data_view(
    config: ConfigFile,
    overrides: Overrides = None,
    sequence: Annotated[int, typer.Option(min=0, help="Its number in the training stream.")] = 0,
    replicas: Annotated[int | None, typer.Option(min=1, help="Replicas; layout.processes' own when absent.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write this page, print nothing.")] = None,
) -> None:
    """Show one packed sequence: its documents, which tokens carry loss, which rank takes which tile."""
    from longvita.commands.data import view
    from longvita.commands.support.config_file import load_config

    raise typer.Exit(view.view(load_config(config, overrides), sequence, replicas, page))


@data_app.command("fetch")
def data_fetch(
    config: ConfigFile,
    overrides: Overrides = None,
    source: Annotated[list[str] | None, typer.Option(help="Source to fetch; may be given several times.")] = None,
    to: Annotated[str | None, typer.Option(help="Folder to fill; data.data_root when absent.")] = None,
    media: Annotated[bool, typer.Option("--media", help="Archives of pictures and videos too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and how much.")] = False,
    endpoint: Annotated[str | None, typer.Option(help="Address of the Hub or of a mirror.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files that are fetched at once.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Download the data files of a mix from the Hugging Face Hub; exit code 1 if some did not come."""
    from longvita.commands.data.fetch import fetch
    from longvita.commands.support.config_file import load_config

    settings = load_config(config, overrides)
    raise typer.Exit(fetch(settings, source or (), to, media, dry_run, endpoint, workers, as_json))


@app.command()
def doctor(
    platform: Annotated[str, typer.Option(help="Platform to look at; auto takes the one that is there.")] = "auto",
    everything: Annotated[bool, typer.Option("--all", help="Every version and every patch too.")] = False,
) -> None:
    """Show the device, what is missing, and what an accelerator would need, each with the command that brings it."""
    from longvita.commands.doctor import run

    raise typer.Exit(run(platform, everything))


LayoutOption = Annotated[
    str, typer.Option(help="Parallel layout, such as tp=2,pp=2,sp=true (also cp and vp).", metavar="LAYOUT")
]
PlatformOption = Annotated[str, typer.Option(help="Platform to run on; auto takes the one that is there.")]
JSONOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def convert(
    source: Annotated[
        str, typer.Option("--from", help="Training checkpoint, Hugging Face folder or Hub id.", show_default=False)
    ],
    target: Annotated[str, typer.Option("--to", help="New folder.", show_default=False)],
    layout_format: Annotated[str, typer.Option("--format", help="long_vita, internvl or checkpoint.")] = "long_vita",
    layout: LayoutOption = "tp=1",
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer folder; the source's own when absent.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp32; the source's when absent.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file, such as 5GB.")] = "5GB",
    platform: PlatformOption = "auto",
    as_json: JSONOption = False,
    optimizer: Annotated[
        str | None,
        typer.Option(help="With --format checkpoint: the optimizer too, as fully_reshardable or dp_reshardable."),
    ] = None,
) -> None:
    """Convert between training checkpoints and Hugging Face layouts."""
    from longvita.commands import convert as convert_command

    options = (tokenizer, dtype, max_shard_size, platform, as_json, optimizer)
    raise typer.Exit(convert_command.convert(source, target, layout_format, layout, *options))


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="Model: folder or Hub id.", metavar="MODEL", show_default=False)],
    golden: Annotated[str, typer.Option(help="Folder with golden.safetensors and golden.json.", show_default=False)],
    layout: LayoutOption = "tp=1",
    platform: PlatformOption = "auto",
    as_json: JSONOption = False,
) -> None:
    """Compare features, logits, loss, gradients and greedy tokens with golden vectors; exit code 1 beyond tolerance."""
    from longvita.commands import verify as verify_command

    raise typer.Exit(verify_command.verify(model, golden, layout, platform, as_json))


MODEL_HELP = "Long-VITA folder or Hub id, or a training checkpoint."
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)]
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
    typer.Option("--max-num-frames", "--max_num_frame", "--max_num_frames", help="Most frames taken from a video."),
]
ChunkSize = Annotated[int | None, typer.Option(help="Prompt tokens that go through the model at once.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the most probable token, above 0 samples.")]
TopK = Annotated[int | None, typer.Option(help="Sample among this many tokens; 0 for all.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the tokens that hold this much probability.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling.")]


@app.command()
def generate(
    model: ModelArgument,
    question: Annotated[str, typer.Option(help="The question, or a .txt file that holds it.", show_default=False)],
    image: Annotated[list[str] | None, typer.Option(help="Picture; may be given several times.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="Video file or folder of frames; likewise.")] = None,
    show_frames: Annotated[
        str | None, typer.Option(help="Write this .html page: the frames that the answer attended to.")
    ] = None,
    layout: OptionalLayout = None,
    config: InferenceFile = None,
    tokenizer: TokenizerFolder = None,
    platform: PlatformOption = "auto",
    precision: Precision = "auto",
    max_seq_len: MaxSeqLen = None,
    max_num_frames: MaxFrames = None,
    prefill_chunk_size: ChunkSize = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
) -> None:
    """Answer one question about pictures and videos, printed as it comes."""
    from longvita.commands import generate as generate_command

    options = _generation_options(locals())

    raise typer.Exit(generate_command.generate(model, question, image or [], video or [], options, show_frames))


@app.command()
def chat(
    model: ModelArgument,
    layout: OptionalLayout = None,
    config: InferenceFile = None,
    tokenizer: TokenizerFolder = None,
    platform: PlatformOption = "auto",
    precision: Precision = "auto",
    max_seq_len: MaxSeqLen = None,
    max_num_frames: MaxFrames = None,
    prefill_chunk_size: ChunkSize = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
) -> None:
    """Talk about pictures and videos in the terminal."""
    options = _generation_options(locals())
    from longvita.commands import chat as terminal

    raise typer.Exit(terminal.chat(model, options))


@app.command()
def evaluate(
    model: ModelArgument,
    task: Annotated[str, typer.Option(help="video_mme or needle.", show_default=False)],
    data: Annotated[str, typer.Option(help="Folder of the data set, as downloaded.", show_default=False)],
    output: Annotated[str, typer.Option(help="Folder for answers and scores; a stopped run goes on in it.")],
    replicas: Annotated[
        int | None, typer.Option(help="Models that answer side by side, each in its own layout.")
    ] = None,
    subtitles: Annotated[bool, typer.Option("--subtitles", help="video_mme: ask with subtitles.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="video_mme: the first questions alone.")] = None,
    lengths: Annotated[str | None, typer.Option(help="needle: frames of the film, such as 200,400.")] = None,
    depths: Annotated[str | None, typer.Option(help="needle: places of the needle, such as 0,0.5,1.")] = None,
    layout: OptionalLayout = None,
    config: InferenceFile = None,
    tokenizer: TokenizerFolder = None,
    platform: PlatformOption = "auto",
    precision: Precision = "auto",
    max_seq_len: MaxSeqLen = None,
    max_num_frames: MaxFrames = None,
    prefill_chunk_size: ChunkSize = None,
) -> None:
    """Answer and score a benchmark; exit code 1 when some of it could not be asked."""
    options = _generation_options(locals())

    from longvita.commands import evaluate as evaluate_command

    request = evaluate_command.Request(task, data, output, replicas, subtitles, limit, lengths, depths)
    raise typer.Exit(evaluate_command.evaluate(model, request, options))


def _generation_options(arguments: dict) -> Options:
    """The arguments of a generation command that Options has a field for."""
    from longvita.inference.settings import Options

    return Options.from_arguments(arguments)


def main() -> None:
    """Run the command line; what the console script and `python -m longvita` call."""
    try:
        app()
    except USER_ERRORS as error:
        if is_first_on_machine():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
