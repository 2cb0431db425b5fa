"""A checkpoint that stores the optimizer's state by place is refused where parameters have other places."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from longvita.checkpoint import load, parameter_order
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.load import load_state, load_weights
from longvita.checkpoint.parameter_order import PARAMETER_ORDER, buffer_places
from longvita.checkpoint.resume import newest_intact
from longvita.checkpoint.save import Checkpointer, save_weights
from longvita.checkpoint.step_folders import checkpoint_root
from longvita.convert.optimizer_format import FORMATS, resave
from longvita.model import build
from longvita.platforms import get
from longvita.training import state as state_module
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import run_config, run_steps, start

STEPS = 2
BY_NAME, BY_PLACE = FORMATS
BF16 = {"precision": "bf16"}
SAVED_WITH = {"megatron-core": "0.16.1", "layers": "0.16.0 (commit 66fbddd7)"}
NOW_WITH = {"megatron-core": "0.16.1", "layers": "0.16.0 (commit e4772499)"}


def use_versions(versions: dict[str, str]) -> None:
    """Let the platform of this process report other versions."""
    get("cpu").layer_versions = lambda: versions


def reorder_layers(models: list[Any]) -> None:
    """Register the second norm of each language layer after its MLP, as another version of a library may."""
    for model in models:
        for layer in model.language_model.decoder.layers:
            norm = layer._modules.pop("pre_mlp_layernorm")
            layer._modules["pre_mlp_layernorm"] = norm


def reorder_every_model() -> None:
    """Reorder the layers of each model that this process builds from here on."""
    original = build.build_model

    @functools.wraps(original)
    def reordered(*args: Any, **kwargs: Any) -> list[Any]:
        models = original(*args, **kwargs)
        reorder_layers(models)
        return models

    build.build_model = state_module.build_model = reordered


def save(state: Any, output: Path, sharding_type: str) -> Path:
    checkpointer = Checkpointer(checkpoint_root(output), 1, state.platform, sharding_type)
    checkpointer.save(state)
    folder = checkpointer.poll(wait=True)
    assert folder is not None
    return folder


def saved_run(config: Any, output: Path, sharding_type: str) -> tuple[Path, list[tuple[float, float]]]:
    """The checkpoint of a new run after STEPS, and the losses of its next steps."""
    state = start(config)
    run_steps(state, STEPS)
    return save(state, output, sharding_type), run_steps(state, STEPS)


def refused(function: Any, *args: Any, **kwargs: Any) -> str:
    """The text of the CheckpointError."""
    with pytest.raises(CheckpointError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def wrong_masters(state: Any) -> int:
    """Master weights that are not the weights of their own parameters."""
    return sum(
        not torch.equal(master.to(weight.dtype), weight)
        for one in state.optimizer.chained_optimizers
        for weights, masters in zip(one.shard_float16_groups, one.shard_fp32_from_float16_groups, strict=True)
        for weight, master in zip(weights, masters, strict=True)
    )


def another_order(rank: int, size: int, folder: str) -> dict[str, Any]:
    """A run of two stages, of which the last has another order of parameters after a stop."""
    config, root = run_config("pp2", training=BF16), Path(folder)
    use_versions(SAVED_WITH)
    saved, expected = saved_run(config, root, BY_PLACE)
    use_versions(NOW_WITH)
    state = start(config)
    load_state(state, saved)
    found = {"expected": expected, "same order": run_steps(state, STEPS)}

    if rank == 1:
        reorder_every_model()
    state = start(config)
    found["error"] = refused(load_state, state, saved)
    found["conversion"] = refused(resave, root, root / "new", BY_NAME, config, state.groups, state.platform)
    found["converted"] = (root / "new").exists()
    load_weights(state.models, saved, state.platform)
    state.optimizer.reload_model_params()
    found["wrong by weights alone"] = wrong_masters(state)
    # Without the check neither megatron-core nor torch notices.
    load.check_parameter_order = lambda *args: None
    load_state(state, saved)
    found["wrong without the check"] = wrong_masters(state)
    return found


def test_another_order_is_refused_on_all_ranks_with_both_versions(tmp_path: Path) -> None:
    ranks = run_distributed(another_order, 2, str(tmp_path))
    for found in ranks:
        assert found["same order"] == found["expected"]
        for error in (found["error"], found["conversion"]):
            assert "pipeline stage 1:" in error and "pipeline stage 0:" not in error
            assert "language_model.decoder.layers.1." in error and "at place " in error
            assert "saved with megatron-core 0.16.1, layers 0.16.0 (commit 66fbddd7)" in error
            assert "now with megatron-core 0.16.1, layers 0.16.0 (commit e4772499)" in error
            assert "--optimizer fully_reshardable" in error and "checkpoint.initial=" in error
        assert not found["converted"]
        assert found["wrong by weights alone"] == 0
    assert ranks[0]["error"] == ranks[1]["error"]
    assert [found["wrong without the check"] > 0 for found in ranks] == [False, True]


def by_name(rank: int, size: int, folder: str) -> list[list[tuple[float, float]]]:
    """A fully reshardable checkpoint of two stages, resumed in another order, there and at TP2."""
    saved, expected = saved_run(run_config("pp2"), Path(folder), BY_NAME)
    reorder_every_model()
    losses = [expected]
    for layout in ("pp2", "tp2", "dp2"):
        state = start(run_config(layout))
        load_state(state, saved)
        losses.append(run_steps(state, STEPS))
    return losses


def test_state_by_name_is_resumed_in_another_order_and_at_other_layouts(tmp_path: Path) -> None:
    for expected, *others in run_distributed(by_name, 2, str(tmp_path)):
        for losses in others:
            assert [loss for loss, _ in losses] == pytest.approx([loss for loss, _ in expected], rel=1e-6)


def records(rank: int, size: int, folder: str) -> list[Any]:
    """The records of checkpoints in both formats, of a resumed run, a converted one and of weights alone."""
    config, root = run_config("pp2"), Path(folder)
    use_versions(SAVED_WITH)
    saved = [saved_run(config, root / sharding_type, sharding_type)[0] for sharding_type in FORMATS]
    state = start(config)
    own = [place._asdict() for place in buffer_places(state)]
    load_state(state, saved[1])
    saved.append(save(state, root / "resumed", BY_PLACE))
    resave(root / BY_PLACE, root / "converted", BY_NAME, config, state.groups, state.platform)
    saved.append(newest_intact(checkpoint_root(root / "converted")))
    save_weights(state.models, config, root / "weights", state.platform)
    return [own, *(json.loads((path / PARAMETER_ORDER).read_text()) for path in (*saved, root / "weights"))]


def test_every_checkpoint_has_the_record(tmp_path: Path) -> None:
    ranks = run_distributed(records, 2, str(tmp_path))
    orders = [own for own, *_ in ranks]
    names = [place["name"] for order in orders for place in order]
    assert len(names) > 30 and names[0].startswith("language_model.decoder.layers.0.")  # Of the backward pass.
    assert "language_model.decoder.layers.1.mlp.linear_fc2.weight" in names
    *complete, weights = ranks[0][1:]
    for record in complete:
        assert record == {"versions": SAVED_WITH, "stages": orders}
    assert weights == {"versions": SAVED_WITH, "stages": []}


def other_settings(rank: int, size: int, folder: str) -> list[str]:
    """Errors after a change of the buckets, of the chunks, and for a checkpoint without the record."""
    saved, _ = saved_run(run_config("dp2"), Path(folder) / "dp2", BY_PLACE)
    unchanged = state_module.DistributedDataParallelConfig
    state_module.DistributedDataParallelConfig = functools.partial(unchanged, bucket_size=3000)
    errors = [refused(load_state, start(run_config("dp2")), saved)]
    state_module.DistributedDataParallelConfig = unchanged

    language = {"model": {"language": {"num_layers": 4}}}
    stages, _ = saved_run(run_config("pp2", **language), Path(folder) / "pp2", BY_PLACE)
    interleaved = run_config({"pipeline_parallel": 2, "virtual_pipeline": 2}, **language)
    errors.append(refused(load_state, start(interleaved), stages))

    if rank == 0:
        (saved / PARAMETER_ORDER).unlink()
    dist.barrier()
    errors.append(refused(load_state, start(run_config("dp2")), saved))
    return errors


def test_other_causes_are_named(tmp_path: Path) -> None:
    ranks = run_distributed(other_settings, 2, str(tmp_path))
    assert ranks[0] == ranks[1]
    buckets, chunks, missing = ranks[0]
    assert "in the same order at other elements" in buckets and "bucket 1" in buckets and "bucket 0" in buckets
    assert "layout.virtual_pipeline is 2, in the checkpoint 1" in chunks
    assert "are new, the first is language_model.decoder.layers.2." in chunks
    assert f"has no {PARAMETER_ORDER}" in missing and "fix: " in missing


def test_the_first_difference_is_named() -> None:
    places = [parameter_order.BufferPlace(name, 0, "bfloat16", 0, 64 * i, 64) for i, name in enumerate("abcd")]
    other = [places[0], places[2]._replace(start=64), places[1]._replace(start=128), places[3]]
    assert parameter_order._difference(places, places) == ""
    assert parameter_order._difference(places, other) == (
        "2 of 4 parameters are in another order, the first is c at place 2, in the checkpoint at place 3"
    )
