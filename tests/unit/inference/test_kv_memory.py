"""What a cached token and the computation of a chunk need, and which prompts are refused for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longvita import platforms
from longvita.attention.kv_cache import PAGE_ROWS
from longvita.config.schema import Config
from longvita.inference.kv_memory import bytes_per_token, check_cache, largest_chunk_bytes
from longvita.inference.limits import LengthError
from longvita.inference.prompt import Prompt, TensorTiles
from longvita.inference.working_memory import chunk_bytes
from longvita.planning.memory import plan_generation


@pytest.mark.parametrize(
    ("layout", "precision", "expected"),
    [
        ({}, "bf16", 2 * 48 * 8 * 128 * 2),
        ({}, "fp32", 2 * 48 * 8 * 128 * 4),
        ({"tensor_parallel": 4, "context_parallel": 2}, "bf16", 2 * 48 * 2 * 128 * 2),
        ({"pipeline_parallel": 2}, "bf16", 2 * 24 * 8 * 128 * 2),
        # A short first stage leaves more layers for the others.
        ({"pipeline_parallel": 2, "num_layers_in_first_pipeline_stage": 8}, "bf16", 2 * 40 * 8 * 128 * 2),
    ],
)
def test_bytes_of_the_14b(layout: dict[str, Any], precision: str, expected: int) -> None:
    config = Config.model_validate({"layout": layout, "training": {"precision": precision}})
    assert bytes_per_token(config) == expected


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tensor_parallel": 2},
    {"tensor_parallel": 8, "sequence_parallel": True},
    {"pipeline_parallel": 2},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("rows", [2048, 8192, 65536])
@pytest.mark.parametrize("platform", platforms.NAMES)
def test_a_chunk_needs_about_what_a_plan_of_its_operators_says(platform: str, layout: dict, rows: int) -> None:
    """The plan (longvita/planning) follows every tensor of each platform's layers; fused ones need less."""
    config = Config.model_validate({"layout": layout, "inference": {"prefill_chunk_size": rows}, "platform": platform})
    planned = max(stage.activations for stage in plan_generation(config))
    assert 1 <= chunk_bytes(rows, rows // 258, config) / planned < 3


def test_context_parallel_divides_all_but_the_queries_of_a_chunk() -> None:
    config = Config.model_validate({"layout": {"context_parallel": 4}})
    assert chunk_bytes(8192, 31, config) < chunk_bytes(8192, 31, Config())


class Memory:
    """A platform with some bytes left."""

    device = torch.device("cpu")

    def __init__(self, free: int):
        self.free = free

    def memory(self) -> dict[str, int]:
        return {"free": self.free}


@pytest.fixture
def alone() -> Any:
    group = SimpleNamespace(size=lambda: 1)
    return SimpleNamespace(tp_cp=group, pp=group, cp_size=1)


def check(prompt: Prompt, free: int, alone: Any, room: tuple[int, ...] = (0,), cached: int = 0) -> int:
    config = Config.model_validate({"training": {"precision": "bf16"}})
    platform: Any = Memory(free)
    return check_cache(prompt, cached, 16, room, config, alone, platform)


def test_a_chunk_must_fit_next_to_the_cache(alone: Any) -> None:
    """A cache that fits to the last byte leaves nothing for the computation of a chunk."""
    config, prompt = Config(), Prompt([5] * 100_000, [], TensorTiles(torch.zeros(0, 3, 28, 28)), [])
    cache = -(-100_016 // PAGE_ROWS) * PAGE_ROWS * bytes_per_token(config)
    working = largest_chunk_bytes(prompt, 0, config)
    assert check(prompt, cache + working, alone) == 0
    with pytest.raises(LengthError, match="computation of a prefill chunk 1.[0-9]+ GiB, but .* are free: .*") as error:
        check(prompt, cache + working - 1, alone)
    smaller = int(str(error.value).split("--prefill-chunk-size ")[1].split()[0])
    assert smaller == 4096 and largest_chunk_bytes(prompt, 0, config, smaller) < working
    # Only the rest of a prompt is computed whose beginning is cached.
    assert check(prompt, cache + working // 2, alone, cached=99_000) == 0


def test_prompts_are_evicted_where_a_chunk_would_not_fit_next_to_them(alone: Any) -> None:
    config, prompt = Config(), Prompt([5] * 2000, [], TensorTiles(torch.zeros(0, 3, 28, 28)), [])
    cache = PAGE_ROWS * bytes_per_token(config)
    working = largest_chunk_bytes(prompt, 0, config)
    assert check(prompt, cache + working, alone, room=(0, cache)) == (1 if working < cache else 0)
    assert check(prompt, 2 * cache + working, alone, room=(0, cache)) == 0
