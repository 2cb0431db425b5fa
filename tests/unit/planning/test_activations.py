"""Planned activations: against a measured step, and the effect of each choice."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from longvita.planning.activations import MicroBatchTimeline, activations, waiting
from longvita.planning.batch_contents import BatchContents, worst_contents
from longvita.platforms.layer_memory import ASCEND, LOCAL, NVIDIA
from tests.conftest import REPOSITORY
from tests.distributed.helpers import run_distributed
from tests.tiny import tiny_config

LANGUAGE = {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 192, "vocab_size": 512}
FULL = {"granularity": "full", "method": "uniform", "num_layers": 1}
MIXED = BatchContents(512, 1, 40, 64)


def config_of(layout=None, **training):
    sections = {"language": LANGUAGE}
    return tiny_config(model=sections, data={"sequence_length": 512}, layout=layout or {}, training=training)


def measure(rank: int, world_size: int, layout: dict, training: dict) -> tuple[int, int]:
    """Stage and measured peak of a step."""
    sys.path.insert(0, str(REPOSITORY / "tools/benchmark"))
    from plan_accuracy_runs import peak_of_step

    from tests.distributed.training_runs import start

    state = start(config_of(layout, **training))
    peak = peak_of_step(state, MIXED)
    state.groups.destroy()
    return state.groups.pp_rank, peak


@pytest.mark.parametrize(
    "processes, layout, training",
    [
        (1, {}, {}),
        (1, {}, {"recompute": FULL, "mlp_chunk_size": 64}),
        (2, {"tensor_parallel": 2, "sequence_parallel": True}, {}),
        (2, {"pipeline_parallel": 2}, {"recompute": FULL}),
    ],
)
def test_the_peak_is_that_of_a_measured_step(processes, layout, training):
    config = config_of(layout, **training)
    for stage, peak in run_distributed(measure, processes, layout, training):
        planned = activations(config, LOCAL, MIXED, stage, 4)
        assert planned.peak == pytest.approx(peak, rel=0.1)


def planned(contents=MIXED, layer_memory=LOCAL, layout=None, stage=0, micro_batches=1, **training) -> int:
    return activations(config_of(layout, **training), layer_memory, contents, stage, micro_batches).peak


def test_every_saving_reduces_the_peak():
    plain = planned()
    again = planned(recompute=FULL)
    assert again < plain
    assert planned(recompute={**FULL, "method": "block", "num_layers": 2}) < plain
    assert planned(recompute=FULL, mlp_chunk_size=32) < again
    assert planned(recompute={**FULL, "offload": True}) < again
    assert planned(recompute={"vision": True}) < plain
    assert planned(trainable=["projector", "language"]) < plain
    assert planned(trainable=["projector"]) < planned(trainable=["projector", "language"])
    assert planned(layer_memory=NVIDIA) < plain


SEQUENCE_PARALLEL = {"tensor_parallel": 2, "sequence_parallel": True}
ROWS = MIXED.tokens * LANGUAGE["hidden_size"] * 4
"""Bytes of the hidden states of a micro batch."""


@pytest.mark.parametrize("layer_memory, trained, frozen", [(LOCAL, ROWS, 0), (NVIDIA, 0, 0), (ASCEND, ROWS, 0)])
def test_trained_layers_gather_into_megatrons_buffer(layer_memory, trained, frozen):
    """MindSpeed's too: they call Megatron's linear function. Transformer Engine's make a new tensor each time."""
    for trainable, size in (["projector", "language"], trained), (["projector"], frozen):
        config = config_of(SEQUENCE_PARALLEL, trainable=trainable)
        found = activations(config, layer_memory, MIXED, 0, 1)
        assert found.by_kind.get("communication", 0) == size


def test_mindspeed_keeps_the_inputs_of_frozen_row_parallel_layers():
    """Only the MLP's needs memory: attention keeps its output, the input of the other, in any case."""
    text = dataclasses.replace(MIXED, tiles=0)

    def kept(layer_memory, trainable):
        config = config_of(SEQUENCE_PARALLEL, trainable=trainable)
        return sum(MicroBatchTimeline(config, layer_memory, text, 0).kept[0].values())

    other = dataclasses.replace(ASCEND, keeps_frozen_row_inputs=False)
    inner = LANGUAGE["num_layers"] * text.tokens * LANGUAGE["ffn_hidden_size"] // 2 * 4
    assert kept(ASCEND, ["projector"]) - kept(other, ["projector"]) == inner
    assert kept(ASCEND, ["projector", "language"]) == kept(other, ["projector", "language"])


def test_text_passes_gradients_to_the_embeddings_where_the_projector_is_trained():
    """Because a blank tile is encoded, so that every rank reduces the projector's gradients."""
    text = dataclasses.replace(MIXED, tiles=0, loss_tokens=512)
    assert planned(text, trainable=["projector"]) > 0.8 * planned(text, trainable=["projector", "language"])


def test_tiles_and_loss_tokens_increase_the_peak():
    assert planned(dataclasses.replace(MIXED, tiles=80)) > planned() > planned(dataclasses.replace(MIXED, tiles=0))
    assert planned(dataclasses.replace(MIXED, loss_tokens=512)) > planned()
    assert planned(layout={"tensor_parallel": 2, "sequence_parallel": True}) < planned(layout={"tensor_parallel": 2})


def test_early_stages_keep_more_micro_batches():
    layout = {"pipeline_parallel": 4}
    peaks = [planned(BatchContents(512, 1, 0, 1), layout=layout, stage=stage, micro_batches=8) for stage in range(3)]
    assert peaks == sorted(peaks, reverse=True)
    assert planned(layout=layout, micro_batches=1) < planned(layout=layout, micro_batches=8)


def test_interleaved_passes_that_wait_belong_to_the_first_chunks():
    """With 8 stages of 2 chunks: 2 x 7 + 8 warm-up passes and one more on the first stage, 8 and one on the last."""
    config = config_of({"pipeline_parallel": 8, "virtual_pipeline": 2})
    assert waiting(config, 0, 64, [1, 1]) == [14, 7] and waiting(config, 0, 64, [3, 1]) == [15, 6]
    assert waiting(config, 7, 64, [1, 1]) == [7, 0]  # no pass of the chunk with the loss waits
    assert waiting(config, 0, 8, [1, 1]) == [7, 7]
    assert waiting(config_of({"pipeline_parallel": 8}), 2, 64, [1]) == [5]


def test_a_layer_of_each_chunk_is_recomputed():
    layout = {"pipeline_parallel": 2, "virtual_pipeline": 2}
    one = {**FULL, "method": "block", "num_layers": 1}
    text = dataclasses.replace(MIXED, tiles=0)
    assert planned(text, layout=layout, recompute=one) == planned(text, layout=layout, recompute=FULL)


def test_parts_add_up_to_the_peak():
    found = activations(config_of(), LOCAL, MIXED, 0, 1)
    assert sum(found.by_kind.values()) == found.peak == max(moment.size for moment in found.moments)
    assert {"attention", "mlp", "vision", "head"} <= found.by_kind.keys()


def test_the_worst_contents_fill_a_sequence():
    video, text = worst_contents(config_of())
    assert (video.tiles, text.tiles, text.loss_tokens) == (512 // 3, 0, 512)
