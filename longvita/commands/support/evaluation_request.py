"""The request of `longvita evaluate`: its task, and the replicas that answer."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

from longvita.checkpoint.manifest import MANIFEST
from longvita.checkpoint.step_folders import numbered_root, step_folders
from longvita.commands.support.model_options import engine_settings, prompt_encoder
from longvita.commands.support.options import EngineOptions, EvaluationRequest, OptionError
from longvita.config.sizes import replica_size
from longvita.evaluation.needle import DEPTHS, LENGTHS, NeedleInVideo
from longvita.evaluation.task import EvaluationTask
from longvita.evaluation.video_mme import VideoMME
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.settings import EngineSettings
from longvita.processes import is_first_process, world_size_of_launcher


def replica_settings(model: str, request: EvaluationRequest, options: EngineOptions) -> tuple[EngineSettings, int]:
    """The settings of one replica, and the number of replicas. Raises UserError for what does not fit."""
    started, replicas = world_size_of_launcher(), request.replicas
    if started is None:
        return engine_settings(model, options, None), replicas or 1
    if replicas is None and not options.names_layout:
        return engine_settings(model, options, started), 1
    if replicas is not None and started % replicas:
        raise OptionError(f"{started} processes were started, which do not divide into {replicas} replicas")
    settings = engine_settings(model, options, None if options.names_layout else started // (replicas or 1))
    size = replica_size(settings.config)
    if started != size * (replicas or started // size):
        wanted = f"{replicas} replicas of {size}" if replicas else f"replicas of {size}"
        raise OptionError(f"{started} processes were started, which are not {wanted} (the size of the layout)")
    return settings, started // size


def build_task(request: EvaluationRequest) -> EvaluationTask:
    """The task that a request names. Raises DataSetError for its data."""
    folder = Path(request.data).expanduser()
    if request.task == VideoMME.name:
        return VideoMME(folder, request.subtitles, request.limit)
    return NeedleInVideo(folder, request.numbers("lengths", int) or LENGTHS, request.numbers("depths", float) or DEPTHS)


def fitted_settings(settings: EngineSettings, options: EngineOptions, task: EvaluationTask) -> EngineSettings:
    """The settings with a length limit that the task's items fit, where the user chose none.

    Raises LengthError where they fit no limit, or not the chosen one.
    """
    config, encoder = settings.config, prompt_encoder(settings)
    longest = None if options.max_seq_len is not None or options.config else task.longest(encoder)
    if longest is not None and longest > config.inference.max_seq_len:
        limit = min(longest, config.model.language.max_position_embeddings)
        if is_first_process():
            print(f"--max-seq-len is {limit}, for the longest item", file=sys.stderr)
        config = config.model_copy(update={"inference": config.inference.model_copy(update={"max_seq_len": limit})})
        settings = dataclasses.replace(settings, config=config)
        encoder = PromptEncoder(config, encoder.template.tokenizer)
    task.check(encoder)
    return settings


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
