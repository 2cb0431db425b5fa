"""Counted parameters, gradients and optimizer state against the real model's, on every rank of some layouts."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from longvita.config import load
from longvita.planning.parameters import stage_parameters, state_bytes
from tests.conftest import REPOSITORY
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import start
from tests.tiny import tiny_config

UNEVEN = {"num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 3}
LANGUAGE = {"num_layers": 6, "num_attention_heads": 8, "num_query_groups": 4}
CASES = {
    "one process": (1, {}, {}, {}),
    "dp3": (3, {}, {}, {}),
    "tp2 dp2": (4, {"tensor_parallel": 2}, {}, {}),
    "tp4 sp cp2 dp3": (24, {"tensor_parallel": 4, "sequence_parallel": True, "context_parallel": 2}, {}, {}),
    "uneven pp3 dp2": (6, {"pipeline_parallel": 3} | UNEVEN, {}, {}),
    "pp2 vp3 tp2": (8, {"pipeline_parallel": 2, "virtual_pipeline": 3, "tensor_parallel": 2}, {}, {}),
    "tied": (2, {}, {"tie_word_embeddings": True}, {}),
    "tied pp3 dp2": (6, {"pipeline_parallel": 3}, {"tie_word_embeddings": True}, {}),
    "tied pp2 vp3": (4, {"pipeline_parallel": 2, "virtual_pipeline": 3}, {"tie_word_embeddings": True}, {}),
    "projector pp2": (4, {"pipeline_parallel": 2}, {}, {"trainable": ["projector"]}),
    "frozen tower cp2": (4, {"context_parallel": 2}, {}, {"trainable": ["projector", "language"]}),
    "bf16 tied tp2 pp2": (
        8,
        {"tensor_parallel": 2, "pipeline_parallel": 2},
        {"tie_word_embeddings": True},
        {"precision": "bf16", "overlap_grad_reduce": False},
    ),
    # Above the 40 million elements at which Megatron closes a bucket.
    "pp2 vp3, tower recomputed": (
        8,
        {"pipeline_parallel": 2, "virtual_pipeline": 3},
        {},
        {"recompute": {"vision": True}},
    ),
    "buckets": (6, {}, {"hidden_size": 1024, "ffn_hidden_size": 2048, "vocab_size": 8192}, {}),
}


def config_of(case):
    world, layout, language, training = CASES[case]
    batch = 24 * world
    sections = {"language": LANGUAGE | language}
    return world, tiny_config(model=sections, layout=layout, training={"global_batch_size": batch} | training)


def measure(rank: int, _: int, case: str) -> list:
    """Measure what some ranks of a world of fake processes allocate."""
    world, config = config_of(case)
    dist.destroy_process_group()
    found = []
    for number in {0, world // 2, world - 1}:
        dist.init_process_group("fake", store=FakeStore(), rank=number, world_size=world)
        state = start(config)
        names = [[(n, tuple(p.shape)) for n, p in model.named_parameters()] for model in state.models]
        found.append((state.groups.pp_rank, state.groups.dp_cp.rank(), names, allocated(state)))
        state.groups.destroy()
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)  # for the caller to end
    return found


def allocated(state) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state."""
    buffers = [buffer for chunk in state.chunks for buffer in chunk.buffers]
    weights = storages(p for model in state.models for p in model.parameters())
    inner = getattr(state.optimizer, "optimizer", None)
    moments, mains = 0, {}
    for group in inner.param_groups if inner is not None else []:
        for parameter in group["params"]:
            moments += sum(value.nbytes for value in inner._state(parameter).values())
            mains |= storages([parameter])
    copies = sum(size for key, size in mains.items() if key not in weights)
    return sum(weights.values()), sum(buffer.grad_data.nbytes for buffer in buffers), moments + copies


def storages(tensors) -> dict[int, int]:
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {key: size for key, size in found.items() if size}


@pytest.mark.parametrize("case", CASES)
def test_planned_state_equals_that_of_the_model(case):
    world, config = config_of(case)
    ((*ranks,),) = run_distributed(measure, 1, case)
    for stage, dp_cp_rank, names, bytes_of in ranks:
        planned = [[(p.name, p.shape) for p in chunk] for chunk in stage_parameters(config, stage)]
        assert planned == names
        state = state_bytes(config, world, stage, dp_cp_rank)
        assert (state.parameters, state.gradients, state.optimizer) == bytes_of


def test_the_fullest_rank_is_the_default():
    world, config = config_of("dp3")
    every = [state_bytes(config, world, 0, rank).optimizer for rank in range(3)]
    assert state_bytes(config, world, 0).optimizer == max(every) > min(every)


def test_counts_of_the_published_models():
    """Counts of the language model by megatron-core 0.16.1 on the meta device."""
    small = load(REPOSITORY / "configs/train/stage4_1m.yaml")
    language = [p for p in stage_parameters(small, 0)[0] if p.part == "language"]
    assert sum(p.elements for p in language) == 1_846_688_768
    assert state_bytes(load(REPOSITORY / "configs/train/stage4_1m_72b.yaml"), 512, 7).parameter_count == 1_252_971_008
