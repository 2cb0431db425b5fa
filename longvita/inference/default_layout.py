"""The default layout of a generation run, and the check of a given one."""

from __future__ import annotations

from longvita.config import checks
from longvita.config.layout_text import LayoutError
from longvita.config.schema import Config, LanguageConfig, LayoutConfig, ModelConfig

WEIGHT_BYTES = 32 * 2**30
"""Bytes of bf16 weights of the language model above which TP divides them: half of a device with 64 GB."""


def default_layout(model: ModelConfig, processes: int) -> LayoutConfig:
    """Return the layout with context parallelism over all processes, and TP only as far as the weights need it."""
    sizes = [size for size in range(1, processes + 1) if processes % size == 0]
    layouts = [LayoutConfig(tensor_parallel=size, context_parallel=processes // size) for size in sizes]
    fitting = [layout for layout in layouts if not _problems(model, layout)]
    weights = 2 * language_parameters(model.language)
    return next((layout for layout in fitting if weights <= layout.tensor_parallel * WEIGHT_BYTES), fitting[-1])


def language_parameters(language: LanguageConfig) -> int:
    """Count the weights of the language model, without biases and norms."""
    tables = 1 if language.tie_word_embeddings else 2
    return language.num_layers * language.layer_weights + tables * language.vocab_size * language.hidden_size


def check_layout(model: ModelConfig, layout: LayoutConfig, processes: int | None) -> None:
    """Check that a layout fits the model, generation, and the `processes` of a launcher. Raises LayoutError."""
    if layout.virtual_pipeline > 1:
        raise LayoutError(
            f"layout.virtual_pipeline is {layout.virtual_pipeline}, but generation needs 1; use tp, cp and pp instead"
        )
    problems = _problems(model, layout)
    if problems:
        raise LayoutError("; ".join(problems))
    wanted = checks.replica_size(Config(model=model, layout=layout))
    if processes not in (None, wanted):
        sizes = f"tp={layout.tensor_parallel}, pp={layout.pipeline_parallel}, cp={layout.context_parallel}"
        raise LayoutError(f"the layout takes {wanted} processes ({sizes}), but {processes} were started")


def _problems(model: ModelConfig, layout: LayoutConfig) -> list[str]:
    """Return the problems that the config checks find in the layout."""
    config = Config(model=model, layout=layout)
    return [
        f"{problem.field}={problem.value} {problem.message}" + (f" (use {problem.fix})" if problem.fix else "")
        for problem in checks.find_problems(config)
        if problem.field.startswith("layout.")
    ]
