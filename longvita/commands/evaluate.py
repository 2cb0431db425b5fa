"""`longvita evaluate`: refuse what does not fit before any work, then answer in the ranks of the layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from longvita.commands.support.options import EngineOptions, EvaluationRequest, ModelArgument
from longvita.processes import EXIT_COMPLETE, EXIT_INCOMPLETE, is_first_process


def evaluate(model: ModelArgument, request: EvaluationRequest, options: EngineOptions) -> int:
    """Answer and score a benchmark; exit code 1 when some of it could not be asked."""
    from longvita.checkpoint.hf.hub import check_name

    # Before the large libraries are imported, which takes seconds.
    check_name(model)
    from longvita.commands.support.engine_ranks import launch_engines, quiet_libraries

    quiet_libraries()
    from longvita.commands.support.evaluation_request import (
        build_task,
        fitted_settings,
        model_identity,
        replica_settings,
    )
    from longvita.evaluation.answer_log import claim

    settings, count = replica_settings(model, request, options)
    work = build_task(request)
    settings = fitted_settings(settings, options, work)
    # Answers depend on these, not on the layout; a stopped run resumes only with the same.
    identity = {"model": model_identity(settings.model), "precision": settings.precision}
    identity = {"task": work.name, **work.identity(settings.config), **identity}
    claim(Path(request.output).expanduser(), identity, write=is_first_process())
    payload = {"request": dataclasses.asdict(request)}
    return launch_engines("longvita.commands.evaluate:evaluate_rank", settings, options, payload, count)


def evaluate_rank(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    from longvita.commands.support.engine_ranks import start_engine_rank

    settings = start_engine_rank(payload)
    # Not earlier: they import megatron-core.
    from rich.console import Console

    from longvita.commands.support.evaluation_request import build_task
    from longvita.commands.support.score_tables import show_scores
    from longvita.evaluation.run import answer_all
    from longvita.inference.session import open_engine

    request = EvaluationRequest(**payload["request"])
    folder = Path(request.output).expanduser()
    with open_engine(settings) as engine:
        scores = answer_all(engine, build_task(request), folder)
    if scores is None:
        return EXIT_COMPLETE
    show_scores(scores, Console())
    print(f"answers and scores are in {folder}")
    return EXIT_INCOMPLETE if scores["failed"] else EXIT_COMPLETE
