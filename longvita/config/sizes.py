"""Sizes derived from a config: processes of a replica, layers of a stage, frames of a sequence."""

from __future__ import annotations

import math

from longvita.config.schema import TILE_MARKERS, Config


def ulysses_size(config: Config) -> int:
    """Return the size of the Ulysses groups: layout.ulysses, or the largest that divides CP and a TP rank's groups.

    Ulysses sends each row of queries, keys, values and outputs once; the ring sends each row of keys and values up to
    CP - 1 times. With more ranks than query groups, Ulysses would have to send a group to several of them.
    """
    layout = config.layout
    if layout.ulysses is not None:
        return layout.ulysses
    return math.gcd(layout.context_parallel, local_query_groups(config))


def local_query_groups(config: Config) -> int:
    """Return the key and value heads of a TP rank: query groups / TP, at least 1."""
    return max(config.model.language.num_query_groups // config.layout.tensor_parallel, 1)


def replica_size(config: Config) -> int:
    """Return the processes of one model replica: TP x PP x CP."""
    layout = config.layout
    return layout.tensor_parallel * layout.pipeline_parallel * layout.context_parallel


def processes_to_start(config: Config) -> int:
    """Processes that a training command starts when no launcher has: layout.processes, or one replica."""
    return config.layout.processes or replica_size(config)


def frames_that_fit(length: int, tokens_per_tile: int, text_tokens: int = 0) -> int:
    """Return how many frames (or tiles) with their markers fit `length` tokens in addition to `text_tokens` of text."""
    return max(0, (length - text_tokens) // (tokens_per_tile + TILE_MARKERS))


def layers_per_stage(config: Config) -> list[int]:
    """Return the language layers of each pipeline stage; only valid for a config without problems (find_problems)."""
    layout = config.layout
    first, last = layout.num_layers_in_first_pipeline_stage, layout.num_layers_in_last_pipeline_stage
    middle_stages = layout.pipeline_parallel - (first is not None) - (last is not None)
    middle_layers = config.model.language.num_layers - (first or 0) - (last or 0)
    each = middle_layers // middle_stages if middle_stages else 0
    return ([first] if first is not None else []) + [each] * middle_stages + ([last] if last is not None else [])
