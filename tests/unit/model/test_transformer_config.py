"""Flags of megatron-core through `training.megatron`."""

from __future__ import annotations

import pytest

from longvita.model.transformer_config import FlagError, language_transformer_config, vision_transformer_config
from longvita.platforms import get
from tests.tiny import tiny_config


def test_flags_reach_the_language_model_only() -> None:
    config = tiny_config(training={"megatron": {"distribute_saved_activations": True, "bias_dropout_fusion": True}})
    language = language_transformer_config(config, get("cpu"))
    assert language.distribute_saved_activations and language.bias_dropout_fusion
    assert not vision_transformer_config(config, get("cpu")).distribute_saved_activations


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hidden_size", "follows from the model, layout and training sections"),
        ("bias_dropout_fuson", "did you mean bias_dropout_fusion"),
        ("zzzz", "see its TransformerConfig"),
    ],
)
def test_flags_that_cannot_be_set(name: str, message: str) -> None:
    with pytest.raises(FlagError, match=rf"training.megatron.{name}: .*{message}"):
        language_transformer_config(tiny_config(training={"megatron": {name: 1}}), get("cpu"))


def test_a_value_that_megatron_core_refuses_is_reported_with_the_field() -> None:
    flags = {"num_moe_experts": 0}
    with pytest.raises(FlagError, match=r"training.megatron: .*num_moe_experts.*num_moe_experts must be"):
        language_transformer_config(tiny_config(training={"megatron": flags}), get("cpu"))
