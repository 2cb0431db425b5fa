"""`longvita evaluate`: refuses what does not fit before any work, then answers in the processes of the layout."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longvita import processes
from longvita.checkpoint.manifest import MANIFEST
from longvita.checkpoint.step_folders import numbered_root, step_folders
from longvita.commands.generate import process_count, refuse
from longvita.commands.support.engine_process import quiet_libraries, start_engine_rank
from longvita.config.sizes import replica_size
from longvita.errors import UserError
from longvita.evaluation.answer_log import claim
from longvita.evaluation.needle import DEPTHS, LENGTHS, NeedleInVideo
from longvita.evaluation.task import EvaluationTask
from longvita.evaluation.video_mme import BREAKDOWNS, VideoMME
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.settings import OptionError, Options, Settings, open_tokenizer, resolve
from longvita.platforms import environment
from longvita.processes import is_first_process

EXIT_INCOMPLETE = 1


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    task: str
    """video_mme or needle."""
    data: str
    """Folder of the data set."""
    output: str
    """Folder for answers and scores."""
    replicas: int | None = None
    """Replicas of the model that answer side by side; None: one, or as many as a launcher's processes hold."""
    subtitles: bool = False
    """video_mme: with subtitles."""
    limit: int | None = None
    """video_mme: the first questions alone."""
    lengths: str | None = None
    """needle: 200,400 (frames)."""
    depths: str | None = None
    """needle: 0,0.5,1."""


def evaluate(model: str, request: Request, options: Options) -> int:
    """Answers and scores a data set.

    The exit code: 0, 1 where items were set aside because their media could not be used, 2 where something is refused.
    A run that was stopped goes on where it was when it is started again with the same output folder.
    """
    quiet_libraries()
    try:
        settings, replicas = _settings(model, request, options)
        task, tokenizer = build_task(request), open_tokenizer(settings.tokenizer)
        task.check(PromptEncoder(settings.config, tokenizer))
        identity = {"task": task.name, **task.identity(settings.config), **_asked_with(settings)}
        claim(Path(request.output).expanduser(), identity, write=is_first_process())
    except UserError as error:
        return refuse(error)
    payload = {"settings": settings.payload(), "request": dataclasses.asdict(request)}
    variables = environment.defaults(settings.config.platform)
    return processes.launch(
        "longvita.commands.evaluate:run_evaluate", payload, process_count(settings) * replicas, variables
    )


def _settings(model: str, request: Request, options: Options) -> tuple[Settings, int]:
    """The settings of one replica, and how many there are."""
    started, replicas = processes.world_size_of_launcher(), request.replicas
    if replicas is not None and replicas < 1:
        raise OptionError(f"--replicas is {replicas}, but must be at least 1")
    if started is None:
        return resolve(model, options, None), replicas or 1
    named = options.layout or options.config
    if replicas is None and not named:
        return resolve(model, options, started), 1
    if replicas is not None and started % replicas:
        raise OptionError(f"{started} processes were started, which do not divide into {replicas} replicas")
    settings = resolve(model, options, None if named else started // (replicas or 1))
    size = replica_size(settings.config)
    if started != size * (replicas or started // size):
        wanted = f"{replicas} replicas of {size}" if replicas else f"replicas of {size}"
        raise OptionError(f"{started} processes were started, which are not {wanted} (the size of the layout)")
    return settings, started // size


def build_task(request: Request) -> EvaluationTask:
    """The task that a request names. Raises OptionError for one that is not known, DataSetError for its data."""
    folder = Path(request.data).expanduser()
    if request.task == VideoMME.name:
        return VideoMME(folder, request.subtitles, request.limit)
    if request.task == NeedleInVideo.name:
        lengths = _numbers("--lengths", request.lengths, int) if request.lengths else LENGTHS
        depths = _numbers("--depths", request.depths, float) if request.depths else DEPTHS
        return NeedleInVideo(folder, lengths, depths)
    raise OptionError(f"--task is {request.task!r}; choose {VideoMME.name} or {NeedleInVideo.name}")


def _numbers(name: str, text: str, kind: Any) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise OptionError(f"{name} is {text!r}; give numbers with commas between them") from error


def _asked_with(settings: Settings) -> dict[str, Any]:
    """What of the settings every answer depends on; the layout is none of it."""
    return {"model": model_identity(settings.model), "precision": settings.precision}


def model_identity(model: str) -> str:
    """Changes with the weights of a model folder or training checkpoint; the id itself of a model on the Hub."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    root = numbered_root(folder)
    steps = [] if root is None else [step for step in step_folders(root) if (step / MANIFEST).is_file()]
    newest = steps[0] if steps else folder
    files = sorted(path for path in newest.iterdir() if path.is_file())
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{newest.resolve()} {hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()}"


def run_evaluate(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    settings = start_engine_rank(payload)
    from longvita.evaluation.run import answer_all  # here: megatron-core's import takes seconds
    from longvita.inference.session import open_engine

    request = Request(**payload["request"])
    folder = Path(request.output).expanduser()
    with open_engine(settings) as engine:
        scores = answer_all(engine, build_task(request), folder)
    if scores is None:
        return 0
    show(scores, Console())
    print(f"answers and scores are in {folder}")
    return EXIT_INCOMPLETE if scores["failed"] else 0


def show(scores: dict[str, Any], console: Console) -> None:
    """Prints the scores as tables."""
    if "by_length_and_depth" in scores:
        console.print(_grid(scores["by_length_and_depth"]))
    else:
        table = Table("", "right", "asked", "accuracy", title=scores["task"])
        rows = [("overall", scores["overall"])]
        rows += [(f"{column}: {value}", part) for column in BREAKDOWNS[:3] for value, part in scores[column].items()]
        for name, part in rows:
            table.add_row(name, str(part["right"]), str(part["asked"]), f"{part['accuracy']:.1%}")
        console.print(table)
    overall = scores["overall"]
    console.print(f"accuracy {overall['accuracy']:.4f} ({overall['right']} of {overall['asked']})", highlight=False)
    if scores.get("unclear"):
        console.print(f"{scores['unclear']} answers name no single option and count as wrong", highlight=False)
    if scores["failed"]:
        console.print(
            f"{scores['failed']} items could not be asked and count as wrong: their reasons stand in the answers under "
            f'"error"; the same command asks them again',
            highlight=False,
        )


def _grid(cells: dict[str, dict[str, dict[str, int]]]) -> Table:
    depths: Sequence[str] = list(next(iter(cells.values())))
    table = Table("frames", *(f"depth {float(depth):.0%}" for depth in depths), title="needles found")
    for length, by_depth in cells.items():
        table.add_row(length, *(f"{cell['right']} of {cell['asked']}" for cell in by_depth.values()))
    return table
