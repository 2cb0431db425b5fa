"""The layout of a generation run where the user names none."""

from __future__ import annotations

from longvita.config import checks
from longvita.config.schema import Config, LayoutConfig, ModelConfig
from longvita.errors import UserError


class LayoutError(UserError, ValueError):
    """A layout that does not fit the model or the processes."""


def default_layout(model: ModelConfig, processes: int) -> LayoutConfig:
    """TP over as many of the processes as heads, groups, MLP and vocabulary divide into, PP over the rest.

    Raises LayoutError when no such layout takes all processes.
    """
    for tensor_parallel in range(processes, 0, -1):
        if processes % tensor_parallel:
            continue
        layout = LayoutConfig(tensor_parallel=tensor_parallel, pipeline_parallel=processes // tensor_parallel)
        if not _problems(model, layout):
            return layout
    language = model.language
    raise LayoutError(
        f"{processes} processes fit no layout of this model ({language.num_attention_heads} heads, "
        f"{language.num_query_groups} groups, {language.num_layers} layers); start another number of them"
    )


def check_layout(model: ModelConfig, layout: LayoutConfig, processes: int | None) -> None:
    """Raises LayoutError when a layout does not fit the model, generation, or the `processes` of a launcher."""
    if layout.virtual_pipeline > 1:
        raise LayoutError(
            f"layout.virtual_pipeline is {layout.virtual_pipeline}, but generation needs 1; use tp, cp and pp instead"
        )
    problems = _problems(model, layout)
    if problems:
        raise LayoutError("; ".join(problems))
    wanted = layout.tensor_parallel * layout.pipeline_parallel * layout.context_parallel
    if processes not in (None, wanted):
        sizes = f"tp={layout.tensor_parallel}, pp={layout.pipeline_parallel}, cp={layout.context_parallel}"
        raise LayoutError(f"the layout takes {wanted} processes ({sizes}), but {processes} were started")


def _problems(model: ModelConfig, layout: LayoutConfig) -> list[str]:
    """What keeps the layout from the model, in the words of the config checks."""
    config = Config(model=model, layout=layout)
    return [
        f"{problem.field}={problem.value} {problem.message}" + (f" (use {problem.way_out})" if problem.way_out else "")
        for problem in checks.find_problems(config)
        if problem.field.startswith("layout.")
    ]
