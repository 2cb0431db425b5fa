"""Generation at every layout: the golden model's greedy tokens, cached logits, reuse of a conversation's cache."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from longvita.attention import kv_cache
from longvita.attention.kv_cache import KVCache, allocated_bytes
from longvita.checkpoint.hf.config_json import model_config_from_folder
from longvita.checkpoint.hf.read_weights import read_weights
from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.inference.engine import Engine
from longvita.inference.frame_attention import FrameAttention
from longvita.inference.kv_memory import bytes_per_token, largest_chunk_bytes
from longvita.inference.limits import LengthError
from longvita.inference.prefill_decode import Chunk, TileError
from longvita.inference.prompt import Prompt, TensorTiles, plan_chunks
from longvita.inference.sampling import Sampling
from longvita.model.build import build_model
from longvita.platforms import get
from tests.distributed.helpers import run_distributed

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
LAYOUTS = {
    "tp1": {},
    "tp2": {"tensor_parallel": 2},
    "tp2_sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2": {"pipeline_parallel": 2},
    "tp2_pp2_sp": {"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True},
    "cp2": {"context_parallel": 2},
    "cp4": {"context_parallel": 4},
    "tp2_cp2_sp": {"tensor_parallel": 2, "context_parallel": 2, "sequence_parallel": True},
    "pp2_cp2": {"pipeline_parallel": 2, "context_parallel": 2},
}
CHUNK_SIZES = (1, 7, 32, 8192)
PAGE = 8
GREEDY_TOKENS = json.loads((GOLDEN / "golden.json").read_text())["greedy_tokens"]


def world_size(layout: dict[str, Any]) -> int:
    return math.prod(size for key, size in layout.items() if key != "sequence_parallel")


def golden_config(layout: dict[str, Any], chunk_size: int = 8192) -> Config:
    return Config.model_validate(
        {
            "model": model_config_from_folder(GOLDEN).model_dump(),
            "layout": layout,
            "training": {"precision": "fp32"},
            "inference": {"prefill_chunk_size": chunk_size, "max_seq_len": 1024},
        }
    )


def golden_engine(layout: dict[str, Any]) -> Engine:
    platform = get("cpu")
    platform.activate()
    config = golden_config(layout)
    groups = platform.build_groups(config)
    models = build_model(config, groups, platform, fresh=False)
    read_weights(models, GOLDEN, groups)
    return Engine(models, config, None, groups, platform)


def golden_prompt() -> tuple[Prompt, dict[str, torch.Tensor]]:
    data = load_file(GOLDEN / "golden.safetensors")
    starts = data["image_indices"][1, :, 0].tolist()
    tiles = data["images"]
    return Prompt(data["input_ids"][0].tolist(), starts, TensorTiles(tiles), ["a", "b", "c"]), data


def with_chunk_size(engine: Engine, size: int) -> None:
    inference = engine.config.inference.model_copy(update={"prefill_chunk_size": size})
    engine.config = engine.config.model_copy(update={"inference": inference})


def greedy_tokens_by_chunk_size(engine: Engine) -> dict[int, list[int]]:
    prompt, data = golden_prompt()
    tokens = {}
    for size in CHUNK_SIZES:
        with_chunk_size(engine, size)
        tokens[size] = engine.generate_tokens(data["input_ids"], data["images"], torch.tensor(prompt.tile_starts), 12)
    return tokens


def cached_logits(engine: Engine) -> dict[int, torch.Tensor]:
    """Logits by position: after each prefill chunk of the prompt, then after each of the golden tokens."""
    prompt, _ = golden_prompt()
    cache, logits = KVCache(512, engine.groups.cp_size), {}
    for start, end in plan_chunks(0, len(prompt), prompt.tile_starts, 4, 7):
        places = [place for place, tile in enumerate(prompt.tile_starts) if start <= tile < end]
        starts = [prompt.tile_starts[place] - start for place in places]
        logits[end - 1] = engine.stage.run(Chunk(prompt.input_ids[start:end], starts, places), cache, prompt.tiles)
    for token in GREEDY_TOKENS:
        after = engine.stage.run(Chunk([token]), cache)
        logits[cache.length - 1] = after
    return logits


def whole_logits(engine: Engine) -> torch.Tensor:
    """Logits [t, v] of prompt and golden tokens in one pass without a cache, on one process."""
    prompt, data = golden_prompt()
    ids = torch.tensor([[*prompt.input_ids, *GREEDY_TOKENS]])
    count = ids.shape[1]
    batch = LocalBatch(
        input_ids=ids,
        labels=torch.full_like(ids, IGNORED_LABEL),
        position_ids=torch.arange(count)[None],
        cu_seqlens=torch.tensor([0, count], dtype=torch.int32),
        max_seqlen=count,
        tile_starts=torch.tensor(prompt.tile_starts),
        tile_owners=torch.zeros(3, dtype=torch.int64),
        tiles=data["images"],
        document_sources=["golden"],
        padding_tokens=0,
    )
    with torch.no_grad():
        return engine.stage.model.logits(batch)


def conversation(engine: Engine) -> dict[str, Any]:
    """Three turns, each asked with the cache of the turns before it and again without: tokens, tokens prefilled."""
    prompt, data = golden_prompt()
    with_chunk_size(engine, 16)
    engine.reset()
    first = dataclasses.replace(prompt, input_ids=prompt.input_ids[:60])
    first_answer = list(engine.stream(first, Sampling(max_new_tokens=5)))
    grown = dataclasses.replace(first, input_ids=[*first.input_ids, *first_answer, *range(20, 33)])
    other_tiles = TensorTiles(torch.cat([data["images"][:1], -data["images"][1:]]))
    changed = dataclasses.replace(grown, tiles=other_tiles, tile_keys=["a", "other", "c"])
    result: dict[str, Any] = {"starts": prompt.tile_starts, "first_length": len(first)}
    for name, turn in {"grown": grown, "changed": changed, "same": changed}.items():
        prefilled: list[int] = []
        reused = list(engine.stream(turn, Sampling(max_new_tokens=6), progress=prefilled.append))
        result[name] = {"tokens": reused, "prefilled": prefilled}
    # Two tokens of an answer are taken, then the consumer stops.
    taken = engine.stream(grown, Sampling(max_new_tokens=6))
    next(taken), next(taken)
    taken.close()
    result["after_stop"] = list(engine.stream(changed, Sampling(max_new_tokens=6)))
    for name, turn in {"grown": grown, "changed": changed}.items():
        engine.reset()
        result[name]["fresh"] = list(engine.stream(turn, Sampling(max_new_tokens=6)))
    return result


class BrokenTiles:
    """A source whose last tile cannot be decoded."""

    def load(self, indices: Any) -> torch.Tensor:
        if 2 in indices:
            raise RuntimeError("frame 2 is damaged")
        return torch.zeros(len(indices), 3, 56, 56)


def attended(engine: Engine) -> dict[str, Any]:
    """Shares of attention that the tiles of the golden prompt get, at two chunk sizes, and the tokens meanwhile."""
    prompt, _ = golden_prompt()
    shares, tokens = [], []
    for size in (7, 8192):
        with_chunk_size(engine, size)
        engine.reset()
        observer = FrameAttention()
        tokens.append(list(engine.stream(prompt, Sampling(max_new_tokens=len(GREEDY_TOKENS)), observer=observer)))
        shares.append(engine.attended(prompt, observer))
    return {"shares": shares, "tokens": tokens, "observer_after": engine.prompts.current.cache.observer}


def broken_tile(engine: Engine) -> str:
    prompt, _ = golden_prompt()
    engine.reset()
    with pytest.raises(TileError) as caught:
        list(engine.stream(dataclasses.replace(prompt, tiles=BrokenTiles()), Sampling(max_new_tokens=2)))
    return str(caught.value)


def sampled(engine: Engine) -> list[int]:
    prompt, _ = golden_prompt()
    engine.reset()
    return list(engine.stream(prompt, Sampling(temperature=1.0, top_k=50, top_p=0.9, max_new_tokens=8, seed=3)))


class SmallMachine:
    """A platform with little memory left, least of it on the last rank."""

    def __init__(self, platform: Any, free: int):
        self.device, self._free = platform.device, free - dist.get_rank()

    def memory(self) -> dict[str, int]:
        return {"free": self._free}


def too_large_a_cache(engine: Engine) -> dict[str, Any]:
    """Bytes of a cached token as counted and as allocated; the refusal where 60 tokens a rank fit; what was cached."""
    prompt, _ = golden_prompt()
    engine.reset()
    # Few enough tokens for one page of each rank.
    list(engine.stream(Prompt([5] * 5, [], prompt.tiles, []), Sampling(max_new_tokens=2)))
    result: dict[str, Any] = {
        "each": bytes_per_token(engine.config),
        "allocated": allocated_bytes([engine.prompts.current.cache]) / PAGE,
    }
    engine.reset()
    real = engine.platform
    working = largest_chunk_bytes(prompt, 0, engine.config)
    engine.platform = SmallMachine(real, working + 60 * result["each"] + dist.get_world_size() - 1)
    try:
        with pytest.raises(LengthError) as caught:
            list(engine.stream(prompt, Sampling(max_new_tokens=400)))
    finally:
        engine.platform = real
    return result | {
        "message": str(caught.value),
        "kept": engine.prompts.current,
        "tokens": len(prompt) + 400,
    }


def every_result(rank: int, world: int, layout: dict[str, Any]) -> dict[str, Any]:
    # Documents of 78 tokens then have full pages, which they share.
    kv_cache.PAGE_ROWS = PAGE
    engine = golden_engine(layout)
    result = {
        "greedy": greedy_tokens_by_chunk_size(engine),
        "logits": cached_logits(engine),
        "whole": whole_logits(engine) if world == 1 else None,
        "conversation": conversation(engine),
        "sampled": sampled(engine),
        "attended": attended(engine),
        "broken": broken_tile(engine),
        "too_large": too_large_a_cache(engine),
    }
    engine.groups.destroy()
    return result


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    return run_distributed(every_result, 1, {})[0]


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS)
def results(request: pytest.FixtureRequest, one_process: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank of a layout got."""
    layout = request.param
    return [one_process] if not layout else run_distributed(every_result, world_size(layout), layout)


def test_greedy_tokens_equal_golden_at_every_chunk_size(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["greedy"] == dict.fromkeys(CHUNK_SIZES, GREEDY_TOKENS)


def test_cached_logits_equal_a_whole_recompute(results: list[dict[str, Any]], one_process: dict[str, Any]) -> None:
    whole = one_process["whole"]
    compared = 0
    for result in results:
        for position, logits in result["logits"].items():
            if logits is not None:
                assert (logits - whole[position]).abs().max() < 1e-5, f"position {position}"
                compared += 1
    assert compared >= 14 + len(GREEDY_TOKENS)


def test_a_conversation_reuses_the_cache_and_answers_as_if_fresh(results: list[dict[str, Any]]) -> None:
    for result in results:
        talk = result["conversation"]
        for turn in ("grown", "changed"):
            assert talk[turn]["tokens"] == talk[turn]["fresh"]
        # The first turn and four of its five new tokens are cached; 14 tokens are left of the 78.
        assert talk["grown"]["prefilled"] == [78]
        # Another picture with the same tokens is prefilled from its first row on.
        assert talk["changed"]["prefilled"][0] <= talk["starts"][1] + 16
        assert talk["changed"]["prefilled"][-1] == 78
        # The same prompt again leaves only its last token.
        assert talk["same"]["prefilled"] == [78]
        assert talk["same"]["tokens"] == talk["changed"]["tokens"]
        assert talk["after_stop"] == talk["changed"]["fresh"]


def test_sampling_gives_the_same_tokens_at_every_layout(
    results: list[dict[str, Any]], one_process: dict[str, Any]
) -> None:
    for result in results:
        assert result["sampled"] == one_process["sampled"]


def test_shares_of_attention_are_the_same_on_every_rank_of_every_layout(
    results: list[dict[str, Any]], one_process: dict[str, Any]
) -> None:
    expected = one_process["attended"]["shares"][0]
    assert expected.shape == (3,) and 0.01 < float(expected.sum()) < 1
    for result in results:
        for shares in result["attended"]["shares"]:
            torch.testing.assert_close(shares, expected, rtol=1e-4, atol=1e-7)
        assert result["attended"]["tokens"] == [GREEDY_TOKENS] * 2
        assert result["attended"]["observer_after"] is None


def test_a_tile_that_fails_on_one_rank_is_an_error_on_all(results: list[dict[str, Any]]) -> None:
    messages = [result["broken"] for result in results]
    assert messages[0] == "RuntimeError: frame 2 is damaged"
    assert set(messages) <= {messages[0], "the first pipeline stage could not decode a tile"}


def test_a_cache_that_does_not_fit_is_refused_before_prefill(results: list[dict[str, Any]]) -> None:
    refusals = [result["too_large"] for result in results]
    assert max(refusal["allocated"] for refusal in refusals) == refusals[0]["each"]
    assert len({refusal["message"] for refusal in refusals}) == 1
    first = refusals[0]
    assert first["kept"] is None
    assert f"the keys and values of {first['tokens']} tokens need" in first["message"]
    assert "and the computation of a prefill chunk" in first["message"]
    assert f"layout.context_parallel {math.ceil(first['tokens'] / 60)}" in first["message"]
    assert "--max-num-frames" not in first["message"], "no number of frames helps: the answer alone is too long"
