"""Settings of plan_accuracy.py: a model of 20 million parameters at several layouts, recomputations and contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from longvita.config.schema import Config
from longvita.planning.batch_contents import BatchContents

MODEL: dict[str, Any] = {
    "vision": {
        "num_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "ffn_hidden_size": 1024,
        "image_size": 112,
    },
    "projector": {"hidden_size": 384},
    "language": {
        "num_layers": 8,
        "hidden_size": 384,
        "ffn_hidden_size": 1024,
        "num_attention_heads": 6,
        "num_query_groups": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 16384,
    },
}
FULL = {"granularity": "full", "method": "uniform", "num_layers": 1}


@dataclass(frozen=True)
class PlanSetting:
    """The differences of a config from the defaults here, and the contents of each micro batch."""

    processes: int
    contents: BatchContents
    layout: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Config:
        """The complete config."""
        training = {"precision": "fp32", "global_batch_size": 2, "loss_chunk_size": 256, **self.training}
        data = {"sequence_length": self.contents.tokens, "max_num_tiles": 1, "max_num_frames": 16}
        values = {"platform": "cpu", "model": MODEL, "data": data, "layout": self.layout, "training": training}
        return Config.model_validate(values)


TEXT, VIDEO, MIXED = BatchContents(1024, 1, 0, 1024), BatchContents(1024, 1, 56, 16), BatchContents(1024, 2, 20, 256)
LONG = BatchContents(2048, 1, 20, 256)
MEMORY = {
    "text": PlanSetting(1, TEXT),
    "video": PlanSetting(1, VIDEO),
    "video, tower recomputed": PlanSetting(1, VIDEO, training={"recompute": {**FULL, "vision": True}}),
    "video, tower frozen": PlanSetting(
        1, VIDEO, training={"trainable": ["projector", "language"], "vision_chunk_size": 16}
    ),
    "projector alone": PlanSetting(1, MIXED, training={"trainable": ["projector"]}),
    "projector alone, text": PlanSetting(1, TEXT, training={"trainable": ["projector"]}),
    "selective": PlanSetting(1, MIXED, training={"recompute": {"granularity": "selective"}}),
    "uniform": PlanSetting(1, BatchContents(2048, 1, 0, 256), training={"recompute": FULL}),
    "uniform by 2": PlanSetting(1, BatchContents(2048, 1, 0, 256), training={"recompute": {**FULL, "num_layers": 2}}),
    "block": PlanSetting(1, LONG, training={"recompute": {**FULL, "method": "block", "num_layers": 5}}),
    "MLP in chunks": PlanSetting(1, LONG, training={"recompute": FULL, "mlp_chunk_size": 128}),
    "offloaded": PlanSetting(1, BatchContents(2048, 1, 0, 256), training={"recompute": {**FULL, "offload": True}}),
    "DP2": PlanSetting(2, MIXED),
    "TP2": PlanSetting(2, MIXED, {"tensor_parallel": 2}),
    "TP2 SP": PlanSetting(2, MIXED, {"tensor_parallel": 2, "sequence_parallel": True}),
    "TP2 SP uniform": PlanSetting(
        2, LONG, {"tensor_parallel": 2, "sequence_parallel": True}, {"recompute": FULL}
    ),
    "PP2": PlanSetting(2, MIXED, {"pipeline_parallel": 2}),
    "PP2 uneven, uniform": PlanSetting(
        2, LONG, {"pipeline_parallel": 2, "num_layers_in_first_pipeline_stage": 3}, {"recompute": FULL}
    ),
    "CP2 Ulysses": PlanSetting(2, LONG, {"context_parallel": 2}),
    "CP2 ring": PlanSetting(2, LONG, {"context_parallel": 2, "ulysses": 1}),
}  # fmt: skip
"""Settings whose memory is measured."""

_BATCH = {"global_batch_size": 4}
_AGAIN = {**_BATCH, "recompute": {**FULL, "vision": True}}
SHORT = BatchContents(512, 1, 20, 128)
TIME = {
    "DP1": PlanSetting(1, SHORT, training=_BATCH),
    "DP1 recomputed": PlanSetting(1, SHORT, training=_AGAIN),
    "DP2": PlanSetting(2, SHORT, training=_BATCH),
    "DP2 recomputed": PlanSetting(2, SHORT, training=_AGAIN),
    "TP2": PlanSetting(2, SHORT, {"tensor_parallel": 2}, _BATCH),
    "PP2": PlanSetting(2, SHORT, {"pipeline_parallel": 2}, _BATCH),
}
"""Settings whose steps are timed: the same global batch at six layouts."""
