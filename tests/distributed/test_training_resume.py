"""A run that is saved and resumed continues as if it had never stopped."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longvita.checkpoint.background_write import SnapshotWriter
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.load import load_state, load_weights
from longvita.checkpoint.resume import newest_intact, resume_point
from longvita.checkpoint.save import Checkpointer
from longvita.checkpoint.step_folders import step_folders
from longvita.data.audit.sample_accounting import SampleAccounting
from longvita.training import state as state_module
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import run_config, run_steps, start, tensors, unequal

STEPS = 3
"""Steps before the checkpoint."""
TOLERANT = ["tp2_sp", "pp2", "dp2", "cp2"]
"""Layouts that a run is resumed at, from each other."""


def save_after(config, folder: Path, steps: int = STEPS, **batches):
    """Train a new run for some steps and start to save it; the state and the Checkpointer."""
    state = start(config)
    run_steps(state, steps, **batches)
    checkpointer = Checkpointer(folder, keep=2, platform=state.platform)
    checkpointer.save(state)
    return state, checkpointer


def resume(config, folder: Path):
    """A new state at the layout in `config`, from the newest checkpoint."""
    state = start(config)
    load_state(state, newest_intact(folder))
    return state


def same_layout(rank, world_size, layout, folder):
    return [resumed_identically(layout, {"precision": p}, Path(folder) / p) for p in ("fp32", "bf16")]


def resumed_identically(layout, training, folder):
    """Compare steps without a stop with steps after a resume; the number of tensors, and the rates."""
    config = run_config(layout, training=training)
    state, checkpointer = save_after(config, folder)
    expected = run_steps(state, 3)
    checkpointer.poll(wait=True)
    wanted = tensors(state)
    other = resume(config, folder)
    assert (other.iteration, other.consumed_sequences) == (STEPS, 4 * STEPS)
    assert run_steps(other, 3) == expected
    different = unequal(wanted, tensors(other))
    assert different == []
    rates = {group["lr"] for group in other.optimizer.param_groups}
    return len(wanted), rates == {group["lr"] for group in state.optimizer.param_groups}, len(rates)


@pytest.mark.parametrize("layout", ["tp2_sp", "dp2", "pp2", "cp2"])
def test_the_same_layout_resumes_bitwise(layout, tmp_path):
    results = run_distributed(same_layout, 2, layout, str(tmp_path))
    for tensor_count, same_rates, rate_count in itertools.chain(*results):
        assert tensor_count > 30
        assert same_rates and rate_count >= 4


def projector_alone(rank, world_size, folder):
    config = run_config("pp2", training={"trainable": ["projector"]})
    before = tensors(start(config))
    resumed_identically("pp2", {"trainable": ["projector"]}, Path(folder))
    changed = unequal(before, tensors(resume(config, Path(folder))))
    return [name for name in changed if name.startswith("0/")]


def test_projector_alone_with_a_stage_that_trains_nothing(tmp_path):
    first, last = run_distributed(projector_alone, 2, str(tmp_path))
    assert last == []
    assert first and all(name.startswith("0/vision_projection.") for name in first)


def other_layouts(rank, world_size, layout, folder):
    """Losses without a stop, and after resuming at every other layout of two processes."""
    training = {"train_iterations": 30, "global_batch_size": 2}
    state, checkpointer = save_after(run_config(layout, training=training), Path(folder))
    losses = {layout: run_steps(state, 21)}
    checkpointer.poll(wait=True)
    for other in TOLERANT:
        if other != layout:
            resumed = resume(run_config(other, training=training), Path(folder))
            check_rates(resumed)
            losses[other] = run_steps(resumed, 21)
    return losses


def check_rates(state):
    """Each parameter is in a group of its own rate, not of another group's."""
    base = state.scheduler.get_lr({})
    for group in state.optimizer.param_groups:
        assert group["lr"] == pytest.approx(base * group["lr_mult"], rel=1e-12)
        assert group["max_lr"] == pytest.approx(1e-2 * group["lr_mult"], rel=1e-12)


@pytest.mark.parametrize("layout", ["tp2_sp", "dp2", "cp2"])
def test_other_layouts_are_within_tolerance(layout, tmp_path):
    losses = run_distributed(other_layouts, 2, layout, str(tmp_path))[0]
    expected = [loss for loss, _ in losses[layout]]
    assert len(losses) == len(TOLERANT)
    for other, found in losses.items():
        errors = [abs(loss - wanted) / wanted for (loss, _), wanted in zip(found, expected, strict=True)]
        assert errors[0] <= 1e-6, other
        assert max(errors) <= 1e-4, other


COUNTED = Counter({("words", "planned"): 5})


def counted_samples(rank, world_size, folder):
    """The sample accounting after a resume."""
    config = run_config("dp2")
    state = start(config)
    run_steps(state, STEPS)
    state.sample_accounting = SampleAccounting(COUNTED, "hash of the data", (4,))
    checkpointer = Checkpointer(Path(folder), keep=2, platform=state.platform)
    checkpointer.save(state)
    checkpointer.poll(wait=True)
    return resume(config, Path(folder)).sample_accounting


def test_the_sample_accounting_is_resumed(tmp_path):
    for found in run_distributed(counted_samples, 2, str(tmp_path)):
        assert found == SampleAccounting(COUNTED, "hash of the data", (4,))


def four_processes(rank, world_size, folder):
    layout = {"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True}
    state, checkpointer = save_after(run_config(layout), Path(folder))
    expected = run_steps(state, 5)
    checkpointer.poll(wait=True)
    found = run_steps(resume(run_config({"tensor_parallel": 2}), Path(folder)), 5)
    return expected, found


def test_from_two_stages_of_two_to_two_replicas_of_two(tmp_path):
    expected, found = run_distributed(four_processes, 4, str(tmp_path))[0]
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=1e-6)


def interleaved(rank, world_size, folder):
    language = {"model": {"language": {"num_layers": 4}}}
    layout = {"pipeline_parallel": 2, "virtual_pipeline": 2}
    state, checkpointer = save_after(run_config(layout, **language), Path(folder))
    expected = run_steps(state, 3)
    checkpointer.poll(wait=True)
    wanted = tensors(state)
    again = resume(run_config(layout, **language), Path(folder))
    found = run_steps(again, 3)
    different = unequal(wanted, tensors(again))
    uneven = {"pipeline_parallel": 2, "num_layers_in_first_pipeline_stage": 1}
    return expected, found, different, run_steps(resume(run_config(uneven, **language), Path(folder)), 3)


def test_interleaved_and_uneven_stages(tmp_path):
    expected, found, different, uneven = run_distributed(interleaved, 2, str(tmp_path))[0]
    assert found == expected
    assert different == []
    assert [loss for loss, _ in uneven] == pytest.approx([loss for loss, _ in expected], rel=1e-6)


def several_buckets(rank, world_size, folder):
    """Gradient buckets of odd sizes: small ones, and the shared embedding's own on both stages."""
    unchanged = state_module.DistributedDataParallelConfig
    state_module.DistributedDataParallelConfig = functools.partial(unchanged, bucket_size=3000)
    small = resumed_identically("dp2", {}, Path(folder) / "small")
    buckets = len(start(run_config("dp2")).chunks[0].bucket_groups)
    state_module.DistributedDataParallelConfig = unchanged
    tied = {"model": {"language": {"tie_word_embeddings": True}}}
    state, checkpointer = save_after(run_config("pp2", **tied), Path(folder) / "tied")
    expected = run_steps(state, 3)
    checkpointer.poll(wait=True)
    found = run_steps(resume(run_config("pp2", **tied), Path(folder) / "tied"), 3)
    other = run_steps(resume(run_config("dp2", **tied), Path(folder) / "tied"), 3)
    return small[0], buckets, expected, found, other


def test_several_buckets_and_shared_embeddings(tmp_path):
    tensor_count, buckets, expected, found, other = run_distributed(several_buckets, 2, str(tmp_path))[0]
    assert tensor_count > 30 and buckets > 5
    assert found == expected
    assert [loss for loss, _ in other] == pytest.approx([loss for loss, _ in expected], rel=1e-6)


def overwritten(rank, world_size, folder):
    """Weights and optimizer state are overwritten as soon as the checkpoint is scheduled."""
    config = run_config("dp2")
    state = start(config)
    run_steps(state, 2)
    wanted = tensors(state)
    checkpointer = Checkpointer(Path(folder), keep=1, platform=state.platform)
    checkpointer.save(state)
    with torch.no_grad():
        for model in state.models:
            for parameter in model.parameters():
                parameter.fill_(7.0)
        for values in state.optimizer.optimizer.state.values():
            values["exp_avg"].fill_(7.0)
            values["exp_avg_sq"].fill_(7.0)
    checkpointer.poll(wait=True)
    return unequal(wanted, tensors(resume(config, Path(folder))))


def test_the_state_is_copied_before_training_continues(tmp_path):
    for different in run_distributed(overwritten, 2, str(tmp_path)):
        assert different == []


def keeping(rank, world_size, folder):
    """Four checkpoints of which two are kept; then the newest is cut."""
    root = Path(folder)
    config = run_config("dp2")
    state = start(config)
    checkpointer = Checkpointer(root, keep=2, platform=state.platform)
    (root / ".partial-of-a-killed-run").mkdir(exist_ok=True)
    for _ in range(4):
        run_steps(state, 1)
        checkpointer.save(state)
    checkpointer.poll(wait=True)
    torch.distributed.barrier()
    kept = [folder.name for folder in step_folders(root)]
    torch.distributed.barrier()
    if rank == 0:
        path = root / kept[0] / "__0_0.distcp"
        path.write_bytes(path.read_bytes()[:-100])
    torch.distributed.barrier()
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("longvita.checkpoint.resume").addHandler(handler)
    used = newest_intact(root)
    resumed = start(config)
    load_state(resumed, used)
    Checkpointer(root, keep=2, platform=state.platform)
    hidden = [folder.name for folder in root.iterdir() if folder.name.startswith(".")]
    return kept, used.name, resumed.iteration, hidden, warnings


def test_old_ones_are_removed_and_damaged_ones_refused(tmp_path):
    results = run_distributed(keeping, 2, str(tmp_path))
    for kept, used, iteration, hidden, _ in results:
        assert kept == ["step_00000004", "step_00000003"]
        assert (used, iteration) == ("step_00000003", 3)
        assert hidden == []
    (warning,), none = results[0][-1], results[1][-1]
    assert "checkpoint step_00000004 is refused" in warning and "bytes instead of" in warning
    assert none == []


def all_damaged(rank, world_size, folder):
    """Before the first checkpoint, and when the only one is cut short."""
    root = Path(folder)
    before = resume_point(root)
    _, checkpointer = save_after(run_config("dp2"), root)
    saved = checkpointer.poll(wait=True)
    found = resume_point(root)
    if rank == 0:
        for file in saved.glob("*.distcp"):
            file.write_bytes(file.read_bytes()[:-1])
    dist.barrier()
    with pytest.raises(CheckpointError) as caught:
        resume_point(root)
    return before, found == saved, str(caught.value)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_scratch(tmp_path):
    for before, found, message in run_distributed(all_damaged, 2, str(tmp_path)):
        assert before is None and found
        assert f"every checkpoint in {tmp_path} is damaged" in message


def failing(rank, world_size, folder):
    """The disk is full on one rank."""
    root = Path(folder)
    state, checkpointer = save_after(run_config("dp2"), root)
    saved = checkpointer.poll(wait=True)
    files = {path.name for path in saved.iterdir()}
    run_steps(state, 1)
    if rank == 1:
        SnapshotWriter.write = full_disk
    checkpointer.save(state)
    with pytest.raises(CheckpointError) as caught:
        checkpointer.poll(wait=True)
    return files, str(caught.value), newest_intact(root).name


def full_disk(writer):
    raise OSError(28, "No space left on device")


def test_a_failed_write_is_raised_on_every_rank_and_leaves_the_one_before(tmp_path):
    for files, message, newest in run_distributed(failing, 2, str(tmp_path)):
        # Replicas divide what they write.
        assert {"__0_0.distcp", "__1_0.distcp", "common.pt", ".metadata", "config.json", "manifest.json"} <= files
        assert "step 4 was not written: rank 1: OSError" in message and "No space left" in message
        assert newest == "step_00000003"


def misfits(rank, world_size, folder):
    """Errors for checkpoints of another run or model, and weights alone loaded in another precision."""
    state, checkpointer = save_after(run_config("dp2"), Path(folder))
    checkpointer.poll(wait=True)
    place = newest_intact(Path(folder))
    weights = tensors(state)
    messages = []
    for sections in ({"optimizer": {"vision_lr_mult": 0.2}}, {"model": {"language": {"num_layers": 3}}}):
        state = start(run_config("dp2", **sections))
        with pytest.raises(CheckpointError) as caught:
            load_state(state, place)
        messages.append(str(caught.value))
    wide = start(run_config("dp2", model={"projector": {"hidden_size": 48}}))
    with pytest.raises(CheckpointError) as caught:
        load_weights(wide.models, place, wide.platform)
    messages.append(str(caught.value))
    half = start(run_config("tp2", training={"precision": "bf16"}))
    load_weights(half.models, place, half.platform)
    name = "vision_projection.linear_fc1.weight"
    loaded = dict(half.models[0].named_parameters())[name]
    return messages, torch.equal(loaded, weights[f"0/{name}"].to(loaded.dtype))


def test_misfits_are_named(tmp_path):
    messages, same = run_distributed(misfits, 2, str(tmp_path))[0]
    rates, layers, shapes = messages
    assert "optimizer.vision_lr_mult is 0.2, in the checkpoint 0.1" in rates
    assert "checkpoint.initial=" in rates
    assert "model.language.num_layers is 3, in the checkpoint 2" in layers
    assert "vision_projection.linear_fc1.weight" in shapes and "(48, 128)" in shapes and "[32, 128]" in shapes
    assert same
