import math
from types import SimpleNamespace

import pytest
import torch

from longvita.training.optimizer import (
    build_scheduler,
    group_overrides,
    learning_rate_multiplier,
    warmup_steps,
    weight_decay_multiplier,
)
from tests.tiny import tiny_config


def vision_config(**optimizer):
    return tiny_config(model={"vision": {"num_layers": 24}}, optimizer=optimizer)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.vision_model.decoder.layers.23.mlp.linear_fc1.weight", 0.1 * 0.9),
        ("vision_model.decoder.layers.0.self_attn_bda.scale", 0.1 * 0.9**24),
        ("vision_model.position_embedding", 0.1 * 0.9**25),
        ("module.module.vision_model.patch_embedding.bias", 0.1 * 0.9**25),
        ("vision_projection.linear_fc2.weight", 0.5),
        ("language_model.decoder.layers.3.mlp.linear_fc1.weight", 1.0),
        ("language_model.embedding.word_embeddings.weight", 1.0),
    ],
)
def test_learning_rates_fall_towards_the_pixels(name, expected):
    config = vision_config(vision_lr_mult=0.1, vision_layer_decay=0.9, projector_lr_mult=0.5)
    assert learning_rate_multiplier(name, config) == pytest.approx(expected, rel=1e-12)


def test_weight_decay_leaves_biases_norms_and_scales_alone():
    assert weight_decay_multiplier("a.bias", torch.zeros(3, 3)) == 0
    assert weight_decay_multiplier("final_layernorm.weight", torch.zeros(3)) == 0
    assert weight_decay_multiplier("linear.weight", torch.zeros(3, 3)) == 1


def test_each_group_has_its_own_multiplier_and_every_parameter_one_group():
    config = vision_config(lr=1e-3, min_lr=1e-5, vision_lr_mult=0.1, vision_layer_decay=0.9, projector_lr_mult=0.1)
    model = torch.nn.Module()
    model.vision_model = torch.nn.Module()
    model.vision_model.decoder = torch.nn.Module()
    model.vision_model.decoder.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(24)])
    model.vision_projection = torch.nn.Linear(2, 2)
    model.language_model = torch.nn.Linear(2, 2)
    overrides = group_overrides([model], config)
    groups = list(overrides.values())
    assert len({(group["lr_mult"], group["wd_mult"]) for group in groups}) == len(groups) == 52
    for group in groups:
        assert group["max_lr"] == pytest.approx(1e-3 * group["lr_mult"], rel=1e-12)
        assert group["min_lr"] == pytest.approx(1e-5 * group["lr_mult"], rel=1e-12)
    for name, parameter in model.named_parameters():
        matching = [key for key in overrides if key.matches(parameter, name)]
        assert len(matching) == 1, name


def rates(config, steps, group=None):
    """The learning rate of each step."""
    optimizer = SimpleNamespace(param_groups=[group if group is not None else {}])
    scheduler = build_scheduler(optimizer, config)
    found = []
    for _ in range(steps):
        scheduler.step(1)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def schedule_config(style, **optimizer):
    settings = {"lr": 1.0, "min_lr": 0.1, "decay_style": style, "warmup_fraction": 0.2, "decay_fraction": 0.3}
    return tiny_config(training={"train_iterations": 10}, optimizer=settings | optimizer)


def test_cosine():
    found = rates(schedule_config("cosine"), 10)
    assert found[:2] == pytest.approx([0.5, 1.0])
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(1, 9)]
    assert found[2:] == pytest.approx(expected)
    assert found[-1] == pytest.approx(0.1)


def test_linear_and_constant():
    assert rates(schedule_config("linear"), 10)[2:] == pytest.approx([1 - 0.9 * k / 8 for k in range(1, 9)])
    assert rates(schedule_config("constant"), 10) == pytest.approx([0.5] + [1.0] * 9)


def test_wsd_holds_then_falls_over_the_last_part():
    assert rates(schedule_config("WSD"), 10) == pytest.approx([0.5] + [1.0] * 6 + [0.7, 0.4, 0.1])


def test_groups_follow_the_schedule_with_their_own_rates():
    config = schedule_config("linear", lr=1.0)
    base = rates(config, 10)
    slow = rates(config, 10, {"max_lr": 0.01, "min_lr": 0.001})
    assert slow == pytest.approx([0.01 * rate for rate in base])


def test_the_schedule_resumes_where_it_stopped():
    config = schedule_config("cosine")
    optimizer = SimpleNamespace(param_groups=[{}])
    scheduler = build_scheduler(optimizer, config)
    scheduler.step(4)
    again = SimpleNamespace(param_groups=[{}])
    resumed = build_scheduler(again, config)
    resumed.load_state_dict(scheduler.state_dict())
    for one in (scheduler, resumed):
        one.step(1)
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == rates(config, 5)[-1]


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_short_runs_have_a_schedule(iterations):
    config = tiny_config(training={"train_iterations": iterations}, optimizer={"warmup_fraction": 0.9, "lr": 1.0})
    assert warmup_steps(config) < max(1, iterations)
    assert all(math.isfinite(rate) for rate in rates(config, 3))
