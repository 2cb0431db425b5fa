"""The measurements of million_tokens.py, in each of its processes."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from film import max_frames, write_film, write_tokenizer
from harness import print_figures, start_process
from peak_memory import peak, reset_peak, resident, return_freed_memory
from retrieval_weights import COLOURS, HIDDEN, VISION_HIDDEN, set_weights
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from longvita.attention import core
from longvita.commands.support.prefill_progress import prefill_progress
from longvita.config.schema import Config, InferenceConfig
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer
from longvita.inference.engine import Engine
from longvita.inference.prompt import TileSource
from longvita.inference.sampling import Sampling
from longvita.model.build import build_model
from longvita.platforms.base import Platform
from longvita.platforms.cpu.attention import FlashKernel

NEW_TOKENS = 8
QUESTION = "one?"
DEPTHS = (0.75, 0.0, 1.0, 0.25, 0.5)
"""Position of each colour's frame."""
KV_BYTES = 2 * HIDDEN * 4
"""Keys and values of one token: one group, fp32."""
KERNEL_ROWS, KERNEL_KEYS = 8192, 65536
"""Shape at which the speed of the kernel alone is measured."""


def run(payload: dict[str, Any]) -> int:
    """Run all measurements; rank 0 prints."""
    return_freed_memory()
    platform = start_process()
    figures = measured(Path(payload["folder"]), payload["tokens"], platform)
    if dist.get_rank() == 0:
        print_figures(figures, payload["json"])
    dist.barrier()
    return 0


@dataclass(frozen=True)
class MillionTokenRun:
    """A prefill and its answer."""

    tokens: int
    """Tokens of prompt and answer."""
    frames: int
    seconds: float
    """Seconds of the prefill."""
    attention_seconds: float
    """Seconds of the prefill's attention, on the slower rank."""
    peak_bytes: float
    """Peak resident memory, summed over the ranks."""
    encoding_bytes: float
    """Peak memory of decoding and encoding a chunk's frames, the maximum over the ranks."""
    found: bool


def measured(folder: Path, tokens: int, platform: Platform) -> dict[str, float]:
    """All results, identical on both ranks."""
    settings = config(tokens)
    groups = platform.build_groups(settings)
    if dist.get_rank() == 0:
        write_tokenizer(folder / "tokenizer")
    dist.barrier()
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    answers = [tokenizer.encode(str(number))[0] for number in range(1, len(COLOURS) + 1)]
    models = build_model(settings, groups, platform, fresh=False)
    set_weights(models[0], tokenizer.encode("\n")[-1], answers)
    kernel = [kernel_speed()]
    runs = []
    for length in (short_length(tokens), tokens):
        runs.append(answer(Engine(models, config(length), tokenizer, groups, platform), folder, tokenizer, answers))
        print_run(runs[-1])
        kernel.append(kernel_speed())
        gc.collect()
    short, full = runs
    work = 4 * HIDDEN * full.tokens**2 / 2 / groups.cp_size
    return {
        "tokens": full.tokens,
        "frames": full.frames,
        "prefill_seconds": full.seconds,
        "peak_rss_slope": (full.peak_bytes - short.peak_bytes) / (full.tokens - short.tokens) / KV_BYTES,
        "efficiency": work / full.attention_seconds / statistics.median(kernel),
        "needle_found": float(all(run.found for run in runs)),
        "encoding_peak_ratio": full.encoding_bytes / short.encoding_bytes,
    }


def short_length(tokens: int) -> int:
    """An eighth of the length, but several prefill chunks if a half has them: the memory of one chunk is not growth."""
    return max(tokens // 8, min(tokens // 2, 4 * InferenceConfig().prefill_chunk_size))


def config(tokens: int) -> Config:
    """One layer and one head; its slowest rotary dimensions hardly turn over a million positions."""
    return Config.model_validate(
        {
            "model": {
                "vision": {
                    "num_layers": 1,
                    "hidden_size": VISION_HIDDEN,
                    "num_attention_heads": 1,
                    "ffn_hidden_size": VISION_HIDDEN,
                },
                "projector": {"hidden_size": VISION_HIDDEN},
                "language": {
                    "num_layers": 1,
                    "hidden_size": HIDDEN,
                    "ffn_hidden_size": HIDDEN,
                    "num_attention_heads": 1,
                    "num_query_groups": 1,
                    "vocab_size": 384,
                    "max_position_embeddings": tokens,
                    "rotary_base": 10**12,
                },
            },
            "layout": {"context_parallel": 2},
            "training": {"precision": "fp32"},
            "inference": {"max_seq_len": tokens, "max_num_frames": tokens},
        }
    )


def answer(engine: Engine, folder: Path, tokenizer: LongVITATokenizer, answers: list[int]) -> MillionTokenRun:
    """Generate an answer about a video with as many frames as fit."""
    limit, path = engine.config.inference.max_seq_len, folder / "film.mp4"
    frames = max_frames(folder / "tokenizer", QUESTION, limit - NEW_TOKENS, engine.config.model.tokens_per_tile)
    if dist.get_rank() == 0:
        places = {round(depth * (frames - 1)): colour for depth, colour in zip(DEPTHS, COLOURS, strict=True)}
        write_film(path, frames, places)
    dist.barrier()
    prompt = engine.encode([{"role": "user", "content": f"<video>{QUESTION}"}], videos=[path])
    memory = PeakMemory(prompt.tiles)
    prompt = dataclasses.replace(prompt, tiles=memory)
    hook = engine.stage.model.get_submodule("vision_projection").register_forward_hook(memory.encoded)
    with timed_attention() as attention_seconds:
        start = time.perf_counter()
        with prefill_progress(len(prompt), dist.get_rank() == 0) as progress:
            stream = engine.stream(prompt, Sampling(max_new_tokens=NEW_TOKENS), progress=progress)
            new = [next(stream)]
        seconds = time.perf_counter() - start
        in_attention = attention_seconds[0]
        new += stream
    hook.remove()
    most = torch.tensor([seconds, in_attention, memory.encoding], dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    everyone = torch.tensor(memory.highest(), dtype=torch.float64)
    dist.all_reduce(everyone)
    wanted = list(itertools.islice(itertools.cycle(answers), NEW_TOKENS))
    engine.reset()
    return MillionTokenRun(
        tokens=len(prompt) + NEW_TOKENS,
        frames=frames,
        seconds=float(most[0]),
        attention_seconds=float(most[1]),
        peak_bytes=float(everyone),
        encoding_bytes=float(most[2]),
        found=new == wanted,
    )


def print_run(run: MillionTokenRun) -> None:
    """Print a line on standard error."""
    Console(stderr=True, quiet=dist.get_rank() > 0).print(
        f"{run.tokens:,} tokens, {run.frames:,} frames: prefill {run.seconds:.0f} s, {run.attention_seconds:.0f} s of "
        f"it attention; peak {run.peak_bytes / 2**20:,.0f} MiB on both ranks, {run.encoding_bytes / 2**20:,.0f} MiB of "
        f"a rank's to encode; needles {'found' if run.found else 'not found'}",
        highlight=False,
    )


class PeakMemory(TileSource):
    """Measures the peak memory of this process, and separately that of encoding.

    It wraps the real source of tiles: encoding starts with a call of `load`.
    """

    def __init__(self, tiles: TileSource):
        self.encoding, self._tiles, self._highest, self._before = 0, tiles, 0, 0
        reset_peak()

    @override
    def load(self, indices: Sequence[int]) -> Tensor:
        self.highest()
        reset_peak()
        self._before = resident()
        return self._tiles.load(indices)

    def encoded(self, *unused: Any) -> None:
        """Record the end of encoding, as a hook of the projector."""
        self.encoding = max(self.encoding, peak() - self._before)

    def highest(self) -> int:
        """Peak resident bytes so far."""
        self._highest = max(self._highest, peak())
        return self._highest


@contextmanager
def timed_attention() -> Iterator[list[float]]:
    """Sum the seconds of attention during the body, in the list's only entry."""
    seconds = [0.0]
    real = core.attend_split_chunk

    def timed(*arguments: Any) -> Tensor:
        start = time.perf_counter()
        out = real(*arguments)
        seconds[0] += time.perf_counter() - start
        return out

    core.attend_split_chunk = timed  # type: ignore[assignment]
    try:
        yield seconds
    finally:
        core.attend_split_chunk = real


def kernel_speed() -> float:
    """FLOP/s of the kernel alone while all ranks run it; the slower rank's."""
    q, k = torch.randn(KERNEL_ROWS, 1, HIDDEN), torch.randn(KERNEL_KEYS, 1, HIDDEN)
    rates = []
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        FlashKernel().full_forward(q, k, k, HIDDEN**-0.5)
        rates.append(4 * HIDDEN * KERNEL_ROWS * KERNEL_KEYS / (time.perf_counter() - start))
    rate = torch.tensor(statistics.median(rates), dtype=torch.float64)
    dist.all_reduce(rate, op=dist.ReduceOp.MIN)
    return float(rate)
