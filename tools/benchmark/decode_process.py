"""The measurements of decode.py, in each of its processes."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from film import max_frames, write_film, write_tokenizer
from harness import print_figures, start_process

from longvita.config.schema import Config
from longvita.data.tokenizer import load_tokenizer
from longvita.inference.engine import Engine
from longvita.inference.sampling import Sampling
from longvita.model.build import build_model
from longvita.platforms.base import Platform

QUESTIONS = ("one?", "yes?")


def run(payload: dict[str, Any]) -> int:
    """Run all measurements; rank 0 prints."""
    platform = start_process()
    figures = measured(Path(payload["folder"]), payload["tokens"], payload["new_tokens"], platform)
    if dist.get_rank() == 0:
        print_figures(figures, payload["json"])
    dist.barrier()
    return 0


def measured(folder: Path, tokens: int, new_tokens: int, platform: Platform) -> dict[str, float]:
    """All results, identical on both ranks."""
    film(folder, tokens, new_tokens)
    both, alone = engine(folder, tokens, 2, platform), engine(folder, tokens, 1, platform)
    first = DecodeRun(both, QUESTIONS[0], folder / "film.mp4", new_tokens)
    first_seconds = first.next_token()
    single = DecodeRun(alone, QUESTIONS[0], folder / "film.mp4", new_tokens) if dist.get_rank() == 0 else None
    if single is not None:
        single.next_token(everyone=False)
    split, undivided = [], []
    for _ in range(new_tokens - 1):
        split.append(first.next_token())
        dist.barrier()
        undivided.append(0.0 if single is None else single.next_token(everyone=False))
        dist.barrier()
    if single is not None and single.tokens != first.tokens:
        raise RuntimeError(f"two processes answer {first.tokens}, one answers {single.tokens}")
    second = DecodeRun(both, QUESTIONS[1], folder / "copy.mp4", 1)
    second_seconds = second.next_token()
    return {
        "speedup": first_seconds / statistics.median(split),
        "merge_overhead": statistics.median(split) / (statistics.median(undivided) / 2) if single else 0.0,
        "prefix_reuse_cost": second_seconds / first_seconds,
    }


def config(tokens: int, context_parallel: int) -> Config:
    """A model of one layer with many keys and values, few weights and a small vision tower."""
    return Config.model_validate(
        {
            "model": {
                "vision": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 1, "ffn_hidden_size": 32},
                "projector": {"hidden_size": 32},
                "language": {
                    "num_layers": 1,
                    "hidden_size": 256,
                    "ffn_hidden_size": 256,
                    "num_attention_heads": 32,
                    "num_query_groups": 32,
                    "kv_channels": 128,
                    "vocab_size": 384,
                },
            },
            "layout": {"context_parallel": context_parallel},
            "training": {"precision": "fp32"},
            "inference": {"max_seq_len": tokens, "max_num_frames": tokens},
        }
    )


def film(folder: Path, tokens: int, new_tokens: int) -> None:
    """Write the tokenizer, the film and its copy."""
    if dist.get_rank() == 0:
        write_tokenizer(folder / "tokenizer")
        room = tokens - new_tokens
        frames = max_frames(folder / "tokenizer", QUESTIONS[0], room, config(tokens, 1).model.tokens_per_tile)
        write_film(folder / "film.mp4", frames, {})
        shutil.copyfile(folder / "film.mp4", folder / "copy.mp4")
    dist.barrier()


def engine(folder: Path, tokens: int, context_parallel: int, platform: Platform) -> Engine:
    """An engine with random weights, identical at every layout."""
    settings = config(tokens, context_parallel)
    groups = platform.build_groups(settings)
    models = build_model(settings, groups, platform)
    groups.destroy()
    return Engine(models, settings, load_tokenizer(str(folder / "tokenizer")), groups, platform)


class DecodeRun:
    """Decoding of the answer to a question about the film."""

    def __init__(self, engine: Engine, question: str, path: Path, new_tokens: int):
        self.tokens: list[int] = []
        self._stream = self._start(engine, question, path, new_tokens)

    def _start(self, engine: Engine, question: str, path: Path, new_tokens: int) -> Iterator[int]:
        prompt = engine.encode([{"role": "user", "content": f"<video>{question}"}], videos=[path])
        yield from engine.stream(prompt, Sampling(max_new_tokens=new_tokens))

    def next_token(self, everyone: bool = True) -> float:
        """Seconds of the next token on the slower rank. The first token includes the prefill."""
        if everyone:
            dist.barrier()
        start = time.perf_counter()
        self.tokens.append(next(self._stream))
        seconds = torch.tensor(time.perf_counter() - start)
        if everyone:
            dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        return float(seconds)
