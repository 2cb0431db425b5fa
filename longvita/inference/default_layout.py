"""The layout of a generation run where the user names none."""

from __future__ import annotations

from longvita.config import checks
from longvita.config.layout_text import LayoutError
from longvita.config.schema import Config, LanguageConfig, LayoutConfig, ModelConfig

WEIGHT_BYTES = 32 * 2**30
"""Most bf16 weights of the language model for one device, half of a device of 64 GB, before TP divides them."""


def default_layout(model: ModelConfig, processes: int) -> LayoutConfig:
    """The input spread over all processes (CP), TP among them only as far as the weights need it."""
    sizes = [size for size in range(1, processes + 1) if processes % size == 0]
    layouts = [LayoutConfig(tensor_parallel=size, context_parallel=processes // size) for size in sizes]
    fitting = [layout for layout in layouts if not _problems(model, layout)]
    weights = 2 * language_parameters(model.language)
    return next((layout for layout in fitting if weights <= layout.tensor_parallel * WEIGHT_BYTES), fitting[-1])


def language_parameters(language: LanguageConfig) -> int:
    """Weights of the language model, biases and norms left out."""
    tables = 1 if language.tie_word_embeddings else 2
    return language.num_layers * language.layer_weights + tables * language.vocab_size * language.hidden_size


def check_layout(model: ModelConfig, layout: LayoutConfig, processes: int | None) -> None:
    """Raises LayoutError when a layout does not fit the model, generation, or the `processes` of a launcher."""
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
    """What keeps the layout from the model, in the words of the config checks."""
    config = Config(model=model, layout=layout)
    return [
        f"{problem.field}={problem.value} {problem.message}" + (f" (use {problem.fix})" if problem.fix else "")
        for problem in checks.find_problems(config)
        if problem.field.startswith("layout.")
    ]
