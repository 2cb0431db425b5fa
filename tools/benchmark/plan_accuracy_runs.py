"""Measurements of memory and time of training steps for plan_accuracy.py."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import start_process
from megatron.core import parallel_state
from plan_accuracy_settings import MEMORY, TIME, PlanSetting
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.tile_sharing import assign_tiles
from longvita.planning.batch_contents import BatchContents
from longvita.platforms.base import OffloadedTensor, Platform
from longvita.training.state import build_state
from longvita.training.step import train_step


def micro_batch(contents: BatchContents, config: Config, groups: ParallelGroups) -> LocalBatch:
    """A micro batch with these contents: tiles from its start, loss tokens at its end."""
    tokens, size, per_tile = contents.tokens, config.model.vision.image_size, config.model.tokens_per_tile
    length = tokens // contents.documents
    owners = assign_tiles(contents.tiles, groups.vision_size)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(config.model.language.vocab_size, (1, tokens), generator=generator)
    labels = torch.full((1, tokens), IGNORED_LABEL)
    if contents.loss_tokens:
        labels[0, -contents.loss_tokens :] = ids[0, -contents.loss_tokens :]
    own = int((owners == groups.vision_rank).sum()) if groups.is_first_stage else 0
    return LocalBatch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(length).repeat(contents.documents)[None],
        cu_seqlens=torch.arange(0, tokens + 1, length, dtype=torch.int32),
        max_seqlen=length,
        tile_starts=(per_tile + 2) * torch.arange(contents.tiles) + 1,
        tile_owners=owners,
        tiles=torch.randn(own, 3, size, size, generator=generator),
        document_sources=["words"] * contents.documents,
        padding_tokens=0,
    )


def run_memory(payload: dict[str, Any]) -> int:
    """Measure the memory of a step for each setting with this number of processes."""
    platform = start_process()
    found = {
        n: _memory(setting, platform) for n, setting in MEMORY.items() if setting.processes == dist.get_world_size()
    }
    return _write(found, payload["folder"], "memory")


def run_times(payload: dict[str, Any]) -> int:
    """Measure the seconds of a step for each setting with this number of processes, and the rates for the plan."""
    platform, processes = start_process(), dist.get_world_size()
    times = {
        name: seconds_of_step(setting, platform) for name, setting in TIME.items() if setting.processes == processes
    }
    return _write({"times": times, "rates": measured_rates()}, payload["folder"], f"times-{payload['round']}")


def _write(found: dict[str, Any], folder: str, name: str) -> int:
    Path(folder, f"{name}-{dist.get_world_size()}-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _memory(setting: PlanSetting, platform: Platform) -> dict[str, int]:
    state = start(setting.config(), platform)
    peak = peak_of_step(state, setting.contents)
    weights, gradients, optimizer = state_of(state)
    place = {"stage": state.groups.pp_rank, "shard": state.groups.dp_cp.rank()}
    return {"peak": peak, "parameters": weights, "gradients": gradients, "optimizer": optimizer, **place}


def start(config: Config, platform: Platform) -> TrainingState:
    """A new state; process groups of an earlier one are destroyed."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    return build_state(config, platform.build_groups(config), platform)


def state_of(state: TrainingState) -> tuple[int, int, int]:
    """Allocated bytes of weights, gradients and optimizer state of this process, after a step."""
    buffers = [buffer for chunk in state.chunks for buffer in chunk.buffers]
    weights = _storages(parameter for model in state.models for parameter in model.parameters())
    inner: Any = state.optimizer
    moments, mains = 0, dict[int, int]()
    for group in inner.optimizer.param_groups:
        for parameter in group["params"]:
            moments += sum(value.nbytes for value in inner.optimizer.state[parameter].values())
            mains |= _storages([parameter])
    copies = sum(size for address, size in mains.items() if address not in weights)
    return sum(weights.values()), sum(buffer.grad_data.nbytes for buffer in buffers), moments + copies


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


class NumpyOffloadedTensor(OffloadedTensor):
    """A tensor offloaded to numpy's memory, which the profiler does not count.

    It uses no thread for files, because the profiler does not see allocations of other threads.
    """

    def __init__(self, tensor: torch.Tensor):
        self._copy = tensor.detach().numpy().copy()
        self._back: torch.Tensor | None = None

    @override
    def start(self) -> None:
        if self._back is None:
            self._back = torch.empty(self._copy.shape).copy_(torch.from_numpy(self._copy))

    @override
    def fetch(self) -> torch.Tensor:
        self.start()
        back, self._back = self._back, None
        if back is None:
            raise RuntimeError("nothing is being read")
        return back


def peak_of_step(state: TrainingState, contents: BatchContents) -> int:
    """Peak bytes of a step on this rank, in addition to weights, gradients and optimizer state.

    From the allocations in torch's profiler. Buffers that Megatron keeps for its collectives are freed before the step,
    so that they count.
    """
    batches = endless(micro_batch(contents, state.config, state.groups))
    for model in state.models:
        if model.language_model._offload is not None:
            model.language_model._offload = NumpyOffloadedTensor
    train_step(state, batches)
    parallel_state.get_global_memory_buffer().buffer.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(state, batches)
    return peak_bytes(profiler.profiler.kineto_results.experimental_event_tree())


def peak_bytes(events: list[Any]) -> int:
    """Peak of the allocated bytes in a profiler's tree of events.

    The tree does not contain blocks freed by other threads, such as gloo's copies. A block is therefore also counted as
    free when its address is allocated again.
    """
    allocations = sorted(_allocations(events), key=lambda event: event.start_time_ns)
    live: dict[int, int] = {}
    peak = now = 0
    for event in allocations:
        block, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        now -= live.pop(block, 0)
        if size > 0:
            live[block] = size
            now += size
            peak = max(peak, now)
    return peak


def _allocations(events: list[Any]) -> Iterator[Any]:
    for event in events:
        if event.typed[0] == _EventType.Allocation:
            yield event
        yield from _allocations(event.children)


def endless(batch: LocalBatch) -> Iterator[LocalBatch]:
    """Repeat a micro batch without end."""
    while True:
        yield dataclasses.replace(batch)


def seconds_of_step(setting: PlanSetting, platform: Platform, steps: int = 3) -> float:
    """Seconds of the fastest of several steps, the one least disturbed by other work on the machine."""
    state = start(setting.config(), platform)
    batches = endless(micro_batch(setting.contents, state.config, state.groups))
    train_step(state, batches)
    taken = []
    for _ in range(steps):
        dist.barrier()
        begin = time.perf_counter()
        train_step(state, batches)
        dist.barrier()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def measured_rates() -> dict[str, float]:
    """Rates while all processes measure: FLOP/s of matrix products and attention, bytes/s of copies and all-reduce."""
    matrix = torch.randn(1024, 1024)
    heads = torch.randn(1, 6, 2048, 64)
    block = torch.randn(1 << 22)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rates = {
        "flops": 2 * 1024**3 / fastest(lambda: torch.mm(matrix, matrix)),
        "attention": 4 * 6 * 64 * 2048 * 2049 / 2 / fastest(lambda: attention(heads, heads, heads, 0.0, True)),
        "bandwidth": 2 * block.nbytes / fastest(lambda: block.clone()),
    }
    if dist.get_world_size() > 1:
        rates["link"] = block.nbytes / fastest(lambda: dist.all_reduce(block))
    return rates


def fastest(call: Callable[[], Any], times: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    dist.barrier()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)
